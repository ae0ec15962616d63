"""Tests, correction and sizes of effects, and how many seeds settle one, against values by hand, by scipy and by tables."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from slime_ray.analysis import effects
from slime_ray.analysis.statistics import TwoWay

from .ends import difference_ends


def claim_of(d, **options):
    """What one comparison says alone."""
    return effects.claims({"it": d}, **options)["it"]


def grid(mean, *, seeds=8, prompts=200, between_seeds=0.0, between_prompts=0.0, rest=0.2, random=0):
    """(seeds, prompts) differences of exactly this mean."""
    rng = np.random.default_rng(random)
    of_seeds, of_prompts = rng.normal(0, between_seeds, (seeds, 1)), rng.normal(0, between_prompts, (1, prompts))
    d = of_seeds + of_prompts + rng.normal(0, rest, (seeds, prompts))
    return d - d.mean() + mean


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    # Sorted 0.005 * 4, 0.01 * 3, 0.03 * 2, then 0.04 * 1, which may not be below the one before.
    assert effects.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert effects.holm(np.array([0.6, 0.7])) == pytest.approx([1.0, 1.0])


def test_a_comparison_that_could_not_be_made_counts_in_the_correction():
    corrected = effects.holm(np.array([0.01, np.nan, 0.02]))
    assert corrected[[0, 2]] == pytest.approx([0.03, 0.04])
    assert np.isnan(corrected[1])


def test_sign_flips_reach_the_share_of_all_flips_that_are_as_extreme():
    d = np.array([3.0, 1.0, 1.0, 2.0, -1.0, 1.0, 2.0, 1.0, 0.0, 1.0])
    every = np.array([np.dot(signs, d) for signs in product((-1, 1), repeat=len(d))])
    exact = (np.abs(every) >= abs(d.sum())).mean()
    p = effects.sign_flip_p(d[:, None], flips=50_000)[0]
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact / 50_000))
    # Single precision may not lose ties: of two items both flips reach the observed sum every other time.
    assert effects.sign_flip_p(np.full((2, 1), 0.1), flips=20_000)[0] == pytest.approx(0.5, abs=0.02)


def test_sign_flips_are_seeded_and_never_say_zero():
    d = np.ones((60, 1))
    assert effects.sign_flip_p(d, flips=999)[0] == pytest.approx(1 / 1000)
    mixed = np.random.default_rng(0).normal(0.1, 1, (60, 2))
    assert effects.sign_flip_p(mixed).tolist() == effects.sign_flip_p(mixed).tolist()
    assert effects.sign_flip_p(np.zeros((5, 1)))[0] == 1


def test_the_paired_t_is_that_of_scipy():
    d = grid(0.02, between_seeds=0.02, between_prompts=0.1)
    found = claim_of(d)
    assert found.p_values["seeds"] == pytest.approx(stats.ttest_1samp(d.mean(axis=1), 0).pvalue)
    of_seeds = d.mean(axis=1)
    assert found.d_z == pytest.approx(of_seeds.mean() / of_seeds.std(ddof=1))
    assert (found.seeds, found.prompts) == (8, 200)


@pytest.mark.parametrize("mean", [0.0, 0.02, 0.04, 0.05])
def test_what_the_t_over_seeds_and_prompts_sees_its_interval_leaves_out(mean):
    found = claim_of(grid(mean, between_seeds=0.03, between_prompts=0.2))
    assert (found.p_values["both"] < 0.05) == (not found.difference.covers(0.0)) == (mean >= 0.04)


def test_the_t_over_seeds_and_prompts_has_at_most_three_degrees_to_each_of_the_seeds():
    # Nothing but prompts: Satterthwaite's would be their 199, and are 3 * 4.
    d = np.tile(np.random.default_rng(0).normal(0.1, 1.0, 200), (5, 1))
    # Half a prompt that differs by 1, and half a one that does by -1, are added.
    error = np.sqrt(d[0].var(ddof=1) / 200 + 1 / 200**2)
    assert claim_of(d).p_values["both"] == pytest.approx(2 * stats.t.sf(d.mean() / error, 12))


def test_a_scalar_per_seed_has_the_paired_t_alone_with_its_interval():
    scores = np.array([0.1, 0.3, 0.2, 0.25, 0.15, 0.2])
    found = claim_of(scores)
    known = stats.ttest_1samp(scores, 0)
    assert list(found.p_values) == ["seeds"]
    assert found.p_values["seeds"] == pytest.approx(known.pvalue)
    interval = known.confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))
    assert found.prompts == 0
    alone = claim_of(np.array([0.2]))
    assert (alone.difference.value, alone.p_values) == (0.2, {})
    assert np.isnan(alone.difference.low)


def test_the_same_outcomes_have_no_effect_and_a_certain_one_has_no_doubt():
    none = effects.claims({"same": np.zeros((6, 40))})["same"]
    assert (none.p, none.matters, none.difference.value) == (1.0, False, 0.0)
    assert none.corrected == dict.fromkeys(effects.TESTS, 1.0)
    certain = effects.claims({"all": np.ones((6, 40))})["all"]
    assert certain.matters
    assert np.isnan(certain.d_z)


@pytest.mark.parametrize("size", [0.01, 1.0])
def test_stabilities_that_differ_by_the_same_with_every_seed_leave_room(size):
    # But for rounding. One more seed that gains all of S and one that loses it: 1/5 for each of five seeds.
    found = effects.claims({"same": np.array([size, size, size + 1e-16, size, size])})["same"]
    expected = 2 * stats.t.sf(size / 0.2, 4)
    assert found.corrected == {"seeds": pytest.approx(expected)}
    half = stats.t.ppf(0.975, 4) * 0.2
    ends = (found.difference.low, found.difference.high)
    assert ends == pytest.approx((size - half, min(size + half, 1.0)))
    assert found.matters == (size == 1.0)


def test_an_interval_ends_where_no_difference_can_be():
    # Two seeds of S: Student's ends lie far beyond -1 and 1.
    scores = np.array([0.9, 0.2])
    low, high = stats.ttest_1samp(scores, 0).confidence_interval()
    assert low < -1 < 1 < high
    found = effects.interval(scores)
    assert (found.low, found.high) == (-1.0, 1.0)
    # An effect is tested on a scale of its own.
    wide = effects.interval(4 * scores, most=4.0)
    assert (wide.low, wide.high) == (-4.0, 4.0)
    few = effects.interval(np.array([[1.0, 1.0, -1.0]]))
    assert (few.low, few.high) == (-1.0, 1.0)


def test_one_prompt_settles_nothing_whatever_the_seeds():
    found = effects.claims({"one": np.ones((6, 1))})["one"]
    assert found.verdict == "not settled: more than 1,000 seeds"


def test_it_matters_only_where_all_tests_agree():
    # Every seed agrees, and two prompts of forty make all of the difference: others would not show it.
    few_prompts = np.zeros((8, 40))
    few_prompts[:, :2] = np.random.default_rng(0).normal(1, 0.1, (8, 2))
    # Every prompt agrees, and two seeds make all of the difference.
    few_seeds = np.zeros((8, 40))
    few_seeds[:2] = np.random.default_rng(0).normal(1, 0.1, (2, 40))
    found = effects.claims({"few prompts": few_prompts, "few seeds": few_seeds, "all": grid(0.1)})
    assert found["few prompts"].corrected["seeds"] < 0.001 < 0.4 < found["few prompts"].corrected["prompts"]
    assert found["few seeds"].corrected["prompts"] < 0.001 < 0.1 < found["few seeds"].corrected["seeds"]
    assert [claim.matters for claim in found.values()] == [False, False, True]
    assert found["few prompts"].verdict.startswith("not settled: ")
    assert found["all"].verdict == "matters"


def test_a_verdict_that_one_seed_decides_says_so():
    # Seven seeds agree on an effect; the last one breaks, and without it they would be enough.
    steady = grid(0.05, between_seeds=0.002)
    hidden = steady.copy()
    hidden[-1] -= 0.5
    found = effects.claims({"steady": steady, "hidden": hidden})
    assert found["steady"].verdict == "matters"
    assert found["hidden"].verdict.startswith("not settled: ")
    assert found["hidden"].verdict.endswith(effects.ONE_SEED)
    for name, claim in found.items():
        # By brute force: the whole table judged again without each of the seeds.
        rest = [effects.claims({"steady": steady, "hidden": np.delete(hidden, seed, axis=0)}) for seed in range(8)]
        if name == "hidden":
            assert any(one["hidden"].matters for one in rest)
        assert claim.one_seed_decides == (name == "hidden")
    assert not effects.claims({"few": grid(0.5, seeds=4)})["few"].one_seed_decides


def test_prompts_of_one_topic_are_no_evidence_of_others():
    # Every prompt of one topic is better, those of the five others are as good: over prompts that is significant.
    d = grid(0.0, between_seeds=0.005, prompts=60, rest=0.05)
    d[:, :10] += 0.3
    topics = np.repeat(np.arange(6), 10)
    over_prompts, over_topics = effects.claims({"a": d})["a"], effects.claims({"a": d}, {"a": topics})["a"]
    assert over_prompts.matters
    assert not over_topics.matters
    # Six topics have 64 flips, of which the topic's own sign is in the tail in half: nothing is seen.
    assert over_topics.p_values["prompts"] > 0.2


def test_more_comparisons_ask_for_more():
    d = grid(0.02, between_seeds=0.02)
    alone = effects.claims({"a": d})["a"]
    assert alone.matters
    others = {str(place): None for place in range(40)}
    among = effects.claims({"a": d, **others})
    assert list(among) == ["a"]
    assert not among["a"].matters
    assert among["a"].p > 10 * alone.p
    assert among["a"].level == pytest.approx(0.05 / 41)


def test_what_is_settled_no_longer_counts_in_the_level_of_the_rest():
    found = effects.claims({"clear": grid(0.3), "open": grid(0.0, between_seeds=0.1), "other": grid(0.0)})
    assert found["clear"].matters
    assert found["open"].level == pytest.approx(0.05 / 2)


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_few_seeds_speak_of_these_checkpoints_and_claim_nothing(seeds):
    # Seeds differ wildly, which an interval of these checkpoints does not see.
    d = grid(0.5, seeds=seeds, between_seeds=0.2 if seeds > 1 else 0)
    claim = effects.claims({"a": d})["a"]
    assert claim.of_checkpoints
    assert claim.verdict == "these checkpoints only"
    assert np.isnan(claim.p)
    assert not claim.matters
    # One seed has no spread of which to tell how many would settle it.
    assert (claim.settling is None) == (seeds == 1)
    # Half a prompt that differs by 1 is added, and half a one that does by -1.
    width = 2 * stats.t.ppf(0.975, 199) * np.sqrt(d.mean(axis=0).var() / 200 + 1 / 200**2)
    assert claim.difference.high - claim.difference.low == pytest.approx(width)


def test_from_five_seeds_on_a_method_is_spoken_of():
    d = grid(0.5, seeds=5, between_seeds=0.01)
    claim = effects.claims({"a": d})["a"]
    assert not claim.of_checkpoints
    assert claim.verdict == "matters"
    difference = claim.difference
    assert (difference.low, difference.high) == pytest.approx(difference_ends(d))


def test_improvement_is_the_share_of_better_outcomes_with_half_the_ties():
    d = np.tile([0.5, 1.0, -1.0, 0.0, 0.0, 0.5, 0.0, 0.0], (5, 1))
    # Three of eight better, four ties, one worse.
    assert effects.improvement(d).value == pytest.approx(5 / 8)
    assert effects.improvement(d[:1]).value == pytest.approx(5 / 8)


@settings(max_examples=15)
@given(
    arrays(
        float, st.tuples(st.integers(1, 7), st.integers(3, 9)), elements=st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])
    )
)
def test_swapping_the_sides_mirrors_everything(d):
    one, other = claim_of(d, flips=500), claim_of(-d, flips=500)
    assert other.difference.value == pytest.approx(-one.difference.value)
    assert (other.difference.low, other.difference.high) == pytest.approx(
        (-one.difference.high, -one.difference.low), abs=1e-6, nan_ok=True
    )
    assert other.p_values == pytest.approx(one.p_values)
    assert effects.improvement(-d).value == pytest.approx(1 - effects.improvement(d).value)


QUARTERS = st.integers(-4, 4).map(lambda quarters: quarters / 4)
"""Differences of two outcomes, each the mean of two verdicts."""


@settings(max_examples=15)
@given(arrays(float, st.tuples(st.integers(5, 7), st.integers(2, 9)), elements=QUARTERS), st.randoms())
def test_the_order_of_seeds_is_irrelevant(d, random):
    order = list(range(len(d)))
    random.shuffle(order)
    one, other = claim_of(d, flips=500), claim_of(d[order], flips=500)
    assert other.p_values == pytest.approx(one.p_values, abs=0.01)
    assert other.difference.low == pytest.approx(one.difference.low, abs=1e-9, nan_ok=True)


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
