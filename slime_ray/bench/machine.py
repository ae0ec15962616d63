"""The machine and the versions that a measurement belongs to, and what measurements ask of it."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from slime_ray.errors import InputError

Say = Callable[[str], None]
"""Takes a line that tells how far a measurement is."""


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran. memory_gib: of the machine. gpu: its name, None on a CPU."""

    processor: str
    cores: int
    memory_gib: float
    gpu: str | None
    python: str
    torch: str
    transformers: str
    peft: str


def describe_machine(device: torch.device) -> Machine:
    """This machine."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(_meminfo("MemTotal") / 2**30, 1),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=version("transformers"),
        peft=version("peft"),
    )


def find_device(name: str) -> torch.device:
    """The device of `--device`. Raises InputError for cuda where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here. Use --device cpu, or a torch built for your GPU.")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def available_bytes(device: torch.device) -> int:
    """Memory that new tensors may take on this device, 0 where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _meminfo("MemAvailable")


def now() -> str:
    """The date and time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use this many threads for a while."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on a GPU or on the machine."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _meminfo(key: str) -> int:
    """Bytes by one line of /proc/meminfo, 0 where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
