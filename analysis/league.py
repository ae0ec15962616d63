"""A league as it was measured: its winners, and who is told apart from whom.

A rank's interval follows from the tests of its entry against every other one: as many ranks from the top as others do
significantly better, as many from the bottom as do worse (Mogstad et al. 2024). Resampling the ranks themselves covers
too little where methods are close.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd

from slime_ray.config.league import Entry, League, entry_of
from slime_ray.runs import results
from slime_ray.runs.pareto import winners

from . import effects, rows, statistics
from .effects import Claim
from .knobs import constraints_of, keeping
from .printing import Table
from .rows import FINISHED, Outcomes

Pair = tuple[str, str]
"""Labels of two entries."""


@dataclass(frozen=True)
class Member:
    """An entry as it was measured. trials: of its search. winner: the best of them; None where none completed."""

    entry: Entry
    trials: pd.DataFrame
    winner: str | None


@dataclass(frozen=True)
class Standings:
    """What a league's tables are made of.

    main: win_rate_stability(run). rate, outcomes, topics: what leads, of all rows, as `rows.rates_by_label` has it.
    """

    run: results.Run
    league: League
    main: Table
    rate: str
    outcomes: dict[str, Outcomes]
    topics: np.ndarray | None

    @classmethod
    def by_checkpoint(cls, run: results.Run, main: Table) -> "list[Standings]":
        """Return the standings from each SFT checkpoint, each by itself; none where the run is no league."""
        league = League.of(run.manifest)
        if league is None:
            return []
        rated = rows.rates_by_label(run)
        return [cls(run, each, main, *rated) for each in [*map(league.at, league.sft_seeds)] or [league]]

    @property
    def sft_seed(self) -> int | None:
        """Of the SFT checkpoint, where the league is run across several."""
        return self.league.entries[0].sft_seed

    @cached_property
    def members(self) -> dict[str, Member]:
        """By label, in the order of the league."""
        searched = self.run.trials[self.run.trials["phase"] == "search"]
        of = searched["trial_id"].map(entry_of)
        goals = self.run.manifest.get("goals") or {}
        members = {}
        for entry in self.league.entries:
            trials = searched[of == entry.label]
            records = [{str(key): value for key, value in row.items()} for row in trials.to_dict("records")]
            best = winners(records, goals, constraints_of(self.run.manifest))
            members[entry.label] = Member(entry, trials, str(best[0]["trial_id"]) if best else None)
        return members

    def interval(self, outcomes: Outcomes | None) -> statistics.Interval | None:
        """Return a row's rate with its interval; None where it has no outcomes."""
        return None if outcomes is None else statistics.row_interval(outcomes[1], self.topics)

    def of_entry(self, label: str, ending: str = "") -> Outcomes | None:
        """Return the confirmed outcomes of an entry's winner, or of its defaults."""
        winner = self.members[label].winner
        return None if winner is None else self.outcomes.get(winner + ending)

    @cached_property
    def confirmed(self) -> dict[str, Outcomes]:
        """The outcomes of every winner that has some, by entry."""
        return {label: outcomes for label in self.members if (outcomes := self.of_entry(label)) is not None}

    def searched(self, label: str) -> np.ndarray:
        """Return (trials,) rates of an entry's search, the worst for trials that may not win; none if none may."""
        trials = self.members[label].trials
        may_win = (trials["status"] == FINISHED) & trials.index.isin(keeping(self.run, trials).index)
        values = trials[self.rate].where(may_win).to_numpy(dtype=float)
        finite = np.isfinite(values)
        return np.where(finite, values, values[finite].min()) if finite.any() else values[:0]

    @cached_property
    def differences(self) -> dict[Pair, np.ndarray | None]:
        """Every pair's paired outcomes, one minus the other, on the seeds and prompts that both have."""
        # As in the table, whatever seeds lack verdicts on which prompts.
        means = {
            label: np.nanmean(statistics.prompt_means(outcomes)) for label, (_, outcomes) in self.confirmed.items()
        }
        order = sorted(means, key=lambda label: -means[label])
        return {pair: rows.difference(*(self.confirmed[label] for label in pair)) for pair in combinations(order, 2)}

    @cached_property
    def claims(self) -> dict[Pair, Claim]:
        """What may be claimed of the pairs, corrected over all of them."""
        topics = {
            pair: rows.shared_topics([self.confirmed[label] for label in pair], self.topics)
            for pair, d in self.differences.items()
            if d is not None
        }
        return effects.claims(self.differences, topics)

    @cached_property
    def scores(self) -> dict[str, Outcomes]:
        """Stabilities of the confirmed rows, by their label."""
        return rows.stabilities_by_label(self.run.trials[self.run.trials["phase"] == "confirm"])

    def stability_difference(self, entry: str, rival: str, ending: str = "") -> np.ndarray | None:
        """Return (seeds,) S of an entry's winner minus a rival's, or its own defaults', on common seeds."""
        first, second = (self.members[label].winner for label in (entry, rival))
        if first is None or second is None or not {first, second + ending} <= self.scores.keys():
            return None
        return rows.difference(self.scores[first], self.scores[second + ending])

    @cached_property
    def stability_claims(self) -> dict[Pair, Claim]:
        """What may be claimed of the pairs' stability, corrected over all of them."""
        return effects.claims({pair: self.stability_difference(*pair) for pair in self.differences})

    @cached_property
    def ranks(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest rank at 95 % of every entry that was confirmed."""
        return ranks({pair: self.claims.get(pair) for pair in self.differences})

    @property
    def few(self) -> int:
        """The fewest common seeds of a pair, where no pair has enough to speak of a method; else 0."""
        seeds = [claim.seeds for claim in self.claims.values()]
        return min(seeds) if seeds and all(claim.of_checkpoints for claim in self.claims.values()) else 0

    @cached_property
    def groups(self) -> dict[str, str]:
        """Letters of every entry: those that share one are not separable."""
        order = list(dict.fromkeys(label for pair in self.differences for label in pair))
        return letters(order, [pair for pair, claim in self.claims.items() if claim.matters])


def ranks(claims: Mapping[Pair, Claim | None]) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest rank of every entry at 95 %, from its comparisons with every other one.

    Two with too few common seeds may stand either way; NaN of what has too few with every other. claims: of every pair
    the first minus the second, more is better; None where they have nothing in common.
    """
    ranks_by_label = {}
    for label in dict.fromkeys(name for pair in claims for name in pair):
        label_claims = {pair: claim for pair, claim in claims.items() if label in pair}
        # The t over seeds and prompts alone would cover 93 % where seeds differ much: docs/benchmarks/statistics.md.
        p_values = [
            np.nan if claim is None or claim.of_checkpoints else max(claim.p_values.values())
            for claim in label_claims.values()
        ]
        lowest, highest = (np.nan, np.nan) if np.isnan(p_values).all() else (1.0, 1.0 + len(label_claims))
        for (pair, claim), p in zip(label_claims.items(), effects.holm(np.array(p_values)), strict=True):
            if claim is not None and p < effects.LEVEL:
                ahead = (claim.difference.value > 0) == (pair[0] == label)
                lowest, highest = lowest + (not ahead), highest - ahead
        ranks_by_label[label] = lowest, highest
    return ranks_by_label


def letters(order: list[str], pairs: list[Pair]) -> dict[str, str]:
    """Return compact letters by name (Piepho 2004); two share one exactly where `pairs` does not have them apart."""
    groups = [frozenset(order)]
    for first, second in pairs:
        split = [group - {member} for group in groups if {first, second} <= group for member in (first, second)]
        intact = [group for group in groups if not {first, second} <= group]
        candidates = list(dict.fromkeys([*intact, *split]))
        groups = [group for group in candidates if not any(group < other_group for other_group in candidates)]
    groups.sort(key=lambda group: sorted(order.index(name) for name in group))
    signs = [f"{string.ascii_lowercase[place % 26]}{place // 26 or ''}" for place in range(len(groups))]
    return {name: "".join(sign for sign, group in zip(signs, groups, strict=True) if name in group) for name in order}
