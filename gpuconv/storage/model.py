"""Models in files: written, and rebuilt from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuconv.dtypes import kind_of
from gpuconv.storage.tensors import FileError, is_ours, load_any, load_tensors, save_state, save_tensors

if TYPE_CHECKING:
    from gpuconv.models import Classifier

__all__ = ["load", "load_model", "save"]

_MODEL = "gpuconv-model"


def save(what: Classifier | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a model, or a state, to a safetensors file.

    Args:
        what: a model of ``gpuconv.models``, with all that :func:`load` needs to rebuild it; or named arrays, as
            ``model.state_dict()`` of any network gives them, which other libraries read, too.
        path: the file.

    Raises:
        TypeError: neither of these.
        OSError: the file cannot be written; what was there before is still there.
    """
    from gpuconv.models import MODELS

    if isinstance(what, Mapping):
        save_state(path, what)
        return
    model, names = what, {cls: name for name, cls in MODELS.items()}
    if type(model) not in names:
        raise TypeError(
            f"save: a model must be one of gpuconv.models ({', '.join(cls.__name__ for cls in names)}), got "
            f"{type(model).__name__}; of others save model.state_dict()"
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


def load(path: str | os.PathLike[str]) -> Any:
    """What a file holds: a model that :func:`save` wrote, or weights of any library.

    Files of PyTorch are read without PyTorch, and without running any code in them::

        model.load_state_dict(gpuconv.load("resnet18.pth"))

    Args:
        path: a model's file, or a run directory of ``gpuconv train``, which holds ``model.safetensors``; or a
            safetensors file, or one of ``torch.save`` (.pt, .pth), of another library.

    Returns:
        A model of ``gpuconv.models`` in evaluation mode, whose ``predict`` takes raw images. Of other files arrays by
        their names; or, of PyTorch's, whatever containers they hold, with arrays for tensors. bfloat16 is that of
        ``ml_dtypes``; without it, it becomes float32.

    Raises:
        FileError: the file is missing or broken, or holds something that is neither an array nor a plain container;
            the message names it.
    """
    path = Path(path)
    if path.is_dir() or is_ours(path):
        return load_model(path)
    return load_any(path)


def load_model(path: str | os.PathLike[str]) -> Classifier:
    """Rebuild a model from what :func:`save` wrote, in evaluation mode; ``predict`` takes raw images.

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
        if transform is not None:
            model.input_transform = InputTransform.from_dict(transform)
            # A network may have been trained on other sizes than its usual one.
            model.input_shape = (model.input_shape[0], *model.input_transform.size)
        if "form" in content:
            model.form = None if content["form"] is None else ImageForm.from_dict(content["form"])
        elif model.input_transform is not None and model.input_transform.size == (32, 32):
            model.form = MNIST_FORM  # the file is from before models had a form, and pictures were read in MNIST's
        types = {array.dtype for array in tensors.values() if kind_of(array.dtype) == "f"}
        if len(types) == 1:
            model.to(dtype=types.pop())
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path}: does not describe a model that this version knows ({error})") from None
    model.eval()
    return model
