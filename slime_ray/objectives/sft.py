"""Negative log-likelihood of the chosen completions: the SFT stage, and a baseline of preference training."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from slime_ray.objectives.base import ObjectiveOutput, ReferenceLogps, Term, read_batch


@dataclass(frozen=True)
class SftObjective:
    """Mean over all chosen tokens of -log p(token). Rejected completions are ignored and may be absent."""

    name: ClassVar[str] = "sft"
    needs_reference: ClassVar[bool] = False
    pairs_together: ClassVar[int | None] = None

    def __call__(
        self,
        chosen_logps: Tensor,
        chosen_lengths: Tensor,
        rejected_logps: Tensor,
        rejected_lengths: Tensor,
        *,
        reference: ReferenceLogps | None = None,
    ) -> ObjectiveOutput:
        """The one term `nll` of a batch; see `Objective` for shapes. `reference` is not read.

        With no rejected completions `rejected_logps` is (0,), and `rejected_lengths` (0,) or all zeros.
        """
        batch = read_batch(chosen_logps, chosen_lengths, rejected_logps, rejected_lengths, rejected_optional=True)
        return ObjectiveOutput(
            terms={"nll": Term(-batch.chosen.sum(), "chosen_tokens")},
            counts=batch.counts,
            **batch.diagnostics(),
        )
