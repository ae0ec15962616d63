"""Processes of a session, as /proc lists them: who is at work, and what a sweep left behind."""

import time
from collections.abc import Iterator
from pathlib import Path


def of_session(session: int) -> Iterator[tuple[int, str]]:
    """Process id and command of everything that lives in a session."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] != "Z":
                yield int(stat.parent.name), (stat.parent / "cmdline").read_text().replace("\0", " ")
        except (OSError, IndexError):
            continue


def left_behind(session: int, seconds: float = 60) -> list[str]:
    """Commands of the processes that still live in a session, after a moment to end."""
    deadline = time.monotonic() + seconds
    while (alive := [command for _, command in of_session(session)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive
