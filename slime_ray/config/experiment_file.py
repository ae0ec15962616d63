"""Reading an experiment's YAML: resolving presets, arms and paths, and saying what is wrong where."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, get_args

from slime_ray.config.ablation import Ablation, DesignError
from slime_ray.config.complaints import FilePart
from slime_ray.config.design import Design
from slime_ray.config.expansion import expand
from slime_ray.config.experiment import (
    MOST_SEEDS,
    MOST_TRIALS,
    Arm,
    EarlyStopping,
    Estimate,
    Experiment,
    SweepSettings,
    with_values,
)
from slime_ray.config.experiment_keys import ExperimentKeys, across_refusals, refusals
from slime_ray.config.league import League
from slime_ray.config.league_file import LeagueReader
from slime_ray.config.points import Search
from slime_ray.config.presets import merge, preset_base
from slime_ray.config.search_file import SearchReader
from slime_ray.config.settings import Settings, fingerprint
from slime_ray.config.space import Scalar
from slime_ray.config.strict import LARGEST_SEED, SFT_SEED, at_checkpoint
from slime_ray.config.yaml_source import Complaint, KeyPath, YamlSource, from_mapping, load_yaml, read_value
from slime_ray.errors import InputError


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
    changes = from_mapping(overrides or {}).data
    data = with_values(source.data, {from_top(key): value for key, value in changes.items()})
    if name is not None:
        data = {**data, "name": name}
    return _Resolver(YamlSource(source.path, data, source.lines)).resolve()


def from_top(key: str) -> str:
    """A path from the top of the file; one that begins with a key of `base` may leave that out."""
    return f"base.{key}" if key.split(".")[0] in Settings.model_fields else key


class _Resolver:
    """Turns a parsed file into an Experiment, and every complaint into a sentence with its line."""

    def __init__(self, source: YamlSource):
        self.data, self.part = source.data, FilePart(source)
        self.error, self.check = self.part.error, self.part.check
        self.sentences: list[tuple[int, str]] = []

    def resolve(self) -> Experiment:
        with self.collect_complaints():
            file: ExperimentKeys = self.check(ExperimentKeys, self.data, ())
        with self.collect_complaints():
            base, settings = self._base(self.data)
        self.raise_complaints()
        if settings.model.kept:
            # What it stands for, where the adapter is: results are read elsewhere, and knobs would replace the word.
            base = merge(base, {"model": {"lora": settings.model.model_dump()["lora"]}})
        arms: list[Arm] = []
        design: Design | None = None
        search: Search | None = None
        league: League | None = None
        early = file.early_stopping
        with self.collect_complaints():
            if file.ablate is None:
                arms = self._arms(file, base)
            else:
                arms, design = self._ablation(file, file.ablate, base, settings)
        with self.collect_complaints():
            if file.league is None:
                search = SearchReader(file, base, self.part).read(file.budget.trials)
        with self.collect_complaints():
            league = self._league(file, base)
        with self.collect_complaints():
            early = self._early_stopping(file, settings)
        # Of arms that are wrong by themselves it was said above.
        arm_settings = {}
        if not self.sentences:
            arm_settings = {arm.label: Settings.model_validate(with_values(base, arm.set)) for arm in arms}
            self.add_complaints(across_refusals(file, settings, arm_settings))
        seeds = [] if self.sentences else file.across.get(SFT_SEED, [])
        if seeds:
            base = with_values(base, {SFT_SEED: seeds[0]})
            arms = [
                Arm(label=at_checkpoint(arm.label, seed), set={**arm.set, SFT_SEED: seed})
                for seed in seeds
                for arm in arms
            ]
            league = league and league.across(seeds)
            design = design and design.across(seeds)
        self.add_complaints(refusals(file, settings, arms, arm_settings.values()))
        if not self.sentences and not arms and search is None and league is None:
            raise self.error(
                (), "nothing to run. Give `arms`, `ablate`, `league`, or `search` with `budget: {trials: N}`"
            )
        self.raise_complaints()
        sweep = {key: getattr(file, key) for key in SweepSettings.model_fields} | {"early_stopping": early}
        return Experiment(name=file.name, base=base, arms=arms, search=search, design=design, league=league, **sweep)

    def add_complaints(self, complaints: Iterable[tuple[KeyPath, str]]) -> None:
        """Add complaints to those that `raise_complaints` raises together."""
        for keys, sentence in complaints:
            self.sentences += self.error(keys, sentence).sentences

    def _league(self, file: ExperimentKeys, base: dict[str, Any]) -> League | None:
        if file.league is None:
            return None
        for key in ("search", "require", "start_from", "ablate"):
            if getattr(file, key):
                raise self.error((key,), f"a league's entries have their own. Remove `{key}`, or `league`")
        for key, way in (("trials", "league.trials"), ("confirm", "league.seeds")):
            if getattr(file.budget, key):
                raise self.error(("budget", key), f"a league has an equal budget for each entry: {way}. Leave it out")
        return LeagueReader(file.league, base, file.sampler, self.part).read(file.goals, file.constraints)

    @contextmanager
    def collect_complaints(self) -> Iterator[None]:
        """Add a complaint that is raised inside to those that `raise_complaints` raises."""
        try:
            yield
        except Complaint as complaint:
            self.sentences += complaint.sentences

    def raise_complaints(self) -> None:
        """Raise all complaints so far as one."""
        if self.sentences:
            raise Complaint(self.sentences)

    def _base(self, data: Mapping[str, Any]) -> tuple[dict[str, Any], Settings]:
        """What all trials have in common, also where something else in the file is wrong."""
        preset, over = data.get("preset"), data.get("base")
        under = preset_base(preset) if isinstance(preset, str) and preset else {}
        base = merge(under, over if isinstance(over, dict) else {})
        return base, self.check(Settings, base, ("base",))

    def _arms(self, file: ExperimentKeys, base: dict[str, Any]) -> list[Arm]:
        arms: list[Arm] = []
        labels: dict[str, str] = {}
        self._check_grid(file)
        for name, values in file.arms.items():
            for combination in product(*file.grid.values()):
                point = dict(zip(file.grid, combination, strict=True))
                label = "-".join([name, *(_label_part(path, value) for path, value in point.items())])
                arms.append(Arm(label=label, set={**values, **point}))
                with self.collect_complaints():
                    plain_settings = with_values(base, arms[-1].set)
                    settings = self.check(Settings, plain_settings, ("arms", name), where=f"arm {name}: ")
                    if (twin := labels.setdefault(fingerprint(settings), label)) != label:
                        raise self.error(
                            ("arms", name), f"arm {label} is the same as arm {twin}: every setting is equal. Remove one"
                        )
        if file.grid and not file.arms:
            raise self.error(("grid",), "a grid multiplies the arms, and there are none. Add `arms: {full: {}}`")
        return arms

    def _check_grid(self, file: ExperimentKeys) -> None:
        cells = math.prod(map(len, file.grid.values())) * len(file.arms)
        if cells > MOST_TRIALS:
            raise self.error(
                ("grid",),
                f"the grid makes {cells:,} arms, and {MOST_TRIALS:,} are the limit. Give fewer values, or make a "
                "`search` of them with `sampler: quasi_random`",
            )

    def _ablation(
        self, file: ExperimentKeys, ablation: Ablation, base: dict[str, Any], settings: Settings
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
        try:
            return expand(ablation, base, settings, self.part)
        except DesignError as error:
            raise self.error(("ablate", *error.keys), str(error)) from None

    def _early_stopping(self, file: ExperimentKeys, settings: Settings) -> EarlyStopping | None:
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


def _label_part(path: str, value: Scalar) -> str:
    """Return a value of the grid as a part of a label, which names a folder."""
    # Six digits, unless those are another number's.
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return f"{path.rsplit('.', 1)[-1]}={re.sub(r'[^A-Za-z0-9_.+-]', '-', text)}"


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
