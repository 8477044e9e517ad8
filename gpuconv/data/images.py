"""Reading a digit from a picture, and bringing it into the form of MNIST's digits.

MNIST's digits are light on dark, scaled to fit 20x20 pixels without changing their proportions, and placed so
that their centre of mass is pixel (14, 14) of 28x28. A network trained on them knows no other form.
"""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpuconv.data.errors import DataError, missing_extra

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["read_digit"]

_SIDE, _BOX, _CENTRE = 28, 20, 14
_WORKING_SIDE = 512  # pictures are scaled down to this: a digit is recognised in 20x20
_LEAST_CONTRAST = 8.0  # of 255; less is an empty sheet
# Formats that Pillow decodes in its own process. Among the others is EPS, for which it would start Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def read_digit(
    path_or_file: str | os.PathLike[str] | IO[bytes], *, invert: bool | Literal["auto"] = "auto"
) -> NDArray[np.uint8]:
    """Read a picture of one digit and bring it into the form of MNIST's digits.

    The background is estimated as a smooth surface and removed, so uneven lighting does not matter. What stands
    out from it by Otsu's threshold is the digit; it is cropped, scaled to fit 20x20 and centred by its mass. A
    picture that has this form already keeps its pixels.

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

    name = os.fspath(path_or_file) if isinstance(path_or_file, (str, os.PathLike)) else "picture"
    gray = _decode(path_or_file, name)
    return rec(gray,invert,name)

def rec(gray,invert,name):
    global REC; REC=lambda g: rec(g,invert,name)
    def go(bg):
        residual = gray - bg
        inv = bool(np.sum(residual**3) < 0) if invert == "auto" else invert
        framed = _already_framed(255 - gray if inv else gray)
        if framed is not None:
            return framed, None
        ink = np.maximum(-residual if inv else residual, 0)
        if ink.max() < _LEAST_CONTRAST:
            raise DataError(f"{name}: no digit found, the picture is blank")
        noise = 1.4826 * float(np.median(np.abs(residual)))  # the deviation of normal noise, from its median
        return None, _isolate(ink, noise)
    bg = _flat(gray)
    if bg is not None:
        fr, dg = go(bg)
        if fr is not None: return fr
        if np.mean(dg > 0) <= FILL or min(dg.shape) < .5*max(dg.shape): return _normalise(dg)
        if BOX is not None: 
            sub=np.ascontiguousarray(gray[BOX])
            return REC(sub)
    fr, dg = go(_local(gray))
    if fr is not None: return fr
    return _normalise(dg)


def _decode(path_or_file: Any, name: str) -> NDArray[np.float32]:
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
    except Exception as error:  # what Pillow's decoders raise on damaged files is of many kinds and not documented
        raise DataError(f"{name}: damaged picture ({type(error).__name__}: {error})") from None


def _brightness(image: Image.Image) -> NDArray[np.float32]:
    from PIL import Image, ImageOps

    with suppress(Exception):  # damaged EXIF does not spoil the picture
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # No maximum goes with these: a 16-bit file may hold 12-bit data. So the range in use is the range.
        values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
        low, high = values.min(), values.max()
        image = Image.fromarray((values - low) * (255 / (high - low)) if high > low else values * 0)
        return _scaled_down(image)
    if not image.has_transparency_data:
        return _scaled_down(image if image.mode == "L" else image.convert("RGB").convert("L"))
    image = image.convert("RGBA")
    image.thumbnail((_WORKING_SIDE, _WORKING_SIDE))
    alpha = np.asarray(image.getchannel("A"), dtype=np.float32) / 255
    gray = np.asarray(image.convert("RGB").convert("L"), dtype=np.float32)
    return alpha * gray + (1 - alpha) * _paper(gray, alpha)


def _scaled_down(image: Image.Image) -> NDArray[np.float32]:
    image.thumbnail((_WORKING_SIDE, _WORKING_SIDE))
    return np.asarray(image, dtype=np.float32)


def _paper(gray: NDArray[np.float32], alpha: NDArray[np.float32]) -> float:
    """The brightness to put behind a transparent picture."""
    border = _border(gray.shape)
    if np.mean(alpha[border] > 0.5) > 0.5:  # an opaque card, perhaps with round corners: continue it
        return float(np.median(gray[border & (alpha > 0.5)]))
    visible = np.sum(alpha)
    return 255.0 if np.sum(alpha * gray) <= 127.5 * visible else 0.0


def _border(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    border = np.ones(shape, dtype=bool)
    border[1:-1, 1:-1] = False
    return border


def _flat(gray):
    edge = np.sort(gray[_border(gray.shape)])
    tol = TOL*np.ptp(gray)
    cnt=np.searchsorted(edge, edge+tol,'right')-np.searchsorted(edge,edge-tol,'left')
    if cnt.max() < SHARE*len(edge): return None
    return np.full_like(gray, np.median(edge[cnt==cnt.max()]))

def _local(gray):
    from PIL import Image
    height, width = gray.shape
    coarse = Image.fromarray(gray).resize((min(width, 64), min(height, 64)), Image.Resampling.BOX)
    padded = np.pad(np.asarray(coarse), WIN // 2, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (WIN, WIN))
    median = np.median(windows.reshape(*windows.shape[:2], -1), axis=-1).astype(np.float32)
    return np.asarray(Image.fromarray(median).resize((width, height), Image.Resampling.BILINEAR))

WIN = 25; import os as _o; TOL=float(_o.environ.get('TOL','.03')); SHARE=float(_o.environ.get('SHARE','.4')); FILL=float(_o.environ.get('FILL','.62'))

def _already_framed(gray: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    """A picture that is a digit in MNIST's form, perhaps enlarged, as 28x28; None for any other."""
    from PIL import Image

    if gray.shape[0] != gray.shape[1] or len(gray) < _SIDE:
        return None
    gray = np.asarray(Image.fromarray(gray).resize((_SIDE, _SIDE), Image.Resampling.BOX))
    ink = gray > 32
    box = _bounding_box(ink)
    if box is None or np.median(gray[_border(gray.shape)]) > 8:
        return None
    longest = max(part.stop - part.start for part in box)
    centre = _centre_of_mass(np.where(ink, gray, 0))
    if not _BOX - 2 <= longest <= _BOX or np.abs(centre - _CENTRE).max() > 1:
        return None
    return np.round(gray).astype(np.uint8)


def _isolate(ink: NDArray[np.float32], noise: float) -> NDArray[np.float32]:
    """The digit's pixels, cropped and scaled so that the inside of a stroke is 1; 0 around the digit."""
    peak = float(ink.max())
    high = max(_otsu(ink), min(4 * noise, 0.8 * peak))  # Otsu splits the noise where there is little ink
    level = float(np.median(ink[ink >= high]))
    # Hysteresis: the soft edge of a stroke belongs to the digit, the same brightness elsewhere does not.
    parts = _components(ink >= min(max(3 * noise, 0.1 * level), high))
    y, x = np.nonzero(parts)
    part = parts[y, x] - 1
    count = int(parts.max())
    mass = np.bincount(part, weights=np.where(ink[y, x] >= high, ink[y, x], 0), minlength=count)
    begin, end = np.full((2, count), max(ink.shape)), np.zeros((2, count), dtype=int)
    for axis, position in enumerate((y, x)):
        np.minimum.at(begin[axis], part, position)
        np.maximum.at(end[axis], part, position + 1)
    extent = (end - begin).max(axis=0)
    cut_off = (begin == 0).any(axis=0) | (end == np.array(ink.shape)[:, None]).any(axis=0)

    # A shadow or the edge of a table runs out of the picture, a digit lies inside, unless nothing of size does.
    eligible = (mass > 0) & ~cut_off & (extent >= max(6, 0.1 * min(ink.shape)))
    main = int(np.argmax(np.where(eligible if eligible.any() else mass > 0, mass, -1)))
    # Strokes need not hang together: what is near and not too small is part of the digit, such as the bar of a 5.
    reach = 0.3 * extent[main]
    near = ((begin <= end[:, [main]] + reach) & (end >= begin[:, [main]] - reach)).all(axis=0)
    chosen = near & (mass >= 0.03 * mass[main]) & (~cut_off | cut_off[main])

    digit = np.where(np.append(False, chosen)[parts], ink, 0)
    box = _bounding_box(digit > 0)
    global BOX; BOX = box if not cut_off[main] else None
    assert box is not None  # `main` is in it
    return np.minimum(digit[box] / level, 1)


def _normalise(digit: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scale a cropped digit of values 0 to 1 to fit 20x20 and centre it by its mass in 28x28."""
    from PIL import Image

    scale = _BOX / max(digit.shape)
    height, width = (max(1, round(n * scale)) for n in digit.shape)
    scaled = np.asarray(Image.fromarray(digit).resize((width, height), Image.Resampling.HAMMING))
    scaled = np.clip(scaled, 0, 1)
    centre = _centre_of_mass(scaled)
    top, left = (
        int(np.clip(round(_CENTRE - c), 0, _SIDE - n)) for c, n in zip(centre, scaled.shape, strict=True)
    )
    result = np.zeros((_SIDE, _SIDE), dtype=np.uint8)
    result[top : top + height, left : left + width] = np.round(255 * scaled)
    return result


def _otsu(values: NDArray[np.float32]) -> float:
    """The threshold that divides values from 0 up into two classes of greatest variance between them."""
    counts, edges = np.histogram(values, bins=256, range=(0, float(values.max())))
    middle = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = values.size - below
    sum_below = np.cumsum(counts * middle)[:-1]
    difference = sum_below / np.maximum(below, 1) - (np.sum(counts * middle) - sum_below) / np.maximum(above, 1)
    # Where classes leave a gap, every threshold in it is as good: the middle of the gap.
    between = below * above * difference**2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(edges[1 + best].mean())


def _components(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
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


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _centre_of_mass(values: NDArray[np.float32]) -> NDArray[np.float64]:
    rows, columns = values.sum(axis=1, dtype=np.float64), values.sum(axis=0, dtype=np.float64)
    return np.array([rows @ np.arange(len(rows)), columns @ np.arange(len(columns))]) / rows.sum()
