"""What judging takes: verdicts in both orders, requests to a language model, its tokens and its cost."""

from dataclasses import asdict, dataclass
from typing import Any

from slime_ray.config.judge import Llm
from slime_ray.config.settings import Settings
from slime_ray.planning.ranges import NOTHING, Range

CHARACTERS = 4.0
"""Of a token of a judge's template, about."""


@dataclass(frozen=True)
class Judging:
    """judge: as results name it. requests: to a language model. cost: in the prices' currency; None without prices.
    budget: what a budget that is too small does, as a sentence."""

    judge: str
    requests: Range = NOTHING
    input_tokens: Range = NOTHING
    output_tokens: Range = NOTHING
    cost: Range | None = None
    budget: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def plan_judging(settings: Settings, requests: Range, *, prompt: float, answer: float) -> Judging:
    """What so many requests cost. prompt, answer: mean tokens of each; the judge's own tokenizer is taken for alike."""
    judge = settings.evaluation.judge
    if not isinstance(judge, Llm):
        return Judging(settings.judge_identity)
    template = (len(judge.template.system) + len(judge.template.user)) / CHARACTERS
    shown = template + prompt + answer * (2 if judge.template.pairwise else 1)
    answers_up_to = float(judge.max_tokens)
    read = requests * Range.about(shown, less=0.3, more=0.5)
    written = requests * Range(min(100.0, answers_up_to), min(400.0, answers_up_to), answers_up_to)
    cost = None
    if judge.prices:
        cost = (read * judge.prices.input + written * judge.prices.output) * 1e-6
    return Judging(
        settings.judge_identity, requests, read, written, cost, _budget(judge, requests, read + written, cost)
    )


def _budget(judge: Llm, requests: Range, tokens: Range, cost: Range | None) -> str | None:
    limits = (
        ("requests", judge.budget.requests, requests),
        ("tokens", judge.budget.tokens, tokens),
        ("cost", judge.budget.cost, cost),
    )
    short = [
        (limit / wanted.expected, name, limit)
        for name, limit, wanted in limits
        if limit is not None and wanted is not None and wanted.expected > limit
    ]
    if not short:
        return None
    share, name, limit = min(short)
    then = "trials stop with a checkpoint" if judge.on_failure == "stop" else "trials go on without verdicts"
    return (
        f"evaluation.judge.budget.{name} {limit:g} is spent after about {share:.0%} of the verdicts; then {then}. "
        "Raise it, or lower evaluation.prompts, evaluation.selection_prompts or evaluation.judge_first."
    )
