"""The attempts at a trial: when each began, what it had saved and how it ended; and when enough have been made.

They stand in `attempts.json` beside the trial's checkpoints, so that they outlive the processes and the driver.
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slime_ray.config.experiment import Faults
from slime_ray.runs import files

Ending = Literal["finished", "paused", "preempted", "lost", "hung", "device", "memory", "failed", "interrupted"]
"""finished: it has a result. paused: it was told to go on another time. preempted: its node was about to be taken away.
lost: a process or node died. hung: it said nothing for too long. device: a GPU failed. memory: it ran out of memory.
failed: it raised an error. interrupted: the sweep's own process died."""
FILE = "attempts.json"


@dataclass(frozen=True)
class Attempt:
    """One start of a trial; one that the driver counts has `ended` alone.

    started, saved, alive: seconds since 1970; saved: of the last checkpoint, or the start. host, pid: of rank 0.
    fault: the node whose GPU failed, and the error.
    """

    started: float = 0.0
    saved: float = 0.0
    alive: float = 0.0
    host: str = ""
    pid: int = 0
    workers: int = 1
    ended: Ending | None = None
    fault: str | None = None

    @property
    def lost_seconds(self) -> float:
        """Worker-seconds that had to be computed again: since the last checkpoint, where the attempt was cut off."""
        cut = self.ended in (None, "lost", "hung", "device", "memory", "interrupted")
        return self.workers * max(0.0, self.alive - self.saved) if cut else 0.0


def read(folder: Path) -> list[Attempt]:
    """All attempts at the trial whose folder this is, the last one last."""
    try:
        return [Attempt(**entry) for entry in json.loads((folder / FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        # What is unknown is not held against the trial.
        return []


def stamp(folder: Path) -> int | None:
    """Changes whenever something was noted."""
    try:
        return (folder / FILE).stat().st_mtime_ns
    except OSError:
        return None


def begin(folder: Path, *, workers: int) -> list[Attempt]:
    """Note that an attempt starts, and return it with those before. One that never said goodbye was lost.

    Raises OSError where it cannot be noted: a start that does not count would be made for ever.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    before = [attempt if attempt.ended else dataclasses.replace(attempt, ended="lost") for attempt in read(folder)]
    attempts = [*before, Attempt(now, now, now, platform.node(), os.getpid(), workers)]
    _write(folder, attempts)
    return attempts


def note(folder: Path, *, saved: bool = False, ended: Ending | None = None, fault: str | None = None) -> None:
    """Note that the attempt that runs is alive, has written a checkpoint, or has ended. One that has ended stays so.

    What cannot be written is left out: a full disk has to be told by what matters more.
    """
    attempts = read(folder)
    if not attempts or attempts[-1].ended:
        return
    last, now = attempts[-1], time.time()
    # A sweep that is gone on with may have been dead for days; the driver notices at once what else was lost.
    alive = last.alive if ended == "interrupted" else now
    noted = dataclasses.replace(last, alive=alive, saved=now if saved else last.saved, ended=ended, fault=fault)
    with suppress(OSError):
        _write(folder, [*attempts[:-1], noted])


def enough(attempts: Sequence[Attempt], faults: Faults) -> str | None:
    """Why no further attempt is made after these, as a sentence; None while one may be."""
    endings = [attempt.ended for attempt in attempts]
    lost = sum(ending in ("lost", "hung", "device") for ending in endings)
    hours = sum(attempt.lost_seconds for attempt in attempts) / 3600
    if endings.count("memory") > 1:
        return "it ran out of memory twice; give it smaller rows (data.row_tokens), fewer max_tokens or more memory"
    if lost > faults.retries:
        where = "; ".join(dict.fromkeys(attempt.fault for attempt in attempts if attempt.fault))
        gpus = f"; {endings.count('device')} times a GPU failed ({where})" if where else ""
        return f"it lost a process, a node or its voice {lost} times, and faults.retries is {faults.retries}{gpus}"
    if endings.count("preempted") > faults.preemptions:
        return (
            f"its node was taken away {endings.count('preempted')} times (faults.preemptions is {faults.preemptions})"
        )
    if faults.lost_hours is not None and hours > faults.lost_hours:
        return f"{hours:.2f} worker-hours of it were computed for nothing (faults.lost_hours is {faults.lost_hours:g})"
    return None


def _write(folder: Path, attempts: Sequence[Attempt]) -> None:
    text = json.dumps([dataclasses.asdict(attempt) for attempt in attempts], indent=1)
    # It is written every few seconds, and what a power failure takes of it is not held against the trial.
    files.write(folder / FILE, text, durable=False)
