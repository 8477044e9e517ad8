"""Images read at positions between their elements, and the positions of an affine map: spatial transformers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array
from gpuconv.geometry import integer
from gpuconv.ops.arithmetic import cast, rounded_once
from gpuconv.ops.checks import flag, floats, one_of, shape_of
from gpuconv.ops.elementwise import abs, clamp, floor, logical_and, round, where
from gpuconv.ops.picking import gather
from gpuconv.ops.rearrange import broadcast_to, select
from gpuconv.ops.shape import reshape

__all__ = ["affine_grid", "grid_sample"]

_MODES = ("bilinear", "nearest", "bicubic")
_PADDINGS = ("zeros", "border", "reflection")


@rounded_once
def grid_sample(
    input: Any, grid: Any, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
) -> Any:
    """Read an image at the positions of a grid, between its elements.

    Args:
        input: (N, C, H, W), or (N, C, D, H, W).
        grid: (N, P, Q, 2), columns and rows, or (N, O, P, Q, 3), columns, rows and planes: -1 is the image's first edge
            and 1 its last one. Of the input's element type.
            A position that is NaN reads NaN.
        mode: 'bilinear', of volumes from eight neighbours; 'nearest', halves to the even element; 'bicubic', of images.
        padding_mode: what is read outside: 'zeros'; the nearest element of the 'border'; or the 'reflection' there.
        align_corners: -1 and 1 are the centres of the first and the last element; False and None: their outer edges.

    Returns:
        (N, C, P, Q), or (N, C, O, P, Q).

    Raises:
        TypeError: element types that differ, or no floats.
        ValueError: shapes that do not fit, an empty image, or no such mode.
    """
    op = "grid_sample"
    input, grid = floats(op, input=input, grid=grid)
    one_of(op, "mode", mode, _MODES)
    one_of(op, "padding_mode", padding_mode, _PADDINGS)
    align = align_corners is not None and flag(op, "align_corners", align_corners)
    shape, places = shape_of(input), shape_of(grid)
    axes = len(shape) - 2
    if axes not in (2, 3) or len(places) != len(shape) or places[0] != shape[0] or places[-1] != axes:
        wanted = "(N, C, H, W) and (N, P, Q, 2), or (N, C, D, H, W) and (N, O, P, Q, 3)"
        raise ValueError(f"{op}: input and grid must be {wanted}, got {shape} and {places}")
    if 0 in shape[2:]:
        raise ValueError(f"{op}: input of shape {shape} has no elements to read")
    if mode == "bicubic" and axes == 3:
        raise ValueError(f"{op}: mode 'bicubic' is for images, got an input of shape {shape}")
    n, channels, *sizes = shape
    count, dtype = math.prod(places[1:-1]), np.dtype(input.dtype)
    taps = []
    for axis, size in enumerate(sizes):
        at = reshape(select(grid, -1, axes - 1 - axis), (n, count))
        at = (at + 1) * ((size - 1) / 2) if align else ((at + 1) * size - 1) / 2
        if mode == "bicubic":
            taps.append([(_within(tap, size, padding_mode, align), weight) for tap, weight in _cubic(at)])
        else:
            at = _within(at, size, padding_mode, align)
            taps.append(_nearest(at) if mode == "nearest" else _linear(at))
    flat, total = reshape(input, (n, channels, math.prod(sizes))), 0.0
    for choice in itertools.product(*taps):
        index, weight, inside = 0, 1.0, True
        for size, (tap, share) in zip(sizes, choice, strict=True):
            here = logical_and(tap >= 0, tap <= size - 1)
            index = index * size + cast(where(here, tap, 0.0), np.int64)
            weight, inside = weight * share, logical_and(inside, here)
        value = gather(flat, 2, broadcast_to(reshape(index, (n, 1, count)), (n, channels, count)))
        # By a product, as NaN shall stay NaN.
        total = total + value * reshape(weight * cast(inside, dtype), (n, 1, count))
    return reshape(total, (n, channels, *places[1:-1]))


def _nearest(at: Any) -> list[tuple[Any, Any]]:
    """The nearest element, whose share is 1 wherever the position is: its gradient is 0, and there, as in PyTorch."""
    tap = round(at)
    return [(tap, clamp(tap, 0, 0) + 1)]


def _linear(at: Any) -> list[tuple[Any, Any]]:
    """The elements on both sides of a position, and their shares."""
    low = floor(at)
    return [(low, low + 1 - at), (low + 1, at - low)]


def _cubic(at: Any, a: float = -0.75) -> list[tuple[Any, Any]]:
    """Two elements on each side: Keys' cubic convolution (1981), with PyTorch's parameter."""
    low = floor(at)
    taps = []
    for tap in range(-1, 3):
        s = abs(at - low - tap)
        inner = ((a + 2) * s - (a + 3)) * s * s + 1
        outer = ((a * s - 5 * a) * s + 8 * a) * s - 4 * a
        taps.append((low + tap, inner if tap in (0, 1) else outer))
    return taps


def _within(at: Any, size: int, padding_mode: str, align: bool) -> Any:
    """Positions inside of the image, or as they are for zeros outside of it."""
    if padding_mode == "zeros":
        return at
    if padding_mode == "reflection":
        first, span = (0.0, size - 1.0) if align else (-0.5, float(size))
        if not span:
            return at * 0.0
        at = abs(at - first)
        turns = floor(at / span)
        rest = at - turns * span
        at = where(turns % 2 == 0, rest, span - rest) + first
    return clamp(at, 0, size - 1)


class AffineGrid(Function):
    """Positions (N, P, axes) from matrices (N, axes, axes + 1); ``base`` has those of the result's elements, and 1."""

    @staticmethod
    def forward(ctx: Context, theta: Array, *, base: np.ndarray) -> Array:
        at = ctx.backend.constant(base)
        ctx.save(at)
        # No product of matrices: a captured step cannot call cuBLAS, and these are small.
        return (at[:, None, :] * theta[:, None, :, :]).sum(axis=-1)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (at,) = ctx.saved
        return (grad[..., None] * at[:, None, :]).sum(axis=1)


@rounded_once
def affine_grid(theta: Any, size: Sequence[int], align_corners: bool | None = None) -> Any:
    """The grid of :func:`grid_sample` by which an image is turned, scaled, sheared and moved.

    Args:
        theta: matrices (N, 2, 3), or (N, 3, 4) of volumes: from positions in the result to those in the input.
        size: of the result, (N, C, H, W) or (N, C, D, H, W).
        align_corners: as of :func:`grid_sample`.

    Returns:
        (N, H, W, 2), or (N, D, H, W, 3).

    Raises:
        TypeError: no floats, or no integers as sizes.
        ValueError: shapes that do not fit.
    """
    op = "affine_grid"
    (theta,) = floats(op, theta=theta)
    align = align_corners is not None and flag(op, "align_corners", align_corners)
    n, *sizes = (integer(one, "size", minimum=1, op=op) for one in size)
    sizes, axes = sizes[1:], len(sizes) - 1
    if axes not in (2, 3) or shape_of(theta) != (n, axes, axes + 1):
        wanted = "(N, 2, 3) and size (N, C, H, W), or (N, 3, 4) and (N, C, D, H, W)"
        raise ValueError(f"{op}: theta must be {wanted}, got {shape_of(theta)} and {tuple(size)}")
    dtype = np.dtype(theta.dtype)
    along = [_centres(one, align) for one in sizes]
    base = np.stack([*np.meshgrid(*along, indexing="ij")[::-1], np.ones(sizes)], axis=-1).reshape(-1, axes + 1)
    return reshape(AffineGrid.apply(theta, base=base.astype(dtype)), (n, *sizes, axes))


def _centres(size: int, align: bool) -> np.ndarray:
    """Where elements are between -1 and 1."""
    if align:
        return np.linspace(-1, 1, size) if size > 1 else np.zeros(1)
    return (2 * np.arange(size) + 1) / size - 1
