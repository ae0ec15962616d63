"""The table of stability's parts: each with its interval and its share of the damage."""

from dataclasses import asdict

import pandas as pd

from slime_ray.runs import results
from slime_ray.runs.stability_v1 import TOLERANCES

from . import statistics
from .printing import Column, Table, cells, interval_cells, number
from .rows import PARTS, name_of, version_of
from .stability import DIGITS, stability_cell

TITLES = ("label", "phase", "seeds_finished", "seeds")


def stability_parts(run: results.Run, main: Table) -> Table:
    """A row for each row of the main table. In `frame`, `<part>_low` and `_high` are the ends of its interval."""
    if main.frame.empty:
        return Table(frame=pd.DataFrame(columns=["label"]), caption="This run has no arms and no winner.", notes=[])
    ends = [f"{name}{end}" for name in ("stability", *PARTS) for end in ("", "_low", "_high")]
    shares = [f"{name}_share" for name in PARTS]
    frame = main.frame[[*TITLES, "stability_min", "stability_max", *ends, *shares]].copy()
    tolerances = asdict(TOLERANCES)
    return Table(
        frame=frame,
        caption=f"{name_of(run)}: stability and its parts by {version_of(run)}, S = g / (1 + sum of (x/h)²), with "
        "tolerances h: " + ", ".join(f"{letter} {tolerances[name]:.2f}" for name, letter in PARTS.items()) + ".",
        notes=[
            "Each part with its 95 % interval where pairs were recorded: percentile bootstrap, "
            f"{statistics.RESAMPLES:,} resamples, over held-out pairs (U, C, H), prompts (B, L) and blocks of updates "
            "(T); S: all three together. Intervals are of these checkpoints, parts are means over measured seeds.",
            "No part is below 0, so an interval that begins at 0 says that nothing but chance may have been seen; one "
            "of [0, 0] says that nothing was seen at all, not that nothing can happen.",
            "U % to T %: the part's share of the damage, the sum of (x/h)². seeds: the lowest and the highest S.",
        ],
        columns=(
            Column("label", tuple(frame["label"]), numeric=False, keep=10),
            Column("S", cells(frame, stability_cell), keep=3),
            Column("seeds", cells(frame, _seeds_cell), keep=2),
            *(
                column
                for name, letter in PARTS.items()
                for column in (
                    Column(letter, interval_cells(frame, name, DIGITS.get(name, 2)), keep=8),
                    Column(
                        f"{letter} %", tuple(number(share, 0, scale=100) for share in frame[f"{name}_share"]), keep=1
                    ),
                )
            ),
        ),
    )


def _seeds_cell(row: pd.Series) -> str:
    return f"{number(row['stability_min'])}–{number(row['stability_max'])}"
