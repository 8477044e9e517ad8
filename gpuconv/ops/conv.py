"""Convolution (cross-correlation: the filter is not flipped) and the blocks that begin with one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array, Backend, capturing
from gpuconv.dtypes import is_half
from gpuconv.geometry import BlockPairGeometry, Conv2dGeometry, Pool2dGeometry


def _in_float32(compute: Callable[..., Array], *arrays: Array | None) -> Array:
    """What ``compute`` gives of arrays, which may be of a half type: then it computes in float32, and is rounded."""
    first = arrays[0]
    assert first is not None
    if not is_half(first.dtype):
        return compute(*arrays)
    wide = [None if array is None else array.astype(np.float32) for array in arrays]
    return compute(*wide).astype(first.dtype)


def _of_arrays(primitive: Any, geometry: Conv2dGeometry) -> Callable[..., Array]:
    return lambda *arrays: primitive(*arrays, geometry)


def _convolved(backend: Backend, primitive: str, geometry: Conv2dGeometry, *arrays: Array | None) -> Array:
    """A convolution, or one of its gradients, of half types as they are where the backend takes them."""
    compute, first = _of_arrays(getattr(backend, primitive), geometry), arrays[0]
    assert first is not None
    if is_half(first.dtype) and backend.takes_half(primitive, geometry, first.dtype):
        return compute(*arrays)
    return _in_float32(compute, *arrays)


class Conv2d(Function):
    """Inputs x (n, c, h, w), weight (k, c/groups, r, s), bias (k,) or None; result (n, k, p, q)."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Array, bias: Array | None, *, geometry: Conv2dGeometry) -> Array:
        need_x, need_weight, _ = ctx.needs_input_grad
        ctx.save(x if need_weight else None, weight if need_x else None, geometry)
        return _convolved(ctx.backend, "conv2d", geometry, x, weight, bias)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, weight, geometry = ctx.saved
        return _gradients(ctx, grad, x, weight, geometry)


def _gradients(
    ctx: Context, grad: Array, x: Array, weight: Array, geometry: Conv2dGeometry
) -> tuple[Array | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad
    return (
        _convolved(ctx.backend, "conv2d_grad_input", geometry, grad, weight) if need_x else None,
        _convolved(ctx.backend, "conv2d_grad_weight", geometry, grad, x) if need_weight else None,
        _in_float32(ctx.backend.conv2d_grad_bias, grad) if need_bias else None,
    )


class Conv2dReLU(Function):
    """ReLU of :class:`Conv2d`, in one primitive."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Array, bias: Array | None, *, geometry: Conv2dGeometry) -> Array:
        if is_half(x.dtype) and ctx.backend.takes_half("conv2d", geometry, x.dtype):
            y = _in_float32(ctx.backend.relu, ctx.backend.conv2d(x, weight, bias, geometry))
        else:
            y = _in_float32(_of_arrays(ctx.backend.conv2d_relu, geometry), x, weight, bias)
        need_x, need_weight, _ = ctx.needs_input_grad
        ctx.save(x if need_weight else None, weight if need_x else None, y, geometry)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, weight, y, geometry = ctx.saved
        return _gradients(ctx, _in_float32(ctx.backend.relu_grad, grad, y), x, weight, geometry)


class Conv2dReLUMaxPool2d(Function):
    """Max pooling of :class:`Conv2dReLU`, in one primitive: the maps before pooling are never kept."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Array,
        weight: Array,
        bias: Array | None,
        *,
        geometry: Conv2dGeometry,
        pool: Pool2dGeometry,
    ) -> Array:
        y, winners = ctx.backend.conv2d_relu_max_pool2d(x, weight, bias, geometry, pool)
        ctx.save(x, weight, y, winners, geometry, pool)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, weight, y, winners, geometry, pool = ctx.saved
        need_x, need_weight, need_bias = ctx.needs_input_grad
        with capturing.sums_may_wait():
            return ctx.backend.conv2d_relu_max_pool2d_grad(
                grad, x, weight, y, winners, geometry, pool, (need_x, need_weight, need_bias)
            )


class Conv2dReLUMaxPool2dPair(Function):
    """Two of :class:`Conv2dReLUMaxPool2d`, in one primitive: inputs x, weight, bias, weight, bias."""

    @staticmethod
    def forward(ctx: Context, x: Array, *parameters: Any, geometry: BlockPairGeometry) -> Array:
        weights, biases = parameters[::2], parameters[1::2]
        ys, winners = ctx.backend.conv2d_relu_max_pool2d_pair(x, weights, biases, geometry)
        ctx.save(x, weights, ys, winners, geometry)
        return ys[-1]

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, weights, ys, winners, geometry = ctx.saved
        with capturing.sums_may_wait():
            return ctx.backend.conv2d_relu_max_pool2d_pair_grad(
                grad, x, weights, ys, winners, geometry, ctx.needs_input_grad
            )
