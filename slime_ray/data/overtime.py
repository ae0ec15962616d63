"""A limit on what somebody else's code may compute, such as a chat template that loops for ever."""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_LOOK_SECONDS = 0.2

_limits: dict[int, float] = {}
"""By thread, the processor time of this process at which its work is ended."""
_lock = threading.Lock()
_watcher: threading.Thread | None = None


class Overtime(Exception):
    """Raised within work that does not end. It is raised by its class, hence without arguments."""

    def __str__(self) -> str:
        return "it had not ended after a time in which thousands end"


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return what `work` returns, ended once this process has computed for `seconds` without its return.

    Time is the processor's, so that a busy or suspended machine ends nothing. Needs no signal, and so serves in any
    thread, but not within itself. It ends Python code, which the loops of templates are; a single endless operation in
    C is not ended.

    Raises:
        Overtime: it had not returned.
    """
    _watch()
    thread = threading.get_ident()
    with _lock:
        _limits[thread] = time.process_time() + seconds
    try:
        return work()
    finally:
        stopped = False
        while not stopped:
            try:
                with _lock:
                    _limits.pop(thread, None)
                # Drop one that was sent but has not been raised yet.
                _raise_in(thread, None)
                stopped = True
            except Overtime:  # raised after the work had returned
                continue


def _watch() -> None:
    """Have one thread look at all limits. One that was started before a fork is not there after it."""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        _watcher = threading.Thread(target=_look, name="overtime", daemon=True)
        _watcher.start()


def _look() -> None:
    while True:
        time.sleep(_LOOK_SECONDS)
        with _lock:
            # Again and again, since the work may catch what is raised in it.
            for thread, limit in _limits.items():
                if time.process_time() >= limit:
                    _raise_in(thread, Overtime)


def _raise_in(thread: int, error: type[Exception] | None) -> None:
    sent = ctypes.py_object(error) if error else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), sent)
