"""Reading an experiment's YAML: resolving presets, arms and paths, and saying what is wrong where."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from slime_ray.errors import InputError
from slime_ray.experiment import (
    GOALS,
    Arm,
    Budget,
    EarlyStopping,
    Experiment,
    Faults,
    Resources,
    Search,
    has_feasible_point,
    point_values,
    value_at,
    with_values,
)
from slime_ray.judge_settings import JUDGE_SETTINGS
from slime_ray.presets import merge, preset_base
from slime_ray.settings import OBJECTIVE_SETTINGS, Settings, Strict, fingerprint
from slime_ray.space import Dimension, Requirement, Scalar
from slime_ray.tracker_settings import DEFAULT, Tracker
from slime_ray.yaml_source import KeyPath, YamlSource, load_yaml, read_value


class _File(Strict):
    """The keys of the YAML, before presets, arms and paths are resolved."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    summary: str | None = None
    preset: str | None = None
    base: dict[str, Any] = {}
    arms: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], dict[str, Any]] = {}
    grid: dict[str, list[Scalar]] = {}
    search: dict[str, Dimension] = {}
    require: list[str] = []
    start_from: list[str | dict[str, Scalar]] = []
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    goals: dict[str, Literal["maximize", "minimize"]] = {"win_rate": "maximize", "stability": "maximize"}
    budget: Budget = Budget()
    resources: Resources = Resources()
    faults: Faults = Faults()
    early_stopping: EarlyStopping | None = None
    trackers: list[Tracker] = list(DEFAULT)


def load_experiment(
    path: str | Path, *, overrides: Mapping[str, Any] | None = None, name: str | None = None
) -> Experiment:
    """Read, resolve and check one experiment.

    overrides: dotted paths from the top of the file (`base.training.updates`, `budget.trials`); a path that begins with
    a key of `base` may leave `base.` out. name: replaces the file's. Raises InputError, with file and line, for the
    first thing that is wrong.
    """
    source = load_yaml(path)
    data = source.data
    for key, value in (overrides or {}).items():
        top = key.split(".")[0]
        key = f"base.{key}" if top in Settings.model_fields else key
        data = with_values(data, {key: value})
    if name is not None:
        data = {**data, "name": name}
    source = YamlSource(source.path, data, source.lines)
    return _Resolver(source).resolve()


class _Resolver:
    """Turns a parsed file into an Experiment, and every complaint into a sentence with its line."""

    def __init__(self, source: YamlSource):
        self.source = source

    def resolve(self) -> Experiment:
        file: _File = self.check(_File, self.source.data, ())
        base = merge(preset_base(file.preset) if file.preset else {}, file.base)
        settings = self.check(Settings, base, ("base",))
        arms = self._arms(file, base)
        search = self._search(file, base)
        if not arms and search is None:
            raise self.error((), "nothing to run. Give `arms`, or `search` with `budget: {trials: N}`")
        self._check_goals(file, settings)
        if search is not None and file.budget.trials == 0:
            raise self.error(("budget",), "there is a search but `budget.trials` is 0. Give the number of trials")
        if search is None and file.budget.trials:
            raise self.error(("budget", "trials"), "there are trials to spend but no `search` says on what")
        if search is None and file.early_stopping is not None:
            raise self.error(("early_stopping",), "only trials of a search are stopped early, and there is no `search`")
        if len(set(file.seeds)) < len(file.seeds):
            raise self.error(("seeds",), f"{file.seeds} names a seed twice; the same trial would count double")
        if len(set(file.trackers)) < len(file.trackers):
            raise self.error(("trackers",), f"{file.trackers} names a tracker twice. Leave one out")
        return Experiment(
            name=file.name, base=base, arms=arms, search=search, seeds=file.seeds, goals=file.goals,
            budget=file.budget, resources=file.resources, faults=file.faults, early_stopping=file.early_stopping,
            trackers=file.trackers,
        )  # fmt: skip

    def error(self, keys: KeyPath, sentence: str) -> InputError:
        return InputError(f"{self.source.place(keys)}: {sentence}.")

    def check(self, model: Any, value: Any, at: KeyPath, *, where: str = "") -> Any:
        """Validate, turning pydantic's first complaint into ours. `at`: where `value` stands in the file."""
        try:
            return TypeAdapter(model).validate_python(value)
        except ValidationError as error:
            keys, sentence = explain(error, model)
            raise self.error((*at, *keys), where + sentence) from None

    def _arms(self, file: _File, base: dict[str, Any]) -> list[Arm]:
        arms: list[Arm] = []
        known: dict[str, str] = {}
        for name, values in file.arms.items():
            for point in _product(file.grid):
                label = "-".join([name, *(_short(path, value) for path, value in point.items())])
                chosen = {**values, **point}
                settings = self.check(Settings, with_values(base, chosen), ("arms", name), where=f"arm {name}: ")
                same = known.setdefault(fingerprint(settings), label)
                if same != label:
                    raise self.error(
                        ("arms", name), f"arm {label} is the same as arm {same}: every setting is equal. Remove one"
                    )
                arms.append(Arm(label=label, set=chosen))
        if file.grid and not file.arms:
            raise self.error(("grid",), "a grid multiplies the arms, and there are none. Add `arms: {full: {}}`")
        return arms

    def _search(self, file: _File, base: dict[str, Any]) -> Search | None:
        if not file.search:
            for key in ("require", "start_from"):
                if getattr(file, key):
                    raise self.error((key,), f"`{key}` has no effect without a `search`")
            return None
        for path, dimension in file.search.items():
            at: KeyPath = ("search", path)
            for end in dimension.ends:
                self.check(Settings, with_values(base, {path: end}), at, where=f"{path} = {end}: ")
        for index, text in enumerate(file.require):
            try:
                requirement = Requirement.parse(text)
            except ValueError as error:
                raise self.error(("require", index), str(error)) from None
            if not any(path in file.search for path in requirement.paths):
                raise self.error(("require", index), f"{text!r}: none of its paths is searched")
            self._numbers(base, file, requirement, ("require", index))
        points = [self._point(file, base, index) for index in range(len(file.start_from))]
        unique = [point for index, point in enumerate(points) if point not in points[:index]]
        search = Search(dimensions=file.search, require=file.require, known_points=unique)
        if file.require and not has_feasible_point(search, base):
            raise self.error(("require",), "no point of the space meets every requirement: they contradict each other")
        return search

    def _numbers(self, base: dict[str, Any], file: _File, requirement: Requirement, at: KeyPath) -> None:
        for path in requirement.paths:
            value = file.search[path].ends[0] if path in file.search else value_at(Settings.model_validate(base), path)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise self.error(at, f"{path} is not a number, so it cannot be compared")

    def _point(self, file: _File, base: dict[str, Any], index: int) -> dict[str, Scalar]:
        given = file.start_from[index]
        at: KeyPath = ("start_from", index)
        if isinstance(given, str):
            # A recipe's objective is what makes it that recipe. Its learning rate belongs to its model and data.
            objective = preset_base(given).get("objective", {})
            values = {f"objective.{knob}": value for knob, value in objective.items()}
            name = given
            own = Settings.model_validate(base)
            for path, value in values.items():
                if path not in file.search and value_at(own, path) != value:
                    raise self.error(
                        at,
                        f"{name} sets {path} = {value}, which is not searched and is {value_at(own, path)} in base. "
                        "Search it too, or leave the point out",
                    )
        else:
            values, name = dict(given), f"point {index + 1}"
            if unknown := set(values) - set(file.search):
                raise self.error(at, f"{sorted(unknown)[0]} is not searched. Searched: {', '.join(file.search)}")
        settings = self.check(Settings, with_values(base, values), at)
        point = {path: value_at(settings, path) for path in file.search}
        for path, value in point.items():
            if not file.search[path].contains(value):
                raise self.error(at, f"{name}: {path} = {value} lies outside {file.search[path].ends}. Widen the range")
        full = point_values(Search(dimensions=file.search, require=file.require), base, point)
        for text in file.require:
            if Requirement.parse(text).excess(full) > 0:
                raise self.error(at, f"{name} breaks the requirement {text!r}")
        return point

    def _check_goals(self, file: _File, settings: Settings) -> None:
        for goal in file.goals:
            if goal not in GOALS:
                raise self.error(("goals", goal), f"goals.{goal}: there is no such metric{_near(goal, GOALS)}")
            if goal == "win_rate" and settings.evaluation.judge.name == "none":
                raise self.error(
                    ("goals", goal),
                    "goals.win_rate needs a judge, and evaluation.judge is none. Set a judge, or use "
                    "goals: {preference_accuracy: maximize, stability: maximize}",
                )
        if not file.goals:
            raise self.error(("goals",), "there is no goal. Leave the key out for win_rate and stability")
        if set(file.goals) <= {"preference_accuracy", "mean_margin"} and file.search:
            raise self.error(
                ("goals",),
                "accuracy and margin rise while a model collapses; a search needs stability or win_rate beside them",
            )


def _short(path: str, value: Scalar) -> str:
    return f"{path.rsplit('.', 1)[-1]}={value:g}" if isinstance(value, float) else f"{path.rsplit('.', 1)[-1]}={value}"


def _product(grid: Mapping[str, list[Scalar]]) -> list[dict[str, Scalar]]:
    points: list[dict[str, Scalar]] = [{}]
    for path, values in grid.items():
        points = [{**point, path: value} for point in points for value in values]
    return points


# ---------------------------------------------------------------------------------------------------------------------
# pydantic's complaints as sentences


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
        return keys, f"{path}: unknown key{_near(str(keys[-1]), allowed)}"
    if kind == "missing":
        return keys[:-1], f"{path} is missing. Add it, or a preset that has it"
    if kind == "union_tag_invalid":
        return keys, f"{path}.name is {context['tag']!r}{_near(context['tag'], _TAGGED[str(keys[-1])])}"
    if kind == "union_tag_not_found":
        return keys, f"{path}.name is missing. Give one of: {', '.join(_TAGGED[str(keys[-1])])}"
    if kind == "value_error":
        message = str(context["error"])
        field = message.split(" ", 1)[0].rstrip(":")
        if keys and field.isidentifier() and keys[-1] != field and keys[-1] == "objective":
            return (*keys, field), f"{path}.{message}"
        return keys, f"{path}: {message}" if keys else message
    if kind == "string_pattern_mismatch":
        return keys, f"{path} is {given!r}. Use letters, digits, dots, dashes and underscores, a letter or digit first"
    return keys, f"{path} is {given!r}: {complaint['msg'][0].lower()}{complaint['msg'][1:]}"


_NOISE = ("int", "float", "str", "bool", "[key]", "literal['auto']", "constrained-int")


_TAGGED: Mapping[str, Mapping[str, Any]] = {"objective": OBJECTIVE_SETTINGS, "judge": JUDGE_SETTINGS}
"""Keys whose value is one of several models, by its name, which pydantic puts behind the key."""


def _without_tags(keys: Iterable[str | int]) -> KeyPath:
    kept: list[str | int] = []
    last: str | int = ""
    for key in keys:
        if key not in _TAGGED.get(str(last), ()):
            kept.append(key)
        last = key
    return tuple(kept)


def _near(word: str, options: Any) -> str:
    options = list(options)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    hint = f". Did you mean {close[0]!r}?" if close else "."
    return f"{hint} Allowed: {', '.join(sorted(options))}"


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


def parse_override(text: str) -> tuple[str, Any]:
    """Read one `key=value` of `--set`, the value as YAML reads it. Raises InputError."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key.strip()):
        raise InputError(f"--set {text}: write it as key=value, such as training.updates=50.")
    try:
        return key.strip(), read_value(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text}: the value is not valid YAML.") from None
