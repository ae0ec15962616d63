"""What the trials of a run told at their evaluations, read from its files: early stopping goes on from there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slime_ray import results
from slime_ray.training.orders import evaluations

Told = tuple[str, Mapping[str, Any]]
"""A trial's id, and what it told at one evaluation, with `step` and `updates`."""


def past_reports(run: Path) -> list[Told]:
    """Every evaluation of the search trials that have finished, trial by trial, in the order in which they began.

    A trial whose curves cannot be read has told nothing.
    """
    rows = [row for row in results.finished_trials(run).values() if row["phase"] == "search"]
    return [
        (row["trial_id"], {"step": step, "updates": row["planned_updates"], **told})
        for row in sorted(rows, key=lambda row: (row["started"] or "", row["trial_id"]))
        for step, told in evaluations(_curves(run / "trials" / row["trial_id"])).items()
        if row.get("planned_updates")
    ]


def _curves(folder: Path) -> list[dict[str, Any]]:
    try:
        return list(pq.read_table(folder / "curves.parquet").to_pylist())
    except (OSError, pa.ArrowException):
        return []
