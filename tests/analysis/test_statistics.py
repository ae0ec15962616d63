"""The estimators on cases done by hand, and their intervals against simulated truth."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from slime_ray.analysis import effects, rows, statistics
from slime_ray.analysis.statistics import TwoWay

from .ends import difference_ends, score_ends


def test_a_win_rate_is_the_mean_over_prompts_of_their_mean_votes():
    # Prompt means 1, 0.75, 0 and 0.5 by one seed alone; the last prompt has no verdict at all and is left out.
    outcomes = np.array([[1.0, 1.0, 0.0, 0.5, np.nan], [1.0, 0.5, 0.0, np.nan, np.nan]])
    estimate = statistics.win_rate_interval(outcomes)
    assert estimate is not None
    assert estimate.value == pytest.approx(2.25 / 4)
    assert estimate.low <= estimate.value <= estimate.high
    assert statistics.win_rate_interval(np.full((2, 3), np.nan)) is None


def test_the_interval_is_seeded_and_shrinks_with_the_root_of_the_prompts():
    rng = np.random.default_rng(0)
    few, many = rng.integers(0, 2, (1, 100)).astype(float), rng.integers(0, 2, (1, 1600)).astype(float)
    first, again = statistics.win_rate_interval(few), statistics.win_rate_interval(few)
    wide, narrow = first, statistics.win_rate_interval(many)
    assert first == again
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(4, rel=0.15)


def test_repeating_the_votes_of_a_prompt_does_not_make_the_interval_narrower():
    # Ten identical seeds carry no more information on prompts than one: resampling single votes would claim so.
    one = np.random.default_rng(1).integers(0, 2, (1, 200)).astype(float)
    single, repeated = statistics.win_rate_interval(one), statistics.win_rate_interval(np.repeat(one, 10, axis=0))
    assert repeated == single


def test_paired_differences_see_what_separate_intervals_hide():
    # Both methods answer the same prompts; the second wins on 6 % more of them, prompt difficulty being the same.
    rng = np.random.default_rng(3)
    base = (rng.random((1, 500)) < 0.5).astype(float)
    better = base.copy()
    better[0, np.flatnonzero(base[0] == 0)[:30]] = 1.0
    difference = effects.interval(better - base)
    assert difference.value == pytest.approx(0.06)
    assert difference.low > 0
    a, b = statistics.win_rate_interval(better), statistics.win_rate_interval(base)
    assert a.low < b.high


def test_a_difference_between_seeds_counts_from_five_seeds_on():
    prompts = np.random.default_rng(4).random(300)
    other = np.stack([prompts * 0.9] * 6)
    steady, shaken = (np.stack([prompts + shift * (-1) ** seed for seed in range(6)]) for shift in (0.0, 0.1))
    calm, wild = effects.interval(steady - other), effects.interval(shaken - other)
    assert calm.value == pytest.approx(wild.value)
    assert wild.high - wild.low > 10 * (calm.high - calm.low)
    # With four the interval is of these checkpoints, whose mean is as certain as the prompts allow.
    calm, wild = (effects.interval(policy[:4] - other[:4]) for policy in (steady, shaken))
    assert (wild.low, wild.high) == pytest.approx((calm.low, calm.high))


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_a_difference_is_of_the_seeds_and_prompts_that_both_rows_have(confidence):
    policy, other = np.random.default_rng(6).random((2, 7, 20))
    # A prompt that one seed has no verdict for is left out for all.
    policy[1, 3] = np.nan
    # Seeds 1 to 5 are common; a brute-force sum over them is the difference.
    one, two = (list(range(7)), policy), ([5, 1, 2, 4, 3, 9, 8], other)
    pairs = [(policy[seed, prompt] - other[two[0].index(seed), prompt]) for seed in range(1, 6) for prompt in range(20)]
    found = effects.interval(rows.difference(one, two), confidence=confidence)
    assert found.value == pytest.approx(np.mean([d for place, d in enumerate(pairs) if place % 20 != 3]))
    whole = np.delete(np.reshape(pairs, (5, 20)), 3, axis=1)
    assert (found.low, found.high) == pytest.approx(difference_ends(whole, confidence))
    # Four common seeds are these checkpoints: prompts alone are drawn.
    found = effects.interval(rows.difference((list(range(4)), policy[:4]), two), confidence=confidence)
    assert found.high - found.low > 0
    assert rows.difference(([0], policy[:1]), two) is None
    assert rows.difference(one, (two[0], other[:, :10])) is None


def test_the_seeds_that_a_comparison_leaves_out_are_named():
    assert rows.left_out({"a": [0, 1, 2], "b": [2, 1, 0]}) == ""
    assert rows.left_out({"a": [0, 1, 2, 3], "b": [1, 2, 7]}) == "seeds 0, 3 of a and seed 7 of b"


def test_a_rows_interval_covers_the_method_from_five_seeds_on_and_that_over_prompts_does_not():
    # Win rates of a method whose seeds differ by 10 points; prompts are as hard for all of them.
    rng, covered, over_prompts, tries = np.random.default_rng(0), 0, 0, 400
    for _ in range(tries):
        seeds, prompts = rng.normal(0.5, 0.1, 5), rng.normal(0.0, 0.1, 200)
        won = (rng.random((5, 200)) < np.clip(seeds[:, None] + prompts, 0, 1)).astype(float)
        covered += statistics.row_interval(won).covers(0.5)
        over_prompts += statistics.win_rate_interval(won).covers(0.5)
    # Three standard deviations of 400 tries at 95 % are 3.3 points.
    assert 0.917 <= covered / tries <= 0.983
    assert over_prompts / tries < 0.75


def test_a_rows_interval_is_of_these_checkpoints_below_five_seeds_and_stays_between_0_and_1():
    won = np.random.default_rng(1).random((5, 40)).round()
    few = statistics.row_interval(won[:4])
    assert few == statistics.win_rate_interval(won[:4])
    # The value is that over all prompts, also those that a seed has no verdict for.
    won[0, :5] = np.nan
    found = statistics.row_interval(won)
    assert found.value == pytest.approx(np.nanmean(won, axis=0).mean())
    error, freedom = TwoWay.of(won[:, 5:]).error()
    binary, seen = found.value * (1 - found.value) * 35, (error * 35) ** 2
    effective = 35 * (binary + 0.25) / (seen + 0.25)
    assert (found.low, found.high) == pytest.approx(score_ends(found.value, effective, freedom))
    rare = np.zeros((5, 40))
    rare[:2, 0] = 1.0
    assert 0 < statistics.row_interval(rare).low < 0.01 < 0.03 < statistics.row_interval(rare).high < 0.1
    assert statistics.row_interval(1 - rare).high == pytest.approx(1 - statistics.row_interval(rare).low)
    assert not statistics.is_of_method(np.full((5, 40), np.nan))


@pytest.mark.parametrize("items", [20, 50, 200])
def test_outcomes_that_all_agree_have_wilsons_interval_for_as_many_prompts(items):
    # As every table of Wilson's interval has it for k = 0: from 0 to t^2 / (n + t^2).
    t = stats.t.ppf(0.975, items - 1)
    lost, won = (statistics.win_rate_interval(np.full((1, items), outcome)) for outcome in (0.0, 1.0))
    assert (lost.low, lost.high) == pytest.approx((0, t**2 / (items + t**2)))
    assert (won.low, won.high) == pytest.approx((1 - t**2 / (items + t**2), 1))
    tied = statistics.win_rate_interval(np.full((1, items), 0.5))
    # Half a prompt won and half a one lost among so many ties: 1 / (n + 1) of the outcomes scatter as wins and losses do.
    assert (tied.low, tied.high) == pytest.approx(score_ends(0.5, items * (items + 1), items - 1))
    same = effects.interval(np.zeros((1, items)))
    assert (same.low, same.high) == pytest.approx((-t / items, t / items))


def test_the_interval_of_wins_and_losses_is_wilsons():
    won = np.repeat([1.0, 0.0], [3, 27])[None]
    found = statistics.win_rate_interval(won)
    assert (found.low, found.high) == pytest.approx(score_ends(0.1, 30, 29))


@pytest.mark.parametrize(
    # AlpacaEval's leaderboard of GPT-4's verdicts: gpt4 and text_davinci_001, with its standard errors.
    ("won", "lost", "tied", "percent", "error"),
    [(761, 32, 12, 95.27950311, 0.71628144), (112, 672, 20, 15.17412935, 1.235107892)],
)
def test_win_rates_and_errors_of_public_models_are_those_of_alpaca_eval(won, lost, tied, percent, error):
    outcomes = np.repeat([1.0, 0.0, 0.5], [won, lost, tied])[None]
    found = statistics.win_rate_interval(outcomes)
    assert 100 * found.value == pytest.approx(percent)
    # Theirs divides by n - 1.
    count = outcomes.size
    assert 100 * statistics.Scatter.of(outcomes).variance ** 0.5 == pytest.approx(error * (1 - 1 / count) ** 0.5)
    assert 100 * (found.high - found.low) == pytest.approx(2 * 1.96 * error, rel=0.02)


def test_topics_are_the_units_where_prompts_come_in_topics():
    # All prompts of a topic agree: six topics say as much as six prompts, however many prompts each has.
    rng = np.random.default_rng(2)
    by_topic = rng.normal(0, 0.3, (7, 6))
    topics, d = np.repeat(np.arange(6), 10), np.repeat(by_topic, 10, axis=1)
    found, alone = effects.interval(d, topics), effects.interval(by_topic)
    unseen = 2 * 0.5 * np.array([1 / 60**2, 1 / 6**2])
    half, expected = found.high - found.value, alone.high - alone.value
    freedom = TwoWay.of(by_topic).error()[1]
    t = stats.t.ppf(0.975, freedom)
    assert (half / t) ** 2 - unseen[0] == pytest.approx((expected / t) ** 2 - unseen[1])
    assert half > 1.2 * (effects.interval(d).high - found.value)
    # Of topics of different sizes the mean stays that of the prompts.
    uneven = np.array([0, 0, 0, 1, 2])
    assert statistics.by_topic(np.arange(5.0), uneven) == pytest.approx([3 * 3 / 5, 3 * 3 / 5, 4 * 3 / 5])


@pytest.mark.parametrize(
    # v = 4 + 9 - 1, and 4 alone where prompts vary by less than the rest; degrees v^2 / (4^2 + b^4 + 1^2).
    ("b", "variance", "freedom"), [(3.0, 12.0, 144 / 98), (0.5, 4.0, 16 / 17.0625)]
)  # fmt: skip
def test_the_error_of_a_mean_takes_seeds_and_prompts_together_and_the_rest_once(b, variance, freedom):
    # Seeds are off by +-2, prompts by +-b, the rest by +-1: mean squares over size are 4, b^2 and 1.
    values = np.array([[2 + b + 1, 2 - b - 1], [-2 + b - 1, -2 - b + 1]])
    assert statistics.TwoWay.of(values).error() == pytest.approx((variance**0.5, freedom))


def test_seeds_that_scatter_just_as_the_rest_does_have_one_interval_in_whatever_order_they_come():
    # Of both mean squares, equal on paper, rounding may make either the larger one.
    d = np.array(
        [
            [1, -3, 4, -2, -1, 0],
            [1, -1, 3, 1, -1, 4],
            [-2, -1, 2, 4, -4, 0],
            [-1, -1, -3, -2, -1, 1],
            [2, -1, -4, 3, 2, 4],
        ]
    )
    ends = [effects.interval(d[list(order)] / 4).low for order in permutations(range(5))]
    assert ends == pytest.approx([ends[0]] * len(ends))


def test_arena_hard_counts_strong_verdicts_three_times():
    # (3 * 1 + 1 * 1 + 0.5 + 0 + 3 * 0) / (3 + 1 + 1 + 1 + 3)
    assert statistics.arena_hard_score(["A>>B", "A>B", "A=B", "B>A", "B>>A", None]) == pytest.approx(4.5 / 9)
    assert statistics.arena_hard_score([None]) is None


def test_the_variance_of_a_ratio_is_that_of_both_together():
    # Where numerator and denominator rise together the ratio is known but for what was not seen.
    counts = np.array([1.0, 5.0, 2.0, 0.0, 9.0])
    estimate = statistics.ratio_interval(counts / 2, counts)
    # 17 votes of four items with these weights say as much as 17^2 / 111 items of one vote each (Kish 1965).
    items = 17**2 / 111
    effective = items * (items / 4 + 0.25) / 0.25
    assert (estimate.low, estimate.high) == pytest.approx(score_ends(0.5, effective, 3))
    # With equal denominators it is a mean.
    won = np.array([0.0, 1.0, 1.0, 0.5, 1.0])
    ratio, mean = statistics.ratio_interval(2 * won, np.full(5, 2.0)), statistics.win_rate_interval(won[None])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((mean.value, mean.low, mean.high))
    assert statistics.ratio_interval(np.zeros(3), np.zeros(3)) is None


def test_every_resample_draws_as_many_items_as_there_are_and_the_seed_decides_which():
    counts = statistics.draws(7, 3, 1000)
    assert counts.shape == (7, 1000)
    assert (counts.sum(axis=0) == 7).all()
    # Each item is drawn 1000 times in 7000 draws, give or take four standard deviations of sqrt(7000 * 6 / 49).
    assert np.abs(counts.sum(axis=1) - 1000).max() < 4 * np.sqrt(7000 * 6 / 49)
    assert (counts == statistics.draws.__wrapped__(7, 3, 1000)).all()
    assert (counts != statistics.draws(7, 4, 1000)).any()


@settings(max_examples=10)
@given(arrays(float, st.tuples(st.integers(1, 3), st.integers(3, 12)), elements=st.sampled_from([0.0, 0.5, 1.0])))
def test_swapping_the_sides_mirrors_estimate_and_interval(outcomes):
    one, other = statistics.win_rate_interval(outcomes), statistics.win_rate_interval(1 - outcomes)
    assert other.value == pytest.approx(1 - one.value)
    assert (other.low, other.high) == pytest.approx((1 - one.high, 1 - one.low))
    difference = effects.interval(outcomes - outcomes)
    assert difference.value == 0
    assert difference.low == -difference.high < 0


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("seeds", [1, 3])
def test_one_or_two_prompts_have_an_estimate_without_an_interval(prompts, seeds):
    won = np.tile([[1.0, 0.0]], (seeds, 1))[:, :prompts]
    estimates = [
        statistics.win_rate_interval(won),
        effects.interval(2 * won - 1),
        statistics.ratio_interval(won[0], np.ones(prompts)),
    ]
    for estimate in estimates:
        assert np.isfinite(estimate.value)
        assert np.isnan([estimate.low, estimate.high]).all()
        # It neither rules a value out nor says that it may be the true one.
        assert not estimate.covers(estimate.value)
        assert not estimate.excludes(estimate.value)
    assert statistics.win_rate_interval(won[:, :0]) is None
    assert statistics.win_rate_interval(np.full((seeds, prompts), np.nan)) is None


def test_only_prompts_with_a_verdict_count_for_an_interval():
    known = np.array([[1.0, 0.0, np.nan, np.nan]])
    assert np.isnan(statistics.win_rate_interval(known).low)
    known[0, 2] = 0.5
    assert statistics.win_rate_interval(known).covers(0.5)


def test_resampled_means_scatter_as_the_standard_error_says():
    values = np.random.default_rng(5).random(1000)
    means = statistics.resample_sums(values) / 1000
    assert means.shape == (10_000,)
    assert means.mean() == pytest.approx(values.mean(), abs=1e-3)
    assert means.std() == pytest.approx(values.std() / np.sqrt(1000), rel=0.05)


def test_resamples_are_sums_of_what_was_drawn_however_many_are_worked_out_together():
    values = np.random.default_rng(7).random((3, 40))
    for resamples in (1, statistics.AT_ONCE, 2 * statistics.AT_ONCE + 1):
        sums = statistics.resample_sums(values, resamples=resamples)
        assert sums == pytest.approx((values @ statistics.draws(40, resamples=resamples)).T)


def test_leading_axes_are_resampled_together_each_as_if_it_were_alone():
    values = np.random.default_rng(6).random((2, 3, 40))
    sums = statistics.resample_sums(values, resamples=50)
    assert sums.shape == (50, 2, 3)
    for place in np.ndindex(2, 3):
        assert sums[:, *place] == pytest.approx(statistics.resample_sums(values[place], resamples=50))
