"""A whole trial when things fail: memory, processes, storage and disk, or the training itself."""

import platform
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from slime_ray.config.experiment import Faults, arm_trials
from slime_ray.errors import InputError, RunError, device_error, is_memory_error
from slime_ray.evaluation.held_out import HeldOut, measure_held_out
from slime_ray.runs import results
from slime_ray.training import attempts, sentinel, worker
from slime_ray.training.loop import Runtime
from slime_ray.training.orders import Paused
from slime_ray.training.outcome import DeviceFailure, OutOfMemory
from slime_ray.training.stages import prepare
from slime_ray.training.worker import run_trial

from .small_trials import Orders, changed, computed, nothing


def fails(error: Exception) -> Callable[..., None]:
    """A function that raises this."""

    def function(*arguments: Any, **options: Any) -> None:
        raise error

    return function


def test_a_trial_out_of_memory_has_one_more_try(experiment, storage, tmp_path):
    trial = arm_trials(experiment)[0]
    full = Orders(2, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory):
        run_trial(trial, run=tmp_path, storage=storage, report=full)
    assert results.finished_trials(tmp_path) == {}
    row = run_trial(trial, run=tmp_path, storage=storage, report=full)
    assert row["status"] == "failed"
    assert "CUDA out of memory" in row["reason"]
    assert (row["stability"], row["attempts"]) == (0.0, 2)


def test_a_trial_that_is_lost_too_often_is_given_up(experiment, storage, tmp_path):
    trial = arm_trials(experiment)[0]
    runtime = Runtime(faults=Faults(retries=1))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_trial(trial, run=tmp_path, storage=storage, report=Orders(2, KeyboardInterrupt()), runtime=runtime)
    row = run_trial(trial, run=tmp_path, storage=storage, report=nothing, runtime=runtime)
    assert row["status"] == "failed"
    assert "2 times" in row["reason"]
    assert results.finished_trials(tmp_path)[trial.trial_id]["attempts"] == 3


def test_a_result_waits_for_a_storage_that_takes_nothing_for_a_while(experiment, storage, whole, tmp_path):
    """A file stands where the trial's folder belongs until the trial says that it waits."""
    trial = arm_trials(experiment)[0]
    folder, waited = tmp_path / "trials" / trial.trial_id, []

    def report(told: Any) -> None:
        if told.get("doing") == "answering" and folder.is_dir():
            shutil.move(folder, tmp_path / "aside")
            folder.write_text("in the way")
        if str(told.get("doing")).startswith("waiting for storage"):
            waited.append(told["doing"])
            folder.unlink()
            shutil.move(tmp_path / "aside", folder)

    row = run_trial(trial, run=tmp_path, storage=storage, report=report)
    assert row["status"] == "completed"
    assert len(waited) == 1
    assert computed(tmp_path, trial)[0] == computed(whole, trial)[0]


def test_a_result_that_a_storage_does_not_take_is_given_up_after_storage_minutes(experiment, storage, tmp_path):
    """A folder stands where trial.json belongs, and nothing takes it away."""
    trial = arm_trials(experiment)[0]
    (tmp_path / "trials" / trial.trial_id / "trial.json").mkdir(parents=True)
    waited = []

    def report(told: Any) -> None:
        if str(told.get("doing")).startswith("waiting for storage"):
            waited.append(told["doing"])

    runtime = Runtime(faults=Faults(storage_minutes=0.02))
    with pytest.raises(Paused, match=r"the storage does not take what is written .*trial\.json"):
        run_trial(trial, run=tmp_path, storage=storage, report=report, runtime=runtime)
    assert waited
    # The attempt did not end by a fault of the trial's: it may be made again.
    assert [attempt.ended for attempt in attempts.read(tmp_path / "trials" / trial.trial_id)] == ["paused"]


def test_a_full_disk_ends_neither_training_nor_loses_the_result(experiment, storage, tmp_path):
    """RLIMIT_FSIZE makes every write of more than so many bytes fail, as a full disk does, until it is lifted."""
    trial = arm_trials(experiment)[0]
    often = Runtime(faults=Faults(checkpoint_minutes=1e-9))
    before, waited = resource.getrlimit(resource.RLIMIT_FSIZE), []

    def report(told: Any) -> None:
        if told.get("doing") == "training" and told["step"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
        if str(told.get("doing")).startswith("waiting for storage"):
            waited.append(told["doing"])
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    try:
        row = run_trial(trial, run=tmp_path, storage=storage, report=report, runtime=often)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (row["status"], row["updates"], len(waited)) == ("completed", 6, 1)
    assert results.finished_trials(tmp_path)[trial.trial_id] == row


def test_only_a_checkpoint_that_was_written_counts_as_one(experiment, storage, tmp_path):
    """A file stands where the folder of checkpoints belongs from update 2 on; the process is gone at update 6."""
    trial = arm_trials(experiment)[0]
    folder = tmp_path / "trials" / trial.trial_id
    often = Runtime(faults=Faults(checkpoint_minutes=1e-9))
    seen: list[attempts.Attempt] = []

    def report(told: Any) -> None:
        if told.get("doing") == "training" and told["step"] in (2, 6):
            seen.append(attempts.read(folder)[-1])
            if told["step"] == 6:
                raise KeyboardInterrupt
            shutil.rmtree(folder / "resume")
            (folder / "resume").write_text("in the way")

    with pytest.raises(KeyboardInterrupt):
        run_trial(trial, run=tmp_path, storage=storage, report=report, runtime=often)
    after_two, after_six = seen
    assert after_two.started < after_two.saved == after_six.saved < after_six.alive
    # All since then would be computed again.
    assert after_six.lost_seconds > 0


def test_a_loss_that_is_not_a_number_ends_a_trial_as_diverged(experiment, storage, tmp_path):
    trial = arm_trials(experiment)[0]
    training = {"learning_rate": 0.99, "max_grad_norm": None, "updates": 200, "evaluations": 1}
    values: dict[str, Any] = {f"training.{name}": value for name, value in training.items()}
    # The checkpoint that it starts from is a sound one.
    sft = {"sft.lora": trial.settings.model_dump()["model"]["lora"]}
    wild = changed(trial, values | sft | {"model.lora.alpha": 1e30})
    row = run_trial(wild, run=tmp_path, storage=storage, report=nothing)
    assert row["status"] == "diverged"
    assert "became" in row["reason"]
    assert row["updates"] < 200
    assert row["stability"] == 0


def test_a_trial_whose_starts_cannot_be_counted_is_not_begun(experiment, storage, tmp_path):
    """A folder stands where attempts.json belongs."""
    trial = arm_trials(experiment)[0]
    (tmp_path / "trials" / trial.trial_id / attempts.FILE).mkdir(parents=True)
    told: list[str] = []
    runtime = Runtime(faults=Faults(storage_minutes=0.02))
    with pytest.raises(Paused, match=r"the storage does not take what is written .*attempts\.json"):
        run_trial(
            trial, run=tmp_path, storage=storage, report=lambda told_now: told.append(str(told_now["doing"])),
            runtime=runtime,
        )  # fmt: skip
    assert told
    assert all(doing.startswith("waiting for storage") for doing in told)
    assert results.finished_trials(tmp_path) == {}


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"),
        RunError("The reward model on port 1 does not answer."),
    ],
    ids=["torch", "judge"],
)
def test_what_others_do_not_do_is_no_result_of_a_trial(experiment, storage, tmp_path, monkeypatch, error):
    trial = arm_trials(experiment)[0]
    monkeypatch.setattr(worker, "answer_prompts", fails(error))
    with pytest.raises(Paused):
        run_trial(trial, run=tmp_path, storage=storage, report=nothing)
    assert results.finished_trials(tmp_path) == {}
    assert [attempt.ended for attempt in attempts.read(tmp_path / "trials" / trial.trial_id)] == ["paused"]


GPU_ERRORS = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, ...)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
    RuntimeError("out of resource: shared memory, Required: 239616, Hardware limit: 232448."),
    RuntimeError("No CUDA GPUs are available"),
]


@pytest.mark.parametrize("error", GPU_ERRORS, ids=lambda error: str(error)[:30])
def test_what_torch_raises_of_a_gpu_that_fails_is_known(error):
    assert device_error(error) is error


def test_a_trial_whose_gpu_failed_once_comes_to_what_it_would_have(experiment, storage, whole, tmp_path, monkeypatch):
    """On CPUs: the answers raise what torch raises when the CUDA context is gone."""
    trial, error = arm_trials(experiment)[0], GPU_ERRORS[0]
    with monkeypatch.context() as patch:
        patch.setattr(worker, "answer_prompts", fails(error))
        with pytest.raises(DeviceFailure, match=re.escape(f"node {platform.node()}: {type(error).__name__}: ")):
            run_trial(trial, run=tmp_path, storage=storage, report=nothing)
    assert results.finished_trials(tmp_path) == {}
    [made] = attempts.read(tmp_path / "trials" / trial.trial_id)
    assert made.ended == "device"
    assert str(error).splitlines()[0] in str(made.fault)
    row = run_trial(trial, run=tmp_path, storage=storage, report=nothing)
    assert (row["status"], row["attempts"]) == ("completed", 2)
    assert computed(tmp_path, trial)[0] == computed(whole, trial)[0]


@pytest.mark.parametrize(("module", "name"), [(worker, "prepare"), (sentinel, "measure_held_out")])
def test_it_does_so_wherever_it_fails_and_whatever_the_error_became(
    experiment, storage, tmp_path, monkeypatch, module, name
):
    """An error of a model's, of a stage's or a judge's, raised for one of CUDA's, is one of the GPU's."""

    def refuses(*arguments: Any, **options: Any) -> None:
        try:
            raise GPU_ERRORS[0]
        except RuntimeError:
            raise InputError("the model cannot be used.") from None

    monkeypatch.setattr(module, name, refuses)
    with pytest.raises(DeviceFailure, match="illegal memory access"):
        run_trial(arm_trials(experiment)[0], run=tmp_path, storage=storage, report=nothing)
    assert results.finished_trials(tmp_path) == {}


def test_a_trial_under_which_gpus_keep_failing_is_given_up_with_their_nodes(experiment, storage, tmp_path, monkeypatch):
    trial = arm_trials(experiment)[0]
    monkeypatch.setattr(worker, "start_gpu", fails(GPU_ERRORS[1]))
    runtime = Runtime(faults=Faults(retries=1))
    with pytest.raises(DeviceFailure):
        run_trial(trial, run=tmp_path, storage=storage, report=nothing, runtime=runtime)
    row = run_trial(trial, run=tmp_path, storage=storage, report=nothing, runtime=runtime)
    assert row["status"] == "failed"
    assert f"2 times a GPU failed (node {platform.node()}: RuntimeError: CUDA error: uncorr" in row["reason"]


def test_a_process_that_was_given_a_gpu_and_sees_none_trains_on_no_cpu(experiment, storage, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    with pytest.raises(DeviceFailure, match="torch sees no GPU"):
        run_trial(arm_trials(experiment)[0], run=tmp_path, storage=storage, report=nothing, runtime=Runtime(gpu=0.5))


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_memory_that_runs_out_on_a_gpu_is_no_failure_of_it(text):
    assert is_memory_error(RuntimeError(text))
    assert device_error(RuntimeError(text)) is None


@pytest.mark.parametrize(
    "text", ["NCCL refuses two of a group on the same", "mat1 and mat2 shapes cannot be multiplied"]
)
def test_other_errors_are_no_failure_of_a_gpu(text):
    assert device_error(RuntimeError(text)) is None


def test_data_that_vanish_under_a_run_are_no_result_of_a_trial_but_of_one_that_set_them_itself(
    experiment, storage, tmp_path, monkeypatch
):
    trial = arm_trials(experiment)[0]
    monkeypatch.setattr(worker, "prepare", fails(InputError("data.train pairs.jsonl: there is no such file.")))
    with pytest.raises(Paused, match="no such file"):
        run_trial(trial, run=tmp_path, storage=storage, report=nothing)
    own = trial.model_copy(update={"values": {"data.train": "pairs.jsonl"}})
    row = run_trial(own, run=tmp_path, storage=storage, report=nothing)
    assert (row["status"], row["reason"]) == ("failed", "InputError: data.train pairs.jsonl: there is no such file.")


def test_log_probabilities_that_are_no_numbers_end_a_trial_before_it_answers(
    experiment, storage, tmp_path, monkeypatch
):
    def broken(*given: Any, **options: Any) -> HeldOut:
        measured = measure_held_out(*given, **options)
        return replace(measured, chosen=measured.chosen * float("nan"))

    trial = arm_trials(experiment)[0]
    prepare(trial.settings, storage=storage, report=nothing)
    monkeypatch.setattr(sentinel, "measure_held_out", broken)
    monkeypatch.setattr(sentinel.Measurements, "look", lambda *given: pytest.fail("it was asked") if given[1] else {})
    row = run_trial(trial, run=tmp_path, storage=storage, report=nothing)
    assert row["status"] == "diverged"
    assert "not finite" in row["reason"]
    assert row["updates"] == 2
