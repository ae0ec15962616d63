"""The nodes of a cluster: what they have, what they have left, and what each says of itself in a small task.

What only Ray's own code can ask, since there is no public interface for it, goes through `cluster_state`.
"""

import logging
import os
import platform
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import ray

from slime_ray.config.evaluation import Evaluation
from slime_ray.config.experiment import Experiment
from slime_ray.config.judge import JudgeSettings, NoJudge
from slime_ray.config.trackers import Tracker, lacks
from slime_ray.errors import InputError
from slime_ray.model.parts import fault_of
from slime_ray.on_ray.resources import Node, cluster_for, free_bytes, nearest_folder, this_machine
from slime_ray.planning.plan import Cluster
from slime_ray.runs.store import RunStore

logger = logging.getLogger(__name__)
PACKAGES = ("slime-ray", "ray", "torch", "transformers", "peft", "accelerate", "datasets")
GROUP = "ray.io/node-group"
"""The label under which a node that an autoscaler started has its group."""
UNLIMITED_COUNT = 1000
Question = Literal["get_draining_nodes", "get_cluster_config", "available_resources_per_node"]
"""Nodes that will be taken away; the groups of nodes that an autoscaler may add; what each node has left."""


def cluster_state(question: Question) -> Any:
    """Ask Ray about the cluster; None, logged once a process, where this version of Ray cannot be asked."""
    try:
        return getattr(ray._private.state.state, question)()
    except Exception as error:  # Whatever another version of Ray makes of it.
        _warn(question, f"{type(error).__name__}: {error}")
        return None


@cache
def _warn(question: str, reason: str) -> None:
    logger.warning("Ray %s does not tell its %s (%s).", ray.__version__, question.removeprefix("get_"), reason)


@dataclass(frozen=True)
class NodeRequest:
    """What every node has to have.

    probe: a folder in a shared storage with a file that holds the token. models: those of the paths that hold models.
    """

    storage: RunStore
    probe: Path
    token: str
    paths: Sequence[str] = ()
    models: Sequence[str] = ()
    judge: JudgeSettings | Evaluation = field(default_factory=NoJudge)
    trackers: Sequence[Tracker] = ()


@dataclass(frozen=True)
class NodeReport:
    """What a node reports of itself.

    write_error: why it could not write to the storage. can_read: whether it sees the driver's probe file. disk: free
    bytes. missing: local paths of the request that are not there. faults: what is wrong with the files of models that
    are. judge_fault, tracker_fault: what it lacks to judge and to ask a server, and for the trackers.
    """

    node: str
    name: str
    python: str
    versions: dict[str, str]
    write_error: str | None
    can_read: bool
    disk: int
    missing: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    judge_fault: str | None = None
    tracker_fault: str | None = None
    gpus: int | None = None
    gpu: str | None = None
    driver: str | None = None
    bf16: bool | None = None
    home: str | None = None


def alive_nodes() -> list[Node]:
    """List the nodes' whole resources, with nodes that an autoscaler may add."""
    config = cluster_state("get_cluster_config")
    living = [node for node in ray.nodes() if node["Alive"]]
    return add_scalable_nodes(living, config.node_group_configs if config is not None else ())


def add_scalable_nodes(living: Sequence[Mapping[str, Any]], groups: Iterable[Any]) -> list[Node]:
    """List the living nodes, and those by which an autoscaler's groups may still grow.

    living: as `ray.nodes` gives them. groups: of `ClusterConfig` in Ray's autoscaler.proto; max_count includes the
    living, and -1 is no limit.
    """
    nodes = [
        Node(node["NodeManagerHostname"], node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in living
    ]
    counts = Counter(node["Labels"].get(GROUP) for node in living)
    for group in groups:
        count = UNLIMITED_COUNT if group.max_count < 0 else group.max_count - counts[group.name]
        if count > 0:
            capacity = group.resources
            nodes.append(
                Node(group.name or "a node to be added", capacity.get("CPU", 0), capacity.get("GPU", 0), count)
            )
    return nodes


def free_nodes() -> list[Node]:
    """List what the living nodes have free."""
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    available = cluster_state("available_resources_per_node") or {}
    return [Node(names[key], free.get("CPU", 0), free.get("GPU", 0)) for key, free in available.items() if key in names]


def connected_cluster(experiment: Experiment, *, storage: RunStore) -> Cluster:
    """Describe the Ray cluster that this process is connected to, with what an autoscaler may add."""
    nodes, prefix = alive_nodes(), "accelerator_type:"
    living = [node for node in ray.nodes() if node["Alive"]]
    names = {name for node in living for name in node["Resources"] if name.startswith(prefix)}
    kinds = sorted(name.removeprefix(prefix) for name in names)
    memory = min((node["Resources"].get("memory", 0) for node in living), default=0) or None
    gpus = sum(node.gpus * node.count for node in nodes)
    where = f"the connected cluster of {sum(node.count for node in nodes)} nodes" + (f", {gpus:g} GPUs" if gpus else "")
    notes = (f"The cluster has GPUs of several kinds, {', '.join(kinds)}; all are taken for the first.",)
    return cluster_for(
        experiment, nodes, gpu=kinds[0] if kinds else None, where=where, memory=memory, disk=free_bytes(storage),
        notes=notes if len(kinds) > 1 else (),
    )  # fmt: skip


def present_cluster(experiment: Experiment, *, storage: RunStore) -> Cluster:
    """Describe where trials would run: the connected cluster that RAY_ADDRESS names, else this machine."""
    remote = os.environ.get("RAY_ADDRESS") not in (None, "", "local")
    return (connected_cluster if remote else this_machine)(experiment, storage=storage)


def inspect_node(node: str, request: NodeRequest, *, gpus: bool = False) -> NodeReport:
    """Report on the node that this Ray task runs on. gpus: also on its GPUs."""
    storage, write_error, can_read = request.storage, None, False
    try:
        storage.check()
        can_read = storage.url is not None or (request.probe / "driver").read_text() == request.token
        if storage.url is None:
            (request.probe / node).write_text(request.token)
    except InputError as error:
        write_error = str(error)
    except OSError as error:
        write_error = error.strerror or str(error)
    gpu_facts: dict[str, Any] = {}
    if gpus:
        import torch

        gpu_facts = {"gpus": torch.cuda.device_count()}
        if gpu_facts["gpus"]:
            gpu_facts |= {
                "gpu": torch.cuda.get_device_name(0), "bf16": torch.cuda.is_bf16_supported(), "driver": _driver()
            }  # fmt: skip
    return NodeReport(
        node=node,
        name=platform.node(),
        python=platform.python_version(),
        versions=package_versions(),
        write_error=write_error,
        can_read=can_read,
        disk=shutil.disk_usage(nearest_folder(storage.root)).free,
        missing=tuple(path for path in request.paths if not Path(path).exists()),
        faults=tuple({fault for path in request.models if Path(path).exists() and (fault := fault_of(Path(path)))}),
        judge_fault=request.judge.lacks(),
        tracker_fault=lacks(request.trackers, bucket=storage.url is not None),
        home=os.environ.get("HF_HOME"),
        **gpu_facts,
    )


def package_versions() -> dict[str, str]:
    """Return versions, without an import, of the packages that decide what a trial computes."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _driver() -> str | None:
    try:
        return Path("/proc/driver/nvidia/version").read_text().split("Module", 1)[1].split()[0]
    except (OSError, IndexError):
        return None
