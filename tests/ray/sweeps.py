"""Real sweeps of tests, as small as a sweep can be."""

from pathlib import Path

from rich.console import Console

from slime_ray.config.experiment_file import load_experiment
from slime_ray.on_ray.sweep import run_sweep
from slime_ray.runs.folder import Start

BASE = """\
preset: arithmetic
base:
  data: {sft_examples: 200, pairs: 64, held_out_pairs: 24}
  sft: {updates: 5}
  training: {updates: 2, pairs_per_update: 8, evaluations: 1}
  evaluation: {prompts: 8, selection_prompts: 8, kl_prompts: 4, decoding: {max_new_tokens: 8}}
resources: {concurrent_trials: 1}
"""


def sweep(
    folder: Path, name: str, text: str, start: Start = "fresh", study: str | None = None, **overrides: object
) -> Path:
    """Run an experiment of `BASE` and more in the folder's storage, where stages are shared; return its run."""
    source = folder / f"{name}.yaml"
    source.write_text(f"name: {name}\n{BASE}{text}")
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    return run_sweep(
        load_experiment(source, overrides=changed), source=source, storage=folder / "runs", seed=0, start=start,
        console=Console(quiet=True), study=study,
    )  # fmt: skip
