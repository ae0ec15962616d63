"""Sweeps that are really broken: processes killed and stopped, nodes taken away, memory and time used up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from slime_ray.config.experiment import arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.runs import results
from slime_ray.runs.store import RunStore
from slime_ray.training.attempts import Attempt, read
from slime_ray.training.worker import run_trial
from tests.end_to_end.conftest import environment
from tests.processes import of_session

TEXT = """\
name: faults
preset: arithmetic
base:
  data: {sft_examples: 200, pairs: 200, held_out_pairs: 24}
  sft: {updates: 10}
  training: {updates: 400, pairs_per_update: 8, evaluations: 4, learning_rate: 1e-4}
  evaluation: {prompts: 8, selection_prompts: 8, kl_prompts: 4, decoding: {max_new_tokens: 8}}
arms: {sft: {training.updates: 0}, slime: {}}
faults: {checkpoint_minutes: 0.01, hang_minutes: 0.15}
"""
SHORT, LONG = "arm-sft-s0", "arm-slime-s0"
CLOCKS = {"started", "host", "train_seconds", "evaluation_seconds", "total_seconds", "attempts", "lost_seconds"}


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of `condition`, asked again and again; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)
    return value


@dataclass
class Sweep:
    """A sweep in a session of its own, as a user starts it."""

    run: Path
    command: list[str]
    env: dict[str, str]
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.env,
            start_new_session=True,
        )  # fmt: skip

    def attempts(self, trial: str = LONG) -> list[Attempt]:
        return read(self.run / "trials" / trial)

    def endings(self, trial: str = LONG) -> list[str | None]:
        return [attempt.ended for attempt in self.attempts(trial)]

    def rows(self) -> dict[str, dict[str, Any]]:
        return results.finished_trials(self.run)

    def has_checkpoint(self, number: int = 1) -> Attempt | None:
        """The long trial's nth attempt, once it has written a checkpoint of its own."""
        made = self.attempts()
        found = made[number - 1] if len(made) >= number else None
        return found if found and found.saved > found.started and not found.ended else None

    def until_checkpoint(self, number: int = 1) -> Attempt:
        def found() -> Attempt | None:
            assert self.process.poll() is None, self.process.stdout and self.process.stdout.read()
            return self.has_checkpoint(number)

        attempt: Attempt = until(found, 120, "a checkpoint")
        return attempt

    def end(self, seconds: float = 240) -> str:
        """Wait for the end, and return what was printed."""
        text, _ = self.process.communicate(timeout=seconds)
        return text

    def kill(self) -> None:
        """End it and whatever it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                os.killpg(self.process.pid, number)
                try:
                    self.process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    continue


Start = Callable[..., Sweep]


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def space(storage: Path) -> Path:
    path = storage / "faults.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def start(space: Path, storage: Path) -> Iterator[Start]:
    """Starts sweeps; whatever a failed test leaves of them is ended."""
    started: list[Sweep] = []

    def begin(name: str, *arguments: str, env: dict[str, str] | None = None) -> Sweep:
        command = [sys.executable, "-m", "slime_ray", "sweep", str(space), "--storage", str(storage), "--name", name]
        started.append(Sweep(storage / name, [*command, *arguments], environment() | (env or {})))
        return started[-1]

    yield begin
    for sweep in started:
        sweep.kill()


@pytest.fixture(scope="session")
def whole(space: Path, storage: Path) -> dict[str, dict[str, Any]]:
    """The rows of the same trials when nothing breaks, without Ray. It makes the stages that all others share."""
    for trial in arm_trials(load_experiment(space)):
        run_trial(trial, run=storage / "whole", storage=RunStore(storage), report=lambda metrics: None)
    return results.finished_trials(storage / "whole")


def same(row: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether a trial computed what another did, clocks aside."""
    return {k: v for k, v in row.items() if k not in CLOCKS} == {k: v for k, v in expected.items() if k not in CLOCKS}


def workers(session: int, name: str = "RayTrainWorker") -> list[int]:
    """Processes of a session's Ray workers that run an actor of this name."""
    return [pid for pid, command in of_session(session) if name in command]


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Takes down what a fault cost; `--fault-table FILE` collects it."""
    path = request.config.getoption("--fault-table", default=None)

    def note(event: str, *, lost: int, seconds: float | None, again: float | None = None) -> None:
        entry = {"event": event, "finished_trials_lost": lost, "seconds_to_recover": seconds, "computed_twice_s": again}
        if path:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    return note
