"""Who stands before whom at a rung: by one metric, or by non-domination among several goals.

A ranking looks at values alone. Neither the order in which trials arrived nor their names matter, and equal trials have
equal places.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from slime_ray.runs.pareto import fronts
from slime_ray.runs.stability_v1 import WITHIN_TOLERANCE

Point = tuple[float, ...]
"""A trial's value of every metric of a ranking, in the ranking's order."""


class Ranking(Protocol):
    """The rule by which trials at a rung are ranked."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """What it looks at, by the names under which trials report it."""

    def before(self, own: Point, others: Sequence[Point]) -> int:
        """How many of `others` stand before `own`. What is not a number comes last."""


@dataclass(frozen=True)
class ByMetric:
    """By one metric, the highest first."""

    metric: str

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def before(self, own: Point, others: Sequence[Point]) -> int:
        (value,) = _numbers([own])[0]
        return int((_numbers(others)[:, 0] > value).sum()) if others else 0


@dataclass(frozen=True)
class ByFront:
    """By non-dominated sorting (Deb et al. 2002), as in multi-objective ASHA (Schmucker et al. 2021).

    First stand those that no other dominates (is at least as good in every goal and better in one), then those that
    only they dominate, and so on. Within such a front `tie_break` decides. `winner`: as winners are chosen at the end,
    trials of a stability within tolerance before others, then the better by the first goal, then by the second.
    `spread`: an epsilon-net, so that what goes on is spread over the front (Clarkson 2006): first the best by the first
    goal, then again and again the one farthest from all before it. Distances are taken with each goal scaled to its
    range in the front; of equally far ones the better by the first goal comes first, then by the second. goals: metric
    -> maximize or minimize.
    """

    goals: Mapping[str, str]
    tie_break: Literal["winner", "spread"] = "winner"

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.goals)

    def before(self, own: Point, others: Sequence[Point]) -> int:
        signs = [1.0 if way == "maximize" else -1.0 for way in self.goals.values()]
        values = _numbers([own, *others], signs)
        points, counts = np.unique(values, axis=0, return_counts=True)
        # The best by the first goal comes first, as the tie-break wants it.
        points, counts = points[::-1], counts[::-1]
        mine = int(np.flatnonzero((points == values[0]).all(axis=1))[0])
        place = fronts(points)
        earlier, front = np.flatnonzero(place < place[mine]), np.flatnonzero(place == place[mine])
        order = front[epsilon_net(points[front]) if self.tie_break == "spread" else self._as_chosen(points[front])]
        ahead = order[: int(np.flatnonzero(order == mine)[0])]
        return int(counts[earlier].sum() + counts[ahead].sum())

    def _as_chosen(self, points: np.ndarray) -> np.ndarray:
        """Order of a front's points, as indices, where the best by the first goal come first already."""
        if self.goals.get("stability") != "maximize":
            return np.arange(len(points))
        return np.argsort(points[:, list(self.goals).index("stability")] < WITHIN_TOLERANCE, kind="stable")


def epsilon_net(points: np.ndarray) -> np.ndarray:
    """Order in which points of a front are taken, as indices: the first one, then the farthest from all so far.

    points: (points, goals).
    """
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0) if np.isfinite(points).all() else points
    order = [0]
    nearest = np.full(len(points), np.inf)
    while len(order) < len(points):
        nearest = np.minimum(nearest, np.linalg.norm(scaled - scaled[order[-1]], axis=1))
        nearest[order] = -1.0
        order.append(int(nearest.argmax()))
    return np.array(order)


def _numbers(points: Sequence[Point], signs: Sequence[float] = (1.0,)) -> np.ndarray:
    """(points, metrics), higher is better. One with something that is no finite number is worse than all others."""
    values = np.array(points, dtype=float) * signs
    values[~np.isfinite(values).all(axis=1)] = -np.inf
    return values
