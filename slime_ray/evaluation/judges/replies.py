"""What an endpoint sent, read as a judgment. Nothing in it is trusted to have the type that it should have."""

import json
from typing import Any, Literal

from slime_ray.evaluation.verdict_cache import Reply

PASSING = (408, 409, 425, 429)
"""Refusals that may be over when one asks again; so may all errors of the server."""
TEXT_PARTS = ("text", "output_text")
"""Types of the parts of a content that hold the judgment; the others are reasoning, refusals, images or tools."""
CUT_OFF = "cut off"
"""What a judgment lacks that took all of its tokens."""
MOST_TOKENS = 2**53


class Failure(Exception):
    """A request without a judgment. reason: a few words, equal for failures of a kind.

    kind: `passing` may work when it is tried again, `request` will not, `endpoint` no request will. wait: seconds after
    which the endpoint wants to be asked again. paid: whether it may have been paid for all the same. status: of HTTP,
    where it was a refusal.
    """

    def __init__(
        self,
        reason: str,
        kind: Literal["passing", "request", "endpoint"],
        *,
        wait: float | None = None,
        paid: bool = False,
        status: int | None = None,
    ):
        super().__init__(reason)
        self.reason, self.kind, self.wait, self.paid, self.status = reason, kind, wait, paid, status


def read_reply(body: bytes) -> Reply:
    """Read a chat completion.

    Raises:
        Failure: the body is none.
    """
    try:
        # A broken letter loses itself, not the judgment around it.
        completion = json.loads(body.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        raise Failure("an answer that is no JSON", "passing", paid=True) from None
    if isinstance(completion, dict) and completion.get("error") and not completion.get("choices"):
        raise _error(completion["error"])
    try:
        choice = completion["choices"][0]
        message = choice["message"]
        text = _text(message.get("content"))
        lack = _lack(choice.get("finish_reason"), message)
    except (AttributeError, IndexError, KeyError, TypeError):
        raise Failure("an answer that is no chat completion", "passing", paid=True) from None
    usage = completion.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        text=printable(text),
        model=printable(completion["model"])[:200] if isinstance(completion.get("model"), str) else None,
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
        lack=lack,
    )


def printable(text: str) -> str:
    """The text with `?` for each half of a character, which can neither be sent nor kept."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _text(content: Any) -> str:
    """The text of a content: a text, nothing, or a list of parts. Raises TypeError for all else."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError
    return "".join(map(_part, content))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if part["type"] not in TEXT_PARTS:
        return ""
    if not isinstance(part["text"], str):
        raise TypeError
    return str(part["text"])


def _lack(finish: Any, message: dict[str, Any]) -> str | None:
    """Why the text may hold no verdict, where the endpoint says so."""
    if finish == "length":
        return CUT_OFF
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    if message.get("refusal") or any(isinstance(part, dict) and part["type"] == "refusal" for part in parts):
        return "the judge refused to answer"
    if finish == "content_filter":
        return "a content filter took the judgment away"
    if message.get("tool_calls") or message.get("function_call"):
        return "the judge called a tool in place of judging"
    return None


def _error(error: Any) -> Failure:
    """An error that was sent with the status of a success."""
    message, code = (error.get("message"), error.get("code")) if isinstance(error, dict) else (error, None)
    lines = str(message or "").strip().splitlines() or ["it says no more"]
    lasting = isinstance(code, int) and 400 <= code < 500 and code not in PASSING
    return Failure(
        f"an error in place of a judgment: {printable(lines[0])[:200].rstrip('.')}",
        "request" if lasting else "passing",
        paid=True,
    )


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none."""
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS
    return int(value) if sound else None
