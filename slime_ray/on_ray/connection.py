"""The Ray instance that a command works with, at RAY_ADDRESS or for itself alone, and its errors as sentences.

A janitor ends what a local instance leaves behind, above all when its driver is killed. Ray's own servers end with the
driver that started them, but two of their helpers (the agents of the dashboard and of runtime environments) go on for
ever when it was killed by SIGKILL, as the kernel does when memory runs out.
"""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import psutil
import ray

from slime_ray.errors import InputError, RunError, SlimeRayError
from slime_ray.training.outcome import one_sentence

CONNECT_SECONDS = 5.0
GRACE_SECONDS = 5.0
"""How long processes may take to end by themselves."""

# Waits for the end of its input, which the driver closes, or its death does.
WATCH = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
from contextlib import suppress
import psutil
known = []
for pid in sys.argv[2:]:
    with suppress(psutil.NoSuchProcess):
        known.append(psutil.Process(int(pid)))
sys.stdin.read()
def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
deadline = time.monotonic() + float(sys.argv[1])
while any(map(alive, known)) and time.monotonic() < deadline:
    time.sleep(0.1)
for process in filter(alive, known):
    with suppress(psutil.Error):
        process.kill()
"""


@contextmanager
def janitor(pid: int, *, exclude: Container[int] = ()) -> Iterator[None]:
    """Have a small process end the descendants that process `pid` has now, those in `exclude` aside.

    It does once the context is left, or this process gone.
    """
    pids = [str(child) for child in descendants(pid) if child not in exclude]
    if not pids:
        yield
        return
    # Packages may be a user's own or on PYTHONPATH; a module of the working folder must not stand before them.
    command = [sys.executable, "-P", "-c", WATCH, str(GRACE_SECONDS), *pids]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        watcher.communicate()


def descendants(pid: int) -> set[int]:
    """Return ids of the living descendants of a process."""
    return {child.pid for child in psutil.Process(pid).children(recursive=True) if _lives(child)}


def _lives(process: psutil.Process) -> bool:
    """Tell whether a process has not ended. Older Ray, such as 2.52, leaves what it killed as zombies of the driver."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def connected() -> Iterator[None]:
    """Connect to the Ray instance at RAY_ADDRESS or of this process, else to a new one for this process alone.

    Raises InputError, within seconds, for an address that cannot be used.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    # Interrupts have the trials leave with a checkpoint, see `Watch`.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Tune's newer output prints a box of its own even at verbose=0; the older one is silent.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # They print tracebacks: of what Tune cannot save for a restore of its own, which is never used here, and of lost
    # attempts, which `Watch` logs.
    for module in ("experiment_state", "tune_controller"):
        logging.getLogger(f"ray.tune.execution.{module}").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    local: dict[str, Any] = {}
    if address and address != "local":
        check_address(address)
    else:
        # Said outright, or Ray would join whatever was started last on this machine.
        local = {"address": "local", "include_dashboard": False}
    # Children of this process that are not Ray's.
    foreign_children = descendants(os.getpid())
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:
        # Ray raises bare ones, too, such as for a raylet that does not register in time.
        raise InputError(_refusal(address, error)) from None
    with janitor(os.getpid(), exclude=foreign_children) if local else nullcontext():
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def errors_as_sentences(failed: str) -> Iterator[None]:
    """Raise a task's own sentence as it is, any other error of a task or of Ray as a RunError.

    failed: how that begins, such as "The probe failed".
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, SlimeRayError):
            kind = InputError if isinstance(cause, InputError) else RunError
            raise kind(str(cause)) from None
        raise RunError(f"{failed}: {one_sentence(cause)}") from error


def last_line(error: object) -> str:
    """Return an error's last line, where Ray and servers say what is wrong, as part of a sentence."""
    lines = str(error or "").strip().splitlines()
    if lines:
        return lines[-1].strip()[:300]
    return type(error).__name__ if isinstance(error, BaseException) else "no reason is known"


def check_address(address: str) -> None:
    """Refuse an address that nobody answers, for which Ray would wait over a minute, or that a driver cannot use."""
    if address == "auto":
        return
    if "://" in address:
        raise InputError(
            f"RAY_ADDRESS is {address}: the driver of a sweep has to run inside the cluster. Submit the sweep with "
            "`slime-ray launch`, or run it on the head with RAY_ADDRESS=auto."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"RAY_ADDRESS is {address!r}: give it as host:port, such as 10.0.0.1:6379, or auto.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS) as stream:
            speaks_grpc = os.environ.get("RAY_USE_TLS") == "1" or _speaks_grpc(stream)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"No Ray cluster answers at {address} (RAY_ADDRESS): {reason}. Start one with `ray start --head`, correct "
            "the address, or unset RAY_ADDRESS to run on this machine alone."
        ) from None
    if not speaks_grpc:
        raise InputError(_refusal(address, "it does not speak gRPC"))


def _speaks_grpc(stream: socket.socket) -> bool:
    """Tell whether the other side speaks HTTP/2, as gRPC does (RFC 9113, 3.4)."""
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
    answer = b""
    while len(answer) < 4 and (chunk := stream.recv(64)):
        answer += chunk
    return answer[3:4] == settings[3:4]


def _refusal(address: str | None, error: object) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    low = text.lower()
    where = f"The Ray cluster at {address}" if address else "Ray"
    if "version mismatch" in low:
        return f"{where} runs other versions than this environment: {text}. Install the same on both."
    if "token" in low or "unauthenticated" in low or "authentication" in low:
        return (
            f"{where} refused this client's token. Give it the cluster's: RAY_AUTH_MODE=token, and the token in "
            "RAY_AUTH_TOKEN or in the file that RAY_AUTH_TOKEN_PATH names (~/.ray/auth_token otherwise)."
        )
    if address:
        return (
            f"What answers at {address} (RAY_ADDRESS) is no Ray cluster that can be used: {text[:200]}. Give the "
            "address of the head's GCS, by default port 6379."
        )
    return f"Ray cannot be started here: {text[:300]}."
