"""Verdicts on the policy's answers against the baseline's, in both presentation orders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slime_ray.evaluation.verdicts import POINTS_OF_A, Verdict

if TYPE_CHECKING:
    from slime_ray.evaluation.judges import Judge, Messages, Summary


@dataclass(frozen=True)
class Comparison:
    """One prompt's verdicts. ab: the policy's answer was shown as A; ba: as B."""

    ab: Verdict
    ba: Verdict

    @property
    def outcome(self) -> float | None:
        """Mean over the valid orders of 1 win, 0.5 tie, 0 loss for the policy; None if no order is valid."""
        points = [POINTS_OF_A[self.ab]] if self.ab is not None else []
        points += [1 - POINTS_OF_A[self.ba]] if self.ba is not None else []
        return sum(points) / len(points) if points else None


@dataclass(frozen=True)
class Judged:
    """What a judge said of the policy's answers and the baseline's, one item a prompt.

    scores, baseline_scores: None where the judge gives none. summary: what it took; None where nothing was judged.
    """

    comparisons: Sequence[Comparison | None]
    scores: Sequence[float | None]
    baseline_scores: Sequence[float | None]
    summary: "Summary | None" = None


def compare(
    judge: "Judge",
    prompts: "Sequence[Messages]",
    answers: Sequence[str],
    baseline: Sequence[str],
    *,
    baseline_prompts: "Sequence[Messages] | None" = None,
) -> Judged:
    """Judge every prompt in both orders, in one call; a judge that scores gives both from the same scores.

    baseline_prompts: the baseline's conversations, where its own earlier answers make them others than `prompts`.
    """
    from slime_ray.evaluation.judges import ScoringJudge

    count = len(answers)
    asked, others = list(prompts), list(baseline_prompts or prompts)
    scores: list[float | None] = [None] * (2 * count)
    if isinstance(judge, ScoringJudge):
        scores = judge.scores([*asked, *others], [*answers, *baseline])
        swapped = [*scores[count:], *scores[:count]]
        verdicts = [judge.verdict(a, b) for a, b in zip(scores, swapped, strict=True)]
    else:
        verdicts = judge([*asked, *others], [*answers, *baseline], [*baseline, *answers], [*others, *asked])
    comparisons = [Comparison(*both) for both in zip(verdicts[:count], verdicts[count:], strict=True)]
    return Judged(comparisons, scores[:count], scores[count:], judge.summary)


def win_rate(comparisons: Sequence[Comparison | None], ids: Sequence[str] | None = None) -> float | None:
    """Mean outcome over the prompts that have one; None where nothing was judged.

    ids: of the prompts, where one has several turns: those count as much as another prompt's only one.
    """
    outcomes: dict[object, list[float]] = {}
    for key, comparison in zip(ids or range(len(comparisons)), comparisons, strict=True):
        if comparison is not None and comparison.outcome is not None:
            outcomes.setdefault(key, []).append(comparison.outcome)
    return sum(sum(turns) / len(turns) for turns in outcomes.values()) / len(outcomes) if outcomes else None
