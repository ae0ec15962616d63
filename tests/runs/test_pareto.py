"""Dominance, fronts and their order, against the definitions written out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slime_ray.runs.pareto import dominators, fronts, on_front, signed

VALUES = st.sampled_from([0.0, 0.25, 0.5, 1.0, -np.inf, np.nan])
POINTS = st.integers(1, 3).flatmap(
    lambda goals: arrays(float, st.tuples(st.integers(0, 9), st.just(goals)), elements=VALUES)
)


def beats(one, other) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def ranked(points) -> list[int]:
    return [place for place, point in enumerate(points) if all(map(math.isfinite, point))]


def test_dominators_are_counted_as_the_definition_says():
    points = signed([[3, 1], [2, 1], [2, 1], [1, 3], [0, 4]], ["maximize", "minimize"])
    # [3, 1] beats all others; [2, 1] beats [1, 3] and [0, 4]; equals do not beat each other.
    assert dominators(points).tolist() == [0, 1, 1, 3, 4]
    assert dominators(signed([], ["maximize"])).tolist() == []


def test_the_front_keeps_what_nothing_dominates():
    points = np.array([[0.9, 0.1], [0.5, 0.5], [0.4, 0.5], [0.1, 0.9], [0.5, 0.5]])
    assert on_front(points).tolist() == [True, True, False, True, True]


@given(POINTS)
def test_the_front_is_that_of_all_comparisons_and_holds_nothing_that_is_no_number(points):
    among = ranked(points)
    expected = [place in among and not any(beats(points[k], own) for k in among) for place, own in enumerate(points)]
    assert on_front(points).tolist() == expected


@given(arrays(float, (4, 6, 2), elements=VALUES))
def test_many_fronts_at_once_are_what_each_is_alone(points):
    assert on_front(points).tolist() == [on_front(alone).tolist() for alone in points]


@given(POINTS)
def test_every_front_is_that_of_what_the_fronts_before_it_leave(points):
    left, front, expected = ranked(points), 0, [-1] * len(points)
    while left:
        best = [place for place in left if not any(beats(points[k], points[place]) for k in left)]
        for place in best:
            expected[place] = front
        left, front = [place for place in left if place not in best], front + 1
    assert fronts(points).tolist() == [front if place < 0 else place for place in expected]


@pytest.mark.parametrize("count", [511, 512, 513, 1100])
def test_many_results_are_compared_in_parts(count):
    points = np.column_stack([np.arange(count), np.arange(count)]).astype(float)
    assert dominators(points).tolist() == list(range(count))[::-1]
