"""What a trial's process fetches before it works and leaves behind afterwards, in a store and on its own disk."""

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle, tune

from slime_ray.config.experiment import Faults, Resources, Trial, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.metrics import METRICS
from slime_ray.on_ray import workers as module
from slime_ray.on_ray.workers import WorkerContext, run_worker, tune_function
from slime_ray.runs import results
from slime_ray.runs.store import RunStore
from slime_ray.training import worker
from slime_ray.training.outcome import DeviceFailure, blank_row


@pytest.fixture
def trial(tmp_path) -> Trial:
    path = tmp_path / "place.yaml"
    path.write_text("name: place\npreset: arithmetic\narms: {slime: {}}\n")
    return arm_trials(load_experiment(path))[0]


@pytest.fixture
def context(tmp_path, monkeypatch) -> WorkerContext:
    """In a store, without Ray: nobody listens, and there is one node."""
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monitor: Any = SimpleNamespace(join=lambda *who: None, report=lambda *told, **how: None)
    return WorkerContext(
        RunStore(tmp_path / "copy", f"file://{tmp_path}/bucket"), "place", Resources(), Faults(), monitor
    )


def trains(context: WorkerContext) -> Any:
    """In the place of a training: leaves a model and a row."""

    def run_trial(trial: Trial, *, run: Path, **how: Any) -> dict[str, Any]:
        folder = context.trial(trial.trial_id) / "checkpoint"
        folder.mkdir(parents=True)
        (folder / "adapter").write_text("weights")
        row = blank_row(trial, datetime.now(UTC)) | {"status": "completed"}
        results.write_trial(run, row=row, answers=[], curves=[])
        return row

    return run_trial


def test_a_trained_model_is_in_the_store_and_not_on_the_nodes_disk(trial, context, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "run_trial", trains(context))
    run_worker(trial, context)
    stored = tmp_path / "bucket" / "place" / "trials" / trial.trial_id
    assert (stored / "checkpoint" / "adapter").read_text() == "weights"
    assert sorted(path.name for path in context.trial(trial.trial_id).iterdir()) == [
        "answers.parquet", "curves.parquet", "pairs.parquet", "trial.json",
    ]  # fmt: skip


def test_a_trial_that_has_finished_is_not_trained_again_and_keeps_its_model(trial, context, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "run_trial", trains(context))
    row = run_worker(trial, context)
    monkeypatch.setattr(worker, "run_trial", lambda *given, **how: pytest.fail("it was trained again"))
    assert run_worker(trial, context)["started"] == row["started"]
    assert (tmp_path / "bucket" / "place" / "trials" / trial.trial_id / "checkpoint" / "adapter").is_file()


def test_a_store_that_is_away_when_a_trial_starts_is_waited_for(trial, context, tmp_path, monkeypatch):
    """A file stands where the trial's folder belongs, until the trial says that it waits."""
    blocked = tmp_path / "bucket" / "place" / "trials" / trial.trial_id
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    waited = []

    def report(trial_id: str, told: Any, **how: Any) -> None:
        waited.append(told["doing"])
        blocked.unlink()

    monkeypatch.setattr(context.monitor, "report", report)
    monkeypatch.setattr(worker, "run_trial", trains(context))
    assert run_worker(trial, context)["status"] == "completed"
    assert len(waited) == 1


def test_a_trial_whose_gpu_failed_starts_again_in_another_process(trial, context, monkeypatch):
    """Tune takes no process again whose trial has raised, see tests/faults."""

    def fails(*arguments: Any) -> None:
        raise DeviceFailure("node gpu-3: AcceleratorError: CUDA error")

    monkeypatch.setattr(module, "run_worker", fails)
    monkeypatch.setattr(context.monitor, "begin", lambda name: None, raising=False)
    with pytest.raises(module.RestartTrial, match=r"^a GPU failed: node gpu-3: AcceleratorError"):
        tune_function({"trial": trial.model_dump(mode="json")}, context=cloudpickle.dumps(context))


def test_a_storage_that_refuses_a_trials_files_starts_it_no_second_time(trial, context, monkeypatch):
    """Tune would start a trial again that raises."""
    told: list[dict[str, Any]] = []

    def refuses(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "run_worker", refuses)
    monkeypatch.setattr(tune, "report", told.append)
    monkeypatch.setattr(context.monitor, "begin", lambda name: None, raising=False)
    tune_function({"trial": trial.model_dump(mode="json")}, context=cloudpickle.dumps(context))
    reason = "the storage does not take what is written (OSError: [Errno 28] No space left on device)"
    assert told == [{"finished": False, "status": "paused", "reason": reason}]


def test_a_trial_reports_every_number_that_may_be_a_goal_or_a_constraint(trial, context, monkeypatch):
    told: list[dict[str, Any]] = []
    row = blank_row(trial, datetime.now(UTC)) | {"status": "completed", **dict.fromkeys(METRICS, 0.25)}
    monkeypatch.setattr(module, "run_worker", lambda *arguments: row)
    monkeypatch.setattr(tune, "report", told.append)
    monkeypatch.setattr(context.monitor, "begin", lambda name: None, raising=False)
    tune_function({"trial": trial.model_dump(mode="json")}, context=cloudpickle.dumps(context))
    assert {name: told[0].get(name) for name in METRICS} == dict.fromkeys(METRICS, 0.25)
