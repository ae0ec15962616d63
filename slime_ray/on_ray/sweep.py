"""A sweep from an experiment to its result files, and the same sweep gone on with after any interruption."""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from ray import cloudpickle, tune
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from slime_ray import results
from slime_ray.errors import RunError
from slime_ray.experiment import Experiment, Trial
from slime_ray.on_ray.connection import connected
from slime_ray.on_ray.monitor import Monitor
from slime_ray.on_ray.nodes import alive_nodes
from slime_ray.on_ray.place import Place
from slime_ray.on_ray.plan import TrialPlan, best_rows
from slime_ray.on_ray.preflight import examine, print_findings, refuse
from slime_ray.on_ray.prepare import prepare_on_cluster
from slime_ray.on_ray.progress import Progress
from slime_ray.on_ray.resources import concurrent_trials
from slime_ray.on_ray.search import StudySearch, study_storage
from slime_ray.on_ray.trial import tune_function
from slime_ray.on_ray.watch import NoPlace, Watch
from slime_ray.run_folder import Start, failures, log_file, now, taken
from slime_ray.training import attempts
from slime_ray.training.outcome import MODEL, one_sentence, record_failure

logger = logging.getLogger("slime_ray.sweep")


def run_sweep(
    experiment: Experiment,
    *,
    source: Path,
    storage: Path,
    seed: int,
    start: Start,
    console: Console,
    study: str | None = None,
) -> Path:
    """Run everything of `experiment` that has not finished, and return the run's folder.

    source: the YAML it came from, kept beside the results. study: address of a database for the search's memory,
    instead of a file in the run's folder. Raises InputError before anything is started (a name that is
    taken, a run that cannot be resumed, storage that cannot be written, a model or data that cannot be used), and
    RunError when it ends before all trials have.
    """
    storage = storage.resolve()
    run = storage / experiment.name
    with (
        taken(run, experiment, source=source, seed=seed, start=start, study=study) as manifest,
        log_file(run / "log.txt"),
    ):
        memory = study_storage(run, study) if experiment.search else None
        with connected():
            _examine_and_run(experiment, run, manifest, memory, seed, console)
    return run


def _examine_and_run(
    experiment: Experiment,
    run: Path,
    manifest: dict[str, Any],
    memory: BaseStorage | None,
    seed: int,
    console: Console,
) -> None:
    storage = run.parent
    findings = examine(experiment, storage=storage)
    refuse(findings)
    print_findings([finding for finding in findings if finding.level == "warning"], console)
    monitor = Monitor.start(experiment.early_stopping)
    place = Place(run, storage / ".stages", experiment.resources, experiment.faults, monitor)
    try:
        _run(experiment, place, manifest, memory, seed, console)
    finally:
        monitor.stop()


def _run(
    experiment: Experiment,
    place: Place,
    manifest: dict[str, Any],
    memory: BaseStorage | None,
    seed: int,
    console: Console,
) -> None:
    run = place.run
    manifest |= prepare_on_cluster(experiment, place, console)
    results.write_manifest(run, manifest)
    _close_attempts(run)
    plan = _plan(experiment, run, manifest, memory, seed)
    total, early = len(plan.rows) + plan.most_left(), None
    if plan.missing():
        with Progress(console=console, total=total, finished=len(plan.rows)) as progress:
            watch = Watch(experiment, run=run, monitor=place.monitor, plan=plan, progress=progress)
            try:
                with watch.interrupts_as_orders():
                    _fit(experiment, plan, place, [progress, Recorder(experiment, run, plan), watch])
            except NoPlace as error:
                early = f"no trial found a place: {error}"
            except (SQLAlchemyError, StorageInternalError) as error:
                early = f"the study's database failed ({one_sentence(error)})"
            finally:
                watch.clear()
            early = early or watch.leaving
    results.consolidate(run)
    rows = results.finished_trials(run)
    drop_models(experiment, run, plan.rows)
    manifest["failed_trials"] = failures(rows)
    manifest["interruptions"] = interruptions(run, rows)
    if plan.missing() or early:
        results.write_manifest(run, manifest)
        raise RunError(
            f"The sweep ended with {len(rows)} of {total} trials done{f', since {early}' if early else ''}. "
            f"They are kept in {run}. Give the same command with --resume to run the rest."
        )
    results.write_manifest(run, manifest | {"finished": now()})


def _close_attempts(run: Path) -> None:
    """Attempts that an earlier sweep left open ended with it, through no fault of their trials."""
    for folder in (run / "trials").glob("*/"):
        if not (folder / "trial.json").is_file():
            attempts.note(folder, ended="interrupted")


def interruptions(run: Path, rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The trials that were begun more than once: how each attempt but the last ended, and what was computed twice."""
    found = []
    for trial_id in rows:
        made = attempts.read(run / "trials" / trial_id)
        if len(made) > 1:
            found.append(
                {
                    "trial_id": trial_id,
                    "ended": [attempt.ended for attempt in made[:-1]],
                    "lost_seconds": round(sum(attempt.lost_seconds for attempt in made[:-1]), 1),
                }
            )
    return found


def _plan(
    experiment: Experiment, run: Path, manifest: Mapping[str, Any], memory: BaseStorage | None, seed: int
) -> TrialPlan:
    rows = {
        trial_id: {**row, "values": json.loads(row["settings"])}
        for trial_id, row in results.finished_trials(run).items()
    }
    study = None
    if experiment.search is not None and memory is not None:
        study = StudySearch(
            search=experiment.search,
            base=experiment.base,
            goals=experiment.goals,
            storage=memory,
            name=manifest["study"]["name"],
            trials=experiment.budget.trials,
            seed=seed,
            rows=rows,
        )
    return TrialPlan(experiment, study=study, rows=rows, seed=seed)


def _fit(experiment: Experiment, plan: TrialPlan, place: Place, callbacks: list[tune.Callback]) -> None:
    packed = cloudpickle.dumps(place)

    def trial(config: dict[str, Any]) -> None:
        tune_function(config, place=packed)

    wanted, faults = experiment.resources, experiment.faults
    one = wanted.workers == 1
    tuner = tune.Tuner(
        tune.with_resources(
            trial, {"cpu": wanted.cpu_per_worker, "gpu": wanted.gpu_per_worker} if one else _driver_resources()
        ),
        tune_config=tune.TuneConfig(
            search_alg=plan,
            num_samples=plan.most_left(),
            max_concurrent_trials=_side_by_side(experiment),
            # Trials end themselves, also where they are stopped, so an actor is always free for the next one.
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"]["trial_id"],
            trial_dirname_creator=lambda trial: trial.config["trial"]["trial_id"],
        ),
        run_config=tune.RunConfig(
            name=datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
            storage_path=str(place.run / "ray"),
            # Whether another attempt is worth it is decided from what is known of the earlier ones, by the trial.
            failure_config=tune.FailureConfig(max_failures=faults.retries + faults.preemptions + 3),
            callbacks=callbacks,
            verbose=0,
        ),
    )
    tuner.fit()


def _side_by_side(experiment: Experiment) -> int | None:
    """Trials at a time. Tune knows what trials of one worker hold; what groups of workers hold, it does not."""
    wanted = experiment.resources
    if wanted.concurrent_trials != "auto":
        return wanted.concurrent_trials
    return None if wanted.workers == 1 else max(1, concurrent_trials(wanted, alive_nodes()))


def _driver_resources() -> dict[str, float]:
    """What the driver of a trial of several workers holds: no CPU, and a place on the head where that offers some."""
    if "trial_drivers" in ray.cluster_resources():
        return {"cpu": 0, "trial_drivers": 1}
    return {"cpu": 0, "memory": 1}


def drop_models(experiment: Experiment, run: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Delete the trained models of the search that are not among the best that budget.checkpoints keeps."""
    keep = experiment.budget.checkpoints
    if keep is None:
        return
    found = [row for row in rows.values() if row["phase"] == "search"]
    best = {row["trial_id"] for row in best_rows(found, experiment.goals)[:keep]}
    for row in found:
        if row["trial_id"] not in best:
            shutil.rmtree(run / "trials" / row["trial_id"] / MODEL, ignore_errors=True)


class Recorder(tune.Callback):
    """Keeps the run's result files up to date, and writes the row of a trial whose process died."""

    EVERY_SECONDS = 30.0

    def __init__(self, experiment: Experiment, run: Path, plan: TrialPlan):
        self.experiment, self.run, self.plan = experiment, run, plan
        self.last = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Ray pickles callbacks for a restore of its own, which is never used here."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep the models of the best; rewrite the consolidated files, now and then."""
        drop_models(self.experiment, self.run, self.plan.rows)
        if time.monotonic() - self.last > self.EVERY_SECONDS:
            results.consolidate(self.run)
            self.last = time.monotonic()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that cannot speak for itself any more still has its place in every table."""
        ours = Trial.model_validate(trial.config["trial"])
        if ours.trial_id not in results.finished_trials(self.run):
            reason = str(trial.get_error() or "its process died").strip().splitlines()[-1]
            record_failure(ours, self.run, reason, workers=self.experiment.resources.workers)
