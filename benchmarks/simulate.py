"""A sweep without any training: recorded trials are played again on a simulated clock.

What decides in a real sweep decides here too: a searcher hands out points, each becomes the recorded trial that stands
for it, several workers play them side by side, and a rule of early stopping is told their evaluations as they come.
Minutes of training pass in microseconds, so that searchers and rules can be compared over many seeds. No Ray runs.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.storages import InMemoryStorage

from slime_ray.config.experiment import Experiment
from slime_ray.config.space import Scalar
from slime_ray.on_ray.search import StudySearch
from slime_ray.on_ray.stopping import Rule


@dataclass(frozen=True)
class Recorded:
    """One trial as it was trained to its end.

    told: what it reported, by update. updates, tokens, seconds: of all of its training. row: how it ended, with
    `status` and the goals, as in trials.parquet.
    """

    name: str
    values: Mapping[str, Scalar]
    told: Mapping[int, Mapping[str, float]]
    updates: int
    tokens: int
    seconds: float
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Played:
    """One trial of a simulated sweep. row: as it would stand in trials.parquet. ended: by the simulated clock."""

    recorded: Recorded
    row: Mapping[str, Any]
    started: float
    ended: float

    @property
    def tokens(self) -> int:
        """Training tokens that it took."""
        return int(self.row["tokens"])


class Searcher(Protocol):
    """What hands out points: `Forgetful`, or anything that has these two methods of a searcher of Ray Tune."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next point; None where there is none left."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """How a trial ended."""


class Forgetful:
    """The searcher that a sweep of this experiment would have, with a study that is gone with it."""

    def __init__(self, experiment: Experiment, *, trials: int, seed: int):
        if experiment.search is None:
            raise ValueError(f"{experiment.name} has no search")
        self.study = StudySearch(
            search=experiment.search,
            base=experiment.base,
            goals=experiment.goals,
            storage=InMemoryStorage(),
            trials=trials,
            seed=seed,
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """See Searcher."""
        begun = self.study.ask([trial_id])
        return begun and begun[1]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See Searcher."""
        self.study.tell(trial_id, result or {})


def simulate(
    searcher: Searcher,
    rule: Rule | None,
    replay: Callable[[Mapping[str, Any]], Recorded],
    *,
    trials: int,
    workers: int = 1,
) -> list[Played]:
    """Play a sweep of so many trials, or until the searcher has no point left. In the order in which they ended.

    replay: the recorded trial that a point becomes. Tokens and seconds of a trial that is stopped are its share of the
    updates. Everything follows from what is given: nothing is drawn, and of two events at one time the earlier trial's
    comes first.
    """
    done: list[Played] = []
    events: list[tuple[float, int, int]] = []
    running: dict[int, tuple[Recorded, float]] = {}
    begun = 0

    def begin(now: float) -> None:
        nonlocal begun
        point = searcher.suggest(_name(begun + 1)) if begun < trials else None
        if point is None:
            return
        begun += 1
        recorded = replay(point)
        running[begun] = (recorded, now)
        for step in sorted({*recorded.told, recorded.updates}):
            heapq.heappush(events, (now + recorded.seconds * step / recorded.updates, begun, step))

    for _ in range(workers):
        begin(0.0)
    while events:
        now, number, step = heapq.heappop(events)
        if number not in running:
            # Its later evaluations never came.
            continue
        recorded, started = running[number]
        told = {"step": step, "updates": recorded.updates, **recorded.told.get(step, {})}
        order = rule.decide(_name(number), told) if rule else None
        if order is None and step < recorded.updates:
            continue
        del running[number]
        row = {**recorded.row, "trial_id": _name(number), "phase": "search", "values": recorded.values}
        row |= {"updates": step, "tokens": round(recorded.tokens * step / recorded.updates)}
        if order is not None:
            # What was not measured is not known.
            row |= {"status": "stopped", "reason": order.reason, "win_rate": None, "stability": None}
        done.append(Played(recorded, row, started, now))
        searcher.on_trial_complete(_name(number), row)
        begin(now)
    return done


def _name(number: int) -> str:
    return f"search-{number:04d}"
