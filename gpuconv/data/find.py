"""Finding the digit in a picture: what stands out from the background."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from gpuconv.data.raster import Gray, Mask, border, bounding_box, components, noise_level, otsu, window_reduce

__all__ = ["LEAST_CONTRAST", "NoDigitError", "find_digit"]

LEAST_CONTRAST = 8.0  # of 255; less is an empty sheet


class NoDigitError(Exception):
    """A picture does not show one digit; the message says what it shows instead."""


class _Shape(NamedTuple):
    """Something that stands out from the background."""

    box: tuple[slice, slice]  # where in the picture
    mask: Mask  # which pixels of the box
    pixels: Gray  # of the box: 0 outside the mask, 1 inside a stroke
    contrast: float  # of a stroke's inside, 0 to 255
    cut_off: bool  # whether it runs out of the picture (but does not fill it, as a digit cropped closely does)


def find_digit(gray: Gray, invert: bool | Literal["auto"]) -> Gray:
    """The digit in a picture, cropped: (h, w), float32, 1 inside a stroke and 0 around it.

    Args:
        gray: brightness of the picture, 0 to 255, (H, W).
        invert: whether the digit is darker than its background; ``"auto"`` finds out.

    Raises:
        NoDigitError: nothing stands out, or noise, or two shapes do.
    """
    digit = _find(gray, invert)
    if digit is None:
        raise NoDigitError("blank, no digit found: nothing stands out from the background")
    return digit


def _find(gray: Gray, invert: bool | Literal["auto"], *, in_sheet: bool = False) -> Gray | None:
    """The digit's pixels, cropped, 1 inside a stroke and 0 around it; None if nothing stands out."""
    least = max(LEAST_CONTRAST, 0.15 * float(np.ptp(gray)))
    best, best_score = None, 0.0
    for estimate in (_local_background,) if in_sheet else (_flat_background, _local_background):
        background = estimate(gray)
        if background is None:
            continue
        for dark in (False, True) if invert == "auto" else (invert,):
            shape = _most_prominent(background - gray if dark else gray - background)
            if shape is None or shape.contrast < least:
                continue
            # A shadow or the edge of a table is large and dark, but it runs out of the picture.
            score = shape.contrast * max(shape.mask.shape) * (0.1 if shape.cut_off else 1)
            if score > best_score:
                best, best_score = shape, score
        if best is not None and not best.cut_off:
            break
    if best is None:
        return None
    if not in_sheet and _is_sheet(best, gray.shape):
        digit = _find(_sheet_alone(gray, best), invert, in_sheet=True)
        if digit is not None:
            return digit
    return best.pixels


def _flat_background(gray: Gray) -> float | None:
    """The brightness that a good part of the picture's border has, as in a drawing or a scan; None if none has."""
    edge = np.sort(gray[border(gray.shape)])
    tolerance = 0.03 * np.ptp(gray)
    alike = np.searchsorted(edge, edge + tolerance, "right") - np.searchsorted(edge, edge - tolerance, "left")
    if alike.max() < 0.4 * len(edge):
        return None
    return float(np.median(edge[alike == alike.max()]))


def _local_background(gray: Gray) -> Gray:
    """The median of each pixel's surroundings: it follows light and shadow, as in a photograph, but no stroke."""
    from PIL import Image

    grid, window = 64, 25
    height, width = gray.shape
    coarse = Image.fromarray(gray).resize((min(width, grid), min(height, grid)), Image.Resampling.BOX)
    padded = np.pad(np.asarray(coarse), window // 2, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (window, window))
    median = np.median(windows.reshape(*windows.shape[:2], -1), axis=-1)
    return np.asarray(Image.fromarray(median).resize((width, height), Image.Resampling.BILINEAR))


def _most_prominent(residual: Gray) -> _Shape | None:
    """The shape of most ink in a picture whose background was subtracted; ink is above 0."""
    ink = np.maximum(residual, 0)
    peak = float(ink.max())
    if peak < LEAST_CONTRAST:
        return None
    noise = noise_level(residual)
    high = max(otsu(ink), min(5 * noise, 0.8 * peak))  # Otsu splits the noise where there is little ink
    contrast = float(np.median(ink[ink >= high]))
    # Hysteresis: the soft edge of a stroke belongs to the digit, the same brightness elsewhere does not.
    parts = components(ink >= min(max(4 * noise, 0.25 * contrast), high))

    y, x = np.nonzero(parts)
    part = parts[y, x] - 1
    count = int(parts.max())
    mass = np.bincount(part, weights=np.where(ink[y, x] >= high, ink[y, x], 0), minlength=count)
    begin, end = np.full((2, count), max(ink.shape)), np.zeros((2, count), dtype=int)
    for axis, position in enumerate((y, x)):
        np.minimum.at(begin[axis], part, position)
        np.maximum.at(end[axis], part, position + 1)
    shape = np.array(ink.shape)[:, None]
    at_border = (begin == 0).any(axis=0) | (end == shape).any(axis=0)
    cut_off = at_border & (end - begin < 0.9 * shape).any(axis=0)

    main = int(np.argmax(np.where(cut_off, 0.03 * mass, mass)))
    # Strokes need not hang together: what is near and not too small is part of the digit, such as the bar of a 5.
    reach = 0.3 * (end - begin)[:, main].max()
    near = ((begin <= end[:, [main]] + reach) & (end >= begin[:, [main]] - reach)).all(axis=0)
    chosen = near & (mass >= 0.03 * mass[main]) & (~cut_off | cut_off[main])
    mask = np.append(False, chosen)[parts]
    box = bounding_box(mask)
    mask = mask[box]
    pixels = np.where(mask, np.minimum(ink[box] / contrast, 1), 0).astype(np.float32)
    return _Shape(box, mask, pixels, contrast, bool(cut_off[main]))


def _is_sheet(shape: _Shape, picture: tuple[int, ...]) -> bool:
    """Whether a shape is too compact to consist of strokes, and has the picture's background around it."""
    shorter, longest = min(shape.mask.shape), max(shape.mask.shape)
    if longest < 48 or all(n >= 0.9 * m for n, m in zip(shape.mask.shape, picture, strict=True)):
        return False
    if shorter > longest / 2 and shape.mask.mean() > 0.75:
        return True
    # Half the width of the boldest strokes is about 0.17 of a digit's longer side (measured on MNIST).
    return bool(window_reduce(shape.mask, round(0.19 * longest), np.min).any())


def _sheet_alone(gray: Gray, sheet: _Shape) -> Gray:
    """The picture cropped to a sheet, with the sheet's brightness where something else shows at its edges."""
    mask = sheet.mask
    ahead = [np.maximum.accumulate(mask, axis) for axis in (0, 1)]
    behind = [np.flip(np.maximum.accumulate(np.flip(mask, axis), axis), axis) for axis in (0, 1)]
    inside = ahead[0] & behind[0] & ahead[1] & behind[1]  # has pixels of the sheet above, below, left and right
    inside = window_reduce(inside, 1 + max(mask.shape) // 50, np.min)
    crop = gray[sheet.box]
    return np.where(inside, crop, np.median(crop[mask]))
