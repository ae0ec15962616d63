"""A trial, or the shared stages, on several workers under Ray Train.

Ray Train starts the workers and joins them to a process group; what becomes of a group that broke is decided here,
where the attempts at the trial are counted: Ray Train cannot tell an error that will come again from a lost node.
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from torch.distributed import DistError

from slime_ray.config.experiment import Resources, Trial
from slime_ray.errors import InputError, RunError
from slime_ray.on_ray.workers import WorkerContext, run_worker
from slime_ray.runs import files, results
from slime_ray.training import attempts
from slime_ray.training.orders import Command, Paused
from slime_ray.training.outcome import (
    CHECKPOINTS,
    MODEL,
    OutOfMemory,
    one_sentence,
    record_failure,
    refused,
    what_failed,
)

COLLECTIVE_SECONDS = 6 * 3600
"""How long ranks wait for one another: rank 0 may make a stage, or wait for one, alone. Silence is the monitor's."""
QUIET = {
    # How soon a worker that has died is noticed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # Nodes that are about to be taken away are the monitor's matter. This would cost each trial a process of its own.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}
logger = logging.getLogger(__name__)


class GroupLost(Exception):
    """A worker, a node or the connection between workers was lost."""


def run_group_trial(trial: Trial, place: WorkerContext) -> dict[str, Any]:
    """Run a trial on a group of workers, and again on a new one for as long as that may help. Returns its row.

    Raises Paused where the workers left on an order.
    """
    folder, storage = place.trial(trial.trial_id), place.storage

    def look() -> list[attempts.Attempt]:
        place.patiently(trial.trial_id, lambda: storage.pull(folder, skip=(MODEL, CHECKPOINTS)))
        return attempts.read(folder)

    def failed(reason: str) -> dict[str, Any]:
        row = record_failure(trial, place.run, reason, workers=place.resources.workers)
        place.patiently(trial.trial_id, lambda: storage.push_files(folder))
        return row

    made = look()
    while not (row := results.finished_trial(folder)):
        broken: Exception | None = None
        try:
            run_group(
                _trial_worker,
                {"trial": trial.model_dump(mode="json"), "place": place},
                resources=place.resources,
                name=trial.trial_id,
                storage=storage.address(place.run / "ray"),
            )
        except Exception as error:
            broken = error
        before, made = len(made), look()
        if results.finished_trial(folder):
            continue
        if broken is None:
            preempted = bool(made) and made[-1].ended == "preempted"
            raise Paused(Command("preempt" if preempted else "pause", "the workers left as they were told"))
        if reason := _not_its_fault(broken):
            attempts.note(folder, ended="paused")
            place.patiently(trial.trial_id, lambda: storage.push_files(folder))
            raise Paused(Command("pause", reason))
        if not isinstance(broken, (GroupLost, OutOfMemory)):
            return failed(one_sentence(broken))
        logger.warning("%s lost its workers: %s", trial.trial_id, broken)
        place.monitor.end(trial.trial_id)
        place.monitor.begin(trial.trial_id)
        if len(made) == before:
            # It was lost before rank 0 could note that it had begun.
            attempts.begin(folder, workers=place.resources.workers)
        attempts.note(folder, ended="memory" if isinstance(broken, OutOfMemory) else "lost")
        made = attempts.read(folder)
        if enough := attempts.enough(made, place.faults):
            return failed(f"given up: {enough}")
        place.patiently(trial.trial_id, lambda: storage.push_files(folder))
    return row


def _not_its_fault(error: Exception) -> str | None:
    """Why a trial of this error leaves without a result, where stages, a storage or a judge did not do their part."""
    if isinstance(error, RunError):
        return what_failed(error)
    refusal = files.storage_error(error)
    return what_failed(refused(refusal)) if refusal else None


def _trial_worker(config: dict[str, Any]) -> None:
    """What each worker of a trial's group does."""
    try:
        run_worker(Trial.model_validate(config["trial"]), config["place"])
    except Paused:
        # A group that ends well is not started again.
        return


def run_group(
    work: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    *,
    resources: Resources,
    name: str,
    storage: str,
) -> None:
    """Call `work` with `config` on every worker of a new group, and wait for it.

    Raises GroupLost where a process or node was lost, and what a worker raised where it was none of that.
    """
    os.environ.update(QUIET)
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


def _cause(error: WorkerGroupError) -> BaseException:
    """What broke a group. When one worker is lost the others fail too, with broken connections."""
    failures = [_raised(failure) for failure in error.worker_failures.values()]
    own = [failure for failure in failures if not is_loss(failure)]
    # Where one says what is wrong, the others only wait for it in vain.
    for failure in own:
        if isinstance(failure, (InputError, OutOfMemory, RunError)) or files.storage_error(failure):
            return failure
    if own and len(own) == len(failures):
        return own[0]
    return GroupLost(one_sentence(next(failure for failure in failures if is_loss(failure))))


def _raised(failure: Exception) -> BaseException:
    """What a worker raised; Ray Train hands it over inside of an error of its own, with the traceback as text."""
    inner = failure.args[0] if failure.args else None
    return inner if isinstance(inner, BaseException) else failure


def is_loss(error: BaseException) -> bool:
    """Whether an error says that a process, a node or a connection was lost, rather than that the work is wrong."""
    text = str(error).lower()
    spoken = ("connection closed by peer", "connection reset", "gloo", "nccl", "socket", "broken pipe")
    # What a worker raised itself arrives as it was; errors of Ray's own are about the worker.
    return (
        type(error).__module__.startswith("ray.")
        or isinstance(error, DistError)
        or (isinstance(error, (RuntimeError, ConnectionError)) and any(word in text for word in spoken))
    )
