"""From raw uint8 images to the network's input: zero-padded and standardised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["InputTransform"]


@dataclass(frozen=True)
class InputTransform:
    """Pads images to `size` and standardises them: ``(x / 255 - mean) / std``.

    The images stand in the middle (where the difference is odd, the extra row or column is at the bottom or
    right). Padding is 0, black, *before* standardising, so that it equals the background of a digit.

    Attributes:
        size: height and width of the result, in pixels. LeNet's is (32, 32), for digits of 28x28.
        mean: mean brightness of the padded training images, on a scale from 0 to 1; of colour images a tuple, one for
            each channel.
        std: their standard deviation, above 0; likewise.

    Raises:
        TypeError: `size` is no pair of ints, or `mean` or `std` no number or tuple of as many numbers.
        ValueError: a size below 1, a mean that is not finite, or a std that is not finite and above 0.
    """

    size: tuple[int, int]
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def __post_init__(self) -> None:
        size = _pair(self.size)
        for name in ("mean", "std"):
            value = getattr(self, name)
            object.__setattr__(self, name, _numbers(name, value))
        if np.shape(self.mean) != np.shape(self.std):
            raise TypeError(f"InputTransform: mean is {self.mean} and std {self.std}; they must be as many numbers")
        if not np.isfinite(self.mean).all():
            raise ValueError(f"InputTransform: mean is {self.mean}; it must be finite")
        if not (np.isfinite(self.std).all() and np.all(np.asarray(self.std) > 0)):
            raise ValueError(f"InputTransform: std is {self.std}; it must be finite and above 0")
        object.__setattr__(self, "size", size)

    @property
    def channels(self) -> int:
        """Of the images: 1 where mean and std are single numbers."""
        return len(self.mean) if isinstance(self.mean, tuple) else 1

    @classmethod
    def fit(cls, images: NDArray[np.uint8], size: tuple[int, int] = (32, 32)) -> InputTransform:
        """The transform under which the padded `images` have mean 0 and standard deviation 1, in each channel.

        Args:
            images: (N, H, W) or (H, W), or colours, (N, C, H, W); uint8, at least one pixel.
            size: height and width to pad to.

        Raises:
            TypeError: `images` is not uint8.
            ValueError: `images` is empty or larger than `size`.

        Images of one brightness have no deviation; `std` is 1 then.
        """
        size = _pair(size)
        images = _as_batch(images, size, 4 if np.ndim(images) == 4 else 3)
        if images.size == 0:
            raise ValueError(f"InputTransform.fit: images has shape {images.shape}; at least one image is needed")
        if images.ndim == 3:
            return cls(size, *_mean_and_deviation(images, size))
        means, deviations = zip(*(_mean_and_deviation(images[:, c], size) for c in range(images.shape[1])), strict=True)
        return cls(size, means, deviations)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Transform images into the network's input.

        Args:
            images: uint8, brightness 0 to 255, no larger than `size`: (N, H, W) or (H, W); of several channels
                (N, C, H, W) or (C, H, W). N may be 0.

        Returns:
            (N, C, *size), float32; N is 1 for a single image.

        Raises:
            TypeError: `images` is not uint8.
            ValueError: `images` has another number of dimensions or channels, or is larger than `size`.
        """
        images, tables = _as_batch(images, self.size, 3 if self.channels == 1 else 4), self.table().reshape(-1, 256)
        if images.ndim == 3:
            images = images[:, None]
        count, channels, height, width = images.shape
        if channels != len(tables):
            raise ValueError(f"InputTransform: images has {channels} channels; it must have {len(tables)}")
        top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
        result = np.empty((count, channels, *self.size), np.float32)
        for channel, table in enumerate(tables):
            if (height, width) != self.size:
                result[:, channel] = table[0]
            result[:, channel, top : top + height, left : left + width] = table[images[:, channel]]
        return result

    def table(self) -> NDArray[np.float32]:
        """What the bytes 0 to 255 are standardised to, (256,), or (C, 256) where there is a mean for each channel.

        Each is rounded to float32 once, from float64.
        """
        mean, std = np.asarray(self.mean)[..., None], np.asarray(self.std)[..., None]
        return ((np.arange(256) / 255 - mean) / std).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """The attributes as JSON types; `from_dict` restores them exactly, also through JSON text."""
        mean, std = (list(n) if isinstance(n, tuple) else n for n in (self.mean, self.std))
        return {"size": list(self.size), "mean": mean, "std": std}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputTransform:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown.
            TypeError, ValueError: a value is none that the constructor takes.
        """
        if set(values) != {"size", "mean", "std"}:
            raise ValueError(f"InputTransform: keys are {sorted(values)}; they must be 'mean', 'size' and 'std'")
        return cls(**values)


def _numbers(name: str, value: Any) -> float | tuple[float, ...]:
    if isinstance(value, (tuple, list)) and value:
        return tuple(_number(name, one) for one in value)
    return _number(name, value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise TypeError(f"InputTransform: {name} is {value!r}; it must be a number, or a tuple with one a channel")
    return float(value)


def _mean_and_deviation(images: NDArray[np.uint8], size: tuple[int, int]) -> tuple[float, float]:
    """Of images of one channel, (N, H, W), padded with black to a size."""
    # Integers of any length: the sums are exact, so the result depends on no order of summation.
    histogram = np.zeros(256, dtype=np.int64)
    for first in range(0, len(images), 1024):  # bincount makes a copy of 8 bytes a pixel
        histogram += np.bincount(images[first : first + 1024].ravel(), minlength=256)
    total = sum(int(n) * value for value, n in enumerate(histogram))
    squares = sum(int(n) * value * value for value, n in enumerate(histogram))
    pixels = len(images) * size[0] * size[1]  # padding adds zeros: to the count, but to neither sum
    deviation = math.sqrt(pixels * squares - total * total) / (255 * pixels)
    return total / (255 * pixels), deviation or 1.0


def _pair(size: Any) -> tuple[int, int]:
    if (
        not isinstance(size, (tuple, list))
        or len(size) != 2
        or any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) for n in size)
    ):
        raise TypeError(f"InputTransform: size is {size!r}; it must be a pair of ints, (height, width)")
    if min(size) < 1:
        raise ValueError(f"InputTransform: size is {size!r}; height and width must be at least 1")
    return int(size[0]), int(size[1])


def _as_batch(images: Any, size: tuple[int, int], ndim: int) -> NDArray[np.uint8]:
    """A batch of `ndim` dimensions, from one or from a single image."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(
            f"InputTransform: images has dtype {images.dtype}; it must be uint8, with brightness from 0 to 255"
        )
    if images.ndim not in (ndim - 1, ndim):
        wanted = "(N, H, W) or (H, W)" if ndim == 3 else "(N, C, H, W) or (C, H, W)"
        raise ValueError(f"InputTransform: images has shape {images.shape}; it must be {wanted}")
    if images.ndim == ndim - 1:
        images = images[None]
    height, width = images.shape[-2:]
    if height > size[0] or width > size[1]:
        raise ValueError(
            f"InputTransform: images are {height}x{width} pixels, larger than size {size}; "
            f"crop or scale them down, or make the transform with size=({height}, {width})"
        )
    return images
