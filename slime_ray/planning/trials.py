"""The trials that an experiment will run, in groups of equal ones, and how early stopping shortens them."""

import math
import random
from bisect import bisect_right, insort
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from slime_ray.config.experiment import EarlyStopping, Experiment, Phase, PromptSet
from slime_ray.config.points import SearchPart, path_of
from slime_ray.config.settings import Settings, fingerprint
from slime_ray.planning.rates import Ends
from slime_ray.runs.inputs import all_settings

SEARCH_SEED = 1000
"""Search trials use a seed of their own, so that confirming a winner with the table's seeds repeats none of them."""
POINTS = 16
"""Points of the search space whose cost stands for that of all, where knobs are searched that change it."""
COSTLESS = ("objective.", "training.learning_rate", "training.weight_decay", "training.warmup_fraction")
"""Beginnings of paths that change nothing about a trial's cost."""


@dataclass(frozen=True)
class Group:
    """Trials of one row of the plan. settings: of each, or some that stand for all of them in turn."""

    name: str
    phase: Phase
    settings: tuple[Settings, ...]
    trials: int

    @property
    def prompts(self) -> PromptSet:
        """Those that its trials answer."""
        return "selection" if self.phase == "search" else "report"


def groups_of(experiment: Experiment) -> list[Group]:
    """Group the trials: arms, search, and at most so many confirmations, since winners may equal an arm."""
    groups = [
        Group(f"arm {arm.label}", "arm", (experiment.settings_with(arm.set),), len(experiment.seeds))
        for arm in experiment.arms
    ]
    for part in experiment.searches:
        points, of = _points(experiment, part), f" {part.label}" if part.label else ""
        groups.append(Group(f"search{of}", "search", points, part.trials))
        groups.append(Group(f"confirmations{of}", "confirm", points, part.seeds * part.rows))
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

    updates: Ends
    finished: Ends


WHOLE = Shortened(np.ones(3), np.ones(3))


def shortened(rule: EarlyStopping | None, *, trials: int, evaluations: int) -> Shortened:
    """Return what successive halving leaves of so many trials that report so often.

    At least: every rung passes one in `reduction`. Expected: asynchronously, over random orders of trials that are as
    good at every rung as at the first; those that reach a rung first always pass it. At most: none is stopped, as where
    each trial is better than all before it.
    """
    if rule is None or rule.rule == "none" or not trials:
        return WHOLE
    rungs = [rule.first]
    while rule.rule != "median" and (rung := rungs[-1] * rule.reduction) < 1:
        rungs.append(rung)
    # A trial hears of a rung at its next evaluation; at the last one there is nothing left to stop.
    marks = [mark for rung in rungs if (mark := math.ceil(rung * evaluations - 1e-9) / evaluations) < 1]
    if not marks:
        return WHOLE
    if rule.rule == "median":
        # About half of the trials lie below the median where they are first compared.
        return Shortened(np.array([marks[0], (1 + marks[0]) / 2, 1.0]), np.array([0.0, 0.5, 1.0]))
    updates, finished = _simulated(marks, rule.reduction, trials)
    shares = float(rule.reduction) ** -np.arange(len(marks) + 1)
    ideal = float(shares @ np.diff([0.0, *marks, 1.0]))
    return Shortened(
        np.array([min(ideal, updates), updates, 1.0]), np.array([min(shares[-1], finished), finished, 1.0])
    )


def _simulated(marks: list[float], reduction: int, trials: int) -> tuple[float, float]:
    """Simulate asynchronous halving (`on_ray.stopping`). marks: where in a trial each rung is heard of."""
    chance, rounds = random.Random(0), max(10, min(200, 20_000 // trials))
    updates = finished = 0.0
    for _ in range(rounds):
        reached: list[list[float]] = [[] for _ in marks]
        for _ in range(trials):
            quality, at = chance.random(), 1.0
            for mark, qualities in zip(marks, reached, strict=True):
                if mark > at:
                    break
                insort(qualities, quality)
                better = len(qualities) - bisect_right(qualities, quality)
                if len(qualities) >= reduction and better >= max(1, len(qualities) // reduction):
                    at = mark
            updates += at
            finished += at == 1.0
    return updates / rounds / trials, finished / rounds / trials
