"""Tables of a league: its standings, who is told apart from whom, what tuning bought, what the defaults give.

A rank's interval follows from the tests of its entry against every other one: as many ranks from the top as others do
significantly better, as many from the bottom as do worse (Mogstad et al. 2024). Resampling the ranks themselves covers
too little where methods are close.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.config.league import DEFAULTS, LEARNING_RATE, Entry, League, entry_of
from slime_ray.runs import results
from slime_ray.runs.pareto import winners

from . import effects, rows, statistics
from .effects import Claim
from .front import expected_best
from .knobs import constraints_of, unit_of
from .printing import ABSENT, Column, Sentences, Table, cells, interval_cells, number, numbers
from .rows import FINISHED, Outcomes
from .stability import stability_cell

SHOWN = (1, 2, 4, 8, 16, 32)
"""Numbers of tuning trials whose expected best is printed, up to all there are."""
COVERED = 5
"""Of so many trials the expected best of one still has an interval that covers."""


@dataclass(frozen=True)
class Member:
    """An entry as it was measured. trials: of its search. winner: the best of them; None where none completed."""

    entry: Entry
    trials: pd.DataFrame
    winner: str | None


@dataclass(frozen=True)
class Standings:
    """What a league's tables are made of. main: win_rate_stability(run)."""

    run: results.Run
    league: League
    main: Table

    @classmethod
    def of(cls, run: results.Run, main: Table) -> "Standings | None":
        """None where the run is no league."""
        league = League.of(run.manifest)
        return None if league is None else cls(run, league, main)

    @cached_property
    def members(self) -> dict[str, Member]:
        """By label, in the order of the league."""
        searched = self.run.trials[self.run.trials["phase"] == "search"]
        of = searched["trial_id"].map(entry_of)
        goals = self.run.manifest.get("goals") or {}
        found = {}
        for entry in self.league.entries:
            own = searched[of == entry.label]
            records = [{str(key): value for key, value in row.items()} for row in own.to_dict("records")]
            best = winners(records, goals, constraints_of(self.run.manifest))
            found[entry.label] = Member(entry, own, str(best[0]["trial_id"]) if best else None)
        return found

    @property
    def rate(self) -> str:
        """What leads: the win rate, or without a judge the accuracy."""
        return "win_rate" if rows.is_judged(self.run) else "preference_accuracy"

    @cached_property
    def outcomes(self) -> dict[str, Outcomes]:
        """Of all rows, by their label."""
        judged = rows.is_judged(self.run)
        return rows.outcomes_by_label(self.run) if judged else rows.accuracies_by_label(self.run)

    def of_entry(self, label: str, ending: str = "") -> Outcomes | None:
        """The confirmed outcomes of an entry's winner, or of its defaults."""
        winner = self.members[label].winner
        return None if winner is None else self.outcomes.get(winner + ending)

    @cached_property
    def compared(self) -> "Comparisons":
        """The entries' confirmed outcomes beside each other."""
        found = {label: self.of_entry(label) for label in self.members}
        return Comparisons({label: outcomes for label, outcomes in found.items() if outcomes is not None})


@dataclass(frozen=True)
class Comparisons:
    """Every pair of entries. outcomes: of each, by its label. flips: of signs, in the test over prompts."""

    outcomes: Mapping[str, Outcomes]
    flips: int = effects.FLIPS

    @cached_property
    def order(self) -> list[str]:
        """Labels, the highest mean first."""
        return sorted(self.outcomes, key=lambda label: -float(np.nanmean(self.outcomes[label][1])))

    @cached_property
    def differences(self) -> dict[tuple[str, str], np.ndarray | None]:
        """Every pair's paired outcomes, one minus the other, on the seeds and prompts that both have."""
        every = combinations(self.order, 2)
        return {(one, other): rows.difference(self.outcomes[one], self.outcomes[other]) for one, other in every}

    @cached_property
    def claims(self) -> dict[tuple[str, str], Claim]:
        """What may be claimed of the pairs, corrected over all of them."""
        found = effects.claims({" ".join(pair): d for pair, d in self.differences.items()}, flips=self.flips)
        return {pair: found[" ".join(pair)] for pair in self.differences if " ".join(pair) in found}

    @property
    def of_checkpoints(self) -> bool:
        """Whether no pair has seeds enough to say anything beyond the checkpoints at hand."""
        return all(claim.effect.of_checkpoints for claim in self.claims.values())

    @property
    def apart(self) -> list[tuple[str, str]]:
        """Pairs that are told apart."""
        return [pair for pair, claim in self.claims.items() if claim.matters]

    def rank(self, label: str) -> tuple[float, float]:
        """Lowest and highest rank of an entry at 95 %, by its comparisons with every other one; NaN on few seeds.

        A comparison on too few common seeds tells nobody apart.
        """
        mine = {pair: claim.effect for pair, claim in self.claims.items() if label in pair}
        if all(found.of_checkpoints for found in mine.values()):
            return np.nan, np.nan
        p_values = effects.holm(np.array([found.p_values.get("both", 1.0) for found in mine.values()]))
        apart = [pair for pair, p in zip(mine, p_values, strict=True) if p < effects.LEVEL]
        better, worse = (sum(pair[place] == label for pair in apart) for place in (1, 0))
        return 1.0 + better, float(len(self.outcomes) - worse)

    @cached_property
    def groups(self) -> dict[str, str]:
        """Letters of every entry: those that share one are not separable."""
        return letters(self.order, self.apart)


def letters(order: list[str], apart: list[tuple[str, str]]) -> dict[str, str]:
    """Compact letters (Piepho 2004): two share one exactly where they are not told apart.

    Args:
        order: All names, which letters follow.
        apart: Pairs that are told apart.

    Returns:
        The letters of each name.
    """
    groups = [frozenset(order)]
    for one, other in apart:
        split = [group - {gone} for group in groups if {one, other} <= group for gone in (one, other)]
        kept = [group for group in groups if not {one, other} <= group]
        candidates = list(dict.fromkeys([*kept, *split]))
        groups = [group for group in candidates if not any(group < other_group for other_group in candidates)]
    groups.sort(key=lambda group: sorted(order.index(name) for name in group))
    return {name: "".join(_letter(place) for place, group in enumerate(groups) if name in group) for name in order}


def _letter(place: int) -> str:
    return chr(ord("a") + place) if place < 26 else f"{chr(ord('a') + place % 26)}{place // 26}"


def standings(found: Standings) -> Table:
    """A row per entry, the best first; what has no confirmed winner last, with its reason."""
    known = found.main.frame.set_index("label").to_dict("index") if len(found.main.frame) else {}
    frame = pd.DataFrame([_standing(found, member, known) for member in found.members.values()])
    frame = frame.sort_values([found.rate, "entry"], ascending=[False, True], na_position="last").reset_index(drop=True)
    rate = unit_of(found.rate)[0]
    return Table(
        frame=frame,
        caption=f"{rows.name_of(found.run)}: {len(frame)} entries, {found.league.trials} tuning trials each, winners "
        f"confirmed with {found.league.seeds} seeds on other prompts. {rate} against {rows.baseline_of(found.run)}'s "
        f"answers, judge {rows.judge_of(found.run)}.",
        notes=_notes(found, frame),
        columns=(
            Column("entry", tuple(frame["entry"]), numeric=False, keep=10),
            Column(f"{rate} [95 %]", interval_cells(frame, found.rate, 1, scale=100), keep=9),
            Column("not separable", tuple(frame["letters"]), numeric=False, keep=9),
            Column("rank [95 %]", cells(frame, _rank), keep=8),
            Column("stability S [95 %]", cells(frame, stability_cell), keep=8),
            Column("learning rate", cells(frame, lambda row: _short(row["learning_rate"])), keep=6),
            Column("seeds", cells(frame, lambda row: f"{row['seeds_finished']:.0f}/{row['seeds']:.0f}"), keep=5),
            Column("tuned", cells(frame, lambda row: f"{row['completed']:.0f}/{row['trials']:.0f}"), keep=5),
            Column("tokens", cells(frame, lambda row: f"{row['tokens']:,.0f}"), keep=4),
            Column("min", numbers(frame, "seconds", 1, scale=1 / 60), keep=4),
            Column("winner", cells(frame, lambda row: row["winner"] or ABSENT), numeric=False, keep=3),
        ),
        remarks=tuple(frame["note"]),
    )


def _standing(found: Standings, member: Member, known: Mapping[Any, Any]) -> dict[str, Any]:
    label, winner = member.entry.label, member.winner
    row = known.get(winner, {})
    ends = [f"{name}{end}" for name in ("win_rate", "stability") for end in ("", "_low", "_high")]
    others = ["preference_accuracy", "stability_min", "stability_max", "seeds_finished", "seeds"]
    low, high = found.compared.rank(label)
    own = found.run.trials[
        (found.run.trials["trial_id"].map(lambda name: entry_of(str(name))) == label)
        | (found.run.trials["label"] == winner)
    ]
    rate = results.KNOB + LEARNING_RATE
    chosen = member.trials[member.trials["trial_id"] == winner]
    values = {name: row.get(name, np.nan) for name in [*ends, *others]}
    if found.rate == "preference_accuracy":
        outcomes = found.of_entry(label)
        interval = None if outcomes is None else statistics.row_interval(outcomes[1])
        values |= statistics.columns({"preference_accuracy": interval})
    return {
        "entry": label,
        "objective": member.entry.objective,
        **values,
        "letters": found.compared.groups.get(label, ""),
        "rank_low": low,
        "rank_high": high,
        "learning_rate": float(chosen[rate].iloc[0]) if len(chosen) and rate in chosen else np.nan,
        "winner": winner or "",
        "completed": int((member.trials["status"] == FINISHED).sum()),
        "trials": found.league.trials,
        "tokens": int(own["tokens"].fillna(0).sum()),
        "seconds": float(own["total_seconds"].fillna(0).sum()),
        "note": _note(member, row),
    }


def _note(member: Member, row: Mapping[str, Any]) -> str:
    said = [] if row else ["no confirmed winner"] if member.winner else [_why_none(member)]
    for status, ended in member.trials[member.trials["status"] != FINISHED].groupby("status"):
        reasons = list(dict.fromkeys(str(reason) for reason in ended["reason"].dropna()))
        more = f", and {len(reasons) - 1} more reasons" if len(reasons) > 1 else ""
        said.append(f"tuning: {status} {len(ended)}: {reasons[0] if reasons else 'no reason was recorded'}{more}")
    if note := str(row.get("note") or "").removeprefix("confirmed").lstrip("; "):
        said.append(note)
    return "; ".join(said)


def _why_none(member: Member) -> str:
    completed = (member.trials["status"] == FINISHED).any()
    return "no completed trial keeps the constraints" if completed else "no trial completed"


def _rank(row: pd.Series) -> str:
    return ABSENT if pd.isna(row["rank_low"]) else f"{row['rank_low']:.0f} to {row['rank_high']:.0f}"


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return ABSENT if pd.isna(value) else f"{value:.3g}"


def _notes(found: Standings, frame: pd.DataFrame) -> list[str]:
    notes = [f"How winners were chosen: {found.league.rule}."]
    if found.compared.of_checkpoints:
        fewest = min(claim.effect.seeds for claim in found.compared.claims.values())
        notes.append(
            f"These checkpoints only: {fewest} common seeds say nothing of other seeds, so nothing is "
            f"separated and no rank is given. Give {statistics.FEWEST_SEEDS} seeds or more (league.seeds)."
        )
    else:
        notes.append(
            "not separable: entries that share a letter are not told apart, by all tests below "
            f"{effects.LEVEL} after Holm's correction over all {len(found.compared.differences)} pairs. rank: 95 % for "
            "each entry, from the t over seeds and prompts against every other one, corrected by Holm over these."
        )
        few = [" and ".join(pair) for pair, one in found.compared.claims.items() if one.effect.of_checkpoints]
        if few:
            notes.append(
                f"Not tested, and counted as not told apart, on fewer than {statistics.FEWEST_SEEDS} common seeds: "
                f"{', '.join(few)}."
            )
    seeds = {label: outcomes[0] for label in found.members if (outcomes := found.of_entry(label)) is not None}
    if len(seeds) > 1 and (left := rows.left_out(seeds)):
        notes.append(f"Pairs are compared on the seeds that both have. Not common to all: {left}.")
    notes.append(
        "One SFT checkpoint: how methods do from another one is not in these intervals. tuned: trials that completed. "
        "tokens, min: of tuning and confirmation, added up over trials that ran side by side."
    )
    if frame["completed"].min() < found.league.trials:
        notes.append("An entry whose trials failed or diverged keeps its place; its winner is of those that completed.")
    return notes


def pairs(found: Standings) -> Table:
    """Every pair: the better one minus the other."""
    records = []
    for (one, other), d in found.compared.differences.items():
        claim = found.compared.claims.get((one, other))
        score = _stability_difference(found, one, other)
        verdict = "nothing in common" if claim is None else "separable" if claim.matters else claim.verdict
        records.append(
            {
                "better": one,
                "other": other,
                **statistics.columns(
                    {
                        "difference": None if claim is None else claim.effect.difference,
                        "stability_difference": None if score is None else effects.interval(score),
                    }
                ),
                **effects.p_columns(claim),
                "seeds": 0 if d is None else len(d),
                "prompts": 0 if d is None else d.shape[1],
                "verdict": verdict,
            }
        )
    frame = pd.DataFrame(records, columns=None if records else ["better"])
    return Table(
        frame=frame,
        caption="Every pair of entries, the first minus the second in points, paired by seed and prompt.",
        notes=[
            "Intervals are of one comparison each, not corrected; corrected p is Holm's over all pairs, the largest of "
            f"the tests ({'; '.join(effects.TESTS.values())})."
        ],
        columns=(
            Column("entry", tuple(frame["better"]), numeric=False, keep=10),
            Column("minus", tuple(frame["other"]), numeric=False, keep=10),
            Column("difference [95 %]", interval_cells(frame, "difference", 1, scale=100), keep=9),
            Column("corrected p", cells(frame, lambda row: _p(row["p"])), keep=9),
            Column("S difference [95 %]", interval_cells(frame, "stability_difference"), keep=7),
            Column("seeds", cells(frame, lambda row: str(row["seeds"])), keep=5),
            Column("verdict", tuple(frame["verdict"]), numeric=False, keep=10),
        )
        if records
        else (),
    )


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else number(value, 3)


def _stability_difference(found: Standings, one: str, other: str, ending: str = "") -> np.ndarray | None:
    scores = rows.stabilities_by_label(found.run.trials[found.run.trials["phase"] == "confirm"])
    first, second = (found.members[label].winner for label in (one, other))
    if first is None or second is None or first not in scores or second + ending not in scores:
        return None
    return rows.difference(scores[first], scores[second + ending])


def tuning(found: Standings) -> Table:
    """What more tuning trials buy: the expected best of k on the selection prompts, and the winner as confirmed."""
    lead = found.rate
    shown = [k for k in SHOWN if k <= found.league.trials]
    shown += [] if found.league.trials in shown else [found.league.trials]
    records = []
    for label, member in found.members.items():
        values = member.trials[lead].where(member.trials["status"] == FINISHED).to_numpy(dtype=float)
        complete = values[np.isfinite(values)]
        filled = np.where(np.isfinite(values), values, complete.min()) if len(complete) else values[:0]
        best = expected_best(filled) if len(filled) else np.array([])
        outcomes = found.of_entry(label)
        confirmed = None if outcomes is None else statistics.row_interval(outcomes[1])
        at = {f"best_of_{k}": float(best[k - 1]) if k <= len(best) else np.nan for k in shown}
        records.append({"entry": label, **at, **statistics.columns({"confirmed": confirmed})})
    frame = pd.DataFrame(records).sort_values("confirmed", ascending=False, na_position="last").reset_index(drop=True)
    return Table(
        frame=frame,
        caption=f"What tuning bought: expected best {unit_of(lead)[0]} of so many of an entry's own trials, as "
        "searched (one seed, selection prompts), and its winner as confirmed.",
        notes=[
            "Without an interval: of so few trials none covers (it would take five times as many). The best of more "
            "trials looks better than it is; where the confirmed value falls behind it, tuning followed the noise.",
            "The winner is chosen by all goals, so that its own value as searched may lie below the best.",
        ],
        columns=(
            Column("entry", tuple(frame["entry"]), numeric=False, keep=10),
            *(Column(f"best of {k}", numbers(frame, f"best_of_{k}", 1, scale=100), keep=7) for k in shown),
            Column("confirmed [95 %]", interval_cells(frame, "confirmed", 1, scale=100), keep=9),
        ),
    )


def defaults(found: Standings) -> Table:
    """How far each winner's knobs lie from its objective's defaults, and what these give at its learning rate."""
    records = []
    for label, member in found.members.items():
        if member.winner is None:
            continue
        chosen = member.trials[member.trials["trial_id"] == member.winner].iloc[0]
        knobs = [_knob(path, value, chosen.get(results.KNOB + path)) for path, value in member.entry.defaults.items()]
        one, other = found.of_entry(label), found.of_entry(label, DEFAULTS)
        d = None if one is None or other is None else rows.difference(one, other)
        score = _stability_difference(found, label, label, DEFAULTS)
        records.append(
            {
                "entry": label,
                "knobs": "; ".join(knobs) or "no knobs",
                **statistics.columns(
                    {
                        "tuned": None if one is None else statistics.row_interval(one[1]),
                        "defaults": None if other is None else statistics.row_interval(other[1]),
                        "difference": None if d is None else effects.interval(d),
                        "stability_difference": None if score is None else effects.interval(score),
                    }
                ),
            }
        )
    frame = pd.DataFrame(records, columns=None if records else ["entry"])
    return Table(
        frame=frame,
        caption="Winners beside their objective's defaults, which are run at the winner's learning rate.",
        notes=[
            "knobs: default, then the winner's value, and how many times as large it is. difference: winner minus "
            "defaults in points, paired by seed and prompt, one comparison each. Without a row of its own: the winner "
            "has the defaults, or they were not run (league.defaults)."
        ],
        columns=(
            Column("entry", tuple(frame["entry"]), numeric=False, keep=10),
            Column("knobs", tuple(frame["knobs"]), numeric=False, keep=8),
            Column("tuned % [95 %]", interval_cells(frame, "tuned", 1, scale=100), keep=7),
            Column("defaults % [95 %]", interval_cells(frame, "defaults", 1, scale=100), keep=8),
            Column("difference [95 %]", interval_cells(frame, "difference", 1, scale=100), keep=9),
            Column("S difference [95 %]", interval_cells(frame, "stability_difference"), keep=6),
        )
        if records
        else (),
    )


def _knob(path: str, default: Any, value: Any) -> str:
    name = path.rpartition(".")[2]
    if isinstance(default, (int, float)) and isinstance(value, (int, float)) and default > 0 and value > 0:
        return f"{name} {_short(default)} to {_short(float(value))} (x{value / default:.2g})"
    return f"{name} {_short(default)} to {_short(value)}"


def sentences(found: Standings, table: Table) -> Sentences:
    """What a league leaves open, and what it says: who is not separable, who is best, what more would change."""
    frame = table.frame.dropna(subset=[found.rate])
    open_: list[str] = []
    settled: list[str] = []
    for row in table.frame[table.frame[found.rate].isna()].to_dict("records"):
        open_.append(f"How {row['entry']} does: {row['note'] or 'nothing of it was confirmed'}.")
    if frame.empty:
        return open_, settled
    unit = unit_of(found.rate)[0].removesuffix(" %")
    first, steady = frame.iloc[0], frame.sort_values("stability", kind="stable").iloc[-1]
    shown = f"{number(first[found.rate], 1, scale=100)} %"
    settled.append(f"Highest {unit}: {first['entry']} with {shown}, at stability {number(first['stability'])}.")
    settled.append(
        f"Highest stability: {steady['entry']} with {number(steady['stability'])}, at a {unit} of "
        f"{number(steady[found.rate], 1, scale=100)} %."
    )
    if found.compared.of_checkpoints:
        open_.append("Which entries differ: with so few seeds it is about these checkpoints only.")
        return open_, settled
    apart = found.compared.apart
    with_first = [
        label
        for label in frame["entry"]
        if set(found.compared.groups[label]) & set(found.compared.groups[first["entry"]])
    ]
    if len(with_first) > 1:
        open_.append(f"Which is best of {', '.join(with_first)}: they are not separable by {unit}.")
    settled.append(f"{len(apart)} of {len(found.compared.differences)} pairs are separable by {unit}.")
    near = {pair: claim for pair, claim in found.compared.claims.items() if not claim.matters}
    three = 3 * found.league.seeds
    more = [
        " and ".join(pair)
        for pair, claim in near.items()
        if claim.settling and claim.settling.seeds and claim.settling.seeds <= three and claim.settling.prompts is None
    ]
    if near:
        which = f"{len(more) or 'none'} of the {len(near)} open pairs would be"
        named = f" ({'; '.join(more[:4])}{'; ...' if len(more) > 4 else ''})" if more else ""
        open_.append(
            f"With three times the seeds ({three}) {which} settled in four of five tries{named}, were the differences "
            "those seen here."
        )
    open_.append(f"What three times the tuning would change: {_more_tuning(found)}")
    return open_, settled


def _more_tuning(found: Standings) -> str:
    """By how much the expected best still rises from a third of the trials to all of them."""
    rises = []
    for label, member in found.members.items():
        values = member.trials[found.rate].where(member.trials["status"] == FINISHED).dropna().to_numpy(dtype=float)
        if len(values) >= 3:
            best = expected_best(values)
            rises.append((100 * float(best[-1] - best[len(values) // 3 - 1]), label))
    if not rises:
        return "too few trials completed to say."
    rise, label = max(rises)
    middle = np.median([one for one, _ in rises])
    return (
        f"from a third of the trials to all of them the expected best rose by {middle:.1f} points in the median entry "
        f"and by {rise:.1f} in {label}, on the selection prompts; what comes after is not measured."
    )
