"""Leagues from several SFT checkpoints beside each other: whether what holds from one holds from another."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.config.league import weights_at
from slime_ray.runs.results import Run

from . import checkpoints, league_answer, tables
from .knobs import unit_of
from .league import Standings
from .printing import Column, Sentences, Table, cells, interval_cells, number
from .rows import Outcomes
from .statistics import columns


def of_runs(runs: Sequence[Run], differing: Sequence[str]) -> Table | None:
    """One row per entry over several leagues; None where the runs are not all leagues of the same entries.

    differing: what is not the same in these runs, as the caption says it.
    """
    every = [Standings.each(run, tables.win_rate_stability(run)) for run in runs]
    leagues = [one for each in every for one in each]
    if not all(every) or any(_winners(one).keys() != _winners(leagues[0]).keys() for one in leagues):
        return None
    if len({one.rate for one in leagues}) > 1:
        return None
    return over(leagues, f"Not the same in all: {'; '.join(differing) or 'nothing that was recorded'}.")


def over(leagues: Sequence[Standings], remark: str = "") -> Table:
    """One row per method over the leagues of several checkpoints. remark: ends the caption."""
    runs = list({one.run.path: one.run for one in leagues}.values())
    won = [_winners(one) for one in leagues]
    rates = pd.DataFrame(
        [{method: np.nan if row is None else np.nanmean(row[1]) for method, row in one.items()} for one in won]
    )
    places = rates.rank(axis=1, ascending=False, method="min")
    starts = _starts(leagues)
    # An entry that was not confirmed from one of them cannot lead over all.
    everywhere = rates.loc[:, rates.notna().all()].groupby(pd.factorize(np.asarray(starts, dtype=object))[0]).mean()
    leader = None if everywhere.empty else str(everywhere.mean().idxmax())
    frame = pd.DataFrame([_row(str(method), leader, won, leagues, starts) for method in rates])
    frame["ranks"] = [
        ", ".join("–" if np.isnan(place) else f"{place:.0f}" for place in places[method]) for method in frame["entry"]
    ]
    frame = frame.sort_values(["rate", "entry"], ascending=[False, True], na_position="last").reset_index(drop=True)
    rate, count = unit_of(leagues[0].rate)[0], len(set(starts))
    within = f" in {len(leagues)} leagues" if count < len(leagues) else ""
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
            *_repeated(leagues, starts),
        ],
        columns=(
            Column("entry", tuple(frame["entry"]), numeric=False, keep=10),
            Column(f"{rate} [95 %]", interval_cells(frame, "rate", 1, scale=100), keep=9),
            Column("stability S [95 %]", interval_cells(frame, "stability", 2), keep=8),
            Column("ranks", tuple(frame["ranks"]), numeric=False, keep=9),
            Column("to the first [95 %]", interval_cells(frame, "difference", 1, scale=100, signed=True), keep=8),
            Column("behind", cells(frame, lambda row: f"{row['behind']} of {row['checkpoints']}"), keep=7),
            Column("separable", cells(frame, lambda row: f"{row['separable']} of {row['checkpoints']}"), keep=7),
        ),
    )


def _winners(found: Standings) -> dict[str, Outcomes | None]:
    """The confirmed outcomes of each method's winner."""
    return {member.entry.method: found.confirmed.get(label) for label, member in found.members.items()}


def _same_items(leagues: Sequence[Standings]) -> tuple[np.ndarray | None] | None:
    """The topics of the items that all leagues are measured on; None where they are not known to be the same."""
    first = leagues[0]
    asked = [(one.run.manifest.get("hashes") or {}).get("prompts_report") for one in leagues]
    alike = len(set(asked)) == 1 and asked[0] is not None and first.rate == "win_rate"
    return (first.topics,) if alike or all(one.run is first.run for one in leagues) else None


def _row(
    method: str,
    leader: str | None,
    won: Sequence[dict[str, Outcomes | None]],
    leagues: Sequence[Standings],
    starts: Sequence[Any],
) -> dict[str, Any]:
    own = [None if (row := one[method]) is None else checkpoints.draw(row) for one in won]
    pairs = [(one[method], one[leader]) for one in won] if leader not in (None, method) else []
    gaps = [None if row is None or first is None else checkpoints.draw(row, first) for row, first in pairs]
    means = [float(np.nanmean(gap)) for gap in gaps if gap is not None and np.isfinite(gap).any()]
    labels = [{member.entry.method: label for label, member in one.members.items()} for one in leagues]
    claims = [one.claims.get((of.get(str(leader), ""), of[method])) for one, of in zip(leagues, labels, strict=True)]
    winners = [one.members[of[method]].winner for one, of in zip(leagues, labels, strict=True)]
    scores = [one.scores.get(winner or "") for one, winner in zip(leagues, winners, strict=True)]
    steady = [None if one is None else checkpoints.draw(one) for one in scores]
    same = _same_items(leagues)
    topics = same[0] if same else None
    apart = [_mean_by_start(each, starts, items=same is not None) for each in (own, gaps)]
    return {
        "entry": method,
        **columns(
            {
                "rate": checkpoints.over(apart[0], topics, least=0.0),
                "difference": checkpoints.over(apart[1], topics),
                "stability": checkpoints.over(_mean_by_start(steady, starts, items=True), least=0.0),
            }
        ),
        "behind": sum(mean < 0 for mean in means),
        "separable": sum(claim is not None and claim.matters for claim in claims),
        "checkpoints": sum(each is not None for each in own),
        "settling": checkpoints.settling_words(checkpoints.to_settle(apart[1], topics)),
    }


def _mean_by_start(
    draws: Sequence[checkpoints.Draw | None], starts: Sequence[Any], *, items: bool
) -> list[checkpoints.Draw]:
    """The draws of leagues as one of each SFT checkpoint, the mean of its leagues. items: keep them apart."""
    known: dict[Any, list[checkpoints.Draw]] = {}
    for drawn, start in zip(draws, starts if draws else (), strict=True):
        if drawn is not None and np.isfinite(drawn).any():
            known.setdefault(start, []).append(drawn if items else np.asarray(np.nanmean(drawn)))
    return [np.asarray(np.mean(each, axis=0)) for each in known.values()]


def _starts(leagues: Sequence[Standings]) -> list[Any]:
    """What tells the SFT checkpoints of leagues apart; the same for all where one does not say from which it is."""
    hashes = [_weights(one) for one in leagues]
    return [None] * len(hashes) if None in hashes else hashes


def _repeated(leagues: Sequence[Standings], starts: Sequence[Any]) -> list[str]:
    if len(set(starts)) == len(leagues):
        return []
    why = (
        "do not all say from which SFT checkpoint they start, so they are"
        if None in starts
        else ("start from the same SFT checkpoint in part, and those from one are")
    )
    return [f"These leagues {why} one draw, their mean. ranks, behind and separable count leagues."]


def _weights(found: Standings) -> Any:
    """The hash of the SFT checkpoint that a league starts from."""
    hashes = found.run.manifest.get("hashes") or {}
    own = None if found.sft_seed is None else hashes.get(weights_at(found.sft_seed))
    recorded = own or hashes.get("sft_weights") or hashes.get("sft_checkpoint")
    return recorded or (None if found.sft_seed is None else f"sft.seed {found.sft_seed}")


def stacked(leagues: Sequence[Standings], made: Sequence[Table]) -> Table | None:
    """One table of every checkpoint's league in one, with a column for the checkpoint; None without any."""
    parts = [(one.sft_seed, table) for one, table in zip(leagues, made, strict=True)]
    if len(parts) < 2:
        return parts[0][1] if parts else None
    first = next((table for _, table in parts if table.columns), parts[0][1])
    parts = [(seed, table) for seed, table in parts if table.columns]
    if not parts:
        return first
    seeds = [seed for seed, table in parts for _ in range(len(table.frame))]
    together = [
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
        columns=(together[0], Column("sft.seed", tuple(map(str, seeds)), keep=10), *together[1:]),
        remarks=tuple(remark for _, table in parts for remark in table.remarks),
    )


def sentences(found: Sequence[Standings], table: Table) -> Sentences:
    """What leagues from several checkpoints leave open, and what holds from all of them."""
    frame = table.frame.dropna(subset=["rate"])
    open_ = [f"How {entry} does: it was confirmed from no checkpoint." for entry in table.frame["entry"][len(frame) :]]
    if frame.empty:
        return open_, []
    unit, first = unit_of(found[0].rate)[0].removesuffix(" %"), frame.iloc[0]
    settled = [
        f"Highest {unit} over {len(found)} SFT checkpoints: {first['entry']} with "
        f"{number(first['rate'], 1, scale=100)} %."
    ]
    for row in frame.iloc[1:].to_dict("records"):
        words = (
            f"{row['entry']} is behind {first['entry']}: {number(row['difference'], 1, scale=100, signed=True)} points "
            f"[{number(row['difference_low'], 1, scale=100, signed=True)}, "
            f"{number(row['difference_high'], 1, scale=100, signed=True)}] over checkpoints, behind from "
            f"{row['behind']} of {row['checkpoints']}, separable from {row['separable']}"
        )
        holds = row["difference_high"] < 0 and row["behind"] == len(found)
        (settled if holds else open_).append(f"{words}." if holds else f"Whether {words}{row['settling']}.")
    more = {one.sft_seed: league_answer.more_tuning(one).removesuffix(".") for one in found}
    alike = len(set(more.values())) == 1
    words = "; ".join(dict.fromkeys(text if alike else f"sft.seed {seed}: {text}" for seed, text in more.items()))
    return [*open_, f"What three times the tuning would change: {words}."], settled
