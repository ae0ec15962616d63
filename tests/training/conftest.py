"""A small experiment with its stages, and ranks of a process group.

The ranks are forks of one process, which has imported once what takes long.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from slime_ray.config.experiment import Experiment, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.runs.store import RunStore

from . import small_trials

SECONDS = 240
SERVER = """
import json
import os
import runpy
import signal
import sys
import traceback

import slime_ray.training.worker


def rank(number, job):
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number))
    sys.argv = job["argv"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        os._exit(bool(end.code))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def lead(job):
    os.environ.update(job["environment"], WORLD_SIZE=str(job["ranks"]))
    errors = os.open(job["errors"], os.O_WRONLY | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(errors, 2)
    started = set()
    for number in range(job["ranks"]):
        started.add(child := os.fork())
        if not child:
            rank(number, job)
    while started:
        child, status = os.wait()
        started.remove(child)
        if status:
            # The others would wait for it.
            for other in started:
                os.kill(other, signal.SIGKILL)
            os._exit(1)
    os._exit(0)


for line in sys.stdin:
    leader = os.fork()
    if not leader:
        lead(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1]), flush=True)
"""
OnRanks = Callable[..., None]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RankServer:
    """A process that runs a script on ranks for each line that it is given, and answers with the exit code."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def process(self) -> subprocess.Popen[str]:
        """Return the process, started anew where it has ended: other tests kill this process's children."""
        if self._process is None or self._process.poll() is not None:
            # transformers prints a line, which would be taken for an answer, where WANDB_MODE says offline.
            own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                env=own | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(__file__).parents[2])},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
        return self._process

    def end(self) -> None:
        """End the process and all ranks."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()


@pytest.fixture(scope="session")
def rank_server() -> Iterator[RankServer]:
    server = RankServer()
    yield server
    server.end()


@pytest.fixture
def on_ranks(rank_server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> OnRanks:
    """Runs a script, with its arguments, in so many gloo processes."""

    def run(ranks: int, script: object, *arguments: object) -> None:
        errors = tmp_path_factory.mktemp("ranks") / "errors.txt"
        job = {
            "ranks": ranks,
            "argv": [str(script), *map(str, arguments)],
            "environment": {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
            "errors": str(errors),
        }
        server = rank_server.process()
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(job), file=server.stdin, flush=True)
        if not select.select([server.stdout], [], [], SECONDS)[0]:
            os.killpg(server.pid, signal.SIGKILL)
        ended = server.stdout.readline()
        assert ended == "0\n", (
            f"{ended or 'no answer in time'}: {errors.read_text()[-3000:] if errors.exists() else ''}"
        )

    return run


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    path = tmp_path_factory.mktemp("yaml") / "trial.yaml"
    path.write_text(small_trials.TEXT)
    return load_experiment(path)


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return RunStore(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="session")
def whole(experiment: Experiment, storage: RunStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both arms, never interrupted."""
    from slime_ray.training.worker import run_trial

    run = tmp_path_factory.mktemp("whole")
    for trial in arm_trials(experiment):
        run_trial(trial, run=run, storage=storage, report=small_trials.nothing)
    return run
