"""SimPO: a reference-free, length-normalised margin loss (Meng et al. 2024, arXiv 2405.14734, eq. 6)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from slime_ray.objectives.base import ObjectiveOutput, ReferenceLogps, Term, check_number, nothing, read_batch


@dataclass(frozen=True)
class SimpoObjective:
    """-log sigmoid(beta * D - gamma), D the difference of mean log-probs, and optionally a likelihood term.

    What TRL's CPO trainer computes for `loss_type="simpo"`; its `simpo_gamma` and `cpo_alpha` are `gamma` and
    `nll_weight` here.

    Args:
        beta: > 0. How steeply the loss falls with the margin D.
        gamma: >= 0. The target of beta * D, so the margin aimed at is gamma / beta nats per token.
        nll_weight: >= 0. Weight of the negative log-likelihood of the chosen tokens, averaged over tokens.

    Raises ValueError, its sentence beginning with the field's name.
    """

    name: ClassVar[str] = "simpo"
    needs_reference: ClassVar[bool] = False
    pairs_together: ClassVar[int | None] = None

    beta: float = 2.0
    gamma: float = 0.5
    nll_weight: float = 0.0

    def __post_init__(self) -> None:
        check_number("beta", self.beta, above=0)
        check_number("gamma", self.gamma, at_least=0)
        check_number("nll_weight", self.nll_weight, at_least=0)

    def __call__(
        self,
        chosen_logps: Tensor,
        chosen_lengths: Tensor,
        rejected_logps: Tensor,
        rejected_lengths: Tensor,
        *,
        reference: ReferenceLogps | None = None,
    ) -> ObjectiveOutput:
        """The terms `simpo` and `nll` of one batch; see `Objective` for shapes. `reference` is not read."""
        batch = read_batch(chosen_logps, chosen_lengths, rejected_logps, rejected_lengths)
        losses = -F.logsigmoid(self.beta * batch.margins - self.gamma)
        nll = -self.nll_weight * batch.chosen.sum() if self.nll_weight else nothing(batch.chosen)
        return ObjectiveOutput(
            terms={"simpo": Term(losses.sum(), "pairs"), "nll": Term(nll, "chosen_tokens")},
            counts=batch.counts,
            **batch.diagnostics(),
        )
