"""What a person sees of a sweep: time left, trackers and notices said once, how a trial ended."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from slime_ray.config.experiment import Experiment, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.on_ray import progress as progress_module
from slime_ray.on_ray.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    path = tmp_path / "watched.yaml"
    path.write_text("name: watched\npreset: arithmetic\narms: {slime: {}}\n")
    return load_experiment(path)


def recording() -> tuple[Any, list[str]]:
    """A console that is no terminal, and the lines printed on it."""
    lines: list[str] = []
    return SimpleNamespace(is_terminal=False, print=lambda line, **options: lines.append(line)), lines


def test_what_is_left_counts_trials_side_by_side_and_how_far_they_are(clock, experiment):
    progress = Progress(console=Console(quiet=True), total=7, finished=1)

    (one,) = arm_trials(experiment)
    arm = one.model_dump(mode="json")

    def starts(name: str) -> None:
        trial = SimpleNamespace(config={"trial": arm | {"trial_id": name}})
        progress.on_trial_start(0, [], trial)

    def ends(name: str) -> None:
        trial = SimpleNamespace(config={"trial": {"trial_id": name}})
        progress.on_trial_result(0, [], trial, {"finished": True, "status": "completed"})

    starts("a")
    starts("b")
    assert progress.time_left() == "unknown time"
    clock.now += 60
    ends("a")
    starts("c")
    # b is as far as a was when it ended: 0 s; c 60 s; three wait, 180 s; by two.
    assert progress.time_left() == "2 min 00 s"
    clock.now += 30
    # b takes longer than a did, which says nothing of the others; half of c is left.
    assert progress.time_left() == "1 min 45 s"
    for name in ("d", "e", "f"):
        ends(name)
    ends("c")
    ends("b")
    assert progress.time_left() == "0 min 00 s"


def test_the_last_trial_takes_what_it_takes_however_many_ran_side_by_side(clock):
    progress = Progress(console=Console(quiet=True), total=3, finished=0)
    progress.states = {"a": {"finished": True}, "b": {"finished": True}, "c": {"began": clock.now - 10}}
    progress.durations, progress.max_running = [90.0, 110.0], 2
    assert progress.time_left() == "1 min 30 s"


def test_a_tracker_that_is_left_out_is_said_once_for_the_whole_sweep():
    console, lines = recording()
    progress = Progress(console=console, total=2, finished=0)
    progress.states = {"search-0001": {}, "search-0002": {}}
    for name, reason in (("search-0001", "OSError: 7f01"), ("search-0001", "OSError: 7f01"), ("search-0002", "7f02")):
        progress.update({name: {"untracked": {"wandb": reason}}})
    progress.update({"search-0002": {"step": 2}})
    assert lines == ["search-0001 goes on without wandb: OSError: 7f01 (said for the first trial only)"]


@pytest.mark.parametrize(
    ("measured", "lead"),
    [
        ({"win_rate": None, "preference_accuracy": 0.75}, "accuracy 75.0,"),
        ({"win_rate": 0.5, "preference_accuracy": 0.75}, "win rate 50.0,"),
        ({}, "win rate -,"),
    ],
)
def test_a_trial_that_ends_says_its_accuracy_where_nothing_was_judged(measured, lead):
    console, lines = recording()
    trial = SimpleNamespace(config={"trial": {"trial_id": "a"}})
    result = {"finished": True, "status": "completed", **measured}
    Progress(console=console, total=1, finished=0).on_trial_result(0, [], trial, result)
    assert f"a completed: {lead}" in lines[0]


def test_a_notice_that_several_trials_report_is_said_once():
    console, lines = recording()
    progress = Progress(console=console, total=2, finished=0)
    for name in ("search-0001", "search-0002"):
        progress.update({name: {"notice": "A shared stage is not whole."}})
    assert lines == ["A shared stage is not whole."]
