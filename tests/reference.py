"""What every operation of gpuconv computes, written from its definition in float64 loops.

The oracle of all tests: it imports nothing of gpuconv and shares no code with it, and it is meant to be
checked by reading. Loops run over every output element; only the innermost sum (the elements under one
window, the classes of one prediction) is left to NumPy. Where PyTorch had a choice to make, the choice is
written beside the loop and `test_reference.py` compares it with PyTorch.

Shapes: input ``(N, C, H, W)``, weight ``(K, C / groups, R, S)``, output ``(N, K, P, Q)``. Gradients are those
of ``sum(grad * output)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Sides: TypeAlias = tuple[tuple[int, int], tuple[int, int]]


def pair(value: Any) -> tuple[int, int]:
    """``(height, width)`` of an int or a pair."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def sides(padding: Any, kernel: tuple[int, int] = (1, 1), dilation: Any = 1) -> Sides:
    """``((top, bottom), (left, right))`` of a padding in any of its spellings.

    'same' pads ``dilation * (kernel - 1)`` elements in all, and the odd one at the bottom and right
    (PyTorch).
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(pair(dilation), kernel, strict=True)]
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    height, width = pair(padding)
    if isinstance(height, int):
        return (height, height), (width, width)
    (top, bottom), (left, right) = height, width
    return (top, bottom), (left, right)


def output_size(
    length: int, around: tuple[int, int], kernel: int, stride: int, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """Number of windows along one dimension.

    Windows begin at ``-before, -before + stride, ...``. Without ``ceil_mode`` the last one that ends inside
    the padded input is the last; with it, so is one that hangs over the end, unless it would begin in the
    padding after the input (PyTorch's rule: a window beginning there would hold nothing).
    """
    before, after = around
    count = 0
    while True:
        start = count * stride - before
        end = start + dilation * (kernel - 1) + 1
        inside = end <= length + after
        # Without this window, what lies beyond the end of the one before would be lost.
        needed = ceil_mode and end - stride < length + after and start < length
        if not (inside or needed):
            return count
        count += 1


# Convolution


def _patch(index: int, stride: int, dilation: int, kernel: int) -> slice:
    """Positions of the padded input under output position ``index``: ``index * stride + dilation * r``."""
    return slice(index * stride, index * stride + dilation * (kernel - 1) + 1, dilation)


def _pad(x: Array, around: Sides) -> Array:
    return np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), *around))


def _conv_windows(
    x: Array, w: Array, stride: Any, padding: Any, dilation: Any, groups: int
) -> Iterator[tuple[tuple[int, int, int, int], tuple[Any, ...]]]:
    """Every output position ``(n, k, p, q)``, and the index of what its filter sees in the padded input."""
    (n, _, h, width), (filters, channels, r, s) = x.shape, w.shape
    stride, dilation = pair(stride), pair(dilation)
    around = sides(padding, (r, s), dilation)
    rows = output_size(h, around[0], r, stride[0], dilation[0])
    columns = output_size(width, around[1], s, stride[1], dilation[1])
    for image, k, p, q in product(range(n), range(filters), range(rows), range(columns)):
        group = k // (filters // groups)
        window = (
            image,
            slice(group * channels, (group + 1) * channels),
            _patch(p, stride[0], dilation[0], r),
            _patch(q, stride[1], dilation[1], s),
        )
        yield (image, k, p, q), window


def conv2d_shape(x_shape: Any, w_shape: Any, stride: Any, padding: Any, dilation: Any) -> tuple[int, ...]:
    """``(N, K, P, Q)``."""
    (n, _, h, width), (filters, _, r, s) = x_shape, w_shape
    around, stride, dilation = sides(padding, (r, s), dilation), pair(stride), pair(dilation)
    return (
        n,
        filters,
        output_size(h, around[0], r, stride[0], dilation[0]),
        output_size(width, around[1], s, stride[1], dilation[1]),
    )


def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Array:
    """``y[n,k,p,q] = b[k] + sum over c,r,s of x[n, c, p*stride + r*dilation - pad, ...] * w[k,c,r,s]``."""
    y = np.zeros(conv2d_shape(x.shape, w.shape, stride, padding, dilation))
    padded = _pad(x, sides(padding, w.shape[2:], dilation))
    w = np.asarray(w, np.float64)
    for position, window in _conv_windows(x, w, stride, padding, dilation, groups):
        k = position[1]
        y[position] = np.sum(padded[window] * w[k]) + (0.0 if b is None else float(b[k]))
    return y


def conv2d_grad(
    grad: Array, x: Array, w: Array, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[Array, Array, Array]:
    """Gradients by input, weight and bias: each product of the sum hands ``grad`` to its two factors."""
    around = sides(padding, w.shape[2:], dilation)
    padded, w = _pad(x, around), np.asarray(w, np.float64)
    grad_padded, grad_w, grad_b = np.zeros_like(padded), np.zeros_like(w), np.zeros(len(w))
    for position, window in _conv_windows(x, w, stride, padding, dilation, groups):
        k, g = position[1], float(grad[position])
        grad_padded[window] += g * w[k]
        grad_w[k] += g * padded[window]
        grad_b[k] += g
    (top, _), (left, _) = around
    return grad_padded[:, :, top : top + x.shape[2], left : left + x.shape[3]], grad_w, grad_b


def conv1d(x: Array, w: Array, b: Array | None = None, stride: int = 1, padding: Any = 0, **kw: Any) -> Array:
    """A convolution along the last dimension of ``(N, C, L)``, with weight ``(K, C / groups, S)``."""
    flat = padding if isinstance(padding, str) else (0, padding)
    dilation = (1, kw.pop("dilation", 1))
    return conv2d(x[:, :, None], w[:, :, None], b, (1, stride), flat, dilation, **kw)[:, :, 0]


# Pooling


def _pool_shape(x: Array, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> tuple[int, ...]:
    around = sides(padding)
    sizes = [
        output_size(x.shape[2 + i], around[i], pair(kernel)[i], pair(stride)[i], pair(dilation)[i], ceil_mode)
        for i in (0, 1)
    ]
    return (*x.shape[:2], *sizes)


def max_pool2d(
    x: Array, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> tuple[Array, Array]:
    """Largest element of each window, and where it lies: ``h * W + w`` in the unpadded map.

    Padded positions take no part. As in PyTorch the first maximum wins, NaN is larger than any number, and of
    several NaN in a window the last one is reported. A window that holds no element at all (a dilated one can
    step over a small map) gives -inf and the index -1; PyTorch gives -inf too, and an index outside the map.
    """
    x = np.asarray(x, np.float64)
    stride = kernel if stride is None else stride
    shape = _pool_shape(x, kernel, stride, padding, dilation, ceil_mode)
    values, indices = np.full(shape, -np.inf), np.full(shape, -1, np.int64)
    (r, s), (sh, sw), (dh, dw), ((top, _), (left, _)) = (
        pair(kernel),
        pair(stride),
        pair(dilation),
        sides(padding),
    )
    h, w = x.shape[2:]
    for n, c, p, q in np.ndindex(shape):
        for i, j in product(range(r), range(s)):
            row, column = p * sh - top + i * dh, q * sw - left + j * dw
            if not (0 <= row < h and 0 <= column < w):
                continue
            value = x[n, c, row, column]
            if indices[n, c, p, q] < 0 or value > values[n, c, p, q] or math.isnan(value):
                values[n, c, p, q], indices[n, c, p, q] = value, row * w + column
    return values, indices


def max_pool2d_grad(grad: Array, indices: Array, x_shape: tuple[int, ...]) -> Array:
    """Each window hands its gradient to the element that won it."""
    result = np.zeros(x_shape)
    for n, c, p, q in np.ndindex(grad.shape):
        if (index := int(indices[n, c, p, q])) >= 0:
            result[n, c, index // x_shape[3], index % x_shape[3]] += grad[n, c, p, q]
    return result


def _average_windows(
    x: Array,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: float | None,
) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...], float]]:
    """Every output position, the index of its elements in the unpadded input, and what their sum is divided
    by.

    The divisor counts the elements; with ``count_include_pad`` the padding too, but never what a window of
    ``ceil_mode`` covers beyond the padding (PyTorch).
    """
    stride = kernel if stride is None else stride
    (r, s), (sh, sw), ((top, bottom), (left, right)) = pair(kernel), pair(stride), sides(padding)
    h, w = x.shape[2:]
    for n, c, p, q in np.ndindex(_pool_shape(x, kernel, stride, padding, 1, ceil_mode)):
        rows = range(p * sh - top, min(p * sh - top + r, h + bottom))
        columns = range(q * sw - left, min(q * sw - left + s, w + right))
        inside_rows = [i for i in rows if 0 <= i < h]
        inside_columns = [j for j in columns if 0 <= j < w]
        if divisor_override is not None:
            divisor = float(divisor_override)
        elif count_include_pad:
            divisor = float(len(rows) * len(columns))
        else:
            divisor = float(len(inside_rows) * len(inside_columns))
        yield (n, c, p, q), (n, c, *np.ix_(inside_rows, inside_columns)), divisor


def avg_pool2d(
    x: Array,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: float | None = None,
) -> Array:
    """Sum of each window, padding being zero, divided as :func:`_average_windows` says."""
    x = np.asarray(x, np.float64)
    y = np.zeros(_pool_shape(x, kernel, kernel if stride is None else stride, padding, 1, ceil_mode))
    options = (kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    for position, window, divisor in _average_windows(x, *options):
        y[position] = np.sum(x[window]) / divisor
    return y


def avg_pool2d_grad(
    grad: Array,
    x: Array,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: float | None = None,
) -> Array:
    """Each window hands ``grad / divisor`` to every one of its elements."""
    result = np.zeros(x.shape)
    options = (kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    for position, window, divisor in _average_windows(x, *options):
        result[window] += grad[position] / divisor
    return result


def sum_pool2d(x: Array, kernel: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False) -> Array:
    """Sum of each window."""
    return avg_pool2d(x, kernel, stride, padding, ceil_mode, divisor_override=1.0)


def _adaptive_shape(x: Array, output: Any) -> tuple[int, ...]:
    sizes = output if isinstance(output, tuple) else (output, output)
    return (*x.shape[:2], *(x.shape[2 + i] if size is None else size for i, size in enumerate(sizes)))


def _adaptive_windows(x: Array, output: Any) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """Window ``i`` of ``size`` spans ``floor(i * length / size)`` to ``ceil((i + 1) * length / size)``."""
    (h, w), shape = x.shape[2:], _adaptive_shape(x, output)
    for n, c, p, q in np.ndindex(shape):
        rows = slice(p * h // shape[2], math.ceil((p + 1) * h / shape[2]))
        columns = slice(q * w // shape[3], math.ceil((q + 1) * w / shape[3]))
        yield (n, c, p, q), (n, c, rows, columns)


def adaptive_avg_pool2d(x: Array, output: Any) -> Array:
    """Mean of windows laid so that the output has the size asked for; None keeps that of the input."""
    x = np.asarray(x, np.float64)
    y = np.zeros(_adaptive_shape(x, output))
    for position, window in _adaptive_windows(x, output):
        y[position] = x[window].mean()
    return y


def adaptive_avg_pool2d_grad(grad: Array, x: Array, output: Any) -> Array:
    """Each window hands ``grad / size`` to every one of its elements."""
    result = np.zeros(x.shape)
    for position, window in _adaptive_windows(x, output):
        result[window] += grad[position] / result[window].size
    return result


# Element by element


def relu(x: Array) -> Array:
    """``max(x, 0)``; NaN stays NaN."""
    x = np.asarray(x, np.float64)
    return np.array([0.0 if v <= 0 else v for v in x.ravel()]).reshape(x.shape)


def relu_grad(grad: Array, x: Array) -> Array:
    """``grad`` where the input is positive, 0 at 0 and below; where it is NaN, ``grad`` passes (PyTorch)."""
    pairs = zip(np.ravel(grad), np.ravel(x), strict=True)
    return np.array([0.0 if v <= 0 else float(g) for g, v in pairs]).reshape(x.shape)


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``, by whichever form does not overflow."""

    def one(v: float) -> float:
        return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))

    x = np.asarray(x, np.float64)
    return np.array([one(v) for v in x.ravel()]).reshape(x.shape)


def tanh(x: Array) -> Array:
    """Hyperbolic tangent."""
    x = np.asarray(x, np.float64)
    return np.array([math.tanh(v) for v in x.ravel()]).reshape(x.shape)


# Dense layers and losses


def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """``y[..., k] = b[k] + sum over c of x[..., c] * w[k, c]``."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    y = np.zeros((*x.shape[:-1], len(w)))
    for *lead, k in np.ndindex(y.shape):
        y[(*lead, k)] = np.sum(x[tuple(lead)] * w[k]) + (0.0 if b is None else float(b[k]))
    return y


def _log_softmax(v: Array) -> Array:
    """``v - log(sum(exp(v)))`` of one vector, the largest element subtracted so that nothing overflows."""
    largest = v.max()
    return v - largest - math.log(np.sum(np.exp(v - largest)))


def log_softmax(x: Array, dim: int) -> Array:
    """Logarithm of :func:`softmax`."""
    x = np.moveaxis(np.array(x, np.float64), dim, -1)
    for lead in np.ndindex(x.shape[:-1]):
        x[lead] = _log_softmax(x[lead])
    return np.moveaxis(x, -1, dim)


def softmax(x: Array, dim: int) -> Array:
    """``exp(x) / sum(exp(x))`` along ``dim``."""
    return np.exp(log_softmax(x, dim))


def _entropy_terms(
    x: Array, target: Array, weight: Array | None, ignore_index: int, smoothing: float
) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...], Array, float]]:
    """Every prediction: its position, the index of its logits, the weights of its log-probabilities, its
    count.

    Its loss is ``-sum(weights * log p)``. A target given as a class is the vector that is 1 there; smoothing
    mixes in the uniform distribution; each class has its ``weight``. The mean divides by the sum of the
    counts: the weight of the target's class for classes, 1 for probabilities, 0 where the target is
    ``ignore_index``.
    """
    axis = 0 if x.ndim == 1 else 1
    classes = x.shape[axis]
    class_weight = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    as_probabilities = target.ndim == x.ndim
    for position in np.ndindex(x.shape[:axis] + x.shape[axis + 1 :]):
        logits = (*position[:axis], slice(None), *position[axis:])
        count = 1.0
        if as_probabilities:
            distribution = np.asarray(target[logits], np.float64)
        else:
            distribution, chosen = np.zeros(classes), int(target[position])
            if chosen == ignore_index:
                yield position, logits, np.zeros(classes), 0.0
                continue
            distribution[chosen], count = 1.0, float(class_weight[chosen])
        yield position, logits, class_weight * ((1 - smoothing) * distribution + smoothing / classes), count


def cross_entropy(
    x: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Array:
    """Cross-entropy of logits ``(N, C, d1, ...)`` or ``(C,)`` with classes or with probabilities."""
    x = np.asarray(x, np.float64)
    losses, counts = [], []
    for _, logits, weights, count in _entropy_terms(x, target, weight, ignore_index, label_smoothing):
        log_p = _log_softmax(x[logits])
        # A class that carries no weight has no term, however improbable it is (0 * -inf would be NaN).
        losses.append(-sum(a * lp for a, lp in zip(weights, log_p, strict=True) if a != 0))
        counts.append(count)
    if reduction == "none":
        axis = 0 if x.ndim == 1 else 1
        return np.array(losses, np.float64).reshape(x.shape[:axis] + x.shape[axis + 1 :])
    total = np.array(sum(losses), np.float64)
    if reduction == "sum":
        return total
    return total / sum(counts) if sum(counts) else np.array(np.nan)


def cross_entropy_grad(
    grad: Array,
    x: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Array:
    """Gradient by the logits: ``d(-sum_c a_c log p_c) / dx_j = p_j * sum_c a_c - a_j``."""
    x = np.asarray(x, np.float64)
    terms = list(_entropy_terms(x, target, weight, ignore_index, label_smoothing))
    total = sum(count for *_, count in terms)
    result = np.zeros(x.shape)
    for position, logits, weights, _ in terms:
        upstream = float(grad[position] if reduction == "none" else grad)
        if reduction == "mean":
            upstream /= total
        probabilities = np.exp(_log_softmax(x[logits]))
        result[logits] = upstream * (probabilities * np.sum(weights) - weights)
    return result


def mse_loss(x: Array, target: Array, reduction: str = "mean") -> Array:
    """``(x - target)**2``, its mean or its sum."""
    squares = (np.asarray(x, np.float64) - np.asarray(target, np.float64)) ** 2
    if reduction == "none":
        return squares
    return np.asarray(squares.sum() if reduction == "sum" else squares.mean())


def half_squared_error(x: Array, target: Array) -> Array:
    """Total error of the introductory texts: ``sum((target - x)**2) / 2``."""
    return mse_loss(x, target, "sum") / 2


# -- data --------------------------------------------------------------------------------------------------------------


def image_batch(table, images, index, transforms, size):
    """Inputs (n, 1, *size) of images, each in the middle, padded with byte 0; moved by an affine transform, or by None.

    A transform takes points of the input to points of the input without it, both counted from the middle.
    """
    (p, q), (h, w) = size, images.shape[1:]
    inputs = np.zeros((len(index), p, q), np.float64)
    for n, i in enumerate(index):
        canvas = np.zeros((p, q), np.int64)
        top, left = (p - h) // 2, (q - w) // 2
        canvas[top : top + h, left : left + w] = images[i]
        matrix = np.array([[1, 0, 0], [0, 1, 0]]) if transforms is None else np.float64(transforms[i])
        for row in range(p):
            for column in range(q):
                x, y = matrix @ [column - (q - 1) / 2, row - (p - 1) / 2, 1]
                x, y = x + (q - 1) / 2, y + (p - 1) / 2
                for r in range(math.floor(y), math.floor(y) + 2):
                    for c in range(math.floor(x), math.floor(x) + 2):
                        byte = canvas[r, c] if 0 <= r < p and 0 <= c < q else 0
                        inputs[n, row, column] += (1 - abs(y - r)) * (1 - abs(x - c)) * np.float64(table[byte])
    return inputs[:, None]
