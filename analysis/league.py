"""A league as it was measured: its winners, who is told apart from whom, the table of its entries and its sentences.

A rank's interval follows from the tests of its entry against every other one: as many ranks from the top as others do
significantly better, as many from the bottom as do worse (Mogstad et al. 2024). Resampling the ranks themselves covers
too little where methods are close.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.config.league import LEARNING_RATE, Entry, League, entry_of
from slime_ray.runs import results
from slime_ray.runs.pareto import winners

from . import effects, rows, statistics
from .effects import Claim
from .front import expected_best
from .printing import ABSENT, Column, Sentences, Table, cells, interval_cells, names, number, numbers, short, unit_of
from .rows import FINISHED, Outcomes, basis, keeping
from .stability import stability_cell

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
        rates_and_topics = rows.rates_by_label(run)
        return [cls(run, each, main, *rates_and_topics) for each in [*map(league.at, league.sft_seeds)] or [league]]

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
            best = winners(records, goals, rows.constraints_of(self.run.manifest))
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


def standings(standings: Standings) -> Table:
    """Return a row per entry, the best first; what has no confirmed winner is last, with its reason."""
    main_rows = standings.main.by("label")
    frame = pd.DataFrame([_standing(standings, member, main_rows) for member in standings.members.values()])
    frame = frame.sort_values([standings.rate, "entry"], ascending=[False, True], na_position="last", ignore_index=True)
    frame["rank"] = frame[standings.rate].rank(ascending=False, method="min").where(frame["rank_low"].notna())
    rate = unit_of(standings.rate)[0]
    measured = f"{rate} against {rows.baseline_of(standings.run)}'s answers, judge {rows.judge_of(standings.run)}"
    return Table(
        frame=frame,
        caption=f"{rows.name_of(standings.run)}: {len(frame)} entries, {standings.league.trials} tuning trials each, "
        f"winners confirmed with {standings.league.seeds} seeds on other prompts. "
        + (f"{measured}." if standings.rate == "win_rate" else f"Not judged: {rate} on held-out pairs leads instead."),
        notes=_notes(standings, frame),
        columns=(
            names("entry", frame),
            Column(f"{rate} [95 %]", interval_cells(frame, standings.rate, 1, scale=100), keep=9),
            names("not separable", frame, "letters", keep=9),
            Column("rank [95 %]", interval_cells(frame, "rank", 0), keep=8),
            Column("stability S [95 %]", cells(frame, stability_cell), keep=8),
            Column("learning rate", cells(frame, lambda row: short(row["learning_rate"])), keep=6),
            Column("seeds", cells(frame, lambda row: f"{row['seeds_finished']:.0f}/{row['seeds']:.0f}"), keep=5),
            Column("tuned", cells(frame, lambda row: f"{row['completed']:.0f}/{row['trials']:.0f}"), keep=5),
            Column("tokens", cells(frame, lambda row: f"{row['tokens']:,.0f}"), keep=4),
            Column("worker-min", numbers(frame, "seconds", 1, scale=1 / 60), keep=4),
            Column("verdicts", cells(frame, lambda row: f"{row['verdicts']:,}"), keep=3),
            Column("winner", cells(frame, lambda row: row["winner"] or ABSENT), numeric=False, keep=3),
        ),
        remarks=tuple(frame["note"]),
    )


def _standing(standings: Standings, member: Member, main_rows: Mapping[Any, Any]) -> dict[str, Any]:
    label, winner = member.entry.label, member.winner
    row = main_rows.get(winner, {})
    ends = statistics.interval_names("win_rate", "stability")
    columns = ["preference_accuracy", "stability_min", "stability_max", "seeds_finished", "seeds"]
    low, high = standings.ranks.get(label, (np.nan, np.nan))
    trials = standings.run.trials
    entry_trials = trials[(trials["trial_id"].map(entry_of) == label) | (trials["label"] == winner)]
    of_answers = standings.run.answers[standings.run.answers["trial_id"].isin(entry_trials["trial_id"])]
    rate = results.KNOB + LEARNING_RATE
    chosen = member.trials[member.trials["trial_id"] == winner]
    values = {name: row.get(name, np.nan) for name in [*ends, *columns]}
    if standings.rate == "preference_accuracy":
        values |= statistics.columns({"preference_accuracy": standings.interval(standings.of_entry(label))})
    return {
        "entry": label,
        "objective": member.entry.objective,
        **values,
        "letters": standings.groups.get(label, ""),
        "rank_low": low,
        "rank_high": high,
        "learning_rate": float(chosen[rate].iloc[0]) if len(chosen) and rate in chosen else np.nan,
        "winner": winner or "",
        "completed": int((member.trials["status"] == FINISHED).sum()),
        "trials": standings.league.trials,
        "tokens": int(entry_trials["tokens"].fillna(0).sum()),
        "seconds": float((entry_trials["total_seconds"].fillna(0) * entry_trials["workers"].fillna(1)).sum()),
        "verdicts": int(of_answers[["verdict_ab", "verdict_ba"]].count().sum()),
        "note": _note(member, row),
    }


def _note(member: Member, row: Mapping[str, Any]) -> str:
    completed = (member.trials["status"] == FINISHED).any()
    cause = "no completed trial keeps the constraints" if completed else "no trial completed"
    remarks = [] if row else ["no confirmed winner" if member.winner else cause]
    for status, ended in member.trials[member.trials["status"] != FINISHED].groupby("status"):
        reasons = list(dict.fromkeys(str(reason) for reason in ended["reason"].dropna()))
        more = f", and {len(reasons) - 1} more reasons" if len(reasons) > 1 else ""
        remarks.append(f"tuning: {status} {len(ended)}: {reasons[0] if reasons else 'no reason was recorded'}{more}")
    return "; ".join([*remarks, *filter(None, [main_note(row)])])


def main_note(row: Mapping[str, Any]) -> str:
    """Return a main table row's note, without what it says of all confirmed rows."""
    return str(row.get("note") or "").removeprefix("confirmed").lstrip("; ")


def _notes(standings: Standings, frame: pd.DataFrame) -> list[str]:
    notes = [f"How winners were chosen: {standings.league.rule}."]
    if standings.few:
        notes += [*rows.few_seeds_notes([standings.few]), "Nothing is separated, and no rank is given."]
    else:
        notes.append(
            "not separable: entries that share a letter are not told apart, by all tests below "
            f"{effects.LEVEL} after Holm's correction over all {len(standings.differences)} pairs. rank: of the "
            f"{len(standings.ranks)} confirmed, 95 % for each entry alone, by the same tests "
            "against every other one, corrected by Holm over these (Mogstad et al. 2024)."
        )
        if lacking := [label for label in standings.groups if np.isnan(standings.ranks[label][0])]:
            notes.append(
                f"Fewer than {statistics.FEWEST_SEEDS} seeds in common with every other: {', '.join(lacking)}. It is "
                "not separable from any, and the ranks of the others leave open on which side of it they are."
            )
    notes += rows.left_out_notes({label: seeds for label, (seeds, _) in standings.confirmed.items()})
    notes += rows.topic_notes(standings.run) if standings.rate == "win_rate" else []
    notes.append(
        f"{'One' if standings.sft_seed is None else 'Each row is from one'} SFT checkpoint: how methods do from "
        "another one is not in these intervals. tuned: trials that completed. "
        "tokens, worker-min (GPU-minutes on GPUs), verdicts: of tuning and of the winner's confirmation, added up over "
        "trials and workers that ran side by side."
    )
    if frame["completed"].min() < standings.league.trials:
        notes.append("An entry whose trials failed or diverged keeps its place; its winner is of those that completed.")
    return notes


def sentences(standings: Standings, table: Table) -> Sentences:
    """Say what a league leaves open and what it shows: who is not separable, who is best, what more would change."""
    frame = table.frame.dropna(subset=[standings.rate])
    open_: list[str] = []
    settled: list[str] = []
    for row in table.frame[table.frame[standings.rate].isna()].to_dict("records"):
        open_.append(f"How {row['entry']} does: {row['note'].removesuffix('.') or 'nothing of it was confirmed'}.")
    if frame.empty:
        return open_, settled
    unit = unit_of(standings.rate)[0].removesuffix(" %")
    first = frame.iloc[0]
    ends = ", ".join(number(first[f"{standings.rate}_{end}"], 1, scale=100) for end in ("low", "high"))
    shape = standings.confirmed[str(first["entry"])][1].shape
    settled.append(
        f"Highest {unit}: {first['entry']} with {number(first[standings.rate], 1, scale=100)} % [{ends}], at stability "
        f"{number(first['stability'])} ({basis(standings.run, *shape, label=str(first['winner']))})."
    )
    scored = frame.dropna(subset=["stability"])
    steady = scored.sort_values("stability", ascending=False, kind="stable").iloc[0] if len(scored) else None
    if steady is not None:
        settled.append(
            f"Highest stability: {steady['entry']} with {number(steady['stability'])}, at a {unit} of "
            f"{number(steady[standings.rate], 1, scale=100)} % "
            f"({basis(standings.run, int(steady['seeds_finished']), 0)})."
        )
    if not standings.claims:
        open_.append("Which entries differ: no two of them have confirmed seeds in common.")
        return open_, settled
    if standings.few:
        open_.append("Which entries differ: with so few seeds it is about these checkpoints only.")
        return open_, settled
    for name, label, claims in (
        (unit, str(first["entry"]), standings.claims),
        ("stability", "" if steady is None else str(steady["entry"]), standings.stability_claims),
    ):
        ties = [entry for pair, claim in claims.items() if label in pair and not claim.matters for entry in pair]
        if rivals := [entry for entry in frame["entry"] if entry in ties and entry != label]:
            open_.append(f"Which is best of {', '.join([label, *rivals])}: they are not separable by {name}.")
        apart = sum(claim.matters for claim in claims.values())
        rests = ""
        if claims:
            least = (min(claim.seeds for claim in claims.values()), min(claim.prompts for claim in claims.values()))
            rests = f" (at least {basis(standings.run, *least)} each)"
        settled.append(f"{apart} of {len(standings.differences)} pairs are separable by {name}{rests}.")
    near = {pair: claim for pair, claim in standings.claims.items() if not claim.matters}
    three = 3 * standings.league.seeds
    more = [
        " and ".join(pair)
        for pair, claim in near.items()
        if claim.settling and claim.settling.seeds and claim.settling.seeds <= three and claim.settling.prompts is None
    ]
    if near:
        which = f"{len(more) or 'none'} of the {len(near)} open pairs would be"
        examples = f" ({'; '.join(more[:4])}{'; ...' if len(more) > 4 else ''})" if more else ""
        open_.append(
            f"With three times the seeds ({three}) {which} settled in four of five tries{examples}, were the "
            "differences those seen here."
        )
    open_.append(f"What three times the tuning would change: {more_tuning(standings)}")
    return open_, settled


def more_tuning(standings: Standings) -> str:
    """Say how much the expected best rises from a third of the trials to all of them."""
    rises = []
    for label in standings.members:
        values = standings.searched(label)
        if len(values) >= 3:
            best = expected_best(values)
            rises.append((100 * float(best[-1] - best[len(values) // 3 - 1]), label))
    if not rises:
        return "too few trials completed to say."
    rise, label = max(rises)
    middle = np.median([points for points, _ in rises])
    return (
        f"from a third of the trials to all of them the expected best rose by {middle:.1f} points in the median entry "
        f"and by {rise:.1f} in {label}. That is on the selection prompts, where luck raises it too, and three times "
        "the trials were not measured."
    )
