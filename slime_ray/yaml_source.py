"""YAML files with the line of every key, so that an error can name the place."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slime_ray.errors import InputError

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-6 as a number; YAML 1.1 wants a dot and a sign and calls it text otherwise."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class YamlSource:
    """One parsed YAML file.

    data: the top-level mapping. lines: 1-based line of each key path. path: where the file lies.
    """

    path: Path
    data: dict[str, Any]
    lines: Mapping[KeyPath, int]

    def place(self, keys: KeyPath) -> str:
        """`file:line` of the deepest key on the way to `keys` that the file really contains."""
        for length in range(len(keys), 0, -1):
            if (line := self.lines.get(tuple(keys[:length]))) is not None:
                return f"{self.path}:{line}"
        return str(self.path)


def load_yaml(path: str | Path) -> YamlSource:
    """Read one YAML mapping. Raises InputError, with file and line, for anything that is not one."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file. Check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder. Give a YAML file in it.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            raise InputError(f"{path}: the file is empty. Start from one that ships with the package.")
        lines: dict[KeyPath, int] = {}
        _collect_lines(node, (), lines, path)
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: not valid YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not valid YAML: {first}.") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}:1: expected a mapping of keys to values, found {type(data).__name__}.")
    _refuse_nan(data, (), path, lines)
    return YamlSource(path=path, data=data, lines=lines)


def _collect_lines(node: yaml.Node, at: KeyPath, lines: dict[KeyPath, int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in seen:
                raise InputError(f"{path}:{line}: the key {key!r} stands here twice. Remove one of them.")
            seen.add(key)
            lines[(*at, key)] = line
            _collect_lines(value_node, (*at, key), lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*at, index)] = item.start_mark.line + 1
            _collect_lines(item, (*at, index), lines, path)


def _refuse_nan(value: Any, at: KeyPath, path: Path, lines: Mapping[KeyPath, int]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_nan(item, (*at, str(key)), path, lines)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_nan(item, (*at, index), path, lines)
    elif isinstance(value, float) and not math.isfinite(value):
        place = f"{path}:{lines.get(at, 1)}"
        raise InputError(f"{place}: {'.'.join(map(str, at))} is {value}. Give a finite number.")


def read_value(text: str) -> Any:
    """One YAML value, such as the right-hand side of `--set`. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)
