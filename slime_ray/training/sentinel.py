"""The sentinel: watches a training run for collapse while it can still be stopped.

At every evaluation it takes the parts of stability-v1 as they stand, on the first held-out pairs, on a few answers and
on the updates so far. An alarm is a part beyond several of its tolerances by two standard errors, so that a handful of
prompts raises none by chance. The margin of a collapsing run still rises, which is why it is not asked.

What it has seen by then also estimates both goals, S and the win rate, for early stopping.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from slime_ray.config.experiment import Trial
from slime_ray.errors import InputError, SlimeRayError
from slime_ray.evaluation import stability
from slime_ray.evaluation.answers import broken_reasons
from slime_ray.evaluation.generate import Answer, generate_answers
from slime_ray.evaluation.held_out import HeldOut, measure_held_out
from slime_ray.evaluation.judges import AnswerPair, Judge
from slime_ray.evaluation.verdicts import win_rate
from slime_ray.model.logprobs import Policy
from slime_ray.objectives import objective_at
from slime_ray.runs.stability_v1 import TOLERANCES, StabilityParts, spike_flags, stability_score
from slime_ray.training.measuring import Curves, measure_activity
from slime_ray.training.orders import ESTIMATED, Command, Report, pause_for
from slime_ray.training.policies import row_budget
from slime_ray.training.stages import Stages
from slime_ray.world import World

STANDARD_ERRORS = 2.0
CURVE_PAIRS = 128
"""Held-out pairs that are measured during training, at most."""
FEWEST_PAIRS = 30
"""With fewer pairs it is said that they say little."""
WATCHED = "selection"
"""The prompt set that is answered: what a trial is reported on stays unseen until its end."""


@dataclass(frozen=True)
class Sign:
    """One part of stability-v1 during training. error: its standard error. text: the sign in words and figures."""

    value: float
    error: float
    text: str


def alarm(signs: dict[str, Sign], *, tolerances: float, step: int) -> str | None:
    """Describe the gravest sign that is beyond `tolerances` of its tolerances by two standard errors, if one is.

    signs: by the name of their part of stability-v1.
    """
    limits = asdict(TOLERANCES)
    excess = {name: (sign.value - STANDARD_ERRORS * sign.error) / limits[name] for name, sign in signs.items()}
    gravest = max(excess, key=lambda name: excess[name])
    return f"{signs[gravest].text} at step {step}" if excess[gravest] > tolerances else None


def pair_signs(before: HeldOut, after: HeldOut) -> dict[str, Sign]:
    """Unlearning, rejected collapse and entropy shift on the same held-out pairs under both policies."""
    drift = after.chosen_means - before.chosen_means
    lost = np.maximum(0.0, -drift)
    shares = stability.collapsed_tokens(before, after) / after.rejected_lengths
    ratio = float(after.entropy.mean() / before.entropy.mean()) if before.entropy.any() else math.inf
    return {
        "unlearning": Sign(
            stability.unlearning(before, after),
            _standard_error(lost),
            f"unlearning, chosen drift {drift.mean():+.2f} nat/token",
        ),
        "rejected_collapse": Sign(
            collapse := stability.rejected_collapse(before, after),
            _standard_error(shares),
            f"rejected collapse, {100 * collapse:.0f} % of rejected tokens more than tenfold less likely",
        ),
        "entropy_shift": Sign(
            stability.entropy_shift(before, after),
            0.0,
            f"entropy shift, {ratio:.2f} times the SFT checkpoint's entropy",
        ),
    }


def answer_signs(
    answers: Sequence[Answer],
    baseline: Sequence[Answer],
    reasons: Sequence[str | None],
    baseline_reasons: Sequence[str | None],
) -> dict[str, Sign]:
    """Compare broken outputs and length of a few answers with the baseline's."""
    grown = np.array([bool(r) for r in reasons], dtype=float) - np.array([bool(r) for r in baseline_reasons])
    logs = stability.length_log_ratios(*([len(a.token_ids) for a in side] for side in (answers, baseline)))
    counts = ", ".join(f"{count} {name}" for name, count in Counter(filter(None, reasons)).most_common())
    broken = len(reasons) - list(reasons).count(None)
    return {
        "broken_outputs": Sign(
            max(0.0, float(grown.mean())),
            _standard_error(grown),
            f"broken outputs, {broken} of {len(reasons)} answers ({counts or 'none'})",
        ),
        "length_shift": Sign(
            abs(float(logs.mean())),
            _standard_error(logs),
            f"length shift, answers {math.exp(logs.mean()):.2f} times as long as the SFT checkpoint's",
        ),
    }


def spike_sign(losses: Sequence[float], grad_norms: Sequence[float]) -> dict[str, Sign]:
    """Training spikes so far; counts err by their square root."""
    share = stability.training_spikes(losses, grad_norms)
    error = math.sqrt(share / max(1, spike_flags(losses, grad_norms).size))
    return {"training_spikes": Sign(share, error, f"training spikes, {100 * share:.0f} % of the updates")}


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def standing(signs: Mapping[str, Sign]) -> float:
    """S of stability-v1 as it stands by these signs. What was not looked at costs nothing."""
    unseen = dict.fromkeys(asdict(TOLERANCES), 0.0)
    return stability_score(StabilityParts(**unseen | {name: sign.value for name, sign in signs.items()}), healthy=True)


class Measurements:
    """What is measured of one trial during training; it runs inside the training clock and keeps its own.

    alarm: the sentinel's first one, with its step; None as long as all is well. judge: says how often the answers that
    the sentinel draws win; None where they are not judged on the way.
    """

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
        self.settings, self.objective = trial.settings.sentinel, trial.settings.objective.build()
        self.curves, self.report = curves, report
        self.judge = judge if trial.settings.judged_on_the_way else None
        self.alarm: str | None = None
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
            sentinel_metrics = self.look(step, before, now)
        except SlimeRayError as error:
            raise pause_for(error) from None
        self.curves.add(step, "sentinel", sentinel_metrics)
        self.seconds += time.perf_counter() - clock
        state = {"doing": "training", "step": step, "updates": updates, "alarm": self.alarm}
        estimates = {name: sentinel_metrics[name] for name in ESTIMATED if name in sentinel_metrics}
        self.estimates = metrics | estimates
        order = self.report({**state, **self.estimates, **self.last})
        if order is None and self.alarm and self.settings.action == "stop":
            return Command("stop", self.alarm, measure=True)
        return order

    def look(self, step: int, before: HeldOut, after: HeldOut) -> dict[str, float]:
        """Look at the policy as it is and return what belongs into the curves. Every rank takes part.

        The answers are drawn with random numbers of their own: watching changes nothing about the training. `stability`
        and `win_rate` among what it returns are estimates of the goals. Without watching there is only the former, over
        the parts that need no answers. Raises RunError where the judge cannot go on.
        """
        signs = pair_signs(before, after) | spike_sign(self.curves.series("loss"), self.curves.series("grad_norm"))
        if self.settings.action == "none":
            return {"stability": standing(signs)}
        prompts = self.stages.prompts[WATCHED][: self.settings.prompts]
        baseline = self.stages.baseline[WATCHED][: self.settings.prompts]
        answers = baseline
        if step:
            answers = generate_answers(
                self.policy,
                self.stages.tokenizer,
                [prompt.token_ids for prompt in prompts],
                decoding=self.trial.settings.evaluation.decoding,
                stop_tokens=self.stages.stop_tokens,
                seed=1 + self.trial.seed,
            )
        checks = {"format_check": self.stages.format_check, "markers": self.stages.tokenizer.all_special_tokens}
        reasons, baseline_reasons = (
            broken_reasons([prompt.messages for prompt in prompts], side, **checks) for side in (answers, baseline)
        )
        signs |= answer_signs(answers, baseline, reasons, baseline_reasons)
        self.alarm = self.alarm or alarm(signs, tolerances=self.settings.tolerances, step=step)
        sentinel_metrics = {name: sign.value for name, sign in signs.items()} | {
            "end_of_turn": float(np.mean([answer.stopped for answer in answers])),
            "repetition": float(np.mean([stability.sequence_repetition(answer.token_ids) for answer in answers])),
            "answer_tokens": float(np.mean([len(answer.token_ids) for answer in answers])),
            "stability": standing(signs),
        }
        sampled_rate = self.sampled_win_rate(answers, baseline) if step else None
        return sentinel_metrics if sampled_rate is None else sentinel_metrics | {"win_rate": sampled_rate}

    def sampled_win_rate(self, answers: Sequence[Answer], baseline: Sequence[Answer]) -> float | None:
        """Return the share of the first prompts that the answers win; None where nothing is judged."""
        judge = self.judge
        if judge is None:
            return None
        conversations = [prompt.messages for prompt in self.stages.prompts[WATCHED][: len(answers)]]
        pairs = [AnswerPair(q, a.text, q, b.text) for q, a, b in zip(conversations, answers, baseline, strict=True)]
        judged = World.current().from_main(lambda: judge.compare(pairs))
        return win_rate(judged.comparisons)


def curve_pairs(trial: Trial, stages: Stages) -> list[int]:
    """Return the numbers of the held-out pairs that are measured during training, which are the first ones.

    Where weights are kept by them, those of report prompts are left out: what a trial is reported on chooses nothing.
    Raises InputError where none is left then.
    """
    numbers = range(len(stages.held_out))
    if trial.settings.kept_by is None:
        return list(numbers[:CURVE_PAIRS])
    reported = {tuple(prompt.token_ids) for prompt in stages.prompts["report"]}
    unreported = (pair for pair in numbers if tuple(stages.held_out[pair].prompt_ids) not in reported)
    if not (pairs := list(islice(unreported, CURVE_PAIRS))):
        raise InputError(
            "training.keep: every held-out pair is of a report prompt, so none is left to choose weights by. Raise "
            "data.held_out_pairs, or lower evaluation.prompts."
        )
    return pairs
