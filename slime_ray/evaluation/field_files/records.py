"""What the files say, whatever their schema. Ids are text in all of them, MT-Bench's numbers too.

place: where a record was read, as `file:line`; it names the row in errors and is no part of what is compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from slime_ray.data.forms import Message, Messages
from slime_ray.evaluation.verdicts import Verdict


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    category: None where the file has none. turns: the user's messages, one after each answer. context: messages before
    the first turn, such as a system prompt. reference: reference answers, one a turn, where the file has them.
    first: the message of the first turn, where it is more than the user's text.
    """

    id: str
    category: str | None
    turns: tuple[str, ...]
    context: tuple[Message, ...] = ()
    reference: tuple[str, ...] = ()
    first: Message | None = None
    place: str = field(default="", compare=False)

    def messages(self, answers: Sequence[str] = ()) -> Messages:
        """The conversation up to the turn that follows `answers`, which are the model's own to the turns before."""
        conversation = [dict(message) for message in self.context]
        asked = [{"role": "user", "content": turn} for turn in self.turns]
        if self.first is not None:
            asked[0] = self.first
        for turn, answer in zip(asked, answers, strict=False):
            conversation += [turn, {"role": "assistant", "content": answer}]
        return [*conversation, asked[len(answers)]]


@dataclass(frozen=True)
class ModelAnswer:
    """One model's answer to a question: one text a turn.

    tokens: as the file counts them, None where it does not. prompt: the user's message that the last turn answers,
    None where the file does not repeat it.
    """

    question_id: str
    model: str
    turns: tuple[str, ...]
    tokens: int | None = None
    prompt: str | None = None
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Game:
    """One verdict in one presentation order. text: what the judge wrote, None where the file does not keep it."""

    verdict: Verdict
    text: str | None = None


@dataclass(frozen=True)
class Judgment:
    """Arena-Hard's two games about one answer.

    baseline_first: the baseline's answer is shown as A, the model's as B; model_first: the other way round.
    baseline, category: None in older files, which do not name them.
    """

    question_id: str
    model: str
    judge: str
    baseline: str | None
    category: str | None
    baseline_first: Game
    model_first: Game
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Rating:
    """MT-Bench's score of one turn of an answer, 1 to 10. score: None where the judge gave none (-1 in the file)."""

    question_id: str
    model: str
    judge: str
    turn: int
    score: float | None
    text: str = ""
    place: str = field(default="", compare=False)
