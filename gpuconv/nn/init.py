"""Initial values of parameters. All functions write into the given Tensor and return it.

Fans are counted as in PyTorch: for a weight (out, in, R, S) fan_in is ``in · R · S`` and fan_out ``out · R · S``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.random import Generator

from gpuconv.autograd import Tensor, overwrite
from gpuconv.geometry import one_of
from gpuconv.random import default_generator

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


def fans(tensor: Tensor) -> tuple[int, int]:
    """``(fan_in, fan_out)`` of a weight. ValueError: fewer than two dimensions."""
    if tensor.ndim < 2:
        raise ValueError(f"fan_in and fan_out need at least 2 dimensions, got shape {tensor.shape}")
    receptive_field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * receptive_field, tensor.shape[0] * receptive_field


def uniform_(tensor: Tensor, low: float = 0.0, high: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Uniform between ``low`` and ``high``."""
    if _shapes_only.get():
        return tensor
    return _fill(tensor, (generator or default_generator()).uniform(low, high, tensor.shape))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Normal with ``mean`` and standard deviation ``std``."""
    if _shapes_only.get():
        return tensor
    return _fill(tensor, (generator or default_generator()).normal(mean, std, tensor.shape))


def constant_(tensor: Tensor, value: float) -> Tensor:
    """Set every element to ``value``."""
    if not _shapes_only.get():
        tensor.data[...] = value
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """Set every element to 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Every element is 1."""
    return constant_(tensor, 1.0)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    *,
    generator: Generator | None = None,
) -> Tensor:
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


def _fan(tensor: Tensor, mode: str) -> int:
    return fans(tensor)[("fan_in", "fan_out").index(one_of(mode, "mode", ("fan_in", "fan_out"), op="kaiming"))]


def kaiming_uniform_(
    tensor: Tensor, gain: float = math.sqrt(2), *, mode: str = "fan_in", generator: Generator | None = None
) -> Tensor:
    """Uniform with variance ``gain² / fan_in``, or ``/ fan_out`` (He et al., 2015); gain √2 suits ReLU."""
    bound = gain * math.sqrt(3 / _fan(tensor, mode))
    return uniform_(tensor, -bound, bound, generator=generator)


def kaiming_normal_(
    tensor: Tensor, gain: float = math.sqrt(2), *, mode: str = "fan_in", generator: Generator | None = None
) -> Tensor:
    """Normal with variance ``gain² / fan_in``, or ``/ fan_out`` (He et al., 2015)."""
    return normal_(tensor, 0.0, gain / math.sqrt(_fan(tensor, mode)), generator=generator)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Uniform with variance ``2 · gain² / (fan_in + fan_out)`` (Glorot & Bengio, 2010); suits tanh and sigmoid."""
    bound = gain * math.sqrt(6 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound, generator=generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Normal with variance ``2 · gain² / (fan_in + fan_out)`` (Glorot & Bengio, 2010)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(fans(tensor))), generator=generator)


def _fill(tensor: Tensor, values: np.ndarray) -> Tensor:
    # Drawn on the host in float64, so that every backend and element type starts from the same numbers.
    overwrite(tensor.data, values, "nn.init")
    return tensor
