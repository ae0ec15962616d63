"""Which answers are broken, and why: part B of stability-v1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slime_ray.evaluation.generate import Answer

REPETITION_LIMIT = 0.5
FAILED = "$ERROR$"
"""What scripts of the field write in place of an answer whose generation failed."""


def sequence_repetition(token_ids: Sequence[int], n: int = 4) -> float:
    """seq-rep-n (Welleck et al. 2020): 1 - unique n-grams / n-grams, so 0 without any repetition."""
    grams = [tuple(token_ids[start : start + n]) for start in range(len(token_ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def broken_reason(answer: Answer, *, markers: Sequence[str] = (), format_ok: bool | None = None) -> str | None:
    """The first reason for which an answer counts as broken, or None.

    markers: texts of the chat template that must not appear in an answer. format_ok: what the task's own check said,
    if it has one.
    """
    if answer.text.strip() == FAILED:
        return "failed_generation"
    if not answer.text.strip():
        return "empty"
    if not answer.stopped:
        return "no_stop"
    if sequence_repetition(answer.token_ids) > REPETITION_LIMIT:
        return "repetition"
    if answer.leaked or any(marker in answer.text for marker in markers):
        return "leaked_tokens"
    if answer.text.count("```") % 2:
        return "open_fence"
    if format_ok is False:
        return "format"
    return None
