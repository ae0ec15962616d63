"""StudySearch: an Optuna study that outlives the process, with one point for every trial id, for ever.

It is kept in a journal file in the run's folder, or in a database.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from slime_ray.config.metrics import Constraint
from slime_ray.config.points import Point, Rules, Search, exists, path_of
from slime_ray.errors import InputError, RunError
from slime_ray.on_ray.samplers import RuledSampler, grid, key, suggest
from slime_ray.runs.earlier_runs import Observation
from slime_ray.runs.folder import STUDY
from slime_ray.runs.redaction import redact, redact_sentence, remember
from slime_ray.runs.results import is_clone
from slime_ray.training.outcome import one_sentence

PAUSED = "paused"
DELETED = "deleted"
SPARE = ".rebuilt"
"""Suffix of a study that is written whole before it replaces the one of the run."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
Rows = Mapping[str, Mapping[str, Any]]
REBUILD_HINT = "it is made again from the trials' results"


class StudyFailed(RunError):
    """The study could not be read or written. reason: without a full stop."""

    def __init__(self, error: Exception):
        failed = f"study's database failed ({redact_sentence(one_sentence(error))})"
        self.reason = f"the {failed}"
        super().__init__(
            f"The {failed}. What finished is kept; give the same command with --resume once it can be used again, or "
            f"without the damaged file: {REBUILD_HINT}."
        )


@contextmanager
def study_errors() -> Iterator[None]:
    """Raise errors of the study within this context as StudyFailed."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        raise StudyFailed(error) from error


def study_storage(run: Path, url: str | None = None) -> BaseStorage:
    """Open the run's study: a journal file in its folder, or a database. `optuna-dashboard` opens either as it is.

    url: of the database, as SQLAlchemy writes it.

    Raises:
        InputError: the database cannot be used, or the journal cannot be read.
    """
    if url is None:
        return _journal(run / "study.journal")
    remember(url)
    address = redact(url)
    try:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (ImportError, NoSuchModuleError) as error:
        reason, remedy = str(error).splitlines()[0], "Install its driver, such as psycopg[binary] for postgresql://"
    except ArgumentError:
        reason, remedy = "it is no such address", "Write it as postgresql://user:password@host/database"
    except (SQLAlchemyError, RuntimeError) as error:
        reason, remedy = str(error).splitlines()[0], "Start the database or correct the address"
        if url.startswith("sqlite"):
            remedy += f"; a damaged file may be moved away, and {REBUILD_HINT}"
    raise InputError(f"The study's database {address} cannot be used: {redact_sentence(reason).rstrip('.')}. {remedy}.")


def _journal(path: Path) -> BaseStorage:
    try:
        content = path.read_bytes() if path.is_file() else b""
        whole_lines = content[: content.rfind(b"\n") + 1]
        if whole_lines != content:
            # What a full disk has cut off would join the next entry to something that cannot be read.
            os.truncate(path, len(whole_lines))
        if lines := whole_lines.splitlines():
            # Of the last line Optuna complains only when another follows.
            json.loads(lines[-1])
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise InputError(f"{path} cannot be used: {error.strerror}. Mend that, and give the command again.") from None
    except Exception as error:  # Optuna raises whatever an entry that it did not write makes it raise.
        raise InputError(
            f"{path} is damaged: {one_sentence(error).rstrip('.')}. Move it away, and give the command with --resume: "
            f"{REBUILD_HINT}."
        ) from None


class StudySearch:
    """The search of an experiment: what every trial tried, and what came of it, in a study of Optuna's.

    An id keeps its point for ever. A trial whose result is gone is trained again at its point, and of its entries only
    the one that agrees with its result counts. The study can be made again from the results, so these win wherever the
    two differ. A trial without a whole result is FAIL, one that was stopped PRUNED with what it reached.

    Args:
        search: the space, the known points and the sampler's name.
        base: the settings over which a point is laid.
        goals: metric -> maximize or minimize.
        storage: where the study is.
        trials: number of trials of the whole search.
        seed: makes the draws repeatable where trials run one at a time, also over an interruption.
        rows: results of the trials that have finished, by id, with their `values`, as of trials.parquet.
        lost: values of trials whose results are gone, by id, as other files of the run have them.
        observed: results from elsewhere, each added once.
        name: of the study in the storage.

    Raises:
        InputError: the study is about other goals, another space, or another run.
        StudyFailed: it cannot be read or written.
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
        rows: Rows = MappingProxyType({}),
        lost: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        observed: Sequence[Observation] = (),
        constraints: Sequence[Constraint] = (),
        name: str = STUDY,
    ):
        self.constraints = constraints
        self.search, self.goals, self.storage, self.name = search, dict(goals), storage, name
        self.running: dict[str, Trial] = {}
        self.final_ids: set[str] = set()
        self.notes: list[str] = []
        """What the user is to know of what the study lacked."""
        rules = Rules(search, base)
        self.sampler = RuledSampler(search, rules, trials=trials, seed=seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with study_errors():
            self._restore_spare()
            self.study = self._create(name)
            self._check()
            self._reconcile({trial_id: row for trial_id, row in rows.items() if row.get("phase") == "search"}, lost)
            self._observe(observed)
        self.queue = [*search.known_points, *(grid(search, rules, seed) if search.sampler == "grid" else ())]

    def _create(self, name: str) -> optuna.Study:
        """Return the study of this name, a new one where there is none."""
        study = optuna.create_study(
            study_name=name,
            storage=self.storage,
            sampler=self.sampler,
            directions=[StudyDirection[direction.upper()] for direction in self.goals.values()],
            load_if_exists=True,
        )
        if "goals" not in study.user_attrs:
            study.set_user_attr("goals", self.goals)
        return study

    def _entries(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _point(self, entry: FrozenTrial) -> Point | None:
        """Return the point of an entry; None where it was cut off before it had all of its knobs."""
        point = {path_of(name): value for name, value in entry.params.items()}
        try:
            return point if self.search.values_by_name(point).keys() == entry.params.keys() else None
        except KeyError:
            return None

    def _entry_points(self) -> list[tuple[str, Point]]:
        return [(_id(entry), point) for entry in self._entries() if _id(entry) and (point := self._point(entry))]

    def _check(self) -> None:
        """Raise InputError where the study is about something else."""
        goals = self.study.user_attrs["goals"]
        if list(goals.items()) != list(self.goals.items()):
            raise InputError(f"The study was started with the goals {goals}, not {self.goals}. {self._way_out}")
        for entry in self._entries():
            point = {path_of(name): value for name, value in entry.params.items()}
            expected = {name for name, dimension in self.search.dimensions.items() if exists(dimension, point)}
            names = set(entry.distributions)
            mismatch = names ^ expected if entry.state in ENDED else names - expected
            space = self.sampler.space
            changed = [name for name in entry.distributions if entry.distributions[name] != space.get(name)]
            if changed := sorted(mismatch) or changed:
                raise InputError(
                    f"The study was started with another search space: {', '.join(changed)} changed. {self._way_out}"
                )

    @property
    def _way_out(self) -> str:
        return f"Give the run a new --name, or move the study away: {REBUILD_HINT}."

    def _reconcile(self, rows: Rows, lost: Mapping[str, Mapping[str, Any]]) -> None:
        """Make the study agree with the results, and queue the points of trials without one."""
        points = {trial_id: point for trial_id, row in rows.items() if (point := self.search.locate(row["values"]))}
        self._refuse_another_run(points)
        self._fail_unfinished()
        entries: list[FrozenTrial] = []
        rebuilt: set[str] = set()
        for entry in self._entries():
            trial_id = _id(entry)
            if trial_id and entry.state in ENDED:
                row = rows.get(trial_id, {})
                agrees = self._point(entry) == points.get(trial_id) and entry.state == self._state(row)
                agrees &= all(map(math.isclose, self._values(row) or (), entry.values or ()))
                if agrees and trial_id not in self.final_ids:
                    self.final_ids.add(trial_id)
                else:
                    entry = _without_result(entry)
                    rebuilt.add(trial_id)
            entries.append(entry)
        if rebuilt:
            self._rebuild(entries)
            self.notes += [f"{name} has no result any more; it is run again." for name in sorted(rebuilt - rows.keys())]
        # A study of version 0.1.0 may hold further points of an id.
        entry_points = self._entry_points()
        self.points = {
            **{trial_id: point for trial_id, values in lost.items() if (point := self.search.locate(values))},
            **dict(entry_points),
            **points,
        }
        # A clone takes no point away: where there are as many trials as points, one would be left without any.
        history = (point for name, point in [*self.points.items(), *entry_points] if not is_clone(name))
        self.sampler.history.update(map(key, history))
        self._record_missing({trial_id: rows[trial_id] for trial_id in points if trial_id not in self.final_ids})
        self.reruns = {trial_id: point for trial_id, point in self.points.items() if trial_id not in rows}

    def _refuse_another_run(self, points: Mapping[str, Point]) -> None:
        entry_points = [(trial_id, point) for trial_id, point in self._entry_points() if trial_id in points]
        matched = {trial_id for trial_id, point in entry_points if point == points[trial_id]}
        if mismatched := sorted({trial_id for trial_id, _ in entry_points} - matched):
            raise InputError(
                f"The study has another point for {mismatched[0]} than trials/{mismatched[0]}/trial.json, so it "
                f"belongs to another run. Put the run's own back, or move this one away: {REBUILD_HINT}."
            )

    def _fail_unfinished(self) -> None:
        """Fail the unfinished entries: nothing is at work while a study is opened."""
        while self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self.study.tell(self.study.ask(), state=TrialState.FAIL)
        for entry in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(entry.number, state=TrialState.FAIL)

    def _rebuild(self, entries: list[FrozenTrial]) -> None:
        """Write the study anew with these entries. Whenever it is cut off, one whole study is left."""
        spare = self._create(self.name + SPARE)
        spare.add_trials(entries)
        spare.set_user_attr("whole", True)
        self._restore_spare()
        self.study = self._create(self.name)

    def _restore_spare(self) -> None:
        spare = self.name + SPARE
        names = optuna.get_all_study_names(self.storage)
        if spare not in names:
            return
        if optuna.load_study(study_name=spare, storage=self.storage).user_attrs.get("whole"):
            if self.name in names:
                optuna.delete_study(study_name=self.name, storage=self.storage)
            optuna.copy_study(
                from_study_name=spare, from_storage=self.storage, to_storage=self.storage, to_study_name=self.name
            )
        optuna.delete_study(study_name=spare, storage=self.storage)

    def _record_missing(self, rows: Rows) -> None:
        """Add the results that the study was never told, or has lost."""
        ids = {_id(entry) for entry in self._entries()}
        missing = {name: row for name, row in rows.items() if name not in ids or self._state(row) in ENDED}
        for trial_id, row in sorted(missing.items(), key=lambda item: (item[1].get("started") or "", item[0])):
            self._end(self._begin(self.points[trial_id], trial_id=trial_id), row)
        self.final_ids.update(missing)
        if count := len(missing.keys() - ids):
            self.notes.append(f"The study lacked {count} finished trials; they were added from their results.")

    def _observe(self, observed: Sequence[Observation]) -> None:
        sources = {entry.user_attrs.get("source") for entry in self._entries()}
        for observation in observed:
            self.sampler.history.add(key(observation.point))
            if observation.source not in sources:
                trial = self._begin(observation.point, source=observation.source)
                self._constrain(trial, observation.excesses)
                self.study.tell(trial, list(observation.values))

    def _begin(self, point: Point, **attrs: str) -> Trial:
        """Start a trial at a point that was not drawn."""
        self.study.enqueue_trial(self.search.values_by_name(point), user_attrs=attrs)
        self.sampler.drawing = False
        try:
            trial = self.study.ask()
            if self.search.sampler == "nsga2":
                # Asking for it makes the trial one of the present generation, without which it is no parent.
                _ = trial.relative_params
            self._suggest(trial)
        finally:
            self.sampler.drawing = True
        return trial

    def _suggest(self, trial: Trial) -> Point:
        return self.search.walk(lambda name, dimension: dimension.snap(suggest(trial, name, dimension)))

    def ask(self, free: Sequence[str]) -> tuple[str, Point] | None:
        """Begin the next trial.

        Args:
            free: ids of the trials that have yet to run, in order.

        Returns:
            Its id with its point, as path -> value; None where a grid has no further one.

        Raises:
            InputError: no point can be drawn.
            StudyFailed: the study cannot be read or written.
        """
        with study_errors():
            if trial_id := next((name for name in free if name in self.reruns), None):
                point = self.reruns[trial_id]
                self.running[trial_id] = self._begin(point, trial_id=trial_id)
                del self.reruns[trial_id]
                return trial_id, point
            trial_id = free[0]
            self.queue = [point for point in self.queue if key(point) not in self.sampler.history]
            if self.queue:
                point = self.queue[0]
                self.running[trial_id] = self._begin(point, trial_id=trial_id)
            elif self.search.sampler == "grid":
                return None
            else:
                point = self._draw(trial_id)
        self.points[trial_id] = point
        self.sampler.history.add(key(point))
        return trial_id, point

    def _draw(self, trial_id: str) -> Point:
        trial = self.study.ask()
        try:
            point = self._suggest(trial)
        except InputError:
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        # Written last: an entry with an id has its whole point.
        trial.set_user_attr("trial_id", trial_id)
        self.running[trial_id] = trial
        return point

    def tell(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Record how a trial ended, once. Raises StudyFailed, and may then be called again."""
        if trial := self.running.get(trial_id):
            with study_errors():
                self._end(trial, result)
            del self.running[trial_id]

    def record(self, trial_id: str, values: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Record a trial that the study did not draw, once, where it lies in the space. Raises StudyFailed."""
        point = self.search.locate(values)
        if point is None or trial_id in self.final_ids:
            return
        with study_errors():
            self._end(self._begin(point, trial_id=trial_id), result)
        self.final_ids.add(trial_id)
        self.points[trial_id] = point

    def _end(self, trial: Trial, result: Mapping[str, Any]) -> None:
        state = self._state(result)
        if (status := result.get("status")) != "completed":
            trial.set_user_attr("status", str(status or "died"))
        if state == TrialState.PRUNED:
            for name, value in {
                "reason": result.get("reason"),
                "updates": result.get("updates", result.get("step")),
                "tokens": result.get("tokens"),
            }.items():
                trial.set_user_attr(name, value)
        if state == TrialState.COMPLETE:
            self._constrain(trial, [constraint.excess(result) for constraint in self.constraints])
        self.study.tell(trial, self._values(result), state=state)

    def _constrain(self, trial: Trial, excesses: Sequence[float]) -> None:
        """Tell the sampler by how much each constraint is broken; GP also of the requirements."""
        if self.search.sampler == "gp":
            point = {path_of(name): value for name, value in trial.params.items()}
            for requirement, excess in self.sampler.rules.excesses(point).items():
                trial.set_constraint(requirement, excess)
        for constraint, excess in zip(self.constraints, excesses, strict=True):
            trial.set_constraint(str(constraint), excess)

    def _state(self, result: Mapping[str, Any]) -> TrialState:
        if result.get("status") == "stopped":
            return TrialState.PRUNED
        return TrialState.COMPLETE if self._values(result) else TrialState.FAIL

    def _values(self, result: Mapping[str, Any]) -> list[float] | None:
        """Return the goals of a completed trial; None for any other, and where one of them is no finite number."""
        values = [result.get(goal) for goal in self.goals]
        finite = [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
        return finite if result.get("status") == "completed" and len(finite) == len(values) else None

    def close(self, rows: Rows = MappingProxyType({})) -> None:
        """End every trial that still runs: by its row, or failed, and then its point is queued on the next opening."""
        for trial_id in list(self.running):
            with suppress(StudyFailed):
                self.tell(trial_id, rows.get(trial_id) or {"status": PAUSED})


def _id(entry: FrozenTrial) -> str:
    return str(entry.user_attrs.get("trial_id", ""))


def _without_result(entry: FrozenTrial) -> FrozenTrial:
    """Return an entry without its result, with the point of its id: its trial has no such result any more."""
    return create_trial(
        state=TrialState.FAIL,
        params=entry.params,
        distributions=entry.distributions,
        user_attrs={**entry.user_attrs, "status": DELETED},
    )
