"""StudySearch: Ray Tune's OptunaSearch over a study that outlives the process, with its gaps closed."""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search.optuna import OptunaSearch
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from slime_ray.errors import InputError, RunError
from slime_ray.on_ray.samplers import Outcome, chance, distribution, make_sampler, suggest
from slime_ray.points import Point, Rules, Search, exists, path_of
from slime_ray.redaction import redact, redact_sentence, remember
from slime_ray.run_folder import STUDY
from slime_ray.space import Scalar
from slime_ray.training.outcome import one_sentence

MAX_DRAWS = 1000
PAUSED = "paused"
SHORT = {"maximize": "max", "minimize": "min"}
logger = logging.getLogger(__name__)


def _drop_unfinished_line(journal: Path) -> None:
    """What a full disk has cut off would join the next entry to something that cannot be read."""
    content = journal.read_bytes() if journal.is_file() else b""
    if content and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


class StudyFailed(RunError):
    """The study could not be read or written. reason: without a full stop."""

    def __init__(self, error: Exception):
        failed = f"study's database failed ({redact_sentence(one_sentence(error))})"
        self.reason = f"the {failed}"
        super().__init__(
            f"The {failed}. What finished is kept; give the same command with --resume once it can be used again."
        )


@contextmanager
def asking() -> Iterator[None]:
    """Around whatever needs the study. Raises StudyFailed."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        raise StudyFailed(error) from error


def study_storage(run: Path, url: str | None = None) -> BaseStorage:
    """Where the run's study is: a journal file in its folder, or the database at `url`, as SQLAlchemy writes it.

    `optuna-dashboard` opens either as it is. Raises InputError for a database that cannot be used.
    """
    if url is None:
        journal = run / "study.journal"
        _drop_unfinished_line(journal)
        return JournalStorage(JournalFileBackend(str(journal)))
    remember(url)
    where = redact(url)
    try:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (ImportError, NoSuchModuleError) as error:
        reason, way = str(error).splitlines()[0], "Install its driver, such as psycopg[binary] for postgresql://"
    except ArgumentError:
        reason, way = "it is no such address", "Write it as postgresql://user:password@host/database"
    except (SQLAlchemyError, RuntimeError) as error:
        reason, way = str(error).splitlines()[0], "Start the database or correct the address"
    raise InputError(f"The study's database {where} cannot be used: {redact_sentence(reason).rstrip('.')}. {way}.")


@dataclass(frozen=True)
class Observation:
    """A point whose goals are known beforehand. source: where from."""

    source: str
    point: Point
    values: tuple[float, ...]


class StudySearch(OptunaSearch):
    """The experiment's search in a study that outlives the process: who tried what, and what came of it.

    What it does that OptunaSearch does not: every requirement between knobs holds for every point it hands out, and no
    point is handed out twice; a trial that errored, has no finite goal or did not complete is told FAIL instead of
    COMPLETE or nothing, and one that was stopped PRUNED with what it reached, so that the sampler knows where not to
    look and no front holds it; a reopened study must have the same goals and space; of its unfinished trials, those
    that have a row by now are told how they ended, and the others FAIL, and their points are queued again under the
    same names; known points are queued once, however often the study is opened, and what was observed elsewhere is
    added once.

    rows: of the trials that have finished, by trial id, as in trials.parquet. name: of the study in the storage.

    seed: makes the draws repeatable when trials run one at a time, also where the search is gone on with. Side by side,
    what a sampler that learns knows depends on which trials have finished by then; the other samplers do not ask.
    """

    def __init__(
        self,
        *,
        search: Search,
        base: Mapping[str, Any],
        goals: Mapping[str, str],
        storage: BaseStorage,
        trials: int,
        seed: int,
        rows: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        observed: Sequence[Observation] = (),
        name: str = STUDY,
    ):
        self.search, self.goals, self.storage = search, dict(goals), storage
        self.rules = Rules(search, base)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        existing = _existing_study(storage, name, self.goals, search)
        super().__init__(
            space={name: distribution(dimension) for name, dimension in search.dimensions.items()},
            metric=list(goals),
            mode=[SHORT[direction] for direction in goals.values()],
            # Asked only where a queued point says nothing of a knob.
            sampler=optuna.samplers.RandomSampler(seed=seed),
            study_name=name,
            storage=storage,
        )
        self.study: optuna.Study = self._ot_study  # type: ignore[assignment]
        self.sampler = make_sampler(search, self.rules, list(goals.values()), trials=trials, seed=seed)
        self.chance = chance(search, seed)
        self.position = 1 + max((int(one.user_attrs.get("draw", -1)) for one in existing), default=-1)
        self.tried: set[frozenset[tuple[str, Scalar]]] = set()
        self.running: dict[str, FrozenTrial] = {}
        self.reserved: set[str] = set()
        self.study.set_user_attr("goals", self.goals)
        # A trial that was paused is done with once another stands for it.
        told = {frozen.user_attrs.get("trial_id") for frozen in existing if frozen.state == TrialState.COMPLETE}
        queued = {frozen.user_attrs.get("again") for frozen in existing}
        for frozen in existing:
            self._reopen(frozen, rows, done=frozen.number in queued or frozen.user_attrs.get("trial_id") in told)
        known = {frozen.user_attrs.get("source") for frozen in existing}
        for one in observed:
            if one.source not in known:
                self._add(one.point, one.values, source=one.source)
        for point in search.known_points:
            self.study.enqueue_trial(search.named(point), skip_if_exists=True)

    def _reopen(self, frozen: FrozenTrial, rows: Mapping[str, Mapping[str, Any]], *, done: bool) -> None:
        """Learn what came of an earlier trial, and have it run again where nothing did."""
        name, point = str(frozen.user_attrs.get("trial_id", "")), _point(frozen.params)
        if frozen.state == TrialState.WAITING:
            self.reserved.update([name] if name else [])
            return
        if point:
            self.tried.add(_key(point))
        if frozen.state in (TrialState.COMPLETE, TrialState.PRUNED):
            self._learn(frozen.number, point, frozen.values if frozen.state == TrialState.COMPLETE else "stopped")
            return
        if frozen.state == TrialState.RUNNING:
            # It may have finished, and the sweep died before the study heard of it.
            outcome = self._tell(frozen, rows.get(name, {}))
            if name in rows:
                self._learn(frozen.number, point, outcome)
                return
        elif frozen.user_attrs.get("status") != PAUSED or done:
            return
        elif name in rows:
            # It was taken for one that has yet to run.
            if (outcome := self._outcome(rows[name])) and outcome != "stopped":
                self._add(point, outcome, trial_id=name)
            return
        # A queued trial takes its parameters one by one, and may have been cut off in between.
        if params := frozen.system_attrs.get("fixed_params", frozen.params):
            named = {"trial_id": name} if name else {}
            self.study.enqueue_trial(params, user_attrs={"again": frozen.number, **named})
            self.reserved.update(named.values())

    def _learn(self, number: int, point: Point, outcome: Outcome) -> None:
        self.sampler.begin(number, point)
        self.sampler.end(number, outcome)

    def _add(self, point: Point, values: Sequence[float], **attrs: str) -> None:
        """Record a trial that has ended already."""
        self._record(self.search.named(point), state=TrialState.COMPLETE, values=list(values), user_attrs=attrs)
        self.tried.add(_key(point))
        self._learn(self._last().number, point, values)

    def _record(self, params: Mapping[str, Scalar], **columns: Any) -> None:
        """Add a trial in one step: each step is a write that waits for the disk."""
        space = {name: distribution(self.search.dimensions[name]) for name in params}
        self.study.add_trial(create_trial(params=dict(params), distributions=space, **columns))

    def _last(self) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[-1]

    def suggest(self, trial_id: str, free: Sequence[str] = ()) -> dict[str, Any] | None:
        """The next point, as {path: value}; None where a finite space has no further one.

        free: which of our trials it may become, see `name`. Raises InputError when none can be drawn, and StudyFailed.
        """
        with asking():
            if self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                point: Point | None = self._queued(trial_id)
            else:
                point = self._drawn(trial_id, free)
        if point is not None:
            self.tried.add(_key(point))
            self.sampler.begin(self.running[trial_id].number, point)
        return point

    def _queued(self, trial_id: str) -> Point:
        trial = self.study.ask()
        point = self.search.walk(lambda name, dimension: suggest(trial, name, dimension))
        self.running[trial_id] = self.study.get_trials(deepcopy=False)[trial.number]
        return point

    def _drawn(self, trial_id: str, free: Sequence[str]) -> Point | None:
        broken = ""
        for misses in range(MAX_DRAWS):
            tired = self.sampler.patience is not None and misses >= self.sampler.patience
            point = (self.chance if tired else self.sampler).draw(self.position)
            if point is None:
                return None
            position, self.position = self.position, self.position + 1
            if because := self.rules.broken(point):
                broken = because[0]
            elif _key(point) not in self.tried:
                name = self._free(free)
                attrs = {"draw": position} | ({"trial_id": name} if name else {})
                try:
                    self._record(self.search.named(point), state=TrialState.RUNNING, user_attrs=attrs)
                except Exception:
                    self.position = position
                    raise
                self.running[trial_id] = self._last()
                return point
        raise InputError(
            f"{MAX_DRAWS} draws in a row "
            + (f"broke {broken!r}: the requirements" if broken else "were points that were tried before: they")
            + " leave almost nothing of the space. Narrow the ranges to where the requirements hold, or widen them."
        )

    def _free(self, free: Sequence[str]) -> str:
        return next((name for name in free if name not in self.reserved), free[0] if free else "")

    def name(self, trial_id: str, free: Sequence[str]) -> str:
        """Which of our trials a point becomes: the one that it was before an interruption, else a free one.

        Raises StudyFailed.
        """
        frozen = self.running[trial_id]
        name: str = frozen.user_attrs.get("trial_id", "")
        if name not in free:
            name = self._free(free)
            with asking():
                self._set(frozen, "trial_id", name)
        self.reserved.discard(name)
        return name

    def _set(self, frozen: FrozenTrial, key: str, value: Any) -> None:
        # Optuna has a public way only for trials that it drew itself.
        self.storage.set_trial_user_attr(frozen._trial_id, key, value)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended, once. Raises StudyFailed."""
        if trial_id in self._completed_trials:
            return
        frozen, result = self.running[trial_id], result or {}
        with asking():
            if error or result.get("status") != "completed":
                self._set(frozen, "status", str(result.get("status", "died")))
            outcome = self._tell(frozen, {} if error else result)
        self._completed_trials.add(trial_id)
        self.sampler.end(frozen.number, outcome)

    def know(self, trial_id: str, values: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Tell the study of a trial that it did not draw, once, where that lies in its space. Raises StudyFailed."""
        outcome, point = self._outcome(result), self.search.locate(values)
        if point is None or outcome is None or outcome == "stopped":
            return
        with asking():
            existing = self.study.get_trials(deepcopy=False)
            if all(known.user_attrs.get("trial_id") != trial_id for known in existing):
                self._add(point, outcome, trial_id=trial_id)

    def _tell(self, frozen: FrozenTrial, result: Mapping[str, Any]) -> Outcome:
        """Tell the study what came of a trial, and return it."""
        outcome = self._outcome(result)
        if outcome == "stopped":
            reached = {"updates": result.get("updates", result.get("step")), "tokens": result.get("tokens")}
            for key, value in {"reason": result.get("reason"), **reached}.items():
                self._set(frozen, key, value)
            self.study.tell(frozen.number, state=TrialState.PRUNED)
        elif outcome is None:
            self.study.tell(frozen.number, state=TrialState.FAIL)
        else:
            self.study.tell(frozen.number, outcome)
        return outcome

    def _outcome(self, result: Mapping[str, Any]) -> Outcome:
        if result.get("status") == "stopped":
            return "stopped"
        values = [result.get(goal) for goal in self.goals]
        finite = [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
        return finite if result.get("status") == "completed" and len(finite) == len(values) else None

    def close(self, rows: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> None:
        """Nothing is at work any more: what has no row is failed, and its point queued when the study is reopened."""
        for trial_id in self.running.keys() - self._completed_trials:
            name = self.running[trial_id].user_attrs.get("trial_id", "")
            with suppress(StudyFailed):
                self.on_trial_complete(trial_id, dict(rows.get(name, {"status": PAUSED})))


def _point(params: Mapping[str, Scalar]) -> Point:
    return {path_of(name): value for name, value in params.items()}


def _key(point: Point) -> frozenset[tuple[str, Scalar]]:
    return frozenset(point.items())


def _existing_study(storage: BaseStorage, name: str, goals: Mapping[str, str], search: Search) -> list[FrozenTrial]:
    """The trials of the study that the storage already holds. Raises InputError if it was about something else."""
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return []
    before = study.user_attrs.get("goals", dict(goals))
    if list(before.items()) != list(goals.items()):
        raise InputError(
            f"The study was started with the goals {before}, not {dict(goals)}. Give the run a new --name."
        )
    trials = study.get_trials(deepcopy=False)
    wanted = {name: distribution(dimension) for name, dimension in search.dimensions.items()}
    for trial in trials:
        if not trial.distributions:
            continue
        point = _point(trial.params)
        has = {name for name in wanted if exists(search.dimensions[name], point)}
        changed = [name for name in wanted if name in trial.distributions and trial.distributions[name] != wanted[name]]
        others = set(trial.distributions) - has if trial.state == TrialState.RUNNING else set(trial.distributions) ^ has
        if changed := sorted(others) or changed:
            raise InputError(
                f"The study was started with another search space: {', '.join(changed)} changed. "
                "Give the run a new --name."
            )
    return list(trials)
