"""A league's further tables: pairs, what tuning bought, what the defaults give, what holds over SFT checkpoints."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.config.league import DEFAULTS, weights_at
from slime_ray.runs import results
from slime_ray.runs.results import Run

from . import effects, rows, statistics
from .front import expected_best
from .league import Standings, main_note, more_tuning
from .printing import (
    Column,
    Sentences,
    Table,
    cells,
    empty,
    interval_cells,
    is_number,
    measure,
    names,
    number,
    numbers,
    p_words,
    short,
    unit_of,
)
from .rows import Outcomes, draw
from .statistics import Interval

SHOWN = (1, 2, 4, 8, 16, 32)
"""Numbers of tuning trials whose expected best is printed, up to all there are."""
COVERED, ESTIMATED = 5, 2
"""Trials to each of k for the expected best of k to be printed with an interval, and to be printed at all."""


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
            names("entry", frame, "better"),
            names("minus", frame, "other"),
            Column("difference [95 %]", interval_cells(frame, "difference", 1, scale=100), keep=9),
            Column("corrected p", cells(frame, lambda row: p_words(row["p"])), keep=9),
            Column("S difference [95 %]", interval_cells(frame, "stability_difference"), keep=7),
            Column("corrected p of S", cells(frame, lambda row: p_words(row["stability_p"])), keep=6),
            Column("seeds", cells(frame, lambda row: str(row["seeds"])), keep=5),
            names("verdict", frame),
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
            names("entry", frame),
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
        both = standings.of_entry(label), standings.of_entry(label, DEFAULTS)
        gap = rows.difference_interval(*both, standings.topics)
        score = standings.stability_difference(label, label, DEFAULTS)
        records.append(
            {
                "entry": label,
                "knobs": "; ".join(knobs) or "no knobs",
                **statistics.columns(
                    {
                        "tuned": standings.interval(both[0]),
                        "defaults": standings.interval(both[1]),
                        "difference": gap,
                        "stability_difference": None if score is None else effects.interval(score),
                    }
                ),
                "note": main_note(main_rows.get(member.winner + DEFAULTS, {})),
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
            names("entry", frame),
            names("knobs", frame, keep=8),
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


def leagues_of_runs(runs: Sequence[Run], mains: Sequence[Table], differing: Sequence[str]) -> Table | None:
    """Return one row per entry over several leagues; None unless all runs are leagues of the same entries.

    mains: their main tables. differing: what is not the same in these runs, as the caption says it.
    """
    leagues_by_run = [Standings.by_checkpoint(run, main) for run, main in zip(runs, mains, strict=True)]
    leagues = [league for leagues_of_run in leagues_by_run for league in leagues_of_run]
    if not all(leagues_by_run) or any(_winners(league).keys() != _winners(leagues[0]).keys() for league in leagues):
        return None
    if len({league.rate for league in leagues}) > 1:
        return None
    return leagues_over(leagues, f"Not the same in all: {'; '.join(differing) or 'nothing that was recorded'}.")


def leagues_over(leagues: Sequence[Standings], remark: str = "") -> Table:
    """Return one row per method over the leagues of several SFT checkpoints. remark: ends the caption."""
    runs = list({league.run.path: league.run for league in leagues}.values())
    outcomes_by_league = [_winners(league) for league in leagues]
    rates = pd.DataFrame(
        [
            {
                method: np.nan if row is None else np.nanmean(statistics.prompt_means(row[1]))
                for method, row in outcomes.items()
            }
            for outcomes in outcomes_by_league
        ]
    )
    places = rates.rank(axis=1, ascending=False, method="min")
    # Which leagues start from one checkpoint is not known where one of them does not say from which it does.
    starts = [_weights(league) for league in leagues]
    starts = [None] * len(starts) if None in starts else starts
    # An entry that was not confirmed from one of them cannot lead over all.
    everywhere = rates.loc[:, rates.notna().all()].groupby(pd.factorize(np.asarray(starts, dtype=object))[0]).mean()
    leader = None if everywhere.empty else str(everywhere.mean().idxmax())
    frame = pd.DataFrame([_row(str(method), leader, outcomes_by_league, leagues, starts) for method in rates])
    frame["ranks"] = [
        ", ".join("–" if np.isnan(place) else f"{place:.0f}" for place in places[method]) for method in frame["entry"]
    ]
    frame = frame.sort_values(["rate", "entry"], ascending=[False, True], na_position="last").reset_index(drop=True)
    rate, count = unit_of(leagues[0].rate)[0], len(set(starts))
    within, repeated = "", []
    if count < len(leagues):
        within = f" in {len(leagues)} leagues"
        reason = "start from the same SFT checkpoint in part, and those from one are"
        if None in starts:
            reason = "do not all say from which SFT checkpoint they start, so they are"
        repeated = [f"These leagues {reason} one draw, their mean. ranks, behind and separable count leagues."]
    items = "" if _same_items(leagues) is None else " and items"
    return Table(
        frame=frame,
        caption=f"{' and '.join(run.path.name for run in runs)}: {len(frame)} entries from {count} SFT "
        f"checkpoint{'s' * (count > 1)}{within}. {remark}".rstrip(),
        notes=[
            f"{rate} and its difference to {leader or 'a leader, which there is not'}: mean over checkpoints, each of "
            f"which counts as one draw, with Student's t over them{items}; one comparison each, not corrected. Winners "
            "were tuned anew from each, so that the intervals hold tuning too.",
            "ranks: from each checkpoint, in their order. behind: from how many checkpoints the entry is "
            "below the leader; separable: from how many the league's own table tells the two apart that way.",
            *repeated,
        ],
        columns=(
            names("entry", frame),
            Column(f"{rate} [95 %]", interval_cells(frame, "rate", 1, scale=100), keep=9),
            Column("stability S [95 %]", interval_cells(frame, "stability", 2), keep=8),
            names("ranks", frame, keep=9),
            Column("to the first [95 %]", interval_cells(frame, "difference", 1, scale=100, signed=True), keep=8),
            Column("behind", cells(frame, lambda row: f"{row['behind']} of {row['checkpoints']}"), keep=7),
            Column("separable", cells(frame, lambda row: f"{row['separable']} of {row['checkpoints']}"), keep=7),
        ),
    )


def _winners(league: Standings) -> dict[str, Outcomes | None]:
    """Return the confirmed outcomes of each method's winner."""
    return {member.entry.method: league.confirmed.get(label) for label, member in league.members.items()}


def _same_items(leagues: Sequence[Standings]) -> tuple[np.ndarray | None] | None:
    """Return the topics of the items that all leagues share; None where they are not known to be the same."""
    first = leagues[0]
    hashes = [(league.run.manifest.get("hashes") or {}).get("prompts_report") for league in leagues]
    alike = len(set(hashes)) == 1 and hashes[0] is not None and first.rate == "win_rate"
    return (first.topics,) if alike or all(league.run is first.run for league in leagues) else None


def _row(
    method: str,
    leader: str | None,
    outcomes_by_league: Sequence[dict[str, Outcomes | None]],
    leagues: Sequence[Standings],
    starts: Sequence[Any],
) -> dict[str, Any]:
    rates = [None if (row := outcomes[method]) is None else draw(row) for outcomes in outcomes_by_league]
    pairs = (
        [(outcomes[method], outcomes[leader]) for outcomes in outcomes_by_league]
        if leader not in (None, method)
        else []
    )
    gaps = [None if row is None or first is None else draw(row, first) for row, first in pairs]
    means = [float(np.nanmean(gap)) for gap in gaps if gap is not None and np.isfinite(gap).any()]
    labels = [{member.entry.method: label for label, member in league.members.items()} for league in leagues]
    claims = [
        league.claims.get((label_of.get(str(leader), ""), label_of[method]))
        for league, label_of in zip(leagues, labels, strict=True)
    ]
    winners = [league.members[label_of[method]].winner for league, label_of in zip(leagues, labels, strict=True)]
    scores = [league.scores.get(winner or "") for league, winner in zip(leagues, winners, strict=True)]
    steady = [None if score is None else draw(score) for score in scores]
    item_topics = _same_items(leagues)
    topics = item_topics[0] if item_topics else None
    draws_by_start = [_mean_by_start(each, starts, items=item_topics is not None) for each in (rates, gaps)]
    return {
        "entry": method,
        **statistics.columns(
            {
                "rate": effects.over(draws_by_start[0], topics, least=0.0),
                "difference": effects.over(draws_by_start[1], topics),
                "stability": effects.over(_mean_by_start(steady, starts, items=True), least=0.0),
            }
        ),
        "behind": sum(mean < 0 for mean in means),
        "separable": sum(claim is not None and claim.matters for claim in claims),
        "checkpoints": sum(each is not None for each in rates),
        "settling": effects.settling_words(draws_by_start[1], topics),
    }


def _mean_by_start(draws: Sequence[np.ndarray | None], starts: Sequence[Any], *, items: bool) -> list[np.ndarray]:
    """Average the draws of the leagues from each SFT checkpoint. items: keep the items apart."""
    draws_by_start: dict[Any, list[np.ndarray]] = {}
    for drawn, start in zip(draws, starts if draws else (), strict=True):
        if drawn is not None and np.isfinite(drawn).any():
            draws_by_start.setdefault(start, []).append(drawn if items else np.asarray(np.nanmean(drawn)))
    return [np.asarray(np.mean(each, axis=0)) for each in draws_by_start.values()]


def _weights(league: Standings) -> Any:
    """Return the hash of the SFT checkpoint that a league starts from."""
    hashes = league.run.manifest.get("hashes") or {}
    weights = None if league.sft_seed is None else hashes.get(weights_at(league.sft_seed))
    recorded = weights or hashes.get("sft_weights") or hashes.get("sft_checkpoint")
    return recorded or (None if league.sft_seed is None else f"sft.seed {league.sft_seed}")


def stacked(leagues: Sequence[Standings], tables: Sequence[Table]) -> Table | None:
    """Stack the tables of the checkpoints' leagues, with a column for the checkpoint; None without any."""
    parts = [(league.sft_seed, table) for league, table in zip(leagues, tables, strict=True)]
    if len(parts) < 2:
        return parts[0][1] if parts else None
    first = next((table for _, table in parts if table.columns), parts[0][1])
    parts = [(seed, table) for seed, table in parts if table.columns]
    if not parts:
        return first
    seeds = [seed for seed, table in parts for _ in range(len(table.frame))]
    stacked_columns = [
        replace(
            column,
            cells=tuple(cell for _, table in parts for cell in table.columns[place].cells),
            marks=tuple(mark for _, table in parts for mark in table.columns[place].marks),
        )
        for place, column in enumerate(first.columns)
    ]
    return replace(
        first,
        frame=pd.concat([table.frame for _, table in parts], ignore_index=True).assign(sft_seed=pd.Series(seeds)),
        notes=list(dict.fromkeys(note for _, table in parts for note in table.notes)),
        columns=(stacked_columns[0], Column("sft.seed", tuple(map(str, seeds)), keep=10), *stacked_columns[1:]),
        remarks=tuple(remark for _, table in parts for remark in table.remarks),
    )


def sentences_over(leagues: Sequence[Standings], table: Table) -> Sentences:
    """Say what leagues from several checkpoints leave open, and what holds from all of them."""
    frame = table.frame.dropna(subset=["rate"])
    open_ = [f"How {entry} does: it was confirmed from no checkpoint." for entry in table.frame["entry"][len(frame) :]]
    if frame.empty:
        return open_, []
    unit, first = unit_of(leagues[0].rate)[0].removesuffix(" %"), frame.iloc[0]
    settled = [
        f"Highest {unit} over {len(leagues)} SFT checkpoints: {first['entry']} with "
        f"{number(first['rate'], 1, scale=100)} %."
    ]
    for row in frame.iloc[1:].to_dict("records"):
        words = (
            f"{row['entry']} is behind {first['entry']}: {number(row['difference'], 1, scale=100, signed=True)} points "
            f"[{number(row['difference_low'], 1, scale=100, signed=True)}, "
            f"{number(row['difference_high'], 1, scale=100, signed=True)}] over checkpoints, behind from "
            f"{row['behind']} of {row['checkpoints']}, separable from {row['separable']}"
        )
        holds = row["difference_high"] < 0 and row["behind"] == len(leagues)
        (settled if holds else open_).append(f"{words}." if holds else f"Whether {words}{row['settling']}.")
    more = {league.sft_seed: more_tuning(league).removesuffix(".") for league in leagues}
    alike = len(set(more.values())) == 1
    words = "; ".join(dict.fromkeys(text if alike else f"sft.seed {seed}: {text}" for seed, text in more.items()))
    return [*open_, f"What three times the tuning would change: {words}."], settled
