"""The recorded trials of the embedded task: a grid with a truth of its own, and points that cover the same box.

`record` trains what is missing, one trial after another in this process, and leaves an ordinary run; `condense` makes
the small table of it that ships, and that the simulated back end plays again.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from slime_ray.bench.machine import Say, describe_machine, now
from slime_ray.config.experiment import Experiment, Search, Trial
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.space import Scalar
from slime_ray.errors import RunError
from slime_ray.runs import results
from slime_ray.runs.store import RunStore
from slime_ray.training.orders import evaluations
from slime_ray.training.outcome import say_nothing
from slime_ray.training.worker import run_trial

from .simulate import Recorded

TABLE = Path(__file__).parent / "data" / "arithmetic.parquet"
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
TOKENS_A_SECOND = 10_000
"""Of the simulated clock. It goes by tokens, since seconds were taken on a machine that had other work."""


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


def cover(search: Search, count: int) -> list[dict[str, Scalar]]:
    """Return points that cover the space: a Kronecker sequence on powers of the generalised golden ratio."""
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (len(search.dimensions) + 1))
    return [
        {
            path: dimension.at(index * root ** -(k + 1) % 1.0)
            for k, (path, dimension) in enumerate(search.dimensions.items())
        }
        for index in range(1, count + 1)
    ]


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
    """Yield all trials to record, the most needed first, so that a recording that is cut short is of use."""
    assert experiment.search is not None
    points = cover(experiment.search, POINTS)
    share = -(-POINTS // len(SEARCH_SEEDS))
    for turn, (truth, seed) in enumerate(zip(TRUTH_SEEDS, SEARCH_SEEDS, strict=True)):
        for number, values in enumerate(cells()):
            yield recorded_trial(experiment, f"cell-{number:02d}", "arm", truth, values)
            yield recorded_trial(experiment, f"cell-{number:02d}", "search", seed, values)
        for number in range(turn * share, min((turn + 1) * share, POINTS)):
            yield recorded_trial(experiment, f"point-{number:03d}", "search", SEARCH_SEEDS[0], points[number])


def train(trial: Trial, folder: Path, say: Say) -> None:
    """Train a trial that `folder` lacks; one that diverges is a result. Raises RunError where it fails."""
    trial_folder = folder / "run" / "trials" / trial.trial_id
    if results.finished_trial(trial_folder) is not None:
        return
    row = run_trial(trial, run=folder / "run", storage=RunStore(folder), report=say_nothing)
    if row["status"] == "failed":
        raise RunError(f"{trial.trial_id} failed: {row['reason']}. Delete {trial_folder} and record again.")
    say(f"{trial.trial_id} {row['status']}: win rate {row['win_rate']}, stability {row['stability']}")


def record(folder: Path, say: Say) -> None:
    """Train what `folder` does not hold yet of all that is wanted."""
    for trial in trials_to_record(experiment_in(folder)):
        train(trial, folder, say)


def condense(folder: Path, table: Path) -> None:
    """Write the table of the trials that `folder` holds."""
    rows = results.finished_trials(folder / "run")
    entries = [_entry(folder / "run" / "trials" / name, rows[name]) for name in sorted(rows)]
    about = {"machine": asdict(describe_machine(torch.device("cpu"))), "condensed": now(), "space": SPACE}
    columns = pa.Table.from_pylist(entries, schema=SCHEMA).replace_schema_metadata({"recorded": json.dumps(about)})
    table.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns, table, compression="zstd")


METRICS = ("win_rate", "stability", "preference_accuracy", "mean_margin", "chosen_drift")
SCHEMA = pa.schema(
    {
        "trial_id": pa.string(),
        "label": pa.string(),
        "phase": pa.string(),
        "seed": pa.int32(),
        "status": pa.string(),
        "settings": pa.string(),
        "updates": pa.int32(),
        "tokens": pa.int32(),
        "win_rate": pa.float32(),
        "stability": pa.float32(),
        "steps": pa.list_(pa.int16()),
        **{f"told.{name}": pa.list_(pa.float32()) for name in METRICS},
    }
)


def _entry(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    steps = evaluations(pq.read_table(folder / "curves.parquet").to_pylist())
    lists = {f"told.{name}": [values.get(name) for values in steps.values()] for name in METRICS}
    columns = {name: row[name] for name in SCHEMA.names if name in row}
    return columns | {"settings": row["overrides"], "steps": list(steps)} | lists


def load_table(table: Path = TABLE) -> list[Recorded]:
    """Load the recorded trials."""
    entries = pq.read_table(table, schema=SCHEMA).to_pylist()
    return [_recorded(entry) for entry in entries]


def _recorded(entry: Mapping[str, Any]) -> Recorded:
    by_metric = {name: entry[f"told.{name}"] for name in METRICS}
    evaluations = {
        step: {name: values[place] for name, values in by_metric.items() if values[place] is not None}
        for place, step in enumerate(entry["steps"])
    }
    names = ("label", "phase", "seed", "status", "win_rate", "stability")
    return Recorded(
        name=entry["trial_id"],
        values=json.loads(entry["settings"]),
        evaluations=evaluations,
        updates=entry["updates"],
        tokens=entry["tokens"],
        seconds=entry["tokens"] / TOKENS_A_SECOND,
        row={name: entry[name] for name in names},
    )
