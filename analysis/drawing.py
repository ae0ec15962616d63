"""What all figures share: colours of Okabe and Ito, legible in print; a style without global state; their files."""

import io
import warnings
from typing import TYPE_CHECKING, Any

from .printing import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000",
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
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,
    # Of PDFs, too: without it matplotlib puts a minus sign and its like into a second font.
    "ps.fonttype": 42,
    "svg.hashsalt": "slime_ray",
    "text.usetex": False,
    "timezone": "UTC",
}
"""matplotlib's own defaults with these changes: a user's matplotlibrc does not alter a report."""


def new_figure(width: float, height: float, **options: Any) -> "tuple[Figure, Any]":
    """A figure of so many inches with its axes; options of `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(**options)


def lay_out(figure: "Figure") -> None:
    """Work out where everything in the figure stands, once, without drawing it."""
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)


def style() -> Any:
    """A context in which everything is drawn in STYLE."""
    import matplotlib

    mpl: Any = matplotlib  # its keys are typed as literals
    # Setting a backend would load it, and this needs none.
    defaults = {name: value for name, value in mpl.rcParamsDefault.items() if "backend" not in name}
    return mpl.rc_context({**defaults, **STYLE})


def render(figure: "Figure") -> dict[str, bytes]:
    """Return the figure as svg, pdf and png, by kind: the same bytes every time, without dates."""
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
        for kind, metadata in without_dates.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
            files[kind] = buffer.getvalue()
    return files


def plain(text: str) -> str:
    """Text that matplotlib draws as it is; a pair of dollars would start a formula."""
    return one_line(text).replace("$", r"\$")


def say(axes: "Axes", words: str) -> None:
    """Words in the middle of axes that have nothing to show."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY)
