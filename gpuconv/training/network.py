"""The network of a run: what it takes before it is built, how it is built, and weights to start from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpuconv import backends, nn, storage
from gpuconv.backends import Backend
from gpuconv.data import Dataset, InputTransform
from gpuconv.memory import available_memory
from gpuconv.models import Classifier, build
from gpuconv.nn import init
from gpuconv.storage import FileError
from gpuconv.training.config import Setting, SettingValueError, TrainConfig

#: Means and deviations of ImageNet's colours, with which torchvision's weights were trained.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Arrays of an optimizer for each parameter.
_OF_OPTIMIZER = {"sgd": 1, "adam": 2}
_BYTES = 4  # of a float32
#: Keys under which training scripts keep a state_dict in a file.
_INSIDE = ("state_dict", "model_state_dict", "model", "net")


@dataclass(frozen=True)
class Plan:
    """What a network will be, known before it takes memory.

    Attributes:
        input_shape: (channels, height, width) of the images that it is made for.
        parameters: how many.
    """

    input_shape: tuple[int, int, int]
    parameters: int


def plan(config: TrainConfig) -> Plan:
    """Look at a network without building it.

    Raises:
        ValueError: arguments that it does not take; or its parameters, their gradients and what the optimizer keeps do
            not fit into the memory of the host.
    """
    with init.shapes_only():
        model = build(config.model, **config.model_arguments)
    count = sum(math.prod(parameter.shape) for parameter in model.parameters())
    _check_memory(
        _of_parameters(model, config),
        available_memory(),
        f" {config.model!r} has {count:,} parameters, which with their gradients and the optimizer's arrays",
    )
    return Plan(model.input_shape, count)


def build_network(config: TrainConfig, dataset: Dataset, backend: Backend) -> Classifier:
    """The network of a run, on the host, with its first weights.

    Raises:
        ValueError: the data have another number of classes; it does not take images of this size; it is no classifier;
            or a step does not fit into memory.
    """
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
    values = _take_size(model, config, dataset)
    # Each layer's output stays until the gradients have come back through it; a quarter is saved by fused layers
    # (measured on ResNet-18).
    batch = min(config.batch_size, len(dataset.train_images))
    needed = _BYTES * values * batch * 3 // 4 + _of_parameters(model, config)
    height, width = model.input_shape[1:]
    free = backend.free_memory()
    _check_memory(
        needed,
        available_memory() if free is None else free,
        f" {config.model!r}: parameters and the layers' outputs for {batch:,} images of {height}x{width}",
        "; a smaller ",
        Setting("batch_size"),
        " needs less",
    )
    return model


def _take_size(model: Classifier, config: TrainConfig, dataset: Dataset) -> int:
    """Set the size of the images that a network takes, and return how many values its layers give for one of them."""
    own = model.input_shape[1:]
    if config.image_size is not None:
        sizes = [(config.image_size, config.image_size)]
        if max(dataset.size) > config.image_size:
            raise SettingValueError(
                Setting("image_size"), f" is {config.image_size}, but the images of ", Setting("data"),
                f" {config.data!r} are {dataset.size[0]}x{dataset.size[1]}; they can be padded, not cut",
            )  # fmt: skip
    else:
        # A network that pools what it sees takes small images as they are; another one gets them padded.
        sizes = [dataset.size, own]
    for size in sizes:
        try:
            with backends.use_backend("numpy"):
                layers = model.summary((model.input_shape[0], *size)).layers
        except ValueError as error:
            reason = str(error)
            continue
        if layers[-1].output_shape != (len(dataset.classes),):
            raise SettingValueError(
                Setting("model"), f" {config.model!r} gives {'x'.join(map(str, layers[-1].output_shape))} values for "
                "an image, not one a class; train it with nn and optim",
            )  # fmt: skip
        model.input_shape = (model.input_shape[0], *size)
        return sum(math.prod(layer.output_shape) for layer in layers)
    height, width = sizes[-1]
    raise SettingValueError(
        Setting("model"), f" {config.model!r} does not take images of {height}x{width}; it is made for "
        f"{own[0]}x{own[1]} ({reason})",
    )  # fmt: skip


def _of_parameters(model: Classifier, config: TrainConfig) -> int:
    """Bytes of parameters, their gradients, and what the optimizer keeps."""
    # Python's integers: those of an absurd network do not overflow.
    count = sum(math.prod(parameter.shape) for parameter in model.parameters())
    return _BYTES * count * (2 + _OF_OPTIMIZER[config.optimizer])


def _check_memory(needed: int, free: int | None, what: str, *hint: str) -> None:
    if free is not None and needed > free:
        message = f"{what} take {_gigabytes(needed)}, but {_gigabytes(free)} of memory are free"
        raise SettingValueError(Setting("model"), message, *hint)


def _gigabytes(count: int) -> str:
    if count < 10**9:
        return f"{count / 1e6:,.1f} MB"
    return f"{count / 1e9:,.1f} GB" if count < 10**15 else f"{count // 10**9:,} GB"


# -- weights to start from -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """What came of a file of weights: what was left out, and how its images were standardised, if that is known."""

    left_out: tuple[str, ...]
    transform: InputTransform | None


def load_weights(model: Classifier, path: str | os.PathLike[str]) -> Loaded:
    """Give a network the weights of a file; those of a last layer of another number of classes are left out.

    Args:
        model: on the host.
        path: what :func:`gpuconv.load` reads: a model or run directory of gpuconv, or a ``state_dict`` in a safetensors
            or PyTorch file, also one below a key such as ``"state_dict"``.

    Raises:
        FileError: it cannot be read, or holds weights of another network; the message lists what does not fit.
    """
    content = storage.load(path)
    transform: InputTransform | None = None
    if isinstance(content, nn.Module):
        transform = getattr(content, "input_transform", None)
        content = content.state_dict()
    if isinstance(content, Mapping):
        content = next((content[key] for key in _INSIDE if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise FileError(f"{path}: holds a {type(content).__name__}, not the weights of a network by their names")
    state = {str(name).removeprefix("module."): value for name, value in content.items()}
    own = model.state_dict()
    last = [name for name, module in model.named_modules() if module._parameters][-1] + "."
    left_out = [
        name for name in own
        if name.startswith(last) and name in state and getattr(state[name], "shape", None) != own[name].shape
    ]  # fmt: skip
    # The heads that help GoogLeNet to train are not part of what it is.
    left_out += [name for name in sorted(state) if name.startswith("aux") and name not in own]
    state = {name: value for name, value in state.items() if name not in left_out}
    # Files of old have no count of batches.
    own_names = [name for name in own if name in left_out or name.endswith("num_batches_tracked")]
    try:
        model.load_state_dict({**{name: own[name] for name in own_names}, **state})
    except (ValueError, TypeError) as error:
        reason = str(error).removeprefix("load_state_dict: ")
        raise FileError(f"{path}: not the weights of {_known_as(model)}: {_shortened(reason)}") from None
    return Loaded(tuple(left_out), transform)


def transform_of(model: Classifier, images: Any, loaded: Loaded | None) -> InputTransform:
    """How images become inputs: as those that the weights learned from, if there are any; else by their own means.

    Of weights of another library ImageNet's means are assumed, where the images have colours.
    """
    channels, size = model.input_shape[0], model.input_shape[1:]
    if loaded is not None and loaded.transform is not None and loaded.transform.channels == channels:
        return replace(loaded.transform, size=size)
    if loaded is not None and channels == 3:
        return InputTransform(size, *IMAGENET)
    return InputTransform.fit(images, size)


def _known_as(model: Classifier) -> str:
    from gpuconv.models import MODELS

    return next((name for name, cls in MODELS.items() if cls is type(model)), type(model).__name__)


def _shortened(reason: str) -> str:
    faults = reason.split("; ")
    return "; ".join(faults[:6]) + (f"; and {len(faults) - 6:,} more" if len(faults) > 6 else "")


def weights_file(path: str) -> str:
    """The path of a file of weights, if it is there.

    Raises:
        FileError: it is not.
    """
    expanded = Path(os.path.expanduser(path))
    if not expanded.exists():
        raise FileError(f"{path}: no such file")
    return str(expanded)
