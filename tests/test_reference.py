"""The oracle itself: against the worked figures of introductory texts, and against PyTorch."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
import reference

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("example", cases.WORKED_EXAMPLES, ids=str)
def test_worked_examples(example: cases.WorkedExample) -> None:
    """The loops give the figures that are printed in the texts, which nobody computed with this project."""
    example.check(reference, np.float64)


def test_a_filter_bank_is_counted_as_in_the_texts() -> None:
    """32x32 image, ten 5x5 filters: 28x28 maps, 7,840 outputs, 26 weights a filter, 203,840 connections."""
    output = reference.conv2d_shape((1, 1, 32, 32), (10, 1, 5, 5), 1, 0, 1)
    assert output == (1, 10, 28, 28)
    assert np.prod(output) == 7_840
    assert np.prod(output) * (5 * 5 + 1) == 203_840
    pooled, _ = reference.max_pool2d(np.zeros(output), 2)
    assert pooled.shape == (1, 10, 14, 14)
    assert pooled.size * 200 == 392_000


def test_max_pooling_ranks_ties_infinities_and_nan_as_documented() -> None:
    """First maximum, last NaN, -inf is a value like any other, padding never wins; as in PyTorch."""
    for row, kernel, padding, values, indices in cases.RANKED:
        got = reference.max_pool2d(np.array([[[row]]]), (1, kernel), padding=(0, padding))
        np.testing.assert_array_equal(got[0].ravel(), values, err_msg=str(row))
        np.testing.assert_array_equal(got[1].ravel(), indices, err_msg=str(row))


def test_half_squared_error_is_the_total_error_of_the_texts() -> None:
    """Half the sum of (target - output)^2, by hand: (0.25 + 0.04 + 0.01) / 2."""
    error = reference.half_squared_error(np.array([0.5, 0.2, 0.9]), np.array([0, 0, 1]))
    np.testing.assert_allclose(error, 0.15, rtol=1e-15)


# Against PyTorch


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="pip install torch to compare the oracle with PyTorch")


def _assert_same(got: Any, tensor: Any, **tolerance: float) -> None:
    np.testing.assert_allclose(got, tensor.detach().numpy(), **({"rtol": 1e-11, "atol": 1e-11} | tolerance))


def _padded_by_side(torch: Any, x: Any, case: cases.ConvCase | cases.PoolCase, value: float) -> tuple[Any, Any]:
    """PyTorch pads both sides alike; other paddings are put on beforehand. Returns what is left, too."""
    if case.by_side:
        (top, bottom), (left, right) = case.padding
        return torch.nn.functional.pad(x, (left, right, top, bottom), value=value), 0
    return x, case.padding


# 'same' with an even kernel makes PyTorch say that it pads a copy; that is not news here.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", cases.CONV_CASES, ids=str)
def test_conv2d_is_that_of_pytorch(torch: Any, case: cases.ConvCase) -> None:
    """Forward and the three gradients of every geometry."""
    x, w, b, grad = case.arrays(np.float64)
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, w))
    tb = torch.zeros(len(w), dtype=torch.float64) if b is None else torch.tensor(b)
    tb.requires_grad_()
    padded, padding = _padded_by_side(torch, tx, case, 0.0)
    y = torch.nn.functional.conv2d(padded, tw, tb, **case.keywords | {"padding": padding})
    _assert_same(reference.conv2d(x, w, b, **case.keywords), y)
    y.backward(torch.tensor(grad))
    for got, tensor in zip(reference.conv2d_grad(grad, x, w, **case.keywords), (tx, tw, tb), strict=True):
        _assert_same(got, tensor.grad)


@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
# With ceil_mode, PyTorch cannot be asked for different paddings on two sides.
@pytest.mark.parametrize("case", [c for c in cases.POOL_CASES if not (c.by_side and c.ceil_mode)], ids=str)
def test_max_pool2d_is_that_of_pytorch(torch: Any, case: cases.PoolCase, tied: bool) -> None:
    """Values, indices and gradient of every geometry that PyTorch can be given."""
    x = case.tied(np.float64) if tied else case.array(np.float64)
    values, indices = reference.max_pool2d(x, case.kernel, case.stride, case.padding, case.dilation, case.ceil_mode)
    tx = torch.tensor(x, requires_grad=True)
    padded, padding = _padded_by_side(torch, tx, case, -INF)
    y, where = torch.nn.functional.max_pool2d(
        padded, case.kernel, case.stride, padding, case.dilation, case.ceil_mode, return_indices=True
    )
    _assert_same(values, y, rtol=0, atol=0)
    (top, _), (left, _) = reference.sides(case.padding)
    if padded is not tx:
        row, column = np.divmod(where.numpy(), padded.shape[3])
        where = torch.tensor((row - top) * x.shape[3] + column - left)
    np.testing.assert_array_equal(indices, where.numpy())
    grad = cases.generator(case.name).standard_normal(values.shape)
    y.backward(torch.tensor(grad))
    _assert_same(reference.max_pool2d_grad(grad, indices, x.shape), tx.grad)


@pytest.mark.parametrize(
    "options",
    [{}, {"count_include_pad": False}, {"divisor_override": 3}],
    ids=["default", "without-padding", "divisor"],
)
@pytest.mark.parametrize("case", [c for c in cases.POOL_CASES if not c.dilated and not c.by_side], ids=str)
def test_avg_pool2d_is_that_of_pytorch(torch: Any, case: cases.PoolCase, options: dict[str, Any]) -> None:
    """Values and gradient of every geometry that PyTorch can be given, for every way of counting."""
    x = case.array(np.float64)
    arguments = case.kernel, case.stride, case.padding, case.ceil_mode
    tx = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.avg_pool2d(tx, *arguments, **options)
    _assert_same(reference.avg_pool2d(x, *arguments, **options), y)
    grad = cases.generator(case.name).standard_normal(y.shape)
    y.backward(torch.tensor(grad))
    _assert_same(reference.avg_pool2d_grad(grad, x, *arguments, **options), tx.grad)


@pytest.mark.parametrize("case", cases.ADAPTIVE_CASES, ids=str)
def test_adaptive_avg_pool2d_is_that_of_pytorch(torch: Any, case: cases.AdaptiveCase) -> None:
    """Values and gradient, output sizes that do not divide the input's included."""
    x = case.array(np.float64)
    tx = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.adaptive_avg_pool2d(tx, case.output)
    _assert_same(reference.adaptive_avg_pool2d(x, case.output), y)
    grad = cases.generator(case.name).standard_normal(y.shape)
    y.backward(torch.tensor(grad))
    _assert_same(reference.adaptive_avg_pool2d_grad(grad, x, case.output), tx.grad)


def test_activations_and_linear_are_those_of_pytorch(torch: Any) -> None:
    """Everything without a geometry; for activations NaN, infinities and both zeros included."""
    functional = torch.nn.functional
    special = np.array([NAN, INF, -INF, 0.0, -0.0, 1e-300, 800.0, -800.0, 1.5, -1.5])
    tensor = torch.tensor(special, requires_grad=True)
    y = functional.relu(tensor)
    _assert_same(reference.relu(special), y)
    grad = np.arange(1.0, 11.0)
    y.backward(torch.tensor(grad))
    _assert_same(reference.relu_grad(grad, special), tensor.grad)
    _assert_same(reference.sigmoid(special), torch.sigmoid(tensor))
    _assert_same(reference.tanh(special), torch.tanh(tensor))
    x = cases.generator("activations").standard_normal((3, 4, 5)) * 30
    for dim in (0, 1, -1):
        _assert_same(reference.softmax(x, dim), torch.softmax(torch.tensor(x), dim))
        _assert_same(reference.log_softmax(x, dim), torch.log_softmax(torch.tensor(x), dim))
    w, b = cases.generator("weight").standard_normal((6, 5)), cases.generator("bias").standard_normal(6)
    tw, tb = torch.tensor(w), torch.tensor(b)
    for lead in (x, x[0], x[0, 0], x[:0]):
        _assert_same(reference.linear(lead, w, b), functional.linear(torch.tensor(lead), tw, tb))
    for reduction in ("none", "sum", "mean"):
        got = reference.mse_loss(x, x[::-1], reduction)
        _assert_same(got, functional.mse_loss(torch.tensor(x), torch.tensor(x[::-1].copy()), reduction=reduction))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("kind", ["classes", "ignored", "probabilities"])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 5, 3), (2, 4, 3, 2), (0, 3)], ids=str)
def test_cross_entropy_is_that_of_pytorch(
    torch: Any, shape: tuple[int, ...], kind: str, weighted: bool, smoothing: float, reduction: str
) -> None:
    """Value and gradient for every combination of rank, kind of target, weight, smoothing and reduction."""
    rng = cases.generator(f"{shape}{kind}")
    axis = 0 if len(shape) == 1 else 1
    positions = shape[:axis] + shape[axis + 1 :]
    x = rng.standard_normal(shape) * 3
    weight = rng.uniform(0.2, 2.0, shape[axis]) if weighted else None
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    if kind == "probabilities":
        target = reference.softmax(rng.standard_normal(shape), axis)
    else:
        target = np.array(rng.integers(0, shape[axis], positions))
        options["ignore_index"] = 1 if kind == "ignored" else -100
    tx = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.cross_entropy(
        tx, torch.tensor(target), None if weight is None else torch.tensor(weight), **options
    )
    got = reference.cross_entropy(x, target, weight, **options)
    _assert_same(got, y)
    if np.isnan(got).any():
        return  # the mean of nothing: no gradient to speak of
    grad = np.asarray(rng.standard_normal(got.shape))
    y.backward(torch.tensor(grad))
    _assert_same(reference.cross_entropy_grad(grad, x, target, weight, **options), tx.grad)
