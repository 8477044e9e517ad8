"""Images cut into windows and joined again, channels to pixels and back, and resizing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array
from gpuconv.geometry import integer, pair
from gpuconv.ops.adaptive import AdaptiveAvgPool
from gpuconv.ops.arithmetic import rounded_once
from gpuconv.ops.checks import element_type, floats, number, one_of, operand, shape_of
from gpuconv.ops.shape import permute, reshape

__all__ = ["channel_shuffle", "fold", "interpolate", "pixel_shuffle", "pixel_unshuffle", "unfold", "upsample"]


# -- windows ---------------------------------------------------------------------------------------------------------


class Cutting(Function):
    """An array cut into pieces, which may overlap; the gradient adds them up. ``pieces`` can do both."""

    #: The method of ``pieces`` that is forward, and the one that is backward.
    ways: ClassVar[tuple[str, str]] = ("cut", "add")

    @classmethod
    def forward(cls, ctx: Context, x: Array, *, pieces: Any) -> Array:
        ctx.save(pieces)
        return getattr(pieces, cls.ways[0])(ctx.backend.xp, x)

    @classmethod
    def backward(cls, ctx: Context, grad: Array) -> Array:
        return getattr(ctx.saved[0], cls.ways[1])(ctx.backend.xp, grad)


class Adding(Cutting):
    """Pieces added up to an array; the gradient is cut into such pieces."""

    ways = ("add", "cut")


class Unfold(Cutting):
    """(N, C, H, W) as the windows' elements, (N, C · R · S, L)."""


class Fold(Adding):
    """The windows' elements, (N, C · R · S, L), added up to (N, C, H, W)."""


class _Windows:
    """Windows of an image: their size, dilation, padding and stride, and how many there are."""

    def __init__(self, op: str, image: tuple[int, int], kernel: Any, dilation: Any, padding: Any, stride: Any):
        self.image = image
        self.kernel = pair(kernel, "kernel_size", minimum=1, op=op)
        self.dilation = pair(dilation, "dilation", minimum=1, op=op)
        self.padding = pair(padding, "padding", minimum=0, op=op)
        self.stride = pair(stride, "stride", minimum=1, op=op)
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        height, width = (
            (size + 2 * p - r) // s + 1 for size, p, r, s in zip(image, self.padding, reach, self.stride, strict=True)
        )
        self.counts = height, width
        if min(self.counts) < 1:
            raise ValueError(f"{op}: kernel_size {self.kernel} does not fit into an image of {image} with its padding")

    def _taps(self, padded: Array) -> Iterator[tuple[int, int, Array]]:
        """For each element of the window the pixels at which it stands: a view (N, C, P, Q)."""
        (r, s), (dy, dx), (p, q), (sy, sx) = self.kernel, self.dilation, self.counts, self.stride
        for i in range(r):
            for j in range(s):
                rows, columns = i * dy, j * dx
                yield i, j, padded[:, :, rows : rows + (p - 1) * sy + 1 : sy, columns : columns + (q - 1) * sx + 1 : sx]

    def _padded(self, xp: Any, n: int, c: int, dtype: Any) -> Array:
        return xp.zeros((n, c, *(size + 2 * p for size, p in zip(self.image, self.padding, strict=True))), dtype)

    def _inside(self, padded: Array) -> Array:
        (top, left), (h, w) = self.padding, self.image
        return padded[:, :, top : top + h, left : left + w]

    def cut(self, xp: Any, x: Array) -> Array:
        n, c = x.shape[:2]
        padded = self._padded(xp, n, c, x.dtype)
        self._inside(padded)[...] = x
        y = xp.empty((n, c, *self.kernel, *self.counts), x.dtype)
        for i, j, pixels in self._taps(padded):
            y[:, :, i, j] = pixels
        return y.reshape(n, c * math.prod(self.kernel), math.prod(self.counts))

    def add(self, xp: Any, x: Array) -> Array:
        n, c = x.shape[0], x.shape[1] // math.prod(self.kernel)
        padded = self._padded(xp, n, c, x.dtype)
        x = x.reshape(n, c, *self.kernel, *self.counts)
        for i, j, pixels in self._taps(padded):
            pixels += x[:, :, i, j]
        return self._inside(padded)


def _with_batch(function: type[Cutting], input: Any, windows: _Windows, *, alone: bool) -> Any:
    """Apply the function to a batch, or to one sample ``alone`` as a batch of one."""
    if not alone:
        return function.apply(input, pieces=windows)
    result = function.apply(reshape(input, (1, *shape_of(input))), pieces=windows)
    return reshape(result, shape_of(result)[1:])


def unfold(input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    """The elements of each window of (N, C, H, W) or (C, H, W): im2col.

    Args:
        input: floats.
        kernel_size, dilation, padding, stride: int or (height, width).

    Returns:
        (N, C · R · S, L), a column a window, from left to right and from top to bottom.

    Raises:
        ValueError: a shape or value does not fit.
        TypeError: an argument of the wrong kind.
    """
    op = "unfold"
    (input,) = floats(op, input=input)
    shape = shape_of(input)
    if len(shape) not in (3, 4):
        raise ValueError(f"{op}: input must have 4 dimensions (N, C, H, W), or 3 without the batch, got shape {shape}")
    windows = _Windows(op, (shape[-2], shape[-1]), kernel_size, dilation, padding, stride)
    return _with_batch(Unfold, input, windows, alone=len(shape) == 3)


def fold(input: Any, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    """Windows, as :func:`unfold` gives them, added up to images: its gradient.

    Args:
        input: (N, C · R · S, L) or (C · R · S, L), floats.
        output_size: (height, width) of the images.
        kernel_size, dilation, padding, stride: int or (height, width).

    Returns:
        (N, C, *output_size).

    Raises:
        ValueError: a shape or value does not fit.
        TypeError: an argument of the wrong kind.
    """
    op = "fold"
    (input,) = floats(op, input=input)
    shape = shape_of(input)
    size = pair(output_size, "output_size", minimum=1, op=op)
    windows = _Windows(op, size, kernel_size, dilation, padding, stride)
    taps, count = math.prod(windows.kernel), math.prod(windows.counts)
    if len(shape) not in (2, 3) or shape[-2] % taps or shape[-1] != count:
        raise ValueError(f"{op}: input must have shape (N, C · {taps}, {count}), or that without N, got {shape}")
    return _with_batch(Fold, input, windows, alone=len(shape) == 2)


# -- channels and pixels ----------------------------------------------------------------------------------------------


def pixel_shuffle(input: Any, upscale_factor: int) -> Any:
    """(..., C · r², H, W) as (..., C, H · r, W · r): channels become pixels (Shi et al., 2016).

    ValueError: fewer than 3 dimensions, or channels that r² does not divide.
    """
    op = "pixel_shuffle"
    input = operand(op, "input", input)
    r, shape = integer(upscale_factor, "upscale_factor", minimum=1, op=op), shape_of(input)
    if len(shape) < 3 or shape[-3] % (r * r):
        raise ValueError(f"{op}: input must have shape (..., C · {r * r}, H, W), got {shape}")
    *lead, channels, h, w = shape
    n = len(lead)
    parts = reshape(input, (*lead, channels // (r * r), r, r, h, w))
    return reshape(
        permute(parts, (*range(n), n, n + 3, n + 1, n + 4, n + 2)), (*lead, channels // (r * r), h * r, w * r)
    )


def pixel_unshuffle(input: Any, downscale_factor: int) -> Any:
    """(..., C, H · r, W · r) as (..., C · r², H, W): the way back from :func:`pixel_shuffle`.

    ValueError: fewer than 3 dimensions, or sizes that r does not divide.
    """
    op = "pixel_unshuffle"
    input = operand(op, "input", input)
    r, shape = integer(downscale_factor, "downscale_factor", minimum=1, op=op), shape_of(input)
    if len(shape) < 3 or shape[-2] % r or shape[-1] % r:
        raise ValueError(f"{op}: input must have shape (..., C, H · {r}, W · {r}), got {shape}")
    *lead, channels, h, w = shape
    n = len(lead)
    parts = reshape(input, (*lead, channels, h // r, r, w // r, r))
    return reshape(
        permute(parts, (*range(n), n, n + 2, n + 4, n + 1, n + 3)), (*lead, channels * r * r, h // r, w // r)
    )


def channel_shuffle(input: Any, groups: int) -> Any:
    """(N, C, ...) with the channels of the groups interleaved (Zhang et al., 2018).

    ValueError: fewer than 3 dimensions, or groups that do not divide the channels.
    """
    op = "channel_shuffle"
    input = operand(op, "input", input)
    groups, shape = integer(groups, "groups", minimum=1, op=op), shape_of(input)
    if len(shape) < 3:
        raise ValueError(f"{op}: input must have at least 3 dimensions (N, C, ...), got shape {shape}")
    if shape[1] % groups:
        raise ValueError(f"{op}: groups={groups} does not divide the {shape[1]} channels")
    n, channels, *rest = shape
    parts = reshape(input, (n, groups, channels // groups, *rest))
    return reshape(permute(parts, (0, 2, 1, *range(3, len(rest) + 3))), shape)


# -- another size ----------------------------------------------------------------------------------------------------


class ResizeAlong(Function):
    """``(1 - weight) · x[low] + weight · x[high]`` along a dimension; without weights ``x[low]``."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, *, low: np.ndarray, high: np.ndarray, weights: np.ndarray | None, axis: int
    ) -> Array:
        xp, constant = ctx.backend.xp, ctx.backend.constant
        ctx.save(x.shape, (low, high, weights), axis)
        first = xp.take(x, constant(low), axis=axis)
        if weights is None:
            return first
        along = constant(weights, x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
        return first * (1 - along) + xp.take(x, constant(high), axis=axis) * along

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, (low, high, weights), axis = ctx.saved
        xp = ctx.backend.xp
        # As a product with the matrix of weights: one call, and sums in a fixed order.
        matrix = np.zeros((len(low), shape[axis]), grad.dtype)
        rows = np.arange(len(low))
        np.add.at(matrix, (rows, low), 1 if weights is None else 1 - weights)
        if weights is not None:
            np.add.at(matrix, (rows, high), weights)
        last = ctx.backend.matmul(xp.moveaxis(grad, axis, -1), ctx.backend.constant(matrix))
        return xp.moveaxis(last, -1, axis)


class ResizeBy(Function):
    """Each element along a dimension a weighted sum of those before: a product with a matrix, (new, old)."""

    @staticmethod
    def forward(ctx: Context, x: Array, *, matrix: np.ndarray, axis: int) -> Array:
        xp = ctx.backend.xp
        ctx.save(matrix, axis)
        return xp.moveaxis(ctx.backend.matmul(xp.moveaxis(x, axis, -1), ctx.backend.constant(matrix.T)), -1, axis)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        xp, (matrix, axis) = ctx.backend.xp, ctx.saved
        return xp.moveaxis(ctx.backend.matmul(xp.moveaxis(grad, axis, -1), ctx.backend.constant(matrix)), -1, axis)


def _cubic(have: int, want: int, scale: float, align_corners: bool, dtype: Any) -> np.ndarray:
    """Weights of the four pixels around each place: cubic convolution (Keys, 1981) with a = -0.75, as in PyTorch."""
    if align_corners:
        places = np.arange(want) * ((have - 1) / (want - 1) if want > 1 else 0.0)
    else:
        places = (np.arange(want) + 0.5) * scale - 0.5
    first = np.floor(places)
    matrix = np.zeros((want, have))
    for tap in range(-1, 3):
        distance = np.abs(places - first - tap)
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
        columns = np.clip(first + tap, 0, have - 1).astype(np.int64)
        np.add.at(matrix, (np.arange(want), columns), np.where(distance <= 1, near, far))
    return matrix.astype(dtype)


#: Modes for which corners may be aligned, and the number of dimensions that they resize.
_CORNERED = {"linear": 1, "bilinear": 2, "trilinear": 3, "bicubic": 2}


@rounded_once
def interpolate(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    """Images of another size: (N, C, W), (N, C, H, W) or (N, C, D, H, W).

    Args:
        input: floats.
        size: of the result, an integer or one a dimension.
        scale_factor: how many times larger the result is, instead of ``size``: ``floor(size · scale_factor)``.
        mode: 'nearest', the pixel to the upper left; 'nearest-exact', the nearest one; 'linear' (3 dimensions),
            'bilinear' and 'bicubic' (4), 'trilinear' (5); 'area', the average over the pixels that an output pixel
            covers.
        align_corners: for the linear modes and 'bicubic': the outermost pixels' centres are the same before and after,
            and not their outer edges.
        recompute_scale_factor: use the ratio of the sizes, rather than the ``scale_factor`` that gave them.
        antialias: not available.

    Returns:
        (N, C, *size).

    Raises:
        ValueError: neither or both of ``size`` and ``scale_factor``, or what does not fit.
        TypeError: an argument of the wrong kind.
    """
    op = "interpolate"
    (input,) = floats(op, input=input)
    one_of(op, "mode", mode, ("nearest", "nearest-exact", "area", *_CORNERED))
    if antialias:
        raise ValueError(f"{op}: antialias is not available; average first, with avg_pool2d or mode='area'")
    shape = shape_of(input)
    spatial = len(shape) - 2
    ranks = (_CORNERED[mode],) if mode in _CORNERED else (1, 2, 3)
    if spatial not in ranks:
        raise ValueError(
            f"{op}: input for mode {mode!r} must have {' or '.join(str(r + 2) for r in ranks)} dimensions, got {shape}"
        )
    if align_corners is not None and mode not in _CORNERED:
        raise ValueError(f"{op}: align_corners is for modes {', '.join(map(repr, _CORNERED))}, got mode {mode!r}")
    if 0 in shape[1:]:
        raise ValueError(f"{op}: input must have channels and pixels, got shape {shape}")
    sizes, scales = _target(op, shape[2:], size, scale_factor, bool(recompute_scale_factor))
    if mode == "area":
        return AdaptiveAvgPool.apply(input, output_size=sizes)
    for axis, (have, want, scale) in enumerate(zip(shape[2:], sizes, scales, strict=True), start=2):
        if have == want and "linear" in mode:
            continue  # whatever scale_factor says, as in PyTorch
        if mode == "nearest" and spatial == 2 and want in (have, 2 * have):
            scale = have / want  # whatever scale_factor says, as in PyTorch for images
        if mode == "bicubic":
            matrix = _cubic(have, want, scale, bool(align_corners), element_type(input))
            input = ResizeBy.apply(input, matrix=matrix, axis=axis)
            continue
        low, high, weights = _sources(mode, have, want, scale, bool(align_corners), element_type(input))
        input = ResizeAlong.apply(input, low=low, high=high, weights=weights, axis=axis)
    return input


def upsample(
    input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None
) -> Any:
    """:func:`interpolate` by its older name."""
    return interpolate(input, size, scale_factor, mode, align_corners)


def _target(
    op: str, have: tuple[int, ...], size: Any, scale_factor: Any, recompute: bool
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The result's size, and by how many pixels of the input one of the result moves, each by dimension."""
    if (size is None) == (scale_factor is None):
        raise ValueError(f"{op}: size or scale_factor must be given, and not both")
    name, given = ("size", size) if scale_factor is None else ("scale_factor", scale_factor)
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * len(have)
    if len(values) != len(have):
        raise ValueError(f"{op}: {name} must be one value or {len(have)}, got {given!r}")
    if scale_factor is None:
        sizes = tuple(integer(value, name, minimum=1, op=op) for value in values)
        return sizes, tuple(h / s for h, s in zip(have, sizes, strict=True))
    factors = [number(op, name, value) for value in values]
    if not min(factors) > 0:
        raise ValueError(f"{op}: scale_factor must be above 0, got {given!r}")
    sizes = tuple(math.floor(h * f) for h, f in zip(have, factors, strict=True))
    if min(sizes) < 1:
        raise ValueError(f"{op}: scale_factor {given!r} leaves nothing of {have}")
    return sizes, tuple(h / s if recompute else 1 / f for h, s, f in zip(have, sizes, factors, strict=True))


def _sources(
    mode: str, have: int, want: int, scale: float, align_corners: bool, dtype: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Which pixels of the input each one of the result lies between, and how far behind the first one."""
    positions = np.arange(want)
    if mode.startswith("nearest"):
        # In float32, as PyTorch computes them: they decide between neighbours.
        shift = np.float32(0.5 if mode == "nearest-exact" else 0)
        low = np.floor((positions.astype(np.float32) + shift) * np.float32(scale)).astype(np.int64)
        low = np.minimum(low, have - 1)
        return low, low, None
    if align_corners:
        places = positions * ((have - 1) / (want - 1) if want > 1 else 0.0)
    else:
        places = np.maximum((positions + 0.5) * scale - 0.5, 0)
    low = np.minimum(places.astype(np.int64), have - 1)
    return low, np.minimum(low + 1, have - 1), (places - low).astype(dtype)
