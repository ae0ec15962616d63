"""Who stands before whom at a rung: worked out by hand, and what holds for all points."""

import math
import random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.on_ray.stopping import Ranking

BOTH = {"win_rate": "maximize", "stability": "maximize"}
# a, b and c are beaten by nobody; b beats d; d beats e and f, which do not beat each other.
POINTS = {"a": (0.7, 0.1), "b": (0.6, 0.4), "c": (0.5, 0.9), "d": (0.55, 0.35), "e": (0.5, 0.1), "f": (0.4, 0.3)}


def places(
    points: dict[str, tuple], goals: dict[str, str] = BOTH, tie_break: Literal["winner", "spread"] = "spread"
) -> dict[str, int]:
    rule = Ranking(goals, tie_break)
    return {
        name: rule.count_before(own, [other for title, other in points.items() if title != name])
        for name, own in points.items()
    }


def test_fronts_come_one_after_another_and_are_spread_within():
    # Of the first front in its own range: a (1, 0), b (0.5, 0.375), c (0, 1). From a, c is 1.41 away and b 0.63.
    assert places(POINTS) == {"a": 0, "c": 1, "b": 2, "d": 3, "e": 4, "f": 5}


def test_the_farthest_from_all_before_it_comes_next():
    # In a front from (1, 0) to (0, 1): after the ends, g and h are 0.42 and 0.57 away from the nearest of them.
    front = {"first": (1.0, 0.0), "last": (0.0, 1.0), "g": (0.7, 0.3), "h": (0.4, 0.6)}
    assert places(front) == {"first": 0, "last": 1, "h": 2, "g": 3}


def test_of_equally_far_ones_the_better_by_the_first_goal_comes_first():
    front = {"first": (1.0, 0.0), "last": (0.0, 1.0), "less": (0.25, 0.75), "more": (0.75, 0.25)}
    assert places(front) == {"first": 0, "last": 1, "more": 2, "less": 3}


def test_winners_stand_first_who_are_within_tolerance_and_then_by_the_first_goal():
    # a, b and c are one front, of which only c and h have a stability of a half or more.
    assert places({**POINTS, "h": (0.52, 0.6)}, tie_break="winner") == {
        "h": 0, "c": 1, "a": 2, "b": 3, "d": 4, "e": 5, "f": 6
    }  # fmt: skip
    assert places({"half": (0.4, 0.5), "below": (0.6, 0.49)}, tie_break="winner") == {"half": 0, "below": 1}
    assert Ranking(BOTH) == Ranking(BOTH, "winner")
    # Goals without stability, or another sense of it, know no tolerance.
    front = {"a": (0.9, 0.1), "b": (0.4, 0.9), "c": (0.6, 0.6)}
    assert places(front, {"one": "maximize", "two": "maximize"}, "winner") == {"a": 0, "c": 1, "b": 2}


def test_equal_trials_have_equal_places_and_both_stand_before_the_next():
    assert places({"one": (0.6, 0.4), "two": (0.6, 0.4), "worse": (0.6, 0.3)}) == {"one": 0, "two": 0, "worse": 2}


def test_what_is_no_number_comes_last_whatever_else_it_reached():
    found = places({**POINTS, "nan": (0.99, math.nan), "infinite": (math.inf, 0.9)})
    assert found == {**places(POINTS), "nan": 6, "infinite": 6}
    assert places({"nan": (math.nan, 0.1), "too": (0.1, math.nan)}) == {"nan": 0, "too": 0}
    assert Ranking({"m": "maximize"}).count_before((math.nan,), [(0.1,), (math.nan,)]) == 1


def test_a_goal_may_be_to_minimize():
    turned = {name: (win, -stable) for name, (win, stable) in POINTS.items()}
    assert places(turned, {"win_rate": "maximize", "stability": "minimize"}) == places(POINTS)


def test_one_metric_counts_what_is_higher():
    rule = Ranking({"mean_margin": "maximize"})
    assert rule.count_before((0.5,), [(0.6,), (0.5,), (0.4,), (0.7,)]) == 2
    assert rule.count_before((0.5,), []) == Ranking(BOTH).count_before((0.5, 0.5), []) == 0


# Few values, so that ties and dominance are common.
points = st.lists(st.tuples(*[st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 1.0])] * 3), min_size=1, max_size=12)
THREE = {"one": "maximize", "stability": "maximize", "three": "maximize"}
TIES = pytest.mark.parametrize("tie_break", ["winner", "spread"])


def all_places(given: list[tuple], tie_break: Literal["winner", "spread"]) -> list[int]:
    rule = Ranking(THREE, tie_break)
    return [rule.count_before(own, [*given[:index], *given[index + 1 :]]) for index, own in enumerate(given)]


@TIES
@settings(max_examples=40)
@given(found=points)
def test_a_dominated_trial_never_outranks_its_dominator(tie_break, found):
    ranks = all_places(found, tie_break)
    for own, rank in zip(found, ranks, strict=True):
        for other, better in zip(found, ranks, strict=True):
            if other != own and all(a >= b for a, b in zip(other, own, strict=True)):
                assert better < rank


@TIES
@settings(max_examples=40)
@given(found=points, seed=st.integers(0, 1000))
def test_the_order_of_arrival_does_not_matter(tie_break, found, seed):
    order = list(range(len(found)))
    random.Random(seed).shuffle(order)
    assert all_places([found[index] for index in order], tie_break) == [
        all_places(found, tie_break)[index] for index in order
    ]


@TIES
@settings(max_examples=40)
@given(found=points)
def test_places_are_an_order_in_which_only_equals_share_one(tie_break, found):
    ranks = all_places(found, tie_break)
    for own, rank in zip(found, ranks, strict=True):
        assert ranks.count(rank) == found.count(own)
        assert rank == sum(other < rank for other in ranks)
