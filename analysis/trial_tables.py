"""Tables of a run's trials: what they took beside what they might spend, alarms, and what did not complete."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.runs.results import Run

from .printing import ABSENT, Column, Table, cells, empty, number, numbers
from .rows import FINISHED, name_of

PHASES = {"arm": "arms", "search": "search", "confirm": "confirmation"}
LIMITS = {"trials": "search trials", "hours": "hours", "gpu_hours": "GPU-hours", "judge_calls": "calls of the judge",
          "cost": "cost"}  # fmt: skip
IN_MINUTES = 10 * 3600.0
"""Runs of fewer seconds are told in minutes."""
COLLAPSED = 0.05
"""Final stability below which the table's note counts a run as collapsed: parts that cost 19 tolerances squared."""


def cost(run: Run) -> Table:
    """A row per phase and one for all. In `frame`: trials, updates made and planned, training tokens, and seconds."""
    groups = {words: run.trials[run.trials["phase"] == phase] for phase, words in PHASES.items()}
    groups = {words: group for words, group in groups.items() if len(group)} | {"all": run.trials}
    frame = pd.DataFrame([_row(words, group) for words, group in groups.items()])
    shares = frame["updates"] / frame["planned_updates"].where(frame["planned_updates"] > 0)
    unit, per = ("min", 60.0) if run.trials["total_seconds"].sum() < IN_MINUTES else ("h", 3600.0)

    def counts(name: str) -> tuple[str, ...]:
        return cells(frame, lambda row: f"{int(row[name]):,}")

    def times(name: str) -> tuple[str, ...]:
        return numbers(frame, name, 1, scale=1 / per)

    return Table(
        frame=frame,
        caption=f"{name_of(run)}: what the trials took, added up over trials that ran side by side.",
        notes=_notes(run),
        columns=(
            Column("phase", tuple(frame["phase"]), numeric=False, keep=10),
            Column("trials", counts("trials"), keep=9),
            Column("completed", counts("completed"), keep=8),
            Column("updates", counts("updates"), keep=6),
            Column("of planned %", tuple(number(share, 0, scale=100) for share in shares), keep=3),
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


def alarms(run: Run) -> Table:
    """One row per arm, and one for the search: its runs, their alarms and first steps, and how stable they ended.

    Empty where the sentinel raised no alarm.
    """
    trials = run.trials[run.trials["status"] != "failed"]
    if trials["alarm"].isna().all():
        return empty("The sentinel raised no alarm.")
    names = trials["label"].where(trials["phase"] != "search", "search")
    rows = []
    for label, group in trials.groupby(names, sort=False):
        said = group["alarm"].dropna()
        steps = said.str.extract(r" at step (\d{1,9})$")[0].dropna().astype(int)
        # An alarm begins with the name of its sign.
        signs = Counter(re.split(r", | at step ", alarm, maxsplit=1)[0] for alarm in said)
        rows.append(
            {
                "label": str(label),
                "runs": len(group),
                "alarms": len(said),
                "first_step": steps.min() if len(steps) else pd.NA,
                "last_step": steps.max() if len(steps) else pd.NA,
                "stability_min": group["stability"].min(),
                "stability_max": group["stability"].max(),
                "signs": ", ".join(f"{sign} {count}" for sign, count in signs.most_common()),
            }
        )
    frame = pd.DataFrame(rows)
    collapsed, raised = trials["stability"] < COLLAPSED, trials["alarm"].notna()
    return Table(
        frame=frame,
        caption=f"{name_of(run)}: the sentinel's alarms, {raised.sum()} in {len(trials)} runs.",
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
                cells(frame, lambda row: f"{row['stability_min']:.2f}–{row['stability_max']:.2f}"),
                keep=8,
            ),
            Column("signs", tuple(sign or ABSENT for sign in frame["signs"]), numeric=False, keep=5),
        ),
    )


def _span(first: Any, last: Any) -> str:
    if pd.isna(first):
        return ABSENT
    return str(first) if first == last else f"{first}–{last}"


def failures(run: Run) -> Table:
    """Every trial that did not complete, with its reason; also those that the manifest alone knows."""
    known = run.trials[run.trials["status"] != FINISHED][["trial_id", "phase", "label", "seed", "status", "reason"]]
    listed = run.manifest.get("failed_trials") or []
    seen = set(run.trials["trial_id"])
    others = pd.DataFrame([item for item in listed if isinstance(item, dict) and item.get("trial_id") not in seen])
    frame = pd.concat([known, others], ignore_index=True) if len(others) else known.reset_index(drop=True)
    frame = frame.sort_values("trial_id").reset_index(drop=True)
    if frame.empty:
        return Table(frame, f"All {len(run.trials)} trials completed.", [])
    shown = ("trial_id", "status", "reason")
    texts = {name: tuple(ABSENT if pd.isna(value) else str(value) for value in frame[name]) for name in shown}
    return Table(
        frame=frame,
        caption=f"{len(frame)} of {len(run.trials) + len(others)} trials did not complete.",
        notes=["Failed and diverged trials count as stability 0 and have no win rate; stopped ones count as measured."],
        columns=tuple(Column(name, cells_, numeric=False) for name, cells_ in texts.items()),
    )
