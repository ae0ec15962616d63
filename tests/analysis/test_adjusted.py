"""Rates at equal length and style against other programs, and where there is nothing to fit."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit
from slime_ray.analysis import adjusted, statistics
from slime_ray.analysis.adjusted import rate_at_equal_length, rate_at_equal_style

from slime_ray.errors import InputError

OUTCOMES = np.array([1, 1, 0.5, 0, 1, 0.75, 0, 0.5, 1, 0.25, 0.5, 1])
MORE_TOKENS = np.array([30.0, 12, -5, -40, 0, 22, -18, 3, 55, -9, 8, 14])
PROMPTS = np.arange(12)


def test_the_estimate_is_that_of_statsmodels():
    # statsmodels 0.15.0: x = tanh(d / d.std()); GLM(y, add_constant(x), family=Binomial()).fit().params[0] is
    # 0.2589366637524863, its sigmoid 0.564374882258648.
    estimate = rate_at_equal_length(OUTCOMES, MORE_TOKENS, PROMPTS)
    assert estimate.value == pytest.approx(0.564374882258648, abs=1e-9)
    assert estimate.low < estimate.value < estimate.high


def test_answers_to_one_prompt_are_one_unit():
    y, d, prompts = (np.repeat(values, 30) for values in (OUTCOMES, MORE_TOKENS, PROMPTS))
    one, many = rate_at_equal_length(OUTCOMES, MORE_TOKENS, PROMPTS), rate_at_equal_length(y, d, prompts)
    assert (many.value, many.low, many.high) == pytest.approx((one.value, one.low, one.high), abs=1e-9)


def test_the_order_of_the_answers_does_not_matter():
    order = np.random.default_rng(3).permutation(12)
    shuffled = rate_at_equal_length(OUTCOMES[order], MORE_TOKENS[order], PROMPTS[order])
    one = rate_at_equal_length(OUTCOMES, MORE_TOKENS, PROMPTS)
    assert (shuffled.low, shuffled.high) == pytest.approx((one.low, one.high), abs=1e-9)


def test_longer_answers_that_win_by_length_alone_are_not_better():
    rng = np.random.default_rng(0)
    more = rng.normal(60, 60, 4000)
    wins = (rng.random(4000) < expit(1.5 * np.tanh(more / 60))).astype(float)
    estimate = rate_at_equal_length(wins, more, np.arange(4000))
    assert wins.mean() > 0.65
    assert estimate.covers(0.5)


@pytest.mark.parametrize("more", [0.0, 7.0])
def test_where_lengths_do_not_differ_from_each_other_the_rate_is_the_win_rate(more):
    estimate = rate_at_equal_length(OUTCOMES, np.full(12, more), PROMPTS)
    assert estimate.value == pytest.approx(OUTCOMES.mean(), abs=1e-9)


@pytest.mark.parametrize("outcome", [0.0, 0.5, 1.0])
def test_outcomes_that_are_all_the_same_are_the_rate_and_have_no_ends(outcome):
    style = np.random.default_rng(0).normal(size=(60, 2))
    for estimate in (
        rate_at_equal_length(np.full(12, outcome), MORE_TOKENS, PROMPTS),
        rate_at_equal_style(np.full(60, outcome), style, np.arange(60)),
    ):
        assert estimate.value == outcome
        assert np.isnan([estimate.low, estimate.high]).all()


def test_outcomes_that_length_alone_tells_apart_have_no_rate():
    assert rate_at_equal_length((MORE_TOKENS > 0).astype(float), MORE_TOKENS, PROMPTS) is None
    # Ties at one length, losses below, wins above: the better the steeper, without an end.
    assert rate_at_equal_length(np.array([0, 0.5, 1] * 4), np.array([-2.0, -1, 0] * 4), PROMPTS) is None
    assert rate_at_equal_length(np.array([0, 0.5, 1] * 4), np.array([-2.0, -1, -1] * 4), PROMPTS) is None
    # One shorter answer that wins is enough for an end.
    assert rate_at_equal_length(np.array([0, 0.5, 1] * 3 + [1, 0, 1]), np.array([-2.0, -1, 0] * 4), PROMPTS) is not None
    assert rate_at_equal_length(np.full(2, np.nan), np.zeros(2), np.arange(2)) is None


def test_no_rate_is_told_where_equal_length_is_too_far_from_all_answers():
    """All are longer by nearly the same, so the slope is steep and its value at 0 any."""
    y, d = np.array([0.0, 1.0, 0.25]), np.array([47.0, 31.0, 49.0])
    assert rate_at_equal_length(y, d, np.arange(3)) is None
    assert rate_at_equal_length(1 - y, -d, np.arange(3)) is None


def test_unknown_outcomes_and_lengths_are_left_out():
    y, d = np.append(OUTCOMES, [np.nan, 1.0]), np.append(MORE_TOKENS, [900.0, np.nan])
    assert rate_at_equal_length(y, d, np.arange(14)) == rate_at_equal_length(OUTCOMES, MORE_TOKENS, PROMPTS)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(-50, 50)), min_size=3, max_size=20))
def test_swapping_the_sides_mirrors_the_rate(answers):
    y, d = np.array(answers, dtype=float).T
    prompts = np.arange(len(y))
    one, other = (rate_at_equal_length(*case, prompts) for case in ((y, d), (1 - y, -d)))
    assert (one is None) == (other is None)
    if one is not None:
        mirrored = (1 - one.value, 1 - one.high, 1 - one.low)
        assert (other.value, other.low, other.high) == pytest.approx(mirrored, abs=1e-4, nan_ok=True)


def test_features_of_style_are_relative_differences_of_lengths_and_densities():
    answer = "# Title\n\n1. one\n* two\n**bold** and __bold__\n```\n# code\n- code\n```"
    table = pd.DataFrame(
        {"answer": [answer, ""], "answer_tokens": [19, 0], "baseline_answer": ["- one", ""], "baseline_tokens": [9, 0]}
    )
    found = adjusted.features(table)
    # Per token: a header 1/20, two list items 2/20, two bold texts 2/20; of the baseline one list item 1/10.
    assert found[0] == pytest.approx([10 / 28, 0.05 / 1.05, 0.0, 0.1 / 1.1])
    assert found[1].tolist() == [0.0] * 4


def world(rng, prompts=150, rate=0.6):
    """Outcomes of two answers to each prompt, whose style wins; the rate at equal style is planted."""
    x = rng.normal(0.4, 0.5, (2 * prompts, 2))
    places = np.repeat(np.arange(prompts), 2)
    drawn = np.repeat(rng.random(prompts), 2)
    return (drawn < expit(logit(rate) + x @ [1.0, -0.5])).astype(float), x, places


def test_the_fit_is_the_maximum_of_the_likelihood_and_its_error_the_jackknifes():
    y, x, places = world(np.random.default_rng(0))

    def fitted(kept):
        def loss(b):
            logits = b[0] + x[kept] @ b[1:]
            return float((np.logaddexp(0, logits) - y[kept] * logits).sum())

        return minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-7}).x[0]

    found = rate_at_equal_style(y, x, places)
    assert found.value == pytest.approx(expit(fitted(places >= 0)), abs=1e-5)
    left = np.array([fitted(places != prompt) for prompt in range(150)])
    error = np.sqrt(149 / 150 * ((left - left.mean()) ** 2).sum())
    logits = [logit(end) for end in (found.low, found.high)]
    assert (logits[1] - logits[0]) / (2 * 1.976) == pytest.approx(error, rel=0.05)


def test_the_interval_covers_a_planted_rate():
    hits = [rate_at_equal_style(*world(np.random.default_rng(seed))).covers(0.6) for seed in range(400)]
    assert 0.93 - 3 * 0.0128 <= np.mean(hits) <= 0.97 + 3 * 0.0085


def test_there_is_none_where_style_tells_all_or_prompts_are_few():
    x = np.linspace(-1, 1, 60)[:, None]
    assert rate_at_equal_style((x[:, 0] > 0).astype(float), x, np.arange(60)) is None
    y, x, places = world(np.random.default_rng(0), prompts=20)
    assert rate_at_equal_style(y, x, places) is None
    assert rate_at_equal_style(np.array([]), np.zeros((0, 4)), np.array([])) is None


# 36 prompts of AlpacaEval 2: weighted_alpaca_eval_gpt4_turbo's published preferences for FuseChat-Llama-3.2-3B-Instruct
# against gpt4_1106_preview, and the lengths of both. Difficulties and the two answerers are stand-ins.
PUBLIC = pd.read_csv(Path(__file__).parent / "alpaca_eval.csv")


def public_answers(trial_id="t", outcomes=None):
    texts = {
        name: ["x" * count for count in PUBLIC[f"{kind}characters"]]
        for name, kind in (("answer", ""), ("baseline_answer", "baseline_"))
    }
    prompts = PUBLIC["index"].astype(str)
    outcome = PUBLIC["preference"] if outcomes is None else outcomes
    return pd.DataFrame({"trial_id": trial_id, "prompt_id": prompts, "outcome": outcome, **texts})


@pytest.fixture
def gamed(tmp_path):
    """A file with the columns of AlpacaEval's df_gamed.csv."""
    rows = pd.concat(
        pd.DataFrame(
            {
                "model": kind,
                "index": PUBLIC["index"],
                "preference": PUBLIC[f"{kind}_preference"],
                "std_delta_len": PUBLIC[f"{kind}_length"],
                "instruction_difficulty": PUBLIC["difficulty"],
                "not_gamed_baseline": False,
            }
        )
        for kind in ("concise", "verbose")
    )
    rows.to_csv(tmp_path / "df_gamed.csv", index=False)
    return tmp_path / "df_gamed.csv"


def test_the_rate_is_that_of_the_package_alpaca_eval(gamed):
    # alpaca_eval 0.6.6 with scikit-learn 1.7, get_length_controlled_winrate on these values: 55.72038353792996.
    # liblinear ends its search at a tolerance of 1e-4.
    difficulties = adjusted.Difficulties.read(gamed)
    found = adjusted.alpaca_eval_rate(public_answers(), difficulties)
    assert 100 * found.value == pytest.approx(55.72038353792996, abs=2e-3)
    assert found.low < found.value < found.high
    # Without a verdict on a prompt, its difficulty still counts.
    missing = PUBLIC["preference"].where(PUBLIC["index"] != 5)
    assert adjusted.alpaca_eval_rate(public_answers(outcomes=missing), difficulties).value != found.value


def test_an_answer_without_a_text_counts_as_one_without_a_verdict(gamed):
    difficulties, place = adjusted.Difficulties.read(gamed), 7
    silent = public_answers()
    silent["answer"] = silent["answer"].where(silent.index != place, None)
    silent["baseline_answer"] = silent["baseline_answer"].where(silent.index != place, None)
    equal = public_answers(outcomes=PUBLIC["preference"].where(PUBLIC.index != place))
    equal.loc[place, ["answer", "baseline_answer"]] = "same"
    assert adjusted.alpaca_eval_rate(silent, difficulties) == adjusted.alpaca_eval_rate(equal, difficulties)


def test_seeds_are_fitted_alone_and_averaged(gamed):
    difficulties = adjusted.Difficulties.read(gamed)
    other = PUBLIC["preference"] * 0.8
    each = [adjusted.alpaca_eval_rate(public_answers(outcomes=y), difficulties).value for y in (None, other)]
    both = pd.concat([public_answers("t"), public_answers("u", other)])
    assert adjusted.alpaca_eval_rate(both, difficulties).value == pytest.approx(np.mean(each))


def test_coefficients_with_a_penalty_are_the_optimum_that_another_program_finds():
    rng = np.random.default_rng(2)
    y, x, weights = rng.random(80), rng.normal(size=(80, 3)), rng.random(80)

    def loss(parts, penalty):
        odds = x @ (parts[:3] - parts[3:])
        return weights @ (np.logaddexp(0, odds) - y * odds) + penalty * parts.sum()

    for penalty in (1e-4, 1.0, 3.0, 1e4):
        bounds = [(0, 50)] * 6
        parts = minimize(loss, np.zeros(6), (penalty,), "L-BFGS-B", bounds=bounds, options={"ftol": 1e-15}).x
        found = adjusted.fit(y, x, weights, penalty=penalty)
        assert found == pytest.approx(parts[:3] - parts[3:], abs=1e-4)
    assert not found.any()


def test_what_each_answer_stands_for_scatters_as_leaving_answers_out_does():
    rng = np.random.default_rng(4)
    x = np.column_stack([np.tanh(rng.normal(size=120)), rng.normal(size=120), np.ones(120)])
    y, at = (rng.random(120) < expit(x @ [1.0, 0.7, 0.3])).astype(float), x * [0, 1, 1]

    def rate(kept):
        return expit(at[kept] @ adjusted.fit(y[kept], x[kept], penalty=0.5)).mean()

    every = np.ones(120, bool)
    left = np.array([rate(np.arange(120) != place) for place in range(120)])
    values = adjusted.influence(y, x, at, adjusted.fit(y, x, penalty=0.5))
    assert values.mean() == pytest.approx(rate(every))
    jackknife = 119 * (left.mean() - left)
    assert np.corrcoef(values, jackknife)[0, 1] > 0.995
    assert values.std() == pytest.approx(jackknife.std(), rel=0.06)


def test_a_file_of_difficulties_alone_does_without_the_two_answerers(gamed, tmp_path):
    alone = tmp_path / "instruction_difficulty.csv"
    table = pd.read_csv(gamed).drop_duplicates("index")[["index", "instruction_difficulty"]]
    table.to_csv(alone, index=False)
    difficulties = adjusted.Difficulties.read(alone)
    assert len(difficulties.outcomes) == 0
    values = [adjusted.alpaca_eval_rate(public_answers(), adjusted.Difficulties.read(f)).value for f in (alone, gamed)]
    assert values[0] != pytest.approx(values[1], abs=1e-3)


def test_few_answers_have_no_rate(gamed):
    difficulties = adjusted.Difficulties.read(gamed)
    assert adjusted.alpaca_eval_rate(public_answers().head(29), difficulties) is None
    assert adjusted.alpaca_eval_rate(public_answers().head(30), difficulties) is not None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda table: table.drop(columns="instruction_difficulty"), "lacks index or instruction_difficulty"),
        (lambda table: table.assign(preference=table["preference"] + 1), "row 1 has no number, or a preference"),
        (lambda table: table.assign(std_delta_len="long"), "row 1 has no number"),
        (lambda table: table.assign(instruction_difficulty=range(72)), "the prompt 0 has several difficulties"),
        (lambda table: table[table["index"] > 3], r"4 of 36 report prompts have no difficulty there, the first 0\."),
    ],
)
def test_difficulties_of_something_else_are_refused(gamed, change, sentence):
    change(pd.read_csv(gamed)).to_csv(gamed, index=False)
    with pytest.raises(InputError, match=sentence):
        adjusted.alpaca_eval_rate(public_answers(), adjusted.Difficulties.read(gamed))
    with pytest.raises(InputError, match="cannot be read"):
        adjusted.Difficulties.read(gamed.parent / "nowhere.csv")


def test_log_odds_have_room_at_the_edges():
    found = statistics.logit_interval(0.02, statistics.Scatter(0.0, 49, 50))
    assert 0 < found.low < 0.02 < found.high < 1
    # Half of PRIOR in 50 prompts squared, on the log odds: t of 49 degrees is 2.0096.
    assert logit(found.high) - logit(0.02) == pytest.approx(2.0096 * np.sqrt(0.25 / 50**2) / (0.02 * 0.98), rel=1e-4)
