"""The kernels for convolution, beyond what `test_kernels.py` asks of all: large tiles, several stages, the options that
a variant has to itself, and what its speed rests on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cases import ConvCase
from support.sampling import sampled
from support.simulation import TOLERANCE, geometry_of, run

from gpuconv.backends.numpy_backend import NumpyBackend
from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels import VARIANTS, load

numpy_backend = NumpyBackend()
tiled, implicit_gemm, depthwise = (load("conv2d", name) for name in ("tiled", "implicit_gemm", "depthwise"))


def check(module, case, tiling):
    """Run a tiling on a case in float32; give the result and the trace's report, None where there is no trace.

    The expected result comes from the NumPy backend, in float64: these cases are too large for the reference's loops.
    """
    x, weight, bias, _ = case.arrays(np.float32)
    geometry = geometry_of(case)
    expected = numpy_backend.conv2d(
        *(array if array is None else array.astype(np.float64) for array in (x, weight, bias)), geometry
    )
    out = np.full(expected.shape, np.nan, np.float32)
    report = run(module, (x, weight, bias), (out,), geometry, tiling)
    np.testing.assert_allclose(out, expected, **TOLERANCE["float32"], err_msg=str(tiling))
    return out, report


# -- implicit GEMM -----------------------------------------------------------------------------------------------------

# Layers whose tilings, taken together, are all the shapes that there are.
GEMM_LAYERS = [
    ((32, 128, 28, 28), (128, 128, 3, 3)),
    ((1, 512, 7, 7), (512, 512, 3, 3)),
    ((64, 6, 14, 14), (16, 6, 5, 5)),
    ((8, 64, 14, 14), (32, 64, 3, 3)),
]
GEMM_TILINGS = list(
    dict.fromkeys(
        dataclasses.replace(tiling, parts=1)
        for layer in GEMM_LAYERS
        for tiling in implicit_gemm.tilings(Conv2dGeometry.of(*layer))
    )
)
# Each leaves tiles partly empty in each direction, and has several: of filters, positions, and along the sum.
GEMM_CASES = [
    # 27 products: weights one at a time, a last k-tile that is partly empty.
    ConvCase("gemm-3x3", (2, 3, 9, 11), (130, 3, 3, 3), padding=((1, 0), (0, 2))),
    # The table wraps around in the middle of the sum; 128-bit weights.
    ConvCase("gemm-table", (1, 24, 9, 13), (34, 24, 2, 3), stride=(2, 1), padding=1, dilation=(1, 2), bias=False),
    # The windows are the input, and come 128 bits at a time; the last k-tile is half empty.
    ConvCase("gemm-1x1", (3, 20, 6, 6), (70, 20, 1, 1)),
    # Padded, so that it has windows without a tap; and strided.
    ConvCase("gemm-1x1-padded", (2, 12, 9, 8), (35, 12, 1, 1), stride=2, padding=1),
    ConvCase("gemm-groups", (1, 16, 8, 8), (66, 8, 3, 3), padding=1, groups=2),
]


def test_gemm_has_tiles_of_all_sizes():
    """From 128x128 with 8x8 outputs a thread down to 16 filters: small maps and few filters get blocks enough."""
    shapes = {(tiling.filters, tiling.positions) for tiling in GEMM_TILINGS}
    assert {(128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 64), (16, 64)} <= shapes
    assert max(GEMM_TILINGS, key=lambda tiling: tiling.filters * tiling.positions).threads == 256


@pytest.mark.slow
@pytest.mark.parametrize("case", GEMM_CASES, ids=str)
def test_gemm_on_ragged_tiles(case):
    """Every shape, with the sum whole or cut into three parts; loads from shared memory are free of conflicts."""
    for tiling in sampled(GEMM_TILINGS, 1, case):
        parts = 3 if case.name in ("gemm-table", "gemm-groups") else 1
        _, report = check(implicit_gemm, case, dataclasses.replace(tiling, parts=parts))
        for conflicts in report.bank_conflicts if report else ():
            # With a depth of 16, weights are stored in two passes.
            limit = 1 if conflicts.access == "read" else tiling.depth / 8
            assert conflicts.degree <= limit, f"{tiling}: {conflicts}"


@pytest.mark.slow
def test_gemm_adds_up_in_a_fixed_order():
    """Two runs, with threads and blocks in different orders, give the same bits."""
    case = ConvCase("gemm-order", (1, 40, 5, 5), (8, 40, 3, 3))
    results = [check(implicit_gemm, case, implicit_gemm.Tiling(32, 32, 8, 4, 4, parts=16))[0] for _ in range(2)]
    np.testing.assert_array_equal(*results)


def test_gemm_cuts_the_sum_where_tiles_are_few():
    """A map of 7x7 for one image would occupy 32 multiprocessors at best: its sum is cut. That of 32 images is not."""
    few = Conv2dGeometry.of((1, 512, 7, 7), (512, 512, 3, 3), padding=1)
    assert implicit_gemm.tilings(few)[0].parts > 4
    many = Conv2dGeometry.of((32, 64, 56, 56), (64, 64, 3, 3), padding=1)
    assert all(tiling.parts == 1 for tiling in implicit_gemm.tilings(many))


def test_gemm_refuses_what_it_cannot_do():
    """Tiles that threads cannot share, parts without a k-tile, no workspace, a very long window: errors say why."""
    with pytest.raises(ValueError, match="must be multiples of 4"):
        implicit_gemm.Tiling(64, 64, 8, 8, 2)
    with pytest.raises(ValueError, match="the tile must be whole warps"):
        implicit_gemm.Tiling(64, 32, 8, 8, 8)
    with pytest.raises(ValueError, match="must divide the number of threads, 32"):
        implicit_gemm.Tiling(16, 64, 16, 4, 8)
    with pytest.raises(ValueError, match="256 threads must fetch a multiple of 4"):
        implicit_gemm.Tiling(128, 32, 8, 4, 4)

    geometry = Conv2dGeometry.of((1, 2, 5, 5), (3, 2, 3, 3))
    with pytest.raises(ValueError, match="conv2d: a sum of 3 k-tiles cannot be cut into parts=4"):
        implicit_gemm.launches(geometry, implicit_gemm.Tiling(32, 32, 8, 4, 4, parts=4), np.float32)
    x, weight, out = (np.zeros(shape, np.float32) for shape in ((1, 2, 5, 5), (3, 2, 3, 3), (1, 3, 3, 3)))
    with pytest.raises(ValueError, match=r"conv2d: .* needs a workspace of 54 elements, got none"):
        implicit_gemm.launch(x, weight, None, out, geometry, implicit_gemm.Tiling(32, 32, 8, 4, 4, parts=2))

    assert implicit_gemm.supports(Conv2dGeometry.of((1, 1, 1, 40), (1, 1, 1, 31)))
    answer = implicit_gemm.supports(Conv2dGeometry.of((1, 1, 1, 40), (1, 1, 1, 32)))
    assert not answer
    assert "a window of 1x32 taps" in answer


# -- tiled -------------------------------------------------------------------------------------------------------------

TILED_CASES = [
    # Several tiles and several stages, all partly empty.
    ConvCase("tiled-3x3", (1, 9, 17, 34), (5, 9, 3, 3), padding=1),
    ConvCase("tiled-strided", (2, 3, 23, 37), (5, 3, 5, 4), stride=(2, 3), padding=((2, 1), (0, 3))),
    ConvCase("tiled-dilated", (1, 9, 20, 24), (6, 3, 3, 3), padding=3, dilation=(3, 2), groups=3),
    ConvCase("tiled-filters", (1, 2, 5, 9), (71, 2, 2, 3), bias=False),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", TILED_CASES, ids=str)
def test_tiled_on_several_tiles_and_stages(case):
    """Every tiling, on blocks and stages that are partly empty."""
    tilings = tiled.tilings(geometry_of(case))
    assert len(tilings) >= 8
    for tiling in sampled(tilings, 2, case):
        check(tiled, case, tiling)


@pytest.mark.parametrize(
    ("shape", "weight", "padding"),
    [
        ((64, 1, 32, 32), (6, 1, 5, 5), 0),
        ((64, 6, 14, 14), (16, 6, 5, 5), 0),
        ((32, 3, 224, 224), (64, 3, 3, 3), 1),
        ((32, 256, 28, 28), (512, 256, 3, 3), 1),
    ],
)
def test_tiled_offers_many_tilings(shape, weight, padding):
    """For the layers of LeNet and VGG there are eight or more to choose from, in blocks of at most 256 threads."""
    tilings = tiled.tilings(Conv2dGeometry.of(shape, weight, padding=padding))
    assert len(tilings) == len(set(tilings)) >= 8
    assert max(tiling.threads for tiling in tilings) <= 256


@pytest.mark.slow
def test_tiled_main_loop_has_no_bank_conflicts():
    """With stride 1 it reads in as few passes as possible, but where no spacing of the rows could do that."""
    case = ConvCase("tiled-banks", (1, 2, 16, 32), (32, 2, 3, 3), padding=1)
    tilings, degrees = tiled.tilings(geometry_of(case)), {}
    for tiling in sampled(tilings, 4, "tiled-banks"):
        report = check(tiled, case, tiling)[1]
        conflicts = report.bank_conflicts if report else ()
        degrees[tiling] = max((found.degree for found in conflicts if found.access == "read"), default=1)
    # Two segments of 8 columns in each row of a tile, or all segments in one row.
    hard = [tiling for tiling in tilings if tiling.thread_columns == 8 and (tiling.columns == 16 or tiling.rows == 1)]
    assert len(tilings) - len(hard) >= 8
    assert {tiling: degree for tiling, degree in degrees.items() if degree > (2 if tiling in hard else 1)} == {}


def test_tiled_refuses_large_windows():
    """What does not fit into registers or shared memory is refused in words, and left to other variants."""
    for weight, dilation, why in (((1, 1, 1, 40), 1, "too long for the registers"), ((1, 1, 99, 3), 2, "too large")):
        answer = tiled.supports(geometry := Conv2dGeometry.of((1, 1, 200, 200), weight, dilation=dilation))
        assert not answer
        assert why in answer
        with pytest.raises(ValueError, match=f"conv2d: a window of {weight[2]}x{weight[3]} taps .* {why}"):
            tiled.launches(geometry, None, np.float32)
        assert load("conv2d", "direct").supports(geometry)


# -- depthwise ---------------------------------------------------------------------------------------------------------

DEPTHWISE_CASES = [
    # Rows of the input at multiples of 128 bits, tiles that begin one to three elements after one.
    ConvCase("depthwise-wide", (2, 3, 19, 36), (6, 1, 3, 3), padding=((1, 1), (1, 1)), groups=3),
    ConvCase("depthwise-shifted", (1, 3, 9, 40), (3, 1, 4, 5), padding=((2, 0), (2, 1)), groups=3, bias=False),
    ConvCase("depthwise-shifted-strided", (1, 2, 17, 72), (4, 1, 3, 3), stride=2, padding=((0, 1), (3, 0)), groups=2),
    ConvCase("depthwise-pairs", (1, 4, 7, 38), (4, 1, 3, 3), padding=1, groups=4),
    ConvCase("depthwise-ragged", (3, 3, 35, 37), (3, 1, 3, 3), stride=(1, 2), padding=2, dilation=(2, 1), groups=3),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", DEPTHWISE_CASES, ids=str)
def test_depthwise_on_several_tiles(case):
    """Every tiling, with channels of several images in a block; input comes in accesses as wide as its rows allow."""
    bits = next(32 * count for count in (4, 2, 1) if case.input[3] % count == 0)
    for tiling in sampled(depthwise.tilings(geometry_of(case)), 1, case):
        _, report = check(depthwise, case, tiling)
        assert report is None or {entry.bits for entry in report.sectors if entry.array == "x"} == {bits}


def test_depthwise_refuses_filters_of_several_channels():
    """The refusal says what a filter sees, and what the variant is for."""
    answer = depthwise.supports(Conv2dGeometry.of((1, 4, 5, 5), (4, 2, 3, 3), groups=2))
    assert not answer
    assert "a filter sees 2 channels" in answer


# -- all variants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [name for name in VARIANTS["conv2d"] if name != "winograd"])
def test_not_a_number_and_infinity(variant):
    """They reach the outputs that they reach on the NumPy backend, and no other in the tile.

    Winograd's is another matter: tests/kernels/test_winograd_kernels.py.
    """
    module = load("conv2d", variant)
    case = ConvCase("specials", (2, 3, 6, 8), (6, 1, 3, 3), padding=1, groups=3)
    x, weight, bias, _ = case.arrays(np.float32)
    x[0, 1, 2, 3], x[1, 2, 0, 7], x[1, 0, 5, 0] = np.nan, np.inf, -np.inf
    weight[5, 0, 0, 0] = np.inf  # times the padding: not a number
    geometry = geometry_of(case)
    if not module.supports(geometry):
        pytest.skip("not a geometry of this variant")
    with np.errstate(invalid="ignore"):
        expected = numpy_backend.conv2d(x, weight, bias, geometry)
    assert 0 < np.isnan(expected).sum() < expected.size / 2
    out = np.zeros_like(expected)
    run(module, (x, weight, bias), (out,), geometry, module.tilings(geometry)[0])
    np.testing.assert_allclose(out, expected, **TOLERANCE["float32"])


@pytest.mark.parametrize("variant", VARIANTS["conv2d"])
def test_arrays_that_begin_anywhere(variant):
    """Contiguous views need not begin at a multiple of 16 bytes: then no access is wider than an element."""
    module = load("conv2d", variant)
    case = ConvCase("views", (2, 4, 6, 8), (4, 1, 1, 1), groups=4)
    geometry = geometry_of(case)
    if not module.supports(geometry):
        pytest.skip("not a geometry of this variant")
    arrays = case.arrays(np.float32)[:3]
    expected = numpy_backend.conv2d(*arrays, geometry)
    arrays = [np.append(np.float32(0), array)[1:].reshape(array.shape) for array in (*arrays, expected)]
    report = run(module, arrays[:3], arrays[3:], geometry, module.tilings(geometry)[0])
    np.testing.assert_allclose(arrays[3], expected, **TOLERANCE["float32"])
    assert report is None or {entry.bits for entry in report.sectors} == {32}
