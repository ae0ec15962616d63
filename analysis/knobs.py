"""The knobs that a run searched, its trials as arrays, which knobs matter for which goal, and what each did.

Importance is PED-ANOVA (Watanabe, Bansal, Hutter 2023, arXiv 2304.10255, algorithm 1) with intervals of the ranks: a
knob matters as much as its values among the best trials are spread unlike its values among all. For knobs that some
trials do not have, Conditional PED-ANOVA (arXiv 2601.20800, theorem 4.2). Densities, grid and constants are those of
Optuna's PedAnovaImportanceEvaluator, against which it is tested; ours computes all resamples at once, without a study.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.special import ndtr

from slime_ray.config.metrics import Constraint, violation
from slime_ray.runs import pareto, results

from . import rows, statistics
from .figures import VERMILLION, WIDTH, new_figure, plain, style
from .printing import Column, Table, empty, interval_cells, is_number, names, numbers, short_names, unit_of
from .rows import FINISHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEST = 0.1
"""The share of trials that counts as the best."""
FEWEST_BEST = 5
"""The best are at least so many trials, as Optuna recommends."""
ENOUGH = 50
"""With fewer trials a rank is a hint."""
RESAMPLES = 1_000
GRID = 50
SLICED = 6
"""At most so many knobs have slices, the most important ones."""
TINY = 1e-12


@dataclass(frozen=True)
class Knob:
    """One searched knob.

    name: short, unlike those of the others. low, high: of its range; of a choice, the places of the first and the last
    option. step: between neighbours, where it has any. options: of a choice, as the result files write them.
    """

    path: str
    name: str
    scale: Literal["linear", "log", "choice"]
    low: float
    high: float
    step: float | None = None
    options: tuple[str, ...] = ()

    def places(self, column: pd.Series) -> np.ndarray:
        """Return (trials,) each trial's value, or the place of its option; NaN where it has no such knob."""
        values = read(column)
        if self.scale == "choice":
            values = [None if value is None else self.options.index(_written(value)) for value in values]
        return np.array([np.nan if value is None else float(value) for value in values])

    def unit(self, places: np.ndarray) -> np.ndarray:
        """Return places as shares of the range, 0 to 1 from low to high, on the knob's scale."""
        low, high = self.low, self.high
        if self.scale == "log":
            places, low, high = np.log(places), np.log(low), np.log(high)
        return np.asarray((places - low) / (high - low)) if high > low else np.zeros_like(places)

    def at(self, shares: np.ndarray) -> np.ndarray:
        """Return the places at these shares of the range, the reverse of `unit`."""
        if self.scale == "log":
            return np.asarray(np.exp(np.log(self.low) + shares * (np.log(self.high) - np.log(self.low))))
        return self.low + shares * (self.high - self.low)


@dataclass(frozen=True)
class Searched:
    """The trials of a run's search, in the order in which they were drawn.

    knobs: those that took more than one value. goals: (trials, goals), turned so that more is better, NaN where a trial
    has none. places: (trials, knobs), see `Knob.places`.
    """

    trials: pd.DataFrame
    knobs: tuple[Knob, ...]
    places: np.ndarray
    names: tuple[str, ...]
    ways: tuple[str, ...]
    goals: np.ndarray
    constraints: tuple[Constraint, ...] = ()

    @classmethod
    def of(cls, run: results.Run) -> "Searched":
        """Collect a run's search trials; of a run that did not search there are none. Clones come after all drawn."""
        trials = run.trials[run.trials["phase"] == "search"].sort_values(
            "trial_id", kind="stable", key=lambda ids: ids.map(lambda name: (results.is_clone(name), len(name), name))
        )
        trials = trials.reset_index(drop=True)
        goal_ways = {name: way for name, way in (run.manifest.get("goals") or {}).items() if name in trials.columns}
        signs = [-1.0 if way == "minimize" else 1.0 for way in goal_ways.values()]
        knobs = knobs_of(run, trials)
        places = [knob.places(trials[results.KNOB + knob.path]) for knob in knobs]
        return cls(
            trials=trials,
            knobs=knobs,
            places=np.array(places).reshape(len(knobs), len(trials)).T,
            names=tuple(goal_ways),
            ways=tuple(goal_ways.values()),
            goals=trials[list(goal_ways)].to_numpy(dtype=float) * signs,
            constraints=rows.constraints_of(run.manifest),
        )

    @property
    def signs(self) -> list[float]:
        """Which way each goal was turned: 1, or -1 where less of it is better."""
        return [-1.0 if way == "minimize" else 1.0 for way in self.ways]

    @property
    def complete(self) -> np.ndarray:
        """(trials,) whether each ran to its end and has every goal; what was stopped early did not."""
        finite = np.isfinite(self.goals).all(axis=1) if self.names else np.zeros(len(self.trials), dtype=bool)
        return np.asarray((self.trials["status"] == FINISHED).to_numpy() & finite)

    @property
    def eligible(self) -> np.ndarray:
        """(trials,) whether each is complete and keeps the constraints of the search."""
        broken = [violation(row, self.constraints) for row in self.trials.to_dict("records")]
        return np.asarray(self.complete & (np.array(broken, dtype=float) == 0))

    @property
    def on_front(self) -> np.ndarray:
        """(trials,) whether each is eligible and no other eligible trial beats it."""
        return pareto.on_front(np.where(self.eligible[:, None], self.goals, np.nan)) if self.names else self.complete


def knobs_of(run: results.Run, trials: pd.DataFrame) -> tuple[Knob, ...]:
    """Return the knobs that took more than one value, in the order of the space."""
    search = (run.manifest.get("experiment") or {}).get("search") or {}
    # A knob that is drawn in several ways has a dimension for each, such as `objective.beta[dpo]`.
    space: dict[str, Any] = {}
    for dimension, spec in (search.get("dimensions") or {}).items():
        space.setdefault(dimension.partition("[")[0], spec)
    set_ = [name.removeprefix(results.KNOB) for name in trials.columns if name.startswith(results.KNOB)]
    paths = [*(path for path in space if path in set_), *(path for path in set_ if path not in space)]
    varied = [path for path in paths if trials[results.KNOB + path].nunique() > 1]
    names = short_names(varied)
    return tuple(_knob(path, names[path], space.get(path), trials[results.KNOB + path]) for path in varied)


def _knob(path: str, name: str, spec: Any, column: pd.Series) -> Knob:
    """Build a knob from its dimension in the manifest; from the values where they do not fit, or it is unknown."""
    spec = spec if isinstance(spec, dict) else {}
    values = [value for value in read(column) if value is not None]
    if spec.get("choice") is not None or not all(map(is_number, values)):
        options = [_written(option) for option in spec.get("choice") or []]
        options += sorted({_written(value) for value in values} - set(options))
        return Knob(path, name, "choice", 0.0, len(options) - 1.0, 1.0, tuple(options))
    # A range is the one entry with two numbers.
    kind = next((key for key, value in spec.items() if isinstance(value, list) and all(map(is_number, value))), "")
    ends = [float(value) for value in [*spec.get(kind, ()), *values]]
    low, high, step = min(ends), max(ends), spec.get("step")
    if step is None and "integer" in kind:
        step = 1
    log = low > 0 and ("log" in kind or spec.get("log") is True)
    return Knob(path, name, "log" if log else "linear", low, high, float(step) if is_number(step) else None)


def read(column: pd.Series) -> list[Any]:
    """Read a knob's column, JSON where not all values are numbers; None where a trial has no value."""
    if pd.api.types.is_numeric_dtype(column):
        return [None if pd.isna(value) else value for value in column]
    return [None if pd.isna(value) else json.loads(value) for value in column]


def _written(value: Any) -> str:
    """Write an option as text; equal numbers are the same option, such as 8 and 8.0."""
    if isinstance(value, str):
        return value
    return f"{value:.12g}" if is_number(value) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def of_goal(
    knobs: tuple[Knob, ...], places: np.ndarray, values: np.ndarray, *, resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Return (1 + resamples, knobs) shares of a goal's importance, and ranks from 1; the first is as measured.

    Shares sum to 1, and are NaN where nothing can be said. places: (trials, knobs), NaN where a trial has no such knob.
    values: (trials,), more is better, -inf is worst.
    """
    trials = len(values)
    counts = np.concatenate([np.ones((trials, 1)), statistics.draws(trials, resamples=resamples)], axis=1)
    best = counts * is_best(values, counts, best_share(trials))
    divergences = np.column_stack([divergence(knob, places[:, k], best, counts) for k, knob in enumerate(knobs)])
    total = divergences.sum(axis=1, keepdims=True)
    shares = np.divide(divergences, total, out=np.full_like(divergences, np.nan), where=total > 0)
    return shares, 1 + (divergences[:, None, :] > divergences[:, :, None]).sum(axis=2)


def best_share(trials: int) -> float:
    """Return which share of so many trials counts as the best."""
    return min(1.0, max(BEST, FEWEST_BEST / trials))


def is_best(values: np.ndarray, counts: np.ndarray, share: float) -> np.ndarray:
    """Return (trials, draws) whether a trial of (trials,) values is among the best `share`, or equals the last of them.

    counts: (trials, draws) how often each draw has each trial.
    """
    order = np.argsort(-values, kind="stable")
    quota = np.ceil(share * counts.sum(axis=0) - 1e-9)
    last = (counts[order].cumsum(axis=0) >= quota).argmax(axis=0)
    return values[:, None] >= values[order][last]


def divergence(knob: Knob, places: np.ndarray, best: np.ndarray, all_: np.ndarray) -> np.ndarray:
    """Return (draws,) Pearson divergence of a knob's density among the best from all, times their share squared.

    places: (trials,), NaN without the knob. best, all_: (trials, draws) how often each trial counts.
    """
    active = ~np.isnan(places)
    size = grid_size(knob)
    cell = places[active] if knob.scale == "choice" else np.ceil(knob.unit(places[active]) * (size - 1) - 0.5)
    cells_ = np.zeros((len(places), size))
    cells_[active, np.clip(cell.astype(int), 0, size - 1)] = 1.0
    best_counts, all_counts = best.T @ cells_, all_.T @ cells_
    best_density, all_density = (density(counts, knob) + TINY for counts in (best_counts, all_counts))
    pearson = (all_density * (best_density / all_density - 1) ** 2).sum(axis=1)
    of_best, of_all = best.sum(axis=0), all_.sum(axis=0)
    has_best, has_all = best_counts.sum(axis=1), all_counts.sum(axis=1)
    weight = np.divide((has_best / of_best) ** 2, has_all / of_all, out=np.zeros_like(has_all), where=has_best > 0)
    return np.asarray((of_best / of_all) ** 2 * weight * pearson)


def grid_size(knob: Knob) -> int:
    """Return how many cells a knob's range is cut into."""
    if knob.scale == "choice":
        return len(knob.options)
    if knob.step is None:
        return GRID
    steps = round((knob.high - knob.low) / knob.step) + 1
    return min(GRID, int(np.ceil(np.log2(knob.high - knob.low + 1))) + 1 if knob.scale == "log" else steps)


def density(counts: np.ndarray, knob: Knob) -> np.ndarray:
    """Return (draws, cells) Parzen densities, with a prior of one trial's weight. counts: trials in each cell."""
    total = counts.sum(axis=1, keepdims=True)
    size = counts.shape[1]
    if knob.scale == "choice":
        share = 1 / (1 + (counts > 0).sum(axis=1, keepdims=True))
        return np.asarray(((total * share + counts) / (1 + size * share) + 1 / size) / (total + 1))
    prior = _smoothed(np.eye(1, size, (size - 1) // 2), np.array([float(size)]), shift=(size - 1) % 2 / 2)
    return np.asarray((_smoothed(counts, _bandwidths(counts)) + prior) / (total + 1))


def _bandwidths(counts: np.ndarray) -> np.ndarray:
    """Return (draws,) bandwidths by Scott's rule (1992), in cells."""
    at = np.arange(counts.shape[1])
    total = np.maximum(counts.sum(axis=1), 1)
    mean = counts @ at / total
    spread = np.sqrt((counts * (at - mean[:, None]) ** 2).sum(axis=1) / np.maximum(1, total - 1))
    reached = counts.cumsum(axis=1)
    first = (reached >= np.maximum(total // 4, 1)[:, None]).argmax(axis=1)
    third = (reached > (3 * total // 4)[:, None]).argmax(axis=1)
    scott = 1.059 * np.minimum((third - first) / 1.34, spread) * total**-0.2
    # Nine tenths of a narrower kernel would lie in its own cell.
    return np.asarray(np.maximum(scott, 0.5 / 1.64))


def _smoothed(counts: np.ndarray, widths: np.ndarray, *, shift: float = 0.0) -> np.ndarray:
    """Return (draws, cells) sums of normal kernels over the cells, each cut off at the ends of the grid.

    counts: (draws, cells) kernels centered on each cell, or `shift` cells above. widths: (draws,) in cells.
    """
    size = counts.shape[1]
    # The mass below an edge depends on its distance from the center alone, so all kernels of a draw are one, moved.
    edges = np.arange(-size, size) + 0.5 - shift
    below = ndtr(edges / widths[:, None])
    inside = below[:, : size - 1 : -1] - below[:, size - 1 :: -1]
    length = 3 * size
    kernels, centers = np.fft.rfft(np.diff(below, axis=1), length), np.fft.rfft(counts / inside, length)
    return np.asarray(np.fft.irfft(kernels * centers, length)[:, size - 1 : 2 * size - 1])


def importance(searched: Searched) -> Table:
    """Return each knob's share of the importance for each goal, and its rank's interval."""
    complete, lost = searched.complete, (searched.trials["status"] == "diverged").to_numpy()
    counted = complete | lost
    trials = int(counted.sum())
    few = "fewer than two knobs varied" if len(searched.knobs) < 2 else f"{int(complete.sum())} trials completed"
    if len(searched.knobs) < 2 or int(complete.sum()) <= FEWEST_BEST:
        return empty(f"Nothing is said about the importance of knobs: {few}.", "knob")
    frame = pd.DataFrame([{"knob": knob.name, "path": knob.path} for knob in searched.knobs])
    for place, goal in enumerate(searched.names):
        values = np.where(lost, -np.inf, searched.goals[:, place])[counted]
        shares, ranks = of_goal(searched.knobs, searched.places[counted], values)
        frame[f"{goal}_share"] = shares[0]
        frame[[f"{goal}_share_low", f"{goal}_share_high"]] = _ends(shares[1:])
        frame[f"{goal}_rank"] = np.where(np.isnan(shares[0]), np.nan, ranks[0])
        frame[[f"{goal}_rank_low", f"{goal}_rank_high"]] = _ends(ranks[1:])
    frame["mean_share"] = frame[[f"{goal}_share" for goal in searched.names]].mean(axis=1)
    frame = frame.sort_values("mean_share", ascending=False, kind="stable").reset_index(drop=True)
    return Table(
        frame=frame,
        caption=f"Importance of the knobs for each goal, over {trials} trials.",
        notes=_notes(searched, trials, int(lost.sum())),
        columns=(
            names("knob", frame),
            *(column for goal in searched.names for column in _columns(frame, goal)),
        ),
    )


def _ends(resampled: np.ndarray) -> np.ndarray:
    """Return (knobs, 2) ends of 95 % percentile intervals, over the resamples in which all knobs have a value."""
    finite = ~np.isnan(resampled).any(axis=1)
    if not finite.any():
        return np.full((resampled.shape[1], 2), np.nan)
    return np.asarray(np.quantile(resampled[finite], statistics.TAILS, axis=0, method="inverted_cdf").T)


def _columns(frame: pd.DataFrame, goal: str) -> tuple[Column, Column]:
    shares = numbers(frame, f"{goal}_share", 0, scale=100)
    ranks = interval_cells(frame, f"{goal}_rank", 0)
    head = unit_of(goal)[0].removesuffix(" %")
    return Column(f"{head}: share %", shares, keep=8), Column("rank [95 %]", ranks, keep=9)


def _notes(searched: Searched, trials: int, lost: int) -> list[str]:
    best = int(np.ceil(best_share(trials) * trials - 1e-9))
    left_out = len(searched.trials) - trials
    counted = f"{trials - lost} completed trials"
    counted += f" and {lost} that diverged, as the worst" if lost else ""
    counted += f"; {left_out} that were stopped or failed are left out" if left_out else ""
    notes = [
        f"Share: how unlike a knob's values among the best {best} trials are to those among all (PED-ANOVA, Watanabe "
        f"et al. 2023), of the sum over knobs. Counted: {counted}.",
        f"Rank [95 %]: percentile interval, the trials drawn anew {RESAMPLES:,} times. Knobs whose intervals overlap "
        "are not told apart. It is about where this search looked, and knobs that work only together share the credit.",
    ]
    if trials < ENOUGH:
        notes.append(f"With {trials} trials this is a hint: ranks settle with {ENOUGH} or more.")
    return notes


def slices(searched: Searched, columns: list[int]) -> "Figure":
    """Draw every completed trial: each knob (columns: places among the search's) against each goal (rows).

    Later trials are lighter, and those on a front of two goals are ringed.
    """
    columns = columns[:SLICED]
    complete, ringed = searched.complete, searched.on_front & (len(searched.names) == 2)
    drawn = np.arange(len(complete))
    with style():
        rows, wide = len(searched.names), len(columns)
        shape = {"nrows": rows, "ncols": wide, "sharex": "col", "sharey": "row", "squeeze": False}
        figure, panels = new_figure(min(WIDTH, 1.5 * wide + 0.7), 1.7 * rows + 0.5, **shape)
        for row, goal in enumerate(searched.names):
            values = searched.signs[row] * searched.goals[:, row] * unit_of(goal)[1]
            for panel, column in zip(panels[row], columns, strict=True):
                x = searched.places[:, column]
                # The axes hold every point, and a file of thousands is half as large where none has a clip of its own.
                panel.scatter(
                    x[complete], values[complete], c=drawn[complete], cmap="cividis", s=14, linewidths=0, alpha=0.9,
                    clip_on=False,
                )  # fmt: skip
                panel.plot(
                    x[ringed], values[ringed], "o", markerfacecolor="none", markeredgecolor=VERMILLION, markersize=6,
                    linestyle="none",
                )  # fmt: skip
                panel.grid()
            panels[row, 0].set_ylabel(unit_of(goal)[0])
        for panel, column in zip(panels[-1], columns, strict=True):
            _knob_axis(panel, searched.knobs[column])
    return figure


def _knob_axis(axes: "Axes", knob: Knob) -> None:
    """Draw a knob's scale, range, ticks and name below a panel."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    if knob.scale == "log":
        axes.set_xscale("log")
        # Small panels: few ticks, each with its value; within a decade there would be none without those between.
        between = (1.0,) if knob.high >= 30 * knob.low else (1.0, 2.0, 5.0)
        axes.xaxis.set_major_locator(LogLocator(subs=between, numticks=3))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if knob.scale == "choice":
        axes.set_xticks(range(len(knob.options)), [plain(option) for option in knob.options])
        axes.set_xlim(-0.5, len(knob.options) - 0.5)
    else:
        axes.set_xlim(*knob.at(np.array([-0.04, 1.04])))
    axes.set_xlabel(plain(knob.name), fontsize=8)
    axes.xaxis.set_tick_params(labelsize=7)
