"""Arrays and JSON in a safetensors file of this library's kinds, and weights in files of any library.

The format is safetensors: named arrays and a JSON header. Other tools can read it and, unlike pickle, it cannot run
code.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.autograd import to_numpy
from gpuconv.dtypes import bfloat16, has_bfloat16, kind_of
from gpuconv.files import write_atomically
from gpuconv.storage import pytorch

__all__ = ["FileError", "is_ours", "load_any", "load_tensors", "save_state", "save_tensors"]

_HEADER = "gpuconv"  # the entry of the safetensors header that holds ours
_VERSION = "1"


class FileError(ValueError):
    """A file is missing, broken, or of another kind than expected; the message names it."""


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], kind: str, metadata: Mapping[str, Any]
) -> None:
    """Write arrays and JSON-able metadata as a safetensors file of ``kind``, atomically.

    The same arrays and metadata give the same bytes.

    Raises:
        OSError: it cannot be written; the old content is still there.
    """
    from safetensors.numpy import save as to_bytes

    # Not ascontiguousarray, which adds a dimension to arrays that have none.
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    content = json.dumps(dict(metadata))
    header = {"kind": kind, "version": _VERSION, "sha256": _digest(arrays, content), "content": content}
    # One entry: safetensors writes several in an order that changes from process to process.
    write_atomically(path, to_bytes(arrays, {_HEADER: json.dumps(header)}))


def load_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote: the arrays and the metadata.

    Raises:
        FileError: the file is missing, broken, or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            entries = file.metadata() or {}
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a dict
            # NumPy lacks the 8-bit floats; complex numbers, which it has, occur in no network here.
            strange = [f"{name} holds {_TYPES.get(t, t)}" for name, t in types.items() if t not in _READABLE]
            if not strange and "BF16" in types.values():  # which safetensors does not read into NumPy's arrays
                tensors = _foreign_tensors(Path(path))
            else:
                tensors = {} if strange else {name: file.get_tensor(name) for name in types}
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise FileError(f"{path}: not a readable safetensors file: {_what_it_is(Path(path)) or error}") from None
    if _HEADER not in entries:
        also = f", in which {strange[0]}" if strange else ""
        raise FileError(f"{path}: not a {kind} file but some other safetensors file{also}; {_take(path)}")
    if strange:
        raise FileError(f"{path}: {strange[0]}, which gpuconv does not write: another program has changed it")
    try:
        header = json.loads(entries[_HEADER])
        if header["kind"] != kind:
            raise FileError(f"{path}: not a {kind} file but a {header['kind']} file")
        if header["version"] != _VERSION:
            raise FileError(
                f"{path}: written by another version of gpuconv (format {header['version']!r}, not {_VERSION!r})"
            )
        if header["sha256"] != _digest(tensors, header["content"]):
            raise FileError(f"{path}: damaged, its checksum is not that of its content")
        content = json.loads(header["content"])
        return tensors, dict(content)
    except FileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError):
        raise FileError(f"{path}: its header is damaged") from None


def _take(path: str | os.PathLike[str]) -> str:
    return f"build its network and take the weights with model.load_state_dict(gpuconv.load({os.fspath(path)!r}))"


#: The element types that a file of ours may have, as safetensors calls them; and what others are called elsewhere.
_READABLE = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
_TYPES = {"F8_E4M3": "float8_e4m3", "F8_E5M2": "float8_e5m2", "C64": "complex64"}


def _what_it_is(path: Path) -> str:
    """What a file that is not safetensors seems to be, and what to do with it; empty if unknown."""
    try:
        if path.is_dir():
            return "it is a folder"
        with open(path, "rb") as file:
            start = file.read(512)
        size = path.stat().st_size
    except OSError:
        return ""
    if not start:
        return "it is empty"
    if pytorch.is_torch_zip(start) or pytorch.is_pickle(start):
        return f"it is a pickle, as torch.save writes it; {_take(path)}"
    for begins, what in _MAGIC:
        if start.lstrip().lower().startswith(begins):
            return what
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and length < 2**27:
        try:
            with open(path, "rb") as file:
                header = json.loads(file.read(8 + length)[8:])
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            return f"it is cut short in its header, at {size:,} bytes" if size < 8 + length else ""
        needed = 8 + length + max(ends, default=0)
        return f"it is cut short, at {size:,} of {needed:,} bytes" if size < needed else ""
    return ""


#: First bytes (in lower case) of files that are often mistaken for models, and what these files are.
_MAGIC = (
    (b"<!doctype", "it is a web page; download the file that the page is about"),
    (b"<html", "it is a web page; download the file that the page is about"),
    (b"version https://git-lfs", "it is a pointer of Git LFS; fetch the file with 'git lfs pull'"),
    (b"\x89hdf", "it is an HDF5 file, as Keras writes it"),
    (b"pk\x03\x04", "it is a zip archive"),
    (b"\x93numpy", "it is an array of NumPy"),
    (b"\x1f\x8b", "it is compressed; unpack it with gzip"),
)


def _digest(arrays: Mapping[str, np.ndarray], content: str) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.newbyteorder('<').str} {array.shape}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write named arrays, as ``model.state_dict()`` gives them, to a safetensors file that other libraries read.

    Raises:
        TypeError: a name that is no string, or a value that is no array of a type that safetensors has.
        OSError: it cannot be written; what was there before is still there.
    """
    from safetensors.numpy import save as to_bytes

    arrays = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise TypeError(f"save: the names of a state are strings, got {name!r}")
        # A tensor of whichever library; other values are refused below.
        array = np.asarray(to_numpy(value.detach()) if hasattr(value, "detach") else value, order="C")
        if kind_of(array.dtype) not in "fiub":
            raise TypeError(f"save: {name} is no array of numbers, but of {type(value).__name__}")
        arrays[name] = array.astype(array.dtype.newbyteorder("<"), copy=False)
    write_atomically(path, to_bytes(arrays))


def load_any(path: Path) -> Any:
    """What a file of weights of another library holds.

    Args:
        path: a safetensors file, or one of ``torch.save``.

    Returns:
        Of safetensors, arrays by their names; of PyTorch, what was saved, with arrays for tensors. bfloat16 becomes
        float32 if ``ml_dtypes`` is not installed.

    Raises:
        FileError: it is missing, broken, or holds what is neither array nor plain container; the message says which.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(512)
        if pytorch.is_torch_zip(start) or pytorch.is_pickle(start):
            return pytorch.read(path)
        return _foreign_tensors(path)
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except pytorch.Unreadable as error:
        raise FileError(f"{path}: it {error}") from None
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None


def is_ours(path: Path) -> bool:
    """Whether a file is one of :func:`save_tensors`, of whatever kind, and whole enough to tell."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            return _HEADER in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError):
        return False


def _foreign_tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(path.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise FileError(f"{path}: not a readable safetensors file: {_what_it_is(path) or error}") from None
    tensors = {}
    for name, entry in entries:
        kind, data = entry["dtype"], np.frombuffer(entry["data"], np.uint8)
        if kind == "BF16":
            array = data.view(bfloat16()) if has_bfloat16() else pytorch.widened(data)
        elif kind in _READABLE or kind == "C64":
            array = data.view(_numpy_type(kind))
        else:
            raise FileError(f"{path}: {name} holds {_TYPES.get(kind, kind)}; convert it to float32 first")
        tensors[name] = array.reshape(entry["shape"])
    return tensors


def _numpy_type(kind: str) -> np.dtype[Any]:
    if kind == "BOOL":
        return np.dtype(np.bool_)
    return np.dtype(f"<{kind[0].lower()}{int(kind[1:]) // 8}")
