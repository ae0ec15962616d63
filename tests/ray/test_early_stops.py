"""Trials stopped early in one sweep: each leaves at once, with a row, and nothing of it stays behind."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from ray import cloudpickle
from ray.util import placement_group_table
from slime_ray.analysis.trial_tables import search_trials

from slime_ray.on_ray import monitor
from slime_ray.on_ray.connection import descendants
from slime_ray.on_ray.search import study_storage
from slime_ray.runs import results
from slime_ray.runs.pareto import best_rows
from slime_ray.training.orders import Command
from tests.faults.conftest import until
from tests.ray.sweeps import sweep

pytestmark = pytest.mark.ray
TEXT = """\
search:
  training.learning_rate: {log_uniform: [1e-6, 1e-3]}
early_stopping: {first: 0.1}
budget: {checkpoints: 2}
"""
ENDED = ("completed", "stopped", "diverged")


class TwoOfThree:
    """Stops every trial but each third, at its second evaluation: no order of events changes which."""

    def decide(self, trial_id: str, told: Mapping[str, Any]) -> Command | None:
        if int(trial_id[-4:]) % 3 == 0 or not 4 <= (told.get("step") or 0) < told["updates"]:
            return None
        return Command("stop", f"early: at update {told['step']} of {told['updates']}")


class Scripted(monitor.MonitorActor):
    """The monitor with that rule."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.rules = {"": TwoOfThree()}


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    # The monitor's process cannot import this file.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(monitor, "MonitorActor", Scripted)


@pytest.fixture
def instance() -> Iterator[None]:
    before = descendants(os.getpid())
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
    until(lambda: descendants(os.getpid()) <= before, 300, "Ray's processes to end")


def nothing_is_held() -> bool:
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    return ray.available_resources().get("CPU") == 2.0 and not groups


def check(folder: Path, *, trials: int, workers: int) -> None:
    run = sweep(
        folder, "stops", TEXT, training__updates=20, training__evaluations=10, budget__trials=trials,
        resources__workers=workers, resources__concurrent_trials="auto",
    )  # fmt: skip
    rows = results.finished_trials(run)
    stopped = [row for row in rows.values() if row["status"] == "stopped"]
    most = max(row["tokens"] for row in rows.values())
    assert len(rows) == trials
    assert [row["trial_id"] for row in stopped] == [name for name in sorted(rows) if int(name[-4:]) % 3]
    assert {row["status"] for row in rows.values()} <= set(ENDED)
    for row in stopped:
        # The budget that it reached, of what it had.
        assert 0 < row["updates"] < row["planned_updates"] == 20
        assert 0 < row["tokens"] < most
        assert row["reason"] == f"early: at update {row['updates']} of 20"
        # Not measured further: nobody asks how well a stopped model answers.
        assert row["win_rate"] is None
        assert not (run / "trials" / row["trial_id"] / "resume").exists()
    until(nothing_is_held, 300, "every CPU to be free")
    study = optuna.load_study(study_name=None, storage=study_storage(run))
    assert len(study.trials) == trials
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED", "FAIL"}
    told = {t.user_attrs["trial_id"]: t.user_attrs["tokens"] for t in study.trials if t.state.name == "PRUNED"}
    assert told == {row["trial_id"]: row["tokens"] for row in stopped}
    # No front holds them, whoever draws it.
    table = search_trials(results.load(run)).frame
    on_front = set(table["trial_id"][table["on_front"]])
    assert on_front
    assert not on_front & told.keys()
    assert not {trial.user_attrs["trial_id"] for trial in study.best_trials} & told.keys()
    best = best_rows(
        [row for row in rows.values() if row["phase"] == "search"], {"win_rate": "maximize", "stability": "maximize"}
    )
    kept = {path.parent.name for path in (run / "trials").glob("*/checkpoint")}
    assert kept == {row["trial_id"] for row in best[:2]}
    assert json.loads((run / "manifest.json").read_text())["finished"]


def test_trials_stopped_early_leave_every_cpu_free_and_no_process(instance, tmp_path):
    check(tmp_path, trials=9, workers=1)


@pytest.mark.faults
def test_groups_of_workers_that_are_stopped_early_free_their_placement_groups(instance, tmp_path):
    check(tmp_path, trials=3, workers=2)
