"""Folders of pictures, a folder a class: found, split, and read into memory or, if they do not fit, batch by batch."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuconv.data.ahead import Ahead
from gpuconv.data.decode import PICTURE_ENDINGS, decode_pixels
from gpuconv.data.errors import DataError, missing_extra
from gpuconv.memory import available_memory

__all__ = ["Pictures", "read_folder", "sampled", "subset"]

_log = logging.getLogger(__name__)

_TRAINING = "train"
_TESTING = ("test", "val", "valid", "validation")
_CHUNK = 16  # pictures that a thread reads at a time
_SHARE = 4  # pictures stay in memory if they take at most a fourth of what is free
_SAMPLE = 1 << 28  # bytes of pixels that are looked at where not all need to be


class Pictures:
    """Pictures in files, read when they are asked for; to use in place of an array (N, H, W) or (N, 3, H, W) of uint8.

    Args:
        files: in order.
        size: height and width to which each is brought, see `gpuconv.data.decode.decode_pixels`.
        channels: 1 for grey, 3 for colours.

    Indexing with a number gives one picture, with a slice or an array of numbers an array of pictures.

    Raises:
        DataError: when it is read, if a file cannot be read any more; the message begins with its name.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, files: Sequence[Path], size: tuple[int, int], channels: int):
        self.files, self.size, self.channels = tuple(files), size, channels

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return (len(self.files), *self.size) if self.channels == 1 else (len(self.files), self.channels, *self.size)

    @property
    def ndim(self) -> int:
        """As of an array."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that an array of them would take."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        if isinstance(index, (int, np.integer)):
            return decode_pixels(self.files[index], str(self.files[index]), self.size, self.channels)
        numbers = np.arange(len(self.files))[index]
        result = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for position, number in enumerate(numbers):
            result[position] = self[int(number)]
        return result

    def subset(self, index: NDArray[np.int64]) -> Pictures:
        """Some of them, in the order of an array of numbers."""
        return Pictures([self.files[i] for i in index], self.size, self.channels)


def subset(images: Any, index: NDArray[np.int64]) -> Any:
    """Some images of an array, as a copy; or of pictures in files, without reading them."""
    return images.subset(index) if isinstance(images, Pictures) else images[index]


def sampled(images: Any) -> NDArray[np.uint8]:
    """All images of a set, or as many as take 256 MiB, evenly distributed over it."""
    count = max(1, _SAMPLE // max(1, math.prod(images.shape[1:])))
    if count >= len(images):
        return _read_at_once(images, np.arange(len(images))) if isinstance(images, Pictures) else images
    index = np.linspace(0, len(images) - 1, count).astype(np.int64)
    return _read_at_once(images, index) if isinstance(images, Pictures) else images[index]


def _read_at_once(pictures: Pictures, index: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Some pictures, by several threads."""

    def read(first: int) -> NDArray[np.uint8]:
        return pictures[index[first : first + _CHUNK]]

    return np.concatenate([*Ahead(read, range(0, len(index), _CHUNK))])


# -- reading a folder ------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Images, an array or `Pictures`, and their labels."""

    images: Any
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Folder:
    """What a folder of pictures holds: parts, names of the classes, what was skipped, and a digest of all pixels."""

    training: Part
    testing: Part
    validation: Part | None
    classes: tuple[str, ...]
    skipped: tuple[str, ...]
    digest: str


class _File(NamedTuple):
    path: Path
    label: int


def read_folder(
    folder: Path,
    size: tuple[int, int],
    channels: int,
    *,
    strict: bool,
    seed: int,
    test_fraction: float,
    memory: int | None,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> Folder:
    """Read a folder of pictures; arguments and errors are those of :func:`gpuconv.data.load_image_folder`."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise missing_extra("reading pictures", "Pillow") from None
    classes, parts, skipped = _found(folder, seed, test_fraction)
    if strict and skipped:
        raise DataError(f"{skipped[0]} (and {len(skipped) - 1:,} more)" if skipped[1:] else skipped[0])
    files = [file for part in parts.values() for file in part]
    if memory is None:
        free = available_memory()
        memory = free // _SHARE if free is not None else 1 << 31
    fits = len(files) * channels * math.prod(size) <= memory
    _log.info("reading %s pictures of %d classes in %s", f"{len(files):,}", len(classes), folder)
    read, good, digest = _read(files, size, channels, fits, strict, skipped, workers, progress)

    done: dict[str, Part] = {}
    position = 0
    for name, part in parts.items():
        kept = np.flatnonzero(good[position : position + len(part)])
        labels = np.array([file.label for file in part], np.int64)[kept]
        images: Any
        if fits:
            images = read[position : position + len(part)]
            images = images if len(kept) == len(part) else images[kept]
        else:
            images = Pictures([part[i].path for i in kept], size, channels)
        done[name] = Part(images, labels)
        position += len(part)
    _check_classes(folder, classes, done[_TRAINING].labels, skipped)
    if not len(done["test"].labels):
        raise DataError(f"{folder}: no picture of the test set can be read; the first: {skipped[0]}")
    return Folder(done[_TRAINING], done["test"], done.get("validation"), classes, tuple(skipped), digest)


def _found(folder: Path, seed: int, test_fraction: float) -> tuple[tuple[str, ...], dict[str, list[_File]], list[str]]:
    """The names of the classes, the files of each part, and what is skipped."""
    skipped: list[str] = []
    root = folder / _TRAINING if (folder / _TRAINING).is_dir() else folder
    classes = tuple(path.name for path in _subfolders(root))
    if not classes:
        raise DataError(_no_classes(root))
    training = [_pictures(root / name, skipped) for name in classes]
    _check_classes(root, classes, [label for label, files in enumerate(training) for _ in files], skipped)
    parts: dict[str, list[_File]] = {}
    others = [name for name in _TESTING if root != folder and (folder / name).is_dir()]
    if others:
        parts[_TRAINING] = [_File(path, label) for label, files in enumerate(training) for path in files]
        named = (
            {"test": others[0]}
            if len(others) == 1 or others[0] != "test"
            else {"test": "test", "validation": others[1]}
        )
        for part, name in named.items():
            parts[part] = _of_classes(folder / name, classes, skipped)
        return classes, parts, skipped
    parts[_TRAINING], parts["test"] = [], []
    for label, files in enumerate(training):
        # By a digest of the name, so that a picture stays in its part when others come or go.
        ranked = sorted(
            files, key=lambda path: hashlib.sha256(os.fsencode(f"{seed}/{path.relative_to(root).as_posix()}")).digest()
        )
        held_out = max(1, round(test_fraction * len(files))) if len(files) > 1 else 0
        tested = {*ranked[:held_out]}
        for path in files:
            parts["test" if path in tested else _TRAINING].append(_File(path, label))
    if not parts["test"]:
        raise DataError(f"{root}: one picture a class; none can be held out to test on")
    return classes, parts, skipped


def _of_classes(root: Path, classes: tuple[str, ...], skipped: list[str]) -> list[_File]:
    """The pictures of a test or validation set, by the classes of the training set."""
    for path in _subfolders(root):
        if path.name not in classes:
            raise DataError(f"{path}: no class of the training set has this name; there are {_some(classes)}")
    files = [
        _File(path, label)
        for label, name in enumerate(classes)
        if (root / name).is_dir()
        for path in _pictures(root / name, skipped)
    ]
    if not files:
        raise DataError(f"{root}: no pictures in folders of the classes {_some(classes)}")
    return files


def _check_classes(folder: Path, classes: tuple[str, ...], labels: Any, skipped: Sequence[str]) -> None:
    """Raise DataError unless there are two classes, each with a picture."""
    if len(classes) < 2:
        raise DataError(
            f"{folder}: one class alone, {classes[0]!r}; to learn what is what takes a folder for each of two"
        )
    for label, count in enumerate(np.bincount(labels, minlength=len(classes))):
        if not count:
            path = (
                folder / classes[label] if (folder / classes[label]).is_dir() else folder / _TRAINING / classes[label]
            )
            why = [line for line in skipped if line.startswith(f"{path}{os.sep}")]
            reason = f"; of what is in it {len(why):,} cannot be used, the first: {why[0]}" if why else ""
            raise DataError(f"{path}: a class without pictures to train on{reason}; add some, or remove the folder")


def _no_classes(root: Path) -> str:
    loose = any(path.suffix.lower() in PICTURE_ENDINGS for path in root.iterdir())
    what = "pictures, but no folders" if loose else "neither folders of pictures nor IDX files"
    return (
        f"{root}: {what}; put the pictures of each class into a folder of its name, or give a folder with IDX files "
        "(train-images-idx3-ubyte is missing here)"
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: Path, skipped: list[str]) -> list[Path]:
    """The files of a class that have a picture's name, at any depth, in order; what has not is added to the skipped."""
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini"):
                continue
            if path.suffix.lower() not in PICTURE_ENDINGS:
                skipped.append(f"{path}: no picture by its name")
            elif not path.is_file():  # a link to nowhere; or a pipe, of which reading would not end
                skipped.append(f"{path}: no file")
            else:
                found.append(path)
    return found


def _read(
    files: Sequence[_File],
    size: tuple[int, int],
    channels: int,
    keep: bool,
    strict: bool,
    skipped: list[str],
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], str]:
    """Read each file once: the pixels, if they are kept; which can be read; and a digest of all."""
    pictures = Pictures([file.path for file in files], size, channels)
    result = np.empty(pictures.shape if keep else (0,), np.uint8)
    good, digest = np.ones(len(files), np.bool_), hashlib.sha256()

    def read(first: int) -> list[tuple[NDArray[np.uint8] | None, str]]:
        chunk: list[tuple[NDArray[np.uint8] | None, str]] = []
        for number in range(first, min(first + _CHUNK, len(files))):
            try:
                chunk.append((pictures[number], ""))
            except DataError as error:
                if strict:
                    raise
                chunk.append((None, str(error)))
        return chunk

    chunks = Ahead(read, range(0, len(files), _CHUNK), workers)
    try:
        for position, (pixels, reason) in enumerate(_flat(chunks, len(files), progress)):
            if pixels is None:
                good[position] = False
                skipped.append(reason)
                continue
            digest.update(np.ascontiguousarray(pixels).data)
            if keep:
                result[position] = pixels
    finally:
        chunks.close()
    return result, good, digest.hexdigest()


def _flat(
    chunks: Ahead[Any], total: int, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[NDArray[np.uint8] | None, str]]:
    done = 0
    for chunk in chunks:
        yield from chunk
        done += len(chunk)
        if progress is not None:
            progress(done, total)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
