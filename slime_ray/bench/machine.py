"""What measurements ask of a machine: a device, a clock, a process of its own, a process's memory."""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from slime_ray.errors import InputError, is_memory_error

Say = Callable[[str], None]
"""Takes a line that tells how far a measurement is."""


def find_device(name: str) -> torch.device:
    """Find the device of `--device`. Raises InputError for cuda where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here. Use --device cpu, or a torch built for your GPU.")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


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


def reason(error: BaseException) -> str:
    """Write an error in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "out of memory" if is_memory_error(error) else lines[0][:160]


@dataclass(frozen=True)
class ProcessResult:
    """What a process of its own gave. values: None where it did not come to its end, and `failure` says why. log: its
    standard error."""

    values: Any
    failure: str | None = None
    log: str = ""


def in_a_process(
    work: Callable[..., Any], *arguments: Any, seconds: float | None = None, environment: Mapping[str, str] = {}
) -> ProcessResult:
    """Call a function of a module in a process of its own, which starts with these variables."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        process = context.Process(target=_call, args=(sender, log, work, arguments))
        with _variables(environment):
            process.start()
        sender.close()
        try:
            if not receiver.poll(seconds):
                return ProcessResult(None, f"not done after {seconds:.0f} s")
            result: ProcessResult = receiver.recv()
            return replace(result, log=log.read_text(errors="replace"))
        except EOFError:
            process.join()
            last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
            failure = ": ".join([f"failed with exit code {process.exitcode}", *last])[:160]
            return ProcessResult(None, "killed, out of memory" if process.exitcode == -9 else failure)
        finally:
            process.kill()
            process.join()


def _call(sender: Connection, log: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Make one call. Should the machine run out of memory, this process is the one to end."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    try:
        sender.send(ProcessResult(work(*arguments)))
    except (RuntimeError, MemoryError, ImportError) as error:
        sender.send(ProcessResult(None, reason(error)))


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def process_bytes(key: str, pid: int | str = "self") -> int:
    """Read a process's memory on Linux, in bytes: VmRSS is what it holds, VmHWM the most that it held."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)
