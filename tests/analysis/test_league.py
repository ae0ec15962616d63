"""A league's tables on made-up outcomes, beside brute force and other libraries' numbers."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from slime_ray.analysis import effects, league, league_tables, statistics, tables

from slime_ray.runs import results
from slime_ray.runs.pareto import best_rows

from . import designs

BETA = "objective.beta"


def league_run(
    won,
    *,
    searched=None,
    lost=None,
    stability=None,
    failed_searches=(),
    without_verdicts=(),
    defaults=None,
    judged=True,
):
    """A league of the entries in `won`: (seeds, prompts) confirmed outcomes of each winner, its second search trial.

    searched: win rates of the search trials by entry. failed_searches: entries none of whose trials completed.
    without_verdicts: entries whose first trial completed and was not judged. defaults: outcomes of the defaults.
    """
    searched = searched or {}
    winners = {label: f"search-{label}-0002" for label in won}
    confirmed = {winners[label]: outcomes for label, outcomes in won.items() if label not in failed_searches}
    confirmed |= {f"{winners[label]}-defaults": outcomes for label, outcomes in (defaults or {}).items()}
    run = designs.run_of(
        designs.leave_one_out(),
        confirmed,
        lost={(winners[label], seed): how for (label, seed), how in (lost or {}).items()},
        stability={winners[label]: scores for label, scores in (stability or {}).items()},
        judged=judged,
    )
    for frame in (run.trials, run.answers, run.pairs):
        frame["phase"] = "confirm"
    run.trials["tokens"], run.trials["total_seconds"], run.trials["workers"] = 100.0, 60.0, 2.0
    rows = []
    for label in won:
        for number, rate in enumerate(searched.get(label, (0.4, 0.6, 0.5)), start=1):
            failed = label in failed_searches
            name = f"search-{label}-{number:04}"
            unjudged = not judged or failed or (label in without_verdicts and number == 1)
            rows.append(
                dict.fromkeys(run.trials.columns)
                | {"trial_id": name, "label": name, "phase": "search", "seed": 1000, "judge": "exact"}
                | {"status": "failed" if failed else "completed", "reason": "out of memory" if failed else None}
                | {"win_rate": None if unjudged else rate, "preference_accuracy": None if failed else rate}
                | {"stability": 0.0 if failed else 0.8, "tokens": 1000.0, "total_seconds": 60.0, "workers": 1.0}
            )
    both = pd.concat([run.trials, pd.DataFrame(rows).astype(run.trials.dtypes)], ignore_index=True)
    both[results.KNOB + BETA] = np.where(both["phase"] == "search", 0.4, np.nan)
    both[results.KNOB + "training.learning_rate"] = np.where(both["phase"] == "search", 2e-4, np.nan)
    entry = {
        "objective": "dpo",
        "set": {},
        "search": {"dimensions": {BETA: {"uniform": None, "log_uniform": [0.01, 1.0]}}},
        "defaults": {BETA: 0.1},
    }
    data = {
        "entries": [{"label": label, **entry} for label in won],
        "trials": 3,
        "seeds": 5,
        "defaults": defaults is not None,
        "rule": "the best",
    }
    goals = {"win_rate" if judged else "preference_accuracy": "maximize"}
    manifest = run.manifest | {"goals": goals, "experiment": {"league": data}}
    return replace(run, trials=both, manifest=manifest)


def standings_of(*args, **named):
    run = league_run(*args, **named)
    found = next(iter(league.Standings.by_checkpoint(run, tables.win_rate_stability(run))), None)
    assert found is not None
    return found


def by_rate(rates, *, seeds=5, prompts=200, seed=0):
    """Outcomes of entries a, b, ... with these rates: independent draws."""
    rng = np.random.default_rng(seed)
    return {
        name: designs.outcomes(rng, rate, seeds=seeds, prompts=prompts)
        for name, rate in zip("abcdefghij", rates, strict=False)
    }


def row_of(table, entry):
    return table.frame.set_index("entry").loc[entry]


def crossed_t(d):
    """Two-sided p by expected mean squares, as a textbook has it: v = (MS_seed + MS_prompt - MS_rest) / (s p)."""
    seeds, prompts = d.shape
    long = pd.DataFrame(
        {"y": d.ravel(), "s": np.repeat(np.arange(seeds), prompts), "p": np.tile(np.arange(prompts), seeds)}
    )
    grand = long["y"].mean()
    of_s = prompts * ((long.groupby("s")["y"].mean() - grand) ** 2).sum() / (seeds - 1)
    of_p = seeds * ((long.groupby("p")["y"].mean() - grand) ** 2).sum() / (prompts - 1)
    total = ((long["y"] - grand) ** 2).sum()
    rest = (total - of_s * (seeds - 1) - of_p * (prompts - 1)) / ((seeds - 1) * (prompts - 1))
    if of_s <= rest:
        error, freedom = math.sqrt(max(of_p, rest) / (seeds * prompts)), prompts - 1
    else:
        part = of_s + max(of_p - rest, 0)
        error = math.sqrt(part / (seeds * prompts))
        freedom = part**2 / (of_s**2 / (seeds - 1) + of_p**2 / (prompts - 1) + rest**2 / ((seeds - 1) * (prompts - 1)))
    # Half a prompt that differs by 1 and half a one by -1: their squares over those of the number of prompts.
    error = math.hypot(error, 1 / prompts)
    return 2 * stats.t.sf(abs(grand) / error, min(freedom, 3 * (seeds - 1)))


def corrected(p_values):
    """Holm's p by closed testing: of all sets with a comparison, the largest Bonferroni p of their intersections."""
    places = range(len(p_values))
    sets = [some for size in range(1, len(p_values) + 1) for some in itertools.combinations(places, size)]
    least = {some: min(1.0, len(some) * min(p_values[place] for place in some)) for some in sets}
    return np.array([max(p for some, p in least.items() if place in some) for place in places])


def test_ranks_follow_from_holm_over_an_entrys_own_comparisons():
    won = by_rate([0.8, 0.55, 0.5, 0.2, 0.55], seed=3)
    found = standings_of(won)
    for name in won:
        others = [other for other in won if other != name]
        d = [won[name] - won[other] for other in others]
        over_seeds = [stats.ttest_1samp(one.mean(axis=1), 0).pvalue for one in d]
        over_prompts = [stats.wilcoxon(one.mean(axis=0), method="asymptotic").pvalue for one in d]
        # Signs are flipped there; here their ranks stand in for them, which none of these comparisons hangs on.
        largest = np.max([over_seeds, over_prompts, [crossed_t(one) for one in d]], axis=0)
        apart = corrected(largest) < 0.05
        better = sum(one.mean() < 0 for one, is_apart in zip(d, apart, strict=True) if is_apart)
        worse = sum(one.mean() > 0 for one, is_apart in zip(d, apart, strict=True) if is_apart)
        assert found.ranks[name] == (1 + better, len(won) - worse)
    assert found.ranks["a"] == (1, 1)
    assert found.ranks["d"] == (5, 5)


def claim(p):
    """Of a pair whose first is ahead."""
    p_values = {"seeds": p / 2, "both": p}
    return effects.Claim(np.zeros((5, 100)), statistics.Interval(0.1, 0.0, 0.2), p_values, {}, 0.05)


def test_ranks_are_corrected_over_the_entrys_own_pairs_and_need_all_tests():
    near = {("a", "b"): claim(0.03), ("a", "c"): claim(0.04), ("b", "c"): None}
    assert league.ranks(near) == {"a": (1, 3), "b": (1, 3), "c": (1, 3)}
    clear = {("a", "b"): claim(0.02), ("a", "c"): claim(0.04), ("b", "c"): claim(0.9)}
    assert league.ranks(clear) == {"a": (1, 1), "b": (2, 3), "c": (1, 3)}


def test_pairs_are_separable_where_three_tests_agree_after_holm_over_all_pairs():
    won = by_rate([0.7, 0.6, 0.55, 0.3], seed=1)
    found = standings_of(won)
    frame = league_tables.pairs(found).frame
    d = {pair: won[pair[0]] - won[pair[1]] for pair in zip(frame["better"], frame["other"], strict=True)}
    assert len(d) == 6
    over_seeds = [stats.ttest_1samp(one.mean(axis=1), 0).pvalue for one in d.values()]
    by_seeds, by_both = (corrected(p) for p in (over_seeds, [crossed_t(one) for one in d.values()]))
    assert frame["p_seeds"].to_numpy() == pytest.approx(by_seeds)
    assert frame["p_both"].to_numpy() == pytest.approx(by_both)
    assert frame["difference"].to_numpy() == pytest.approx([one.mean() for one in d.values()])
    largest = np.maximum(np.maximum(by_seeds, by_both), frame["p_prompts"])
    assert (frame["verdict"] == "separable").tolist() == (largest < 0.05).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_entries_share_a_letter_exactly_where_they_are_not_apart(seed):
    rng = np.random.default_rng(seed)
    names = list("abcdefg")
    every = list(itertools.combinations(names, 2))
    apart = [pair for pair in every if rng.random() < 0.5]
    found = league.letters(names, apart)
    for one, other in every:
        assert bool(set(found[one]) & set(found[other])) == ((one, other) not in apart)
    # No letter is one too many: its entries are not all in another one's.
    groups = {letter: {name for name in names if letter in found[name]} for letter in set("".join(found.values()))}
    assert not any(one < other for one in groups.values() for other in groups.values())


def test_one_entry_with_too_few_seeds_leaves_the_others_their_ranks():
    won = by_rate([0.9, 0.5, 0.5, 0.1])
    found = standings_of(won, lost={("c", 4): "failed"})
    assert np.isnan(found.ranks["c"]).all()
    # a beats b and d; c may stand before it or behind.
    assert found.ranks["a"] == (1, 2)
    assert found.ranks["d"] == (3, 4)
    table = league.standings(found)
    assert any("Fewer than 5 seeds in common" in note and "c" in note for note in table.notes)
    assert any("seed 4 of" in note for note in table.notes)
    assert not any("These checkpoints only" in note for note in table.notes)
    assert row_of(table, "c")["seeds_finished"] == 4
    assert "failed 1 of 5" in row_of(table, "c")["note"]


def test_an_entry_without_a_completed_trial_stays_with_its_reason():
    found = standings_of(by_rate([0.8, 0.4, 0.4]), failed_searches=("b",))
    table = league.standings(found)
    last = table.frame.iloc[-1]
    assert last["entry"] == "b"
    assert "failed 3: out of memory" in last["note"]
    assert last["completed"] == 0
    assert np.isnan(last["rank"])
    assert not last["letters"]
    assert any("of the 2 confirmed" in note for note in table.notes)
    open_, _ = league.sentences(found, table)
    assert any(sentence.startswith("How b does: no trial completed") for sentence in open_)
    assert set(league_tables.tuning(found).frame["entry"]) == {"a", "b", "c"}


def test_ties_share_their_rank_and_their_letter():
    same = by_rate([0.6])["a"]
    found = standings_of({"a": same, "b": same.copy(), "c": 1 - same})
    frame = league.standings(found).frame.set_index("entry")
    assert frame["rank"].tolist() == [1, 1, 3]
    assert frame.loc["a", "letters"] == frame.loc["b", "letters"]
    assert (frame.loc["a", "rank_low"], frame.loc["a", "rank_high"]) == (1, 2)
    assert league_tables.pairs(found).frame.loc[0, "p"] == 1.0


def test_rates_of_two_percent_stay_within_their_range():
    found = standings_of(by_rate([0.02, 0.02, 0.03], prompts=256))
    frame = league.standings(found).frame
    assert (frame["win_rate_low"] >= 0).all()
    assert (frame["win_rate"] < 0.05).all()
    assert (frame["rank_low"] == 1).all()
    assert (frame["rank_high"] == 3).all()
    assert set(frame["letters"]) == {"a"}


def test_few_seeds_separate_nothing_and_say_so():
    found = standings_of(by_rate([0.9, 0.1], seeds=3))
    table = league.standings(found)
    assert table.frame["rank_low"].isna().all()
    assert any("3 seeds per row" in note for note in table.notes)
    open_, _ = league.sentences(found, table)
    assert any("these checkpoints only" in sentence for sentence in open_)


def test_cost_is_of_the_search_and_of_the_winners_confirmation():
    table = league.standings(standings_of(by_rate([0.6, 0.4]), defaults=by_rate([0.5])))
    row = row_of(table, "a")
    assert row["tokens"] == 3 * 1000 + 5 * 100
    assert row["seconds"] == 3 * 60 + 5 * 2 * 60
    assert row["verdicts"] == 2 * 5 * 200
    assert row["learning_rate"] == 2e-4


def test_a_completed_trial_without_a_measurement_is_no_winner():
    found = standings_of(by_rate([0.6, 0.4]), without_verdicts=("a",))
    assert found.members["a"].winner == "search-a-0002"
    rows = [
        {"trial_id": name, "status": "completed", "win_rate": rate}
        for name, rate in (("x", math.nan), ("y", None), ("z", 0.0))
    ]
    assert [row["trial_id"] for row in best_rows(rows, {"win_rate": "maximize"})] == ["z"]


def test_stability_is_told_apart_by_students_t_over_common_seeds():
    scores = {"a": [0.9, 0.91, 0.88, 0.9, 0.92], "b": [0.2, 0.25, 0.22, 0.2, 0.3], "c": [0.9, 0.88, 0.9, 0.93, 0.9]}
    found = standings_of(by_rate([0.6, 0.5, 0.5]), stability=scores)
    frame = league_tables.pairs(found).frame
    pairs = list(zip(frame["better"], frame["other"], strict=True))
    p_values = [stats.ttest_rel(scores[one], scores[other]).pvalue for one, other in pairs]
    assert frame["stability_p"].tolist() == pytest.approx(corrected(p_values).tolist())
    open_, settled = league.sentences(found, league.standings(found))
    assert any(
        sentence.startswith("Highest stability: c") or "Highest stability: a" in sentence for sentence in settled
    )
    assert any("not separable by stability" in one and "b" not in one.split(":")[0].split() for one in open_)
    assert any(one.startswith("2 of 3 pairs are separable by stability") for one in settled)


def test_the_defaults_are_paired_with_the_winner():
    won, plain = by_rate([0.7, 0.4]), by_rate([0.5], seed=9)
    frame = league_tables.defaults(standings_of(won, defaults=plain)).frame.set_index("entry")
    d = won["a"] - plain["a"]
    assert frame.loc["a", "difference"] == pytest.approx(d.mean())
    assert frame.loc["a", "difference_low"] < d.mean() < frame.loc["a", "difference_high"]
    assert frame.loc["a", "knobs"] == "beta 0.1 to 0.4 (x4)"
    assert np.isnan(frame.loc["b", "difference"])


def test_a_winner_with_its_default_shows_one_value():
    run = league_run(by_rate([0.7, 0.4]), defaults=by_rate([0.5], seed=9))
    run.manifest["experiment"]["league"]["entries"][0]["defaults"][BETA] = 0.4
    [standings] = league.Standings.by_checkpoint(run, tables.win_rate_stability(run))
    assert league_tables.defaults(standings).frame["knobs"].tolist() == ["beta 0.4", "beta 0.4"]


def test_pairs_and_defaults_take_topics_for_units_where_prompts_come_in_topics():
    # Each topic of ten prompts is won or lost as a whole: eight topics say as much as eight prompts.
    wins = {"a": [1, 1, 1, 1, 1, 1, 0, 1], "b": [0, 0, 1, 0, 1, 0, 0, 1]}
    won = {name: np.tile(np.repeat(np.array(of, dtype=float), 10), (5, 1)) for name, of in wins.items()}
    run = league_run(won, defaults={"a": won["b"]})
    topics = pd.factorize(run.answers["prompt_id"], sort=True)[0] // 10
    run = replace(run, answers=run.answers.assign(category=[f"topic {place}" for place in topics]))
    found = next(iter(league.Standings.by_checkpoint(run, tables.win_rate_stability(run))), None)
    by_topic = np.subtract(wins["a"], wins["b"])
    error = math.hypot(by_topic.std(ddof=1) / math.sqrt(8), 1 / 80)
    ends = stats.t.interval(0.95, 7, loc=by_topic.mean(), scale=error)
    for frame in (league_tables.pairs(found).frame, league_tables.defaults(found).frame):
        assert frame.loc[0, ["difference_low", "difference_high"]].tolist() == pytest.approx(ends)
    # Four of eight topics differ, each in favour of the first: all signs agree in 2 of 16 flips.
    assert league_tables.pairs(found).frame.loc[0, "p_prompts"] == pytest.approx(2 / 16, abs=0.02)
    rates = league_tables.defaults(found).frame.loc[0, ["tuned_low", "defaults_low"]].tolist()
    main = tables.win_rate_stability(run).frame.set_index("label")["win_rate_low"]
    assert rates == pytest.approx([main["search-a-0002"], main["search-a-0002-defaults"]])
    assert any("8 topics, which are the units" in note for note in league.standings(found).notes)


@pytest.mark.parametrize("k", [1, 2])
def test_the_expected_best_is_that_of_all_subsets_with_its_jackknife(k):
    values = np.array([0.2, 0.5, 0.1, 0.9, 0.4, 0.45, 0.3, 0.35, 0.6, 0.7])

    def expected(some):
        return np.mean([max(subset) for subset in itertools.combinations(some, k)])

    found = league_tables.best_of(values, k)
    without = np.array([expected(np.delete(values, place)) for place in range(10)])
    error = math.sqrt(9 / 10 * ((without - without.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, 9) * error
    assert found.value == pytest.approx(expected(values))
    assert (found.low, found.high) == pytest.approx((expected(values) - half, expected(values) + half))


def test_the_expected_best_of_rates_is_at_most_all():
    assert league_tables.best_of(np.array([0.97] * 9 + [0.2]), 1).high == 1.0


def test_few_trials_have_no_interval_and_fewer_no_value():
    values = np.arange(8) / 10
    assert np.isnan(league_tables.best_of(values, 2).low)
    assert league_tables.best_of(values, 5) is None
    frame = league_tables.tuning(standings_of(by_rate([0.6, 0.4]))).frame.set_index("entry")
    assert "best_of_2" not in frame
    assert frame.loc["a", "best_of_1"] == pytest.approx(0.5)
    assert frame.loc["a", "best_of_all"] == 0.6


def test_a_league_without_a_judge_is_led_by_accuracy():
    won = by_rate([0.8, 0.3])
    found = standings_of(won, judged=False)
    table = league.standings(found)
    assert table.frame["preference_accuracy"].tolist() == pytest.approx([won["a"].mean(), won["b"].mean()])
    assert "Not judged" in table.caption
    assert "answers" not in table.caption
    assert found.ranks["a"] == (1, 1)


def test_more_seeds_are_foretold_only_for_pairs_that_these_seeds_leave_open():
    found = standings_of(by_rate([0.8, 0.53, 0.5]))
    open_, settled = league.sentences(found, league.standings(found))
    near = [pair for pair, claim in found.claims.items() if not claim.matters]
    assert any(f"of the {len(near)} open pairs" in sentence and "(15)" in sentence for sentence in open_)
    assert settled[0].startswith("Highest win rate: a")
    # 200 prompts in both orders with each of five seeds.
    assert settled[0].endswith("(5 seeds, 200 prompts, judge exact, 2,000 verdicts).")
    assert settled[1].endswith("(5 seeds).")
    assert settled[2].endswith("by win rate (at least 5 seeds, 200 prompts, judge exact each).")
    assert settled[3].endswith("by stability (at least 5 seeds each).")


def test_tuning_trials_that_break_a_constraint_are_not_the_best():
    run = league_run(by_rate([0.5, 0.6]), searched={"a": (0.4, 0.6, 0.9), "b": (0.4, 0.6, 0.5)})
    run.trials.loc[run.trials["trial_id"] == "search-a-0003", "stability"] = 0.1
    run.manifest["experiment"]["constraints"] = ["stability >= 0.5"]
    (found,) = league.Standings.by_checkpoint(run, tables.win_rate_stability(run))
    assert found.searched("a").tolist() == [0.4, 0.6, 0.4]
    assert row_of(league_tables.tuning(found), "a")["best_of_all"] == 0.6


def test_missing_verdicts_do_not_turn_a_pair_around():
    # By prompts a has 50 % and b 62.5; of the single verdicts a wins 10 of 12, as of what it loses most are missing.
    a, b = np.tile([1.0, 1.0, 0.0, 0.0], (5, 1)), np.tile([1.0, 1.0, 0.5, 0.0], (5, 1))
    a[1:, 2:] = np.nan
    found = standings_of({"a": a, "b": b})
    assert list(found.differences) == [("b", "a")]
    assert league.standings(found).frame["entry"].tolist() == ["b", "a"]
