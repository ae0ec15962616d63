"""stability-v1: the score, its frozen tolerances and what is a spike. The formula stands here alone."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

STABILITY_VERSION = "stability-v1"
SPIKE_WINDOW = 50
SPIKE_SKIPPED = 20
SPIKE_DEVIATIONS = 6 * 1.4826


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


WITHIN_TOLERANCE = 0.5
"""S where one part is at its tolerance: of a front, trials that have as much are chosen before those below."""


def damage(parts: StabilityParts) -> dict[str, float]:
    """(x/h)^2 of every part: what it adds to the denominator of S."""
    tolerances = asdict(TOLERANCES)
    return {name: (value / tolerances[name]) ** 2 for name, value in asdict(parts).items()}


def stability_score(parts: StabilityParts, *, healthy: bool) -> float:
    """S = g / (1 + sum of (x/h)^2), between 0 and 1; WITHIN_TOLERANCE when one part is at its tolerance.

    healthy: g, false after NaN, Inf, divergence or a missing checkpoint. A part that is not finite gives 0.
    """
    total = sum(damage(parts).values())
    return 1 / (1 + total) if healthy and math.isfinite(total) else 0.0


def spike_flags(losses: Sequence[float], grad_norms: Sequence[float]) -> np.ndarray:
    """(updates - 20,) whether the loss or the log gradient norm lies above trailing median + 6 * 1.4826 * MAD.

    The window holds the 50 updates before; the first 20 updates are not counted. Their share that is true is part T.
    """
    log_norms = np.log(np.maximum(np.asarray(grad_norms, dtype=float), 1e-300))
    series = np.stack([np.asarray(losses, dtype=float), log_norms])
    early = [
        _is_spike(series[:, :step], series[:, step]) for step in range(SPIKE_SKIPPED, min(SPIKE_WINDOW, len(losses)))
    ]
    if len(losses) <= SPIKE_WINDOW:
        return np.array(early, dtype=bool)
    windows = np.lib.stride_tricks.sliding_window_view(series, SPIKE_WINDOW, axis=1)[:, :-1]
    return np.concatenate([early, _is_spike(windows, series[:, SPIKE_WINDOW:])])


def _is_spike(windows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of two series (first axis), whether either value lies above what its window (last axis) allows."""
    medians = np.median(windows, axis=-1, keepdims=True)
    deviations = np.median(np.abs(windows - medians), axis=-1)
    return np.asarray((values > medians[..., 0] + SPIKE_DEVIATIONS * deviations).any(axis=0))
