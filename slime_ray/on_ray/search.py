"""StudySearch: Ray Tune's OptunaSearch over a study that outlives the process, with its gaps closed."""

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from slime_ray.errors import InputError, RunError
from slime_ray.experiment import Search, point_values
from slime_ray.results import redact
from slime_ray.run_folder import STUDY
from slime_ray.space import Dimension
from slime_ray.training.outcome import one_sentence

MAX_DRAWS = 1000
PAUSED = "paused"
STOPPED = "stopped"
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
        failed = f"study's database failed ({redact(one_sentence(error))})"
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
    where = redact(url)
    try:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (ImportError, NoSuchModuleError) as error:
        reason, way = str(error).splitlines()[0], "Install its driver, such as psycopg[binary] for postgresql://"
    except ArgumentError:
        reason, way = "it is no such address", "Write it as postgresql://user:password@host/database"
    except (SQLAlchemyError, RuntimeError) as error:
        reason, way = str(error).splitlines()[0], "Start the database or correct the address"
    raise InputError(f"The study's database {where} cannot be used: {redact(reason).rstrip('.')}. {way}.")


class StudySearch(OptunaSearch):
    """Multi-objective TPE over the experiment's search, in a persistent study.

    What it does that OptunaSearch does not: every requirement between knobs holds for every point it hands out; a trial
    that errored, has no finite goal or did not complete is told FAIL instead of COMPLETE or nothing, and one that was
    stopped PRUNED with what it reached, so that the sampler knows where not to look and no front holds it; a reopened
    study must have the same goals and space; of its unfinished trials, those that have a row by now are told how they
    ended, and the others FAIL, and their points are queued again under the same names; known points are queued once,
    however often the study is opened.

    rows: of the trials that have finished, by trial id, as in trials.parquet. name: of the study in the storage.

    seed: makes the draws repeatable when trials run one at a time. Side by side, what a draw knows depends on which
    trials have finished by then.
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
        name: str = STUDY,
    ):
        self.search, self.base, self.goals = search, base, dict(goals)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        existing = _existing_study(storage, name, self.goals, search)
        sampler = optuna.samplers.TPESampler(
            # A resumed search must not draw again what it drew before it was interrupted.
            seed=seed + 7919 * len(existing),
            n_startup_trials=min(10, max(4, trials // 4)),
            multivariate=True,
            constant_liar=True,
        )
        self.distributions = {path: distribution(dimension) for path, dimension in search.dimensions.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(
                space=self.distributions,
                metric=list(goals),
                mode=[SHORT[direction] for direction in goals.values()],
                sampler=sampler,
                study_name=name,
                storage=storage,
            )
        self.study: optuna.Study = self._ot_study  # type: ignore[assignment]
        self._continue(existing, rows)

    def _continue(self, existing: list[FrozenTrial], rows: Mapping[str, Mapping[str, Any]]) -> None:
        self.study.set_user_attr("goals", self.goals)
        queued = {frozen.user_attrs.get("again") for frozen in existing}
        self.reserved: set[str] = set()
        for frozen in existing:
            name = str(frozen.user_attrs.get("trial_id", ""))
            if frozen.state == TrialState.RUNNING and name in rows:
                # It finished, and the sweep died before the study heard of it.
                self._tell(optuna.Trial(self.study, frozen._trial_id), rows[name])
                continue
            if frozen.state == TrialState.RUNNING:
                self.study.tell(frozen.number, state=TrialState.FAIL)
            elif frozen.state == TrialState.WAITING and name:
                self.reserved.add(name)
            paused = frozen.state == TrialState.FAIL and frozen.user_attrs.get("status") == PAUSED
            if (frozen.state == TrialState.RUNNING or paused) and frozen.params and frozen.number not in queued:
                named = {"trial_id": name} if name else {}
                self.study.enqueue_trial(frozen.params, user_attrs={"again": frozen.number, **named})
                self.reserved.update(named.values())
        for point in self.search.known_points:
            self.study.enqueue_trial(dict(point), skip_if_exists=True)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next point that meets every requirement, as {path: value}.

        Raises InputError when none can be drawn, and StudyFailed.
        """
        for _ in range(MAX_DRAWS):
            with asking():
                trial = self.study.ask(fixed_distributions=self.distributions)
                values = point_values(self.search, self.base, trial.params)
                if all(requirement.excess(values) <= 0 for requirement in self.search.requirements):
                    self._ot_trials[trial_id] = trial
                    return dict(trial.params)
                trial.set_user_attr("refused", "breaks a requirement")
                self.study.tell(trial, state=TrialState.FAIL)
        raise InputError(
            f"{MAX_DRAWS} draws in a row broke {' or '.join(map(repr, self.search.require))}: "
            "the requirements leave almost nothing of the space. Narrow the ranges to where they hold."
        )

    def name(self, trial_id: str, free: Sequence[str]) -> str:
        """Which of our trials a point becomes: the one that it was before an interruption, else a free one.

        Raises StudyFailed.
        """
        trial = self._ot_trials[trial_id]
        name: str = trial.user_attrs.get("trial_id", "")
        if name not in free:
            name = next((other for other in free if other not in self.reserved), free[0])
        self.reserved.discard(name)
        with asking():
            trial.set_user_attr("trial_id", name)
        return name

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended, once. Raises StudyFailed."""
        if trial_id in self._completed_trials:
            return
        trial, result = self._ot_trials[trial_id], result or {}
        with asking():
            if error or result.get("status") != "completed":
                trial.set_user_attr("status", str(result.get("status", "died")))
            self._tell(trial, {} if error else result)
        self._completed_trials.add(trial_id)

    def know(self, trial_id: str, values: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Tell the study of a trial that it did not draw, once, where that lies in its space. Raises StudyFailed."""
        goals = [result.get(goal) for goal in self.goals]
        inside = values.keys() == self.search.dimensions.keys() and all(
            dimension.contains(values[path]) for path, dimension in self.search.dimensions.items()
        )
        if not inside or result.get("status") != "completed" or any(goal is None for goal in goals):
            return
        with asking():
            if any(known.user_attrs.get("trial_id") == trial_id for known in self.study.get_trials(deepcopy=False)):
                return
            self.study.add_trial(
                optuna.trial.create_trial(
                    params=dict(values),
                    distributions=self.distributions,
                    values=[float(goal) for goal in goals if goal is not None],
                    user_attrs={"trial_id": trial_id},
                )
            )

    def _tell(self, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
        values = [result.get(goal) for goal in self.goals]
        finite = [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
        if result.get("status") == "completed" and len(finite) == len(values):
            self.study.tell(trial, finite)
        elif result.get("status") == STOPPED:
            reached = {"updates": result.get("updates", result.get("step")), "tokens": result.get("tokens")}
            for name, value in {"reason": result.get("reason"), **reached}.items():
                trial.set_user_attr(name, value)
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, state=TrialState.FAIL)


def distribution(dimension: Dimension) -> BaseDistribution:
    """Optuna's form of a dimension."""
    if dimension.choice is not None:
        return CategoricalDistribution(dimension.choice)
    low, high = dimension.bounds
    if dimension.integer is not None:
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=dimension.log_uniform is not None)


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
    wanted = {path: distribution(dimension) for path, dimension in search.dimensions.items()}
    for trial in trials:
        if trial.distributions and trial.distributions != wanted:
            changed = sorted(set(trial.distributions) ^ set(wanted)) or [
                path for path in wanted if trial.distributions[path] != wanted[path]
            ]
            raise InputError(
                f"The study was started with another search space: {', '.join(changed)} changed. "
                "Give the run a new --name."
            )
    return list(trials)
