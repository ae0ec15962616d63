"""How well searches find: a made-up table of recorded trials with known answers, and one that is really recorded."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import recording
from benchmarks import search as bench
from benchmarks.simulate import FixedPoints, Played, Recorded, WithinTokens, random_points
from slime_ray.config.experiment import EarlyStopping
from slime_ray.runs import results

BOX = {
    "objective.anchor_weight": (0.02, 3.0),
    "objective.stabilizer_strength": (0.005, 0.5),
    "objective.hard_margin": (1.0, 3.0),
}


def made_up(name: str, phase: str, seed: int, win_rate: float, stability: float, **values: Any) -> Recorded:
    """A trial that shows from its start on what it comes to."""
    goals = {"win_rate": win_rate, "stability": stability}
    row = {"label": name, "phase": phase, "seed": seed, "status": "completed", **goals}
    evaluations = {step: {**goals, "preference_accuracy": win_rate} for step in range(10, 101, 10)}
    return Recorded(f"{name}-s{seed}", values, evaluations, updates=100, tokens=1000, row=row)


def grid_of(count: int) -> list[Recorded]:
    """Cells of which the later one is better in both goals, on all prompts and seeds."""
    return [
        made_up(f"cell-{number:02d}", phase, seed, 0.3 + number / 100, number / 100, **values)
        for number, values in enumerate(recording.cells()[:count])
        for phase, seeds in (("arm", recording.TRUTH_SEEDS), ("search", recording.SEARCH_SEEDS))
        for seed in seeds
    ]


@pytest.fixture
def experiment(tmp_path: Path):
    return recording.experiment_in(tmp_path)


def test_the_truth_is_the_mean_over_seeds_on_the_report_prompts():
    trials = [
        made_up("cell-00", "arm", 0, 0.9, 0.9),
        made_up("cell-00", "arm", 1, 0.1, 0.1),
        made_up("cell-01", "arm", 0, 0.6, 0.6),
        made_up("cell-01", "arm", 1, 0.6, 0.6),
        made_up("cell-00", "search", 1000, 1.0, 1.0),
    ]
    assert bench.true_cells(trials) == ["cell-01", "cell-00"]


def test_a_grid_that_shows_early_is_found_for_a_part_of_its_tokens(tmp_path, monkeypatch):
    space, trials = recording.cells_in(tmp_path), grid_of(27)
    truth = bench.true_cells(trials)
    grid = {
        seed: [one for one in trials if one.row["phase"] == "search" and one.row["seed"] == seed]
        for seed in recording.SEARCH_SEEDS
    }
    goals: dict[str, Any] = {"win_rate": "maximize", "stability": "maximize"}
    monkeypatch.setitem(bench.RULES, "early", EarlyStopping(rule="pareto", goals=goals, first=0.1, reduction=3))
    found = bench.search_grid(bench.EVERY, "early", truth, grid, space, workers=1, seeds=6)
    whole = bench.search_grid(bench.EVERY, "none", truth, grid, space, workers=1, seeds=3)
    assert (whole["best"], whole["top 2"], whole["tokens"], whole["stopped"]) == (3, 3, 1.0, 0.0)
    # The best cell is at no rung behind any other, so it always comes to its end.
    assert (found["best"], found["top 2"]) == (6, 6)
    assert 0.1 < found["tokens"] < 0.5
    assert found["most"] >= found["tokens"]
    assert found["stopped"] > 13
    assert found["trials"] == 27
    # A sampler that may take a quarter of the tokens takes no more, with any number of workers; here, six whole trials.
    for workers in (1, 4):
        some = bench.search_grid(bench.CHOSEN, "none", truth, grid, space, workers=workers, seeds=3)
        assert (some["trials"], some["most"]) == (6, pytest.approx(6 / 27))
        more = bench.search_grid(bench.CHOSEN, "early", truth, grid, space, workers=workers, seeds=3)
        assert more["trials"] > 6
        assert more["most"] <= bench.QUARTER


def test_what_was_not_trained_of_a_trial_is_left_for_others():
    within = WithinTokens(FixedPoints([{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}]), 250, trial_tokens=100)
    assert [within.suggest("a"), within.suggest("b"), within.suggest("c")] == [{"n": 1}, {"n": 2}, None]
    within.complete("a", {"tokens": 40})
    # 210 are left, of which 100 are held.
    assert within.suggest("c") == {"n": 3}
    assert within.suggest("d") is None
    within.complete("b", {"tokens": 100})
    within.complete("c", {"tokens": 20})
    assert within.tokens_left == 90
    assert within.suggest("d") is None


def test_the_hypervolume_is_the_area_that_the_completed_trials_dominate():
    rows = [
        {"status": "completed", "win_rate": 0.5, "stability": 0.4},
        {"status": "completed", "win_rate": 0.2, "stability": 0.9},
        {"status": "completed", "win_rate": 0.1, "stability": 0.3},
        {"status": "stopped", "win_rate": None, "stability": None},
    ]
    trial = made_up("any", "search", 1000, 0.5, 0.5)
    played = [Played(trial, row, 0.0, 0.0) for row in rows]
    assert bench.hypervolume(played) == pytest.approx(0.5 * 0.4 + 0.2 * 0.5)
    assert bench.hypervolume([]) == 0.0


def test_points_lie_in_the_box(experiment):
    points = random_points(experiment.search, 100, 0)
    assert len({tuple(point.values()) for point in points}) == 100
    assert all(low <= point[path] <= high for point in points for path, (low, high) in BOX.items())


def test_the_nearest_recorded_trial_stands_for_a_point_on_the_scale_of_its_draw(experiment):
    names = list(BOX)
    near = made_up("a", "search", 1000, 0.5, 0.5, **dict(zip(names, (0.02, 0.05, 2.0), strict=True)))
    far = made_up("b", "search", 1000, 0.5, 0.5, **dict(zip(names, (1.0, 0.05, 2.0), strict=True)))
    nearest = bench.Nearest([near, far], experiment)
    # 0.1 is nearer to 0.02 than to 1 in both; 0.2 only where it is not taken by its logarithm.
    assert nearest({names[0]: 0.1, names[1]: 0.05, names[2]: 2.0}) is near
    assert nearest({names[0]: 0.2, names[1]: 0.05, names[2]: 2.0}) is far


def test_everything_is_measured_from_a_table_in_one_go(tmp_path, experiment):
    """The searcher of a sweep finds more than random points where the goals follow from the knobs."""
    known = []
    anchor = experiment.search.dimensions["objective.anchor_weight"]
    for number, point in enumerate(random_points(experiment.search, 60, 0)):
        share = sum(float(anchor.at(step / 50)) <= float(point["objective.anchor_weight"]) for step in range(50)) / 50
        known.append(made_up(f"point-{number:03d}", "search", 1000, share, 1 - share**2, **point))
    recorded = [*grid_of(27), *known]
    grid, front = bench.measure_search(recorded=recorded, folder=tmp_path, seeds=1, trials=12)
    assert {(row["early stopping"], row["workers"]) for row in grid.rows} == {
        (n, w) for n in bench.RULES for w in (1, 4)
    }
    every = [row for row in grid.rows if row["searcher"] == bench.EVERY]
    assert all(row["top 2"] == 1 for row in every if row["early stopping"] in ("none", "pareto"))
    plain, stopping, _ = front.rows
    assert all(0 < volume <= 1 for row in (plain, stopping) for volumes in row["volumes"] for volume in volumes)
    assert plain["tokens"] == 1.0
    assert plain["alike"] == plain["random"]
    assert stopping["tokens"] < 1.0
    # Of fewer tokens it is a part of the same trials.
    assert stopping["alike"] < stopping["random"]


def test_what_is_recorded_comes_back_from_its_table(tmp_path, experiment):
    """A trial that is really trained, small; its table plays what it told."""
    small = {
        "data.sft_examples": 40, "data.pairs": 24, "data.held_out_pairs": 8, "sft.updates": 2, "training.updates": 4,
        "training.pairs_per_update": 4, "training.evaluations": 2, "sentinel.prompts": 4, "evaluation.prompts": 4,
        "evaluation.selection_prompts": 4, "evaluation.kl_prompts": 2, "evaluation.decoding.max_new_tokens": 4,
    }  # fmt: skip
    trial = recording.recorded_trial(experiment, "cell-00", "search", 1000, {"objective.hard_margin": 2.0, **small})
    said: list[str] = []
    recorded = [recording.record(trial, tmp_path, said.append) for _ in range(2)]
    # Once: what is there is not trained again.
    assert len(said) == 1
    table = tmp_path / "table.jsonl.gz"
    recording.save_table(recorded, table)
    one, same = recording.load_table(table)
    assert one == same == recorded[0]
    row = results.finished_trials(tmp_path / "run")[trial.trial_id]
    assert (one.updates, one.tokens, one.row["stability"]) == (row["updates"], row["tokens"], row["stability"])
    assert (one.name, one.updates, one.row["phase"]) == ("cell-00-s1000", 4, "search")
    assert one.values["objective.hard_margin"] == 2.0
    assert [step for step in one.evaluations if step] == [2, 4]
    assert {"win_rate", "stability", "preference_accuracy"} <= set(one.evaluations[4])
    assert one.tokens > 0
