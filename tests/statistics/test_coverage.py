"""95 % intervals cover what is true. `make test-statistics` runs the long form."""

import math

import numpy as np
import pytest

from . import coverage
from .simulated import Lengths, Paired, Trained, Verdicts

EVALUATIONS, RESAMPLES = 400, 1000


def cases():
    every = (
        coverage.verdict_cases(64, 1, resamples=RESAMPLES)[:2] + coverage.verdict_cases(100, 3, resamples=RESAMPLES)[:2]
    )
    every.append(coverage.length_case(Lengths(100)))
    for seeds, spread in ((1, 0.0), (3, 0.3), (5, 0.15), (6, 0.4)):
        every += coverage.paired_cases(100, seeds, spread, resamples=RESAMPLES)[:1]
    every += coverage.stability_cases("drifted", Trained(128, 128, 30, spikes=0.0), resamples=RESAMPLES)
    return every


def tolerance(share: float, evaluations: int = EVALUATIONS) -> float:
    """Three standard deviations of a share of so many evaluations that is truly `share`."""
    return 3 * math.sqrt(share * (1 - share) / evaluations)


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.name}, {case.size}")
def test_intervals_cover_the_truth_as_often_as_they_say(case):
    low, high = case.promised
    evaluations = EVALUATIONS // 2 if case.name.startswith("S,") else EVALUATIONS
    found = coverage.measure(case, evaluations=evaluations)
    assert low - tolerance(low, evaluations) <= found.covered <= high + tolerance(high, evaluations)


@pytest.mark.parametrize("seeds", [1, 3])
def test_resampling_single_votes_gives_intervals_that_are_too_narrow(seeds):
    honest, _, naive = (
        coverage.measure(case, evaluations=EVALUATIONS)
        for case in coverage.verdict_cases(64, seeds, resamples=RESAMPLES)
    )
    assert naive.width < 0.85 * honest.width
    assert naive.covered < 0.93 - tolerance(0.93)


def test_the_truths_are_what_many_prompts_come_to():
    rng = np.random.default_rng(0)
    world = Verdicts(400_000, 1)
    votes = world.draw(rng)
    assert np.nanmean(votes.outcomes) == pytest.approx(world.win_rate, abs=0.003)
    won = (votes.weights * np.nan_to_num(votes.points)).sum() / votes.weights.sum()
    assert won == pytest.approx(world.arena_hard, abs=0.003)
    paired = Paired(400_000, 2, 0.3)
    shifts = np.array([[0.5, 0.1], [-0.2, 0.3]])
    better, other = paired.draw(rng, shifts)
    assert np.nanmean(better - other) == pytest.approx(paired.of_checkpoints(shifts), abs=0.003)
    # The mean fall of a normal number and of Student's, by a formula, against many pairs.
    for freedom in (None, 3.0):
        trained = Trained(400_000, 20, 30, freedom=freedom)
        fall = coverage.estimated_parts(trained.draw(rng)).unlearning
        assert fall == pytest.approx(trained.parts().unlearning, rel=0.01)
    # Nine nodes against many seeds.
    drawn = Paired(1, 4000, 0.3)
    assert drawn.of_checkpoints(drawn.shifts(rng)) == pytest.approx(drawn.of_method(), abs=0.005)
