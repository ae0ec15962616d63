"""SLIME: anchor on chosen, stabilizer on rejected tokens, dual margin (arXiv 2602.02383, eqs. 5 to 10)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_ray.objectives.base import (
    ObjectiveOutput,
    ReferenceLogps,
    Term,
    check_number,
    nothing,
    read_batch,
)

REMOVABLE = ("anchor", "stabilizer", "soft_margin", "hard_margin", "hard_margin_clip")
"""What `SlimeObjective.remove` takes."""

_LARGEST_EXPONENT = 8.0
"""A token of log-prob -1e4 to this power, summed over a million tokens, still is a float32."""


@dataclass(frozen=True, kw_only=True)
class SlimeOutput(ObjectiveOutput):
    """ObjectiveOutput with SLIME's three terms by name, each a weighted 0-d average over this batch."""

    @property
    def anchor(self) -> Tensor:
        """L_w, eq. 6, mean over pairs."""
        return self.value("anchor")

    @property
    def stabilizer(self) -> Tensor:
        """L_l, eq. 7, mean over all rejected tokens."""
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

    Args:
        anchor_weight: lambda_w, >= 0. More of it holds the chosen completions' probability up.
        stabilizer_strength: lambda_l, >= 0. More of it holds improbable rejected tokens up.
        stabilizer_threshold: delta in nats, >= 0. Rejected tokens below -delta are held; larger holds fewer.
        stabilizer_exponent: p, from 1 to 8. Larger holds improbable tokens harder and likely ones less.
        margin_weight: lambda_d, >= 0.
        hard_margin: m_h in nats per token, >= 0. No push from this margin on.
        soft_margin: m_s in nats per token. Around it the push fades.
        gate_sharpness: kappa, > 0. How sudden that fading is.
        remove: ablations. "anchor" and "stabilizer" drop their terms; "soft_margin" sets s = 1;
            "hard_margin" sets h = 1 (then pairs of any margin are pushed); "hard_margin_clip" drops only the
            clip, h = hard_margin - D. With neither soft nor hard margin the term would be the constant
            margin_weight, which trains nothing: it is 0 here.

    Raises ValueError, its sentence beginning with the field's name.
    """

    name: ClassVar[str] = "slime"
    needs_reference: ClassVar[bool] = False

    anchor_weight: float = 0.1
    stabilizer_strength: float = 0.1
    stabilizer_threshold: float = 1.25
    stabilizer_exponent: float = 2.5
    margin_weight: float = 1.0
    hard_margin: float = 1.5
    soft_margin: float = 1.0
    gate_sharpness: float = 2.5
    remove: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_number("anchor_weight", self.anchor_weight, at_least=0)
        check_number("stabilizer_strength", self.stabilizer_strength, at_least=0)
        check_number("stabilizer_threshold", self.stabilizer_threshold, at_least=0)
        check_number("stabilizer_exponent", self.stabilizer_exponent, at_least=1, at_most=_LARGEST_EXPONENT)
        check_number("margin_weight", self.margin_weight, at_least=0)
        check_number("hard_margin", self.hard_margin, at_least=0)
        check_number("soft_margin", self.soft_margin)
        check_number("gate_sharpness", self.gate_sharpness, above=0)
        object.__setattr__(self, "remove", _checked_removals(self.remove))

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
        return SlimeOutput(
            terms={
                "anchor": Term(self._anchor(batch.chosen_means), "pairs"),
                "stabilizer": Term(self._stabilizer(batch.rejected), "rejected_tokens"),
                "margin": Term(self._margin(batch.margins), "pairs"),
            },
            counts=batch.counts,
            **batch.diagnostics(),
        )

    def _anchor(self, chosen_means: Tensor) -> Tensor:
        """Eq. 6, summed. chosen_means: (pairs,) in nats per token."""
        if "anchor" in self.remove:
            return nothing(chosen_means)
        return -self.anchor_weight * chosen_means.sum()

    def _stabilizer(self, rejected: Tensor) -> Tensor:
        """Eq. 7, summed. rejected: (tokens,) in nats."""
        if "stabilizer" in self.remove:
            return nothing(rejected)
        # torch's softplus, as released: from 20 nats past the threshold on it is its argument, short of the
        # exact value by less than 2.1e-9.
        penalty = F.softplus(-rejected - self.stabilizer_threshold)
        return self.stabilizer_strength * (penalty**self.stabilizer_exponent).sum()

    def _margin(self, margins: Tensor) -> Tensor:
        """Eqs. 8 to 10, summed. margins: (pairs,), D in nats per token."""
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


def _checked_removals(remove: object) -> tuple[str, ...]:
    """`remove` in a fixed order and without repetitions, so that equal objectives compare equal."""
    known = ", ".join(REMOVABLE)
    if isinstance(remove, str) or not isinstance(remove, (tuple, list, set, frozenset)):
        raise ValueError(f"remove is {remove!r}: must be a list of any of {known}")
    for item in remove:
        if item not in REMOVABLE:
            raise ValueError(f"remove holds {item!r}: must be a list of any of {known}")
    if "hard_margin" in remove and "hard_margin_clip" in remove:
        raise ValueError("remove holds hard_margin and hard_margin_clip, two readings of one ablation: name one")
    return tuple(item for item in REMOVABLE if item in remove)
