"""The training of a trial: what is measured, saved and asked on the way, and where an interrupted one goes on."""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from slime_ray.config.experiment import Faults, Trial
from slime_ray.config.trackers import Tracker
from slime_ray.data.pairs import TokenPair
from slime_ray.model.logprobs import Policy
from slime_ray.runs.inputs import judge_code
from slime_ray.training import attempts
from slime_ray.training.checkpoint import BEST, Saved, latest, load_weights, save_best, take_up_best
from slime_ray.training.orders import Command, Paused, evaluations
from slime_ray.training.outcome import CHECKPOINTS
from slime_ray.training.policies import row_budget
from slime_ray.training.sentinel import Measurements
from slime_ray.training.trackers import Trackers, trainer_logs
from slime_ray.training.trainer import GO_ON, Metrics, Next, PreferenceTrainer, load_callbacks
from slime_ray.world import World


@dataclass(frozen=True)
class Runtime:
    """How the processes that run a trial are set up. None of it changes what the trial computes.

    gpu: GPUs that each was given; 0 where it takes what there is. sharded: the ranks hold parts of the model (FSDP2).
    trackers: what shows its curves, beside the result files. inputs: digests of what it reads.
    """

    threads: int = 1
    gpu: float = 0.0
    sharded: bool = False
    faults: Faults = field(default_factory=Faults)
    trackers: tuple[Tracker, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)


HEARTBEAT_SECONDS = 5.0
"""How often rank 0 reports between evaluations."""
LOCAL = Runtime()
"""One process, with what holds if nothing else is said."""


class TrainingLoop:
    """The training of a trial: what is done after each update, and where an interrupted one goes on."""

    def __init__(
        self,
        trial: Trial,
        folder: Path,
        pairs: Sequence[TokenPair],
        policy: Policy,
        measure: Measurements,
        runtime: Runtime,
        trackers: Trackers,
    ):
        self.trial, self.folder, self.measure, self.runtime = trial, folder, measure, runtime
        self.trackers = trackers
        self.tracker_callbacks: list[TrainerCallback] = []
        self.world = World.current()
        self.schedule = trial.settings.training
        self.diverged: str | None = None
        self.stopped: Command | None = None
        self.best: tuple[int, float] | None = None
        self.judge_code = judge_code(trial.settings)
        self.clock = self.reported = self.tried = time.monotonic()
        self.seconds_before = self.measured_before = 0.0
        self.trainer = PreferenceTrainer(
            policy=policy,
            objective=trial.settings.objective.build(),
            pairs=pairs,
            schedule=self.schedule,
            pairs_per_update=self.schedule.pairs_per_update,
            row_tokens=row_budget(trial.settings, policy),
            seed=trial.seed,
            scratch=folder / "scratch",
            after_update=self.after_update,
            urgent=self.urgent,
            checkpoints=folder / CHECKPOINTS,
            counters=self.counters,
            after_save=self.after_save,
            gradient_checkpointing=self.schedule.gradient_checkpointing,
            dropout=trial.settings.model.dropout,
            callbacks=load_callbacks(self.schedule.callbacks),
        )
        self.updates, self.row_tokens = self.trainer.updates, self.trainer.loader.row_tokens
        self.marks = {
            round(self.updates * (k + 1) / self.schedule.evaluations) for k in range(self.schedule.evaluations)
        }

    def run(self) -> dict[str, Any]:
        """Train from the last checkpoint, or from the start, to the end or to an order; returns columns of the row.

        `diverged` and `stopped` then say why training ended early, if it did.
        """
        saved = self.world.broadcast(self.find())
        if self.world.main:
            take_up_best(self.folder / CHECKPOINTS, saved)
        self.track()
        if saved is None:
            self.obey(self.world.broadcast(self.measure.at(0, self.updates)))
        else:
            self.restore(saved)
        if self.stopped is None and self.updates:
            self.trainer.resume(saved)
        # Trainer looks into it at its end, on every rank.
        self.world.broadcast(None)
        if self.world.main:
            shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        if self.stopped and self.stopped.kind != "stop":
            raise Paused(self.stopped)
        if self.trainer.state.global_step < self.updates and not (self.stopped or self.diverged):
            self.stopped = Command("stop", "a callback of training.callbacks ended the training", measure=True)
        if self.diverged:
            self.stopped = None
        return {
            "updates": self.trainer.state.global_step,
            "kept_update": self.keep(),
            "planned_updates": self.updates,
            "tokens": self.trainer.tokens_seen,
            "row_tokens": self.trainer.loader.row_tokens,
            "train_seconds": self.seconds,
        }

    def keep(self) -> int:
        """Give the policy the best weights, where any are kept and training has not diverged; returns their update."""
        step = self.trainer.state.global_step
        if self.best is None or self.best[0] == step or self.diverged or not self.measure.finite:
            return step
        load_weights(self.folder / CHECKPOINTS / BEST, self.trainer.policy)
        return self.best[0]

    def offer(self, step: int) -> None:
        """Keep the weights as they are if they are the best so far by the number that the settings name."""
        if self.trial.settings.kept_by is None or not self.measure.finite:
            return
        column, way = self.trial.settings.kept_by
        value = self.world.broadcast(self.measure.estimates.get(column, math.nan))
        worth = value if way == "maximize" else -value
        if math.isfinite(value) and (self.best is None or worth > self.best[1]):
            minutes = self.runtime.faults.storage_minutes
            save_best(self.folder / CHECKPOINTS, self.trainer.model_wrapped, self.measure.report, minutes=minutes)
            self.best = step, worth

    @property
    def seconds(self) -> float:
        """Seconds of training alone so far."""
        measured = self.measure.seconds - self.measured_before
        return self.seconds_before + time.monotonic() - self.clock - measured

    def find(self) -> Saved | None:
        """The trial's checkpoint, if there is one of just these settings; rank 0 looks."""
        saved = latest(self.folder / CHECKPOINTS) if self.world.main else None
        if saved is None or saved.counters["config_hash"] != self.trial.config_hash:
            return None
        # Win rates on the way choose weights and end trials, and those of another scorer are no measure of this one's.
        scored = any(metric == "win_rate" for _, _, metric, _ in saved.counters["curves"])
        return None if scored and saved.counters.get("judge_code", self.judge_code) != self.judge_code else saved

    def track(self) -> None:
        """Have the trackers, where there are any, hear what Trainer logs, and of the measurements too."""
        self.tracker_callbacks = self.trackers.begin(self.trainer)
        for callback in self.tracker_callbacks:
            self.trainer.add_callback(callback)
        if self.tracker_callbacks:
            # Trainer logs its updates itself.
            self.measure.curves.listener = lambda source, metrics: (
                None if source == "train" else self.trainer.log(trainer_logs(source, metrics))
            )

    def show_again(self) -> None:
        """Have the trackers, whose records are new, hear of what an earlier attempt measured."""
        for (step, source), rows in groupby(self.measure.curves.rows, itemgetter("step", "source")):
            logs = trainer_logs(source, {row["metric"]: row["value"] for row in rows if row["value"] is not None})
            state = replace(self.trainer.state, global_step=step)
            for callback in self.tracker_callbacks:
                callback.on_log(self.trainer.args, state, self.trainer.control, logs=logs, model=self.trainer.model)

    def restore(self, saved: Saved) -> None:
        """Take up the counters of an earlier attempt."""
        counters, curves = saved.counters, self.measure.curves
        curves.rows = [curves.row(*entry) for entry in counters["curves"]]
        curves.seconds_before = counters["total_seconds"]
        self.seconds_before, self.measured_before = counters["train_seconds"], counters["measure_seconds"]
        self.measure.seconds = counters["measure_seconds"]
        self.measure.alarm = counters["alarm"]
        self.best = tuple(counters["best"]) if counters.get("best") else None
        self.row_tokens = self.trainer.loader.row_tokens = counters.get("row_tokens", self.row_tokens)
        self.show_again()
        # Who listens may know nothing of this trial yet. What it was told then has been obeyed.
        past = evaluations(curves.rows)
        past.setdefault(saved.step, {})
        for step, metrics in past.items():
            self.measure.report({"doing": "training", "step": step, "updates": self.updates, **metrics})

    def counters(self) -> dict[str, Any]:
        """What a checkpoint has to hold for `restore`."""
        curves = self.measure.curves
        return {
            "config_hash": self.trial.config_hash,
            "curves": [[row["step"], row["source"], row["metric"], row["value"]] for row in curves.rows],
            "train_seconds": self.seconds,
            "measure_seconds": self.measure.seconds,
            "alarm": self.measure.alarm,
            "judge_code": self.judge_code,
            "row_tokens": self.trainer.loader.row_tokens,
            "best": self.best,
            "total_seconds": curves.seconds_before + time.monotonic() - self.clock,
        }

    def urgent(self) -> bool:
        """Whether rank 0 wants the ranks to listen to it after this update: to report, or to write a checkpoint."""
        return self.world.main and (time.monotonic() - self.reported > HEARTBEAT_SECONDS or self.checkpoint_due(1.0))

    def checkpoint_due(self, share: float) -> bool:
        """Whether the last checkpoint is so old, as a share of the time between two."""
        return time.monotonic() - self.tried > share * 60 * self.runtime.faults.checkpoint_minutes

    def after_update(self, step: int, metrics: Metrics) -> Next:
        """Record an update; measure, report, save and stop when it is time. Every rank comes to the same decision."""
        train_metrics = {name: value for name, value in metrics.items() if name != "urgent"}
        if (row_tokens := self.trainer.loader.row_tokens) < self.row_tokens:
            self.measure.report(
                {
                    "notice": f"Memory ran out with rows of {self.row_tokens} tokens: they have {row_tokens} from here "
                    "on, which takes longer and changes no result. data.row_tokens sets them."
                }
            )
            self.row_tokens = row_tokens
        self.measure.curves.add(step, "train", train_metrics)
        self.measure.last = {"loss": train_metrics["loss"]}
        broken = [name for name in ("loss", "grad_norm") if not math.isfinite(train_metrics.get(name, 0.0))]
        if broken:
            self.diverged = f"{broken[0]} became {train_metrics[broken[0]]} at update {step}"
            return Next(stop=True)
        if step in self.marks:
            order = self.measure.at(step, self.updates)
            self.offer(step)
        elif metrics["urgent"]:
            order = self.measure.report(
                {"doing": "training", "step": step, "updates": self.updates, **self.measure.last}
            )
        else:
            return GO_ON
        # What follows the last update may take long as well.
        due = self.checkpoint_due(0.1 if step == self.updates else 1.0)
        order, due = self.world.broadcast((order, due))
        self.reported = time.monotonic()
        self.obey(order)
        leaving = order is not None and order.kind != "stop"
        save = leaving or (due and order is None)
        if save:
            self.tried = time.monotonic()
        if self.world.main:
            attempts.note(self.folder)
        return Next(save=save, stop=order is not None)

    def after_save(self) -> None:
        """Note a checkpoint that is whole."""
        if self.world.main:
            attempts.note(self.folder, saved=True)

    def obey(self, order: Command | None) -> None:
        """Take note of an order; the first one counts."""
        self.stopped = self.stopped or order
