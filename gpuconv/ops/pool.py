"""Pooling: maximum, average, sum, and averages over windows that adapt to the input's size."""

from __future__ import annotations

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array
from gpuconv.geometry import Pool2dGeometry


class MaxPool2d(Function):
    """Maximum of each window; with ``return_indices`` also where it was, ``row · w + column``."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, *, geometry: Pool2dGeometry, return_indices: bool
    ) -> Array | tuple[Array, Array]:
        y, winners = ctx.backend.max_pool2d(x, geometry)
        ctx.save(winners, geometry)
        if return_indices:
            return y, ctx.backend.max_pool2d_indices(winners, geometry)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        winners, geometry = ctx.saved
        return ctx.backend.max_pool2d_grad(grad, winners, geometry)


class AvgPool2d(Function):
    """Average of each window, or its sum divided by ``divisor_override``."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Array,
        *,
        geometry: Pool2dGeometry,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Array:
        ctx.save(geometry, count_include_pad, divisor_override)
        return ctx.backend.avg_pool2d(
            x, geometry, count_include_pad=count_include_pad, divisor_override=divisor_override
        )

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        geometry, count_include_pad, divisor_override = ctx.saved
        return ctx.backend.avg_pool2d_grad(
            grad, geometry, count_include_pad=count_include_pad, divisor_override=divisor_override
        )


class AdaptiveAvgPool2d(Function):
    """Average over windows from ``floor(i · h / p)`` to ``ceil((i + 1) · h / p)``, which may overlap by one row."""

    @staticmethod
    def forward(ctx: Context, x: Array, *, output_size: tuple[int, int]) -> Array:
        ctx.save(x.shape, output_size)
        xp = ctx.backend.xp
        for axis, size in zip((2, 3), output_size, strict=True):
            starts, ends = _adaptive_windows(x.shape[axis], size)
            widest = max(end - start for start, end in zip(starts, ends, strict=True))
            total = 0
            for tap in range(widest):
                inside = xp.asarray([start + tap < end for start, end in zip(starts, ends, strict=True)])
                where = xp.asarray([min(start + tap, end - 1) for start, end in zip(starts, ends, strict=True)])
                # Selected, not multiplied by zero: a NaN outside the window must not come in.
                total = total + xp.where(_along(inside, axis), xp.take(x, where, axis=axis), x.dtype.type(0))
            x = total / _along(_counts(ctx, starts, ends, x.dtype), axis)
        return x

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, output_size = ctx.saved
        xp = ctx.backend.xp
        for axis, size in zip((3, 2), output_size[::-1], strict=True):
            starts, ends = _adaptive_windows(shape[axis], size)
            share = grad / _along(_counts(ctx, starts, ends, grad.dtype), axis)
            spread_shape = list(grad.shape)
            spread_shape[axis] = shape[axis]
            spread = xp.zeros(tuple(spread_shape), grad.dtype)
            for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
                if axis == 2:
                    spread[:, :, start:end] += share[:, :, index : index + 1]
                else:
                    spread[..., start:end] += share[..., index : index + 1]
            grad = spread
        return grad


def _adaptive_windows(length: int, size: int) -> tuple[list[int], list[int]]:
    starts = [i * length // size for i in range(size)]
    ends = [-(-(i + 1) * length // size) for i in range(size)]
    return starts, ends


def _along(values: Array, axis: int) -> Array:
    return values[:, None] if axis == 2 else values


def _counts(ctx: Context, starts: list[int], ends: list[int], dtype: object) -> Array:
    return ctx.backend.xp.asarray([end - start for start, end in zip(starts, ends, strict=True)], dtype=dtype)
