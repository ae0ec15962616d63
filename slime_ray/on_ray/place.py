"""Where a trial works, and what each of its processes does there. Nothing heavy is imported before it does."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray.on_ray.monitor import Monitor

if TYPE_CHECKING:
    from slime_ray.experiment import Faults, Resources, Trial
    from slime_ray.training.course import Hosting
    from slime_ray.training.orders import Order


@dataclass(frozen=True)
class Place:
    """Where a trial works: the run's folder, the shared stages, its resources, and who hears of it."""

    run: Path
    cache: Path
    resources: "Resources"
    faults: "Faults"
    monitor: Monitor

    @property
    def hosting(self) -> "Hosting":
        """How each of the trial's processes is set up."""
        from slime_ray.training.course import Hosting

        return Hosting(
            threads=max(1, int(self.resources.cpu_per_worker)),
            sharded=self.resources.strategy == "fsdp2" and self.resources.workers > 1,
            faults=self.faults,
        )


def run_worker(trial: "Trial", place: Place) -> dict[str, Any]:
    """One of the processes that run a trial: it joins the monitor, and does the trial's work."""
    from ray.util import get_current_placement_group

    from slime_ray.training.worker import run_trial

    monitor = place.monitor
    # With one worker the placement group is Tune's own, which frees it.
    monitor.join(trial.trial_id, get_current_placement_group() if place.resources.workers > 1 else None)

    def report(told: Mapping[str, Any]) -> "Order | None":
        return monitor.report(trial.trial_id, told, searched=trial.phase == "search")

    return run_trial(trial, run=place.run, cache=place.cache, report=report, hosting=place.hosting)
