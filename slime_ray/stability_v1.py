"""stability-v1: the score and its frozen tolerances. Measured parts come in; the formula stands here alone."""

import math
from dataclasses import asdict, dataclass

STABILITY_VERSION = "stability-v1"


@dataclass(frozen=True)
class StabilityParts:
    """The scored parts of stability-v1, each at least 0 and 0 when nothing changed since the SFT checkpoint.

    unlearning (U): nat/token. rejected_collapse (C): share of rejected tokens. entropy_shift (H): log ratio.
    broken_outputs (B): share of answers. length_shift (L): log ratio. training_spikes (T): share of updates.
    """

    unlearning: float
    rejected_collapse: float
    entropy_shift: float
    broken_outputs: float
    length_shift: float
    training_spikes: float


TOLERANCES = StabilityParts(
    unlearning=0.10,
    rejected_collapse=0.05,
    entropy_shift=0.35,
    broken_outputs=0.05,
    length_shift=0.40,
    training_spikes=0.01,
)


def damage(parts: StabilityParts) -> dict[str, float]:
    """(x/h)^2 of every part: what it adds to the denominator of S."""
    tolerances = asdict(TOLERANCES)
    return {name: (value / tolerances[name]) ** 2 for name, value in asdict(parts).items()}


def stability_score(parts: StabilityParts, *, healthy: bool) -> float:
    """S = g / (1 + sum of (x/h)^2), between 0 and 1; 0.5 when one part is at its tolerance.

    healthy: g, false after NaN, Inf, divergence or a missing checkpoint. A part that is not finite gives 0.
    """
    total = sum(damage(parts).values())
    return 1 / (1 + total) if healthy and math.isfinite(total) else 0.0
