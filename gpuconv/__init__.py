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
from gpuconv.functional import conv1d, conv2d, log_softmax, relu, sigmoid, softmax, tanh
from gpuconv.ops.arithmetic import add, div, exp, log, matmul, mean, mul, pow, sub, sum
from gpuconv.ops.elementwise import (
    abs,
    acos,
    asin,
    atan,
    ceil,
    clamp,
    clip,
    cos,
    erf,
    expm1,
    floor,
    isfinite,
    isinf,
    isnan,
    log1p,
    log2,
    log10,
    masked_fill,
    maximum,
    minimum,
    neg,
    reciprocal,
    round,
    rsqrt,
    sign,
    sin,
    sqrt,
    square,
    tan,
    trunc,
    where,
)
from gpuconv.ops.reduce import (
    all,
    amax,
    amin,
    any,
    argmax,
    argmin,
    count_nonzero,
    cumsum,
    logsumexp,
    max,
    min,
    norm,
    prod,
    std,
    std_mean,
    var,
    var_mean,
)
from gpuconv.ops.shape import flatten, permute, reshape
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
    "abs",
    "acos",
    "add",
    "all",
    "amax",
    "amin",
    "any",
    "argmax",
    "argmin",
    "asin",
    "atan",
    "autograd",
    "backends",
    "capture",
    "ceil",
    "clamp",
    "clip",
    "conv1d",
    "conv2d",
    "cos",
    "count_nonzero",
    "cumsum",
    "current_stream",
    "data",
    "div",
    "erf",
    "exp",
    "explain",
    "expm1",
    "flatten",
    "floor",
    "functional",
    "geometry",
    "gradcheck",
    "is_grad_enabled",
    "isfinite",
    "isinf",
    "isnan",
    "load",
    "log",
    "log1p",
    "log2",
    "log10",
    "log_softmax",
    "logsumexp",
    "manual_seed",
    "masked_fill",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "models",
    "mul",
    "neg",
    "nn",
    "no_grad",
    "norm",
    "optim",
    "permute",
    "pow",
    "prod",
    "reciprocal",
    "relu",
    "reshape",
    "round",
    "rsqrt",
    "save",
    "sigmoid",
    "sign",
    "sin",
    "softmax",
    "sqrt",
    "square",
    "std",
    "std_mean",
    "storage",
    "sub",
    "sum",
    "tan",
    "tanh",
    "train",
    "trunc",
    "use_backend",
    "use_stream",
    "var",
    "var_mean",
    "where",
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
