"""Tools of image processing, for brightness as float32 and masks as bool, (H, W)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Gray = NDArray[np.float32]
Mask = NDArray[np.bool_]


def otsu(values: Gray) -> float:
    """The threshold that divides values from 0 up into two classes of greatest variance between them."""
    counts, edges = np.histogram(values, bins=256, range=(0, float(values.max())))
    weighted = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = values.size - below
    means = weighted[:-1] / np.maximum(below, 1), (weighted[-1] - weighted[:-1]) / np.maximum(above, 1)
    between = below * above * (means[1] - means[0]) ** 2
    # In a gap between the classes every threshold is as good: take the middle of the gap.
    return float(edges[1:-1][between >= between.max() * (1 - 1e-9)].mean())


def noise_level(values: Gray) -> float:
    """Standard deviation of the pixels' noise, from the median difference of neighbours.

    Of normal noise, half the values are within 0.6745 standard deviations; a difference has twice the variance.
    """
    if values.size < 2:
        return 0.0
    difference = np.abs(np.diff(values, axis=0 if len(values) > 1 else 1))
    return float(np.median(difference)) / (0.6745 * 2**0.5)


def components(mask: Mask) -> NDArray[np.intp]:
    """Number the parts of a mask that hang together, diagonals included, from 1; 0 is outside.

    Union-find over all pairs of neighbouring runs at once (a run: pixels in a row without a gap): each round hooks
    every root to the least root among its neighbours and then lets all runs point to their root.
    """
    result = np.zeros(mask.shape, dtype=np.intp)
    row, first, length = runs(mask)
    if not len(row):
        return result
    # Places in the picture, as one number, with room between the rows.
    width = mask.shape[1] + 2
    start, stop = row * width + first, row * width + first + length
    low = np.searchsorted(stop, start + width, "left")
    number = np.maximum(np.searchsorted(start, stop + width, "right") - low, 0)
    above = np.repeat(np.arange(len(row)), number)
    below = np.repeat(low - np.cumsum(number) + number, number) + np.arange(len(above))
    pairs = np.stack([above, below])
    root = np.arange(len(row))
    while pairs.shape[1]:
        np.minimum.at(root, pairs.max(axis=0), pairs.min(axis=0))
        while not np.array_equal(root, root[root]):
            root = root[root]
        pairs = root[pairs]
        pairs = pairs[:, pairs[0] != pairs[1]]
    result[mask] = np.repeat(np.unique(root, return_inverse=True)[1] + 1, length)
    return result


def runs(mask: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """The runs of a mask's pixels along its rows, in their order: row, first column and length of each."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    change = np.diff(padded, axis=1)
    row, first = np.nonzero(change == 1)
    return row, first, np.nonzero(change == -1)[1] - first


def windowed(values: NDArray[Any], radius: int, extreme: np.ufunc, outside: float = 0) -> NDArray[Any]:
    """The least or greatest value in the square window around each element; `outside` is beyond the edges.

    `extreme` is ``np.minimum`` or ``np.maximum``. Windows are doubled until they are wide enough: the work grows with
    the logarithm of their width.
    """
    for axis in (0, 1):
        values = np.moveaxis(values, axis, 0)
        count, width = len(values), 2 * radius + 1
        window = np.full((count + 2 * radius, values.shape[1]), outside, dtype=values.dtype)
        window[radius : radius + count] = values
        done = 1
        while done < width:
            step = min(done, width - done)
            window = extreme(window[:-step], window[step:])
            done += step
        values = np.moveaxis(window, 0, axis)
    return values


def window_mean(values: Gray, radius: int) -> Gray:
    """The mean over the square window around each element, the picture being continued at its edges."""
    side = 2 * radius + 1
    padded = np.pad(values, radius, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, (side, side)).mean(axis=(2, 3), dtype=np.float32)


def border(shape: tuple[int, ...]) -> Mask:
    """The outermost pixels of a picture of `shape`."""
    result = np.ones(shape, dtype=bool)
    result[1:-1, 1:-1] = False
    return result


def bounding_box(mask: Mask) -> tuple[slice, slice]:
    """Of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def centre_of_mass(values: Gray) -> NDArray[np.float64]:
    """Row and column of the mean of all pixels, weighted by their values, which must not all be 0."""
    rows, columns = values.sum(axis=1, dtype=np.float64), values.sum(axis=0, dtype=np.float64)
    return np.array([rows @ np.arange(len(rows)), columns @ np.arange(len(columns))]) / rows.sum()


def is_noise(gray: Gray) -> bool:
    """Whether neighbouring pixels have nothing to do with each other, also when the picture is scaled to 32x32."""
    from PIL import Image

    height, width = gray.shape
    if min(height, width) < 16:
        return False  # too few to tell
    small = np.asarray(Image.fromarray(gray).resize((min(width, 32), min(height, 32)), Image.Resampling.BOX))
    return correlation(small) < 0.25


def correlation(values: Gray) -> float:
    """Of neighbouring pixels, the greater of across and down; 1 where all are equal."""
    centred = values - values.mean()
    variance = float((centred**2).mean())
    if variance < 1e-6:
        return 1.0
    return max(float((centred[1:] * centred[:-1]).mean()), float((centred[:, 1:] * centred[:, :-1]).mean())) / variance
