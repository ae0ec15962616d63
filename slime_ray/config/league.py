"""A league: objectives compared at an equal tuning budget. Data alone: a run's manifest carries it to the tables."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from slime_ray.config.strict import SFT_SEED, Positive, Strict, at_checkpoint

LEARNING_RATE = "training.learning_rate"
DEFAULTS = "-defaults"
"""Ends the label of an entry's published values at its winner's learning rate."""
_SEARCH_ID = re.compile(r"search-(?:(?P<label>.+)-)?(?P<number>\d{4,})(?P<clone>-clone-\d+)?")


class Entry(Strict):
    """One method of a league: an objective, and the space that it is tuned in.

    label: names it in tables. objective: by its name. set: what it sets over base. search: a Search as plain values,
    the learning rate among its dimensions. defaults: values of the knobs that are searched, as `set`
    gives them, or else as the objective has them. sft_seed: of the SFT checkpoint that it starts from, where the league
    is run across several; then its label ends by it.
    """

    label: str
    objective: str
    set: dict[str, Any]
    search: dict[str, Any]
    defaults: dict[str, Any]
    sft_seed: int | None = None

    @property
    def method(self) -> str:
        """The label without the checkpoint."""
        return self.label if self.sft_seed is None else self.label.removesuffix(at_checkpoint("", self.sft_seed))


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
        return [entry.model_dump(mode="json", exclude={"sft_seed"}) for entry in self.entries]

    @property
    def sft_seeds(self) -> list[int]:
        """Seeds of the SFT checkpoints that it is run across; none where it is run from one."""
        return list(dict.fromkeys(entry.sft_seed for entry in self.entries if entry.sft_seed is not None))

    def across(self, seeds: Sequence[int]) -> "League":
        """The league with every entry at every checkpoint."""
        entries = []
        for seed in seeds:
            for entry in self.entries:
                changes = {"label": at_checkpoint(entry.label, seed), "set": {**entry.set, SFT_SEED: seed}}
                entries.append(entry.model_copy(update={**changes, "sft_seed": seed}))
        return self.model_copy(update={"entries": entries})

    def at(self, sft_seed: int) -> "League":
        """The entries of one checkpoint."""
        return self.model_copy(update={"entries": [entry for entry in self.entries if entry.sft_seed == sft_seed]})

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "League | None":
        """The league that a run's manifest keeps; None where the run is none."""
        league = (manifest.get("experiment") or {}).get("league")
        return None if league is None else cls.model_validate(league)


def weights_at(sft_seed: int) -> str:
    """Under which of a manifest's hashes the weights of a further SFT checkpoint stand."""
    return f"sft_weights.{sft_seed}"


def entry_of(trial_id: str) -> str | None:
    """Label of the entry whose budget a search trial is of, "" where there are none.

    None for another id, and for a clone in a league: it is a trial more than other entries have.
    """
    match = _SEARCH_ID.fullmatch(trial_id)
    return None if match is None or (match["label"] and match["clone"]) else match["label"] or ""
