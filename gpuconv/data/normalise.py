"""From a digit, cropped, to MNIST's form: scaled to fit 20x20 and centred by its mass in 28x28."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuconv.data.raster import Gray, border, bounding_box, centre_of_mass, windowed

__all__ = ["already_framed", "normalise"]

_SIDE, _BOX, _CENTRE = 28, 20, 14
_LEAST_STROKE = 0.1  # width of a stroke, as a share of the digit's longer side: 2 of 20 pixels


def _with_visible_strokes(digit: Gray) -> Gray:
    """Thicken strokes that would fade when the digit is scaled to 20x20, such as a pencil's in a large drawing."""
    mask = digit > 0.5
    outline = mask & ~windowed(mask, 1, np.minimum)
    width = 2 * np.count_nonzero(mask) / max(1, int(np.count_nonzero(outline)))  # a stroke has an outline on both sides
    radius = round((_LEAST_STROKE * max(digit.shape) - width) / 2)
    return windowed(np.pad(digit, radius), radius, np.maximum) if radius > 0 else digit


def normalise(digit: Gray) -> NDArray[np.uint8]:
    """Scale a cropped digit of values 0 to 1 to fit 20x20 and centre it by its mass in 28x28.

    Strokes thinner than 2 pixels are thickened.
    """
    from PIL import Image

    digit = _with_visible_strokes(digit)
    scale = _BOX / max(digit.shape)
    height, width = (max(1, round(n * scale)) for n in digit.shape)
    scaled = np.asarray(Image.fromarray(digit).resize((width, height), Image.Resampling.HAMMING))
    top, left = (
        int(np.clip(round(_CENTRE - centre), 0, _SIDE - n))
        for centre, n in zip(centre_of_mass(scaled), scaled.shape, strict=True)
    )
    result = np.zeros((_SIDE, _SIDE), dtype=np.uint8)
    result[top : top + height, left : left + width] = np.round(255 * np.clip(scaled, 0, 1))
    return result


def already_framed(gray: Gray) -> NDArray[np.uint8] | None:
    """A picture that is a digit in MNIST's form, perhaps enlarged, as 28x28; None for any other."""
    from PIL import Image

    if gray.shape[0] != gray.shape[1] or len(gray) < _SIDE:
        return None
    gray = np.asarray(Image.fromarray(gray).resize((_SIDE, _SIDE), Image.Resampling.BOX))
    ink = gray > 32
    # A thin line in a large drawing fades when it is scaled down: that is no digit of MNIST, but one to redraw.
    if gray.max() < 200 or np.median(gray[border(gray.shape)]) > 8:
        return None
    longest = max(part.stop - part.start for part in bounding_box(ink))
    centre = centre_of_mass(np.where(ink, gray, 0))
    if not _BOX - 2 <= longest <= _BOX or np.abs(centre - _CENTRE).max() > 1:
        return None
    return np.round(gray).astype(np.uint8)
