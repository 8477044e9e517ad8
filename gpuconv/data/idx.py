"""Reading and writing IDX, the file format of MNIST.

An IDX file is two zero bytes, a byte naming the element type, a byte with the number of dimensions, one
big-endian uint32 per dimension, and the elements in C order, big-endian. Source of the format:
LeCun, Cortes, Burges, *The MNIST database of handwritten digits*.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from typing import IO, Any, cast

import numpy as np

from gpuconv.data.errors import DataError

__all__ = ["read_idx", "write_idx"]

_ELEMENT_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_TYPE_CODES = {dtype.newbyteorder("="): code for code, dtype in _ELEMENT_TYPES.items()}
_MAX_DIMENSIONS = 32  # NumPy 1's limit; NumPy 2 allows 64
_CHUNK = 1 << 20


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file, plain or gzip-compressed (told apart by content, not by name).

    Args:
        path: the file.

    Returns:
        A writable array in native byte order, of dtype uint8, int8, int16, int32, float32 or float64.

    Raises:
        DataError: the file is missing, unreadable, truncated, has bytes after its last element, or is no IDX file.
    """
    try:
        with open(path, "rb") as raw:
            if raw.peek(2)[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    return _read_array(cast("IO[bytes]", unpacked), path)
            return _read_array(raw, path)
    except EOFError:
        raise DataError(f"{path}: truncated gzip stream") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip stream ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _read_array(file: IO[bytes], path: str | os.PathLike[str]) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4:
        raise DataError(f"{path}: truncated: {len(magic)} bytes, an IDX file starts with 4 magic bytes")
    dtype = _ELEMENT_TYPES.get(magic[2])
    ndim = magic[3]
    if magic[:2] != b"\0\0" or dtype is None or not 1 <= ndim <= _MAX_DIMENSIONS:
        raise DataError(f"{path}: not an IDX file (it starts with bytes {magic.hex(' ')})")
    header = file.read(4 * ndim)
    if len(header) < 4 * ndim:
        raise DataError(f"{path}: truncated inside the header: {4 + len(header)} of {4 + 4 * ndim} bytes")
    shape = struct.unpack(f">{ndim}I", header)
    expected = math.prod(shape) * dtype.itemsize

    # In chunks, because a damaged header can announce any size: memory then follows what the file really holds.
    # One byte more than expected reveals trailing bytes, and makes gzip verify its checksum at the end.
    data = bytearray()
    while len(data) <= expected:
        chunk = file.read(min(_CHUNK, expected + 1 - len(data)))
        if not chunk:
            break
        data += chunk
    if len(data) < expected:
        raise DataError(f"{path}: truncated: shape {shape} takes {expected} bytes, the file holds {len(data)}")
    if len(data) > expected:
        raise DataError(f"{path}: bytes follow the {expected} that shape {shape} takes")
    try:
        array = np.frombuffer(data, dtype=dtype).reshape(shape)
    except ValueError:  # a zero beside dimensions whose product overflows
        raise DataError(f"{path}: shape {shape} is too large for an array") from None
    return array.astype(dtype.newbyteorder("="), copy=False)


def write_idx(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an array as an IDX file, gzip-compressed if `path` ends in ``.gz``.

    Args:
        path: the file to write; an existing one is replaced.
        array: 1 to 32 dimensions; uint8, int8, int16, int32, float32 or float64.

    Raises:
        TypeError: IDX has no code for the array's dtype.
        ValueError: no dimension, more than 32, or one of 2**32 or longer.
        OSError: the file cannot be written.
    """
    array = np.asarray(array)
    dtype = array.dtype.newbyteorder("=")
    if dtype not in _TYPE_CODES:
        raise TypeError(f"write_idx: array has dtype {array.dtype}; IDX holds {', '.join(t.name for t in _TYPE_CODES)}")
    if not 1 <= array.ndim <= _MAX_DIMENSIONS or any(n >= 2**32 for n in array.shape):
        raise ValueError(
            f"write_idx: array has shape {array.shape}; IDX holds 1 to {_MAX_DIMENSIONS} dimensions below 2**32"
        )
    code = _TYPE_CODES[dtype]
    header = struct.pack(f">4B{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    content = header + array.astype(_ELEMENT_TYPES[code]).tobytes()
    if os.fspath(path).endswith(".gz"):
        content = gzip.compress(content, mtime=0)  # the same array gives the same bytes
    with open(path, "wb") as file:
        file.write(content)
