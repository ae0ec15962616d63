"""A sweep without any training: recorded trials are played again on a simulated clock.

What decides in a real sweep decides here too: a searcher hands out points, each becomes the recorded trial that stands
for it, several workers play them side by side, and a rule of early stopping is told their evaluations as they come.
Minutes of training pass in microseconds, so that searchers and rules can be compared over many seeds. No Ray runs.
"""

import heapq
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.storages import InMemoryStorage

from slime_ray.config.experiment import Experiment, Search
from slime_ray.config.space import Scalar
from slime_ray.on_ray.search import StudySearch
from slime_ray.on_ray.stopping import Rule


@dataclass(frozen=True)
class Recorded:
    """One trial as it was trained to its end.

    evaluations: what it reported, by update. updates, tokens: of all of its training. row: how it ended, with `status`
    and the goals, as in trials.parquet. Its clock goes by tokens, since seconds are taken beside other work.
    """

    name: str
    values: Mapping[str, Scalar]
    evaluations: Mapping[int, Mapping[str, float]]
    updates: int
    tokens: int
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Played:
    """One trial of a simulated sweep. row: as in trials.parquet. started, ended: by the clock, in tokens."""

    recorded: Recorded
    row: Mapping[str, Any]
    started: float
    ended: float

    @property
    def tokens(self) -> int:
        """Training tokens that it took."""
        return int(self.row["tokens"])


class FixedPoints:
    """Hands out points in the order given. Base of what hands out points in another way."""

    def __init__(self, points: Iterable[Mapping[str, Any]]):
        self.points = iter(points)

    def suggest(self, trial_id: str) -> Mapping[str, Any] | None:
        """Return the next point; None where none is left."""
        return next(self.points, None)

    def complete(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """Learn how a trial ended."""


class Forgetful(FixedPoints):
    """The searcher that a sweep of this experiment would have, with a study that is gone with it."""

    def __init__(self, experiment: Experiment, *, trials: int, seed: int):
        assert experiment.search is not None
        self.study = StudySearch(
            search=experiment.search,
            base=experiment.base,
            goals=experiment.goals,
            storage=InMemoryStorage(),
            trials=trials,
            seed=seed,
        )

    def suggest(self, trial_id: str) -> Mapping[str, Any] | None:
        """See FixedPoints."""
        begun = self.study.ask([trial_id])
        return begun and begun[1]

    def complete(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """See FixedPoints."""
        self.study.tell(trial_id, row)


class WithinTokens(FixedPoints):
    """Hands out a searcher's points while a whole trial fits in what is left of so many tokens.

    trial_tokens: of a whole trial.
    """

    def __init__(self, searcher: FixedPoints, tokens: float, *, trial_tokens: int):
        self.searcher, self.tokens_left, self.trial_tokens, self.running = searcher, tokens, trial_tokens, 0

    def suggest(self, trial_id: str) -> Mapping[str, Any] | None:
        """Return the searcher's next point, if it can be paid for."""
        if self.trial_tokens * (self.running + 1) > self.tokens_left:
            return None
        point = self.searcher.suggest(trial_id)
        self.running += point is not None
        return point

    def complete(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """Leave to others what was not trained."""
        self.running -= 1
        self.tokens_left -= row["tokens"]
        self.searcher.complete(trial_id, row)


def random_points(search: Search, count: int, seed: int) -> list[dict[str, Any]]:
    """Draw points at random, each by itself."""
    draw = random.Random(seed)
    return [{path: dimension.at(draw.random()) for path, dimension in search.dimensions.items()} for _ in range(count)]


def simulate(
    searcher: FixedPoints,
    rule: Rule | None,
    replay: Callable[[Mapping[str, Any]], Recorded],
    *,
    trials: int,
    workers: int = 1,
) -> list[Played]:
    """Play a sweep of so many trials, or until the searcher has no point left.

    Trials are in the order in which they ended.

    replay: the recorded trial that a point becomes. Tokens of a trial that is stopped are its share of the updates.
    Nothing is drawn, and of two events at one time the earlier trial's comes first.
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
        for step in sorted({*recorded.evaluations, recorded.updates}):
            heapq.heappush(events, (now + recorded.tokens * step / recorded.updates, begun, step))

    for _ in range(workers):
        begin(0.0)
    while events:
        now, number, step = heapq.heappop(events)
        if number not in running:
            # Its later evaluations never came.
            continue
        recorded, started = running[number]
        metrics = {"step": step, "updates": recorded.updates, **recorded.evaluations.get(step, {})}
        order = rule.decide(_name(number), metrics) if rule else None
        if order is None and step < recorded.updates:
            continue
        del running[number]
        row = {**recorded.row, "trial_id": _name(number), "phase": "search", "values": recorded.values}
        row |= {"updates": step, "tokens": round(recorded.tokens * step / recorded.updates)}
        if order is not None:
            # What was not measured is not known.
            row |= {"status": "stopped", "reason": order.reason, "win_rate": None, "stability": None}
        done.append(Played(recorded, row, started, now))
        searcher.complete(_name(number), row)
        begin(now)
    return done


def _name(number: int) -> str:
    return f"search-{number:04d}"
