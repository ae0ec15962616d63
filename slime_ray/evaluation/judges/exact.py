"""The exact judge: a scoring function of prompt and answer; the higher score wins, equal scores tie."""

import importlib
from collections.abc import Callable, Sequence

from slime_ray.errors import InputError
from slime_ray.evaluation.judges.base import Messages, Verdict

Scorer = Callable[[str, str], float]
"""Takes the last user message and an answer; returns a score, higher is better."""


class ExactJudge:
    """Compares the scores that `scorer` gives to the two answers. Deterministic and free of order effects."""

    def __init__(self, scorer: Scorer, *, name: str = "exact"):
        self.scorer = scorer
        self.name = name

    def __call__(
        self,
        prompts: Sequence[Messages],
        answers_a: Sequence[str],
        answers_b: Sequence[str],
        prompts_b: Sequence[Messages] | None = None,
    ) -> list[Verdict]:
        """One verdict a prompt, whatever was said before its last user message."""
        verdicts: list[Verdict] = []
        for messages, a, b in zip(prompts, answers_a, answers_b, strict=True):
            score_a, score_b = self.score(messages, a), self.score(messages, b)
            verdicts.append("A>B" if score_a > score_b else "B>A" if score_b > score_a else "A=B")
        return verdicts

    def score(self, messages: Messages, answer: str) -> float:
        """The score of one answer."""
        return float(self.scorer(question(messages), answer))


def question(messages: Messages) -> str:
    """The last user message of a prompt."""
    return str(next((message["content"] for message in reversed(messages) if message["role"] == "user"), ""))


def load_scorer(place: str) -> Scorer:
    """Import `package.module:function`. Raises InputError where it cannot be found or called."""
    module_name, colon, function = place.partition(":")
    way_out = "Write package.module:function, importable from where slime-ray runs."
    if not colon:
        raise InputError(f"evaluation.judge.scorer is {place!r}. {way_out}")
    try:
        scorer = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"evaluation.judge.scorer {place!r} cannot be imported: {error}. {way_out}") from None
    if not callable(scorer):
        raise InputError(f"evaluation.judge.scorer {place!r} is not a function. {way_out}")
    return scorer
