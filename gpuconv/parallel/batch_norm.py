"""Batch normalisation by the statistics of the whole batch, whose parts are on several processes."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from gpuconv.autograd import Context, Function, Tensor, overwrite
from gpuconv.backends import Array, capturing
from gpuconv.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, Module
from gpuconv.parallel.world import World, current

__all__ = ["sync_batch_norm"]

_M = TypeVar("_M", bound=Module)


def sync_batch_norm(module: _M, *, world: World | None = None) -> _M:
    """Have the batch normalisations in a module use mean and variance of the whole batch while they train.

    Each of them then sends three short messages in a training step, which nothing hides, and every process needs
    samples in every step. Parameters, buffers and their names stay. In one process alone nothing is changed.

    Args:
        module: changed in place, and returned.
        world: the processes; by default :func:`gpuconv.parallel.current`.
    """
    world = current() if world is None else world
    if world.size == 1:
        return module
    for one in module.modules():
        if type(one) in _SYNCED:
            # The object stays: lists of layers, hooks and optimizers refer to it.
            one.__class__ = _SYNCED[type(one)]
            one.__dict__["world"] = world
    return module


class _Synced:
    """What takes the place of forward in a batch normalisation."""

    world: World

    def forward(self, input: Any) -> Any:
        arguments = self._arguments(input)  # type: ignore[attr-defined]
        if not self.training:  # type: ignore[attr-defined]
            return super().forward(input)  # type: ignore[misc]
        x = input if isinstance(input, Tensor) else Tensor(input)
        result, mean, var, count = _Normalize.apply(
            x, arguments["weight"], arguments["bias"], eps=arguments["eps"], world=self.world
        )
        for running, now in ((arguments["running_mean"], mean), (arguments["running_var"], var)):
            if running is not None:
                momentum, unbiased = arguments["momentum"], float(count) / max(1.0, float(count) - 1)
                factor = momentum * (1.0 if now is mean else unbiased)
                moved = (1 - momentum) * running.data + factor * now.data
                overwrite(running.data, moved.astype(running.dtype), "a running statistic")
        return result

    def with_relu(self, input: Any, residual: Any = None) -> Any:
        result = self.forward(input)
        return (result if residual is None else result + residual).relu()


class _Synced1d(_Synced, BatchNorm1d):
    pass


class _Synced2d(_Synced, BatchNorm2d):
    pass


class _Synced3d(_Synced, BatchNorm3d):
    pass


_SYNCED: dict[type, Any] = {BatchNorm1d: _Synced1d, BatchNorm2d: _Synced2d, BatchNorm3d: _Synced3d}


def _summed(world: World, xp: Any, *parts: Any) -> list[Any]:
    """Sums over the processes of arrays of one dimension, in float64, in one message."""
    whole = xp.concatenate([xp.asarray(part, np.float64) for part in parts])
    world.start_sum(whole)()
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return [whole[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class _Normalize(Function):
    """``(x - mean) / sqrt(var + eps) · weight + bias``; also gives mean, (biased) variance, and number of values."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, weight: Array | None, bias: Array | None, *, eps: float, world: World
    ) -> tuple[Array, Array, Array, Array]:
        if capturing.active and capturing.current() is not None:
            raise RuntimeError("sync_batch_norm: statistics that travel between processes cannot be captured")
        xp, axes = ctx.backend.xp, (0, *range(2, x.ndim))
        shape = (1, -1, *[1] * (x.ndim - 2))
        total, count = _summed(world, xp, x.sum(axes, dtype=np.float64), [math.prod(x.shape) / x.shape[1]])
        mean = total / count
        centred = x - mean.reshape(shape).astype(x.dtype)
        (var,) = _summed(world, xp, xp.square(centred).sum(axes, dtype=np.float64))
        var = var / count
        rate = (1 / xp.sqrt(var + eps)).reshape(shape).astype(x.dtype)
        unit = centred * rate
        y = unit if weight is None else unit * weight.reshape(shape)
        ctx.save(unit, rate, weight, count, world)
        return y if bias is None else y + bias.reshape(shape), mean, var, count

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        unit, rate, weight, count, world = ctx.saved
        shape, axes = (1, -1, *[1] * (grad.ndim - 2)), (0, *range(2, grad.ndim))
        d_unit = grad if weight is None else grad * weight.reshape(shape)
        # A process's gradients are those of the mean over its own samples. The other ones' share in the statistics
        # counts by their number, as DataParallel counts their gradients.
        own = len(grad)
        sums = _summed(
            world,
            ctx.backend.xp,
            own * d_unit.sum(axes, dtype=np.float64),
            own * (d_unit * unit).sum(axes, dtype=np.float64),
        )
        first, second = ((one / (count * own)).reshape(shape).astype(grad.dtype) for one in sums)
        dx = (d_unit - first - unit * second) * rate
        need_x, need_weight, need_bias = ctx.needs_input_grad
        return (
            dx if need_x else None,
            (grad * unit).sum(axes) if need_weight else None,
            grad.sum(axes) if need_bias else None,
        )
