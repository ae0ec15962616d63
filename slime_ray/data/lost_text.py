"""Text of messages that does not come out of a chat template: left out, cut, or written otherwise."""

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slime_ray.data.forms import Messages
from slime_ray.data.messages import tool_fields

SHOWN = 60
"""Letters of a lost text that are shown."""
CERTAIN = 16
"""So many letters are not found by chance, as a few are."""

TURN, TOOL_CALLS, TOOLS = "turns", "tool calls", "tools"


@dataclass(frozen=True)
class LostText:
    """A text of a message, by role and part. Of what was not rendered it is the beginning, one line."""

    role: str
    part: str
    text: str


def lost_texts(messages: Messages, rendered: str) -> list[LostText]:
    """Find the beginnings of messages' texts that are not in `rendered`, each in a place of its own.

    Of tools these are names and descriptions, of their calls names, arguments and values. Whitespace does not count,
    since templates strip and break lines.
    """
    texts = [text for message in messages for text in _texts(message)]
    if _in_order(texts, rendered):
        return []
    lost: dict[int, LostText] = {}
    remaining_text = _squeezed(rendered)
    # Longest first, so that no short text takes the place of a long one that holds it.
    for index in sorted(range(len(texts)), key=lambda index: -len(texts[index].text)):
        text = texts[index]
        place = next((spelling for spelling in map(_squeezed, _spellings(text)) if spelling in remaining_text), None)
        if place is not None:
            remaining_text = remaining_text.replace(place, "\n", 1)
        else:
            lost[index] = replace(text, text=_missing(text.text, remaining_text))
    return [lost[index] for index in sorted(lost)]


def _texts(message: dict[str, str]) -> Iterator[LostText]:
    role = message["role"]
    yield LostText(role, TURN, message["content"])
    fields = tool_fields(message)
    for call in fields.get("tool_calls", ()):
        function = call.get("function", call)
        for text in (function["name"], *_leaves(function.get("arguments"))):
            yield LostText(role, TOOL_CALLS, text)
    for text in _described(fields.get("tools")):
        yield LostText(role, TOOLS, text)


def _leaves(value: Any) -> Iterator[str]:
    """Names and values of arguments."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None:
        yield value if isinstance(value, str) else json.dumps(value)


def _described(schema: Any) -> Iterator[str]:
    """What a schema of tools calls things, and says of them. Templates may write types in their own way."""
    if isinstance(schema, list):
        for inner in schema:
            yield from _described(inner)
    elif isinstance(schema, dict):
        for key, inner in schema.items():
            if key in ("name", "description") and isinstance(inner, str):
                yield inner
            elif key == "properties" and isinstance(inner, dict):
                yield from inner
                yield from _described(list(inner.values()))
            else:
                yield from _described(inner)


def _spellings(text: LostText) -> Iterator[str]:
    """The text as it may stand in what was rendered: tools and calls within JSON or within Python's literals."""
    yield text.text
    if text.part != TURN:
        for ascii_only in (False, True):
            escaped = json.dumps(text.text, ensure_ascii=ascii_only)[1:-1]
            yield escaped
            yield json.dumps(escaped, ensure_ascii=ascii_only)[1:-1]
        yield repr(text.text)[1:-1]
        yield text.text.capitalize()  # true and false are True and False in Python


def _in_order(texts: Sequence[LostText], rendered: str) -> bool:
    """Check whether all texts follow each other as they are, which is fast and the rule."""
    end = 0
    for text in texts:
        content = text.text.strip()
        start = rendered.find(content, end)
        if start < 0:
            return False
        end = start + len(content)
    return True


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _missing(content: str, rendered: str) -> str:
    """The beginning of what of a text is not in the rendered one."""
    lengths = range(len(content) + 1)
    first = bisect_left(lengths, True, key=lambda length: _squeezed(content[:length]) not in rendered) - 1
    return one_line(content[first if first > CERTAIN else 0 :])


def one_line(text: str) -> str:
    """The beginning of a text, for a message."""
    return " ".join(text[: 2 * SHOWN].split())[:SHOWN]
