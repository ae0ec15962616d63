"""What earlier runs know of a search: their finished trials, where this experiment would have run the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from slime_ray.config.experiment import Experiment
from slime_ray.config.judge import outcome_settings
from slime_ray.config.points import Point, Search, path_of, value_at
from slime_ray.config.presets import flat
from slime_ray.config.settings import Settings
from slime_ray.config.space import Dimension, Scalar
from slime_ray.config.strict import located
from slime_ray.errors import InputError
from slime_ray.runs import results
from slime_ray.runs.pareto import best_rows
from slime_ray.runs.redaction import strip_credentials
from slime_ray.runs.stability_v1 import STABILITY_VERSION
from slime_ray.runs.store import is_url, local_folder

DATA_HASHES = ("sft_checkpoint", "train_ids", "held_out", "prompts_selection")
"""Hashes of what trials are trained on and measured by."""


@dataclass(frozen=True)
class Observation:
    """A point whose goals are known beforehand. source: where from. excesses: by how much it breaks each constraint."""

    source: str
    point: Point
    values: tuple[float, ...]
    excesses: tuple[float, ...] = ()


@dataclass(frozen=True)
class EarlierTrials:
    """What is taken over from one run. hashes: of its data, by which it is compared once this run's are known."""

    run: str
    hashes: dict[str, str]
    trials: list[Observation]
    outside: int

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "EarlierTrials":
        """Read what the manifest of a run keeps: the fields as a mapping."""
        return TypeAdapter(cls).validate_python(fields)

    def __str__(self) -> str:
        note = f"; {self.outside} more lie outside this space" if self.outside else ""
        return f"{len(self.trials)} trials of {self.run} are known to the search{note}."


def earlier_runs(experiment: Experiment) -> list[EarlierTrials]:
    """What the runs that `start_from` names have. Raises InputError where one cannot be used, with the reason."""
    if experiment.search is None:
        return []
    return [_read_run(experiment, experiment.search, start.run, start.best) for start in experiment.search.earlier_runs]


def refuse_other_data(earlier: list[EarlierTrials], hashes: Mapping[str, str]) -> None:
    """Raise InputError where an earlier run had other data, or another SFT checkpoint, than this one."""
    for run in earlier:
        for name in DATA_HASHES:
            if run.hashes.get(name) != hashes.get(name):
                raise InputError(
                    f"start_from: {run.run} had another {name.replace('_', ' ')} than this run has, so its trials say "
                    "nothing about this one's. Leave it out."
                )


def _read_run(experiment: Experiment, search: Search, address: str, best: int | None) -> EarlierTrials:
    source = strip_credentials(address) if is_url(address) else address
    try:
        run = local_folder(address if is_url(address) else located(address))
    except ValueError as error:
        raise InputError(f"start_from: {error}.") from None
    manifest = results.read_manifest(run)
    rows = [row for row in results.finished_trials(run).values() if row.get("phase") == "search"]
    completed = [row for row in rows if row.get("status") == "completed"]
    points: dict[str, Point] = {}
    for row in completed:
        _check_measures(experiment, source, row)
        if (point := _point(experiment, search, source, row)) is not None:
            points[row["trial_id"]] = point
    outside = len(completed) - len(points)
    if not points:
        reason = f"{outside} lie outside this space" if outside else "it has no completed trial of a search"
        raise InputError(f"start_from: nothing of {source} can be used: {reason}. Widen the space, or leave it out.")
    inside = [row for row in completed if row["trial_id"] in points]
    best_trials = best_rows(inside, experiment.goals, experiment.limits)[:best]
    trials = [
        Observation(
            f"{source}/{row['trial_id']}",
            points[row["trial_id"]],
            tuple(float(row[goal]) for goal in experiment.goals),
            tuple(limit.excess(row) for limit in experiment.limits),
        )
        for row in best_trials
    ]
    return EarlierTrials(source, dict(manifest.get("hashes") or {}), trials, outside)


def _check_measures(experiment: Experiment, source: str, row: Mapping[str, Any]) -> None:
    for goal in experiment.goals:
        if not isinstance(row.get(goal), (int, float)):
            raise InputError(f"start_from: {source} has no {goal}, which is a goal here. Leave it out.")
    measures = {"judge": experiment.settings.judge_identity, "stability_version": STABILITY_VERSION}
    for name, value in measures.items():
        if row.get(name) != value and (name != "judge" or "win_rate" in experiment.goals):
            raise InputError(
                f"start_from: {source} was measured with {name} {row.get(name)}, which is {value} here. Leave it out."
            )


def _point(experiment: Experiment, search: Search, source: str, row: Mapping[str, Any]) -> Point | None:
    """Where in the space a trial of another run lies, None outside; this experiment would compute the same there.

    Raises InputError where it would not.
    """
    try:
        settings = Settings.model_validate_json(row["settings"])
    except ValidationError:
        raise InputError(f"start_from: {source} was written by another version of slime_ray. Leave it out.") from None

    def pick(name: str, dimension: Dimension) -> Scalar:
        value = value_at(settings, path_of(name))
        if not dimension.contains(value):
            raise LookupError
        return dimension.snap(value)

    try:
        point = search.walk(pick)
    except LookupError:
        return None
    new = flat(outcome_settings(experiment.settings_with(point).model_dump(mode="json")))
    old = flat(outcome_settings(json.loads(row["settings"])))
    for path in sorted({*old, *new}):
        if old.get(path) != new.get(path):
            raise InputError(
                f"start_from: {row['trial_id']} of {source} had {path} = {old.get(path)}, which is {new.get(path)} "
                "here and is not searched: its result says nothing about this experiment. Set the same, or leave the "
                "run out."
            )
    return point
