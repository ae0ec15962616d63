"""Early stopping: which trials of a search end during training, decided from what they report at their evaluations.

Nothing here knows of Ray. A rule is asked at every report and answers with an order or nothing; the monitor passes it
on. A run that is resumed reads what its trials reported from their files, so that its rungs are those of the whole run.

A ranking looks at values alone: neither the order in which trials arrived nor their names matter, and equal trials
have equal places.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from slime_ray.config.experiment import EarlyStopping
from slime_ray.runs import results
from slime_ray.runs.pareto import fronts, signed
from slime_ray.runs.stability_v1 import WITHIN_TOLERANCE
from slime_ray.training.orders import Command, evaluations

MIN_TRIALS = 3
"""Trials that have to have got as far before the median of them says anything."""

TrialMetrics = tuple[str, Mapping[str, Any]]
"""A trial's id, and what it reported at one evaluation, with `step` and `updates`."""
Point = tuple[float, ...]
"""A trial's value of every metric of a ranking, in the ranking's order."""


@dataclass(frozen=True)
class Ranking:
    """By non-dominated sorting (Deb et al. 2002), as in multi-objective ASHA (Schmucker et al. 2021).

    First stand those that no other dominates (is at least as good in every goal and better in one), then those that
    only they dominate, and so on. Within such a front `tie_break` decides. `winner`: as winners are chosen at the end,
    trials of a stability within tolerance before others, then the better by the first goal, then by the second.
    `spread`: an epsilon-net, so that what goes on is spread over the front (Clarkson 2006): first the best by the first
    goal, then again and again the one farthest from all before it. Distances are taken with each goal scaled to its
    range in the front; of equally far ones the better by the first goal comes first, then by the second. With one goal
    it is the order of that. goals: metric -> maximize or minimize.
    """

    goals: Mapping[str, str]
    tie_break: Literal["winner", "spread"] = "winner"

    def count_before(self, point: Point, rivals: Sequence[Point]) -> int:
        """Count the `rivals` that stand before `point`; what has a value that is not finite comes last."""
        values = signed([point, *rivals], list(self.goals.values()))
        values[~np.isfinite(values).all(axis=1)] = -np.inf
        if len(self.goals) == 1:
            return int((values[1:, 0] > values[0, 0]).sum())
        points, counts = np.unique(values, axis=0, return_counts=True)
        # The best by the first goal comes first, as the tie-break wants it.
        points, counts = points[::-1], counts[::-1]
        index = int(np.flatnonzero((points == values[0]).all(axis=1))[0])
        front_of = fronts(points)
        earlier, front = np.flatnonzero(front_of < front_of[index]), np.flatnonzero(front_of == front_of[index])
        order = front[epsilon_net(points[front]) if self.tie_break == "spread" else self._winner_order(points[front])]
        ahead = order[: int(np.flatnonzero(order == index)[0])]
        return int(counts[earlier].sum() + counts[ahead].sum())

    def _winner_order(self, points: np.ndarray) -> np.ndarray:
        """Return a front's indices in the order of winners; its points are ordered by the first goal."""
        if self.goals.get("stability") != "maximize":
            return np.arange(len(points))
        return np.argsort(points[:, list(self.goals).index("stability")] < WITHIN_TOLERANCE, kind="stable")


def epsilon_net(points: np.ndarray) -> np.ndarray:
    """Order a front's points, (points, goals), as indices: the first, then always the farthest from all so far."""
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0) if np.isfinite(points).all() else points
    order = [0]
    nearest = np.full(len(points), np.inf)
    while len(order) < len(points):
        nearest = np.minimum(nearest, np.linalg.norm(scaled - scaled[order[-1]], axis=1))
        nearest[order] = -1.0
        order.append(int(nearest.argmax()))
    return np.array(order)


class Rule(Protocol):
    """Decides, report by report, which trials go on."""

    def decide(self, trial_id: str, metrics: Mapping[str, Any]) -> Command | None:
        """Return a command to stop, or None. metrics: a report with `step` and `updates`, maybe the rule's metrics."""


def build_rule(settings: EarlyStopping) -> Rule | None:
    """Build the rule that the settings name; None for `none`."""
    if settings.rule == "none":
        return None
    if settings.rule == "median":
        (metric,) = settings.ranked_by
        return Median(metric, first=settings.first)
    goals: dict[str, str] = {str(goal): direction for goal, direction in (settings.goals or {}).items()}
    ranking = Ranking(goals or dict.fromkeys(settings.ranked_by, "maximize"), settings.tie_break)
    return Halving(ranking, first=settings.first, reduction=settings.reduction)


@dataclass
class Halving:
    """Asynchronous successive halving (Li et al. 2020, ASHA, stopping variant).

    A trial that reaches a rung is stopped unless it is among the best 1/reduction of those that have reached it so far;
    the first `reduction` - 1 always go on. A trial that reports not everything the ranking looks at goes on. first:
    the first rung, as a share of a trial's updates; each further one is `reduction` times as far.
    """

    ranking: Ranking
    first: float
    reduction: int
    rungs: list[float] = field(init=False)
    points_by_rung: list[dict[str, Point]] = field(init=False)

    def __post_init__(self) -> None:
        # 0.2 * 3 is a little above 0.6, which a trial has reached after 6 of 10 updates.
        shares = [round(self.first * self.reduction**k, 12) for k in range(64)]
        self.rungs = [share for share in shares if share < 1]
        self.points_by_rung = [{} for _ in self.rungs]

    def decide(self, trial_id: str, metrics: Mapping[str, Any]) -> Command | None:
        """Decide at a report; see `Rule`."""
        share, values = progress(metrics), [metrics.get(metric) for metric in self.ranking.goals]
        if share is None or None in values:
            return None
        point = tuple(float(value) for value in values if value is not None)
        for rung, rung_points in zip(self.rungs, self.points_by_rung, strict=True):
            # A trial that started again passes the same rungs again; what it was there does not change.
            if share < rung or trial_id in rung_points:
                continue
            place = self.ranking.count_before(point, list(rung_points.values()))
            rung_points[trial_id] = point
            survivors = max(1, len(rung_points) // self.reduction)
            # Where evaluations are far apart, the last rung may be seen at the end only, when there is nothing to save.
            if share < 1 and len(rung_points) >= self.reduction and place >= survivors:
                summary = ", ".join(
                    f"{name} {value:.4g}" for name, value in zip(self.ranking.goals, point, strict=True)
                )
                return _stop(metrics, summary, f"behind {place} of {len(rung_points) - 1} other trials")
        return None


@dataclass
class Median:
    """The median stopping rule (Golovin et al. 2017, Google Vizier), by one metric, the higher the better.

    At each evaluation from `first` on, a trial is stopped whose best value so far is below the median of the other
    trials' means, each over its values up to the same share of its updates; trials that have not got so far are not
    asked.
    """

    metric: str
    first: float
    history: dict[str, dict[float, float]] = field(default_factory=dict)

    def decide(self, trial_id: str, metrics: Mapping[str, Any]) -> Command | None:
        """Decide at a report; see `Rule`."""
        share, value = progress(metrics), metrics.get(self.metric)
        curve = self.history.setdefault(trial_id, {})
        # What a trial that started again reports a second time was decided the first time.
        if share is None or value is None or share in curve:
            return None
        curve[share] = float(value) if math.isfinite(value) else -math.inf
        means = [_mean_until(share, rival_curve) for name, rival_curve in self.history.items() if name != trial_id]
        means_so_far = [mean for mean in means if mean is not None]
        if share < self.first or share >= 1 or len(means_so_far) < MIN_TRIALS:
            return None
        best, median_mean = max(curve.values()), median(means_so_far)
        if best >= median_mean:
            return None
        summary = f"{self.metric} {best:.4g} at best"
        return _stop(metrics, summary, f"below {median_mean:.4g}, the median of {len(means_so_far)} others")


def progress(metrics: Mapping[str, Any]) -> float | None:
    """Return the share of its updates that a trial has made; None before the first, or where the report lacks it."""
    step, updates = metrics.get("step"), metrics.get("updates")
    return step / updates if step and updates else None


def _mean_until(share: float, history: Mapping[float, float]) -> float | None:
    """Return the mean of the values up to a share; None where none is from so early, or it has not got as far."""
    values = [value for step_share, value in history.items() if step_share <= share]
    return sum(values) / len(values) if values and max(history) >= share else None


def _stop(metrics: Mapping[str, Any], summary: str, reason: str) -> Command:
    return Command("stop", f"early: {summary} at update {metrics['step']} of {metrics['updates']}, {reason}")


def past_reports(run: Path) -> list[TrialMetrics]:
    """Read every evaluation of the finished search trials, trial by trial, in the order in which they began.

    A trial whose curves cannot be read has reported nothing.
    """
    rows = [row for row in results.finished_trials(run).values() if row["phase"] == "search"]
    return [
        (row["trial_id"], {"step": step, "updates": row["planned_updates"], **metrics})
        for row in sorted(rows, key=lambda row: (row["started"] or "", row["trial_id"]))
        for step, metrics in evaluations(_curves(run / "trials" / row["trial_id"])).items()
        if row.get("planned_updates")
    ]


def _curves(folder: Path) -> list[dict[str, Any]]:
    try:
        return list(pq.read_table(folder / "curves.parquet").to_pylist())
    except (OSError, pa.ArrowException):
        return []
