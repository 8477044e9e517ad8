"""Small pictures as SVG: grids of numbers and colours, arrows, text. They follow the reader's light or dark mode.

Colours are those of the explorer: blue for what is positive, orange for what is negative. The two can be told apart by
those who do not see red or green, and no picture depends on colour alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from gpuconv.plot_style import SCALES, ink_on

# The background is the picture's own, so that it can be read wherever it is embedded.
_STYLE = """
svg { --paper: #fbfbf9; --ink: #1c2330; --quiet: #565f6d; --line: #a9afb8; --blue: #1f5fa8; --orange: #b4520a;
  --text-mark: #c2185b; --mark: #d6216b }
@media (prefers-color-scheme: dark) {
  svg { --paper: #14171c; --ink: #e8eaee; --quiet: #a7afbc; --line: #6b7482; --blue: #82b4f0; --orange: #f0a35e;
    --text-mark: #ff6fa5 }
}
text { font: 14px system-ui, "Segoe UI", "Liberation Sans", sans-serif; fill: var(--ink) }
.small { font-size: 12px }
.strong { font-weight: 600 }
.quiet { fill: var(--quiet) }
.blue { fill: var(--blue) }
.orange { fill: var(--orange) }
text.mark { fill: var(--text-mark) }
circle.mark { fill: var(--mark) }
.line, .edge, .bluel, .orangel, .markl { fill: none; stroke: var(--line) }
.edge { stroke: var(--mark); stroke-width: 2.5 }
.bluel { stroke: var(--blue); stroke-width: 2 }
.orangel { stroke: var(--orange); stroke-width: 2 }
.markl { stroke: var(--mark); stroke-width: 2; stroke-dasharray: 4 3 }
.cells { shape-rendering: crispEdges }
.cell { stroke: #8b93a0; stroke-opacity: .4; stroke-width: .6; fill: none }
"""


def colour(value: float, largest: float, kind: str) -> tuple[int, int, int]:
    """A value's colour, one of 33: ``largest`` has the last one of the scale; 'signed' has 0 in its middle."""
    share = value / largest if largest else 0.0
    place = min(1.0, max(0.0, 0.5 + share / 2 if kind == "signed" else share))
    stops = SCALES[kind]
    at = round(32 * place) / 32 * (len(stops) - 1)
    low = min(int(at), len(stops) - 2)
    red, green, blue = (round(a + (b - a) * (at - low)) for a, b in zip(stops[low], stops[low + 1], strict=True))
    return red, green, blue


class Drawing:
    """A picture of a width and height in pixels.

    Args:
        title: what it shows, for those who do not see it.
    """

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    def add(self, element: str, **attributes: Any) -> None:
        """An element with attributes; ``class_`` stands for ``class``, ``_`` for ``-``."""
        text = attributes.pop("content", None)
        words = "".join(
            f' {name.rstrip("_").replace("_", "-")}="{_number(value)}"' for name, value in attributes.items()
        )
        self._parts.append(f"<{element}{words}/>" if text is None else f"<{element}{words}>{escape(text)}</{element}>")

    def text(self, x: float, y: float, text: str, class_: str = "", anchor: str = "start") -> None:
        """Text whose baseline begins, ends or has its middle at (x, y)."""
        self.add("text", x=x, y=y, text_anchor=anchor, class_=class_, content=text)

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str = "line") -> None:
        """A straight line."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)

    def arrow(self, x1: float, y1: float, x2: float, y2: float, class_: str = "line") -> None:
        """A horizontal line with a tip at its second end."""
        tip = 5 if x2 > x1 else -5
        self.line(x1, y1, x2, y2, class_)
        self.add("polyline", points=f"{x2 - tip:g},{y2 - 4:g} {x2:g},{y2:g} {x2 - tip:g},{y2 + 4:g}", class_=class_)

    def box(self, x: float, y: float, width: float, height: float, class_: str = "edge") -> None:
        """An outline."""
        self.add("rect", x=x, y=y, width=width, height=height, rx=2, class_=class_)

    def curve(self, points: Sequence[tuple[float, float]], class_: str = "bluel") -> None:
        """A line through points."""
        self.add("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)

    def grid(
        self,
        x: float,
        y: float,
        values: Any,
        cell: float,
        kind: str = "positive",
        largest: float | None = None,
        numbers: str = "",
        label: str = "",
    ) -> None:
        """A matrix as coloured cells.

        Args:
            values: (rows, columns); NaN leaves a cell out.
            kind: 'positive', 'signed' or 'picture'.
            largest: what the last colour stands for; by default the largest magnitude.
            numbers: how a number is written into its cell, as ``"{:.0f}"``; empty for none.
            label: what is written above.
        """
        values = np.asarray(values, float)
        largest = float(np.nanmax(np.abs(values))) if largest is None else largest
        colours = [[() if np.isnan(v) else colour(float(v), largest, kind) for v in row] for row in values]
        for rgb in sorted({c for row in colours for c in row if c}):
            self.add("path", d=_runs(colours, rgb, x, y, cell), fill="#{:02x}{:02x}{:02x}".format(*rgb), class_="cells")
        if cell >= 8:
            rows, columns = values.shape
            across = [f"M{x:g},{y + r * cell:g}h{columns * cell:g}" for r in range(rows + 1)]
            down = [f"M{x + c * cell:g},{y:g}v{rows * cell:g}" for c in range(columns + 1)]
            self.add("path", d="".join(across + down), class_="cell")
        else:
            self.box(x, y, values.shape[1] * cell, values.shape[0] * cell, "cell")
        size = min(14, cell * 0.48)
        for (row, column), value in np.ndenumerate(values):
            if numbers and not np.isnan(value):
                style = f"fill:{ink_on(colours[row][column])};font-size:{size:.3g}px"
                middle = x + (column + 0.5) * cell, y + (row + 0.5) * cell + size * 0.35
                shown = numbers.format(value).replace("-", "−")
                self.add("text", x=middle[0], y=middle[1], text_anchor="middle", style=style, content=shown)
        if label:
            self.text(x, y - 8, label, "small quiet")

    def source(self) -> str:
        """The file's text."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img">'
        paper = f'<rect width="{self.width}" height="{self.height}" rx="8" fill="var(--paper)"/>'
        parts = [
            head,
            f"<title>{escape(self.title)}</title>",
            f"<style>{_STYLE}</style>",
            paper,
            *self._parts,
            "</svg>",
        ]
        return "\n".join(parts) + "\n"


def _runs(
    colours: Sequence[Sequence[tuple[int, ...]]], wanted: tuple[int, ...], x: float, y: float, cell: float
) -> str:
    """The cells of a colour as a path: a rectangle for each run of a row."""
    parts = []
    for row, line in enumerate(colours):
        for same, group in itertools.groupby(enumerate(line), lambda pair: pair[1] == wanted):
            if same:
                columns = [column for column, _ in group]
                width = len(columns) * cell
                parts.append(f"M{x + columns[0] * cell:g},{y + row * cell:g}h{width:g}v{cell:g}h{-width:g}z")
    return "".join(parts)


def _number(value: Any) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
