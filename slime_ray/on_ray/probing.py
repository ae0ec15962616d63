"""A probe where trials run: in workers with a trial's resources, as many side by side as trials will be."""

import tempfile
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from slime_ray.config.experiment import Experiment, Resources
from slime_ray.config.settings import Settings
from slime_ray.errors import InputError, RunError
from slime_ray.on_ray.connection import errors_as_sentences
from slime_ray.on_ray.nodes import alive_nodes
from slime_ray.on_ray.resources import concurrent_trials, why_never
from slime_ray.planning.material import Sample
from slime_ray.planning.rates import MeasuredRates, Rates, mean_of
from slime_ray.runs.store import RunStore

MOST_SIDE_BY_SIDE = 8
"""Probes at a time. What more trials at a time do to each other, they do on other nodes."""
PATIENCE = 600.0
"""Seconds after which a probe is given up."""


def probe_on_cluster(experiment: Experiment, sample: Sample, *, storage: RunStore, around: float) -> MeasuredRates:
    """Measure on the cluster that this process is connected to.

    storage: where Ray Train keeps something for a while. around: seconds that it took until here. Raises InputError
    where no trial could be placed or the model cannot be loaded, and RunError where it fails.
    """
    clock = time.perf_counter()
    wanted, nodes = experiment.resources, alive_nodes()
    if never := why_never(wanted, nodes):
        raise InputError(f"--probe: {never}")
    fits = concurrent_trials(wanted, nodes)
    limit = fits if wanted.concurrent_trials == "auto" else min(fits, wanted.concurrent_trials)
    runs = max(1, min(limit, MOST_SIDE_BY_SIDE, max(node.slots(wanted) for node in nodes) // wanted.workers))
    kept = storage.root / f".probe-{uuid.uuid4().hex[:8]}"
    config = {
        "settings": experiment.base,
        "sample": sample,
        "resources": wanted.model_dump(mode="json"),
        "storage": storage.address(kept),
    }
    # Ray Train's controller has to be in an actor.
    groups: list[Any] = []
    try:
        if wanted.workers == 1:
            held = {"num_cpus": wanted.cpu_per_worker, "num_gpus": wanted.gpu_per_worker}
            task: Any = ray.remote(_probe)
            started = [task.options(**held, max_retries=0).remote(config) for _ in range(runs)]
        else:
            group: Any = ray.remote(_ProbeGroup)
            groups = [group.options(num_cpus=0).remote() for _ in range(runs)]
            started = [each.measure.remote(config) for each in groups]
        with errors_as_sentences("The probe failed"):
            done, late = ray.wait(started, num_returns=len(started), timeout=PATIENCE)
            if late:
                raise RunError(f"The probe was not done after {PATIENCE:.0f} s and was given up.")
            found = ray.get(done)
    finally:
        for each in groups:
            ray.kill(each)
        if groups:
            storage.remove(kept)
    wall, processor = (mean_of([Rates(**each[clock]) for each in found]) for clock in ("wall", "processor"))
    return MeasuredRates(
        wall=wall,
        processor=processor,
        around=around,
        peak_bytes=max(each["peak_bytes"] for each in found),
        side_by_side=runs,
        took=time.perf_counter() - clock + around,
        device=found[0]["device"],
    )


def _probe(config: dict[str, Any]) -> dict[str, Any]:
    """Ray task: measure in this process."""
    clock = time.perf_counter(), 0.0
    from slime_ray.planning.probe import probe

    resources = Resources.model_validate(config["resources"])
    with tempfile.TemporaryDirectory(prefix="slime-ray-probe-") as scratch:
        found = probe(
            Settings.model_validate(config["settings"]),
            config["sample"],
            scratch=Path(scratch),
            threads=max(1, int(resources.cpu_per_worker)),
            sharded=resources.strategy == "fsdp2" and resources.workers > 1,
            started=clock,
        )
    return asdict(found)


class _Box:
    """Runs as a Ray actor: keeps what rank 0 of a group has found."""

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None

    def put(self, found: dict[str, Any]) -> None:
        self.found = found

    def get(self) -> dict[str, Any] | None:
        return self.found


class _ProbeGroup:
    """Runs as a Ray actor: measures on a group of workers."""

    def measure(self, config: dict[str, Any]) -> dict[str, Any]:
        """What rank 0 found."""
        from slime_ray.on_ray.group import run_group

        actor: Any = ray.remote(_Box)
        box = actor.options(num_cpus=0).remote()
        resources = Resources.model_validate(config["resources"])
        run_group(_probe_worker, config | {"box": box}, resources=resources, name="probe", storage=config["storage"])
        found: dict[str, Any] = ray.get(box.get.remote())
        return found


def _probe_worker(config: dict[str, Any]) -> None:
    from slime_ray.world import World

    found = _probe(config)
    if World.current().main:
        ray.get(config["box"].put.remote(found))


def show(measured: MeasuredRates, console: Console) -> None:
    """What was measured, in a line."""
    wall = measured.wall
    console.print(
        f"Probe: {1e6 * wall.token:.1f} us a training token and {1e3 * wall.update:.1f} ms an update beside, "
        f"{1e6 * wall.read_token:.1f} us a token read, {1e3 * wall.decode_step:.2f} ms a decoding step and "
        f"{1e6 * wall.decode_row:.0f} us for each of its answers; peak {measured.peak_bytes / 2**30:.2f} GiB.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
