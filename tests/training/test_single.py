"""`train_one`: what happens to it ends in a sentence. What it computes is tested in tests/end_to_end/test_sweep.py."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slime_ray.config.experiment import Experiment, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError, RunError
from slime_ray.training import evaluate, single, stages
from slime_ray.training.outcome import DeviceFailure, OutOfMemory


def experiment_in(folder: Path) -> tuple[Experiment, Path]:
    source = folder / "one.yaml"
    source.write_text("name: one\npreset: arithmetic\narms: {slime: {}}\n")
    return load_experiment(source), source


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_RAY_SCRATCH", str(tmp_path / "scratch"))


def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, storage: str | None = None) -> None:
    """Train with stages that are there already, and a trial that calls `error` or raises it."""

    def run_trial(*arguments: Any, **options: Any) -> None:
        if callable(error):
            error()
        else:
            raise error

    def prepare(*arguments: Any, **options: Any) -> Any:
        return SimpleNamespace(hashes={}, data={})

    monkeypatch.setattr(single, "run_trial", run_trial)
    monkeypatch.setattr(single, "prepare", prepare)
    experiment, source = experiment_in(tmp_path)
    [trial] = arm_trials(experiment)
    single.train_one(
        experiment, trial, source=source, storage=storage or tmp_path / "runs", start="fresh", say=lambda line: None
    )


def test_memory_that_runs_out_once_is_a_sentence_with_the_way_out(tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"arm-slime-s0 ran out of memory .* --resume"):
        train(tmp_path, monkeypatch, OutOfMemory("CUDA out of memory"))
    assert (tmp_path / "runs" / "one" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("CUDA error: an illegal memory access"), DeviceFailure("node a: CUDA error")]
)
def test_a_gpu_that_fails_is_a_sentence_with_the_way_out(tmp_path, monkeypatch, error):
    with pytest.raises(RunError, match=r"A GPU failed \(node .*CUDA error.*--resume to go on"):
        train(tmp_path, monkeypatch, error)


def test_a_gpu_that_fails_under_an_evaluation_is_one_too(tmp_path, monkeypatch):
    def prepare(*arguments: Any, **options: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access")

    monkeypatch.setattr(evaluate, "prepare", prepare)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    experiment, source = experiment_in(tmp_path)
    with pytest.raises(RunError, match=r"A GPU failed \(node .*CUDA error.*--resume to go on"):
        evaluate.evaluate(
            experiment, [tmp_path / "policy"], baseline=None, source=source,
            storage=str(tmp_path / "runs"), start="fresh", offline=False, say=lambda line: None,
        )  # fmt: skip


def test_a_disk_that_takes_no_result_is_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"could not be used \(OSError: .*No space left"):
        train(tmp_path, monkeypatch, OSError(28, "No space left on device"))


def test_stages_that_cannot_be_written_are_a_sentence(tmp_path, monkeypatch):
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    experiment, source = experiment_in(tmp_path)
    monkeypatch.setattr(stages, "_make_tokens", full)
    with pytest.raises(RunError, match="The shared stages could not be made: OSError"):
        single.train_one(
            experiment, arm_trials(experiment)[0], source=source, storage=tmp_path, start="fresh", say=lambda line: None
        )


def test_a_store_that_is_lost_while_it_trains_is_a_sentence(tmp_path, monkeypatch):
    bucket = tmp_path / "bucket"

    def lose() -> None:
        shutil.rmtree(bucket)
        bucket.write_text("in the way")

    with pytest.raises(RunError, match="could not be used"):
        train(tmp_path, monkeypatch, lose, f"file://{bucket}")


def test_a_run_in_a_store_that_somebody_else_holds_is_refused(tmp_path, monkeypatch):
    claim = tmp_path / "bucket" / "one" / ".held"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps({"who": "elsewhere 1", "time": time.time()}))
    with pytest.raises(InputError, match=r"Another sweep \(elsewhere 1\)"):
        train(tmp_path, monkeypatch, RuntimeError("it was trained"), f"file://{tmp_path}/bucket")
