"""The order of an experiment's trials: the arms, then the search, then the winners again."""

import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from slime_ray.config.experiment import Experiment, Trial, arm_trials
from slime_ray.config.league import DEFAULTS, entry_of
from slime_ray.config.points import SearchPart
from slime_ray.config.settings import fingerprint
from slime_ray.config.strict import LARGEST_SEED
from slime_ray.errors import InputError
from slime_ray.on_ray.search import StudyFailed, StudySearch
from slime_ray.planning.trials import SEARCH_SEED, confirmation_seeds
from slime_ray.runs import results
from slime_ray.runs.instructions import Clone
from slime_ray.runs.pareto import winners
from slime_ray.runs.status import read_status


class SearchPlan:
    """One search of a sweep: which of its trials have yet to run, and its winners again once they have.

    study: its memory. rows: of all trials that have finished, which the plan adds to. seed: of the sweep.
    """

    def __init__(
        self, experiment: Experiment, part: SearchPart, study: StudySearch, rows: dict[str, dict[str, Any]], seed: int
    ):
        self.experiment, self.part, self.study, self.rows, self.seed = experiment, part, study, rows, seed
        self.ids = [name for name in self.trial_ids() if name not in rows]
        self.running: set[str] = set()
        self.has_confirmations = False

    def trial_ids(self) -> list[str]:
        """List ids of the search trials."""
        return [self.part.trial_id(number) for number in range(1, self.part.trials + 1)]

    def trial(self, name: str, values: Mapping[str, Any]) -> Trial:
        """Make a trial of the search and count it as running. values: what it sets over base."""
        self.running.add(name)
        return search_trial(self.experiment, name, values, SEARCH_SEED + self.seed)

    def extend(self, trials: int) -> None:
        """Extend the search by so many trials."""
        ids = {*self.trial_ids(), *self.rows}
        self.part = replace(self.part, trials=self.part.trials + trials)
        # Of a run that was extended before, some of them may have finished.
        self.ids += [name for name in self.trial_ids() if name not in ids]

    def next(self) -> Trial | None:
        """Take the next trial of the search; None where all have begun."""
        if self.ids and (entry := self.study.ask(self.ids)):
            name, point = entry
            self.ids.remove(name)
            return self.trial(name, self.part.values(point))
        self.ids.clear()
        return None

    def confirmations(self) -> list[Trial]:
        """Make the winners' unfinished confirmations, once, when nothing of the search runs any more."""
        if self.ids or self.running or self.has_confirmations:
            return []
        self.has_confirmations = True
        return [
            trial for trial in confirm_trials(self.experiment, self.part, self.rows) if trial.trial_id not in self.rows
        ]

    def missing(self) -> list[str]:
        """List ids of the trials that have yet to finish; confirmations are known once the search has."""
        ids = [name for name in self.trial_ids() if name not in self.rows]
        if ids:
            return ids
        confirmations = confirm_trials(self.experiment, self.part, self.rows)
        return [trial.trial_id for trial in confirmations if trial.trial_id not in self.rows]

    def max_remaining(self) -> int:
        """Count the trials that may still have to run.

        While a search goes on, others may win than those that are confirmed already, clones among them.
        """
        unfinished = {*self.trial_ids(), *self.running} - self.rows.keys()
        if self.has_confirmations or not unfinished:
            return len(self.missing())
        finished = {name for name, row in self.rows.items() if row["phase"] == "search" and self.part.owns(name)}
        rows = replace(self.part, trials=len(unfinished | finished)).rows
        return len(unfinished.intersection(self.trial_ids())) + rows * self.part.seeds

    def end(self, trial: Trial, outcome: Mapping[str, Any], *, clone: bool) -> None:
        """Tell the study how a trial ended. Raises StudyFailed."""
        self.running.discard(trial.trial_id)
        if clone:
            self.study.record(trial.trial_id, self.part.point(trial.values), outcome)
        else:
            self.study.tell(trial.trial_id, outcome)


class TrialPlan(Searcher):
    """Hands Ray Tune one trial after another: one pool of warm actors runs all three phases.

    studies: the memory of each search, by its label. rows: what has finished already, by trial id, as rows of
    trials.parquet; those trials are not run again, so that a plan made over the rows of an interrupted run is that
    run's rest.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        studies: Mapping[str, StudySearch],
        rows: Mapping[str, Mapping[str, Any]],
        seed: int,
    ):
        super().__init__(metric=next(iter(experiment.goals)))
        self.experiment, self.seed = experiment, seed
        self.rows: dict[str, dict[str, Any]] = {name: dict(row) for name, row in rows.items()}
        self.parts = {
            part.label: SearchPlan(experiment, part, studies[part.label], self.rows, seed)
            for part in experiment.searches
            if part.label in studies
        }
        points = {
            name: part.part.values(point) for part in self.parts.values() for name, point in part.study.points.items()
        }
        refuse_other_confirmations(self.rows, points)
        self.by_tune_id: dict[str, Trial] = {}
        self.queue = [trial for trial in arm_trials(experiment) if trial.trial_id not in self.rows]
        self.label_cycle = list(self.parts)
        self.clones: dict[str, Clone] = {}
        self.is_ending = False
        self.failure: StudyFailed | None = None
        self.paused_ids: set[str] = set()

    def part_of(self, trial_id: str) -> SearchPlan | None:
        """Return the search that learns of a trial; none in a league learns of a clone, which is one trial more."""
        return self.parts.get(entry_of(trial_id) or "")

    def add(self, clone: Clone) -> bool:
        """Run a clone before whatever else waits; False where it is known already, or too late for this sweep."""
        if clone.trial_id in self.clones or clone.trial_id in self.rows or self.is_late(clone):
            return False
        self.clones[clone.trial_id] = clone
        part = self.part_of(clone.trial_id)
        make_trial = part.trial if part else partial(search_trial, self.experiment, seed=SEARCH_SEED + self.seed)
        self.queue.insert(0, make_trial(clone.trial_id, clone.values))
        return True

    def is_late(self, clone: Clone) -> bool:
        """Whether a clone could win but not be confirmed any more: it runs when the run is resumed."""
        part = self.part_of(clone.trial_id)
        return bool(part and part.has_confirmations and clone.trial_id not in self.clones.keys() | self.rows.keys())

    def extend(self, trials: int) -> bool:
        """Extend each search by so many trials; False where there is no search, or its winners run again already."""
        parts = list(self.parts.values())
        is_over = any(part.has_confirmations for part in parts) or any(
            row["phase"] == "confirm" for row in self.rows.values()
        )
        if not parts or self.experiment.league is not None or is_over:
            return False
        for part in parts:
            part.extend(trials)
        return True

    def missing(self) -> list[str]:
        """List ids of the trials that have yet to finish; a search's confirmations are known once it has."""
        return self._missing_outside_searches() + [name for part in self.parts.values() for name in part.missing()]

    def _missing_outside_searches(self) -> list[str]:
        arms = [trial.trial_id for trial in arm_trials(self.experiment)]
        return [name for name in [*arms, *self.clones] if name not in self.rows]

    @property
    def total(self) -> int:
        """Number of trials that have finished or may still have to run."""
        remaining = sum(part.max_remaining() for part in self.parts.values())
        return len(self.rows) + len(self._missing_outside_searches()) + remaining

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next trial's configuration; None while it depends on trials that still run."""
        if self.is_ending:
            return Searcher.FINISHED
        if not self.queue:
            # Of the first search that is done, its confirmations come before what others have yet to search.
            confirmations = (trials for part in self.parts.values() if (trials := part.confirmations()))
            self.queue += next(confirmations, []) or self._search()
        if self.queue:
            self.by_tune_id[trial_id] = trial = self.queue.pop(0)
            return {"trial": trial.model_dump(mode="json")}
        at_work = (tune_id for tune_id, trial in self.by_tune_id.items() if trial.trial_id not in self.rows)
        return None if set(at_work) - self.paused_ids else Searcher.FINISHED

    def _search(self) -> list[Trial]:
        """Take the next trial of the searches, which take turns."""
        for label in list(self.label_cycle):
            self.label_cycle.remove(label)
            self.label_cycle.append(label)
            if trial := self.parts[label].next():
                return [trial]
        return []

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignore unfinished trials: nothing is learnt from them here."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Keep the row, and tell the study of a search trial.

        A paused trial has no row yet. Tune would take an error raised here for one of the trial's, and train it again.
        Where the study cannot be told, that is kept in `failure`, and the study hears of the row when the run is gone
        on with.
        """
        trial = self.by_tune_id[trial_id]
        if trial.phase == "search" and (part := self.part_of(trial.trial_id)):
            try:
                part.end(trial, {} if error else result or {}, clone=trial.trial_id in self.clones)
            except StudyFailed as failure:
                self.failure = failure
        if (result or {}).get("status") == "paused":
            self.paused_ids.add(trial_id)
            return
        self.rows[trial.trial_id] = {
            **(result or {}),
            "trial_id": trial.trial_id,
            "phase": trial.phase,
            "values": trial.values,
        }

    def close(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """End every trial that is left running in a study, when none is at work. rows: of all that has finished."""
        for part in self.parts.values():
            part.study.close(rows)

    def __getstate__(self) -> dict[str, Any]:
        """Return no state for a restore of Ray's own, which is never used here."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a resumed sweep is planned from the run's files and the study."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, as in `save`."""


def search_trial(experiment: Experiment, name: str, point: Mapping[str, Any], seed: int) -> Trial:
    """Make one trial of the search, judged on the selection prompts."""
    return Trial(
        trial_id=name,
        phase="search",
        label=name,
        seed=seed,
        prompt_set="selection",
        values=dict(point),
        settings=experiment.settings_with(point),
    )


def confirm_trials(experiment: Experiment, part: SearchPart, rows: Mapping[str, Mapping[str, Any]]) -> list[Trial]:
    """Make the confirmations of a search's best trials, on report prompts.

    They have the table's seeds, and further ones if these are too few. In a league each is followed by its entry's
    defaults at the same learning rate, where these are asked for.
    """
    # A winner that equals an arm stands in the table already, with these seeds. A league's entry has a row of its own.
    arms = [] if part.label else experiment.arms
    arm_fingerprints = {fingerprint(experiment.settings_with(arm.set)) for arm in arms}
    search_rows = [row for row in rows.values() if row["phase"] == "search"]
    part_rows = [row for row in search_rows if part.owns(row["trial_id"])]
    best = [
        row
        for row in winners(part_rows, experiment.goals, experiment.limits)
        if fingerprint(experiment.settings_with(row["values"])) not in arm_fingerprints
    ][: part.best]
    cells: list[tuple[str, Mapping[str, Any]]] = []
    for row in best:
        cells.append((row["trial_id"], row["values"]))
        values = part.default_values(row["values"])
        if values is not None and values != row["values"]:
            cells.append((row["trial_id"] + DEFAULTS, values))
    return [
        Trial(
            trial_id=f"confirm-{label}-s{seed}",
            phase="confirm",
            label=label,
            seed=seed,
            prompt_set="report",
            values={**values},
            settings=experiment.settings_with(values),
        )
        for label, values in cells
        for seed in confirmation_seeds(experiment, part)
    ]


def refuse_other_confirmations(rows: Mapping[str, Mapping[str, Any]], points: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise InputError for a confirmation of other knobs than its trial has: it confirms a point, not an id."""
    for name, row in rows.items():
        trial = str(row.get("label")) if row["phase"] == "confirm" else ""
        values = rows[trial]["values"] if trial in rows else points.get(trial)
        if values is not None and row["values"] != values:
            raise InputError(
                f"trials/{name} was trained with {row['values']}, but {trial} has {values}: it confirms another point. "
                "Delete its folder to have the trial's own confirmed."
            )


def own_rows(part: SearchPart, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Select the rows of one search's trials, with their points' values alone."""
    return {name: {**row, "values": part.point(row["values"])} for name, row in rows.items() if part.owns(name)}


def seed_of(label: str, seed: int) -> int:
    """Return a search's seed. An entry's follows from its label, so that no other entry changes its draws."""
    return seed if not label else (seed + zlib.crc32(label.encode())) % LARGEST_SEED


def lost_values(run: Path, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Find, in other files of the run, what search trials without a result set over base, by id."""
    confirmed = [row for row in rows.values() if row["phase"] == "confirm" and not row["label"].endswith(DEFAULTS)]
    lost = {row["label"]: row["values"] for row in confirmed}
    lost |= {name: state.get("values") or {} for name, state in read_status(run).trials.items()}
    with suppress(InputError, ValueError, TypeError):
        old_rows = results.read_table(run, "trials").select(["trial_id", "overrides"]).to_pylist()
        lost |= {row["trial_id"]: json.loads(row["overrides"]) for row in old_rows}
    return {name: values for name, values in lost.items() if name.startswith("search-") and name not in rows}
