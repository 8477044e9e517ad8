"""Reading pictures: a digit brought into the form of MNIST's, or a picture into the form of a model's training images.

MNIST's digits are light on dark, scaled to fit 20x20 pixels without changing their proportions, and placed so
that their centre of mass is pixel (14, 14) of 28x28. A network trained on them knows no other form.
"""

from __future__ import annotations

import os
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from gpuconv.data.decode import decode, decode_pixels
from gpuconv.data.errors import DataError
from gpuconv.data.find import LEAST_CONTRAST, NoDigitError, find_digit
from gpuconv.data.form import MNIST_FORM, ImageForm, polarities
from gpuconv.data.normalise import already_framed, normalise
from gpuconv.data.raster import Gray, border, is_noise

__all__ = ["read_digit", "read_picture"]


def read_digit(
    path_or_file: str | os.PathLike[str] | IO[bytes], *, invert: bool | Literal["auto"] = "auto"
) -> NDArray[np.uint8]:
    """Read a picture of one digit and bring it into the form of MNIST's digits.

    The digit is what stands out most from the background by Otsu's threshold. It is cropped, scaled to fit 20x20 and
    centred by its mass; strokes thinner than 2 pixels are thickened. The background may be a drawing's flat colour,
    unevenly lit paper, half in shadow, ruled paper, a field of a form or a cell of a grid, or a sheet that lies on
    something else. A picture that is already a digit in MNIST's form, or an enlargement of one, keeps its pixels.

    Args:
        path_or_file: PNG, JPEG, GIF (first frame), BMP, TIFF, WebP or PNM of any size and mode. The EXIF orientation is
            applied, and a transparent picture is put on a background that contrasts with the drawing.
        invert: whether the digit is darker than its background; ``"auto"`` detects it.

    Returns:
        (28, 28), uint8, light on dark.

    Raises:
        DataError: missing, empty, truncated or too large (Pillow's ``MAX_IMAGE_PIXELS``), not a picture, or not one
            digit: blank, noise, or two shapes that stand out alike. The message is one line and begins with the file's
            name.
        ImportError: Pillow is not installed.

    Source of the threshold: Otsu, *A threshold selection method from gray-level histograms*, 1979.
    """
    if invert not in (True, False, "auto"):
        raise ValueError(f"invert is {invert!r}; it must be True, False or 'auto'")
    name = _name(path_or_file)
    return _digit(decode(path_or_file, name, MNIST_FORM.size), name, invert)


def read_picture(path_or_file: str | os.PathLike[str] | IO[bytes], form: ImageForm) -> NDArray[np.uint8]:
    """Read a picture and bring it into the form of the images that a model was trained on.

    A picture of exactly the form's size, or an enlargement of one in which each pixel has become a square of equal
    pixels, keeps its pixels. From any other picture, the digit is taken as by `read_digit` if the form is that of
    MNIST's digits. If the form says that pictures are cut, or has colours, its middle is taken as by
    `load_image_folder`. Otherwise the whole picture is scaled to fit the form's size without changing its proportions,
    and filled up at its edges with the brightness of its border. A grey picture that is clearly of the other polarity
    is inverted: one in which three quarters of the border are nearly of one brightness, dark (below 64) or
    light (above 191), and something stands out from it.

    Args:
        path_or_file: as for `read_digit`.
        form: ``model.form`` of a trained model, or `ImageForm.of` a data set.

    Returns:
        (H, W), uint8, H and W being the form's size; (3, H, W) if it has colours.

    Raises:
        DataError, ImportError: as `read_digit`. A blank picture is refused unless the data had blank images.
    """
    name = _name(path_or_file)
    if form.channels == 3 or (form.cut and not form.digits):
        pixels = decode_pixels(path_or_file, name, form.size, form.channels)
        return 255 - pixels if form.channels == 1 and form.is_opposite(pixels) else pixels
    gray = decode(path_or_file, name, form.size)
    if form.digits:
        digit = _digit(gray, name, "auto")
        return digit if form.polarity == MNIST_FORM.polarity else 255 - digit
    if np.ptp(gray) < LEAST_CONTRAST and not form.blank:
        raise DataError(f"{name}: blank, nothing stands out from the background")
    if gray.shape != form.size:
        if is_noise(gray):
            raise DataError(f"{name}: nothing but noise")
        gray = _scaled(gray, form.size)
    image = np.round(gray).clip(0, 255).astype(np.uint8)
    return 255 - image if form.is_opposite(image) else image


def _name(path_or_file: object) -> str:
    """What messages call the file."""
    if isinstance(path_or_file, (str, os.PathLike)):
        return str(os.fspath(path_or_file))
    if not hasattr(path_or_file, "read"):
        raise TypeError(
            f"path_or_file is of type {type(path_or_file).__name__}; it must be a path or a file open in binary mode"
        )
    return str(getattr(path_or_file, "name", "picture"))


def _digit(gray: Gray, name: str, invert: bool | Literal["auto"]) -> NDArray[np.uint8]:
    """The digit in a picture, in MNIST's form."""
    turns = (False, True) if invert == "auto" else (bool(invert),)
    if gray.shape == MNIST_FORM.size:
        image = np.round(gray).clip(0, 255).astype(np.uint8)
        sign = polarities(image[None])[0]
        if sign and (sign < 0) in turns:
            return 255 - image if sign < 0 else image
    try:
        digit = find_digit(gray, invert)
    except NoDigitError as error:
        raise DataError(f"{name}: {error}") from None
    for turned in turns:
        framed = already_framed(255 - gray if turned else gray)
        if framed is not None:
            return framed
    return normalise(digit)


def _scaled(gray: Gray, size: tuple[int, int]) -> Gray:
    """A picture scaled to fit a size, and continued at its edges to fill it."""
    from PIL import Image

    scale = min(size[0] / gray.shape[0], size[1] / gray.shape[1])
    height, width = (max(1, min(most, round(n * scale))) for n, most in zip(gray.shape, size, strict=True))
    # Means over what becomes one pixel, where it is made smaller; in between, where larger.
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    result: Gray = np.full(size, np.median(gray[border(gray.shape)]), dtype=np.float32)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    result[top : top + height, left : left + width] = np.asarray(Image.fromarray(gray).resize((width, height), how))
    return result
