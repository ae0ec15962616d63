"""How a run stands, for whoever looks at it from another terminal: a small file that its sweep rewrites as it goes."""

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from slime_ray.config.metrics import Constraint, violation
from slime_ray.errors import InputError
from slime_ray.runs import files, results
from slime_ray.runs.pareto import on_front, signed
from slime_ray.runs.redaction import redact

STATUS = "status.json"
FRESH_SECONDS = 60.0
"""For so long a sweep that has said something is believed to be at work, where its process cannot be looked at."""


@dataclass(frozen=True)
class RunStatus:
    """What a sweep last said of itself.

    written: seconds since 1970. started: the same of the process, which tells it from a later one of its number; 0
    where that was not written. trials: those that run, as they reported. stages: how the making of what trials share
    gets on, while it is made. spent: by part of the budget, such as `hours`.
    seconds_left: as its driver expects, None where it cannot tell.
    """

    written: float = 0.0
    node: str = ""
    pid: int = 0
    started: float = 0.0
    ended: bool = True
    finished: int = 0
    total: int = 0
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, float | None] = field(default_factory=dict)
    seconds_left: float | None = None

    @property
    def at_work(self) -> bool:
        """Whether the sweep that wrote this still lives, as far as can be told from here."""
        if self.ended:
            return False
        if self.node == platform.node():
            import psutil

            try:
                started = psutil.Process(self.pid).create_time()
            except psutil.Error:
                return False
            return not self.started or abs(started - self.started) < 1
        return time.time() - self.written < FRESH_SECONDS


_STATUS = TypeAdapter(RunStatus)


def write_status(run: Path, *, ended: bool = False, **fields: Any) -> None:
    """Say how the sweep of this process stands. fields: further ones of `RunStatus`."""
    import psutil

    process = {"node": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    status = RunStatus(written=time.time(), ended=ended, **process, **fields)
    files.write(run / STATUS, json.dumps(redact(asdict(status)), default=str))


def announce(run: Path, *, ended: bool = False, stages: Mapping[str, Any] = {}) -> None:
    """Say that the sweep of this process begins, makes stages or ends; of earlier trials only values are known yet."""
    status = read_status(run)
    waiting = {name: {"doing": "waiting", "values": state.get("values") or {}} for name, state in status.trials.items()}
    # A disk that takes nothing is told by those who have more to write.
    with suppress(OSError):
        write_status(
            run, finished=status.finished, total=status.total, trials={} if ended else waiting, ended=ended,
            stages=stages, spent=status.spent,
        )  # fmt: skip


@contextmanager
def announce_sweep(run: Path) -> Iterator[None]:
    """Announce that a sweep of this process is at work on a run, and in the end that none is."""
    announce(run)
    try:
        yield
    finally:
        announce(run, ended=True)


def read_status(run: Path) -> RunStatus:
    """What the run's sweep last said; one that has ended, where it said nothing that can be read."""
    try:
        text = (run / STATUS).read_text(encoding="utf-8")
        # The loss of a policy that breaks is NaN, which no browser reads as JSON.
        return _STATUS.validate_python(json.loads(text, parse_constant=lambda name: None))
    except (OSError, ValueError, RecursionError):
        return RunStatus()


def runs_in(storage: Path) -> list[dict[str, Any]]:
    """Every run in a folder, the latest first: its name, when it was begun, its state, its trials and stages."""
    runs = []
    for file in storage.glob("*/manifest.json"):
        try:
            description = describe(file.parent)
        except InputError:
            continue
        runs.append({key: description[key] for key in ("name", "state", "done", "total", "stages", "begun")})
    return sorted(runs, key=lambda run: run["begun"], reverse=True)


def describe(run: Path, rows: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """All that `slime-ray status` shows. Raises InputError where `run` is no run.

    state: `at work`, `finished` or `interrupted`. ends: trials that have ended, counted by how. front: ids of the
    search's best so far. running: trials at work, as they last reported. stages: the making of what they share.
    spent: of each part of the budget, with its limit or None. budget: trials of a search that may have more. left:
    seconds, or None where that is unknown.

    Args:
        run: Its folder.
        rows: Of the trials that have finished, where they are at hand.
    """
    manifest, status = results.read_manifest(run), read_status(run)
    rows = results.finished_trials(run) if rows is None else rows
    experiment = manifest.get("experiment") or {}
    budget = experiment.get("budget") or {}
    at_work = status.at_work
    if not at_work:
        # Of what it last said, the rest is over.
        status = RunStatus(total=status.total, spent=manifest.get("spent") or status.spent)
    return {
        "name": str(manifest.get("name", run.name)),
        "state": "at work" if at_work else "finished" if manifest.get("finished") else "interrupted",
        "begun": str(manifest.get("created") or ""),
        "finished": manifest.get("finished"),
        "said": round(time.time() - status.written, 1) if at_work else None,
        "done": len(rows),
        "total": max(status.total, len(rows)),
        "ends": dict(Counter(str(row.get("status")) for row in rows.values())),
        "running": {name: report for name, report in status.trials.items() if name not in rows},
        "stages": status.stages,
        "front": _front(rows, manifest.get("goals") or {}, experiment.get("constraints") or ()),
        "alarms": {name: row["alarm"] for name, row in rows.items() if row.get("alarm")},
        "spent": {name: [value, budget.get(name)] for name, value in status.spent.items() if value or budget.get(name)},
        "budget": budget.get("trials") if experiment.get("search") and not experiment.get("league") else None,
        "left": status.seconds_left,
    }


def _front(
    rows: Mapping[str, Mapping[str, Any]], goals: Mapping[str, str], constraints: Sequence[str]
) -> list[dict[str, Any]]:
    """Completed search trials that keep the constraints and that no other such trial beats, by the first goal."""
    try:
        limits = [Constraint.parse(str(text)) for text in constraints]
    except ValueError as error:
        raise InputError(f"manifest.json: experiment.constraints: {error}. Copy the run again.") from None
    complete = [
        row
        for row in rows.values()
        if row["phase"] == "search"
        and row["status"] == "completed"
        and all(row.get(goal) is not None for goal in goals)
        and violation(row, limits) == 0
    ]
    points = signed([[float(row[goal]) for goal in goals] for row in complete], list(goals.values()))
    front = sorted(np.flatnonzero(on_front(points)).tolist(), key=lambda place: [-value for value in points[place]])
    return [{name: complete[place][name] for name in ("trial_id", *goals)} for place in front]
