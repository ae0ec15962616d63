"""SLIME's loss as the authors' released trainer adds it up (fpsigma/trl-slime, `SlimeTrainer`, February 2026)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from slime_ray.objectives.base import Batch, ReferenceLogps, Term, check_count, nothing, pair_sums
from slime_ray.objectives.slime import SlimeObjective, SlimeOutput


@dataclass(frozen=True)
class ReleasedSlimeObjective(SlimeObjective):
    """SlimeObjective with what the released trainer does differently, in three places.

    - The stabilizer, eq. 7, is averaged over the rejected tokens of each micro-batch of pairs by itself, and these
      means over the pairs: tokens beside short completions weigh more, and the loss depends on which pairs meet.
    - A rejected token of log-prob exactly 0 is taken for padding: it does not count in that mean.
    - The loss is added up several times: the trainer goes through the letters of its loss's name, "ipo". Adam hides the
      factor; clipping of the gradient does not.

    Args, beside those of SlimeObjective:
        micro_batch_pairs: >= 1, how many pairs make a micro-batch. Pairs are taken in the order given; the last
            micro-batch of a call holds what is left, and counts by its pairs.
        times_summed: >= 1.

    Raises ValueError, its sentence beginning with the field's name.
    """

    name: ClassVar[str] = "slime-released"

    micro_batch_pairs: int = 8
    times_summed: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("micro_batch_pairs", self.micro_batch_pairs)
        check_count("times_summed", self.times_summed)

    @property
    def pairs_together(self) -> int | None:
        """A micro-batch: cut elsewhere, the loss is another."""
        return self.micro_batch_pairs

    def __call__(
        self,
        chosen_logps: Tensor,
        chosen_lengths: Tensor,
        rejected_logps: Tensor,
        rejected_lengths: Tensor,
        *,
        reference: ReferenceLogps | None = None,
    ) -> SlimeOutput:
        """The terms of one batch of whole micro-batches; see `Objective` for shapes. `reference` is not read."""
        once = super().__call__(chosen_logps, chosen_lengths, rejected_logps, rejected_lengths)
        terms = {name: Term(self.times_summed * term.total, term.unit) for name, term in once.terms.items()}
        return replace(once, terms=terms)

    def _stabilizer(self, batch: Batch) -> Term:
        """Eq. 7 as a mean over each micro-batch's tokens, times its pairs."""
        if "stabilizer" in self.remove:
            return Term(nothing(batch.rejected), "pairs")
        tokens, micros = batch.rejected, batch.rejected_lengths.split(self.micro_batch_pairs)
        lengths = torch.stack([micro.sum() for micro in micros])
        counted = (tokens != 0).to(tokens.dtype)
        # As released: 0 where no token counts. Its 1e-8 beside the count changes nothing in float32.
        means = pair_sums(self._penalties(tokens) * counted, lengths) / pair_sums(counted, lengths).clamp(min=1)
        pairs = means.new_tensor([len(micro) for micro in micros])
        return Term(self.stabilizer_strength * (means * pairs).sum(), "pairs")
