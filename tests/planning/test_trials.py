"""The trials of an experiment, and what early stopping leaves of them, beside a simulation of it."""

import random
from statistics import mean

import numpy as np
import pytest

from slime_ray.config.experiment import EarlyStopping
from slime_ray.planning.estimate import schedule
from slime_ray.planning.trials import WHOLE, confirmation_seeds, groups_of, shortened
from slime_ray.planning.work import CURVE_PAIRS
from slime_ray.training import sentinel

from .conftest import TINY

SEARCH = """\
arms: {sft: {training.updates: 0}, slime: {}}
seeds: [0, 3]
search: {objective.anchor_weight: {log_uniform: [0.01, 2.0]}}
budget: {trials: 5, confirm: {best: 2, seeds: 3}}
"""


def test_arms_search_and_confirmations(load):
    experiment = load(TINY + SEARCH)
    groups = {group.name: group for group in groups_of(experiment)}
    counts = {"arm sft": 2, "arm slime": 2, "search": 5, "confirmations": 6}
    assert {name: group.trials for name, group in groups.items()} == counts
    # The table's seeds, and further ones above them.
    assert confirmation_seeds(experiment, experiment.searches[0]) == (0, 3, 4)
    assert groups["search"].prompts == "selection"
    assert groups["confirmations"].prompts == "report"
    # Knobs of the objective change no cost: the base stands for all points.
    assert len(groups["search"].settings) == 1


def test_knobs_that_change_the_cost_are_drawn(load):
    text = TINY + SEARCH.replace("search: {", "search: {training.pairs_per_update: {choice: [4, 8, 16]}, ")
    (search,) = [group for group in groups_of(load(text)) if group.phase == "search"]
    assert {settings.training.pairs_per_update for settings in search.settings} == {4, 8, 16}


def halved(trials: int, *, first: float, reduction: int, evaluations: int, chance: random.Random) -> list[float]:
    """Where each of the trials ends that report one after another, each as good at every rung as at the first.

    A trial that reaches a rung is stopped unless it is among the best 1/reduction of those that have reached it, itself
    included; the first `reduction` - 1 of them go on whatever they are.
    """
    rungs = [first * reduction**k for k in range(64) if first * reduction**k < 1]
    reached: dict[float, list[float]] = {rung: [] for rung in rungs}
    ends = []
    for _ in range(trials):
        quality, end = chance.random(), 1.0
        for mark in range(1, evaluations + 1):
            at, before = mark / evaluations, (mark - 1) / evaluations
            verdicts = []
            for rung in rungs:
                if before < rung <= at:
                    reached[rung].append(quality)
                    place = sorted(reached[rung], reverse=True).index(quality)
                    kept = max(1, len(reached[rung]) // reduction)
                    verdicts.append(len(reached[rung]) >= reduction and place >= kept)
            if any(verdicts):
                end = at
                break
        ends.append(end)
    return ends


@pytest.mark.parametrize(
    ("trials", "first", "reduction", "evaluations"),
    [(27, 0.25, 3, 4), (8, 0.25, 3, 8), (64, 0.125, 2, 8), (20, 0.25, 4, 4), (30, 0.25, 3, 2)],
)
def test_early_stopping_leaves_what_a_simulation_leaves(trials, first, reduction, evaluations):
    chance = random.Random(1)
    how = {"first": first, "reduction": reduction, "evaluations": evaluations}
    ends = [end for _ in range(200) for end in halved(trials, **how, chance=chance)]
    rule = EarlyStopping(reduction=reduction, first=first)
    short = shortened(rule, trials=trials, evaluations=evaluations)
    low, expected, high = short.updates
    assert expected == pytest.approx(mean(ends), abs=0.02)
    assert short.finished[1] == pytest.approx(mean(end == 1 for end in ends), abs=0.03)
    assert low <= expected < high == short.finished[2] == 1


def test_ideal_halving_by_hand():
    """A third goes on from 1/5 to 3/5, and a ninth to the end: 1/5 + 1/3 * 2/5 + 1/9 * 2/5."""
    short = shortened(EarlyStopping(reduction=3, first=0.2), trials=3000, evaluations=5)
    assert short.updates[0] == pytest.approx(1 / 5 + 2 / 15 + 2 / 45, abs=0.003)
    assert short.finished[0] == pytest.approx(1 / 9, abs=0.003)
    assert short.updates[1] == pytest.approx(short.updates[0], abs=0.01)
    # Rungs at 0.2 and 0.6 are heard of at the evaluations that follow: at 1/2, and at the end, which stops nothing.
    late = shortened(EarlyStopping(reduction=3, first=0.2), trials=3000, evaluations=2)
    assert late.updates[0] == pytest.approx(1 / 2 + 1 / 6, abs=0.003)
    assert late.finished[0] == pytest.approx(1 / 3, abs=0.003)
    assert shortened(None, trials=9, evaluations=5) is WHOLE
    assert shortened(EarlyStopping(), trials=9, evaluations=1) is WHOLE


def test_what_is_repeated_to_load_no_torch_is_what_it_is_there():
    assert sentinel.CURVE_PAIRS == CURVE_PAIRS


def test_a_schedule_by_hand():
    """On two: 3 and 2 at once, then 2 after the second, then 1 after the first: done after 4."""
    jobs = [np.array([0.0, job, 2 * job]) for job in (3.0, 2.0, 2.0, 1.0)]
    assert schedule(jobs, 2).tolist() == [0, 4, 8]
    assert schedule([], 2).tolist() == [0, 0, 0]
