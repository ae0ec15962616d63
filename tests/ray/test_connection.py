"""The janitor ends what Ray left behind and nothing else; what tasks and Ray raise becomes a sentence."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import ray

from slime_ray.errors import InputError, RunError
from slime_ray.on_ray import connection
from slime_ray.on_ray.connection import connected, descendants, errors_as_sentences, janitor
from slime_ray.training.outcome import StageError

WAITS = [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that end only when they are told to, or ended."""
    monkeypatch.setattr(connection, "GRACE_SECONDS", 0.2)
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def start(children: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    children.append(subprocess.Popen(WAITS, stdin=subprocess.PIPE))
    return children[-1]


def test_what_was_there_before_ray_and_what_came_later_are_none_of_its_business(children):
    before = start(children)
    spared = descendants(os.getpid())
    left = start(children)
    with janitor(os.getpid(), exclude=spared):
        later = start(children)
    assert left.wait(timeout=60) == -9
    assert before.poll() is None
    assert later.poll() is None


def test_the_janitor_itself_is_gone_when_the_context_is_left(children):
    start(children)
    known = descendants(os.getpid())
    with janitor(os.getpid()):
        assert len(descendants(os.getpid()) - known) == 1
    assert descendants(os.getpid()) <= known


def test_the_janitor_finds_packages_where_their_user_has_them(children, tmp_path, monkeypatch):
    """Such as on PYTHONPATH or installed with --user."""
    (tmp_path / "psutil.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nraise SystemExit\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start(children)
    with janitor(os.getpid()):
        pass
    assert (tmp_path / "imported").exists()


def test_a_child_that_has_ended_and_waits_to_be_reaped_is_no_descendant(children):
    child = start(children)
    assert child.pid in descendants(os.getpid())
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert child.pid not in descendants(os.getpid())


def test_the_children_of_whoever_runs_a_sweep_outlive_its_ray(children, monkeypatch):
    own, rays = start(children), []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda **options: rays.append(start(children)))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with connected():
        pass
    assert [process.wait(timeout=60) for process in rays] == [-9]
    assert own.poll() is None


def of_task(cause: Exception) -> ray.exceptions.RayTaskError:
    """What `ray.get` raises for a task that raised `cause`."""
    return ray.exceptions.RayTaskError("make", "Traceback ...", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (of_task(InputError("model.source x: there is no such path.")), InputError, "model.source x: there is no"),
        (of_task(StageError("The shared stages: full.")), RunError, "The shared stages: full."),
        (of_task(ValueError("7\nlines")), RunError, "The probe failed: ValueError: 7"),
        (ray.exceptions.WorkerCrashedError(), RunError, "The probe failed: "),
    ],
)
def test_what_is_raised_there_is_a_sentence_here(raised, kind, said):
    with pytest.raises(kind) as caught, errors_as_sentences("The probe failed"):
        raise raised
    assert str(caught.value).startswith(said)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_was_said_already_passes():
    with pytest.raises(RunError, match=r"^It was given up\.$"), errors_as_sentences("The probe failed"):
        raise RunError("It was given up.")
