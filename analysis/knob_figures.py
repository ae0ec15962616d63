"""Figures of knobs: what those of a search did, what was found for what was spent, and a design's sensitivity.

They are drawn where there is something to show; `sections` decides that.
"""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from slime_ray.config.design import Design, Level

from .ablation import METRICS, REFERENCE, Cells
from .figures import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, WIDTH, new_figure, plain, style
from .front import Spent
from .knobs import Knob, Searched, unit_of
from .printing import Table
from .statistics import TAILS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


KNOBS = 6
"""At most so many knobs have slices, the most important ones."""


def importance(searched: Searched, table: Table) -> "Figure | None":
    """Draw each knob's share of `knobs.importance`, a panel per goal, with 95 % intervals; None without any."""
    frame = table.frame
    if frame.empty:
        return None
    with style():
        height = 0.28 * max(3, len(frame)) + 0.9
        figure, panels = new_figure(WIDTH, height, ncols=len(searched.names), sharey=True, squeeze=False)
        for goal, axes in zip(searched.names, panels[0], strict=True):
            share, low, high = (
                100 * frame[f"{goal}_share{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high")
            )
            # A resample may be about other trials than these, so an interval need not hold the share.
            reach = np.maximum([share - low, high - share], 0.0)
            axes.barh(range(len(frame)), share, height=0.65, color=BLUE, alpha=0.75)
            axes.errorbar(share, range(len(frame)), xerr=reach, fmt="none", ecolor=GREY, capsize=2, elinewidth=1)
            axes.set_title(unit_of(goal)[0].removesuffix(" %"), fontsize=9)
            axes.set_xlim(0, 100)
        panels[0, 0].set_yticks(range(len(frame)), [plain(name) for name in frame["knob"]])
        panels[0, 0].invert_yaxis()
        figure.supxlabel("share of the importance, %", fontsize=9)
    return figure


def slices(searched: Searched, columns: list[int]) -> "Figure":
    """Draw every completed trial: each knob (columns: places among the search's) against each goal (rows).

    Later trials are lighter, and those on a front of two goals are ringed.
    """
    columns = columns[:KNOBS]
    complete, ringed = searched.complete, searched.on_front & (len(searched.names) == 2)
    drawn = np.arange(len(complete))
    with style():
        rows, wide = len(searched.names), len(columns)
        shape = {"nrows": rows, "ncols": wide, "sharex": "col", "sharey": "row", "squeeze": False}
        figure, panels = new_figure(min(WIDTH, 1.5 * wide + 0.7), 1.7 * rows + 0.5, **shape)
        for row, goal in enumerate(searched.names):
            values = searched.goal_values(row)
            for panel, column in zip(panels[row], columns, strict=True):
                x = searched.places[:, column]
                # The axes hold every point, and a file of thousands is half as large where none has a clip of its own.
                panel.scatter(
                    x[complete], values[complete], c=drawn[complete], cmap="cividis", s=14, linewidths=0, alpha=0.9,
                    clip_on=False,
                )  # fmt: skip
                panel.plot(
                    x[ringed], values[ringed], "o", markerfacecolor="none", markeredgecolor=VERMILLION, markersize=6,
                    linestyle="none",
                )  # fmt: skip
                panel.grid()
            panels[row, 0].set_ylabel(unit_of(goal)[0])
        for panel, column in zip(panels[-1], columns, strict=True):
            _knob_axis(panel, searched.knobs[column])
    return figure


def budget(searched: Searched, spent: Spent) -> "Figure":
    """Draw hypervolume by trials and by tokens, and each goal's best so far and expected best of k trials."""
    from matplotlib.ticker import EngFormatter

    wide = 0 if spent.hypervolume is None else 2
    count = wide + len(searched.names)
    rows = -(-count // 2)
    with style():
        figure, panels = new_figure(WIDTH, 2.4 * rows, nrows=rows, ncols=2, squeeze=False)
        for panel in panels.flat[count:]:
            panel.set_axis_off()
        trials = np.arange(1, len(spent.tokens) + 1)
        if spent.hypervolume is not None:
            by_trials, by_tokens = panels.flat[:2]
            by_trials.step(trials, spent.hypervolume, where="post", color=BLUE)
            by_trials.set_xlabel("trials")
            by_tokens.step([0, *spent.tokens], [0, *spent.hypervolume], where="post", color=BLUE)
            by_tokens.set_xlabel("training tokens")
            by_tokens.xaxis.set_major_formatter(EngFormatter(sep=""))
            for panel in (by_trials, by_tokens):
                panel.set_ylabel("hypervolume")
                panel.set_ylim(bottom=0)
        for goal, panel in zip(searched.names, panels.flat[wide:], strict=False):
            head, scale, _ = unit_of(goal)
            low, high = scale * np.quantile(spent.resampled[goal], TAILS, axis=0)
            panel.fill_between(trials, low, high, color=ORANGE, alpha=0.2, linewidth=0)
            panel.plot(trials, scale * spent.expected[goal], "--", color=ORANGE, label="expected of k at random")
            panel.step(trials, scale * spent.best[goal], where="post", color=BLUE, label="best so far, as drawn")
            panel.set_xlabel("trials")
            panel.set_ylabel(f"best {head}")
        for place, panel in enumerate(panels.flat[:count]):
            panel.grid()
            # The lines of all goals are named in the first's panel.
            if place == wide:
                panel.legend(frameon=False, fontsize=7.5, loc="lower right")
    return figure


def _knob_axis(axes: "Axes", knob: Knob) -> None:
    """Draw a knob's scale, range, ticks and name below a panel."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    if knob.scale == "log":
        axes.set_xscale("log")
        # Small panels: few ticks, each with its value; within a decade there would be none without those between.
        between = (1.0,) if knob.high >= 30 * knob.low else (1.0, 2.0, 5.0)
        axes.xaxis.set_major_locator(LogLocator(subs=between, numticks=3))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if knob.scale == "choice":
        axes.set_xticks(range(len(knob.options)), [plain(option) for option in knob.options])
        axes.set_xlim(-0.5, len(knob.options) - 0.5)
    else:
        axes.set_xlim(*knob.at(np.array([-0.04, 1.04])))
    axes.set_xlabel(plain(knob.name), fontsize=8)
    axes.xaxis.set_tick_params(labelsize=7)


def sensitivity(design_cells: Cells, ablation: Table) -> "Figure":
    """Draw rate and S over the value of each knob that a design varies: a column per knob, a line per center.

    Rates with the intervals of the table; S with its interval, else its lowest and highest seed. The center's own
    value is a diamond; a hollow point is not separable from it: the interval of the difference covers 0.
    """
    measured, centers = ablation.by("label"), design_cells.design.centers
    knobs = list(dict.fromkeys(knob for center in centers for knob in design_cells.design.reference(center).levels))
    colours = dict(zip(centers, itertools.cycle((BLUE, VERMILLION, GREEN, PURPLE, ORANGE)), strict=False))
    with style():
        shape = {"nrows": 2, "ncols": max(1, len(knobs)), "sharex": "col", "sharey": "row", "squeeze": False}
        figure, panels = new_figure(min(WIDTH, max(4.2, 2.4 * len(knobs) + 0.8)), 4.4, **shape)
        for knob, (upper, lower) in zip(knobs, panels.T, strict=False):
            lines = {center: knob_cells(design_cells.design, center, knob) for center in centers}
            values = sorted({value for line in lines.values() for value, _ in line}, key=_rank)
            # Evenly: most are spaced by factors, and 0 and words have no logarithm.
            place = {value: float(index) for index, value in enumerate(values)}
            for center, line in lines.items():
                rows = [(place[value], measured[label]) for value, label in line]
                _knob_line(upper, rows, design_cells.rate, 100, colour=colours[center], label=center)
                _knob_line(lower, rows, "stability", 1, colour=colours[center], label=center)
            turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(knobs) > 3 else {}
            lower.set_xticks(list(place.values()), [plain(str(value)) for value in values], fontsize=8, **turned)
            lower.set_xlabel(plain(knob.rpartition(".")[2]))
            for panel in (upper, lower):
                panel.grid()
        panels[0, 0].set_ylabel(f"{METRICS[design_cells.rate]}, %")
        panels[1, 0].set_ylabel("stability S")
        if len(colours) > 1:
            figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def _knob_line(
    axes: "Axes", rows: list[tuple[float, dict[Any, Any]]], name: str, scale: float, *, colour: str, label: str
) -> None:
    """Draw one center's line: `rows` by place on the axis."""
    rows = [(x, row) for x, row in rows if pd.notna(row[name])]
    axes.plot(
        [x for x, _ in rows], [scale * row[name] for _, row in rows], color=colour, linewidth=1.1, label=plain(label)
    )
    difference = "stability_difference" if name == "stability" else "difference"
    for x, row in rows:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        if name == "stability" and pd.isna(low):
            low, high = row["stability_min"], row["stability_max"]
        is_center = row["verdict"] == REFERENCE
        hollow = not is_center and not (row[f"{difference}_low"] > 0 or row[f"{difference}_high"] < 0)
        axes.errorbar(
            x, scale * row[name], yerr=[[scale * max(0, row[name] - low)], [scale * max(0, high - row[name])]],
            fmt="D" if is_center else "o", color=colour, markerfacecolor="white" if hollow else colour, capsize=2,
            markersize=6 if is_center else 5, linewidth=1, zorder=4,
        )  # fmt: skip


def knob_cells(design: Design, center: str, knob: str) -> list[tuple[Level, str]]:
    """Return a knob's values around a center with their cells' labels, in order and without controls.

    A cell belongs to the knob that it has another value of than the center; the center belongs to all.
    """
    reference = design.reference(center)
    if knob not in reference.levels:
        return []
    level_cells = [
        (cell.levels[knob], cell.label)
        for cell in design.around(center)
        if not cell.control
        and (cell is reference or cell.levels.get(knob, reference.levels[knob]) != reference.levels[knob])
    ]
    return sorted(level_cells, key=lambda item: _rank(item[0]))


def _rank(value: Level) -> tuple[bool, float, str]:
    """Rank numbers by size, then words."""
    is_number = isinstance(value, (int, float))
    return not is_number, float(value) if is_number else 0.0, str(value)
