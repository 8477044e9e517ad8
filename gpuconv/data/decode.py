"""From a picture's file to its brightness."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.data.errors import DataError, missing_extra
from gpuconv.data.raster import Gray, border

if TYPE_CHECKING:
    from PIL import Image


WORKING_SIDE = 512  # pictures are scaled down to this: a digit is recognised in 20x20
# Formats that Pillow decodes in its own process. Among the others is EPS, for which it would start Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def decode(path_or_file: Any, name: str, size: tuple[int, int]) -> Gray:
    """Brightness of the picture, 0 to 255, (H, W), scaled down to the working size.

    A picture of `size`, or an enlargement of one in which each pixel has become a square of a whole number of pixels,
    comes out with that very size, and with the pixels that it had.

    Raises:
        DataError: the file cannot be read, or holds no picture; the message begins with `name`.
        ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise missing_extra("reading pictures", "Pillow") from None

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, which does not matter here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path_or_file, formats=_FORMATS) as image:
                side = max(WORKING_SIDE, *size)
                image.draft("L", (side, side))  # JPEG decodes to a fraction of its size at once
                image.load()
                with suppress(Exception):  # damaged EXIF does not spoil the picture
                    ImageOps.exif_transpose(image, in_place=True)
                return _brightness(_unenlarged(image, size), side)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{name}: more than {Image.MAX_IMAGE_PIXELS} pixels; scale it down first") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: no picture in a known format ({', '.join(_FORMATS)})") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # what Pillow's decoders raise on damaged files is of many kinds, none documented
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{name}: damaged picture ({reason})") from None


def _unenlarged(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture of `size` of which this one is an enlargement in squares of one value each; else this one."""
    from PIL import Image

    height, width = size
    factor = image.height // height
    if factor < 2 or image.size != (width * factor, height * factor):
        return image
    small = image.resize((width, height), Image.Resampling.NEAREST)
    again = np.asarray(small).repeat(factor, axis=0).repeat(factor, axis=1)
    return small if np.array_equal(again, np.asarray(image)) else image


def _brightness(image: Image.Image, side: int) -> Gray:
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # No maximum goes with these: a 16-bit file may hold 12-bit data. So the range in use is the range.
        values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
        values -= values.min()
        image = Image.fromarray(values * (255 / max(float(values.max()), 1e-30)))
    elif image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image.thumbnail((side, side))
        alpha = np.asarray(image.getchannel("A"), dtype=np.float32) / np.float32(255)
        gray = np.asarray(image.convert("RGB").convert("L"), dtype=np.float32)
        return alpha * gray + (1 - alpha) * _behind(gray, alpha)
    elif image.mode != "L":
        image = image.convert("RGB").convert("L")
    image.thumbnail((side, side))
    return np.asarray(image, dtype=np.float32)


def _behind(gray: Gray, alpha: Gray) -> float:
    """The brightness to put behind a transparent picture."""
    opaque_border = border(gray.shape) & (alpha > 0.5)
    if opaque_border.sum() > border(gray.shape).sum() / 2:  # a card, perhaps with round corners: continue it
        return float(np.median(gray[opaque_border]))
    return 0.0 if np.sum(alpha * gray) > 127.5 * np.sum(alpha) else 255.0
