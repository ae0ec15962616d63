"""What the driver watches while trials run: progress, silence, resources left behind, a spent budget, interrupts."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune

from slime_ray.config.experiment import Experiment, Faults, Resources, Trial
from slime_ray.on_ray.monitor import Monitor, TrialStatus
from slime_ray.on_ray.nodes import free_nodes
from slime_ray.on_ray.plan import TrialPlan
from slime_ray.on_ray.progress import Progress
from slime_ray.on_ray.resources import waiting_for
from slime_ray.on_ray.spending import Meter
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
logger = logging.getLogger("slime_ray.sweep")


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


class Watch(tune.Callback):
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
    ):
        self.experiment, self.run, self.storage, self.monitor = experiment, run, storage, monitor
        self.plan, self.progress, self.meter = plan, progress, meter
        self.leaving: str | None = None
        self.spent: str | None = None
        self.left_at = self.looked = self.said = self.asked = 0.0
        self.stopping: set[str] = set()
        self.wait = PlacementTimer(experiment.resources, experiment.faults, progress.say)
        self.interrupts = 0
        self.attempts: dict[str, list[attempts.Attempt]] = {}
        self.refusing_since: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Ray pickles callbacks for a restore of its own, which is never used here."""
        return {}

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
            write_status(self.run, finished=self.progress.finished, total=self.progress.total, trials=running)
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
        for clone in asked.clones:
            if self.leaving is None and self.plan.add(clone):
                self.progress.total += 1
                self.progress.say(f"{clone.trial_id} runs next: {clone.of} with other knobs.")

    def _leave_in_time(self, now: float) -> None:
        if self.leaving is None and self.interrupts:
            self.leave("it was interrupted")
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
        name, reason = ours.trial_id, _last_line(trial.get_error())
        self.monitor.end(name)
        ended = _ending(str(trial.get_error()))
        self._note(name, ended)
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
    return "preempted" if "Again: " in error else "lost"


def _last_line(error: object) -> str:
    lines = str(error or "").strip().splitlines()
    return lines[-1].strip() if lines else "no reason is known"
