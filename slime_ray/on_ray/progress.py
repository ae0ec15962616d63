"""How a sweep gets on, for a person: a live table on a terminal, lines elsewhere, and a log file."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from ray import tune
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slime_ray.config.experiment import Trial

ROWS_SHOWN = 16
logger = logging.getLogger("slime_ray.sweep")


def print_line(console: Console, line: str) -> None:
    """Print a line as it is: without colours, marks or breaks."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)


class Callback(tune.Callback):
    """A callback of Tune's that keeps nothing for a restore of Tune's own, which is never used here."""

    def __getstate__(self) -> dict[str, Any]:
        """Return no state."""
        return {}


class Progress(Callback):
    """Follows the trials that Tune starts, reports and ends. Used as a context manager around the sweep.

    total: trials of the whole experiment, at most. finished: how many of them an earlier run has finished.
    """

    def __init__(self, *, console: Console, total: int, finished: int):
        self.console, self.total, self.finished_before = console, total, finished
        self.states: dict[str, dict[str, Any]] = {}
        self.durations: list[float] = []
        self.max_running = 1
        self.failed_trackers: set[str] = set()
        self.notices: set[str] = set()
        self.live: Live | None = None

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live = Live(self.table(), console=self.console, refresh_per_second=2, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Add a trial that got its resources."""
        spec = Trial.model_validate(trial.config["trial"])
        self.states[spec.trial_id] = {
            "label": spec.trial_id, "knobs": knobs(spec.values), "doing": "starting", "began": time.monotonic(),
        }  # fmt: skip
        self.max_running = max(self.max_running, len(self.running()))
        logger.info("%s started: %s", spec.trial_id, knobs(spec.values) or "the base settings")
        self.refresh()

    def update(self, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in what the running trials report, by trial id."""
        for name, report in metrics.items():
            if (notice := report.get("notice")) and notice not in self.notices:
                # Several trials may come upon the same.
                self.notices.add(notice)
                self.say(notice)
            if name in self.states and not self.states[name].get("finished"):
                if report.get("alarm") and not self.states[name].get("alarm"):
                    self.say(f"Sentinel: {name}: {report['alarm']}.")
                for tracker, reason in report.get("untracked", {}).items():
                    # A server that is gone fails for every trial; their logs have it.
                    if tracker not in self.failed_trackers:
                        self.failed_trackers.add(tracker)
                        self.say(f"{name} goes on without {tracker}: {reason} (said for the first trial only)")
                self.states[name].update({key: value for key, value in report.items() if value is not None})
        self.refresh()

    def say(self, sentence: str) -> None:
        """Print and log a sentence that concerns no single trial."""
        logger.info(sentence)
        print_line(self.console, sentence)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take in the result of a trial, which may be its last."""
        name = trial.config["trial"]["trial_id"]
        state = self.states.setdefault(name, {"label": name, "knobs": ""})
        state.update({key: value for key, value in result.items() if value is not None})
        if result.get("finished"):
            self._report_end(name, state)
        self.refresh()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a trial whose process died."""
        result = {"finished": True, "status": "failed", "reason": "its process died"}
        self.on_trial_result(iteration, trials, trial, result)

    def _report_end(self, name: str, state: Mapping[str, Any]) -> None:
        # Without a judge the table is led by the accuracy.
        unjudged = state.get("win_rate") is None and state.get("preference_accuracy") is not None
        lead, key = ("accuracy", "preference_accuracy") if unjudged else ("win rate", "win_rate")
        line = (
            f"{name} {state.get('status')}: {lead} {percent(state.get(key))}, "
            f"stability {number(state.get('stability'), 2)}, chosen drift {number(state.get('chosen_drift'), 3)}"
        )
        if state.get("reason"):
            line += f" ({state['reason']})"
        logger.info(line)
        if "began" in state:
            self.durations.append(time.monotonic() - state["began"])
        if self.live is None:
            print_line(self.console, f"[{self.finished}/{self.total}] {line}; {self.time_left()} left")

    @property
    def finished(self) -> int:
        """Number of trials that are done, those of an earlier run included."""
        return self.finished_before + sum(bool(state.get("finished")) for state in self.states.values())

    def running(self) -> list[dict[str, Any]]:
        """List the trials that are not done."""
        return [state for state in self.states.values() if not state.get("finished")]

    def time_left(self) -> str:
        """Format the time that is left, as minutes and seconds."""
        seconds = self.seconds_left()
        return "unknown time" if seconds is None else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"

    def seconds_left(self) -> float | None:
        """Estimate the seconds left, were each trial as long as those that are done; None before one is."""
        if not self.durations:
            return None
        mean, now = sum(self.durations) / len(self.durations), time.monotonic()
        remaining = [max(0.0, mean - (now - state["began"])) for state in self.running()]
        waiting = self.total - self.finished - len(remaining)
        # As many at once as there were; but the last ones take what they take.
        return max([(sum(remaining) + waiting * mean) / self.max_running, *remaining])

    def refresh(self) -> None:
        """Draw the table again."""
        if self.live:
            self.live.update(self.table())

    def table(self) -> Group:
        """Build the table: running trials first, then the latest that are done."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("trial", "knobs", "doing"):
            table.add_column(column, no_wrap=column != "knobs", overflow="ellipsis")
        for column in ("step", "loss", "drift", "win %", "stability"):
            table.add_column(column, justify="right", no_wrap=True)
        running = self.running()
        done = [state for state in self.states.values() if state.get("finished")]
        for state in [*running, *reversed(done)][:ROWS_SHOWN]:
            table.add_row(
                str(state["label"]), str(state["knobs"]), str(state.get("status") or state.get("doing", "")),
                steps(state), number(state.get("loss"), 3), number(state.get("chosen_drift"), 3),
                percent(state.get("win_rate")), number(state.get("stability"), 2),
            )  # fmt: skip
        return Group(table, Text(f"{self.finished} of {self.total} trials done, {self.time_left()} left", style="dim"))


def knobs(values: Mapping[str, Any]) -> str:
    """Format knobs in short: `anchor_weight=0.1 hard_margin=1.5`."""
    flat: dict[str, Any] = {}
    for path, value in values.items():
        items = value.items() if isinstance(value, dict) else [(path.rsplit(".", 1)[-1], value)]
        flat.update(items)
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in flat.items()
    )


def steps(state: Mapping[str, Any]) -> str:
    """Format `step/updates`, as far as known."""
    step, updates = state.get("step"), state.get("updates")
    return "" if step is None else f"{step}/{updates}" if updates else str(step)


def percent(value: float | None) -> str:
    """Format a share as a percentage with one decimal."""
    return "-" if value is None else f"{100 * value:.1f}"


def number(value: float | None, digits: int) -> str:
    """Format a number with so many decimals."""
    return "-" if value is None else f"{value:.{digits}f}"
