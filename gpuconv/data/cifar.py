"""The binary files of CIFAR-10 and CIFAR-100, in a folder or in the archive as it is published.

A record is the label, one byte, or two in CIFAR-100 (the superclass and the class), and 3072 bytes: the red, green and
blue values of 32x32 pixels, row by row. Source of the format: www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpuconv.data.errors import DataError

__all__ = ["is_cifar", "read_cifar"]

_SHAPE = (3, 32, 32)
#: Names of the files: of training, of testing, of the classes; and bytes of a label.
_CIFAR10 = tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1
_CIFAR100 = ("train.bin",), "test.bin", "fine_label_names.txt", 2

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


def is_cifar(folder: Path) -> bool:
    """Whether a folder holds the binary files of one of the sets."""
    return any((folder / layout[1]).is_file() for layout in (_CIFAR10, _CIFAR100))


def read_cifar(path: Path) -> tuple[Part, Part, tuple[str, ...]]:
    """The training and the test set, each as images, (N, 3, 32, 32), and labels; and the names of the classes.

    Args:
        path: a folder with the binary files, or an archive ``.tar.gz`` in which they are.

    Raises:
        DataError: a file is missing, cut short, or has a label that is no class.
    """
    if path.is_dir():
        return _read(path, _from_folder(path), lambda name: (path / name).is_file())
    try:
        with tarfile.open(path, "r:*") as archive:
            members = {Path(member.name).name: member for member in archive.getmembers() if member.isfile()}

            def content(name: str) -> bytes:
                if name not in members:
                    raise DataError(f"{path}: {name} is missing in it")
                file = archive.extractfile(members[name])
                assert file is not None
                return file.read()

            return _read(path, content, members.__contains__)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise DataError(f"{path}: damaged archive ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _from_folder(folder: Path) -> Callable[[str], bytes]:
    def content(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"{folder / name}: cannot be read ({error.strerror or error})") from None

    return content


def _read(
    path: Path, content: Callable[[str], bytes], has: Callable[[str], bool]
) -> tuple[Part, Part, tuple[str, ...]]:
    training, testing, names, label_bytes = _CIFAR100 if has(_CIFAR100[1]) else _CIFAR10
    lines = content(names).decode("utf-8", "replace").splitlines()
    classes = tuple(line.strip() for line in lines if line.strip())
    parts = []
    for files in (training, (testing,)):
        records = [_records(f"{path}: {file}", content(file), label_bytes, len(classes)) for file in files]
        parts.append((np.concatenate([one[0] for one in records]), np.concatenate([one[1] for one in records])))
    return parts[0], parts[1], classes


def _records(name: str, content: bytes, label_bytes: int, classes: int) -> Part:
    length = label_bytes + 3072
    if not content or len(content) % length:
        raise DataError(f"{name}: {len(content):,} bytes, which is no multiple of {length:,}, a record of CIFAR")
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise DataError(f"{name}: holds the label {labels.max()}, but {classes} classes are named")
    return records[:, label_bytes:].reshape(-1, *_SHAPE), labels
