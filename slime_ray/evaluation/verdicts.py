"""Verdicts: Arena-Hard's labels, their worth, and how scores give them. Imports nothing that judges or trains."""

import math
from decimal import Decimal
from numbers import Real
from typing import Any, Literal

Verdict = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"] | None
"""Arena-Hard's labels; None is an invalid verdict, which is missing, never a loss."""

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
