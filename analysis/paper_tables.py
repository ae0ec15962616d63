"""The paper's Tables 3, 4 and 5 (arXiv 2602.02383) as data, and beside what a run of the same design measured."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.config.design import COMPONENTS, Cell

from .ablation_table import METRICS, Cells
from .printing import Column, Table, empty, interval_cells, numbers
from .rows import baseline_of, few_seeds_notes, judge_of, name_of
from .statistics import interval_names

FULL = "full"
AS_PRINTED = "[as printed, most likely 90 %]"
"""What the paper's intervals are: its column is headed "Std", and says no more of them."""


@dataclass(frozen=True)
class Score:
    """What the paper prints for one row: MT-Bench, Arena-Hard, how far its interval goes down and up; else NaN."""

    mt_bench: float
    arena_hard: float = np.nan
    down: float = np.nan
    up: float = np.nan


TABLE_3: dict[str, dict[Any, Score]] = {
    "Llama3.2-3B": {
        "base": Score(1.01),
        "sft": Score(4.56, 7.5, 0.8, 0.9),
        "dpo": Score(4.92, 11.1, 1.0, 1.1),
        "simpo": Score(4.22, 7.6, 1.0, 0.9),
        "slime": Score(5.49, 9.7, 1.0, 1.2),
    },
    "Qwen3-4B": {
        "base": Score(5.95),
        "sft": Score(5.40, 32.1, 2.0, 1.9),
        "dpo": Score(5.30, 39.0, 2.1, 2.4),
        "simpo": Score(5.72, 25.8, 1.8, 1.5),
        "slime": Score(5.93, 39.8, 2.1, 1.7),
    },
    "Gemma3-4B": {
        "base": Score(3.86),
        "sft": Score(4.71, 7.6, 0.8, 0.7),
        "dpo": Score(5.15, 11.8, 1.3, 1.1),
        "simpo": Score(5.03, 0.7, 0.3, 0.3),
        "slime": Score(6.15, 13.1, 1.5, 1.2),
    },
}
TABLE_4: dict[Any, Score] = {
    FULL: Score(6.15, 13.1, 1.1, 1.0),
    "anchor": Score(5.21, 11.1, 1.2, 1.1),
    "stabilizer": Score(5.74, 12.1, 1.0, 1.1),
    "soft_margin": Score(5.80, 11.2, 1.2, 1.1),
    "hard_margin": Score(5.90, 12.4, 1.3, 1.4),
}
"""By the component that is left out; Gemma3-4B."""
TABLE_5: dict[Any, Score] = {
    1.0: Score(5.70, 12.2, 1.2, 1.1),
    1.5: Score(5.86, 12.2, 1.3, 1.5),
    2.0: Score(5.76, 11.2, 1.1, 1.1),
    2.5: Score(6.15, 13.1, 1.1, 1.0),
    3.0: Score(5.66, 12.7, 1.4, 1.2),
}
"""By the stabilizer's exponent; Gemma3-4B."""
PAPER_TABLES: dict[str, tuple[int, dict[str, dict[Any, Score]]]] = {
    "baselines": (3, TABLE_3),
    "leave_one_out": (4, {"Gemma3-4B": TABLE_4}),
    "factorial": (4, {"Gemma3-4B": TABLE_4}),
    "exponent": (5, {"Gemma3-4B": TABLE_5}),
}
"""Which of the paper's tables a design has beside it, with its rows by model."""
PARTS_OF_SLIME = ("leave_one_out", "factorial")
"""Designs whose table in the paper is about parts of SLIME."""
SLIME = {"slime", "slime-released"}
"""Objectives with these parts; others may have an anchor too, which is another one."""


def beside_the_paper(design_cells: Cells, ablation: Table) -> Table:
    """Return the paper's table of this design with ours next to it; empty where the paper has none.

    ablation: `ablation_table.ablation(design_cells, ...)`. In `frame` the paper's numbers are as printed, ours shares.
    """
    run, design = design_cells.run, design_cells.design
    of_slime = {*run.trials["objective"]} <= SLIME
    if design.kind not in PAPER_TABLES or (design.kind in PARTS_OF_SLIME and not of_slime):
        return empty("The paper has no table of such a design.", "row")
    table, paper_scores = PAPER_TABLES[design.kind]
    labels_by_center = {
        center: {_row_of(cell): cell.label for cell in reversed(design.around(center)) if not cell.control}
        for center in design.centers
    }
    reference = _row_of(design.reference(design.centers[0]))
    measured = ablation.by("label")
    rows = []
    for name in next(iter(paper_scores.values())):
        row: dict[str, Any] = {"row": _words(name)}
        for model, scores in paper_scores.items():
            row |= _paper_columns(model, scores[name], scores.get(reference))
        for center, labels in labels_by_center.items():
            of_cell = measured.get(labels.get(name, ""), {})
            ends = interval_names(design_cells.rate, "difference")
            row |= {f"{center} {end}": of_cell.get(end, np.nan) for end in ends}
            row[f"{center} verdict"] = of_cell.get("verdict", "not measured")
        rows.append(row)
    frame = pd.DataFrame(rows)
    against = f" against {baseline_of(run)}'s answers, judge {judge_of(run)}" if design_cells.rate == "win_rate" else ""
    return Table(
        frame=frame,
        caption=f"Table {table} of the paper (arXiv 2602.02383) beside {name_of(run)}. Differences in points, each row "
        f"minus {_words(reference)}.",
        notes=[
            f"Theirs, as printed: MT-Bench (MT) and Arena-Hard (AH) of {', '.join(paper_scores)}. Ours: "
            f"{METRICS[design_cells.rate]} in %{against}, seeds {', '.join(map(str, design_cells.planned))}.",
            *few_seeds_notes(ablation.frame["compared_seeds"]),
            "These are not one measure: other models, data, prompts, judges and baselines. What can be compared is "
            "which rows come first, and whether a difference leaves 0 out.",
            "Theirs: one training run a row. The intervals are as printed, under the head Std, and most likely 90 %: "
            "since its version 2.0 Arena-Hard's script prints the 5th and 95th percentile of 100 resamples of single "
            "votes. Their differences are those of the printed scores; the intervals of these are not known.",
            "Ours: intervals and verdicts as in the ablation table, with its notes.",
        ],
        columns=_columns(frame, list(paper_scores), list(labels_by_center), design_cells.rate),
    )


def _row_of(cell: Cell) -> Any:
    """Return which row of the paper's tables a cell is: the exponent, its one missing component, or a method."""
    for path, value in cell.levels.items():
        if path.endswith("stabilizer_exponent"):
            return value
    if not cell.levels:
        return cell.variant
    lacking = [component for component, present in cell.levels.items() if not present]
    return FULL if not lacking else lacking[0] if len(lacking) == 1 else None


def _words(name: Any) -> str:
    if isinstance(name, (int, float)):
        return f"p = {float(name)}"
    return f"without {name.replace('_', ' ')}" if name in COMPONENTS else str(name)


def _paper_columns(model: str, score: Score, reference: Score | None) -> dict[str, float]:
    arena_hard = score.arena_hard
    return {
        f"{model} mt_bench": score.mt_bench,
        f"{model} arena_hard": arena_hard,
        f"{model} arena_hard_low": arena_hard - score.down,
        f"{model} arena_hard_high": arena_hard + score.up,
        f"{model} difference": np.nan if reference is None else arena_hard - reference.arena_hard,
    }


def _columns(frame: pd.DataFrame, models: list[str], centers: list[str], rate: str) -> tuple[Column, ...]:
    columns = [Column("", tuple(frame["row"]), numeric=False, keep=10)]
    for model in models:
        short = f"{model} " if len(models) > 1 else "theirs: "
        less = numbers(frame, f"{model} difference", 1, signed=True)
        columns += [
            Column(f"{short}MT", numbers(frame, f"{model} mt_bench"), keep=4, words=f"{short}MT-Bench"),
            Column(
                f"{short}AH {AS_PRINTED}",
                interval_cells(frame, f"{model} arena_hard", 1),
                keep=6,
                words=f"{short}Arena-Hard {AS_PRINTED}",
            ),
            Column(f"{short}AH difference", less, keep=5, words=f"{short}Arena-Hard difference"),
        ]
    for center in centers:
        short = f"ours, {center}: " if len(centers) > 1 else "ours: "
        columns += [
            Column(f"{short}{METRICS[rate]} [95 %]", interval_cells(frame, f"{center} {rate}", 1, scale=100), keep=9),
            Column(f"{short}difference", interval_cells(frame, f"{center} difference", 1, scale=100), keep=8),
            Column(f"{short}verdict", tuple(frame[f"{center} verdict"]), numeric=False, keep=7),
        ]
    return tuple(columns)
