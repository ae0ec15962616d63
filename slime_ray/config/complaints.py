"""Complaints of pydantic as sentences: what is wrong where in a file, and the way out."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from slime_ray.config.ablation import DESIGNS
from slime_ray.config.judge import JUDGE_SETTINGS
from slime_ray.config.settings import OBJECTIVE_SETTINGS
from slime_ray.config.space import Dimension
from slime_ray.config.yaml_source import KeyPath
from slime_ray.errors import near


def explain(error: ValidationError, model: Any) -> tuple[KeyPath, str]:
    """Where the first complaint of a validation lies and what it says, as `path: what is wrong. The way out`."""
    # An unknown key is what most often makes the other complaints: a misspelt key leaves the right one missing.
    complaints = sorted(error.errors(), key=lambda item: item["type"] not in ("extra_forbidden", "union_tag_invalid"))
    complaint = complaints[0]
    keys = _without_tags(key for key in complaint["loc"] if key not in _NOISE)
    path = ".".join(map(str, keys)) or "the file"
    given = complaint.get("input")
    kind, context = complaint["type"], complaint.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = _keys_beside(model, complaint["loc"])
        return keys, f"{path}: unknown key{near(str(keys[-1]), allowed)}"
    if kind == "missing":
        return keys[:-1], f"{path} is missing. Add it, or a preset that has it"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag, options = context["discriminator"].strip("'"), _TAGGED[str(keys[-1])]
        if kind == "union_tag_not_found":
            return keys, f"{path}.{tag} is missing. Give one of: {', '.join(options)}"
        return (*keys, tag), f"{path}.{tag} is {context['tag']!r}{near(context['tag'], options)}"
    if kind == "literal_error" and isinstance(given, str):
        return keys, f"{path} is {given!r}{near(given, re.findall(QUOTED, context['expected']))}"
    if kind == "value_error":
        message = str(context["error"])
        field = message.split(" ", 1)[0].rstrip(":")
        if keys and field.isidentifier() and keys[-1] != field and keys[-1] == "objective":
            return (*keys, field), f"{path}.{message}"
        return keys, f"{path}: {message}" if keys else message
    said = f"{complaint['msg'][0].lower()}{complaint['msg'][1:]}"
    if kind in ("string_type", "literal_error") and isinstance(given, bool):
        return keys, f"{path} is {given}: {said}. YAML reads yes, no, on and off as true and false: put it in quotes"
    if kind == "string_too_long":
        limit = context["max_length"]
        return keys, f"{path:.20}: {str(given)[:40]}... has {len(str(given))} characters, and {limit} are the limit"
    if kind == "string_pattern_mismatch":
        way_out = "Use letters, digits, dots, dashes and underscores, a letter or digit first"
        return keys, f"{path:.60} is {given!r:.200}. {way_out}"
    return keys, f"{path} is {given!r:.200}: {said}"


QUOTED = r"'([^']*)'"
_NOISE = ("int", "float", "str", "bool", "[key]", "literal['auto']", "constrained-int")


_TAGGED: Mapping[str, Mapping[str, Any]] = {
    "objective": OBJECTIVE_SETTINGS,
    "judge": JUDGE_SETTINGS,
    "ablate": DESIGNS,
}
"""Keys whose value is one of several models, by a word in it, which pydantic puts behind the key."""


def _without_tags(keys: Iterable[str | int]) -> KeyPath:
    kept: list[str | int] = []
    last: str | int = ""
    for key in keys:
        if key not in _TAGGED.get(str(last), ()):
            kept.append(key)
        last = key
    return tuple(kept)


def _keys_beside(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """The keys that are allowed where the last key of `loc` stands."""
    for before, key in zip(("", *loc), loc[:-1], strict=False):
        if key in _TAGGED.get(str(before), ()):
            model = _TAGGED[str(before)][str(key)]
            continue
        field = getattr(model, "model_fields", {}).get(key)
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((item for item in candidates if hasattr(item, "model_fields")), Dimension)
    return list(getattr(model, "model_fields", {}))
