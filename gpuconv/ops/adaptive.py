"""Pooling over windows that adapt to the input's size, so that the result has a given one.

Window i along an axis of length H, of P windows, runs from ``floor(i · H / P)`` to ``ceil((i + 1) · H / P)``; two may
share an element. They are the product of those along each axis, so that the axes are pooled one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array, Backend
from gpuconv.geometry import adaptive_sizes
from gpuconv.geometry import flag as checked_flag
from gpuconv.ops.checks import floats, shape_of
from gpuconv.ops.layout import batched, unbatched


class AdaptiveAvgPool(Function):
    """Averages along the last dimensions, as many as ``output_size`` has."""

    @staticmethod
    def forward(ctx: Context, x: Array, *, output_size: tuple[int, ...]) -> Array:
        ctx.save(x.shape, output_size)
        xp = ctx.backend.xp
        if x.shape[x.ndim - len(output_size) :] == output_size:
            return x.copy()
        for axis, size in enumerate(output_size, start=x.ndim - len(output_size)):
            length = x.shape[axis]
            if length % size == 0:
                if length != size:
                    cut = x.reshape(*x.shape[:axis], size, length // size, *x.shape[axis + 1 :])
                    x = cut.sum(axis=axis + 1) / x.dtype.type(length // size)
                continue
            starts, ends = _windows(length, size)
            total = 0
            for tap in range(max(end - start for start, end in zip(starts, ends, strict=True))):
                inside = ctx.backend.constant([start + tap < end for start, end in zip(starts, ends, strict=True)])
                where = ctx.backend.constant(
                    [min(start + tap, end - 1) for start, end in zip(starts, ends, strict=True)]
                )
                # Selected, not multiplied by zero: a NaN outside the window must not come in.
                total = total + xp.where(_along(inside, x, axis), xp.take(x, where, axis=axis), x.dtype.type(0))
            x = total / _counts(ctx.backend, x, axis, starts, ends)
        return x

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, output_size = ctx.saved
        xp = ctx.backend.xp
        for axis, size in enumerate(output_size, start=len(shape) - len(output_size)):
            length = shape[axis]
            if length % size == 0:
                if length != size:
                    share = xp.expand_dims(grad / grad.dtype.type(length // size), axis + 1)
                    spread_shape = (*grad.shape[: axis + 1], length // size, *grad.shape[axis + 1 :])
                    grad = xp.broadcast_to(share, spread_shape).reshape(
                        *grad.shape[:axis], length, *grad.shape[axis + 1 :]
                    )
                continue
            starts, ends = _windows(length, size)
            share = grad / _counts(ctx.backend, grad, axis, starts, ends)
            spread = xp.zeros((*grad.shape[:axis], length, *grad.shape[axis + 1 :]), grad.dtype)
            for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
                spread[_part(axis, start, end)] += share[_part(axis, index, index + 1)]
            grad = spread
        return grad


class AdaptiveMaxPool(Function):
    """Maxima along the last dimensions, as many as ``output_size`` has, and where they are in these, counted in rows.

    Of equals the first wins, of several NaNs the last one.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, output_size: tuple[int, ...]) -> tuple[Array, Array]:
        xp, shape = ctx.backend.xp, x.shape
        index: Any = 0  # in the axes pooled so far
        below = 1  # elements of these
        winners = []
        # From the last axis to the first: of equals that of the first row wins, and in it that of the first column.
        for axis, size in reversed(list(enumerate(output_size, start=x.ndim - len(output_size)))):
            starts, ends = _windows(shape[axis], size)
            best: Any = None
            for tap in range(max(end - start for start, end in zip(starts, ends, strict=True))):
                # A window that has ended meets its last element again, which is no larger than itself.
                where = ctx.backend.constant(
                    [min(start + tap, end - 1) for start, end in zip(starts, ends, strict=True)]
                )
                candidate, place = xp.take(x, where, axis=axis), _along(where, x, axis)
                whole = place * below + (xp.take(index, where, axis=axis) if below > 1 else 0)
                if best is None:
                    best, won, at = candidate, xp.broadcast_to(place, candidate.shape), whole
                else:
                    better = (candidate > best) | xp.isnan(candidate)
                    best, won = xp.where(better, candidate, best), xp.where(better, place, won)
                    at = xp.where(better, whole, at)
            x, index, below = best, xp.broadcast_to(at, best.shape), below * shape[axis]
            winners.append((axis, size, won))
        ctx.save(shape, winners)
        return x, index.astype(xp.int64)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, winners = ctx.saved
        xp = ctx.backend.xp
        for axis, size, won in reversed(winners):
            spread = xp.zeros((*grad.shape[:axis], shape[axis], *grad.shape[axis + 1 :]), grad.dtype)
            for i, (start, end) in enumerate(zip(*_windows(shape[axis], size), strict=True)):
                one = _part(axis, i, i + 1)
                hit = won[one] == _along(xp.arange(start, end), won, axis)
                # One window after the other: they share elements, and sums have a fixed order.
                spread[_part(axis, start, end)] += xp.where(hit, grad[one], grad.dtype.type(0))
            grad = spread
        return grad


def _windows(length: int, size: int) -> tuple[list[int], list[int]]:
    return [i * length // size for i in range(size)], [-(-(i + 1) * length // size) for i in range(size)]


def _along(values: Array, x: Array, axis: int) -> Array:
    """A vector as an array that broadcasts along ``axis`` of x."""
    return values.reshape(-1, *[1] * (x.ndim - axis - 1))


def _part(axis: int, start: int, end: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(start, end))


def _counts(backend: Backend, x: Array, axis: int, starts: list[int], ends: list[int]) -> Array:
    counts = [end - start for start, end in zip(starts, ends, strict=True)]
    return _along(backend.constant(counts, x.dtype), x, axis)


def _prepared(op: str, input: Any, output_size: Any, letters: str) -> tuple[Any, bool, tuple[int, ...]]:
    """The input with a batch, whether the result has to lose it again, and the sizes of the result."""
    (input,) = floats(op, input=input)
    input, alone = batched(op, input, letters)
    shape = shape_of(input)
    if 0 in shape[1:]:
        raise ValueError(f"{op}: input must have elements along each dimension but the batch, got shape {shape}")
    wanted = adaptive_sizes(output_size, op=op, rank=len(letters) - 2)
    sizes = tuple(have if want is None else want for want, have in zip(wanted, shape[2:], strict=True))
    return input, alone, sizes


def _average(op: str, input: Any, output_size: Any, letters: str) -> Any:
    input, alone, sizes = _prepared(op, input, output_size, letters)
    return unbatched(AdaptiveAvgPool.apply(input, output_size=sizes), alone)


def _maximum(op: str, input: Any, output_size: Any, letters: str, return_indices: Any) -> Any:
    input, alone, sizes = _prepared(op, input, output_size, letters)
    both = unbatched(AdaptiveMaxPool.apply(input, output_size=sizes), alone)
    return both if checked_flag(return_indices, "return_indices", op=op) else both[0]


def adaptive_avg_pool1d(input: Any, output_size: int | Sequence[int]) -> Any:
    """Average of (N, C, L) or (C, L) over windows that adapt; otherwise as :func:`adaptive_avg_pool2d`."""
    return _average("adaptive_avg_pool1d", input, output_size, "NCL")


def adaptive_avg_pool2d(input: Any, output_size: int | Sequence[int | None] | None) -> Any:
    """Average over windows that adapt, so that the result has ``output_size``; (1, 1) is global average pooling.

    Window i along an axis runs from ``floor(i · H / P)`` to ``ceil((i + 1) · H / P)``.

    Args:
        input: (N, C, H, W) or (C, H, W), floats.
        output_size: int, or (height, width); None keeps the input's size.

    Returns:
        (N, C, *output_size).

    Raises:
        ValueError: a shape or value does not fit.
        TypeError: an argument of the wrong kind.
    """
    return _average("adaptive_avg_pool2d", input, output_size, "NCHW")


def adaptive_avg_pool3d(input: Any, output_size: int | Sequence[int | None] | None) -> Any:
    """Average of (N, C, D, H, W) or (C, D, H, W) over windows that adapt; as :func:`adaptive_avg_pool2d`."""
    return _average("adaptive_avg_pool3d", input, output_size, "NCDHW")


def adaptive_max_pool1d(input: Any, output_size: int | Sequence[int], return_indices: bool = False) -> Any:
    """Maximum of (N, C, L) or (C, L) over windows that adapt; otherwise as :func:`adaptive_max_pool2d`."""
    return _maximum("adaptive_max_pool1d", input, output_size, "NCL", return_indices)


def adaptive_max_pool2d(
    input: Any, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> Any:
    """Maximum over windows that adapt, so that the result has ``output_size``; (1, 1) is global max pooling.

    Args:
        input: (N, C, H, W) or (C, H, W), floats.
        output_size: int, or (height, width); None keeps the input's size.
        return_indices: also return where each maximum was, ``row · W + column``, int64.

    Returns:
        (N, C, *output_size), or that and the indices.

    Raises:
        ValueError: a shape or value does not fit.
        TypeError: an argument of the wrong kind.
    """
    return _maximum("adaptive_max_pool2d", input, output_size, "NCHW", return_indices)


def adaptive_max_pool3d(
    input: Any, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> Any:
    """Maximum of (N, C, D, H, W) or (C, D, H, W) over windows that adapt; as :func:`adaptive_max_pool2d`."""
    return _maximum("adaptive_max_pool3d", input, output_size, "NCDHW", return_indices)
