"""gpuconv: hand-written convolution kernels, a choice of backends, and enough autograd to train LeNet.

Importing it loads NumPy, but neither numba nor CuPy: a backend loads when it is first used, and what only some users
need (``data``, ``models``, ``onnx``, ``storage``, ``training``) when it is first named.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if importlib.util.find_spec("gpuconv.kernels") is None:  # it lies beside this folder, and installing puts it here
    raise ImportError("this is gpuconv's source, not installed for this Python: run pip install -e . in its folder")

# Not in __all__: `from gpuconv import *` must not hide Python's own.
from numpy import bool_ as bool  # noqa: F401
from numpy import dtype, float16, float32, float64, int8, int16, int32, int64, uint8
from numpy import float16 as half
from numpy import float32 as float  # noqa: F401
from numpy import float64 as double
from numpy import int16 as short
from numpy import int32 as int  # noqa: F401
from numpy import int64 as long

from gpuconv import autograd, backends, cuda, functional, geometry, nn, optim
from gpuconv.arrays import device
from gpuconv.autograd import Function, Tensor, gradcheck, is_grad_enabled, no_grad
from gpuconv.backends import BackendUnavailable, current_stream, use_backend, use_stream
from gpuconv.creation import (
    arange,
    as_tensor,
    empty,
    empty_like,
    eye,
    from_numpy,
    full,
    full_like,
    is_tensor,
    linspace,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    randperm,
    tensor,
    to_torch,
    zeros,
    zeros_like,
)
from gpuconv.functional import conv1d, conv2d, log_softmax, relu, sigmoid, softmax, tanh
from gpuconv.ops.arithmetic import add, div, exp, floor_divide, fmod, log, matmul, mean, mul, pow, remainder, sub, sum
from gpuconv.ops.einsum import einsum
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
from gpuconv.ops.products import addmm, baddbmm, bmm, mm
from gpuconv.ops.rearrange import (
    cat,
    chunk,
    clone,
    concat,
    flip,
    gather,
    index_select,
    movedim,
    narrow,
    select,
    split,
    squeeze,
    stack,
    swapaxes,
    t,
    tile,
    transpose,
    unbind,
    unsqueeze,
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
    from gpuconv import data, models, onnx, parallel, storage, training
    from gpuconv.captured_step import capture
    from gpuconv.explanation import explain
    from gpuconv.explorer import explore
    from gpuconv.storage import load, save

from gpuconv.version import __version__ as __version__

__all__ = [
    "BackendUnavailable",
    "Function",
    "Tensor",
    "abs",
    "acos",
    "add",
    "addmm",
    "all",
    "amax",
    "amin",
    "any",
    "arange",
    "argmax",
    "argmin",
    "as_tensor",
    "asin",
    "atan",
    "autograd",
    "backends",
    "baddbmm",
    "bmm",
    "capture",
    "cat",
    "ceil",
    "chunk",
    "clamp",
    "clip",
    "clone",
    "concat",
    "conv1d",
    "conv2d",
    "cos",
    "count_nonzero",
    "cuda",
    "cumsum",
    "current_stream",
    "data",
    "device",
    "div",
    "double",
    "dtype",
    "einsum",
    "empty",
    "empty_like",
    "erf",
    "exp",
    "explain",
    "explore",
    "expm1",
    "eye",
    "flatten",
    "flip",
    "float16",
    "float32",
    "float64",
    "floor",
    "floor_divide",
    "fmod",
    "from_numpy",
    "full",
    "full_like",
    "functional",
    "gather",
    "geometry",
    "gradcheck",
    "half",
    "index_select",
    "int8",
    "int16",
    "int32",
    "int64",
    "is_grad_enabled",
    "is_tensor",
    "isfinite",
    "isinf",
    "isnan",
    "linspace",
    "load",
    "log",
    "log1p",
    "log2",
    "log10",
    "log_softmax",
    "logsumexp",
    "long",
    "manual_seed",
    "masked_fill",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mm",
    "models",
    "movedim",
    "mul",
    "narrow",
    "neg",
    "nn",
    "no_grad",
    "norm",
    "ones",
    "ones_like",
    "onnx",
    "optim",
    "parallel",
    "permute",
    "pow",
    "prod",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "randperm",
    "reciprocal",
    "relu",
    "remainder",
    "reshape",
    "round",
    "rsqrt",
    "save",
    "select",
    "short",
    "sigmoid",
    "sign",
    "sin",
    "softmax",
    "split",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "std",
    "std_mean",
    "storage",
    "sub",
    "sum",
    "swapaxes",
    "t",
    "tan",
    "tanh",
    "tensor",
    "tile",
    "to_torch",
    "training",
    "transpose",
    "trunc",
    "uint8",
    "unbind",
    "unsqueeze",
    "use_backend",
    "use_stream",
    "var",
    "var_mean",
    "where",
    "zeros",
    "zeros_like",
]

#: Names that are loaded when they are first used: module, and what it has; None for the module itself.
_LAZY = {
    "bfloat16": ("gpuconv.dtypes", "bfloat16"),
    "capture": ("gpuconv.captured_step", "capture"),
    "data": ("gpuconv.data", None),
    "models": ("gpuconv.models", None),
    "onnx": ("gpuconv.onnx", None),
    "parallel": ("gpuconv.parallel", None),
    "storage": ("gpuconv.storage", None),
    "training": ("gpuconv.training", None),
    "explain": ("gpuconv.explanation", "explain"),
    "explore": ("gpuconv.explorer", "explore"),
    "load": ("gpuconv.storage", "load"),
    "save": ("gpuconv.storage", "save"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gpuconv' has no attribute {name!r}")
    module_name, attribute = _LAZY[name]
    module = importlib.import_module(module_name)
    value: Any = module if attribute is None else getattr(module, attribute)
    if name == "bfloat16":  # a function: its error says what is missing
        value = value()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
