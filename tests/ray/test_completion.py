"""When a trial has ended and what has to be written then cannot be: no trial is trained again, and no row is lost."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from slime_ray.config.experiment import Experiment, Trial, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import RunError
from slime_ray.on_ray import sweep as sweep_module
from slime_ray.on_ray.plan import TrialPlan
from slime_ray.on_ray.search import StudySearch
from slime_ray.on_ray.sweep import Recorder, Sweep
from slime_ray.runs import results
from slime_ray.runs.store import RunStore
from slime_ray.training import attempts, outcome
from slime_ray.training.outcome import record_failure
from tests.ray.sweeps import BASE, sweep

SEARCH = """\
search:
  training.learning_rate: {log_uniform: [1e-6, 1e-3]}
budget: {trials: 3, checkpoints: 1}
"""


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    path = tmp_path / "completion.yaml"
    path.write_text(f"name: completion\n{BASE}arms: {{slime: {{}}}}\n")
    return load_experiment(path)


def sweep_of(experiment: Experiment, storage: RunStore) -> Sweep:
    run = storage.root / experiment.name
    run.mkdir(parents=True)
    return Sweep(experiment, storage, run, {}, None, 0, Console(quiet=True))


def recorder_of(sweep: Sweep) -> Recorder:
    return Recorder(sweep, TrialPlan(sweep.experiment, studies={}, rows={}, seed=0))


def ended(trial: Trial, error: Exception | None = None) -> Any:
    """A trial as Ray Tune hands it to callbacks."""
    return SimpleNamespace(config={"trial": trial.model_dump(mode="json")}, get_error=lambda: error)


def test_tables_that_cannot_be_written_are_no_fault_of_the_trial(experiment, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Recorder, "EVERY_SECONDS", 0.0)
    sweep = sweep_of(experiment, RunStore(tmp_path / "runs"))
    [trial] = arm_trials(experiment)
    record_failure(trial, sweep.run, "it failed")
    recorder = recorder_of(sweep)
    (sweep.run / "trials.parquet").mkdir()
    recorder.on_trial_complete(0, [], ended(trial))
    assert "not up to date" in caplog.text
    (sweep.run / "trials.parquet").rmdir()
    recorder.on_trial_complete(0, [], ended(trial))
    assert (sweep.run / "trials.parquet").is_file()


def test_a_damaged_file_of_another_trial_is_no_fault_of_this_one(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(Recorder, "EVERY_SECONDS", 0.0)
    sweep = sweep_of(experiment, RunStore(tmp_path / "runs"))
    [trial] = arm_trials(experiment)
    record_failure(trial, sweep.run, "it failed")
    (sweep.run / "trials" / trial.trial_id / "answers.parquet").write_text("damaged")
    recorder_of(sweep).on_trial_complete(0, [], ended(trial))


def keeping_one(experiment: Experiment, storage: RunStore) -> tuple[Sweep, dict[str, Any]]:
    """A sweep that keeps one model, and the rows of three trials of its search, the first of them the best."""
    budget = experiment.budget.model_copy(update={"checkpoints": 1})
    rows = {
        name: {"trial_id": name, "phase": "search", "status": "completed", "win_rate": win, "stability": 1.0}
        for name, win in (("a", 0.9), ("b", 0.5), ("c", 0.1))
    }
    return sweep_of(experiment.model_copy(update={"budget": budget}), storage), rows


def test_a_store_that_does_not_list_a_model_is_asked_again(experiment, tmp_path):
    sweep, rows = keeping_one(experiment, RunStore(tmp_path / "copy", f"file://{tmp_path}/bucket"))
    trials = tmp_path / "bucket" / "completion" / "trials"
    for name in rows:
        (trials / name / "checkpoint").mkdir(parents=True)
        (trials / name / "checkpoint" / "adapter").write_text("weights")
    # A store cannot list what is a file.
    (trials / "b" / "checkpoint").rename(tmp_path / "aside")
    (trials / "b" / "checkpoint").write_text("in the way")
    recorder = recorder_of(sweep)
    recorder.plan.rows = rows
    [trial] = arm_trials(experiment)
    recorder.on_trial_complete(0, [], ended(trial))
    (trials / "b" / "checkpoint").unlink()
    (tmp_path / "aside").rename(trials / "b" / "checkpoint")
    recorder.on_trial_complete(0, [], ended(trial))
    assert sorted(path.parent.parent.name for path in trials.rglob("adapter")) == ["a"]


def test_a_row_that_cannot_be_written_ends_no_sweep(experiment, tmp_path, monkeypatch, caplog):
    """A file stands where the folder of all trials belongs."""
    monkeypatch.setattr(outcome, "patiently", lambda work, report, **how: work())
    sweep = sweep_of(experiment, RunStore(tmp_path / "runs"))
    (sweep.run / "trials").write_text("in the way")
    [trial] = arm_trials(experiment)
    recorder = recorder_of(sweep)
    recorder.on_trial_error(0, [], ended(trial, RuntimeError("its process died")))
    assert f"has no row of {trial.trial_id} yet" in caplog.text
    (sweep.run / "trials").unlink()
    recorder.on_trial_error(0, [], ended(trial, RuntimeError("its process died")))
    assert results.finished_trials(sweep.run)[trial.trial_id]["reason"] == "its process died"


def test_models_are_deleted_once(experiment, tmp_path, monkeypatch):
    sweep, rows = keeping_one(experiment, RunStore(tmp_path / "runs"))
    removed: list[str] = []
    monkeypatch.setattr(RunStore, "remove", lambda storage, path: removed.append(path.parent.name))
    for _ in range(3):
        sweep_module.drop_models(sweep, rows)
    assert sorted(removed) == ["b", "c"]


@pytest.mark.ray
@pytest.mark.faults
def test_a_sweep_that_loses_its_database_and_its_disk_repeats_no_trial(tmp_path, monkeypatch):
    """Both break when the first trial of the search completes, and are mended before the sweep is gone on with."""
    database, run = tmp_path / "study.db", tmp_path / "runs" / "completion"
    monkeypatch.setattr(Recorder, "EVERY_SECONDS", 0.0)
    kept: list[bytes] = []
    end = StudySearch._end

    def breaks(self: StudySearch, *told: Any) -> None:
        kept.append(database.read_bytes())
        database.write_bytes(b"no database at all, but long enough to be looked at" * 100)
        (run / "trials.parquet").mkdir()
        end(self, *told)

    def go(start: Any) -> Path:
        return sweep(tmp_path, "completion", SEARCH, start, f"sqlite:///{database}")

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with monkeypatch.context() as broken:
            broken.setattr(StudySearch, "_end", breaks)
            with pytest.raises(RunError, match=r"trials\.parquet"):
                go("fresh")
        assert list(results.finished_trials(run)) == ["search-0001"]
        (run / "trials.parquet").rmdir()
        database.write_bytes(kept[0])
        # Told when it ended, and once more when the sweep was closed.
        assert len(kept) == 2
        go("resume")
    finally:
        ray.shutdown()
    rows = results.finished_trials(run)
    assert list(rows) == ["search-0001", "search-0002", "search-0003"]
    assert [len(attempts.read(run / "trials" / name)) for name in rows] == [1, 1, 1]
    assert results.read_manifest(run)["finished"]
