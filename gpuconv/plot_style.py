"""What all plots have in common: colours, sizes, a figure, and how it becomes a file.

Colours are those of the explorer's page. The scales run in lightness, too, and the series are those of Okabe and Ito
(*Color Universal Design*, 2008) with a darker blue: they are told apart by those who do not see red, green or blue, and
in print. The background is the plot's own, so that it can be read on a dark page.
"""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuconv.data.errors import missing_extra
from gpuconv.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

#: Points.
TITLE, LABEL, SMALL = 12, 10.5, 9.5
DPI = 120
PAPER, INK, QUIET, LINE = "#fbfbf9", "#1c2330", "#565f6d", "#c9ced6"
#: Of lines, bars and points, in their order.
SERIES = ("#1f5fa8", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
#: Red, green and blue, 0 to 255, at equal distances: what is never negative; what has a sign; a picture in grey.
SCALES = {
    "positive": ((251, 251, 249), (158, 193, 226), (46, 111, 174), (8, 40, 92)),
    "signed": ((140, 58, 4), (236, 160, 92), (250, 249, 246), (120, 172, 224), (14, 62, 128)),
    "picture": ((0, 0, 0), (255, 255, 255)),
}


def require_matplotlib() -> None:
    """Raise ImportError, saying what to install, if pictures cannot be drawn."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise missing_extra("drawing", error.name or "matplotlib") from None


@functools.cache
def scale(kind: str) -> Colormap:
    """A scale as matplotlib has them."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = [tuple(channel / 255 for channel in stop) for stop in SCALES[kind]]
    return LinearSegmentedColormap.from_list(f"gpuconv.{kind}", stops)


def ink_on(rgb: Any) -> str:
    """Dark or white, whichever is easier to read on a colour, 0 to 255."""
    return INK if 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140 else "#ffffff"


def figure(width: float, height: float, **options: Any) -> Figure:
    """A figure of a size in inches. Only the object-oriented interface is used: pyplot's figures stay as they are.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER, **options)
    FigureCanvasAgg(made)
    return made


def tidy(axes: Axes, *, grid: bool = True) -> None:
    """Axes without a frame: thin lines below and on the left, and a faint grid."""
    axes.set_facecolor(PAPER)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(labelsize=SMALL, colors=QUIET, which="both")
    if grid:
        axes.grid(color=LINE, linewidth=0.6, alpha=0.7)
        axes.set_axisbelow(True)


def title(axes: Axes, text: str) -> None:
    """A title at the left edge."""
    axes.set_title(text, fontsize=TITLE, loc="left", color=INK)


def write(drawn: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure, whole or not at all: as SVG where the name ends so, else as PNG."""
    import matplotlib

    kind = "svg" if Path(path).suffix.lower() == ".svg" else "png"
    buffer = io.BytesIO()
    # Text stays text, and the same figure gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gpuconv"}):
        drawn.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_atomically(path, buffer.getvalue())
