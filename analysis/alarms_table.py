"""The table of what the sentinel said during training, beside how those runs ended."""

import re
from collections import Counter
from typing import Any

import pandas as pd

from slime_ray.runs import results

from .printing import ABSENT, Column, Table

COLLAPSED = 0.05
"""Final stability below which the table's note counts a run as collapsed: parts that cost 19 tolerances squared."""


def alarms(run: results.Run) -> Table:
    """One row per arm, and one for the search: its runs, their alarms and first steps, and how stable they ended.

    Empty where the sentinel raised no alarm.
    """
    trials = run.trials[run.trials["status"] != "failed"]
    if trials["alarm"].isna().all():
        return Table(frame=pd.DataFrame(columns=["label"]), caption="The sentinel raised no alarm.", notes=[])
    names = trials["label"].where(trials["phase"] != "search", "search")
    rows = []
    for label, group in trials.groupby(names, sort=False):
        said = group["alarm"].dropna()
        steps = said.str.extract(r" at step (\d{1,9})$")[0].dropna().astype(int)
        rows.append(
            {
                "label": str(label),
                "runs": len(group),
                "alarms": len(said),
                "first_step": steps.min() if len(steps) else pd.NA,
                "last_step": steps.max() if len(steps) else pd.NA,
                "stability_min": group["stability"].min(),
                "stability_max": group["stability"].max(),
                "signs": ", ".join(f"{sign} {count}" for sign, count in Counter(map(_sign, said)).most_common()),
            }
        )
    frame = pd.DataFrame(rows)
    collapsed, raised = trials["stability"] < COLLAPSED, trials["alarm"].notna()
    name = run.manifest.get("name", run.path.name)
    return Table(
        frame=frame,
        caption=f"{name}: the sentinel's alarms, {raised.sum()} in {len(trials)} runs.",
        notes=[
            f"Of {collapsed.sum()} runs that ended with S below {COLLAPSED}, {(raised & collapsed).sum()} had raised "
            f"an alarm; of {(~collapsed).sum()} others, {(raised & ~collapsed).sum()}. A run that was stopped by its "
            "alarm counts as it was then.",
        ],
        columns=(
            Column("label", tuple(frame["label"]), numeric=False, keep=10),
            Column("runs", tuple(map(str, frame["runs"])), keep=8),
            Column("alarms", tuple(map(str, frame["alarms"])), keep=9),
            Column("first at step", tuple(map(_span, frame["first_step"], frame["last_step"])), keep=9),
            Column(
                "stability S",
                tuple(
                    f"{low:.2f}–{high:.2f}"
                    for low, high in zip(frame["stability_min"], frame["stability_max"], strict=True)
                ),
                keep=8,
            ),
            Column("signs", tuple(sign or ABSENT for sign in frame["signs"]), numeric=False, keep=5),
        ),
    )


def _sign(alarm: str) -> str:
    """The name of the sign in an alarm's sentence."""
    return re.split(r", | at step ", alarm, maxsplit=1)[0]


def _span(first: Any, last: Any) -> str:
    if pd.isna(first):
        return ABSENT
    return str(first) if first == last else f"{first}–{last}"
