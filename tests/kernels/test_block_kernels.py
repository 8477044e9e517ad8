"""The kernels of the fused block, convolution → ReLU → max pooling: right in every tiling, and clean under the trace.

Judged by the loops of `reference.py` for the three operations one after the other.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import cases
import numpy as np
import pytest
import reference
from support.sampling import sampled
from support.simulation import TOLERANCE, run

from gpuconv.backends.numpy_backend import NumpyBackend
from gpuconv.geometry import BlockGeometry, BlockPairGeometry, Conv2dGeometry, Pool2dGeometry
from gpuconv.kernels import VARIANTS, load

numpy_backend = NumpyBackend()
FORWARD, GRAD_INPUT, GRAD_WEIGHT = OF_ONE_BLOCK = (
    "conv2d_relu_max_pool2d",
    "conv2d_relu_max_pool2d_grad_input",
    "conv2d_relu_max_pool2d_grad_weight",
)
PAIR = "conv2d_relu_max_pool2d_pair"
OPERATIONS = (*OF_ONE_BLOCK, PAIR)


@dataclasses.dataclass(frozen=True)
class Block:
    """A convolution, and the pooling of its result as a user writes it."""

    conv: cases.ConvCase
    kernel: Any = 2
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    def __str__(self) -> str:
        return f"{self.conv}-pool{self.kernel}"

    @property
    def geometry(self) -> BlockGeometry:
        conv = Conv2dGeometry.of(self.conv.input, self.conv.weight, **self.conv.keywords)
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return BlockGeometry(
            conv, Pool2dGeometry.of(conv.output_shape, self.kernel, ceil_mode=self.ceil_mode, **options)
        )

    def expected(self, arrays):
        """Of (x, weight, bias, grad): pooled maps, indices, and the gradients for x, weight and bias."""
        x, w, b, grad = arrays
        conv, keywords = self.conv, self.conv.keywords
        maps = reference.conv2d(x, w, b, conv.stride, conv.padding, conv.dilation, conv.groups)
        options = (self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        y, indices = reference.max_pool2d(reference.relu(maps), *options)
        dense = reference.relu_grad(reference.max_pool2d_grad(grad, indices, maps.shape), maps)
        return y, indices, reference.conv2d_grad(dense, x, w, **keywords)


CONV = cases.ConvCase
BLOCKS = [
    # Pooling windows of every kind, on a convolution of every kind.
    Block(CONV("plain", (2, 3, 8, 7), (4, 3, 3, 3))),
    Block(CONV("no-bias", (2, 3, 6, 7), (4, 3, 3, 3), padding=1, bias=False), kernel=(2, 3)),
    Block(CONV("primes", (2, 3, 11, 7), (5, 3, 3, 3)), kernel=3, stride=2, padding=1),
    Block(CONV("stride-2", (2, 2, 9, 9), (3, 2, 3, 3), stride=2, padding=1), ceil_mode=True),
    Block(CONV("same-even-dilated", (1, 2, 9, 8), (3, 2, 2, 4), padding="same", dilation=(3, 1)), kernel=2, stride=1),
    Block(CONV("asymmetric", (2, 2, 6, 7), (3, 2, 3, 4), padding=((0, 1), (2, 0))), kernel=(1, 2), stride=(2, 3)),
    Block(CONV("pool-dilated", (1, 2, 11, 9), (2, 2, 3, 2)), kernel=2, stride=2, padding=1, dilation=2),
    Block(CONV("1x1", (2, 6, 5, 7), (5, 6, 1, 1)), ceil_mode=True),
    Block(CONV("pool-1x1", (1, 2, 5, 6), (3, 2, 3, 3)), kernel=1),
    Block(CONV("single-pixel", (1, 1, 1, 1), (1, 1, 1, 1)), kernel=1),
    Block(CONV("one-pooled-pixel", (2, 3, 5, 4), (4, 3, 2, 3)), kernel=(4, 2)),
    # Several tiles along each axis, several stages of channels and filters; the last of each is ragged.
    Block(CONV("many-images", (17, 1, 5, 5), (2, 1, 3, 3))),
    Block(CONV("many-channels", (1, 17, 5, 6), (3, 17, 3, 3))),
    Block(CONV("many-filters", (1, 2, 6, 5), (37, 2, 3, 3))),
    Block(CONV("wide-and-tall", (1, 1, 19, 35), (2, 1, 3, 3), padding=1)),
]
LENET = [
    Block(CONV("lenet-conv1", (1, 1, 32, 32), (6, 1, 5, 5))),
    Block(CONV("lenet-conv2", (1, 6, 14, 14), (16, 6, 5, 5))),
]


def arrays_of(block, dtype, *, tied=False):
    """Random arrays; tied ones hold few values, so that most windows have their maximum more than once, or zero."""
    conv, pool = block.geometry
    rng = cases.generator(str(block))
    shapes = conv.input_shape, conv.weight_shape, (conv.k,), pool.output_shape
    if tied:
        x, w, b, grad = (rng.integers(-1, 2, shape).astype(dtype) for shape in shapes)
    else:
        x, w, b, grad = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return x, w, b if block.conv.bias else None, grad


def check_forward(module, block, arrays, tiling):
    x, w, b, _ = arrays
    y, indices, _ = block.expected(arrays)
    out, winners = np.full(y.shape, np.nan, x.dtype), np.full(y.shape, 77, np.uint8)
    run(module, (x, w, b), (out, winners), block.geometry, tiling)
    np.testing.assert_allclose(out, y, **TOLERANCE[x.dtype.name], err_msg=str(tiling))
    found = numpy_backend.max_pool2d_indices(winners, block.geometry.pool)
    np.testing.assert_array_equal(found[y > 0], indices[y > 0], err_msg=str(tiling))


def forward_of(block, arrays):
    """The forward's results as the NumPy backend has them: what a backward is given."""
    conv, pool = block.geometry
    y, winners = numpy_backend.conv2d_relu_max_pool2d(*arrays[:3], conv, pool)
    return np.ascontiguousarray(y), np.ascontiguousarray(winners)


def check_gradients(operation, module, block, arrays, tiling):
    x, w, _, grad = arrays
    y, winners = forward_of(block, arrays)
    dx, dw, db = block.expected(arrays)[2]
    if operation == GRAD_INPUT:
        inputs, expected = (grad, w, y, winners), [dx]
    else:
        inputs, expected = (grad, x, y, winners), [dw, db]
    results = [np.full(array.shape, np.nan, x.dtype) for array in expected]
    run(module, inputs, results, block.geometry, tiling)
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **TOLERANCE[x.dtype.name], err_msg=str(tiling))


def check(operation, block, arrays, tilings):
    for module in (load(operation, variant) for variant in VARIANTS[operation]):
        if answer := module.supports(block.geometry):
            for tiling in module.tilings(block.geometry)[tilings]:
                if operation == FORWARD:
                    check_forward(module, block, arrays, tiling)
                else:
                    check_gradients(operation, module, block, arrays, tiling)
        else:
            assert "stride" in answer, answer
            assert operation == GRAD_INPUT


@pytest.mark.grid(4)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("operation", OF_ONE_BLOCK)
def test_kernel(operation, block):
    """Pooled maps, winners and gradients are the reference's in every tiling, where maxima tie or not."""
    # Neither values nor the element type change an index: one tiling shows that they are carried through.
    checks = [
        (arrays_of(block, np.float32, tied=True), slice(1)),
        (arrays_of(block, np.float32), slice(None)),
        (arrays_of(block, np.float64), slice(1)),
    ]
    for arrays, tilings in sampled(checks, 2, (operation, block)):
        check(operation, block, arrays, tilings)


@pytest.mark.slow
@pytest.mark.parametrize("block", [LENET[0], pytest.param(LENET[1], marks=pytest.mark.thorough)], ids=str)
@pytest.mark.parametrize(
    "operation", [pytest.param(name, marks=[pytest.mark.thorough] * (name == GRAD_INPUT)) for name in OF_ONE_BLOCK]
)
def test_layers_of_lenet(operation, block):
    """The layers that these kernels are for, in the tiling for few images and in that for many."""
    many = [dataclasses.replace(part, n=4096) for part in block.geometry]
    for module in (load(operation, variant) for variant in VARIANTS[operation]):
        chosen = module.tilings(BlockGeometry(*many))[0]
        if hasattr(chosen, "parts"):
            chosen = dataclasses.replace(chosen, parts=2)
        if operation == FORWARD:
            check_forward(module, block, arrays_of(block, np.float32), chosen)
        else:
            check_gradients(operation, module, block, arrays_of(block, np.float32), chosen)
    check(operation, block, arrays_of(block, np.float32), slice(1))


def test_nothing_positive():
    """Where no element of a window is positive, the result is zero, and no gradient comes through, be it infinite."""
    block = Block(CONV("negative", (2, 2, 6, 7), (3, 2, 3, 3)))
    x, w, _, grad = arrays_of(block, np.float32)
    b = np.full(3, -1000, np.float32)
    conv, y = block.geometry.conv, np.zeros(grad.shape, np.float32)
    for module in (load(FORWARD, variant) for variant in VARIANTS[FORWARD]):
        out, winners = np.full(y.shape, np.nan, np.float32), np.full(y.shape, 77, np.uint8)
        run(module, (x, w, b), (out, winners), block.geometry, module.tilings(block.geometry)[0])
        np.testing.assert_array_equal(out, y)
        assert (winners < 4).all()
    grad[...] = np.inf
    for operation in (GRAD_INPUT, GRAD_WEIGHT):
        for module in (load(operation, variant) for variant in VARIANTS[operation]):
            results = [np.full(conv.input_shape, np.nan, np.float32)]
            if operation == GRAD_WEIGHT:
                results = [np.full(shape, np.nan, np.float32) for shape in (conv.weight_shape, (conv.k,))]
            first = w if operation == GRAD_INPUT else x
            run(module, (grad, first, y, winners), results, block.geometry, module.tilings(block.geometry)[0])
            for result in results:
                np.testing.assert_array_equal(result, 0)


def test_what_is_not_finite():
    """NaN and infinities come out where the composition has them; a NaN wins its window and passes the gradient on."""
    block = Block(CONV("not-finite", (2, 2, 7, 8), (3, 2, 3, 2), padding=1), kernel=2, padding=1)
    x, w, b, grad = arrays_of(block, np.float32)
    x[0, 1, 2, 3], x[1, 0, 5, 5], x[1, 1, 0, 0] = np.nan, np.inf, -np.inf
    conv, pool = block.geometry
    with np.errstate(invalid="ignore"):
        y, winners = (np.ascontiguousarray(a) for a in numpy_backend.conv2d_relu_max_pool2d(x, w, b, conv, pool))
        expected = numpy_backend.conv2d_relu_max_pool2d_grad(grad, x, w, y, winners, conv, pool, (True, True, True))
    assert np.isnan(y).any()
    assert np.isinf(y).any()
    for module in (load(FORWARD, variant) for variant in VARIANTS[FORWARD]):
        for tiling in module.tilings(block.geometry):
            ours = np.zeros(y.shape, np.float32), np.full(y.shape, 77, np.uint8)
            run(module, (x, w, b), ours, block.geometry, tiling)
            np.testing.assert_allclose(ours[0], y, rtol=1e-4, atol=1e-5)
            counts = ~(y <= 0)
            np.testing.assert_array_equal(ours[1][counts], winners[counts])
    for module in (load(GRAD_INPUT, variant) for variant in VARIANTS[GRAD_INPUT]):
        dx = np.full(x.shape, 77, np.float32)
        run(module, (grad, w, y, winners), (dx,), block.geometry, module.tilings(block.geometry)[0])
        np.testing.assert_allclose(dx, expected[0], rtol=1e-4, atol=1e-5)
    for module in (load(GRAD_WEIGHT, variant) for variant in VARIANTS[GRAD_WEIGHT]):
        dw, db = np.zeros(w.shape, np.float32), np.zeros(3, np.float32)
        run(module, (grad, x, y, winners), (dw, db), block.geometry, module.tilings(block.geometry)[0])
        np.testing.assert_allclose(db, expected[2], rtol=1e-4)
        # The dense sum also multiplies what did not win, by zero, and zero times infinity is NaN.
        finite = np.isfinite(expected[1])
        np.testing.assert_allclose(dw[finite], expected[1][finite], rtol=1e-4, atol=1e-5)


def test_the_order_of_summation_is_fixed():
    """The same bits whatever the order in which threads and blocks run."""
    block = Block(CONV("sum", (5, 3, 9, 8), (6, 3, 3, 3), padding=1))
    arrays = arrays_of(block, np.float32)
    y, winners = forward_of(block, arrays)
    for module in (load(GRAD_WEIGHT, variant) for variant in VARIANTS[GRAD_WEIGHT]):
        tiling = dataclasses.replace(module.tilings(block.geometry)[0], parts=4)
        results = []
        for _ in range(3):
            results.append([np.full(shape, np.nan, np.float32) for shape in ((6, 3, 3, 3), (6,))])
            run(module, (arrays[3], arrays[0], y, winners), results[-1], block.geometry, tiling)
        for one in results[1:]:
            np.testing.assert_array_equal(one[0], results[0][0])
            np.testing.assert_array_equal(one[1], results[0][1])


@pytest.mark.parametrize("operation", OF_ONE_BLOCK)
def test_what_is_refused(operation):
    """Groups, patches that no thread can hold, and arrays that need 64-bit offsets: each with the reason."""

    def block(shape, weight, kernel=2, **options):
        conv = Conv2dGeometry.of(shape, weight, **options)
        return BlockGeometry(conv, Pool2dGeometry.of(conv.output_shape, kernel))

    large = "registers" if operation == FORWARD else "shared memory"
    for geometry, reason in (
        (block((1, 4, 8, 8), (4, 2, 3, 3), groups=2), "2 groups"),
        (block((1, 1, 200, 200), (1, 1, 90, 90)), large),
        (block((2**21, 1, 3, 3), (1025, 1, 2, 2)), "64-bit offsets"),
    ):
        for module in (load(operation, variant) for variant in VARIANTS[operation]):
            answer = module.supports(geometry)
            assert not answer
            lanes = reason == large and "scattered" in module.module.__name__  # of which each holds a tap
            why = "more than the 32 lanes" if lanes else reason
            assert why in answer
            with pytest.raises(ValueError, match=f"{operation}: .*{why}"):
                module.launches(geometry, None, np.float32)


def test_an_empty_batch():
    """Maps and the input's gradient are empty, and nothing is launched; weight and bias have gradients, of zero."""
    block = Block(CONV("empty", (0, 2, 6, 6), (3, 2, 3, 3)))
    nothing, (conv, pool) = np.zeros((0, 3, 2, 2), np.float32), block.geometry
    x, w = np.zeros(conv.input_shape, np.float32), np.ones(conv.weight_shape, np.float32)
    for operation in (FORWARD, GRAD_INPUT):
        for module in (load(operation, variant) for variant in VARIANTS[operation]):
            assert module.launches(block.geometry, module.tilings(block.geometry)[0], np.float32) == ()
    for module in (load(GRAD_WEIGHT, variant) for variant in VARIANTS[GRAD_WEIGHT]):
        dw, db = np.full(w.shape, np.nan, np.float32), np.full(3, np.nan, np.float32)
        inputs = (nothing, x, nothing, np.zeros(nothing.shape, np.uint8))
        run(module, inputs, (dw, db), BlockGeometry(conv, pool), module.tilings(block.geometry)[0])
        np.testing.assert_array_equal(dw, 0)
        np.testing.assert_array_equal(db, 0)


# -- two blocks in one kernel --------------------------------------------------------------------------------


def pair(shape, *blocks):
    """The geometry of two blocks: filters, size of the convolution's window, its options, pooling window, options."""
    found = []
    for filters, size, options, kernel, pool_options in blocks:
        conv = Conv2dGeometry.of(shape, (filters, shape[1], size, size), **options)
        found.append(BlockGeometry(conv, Pool2dGeometry.of(conv.output_shape, kernel, **pool_options)))
        shape = found[-1].pool.output_shape
    return BlockPairGeometry(*found)


#: Of LeNet's kind, and of others: with padding, strides, windows that overlap, are dilated or hang over; lanes that
#: share a window's rows, and too few threads for all filters at once.
PAIRS = {
    "padded": pair(
        (3, 3, 11, 9),
        (5, 3, {"padding": 1}, 2, {"ceil_mode": True}),
        (7, 3, {"padding": ((2, 0), (1, 1))}, 3, {"stride": 2, "padding": 1}),
    ),
    "one channel": pair((2, 1, 17, 19), (3, 5, {}, (2, 3), {}), (2, 3, {"dilation": (1, 2)}, (4, 1), {"stride": 1})),
    "strides": pair((1, 2, 17, 16), (4, 3, {"stride": 2}, 2, {"dilation": 2}), (1, 1, {}, 2, {"stride": (1, 2)})),
    "many filters": pair((1, 2, 9, 9), (9, 2, {}, 2, {}), (90, 3, {}, 2, {})),
    "lenet": pair((1, 1, 32, 32), (6, 5, {}, 2, {}), (16, 5, {}, 2, {})),
}


def two_kernels(geometry, x, weights, biases):
    """Pooled maps, and winners, by the kernel for one block: what the one for both has to give, bit for bit."""
    module, found = load(FORWARD, "fused"), []
    for block, weight, bias in zip(geometry, weights, biases, strict=True):
        y = np.full(block.pool.output_shape, np.nan, x.dtype)
        found.append((y, np.full(y.shape, 77, np.uint8)))
        run(module, (x, weight, bias), found[-1], block, module.tilings(block)[0])
        x = y
    return found


@pytest.mark.grid(2)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "lenet")) for n in PAIRS])
def test_two_blocks_in_one_kernel(name):
    """The bits of a kernel for each block; with a bias in both, in one and in none, and what is not finite."""
    geometry, rng = PAIRS[name], cases.generator(name)
    x = rng.standard_normal(geometry.first.conv.input_shape).astype(np.float32)
    weights = [rng.standard_normal(block.conv.weight_shape).astype(np.float32) for block in geometry]
    biases = [rng.standard_normal(block.conv.k).astype(np.float32) for block in geometry]
    if name == "one channel":
        biases[0] = None
    elif name == "strides":
        biases = [None, None]
        x[0, 1, 4, 4], x[0, 0, 8, 9], x[0, 1, 13, 2] = np.nan, np.inf, -np.inf
    expected = two_kernels(geometry, x, weights, biases)
    for module in (load(PAIR, variant) for variant in VARIANTS[PAIR]):
        for tiling in sampled(module.tilings(geometry), 1 if name == "lenet" else 2, name):
            outs = [np.full(y.shape, np.nan, np.float32) for y, _ in expected]
            winners = [np.full(y.shape, 99, np.uint8) for y, _ in expected]
            run(module, (x, weights, biases), (outs, winners), geometry, tiling)
            for ours, theirs in zip(zip(outs, winners, strict=True), expected, strict=True):
                np.testing.assert_array_equal(ours[0], theirs[0], err_msg=str(tiling))
                np.testing.assert_array_equal(ours[1], theirs[1], err_msg=str(tiling))


def test_what_two_blocks_in_one_kernel_refuse():
    """Float64, groups, large windows, too little shared memory, blocks that are no pair. No images: no launch."""
    lenet, small = PAIRS["lenet"], (2, 3, {}, 2, {})
    for module in (load(PAIR, variant) for variant in VARIANTS[PAIR]):
        for geometry, reason in (
            (
                pair((1, 2, 12, 12), (2, 3, {}, 2, {}), (2, 3, {}, 2, {}))._replace(second=lenet.second),
                "are not inputs",
            ),
            (pair((1, 1, 60, 60), small, (2, 3, {}, 17, {})), "17x17 pooling"),
            (pair((1, 1, 140, 140), small, small), "shared memory"),
            (pair((1, 1, 40, 40), (2, 20, {}, 2, {}), small), "windows are large"),
            (pair((1, 1, 100, 100), (1, 3, {"stride": 4}, 4, {}), small), "or too few"),
            (pair((2**21, 1, 32, 32), small, small), "64-bit offsets"),
        ):
            assert reason in module.supports(geometry)
            with pytest.raises(ValueError, match=f"{PAIR}: .*{reason}"):
                module.launches(geometry, None, np.float32)
        groups = Conv2dGeometry.of((1, 4, 8, 8), (4, 2, 3, 3), groups=2)
        grouped = BlockGeometry(groups, Pool2dGeometry.of(groups.output_shape, 2))
        assert "2 groups" in module.supports(BlockPairGeometry(grouped, lenet.second))
        assert "float32" in module.supports(lenet, "float64")
        empty = pair((0, 1, 32, 32), (6, 5, {}, 2, {}), (16, 5, {}, 2, {}))
        assert module.launches(empty, module.tilings(empty)[0], np.float32) == ()
