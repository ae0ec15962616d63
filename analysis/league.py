"""A league: its standings, and who is told apart from whom.

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

from slime_ray.config.league import LEARNING_RATE, Entry, League, entry_of
from slime_ray.runs import results
from slime_ray.runs.pareto import winners

from . import effects, rows, statistics
from .ablation_table import p_words
from .effects import Claim
from .knobs import constraints_of, unit_of
from .printing import ABSENT, Column, Table, cells, interval_cells, numbers
from .rows import FINISHED, Outcomes
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
    """What a league's tables are made of. main: win_rate_stability(run)."""

    run: results.Run
    league: League
    main: Table

    @classmethod
    def each(cls, run: results.Run, main: Table) -> "list[Standings]":
        """Those of every SFT checkpoint, whose entries are compared among themselves; none where it is no league."""
        league = League.of(run.manifest)
        if league is None:
            return []
        return [cls(run, league.at(seed), main) for seed in league.sft_seeds] or [cls(run, league, main)]

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

    @property
    def rate(self) -> str:
        """What leads: the win rate, or without a judge the accuracy."""
        return "win_rate" if rows.is_judged(self.run) else "preference_accuracy"

    @cached_property
    def outcomes(self) -> dict[str, Outcomes]:
        """Of all rows, by their label."""
        judged = rows.is_judged(self.run)
        return rows.outcomes_by_label(self.run) if judged else rows.accuracies_by_label(self.run)

    @cached_property
    def topics(self) -> np.ndarray | None:
        """(prompts,) of the outcomes, where these are of prompts that come in topics."""
        return rows.topics_by_prompt(self.run) if rows.is_judged(self.run) else None

    def interval(self, outcomes: Outcomes | None) -> statistics.Interval | None:
        """A row's rate with its interval; None where it has no outcomes."""
        return None if outcomes is None else statistics.row_interval(outcomes[1], self.topics)

    def of_entry(self, label: str, ending: str = "") -> Outcomes | None:
        """The confirmed outcomes of an entry's winner, or of its defaults."""
        winner = self.members[label].winner
        return None if winner is None else self.outcomes.get(winner + ending)

    @cached_property
    def confirmed(self) -> dict[str, Outcomes]:
        """The outcomes of every winner that has some, by entry."""
        return {label: outcomes for label in self.members if (outcomes := self.of_entry(label)) is not None}

    def searched(self, label: str) -> np.ndarray:
        """(trials,) rates that an entry's search measured; of those that did not complete the worst. None where all."""
        trials = self.members[label].trials
        values = trials[self.rate].where(trials["status"] == FINISHED).to_numpy(dtype=float)
        known = np.isfinite(values)
        return np.where(known, values, values[known].min()) if known.any() else values[:0]

    @cached_property
    def differences(self) -> dict[Pair, np.ndarray | None]:
        """Every pair's paired outcomes, one minus the other, on the seeds and prompts that both have."""
        means = {label: float(np.nanmean(outcomes)) for label, (_, outcomes) in self.confirmed.items()}
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
        return _claims(self.differences, topics)

    @cached_property
    def scores(self) -> dict[str, Outcomes]:
        """Stabilities of the confirmed rows, by their label."""
        return rows.stabilities_by_label(self.run.trials[self.run.trials["phase"] == "confirm"])

    def steadier(self, one: str, other: str, ending: str = "") -> np.ndarray | None:
        """(seeds,) stability of an entry's winner minus that of another's, or of its own defaults, by common seeds."""
        first, second = (self.members[label].winner for label in (one, other))
        if first is None or second is None or not {first, second + ending} <= self.scores.keys():
            return None
        return rows.difference(self.scores[first], self.scores[second + ending])

    @cached_property
    def stability_claims(self) -> dict[Pair, Claim]:
        """What may be claimed of the pairs' stability, corrected over all of them."""
        return _claims({pair: self.steadier(*pair) for pair in self.differences})

    @cached_property
    def ranks(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest rank at 95 % of every entry that was confirmed."""
        return ranks({pair: self.claims.get(pair) for pair in self.differences})

    @property
    def few(self) -> int:
        """The fewest common seeds of a pair, where no pair has enough to speak of a method; else 0."""
        seeds = [claim.effect.seeds for claim in self.claims.values()]
        return min(seeds) if seeds and all(claim.effect.of_checkpoints for claim in self.claims.values()) else 0

    @cached_property
    def groups(self) -> dict[str, str]:
        """Letters of every entry: those that share one are not separable."""
        order = list(dict.fromkeys(label for pair in self.differences for label in pair))
        return letters(order, [pair for pair, claim in self.claims.items() if claim.matters])


def _claims(
    differences: Mapping[Pair, np.ndarray | None], topics: Mapping[Pair, np.ndarray | None] | None = None
) -> dict[Pair, Claim]:
    """Those of `effects.claims`, by pair."""
    names = {" ".join(pair): pair for pair in differences}
    claims = effects.claims(
        {name: differences[pair] for name, pair in names.items()},
        {name: topics.get(pair) for name, pair in names.items()} if topics else None,
    )
    return {names[name]: claim for name, claim in claims.items()}


def ranks(claims: Mapping[Pair, Claim | None]) -> dict[str, tuple[float, float]]:
    """Return the lowest and the highest rank of every entry at 95 %, by its comparisons with every other one.

    Args:
        claims: Of every pair the first minus the second, more is better; None where they have nothing in common.

    Returns:
        By label. Two with too few common seeds may stand either way; NaN of what has too few with every other.
    """
    ranks_by_label = {}
    for label in dict.fromkeys(name for pair in claims for name in pair):
        beside = {pair: claim for pair, claim in claims.items() if label in pair}
        # The t over seeds and prompts alone would cover 93 % where seeds differ much: docs/benchmarks/statistics.md.
        p_values = [
            np.nan if claim is None or claim.effect.of_checkpoints else max(claim.effect.p_values.values())
            for claim in beside.values()
        ]
        lowest, highest = (np.nan, np.nan) if np.isnan(p_values).all() else (1.0, 1.0 + len(beside))
        for (pair, claim), p in zip(beside.items(), effects.holm(np.array(p_values)), strict=True):
            if claim is not None and p < effects.LEVEL:
                ahead = (claim.effect.difference.value > 0) == (pair[0] == label)
                lowest, highest = lowest + (not ahead), highest - ahead
        ranks_by_label[label] = lowest, highest
    return ranks_by_label


def letters(order: list[str], apart: list[Pair]) -> dict[str, str]:
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
    frame["rank"] = frame[found.rate].rank(ascending=False, method="min").where(frame["rank_low"].notna())
    rate = unit_of(found.rate)[0]
    measured = f"{rate} against {rows.baseline_of(found.run)}'s answers, judge {rows.judge_of(found.run)}"
    return Table(
        frame=frame,
        caption=f"{rows.name_of(found.run)}: {len(frame)} entries, {found.league.trials} tuning trials each, winners "
        f"confirmed with {found.league.seeds} seeds on other prompts. "
        + (f"{measured}." if found.rate == "win_rate" else f"Not judged: {rate} on held-out pairs leads instead."),
        notes=_notes(found, frame),
        columns=(
            Column("entry", tuple(frame["entry"]), numeric=False, keep=10),
            Column(f"{rate} [95 %]", interval_cells(frame, found.rate, 1, scale=100), keep=9),
            Column("not separable", tuple(frame["letters"]), numeric=False, keep=9),
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


def _standing(found: Standings, member: Member, known: Mapping[Any, Any]) -> dict[str, Any]:
    label, winner = member.entry.label, member.winner
    row = known.get(winner, {})
    ends = [f"{name}{end}" for name in ("win_rate", "stability") for end in ("", "_low", "_high")]
    others = ["preference_accuracy", "stability_min", "stability_max", "seeds_finished", "seeds"]
    low, high = found.ranks.get(label, (np.nan, np.nan))
    own = found.run.trials[
        (found.run.trials["trial_id"].map(lambda name: entry_of(str(name))) == label)
        | (found.run.trials["label"] == winner)
    ]
    of_answers = found.run.answers[found.run.answers["trial_id"].isin(own["trial_id"])]
    rate = results.KNOB + LEARNING_RATE
    chosen = member.trials[member.trials["trial_id"] == winner]
    values = {name: row.get(name, np.nan) for name in [*ends, *others]}
    if found.rate == "preference_accuracy":
        values |= statistics.columns({"preference_accuracy": found.interval(found.of_entry(label))})
    return {
        "entry": label,
        "objective": member.entry.objective,
        **values,
        "letters": found.groups.get(label, ""),
        "rank_low": low,
        "rank_high": high,
        "learning_rate": float(chosen[rate].iloc[0]) if len(chosen) and rate in chosen else np.nan,
        "winner": winner or "",
        "completed": int((member.trials["status"] == FINISHED).sum()),
        "trials": found.league.trials,
        "tokens": int(own["tokens"].fillna(0).sum()),
        "seconds": float((own["total_seconds"].fillna(0) * own["workers"].fillna(1)).sum()),
        "verdicts": int(of_answers[["verdict_ab", "verdict_ba"]].notna().to_numpy().sum()),
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


def short(value: Any) -> str:
    """A knob's value with three digits."""
    if not is_number(value):
        return ABSENT if value is None else str(value)
    return ABSENT if pd.isna(value) else f"{value:.3g}"


def is_number(value: Any) -> bool:
    """Whether a knob's value is a number; of true and false it is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _notes(found: Standings, frame: pd.DataFrame) -> list[str]:
    notes = [f"How winners were chosen: {found.league.rule}."]
    if found.few:
        notes.append(
            f"These checkpoints only: {found.few} common seeds cannot say how a method does over other seeds, so "
            f"nothing is separated and no rank is given. Give {statistics.FEWEST_SEEDS} seeds or more (league.seeds)."
        )
    else:
        notes.append(
            "not separable: entries that share a letter are not told apart, by all tests below "
            f"{effects.LEVEL} after Holm's correction over all {len(found.differences)} pairs. rank: of the "
            f"{len(found.ranks)} confirmed, 95 % for each entry alone, by the same tests "
            "against every other one, corrected by Holm over these (Mogstad et al. 2024)."
        )
        if lacking := [label for label in found.groups if np.isnan(found.ranks[label][0])]:
            notes.append(
                f"Fewer than {statistics.FEWEST_SEEDS} seeds in common with every other: {', '.join(lacking)}. It is "
                "not separable from any, and the ranks of the others leave open on which side of it they are."
            )
    seeds = {label: seeds for label, (seeds, _) in found.confirmed.items()}
    if len(seeds) > 1 and (left := rows.left_out(seeds)):
        notes.append(f"Pairs are compared on the seeds that both have. Not common to all: {left}.")
    notes += rows.topic_notes(found.run) if found.rate == "win_rate" else []
    notes.append(
        f"{'One' if found.sft_seed is None else 'Each row is from one'} SFT checkpoint: how methods do from another "
        "one is not in these intervals. tuned: trials that completed. "
        "tokens, worker-min (GPU-minutes on GPUs), verdicts: of tuning and of the winner's confirmation, added up over "
        "trials and workers that ran side by side."
    )
    if frame["completed"].min() < found.league.trials:
        notes.append("An entry whose trials failed or diverged keeps its place; its winner is of those that completed.")
    return notes


def pairs(found: Standings) -> Table:
    """Every pair: the better one minus the other."""
    records = []
    for (one, other), d in found.differences.items():
        claim = found.claims.get((one, other))
        score = found.stability_claims.get((one, other))
        verdict = "nothing in common" if claim is None else "separable" if claim.matters else claim.verdict
        records.append(
            {
                "better": one,
                "other": other,
                **statistics.columns(
                    {
                        "difference": None if claim is None else claim.effect.difference,
                        "stability_difference": None if score is None else score.effect.difference,
                    }
                ),
                **effects.p_columns(claim),
                "stability_p": np.nan if score is None else score.p,
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
            Column("corrected p", cells(frame, lambda row: p_words(row["p"])), keep=9),
            Column("S difference [95 %]", interval_cells(frame, "stability_difference"), keep=7),
            Column("corrected p of S", cells(frame, lambda row: p_words(row["stability_p"])), keep=6),
            Column("seeds", cells(frame, lambda row: str(row["seeds"])), keep=5),
            Column("verdict", tuple(frame["verdict"]), numeric=False, keep=10),
        )
        if records
        else (),
    )
