"""Ends what a local Ray instance leaves behind, above all when its driver is killed.

Ray's own servers end with the driver that started them, but two of their helpers (the agents of the dashboard and of
runtime environments) go on for ever when it was killed by SIGKILL, as the kernel does when memory runs out.
"""

import subprocess
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

GRACE_SECONDS = 5.0
"""How long processes may take to end by themselves."""

# Waits for the end of its input, which the driver closes, or its death does. A process is known by its number and the
# time it was started, since numbers are given again.
WATCH = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
known = dict(pair.split(":") for pair in sys.argv[2:])
sys.stdin.read()
def started(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
deadline = time.monotonic() + float(sys.argv[1])
while any(started(pid) == when for pid, when in known.items()) and time.monotonic() < deadline:
    time.sleep(0.1)
for pid, when in known.items():
    if started(pid) == when:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass
"""


@contextmanager
def janitor(pid: int, *, spare: Container[int] = ()) -> Iterator[None]:
    """Have a small process end the descendants that process `pid` has now, those to spare aside; Linux only.

    It does once the context is left, or this process gone.
    """
    found = {child: started for child, started in descendants(pid).items() if child not in spare}
    if not found:
        yield
        return
    pairs = [f"{child}:{started}" for child, started in found.items()]
    command = [sys.executable, "-I", "-S", "-c", WATCH, str(GRACE_SECONDS), *pairs]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        assert watcher.stdin is not None
        watcher.stdin.close()
        watcher.wait()


def descendants(pid: int) -> dict[int, str]:
    """Descendants of a process with the times they were started; none where there is no /proc."""
    parents: dict[int, tuple[int, str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        parents[int(stat.parent.name)] = (int(fields[1]), fields[19])
    found: dict[int, str] = {}
    new = {pid}
    while new:
        new = {child for child, (parent, _) in parents.items() if parent in new and child not in found}
        found |= {child: parents[child][1] for child in new}
    return found
