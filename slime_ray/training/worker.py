"""What one trial does, from its settings to its result files. Ray is not involved: progress goes to a function."""

import functools
import gc
import math
import os
import platform
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import disable_progress_bars
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from slime_ray import results
from slime_ray.errors import InputError
from slime_ray.evaluation import stability
from slime_ray.evaluation.answers import Answered, judge_answers
from slime_ray.evaluation.generate import generate_answers
from slime_ray.evaluation.held_out import HeldOut, measure_held_out
from slime_ray.evaluation.judges import build_judge
from slime_ray.evaluation.kl import kl_to_reference
from slime_ray.experiment import Trial
from slime_ray.model.loading import load_checkpoint, make_policy
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import add_lora
from slime_ray.stability_v1 import StabilityParts, stability_score
from slime_ray.training.cache import Report
from slime_ray.training.stages import Stages, prepare, train_pairs
from slime_ray.training.trainer import PreferenceTrainer, TokenPair


@dataclass
class Curves:
    """Rows of curves.parquet as a trial collects them."""

    trial: Trial
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, step: int, source: str, metrics: Mapping[str, float]) -> None:
        """One row per metric."""
        about = {"trial_id": self.trial.trial_id, "label": self.trial.label, "phase": self.trial.phase}
        for metric, value in metrics.items():
            self.rows.append(
                {**about, "seed": self.trial.seed, "step": step, "source": source, "metric": metric, "value": value}
            )

    def series(self, metric: str, source: str = "train") -> list[float]:
        """One metric's values in order of step."""
        return [row["value"] for row in self.rows if row["metric"] == metric and row["source"] == source]


def run_trial(trial: Trial, *, run: Path, cache: Path, report: Report, threads: int = 1) -> dict[str, Any]:
    """Train and measure one trial and write its files under `run`/trials.

    Returns its row of trials.parquet. A trial that fails is a result too: it is written with its reason, stability 0.
    Only what the user must mend before any trial can run (InputError) is raised.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    folder = run / "trials" / trial.trial_id
    folder.mkdir(parents=True, exist_ok=True)
    reset_process(trial.seed, threads)
    curves = Curves(trial)
    row = blank_row(trial, started)
    answers: list[dict[str, Any]] = []
    try:
        measured, answers = _train_and_measure(trial, folder, cache, report, curves)
        row |= measured
    except InputError:
        raise
    except Exception as error:
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        row |= {"status": "failed", "reason": one_sentence(error), "healthy": False, "stability": 0.0}
    row["total_seconds"] = time.perf_counter() - clock
    results.write_trial(run, row=row, answers=answers, curves=curves.rows)
    return row


def one_sentence(error: BaseException) -> str:
    """An error as one line that names its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def reset_process(seed: int, threads: int) -> None:
    """A reused process carries the last trial's global state; none of it may reach this one."""
    _spare_the_modules()
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    set_seed(seed)


@functools.cache
def _spare_the_modules() -> None:
    """Garbage collection, which every run of Trainer asks for, need not look through the imported libraries again."""
    gc.freeze()


def blank_row(trial: Trial, started: datetime) -> dict[str, Any]:
    return results.trial_row(
        trial_id=trial.trial_id,
        phase=trial.phase,
        label=trial.label,
        seed=trial.seed,
        objective=trial.settings.objective.name,
        settings=trial.values,
        config=trial.settings.model_dump(mode="json"),
        config_hash=trial.config_hash,
        prompt_set=trial.prompt_set,
        judge=trial.settings.evaluation.judge.name,
        started=started.isoformat(timespec="seconds"),
        host=platform.node(),
    )


def _train_and_measure(
    trial: Trial, folder: Path, cache: Path, report: Report, curves: Curves
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    settings = trial.settings
    stages = prepare(settings, cache=cache, report=report)
    pairs = train_pairs(stages, settings, cache=cache, report=report)
    # Whether this trial had to make a stage first must not change what it draws.
    set_seed(trial.seed)
    lm = load_checkpoint(stages.checkpoint, dtype=settings.model.dtype)
    if settings.model.lora:
        lm = add_lora(lm, settings.model.lora)
    if torch.cuda.is_available():
        lm = lm.cuda()
    policy = make_policy(lm, settings.model)
    measure = _Measurements(trial, stages, policy, curves, report)

    clock = time.perf_counter()
    outcome = _train(trial, folder, pairs, policy, measure)
    train_seconds = time.perf_counter() - clock - measure.seconds
    row: dict[str, Any] = {
        "updates": outcome.updates,
        "tokens": outcome.tokens,
        "train_seconds": train_seconds,
        "status": "stopped" if outcome.stopped else "completed",
        "reason": outcome.stopped,
    }
    clock = time.perf_counter()
    after = measure.held_out()
    healthy = outcome.diverged is None and after.finite
    row |= _held_out_row(stages.step0, after)
    if not healthy:
        reason = outcome.diverged or "the trained model gives log-probabilities that are not finite"
        row |= {"status": "diverged", "reason": reason, "healthy": False, "stability": 0.0}
        return row | {"evaluation_seconds": measure.seconds + time.perf_counter() - clock}, []
    _save(lm, folder / "checkpoint")
    report({"doing": "answering"})
    answered = _answer(trial, stages, policy)
    parts = StabilityParts(
        unlearning=stability.unlearning(stages.step0, after),
        rejected_collapse=stability.rejected_collapse(stages.step0, after),
        entropy_shift=stability.entropy_shift(stages.step0, after),
        broken_outputs=answered.broken_outputs,
        length_shift=answered.length_shift,
        training_spikes=stability.training_spikes(curves.series("loss"), curves.series("grad_norm")),
    )
    row |= asdict(parts) | {
        "win_rate": answered.win_rate,
        "prompts": answered.judged,
        "format_valid": answered.format_valid,
        "kl_to_sft": _kl(trial, stages, policy, answered),
        "stability": stability_score(parts, healthy=True),
        "healthy": True,
        "evaluation_seconds": measure.seconds + time.perf_counter() - clock,
    }
    about = {"trial_id": trial.trial_id, "label": trial.label, "phase": trial.phase, "seed": trial.seed}
    return row, answered.rows({**about, "prompt_set": trial.prompt_set})


@dataclass(frozen=True)
class _Outcome:
    updates: int
    tokens: int
    diverged: str | None
    stopped: str | None


class _Measurements:
    """The held-out measurements during training; they run inside the training clock and keep their own."""

    CURVE_PAIRS = 128

    def __init__(self, trial: Trial, stages: Stages, policy: Policy, curves: Curves, report: Report):
        self.trial, self.stages, self.policy = trial, stages, policy
        self.curves, self.report = curves, report
        self.seconds = 0.0
        self.last: dict[str, Any] = {}

    def held_out(self, pairs: int | None = None) -> HeldOut:
        """The policy's log-probabilities on the held-out pairs, or on the first few of them."""
        return measure_held_out(
            self.policy,
            self.stages.held_out[:pairs],
            row_tokens=self.trial.settings.data.row_budget,
        )

    def at(self, step: int, updates: int) -> str | None:
        """Measure, record and report; returns the reason to stop, if there is one."""
        clock = time.perf_counter()
        before = self.stages.step0.first(self.CURVE_PAIRS)
        now = before if step == 0 else self.held_out(self.CURVE_PAIRS)
        metrics = {
            "chosen_logp": float(now.chosen_means.mean()),
            "rejected_logp": float(now.rejected_means.mean()),
            "chosen_drift": float((now.chosen_means - before.chosen_means).mean()),
            "preference_accuracy": now.accuracy,
            "mean_margin": float(now.margins.mean()),
            "entropy": float(now.entropy.mean()),
            "top_probability": float(now.top_probability.mean()),
        }
        self.curves.add(step, "held_out", metrics)
        self.seconds += time.perf_counter() - clock
        return self.report({"doing": "training", "step": step, "updates": updates, **metrics, **self.last})


def _train(trial: Trial, folder: Path, pairs: list[TokenPair], policy: Policy, measure: _Measurements) -> _Outcome:
    training, objective = trial.settings.training, trial.settings.objective.build()
    if training.updates == 0:
        measure.at(0, 0)
        return _Outcome(updates=0, tokens=0, diverged=None, stopped=None)
    diverged: list[str] = []

    def observe(step: int, metrics: Mapping[str, float]) -> None:
        measure.curves.add(step, "train", metrics)
        measure.last = {"loss": metrics["loss"]}
        broken = [name for name in ("loss", "grad_norm") if not math.isfinite(metrics.get(name, 0.0))]
        if broken and not diverged:
            diverged.append(f"{broken[0]} became {metrics[broken[0]]} at update {step}")

    def after_update(step: int) -> str | None:
        # Trainer logs an update after this is called, so a divergence is seen one update late.
        if diverged:
            return diverged[0]
        return measure.at(step, trainer.updates) if step in marks else None

    scratch = folder / "scratch"
    trainer = PreferenceTrainer(
        policy=policy,
        objective=objective,
        pairs=pairs,
        schedule=training,
        pairs_per_update=training.pairs_per_update,
        row_tokens=trial.settings.data.row_budget,
        seed=trial.seed,
        scratch=scratch,
        observe=observe,
        after_update=after_update,
        bf16=trial.settings.model.dtype == "bfloat16",
        gradient_checkpointing=training.gradient_checkpointing,
    )
    marks = {round(trainer.updates * (k + 1) / training.evaluations) for k in range(training.evaluations)}
    stopped = measure.at(0, trainer.updates)
    if stopped is None:
        trainer.train()
        stopped = None if diverged else trainer.stopper.reason
    shutil.rmtree(scratch, ignore_errors=True)
    return _Outcome(
        updates=trainer.state.global_step,
        tokens=trainer.tokens_seen,
        diverged=diverged[0] if diverged else None,
        stopped=stopped,
    )


def _held_out_row(before: HeldOut, after: HeldOut) -> dict[str, Any]:
    return {
        "pairs": len(after.chosen_lengths),
        "chosen_drift": float((after.chosen_means - before.chosen_means).mean()),
        "rejected_drift": float((after.rejected_means - before.rejected_means).mean()),
        "preference_accuracy": after.accuracy,
        "mean_margin": float(after.margins.mean()),
    }


def _answer(trial: Trial, stages: Stages, policy: Policy) -> Answered:
    """The policy's answers to the trial's prompts, judged."""
    settings, prompts = trial.settings, stages.prompts[trial.prompt_set]
    answers = generate_answers(
        policy.lm,
        stages.tokenizer,
        prompts.token_ids,
        decoding=settings.evaluation.decoding,
        stop_tokens=stages.stop_tokens,
        # The baseline's answers were drawn with seed 0: equal policies must still answer independently.
        seed=1 + trial.seed,
    )
    return judge_answers(
        prompts,
        answers,
        stages.baseline[trial.prompt_set],
        judge=build_judge(settings),
        format_check=stages.format_check,
        markers=stages.tokenizer.all_special_tokens,
    )


def _kl(trial: Trial, stages: Stages, policy: Policy, answered: Answered) -> float | None:
    """K on the policy's own answers; None if all of them are empty."""
    settings = trial.settings
    samples = [
        TokenPair(prompt, answer.token_ids)
        for prompt, answer in zip(answered.prompts.token_ids, answered.answers, strict=True)
        if answer.token_ids
    ][: settings.evaluation.kl_prompts]
    if not samples:
        return None
    reference = None
    if settings.model.lora is None:
        lm = load_checkpoint(stages.checkpoint, dtype=settings.model.dtype).to(policy.device)
        reference = make_policy(lm, settings.model).eval()
    return kl_to_reference(policy, reference, samples, row_tokens=settings.data.row_budget)


def _save(lm: Any, folder: Path) -> None:
    """Save the adapter, or the whole model, in safetensors, so that a half-written one is never seen."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    lm.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
