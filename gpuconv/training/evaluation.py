"""Loss, accuracy and confusion matrix of a classifier."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor, no_grad, to_numpy
from gpuconv.data import Ahead, Pictures
from gpuconv.models import Classifier
from gpuconv.nn.module import evaluating
from gpuconv.training.config import LOSSES

#: Values of the inputs of a batch, at most, unless the number of images is given.
_VALUES = 1 << 22


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The results of a classifier on labelled images.

    Attributes:
        loss: mean.
        accuracy: share of images whose most probable class is their label, from 0 to 1.
        confusion: (classes, classes), int64: number of images by true class (row) and predicted class (column).
    """

    loss: float
    accuracy: float
    confusion: np.ndarray


def evaluate(
    model: Classifier,
    images: Any,
    labels: Any,
    *,
    batch_size: int | None = None,
    loss: str = "cross_entropy",
    workers: int | None = None,
) -> Evaluation:
    """Compare a classifier's predictions with the labels, in evaluation mode.

    Args:
        model: its outputs are logits.
        images: N of them, as ``model.predict`` takes them, or pictures in files (:class:`gpuconv.data.Pictures`).
        labels: (N,), integers from 0 to the number of classes - 1. N may be 0: loss and accuracy are NaN then.
        batch_size: images at a time, which bounds the memory. By default 256, fewer of large images.
        loss: a name of ``LOSSES``.
        workers: threads that read pictures from files.

    Raises:
        ValueError: shapes that do not fit, a label that is not a class, a batch size below 1, an unknown loss.
        TypeError: an argument of the wrong kind.
    """
    if loss not in LOSSES:
        raise ValueError(f"evaluate: loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if batch_size is None:
        batch_size = max(1, min(256, _VALUES // math.prod(model.input_shape)))
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, got {batch_size}")
    labels = to_numpy(labels)
    if labels.dtype.kind not in "iu" and labels.size:
        raise TypeError(f"evaluate: labels must be integers, got {labels.dtype}")
    if not isinstance(images, Pictures):
        images = to_numpy(images)
        if images.ndim == (2 if model.input_shape[0] == 1 and images.dtype.kind in "iu" else 3):
            images = images[None]
    model.prepare(images[:1])
    if labels.shape != (len(images),):
        raise ValueError(f"evaluate: labels must have shape ({len(images)},), one an image, got {labels.shape}")
    classes = len(model.classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise ValueError(
            f"evaluate: labels[{wrong[0]}] is {labels[wrong[0]]}, but the model has {classes} classes "
            f"(0 to {classes - 1})"
        )
    labels = labels.astype(np.int64)
    total, predicted = 0.0, np.empty(len(labels), np.int64)

    def prepared(start: int) -> np.ndarray:
        return model.prepare(images[start : start + batch_size])

    starts = range(0, len(labels), batch_size)
    batches = Ahead(prepared, starts, workers if isinstance(images, Pictures) else 0)
    with evaluating(model), no_grad(), closing(batches):
        for start, batch in zip(starts, batches, strict=True):
            part = slice(start, start + batch_size)
            logits = model(Tensor(batch))
            total += float(LOSSES[loss](logits, labels[part])) * len(labels[part])
            predicted[part] = logits.numpy().argmax(1)
    confusion = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    if not len(labels):
        return Evaluation(math.nan, math.nan, confusion)
    return Evaluation(total / len(labels), float(np.mean(predicted == labels)), confusion)
