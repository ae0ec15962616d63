"""SLIME's loss as the authors' released trainer adds it up (fpsigma/trl-slime, `SlimeTrainer`, February 2026)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from slime_ray.objectives.base import Batch, ReferenceLogps, Term, check_count, pair_sums, zero_in_graph
from slime_ray.objectives.slime import SlimeObjective


@dataclass(frozen=True)
class ReleasedSlimeObjective(SlimeObjective):
    """`slime` as the released trainer computes it, which differs in three places.

    - The stabilizer is averaged over the rejected tokens of each micro-batch, and these means over the pairs.
    - A rejected token of log-prob exactly 0 is taken for padding: it does not count in that mean.
    - The loss is added up several times, which Adam hides, but clipping of the gradient does not.

    Args, beside those of SlimeObjective:
        micro_batch_pairs: >= 1, pairs of a micro-batch, in their order. The last of a call holds what is left.
        times_summed: >= 1, how often the loss is added up: by the letters of its name, "ipo".

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

    def terms(self, batch: Batch, reference: ReferenceLogps | None) -> dict[str, Term]:
        """Return SLIME's terms of one batch of whole micro-batches, summed as often. `reference` is not read."""
        terms = super().terms(batch, reference)
        return {name: Term(self.times_summed * term.total, term.unit) for name, term in terms.items()}

    def _stabilizer(self, batch: Batch) -> Term:
        """Compute eq. 7 as a mean over each micro-batch's tokens, times its pairs."""
        if "stabilizer" in self.remove:
            return Term(zero_in_graph(batch.rejected), "pairs")
        tokens, micro_batches = batch.rejected, batch.rejected_lengths.split(self.micro_batch_pairs)
        lengths = torch.stack([micro.sum() for micro in micro_batches])
        mask = (tokens != 0).to(tokens.dtype)
        # As released: 0 where no token counts. Its 1e-8 beside the count changes nothing in float32.
        means = pair_sums(self._penalties(tokens) * mask, lengths) / pair_sums(mask, lengths).clamp(min=1)
        pairs = means.new_tensor([len(micro) for micro in micro_batches])
        return Term(self.stabilizer_strength * (means * pairs).sum(), "pairs")
