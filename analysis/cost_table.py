"""What a run took, by phase, beside what it might spend."""

from typing import Any

import numpy as np
import pandas as pd

from slime_ray.runs.results import Run

from .printing import ABSENT, Column, Table, cells, number
from .rows import FINISHED, name_of

PHASES = {"arm": "arms", "search": "search", "confirm": "confirmation"}
LIMITS = {"trials": "search trials", "hours": "hours", "gpu_hours": "GPU-hours", "judge_calls": "calls of the judge",
          "cost": "cost"}  # fmt: skip
IN_MINUTES = 10 * 3600.0
"""Runs of fewer seconds are told in minutes."""


def cost(run: Run) -> Table:
    """A row per phase and one for all. In `frame`: trials, updates made and planned, training tokens, and seconds."""
    groups = {words: run.trials[run.trials["phase"] == phase] for phase, words in PHASES.items()}
    groups = {words: group for words, group in groups.items() if len(group)} | {"all": run.trials}
    frame = pd.DataFrame([_row(words, group) for words, group in groups.items()])
    unit, per = ("min", 60.0) if run.trials["total_seconds"].sum() < IN_MINUTES else ("h", 3600.0)

    def counts(name: str) -> tuple[str, ...]:
        return cells(frame, lambda row: f"{int(row[name]):,}")

    def times(name: str) -> tuple[str, ...]:
        return cells(frame, lambda row: number(row[name], 1, scale=1 / per))

    return Table(
        frame=frame,
        caption=f"{name_of(run)}: what the trials took, added up over trials that ran side by side.",
        notes=_notes(run),
        columns=(
            Column("phase", tuple(frame["phase"]), numeric=False, keep=10),
            Column("trials", counts("trials"), keep=9),
            Column("completed", counts("completed"), keep=8),
            Column("updates", counts("updates"), keep=6),
            Column("of planned %", cells(frame, _share), keep=3),
            Column("training tokens", counts("tokens"), keep=7),
            Column(f"training {unit}", times("train_seconds"), keep=7),
            Column(f"evaluation {unit}", times("evaluation_seconds"), keep=6),
            Column(f"in all {unit}", times("total_seconds"), keep=9),
            Column(f"computed twice {unit}", times("lost_seconds"), keep=4),
        ),
    )


def _row(words: str, group: pd.DataFrame) -> dict[str, Any]:
    known = group["planned_updates"].notna()
    return {
        "phase": words,
        "trials": len(group),
        "completed": int((group["status"] == FINISHED).sum()),
        "updates": int(group["updates"].sum()),
        "planned_updates": group["planned_updates"].sum() if known.all() else np.nan,
        "tokens": int(group["tokens"].sum()),
        **{name: float(group[name].sum()) for name in ("train_seconds", "evaluation_seconds", "total_seconds")},
        "lost_seconds": float(group["lost_seconds"].fillna(0).sum()),
    }


def _share(row: pd.Series) -> str:
    return number(row["updates"] / row["planned_updates"], 0, scale=100) if row["planned_updates"] else ABSENT


def _notes(run: Run) -> list[str]:
    manifest = run.manifest
    spent, budget = manifest.get("spent") or {}, (manifest.get("experiment") or {}).get("budget") or {}
    searched = int((run.trials["phase"] == "search").sum())
    spent = {**spent, "trials": searched}
    said = []
    for name, words in LIMITS.items():
        if budget.get(name) is not None and (searched or name != "trials"):
            said.append(f"{_amount(spent.get(name))} of {_amount(budget[name])} {words}")
        elif spent.get(name) and name != "trials":
            said.append(f"{_amount(spent[name])} {words}, without a limit")
    notes = []
    if said:
        notes.append(f"Spent: {'; '.join(said)}. Hours are of the last start of the sweep, all else of the whole run.")
    if manifest.get("ended_by"):
        notes.append(f"The search ended by {manifest['ended_by']}.")
    if manifest.get("stage_seconds"):
        seconds = f"{manifest['stage_seconds']:.0f} s"
        notes.append(f"Not in the table: {seconds} for what trials share, such as the SFT checkpoint.")
    return notes


def _amount(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
