"""The known forms of preference data, and how one row of each becomes a prompt and two completions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from slime_ray.data.messages import (
    TOOL_FIELDS,
    BadRow,
    Message,
    Messages,
    Remarks,
    read_messages,
    read_tools,
    with_tool_fields,
    without_json_text,
)

__all__ = ["COLUMNS", "KNOWN_FORMS", "TOOLS", "BadRow", "Message", "Messages", "Pair", "pair_from_row"]

COLUMNS = ("prompt", "chosen", "rejected")
TOOLS = "tools"
"""A further column: the tools that the assistant may call. They are kept in the first message of the prompt."""

KNOWN_FORMS = (
    "(1) prompt, chosen, rejected as message lists; (2) prompt, chosen, rejected as text; (3) chosen and rejected as "
    "whole conversations that begin alike (UltraFeedback-binarized among them); (4) chosen and rejected as text with "
    "'\\n\\nHuman:' and '\\n\\nAssistant:' turns (HH-RLHF). Messages may have tool_calls, and rows a column tools"
)

PROMPT_COLUMN_DIFFERS = "the prompt column is no user turn of the conversation, which was taken as it is"
PROMPT_REPEATED = "both completions begin with the whole prompt, which is kept in them"
NO_TEXT = "a prompt or completion is the word that an empty cell is written as (nan, None, null), taken as text"

_EMPTY_CELLS = frozenset({"nan", "none", "null", "<na>", "nat", "n/a"})
_REPEATED_LETTERS = 20
"""A shorter prompt may well begin an answer by chance."""


@dataclass(frozen=True)
class Pair:
    """A prompt, which ends with a turn of the user or a tool, and the assistant's two ways to go on.

    `notes` say what was odd about a row that was taken all the same. `fields` are those of its messages, besides
    role and content, that hold something.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    notes: tuple[str, ...] = ()
    fields: frozenset[str] = frozenset()


_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_TURN_ROLES = {"Human": "user", "Assistant": "assistant"}


def pair_from_row(row: Mapping[str, Any]) -> Pair:
    """Reads one row of any known form. Raises BadRow with the reason where the row cannot be used.

    The prompt is everything up to the last turn of the user or a tool that both conversations share.
    """
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise BadRow(f"{name} is missing")
    remarks = Remarks()
    prompt, chosen, rejected = without_json_text(row.get("prompt"), row["chosen"], row["rejected"], remarks)
    if isinstance(chosen, str) and isinstance(rejected, str):
        pair = _from_texts(prompt, chosen, rejected, remarks)
    else:
        sides = read_messages(chosen, "chosen", remarks), read_messages(rejected, "rejected", remarks)
        pair = _from_messages(prompt, *sides, remarks)
    if tools := read_tools(row.get(TOOLS)):
        first = with_tool_fields(pair.prompt[0], {TOOLS: tools})
        pair = replace(pair, prompt=[first, *pair.prompt[1:]])
    _check_unicode(pair)
    notes = (*remarks.notes, *pair.notes, *_oddities(pair))
    return replace(pair, notes=notes, fields=frozenset(remarks.fields))


def _oddities(pair: Pair) -> list[str]:
    """What of a pair is probably not what was meant."""
    oddities = []
    question = pair.prompt[-1]["content"].strip()
    answers = [side[0]["content"].strip() for side in (pair.chosen, pair.rejected)]
    if len(question) >= _REPEATED_LETTERS and all(answer.startswith(question) for answer in answers):
        oddities.append(PROMPT_REPEATED)
    if any(text.lower() in _EMPTY_CELLS for text in (question, *answers)):
        oddities.append(NO_TEXT)
    return oddities


def _from_texts(prompt: Any, chosen: str, rejected: str, remarks: Remarks) -> Pair:
    if prompt is None or prompt == "":
        return _pair([], _transcript(chosen), _transcript(rejected))
    if isinstance(prompt, str) and _TURN.match(prompt) and prompt.rstrip().endswith("\n\nAssistant:"):
        return _pair([], _transcript(prompt + chosen), _transcript(prompt + rejected))
    for completion in (chosen, rejected):
        if not completion.strip():
            raise BadRow("empty completion")
    return _pair(_prompt_messages(prompt, remarks), [_assistant(chosen)], [_assistant(rejected)])


def _from_messages(prompt: Any, chosen: Messages, rejected: Messages, remarks: Remarks) -> Pair:
    whole = any(message["role"] == "user" for message in (*chosen, *rejected))
    if prompt is None or prompt == "" or prompt == []:
        return _pair([], chosen, rejected)
    if not whole:
        return _pair(_prompt_messages(prompt, remarks), chosen, rejected)
    if isinstance(prompt, str):
        pair = _pair([], chosen, rejected)
        if any(prompt.strip() == message["content"].strip() for message in pair.prompt):
            return pair
        return replace(pair, notes=(PROMPT_COLUMN_DIFFERS,))
    start = _prompt_messages(prompt, remarks)
    if not any(message["role"] == "user" for message in start):
        return _pair(start, chosen, rejected)
    # Both conversations repeat the prompt, possibly without the system message in front of it.
    for repeated in (start, [message for message in start if message["role"] != "system"]):
        n = len(repeated)
        if chosen[:n] == repeated and rejected[:n] == repeated:
            return _pair(start, chosen[n:], rejected[n:])
    raise BadRow("the prompt and the conversations differ")


def _pair(start: Messages, chosen: Messages, rejected: Messages) -> Pair:
    """Put `start` before two conversations, and cut them after the last turn of a user or a tool that they share."""
    if chosen == rejected:
        if not any(message["role"] == "assistant" for message in chosen):
            raise BadRow("no assistant turn")
        raise BadRow("chosen equals rejected")
    chosen, rejected = start + chosen, start + rejected
    cut = 0
    for index, (chosen_message, rejected_message) in enumerate(zip(chosen, rejected, strict=False)):
        if chosen_message != rejected_message:
            break
        if chosen_message["role"] in ("user", "tool"):
            cut = index + 1
    prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    for completion in (chosen, rejected):
        if any(message["role"] == "tool" for message in completion):
            raise BadRow("a completion goes on after the answer of a tool")
        if any(message["role"] != "assistant" for message in completion):
            users = any(message["role"] == "user" for message in (*prompt, *completion))
            raise BadRow("the prompts of chosen and rejected differ" if users else "no user turn")
        if not completion:
            raise BadRow("no assistant turn")
        if not all(message["content"].strip() or TOOL_FIELDS in message for message in completion):
            raise BadRow("empty completion")
    if not any(message["role"] == "user" for message in prompt):
        raise BadRow("no user turn")
    if prompt[-1]["role"] == "user" and not prompt[-1]["content"].strip():
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


def _prompt_messages(prompt: Any, remarks: Remarks) -> Messages:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise BadRow("empty prompt")
        return [{"role": "user", "content": prompt}]
    return read_messages(prompt, "prompt", remarks)


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _check_unicode(pair: Pair) -> None:
    """JSON can spell half of a surrogate pair (`\\ud800`), which no tokenizer and no Arrow table can hold."""
    try:
        for part in (pair.prompt, pair.chosen, pair.rejected):
            for message in part:
                "".join(message.values()).encode()
    except UnicodeEncodeError:
        raise BadRow("text is not valid Unicode (half of a surrogate pair)") from None
