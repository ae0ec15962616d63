"""Questions and answers in the forms of Arena-Hard and MT-Bench and in our own, one class a form of row.

Arena-Hard writes `uid` since version 2; before, it wrote MT-Bench's `question_id`, with an object where MT-Bench has a
text. `prompt` without either is our own plain form. Keys that nobody needs are passed over. Ids are text, MT-Bench's
numbers too.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from slime_ray.data.forms import TOOLS, BadRow, Message, Messages
from slime_ray.data.messages import read_tool_fields, read_tools, with_tool_fields

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    category: None where the file has none. turns: the user's messages, one after each answer. opening: all messages up
    to the first turn's, where that is not the first turn as text alone. place: where it was read, as `file:line`.
    """

    id: str
    category: str | None
    turns: tuple[str, ...]
    opening: tuple[Message, ...] = ()
    place: str = field(default="", compare=False)

    def messages(self, answers: Sequence[str] = ()) -> Messages:
        """The conversation up to the turn that follows `answers`, which are the model's own to the turns before."""
        conversation = list(self.opening or [{"role": "user", "content": self.turns[0]}])
        for answer, turn in zip(answers, self.turns[1:], strict=False):
            conversation += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
        return conversation


@dataclass(frozen=True)
class ModelAnswer:
    """One model's answer to a question: one text a turn.

    prompt: the user's message that the last turn answers, None where the file does not repeat it. place: as above.
    """

    question_id: str
    model: str
    turns: tuple[str, ...]
    prompt: str | None = None
    place: str = field(default="", compare=False)


def _text_under(key: str) -> BeforeValidator:
    """Text as it is, or what stands under `key` of an object."""
    return BeforeValidator(lambda value: value[key] if isinstance(value, dict) and key in value else value)


def _readable(read: Callable[..., T], *args: Any) -> T:
    """Return what `read` returns. Its BadRow becomes a complaint of the row."""
    try:
        return read(*args)
    except BadRow as error:
        raise ValueError(str(error)) from None


Text = Annotated[str, Field(min_length=1)]
Id = Annotated[Text, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


class RowPart(BaseModel):
    """A row, or what lies inside one."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Row(RowPart):
    """One line of a file."""

    def record(self, place: str) -> Any:
        """What the row says, read at `place`."""
        raise NotImplementedError


class Said(RowPart):
    """A message; Arena-Hard 2 wraps a model's as `{"answer": ...}`. tool_fields: as `messages.TOOL_FIELDS` has them."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, _text_under("answer")]
    tool_fields: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_tools(cls, message: Any) -> Any:
        if not isinstance(message, dict):
            return message
        fields = _readable(read_tool_fields, message)
        content = {"content": ""} if "content" in fields else {}
        return {**_readable(with_tool_fields, message, fields), **content} if fields else message


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

    def record(self, place: str) -> Question:
        return Question(self.question_id, self.category, tuple(self.turns), place=place)


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
        """Return the prompt, its tools in the first message."""
        first, *rest = [message.model_dump(exclude_none=True) for message in self.prompt]
        return [with_tool_fields(first, {TOOLS: self.tools} if self.tools else {}), *rest]

    @property
    def stable_id(self) -> str:
        """The id in the file, or 16 hexadecimal digits of SHA-256 over the prompt's roles, contents and tools."""
        content = json.dumps([list(message.values()) for message in self.messages])
        return self.id or hashlib.sha256(content.encode()).hexdigest()[:16]


class PlainQuestion(Plain):
    """Our own form of a question; what else is in the row, such as an answer, does not matter."""

    category: str | None = None

    def record(self, place: str) -> Question:
        opening = tuple(self.messages)
        return Question(self.stable_id, self.category, (opening[-1]["content"],), opening, place)


def _ends_with_the_model(messages: list[Said]) -> list[Said]:
    if not messages or messages[-1].role != "assistant":
        raise ValueError("the last message must be the model's answer")
    return messages


class ArenaHardAnswer(Row):
    """Arena-Hard 2: a conversation that ends with the answer."""

    uid: Id
    model: Text
    messages: Annotated[list[Said], AfterValidator(_ends_with_the_model)]

    def record(self, place: str) -> ModelAnswer:
        *before, last = self.messages
        prompt = next((message.content for message in reversed(before) if message.role == "user"), None)
        return ModelAnswer(self.uid, self.model, (last.content,), prompt, place)


class Choice(RowPart):
    """One sample of all turns; the older Arena-Hard has objects of them."""

    turns: Annotated[list[Annotated[str, _text_under("content")]], Field(min_length=1)]


class TurnsAnswer(Row):
    """MT-Bench and the older Arena-Hard: the first of the choices counts."""

    question_id: Id
    model_id: Text
    choices: Annotated[list[Choice], Field(min_length=1)]

    def record(self, place: str) -> ModelAnswer:
        return ModelAnswer(self.question_id, self.model_id, tuple(self.choices[0].turns), place=place)


class PlainAnswer(Plain):
    """Our own form of an answer, with its prompt. model: by default the name of the file."""

    answer: str
    model: Text | None = None

    def record(self, place: str) -> ModelAnswer:
        model = self.model or PurePath(place.rpartition(":")[0]).stem
        return ModelAnswer(self.stable_id, model, (self.answer,), prompt=self.prompt[-1].content, place=place)


Forms = dict[str, type[Row]]
"""Forms of rows by the key that tells each from those after it."""
QUESTIONS: Forms = {"uid": ArenaHardQuestion, "question_id": TurnsQuestion, "prompt": PlainQuestion}
ANSWERS: Forms = {"uid": ArenaHardAnswer, "question_id": TurnsAnswer, "prompt": PlainAnswer}
