"""SLIME: anchor on chosen, stabilizer on rejected tokens, dual margin (arXiv 2602.02383, eqs. 5 to 10)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_ray.objectives.base import Batch, ReferenceLogps, Term, zero_in_graph
from slime_ray.objectives.pairwise import PairwiseObjective, knob

REMOVABLE = {
    "anchor": "no anchor term",
    "stabilizer": "no stabilizer term",
    "soft_margin": "s is 1",
    "hard_margin": "h is 1",
    "hard_margin_clip": "h is hard_margin - D",
}
"""What `SlimeObjective.remove` takes, and what is left."""

LARGEST_EXPONENT = 8.0
"""A token of log-prob -1e4 to this power, summed over a million tokens, still is a float32."""


@dataclass(frozen=True)
class SlimeObjective(PairwiseObjective):
    """L = L_w + L_l + L_dist, eq. 5, with the paper's values as defaults. No reference model.

    With lw, ll a pair's mean log-probs, D = lw - ll, and l_t one rejected token's log-prob:
    anchor, eq. 6:      -anchor_weight * mean over pairs of lw
    stabilizer, eq. 7:  stabilizer_strength * mean over all rejected tokens of
                        softplus(-l_t - stabilizer_threshold) ** stabilizer_exponent
    margin, eq. 10:     margin_weight * mean over pairs of h * s, where
                        h = max(0, hard_margin - D), eq. 8, is the hard margin and
                        s = sigmoid(-gate_sharpness * (D - soft_margin)), eq. 9, the soft margin
    From D >= hard_margin on, the margin term's gradient is exactly 0.

    Args:
        anchor_weight: lambda_w, >= 0. More holds chosen completions up.
        stabilizer_strength: lambda_l, >= 0. More holds improbable rejected tokens up.
        stabilizer_threshold: delta in nats, >= 0. Rejected tokens below -delta are held up.
        stabilizer_exponent: p, from 1 to 8. Larger holds improbable tokens harder, likely ones less.
        margin_weight: lambda_d, >= 0. More pulls pairs apart harder.
        hard_margin: m_h, >= 0. No push from this margin on.
        soft_margin: m_s. Around it the push fades.
        gate_sharpness: kappa, > 0. How sudden that fading is.
        remove: "anchor", "stabilizer", "soft_margin" (s = 1), "hard_margin" (h = 1), "hard_margin_clip" (h =
            hard_margin - D). Without both margins the term is 0.
        normalization: Log-probs of anchor and margin: "mean" over tokens (released code), or "sum". Margins are in
            nats of it.

    Raises ValueError, its sentence beginning with the field's name.
    """

    name: ClassVar[str] = "slime"
    parts: ClassVar = REMOVABLE
    push_knob: ClassVar[str | None] = "margin_weight"
    push_term: ClassVar[str] = "margin"

    anchor_weight: float = knob(0.1, at_least=0)
    stabilizer_strength: float = knob(0.1, at_least=0, tuned=(0.0005, 0.1))
    stabilizer_threshold: float = knob(1.25, at_least=0)
    stabilizer_exponent: float = knob(2.5, at_least=1, at_most=LARGEST_EXPONENT, tuned=(1.0, 3.0))
    margin_weight: float = knob(1.0, at_least=0)
    hard_margin: float = knob(1.5, at_least=0)
    soft_margin: float = knob(1.0)
    gate_sharpness: float = knob(2.5, above=0)
    remove: tuple[str, ...] = ()
    normalization: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if "hard_margin" in self.remove and "hard_margin_clip" in self.remove:
            raise ValueError("remove holds hard_margin and hard_margin_clip, two readings of one ablation: name one")

    def terms(self, batch: Batch, reference: ReferenceLogps | None) -> dict[str, Term]:
        """Return the terms `anchor`, `stabilizer` and `margin` of one batch. `reference` is not read."""
        chosen, rejected = batch.scores(None, self.normalization)
        return {
            "anchor": Term(self._anchor(chosen), "pairs"),
            "stabilizer": self._stabilizer(batch),
            "margin": Term(self._margin(chosen - rejected), "pairs"),
        }

    def _anchor(self, chosen: Tensor) -> Tensor:
        """Compute eq. 6, summed. chosen: (pairs,), lw."""
        if "anchor" in self.remove:
            return zero_in_graph(chosen)
        return -self.anchor_weight * chosen.sum()

    def _stabilizer(self, batch: Batch) -> Term:
        """Compute eq. 7 over all rejected tokens."""
        if "stabilizer" in self.remove:
            return Term(zero_in_graph(batch.rejected), "rejected_tokens")
        return Term(self.stabilizer_strength * self._penalties(batch.rejected).sum(), "rejected_tokens")

    def _penalties(self, rejected: Tensor) -> Tensor:
        """Compute the penalties that eq. 7 averages, (tokens,). rejected: (tokens,) in nats."""
        # torch's softplus, as released: from 20 nats past the threshold on it is its argument, short of the
        # exact value by less than 2.1e-9.
        return F.softplus(-rejected - self.stabilizer_threshold) ** self.stabilizer_exponent

    def _margin(self, margins: Tensor) -> Tensor:
        """Compute eqs. 8 to 10, summed. margins: (pairs,), D."""
        factors = []
        if "hard_margin" not in self.remove:
            shortfall = self.hard_margin - margins
            # relu, for clamp passes a gradient on at exactly 0.
            factors.append(shortfall if "hard_margin_clip" in self.remove else F.relu(shortfall))
        if "soft_margin" not in self.remove:
            factors.append(torch.sigmoid(-self.gate_sharpness * (margins - self.soft_margin)))
        if not factors:
            return zero_in_graph(margins)
        product = factors[0] if len(factors) == 1 else factors[0] * factors[1]
        return self.margin_weight * product.sum()
