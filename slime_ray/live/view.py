"""A run as the live page shows it: looked at again and again, its page built anew when results have changed."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slime_ray.errors import SlimeRayError
from slime_ray.runs.control import open_run
from slime_ray.runs.instructions import Instructions
from slime_ray.runs.redaction import redact, redact_sentence
from slime_ray.runs.results import finished_trial
from slime_ray.runs.status import describe
from slime_ray.runs.store import RunStore, is_url

SHARE, FREE_SECONDS = 0.01, 10.0
"""Building the page takes so much of a core in the long run, and may take so many seconds beyond that."""
Stamp = tuple[int, int]


class LiveRun:
    """One run that is looked at. Methods may be called from several threads; they take turns.

    Attributes:
        snapshot: What the page shows besides the report, as JSON; empty before the first look.
        page: The report, None before a trial has finished.
        ended: Whether the sweep is at work no more.
        report: Where the static report is, once it is written.
    """

    def __init__(self, address: str):
        self.address, self.display_address = address, str(redact(address))
        self.snapshot: dict[str, Any] = {}
        self.page: str | None = None
        self.ended = False
        self.report: Path | None = None
        self._turn = threading.Lock()
        self._run_store: RunStore | None = None
        self._rows: dict[str, tuple[Stamp, dict[str, Any] | None]] = {}
        self._built: dict[str, Stamp] = {}
        self._version = 0
        self._problem: str | None = None
        self._began, self._spent = time.monotonic(), 0.0
        self._paces: dict[str, tuple[float, int]] = {}

    def act(self, action: Callable[[Path, RunStore], str]) -> str:
        """Do something to the run and give the sentence that says so. Raises SlimeRayError."""
        with self._turn, open_run(self.address, self._run_store) as (run, run_store):
            self._run_store = run_store
            return action(run, run_store)

    def look(self, *, build: bool) -> None:
        """Look how the run stands; with `build`, build its page anew where results have changed.

        Raises:
            SlimeRayError: It cannot be read.
        """
        with self._turn, open_run(self.address, self._run_store) as (run, run_store):
            self._run_store = run_store
            rows = self._finished_rows(run)
            description = describe(run, rows)
            stamps = {name: self._rows[name][0] for name in rows}
            self.ended = description["state"] != "at work"
            affordable = self._spent < FREE_SECONDS + SHARE * (time.monotonic() - self._began)
            last = self.ended and self.report is None
            if rows and (last or (build and affordable and stamps != self._built)):
                self._build(run, stamps)
            self.snapshot = self._snapshot(run, description, len(rows.keys() - self._built.keys()))

    def knobs(self) -> dict[str, Any]:
        """By trial of the search what it sets over the base, for whoever clones one."""
        with self._turn, open_run(self.address, self._run_store) as (run, _):
            finished_values = {
                name: json.loads(row["overrides"] or "{}")
                for name, row in self._finished_rows(run).items()
                if row.get("phase") != "confirm"
            }
            return {name: trial["values"] for name, trial in self.snapshot.get("running", {}).items()} | finished_values

    def _finished_rows(self, run: Path) -> dict[str, dict[str, Any]]:
        """Rows of the trials that have finished. Files that have not changed are not read again."""
        rows: dict[str, tuple[Stamp, dict[str, Any] | None]] = {}
        for file in sorted((run / "trials").glob("*/trial.json")):
            try:
                stat = file.stat()
            except OSError:
                continue
            stamp, entry = (stat.st_size, stat.st_mtime_ns), self._rows.get(file.parent.name)
            rows[file.parent.name] = entry if entry and entry[0] == stamp else (stamp, finished_trial(file.parent))
        self._rows = rows
        return {name: row for name, (_, row) in rows.items() if row is not None}

    def _build(self, run: Path, stamps: dict[str, Stamp]) -> None:
        """Build the page; at the end, write the whole report and take its page."""
        from slime_ray.analysis.report import build_live_page, write_report

        began = time.thread_time()
        try:
            if self.ended:
                out = Path(f"{run.name}-report") if is_url(self.address) else None
                self.report = write_report(run, out).html
                page = self.report.read_text(encoding="utf-8")
            else:
                page = build_live_page(run)
            self._problem = None
        except (SlimeRayError, OSError) as error:
            # What is being written may be whole at the next change.
            self._problem = redact_sentence(str(error))
        except Exception as error:
            # Half a run may be what no table was made for, and the sweep is watched all the same.
            if self.ended:
                raise
            self._problem = redact_sentence(f"The report cannot be built yet ({type(error).__name__}: {error}).")
        else:
            if page != self.page:
                self.page, self._version = page, self._version + 1
        self._built = stamps
        self._spent += time.thread_time() - began

    def _snapshot(self, run: Path, description: Mapping[str, Any], behind: int) -> dict[str, Any]:
        instructions = Instructions.read(run)
        last_seen = time.time() - (description["said"] or 0)
        running = {
            name: {
                **{key: trial.get(key) for key in ("doing", "step", "updates", "loss", "chosen_drift", "alarm")},
                "values": trial.get("values") or {},
                "left": self._seconds_left(name, trial, last_seen),
                "stopping": name in instructions.stops,
            }
            for name, trial in description["running"].items()
        }
        waiting = [clone.trial_id for clone in instructions.clones if clone.trial_id not in {*running, *self._rows}]
        return {
            **description,
            "running": running,
            "waiting": waiting,
            "ended": self.ended,
            "version": self._version,
            "behind": behind,
            "problem": self._problem,
            "report": str(self.report or ""),
            "run": self.display_address,
        }

    def _seconds_left(self, name: str, trial: Mapping[str, Any], last_seen: float) -> float | None:
        """What is left of a trial's training, at the pace since it was first seen; None before there is one."""
        step, updates = trial.get("step"), trial.get("updates")
        # While it is judged, these count verdicts.
        if trial.get("doing") != "training" or not isinstance(step, int) or not isinstance(updates, int):
            return None
        since, first = self._paces.setdefault(name, (last_seen, step))
        if step < first:
            # It was begun again.
            self._paces[name] = (last_seen, step)
        return (last_seen - since) / (step - first) * (updates - step) if step > first else None
