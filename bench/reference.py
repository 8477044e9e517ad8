"""Convolution and its gradients in float64, tap by tap: what kernels are compared with. Shares no code with them.

Each tap (r, s) of the window is one matrix product over the channels of a group, summed in float64 whatever the type
of the inputs. Shapes are those of a :class:`gpuconv.geometry.Conv2dGeometry`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpuconv.geometry import Conv2dGeometry


def _doubles(*arrays: Any) -> tuple[Any, ...]:
    return tuple(np.asarray(array, np.float64) for array in arrays)


def _padded(x: Any, g: Conv2dGeometry) -> Any:
    return np.pad(x, ((0, 0), (0, 0), *g.padding))


def _taps(g: Conv2dGeometry) -> Iterator[tuple[slice, slice, int, int, slice, slice]]:
    """Group by group and tap by tap: filters and channels of the group, the tap, its rows and columns of the input."""
    filters, channels = g.k // g.groups, g.c // g.groups
    for group in range(g.groups):
        ks, cs = slice(group * filters, (group + 1) * filters), slice(group * channels, (group + 1) * channels)
        for r in range(g.r):
            for s in range(g.s):
                top, left = r * g.dilation[0], s * g.dilation[1]
                rows = slice(top, top + (g.p - 1) * g.stride[0] + 1, g.stride[0])
                columns = slice(left, left + (g.q - 1) * g.stride[1] + 1, g.stride[1])
                yield ks, cs, r, s, rows, columns


def conv2d(x: Any, weight: Any, bias: Any, g: Conv2dGeometry) -> Any:
    """``out[n,k,p,q] = bias[k] + Σ x · weight``, (n, k, p, q); bias may be None."""
    x, weight = _doubles(_padded(x, g), weight)
    out = np.zeros(g.output_shape)
    for ks, cs, r, s, rows, columns in _taps(g):
        maps = np.tensordot(weight[ks, :, r, s], x[:, cs, rows, columns], (1, 1))
        out[:, ks] += maps.swapaxes(0, 1)
    return out if bias is None else out + np.asarray(bias, np.float64)[:, None, None]


def conv2d_grad_input(grad: Any, weight: Any, g: Conv2dGeometry) -> Any:
    """The gradient of the input, (n, c, h, w), from that of the output, (n, k, p, q)."""
    grad, weight = _doubles(grad, weight)
    (top, bottom), (left, right) = g.padding
    padded = np.zeros((g.n, g.c, g.h + top + bottom, g.w + left + right))
    for ks, cs, r, s, rows, columns in _taps(g):
        maps = np.tensordot(weight[ks, :, r, s], grad[:, ks], (0, 1))
        padded[:, cs, rows, columns] += maps.swapaxes(0, 1)
    return padded[:, :, top : top + g.h, left : left + g.w]


def conv2d_grad_weight(grad: Any, x: Any, g: Conv2dGeometry) -> Any:
    """The gradient of the weight, (k, c / groups, r, s), from that of the output and the input."""
    grad, x = _doubles(grad, _padded(x, g))
    out = np.zeros(g.weight_shape)
    for ks, cs, r, s, rows, columns in _taps(g):
        out[ks, :, r, s] = np.tensordot(grad[:, ks], x[:, cs, rows, columns], ((0, 2, 3), (0, 2, 3)))
    return out


def expected(operation: str, inputs: Any, g: Conv2dGeometry) -> Any:
    """The result of an operation, by the name that it has in ``gpuconv.kernels.VARIANTS``, on its inputs in order."""
    return {
        "conv2d": conv2d,
        "conv2d_grad_input": conv2d_grad_input,
        "conv2d_grad_weight": conv2d_grad_weight,
    }[operation](*inputs, g)
