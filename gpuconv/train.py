"""Training a classifier: the loop, and checkpoints from which it goes on as if it had never stopped.

::

    from gpuconv.train import TrainConfig, fit

    result = fit(TrainConfig(epochs=5, seed=1), "runs/digits")
    print(result.test_accuracy)
    result.model.predict(images)

A run directory holds ``checkpoint.safetensors``, from which the run is resumed; ``metrics.jsonl``, one JSON object an
epoch; and, once the run has ended, ``model.safetensors`` for :func:`gpuconv.load`.

**Going on.** ``fit(config, out, resume=True)`` takes an interrupted run to its end, and a finished one further::

    fit(replace(config, epochs=13), "runs/digits", resume=True)

The number of epochs may change, and ``patience``, ``checkpoint_every`` and ``backend``; all else is what the run is.
The learning rate of a step is from then on the one that it has in a run of the new number of epochs: with 'cosine',
which comes down to 0 over all epochs, it rises again in a finished run that goes on, to where the longer curve is at
that step; with 'constant' the result is bit for bit that of a run which had the new number from the start.

**Which weights are kept.** Those of the last epoch: the learning rate has come down to nothing there, and to choose
among epochs by a few hundred validation images is to choose by chance (on the bundled digits it costs 0.1 to 0.3 points
of test accuracy). With ``patience`` the last epoch is one of those that were no better, and those of the epoch with the
lowest validation loss are kept instead. The test images are looked at after that, once each time that a run ends.

**What is reproducible.** The same configuration gives the same bytes, interrupted or not, on the same machine with the
same NumPy and the same number of BLAS threads: these decide the order in which sums are rounded.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from gpuconv import backends, optim, storage
from gpuconv import functional as F
from gpuconv.autograd import Tensor, no_grad, to_numpy
from gpuconv.data import DATASETS, Dataset, ImageForm, InputTransform, batch_count, load_dataset, split
from gpuconv.feed import Feed
from gpuconv.graph import CapturedStep, capture
from gpuconv.models import MODELS, Classifier, build
from gpuconv.nn.module import evaluating
from gpuconv.random import default_generator, manual_seed
from gpuconv.storage import FileError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "CHECKPOINT",
    "LOSSES",
    "MAY_CHANGE",
    "METRICS",
    "MODEL",
    "OPTIMIZERS",
    "SCHEDULES",
    "BatchEnd",
    "CheckpointSaved",
    "EarlyStop",
    "EpochEnd",
    "Evaluation",
    "Event",
    "Finished",
    "Interrupted",
    "NamesSettings",
    "OtherRun",
    "Result",
    "Setting",
    "SettingTypeError",
    "SettingValueError",
    "Started",
    "TrainConfig",
    "TrainingDiverged",
    "evaluate",
    "fit",
    "saved_config",
]

#: Names of the files in a run directory.
CHECKPOINT, METRICS, MODEL = "checkpoint.safetensors", "metrics.jsonl", "model.safetensors"
_CHECKPOINT_KIND = "gpuconv-checkpoint"
#: Fields of :class:`TrainConfig` that may be others when a run goes on.
MAY_CHANGE = ("epochs", "patience", "checkpoint_every", "backend")
#: Seconds between two times that captured steps are waited for and their losses read back.
_READ_EVERY = 0.1
_logger = logging.getLogger(__name__)


# -- messages --------------------------------------------------------------------------------------------------------


class Setting(str):
    """The name of a field of :class:`TrainConfig`, as a part of a message."""

    __slots__ = ()


class NamesSettings(Exception):
    """Base of errors whose message names fields of :class:`TrainConfig`, which the command line calls by its options.

    Args:
        parts: the message in pieces, of which the names are :class:`Setting`.
    """

    def __init__(self, *parts: str):
        super().__init__("".join(parts))
        self.parts = parts

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The message with ``spell(name)`` in place of each name."""
        return "".join(spell(part) if isinstance(part, Setting) else part for part in self.parts)


class SettingTypeError(NamesSettings, TypeError):
    """A setting of the wrong kind."""


class SettingValueError(NamesSettings, ValueError):
    """A setting that is out of its range, or that does not fit the others or the run."""


class OtherRun(NamesSettings, FileError):
    """A checkpoint cannot be gone on from with these settings: they are another run's."""


# -- configuration ---------------------------------------------------------------------------------------------------


def _cross_entropy(logits: Tensor, labels: Any) -> Tensor:
    return F.cross_entropy(logits, labels)


def _half_squared_error(logits: Tensor, labels: Any) -> Tensor:
    one_hot = np.eye(logits.shape[1], dtype=logits.dtype)
    backend = backends.current(logits.data)
    targets = backend.asarray(one_hot)[backend.asarray(labels)]
    return F.half_squared_error(F.softmax(logits, 1), targets) * (1 / max(1, len(logits)))


def _sgd(config: TrainConfig, model: Classifier) -> optim.Optimizer:
    return optim.SGD(model.parameters(), momentum=config.momentum, weight_decay=config.weight_decay)


def _adam(config: TrainConfig, model: Classifier) -> optim.Optimizer:
    return optim.Adam(model.parameters(), weight_decay=config.weight_decay)


#: Name -> mean over a batch of the loss of logits (N, classes) under labels (N,).
LOSSES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "half_squared_error": _half_squared_error,
}
#: Name -> an optimizer of the model's parameters. The learning rate is set before each step.
OPTIMIZERS: dict[str, Callable[[TrainConfig, Classifier], optim.Optimizer]] = {"sgd": _sgd, "adam": _adam}
_DEFAULT_LR = {"sgd": 0.02, "adam": 0.002}
#: Name -> factor of the learning rate when a part, from 0 to 1, of all steps is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),  # Loshchilov & Hutter, 2017, without restarts
    "constant": lambda done: 1.0,
}


@dataclass(frozen=True)
class TrainConfig:
    """What a training run depends on. The defaults take the bundled digits to a test accuracy of about 98.3 %.

    Attributes:
        data: a data set, as :func:`gpuconv.data.load_dataset` takes it.
        model: a name of ``gpuconv.models.MODELS``.
        model_arguments: of the model's constructor, JSON types. The number of classes comes from the data.
        epochs: passes through the training images.
        batch_size: images in a step.
        optimizer: 'sgd' or 'adam'.
        lr: learning rate, above 0; None takes the optimizer's default, 0.02 or 0.002.
        momentum: of sgd, at least 0 and below 1.
        weight_decay: factor of the weights that is added to their gradient, at least 0.
        schedule: 'cosine', from ``lr`` down to 0 over the whole run, or 'constant'. The learning rate of a step depends
            on its number, ``epochs``, and nothing else.
        loss: 'cross_entropy', or 'half_squared_error': ½ · Σ (target - softmax(output))² of an image, the target being
            1 for its class and 0 for the others.
        seed: of the initial weights, the order of images, the choice of validation images, augmentation and dropout; at
            least 0.
        validation_fraction: share of the training images that is held out; at least 0 and below 1.
        augment: whether training images are turned, scaled and shifted a little at random, in each epoch in another
            way (:func:`gpuconv.data.random_transforms`); those of validation and test never are.
        patience: stop after so many epochs without a lower validation loss; None never does.
        checkpoint_every: steps between two checkpoints; there is one at the end of each epoch, too.
        backend: 'numpy', ...; 'auto' takes the current one (see ``gpuconv.use_backend``).

    Raises:
        TypeError: a field of the wrong kind.
        ValueError: a field out of its range, or an unknown name; the nearest one is suggested.
    """

    data: str = "mnist-sample"
    model: str = "lenet5"
    model_arguments: dict[str, Any] = field(default_factory=dict)
    epochs: int = 12
    batch_size: int = 32
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.005
    schedule: str = "cosine"
    loss: str = "cross_entropy"
    seed: int = 0
    validation_fraction: float = 0.1
    augment: bool = False
    patience: int | None = None
    checkpoint_every: int = 200
    backend: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.data, (str, os.PathLike)):
            raise SettingTypeError(Setting("data"), f" must be a name or a path, got {self.data!r}")
        self._set("data", os.fspath(self.data))
        self._one_of("model", MODELS)
        self._one_of("optimizer", OPTIMIZERS)
        self._one_of("schedule", SCHEDULES)
        self._one_of("loss", LOSSES)
        self._one_of("backend", [*backends.names(), backends.AUTO])
        if self.lr is None:
            self._set("lr", _DEFAULT_LR[self.optimizer])
        for name, minimum in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("checkpoint_every", 1)):
            self._integer(name, minimum)
        if self.patience is not None:
            self._integer("patience", 1)
        if not isinstance(self.augment, (bool, np.bool_)):
            raise SettingTypeError(Setting("augment"), f" must be True or False, got {self.augment!r}")
        self._set("augment", bool(self.augment))
        self._number("lr", "above 0", lambda value: value > 0)
        self._number("momentum", "at least 0 and below 1", lambda value: 0 <= value < 1)
        self._number("weight_decay", "at least 0", lambda value: value >= 0)
        self._number("validation_fraction", "at least 0 and below 1", lambda value: 0 <= value < 1)
        if self.patience is not None and self.validation_fraction == 0:
            raise SettingValueError(
                Setting("patience"), " needs validation images; set ", Setting("validation_fraction"), " above 0"
            )
        self._check_model_arguments()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _one_of(self, name: str, choices: Sequence[str] | Mapping[str, Any]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str):
            raise SettingTypeError(Setting(name), f" must be one of {', '.join(choices)}, got {value!r}")
        if value not in choices:
            near = difflib.get_close_matches(value.lower(), choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingValueError(Setting(name), f" must be one of {', '.join(choices)}, got {value!r}{hint}")

    def _integer(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise SettingTypeError(Setting(name), f" must be an integer, got {value!r}")
        if value < minimum:
            raise SettingValueError(Setting(name), f" must be at least {minimum}, got {value}")
        self._set(name, int(value))

    def _number(self, name: str, wanted: str, fits: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise SettingTypeError(Setting(name), f" must be a number, got {value!r}")
        number = float(value)
        if not (math.isfinite(number) and fits(number)):
            raise SettingValueError(Setting(name), f" must be {wanted}, got {value}")
        self._set(name, number)

    def _check_model_arguments(self) -> None:
        try:
            # A copy that is equal to what will be read back from a checkpoint.
            arguments = json.loads(json.dumps(dict(self.model_arguments), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise SettingTypeError(
                Setting("model_arguments"), f" must be a dict of JSON types, got {self.model_arguments!r} ({error})"
            ) from None
        try:
            inspect.signature(MODELS[self.model]).bind(**arguments)
        except TypeError as error:
            raise SettingValueError(Setting("model_arguments"), f" do not fit {self.model}: {error}") from None
        self._set("model_arguments", arguments)


# -- what is reported ------------------------------------------------------------------------------------------------


class Event:
    """Base of what :func:`fit` reports while it runs. Epochs and steps count from 1."""


@dataclass(frozen=True)
class Started(Event):
    """The data are loaded, the model is built, and the first step follows (none, if ``finished``).

    Attributes:
        model: its name.
        parameters: number of learned values.
        backend: name of the backend.
        train_images, validation_images, test_images: number of images.
        epochs, steps: epochs of the run, steps of an epoch.
        resumed: whether it goes on from a checkpoint.
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
    """A step is done. On a GPU many are not reported: to tell the loss, the device has to be waited for.

    Attributes:
        epoch: which one.
        step, steps: done in this epoch; in all of it.
        loss, accuracy: mean over the epoch's images so far, each taken before the step that it led to.
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
    """What a training run has come to.

    Attributes:
        model: with the kept weights, in evaluation mode; ``model.predict`` takes raw images.
        model_path: where it was written.
        backend: name of the backend.
        test_loss, test_accuracy: over the test images.
        confusion: (classes, classes), int64: test images of each class (row) by the class they were taken for (column).
        history: an :class:`EpochEnd` for each epoch.
        best_epoch: the one with the lowest validation loss; None without validation images.
        kept_epoch: the one whose weights the model has.
        stopped_early: whether ``patience`` ended it.
        was_finished: whether it was resumed when nothing was left to train.
        seconds: of all epochs together.
    """

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
        """Number of epochs that were run."""
        return len(self.history)


class Interrupted(KeyboardInterrupt):
    """A signal ended the run after the step that it came in; the checkpoint is saved.

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


# -- evaluation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a classifier does on labelled images.

    Attributes:
        loss: mean.
        accuracy: share of images whose most probable class is their label, from 0 to 1.
        confusion: (classes, classes), int64: images of each class (row) by the class they were taken for (column).
    """

    loss: float
    accuracy: float
    confusion: np.ndarray


def evaluate(
    model: Classifier, images: Any, labels: Any, *, batch_size: int = 256, loss: str = "cross_entropy"
) -> Evaluation:
    """Compare a classifier's answers with the labels, in evaluation mode.

    Args:
        model: its outputs are logits.
        images: N of them, as ``model.predict`` takes them.
        labels: (N,), integers from 0 to the number of classes - 1. N may be 0: loss and accuracy are NaN then.
        batch_size: images at a time, which bounds the memory.
        loss: a name of ``LOSSES``.

    Raises:
        ValueError: shapes that do not fit, a label that is no class, no batch, an unknown loss.
        TypeError: an argument of the wrong kind.
    """
    if loss not in LOSSES:
        raise ValueError(f"evaluate: loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, got {batch_size}")
    labels = to_numpy(labels)
    if labels.dtype.kind not in "iu" and labels.size:
        raise TypeError(f"evaluate: labels must be integers, got {labels.dtype}")
    prepared = model.prepare(images)
    if labels.shape != (len(prepared),):
        raise ValueError(f"evaluate: labels must have shape ({len(prepared)},), one an image, got {labels.shape}")
    classes = len(model.classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise ValueError(
            f"evaluate: labels[{wrong[0]}] is {labels[wrong[0]]}, but the model has {classes} classes "
            f"(0 to {classes - 1})"
        )
    labels = labels.astype(np.int64)
    total, predicted = 0.0, np.empty(len(labels), np.int64)
    with evaluating(model), no_grad():
        for start in range(0, len(labels), batch_size):
            part = slice(start, start + batch_size)
            logits = model(Tensor(prepared[part]))
            total += float(LOSSES[loss](logits, labels[part])) * len(labels[part])
            predicted[part] = logits.numpy().argmax(1)
    confusion = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    if not len(labels):
        return Evaluation(math.nan, math.nan, confusion)
    return Evaluation(total / len(labels), float(np.mean(predicted == labels)), confusion)


# -- training --------------------------------------------------------------------------------------------------------


def fit(
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    on_event: Callable[[Event], None] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Result:
    """Train a model, or go on training it, and write it into the run directory ``out``.

    The first SIGINT (Ctrl-C) or SIGTERM lets the current step end, saves a checkpoint and raises :class:`Interrupted`;
    the second has its usual effect. That is so in the main thread only; Python allows no handlers in others.

    On a GPU the training images are uploaded once, if they take no more than half of the memory that is free; in each
    epoch, the order in which they come (and how they are augmented). With ``loss='cross_entropy'`` a full batch is a
    launch of one CUDA graph (:func:`gpuconv.capture`), which gathers the batch and counts the right answers, too; the
    shorter last one of an epoch is not. Losses are read back ten times a second, and before a checkpoint. If the step
    cannot be captured, a line of the logger ``gpuconv.train`` says why, and each step is run launch by launch.

    Args:
        config: what to train, and how.
        out: the run directory; made if it is not there.
        resume: go on from the checkpoint in ``out``; start from the beginning if there is none yet. With the settings
            of the run, whose data may have moved, this gives bit for bit what the run would have given without the
            interruption; if nothing is left to train, only the model is written again. Those in :data:`MAY_CHANGE`
            may be others:

            - ``epochs``, at least those that have begun. Steps that are still to come have the learning rate that they
              have in a run of so many epochs. Metrics are continued; the model of a finished run stays until the run
              ends again.
            - ``patience``: a run that it has stopped goes on if it is larger. Epochs before count, too.
            - ``checkpoint_every``.
            - ``backend``: 'auto' is the one that the run is on. Another one goes on from the same numbers, and rounds
              otherwise.
        on_event: is called with each :class:`Event`, in this thread.
        data_dir: where downloaded data are kept, see :func:`gpuconv.data.load_dataset`.

    Raises:
        FileExistsError: ``out`` holds a run, and ``resume`` is not set.
        FileError: ``out`` holds a checkpoint that is broken or, :class:`OtherRun`, has other settings; it is left as it
            is.
        Interrupted, TrainingDiverged: see there.
        OSError: a file cannot be written (disk full, no permission), or another process is training in ``out``. What
            was saved before is still there.
        ValueError, DataError, ConnectionError, BackendUnavailable: the model, the data or the backend is not to be had,
            or more epochs than ``epochs`` have begun.
    """
    out = Path(out)
    if not resume:
        _refuse_existing(out)
    dataset = load_dataset(config.data, cache_dir=data_dir)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out), _Signals() as signals, _kept_generator(), np.errstate(over="ignore", invalid="ignore"):
        for name in (CHECKPOINT, METRICS, MODEL):
            storage.remove_leftovers(out / name)
        checkpoint = None
        if resume and (out / CHECKPOINT).exists():
            checkpoint = _Checkpoint.read(out / CHECKPOINT)
            checkpoint.check_goes_on_with(config, dataset)
        else:
            # Also on resume: without a checkpoint, what else is there would be lost.
            _refuse_existing(out)
        name = config.backend
        if name == backends.AUTO:
            name = checkpoint.backend if checkpoint else backends.current().name
        with backends.use_backend(name) as backend:
            run = _Run(config, out, dataset, backend, signals, on_event or (lambda event: None))
            if checkpoint:
                run.restore(checkpoint)
            return run.train()


def saved_config(out: str | os.PathLike[str]) -> TrainConfig | None:
    """The configuration of the run in the directory ``out``; None if it has no checkpoint.

    Raises:
        FileError: the checkpoint is broken.
    """
    path = Path(out) / CHECKPOINT
    return TrainConfig(**_Checkpoint.read(path).content["config"]) if path.exists() else None


def _refuse_existing(out: Path) -> None:
    for name in (CHECKPOINT, MODEL, METRICS):
        if (out / name).exists():
            hint = "resume it or " if name == CHECKPOINT else ""
            raise FileExistsError(f"{out}: already holds a run ({name}); {hint}give another folder")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other processes from training in the same folder. The lock is the system's and ends with the process."""
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


class _Signals:
    """Context manager: inside it the first SIGINT or SIGTERM is noted, and gives its handler back for the second."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Who ignores a signal (nohup, a shell's background job) wants it ignored; None is not from Python.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

    def __exit__(self, *exc_info: object) -> None:
        self._restore()


@contextmanager
def _kept_generator() -> Iterator[None]:
    """Give the default generator back as it was: a training run seeds its own numbers."""
    generator = default_generator().bit_generator
    state = generator.state
    try:
        yield
    finally:
        generator.state = state


@dataclass(frozen=True)
class _Checkpoint:
    """The content of a checkpoint; see ``_Run.save`` for what it is made of."""

    path: Path
    tensors: dict[str, np.ndarray]
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> _Checkpoint:
        return cls(path, *storage.load_tensors(path, _CHECKPOINT_KIND))

    @property
    def backend(self) -> str:
        return str(self.content["backend"])

    def check_goes_on_with(self, config: TrainConfig, dataset: Dataset) -> None:
        """Refuse settings that are not the run's, or that ask for less than has been done."""
        # A checkpoint from before there was augmentation has no word of it.
        theirs, ours = {"augment": False, **self.content["config"]}, asdict(config)
        parts: list[str] = []
        for name in {**ours, **theirs}:
            # The data are compared by content, below.
            if name not in (*MAY_CHANGE, "data") and theirs.get(name) != ours.get(name):
                parts += [", ", Setting(name), f" is {theirs.get(name)!r} there and {ours.get(name)!r} here"]
        if self.content["data"] != _fingerprint(dataset):
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
        return {name[len(prefix) :]: array for name, array in self.tensors.items() if name.startswith(prefix)}


def _lasting(data: str) -> str:
    """The data set's name, or the path of its folder, as any process finds it again."""
    return data if data in DATASETS else os.path.abspath(os.path.expanduser(data))


def _fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256(json.dumps(dataset.classes).encode())
    for array in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class _Run:
    """A training run, between two steps: all of its state that changes is what :meth:`save` saves."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        dataset: Dataset,
        backend: backends.Backend,
        signals: _Signals,
        report: Callable[[Event], None],
    ):
        self.config, self.out, self.dataset = config, out, dataset
        self.backend, self.signals, self.report = backend, signals, report
        self.fingerprint = _fingerprint(dataset)

        manual_seed(config.seed)
        self.model = _build(config, dataset).to(backend)
        self.optimizer = OPTIMIZERS[config.optimizer](config, self.model)
        self.optimizer.schedule = self._lr

        training, validation = split(len(dataset.train_images), config.validation_fraction, config.seed)
        transform = InputTransform.fit(dataset.train_images[training], self.model.input_shape[1:])
        self.model.input_transform = transform
        self.form = self.model.form = ImageForm.of(dataset, _lasting(config.data))
        self.feed = Feed(
            dataset.train_images[training],
            dataset.train_labels[training],
            transform,
            backend,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=config.augment,
        )
        self.validation_images = transform(dataset.train_images[validation])
        self.validation_labels = dataset.train_labels[validation]
        self.steps = batch_count(len(training), config.batch_size)

        self.step = 0  # steps done in the current epoch; all of them, while it has not been validated
        self.loss_sum, self.correct = 0.0, 0  # over the images of those steps
        self.seconds = 0.0  # spent on them
        self.history: list[EpochEnd] = []
        # Weights of the best epoch. Without patience, too, which may be set when the run goes on.
        self.best: dict[str, np.ndarray] | None = None
        self.resumed = False
        self.changed = True  # whether the settings are others than those of the checkpoint

        #: On a GPU, what a full batch takes instead of _train_step; elsewhere, and if it cannot be captured, None.
        captured = capture(self._whole_step) if config.loss == "cross_entropy" else None
        self.captured = captured if isinstance(captured, CapturedStep) else None
        self.unread = 0  # captured steps whose loss and right answers have not been read back
        self.next_read = 0.0

    # -- state -------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint."""
        weights = self.model.state_dict()
        optimizer = self.optimizer.state_dict()
        scalars = {name: optimizer.pop(name) for name in ("steps", "groups")}
        parts = {"model.": weights, "optimizer.": optimizer, "best.": self.best or {}}
        storage.save_tensors(
            self.out / CHECKPOINT,
            {prefix + name: array for prefix, part in parts.items() for name, array in part.items()},
            _CHECKPOINT_KIND,
            {
                "config": asdict(self.config),
                "data": self.fingerprint,
                "form": self.form.to_dict(),
                "backend": self.backend.name,
                "optimizer": scalars,
                "generator": default_generator().bit_generator.state,
                "step": self.step,
                "loss_sum": self.loss_sum,
                "correct": self.correct,
                "seconds": self.seconds,
                "history": [asdict(epoch) for epoch in self.history],
            },
        )
        self.report(CheckpointSaved(self.out / CHECKPOINT, len(self.history), self.step))

    def restore(self, checkpoint: _Checkpoint) -> None:
        """Take over what :meth:`save` has saved."""
        content = checkpoint.content
        try:
            self._restore_source(content.get("form"))
            self.model.load_state_dict(checkpoint.part("model."))
            self.optimizer.load_state_dict({**checkpoint.part("optimizer."), **content["optimizer"]})
            default_generator().bit_generator.state = content["generator"]
            self.best = checkpoint.part("best.") or None
            self.step, self.correct = int(content["step"]), int(content["correct"])
            self.loss_sum, self.seconds = float(content["loss_sum"]), float(content["seconds"])
            self.history = [EpochEnd(**epoch) for epoch in content["history"]]
            self.changed = (content["config"], content["backend"]) != (asdict(self.config), self.backend.name)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{checkpoint.path}: not the checkpoint of such a run ({error})") from None
        self.resumed = True

    def _restore_source(self, form: Mapping[str, Any] | None) -> None:
        """The model's bytes are those of an uninterrupted run, unless the data are no longer where it began."""
        if form is None:
            return  # a checkpoint from before models had a form
        source = ImageForm.from_dict(form).source
        if source is not None and (source in DATASETS or os.path.isdir(source)):
            self.form = self.model.form = replace(self.form, source=source)

    def _write_metrics(self) -> None:
        # As a whole, so that no line is ever missing, cut short or there twice; an epoch's line is a few dozen bytes.
        lines = [json.dumps(asdict(epoch), allow_nan=False) + "\n" for epoch in self.history]
        storage.write_atomically(self.out / METRICS, "".join(lines).encode())

    @property
    def best_epoch(self) -> int | None:
        losses = [epoch.validation_loss for epoch in self.history if epoch.validation_loss is not None]
        return 1 + losses.index(min(losses)) if losses else None

    @property
    def stopped_early(self) -> bool:
        if self.config.patience is None or self.best_epoch is None:
            return False
        return len(self.history) - self.best_epoch >= self.config.patience

    @property
    def finished(self) -> bool:
        return len(self.history) == self.config.epochs or self.stopped_early

    # -- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> Result:
        was_finished = self.finished
        self.report(
            Started(
                model=self.config.model,
                parameters=sum(parameter.numel() for parameter in self.model.parameters()),
                backend=self.backend.name,
                train_images=len(self.feed),
                validation_images=len(self.validation_images),
                test_images=len(self.dataset.test_images),
                epochs=self.config.epochs,
                steps=self.steps,
                resumed=self.resumed,
                epochs_done=len(self.history),
                steps_done=self.step,
                finished=was_finished,
            )
        )
        if self.changed:
            # A folder that cannot be written, or a full disk, shows before hours of training; and whoever resumes a run
            # that goes on longer need not say so again.
            self.save()
        self._write_metrics()
        while not self.finished:
            self._train_epoch()
            self._end_epoch()
            self._stop_if_asked()
        if self.stopped_early:
            assert self.best_epoch is not None
            assert self.config.patience is not None
            self.report(EarlyStop(len(self.history), self.best_epoch, self.config.patience))
        return self._finish(was_finished)

    def _train_epoch(self) -> None:
        before, started, images = self.seconds, time.perf_counter(), 0
        self.feed.begin(len(self.history), self.step)
        for step in range(self.step, self.steps):
            size = min(self.config.batch_size, len(self.feed) - step * self.config.batch_size)
            if self.captured is None or size < self.config.batch_size or not self._captured_step(step):
                self._train_step(self.feed.inputs(step), size)
            images += size
            # At the end of the epoch there will be another one at once.
            due = self.optimizer.steps % self.config.checkpoint_every == 0 and self.step < self.steps
            if self.unread:
                last, now = self.step == self.steps, time.perf_counter()
                if not (due or last or self.signals.received is not None or now >= self.next_read):
                    continue
                self._read_back()
                self.next_read = now + _READ_EVERY
            spent = time.perf_counter() - started
            self.seconds = before + spent
            seen = min(self.step * self.config.batch_size, len(self.feed))
            self.report(
                BatchEnd(
                    epoch=len(self.history) + 1,
                    step=self.step,
                    steps=self.steps,
                    loss=self.loss_sum / seen,
                    accuracy=self.correct / seen,
                    images_per_second=images / max(spent, 1e-9),
                )
            )
            if due or self.signals.received is not None:
                self._check_weights()
                self.save()
                self._stop_if_asked()

    def _train_step(self, inputs: tuple[Any, ...], size: int) -> None:
        self._read_back()
        images, labels = self.feed.batch(*inputs)
        logits = self.model(Tensor(images))
        loss = LOSSES[self.config.loss](logits, labels)
        value = float(loss)
        if not math.isfinite(value):
            if all(parameter.grad is None for parameter in self.model.parameters()):
                loss.backward()
            raise self._diverged(self.step + 1, f"the loss is {value}")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.loss_sum += value * size
        self.correct += int(self.backend.count_correct(logits.data, labels))

    def _whole_step(self, *inputs: Any) -> None:
        """What is captured: nothing in it waits for the device."""
        images, labels = self.feed.next_batch(*inputs)
        logits = self.model(Tensor(images))
        loss = LOSSES[self.config.loss](logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.feed.log(logits.data, labels, loss.data)

    def _captured_step(self, step: int) -> bool:
        """A step whose loss is read back later; False if nothing was done, because it cannot be captured."""
        assert self.captured is not None
        try:
            self.captured(*self.feed.next_inputs(step))
        except RuntimeError as error:
            if self.captured.captured:
                raise
            self.captured = None
            _logger.warning("training goes on without a CUDA graph, step by step: %s", error)
            return False
        self.unread += 1
        self.step += 1
        return True

    def _read_back(self) -> None:
        """Add up what captured steps have left on the device, in their order, as a step on the host does."""
        unread, self.unread = self.unread, 0
        if not unread:
            return
        losses, correct = self.feed.logged(self.step - unread, self.step)
        for number, value in enumerate(losses.tolist()):
            if not math.isfinite(value):
                raise self._diverged(self.step - unread + number + 1, f"the loss is {value}")
            self.loss_sum += value * self.config.batch_size
        self.correct += int(correct.sum())

    def _lr(self, done: int) -> float:
        """Learning rate of the step behind ``done`` others."""
        assert self.config.lr is not None
        return self.config.lr * SCHEDULES[self.config.schedule](done / (self.steps * self.config.epochs))

    def _end_epoch(self) -> None:
        self._check_weights()
        started = time.perf_counter()
        loss = accuracy = None
        if len(self.validation_labels):
            validation = evaluate(self.model, self.validation_images, self.validation_labels, loss=self.config.loss)
            loss, accuracy = validation.loss, validation.accuracy
            if not math.isfinite(loss):
                raise self._diverged(self.step, f"the validation loss is {loss}")
        epoch = EpochEnd(
            epoch=len(self.history) + 1,
            train_loss=self.loss_sum / len(self.feed),
            train_accuracy=self.correct / len(self.feed),
            validation_loss=loss,
            validation_accuracy=accuracy,
            lr=self.optimizer.lr,
            seconds=round(self.seconds + time.perf_counter() - started, 3),
        )
        self.history.append(epoch)
        if self.best_epoch == epoch.epoch:
            self.best = self.model.state_dict()
        self.step, self.loss_sum, self.correct, self.seconds = 0, 0.0, 0, 0.0
        self.save()
        # After the checkpoint, which has the lines too: a run that is resumed writes what is missing here.
        self._write_metrics()
        self.report(epoch)

    def _finish(self, was_finished: bool) -> Result:
        kept_epoch = len(self.history)
        if self.config.patience is not None and self.best is not None and self.best_epoch is not None:
            self.model.load_state_dict(self.best)
            kept_epoch = self.best_epoch
        self.model.eval()
        test = evaluate(self.model, self.dataset.test_images, self.dataset.test_labels, loss=self.config.loss)
        path = self.out / MODEL
        storage.save(self.model, path)
        seconds = sum(epoch.seconds for epoch in self.history)
        self.report(Finished(test.loss, test.accuracy, seconds, self.best_epoch, kept_epoch, path))
        self._stop_if_asked()
        return Result(
            model=self.model,
            model_path=path,
            backend=self.backend.name,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            confusion=test.confusion,
            history=list(self.history),
            best_epoch=self.best_epoch,
            kept_epoch=kept_epoch,
            stopped_early=self.stopped_early,
            was_finished=was_finished,
            seconds=seconds,
        )

    def _stop_if_asked(self) -> None:
        number = self.signals.received
        if number is None:
            return
        where = f"after epoch {len(self.history)} of {self.config.epochs}"
        if self.step:
            where = f"in epoch {len(self.history) + 1} of {self.config.epochs}, after step {self.step} of {self.steps}"
        raise Interrupted(f"interrupted {where}; saved in {self.out / CHECKPOINT}", number, self.out / CHECKPOINT)

    def _check_weights(self) -> None:
        """Before they are saved: the loss only shows at the next step that the last one has spoiled them."""
        for name, parameter in self.model.named_parameters():
            if not np.isfinite(parameter.numpy()).all():
                raise self._diverged(self.step, f"{name} holds values that are not finite")

    def _diverged(self, step: int, what: str) -> TrainingDiverged:
        largest = {
            name: float(abs(parameter.grad.data).max())
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        gradient = "no gradient has been computed yet"
        if largest:
            # NaN is the largest of all: it is where the trouble shows.
            name, value = max(largest.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
            gradient = f"the largest of the last gradients is that of {name}, {value:.3g}"
        return TrainingDiverged(
            f"training diverged in epoch {len(self.history) + 1}, step {step} of {self.steps}: {what}; {gradient}. A "
            "lower ",
            Setting("lr"),
            f" may help (it was {self.optimizer.lr:.3g}). The last good checkpoint is kept in {self.out}",
        )


def _build(config: TrainConfig, dataset: Dataset) -> Classifier:
    classes = len(dataset.classes)
    if config.model_arguments.get("num_classes", classes) != classes:
        raise SettingValueError(
            Setting("model_arguments"),
            f": num_classes is {config.model_arguments['num_classes']}, but ",
            Setting("data"),
            f" {config.data!r} have {classes} classes",
        )
    model = build(config.model, **{**config.model_arguments, "num_classes": classes})
    model.classes = dataset.classes
    return model
