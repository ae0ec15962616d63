"""Named fragments of `base`, joined with a slash (`gemma3-4b/paper`).

One YAML per recipe and one per model family; those of objectives' published knobs follow from `published` of each.
"""

import dataclasses
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from slime_ray.config.yaml_source import read_value
from slime_ray.errors import InputError, near
from slime_ray.objectives import OBJECTIVES, find_objective


def _published_presets() -> dict[str, str]:
    """The YAML of each objective's published knobs, by name."""
    return {
        f"{name}-{key}": f"summary: {json.dumps(recipe.summary(name))}\n"
        f"base:\n  objective: {json.dumps({'name': name, **recipe.knobs})}\n"
        for name, kind in OBJECTIVES.items()
        for key, recipe in getattr(kind, "published", {}).items()
    }


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    files = resources.files("slime_ray.presets").iterdir()
    return sorted([*_published_presets(), *(Path(str(file)).stem for file in files if str(file).endswith(".yaml"))])


def preset_text(name: str) -> str:
    """The YAML of one preset by its name. Raises InputError that names the nearest presets."""
    if (text := _published_presets().get(name)) is not None:
        return text
    if name not in preset_names():
        raise InputError(f"There is no preset {name!r}{near(name, preset_names())}.")
    return (resources.files("slime_ray.presets") / f"{name}.yaml").read_text(encoding="utf-8")


def load_preset(name: str) -> dict[str, Any]:
    """What one preset says: `summary` and `base`. Raises InputError for an unknown name."""
    return dict(read_value(preset_text(name)))


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, mapping by mapping.

    An `objective` that names another objective replaces the one below whole: its knobs are not the other's.
    """
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict) and _same_kind(below, value):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def flat(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Everything that is set, by its dotted path. A name comes first, since it replaces what it stands with."""
    values: dict[str, Any] = {}
    for key in sorted(nested, key=lambda key: key != "name"):
        value, path = nested[key], f"{above}{key}"
        values |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return values


def _same_kind(below: dict[str, Any], value: dict[str, Any]) -> bool:
    return "name" not in value or below.get("name") == value["name"]


def preset_base(name: str) -> dict[str, Any]:
    """The `base` of one preset, or of several joined by slashes, the later laid on the earlier."""
    base: dict[str, Any] = {}
    for part in name.split("/"):
        base = merge(base, load_preset(part).get("base", {}))
    return base


def describe_presets() -> dict[str, str]:
    """Every preset with its one-line summary."""
    return {name: str(load_preset(name).get("summary", "")) for name in preset_names()}


# ---------------------------------------------------------------------------------------------------------------------
# How two presets differ


def compare_presets(one: str, other: str) -> dict[str, dict[str, Any]]:
    """Every path whose value differs between two presets, single ones or joined by slashes, in order of path.

    A named objective has all its knobs: those that a preset leaves are at their defaults. Of the other settings it has
    what it says itself. Raises InputError that names the nearest preset for an unknown one.

    Returns:
        The values `one` and `other` of each path; a preset that says nothing of it has none.
    """
    presets = {"one": one, "other": other}
    sides = {side: flat(_with_defaults(preset_base(name))) for side, name in presets.items()}
    values_by_path = {
        path: {name: values[path] for name, values in sides.items() if path in values}
        for path in sorted(sides["one"] | sides["other"])
    }
    return {
        path: values for path, values in values_by_path.items() if len(values) < 2 or values["one"] != values["other"]
    }


def as_table(one: str, other: str, differences: Mapping[str, Mapping[str, Any]]) -> str:
    """The differences as aligned columns under the names of the two presets; (absent) where one has no such path."""
    rows: list[tuple[str, ...]] = [("", one, other)]
    for path, values in differences.items():
        rows.append((path, *(_cell_text(values[side]) if side in values else "(absent)" for side in ("one", "other"))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _cell_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _with_defaults(base: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the defaults of its objective's knobs."""
    objective = base.get("objective", {})
    if "name" not in objective:
        return dict(base)
    fields = dataclasses.fields(find_objective(objective["name"]))  # type: ignore[arg-type]
    # YAML has lists where dataclasses have tuples.
    defaults = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields}
    return {**base, "objective": {**defaults, **objective}}
