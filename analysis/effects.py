"""Effects of variants against their reference: interval, tests over seeds and over prompts, correction, effect sizes.

A comparison comes as `d`, the outcomes of a variant minus those of its reference: (seeds, prompts) with the same seeds
and prompts for both, or (seeds,) for what a seed has one number of, such as stability.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from scipy.special import nctdtr, stdtr, stdtrit

from . import statistics
from .statistics import FEWEST_SEEDS, Interval, TwoWay, degrees, degrees_of_test, standard_error

Name = TypeVar("Name", bound=Hashable)
"""Of a comparison."""
POWER = 0.8
MOST_SEEDS, MOST_PROMPTS = 1_000, 100_000
"""More than these are not counted."""
FLIPS = 10_000
SAME = 1e-9
"""Differences that are no farther apart than this are the same but for rounding."""
LEVEL = 0.05
"""A variant is said to matter where no corrected p-value is above this."""
ONE_SEED = ", but one seed decides"
"""Of a verdict that is another one where some seed is left out."""
REFERENCE = "compared with"
"""The verdict of the cell that its center's others are compared with."""
TESTS = {
    "seeds": "paired t over the seeds' mean differences",
    "prompts": "sign flips over the prompts' mean differences",
    "both": "t of the two-way analysis, over seeds and prompts",
}


@dataclass(frozen=True)
class Settling:
    """How many seeds with the prompts there are; with `prompts` of them where, as it is, no number of seeds would do.

    seeds: None is more than are counted.
    """

    seeds: int | None
    prompts: int | None = None

    def __str__(self) -> str:
        """Write it in the words of a table's cell."""
        if self.seeds is None:
            return f"more than {MOST_SEEDS:,} seeds"
        seeds = f"about {_two_digits(self.seeds)} seeds"
        return seeds if self.prompts is None else f"{seeds}, {_two_digits(self.prompts):,} prompts"


def _two_digits(number: int) -> int:
    """Round up to two digits: no more is known."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit


def to_settle(d: np.ndarray, level: float) -> Settling:
    """Return what settles a comparison in four of five tries (POWER), were the true difference the observed one.

    d: (seeds, prompts) or (seeds,) differences, at least two seeds. level: of the two-sided tests.
    """
    if d.ndim > 1:
        # No number of seeds tells of other prompts, or topics, where there is one.
        return of_two_way(TwoWay.of(d), level) if d.shape[1] > 1 else Settling(None)
    mean, variance = float(d.mean()), float(d.var(ddof=1))

    def with_seeds(seeds: int) -> float:
        return _power(mean, np.sqrt(variance / seeds), seeds - 1, level)

    return Settling(_least(with_seeds, len(d), MOST_SEEDS))


def of_two_way(two_way: TwoWay, level: float) -> Settling:
    """Return `to_settle` of (seeds, prompts) differences.

    The seeds needed are those at which both the paired t over seeds and the t over seeds and prompts, with the variance
    components seen, have enough power. Prompts are too few where seeds without end would not do. Then twice as many are
    taken as would do with seeds without end, so that prompts and seeds each keep half of the variance.
    """
    between_prompts = two_way.components[1]

    def without_end(prompts: int) -> float:
        return _power(two_way.mean, np.sqrt(between_prompts / prompts), prompts - 1, level)

    def with_seeds(prompts: int) -> int | None:
        return _least(lambda seeds: _power_of(two_way, seeds, prompts, level), two_way.seeds, MOST_SEEDS)

    if without_end(two_way.prompts) >= POWER:
        return Settling(with_seeds(two_way.prompts))
    prompts = _least(without_end, two_way.prompts, MOST_PROMPTS // 2)
    return Settling(None) if prompts is None else Settling(with_seeds(2 * prompts), 2 * prompts)


def _power_of(two_way: TwoWay, seeds: int, prompts: int, level: float) -> float:
    """Return the smaller power of the two t tests with so many seeds and prompts."""
    of_seeds, of_prompts, rest = two_way.components
    variances = np.array([of_seeds / seeds, of_prompts / prompts, 0.0]) + rest / (seeds * prompts)
    error, freedom = standard_error(variances, seeds, prompts)
    both = _power(two_way.mean, error, degrees_of_test(freedom, seeds), level)
    return min(both, _power(two_way.mean, float(np.sqrt(variances[0])), degrees(seeds, prompts)[0], level))


def _power(difference: float, error: float, freedom: float, level: float) -> float:
    """Return the chance that a two-sided t test sees `difference`, without the far side."""
    if error == 0:
        return float(difference != 0)
    critical, shift = float(stdtrit(freedom, 1 - level / 2)), abs(difference) / error
    # Far beyond the critical value the noncentral distribution is not computed well, and need not be.
    return 1.0 if shift > 3 * critical + 30 else 1 - float(nctdtr(freedom, shift, critical))


def _least(power: Callable[[int], float], now: int, most: int) -> int | None:
    """Return the least number above `now`, at least FEWEST_SEEDS, with enough power; None if `most` has too little."""
    numbers = range(max(now + 1, FEWEST_SEEDS), most + 1)
    place = bisect_left(numbers, POWER, key=power)
    return numbers[place] if place < len(numbers) else None


def _p_values(differences: np.ndarray, topics: np.ndarray | None, flips: int) -> dict[str, np.ndarray]:
    """Return (comparisons,) two-sided p by test. differences: (comparisons, seeds) or with prompts as a third axis."""
    seeds = differences.shape[1]
    of_prompts = differences.ndim > 2
    p_values = {}
    if seeds > 1:
        of_seeds = differences.mean(axis=2) if of_prompts else differences
        errors = (
            of_seeds.std(axis=1, ddof=1) / np.sqrt(seeds) if of_prompts else np.array(list(map(_error, differences)))
        )
        pairs = zip(of_seeds.mean(axis=1), errors, strict=True)
        p_values["seeds"] = np.array([t_test_p(mean, error, seeds - 1) for mean, error in pairs])
    if of_prompts:
        units = statistics.by_topic(differences, topics)
        p_values["prompts"] = sign_flip_p(units.mean(axis=1).T, flips=flips)
        if seeds > 1 and units.shape[2] > 1:
            p_values["both"] = np.array([two_way_p(d, topics) for d in differences])
    return p_values


def _error(d: np.ndarray) -> float:
    """Return the standard error of a mean of (seeds,) differences of S. Equal seeds have room, as prompts do."""
    spread = float(d.std(ddof=1) / np.sqrt(len(d)))
    return spread if np.ptp(d) > SAME else statistics.difference_error(0.0, len(d))


def two_way_p(d: np.ndarray, topics: np.ndarray | None) -> float:
    """Return p of the t over seeds and prompts; unlike in a claim, also of few seeds, as where one is left out."""
    error, freedom = TwoWay.of(statistics.by_topic(d, topics)).error()
    error = statistics.difference_error(error**2, d.shape[1])
    return t_test_p(d.mean(), error, degrees_of_test(freedom, len(d)))


def interval(
    d: np.ndarray,
    topics: np.ndarray | None = None,
    *,
    confidence: float = statistics.CONFIDENCE,
    most: float = 1.0,
) -> Interval:
    """Return the mean of paired values with its interval, within -most and most.

    Over other seeds and prompts from FEWEST_SEEDS seeds on; with fewer over prompts alone, as of these checkpoints
    (`difference_interval`). Of a scalar per seed Student's, without ends for one seed. d: (seeds, prompts) or (seeds,),
    none missing. topics: (prompts,) number of each prompt's topic, where prompts come in topics. most: size of the
    largest difference that there can be.
    """
    if d.ndim > 1:
        return statistics.difference_interval(d, topics, confidence=confidence).within(-most, most)
    error = _error(d) if len(d) > 1 else np.nan
    return statistics.student_interval(float(d.mean()), error, len(d) - 1, confidence=confidence).within(-most, most)


def t_test_p(mean: float, error: float, freedom: float) -> float:
    """Return the two-sided p of a mean by Student's t; 1 where mean and error are both 0."""
    if error == 0:
        return float(mean == 0)
    return float(2 * stdtr(freedom, -abs(mean) / error))


@lru_cache(maxsize=2)
def signs(items: int, flips: int) -> np.ndarray:
    """Return (flips, items) of -1 and 1, cached since all comparisons of a table share their prompts."""
    bits = np.frombuffer(np.random.default_rng(0).bytes(-(-flips * items // 8)), dtype=np.uint8)
    return 2 * np.unpackbits(bits, count=flips * items).reshape(flips, items).astype(np.float32) - 1


def sign_flip_p(d: np.ndarray, *, flips: int = FLIPS) -> np.ndarray:
    """Return (comparisons,) two-sided p of mean differences when items' signs are flipped at random.

    The observed signs are included. d: (items, comparisons). Under no effect an item's difference is as likely d as -d.
    """
    sums = np.abs(signs(len(d), flips) @ d.astype(np.float32))
    # Sums that are equal but for rounding count as reached.
    reached = sums >= np.abs(d.sum(axis=0)) - 1e-5 * np.abs(d).sum(axis=0)
    return np.asarray((1 + reached.sum(axis=0)) / (flips + 1))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Correct p-values by Holm (1979), in their order; those that are NaN count as comparisons and stay NaN."""
    count = len(p_values)
    order = np.argsort(p_values)  # NaN last
    stepped = np.maximum.accumulate(p_values[order] * (count - np.arange(count)))
    corrected = np.empty(count)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def improvement(d: np.ndarray, topics: np.ndarray | None = None) -> Interval:
    """Return how often the variant beats its reference on a prompt with the same seed; a tie counts half.

    d: (seeds, prompts). Over the same units as the differences; the interval is that of a rate.
    """
    better = (d > 0) + 0.5 * (d == 0)
    return statistics.score_interval(float(better.mean()), statistics.Scatter.of(better, topics))


@dataclass(frozen=True)
class Claim:
    """What one comparison shows, and what may be said of it next to the others of its table.

    With fewer than FEWEST_SEEDS seeds it is one of these checkpoints, and the interval of its difference over prompts
    alone.

    Attributes:
        d: (seeds, prompts) or (seeds,) differences.
        difference: Their mean with its interval.
        p_values: By the names of TESTS; a test that cannot be made is absent.
        corrected: The same after Holm's correction, test by test.
        level: What the smallest p-value of those that are not settled has to stay below, itself included.
        topics: (prompts,) where prompts come in topics.
    """

    d: np.ndarray
    difference: Interval
    p_values: dict[str, float]
    corrected: dict[str, float]
    level: float
    topics: np.ndarray | None = None

    @property
    def seeds(self) -> int:
        """How many seeds it rests on."""
        return len(self.d)

    @property
    def prompts(self) -> int:
        """How many prompts; 0 for a scalar per seed."""
        return self.d.shape[1] if self.d.ndim > 1 else 0

    @property
    def of_checkpoints(self) -> bool:
        """Whether nothing is said beyond the checkpoints at hand."""
        return self.seeds < FEWEST_SEEDS

    @property
    def d_z(self) -> float:
        """Mean over standard deviation of the seeds' mean differences."""
        of_seeds = self.d.mean(axis=1) if self.prompts else self.d
        spread = of_seeds.std(ddof=1) if self.seeds > 1 else 0.0
        return float(of_seeds.mean() / spread) if spread > 0 else np.nan

    @property
    def p(self) -> float:
        """The largest of the corrected p-values: all tests have to agree. NaN on too few seeds to speak of a method."""
        return np.nan if self.of_checkpoints else max(self.corrected.values())

    @property
    def matters(self) -> bool:
        """Whether all tests agree after correction."""
        return self.p < LEVEL

    @cached_property
    def one_seed_decides(self) -> bool:
        """Whether leaving out some seed changes the verdict: all tests made again, with the same correction."""
        if self.of_checkpoints:
            return False
        seeds = range(len(self.d))
        p_values = _p_values(np.stack([np.delete(self.d, seed, axis=0) for seed in seeds]), self.topics, FLIPS)
        # By how much a p-value was raised; one that is 1 was raised as the first of those that are not settled.
        raised = {
            name: self.corrected[name] / p if 0 < p < self.corrected[name] < 1 else LEVEL / self.level
            for name, p in self.p_values.items()
        }
        matters = np.all([p_values[name] * factor < LEVEL for name, factor in raised.items()], axis=0)
        return bool((matters != self.matters).any())

    @cached_property
    def settling(self) -> "Settling | None":
        """What would settle it, had the true difference the size of the observed one; None where it is settled."""
        if self.matters or self.seeds < 2:
            return None
        return to_settle(statistics.by_topic(self.d, self.topics) if self.d.ndim > 1 else self.d, self.level)

    @property
    def verdict(self) -> str:
        """`matters`, or what is missing for that."""
        if self.matters:
            return f"matters{ONE_SEED * self.one_seed_decides}"
        if self.of_checkpoints:
            return "these checkpoints only"
        return f"not settled: {self.settling}{ONE_SEED * self.one_seed_decides}"


def p_columns(claim: Claim | None) -> dict[str, float]:
    """Return columns of a comparison's corrected p, that of each test, and the seeds and items it rests on."""
    corrected = {} if claim is None else claim.corrected
    return {
        "p": np.nan if claim is None else claim.p,
        **{f"p_{test}": corrected.get(test, np.nan) for test in TESTS},
        "tested_seeds": 0 if claim is None else claim.seeds,
        "tested_items": 0 if claim is None else claim.prompts,
    }


def claims(
    comparisons: Mapping[Name, np.ndarray | None],
    topics: Mapping[Name, np.ndarray | None] | None = None,
    *,
    flips: int = FLIPS,
) -> dict[Name, Claim]:
    """Return what may be claimed of all comparisons of one table, by name.

    They are corrected together. A comparison that could not be made (None) counts in the correction, since it was asked
    for; it has no claim. topics: of each comparison's prompts, where they come in topics.
    """
    topics_of = topics or {}
    differences = {name: d for name, d in comparisons.items() if d is not None}
    p_values: dict[Name, dict[str, float]] = {}
    for name, d in differences.items():
        p_values[name] = {test: float(p[0]) for test, p in _p_values(d[None], topics_of.get(name), flips).items()}
        if len(d) < FEWEST_SEEDS:
            p_values[name].pop("both", None)
    corrected: dict[Name, dict[str, float]] = {name: {} for name in differences}
    for test in TESTS:
        of_test = [p_values.get(name, {}).get(test, np.nan) for name in comparisons]
        for name, p in zip(comparisons, holm(np.array(of_test)), strict=True):
            if not np.isnan(p):
                corrected[name][test] = float(p)
    settled = sum(
        len(d) >= FEWEST_SEEDS and max(corrected[name].values(), default=1.0) < LEVEL for name, d in differences.items()
    )
    level = LEVEL / max(1, len(comparisons) - settled)
    return {
        name: Claim(d, interval(d, topics_of.get(name)), p_values[name], corrected[name], level, topics_of.get(name))
        for name, d in differences.items()
    }


def over(draws: Sequence[np.ndarray], topics: np.ndarray | None = None, *, least: float = -1.0) -> Interval | None:
    """Return the mean over checkpoints with Student's interval.

    The interval is over checkpoints and, of the same items, over these. Seeds are no unit here: those of one checkpoint
    say nothing of another's. With one checkpoint there are no ends, and None is returned where none has a value. draws:
    of each checkpoint, with the same items in the same order. topics: (items,) where these come in topics. least: what
    a value is at least, since Student's ends know of no bounds: 0 of rates and of S, -1 of their differences.
    """
    finite = [sample for sample in draws if np.isfinite(sample).any()]
    if not finite:
        return None
    values = np.stack(finite)
    mean, error = float(values.mean()), np.nan
    if values.ndim == 1:
        error = _error(values) if len(values) > 1 else np.nan
    else:
        values, units = _units(values, topics)
        if not values.size:
            return None
        mean = float(values.mean())
        if min(units.shape) > 1:
            error = statistics.difference_error(TwoWay.of(units).error()[0] ** 2, values.shape[1])
    # Not Satterthwaite's degrees: where two or three checkpoints happen to look alike, these are too many.
    between = statistics.student_interval(mean, error, len(values) - 1)
    return between.within(least, 1.0)


def _units(values: np.ndarray, topics: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the (checkpoints, items) values that all have, and those with topics as units."""
    shared = np.isfinite(values).all(axis=0)
    values, topics = values[:, shared], None if topics is None else topics[shared]
    return values, statistics.by_topic(values, topics)


def settling_words(draws: Sequence[np.ndarray], topics: np.ndarray | None = None) -> str:
    """Say how many checkpoints would settle a difference in four of five tries; empty if too little is known."""
    finite = [sample for sample in draws if np.isfinite(sample).any()]
    values = np.stack(finite) if finite else np.empty(0)
    units = values if values.ndim == 1 else _units(values, topics)[1]
    if min(units.shape) < 2:
        return ""
    settling = to_settle(units, LEVEL)
    count = f"about {settling.seeds}" if settling.seeds else f"more than {MOST_SEEDS:,}"
    items = f" and {settling.prompts:,} items" if settling.prompts else ""
    return f"; {count} checkpoints{items} would settle it, were the difference the one seen here"
