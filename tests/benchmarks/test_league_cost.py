"""The benchmark of a league against sweeps of its entries: both sides do the same, and a table of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.league_cost import LeagueCost, cost_table, cut_league, same_trials, write_entry
from slime_ray.bench.machine import describe_machine
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import RunError


def test_a_separate_sweep_does_what_the_league_does_for_its_entry(tmp_path: Path) -> None:
    path = tmp_path / "league.yaml"
    path.write_text(json.dumps(cut_league(4, 3, 2, 7)))
    league = load_experiment(path)
    assert (len(league.searches), league.arms) == (4, [])
    assert league.league is not None
    for part, entry in zip(league.searches, league.league.entries, strict=True):
        sweep = load_experiment(write_entry(league, entry, tmp_path))
        (own,) = sweep.searches
        assert (own.search, own.trials, own.best, own.seeds) == (part.search, 3, 1, part.seeds)
        assert sweep.settings == league.settings_with(entry.set)
        assert sweep.settings.training.updates == 7
        assert (sweep.arms, sweep.goals) == ([], league.goals)


def test_sides_that_made_other_numbers_of_trials_are_not_compared(tmp_path: Path) -> None:
    for name in ("league-0/trials/a", "league-0/trials/b", "dpo-0/trials/a", "ipo-0/trials/a", "league-1/trials/a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "trial.json").touch()
    assert same_trials(tmp_path, 0) == 2
    (tmp_path / "dpo-0/trials/a/trial.json").unlink()
    with pytest.raises(RunError, match="the league made 2 trials and the sweeps 1"):
        same_trials(tmp_path, 0)


def test_the_table_has_the_ratio_of_medians() -> None:
    report = LeagueCost(
        machine=describe_machine(torch.device("cpu")), date="today", entries=10, trials=40, updates=150,
        league=[100.0, 90.0, 500.0], separate=[150.0, 149.0, 151.0], league_cpu=[200.0], separate_cpu=[210.0], load=[3.0],
    )  # fmt: skip
    lines = cost_table(report).splitlines()
    assert next(line for line in lines if line.startswith("sweeps to league")).split()[3:] == ["1.50x", "1.05x"]
    assert "150" in next(line for line in lines if line.startswith("10 sweeps, one after another"))
    assert replace(report, league=[300.0]).ratio() == 0.5
