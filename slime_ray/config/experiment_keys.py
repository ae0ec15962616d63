"""The keys of an experiment's YAML, and what is wrong between keys that are valid by themselves."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from slime_ray.config.ablation import AnyAblation
from slime_ray.config.experiment import MOST_TRIALS, Arm, SweepSettings
from slime_ray.config.league_file import LeagueKeys
from slime_ray.config.metrics import JUDGED, METRICS, Constraint, contradiction
from slime_ray.config.search_file import SearchKeys
from slime_ray.config.settings import Settings
from slime_ray.config.space import Scalar
from slime_ray.config.strict import LARGEST_SEED, LONGEST_LABEL, SFT_SEED, Label, Once, RunName, Seed
from slime_ray.config.yaml_source import KeyPath
from slime_ray.errors import near


class ExperimentKeys(SearchKeys, SweepSettings):
    """The keys of the YAML, before presets, arms and paths are resolved."""

    name: RunName
    """Name of the run and its folder: letters, digits, dots, dashes and underscores."""
    summary: str | None = None
    """One line for `slime-ray spaces`."""
    preset: str | None = None
    """Presets that `base` begins with, joined by slashes; later ones win."""
    base: dict[str, Any] = {}
    """What all trials have in common, laid over the preset."""
    arms: dict[Label, dict[str, Any]] = {}
    """Rows of the table by label, each as paths and values that it sets over `base`."""
    grid: dict[str, Annotated[list[Scalar], Field(min_length=1), Once]] = {}
    """Paths with lists of values; every arm runs with every combination."""
    league: LeagueKeys | None = None
    """Objectives compared at an equal tuning budget."""
    ablate: AnyAblation | None = None
    """A design, which makes the arms itself."""
    across: dict[str, Annotated[list[Seed], Once]] = {}
    """`sft.seed: [0, 1, 2]` runs league or design from each of these SFT checkpoints."""


def refusals(
    file: ExperimentKeys, settings: Settings, arms: Sequence[Arm], arm_settings: Iterable[Settings]
) -> Iterator[tuple[KeyPath, str]]:
    """Yield what is wrong between parts of a file. arm_settings: of the arms' trials."""
    if file.search and file.budget.trials == 0:
        yield ("budget",), "there is a search but `budget.trials` is 0. Give the number of trials"
    if not file.search and file.budget.trials:
        yield ("budget", "trials"), "there are trials to spend but no `search` says on what"
    confirm_seeds = file.league.seeds if file.league else file.budget.confirm.seeds if file.budget.confirm else 0
    if confirm_seeds and max(file.seeds) + confirm_seeds > LARGEST_SEED:
        yield ("seeds",), f"winners are confirmed with seeds behind {max(file.seeds)}, and {LARGEST_SEED} is the last"
    if (count := len(arms) * len(file.seeds)) > MOST_TRIALS:
        yield (
            ("seeds",),
            f"{len(arms)} arms x {len(file.seeds)} seeds are {count:,} trials, and {MOST_TRIALS:,} are the limit. "
            "Give fewer seeds",
        )
    if file.resources.strategy == "fsdp2":
        for reason, way_out in dict.fromkeys(each.undivided or ("", "") for each in (settings, *arm_settings)):
            if reason:
                yield ("resources", "strategy"), f"{reason}, and fsdp2 divides the model. Set strategy: ddp{way_out}"
    yield from _arm_refusals(arms)
    yield from _goal_refusals(file, settings)
    yield from _constraint_refusals(file, settings)
    yield from _budget_refusals(file, settings)


def across_refusals(
    file: ExperimentKeys, settings: Settings, arms: Mapping[str, Settings]
) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with the key `across`. arms: settings of each arm of the file, by label."""
    if file.across and file.league is None and file.ablate is None:
        yield ("across",), "only entries of a `league` and cells of `ablate` are run across checkpoints. Leave it out"
    for path, seeds in file.across.items():
        if path != SFT_SEED:
            example = f"{{{SFT_SEED}: [0, 1, 2]}}"
            yield ("across", path), f"across.{path}: there is {SFT_SEED} alone, as across: {example}. Leave {path} out"
        elif settings.sft is None:
            yield ("across", path), "sft is null, so there are no SFT checkpoints. Leave across out, or set sft"
        elif len(seeds) < 2:
            yield ("across", path), f"across.{path} needs two seeds or more. For one checkpoint set {path} in base"
    for label, arm_settings in arms.items():
        if file.across and arm_settings.sft != settings.sft:
            sentence = f"arm {label} has an sft of its own, and across runs it from every checkpoint"
            yield ("across",), f"{sentence}. Leave sft out of the arm"


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


def _goal_refusals(file: ExperimentKeys, settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    for goal in file.goals:
        if goal not in METRICS:
            yield ("goals", goal), f"goals.{goal}: there is no such metric{near(goal, METRICS)}"
        elif lack := _metric_lack(goal, settings):
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


def _metric_lack(column: str, settings: Settings) -> str | None:
    """Why no trial of these settings has this number, and the way out; None where it has."""
    if column in JUDGED and settings.evaluation.judge.name == "none":
        return "needs a judge, and evaluation.judge is none. Set a judge"
    if column == "retention" and settings.evaluation.retention is None:
        return "needs evaluation.retention, which is null. Name its prompts and its scorer there"
    if column == "format_valid" and settings.data.task is None:
        return f"is measured on embedded tasks alone, and data.train is {settings.data.label}. Leave it out"
    return None


def _constraint_refusals(file: ExperimentKeys, settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    if file.constraints and not (file.search or file.league):
        yield ("constraints",), "`constraints` has no effect without a `search` or a `league`"
    constraints = [Constraint.parse(text) for text in file.constraints]
    for index, constraint in enumerate(constraints):
        if constraint.column not in METRICS:
            sentence = f"{constraint.column}: there is no such metric{near(constraint.column, METRICS)}"
            yield ("constraints", index), sentence
        elif lack := _metric_lack(constraint.column, settings):
            yield ("constraints", index), f"{constraint.column} {lack}"
    if clash := contradiction(constraints):
        yield ("constraints",), f"no trial can keep {clash[0]} and {clash[1]} together. Change one of them"


def _budget_refusals(file: ExperimentKeys, settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    """Limits that this experiment can never reach: they would never end it."""
    budget, judge = file.budget, settings.evaluation.judge
    gpus = file.resources.gpu_per_worker > 0
    if budget.gpu_hours is not None and not gpus:
        yield ("budget", "gpu_hours"), ("trials hold no GPU: resources.gpu_per_worker is 0. Give budget.hours instead")
    if budget.judge_calls is not None and not judge.endpoints:
        yield ("budget", "judge_calls"), f"the judge {judge.name} makes no calls that are paid. Leave it out"
    unpriced_models = [endpoint.model for endpoint in judge.endpoints if endpoint.prices is None]
    has_prices = bool(judge.endpoints) and not unpriced_models
    if budget.cost is not None and unpriced_models and len(judge.endpoints) > len(unpriced_models):
        yield (
            ("budget", "cost"),
            f"the panel's judge {unpriced_models[0]} has no prices, so its cost would not count. Add them",
        )
    if budget.cost is not None and not (has_prices or (gpus and budget.price_per_gpu_hour is not None)):
        yield (
            ("budget", "cost"),
            "nothing here has a price. Give budget.price_per_gpu_hour for trials that hold GPUs, or "
            "evaluation.judge.prices for a judge that is paid",
        )
