"""Reading a digit from a picture, and bringing it into the form of MNIST's digits.

MNIST's digits are light on dark, scaled to fit 20x20 pixels without changing their proportions, and placed so
that their centre of mass is pixel (14, 14) of 28x28. A network trained on them knows no other form.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuconv.data.errors import DataError, missing_extra

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["read_digit"]

_SIDE, _BOX, _CENTRE = 28, 20, 14
_WORKING_SIDE = 512  # pictures are scaled down to this: a digit is recognised in 20x20
_LEAST_CONTRAST = 8.0  # of 255; less is an empty sheet
_LEAST_STROKE = 0.1  # width of a stroke, as a share of the digit's longer side: 2 of 20 pixels
# Formats that Pillow decodes in its own process. Among the others is EPS, for which it would start Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_Gray = NDArray[np.float32]
_Mask = NDArray[np.bool_]


def read_digit(
    path_or_file: str | os.PathLike[str] | IO[bytes], *, invert: bool | Literal["auto"] = "auto"
) -> NDArray[np.uint8]:
    """Read a picture of one digit and bring it into the form of MNIST's digits.

    What stands out most from the background by Otsu's threshold is taken for the digit; it is cropped, scaled to
    fit 20x20 and centred by its mass, strokes thinner than 2 pixels being thickened. The background may be a
    drawing's flat colour, unevenly lit paper, or a sheet that lies on something else. A picture that is a digit
    in MNIST's form already, or an enlargement of one, keeps its pixels.

    Args:
        path_or_file: PNG, JPEG, GIF (first frame), BMP, TIFF, WebP or PNM of any size and mode. Orientation in
            EXIF is followed, and transparency is laid over a background that contrasts with the drawing.
        invert: whether the digit is darker than its background. ``"auto"`` finds out.

    Returns:
        (28, 28), uint8, light on dark.

    Raises:
        DataError: missing, empty, truncated or too large (Pillow's ``MAX_IMAGE_PIXELS``), no picture, or
            nothing stands out in it. The message is one line and begins with the file's name.
        ImportError: Pillow is not installed.

    Source of the threshold: Otsu, *A threshold selection method from gray-level histograms*, 1979.
    """
    if invert not in (True, False, "auto"):
        raise ValueError(f"invert is {invert!r}; it must be True, False or 'auto'")
    if not isinstance(path_or_file, (str, os.PathLike)) and not hasattr(path_or_file, "read"):
        raise TypeError(
            f"path_or_file is of type {type(path_or_file).__name__}; it must be a path or a file open in binary mode"
        )
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise missing_extra("reading pictures", "Pillow") from None

    if isinstance(path_or_file, (str, os.PathLike)):
        name = os.fspath(path_or_file)
    else:
        name = str(getattr(path_or_file, "name", "picture"))
    gray = _decode(path_or_file, name)
    for dark in (False, True) if invert == "auto" else (bool(invert),):
        framed = _already_framed(255 - gray if dark else gray)
        if framed is not None:
            return framed
    digit = _find_digit(gray, invert)
    if digit is None:
        raise DataError(f"{name}: no digit found, nothing stands out from the background")
    return _normalise(_with_visible_strokes(digit))


# -- from the file to brightness ---------------------------------------------------------------------------------------


def _decode(path_or_file: Any, name: str) -> _Gray:
    """Brightness of the picture, 0 to 255, (H, W), scaled down to the working size."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, which does not matter here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path_or_file, formats=_FORMATS) as image:
                image.draft("L", (_WORKING_SIDE, _WORKING_SIDE))  # JPEG decodes to a fraction of its size at once
                image.load()
                return _brightness(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{name}: more than {Image.MAX_IMAGE_PIXELS} pixels; scale it down first") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: no picture in a known format ({', '.join(_FORMATS)})") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # what Pillow's decoders raise on damaged files is of many kinds, none documented
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{name}: damaged picture ({reason})") from None


def _brightness(image: Image.Image) -> _Gray:
    from PIL import Image, ImageOps

    with suppress(Exception):  # damaged EXIF does not spoil the picture
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # No maximum goes with these: a 16-bit file may hold 12-bit data. So the range in use is the range.
        values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
        values -= values.min()
        image = Image.fromarray(values * (255 / max(float(values.max()), 1e-30)))
    elif image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image.thumbnail((_WORKING_SIDE, _WORKING_SIDE))
        alpha = np.asarray(image.getchannel("A"), dtype=np.float32) / np.float32(255)
        gray = np.asarray(image.convert("RGB").convert("L"), dtype=np.float32)
        return alpha * gray + (1 - alpha) * _behind(gray, alpha)
    elif image.mode != "L":
        image = image.convert("RGB").convert("L")
    image.thumbnail((_WORKING_SIDE, _WORKING_SIDE))
    return np.asarray(image, dtype=np.float32)


def _behind(gray: _Gray, alpha: _Gray) -> float:
    """The brightness to put behind a transparent picture."""
    opaque_border = _border(gray.shape) & (alpha > 0.5)
    if opaque_border.sum() > _border(gray.shape).sum() / 2:  # a card, perhaps with round corners: continue it
        return float(np.median(gray[opaque_border]))
    return 0.0 if np.sum(alpha * gray) > 127.5 * np.sum(alpha) else 255.0


def _already_framed(gray: _Gray) -> NDArray[np.uint8] | None:
    """A picture that is a digit in MNIST's form, perhaps enlarged, as 28x28; None for any other."""
    from PIL import Image

    if gray.shape[0] != gray.shape[1] or len(gray) < _SIDE:
        return None
    gray = np.asarray(Image.fromarray(gray).resize((_SIDE, _SIDE), Image.Resampling.BOX))
    ink = gray > 32
    # A thin line in a large drawing fades when it is scaled down: that is no digit of MNIST, but one to redraw.
    if gray.max() < 200 or np.median(gray[_border(gray.shape)]) > 8:
        return None
    longest = max(part.stop - part.start for part in _bounding_box(ink))
    centre = _centre_of_mass(np.where(ink, gray, 0))
    if not _BOX - 2 <= longest <= _BOX or np.abs(centre - _CENTRE).max() > 1:
        return None
    return np.round(gray).astype(np.uint8)


# -- finding the digit -------------------------------------------------------------------------------------------------


class _Shape(NamedTuple):
    """Something that stands out from the background."""

    box: tuple[slice, slice]  # where in the picture
    mask: _Mask  # which pixels of the box
    pixels: _Gray  # of the box: 0 outside the mask, 1 inside a stroke
    contrast: float  # of a stroke's inside, 0 to 255
    cut_off: bool  # whether it runs out of the picture (but does not fill it, as a digit cropped closely does)


def _find_digit(gray: _Gray, invert: bool | Literal["auto"], *, in_sheet: bool = False) -> _Gray | None:
    """The digit's pixels, cropped, 1 inside a stroke and 0 around it; None if nothing stands out."""
    least = max(_LEAST_CONTRAST, 0.15 * float(np.ptp(gray)))
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
        digit = _find_digit(_sheet_alone(gray, best), invert, in_sheet=True)
        if digit is not None:
            return digit
    return best.pixels


def _flat_background(gray: _Gray) -> float | None:
    """The brightness that a good part of the picture's border has, as in a drawing or a scan; None if none has."""
    edge = np.sort(gray[_border(gray.shape)])
    tolerance = 0.03 * np.ptp(gray)
    alike = np.searchsorted(edge, edge + tolerance, "right") - np.searchsorted(edge, edge - tolerance, "left")
    if alike.max() < 0.4 * len(edge):
        return None
    return float(np.median(edge[alike == alike.max()]))


def _local_background(gray: _Gray) -> _Gray:
    """The median of each pixel's surroundings: it follows light and shadow, as in a photograph, but no stroke."""
    from PIL import Image

    grid, window = 64, 25
    height, width = gray.shape
    coarse = Image.fromarray(gray).resize((min(width, grid), min(height, grid)), Image.Resampling.BOX)
    padded = np.pad(np.asarray(coarse), window // 2, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (window, window))
    median = np.median(windows.reshape(*windows.shape[:2], -1), axis=-1)
    return np.asarray(Image.fromarray(median).resize((width, height), Image.Resampling.BILINEAR))


def _most_prominent(residual: _Gray) -> _Shape | None:
    """The shape of most ink in a picture whose background was subtracted; ink is above 0."""
    ink = np.maximum(residual, 0)
    peak = float(ink.max())
    if peak < _LEAST_CONTRAST:
        return None
    noise = _noise(residual)
    high = max(_otsu(ink), min(5 * noise, 0.8 * peak))  # Otsu splits the noise where there is little ink
    contrast = float(np.median(ink[ink >= high]))
    # Hysteresis: the soft edge of a stroke belongs to the digit, the same brightness elsewhere does not.
    parts = _components(ink >= min(max(4 * noise, 0.25 * contrast), high))

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
    box = _bounding_box(mask)
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
    return bool(_window_reduce(shape.mask, round(0.19 * longest), np.min).any())


def _sheet_alone(gray: _Gray, sheet: _Shape) -> _Gray:
    """The picture cropped to a sheet, with the sheet's brightness where something else shows at its edges."""
    mask = sheet.mask
    ahead = [np.maximum.accumulate(mask, axis) for axis in (0, 1)]
    behind = [np.flip(np.maximum.accumulate(np.flip(mask, axis), axis), axis) for axis in (0, 1)]
    inside = ahead[0] & behind[0] & ahead[1] & behind[1]  # has pixels of the sheet above, below, left and right
    inside = _window_reduce(inside, 1 + max(mask.shape) // 50, np.min)
    crop = gray[sheet.box]
    return np.where(inside, crop, np.median(crop[mask]))


# -- from the digit to MNIST's form ------------------------------------------------------------------------------------


def _with_visible_strokes(digit: _Gray) -> _Gray:
    """Thicken strokes that would fade when the digit is scaled to 20x20, such as a pencil's in a large drawing."""
    mask = digit > 0.5
    outline = mask & ~_window_reduce(mask, 1, np.min)
    width = 2 * np.count_nonzero(mask) / max(1, int(np.count_nonzero(outline)))  # a stroke has an outline on both sides
    radius = round((_LEAST_STROKE * max(digit.shape) - width) / 2)
    return _window_reduce(np.pad(digit, radius), radius, np.max) if radius > 0 else digit


def _normalise(digit: _Gray) -> NDArray[np.uint8]:
    """Scale a cropped digit of values 0 to 1 to fit 20x20 and centre it by its mass in 28x28."""
    from PIL import Image

    scale = _BOX / max(digit.shape)
    height, width = (max(1, round(n * scale)) for n in digit.shape)
    scaled = np.asarray(Image.fromarray(digit).resize((width, height), Image.Resampling.HAMMING))
    top, left = (
        int(np.clip(round(_CENTRE - centre), 0, _SIDE - n))
        for centre, n in zip(_centre_of_mass(scaled), scaled.shape, strict=True)
    )
    result = np.zeros((_SIDE, _SIDE), dtype=np.uint8)
    result[top : top + height, left : left + width] = np.round(255 * np.clip(scaled, 0, 1))
    return result


# -- tools of image processing -----------------------------------------------------------------------------------------


def _otsu(values: _Gray) -> float:
    """The threshold that divides values from 0 up into two classes of greatest variance between them."""
    counts, edges = np.histogram(values, bins=256, range=(0, float(values.max())))
    weighted = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = values.size - below
    means = weighted[:-1] / np.maximum(below, 1), (weighted[-1] - weighted[:-1]) / np.maximum(above, 1)
    between = below * above * (means[1] - means[0]) ** 2
    # In a gap between the classes every threshold is as good: take the middle of the gap.
    return float(edges[1:-1][between >= between.max() * (1 - 1e-9)].mean())


def _noise(values: _Gray) -> float:
    """Standard deviation of the pixels' noise, from the median difference of neighbours.

    Of normal noise, half the values are within 0.6745 standard deviations; a difference has twice the variance.
    """
    difference = np.abs(np.diff(values, axis=0 if len(values) > 1 else 1))
    return float(np.median(difference)) / (0.6745 * 2**0.5)


def _components(mask: _Mask) -> NDArray[np.intp]:
    """Number the parts of a mask that hang together, diagonals included, from 1; 0 is outside.

    Union-find over all pairs of neighbours at once: each round hooks every root to the least root among its
    neighbours and then lets all pixels point to their root.
    """
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(np.count_nonzero(mask))
    neighbours = (
        (number[:, :-1], number[:, 1:]),
        (number[:-1], number[1:]),
        (number[:-1, :-1], number[1:, 1:]),
        (number[:-1, 1:], number[1:, :-1]),
    )
    pairs = np.concatenate([np.stack([a, b])[:, (a >= 0) & (b >= 0)] for a, b in neighbours], axis=1)
    root = np.arange(np.count_nonzero(mask))
    while pairs.shape[1]:
        np.minimum.at(root, pairs.max(axis=0), pairs.min(axis=0))
        while not np.array_equal(root, root[root]):
            root = root[root]
        pairs = root[pairs]
        pairs = pairs[:, pairs[0] != pairs[1]]
    result = np.zeros(mask.shape, dtype=np.intp)
    result[mask] = np.unique(root, return_inverse=True)[1] + 1
    return result


def _window_reduce(values: NDArray[Any], radius: int, reduce: Callable[..., NDArray[Any]]) -> NDArray[Any]:
    """`reduce` (a minimum or maximum) over the square window around each element, with zeros outside."""
    for axis in (0, 1):
        padded = np.pad(values, [(radius, radius) if a == axis else (0, 0) for a in (0, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=axis)
        values = reduce(windows, axis=-1)
    return values


def _border(shape: tuple[int, ...]) -> _Mask:
    border = np.ones(shape, dtype=bool)
    border[1:-1, 1:-1] = False
    return border


def _bounding_box(mask: _Mask) -> tuple[slice, slice]:
    """Of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _centre_of_mass(values: _Gray) -> NDArray[np.float64]:
    rows, columns = values.sum(axis=1, dtype=np.float64), values.sum(axis=0, dtype=np.float64)
    return np.array([rows @ np.arange(len(rows)), columns @ np.arange(len(columns))]) / rows.sum()
