"""What is to be explored: a model with all that a page says of it, from files of several kinds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import onnx, storage
from gpuconv.data import DataError, ImageForm, InputTransform, load_dataset, read_picture
from gpuconv.data.form import MNIST_FORM
from gpuconv.models import MODELS, Classifier, build
from gpuconv.names import did_you_mean
from gpuconv.nn import Module
from gpuconv.storage import FileError
from gpuconv.training import EPOCHS, METRICS, MODEL

__all__ = ["Epoch", "Subject", "opened", "subject_of"]

_DIGITS = 10
#: Of ImageNet's training images: what torchvision's weights expect.
_IMAGENET = InputTransform((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Epoch:
    """The weights that a run had after an epoch, 0 for those that it began with; its accuracy, from 0 to 1."""

    number: int
    state: dict[str, np.ndarray]
    accuracy: float | None = None


@dataclass
class Subject:
    """What a page is about.

    Attributes:
        name: title of the page.
        model: takes (1, *input_shape), returns (1, classes).
        input_shape: (channels, height, width).
        transform: from bytes to the input.
        form: of the pictures.
        classes: names; empty for numbers.
        epochs: of the run, oldest first; empty if it kept none.
        samples: pictures in this form, uint8, with what they show.
        notes: sentences for whoever looks at the page.
    """

    name: str
    model: Module
    input_shape: tuple[int, int, int]
    transform: InputTransform
    form: ImageForm
    classes: tuple[str, ...] = ()
    epochs: list[Epoch] = field(default_factory=list)
    samples: list[tuple[np.ndarray, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def opened(path: str | os.PathLike[str], network: str | None = None) -> Subject:
    """What is in a run directory, a model's file, an ONNX file, or a file of weights; or a new model by its name.

    Args:
        path: of the file or folder, or a name of ``gpuconv.models``.
        network: name of the model whose weights the file holds, where it holds nothing else.

    Raises:
        FileError: it is missing, broken, or not a classifier of images.
        ValueError: an unknown name.
        ImportError: an ONNX file, and the ``onnx`` package is missing.
    """
    where = Path(path)
    if not where.exists() and os.fspath(path) in MODELS:
        return subject_of(build(os.fspath(path)).eval(), name=os.fspath(path), trained=False)
    if not where.exists():
        near = did_you_mean(where, MODELS)
        raise FileError(f"{where}: no such file, and no model of that name; there are {', '.join(MODELS)}{near}")
    if where.suffix == ".onnx":
        return _of_onnx(where)
    if where.is_dir():
        return _of_run(where)
    if network is not None:
        return subject_of(_filled(network, where), name=f"{where.name} ({network})")
    model = storage.load(where)
    if not isinstance(model, Classifier):
        raise FileError(f"{where}: holds weights and no network; say which network they are for (--network NAME)")
    return subject_of(model, name=where.name)


def _of_onnx(path: Path) -> Subject:
    model = onnx.load(path)
    shapes = [value.shape for value in model.inputs]
    if len(shapes) != 1 or shapes[0] is None or len(shapes[0]) != 4:
        raise FileError(f"{path}: takes {shapes}; the page shows networks of one picture, (N, C, H, W)")
    sizes = shapes[0][1:]
    if not all([isinstance(size, int) for size in sizes]):
        raise FileError(f"{path}: does not say the size of its pictures, but {sizes}")
    return subject_of(model, name=path.name, input_shape=[int(size) for size in sizes if size is not None])


def _of_run(folder: Path) -> Subject:
    """A run's model, or if it has not finished its newest epoch; with the pictures and epochs that it kept."""
    kept = sorted((folder / EPOCHS).glob("*.safetensors"))
    if (folder / MODEL).exists() or not kept:
        model = storage.load_model(folder)
        notes = []
    else:
        model = storage.load_model(kept[-1])
        notes = [f"The training has not finished; this is epoch {int(kept[-1].stem)}."]
    subject = subject_of(model, name=folder.resolve().name)
    subject.notes += notes
    accuracies = _accuracies(folder / METRICS)
    for file in kept:
        number = int(file.stem)
        subject.epochs.append(Epoch(number, storage.load_model(file).state_dict(), accuracies.get(number)))
    subject.samples = _samples_of(folder / "samples", subject.form) or subject.samples
    return subject


def _accuracies(path: Path) -> dict[int, float]:
    """Of each epoch on the images that were held out; none of what cannot be read, for the page does without."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return {row["epoch"]: row["validation_accuracy"] for row in rows if row["validation_accuracy"] is not None}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _filled(network: str, path: Path) -> Classifier:
    """A model of the table with weights of any library, for as many classes as these have."""
    state = storage.load_any(path)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all([hasattr(value, "shape") for value in state.values()]):
        raise FileError(f"{path}: holds no state_dict")
    model = build(network)
    last = [name for name, array in model.state_dict().items() if array.ndim > 1][-1]
    try:
        if len(state[last]) != len(model.classes):
            model = build(network, num_classes=len(state[last]))
        model.load_state_dict(state)
    except (KeyError, ValueError, TypeError) as error:
        raise FileError(f"{path}: these are no weights of {network}: {error}") from None
    return model.eval()


def _samples_of(folder: Path, form: ImageForm) -> list[tuple[np.ndarray, str]]:
    """The pictures that a run left beside its model; those that cannot be read are left out."""
    found = []
    for file in sorted(folder.glob("*.png"))[:_DIGITS]:
        try:
            found.append((read_picture(file, form), file.stem))
        except (DataError, ImportError):
            continue
    return found


def subject_of(
    model: Module,
    *,
    name: str | None = None,
    input_shape: Sequence[int] | None = None,
    transform: InputTransform | None = None,
    classes: Sequence[str] | None = None,
    trained: bool = True,
) -> Subject:
    """A model with what it knows of its pictures; what it does not know is what its input's shape suggests.

    Raises:
        ValueError: it does not say the shape of its input, or that is none of pictures.
    """
    given: Any = input_shape or getattr(model, "input_shape", ())
    shape = tuple(given)
    if len(shape) != 3 or shape[0] not in (1, 3):
        what = f"has shape {shape}" if shape else "is not known"
        raise ValueError(
            f"explore: the shape of the model's input {what}; give input_shape, (channels, height, width) of one "
            "picture in grey (1 channel) or colour (3)"
        )
    known, form = transform or getattr(model, "input_transform", None), getattr(model, "form", None)
    notes = [] if trained else ["The weights are random: this network is not trained."]
    digits = shape in ((1, 28, 28), (1, 32, 32))
    if known is None:
        known = _guessed(shape)
        if trained:
            notes.append(
                f"How pictures are standardised is not known; taken: mean {known.mean}, deviation {known.std}."
            )
    if form is None:
        form = MNIST_FORM if digits else ImageForm((shape[1], shape[2]), channels=shape[0], cut=True)
    subject = Subject(name or type(model).__name__, model, (shape[0], shape[1], shape[2]), known, form)
    subject.classes = tuple(classes if classes is not None else getattr(model, "classes", ()))
    subject.notes = notes
    if form.digits:
        subject.samples = _digits(form)
    return subject


def _guessed(shape: tuple[int, ...]) -> InputTransform:
    size = (shape[1], shape[2])
    if shape[0] == 3:
        return InputTransform(size, _IMAGENET.mean, _IMAGENET.std)
    if size in ((28, 28), (32, 32)):
        return InputTransform.fit(load_dataset("mnist-sample").train_images, size)
    return InputTransform(size, 0.0, 1.0)


def _digits(form: ImageForm) -> list[tuple[np.ndarray, str]]:
    """A bundled digit of each kind."""
    data = load_dataset("mnist-sample")
    places = [int(np.flatnonzero(data.test_labels == digit)[0]) for digit in range(_DIGITS)]
    images = data.test_images if form.polarity != "dark on light" else 255 - data.test_images
    return [(images[place], str(digit)) for digit, place in enumerate(places)]
