"""How many seeds settle a comparison: against tables of power, and where prompts are what is missing."""

import numpy as np
import pytest
from slime_ray.analysis import effects
from slime_ray.analysis.statistics import TwoWay


def scalars(mean, deviation, seeds):
    """(seeds,) values of exactly this mean and sample deviation."""
    values = np.linspace(-1, 1, seeds)
    return mean + deviation * values / values.std(ddof=1)


@pytest.mark.parametrize(("d_z", "needed"), [(0.5, 34), (0.8, 15), (1.2, 8)])
def test_seeds_needed_are_those_of_the_tables_of_the_paired_t(d_z, needed):
    # Cohen's tables, two-sided 5 %, power 80 %.
    assert effects.to_settle(scalars(d_z, 1.0, 5), 0.05) == effects.Settling(needed)


def two_way(mean, *, of_seeds, of_prompts, rest, seeds=8, prompts=500):
    """The analysis of variance of a study whose components (as standard deviations) are known."""
    squares = [rest**2 + prompts * of_seeds**2, rest**2 + seeds * of_prompts**2, rest**2]
    return TwoWay(mean, seeds, prompts, np.array(squares))


def test_where_seeds_alone_differ_they_are_the_scalars():
    # Hardly anything but seeds: the same as of one number a seed.
    found = effects.of_two_way(two_way(0.05, of_seeds=0.1, of_prompts=0.0, rest=1e-6), 0.05)
    assert found == effects.Settling(34)


def test_where_only_the_rest_differs_more_seeds_average_over_it():
    # Of 100 prompts with a deviation of 1 each, a seed's mean has one of 0.1: the same d_z of 0.5.
    found = effects.of_two_way(two_way(0.05, of_seeds=0.0, of_prompts=0.0, rest=1.0, prompts=100), 0.05)
    assert found == effects.Settling(34)


def test_a_smaller_level_and_a_smaller_difference_need_more():
    needed = [
        effects.of_two_way(two_way(mean, of_seeds=0.03, of_prompts=0.1, rest=0.4), level).seeds
        for mean, level in ((0.04, 0.05), (0.04, 0.0125), (0.02, 0.0125))
    ]
    assert needed == sorted(needed)
    assert len(set(needed)) == 3


def test_where_prompts_are_too_few_no_number_of_seeds_is_named_without_more_of_them():
    # Over 100 prompts alone the standard error is 0.05, and 0.1 is two of them: power 52 % with seeds without end. For 80
    # % it takes a fraction (2.8 / 2)^2 more of them, about 199; and twice that, so that seeds have a part of the variance.
    found = effects.of_two_way(two_way(0.1, of_seeds=0.1, of_prompts=0.5, rest=0.1, prompts=100), 0.05)
    assert found.prompts == pytest.approx(2 * 199, abs=4)
    assert found.seeds is not None
    enough = two_way(0.1, of_seeds=0.1, of_prompts=0.5, rest=0.1, prompts=found.prompts)
    assert effects.of_two_way(enough, 0.05).prompts is None
    assert effects.of_two_way(enough, 0.05).seeds == found.seeds


def test_no_difference_is_settled_by_no_number():
    assert effects.to_settle(scalars(0.0, 1.0, 6), 0.05) == effects.Settling(None)
    flat = np.zeros((5, 30))
    flat[0, 0], flat[1, 0] = 1.0, -1.0
    assert str(effects.to_settle(flat, 0.05)) == "more than 1,000 seeds"


def test_never_fewer_seeds_than_it_takes_to_speak_of_a_method():
    assert effects.to_settle(scalars(9.0, 1.0, 2), 0.05) == effects.Settling(5)


def test_words_say_no_more_than_is_known():
    assert str(effects.Settling(14)) == "about 14 seeds"
    assert str(effects.Settling(153)) == "about 160 seeds"
    assert str(effects.Settling(17, 1_812)) == "about 17 seeds, 1,900 prompts"
    assert str(effects.Settling(None, 9_000)) == "more than 1,000 seeds"
