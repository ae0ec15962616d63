"""DPO: direct preference optimization, sigmoid loss (Rafailov et al. 2023, arXiv 2305.18290, eq. 7)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from slime_ray.objectives.base import (
    ObjectiveOutput,
    ReferenceLogps,
    Term,
    check_number,
    check_reference,
    read_batch,
)


@dataclass(frozen=True)
class DpoObjective:
    """-log sigmoid(beta * z), z how much more than the reference the policy prefers chosen, by sequence sums.

    z = (sum chosen - reference chosen) - (sum rejected - reference rejected), in nats, not length-normalised.

    Args:
        beta: > 0. Larger keeps the policy closer to the reference.
        label_smoothing: from 0 to 0.5, the assumed share of pairs with swapped labels (conservative DPO).

    Raises ValueError, its sentence beginning with the field's name.
    """

    name: ClassVar[str] = "dpo"
    needs_reference: ClassVar[bool] = True
    pairs_together: ClassVar[int | None] = None

    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_number("beta", self.beta, above=0)
        check_number("label_smoothing", self.label_smoothing, at_least=0, at_most=0.5)

    def __call__(
        self,
        chosen_logps: Tensor,
        chosen_lengths: Tensor,
        rejected_logps: Tensor,
        rejected_lengths: Tensor,
        *,
        reference: ReferenceLogps | None = None,
    ) -> ObjectiveOutput:
        """The one term `dpo` of a batch; see `Objective` for shapes. ValueError without a reference."""
        batch = read_batch(chosen_logps, chosen_lengths, rejected_logps, rejected_lengths)
        base = check_reference("DPO", reference, batch.chosen_sums)
        logits = self.beta * ((batch.chosen_sums - base.chosen) - (batch.rejected_sums - base.rejected))
        losses = -F.logsigmoid(logits) * (1 - self.label_smoothing) - F.logsigmoid(-logits) * self.label_smoothing
        return ObjectiveOutput(
            terms={"dpo": Term(losses.sum(), "pairs")},
            counts=batch.counts,
            **batch.diagnostics(),
        )
