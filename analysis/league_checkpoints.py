"""Leagues from several SFT checkpoints beside each other: whether what holds from one holds from another."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from slime_ray.runs.results import Run

from . import effects, league, tables
from .knobs import unit_of
from .league import Standings
from .printing import Column, Table, cells, interval_cells
from .statistics import columns


def checkpoints(runs: Sequence[Run], differing: Sequence[str]) -> Table | None:
    """One row per entry over several leagues; None where the runs are not all leagues of the same entries.

    differing: what is not the same in these runs, as the caption says it.
    """
    found = [Standings.of(run, tables.win_rate_stability(run)) for run in runs]
    leagues = [one for one in found if one is not None]
    if len(leagues) < len(runs) or any(one.members.keys() != leagues[0].members.keys() for one in leagues):
        return None
    if len({one.rate for one in leagues}) > 1:
        return None
    frames = [league.standings(one).frame.set_index("entry") for one in leagues]
    rates = pd.DataFrame([frame[one.rate] for frame, one in zip(frames, leagues, strict=True)])
    places = rates.rank(axis=1, ascending=False, method="min")
    # An entry that was not confirmed from one of them cannot lead over all.
    leader = rates.mean(skipna=False).idxmax() if rates.notna().all().any() else None
    frame = pd.DataFrame([_row(str(entry), rates, places, leader, leagues) for entry in rates])
    frame = frame.sort_values(["rate", "entry"], ascending=[False, True], na_position="last").reset_index(drop=True)
    rate, count = unit_of(leagues[0].rate)[0], len(runs)
    return Table(
        frame=frame,
        caption=f"{' and '.join(run.path.name for run in runs)}: {len(frame)} entries from {count} SFT checkpoints. "
        f"Not the same in all: {'; '.join(differing) or 'nothing that was recorded'}.",
        notes=[
            f"{rate} and its difference to {leader or 'a leader, which there is not'}: mean over checkpoints, each of "
            "which counts as one draw, with Student's t over them; one comparison each, not corrected. Winners were "
            "tuned anew from each, so that the intervals hold tuning too.",
            "ranks: from each checkpoint, in the order of the runs. behind: from how many checkpoints the entry is "
            "below the leader; separable: from how many the league's own table tells the two apart that way.",
            *_repeated(runs),
        ],
        columns=(
            Column("entry", tuple(frame["entry"]), numeric=False, keep=10),
            Column(f"{rate} [95 %]", interval_cells(frame, "rate", 1, scale=100), keep=9),
            Column("ranks", tuple(frame["ranks"]), numeric=False, keep=9),
            Column("to the first [95 %]", interval_cells(frame, "difference", 1, scale=100, signed=True), keep=8),
            Column("behind", cells(frame, lambda row: f"{row['behind']} of {row['checkpoints']}"), keep=7),
            Column("separable", cells(frame, lambda row: f"{row['separable']} of {row['checkpoints']}"), keep=7),
        ),
    )


def _row(
    entry: str, rates: pd.DataFrame, places: pd.DataFrame, leader: object, leagues: Sequence[Standings]
) -> dict[str, object]:
    own = rates[entry].dropna().to_numpy(dtype=float)
    gap = (rates[entry] - rates[leader]).dropna().to_numpy(dtype=float) if leader not in (None, entry) else np.array([])
    claims = [one.claims.get((str(leader), entry)) for one in leagues]
    return {
        "entry": entry,
        **columns(
            {
                "rate": effects.interval(own) if len(own) else None,
                "difference": effects.interval(gap) if len(gap) else None,
            }
        ),
        "ranks": ", ".join("–" if np.isnan(place) else f"{place:.0f}" for place in places[entry]),
        "behind": int((gap < 0).sum()),
        "separable": sum(claim is not None and claim.matters for claim in claims),
        "checkpoints": len(own),
    }


def _repeated(runs: Sequence[Run]) -> list[str]:
    hashes = [(run.manifest.get("hashes") or {}).get("sft_checkpoint") for run in runs]
    if len(set(hashes)) == len(runs) and None not in hashes:
        return []
    return ["Some of these runs start from the same SFT checkpoint, or do not say from which: they are no new draws."]
