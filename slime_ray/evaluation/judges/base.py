"""What a judge is: pairs of answers go in, one verdict each comes out."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from slime_ray.evaluation.verdicts import FAILED, Comparison, Pooled, verdict_of_scores

Messages = Sequence[dict[str, Any]]
"""One conversation: mappings with `role` and `content`."""

Prompted = tuple[Messages, str]
"""An answer after the conversation that it ends."""

Progress = Callable[[int, int], None]
"""Told how much is done, of how much."""
FAILED_ANSWER = f"were not judged, since an answer is {FAILED}, a failed generation"


@dataclass(frozen=True)
class Summary:
    """What a judge's last call took. A verdict is a label, or the score of one answer.

    new, cached: verdicts that were computed or asked for, and those that the cache had. invalid: judgments that had no
    valid verdict, however often they were asked for. missing: how many more verdicts there are not, by reason: an
    answer without a score, too, counts once.
    shortened: conversations that lost their start to a limit. failed, empty: comparisons that were not judged, since
    the generation of an answer failed, and those in which an answer is empty. requests, input_tokens, output_tokens,
    cost: of this judge in the whole run so far; cost is None without prices. models: as the endpoint called what
    answered. unit: what is counted.
    """

    new: int = 0
    cached: int = 0
    invalid: int = 0
    missing: Mapping[str, int] = field(default_factory=dict)
    shortened: int = 0
    failed: int = 0
    empty: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    models: tuple[str, ...] = ()
    unit: Literal["verdicts", "scores"] = "verdicts"

    @property
    def complete(self) -> bool:
        """Whether every verdict is there, made from whole conversations and answers that say something."""
        return not (self.invalid or self.missing or self.shortened or self.failed or self.empty)

    @property
    def sentence(self) -> str:
        """What a person wants to know of it."""
        parts = [f"{self.new} {self.unit} are new, {self.cached} were kept"]
        parts += [f"{self.invalid} judgments were invalid"] if self.invalid else []
        parts += [f"{count} {self.unit} are missing: {reason}" for reason, count in self.missing.items()]
        parts += [f"{self.shortened} conversations were cut at their start"] if self.shortened else []
        parts += [f"{self.failed} comparisons {FAILED_ANSWER}"] if self.failed else []
        parts += [f"{self.empty} comparisons have an empty answer, judged as it is"] if self.empty else []
        if self.requests:
            spent = f"{self.requests} requests, {self.input_tokens + self.output_tokens} tokens"
            parts.append(f"so far {spent}" + (f", cost {self.cost:.2f}" if self.cost is not None else ""))
        return "; ".join(parts) + "."


@dataclass(frozen=True)
class Judged:
    """What a judge said of the policy's answers and the baseline's, one item a prompt.

    comparisons: None where nothing was judged. summary: what it took; None where nothing was judged.
    """

    comparisons: Sequence[Comparison | Pooled | None]
    summary: Summary | None = None


class AnswerPair(NamedTuple):
    """The policy's answer and the baseline's, each with the conversation that ends with what it answers.

    The conversations are one, unless each side's own earlier answers are in them.
    """

    prompt: Messages
    answer: str
    baseline_prompt: Messages
    baseline: str


class Judge(ABC):
    """Compares two answers to each prompt. name: stands in the results."""

    name: str

    @abstractmethod
    def compare(self, pairs: Sequence[AnswerPair]) -> Judged:
        """Judge every pair in both orders. Equal answers to the same prompt tie."""


class ScoringJudge(Judge):
    """Scores every answer by itself and compares the scores, so that the order of presentation cannot matter.

    tie_band: answers whose scores differ by at most this tie. summary: of the last scores.
    """

    tie_band: float = 0.0
    summary: Summary = Summary(unit="scores")

    @abstractmethod
    def score_each(self, answers: Sequence[Prompted]) -> list[float | None]:
        """One score an answer; no two of them are the same answer to the same prompt."""

    def scores(self, answers: Sequence[Prompted]) -> list[float | None]:
        """Score each answer, higher is better, None where it has no score. Equal answers are scored once."""
        keys = [json.dumps([list(messages), answer], sort_keys=True) for messages, answer in answers]
        answers_by_key = dict(zip(keys, answers, strict=True))
        by_key = dict(zip(answers_by_key, self.score_each(list(answers_by_key.values())), strict=True))
        return [by_key[key] for key in keys]

    def compare(self, pairs: Sequence[AnswerPair]) -> Judged:
        """Both orders follow from the same scores."""
        scores = self.scores([*(pair[:2] for pair in pairs), *(pair[2:] for pair in pairs)])
        sides = zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)
        band = self.tie_band
        comparisons = [
            Comparison(verdict_of_scores(a, b, tie_band=band), verdict_of_scores(b, a, tie_band=band), a, b)
            for a, b in sides
        ]
        return Judged(comparisons, self.summary)
