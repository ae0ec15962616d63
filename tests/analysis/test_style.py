"""Style control: Arena-Hard's features by hand, and the fit against a second derivation."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from slime_ray.analysis import style


def test_features_are_relative_differences_of_lengths_and_densities():
    answer = "# Title\n\n1. one\n* two\n**bold** and __bold__\n```\n# code\n- code\n```"
    table = pd.DataFrame(
        {"answer": [answer, ""], "answer_tokens": [19, 0], "baseline_answer": ["- one", ""], "baseline_tokens": [9, 0]}
    )
    found = style.features(table)
    # Per token: a header 1/20, two list items 2/20, two bold texts 2/20; of the baseline one list item 1/10.
    assert found[0] == pytest.approx([10 / 28, 0.05 / 1.05, 0.0, 0.1 / 1.1])
    assert found[1].tolist() == [0.0] * 4


def world(rng, prompts=150, rate=0.6):
    """Outcomes of two answers to each prompt, whose style wins; the rate at equal style is planted."""
    x = rng.normal(0.4, 0.5, (2 * prompts, 2))
    logit = np.log(rate / (1 - rate))
    places = np.repeat(np.arange(prompts), 2)
    drawn = np.repeat(rng.random(prompts), 2)
    return (drawn < expit(logit + x @ [1.0, -0.5])).astype(float), x, places


def test_the_fit_is_the_maximum_of_the_likelihood_and_its_error_the_jackknifes():
    y, x, places = world(np.random.default_rng(0))

    def fitted(kept):
        def loss(b):
            logits = b[0] + x[kept] @ b[1:]
            return float((np.logaddexp(0, logits) - y[kept] * logits).sum())

        return minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-7}).x[0]

    found = style.rate_at_equal_style(y, x, places)
    assert found.value == pytest.approx(expit(fitted(places >= 0)), abs=1e-5)
    left = np.array([fitted(places != prompt) for prompt in range(150)])
    error = np.sqrt(149 / 150 * ((left - left.mean()) ** 2).sum())
    logits = [np.log(end / (1 - end)) for end in (found.low, found.high)]
    assert (logits[1] - logits[0]) / (2 * 1.96) == pytest.approx(error, rel=0.05)


def test_the_interval_covers_a_planted_rate():
    hits = [style.rate_at_equal_style(*world(np.random.default_rng(seed))).covers(0.6) for seed in range(400)]
    assert 0.93 - 3 * 0.0128 <= np.mean(hits) <= 0.97 + 3 * 0.0085


def test_there_is_none_where_style_tells_all_or_prompts_are_few():
    x = np.linspace(-1, 1, 60)[:, None]
    assert style.rate_at_equal_style((x[:, 0] > 0).astype(float), x, np.arange(60)) is None
    y, x, places = world(np.random.default_rng(0), prompts=20)
    assert style.rate_at_equal_style(y, x, places) is None
    assert style.rate_at_equal_style(np.array([]), np.zeros((0, 4)), np.array([])) is None


def test_answers_of_equal_style_have_the_plain_rate():
    y = np.array([1.0, 0.0, 1.0, 1.0] * 10)
    assert style.rate_at_equal_style(y, np.zeros((40, 4)), np.arange(40)).value == pytest.approx(0.75)


def test_answers_that_all_tie_have_a_rate_without_ends():
    found = style.rate_at_equal_style(np.full(60, 0.5), np.random.default_rng(0).normal(size=(60, 2)), np.arange(60))
    assert found.value == pytest.approx(0.5)
    assert np.isnan([found.low, found.high]).all()
