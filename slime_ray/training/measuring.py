"""What is measured of a policy, trained or given: held-out log-probabilities, answers, verdicts, stability-v1."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from slime_ray.config.experiment import Trial
from slime_ray.data.pairs import TokenPair
from slime_ray.errors import RunError, SlimeRayError
from slime_ray.evaluation import stability
from slime_ray.evaluation.answers import Answered, judge_answers
from slime_ray.evaluation.conversations import Prompt
from slime_ray.evaluation.generate import Answer
from slime_ray.evaluation.held_out import HeldOut
from slime_ray.evaluation.judges import ExactJudge, Judge, Summary, load_scorer
from slime_ray.model.loading import load_start, make_policy
from slime_ray.model.logprobs import Policy
from slime_ray.model.merging import DEFAULT_ADAPTER
from slime_ray.objectives import Objective, ReferenceLogps, component_activity
from slime_ray.runs.results import RETENTION
from slime_ray.runs.stability_v1 import StabilityParts, stability_score
from slime_ray.training.orders import Report, pause_for
from slime_ray.training.policies import row_budget
from slime_ray.training.prompts import draw_answers
from slime_ray.training.stages import Stages

Rows = list[dict[str, Any]]
NORMAL = 1.96


@dataclass(frozen=True)
class Measurement:
    """Columns of trials.parquet, rows of the other files by their names, and what a judge took."""

    row: dict[str, Any]
    answers: Rows = field(default_factory=list)
    pairs: Rows = field(default_factory=list)
    judging: Summary | None = None
    verdicts: Rows = field(default_factory=list)


def about(trial: Trial) -> dict[str, Any]:
    """The columns that name a trial in every file."""
    return {"trial_id": trial.trial_id, "label": trial.label, "phase": trial.phase, "seed": trial.seed}


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

    def series(self, metric: str) -> list[float]:
        """One metric of training, in order of step."""
        return [row["value"] for row in self.rows if row["metric"] == metric and row["source"] == "train"]


def measure_log_probabilities(trial: Trial, before: HeldOut, after: HeldOut) -> Measurement:
    """What the held-out pairs alone tell."""
    row = {
        "pairs": len(after.chosen_lengths),
        "chosen_drift": float((after.chosen_means - before.chosen_means).mean()),
        "rejected_drift": float((after.rejected_means - before.rejected_means).mean()),
        "preference_accuracy": after.accuracy,
        "mean_margin": float(after.margins.mean()),
    }
    return Measurement(row, pairs=stability.pair_rows(before, after, about(trial)))


def measure_activity(objective: Objective, before: HeldOut, now: HeldOut) -> dict[str, float]:
    """`component_activity` on held-out pairs, in float64; `before` is the SFT checkpoint's, DPO's reference."""
    return component_activity(
        objective,
        *(torch.from_numpy(array) for array in (now.chosen, now.chosen_lengths, now.rejected, now.rejected_lengths)),
        reference=ReferenceLogps(
            torch.from_numpy(before.chosen_means * before.chosen_lengths),
            torch.from_numpy(before.rejected_means * before.rejected_lengths),
        ),
    )


def answer_prompts(
    trial: Trial, stages: Stages, policy: Policy, report: Report, *, adapter: Path, prompt_set: str | None = None
) -> tuple[list[Prompt], list[Answer]]:
    """What the policy was asked, turn by turn, and its answers.

    adapter: its folder, for a server to load. prompt_set: None is the trial's own. Raises Paused where a server does
    not do its part.
    """
    report({"doing": "answering"})
    prompts, evaluation = stages.prompts[prompt_set or trial.prompt_set], trial.settings.evaluation
    try:
        return draw_answers(
            policy, stages.tokenizer, prompts, evaluation, report, stop_tokens=stages.stop_tokens,
            # The baseline's answers were drawn with seed 0: equal policies must still answer independently.
            seed=1 + trial.seed, doing="answering", adapter=adapter,
        )  # fmt: skip
    except RunError as error:
        raise pause_for(error) from None


def judge_prompts(
    trial: Trial,
    stages: Stages,
    turns: tuple[list[Prompt], list[Answer]],
    judge: Judge | None,
    *,
    first: int | None = None,
    prompt_set: str | None = None,
) -> Answered:
    """Judge answers against the baseline's.

    turns: prompts and answers, an item a turn. first: how many of them are judged; None is all. prompt_set: as asked.
    Raises Paused where the judge cannot go on: what it has said so far is kept, so there is nothing to give up.
    """
    prompts, answers = turns
    try:
        return judge_answers(
            prompts,
            answers,
            stages.baseline[prompt_set or trial.prompt_set],
            judge=judge,
            format_check=stages.format_check,
            markers=stages.tokenizer.all_special_tokens,
            first=first,
        )
    except SlimeRayError as error:
        raise pause_for(error) from None


def measure_answers(trial: Trial, answered: Answered) -> Measurement:
    """What the answers alone tell."""
    row = {
        "win_rate": answered.win_rate,
        "prompts": answered.judged_prompts,
        "format_valid": answered.format_valid,
        "broken_outputs": answered.broken_outputs,
        "length_shift": answered.length_shift,
    }
    columns = {**about(trial), "prompt_set": trial.prompt_set}
    rows, verdicts = answered.rows(columns), answered.verdict_rows(columns)
    return Measurement(row, rows, judging=answered.summary, verdicts=verdicts)


def measure_retention(trial: Trial, stages: Stages, policy: Policy, report: Report, *, adapter: Path) -> Measurement:
    """Score answers to the retention prompts, and the SFT checkpoint's, where `evaluation.retention` is set.

    Raises Paused where the scorer, or a server, does not do its part.
    """
    retention = trial.settings.evaluation.retention
    if retention is None:
        return Measurement({})
    scorer = ExactJudge(load_scorer(retention.scorer, "evaluation.retention.scorer"), name=RETENTION)
    turns = answer_prompts(trial, stages, policy, report, adapter=adapter, prompt_set=RETENTION)
    answered = judge_prompts(trial, stages, turns, scorer, prompt_set=RETENTION)
    return Measurement({"retention": answered.score_change}, answered.rows({**about(trial), "prompt_set": RETENTION}))


def stability_parts(
    stages: Stages, after: HeldOut, answered: Answered, *, training_spikes: float | None
) -> StabilityParts:
    """The parts of stability-v1. training_spikes: T; None where no training was seen, which then costs nothing."""
    return StabilityParts(
        unlearning=stability.unlearning(stages.step0, after),
        rejected_collapse=stability.rejected_collapse(stages.step0, after),
        entropy_shift=stability.entropy_shift(stages.step0, after),
        broken_outputs=answered.broken_outputs,
        length_shift=answered.length_shift,
        training_spikes=training_spikes or 0.0,
    )


def measure_policy(
    trial: Trial,
    stages: Stages,
    policy: Policy,
    after: HeldOut,
    answered: Answered,
    report: Report,
    *,
    adapter: Path,
    training_spikes: float | None,
) -> Measurement:
    """Measure everything, with stability-v1 and retention (see `stability_parts` and `measure_retention`)."""
    held_out, answers = measure_log_probabilities(trial, stages.step0, after), measure_answers(trial, answered)
    parts = stability_parts(stages, after, answered, training_spikes=training_spikes)
    row = asdict(parts) | {
        "training_spikes": training_spikes,
        "kl_to_sft": _kl(trial, stages, policy, answered),
        "stability": stability_score(parts, healthy=True),
        "healthy": True,
    }
    retention = measure_retention(trial, stages, policy, report, adapter=adapter)
    return replace(
        answers,
        row=held_out.row | answers.row | row | retention.row,
        pairs=held_out.pairs,
        answers=[*answers.answers, *retention.answers],
    )


def _kl(trial: Trial, stages: Stages, policy: Policy, answered: Answered) -> float | None:
    """K on the policy's own answers; None if all of them are empty."""
    settings = trial.settings
    samples = [
        TokenPair(prompt.token_ids, answer.token_ids)
        for prompt, answer in zip(answered.prompts, answered.answers, strict=True)
        if answer.token_ids
    ][: settings.evaluation.kl_prompts]
    if not samples:
        return None
    reference = None
    # Without an adapter that is kept, or of an SFT stage, the model would be its base, not what training started from.
    if settings.model.kept or {*getattr(policy.lm, "peft_config", ())} != {DEFAULT_ADAPTER}:
        lm = load_start(stages.checkpoint, settings.model).to(policy.device)
        reference = make_policy(lm, settings.model).eval()
    return stability.kl_to_reference(policy, reference, samples, row_tokens=row_budget(settings, policy))


def beaten_by(win_rate: float, prompts: int, score: float, rivals: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the id of a finished search trial that is at least as stable and clearly wins more, if there is one.

    win_rate: over `prompts` prompts so far. score: its stability. rivals: rows of trials.parquet; what did not complete
    beats nobody. The difference counts once it is more than 1.96 of its standard errors, with the largest variance that
    outcomes of these means can have, w (1 - w).
    """
    error = _variance(win_rate, prompts)
    for rival in rivals:
        if rival["phase"] != "search" or rival["status"] != "completed":
            continue
        if rival["win_rate"] is None or not rival["prompts"]:
            continue
        clear = NORMAL * math.sqrt(error + _variance(rival["win_rate"], rival["prompts"]))
        if rival["stability"] >= score and rival["win_rate"] - win_rate > clear:
            return str(rival["trial_id"])
    return None


def _variance(win_rate: float, prompts: int) -> float:
    """Of a mean over so many outcomes. One more outcome of 0.5 on either side keeps it from 0 at rates of 0 and 1."""
    smoothed = (win_rate * prompts + 0.5) / (prompts + 1)
    return smoothed * (1 - smoothed) / prompts
