"""Earlier runs: their trials are known to a search where this one would have computed the same, and refused elsewhere."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError
from slime_ray.on_ray.plan import search_trial
from slime_ray.runs import results, schema
from slime_ray.runs.earlier_runs import EarlierTrials, earlier_runs, refuse_other_data
from slime_ray.training.outcome import blank_row

SPACE = "objective.hard_margin: {uniform: [0.5, 3.0]}, objective.soft_margin: {uniform: [0.1, 2.0]}"
HASHES = {"sft_checkpoint": "a", "train_ids": "b", "held_out": "c", "prompts_selection": "d"}


def experiment(folder: Path, *, space: str = SPACE, start: str = "", more: str = "") -> Experiment:
    path = folder / "mine.yaml"
    path.write_text(
        f"name: first\npreset: arithmetic\nsearch: {{{space}}}\nbudget: {{trials: 8}}\n{start}\n{more}\n", "utf-8"
    )
    return load_experiment(path)


def write(run: Path, made_by: Experiment, name: str, point: dict[str, Any], **columns: Any) -> None:
    row = blank_row(search_trial(made_by, name, point, 1000), datetime.now(UTC))
    given = {"status": "completed", "win_rate": 0.5, "stability": 0.5} | columns
    results.write_trial(run, row=row | given, answers=[], curves=[])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four trials of an earlier search: two on the front, one below it, one that diverged."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    made_by = experiment(tmp_path)
    for name, hard, win, stability, status in (
        ("search-0001", 1.0, 0.6, 0.9, "completed"),
        ("search-0002", 2.0, 0.7, 0.8, "completed"),
        ("search-0003", 2.5, 0.5, 0.7, "completed"),
        ("search-0004", 2.9, 0.9, 0.9, "diverged"),
    ):
        point = {"objective.hard_margin": hard, "objective.soft_margin": 0.5}
        write(folder, made_by, name, point, win_rate=win, stability=stability, status=status)
    results.write_manifest(folder, {"schema": schema.RUN_SCHEMA, "hashes": HASHES, "goals": made_by.goals})
    return folder


def start_from(run: Path, best: str = "") -> str:
    return f"start_from: [{{run: {run}{best}}}]"


def test_completed_trials_of_an_earlier_search_are_known_with_their_goals_the_best_first(tmp_path, run):
    [found] = earlier_runs(experiment(tmp_path, start=start_from(run)))
    assert [(one.source, one.values) for one in found.trials] == [
        (f"{run}/search-0002", (0.7, 0.8)),
        (f"{run}/search-0001", (0.6, 0.9)),
        (f"{run}/search-0003", (0.5, 0.7)),
    ]
    assert found.trials[0].point == {"objective.hard_margin": 2.0, "objective.soft_margin": 0.5}
    assert str(found) == f"3 trials of {run} are known to the search."
    # As the manifest keeps it.
    assert EarlierTrials.from_json(json.loads(json.dumps(asdict(found)))) == found


def test_the_best_of_them_are_taken_and_those_outside_a_narrower_space_are_not(tmp_path, run):
    [best] = earlier_runs(experiment(tmp_path, start=start_from(run, ", best: 1")))
    assert [one.source.rpartition("/")[2] for one in best.trials] == ["search-0002"]
    narrow = SPACE.replace("[0.5, 3.0]", "[0.5, 1.5]")
    [inside] = earlier_runs(experiment(tmp_path, space=narrow, start=start_from(run)))
    assert [one.source.rpartition("/")[2] for one in inside.trials] == ["search-0001"]
    assert str(inside).endswith("2 more lie outside this space.")


def test_a_run_over_fewer_knobs_fits_a_space_with_more_where_base_says_the_rest(tmp_path, run):
    """The anchor's weight, not searched before, was that of base, which lies inside its range now."""
    wider = SPACE + ", objective.anchor_weight: {log_uniform: [0.01, 2.0]}"
    [found] = earlier_runs(experiment(tmp_path, space=wider, start=start_from(run)))
    assert {one.point["objective.anchor_weight"] for one in found.trials} == {0.1}


@pytest.mark.parametrize(
    ("space", "more", "message"),
    [
        (SPACE, "base: {training: {updates: 40}}", r"had training.updates = 150, which is 40 here and is not searched"),
        (SPACE, "base: {objective: {anchor_weight: 0.2}}", r"had objective.anchor_weight = 0.1, which is 0.2 here"),
        (SPACE, "goals: {mean_margin: maximize, stability: maximize}", r"has no mean_margin, which is a goal here"),
        (SPACE.replace("[0.5, 3.0]", "[3.0, 4.0]"), "", r"nothing of .* can be used: 3 lie outside this space"),
        ("objective.hard_margin: {uniform: [0.5, 3.0]}", "", r"had objective.soft_margin = 0.5, which is 1.0 here"),
    ],
)
def test_a_run_of_which_nothing_follows_for_this_one_is_refused_with_the_reason(tmp_path, run, space, more, message):
    with pytest.raises(InputError, match=message):
        earlier_runs(experiment(tmp_path, space=space, start=start_from(run), more=more))


def test_another_judge_or_another_measure_of_stability_is_refused(tmp_path, run):
    point = {"objective.hard_margin": 1.0, "objective.soft_margin": 0.5}
    for column, message in (
        ({"judge": "exact:notes"}, "with judge exact:notes, which is exact:arithmetic here"),
        ({"stability_version": "stability-v0"}, "with stability_version stability-v0, which is stability-v1 here"),
    ):
        write(run, experiment(tmp_path), "search-0001", point, **column)
        with pytest.raises(InputError, match=message):
            earlier_runs(experiment(tmp_path, start=start_from(run)))


def test_a_run_that_is_not_there_or_trained_on_other_data_is_refused(tmp_path, run):
    with pytest.raises(InputError, match="there is no such run"):
        earlier_runs(experiment(tmp_path, start=start_from(tmp_path / "nowhere")))
    found = earlier_runs(experiment(tmp_path, start=start_from(run)))
    refuse_other_data(found, HASHES)
    with pytest.raises(InputError, match="had another sft checkpoint than this run has"):
        refuse_other_data(found, HASHES | {"sft_checkpoint": "z"})
