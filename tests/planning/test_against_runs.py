"""What is planned, beside what real trials then compute and ask."""

from pathlib import Path

import pytest

from slime_ray.config.experiment import arm_trials
from slime_ray.planning.estimate import Planner
from slime_ray.planning.plan import Cluster
from slime_ray.runs.store import RunStore
from slime_ray.training.worker import run_trial
from tests.evaluation.judges.judge_server import KEY, VARIABLE, serving

from .conftest import TINY

ARMS = """\
arms:
  slime: {}
  epochs: {training.updates: null, training.epochs: 2, training.pairs_per_update: 12}
seeds: [0, 1]
"""
HERE = Cluster(trials=1, where="here")


def quiet(told):
    return None


def test_tokens_are_those_of_the_column_but_for_which_pairs_a_seed_draws(load, tmp_path):
    experiment = load(TINY + ARMS)
    plan = Planner(experiment).plan(HERE)
    storage = RunStore(tmp_path / "storage")
    ran: dict[str, list[int]] = {}
    for trial in arm_trials(experiment):
        row = run_trial(trial, run=tmp_path / "storage" / "run", storage=storage, report=quiet)
        ran.setdefault(f"arm {trial.label}", []).append(row["tokens"])
        (planned,) = [each for each in plan.rows if each.name == f"arm {trial.label}"]
        assert row["updates"] == planned.updates
    for row in plan.rows:
        assert row.tokens.expected == pytest.approx(sum(ran[row.name]), rel=0.02)
    # Whole epochs leave no pair out.
    assert plan.rows[1].tokens.expected == pytest.approx(sum(ran["arm epochs"]), rel=1e-9)
    # 7 updates of 16 of 40 pairs: the seeds draw other pairs.
    assert ran["arm slime"][0] != ran["arm slime"][1]
    written = sum(file.stat().st_size for file in Path(storage.root).rglob("*") if file.is_file())
    # At most, and not by much: four trials' models, and checkpoints that no trial was long enough to write.
    assert written <= plan.disk_bytes <= 4 * written


@pytest.mark.parametrize("template", ["arena-hard", "mt-bench-single"])
def test_requests_are_those_that_a_judge_counts(load, tmp_path, monkeypatch, template):
    monkeypatch.setenv(VARIABLE, KEY)
    with serving() as server:
        judge = {"name": "llm", "model": "rule", "template": template, "base_url": server.url, "api_key_env": VARIABLE}
        # Seeds of one arm, whose answers all differ: of equal ones verdicts are kept, and fewer are asked for.
        arms = "arms: {slime: {}}\nseeds: [0, 1]\n"
        experiment = load(TINY + arms, base__evaluation__judge=judge)
        planned = Planner(experiment).plan(HERE).judging
        for trial in arm_trials(experiment):
            run_trial(trial, run=tmp_path / "run", storage=RunStore(tmp_path), report=quiet)
        assert planned.requests.low == planned.requests.high == len(server.requests)
    # Both orders of 2 x 10 answers, or their ratings with those of the baseline's 10.
    assert len(server.requests) == {"arena-hard": 40, "mt-bench-single": 30}[template]
