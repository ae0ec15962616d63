"""How well a search finds: the grid's best cell for a part of its tokens, and hypervolume against random search.

Searchers, rules of early stopping and the choice of the best are those of a sweep. They go over recorded trials of the
embedded task on a simulated clock.
"""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from slime_ray.analysis.front import hypervolumes

from slime_ray.bench.machine import Machine, Say, describe_machine, now
from slime_ray.config.experiment import EarlyStopping, Experiment
from slime_ray.on_ray.stopping import build_rule
from slime_ray.planning.tables import table
from slime_ray.runs.pareto import best_rows

from .recording import GRID, SEARCH_SEEDS, cells, cells_in, experiment_in, load_table
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


@dataclass(frozen=True)
class GridResult:
    """One way to search the grid, over all seeds.

    searcher: EVERY or CHOSEN. workers: side by side. best, top: in how many searches what it would confirm first is the
    truly best cell, and one of the TOP best. share: tokens, of the grid's, on average and in the search that took the
    most. stopped: trials, on average. trials: that were begun, on average.
    """

    searcher: str
    rule: str
    workers: int
    seeds: int
    best: int
    top: int
    share: float
    most: float
    stopped: float
    trials: float


@dataclass(frozen=True)
class Volume:
    """The hypervolume of a searcher's front after `trials` trials beside random search's, seed by seed.

    random: of as many whole trials. alike: of the first of these that took no more tokens than
    the searcher's. tokens: of its trials, of those of as many whole ones, on average.
    """

    searcher: str
    trials: int
    volumes: list[float]
    random: list[float]
    alike: list[float]
    tokens: float

    @property
    def above(self) -> int:
        """In how many seeds it is above random search's."""
        return _wins(self.volumes, self.random)

    @property
    def above_alike(self) -> int:
        """In how many seeds it is above random search's of as many tokens."""
        return _wins(self.volumes, self.alike)


def _wins(volumes: Sequence[float], rivals: Sequence[float]) -> int:
    return sum(volume > rival for volume, rival in zip(volumes, rivals, strict=True))


@dataclass(frozen=True)
class GridCell:
    """One cell of the grid as it truly is. place: from 1, in the order in which a sweep confirms."""

    name: str
    win_rate: float
    stability: float
    place: int


@dataclass(frozen=True)
class SearchReport:
    """What all searches found. recorded: trials in the table."""

    machine: Machine
    date: str
    recorded: int
    truth: list[GridCell]
    found: list[GridResult]
    volumes: list[Volume]


def measure_search(*, recorded_table: Path, folder: Path, seeds: int, trials: int) -> SearchReport:
    """Search the grid and the box. folder: where the experiments' files are written."""
    recorded = load_table(recorded_table)
    experiment = experiment_in(folder)
    truth = true_cells(recorded)
    grid = {seed: _grid(recorded, seed) for seed in SEARCH_SEEDS}
    grid_results = [
        search_grid(searcher, name, rule, truth, grid, cells_in(folder), workers=workers, seeds=seeds)
        for searcher in (EVERY, CHOSEN)
        for name, rule in RULES.items()
        for workers in (1, 4)
    ]
    seed_trials = [
        trial for trial in recorded if trial.row["phase"] == "search" and trial.row["seed"] == SEARCH_SEEDS[0]
    ]
    nearest = Nearest(seed_trials, experiment)
    volumes = [
        volume(experiment, nearest, rule=rule, trials=trials, seeds=range(seeds))
        for rule in ("none", "pareto", "pareto, spread")
    ]
    return SearchReport(describe_machine(torch.device("cpu")), now(), len(recorded), truth, grid_results, volumes)


def true_cells(recorded: Sequence[Recorded]) -> list[GridCell]:
    """Return the cells, best first, each the mean of its trials on the report prompts."""
    rows: list[Mapping[str, Any]] = []
    for label in sorted({trial.row["label"] for trial in recorded if trial.row["phase"] == "arm"}):
        cell_trials = [trial for trial in recorded if trial.row["label"] == label and trial.row["phase"] == "arm"]
        means = {goal: statistics.fmean(trial.row[goal] or 0.0 for trial in cell_trials) for goal in GOALS}
        rows.append({"status": "completed", "name": label, **means})
    return [
        GridCell(row["name"], row["win_rate"], row["stability"], place)
        for place, row in enumerate(best_rows(rows, GOALS), start=1)
    ]


def _grid(recorded: Sequence[Recorded], seed: int) -> dict[str, Recorded]:
    """Return the grid as one search would train it, by cell."""
    return {
        trial.row["label"]: trial
        for trial in recorded
        if trial.row["phase"] == "search" and trial.row["seed"] == seed and trial.row["label"].startswith("cell-")
    }


def search_grid(
    searcher: str,
    name: str,
    rule: EarlyStopping,
    truth: Sequence[GridCell],
    grid: Mapping[int, Mapping[str, Recorded]],
    space: Experiment,
    *,
    workers: int,
    seeds: int,
) -> GridResult:
    """Search the grid `seeds` times, by EVERY or CHOSEN.

    grid: the recorded trials by training seed and cell. space: of the cells.
    """
    places = {cell.name: cell.place for cell in truth}
    runs, winners, shares = [], [], []
    for seed in range(seeds):
        trials = grid[SEARCH_SEEDS[seed % len(SEARCH_SEEDS)]]
        by_values = {_key(trial.values): trial for trial in trials.values()}
        whole = sum(trial.tokens for trial in trials.values())
        most = max(trial.tokens for trial in trials.values())
        played = simulate(
            _of_cells(searcher, space, seed, tokens=QUARTER * whole, trial_tokens=most),
            build_rule(rule),
            lambda point: by_values[_key(point)],  # noqa: B023
            trials=len(trials),
            workers=workers,
        )
        runs.append(played)
        winners.append(places[best_rows([trial.row for trial in played], GOALS)[0]["label"]])
        shares.append(sum(trial.tokens for trial in played) / whole)
    return GridResult(
        searcher=searcher,
        rule=name,
        workers=workers,
        seeds=seeds,
        best=sum(place == 1 for place in winners),
        top=sum(place <= TOP for place in winners),
        share=statistics.fmean(shares),
        most=max(shares),
        stopped=sum(trial.row["status"] == "stopped" for played in runs for trial in played) / seeds,
        trials=statistics.fmean(map(len, runs)),
    )


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
            low, high = dimension.bounds
            value = float(point[path])
            if dimension.log_uniform is not None:
                low, high, value = np.log(low), np.log(high), np.log(value)
            places.append((value - low) / (high - low))
        return np.array(places)


def volume(
    experiment: Experiment,
    replay: Callable[[Mapping[str, Any]], Recorded],
    *,
    rule: str,
    trials: int,
    seeds: Sequence[int],
) -> Volume:
    """Compare a sweep's searcher with random search, one trial after another."""
    assert experiment.search is not None

    def play(searcher: FixedPoints, early: EarlyStopping) -> list[Played]:
        return simulate(searcher, build_rule(early), replay, trials=trials)

    searcher_runs = [play(Forgetful(experiment, trials=trials, seed=seed), RULES[rule]) for seed in seeds]
    random_runs = [play(FixedPoints(random_points(experiment.search, trials, seed)), RULES["none"]) for seed in seeds]
    spent, whole = (sum(trial.tokens for played in runs for trial in played) for runs in (searcher_runs, random_runs))
    return Volume(
        searcher="TPE" if rule == "none" else f"TPE, {rule}",
        trials=trials,
        volumes=[hypervolume([trial.row for trial in played]) for played in searcher_runs],
        random=[hypervolume([trial.row for trial in played]) for played in random_runs],
        alike=[
            hypervolume([trial.row for trial in _affordable(played, sum(trial.tokens for trial in budget_run))])
            for budget_run, played in zip(searcher_runs, random_runs, strict=True)
        ],
        tokens=spent / whole,
    )


def _affordable(played: Sequence[Played], tokens: int) -> list[Played]:
    """Return the first trials that took no more than so many tokens."""
    spent = np.cumsum([trial.tokens for trial in played])
    return list(played[: int((spent <= tokens).sum())])


def hypervolume(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the area that completed trials dominate, of win rate and stability; at most 1."""
    points = [[row["win_rate"], row["stability"]] for row in rows if row["status"] == "completed"]
    return float(hypervolumes(np.array(points))[-1]) if points else 0.0


def search_tables(report: SearchReport) -> str:
    """Render the report."""
    machine = report.machine
    grid_rows = [
        (
            result.searcher,
            result.rule,
            f"{result.workers}",
            f"{result.best}/{result.seeds}",
            f"{result.top}/{result.seeds}",
            f"{result.share:.1%}",
            f"{result.most:.1%}",
            f"{result.stopped:.1f}",
        )
        for result in report.found
    ]
    volumes = [
        (
            result.searcher,
            f"{result.trials}",
            f"{statistics.fmean(result.volumes):.3f}",
            f"{statistics.fmean(result.random):.3f}",
            f"{result.above}/{len(result.volumes)}",
            f"{result.tokens:.0%}",
            f"{statistics.fmean(result.alike):.3f}",
            f"{result.above_alike}/{len(result.volumes)}",
        )
        for result in report.volumes
    ]
    return "\n\n".join(
        [
            f"Searches over {report.recorded} recorded trials of the embedded task arithmetic, played on "
            f"{machine.processor}, {machine.cores} cores; {report.date}",
            "The grid searched, each cell trained with one seed. Found: what the search would confirm first is truly "
            "the best cell, or one of the two best.",
            table(("searcher", "early stopping", "workers", "best", "top 2", "tokens", "most", "stopped"), grid_rows),
            "Hypervolume of win rate and stability, one trial after another, beside random search of the same seed.",
            table(("searcher", "trials", "volume", "random", "above", "tokens", "random alike", "above"), volumes),
            "Tokens: trained, as a share of what the same trials take without a stop; most: of the search that took "
            "the most. Random alike: random search, ended where it has taken as many tokens.",
        ]
    )


if __name__ == "__main__":
    from .common import run
    from .recording import TABLE, condense, record

    def measure(*, seeds: int, trials: int, record_first: int, say: Say) -> SearchReport:
        """Search over the shipped table, recorded anew first where asked."""
        folder = Path("runs/recorded")
        if record_first:
            record(folder, say)
            condense(folder, TABLE)
        return measure_search(recorded_table=TABLE, folder=folder, seeds=seeds, trials=trials)

    run(
        "search",
        "How well searches and early stopping find, over recorded trials that are played again.",
        {
            "seeds": (10, 1, "searches of each kind"),
            "trials": (32, 1, "trials of a search in the comparison with random search"),
            "record_first": (0, 0, "1: train the table's missing trials in runs/recorded and write it anew, an hour"),
        },
        measure,
        search_tables,
    )
