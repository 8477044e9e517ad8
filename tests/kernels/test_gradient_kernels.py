"""The kernels for gradients of convolutions: right in every tiling and on every geometry, and clean under the trace."""

from __future__ import annotations

import dataclasses
import types

import cases
import numpy as np
import pytest
import reference
from support.sampling import sampled
from support.simulation import COMPILED, TOLERANCE, geometry_of, run, simulator, types_of

from gpuconv.backends.numpy_backend import NumpyBackend
from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels import VARIANTS, device, load, partial_sums

numpy_backend = NumpyBackend()


def grad_input(case, dtype):
    """Geometry, inputs and the right result."""
    x, w, _, grad = case.arrays(dtype)
    geometry = geometry_of(case)
    return geometry, (grad, w), reference.conv2d_grad(grad, x, w, **case.keywords)[0]


def grad_weight(case, dtype):
    """Geometry, inputs and the right result."""
    x, w, _, grad = case.arrays(dtype)
    geometry = geometry_of(case)
    return geometry, (grad, x), reference.conv2d_grad(grad, x, w, **case.keywords)[1]


def grad_bias(case, dtype):
    """Shape, input and the right result."""
    grad = case.arrays(dtype)[3]
    return grad.shape, (grad,), grad.astype(np.float64).sum(axis=(0, 2, 3))


OPERATIONS = {"conv2d_grad_input": grad_input, "conv2d_grad_weight": grad_weight, "conv2d_grad_bias": grad_bias}
TABLE = [(operation, variant) for operation in OPERATIONS for variant in VARIANTS[operation]]


def supported(operation, variant, case):
    """Whether a variant is to be run on a case; the direct one is on each."""
    if operation == "conv2d_grad_bias" or variant == "direct":
        return True
    return bool(load(operation, variant).supports(geometry_of(case)))


RUNS = [
    pytest.param(operation, variant, case, id=f"{operation}-{variant}-{case}", marks=cases.thorough(variant, case))
    for operation, variant in TABLE
    for case in cases.CONV_CASES
    if case.tiny and supported(operation, variant, case)
]


@pytest.mark.grid(12)
@pytest.mark.parametrize(("operation", "variant", "case"), RUNS)
def test_kernel(operation, variant, case):
    """The result is the reference's, in every tiling; for an empty batch too, whose sums are zero."""
    module = load(operation, variant)
    geometry = case.output if operation == "conv2d_grad_bias" else geometry_of(case)
    for dtype in types_of(module, geometry, (variant, case)):
        _, inputs, expected = OPERATIONS[operation](case, dtype)
        tilings = module.tilings(geometry)
        # The element type changes no index: one tiling shows that it is carried through.
        for tiling in sampled(tilings, 1, case) if dtype == "float32" else tilings[-1:]:
            out = np.full(expected.shape, np.nan, dtype)
            run(module, inputs, (out,), geometry, tiling)
            np.testing.assert_allclose(out, expected, **TOLERANCE[dtype], err_msg=str(tiling))


#: A layer for which the large tiles are worth their size, and for each kernel that has such a small one that leaves
#: blocks partly empty in each direction.
LARGE = Conv2dGeometry.of((32, 256, 28, 28), (256, 256, 3, 3), padding=1)
RAGGED = {
    ("conv2d_grad_input", "tiled"): cases.ConvCase("ragged-map", (1, 66, 9, 35), (2, 66, 3, 2)),
    ("conv2d_grad_input", "implicit_gemm"): cases.ConvCase(
        "ragged-product", (1, 130, 5, 7), (15, 130, 3, 3), padding=1
    ),
    ("conv2d_grad_weight", "implicit_gemm"): cases.ConvCase("ragged-matrix", (1, 8, 3, 5), (70, 8, 3, 3), padding=1),
}


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "variant"), RAGGED)
def test_tiles_for_large_layers(operation, variant):
    """Tilings of a layer of ResNet, on a few ragged blocks; a sum is cut into three parts, of which one is empty.

    Shared memory is read without bank conflicts where eight threads in a row always work on neighbouring segments.
    """
    module = load(operation, variant)
    geometry, inputs, _ = OPERATIONS[operation](RAGGED[operation, variant], np.float32)
    expected = getattr(numpy_backend, operation)(*(array.astype(np.float64) for array in inputs), geometry)
    # The smaller ones are taken for the small cases above.
    for tiling in sampled(module.tilings(LARGE)[:5], 1, variant):
        if operation == "conv2d_grad_weight":
            tiling = dataclasses.replace(tiling, parts=3)
        out = np.full(expected.shape, np.nan, np.float32)
        report = run(module, inputs, (out,), geometry, tiling)
        np.testing.assert_allclose(out, expected, **TOLERANCE["float32"], err_msg=str(tiling))
        wraps = variant == "tiled" and tiling.rows * tiling.columns // tiling.thread_columns % 8 > 0
        for conflicts in report.bank_conflicts if report else ():
            if conflicts.access == "read":
                assert conflicts.degree <= (1.5 if wraps else 1), f"{tiling}: {conflicts}"


PHASES = [
    cases.ConvCase("phases-odd-map", (2, 5, 9, 7), (20, 5, 3, 3), stride=2, padding=1),
    # Three of four elements are met by no tap, and the last row and column neither.
    cases.ConvCase("phases-1x1", (2, 8, 8, 6), (12, 8, 1, 1), stride=2),
    cases.ConvCase("phases-gaps", (1, 6, 11, 10), (8, 3, 2, 2), stride=3, padding=((1, 0), (2, 1)), groups=2),
    cases.ConvCase("phases-dilated", (1, 4, 13, 12), (6, 4, 3, 4), stride=(2, 4), padding=2, dilation=(2, 3)),
    # The window's reach is smaller than the padding: results are cut, of phases and of the whole.
    cases.ConvCase("phases-cut", (1, 3, 5, 6), (7, 3, 2, 1), stride=(2, 1), padding=3),
    cases.ConvCase("cut", (2, 3, 5, 6), (7, 3, 1, 2), padding=2),
]


@pytest.mark.parametrize("case", PHASES, ids=str)
def test_phases_of_a_strided_gradient(case):
    """By even and odd rows and columns, and other remainders: each tap once, zeros where there is none."""
    module = load("conv2d_grad_input", "implicit_gemm")
    geometry, inputs, expected = grad_input(case, np.float32)
    for tiling in sampled(module.tilings(geometry), 1, case):
        out = np.full(expected.shape, np.nan, np.float32)
        run(module, inputs, (out,), geometry, tiling)
        np.testing.assert_allclose(out, expected, **TOLERANCE["float32"], err_msg=str(tiling))


def test_phases_multiply_no_zeros():
    """Products of all phases together have the multiply-adds of the convolution, and no more."""
    module = load("conv2d_grad_input", "implicit_gemm")
    geometry = Conv2dGeometry.of((2, 64, 56, 56), (32, 64, 3, 3), stride=2, padding=((0, 1), (0, 1)))
    products = [product for product, _ in module.products(geometry)]
    assert sorted(product.r * product.s for product in products) == [1, 2, 2, 4]
    assert sum(product.macs for product in products) == geometry.macs
    answer = module.supports(dataclasses.replace(geometry, stride=(5, 4)))
    assert not answer
    assert "more than 16 launches" in answer


@pytest.mark.slow
@pytest.mark.grid(2)
@pytest.mark.parametrize(
    ("operation", "variant"),
    [pytest.param(*one, marks=[pytest.mark.thorough] * (one[1] in ("winograd", "depthwise"))) for one in TABLE],
)
def test_the_order_of_summation_is_fixed(operation, variant):
    """The same bits whatever the order in which threads and blocks run."""
    module = load(operation, variant)
    case = cases.ConvCase("sum", (5, 4, 5, 4), (6, 4, 3, 3), padding=1)
    if variant == "depthwise":
        case = dataclasses.replace(case, weight=(8, 1, 3, 3), groups=4)
    geometry, inputs, expected = OPERATIONS[operation](case, np.float32)
    tiling = module.tilings(geometry)[0]
    if operation == "conv2d_grad_weight":
        tiling = dataclasses.replace(tiling, parts=4)
    results = [np.full(expected.shape, np.nan, np.float32) for _ in range(2)]
    for result in results:
        run(module, inputs, [result], geometry, tiling)
    np.testing.assert_array_equal(*results)


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "variant"), TABLE)
def test_what_is_not_finite_spreads_as_on_numpy(operation, variant):
    """A NaN or an infinity in the gradient or the input reaches what its products enter, and nothing else."""
    module = load(operation, variant)
    case = cases.ConvCase("not-finite", (2, 3, 7, 9), (4, 3, 3, 2), stride=(1, 2), padding=1)
    if variant == "depthwise":
        case = dataclasses.replace(case, weight=(6, 1, 3, 2), groups=3)
    geometry, inputs, expected = OPERATIONS[operation](case, np.float32)
    if operation != "conv2d_grad_bias" and not module.supports(geometry):
        pytest.skip("Winograd's: see tests/kernels/test_winograd_kernels.py")
    inputs[0][0, 1, 2, 3], inputs[0][1, 2, 0, 0] = np.nan, np.inf
    if operation == "conv2d_grad_weight":
        inputs[1][1, 0, 6, 8], inputs[1][0, 2, 3, 1] = -np.inf, np.nan
    arguments = inputs if operation == "conv2d_grad_bias" else (*inputs, geometry)
    with np.errstate(invalid="ignore"):
        expected = getattr(numpy_backend, operation)(*arguments)
    assert not np.isfinite(expected).all()
    for tiling in sampled(module.tilings(geometry), 3, variant):
        out = np.zeros(expected.shape, np.float32)
        run(module, inputs, (out,), geometry, tiling)
        np.testing.assert_allclose(out, expected, **TOLERANCE["float32"], err_msg=str(tiling))


@pytest.mark.parametrize(("operation", "variant"), TABLE)
def test_batches_larger_than_a_grid_is_high(operation, variant):
    """A grid is at most 65,535 blocks high and deep: a million images fit nonetheless."""
    module = load(operation, variant)
    geometry = Conv2dGeometry.of((1_000_000, 1, 5, 5), (2, 1, 3, 3), stride=2)
    if operation == "conv2d_grad_bias":
        geometry = geometry.output_shape
    elif not module.supports(geometry):
        geometry = dataclasses.replace(geometry, stride=(1, 1))
    for tiling in module.tilings(geometry):
        for launch in module.launches(geometry, tiling, np.float32):
            assert max(launch.grid[1:]) <= 65_535
            assert launch.grid[0] < 2**31


@pytest.mark.parametrize(("operation", "variant"), TABLE)
def test_sizes_that_need_64_bit_offsets_are_refused(operation, variant):
    """A clear error instead of wrapped indices: which array, how large, and what to do."""
    module = load(operation, variant)
    geometry = Conv2dGeometry.of((2**21, 1, 1, 1), (1025, 1, 1, 1))
    if operation == "conv2d_grad_bias":
        geometry = geometry.output_shape
    assert not module.supports(geometry)
    with pytest.raises(ValueError, match=f"{operation}: grad has .* needs 64-bit offsets.* Split the batch"):
        module.launches(geometry, module.tilings(geometry)[0], np.float32)


def test_windows_too_large_for_a_tile_are_refused():
    """The tiled kernel says which limit it has, and leaves such geometries to the direct one."""
    module = load("conv2d_grad_input", "tiled")
    for shape, options, reason in (
        ((2, 2, 3, 40), {"padding": (0, 39)}, "too long for the registers"),
        ((2, 2, 80, 9), {"padding": (79, 0)}, "too large for shared memory"),
        ((2, 2, 3, 3), {"stride": 5}, "more than 16 launches"),
    ):
        answer = module.supports(Conv2dGeometry.of((1, 2, 100, 100), shape, **options))
        assert not answer
        assert reason in answer


@pytest.mark.parametrize(("operation", "variant"), [one for one in TABLE if one[0] != "conv2d_grad_input"])
def test_a_workspace_is_asked_for(operation, variant):
    """Without one, or with one of another size, nothing is launched."""
    module = load(operation, variant)
    case = cases.ConvCase("c", (4, 2, 6, 6), (3, 2, 3, 3))
    if variant == "depthwise":
        case = dataclasses.replace(case, weight=(4, 1, 3, 3), groups=2)
    geometry, inputs, expected = OPERATIONS[operation](case, np.float32)
    tiling, out = dataclasses.replace(module.tilings(geometry)[0], parts=2), np.zeros(expected.shape, np.float32)
    size = module.workspace_size(geometry, tiling)
    assert size == 2 * expected.size
    for workspace, given in ((None, "none"), (np.zeros(7, np.float32), "one of 7")):
        with pytest.raises(ValueError, match=f"{operation}: .* workspace of {size} elements, got {given}"):
            module.launch(*inputs, out, geometry, tiling, None, workspace=workspace)


def test_outer_products_equal_their_twin():
    """`add_outer` and `clear` as they are compiled, here for this processor, against what the simulator runs."""
    import numba

    fma = numba.extending.intrinsic(device.BODIES["fma"])
    code = types.FunctionType(device.registers._add_outer.__code__, {**vars(device), "fma": fma})
    rng = np.random.default_rng(0)
    a, b, total = rng.standard_normal(4), rng.standard_normal(9), rng.standard_normal((4, 5))
    expected = total.copy()
    device.registers._add_outer_twin(expected, a, b, 3)
    numba.njit(code)(total, a, b, 3)
    np.testing.assert_allclose(total, expected, rtol=1e-15)
    for clear in (numba.njit(device.registers._clear), device.registers._clear_twin):
        filled = total.copy()
        clear(filled)
        assert not filled.any()


@pytest.mark.parametrize(("elements", "parts", "columns"), [(7, 1, 8), (33, 3, 32), (42, 300, 8), (70, 70, 32)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_partial_sums(elements, parts, columns, dtype, monkeypatch):
    """More parts than the rows of a block have loads under way; elements that fill no block."""
    monkeypatch.setattr(partial_sums, "columns_of", lambda elements: columns)
    rows = np.random.default_rng(0).standard_normal((parts, elements)).astype(dtype)
    one, two = np.full(elements, np.nan, dtype), np.full(elements, np.nan, dtype)
    calls = [
        partial_sums.sum_parts(rows.ravel(), one, parts),
        partial_sums.sum_parts_of_two(rows.ravel(), two[:-2], two[-2:], parts),
    ]
    for each in calls:
        if COMPILED:
            each.launch(None, *each.arguments)
            continue
        with simulator.trace(seed=elements) as report:
            each.launch(None, *each.arguments)
        assert report.clean, str(report)
    np.testing.assert_allclose(one, rows.sum(0, np.float64), **TOLERANCE[dtype])
    np.testing.assert_array_equal(one, two)
