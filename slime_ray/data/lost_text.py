"""Text of messages that does not come out of a chat template: left out, cut, or written otherwise."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slime_ray.data.forms import Messages

SHOWN = 60
"""Letters of a lost text that are shown."""
CERTAIN = 16
"""So many letters are not found by chance, as a few are."""


@dataclass(frozen=True)
class LostText:
    """A turn whose text is not in what was rendered. beginning: of what is missing, one line."""

    role: str
    beginning: str


def lost_texts(messages: Messages, rendered: str) -> list[LostText]:
    """The messages whose text is not in `rendered`, each looked for in a place of its own.

    Whitespace does not count, since templates strip and break lines.
    """
    if _in_order(messages, rendered):
        return []
    lost: dict[int, LostText] = {}
    left = _squeezed(rendered)
    # Longest first, so that no short text takes the place of a long one that holds it.
    for index in sorted(range(len(messages)), key=lambda index: -len(messages[index]["content"])):
        role, content = messages[index]["role"], messages[index]["content"]
        text = _squeezed(content)
        if text in left:
            left = left.replace(text, "\n", 1)
        else:
            lost[index] = LostText(role, _missing(content, left))
    return [lost[index] for index in sorted(lost)]


def _in_order(messages: Sequence[dict[str, str]], rendered: str) -> bool:
    """Whether all texts follow each other as they are, which is the rule and quickly seen."""
    end = 0
    for message in messages:
        text = message["content"].strip()
        start = rendered.find(text, end)
        if start < 0:
            return False
        end = start + len(text)
    return True


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _missing(content: str, rendered: str) -> str:
    """The beginning of what of a text is not in the rendered one."""
    missing: Callable[[int], bool] = lambda length: _squeezed(content[:length]) not in rendered  # noqa: E731
    first = bisect_left(range(len(content) + 1), True, key=missing) - 1
    start = first if first > CERTAIN else 0
    return one_line(content[start:])


def one_line(text: str) -> str:
    """The beginning of a text, for a message."""
    return " ".join(text[: 2 * SHOWN].split())[:SHOWN]
