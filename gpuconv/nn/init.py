"""Initial values of parameters. All functions write into the given Tensor, or array, and return it.

Fans are counted as in PyTorch: for a weight (out, in, R, S) fan_in is ``in · R · S`` and fan_out ``out · R · S``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
from numpy.random import Generator

from gpuconv.autograd import Tensor, overwrite
from gpuconv.geometry import one_of
from gpuconv.random import default_generator

_T = TypeVar("_T", bound=Any)
_Generator = Generator | None

_shapes_only = ContextVar("shapes_only", default=False)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Layers made in this context have parameters of the right shapes, but no memory for them: to count with."""
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)


def empty(shape: Any, dtype: Any) -> np.ndarray:
    """An array to be filled by one of the functions below; inside :func:`shapes_only`, one that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape) if _shapes_only.get() else np.empty(shape, dtype)


def fans(tensor: Any) -> tuple[int, int]:
    """``(fan_in, fan_out)`` of a weight. ValueError: fewer than two dimensions."""
    if tensor.ndim < 2:
        raise ValueError(f"fan_in and fan_out need at least 2 dimensions, got shape {tensor.shape}")
    receptive_field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * receptive_field, tensor.shape[0] * receptive_field


def uniform_(tensor: _T, a: float = 0.0, b: float = 1.0, *, generator: _Generator = None) -> _T:
    """Uniform between ``a`` and ``b``."""
    if _shapes_only.get():
        return tensor
    return _fill(tensor, (generator or default_generator()).uniform(a, b, tensor.shape))


def normal_(tensor: _T, mean: float = 0.0, std: float = 1.0, *, generator: _Generator = None) -> _T:
    """Normal with ``mean`` and standard deviation ``std``."""
    if _shapes_only.get():
        return tensor
    return _fill(tensor, (generator or default_generator()).normal(mean, std, tensor.shape))


def constant_(tensor: _T, val: float) -> _T:
    """Set every element to ``val``."""
    if not _shapes_only.get():
        _array(tensor)[...] = val
    return tensor


def zeros_(tensor: _T) -> _T:
    """Set every element to 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: _T) -> _T:
    """Every element is 1."""
    return constant_(tensor, 1.0)


def eye_(tensor: _T) -> _T:
    """The identity, as far as a matrix (rows, columns) has it. ValueError: another number of dimensions."""
    if tensor.ndim != 2:
        raise ValueError(f"eye_: needs a matrix, got shape {tensor.shape}")
    return tensor if _shapes_only.get() else _fill(tensor, np.eye(*tensor.shape))


def trunc_normal_(
    tensor: _T,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    *,
    generator: _Generator = None,
) -> _T:
    """Normal with ``mean`` and ``std``, drawn again where it is not between ``a`` and ``b``.

    ValueError: as good as nothing of the distribution lies there.
    """
    if not (a < b and a < mean + 4 * std and b > mean - 4 * std):
        raise ValueError(f"trunc_normal_: next to nothing of mean {mean}, std {std} lies between {a} and {b}")
    if _shapes_only.get():
        return tensor
    draw = generator or default_generator()
    values = draw.normal(mean, std, tensor.shape)
    while (outside := (values < a) | (values > b)).any():
        values[outside] = draw.normal(mean, std, int(outside.sum()))
    return _fill(tensor, values)


def orthogonal_(tensor: _T, gain: float = 1.0, *, generator: _Generator = None) -> _T:
    """Orthonormal rows or columns, whichever are fewer, times ``gain`` (Saxe et al., 2014); a filter is a row.

    ValueError: fewer than two dimensions.
    """
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_: needs at least 2 dimensions, got shape {tensor.shape}")
    if _shapes_only.get() or 0 in tensor.shape:
        return tensor
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    values = (generator or default_generator()).normal(size=(max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(values)
    q *= np.sign(np.diag(r))  # so that all such matrices are equally likely (Mezzadri, 2006)
    return _fill(tensor, gain * (q if rows >= columns else q.T).reshape(tensor.shape))


_GAINS = {"tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}
_LINEAR = ("linear", "sigmoid", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)))


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """What keeps the spread of values behind an activation, as PyTorch has it.

    Args:
        nonlinearity: "relu", "leaky_relu", "tanh", "sigmoid", "selu", "linear", or the name of a convolution.
        param: the negative slope of "leaky_relu", 0.01 if None.

    Raises:
        ValueError: another name.
    """
    one_of(nonlinearity, "nonlinearity", ("leaky_relu", *_GAINS, *_LINEAR), op="calculate_gain")
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    return _GAINS.get(nonlinearity, 1.0)


def _kaiming(tensor: Any, a: float, mode: str, nonlinearity: str) -> float:
    """The standard deviation."""
    which = ("fan_in", "fan_out").index(one_of(mode, "mode", ("fan_in", "fan_out"), op="kaiming"))
    return calculate_gain(nonlinearity, a) / math.sqrt(fans(tensor)[which])


def kaiming_uniform_(
    tensor: _T, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", *, generator: _Generator = None
) -> _T:
    """Uniform with variance ``gain² / fan_in``, or ``/ fan_out`` (He et al., 2015); with these defaults it suits ReLU.

    Args:
        tensor: a weight; written.
        a: negative slope of "leaky_relu".
        mode: "fan_in" or "fan_out".
        nonlinearity: the activation behind the layer, of which :func:`calculate_gain` gives the gain.
        generator: of random numbers; None for the default one.
    """
    bound = math.sqrt(3) * _kaiming(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator=generator)


def kaiming_normal_(
    tensor: _T, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", *, generator: _Generator = None
) -> _T:
    """Normal with the variance of :func:`kaiming_uniform_`."""
    return normal_(tensor, 0.0, _kaiming(tensor, a, mode, nonlinearity), generator=generator)


def xavier_uniform_(tensor: _T, gain: float = 1.0, *, generator: _Generator = None) -> _T:
    """Uniform with variance ``2 · gain² / (fan_in + fan_out)`` (Glorot & Bengio, 2010); suits tanh and sigmoid."""
    bound = gain * math.sqrt(6 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound, generator=generator)


def xavier_normal_(tensor: _T, gain: float = 1.0, *, generator: _Generator = None) -> _T:
    """Normal with variance ``2 · gain² / (fan_in + fan_out)`` (Glorot & Bengio, 2010)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(fans(tensor))), generator=generator)


def _array(tensor: Any) -> Any:
    return tensor.data if isinstance(tensor, Tensor) else tensor


def _fill(tensor: _T, values: np.ndarray) -> _T:
    # Drawn on the host in float64, so that every backend and element type starts from the same numbers.
    overwrite(_array(tensor), values, "nn.init")
    return tensor
