"""Where a trial works, and what each of its processes does there.

With one worker a trial runs in the Tune actor itself, which is used again, so that imports and loaded data serve every
trial. With several, the actor holds no CPU and starts a group of workers under Ray Train, which joins them to a process
group. What becomes of a group that broke is decided here, where the attempts at the trial are counted: Ray Train cannot
tell an error that will come again from a lost node.

Nothing heavy is imported before a trial runs: an actor that takes longer to start than a short trial lasts would be
given up again and again for one that has just become free, and trials would run one after another.
"""

import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import cloudpickle, tune

from slime_ray.config.metrics import METRICS
from slime_ray.errors import InputError, RunError

if TYPE_CHECKING:
    from ray.train import WorkerGroupError

    from slime_ray.config.experiment import Faults, Resources, Trial
    from slime_ray.config.trackers import Tracker
    from slime_ray.on_ray.monitor import Monitor
    from slime_ray.runs.store import RunStore
    from slime_ray.training.loop import Runtime
    from slime_ray.training.orders import Command

REPORT_COLUMNS = ("status", "reason", *METRICS)
"""Columns that a finished trial reports to the driver, which ranks and confirms by any of them; the rest is in its
files."""


GPU_FAILED = "a GPU failed"
COLLECTIVE_SECONDS = 6 * 3600
"""How long ranks wait for one another: rank 0 may make a stage, or wait for one, alone. Silence is the monitor's."""
RAY_TRAIN_ENVIRONMENT = {
    # How soon a worker that has died is noticed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # Nodes that are about to be taken away are the monitor's matter. This would cost each trial a process of its own.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}
logger = logging.getLogger(__name__)


class RestartTrial(Exception):
    """The trial has to start again, in another process or on another node; Ray Tune sees to it."""


class GroupLost(Exception):
    """A worker, a node or the connection between workers was lost."""


@dataclass(frozen=True)
class WorkerContext:
    """Where a trial works: the storage and its run's name in it, its resources, who hears of it, what shows it.

    inputs: digests of what trials read, as the sweep began with it.
    """

    storage: "RunStore"
    name: str
    resources: "Resources"
    faults: "Faults"
    monitor: "Monitor"
    trackers: "tuple[Tracker, ...]" = ()
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        """The run's folder on this machine."""
        return self.storage.root / self.name

    def trial(self, trial_id: str) -> Path:
        """Return a trial's folder on this machine."""
        return self.run / "trials" / trial_id

    def retry_storage(self, trial_id: str, work: Callable[[], None]) -> None:
        """Do what the storage may refuse for a while. Raises OSError when it has for `faults.storage_minutes`."""
        from slime_ray.training.outcome import patiently

        report = partial(self.monitor.report, trial_id, searched=False)
        patiently(work, report, minutes=self.faults.storage_minutes)

    @property
    def runtime(self) -> "Runtime":
        """How each of the trial's processes is set up."""
        from slime_ray.training.loop import Runtime

        return Runtime(
            threads=max(1, int(self.resources.cpu_per_worker)),
            gpu=self.resources.gpu_per_worker,
            sharded=self.resources.strategy == "fsdp2" and self.resources.workers > 1,
            faults=self.faults,
            trackers=self.trackers,
            inputs=self.inputs,
        )


def tune_function(config: dict[str, Any], *, context: bytes) -> None:
    """Run one trial and report to Ray Tune once, at its end: its goals, with `finished`, or that it was paused.

    context: a `WorkerContext`, as cloudpickle packed it, so that its parts are imported here and not with the actor.
    """
    from slime_ray.config.experiment import Trial
    from slime_ray.training.orders import Paused
    from slime_ray.training.outcome import DeviceFailure, OutOfMemory, refused, what_failed

    trial = Trial.model_validate(config["trial"])
    worker_context: WorkerContext = cloudpickle.loads(context)
    worker_context.monitor.begin(trial.trial_id)
    try:
        if worker_context.resources.workers == 1:
            row = run_worker(trial, worker_context)
        else:
            row = run_group_trial(trial, worker_context)
    except Paused as pause:
        if pause.order.kind == "preempt":
            raise RestartTrial(pause.order.reason) from None
        tune.report({"finished": False, "status": "paused", "reason": pause.order.reason})
        return
    except OutOfMemory as error:
        raise RestartTrial(f"out of memory: {error}") from None
    except DeviceFailure as error:
        raise RestartTrial(f"{GPU_FAILED}: {error}") from None
    except OSError as error:
        # What a trial does wrong itself is in its row; nothing is gained by starting it again on such a storage.
        tune.report({"finished": False, "status": "paused", "reason": what_failed(refused(error))})
        return
    columns = {name: row.get(name) for name in REPORT_COLUMNS}
    finite = {name: value for name, value in columns.items() if not isinstance(value, float) or math.isfinite(value)}
    tune.report({"finished": True, "step": row.get("updates"), **finite})


def run_worker(trial: "Trial", context: WorkerContext) -> dict[str, Any]:
    """Run one of a trial's processes: join the monitor and do the trial's work, unless that is done."""
    import ray
    from ray.util import get_current_placement_group

    from slime_ray.runs import results
    from slime_ray.training import attempts
    from slime_ray.training.outcome import MODEL
    from slime_ray.training.worker import run_trial
    from slime_ray.world import World

    monitor, storage, folder = context.monitor, context.storage, context.trial(trial.trial_id)
    world, node = World.current(), ray.get_runtime_context().get_node_id()
    # With one worker the placement group is Tune's own, which frees it.
    monitor.join(trial.trial_id, get_current_placement_group() if context.resources.workers > 1 else None)

    sent = None

    def report(metrics: Mapping[str, Any]) -> "Command | None":
        nonlocal sent
        # A new checkpoint is noted there when it is whole.
        stamp = attempts.stamp(folder) if storage.url is not None else None
        if stamp != sent:
            sent = stamp
            try:
                storage.push(folder, prune=True)
            except OSError as error:
                logger.warning("%s is not in the storage yet: %s", trial.trial_id, error)
        return monitor.report(trial.trial_id, metrics, searched=trial.phase == "search")

    # All ranks read the checkpoint that rank 0 goes on from; one on each node fetches it.
    if world.gather(node).index(node) == world.rank:
        context.retry_storage(trial.trial_id, lambda: storage.pull(folder, skip=(MODEL,)))
    finished_row: dict[str, Any] | None = world.broadcast(results.finished_trial(folder) if world.main else None)
    if finished_row:
        return finished_row
    try:
        return run_trial(trial, run=context.run, storage=storage, report=report, runtime=context.runtime)
    finally:
        if world.main:
            context.retry_storage(trial.trial_id, lambda: storage.push(folder, prune=True))
            if storage.url is not None:
                shutil.rmtree(folder / MODEL, ignore_errors=True)


def run_group_trial(trial: "Trial", context: WorkerContext) -> dict[str, Any]:
    """Run a trial on a group of workers, on new ones for as long as that may help, and return its row.

    Raises Paused where the workers left on an order.
    """
    from slime_ray.runs import results
    from slime_ray.training import attempts
    from slime_ray.training.orders import Command, Paused
    from slime_ray.training.outcome import CHECKPOINTS, MODEL, DeviceFailure, OutOfMemory, one_sentence, record_failure

    folder, storage = context.trial(trial.trial_id), context.storage

    def read_attempts() -> list[attempts.Attempt]:
        context.retry_storage(trial.trial_id, lambda: storage.pull(folder, skip=(MODEL, CHECKPOINTS)))
        return attempts.read(folder)

    def record_row(reason: str) -> dict[str, Any]:
        row = record_failure(trial, context.run, reason, workers=context.resources.workers)
        context.retry_storage(trial.trial_id, lambda: storage.push_files(folder))
        return row

    trial_attempts = read_attempts()
    while not (row := results.finished_trial(folder)):
        failure: Exception | None = None
        try:
            run_group(
                _trial_worker,
                {"trial": trial.model_dump(mode="json"), "context": context},
                resources=context.resources,
                name=trial.trial_id,
                storage=storage.address(context.run / "ray"),
            )
        except Exception as error:
            failure = error
        count_before, trial_attempts = len(trial_attempts), read_attempts()
        if results.finished_trial(folder):
            continue
        if failure is None:
            preempted = bool(trial_attempts) and trial_attempts[-1].ended == "preempted"
            raise Paused(Command("preempt" if preempted else "pause", "the workers left as they were told"))
        if reason := _outside_cause(failure):
            attempts.note(folder, ended="paused")
            context.retry_storage(trial.trial_id, lambda: storage.push_files(folder))
            raise Paused(Command("pause", reason))
        if not isinstance(failure, (DeviceFailure, GroupLost, OutOfMemory)):
            return record_row(one_sentence(failure))
        logger.warning("%s lost its workers: %s", trial.trial_id, failure)
        context.monitor.end(trial.trial_id)
        context.monitor.begin(trial.trial_id)
        if len(trial_attempts) == count_before:
            # It was lost before rank 0 could note that it had begun.
            attempts.begin(folder, workers=context.resources.workers)
        if isinstance(failure, DeviceFailure):
            attempts.note(folder, ended="device", fault=str(failure))
        attempts.note(folder, ended="memory" if isinstance(failure, OutOfMemory) else "lost")
        trial_attempts = attempts.read(folder)
        if limit := attempts.enough(trial_attempts, context.faults):
            return record_row(f"given up: {limit}")
        context.retry_storage(trial.trial_id, lambda: storage.push_files(folder))
    return row


def _outside_cause(error: Exception) -> str | None:
    """Name the stage, storage or judge that failed a trial through no fault of its own; None for any other error."""
    from slime_ray.runs import files
    from slime_ray.training.outcome import refused, what_failed

    if isinstance(error, RunError):
        return what_failed(error)
    refusal = files.storage_error(error)
    return what_failed(refused(refusal)) if refusal else None


def _trial_worker(config: dict[str, Any]) -> None:
    """Run a trial on one worker of its group."""
    from slime_ray.config.experiment import Trial
    from slime_ray.training.orders import Paused

    try:
        run_worker(Trial.model_validate(config["trial"]), config["context"])
    except Paused:
        # A group that ends well is not started again.
        return


def run_group(
    work: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    *,
    resources: "Resources",
    name: str,
    storage: str,
) -> None:
    """Call `work` with `config` on every worker of a new group, and wait for it.

    Raises GroupLost where a process or node was lost, and what a worker raised where it was none of that.
    """
    os.environ.update(RAY_TRAIN_ENVIRONMENT)
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    from slime_ray.training.outcome import one_sentence

    gpu = resources.gpu_per_worker
    trainer = TorchTrainer(
        work,
        train_loop_config=dict(config),
        torch_config=TorchConfig(timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=gpu > 0,
            resources_per_worker={"CPU": resources.cpu_per_worker, **({"GPU": gpu} if gpu else {})},
            placement_strategy=resources.placement,
        ),
        run_config=RunConfig(name=name, storage_path=storage, failure_config=FailureConfig(max_failures=0)),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        raise _cause(error) from None
    except ControllerError as error:
        raise GroupLost(one_sentence(error.controller_failure)) from None


def _cause(error: "WorkerGroupError") -> BaseException:
    """Return what broke a group: when one worker is lost the others fail too, with broken connections."""
    from slime_ray.runs import files
    from slime_ray.training.outcome import DeviceFailure, OutOfMemory, one_sentence

    failures = [_unwrap(failure) for failure in error.worker_failures.values()]
    worker_errors = [failure for failure in failures if not is_loss(failure)]
    # Where one says what is wrong, the others only wait for it in vain, or pass on what it said.
    for failure in sorted(worker_errors, key=lambda failure: not isinstance(failure, DeviceFailure)):
        if isinstance(failure, (DeviceFailure, InputError, OutOfMemory, RunError)) or files.storage_error(failure):
            return failure
    if worker_errors and len(worker_errors) == len(failures):
        return worker_errors[0]
    return GroupLost(one_sentence(next(failure for failure in failures if is_loss(failure))))


def _unwrap(failure: Exception) -> BaseException:
    """Return what a worker raised, out of Ray Train's own error, which has the traceback as text."""
    inner = failure.args[0] if failure.args else None
    return inner if isinstance(inner, BaseException) else failure


def is_loss(error: BaseException) -> bool:
    """Tell whether an error is of a lost process, node or connection, and not of the work."""
    from torch.distributed import DistError

    text = str(error).lower()
    phrases = ("connection closed by peer", "connection reset", "gloo", "nccl", "socket", "broken pipe")
    # What a worker raised itself arrives as it was; errors of Ray's own are about the worker.
    return (
        type(error).__module__.startswith("ray.")
        or isinstance(error, DistError)
        or (isinstance(error, (RuntimeError, ConnectionError)) and any(word in text for word in phrases))
    )
