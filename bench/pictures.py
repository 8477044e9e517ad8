"""Pictures of a ranking: the roofline with each tiling as a point, and its tiles as a heat map; on a CPU, bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import roofline
from gpuconv import plot_style as style

_MARKERS = "osD^v<>PX"
#: A heat map with fewer tiles than this says nothing that the table does not.
_FEWEST_TILES = 3


def save(document: dict[str, Any], path: Path) -> None:
    """Draw a document of ``bench.tilings``.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
        ValueError: nothing in it has a time or a bound.
    """
    ranked = [found for found in document["results"] if found.get("us") or found.get("floor_us")]
    if not ranked:
        raise ValueError("there is nothing to draw: no tiling has a time or a bound")
    if document["settings"]["backend"] != "cuda":
        figure = style.figure(8, 1.6 + 0.4 * len(ranked), layout="constrained")
        _bars(figure.subplots(), ranked, document)
    else:
        # One below the other, so that a page as wide as a text shows them large enough to read.
        maps = _heat_maps(ranked)
        rows = -(-len(maps) // 2)
        figure = style.figure(8, 4.4 + 3.2 * rows, layout="constrained")
        grid = figure.add_gridspec(1 + rows, 2, height_ratios=[4.4, *[3.2] * rows])
        _roofline(figure.add_subplot(grid[0, :]), ranked, document)
        for number, (variant, fields, tiles) in enumerate(maps.values()):
            axes = figure.add_subplot(grid[1 + number // 2, number % 2])
            _heat_map(figure, axes, variant, fields, tiles, measured=bool(ranked[0].get("us")))
    settings = document["settings"]
    figure.suptitle(
        f"{settings['operation']} on {settings['layer']}: {settings['geometry']}",
        fontsize=style.TITLE, fontweight="bold", x=0.01, ha="left", color=style.INK,
    )  # fmt: skip
    style.write(figure, path)


def microseconds(found: dict[str, Any]) -> float:
    """The measured median, or the bound."""
    return float(found["median_us"] if found.get("us") else found["floor_us"])


def _roofline(axes: Any, ranked: list[dict[str, Any]], document: dict[str, Any]) -> None:
    gpu, work = roofline.H200, document["work"]
    measured = bool(ranked[0].get("us"))
    peak, ideal = gpu.flops["float32"] / 1e9, work["intensity"]
    ridge = peak * 1e9 / gpu.bandwidth
    low, high = min(ideal, ridge) / 8, max(ideal, ridge) * 90
    slope = gpu.bandwidth / 1e9
    axes.plot([low, ridge, high], [low * slope, peak, peak], color=style.INK, linewidth=1.5)
    said = {"fontsize": style.SMALL, "color": style.QUIET}
    axes.text(ridge, peak * 1.06, f"float32 peak, {peak / 1e3:.0f} TFLOP/s", ha="left", va="bottom", **said)
    place = min(low * 2, ridge / 2)
    axes.annotate(
        f"memory, {gpu.bandwidth / 1e12:.1f} TB/s", (place, place * slope), (10, -2),
        textcoords="offset points", ha="left", va="top", **said,
    )  # fmt: skip
    # All tilings do the same work, and have the same intensity: each point stands where it belongs, and what is moved
    # apart are the names, at the end of a line from the best tiling of a variant.
    rates: dict[str, list[float]] = {}
    for found in ranked:
        rates.setdefault(found["variant"], []).append(work["flop"] / microseconds(found) / 1e3)
    slowest = min(map(min, rates.values()))
    bottom, top = min(slowest, low * slope) / 2, peak * 2
    heights = _apart([max(own) for own in rates.values()], bottom, top)
    for number, ((variant, own), height) in enumerate(zip(rates.items(), heights, strict=True)):
        colour, marker = style.SERIES[number % len(style.SERIES)], _MARKERS[number % len(_MARKERS)]
        axes.scatter([ideal] * len(own), own, s=42, marker=marker, facecolors="none", edgecolors=colour, zorder=3)
        axes.annotate(
            f"{variant}: {len(own)} tiling{'s' * (len(own) > 1)}, best {max(own):,.0f}",
            (ideal, max(own)), (ideal * 1.5, height), color=colour, fontsize=style.LABEL, va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkB": 3},
            bbox={"facecolor": style.PAPER, "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    axes.axvline(ideal, color=style.QUIET, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, top)
    axes.set_xlabel("FLOP a byte, each array moved once", fontsize=style.LABEL)
    axes.set_ylabel("GFLOP/s" if measured else "GFLOP/s at most (static bound)", fontsize=style.LABEL)
    what = f"times on {document['settings']['device']}" if measured else "static bounds, not times"
    style.title(axes, f"Roofline of an H200: {what}")
    style.tidy(axes)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, position: f"{value:,.6g}")


def _apart(heights: list[float], bottom: float, top: float) -> list[float]:
    """Places for labels on a logarithmic axis, as near to the heights as their size allows, in the same order."""
    gap = (top / bottom) ** 0.055
    order = sorted(range(len(heights)), key=heights.__getitem__)
    places, floor = list(heights), bottom * gap
    for number in order:
        places[number] = floor = max(heights[number], floor * gap)
    ceiling = top / gap
    for number in reversed(order):
        places[number] = min(places[number], ceiling)
        ceiling = places[number] / gap
    return places


def _heat_maps(ranked: list[dict[str, Any]]) -> dict[str, tuple[str, tuple[str, str], dict[tuple[int, int], float]]]:
    """By variant: two fields of its Tiling, and for each pair of their values the best time or bound."""
    maps = {}
    for variant in dict.fromkeys(found["variant"] for found in ranked):
        own = [found for found in ranked if found["variant"] == variant]
        names = [name for name, value in own[0]["tiling"].items() if type(value) is int]
        # A tile's height and width, where it says so; else the first two that differ between the tilings.
        varied = [name for name in names if len({found["tiling"][name] for found in own}) > 1]
        fields = ["rows", "columns"] if {"rows", "columns"} <= set(names) else varied[:2]
        if len(fields) < 2:
            continue
        tiles: dict[tuple[int, int], float] = {}
        for found in own:
            tile = found["tiling"][fields[0]], found["tiling"][fields[1]]
            tiles[tile] = min(microseconds(found), tiles.get(tile, float("inf")))
        if len(tiles) >= _FEWEST_TILES:
            maps[variant] = (variant, (fields[0], fields[1]), tiles)
    return maps


def _heat_map(
    figure: Any,
    axes: Any,
    variant: str,
    fields: tuple[str, str],
    tiles: dict[tuple[int, int], float],
    *,
    measured: bool,
) -> None:
    import numpy as np

    heights, widths = (sorted({tile[axis] for tile in tiles}) for axis in (0, 1))
    values = np.full((len(heights), len(widths)), np.nan)
    for (height, width), value in tiles.items():
        values[heights.index(height), widths.index(width)] = value
    # From 0, so that a cell that is twice as dark takes twice as long.
    high = float(np.nanmax(values))
    image = axes.imshow(values, cmap=style.scale("positive"), vmin=0, vmax=high, origin="lower", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = image.cmap(image.norm(value))
            axes.text(
                column, row, f"{value:.3g}", ha="center", va="center", fontsize=style.LABEL,
                color=style.ink_on([255 * channel for channel in colour[:3]]),
            )  # fmt: skip
    axes.set_xticks(range(len(widths)), [str(width) for width in widths], fontsize=style.LABEL)
    axes.set_yticks(range(len(heights)), [str(height) for height in heights], fontsize=style.LABEL)
    axes.set_xlabel(fields[1], fontsize=style.LABEL)
    axes.set_ylabel(fields[0], fontsize=style.LABEL)
    style.title(axes, f"{variant}, {'µs' if measured else 'µs at least'}")
    axes.set_facecolor(style.PAPER)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=style.QUIET)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("µs, the best of each", fontsize=style.SMALL, color=style.QUIET)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=style.SMALL, colors=style.QUIET)


def _bars(axes: Any, ranked: list[dict[str, Any]], document: dict[str, Any]) -> None:
    places = range(len(ranked))
    milliseconds = [found["median_us"] / 1e3 for found in ranked]
    errors = [
        [(found["median_us"] - found["low_us"]) / 1e3 for found in ranked],
        [(found["high_us"] - found["median_us"]) / 1e3 for found in ranked],
    ]
    colours = [style.QUIET if found["peer"] else style.SERIES[0] for found in ranked]
    axes.barh(places, milliseconds, xerr=errors, color=colours, ecolor=style.INK, height=0.6)
    for place, found in zip(places, ranked, strict=True):
        rate = document["work"]["flop"] / found["median_us"] / 1e3
        axes.text(found["high_us"] / 1e3, place, f"  {rate:,.0f} GFLOP/s", va="center", fontsize=style.SMALL)
    axes.set_yticks(places, [found["variant"] for found in ranked], fontsize=style.LABEL)
    axes.invert_yaxis()
    axes.set_xlim(0, max(found["high_us"] for found in ranked) / 1e3 * 1.3)
    axes.set_xlabel(f"ms, median and quartiles; {document['settings']['threads']} threads", fontsize=style.LABEL)
    style.tidy(axes)
    axes.grid(visible=False, axis="y")
