"""Figures of every run, and what all figures share: colours of Okabe and Ito, a style without global state, files."""

import io
import itertools
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from slime_ray.config.design import Design, Level
from slime_ray.runs.pareto import on_front
from slime_ray.runs.results import Run

from .effects import REFERENCE
from .printing import Table, one_line
from .rows import FINISHED, METRICS, baseline_of, is_judged, keeping, of_label, version_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, ORANGE, PURPLE, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#000000",
)  # fmt: skip
GREY = "#6f6f6f"
WIDTH = 7.2
"""Inches: the text of a page with two columns (183 mm), legible down to a single column's 5.5."""
DPI = 180
"""Of the png files."""
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    # Of PDFs, too: without it matplotlib puts a minus sign and its like into a second font.
    "ps.fonttype": 42,
    "svg.hashsalt": "slime_ray",
    "text.usetex": False,
    "timezone": "UTC",
}
"""matplotlib's own defaults with these changes: a user's matplotlibrc does not alter a report."""
PANELS = 12
"""At most so many panels where a run has search trials alone."""
_OFFSETS = [(7, 5), (7, -11), (-7, 5), (-7, -11), (10, -3), (-10, -3), (0, 12), (0, -18)]


def new_figure(width: float, height: float, **options: Any) -> "tuple[Figure, Any]":
    """Open a figure of so many inches with its axes; options of `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(**options)


def lay_out(figure: "Figure") -> None:
    """Lay out the whole figure once, without drawing it."""
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)


def style() -> Any:
    """Return a context in which everything is drawn in STYLE."""
    import matplotlib

    mpl: Any = matplotlib  # its keys are typed as literals
    # Setting a backend would load it, and this needs none.
    defaults = {name: value for name, value in mpl.rcParamsDefault.items() if "backend" not in name}
    return mpl.rc_context({**defaults, **STYLE})


def render(figure: "Figure", *kinds: str) -> dict[str, bytes]:
    """Render the figure as svg, pdf and png, or these kinds alone: the same bytes every time, without dates."""
    without_dates = {
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        "png": {"Software": None},
    }
    files = {}
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        # Once, not again for each kind of file.
        lay_out(figure)
        for kind in kinds or without_dates:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI, metadata=without_dates[kind])
            files[kind] = buffer.getvalue()
    return files


def plain(text: str) -> str:
    """Escape text for matplotlib: a pair of dollars would start a formula."""
    return one_line(text).replace("$", r"\$")


def say(axes: "Axes", words: str) -> None:
    """Write text in the middle of axes that have nothing to show."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY)


def pareto(run: Run, main: Table) -> "Figure":
    """Draw the win rate against stability; the held-out accuracy where nothing was judged.

    Filled: rows of the main table on the report prompts, with the interval of the win rate and the range of S over
    seeds. Hollow: search trials on the selection prompts, and their front. main: win_rate_stability(run).
    """
    frame = main.frame
    judged = is_judged(run)
    column = "win_rate" if judged else "preference_accuracy"
    with style():
        figure, axes = new_figure(WIDTH, 4.9)
        # Collapsed runs crowd near 0: the root spreads them, and 0 stays on the axis, unlike with a logarithm.
        axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        axes.set_xticks(
            [0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1], ["0", ".01", ".05", ".1", ".2", ".3", ".5", ".7", "1"]
        )
        axes.set_xlim(0, 1.02)
        axes.set_xlabel(f"stability S ({plain(version_of(run))}; square-root scale), more is better")
        axes.set_ylabel(f"win rate against {baseline_of(run)}, %" if judged else "held-out preference accuracy, %")
        axes.grid()
        axes.set_axisbelow(True)
        search = run.trials[run.trials["phase"] == "search"].dropna(subset=["stability", column])
        if len(search):
            _search_points(axes, search, keeping(run, search), column, judged=judged)
        points = frame.dropna(subset=[column, "stability"]) if len(frame) else frame
        if judged and len(points):
            # A rate without an interval is a point.
            points = points.assign(
                **{end: points[end].fillna(points[column]) for end in ("win_rate_low", "win_rate_high")}
            )
        rows = points.to_dict("records")
        if rows:
            _rows(axes, points, column, judged=judged)
        if judged:
            axes.axhline(50, color=BLACK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1, label="50 %: no change")
        ends = ["win_rate_low", "win_rate_high"] if judged else [column]
        heights = [100 * row[end] for row in rows for end in ends] + (100 * search[column]).tolist()
        axes.set_ylim(limits(heights, judged=judged))
        if rows or len(search):
            legend = figure.legend(loc="outside upper left", ncols=2, handlelength=1.6)
            if rows:
                bars = "upright bars: 95 % interval of the win rate; level bars: " if judged else "bars: "
                legend.set_title(f"{bars}range of S over seeds")
                legend.get_title().set_fontsize(8)
                legend.set_alignment("left")
        else:
            say(axes, "No trial finished with something to show.")
        _label(figure, axes, rows, search, column, judged=judged)
    return figure


def _rows(axes: "Axes", frame: pd.DataFrame, column: str, *, judged: bool) -> None:
    where = "report prompts" if judged else "held-out pairs"
    styles = {"arm": ("o", BLUE, f"arms ({where})"), "confirm": ("D", VERMILLION, f"confirmed winner ({where})")}
    for phase, (marker, colour, name) in styles.items():
        phase_rows = frame[frame["phase"] == phase]
        if phase_rows.empty:
            continue
        x, y = phase_rows["stability"], 100 * phase_rows[column]
        bars: dict[str, Any] = {"xerr": [x - phase_rows["stability_min"], phase_rows["stability_max"] - x]}
        if judged:
            bars["yerr"] = [y - 100 * phase_rows["win_rate_low"], 100 * phase_rows["win_rate_high"] - y]
        # Rounding can put a mean of equal values outside of them.
        bars = {name: np.maximum(ends, 0) for name, ends in bars.items()}
        axes.errorbar(
            x, y, fmt=marker, color=colour, capsize=2, markersize=6.5, linewidth=0, elinewidth=1, label=name,
            clip_on=False, markeredgecolor="white", markeredgewidth=0.6, zorder=4, **bars,
        )  # fmt: skip


def _search_points(axes: "Axes", search: pd.DataFrame, eligible: pd.DataFrame, column: str, *, judged: bool) -> None:
    where = "selection prompts" if judged else "held-out pairs"
    x, y = search["stability"].to_numpy(dtype=float), 100 * search[column].to_numpy(dtype=float)
    axes.plot(
        x, y, "o", markerfacecolor="white", markeredgecolor=GREY, markersize=5, linestyle="none", zorder=3,
        label=f"search trials ({where}, one seed)", clip_on=False,
    )  # fmt: skip
    corners = front_corners(eligible, column)
    if not len(corners):
        return
    # All that lies left of and below this line is beaten by a trial.
    steps_x, steps_y = corners[:, 0], 100 * corners[:, 1]
    axes.step(steps_x, steps_y, where="pre", color=GREY, linewidth=0.9, label="their front", zorder=2)


def front_corners(search: pd.DataFrame, column: str) -> np.ndarray:
    """Return the corners of the front's line, left to right; a finished trial beats whatever lies below it.

    (corners, 2) stability and `column`, from the left edge to the bottom. search: trials that keep their constraints.
    """
    points = search.loc[search["status"] == FINISHED, ["stability", column]].to_numpy(dtype=float)
    best = points[on_front(points)]
    best = best[np.lexsort((-best[:, 1], best[:, 0]))]
    return np.vstack([[0.0, best[0, 1]], best, [best[-1, 0], 0.0]]) if len(best) else best


def limits(values: list[float], *, judged: bool) -> tuple[float, float]:
    """Return the ends of an axis in % that shows these values, and with a judge 50."""
    values = [*values, 50.0] if judged else values or [0.0, 100.0]
    low, high = min(values), max(values)
    margin = max(5.0, 0.12 * (high - low))
    return max(-2.0, low - margin), min(104.0, high + margin)


_OFFSETS += [(x * k, y * k) for k in (2, 3, 4) for x, y in _OFFSETS]


def _label(
    figure: "Figure", axes: "Axes", points: list[dict[Any, Any]], search: pd.DataFrame, column: str, *, judged: bool
) -> None:
    """Write each label at the nearest place free of markers, bars and labels, or else at the nearest inside."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()
    lay_out(figure)
    inside = axes.get_window_extent(renderer)

    def area(x0: float, x1: float, y0: float, y1: float, around: float) -> Bbox:
        corners = axes.transData.transform([(x0, 100 * y0), (x1, 100 * y1)])
        return Bbox([corners[0] - around, corners[1] + around])

    def put(text: Any, dx: float, dy: float) -> Bbox:
        text.set_position((dx, dy))
        text.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
        if text.arrow_patch is not None:
            text.arrow_patch.set_visible(abs(dx) > 10 or abs(dy) > 18)
        text.update_positions(renderer)
        # Of the text alone: an annotation's own extent takes its arrow in.
        return Text.get_window_extent(text, renderer)

    def is_inside(box: Bbox) -> bool:
        return bool(box.x0 >= inside.x0 and box.x1 <= inside.x1 + 8 and box.y0 >= inside.y0 and box.y1 <= inside.y1 + 8)

    boxes = [area(x, x, y, y, 4) for x, y in zip(search["stability"], search[column], strict=True)]
    for point in points:
        x, y = point["stability"], point[column]
        boxes += [area(x, x, y, y, 6), area(point["stability_min"], point["stability_max"], y, y, 2)]
        if judged:
            boxes.append(area(x, x, point["win_rate_low"], point["win_rate_high"], 2))
    if judged:
        line = axes.transData.transform([(0, 50), (0, 50)])[:, 1] + [-1, 1]
        boxes.append(Bbox([[inside.x0, line[0]], [inside.x1, line[1]]]))
    for point in sorted(points, key=lambda point: (-point[column], point["label"])):
        text = axes.annotate(
            plain(str(point["label"])), (point["stability"], 100 * point[column]), xytext=(0, 0),
            textcoords="offset points", fontsize=8, zorder=5,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4},
        )  # fmt: skip
        text.set_in_layout(False)
        nearest = None
        for offset in _OFFSETS:
            box = put(text, *offset)
            if is_inside(box):
                nearest = nearest or offset
                if not any(box.overlaps(other) for other in boxes):
                    break
        else:
            box = put(text, *(nearest or _OFFSETS[0]))
        boxes.append(box)


def logprob_curves(run: Run, main: Table, search: Table) -> "Figure":
    """Draw held-out chosen and rejected log-probabilities over training: a panel per row, seeds as a band.

    Where no winner was confirmed, the best trial of the search has a panel too. search: its trials.
    """
    looks = {"chosen_logp": (BLUE, "-"), "rejected_logp": (VERMILLION, "--")}
    curves = run.curves[(run.curves["source"] == "held_out") & run.curves["metric"].isin(looks)]
    curves_by_label = {label: of_label(run, curves, label) for label in main.frame["label"]}
    if not (run.trials["phase"] == "confirm").any():
        # Of a run that only searched, there are no other rows.
        for trial_id in search.frame["trial_id"][: 1 if curves_by_label else PANELS]:
            curves_by_label.setdefault(trial_id, curves[curves["trial_id"] == trial_id])
    curves_by_label = {label: label_curves for label, label_curves in curves_by_label.items() if len(label_curves)}
    columns = min(4, max(1, len(curves_by_label)))
    rows = max(1, -(-len(curves_by_label) // columns))
    with style():
        shape = {"nrows": rows, "ncols": columns, "sharex": True, "sharey": True, "squeeze": False}
        figure, panels = new_figure(WIDTH, 1.75 * rows + 0.8, **shape)
        for panel in panels.flat[len(curves_by_label) :]:
            panel.set_axis_off()
        # Of the columns that end a row earlier, the last panel that there is has the numbers.
        for panel in panels.flat[max(0, len(curves_by_label) - columns) : len(curves_by_label)]:
            panel.tick_params(labelbottom=True)
        for label, panel in zip(curves_by_label, panels.flat, strict=False):
            for metric, (colour, dashes) in looks.items():
                curve = curves_by_label[label][curves_by_label[label]["metric"] == metric]
                by_step = curve.groupby("step")["value"].agg(["mean", "min", "max"])
                look = {
                    "color": colour,
                    "linewidth": 1.4,
                    "marker": "o" if len(by_step) == 1 else None,
                    "markersize": 4,
                }
                panel.plot(by_step.index, by_step["mean"], dashes, label=metric.removesuffix("_logp"), **look)
                panel.fill_between(by_step.index, by_step["min"], by_step["max"], color=colour, alpha=0.2, linewidth=0)
            panel.set_title(plain(label), fontsize=9)
            panel.grid()
        if not curves_by_label:
            say(panels[0, 0], "No held-out curve was recorded.")
            return figure
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
        figure.supxlabel("update", fontsize=9)
        figure.supylabel("held-out log-probability, nat/token", fontsize=9)
    return figure


def sensitivity(design: Design, rate: str, ablation: Table) -> "Figure":
    """Draw rate and S over the value of each knob that a design varies: a column per knob, a line per center.

    Rates with the intervals of the table; S with its interval, else its lowest and highest seed. The center's own
    value is a diamond; a hollow point is not separable from it: the interval of the difference covers 0.
    """
    measured, centers = ablation.by("label"), design.centers
    knobs = list(dict.fromkeys(knob for center in centers for knob in design.reference(center).levels))
    colours = dict(zip(centers, itertools.cycle((BLUE, VERMILLION, GREEN, PURPLE, ORANGE)), strict=False))
    with style():
        shape = {"nrows": 2, "ncols": max(1, len(knobs)), "sharex": "col", "sharey": "row", "squeeze": False}
        figure, panels = new_figure(min(WIDTH, max(4.2, 2.4 * len(knobs) + 0.8)), 4.4, **shape)
        for knob, (upper, lower) in zip(knobs, panels.T, strict=False):
            lines = {center: knob_cells(design, center, knob) for center in centers}
            values = sorted({value for line in lines.values() for value, _ in line}, key=_rank)
            # Evenly: most are spaced by factors, and 0 and words have no logarithm.
            place = {value: float(index) for index, value in enumerate(values)}
            for center, line in lines.items():
                rows = [(place[value], measured[label]) for value, label in line]
                _knob_line(upper, rows, rate, 100, colour=colours[center], label=center)
                _knob_line(lower, rows, "stability", 1, colour=colours[center], label=center)
            turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(knobs) > 3 else {}
            lower.set_xticks(list(place.values()), [plain(str(value)) for value in values], fontsize=8, **turned)
            lower.set_xlabel(plain(knob.rpartition(".")[2]))
            for panel in (upper, lower):
                panel.grid()
        panels[0, 0].set_ylabel(f"{METRICS[rate]}, %")
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
