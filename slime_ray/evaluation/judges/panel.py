"""Several judges of the same answers, and repeats of one, as one judge."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slime_ray.evaluation.judges.base import AnswerPair, Judge, Judged, Messages, Summary
from slime_ray.evaluation.verdicts import Comparison, Pooled, Rating


@dataclass(frozen=True)
class Rater:
    """A judge of a panel, or one of its repeats.

    repeat: from 1. share: of the prompts that it judges, drawn by what the user says in them.
    """

    judge: Judge
    repeat: int = 1
    share: float = 1.0

    def takes(self, prompt: Messages) -> bool:
        """Whether it judges answers to this prompt; the same for all policies and turns."""
        if self.share >= 1:
            return True
        question = next(turn["content"] for turn in prompt if turn["role"] == "user")
        drawn = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:8]
        return int(drawn, 16) < self.share * 16**8


class Panel(Judge):
    """Judges that each compare all answers, under their own names."""

    def __init__(self, name: str, raters: Sequence[Rater]):
        self.name, self.raters = name, raters

    def compare(self, pairs: Sequence[AnswerPair]) -> Judged:
        """Pool the verdicts of all raters on their prompts, prompt by prompt."""
        ratings: list[list[Rating]] = [[] for _ in pairs]
        summaries: dict[tuple[str, int], Summary] = {}
        for rater in self.raters:
            places = [place for place, pair in enumerate(pairs) if rater.takes(pair.prompt)]
            judged = rater.judge.compare([pairs[place] for place in places])
            if judged.summary is not None:
                summaries[rater.judge.name, rater.repeat] = judged.summary
            for place, comparison in zip(places, judged.comparisons, strict=True):
                assert isinstance(comparison, Comparison)
                ratings[place].append(Rating(rater.judge.name, rater.repeat, comparison))
        return Judged([Pooled(tuple(prompt_ratings)) for prompt_ratings in ratings], _total(summaries))


def _total(summaries: Mapping[tuple[str, int], Summary]) -> Summary:
    """Sum up what a panel took. summaries: by judge and repeat; reasons are named by judge."""
    missing: dict[str, int] = {}
    # Each repeat tells what its judge has taken in the whole run so far.
    last: dict[str, Summary] = {}
    for (judge, _), summary in summaries.items():
        last[judge] = max(last.get(judge, summary), summary, key=lambda call: call.requests)
        for reason, count in summary.missing.items():
            missing[f"{judge}: {reason}"] = missing.get(f"{judge}: {reason}", 0) + count
    costs = [summary.cost for summary in last.values() if summary.requests]
    calls = summaries.values()
    return Summary(
        new=sum(call.new for call in calls),
        cached=sum(call.cached for call in calls),
        invalid=sum(call.invalid for call in calls),
        missing=missing,
        shortened=sum(call.shortened for call in calls),
        requests=sum(call.requests for call in last.values()),
        input_tokens=sum(call.input_tokens for call in last.values()),
        output_tokens=sum(call.output_tokens for call in last.values()),
        cost=None if not costs or None in costs else sum(cost for cost in costs if cost is not None),
        models=tuple(sorted({model for call in calls for model in call.models})),
    )
