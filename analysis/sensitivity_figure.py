"""The figure of a design that varies knobs: result tables in, a matplotlib Figure out."""

import itertools
from typing import TYPE_CHECKING, Any

import pandas as pd

from slime_ray.config.design import Design, Level

from .ablation_table import REFERENCE
from .design_cells import METRICS, Cells
from .drawing import BLUE, GREEN, ORANGE, PURPLE, VERMILLION, WIDTH, new_figure, plain, style
from .printing import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def sensitivity(found: Cells, ablation: Table) -> "Figure":
    """Rate and S over the value of each knob that a design varies: a column per knob, a line per center.

    Rates with the intervals of the table, over prompts; S with its interval, else its lowest and highest seed. The
    center's own value is a diamond; a hollow point is not separable from it: the interval of the difference covers 0.
    """
    measured, centers = ablation.frame.set_index("label").to_dict("index"), found.design.centers
    knobs = list(dict.fromkeys(knob for center in centers for knob in found.design.reference(center).levels))
    colours = dict(zip(centers, itertools.cycle((BLUE, VERMILLION, GREEN, PURPLE, ORANGE)), strict=False))
    with style():
        shape = {"nrows": 2, "ncols": max(1, len(knobs)), "sharex": "col", "sharey": "row", "squeeze": False}
        figure, panels = new_figure(min(WIDTH, max(4.2, 2.4 * len(knobs) + 0.8)), 4.4, **shape)
        for knob, (upper, lower) in zip(knobs, panels.T, strict=False):
            lines = {center: knob_cells(found.design, center, knob) for center in centers}
            values = sorted({value for line in lines.values() for value, _ in line}, key=_rank)
            # Evenly: most are spaced by factors, and 0 and words have no logarithm.
            place = {value: float(index) for index, value in enumerate(values)}
            for center, line in lines.items():
                rows = [(place[value], measured[label]) for value, label in line]
                _knob_line(upper, rows, found.rate, 100, colour=colours[center], label=center)
                _knob_line(lower, rows, "stability", 1, colour=colours[center], label=center)
            turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(knobs) > 3 else {}
            lower.set_xticks(list(place.values()), [plain(str(value)) for value in values], fontsize=8, **turned)
            lower.set_xlabel(plain(knob.rpartition(".")[2]))
            for panel in (upper, lower):
                panel.grid(color="#e4e4e4", linewidth=0.6)
        panels[0, 0].set_ylabel(f"{METRICS[found.rate]}, %")
        panels[1, 0].set_ylabel("stability S")
        if len(colours) > 1:
            figure.legend(
                *panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False, fontsize=8
            )
    return figure


def _knob_line(
    axes: "Axes", rows: list[tuple[float, dict[Any, Any]]], name: str, scale: float, *, colour: str, label: str
) -> None:
    """One center's line: `rows` by place on the axis."""
    rows = [(x, row) for x, row in rows if pd.notna(row[name])]
    axes.plot(
        [x for x, _ in rows], [scale * row[name] for _, row in rows], color=colour, linewidth=1.1, label=plain(label)
    )
    difference = "stability_difference" if name == "stability" else "difference"
    for x, row in rows:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        if name == "stability" and pd.isna(low):
            low, high = row["stability_min"], row["stability_max"]
        own = row["verdict"] == REFERENCE
        hollow = not own and not (row[f"{difference}_low"] > 0 or row[f"{difference}_high"] < 0)
        axes.errorbar(
            x, scale * row[name], yerr=[[scale * max(0, row[name] - low)], [scale * max(0, high - row[name])]],
            fmt="D" if own else "o", color=colour, markerfacecolor="white" if hollow else colour, capsize=2,
            markersize=6 if own else 5, linewidth=1, zorder=4,
        )  # fmt: skip


def knob_cells(design: Design, center: str, knob: str) -> list[tuple[Level, str]]:
    """Values of a knob around one center with the labels of their cells, in order; controls are no part of it.

    A cell belongs to the knob that it has another value of than the center; the center belongs to all.
    """
    reference = design.reference(center)
    if knob not in reference.levels:
        return []
    own = [
        (cell.levels[knob], cell.label)
        for cell in design.around(center)
        if not cell.control
        and (cell is reference or cell.levels.get(knob, reference.levels[knob]) != reference.levels[knob])
    ]
    return sorted(own, key=lambda item: _rank(item[0]))


def _rank(value: Level) -> tuple[bool, float, str]:
    """Numbers by size, then words."""
    is_number = isinstance(value, (int, float))
    return not is_number, float(value) if is_number else 0.0, str(value)
