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
    low, high = min(ideal, ridge) / 8, max(ideal, ridge) * 8
    slope = gpu.bandwidth / 1e9
    axes.plot([low, ridge, high], [low * slope, peak, peak], color="black", linewidth=1.5)
    axes.text(high, peak * 1.06, f"{peak / 1e3:.0f} TFLOP/s", ha="right", va="bottom", fontsize=_SMALL)
    axes.text(low * 1.1, low * slope * 2.2, f"{gpu.bandwidth / 1e12:.1f} TB/s", ha="left", fontsize=_SMALL)
    # All tilings do the same work, and have the same intensity: drawn at one place they would hide each other.
    variants = list(dict.fromkeys(found["variant"] for found in ranked))
    for number, variant in enumerate(variants):
        x = ideal * 1.12 ** (number - (len(variants) - 1) / 2)
        rates = [work["flop"] / microseconds(found) / 1e3 for found in ranked if found["variant"] == variant]
        label = f"{variant} ({len(rates)})"
        axes.scatter([x] * len(rates), rates, s=30, color=f"C{number}", alpha=0.7, label=label, zorder=3)
    axes.axvline(ideal, color="gray", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    slowest = min(work["flop"] / microseconds(found) / 1e3 for found in ranked)
    axes.set_ylim(min(slowest, low * slope) / 2, peak * 2)
    axes.set_xlabel("FLOP a byte, each array moved once (variants side by side)", fontsize=_LABEL)
    axes.set_ylabel("GFLOP/s" if measured else "GFLOP/s at most (static bound)", fontsize=_LABEL)
    what = f"times on {document['settings']['device']}" if measured else "static bounds, not times"
    axes.set_title(f"Roofline of an H200: {what}", fontsize=_TITLE, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=_SMALL, loc="lower right")


def _heat_maps(ranked: list[dict[str, Any]]) -> dict[str, tuple[str, tuple[str, str], dict[tuple[int, int], float]]]:
    """By variant: the fields that span the tile, and for each tile its best time or bound."""
    maps: dict[str, tuple[str, tuple[str, str], dict[tuple[int, int], float]]] = {}
    for found in ranked:
        sizes = {name: value for name, value in found["tiling"].items() if type(value) is int}
        if len(sizes) < 2:
            continue
        fields = ("rows", "columns") if {"rows", "columns"} <= set(sizes) else tuple(sizes)[:2]
        _, _, tiles = maps.setdefault(found["variant"], (found["variant"], (fields[0], fields[1]), {}))
        tile = sizes[fields[0]], sizes[fields[1]]
        tiles[tile] = min(microseconds(found), tiles.get(tile, float("inf")))
    return {variant: entry for variant, entry in maps.items() if len(entry[2]) >= _FEWEST_TILES}


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
    axes.set_xlabel(f"tile width ({fields[1]})", fontsize=_LABEL)
    axes.set_ylabel(f"tile height ({fields[0]})", fontsize=_LABEL)
    axes.set_title(f"{variant}: {'µs' if measured else 'µs at least'}", fontsize=_TITLE, loc="left")
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
