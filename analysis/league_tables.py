"""Tables of a league and its sentences: standings, pairs, what tuning bought, what the defaults give."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.config.league import DEFAULTS, LEARNING_RATE, entry_of
from slime_ray.runs import results

from . import effects, rows, statistics
from .ablation_table import p_words
from .front import expected_best
from .knobs import is_number, short, unit_of
from .league import Member, Standings
from .printing import ABSENT, Column, Sentences, Table, cells, empty, interval_cells, measure, number, numbers
from .rows import FINISHED, basis
from .stability import stability_cell
from .statistics import Interval

SHOWN = (1, 2, 4, 8, 16, 32)
"""Numbers of tuning trials whose expected best is printed, up to all there are."""
COVERED, ESTIMATED = 5, 2
"""Trials to each of k for the expected best of k to be printed with an interval, and to be printed at all."""


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
            Column("entry", tuple(frame["entry"]), numeric=False, keep=10),
            Column(f"{rate} [95 %]", interval_cells(frame, standings.rate, 1, scale=100), keep=9),
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
    return "; ".join([*remarks, *filter(None, [_main_note(row)])])


def _main_note(row: Mapping[str, Any]) -> str:
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


def pairs(standings: Standings) -> Table:
    """Return every pair: the better one minus the other."""
    records = []
    for (first, second), d in standings.differences.items():
        claim = standings.claims.get((first, second))
        score = standings.stability_claims.get((first, second))
        both = {"difference": claim, "stability_difference": score}
        verdict = "nothing in common" if claim is None else "separable" if claim.matters else claim.verdict
        records.append(
            {
                "better": first,
                "other": second,
                **statistics.columns({name: each.difference if each else None for name, each in both.items()}),
                **effects.p_columns(claim),
                "stability_p": np.nan if score is None else score.p,
                "seeds": 0 if d is None else len(d),
                "prompts": 0 if d is None else d.shape[1],
                "verdict": verdict,
            }
        )
    if not records:
        return empty("Fewer than two entries have a confirmed winner: there is no pair.", "better")
    frame = pd.DataFrame(records)
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
        ),
    )


def tuning(standings: Standings) -> Table:
    """Return the expected best of k tuning trials, on the selection prompts, and the winner as confirmed."""
    lead, trials = standings.rate, standings.league.trials
    budgets = [k for k in SHOWN if ESTIMATED * k <= trials]
    records = []
    for label in standings.members:
        values = standings.searched(label)
        best = {f"best_of_{k}": best_of(values, k) for k in budgets}
        best["confirmed"] = standings.interval(standings.of_entry(label))
        most = float(values.max()) if len(values) else np.nan
        records.append({"entry": label, **statistics.columns(best), "best_of_all": most})
    frame = pd.DataFrame(records).sort_values("confirmed", ascending=False, na_position="last", ignore_index=True)
    return Table(
        frame=frame,
        caption=f"What tuning bought: expected best {unit_of(lead)[0]} of so many of an entry's own trials, as "
        "searched (one seed, selection prompts), and its winner as confirmed.",
        notes=[
            f"An interval (jackknife) covers from {COVERED} trials to each of k on. Without one a value rests on too "
            f"few trials to say how far off it is; below {ESTIMATED} to each none is given. Trials that did not "
            "complete, or break a constraint, count as the worst of the rest.",
            "The best of all trials looks better than it is, by luck on one seed and few prompts. Where confirmed "
            "values lie below even the best of 1, the report prompts may be harder. The winner is chosen by all goals "
            "and may lie below the best of all.",
        ],
        columns=(
            Column("entry", tuple(frame["entry"]), numeric=False, keep=10),
            *(measure(f"best of {k}", frame, f"best_of_{k}", 1, scale=100, keep=7) for k in budgets),
            Column(f"best of all {trials}", numbers(frame, "best_of_all", 1, scale=100), keep=8),
            Column("confirmed [95 %]", interval_cells(frame, "confirmed", 1, scale=100), keep=9),
        ),
    )


def best_of(values: np.ndarray, k: int) -> Interval | None:
    """Return the expected best of `k` of (trials,) values; None below ESTIMATED trials to each of k.

    The ends are Student's by the jackknife, which cover 92 to 95 %; percentiles of resampled trials cover less, since
    none holds a better trial than the best. NaN below COVERED trials to each of k, where they cover less.
    """
    count = len(values)
    if count < ESTIMATED * k:
        return None
    best = float(expected_best(values)[k - 1])
    if count < COVERED * k:
        return Interval(best, np.nan, np.nan)
    without = expected_best(np.stack([np.delete(values, place) for place in range(count)]))[:, k - 1]
    return statistics.student_interval(best, without.std() * np.sqrt(count - 1), count - 1).within(0.0, 1.0)


def defaults(standings: Standings) -> Table:
    """Compare each winner's knobs and results with its objective's defaults, run at its learning rate."""
    main_rows = standings.main.by("label")
    records = []
    for label, member in standings.members.items():
        if member.winner is None:
            continue
        chosen = member.trials[member.trials["trial_id"] == member.winner].iloc[0]
        space = member.entry.search.get("dimensions") or {}
        # Behind a bracket a dimension's name says when it exists.
        on_log = {
            name.partition("[")[0] for name, ways in space.items() if any("log" in way for way in ways if ways[way])
        }
        knobs = [
            _knob(path, value, chosen.get(results.KNOB + path), on_log_scale=path in on_log)
            for path, value in member.entry.defaults.items()
        ]
        winner_outcomes, default_outcomes, gap = standings.of_entry(label), standings.of_entry(label, DEFAULTS), None
        if (
            winner_outcomes is not None
            and default_outcomes is not None
            and (d := rows.difference(winner_outcomes, default_outcomes)) is not None
        ):
            gap = effects.interval(d, rows.shared_topics([winner_outcomes, default_outcomes], standings.topics))
        score = standings.stability_difference(label, label, DEFAULTS)
        records.append(
            {
                "entry": label,
                "knobs": "; ".join(knobs) or "no knobs",
                **statistics.columns(
                    {
                        "tuned": standings.interval(winner_outcomes),
                        "defaults": standings.interval(default_outcomes),
                        "difference": gap,
                        "stability_difference": None if score is None else effects.interval(score),
                    }
                ),
                "note": _main_note(main_rows.get(member.winner + DEFAULTS, {})),
            }
        )
    if not records:
        return empty("No entry has a winner.", "entry")
    frame = pd.DataFrame(records)
    return Table(
        frame=frame,
        caption="Winners beside their objective's defaults, which are run at the winner's learning rate.",
        notes=[
            "knobs: default, then the winner's value if that is another one; in parentheses their ratio where the "
            "knob is searched by its logarithm, else their difference. difference: winner minus defaults in points, "
            "paired by seed and prompt, one comparison each. Without defaults: the winner has them, or they were not "
            "run (league.defaults)."
        ],
        columns=(
            Column("entry", tuple(frame["entry"]), numeric=False, keep=10),
            Column("knobs", tuple(frame["knobs"]), numeric=False, keep=8),
            Column("tuned % [95 %]", interval_cells(frame, "tuned", 1, scale=100), keep=7),
            Column("defaults % [95 %]", interval_cells(frame, "defaults", 1, scale=100), keep=8),
            Column("difference [95 %]", interval_cells(frame, "difference", 1, scale=100), keep=9),
            Column("S difference [95 %]", interval_cells(frame, "stability_difference"), keep=6),
        ),
        remarks=tuple(frame["note"]),
    )


def _knob(path: str, default: Any, value: Any, *, on_log_scale: bool) -> str:
    name, before, after = path.rpartition(".")[2], short(default), short(value)
    if before == after:
        return f"{name} {after}"
    words = f"{name} {before} to {after}"
    if not (is_number(default) and is_number(value)) or pd.isna(value):
        return words
    if on_log_scale and default > 0 and value > 0:
        return f"{words} (x{value / default:.2g})"
    return f"{words} ({value - default:+.2g})"


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
