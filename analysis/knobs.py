"""The knobs that a run searched, and what its trials came to: arrays for importance, fronts, budgets and figures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from slime_ray.runs import results

from .rows import FINISHED

UNITS = {"win_rate": ("win rate %", 100.0, 1), "preference_accuracy": ("acc. %", 100.0, 1)}
"""How a goal is shown where not as it is: head, factor, digits."""


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
        """(trials,) where each trial stands: its value, or the place of its option; NaN where it has no such knob."""
        if self.scale == "choice":
            known = {option: float(place) for place, option in enumerate(self.options)}
            return np.array([np.nan if value is None else known[_written(value)] for value in _read(column)])
        return np.array([np.nan if value is None else float(value) for value in _read(column)])

    def unit(self, places: np.ndarray) -> np.ndarray:
        """Places as shares of the range, on the knob's own scale: 0 at its low end, 1 at its high end."""
        low, high = self.low, self.high
        if self.scale == "log":
            places, low, high = np.log(places), np.log(low), np.log(high)
        return np.asarray((places - low) / (high - low)) if high > low else np.zeros_like(places)

    def at(self, shares: np.ndarray) -> np.ndarray:
        """The places at these shares of the range, the reverse of `unit`."""
        if self.scale == "log":
            return np.asarray(np.exp(np.log(self.low) + shares * (np.log(self.high) - np.log(self.low))))
        return self.low + shares * (self.high - self.low)

    def said(self, place: float) -> str:
        """The value at a place, in words."""
        return self.options[int(place)] if self.scale == "choice" else f"{place:.3g}"


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

    @classmethod
    def of(cls, run: results.Run) -> "Searched":
        """Of a run that did not search it has no trials."""
        trials = run.trials[run.trials["phase"] == "search"].sort_values("trial_id", kind="stable")
        trials = trials.reset_index(drop=True)
        named = {name: way for name, way in (run.manifest.get("goals") or {}).items() if name in trials.columns}
        signs = [-1.0 if way == "minimize" else 1.0 for way in named.values()]
        knobs = knobs_of(run, trials)
        places = [knob.places(trials[results.KNOB + knob.path]) for knob in knobs]
        return cls(
            trials=trials,
            knobs=knobs,
            places=np.column_stack(places) if places else np.empty((len(trials), 0)),
            names=tuple(named),
            ways=tuple(named.values()),
            goals=trials[list(named)].to_numpy(dtype=float) * signs,
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

    def shown(self, goal: int) -> np.ndarray:
        """(trials,) a goal as figures show it: in its own direction and unit; NaN where a trial is not complete."""
        values = self.signs[goal] * self.goals[:, goal] * unit_of(self.names[goal])[1]
        return np.where(self.complete, values, np.nan)


def knobs_of(run: results.Run, trials: pd.DataFrame) -> tuple[Knob, ...]:
    """The knobs that took more than one value in these trials, in the order of the experiment's space."""
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


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Each path's last word; the whole path where two have the same one."""
    short = {path: path.rpartition(".")[2] for path in paths}
    return short if len(set(short.values())) == len(short) else {path: path for path in paths}


def unit_of(goal: str) -> tuple[str, float, int]:
    """How a goal is shown: its head, the factor on its values, and digits."""
    return UNITS.get(goal, (goal.replace("_", " "), 1.0, 2))


def _knob(path: str, name: str, spec: Any, column: pd.Series) -> Knob:
    """From the dimension as the manifest keeps it; from the values where they do not fit it, or it is not known."""
    spec = spec if isinstance(spec, dict) else {}
    values = [value for value in _read(column) if value is not None]
    if spec.get("choice") is not None or not all(map(_is_number, values)):
        options = [_written(option) for option in spec.get("choice") or []]
        options += sorted({_written(value) for value in values} - set(options))
        return Knob(path, name, "choice", 0.0, len(options) - 1.0, 1.0, tuple(options))
    # `choice` is none here; what else a dimension says, such as a step or a condition, is no range.
    kind = next((key for key, value in spec.items() if _is_range(value)), "")
    ends = [float(value) for value in [*spec.get(kind, ()), *values]]
    low, high, step = min(ends), max(ends), spec.get("step")
    if step is None and "integer" in kind:
        step = 1
    log = low > 0 and ("log" in kind or spec.get("log") is True)
    return Knob(path, name, "log" if log else "linear", low, high, float(step) if _is_number(step) else None)


def _read(column: pd.Series) -> list[Any]:
    """The values of a knob's column, which holds JSON where not all are numbers; None where a trial has none."""
    if pd.api.types.is_numeric_dtype(column):
        return [None if pd.isna(value) else value for value in column]
    return [None if pd.isna(value) else json.loads(value) for value in column]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_range(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))


def _written(value: Any) -> str:
    """An option as text; numbers that are equal are the same option, whether 8 or 8.0 was written."""
    if isinstance(value, str):
        return value
    return f"{value:.12g}" if _is_number(value) else json.dumps(value, ensure_ascii=False, sort_keys=True)
