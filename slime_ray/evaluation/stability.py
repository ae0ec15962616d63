"""The measured parts of stability-v1; their tolerances and the score stand in `slime_ray.stability_v1`."""

import math
from collections.abc import Sequence

import numpy as np

from slime_ray.evaluation.held_out import HeldOut

SPIKE_WINDOW = 50
SPIKE_SKIPPED = 20
SPIKE_DEVIATIONS = 6 * 1.4826


def unlearning(before: HeldOut, after: HeldOut) -> float:
    """U, nat/token: mean over pairs of max(0, lbar_w(0) - lbar_w(theta))."""
    return float(np.maximum(0.0, before.chosen_means - after.chosen_means).mean())


def rejected_collapse(before: HeldOut, after: HeldOut) -> float:
    """C, share of rejected tokens whose probability fell more than tenfold."""
    return float(np.mean(_collapsed(before, after)))


def collapsed_shares(before: HeldOut, after: HeldOut) -> np.ndarray:
    """(pairs,) the same share in each pair's rejected completion."""
    starts = np.concatenate([[0], np.cumsum(after.rejected_lengths)[:-1]])
    return np.add.reduceat(_collapsed(before, after).astype(float), starts) / after.rejected_lengths


def _collapsed(before: HeldOut, after: HeldOut) -> np.ndarray:
    return np.asarray(after.rejected - before.rejected < -math.log(10))


def entropy_shift(before: HeldOut, after: HeldOut) -> float:
    """H, abs(ln(Hbar(theta) / Hbar(0))) at the held-out chosen positions; infinite when one of them is 0."""
    old, new = float(before.entropy.mean()), float(after.entropy.mean())
    if old == new:
        return 0.0
    return abs(math.log(new / old)) if old > 0 and new > 0 else math.inf


def broken_outputs(broken: Sequence[bool], baseline_broken: Sequence[bool]) -> float:
    """B, by how much the share of broken answers grew: max(0, b(theta) - b(0))."""
    return max(0.0, float(np.mean(broken)) - float(np.mean(baseline_broken)))


def length_shift(tokens: Sequence[int], baseline_tokens: Sequence[int]) -> float:
    """L, abs(mean over prompts of ln(length(theta) / length(0))), lengths in tokens; an empty answer counts as one."""
    return abs(float(length_log_ratios(tokens, baseline_tokens).mean()))


def length_log_ratios(tokens: Sequence[int], baseline_tokens: Sequence[int]) -> np.ndarray:
    """(prompts,) ln(length(theta) / length(0))."""
    new, old = np.maximum(1, np.asarray(tokens)), np.maximum(1, np.asarray(baseline_tokens))
    return np.asarray(np.log(new / old))


def training_spikes(losses: Sequence[float], grad_norms: Sequence[float]) -> float:
    """T, share of updates whose loss or log gradient norm lies above trailing median + 6 * 1.4826 * MAD.

    The window holds the 50 updates before; the first 20 updates are not counted. 0 for a run no longer than that.
    """
    counted = range(SPIKE_SKIPPED, len(losses))
    if not counted:
        return 0.0
    log_norms = np.log(np.maximum(np.asarray(grad_norms, dtype=float), 1e-300))
    series = (np.asarray(losses, dtype=float), log_norms)
    spikes = sum(any(_spikes(values, step) for values in series) for step in counted)
    return spikes / len(counted)


def _spikes(values: np.ndarray, step: int) -> bool:
    window = values[max(0, step - SPIKE_WINDOW) : step]
    median = np.median(window)
    deviation = np.median(np.abs(window - median))
    return bool(values[step] > median + SPIKE_DEVIATIONS * deviation)
