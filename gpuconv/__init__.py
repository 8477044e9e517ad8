"""gpuconv: hand-written convolution kernels, a backend dispatcher, and enough autograd to train LeNet.

Importing it loads NumPy, but neither numba nor CuPy: a backend loads when it is first used, and what only some users
need (``data``, ``models``, ``storage``, ``train``) when it is first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gpuconv import autograd, backends, functional, geometry, nn, optim
from gpuconv.autograd import Function, Tensor, gradcheck, is_grad_enabled, no_grad
from gpuconv.backends import BackendUnavailable, current_stream, use_backend, use_stream
from gpuconv.random import manual_seed

if TYPE_CHECKING:
    from gpuconv import data, models, storage, train
    from gpuconv.explanation import explain
    from gpuconv.graph import capture
    from gpuconv.storage import load, save

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "Function",
    "Tensor",
    "autograd",
    "backends",
    "capture",
    "current_stream",
    "data",
    "explain",
    "functional",
    "geometry",
    "gradcheck",
    "is_grad_enabled",
    "load",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "optim",
    "save",
    "storage",
    "train",
    "use_backend",
    "use_stream",
]

_LAZY = {
    "capture": ("gpuconv.graph", "capture"),
    "data": ("gpuconv.data", None),
    "models": ("gpuconv.models", None),
    "storage": ("gpuconv.storage", None),
    "train": ("gpuconv.train", None),
    "explain": ("gpuconv.explanation", "explain"),
    "load": ("gpuconv.storage", "load"),
    "save": ("gpuconv.storage", "save"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gpuconv' has no attribute {name!r}")
    module_name, attribute = _LAZY[name]
    module = importlib.import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
