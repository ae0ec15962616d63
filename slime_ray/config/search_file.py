"""The search of an experiment's YAML: its space, its known points, and all that can be wrong with them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from slime_ray.config.complaints import FilePart
from slime_ray.config.points import (
    COUNT_LIMIT,
    LEARNING_SAMPLERS,
    EarlierRun,
    Point,
    Rules,
    SamplerName,
    Search,
    count_points,
    exists,
    has_feasible_point,
    path_of,
    value_at,
    with_values,
)
from slime_ray.config.presets import preset_base
from slime_ray.config.settings import Settings, Strict
from slime_ray.config.space import Dimension, RequirementText, Scalar
from slime_ray.config.yaml_source import KeyPath
from slime_ray.objectives import differ

_SHARED = "the SFT checkpoint and the held-out pairs, which all trials share, follow from it"
_MEASURE = "it decides how trials are measured, and what is measured differently cannot be compared"
_NOTHING = "it changes nothing of what a trial learns"
FIXED_PATHS = {
    "sft": _SHARED,
    "data": _SHARED,
    "model": _SHARED,
    "evaluation": _MEASURE,
    "sentinel": _NOTHING,
    "training.gradient_checkpointing": _NOTHING,
    "training.evaluations": _NOTHING,
}
"""Paths, with all below them, that no search may vary, and why."""
SEARCHABLE_PATHS = ("model.lora",)
"""Paths, with all below them, that one may vary all the same."""


class SearchKeys(Strict):
    """The keys of the YAML that make a search."""

    search: dict[str, Any] = {}
    """Paths into `base`, each with how it is drawn, or a list of ways that `when` tells apart."""
    sampler: SamplerName = "tpe"
    """How points are drawn; `tpe`, `nsga2` and `gp` learn from results."""
    require: list[RequirementText] = []
    """Rules for every point: `path <= path` or `path <= number`."""
    start_from: list[str | dict[str, Scalar]] = []
    """What is tried first: presets by name, points, and earlier runs."""


class SearchReader:
    """Turns the keys of a search into a Search, and every mistake in them into a sentence with its line.

    part: of the file, in which the keys stand.
    """

    def __init__(self, keys: SearchKeys, base: Mapping[str, Any], part: FilePart):
        self.keys, self.base, self.part = keys, base, part
        self.check, self.error = part.check, part.error
        self.places: dict[str, KeyPath] = {}

    def read(self, trials: int) -> Search | None:
        """The search, or None where the file has none. trials: that it may take. Raises InputError."""
        keys = self.keys
        if not keys.search:
            for key in ("require", "start_from", "sampler"):
                if key in keys.model_fields_set and (getattr(keys, key) or key == "sampler"):
                    raise self.error((key,), f"`{key}` has no effect without a `search`")
            return None
        search = Search(dimensions=self._dimensions(), require=keys.require, sampler=keys.sampler)
        self._check_conditions(search)
        self._check_knobs(search)
        self._check_requirements(search)
        self._check_sampler(search, trials)
        points, runs = self._start(search)
        return search.model_copy(update={"known_points": points, "earlier_runs": runs})

    # -----------------------------------------------------------------------------------------------------------------
    # The space

    def _dimensions(self) -> dict[str, Dimension]:
        dimensions: dict[str, Dimension] = {}
        for path, ways in self.keys.search.items():
            self._check_path(path)
            several = isinstance(ways, list)
            if several and not ways:
                raise self.error(("search", path), f"{path} is drawn in no way. Give it a range, or leave it out")
            for index, way in enumerate(ways if several else [ways]):
                at: KeyPath = ("search", path, index) if several else ("search", path)
                dimension: Dimension = self.check(Dimension, way, at, where=f"{path}: ")
                if several and not dimension.when:
                    raise self.error(
                        at, f"{path} is drawn in several ways, so each needs a `when` that tells them apart"
                    )
                name = f"{path}[{_label(dimension)}]" if several else path
                if name in dimensions:
                    raise self.error(at, f"{path} is drawn in two ways when {_label(dimension)}. Remove one")
                dimensions[name], self.places[name] = dimension, at
        return dimensions

    def _check_path(self, path: str) -> None:
        if (reason := fixed_reason(path)) is not None:
            sentence = f"{path} cannot be searched: {reason}. Set it in base, or make arms of it"
            raise self.error(("search", path), sentence)
        if any(below(path, allowed) for allowed in SEARCHABLE_PATHS):
            return
        training = self.base.get("training") or {}
        if training.get("updates") == 0 and "training.updates" not in self.keys.search:
            raise self.error(("search", path), "base has training.updates: 0, and without training no knob matters")
        if path == "training.epochs" and (training.get("updates") or "training.updates" in self.keys.search):
            raise self.error(("search", path), f"{path} has no effect beside training.updates. Search that instead")

    def _check_conditions(self, search: Search) -> None:
        try:
            search.order  # noqa: B018
        except ValueError as error:
            raise self.error(("search",), str(error)) from None
        parents: dict[str, list[Dimension]] = {}
        for name, dimension in search.dimensions.items():
            parents.setdefault(path_of(name), []).append(dimension)
        for name, dimension in search.dimensions.items():
            for path, values in dimension.when.items():
                at = (*self.places[name], "when", path)
                if path not in parents:
                    raise self.error(at, f"`when` of {name}: {path} is not searched. Searched: {', '.join(parents)}")
                if any(parent.size is None for parent in parents[path]):
                    raise self.error(at, f"`when` of {name}: {path} is continuous, and never has just one value")
                for value in values:
                    if not any(parent.contains(value) for parent in parents[path]):
                        raise self.error(at, f"`when` of {name}: {path} is never {value}")
        try:
            scenarios = search.scenarios()
        except ValueError as error:
            raise self.error(("search",), f"{error}. Search fewer of them together") from None
        for name, dimension in search.dimensions.items():
            present = [scenario for scenario in scenarios if exists(dimension, scenario)]
            if not present:
                raise self.error((*self.places[name], "when"), f"{name}: no trial meets its `when`, so it never exists")
            for earlier in list(search.dimensions)[: list(search.dimensions).index(name)]:
                both = [scenario for scenario in present if exists(search.dimensions[earlier], scenario)]
                if both and path_of(earlier) == path_of(name):
                    raise self.error(self.places[name], f"{path_of(name)} is drawn in two ways when {_words(both[0])}")

    def _check_knobs(self, search: Search) -> None:
        """Every value at the ends is legal in every trial that has the knob, and in some trial makes a difference."""
        for name, scenario, end in search.ends():
            path = path_of(name)
            context = f" with {_words(scenario)}" if scenario.keys() - {path} else ""
            values = with_values(self.base, {**scenario, path: end})
            self.check(Settings, values, self.places[name], where=f"{path} = {end}{context}: ")
        scenarios = search.scenarios()
        for name, dimension in search.dimensions.items():
            path, at = path_of(name), self.places[name]
            if path.startswith("objective.") and name not in search.switches:
                present = (scenario for scenario in scenarios if exists(dimension, scenario))
                if not any(self._matters(search, name, scenario) for scenario in present):
                    raise self.error(
                        at, f"{path} makes no difference here: what it belongs to is removed, or has a weight of 0"
                    )

    def _matters(self, search: Search, name: str, scenario: Point) -> bool:
        """Whether the ends of a dimension would train differently, the other knobs somewhere inside their ranges."""
        objectives = []
        for end in search.dimensions[name].ends:

            def pick(knob: str, dimension: Dimension, end: Scalar = end) -> Scalar:
                return end if knob == name else dimension.at(0.618)

            point = _within(search, scenario, pick)
            objectives.append(Settings.model_validate(with_values(self.base, point)).objective.build())
        return any(differ(objectives[0], other) for other in objectives[1:])

    def _check_requirements(self, search: Search) -> None:
        searched = {path_of(name) for name in search.dimensions}
        for index, requirement in enumerate(search.requirements):
            if not searched & set(requirement.paths):
                raise self.error(("require", index), f"{search.require[index]!r}: none of its paths is searched")
        rules = Rules(search, self.base)
        values: dict[str, Any] = {}
        for scenario in search.scenarios():
            values |= rules.values(_within(search, scenario, lambda name, dimension: dimension.ends[0]))
        for index, requirement in enumerate(search.requirements):
            for path in requirement.paths:
                if path not in values:
                    raise self.error(("require", index), f"{path}: there is no such setting in any trial")
                if isinstance(values[path], bool) or not isinstance(values[path], (int, float)):
                    raise self.error(("require", index), f"{path} is not a number, so it cannot be compared")
        if search.require and not has_feasible_point(search, self.base):
            raise self.error(("require",), "no point of the space meets every requirement: they contradict each other")

    # -----------------------------------------------------------------------------------------------------------------
    # How it is searched

    def _check_sampler(self, search: Search, trials: int) -> None:
        at: KeyPath = ("sampler",)
        if search.sampler in ("nsga2", "gp") and search.is_conditional:
            raise self.error(
                at,
                f"{search.sampler} needs every knob in every trial, and some here have a `when`. Use tpe, random, "
                "quasi_random or grid",
            )
        if search.sampler == "grid":
            for name, dimension in search.dimensions.items():
                if dimension.size is None:
                    raise self.error(
                        self.places[name],
                        f"{name} is continuous, and the sampler grid needs a list of values. Give it a `step` or a "
                        "`choice`, or use quasi_random",
                    )
        points = count_points(search, self.base)
        if points is None and search.sampler == "grid":
            sizes = [dimension.size or 1 for dimension in search.dimensions.values()]
            cells = "" if search.is_conditional else f"{math.prod(sizes):,} points, "
            raise self.error(at, f"the grid has {cells}more than {COUNT_LIMIT:,}. Use quasi_random, or coarser steps")
        if points is not None and trials > points:
            budget: KeyPath = ("budget", "trials")
            raise self.error(
                budget,
                f"{'.'.join(map(str, self.part.place(budget)))} is {trials}, and the space has only {points} points, "
                f"of which each is tried once. Give at most {points}",
            )

    def _start(self, search: Search) -> tuple[list[Point], list[EarlierRun]]:
        points: list[Point] = []
        runs: list[EarlierRun] = []
        for index, entry in enumerate(self.keys.start_from):
            at: KeyPath = ("start_from", index)
            if isinstance(entry, dict) and "run" in entry:
                if search.sampler not in LEARNING_SAMPLERS:
                    samplers = ", ".join(LEARNING_SAMPLERS)
                    raise self.error(at, f"the sampler {search.sampler} learns nothing from results. Use {samplers}")
                runs.append(self.check(EarlierRun, entry, at, where=f"start_from.{index}: "))
                continue
            point = self._point(search, entry, at)
            if point not in points:
                points.append(point)
        return points, runs

    def _point(self, search: Search, entry: str | dict[str, Scalar], at: KeyPath) -> Point:
        searched = {path_of(name) for name in search.dimensions}
        if isinstance(entry, str):
            name, values = entry, self._recipe(entry, searched, at)
        else:
            name, values = f"point {self.keys.start_from.index(entry) + 1}", dict(entry)
            if unknown := set(values) - searched:
                raise self.error(at, f"{min(unknown)} is not searched. Searched: {', '.join(sorted(searched))}")
        settings = self.check(Settings, with_values(self.base, values), at)

        def pick(knob: str, dimension: Dimension) -> Scalar:
            value = value_at(settings, path_of(knob))
            if not dimension.contains(value):
                steps = f" in steps of {dimension.step:g}" if dimension.step else ""
                raise self.error(
                    at, f"{name}: {path_of(knob)} = {value} lies outside {dimension.ends}{steps}. Widen the range"
                )
            return dimension.snap(value)

        point = search.walk(pick)
        if isinstance(entry, dict) and (missing := set(values) - set(point)):
            raise self.error(at, f"{name} gives {min(missing)}, which it does not have: its `when` is not met")
        if broken := Rules(search, self.base).broken(point):
            raise self.error(at, f"{name} breaks the requirement {broken[0]!r}")
        return point

    def _recipe(self, name: str, searched: set[str], at: KeyPath) -> dict[str, Any]:
        # A recipe's objective is what makes it that recipe. Its learning rate belongs to its model and data.
        objective = preset_base(name).get("objective", {})
        values = {f"objective.{knob}": value for knob, value in objective.items()}
        switch_values = {path: value for path, value in values.items() if path in searched and path.endswith(".name")}
        settings = self.check(Settings, with_values(self.base, switch_values), at)
        for path, value in values.items():
            if path not in searched and value_at(settings, path) != value:
                raise self.error(
                    at,
                    f"{name} sets {path} = {value}, which is not searched and is {value_at(settings, path)} in base. "
                    "Search it too, or leave the point out",
                )
        return values


def fixed_reason(path: str) -> str | None:
    """Why trials of a search must not differ in a setting; None where they may."""
    if any(below(path, allowed) for allowed in SEARCHABLE_PATHS):
        return None
    return next((reason for fixed, reason in FIXED_PATHS.items() if below(path, fixed)), None)


def _within(search: Search, scenario: Point, pick: Callable[[str, Dimension], Scalar]) -> Point:
    """A point of a scenario, with `pick` asked for the rest."""
    return search.walk(lambda name, dimension: scenario.get(path_of(name), pick(name, dimension)))


def below(path: str, above: str) -> bool:
    """Whether a dotted path is another one, or leads on from it."""
    return path == above or path.startswith(above + ".")


def _label(dimension: Dimension) -> str:
    return ",".join(str(value) for values in dimension.when.values() for value in values)


def _words(scenario: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{path} = {value}" for path, value in scenario.items())
