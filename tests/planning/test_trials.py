"""The trials of an experiment, and what early stopping leaves of them, beside a simulation of it."""

import random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_ray.experiment import EarlyStopping
from slime_ray.on_ray.stopping import build_rule
from slime_ray.planning.estimate import _schedule
from slime_ray.planning.ranges import Range, total
from slime_ray.planning.trials import WHOLE, groups_of, shortened

from .conftest import TINY

SEARCH = """\
arms: {sft: {training.updates: 0}, slime: {}}
seeds: [0, 3]
search: {objective.anchor_weight: {log_uniform: [0.01, 2.0]}}
budget: {trials: 5, confirm: {best: 2, seeds: 3}}
"""


def test_arms_search_and_confirmations(load):
    groups = {group.name: group for group in groups_of(load(TINY + SEARCH))}
    assert {name: group.seeds for name, group in groups.items()} == {
        "arm sft": (0, 3),
        "arm slime": (0, 3),
        "search": (1000,) * 5,
        # The table's seeds, and further ones above them.
        "confirmations": (0, 3, 4) * 2,
    }
    assert groups["search"].prompts == "selection"
    assert groups["confirmations"].prompts == "report"
    # Knobs of the objective change no cost: the base stands for all points.
    assert len(groups["search"].settings) == 1


def test_knobs_that_change_the_cost_are_drawn(load):
    text = TINY + SEARCH.replace("search: {", "search: {training.pairs_per_update: {choice: [4, 8, 16]}, ")
    (search,) = [group for group in groups_of(load(text)) if group.phase == "search"]
    assert {settings.training.pairs_per_update for settings in search.settings} == {4, 8, 16}


class Reports:
    """Trials of random quality that report to the real rule, one after another."""

    def __init__(self, rule: EarlyStopping, evaluations: int, chance: random.Random):
        built = build_rule(rule)
        assert built is not None
        self.rule, self.evaluations, self.chance = built, evaluations, chance
        (self.name,) = rule.ranked_by

    def run(self, trials: int) -> tuple[float, float]:
        """Mean share of updates, and of trials that were not stopped before their end."""
        ends = [self._one(f"{number}") for number in range(trials)]
        return mean(ends), mean(end == 1 for end in ends)

    def _one(self, name: str) -> float:
        quality = self.chance.random()
        for mark in range(1, self.evaluations + 1):
            if self.rule.decide(name, {"step": mark, "updates": self.evaluations, self.name: quality}):
                return mark / self.evaluations
        return 1.0


@pytest.mark.parametrize(
    ("trials", "first", "reduction", "evaluations"),
    [(27, 0.25, 3, 4), (8, 0.25, 3, 8), (64, 0.125, 2, 8), (20, 0.25, 4, 4), (30, 0.25, 3, 2)],
)
def test_early_stopping_leaves_what_the_rule_itself_leaves(trials, first, reduction, evaluations):
    rule, chance = EarlyStopping(rule="asha", reduction=reduction, first=first), random.Random(1)
    runs = [Reports(rule, evaluations, chance).run(trials) for _ in range(200)]
    short = shortened(rule, trials=trials, evaluations=evaluations)
    assert short.updates.expected == pytest.approx(mean(updates for updates, _ in runs), abs=0.02)
    assert short.finished.expected == pytest.approx(mean(finished for _, finished in runs), abs=0.03)
    assert short.updates.low <= short.updates.expected < short.updates.high == short.finished.high == 1


def test_ideal_halving_by_hand():
    """A third goes on from 1/5 to 3/5, and a ninth to the end: 1/5 + 1/3 * 2/5 + 1/9 * 2/5."""
    short = shortened(EarlyStopping(reduction=3, first=0.2), trials=3000, evaluations=5)
    assert short.updates.low == pytest.approx(1 / 5 + 2 / 15 + 2 / 45, abs=0.003)
    assert short.finished.low == pytest.approx(1 / 9, abs=0.003)
    assert short.updates.expected == pytest.approx(short.updates.low, abs=0.01)
    # Rungs at 0.2 and 0.6 are heard of at the evaluations that follow: at 1/2, and at the end, which stops nothing.
    late = shortened(EarlyStopping(reduction=3, first=0.2), trials=3000, evaluations=2)
    assert late.updates.low == pytest.approx(1 / 2 + 1 / 6, abs=0.003)
    assert late.finished.low == pytest.approx(1 / 3, abs=0.003)
    assert shortened(None, trials=9, evaluations=5) == WHOLE
    assert shortened(EarlyStopping(), trials=9, evaluations=1) == WHOLE


ranges = st.tuples(*[st.integers(0, 1000)] * 3).map(sorted).map(lambda ends: Range(*ends))


@given(st.lists(ranges, max_size=9), st.integers(1, 8))
def test_a_schedule_takes_between_its_share_and_all_of_it(jobs, slots):
    span, every = _schedule(jobs, slots), total(jobs)
    for end in ("low", "expected", "high"):
        longest = max((getattr(job, end) for job in jobs), default=0.0)
        whole = getattr(every, end)
        assert max(whole / slots, longest) <= getattr(span, end) * (1 + 1e-9) + 1e-9
        assert getattr(span, end) <= whole * (1 + 1e-9) + 1e-9


def test_a_schedule_by_hand():
    """On two: 3 and 2 at once, then 2 after the second, then 1 after the first: done after 4."""
    assert _schedule([Range.exactly(seconds) for seconds in (3, 2, 2, 1)], 2) == Range.exactly(4)


@given(ranges, ranges)
def test_ranges_stay_in_order(one, other):
    assert one + other == other + one
    assert (one * other).low <= (one * other).expected <= (one * other).high
    with pytest.raises(ValueError, match="not in order"):
        Range(2, 1, 3)
