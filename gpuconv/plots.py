"""Pictures of a training run: curves, confusion matrix, learned filters, one image's activations layer by layer.

Each function writes one PNG, or an SVG where the name ends so, atomically. matplotlib (part of ``gpuconv[cli]``) is
imported when the first one is drawn; figures that the caller has open in pyplot are not affected.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpuconv import plot_style as style
from gpuconv.autograd import Tensor, no_grad
from gpuconv.backends import use_backend
from gpuconv.models import Classifier
from gpuconv.nn import Conv2d, Dropout, Flatten, Module, ReLU, Sigmoid, Tanh
from gpuconv.nn.module import evaluating
from gpuconv.plot_style import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["require_matplotlib", "save_activations", "save_confusion", "save_curves", "save_filters"]

_PathLike = str | os.PathLike[str]

_PANEL_WIDTH, _LARGEST_TILE = 7.2, 1.0  # inches
_SIGNED, _POSITIVE, _PICTURE = "signed", "positive", "picture"
_SHORT_NAME = 6  # letters of a class name that fit below a bar
_MOST_FILTERS, _MOST_CHANNELS, _MOST_MAPS = 32, 16, 64  # more would be too small to see
_MOST_LAYERS = 12  # more would make a picture that no program shows


# -- curves ----------------------------------------------------------------------------------------------------------


def save_curves(rows: Sequence[Mapping[str, Any]], path: _PathLike) -> None:
    """Draw loss and accuracy by epoch, of training and validation.

    Args:
        rows: one mapping an epoch, such as a line of ``metrics.jsonl``, with ``epoch`` (from 1), ``train_loss``,
            ``train_accuracy`` and, where images were held out, ``validation_loss`` and ``validation_accuracy``;
            accuracies from 0 to 1.
        path: the file to write.

    Raises:
        ValueError: ``rows`` is empty.
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    if not rows:
        raise ValueError("save_curves: rows is empty; there is no epoch to draw")
    figure = style.figure(9, 3.8, layout="constrained")
    from matplotlib.ticker import MaxNLocator

    for axes, quantity, factor, title in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), ("Loss, mean of an image", "Accuracy, %"), strict=True
    ):
        for number, (part, look) in enumerate((("train", "o-"), ("validation", "s--"))):
            points = [
                (row["epoch"], factor * row[f"{part}_{quantity}"])
                for row in rows
                if row.get(f"{part}_{quantity}") is not None
            ]
            if points:
                label = "training, mean of the epoch" if part == "train" else "validation, after it"
                axes.plot(*zip(*points, strict=True), look, color=style.SERIES[number], label=label, markersize=4.5)
        style.title(axes, title)
        axes.set_xlabel("epoch", fontsize=style.LABEL)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5)
        style.tidy(axes)
        axes.legend(fontsize=style.LABEL, frameon=False)
    style.write(figure, path)


# -- confusion matrix ------------------------------------------------------------------------------------------------


def save_confusion(matrix: ArrayLike, classes: Sequence[str], path: _PathLike) -> None:
    """Draw which classes are mistaken for which.

    Colour shows the mistakes. The diagonal is grey, because its large counts would hide them.

    Args:
        matrix: (K, K), counts; rows are the true classes, columns the predicted ones.
        classes: the K names.
        path: the file to write.

    Raises:
        ValueError: the matrix is not (K, K).
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    counts = np.asarray(matrix)
    k = len(classes)
    if counts.shape != (k, k):
        raise ValueError(f"save_confusion: matrix must be ({k}, {k}) for {k} classes, got shape {counts.shape}")
    total, right = int(counts.sum()), int(np.trace(counts))
    mistakes = np.where(np.eye(k, dtype=bool) | (counts == 0), np.nan, counts)

    side = min(max(3.5, 0.55 * k), 12)
    figure = style.figure(side + 2.0, side + 1.1, layout="constrained")
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    worst = max(1.0, float(np.nanmax(mistakes, initial=1)))
    image = axes.imshow(mistakes, cmap=style.scale("positive"), vmin=0, vmax=worst)
    axes.imshow(np.where(np.eye(k, dtype=bool), 0.5, np.nan), cmap="Greys", vmin=0, vmax=2)
    axes.set_facecolor(style.PAPER)
    axes.spines[:].set_color(style.LINE)
    if k <= 25:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = style.scale("positive")(count / worst) if row != column else (0.75, 0.75, 0.75)
                axes.text(
                    column, row, f"{count:,}", ha="center", va="center", fontsize=style.LABEL if k <= 12 else 7,
                    color=style.ink_on([255 * channel for channel in colour[:3]]),
                )  # fmt: skip
    ticks = range(0, k, math.ceil(k / 50))
    names = [classes[i] for i in ticks]
    upright = max(map(len, names)) > 3
    axes.set_xticks(ticks, names, fontsize=style.LABEL, rotation=90 if upright else 0)
    axes.set_yticks(ticks, names, fontsize=style.LABEL)
    axes.set_xlabel("predicted", fontsize=style.LABEL + 1)
    axes.set_ylabel("true", fontsize=style.LABEL + 1)
    axes.tick_params(length=0)
    share = f", {right / total:.2%}" if total else ""
    style.title(axes, f"{right:,} of {total:,} right{share}")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.03)
    bar.set_label("mistakes", fontsize=style.LABEL)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=style.SMALL, length=2, colors=style.QUIET)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    style.write(figure, path)


# -- filters ---------------------------------------------------------------------------------------------------------


def save_filters(model: Module, path: _PathLike) -> None:
    """Draw the weights of 2-D convolution layers: one column for each filter, one row for each input map.

    Of a deep network these are the first twelve.

    Raises:
        ValueError: ``model`` has no such layer.
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Conv2d)]
    if not layers:
        raise ValueError(f"save_filters: {type(model).__name__} has no 2-D convolution layer")
    panels = []
    for name, layer in layers[:_MOST_LAYERS]:
        weight = layer.weight.numpy()
        filters, channels = weight.shape[:2]
        shown = weight[:_MOST_FILTERS, :_MOST_CHANNELS].swapaxes(0, 1)
        title = (
            f"{name or 'convolution'}: {_count(filters, 'filter')} of {_by(weight.shape[2:])}"
            f"{_shown(shown.shape[1], filters)}, each on {_count(channels, 'map')}{_shown(len(shown), channels)}"
        )
        ylabel = "input map" if len(shown) > 1 else ""
        panels.append(_tiled(title, shown, _SIGNED, "filter", ylabel))
    figure, _ = _stack(panels)
    style.write(figure, path)


# -- activations -----------------------------------------------------------------------------------------------------


def save_activations(model: Classifier, image: ArrayLike, path: _PathLike) -> None:
    """Draw one image's way through the network: input, the values after each layer, the class probabilities.

    An activation function is drawn together with the layer before it. Layers that change no value (flatten, dropout)
    are left out.

    Args:
        model: a network whose layers run one after the other.
        image: one image as ``model.predict`` takes it: (H, W), integers 0 to 255; or (C, H, W), floats, prepared.
        path: the file to write.

    Raises:
        ValueError: not one image that fits the model.
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    prepared = model.prepare(image)
    if len(prepared) != 1:
        raise ValueError(f"save_activations: image must be one image, got {len(prepared)}")
    pixels, probabilities = prepared[0], model.predict(prepared)[0]
    panels = [_tiled(f"input: {_count(len(pixels), 'channel')} of {_by(pixels.shape[1:])}", pixels[None], _PICTURE)]
    for name, values in _layer_outputs(model, pixels):
        if values.ndim == 3 and values[0].size > 1:
            maps = values[:_MOST_MAPS]
            title = f"{name}: {_count(len(values), 'map')} of {_by(values.shape[1:])}{_shown(len(maps), len(values))}"
            columns = min(len(maps), 16)
            blank = np.full((-len(maps) % columns, *maps.shape[1:]), np.nan)
            panels.append(_tiled(title, np.concatenate([maps, blank]).reshape(-1, columns, *maps.shape[1:])))
        else:
            panels.append(_strip(f"{name}: {_count(values.size, 'value')}", values.reshape(-1)))

    names = [name if len(name) <= 20 else name[:19] + "…" for name in model.classes]
    room = 0.35 if max(map(len, names)) <= _SHORT_NAME else 1.7  # inches, for names written upwards
    figure, bars = _stack(panels, extra=1.4, room=room)
    _draw_probabilities(bars, probabilities, names)
    style.write(figure, path)


def _layer_outputs(model: Classifier, pixels: NDArray[Any]) -> list[tuple[str, NDArray[Any]]]:
    """Names and outputs of a Sequential's layers, without the batch dimension; the last layer's are the logits."""
    stages: list[tuple[str, NDArray[Any]]] = []
    # On the host NumPy has one image's values before kernels for single layers, which training fuses, are compiled.
    with evaluating(model), no_grad(), use_backend("numpy"):
        x = Tensor(pixels[None].astype(np.float32))
        for name, layer in model.named_children():
            x = layer(x)
            if isinstance(layer, (Flatten, Dropout)):
                continue
            if isinstance(layer, (ReLU, Sigmoid, Tanh)) and stages:
                name = f"{stages.pop()[0]}, {type(layer).__name__}"
            stages.append((name, x.numpy()[0]))
    return stages


def _draw_probabilities(axes: Axes, probabilities: NDArray[Any], classes: Sequence[str]) -> None:
    shown = list(range(len(probabilities)))
    if len(shown) > 20:
        shown = np.argsort(-probabilities, kind="stable")[:10].tolist()
    best = int(probabilities.argmax())
    colours = [style.SERIES[1 if index == best else 0] for index in shown]
    axes.bar(range(len(shown)), probabilities[shown], color=colours, width=0.7)
    names = [classes[index] for index in shown]
    axes.set_xticks(
        range(len(shown)), names, fontsize=style.LABEL, rotation=90 if max(map(len, classes)) > _SHORT_NAME else 0
    )
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    style.tidy(axes, grid=False)
    few = "" if len(shown) == len(probabilities) else f" (the {len(shown)} greatest of {len(probabilities)})"
    title = f"probability of each class{few}: {classes[best]} with {probabilities[best]:.1%}"
    style.title(axes, title)


# -- panels: rows of small images under each other -------------------------------------------------------------------


@dataclass(frozen=True)
class _Panel:
    """Tiles beside and below each other, drawn as one image.

    Attributes:
        values: (H, W), NaN between the tiles.
        size: width and height on paper, in inches.
        tiles: columns and rows of tiles.
        gap: how many of the values lie between two tiles.
    """

    title: str
    values: NDArray[Any]
    size: tuple[float, float]
    tiles: tuple[int, int]
    colours: str
    xlabel: str = ""
    ylabel: str = ""
    gap: int = 0


def _tiled(title: str, tiles: NDArray[Any], colours: str = "", xlabel: str = "", ylabel: str = "") -> _Panel:
    """A panel of small images, (rows, columns, h, w)."""
    rows, columns, height, width = tiles.shape
    # Each pixel of a small image becomes several, so that the gap between images can be narrow.
    zoom = math.ceil(80 / max(height, width))
    tiles = tiles.repeat(zoom, axis=2).repeat(zoom, axis=3)
    height, width = tiles.shape[2:]
    gap = max(height, width) // 20
    values = np.full((rows, columns, height + gap, width + gap), np.nan)
    values[:, :, :height, :width] = tiles
    values = values.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap))[:-gap, :-gap]
    pixel = min(_PANEL_WIDTH / columns / 1.05, _LARGEST_TILE) / max(height, width)  # inches
    # Computed with a gap of exactly a twentieth of a tile, so that panels of as many tiles are equally wide.
    size = (1.05 * columns - 0.05) * width * pixel, (1.05 * rows - 0.05) * height * pixel
    return _Panel(title, values, size, (columns, rows), colours, xlabel, ylabel, gap)


def _strip(title: str, values: NDArray[Any]) -> _Panel:
    """A panel of numbers side by side, in several rows if there are many."""
    columns = min(len(values), 128)
    values = np.concatenate([values, np.full(-len(values) % columns, np.nan)]).reshape(-1, columns)
    cell = min(_PANEL_WIDTH / columns, 0.25)
    return _Panel(title, values, (columns * cell, len(values) * 0.25), (1, 1), "")


def _stack(panels: Sequence[_Panel], extra: float = 0, room: float = 0) -> tuple[Figure, Axes]:
    """A figure with the panels below each other.

    Below them are axes of the height ``extra``, with ``room`` for their labels, which are returned too. Positions are
    in inches: the tiles of all panels start at the same left edge and keep their proportions.
    """
    left = 0.6 if any(panel.ylabel for panel in panels) else 0.2
    width = left + max(panel.size[0] for panel in panels) + 1.0
    below = [0.45 if panel.xlabel else 0.12 for panel in panels]
    height = sum(0.4 + panel.size[1] for panel in panels) + sum(below) + 0.1 + (0.4 + extra + room if extra else 0)
    width = max(width, left + 5)
    figure = style.figure(width, height)

    def axes_at(x: float, top: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, 1 - (top + h) / height, w / width, h / height))

    top = 0.0
    for panel, space in zip(panels, below, strict=True):
        top += 0.4
        axes = axes_at(left, top, *panel.size)
        low, high, colours = _range(panel)
        image = axes.imshow(
            panel.values, cmap=style.scale(colours), vmin=low, vmax=high, aspect="auto", interpolation="nearest"
        )
        axes.set_facecolor(style.PAPER)
        _outline(axes, panel)
        style.title(axes, panel.title)
        axes.spines[:].set_visible(False)
        for axis, label, count, pixels in (
            (axes.xaxis, panel.xlabel, panel.tiles[0], panel.values.shape[1]),
            (axes.yaxis, panel.ylabel, panel.tiles[1], panel.values.shape[0]),
        ):
            axis.set_label_text(label, fontsize=style.LABEL)
            step = math.ceil(count / 16)
            numbers = range(1, count + 1, step) if label else ()
            axis.set_ticks([(n - 0.5) * pixels / count - 0.5 for n in numbers], list(map(str, numbers)))
            axis.set_tick_params(length=0, labelsize=style.SMALL, labelcolor=style.QUIET)
        bar_axes = axes_at(left + panel.size[0] + 0.15, top, 0.12, max(panel.size[1], 0.25))
        bar = figure.colorbar(image, cax=bar_axes)
        bar.set_ticks([low, high], labels=[f"{low:.2g}", f"{high:.2g}"])
        bar.outline.set_visible(False)
        bar_axes.tick_params(labelsize=style.SMALL, length=2, colors=style.QUIET)
        top += panel.size[1] + space
    return figure, axes_at(left + 0.4, top + 0.4, width - left - 0.6, extra) if extra else figure.axes[-1]


def _outline(axes: Axes, panel: _Panel) -> None:
    """A thin frame around each tile: what is 0 has the colour of the paper."""
    from matplotlib.patches import Rectangle

    columns, rows = panel.tiles
    height, width = (
        (size + panel.gap) // count for size, count in zip(panel.values.shape, (rows, columns), strict=True)
    )
    for top in range(0, rows * height, height):
        for left in range(0, columns * width, width):
            if np.isfinite(panel.values[top, left]):
                size = width - panel.gap, height - panel.gap
                frame = Rectangle((left - 0.5, top - 0.5), *size, fill=False, edgecolor=style.LINE, linewidth=0.8)
                frame.set_clip_on(False)
                axes.add_patch(frame)


def _range(panel: _Panel) -> tuple[float, float, str]:
    """Smallest and largest value of the colour scale, and the colour map: diverging from 0 if both signs occur."""
    low, high = float(np.nanmin(panel.values)), float(np.nanmax(panel.values))
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = 0.0, 1.0
    if panel.colours == _PICTURE:
        return low, high if high > low else low + 1, _PICTURE
    if panel.colours == _SIGNED or low < 0:
        bound = max(-low, high) or 1.0
        return -bound, bound, _SIGNED
    return 0.0, high or 1.0, _POSITIVE


# -- text and files -------------------------------------------------------------------------------------------------


def _by(size: Sequence[int]) -> str:
    return "×".join(map(str, size))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _shown(shown: int, count: int) -> str:
    return f" (the first {shown})" if shown < count else ""
