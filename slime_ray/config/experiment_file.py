"""Reading an experiment's YAML: resolving presets, arms and paths, and saying what is wrong where."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from slime_ray.config.ablation import Ablation, AnyAblation, Unfit, Values, idle_knobs
from slime_ray.config.complaints import explain
from slime_ray.config.design import Design
from slime_ray.config.expansion import expand
from slime_ray.config.experiment import (
    GOALS,
    MOST_SEEDS,
    MOST_TRIALS,
    Arm,
    Budget,
    EarlyStopping,
    Experiment,
    Faults,
    Resources,
    with_values,
)
from slime_ray.config.judge import Llm
from slime_ray.config.presets import merge, preset_base
from slime_ray.config.search_file import SearchKeys, SearchReader
from slime_ray.config.settings import Settings, fingerprint
from slime_ray.config.space import Scalar, equal_values
from slime_ray.config.strict import LARGEST_SEED, LONGEST_LABEL, Label, RunName, Seed, Strict
from slime_ray.config.trackers import DEFAULT, Tracker
from slime_ray.config.yaml_source import KeyPath, YamlSource, load_yaml, read_value
from slime_ray.errors import InputError, near


class _File(SearchKeys):
    """The keys of the YAML, before presets, arms and paths are resolved."""

    name: RunName
    """Of the run's folder: letters, digits, dots, dashes and underscores."""
    summary: str | None = None
    """What `slime-ray spaces` says of it."""
    preset: str | None = None
    """One of `slime-ray presets`, or several joined by slashes, later ones over earlier ones; `base` begins with it."""
    base: dict[str, Any] = {}
    """What all trials have in common, laid over the preset."""
    arms: dict[Label, dict[str, Any]] = {}
    """Rows of the table, by label, each as what it sets over `base`, by paths such as `objective.anchor_weight`."""
    grid: dict[str, list[Scalar]] = {}
    """Paths with lists of values: every arm is run with every combination."""
    ablate: AnyAblation | None = None
    """A design, which makes the arms itself; in place of `arms` and `grid`."""
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=MOST_SEEDS)] = [0]
    """Every arm is run with each of them."""
    goals: dict[str, Literal["maximize", "minimize"]] = {"win_rate": "maximize", "stability": "maximize"}
    """What the search is after: win_rate, stability, preference_accuracy, mean_margin; one or several."""
    budget: Budget = Budget()
    """What the sweep may spend."""
    resources: Resources = Resources()
    """What one trial holds."""
    faults: Faults = Faults()
    """What is done when something breaks."""
    early_stopping: EarlyStopping | None = None
    """Which trials of the search are stopped during training; null stops none."""
    trackers: list[Tracker] = list(DEFAULT)
    """Who shows a trial's curves while it trains; an empty list is nobody."""


def file_keys() -> type[Strict]:
    """The schema of the file itself; that of its `base` is Settings."""
    return _File


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
        if file.budget.confirm and max(file.seeds) + file.budget.confirm.seeds > LARGEST_SEED:
            raise self.error(
                ("seeds",), f"winners are confirmed with seeds behind {max(file.seeds)}, and {LARGEST_SEED} is the last"
            )
        self._check_arms(file, arms)
        if len(set(file.trackers)) < len(file.trackers):
            raise self.error(("trackers",), f"{file.trackers} names a tracker twice. Leave one out")
        return Experiment(
            name=file.name, base=base, arms=arms, search=search, seeds=file.seeds, goals=file.goals,
            budget=file.budget, resources=file.resources, faults=file.faults,
            early_stopping=self._early_stopping(file, settings),
            design=design, trackers=file.trackers,
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

    def _check_arms(self, file: _File, arms: list[Arm]) -> None:
        """Each has a name of its own, which a file system takes, and there is an end of them."""
        known: set[str] = set()
        for arm in arms:
            if len(arm.label) > LONGEST_LABEL:
                raise self.error(
                    ("arms",), f"the arm {arm.label[:40]}... has a name of {len(arm.label)} characters, and "
                    f"{LONGEST_LABEL} are the limit. Give its arm, its center or its values shorter ones"
                )  # fmt: skip
            if arm.label in known:
                raise self.error(("arms",), f"two arms are called {arm.label}. Give one of them another name")
            known.add(arm.label)
        if (count := len(arms) * len(file.seeds)) > MOST_TRIALS:
            raise self.error(
                ("seeds",), f"{len(arms)} arms x {len(file.seeds)} seeds are {count:,} trials, and {MOST_TRIALS:,} are "
                "the limit. Give fewer seeds"
            )  # fmt: skip

    def _check_grid(self, file: _File) -> None:
        cells = math.prod(map(len, file.grid.values())) * len(file.arms)
        if cells > MOST_TRIALS:
            raise self.error(
                ("grid",),
                f"the grid makes {cells:,} arms, and {MOST_TRIALS:,} are the limit. Give fewer values, or make a "
                "`search` of them with `sampler: quasi_random`",
            )
        for path, values in file.grid.items():
            if not values:
                raise self.error(("grid", path), f"grid.{path} is empty. Give it values, or leave it out")
            if (same := equal_values(values)) is not None:
                raise self.error(
                    ("grid", path), f"grid.{path} has {same[0]!r} and {same[1]!r}, which are equal. Remove one of them"
                )

    def _arms(self, file: _File, base: dict[str, Any]) -> list[Arm]:
        arms: list[Arm] = []
        known: dict[str, str] = {}
        self._check_grid(file)
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
    """A value of the grid as a part of a label, which names a folder."""
    # Six digits, unless those are another number's.
    short = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return f"{path.rsplit('.', 1)[-1]}={re.sub(r'[^A-Za-z0-9_.+-]', '-', short)}"


def _product(grid: Mapping[str, list[Scalar]]) -> list[dict[str, Scalar]]:
    points: list[dict[str, Scalar]] = [{}]
    for path, values in grid.items():
        points = [{**point, path: value} for point in points for value in values]
    return points


def parse_override(text: str) -> tuple[str, Any]:
    """Read one `key=value` of `--set`, the value as YAML reads it. Raises InputError."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key.strip()):
        raise InputError(f"--set {text}: write it as key=value, such as training.updates=50.")
    try:
        return key.strip(), read_value(value)
    except ValueError as error:
        raise InputError(f"--set {text[:200]}: the value cannot be read: {error}.") from None


def parse_seeds(text: str) -> list[int]:
    """Read `--seeds`: how many, from 0 on, or a list of them. Raises InputError."""
    if not re.fullmatch(r"[1-9]\d*|\d+(,\d+)+|\d+,", text):
        raise InputError(
            f"--seeds {text}: give how many, such as 8, or a list, such as 0,1,5; a comma ends a list of one."
        )
    words = [word for word in text.split(",") if word]
    if too_long := [word for word in words if len(word) > 20 or int(word) > LARGEST_SEED]:
        raise InputError(f"--seeds: {too_long[0]:.40} is more than the largest seed, {LARGEST_SEED}.")
    if "," not in text and int(text) > MOST_SEEDS:
        raise InputError(f"--seeds {text}: {MOST_SEEDS:,} seeds are the limit.")
    return list(map(int, words)) if "," in text else list(range(int(text)))
