"""Named fragments of `base`: one YAML per recipe and one per model family, joined with a slash (`gemma3-4b/paper`)."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

from slime_ray.config.yaml_source import YamlSource, load_yaml
from slime_ray.errors import InputError


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(
        Path(str(entry)).stem
        for entry in resources.files("slime_ray.presets").iterdir()
        if str(entry).endswith(".yaml")
    )


def load_preset(name: str) -> YamlSource:
    """One preset file by its name. Raises InputError that names the nearest presets."""
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"There is no preset {name!r}.{hint} There are: {', '.join(preset_names())}.")
    with resources.as_file(resources.files("slime_ray.presets") / f"{name}.yaml") as path:
        return load_yaml(path)


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


def _same_kind(below: dict[str, Any], value: dict[str, Any]) -> bool:
    return "name" not in value or below.get("name") == value["name"]


def preset_base(name: str) -> dict[str, Any]:
    """The `base` of one preset, or of several joined by slashes, the later laid on the earlier."""
    base: dict[str, Any] = {}
    for part in name.split("/"):
        base = merge(base, load_preset(part).data.get("base", {}))
    return base


def describe_presets() -> dict[str, str]:
    """Every preset with its one-line summary."""
    return {name: str(load_preset(name).data.get("summary", "")) for name in preset_names()}
