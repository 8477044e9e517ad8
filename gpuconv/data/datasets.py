"""Sets of labelled images: the bundled digits, the full MNIST, and folders of IDX files."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpuconv.data.download import download_mnist
from gpuconv.data.errors import DataError
from gpuconv.data.idx import read_idx
from gpuconv.names import nearest

__all__ = ["DATASETS", "Dataset", "load_dataset"]

DATASETS = ("mnist-sample", "mnist")
"""The names that `load_dataset` knows; the first is the default of the command line."""

_DIGITS = tuple("0123456789")
_BUNDLED = Path(__file__).with_name("mnist-sample.npz")
_BUNDLED_SHA256 = "8a956ac9c2a80a6f099b8fec0fe8810b1b687bf59eb2053180dfc239e4cfd472"


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Labelled images, divided into a training and a test set.

    Attributes:
        name: what was passed to `load_dataset`.
        train_images: (N, H, W), uint8, brightness 0 to 255.
        train_labels: (N,), int64, from 0 to len(classes) - 1. Other integer dtypes are converted.
        test_images: (M, H, W), uint8.
        test_labels: (M,), int64.
        classes: the name of each class.

    Raises:
        TypeError: images that are not uint8, labels that are not integers.
        ValueError: shapes that do not fit, an empty set, a label out of range.
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        for part in ("train", "test"):
            images, labels = f"{part}_images", f"{part}_labels"
            object.__setattr__(self, images, _checked_images(images, getattr(self, images)))
            object.__setattr__(self, labels, _checked_labels(labels, getattr(self, labels), len(self.classes)))
            if len(getattr(self, images)) != len(getattr(self, labels)):
                raise ValueError(
                    f"{labels} has {len(getattr(self, labels))} labels, "
                    f"but {images} has {len(getattr(self, images))} images"
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"test_images are {_size(self.test_images)} pixels, but train_images are {_size(self.train_images)}"
            )

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}: {len(self.train_images)} training and {len(self.test_images)} test images "
            f"of {_size(self.train_images)} pixels, {len(self.classes)} classes)"
        )


def load_dataset(name_or_path: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set by name, or from a folder of IDX files.

    Args:
        name_or_path: one of

            - ``"mnist-sample"``: 8,000 training and 2,000 test digits of MNIST, which come with gpuconv;
            - ``"mnist"``: all 60,000 and 10,000 digits, downloaded when first used (11 MB; needs pooch);
            - a folder that holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
              ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``, also with
              a dot before ``idx``; images of any size. The classes are numbered from 0 to the greatest label;
              a file ``classes.txt`` beside them, UTF-8, may give a name to each, a line a name.
              A folder that has the name of a data set is reached as ``./mnist``.
        cache_dir: where ``"mnist"`` is kept. Default: the environment variable ``GPUCONV_DATA``, else the
            user's cache folder.

    Raises:
        ValueError: no such data set or folder.
        DataError: a file is missing or broken.
        ConnectionError, OSError, ImportError: see `download_mnist`.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"name_or_path is of type {type(name_or_path).__name__}; it must be a name or a path")
    if name_or_path == "mnist-sample":
        return _load_bundled()
    if name_or_path == "mnist":
        return _load_folder(download_mnist(cache_dir), "mnist", _DIGITS)
    given = os.fspath(name_or_path)
    path = Path(os.path.expanduser(given))
    if given and path.is_dir():
        return _load_folder(path, given)
    known = " or ".join(map(repr, DATASETS))
    if path.is_file():
        raise ValueError(f"data set {given!r} is a file; give the folder that holds the IDX files")
    if given and (isinstance(name_or_path, os.PathLike) or given != path.name):
        raise ValueError(f"data set {given!r} is no folder; give one with IDX files, or a name: {known}")
    near = nearest(given, DATASETS, cutoff=0.5)
    suggestion = f"did you mean {near!r}? Otherwise " if near else ""
    raise ValueError(f"unknown data set {given!r}; {suggestion}give {known}, or a folder of IDX files")


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
    for stem in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
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


def _find_idx(folder: Path, stem: str, ndim: int) -> Path:
    for separator in "-.":
        for ending in ("", ".gz"):
            path = folder / f"{stem}{separator}idx{ndim}-ubyte{ending}"
            if path.is_file():  # some archives unpack to folders that have the names of the files
                return path
    raise DataError(f"{folder}: {stem}-idx{ndim}-ubyte is missing (plain or .gz)")


def _checked_images(name: str, images: object) -> NDArray[np.uint8]:
    array = np.asarray(images)
    if array.dtype != np.uint8:
        raise TypeError(f"{name} has dtype {array.dtype}; it must be uint8, with brightness from 0 to 255")
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}; it must be (N, H, W), with at least one image and pixel")
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


def _size(images: NDArray[np.uint8]) -> str:
    return f"{images.shape[1]}x{images.shape[2]}"
