"""Real runs of the command line on the embedded task, made as small as a run can be."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SMALLEST = """\
preset: arithmetic
base:
  data: {sft_examples: 400, pairs: 32, held_out_pairs: 24}
  sft: {updates: 30}
  training: {updates: 4, pairs_per_update: 8, evaluations: 2}
  evaluation: {prompts: 16, selection_prompts: 8, kl_prompts: 4, decoding: {max_new_tokens: 24}}
"""
SMALL = f"""\
name: small
{SMALLEST}\
arms:
  sft: {{training.updates: 0}}
  slime: {{}}
  dpo: {{objective: {{name: dpo}}}}
seeds: [0, 1]
search:
  objective.anchor_weight: {{log_uniform: [0.01, 2.0]}}
  objective.hard_margin: {{uniform: [0.5, 3.0]}}
require: [objective.anchor_weight <= objective.hard_margin]
start_from: [paper]
budget: {{trials: 2, confirm: {{best: 1, seeds: 2}}}}
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="session")
def slime_ray() -> Run:
    """Runs the command line in a process of its own."""

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "slime_ray", *map(str, arguments)],
            capture_output=True, text=True, cwd=cwd, env=environment(), timeout=300, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest experiment that has arms, a search and a confirmation."""
    path = tmp_path_factory.mktemp("space") / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs for the session: the stages are made once and shared."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def finished(slime_ray: Run, small: Path, storage: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep that ran to its end, and what it printed."""
    done = slime_ray("sweep", small, "--storage", storage)
    return storage / "small", done
