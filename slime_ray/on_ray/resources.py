"""What trials hold and spend: whether they fit on a cluster and how many at a time, and what is left of the budget.

Arithmetic, without Ray.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slime_ray.config.experiment import Experiment, Resources
from slime_ray.errors import RunError
from slime_ray.evaluation.verdict_cache import Spending, Verdicts
from slime_ray.planning.plan import Cluster
from slime_ray.runs.store import RunStore
from slime_ray.training import attempts

GPUS_OF_A_NODE = 8
UNLIMITED_CPUS = 1e6
"""CPUs of a node that is only given by its GPUs."""
DRIVERS = Path("/proc/driver/nvidia/gpus")
JUDGE_SECONDS = 5.0
"""How often the requests to the judge are counted again."""


@dataclass(frozen=True)
class Node:
    """What a node has, or has free. count: how many of it there are or may be; an autoscaler's are not there yet."""

    name: str
    cpus: float
    gpus: float = 0.0
    count: int = 1

    def slots(self, resources: Resources) -> int:
        """Count the workers that fit on one such node. A share of a GPU is of a single one: 0.4 fits on each twice."""
        by_cpu = _count_fits(self.cpus, resources.cpu_per_worker)
        if not resources.gpu_per_worker:
            return by_cpu
        whole, rest = int(self.gpus), self.gpus - int(self.gpus)
        return min(
            by_cpu, whole * _count_fits(1, resources.gpu_per_worker) + _count_fits(rest, resources.gpu_per_worker)
        )


def concurrent_trials(resources: Resources, nodes: Sequence[Node]) -> int:
    """Count the trials that fit side by side on these nodes, as placement asks."""
    slots = [node.slots(resources) for node in nodes for _ in range(node.count)]
    if resources.placement == "STRICT_PACK":
        return sum(slot // resources.workers for slot in slots)
    if resources.placement == "STRICT_SPREAD":
        # k trials take a place on `workers` different nodes each, and no node more than k places.
        trials = 0
        while sum(min(trials + 1, slot) for slot in slots) >= (trials + 1) * resources.workers:
            trials += 1
        return trials
    return sum(slots) // resources.workers


def trials_at_once(resources: Resources, nodes: Sequence[Node]) -> int:
    """Count the trials that run side by side: as many as fit on these nodes, or fewer where the user says so."""
    fits = concurrent_trials(resources, nodes)
    return fits if resources.concurrent_trials == "auto" else min(fits, resources.concurrent_trials)


def why_never(resources: Resources, nodes: Sequence[Node]) -> str | None:
    """Say, with the arithmetic, why no trial fits on these nodes, be they empty; None where one does."""
    share = resources.gpu_per_worker
    if resources.workers > 1 and 0 < share < 1:
        return (
            f"resources.gpu_per_worker is {share:g} and resources.workers {resources.workers}: workers of one trial "
            "need a GPU each, since NCCL refuses two of a group on the same. Give gpu_per_worker: 1, or workers: 1."
        )
    if concurrent_trials(resources, nodes) > 0:
        return None
    best = max((node.slots(resources) for node in nodes), default=0)
    if best == 0:
        largest = [f"{max((getattr(node, kind) for node in nodes), default=0):g}" for kind in ("cpus", "gpus")]
        return (
            f"{_request(resources)}, but the largest node has {largest[0]} CPU and {largest[1]} GPU, so none could "
            "ever start. Lower resources.cpu_per_worker or resources.gpu_per_worker."
        )
    total_room = sum(node.count * node.slots(resources) for node in nodes)
    hosts = sum(node.count for node in nodes if node.slots(resources))
    if resources.placement == "STRICT_PACK":
        room = f"all on one node (placement STRICT_PACK), but no node has room for more than {best}"
    elif resources.placement == "STRICT_SPREAD":
        room = f"each on a node of its own (placement STRICT_SPREAD), but only {hosts} nodes have room for one"
    else:
        room = f"but all nodes together have room for {total_room}"
    return (
        f"{_request(resources)}, {room}: none could ever start. Lower resources.workers or change resources.placement."
    )


def waiting_for(resources: Resources, free: Sequence[Node]) -> str:
    """Say what a trial that is not placed now waits for. free: what every node has left.

    What is free may be enough: in all, but not on one node, or where Ray has not come to start it yet.
    """
    free_texts = ", ".join(
        f"{node.cpus:g} CPU" + (f" and {node.gpus:g} GPU" if resources.gpu_per_worker else "") + f" on {node.name}"
        for node in free
    )
    request = f"{_request(resources)}; free now: {free_texts or 'nothing'}"
    if concurrent_trials(resources, free):
        return f"{request}, which is enough: Ray has not started it yet"
    room = [node.slots(resources) for node in free]
    if sum(room) >= resources.workers:
        return f"{request}, which is enough, but not as placement {resources.placement} asks"
    cpus, gpus = (sum(getattr(node, kind) for node in free) for kind in ("cpus", "gpus"))
    if (
        _count_fits(cpus, resources.cpu_per_worker) < resources.workers
        or gpus < resources.workers * resources.gpu_per_worker
    ):
        return request
    return f"{request}, which is enough in all, but in parts that hold {sum(room)} of {resources.workers} workers"


def _request(resources: Resources) -> str:
    worker_share = f"{resources.cpu_per_worker:g} CPU and {resources.gpu_per_worker:g} GPU"
    return (
        f"A trial asks for {worker_share}"
        if resources.workers == 1
        else f"A trial asks for {resources.workers} workers of {worker_share}"
    )


def _count_fits(amount: float, share: float) -> int:
    """Count how often a share fits, forgiving what floating point makes of 0.3 / 0.1."""
    return int(amount / share + 1e-9)


def given_cluster(experiment: Experiment, *, gpus: int, gpu: str) -> Cluster:
    """Describe a cluster of so many GPUs, on nodes of up to eight, of unknown disk."""
    whole, rest = divmod(gpus, GPUS_OF_A_NODE)
    nodes = [Node("given", UNLIMITED_CPUS, GPUS_OF_A_NODE, whole)] if whole else []
    nodes += [Node("given", UNLIMITED_CPUS, rest)] if rest else []
    note = f"The {gpus} GPUs are on nodes of at most {GPUS_OF_A_NODE}, with as many CPUs as trials ask for."
    return cluster_for(experiment, nodes, gpu=gpu, where=f"{gpus} x {gpu}", memory=None, disk=None, notes=(note,))


def this_machine(experiment: Experiment, *, storage: RunStore) -> Cluster:
    """Describe this machine as a cluster, without starting anything."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = [_name(folder) for folder in sorted(DRIVERS.glob("*/information"))]
    node = Node("this machine", cpus, len(names))
    where = f"this machine of {cpus} CPUs" + (f" and {len(names)} x {names[0]}" if names else "")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return cluster_for(
        experiment,
        [node],
        gpu=names[0] if names else None,
        where=where,
        memory=total,
        disk=free_bytes(storage),
        notes=(),
    )


def cluster_for(
    experiment: Experiment,
    nodes: Sequence[Node],
    *,
    gpu: str | None,
    where: str,
    memory: float | None,
    disk: int | None,
    notes: tuple[str, ...],
) -> Cluster:
    """Describe what a plan has to know of these nodes. memory: of the smallest node, for trials on CPUs."""
    resources = experiment.resources
    limit = trials_at_once(resources, nodes)
    workers = max((node.slots(resources) for node in nodes), default=0)
    worker_memory = (
        memory / max(1, min(workers, limit * resources.workers)) if memory and not resources.gpu_per_worker else None
    )
    return Cluster(
        trials=limit,
        where=where,
        never=why_never(resources, nodes),
        gpus=sum(node.gpus * node.count for node in nodes) if resources.gpu_per_worker else 0,
        gpu=gpu,
        memory=worker_memory,
        disk_free=disk,
        notes=notes,
    )


def _name(file: Path) -> str:
    """Read a GPU's name from a file of NVIDIA's driver."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "GPU")


def free_bytes(storage: RunStore) -> int | None:
    """Return the bytes that are free at the storage; None for a bucket, which has no end."""
    if storage.url is not None:
        return None
    return shutil.disk_usage(nearest_folder(storage.root)).free


def nearest_folder(path: Path) -> Path:
    """Return the path itself, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


@dataclass(frozen=True)
class SweepSpending:
    """hours: of this start of the sweep; all else of the whole run. cost: None where nothing has a price."""

    hours: float
    gpu_hours: float
    judge_calls: int
    cost: float | None

    def __str__(self) -> str:
        parts = [f"{self.hours:.2f} hours"]
        parts += [f"{self.gpu_hours:.2f} GPU-hours"] if self.gpu_hours else []
        parts += [f"{self.judge_calls} calls of the judge"] if self.judge_calls else []
        parts += [f"cost {self.cost:.2f}"] if self.cost is not None else []
        return f"spent: {', '.join(parts)}"

    def as_json(self) -> dict[str, Any]:
        """Convert to what the manifest keeps."""
        return {name: value if value is None else round(value, 4) for name, value in asdict(self).items()}


class BudgetMeter:
    """Counts what is spent, while trials run and from the attempts of earlier starts of the run.

    now: of a monotonic clock, in seconds. verdicts: of the run.
    """

    def __init__(self, experiment: Experiment, *, run: Path, verdicts: Verdicts, now: float):
        self.budget, self.resources = experiment.budget, experiment.resources
        self.verdicts = verdicts
        self.judges = experiment.settings.evaluation.judge.endpoints
        self.started = self.last_update = now
        self.last_judge_count = float("-inf")
        self.gpu_hours = earlier_gpu_hours(run, self.resources)
        self.judge_spending = [Spending() for _ in self.judges]

    def update(self, at_work: Iterable[str], now: float) -> None:
        """Add what trials at work have held and asked since the last call."""
        trial_gpus = self.resources.workers * self.resources.gpu_per_worker
        self.gpu_hours += trial_gpus * len(list(at_work)) * (now - self.last_update) / 3600
        self.last_update = now
        if self.judges and now - self.last_judge_count > JUDGE_SECONDS:
            self.last_judge_count = now
            # A damaged file is told by the trials that need it.
            with suppress(RunError):
                self.judge_spending = [self.verdicts.spent(judge.identity) for judge in self.judges]

    @property
    def spent(self) -> SweepSpending:
        """All of it, as of the last update."""
        price = self.budget.price_per_gpu_hour
        all_costs = [
            None if price is None else price * self.gpu_hours,
            *(spending.cost(judge.prices) for judge, spending in zip(self.judges, self.judge_spending, strict=True)),
        ]
        costs = [part for part in all_costs if part is not None]
        return SweepSpending(
            hours=(self.last_update - self.started) / 3600,
            gpu_hours=self.gpu_hours,
            judge_calls=sum(spending.requests for spending in self.judge_spending),
            cost=sum(costs) if costs else None,
        )

    def over(self) -> str | None:
        """Return the part of the budget that is spent, such as `gpu_hours`; None while each has something left."""
        spent = self.spent
        for name in ("hours", "gpu_hours", "judge_calls", "cost"):
            limit, value = getattr(self.budget, name), getattr(spent, name)
            if limit is not None and value is not None and value >= limit:
                return name
        return None

    def sentence(self, name: str) -> str:
        """Say that a part of the budget is spent."""
        limit, value = getattr(self.budget, name), getattr(self.spent, name)
        if name == "hours":
            return f"its time, budget.hours {limit:g}, is spent"
        return f"budget.{name} {limit:g} is spent ({value:.4g})"


def earlier_gpu_hours(run: Path, resources: Resources) -> float:
    """Sum the GPU-hours that all attempts of a run have held, those that led nowhere included."""
    all_attempts = [attempt for folder in sorted((run / "trials").glob("*/")) for attempt in attempts.read(folder)]
    seconds = sum(attempt.workers * max(0.0, attempt.alive - attempt.started) for attempt in all_attempts)
    return seconds * resources.gpu_per_worker / 3600
