"""Intervals and comparisons, each a few lines on arrays: what every number in a table was computed with.

Outcomes come as an array of shape (seeds, prompts): 1 win, 0.5 tie, 0 loss of the policy against the baseline, NaN
where no valid verdict was given. A prompt and everything said about it is the unit that is resampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from itertools import chain

import numpy as np
from scipy.special import expit, logit, stdtrit

from slime_ray.config.design import FEWEST_SEEDS as FEWEST_SEEDS

RESAMPLES = 10_000
AT_ONCE = 1_000
"""Resamples that are worked out together."""
CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2)
"""Quantiles at the ends of a percentile interval."""
FEWEST_UNITS = 3
"""Prompts or pairs that an interval takes: fewer have hardly any resamples that differ."""
FEWEST_PROMPTS = 20
"""With fewer, an interval is too rough to claim anything by."""
PRIOR = 0.5
"""Items that are added at either extreme in how outcomes scatter: what was not seen may still be there."""
TOO_FEW = "too few prompts for an interval"
"""What is said of an estimate without ends."""
POINTS = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}
"""What A wins by a verdict."""
VOTES = {"A>>B": 3, "A>B": 1, "A=B": 1, "B>A": 1, "B>>A": 3}
"""As how many votes a verdict counts in Arena-Hard's score."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; the ends are NaN where there are too few units for one."""

    value: float
    low: float
    high: float

    def covers(self, value: float) -> bool:
        """Tell whether `value` lies in the interval."""
        return self.low <= value <= self.high

    def excludes(self, value: float) -> bool:
        """Tell whether `value` lies beyond an end. Without ends it is neither covered nor excluded."""
        return value < self.low or value > self.high

    def within(self, least: float, most: float) -> "Interval":
        """Cut off what cannot be: Student's ends know of no bounds. It covers the truth just as often."""
        low, high = np.clip([self.low, self.high], least, most).tolist()
        return Interval(self.value, low, high)


@lru_cache(maxsize=4)
def draws(items: int, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Return (items, resamples) how often each is drawn, cached since a table's rows share their prompts."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, items), dtype=np.float32)
    at_once = max(1, 500_000 // items)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = rng.integers(0, items, (size, items))
        drawn += items * np.arange(size)[:, None]
        counts[start : start + size] = np.bincount(drawn.ravel(), minlength=size * items).reshape(size, items)
    return counts.T


def resample_sums(values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Return (resamples, ...) sums over the last axis of `values`, its items resampled.

    Items are drawn with replacement. values: (..., items). All leading axes are resampled together, so that comparisons
    stay paired. How often the items are drawn is counted first, which makes all resamples one matrix product.
    """
    *leading, items = values.shape
    rows, counts = values.reshape(-1, items), draws(items, seed, resamples)
    sums = np.empty((len(rows), resamples))
    # One product for all rows; a part of the resamples at a time, for the counts are converted, and stay in the cache.
    for start in range(0, resamples, AT_ONCE):
        part = slice(start, start + AT_ONCE)
        np.matmul(rows, counts[:, part].astype(np.float64), out=sums[:, part])
    return np.moveaxis(sums.reshape(*leading, resamples), -1, 0)


def interval(value: float, resampled: np.ndarray, *, units: int) -> Interval:
    """Return the percentile interval of an estimate; fewer units than FEWEST_UNITS have no ends."""
    if units < FEWEST_UNITS:
        return Interval(float(value), np.nan, np.nan)
    low, high = np.quantile(resampled, TAILS)
    return Interval(float(value), float(low), float(high))


def interval_names(*names: str) -> list[str]:
    """Return the columns of intervals: the value's name, and name_low and name_high."""
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high")]


def columns(intervals: Mapping[str, Interval | None]) -> dict[str, float]:
    """Return intervals as `interval_names` with their values; NaN for None."""
    values = (astuple(interval or Interval(np.nan, np.nan, np.nan)) for interval in intervals.values())
    return dict(zip(interval_names(*intervals), chain.from_iterable(values), strict=True))


def prompt_means(outcomes: np.ndarray) -> np.ndarray:
    """Return (prompts,) mean outcome of each prompt over seeds; NaN where it has none."""
    valid = ~np.isnan(outcomes)
    counts = valid.sum(axis=0)
    sums = np.where(valid, outcomes, 0.0).sum(axis=0)
    return np.divide(sums, counts, out=np.full(outcomes.shape[1], np.nan), where=counts > 0)


def win_rate_interval(outcomes: np.ndarray) -> Interval | None:
    """Return the win rate of these checkpoints with its interval over prompts; None without any verdict.

    outcomes: (seeds, prompts). All orders and seeds of a prompt stay together; prompts without verdicts are left out.
    """
    return row_interval(prompt_means(outcomes)[None])


def is_of_method(outcomes: np.ndarray) -> bool:
    """Tell whether (seeds, prompts) outcomes can speak of other seeds: enough seeds, and prompts that all have."""
    return len(outcomes) >= FEWEST_SEEDS and int((~np.isnan(outcomes).any(axis=0)).sum()) >= FEWEST_UNITS


def row_interval(outcomes: np.ndarray, topics: np.ndarray | None = None) -> Interval | None:
    """Return a row's win rate with its interval, of the method where `is_of_method`, else of these checkpoints.

    That of the method is over other seeds and prompts, its width from the prompts that all seeds have a verdict for.
    That of the checkpoints is over prompts alone. Both are `score_interval`.

    Args:
        outcomes: (seeds, prompts) from 0 to 1, NaN where there is no verdict.
        topics: (prompts,) number of each prompt's topic, from 0, where prompts come in topics.

    Returns:
        The interval; None where no prompt has a verdict.
    """
    means = prompt_means(outcomes)
    return None if np.isnan(means).all() else score_interval(float(np.nanmean(means)), row_scatter(outcomes, topics))


def mean_interval(outcomes: np.ndarray) -> Interval | None:
    """Return `row_interval` of outcomes without bounds: Student's, without ends where all are the same."""
    means = prompt_means(outcomes)
    if np.isnan(means).all():
        return None
    mean, scatter = float(np.nanmean(means)), row_scatter(outcomes)
    # Over items alone the variance is that of the items at hand; Student's is of those that they were drawn from.
    variance = scatter.variance * (1 if is_of_method(outcomes) else scatter.items / max(scatter.items - 1, 1))
    return student_interval(mean, float(np.sqrt(variance)) if variance > 0 else np.nan, scatter.freedom)


def row_scatter(outcomes: np.ndarray, topics: np.ndarray | None = None) -> "Scatter":
    """Return the `Scatter` of a row's outcomes, of which some may be missing."""
    values = outcomes if is_of_method(outcomes) else prompt_means(outcomes)[None]
    complete = ~np.isnan(values).any(axis=0)
    return Scatter.of(values[:, complete], None if topics is None else topics[complete])


def by_topic(values: np.ndarray, topics: np.ndarray | None) -> np.ndarray:
    """Return (..., topics) values, each topic one unit, with the mean of the (..., items); or these without topics."""
    if topics is None:
        return values
    names, places = np.unique(topics, return_inverse=True)
    sums = values @ (places[:, None] == np.arange(len(names))).astype(float)
    return np.asarray(sums * (len(names) / len(places)))


@dataclass(frozen=True)
class Scatter:
    """How far a mean of (seeds, items) values may be off.

    variance: of the mean. freedom: its degrees of freedom, not a number for fewer items than FEWEST_UNITS. items: over
    which it is.
    """

    variance: float
    freedom: float
    items: float

    @classmethod
    def of(cls, values: np.ndarray, topics: np.ndarray | None = None) -> "Scatter":
        """Measure the scatter over seeds and items from FEWEST_SEEDS on, else over items alone.

        values: (seeds, items), none missing. topics: (items,) where items come in topics: those are the units then.
        """
        seeds, items = values.shape
        units = by_topic(values, topics)
        count = units.shape[1]
        if items < FEWEST_UNITS or count < 2:
            return cls(np.nan, np.nan, items)
        if seeds >= FEWEST_SEEDS:
            error, freedom = TwoWay.of(units).error()
            return cls(error**2, freedom, items)
        variance = units.mean(axis=0).var(ddof=topics is not None) / count
        return cls(float(variance), count - 1, items)


def quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Return Student's t at the upper end of an interval."""
    return float(stdtrit(freedom, (1 + confidence) / 2))


def student_interval(mean: float, error: float, freedom: float, *, confidence: float = CONFIDENCE) -> Interval:
    """Return Student's interval of a mean with this standard error."""
    half = quantile(freedom, confidence) * error
    return Interval(mean, mean - half, mean + half)


def score_interval(rate: float, scatter: Scatter) -> Interval:
    """Return Wilson's score interval (1927) of a mean of outcomes from 0 to 1, on the effective number of items.

    So many wins and losses alone would scatter as much as the outcomes do. PRIOR items lost and as many won are added
    to how these scatter, so that outcomes which all agree, even in ties, have an interval of some width.
    """
    binary, observed = rate * (1 - rate) * scatter.items, scatter.variance * scatter.items**2
    effective = scatter.items * (binary + PRIOR / 2) / (observed + PRIOR / 2)
    t = quantile(scatter.freedom)
    center = (rate + t**2 / (2 * effective)) / (1 + t**2 / effective)
    half = t * np.sqrt(rate * (1 - rate) / effective + (t / effective / 2) ** 2) / (1 + t**2 / effective)
    # Where all outcomes are the same an end is that outcome, but for rounding.
    return Interval(rate, float(np.minimum(center - half, rate)), float(np.maximum(center + half, rate)))


def logit_interval(rate: float, scatter: Scatter) -> Interval:
    """Return Student's interval on the log odds of a regression's rate, with PRIOR as in `score_interval`."""
    # A regression may say 1 to the last digit: then nothing is known of its odds.
    inside = float(np.clip(rate, 1e-12, 1 - 1e-12))
    odds, error = logit(inside), np.sqrt(scatter.variance + PRIOR / 2 / scatter.items**2)
    half = quantile(scatter.freedom) * error / (inside * (1 - inside))
    return Interval(rate, float(expit(odds - half)), float(expit(odds + half)))


def difference_interval(d: np.ndarray, topics: np.ndarray | None = None, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of (seeds, items) differences from -1 to 1, with Student's interval.

    Over seeds and items: variance of the mean by the two-way analysis with random effects, v = v_seeds + v_prompts -
    v_rest; Satterthwaite's degrees of freedom (1946). The crossed bootstrap (Owen 2007) counts v_rest three times and
    draws from as few seeds as there are: docs/benchmarks/statistics.md has what both cover.
    """
    scatter = Scatter.of(d, topics)
    error = difference_error(scatter.variance, scatter.items)
    return student_interval(float(d.mean()), error, scatter.freedom, confidence=confidence)


def difference_error(variance: float, items: float) -> float:
    """Return the standard error of a mean difference, PRIOR items added that differ by 1 and as many by -1."""
    return float(np.sqrt(variance + 2 * PRIOR / items**2))


def independent_difference(first: Interval, second: Interval) -> Interval:
    """Return the difference of two independent estimates, its interval from those of both (Newcombe 1998)."""
    value = first.value - second.value
    low = value - np.hypot(first.value - first.low, second.high - second.value)
    return Interval(value, float(low), float(value + np.hypot(first.high - first.value, second.value - second.low)))


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray) -> Interval | None:
    """Return sum(numerators) / sum(denominators), from 0 to 1, with a rate's interval by the delta method.

    Both (items,), denominators at least 0; items without one are left out, and None is returned where none has one.
    """
    positive = denominators > 0
    if not positive.any():
        return None
    won, cast = numerators[positive], denominators[positive]
    rate = float(won.sum() / cast.sum())
    scatter = Scatter.of(((won - rate * cast) / cast.mean())[None])
    # Items of unequal weight say as much as fewer of equal weight (Kish 1965).
    return score_interval(rate, replace(scatter, items=float(cast.sum() ** 2 / (cast**2).sum())))


def arena_hard_score(verdicts: Sequence[str | None]) -> float | None:
    """Return W_AH of verdicts with the policy as A: its share of the votes, of which `A>>B` is 3."""
    valid = [verdict for verdict in verdicts if verdict in POINTS]
    votes = sum(VOTES[verdict] for verdict in valid)
    return sum(POINTS[verdict] * VOTES[verdict] for verdict in valid) / votes if votes else None


@dataclass(frozen=True)
class TwoWay:
    """The mean of (seeds, prompts) values with the mean squares of the two-way analysis of variance.

    The model: value = mean + a seed's effect + a prompt's effect + rest, all three random.
    """

    mean: float
    seeds: int
    prompts: int
    mean_squares: np.ndarray
    """(3,) between seeds, between prompts, of the rest."""

    @classmethod
    def of(cls, values: np.ndarray) -> "TwoWay":
        """Analyse (seeds, prompts) values, at least two of each."""
        seeds, prompts = values.shape
        mean = values.mean()
        by_seed, by_prompt = values.mean(axis=1) - mean, values.mean(axis=0) - mean
        rest = values - mean - by_seed[:, None] - by_prompt
        squares = np.array([prompts * (by_seed**2).sum(), seeds * (by_prompt**2).sum(), (rest**2).sum()])
        return cls(float(mean), seeds, prompts, squares / degrees(seeds, prompts))

    @property
    def components(self) -> tuple[float, float, float]:
        """Variances between seeds, between prompts and of the rest, none below 0."""
        of_seeds, of_prompts, rest = self.mean_squares.tolist()
        return max(of_seeds - rest, 0.0) / self.prompts, max(of_prompts - rest, 0.0) / self.seeds, rest

    def error(self) -> tuple[float, float]:
        """Return the standard error over other seeds and prompts, and its degrees of freedom."""
        return standard_error(self.mean_squares / (self.seeds * self.prompts), self.seeds, self.prompts)


def degrees(seeds: float, prompts: float) -> np.ndarray:
    """Return (3,) degrees of freedom of the mean squares: seeds, prompts, the rest."""
    return np.array([seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1)])


def standard_error(variances: np.ndarray, seeds: float, prompts: float) -> tuple[float, float]:
    """Return the root of v = v_seeds + v_prompts - v_rest, and Satterthwaite's degrees of freedom (1946).

    variances: (3,) what seeds, prompts and rest each seem to add to the variance of the mean: mean squares over size.
    """
    of_seeds, of_prompts, of_rest = variances
    # Two that are equal but for rounding are equal, in whatever order the seeds come.
    if of_seeds > of_rest * (1 + 1e-9):
        variance = of_seeds + max(of_prompts - of_rest, 0.0)
        return float(np.sqrt(variance)), float(variance**2 / (variances**2 / degrees(seeds, prompts)).sum())
    return float(np.sqrt(max(of_prompts, of_rest))), prompts - 1


def degrees_of_test(freedom: float, seeds: float) -> float:
    """Return the degrees of freedom of a test by a mean's t over seeds and prompts.

    There are at most three to each of the seeds'. Where a few seeds happen to look alike, Satterthwaite's are too many
    just where the error is too small. Out in the tail, where corrected tests are made, that shows: docs/ablation.md.
    """
    return min(freedom, 3 * (seeds - 1))
