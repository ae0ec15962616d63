"""A league: objectives compared at an equal tuning budget. Data alone: a run's manifest carries it to the tables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from slime_ray.config.points import Search, path_of
from slime_ray.config.settings import Positive, Strict
from slime_ray.config.space import Scalar

LEARNING_RATE = "training.learning_rate"
DEFAULTS = "-defaults"
"""Ends the label of an entry's published values at its winner's learning rate."""
_SEARCH_ID = re.compile(r"search-(?:(?P<label>.+)-)?(?P<number>\d{4,})(?P<clone>-clone-\d+)?")


class Entry(Strict):
    """One method of a league: an objective, and the space that it is tuned in.

    label: names it in tables. objective: by its name. set: what it sets over base. search: its space, the learning rate
    among its dimensions. defaults: the objective's own values of the knobs that are searched.
    """

    label: str
    objective: str
    set: dict[str, Any]
    search: Search
    defaults: dict[str, Scalar]


class League(Strict):
    """Entries with the same budget each.

    trials: of each entry's search. seeds: that each winner is confirmed with. defaults: whether each entry's defaults
    are run as well, at its winner's learning rate and with the same seeds. rule: how winners are chosen, in a sentence.
    """

    entries: list[Entry] = Field(min_length=2)
    trials: Positive
    seeds: Positive
    defaults: bool = False
    rule: str

    def entry(self, label: str) -> Entry:
        """The entry of this label. Raises KeyError."""
        return next(entry for entry in self.entries if entry.label == label)

    @property
    def content(self) -> list[dict[str, Any]]:
        """What trials follow from: the entries. More of them, or more trials and seeds, change none of the others."""
        return [entry.model_dump(mode="json") for entry in self.entries]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "League | None":
        """The league that a run's manifest keeps; None where the run is none."""
        league = (manifest.get("experiment") or {}).get("league")
        return None if league is None else cls.model_validate(league)


@dataclass(frozen=True)
class SearchPart:
    """One search of an experiment: all of it, or a league's entry.

    label: of the entry, "" where the experiment has one search. set: what all its trials set over base. best, seeds:
    winners that are confirmed, and with how many seeds. entry: of a league.
    """

    label: str
    set: Mapping[str, Any]
    search: Search
    trials: int
    best: int
    seeds: int
    entry: Entry | None = None
    defaults: bool = False

    def trial_id(self, number: int) -> str:
        """Id of its nth trial, from 1."""
        return f"search-{self.label}-{number:04d}" if self.label else f"search-{number:04d}"

    def values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial at a point sets over base."""
        return {**self.set, **point}

    def point(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The point of such a trial."""
        searched = {path_of(name) for name in self.search.dimensions}
        return {path: value for path, value in values.items() if path in searched or path not in self.set}

    def default_values(self, winner: Mapping[str, Any]) -> dict[str, Any] | None:
        """The entry's published values at its winner's learning rate; None where they are not asked for."""
        if self.entry is None or not self.defaults:
            return None
        return {**winner, **self.entry.defaults}


def entry_of(trial_id: str) -> str | None:
    """Label of the entry that a search trial is of; "" where there are none, and None for another id."""
    match = _SEARCH_ID.fullmatch(trial_id)
    return None if match is None else match["label"] or ""
