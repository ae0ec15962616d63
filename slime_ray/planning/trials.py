"""The trials that an experiment will run, in groups of equal ones, and how early stopping shortens them."""

import math
import random
from bisect import bisect_right, insort
from dataclasses import dataclass

from pydantic import ValidationError

from slime_ray.config.experiment import EarlyStopping, Experiment, Phase, PromptSet
from slime_ray.config.points import SearchPart, path_of
from slime_ray.config.settings import Settings, fingerprint
from slime_ray.planning.rates import Range
from slime_ray.runs.inputs import all_settings

SEARCH_SEED = 1000
"""Search trials use a seed of their own, so that confirming a winner with the table's seeds repeats none of them."""
POINTS = 16
"""Points of the search space whose cost stands for that of all, where knobs are searched that change it."""
COSTLESS = ("objective.", "training.learning_rate", "training.weight_decay", "training.warmup_fraction")
"""Beginnings of paths that change nothing about a trial's cost."""


@dataclass(frozen=True)
class Group:
    """Trials of one row of the plan. settings: of each, or some that stand for all of them in turn. seeds: of each."""

    name: str
    phase: Phase
    settings: tuple[Settings, ...]
    seeds: tuple[int, ...]

    @property
    def prompts(self) -> PromptSet:
        """Those that its trials answer."""
        return "selection" if self.phase == "search" else "report"

    @property
    def trials(self) -> int:
        """How many."""
        return len(self.seeds)


def groups_of(experiment: Experiment) -> list[Group]:
    """Group the trials: arms, search, and at most so many confirmations, since winners may equal an arm."""
    groups = [
        Group(f"arm {arm.label}", "arm", (experiment.settings_with(arm.set),), tuple(experiment.seeds))
        for arm in experiment.arms
    ]
    for part in experiment.searches:
        points, of = _points(experiment, part), f" {part.label}" if part.label else ""
        groups.append(Group(f"search{of}", "search", points, (SEARCH_SEED,) * part.trials))
        groups.append(Group(f"confirmations{of}", "confirm", points, confirmation_seeds(experiment, part) * part.rows))
    return [group for group in groups if group.trials]


def confirmation_seeds(experiment: Experiment, part: SearchPart) -> tuple[int, ...]:
    """Return the table's seeds, and further ones above them where these are too few."""
    first = max(experiment.seeds) + 1
    return (*experiment.seeds, *range(first, first + part.seeds))[: part.seeds]


def _points(experiment: Experiment, part: SearchPart) -> tuple[Settings, ...]:
    """Return settings whose cost stands for that of a search's trials: those around it, or points of the space."""
    search, around = part.search, (experiment.settings_with(part.set),)
    if not any(_is_dear(name) for name in search.dimensions):
        return around
    sample, chance = [], random.Random(0)
    for _ in range(POINTS):
        try:
            point = search.at(chance.random() for _ in search.dimensions)
            sample.append(experiment.settings_with(part.values(point)))
        except ValidationError:
            continue
    return tuple(sample) or around


def _is_dear(name: str) -> bool:
    """Tell whether a trial's cost depends on a dimension, as it does on an objective's name."""
    path = path_of(name)
    return path.endswith(".name") or not path.startswith(COSTLESS)


def extremes(experiment: Experiment) -> list[Settings]:
    """Return settings at the ends of every knob that changes the cost, and of arms and entries, for peak memory."""
    ends = [
        part.values({**scenario, path_of(name): end})
        for part in experiment.searches
        for name, scenario, end in part.search.ends()
        if _is_dear(name)
    ]
    candidates = [*all_settings(experiment), *map(experiment.settings_with, ends)]
    return list({fingerprint(settings): settings for settings in candidates}.values())


@dataclass(frozen=True)
class Shortened:
    """What early stopping leaves. updates: share of the search's updates. finished: of its trials, those that are
    trained to the end."""

    updates: Range
    finished: Range


WHOLE = Shortened(Range.exactly(1.0), Range.exactly(1.0))


def shortened(rule: EarlyStopping | None, *, trials: int, evaluations: int) -> Shortened:
    """Return what successive halving leaves of so many trials that report so often.

    low: every rung passes one in `reduction`. expected: asynchronously, over random orders of trials that are as good
    at every rung as at the first; those that reach a rung first always pass it. high: none is stopped, as where each
    trial is better than all before it.
    """
    if rule is None or rule.rule == "none" or not trials:
        return WHOLE
    if rule.rule == "median":
        # About half of the trials lie below the median where they are first compared.
        first = math.ceil(rule.first * evaluations - 1e-9) / evaluations
        return Shortened(Range(first, (1 + first) / 2, 1.0), Range(0.0, 0.5, 1.0))
    rungs: list[float] = []
    while (rung := rule.first * rule.reduction ** len(rungs)) < 1:
        rungs.append(rung)
    # A trial hears of it at its next evaluation; at the last one there is nothing left to stop.
    marks = [math.ceil(rung * evaluations - 1e-9) / evaluations for rung in rungs]
    if marks[0] == 1:
        return WHOLE
    updates, finished = _simulated(marks, rule.reduction, trials)
    ideal, share, ends = marks[0], 1.0, [*marks[1:], 1.0]
    for mark, end in zip(marks, ends, strict=True):
        share = share / rule.reduction if mark < 1 else share
        ideal += share * (end - mark)
    return Shortened(Range(min(ideal, updates), updates, 1.0), Range(min(share, finished), finished, 1.0))


def _simulated(marks: list[float], reduction: int, trials: int) -> tuple[float, float]:
    """Simulate asynchronous halving (`on_ray.stopping`): mean share of updates, and of trials not stopped.

    marks: where in a trial each rung is heard of.
    """
    chance = random.Random(0)
    rounds = max(10, min(200, 20_000 // trials))
    updates = finished = 0.0
    for _ in range(rounds):
        reached: list[list[float]] = [[] for _ in marks]
        for _ in range(trials):
            quality = chance.random()
            at = 1.0
            for mark, qualities in zip(marks, reached, strict=True):
                if mark > at:
                    break
                insort(qualities, quality)
                better = len(qualities) - bisect_right(qualities, quality)
                if len(qualities) >= reduction and better >= max(1, len(qualities) // reduction):
                    at = min(at, mark)
            updates += at
            finished += at == 1.0
    return updates / rounds / trials, finished / rounds / trials
