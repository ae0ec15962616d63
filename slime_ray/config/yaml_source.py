"""YAML files with the line of every key, so that an error can name the place.

Values are what they look like: YAML 1.1, which PyYAML reads, takes 1:30 for 90, 010 for 8 and 2026-01-01 for a date.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml

from slime_ray.errors import InputError

KeyPath = tuple[str | int, ...]
MOST_BYTES = 1 << 20
MOST_VALUES = 100_000
"""With every alias written out; ten lines of nested aliases hold more than any memory."""
DEEPEST = 60
LARGEST = 2**63 - 1
_TAG = "tag:yaml.org,2002:"
_NUMBERS = {
    "int": r"^[-+]?(?:0|[1-9][\d_]*|0x[\dA-Fa-f]+)$",
    # YAML 1.1 calls 1e-6 text, since it wants a dot and a sign.
    "float": r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.inf|\.nan"
    r"|\.Inf|\.NaN|\.INF|\.NAN)$",
}


class _Loader(yaml.SafeLoader):
    """SafeLoader whose plain scalars are numbers, flags and nulls where they look like them, and text otherwise."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in ("bool", "null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), list("-+0123456789."))


@dataclass(frozen=True)
class YamlSource:
    """One parsed YAML file.

    data: the top-level mapping. lines: 1-based line of each key path. path: where the file lies.
    """

    path: Path
    data: dict[str, Any]
    lines: Mapping[KeyPath, int]

    def error(self, *complaints: tuple[KeyPath, str]) -> "Complaint":
        """The error of what is wrong at some keys: each is placed at the deepest one that the file really contains."""
        return Complaint((self.line(keys), f"{self.place(keys)}: {sentence}.") for keys, sentence in complaints)

    def place(self, keys: KeyPath) -> str:
        """`file:line` of the deepest key on the way to `keys` that the file really contains."""
        return f"{self.path}:{line}" if (line := self.line(keys)) else str(self.path)

    def line(self, keys: KeyPath) -> int:
        """The line of that key, from 1; 0 where there is none."""
        lines = (self.lines.get(tuple(keys[:length])) for length in range(len(keys), 0, -1))
        return next((line for line in lines if line is not None), 0)


class Complaint(InputError):
    """What is wrong in a file: sentences with their lines, of which 0 is that of the whole file."""

    def __init__(self, sentences: Iterable[tuple[int, str]]):
        self.sentences = sorted(dict.fromkeys(sentences), key=lambda placed: placed[0])
        super().__init__("\n".join(sentence for _, sentence in self.sentences))


def load_yaml(path: str | Path) -> YamlSource:
    """Read one YAML mapping. Raises InputError, with file and line, for anything that is not one."""
    path = Path(path)
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file. Check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder. Give a YAML file in it.") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if len(content) > MOST_BYTES:
        raise InputError(f"{path}: {len(content):,} bytes are more than a file of settings may have, {MOST_BYTES:,}.")
    reader = _Reader(text)
    try:
        node = reader.compose()
        if node is None:
            raise InputError(f"{path}: the file is empty. Start from one that ships with the package.")
        data = reader.value(node, ())
    except _YamlError as error:
        raise InputError(f"{path}:{error.line}: {error}.") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}:1: expected a mapping of keys to values, found {type(data).__name__}.")
    return YamlSource(path=path, data=data, lines=reader.lines)


def from_mapping(data: Mapping[str, Any]) -> YamlSource:
    """The same from Python: errors name the experiment, since there are no lines. Raises InputError for other values.

    Tuples are read as lists, paths as text, and any library's numbers as Python's.
    """

    def plain(value: Any, at: KeyPath) -> Any:
        if len(at) > DEEPEST:
            raise InputError(f"experiment: {'.'.join(map(str, at[:3]))}... is nested more than {DEEPEST} deep.")
        if isinstance(value, Mapping):
            return {str(key): plain(inner, (*at, str(key))) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner, (*at, index)) for index, inner in enumerate(value)]
        if isinstance(value, Path):
            return str(value)
        if value is None or type(value) in (str, bool, int):
            return value
        if isinstance(value, Real) and math.isfinite(value):
            # NumPy's numbers, too.
            return int(value) if isinstance(value, Integral) else float(value)
        kind = f"{value}" if isinstance(value, Real) else f"a {type(value).__name__}"
        raise InputError(
            f"experiment: {'.'.join(map(str, at))} is {kind}. Give mappings, lists, text, flags and finite numbers."
        )

    return YamlSource(Path("experiment"), plain(data, ()), {})


def read_value(text: str) -> Any:
    """One YAML value, such as the right-hand side of `--set`. Raises ValueError with what is wrong."""
    reader = _Reader(text)
    node = reader.compose()
    return None if node is None else reader.value(node, ())


class _YamlError(ValueError):
    """What is wrong with a text, and in which line, from 1."""

    def __init__(self, line: int, sentence: str):
        super().__init__(sentence)
        self.line = line


class _Reader:
    """Turns YAML into plain values, with the line of each. Raises _YamlError."""

    def __init__(self, text: str):
        self.text = text
        self.lines: dict[KeyPath, int] = {}
        self.value_budget = MOST_VALUES

    def compose(self) -> yaml.Node | None:
        """The graph of the text's nodes, whose depth has a limit."""
        try:
            return yaml.compose(self.text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            raise _YamlError(_line(error.problem_mark), f"not valid YAML: {error.problem or error.context}") from None
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            raise _YamlError(line, f"not valid YAML: the character U+{ord(self.text[error.position]):04X}") from None
        except RecursionError:
            raise _YamlError(1, f"nested more than {DEEPEST} deep. Write it flatter") from None
        except (yaml.YAMLError, ValueError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise _YamlError(1, f"not valid YAML: {first}") from None

    def value(self, node: yaml.Node, at: KeyPath) -> Any:
        """The plain value of a node, whose place is noted by the keys that lead to it."""
        line = node.start_mark.line + 1
        self._count(line)
        if len(at) > DEEPEST:
            raise _YamlError(
                line, f"nested more than {DEEPEST} deep, or an alias stands in what it names. Write it flatter"
            )
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return {key: self.value(inner, (*at, key)) for key, inner in self._entries(node, at)}
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            for index, item in enumerate(node.value):
                self.lines[(*at, index)] = item.start_mark.line + 1
            return [self.value(item, (*at, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, at, line)
        raise _YamlError(line, f"the tag {_tag_text(node.tag)} is not read. Leave it out")

    def _count(self, line: int) -> None:
        self.value_budget -= 1
        if self.value_budget < 0:
            raise _YamlError(line, f"with its aliases written out it holds more than {MOST_VALUES:,} values. Use fewer")

    def _entries(self, node: yaml.MappingNode, at: KeyPath) -> Iterator[tuple[str, yaml.Node]]:
        """A mapping's keys as they are written, and what stands under them; first what `<<` brings in."""
        nodes: dict[str, yaml.Node] = {}
        merged_nodes: dict[str, yaml.Node] = {}
        for key_node, inner in node.value:
            line = key_node.start_mark.line + 1
            self._count(line)
            if not isinstance(key_node, yaml.ScalarNode):
                raise _YamlError(line, "a key has to be a word. Put quotes around it, or give it a value of its own")
            key = str(key_node.value)
            if key in nodes:
                raise _YamlError(line, f"the key {key!r} stands here twice. Remove one of them")
            if key_node.tag == f"{_TAG}merge":
                for mapping in inner.value if isinstance(inner, yaml.SequenceNode) else [inner]:
                    if not isinstance(mapping, yaml.MappingNode) or mapping is node or len(at) > DEEPEST:
                        raise _YamlError(line, "`<<` needs a mapping, such as an alias of one")
                    # The first of several has its way.
                    merged_nodes = {**dict(self._entries(mapping, (*at, key))), **merged_nodes}
            else:
                nodes[key] = inner
                self.lines[(*at, key)] = line
        yield from {**merged_nodes, **nodes}.items()

    def _scalar(self, node: yaml.ScalarNode, at: KeyPath, line: int) -> Any:
        text, kind = str(node.value), node.tag.removeprefix(_TAG)
        where = f"{'.'.join(map(str, at))} is " if at else ""
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in yaml.SafeLoader.bool_values:
            return yaml.SafeLoader.bool_values[text.lower()]
        if kind not in _NUMBERS or not re.match(_NUMBERS[kind], text):
            raise _YamlError(
                line, f"{where}{text[:40]!r} with the tag {_tag_text(node.tag)}, which is not read. Leave it out"
            )
        plain = text.replace("_", "").lower()
        if kind == "float":
            if not math.isfinite(value := float(plain.replace(".inf", "inf").replace(".nan", "nan"))):
                raise _YamlError(line, f"{where}{value}. Give a finite number")
            return value
        # Python refuses to read thousands of digits.
        if len(plain) > 20 or abs(number := int(plain, 0)) > LARGEST:
            raise _YamlError(line, f"{where}{text[:40]}. Give a whole number of at most {LARGEST}")
        return number


def _line(mark: yaml.Mark | None) -> int:
    return mark.line + 1 if mark else 1


def _tag_text(tag: str) -> str:
    return tag.replace(_TAG, "!!")
