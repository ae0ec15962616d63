"""What the driver shows and watches while trials run.

Shown are a live table on a terminal, lines elsewhere, and a log file next to them. Watched are silence, resources left
behind, a spent budget and interrupts.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slime_ray.config.experiment import Experiment, Faults, Resources, Trial
from slime_ray.errors import INTERRUPTED
from slime_ray.on_ray.cluster_state import free_nodes
from slime_ray.on_ray.connection import last_line
from slime_ray.on_ray.monitor import Monitor, TrialStatus
from slime_ray.on_ray.plan import TrialPlan
from slime_ray.on_ray.resources import Meter, waiting_for
from slime_ray.on_ray.workers import GPU_FAILED
from slime_ray.runs.instructions import FOLDER, Instructions
from slime_ray.runs.status import STATUS, write_status
from slime_ray.runs.store import RunStore
from slime_ray.training import attempts
from slime_ray.training.orders import interrupts
from slime_ray.training.outcome import CHECKPOINTS, MODEL, record_failure, refused, what_failed

LOOK_SECONDS = 0.3
STATUS_SECONDS = 2.0
STORE_SECONDS = 20.0
"""How often an object store is asked for instructions and told how the run stands."""
GRACE_SECONDS = 120.0
"""How long trials may take to write their checkpoints and leave, once they were told to."""
ROWS_SHOWN = 16
MOST_GPU_FAULTS = 2
"""GPU errors on one node after which it is named."""
logger = logging.getLogger("slime_ray.sweep")


def print_line(console: Console, line: str) -> None:
    """Print a line as it is: without colours, marks or breaks."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)


class Callback(tune.Callback):
    """A callback of Tune's that keeps nothing for a restore of Tune's own, which is never used here."""

    def __getstate__(self) -> dict[str, Any]:
        """Empty."""
        return {}


class Progress(Callback):
    """Follows the trials that Tune starts, reports and ends. Used as a context manager around the sweep.

    total: trials of the whole experiment. finished: how many of them an earlier run has finished.
    """

    def __init__(self, *, console: Console, total: int, finished: int):
        self.console, self.total, self.before = console, total, finished
        self.states: dict[str, dict[str, Any]] = {}
        self.took: list[float] = []
        self.at_once = 1
        self.untracked: set[str] = set()
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
        """A trial got its resources."""
        ours = Trial.model_validate(trial.config["trial"])
        self.states[ours.trial_id] = {
            "label": ours.trial_id, "knobs": knobs(ours.values), "doing": "starting", "began": time.monotonic(),
        }  # fmt: skip
        self.at_once = max(self.at_once, len(self.running()))
        logger.info("%s started: %s", ours.trial_id, knobs(ours.values) or "the base settings")
        self.refresh()

    def hear(self, told: Mapping[str, Mapping[str, Any]]) -> None:
        """How the running trials get on, by trial id."""
        for name, news in told.items():
            if (notice := news.get("notice")) and notice not in self.notices:
                # Several trials may come upon the same.
                self.notices.add(notice)
                self.say(notice)
            if name in self.states and not self.states[name].get("finished"):
                if news.get("alarm") and not self.states[name].get("alarm"):
                    self.say(f"Sentinel: {name}: {news['alarm']}.")
                for tracker, reason in news.get("untracked", {}).items():
                    # A server that is gone fails for every trial; their logs have it.
                    if tracker not in self.untracked:
                        self.untracked.add(tracker)
                        self.say(f"{name} goes on without {tracker}: {reason} (said for the first trial only)")
                self.states[name].update({key: value for key, value in news.items() if value is not None})
        self.refresh()

    def say(self, sentence: str) -> None:
        """Tell something that concerns no single trial."""
        logger.info(sentence)
        print_line(self.console, sentence)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial told that it is done."""
        name = trial.config["trial"]["trial_id"]
        state = self.states.setdefault(name, {"label": name, "knobs": ""})
        state.update({key: value for key, value in result.items() if value is not None})
        if result.get("finished"):
            self._done(name, state)
        self.refresh()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died."""
        name = trial.config["trial"]["trial_id"]
        state = self.states.setdefault(name, {"label": name, "knobs": ""})
        state |= {"finished": True, "status": "failed", "reason": "its process died"}
        self._done(name, state)
        self.refresh()

    def _done(self, name: str, state: Mapping[str, Any]) -> None:
        # Without a judge the table is led by the accuracy.
        unjudged = state.get("win_rate") is None and state.get("preference_accuracy") is not None
        lead, key = ("accuracy", "preference_accuracy") if unjudged else ("win rate", "win_rate")
        ended = (
            f"{name} {state.get('status')}: {lead} {percent(state.get(key))}, "
            f"stability {number(state.get('stability'), 2)}, chosen drift {number(state.get('chosen_drift'), 3)}"
        )
        if state.get("reason"):
            ended += f" ({state['reason']})"
        logger.info(ended)
        if "began" in state:
            self.took.append(time.monotonic() - state["began"])
        if self.live is None:
            print_line(self.console, f"[{self.finished}/{self.total}] {ended}; {self.time_left()} left")

    @property
    def finished(self) -> int:
        """Trials that are done, those of an earlier run included."""
        return self.before + sum(bool(state.get("finished")) for state in self.states.values())

    def running(self) -> list[dict[str, Any]]:
        """The trials that are not done."""
        return [state for state in self.states.values() if not state.get("finished")]

    def time_left(self) -> str:
        """The same as minutes and seconds."""
        seconds = self.seconds_left()
        return "unknown time" if seconds is None else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"

    def seconds_left(self) -> float | None:
        """What is left if each trial takes as long as those that are done; None before one is."""
        if not self.took:
            return None
        mean, now = sum(self.took) / len(self.took), time.monotonic()
        begun = [max(0.0, mean - (now - state["began"])) for state in self.running()]
        waiting = self.total - self.finished - len(begun)
        # As many at once as there were; but the last ones take what they take.
        return max([(sum(begun) + waiting * mean) / self.at_once, *begun])

    def refresh(self) -> None:
        """Draw the table again."""
        if self.live:
            self.live.update(self.table())

    def table(self) -> Group:
        """Running trials first, then the latest that are done."""
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
    """Set values, short: `anchor_weight=0.1 hard_margin=1.5`."""
    flat: dict[str, Any] = {}
    for path, value in values.items():
        items = value.items() if isinstance(value, dict) else [(path.rsplit(".", 1)[-1], value)]
        flat.update(items)
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in flat.items()
    )


def steps(state: Mapping[str, Any]) -> str:
    """`step/updates`, as far as known."""
    step, updates = state.get("step"), state.get("updates")
    return "" if step is None else f"{step}/{updates}" if updates else str(step)


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "-" if value is None else f"{100 * value:.1f}"


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals."""
    return "-" if value is None else f"{value:.{digits}f}"


class PlacementTimeout(Exception):
    """Nothing could be placed for as long as one may wait."""


class ShutdownTimeout(Exception):
    """Trials that were told to leave have not left for as long as they may take."""


class PlacementTimer:
    """Watches over waiting for a place: complains every minute, and in the end gives up."""

    def __init__(self, resources: Resources, faults: Faults, say: Callable[[str], object]):
        self.resources, self.faults, self.say = resources, faults, say
        self.over()

    def over(self) -> None:
        """Something is at work, or nothing is wanted."""
        self.since = self.said = time.monotonic()

    def go_on(self) -> None:
        """Note that something wants a place and nothing is at work.

        Raises PlacementTimeout after faults.placement_minutes of that.
        """
        now = time.monotonic()
        if now - self.since > 60 * self.faults.placement_minutes:
            raise PlacementTimeout(
                f"{self._sentence(now)} (faults.placement_minutes is {self.faults.placement_minutes:g})"
            )
        if now - self.said > 60:
            self.said = now
            self.say(f"Waiting for {self._sentence(now)}")

    def _sentence(self, now: float) -> str:
        return f"{now - self.since:.0f} s: {waiting_for(self.resources, free_nodes())}"


class Watch(Callback):
    """Follows the running trials through the monitor, and sees to it that whatever ends leaves nothing behind."""

    def __init__(
        self,
        experiment: Experiment,
        *,
        run: Path,
        storage: RunStore,
        monitor: Monitor,
        plan: TrialPlan,
        progress: Progress,
        meter: Meter,
        searches_on: Callable[[int], None] = lambda trials: None,
    ):
        self.experiment, self.run, self.storage, self.monitor = experiment, run, storage, monitor
        self.plan, self.progress, self.meter = plan, progress, meter
        self.leaving: str | None = None
        self.spent: str | None = None
        self.left_at = self.looked = self.said = self.asked = 0.0
        self.stopping: set[str] = set()
        self.budget, self.searches_on = experiment.budget.trials, searches_on
        self.refused: int | None = None
        self.wait = PlacementTimer(experiment.resources, experiment.faults, progress.say)
        self.interrupts = 0
        self.attempts: dict[str, list[attempts.Attempt]] = {}
        self.refusing_since: float | None = None
        self.gpu_faults: dict[tuple[str, float], str] = {}

    @contextmanager
    def interrupts_as_orders(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM have the trials leave with a checkpoint; the second one ends everything at once."""

        def handle() -> None:
            self.interrupts += 1
            if self.interrupts > 1:
                raise KeyboardInterrupt

        with interrupts(handle):
            yield

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Tune again and again, several times a second."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        heard = self.monitor.heard()
        self.progress.hear({name: voice.told for name, voice in heard.items()})
        self._say_how_it_stands(now, heard)
        self._follow_instructions(now, heard)
        self.meter.look([name for name, voice in heard.items() if voice.at_work], now)
        self._leave_in_time(now)
        self._end_the_silent(heard)
        self._wait_for_a_place(trials, heard)

    def _say_how_it_stands(self, now: float, heard: dict[str, TrialStatus]) -> None:
        if now - self.said < STATUS_SECONDS:
            return
        self.said = now
        values = {trial.trial_id: trial.values for trial in self.plan.by_tune_id.values()}
        running = {name: {**voice.told, "values": values.get(name, {})} for name, voice in heard.items()}
        try:
            write_status(
                self.run, finished=self.progress.finished, total=self.progress.total, trials=running,
                spent=self.meter.spent.as_json(), seconds_left=self.progress.seconds_left(),
            )  # fmt: skip
            self.refusing_since = None
        except OSError as error:
            if self.refusing_since is None:
                self.refusing_since = now
                logger.warning("How the run stands could not be written: %s", error)
            # What trials come to could not be written either.
            if self.leaving is None and now - self.refusing_since > 60 * self.experiment.faults.storage_minutes:
                self.leave(what_failed(refused(error)))

    def _follow_instructions(self, now: float, heard: dict[str, TrialStatus]) -> None:
        if self.storage.url is not None:
            if now - self.asked < STORE_SECONDS:
                return
            self.asked = now
            try:
                self.storage.push(self.run / STATUS)
                self.storage.pull(self.run / FOLDER)
            except OSError as error:
                logger.warning("The storage could not be asked for instructions: %s", error)
        asked = Instructions.read(self.run)
        for name in asked.stops.keys() & heard.keys() - self.stopping:
            self.stopping.add(name)
            self.progress.say(f"{name} is {asked.stops[name]}.")
            self.monitor.stop_trial(name, asked.stops[name])
        # One that was taken up has raised the budget, and is of no budget any more.
        if self.budget != self.refused and (trials := asked.extensions.get(self.budget)):
            self._extend(trials)
        for clone in asked.clones:
            if self.leaving is None and self.plan.add(clone):
                self.progress.total += 1
                self.progress.say(f"{clone.trial_id} runs next: {clone.of} with other knobs.")

    def _extend(self, trials: int) -> None:
        if self.leaving is not None or not self.plan.extend(trials):
            self.refused = self.budget
            self.progress.say(
                "The search is over, so it gets no further trials. `slime-ray extend` goes on with the run."
            )
            return
        self.budget += trials
        self.progress.total += trials * len(self.plan.parts)
        self.searches_on(trials)
        self.progress.say(f"The search goes on for {trials} trials more.")

    def _leave_in_time(self, now: float) -> None:
        if self.leaving is None and self.interrupts:
            self.leave(INTERRUPTED)
        elif self.leaving is None and (spent := self.meter.over()):
            self.spent = spent
            self.leave(self.meter.sentence(spent))
        elif self.leaving is not None and now - self.left_at > GRACE_SECONDS:
            raise ShutdownTimeout

    def leave(self, reason: str) -> None:
        """Start no further trial, and have those that run write a checkpoint and leave."""
        self.leaving, self.left_at = reason, time.monotonic()
        self.plan.ending = True
        logger.info("The sweep ends: %s. Running trials write a checkpoint first.", reason)
        self.monitor.leave(f"the sweep ended: {reason}")

    def _end_the_silent(self, heard: dict[str, TrialStatus]) -> None:
        for name, voice in heard.items():
            if voice.silent > 60 * self.experiment.faults.hang_minutes and voice.at_work:
                logger.warning("%s has said nothing for %.0f s; its processes are ended.", name, voice.silent)
                self._note(name, "hung")
                self.monitor.kill(name)

    def _wait_for_a_place(self, trials: list[Any], heard: dict[str, TrialStatus]) -> None:
        waiting = [trial for trial in trials if trial.status == "PENDING"]
        unplaced = [name for name, voice in heard.items() if not voice.at_work]
        if (heard and len(unplaced) < len(heard)) or not (waiting or unplaced):
            self.wait.over()
        else:
            self.wait.go_on()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Free what a trial that ended, in whatever way, still holds."""
        self.monitor.end(trial.config["trial"]["trial_id"])
        self._point_out_nodes(trial.config["trial"]["trial_id"])
        told = trial.last_result or {}
        if self.leaving is None and told.get("status") == "paused":
            # It could not be judged, and neither could the others.
            self.leave(str(told.get("reason")).rstrip("."))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The same for one that cannot go on."""
        self.monitor.end(trial.config["trial"]["trial_id"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note how an attempt ended that could not say so itself; Tune starts the trial again."""
        ours = Trial.model_validate(trial.config["trial"])
        name, reason = ours.trial_id, last_line(trial.get_error())
        self.monitor.end(name)
        ended = _ending(str(trial.get_error()))
        self._note(name, ended)
        self._point_out_nodes(name)
        logger.warning("%s lost its process and starts again: %s", name, reason)
        self._give_up(ours, ended)

    def _give_up(self, trial: Trial, ended: attempts.Ending) -> None:
        """Write the row of a trial that was lost too often, which ends its next attempt.

        The trial counts its attempts itself, in a file; the driver counts too, for that may be lost or not written.
        """
        known, faults = self.attempts.setdefault(trial.trial_id, []), self.experiment.faults
        known.append(attempts.ended_so(ended))
        if not (enough := attempts.enough(known, faults)):
            return
        folder = self.run / "trials" / trial.trial_id
        try:
            workers = self.experiment.resources.workers
            record_failure(trial, self.run, f"given up: {enough}", workers=workers, storage_minutes=0.0)
            self.storage.push_files(folder)
        except OSError as error:
            if self.leaving is None:
                self.leave(f"{trial.trial_id} was begun {len(known)} times, and {what_failed(refused(error))}")

    def _point_out_nodes(self, trial_id: str) -> None:
        """Name a node whose GPUs failed more than once. Ray has no public way to keep trials away from it."""
        before = Counter(map(_node, self.gpu_faults.values()))
        made = attempts.read(self.run / "trials" / trial_id)
        self.gpu_faults |= {(trial_id, one.started): one.fault for one in made if one.fault}
        for node, count in Counter(map(_node, self.gpu_faults.values())).items():
            if before[node] < MOST_GPU_FAULTS <= count:
                last = next(fault for fault in reversed(self.gpu_faults.values()) if _node(fault) == node)
                self.progress.say(
                    f"GPUs failed {count} times, the last time on {last}. Trials still start there: take the node out "
                    "of the cluster, or reset its GPU."
                )

    def _note(self, name: str, ended: attempts.Ending) -> None:
        folder = self.run / "trials" / name
        try:
            self.storage.pull(folder, skip=(CHECKPOINTS, MODEL))
            attempts.note(folder, ended=ended)
            self.storage.push_files(folder)
        except OSError as error:
            logger.warning("It could not be noted that %s is %s: %s", name, ended, error)

    def clear(self) -> None:
        """Whatever happened: no process and no resource of a trial stays behind."""
        for name in self.monitor.heard():
            self.monitor.kill(name)
            self.monitor.end(name)


def _ending(error: str) -> attempts.Ending:
    """How an attempt ended whose process raised or died, from Tune's error."""
    if "OutOfMemory" in error or "Again: out of memory" in error:
        return "memory"
    if f"Again: {GPU_FAILED}" in error:
        return "device"
    return "preempted" if "Again: " in error else "lost"


def _node(fault: str) -> str:
    return fault.partition(": ")[0]
