"""A trial's process, a worker of a group, the driver: killed, stopped, out of memory. Nothing that finished is lost."""

import json
import os
import resource
import signal
import time

import optuna
import pytest

from slime_ray.on_ray.search import study_storage
from tests.processes import left_behind

from .conftest import LONG, SHORT, same, until, workers

pytestmark = pytest.mark.ray
TWO = ("--set", "resources.workers=2")


def check_whole(sweep, whole, *, endings, kept=None) -> str:
    """The sweep ended well, with the rows of an undisturbed one, and left nothing behind."""
    text = sweep.end()
    assert sweep.process.returncode == 0, text
    assert sweep.endings() == endings
    rows = sweep.rows()
    assert same(rows[SHORT], whole[SHORT])
    assert same(rows[LONG], whole[LONG])
    assert rows[LONG]["attempts"] == len(endings)
    if kept is not None:
        assert rows[SHORT] == kept
    assert left_behind(sweep.process.pid) == []
    return text


def recovery(sweep, struck: float) -> tuple[float, float]:
    """Seconds until the next attempt was at work, and the work that was done twice."""
    made = sweep.attempts()
    return made[-1].started - struck, sum(attempt.lost_seconds for attempt in made[:-1])


def test_a_killed_trial_goes_on_from_its_checkpoint(start, whole, table):
    sweep = start("killed")
    pid = sweep.until_checkpoint().pid
    kept = until(lambda: sweep.rows().get(SHORT), 60, "the short trial")
    struck = time.time()
    os.kill(pid, signal.SIGKILL)
    text = check_whole(sweep, whole, endings=["lost", "finished"], kept=kept)
    seconds, again = recovery(sweep, struck)
    table("SIGKILL of a trial's process, 1 worker", lost=0, seconds=seconds, again=again)
    assert "lost" in (sweep.run / "log.txt").read_text()
    assert "begun again once" in text
    assert "1 of 2 trials were begun again" in text


@pytest.mark.faults
def test_a_killed_driver_loses_nothing_and_is_gone_on_with(start, whole, table):
    space = "{objective.hard_margin: {uniform: [0.5, 3.0]}}"
    search = ("--set", f"search={space}", "--set", "budget.trials=2")
    sweep = start("driver", *search)
    sweep.until_checkpoint()
    until(lambda: sweep.attempts("search-0001"), 120, "the search")
    kept = sweep.rows()[SHORT]
    sweep.process.kill()
    sweep.process.wait(timeout=20)
    # Ray's own processes notice that their driver is gone, and the janitor ends those that do not.
    assert left_behind(sweep.process.pid) == []
    struck = time.time()
    resumed = start("driver", *search, "--resume")
    check_whole(resumed, whole, endings=["interrupted", "finished"], kept=kept)
    seconds, again = recovery(resumed, struck)
    table("SIGKILL of the driver, then --resume", lost=0, seconds=seconds, again=again)
    # The search trial that was cut off kept its name and its point, and the study knows how all of them ended.
    assert resumed.endings("search-0001")[-1] == "finished"
    study = optuna.load_study(study_name="slime-ray", storage=study_storage(sweep.run))
    assert "RUNNING" not in [trial.state.name for trial in study.trials]
    points = {
        trial.user_attrs["trial_id"]: trial.params["objective.hard_margin"]
        for trial in study.trials
        if trial.state.name == "COMPLETE"
    }
    settings = {name: json.loads(resumed.rows()[name]["overrides"]) for name in ("search-0001", "search-0002")}
    assert settings == {name: {"objective.hard_margin": value} for name, value in points.items()}


STRIKES = """
import importlib.util
import sys
from pathlib import Path


class Strikes:
    \"\"\"The first step of training with each objective raises what torch raises when a GPU has failed.\"\"\"

    def find_spec(self, name, path, target=None):
        if name != "slime_ray.training.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), self.patch(module.PreferenceTrainer))
        return spec

    def patch(self, trainer):
        import torch

        step = trainer.training_step

        def training_step(self, *arguments, **options):
            struck = Path(__file__).with_name(self.objective.name)
            if not struck.exists():
                struck.touch()
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            return step(self, *arguments, **options)

        trainer.training_step = training_step


sys.meta_path.insert(0, Strikes())
"""


@pytest.mark.faults
@pytest.mark.parametrize("workers", [1, 2])
def test_gpus_that_fail_under_the_stages_and_a_trial_cost_a_process_each_and_no_result(start, tmp_path, workers):
    (tmp_path / "sitecustomize.py").write_text(STRIKES)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Stages of its own, which a group of workers takes longer to begin than others here may be silent.
    more = ("--set", f"sft.updates={10 + workers}", "--set", f"resources.workers={workers}")
    more += ("--set", "faults.hang_minutes=1")
    sweep = start(f"gpu-{workers}", *more, env={"PYTHONPATH": path})
    text = sweep.end()
    assert sweep.process.returncode == 0, text
    assert sorted(file.name for file in tmp_path.iterdir() if not file.suffix) == ["sft", "slime"]
    assert "A GPU failed while the stages were made" in text
    assert sweep.endings() == ["device", "finished"]
    first, second = sweep.attempts()
    assert first.pid != second.pid
    assert "AcceleratorError: CUDA error: an illegal memory access" in str(first.fault)
    assert sweep.rows()[LONG]["status"] == "completed"
    [noted] = json.loads((sweep.run / "manifest.json").read_text())["interruptions"]
    assert noted["faults"] == [first.fault]
    assert left_behind(sweep.process.pid) == []


@pytest.mark.faults
def test_a_trial_that_says_nothing_any_more_is_started_again(start, whole, table):
    sweep = start("hung")
    pid = sweep.until_checkpoint().pid
    struck = time.time()
    os.kill(pid, signal.SIGSTOP)
    check_whole(sweep, whole, endings=["hung", "finished"])
    seconds, again = recovery(sweep, struck)
    table("A hung trial (SIGSTOP), 1 worker, hang_minutes 0.15", lost=0, seconds=seconds, again=again)


@pytest.mark.faults
def test_a_trial_that_hangs_before_it_says_anything_is_started_again(start, whole):
    sweep = start("hung-early")
    pid = until(lambda: sweep.attempts(), 120, "the trial")[0].pid
    os.kill(pid, signal.SIGSTOP)
    check_whole(sweep, whole, endings=["hung", "finished"])


@pytest.mark.faults
def test_a_trial_out_of_memory_is_tried_once_more_and_then_recorded(start, table):
    """RLIMIT_AS makes a process's next allocation fail as a full machine would, wherever the attempt is just then.

    What the process has freed it may use again, so the answers at the end ask for more than anything before.
    """
    sweep = start("memory", "--set", "evaluation.prompts=512", "--set", "evaluation.decoding.max_new_tokens=64")
    limited: set[int] = set()

    def recorded():
        for attempt in sweep.attempts():
            if attempt.pid not in limited and not attempt.ended:
                limited.add(attempt.pid)
                resource.prlimit(attempt.pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
        return sweep.rows().get(LONG)

    row = until(recorded, 240, "the trial's row")
    sweep.end()
    assert row["status"] == "failed"
    assert "memory" in row["reason"]
    assert sweep.rows()[SHORT]["status"] == "completed"
    # A process in which no thread can start any more may fall silent instead of saying so.
    short = [attempt for attempt in sweep.attempts() if attempt.ended != "hung"]
    assert [attempt.ended for attempt in short] == ["memory", "memory"]
    seconds = short[1].started - short[0].alive
    again = short[0].lost_seconds
    table("Out of memory (RLIMIT_AS), until it is tried once more", lost=0, seconds=seconds, again=again)
    assert left_behind(sweep.process.pid) == []


# `make test` interrupts a sweep and a trial in tests/end_to_end.
@pytest.mark.faults
def test_an_interrupt_has_trials_write_a_checkpoint_and_leave(start, whole, table):
    sweep = start("interrupt", "--set", "faults.checkpoint_minutes=60")
    until(lambda: sweep.attempts(LONG), 120, "the trial")
    until(lambda: sweep.rows().get(SHORT), 60, "the short trial")
    struck = time.time()
    sweep.process.send_signal(signal.SIGINT)
    text = sweep.end(60)
    seconds = time.time() - struck
    assert sweep.process.returncode == 130
    assert "--resume" in text
    assert "Traceback" not in text
    assert left_behind(sweep.process.pid) == []
    assert sweep.endings() == ["paused"]
    check_whole(start("interrupt", "--resume"), whole, endings=["paused", "finished"])
    table("SIGINT (Ctrl-C): until the sweep has ended, nothing computed twice", lost=0, seconds=seconds, again=0.0)


@pytest.mark.faults
def test_a_spent_time_budget_pauses_the_sweep(start, whole):
    sweep = start("budget", "--set", "budget.hours=0.0005")
    text = sweep.end(120)
    assert sweep.process.returncode == 1
    assert "budget.hours 0.0005" in text
    assert set(sweep.endings()) <= {"paused"}
    check_whole(start("budget", "--resume"), whole, endings=[*sweep.endings(), "finished"])


@pytest.mark.faults
def test_two_sweeps_of_one_name_do_not_meet(start, whole):
    sweep = start("twice")
    until(lambda: sweep.attempts(), 120, "the first sweep")
    second = start("twice", "--resume")
    assert "Another sweep is at work" in second.end(60)
    assert second.process.returncode == 2
    check_whole(sweep, whole, endings=["finished"])


@pytest.mark.faults
@pytest.mark.parametrize(
    ("blow", "ending", "event"),
    [
        (signal.SIGKILL, "lost", "SIGKILL of a worker, 2 workers"),
        (signal.SIGSTOP, "hung", "A hung worker (SIGSTOP), 2 workers, hang_minutes 0.15"),
    ],
    ids=["lost", "hung"],
)
def test_a_group_that_misses_a_worker_goes_on_from_its_checkpoint(start, whole, table, blow, ending, event):
    sweep = start(f"worker-{ending}", *TWO)
    first = sweep.until_checkpoint()
    [pid] = set(workers(sweep.process.pid)) - {first.pid}
    struck = time.time()
    os.kill(pid, blow)
    text = sweep.end()
    assert sweep.process.returncode == 0, text
    assert sweep.endings() == [ending, "finished"]
    row = sweep.rows()[LONG]
    assert (row["workers"], row["status"]) == (2, "completed")
    assert row["chosen_drift"] == pytest.approx(whole[LONG]["chosen_drift"], rel=1e-3, abs=1e-4)
    seconds, again = recovery(sweep, struck)
    table(event, lost=0, seconds=seconds, again=again)
    assert left_behind(sweep.process.pid) == []


@pytest.mark.faults
def test_a_group_pauses_on_an_interrupt(start, whole, table):
    sweep = start("interrupt-group", *TWO, "--set", "faults.checkpoint_minutes=60")
    until(lambda: sweep.attempts(LONG), 120, "the trial")
    sweep.process.send_signal(signal.SIGINT)
    text = sweep.end(90)
    assert sweep.process.returncode == 130, text
    assert sweep.endings() == ["paused"]
    assert left_behind(sweep.process.pid) == []
    resumed = start("interrupt-group", *TWO, "--resume")
    text = resumed.end()
    assert resumed.process.returncode == 0, text
    assert resumed.endings() == ["paused", "finished"]
