"""From a picture's file to its brightness, or to its pixels in colour or grey."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpuconv.data.errors import DataError, missing_extra
from gpuconv.data.raster import Gray, border

if TYPE_CHECKING:
    from PIL import Image


WORKING_SIDE = 512  # pictures are scaled down to this: a digit is recognised in 20x20
#: Extensions of pictures in a folder, in lower case; a file that is named itself may have any name.
PICTURE_ENDINGS = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
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
    side = max(WORKING_SIDE, *size)
    with _opened(path_or_file, name, "L", (side, side)) as image:
        return _brightness(_unenlarged(image, size), side)


def decode_pixels(path_or_file: Any, name: str, size: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    """The middle of the picture, scaled so that its shorter side fits: (H, W) grey or (3, H, W) colours, uint8.

    The largest part of the proportions of `size` is cut from the middle and scaled with antialiasing. A picture that
    has that size keeps its pixels. The EXIF orientation is applied; what is transparent is put on white; of pictures of
    16 bits and of floats, the darkest pixel becomes 0 and the brightest 255; of several frames the first is taken.

    Args:
        path_or_file: as for `decode`.
        name: what messages call the file.
        size: height and width of the result.
        channels: 1 for grey or 3 for colours.

    Raises:
        DataError, ImportError: as `decode`.
    """
    from PIL import Image

    height, width = size
    # JPEG at most twice as large as needed: the rest is left to the filter, which is better at it.
    with _opened(path_or_file, name, "L" if channels == 1 else "RGB", (2 * width, 2 * height)) as image:
        image = _eight_bits(image)
        if _transparent(image):
            image = image.convert("RGBA")
            paper = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(paper, image)
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        if image.mode != ("L" if channels == 1 else "RGB"):
            image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            scale = min(image.width / width, image.height / height)
            left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
            box = (left, top, left + scale * width, top + scale * height)
            image = image.resize((width, height), Image.Resampling.BILINEAR, box, reducing_gap=3.0)
        pixels = np.asarray(image, dtype=np.uint8)
    return pixels if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


class _Silent:
    """Context in which Pillow's warnings, about odd metadata, are not shown; for several threads at a time.

    ``warnings.catch_warnings`` alone is for one: of two threads that overlap, the one that ends last would restore the
    filters of the other.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


_PILLOW_SILENT = _Silent()


@contextmanager
def _opened(path_or_file: Any, name: str, mode: str, draft: tuple[int, int]) -> Iterator[Image.Image]:
    """The picture, loaded and turned; whatever goes wrong with it, also inside the block, is a DataError.

    Args:
        path_or_file: the file.
        name: what messages call it.
        mode, draft: JPEG decodes at once to this mode, and to a fraction of its size that is no smaller than this.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise missing_extra("reading pictures", "Pillow") from None

    try:
        with _PILLOW_SILENT, Image.open(path_or_file, formats=_FORMATS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
                raise Image.DecompressionBombError
            image.draft(mode, draft)
            image.load()
            with suppress(Exception):  # damaged EXIF does not spoil the picture
                ImageOps.exif_transpose(image, in_place=True)
            yield image
    except Image.DecompressionBombError:
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


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16 or 32 bits or floats, in 8 bits."""
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    return Image.fromarray(np.round(_in_range(image)).astype(np.uint8))


def _in_range(image: Image.Image) -> Gray:
    # No maximum goes with these: a 16-bit file may hold 12-bit data. So the range in use is the range.
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    values -= values.min()
    return values * np.float32(255 / max(float(values.max()), 1e-30))


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info


def _brightness(image: Image.Image, side: int) -> Gray:
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_in_range(image))
    elif _transparent(image):
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
