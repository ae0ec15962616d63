"""What Python calls give: the same experiment however it is given, runs with their tables, mistakes as sentences."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from slime_ray.analysis.printing import Table
from slime_ray.search_spaces import shipped_spaces

import slime_ray
from slime_ray import api
from slime_ray.config.experiment import Experiment
from slime_ray.errors import InputError
from tests.end_to_end.conftest import SMALL

CONTENT = yaml.safe_load(SMALL)


def test_a_path_a_name_a_mapping_and_a_model_are_the_same_experiment(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    opened = [api.open_experiment(given)[0] for given in (file, str(file), CONTENT)]
    opened.append(api.open_experiment(opened[0])[0])
    assert len({one.fingerprint for one in opened}) == 1
    assert api.open_experiment("demo")[0] == api.open_experiment(shipped_spaces()["demo"])[0]


def test_the_text_kept_of_a_mapping_is_the_experiment_again(tmp_path):
    given = {**CONTENT, "seeds": (3, 4), "summary": "1e5"}
    opened, text = api.open_experiment(given)
    file = tmp_path / "again.yaml"
    file.write_text(str(text))
    assert api.open_experiment(file)[0] == opened
    assert opened.seeds == [3, 4]


def test_what_is_changed_on_the_way_is_what_the_command_line_would_change():
    opened, _ = api.open_experiment(
        CONTENT, name="other", trials=3, seeds=[5], overrides={"training.updates": 6, "budget.hours": 1}
    )
    assert (opened.name, opened.budget.trials, opened.seeds, opened.budget.hours) == ("other", 3, [5], 1)
    assert opened.settings.training.updates == 6


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({**CONTENT, "goals": {"win_rat": "maximize"}}, "experiment: goals.win_rat: .*win_rate"),
        ("dmeo", "Did you mean 'demo'"),
        ("lost.yaml", "there is no such file"),
    ],
)
def test_what_is_wrong_is_a_sentence(given, sentence):
    with pytest.raises(InputError, match=sentence):
        slime_ray.sweep(given)


def test_a_model_takes_a_name_and_no_other_change():
    experiment = api.open_experiment(CONTENT)[0]
    assert api.open_experiment(experiment, name="other")[0].name == "other"
    with pytest.raises(InputError, match=r"budget\.trials: an Experiment is changed before it is given"):
        slime_ray.sweep(experiment, trials=3)


def test_an_ablation_needs_a_design():
    with pytest.raises(InputError, match=r"small has no design\. .*leave_one_out"):
        slime_ray.ablate(CONTENT)


def test_a_league_needs_entries_and_takes_no_trials_beside_its_own():
    with pytest.raises(InputError, match=r"small has no `league`"):
        slime_ray.league(CONTENT)
    kept = {key: value for key, value in CONTENT.items() if key not in ("search", "require", "start_from", "budget")}
    league = kept | {"league": {"trials": 2, "entries": {"ipo": {}, "sft": {}}}}
    with pytest.raises(InputError, match=r"equal budget for each entry: league\.trials"):
        slime_ray.league(league, trials=3)


def test_a_run_of_which_nothing_has_finished_is_shown_with_that(judged_run, tmp_path):
    (tmp_path / "manifest.json").write_text((judged_run / "manifest.json").read_text())
    (tmp_path / "trials").mkdir()
    run = slime_ray.load(tmp_path)
    assert repr(run) == f"Run({tmp_path}: no trial has finished yet, so there is nothing to report.)"
    assert run._repr_html_() is None


def test_a_run_has_frames_tables_and_figures_that_show_themselves(judged_run):
    run = slime_ray.load(judged_run)
    assert repr(run) == f"Run({str(judged_run)!r}: 22 completed, 1 failed, 1 diverged)"
    assert "<caption>" in run._repr_html_()
    for frame in (run.trials, run.answers, run.curves, run.pairs, run.table.frame):
        assert isinstance(frame, pd.DataFrame)
        assert len(frame)
    assert isinstance(run.tables["win_rate_stability"], Table)
    assert run.tables["win_rate_stability"] is run.table
    assert isinstance(run.figures["pareto"], Figure)
    assert run.manifest["name"] == json.loads((judged_run / "manifest.json").read_text())["name"]


def test_a_report_is_written_where_it_is_wanted(judged_run, tmp_path):
    assert slime_ray.report(judged_run, tmp_path / "one") == tmp_path / "one" / "report.html"
    assert (tmp_path / "one" / "report.html").stat().st_size > 10_000


def test_no_run_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="manifest"):
        slime_ray.load(tmp_path)


def test_a_plan_counts_the_trials():
    plan = slime_ray.plan(CONTENT, trials=4)
    assert sum(row.trials for row in plan.rows) == 6 + 4 + 2
    with pytest.raises(InputError, match="gpus and gpu go together"):
        slime_ray.plan(CONTENT, gpus=8)


def test_one_trial_trains_in_this_process_and_keeps_the_mapping(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIME_RAY_SCRATCH", str(tmp_path / "scratch"))
    run = slime_ray.train(CONTENT, "arm-slime-s0", storage=tmp_path, quiet=True)
    assert run.trials["status"].tolist() == ["completed"]
    assert run.path == tmp_path / "small-arm-slime-s0"
    assert api.open_experiment(run.path / "experiment.yaml")[0].base == api.open_experiment(CONTENT)[0].base
    again = slime_ray.evaluate(CONTENT, [run.path / "trials" / "arm-slime-s0"], storage=tmp_path, quiet=True)
    assert again.table.frame["label"].tolist() == ["arm-slime-s0"]
    # Of a league's file only `base` counts, as of any other's.
    left_out = ("search", "require", "start_from", "budget")
    league = {key: value for key, value in CONTENT.items() if key not in left_out}
    league["league"] = {"trials": 2, "entries": {"ipo": {}, "sft": {}}}
    policy = run.path / "trials" / "arm-slime-s0"
    of_league = slime_ray.evaluate(league, [policy], name="league", storage=tmp_path, quiet=True)
    assert of_league.manifest["experiment"]["league"] is None
    assert of_league.table.frame["label"].tolist() == ["arm-slime-s0"]
    model = run.export("arm-slime-s0", tmp_path / "model", merge=True)
    assert (Path(model) / "tokenizer.json").is_file()


def test_the_package_names_what_it_offers_and_nothing_else():
    assert isinstance(api.open_experiment(CONTENT)[0], Experiment)
    assert {name for name in slime_ray.__all__ if callable(getattr(slime_ray, name))} == set(slime_ray.__all__)
    with pytest.raises(AttributeError, match="no attribute 'swep'"):
        slime_ray.swep  # noqa: B018
