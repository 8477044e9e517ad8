"""Padding: with a number, or with the input's own elements, mirrored, repeated or from the other side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array
from gpuconv.dtypes import kind_of
from gpuconv.geometry import integer
from gpuconv.ops.checks import element_type, number, one_of, operand, shape_of

__all__ = ["pad"]

_MODES = ("constant", "reflect", "replicate", "circular")


class PadConstant(Function):
    """Add ``sides`` elements (or remove, if negative) before and after each dimension."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @staticmethod
    def forward(ctx: Context, x: Array, *, sides: tuple[tuple[int, int], ...], value: float) -> Array:
        shape = [before + size + after for size, (before, after) in zip(x.shape, sides, strict=True)]
        y = ctx.backend.xp.full(tuple(shape), value, x.dtype)
        inside, kept = _overlap(x.shape, sides)
        y[inside] = x[kept]
        ctx.save(x.shape, inside, kept)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, inside, kept = ctx.saved
        if all(part == slice(0, size) for part, size in zip(kept, shape, strict=True)):
            return grad[inside]
        full = ctx.backend.xp.zeros(shape, grad.dtype)
        full[kept] = grad[inside]
        return full


def _overlap(shape: tuple[int, ...], sides: tuple[tuple[int, int], ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the kept elements are in the result, and in the input."""
    inside, kept = [], []
    for size, (before, after) in zip(shape, sides, strict=True):
        length = max(0, size + min(before, 0) + min(after, 0))
        inside.append(slice(max(before, 0), max(before, 0) + length))
        kept.append(slice(max(-before, 0), max(-before, 0) + length))
    return tuple(inside), tuple(kept)


class PadAlong(Function):
    """The elements at ``where`` along a dimension: a run of neighbours ``first``, and some before and behind it.

    ``first`` is where in the result and in the input the run starts, and its length.
    """

    takes_half: ClassVar[tuple[str, ...]] = ("forward",)

    @staticmethod
    def forward(ctx: Context, x: Array, *, where: tuple[int, ...], first: tuple[int, int, int], axis: int) -> Array:
        ctx.save(x.shape, where, first, axis)
        xp = ctx.backend.xp
        return xp.take(x, ctx.backend.constant(where, np.int64), axis=axis)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, where, (start, source, length), axis = ctx.saved
        full = ctx.backend.xp.zeros(shape, grad.dtype)
        before = (slice(None),) * axis
        full[(*before, slice(source, source + length))] = grad[(*before, slice(start, start + length))]
        for position, index in enumerate(where):  # the borders, which are narrow
            if not start <= position < start + length:
                full[(*before, index)] += grad[(*before, position)]
        return full


def _sources(mode: str, size: int, before: int, after: int) -> np.ndarray:
    """Which element of the input each one along a padded dimension is."""
    if mode == "circular":  # elements that were cut off are not used again
        kept = size + min(before, 0) + min(after, 0)
        return np.arange(-max(before, 0), kept + max(after, 0)) % kept - min(before, 0)
    positions = np.arange(-before, size + after)
    if mode == "replicate":
        return positions.clip(0, size - 1)
    mirrored = np.abs(positions)
    return np.where(mirrored >= size, 2 * (size - 1) - mirrored, mirrored)


def pad(input: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """Add elements (or, for negative numbers, remove them) before and after the last dimensions.

    Args:
        input: Tensor or array; (N, C, ...) or (C, ...) unless the mode is 'constant'.
        pad: ``(before, after)`` for the last dimension, then for the one before it, and so on.
        mode: 'constant'; 'reflect', mirrored at the outermost element; 'replicate', that element; 'circular', from the
            other side.
        value: of the new elements, for 'constant'; None is 0.

    Returns:
        The input's dtype, and its shape enlarged by the padding.

    Raises:
        ValueError: an odd number of values or too many, a padding wider than the input allows, a negative size, a value
            with another mode, or an unknown mode.
        TypeError: an argument of the wrong kind.
    """
    op = "pad"
    input = operand(op, "input", input)
    one_of(op, "mode", mode, _MODES)
    if isinstance(pad, str) or not isinstance(pad, Sequence):
        raise TypeError(f"{op}: pad must be a sequence of integers, got {pad!r}")
    amounts = [integer(amount, "pad", minimum=-(2**31), op=op) for amount in pad]
    shape = shape_of(input)
    if len(amounts) % 2 or len(amounts) > 2 * len(shape):
        raise ValueError(
            f"{op}: pad must have two numbers for each of at most {len(shape)} dimensions, got {len(amounts)} numbers"
        )
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    sides = ((0, 0),) * (len(shape) - len(pairs)) + tuple(pairs[::-1])
    for axis, (size, (before, after)) in enumerate(zip(shape, sides, strict=True)):
        if before + size + after < 0:
            raise ValueError(f"{op}: pad {(before, after)} leaves less than nothing of dim {axis}, of size {size}")
    if mode == "constant":
        fill = 0.0 if value is None else number(op, "value", value)
        whole = kind_of(element_type(input)) != "f"
        if whole and fill != int(fill):
            raise TypeError(f"{op}: value {value} is a float, which {element_type(input)} cannot hold")
        return PadConstant.apply(input, sides=sides, value=int(fill) if whole else fill)
    if value is not None and value != 0:
        raise ValueError(f"{op}: value is for mode 'constant', got {value!r} with {mode!r}")
    if not len(pairs) + 1 <= len(shape) <= len(pairs) + 2 or not pairs:
        raise ValueError(
            f"{op}: pad with mode {mode!r} must have two numbers for each dimension but (N, C) or (C), got "
            f"{len(amounts)} numbers for an input of shape {shape}"
        )
    for axis, (before, after) in enumerate(sides):
        if before or after:
            input = _pad_along(op, input, axis, before, after, mode)
    return input


def _pad_along(op: str, input: Any, axis: int, before: int, after: int, mode: str) -> Any:
    size = shape_of(input)[axis]
    kept = size + min(before, 0) + min(after, 0)
    most = {"reflect": size - 1, "circular": kept}.get(mode, 2**31)
    if max(before, after) > most or size == 0 or before + size + after < 1:
        raise ValueError(
            f"{op}: pad {(before, after)} with mode {mode!r} must be at most {most} and leave something of dim {axis}, "
            f"of size {size}"
        )
    where = _sources(mode, size, before, after)
    start, source = max(before, 0), max(-before, 0)
    return PadAlong.apply(input, where=tuple(where.tolist()), first=(start, source, max(0, kept)), axis=axis)
