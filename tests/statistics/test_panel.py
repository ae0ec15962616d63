"""A panel's intervals cover what is true, with judges whose bias and noise were planted."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from scipy.special import expit, stdtrit
from slime_ray.analysis import judging
from slime_ray.analysis.statistics import Interval, TwoWay, win_rate_interval

from .coverage import PROMISED
from .test_coverage import tolerance

EVALUATIONS = 400
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def mean_of(center, spread):
    """The mean of expit over a normal distribution, by quadrature."""
    return float(expit(center + spread * NODES) @ WEIGHTS)


@dataclass(frozen=True)
class World:
    """Judges who find a prompt won with probability expit(0.3 + prompt + bias + taste), anew at each repeat.

    bias: spread of the judges' leniency. taste: of a judge's view of one prompt. repeats: on a third of the prompts.
    """

    judges: int
    bias: float
    prompts: int = 100
    repeats: int = 1
    taste: float = 0.5
    ease: float = 1.0

    def draw(self, rng):
        """(judges, prompts) mean outcomes, and the truth of these judges."""
        bias = self.bias * rng.standard_normal((self.judges, 1))
        views = 0.3 + self.ease * rng.standard_normal(self.prompts) + bias
        chances = expit(views + self.taste * rng.standard_normal((self.judges, self.prompts)))
        times = np.where(rng.random(self.prompts) < 1 / 3, self.repeats, 1)
        outcomes = rng.binomial(2 * times, chances) / (2 * times)
        spread = math.hypot(self.ease, self.taste)
        return outcomes, float(np.mean([mean_of(0.3 + one, spread) for one in bias.ravel()]))

    @property
    def of_all_judges(self):
        return mean_of(0.3, math.sqrt(self.ease**2 + self.taste**2 + self.bias**2))


THESE = [World(1, 0.5, repeats=5), World(2, 0.5), World(3, 1.0, repeats=3)]
ANY = [World(5, 0.3), World(5, 1.0, repeats=3), World(8, 0.5)]


def draws():
    """What a panel's tables print: its name, the world in words, and a draw of truth and interval."""

    def these(rng, world):
        outcomes, own = world.draw(rng)
        return own, win_rate_interval(outcomes)

    def anyone(rng, world):
        return world.of_all_judges, judging.pooled_interval(world.draw(rng)[0])

    for name, worlds, draw in (("pooled, these judges", THESE, these), ("pooled, any judge", ANY, anyone)):
        for world in worlds:
            repeats = f", {world.repeats} repeats on a third" if world.repeats > 1 else ""
            words = f"{world.judges} judge{'s' * (world.judges > 1)}, bias {world.bias}{repeats}"
            yield name, words, partial(draw, world=world)


def covered(world, interval, *, truth=None):
    hits = []
    for seed in range(EVALUATIONS):
        outcomes, own = world.draw(np.random.default_rng(seed))
        hits.append(interval(outcomes).covers(own if truth is None else truth))
    return float(np.mean(hits))


def kept(share):
    low, high = PROMISED
    return low - tolerance(low, EVALUATIONS) <= share <= high + tolerance(high, EVALUATIONS)


@pytest.mark.parametrize("world", THESE, ids=str)
def test_the_interval_of_these_judges_covers_their_own_win_rate(world):
    assert kept(covered(world, win_rate_interval))


@pytest.mark.parametrize("world", ANY, ids=str)
def test_the_interval_of_any_judge_covers_the_win_rate_of_all_judges(world):
    assert kept(covered(world, judging.pooled_interval, truth=world.of_all_judges))


def test_two_judges_cannot_speak_of_others_so_nothing_is_claimed():
    world = World(2, 1.0, repeats=3)
    outcomes, _ = world.draw(np.random.default_rng(0))
    assert judging.pooled_interval(outcomes) is None
    # The formula alone would miss the truth too often: that both judges look alike is likely.
    found = covered(world, formula, truth=world.of_all_judges)
    assert found < PROMISED[0] - tolerance(PROMISED[0], EVALUATIONS)


def formula(outcomes):
    """Student's interval by the two-way analysis, of however few judges."""
    two_way = TwoWay.of(outcomes)
    error, freedom = two_way.error()
    half = stdtrit(freedom, 0.975) * error
    return Interval(two_way.mean, two_way.mean - half, two_way.mean + half)


def test_the_interval_of_these_judges_is_not_one_of_all_judges():
    world = World(3, 1.0)
    found = covered(world, win_rate_interval, truth=world.of_all_judges)
    assert found < 0.7
