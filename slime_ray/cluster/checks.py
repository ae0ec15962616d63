"""What holds for every cluster file: how values are read, which nodes and images will do."""

import difflib
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from slime_ray.config.yaml_source import KeyPath, YamlSource
from slime_ray.errors import InputError

RAY = version("ray")
DRIVERS = "trial_drivers"
"""The custom resource of the head that the drivers of trials with several workers hold."""
PLACEHOLDER = "REPLACE_ME"
MOVING_TAGS = {"latest", "nightly"}
KINDS = {dict: "map", list: "list", int: "whole number", str: "text", bool: "true or false", float: "number"}


@dataclass(frozen=True)
class NodeType:
    """One kind of node. at: where it stands in the file. least, most: how many of it; None where the file is silent."""

    name: str
    at: KeyPath
    spot: bool
    resources: Mapping[str, float]
    least: int | None
    most: int | None
    priority: int


class ClusterChecks:
    """Base of the checks of one file. Every method raises InputError with file, line and key."""

    def __init__(self, source: YamlSource):
        self.source = source
        self.data = source.data

    def lines(self) -> Iterator[str]:
        """Check the file; yield what it says, in lines for a person."""
        raise NotImplementedError

    def error(self, at: KeyPath, sentence: str) -> InputError:
        """Build an error at a key. `sentence` follows its path, as in `: why` or ` is what`."""
        return InputError(f"{self.source.place(at)}: {dotted(at)}{sentence}.")

    def value(self, *at: str | int, of: type | tuple[type, ...], default: Any = None, description: str = "") -> Any:
        """Return the value at a path, of a type. Only without `description`, of what to give, may it be missing."""
        value: Any = self.data
        for depth, key in enumerate(at):
            kind: type = list if isinstance(key, int) else dict
            if not isinstance(value, kind):
                raise self.error(at[:depth], f" is {describe(value)} and has to be a {KINDS[kind]}")
            items: Any = dict(enumerate(value)) if isinstance(value, list) else value
            value = items.get(key)
            if value is None:
                break
        kinds = of if isinstance(of, tuple) else (of,)
        if value is None:
            if description:
                raise self.error(at, f" is missing. Give {description}{self._misspelt(at)}")
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(at, f" is {describe(value)} and has to be a {KINDS[kinds[0]]}")
        return value

    def _misspelt(self, at: KeyPath) -> str:
        """Name the key that was meant for a missing one, where one is like it."""
        keys = self.value(*at[:-1], of=dict, default={}) if isinstance(at[-1], str) else {}
        like = difflib.get_close_matches(str(at[-1]), map(str, keys), n=1, cutoff=0.8)
        return f"; there is {like[0]}" if like else ""

    def placeholders(self) -> Iterator[str]:
        """Yield a line for what the user still has to write; the file passes with it."""
        text = self.source.path.read_text(encoding="utf-8").splitlines()
        line_numbers = [str(n) for n, line in enumerate(text, 1) if PLACEHOLDER in re.split(r"(?:^|\s)#", line)[0]]
        if line_numbers:
            yield (
                f"to be written before it is used: {PLACEHOLDER} in line{'s' * (len(line_numbers) > 1)} "
                f"{', '.join(line_numbers)}"
            )

    def limits(self, at: KeyPath, least_key: str, most_key: str) -> tuple[int, int]:
        """Return how many nodes there are at least and at most. The file has to say both."""
        least = self.value(*at, least_key, of=int, description="how many nodes there are at least; 0 is common")
        most = self.value(*at, most_key, of=int, description="how many nodes there are at most")
        if not 0 <= least <= most:
            raise self.error((*at, most_key), f" is {most} and {least_key} is {least}. Give 0 <= least <= most")
        return least, most

    def nodes(self, head: NodeType, workers: list[NodeType]) -> Iterator[str]:
        """Refuse a head that can be lost or that trains."""
        if head.spot:
            raise self.error(
                head.at, ": the head is on spot, and its loss ends the sweep. Take an on-demand node for it"
            )
        if head.least or head.most:
            raise self.error(
                head.at, ": more nodes of the head's type would come and go. Give it min_workers: 0 and max_workers: 0"
            )
        if head.resources.get("CPU") != 0 or head.resources.get("GPU", 0) != 0:
            raise self.error(
                head.at, ": training would be placed on the head, whose loss ends the sweep. Give it CPU 0 and no GPU"
            )
        if head.resources.get(DRIVERS, 0) < 1:
            raise self.error(
                head.at,
                f": the head has no {DRIVERS}, which trials of several workers need. Give {DRIVERS}: 16 as a resource",
            )
        yield f"{head.name}: the head, on demand, {amounts(head)}"
        if not workers:
            raise self.error(head.at[:-1], ": there are no nodes but the head. Add a type of node for workers")
        for node in workers:
            if DRIVERS in node.resources:
                raise self.error(node.at, f": {DRIVERS} is for the head alone, which is not taken away. Remove it here")
            market = "spot" if node.spot else "on demand"
            count = f"{node.least} to {node.most}" if node.least != node.most else f"{node.most}"
            yield f"{node.name}: {count} nodes, {market}, {amounts(node)}, priority {node.priority}"

    def image(self, at: KeyPath, image: str) -> str:
        """Refuse an image that can change, or with another Ray or Python than here."""
        here = ".".join(platform.python_version_tuple()[:2])
        example = f"rayproject/ray:{RAY}-py{here.replace('.', '')}-gpu"
        name, _, digest = image.partition("@")
        path, _, last = name.rpartition("/")
        repository, _, tag = last.partition(":")
        if not digest and not tag:
            raise self.error(at, f" is {image}, without a tag, so nodes may differ. Name a version, as in {example}")
        if not digest and MOVING_TAGS & set(tag.split("-")):
            raise self.error(at, f" is {image}, which may be another image tomorrow. Name a version, as in {example}")
        official = f"{path}/{repository}".endswith("rayproject/ray")
        ray_version = re.search(r"^(\d+\.\d+\.\d+)" if official else r"ray[-_]?(\d+\.\d+\.\d+)", tag)
        python = re.search(r"py(\d)(\d+)", tag)
        if official and tag and not (ray_version and python):
            raise self.error(at, f" is {image}, which does not say which Ray and Python it has. Take {example}")
        tag_versions = {"Ray": ray_version and ray_version[1], "Python": python and f"{python[1]}.{python[2]}"}
        for part, local_version in (("Ray", RAY), ("Python", here)):
            if tag_versions[part] and tag_versions[part] != local_version:
                raise self.error(
                    at,
                    f" is {image} with {part} {tag_versions[part]}, but here is {part} {local_version}. "
                    "Make them the same",
                )
        if ray_version and python:
            return f"image {image}: Ray {ray_version[1]} and Python {here}, as here"
        return f"image {image}: pinned; its tag does not say which Ray and Python it has, so they are not compared"


def dotted(at: KeyPath) -> str:
    """Write `("a", 0, "b")` as `a.0.b`."""
    return ".".join(map(str, at))


def describe(value: Any) -> str:
    """Write a value as an error may show it."""
    return KINDS[type(value)] if isinstance(value, (dict, list)) else repr(value)


def amounts(node: NodeType) -> str:
    """List the resources that a node offers, but memory, which Ray detects."""
    return ", ".join(f"{kind} {n:g}" for kind, n in node.resources.items() if kind != "memory") or "as Ray detects them"
