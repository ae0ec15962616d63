"""What judging a plan's answers takes: requests to language models, tokens, cost, and a budget that is too small."""

from collections.abc import Iterable

from slime_ray.config.judge import Llm
from slime_ray.config.settings import Settings
from slime_ray.planning.material import Material
from slime_ray.planning.plan import Judging
from slime_ray.planning.rates import Range
from slime_ray.planning.work import requests_an_answer

CHARACTERS = 4.0
"""Of a token of a judge's template, about."""
SHOWN = Range(0.7, 1.0, 1.5)
"""What a judge may read, next to what the data's own tokenizer counts."""


def plan_judging(settings: Settings, requests: Range, material: Material) -> Judging:
    """What so many requests cost. A judge's own tokenizer is taken for the data's."""
    endpoints = settings.evaluation.judge.endpoints
    shares = [judge.requests_an_answer / requests_an_answer(settings) for judge in endpoints]
    parts = [
        _judging_of(judge, requests.times(share), material) for judge, share in zip(endpoints, shares, strict=True)
    ]
    if not parts:
        return Judging(settings.judge_identity)
    costs = [part.cost for part in parts if part.cost]
    return Judging(
        settings.judge_identity,
        requests,
        _total(part.input_tokens for part in parts),
        _total(part.output_tokens for part in parts),
        _total(costs) if len(costs) == len(parts) else None,
        next((part.budget for part in parts if part.budget), None),
    )


def _total(ranges: Iterable[Range]) -> Range:
    every = list(ranges)
    return Range.of(lambda end: sum(one.at(end) for one in every))


def _judging_of(judge: Llm, requests: Range, material: Material) -> Judging:
    """What so many requests to one judge cost."""
    shown = (len(judge.template.system) + len(judge.template.user)) / CHARACTERS
    shown += material.prompts["report"].tokens + material.answer * (2 if judge.template.pairwise else 1)
    most = float(judge.max_tokens)
    answer = Range(min(100.0, most), min(400.0, most), most)
    read = Range.of(lambda end: requests.at(end) * shown * SHOWN.at(end))
    written = Range.of(lambda end: requests.at(end) * answer.at(end))
    prices = judge.prices
    cost = (
        Range.of(lambda end: (read.at(end) * prices.input + written.at(end) * prices.output) * 1e-6) if prices else None
    )
    limits = (
        ("requests", judge.budget.requests, requests.expected),
        ("tokens", judge.budget.tokens, read.expected + written.expected),
        ("cost", judge.budget.cost, cost.expected if cost else 0.0),
    )
    short = [(limit / needed, name, limit) for name, limit, needed in limits if limit is not None and needed > limit]
    budget = None
    if short:
        share, name, limit = min(short)
        then = "trials stop with a checkpoint" if judge.on_failure == "stop" else "trials go on without verdicts"
        budget = (
            f"evaluation.judge.budget.{name} {limit:g} is spent after about {share:.0%} of the verdicts; then {then}. "
            "Raise it, or lower evaluation.prompts, evaluation.selection_prompts or evaluation.judge_first."
        )
    return Judging(judge.identity, requests, read, written, cost, budget)
