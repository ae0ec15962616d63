"""Both estimates of a confirmed winner, and alarms, on trials made by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from slime_ray.analysis.knobs import Searched
from slime_ray.analysis.printing import Table
from slime_ray.analysis.tables import win_rate_stability
from slime_ray.analysis.trial_tables import alarms, cost, winners

from slime_ray.runs import results
from slime_ray.runs.results import Run

from .conftest import add_trial, finish

WON = {"search-0001": [1.0] * 20 + [0.0] * 4, "search-0002": [1.0] * 18 + [0.0] * 6}
AGAIN = {"search-0001": [[1.0] * 12 + [0.0] * 12, [1.0] * 18 + [0.0] * 6], "search-0002": [[1.0] * 24, [1.0] * 24]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two winners of a search, of which the second turned out better, and one seed of the first failed at last."""
    for label, won in WON.items():
        add_trial(tmp_path, label, phase="search", seed=1000, prompt_set="selection", won=won, stability=0.8)
        for seed, outcomes in enumerate(AGAIN[label]):
            name = f"confirm-{label}-s{seed}"
            add_trial(tmp_path, name, phase="confirm", label=label, seed=seed, won=outcomes, stability=0.6)
    name = "confirm-search-0001-s2"
    add_trial(tmp_path, name, phase="confirm", label="search-0001", seed=2, status="failed", reason="it broke")
    goals = {"win_rate": "maximize", "stability": "maximize"}
    return finish(tmp_path, {"goals": goals, "experiment": {"budget": {"confirm": {"best": 2, "seeds": 3}}}})


def table_of(run: Path) -> Table:
    loaded = results.load(run)
    return winners(loaded, Searched.of(loaded), win_rate_stability(loaded))


def test_the_search_s_and_the_confirmed_values_stand_side_by_side(run):
    table = table_of(run)
    frame = table.frame.set_index("trial_id")
    # By the confirmed win rate: the search's best is only second.
    assert frame.index.tolist() == ["search-0002", "search-0001"]
    assert frame["win_rate_searched"].tolist() == pytest.approx([18 / 24, 20 / 24])
    assert frame["win_rate_confirmed"].tolist() == pytest.approx([1.0, 15 / 24])
    assert frame["win_rate_change"].tolist() == pytest.approx([6 / 24, -5 / 24])
    # A seed that failed is a stability of 0.
    assert frame["stability_searched"].tolist() == pytest.approx([0.8, 0.8])
    assert frame["stability_confirmed"].tolist() == pytest.approx([0.6, 0.4])
    assert frame["stability_change"].tolist() == pytest.approx([-0.2, -0.4])
    assert frame["seeds_finished"].tolist() == [2, 2]
    assert table.remarks == ("", "failed 1 of 3")
    assert "the best of 2 completed trials" in table.caption
    assert any(note.endswith("Over the 2 winners the win rate changed by +2.1.") for note in table.notes)


def test_a_lost_seed_has_no_part_in_a_confirmed_goal_but_stability(run):
    rows = {"search-0001": 10.0, "search-0002": 10.0, "confirm-search-0001-s2": 1.0}
    loaded = results.load(run)
    loaded.trials["total_seconds"] = loaded.trials["trial_id"].map(rows).fillna(100.0)
    loaded.manifest["goals"] = {"win_rate": "maximize", "total_seconds": "minimize"}
    frame = winners(loaded, Searched.of(loaded), win_rate_stability(loaded)).frame
    assert frame["total_seconds_confirmed"].tolist() == [100.0, 100.0]


def test_a_clone_comes_after_all_trials_that_the_search_drew_and_is_none_of_its_budget(run):
    add_trial(run, "search-0001-clone-1", phase="search", prompt_set="selection", won=[1.0] * 24)
    goals = {"win_rate": "maximize"}
    loaded = results.load(finish(run, {"goals": goals, "experiment": {"budget": {"trials": 2}}}))
    searched = Searched.of(loaded)
    assert searched.trials["trial_id"].tolist() == ["search-0001", "search-0002", "search-0001-clone-1"]
    assert cost(loaded).notes[0].startswith("Spent: 2 of 2 search trials, and 1 clone. ")


def test_confirmations_of_another_point_are_left_out_and_named(run):
    """As where the id of a deleted trial was given to another point."""
    file = run / "trials" / "confirm-search-0001-s1" / "trial.json"
    row = json.loads(file.read_text())
    file.write_text(json.dumps(row | {"overrides": json.dumps({"objective.hard_margin": 9.0})}))
    results.consolidate(run)
    table = table_of(run)
    assert table.frame["trial_id"].tolist() == ["search-0002"]
    assert table.notes[0].startswith("Left out: search-0001, whose confirmations were trained with other knobs")


def test_the_interval_of_the_change_holds_the_noise_of_both_sets_of_prompts(run):
    """A difference of two independent rates: the ends of its interval lie as far as those of both, by Pythagoras."""
    row = table_of(run).frame.set_index("trial_id").loc["search-0001"]
    per_prompt = np.mean(AGAIN["search-0001"], axis=0)
    error = np.sqrt(per_prompt.var() / 24 + np.var(WON["search-0001"]) / 24)
    assert row["win_rate_change_high"] - row["win_rate_change_low"] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_confirmed_stability_and_its_interval_are_those_of_the_main_table(run):
    loaded = results.load(run)
    main = win_rate_stability(loaded)
    main.frame[["stability_low", "stability_high"]] = [[0.1, 0.7], [0.2, 0.9]]
    frame = winners(loaded, Searched.of(loaded), main).frame.set_index("trial_id")
    own = main.frame.set_index("label")
    for label in frame.index:
        for end in ("", "_low", "_high"):
            assert frame.loc[label, f"stability_confirmed{end}"] == own.loc[label, f"stability{end}"]


def watched(*trials):
    columns = ("label", "phase", "status", "stability", "alarm")
    return Run(
        Path("watched"),
        pd.DataFrame(trials, columns=columns),
        pd.DataFrame(),
        pd.DataFrame(),
        pd.DataFrame(),
        {"name": "watched"},
    )


def test_detections_and_false_alarms_are_counted_by_how_runs_ended():
    table = alarms(
        watched(
            ("good", "arm", "completed", 0.4, None),
            ("good", "arm", "completed", 0.5, "length shift, answers 4.00 times as long at step 9"),
            ("bad", "arm", "completed", 0.01, "unlearning, chosen drift -0.31 nat/token at step 120"),
            ("bad", "arm", "stopped", 0.02, "broken outputs, 5 of 5 answers (3 no_stop, 2 format) at step 30"),
            ("bad", "arm", "diverged", 0.0, None),
            ("search-0001", "search", "completed", 0.3, None),
            ("search-0002", "search", "failed", 0.0, None),
        )
    )
    assert table.frame["label"].tolist() == ["good", "bad", "search"]
    assert table.frame["alarms"].tolist() == [1, 2, 0]
    assert table.columns[3].cells == ("9", "30–120", "–")
    assert table.columns[5].cells == ("length shift 1", "unlearning 1, broken outputs 1", "–")
    assert "Of 3 runs that ended with S below 0.05, 2 had raised an alarm; of 3 others, 1." in table.notes[0]


def test_runs_without_a_stability_are_neither_collapsed_nor_others():
    alarm = "unlearning, chosen drift -0.31 nat/token at step 12"
    table = alarms(
        watched(
            ("search-0001", "search", "stopped", None, alarm),
            ("search-0002", "search", "stopped", None, None),
            ("good", "arm", "completed", 0.4, None),
        )
    )
    assert table.columns[4].cells == ("–", "0.40")
    assert "of 1 others, 0; 2 that were stopped early have no S." in table.notes[0]


def test_a_run_without_alarms_has_no_table():
    assert alarms(watched(("good", "arm", "completed", 0.4, None))).frame.empty
