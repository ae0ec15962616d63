"""One space of parts from which most preference objectives are put together, so that parts can be compared."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_ray.objectives.base import Batch, ReferenceLogps, Term, zero_in_graph
from slime_ray.objectives.pairwise import PairwiseObjective, knob
from slime_ray.objectives.simpo import alphapo_rewards, log_odds
from slime_ray.objectives.slime import LARGEST_EXPONENT


@dataclass(frozen=True)
class ComposedObjective(PairwiseObjective):
    """link_weight * link(D) + anchor + stabilizer, D the scaled margin of the scores v_w and v_l of a pair.

    D = v_w - rejected_share * v_l - chosen_guard * max(0, -v_w), and with x = beta * (D - target) the link is
        logistic:    -log sigmoid(x)
        hinge:       max(0, 1 - x)
        square:      (x - 1) ** 2
        gated:       max(0, target - D) * sigmoid(-gate_sharpness * (D - soft_margin)), SLIME's eq. 10
        exponential: exp(-x), cut at e**50
        linear:      -x
        none:        0

    Args:
        against_reference: Whether scores are log ratios instead of log-probs.
        normalization: "mean" or "sum" of log-probs over tokens.
        score: "logp" as it is; "odds", the log odds (ORPO's); "power", (1 - exp(-power * logp)) / power (AlphaPO's).
        power: The exponent of "power"; -1 gives probabilities (SimPER's).
        link: Function of the margin, as above.
        link_weight: >= 0. Weight of the link.
        beta: > 0. Scale of the margin. The gated link has none.
        target: Margin aimed at: SimPO's gamma / beta, SLIME's hard margin.
        soft_margin: Around it the gated link's push fades.
        gate_sharpness: > 0. How sudden that fading is.
        rejected_share: above 0 and up to 1. Share of the rejected score (DPO-Shift's f).
        chosen_guard: >= 0. Penalty on a chosen score below 0 (DPOP's lambda). Needs a reference.
        anchor: Mean score over "pairs" (SLIME's), mean log-prob over chosen "tokens" (NLL), or "none".
        anchor_weight: >= 0. Weight of the anchor.
        stabilizer_strength: >= 0. Weight of SLIME's eq. 7 on rejected tokens.
        stabilizer_threshold: delta in nats, >= 0.
        stabilizer_exponent: p, from 1 to 8.
        remove: "reference", "length_normalization", "score", "link" (logistic in its place), "margin", "target_margin",
            "chosen_guard", "rejected_share", "anchor" and "stabilizer".

    Raises ValueError, its sentence beginning with the field's name.
    """

    name: ClassVar[str] = "composed"
    push_knob: ClassVar[str | None] = "link_weight"
    push_term: ClassVar[str] = "link"
    parts: ClassVar = {
        "reference": "log-probs take the place of log ratios",
        "length_normalization": "sums over tokens take the place of means",
        "score": "log-probs as they are",
        "link": "the logistic link takes its place",
        "margin": "no link at all",
        "target_margin": "target is 0",
        "chosen_guard": "no guard",
        "rejected_share": "the whole rejected score",
        "anchor": "no anchor term",
        "stabilizer": "no stabilizer term",
    }

    against_reference: bool = False
    normalization: Literal["mean", "sum"] = "mean"
    score: Literal["logp", "odds", "power"] = "logp"
    power: float = knob(0.25, at_least=-5, at_most=5)
    link: Literal["logistic", "hinge", "square", "gated", "exponential", "linear", "none"] = "logistic"
    link_weight: float = knob(1.0, at_least=0)
    beta: float = knob(1.0, above=0)
    target: float = knob(0.0, at_least=0)
    soft_margin: float = knob(1.0)
    gate_sharpness: float = knob(2.5, above=0)
    rejected_share: float = knob(1.0, above=0, at_most=1)
    chosen_guard: float = knob(0.0, at_least=0)
    anchor: Literal["none", "pairs", "tokens"] = "none"
    anchor_weight: float = knob(0.1, at_least=0)
    stabilizer_strength: float = knob(0.0, at_least=0)
    stabilizer_threshold: float = knob(1.25, at_least=0)
    stabilizer_exponent: float = knob(2.5, at_least=1, at_most=LARGEST_EXPONENT)
    remove: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.against_reference, bool):
            raise ValueError(f"against_reference is {self.against_reference!r}: must be true or false")
        if self.score != "logp" and self.against_reference:
            raise ValueError(
                f"score is {self.score!r}, which has no form against a reference: set against_reference to false"
            )
        is_shaped = self.score != "logp" and not self.without("score")
        if is_shaped and (self.normalization != "mean" or self.without("length_normalization")):
            raise ValueError(
                f"score is {self.score!r}, which is defined on means: set normalization to mean, and do not remove it"
            )
        if self.chosen_guard and not self.against_reference:
            raise ValueError("chosen_guard needs against_reference: a log-prob is always below 0")
        is_gated = self.link == "gated" and not {"link", "margin"} & set(self.remove)
        if is_gated and (not self.target or self.without("target_margin")):
            raise ValueError("target is 0, or removed: the gated link needs a hard margin above 0")
        has_gradient = (
            (self.link != "none" and not self.without("margin") and self.link_weight > 0)
            or (self.anchor != "none" and not self.without("anchor") and self.anchor_weight > 0)
            or (self.stabilizer_strength > 0 and not self.without("stabilizer"))
        )
        if not has_gradient:
            raise ValueError("link is none, or has no weight: with neither anchor nor stabilizer nothing is trained")

    @property
    def needs_reference(self) -> bool:
        """Whether scores are log ratios."""
        return self.against_reference and not self.without("reference")

    def terms(self, batch: Batch, reference: ReferenceLogps | None) -> dict[str, Term]:
        """Return the terms `link`, `anchor` and `stabilizer` of one batch."""
        normalization = "sum" if self.without("length_normalization") else self.normalization
        chosen, rejected = (self._transform(score) for score in batch.scores(reference, normalization))
        return {
            "link": Term(self._link(chosen, rejected), "pairs"),
            "anchor": self._anchor(batch, chosen),
            "stabilizer": Term(self._stabilizer(batch.rejected), "rejected_tokens"),
        }

    def _transform(self, logps: Tensor) -> Tensor:
        """Compute the scores of log-probs or log ratios, (pairs,)."""
        if self.without("score") or self.score == "logp":
            return logps
        return log_odds(logps) if self.score == "odds" else alphapo_rewards(logps, self.power)

    def _link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Compute the weighted link, summed over pairs. chosen, rejected: scores, (pairs,)."""
        link = "logistic" if self.without("link") and self.link != "none" else self.link
        if link == "none" or self.without("margin"):
            return zero_in_graph(chosen)
        margin = chosen - (1.0 if self.without("rejected_share") else self.rejected_share) * rejected
        if self.chosen_guard and not {"chosen_guard", "reference"} & set(self.remove):
            margin = margin - self.chosen_guard * F.relu(-chosen)
        target = 0.0 if self.without("target_margin") else self.target
        scaled = self.beta * (margin - target)
        if link == "logistic":
            losses = -F.logsigmoid(scaled)
        elif link == "hinge":
            losses = F.relu(1 - scaled)
        elif link == "square":
            losses = (scaled - 1) ** 2
        elif link == "exponential":
            losses = torch.exp((-scaled).clamp(max=50))
        elif link == "linear":
            losses = -scaled
        else:
            losses = F.relu(target - margin) * torch.sigmoid(-self.gate_sharpness * (margin - self.soft_margin))
        return self.link_weight * losses.sum()

    def _anchor(self, batch: Batch, chosen: Tensor) -> Term:
        """Compute the weighted anchor. chosen: scores, (pairs,)."""
        if self.anchor == "none" or self.without("anchor"):
            return Term(zero_in_graph(chosen), "pairs")
        if self.anchor == "pairs":
            return Term(-self.anchor_weight * chosen.sum(), "pairs")
        return Term(-self.anchor_weight * batch.chosen.sum(), "chosen_tokens")

    def _stabilizer(self, rejected: Tensor) -> Tensor:
        """Compute SLIME's eq. 7, weighted and summed. rejected: (tokens,) in nats."""
        if not self.stabilizer_strength or self.without("stabilizer"):
            return zero_in_graph(rejected)
        penalties = F.softplus(-rejected - self.stabilizer_threshold) ** self.stabilizer_exponent
        return self.stabilizer_strength * penalties.sum()
