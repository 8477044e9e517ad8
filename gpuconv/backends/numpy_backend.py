"""The reference backend: plain NumPy, float32 and float64. It runs everywhere; the others are compared with it.

Convolutions gather their windows into a matrix (im2col; Chellapilla, Puri & Simard, 2006) and multiply: one GEMM for
each chunk of the batch. Pooling works one axis at a time. Python loops run over the taps of a window and over chunks,
never over images or pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpuconv.backends.base import Backend
from gpuconv.geometry import Conv2dGeometry, Pair, Pool2dGeometry, effective

#: Limit for the matrix of gathered windows. Larger ones are no faster: beyond the size of a cache the gathered windows
#: travel to memory and back (measured on LeNet's and ResNet's layers: 1 to 8 MB alike, 64 MB up to 2x slower).
WINDOW_BUFFER_BYTES = 4 << 20

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class NumpyBackend(Backend):
    """Plain NumPy on the host."""

    name: ClassVar[str] = "numpy"
    xp = np

    def asarray(self, array: Any, name: str = "array") -> np.ndarray:
        array = np.asarray(array)
        if array.dtype in _FLOATS:
            return array
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if array.dtype.kind == "f" and array.itemsize not in (2, 4, 8):
            raise TypeError(
                f"{name} has element type {array.dtype}; the {self.name} backend computes in float32 and float64"
            )
        return array

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    # -- data --------------------------------------------------------------------------------------------------------

    def image_batch(
        self,
        table: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        index: np.ndarray,
        transforms: np.ndarray | None,
        size: Pair,
    ) -> tuple[np.ndarray, np.ndarray]:
        check_index(index, len(images))
        (p, q), (h, w) = size, images.shape[1:]
        top, left = (p - h) // 2, (q - w) // 2
        if transforms is None:
            x = np.full((len(index), 1, p, q), table[0])
            x[:, 0, top : top + h, left : left + w] = table.take(images[index])
            return x, labels[index]
        return _warped(table, images[index], transforms[index], size), labels[index]

    def count_correct(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.asarray(np.count_nonzero(logits.argmax(1) == labels), np.int32)

    # -- convolution -------------------------------------------------------------------------------------------------

    def _products(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """``a · b``, group by group: (groups, m, k) and (groups, k, n) give (groups, m, n)."""
        return np.matmul(a, b)

    def conv2d(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, geometry: Conv2dGeometry
    ) -> np.ndarray:
        g = geometry
        filters = weight.reshape(g.groups, g.k // g.groups, -1)
        y = np.empty(g.output_shape, x.dtype)
        for images, rows, columns, windows in _window_chunks(x, g):
            maps = self._products(filters, _as_matrix(windows))
            maps = maps.reshape(g.k, windows.shape[4], windows.shape[5], windows.shape[6]).swapaxes(0, 1)
            target = y[images, :, rows, columns]
            if bias is None:
                target[...] = maps
            else:
                np.add(maps, bias[:, None, None], out=target)
        return y

    def conv2d_grad_input(self, grad: np.ndarray, weight: np.ndarray, geometry: Conv2dGeometry) -> np.ndarray:
        g = geometry
        (top, _), (left, _) = g.padding
        filters = weight.reshape(g.groups, g.k // g.groups, -1).swapaxes(1, 2)
        dx = np.empty(g.input_shape, grad.dtype)
        for images, chunks in _chunks(g, grad.itemsize):
            padded = np.zeros(_padded_shape(g, images.stop - images.start), grad.dtype)
            windows = _windows(padded, g)
            for rows, columns in chunks:
                values = self._products(filters, _filters_first(grad[images, :, rows, columns], g))
                target = windows[..., rows, columns]
                values = values.reshape(target.shape)
                # Windows overlap, but for one tap their elements are distinct: tap by tap the sum is well-defined.
                for i in range(g.r):
                    for j in range(g.s):
                        target[:, :, i, j] += values[:, :, i, j]
            dx[images] = padded[:, :, top : top + g.h, left : left + g.w]
        return dx

    def conv2d_grad_weight(self, grad: np.ndarray, x: np.ndarray, geometry: Conv2dGeometry) -> np.ndarray:
        g = geometry
        dw = np.zeros((g.groups, g.k // g.groups, g.c // g.groups * g.r * g.s), grad.dtype)
        for images, rows, columns, windows in _window_chunks(x, g):
            upstream = _filters_first(grad[images, :, rows, columns], g)
            dw += self._products(upstream, _as_matrix(windows).swapaxes(1, 2))
        return dw.reshape(g.weight_shape)

    def conv2d_grad_bias(self, grad: np.ndarray) -> np.ndarray:
        return grad.sum(axis=(2, 3)).sum(axis=0)  # in this order both sums run over contiguous memory

    # -- activation and pooling --------------------------------------------------------------------------------------

    def relu(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, x.dtype.type(0))

    def relu_grad(self, grad: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(y <= 0, grad.dtype.type(0), grad)

    def max_pool2d(self, x: np.ndarray, geometry: Pool2dGeometry) -> tuple[np.ndarray, np.ndarray]:
        # One axis, then the other: r + s steps instead of r · s. Row-major order survives, because the columns are
        # decided first: the first row that holds the maximum wins, with the first column that it has there.
        g = geometry
        (top, _), (left, _) = g.padding
        x = _pad_for_pooling(x, g, fill=-np.inf)
        offset_type = np.uint8 if g.r * g.s <= 256 else np.int32
        first_columns = _first_inside(g.q, g.stride[1], g.dilation[1], left)
        best = _taps(x, 3, 0, g.q, g.stride[1]).copy()
        offsets = np.broadcast_to(first_columns.astype(offset_type), best.shape).copy()
        for j in range(1, g.s):
            _keep_larger(best, offsets, _taps(x, 3, j * g.dilation[1], g.q, g.stride[1]), np.asarray(j, offset_type))
        row_best, row_offsets = best, offsets
        first_rows = _first_inside(g.p, g.stride[0], g.dilation[0], top)
        best = _taps(row_best, 2, 0, g.p, g.stride[0]).copy()
        starts = np.arange(g.p) * g.stride[0] + first_rows * g.dilation[0]
        offsets = row_offsets[:, :, starts] + (first_rows * g.s).astype(offset_type)[:, None]
        for i in range(1, g.r):
            row = i * g.dilation[0]
            _keep_larger(
                best,
                offsets,
                _taps(row_best, 2, row, g.p, g.stride[0]),
                _taps(row_offsets, 2, row, g.p, g.stride[0]) + offset_type(i * g.s),
            )
        return best, offsets

    def max_pool2d_grad(self, grad: np.ndarray, winners: np.ndarray, geometry: Pool2dGeometry) -> np.ndarray:
        g = geometry
        planes = np.arange(g.n * g.c).reshape(g.n, g.c, 1, 1) * (g.h * g.w)
        where = self.max_pool2d_indices(winners, g) + planes
        dx = np.zeros(g.n * g.c * g.h * g.w, grad.dtype)
        if g.stride[0] >= effective(g.r, g.dilation[0]) and g.stride[1] >= effective(g.s, g.dilation[1]):
            dx[where] = grad  # no element belongs to two windows
        else:
            np.add.at(dx, where.reshape(-1), grad.reshape(-1))
        return dx.reshape(g.input_shape)

    def avg_pool2d(
        self, x: np.ndarray, geometry: Pool2dGeometry, *, count_include_pad: bool, divisor_override: int | None
    ) -> np.ndarray:
        g = geometry
        x = _pad_for_pooling(x, g, fill=0)
        columns = sum(_taps(x, 3, j, g.q, g.stride[1]) for j in range(1, g.s)) + _taps(x, 3, 0, g.q, g.stride[1])
        total = sum(_taps(columns, 2, i, g.p, g.stride[0]) for i in range(1, g.r)) + _taps(
            columns, 2, 0, g.p, g.stride[0]
        )
        return total / _divisor(g, count_include_pad, divisor_override).astype(x.dtype)

    def avg_pool2d_grad(
        self, grad: np.ndarray, geometry: Pool2dGeometry, *, count_include_pad: bool, divisor_override: int | None
    ) -> np.ndarray:
        g = geometry
        (top, bottom), (left, right) = g.padding
        below, beside = g.overhang
        share = grad / _divisor(g, count_include_pad, divisor_override).astype(grad.dtype)
        columns = np.zeros((g.n, g.c, g.h + top + bottom + below, g.q), grad.dtype)
        for i in range(g.r):
            _taps(columns, 2, i, g.p, g.stride[0])[...] += share
        dx = np.zeros((g.n, g.c, columns.shape[2], g.w + left + right + beside), grad.dtype)
        for j in range(g.s):
            _taps(dx, 3, j, g.q, g.stride[1])[...] += columns
        return dx[:, :, top : top + g.h, left : left + g.w]

    # -- loss --------------------------------------------------------------------------------------------------------

    def softmax_cross_entropy(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        *,
        weight: np.ndarray | None,
        ignore_index: int,
        label_smoothing: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        classes = logits.shape[1]
        counted = labels != ignore_index
        wrong = np.flatnonzero(counted & ((labels < 0) | (labels >= classes)))
        if wrong.size:
            raise ValueError(
                f"cross_entropy: target[{wrong[0]}] is {labels[wrong[0]]}, but input has {classes} classes "
                f"(0 to {classes - 1}) and ignore_index is {ignore_index}"
            )
        shifted = logits - logits.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        total = exponentials.sum(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(total)
        probabilities = exponentials / total
        rows, targets = np.arange(len(labels)), np.where(counted, labels, 0)
        losses = -log_probabilities[rows, targets]
        if weight is not None:
            losses *= weight[targets]
        if label_smoothing:
            spread = log_probabilities if weight is None else log_probabilities * weight
            losses *= 1 - label_smoothing
            losses -= label_smoothing / classes * spread.sum(axis=1)
        losses[~counted] = 0
        return losses, probabilities

    def softmax_cross_entropy_grad(
        self,
        grad: np.ndarray,
        probabilities: np.ndarray,
        labels: np.ndarray,
        *,
        weight: np.ndarray | None,
        ignore_index: int,
        label_smoothing: float,
    ) -> np.ndarray:
        classes = probabilities.shape[1]
        counted = labels != ignore_index
        rows, targets = np.arange(len(labels)), np.where(counted, labels, 0)
        weights = np.ones(classes, probabilities.dtype) if weight is None else weight
        # With coefficients a[j] on -log p[j], the gradient is p · Σ a - a.
        certain = (1 - label_smoothing) * weights[targets]
        smooth = label_smoothing / classes * weights
        dlogits = probabilities * (certain + smooth.sum())[:, None]
        dlogits -= smooth
        dlogits[rows, targets] -= certain
        dlogits *= grad[:, None]
        dlogits[~counted] = 0
        return dlogits

    # -- optimizer updates -------------------------------------------------------------------------------------------

    def sgd_update_all(
        self,
        params: Sequence[np.ndarray],
        grads: Sequence[np.ndarray],
        velocities: Sequence[np.ndarray | None],
        *,
        together: Any = None,
        **options: Any,
    ) -> None:
        for arrays in zip(params, grads, velocities, strict=True):
            _sgd_update(*arrays, **options)

    def adam_update_all(
        self,
        params: Sequence[np.ndarray],
        grads: Sequence[np.ndarray],
        means: Sequence[np.ndarray],
        squares: Sequence[np.ndarray],
        *,
        together: Any = None,
        **options: Any,
    ) -> None:
        for arrays in zip(params, grads, means, squares, strict=True):
            _adam_update(*arrays, **options)


# -- optimizer updates -----------------------------------------------------------------------------------------------


def _sgd_update(
    param: np.ndarray,
    grad: np.ndarray,
    velocity: np.ndarray | None,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    if weight_decay:
        grad = grad + weight_decay * param
    if velocity is not None:
        velocity *= momentum
        velocity += (1 - dampening) * grad if dampening else grad
        grad = grad + momentum * velocity if nesterov else velocity
    param -= lr * grad


def _adam_update(
    param: np.ndarray,
    grad: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    if weight_decay and decoupled:
        param *= 1 - lr * weight_decay
    elif weight_decay:
        grad = grad + weight_decay * param
    mean *= beta1
    mean += (1 - beta1) * grad
    square *= beta2
    square += (1 - beta2) * grad * grad
    denominator = np.sqrt(square)
    denominator /= (1 - beta2**step) ** 0.5
    denominator += eps
    param -= lr / (1 - beta1**step) * (mean / denominator)


# -- windows of a convolution ----------------------------------------------------------------------------------------


def _chunks(g: Conv2dGeometry, itemsize: int) -> Iterator[tuple[slice, list[tuple[slice, slice]]]]:
    """Cut the output into pieces whose gathered windows stay within WINDOW_BUFFER_BYTES.

    Yields a slice of the batch, and the slices of rows and columns to take for it: whole images as long as one fits,
    else rows of one image, else parts of a row.
    """
    window_bytes = g.c * g.r * g.s * itemsize
    room = max(1, WINDOW_BUFFER_BYTES // window_bytes)
    columns = min(g.q, room)
    rows = min(g.p, max(1, room // g.q))
    images = max(1, room // (g.p * g.q))
    pieces = [
        (slice(row, min(row + rows, g.p)), slice(column, min(column + columns, g.q)))
        for row in range(0, g.p, rows)
        for column in range(0, g.q, columns)
    ]
    for image in range(0, g.n, images):
        yield slice(image, min(image + images, g.n)), pieces


def _window_chunks(x: np.ndarray, g: Conv2dGeometry) -> Iterator[tuple[slice, slice, slice, np.ndarray]]:
    """Yield (images, rows, columns, windows): slices of the output and a view of the windows they come from."""
    for images, pieces in _chunks(g, x.itemsize):
        windows = _windows(_padded(x[images], g), g)
        for rows, columns in pieces:
            yield images, rows, columns, windows[..., rows, columns]


def _windows(padded: np.ndarray, g: Conv2dGeometry) -> np.ndarray:
    """View a padded input as (groups, c / groups, r, s, n, p, q)."""
    n_stride, c_stride, h_stride, w_stride = padded.strides
    channels = g.c // g.groups
    return as_strided(
        padded,
        (g.groups, channels, g.r, g.s, len(padded), g.p, g.q),
        (
            channels * c_stride,
            c_stride,
            g.dilation[0] * h_stride,
            g.dilation[1] * w_stride,
            n_stride,
            g.stride[0] * h_stride,
            g.stride[1] * w_stride,
        ),
    )


def _as_matrix(windows: np.ndarray) -> np.ndarray:
    """Copy windows into a (groups, c / groups · r · s, n · p · q) matrix."""
    groups, channels, r, s, n, p, q = windows.shape
    return np.ascontiguousarray(windows).reshape(groups, channels * r * s, n * p * q)


def _filters_first(grad: np.ndarray, g: Conv2dGeometry) -> np.ndarray:
    """Copy an output gradient (n, k, p, q) into a (groups, k / groups, n · p · q) matrix."""
    n, k, p, q = grad.shape
    return np.ascontiguousarray(grad.swapaxes(0, 1)).reshape(g.groups, k // g.groups, n * p * q)


def _padded_shape(g: Conv2dGeometry, images: int) -> tuple[int, int, int, int]:
    return images, g.c, g.h + sum(g.padding[0]), g.w + sum(g.padding[1])


def _padded(x: np.ndarray, g: Conv2dGeometry) -> np.ndarray:
    if g.padding == ((0, 0), (0, 0)):
        return x
    (top, _), (left, _) = g.padding
    padded = np.zeros(_padded_shape(g, len(x)), x.dtype)
    padded[:, :, top : top + g.h, left : left + g.w] = x
    return padded


# -- windows of a pooling --------------------------------------------------------------------------------------------


def _pad_for_pooling(x: np.ndarray, g: Pool2dGeometry, fill: float) -> np.ndarray:
    (top, bottom), (left, right) = g.padding
    below, beside = g.overhang
    if not (top or bottom or left or right or below or beside):
        return x
    padded = np.full((g.n, g.c, g.h + top + bottom + below, g.w + left + right + beside), fill, x.dtype)
    padded[:, :, top : top + g.h, left : left + g.w] = x
    return padded


def _taps(x: np.ndarray, axis: int, tap: int, size: int, stride: int) -> np.ndarray:
    """View the elements that lie at offset ``tap`` of each of ``size`` windows along ``axis``."""
    where = slice(tap, tap + (size - 1) * stride + 1, stride)
    return x[:, :, where] if axis == 2 else x[:, :, :, where]


def _first_inside(size: int, stride: int, dilation: int, before: int) -> np.ndarray:
    """For each window along an axis, its first tap that lies behind the padding before the input."""
    start = np.arange(size) * stride - before
    return np.maximum(0, -(start // dilation))


def _keep_larger(best: np.ndarray, offsets: np.ndarray, values: np.ndarray, value_offsets: np.ndarray) -> None:
    """Where a value beats the best one so far, or is NaN, take it and its offset."""
    wins = values > best
    wins |= values != values
    np.maximum(best, values, out=best)  # keeps NaN
    # Arithmetic instead of np.copyto(..., where=wins), which branches on every element: 100x slower. In uint8 the
    # difference wraps around, and the sum wraps back.
    offsets += np.subtract(value_offsets, offsets, dtype=offsets.dtype) * wins


def _divisor(g: Pool2dGeometry, count_include_pad: bool, divisor_override: int | None) -> np.ndarray:
    """What each window's sum is divided by: (p, q), or a scalar."""
    if divisor_override is not None:
        return np.asarray(divisor_override)
    rows, columns = g.window_counts(include_padding=count_include_pad)
    return np.multiply.outer(rows, columns)


# -- data ------------------------------------------------------------------------------------------------------------


def check_index(index: np.ndarray, count: int) -> None:
    """IndexError unless each number in ``index`` is that of one of ``count`` images."""
    # As unsigned numbers the negative ones are the largest: one pass finds both.
    if index.size and index.view(np.uint64).max() >= count:
        position = int(np.flatnonzero((index < 0) | (index >= count))[0])
        raise IndexError(
            f"image_batch: index[{position}] is {index[position]}, but there are {count} images, from 0 on"
        )


def _warped(table: np.ndarray, images: np.ndarray, transforms: np.ndarray, size: Pair) -> np.ndarray:
    """Images (n, h, w), each with its affine transform, as inputs (n, 1, *size); see ``Backend.image_batch``."""
    real, (p, q), (n, h, w) = table.dtype.type, size, images.shape
    middle_x, middle_y = (q - 1) / 2, (p - 1) / 2
    x, y = np.arange(q, dtype=real) - real(middle_x), (np.arange(p, dtype=real) - real(middle_y))[:, None]
    (a, b, c), (d, e, f) = np.moveaxis(transforms, 0, 2)[..., None, None]
    # In an image with a black frame of one pixel: what is outside of the image is on the frame, or not even there.
    column = a * x + (b * y + c) + real(middle_x - (q - w) // 2 + 1)
    row = d * x + (e * y + f) + real(middle_y - (p - h) // 2 + 1)
    inside = (column > 0) & (column < w + 1) & (row > 0) & (row < h + 1)  # false for a NaN, too
    # The frame's corner stands for all that is outside: as a whole pixel, it is not mixed with its neighbours.
    column, row = np.where(inside, column, real(0)), np.where(inside, row, real(0))
    left, above = column.astype(np.int64), row.astype(np.int64)
    to_right, to_below = column - left.astype(real), row - above.astype(real)
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    image = np.arange(n)[:, None, None]
    corners = [table.take(framed[image, above + i, left + j]) for i in (0, 1) for j in (0, 1)]
    upper, lower = (to_right * (second - first) + first for first, second in (corners[:2], corners[2:]))
    return (to_below * (lower - upper) + upper)[:, None]
