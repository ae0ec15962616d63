"""The cluster that a plan is for: given by the user, this machine, or the one that this process is connected to."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_ray.config.experiment import Experiment
from slime_ray.on_ray.resources import Node, concurrent_trials, why_never
from slime_ray.planning.plan import Cluster
from slime_ray.runs.store import RunStore

GPUS_OF_A_NODE = 8
PLENTY = 1e6
"""CPUs of a node that is only given by its GPUs."""
DRIVERS = Path("/proc/driver/nvidia/gpus")


def given_cluster(experiment: Experiment, *, gpus: int, gpu: str) -> Cluster:
    """So many GPUs, on nodes of up to eight. Its disk is not known."""
    whole, rest = divmod(gpus, GPUS_OF_A_NODE)
    nodes = [Node("given", PLENTY, GPUS_OF_A_NODE, whole)] if whole else []
    nodes += [Node("given", PLENTY, rest)] if rest else []
    told = f"The {gpus} GPUs are on nodes of at most {GPUS_OF_A_NODE}, with as many CPUs as trials ask for."
    return _cluster(experiment, nodes, gpu=gpu, where=f"{gpus} x {gpu}", memory=None, disk=None, told=(told,))


def this_machine(experiment: Experiment, *, storage: RunStore) -> Cluster:
    """The machine itself, looked at without starting anything."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = [_name(folder) for folder in sorted(DRIVERS.glob("*/information"))]
    node = Node("this machine", cpus, len(names))
    where = f"this machine of {cpus} CPUs" + (f" and {len(names)} x {names[0]}" if names else "")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _cluster(
        experiment, [node], gpu=names[0] if names else None, where=where, memory=total, disk=_free(storage), told=()
    )


def connected_cluster(experiment: Experiment, *, storage: RunStore) -> Cluster:
    """The Ray cluster that this process is connected to, with what an autoscaler may add."""
    import ray

    from slime_ray.on_ray.nodes import alive_nodes

    nodes = alive_nodes()
    living = [node for node in ray.nodes() if node["Alive"]]
    kinds = sorted({name for node in living for name in _kinds(node)})
    memory = min((node["Resources"].get("memory", 0) for node in living), default=0) or None
    gpus = sum(node.gpus * node.count for node in nodes)
    where = f"the connected cluster of {sum(node.count for node in nodes)} nodes" + (f", {gpus:g} GPUs" if gpus else "")
    told = (f"The cluster has GPUs of several kinds, {', '.join(kinds)}; all are taken for the first.",)
    return _cluster(
        experiment, nodes, gpu=kinds[0] if kinds else None, where=where, memory=memory, disk=_free(storage),
        told=told if len(kinds) > 1 else (),
    )  # fmt: skip


def _cluster(
    experiment: Experiment,
    nodes: Sequence[Node],
    *,
    gpu: str | None,
    where: str,
    memory: float | None,
    disk: int | None,
    told: tuple[str, ...],
) -> Cluster:
    """memory: of the smallest node, for trials on CPUs."""
    wanted = experiment.resources
    fits = concurrent_trials(wanted, nodes)
    limit = fits if wanted.concurrent_trials == "auto" else min(fits, wanted.concurrent_trials)
    workers = max((node.slots(wanted) for node in nodes), default=0)
    own = memory / max(1, min(workers, limit * wanted.workers)) if memory and not wanted.gpu_per_worker else None
    return Cluster(
        trials=limit,
        where=where,
        never=why_never(wanted, nodes),
        gpus=sum(node.gpus * node.count for node in nodes) if wanted.gpu_per_worker else 0,
        gpu=gpu,
        memory=own,
        disk_free=disk,
        told=told,
    )


def _kinds(node: Any) -> list[str]:
    prefix = "accelerator_type:"
    return [name.removeprefix(prefix) for name in node["Resources"] if name.startswith(prefix)]


def _name(file: Path) -> str:
    """What NVIDIA's driver calls the GPU of one of its files."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "GPU")


def _free(storage: RunStore) -> int | None:
    """Bytes that are free at the storage; a bucket has no end."""
    if storage.url is not None:
        return None
    folder = next(folder for folder in (storage.root, *storage.root.parents) if folder.exists())
    return shutil.disk_usage(folder).free
