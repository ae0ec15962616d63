"""How a sweep ends that cannot go on: with a sentence, its files written and nothing held."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import ray

from slime_ray.errors import RunError
from slime_ray.on_ray import sweep as sweeping
from slime_ray.on_ray import watch
from slime_ray.runs import results
from slime_ray.training import attempts
from tests.faults.conftest import until
from tests.ray.sweeps import sweep

pytestmark = [pytest.mark.ray, pytest.mark.faults]
TEXT = "arms: {sft: {training.updates: 0}, slime: {}}\n"


@pytest.fixture(scope="module")
def instance() -> Iterator[None]:
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage, so that the stages are made once."""
    return tmp_path_factory.mktemp("ends")


def nothing_is_held() -> bool:
    return bool(ray.available_resources().get("CPU") == 1.0)


@ray.remote
class Holder:
    """Something else that takes the place."""


def test_stages_that_find_no_place_end_the_sweep_and_it_goes_on_later(instance, folder):
    holder = Holder.options(num_cpus=1).remote()
    until(lambda: not ray.available_resources().get("CPU"), 20, "the place to be taken")
    with pytest.raises(RunError, match=r"stages found no place for .* 1 CPU .* free now: 0 CPU .*--resume"):
        sweep(folder, "placeless", TEXT, faults__placement_minutes=0.02)
    ray.kill(holder)
    until(nothing_is_held, 20, "the place, which no stage took in the meantime")
    run = sweep(folder, "placeless", TEXT, "resume")
    assert results.read_manifest(run)["finished"]
    # Nothing reads what Ray Tune keeps for itself.
    assert not (run / "ray").exists()


def test_a_trial_that_does_not_leave_in_time_is_ended_and_the_files_of_the_sweep_are_written(
    instance, folder, monkeypatch
):
    """The second trial hears no order, as in its evaluation; here since its process is stopped."""
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0.5)
    run = folder / "runs" / "late"
    long = run / "trials" / "arm-slime-s0"

    class Hasty(watch.Watch):
        def on_step_begin(self, iteration, trials, **info):
            made = attempts.read(long)
            if made and not self.interrupts:
                os.kill(made[0].pid, signal.SIGSTOP)
                self.interrupts = 1
            super().on_step_begin(iteration, trials, **info)

    monkeypatch.setattr(sweeping, "Watch", Hasty)
    with pytest.raises(RunError, match="1 of 2 trials done, since it was interrupted"):
        sweep(folder, "late", TEXT, training__updates=300)
    until(nothing_is_held, 20, "the CPU to be free")
    assert pd.read_parquet(run / "trials.parquet")["trial_id"].tolist() == ["arm-sft-s0"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["finished"], manifest["failed_trials"], manifest["interruptions"]) == (None, [], [])
    assert [attempt.ended for attempt in attempts.read(long)] == [None]


def test_an_interrupt_that_comes_after_the_last_trial_changes_nothing(instance, folder, monkeypatch):
    left = []

    class Late(watch.Watch):
        def on_trial_complete(self, iteration, trials, trial, **info):
            super().on_trial_complete(iteration, trials, trial, **info)
            if not self.plan.missing():
                self.leave("it was interrupted")
                left.append(self.leave_reason)

    monkeypatch.setattr(sweeping, "Watch", Late)
    assert results.read_manifest(sweep(folder, "done", TEXT))["finished"]
    assert left == ["it was interrupted"]
