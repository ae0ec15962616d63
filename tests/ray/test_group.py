"""What becomes of a trial whose group of workers broke. The groups are played; `tests/faults` really breaks some."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ray.train import WorkerGroupError

from slime_ray.config.experiment import Faults, Resources, Trial, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError, RunError
from slime_ray.on_ray import workers as workers
from slime_ray.on_ray.workers import GroupLost, WorkerContext, run_group_trial
from slime_ray.runs import results
from slime_ray.runs.store import RunStore
from slime_ray.training import attempts
from slime_ray.training.orders import Paused
from slime_ray.training.outcome import DeviceFailure, OutOfMemory, blank_row

Fate = Callable[[], None]


class Silent:
    """A monitor that listens to what trials wait for."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self, trial_id: str) -> None:
        return None

    end = begin

    def report(self, trial_id: str, told: Any, *, searched: bool) -> None:
        self.told.append(told["doing"])


@pytest.fixture
def trial(tmp_path) -> Trial:
    path = tmp_path / "group.yaml"
    path.write_text("name: group\npreset: arithmetic\narms: {slime: {}}\n")
    return arm_trials(load_experiment(path))[0]


@pytest.fixture
def context(tmp_path) -> WorkerContext:
    return context_in(RunStore(tmp_path / "runs"))


def context_in(storage: RunStore, **faults: Any) -> WorkerContext:
    monitor: Any = Silent()
    return WorkerContext(storage, "group", Resources(workers=2), Faults(**faults), monitor)


def groups(monkeypatch: pytest.MonkeyPatch, *fates: Fate) -> list[int]:
    """Have one group after another meet its fate; returns the list of those that were started."""
    started: list[int] = []

    def run_group(work: Any, config: Any, **how: Any) -> None:
        started.append(len(started))
        fates[len(started) - 1]()

    monkeypatch.setattr(workers, "run_group", run_group)
    return started


def raises(error: Exception) -> Fate:
    def fate() -> None:
        raise error

    return fate


def finishes(trial: Trial, context: WorkerContext) -> Fate:
    def fate() -> None:
        row = blank_row(trial, datetime.now(UTC)) | {"status": "completed"}
        results.write_trial(context.run, row=row, answers=[], curves=[])
        context.storage.push(context.trial(trial.trial_id))

    return fate


def endings(trial: Trial, context: WorkerContext) -> list[Any]:
    return [attempt.ended for attempt in attempts.read(context.trial(trial.trial_id))]


def test_a_group_that_is_lost_before_it_begins_counts_as_lost(trial, context, monkeypatch):
    """Nothing of it has noted an attempt: as when the first exchange between the ranks fails."""
    started = groups(monkeypatch, *[raises(GroupLost("NCCL error"))] * 9)
    row = run_group_trial(trial, context)
    assert len(started) == context.faults.retries + 1
    assert (row["status"], row["stability"]) == ("failed", 0.0)
    assert "lost a process, a node or its voice 4 times" in row["reason"]
    assert endings(trial, context) == ["lost"] * 4


def test_a_group_that_began_and_was_lost_counts_once(trial, context, monkeypatch):
    def begins() -> None:
        attempts.begin(context.trial(trial.trial_id), workers=2)
        raise GroupLost("connection closed by peer")

    groups(monkeypatch, begins, finishes(trial, context))
    assert run_group_trial(trial, context)["status"] == "completed"
    assert endings(trial, context) == ["lost"]


@pytest.mark.parametrize("stored", [False, True])
def test_memory_that_runs_out_on_another_machine_is_tried_once_more(trial, context, tmp_path, monkeypatch, stored):
    """The rank that says so has no attempts.json to note it in."""
    if stored:
        context = context_in(RunStore(tmp_path / "copy", f"file://{tmp_path}/bucket"))
    full = raises(OutOfMemory("OutOfMemoryError: CUDA out of memory"))
    groups(monkeypatch, full, finishes(trial, context))
    assert run_group_trial(trial, context)["status"] == "completed"
    assert endings(trial, context) == ["memory"]


def test_a_gpu_that_fails_under_a_group_starts_it_again_and_is_noted(trial, context, monkeypatch):
    groups(monkeypatch, raises(DeviceFailure("node gpu-3: AcceleratorError: CUDA error")), finishes(trial, context))
    assert run_group_trial(trial, context)["status"] == "completed"
    [made] = attempts.read(context.trial(trial.trial_id))
    assert (made.ended, made.fault) == ("device", "node gpu-3: AcceleratorError: CUDA error")


def test_memory_that_runs_out_twice_is_recorded(trial, context, monkeypatch):
    started = groups(monkeypatch, *[raises(OutOfMemory("CUDA out of memory"))] * 3)
    row = run_group_trial(trial, context)
    assert (row["status"], len(started)) == ("failed", 2)
    assert "out of memory twice" in row["reason"]


BROKEN = RuntimeError("gloo: connection closed by peer")


@pytest.mark.parametrize(
    ("cause", "others"),
    [
        (OutOfMemory("CUDA out of memory"), [BROKEN]),
        (DeviceFailure("node a: CUDA error"), [RunError("no stage"), RuntimeError("NCCL error")]),
        (InputError("m: its files lack 1 weight."), [BROKEN]),
    ],
    ids=["memory", "device", "input"],
)
def test_the_rank_that_says_what_is_wrong_is_heard_over_the_connections_that_broke(cause, others):
    assert workers._cause(WorkerGroupError("", dict(enumerate([*others, cause])))) is cause
    assert isinstance(workers._cause(WorkerGroupError("", {0: BROKEN, 1: ValueError("odd")})), GroupLost)


def test_a_trial_that_has_its_row_starts_no_group(trial, context, monkeypatch):
    finishes(trial, context)()
    started = groups(monkeypatch)
    assert run_group_trial(trial, context)["status"] == "completed"
    assert started == []


def test_a_row_that_was_written_before_the_group_broke_stays(trial, context, monkeypatch):
    def breaks() -> None:
        finishes(trial, context)()
        raise ValueError("a rank failed on its way out")

    groups(monkeypatch, breaks)
    assert run_group_trial(trial, context)["status"] == "completed"


def test_an_error_of_the_trials_own_is_its_result(trial, context, monkeypatch):
    started = groups(monkeypatch, raises(ValueError("no such layer")))
    assert run_group_trial(trial, context)["reason"] == "ValueError: no such layer"
    assert len(started) == 1


def test_workers_that_leave_without_a_row_were_told_to(trial, context, monkeypatch):
    def leaves() -> None:
        attempts.begin(context.trial(trial.trial_id), workers=2)
        attempts.note(context.trial(trial.trial_id), ended="preempted")

    groups(monkeypatch, leaves)
    with pytest.raises(Paused) as paused:
        run_group_trial(trial, context)
    assert paused.value.order.kind == "preempt"


def test_a_store_that_is_away_when_a_group_trial_starts_is_waited_for(trial, tmp_path, monkeypatch):
    context = context_in(RunStore(tmp_path / "copy", f"file://{tmp_path}/bucket"))
    blocked = block(tmp_path / "bucket" / "group" / "trials" / trial.trial_id)
    monitor: Any = context.monitor
    monkeypatch.setattr(monitor, "report", lambda *told, **how: blocked.unlink())
    groups(monkeypatch, finishes(trial, context))
    assert run_group_trial(trial, context)["status"] == "completed"


def block(folder: Path) -> Path:
    """A file where a trial's folder belongs: the store can neither list nor take anything there."""
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    return folder


def test_a_store_that_stays_away_is_given_up_after_storage_minutes(tmp_path):
    context = context_in(RunStore(tmp_path / "copy", f"file://{tmp_path}/bucket"), storage_minutes=0.02)
    block(tmp_path / "bucket" / "group" / "trials" / "a")
    monitor: Any = context.monitor
    with pytest.raises(OSError, match="bucket"):
        context.retry_storage("a", lambda: context.storage.pull(context.trial("a")))
    assert monitor.told
    assert all(said.startswith("waiting for storage (") for said in monitor.told)
