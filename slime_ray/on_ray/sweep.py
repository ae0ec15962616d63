"""A sweep from an experiment to its result files, and the same sweep gone on with after any interruption."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import ray
from optuna.storages import BaseStorage
from ray import cloudpickle, tune
from ray.tune.error import TuneError
from rich.console import Console

from slime_ray.config.experiment import Experiment, Trial
from slime_ray.config.points import with_values
from slime_ray.errors import INTERRUPTED, InputError, Interrupted, RunError
from slime_ray.evaluation.verdict_cache import VERDICTS, Verdicts
from slime_ray.on_ray.cluster_state import alive_nodes
from slime_ray.on_ray.connection import connected, last_line
from slime_ray.on_ray.monitor import Monitor
from slime_ray.on_ray.plan import TrialPlan, lost_values, own_rows, seed_of
from slime_ray.on_ray.preflight import examine, print_findings, refuse
from slime_ray.on_ray.prepare import prepare_on_cluster
from slime_ray.on_ray.progress import Callback, Progress, print_line
from slime_ray.on_ray.resources import BudgetMeter, concurrent_trials
from slime_ray.on_ray.search import StudyFailed, StudySearch, study_errors, study_storage
from slime_ray.on_ray.stopping import past_reports
from slime_ray.on_ray.watch import PlacementTimeout, ShutdownTimeout, Watch
from slime_ray.on_ray.workers import WorkerContext, tune_function
from slime_ray.runs import results
from slime_ray.runs.earlier_runs import EarlierTrials, Observation, earlier_runs, refuse_other_data
from slime_ray.runs.folder import Start, failures, lock_run, log_file, now, refuse_other_stages
from slime_ray.runs.inputs import digests
from slime_ray.runs.instructions import FOLDER, Instructions, forget_stops
from slime_ray.runs.pareto import best_rows
from slime_ray.runs.status import announce, announce_sweep, write_status
from slime_ray.runs.store import RunStore
from slime_ray.training import attempts
from slime_ray.training.outcome import CHECKPOINTS, MODEL, one_sentence, record_failure

HEAVY = (CHECKPOINTS, MODEL)
"""Folders of a trial that the driver has no use for."""
logger = logging.getLogger("slime_ray.sweep")


@dataclass(frozen=True)
class Sweep:
    """What its parts have in common.

    run: its folder in the driver's copy of the storage. search_storage: of the Optuna studies. dropped: trials whose
    models are deleted.
    """

    experiment: Experiment
    storage: RunStore
    run: Path
    manifest: dict[str, Any]
    search_storage: BaseStorage | None
    seed: int
    console: Console
    dropped: set[str] = field(default_factory=set)

    def save(self) -> None:
        """Bring what the driver has written to the storage."""
        with self.log_store_errors("is not in the storage yet"):
            self.storage.push_files(self.run)

    def fetch(self, trial_id: str) -> None:
        """Bring a trial's results here."""
        with self.log_store_errors(f"has {trial_id}, which cannot be read yet"):
            self.storage.pull(self.run / "trials" / trial_id, skip=HEAVY)

    @contextmanager
    def log_store_errors(self, message: str) -> Iterator[None]:
        """Log errors of the store: no trial has to end for them, and at the end everything is asked for again.

        Tune would take an error of its callbacks for one of the trial's, and train a finished trial again.
        """
        try:
            yield
        except (OSError, InputError) as error:
            logger.warning("%s %s: %s", self.run.name, message, one_sentence(error))


def run_sweep(
    experiment: Experiment,
    *,
    source: Path | str,
    storage: str | Path,
    seed: int,
    start: Start,
    console: Console,
    study: str | None = None,
) -> Path:
    """Run what of `experiment` has not finished, and return the run's local folder.

    source: the YAML it came from, or its text, kept beside the results. storage: a folder, or an address such as
    s3://bucket/runs. study: address of a database for the search's studies, instead of a file in the run's folder.
    Raises InputError before anything is started (a name that is taken, a run that cannot be resumed, storage that
    cannot be written, a model or data that cannot be used), and RunError when it ends before all trials have.
    """
    run_store = RunStore.of(str(storage), "driver")
    run_store.check()
    run = run_store.root / experiment.name
    with (
        run_store.claim_folder(run, skip=HEAVY),
        lock_run(
            run, experiment, source=source, seed=seed, start=start, study=study, remove=run_store.remove
        ) as manifest,
        run_store.raise_store_errors(),
        log_file(run / "log.txt"),
        announce_sweep(run),
    ):
        if forget_stops(run):
            run_store.push(run / FOLDER, prune=True)
        experiment = with_extensions(experiment, run)
        manifest["experiment"]["budget"]["trials"] = experiment.budget.trials
        search_storage = study_storage(run, study) if experiment.searches else None
        sweep = Sweep(experiment, run_store, run, manifest, search_storage, seed, console)
        if "earlier" not in manifest:
            # Kept with the run, which goes on with them whatever becomes of the runs that they came from.
            manifest["earlier"] = [asdict(earlier_run) for earlier_run in earlier_runs(experiment)]
        with connected():
            findings, early_stopping = examine(experiment, storage=run_store), experiment.early_stopping
            refuse(findings)
            print_findings([finding for finding in findings if finding.level == "warning"], console)
            monitor = Monitor.start(early_stopping, past_reports(run) if early_stopping else ())
            context = WorkerContext(
                RunStore.of(str(storage), "trials"), run.name, experiment.resources, experiment.faults, monitor,
                tuple(experiment.trackers), digests(experiment),
            )  # fmt: skip
            try:
                _run(sweep, context)
            finally:
                monitor.stop()
                # Before it is brought to the storage.
                announce(run, ended=True)
                if results.finished_trials(run):
                    sweep.save()
        with run_store.raise_store_errors():
            run_store.push_files(run)
    return run


def _run(sweep: Sweep, context: WorkerContext) -> None:
    experiment, run, manifest = sweep.experiment, sweep.run, sweep.manifest
    # What is cut off while the stages are made is gone on with as well.
    sweep.save()
    stages = prepare_on_cluster(experiment, context, sweep.console, lambda metrics: announce(run, stages=metrics))
    refuse_other_stages(run, manifest, stages["hashes"])
    manifest |= stages
    earlier_sweeps = [EarlierTrials.from_json(earlier_run) for earlier_run in manifest["earlier"]]
    refuse_other_data(earlier_sweeps, manifest["hashes"])
    for earlier_run in earlier_sweeps:
        print_line(sweep.console, str(earlier_run))
    with sweep.storage.raise_store_errors():
        results.write_manifest(run, manifest)
        _close_attempts(sweep)
    sweep.save()
    plan = _plan(sweep, [trial for earlier_run in earlier_sweeps for trial in earlier_run.trials])
    meter = BudgetMeter(
        experiment, run=run, verdicts=Verdicts(context.storage.root / VERDICTS, run=run.name), now=time.monotonic()
    )
    meter.update([], time.monotonic())
    spent_part = meter.over()
    reason = meter.sentence(spent_part) if spent_part else None
    if plan.missing() and not spent_part:
        with Progress(console=sweep.console, total=plan.total, finished=len(plan.rows)) as progress:
            watch = Watch(
                experiment, run=run, storage=sweep.storage, monitor=context.monitor, plan=plan, progress=progress,
                meter=meter, on_extend=partial(_keep_extension, sweep),
            )  # fmt: skip
            try:
                with watch.interrupts_as_orders():
                    _fit(sweep, plan, context, [progress, Recorder(sweep, plan), watch])
            except PlacementTimeout as error:
                reason = f"no trial found a place for {error}"
            except ShutdownTimeout:
                logger.warning("Some trials did not leave in time; they were ended and go on from their checkpoints.")
            except StudyFailed as error:
                reason = error.reason
            except (TuneError, OSError) as error:
                logger.exception("Ray Tune gave up.")
                reason = f"Ray Tune gave up ({last_line(error)})"
            finally:
                watch.clear()
                plan.close(results.finished_trials(run))
                with sweep.log_store_errors("cannot say how it stands"):
                    write_status(
                        run, finished=progress.finished, total=progress.total, trials={}, spent=meter.spent.as_json()
                    )
            reason, spent_part = reason or watch.leave_reason, watch.spent
    with sweep.storage.raise_store_errors():
        sweep.storage.pull(run / "trials", skip=HEAVY)
        results.consolidate(run)
        rows = results.finished_trials(run)
        drop_models(sweep, plan.rows)
        # What Ray Tune keeps for a restore of its own.
        sweep.storage.remove(run / "ray")
        # A trial that ended may have no row: where it could not speak for itself, and nothing could be written for it.
        missing = bool(plan.missing() or plan.rows.keys() - rows.keys())
        ended_by = spent_part if missing else "trials" if experiment.search else None
        outcome = {
            "failed_trials": failures(rows),
            "interruptions": interruptions(run, rows),
            "spent": meter.spent.as_json(),
            "ended_by": ended_by and f"budget.{ended_by}",
        }
        results.write_manifest(run, manifest | outcome | {"finished": None if missing else now()})
    if missing:
        # Time is counted anew; of all else there is nothing left.
        advice = (
            f"Raise it with --set budget.{spent_part}=..., and give" if spent_part and spent_part != "hours" else "Give"
        )
        raise (Interrupted if reason == INTERRUPTED else RunError)(
            f"The sweep ended with {len(rows)} of {plan.total} trials done{f', since {reason}' if reason else ''}. "
            f"They are kept in {sweep.storage.display_address}/{run.name}. {advice} the same command with --resume to "
            "run the rest."
        )
    if ended_by:
        print_line(sweep.console, f"Ended by budget.{ended_by}; {meter.spent}.")


def with_extensions(experiment: Experiment, run: Path) -> Experiment:
    """Add the trials by which the search was extended while it ran, which the file knows nothing of.

    Once its winners are confirmed the search is over, and what was asked for then was refused.
    """
    extensions, budget = Instructions.read(run).extensions, experiment.budget.trials
    is_over = any(row["phase"] == "confirm" for row in results.finished_trials(run).values())
    while experiment.search and not is_over and (trials := extensions.get(budget, 0)) > 0:
        budget += trials
    return experiment.model_copy(update={"budget": experiment.budget.model_copy(update={"trials": budget})})


def _keep_extension(sweep: Sweep, trials: int) -> None:
    """Add the search's further trials to the manifest, as if the run had been extended after its end."""
    budget = sweep.manifest["experiment"]["budget"]
    budget["trials"] += trials
    with sweep.log_store_errors("has a manifest that is not up to date"):
        results.write_manifest(sweep.run, sweep.manifest)
        sweep.save()


def _close_attempts(sweep: Sweep) -> None:
    """End attempts that an earlier sweep left open, as interrupted: their trials were not at fault."""
    for folder in (sweep.run / "trials").glob("*/"):
        if not (folder / "trial.json").is_file():
            attempts.note(folder, ended="interrupted")
            sweep.storage.push_files(folder)


def interruptions(run: Path, rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List trials begun more than once: how each attempt but the last ended, and what was computed twice."""
    return [
        {
            "trial_id": trial_id,
            "ended": [attempt.ended for attempt in trial_attempts[:-1]],
            "faults": [attempt.fault for attempt in trial_attempts if attempt.fault],
            "lost_seconds": round(sum(attempt.lost_seconds for attempt in trial_attempts[:-1]), 1),
        }
        for trial_id in rows
        if len(trial_attempts := attempts.read(run / "trials" / trial_id)) > 1
    ]


def _plan(sweep: Sweep, observed: list[Observation]) -> TrialPlan:
    experiment, run, search_storage, seed = sweep.experiment, sweep.run, sweep.search_storage, sweep.seed
    rows = {
        trial_id: {**row, "values": json.loads(row["overrides"] or "{}")}
        for trial_id, row in results.finished_trials(run).items()
    }
    studies: dict[str, StudySearch] = {}
    lost, study = lost_values(run, rows), sweep.manifest["study"]["name"]
    for part in experiment.searches:
        if search_storage is None:
            break
        with study_errors():
            studies[part.label] = StudySearch(
                search=part.search,
                base=with_values(experiment.base, part.set),
                goals=experiment.goals,
                constraints=experiment.limits,
                storage=search_storage,
                name=f"{study}-{part.label}" if part.label else study,
                trials=part.trials,
                seed=seed_of(part.label, seed),
                rows=own_rows(part, rows),
                lost={name: part.point(values) for name, values in lost.items() if part.owns(name)},
                observed=observed,
            )
        for note in studies[part.label].notes:
            logger.info(note)
            print_line(sweep.console, note)
    plan = TrialPlan(experiment, studies=studies, rows=rows, seed=seed)
    for clone in Instructions.read(run).clones:
        plan.add(clone)
    return plan


def _fit(sweep: Sweep, plan: TrialPlan, context: WorkerContext, callbacks: list[tune.Callback]) -> None:
    experiment = sweep.experiment
    context_bytes = cloudpickle.dumps(context)

    def trial(config: dict[str, Any]) -> None:
        tune_function(config, context=context_bytes)

    resources, faults = experiment.resources, experiment.faults
    request = {"cpu": resources.cpu_per_worker, "gpu": resources.gpu_per_worker}
    if resources.workers > 1:
        # The driver of its group holds no CPU, and a place on the head where that offers some.
        request = {"cpu": 0, **({"trial_drivers": 1} if "trial_drivers" in ray.cluster_resources() else {"memory": 1})}
    tuner = tune.Tuner(
        tune.with_resources(trial, request),
        tune_config=tune.TuneConfig(
            search_alg=plan,
            # The plan says when it is done: people may ask for clones while it runs.
            num_samples=-1,
            max_concurrent_trials=_side_by_side(experiment),
            # Trials end themselves, also where they are stopped, so an actor is always free for the next one.
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"]["trial_id"],
            trial_dirname_creator=lambda trial: trial.config["trial"]["trial_id"],
        ),
        run_config=tune.RunConfig(
            name=datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
            storage_path=sweep.storage.address(sweep.run / "ray"),
            # Whether another attempt is worth it is decided from what is known of the earlier ones, by the trial.
            failure_config=tune.FailureConfig(max_failures=faults.retries + faults.preemptions + 3),
            callbacks=callbacks,
            verbose=0,
        ),
    )
    tuner.fit()


def _side_by_side(experiment: Experiment) -> int | None:
    """Return the limit of trials at a time; None where Tune finds it, which knows single workers but no groups."""
    resources = experiment.resources
    if resources.concurrent_trials != "auto":
        return resources.concurrent_trials
    return None if resources.workers == 1 else max(1, concurrent_trials(resources, alive_nodes()))


def drop_models(sweep: Sweep, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Delete the search's models that are not among the best that budget.checkpoints keeps."""
    limit = sweep.experiment.budget.checkpoints
    if limit is None:
        return
    search_rows = [row for row in rows.values() if row["phase"] == "search"]
    best = {row["trial_id"] for row in best_rows(search_rows, sweep.experiment.goals, sweep.experiment.limits)[:limit]}
    for trial_id in {row["trial_id"] for row in search_rows} - best - sweep.dropped:
        sweep.storage.remove(sweep.run / "trials" / trial_id / MODEL)
        sweep.dropped.add(trial_id)


class Recorder(Callback):
    """Keeps the run's result files up to date, and writes the row of a trial whose process died."""

    EVERY_SECONDS = 30.0

    def __init__(self, sweep: Sweep, plan: TrialPlan):
        self.sweep, self.plan = sweep, plan
        self.last_save = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep the models of the best; rewrite the consolidated files, now and then."""
        self.sweep.fetch(trial.config["trial"]["trial_id"])
        with self.sweep.log_store_errors("has models and tables that are not up to date"):
            drop_models(self.sweep, self.plan.rows)
            if time.monotonic() - self.last_save > self.EVERY_SECONDS:
                results.consolidate(self.sweep.run)
                self.sweep.save()
                self.last_save = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """End the sweep where the study failed, without which no search goes on: an error here ends no trial."""
        if self.plan.failure is not None:
            raise self.plan.failure

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the row of a trial that cannot speak for itself any more; it keeps its place in every table."""
        spec = Trial.model_validate(trial.config["trial"])
        run = self.sweep.run
        folder = run / "trials" / spec.trial_id
        self.sweep.fetch(spec.trial_id)
        with self.sweep.log_store_errors(f"has no row of {spec.trial_id} yet"):
            if results.finished_trial(folder) is None:
                reason = last_line(trial.get_error() or "its process died")
                record_failure(spec, run, reason, workers=self.sweep.experiment.resources.workers)
                self.sweep.storage.push_files(folder)
