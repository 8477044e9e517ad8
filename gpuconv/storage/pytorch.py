"""Reading what ``torch.save`` wrote, without PyTorch and without running any of the file's code.

Such a file holds a pickle, which may name any Python function and have it called with any arguments. Here a pickle may
name what tensors, numbers, strings and plain containers are made of, and nothing else: everything else is refused by
its name, before anything is called. Both formats are read, the zip archive of PyTorch 1.6 and newer
(``caffe2/serialize/inline_container.h``), and the sequence of pickles before it (``torch/serialization.py``).

Tensors become NumPy arrays; those that shared memory share it again. bfloat16, which NumPy lacks, is that of
``ml_dtypes``; without it, it becomes float32.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpuconv.dtypes import bfloat16, has_bfloat16

__all__ = ["Unreadable", "is_pickle", "is_torch_zip", "read", "widened"]

#: What begins a file of the format before 1.6: a pickle of this number.
_MAGIC = 0x1950A86A20F9469CFC6C
_BFLOAT16 = "bfloat16"
#: PyTorch's names of element types, and of the classes that stood for them before.
_TYPES: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    _BFLOAT16: _BFLOAT16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
}
_SHORT = {"double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32"}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    # Of any type: the tensor says which.
    "UntypedStorage": "",
}


class Unreadable(ValueError):
    """Why a file cannot be read: the rest of a sentence that begins with the file's name."""


def is_torch_zip(start: bytes) -> bool:
    """Whether a file that begins so, by 512 bytes or more, is an archive of ``torch.save``."""
    return start.startswith(b"PK\x03\x04") and b"data.pkl" in start


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins so is a pickle, by itself or before tensors as ``torch.save`` wrote it until 1.5."""
    return start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[2:3] in b"}c\x8a\x95"


def read(path: Path) -> Any:
    """What was given to ``torch.save``: a tensor as an array, or containers of tensors, numbers and strings.

    Raises:
        Unreadable: it is damaged, or holds something else; the message names it.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return _from_zip(file) if file.peek(2)[:2] == b"PK" else _from_pickles(file)
    except (Unreadable, MemoryError):
        raise
    except zipfile.BadZipFile as error:
        raise Unreadable(f"is damaged or cut short: {error}") from None
    # What a pickle that is no pickle makes the unpickler raise; OSError of a seek to where nothing is.
    except (
        pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, OverflowError,
        NotImplementedError, RuntimeError,
    ) as error:  # fmt: skip
        raise Unreadable(f"is damaged: {error or type(error).__name__}") from None


def widened(data: np.ndarray) -> np.ndarray:
    """The float32 of the bytes of bfloat16, each the upper half of the float32 of the same value."""
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


class _Storage:
    """The memory of some tensors, of a type that may be told only by them."""

    def __init__(self, kind: str, data: np.ndarray):
        self.kind, self.bytes = kind, data
        self._widened: np.ndarray | None = None

    def elements(self, kind: str) -> np.ndarray:
        """All of it as a flat array. Always the same memory, so that tensors share what they shared."""
        if kind != _BFLOAT16:
            return self.bytes.view(_TYPES[kind])
        if has_bfloat16():
            return self.bytes.view(bfloat16())
        if self._widened is None:
            self._widened = widened(self.bytes)
        return self._widened


def _size_of(kind: str) -> int:
    return {"": 1, _BFLOAT16: 2}.get(kind) or np.dtype(_TYPES[kind]).itemsize


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, kind: str) -> np.ndarray:
    """The array that a tensor's fields describe.

    Raises:
        Unreadable: some of it would lie outside of its storage.
    """
    if not isinstance(storage, _Storage) or not kind:
        raise Unreadable("is damaged: a tensor has no storage or no type")
    flat = storage.elements(kind)
    fields = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in fields):
        raise Unreadable("is damaged: a tensor has no shape")
    count = math.prod(size)
    if count and offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= flat.size:
        raise Unreadable(f"is damaged: a tensor of shape {tuple(size)} lies outside of its storage")
    # Elements may stand for many, as after expand(); the array would be a copy of each.
    if count > max(2**20, 4 * flat.size):
        raise Unreadable(f"holds a tensor of shape {tuple(size)} that repeats {flat.size:,} elements; save its clone()")
    if not count:
        return np.empty(size, flat.dtype)
    steps = tuple(step * flat.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(flat[offset:], tuple(size), steps)


class _Unpickler(pickle.Unpickler):
    """One that finds no more than what is listed here.

    The functions that it finds are made anew for each file, because a pickle may set attributes of what it has found.
    """

    def __init__(self, file: Any, storage_of: Callable[..., _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storage_of = storage_of
        self._known = _known_names()

    def persistent_load(self, pid: Any) -> Any:
        """The storage that a file of PyTorch refers to."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], str):
            raise Unreadable(f"is damaged: it refers to {pid!r}"[:200])
        kind = _STORAGES.get(pid[1])
        if kind is None:
            raise Unreadable(f"holds tensors of torch.{pid[1]}; convert them first, as with tensor.float()")
        return self._storage_of(kind, *pid[2:])

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for.

        Raises:
            Unreadable: it is none that tensors and plain containers need.
        """
        if module in ("torch", "torch.storage"):
            if name.endswith("Storage"):
                return name
            if (kind := _SHORT.get(name, name)) in _TYPES:
                return kind
        try:
            return self._known[module, name]
        except KeyError:
            if module.startswith("torch.") and not module.startswith("torch.nn."):
                hint = "save the tensors and numbers that are needed"
            else:
                hint = "save the model's state_dict() instead of the model"
            raise Unreadable(
                f"holds {module}.{name}, which is no tensor, number, string or plain container, and could run code; "
                f"in PyTorch, {hint}"
            ) from None


def _known_names() -> dict[tuple[str, str], Any]:
    """What a pickle may name. Types that only stand beside a tensor are not called: a word will do for them."""

    def rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
        return _tensor(storage, offset, size, stride, getattr(storage, "kind", ""))

    def rebuild_untyped(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
        return _tensor(storage, offset, size, stride, rest[2] if rest[2] in _TYPES else "")

    def rebuild_parameter(data: Any, *_: Any) -> Any:
        return data

    def rebuild_subclass(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        return rebuild(*arguments) if function is rebuild else rebuild_parameter(*arguments)

    def size(values: Any = ()) -> tuple[Any, ...]:
        return tuple(values)

    def device(*parts: Any) -> str:
        return ":".join(map(str, parts))

    def encoded(text: str, encoding: str = "latin1") -> bytes:
        return text.encode("latin1")

    return {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor"): rebuild,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild,
        ("torch._utils", "_rebuild_tensor_v3"): rebuild_untyped,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): rebuild_subclass,
        ("torch", "Tensor"): "Tensor",
        ("torch.nn.parameter", "Parameter"): "Parameter",
        ("torch", "Size"): size,
        ("torch", "device"): device,
        ("_codecs", "encode"): encoded,
    }


def _from_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Unreadable("is a zip archive, but not one of torch.save: it has no data.pkl")
        folder = pickles[0].partition("/")[0]
        if f"{folder}/constants.pkl" in entries:
            raise Unreadable(
                "is a TorchScript archive, which holds code; in PyTorch, save the state_dict() of the model"
            )

        def content(name: str) -> bytearray:
            entry = entries.get(f"{folder}/{name}")
            if entry is None:
                raise Unreadable(f"is damaged: it lacks {name}")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise Unreadable("is compressed, as torch.save never does it; it could be of any size")
            data = bytearray(entry.file_size)
            with archive.open(entry) as source:
                if source.readinto(data) != len(data) or source.read(1):  # type: ignore[attr-defined]
                    raise Unreadable(f"is cut short in {name}")
            return data

        big = f"{folder}/byteorder" in entries and bytes(content("byteorder")).strip() == b"big"
        storages: dict[str, _Storage] = {}

        def storage_of(kind: str, key: Any, location: Any, count: Any, *_: Any) -> _Storage:
            if key not in storages:
                data = np.frombuffer(content(f"data/{key}"), np.uint8)
                if data.size != count * _size_of(kind):
                    raise Unreadable(f"is damaged: data/{key} has {data.size:,} bytes")
                storages[key] = _Storage(kind, _native(data, kind, big=big))
            return storages[key]

        return _Unpickler(io.BytesIO(content("data.pkl")), storage_of).load()


def _from_pickles(file: BinaryIO) -> Any:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)

    def no_storage(*_: Any) -> _Storage:
        raise Unreadable("is damaged: a storage before its time")

    def next_pickle(storage_of: Callable[..., _Storage] = no_storage) -> Any:
        return _Unpickler(file, storage_of).load()

    first = next_pickle()
    if first != _MAGIC:
        raise Unreadable("is a pickle, but not of torch.save")
    if (version := next_pickle()) != 1001:
        raise Unreadable(f"is of version {version!r} of PyTorch's old format; 1001 is known")
    system = next_pickle()
    big = not system["little_endian"]
    storages: dict[str, _Storage] = {}

    def storage_of(kind: str, key: Any, location: Any, count: Any, view: Any = None) -> _Storage:
        if view is not None:
            raise Unreadable(
                "holds a view of a storage, as PyTorch wrote it before 0.4; save it again with a newer one"
            )
        if type(count) is not int or not 0 <= count * _size_of(kind) <= size:
            raise Unreadable(f"is cut short: a storage of {count} elements does not fit into {size:,} bytes")
        if key not in storages:
            storages[key] = _Storage(kind, np.empty(count * _size_of(kind), np.uint8))
        return storages[key]

    # Tensors come before what is in their storages, which is read into the memory that they have by then. bfloat16 that
    # is widened is so when it is looked at: too early, so those tensors are made from the second reading.
    begin = file.tell()
    next_pickle(storage_of)
    keys = next_pickle()
    for storage in _each(storages, keys):
        count = int.from_bytes(file.read(8), "big" if big else "little")
        if count * _size_of(storage.kind) != storage.bytes.size:
            raise Unreadable(
                f"is damaged: a storage of {count:,} elements, where there are {storage.bytes.size:,} bytes"
            )
        if file.readinto(storage.bytes.data) != storage.bytes.size:  # type: ignore[attr-defined]
            raise Unreadable(f"is cut short, at {size:,} bytes")
        storage.bytes[:] = _native(storage.bytes, storage.kind, big=big)
        storage._widened = None
    file.seek(begin)
    return next_pickle(storage_of)


def _each(storages: dict[str, _Storage], keys: Any) -> Iterator[_Storage]:
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise Unreadable("is damaged: its storages are others than its tensors refer to")
    return (storages[key] for key in keys)


def _native(data: np.ndarray, kind: str, *, big: bool) -> np.ndarray:
    """Bytes in the order of this machine."""
    size = {"complex64": 4, "complex128": 8}.get(kind, _size_of(kind))
    if big == (sys.byteorder == "big") or size == 1:
        return data
    return data.view(f"u{size}").byteswap().view(np.uint8)
