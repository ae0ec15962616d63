"""What a league's tables claim is true as often as they say. `make test-statistics` runs the long form."""

import numpy as np
import pytest

from . import leagues


@pytest.mark.parametrize("name", ["all equal", "five pairs of equals, 4 points apart"])
def test_ranks_cover_the_true_ones_and_equal_entries_stay_together(name):
    found = leagues.count(name, 2.5, leagues=12)
    assert found.covered >= 0.93
    # With probability 0.05 each, four of twelve or more are one case in 500.
    assert found.equal <= 3 / 12


def test_resampled_ranks_would_not_cover():
    found = leagues.count("all equal", 5.0, leagues=12)
    assert found.resampled < 0.9 < found.covered


def test_the_true_ranks_of_equal_entries_are_all_that_they_share():
    assert leagues.true_ranks((0.7, 0.6, 0.6, 0.5)).tolist() == [[1, 1], [2, 3], [2, 3], [4, 4]]


def test_seeds_differ_by_as_many_points_as_planted():
    study = leagues.study_of((0.6,), 5.0, seeds=400, prompts=4_000)
    rates = study.draw(np.random.default_rng(0))[0].mean(axis=1)
    # Of 400 draws a standard deviation is off by 3.5 %; the prompts add 0.7 points to each.
    assert rates.std(ddof=1) == pytest.approx(0.05, rel=0.12)
