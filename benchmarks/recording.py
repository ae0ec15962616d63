"""The recorded trials of the embedded task: a grid with a truth of its own, and points that cover the same box.

`record` trains what is missing, one trial after another in this process, and leaves an ordinary run; `condense` makes
the small table of it that the simulated back end replays.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slime_ray import results
from slime_ray.experiment import Search, Trial
from slime_ray.experiment_file import load_experiment
from slime_ray.mirror import Mirror
from slime_ray.space import Scalar
from slime_ray.training.outcome import say_nothing
from slime_ray.training.worker import run_trial

from .machine import Say

SPACE = """\
name: recorded
preset: arithmetic
base:
  training: {evaluations: 10}
  evaluation: {kl_prompts: 4}
search:
  objective.anchor_weight: {log_uniform: [0.02, 2.0]}
  objective.stabilizer_strength: {log_uniform: [5e-4, 0.3]}
  training.learning_rate: {log_uniform: [5e-5, 1.5e-3]}
budget: {trials: 128}
"""
GRID: dict[str, tuple[Scalar, ...]] = {
    "objective.anchor_weight": (0.05, 0.3, 1.5),
    "objective.stabilizer_strength": (0.001, 0.02, 0.2),
    "training.learning_rate": (1e-4, 3e-4, 1e-3),
}
TRUTH_SEEDS = (0, 1, 2)
"""Of the trials that tell how good a cell is, on the report prompts, which no search sees."""
SEARCH_SEEDS = (1000, 1001, 1002, 1003, 1004)
"""Of the trials that a search is given, on the selection prompts."""
POINTS = 128


def cells() -> list[dict[str, Scalar]]:
    """The cells of the grid."""
    points: list[dict[str, Scalar]] = [{}]
    for path, values in GRID.items():
        points = [{**point, path: value} for point in points for value in values]
    return points


def cover(search: Search, count: int) -> list[dict[str, Scalar]]:
    """Points that cover the space evenly: a Kronecker sequence on powers of the generalised golden ratio."""
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


def trials(folder: Path) -> Iterator[Trial]:
    """Everything that is recorded, the most wanted first, so that a recording that is cut short is of use."""
    source = folder / "recorded.yaml"
    source.write_text(SPACE, encoding="utf-8")
    experiment = load_experiment(source)
    assert experiment.search is not None

    def trial(name: str, phase: Any, seed: int, values: dict[str, Scalar]) -> Trial:
        return Trial(
            trial_id=f"{name}-s{seed}",
            phase=phase,
            label=name,
            seed=seed,
            prompt_set="report" if phase == "arm" else "selection",
            values=values,
            settings=experiment.settings_with(values),
        )

    points = cover(experiment.search, POINTS)
    for turn, seed in enumerate(SEARCH_SEEDS):
        for number, values in enumerate(cells()):
            if turn < len(TRUTH_SEEDS):
                yield trial(f"cell-{number:02d}", "arm", TRUTH_SEEDS[turn], values)
            yield trial(f"cell-{number:02d}", "search", seed, values)
        for number in range(turn * 64, min((turn + 1) * 64, POINTS)):
            yield trial(f"point-{number:03d}", "search", SEARCH_SEEDS[0], points[number])


def record(folder: Path, say: Say) -> None:
    """Train what `folder` does not hold yet."""
    folder.mkdir(parents=True, exist_ok=True)
    storage = Mirror(folder)
    for trial in trials(folder):
        if results.finished_trial(folder / "run" / "trials" / trial.trial_id) is None:
            row = run_trial(trial, run=folder / "run", storage=storage, report=say_nothing)
            say(f"{trial.trial_id} {row['status']}: win rate {row['win_rate']}, stability {row['stability']}")
