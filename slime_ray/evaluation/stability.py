"""The measured parts of stability-v1; their tolerances and the score stand in `slime_ray.runs.stability_v1`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slime_ray.evaluation.held_out import HeldOut
from slime_ray.runs.stability_v1 import spike_flags


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
    """T, share of the updates after the first 20 that are spikes (`spike_flags`); 0 for a run no longer than that."""
    flags = spike_flags(losses, grad_norms)
    return float(flags.mean()) if flags.size else 0.0


def pair_rows(before: HeldOut, after: HeldOut, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of pairs.parquet: what U, C and H are made of, pair by pair; `about` holds the trial's columns."""
    starts = np.concatenate([[0], np.cumsum(after.rejected_lengths)[:-1]])
    collapsed = np.add.reduceat((after.rejected - before.rejected < -math.log(10)).astype(int), starts)
    columns = {
        "chosen_tokens": after.chosen_lengths,
        "rejected_tokens": after.rejected_lengths,
        "chosen_logp0": before.chosen_means,
        "chosen_logp": after.chosen_means,
        "rejected_logp0": before.rejected_means,
        "rejected_logp": after.rejected_means,
        "rejected_collapsed": collapsed,
        "entropy0": before.entropy_means,
        "entropy": after.entropy_means,
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{**about, "pair": pair, **dict(zip(columns, row, strict=True))} for pair, row in enumerate(values)]
