"""JSON Lines: one object a line, each with its place; and what a schema has to say against one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slime_ray.errors import InputError


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a file with its place, `file:line`; blank lines are passed over. Raises InputError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file. Give a file with one JSON object a line.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Give a file with one JSON object a line.") from None
    nothing = True
    # Of bytes, for lines of text also end at characters that stand in JSON as they are.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if line.strip():
            nothing = False
            yield f"{path}:{number}", _object(line, f"{path}:{number}")
    if nothing:
        raise InputError(f"{path} is empty. Give a file with one JSON object a line.")


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8: {error.reason} at byte {error.start + 1}. Save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON: {error}. Every line must be one whole JSON object.") from None
    if not isinstance(value, dict):
        raise InputError(f"{place}: {_short(value)} is no JSON object. Every line must be one whole JSON object.")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def complaint(error: ValidationError) -> str:
    """The first thing that a schema has against a row, as the beginning of a sentence."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{key} is missing"
    said = str(first.get("ctx", {}).get("error") or first["msg"])
    return f"{key} is {_short(first['input'])}: {said[0].lower()}{said[1:]}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
