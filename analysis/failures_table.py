"""The table of what did not complete, and why."""

import pandas as pd

from slime_ray.runs import results

from .printing import ABSENT, Column, Table
from .rows import FINISHED


def failures(run: results.Run) -> Table:
    """Every trial that did not complete, with its reason; also those that the manifest alone knows."""
    known = run.trials[run.trials["status"] != FINISHED][["trial_id", "phase", "label", "seed", "status", "reason"]]
    listed = run.manifest.get("failed_trials") or []
    seen = set(run.trials["trial_id"])
    others = pd.DataFrame([item for item in listed if isinstance(item, dict) and item.get("trial_id") not in seen])
    frame = pd.concat([known, others], ignore_index=True) if len(others) else known.reset_index(drop=True)
    frame = frame.sort_values("trial_id").reset_index(drop=True)
    texts = {name: tuple(ABSENT if pd.isna(value) else str(value) for value in frame[name]) for name in frame.columns}
    return Table(
        frame=frame,
        caption=f"{len(frame)} of {len(run.trials) + len(others)} trials did not complete."
        if len(frame)
        else f"All {len(run.trials)} trials completed.",
        notes=["Failed and diverged trials count as stability 0 and have no win rate; stopped ones count as measured."]
        if len(frame)
        else [],
        columns=tuple(Column(name, texts[name], numeric=False) for name in ("trial_id", "status", "reason"))
        if len(frame)
        else (),
    )
