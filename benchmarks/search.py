"""How well a search finds: the grid's best cell for a part of its tokens, and hypervolume against random search.

Searchers, rules of early stopping and the choice of the best are those of a sweep. They go over recorded trials of the
embedded task on a simulated clock.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from slime_ray.analysis.front import hypervolumes

from slime_ray.bench.machine import Say
from slime_ray.bench.report import Report, machine
from slime_ray.config.experiment import EarlyStopping, Experiment
from slime_ray.on_ray.stopping import build_rule
from slime_ray.runs.pareto import best_rows

from .common import run
from .recording import (
    GRID,
    SEARCH_SEEDS,
    TABLE,
    cells,
    cells_in,
    experiment_in,
    load_table,
    record,
    save_table,
    trials_to_record,
)
from .simulate import FixedPoints, Forgetful, Played, Recorded, WithinTokens, random_points, simulate

GOALS: dict[Any, Any] = {"win_rate": "maximize", "stability": "maximize"}
RULES: dict[str, EarlyStopping] = {
    "none": EarlyStopping(rule="none"),
    "pareto": EarlyStopping(goals=GOALS),
    "pareto, spread": EarlyStopping(goals=GOALS, tie_break="spread"),
    "asha, win_rate": EarlyStopping(rule="asha", metric="win_rate"),
    "asha, preference_accuracy": EarlyStopping(rule="asha"),
    "median, win_rate": EarlyStopping(rule="median", metric="win_rate"),
}
TOP = 2
"""How many of the truly best cells count as found."""
QUARTER = 0.25
"""Of the grid's tokens, that a search which chooses its cells may take."""
EVERY, CHOSEN = "every cell, random order", f"TPE, to {QUARTER:.0%} of the tokens"


def measure_search(*, recorded: Sequence[Recorded], folder: Path, seeds: int, trials: int) -> Iterator[Report]:
    """Search the grid and the box. folder: where the experiments' files are written."""
    experiment, about = experiment_in(folder), machine() | {"recorded trials": len(recorded), "seeds": seeds}
    truth = true_cells(recorded)
    grid = {seed: _grid(recorded, seed) for seed in SEARCH_SEEDS}
    rows = [
        search_grid(searcher, name, truth, grid, cells_in(folder), workers=workers, seeds=seeds)
        for searcher in (EVERY, CHOSEN)
        for name in RULES
        for workers in (1, 4)
    ]
    yield Report(
        "best cell of the grid",
        about,
        rows,
        "best, top 2: in how many searches the trial that would be confirmed first is the truly best cell, or one of "
        "the two best. tokens: of the grid's; most: in the search that took the most.",
    )
    nearest = Nearest([trial for trial in recorded if _is_searched(trial, SEARCH_SEEDS[0])], experiment)
    yield Report(
        "hypervolume of the front",
        about,
        [volume(experiment, nearest, rule=rule, trials=trials, seeds=seeds) for rule in list(RULES)[:3]],
        "One trial after another, beside random search of the same seed. tokens: of those of as many whole trials. "
        "alike: random search that ends where it has taken as many tokens.",
    )


def true_cells(recorded: Sequence[Recorded]) -> list[str]:
    """Return the cells, best first in the order in which a sweep confirms, by means on the report prompts."""
    arms = [trial.row for trial in recorded if trial.row["phase"] == "arm"]
    rows: list[Mapping[str, Any]] = []
    for label in sorted({row["label"] for row in arms}):
        means = {goal: fmean(row[goal] or 0.0 for row in arms if row["label"] == label) for goal in GOALS}
        rows.append({"status": "completed", "name": label, **means})
    return [row["name"] for row in best_rows(rows, GOALS)]


def _is_searched(trial: Recorded, seed: int) -> bool:
    return trial.row["phase"] == "search" and trial.row["seed"] == seed


def _grid(recorded: Sequence[Recorded], seed: int) -> list[Recorded]:
    """Return the grid as one search would train it."""
    return [trial for trial in recorded if _is_searched(trial, seed) and trial.row["label"].startswith("cell-")]


def search_grid(
    searcher: str,
    rule: str,
    truth: Sequence[str],
    grid: Mapping[int, Sequence[Recorded]],
    space: Experiment,
    *,
    workers: int,
    seeds: int,
) -> dict[str, Any]:
    """Search the grid `seeds` times, by EVERY or CHOSEN.

    grid: the recorded trials by training seed. space: of the cells.
    """
    places, shares, stopped, begun = [], [], 0, 0
    for seed in range(seeds):
        trials = grid[SEARCH_SEEDS[seed % len(SEARCH_SEEDS)]]
        by_values = {_key(trial.values): trial for trial in trials}
        whole, most = sum(trial.tokens for trial in trials), max(trial.tokens for trial in trials)
        played = simulate(
            _of_cells(searcher, space, seed, tokens=QUARTER * whole, trial_tokens=most),
            build_rule(RULES[rule]),
            lambda point: by_values[_key(point)],  # noqa: B023
            trials=len(trials),
            workers=workers,
        )
        places.append(truth.index(best_rows([trial.row for trial in played], GOALS)[0]["label"]))
        shares.append(sum(trial.tokens for trial in played) / whole)
        stopped += sum(trial.row["status"] == "stopped" for trial in played)
        begun += len(played)
    return {
        "searcher": searcher,
        "early stopping": rule,
        "workers": workers,
        "best": sum(place == 0 for place in places),
        "top 2": sum(place < TOP for place in places),
        "tokens": fmean(shares),
        "most": max(shares),
        "stopped": stopped / seeds,
        "trials": begun / seeds,
    }


def _of_cells(searcher: str, space: Experiment, seed: int, *, tokens: float, trial_tokens: int) -> FixedPoints:
    if searcher == CHOSEN:
        return WithinTokens(Forgetful(space, trials=len(cells()), seed=seed), tokens, trial_tokens=trial_tokens)
    order = cells()
    random.Random(seed).shuffle(order)
    return FixedPoints(order)


def _key(values: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(values[path] for path in GRID)


class Nearest:
    """Stands for the trial of any point by the recorded one that is nearest, each knob on the scale it is drawn on."""

    def __init__(self, recorded: Sequence[Recorded], experiment: Experiment):
        assert experiment.search is not None
        self.recorded, self.dimensions = list(recorded), experiment.search.dimensions
        self.places = np.array([self._place(trial.values) for trial in recorded])

    def __call__(self, point: Mapping[str, Any]) -> Recorded:
        distances = ((self.places - self._place(point)) ** 2).sum(axis=1)
        return self.recorded[int(distances.argmin())]

    def _place(self, point: Mapping[str, Any]) -> np.ndarray:
        """Return the (knobs,) shares of the ranges: 0 at the low end, 1 at the high one."""
        places = []
        for path, dimension in self.dimensions.items():
            values = np.array([*dimension.bounds, float(point[path])])
            low, high, value = values if dimension.log_uniform is None else np.log(values)
            places.append((value - low) / (high - low))
        return np.array(places)


def volume(
    experiment: Experiment, replay: Callable[[Mapping[str, Any]], Recorded], *, rule: str, trials: int, seeds: int
) -> dict[str, Any]:
    """Compare a sweep's searcher with random search, one trial after another."""
    search = experiment.search
    assert search is not None
    volumes, random_volumes, equal_token_volumes, tokens = [], [], [], []
    for seed in range(seeds):
        played = simulate(
            Forgetful(experiment, trials=trials, seed=seed), build_rule(RULES[rule]), replay, trials=trials
        )
        whole = simulate(FixedPoints(random_points(search, trials, seed)), None, replay, trials=trials)
        spent = sum(trial.tokens for trial in played)
        affordable = int((np.cumsum([trial.tokens for trial in whole]) <= spent).sum())
        volumes.append(hypervolume(played))
        random_volumes.append(hypervolume(whole))
        equal_token_volumes.append(hypervolume(whole[:affordable]))
        tokens.append(spent / sum(trial.tokens for trial in whole))
    return {
        "searcher": "TPE" if rule == "none" else f"TPE, {rule}",
        "trials": trials,
        "volume": fmean(volumes),
        "random": fmean(random_volumes),
        "above": sum(volume > random_volume for volume, random_volume in zip(volumes, random_volumes, strict=True)),
        "tokens": fmean(tokens),
        "alike": fmean(equal_token_volumes),
        "above alike": sum(
            volume > random_volume for volume, random_volume in zip(volumes, equal_token_volumes, strict=True)
        ),
        "volumes": [volumes, random_volumes, equal_token_volumes],
    }


def hypervolume(played: Sequence[Played]) -> float:
    """Return the area that completed trials dominate, of win rate and stability; at most 1."""
    rows = [trial.row for trial in played if trial.row["status"] == "completed"]
    return float(hypervolumes(np.array([[row[goal] for goal in GOALS] for row in rows]))[-1]) if rows else 0.0


def measure(*, seeds: int, trials: int, record_first: int, say: Say) -> Iterator[Report]:
    """Search over the shipped table, recorded anew first where asked."""
    folder = Path("runs/recorded")
    if record_first:
        save_table([record(trial, folder, say) for trial in trials_to_record(experiment_in(folder))], TABLE)
    return measure_search(recorded=load_table(), folder=folder, seeds=seeds, trials=trials)


if __name__ == "__main__":
    run(
        "search",
        "How well searches and early stopping find, over recorded trials that are played again.",
        {
            "seeds": (10, 1, "searches of each kind"),
            "trials": (32, 1, "trials of a search in the comparison with random search"),
            "record_first": (0, 0, "1: train the table's missing trials in runs/recorded and write it anew, an hour"),
        },
        measure,
    )
