"""The kernels for chains of fully connected layers: right in every tiling, and clean under the simulator's trace."""

from __future__ import annotations

from itertools import pairwise

import cases
import numpy as np
import pytest
import reference
from support.sampling import sampled
from support.simulation import TOLERANCE, run

from gpuconv.geometry import ChainGeometry
from gpuconv.kernels import VARIANTS, load

CHAIN = FORWARD, GRAD_INPUT, GRAD_WEIGHT = (
    "linear_chain",
    "linear_chain_grad_input",
    "linear_chain_grad_weight",
)
LOSS = "linear_chain_loss_grad_input"
OPERATIONS = *CHAIN, LOSS


#: Sizes that 4, 16 and 32 divide and that they do not; one layer and several, with and without a ReLU behind the last.
CHAINS = [
    ChainGeometry(3, (20, 12, 8), (True, False)),
    ChainGeometry(9, (33, 37, 5, 3), (True, True, True)),
    ChainGeometry(5, (7, 70), (False,)),
    ChainGeometry(2, (130, 1, 6), (False, True)),
    ChainGeometry(1, (1, 1), (True,)),
    ChainGeometry(35, (4, 2), (True,)),
]
LENET = ChainGeometry(2, (400, 120, 84, 10), (True, True, False))

#: As many warps as the first layer, the second, or a block's rows need; columns for several blocks; 1 to 16 classes.
LOSSES = [
    ChainGeometry(5, (20, 12, 7, 3), (True, True, False)),
    ChainGeometry(3, (132, 52, 33, 10), (True, True, False)),
    ChainGeometry(1, (4, 128, 1, 1), (True, True, False)),
    ChainGeometry(9, (8, 4, 104, 16), (True, True, False)),
]


def expected(geometry, x, weights, biases, grad):
    """Results of each layer, gradients before each ReLU and for the input, and for weights and biases, in float64."""
    xs, ys = [x.astype(np.float64)], []
    for weight, bias, active in zip(weights, biases, geometry.relu, strict=True):
        y = xs[-1] @ weight.astype(np.float64).T + (0 if bias is None else bias)
        ys.append(np.where(y <= 0, 0, y) if active else y)
        xs.append(ys[-1])
    grads, grad = [], grad.astype(np.float64)
    for weight, y, active in reversed(list(zip(weights, ys, geometry.relu, strict=True))):
        grads.insert(0, np.where(y <= 0, 0, grad) if active else grad)
        grad = grads[0] @ weight
    return ys, grads, grad, [one.T @ x for one, x in zip(grads, xs, strict=False)], [one.sum(axis=0) for one in grads]


def arrays_of(geometry, dtype):
    rng = cases.generator(str(geometry))
    n, sizes, _ = geometry
    x, grad = (rng.standard_normal((n, size)).astype(dtype) for size in (sizes[0], sizes[-1]))
    weights = [rng.standard_normal((b, a)).astype(dtype) for a, b in pairwise(sizes)]
    biases = [None if number == 1 else rng.standard_normal(size).astype(dtype) for number, size in enumerate(sizes[1:])]
    return x, weights, biases, grad


def blanks(arrays, dtype):
    return [np.full(array.shape, np.nan, dtype) for array in arrays]


def compare(ours, theirs, dtype, tiling):
    for one, other in zip(ours, theirs, strict=True):
        scale = max(1, np.abs(other).max(initial=0))
        np.testing.assert_allclose(one / scale, other / scale, **TOLERANCE[dtype], err_msg=str(tiling))


def check(operation, geometry, dtype, tilings):
    x, weights, biases, grad = arrays_of(geometry, dtype)
    ys, grads, dx, dweights, dbiases = expected(geometry, x, weights, biases, grad)
    ys, grads = ([array.astype(dtype) for array in arrays] for arrays in (ys, grads))
    for module in (load(operation, variant) for variant in VARIANTS[operation]):
        for tiling in sampled(module.tilings(geometry)[tilings], 1, geometry):
            if operation == FORWARD:
                ours = blanks(ys, dtype)
                run(module, (x, weights, biases), (ours,), geometry, tiling)
                compare(ours, ys, dtype, tiling)
            elif operation == GRAD_INPUT:
                ours, out = blanks(grads, dtype), np.full(x.shape, np.nan, dtype)
                report = run(module, (grad, weights, ys, ours), (out,), geometry, tiling)
                # Without a ReLU behind it, the last layer's gradient is the one given.
                written = ours if geometry.relu[-1] else ours[:-1]
                for array in written if report else ():
                    np.testing.assert_array_equal(report.writes(array), 1)
                compare([*written, out], [*grads[: len(written)], dx], dtype, tiling)
                ours = blanks(grads, dtype)
                run(module, (grad, weights, ys, ours, None), (), geometry, tiling)
                compare(ours[: len(written)], grads[: len(written)], dtype, tiling)
            else:
                ours = blanks(dweights, dtype), blanks(dbiases, dtype)
                run(module, ([x, *ys[:-1]], grads), ours, geometry, tiling)
                compare([*ours[0], *ours[1]], [*dweights, *dbiases], dtype, tiling)


@pytest.mark.grid(2)
@pytest.mark.parametrize("geometry", CHAINS, ids=str)
@pytest.mark.parametrize("operation", CHAIN)
def test_kernel(operation, geometry):
    """Results and gradients of every layer are those of matrix products in float64."""
    for dtype, tilings in sampled([("float32", slice(None)), ("float64", slice(1))], 1, (operation, geometry)):
        check(operation, geometry, dtype, tilings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "operation", [pytest.param(name, marks=[pytest.mark.thorough] * (name != FORWARD)) for name in CHAIN]
)
def test_the_classifier_of_lenet(operation):
    """The layers that these kernels are for."""
    check(operation, LENET, "float32", slice(1))


def loss_gradients(geometry, module, tiling, y, labels, weights, biases):
    """Gradients before each ReLU, and for the input, by a kernel."""
    n, sizes, _ = geometry
    grads = [np.full((n, size), np.nan, np.float32) for size in sizes[1:]]
    out = np.full((n, sizes[0]), np.nan, np.float32)
    run(module, (y, labels, weights, biases), (grads, out), geometry, tiling, ignore_index=1)
    return [*grads, out]


def expected_loss_gradients(geometry, y, labels, weights, biases):
    """Likewise, in float64, and a label that is no class like one that does not count."""
    last = geometry._replace(sizes=geometry.sizes[1:], relu=geometry.relu[1:])
    blank = np.zeros((geometry.n, geometry.sizes[-1]))
    logits = expected(last, y, weights[1:], biases[1:], blank)[0][-1]
    counted = np.where((labels < 0) | (labels >= geometry.sizes[-1]), 1, labels)
    grad = reference.cross_entropy_grad(np.array(1.0), logits, counted, None, 1, "mean", 0.0)
    _, (*grads,), before, _, _ = expected(last, y, weights[1:], biases[1:], grad)
    grads.insert(0, np.where(y <= 0, 0, before))
    return [*grads, grads[0] @ weights[0].astype(np.float64)]


@pytest.mark.grid(2)
@pytest.mark.parametrize("geometry", LOSSES, ids=str)
def test_gradients_of_a_loss(geometry):
    """They are those of the loss of logits that are computed again; labels that do not count have none."""
    x, weights, biases, _ = arrays_of(geometry, "float32")
    y = expected(geometry, x, weights, biases, x[:, :1] * np.zeros(geometry.sizes[-1]))[0][0].astype(np.float32)
    labels = cases.generator(str(geometry)).integers(0, geometry.sizes[-1], geometry.n)
    labels[1:3] = [1, 10**10][: max(0, geometry.n - 1)]
    if geometry.sizes[-1] > 1:
        labels[0] = 0
    wanted = expected_loss_gradients(geometry, y, labels, weights, biases)
    for module in (load(LOSS, variant) for variant in VARIANTS[LOSS]):
        for tiling in sampled(module.tilings(geometry), 1, geometry):
            compare(loss_gradients(geometry, module, tiling, y, labels, weights, biases), wanted, "float32", tiling)


@pytest.mark.slow
@pytest.mark.parametrize("geometry", LOSSES[1::-1], ids=["aligned", "not aligned"])
def test_gradients_of_a_loss_of_what_is_not_finite(geometry):
    """A NaN stays in its row; weights that are not aligned are read one by one. All layers have a bias."""
    x, weights, biases, grad = arrays_of(geometry, "float32")
    biases[1] = cases.generator("second").standard_normal(geometry.sizes[2]).astype(np.float32)
    if geometry is LOSSES[0]:
        moved = [np.empty(weight.size + 1, np.float32)[1:].reshape(weight.shape) for weight in weights]
        for one, weight in zip(moved, weights, strict=True):
            one[...] = weight
        weights = moved
    y = expected(geometry, x, weights, biases, grad)[0][0].astype(np.float32)
    y[1, 5] = np.nan
    labels = np.arange(geometry.n) % 3 * 2 % geometry.sizes[-1]
    wanted = expected_loss_gradients(geometry, y, labels, weights, biases)
    assert np.isnan(wanted[-1]).any(axis=1).tolist() == [row == 1 for row in range(geometry.n)]
    module = load(LOSS, "recomputed")
    found = loss_gradients(geometry, module, module.Tiling(4, 8, 32), y, labels, weights, biases)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_what_gradients_of_a_loss_refuse():
    """Other chains than three layers with a ReLU between them, wide ones, and rows that 128 bits do not divide."""
    for sizes, relu, reason in (
        ((8, 8, 8), (True, False), "three layers"),
        ((8, 8, 8, 8), (True, False, False), "three layers"),
        ((8, 132, 8, 8), (True, True, False), "more than 128"),
        ((8, 8, 113, 8), (True, True, False), "more than 128"),
        ((8, 8, 8, 17), (True, True, False), "more than 128"),
        ((8, 6, 8, 8), (True, True, False), "128 bits"),
        ((7, 8, 8, 8), (True, True, False), "128 bits"),
    ):
        for module in (load(LOSS, variant) for variant in VARIANTS[LOSS]):
            assert reason in module.supports(ChainGeometry(2, sizes, relu))
            assert "float32" in module.supports(LENET, "float64")


def test_what_is_not_finite():
    """A NaN reaches the results of its row, and no other; it passes the gradient on through a ReLU."""
    geometry = ChainGeometry(4, (9, 6, 3), (True, True))
    x, weights, biases, grad = arrays_of(geometry, "float32")
    x[2, 3] = np.nan
    ys, grads, dx, *_ = expected(geometry, x, weights, biases, grad)
    ys, grads = ([array.astype(np.float32) for array in arrays] for arrays in (ys, grads))
    for module in (load(FORWARD, variant) for variant in VARIANTS[FORWARD]):
        for tiling in module.tilings(geometry):
            ours = blanks(ys, "float32")
            run(module, (x, weights, biases), (ours,), geometry, tiling)
            for one, other in zip(ours, ys, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
                assert np.isnan(one).any(axis=1).tolist() == [False, False, True, False]
    for module in (load(GRAD_INPUT, variant) for variant in VARIANTS[GRAD_INPUT]):
        ours, out = blanks(grads, "float32"), np.full(x.shape, np.nan, np.float32)
        run(module, (grad, weights, ys), (ours, out), geometry, module.tilings(geometry)[0])
        for one, other in zip([*ours, out], [*grads, dx], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_weights_that_are_not_aligned():
    """Weights are read 128 bits at a time only where they all begin at a multiple of 16 bytes."""
    geometry = ChainGeometry(3, (8, 4), (True,))
    x, (weight,), biases, grad = arrays_of(geometry, "float32")
    moved = np.empty(weight.size + 1, np.float32)[1:].reshape(weight.shape)
    moved[...] = weight
    (y,), *_ = expected(geometry, x, [weight], biases, grad)
    for module in (load(FORWARD, variant) for variant in VARIANTS[FORWARD]):
        ours = np.full(y.shape, np.nan, np.float32)
        run(module, (x, [moved], biases), ([ours],), geometry, module.tilings(geometry)[0])
        np.testing.assert_allclose(ours, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("operation", CHAIN)
def test_empty_and_too_large(operation):
    """No rows: nothing is launched, but for sums, which are zero. What does not fit is refused, with the reason."""
    for module in (load(operation, variant) for variant in VARIANTS[operation]):
        empty = ChainGeometry(0, (5, 3), (True,))
        made = module.launches(empty, module.tilings(empty)[0], np.float32)
        assert len(made) == (operation == GRAD_WEIGHT)
        cases_refused = [
            (ChainGeometry(1, (2,) * 10, (True,) * 9), "9 layers"),
            (ChainGeometry(2**20, (2**12, 3), (True,)), "64-bit offsets"),
            (ChainGeometry(1, (3, 0), (True,)), "without features"),
        ]
        if operation != GRAD_WEIGHT:
            cases_refused.append((ChainGeometry(1, (9000, 3), (True,)), "shared memory"))
        for geometry, reason in cases_refused:
            assert reason in module.supports(geometry)
            with pytest.raises(ValueError, match=f"{operation}: .*{reason}"):
                module.launches(geometry, None, np.float32)
