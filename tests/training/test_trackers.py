"""Trackers show what the result files hold: real records of a real trial, read back with each tracker's own reader."""

import json
import logging
import os
import struct
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK

from slime_ray.config import trackers as tracker_settings
from slime_ray.config.experiment import Faults, Trial, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError
from slime_ray.runs.store import RunStore
from slime_ray.training import trackers as trackers_module
from slime_ray.training.loop import Runtime
from slime_ray.training.single import ConsoleProgress
from slime_ray.training.trackers import Trackers, TrialArguments
from slime_ray.training.worker import run_trial

from . import small_trials
from .small_trials import nothing

FOUND = ModuleSpec("found", None, origin="somewhere")
ARMS = "arms: {slime: {objective.anchor_weight: 0.2}, sft: {training.updates: 0}}\n"
TEXT = small_trials.TEXT.partition("arms:")[0] + ARMS


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> list[Trial]:
    path = tmp_path_factory.mktemp("yaml") / "tracked.yaml"
    path.write_text(TEXT)
    return arm_trials(load_experiment(path))


class Trainer:
    """What a tracker asks of a Trainer."""

    def __init__(self, folder: Path):
        self.args = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True)
        self.state, self.control, self.model = TrainerState(), TrainerControl(), None


def trained(trial: Trial, run: Path, storage: RunStore, *names: Any, report: Any = nothing) -> dict[str, Any]:
    runtime = Runtime(trackers=names, faults=Faults(checkpoint_minutes=1e-9))
    return run_trial(trial, run=run, storage=storage, report=report, runtime=runtime)


def events(run: Path, trial: Trial) -> EventAccumulator:
    found = EventAccumulator(str(run / "trials" / trial.trial_id / "tensorboard"), size_guidance={"scalars": 0})
    return found.Reload()


def scalars(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


def recorded(run: Path, trial: Trial, metric: str, source: str) -> list[tuple[int, float]]:
    curves = pd.read_parquet(run / "trials" / trial.trial_id / "curves.parquet")
    own = curves[(curves["metric"] == metric) & (curves["source"] == source)]
    return list(zip(own["step"], own["value"], strict=True))


def test_tensorboard_has_the_curves_and_results_of_the_result_files_and_changes_none(
    trials, storage, untracked, tmp_path
):
    row = trained(trials[0], tmp_path, storage, "tensorboard")
    same(row, untracked)
    assert not (untracked[1] / "trials" / trials[0].trial_id / "tensorboard").exists()
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
    assert scalars(found, "eval/result/stability")[0][1] == pytest.approx(row["stability"], rel=1e-6)
    assert scalars(found, "eval/result/win_rate")[0][1] == pytest.approx(row["win_rate"], rel=1e-6)
    [about] = found.Tensors("args/text_summary")
    assert json.loads(about.tensor_proto.string_val[0]) == {
        "objective.anchor_weight": 0.2, "label": "slime", "phase": "arm", "seed": "0",
    }  # fmt: skip


@pytest.fixture(scope="module")
def untracked(trials, storage, tmp_path_factory) -> tuple[dict[str, Any], Path]:
    """The row of the first trial without trackers, and its run."""
    run = tmp_path_factory.mktemp("untracked")
    return trained(trials[0], run, storage), run


def same(row: dict[str, Any], untracked: tuple[dict[str, Any], Path]) -> None:
    for name in ("stability", "win_rate", "mean_margin", "kl_to_sft", "tokens", "config_hash"):
        assert row[name] == untracked[0][name], name


def test_an_update_waits_for_no_disk(trials, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(trackers_module, "FLUSH_SECONDS", 3600)
    trackers = Trackers(["tensorboard"], trials[0], tmp_path)
    [record] = trackers.begin(Trainer(tmp_path))
    for step in range(20):
        record.on_log(None, TrainerState(global_step=step), None, logs={"loss": 1.0})
    assert synced == []
    trackers.end({})
    assert len(scalars(events(tmp_path, trials[0]), "train/loss")) == 20


class Died(BaseException):
    """The process of a trial is gone; nothing is written any more."""


def die(told: Any) -> None:
    """Lose the process at update 4; the last checkpoint is of update 2."""
    if (told.get("doing"), told.get("step")) == ("training", 4):
        raise Died


def test_a_trial_that_goes_on_has_every_update_once(trials, storage, tmp_path):
    with pytest.raises(Died):
        trained(trials[0], tmp_path, storage, "tensorboard", report=die)
    watching = events(tmp_path, trials[0])
    trained(trials[0], tmp_path, storage, "tensorboard")
    # Also where TensorBoard was open all the time.
    for found in (events(tmp_path, trials[0]), watching.Reload()):
        for tag, metric, source in (
            ("train/loss", "loss", "train"),
            ("eval/held_out/chosen_logp", "chosen_logp", "held_out"),
        ):
            expected = recorded(tmp_path, trials[0], metric, source)
            assert scalars(found, tag) == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]


class Broken(TrainerCallback):
    """A tracker that fails at its start, or later."""

    def __init__(self, where: str):
        self.where = where

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.where == "begin":
            raise OSError("https://me:hunter2@tracker.example does not take the key a-key-of-mine")

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.where == "log":
            raise RuntimeError("no space left")

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.where == "end":
            raise RuntimeError("no space left")


@pytest.mark.parametrize("where", ["begin", "log", "end"])
def test_a_tracker_that_fails_costs_no_trial_and_tells_no_secret(trials, storage, tmp_path, monkeypatch, caplog, where):
    monkeypatch.setitem(trackers_module.OPENERS, "flyte", lambda trial, run: Broken(where))
    monkeypatch.setenv("WANDB_API_KEY", "a-key-of-mine")
    heard: list[Any] = []
    with caplog.at_level(logging.WARNING):
        row = trained(trials[1], tmp_path, storage, "flyte", "tensorboard", report=heard.append)
    assert row["status"] == "completed"
    logged = [record.getMessage() for record in caplog.records if "goes on without flyte" in record.getMessage()]
    assert len(logged) == 1
    told = [news["untracked"]["flyte"] for news in heard if "untracked" in news]
    assert len(told) == 1
    for said in (logged[0], told[0]):
        assert "hunter2" not in said
        assert "a-key-of-mine" not in said
    found = events(tmp_path, trials[1])
    # A trial without updates has its results, too.
    assert [step for step, _ in scalars(found, "eval/held_out/chosen_logp")] == [0]
    assert scalars(found, "eval/result/stability")[0][1] == pytest.approx(row["stability"], rel=1e-6)


def test_the_record_of_a_failed_trial_is_closed_once_with_its_status_and_finite_results(trials, tmp_path, monkeypatch):
    closed: list[Any] = []

    class Watched(Broken):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            closed.append(logs)

    monkeypatch.setitem(trackers_module.OPENERS, "flyte", lambda trial, run: Watched(""))
    monkeypatch.setattr(trackers_module, "close", lambda name, status: closed.append((name, status)))
    trackers = Trackers(["flyte"], trials[0], tmp_path)
    trackers.begin(Trainer(tmp_path))
    trackers.end({"status": "failed", "stability": 0.0, "win_rate": None, "tokens": float("nan")})
    trackers.end({"status": "completed"})
    assert closed == [{"eval_result/stability": 0.0}, ("flyte", "failed")]


def test_variables_name_the_trial_while_it_runs_and_what_the_user_has_set_stays(trials, tmp_path, monkeypatch):
    monkeypatch.setitem(trackers_module.OPENERS, "flyte", lambda trial, run: Broken(""))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.delenv("CLEARML_PROJECT", raising=False)
    trackers = Trackers(["flyte"], trials[0], tmp_path)
    trackers.begin(Trainer(tmp_path))
    assert (os.environ["WANDB_PROJECT"], os.environ["CLEARML_PROJECT"]) == ("mine", tmp_path.name)
    trackers.end({"status": "completed"})
    assert os.environ["WANDB_PROJECT"] == "mine"
    assert "CLEARML_PROJECT" not in os.environ


def test_a_tracker_is_told_the_trials_values_without_secrets_in_place_of_trainers_arguments(trials, tmp_path):
    trial = trials[0].model_copy(update={"values": {"api_key": "hunter2", "objective.remove": ["anchor"]}})
    arguments = TrialArguments(Trainer(tmp_path).args, trial, tmp_path)
    assert arguments.to_dict() == {
        "api_key": "***", "objective.remove": "['anchor']", "label": "slime", "phase": "arm", "seed": "0",
    }  # fmt: skip
    assert (arguments.run_name, arguments.project) == (trial.trial_id, tmp_path.name)
    assert arguments.output_dir == str(tmp_path)


def test_every_tracker_of_transformers_may_be_named():
    assert set(get_args(tracker_settings.Tracker)) == set(INTEGRATION_TO_CALLBACK)


def test_a_missing_package_is_a_sentence_before_anything_starts(monkeypatch):
    monkeypatch.setattr(
        tracker_settings, "find_spec", lambda name: FOUND if name in ("tensorboardX", "mlflow") else None
    )
    assert tracker_settings.lacks(["tensorboard", "mlflow"]) is None
    assert "Install slime-ray[wandb]" in (tracker_settings.lacks(["tensorboard", "wandb"]) or "")
    assert "Install trackio, or leave trackio out" in (tracker_settings.lacks(["trackio"]) or "")


def test_a_folder_named_like_a_package_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "of_a_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(tracker_settings.PACKAGES, "mlflow", "of_a_tracker")
    assert "Install slime-ray[mlflow]" in (tracker_settings.lacks(["mlflow"]) or "")


def test_mlflow_in_a_bucket_needs_a_server_and_wandb_online_a_key(monkeypatch, tmp_path):
    monkeypatch.setattr(tracker_settings, "find_spec", lambda name: FOUND)
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
        (
            "trackers: [tensorbord]",
            "trackers.0 is 'tensorbord'. Did you mean 'tensorboard'. Allowed: azure_ml, clearml, .*, mlflow, .*, wandb",
        ),
        ("trackers: wandb", "trackers is 'wandb'"),
        ("trackers: [wandb, wandb]", "'wandb' and 'wandb' are equal"),
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
    for line in ("trackers: []\n", "trackers: [mlflow, wandb]\n"):
        path.write_text(TEXT + line)
        after = load_experiment(path)
        assert after.fingerprint == before.fingerprint
        assert [trial.config_hash for trial in arm_trials(after)] == [trial.config_hash for trial in arm_trials(before)]


def test_train_says_that_a_tracker_is_left_out():
    said: list[str] = []
    ConsoleProgress(said.append).report({"untracked": {"wandb": "OSError: no space left"}})
    assert said == ["It goes on without wandb: OSError: no space left"]


@pytest.mark.slow
def test_weights_and_biases_records_offline_and_keeps_no_secret(trials, storage, untracked, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", secret := "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(sys, "argv", ["slime-ray", "--password", "hunter2"])
    try:
        with pytest.raises(Died):
            trained(trials[0], tmp_path, storage, "wandb", report=die)
        row = trained(trials[0], tmp_path, storage, "wandb")
    finally:
        # Its own process would outlive the test.
        wandb.teardown()
    same(row, untracked)
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
    """The history of an offline record."""
    from wandb.proto import wandb_internal_pb2

    lines = []
    for data in entries(record.read_bytes()):
        entry = wandb_internal_pb2.Record()
        entry.ParseFromString(data)
        if entry.WhichOneof("record_type") == "history":
            items = entry.history.item
            lines.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return lines


def entries(content: bytes) -> Iterator[bytes]:
    """The entries of a log in LevelDB's format, in blocks of 32 KiB; W&B's begins with 7 bytes of its own."""
    at, entry = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        entry += content[at + 7 : at + 7 + length]
        at += 7 + length
        # Whole, first, middle, last.
        if kind in (1, 4):
            yield entry
            entry = b""


@pytest.mark.slow
def test_mlflow_records_every_trial_of_a_run_in_one_store(trials, storage, untracked, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    run = tmp_path / "tracked"
    with pytest.raises(Died):
        trained(trials[0], run, storage, "mlflow", report=die)
    rows = {trial.trial_id: trained(trial, run, storage, "mlflow") for trial in trials}
    same(rows[trials[0].trial_id], untracked)
    client = MlflowClient((run / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("tracked")
    runs = client.search_runs([experiment.experiment_id])
    found = {one.info.run_name: one for one in runs}
    assert sorted(found) == sorted(one.info.run_name for one in runs) == sorted(rows)
    assert {one.info.status for one in found.values()} == {"FINISHED"}
    one = found[trials[0].trial_id]
    assert one.data.params["objective.anchor_weight"] == "0.2"
    assert one.data.metrics["eval_result/stability"] == pytest.approx(rows[trials[0].trial_id]["stability"])
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(one.info.run_id, "loss")]
    assert sorted(losses) == [(step, pytest.approx(value)) for step, value in recorded(run, trials[0], "loss", "train")]
    for file in run.rglob("*"):
        if file.is_file():
            assert b"hunter2" not in file.read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_server_that_is_not_there_costs_seconds_and_no_trial(trials, tmp_path, monkeypatch, name):
    package = pytest.importorskip(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for variable, value in {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(trackers_module, "WANDB_SECONDS", 3.0)
    (tmp_path / "trials" / trials[0].trial_id).mkdir(parents=True)
    records = Trackers([name], trials[0], tmp_path)
    try:
        records.begin(Trainer(tmp_path))
    finally:
        if name == "wandb":
            package.teardown()
    assert records.records == {}
    assert "refused" in records.left_out[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trackio", "swanlab"])
def test_another_tracker_of_transformers_writes_offline_and_keeps_no_command_line(trials, tmp_path, monkeypatch, name):
    # Trackio reads where to write when it is imported.
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setattr(sys, "argv", ["slime-ray", "--password", "hunter2"])
    (tmp_path / "trials" / trials[0].trial_id).mkdir(parents=True)
    trackers = Trackers([name], trials[0], tmp_path)
    [record] = trackers.begin(Trainer(tmp_path))
    record.on_log(None, TrainerState(global_step=1), None, logs={"loss": 1.0})
    trackers.end({"status": "completed", "stability": 0.5})
    assert trackers.left_out == {}
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(name in str(file.relative_to(tmp_path)) for file in written)
    assert [file for file in written if b"hunter2" in file.read_bytes()] == []
