"""Intervals and comparisons, each a few lines on arrays: what every number in a table was computed with.

Outcomes come as an array of shape (seeds, prompts): 1 win, 0.5 tie, 0 loss of the policy against the baseline, NaN
where no valid verdict was given. A prompt and everything said about it is the unit that is resampled.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float

    def covers(self, value: float) -> bool:
        """Whether `value` lies in the interval."""
        return self.low <= value <= self.high


@lru_cache(maxsize=4)
def _draws(items: int, seed: int, resamples: int) -> np.ndarray:
    """(items, resamples) how often each resample draws each item; kept, for all rows of a table share their prompts."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(items, np.full(items, 1 / items), size=resamples).T.astype(np.float32)


def resample_means(values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """(resamples, ...) means over the last axis of `values`, its items drawn with replacement.

    values: (..., items). All leading axes are resampled together, so that comparisons stay paired. How often the items
    are drawn is multinomial, which makes all resamples one matrix product.
    """
    items = values.shape[-1]
    return np.moveaxis(values @ _draws(items, seed, resamples), -1, 0) / items


def interval(value: float, resampled: np.ndarray) -> Interval:
    """The percentile interval of a resampled estimate."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def prompt_means(outcomes: np.ndarray) -> np.ndarray:
    """(prompts,) mean outcome of each prompt over seeds; NaN where it has none."""
    valid = ~np.isnan(outcomes)
    counts = valid.sum(axis=0)
    sums = np.where(valid, outcomes, 0.0).sum(axis=0)
    return np.divide(sums, counts, out=np.full(outcomes.shape[1], np.nan), where=counts > 0)


def win_rate_interval(outcomes: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval | None:
    """Win rate with its interval over prompts; both orders and all seeds of a prompt stay together.

    outcomes: (seeds, prompts). Prompts without any verdict are left out; None where none has one.
    """
    means = prompt_means(outcomes)
    means = means[~np.isnan(means)]
    if not means.size:
        return None
    return interval(means.mean(), resample_means(means, seed=seed, resamples=resamples))


def verdict_bounds(outcomes: np.ndarray) -> tuple[float, float]:
    """Win rates if every missing verdict were a loss, and if every one were a win."""
    return float(np.nan_to_num(outcomes, nan=0.0).mean()), float(np.nan_to_num(outcomes, nan=1.0).mean())


def paired_difference(policy: np.ndarray, other: np.ndarray, *, seed: int = 0) -> Interval | None:
    """Win rate of `policy` minus that of `other`, on the same prompts, with its interval.

    Both are (seeds, prompts) with the same prompts in the same order. With two or more seeds in common, seeds and
    prompts are resampled independently (crossed bootstrap, Owen 2007); else prompts alone. None without common prompts.
    """
    if policy.shape == other.shape and len(policy) > 1:
        differences = policy - other
        kept = ~np.isnan(differences).any(axis=0)
        if kept.any():
            return interval(differences[:, kept].mean(), _crossed_means(differences[:, kept], seed=seed))
    differences = prompt_means(policy) - prompt_means(other)
    differences = differences[~np.isnan(differences)]
    if not differences.size:
        return None
    return interval(differences.mean(), resample_means(differences, seed=seed))


def _crossed_means(values: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(resamples,) means of (seeds, prompts) values, both axes resampled independently."""
    seeds = values.shape[0]
    by_seed = resample_means(values, seed=seed, resamples=resamples)
    counts = np.random.default_rng([seed, 1]).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    return (by_seed * counts).sum(axis=1) / seeds


def arena_hard_score(verdicts: list[str | None]) -> float | None:
    """W_AH of metrics: `A>>B` counts as 3 votes, `A>B` as 1, a tie as one vote of 0.5. The policy is A."""
    votes = {"A>>B": (1.0, 3), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, 3)}
    known = [votes[verdict] for verdict in verdicts if verdict in votes]
    weight = sum(w for _, w in known)
    return sum(y * w for y, w in known) / weight if weight else None


def on_front(points: np.ndarray) -> np.ndarray:
    """(points,) whether no other point is at least as good in all goals and better in one. points: (points, goals)."""
    better = (points[:, None] >= points[None]).all(axis=2) & (points[:, None] > points[None]).any(axis=2)
    return np.asarray(~better.any(axis=0))
