"""Intervals of stability: of numbers done by hand, and of what a run recorded."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap
from slime_ray.analysis import rows, stability, tables
from slime_ray.analysis.stability import stability_parts

from slime_ray.runs import results
from slime_ray.runs.stability_v1 import StabilityParts, stability_score
from tests.statistics.simulated import Trained

from .conftest import add_trial, finish

PARTS = list(asdict(Trained(1, 1, 1).parts()))


def drifted(**changes):
    """A simulated run of one trial and the intervals of it."""
    run = Trained(pairs=200, prompts=150, updates=150, **changes).draw(np.random.default_rng(0))
    return run, stability.intervals(run, run.trials)


def test_every_part_and_the_score_lie_in_intervals_around_their_estimates():
    run, found = drifted()
    pairs, answers = run.pairs, run.answers
    estimates = {
        "unlearning": np.maximum(0, pairs["chosen_logp0"] - pairs["chosen_logp"]).mean(),
        "rejected_collapse": pairs["rejected_collapsed"].sum() / pairs["rejected_tokens"].sum(),
        "entropy_shift": abs(
            np.log(
                (pairs["entropy"] * pairs["chosen_tokens"]).sum() / (pairs["entropy0"] * pairs["chosen_tokens"]).sum()
            )
        ),
        "broken_outputs": answers["broken"].mean() - answers["baseline_broken"].mean(),
        "length_shift": np.log(answers["answer_tokens"] / answers["baseline_tokens"]).mean(),
    }
    for name, value in estimates.items():
        assert found[name].low < value < found[name].high
    assert set(found) == {"stability", *PARTS}


def test_the_width_is_the_standard_error_of_the_mean():
    # U is a plain mean over pairs: its percentile interval is 2 * 1.96 standard errors wide.
    run, found = drifted()
    lost = np.maximum(0, run.pairs["chosen_logp0"] - run.pairs["chosen_logp"])
    width = found["unlearning"].high - found["unlearning"].low
    assert width == pytest.approx(2 * 1.96 * lost.std() / np.sqrt(len(lost)), rel=0.05)


def test_of_what_did_not_change_a_share_may_still_be_more_than_was_seen():
    run, _ = drifted()
    unchanged = run.pairs.assign(chosen_logp=0.0, rejected_collapsed=0, entropy=run.pairs["entropy0"])
    same = run.answers.assign(
        broken=run.answers["baseline_broken"], answer_tokens=run.answers["baseline_tokens"], prompt_id=range(150)
    )
    calm = replace(run, answers=same, curves=run.curves[run.curves["step"] < 20], pairs=unchanged)
    found = stability.intervals(calm, calm.trials.assign(stability=1.0, **dict.fromkeys(PARTS, 0.0)))
    certain = ("unlearning", "entropy_shift", "length_shift", "training_spikes")
    assert {(found[name].value, found[name].low, found[name].high) for name in certain} == {(0, 0, 0)}
    # Up to two of so many that nobody saw: 97.5 % of Poisson's with mean 1/2 are 2 or less.
    assert (found["rejected_collapse"].low, found["broken_outputs"].low) == (0, 0)
    assert found["rejected_collapse"].high == pytest.approx(2 / 200, rel=0.1)
    # Of the difference of two such numbers, broken before and after, 97.5 % are 2 or less, too.
    assert found["broken_outputs"].high == pytest.approx(2 / 150)
    assert found["stability"].low < found["stability"].high == 1


def test_a_training_without_a_spike_leaves_room_for_some_in_t_and_none_in_s():
    run, _ = drifted()
    curves = run.curves.assign(value=np.tile(1 + 0.01 * (-1.0) ** np.arange(150), 2))
    found = stability.intervals(replace(run, curves=curves), run.trials.assign(training_spikes=0.0))
    assert (found["training_spikes"].low, found["training_spikes"].high) == pytest.approx((0, 2 / 130))
    short = stability.intervals(replace(run, curves=curves[curves["step"] < 20]), run.trials)
    assert found["stability"] == short["stability"]


def test_spikes_in_a_row_tell_less_than_spikes_apart():
    run, _ = drifted()

    def width(steps):
        losses = 1 + 0.01 * (-1.0) ** np.arange(150)
        losses[steps] = 9.0
        curves = run.curves.assign(value=np.concatenate([losses, np.ones(150)]))
        found = stability.intervals(replace(run, curves=curves), run.trials)["training_spikes"]
        return found.high - found.low

    assert width(range(100, 106)) > 1.3 * width(range(25, 145, 20))


def test_shorter_answers_are_a_shift_as_longer_ones_are():
    run, found = drifted()
    swapped = {"answer_tokens": "baseline_tokens", "baseline_tokens": "answer_tokens"}
    shorter = stability.intervals(replace(run, answers=run.answers.rename(columns=swapped)), run.trials)
    assert shorter["length_shift"].low == pytest.approx(found["length_shift"].low)
    assert shorter["length_shift"].high == pytest.approx(found["length_shift"].high)


def test_the_upper_end_of_a_size_is_that_of_scipys_bootstrap_of_it():
    # A shift of half its standard error. Its size less what chance adds to it would end a third lower.
    run, _ = drifted()
    longer = np.random.default_rng(1).normal(0, 0.5, 150)
    longer += 0.5 * 0.5 / np.sqrt(150) - longer.mean()
    answers = run.answers.assign(prompt_id=range(150), answer_tokens=run.answers["baseline_tokens"] * np.exp(longer))
    found = stability.intervals(replace(run, answers=answers), run.trials.assign(length_shift=abs(longer.mean())))
    theirs = bootstrap(
        (longer,), lambda x, axis: np.abs(np.mean(x, axis=axis)), method="percentile", n_resamples=10_000, rng=0
    ).confidence_interval
    assert found["length_shift"].high == pytest.approx(theirs.high, rel=0.05)
    assert found["length_shift"].low == 0


def test_pairs_prompts_and_steps_of_every_trial_are_drawn_apart():
    run = Trained(pairs=150, prompts=150, updates=150).draw(np.random.default_rng(0))
    # The same in every pair and answer: resampled alike, they would rise and fall together.
    hit = np.arange(150) < 15
    pairs = run.pairs.assign(chosen_logp=np.where(hit, run.pairs["chosen_logp0"] - 1.0, run.pairs["chosen_logp0"]))
    answers = run.answers.assign(prompt_id=np.arange(150), broken=hit, baseline_broken=False)
    [(of_pairs, _)], [(of_prompts, _)] = (
        stability._of_pairs(pairs, 2000).values(),
        stability._of_prompts(answers, 2000).values(),
    )
    losses = np.where(np.arange(150) % 15 == 14, 9.0, 1 + 0.01 * (-1.0) ** np.arange(150))
    spikes = [stability._spikes(losses.tolist(), [1.0] * 150, place, 2000)[0] for place in (0, 1)]
    drawn = [of_pairs["unlearning"], of_prompts["broken_outputs"], *spikes]
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.1


def test_lost_seeds_count_as_zero_in_every_resample(judged_run, main):
    run = results.load(judged_run)
    dpo = main.frame.set_index("label").loc["dpo"]
    alone = run.trials[(run.trials["label"] == "dpo") & (run.trials["status"] == "completed")]
    one = stability.intervals(run, alone)["stability"]
    assert (dpo["stability_low"], dpo["stability_high"]) == pytest.approx((one.low / 2, one.high / 2))


def test_seeds_are_averaged_in_every_resample(tmp_path):
    # Both seeds share their pairs and prompts: the same draws, so the mean is that of each.
    for seed in (0, 1):
        add_trial(tmp_path, f"a{seed}", label="a", seed=seed, won=[1.0, 0.0, 1.0], pairs=30)
    add_trial(tmp_path, "b", label="b", won=[1.0, 0.0, 1.0], pairs=30)
    frame = tables.win_rate_stability(results.load(finish(tmp_path))).frame.set_index("label")
    for name in ("unlearning", "rejected_collapse", "entropy_shift", "stability"):
        for end in ("low", "high"):
            assert frame.loc["a", f"{name}_{end}"] == pytest.approx(frame.loc["b", f"{name}_{end}"])


@pytest.mark.parametrize(("pairs", "prompts"), [(2, 4), (30, 2), (1, 1)])
def test_parts_and_s_have_no_interval_where_their_pairs_or_prompts_are_too_few(tmp_path, pairs, prompts):
    add_trial(tmp_path, "a", label="a", won=[1.0] * prompts, pairs=pairs)
    table = tables.win_rate_stability(results.load(finish(tmp_path)))
    row = table.frame.iloc[0]
    assert np.isnan(row["stability_low"])
    assert np.isnan(row["unlearning_low"]) == (pairs < 3)
    assert np.isnan(row["broken_outputs_low"]) == (prompts < 3)
    assert "nan" not in table.text()


def test_a_row_with_a_seed_of_few_answers_has_an_interval(tmp_path):
    # Of 10,000 resamples of twenty prompts some thousand hold none of the second seed's two.
    for seed, prompts in enumerate((20, 2)):
        add_trial(tmp_path, f"a{seed}", label="a", seed=seed, won=[1.0] * prompts, pairs=30)
    frame = tables.win_rate_stability(results.load(finish(tmp_path))).frame
    assert frame["stability_low"][0] < frame["stability"][0] <= frame["stability_high"][0]


def test_a_row_with_a_seed_that_recorded_no_pairs_has_no_interval_and_says_its_seeds(tmp_path):
    add_trial(tmp_path, "a0", label="a", seed=0, won=[1.0, 0.0], pairs=30, stability=0.2)
    add_trial(tmp_path, "a1", label="a", seed=1, won=[1.0, 0.0], stability=0.4)
    table = tables.win_rate_stability(results.load(finish(tmp_path)))
    assert np.isnan(table.frame["stability_low"][0])
    cells = {column.head: column.cells for column in table.columns}
    assert cells["stability S"] == ("0.30 (0.20–0.40)",)


def test_a_trial_stopped_without_measuring_says_nothing_about_stability(tmp_path):
    unknown = dict.fromkeys(PARTS) | {"stability": None, "status": "stopped", "reason": "told to"}
    add_trial(tmp_path, "a", label="a", pairs=30, **unknown)
    table = tables.win_rate_stability(results.load(finish(tmp_path)))
    assert np.isnan(table.frame["stability_low"][0])


def test_the_shares_of_the_damage_add_up(tmp_path):
    # (0.1/0.1)^2 = 1 and (0.7/0.35)^2 = 4: a fifth and four fifths.
    parts = {"unlearning": 0.1, "entropy_shift": 0.7}
    score = stability_score(StabilityParts(**(dict.fromkeys(PARTS, 0.0) | parts)), healthy=True)
    add_trial(tmp_path, "a", label="a", won=[1.0], stability=score, **parts)
    add_trial(tmp_path, "b", label="b", status="failed", reason="x", stability=0.0)
    run = results.load(finish(tmp_path))
    frame = stability_parts(run, tables.win_rate_stability(run)).frame.set_index("label")
    assert frame.loc["a", ["unlearning_share", "entropy_shift_share"]].tolist() == pytest.approx([0.2, 0.8])
    assert frame.loc["a", [f"{name}_share" for name in PARTS]].sum() == pytest.approx(1)
    assert frame.loc["b", [f"{name}_share" for name in PARTS]].isna().all()
    # A seed that failed lost nothing to a part.
    assert stability.damage_shares(run.trials) == pytest.approx(stability.damage_shares(run.trials.iloc[:1]))


def test_the_table_of_parts_fits_a_terminal_and_says_its_tolerances(judged_run, main):
    table = stability_parts(results.load(judged_run), main)
    assert table.frame["label"].tolist() == main.frame["label"].tolist()
    text = table.text()
    assert max(map(len, text.splitlines())) <= 140
    heads = next(line for line in text.splitlines() if line.startswith("label"))
    assert heads.split() == ["label", "U", "C", "H", "B", "L", "T"]
    assert "U 0.10, C 0.05, H 0.35, B 0.05, L 0.40, T 0.01" in table.caption
    assert "U %" in table.markdown()
    assert {"unlearning_low", "unlearning_high", "unlearning_share", "stability_low"} <= set(table.frame)


def test_bars_divide_what_was_lost_so_that_a_row_that_lost_nothing_has_none():
    shares = {f"{name}_share": [0.5, 0.5] for name in rows.PARTS}
    frame = pd.DataFrame({"stability": [1.0, 0.4], **shares, **{name: [0.0, 0.1] for name in rows.PARTS}})
    assert [column.bars for column in stability.part_columns(frame, keep=1)] == [(0.0, pytest.approx(0.3))] * len(
        rows.PARTS
    )
