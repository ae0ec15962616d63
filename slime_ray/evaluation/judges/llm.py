"""Judges that ask a language model: one compares two answers in the order given, one rates every answer by itself."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from slime_ray.config.judge import Llm
from slime_ray.data.messages import shown_text
from slime_ray.evaluation.judges.asking import Asker, Chat, JudgeQuestion
from slime_ray.evaluation.judges.base import Judge, Judged, Messages, ScoringJudge
from slime_ray.evaluation.judges.prompting import read_label, read_rating, render
from slime_ray.evaluation.verdicts import Comparison, Verdict


class PairwiseLlmJudge(Judge):
    """Arena-Hard's way: the model compares A and B and ends in one of five labels. Which is A may matter to it."""

    def __init__(self, settings: Llm, asker: Asker, *, repeat: int = 1):
        self.settings, self.asker, self.name, self.repeat = settings, asker, settings.identity, repeat

    def compare(
        self,
        prompts: Sequence[Messages],
        answers: Sequence[str],
        baseline: Sequence[str],
        baseline_prompts: Sequence[Messages] | None = None,
    ) -> Judged:
        """Both orders of all prompts are asked for together. Equal answers tie without being shown."""
        sides = list(zip(prompts, answers, baseline_prompts or prompts, baseline, strict=True))
        orders = [*sides, *((other, theirs, prompt, ours) for prompt, ours, other, theirs in sides)]
        equal = [list(prompt) == list(other) and a == b for prompt, a, other, b in orders]
        found, summary = self.asker.ask(
            [self._compared(*each) for each, same in zip(orders, equal, strict=True) if not same]
        )
        labels = iter(found)
        verdicts = ["A=B" if same else cast(Verdict, next(labels)) for same in equal]
        comparisons = [Comparison(*both) for both in zip(verdicts[: len(sides)], verdicts[len(sides) :], strict=True)]
        nothing: list[None] = [None] * len(sides)
        return Judged(comparisons, nothing, nothing, summary)

    def _compared(self, prompt: Messages, a: str, other: Messages, b: str) -> JudgeQuestion:
        if list(prompt) != list(other):
            # What both were asked is the question; each side's own earlier answers are part of its answer.
            a, b = _all_turns(prompt, a), _all_turns(other, b)
            prompt = [message for message in prompt if message["role"] != "assistant"]
        return _question(self.settings, prompt, {"answer_a": a, "answer_b": b}, self.repeat)


class RatingLlmJudge(ScoringJudge):
    """MT-Bench's single grading: the model rates each answer from 1 to 10, and the higher rating wins."""

    def __init__(self, settings: Llm, asker: Asker, *, repeat: int = 1):
        self.settings, self.asker, self.name, self.repeat = settings, asker, settings.identity, repeat

    def score_each(self, prompts: Sequence[Messages], answers: Sequence[str]) -> list[float | None]:
        """One rating an answer, all asked for together."""
        questions = [
            _question(self.settings, prompt, {"answer": answer}, self.repeat)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        found, summary = self.asker.ask(questions)
        self.summary = replace(summary, unit="scores")
        return [None if rating is None else float(rating) for rating in found]


def _question(settings: Llm, prompt: Messages, answers: Mapping[str, str], repeat: int) -> JudgeQuestion:
    about = [settings.identity, [[turn["role"], shown_text(turn)] for turn in prompt], sorted(answers.items())]
    key = _hash(about if repeat == 1 else [*about, repeat])

    def chat(time: int) -> Chat:
        # Another nonce each time: a model that decodes greedily would repeat an invalid judgment word for word.
        nonce = _hash([key, time])[:16]
        return render(settings.template, question=prompt, answers=answers, nonce=nonce)

    return JudgeQuestion(key, chat, read_label if settings.template.pairwise else read_rating)


def _all_turns(prompt: Messages, answer: str) -> str:
    earlier = [shown_text(message) for message in prompt if message["role"] == "assistant"]
    return "\n\n".join(f"Answer {number}:\n{text}" for number, text in enumerate([*earlier, answer], 1))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
