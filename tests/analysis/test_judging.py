"""What verdicts say beyond the win rate, on verdicts that can be counted by hand."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from slime_ray.analysis import adjusted, judging, tables, trial_tables

from slime_ray import cli
from slime_ray.errors import InputError
from slime_ray.evaluation.judges.base import FAILED_ANSWER
from slime_ray.runs import results

from .conftest import add_trial, finish
from .ends import score_ends

JUDGE = "llm:gpt-4.1:arena-hard#1a2b"


def votes(*verdicts, prompts=None):
    """Votes of answers with these verdicts in both orders: policy as A, policy as B."""
    first, second = zip(*verdicts, strict=True)
    return judging.Votes.of(
        pd.DataFrame(
            {
                "prompt_id": prompts or [f"p{place}" for place in range(len(verdicts))],
                "verdict_ab": pd.Series(first, dtype=object),
                "verdict_ba": pd.Series(second, dtype=object),
                "answer_tokens": 10.0,
                "baseline_tokens": 8.0,
            }
        )
    )


def test_the_score_of_arena_hard_counts_votes_of_both_orders():
    # Votes for the policy: 3 of 3, and as B lost by B>A = won, 1 of 1; a tie 0.5 of 1, and lost 0 of 3. 4.5 of 8.
    found = votes(("A>>B", "B>A"), ("A=B", "A>>B"))
    assert found.arena_hard().value == pytest.approx(4.5 / 8)


def test_an_invalid_verdict_has_no_vote():
    assert votes(("A>B", None), (None, "A>B")).arena_hard().value == pytest.approx(0.5)
    assert votes((None, None)).arena_hard() is None


def test_a_prompt_and_all_its_votes_are_one_unit():
    # Three prompts with the same votes in all, however they stand in each, differ in nothing: as if all were tied.
    same = [("A>>B", "A>B"), ("A=B", "B>A"), ("B>A", "A>B")]
    found = votes(*same, *same[::-1], *same, prompts=["p"] * 3 + ["q"] * 3 + ["r"] * 3).arena_hard()
    effective = 3 * (3 * found.value * (1 - found.value) + 0.25) / 0.25
    assert (found.low, found.high) == pytest.approx(score_ends(found.value, effective, 2))


def test_one_prompt_however_often_it_was_answered_has_no_interval():
    found = votes(("A>>B", "A>B"), ("A=B", "B>A"), ("B>A", "A>B"), prompts=["p"] * 3)
    for estimate in (found.arena_hard(), found.length_controlled()):
        assert 0 < estimate.value < 1
        assert np.isnan([estimate.low, estimate.high]).all()


def test_two_orders_agree_when_they_name_the_same_winner_however_strongly():
    # Agree: win and win (A>>B, B>A); tie and tie. Not: first place wins both times; a tie and a win. One is invalid.
    found = votes(("A>>B", "B>A"), ("A=B", "A=B"), ("A>B", "A>B"), ("A=B", "B>A"), ("A>B", None))
    assert found.consistency() == pytest.approx(2 / 4)
    assert votes(("A>B", None)).consistency() is None


def lengths_against_the_baseline(more):
    """One tie each, whose answer is so many tokens longer than the baseline's."""
    ties = {"verdict_ab": "A=B", "verdict_ba": "A=B", "baseline_tokens": 100.0}
    return pd.DataFrame(
        ties | {"prompt_id": [f"p{place}" for place in range(len(more))], "answer_tokens": [100.0 + d for d in more]}
    )


def test_answers_within_a_quarter_sd_of_equal_length_are_near_it():
    # The sd of -20, 0, 0, 20 is sqrt(200) = 14.1: two of four are within 3.5 tokens.
    assert judging.Votes.of(lengths_against_the_baseline([-20, 0, 0, 20])).equal_lengths() == 0.5
    # Of 96 to 104 tokens more the sd is 2.6: none is near.
    assert judging.Votes.of(lengths_against_the_baseline(range(96, 105))).equal_lengths() == 0


def test_a_rate_beyond_all_lengths_seen_is_marked_as_extrapolated(tmp_path):
    add_trial(tmp_path, "a", label="a", won=[1.0, 0.5, 0.0, 1.0], judge=JUDGE)
    run = results.load(finish(tmp_path, {"judge": JUDGE}))
    run = replace(run, answers=run.answers.assign(answer_tokens=[100, 101, 102, 103], baseline_tokens=50))
    table = judging.judging(run, tables.win_rate_stability(run))
    cells = next(column.cells for column in table.columns if column.head.startswith("LC"))
    assert cells[0].endswith("*")
    assert any("extrapolated (*)" in note for note in table.notes)
    assert (
        table.csv().splitlines()[1].split(",")[table.frame.columns.get_loc("length_controlled_extrapolated")] == "True"
    )


@pytest.mark.usefixtures("sketched")
def test_a_report_with_difficulties_has_the_rate_of_alpaca_eval(tmp_path, capsys):
    won = [float(index % 3 != 0) for index in range(40)]
    run = tmp_path / "run"
    for seed in range(2):
        add_trial(run, f"a{seed}", label="a", seed=seed, won=won, judge=JUDGE, answer=lambda index: "word " * index)
    finish(run, {"judge": JUDGE})
    difficulties = tmp_path / "difficulties.csv"
    table = pd.DataFrame({"prompt_id": [f"p{index:02}" for index in range(40)], "instruction_difficulty": won})
    table.to_csv(difficulties, index=False)
    assert cli.main(["report", str(run), "--difficulties", str(difficulties)]) == 0
    assert "AlpacaEval LC: its own model with the prompts' difficulties in difficulties.csv, without" in " ".join(
        capsys.readouterr().out.split()
    )
    frame = pd.read_csv(run / "report" / "judging.csv")
    expected = adjusted.alpaca_eval_rate(results.load(run).answers, adjusted.Difficulties.read(difficulties))
    assert frame.loc[0, ["alpaca_eval", "alpaca_eval_low", "alpaca_eval_high"]].tolist() == pytest.approx(
        [expected.value, expected.low, expected.high]
    )
    table.head(30).to_csv(difficulties, index=False)
    assert cli.main(["report", str(run), "--difficulties", str(difficulties), "--out", str(tmp_path / "out")]) == 2
    assert "10 of 40 report prompts have no difficulty there, the first p30" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_invalid_verdict_widens_what_may_be():
    # Prompt means if all missing are losses: (1 + 0) / 2, 0, 1; if wins: 1, 1, 1.
    found = votes(("A>B", None), (None, None), ("A>B", "B>A"))
    assert found.invalid == 3
    assert found.bounds() == pytest.approx((0.5, 1.0))
    # A prompt counts once, however often it was answered: (1 + (0 + 0) / 2) / 2, and not a third.
    found = votes(("A>B", "B>A"), (None, None), (None, None), prompts=["p", "q", "q"])
    assert found.bounds() == pytest.approx((0.5, 1.0))


def judged(tmp_path, **columns):
    add_trial(tmp_path, "a", label="a", won=[1.0, 0.5, 0.0, 1.0], judge=JUDGE)
    add_trial(tmp_path, "b", label="b", won=[0.0, 0.75, float("nan"), 1.0], **({"judge": JUDGE} | columns))
    return results.load(finish(tmp_path, {"judge": JUDGE}))


def test_a_judge_that_may_err_has_a_table_of_its_own(tmp_path):
    run = judged(tmp_path)
    table = judging.judging(run, tables.win_rate_stability(run))
    frame = table.frame.set_index("label")
    assert table.frame["label"].tolist() == ["a", "b"]
    # The outcome 0.75 is a win and a tie; all verdicts of a agree.
    assert frame.loc["a", "order_consistency"] == 1
    assert frame.loc["b", "order_consistency"] == pytest.approx(2 / 3)
    assert frame["invalid_verdicts"].tolist() == [0, 2]
    # No verdict is strong, so the score is the mean over votes: 3.5 of 6 for b.
    assert frame.loc["b", "arena_hard"] == pytest.approx(3.5 / 6)
    assert frame.loc["a", "arena_hard"] == pytest.approx(frame.loc["a", "win_rate"])
    assert frame.loc["a", "arena_hard_low"] < frame.loc["a", "arena_hard"] < frame.loc["a", "arena_hard_high"]
    # Lengths are all the same: LC is the win rate.
    assert frame.loc["b", "length_controlled"] == pytest.approx(frame.loc["b", "win_rate"], abs=1e-6)
    assert JUDGE in table.caption
    assert max(map(len, table.text().splitlines())) <= 140
    assert "2 of 8 (43.8–68.8)" in table.text()


def test_a_row_of_which_every_verdict_is_invalid_says_so(tmp_path):
    add_trial(tmp_path, "a", label="a", won=[float("nan")] * 2, judge=JUDGE)
    run = results.load(finish(tmp_path, {"judge": JUDGE}))
    main = tables.win_rate_stability(run)
    assert main.remarks == ("4 missing verdicts: between 0.0 and 100.0 %",)
    frame = judging.judging(run, main).frame
    assert np.isnan(frame["arena_hard"][0])
    assert frame["invalid_verdicts"].tolist() == [4]


def test_what_the_judge_took_and_why_verdicts_are_missing_is_said(tmp_path):
    run = judged(tmp_path)
    took = {"input_tokens": 0, "output_tokens": 0, "cost": None, "invalid": 0, "missing": {}}
    for trial, told in {
        "a": {"requests": 900, "input_tokens": 1_000, "output_tokens": 234, "cost": 0.125, "missing": {"rate limit (429)": 2}},
        # Judged later, so it tells of more requests.
        "b": {"requests": 1200, "input_tokens": 2_000, "output_tokens": 500, "cost": 0.25, "invalid": 1,
              "missing": {"rate limit (429)": 1, "budget.requests 1200 is spent": 4}},
    }.items():  # fmt: skip
        (tmp_path / "trials" / trial / "judging.json").write_text(json.dumps(took | told), encoding="utf-8")
    (tmp_path / "trials" / "c").mkdir()
    (tmp_path / "trials" / "c" / "judging.json").write_text("{half", encoding="utf-8")
    *_, missing, took = judging.judging(run, tables.win_rate_stability(run)).notes
    assert missing == (
        "Missing verdicts of all trials: 4 since budget.requests 1200 is spent; 1 since no valid verdict, however often "
        "it was asked for; 3 since rate limit (429)."
    )
    assert took == "The judge took 1,200 requests and 2,500 tokens in this run so far, cost 0.25."


def test_the_exact_judge_has_a_table_where_verdicts_are_missing_and_says_why(tmp_path):
    add_trial(tmp_path, "a", label="a", won=[1.0, float("nan"), 0.0, 1.0], judge="exact:my:score")
    run = results.load(finish(tmp_path, {"judge": "exact:my:score"}))
    took = {"requests": 0, "input_tokens": 0, "output_tokens": 0, "cost": None, "invalid": 0}
    took |= {"missing": {"the scorer gave an answer no score (NaN or None)": 1}, "failed": 2, "empty": 1}
    (tmp_path / "trials" / "a" / "judging.json").write_text(json.dumps(took), encoding="utf-8")
    table = judging.judging(run, tables.win_rate_stability(run))
    assert table.frame["invalid_verdicts"].tolist() == [2]
    assert table.notes[-3:] == [
        "Missing verdicts of all trials: 1 since the scorer gave an answer no score (NaN or None).",
        "Of all trials 2 comparisons were not judged, since an answer is $ERROR$, a failed generation.",
        "Of all trials 1 comparisons have an empty answer, judged as it is.",
    ]


def test_the_words_about_a_failed_answer_are_those_of_the_judge():
    assert judging.ASIDE["failed"] == f"comparisons {FAILED_ANSWER}"


def test_one_prompt_has_rates_without_ends_and_the_table_says_why(tmp_path):
    add_trial(tmp_path, "a", label="a", won=[0.5], judge=JUDGE)
    run = results.load(finish(tmp_path, {"judge": JUDGE}))
    table = judging.judging(run, tables.win_rate_stability(run))
    assert [column.cells[0] for column in table.columns[1:4]] == ["50.0"] * 3
    assert "Without ends: too few prompts for an interval." in table.notes
    assert "nan" not in table.text()


@pytest.mark.parametrize("judge", ["exact", "exact:arithmetic", "none"])
def test_the_exact_judge_and_no_judge_have_none(tmp_path, judge):
    add_trial(tmp_path, "a", label="a", won=[1.0, 0.0], judge=judge)
    run = results.load(finish(tmp_path, {"judge": judge}))
    assert judging.judging(run, tables.win_rate_stability(run)).frame.empty


def test_verdicts_of_two_judges_never_stand_in_one_table(tmp_path):
    run = judged(tmp_path, judge="exact:arithmetic")
    with pytest.raises(InputError, match=rf"2 judges \(b by exact:arithmetic, a by {JUDGE}\).*--name"):
        tables.win_rate_stability(run)


def test_a_search_that_another_judge_ranked_is_refused_too(tmp_path):
    add_trial(tmp_path, "s", phase="search", label="s", won=[1.0, 0.0], judge="exact")
    run = judged(tmp_path)
    with pytest.raises(InputError, match="2 judges"):
        trial_tables.search_trials(run)


def test_a_failed_trial_mixes_nothing(tmp_path):
    run = judged(tmp_path, judge="exact", status="failed", reason="x")
    assert len(tables.win_rate_stability(run).frame) == 2
