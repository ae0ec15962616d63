"""SLIME: anchor on chosen, stabilizer on rejected tokens, dual margin (arXiv 2602.02383, eqs. 5 to 10)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_ray.objectives.base import (
    Batch,
    ObjectiveOutput,
    ReferenceLogps,
    Term,
    nothing,
    read_batch,
)
from slime_ray.objectives.pairwise import check_fields, knob

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


@dataclass(frozen=True, kw_only=True)
class SlimeOutput(ObjectiveOutput):
    """ObjectiveOutput with SLIME's three terms by name, each a weighted 0-d average over this batch.

    past_hard_margin: (pairs,) bool, D >= hard_margin with D as the margin term has it, whatever is removed from it.
    """

    past_hard_margin: Tensor

    @property
    def anchor(self) -> Tensor:
        """L_w, eq. 6, mean over pairs."""
        return self.value("anchor")

    @property
    def stabilizer(self) -> Tensor:
        """L_l, eq. 7, mean over rejected tokens."""
        return self.value("stabilizer")

    @property
    def margin(self) -> Tensor:
        """L_dist, eq. 10, mean over pairs."""
        return self.value("margin")


@dataclass(frozen=True)
class SlimeObjective:
    """L = L_w + L_l + L_dist, eq. 5, with the paper's values as defaults. No reference model.

    With lw, ll a pair's mean log-probs, D = lw - ll, and l_t one rejected token's log-prob:
    anchor, eq. 6:      -anchor_weight * mean over pairs of lw
    stabilizer, eq. 7:  stabilizer_strength * mean over all rejected tokens of
                        softplus(-l_t - stabilizer_threshold) ** stabilizer_exponent
    margin, eq. 10:     margin_weight * mean over pairs of h * s, where
                        h = max(0, hard_margin - D), eq. 8, is the hard margin and
                        s = sigmoid(-gate_sharpness * (D - soft_margin)), eq. 9, the soft margin
    From D >= hard_margin on, the margin term's gradient is exactly 0.
    With `normalization` "sum" lw and ll, and so D, are sums of log-probs, as eqs. 6 and 8 to 10 are printed.

    Args:
        anchor_weight: lambda_w, >= 0. More of it holds the chosen completions' probability up.
        stabilizer_strength: lambda_l, >= 0. More of it holds improbable rejected tokens up.
        stabilizer_threshold: delta in nats, >= 0. Rejected tokens below -delta are held; larger holds fewer.
        stabilizer_exponent: p, from 1 to 8. Larger holds improbable tokens harder and likely ones less.
        margin_weight: lambda_d, >= 0. More of it pulls pairs apart harder, beside the other two terms.
        hard_margin: m_h, >= 0. No push from this margin on.
        soft_margin: m_s. Around it the push fades.
        gate_sharpness: kappa, > 0. How sudden that fading is.
        remove: Ablations. "anchor" and "stabilizer" drop their terms; "soft_margin" sets s = 1;
            "hard_margin" sets h = 1 (then pairs of any margin are pushed); "hard_margin_clip" drops only the
            clip, h = hard_margin - D. With neither soft nor hard margin the term would be the constant
            margin_weight, which trains nothing: it is 0 here.
        normalization: What stands for log pi(y|x) in anchor and margin: the "mean" over the completion's tokens (the
            paper's appendix A and the released code) or their "sum". The two margins are in nats of it.

    Raises ValueError, its sentence beginning with the field's name.
    """

    name: ClassVar[str] = "slime"
    needs_reference: ClassVar[bool] = False
    parts: ClassVar = REMOVABLE

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
        check_fields(self, self.parts)
        if "hard_margin" in self.remove and "hard_margin_clip" in self.remove:
            raise ValueError("remove holds hard_margin and hard_margin_clip, two readings of one ablation: name one")

    @property
    def pairs_together(self) -> int | None:
        """None: any cut of an update gives the same loss."""
        return None

    def __call__(
        self,
        chosen_logps: Tensor,
        chosen_lengths: Tensor,
        rejected_logps: Tensor,
        rejected_lengths: Tensor,
        *,
        reference: ReferenceLogps | None = None,
    ) -> SlimeOutput:
        """The terms of one batch; see `Objective` for shapes. `reference` is not read."""
        batch = read_batch(chosen_logps, chosen_lengths, rejected_logps, rejected_lengths)
        summed = self.normalization == "sum"
        chosen = batch.chosen_sums if summed else batch.chosen_means
        margins = chosen - (batch.rejected_sums if summed else batch.rejected_means)
        return SlimeOutput(
            terms={
                "anchor": Term(self._anchor(chosen), "pairs"),
                "stabilizer": self._stabilizer(batch),
                "margin": Term(self._margin(margins), "pairs"),
            },
            counts=batch.counts,
            past_hard_margin=margins.detach() >= self.hard_margin,
            **batch.diagnostics(),
        )

    def _anchor(self, chosen: Tensor) -> Tensor:
        """Eq. 6, summed. chosen: (pairs,), lw."""
        if "anchor" in self.remove:
            return nothing(chosen)
        return -self.anchor_weight * chosen.sum()

    def _stabilizer(self, batch: Batch) -> Term:
        """Eq. 7 over all rejected tokens."""
        if "stabilizer" in self.remove:
            return Term(nothing(batch.rejected), "rejected_tokens")
        return Term(self.stabilizer_strength * self._penalties(batch.rejected).sum(), "rejected_tokens")

    def _penalties(self, rejected: Tensor) -> Tensor:
        """What eq. 7 takes the mean of. rejected: (tokens,) in nats; returns (tokens,)."""
        # torch's softplus, as released: from 20 nats past the threshold on it is its argument, short of the
        # exact value by less than 2.1e-9.
        return F.softplus(-rejected - self.stabilizer_threshold) ** self.stabilizer_exponent

    def _margin(self, margins: Tensor) -> Tensor:
        """Eqs. 8 to 10, summed. margins: (pairs,), D."""
        factors = []
        if "hard_margin" not in self.remove:
            shortfall = self.hard_margin - margins
            # relu, for clamp passes a gradient on at exactly 0.
            factors.append(shortfall if "hard_margin_clip" in self.remove else F.relu(shortfall))
        if "soft_margin" not in self.remove:
            factors.append(torch.sigmoid(-self.gate_sharpness * (margins - self.soft_margin)))
        if not factors:
            return nothing(margins)
        product = factors[0] if len(factors) == 1 else factors[0] * factors[1]
        return self.margin_weight * product.sum()
