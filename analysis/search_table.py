"""The table of a run's search trials, and which of them no other beats."""

from typing import Any

import numpy as np
import pandas as pd

from slime_ray.runs import pareto, results

from .printing import ABSENT, Column, Table, cells, number, one_line
from .rows import FINISHED, is_judged, judge_of, name_of


def front_mask(run: results.Run, trials: pd.DataFrame) -> np.ndarray:
    """(trials,) whether each is on the front of the run's goals; trials that did not finish never are."""
    goals = {name: way for name, way in (run.manifest.get("goals") or {}).items() if name in trials.columns}
    points = trials[list(goals)].to_numpy(dtype=float) * [-1 if way == "minimize" else 1 for way in goals.values()]
    ranked = (trials["status"] == FINISHED).to_numpy() & np.isfinite(points).all(axis=1)
    mask = np.zeros(len(trials), dtype=bool)
    if goals and ranked.any():
        mask[ranked] = pareto.on_front(points[ranked])
    return mask


def search_trials(run: results.Run) -> Table:
    """One row per search trial with what it set, measured on the selection prompts; the front first."""
    trials = run.trials[run.trials["phase"] == "search"]
    if trials.empty:
        return Table(frame=pd.DataFrame(columns=["trial_id"]), caption="This run did not search.", notes=[])
    knobs = [name for name in trials.columns if name.startswith(results.KNOB) and trials[name].notna().any()]
    shown = ["win_rate", "prompts", "stability", "chosen_drift", "preference_accuracy", "status", "reason"]
    frame = trials[["trial_id", *knobs, *shown]].copy()
    frame["on_front"] = front_mask(run, trials)
    judged, judge = is_judged(run), judge_of(run)
    lead = "win_rate" if judged else "preference_accuracy"
    order = ["on_front", lead, "trial_id"]
    frame = frame.sort_values(order, ascending=[False, False, True], na_position="last").reset_index(drop=True)
    short = {name: name.rpartition(".")[2] for name in knobs}
    heads = (
        short if len(set(short.values())) == len(short) else {name: name.removeprefix(results.KNOB) for name in knobs}
    )
    rate = (
        Column("win rate %", cells(frame, lambda row: number(row["win_rate"], 1, scale=100)), keep=9)
        if judged
        else Column("acc. %", cells(frame, lambda row: number(row["preference_accuracy"], 1, scale=100)), keep=9)
    )
    goals = ", ".join(f"{name} ({way})" for name, way in (run.manifest.get("goals") or {}).items()) or "none recorded"
    prompts = int(frame["prompts"].max()) if frame["prompts"].notna().any() else 0
    where = f"{prompts} selection prompts, judge {judge}" if judged else "the held-out pairs; nothing was judged"
    return Table(
        frame=frame,
        caption=f"{name_of(run)}: {len(frame)} search trials, measured on {where}.",
        notes=[
            f"Front: no other finished trial is at least as good in all goals and better in one. Goals: {goals}.",
            "The best of many trials on the selection prompts looks better than it is: judge a winner by its confirmed "
            "row, which was measured on other prompts.",
        ],
        columns=(
            Column("trial", tuple(frame["trial_id"]), numeric=False, keep=10),
            *(Column(heads[name], tuple(map(_knob, frame[name])), keep=4) for name in knobs),
            rate,
            Column("stability S", cells(frame, lambda row: number(row["stability"])), keep=9),
            Column("drift", cells(frame, lambda row: number(row["chosen_drift"], 3, signed=True)), keep=6),
            Column("status", tuple(frame["status"]), numeric=False, keep=7),
            Column("front", cells(frame, lambda row: "yes" if row["on_front"] else ""), numeric=False, keep=8),
        ),
        remarks=cells(frame, lambda row: "" if pd.isna(row["reason"]) else str(row["reason"])),
    )


def _knob(value: Any) -> str:
    if pd.isna(value):
        return ABSENT
    return f"{value:.3g}" if isinstance(value, (int, float)) else one_line(str(value))
