"""Verdicts: Arena-Hard's labels and what they are worth. Imports nothing that judges or trains."""

from typing import Literal

Verdict = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"] | None
"""Arena-Hard's labels; None is an invalid verdict, which is missing, never a loss."""

POINTS_OF_A: dict[str, float] = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}

_MIRRORED: dict[Verdict, Verdict] = {"A>>B": "B>>A", "A>B": "B>A", "A=B": "A=B", "B>A": "A>B", "B>>A": "A>>B"}


def mirrored(verdict: Verdict) -> Verdict:
    """The same verdict with the two answers' places exchanged."""
    return _MIRRORED.get(verdict)
