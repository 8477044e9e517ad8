"""Sets of labelled images: by name, and from folders of pictures, of IDX files, and of CIFAR's binary files."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuconv.data.cifar import is_cifar, read_cifar
from gpuconv.data.download import download, download_mnist
from gpuconv.data.errors import DataError
from gpuconv.data.folder import Pictures, read_folder
from gpuconv.data.idx import read_idx
from gpuconv.names import nearest

__all__ = ["DATASETS", "Dataset", "load_dataset", "load_image_folder"]

#: Names of data sets that come with the package or are downloaded.
DATASETS = ("mnist-sample", "mnist", "fashion-mnist", "cifar10", "cifar100")
"""The names that `load_dataset` knows; the first is the default of the command line."""

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_IDX_FILES = ("train-images", "train-labels", "t10k-images", "t10k-labels")
_BUNDLED = Path(__file__).with_name("mnist-sample.npz")
_BUNDLED_SHA256 = "8a956ac9c2a80a6f099b8fec0fe8810b1b687bf59eb2053180dfc239e4cfd472"


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Labelled images, divided into a training and a test set.

    Attributes:
        name: what was passed to `load_dataset`.
        train_images: grey, (N, H, W), or in colours, (N, 3, H, W); uint8, brightness 0 to 255. An array, or
            :class:`Pictures`, which are read when they are asked for.
        train_labels: (N,), int64, from 0 to len(classes) - 1. Other integer dtypes are converted.
        test_images: (M, H, W) or (M, 3, H, W), uint8.
        test_labels: (M,), int64.
        classes: the name of each class.
        validation_images, validation_labels: a validation set, or None: then it is split off the training images.
        skipped: what was found and cannot be used, a line a file that begins with its name.
        digest: of the pixels of all images, if they were read from a folder of pictures; else empty.

    Raises:
        TypeError: images that are not uint8, labels that are not integers.
        ValueError: shapes that do not fit, an empty set, a label out of range.
    """

    name: str
    train_images: Any
    train_labels: NDArray[np.int64]
    test_images: Any
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    validation_images: Any = None
    validation_labels: Any = None
    skipped: tuple[str, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        validated = self.validation_images is not None
        for part in ("train", "test", "validation")[: 2 + validated]:
            images, labels = f"{part}_images", f"{part}_labels"
            object.__setattr__(self, images, _checked_images(images, getattr(self, images)))
            object.__setattr__(self, labels, _checked_labels(labels, getattr(self, labels), len(self.classes)))
            if len(getattr(self, images)) != len(getattr(self, labels)):
                raise ValueError(
                    f"{labels} has {len(getattr(self, labels))} labels, "
                    f"but {images} has {len(getattr(self, images))} images"
                )
        for part in ("test", "validation")[: 1 + validated]:
            images = getattr(self, f"{part}_images")
            if images.shape[1:] != self.train_images.shape[1:]:
                raise ValueError(
                    f"{part}_images are {_size(images)} pixels, but train_images are {_size(self.train_images)}"
                )

    @property
    def pictures(self) -> bool:
        """Whether it was read from a folder of pictures, each of which was brought to one size."""
        return bool(self.digest)

    @property
    def channels(self) -> int:
        """1 where the images are grey, 3 where they have colours."""
        return 1 if self.train_images.ndim == 3 else int(self.train_images.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.train_images.shape[-2:]
        return int(height), int(width)

    def with_channels(self, channels: int) -> Dataset:
        """The same images in grey (1) or in colours (3): brightness by ITU-R BT.601, or three equal channels.

        Raises:
            ValueError: pictures that are read when asked for, with another number of channels.
        """
        if channels == self.channels:
            return self
        if isinstance(self.train_images, Pictures):
            raise ValueError(f"{self.name}: was read with {self.channels} channels; read it with {channels}")
        convert = _in_colours if channels == 3 else _in_grey
        changed: dict[str, Any] = {
            name: convert(getattr(self, name))
            for name in ("train_images", "test_images", "validation_images")
            if getattr(self, name) is not None
        }
        return replace(self, **changed)

    def __repr__(self) -> str:
        colours = " in colours" if self.channels == 3 else ""
        return (
            f"Dataset({self.name!r}: {len(self.train_images)} training and {len(self.test_images)} test images "
            f"of {_size(self.train_images)} pixels{colours}, {len(self.classes)} classes)"
        )


def load_dataset(
    name_or_path: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    image_size: int | tuple[int, int] = 224,
    channels: int = 3,
    strict: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Load a data set by name, or from a folder.

    Args:
        name_or_path: one of

            - ``"mnist-sample"``: 8,000 training and 2,000 test digits of MNIST, which come with gpuconv;
            - ``"mnist"``: all 60,000 and 10,000 digits, downloaded when first used (11 MB; needs pooch);
            - ``"fashion-mnist"``: as many pieces of clothing in the same form (30 MB);
            - ``"cifar10"``, ``"cifar100"``: 50,000 and 10,000 colour images of 32x32 (160 MB each);
            - a folder that holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
              ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``, also with
              a dot before ``idx``; images of any size. The classes are numbered from 0 to the greatest label;
              a file ``classes.txt`` beside them, UTF-8, may give a name to each, a line a name;
            - a folder of CIFAR's binary files (``data_batch_1.bin``, ... or ``train.bin``);
            - any other folder: pictures, a folder a class, see `load_image_folder`.

            A folder that has the name of a data set is reached as ``./mnist``.
        cache_dir: where downloaded data are kept. Default: the environment variable ``GPUCONV_DATA``, else the
            user's cache folder.
        image_size, channels, strict, workers, progress: of a folder of pictures, see `load_image_folder`.

    Raises:
        ValueError: no such data set or folder.
        DataError: a file is missing or broken.
        ConnectionError, OSError, ImportError: see `download_mnist`.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"name_or_path is of type {type(name_or_path).__name__}; it must be a name or a path")
    if name_or_path in DATASETS:
        return _load_named(str(name_or_path), cache_dir)
    given = os.fspath(name_or_path)
    path = Path(os.path.expanduser(given))
    if given and path.is_dir():
        if _is_idx(path):
            return _load_folder(path, given)
        if is_cifar(path):
            return _load_cifar(path, given)
        return load_image_folder(
            name_or_path, image_size=image_size, channels=channels, strict=strict, workers=workers, progress=progress
        )
    known = f"{', '.join(map(repr, DATASETS[:-1]))} or {DATASETS[-1]!r}"
    if path.is_file():
        raise ValueError(f"data set {given!r} is a file; give a folder: of IDX files, or of pictures, a folder a class")
    if given and (isinstance(name_or_path, os.PathLike) or given != path.name):
        raise ValueError(f"data set {given!r} is no folder; give one with IDX files or pictures, or a name: {known}")
    near = nearest(given, DATASETS, cutoff=0.5)
    suggestion = f"did you mean {near!r}? Otherwise " if near else ""
    raise ValueError(f"unknown data set {given!r}; {suggestion}give {known}, or a folder of IDX files or pictures")


def load_image_folder(
    folder: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] = 224,
    channels: int = 3,
    strict: bool = False,
    seed: int = 0,
    test_fraction: float = 0.2,
    memory: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Load pictures, a folder a class.

    The folders of the classes are in ``folder`` itself, or in ``train`` below it. Beside ``train``, ``test`` or ``val``
    hold test images in folders of the same names; if both are there, ``val`` holds validation images. Otherwise a part
    of each class is held out for testing: which pictures depends on `seed` and their names alone.

    Classes are numbered in the order of their names, as Python sorts them. Within a class pictures may lie at any
    depth. Files and folders whose names begin with a dot are ignored.

    Pictures (PNG, JPEG, GIF, BMP, TIFF, WebP, PNM) may be of any size and mode. The middle of each is scaled to
    `image_size`, see `gpuconv.data.decode.decode_pixels`. All are read once, by several threads; those that cannot be
    read are left out and listed in ``Dataset.skipped``. They stay in memory if they fit into a fourth of what is free;
    else they are read again whenever they are needed, and the images of the result are :class:`Pictures`.

    Args:
        folder: where they are.
        image_size: height and width to bring them to; an int for both.
        channels: 3 for colours, 1 for grey.
        strict: refuse what would be skipped.
        seed: of the choice of test images.
        test_fraction: share of each class that is held out, if there is no ``test`` and no ``val``.
        memory: bytes that they may take; by default a fourth of what is free.
        workers: threads; by default one a core, four at most.
        progress: called with the number of pictures read, and of all, now and then.

    Raises:
        DataError: no class, or one alone; a class without pictures to train on; a class of the test images that the
            training images do not have; with ``strict``, a file that is no picture or cannot be read. The message
            begins with the name.
        ValueError: an argument out of its range.
        ImportError: Pillow is not installed.
    """
    size = (image_size, image_size) if isinstance(image_size, (int, np.integer)) else tuple(image_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"load_image_folder: image_size is {image_size}; it must be at least 1, or (height, width)")
    if channels not in (1, 3):
        raise ValueError(f"load_image_folder: channels is {channels}; it must be 1 (grey) or 3 (colours)")
    if not 0 < test_fraction < 1:
        raise ValueError(f"load_image_folder: test_fraction is {test_fraction}; it must be above 0 and below 1")
    path = Path(os.path.expanduser(os.fspath(folder)))
    if not path.is_dir():
        raise ValueError(f"load_image_folder: {os.fspath(folder)!r} is no folder")
    found = read_folder(
        path, (int(size[0]), int(size[1])), channels, strict=strict, seed=seed, test_fraction=test_fraction,
        memory=memory, workers=workers, progress=progress,
    )  # fmt: skip
    validation = found.validation
    return Dataset(
        os.fspath(folder), *found.training, *found.testing, found.classes,
        None if validation is None else validation.images,
        None if validation is None else validation.labels,
        found.skipped, found.digest,
    )  # fmt: skip


def _load_named(name: str, cache_dir: str | os.PathLike[str] | None) -> Dataset:
    if name == "mnist-sample":
        return _load_bundled()
    if name == "mnist":
        return _load_folder(download_mnist(cache_dir), name, _DIGITS)
    folder = download(name, cache_dir)
    if name == "fashion-mnist":
        return _load_folder(folder, name, _CLOTHES)
    (archive,) = folder.glob("*.tar.gz")
    return _load_cifar(archive, name)


def _load_cifar(path: Path, name: str) -> Dataset:
    training, testing, classes = read_cifar(path)
    return Dataset(name, *training, *testing, classes)


def _load_bundled() -> Dataset:
    try:
        content = _BUNDLED.read_bytes()
    except OSError as error:
        raise DataError(f"{_BUNDLED}: cannot be read ({error.strerror}); reinstall gpuconv") from None
    if hashlib.sha256(content).hexdigest() != _BUNDLED_SHA256:
        raise DataError(f"{_BUNDLED}: damaged, its sha256 is not that of the bundled digits; reinstall gpuconv")
    with np.load(io.BytesIO(content)) as arrays:
        return Dataset(
            "mnist-sample",
            arrays["train_images"],
            arrays["train_labels"],
            arrays["test_images"],
            arrays["test_labels"],
            _DIGITS,
        )


def _load_folder(folder: Path, name: str, classes: tuple[str, ...] | None = None) -> Dataset:
    arrays = []
    for stem in _IDX_FILES:
        ndim, kind = (3, "images of shape (N, H, W)") if stem.endswith("images") else (1, "labels of shape (N,)")
        path = _find_idx(folder, stem, ndim)
        array = read_idx(path)
        if array.ndim != ndim or array.dtype != np.uint8:
            raise DataError(f"{path}: holds {array.dtype} of shape {array.shape}, not uint8 {kind}")
        arrays.append(array)
    train_images, train_labels, test_images, test_labels = arrays
    if classes is None:
        greatest = max((int(labels.max()) for labels in (train_labels, test_labels) if labels.size), default=0)
        classes = _class_names(folder / "classes.txt", greatest + 1)
    try:
        return Dataset(name, train_images, train_labels, test_images, test_labels, classes)
    except ValueError as error:
        raise DataError(f"{folder}: {error}") from None


def _class_names(path: Path, least: int) -> tuple[str, ...]:
    """The lines of a file that need not be there; else the numbers of the classes."""
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except FileNotFoundError:
        return tuple(str(label) for label in range(least))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: no text in UTF-8") from None
    if len(names) < least:
        raise DataError(f"{path}: names {len(names)} classes, but the labels are of {least} (0 to {least - 1})")
    for position, name in enumerate(names):
        if not name.isprintable() or name in names[:position]:
            raise DataError(
                f"{path}: {name!r} is there twice, or no printable text; each class needs a name of its own"
            )
    return names


def _is_idx(folder: Path) -> bool:
    """Whether a folder holds at least one of the IDX files."""
    return any(next(folder.glob(f"{stem}?idx*"), None) is not None for stem in _IDX_FILES)


def _in_colours(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    count, height, width = grey.shape
    return np.broadcast_to(grey[:, None], (count, 3, height, width))  # without a copy


def _in_grey(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    result = np.empty((len(colours), *colours.shape[2:]), np.uint8)
    for first in range(0, len(colours), 1024):
        red, green, blue = colours[first : first + 1024].astype(np.uint32).swapaxes(0, 1)
        # Pillow's integers for 0.299, 0.587 and 0.114.
        result[first : first + 1024] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return result


def _find_idx(folder: Path, stem: str, ndim: int) -> Path:
    for separator in "-.":
        for ending in ("", ".gz"):
            path = folder / f"{stem}{separator}idx{ndim}-ubyte{ending}"
            if path.is_file():  # some archives unpack to folders that have the names of the files
                return path
    raise DataError(f"{folder}: {stem}-idx{ndim}-ubyte is missing (plain or .gz)")


def _checked_images(name: str, images: Any) -> Any:
    array = images if isinstance(images, Pictures) else np.asarray(images)
    if array.dtype != np.uint8:
        raise TypeError(f"{name} has dtype {array.dtype}; it must be uint8, with brightness from 0 to 255")
    if not (array.ndim == 3 or (array.ndim == 4 and array.shape[1] == 3)) or 0 in array.shape:
        raise ValueError(
            f"{name} has shape {array.shape}; it must be (N, H, W) or (N, 3, H, W), with at least one image and pixel"
        )
    return array


def _checked_labels(name: str, labels: object, classes: int) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}; it must hold integers")
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; it must be (N,)")
    wrong = (array < 0) | (array >= classes)
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(f"{name}[{first}] is {array[first]}; with {classes} classes it must be 0 to {classes - 1}")
    return array.astype(np.int64, copy=False)


def _size(images: Any) -> str:
    return f"{images.shape[-2]}x{images.shape[-1]}"
