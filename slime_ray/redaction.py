"""Masks secrets in what is written or printed: a run's manifest, what trackers are told, errors of databases."""

import re
from collections.abc import Mapping
from typing import Any

_SECRET = re.compile(
    r"(?:^|_)(?:secret|password|passwd|passphrase|credential)s?(?:_|$)"
    r"|(?:^|_)(?:api|access|private|auth|account)_?keys?(?:_|$)"
    r"|(?<!bos)(?<!eos)(?<!pad)(?<!unk)(?:^|_)token(?:_\d+)?$"
)
"""Of a key in snake_case. `token` must end it and be one: token_ids and max_tokens are no secrets."""
_NAME = re.compile(r"-*[\w.-]+")
_ADDRESS_USER = re.compile(r"(?<=://)[^/\s@?#]+:[^/\s@?#]+(?=@)")
_ADDRESS_SECRET = re.compile(r"(?i)(?<=[?&])([\w-]*(?:password|passwd|token|secret|key)[\w-]*)=[^&\s#]+")
_MASK = "***"


def redact(value: Any) -> Any:
    """`value` with every secret masked.

    Secret is what stands under a key that names one (token, password, api_key, ... in any spelling), in a command line
    as `key=value` or after `--key`, and in an address a user with a password or a query that names one.
    """
    if isinstance(value, Mapping):
        return {key: _masked(item) if _is_secret(str(key)) else redact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        before = ["", *value][: len(value)]
        return [
            _masked(item) if isinstance(flag, str) and flag.startswith("--") and _is_secret(flag) else redact(item)
            for flag, item in zip(before, value, strict=True)
        ]
    if isinstance(value, str):
        names = value.split("=")
        for place, name in enumerate(names[:-1]):
            if _NAME.fullmatch(name) and _is_secret(name):
                return "=".join([*names[: place + 1], _MASK])
        return _ADDRESS_SECRET.sub(rf"\1={_MASK}", _ADDRESS_USER.sub(_MASK, value))
    return value


def _is_secret(key: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", key).lower().strip("_")
    # What ends in env names a variable that holds a secret.
    return _SECRET.search(words) is not None and not words.endswith("_env")


def _masked(value: Any) -> Any:
    """Whether a secret was given may be seen."""
    return value if value is None or value == "" or isinstance(value, bool) else _MASK
