"""The exact judge: a scoring function of prompt and answer; the higher score wins, equal scores tie."""

import importlib
from collections.abc import Callable, Sequence

from slime_ray.errors import InputError
from slime_ray.evaluation.judges.base import Messages, ScoringJudge, Summary

Scorer = Callable[[str, str], float]
"""Takes the last user message and an answer; returns a score, higher is better."""


class ExactJudge(ScoringJudge):
    """Compares the scores that `scorer` gives to the two answers. Deterministic and free of order effects."""

    def __init__(self, scorer: Scorer, *, name: str = "exact"):
        self.scorer = scorer
        self.name = name

    def score_each(self, prompts: Sequence[Messages], answers: Sequence[str]) -> list[float | None]:
        """One score an answer. Raises InputError where the scorer fails or gives no number."""
        scores: list[float | None] = []
        for messages, answer in zip(prompts, answers, strict=True):
            try:
                scores.append(float(self.scorer(question(messages), answer)))
            except Exception as error:
                raise InputError(
                    f"The scorer of the judge {self.name} fails on the answer {answer[:60]!r}: "
                    f"{type(error).__name__}: {error}. It takes a prompt and an answer and returns a number."
                ) from error
        self.summary = Summary(new=len(scores))
        return scores


def question(messages: Messages) -> str:
    """The last user message of a prompt."""
    return str(next((message["content"] for message in reversed(messages) if message["role"] == "user"), ""))


def load_scorer(place: str) -> Scorer:
    """Import `package.module:function`. Raises InputError where it cannot be found or called."""
    module_name, colon, function = place.partition(":")
    way_out = "Write package.module:function, with its folder on PYTHONPATH."
    if not colon:
        raise InputError(f"evaluation.judge.scorer is {place!r}. {way_out}")
    try:
        scorer = getattr(importlib.import_module(module_name), function)
    except Exception as error:  # whatever the user's own file raises
        raise InputError(f"evaluation.judge.scorer {place!r} cannot be imported: {error}. {way_out}") from None
    if not callable(scorer):
        raise InputError(f"evaluation.judge.scorer {place!r} is not a function. {way_out}")
    return scorer
