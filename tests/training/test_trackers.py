"""Trackers show what the result files hold: real records of a real trial, read back with each tracker's own reader."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slime_ray import tracker_settings
from slime_ray.errors import InputError
from slime_ray.experiment import Faults, Trial, arm_trials
from slime_ray.experiment_file import load_experiment
from slime_ray.mirror import Mirror
from slime_ray.training import trackers as trackers_module
from slime_ray.training.course import Hosting
from slime_ray.training.orders import Order, Paused
from slime_ray.training.trackers import Trackers
from slime_ray.training.worker import run_trial

TEXT = """\
name: tracked
preset: arithmetic
base:
  data: {sft_examples: 200, pairs: 40, held_out_pairs: 24}
  sft: {updates: 10}
  training: {updates: 6, pairs_per_update: 16, evaluations: 3, learning_rate: 1e-3}
  evaluation: {prompts: 16, selection_prompts: 8, kl_prompts: 4, decoding: {max_new_tokens: 12, batch: 16}}
arms: {slime: {objective.anchor_weight: 0.2}, sft: {training.updates: 0}}
"""


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> list[Trial]:
    path = tmp_path_factory.mktemp("yaml") / "tracked.yaml"
    path.write_text(TEXT)
    return arm_trials(load_experiment(path))


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Mirror:
    return Mirror(tmp_path_factory.mktemp("storage"))


def nothing(told: Any) -> None:
    return None


def trained(trial: Trial, run: Path, storage: Mirror, *names: Any, report: Any = nothing) -> dict[str, Any]:
    hosting = Hosting(trackers=names, faults=Faults(checkpoint_minutes=1e-9))
    return run_trial(trial, run=run, storage=storage, report=report, hosting=hosting)


def events(run: Path, trial: Trial) -> EventAccumulator:
    found = EventAccumulator(str(run / "trials" / trial.trial_id / "tensorboard"), size_guidance={"scalars": 0})
    return found.Reload()


def scalars(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


def recorded(run: Path, trial: Trial, metric: str, source: str) -> list[tuple[int, float]]:
    curves = pd.read_parquet(run / "trials" / trial.trial_id / "curves.parquet")
    own = curves[(curves["metric"] == metric) & (curves["source"] == source)]
    return list(zip(own["step"], own["value"], strict=True))


def test_tensorboard_has_the_curves_and_results_of_the_result_files(trials, storage, tmp_path):
    row = trained(trials[0], tmp_path, storage, "tensorboard")
    assert row["status"] == "completed"
    found = events(tmp_path, trials[0])
    for tag, metric, source in (
        ("train/loss", "loss", "train"),
        ("train/anchor", "anchor", "train"),
        ("train/grad_norm", "grad_norm", "train"),
        ("eval/held_out/chosen_logp", "chosen_logp", "held_out"),
        ("eval/held_out/preference_accuracy", "preference_accuracy", "held_out"),
        ("eval/sentinel/unlearning", "unlearning", "sentinel"),
    ):
        expected = recorded(tmp_path, trials[0], metric, source)
        assert [step for step, _ in scalars(found, tag)] == [step for step, _ in expected], tag
        assert [value for _, value in scalars(found, tag)] == pytest.approx([value for _, value in expected], rel=1e-6)
    assert scalars(found, "eval/held_out/chosen_logp")[0][0] == 0
    assert scalars(found, "result/stability")[0][1] == pytest.approx(row["stability"], rel=1e-6)
    assert scalars(found, "result/win_rate")[0][1] == pytest.approx(row["win_rate"], rel=1e-6)
    # What the trial set over base, for TensorBoard's table of hyperparameters.
    assert b"objective.anchor_weight" in found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content


def test_trackers_change_nothing_that_is_computed(trials, storage, tmp_path):
    with_ = trained(trials[0], tmp_path / "with", storage, "tensorboard")
    without = trained(trials[0], tmp_path / "without", storage)
    for name in ("stability", "win_rate", "mean_margin", "kl_to_sft", "tokens"):
        assert with_[name] == without[name], name
    assert not (tmp_path / "without" / "trials" / trials[0].trial_id / "tensorboard").exists()


def test_a_trial_without_updates_has_its_results(trials, storage, tmp_path):
    row = trained(trials[1], tmp_path, storage, "tensorboard")
    found = events(tmp_path, trials[1])
    assert [step for step, _ in scalars(found, "eval/held_out/chosen_logp")] == [0]
    assert scalars(found, "result/stability")[0][1] == pytest.approx(row["stability"], rel=1e-6)


def test_a_trial_that_goes_on_has_every_update_once(trials, storage, tmp_path):
    def leave(told):
        return Order("pause", "leave") if told.get("step") == 4 else None

    with pytest.raises(Paused):
        trained(trials[0], tmp_path, storage, "tensorboard", report=leave)
    trained(trials[0], tmp_path, storage, "tensorboard")
    found = events(tmp_path, trials[0])
    expected = recorded(tmp_path, trials[0], "loss", "train")
    assert [step for step, _ in scalars(found, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in scalars(found, "train/loss")] == pytest.approx(
        [value for _, value in expected], rel=1e-6
    )


class Broken:
    """A tracker that fails at its start, or later."""

    def __init__(self, trial: Trial, run: Path, *, where: str):
        self.where = where

    def begin(self, step: int | None) -> Any:
        if self.where == "begin":
            raise OSError("https://me:hunter2@tracker.example is not reached")
        return self

    def on_train_begin(self, *about: Any, **more: Any) -> None:
        pass

    def on_log(self, *about: Any, **more: Any) -> None:
        if self.where == "log":
            raise RuntimeError("no space left")

    on_train_end = on_train_begin

    def end(self, results: Any, status: str) -> None:
        if self.where == "end":
            raise RuntimeError("no space left")


@pytest.mark.parametrize("where", ["begin", "log", "end"])
def test_a_tracker_that_fails_costs_no_trial_and_tells_no_secret(trials, storage, tmp_path, monkeypatch, caplog, where):
    broken = {**trackers_module.RECORDS, "wandb": lambda trial, run: Broken(trial, run, where=where)}
    monkeypatch.setattr(trackers_module, "RECORDS", broken)
    with caplog.at_level(logging.WARNING):
        row = trained(trials[0], tmp_path, storage, "wandb", "tensorboard")
    assert row["status"] == "completed"
    said = [record.getMessage() for record in caplog.records if "wandb is left out" in record.getMessage()]
    assert len(said) == 1
    assert "hunter2" not in said[0]
    assert scalars(events(tmp_path, trials[0]), "train/loss")


def test_the_record_of_a_failed_trial_is_closed_with_its_status(trials, tmp_path):
    closed = []

    class Watched(Broken):
        def end(self, results: Any, status: str) -> None:
            closed.append((dict(results), status))

    records = Trackers((), trials[0], tmp_path)
    records._waiting = {"watched": Watched(trials[0], tmp_path, where="")}
    records.begin(None)
    records.end({"status": "failed", "stability": 0.0, "win_rate": None, "tokens": float("nan")})
    records.end({"status": "completed"})
    assert closed == [({"stability": 0.0}, "failed")]


def test_a_missing_package_is_a_sentence_before_anything_starts(monkeypatch):
    monkeypatch.setattr(tracker_settings, "find_spec", lambda name: None if name == "wandb" else object())
    assert tracker_settings.lacks(["tensorboard", "mlflow"]) is None
    said = tracker_settings.lacks(["tensorboard", "wandb"])
    assert said is not None
    assert "Install slime-ray[wandb]" in said


def test_mlflow_in_a_bucket_needs_a_server_and_wandb_online_a_key(monkeypatch, tmp_path):
    monkeypatch.setattr(tracker_settings, "find_spec", lambda name: object())
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "MLFLOW_TRACKING_URI" in (tracker_settings.lacks(["mlflow"], bucket=True) or "")
    assert tracker_settings.lacks(["mlflow"]) is None
    assert tracker_settings.lacks(["wandb"]) is None
    monkeypatch.setenv("WANDB_MODE", "online")
    assert "WANDB_API_KEY" in (tracker_settings.lacks(["wandb"]) or "")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert tracker_settings.lacks(["wandb"]) is None


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("trackers: [tensorbord]", "trackers.0 is 'tensorbord'"),
        ("trackers: [wandb, wandb]", "names a tracker twice"),
    ],
)
def test_trackers_that_are_no_trackers_are_refused_with_their_line(tmp_path, line, sentence):
    path = tmp_path / "wrong.yaml"
    path.write_text(TEXT + line + "\n")
    with pytest.raises(InputError, match=sentence) as error:
        load_experiment(path)
    assert f"wrong.yaml:{len(TEXT.splitlines()) + 1}:" in str(error.value)


def test_trackers_do_not_change_what_a_run_is(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(TEXT)
    before = load_experiment(path)
    assert before.trackers == ["tensorboard"]
    path.write_text(TEXT + "trackers: []\n")
    assert load_experiment(path).fingerprint == before.fingerprint


@pytest.mark.slow
def test_weights_and_biases_records_offline_and_keeps_no_secret(trials, storage, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", secret := "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(sys, "argv", ["slime-ray", "--password", "hunter2"])
    try:
        row = trained(trials[0], tmp_path, storage, "wandb")
    finally:
        # Its own process would outlive the test.
        wandb.teardown()
    assert row["status"] == "completed"
    (record,) = (tmp_path / "trials" / trials[0].trial_id / "wandb").glob("offline-run-*/*.wandb")
    history = wandb_history(record)
    losses = [(int(line["train/global_step"]), line["train/loss"]) for line in history if "train/loss" in line]
    assert losses == [(step, pytest.approx(value)) for step, value in recorded(tmp_path, trials[0], "loss", "train")]
    assert any("eval/held_out/chosen_logp" in line for line in history)
    for file in (tmp_path / "trials").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert secret.encode() not in content, file
            assert b"hunter2" not in content, file


def wandb_history(record: Path) -> list[dict[str, Any]]:
    """The history of an offline record, as `wandb sync` reads it."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(str(record))
    lines = []
    while (data := store.scan_data()) is not None:
        entry = wandb_internal_pb2.Record()
        entry.ParseFromString(data)
        if entry.WhichOneof("record_type") == "history":
            items = entry.history.item
            lines.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return lines


@pytest.mark.slow
def test_mlflow_records_every_trial_of_a_run_in_one_store(trials, storage, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(os.environ, "MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    run = tmp_path / "tracked"
    rows = {trial.trial_id: trained(trial, run, storage, "mlflow") for trial in trials}
    client = MlflowClient((run / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("tracked")
    found = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    assert set(found) == set(rows)
    assert {one.info.status for one in found.values()} == {"FINISHED"}
    one = found[trials[0].trial_id]
    assert one.data.params["objective.anchor_weight"] == "0.2"
    assert one.data.metrics["stability"] == pytest.approx(rows[trials[0].trial_id]["stability"])
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(one.info.run_id, "loss")]
    assert sorted(losses) == [(step, pytest.approx(value)) for step, value in recorded(run, trials[0], "loss", "train")]
