"""Winograd's convolution and gradient: accuracy, several tiles and stages, what is not finite, what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cases import ConvCase
from support.sampling import sampled
from support.simulation import TOLERANCE, geometry_of, run

from gpuconv.backends.numpy_backend import NumpyBackend
from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels import load

numpy_backend = NumpyBackend()
OPERATIONS = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")


def problem(operation, case, dtype=np.float32):
    """Geometry, inputs, and the result in float64."""
    x, weight, bias, grad = case.arrays(dtype)
    geometry = geometry_of(case)
    if operation == "conv2d":
        inputs = x, weight, bias
    else:
        inputs = grad, (weight if operation == "conv2d_grad_input" else x)
    exact = (None if array is None else array.astype(np.float64) for array in inputs)
    return geometry, inputs, getattr(numpy_backend, operation)(*exact, geometry)


CASES = [
    # Stages of channels and tiles of filters that are partly empty; tiles of outputs that hang over each border.
    ConvCase("winograd-ragged", (2, 6, 5, 9), (36, 6, 3, 3), padding=((0, 2), (1, 0))),
    # Outputs in pairs; several blocks of tiles; whole stages.
    ConvCase("winograd-even", (3, 8, 8, 10), (5, 8, 3, 3), padding=1, bias=False),
    # Nothing is padded, and the tiles are whole.
    ConvCase("winograd-valid", (1, 4, 6, 12), (4, 4, 3, 3)),
    # The gradient's padding is less than nothing: its result is cut.
    ConvCase("winograd-cut", (1, 4, 4, 5), (6, 2, 3, 3), padding=3, groups=2),
]


RUNS = [
    pytest.param(
        operation, case, id=f"{operation}-{case}", marks=[pytest.mark.thorough] * (number < 2 and "weight" in operation)
    )
    for operation in OPERATIONS
    for number, case in enumerate(CASES)
]


@pytest.mark.parametrize(("operation", "case"), RUNS)
def test_tiles_and_stages(operation, case):
    """Right, and free of bank conflicts, in float32."""
    module = load(operation, "winograd")
    geometry, inputs, expected = problem(operation, case)
    for tiling in sampled(module.tilings(geometry), 1, f"{operation} {case}"):
        if operation == "conv2d_grad_weight":  # in a few blocks
            tiling = dataclasses.replace(tiling, parts=min(tiling.parts, 2))
        out = np.full(expected.shape, np.nan, np.float32)
        report = run(module, inputs, (out,), geometry, tiling)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4, err_msg=str(tiling))
        assert not [one for one in report.bank_conflicts if one.degree > 1] if report else True


@pytest.mark.slow
def test_accuracy():
    """The error in norm is at most that of a direct sum in order, in float32."""
    case = ConvCase("winograd-accuracy", (1, 32, 4, 4), (8, 32, 3, 3), padding=1, bias=False)
    geometry, inputs, expected = problem("conv2d", case)
    module = load("conv2d", "winograd")
    out = np.full(expected.shape, np.nan, np.float32)
    run(module, inputs, (out,), geometry, module.tilings(geometry)[0])
    direct = np.full(expected.shape, np.nan, np.float32)
    direct_module = load("conv2d", "direct")
    run(direct_module, inputs, (direct,), geometry, direct_module.tilings(geometry)[0])
    assert np.linalg.norm(out - expected) < np.linalg.norm(direct - expected)


@pytest.mark.parametrize("operation", OPERATIONS[:2])
def test_what_is_not_finite_stays_in_its_tiles(operation):
    """It reaches what it reaches on NumPy, and besides only the results of the tiles that it is in."""
    case = ConvCase("winograd-specials", (1, 2, 8, 8), (3, 2, 3, 3), padding=1, bias=False)
    module = load(operation, "winograd")
    geometry, inputs, _ = problem(operation, case)
    inputs[0][0, 1, 2, 3], inputs[0][0, 0, 7, 7] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        expected = getattr(numpy_backend, operation)(*inputs[:2], *([None] if operation == "conv2d" else []), geometry)
    out = np.zeros(expected.shape, np.float32)
    run(module, inputs, (out,), geometry, module.tilings(geometry)[0])
    bad = ~np.isfinite(expected)
    assert not np.isfinite(out[bad]).any()
    # Tiles of 2x2 results begin at even ones.
    tiles = np.zeros((8, 8), bool)
    tiles[0:6, 2:6] = tiles[6:8, 6:8] = True
    assert np.isfinite(out[:, :, ~tiles]).all()
    np.testing.assert_allclose(out[:, :, ~tiles], expected[:, :, ~tiles], **TOLERANCE["float32"])


def test_what_is_not_finite_stays_in_its_channel_and_filter():
    """Of the weight's gradient: of a gradient its filter, of an input its channel."""
    case = ConvCase("winograd-weights", (1, 3, 8, 8), (4, 3, 3, 3), padding=1)
    module = load("conv2d_grad_weight", "winograd")
    geometry, (grad, x), _ = problem("conv2d_grad_weight", case)
    grad[0, 1, 2, 3], x[0, 2, 7, 7] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        expected = numpy_backend.conv2d_grad_weight(grad, x, geometry)
    out = np.zeros(expected.shape, np.float32)
    run(module, (grad, x), (out,), geometry, module.tilings(geometry)[0])
    assert not np.isfinite(out[~np.isfinite(expected)]).any()
    np.testing.assert_allclose(out[[0, 2, 3], :2], expected[[0, 2, 3], :2], **TOLERANCE["float32"])


def test_bounds_are_of_its_own_arithmetic():
    """16 multiplications for 36: what is computed from the machine code does not count the direct sum's."""
    from bench import inspection

    geometry = Conv2dGeometry.of((2, 8, 6, 8), (4, 4, 3, 3), padding=1, groups=2)
    work = inspection.work_of("conv2d", geometry)
    for operation in OPERATIONS:
        own = inspection.work_by(load(operation, "winograd"), work, geometry)
        assert own.flop * 36 == work.flop * 16
        assert inspection.work_by(load(operation, "implicit_gemm"), work, geometry) is work


@pytest.mark.parametrize(("window", "options"), [((3, 3), {"stride": 2}), ((3, 3), {"dilation": 2}), ((3, 1), {})])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_other_windows_are_refused(operation, window, options):
    """With what it is for."""
    answer = load(operation, "winograd").supports(Conv2dGeometry.of((1, 2, 9, 9), (2, 2, *window), **options))
    assert not answer
    assert "3x3 with stride 1" in answer
