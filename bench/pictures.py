"""Pictures of a ranking: the roofline with each tiling as a point, and its tiles as a heat map; on a CPU, bars."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

from bench import roofline
from gpuconv.plots import require_matplotlib
from gpuconv.storage import write_atomically

_TITLE, _LABEL, _SMALL = 12, 10, 8.5  # points
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
    require_matplotlib()
    ranked = [found for found in document["results"] if found.get("us") or found.get("floor_us")]
    if not ranked:
        raise ValueError("there is nothing to draw: no tiling has a time or a bound")
    agg: Any = importlib.import_module("matplotlib.backends.backend_agg")
    Figure: Any = importlib.import_module("matplotlib.figure").Figure
    if document["settings"]["backend"] != "cuda":
        figure = Figure(figsize=(8, 1.4 + 0.4 * len(ranked)), dpi=120, facecolor="white", layout="constrained")
        agg.FigureCanvasAgg(figure)
        _bars(figure.subplots(), ranked, document)
    else:
        maps = _heat_maps(ranked)
        width = 7 + 4.6 * len(maps)
        figure = Figure(figsize=(width, 5.2), dpi=120, facecolor="white", layout="constrained")
        agg.FigureCanvasAgg(figure)
        panels = figure.subplots(1, 1 + len(maps), squeeze=False, width_ratios=[7, *[4.6] * len(maps)])[0]
        _roofline(panels[0], ranked, document)
        for axes, (variant, fields, tiles) in zip(panels[1:], maps.values(), strict=True):
            _heat_map(figure, axes, variant, fields, tiles, measured=bool(ranked[0].get("us")))
    settings = document["settings"]
    figure.suptitle(
        f"{settings['operation']} on {settings['layer']}: {settings['geometry']}", fontsize=_TITLE, x=0.01, ha="left"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def microseconds(found: dict[str, Any]) -> float:
    """The measured median, or the bound."""
    return float(found["median_us"] if found.get("us") else found["floor_us"])


def _roofline(axes: Any, ranked: list[dict[str, Any]], document: dict[str, Any]) -> None:
    gpu, work = roofline.H200, document["work"]
    measured = bool(ranked[0].get("us"))
    peak, ideal = gpu.flops["float32"] / 1e9, work["intensity"]
    ridge = peak * 1e9 / gpu.bandwidth
    low, high = min(ideal, ridge) / 8, max(ideal, ridge) * 30
    slope = gpu.bandwidth / 1e9
    axes.plot([low, ridge, high], [low * slope, peak, peak], color="black", linewidth=1.5)
    axes.text(high, peak * 1.06, f"{peak / 1e3:.0f} TFLOP/s", ha="right", va="bottom", fontsize=_SMALL)
    axes.text(low * 1.1, low * slope * 2.2, f"{gpu.bandwidth / 1e12:.1f} TB/s", ha="left", fontsize=_SMALL)
    # All tilings do the same work, and have the same intensity: each point stands where it belongs, and what is moved
    # apart are the names, at the end of a line from the best tiling of a variant.
    rates: dict[str, list[float]] = {}
    for found in ranked:
        rates.setdefault(found["variant"], []).append(work["flop"] / microseconds(found) / 1e3)
    slowest = min(map(min, rates.values()))
    bottom, top = min(slowest, low * slope) / 2, peak * 2
    heights = _apart([max(own) for own in rates.values()], bottom, top)
    for number, ((variant, own), height) in enumerate(zip(rates.items(), heights, strict=True)):
        colour, marker = f"C{number}", _MARKERS[number % len(_MARKERS)]
        axes.scatter([ideal] * len(own), own, s=42, marker=marker, facecolors="none", edgecolors=colour, zorder=3)
        axes.annotate(
            f"{variant}: {len(own)} tiling{'s' * (len(own) > 1)}, best {max(own):,.0f}",
            (ideal, max(own)), (ideal * 1.5, height), color=colour, fontsize=_LABEL, va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkB": 3},
        )  # fmt: skip
    axes.axvline(ideal, color="gray", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, top)
    axes.set_xlabel("FLOP a byte, each array moved once", fontsize=_LABEL)
    axes.set_ylabel("GFLOP/s" if measured else "GFLOP/s at most (static bound)", fontsize=_LABEL)
    what = f"times on {document['settings']['device']}" if measured else "static bounds, not times"
    axes.set_title(f"Roofline of an H200: {what}", fontsize=_TITLE, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


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
    image = axes.imshow(values, cmap="viridis_r", origin="lower", aspect="auto")
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = value > low + 0.5 * (high - low)
            axes.text(
                column, row, f"{value:.3g}", ha="center", va="center", fontsize=_LABEL,
                color="white" if dark else "black",
            )  # fmt: skip
    axes.set_xticks(range(len(widths)), [str(width) for width in widths], fontsize=_LABEL)
    axes.set_yticks(range(len(heights)), [str(height) for height in heights], fontsize=_LABEL)
    axes.set_xlabel(fields[1], fontsize=_LABEL)
    axes.set_ylabel(fields[0], fontsize=_LABEL)
    axes.set_title(f"{variant}: {'µs' if measured else 'µs at least'}, the best of each", fontsize=_TITLE, loc="left")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.8).outline.set_visible(False)


def _bars(axes: Any, ranked: list[dict[str, Any]], document: dict[str, Any]) -> None:
    places = range(len(ranked))
    milliseconds = [found["median_us"] / 1e3 for found in ranked]
    errors = [
        [(found["median_us"] - found["low_us"]) / 1e3 for found in ranked],
        [(found["high_us"] - found["median_us"]) / 1e3 for found in ranked],
    ]
    colours = ["tab:gray" if found["peer"] else "tab:blue" for found in ranked]
    axes.barh(places, milliseconds, xerr=errors, color=colours, height=0.6)
    for place, found in zip(places, ranked, strict=True):
        rate = document["work"]["flop"] / found["median_us"] / 1e3
        axes.text(found["high_us"] / 1e3, place, f"  {rate:,.0f} GFLOP/s", va="center", fontsize=_SMALL)
    axes.set_yticks(places, [found["variant"] for found in ranked], fontsize=_LABEL)
    axes.invert_yaxis()
    axes.set_xlim(0, max(found["high_us"] for found in ranked) / 1e3 * 1.3)
    axes.set_xlabel(f"ms, median and quartiles; {document['settings']['threads']} threads", fontsize=_LABEL)
    axes.spines[["top", "right"]].set_visible(False)
