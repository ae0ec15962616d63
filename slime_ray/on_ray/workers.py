"""Where a trial works, and what each of its processes does there. Nothing heavy is imported before it does."""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray.on_ray.monitor import Monitor
from slime_ray.runs.store import RunStore

if TYPE_CHECKING:
    from slime_ray.config.experiment import Faults, Resources, Trial
    from slime_ray.config.trackers import Tracker
    from slime_ray.training.loop import Runtime
    from slime_ray.training.orders import Command

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerContext:
    """Where a trial works: the storage and its run's name in it, its resources, who hears of it, what shows it.

    inputs: digests of what trials read, as the sweep began with it.
    """

    storage: RunStore
    name: str
    resources: "Resources"
    faults: "Faults"
    monitor: Monitor
    trackers: "tuple[Tracker, ...]" = ()
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        """The run's folder on this machine."""
        return self.storage.root / self.name

    def trial(self, trial_id: str) -> Path:
        """A trial's folder on this machine."""
        return self.run / "trials" / trial_id

    def patiently(self, trial_id: str, work: Callable[[], None]) -> None:
        """Do what the storage may refuse for a while. Raises OSError when it has for `faults.storage_minutes`."""
        from slime_ray.training.outcome import patiently

        def say(error: str) -> None:
            self.monitor.report(trial_id, {"doing": f"waiting for storage ({error})"}, searched=False)

        patiently(work, seconds=60 * self.faults.storage_minutes, say=say)

    @property
    def hosting(self) -> "Runtime":
        """How each of the trial's processes is set up."""
        from slime_ray.training.loop import Runtime

        return Runtime(
            threads=max(1, int(self.resources.cpu_per_worker)),
            sharded=self.resources.strategy == "fsdp2" and self.resources.workers > 1,
            faults=self.faults,
            trackers=self.trackers,
            inputs=self.inputs,
        )


def run_worker(trial: "Trial", place: WorkerContext) -> dict[str, Any]:
    """One of the processes that run a trial: it joins the monitor, and does the trial's work, unless that is done."""
    import ray
    from ray.util import get_current_placement_group

    from slime_ray.runs import results
    from slime_ray.training import attempts
    from slime_ray.training.outcome import MODEL
    from slime_ray.training.worker import run_trial
    from slime_ray.world import World

    monitor, storage, folder = place.monitor, place.storage, place.trial(trial.trial_id)
    world, node = World.current(), ray.get_runtime_context().get_node_id()
    # With one worker the placement group is Tune's own, which frees it.
    monitor.join(trial.trial_id, get_current_placement_group() if place.resources.workers > 1 else None)

    sent = None

    def report(told: Mapping[str, Any]) -> "Command | None":
        nonlocal sent
        # A new checkpoint is noted there when it is whole.
        noted = attempts.stamp(folder) if storage.url is not None else None
        if noted != sent:
            sent = noted
            try:
                storage.push(folder, prune=True)
            except OSError as error:
                logger.warning("%s is not in the storage yet: %s", trial.trial_id, error)
        return monitor.report(trial.trial_id, told, searched=trial.phase == "search")

    # All ranks read the checkpoint that rank 0 goes on from; one on each node fetches it.
    if world.gather(node).index(node) == world.rank:
        place.patiently(trial.trial_id, lambda: storage.pull(folder, skip=(MODEL,)))
    done: dict[str, Any] | None = world.broadcast(results.finished_trial(folder) if world.main else None)
    if done:
        return done
    try:
        return run_trial(trial, run=place.run, storage=storage, report=report, hosting=place.hosting)
    finally:
        if world.main:
            place.patiently(trial.trial_id, lambda: storage.push(folder, prune=True))
            if storage.url is not None:
                shutil.rmtree(folder / MODEL, ignore_errors=True)
