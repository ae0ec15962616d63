"""A sweep that is watched, changed and extended from another terminal, for real."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slime_ray import cli
from slime_ray.runs import results
from slime_ray.runs.status import describe
from tests.end_to_end.conftest import environment
from tests.processes import left_behind

# Not in CI: on a busy machine its trial did not come to its first update in time.
pytestmark = [pytest.mark.ray, pytest.mark.faults]

# Its trials do not end by themselves.
TEXT = """\
name: watched
preset: arithmetic
base:
  data: {sft_examples: 200, pairs: 32, held_out_pairs: 16}
  sft: {updates: 10}
  training: {updates: 100000, pairs_per_update: 8, evaluations: 2}
  sentinel: {action: none}
  evaluation: {prompts: 8, selection_prompts: 8, kl_prompts: 4, decoding: {max_new_tokens: 16}}
search: {objective.hard_margin: {uniform: [0.5, 3.0]}}
budget: {trials: 1}
resources: {concurrent_trials: 1}
"""


def eventually(found: Callable[[], object], sweep: subprocess.Popen[str], seconds: float = 240) -> None:
    """Look again until something is so, while the sweep lives."""
    deadline = time.monotonic() + seconds
    while not found():
        assert sweep.poll() is None, sweep.stdout and sweep.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_trial_is_stopped_and_cloned_from_another_terminal_and_the_run_is_extended(tmp_path: Path, capsys):
    space, run = tmp_path / "watched.yaml", tmp_path / "watched"
    space.write_text(TEXT)
    command = [sys.executable, "-m", "slime_ray"]
    sweep = subprocess.Popen(
        [*command, "sweep", str(space), "--storage", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=environment(), start_new_session=True,
    )  # fmt: skip
    try:

        def at_step() -> bool:
            return (run / "manifest.json").exists() and any(
                (told.get("step") or 0) > 0 for told in describe(run)["running"].values()
            )

        eventually(at_step, sweep)
        assert cli.main(["status", str(run), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["state"] == "at work"
        clone = ["clone", str(run), "search-0001", "--set", "objective.hard_margin=2.0", "--set", "training.updates=4"]
        assert cli.main(clone) == 0
        assert cli.main(["stop", str(run), "search-0001"]) == 0
        out, _ = sweep.communicate(timeout=240)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, out
    rows = results.finished_trials(run)
    assert rows["search-0001"]["status"] == "stopped"
    assert rows["search-0001"]["reason"] == "stopped by hand"
    assert 0 < rows["search-0001"]["updates"] < 100_000
    assert rows["search-0001-clone-1"]["status"] == "completed"
    assert rows["search-0001-clone-1"]["updates"] == 4
    assert describe(run)["state"] == "finished"
    assert left_behind(sweep.pid) == []

    # A clone that is asked for when nobody is at work runs when the run is gone on with, and nothing else does.
    assert cli.main([*clone[:-1], "training.updates=5"]) == 0
    more = subprocess.run(
        [*command, "extend", str(run)], capture_output=True, text=True, env=environment(), timeout=240, check=False
    )
    assert more.returncode == 0, more.stderr
    rows = results.finished_trials(run)
    assert rows["search-0001-clone-2"]["updates"] == 5
    assert len(rows) == 3
    assert results.read_manifest(run)["finished"]
