"""When enough attempts at a trial have been made, and what counts as lost."""

import resource
import shutil
from collections.abc import Callable

import pytest

from slime_ray.config.experiment import Faults
from slime_ray.training.attempts import FILE, Attempt, Ending, begin, enough, note, read

HOUR = 3600.0


def made(*endings: Ending | None, hours: float = 0.0, workers: int = 1) -> list[Attempt]:
    """Attempts that ended so, each so many hours after its last checkpoint."""
    return [Attempt(0.0, 60.0, 60.0 + hours * HOUR, "host", 1, workers, ended) for ended in endings]


@pytest.mark.parametrize(
    ("ending", "allowed", "words"),
    [
        ("lost", 3, "lost a process, a node or its voice 4 times, and faults.retries is 3"),
        ("hung", 3, "lost a process, a node or its voice 4 times"),
        ("preempted", 8, "taken away 9 times (faults.preemptions is 8)"),
        ("memory", 1, "out of memory twice"),
    ],
)
def test_so_many_attempts_may_end_so_and_no_more(ending, allowed, words):
    faults = Faults(retries=3, preemptions=8)
    assert enough(made(*[ending] * allowed), faults) is None
    assert words in str(enough(made(*[ending] * (allowed + 1)), faults))


def test_a_trial_may_be_paused_and_its_sweep_die_as_often_as_you_like():
    assert enough(made(*["paused", "interrupted"] * 50), Faults()) is None


@pytest.mark.parametrize(("hours", "workers"), [(2.0, 1), (0.5, 4)])
def test_worker_hours_that_are_computed_again_are_limited(hours, workers):
    """Two hours of each attempt are lost, whether one worker lost them or four lost half an hour each."""
    faults = Faults(retries=9, lost_hours=5)
    assert enough(made("lost", "hung", hours=hours, workers=workers), faults) is None
    assert enough(made("lost", "hung", "lost", hours=hours, workers=workers), faults) == (
        "6.00 worker-hours of it were computed for nothing (faults.lost_hours is 5)"
    )
    assert enough(made("lost", "hung", "lost", hours=hours, workers=workers), Faults(retries=9)) is None


@pytest.mark.parametrize("ending", ["finished", "failed", "paused", "preempted"])
def test_what_said_goodbye_lost_nothing(ending):
    faults = Faults(preemptions=99, lost_hours=1)
    assert enough(made(*[ending] * 3, hours=10), faults) is None


def test_an_attempt_that_never_said_goodbye_was_lost_and_one_that_ended_stays_so(tmp_path):
    begin(tmp_path, workers=1)
    begin(tmp_path, workers=2)
    note(tmp_path, ended="memory")
    note(tmp_path, ended="lost")
    assert [(attempt.ended, attempt.workers) for attempt in read(tmp_path)] == [("lost", 1), ("memory", 2)]


def test_a_start_that_cannot_be_counted_is_none_and_a_note_that_cannot_be_written_is_left_out(tmp_path):
    begin(tmp_path, workers=1)
    made = read(tmp_path)
    shutil.move(tmp_path / FILE, tmp_path / "aside")
    (tmp_path / FILE).mkdir()
    with pytest.raises(OSError, match=FILE):
        begin(tmp_path, workers=1)
    (tmp_path / FILE).rmdir()
    shutil.move(tmp_path / "aside", tmp_path / FILE)
    resource_limit(0, lambda: note(tmp_path, ended="failed"))
    assert read(tmp_path) == made
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def resource_limit(size: int, work: Callable[[], None]) -> None:
    """Do something while no file may be larger than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
