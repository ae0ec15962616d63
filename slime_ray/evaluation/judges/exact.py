"""The exact judge: a scoring function of prompt and answer; the higher score wins, equal scores tie."""

import importlib
from collections.abc import Callable, Sequence

from slime_ray.errors import InputError
from slime_ray.evaluation.judges.base import Messages, Prompted, ScoringJudge, Summary
from slime_ray.evaluation.verdicts import read_score

Scorer = Callable[[str, str], float | None]
"""Takes the last user message and an answer; returns a score, higher is better, or None or NaN where there is none."""
NO_SCORE = "the scorer gave an answer no score (NaN or None)"


class ExactJudge(ScoringJudge):
    """Compares the scores that `scorer` gives to the two answers. Deterministic and free of order effects."""

    def __init__(self, scorer: Scorer, *, name: str = "exact"):
        self.scorer = scorer
        self.name = name

    def score_each(self, answers: Sequence[Prompted]) -> list[float | None]:
        """One score an answer, None where the scorer gives NaN or None.

        Raises:
            InputError: the scorer fails, or gives what is no number.
        """
        scores: list[float | None] = []
        for messages, answer in answers:
            prompt = question(messages)
            try:
                scores.append(read_score(self.scorer(prompt, answer)))
            except Exception as error:  # whatever the user's own function raises
                raise InputError(
                    f"The scorer of the judge {self.name} fails on the answer {answer[:60]!r} to the prompt "
                    f"{prompt[:60]!r}: {type(error).__name__}: {error}. It takes a prompt and an answer and returns a "
                    "number, or None or NaN for an answer without a score."
                ) from error
        none = scores.count(None)
        self.summary = Summary(new=len(scores) - none, missing={NO_SCORE: none} if none else {}, unit="scores")
        return scores


def question(messages: Messages) -> str:
    """The last user message of a prompt."""
    return str(next((message["content"] for message in reversed(messages) if message["role"] == "user"), ""))


def load_scorer(place: str, key: str = "evaluation.judge.scorer") -> Scorer:
    """Import `package.module:function`, which `key` names. Raises InputError where it cannot be found or called."""
    module_name, colon, function = place.partition(":")
    way_out = "Write package.module:function, with its folder on PYTHONPATH."
    if not colon:
        raise InputError(f"{key} is {place!r}. {way_out}")
    try:
        scorer = getattr(importlib.import_module(module_name), function)
    except Exception as error:  # whatever the user's own file raises
        raise InputError(f"{key} {place!r} cannot be imported: {error}. {way_out}") from None
    if not callable(scorer):
        raise InputError(f"{key} {place!r} is not a function. {way_out}")
    return scorer
