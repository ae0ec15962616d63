"""What the tables say, on hand-made runs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from slime_ray.analysis import figures, rows, statistics, tables, trial_tables

from slime_ray.runs import results

from .conftest import ARMS, PROMPTS, add_trial, finish, outcomes
from .ends import score_ends


def row(table, label):
    return table.frame.set_index("label").loc[label]


def small(tmp_path, **won):
    """A run of one arm per keyword with these outcomes, seed 0 (a list) or several seeds (a list of lists)."""
    for label, values in won.items():
        for seed, of_seed in enumerate(values if isinstance(values[0], list) else [values]):
            add_trial(tmp_path, f"arm-{label}-s{seed}", label=label, seed=seed, won=of_seed)
    return tables.win_rate_stability(results.load(finish(tmp_path)))


def test_every_arm_and_confirmed_winner_has_one_row_sorted_by_win_rate(main):
    assert sorted(main.frame["label"]) == sorted([*ARMS, "search-0004"])
    rates = main.frame["win_rate"].tolist()
    assert rates == sorted(rates, reverse=True)
    assert row(main, "nll")["win_rate"] == pytest.approx(18 / 24)


def test_failed_and_diverged_seeds_count_as_stability_zero_and_are_named(main):
    # dpo: 0.1 with seed 0, failed with seed 1. simpo: 0.05 and diverged.
    assert row(main, "dpo")["stability"] == pytest.approx(0.05)
    assert row(main, "dpo")["stability_min"] == 0
    assert (row(main, "dpo")["seeds_finished"], row(main, "dpo")["seeds"]) == (1, 2)
    assert row(main, "dpo")["note"] == "failed 1 of 2: out of memory"
    assert row(main, "simpo")["stability"] == pytest.approx(0.025)
    assert row(main, "simpo")["note"] == "diverged 1 of 2: loss became nan"


def test_sigma_is_the_sample_deviation_of_the_seeds_win_rates(tmp_path):
    # Win rates 1/4 and 3/4: mean 1/2, deviation sqrt((1/16 + 1/16) / 1).
    table = small(tmp_path, a=[[1, 0, 0, 0], [1, 1, 1, 0]])
    assert row(table, "a")["sigma"] == pytest.approx(np.sqrt(1 / 8))
    assert row(table, "a")["win_rate"] == pytest.approx(0.5)


def test_the_best_and_all_that_is_not_separable_are_bold_and_the_highest_of_the_rest_is_second(tmp_path):
    # a wins always; b loses 1 of 40: resamples without that prompt exist, so the interval touches 0. c and d lose 20
    # and 30 of 40: no resample gives 0.
    table = small(tmp_path, a=[1.0] * 40, b=[0.0] + [1.0] * 39, c=[0.0] * 20 + [1.0] * 20, d=[0.0] * 30 + [1.0] * 10)
    assert table.frame["label"].tolist() == ["a", "b", "c", "d"]
    assert table.frame["win_rate_mark"].tolist() == ["best", "best", "second", ""]


def test_pairing_tells_apart_what_two_intervals_cannot(tmp_path):
    # On each of the ten prompts that differ, a is half a point better; the intervals of a and b overlap widely.
    base = [1.0, 0.0] * 20
    better = [min(1.0, value + 0.5) for value in base]
    table = small(tmp_path, a=better, b=base)
    assert row(table, "b")["win_rate_high"] > row(table, "a")["win_rate_low"] - 0.15
    assert table.frame["win_rate_mark"].tolist() == ["best", "second"]


def test_rows_are_compared_on_the_seeds_that_both_have_and_the_rest_is_named(tmp_path):
    # With seed 1, which both have, all rows win everything: pairing seeds by their place, or the means over all seeds,
    # would tell a from b.
    for label, seed, won in (("a", 1, 1.0), ("a", 2, 1.0), ("b", 0, 0.0), ("b", 1, 1.0), ("c", 7, 0.0)):
        add_trial(tmp_path, f"{label}{seed}", label=label, seed=seed, won=[won] * 10)
    table = tables.win_rate_stability(results.load(finish(tmp_path)))
    assert table.frame["win_rate_mark"].tolist() == ["best", "best", "best"]
    notes = "\n".join(table.notes)
    assert "the seeds that both have. Not common to all: seeds 1, 2 of a and seeds 0, 1 of b and seed 7 of c." in notes
    assert "No seed, or no prompt, in common with a, so neither compared with it nor told apart: c." in notes


def test_rows_of_equal_truths_are_told_apart_at_most_as_often_as_promised_where_one_lost_a_seed():
    # The seed that the other row lost is a lucky one, which moves the mean over all six by three standard errors.
    rng = np.random.default_rng(3)
    shared = np.array([0.95, 0.5, 0.45, 0.55, 0.5, 0.5])
    told = 0
    for _ in range(200):
        one, other = ((rng.random((6, 200)) < shared[:, None]).astype(float) for _ in range(2))
        told += tables.separable((list(range(6)), one), (list(range(1, 6)), other[1:]))
    # Three standard deviations of 200 tries at 5 % are 4.6 points.
    assert told / 200 < 0.096


def test_the_caption_says_what_the_interval_of_each_row_is_over(tmp_path):
    rng = np.random.default_rng(0)
    for label, seeds in (("a", 5), ("b", 2)):
        for seed in range(seeds):
            add_trial(
                tmp_path, f"{label}{seed}", label=label, seed=seed, won=rng.integers(0, 2, 30).astype(float).tolist()
            )
    run = results.load(finish(tmp_path))
    table = tables.win_rate_stability(run)
    assert dict(zip(table.frame["label"], table.frame["win_rate_over"], strict=True)) == {
        "a": "seeds and prompts",
        "b": "prompts",
    }
    assert (
        "over seeds and prompts (two-way analysis of variance, random effects) of rows with 5 seeds or more; of the others 95 % score interval over prompts"
        in table.caption
    )
    wide = run.answers[run.answers["label"] == "a"].pivot(index="seed", columns="prompt_id", values="outcome")
    expected = statistics.row_interval(wide.to_numpy(dtype=float))
    of_a = row(table, "a")
    assert (of_a["win_rate_low"], of_a["win_rate_high"]) == pytest.approx((expected.low, expected.high))


def test_stability_marks_go_by_the_mean(main):
    assert row(main, "sft")["stability_mark"] == "best"
    assert row(main, "nll")["stability_mark"] == "second"


def test_no_change_needs_both_little_divergence_and_an_interval_over_one_half(main):
    assert "no change" in row(main, "sft")["note"]
    assert "no updates" in row(main, "sft")["note"]
    # Wins one half too, but with K = 0.1.
    assert "no change" not in row(main, "slime-paper")["note"]


def test_missing_verdicts_are_counted_with_their_worst_and_best_case(tmp_path):
    table = small(tmp_path, a=[1.0, 1.0, 0.0, float("nan")])
    assert row(table, "a")["win_rate"] == pytest.approx(2 / 3)
    assert row(table, "a")["note"] == "2 missing verdicts: between 50.0 and 75.0 %"


def test_without_a_judge_accuracy_leads_and_no_win_rate_is_claimed(unjudged_run):
    table = tables.win_rate_stability(results.load(unjudged_run))
    heads = [column.head for column in table.columns]
    assert heads[3:6] == ["acc. %", "margin", "win rate"]
    assert set(table.columns[5].cells) == {"not judged"}
    assert table.frame["win_rate"].isna().all()
    assert "bootstrap" not in table.caption


def test_temperatures_of_categories_are_named_with_them_and_nothing_is_said_where_there_are_none():
    decoding = {"temperature": 0.0, "temperatures": {"writing": 0.7, "stem": 0.1}, "batch": 4}
    words = "temperature 0.0, batch 4, temperature 0.7 for writing, temperature 0.1 for stem"
    assert rows.decoding_words({"decoding": decoding}) == words
    # A batch that memory decides is null.
    assert rows.decoding_words({"decoding": decoding | {"temperatures": {}, "batch": None}}) == "temperature 0.0"
    assert rows.decoding_words({}) == "not recorded"


def test_caption_and_first_note_name_estimator_prompts_seeds_judge_version_and_decoding(main):
    for words in (
        "95 % score interval over prompts",
        f"{PROMPTS} report prompts",
        "Seeds 0, 1",
        "judge exact",
    ):
        assert words in main.caption + main.notes[0]
    assert "stability-v1" in main.notes[0]
    assert main.notes[0].endswith("Decoding: temperature 1.0.")


@pytest.mark.parametrize(("seeds", "said"), [(1, True), (4, True), (5, False)])
def test_fewer_than_five_seeds_speak_of_these_checkpoints_only(tmp_path, seeds, said):
    for seed in range(seeds):
        add_trial(tmp_path, f"a{seed}", label="a", seed=seed, won=[1.0, 0.0])
    table = tables.win_rate_stability(results.load(finish(tmp_path, {"seeds": list(range(seeds))})))
    assert any("hese checkpoints only" in note for note in table.notes) == said


def test_the_front_follows_the_goals(judged_run):
    run = results.load(judged_run)
    frame = trial_tables.search_trials(run).frame.set_index("trial_id")
    # 0 to 4 trade win rate for stability; 5 to 7 win as often as 4 and are less stable.
    assert frame["on_front"].sort_index().tolist() == [True] * 5 + [False] * 3
    run.manifest["goals"] = {"stability": "minimize"}
    assert (
        trial_tables.search_trials(run).frame.set_index("trial_id")["on_front"].sort_index().tolist()
        == [False] * 5 + [True] * 3
    )


def test_trials_that_were_judged_on_fewer_prompts_are_named(tmp_path):
    for number, won in enumerate(([1.0] * 24, [0.0] * 8), 1):
        add_trial(tmp_path, f"search-000{number}", phase="search", prompt_set="selection", won=won)
    table = trial_tables.search_trials(results.load(finish(tmp_path)))
    assert "measured on 24 selection prompts" in table.caption
    assert "as judge_first has it or verdicts are missing: search-0002 (8)." in table.notes[0]


def test_the_summary_names_the_highest_of_the_trials_that_may_win(judged_run):
    run = results.load(judged_run)
    run.manifest["experiment"] = {**run.manifest["experiment"], "constraints": ["stability >= 0.75"]}
    _, settled = tables.answer(run, tables.win_rate_stability(run))
    # 0004 wins most, at a stability of 0.5.
    assert any("2 of 8 trials on the front, highest 41.7" in text and "(search-0001)" in text for text in settled)


def test_failures_are_listed_also_those_that_only_the_manifest_knows(judged_run):
    run = results.load(judged_run)
    run.manifest["failed_trials"] = [{"trial_id": "z", "status": "failed", "reason": "killed"}]
    assert trial_tables.failures(run).frame["reason"].tolist() == ["out of memory", "loss became nan", "killed"]


def test_small_shares_of_spikes_are_not_printed_as_none(tmp_path):
    # Its tolerance is 0.01: 0.004 of the updates already costs (0.4)^2.
    add_trial(tmp_path, "a", label="a", won=[1.0, 0.0], training_spikes=0.004)
    columns = {c.head: c.cells for c in tables.win_rate_stability(results.load(finish(tmp_path))).columns}
    assert columns["T"] == ("0.004",)


def test_a_stopped_seed_is_measured_and_counts_in_rates_as_in_stability(tmp_path):
    # Leaving its losses out would reward whoever stops the runs that drift.
    add_trial(tmp_path, "a0", label="a", seed=0, won=[1.0, 1.0, 1.0], stability=0.6)
    add_trial(
        tmp_path,
        "a1",
        label="a",
        seed=1,
        won=[0.0, 0.0, 0.0],
        stability=0.2,
        status="stopped",
        reason="drifted",
        kl_to_sft=0.3,
    )
    a = row(tables.win_rate_stability(results.load(finish(tmp_path))), "a")
    assert a["win_rate"] == pytest.approx(0.5)
    assert a["stability"] == pytest.approx(0.4)
    assert a["kl_to_sft"] == pytest.approx(0.2)
    assert (a["seeds_finished"], a["seeds"]) == (1, 2)
    assert a["note"] == "stopped 1 of 2: drifted"


@pytest.mark.parametrize("won", [[1.0], [1.0, 0.0]], ids=["one", "two"])
def test_a_row_of_too_few_prompts_says_so_and_is_told_apart_from_nothing(tmp_path, won):
    add_trial(tmp_path, "a", label="a", won=won)
    add_trial(tmp_path, "b", label="b", won=[0.0] * len(won))
    run = results.load(finish(tmp_path))
    table = tables.win_rate_stability(run)
    assert table.remarks == ("too few prompts for an interval",) * 2
    assert table.frame["win_rate_mark"].tolist() == ["best", "best"]
    cells = next(column.cells for column in table.columns if column.head.startswith("win rate"))
    assert cells == (f"{100 * np.mean(won):.1f}", "0.0")
    _, said = tables.answer(run, table)
    assert "(too few prompts for an interval)" in said[0]
    figures.pareto(run, table)
    for text in (table.text(), table.markdown(), table.html(), *said):
        assert "nan" not in text


def test_no_interval_is_without_width(tmp_path):
    add_trial(tmp_path, "a", label="a", won=[1.0] * 4, pairs=30)
    frame = tables.win_rate_stability(results.load(finish(tmp_path))).frame
    for name in ("win_rate", "stability", "rejected_collapse", "broken_outputs"):
        assert frame[f"{name}_low"][0] < frame[f"{name}_high"][0]


def test_one_row_with_few_finished_seeds_is_enough_to_speak_of_checkpoints_only(tmp_path):
    for seed in range(5):
        add_trial(tmp_path, f"a{seed}", label="a", seed=seed, won=[1.0, 0.0])
        status = {} if seed else {"status": "failed", "reason": "no memory", "stability": 0.0}
        add_trial(tmp_path, f"b{seed}", label="b", seed=seed, won=[1.0, 0.0] if seed else None, **status)
    table = tables.win_rate_stability(results.load(finish(tmp_path, {"seeds": list(range(5))})))
    assert any(note.startswith("These checkpoints only: 4 seeds per row") for note in table.notes)


def test_answers_to_one_prompt_stay_together_and_do_not_narrow_the_interval(tmp_path):
    # Every prompt asked three times, answered alike each time: as much is known as from asking once.
    once, thrice = [1.0, 0.0] * 10, [value for value in [1.0, 0.0] * 10 for _ in range(3)]
    add_trial(tmp_path, "a", label="a", won=once)
    add_trial(tmp_path, "b", label="b", won=thrice, prompt_id=lambda index: f"p{index // 3:02}")
    table = tables.win_rate_stability(results.load(finish(tmp_path)))
    for name in ("win_rate", "win_rate_low", "win_rate_high"):
        assert row(table, "b")[name] == row(table, "a")[name]


def test_prompts_of_categories_are_taken_by_topic_and_a_note_says_so(tmp_path):
    # Six topics of three prompts, each topic won or lost as a whole.
    won = [float(topic % 2) for topic in range(6) for _ in range(3)]
    for seed in range(5):
        add_trial(tmp_path, f"a{seed}", label="a", seed=seed, won=won)
    run = results.load(finish(tmp_path, {"seeds": list(range(5))}))
    places = pd.factorize(run.answers["prompt_id"], sort=True)[0] // 3
    by_topic, of_few = (
        replace(run, answers=run.answers.assign(category=[f"topic {place}" for place in topics]))
        for topics in (places, places // 3)
    )
    found, plain, few = (row(tables.win_rate_stability(one), "a") for one in (by_topic, run, of_few))
    # The effective number is that of six topics, which have half a prompt of eighteen added on either side.
    variance = 0.25 / 5
    effective = 18 * (18 / 4 + 0.25) / (variance * 18**2 + 0.25)
    assert (found["win_rate_low"], found["win_rate_high"]) == pytest.approx(score_ends(0.5, effective, 5))
    assert plain["win_rate_low"] == few["win_rate_low"] > found["win_rate_low"]
    notes = [" ".join(tables.win_rate_stability(one).notes) for one in (by_topic, run, of_few)]
    assert "6 topics, which are the units" in notes[0]
    assert "topics" not in notes[1]
    assert "2 topics: intervals are of these topics only" in notes[2]


def with_retention(tmp_path, changes):
    """The main table of one arm whose scores on the retention prompts changed like this, one list a seed."""
    for seed in range(len(changes)):
        add_trial(tmp_path, f"arm-a-s{seed}", label="a", seed=seed, won=[1.0, 0.0, 1.0])
    run = results.load(finish(tmp_path))
    rows = [
        {"trial_id": f"arm-a-s{seed}", "label": "a", "phase": "arm", "seed": seed, "prompt_id": f"k{place}",
         "score": 5.0 + change, "baseline_score": 5.0}
        for seed, own in enumerate(changes) for place, change in enumerate(own)
    ]  # fmt: skip
    return tables.win_rate_stability(replace(run, retention=pd.DataFrame(rows)))


def test_retention_is_the_mean_change_with_an_interval_that_may_leave_0_to_1(tmp_path):
    table = with_retention(tmp_path, [[-3.0, -1.0, -2.0, -2.0]])
    assert row(table, "a")["retention"] == pytest.approx(-2.0)
    ends = [row(table, "a")[f"retention_{end}"] for end in ("low", "high")]
    assert ends == pytest.approx(stats.ttest_1samp([-3.0, -1.0, -2.0, -2.0], 0).confidence_interval(0.95))
    assert "retention [95 %]" in [column.head for column in table.columns]
    assert any(note.startswith("retention: mean score") for note in table.notes)


def test_retention_over_five_seeds_is_the_two_way_interval(tmp_path):
    rng = np.random.default_rng(0)
    changes = rng.normal(-2, 1, (5, 12))
    table = with_retention(tmp_path, changes.tolist())
    two_way = statistics.TwoWay.of(changes)
    error, freedom = two_way.error()
    half = stats.t.ppf(0.975, freedom) * error
    expected = statistics.Interval(two_way.mean, two_way.mean - half, two_way.mean + half)
    found = [row(table, "a")[name] for name in ("retention", "retention_low", "retention_high")]
    assert found == pytest.approx([expected.value, expected.low, expected.high])
    assert expected.low < -1  # Not cut to the range of a win rate.


def test_without_retention_prompts_there_is_no_such_column(main):
    assert main.frame["retention"].isna().all()
    assert not any(column.head.startswith("retention") for column in main.columns)


def test_rows_whose_weights_were_chosen_by_held_out_pairs_are_said_to_be_flattered(tmp_path):
    for keep in ("last", {"preference_accuracy": "maximize"}):
        label = "last" if keep == "last" else "best"
        add_trial(tmp_path, label, label=label, won=[1.0] * 12 + [0.0] * 12, settings={"training": {"keep": keep}})
    notes = tables.win_rate_stability(results.load(finish(tmp_path))).notes
    assert [note[:61] for note in notes if "training.keep" in note] == [
        "1 of 2 trials keep the weights of their best evaluation (trai"
    ]


def test_prompts_that_rows_or_seeds_do_not_share_are_said(tmp_path):
    for seed in range(5):
        add_trial(tmp_path, f"a{seed}", label="a", seed=seed, won=outcomes(0.9))
        add_trial(tmp_path, f"b{seed}", label="b", seed=seed, won=outcomes(0.5), prompt_id=lambda index: f"q{index}")
        alone = {"won": outcomes(0.95), "prompt_id": lambda index, seed=seed: f"c{seed}-{index}"}
        add_trial(tmp_path, f"c{seed}", label="c", seed=seed, **alone)
    table = tables.win_rate_stability(results.load(finish(tmp_path)))
    # The best row is not among those that cannot be compared with it, though its own seeds share no prompt.
    assert "No seed, or no prompt, in common with c, so neither compared with it nor told apart: a, b." in table.notes
    said = (
        "Fewer than 3 prompts have a verdict with every seed of c: the interval is of these checkpoints, over prompts."
    )
    assert said in table.notes


def test_rows_without_a_stability_are_not_called_the_most_stable(tmp_path):
    for label in "ab":
        add_trial(tmp_path, label, label=label, won=outcomes(0.5), stability=None)
    run = results.load(finish(tmp_path))
    _, said = tables.answer(run, tables.win_rate_stability(run))
    assert said
    assert not any("nan" in sentence or "most stable" in sentence for sentence in said)
