"""Saving and loading models, in files that a crash cannot spoil.

The format is safetensors: named arrays and a JSON header. Other tools can read it and, unlike pickle, it cannot run
code.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.files import remove_leftovers, write_atomically

if TYPE_CHECKING:
    from gpuconv.models import Classifier

__all__ = ["FileError", "load", "load_tensors", "remove_leftovers", "save", "save_tensors", "write_atomically"]

_MODEL = "gpuconv-model"
_HEADER = "gpuconv"  # the entry of the safetensors header that holds our metadata
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
            # NumPy lacks bfloat16 and the 8-bit floats; complex numbers, which it has, occur in no network here.
            strange = [f"{name} holds {_TYPES.get(t, t)}" for name, t in types.items() if t not in _READABLE]
            tensors = {} if strange else {name: file.get_tensor(name) for name in types}
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise FileError(f"{path}: not a readable safetensors file: {_what_it_is(Path(path)) or error}") from None
    if _HEADER not in entries:
        also = f", in which {strange[0]}" if strange else ""
        raise FileError(
            f"{path}: not a {kind} file but some other safetensors file{also}; build its network and take the weights "
            f"with model.load_state_dict(safetensors.{'torch' if strange else 'numpy'}.load_file({os.fspath(path)!r}))"
        )
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


#: The dtypes that gpuconv's files may have, by safetensors' names; and the usual names of others.
_READABLE = {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
_TYPES = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3", "F8_E5M2": "float8_e5m2", "C64": "complex64"}


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
    pickle = start.startswith(b"PK\x03\x04") and b"data.pkl" in start
    if pickle or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[2:3] in b"}c\x8a\x95"):
        return (
            "it is a pickle, as torch.save writes it, which could run code and is not read here; build its network and "
            f"take the weights with model.load_state_dict(torch.load({str(path)!r}, weights_only=True))"
        )
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
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def save(model: Classifier, path: str | os.PathLike[str]) -> None:
    """Write a model of ``gpuconv.models`` to a safetensors file, with all that :func:`load` needs to rebuild it.

    Raises:
        TypeError: not a model of ``gpuconv.models``.
        OSError: the file cannot be written; the old content is still there.
    """
    from gpuconv.models import MODELS

    names = {cls: name for name, cls in MODELS.items()}
    if type(model) not in names:
        raise TypeError(
            f"save: model must be one of gpuconv.models ({', '.join(cls.__name__ for cls in names)}), got "
            f"{type(model).__name__}; for others write model.state_dict() with safetensors"
        )
    transform, form = model.input_transform, model.form
    save_tensors(
        path,
        model.state_dict(),
        _MODEL,
        {
            "model": names[type(model)],
            "config": model.config,
            "classes": model.classes,
            "input_transform": None if transform is None else transform.to_dict(),
            "form": None if form is None else form.to_dict(),
        },
    )


def load(path: str | os.PathLike[str]) -> Classifier:
    """Rebuild a model that :func:`save` wrote, in evaluation mode. Its ``predict`` takes raw images.

    Args:
        path: the file, or a run directory of ``gpuconv train``, which holds ``model.safetensors``.

    Raises:
        FileError: the file is missing, broken, or not a model.
    """
    from gpuconv.data.form import MNIST_FORM, ImageForm
    from gpuconv.data.preprocess import InputTransform
    from gpuconv.models import build

    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.exists() and (path.parent / "checkpoint.safetensors").exists():
            raise FileError(f"{path}: does not exist yet, because the training has not finished; resume it")
    tensors, content = load_tensors(path, _MODEL)
    try:
        model = build(content["model"], **content["config"])
        model.classes = tuple(content["classes"])
        transform = content["input_transform"]
        model.input_transform = None if transform is None else InputTransform.from_dict(transform)
        if "form" in content:
            model.form = None if content["form"] is None else ImageForm.from_dict(content["form"])
        elif model.input_transform is not None and model.input_transform.size == (32, 32):
            model.form = MNIST_FORM  # the file is from before models had a form, and pictures were read in MNIST's
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path}: does not describe a model that this version knows ({error})") from None
    model.eval()
    return model
