"""The rows of the files, one class a schema, and which keys tell them apart. Keys that nobody needs are passed over.

Arena-Hard writes `uid` since version 2; before, it wrote MT-Bench's `question_id`, with an object where MT-Bench has a
text. `prompt` without either is a plain form of our own.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from slime_ray.data.forms import TOOLS, BadRow, Message, Messages
from slime_ray.data.messages import read_tool_fields, read_tools, with_tool_fields
from slime_ray.evaluation.field_files.records import Game, Judgment, ModelAnswer, Question, Rating
from slime_ray.evaluation.verdicts import POINTS_OF_A, Verdict

T = TypeVar("T")


def _text_under(key: str) -> BeforeValidator:
    """Text as it is, or what stands under `key` of an object."""
    return BeforeValidator(lambda value: value[key] if isinstance(value, dict) and key in value else value)


def _readable(read: Callable[..., T], *given: Any) -> T:
    """What `read` returns. Its BadRow becomes a complaint of the row."""
    try:
        return read(*given)
    except BadRow as error:
        raise ValueError(str(error)) from None


Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Id = Annotated[Text, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
Words = Annotated[str, _text_under("answer")]
"""What a model wrote: Arena-Hard 2 wraps it as `{"answer": ...}`."""


class Part(BaseModel):
    """A row, or what lies inside one."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Row(Part):
    """One line of a file."""

    def record(self, place: str) -> Any:
        """What the row says, read at `place`."""
        raise NotImplementedError


class Said(Part):
    """A message of a conversation. tool_fields: as `messages.TOOL_FIELDS` has them."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Words
    tool_fields: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_tools(cls, message: Any) -> Any:
        if not isinstance(message, dict):
            return message
        fields = _readable(read_tool_fields, message)
        content = {"content": ""} if "content" in fields else {}
        return {**_readable(with_tool_fields, message, fields), **content} if fields else message

    @property
    def message(self) -> Message:
        """The message as the chat template is given it."""
        return self.model_dump(exclude_none=True)


class Metadata(Part):
    """What Arena-Hard counts in an answer, of which only the tokens matter here."""

    token_len: Count | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Questions


class ArenaHardQuestion(Row):
    """Arena-Hard 2: one user message."""

    uid: Id
    category: str
    prompt: Text

    def record(self, place: str) -> Question:
        return Question(self.uid, self.category, (self.prompt,), place=place)


class TurnsQuestion(Row):
    """MT-Bench and the older Arena-Hard: one turn or more."""

    question_id: Id
    category: str
    turns: Annotated[list[Annotated[Text, _text_under("content")]], Field(min_length=1)]
    reference: list[str] | None = None

    def record(self, place: str) -> Question:
        turns, reference = tuple(self.turns), tuple(self.reference or ())
        return Question(self.question_id, self.category, turns, reference=reference, place=place)


def _ends_with_the_user(messages: list[Said]) -> list[Said]:
    if not messages or messages[-1].role not in ("user", "tool") or not messages[-1].content:
        raise ValueError("a prompt ends with a message of the user, or the answer of a tool, that says something")
    return messages


class Plain(Row):
    """Our own form: a prompt as text, or as messages that end with the user's."""

    prompt: Annotated[
        list[Said],
        BeforeValidator(lambda value: [{"role": "user", "content": value}] if isinstance(value, str) else value),
        AfterValidator(_ends_with_the_user),
    ]
    id: Id | None = None
    tools: Annotated[list[Any], BeforeValidator(lambda value: _readable(read_tools, value))] = []

    @property
    def messages(self) -> Messages:
        """The prompt, its tools in the first message."""
        first, *others = [each.message for each in self.prompt]
        return [with_tool_fields(first, {TOOLS: self.tools} if self.tools else {}), *others]

    @property
    def own_id(self) -> str:
        """The given id, or 16 hexadecimal digits of SHA-256 over the prompt's roles, contents and tools."""
        said = json.dumps([list(message.values()) for message in self.messages])
        return self.id or hashlib.sha256(said.encode()).hexdigest()[:16]


class PlainQuestion(Plain):
    """Our own form of a question; what else is in the row, such as an answer, does not matter."""

    category: str | None = None

    def record(self, place: str) -> Question:
        *context, first = self.messages
        return Question(self.own_id, self.category, (first["content"],), tuple(context), first=first, place=place)


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def _ends_with_the_model(messages: list[Said]) -> list[Said]:
    if not messages or messages[-1].role != "assistant":
        raise ValueError("the last message must be the model's answer")
    return messages


class ArenaHardAnswer(Row):
    """Arena-Hard 2: a conversation that ends with the answer."""

    uid: Id
    model: Text
    messages: Annotated[list[Said], AfterValidator(_ends_with_the_model)]
    metadata: Metadata | None = None

    def record(self, place: str) -> ModelAnswer:
        *before, last = self.messages
        prompt = next((message.content for message in reversed(before) if message.role == "user"), None)
        tokens = self.metadata.token_len if self.metadata else None
        return ModelAnswer(self.uid, self.model, (last.content,), tokens, prompt, place)


class AnswerTurn(Part):
    """One turn's answer; older files of Arena-Hard count its tokens here."""

    content: str
    token_len: Count | None = None


class Choice(Part):
    """One sample of all turns."""

    turns: Annotated[
        list[Annotated[AnswerTurn, BeforeValidator(lambda turn: {"content": turn} if isinstance(turn, str) else turn)]],
        Field(min_length=1),
    ]


class TurnsAnswer(Row):
    """MT-Bench and the older Arena-Hard: the first of the choices counts."""

    question_id: Id
    model_id: Text
    choices: Annotated[list[Choice], Field(min_length=1)]
    conv_metadata: Metadata | None = None

    def record(self, place: str) -> ModelAnswer:
        turns = self.choices[0].turns
        tokens = self.conv_metadata.token_len if self.conv_metadata else None
        counts = [turn.token_len for turn in turns if turn.token_len is not None]
        if tokens is None and len(counts) == len(turns):
            tokens = sum(counts)
        return ModelAnswer(self.question_id, self.model_id, tuple(turn.content for turn in turns), tokens, place=place)


class PlainAnswer(Plain):
    """Our own form of an answer, with its prompt. model: by default the name of the file."""

    answer: str
    model: Text | None = None

    def record(self, place: str) -> ModelAnswer:
        model = self.model or PurePath(place.rpartition(":")[0]).stem
        return ModelAnswer(self.own_id, model, (self.answer,), prompt=self.prompt[-1].content, place=place)


# ---------------------------------------------------------------------------------------------------------------------
# Judgments

_SAME_LABELS: dict[str, Verdict] = {"B=A": "A=B", "A<B": "B>A", "A<<B": "B>>A", "B<A": "A>B", "B<<A": "A>>B"}
"""Spellings that Arena-Hard's script counts, too."""


class GameRow(Part):
    """One verdict. Text that is no label is an invalid verdict; Arena-Hard 2 wraps the judge's words."""

    score: str | None
    judgment: Words | None = None

    def game(self) -> Game:
        """The game that the row tells of."""
        label = self.score or ""
        verdict = label if label in POINTS_OF_A else _SAME_LABELS.get(label)
        return Game(cast(Verdict, verdict), self.judgment)


def _two(games: list[GameRow | None]) -> list[GameRow | None]:
    if len(games) not in (1, 2):
        raise ValueError("there must be two games, one for each order of the answers, or the first alone")
    return [*games, None][:2]


Games = Annotated[list[GameRow | None], AfterValidator(_two)]
"""First the baseline is A and the model B, then the model is A and the baseline B. A game that failed is null, and
so is the second where only one was played."""


def _played(games: Games) -> tuple[Game, Game]:
    first, second = (game.game() if game else Game(None) for game in games)
    return first, second


class ArenaHardJudgment(Row):
    """Arena-Hard 2."""

    uid: Id
    category: str
    judge: Text
    model: Text
    baseline: Text
    games: Games

    def record(self, place: str) -> Judgment:
        about = (self.uid, self.model, self.judge, self.baseline, self.category)
        return Judgment(*about, *_played(self.games), place=place)


class OlderJudgment(Row):
    """Arena-Hard before version 2, which names neither category nor baseline."""

    question_id: Id
    model: Text
    judge: Text
    games: Games

    def record(self, place: str) -> Judgment:
        return Judgment(self.question_id, self.model, self.judge, None, None, *_played(self.games), place=place)


class RatingRow(Row):
    """MT-Bench's single-answer grading. judge: the judge's name, or that and the name of its prompt."""

    question_id: Id
    model: Text
    judge: Annotated[Text, BeforeValidator(lambda value: value[0] if isinstance(value, list) and value else value)]
    judgment: str
    score: float
    turn: Annotated[int, Field(ge=1)]

    def record(self, place: str) -> Rating:
        score = self.score if 1 <= self.score <= 10 else None
        return Rating(self.question_id, self.model, self.judge, self.turn, score, self.judgment, place)
