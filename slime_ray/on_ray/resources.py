"""Whether trials fit on a cluster, how many at a time, and what a waiting one waits for: arithmetic, without Ray."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slime_ray.config.experiment import Resources


@dataclass(frozen=True)
class Node:
    """What a node has, or has free. count: how many of it there are or may be; an autoscaler's are not there yet."""

    name: str
    cpus: float
    gpus: float = 0.0
    count: int = 1

    def slots(self, wanted: Resources) -> int:
        """Workers that fit on one such node. A share of a GPU is of a single one: 0.4 fits on each of them twice."""
        by_cpu = _times(self.cpus, wanted.cpu_per_worker)
        if not wanted.gpu_per_worker:
            return by_cpu
        if wanted.gpu_per_worker >= 1:
            return min(by_cpu, _times(self.gpus, wanted.gpu_per_worker))
        whole, rest = int(self.gpus), self.gpus - int(self.gpus)
        return min(by_cpu, whole * _times(1, wanted.gpu_per_worker) + _times(rest, wanted.gpu_per_worker))


def concurrent_trials(wanted: Resources, nodes: Sequence[Node]) -> int:
    """Trials that fit side by side on these nodes, as their placement asks."""
    slots = [node.slots(wanted) for node in nodes for _ in range(node.count)]
    if wanted.placement == "STRICT_PACK":
        return sum(slot // wanted.workers for slot in slots)
    if wanted.placement == "STRICT_SPREAD":
        # k trials take a place on `workers` different nodes each, and no node more than k places.
        trials = 0
        while sum(min(trials + 1, slot) for slot in slots) >= (trials + 1) * wanted.workers:
            trials += 1
        return trials
    return sum(slots) // wanted.workers


def why_never(wanted: Resources, nodes: Sequence[Node]) -> str | None:
    """Why a trial could never be placed on these nodes, be they empty, as a sentence with the arithmetic; else None."""
    share = wanted.gpu_per_worker
    if share > 1 and share != int(share):
        return (
            f"resources.gpu_per_worker is {share:g}: more than one GPU has to be a whole number of them. "
            f"Give {math.floor(share)} or {math.ceil(share)}."
        )
    if wanted.workers > 1 and 0 < share < 1:
        return (
            f"resources.gpu_per_worker is {share:g} and resources.workers {wanted.workers}: workers of one trial need "
            "a GPU each, since NCCL refuses two of a group on the same. Give gpu_per_worker: 1, or workers: 1."
        )
    if concurrent_trials(wanted, nodes) > 0:
        return None
    best = max((node.slots(wanted) for node in nodes), default=0)
    if best == 0:
        largest = [f"{max((getattr(node, kind) for node in nodes), default=0):g}" for kind in ("cpus", "gpus")]
        return (
            f"{_request(wanted)}, but the largest node has {largest[0]} CPU and {largest[1]} GPU, so none could ever "
            "start. Lower resources.cpu_per_worker or resources.gpu_per_worker."
        )
    fit = sum(node.count * node.slots(wanted) for node in nodes)
    hosts = sum(node.count for node in nodes if node.slots(wanted))
    if wanted.placement == "STRICT_PACK":
        room = f"all on one node (placement STRICT_PACK), but no node has room for more than {best}"
    elif wanted.placement == "STRICT_SPREAD":
        room = f"each on a node of its own (placement STRICT_SPREAD), but only {hosts} nodes have room for one"
    else:
        room = f"but all nodes together have room for {fit}"
    return f"{_request(wanted)}, {room}: none could ever start. Lower resources.workers or change resources.placement."


def waiting_for(wanted: Resources, free: Sequence[Node]) -> str:
    """What a trial that is not placed now waits for. free: what every node has left.

    What is free may be enough: in all, but not on one node, or where Ray has not come to start it yet.
    """
    left = ", ".join(
        f"{node.cpus:g} CPU" + (f" and {node.gpus:g} GPU" if wanted.gpu_per_worker else "") + f" on {node.name}"
        for node in free
    )
    said = f"{_request(wanted)}; free now: {left or 'nothing'}"
    if concurrent_trials(wanted, free):
        return f"{said}, which is enough: Ray has not started it yet"
    room = [node.slots(wanted) for node in free]
    if sum(room) >= wanted.workers:
        return f"{said}, which is enough, but not as placement {wanted.placement} asks"
    cpus, gpus = (sum(getattr(node, kind) for node in free) for kind in ("cpus", "gpus"))
    if _times(cpus, wanted.cpu_per_worker) < wanted.workers or gpus < wanted.workers * wanted.gpu_per_worker:
        return said
    return f"{said}, which is enough in all, but in parts that hold {sum(room)} of {wanted.workers} workers"


def _request(wanted: Resources) -> str:
    each = f"{wanted.cpu_per_worker:g} CPU and {wanted.gpu_per_worker:g} GPU"
    return f"A trial asks for {each}" if wanted.workers == 1 else f"A trial asks for {wanted.workers} workers of {each}"


def _times(amount: float, part: float) -> int:
    """How often a part fits, forgiving what floating point makes of 0.3 / 0.1."""
    return int(amount / part + 1e-9)
