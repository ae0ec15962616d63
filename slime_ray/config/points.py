"""Points of a search: which dimensions a point has, what it makes of the settings, and whether it keeps the rules.

A point maps paths into the settings to values. Where a dimension has a `when`, not every point has every path.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from pydantic import BaseModel

from slime_ray.config.league import entry_of
from slime_ray.config.presets import merge
from slime_ray.config.settings import Positive, Settings, Strict
from slime_ray.config.space import Dimension, Requirement, Scalar

Point = dict[str, Scalar]
SamplerName = Literal["tpe", "nsga2", "gp", "random", "quasi_random", "grid"]
LEARNING_SAMPLERS: tuple[SamplerName, ...] = ("tpe", "nsga2", "gp")
"""Samplers whose draws follow from results; those of the others follow from the seed alone."""
COUNT_LIMIT = 100_000
"""Points of a finite space that are counted; more are as good as endless."""
MOST_SCENARIOS = 10_000
"""Combinations of switches, each of which is checked."""
TRIES = 4096
"""Points of a space that are tried for one that meets its requirements."""


class EarlierRun(Strict):
    """A run whose finished search trials the sampler begins with."""

    run: str
    """The run's folder."""
    best: Positive | None = None
    """How many of its best trials to take; null takes all."""


class Search(Strict):
    """The search space: paths into the settings, each with the way it is drawn, and what must hold between them.

    dimensions: by path. Where a path is drawn in several ways, each under its own `when`, their names tell them apart
    by what stands there, such as `objective.beta[dpo]`. known_points: tried first.
    """

    dimensions: dict[str, Dimension]
    require: list[str] = []
    known_points: list[Point] = []
    earlier_runs: list[EarlierRun] = []
    sampler: SamplerName = "tpe"

    @property
    def requirements(self) -> list[Requirement]:
        """The parsed requirements."""
        return [Requirement.parse(text) for text in self.require]

    @property
    def is_conditional(self) -> bool:
        """Whether some dimension does not exist in every trial."""
        return any(dimension.when for dimension in self.dimensions.values())

    @cached_property
    def order(self) -> list[str]:
        """Names of the dimensions, each behind those that decide whether it exists. Raises ValueError for a circle."""
        placed: list[str] = []
        while len(placed) < len(self.dimensions):
            rest = [name for name in self.dimensions if name not in placed]
            open_paths = {path_of(name) for name in rest}
            ready = [name for name in rest if not open_paths & set(self.dimensions[name].when)]
            if not ready:
                raise ValueError(f"the `when` of {' and '.join(rest)} depend on each other in a circle")
            placed += ready
        return placed

    @property
    def switches(self) -> list[str]:
        """Names of the dimensions on whose values it depends which knobs there are."""
        switch_paths = {path for dimension in self.dimensions.values() for path in dimension.when}
        return [name for name in self.order if path_of(name) in switch_paths or path_of(name).endswith(".name")]

    def walk(self, pick: Callable[[str, Dimension], Scalar]) -> Point:
        """A point, with `pick` asked for the value of each dimension that it has, by name, in order."""
        point: Point = {}
        for name in self.order:
            dimension = self.dimensions[name]
            if exists(dimension, point):
                point[path_of(name)] = pick(name, dimension)
        return point

    def values_by_name(self, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The values of a point by the names of its dimensions. Raises KeyError where it lacks one."""
        present = (name for name in self.order if exists(self.dimensions[name], values))
        return {name: values[path_of(name)] for name in present}

    def locate(self, values: Mapping[str, Any]) -> Point | None:
        """The point with just these values; None where the space has none."""

        def pick(name: str, dimension: Dimension) -> Scalar:
            value = values.get(path_of(name))
            if value is None or not dimension.contains(value):
                raise LookupError
            return dimension.snap(value)

        try:
            point = self.walk(pick)
        except LookupError:
            return None
        return point if point.keys() == values.keys() else None

    def at(self, quantiles: Iterable[float]) -> Point:
        """The point at these quantiles, one for each dimension, also for those that it turns out not to have."""
        by_name = dict(zip(self.dimensions, quantiles, strict=True))
        return self.walk(lambda name, dimension: dimension.at(by_name[name]))

    def scenarios(self) -> list[Point]:
        """Every combination of switches that makes a difference: all cases of which knobs a trial has.

        Raises ValueError where these are too many.
        """
        points = list(islice(self._combinations(self.switches, self._cases), MOST_SCENARIOS + 1))
        if len(points) > MOST_SCENARIOS:
            raise ValueError(f"what decides which knobs there are has more than {MOST_SCENARIOS:,} combinations")
        return points

    def ends(self) -> Iterator[tuple[str, Point, Scalar]]:
        """Each dimension's name with all values at its ends, once for each scenario in which it exists."""
        scenarios = self.scenarios()
        for name, dimension in self.dimensions.items():
            for scenario in (candidate for candidate in scenarios if exists(dimension, candidate)):
                for end in dimension.ends:
                    if _equal(scenario.get(path_of(name), end), end):
                        yield name, scenario, end

    def points(self) -> Iterator[Point]:
        """All points of a finite space. Raises TypeError for an endless one."""
        return self._combinations(self.order, lambda name: self.dimensions[name].values)

    def _cases(self, name: str) -> Iterable[Scalar]:
        """Of a switch: all choices; of a number those that some `when` asks for, and one more."""
        switch = self.dimensions[name]
        if switch.choice is not None:
            return switch.choice
        when_values = {value for other in self.dimensions.values() for value in other.when.get(path_of(name), ())}
        rest = (value for value in switch.values if value not in when_values)
        return [value for value in sorted(when_values, key=float) if switch.contains(value)] + list(islice(rest, 1))

    def _combinations(self, names: list[str], values: Callable[[str], Iterable[Scalar]]) -> Iterator[Point]:
        def extend(point: Point, rest: list[str]) -> Iterator[Point]:
            if not rest:
                yield point
            elif exists(self.dimensions[rest[0]], point):
                for value in values(rest[0]):
                    yield from extend({**point, path_of(rest[0]): value}, rest[1:])
            else:
                yield from extend(point, rest[1:])

        return extend({}, names)


@dataclass(frozen=True)
class SearchPart:
    """One search of an experiment: all of it, or a league's entry.

    label: of the entry, "" where the experiment has one search. set: what all its trials set over base. best, seeds:
    winners that are confirmed, and with how many seeds. defaults: values that run at the winner's learning rate too.
    """

    label: str
    set: Mapping[str, Any]
    search: Search
    trials: int
    best: int
    seeds: int
    defaults: Mapping[str, Any] | None = None

    @property
    def rows(self) -> int:
        """Rows of the table that its winners and their defaults make, at most."""
        return min(self.best, self.trials) * (2 if self.defaults else 1)

    def owns(self, trial_id: str) -> bool:
        """Whether a trial is of its budget. Where it is the only search, clones of all trials are."""
        return not self.label or entry_of(trial_id) == self.label

    def trial_id(self, number: int) -> str:
        """Id of its nth trial, from 1."""
        return f"search-{self.label}-{number:04d}" if self.label else f"search-{number:04d}"

    def values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial at a point sets over base."""
        return {**self.set, **point}

    def point(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The point of such a trial."""
        searched = {path_of(name) for name in self.search.dimensions}
        return {path: value for path, value in values.items() if path in searched or path not in self.set}

    def default_values(self, winner: Mapping[str, Any]) -> dict[str, Any] | None:
        """The entry's published values at its winner's learning rate; None where they are not asked for."""
        return None if self.defaults is None else {**winner, **self.defaults}


def path_of(name: str) -> str:
    """The path into the settings that a dimension of this name draws."""
    return name.partition("[")[0]


def exists(dimension: Dimension, point: Mapping[str, Scalar]) -> bool:
    """Whether a point with these values has the dimension."""
    return all(any(_equal(point.get(path), value) for value in values) for path, values in dimension.when.items())


def _equal(first: Any, second: Any) -> bool:
    """Equal, where True is not 1."""
    return first == second and isinstance(first, bool) == isinstance(second, bool)


class Rules:
    """Whether points keep the requirements. What is not searched is read from the settings, once for each scenario.

    A requirement that speaks of a knob which a trial does not have says nothing about it.
    """

    def __init__(self, search: Search, base: Mapping[str, Any]):
        self.base, self.requirements = base, search.requirements
        self.switches = [path_of(name) for name in search.switches]
        self.fixed_values: dict[tuple[Any, ...], dict[str, Any]] = {}

    def values(self, point: Mapping[str, Scalar]) -> dict[str, Any]:
        """What stands at the paths that the requirements speak of, where a trial at this point has them."""
        key = tuple((type(value), value) for value in (point.get(path) for path in self.switches))
        if key not in self.fixed_values:
            self.fixed_values[key] = self._read_fixed_values(point)
        return {**self.fixed_values[key], **point}

    def _read_fixed_values(self, point: Mapping[str, Scalar]) -> dict[str, Any]:
        settings = Settings.model_validate(with_values(self.base, point))
        fixed = {}
        for path in {path for requirement in self.requirements for path in requirement.paths} - set(point):
            try:
                fixed[path] = value_at(settings, path)
            except KeyError:
                continue
        return fixed

    def excesses(self, point: Mapping[str, Scalar]) -> dict[str, float]:
        """By how much each requirement that says something of a point is broken, at most 0 where it holds."""
        if not self.requirements:
            return {}
        values = self.values(point)
        return {
            str(requirement): requirement.excess(values)
            for requirement in self.requirements
            if all(path in values for path in requirement.paths)
        }

    def broken(self, point: Mapping[str, Scalar]) -> list[str]:
        """The requirements that a point breaks."""
        return [requirement for requirement, excess in self.excesses(point).items() if excess > 0]


def has_feasible_point(search: Search, base: Mapping[str, Any]) -> bool:
    """Whether one of TRIES random points of the space meets all requirements."""
    rules, draw = Rules(search, base), random.Random(0)
    return any(not rules.broken(search.walk(lambda _, dimension: dimension.at(draw.random()))) for _ in range(TRIES))


def count_points(search: Search, base: Mapping[str, Any]) -> int | None:
    """Count a finite space's points that meet all requirements; None for endless ones or more than COUNT_LIMIT."""
    if any(dimension.size is None for dimension in search.dimensions.values()):
        return None
    rules = Rules(search, base)
    points = list(islice(search.points(), COUNT_LIMIT + 1))
    return None if len(points) > COUNT_LIMIT else sum(not rules.broken(point) for point in points)


def with_values(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with each dotted path of `values` set. Mappings merge as presets do; an objective's name replaces it."""
    result = dict(base)
    # Knobs that stand before the name of the objective whose they are would be replaced with the one below.
    for path in sorted(values, key=lambda path: not _is_name(path, values[path])):
        nested: Any = values[path]
        for key in reversed(path.split(".")):
            nested = {key: nested}
        result = merge(result, nested)
    return result


def _is_name(path: str, value: Any) -> bool:
    return path.endswith(".name") or (isinstance(value, dict) and "name" in value)


def value_at(settings: Settings, path: str) -> Any:
    """The value at a dotted path. Raises KeyError where the path leads nowhere."""
    value: Any = settings
    for key in path.split("."):
        if not isinstance(value, BaseModel) or key not in type(value).model_fields:
            raise KeyError(path)
        value = getattr(value, key)
    return value
