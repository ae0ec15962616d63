"""Messages as files hold them: lists, one object, or either as JSON text; and what of them is left aside."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
"""One turn, `{"role": ..., "content": ...}`, and TOOL_FIELDS where tools matter to it."""

Messages = list[Message]
"""A conversation or a part of one."""

TOOL_FIELDS = "tool_fields"
"""Key of what else a chat template is given: `tool_calls`, `tool_call_id`, `name`; in the first message `tools`.

One JSON text, for Arrow would give every call the arguments of all.
"""

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

    Text parts of one content are joined; parts that are no text are refused. What tools need is under TOOL_FIELDS.
    Raises BadRow.
    """
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, str) or not isinstance(value, Sequence):
        kinds = "text" if column == "prompt" else "text (like the other completion)"
        raise BadRow(f"{column} is neither {kinds} nor a list of messages")
    return [_message(message, column, remarks) for message in value]


def _message(message: Any, column: str, remarks: Remarks) -> Message:
    if not isinstance(message, Mapping):
        raise BadRow(f"{column} is a list of something other than messages")
    if message.get("role") is None and isinstance(message.get("from"), str) and "value" in message:
        message = _from_sharegpt(message, column)
    role, content = message.get("role"), message.get("content")
    tools = read_tool_fields(message)
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = [_part_text(part, column) for part in content]
        if len(texts) > 1 and TEXT_PARTS not in remarks.notes:
            remarks.notes.append(TEXT_PARTS)
        content = "".join(texts)
    if "content" in tools:
        content = ""
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadRow(f"a message in {column} has no role or no text content")
    if role not in ROLES:
        raise BadRow(f"a message in {column} has a role other than {', '.join(sorted(ROLES))}")
    remarks.fields |= {
        str(name)
        for name, field_value in message.items()
        if name not in ("role", "content", *tools) and not is_empty(field_value)
    }
    return with_tool_fields({"role": role, "content": content}, tools)


def read_tool_fields(message: Mapping[Any, Any]) -> dict[str, Any]:
    """What a message says of tools: the calls of an assistant, or which call a tool answers. Raises BadRow.

    With calls in the place of a content, that is None: templates may tell this from an empty one.
    """
    role = message.get("role")
    calls = _from_json(message.get("tool_calls"))
    if not is_empty(calls):
        if role != "assistant" or not isinstance(calls, list):
            raise BadRow("tool_calls is not a list, or not in a message of the assistant")
        fields: dict[str, Any] = {"tool_calls": [_tool_call(_from_json(call)) for call in calls]}
        return fields if message.get("content") is not None else {**fields, "content": None}
    names = ("tool_call_id", "name") if role == "tool" else ()
    return {name: message[name] for name in names if not is_empty(message.get(name))}


def _tool_call(call: Any) -> dict[Any, Any]:
    """A call whose arguments are an object, as templates expect it. OpenAI's are the JSON text of one."""
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise BadRow("a tool call names no function")
    function = dict(inner)
    if "arguments" in function:
        function["arguments"] = _from_json(function["arguments"])
        if not isinstance(function["arguments"], Mapping):
            raise BadRow("the arguments of a tool call are neither an object nor the JSON text of one")
    return {**call, "function": function} if "function" in call else function


def read_tools(value: Any) -> list[Any]:
    """The tools of a row, a list of JSON Schemas or the JSON text of one; none in an empty cell. Raises BadRow."""
    tools = _from_json(value)
    if is_empty(tools):
        return []
    tools = [_from_json(tool) for tool in tools] if isinstance(tools, list) else [tools]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow("tools is neither a list of objects nor the JSON text of one")
    return tools


def _from_json(value: Any) -> Any:
    """What a text spells in JSON; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def with_tool_fields(message: Message, fields: Mapping[str, Any]) -> Message:
    """The message with these fields besides those of TOOL_FIELDS that it has. Raises BadRow for what is no JSON."""
    if not fields:
        return message
    try:
        text = json.dumps({**tool_fields(message), **fields}, ensure_ascii=False)
    except (TypeError, ValueError):
        raise BadRow("a tool or a tool call holds something that JSON cannot hold") from None
    return {**message, TOOL_FIELDS: text}


def tool_fields(message: Mapping[str, str]) -> dict[str, Any]:
    """What is under TOOL_FIELDS."""
    fields: dict[str, Any] = json.loads(message.get(TOOL_FIELDS, "{}"))
    return fields


def shown_text(message: Mapping[str, str]) -> str:
    """A message's content for a reader, with what tools need where there is some."""
    return "\n".join(filter(None, (message["content"], message.get(TOOL_FIELDS))))


def _from_sharegpt(message: Mapping[Any, Any], column: str) -> dict[Any, Any]:
    """Return a message of ShareGPT's with the usual names. Its calls of tools, and their replies, are refused."""
    speaker = message["from"]
    if speaker not in SHAREGPT_ROLES:
        raise BadRow(f"a message in {column} is from something other than {', '.join(sorted(SHAREGPT_ROLES))}")
    fields = {name: value for name, value in message.items() if name not in ("from", "value")}
    return fields | {"role": SHAREGPT_ROLES[speaker], "content": message["value"]}


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
    if not isinstance(value, dict):
        return False
    return any(names <= value.keys() for names in ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"}))
