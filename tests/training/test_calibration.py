"""stability-v1 tells a policy that did not change from one that collapsed, on real trials."""

import pytest

from slime_ray.config.experiment import arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.runs.store import RunStore
from slime_ray.training.worker import run_trial

TEXT = """\
name: calibration
preset: arithmetic
base:
  data: {sft_examples: 400, pairs: 32, held_out_pairs: 64}
  sft: {updates: 30}
  training: {updates: 24, pairs_per_update: 4, evaluations: 2}
  evaluation: {prompts: 256, selection_prompts: 8, kl_prompts: 4, decoding: {max_new_tokens: 24}}
arms:
  unchanged: {training.updates: 0}
  collapsed: {objective: {name: dpo}, training.learning_rate: 1e-2}
"""


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """S by arm."""
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "calibration.yaml").write_text(TEXT)
    trials = arm_trials(load_experiment(folder / "calibration.yaml"))
    rows = [
        run_trial(trial, run=folder / "run", storage=RunStore(folder), report=lambda told: None) for trial in trials
    ]
    return {row["label"]: row["stability"] for row in rows}


def test_the_sft_checkpoint_against_itself_keeps_its_stability(scores):
    assert scores["unchanged"] >= 0.95


def test_a_collapsed_run_keeps_next_to_none(scores):
    assert scores["collapsed"] < 0.2
