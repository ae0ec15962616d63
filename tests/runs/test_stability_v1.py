"""The stability score: the formula, by hand."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_ray.runs.stability_v1 import TOLERANCES, StabilityParts, damage, spike_flags, stability_score

NOTHING = StabilityParts(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_the_tolerances_are_the_frozen_ones():
    assert list(asdict(TOLERANCES).values()) == [0.10, 0.05, 0.35, 0.05, 0.40, 0.01]


@pytest.mark.parametrize("part", list(asdict(TOLERANCES)))
def test_one_part_at_its_tolerance_halves_the_score(part):
    assert stability_score(replace(NOTHING, **{part: asdict(TOLERANCES)[part]}), healthy=True) == pytest.approx(0.5)


def test_damage_adds_up():
    # U at twice its tolerance adds 4, C at its tolerance adds 1: S = 1 / (1 + 5).
    parts = replace(NOTHING, unlearning=0.2, rejected_collapse=0.05)
    assert damage(parts)["unlearning"] == pytest.approx(4)
    assert stability_score(parts, healthy=True) == pytest.approx(1 / 6)


def test_a_run_that_is_not_healthy_scores_nothing():
    assert stability_score(NOTHING, healthy=True) == 1
    assert stability_score(NOTHING, healthy=False) == 0
    assert stability_score(replace(NOTHING, entropy_shift=float("inf")), healthy=True) == 0
    assert stability_score(replace(NOTHING, entropy_shift=float("nan")), healthy=True) == 0


def test_windows_that_are_still_growing_and_whole_ones_follow_the_same_rule():
    # Seven kinds of noise: each flag must be what its own window of at most 50 updates says.
    for seed in range(7):
        losses, norms = np.random.default_rng(seed).standard_cauchy((2, 120))
        norms = np.exp(norms / 100)
        expected = []
        for step in range(20, 120):
            above = []
            for values in (losses, np.log(norms)):
                window = values[max(0, step - 50) : step]
                median = np.median(window)
                above.append(values[step] > median + 6 * 1.4826 * np.median(np.abs(window - median)))
            expected.append(any(above))
        assert spike_flags(losses.tolist(), norms.tolist()).tolist() == expected
        assert 0 < sum(expected) < 100
    assert spike_flags([1.0] * 20, [1.0] * 20).tolist() == []
    assert spike_flags([], []).tolist() == []


sizes = st.floats(0, 10)


@given(st.builds(StabilityParts, sizes, sizes, sizes, sizes, sizes, sizes), st.sampled_from(list(asdict(TOLERANCES))))
def test_more_damage_never_scores_higher(parts, part):
    worse = replace(parts, **{part: getattr(parts, part) + 0.1})
    assert 0 <= stability_score(worse, healthy=True) <= stability_score(parts, healthy=True) <= 1
