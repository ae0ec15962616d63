"""Reading an experiment's YAML: resolving presets, arms and paths, and saying what is wrong where."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from slime_ray.ablation import DESIGNS, Ablation, AnyAblation, Unfit, Values, idle_knobs
from slime_ray.design import Design
from slime_ray.errors import InputError, near
from slime_ray.expansion import expand
from slime_ray.experiment import (
    GOALS,
    Arm,
    Budget,
    EarlyStopping,
    Experiment,
    Faults,
    Resources,
    with_values,
)
from slime_ray.judge_settings import JUDGE_SETTINGS, Llm
from slime_ray.presets import merge, preset_base
from slime_ray.search_file import SearchKeys, SearchReader
from slime_ray.settings import OBJECTIVE_SETTINGS, Settings, fingerprint
from slime_ray.space import Dimension, Scalar
from slime_ray.strict import Label
from slime_ray.yaml_source import KeyPath, YamlSource, load_yaml, read_value


class _File(SearchKeys):
    """The keys of the YAML, before presets, arms and paths are resolved."""

    name: Label
    summary: str | None = None
    preset: str | None = None
    base: dict[str, Any] = {}
    arms: dict[Label, dict[str, Any]] = {}
    grid: dict[str, list[Scalar]] = {}
    ablate: AnyAblation | None = None
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    goals: dict[str, Literal["maximize", "minimize"]] = {"win_rate": "maximize", "stability": "maximize"}
    budget: Budget = Budget()
    resources: Resources = Resources()
    faults: Faults = Faults()
    early_stopping: EarlyStopping | None = None


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
        design = None
        if file.ablate is not None:
            arms, design = self._ablation(file, file.ablate, base, settings)
        else:
            arms = self._arms(file, base)
        search = SearchReader(file, base, check=self.check, error=self.error).read(file.budget.trials)
        self._check_compared(file)
        if not arms and search is None:
            raise self.error((), "nothing to run. Give `arms`, `ablate`, or `search` with `budget: {trials: N}`")
        self._check_goals(file, settings)
        self._check_budget(file, settings)
        if search is not None and file.budget.trials == 0:
            raise self.error(("budget",), "there is a search but `budget.trials` is 0. Give the number of trials")
        if search is None and file.budget.trials:
            raise self.error(("budget", "trials"), "there are trials to spend but no `search` says on what")
        if len(set(file.seeds)) < len(file.seeds):
            raise self.error(("seeds",), f"{file.seeds} names a seed twice; the same trial would count double")
        return Experiment(
            name=file.name, base=base, arms=arms, search=search, seeds=file.seeds, goals=file.goals,
            budget=file.budget, resources=file.resources, faults=file.faults,
            early_stopping=self._early_stopping(file, settings),
            design=design,
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

    def _ablation(
        self, file: _File, ablation: Ablation, base: dict[str, Any], settings: Settings
    ) -> tuple[list[Arm], Design]:
        for key in ("arms", "grid"):
            if getattr(file, key):
                raise self.error((key,), f"`ablate` makes the arms of its design itself. Remove `{key}`, or `ablate`")
        if ablation.metric == "win_rate" and settings.evaluation.judge.name == "none":
            raise self.error(
                ("ablate", "metric"),
                "the design compares cells by win_rate, which needs a judge, and evaluation.judge is none. Set a "
                "judge, or another `metric`, such as preference_accuracy",
            )

        def check(values: Values, keys: KeyPath, what: str) -> Settings:
            checked: Settings = self.check(Settings, with_values(base, values), ("ablate", *keys), where=f"{what}: ")
            return checked

        try:
            expansion = expand(ablation, settings, check)
        except Unfit as error:
            raise self.error(("ablate", *error.keys), str(error)) from None
        return expansion.arms, expansion.design

    def _check_compared(self, file: _File) -> None:
        """What a design takes away it compares at the values of its centers, and a search would move these."""
        compared = idle_knobs(file.ablate.takes_away if file.ablate else ())
        for path in file.search:
            if path in compared:
                raise self.error(
                    ("search", path),
                    f"{path} is searched, and the design asks what {compared[path]} does at the value of its center. "
                    "Search in a file of its own first, or leave the component out of `ablate.components`",
                )

    def _early_stopping(self, file: _File, settings: Settings) -> EarlyStopping | None:
        """With the goals that trials are ranked by as they can be told during training."""
        early = file.early_stopping
        if early is None or early.rule == "none":
            return early
        if not file.search:
            raise self.error(("early_stopping",), "only trials of a search are stopped early, and there is no `search`")
        judged, evaluations = settings.judged_on_the_way, settings.training.evaluations
        if early.rule == "pareto" and early.goals is None:
            told = {"preference_accuracy" if goal == "win_rate" and not judged else goal: goal for goal in file.goals}
            goals = {name: file.goals[goal] for name, goal in told.items()}
            early = EarlyStopping.model_validate({**early.model_dump(), "goals": goals})
        if "win_rate" in early.ranked_by and not judged:
            raise self.error(
                ("early_stopping",),
                "early_stopping ranks by win_rate, and nothing is judged during training. Set sentinel: {judge: true} "
                "(sentinel.action warn or stop, and a judge), or rank by preference_accuracy",
            )
        if (evaluations - 1) / evaluations < early.first:
            raise self.error(
                ("early_stopping",),
                f"no trial would be stopped: training.evaluations is {evaluations}, and none of them lies between "
                f"early_stopping.first, {early.first:g} of the updates, and the end. Set more evaluations",
            )
        return early

    def _check_goals(self, file: _File, settings: Settings) -> None:
        for goal in file.goals:
            if goal not in GOALS:
                raise self.error(("goals", goal), f"goals.{goal}: there is no such metric{near(goal, GOALS)}")
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

    def _check_budget(self, file: _File, settings: Settings) -> None:
        """What can never be spent ends nothing, and whoever relies on it would learn so from the bill."""
        budget, judge = file.budget, settings.evaluation.judge
        gpus = file.resources.gpu_per_worker > 0
        if budget.gpu_hours is not None and not gpus:
            raise self.error(
                ("budget", "gpu_hours"), "trials hold no GPU: resources.gpu_per_worker is 0. Give budget.hours instead"
            )
        if budget.judge_calls is not None and not isinstance(judge, Llm):
            raise self.error(
                ("budget", "judge_calls"), f"the judge {judge.name} makes no calls that are paid. Leave it out"
            )
        priced = (gpus and budget.price_per_gpu_hour is not None) or (
            isinstance(judge, Llm) and judge.prices is not None
        )
        if budget.cost is not None and not priced:
            raise self.error(
                ("budget", "cost"),
                "nothing here has a price. Give budget.price_per_gpu_hour for trials that hold GPUs, or "
                "evaluation.judge.prices for a judge that is paid",
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
    if kind == "string_pattern_mismatch":
        return keys, f"{path} is {given!r}. Use letters, digits, dots, dashes and underscores, a letter or digit first"
    return keys, f"{path} is {given!r}: {complaint['msg'][0].lower()}{complaint['msg'][1:]}"


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


def parse_override(text: str) -> tuple[str, Any]:
    """Read one `key=value` of `--set`, the value as YAML reads it. Raises InputError."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key.strip()):
        raise InputError(f"--set {text}: write it as key=value, such as training.updates=50.")
    try:
        return key.strip(), read_value(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text}: the value is not valid YAML.") from None


def parse_seeds(text: str) -> list[int]:
    """Read `--seeds`: how many, from 0 on, or a list of them. Raises InputError."""
    if not re.fullmatch(r"[1-9]\d*|\d+(,\d+)+|\d+,", text):
        raise InputError(
            f"--seeds {text}: give how many, such as 8, or a list, such as 0,1,5; a comma ends a list of one."
        )
    return [int(word) for word in text.split(",") if word] if "," in text else list(range(int(text)))
