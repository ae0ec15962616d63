"""What the driver watches while trials run: silence, leftovers, a spent budget, instructions, interrupts."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slime_ray.config.experiment import Experiment, Faults, Resources, Trial
from slime_ray.errors import INTERRUPTED
from slime_ray.on_ray.cluster_state import free_nodes
from slime_ray.on_ray.connection import last_line
from slime_ray.on_ray.monitor import Monitor, TrialStatus
from slime_ray.on_ray.plan import TrialPlan
from slime_ray.on_ray.progress import Callback, Progress
from slime_ray.on_ray.resources import BudgetMeter, waiting_for
from slime_ray.on_ray.workers import GPU_FAILED, RestartTrial
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
MOST_GPU_FAULTS = 2
"""GPU errors on one node after which it is named."""
logger = logging.getLogger("slime_ray.sweep")


class PlacementTimeout(Exception):
    """Nothing could be placed for as long as one may wait."""


class ShutdownTimeout(Exception):
    """Trials that were told to leave have not left for as long as they may take."""


class PlacementTimer:
    """Warn every minute while no trial can be placed, and raise after `faults.placement_minutes`."""

    def __init__(self, resources: Resources, faults: Faults, say: Callable[[str], object]):
        self.resources, self.faults, self.say = resources, faults, say
        self.reset()

    def reset(self) -> None:
        """Start the time anew: something is at work, or nothing waits."""
        self.since = self.last_warning = time.monotonic()

    def check(self) -> None:
        """Note that a trial wants a place and none is at work.

        Raises PlacementTimeout after faults.placement_minutes of that.
        """
        now = time.monotonic()
        if now - self.since > 60 * self.faults.placement_minutes:
            raise PlacementTimeout(
                f"{self._sentence(now)} (faults.placement_minutes is {self.faults.placement_minutes:g})"
            )
        if now - self.last_warning > 60:
            self.last_warning = now
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
        meter: BudgetMeter,
        on_extend: Callable[[int], None] = lambda trials: None,
    ):
        self.experiment, self.run, self.storage, self.monitor = experiment, run, storage, monitor
        self.plan, self.progress, self.meter = plan, progress, meter
        self.leave_reason: str | None = None
        self.spent: str | None = None
        self.leave_time = self.last_look = self.last_status = self.last_sync = 0.0
        self.stop_ids: set[str] = set()
        self.late_ids: set[str] = set()
        self.budget, self.on_extend = experiment.budget.trials, on_extend
        self.refused_budget: int | None = None
        self.placement = PlacementTimer(experiment.resources, experiment.faults, progress.say)
        self.interrupts = 0
        self.attempts: dict[str, list[attempts.Attempt]] = {}
        self.write_errors_since: float | None = None
        self.gpu_faults: dict[tuple[str, float], str] = {}

    @contextmanager
    def interrupts_as_orders(self) -> Iterator[None]:
        """Turn Ctrl-C and SIGTERM into an order to leave with a checkpoint; the second one ends everything at once."""

        def handle() -> None:
            self.interrupts += 1
            if self.interrupts > 1:
                raise KeyboardInterrupt

        with interrupts(handle):
            yield

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look at everything; Tune calls this several times a second."""
        now = time.monotonic()
        if now - self.last_look < LOOK_SECONDS:
            return
        self.last_look = now
        statuses = self.monitor.statuses()
        self.progress.update({name: status.metrics for name, status in statuses.items()})
        self._write_status(now, statuses)
        self._follow_instructions(now, statuses)
        self.meter.update([name for name, status in statuses.items() if status.at_work], now)
        self._leave_in_time(now)
        self._kill_silent(statuses)
        self._watch_placement(trials, statuses)

    def _write_status(self, now: float, statuses: dict[str, TrialStatus]) -> None:
        if now - self.last_status < STATUS_SECONDS:
            return
        self.last_status = now
        values = {trial.trial_id: trial.values for trial in self.plan.by_tune_id.values()}
        running = {name: {**status.metrics, "values": values.get(name, {})} for name, status in statuses.items()}
        try:
            write_status(
                self.run, finished=self.progress.finished, total=self.progress.total, trials=running,
                spent=self.meter.spent.as_json(), seconds_left=self.progress.seconds_left(),
            )  # fmt: skip
            self.write_errors_since = None
        except OSError as error:
            if self.write_errors_since is None:
                self.write_errors_since = now
                logger.warning("How the run stands could not be written: %s", error)
            # What trials come to could not be written either.
            if (
                self.leave_reason is None
                and now - self.write_errors_since > 60 * self.experiment.faults.storage_minutes
            ):
                self.leave(what_failed(refused(error)))

    def _follow_instructions(self, now: float, statuses: dict[str, TrialStatus]) -> None:
        if self.storage.url is not None:
            if now - self.last_sync < STORE_SECONDS:
                return
            self.last_sync = now
            try:
                self.storage.push(self.run / STATUS)
                self.storage.pull(self.run / FOLDER)
            except OSError as error:
                logger.warning("The storage could not be asked for instructions: %s", error)
        instructions = Instructions.read(self.run)
        for name in instructions.stops.keys() & statuses.keys() - self.stop_ids:
            self.stop_ids.add(name)
            self.progress.say(f"{name} is {instructions.stops[name]}.")
            self.monitor.stop_trial(name, instructions.stops[name])
        # One that was taken up has raised the budget, and is of no budget any more.
        if self.budget != self.refused_budget and (trials := instructions.extensions.get(self.budget)):
            self._extend(trials)
        for clone in instructions.clones:
            if self.leave_reason is None and self.plan.add(clone):
                self.progress.total = self.plan.total
                self.progress.say(f"{clone.trial_id} runs next: {clone.of} with other knobs.")
            elif self.plan.is_late(clone) and clone.trial_id not in self.late_ids:
                self.late_ids.add(clone.trial_id)
                self.progress.say(f"{clone.trial_id} is late: winners are being confirmed. `slime-ray extend` runs it.")

    def _extend(self, trials: int) -> None:
        if self.leave_reason is not None or not self.plan.extend(trials):
            self.refused_budget = self.budget
            self.progress.say(
                "The search is over, so it gets no further trials. `slime-ray extend` goes on with the run."
            )
            return
        self.budget += trials
        self.progress.total = self.plan.total
        self.on_extend(trials)
        self.progress.say(f"The search goes on for {trials} trials more.")

    def _leave_in_time(self, now: float) -> None:
        if self.leave_reason is None and self.interrupts:
            self.leave(INTERRUPTED)
        elif self.leave_reason is None and (spent := self.meter.over()):
            self.spent = spent
            self.leave(self.meter.sentence(spent))
        elif self.leave_reason is not None and now - self.leave_time > GRACE_SECONDS:
            raise ShutdownTimeout

    def leave(self, reason: str) -> None:
        """Start no further trial, and have those that run write a checkpoint and leave."""
        self.leave_reason, self.leave_time = reason, time.monotonic()
        self.plan.is_ending = True
        logger.info("The sweep ends: %s. Running trials write a checkpoint first.", reason)
        self.monitor.leave(f"the sweep ended: {reason}")

    def _kill_silent(self, statuses: dict[str, TrialStatus]) -> None:
        for name, status in statuses.items():
            if status.silent > 60 * self.experiment.faults.hang_minutes and status.at_work:
                logger.warning("%s has said nothing for %.0f s; its processes are ended.", name, status.silent)
                self._note(name, "hung")
                self.monitor.kill(name)

    def _watch_placement(self, trials: list[Any], statuses: dict[str, TrialStatus]) -> None:
        waiting = [trial for trial in trials if trial.status == "PENDING"]
        unplaced = [name for name, status in statuses.items() if not status.at_work]
        if (statuses and len(unplaced) < len(statuses)) or not (waiting or unplaced):
            self.placement.reset()
        else:
            self.placement.check()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Free what a trial that ended, in whatever way, still holds."""
        self.monitor.end(trial.config["trial"]["trial_id"])
        self._point_out_nodes(trial.config["trial"]["trial_id"])
        result = trial.last_result or {}
        if self.leave_reason is None and result.get("status") == "paused":
            # It could not be judged, and neither could the others.
            self.leave(str(result.get("reason")).rstrip("."))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Free what a trial holds that cannot go on."""
        self.monitor.end(trial.config["trial"]["trial_id"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note how an attempt ended that could not say so itself; Tune starts the trial again."""
        spec = Trial.model_validate(trial.config["trial"])
        name, reason = spec.trial_id, last_line(trial.get_error())
        self.monitor.end(name)
        ended = _ending(str(trial.get_error()))
        self._note(name, ended)
        self._point_out_nodes(name)
        logger.warning("%s lost its process and starts again: %s", name, reason)
        self._give_up(spec, ended)

    def _give_up(self, trial: Trial, ended: attempts.Ending) -> None:
        """Write the row of a trial that was lost too often, which ends its next attempt.

        The trial counts its attempts itself, in a file; the driver counts too, for that may be lost or not written.
        """
        trial_attempts, faults = self.attempts.setdefault(trial.trial_id, []), self.experiment.faults
        trial_attempts.append(attempts.Attempt(ended=ended))
        if not (reason := attempts.enough(trial_attempts, faults)):
            return
        folder = self.run / "trials" / trial.trial_id
        try:
            workers = self.experiment.resources.workers
            record_failure(trial, self.run, f"given up: {reason}", workers=workers, storage_minutes=0.0)
            self.storage.push_files(folder)
        except OSError as error:
            if self.leave_reason is None:
                self.leave(f"{trial.trial_id} was begun {len(trial_attempts)} times, and {what_failed(refused(error))}")

    def _point_out_nodes(self, trial_id: str) -> None:
        """Name a node whose GPUs failed more than once. Ray has no public way to keep trials away from it."""
        counts_before = Counter(map(_node, self.gpu_faults.values()))
        trial_attempts = attempts.read(self.run / "trials" / trial_id)
        self.gpu_faults |= {(trial_id, attempt.started): attempt.fault for attempt in trial_attempts if attempt.fault}
        for node, count in Counter(map(_node, self.gpu_faults.values())).items():
            if counts_before[node] < MOST_GPU_FAULTS <= count:
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
        """End every trial's processes and free its resources, whatever happened."""
        for name in self.monitor.statuses():
            self.monitor.kill(name)
            self.monitor.end(name)


def _ending(error: str) -> attempts.Ending:
    """Classify, from Tune's error, how an attempt ended whose process raised or died."""
    restart = f"{RestartTrial.__name__}: "
    if "OutOfMemory" in error or f"{restart}out of memory" in error:
        return "memory"
    if f"{restart}{GPU_FAILED}" in error:
        return "device"
    return "preempted" if restart in error else "lost"


def _node(fault: str) -> str:
    return fault.partition(": ")[0]
