"""What ablation tables claim is true as often as they say. `make test-statistics` runs the long form."""

import math
from dataclasses import replace

import numpy as np
import pytest
from slime_ray.analysis import effects

from . import ablation_cases, ablations
from .studies import Study

STUDIES = 300
SMALL = replace(ablation_cases.CALM, prompts=200)


def tolerance(share: float, count: int) -> float:
    """Three standard deviations of a share of so many that is truly `share`."""
    return 3 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize("own", [0.0, 0.3, 1.0])
def test_designs_without_an_effect_hardly_ever_claim_one(own):
    study = replace(SMALL, own=own)
    found = ablations.count_claims("none", "", ablations.leave_one_out(study), studies=STUDIES)
    assert found.claimed <= ablations.FALSE_CLAIMS + tolerance(0.05, STUDIES)
    assert found.claimed <= min(found.two_tests, *found.by_test.values())


def test_sign_flips_over_prompts_alone_would_take_seeds_for_effects():
    study = replace(ablation_cases.RESTLESS, own=0.0)
    found = ablations.count_claims("none", "", ablations.leave_one_out(study), studies=60)
    assert found.by_test["prompts"] > 0.15


def test_without_a_correction_more_than_one_in_ten_would(monkeypatch):
    monkeypatch.setattr(effects, "holm", lambda p_values: p_values)
    found = ablations.count_claims("none", "", ablations.leave_one_out(SMALL), studies=STUDIES)
    assert found.claimed > 0.1


def test_a_planted_effect_of_five_points_is_found_with_eight_seeds_and_500_prompts():
    planted = replace(ablation_cases.CALM, prompts=500).with_rates((0.6, 0.55, 0.6, 0.6, 0.6))
    found = ablations.count_claims("five", "", ablations.leave_one_out(planted), studies=60, planted=frozenset("1"))
    assert found.found is not None
    # docs/benchmarks/statistics.md has what this is of many studies.
    assert found.found >= ablation_cases.POWER_CALM - tolerance(ablation_cases.POWER_CALM, 60)


@pytest.mark.parametrize("seeds", [5, 8])
def test_intervals_of_differences_cover_the_truth(seeds):
    study = replace(SMALL, seeds=seeds).with_rates((0.6, 0.55, 0.6, 0.63))
    (found,) = ablations.count_covered("", ablations.differences_of(study), studies=STUDIES)
    low, high = ablations.COVERED
    # Differences of one study share their reference, so that they count as less than three.
    assert low - tolerance(low, 2 * STUDIES) <= found.covered <= high + tolerance(high, 2 * STUDIES)


def test_intervals_of_main_effects_interactions_and_shapley_values_cover_the_truth():
    study = replace(SMALL, shifts=ablation_cases.FACTORIAL, prompts=100)
    found = ablations.count_covered("", ablations.effects_of(study), studies=100)
    assert [one.name for one in found] == ["main effect", "interaction", "Shapley value"]
    low, high = ablations.COVERED
    for one in found:
        assert low - tolerance(low, 200) <= one.covered <= high + tolerance(high, 200)


def test_as_many_seeds_as_foretold_settle_it_in_four_of_five_studies():
    study = replace(SMALL, seeds=5).with_rates((0.6, 0.56))
    found = ablations.try_foretold("four points", study, comparisons=4, studies=STUDIES)
    assert found.foretold.startswith("about ")
    assert found.power == pytest.approx(0.8, abs=0.02 + tolerance(0.8, STUDIES))


def test_the_truths_are_what_many_seeds_and_prompts_come_to():
    study = Study((0.0, 0.5, -1.0), 300, 2_000, seeds_differ=0.3, own=0.5, together=0.2, alike=0.3)
    drawn = study.draw(np.random.default_rng(0)).mean(axis=(1, 2))
    # Prompts scatter by about 0.25, and there are 2,000.
    assert drawn == pytest.approx(study.rates(), abs=4 * 0.25 / math.sqrt(2_000))
    assert study.with_rates((0.6, 0.55, 0.5)).rates() == pytest.approx([0.6, 0.55, 0.5], abs=1e-6)


def test_answers_that_are_alike_differ_only_where_cells_do():
    study = replace(SMALL, alike=1.0, own=0.0, seeds_differ=0.0)
    outcomes = study.draw(np.random.default_rng(0))
    assert (outcomes == outcomes[0]).all()


def test_the_bound_is_that_of_clopper_and_pearson():
    # The upper end p is where so few or fewer are drawn with probability 5 %: none of 59 with 0.95 ** 59 = 0.0485.
    assert ablations.upper_bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert ablations.upper_bound(3, 3) == 1.0
