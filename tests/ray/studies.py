"""Studies of a small search: opened, asked and told, in a file or a database; and plans over such studies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from slime_ray.config.experiment import Experiment, Search
from slime_ray.config.points import with_values
from slime_ray.config.presets import preset_base
from slime_ray.on_ray.plan import TrialPlan, own_rows, seed_of
from slime_ray.on_ray.search import StudySearch, study_storage

BASE = preset_base("arithmetic")
GOALS = {"win_rate": "maximize", "stability": "maximize"}
SPACE = {
    "objective.hard_margin": {"uniform": [0.5, 3.0]},
    "objective.soft_margin": {"uniform": [0.1, 2.0]},
    "objective.stabilizer_strength": {"log_uniform": [1e-4, 0.3]},
    "training.pairs_per_update": {"integer": [8, 16]},
    "training.schedule": {"choice": ["linear", "cosine"]},
}
KNOWN = {
    "objective.hard_margin": 1.5,
    "objective.soft_margin": 1.0,
    "objective.stabilizer_strength": 0.1,
    "training.pairs_per_update": 16,
    "training.schedule": "cosine",
}


def in_database(path: Path) -> BaseStorage:
    return study_storage(path, f"sqlite:///{path}/study.db")


place: Callable[[Path], BaseStorage] = study_storage
"""Where studies are opened, which the fixture `backend` sets."""


def search_over(space=SPACE, require=("objective.soft_margin <= objective.hard_margin",), known=(KNOWN,)) -> Search:
    return Search.model_validate({"dimensions": space, "require": list(require), "known_points": list(known)})


def open_search(path: Path, *, search: Search | None = None, goals=GOALS, **known: Any) -> StudySearch:
    return StudySearch(
        search=search or search_over(),
        base=BASE,
        goals=goals,
        storage=place(path),
        trials=16,
        **{"seed": 0, **known},
    )


def ask(search: StudySearch, trial_id: str) -> dict[str, Any] | None:
    """The point of a trial that is begun."""
    begun = search.ask([trial_id])
    return begun and begun[1]


def row(point: Any, **result: Any) -> dict[str, Any]:
    """A finished trial of the search, as a resumed sweep reads it."""
    return {"phase": "search", "values": dict(point), **(result or finished())}


def finished(win: float = 0.6, stability: float = 0.9, status: str = "completed") -> dict:
    return {"win_rate": win, "stability": stability, "status": status}


def states(search: StudySearch) -> list[TrialState]:
    return [trial.state for trial in search.study.get_trials(deepcopy=False)]


def play(search: StudySearch, names: str) -> dict[str, dict[str, Any]]:
    """Trials one at a time; returns their rows."""
    rows = {}
    for name in names:
        point = ask(search, name)
        assert point is not None
        result = finished(win=point["objective.hard_margin"] / 4)
        search.tell(name, result)
        rows[name] = row(point, **result)
    return rows


def completed(search: StudySearch) -> dict[str, list[float]]:
    """Values of every completed entry by id; fails where an id has two."""
    entries = search.study.get_trials(states=(TrialState.COMPLETE,))
    names = [entry.user_attrs["trial_id"] for entry in entries]
    assert len(set(names)) == len(names)
    return {name: entry.values for name, entry in zip(names, entries, strict=True)}


def plan_for(
    experiment: Experiment, folder: Path, rows: dict[str, Any] | None = None, lost: dict[str, Any] | None = None
) -> TrialPlan:
    """The plan of an experiment over some rows, with its studies in a folder."""
    rows, storage = rows or {}, study_storage(folder)
    studies = {
        part.label: StudySearch(
            search=part.search, base=with_values(experiment.base, part.set), goals=experiment.goals, storage=storage,
            name=f"study-{part.label}", trials=part.trials, seed=seed_of(part.label, 0), rows=own_rows(part, rows),
            lost=lost or {},
        )
        for part in experiment.searches
    }  # fmt: skip
    return TrialPlan(experiment, studies=studies, rows=rows, seed=0)
