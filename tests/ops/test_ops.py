"""Every operation on every backend: values and gradients against the loops of `reference.py`, gradients
against finite differences, and what happens to unusual arrays and wrong arguments.
"""

from __future__ import annotations

import functools
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import reference
from cases import (
    ADAPTIVE_CASES,
    CONV_CASES,
    POOL_CASES,
    RANKED,
    WORKED_EXAMPLES,
    AdaptiveCase,
    ConvCase,
    PoolCase,
    WorkedExample,
    distinct,
    generator,
)

import gpuconv.functional as F
from gpuconv import Tensor, backends
from gpuconv.backends import Backend

Array = np.ndarray[Any, Any]
INF, NAN = np.inf, np.nan
#: Allowed error relative to the largest expected value. The longest sums here have a few hundred terms.
TOLERANCE = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 4e-6}

pytestmark = pytest.mark.usefixtures("backend")
both_types = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])


def assert_close(got: Any, expected: Array, dtype: Any) -> None:
    """Same shape, the element type asked for, and values within its TOLERANCE."""
    assert got.dtype == dtype
    assert got.shape == expected.shape
    largest = np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[np.dtype(dtype)] * (largest or 1.0))


def read_only(array: Array) -> Array:
    """An array that no operation can write into, not even for a moment."""
    array.flags.writeable = False
    return array


def run(function: Callable[..., Any], arrays: Sequence[Array], grad: Array) -> tuple[Array, list[Array]]:
    """The result of a function of Tensors, and the gradients of ``sum(grad * result)``.

    Every array is read-only on the way: an operation that writes into its input fails.
    """
    tensors = [Tensor(read_only(array), requires_grad=True) for array in arrays]
    result = function(*tensors)
    result.backward(read_only(np.asarray(grad)))
    return result.numpy(), [np.zeros(t.shape, t.dtype) if t.grad is None else t.grad.numpy() for t in tensors]


# Convolution


@functools.cache
def expected_conv2d(case: ConvCase, dtype: Any) -> tuple[Array, list[Array]]:
    """The loops take a while, so that all backends share what they give."""
    x, w, b, grad = case.arrays(dtype)
    forward = reference.conv2d(x, w, b, **case.keywords)
    return forward, list(reference.conv2d_grad(grad, x, w, **case.keywords))


@both_types
@pytest.mark.grid(2)
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_conv2d(case: ConvCase, dtype: Any) -> None:
    """Forward and the gradients by input, weight and bias of every geometry."""
    x, w, b, grad = case.arrays(dtype)
    forward, gradients = expected_conv2d(case, dtype)
    arrays = [x, w] if b is None else [x, w, b]
    got, got_gradients = run(lambda *a: F.conv2d(*a, **case.keywords), arrays, grad)
    assert_close(got, forward, dtype)
    for got_gradient, gradient in zip(got_gradients, gradients[: len(arrays)], strict=True):
        assert_close(got_gradient, gradient, dtype)


@both_types
@pytest.mark.grid(2)
@pytest.mark.parametrize("case", [c for c in CONV_CASES if c.tiny], ids=str)
def test_fused_blocks_are_their_parts_one_after_another(case: ConvCase, dtype: Any) -> None:
    """conv2d_relu and conv2d_relu_max_pool2d: values and gradients of the loops for the three operations."""
    x, w, b, _ = case.arrays(dtype)
    arrays = [x, w] if b is None else [x, w, b]
    before, _ = expected_conv2d(case, dtype)
    rng = generator(case.name + "fused")
    grad = rng.standard_normal(before.shape).astype(dtype)
    activated = reference.relu(before)
    got, got_gradients = run(lambda *a: F.conv2d_relu(*a, **case.keywords), arrays, grad)
    assert_close(got, activated, dtype)
    dense = reference.relu_grad(grad, before)
    for got_gradient, gradient in zip(got_gradients, reference.conv2d_grad(dense, x, w, **case.keywords), strict=False):
        assert_close(got_gradient, gradient, dtype)

    kernel = (min(2, before.shape[2]), min(2, before.shape[3]))
    pooled, indices = reference.max_pool2d(activated, kernel, ceil_mode=True)
    grad = rng.standard_normal(pooled.shape).astype(dtype)
    got, got_gradients = run(
        lambda *a: F.conv2d_relu_max_pool2d(*a, **case.keywords, kernel_size=kernel, ceil_mode=True),
        arrays,
        grad,
    )
    assert_close(got, pooled, dtype)
    dense = reference.relu_grad(reference.max_pool2d_grad(grad, indices, before.shape), before)
    for got_gradient, gradient in zip(got_gradients, reference.conv2d_grad(dense, x, w, **case.keywords), strict=False):
        assert_close(got_gradient, gradient, dtype)


@both_types
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 3, "padding": 2},
        {"padding": "same", "dilation": 3},
        {"padding": ((2, 0),), "stride": (2,)},
        {"groups": 2, "padding": (1,), "dilation": (2,)},
    ],
    ids=["plain", "strided", "same", "by-side", "groups"],
)
def test_conv1d(options: dict[str, Any], dtype: Any) -> None:
    """A 1-D convolution is the 2-D one on images one row high, for every spelling of its arguments."""
    rng = generator("conv1d")
    groups = options.get("groups", 1)
    x, w, b = (rng.standard_normal(s).astype(dtype) for s in ((2, 4, 13), (6, 4 // groups, 4), (6,)))
    flat = {
        "stride": (1, np.ravel(options.get("stride", 1)).item()),
        "dilation": (1, np.ravel(options.get("dilation", 1)).item()),
        "groups": groups,
        "padding": {
            "same": "same",
            ((2, 0),): ((0, 0), (2, 0)),
            (1,): (0, 1),
        }.get(options.get("padding"), (0, options.get("padding", 0))),
    }
    expected = reference.conv2d(x[:, :, None], w[:, :, None], b, **flat)
    grad = rng.standard_normal(expected.shape).astype(dtype)
    gradients = reference.conv2d_grad(grad, x[:, :, None], w[:, :, None], **flat)
    got, got_gradients = run(lambda *a: F.conv1d(*a, **options), [x, w, b], grad[:, :, 0])
    assert_close(got, expected[:, :, 0], dtype)
    for got_gradient, gradient in zip(got_gradients, gradients, strict=True):
        assert_close(got_gradient, gradient.reshape(got_gradient.shape), dtype)


@pytest.mark.parametrize("example", WORKED_EXAMPLES, ids=str)
def test_worked_examples(example: WorkedExample) -> None:
    """The figures printed in introductory texts come out exactly."""
    example.check(F, np.float32)


def test_shifting_the_image_shifts_the_map() -> None:
    """Equivariance: away from the border both commute. A pooled map forgives a small shift altogether."""
    image = np.zeros((1, 1, 12, 12), np.float32)
    image[..., 4:6, 4:6] = generator("shift").random((2, 2), np.float32)
    shifted = np.roll(image, (1, 2), (2, 3))
    kernel = generator("kernel").standard_normal((3, 1, 3, 3)).astype(np.float32)
    maps, shifted_maps = F.conv2d(image, kernel, padding=1), F.conv2d(shifted, kernel, padding=1)
    np.testing.assert_allclose(shifted_maps, np.roll(maps, (1, 2), (2, 3)), rtol=1e-6, atol=1e-6)
    spot, moved = np.zeros((1, 8, 8), np.float32), np.zeros((1, 8, 8), np.float32)
    spot[0, 2, 2] = moved[0, 3, 3] = 1
    np.testing.assert_array_equal(F.max_pool2d(spot, 2), F.max_pool2d(moved, 2))


@pytest.mark.slow
@pytest.mark.grid(4)
@both_types
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "stride"),
    [
        ((300, 3, 24, 24), (4, 3, 5, 5), 1),
        ((3, 8, 150, 151), (2, 8, 3, 3), 1),
        ((2, 8, 301, 150), (2, 8, 3, 3), 2),
        ((1, 64, 5, 900), (2, 64, 5, 5), 1),
    ],
    ids=["many-images", "large-images", "strided", "wide-rows"],
)
def test_convolutions_too_large_for_one_piece(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], stride: int, dtype: Any
) -> None:
    """Work that is cut up (by images, by rows, within a row) fits together again.

    Too large for the loops: the expected values are summed tap by tap of the filter, over whole images.
    """
    rng = generator("large")
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, w_shape))
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = ((padded.shape[i] - w_shape[i]) // stride + 1 for i in (2, 3))
    grad = rng.standard_normal((x_shape[0], w_shape[0], rows, columns)).astype(dtype)
    expected, grad_padded, grad_w = np.zeros(grad.shape), np.zeros(padded.shape), np.zeros(w_shape)
    for r, s in np.ndindex(w_shape[2:]):
        seen = np.s_[:, :, r : r + rows * stride : stride, s : s + columns * stride : stride]
        tap, tap_w = padded[seen], w[:, :, r, s].astype(np.float64)
        expected += np.einsum("ncpq,kc->nkpq", tap, tap_w)
        grad_padded[seen] += np.einsum("nkpq,kc->ncpq", grad.astype(np.float64), tap_w)
        grad_w[:, :, r, s] = np.einsum("nkpq,ncpq->kc", grad.astype(np.float64), tap, optimize=True)
    got, (got_grad_x, got_grad_w) = run(lambda *a: F.conv2d(*a, stride=stride, padding=1), [x, w], grad)
    assert_close(got, expected, dtype)
    assert_close(got_grad_x, grad_padded[:, :, 1:-1, 1:-1], dtype)
    assert_close(got_grad_w, grad_w, dtype)


@pytest.mark.slow
def test_a_large_batch_needs_little_more_memory_than_its_result() -> None:
    """Gathered windows stay below 64 MB whatever the batch: all of them would be 160 MB here."""
    rng = generator("memory")
    x = rng.standard_normal((2048, 1, 32, 32), np.float32)
    w = rng.standard_normal((6, 1, 5, 5), np.float32)
    tensors = Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)
    for step in ("forward", "backward"):
        tracemalloc.start()
        try:
            if step == "forward":
                y = F.conv2d(*tensors)
                kept = y.numpy().nbytes
                grad = np.ones(y.shape, np.float32)
            else:
                y.backward(grad)
                kept = x.nbytes + w.nbytes
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak - kept - (grad.nbytes if step == "forward" else 0) < 64 << 20, step


# Pooling


@both_types
@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_max_pool2d(case: PoolCase, tied: bool, dtype: Any) -> None:
    """Maxima, indices (the first of equals) and gradient of every geometry, exactly."""
    x = case.tied(dtype) if tied else case.array(dtype)
    options = (case.kernel, case.stride, case.padding, case.dilation, case.ceil_mode)
    values, indices = reference.max_pool2d(x, *options)
    # Whole numbers, so that a sum of gradients is exact in any order.
    grad = generator(case.name).integers(-8, 9, values.shape).astype(dtype)
    tensor = Tensor(read_only(x), requires_grad=True)
    got, got_indices = F.max_pool2d(tensor, *options, return_indices=True)
    np.testing.assert_array_equal(got.numpy(), values.astype(dtype), strict=True)
    np.testing.assert_array_equal(got_indices.numpy(), indices, strict=True)
    got.backward(grad)
    expected = reference.max_pool2d_grad(grad, indices, x.shape).astype(dtype)
    np.testing.assert_array_equal(tensor.grad.numpy(), expected, strict=True)
    np.testing.assert_array_equal(F.max_pool2d(x, *options), values.astype(dtype), strict=True)


@both_types
@pytest.mark.grid(2)
@pytest.mark.parametrize(
    "options",
    [{}, {"count_include_pad": False}, {"divisor_override": 3}],
    ids=["default", "without-padding", "divisor"],
)
@pytest.mark.parametrize("case", [c for c in POOL_CASES if not c.dilated], ids=str)
def test_avg_pool2d(case: PoolCase, options: dict[str, Any], dtype: Any) -> None:
    """Averages and gradient of every geometry, for every way of counting the elements."""
    x = case.array(dtype)
    arguments = (case.kernel, case.stride, case.padding, case.ceil_mode)
    expected = reference.avg_pool2d(x, *arguments, **options)
    grad = generator(case.name).standard_normal(expected.shape).astype(dtype)
    got, (got_gradient,) = run(lambda t: F.avg_pool2d(t, *arguments, **options), [x], grad)
    assert_close(got, expected, dtype)
    assert_close(got_gradient, reference.avg_pool2d_grad(grad, x, *arguments, **options), dtype)


@both_types
@pytest.mark.parametrize("case", [c for c in POOL_CASES if not c.dilated], ids=str)
def test_sum_pool2d(case: PoolCase, dtype: Any) -> None:
    """Sums and gradient of every geometry."""
    x = case.array(dtype)
    arguments = (case.kernel, case.stride, case.padding, case.ceil_mode)
    expected = reference.sum_pool2d(x, *arguments)
    grad = generator(case.name).standard_normal(expected.shape).astype(dtype)
    got, (got_gradient,) = run(lambda t: F.sum_pool2d(t, *arguments), [x], grad)
    assert_close(got, expected, dtype)
    assert_close(got_gradient, reference.avg_pool2d_grad(grad, x, *arguments, divisor_override=1), dtype)


@both_types
@pytest.mark.parametrize("case", ADAPTIVE_CASES, ids=str)
def test_adaptive_avg_pool2d(case: AdaptiveCase, dtype: Any) -> None:
    """Averages and gradient, also where windows overlap or repeat elements."""
    x = case.array(dtype)
    expected = reference.adaptive_avg_pool2d(x, case.output)
    grad = generator(case.name).standard_normal(expected.shape).astype(dtype)
    got, (got_gradient,) = run(lambda t: F.adaptive_avg_pool2d(t, case.output), [x], grad)
    assert_close(got, expected, dtype)
    assert_close(got_gradient, reference.adaptive_avg_pool2d_grad(grad, x, case.output), dtype)


def test_pooling_in_one_dimension() -> None:
    """The 1-D poolings are the 2-D ones on maps one row high."""
    x = distinct(generator("pool1d"), (2, 3, 11), np.float64)
    values, indices = reference.max_pool2d(x[:, :, None], (1, 3), (1, 2), (0, 1), (1, 2), True)
    got, got_indices = F.max_pool1d(x, 3, 2, 1, 2, ceil_mode=True, return_indices=True)
    np.testing.assert_array_equal(got, values[:, :, 0], strict=True)
    np.testing.assert_array_equal(got_indices, indices[:, :, 0], strict=True)
    averages = reference.avg_pool2d(x[:, :, None], (1, 3), (1, 2), (0, 1), True, False)
    assert_close(F.avg_pool1d(x, (3,), (2,), (1,), True, False), averages[:, :, 0], np.float64)
    adapted = reference.adaptive_avg_pool2d(x[:, :, None], (1, 4))
    assert_close(F.adaptive_avg_pool1d(x, 4), adapted[:, :, 0], np.float64)


# Activations, dense layer, losses


@both_types
def test_activations(dtype: Any) -> None:
    """To the last few bits relative to each value, however small: tails must not be lost to cancellation."""
    x = np.linspace(-85, 85, 341).astype(dtype)
    tolerance = {"rtol": 1e-14 if dtype is np.float64 else 1e-6}
    for function, expected in [
        (F.relu, reference.relu(x)),
        (F.sigmoid, reference.sigmoid(x)),
        (F.tanh, reference.tanh(x)),
    ]:
        got = function(x)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, **tolerance, err_msg=function.__name__)


@both_types
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_and_its_logarithm(dim: int, dtype: Any) -> None:
    """Along any dimension; large logits do not overflow, and probabilities sum to 1."""
    x = (generator("softmax").standard_normal((3, 4, 5)) * 100).astype(dtype)
    probabilities = F.softmax(x, dim)
    assert_close(probabilities, reference.softmax(x, dim), dtype)
    assert_close(F.log_softmax(x, dim), reference.log_softmax(x, dim), dtype)
    np.testing.assert_allclose(probabilities.sum(axis=dim), 1, rtol=1e-6)
    assert (probabilities >= 0).all()


@both_types
@pytest.mark.parametrize("shape", [(7, 5), (5,), (2, 3, 5), (0, 5), (1, 5)], ids=str)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no-bias"])
def test_linear(shape: tuple[int, ...], biased: bool, dtype: Any) -> None:
    """Any number of leading dimensions, none and an empty one included."""
    rng = generator("linear")
    x, w, b = (rng.standard_normal(s).astype(dtype) for s in (shape, (6, 5), (6,)))
    expected = reference.linear(x, w, b if biased else None)
    grad = rng.standard_normal(expected.shape).astype(dtype)
    got, gradients = run(F.linear, [x, w, b] if biased else [x, w], grad)
    assert_close(got, expected, dtype)
    rows, grads = x.reshape(-1, 5).astype(np.float64), grad.reshape(-1, 6).astype(np.float64)
    expected_gradients = [(grads @ w).reshape(shape), grads.T @ rows, grads.sum(axis=0)]
    for got_gradient, gradient in zip(gradients, expected_gradients, strict=False):
        assert_close(got_gradient, gradient, dtype)


@both_types
@pytest.mark.grid(3)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("kind", ["classes", "ignored", "probabilities"])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 5, 3), (2, 4, 3, 2)], ids=str)
def test_cross_entropy(
    shape: tuple[int, ...], kind: str, weighted: bool, smoothing: float, reduction: str, dtype: Any
) -> None:
    """Every combination of rank, kind of target, weight, smoothing and reduction; value and gradient."""
    rng = generator(f"{shape}{kind}")
    axis = 0 if len(shape) == 1 else 1
    x = (rng.standard_normal(shape) * 3).astype(dtype)
    weight = rng.uniform(0.2, 2.0, shape[axis]).astype(dtype) if weighted else None
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    if kind == "probabilities":
        target = reference.softmax(rng.standard_normal(shape), axis).astype(dtype)
    else:
        target = np.asarray(rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :]))
        # Some label is ignored, but not where it is the only one: the mean would be one of nothing.
        options["ignore_index"] = int(target.flat[0]) if kind == "ignored" and target.size > 1 else -100
    expected = reference.cross_entropy(x, target, weight, **options)
    grad = np.asarray(rng.standard_normal(expected.shape), dtype)
    got, (got_gradient,) = run(lambda t: F.cross_entropy(t, target, weight, **options), [x], grad)
    assert_close(got, expected, dtype)
    assert_close(got_gradient, reference.cross_entropy_grad(grad, x, target, weight, **options), dtype)


@both_types
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_squared_errors(reduction: str, dtype: Any) -> None:
    """The mean squared error, and the textbooks' total error, which is half of the sum."""
    rng = generator("squares")
    x, target = rng.standard_normal((2, 3, 4)).astype(dtype)
    assert_close(F.mse_loss(x, target, reduction), reference.mse_loss(x, target, reduction), dtype)
    halves = reference.mse_loss(x, target, reduction) / 2
    assert_close(F.half_squared_error(x, target, reduction), halves, dtype)
    assert_close(F.half_squared_error(x, target), reference.half_squared_error(x, target), dtype)


def test_flatten() -> None:
    """Like reshape: the dimensions from start to end become one; the elements keep their order."""
    x = np.arange(24.0).reshape(2, 3, 1, 4)
    np.testing.assert_array_equal(F.flatten(x), np.arange(24.0), strict=True)
    np.testing.assert_array_equal(F.flatten(x, 1), np.arange(24.0).reshape(2, 12), strict=True)
    np.testing.assert_array_equal(F.flatten(x, 1, -2), np.arange(24.0).reshape(2, 3, 4), strict=True)
    np.testing.assert_array_equal(F.flatten(np.float32(3)), np.ones(1, np.float32) * 3, strict=True)
    assert F.flatten(x[:0], 1).shape == (0, 12)
    tensor = Tensor(x, requires_grad=True)
    assert tensor.flatten(1, 1) is tensor  # as in PyTorch: no dimension is merged


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    """p of the elements become 0, the others grow by 1 / (1 - p), and the gradient passes where they did."""
    x = np.ones((100, 100), np.float32)
    for p in (0.2, 0.5):
        tensor = Tensor(x, requires_grad=True)
        y = F.dropout(tensor, p, generator=np.random.default_rng(1))
        values, counts = np.unique(y.numpy(), return_counts=True)
        np.testing.assert_allclose(values, [0, 1 / (1 - p)], rtol=1e-6)
        # Five standard deviations of a binomial of 10,000.
        assert abs(counts[0] / x.size - p) < 5 * (p * (1 - p) / x.size) ** 0.5
        y.backward(x)
        np.testing.assert_array_equal(tensor.grad.numpy(), y.numpy())
        again = F.dropout(x, p, generator=np.random.default_rng(1))
        np.testing.assert_array_equal(again, y.numpy())
        assert (F.dropout(x, p, generator=np.random.default_rng(2)) != again).any()
    np.testing.assert_array_equal(F.dropout(x, 0.5, training=False), x)
    np.testing.assert_array_equal(F.dropout(x, 0.0), x)
    np.testing.assert_array_equal(F.dropout(x, 1.0), np.zeros_like(x))
    empty = Tensor(x[:0], requires_grad=True)
    assert F.dropout(empty) is empty  # as in PyTorch


# Gradients against finite differences


def assert_gradients_are_differences(function: Callable[..., Any], arrays: Sequence[Array]) -> None:
    """Each gradient agrees with central differences along every coordinate, to 1e-6 of its largest element.

    The result is weighed by a random array, so that every element of it counts. The step balances the error
    of the difference (of order step^2) and that of rounding (1e-16 / step).
    """
    step = 1e-5
    shape = function(*(Tensor(a) for a in arrays)).shape
    direction = np.asarray(generator(f"direction{shape}").standard_normal(shape))
    _, gradients = run(function, [a.copy() for a in arrays], direction)
    for position, (array, gradient) in enumerate(zip(arrays, gradients, strict=True)):
        differences = np.empty(array.shape)
        for index in np.ndindex(array.shape):
            sides = []
            for sign in (1, -1):
                moved = array.copy()
                moved[index] += sign * step
                tensors = [Tensor(moved if i == position else a) for i, a in enumerate(arrays)]
                sides.append(float(np.sum(function(*tensors).numpy() * direction)))
            differences[index] = (sides[0] - sides[1]) / (2 * step)
        assert gradient.dtype == np.float64
        largest = np.max(np.abs(differences), initial=0.0)
        np.testing.assert_allclose(gradient, differences, rtol=0, atol=1e-6 * largest, err_msg=f"input {position}")


def coordinates(case: ConvCase) -> int:
    """How many differences a convolution takes."""
    return int(np.prod(case.input) + np.prod(case.weight) + case.weight[0])


@pytest.mark.parametrize("case", [c for c in CONV_CASES if 0 < coordinates(c) <= 250], ids=str)
def test_finite_differences_of_conv2d(case: ConvCase) -> None:
    """By input, weight and bias, for every geometry that is small enough to move each element of it."""
    x, w, b, _ = case.arrays(np.float64)
    arrays = [x, w] if b is None else [x, w, b]
    assert_gradients_are_differences(lambda *a: F.conv2d(*a, **case.keywords), arrays)


@pytest.mark.parametrize("case", [c for c in POOL_CASES if 0 < np.prod(c.input) <= 160], ids=str)
def test_finite_differences_of_poolings(case: PoolCase) -> None:
    """Maximum, average in both ways of counting, and sum."""
    x = case.array(np.float64)
    arguments = (case.kernel, case.stride, case.padding)
    options = {"ceil_mode": case.ceil_mode}
    assert_gradients_are_differences(lambda t: F.max_pool2d(t, *arguments, dilation=case.dilation, **options), [x])
    if not case.dilated:
        assert_gradients_are_differences(lambda t: F.avg_pool2d(t, *arguments, **options), [x])
        assert_gradients_are_differences(lambda t: F.avg_pool2d(t, *arguments, **options, count_include_pad=False), [x])
        assert_gradients_are_differences(lambda t: F.sum_pool2d(t, *arguments, **options), [x])


LABELS = np.array([[1, 0], [3, 2], [0, 3]])
CLASS_WEIGHT = np.array([0.5, 2.0, 1.0, 0.25])

#: name -> function of Tensors and the shapes it takes
DIFFERENTIABLE: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "conv1d": (
        lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=((1, 2),), dilation=2, groups=2),
        [(2, 4, 9), (6, 2, 3), (6,)],
    ),
    "conv2d_relu": (lambda x, w, b: F.conv2d_relu(x, w, b, padding=1), [(2, 2, 4, 3), (3, 2, 3, 3), (3,)]),
    "conv2d_relu_max_pool2d": (
        lambda x, w, b: F.conv2d_relu_max_pool2d(x, w, b, padding=1, kernel_size=2),
        [(2, 2, 4, 5), (3, 2, 3, 3), (3,)],
    ),
    "conv2d_relu_max_pool2d_pair": (
        lambda x, w, b, v: F.conv2d_relu_max_pool2d_pair(
            x, {"weight": w, "bias": b, "kernel_size": 2}, {"weight": v, "padding": 1, "kernel_size": (2, 1)}
        ),
        [(2, 2, 6, 7), (3, 2, 3, 3), (3,), (2, 3, 2, 2)],
    ),
    "max_pool1d": (lambda x: F.max_pool1d(x, 3, 2, 1), [(2, 3, 9)]),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3, 2, 1), [(2, 3, 9)]),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 4), [(2, 3, 9)]),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (3, 2)), [(2, 2, 5, 4)]),
    "relu": (F.relu, [(3, 4)]),
    "sigmoid": (F.sigmoid, [(3, 4)]),
    "tanh": (F.tanh, [(3, 4)]),
    "softmax": (lambda x: F.softmax(x, 1), [(2, 4, 3)]),
    "log_softmax": (lambda x: F.log_softmax(x, 0), [(4, 3)]),
    "dropout": (lambda x: F.dropout(x, 0.3, generator=np.random.default_rng(3)), [(4, 5)]),
    "linear": (F.linear, [(2, 3, 4), (5, 4), (5,)]),
    "linear of a vector": (F.linear, [(4,), (5, 4), (5,)]),
    "flatten": (lambda x: F.flatten(x, 1, 2), [(2, 3, 2, 2)]),
    "cross_entropy of labels": (lambda x: F.cross_entropy(x, LABELS), [(3, 4, 2)]),
    "cross_entropy with all options": (
        lambda x: F.cross_entropy(x, LABELS, CLASS_WEIGHT, ignore_index=3, label_smoothing=0.2),
        [(3, 4, 2)],
    ),
    "cross_entropy, not reduced": (
        lambda x: F.cross_entropy(x, LABELS, CLASS_WEIGHT, reduction="none", label_smoothing=0.2),
        [(3, 4, 2)],
    ),
    "cross_entropy by logits and probabilities": (
        lambda x, q: F.cross_entropy(x, q, CLASS_WEIGHT, label_smoothing=0.2),
        [(3, 4, 2), (3, 4, 2)],
    ),
    "mse_loss": (F.mse_loss, [(3, 4), (3, 4)]),
    "mse_loss, not reduced": (lambda x, t: F.mse_loss(x, t, "none"), [(3, 4), (3, 4)]),
    "half_squared_error": (F.half_squared_error, [(3, 4), (3, 4)]),
    "+": (lambda a, b: a + b + 1.5, [(2, 3, 4), (3, 1)]),
    "-": (lambda a, b: 2 - (a - b), [(3, 1), (2, 3, 4)]),
    "*": (lambda a, b: -a * b * 2, [(2, 3, 4), (4,)]),
    "/": (lambda a, b: 1 / (a / (b * b + 1) + 100), [(2, 3), (3,)]),
    "**": (lambda a: (a * a + 1) ** 1.5 + a**2, [(3, 4)]),
    "exp": (lambda a: a.exp(), [(3, 4)]),
    "log": (lambda a: (a * a + 1).log(), [(3, 4)]),
    "sum": (lambda a: a.sum() * a.sum(1) * a.sum((0, -1), keepdim=True), [(3, 3, 2)]),
    "mean": (lambda a: a.mean() * a.mean(-1, keepdim=True), [(3, 2)]),
    "matmul": (lambda a, b: a @ b, [(2, 3, 4), (4, 5)]),
    "matmul of vectors": (lambda a, b: a @ b, [(4,), (4,)]),
    "matmul, vector first": (lambda a, b: a @ b, [(4,), (2, 4, 3)]),
    "matmul, vector last": (lambda a, b: a @ b, [(2, 3, 4), (4,)]),
    "reshape and permute": (lambda a: a.reshape(4, -1).permute(1, 0).T * a.reshape((4, 3)), [(2, 3, 2)]),
    "indexing": (lambda a: a[1:, [0, 2, 0]] * a[0, 1], [(3, 3)]),
    "one Tensor twice": (lambda a: F.relu(a) * a + a, [(3, 4)]),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_finite_differences(name: str) -> None:
    """Every other operation, by every one of its inputs."""
    function, shapes = DIFFERENTIABLE[name]
    rng = generator(name)
    assert_gradients_are_differences(function, [distinct(rng, shape, np.float64) for shape in shapes])


# NaN and infinity


def test_nan_reaches_what_it_touches_and_nothing_else() -> None:
    """One NaN in the input spoils exactly the windows that hold it, and no gradient of a pooling."""
    x = generator("nan").standard_normal((1, 2, 9, 8))
    x[0, 1, 4, 3] = NAN
    w = generator("w").standard_normal((3, 2, 3, 2))
    for name, function, touched in [
        (
            "conv2d",
            lambda t: F.conv2d(t, w, padding=1, stride=(1, 2)),
            reference.conv2d(x, w, None, (1, 2), 1),
        ),
        ("max_pool2d", lambda t: F.max_pool2d(t, 3, 2, 1), reference.max_pool2d(x, 3, 2, 1)[0]),
        ("avg_pool2d", lambda t: F.avg_pool2d(t, 3, 1, 1), reference.avg_pool2d(x, 3, 1, 1)),
        ("sum_pool2d", lambda t: F.sum_pool2d(t, 2), reference.sum_pool2d(x, 2)),
        ("adaptive", lambda t: F.adaptive_avg_pool2d(t, (4, 5)), reference.adaptive_avg_pool2d(x, (4, 5))),
    ]:
        assert np.isnan(touched).any(), name
        assert not np.isnan(touched).all(), name
        got = function(Tensor(x, requires_grad=True))
        np.testing.assert_array_equal(np.isnan(got.numpy()), np.isnan(touched), err_msg=name)
        if name != "conv2d":
            # A pooling's gradient depends on the data at most through the winners: it stays finite.
            tensor = Tensor(x, requires_grad=True)
            function(tensor).backward(np.ones(got.shape))
            assert np.isfinite(tensor.grad.numpy()).all(), name


def test_max_pooling_of_ties_infinities_and_nan() -> None:
    """First maximum, last NaN, -inf is a value like any other, padding never wins; as in PyTorch."""
    for row, kernel, padding, values, indices in RANKED:
        x = np.array([[row]], np.float32)
        got, got_indices = F.max_pool1d(x, kernel, padding=padding, return_indices=True)
        np.testing.assert_array_equal(got.ravel(), np.array(values, np.float32), err_msg=str(row))
        np.testing.assert_array_equal(got_indices.ravel(), indices, err_msg=str(row))
    block = np.array([[[1, NAN, 2], [NAN, 5, 6], [1, 2, NAN]]])
    assert F.max_pool2d(block, 3, return_indices=True)[1].item() == 8
    cornered = np.full((1, 3, 3), -INF)
    _, indices = F.max_pool2d(cornered, 3, 1, 1, return_indices=True)
    np.testing.assert_array_equal(indices[0], [[0, 0, 1], [0, 0, 1], [3, 3, 4]])


@both_types
def test_activations_of_special_values(dtype: Any) -> None:
    """NaN stays NaN, ReLU's gradient is 0 at zero and passes at NaN, softmax of inf is NaN; as in PyTorch."""
    x = np.array([NAN, INF, -INF, 0.0, -0.0, 2.0, -2.0], dtype)
    grad = np.arange(1, 8).astype(dtype)
    got, (got_gradient,) = run(F.relu, [x], grad)
    np.testing.assert_array_equal(got, np.array([NAN, INF, 0, 0, 0, 2, 0], dtype))
    np.testing.assert_array_equal(got_gradient, np.array([1, 2, 0, 0, 0, 6, 0], dtype))
    np.testing.assert_array_equal(F.sigmoid(x)[:4], np.array([NAN, 1, 0, 0.5], dtype))
    np.testing.assert_array_equal(F.tanh(x)[:4], np.array([NAN, 1, -1, 0], dtype))
    rows = np.array([[INF, 0], [-INF, -INF], [-INF, 0], [NAN, 0]], dtype)
    expected = np.array([[NAN, NAN], [NAN, NAN], [0, 1], [NAN, NAN]], dtype)
    np.testing.assert_array_equal(F.softmax(rows, 1), expected)
    expected[2] = [-INF, 0]
    np.testing.assert_array_equal(F.log_softmax(rows, 1), expected)


def test_cross_entropy_of_special_values() -> None:
    """Huge logits stay finite, impossible classes cost infinity, a mean over nothing is NaN; as PyTorch."""
    huge = np.array([[1e30, -1e30]])
    np.testing.assert_allclose(F.cross_entropy(huge, np.array([1])), 2e30)
    np.testing.assert_allclose(F.cross_entropy(huge, np.array([0])), 0)
    impossible = np.array([[-INF, 0.0, 1.0]])
    assert F.cross_entropy(impossible, np.array([0])) == INF
    np.testing.assert_allclose(F.cross_entropy(impossible, np.array([2])), np.log1p(np.exp(-1)))
    assert np.isnan(F.cross_entropy(np.array([[NAN, 0.0]]), np.array([1])))
    tensor = Tensor(np.zeros((2, 3)), requires_grad=True)
    loss = F.cross_entropy(tensor, np.array([-100, -100]))
    assert np.isnan(loss.item())
    loss.backward()
    np.testing.assert_array_equal(tensor.grad.numpy(), np.zeros((2, 3)))
    empty = np.zeros((0, 3))
    assert np.isnan(F.cross_entropy(empty, np.zeros(0, int)))
    assert F.cross_entropy(empty, np.zeros(0, int), reduction="sum") == 0
    assert F.cross_entropy(empty, np.zeros(0, int), reduction="none").shape == (0,)


# Unusual arrays

#: name -> function of arrays and the shapes it takes: what a user may hand any array to
TAKES_ARRAYS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, padding=1), [(2, 3, 8), (4, 3, 3), (4,)]),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), [(2, 3, 6, 7), (4, 3, 3, 3), (4,)]),
    "conv2d_1x1": (F.conv2d, [(2, 3, 6, 7), (4, 3, 1, 1), (4,)]),
    "conv2d_groups": (lambda x, w: F.conv2d(x, w, groups=2), [(2, 4, 6, 7), (4, 2, 3, 3)]),
    "conv2d_relu_max_pool2d": (
        lambda x, w, b: F.conv2d_relu_max_pool2d(x, w, b, kernel_size=2),
        [(2, 3, 6, 7), (4, 3, 3, 3), (4,)],
    ),
    "conv2d_relu_max_pool2d_pair": (
        lambda x, w, b, v: F.conv2d_relu_max_pool2d_pair(
            x, {"weight": w, "bias": b, "kernel_size": 2}, {"weight": v, "kernel_size": 1}
        ),
        [(2, 3, 8, 7), (4, 3, 3, 3), (4,), (2, 4, 2, 2)],
    ),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), [(2, 3, 6, 7)]),
    "max_pool2d_padded": (lambda x: F.max_pool2d(x, 3, 2, 1), [(2, 3, 6, 7)]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), [(2, 3, 6, 7)]),
    "sum_pool2d": (lambda x: F.sum_pool2d(x, 3, 2, 1), [(2, 3, 6, 7)]),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 2), [(2, 3, 6, 7)]),
    "relu": (F.relu, [(4, 5, 6)]),
    "sigmoid": (F.sigmoid, [(4, 5, 6)]),
    "tanh": (F.tanh, [(4, 5, 6)]),
    "softmax": (lambda x: F.softmax(x, 1), [(4, 5, 6)]),
    "log_softmax": (lambda x: F.log_softmax(x, -1), [(4, 5, 6)]),
    "linear": (F.linear, [(4, 5), (6, 5), (6,)]),
    "flatten": (lambda x: F.flatten(x, 1), [(2, 3, 4)]),
    "mse_loss": (lambda x, t: F.mse_loss(x, t, "none"), [(4, 5), (4, 5)]),
    "cross_entropy": (lambda x: F.cross_entropy(x, LABELS, CLASS_WEIGHT.astype(x.dtype)), [(3, 4, 2)]),
}


def _every_second(a: Array) -> Array:
    wide = np.repeat(a, 2, axis=-1)
    wide[..., 1::2] = NAN  # what must not be read
    return wide[..., ::2]


#: Ways in which the same values can lie in memory
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "fortran": np.asfortranarray,
    "every-second": _every_second,
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "transposed": lambda a: np.ascontiguousarray(a.swapaxes(0, -1)).swapaxes(0, -1),
    "read-only": lambda a: read_only(a.copy()),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
}


@pytest.mark.grid(2)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TAKES_ARRAYS)
def test_memory_layout_does_not_matter(name: str, layout: str) -> None:
    """Strided, reversed, read-only, byte-swapped: result and gradients are those of the plain array."""
    function, shapes = TAKES_ARRAYS[name]
    plain = [distinct(generator(name), shape, np.float32) for shape in shapes]
    arrays = [LAYOUTS[layout](a) for a in plain]
    kept = [a.tobytes() for a in arrays]
    expected = function(*plain)
    got = function(*arrays)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    plain_tensors = [Tensor(a, requires_grad=True) for a in plain]
    upstream = distinct(generator("grad"), expected.shape, np.float32)
    function(*tensors).backward(LAYOUTS[layout](upstream) if upstream.ndim else upstream)
    function(*plain_tensors).backward(upstream)
    for tensor, plain_tensor in zip(tensors, plain_tensors, strict=True):
        expected_grad = plain_tensor.grad.numpy()
        scale = float(np.abs(expected_grad).max())
        np.testing.assert_allclose(tensor.grad.numpy(), expected_grad, rtol=0, atol=1e-6 * scale)
    assert [a.tobytes() for a in arrays] == kept, "an input was modified"


@pytest.mark.parametrize("name", TAKES_ARRAYS)
def test_two_runs_agree_to_the_last_bit(name: str) -> None:
    """Forward and backward are deterministic: sums run in a fixed order."""
    function, shapes = TAKES_ARRAYS[name]
    arrays = [generator(name + str(i)).standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)]

    def once() -> list[bytes]:
        tensors = [Tensor(a, requires_grad=True) for a in arrays]
        result = function(*tensors)
        result.backward(np.linspace(-1, 1, result.numpy().size, dtype=np.float32).reshape(result.shape))
        return [result.numpy().tobytes(), *(t.grad.numpy().tobytes() for t in tensors)]

    assert once() == once()


@pytest.mark.parametrize("name", TAKES_ARRAYS)
def test_arrays_in_arrays_out_tensors_in_tensors_out(name: str) -> None:
    """The kind of the arguments decides the kind of the result; the numbers are the same."""
    function, shapes = TAKES_ARRAYS[name]
    arrays = [distinct(generator(name), shape, np.float64) for shape in shapes]
    result = function(*arrays)
    assert type(result) is np.ndarray
    of_tensors = function(*(Tensor(a) for a in arrays))
    assert type(of_tensors) is Tensor
    assert not of_tensors.requires_grad
    np.testing.assert_array_equal(of_tensors.numpy(), result, strict=True)
    # One Tensor among arrays is enough.
    mixed = function(Tensor(arrays[0], requires_grad=True), *arrays[1:])
    assert type(mixed) is Tensor
    assert mixed.requires_grad


def test_every_reduction_of_arrays_is_an_array() -> None:
    """A loss of arrays is a zero-dimensional array like any other result, not a NumPy scalar now and then."""
    x, target = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    for loss in (
        F.mse_loss(x, target),
        F.half_squared_error(x, target),
        F.cross_entropy(x, np.array([0, 1])),
        F.cross_entropy(x, target, reduction="sum"),
        F.cross_entropy(x, target),
    ):
        assert type(loss) is np.ndarray
        assert loss.shape == ()
        assert loss.dtype == np.float32


def test_nested_lists_are_float32_arrays() -> None:
    """Numbers can be typed in; Python floats become the library's default type."""
    image = [[[[0.0, 1.0], [2.0, 3.0]]]]
    for result, expected in [
        (F.conv2d(image, [[[[1.0, 1.0]]]]), [[[[1]], [[5]]]]),
        (F.max_pool2d(image, 2), [[[[3]]]]),
        (F.relu([-1.0, 2.0]), [0, 2]),
        (F.flatten(image), [0, 1, 2, 3]),
        (F.linear([1.0, 2.0], [[3.0, 4.0]]), [11]),
        (F.mse_loss([1.0], [3.0]), 4),
    ]:
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result.ravel(), np.ravel(expected))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.conv2d(x, np.ones((4, 3, 3, 3)), np.ones(4), padding=1),
        lambda x: F.conv2d_relu_max_pool2d(x, np.ones((4, 3, 3, 3)), kernel_size=2),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 3, 2, 1),
        lambda x: F.sum_pool2d(x, 2),
        lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    ],
    ids=["conv2d", "conv2d_relu_max_pool2d", "max_pool2d", "avg_pool2d", "sum_pool2d", "adaptive_avg_pool2d"],
)
def test_one_image_without_a_batch(function: Callable[[Any], Any]) -> None:
    """(C, H, W) gives what a batch of one gives, without the batch; gradients too."""
    image = distinct(generator("image"), (3, 6, 7), np.float64)
    alone, batched = Tensor(image, requires_grad=True), Tensor(image[None], requires_grad=True)
    result, expected = function(alone), function(batched)
    np.testing.assert_array_equal(result.numpy(), expected.numpy()[0], strict=True)
    result.backward(np.ones(result.shape))
    expected.backward(np.ones(expected.shape))
    np.testing.assert_array_equal(alone.grad.numpy(), batched.grad.numpy()[0], strict=True)


def test_one_signal_without_a_batch() -> None:
    """(C, L) gives what a batch of one gives, in every 1-D operation."""
    x, w = generator("signal").standard_normal((3, 9)), generator("w").standard_normal((4, 3, 2))
    np.testing.assert_array_equal(F.conv1d(x, w), F.conv1d(x[None], w)[0], strict=True)
    np.testing.assert_array_equal(F.avg_pool1d(x, 2), F.avg_pool1d(x[None], 2)[0], strict=True)
    np.testing.assert_array_equal(F.adaptive_avg_pool1d(x, 2), F.adaptive_avg_pool1d(x[None], 2)[0], strict=True)
    for alone, batched in zip(
        F.max_pool1d(x, 2, return_indices=True), F.max_pool1d(x[None], 2, return_indices=True), strict=True
    ):
        np.testing.assert_array_equal(alone, batched[0], strict=True)


# Wrong arguments

X = np.zeros((2, 4, 6, 6), np.float32)
W = np.zeros((8, 4, 3, 3), np.float32)
LOGITS = np.zeros((3, 5), np.float32)
SAMPLES = np.array([0, 4, 2])

#: operation, the argument at fault, the call, the kind of error
WRONG: list[tuple[str, str, Callable[[], Any], type[Exception]]] = [
    # A shape or value that does not fit.
    ("conv2d", "input", lambda: F.conv2d(X[0, 0], W), ValueError),
    ("conv2d", "input", lambda: F.conv2d(X[None], W), ValueError),
    ("conv2d", "input", lambda: F.conv2d(X[:, :, :0], W), ValueError),
    ("conv2d", "weight", lambda: F.conv2d(X, W[0]), ValueError),
    ("conv2d", "weight", lambda: F.conv2d(X, W[:, :3]), ValueError),
    ("conv2d", "weight", lambda: F.conv2d(X, W[:0]), ValueError),
    ("conv2d", "weight", lambda: F.conv2d(X[:, :, :2], W), ValueError),
    ("conv2d", "weight", lambda: F.conv2d(X, W, dilation=3), ValueError),
    ("conv2d", "groups", lambda: F.conv2d(X, W, groups=2), ValueError),
    ("conv2d", "groups", lambda: F.conv2d(X, W[:7, :2], groups=2), ValueError),
    ("conv2d", "groups", lambda: F.conv2d(X, W, groups=0), ValueError),
    ("conv2d", "bias", lambda: F.conv2d(X, W, np.zeros(4, np.float32)), ValueError),
    ("conv2d", "bias", lambda: F.conv2d(X, W, np.zeros((8, 1), np.float32)), ValueError),
    ("conv2d", "stride", lambda: F.conv2d(X, W, stride=0), ValueError),
    ("conv2d", "stride", lambda: F.conv2d(X, W, stride=(1, -1)), ValueError),
    ("conv2d", "stride", lambda: F.conv2d(X, W, stride=(1, 1, 1)), ValueError),
    ("conv2d", "dilation", lambda: F.conv2d(X, W, dilation=0), ValueError),
    ("conv2d", "padding", lambda: F.conv2d(X, W, padding=-1), ValueError),
    ("conv2d", "padding", lambda: F.conv2d(X, W, padding=(1, 1, 1)), ValueError),
    ("conv2d", "padding", lambda: F.conv2d(X, W, padding=((1, 1), (1, -1))), ValueError),
    ("conv2d", "padding", lambda: F.conv2d(X, W, padding=((1, 1), (1, 1, 1))), ValueError),
    ("conv2d", "padding", lambda: F.conv2d(X, W, padding=((1, 1), 1)), ValueError),
    ("conv2d", "padding", lambda: F.conv2d(X, W, padding="full"), ValueError),
    ("conv2d", "padding", lambda: F.conv2d(X, W, padding="same", stride=2), ValueError),
    ("conv1d", "input", lambda: F.conv1d(X, W[..., 0]), ValueError),
    ("conv1d", "weight", lambda: F.conv1d(X[..., 0], W), ValueError),
    ("conv1d", "stride", lambda: F.conv1d(X[..., 0], W[..., 0], stride=(1, 1)), ValueError),
    ("conv1d", "padding", lambda: F.conv1d(X[..., 0], W[..., 0], padding=(1, 2)), ValueError),
    ("max_pool2d", "input", lambda: F.max_pool2d(X[0, 0], 2), ValueError),
    ("max_pool2d", "input", lambda: F.max_pool2d(X[:, :0], 2), ValueError),
    ("max_pool2d", "kernel_size", lambda: F.max_pool2d(X, 0), ValueError),
    ("max_pool2d", "kernel_size", lambda: F.max_pool2d(X, 7), ValueError),
    ("max_pool2d", "kernel_size", lambda: F.max_pool2d(X, (2, 2, 2)), ValueError),
    ("max_pool2d", "stride", lambda: F.max_pool2d(X, 2, 0), ValueError),
    ("max_pool2d", "padding", lambda: F.max_pool2d(X, 2, padding=2), ValueError),
    ("max_pool2d", "padding", lambda: F.max_pool2d(X, 2, padding=-1), ValueError),
    ("max_pool2d", "dilation", lambda: F.max_pool2d(X, 2, dilation=0), ValueError),
    ("max_pool2d", "padding", lambda: F.max_pool2d(X[:, :, :1], 2, padding=1, dilation=2), ValueError),
    ("max_pool1d", "input", lambda: F.max_pool1d(X, 2), ValueError),
    ("max_pool1d", "kernel_size", lambda: F.max_pool1d(X[0], 7), ValueError),
    ("avg_pool2d", "kernel_size", lambda: F.avg_pool2d(X, 7), ValueError),
    ("avg_pool2d", "padding", lambda: F.avg_pool2d(X, 2, padding=2), ValueError),
    ("avg_pool2d", "divisor_override", lambda: F.avg_pool2d(X, 2, divisor_override=0), ValueError),
    ("sum_pool2d", "stride", lambda: F.sum_pool2d(X, 2, -1), ValueError),
    ("adaptive_avg_pool2d", "output_size", lambda: F.adaptive_avg_pool2d(X, 0), ValueError),
    ("adaptive_avg_pool2d", "output_size", lambda: F.adaptive_avg_pool2d(X, (1, 2, 3)), ValueError),
    ("adaptive_avg_pool2d", "input", lambda: F.adaptive_avg_pool2d(X[0, 0], 1), ValueError),
    ("linear", "weight", lambda: F.linear(LOGITS, np.zeros(5, np.float32)), ValueError),
    ("linear", "input", lambda: F.linear(LOGITS, np.zeros((2, 4), np.float32)), ValueError),
    ("linear", "bias", lambda: F.linear(LOGITS, np.zeros((2, 5), np.float32), LOGITS[0]), ValueError),
    ("flatten", "start_dim", lambda: F.flatten(X, 2, 1), ValueError),
    ("cross_entropy", "target", lambda: F.cross_entropy(LOGITS, np.array([0, 5, 1])), ValueError),
    ("cross_entropy", "target", lambda: F.cross_entropy(LOGITS, np.array([0, -1, 1])), ValueError),
    ("cross_entropy", "target", lambda: F.cross_entropy(LOGITS, SAMPLES[:2]), ValueError),
    ("cross_entropy", "target", lambda: F.cross_entropy(LOGITS, SAMPLES[:, None]), ValueError),
    ("cross_entropy", "target", lambda: F.cross_entropy(LOGITS, LOGITS[:, :4]), ValueError),
    ("cross_entropy", "weight", lambda: F.cross_entropy(LOGITS, SAMPLES, LOGITS[0, :3]), ValueError),
    ("cross_entropy", "reduction", lambda: F.cross_entropy(LOGITS, SAMPLES, reduction="avg"), ValueError),
    (
        "cross_entropy",
        "label_smoothing",
        lambda: F.cross_entropy(LOGITS, SAMPLES, label_smoothing=1.1),
        ValueError,
    ),
    (
        "cross_entropy",
        "label_smoothing",
        lambda: F.cross_entropy(LOGITS, SAMPLES, label_smoothing=NAN),
        ValueError,
    ),
    ("cross_entropy", "input", lambda: F.cross_entropy(LOGITS[:, :0], SAMPLES), ValueError),
    ("mse_loss", "target", lambda: F.mse_loss(LOGITS, LOGITS[:, :1]), ValueError),
    ("mse_loss", "reduction", lambda: F.mse_loss(LOGITS, LOGITS, "average"), ValueError),
    ("half_squared_error", "target", lambda: F.half_squared_error(LOGITS, LOGITS[0]), ValueError),
    ("dropout", "p", lambda: F.dropout(LOGITS, 1.5), ValueError),
    ("dropout", "p", lambda: F.dropout(LOGITS, -0.1), ValueError),
    ("dropout", "p", lambda: F.dropout(LOGITS, NAN), ValueError),
    # PyTorch's kind of error for a dimension that is not there.
    ("softmax", "dim", lambda: F.softmax(LOGITS, 2), IndexError),
    ("log_softmax", "dim", lambda: F.log_softmax(LOGITS, -3), IndexError),
    ("flatten", "dim", lambda: F.flatten(X, 4), IndexError),
    # The wrong kind.
    ("conv2d", "input", lambda: F.conv2d(None, W), TypeError),
    ("conv2d", "input", lambda: F.conv2d("image.png", W), TypeError),
    ("conv2d", "input", lambda: F.conv2d([[1.0], [1.0, 2.0]], W), TypeError),
    ("conv2d", "input", lambda: F.conv2d(X.astype(int), W), TypeError),
    ("conv2d", "input", lambda: F.conv2d(X > 0, W), TypeError),
    ("conv2d", "input", lambda: F.conv2d(X.astype(complex), W), TypeError),
    ("conv2d", "weight", lambda: F.conv2d(X.astype(np.float16), W), TypeError),
    ("conv2d", "weight", lambda: F.conv2d(X, None), TypeError),
    ("conv2d", "weight", lambda: F.conv2d(X, W.astype(np.float64)), TypeError),
    ("conv2d", "bias", lambda: F.conv2d(X, W, np.zeros(8)), TypeError),
    ("conv2d", "stride", lambda: F.conv2d(X, W, stride=1.0), TypeError),
    ("conv2d", "stride", lambda: F.conv2d(X, W, stride=None), TypeError),
    ("conv2d", "stride", lambda: F.conv2d(X, W, stride="2"), TypeError),
    ("conv2d", "stride", lambda: F.conv2d(X, W, stride=True), TypeError),
    ("conv2d", "padding", lambda: F.conv2d(X, W, padding=0.5), TypeError),
    ("conv2d", "padding", lambda: F.conv2d(X, W, padding=None), TypeError),
    ("conv2d", "groups", lambda: F.conv2d(X, W, groups=1.0), TypeError),
    ("max_pool2d", "input", lambda: F.max_pool2d(X > 0, 2), TypeError),
    ("max_pool2d", "kernel_size", lambda: F.max_pool2d(X, 2.0), TypeError),
    ("max_pool2d", "padding", lambda: F.max_pool2d(X, 2, padding="same"), TypeError),
    ("avg_pool2d", "divisor_override", lambda: F.avg_pool2d(X, 2, divisor_override=1.5), TypeError),
    ("adaptive_avg_pool2d", "output_size", lambda: F.adaptive_avg_pool2d(X, "1"), TypeError),
    ("relu", "input", lambda: F.relu(np.arange(3)), TypeError),
    ("relu", "input", lambda: F.relu(None), TypeError),
    ("softmax", "dim", lambda: F.softmax(LOGITS, None), TypeError),
    ("softmax", "dim", lambda: F.softmax(LOGITS, 1.0), TypeError),
    ("flatten", "start_dim", lambda: F.flatten(X, 1.5), TypeError),
    ("linear", "weight", lambda: F.linear(LOGITS, None), TypeError),
    ("cross_entropy", "target", lambda: F.cross_entropy(LOGITS, None), TypeError),
    ("cross_entropy", "target", lambda: F.cross_entropy(LOGITS, SAMPLES > 1), TypeError),
    ("cross_entropy", "target", lambda: F.cross_entropy(LOGITS, LOGITS.astype(np.float64)), TypeError),
    ("cross_entropy", "weight", lambda: F.cross_entropy(LOGITS, SAMPLES, np.ones(5)), TypeError),
    ("cross_entropy", "ignore_index", lambda: F.cross_entropy(LOGITS, SAMPLES, ignore_index=0.5), TypeError),
    (
        "cross_entropy",
        "label_smoothing",
        lambda: F.cross_entropy(LOGITS, SAMPLES, label_smoothing="a"),
        TypeError,
    ),
    ("mse_loss", "target", lambda: F.mse_loss(LOGITS, None), TypeError),
    ("dropout", "p", lambda: F.dropout(LOGITS, "half"), TypeError),
]


@pytest.mark.parametrize(
    ("operation", "argument", "call", "error"),
    WRONG,
    ids=[f"{operation}-{argument}-{i}" for i, (operation, argument, *_) in enumerate(WRONG)],
)
def test_wrong_arguments_are_named(
    operation: str, argument: str, call: Callable[[], Any], error: type[Exception]
) -> None:
    """The right kind of error, which begins with the operation, names the argument and fits on one line."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(f"{operation}: "), message
    assert argument in message.removeprefix(f"{operation}: "), message
    assert "\n" not in message


def test_an_error_says_what_does_not_fit() -> None:
    """The two numbers that disagree are both in the message."""
    with pytest.raises(ValueError, match=r"weight has 3 input channels, but input has 4 channels and groups=1"):
        F.conv2d(X, W[:, :3])
    with pytest.raises(ValueError, match=r"target\[1\] is 5, but input has 5 classes"):
        F.cross_entropy(LOGITS, np.array([0, 5, 1]))


def test_an_operation_runs_on_the_backend_that_was_chosen(backend: Backend) -> None:
    """What the fixture chose is what the other tests of this module ran on."""
    assert backends.current(X) is backend


# -- arguments as PyTorch takes them ---------------------------------------------------------------------------------


def test_dimensions_are_pytorchs(every_backend):
    """Of sum, mean, permute: NumPy's integers, none, negative ones, those of a number; what there is not is refused."""
    x = Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    for dim, wanted in ((np.int64(1), [3, 12]), ((), 15), ((0, np.int32(-1)), 15), (None, 15), (-2, [3, 5, 7])):
        np.testing.assert_array_equal(x.sum(dim).numpy(), wanted)
    assert Tensor(2.0).sum(-1).item() == Tensor(2.0).sum(0).item() == Tensor(2.0).mean(-1).item() == 2
    assert x.permute(np.int64(-1), 0).shape == (3, 2)
    for call, error, words in (
        (lambda: x.sum(2), IndexError, "sum: dim 2 does not exist"),
        (lambda: x.sum((0, 0)), ValueError, "names a dimension twice"),
        (lambda: x.sum("a"), TypeError, "sum: dim must be an integer"),
        (lambda: x.permute(0, 3), IndexError, "permute: dims 3 does not exist"),
        (lambda: x.permute(0, 0), ValueError, r"permute: dims \(0, 0\) must name each of 2 dimensions once"),
        (lambda: x.permute(0), ValueError, "permute: dims"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_exponents_alpha_and_dtype(every_backend):
    """NumPy's numbers as exponents, `alpha` of a sum, `dtype` of softmax: PyTorch's values and types."""
    x = Tensor(np.array([1.0, 2.0, 3.0], np.float32), True)
    assert (x ** np.int64(2)).dtype == (x ** np.float64(0.5)).dtype == np.float32
    np.testing.assert_allclose((x ** np.float64(0.5)).numpy(), np.sqrt([1, 2, 3]), rtol=1e-6)
    np.testing.assert_array_equal(x.add(x, alpha=2).numpy(), [3, 6, 9])
    np.testing.assert_array_equal(x.sub(1, alpha=0.5).numpy(), [0.5, 1.5, 2.5])
    wide = F.softmax(x, 0, dtype=np.float64)
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide.numpy(), np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum(), rtol=1e-14)
    (wide * Tensor(np.array([1.0, 0.0, 0.0]))).sum().backward()
    assert x.grad.dtype == np.float32
    whole = F.log_softmax(np.array([1, 2, 3]), -1, dtype="float32")
    np.testing.assert_allclose(np.exp(whole), wide.numpy(), rtol=1e-5)
    with pytest.raises(TypeError, match="softmax: dtype must be a float type of at most 64 bits, got int64"):
        F.softmax(x, 0, dtype=np.int64)
