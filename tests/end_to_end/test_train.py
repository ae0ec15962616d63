"""`slime-ray train`: one trial without Ray, which computes what it computes in a sweep."""

import signal
import subprocess
import sys

import pytest

from slime_ray.runs import results
from tests.end_to_end.conftest import environment
from tests.faults.conftest import same

pytestmark = pytest.mark.ray


def test_a_trial_alone_is_the_same_trial_to_the_last_bit(slime_ray, small, storage, finished):
    run, _ = finished
    done = slime_ray("train", small, "--storage", storage, "--trial", "arm-slime-s1")
    assert done.returncode == 0, done.stderr
    alone = results.finished_trials(storage / "small-arm-slime-s1")["arm-slime-s1"]
    assert same(alone, results.finished_trials(run)["arm-slime-s1"])
    assert "slime" in done.stdout


@pytest.mark.faults
def test_a_trial_that_is_interrupted_goes_on_where_it_was(slime_ray, small, storage, finished):
    options = ("train", small, "--storage", storage, "--trial", "arm-slime-s0", "--set", "training.updates=160")
    whole = slime_ray(*options, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "slime_ray", *map(str, options), "--name", "broken"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment() | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("training 80/160"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "left without a result: it was interrupted" in said
    assert "--name broken --resume` to go on" in said
    assert slime_ray(*options, "--name", "broken", "--resume").returncode == 0
    row, expected = (results.finished_trials(storage / name)["arm-slime-s0"] for name in ("broken", "whole"))
    assert same(row, expected)
    assert row["attempts"] == 2


@pytest.mark.parametrize("arguments", [("--trial", "arm-none-s0"), ()])
def test_an_unknown_trial_is_refused_with_those_that_there_are(slime_ray, small, tmp_path, arguments):
    done = slime_ray("train", small, "--storage", tmp_path, *arguments)
    assert done.returncode == 2
    assert "arm-slime-s0" in done.stderr
    assert list(tmp_path.iterdir()) == []
