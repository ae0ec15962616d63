"""What a judge is: prompts and two answers each go in, one verdict each comes out."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from slime_ray.evaluation.broken import FAILED
from slime_ray.evaluation.verdicts import POINTS_OF_A, Verdict, verdict_of_scores

__all__ = ["POINTS_OF_A", "Judge", "Messages", "Progress", "ScoringJudge", "Summary", "Verdict"]

Messages = Sequence[dict[str, Any]]
"""One conversation: mappings with `role` and `content`."""

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


class Judge(ABC):
    """Compares two answers to each prompt.

    name: stands in the results. summary: of the last call.
    """

    name: str
    summary: Summary = Summary()

    @abstractmethod
    def __call__(
        self,
        prompts: Sequence[Messages],
        answers_a: Sequence[str],
        answers_b: Sequence[str],
        prompts_b: Sequence[Messages] | None = None,
    ) -> list[Verdict]:
        """One verdict a prompt. All sequences have equal lengths. Equal answers to the same prompt tie.

        prompts_b: the conversations that answers_b end, where they are others than those of answers_a, `prompts`:
        before a later turn each side has its own answers.
        """


class ScoringJudge(Judge):
    """Scores every answer by itself and compares the scores, so that the order of presentation cannot matter.

    tie_band: answers whose scores differ by at most this tie.
    """

    tie_band: float = 0.0

    def scores(self, prompts: Sequence[Messages], answers: Sequence[str]) -> list[float | None]:
        """One score an answer, higher is better, None where there is none. Equal ones are scored once."""
        pairs = zip(prompts, answers, strict=True)
        keys = [json.dumps([list(messages), answer], sort_keys=True) for messages, answer in pairs]
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        places = sorted(first.values())
        found = self.score_each([prompts[place] for place in places], [answers[place] for place in places])
        by_place = dict(zip(places, found, strict=True))
        return [by_place[first[key]] for key in keys]

    @abstractmethod
    def score_each(self, prompts: Sequence[Messages], answers: Sequence[str]) -> list[float | None]:
        """One score an answer; no two of them are the same answer to the same prompt."""

    def verdict(self, score_a: float | None, score_b: float | None) -> Verdict:
        """What two scores say; None if one of them is missing."""
        return verdict_of_scores(score_a, score_b, tie_band=self.tie_band)

    def __call__(
        self,
        prompts: Sequence[Messages],
        answers_a: Sequence[str],
        answers_b: Sequence[str],
        prompts_b: Sequence[Messages] | None = None,
    ) -> list[Verdict]:
        """One verdict a prompt."""
        count = len(prompts)
        scores = self.scores([*prompts, *(prompts_b or prompts)], [*answers_a, *answers_b])
        return [self.verdict(a, b) for a, b in zip(scores[:count], scores[count:], strict=True)]
