"""Verdicts on the policy's answers against the baseline's, in both presentation orders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slime_ray.evaluation.verdicts import POINTS_OF_A, Verdict

if TYPE_CHECKING:
    from slime_ray.evaluation.judges import AnyJudge, Messages, Panel, Summary


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
class Rating:
    """What one judge of a panel, or one of its repeats, made of a prompt. repeat: from 1."""

    judge: str
    repeat: int
    comparison: Comparison
    score: float | None
    baseline_score: float | None


@dataclass(frozen=True)
class Pooled:
    """A panel's verdicts on one prompt."""

    ratings: Sequence[Rating]
    ab: Verdict = None
    ba: Verdict = None

    @property
    def outcome(self) -> float | None:
        """Mean over the judges of the mean over each one's repeats; None if a judge has no valid verdict."""
        outcomes: dict[str, list[float]] = {rating.judge: [] for rating in self.ratings}
        for rating in self.ratings:
            if rating.comparison.outcome is not None:
                outcomes[rating.judge].append(rating.comparison.outcome)
        if not outcomes or not all(outcomes.values()):
            return None
        return sum(sum(repeats) / len(repeats) for repeats in outcomes.values()) / len(outcomes)


@dataclass(frozen=True)
class Judged:
    """What a judge said of the policy's answers and the baseline's, one item a prompt.

    scores, baseline_scores: None where the judge gives none. summary: what it took; None where nothing was judged.
    """

    comparisons: Sequence[Comparison | Pooled | None]
    scores: Sequence[float | None]
    baseline_scores: Sequence[float | None]
    summary: "Summary | None" = None


def compare(
    judge: "AnyJudge",
    prompts: "Sequence[Messages]",
    answers: Sequence[str],
    baseline: Sequence[str],
    *,
    baseline_prompts: "Sequence[Messages] | None" = None,
) -> Judged:
    """Judge every prompt in both orders, in one call; a judge that scores gives both from the same scores.

    baseline_prompts: the baseline's conversations, where its own earlier answers make them others than `prompts`.
    """
    from slime_ray.evaluation.judges import Panel, ScoringJudge

    if isinstance(judge, Panel):
        return _compare_by_all(judge, prompts, answers, baseline, baseline_prompts or prompts)
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


def _compare_by_all(
    panel: "Panel",
    prompts: "Sequence[Messages]",
    answers: Sequence[str],
    baseline: Sequence[str],
    baseline_prompts: "Sequence[Messages]",
) -> Judged:
    from slime_ray.evaluation.judges.panel import add_up

    ratings: list[list[Rating]] = [[] for _ in prompts]
    summaries: dict[tuple[str, int], Summary] = {}
    for rater in panel.raters:
        places = [place for place, prompt in enumerate(prompts) if rater.takes(prompt)]
        judged = compare(
            rater.judge,
            [prompts[place] for place in places],
            [answers[place] for place in places],
            [baseline[place] for place in places],
            baseline_prompts=[baseline_prompts[place] for place in places],
        )
        if judged.summary is not None:
            summaries[rater.judge.name, rater.repeat] = judged.summary
        found = zip(places, judged.comparisons, judged.scores, judged.baseline_scores, strict=True)
        for place, comparison, score, baseline_score in found:
            assert isinstance(comparison, Comparison)
            ratings[place].append(Rating(rater.judge.name, rater.repeat, comparison, score, baseline_score))
    nothing: list[None] = [None] * len(prompts)
    return Judged([Pooled(tuple(every)) for every in ratings], nothing, nothing, add_up(summaries))


def win_rate(comparisons: Sequence[Comparison | Pooled | None], ids: Sequence[str] | None = None) -> float | None:
    """Mean outcome over the prompts that have one; None where nothing was judged.

    ids: of the prompts, where one has several turns: those count as much as another prompt's only one.
    """
    outcomes: dict[object, list[float]] = {}
    for key, comparison in zip(ids or range(len(comparisons)), comparisons, strict=True):
        if comparison is not None and comparison.outcome is not None:
            outcomes.setdefault(key, []).append(comparison.outcome)
    return sum(sum(turns) / len(turns) for turns in outcomes.values()) / len(outcomes) if outcomes else None
