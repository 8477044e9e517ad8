"""The run directory: its files, the content of a checkpoint, and the settings that must match to resume from it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import storage
from gpuconv.data import Dataset
from gpuconv.storage import FileError
from gpuconv.training.config import MAY_CHANGE, NamesSettings, Setting, SettingValueError, TrainConfig

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Names of the files in a run directory.
CHECKPOINT, METRICS, MODEL = "checkpoint.safetensors", "metrics.jsonl", "model.safetensors"
#: Of the folder in it that holds each epoch's model, if these are kept.
EPOCHS = "epochs"
#: The kind of a checkpoint among the files of :mod:`gpuconv.storage`.
KIND = "gpuconv-checkpoint"


class OtherRun(NamesSettings, FileError):
    """A checkpoint cannot be resumed with these settings: they belong to another run."""


def saved_config(out: str | os.PathLike[str]) -> TrainConfig | None:
    """The configuration of the run in the directory ``out``; None if it has no checkpoint.

    Raises:
        FileError: the checkpoint is broken.
    """
    path = Path(out) / CHECKPOINT
    return TrainConfig(**Checkpoint.read(path).content["config"]) if path.exists() else None


def refuse_existing(out: Path) -> None:
    """Raise an error if a folder already holds a run, so that it is not overwritten."""
    for name in (CHECKPOINT, MODEL, METRICS):
        if (out / name).exists():
            hint = "resume it or " if name == CHECKPOINT else ""
            raise FileExistsError(f"{out}: already holds a run ({name}); {hint}give another folder")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes from training in the same folder. The lock ends with the process."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{out}: another process is training in this folder") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint; ``Run.save`` writes it."""

    path: Path
    tensors: dict[str, np.ndarray]
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read the file; raise an error if it is broken."""
        return cls(path, *storage.load_tensors(path, KIND))

    @property
    def backend(self) -> str:
        """Name of the backend that wrote it."""
        return str(self.content["backend"])

    def check_goes_on_with(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise an error for settings that are not the run's, or for fewer epochs than have been done."""
        # A checkpoint from before these settings existed does not mention them.
        new = {"augment": False, "image_size": None, "weights": None}
        theirs, ours = {**new, **self.content["config"]}, asdict(config)
        parts: list[str] = []
        for name in {**ours, **theirs}:
            # The data are compared by content, below.
            if name not in (*MAY_CHANGE, "data") and theirs.get(name) != ours.get(name):
                parts += [", ", Setting(name), f" is {theirs.get(name)!r} there and {ours.get(name)!r} here"]
        if self.content["data"] != fingerprint(dataset):
            parts += [", ", Setting("data"), f" {ours['data']!r} holds other images than {theirs['data']!r} did there"]
        if parts:
            may = [part for name in MAY_CHANGE for part in (", ", Setting(name))]
            raise OtherRun(
                f"{self.path}: of another run: ",
                *parts[1:],
                "; resume with the same settings, of which only ",
                *may[1:],
                " may change, or start a new run in another folder",
            )
        done, begun = len(self.content["history"]), self.content["step"] > 0
        if config.epochs < done + begun:
            what = f" is {config.epochs}, but the run has done {done}"
            what += f" and begun the next; give at least {done + 1}" if begun else f"; give at least {done}"
            raise SettingValueError(Setting("epochs"), what)
        if config.patience is not None and done and not self.part("best."):
            why_not = (
                " cannot be set any more: an older version, which kept no weights of the best epoch, began the run"
            )
            raise OtherRun(f"{self.path}: ", Setting("patience"), why_not)

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with a prefix, by the rest of their names."""
        return {name[len(prefix) :]: array for name, array in self.tensors.items() if name.startswith(prefix)}


def fingerprint(dataset: Dataset) -> str:
    """A digest of a data set's content, independent of where it is stored."""
    digest = hashlib.sha256(json.dumps(dataset.classes).encode())
    arrays = [dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels]
    if dataset.validation_images is not None:
        arrays += [dataset.validation_images, dataset.validation_labels]
    digest.update(dataset.digest.encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        # Pictures have been digested when they were read; they may be in files now.
        if not (dataset.pictures and array.ndim > 1):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
