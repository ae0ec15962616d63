"""Verdicts on the policy's answers against the baseline's, in both presentation orders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slime_ray.evaluation.verdicts import POINTS_OF_A, Verdict

if TYPE_CHECKING:
    from slime_ray.evaluation.judges import Judge, Messages


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


def compare(
    judge: "Judge",
    prompts: "Sequence[Messages]",
    answers: Sequence[str],
    baseline: Sequence[str],
    *,
    baseline_prompts: "Sequence[Messages] | None" = None,
) -> list[Comparison]:
    """Judge every prompt in both orders. baseline_prompts: the baseline's conversations, where it had others."""
    if baseline_prompts is None:
        ab, ba = judge(prompts, answers, baseline), judge(prompts, baseline, answers)
    else:
        ab = judge(prompts, answers, baseline, baseline_prompts)
        ba = judge(baseline_prompts, baseline, answers, prompts)
    return [Comparison(*verdicts) for verdicts in zip(ab, ba, strict=True)]


def win_rate(comparisons: Sequence[Comparison | None], ids: Sequence[str] | None = None) -> float | None:
    """Mean outcome over the prompts that have one; None where nothing was judged.

    ids: of the prompts, where one has several turns: those count as much as another prompt's only one.
    """
    outcomes: dict[object, list[float]] = {}
    for key, comparison in zip(ids or range(len(comparisons)), comparisons, strict=True):
        if comparison is not None and comparison.outcome is not None:
            outcomes.setdefault(key, []).append(comparison.outcome)
    return sum(sum(turns) / len(turns) for turns in outcomes.values()) / len(outcomes) if outcomes else None
