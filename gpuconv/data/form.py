"""The form of a data set's images, into which a picture must be brought for a network trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpuconv.data.folder import sampled
from gpuconv.data.raster import border

if TYPE_CHECKING:
    from gpuconv.data.datasets import Dataset

__all__ = ["MNIST_FORM", "ImageForm"]

Polarity = Literal["light on dark", "dark on light"]

_MNIST_SIZE, _MNIST_BOX, _MNIST_CENTRE = (28, 28), 20, 14
_EXAMINED = 4096  # bounds the memory: images of a set that are examined at a time


@dataclass(frozen=True)
class ImageForm:
    """How the images of a data set look, as far as a picture can be brought into the same form.

    A model carries it as ``model.form``; `read_picture` uses it.

    Attributes:
        size: height and width of an image, in pixels.
        polarity: ``"light on dark"`` or ``"dark on light"``; None if the images have both, or it cannot be told.
        digits: whether the images are digits prepared as MNIST's are: cropped, scaled to fit 20x20 and centred by their
            mass in 28x28. Then a picture may show a digit anywhere. Otherwise the whole picture is used.
        blank: whether some images have a single brightness; if not, a blank picture is refused.
        source: where they are from: a name that `load_dataset` knows, or a folder's absolute path; None if not known.
        channels: 1 where the images are grey, 3 where they have colours.
        cut: whether a picture is cut to the proportions of the images, as `load_image_folder` does it; otherwise it is
            filled up at its edges.

    Raises:
        TypeError: a value of another type.
        ValueError: a size below 1, an unknown polarity, or digits of another size than 28x28 or without a polarity.
    """

    size: tuple[int, int]
    polarity: Polarity | None = None
    digits: bool = False
    blank: bool = False
    source: str | None = None
    channels: int = 1
    cut: bool = False

    def __post_init__(self) -> None:
        if (
            not isinstance(self.size, (tuple, list))
            or len(self.size) != 2
            or any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) for n in self.size)
        ):
            raise TypeError(f"ImageForm: size is {self.size!r}; it must be a pair of ints, (height, width)")
        if min(self.size) < 1:
            raise ValueError(f"ImageForm: size is {self.size!r}; height and width must be at least 1")
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        if self.polarity not in ("light on dark", "dark on light", None):
            raise ValueError(
                f"ImageForm: polarity is {self.polarity!r}; it must be 'light on dark', 'dark on light' or None"
            )
        if isinstance(self.channels, bool) or self.channels not in (1, 3):
            raise ValueError(f"ImageForm: channels is {self.channels!r}; it must be 1 (grey) or 3 (colours)")
        for name in ("digits", "blank", "cut"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise TypeError(f"ImageForm: {name} is {getattr(self, name)!r}; it must be True or False")
            object.__setattr__(self, name, bool(getattr(self, name)))
        if self.digits and (self.size != _MNIST_SIZE or self.polarity is None):
            raise ValueError(
                f"ImageForm: digits in MNIST's way are 28x28 and of one polarity; size is {self.size}, polarity is "
                f"{self.polarity!r}"
            )
        if not isinstance(self.source, (str, type(None))):
            raise TypeError(f"ImageForm: source is {self.source!r}; it must be a str or None")

    @classmethod
    def of(cls, dataset: Dataset, source: str | None = None) -> ImageForm:
        """The form of a data set's images, found by looking at them, training and test: at all, or at 256 MiB of each.

        Grey images have a polarity if it can be told for half of them (see `polarities`) and is the same for all of
        these. They are digits as MNIST's if 95 % are 28x28, of one polarity, fit 20x20 and have their centre of mass
        within a pixel of the middle. Images in colours have neither.

        Args:
            dataset: what a model is trained on.
            source: where it can be found again, see the attribute.
        """
        size = dataset.size
        if dataset.channels != 1:
            return cls(size, blank=True, source=source, channels=dataset.channels, cut=dataset.pictures)
        seen = dict.fromkeys((-1, 0, 1), 0)
        as_mnist, blank, total = {1: 0, -1: 0}, 0, 0
        for images in map(sampled, (dataset.train_images, dataset.test_images)):
            for first in range(0, len(images), _EXAMINED):
                part = images[first : first + _EXAMINED]
                total += len(part)
                blank += int((part.max(axis=(1, 2)) == part.min(axis=(1, 2))).sum())
                for sign, number in zip(*np.unique(polarities(part), return_counts=True), strict=True):
                    seen[int(sign)] += int(number)
                if size == _MNIST_SIZE:
                    as_mnist[1] += int(_in_form_of_mnist(part).sum())
                    as_mnist[-1] += int(_in_form_of_mnist(255 - part).sum())
        polarity, digits = None, False
        for sign in (1, -1):
            if seen[sign] >= total / 2 and not seen[-sign]:
                polarity = _NAMES[sign]
        for sign, number in as_mnist.items():
            if number >= 0.95 * total:
                polarity, digits = _NAMES[sign], True
        return cls(size, polarity, digits, blank > 0, source, cut=dataset.pictures)

    def to_dict(self) -> dict[str, Any]:
        """The attributes as JSON types; `from_dict` restores them, also through JSON text."""
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageForm:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown.
            TypeError, ValueError: a value is none that the constructor takes.
        """
        known = {"size", "polarity", "digits", "blank", "source"}
        # Files from before there were colours have no more than these.
        if set(values) - {"channels", "cut"} != known:
            raise ValueError(f"ImageForm: keys are {sorted(values)}; they must be {sorted(known)}")
        return cls(**values)

    def is_opposite(self, image: NDArray[np.uint8]) -> bool:
        """Whether an image, (H, W), is surely of the other polarity; False where it cannot be told."""
        sign = int(polarities(image[None])[0])
        return sign != 0 and self.polarity is not None and _NAMES[sign] != self.polarity


_NAMES: dict[int, Polarity] = {1: "light on dark", -1: "dark on light"}

#: Of MNIST's digits, and of models from before there was a form.
MNIST_FORM = ImageForm((28, 28), "light on dark", digits=True)


def polarities(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Of each image, (N, H, W): 1 for light on dark, -1 for dark on light, 0 where it cannot be told.

    It can where three quarters of the border are within 25 of its median, which is below 64 or above 191, and the image
    holds something that differs from that by 64 or more.
    """
    edge = images[:, border(images.shape[1:])].astype(np.float32)
    middle = np.median(edge, axis=1)
    flat = (np.abs(edge - middle[:, None]) <= 25).mean(axis=1) >= 0.75
    light = flat & (middle < 64) & (images.max(axis=(1, 2)) >= middle + 64)
    dark = flat & (middle > 191) & (images.min(axis=(1, 2)) <= middle - 64)
    return light.astype(np.int64) - dark


def _in_form_of_mnist(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the images, (N, 28, 28), are light on dark, fit 20x20 and have their mass in the middle."""
    values = np.where(images > 32, images, 0).astype(np.float64)
    mass = values.sum(axis=(1, 2))
    fits = mass > 0
    longest = np.zeros(len(images), dtype=np.int64)
    for axis in (1, 2):
        profile = values.sum(axis=3 - axis)
        ink = profile > 0
        length = ink.shape[1] - ink.argmax(axis=1) - ink[:, ::-1].argmax(axis=1)
        longest = np.maximum(longest, length)
        centre = profile @ np.arange(profile.shape[1]) / np.maximum(mass, 1)
        fits &= np.abs(centre - _MNIST_CENTRE) <= 1
    return fits & (longest >= _MNIST_BOX - 2) & (longest <= _MNIST_BOX)
