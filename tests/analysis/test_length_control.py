"""The length-controlled rate against statsmodels, and where there is nothing to fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_ray.analysis.judging import length_controlled_rate

OUTCOMES = np.array([1, 1, 0.5, 0, 1, 0.75, 0, 0.5, 1, 0.25, 0.5, 1])
MORE_TOKENS = np.array([30.0, 12, -5, -40, 0, 22, -18, 3, 55, -9, 8, 14])
PROMPTS = np.arange(12)


def test_the_estimate_is_that_of_statsmodels():
    # statsmodels 0.15.0: x = tanh(d / d.std()); GLM(y, add_constant(x), family=Binomial()).fit().params[0] is
    # 0.2589366637524863, its sigmoid 0.564374882258648.
    estimate = length_controlled_rate(OUTCOMES, MORE_TOKENS, PROMPTS)
    assert estimate.value == pytest.approx(0.564374882258648, abs=1e-6)
    assert estimate.low < estimate.value < estimate.high


def test_each_resample_is_fitted_as_if_it_were_alone():
    # Thirty answers to each prompt: the resamples of few prompts are as good as repeated data, fitted by the same model.
    y, d, prompts = (np.repeat(values, 30) for values in (OUTCOMES, MORE_TOKENS, PROMPTS))
    one, many = length_controlled_rate(OUTCOMES, MORE_TOKENS, PROMPTS), length_controlled_rate(y, d, prompts)
    assert (many.value, many.low, many.high) == pytest.approx((one.value, one.low, one.high), abs=1e-4)


def test_the_order_of_the_answers_does_not_matter():
    # The same draws for the same prompts, so that rows of a table stay paired.
    order = np.random.default_rng(3).permutation(12)
    shuffled = length_controlled_rate(OUTCOMES[order], MORE_TOKENS[order], PROMPTS[order])
    one = length_controlled_rate(OUTCOMES, MORE_TOKENS, PROMPTS)
    assert (shuffled.low, shuffled.high) == pytest.approx((one.low, one.high), abs=1e-5)


def test_longer_answers_that_win_by_length_alone_are_not_better():
    rng = np.random.default_rng(0)
    more = rng.normal(60, 60, 4000)
    wins = (rng.random(4000) < 1 / (1 + np.exp(-1.5 * np.tanh(more / 60)))).astype(float)
    estimate = length_controlled_rate(wins, more, np.arange(4000), resamples=500)
    assert wins.mean() > 0.65
    assert estimate.covers(0.5)


@pytest.mark.parametrize("more", [0.0, 7.0])
def test_where_lengths_do_not_differ_from_each_other_the_rate_is_the_win_rate(more):
    estimate = length_controlled_rate(OUTCOMES, np.full(12, more), PROMPTS)
    assert estimate.value == pytest.approx(OUTCOMES.mean(), abs=1e-6)


@pytest.mark.parametrize("outcome", [0.0, 0.5, 1.0])
def test_outcomes_that_are_all_the_same_are_the_rate_and_have_no_ends(outcome):
    estimate = length_controlled_rate(np.full(12, outcome), MORE_TOKENS, PROMPTS)
    assert estimate.value == outcome
    assert np.isnan([estimate.low, estimate.high]).all()


def test_outcomes_that_length_alone_tells_apart_have_no_rate():
    assert length_controlled_rate((MORE_TOKENS > 0).astype(float), MORE_TOKENS, PROMPTS) is None
    # Ties at one length, losses below, wins above: the better the steeper, without an end.
    assert length_controlled_rate(np.array([0, 0.5, 1] * 4), np.array([-2.0, -1, 0] * 4), PROMPTS) is None
    assert length_controlled_rate(np.array([0, 0.5, 1] * 4), np.array([-2.0, -1, -1] * 4), PROMPTS) is None
    # One shorter answer that wins is enough for an end.
    assert (
        length_controlled_rate(np.array([0, 0.5, 1] * 3 + [1, 0, 1]), np.array([-2.0, -1, 0] * 4), PROMPTS) is not None
    )
    assert length_controlled_rate(np.full(2, np.nan), np.zeros(2), np.arange(2)) is None


def test_resamples_without_an_optimum_do_not_spoil_the_interval():
    # One loss in 64: a third of the resamples have none, and their rate is 1.
    wins = np.ones(64)
    wins[0] = 0
    estimate = length_controlled_rate(wins, np.random.default_rng(0).normal(0, 9, 64), np.arange(64))
    assert 0.9 < estimate.low < estimate.value < estimate.high <= 1
    assert estimate.high == pytest.approx(1, abs=1e-4)


def test_unknown_outcomes_and_lengths_are_left_out():
    y, d = np.append(OUTCOMES, [np.nan, 1.0]), np.append(MORE_TOKENS, [900.0, np.nan])
    assert length_controlled_rate(y, d, np.arange(14)) == length_controlled_rate(OUTCOMES, MORE_TOKENS, PROMPTS)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(-50, 50)), min_size=3, max_size=20))
def test_swapping_the_sides_mirrors_the_rate(answers):
    y, d = np.array(answers, dtype=float).T
    prompts = np.arange(len(y))
    one, other = (length_controlled_rate(*case, prompts, resamples=50) for case in ((y, d), (1 - y, -d)))
    assert (one is None) == (other is None)
    if one is not None:
        assert other.value == pytest.approx(1 - one.value, abs=1e-4)
