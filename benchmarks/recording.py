"""The recorded trials of the embedded task: a grid with a truth of its own, and points of the same box.

`record` trains what is missing, one trial after another in this process, and writes the small table that the simulated
back end plays again.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from slime_ray.bench.machine import Say
from slime_ray.config.experiment import Experiment, Trial
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.space import Scalar
from slime_ray.errors import RunError
from slime_ray.runs import results
from slime_ray.runs.store import RunStore
from slime_ray.training.orders import evaluations
from slime_ray.training.outcome import say_nothing
from slime_ray.training.worker import run_trial

from .simulate import Recorded, random_points

TABLE = Path(__file__).parent / "data" / "arithmetic.jsonl.gz"
SPACE = """\
name: recorded
preset: arithmetic
base:
  training: {evaluations: 10}
  sentinel: {prompts: 128}
  evaluation: {prompts: 640, selection_prompts: 320, kl_prompts: 4}
search:
  objective.anchor_weight: {log_uniform: [0.02, 3.0]}
  objective.stabilizer_strength: {log_uniform: [0.005, 0.5]}
  objective.hard_margin: {uniform: [1.0, 3.0]}
budget: {trials: 32}
"""
GRID: dict[str, tuple[Scalar, ...]] = {
    "objective.anchor_weight": (0.05, 0.3, 2.0),
    "objective.stabilizer_strength": (0.01, 0.06, 0.3),
    "objective.hard_margin": (1.0, 1.7, 3.0),
}
TRUTH_SEEDS = (0, 1, 2)
"""Of the trials that tell how good a cell is, on the report prompts, which no search sees."""
SEARCH_SEEDS = (1000, 1001, 1002)
"""Of the trials that a search is given, on the selection prompts."""
POINTS = 128


def experiment_in(folder: Path, name: str = "recorded", text: str = SPACE) -> Experiment:
    """Load the experiment of the recorded trials, or another one, from a file in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"{name}.yaml"
    source.write_text(text, encoding="utf-8")
    return load_experiment(source)


def cells_in(folder: Path) -> Experiment:
    """Load the experiment that searches over the cells of the grid alone."""
    knobs = "".join(f"  {path}: {{choice: {list(values)}}}\n" for path, values in GRID.items())
    text = SPACE.partition("search:")[0] + f"search:\n{knobs}budget: {{trials: {len(cells())}}}\n"
    return experiment_in(folder, "cells", text)


def cells() -> list[dict[str, Scalar]]:
    """Return the cells of the grid."""
    return [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]


def recorded_trial(experiment: Experiment, name: str, phase: Any, seed: int, values: Mapping[str, Scalar]) -> Trial:
    """Build a trial to record. phase: `arm` is measured on the report prompts, `search` on the selection ones."""
    return Trial(
        trial_id=f"{name}-s{seed}",
        phase=phase,
        label=name,
        seed=seed,
        prompt_set="report" if phase == "arm" else "selection",
        values=dict(values),
        settings=experiment.settings_with(values),
    )


def trials_to_record(experiment: Experiment) -> Iterator[Trial]:
    """Yield all trials to record."""
    assert experiment.search is not None
    for number, values in enumerate(cells()):
        for phase, seeds in (("arm", TRUTH_SEEDS), ("search", SEARCH_SEEDS)):
            for seed in seeds:
                yield recorded_trial(experiment, f"cell-{number:02d}", phase, seed, values)
    for number, point in enumerate(random_points(experiment.search, POINTS, seed=0)):
        yield recorded_trial(experiment, f"point-{number:03d}", "search", SEARCH_SEEDS[0], point)


def record(trial: Trial, folder: Path, say: Say) -> Recorded:
    """Train a trial that `folder` lacks; one that diverges is a result. Raises RunError where it fails."""
    trial_folder = folder / "run" / "trials" / trial.trial_id
    row = results.finished_trial(trial_folder)
    if row is None:
        row = run_trial(trial, run=folder / "run", storage=RunStore(folder), report=say_nothing)
        if row["status"] == "failed":
            raise RunError(f"{trial.trial_id} failed: {row['reason']}. Delete {trial_folder} and record again.")
        say(f"{trial.trial_id} {row['status']}: win rate {row['win_rate']}, stability {row['stability']}")
    names = ("label", "phase", "seed", "status", "win_rate", "stability")
    return Recorded(
        name=trial.trial_id,
        values=trial.values,
        evaluations=evaluations(pq.read_table(trial_folder / "curves.parquet").to_pylist()),
        updates=row["updates"],
        tokens=row["tokens"],
        row={name: row[name] for name in names},
    )


def save_table(recorded: list[Recorded], table: Path) -> None:
    """Write the recorded trials, a line each."""
    with gzip.open(table, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(vars(trial)) + "\n" for trial in recorded)


def load_table(table: Path = TABLE) -> list[Recorded]:
    """Load the recorded trials."""
    with gzip.open(table, "rt", encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    for entry in entries:
        entry["evaluations"] = {int(step): values for step, values in entry["evaluations"].items()}
    return [Recorded(**entry) for entry in entries]
