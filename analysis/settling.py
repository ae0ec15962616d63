"""How many seeds, or prompts, would settle a comparison: from its variance components and the size it was seen with."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .statistics import FEWEST_SEEDS, TwoWay, degrees, degrees_of_test, standard_error

POWER = 0.8
MOST_SEEDS, MOST_PROMPTS = 1_000, 100_000
"""More than these are not counted."""


@dataclass(frozen=True)
class Settling:
    """How many seeds with the prompts there are; with `prompts` of them where, as it is, no number of seeds would do.

    seeds: None is more than are counted.
    """

    seeds: int | None
    prompts: int | None = None

    def __str__(self) -> str:
        """In the words of a table's cell."""
        if self.seeds is None:
            return f"more than {MOST_SEEDS:,} seeds"
        seeds = f"about {_two_digits(self.seeds)} seeds"
        return seeds if self.prompts is None else f"{seeds}, {_two_digits(self.prompts):,} prompts"


def _two_digits(number: int) -> int:
    """Rounded up to two digits: no more is known."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit


def to_settle(d: np.ndarray, level: float) -> Settling:
    """What settles a comparison in four of five tries (POWER), were the true difference the observed one.

    d: (seeds, prompts) or (seeds,) differences, at least two seeds. level: of the two-sided tests.
    """
    if d.ndim > 1:
        return of_two_way(TwoWay.of(d), level)
    mean, variance = float(d.mean()), float(d.var(ddof=1))

    def with_seeds(seeds: int) -> float:
        return _power(mean, np.sqrt(variance / seeds), seeds - 1, level)

    return Settling(_least(with_seeds, len(d), MOST_SEEDS))


def of_two_way(found: TwoWay, level: float) -> Settling:
    """`to_settle` of (seeds, prompts) differences.

    The seeds needed are those at which both the paired t over seeds and the t over seeds and prompts, with the variance
    components seen, have enough power. Prompts are too few where seeds without end would not do. Then twice as many are
    taken as would do with seeds without end, so that prompts and seeds each keep half of the variance.
    """
    between_prompts = found.components[1]

    def without_end(prompts: int) -> float:
        return _power(found.mean, np.sqrt(between_prompts / prompts), prompts - 1, level)

    def with_seeds(prompts: int) -> int | None:
        return _least(lambda seeds: _power_of(found, seeds, prompts, level), found.seeds, MOST_SEEDS)

    if without_end(found.prompts) >= POWER:
        return Settling(with_seeds(found.prompts))
    prompts = _least(without_end, found.prompts, MOST_PROMPTS // 2)
    return Settling(None) if prompts is None else Settling(with_seeds(2 * prompts), 2 * prompts)


def _power_of(found: TwoWay, seeds: int, prompts: int, level: float) -> float:
    """The smaller power of the two t tests with so many seeds and prompts."""
    of_seeds, of_prompts, rest = found.components
    each = np.array([of_seeds / seeds, of_prompts / prompts, 0.0]) + rest / (seeds * prompts)
    error, freedom = standard_error(each, seeds, prompts)
    both = _power(found.mean, error, degrees_of_test(freedom, seeds), level)
    return min(both, _power(found.mean, float(np.sqrt(each[0])), degrees(seeds, prompts)[0], level))


def _power(difference: float, error: float, freedom: float, level: float) -> float:
    """Chance that a two-sided t test sees `difference`, the far side aside."""
    from scipy.special import nctdtr, stdtrit

    if error == 0:
        return float(difference != 0)
    critical, shift = float(stdtrit(freedom, 1 - level / 2)), abs(difference) / error
    # Far beyond the critical value the noncentral distribution is not computed well, and need not be.
    return 1.0 if shift > 3 * critical + 30 else 1 - float(nctdtr(freedom, shift, critical))


def _least(power: Callable[[int], float], now: int, most: int) -> int | None:
    """The least number above `now`, and of FEWEST_SEEDS at least, with enough power; None up to `most`."""
    low = max(now, FEWEST_SEEDS - 1)
    high = low + 1
    while power(high) < POWER:
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
