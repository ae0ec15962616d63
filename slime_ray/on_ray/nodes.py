"""The nodes of a cluster: what they have, what they have left, and what each says of itself in a small task."""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray

from slime_ray.errors import InputError
from slime_ray.judge_settings import JudgeSettings
from slime_ray.mirror import Mirror
from slime_ray.on_ray.resources import Node

PACKAGES = ("slime-ray", "ray", "torch", "transformers", "peft", "accelerate", "datasets")


@dataclass(frozen=True)
class Look:
    """What a node says of itself. memory, disk: free bytes. missing: local paths of the request that are not there.
    lack: what it lacks to judge."""

    node: str
    name: str
    python: str
    versions: dict[str, str]
    wrote: str | None
    read: bool
    memory: int
    disk: int
    missing: tuple[str, ...] = ()
    lack: str | None = None
    gpus: int | None = None
    gpu: str | None = None
    driver: str | None = None
    bf16: bool | None = None
    home: str | None = None


def alive_nodes() -> list[Node]:
    """What the nodes have in all, and those that an autoscaler may add."""
    nodes = [
        Node(node["NodeManagerHostname"], node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"]
    ]
    config = ray._private.state.state.get_cluster_config()
    for group in config.node_group_configs if config is not None else ():
        if group.max_count != 0:
            offered = dict(group.resources)
            # No limit (-1) is as good as many.
            count = group.max_count if group.max_count > 0 else 1000
            nodes.append(Node(group.name or "a node to be added", offered.get("CPU", 0), offered.get("GPU", 0), count))
    return nodes


def free_nodes() -> list[Node]:
    """What the living nodes have left."""
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    left = ray._private.state.available_resources_per_node()
    return [Node(names[key], free.get("CPU", 0), free.get("GPU", 0)) for key, free in left.items() if key in names]


def look_at_node(
    node: str, probe: str, token: str, paths: Sequence[str], gpus: bool, storage: Mirror, judge: JudgeSettings
) -> Look:
    """Ray task: one node looks at itself. probe: a folder in a shared storage with a file that holds the token."""
    wrote, read = None, False
    try:
        storage.check()
        read = storage.url is not None or (Path(probe) / "driver").read_text() == token
        if storage.url is None:
            (Path(probe) / node).write_text(token)
    except InputError as error:
        wrote = str(error)
    except OSError as error:
        wrote = error.strerror or str(error)
    seen: dict[str, Any] = {}
    if gpus:
        import torch

        seen = {"gpus": torch.cuda.device_count()}
        if seen["gpus"]:
            seen |= {"gpu": torch.cuda.get_device_name(0), "bf16": torch.cuda.is_bf16_supported()}
            seen["driver"] = _driver()
    return Look(
        node=node,
        name=platform.node(),
        python=platform.python_version(),
        versions=installed(),
        wrote=wrote,
        read=read,
        memory=_free_memory(),
        disk=shutil.disk_usage(existing(storage.root)).free,
        missing=tuple(path for path in paths if not Path(path).exists()),
        lack=judge.lacks(),
        home=os.environ.get("HF_HOME"),
        **seen,
    )


def installed() -> dict[str, str]:
    """Versions of the packages that decide what a trial computes, without importing them."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _driver() -> str | None:
    try:
        return Path("/proc/driver/nvidia/version").read_text().split("Module", 1)[1].split()[0]
    except (OSError, IndexError):
        return None


def _free_memory() -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0


def existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
