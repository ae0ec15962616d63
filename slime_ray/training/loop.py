"""The training of a trial: what is measured, saved and asked on the way, and where an interrupted one goes on."""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from slime_ray.config.experiment import Faults, Trial
from slime_ray.config.trackers import Tracker
from slime_ray.data.pairs import TokenPair
from slime_ray.errors import InputError, SlimeRayError
from slime_ray.evaluation.held_out import HeldOut, measure_held_out
from slime_ray.evaluation.judges import Judge
from slime_ray.model.logprobs import Policy
from slime_ray.objectives import objective_at
from slime_ray.training import attempts
from slime_ray.training.checkpoint import BEST, Saved, latest, load_weights, save_best, take_up_best
from slime_ray.training.measuring import about, measure_activity
from slime_ray.training.orders import ESTIMATED, Command, Paused, Report, evaluations, pause_for
from slime_ray.training.outcome import CHECKPOINTS
from slime_ray.training.policies import row_budget
from slime_ray.training.sentinel import SentinelWatch
from slime_ray.training.stages import Stages
from slime_ray.training.trackers import Trackers, named
from slime_ray.training.trainer import GO_ON, Metrics, Next, PreferenceTrainer, load_callbacks
from slime_ray.world import World


@dataclass
class Curves:
    """Rows of curves.parquet as a trial collects them. listener: called with each measurement's source and metrics."""

    trial: Trial
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds_before: float = 0.0
    listener: Callable[[str, Mapping[str, float]], None] = lambda source, metrics: None

    def add(self, step: int, source: str, metrics: Mapping[str, float]) -> None:
        """One row per metric."""
        self.rows += [self.row(step, source, metric, value) for metric, value in metrics.items()]
        self.listener(source, metrics)

    def row(self, step: int, source: str, metric: str, value: float) -> dict[str, Any]:
        """One row of curves.parquet."""
        return {**about(self.trial), "step": step, "source": source, "metric": metric, "value": value}

    def series(self, metric: str, source: str = "train") -> list[float]:
        """One metric's values in order of step."""
        return [row["value"] for row in self.rows if row["metric"] == metric and row["source"] == source]


@dataclass(frozen=True)
class Runtime:
    """How the processes that run a trial are set up. None of it changes what the trial computes.

    gpu: GPUs that each was given; 0 where it takes what there is. sharded: the ranks hold parts of the model (FSDP2).
    heartbeat_seconds: how often rank 0 reports between evaluations. trackers: what shows its curves, beside the result
    files. inputs: digests of what it reads.
    """

    threads: int = 1
    gpu: float = 0.0
    sharded: bool = False
    faults: Faults = field(default_factory=Faults)
    heartbeat_seconds: float = 5.0
    trackers: tuple[Tracker, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)


CURVE_PAIRS = 128
"""Held-out pairs that are measured during training, at most."""
FEWEST_PAIRS = 30
"""With fewer pairs it is said that they say little."""
LOCAL = Runtime()
"""One process, with what holds if nothing else is said."""


class Measurements:
    """The held-out measurements during training; they run inside the training clock and keep their own."""

    def __init__(
        self,
        trial: Trial,
        stages: Stages,
        policy: Policy,
        curves: Curves,
        report: Report,
        judge: Judge | None = None,
    ):
        self.trial, self.stages, self.policy = trial, stages, policy
        self.objective = trial.settings.objective.build()
        self.curves, self.report = curves, report
        self.seconds = 0.0
        self.last: dict[str, Any] = {}
        self.estimates: dict[str, float] = {}
        self.finite = True
        self.pairs = curve_pairs(trial, stages)
        if trial.settings.kept_by and len(self.pairs) < FEWEST_PAIRS:
            sentence = (
                f"training.keep chooses weights by {len(self.pairs)} held-out pairs, which say little: the others are "
                "of report prompts. Raise data.held_out_pairs, or lower evaluation.prompts."
            )
            self.report({"notice": sentence})
        self.sentinel = SentinelWatch(trial, stages, policy, curves.series, judge)

    def held_out(self, pairs: Sequence[int] | None = None) -> HeldOut:
        """The policy's log-probabilities on the held-out pairs, or on some of them by their numbers."""
        held_out = self.stages.held_out
        return measure_held_out(
            self.policy,
            held_out[:] if pairs is None else [held_out[pair] for pair in pairs],
            row_tokens=row_budget(self.trial.settings, self.policy),
        )

    def at(self, step: int, updates: int) -> Command | None:
        """Measure, record and report; returns the order that this was answered with, or the sentinel's, to rank 0."""
        clock = time.perf_counter()
        before = self.stages.step0.of(self.pairs)
        now = before if step == 0 else self.held_out(self.pairs)
        self.finite = now.finite
        if not now.finite:
            # The next loss would be the same. Answers of such a policy cannot be drawn.
            return Command("stop", f"log-probabilities were not finite at update {step}")
        metrics = {
            "chosen_logp": float(now.chosen_means.mean()),
            "rejected_logp": float(now.rejected_means.mean()),
            "chosen_drift": float((now.chosen_means - before.chosen_means).mean()),
            "preference_accuracy": now.accuracy,
            "mean_margin": float(now.margins.mean()),
            "entropy": float(now.entropy.mean()),
            "top_probability": float(now.top_probability.mean()),
        }
        current = objective_at(self.objective, step / max(1, updates))
        self.curves.add(step, "held_out", metrics | measure_activity(current, before, now))
        try:
            seen = self.sentinel.look(step, before, now)
        except SlimeRayError as error:
            raise pause_for(error) from None
        self.curves.add(step, "sentinel", seen)
        self.seconds += time.perf_counter() - clock
        state = {"doing": "training", "step": step, "updates": updates, "alarm": self.sentinel.alarm}
        estimates = {name: seen[name] for name in ESTIMATED if name in seen}
        self.estimates = metrics | estimates
        order = self.report({**state, **self.estimates, **self.last})
        if order is None and self.sentinel.alarm and self.trial.settings.sentinel.action == "stop":
            return Command("stop", self.sentinel.alarm, measure=True)
        return order


def curve_pairs(trial: Trial, stages: Stages) -> list[int]:
    """Numbers of the held-out pairs that are measured during training: the first ones.

    Where weights are kept by them, those of report prompts are left out: what a trial is reported on chooses nothing.
    Raises InputError where none is left then.
    """
    every = range(len(stages.held_out))
    if trial.settings.kept_by is None:
        return list(every[:CURVE_PAIRS])
    reported = {tuple(prompt.token_ids) for prompt in stages.prompts["report"]}
    unseen = (pair for pair in every if tuple(stages.held_out[pair].prompt_ids) not in reported)
    if not (pairs := list(islice(unseen, CURVE_PAIRS))):
        raise InputError(
            "training.keep: every held-out pair is of a report prompt, so none is left to choose weights by. Raise "
            "data.held_out_pairs, or lower evaluation.prompts."
        )
    return pairs


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
        self.shown: list[TrainerCallback] = []
        self.world = World.current()
        self.schedule = trial.settings.training
        self.diverged: str | None = None
        self.stopped: Command | None = None
        self.best: tuple[int, float] | None = None
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
        return saved if saved and saved.counters["config_hash"] == self.trial.config_hash else None

    def track(self) -> None:
        """Have the trackers, where there are any, hear what Trainer logs, and of the measurements too."""
        self.shown = self.trackers.begin(self.trainer)
        for callback in self.shown:
            self.trainer.add_callback(callback)
        if self.shown:
            # Trainer logs its updates itself.
            self.measure.curves.listener = lambda source, metrics: (
                None if source == "train" else self.trainer.log(named(source, metrics))
            )

    def show_again(self) -> None:
        """Have the trackers, whose records are new, hear of what an earlier attempt measured."""
        for (step, source), rows in groupby(self.measure.curves.rows, itemgetter("step", "source")):
            logs = named(source, {row["metric"]: row["value"] for row in rows if row["value"] is not None})
            state = replace(self.trainer.state, global_step=step)
            for callback in self.shown:
                callback.on_log(self.trainer.args, state, self.trainer.control, logs=logs, model=self.trainer.model)

    def restore(self, saved: Saved) -> None:
        """Take up the counters of an earlier attempt."""
        counters, curves = saved.counters, self.measure.curves
        curves.rows = [curves.row(*entry) for entry in counters["curves"]]
        curves.seconds_before = counters["total_seconds"]
        self.seconds_before, self.measured_before = counters["train_seconds"], counters["measure_seconds"]
        self.measure.seconds = counters["measure_seconds"]
        self.measure.sentinel.alarm = counters["alarm"]
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
            "alarm": self.measure.sentinel.alarm,
            "row_tokens": self.trainer.loader.row_tokens,
            "best": self.best,
            "total_seconds": curves.seconds_before + time.monotonic() - self.clock,
        }

    def urgent(self) -> bool:
        """Whether rank 0 wants the ranks to listen to it after this update: to report, or to write a checkpoint."""
        return self.world.main and (
            time.monotonic() - self.reported > self.runtime.heartbeat_seconds or self.checkpoint_due(1.0)
        )

    def checkpoint_due(self, share: float) -> bool:
        """Whether the last checkpoint is so old, as a share of the time between two."""
        return time.monotonic() - self.tried > share * 60 * self.runtime.faults.checkpoint_minutes

    def after_update(self, step: int, metrics: Metrics) -> Next:
        """Record an update; measure, report, save and stop when it is time. Every rank comes to the same decision."""
        shown = {name: value for name, value in metrics.items() if name != "urgent"}
        if (row_tokens := self.trainer.loader.row_tokens) < self.row_tokens:
            self.measure.report(
                {
                    "notice": f"Memory ran out with rows of {self.row_tokens} tokens: they have {row_tokens} from here "
                    "on, which takes longer and changes no result. data.row_tokens sets them."
                }
            )
            self.row_tokens = row_tokens
        self.measure.curves.add(step, "train", shown)
        self.measure.last = {"loss": shown["loss"]}
        broken = [name for name in ("loss", "grad_norm") if not math.isfinite(shown.get(name, 0.0))]
        if broken:
            self.diverged = f"{broken[0]} became {shown[broken[0]]} at update {step}"
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
