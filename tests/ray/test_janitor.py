"""The janitor ends what Ray left behind, and nothing else."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import ray

from slime_ray.on_ray import connection as cleaning
from slime_ray.on_ray.connection import connected, descendants, janitor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
WAITS = [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that end only when they are told to, or ended."""
    monkeypatch.setattr(cleaning, "GRACE_SECONDS", 0.2)
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
    with janitor(os.getpid(), spare=spared):
        later = start(children)
    assert left.wait(timeout=60) == -9
    assert before.poll() is None
    assert later.poll() is None


def test_the_janitor_itself_is_gone_when_the_context_is_left(children):
    start(children)
    known = descendants(os.getpid()).keys()
    with janitor(os.getpid()):
        assert len(descendants(os.getpid()).keys() - known) == 1
    assert descendants(os.getpid()).keys() <= known


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
