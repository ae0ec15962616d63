"""What all figures share: colours of Okabe and Ito, legible in print; a style without global state; their files."""

import io
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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
_PDFIUM_LOCK = threading.Lock()


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
    """The figure as svg, pdf and png: the same bytes every time, no date in them."""
    files = as_shapes(figure)
    return files | {"png": as_image(files["pdf"])}


def as_shapes(figure: "Figure") -> dict[str, bytes]:
    """The figure as svg and pdf."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    svg, pdf = io.StringIO(), io.BytesIO()
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        # Where everything stands is worked out once, not twice for each kind of file, and of axes without a name not
        # where it would stand. `savefig` would draw each kind once more, for a bounding box that is not asked for.
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if not axis.get_label_text():
                    axis.set_label_coords(0, 0)
        lay_out(figure)
        with _small_fonts():
            FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    return {"svg": svg.getvalue().encode(), "pdf": pdf.getvalue()}


def as_image(pdf: bytes) -> bytes:
    """The page of a PDF as png. Matplotlib would take three times as long to draw the figure once more.

    Other threads work on meanwhile, all but those that are in here, too: PDFium takes one at a time.
    """
    import pypdfium2

    with _PDFIUM_LOCK, pypdfium2.PdfDocument(pdf) as document:
        # Pixels are rounded up, and a page may be a rounding error wider than it was made.
        image = document[0].render(scale=DPI / 72 - 1e-6).to_pil()
    buffer = io.BytesIO()
    # An eighth larger than by default, in three fifths of the time.
    image.save(buffer, "png", dpi=(DPI, DPI), compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


@contextmanager
def _small_fonts() -> Iterator[None]:
    """Leave a font's rules for joining letters out of a PDF, where nothing reads them.

    Matplotlib has every font cut down to its letters, and the rules take more time than all of the drawing. It has no
    option for that; where fontTools should rename the function it is only slower.
    """
    from fontTools import subset

    load = subset.load_font

    def without_rules(*args: Any, **options: Any) -> Any:
        font = load(*args, **options)
        for table in ("GDEF", "GPOS", "GSUB"):
            if table in font:
                del font[table]
        return font

    subset.load_font = without_rules
    try:
        yield
    finally:
        subset.load_font = load


def plain(text: str) -> str:
    """Text that matplotlib draws as it is; a pair of dollars would start a formula."""
    return one_line(text).replace("$", r"\$")


def say(axes: "Axes", words: str) -> None:
    """Words in the middle of axes that have nothing to show."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY)
