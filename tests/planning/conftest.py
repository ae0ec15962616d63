"""Experiments to plan."""

from collections.abc import Callable
from pathlib import Path

import pytest

from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.planning.plan import Cluster

TINY = """\
name: tiny
preset: arithmetic
base:
  data: {sft_examples: 100, pairs: 40, held_out_pairs: 12}
  sft: {updates: 4, examples_per_update: 8}
  training: {updates: 7, pairs_per_update: 16, evaluations: 3}
  evaluation: {prompts: 10, selection_prompts: 6, kl_prompts: 4, decoding: {max_new_tokens: 8, batch: 4}}
"""
ON_H100 = Cluster(trials=8, where="8 x h100", gpus=8, gpu="h100")

Load = Callable[..., Experiment]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Reads an experiment from the text of its file, with values set."""

    def read(text: str, **overrides: object) -> Experiment:
        path = tmp_path / "space.yaml"
        path.write_text(text, encoding="utf-8")
        return load_experiment(path, overrides={key.replace("__", "."): value for key, value in overrides.items()})

    return read
