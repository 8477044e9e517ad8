"""Loss, accuracy and confusion matrix of a classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor, no_grad, to_numpy
from gpuconv.models import Classifier
from gpuconv.nn.module import evaluating
from gpuconv.training.config import LOSSES


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
    model: Classifier, images: Any, labels: Any, *, batch_size: int = 256, loss: str = "cross_entropy"
) -> Evaluation:
    """Compare a classifier's predictions with the labels, in evaluation mode.

    Args:
        model: its outputs are logits.
        images: N of them, as ``model.predict`` takes them.
        labels: (N,), integers from 0 to the number of classes - 1. N may be 0: loss and accuracy are NaN then.
        batch_size: images at a time, which bounds the memory.
        loss: a name of ``LOSSES``.

    Raises:
        ValueError: shapes that do not fit, a label that is not a class, a batch size below 1, an unknown loss.
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
