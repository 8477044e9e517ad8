"""Files: written so that a crash loses nothing that was there, and models that can be rebuilt from them.

The format is safetensors (named arrays and a JSON header), which other tools read and which, unlike pickle, cannot run
code.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gpuconv.models import Classifier

__all__ = ["FileError", "load", "load_tensors", "remove_leftovers", "save", "save_tensors", "write_atomically"]

_MODEL = "gpuconv-model"
_HEADER = "gpuconv"  # the entry of the safetensors header that holds ours
_VERSION = "1"
_TEMPORARY = ".tmp"


class FileError(ValueError):
    """A file is missing, broken, or not of the kind that was asked for; the message names it."""


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace ``path`` by ``data``: whoever reads it, whenever the machine stops, finds the old content or the new.

    A process that is killed meanwhile may leave a temporary file beside it; see :func:`remove_leftovers`.

    Raises:
        OSError: it cannot be written (no such folder, no permission, disk full); the old content is still there, and
            the exception's ``filename`` is ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                os.chmod(temporary, path.stat().st_mode & 0o777)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        # A full disk is reported without a name, other faults with the temporary file's, which means nothing to a user.
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from None


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Delete what processes that were killed inside :func:`write_atomically` left beside ``path``.

    Only for whoever knows that nobody is writing ``path`` now.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{_TEMPORARY}"):
        with suppress(OSError):  # they take room, and do no other harm
            leftover.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; a no-op where folders cannot be opened (Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], kind: str, metadata: Mapping[str, Any]
) -> None:
    """Write arrays and JSON-able metadata as a safetensors file of ``kind``, atomically.

    The same arrays and metadata give the same bytes.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    from safetensors.numpy import save as to_bytes

    # Not ascontiguousarray, which gives an array without dimensions one.
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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise FileError(f"{path}: not a readable safetensors file ({error})") from None
    if _HEADER not in entries:
        raise FileError(f"{path}: not a {kind} file but some other safetensors file")
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
        OSError: the file cannot be written; what was there before is still there.
    """
    from gpuconv.models import MODELS

    names = {cls: name for name, cls in MODELS.items()}
    if type(model) not in names:
        raise TypeError(
            f"save: model must be one of gpuconv.models ({', '.join(cls.__name__ for cls in names)}), got "
            f"{type(model).__name__}; for others write model.state_dict() with safetensors"
        )
    transform = model.input_transform
    save_tensors(
        path,
        model.state_dict(),
        _MODEL,
        {
            "model": names[type(model)],
            "config": model.config,
            "classes": model.classes,
            "input_transform": None if transform is None else transform.to_dict(),
        },
    )


def load(path: str | os.PathLike[str]) -> Classifier:
    """Rebuild a model from what :func:`save` wrote, in evaluation mode; ``predict`` takes raw images.

    Args:
        path: the file, or a run directory of ``gpuconv train``, which holds ``model.safetensors``.

    Raises:
        FileError: the file is missing, broken, or not a model.
    """
    from gpuconv.data.preprocess import InputTransform
    from gpuconv.models import build

    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.exists() and (path.parent / "checkpoint.safetensors").exists():
            raise FileError(f"{path}: not there yet, the training has not ended; resume it")
    tensors, content = load_tensors(path, _MODEL)
    try:
        model = build(content["model"], **content["config"])
        model.classes = tuple(content["classes"])
        transform = content["input_transform"]
        model.input_transform = None if transform is None else InputTransform.from_dict(transform)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path}: does not describe a model that this version knows ({error})") from None
    model.eval()
    return model
