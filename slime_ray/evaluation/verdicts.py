"""Verdicts: Arena-Hard's labels, how scores give them, and the win rate. Imports nothing that judges or trains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any, Literal

Verdict = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"] | None
"""Arena-Hard's labels; None is an invalid verdict, which is missing, never a loss."""

FAILED = "$ERROR$"
"""What scripts of the field write in place of an answer whose generation failed."""

POINTS_OF_A: dict[str, float] = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}


def read_score(value: Any) -> float | None:
    """Read a score of any library's number type; None where it is missing, which NaN is, too.

    Raises:
        TypeError: the value is no real number, such as a text or an array of several numbers.
        OverflowError: an integer is too large.
    """
    if value is None:
        return None
    if callable(getattr(value, "item", None)) and getattr(value, "size", None) is not None:
        # Numbers of NumPy and PyTorch, and arrays with one of them.
        try:
            value = value.item()
        except (TypeError, ValueError, RuntimeError):
            shape = tuple(getattr(value, "shape", ()))
            raise TypeError(f"{type(value).__name__} of shape {shape} is not one number") from None
    if not isinstance(value, (Real, Decimal)):
        raise TypeError(f"{value!r:.60} is no number")
    score = float(value)
    return None if math.isnan(score) else score


def verdict_of_scores(score_a: float | None, score_b: float | None, *, tie_band: float = 0.0) -> Verdict:
    """Compare two scores, the higher wins; None if one is missing.

    Equal scores tie, infinite ones too, and so do those that differ by at most `tie_band`.
    """
    if score_a is None or score_b is None or math.isnan(score_a) or math.isnan(score_b):
        return None
    if score_a == score_b or abs(score_a - score_b) <= tie_band:
        return "A=B"
    return "A>B" if score_a > score_b else "B>A"


@dataclass(frozen=True)
class Comparison:
    """One prompt's verdicts. ab: the policy's answer was shown as A; ba: as B.

    score, baseline_score: of the two answers, None where the judge gives none.
    """

    ab: Verdict
    ba: Verdict
    score: float | None = None
    baseline_score: float | None = None

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


@dataclass(frozen=True)
class Pooled:
    """A panel's verdicts on one prompt. Labels and scores are those of its ratings."""

    ratings: Sequence[Rating]
    ab: Verdict = None
    ba: Verdict = None
    score: float | None = None
    baseline_score: float | None = None

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


def win_rate(comparisons: Sequence[Comparison | Pooled | None], ids: Sequence[str] | None = None) -> float | None:
    """Mean outcome over the prompts that have one; None where nothing was judged.

    ids: of the prompts, where one has several turns: those count as much as another prompt's only one.
    """
    outcomes: dict[object, list[float]] = {}
    for key, comparison in zip(ids or range(len(comparisons)), comparisons, strict=True):
        if comparison is not None and comparison.outcome is not None:
            outcomes.setdefault(key, []).append(comparison.outcome)
    return sum(sum(turns) / len(turns) for turns in outcomes.values()) / len(outcomes) if outcomes else None
