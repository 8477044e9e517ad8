"""Dropout of whole channels, and the one for self-normalising networks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array, capturing
from gpuconv.dtypes import computed
from gpuconv.ops.activation import Dropout
from gpuconv.ops.checks import element_type, floats, number, shape_of
from gpuconv.random import default_generator

__all__ = ["alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"]

#: ``-scale · alpha`` of SELU, its limit at minus infinity: the value of a dropped element.
_SATURATED = -1.7580993408473766


class AlphaDropout(Function):
    """``x · scale + shift``, element by element; scale and shift broadcast."""

    @staticmethod
    def forward(ctx: Context, x: Array, scale: Array, shift: Array) -> Array:
        ctx.save(scale)
        return x * scale + shift

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array, None, None]:
        (scale,) = ctx.saved
        return grad * scale, None, None


def dropout1d(
    input: Any, p: float = 0.5, training: bool = True, *, generator: np.random.Generator | None = None
) -> Any:
    """Set whole channels of (N, C, L) or (C, L) to zero; arguments and errors as of ``dropout``."""
    return _channels("dropout1d", input, p, training, generator, batched=(3,), alone=(2,))


def dropout2d(
    input: Any, p: float = 0.5, training: bool = True, *, generator: np.random.Generator | None = None
) -> Any:
    """Set whole channels of (N, C, H, W) to zero (Tompson et al., 2015); arguments and errors as of ``dropout``.

    Three dimensions are (N, C, L), as in PyTorch.
    """
    return _channels("dropout2d", input, p, training, generator, batched=(3, 4), alone=())


def dropout3d(
    input: Any, p: float = 0.5, training: bool = True, *, generator: np.random.Generator | None = None
) -> Any:
    """Set whole channels of (N, C, D, H, W) or (C, D, H, W) to zero; arguments and errors as of ``dropout``."""
    return _channels("dropout3d", input, p, training, generator, batched=(5,), alone=(4,))


def alpha_dropout(
    input: Any, p: float = 0.5, training: bool = False, *, generator: np.random.Generator | None = None
) -> Any:
    """Set elements to SELU's limit with probability ``p``, then restore mean 0 and variance 1; only if ``training``.

    Klambauer et al., 2017. Arguments and errors as of ``dropout``.
    """
    op = "alpha_dropout"
    p, generator = _checked(op, p, generator)
    (input,) = floats(op, input=input)
    return _alpha(input, p, generator, shape_of(input)) if training and p else input


def feature_alpha_dropout(
    input: Any, p: float = 0.5, training: bool = False, *, generator: np.random.Generator | None = None
) -> Any:
    """:func:`alpha_dropout` of whole channels of (N, C, ...). ValueError: fewer than 2 dimensions, in training."""
    op = "feature_alpha_dropout"
    p, generator = _checked(op, p, generator)
    (input,) = floats(op, input=input)
    if not training:
        return input
    shape = shape_of(input)
    if len(shape) < 2:
        raise ValueError(f"{op}: input must have at least 2 dimensions (N, C, ...), got shape {shape}")
    return _alpha(input, p, generator, (*shape[:2], *[1] * (len(shape) - 2))) if p else input


def _checked(op: str, p: Any, generator: Any) -> tuple[float, np.random.Generator]:
    p = number(op, "p", p)
    if not 0 <= p <= 1:  # also refuses NaN
        raise ValueError(f"{op}: p must be between 0 and 1, got {p}")
    if generator is not None and not isinstance(generator, np.random.Generator):
        raise TypeError(f"{op}: generator must be a numpy.random.Generator, got {type(generator).__name__}")
    return p, generator or default_generator()


def _channels(
    op: str, input: Any, p: Any, training: bool, generator: Any, *, batched: tuple[int, ...], alone: tuple[int, ...]
) -> Any:
    p, generator = _checked(op, p, generator)
    (input,) = floats(op, input=input)
    shape = shape_of(input)
    if len(shape) not in batched + alone:
        wanted = " or ".join(map(str, sorted(alone + batched)))
        raise ValueError(f"{op}: input must have {wanted} dimensions, got shape {shape}")
    if not training or p == 0:
        return input
    leading = 2 if len(shape) in batched else 1
    whole = (*shape[:leading], *[1] * (len(shape) - leading))
    return Dropout.apply(input, _factors(generator, whole, p, input))


def _factors(generator: np.random.Generator, shape: tuple[int, ...], p: float, input: Any) -> np.ndarray:
    """What dropout multiplies by: 0 with probability p, else 1 / (1 - p); of the type that the input is computed in."""
    scale, dtype = 0.0 if p == 1 else 1 / (1 - p), computed(element_type(input))

    def draw() -> np.ndarray:
        return np.where(generator.random(shape, dtype=np.float32) >= p, scale, 0.0).astype(dtype)

    return capturing.drawn(generator, draw)


def _alpha(input: Any, p: float, generator: np.random.Generator, shape: tuple[int, ...]) -> Any:
    # Mean and variance after dropping, for inputs of mean 0 and variance 1. With p = 1 all is dropped.
    gain = 0.0 if p == 1 else 1 / math.sqrt((_SATURATED**2 * p + 1) * (1 - p))
    dtype = computed(element_type(input))

    def draw() -> tuple[np.ndarray, np.ndarray]:
        kept = generator.random(shape, dtype=np.float32) >= p
        scale = np.where(kept, gain, 0.0).astype(dtype)
        return scale, (np.where(kept, 0.0, _SATURATED * gain) - _SATURATED * gain * p).astype(dtype)

    return AlphaDropout.apply(input, *capturing.drawn(generator, draw))
