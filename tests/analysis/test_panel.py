"""Tables of a panel of judges, on verdicts that can be counted by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from slime_ray.analysis import judging, tables
from slime_ray.analysis.tables import answer

from slime_ray.runs import results, schema

from .conftest import VERDICTS, add_trial, finish
from .ends import score_ends

PANEL = "panel:llm:a + llm:b"


def verdict_rows(trial, outcomes, repeats=None):
    """Rows of verdicts.parquet. outcomes: of each judge, by prompt; None where it has no verdict. repeats: further."""
    every = [(judge, 1, own) for judge, own in outcomes.items()]
    every += [(judge, 2, own) for judge, own in (repeats or {}).items()]
    return [
        {
            "trial_id": trial, "label": trial, "phase": "arm", "seed": 0, "prompt_set": "report",
            "prompt_id": f"p{place:02}", "turn": 1, "judge": judge, "repeat": repeat,
            **dict(zip(("verdict_ab", "verdict_ba"), VERDICTS.get(outcome, (None, None)), strict=True)),
            "outcome": outcome, "score": None, "baseline_score": None,
        }
        for judge, repeat, own in every
        for place, outcome in enumerate(own)
    ]  # fmt: skip


def panel_run(path, outcomes, repeats=None):
    by_prompt = zip(*outcomes.values(), strict=True)
    pooled = [float("nan") if None in every else sum(every) / len(every) for every in by_prompt]
    add_trial(path, "t", label="t", won=pooled, judge=PANEL, win_rate=float(np.nanmean(pooled)))
    table = pa.Table.from_pylist(verdict_rows("t", outcomes, repeats), schema=schema.VERDICT_SCHEMA)
    pq.write_table(table, path / "trials" / "t" / "verdicts.parquet")
    return results.load(finish(path, {"judge": PANEL}))


@pytest.fixture
def run(tmp_path):
    return panel_run(tmp_path, {"llm:a": [1.0, 1.0, 0.0, 0.5, 1.0], "llm:b": [1.0, 0.0, 0.0, 0.5, None]})


def test_each_judge_has_a_win_rate_of_its_own_and_the_pooled_one_is_of_the_prompts_of_all(run):
    main = tables.win_rate_stability(run)
    assert main.frame["win_rate"].tolist() == pytest.approx([(1 + 0.5 + 0 + 0.5) / 4])
    own = judging.judging(run, main).frame.set_index("judge")["win_rate"]
    assert own.to_dict() == pytest.approx({"llm:a": 3.5 / 5, "llm:b": 1.5 / 4})
    found = judging.panel(run, main)
    assert found.frame.loc[0, ["lowest", "highest"]].tolist() == pytest.approx([1.5 / 4, 2.5 / 4])
    assert "not all judges have a verdict on 1 of 5 prompts of t." in found.notes[-1]
    assert found.notes[0].startswith("Of fewer than 5 judges nothing is claimed of others")
    assert found.frame["any_judge_low"].isna().all()


def test_the_first_screen_says_on_how_many_judges_and_repeats_a_claim_rests(tmp_path, run):
    _, said = answer(run, tables.win_rate_stability(run))
    assert said[0].endswith("(1 seed, 5 prompts, judge panel:llm:a + llm:b (2 judges, no repeats), 18 verdicts).")
    outcomes = {"llm:a": [1.0, 1.0, 0.0, 0.5], "llm:b": [1.0, 0.0, 0.0, 0.5]}
    again = panel_run(tmp_path / "again", outcomes, {"llm:a": [1.0, 0.5]})
    _, said = answer(again, tables.win_rate_stability(again))
    assert "(2 judges, up to 2 repeats), 20 verdicts)." in said[0]


def test_agreement_is_of_single_verdicts_and_names_where_the_judges_differ(run):
    table = judging.agreement(run)
    (row,) = table.frame.to_dict("records")
    # Both orders of four prompts, of which p01 is won by one judge and lost by the other.
    assert (row["verdicts"], row["agreement"]) == (8, 6 / 8)
    # Shares of win, tie, loss: 4/8, 2/8, 2/8 and 2/8, 2/8, 4/8; by chance 2/16 + 1/16 + 2/16.
    chance = (4 * 2 + 2 * 2 + 2 * 4) / 64
    assert row["kappa"] == pytest.approx((6 / 8 - chance) / (1 - chance))
    assert table.notes == ["The judges are farthest apart on the prompts p01."]


def test_kappa_is_agreement_beyond_that_of_verdicts_paired_at_random():
    rng = np.random.default_rng(0)
    first = rng.choice([0.0, 0.5, 1.0], 300)
    second = np.where(rng.random(300) < 0.6, first, rng.choice([0.0, 0.5, 1.0], 300, p=[0.5, 0.2, 0.3]))
    chance = (first[:, None] == second[None, :]).mean()
    assert judging.cohens_kappa(first, second) == pytest.approx(((first == second).mean() - chance) / (1 - chance))
    # 20 agreements on yes and 15 on no of 50 verdicts, 5 and 10 apart: 0.4 in every textbook.
    yes = np.repeat([1.0, 1.0, 0.0, 0.0], [20, 5, 10, 15])
    assert judging.cohens_kappa(yes, np.repeat([1.0, 0.0, 1.0, 0.0], [20, 5, 10, 15])) == pytest.approx(0.4)


def test_noise_is_the_variance_between_repeats(tmp_path):
    first = {"llm:a": [1.0, 1.0, 0.0, 0.5]}
    run = panel_run(tmp_path, first, repeats={"llm:a": [0.0, 1.0, 0.0, 0.5]})
    # The first prompt's two outcomes have the variance 1/2, the other three none.
    assert judging.noise(run.verdicts) == pytest.approx(1 / 8)
    table = judging.panel(run, tables.win_rate_stability(run))
    assert table.frame["noise"].tolist() == pytest.approx([np.sqrt(1 / 8)])
    assert judging.agreement(run).frame.empty


def test_intervals_of_a_judge_and_of_any_judge_are_over_topics_where_prompts_come_in_topics(tmp_path):
    # Five judges that agree; each of six topics of three prompts is won or lost as a whole.
    won = [float(topic % 2) for topic in range(6) for _ in range(3)]
    run = panel_run(tmp_path, {f"llm:{name}": won for name in "abcde"})
    places = pd.factorize(run.answers["prompt_id"], sort=True)[0] // 3
    run = replace(run, answers=run.answers.assign(category=[f"topic {place}" for place in places]))
    main = tables.win_rate_stability(run)

    # Of these checkpoints the variance is that of the topics at hand, like any judge's where judges agree.
    effective = 18 * (18 / 4 + 0.25) / (0.25 / 5 * 18**2 + 0.25)
    ends = pytest.approx(score_ends(0.5, effective, 5))
    by_judge = judging.judging(run, main).frame
    assert [tuple(row) for row in by_judge[["win_rate_low", "win_rate_high"]].to_numpy()] == [ends] * 5
    assert tuple(judging.panel(run, main).frame.loc[0, ["any_judge_low", "any_judge_high"]]) == ends


def test_a_run_of_one_judge_has_neither_table(judged_run):
    run = results.load(judged_run)
    assert judging.panel(run, tables.win_rate_stability(run)).frame.empty
    assert judging.agreement(run).frame.empty
    assert not (judged_run / "verdicts.parquet").exists()
