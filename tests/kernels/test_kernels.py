"""Every kernel variant, in every tiling, on every geometry: right, and clean under the simulator's trace.

The table `gpuconv.kernels.VARIANTS` says what there is. A new variant is tested as soon as it stands there; a new
operation needs an entry in `OPERATIONS`, here or in the other files of kernels: gradient, block, pointwise.
"""

from __future__ import annotations

import dataclasses

import cases
import numpy as np
import pytest
import reference
from support.sampling import sampled
from support.simulation import TOLERANCE, geometry_of, run, types_of

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels import VARIANTS, load


def conv2d(case, dtype):
    """Geometry, inputs and the right result."""
    x, w, b, _ = case.arrays(dtype)
    geometry = geometry_of(case)
    expected = reference.conv2d(x, w, b, case.stride, case.padding, case.dilation, case.groups)
    return geometry, (x, w, b), expected


def supported(operation, variant, case):
    """Whether a variant is to be run on a case; the direct one is on each."""
    geometry = geometry_of(case)
    return variant == "direct" or bool(load(operation, variant).supports(geometry))


OPERATIONS = {"conv2d": (conv2d, cases.CONV_CASES)}

RUNS = [
    pytest.param(operation, variant, case, id=f"{operation}-{variant}-{case}", marks=cases.thorough(variant, case))
    for operation in OPERATIONS
    for variant in VARIANTS[operation]
    for case in OPERATIONS[operation][1]
    if case.tiny and supported(operation, variant, case)
]


@pytest.mark.grid(6)
@pytest.mark.parametrize(("operation", "variant", "case"), RUNS)
def test_kernel(operation, variant, case):
    """The result is the reference's, each element is written once, and the trace finds no fault."""
    module = load(operation, variant)
    geometry = geometry_of(case)
    for dtype in types_of(module, geometry, (variant, case)):
        _, inputs, expected = OPERATIONS[operation][0](case, dtype)
        tilings = module.tilings(geometry)
        # The element type changes no index: one tiling shows that it is carried through.
        for tiling in sampled(tilings, 1, case) if dtype == "float32" else tilings[-1:]:
            out = np.full(expected.shape, np.nan, dtype)
            run(module, inputs, (out,), geometry, tiling)
            np.testing.assert_allclose(out, expected, **TOLERANCE[dtype], err_msg=str(tiling))


@pytest.mark.parametrize("variant", VARIANTS["conv2d"])
def test_batches_larger_than_a_grid_is_high(variant):
    """A grid is at most 65,535 blocks high and deep: a million images fit nonetheless."""
    module = load("conv2d", variant)
    geometry = Conv2dGeometry.of((1_000_000, 2, 5, 5), (4, 1, 3, 3), stride=2, groups=2)
    if not module.supports(geometry):
        geometry = dataclasses.replace(geometry, stride=(1, 1))
    if not module.supports(geometry):
        pytest.skip("not a geometry of this variant")
    for tiling in module.tilings(geometry):
        for launch in module.launches(geometry, tiling, np.float32):
            assert max(launch.grid[1:]) <= 65_535
            assert launch.grid[0] < 2**31


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[pytest.mark.thorough] * (name != "direct")) for name in VARIANTS["conv2d"]]
)
def test_more_images_than_a_grid_is_high(variant):
    """A grid has at most 65,535 blocks along z: more images than that are convolved all the same."""
    module = load("conv2d", variant)
    geometry = Conv2dGeometry.of((65_537, 1, 1, 1), (1, 1, 1, 1))
    if not module.supports(geometry):
        pytest.skip("not a geometry of this variant")
    x, out = np.arange(65_537, dtype=np.float32).reshape(-1, 1, 1, 1), np.zeros((65_537, 1, 1, 1), np.float32)
    module.launch(x, np.full((1, 1, 1, 1), 2, np.float32), None, out, geometry, module.tilings(geometry)[0], None)
    np.testing.assert_array_equal(out, 2 * x)


@pytest.mark.parametrize("variant", VARIANTS["conv2d"])
@pytest.mark.parametrize(
    ("name", "shape", "weight"),
    [
        ("x", (2**21, 1, 32, 33), (1, 1, 32, 33)),
        ("out", (2**21, 1, 1, 1), (1025, 1, 1, 1)),
        ("weight", (1, 2**16, 1, 1), (2**15 + 1, 2**16, 1, 1)),
    ],
)
def test_sizes_that_need_64_bit_offsets_are_refused(variant, name, shape, weight):
    """A clear error instead of wrapped indices: which array, how large, and what to do."""
    module = load("conv2d", variant)
    geometry = Conv2dGeometry.of(shape, weight)
    answer = module.supports(geometry)
    assert not answer
    assert name in answer
    assert "64-bit offsets" in answer
    with pytest.raises(ValueError, match=f"conv2d: {name} has .* needs 64-bit offsets"):
        module.launches(geometry, None, "float32")  # refused before a tiling is looked at
