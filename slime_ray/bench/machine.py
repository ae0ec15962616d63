"""The machine and the versions that a measurement belongs to, and what measurements ask of it."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

import slime_ray
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
    """Describe this machine."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=version("transformers"),
        peft=version("peft"),
    )


def find_device(name: str) -> torch.device:
    """Find the device of `--device`. Raises InputError for cuda where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here. Use --device cpu, or a torch built for your GPU.")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def now() -> str:
    """Return the date and time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of some work, once the device has finished it."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    clock = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - clock


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


@dataclass(frozen=True)
class ProcessResult:
    """What a process of its own gave. values: None where it did not come to its end, and `failure` says why."""

    values: Any
    failure: str | None
    log: str = ""


def in_a_process(
    work: str, *arguments: Any, seconds: float | None = None, environment: Mapping[str, str] = {}
) -> ProcessResult:
    """Call `module:function` in a process of its own. What it takes and gives travels as JSON."""
    root = str(Path(slime_ray.__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        child = subprocess.run(
            [sys.executable, "-m", "slime_ray.bench.child"],
            input=json.dumps([work, arguments]), capture_output=True, text=True, check=False,
            env={**os.environ, **environment, "PYTHONPATH": path}, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return ProcessResult(None, f"not done after {seconds:.0f} s")
    if child.returncode == 0:
        return ProcessResult(**json.loads(child.stdout.splitlines()[-1]), log=child.stderr)
    if child.returncode == -9:
        return ProcessResult(None, "killed, out of memory", child.stderr)
    last = (child.stderr.strip().splitlines() or ["no message"])[-1]
    return ProcessResult(None, f"failed with exit code {child.returncode}: {last[:120]}", child.stderr)


def process_bytes(key: str, pid: int | str = "self") -> int:
    """Read a process's memory on Linux, in bytes: VmRSS is what it holds, VmHWM the most that it held."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
