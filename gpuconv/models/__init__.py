"""Networks, one file each, and the table that ``gpuconv.load`` and the command line look them up in."""

from __future__ import annotations

from typing import Any

from gpuconv.models.classifier import Classifier
from gpuconv.models.lenet import LeNet5
from gpuconv.names import did_you_mean

__all__ = ["MODELS", "Classifier", "LeNet5", "build"]

#: name on the command line and in files -> class
MODELS: dict[str, type[Classifier]] = {"lenet5": LeNet5}


def build(name: str, **arguments: Any) -> Classifier:
    """Return a new model of the table by its name.

    Raises:
        ValueError: no such model; the nearest name is suggested.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(MODELS)}{did_you_mean(name, MODELS)}")
    return MODELS[name](**arguments)
