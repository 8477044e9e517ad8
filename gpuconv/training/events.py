"""What a run reports while it trains, its result, and the errors that can end it early."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpuconv.data import Dataset
from gpuconv.models import Classifier
from gpuconv.training.config import NamesSettings


class Event:
    """Base of what :func:`fit` reports while it runs. Epochs and steps count from 1."""


@dataclass(frozen=True)
class Reading(Event):
    """Some of a folder's pictures are read.

    Attributes:
        done, total: of how many.
    """

    done: int
    total: int


@dataclass(frozen=True)
class FolderRead(Event):
    """A folder of pictures is read.

    Attributes:
        classes: names of the classes.
        size: height and width to which the pictures were brought.
        skipped: what cannot be used, a line a file that begins with its name.
        in_memory: whether the pictures are kept; otherwise they are read again when they are needed.
    """

    classes: tuple[str, ...]
    size: tuple[int, int]
    skipped: tuple[str, ...]
    in_memory: bool


@dataclass(frozen=True)
class WeightsLoaded(Event):
    """The run starts from the weights of a file.

    Attributes:
        path: of the file.
        left_out: names of weights that the network has no use for: those of a last layer of another number of classes.
    """

    path: str
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Started(Event):
    """The data are loaded, the model is built, and the first step follows (none, if ``finished``).

    Attributes:
        model: its name.
        parameters: number of learned values.
        backend: name of the backend.
        train_images, validation_images, test_images: number of images.
        epochs, steps: epochs of the run, steps of an epoch.
        resumed: whether it was resumed from a checkpoint.
        epochs_done, steps_done: what that checkpoint had: epochs, and steps of the next one.
        finished: whether there is nothing left to train.
    """

    model: str
    parameters: int
    backend: str
    train_images: int
    validation_images: int
    test_images: int
    epochs: int
    steps: int
    resumed: bool
    epochs_done: int
    steps_done: int
    finished: bool


@dataclass(frozen=True)
class BatchEnd(Event):
    """A step is done. On a GPU many steps are not reported, because reading the loss means waiting for the device.

    Attributes:
        epoch: which one.
        step, steps: steps done in this epoch, and steps of the whole epoch.
        loss, accuracy: mean over the epoch's images so far, each taken before the weights were updated with it.
        images_per_second: since the epoch began or was resumed.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float


@dataclass(frozen=True)
class EpochEnd(Event):
    """An epoch is done; the fields are those of a line of ``metrics.jsonl``.

    Attributes:
        epoch: which one.
        train_loss, train_accuracy: mean over its images, while the weights were changing.
        validation_loss, validation_accuracy: after it; None without validation images.
        lr: learning rate of its last step.
        seconds: that it took, validation included.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    lr: float
    seconds: float


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A checkpoint was written.

    Attributes:
        path: of the file.
        epochs_done, steps_done: what it holds: epochs, and steps of the next one.
    """

    path: Path
    epochs_done: int
    steps_done: int


@dataclass(frozen=True)
class EarlyStop(Event):
    """The validation loss has not been lower for ``patience`` epochs.

    Attributes:
        epoch: the last one.
        best_epoch: the one with the lowest validation loss, whose weights are kept.
        patience: see :class:`TrainConfig`.
    """

    epoch: int
    best_epoch: int
    patience: int


@dataclass(frozen=True)
class Finished(Event):
    """The model is written.

    Attributes:
        test_loss, test_accuracy: of the kept weights.
        seconds: of all epochs together.
        best_epoch: the one with the lowest validation loss; None without validation images.
        kept_epoch: the one whose weights the model has.
        path: of the model.
    """

    test_loss: float
    test_accuracy: float
    seconds: float
    best_epoch: int | None
    kept_epoch: int
    path: Path


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a training run.

    Attributes:
        dataset: what it was trained on.
        model: with the kept weights, in evaluation mode; ``model.predict`` takes raw images.
        model_path: where it was written.
        backend: name of the backend.
        test_loss, test_accuracy: over the test images.
        confusion: (classes, classes), int64: number of test images by true class (row) and predicted class (column).
        history: an :class:`EpochEnd` for each epoch.
        best_epoch: the one with the lowest validation loss; None without validation images.
        kept_epoch: the one whose weights the model has.
        stopped_early: whether ``patience`` ended it.
        was_finished: whether it was resumed when nothing was left to train.
        seconds: of all epochs together.
    """

    dataset: Dataset
    model: Classifier
    model_path: Path
    backend: str
    test_loss: float
    test_accuracy: float
    confusion: np.ndarray
    history: list[EpochEnd]
    best_epoch: int | None
    kept_epoch: int
    stopped_early: bool
    was_finished: bool
    seconds: float

    @property
    def epochs(self) -> int:
        """Number of epochs done."""
        return len(self.history)


class Interrupted(KeyboardInterrupt):
    """A signal ended the run; the step in progress was finished, and the checkpoint is saved.

    Attributes:
        signal: number of the signal.
        checkpoint: where the run can be resumed from.
    """

    def __init__(self, message: str, number: int, checkpoint: Path):
        super().__init__(message)
        self.signal = number
        self.checkpoint = checkpoint


class TrainingDiverged(NamesSettings, ArithmeticError):
    """The loss or a weight is no longer finite; the last good checkpoint is still there."""
