"""A sweep from an experiment to its result files, and the same sweep gone on with after any interruption."""

import json
import logging
import os
import platform
import queue
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console

from slime_ray import __version__, results
from slime_ray.errors import InputError, RunError
from slime_ray.experiment import Experiment, Trial
from slime_ray.on_ray.plan import TrialPlan
from slime_ray.on_ray.progress import Progress, steps
from slime_ray.on_ray.search import StudySearch, study_storage
from slime_ray.on_ray.trial import tune_function
from slime_ray.settings import Settings
from slime_ray.training.stages import prepare
from slime_ray.training.worker import blank_row, one_sentence, reset_process

VERSIONS = ("torch", "transformers", "peft", "accelerate", "datasets", "ray", "optuna", "numpy", "pandas", "tokenizers")
logger = logging.getLogger("slime_ray.sweep")


def run_sweep(
    experiment: Experiment, *, source: Path, storage: Path, seed: int, resume: bool, console: Console
) -> Path:
    """Run everything of `experiment` that has not finished, and return the run's folder.

    source: the YAML it came from, kept beside the results. Raises InputError before anything is started (a name that is
    taken, a run that cannot be resumed, storage that cannot be written, a model or data that cannot be used), and
    RunError when it ends before all trials have.
    """
    storage = storage.resolve()
    run, cache = storage / experiment.name, storage / ".stages"
    manifest = _resumed(run, experiment, seed) if resume else _fresh(run, experiment, source, seed)
    try:
        return _run(experiment, run, cache, manifest, seed, console)
    except InputError:
        # Nothing was started, so the name must stay free.
        if not resume and not results.finished_trials(run):
            shutil.rmtree(run)
        raise


def _run(experiment: Experiment, run: Path, cache: Path, manifest: dict[str, Any], seed: int, console: Console) -> Path:
    with _log_file(run / "log.txt"), _ray_instance():
        _check_resources(experiment)
        manifest |= _prepare(experiment, cache, console)
        results.write_manifest(run, manifest)
        plan = _plan(experiment, run, seed)
        total = len(plan.rows) + plan.most_left()
        if plan.missing():
            with Progress(console=console, total=total, finished=len(plan.rows)) as progress:
                _fit(experiment, plan, run, cache, [progress, Recorder(run)])
    results.consolidate(run)
    rows = results.finished_trials(run)
    manifest["failed_trials"] = _failures(rows)
    if plan.missing():
        results.write_manifest(run, manifest)
        raise RunError(
            f"The sweep ended with {len(rows)} of {total} trials done. They are kept in {run}. "
            "Give the same command with --resume to run the rest."
        )
    results.write_manifest(run, manifest | {"finished": _now()})
    return run


# ---------------------------------------------------------------------------------------------------------------------
# The run's folder


def _fresh(run: Path, experiment: Experiment, source: Path, seed: int) -> dict[str, Any]:
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        run.mkdir()
    except FileExistsError:
        raise InputError(
            f"{run} is already there. Give the run another name with --name, or go on with it with --resume."
        ) from None
    except OSError as error:
        raise InputError(f"{run} cannot be written: {error.strerror}. Give another place with --storage.") from None
    shutil.copyfile(source, run / "experiment.yaml")
    manifest = {
        "schema": results.RUN_SCHEMA,
        "name": experiment.name,
        "created": _now(),
        "finished": None,
        "command": sys.argv,
        "slime_ray": __version__,
        "versions": {"python": platform.python_version(), **_versions()},
        "host": {"node": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
        "experiment": experiment.model_dump(mode="json"),
        "fingerprint": experiment.fingerprint,
        "goals": experiment.goals,
        "seeds": experiment.seeds,
        "sweep_seed": seed,
        "judge": experiment.settings.evaluation.judge.name,
        "decoding": experiment.settings.evaluation.decoding.model_dump(mode="json"),
        "stability_version": results.STABILITY_VERSION,
        "failed_trials": [],
    }
    results.write_manifest(run, manifest)
    return manifest


def _resumed(run: Path, experiment: Experiment, seed: int) -> dict[str, Any]:
    if not run.is_dir():
        raise InputError(f"{run}: there is no such run to resume. Leave --resume out to start it.")
    manifest = results.read_manifest(run)
    if manifest.get("fingerprint") != experiment.fingerprint:
        raise InputError(
            f"{run} was started with other settings than this file and these --set give now. Resume it with the "
            f"experiment that it keeps, {run / 'experiment.yaml'}, or give the run another name with --name."
        )
    if manifest.get("sweep_seed") != seed:
        raise InputError(
            f"{run} was started with --seed {manifest.get('sweep_seed')}. Give the same seed to resume it."
        )
    return manifest | {"finished": None}


def _versions() -> dict[str, str]:
    found = {}
    for package in VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _failures(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: row.get(key) for key in ("trial_id", "status", "reason")}
        for row in rows.values()
        if row.get("status") != "completed"
    ]


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("slime_ray")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()


# ---------------------------------------------------------------------------------------------------------------------
# Ray


@contextmanager
def _ray_instance() -> Iterator[None]:
    """The Ray instance at RAY_ADDRESS or of this process, else one for this sweep alone."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    # Tune's newer output prints a box of its own even at verbose=0; the older one is silent.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **local)
    except ConnectionError as error:
        raise InputError(f"No Ray cluster answers at {os.environ.get('RAY_ADDRESS')}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_resources(experiment: Experiment) -> None:
    """Refuse a trial that no node could ever hold."""
    wanted = {"CPU": experiment.resources.cpu_per_worker, "GPU": experiment.resources.gpu_per_worker}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(kind, 0) >= amount for kind, amount in wanted.items()) for node in nodes):
        largest = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted}
        raise InputError(
            f"A trial asks for {wanted['CPU']:g} CPU and {wanted['GPU']:g} GPU, but the largest node has "
            f"{largest['CPU']:g} CPU and {largest['GPU']:g} GPU, so none could ever start. "
            "Lower resources.cpu_per_worker or resources.gpu_per_worker."
        )


def _threads(experiment: Experiment) -> int:
    return max(1, int(experiment.resources.cpu_per_worker))


def _prepare(experiment: Experiment, cache: Path, console: Console) -> dict[str, Any]:
    """Make the shared stages on the cluster, where the trials will run, and say how it goes."""
    clock = time.perf_counter()
    resources = {"num_cpus": experiment.resources.cpu_per_worker, "num_gpus": experiment.resources.gpu_per_worker}
    task: Any = ray.remote(prepare_stages).options(**resources)
    stream = task.remote(experiment.base, str(cache), _threads(experiment))
    made: dict[str, Any] = {}
    with console.status("stages") as status:
        try:
            for reference in stream:
                told = ray.get(reference)
                if "hashes" in told:
                    made = told
                    continue
                line = " ".join(
                    [told["doing"], steps(told), f"loss {told['loss']:.3f}" if "loss" in told else ""]
                ).strip()
                status.update(line)
                logger.info(line)
                if not console.is_terminal and "step" not in told:
                    console.print(line, highlight=False)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise RunError(f"The shared stages could not be made: {one_sentence(error.cause)}") from error
    return {"hashes": made["hashes"], "data": made["data"], "stage_seconds": time.perf_counter() - clock}


def prepare_stages(base: dict[str, Any], cache: str, threads: int) -> Iterator[dict[str, Any]]:
    """Ray task: yields progress, then the stages' hashes and the data's counts."""
    told: queue.Queue[dict[str, Any]] = queue.Queue()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            reset_process(seed=0, threads=threads)
            stages = prepare(Settings.model_validate(base), cache=Path(cache), report=lambda item: told.put(dict(item)))
            told.put({"hashes": stages.hashes, "data": stages.data})
        except BaseException as error:
            failed.append(error)
            told.put({})

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    while not failed:
        item = told.get()
        if item:
            yield item
        if "hashes" in item:
            return
    raise failed[0]


def _plan(experiment: Experiment, run: Path, seed: int) -> TrialPlan:
    rows = {
        trial_id: {**row, "values": json.loads(row["settings"])}
        for trial_id, row in results.finished_trials(run).items()
    }
    study = None
    if experiment.search is not None:
        study = StudySearch(
            search=experiment.search,
            base=experiment.base,
            goals=experiment.goals,
            storage=study_storage(run / "study.journal"),
            trials=experiment.budget.trials,
            seed=seed,
        )
    return TrialPlan(experiment, study=study, rows=rows, seed=seed)


def _fit(experiment: Experiment, plan: TrialPlan, run: Path, cache: Path, callbacks: list[tune.Callback]) -> None:
    threads = _threads(experiment)

    def trial(config: dict[str, Any]) -> None:
        tune_function(config, run=str(run), cache=str(cache), threads=threads)

    resources = {"cpu": experiment.resources.cpu_per_worker, "gpu": experiment.resources.gpu_per_worker}
    concurrent = experiment.resources.concurrent_trials
    tuner = tune.Tuner(
        tune.with_resources(trial, resources),
        tune_config=tune.TuneConfig(
            search_alg=plan,
            num_samples=plan.most_left(),
            max_concurrent_trials=None if concurrent == "auto" else concurrent,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"]["trial_id"],
            trial_dirname_creator=lambda trial: trial.config["trial"]["trial_id"],
        ),
        run_config=tune.RunConfig(
            name=datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
            storage_path=str(run / "ray"),
            callbacks=callbacks,
            verbose=0,
        ),
    )
    tuner.fit()


class Recorder(tune.Callback):
    """Keeps the run's result files up to date, and writes the row of a trial whose process died."""

    EVERY_SECONDS = 30.0

    def __init__(self, run: Path):
        self.run = run
        self.last = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Rewrite the consolidated files, now and then."""
        if time.monotonic() - self.last > self.EVERY_SECONDS:
            results.consolidate(self.run)
            self.last = time.monotonic()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that cannot speak for itself any more still has its place in every table."""
        ours = Trial.model_validate(trial.config["trial"])
        if ours.trial_id not in results.finished_trials(self.run):
            reason = str(trial.get_error() or "its process died").strip().splitlines()[-1]
            row = blank_row(ours, datetime.now(UTC)) | {
                "status": "failed", "reason": reason, "healthy": False, "stability": 0.0
            }  # fmt: skip
            results.write_trial(self.run, row=row, answers=[], curves=[])
