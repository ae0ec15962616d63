"""The known forms of preference data, and how one row of each becomes a prompt and two completions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]
"""One turn, `{"role": ..., "content": ...}`."""

Messages = list[Message]
"""A conversation or a part of one."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})

COLUMNS = ("prompt", "chosen", "rejected")

KNOWN_FORMS = (
    "(1) prompt, chosen, rejected as message lists; (2) prompt, chosen, rejected as text; (3) chosen and rejected as "
    "whole conversations that begin alike (UltraFeedback-binarized among them); (4) chosen and rejected as text with "
    "'\\n\\nHuman:' and '\\n\\nAssistant:' turns (HH-RLHF)"
)

PROMPT_COLUMN_DIFFERS = "the prompt column is no user turn of the conversation, which was taken as it is"


class BadRow(Exception):
    """A row that cannot be used. Its text is the reason, short and the same for every such row, so that it
    counts.
    """


@dataclass(frozen=True)
class Pair:
    """A prompt that ends with a user turn and the assistant's two ways to go on, `chosen` and `rejected`.

    `note` says what was odd about a row that was taken all the same, or is None.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    note: str | None = None


_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_TURN_ROLES = {"Human": "user", "Assistant": "assistant"}


def pair_from_row(row: Mapping[str, Any]) -> Pair:
    """Reads one row of any known form. Raises BadRow with the reason where the row cannot be used.

    The prompt is everything up to the last user turn that both conversations share.
    """
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise BadRow(f"{name} is missing")
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        pair = _from_texts(prompt, chosen, rejected)
    else:
        pair = _from_messages(prompt, _messages(chosen, "chosen"), _messages(rejected, "rejected"))
    _check_unicode(pair)
    return pair


def _from_texts(prompt: Any, chosen: str, rejected: str) -> Pair:
    if prompt is None or prompt == "":
        return _pair([], _transcript(chosen), _transcript(rejected))
    if isinstance(prompt, str) and _TURN.match(prompt) and prompt.rstrip().endswith("\n\nAssistant:"):
        return _pair([], _transcript(prompt + chosen), _transcript(prompt + rejected))
    for completion in (chosen, rejected):
        if not completion.strip():
            raise BadRow("empty completion")
    return _pair(_prompt_messages(prompt), [_assistant(chosen)], [_assistant(rejected)])


def _from_messages(prompt: Any, chosen: Messages, rejected: Messages) -> Pair:
    whole = any(message["role"] == "user" for message in (*chosen, *rejected))
    if prompt is None or prompt == "" or prompt == []:
        return _pair([], chosen, rejected)
    if not whole:
        return _pair(_prompt_messages(prompt), chosen, rejected)
    if isinstance(prompt, str):
        pair = _pair([], chosen, rejected)
        if any(prompt.strip() == message["content"].strip() for message in pair.prompt):
            return pair
        return Pair(pair.prompt, pair.chosen, pair.rejected, PROMPT_COLUMN_DIFFERS)
    start = _prompt_messages(prompt)
    if not any(message["role"] == "user" for message in start):
        return _pair(start, chosen, rejected)
    # Both conversations repeat the prompt, possibly without the system message in front of it.
    for repeated in (start, [message for message in start if message["role"] != "system"]):
        n = len(repeated)
        if chosen[:n] == repeated and rejected[:n] == repeated:
            return _pair(start, chosen[n:], rejected[n:])
    raise BadRow("the prompt and the conversations differ")


def _pair(start: Messages, chosen: Messages, rejected: Messages) -> Pair:
    """Cuts two conversations, both preceded by `start`, after the last user turn they share."""
    if chosen == rejected:
        if not any(message["role"] == "assistant" for message in chosen):
            raise BadRow("no assistant turn")
        raise BadRow("chosen equals rejected")
    chosen, rejected = start + chosen, start + rejected
    cut = 0
    for index, (ours, theirs) in enumerate(zip(chosen, rejected, strict=False)):
        if ours != theirs:
            break
        if ours["role"] == "user":
            cut = index + 1
    prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    for completion in (chosen, rejected):
        if any(message["role"] != "assistant" for message in completion):
            users = any(message["role"] == "user" for message in (*prompt, *completion))
            raise BadRow("the prompts of chosen and rejected differ" if users else "no user turn")
        if not completion:
            raise BadRow("no assistant turn")
        if not all(message["content"].strip() for message in completion):
            raise BadRow("empty completion")
    if not prompt:
        raise BadRow("no user turn")
    if not prompt[-1]["content"].strip():
        raise BadRow("empty prompt")
    return Pair(prompt, chosen, rejected)


def _transcript(text: str) -> Messages:
    """The turns of an HH-RLHF transcript, their surrounding blanks removed."""
    before, *turns = _TURN.split(text)
    if before.strip() or not turns:
        raise BadRow("no prompt, and the text has no Human and Assistant turns")
    return [
        {"role": _TURN_ROLES[name], "content": content.strip()}
        for name, content in zip(turns[::2], turns[1::2], strict=True)
    ]


def _prompt_messages(prompt: Any) -> Messages:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise BadRow("empty prompt")
        return [{"role": "user", "content": prompt}]
    return _messages(prompt, "prompt")


def _messages(value: Any, column: str) -> Messages:
    """Checks a message list and keeps role and content. Tool calls are refused: no form here can express
    them.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        kinds = "text" if column == "prompt" else "text (like the other completion)"
        raise BadRow(f"{column} is neither {kinds} nor a list of messages")
    messages = []
    for message in value:
        if not isinstance(message, Mapping):
            raise BadRow(f"{column} is a list of something other than messages")
        role, content = message.get("role"), message.get("content")
        if message.get("tool_calls"):
            raise BadRow("a message calls tools")
        if not isinstance(role, str) or not isinstance(content, str):
            raise BadRow(f"a message in {column} has no role or no text content")
        if role not in ROLES:
            raise BadRow(f"a message in {column} has a role other than {', '.join(sorted(ROLES))}")
        messages.append({"role": role, "content": content})
    return messages


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _check_unicode(pair: Pair) -> None:
    """JSON can spell half of a surrogate pair (`\\ud800`), which no tokenizer and no Arrow table can hold."""
    try:
        for part in (pair.prompt, pair.chosen, pair.rejected):
            for message in part:
                message["content"].encode()
    except UnicodeEncodeError:
        raise BadRow("text is not valid Unicode (half of a surrogate pair)") from None
