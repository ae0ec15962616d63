"""Messages as files hold them: lists, one object, or either as JSON text; and what of them is left aside."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
"""One turn, `{"role": ..., "content": ...}`."""

Messages = list[Message]
"""A conversation or a part of one."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})

SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""What a message of ShareGPT's may be from, and the role that it has."""

TEXT_PARTS = "contents of several text parts, joined with nothing between them"
JSON_TEXT = "messages kept as JSON text, read as messages"

_SPELLED = re.compile(r"""\s*\[?\s*\{\s*['"](role|content|from|value)['"]\s*:""")
"""How a message list begins that was written as text, by JSON or by Python's `str`."""


class BadRow(Exception):
    """A row that cannot be used. Its text is the reason, short and the same for every such row, so that it
    counts.
    """


@dataclass
class Remarks:
    """What reading a row comes across. notes: what is odd. fields: those of messages that are left aside."""

    notes: list[str] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, blank text, or a list or object of such."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return all(map(is_empty, value))
    return value is None or (isinstance(value, float) and math.isnan(value))


def read_messages(value: Any, column: str, remarks: Remarks) -> Messages:
    """Check a message list and keep role and content of each.

    Text parts of one content are joined. Tool calls are refused, since no form here can express them, and so are parts
    that are no text. Raises BadRow.
    """
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, str) or not isinstance(value, Sequence):
        kinds = "text" if column == "prompt" else "text (like the other completion)"
        raise BadRow(f"{column} is neither {kinds} nor a list of messages")
    return [_message(each, column, remarks) for each in value]


def _message(message: Any, column: str, remarks: Remarks) -> Message:
    if not isinstance(message, Mapping):
        raise BadRow(f"{column} is a list of something other than messages")
    if message.get("role") is None and isinstance(message.get("from"), str) and "value" in message:
        message = _from_sharegpt(message, column)
    role, content = message.get("role"), message.get("content")
    if not is_empty(message.get("tool_calls")):
        raise BadRow("a message calls tools")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = _joined_text(content, column, remarks)
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadRow(f"a message in {column} has no role or no text content")
    if role not in ROLES:
        raise BadRow(f"a message in {column} has a role other than {', '.join(sorted(ROLES))}")
    remarks.fields |= {
        str(name) for name, other in message.items() if name not in ("role", "content") and not is_empty(other)
    }
    return {"role": role, "content": content}


def _from_sharegpt(message: Mapping[Any, Any], column: str) -> dict[Any, Any]:
    """A message of ShareGPT's with the usual names. Its tool calls, and what tools say, have no place here."""
    speaker = message["from"]
    if speaker not in SHAREGPT_ROLES:
        raise BadRow(f"a message in {column} is from something other than {', '.join(sorted(SHAREGPT_ROLES))}")
    others = {name: value for name, value in message.items() if name not in ("from", "value")}
    return others | {"role": SHAREGPT_ROLES[speaker], "content": message["value"]}


def _joined_text(parts: Sequence[Any], column: str, remarks: Remarks) -> str:
    """The text of a content that is a list of text parts."""
    texts = [_part_text(part, column) for part in parts]
    if len(texts) > 1 and TEXT_PARTS not in remarks.notes:
        remarks.notes.append(TEXT_PARTS)
    return "".join(texts)


def _part_text(part: Any, column: str) -> str:
    if not isinstance(part, Mapping):
        raise BadRow(f"the content of a message in {column} is a list of something other than parts")
    # Arrow gives every part the fields of all.
    fields = {name for name, value in part.items() if not is_empty(value)} - {"type", "text"}
    kind, text = part.get("type", "text"), part.get("text")
    if kind != "text" or fields or not isinstance(text, str):
        what = kind if kind != "text" and isinstance(kind, str) else ", ".join(sorted(map(str, fields))) or "no text"
        raise BadRow(f"the content of a message in {column} has a part that is no text alone ({what[:40]})")
    return text


def without_json_text(prompt: Any, chosen: Any, rejected: Any, remarks: Remarks) -> tuple[Any, Any, Any]:
    """The three with message lists in the place of JSON text.

    An answer may be such a text itself, so that one completion alone is left as it is. Raises BadRow for messages
    as text that is no JSON, as Python's `str` writes them.
    """
    sides = [_parsed(side) if isinstance(side, str) else side for side in (chosen, rejected)]
    if None in sides:
        if all(isinstance(side, str) and _SPELLED.match(side) for side in (chosen, rejected)):
            raise BadRow("completions are messages kept as text that is not JSON")
        sides = [chosen, rejected]
    start = _parsed(prompt) or prompt if isinstance(prompt, str) else prompt
    if isinstance(start, str) and _SPELLED.match(start):
        raise BadRow("the prompt is messages kept as text that is not JSON")
    if start is not prompt or sides[0] is not chosen or sides[1] is not rejected:
        remarks.notes.append(JSON_TEXT)
    return start, sides[0], sides[1]


def _parsed(text: str) -> list[Any] | None:
    """The messages that a text spells in JSON; None where it spells none."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        return None
    return messages if all(map(_is_message, messages)) else None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())
