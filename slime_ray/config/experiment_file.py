"""Reading an experiment's YAML: resolving presets, arms and paths, and saying what is wrong where."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from slime_ray.config.ablation import Ablation, AnyAblation, Values
from slime_ray.config.complaints import explain
from slime_ray.config.design import Design
from slime_ray.config.expansion import expand
from slime_ray.config.experiment import (
    MOST_SEEDS,
    MOST_TRIALS,
    Arm,
    Budget,
    EarlyStopping,
    Estimate,
    Experiment,
    Faults,
    Resources,
    with_values,
)
from slime_ray.config.league import League
from slime_ray.config.league_file import LeagueKeys, LeagueReader
from slime_ray.config.metrics import JUDGED, METRICS, Constraint, contradiction
from slime_ray.config.parts import Unfit, idle_knobs
from slime_ray.config.points import Search
from slime_ray.config.presets import merge, preset_base
from slime_ray.config.search_file import SearchKeys, SearchReader
from slime_ray.config.settings import Settings, fingerprint
from slime_ray.config.space import Scalar, equal_values
from slime_ray.config.strict import LARGEST_SEED, LONGEST_LABEL, Label, RunName, Seed, Strict
from slime_ray.config.trackers import DEFAULT, Tracker
from slime_ray.config.yaml_source import Complaint, KeyPath, YamlSource, from_mapping, load_yaml, read_value
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
    league: LeagueKeys | None = None
    """Objectives compared at an equal tuning budget; in place of `search`."""
    ablate: AnyAblation | None = None
    """A design, which makes the arms itself; in place of `arms` and `grid`."""
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=MOST_SEEDS)] = [0]
    """Every arm is run with each of them."""
    goals: dict[str, Literal["maximize", "minimize"]] = {"win_rate": "maximize", "stability": "maximize"}
    """What the search is after: any number that is measured of a trial, such as win_rate; one or several."""
    constraints: list[str] = []
    """What a winner keeps: `column <= number` or `column >= number`, such as `broken_outputs <= 0.05`."""
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
    path: str | Path | Mapping[str, Any], *, overrides: Mapping[str, Any] | None = None, name: str | None = None
) -> Experiment:
    """Read, resolve and check one experiment.

    path: of the file, or its content as a mapping. overrides: dotted paths from the top of the file
    (`base.training.updates`, `budget.trials`); a path that begins with a key of `base` may leave `base.` out. name:
    replaces the file's. Raises InputError, with file and line, for all that is wrong, a sentence a line; what only a
    valid part of the file would show comes when that is valid.
    """
    source = from_mapping(path) if isinstance(path, Mapping) else load_yaml(path)
    data = source.data
    for key, value in (overrides or {}).items():
        data = with_values(data, {from_top(key): value})
    if name is not None:
        data = {**data, "name": name}
    return _Resolver(YamlSource(source.path, data, source.lines)).resolve()


def from_top(key: str) -> str:
    """A path from the top of the file; one that begins with a key of `base` may leave that out."""
    return f"base.{key}" if key.split(".")[0] in Settings.model_fields else key


class _Resolver:
    """Turns a parsed file into an Experiment, and every complaint into a sentence with its line."""

    def __init__(self, source: YamlSource):
        self.source = source
        self.sentences: list[tuple[int, str]] = []

    def resolve(self) -> Experiment:
        with self.noting():
            file: _File = self.check(_File, self.source.data, ())
        with self.noting():
            base, settings = self._base(self.source.data)
        self.refuse()
        arms: list[Arm] = []
        design: Design | None = None
        search: Search | None = None
        league: League | None = None
        early = file.early_stopping
        with self.noting():
            if file.ablate is None:
                arms = self._arms(file, base)
            else:
                arms, design = self._ablation(file, file.ablate, base, settings)
        with self.noting():
            if file.league is None:
                search = SearchReader(file, base, check=self.check, error=self.error).read(file.budget.trials)
        with self.noting():
            league = self._league(file, base)
        with self.noting():
            early = self._early_stopping(file, settings)
        for keys, sentence in _refusals(file, settings, arms):
            self.sentences += self.error(keys, sentence).sentences
        if not self.sentences and not arms and search is None and league is None:
            raise self.error(
                (), "nothing to run. Give `arms`, `ablate`, `league`, or `search` with `budget: {trials: N}`"
            )
        self.refuse()
        return Experiment(
            name=file.name, base=base, arms=arms, search=search, seeds=file.seeds, goals=file.goals,
            constraints=[str(Constraint.parse(text)) for text in file.constraints],
            budget=file.budget, resources=file.resources, faults=file.faults, early_stopping=early,
            design=design, league=league, trackers=file.trackers,
        )  # fmt: skip

    def _league(self, file: _File, base: dict[str, Any]) -> League | None:
        if file.league is None:
            return None
        for key in ("search", "require", "start_from", "ablate"):
            if getattr(file, key):
                raise self.error((key,), f"a league's entries have their own. Remove `{key}`, or `league`")
        for key, way in (("trials", "league.trials"), ("confirm", "league.seeds")):
            if getattr(file.budget, key):
                raise self.error(("budget", key), f"a league has an equal budget for each entry: {way}. Leave it out")
        return LeagueReader(
            file.league, base, sampler=file.sampler, goals=file.goals, constraints=file.constraints, check=self.check,
            error=self.error,
        ).read()  # fmt: skip

    def error(self, keys: KeyPath, sentence: str) -> Complaint:
        return self.source.error((keys, sentence))

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Keep what is wrong for later, when all is known that is."""
        try:
            yield
        except Complaint as complaint:
            self.sentences += complaint.sentences

    def refuse(self) -> None:
        """Raise what is wrong so far."""
        if self.sentences:
            raise Complaint(self.sentences)

    def check(self, model: Any, value: Any, at: KeyPath, *, where: str = "") -> Any:
        """Validate, turning pydantic's complaints into ours. `at`: where `value` stands in the file."""
        try:
            return TypeAdapter(model).validate_python(value)
        except ValidationError as error:
            complaints = [((*at, *keys), where + sentence) for keys, sentence in explain(error, model)]
            raise self.source.error(*complaints) from None

    def _base(self, data: Mapping[str, Any]) -> tuple[dict[str, Any], Settings]:
        """What all trials have in common, also where something else in the file is wrong."""
        preset, over = data.get("preset"), data.get("base")
        under = preset_base(preset) if isinstance(preset, str) and preset else {}
        base = merge(under, over if isinstance(over, dict) else {})
        return base, self.check(Settings, base, ("base",))

    def _arms(self, file: _File, base: dict[str, Any]) -> list[Arm]:
        arms: list[Arm] = []
        known: dict[str, str] = {}
        self._check_grid(file)
        for name, values in file.arms.items():
            for point in _product(file.grid):
                label = "-".join([name, *(_short(path, value) for path, value in point.items())])
                arms.append(Arm(label=label, set={**values, **point}))
                with self.noting():
                    chosen = with_values(base, arms[-1].set)
                    settings = self.check(Settings, chosen, ("arms", name), where=f"arm {name}: ")
                    if (same := known.setdefault(fingerprint(settings), label)) != label:
                        raise self.error(
                            ("arms", name), f"arm {label} is the same as arm {same}: every setting is equal. Remove one"
                        )
        if file.grid and not file.arms:
            raise self.error(("grid",), "a grid multiplies the arms, and there are none. Add `arms: {full: {}}`")
        return arms

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

    def _early_stopping(self, file: _File, settings: Settings) -> EarlyStopping | None:
        """With the goals that trials are ranked by as they can be told during training."""
        early = file.early_stopping
        if early is None or early.rule == "none":
            return early
        at: KeyPath = ("early_stopping",)
        if not file.search and not file.league:
            raise self.error(at, "only trials of a search are stopped early, and there is no `search`")
        judged, evaluations = settings.judged_on_the_way, settings.training.evaluations
        if early.rule == "pareto" and early.goals is None:
            names = {"preference_accuracy" if goal == "win_rate" and not judged else goal: goal for goal in file.goals}
            goals = {name: file.goals[goal] for name, goal in names.items() if name in get_args(Estimate)}
            if not goals:
                raise self.error(
                    at,
                    f"none of the goals {', '.join(file.goals)} is known during training. Set early_stopping.goals to "
                    f"any of {', '.join(get_args(Estimate))}, or leave early_stopping out",
                )
            early = early.model_copy(update={"goals": goals})
        if "win_rate" in early.ranked_by and not judged:
            raise self.error(
                at,
                "early_stopping ranks by win_rate, and nothing is judged during training. Set sentinel: {judge: true} "
                "(sentinel.action warn or stop, and a judge), or rank by preference_accuracy",
            )
        if (evaluations - 1) / evaluations < early.first:
            raise self.error(
                at,
                f"no trial would be stopped: training.evaluations is {evaluations}, and none of them lies between "
                f"early_stopping.first, {early.first:g} of the updates, and the end. Set more evaluations",
            )
        return early


def _refusals(file: _File, settings: Settings, arms: Sequence[Arm]) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong between parts of a file that are valid by themselves."""
    # What a design takes away it compares at the values of its centers, and a search would move these.
    compared = idle_knobs(file.ablate.takes_away if file.ablate else ())
    for path in file.search:
        if path in compared:
            yield (
                ("search", path),
                f"{path} is searched, and the design asks what {compared[path]} does at the value of its center. "
                "Search in a file of its own first, or leave the component out of `ablate.components`",
            )
    if file.search and file.budget.trials == 0:
        yield ("budget",), "there is a search but `budget.trials` is 0. Give the number of trials"
    if not file.search and file.budget.trials:
        yield ("budget", "trials"), "there are trials to spend but no `search` says on what"
    if len(set(file.seeds)) < len(file.seeds):
        yield ("seeds",), f"{file.seeds} names a seed twice; the same trial would count double"
    further = file.league.seeds if file.league else file.budget.confirm.seeds if file.budget.confirm else 0
    if further and max(file.seeds) + further > LARGEST_SEED:
        yield ("seeds",), f"winners are confirmed with seeds behind {max(file.seeds)}, and {LARGEST_SEED} is the last"
    if (count := len(arms) * len(file.seeds)) > MOST_TRIALS:
        yield (
            ("seeds",),
            f"{len(arms)} arms x {len(file.seeds)} seeds are {count:,} trials, and {MOST_TRIALS:,} are the limit. "
            "Give fewer seeds",
        )
    adapters = [one for one in (settings.model.lora, settings.sft_model.lora if settings.sft else None) if one]
    if file.resources.strategy == "fsdp2" and any(one.dora for one in adapters):
        yield (
            ("resources", "strategy"),
            "DoRA takes norms of whole weights, and fsdp2 divides these. Set strategy: ddp, or dora: false",
        )
    if len(set(file.trackers)) < len(file.trackers):
        yield ("trackers",), f"{file.trackers} names a tracker twice. Leave one out"
    yield from _arm_refusals(arms)
    yield from _goal_refusals(file, settings)
    yield from _constraint_refusals(file, settings)
    yield from _budget_refusals(file, settings)


def _arm_refusals(arms: Sequence[Arm]) -> Iterator[tuple[KeyPath, str]]:
    """Each has a name of its own, which a file system takes."""
    for label, count in Counter(arm.label for arm in arms).items():
        if len(label) > LONGEST_LABEL:
            yield (
                ("arms",),
                f"the arm {label[:40]}... has a name of {len(label)} characters, and {LONGEST_LABEL} are the limit. "
                "Give its arm, its center or its values shorter ones",
            )
        if count > 1:
            yield ("arms",), f"two arms are called {label}. Give one of them another name"


def _goal_refusals(file: _File, settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    for goal in file.goals:
        if goal not in METRICS:
            yield ("goals", goal), f"goals.{goal}: there is no such metric{near(goal, METRICS)}"
        elif lack := _unmeasured(goal, settings):
            yield (
                ("goals", goal),
                f"goals.{goal} {lack}, or use goals: {{preference_accuracy: maximize, stability: maximize}}",
            )
    if not file.goals:
        yield ("goals",), "there is no goal. Leave the key out for win_rate and stability"
    elif set(file.goals) <= {"preference_accuracy", "mean_margin"} and (file.search or file.league):
        yield (
            ("goals",),
            ("accuracy and margin rise while a model collapses; a search needs stability or win_rate beside them"),
        )


def _unmeasured(column: str, settings: Settings) -> str | None:
    """Why no trial of these settings has this number, and the way out; None where it has."""
    if column in JUDGED and settings.evaluation.judge.name == "none":
        return "needs a judge, and evaluation.judge is none. Set a judge"
    if column == "retention" and settings.evaluation.retention is None:
        return "needs evaluation.retention, which is null. Name its prompts and its scorer there"
    if column == "format_valid" and settings.data.task is None:
        return f"is measured on embedded tasks alone, and data.train is {settings.data.train}. Leave it out"
    return None


def _constraint_refusals(file: _File, settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    if file.constraints and not (file.search or file.league):
        yield ("constraints",), "`constraints` has no effect without a `search` or a `league`"
    known: list[Constraint] = []
    for index, text in enumerate(file.constraints):
        try:
            one = Constraint.parse(text)
        except ValueError as error:
            yield ("constraints", index), str(error)
            continue
        known.append(one)
        if one.column not in METRICS:
            yield ("constraints", index), f"{one.column}: there is no such metric{near(one.column, METRICS)}"
        elif lack := _unmeasured(one.column, settings):
            yield ("constraints", index), f"{one.column} {lack}"
    if clash := contradiction(known):
        yield ("constraints",), f"no trial can keep {clash[0]} and {clash[1]} together. Change one of them"


def _budget_refusals(file: _File, settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    """Limits that this experiment can never reach: they would never end it."""
    budget, judge = file.budget, settings.evaluation.judge
    gpus = file.resources.gpu_per_worker > 0
    if budget.gpu_hours is not None and not gpus:
        yield ("budget", "gpu_hours"), ("trials hold no GPU: resources.gpu_per_worker is 0. Give budget.hours instead")
    if budget.judge_calls is not None and not judge.endpoints:
        yield ("budget", "judge_calls"), f"the judge {judge.name} makes no calls that are paid. Leave it out"
    unpriced = [endpoint.model for endpoint in judge.endpoints if endpoint.prices is None]
    priced = bool(judge.endpoints) and not unpriced
    if budget.cost is not None and unpriced and len(judge.endpoints) > len(unpriced):
        yield (
            ("budget", "cost"),
            f"the panel's judge {unpriced[0]} has no prices, so its cost would not count. Add them",
        )
    if budget.cost is not None and not (priced or (gpus and budget.price_per_gpu_hour is not None)):
        yield (
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
