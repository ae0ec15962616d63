"""Pareto dominance: which of many results are better than others in several goals at once.

A result dominates another that is at most as good in every goal and worse in one. Here, higher is better in every goal.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slime_ray.config.metrics import Constraint, violation
from slime_ray.runs.stability_v1 import WITHIN_TOLERANCE

AT_ONCE = 512
"""Results that are compared with all others in one step."""
Points = npt.NDArray[np.float64]


def signed(values: Sequence[Sequence[float]], directions: Sequence[str]) -> Points:
    """(results, goals), of which higher is better in every goal. directions: maximize or minimize."""
    signs = [1.0 if direction == "maximize" else -1.0 for direction in directions]
    return np.asarray(values, dtype=float).reshape(len(values), len(signs)) * signs


def dominators(points: Points) -> npt.NDArray[np.int64]:
    """(results,) how many others dominate each. points: (results, goals)."""
    counts = [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(points), AT_ONCE):
        block = points[start : start + AT_ONCE]
        as_good = np.ones((len(block), len(points)), dtype=bool)
        better = np.zeros_like(as_good)
        for goal, values in zip(points.T, block.T, strict=True):
            as_good &= goal >= values[:, None]
            better |= goal > values[:, None]
        counts.append(np.count_nonzero(as_good & better, axis=1))
    return np.concatenate(counts)


def on_front(points: Points) -> npt.NDArray[np.bool_]:
    """(..., results) whether no other dominates each; what has a value that is not finite is on no front.

    points: (..., results, goals); with other than two goals (results, goals).
    """
    if points.shape[-1] == 2:
        return _on_front_of_two(points)
    finite = np.asarray(np.isfinite(points).all(axis=1))
    finite[finite] = dominators(points[finite]) == 0
    return finite


def _on_front_of_two(points: Points) -> npt.NDArray[np.bool_]:
    """Sort by the first goal, so that only the second is left to compare."""
    finite = np.isfinite(points).all(axis=-1, keepdims=True)
    first, second = np.moveaxis(np.where(finite, points, -np.inf), -1, 0)
    order = np.lexsort((-second, -first), axis=-1)
    first, second = (np.take_along_axis(values, order, axis=-1) for values in (first, second))
    maxima = np.maximum.accumulate(second, axis=-1)
    previous_maxima = np.full_like(second, -np.inf)
    previous_maxima[..., 1:] = maxima[..., :-1]
    # Results that are equal follow one another, and are what the first of them is.
    places = np.broadcast_to(np.arange(points.shape[-2]), order.shape).copy()
    equal = (first[..., 1:] == first[..., :-1]) & (second[..., 1:] == second[..., :-1])
    places[..., 1:][equal] = 0
    leader = np.maximum.accumulate(places, axis=-1)
    mask = np.empty(order.shape, dtype=bool)
    np.put_along_axis(mask, order, np.take_along_axis(second > previous_maxima, leader, axis=-1), axis=-1)
    return mask


def fronts(points: Points) -> npt.NDArray[np.int64]:
    """(results,) the front of each from 0, by non-dominated sorting (Deb et al. 2002); what is not finite comes last.

    points: (results, goals).
    """
    numbers = np.full(len(points), -1, dtype=np.int64)
    rest, front = np.flatnonzero(np.isfinite(points).all(axis=1)), 0
    while rest.size:
        best = on_front(points[rest])
        numbers[rest[best]] = front
        rest, front = rest[~best], front + 1
    numbers[numbers < 0] = front
    return numbers


def best_rows(
    rows: Sequence[Mapping[str, Any]], goals: Mapping[str, str], constraints: Sequence[Constraint] = ()
) -> list[Mapping[str, Any]]:
    """Order completed trials, best first.

    Those that keep the constraints come first: by how many of them dominate each, then those within tolerance, then by
    the first goal. The others follow, by how much they break.
    """
    # Equal ones by their ids, or a sweep that goes on would choose others than it did: rows come in any order.
    ordered = sorted(rows, key=lambda row: (len(str(row.get("trial_id"))), str(row.get("trial_id"))))
    # A frame has NaN where a trial was not measured, which no other would dominate.
    complete = [
        row
        for row in ordered
        if row.get("status") == "completed"
        and all(np.isfinite(np.nan if row.get(goal) is None else row[goal]) for goal in goals)
    ]
    excesses = [violation(row, constraints) for row in complete]
    feasible = [row for row, excess in zip(complete, excesses, strict=True) if excess == 0]
    points = signed([[float(row[goal]) for goal in goals] for row in feasible], list(goals.values()))
    dominator_counts = dominators(points)

    def order(place: int) -> tuple[int, bool, list[float]]:
        unstable = float(feasible[place].get("stability") or 0) < WITHIN_TOLERANCE
        return int(dominator_counts[place]), unstable, [-value for value in points[place]]

    infeasible = sorted((excess, place) for place, excess in enumerate(excesses) if excess > 0)
    return [feasible[place] for place in sorted(range(len(feasible)), key=order)] + [
        complete[place] for _, place in infeasible
    ]


def winners(
    rows: Sequence[Mapping[str, Any]], goals: Mapping[str, str], constraints: Sequence[Constraint] = ()
) -> list[Mapping[str, Any]]:
    """The same, of those alone that keep the constraints: nothing else may win."""
    return [row for row in best_rows(rows, goals, constraints) if violation(row, constraints) == 0]
