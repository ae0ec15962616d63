"""Fields of a request to a language model that are the user's to set."""

import re
from collections.abc import Iterator
from typing import Any

OURS = {
    "max_completion_tokens": "max_tokens",
    "max_tokens": "max_tokens",
    "model": "model",
    "temperature": "temperature",
    **dict.fromkeys(("messages", "n", "stream", "stream_options"), None),
}
"""Fields of a request that are not the user's to set, with the judge's key that does so, if there is one."""
_WRAPPERS = ("extra_body", "extra_headers", "extra_query")
"""Arguments of OpenAI's client, which are no fields of a request."""
_SECRET = re.compile(r"(?i)(api|access|private|auth)[_-]?key|authorization|bearer|secret|passw|credential|^token$|^sk-")


def request_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Refuse fields of a request that are ours, and secrets."""
    for name in fields:
        if name in OURS:
            raise ValueError(
                f"holds {name}, which is " + (f"evaluation.judge.{OURS[name]}" if OURS[name] else "fixed by the judge")
            )
        if name in _WRAPPERS:
            raise ValueError(f"holds {name}, an argument of a client. Write the fields of the body themselves")
    # What was given may be the key itself, so it is not repeated.
    if any(_SECRET.search(text) for text in texts(fields)):
        raise ValueError("holds what looks like a secret. The key has api_key_env, and nothing else is sent as one")
    return fields


def texts(value: Any) -> Iterator[str]:
    """Every text in a value of lists and mappings, their keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from (name, *texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
