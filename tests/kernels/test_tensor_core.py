"""Kernels on tensor cores: their words, float32's accuracy from TF32 products, and what must not become NaN."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.simulation import COMPILED, run

import gpuconv
import gpuconv.functional as F
from gpuconv import backends, tuning
from gpuconv.backends.numpy_backend import NumpyBackend
from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels import load
from gpuconv.kernels.device import tensor_core
from gpuconv.tuning.store import Platform

SCRIPT = Path(__file__).parents[1] / "support" / "interpret_tensor_core.py"
BFLOAT16 = np.dtype(gpuconv.dtypes.bfloat16())
OPERATIONS = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")
numpy_backend = NumpyBackend()


def interpreted(tmp_path, arrays, *arguments):
    """What the script writes; numba.cuda compiles there, and simulates here."""
    given, results = tmp_path / "arrays.npz", tmp_path / "results.npz"
    np.savez(given, **arrays)
    what, *rest = arguments
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run(
        [sys.executable, SCRIPT, what, given, results, *map(json.dumps, rest)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode and "libnvvm" in done.stderr.lower():
        pytest.skip("nothing can be compiled here: pip install 'gpuconv[cuda-compile]'")
    assert done.returncode == 0, done.stderr
    return dict(np.load(results))


def bits(array):
    """As integers: NaN equals NaN, and zero is not minus zero. All NaNs are one."""
    return np.where(np.isnan(array), np.float32(np.nan), array).view(np.uint32)


def special_numbers():
    """Edges of the types, and numbers between: 32 of them, a lane's each."""
    edges = [0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 1 + 2**-10, 1 + 2**-11, 1 + 2**-23, 3.4028235e38, -3.4028235e38]
    edges += [1e-40, -1e-45, 1.1754944e-38, 65504.0]
    numbers = np.array(edges, np.float32)
    return np.append(numbers, np.random.default_rng(2).standard_normal(32 - len(numbers)).astype(np.float32))


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_words_equal_their_twins(tmp_path):
    """The interpreter, which reads the compiled code, and the twins give the same bits: layouts, roundings, sums."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((16, 16)).astype(np.float32) for _ in range(2))
    arrays = {"a": a, "b": b, "numbers": special_numbers(), "special": np.int32(0)}
    theirs = interpreted(tmp_path, arrays, "words")
    from support.interpret_tensor_core import run_words

    ours = run_words(**arrays)
    # Of what is not finite, `split` leaves the low part open.
    for found in ours, theirs:
        found["parts"][1:64:2][~np.isfinite(arrays["numbers"])] = 0
    for name, found in ours.items():
        np.testing.assert_array_equal(bits(found), bits(theirs[name]), err_msg=name)
    exact = a.astype(np.float64) @ b.T.astype(np.float64)
    assert error(ours["products"], exact) <= 5e-7
    # Lanes of the first product: rows and columns as the manual has them; TF32's accuracy.
    lanes = np.arange(32)
    for number, found in enumerate(ours["sums"].reshape(32, 4).T):
        row, column = lanes // 4 + number // 2 * 8, lanes % 4 * 2 + number % 2
        np.testing.assert_allclose(found, exact[row, column], atol=2e-2)
        assert np.abs(found - exact[row, column]).max() > 1e-5, "more accurate than TF32"


@pytest.mark.slow
def test_halves_equal_their_twins(tmp_path):
    """Compiled code and twins give the same bits of the same words, read as float16 and as bfloat16, NaN among them."""
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((16, 16)).astype(np.float16).view(np.uint16) for _ in range(2))
    a[0, :6] = [0x7C00, 0xFC00, 0x7E01, 0x0001, 0x7BFF, 0x8000]  # as float16 infinities, NaN, 2^-24, 65504, -0
    numbers = special_numbers()
    numbers[-3:] = 65520, 65519.9, 1 + 2**-9  # of which the first one is infinite in float16; between two bfloat16
    arrays = {"a": a, "b": b, "numbers": numbers}
    theirs = interpreted(tmp_path, arrays, "halves")
    from support.interpret_tensor_core import run_halves

    with np.errstate(invalid="ignore", over="ignore"):
        ours = run_halves(**arrays)
        for name in ("sums", "wide"):
            np.testing.assert_array_equal(bits(ours[name]), bits(theirs[name]), err_msg=name)
        np.testing.assert_array_equal(ours["rounded"], theirs["rounded"])
        # The same as other libraries have it: of both types all numbers, and the first type's product.
        for number, dtype in enumerate((np.dtype(np.float16), BFLOAT16)):
            np.testing.assert_array_equal(ours["wide"][number::2], a.ravel()[:32].view(dtype).astype(np.float32))
            np.testing.assert_array_equal(
                ours["rounded"][number::2].view(dtype).astype(np.float32), numbers.astype(dtype).astype(np.float32)
            )
    exact = a[1:].view(np.float16).astype(np.float64) @ b.view(np.float16).astype(np.float64).T
    lanes = np.arange(32)
    for number, found in enumerate(ours["sums"][0].T):
        row, column = lanes // 4 + number // 2 * 8, lanes % 4 * 2 + number % 2
        np.testing.assert_allclose(found[row > 0], exact[row - 1, column][row > 0], atol=1e-5)


def test_parts_of_a_number():
    """High and low have 11 bits each, and give the number but for 2^-22; what is not finite has no low part."""
    numbers = special_numbers()
    with np.errstate(invalid="ignore"):
        high, low = tensor_core._parts(numbers)
        whole, safe_high, safe_low = tensor_core._safe_parts(numbers)
    finite = np.isfinite(numbers)
    assert (bits(high[finite]) & 0x1FFF == 0).all()
    seen = tensor_core._cut_to_tf32(low[finite])
    left = numbers[finite].astype(np.float64) - high[finite] - seen
    assert (np.abs(left) <= np.maximum(2.0**-22 * np.abs(numbers[finite]), 2.0**-137)).all()
    np.testing.assert_array_equal(whole[~finite], numbers[~finite])
    assert (safe_high[~finite] == 0).all()
    assert (safe_low[~finite] == 0).all()
    np.testing.assert_array_equal(safe_low[finite], low[finite])


def test_lanes_that_stay_away_are_missed():
    """An instruction of a warp that only some lanes come to is an error, and not a result."""
    from numba import cuda, types

    from gpuconv.kernels.device import call, jit, ld, u32

    @jit
    def half_a_warp(x):
        tiles = cuda.shared.array(512, types.float32, alignment=128)
        if cuda.threadIdx.x < 16:
            tensor_core.load_matrices(tiles, u32(0))
        ld(x, 0)

    if COMPILED:
        pytest.skip("the interpreter's own tests have it")
    made = call(half_a_warp, 1, 32, np.zeros(4, np.float32))
    with pytest.raises(RuntimeError, match="16 of 32 lanes"):
        made.launch(None, *made.arguments)


# -- variants ----------------------------------------------------------------------------------------------------------


def case_of(operation, first, second, seed=0, **options):
    """Geometry, inputs, and the result in float64."""
    geometry = Conv2dGeometry.of(first, second, **options)
    rng = np.random.default_rng(seed)
    x, weight, grad = (
        rng.standard_normal(shape).astype(np.float32) for shape in (first, second, geometry.output_shape)
    )
    inputs = {"conv2d": (x, weight, None), "conv2d_grad_input": (grad, weight), "conv2d_grad_weight": (grad, x)}
    exact = [one if one is None else one.astype(np.float64) for one in inputs[operation]]
    return geometry, inputs[operation], getattr(numpy_backend, operation)(*exact, geometry)


def computed(operation, geometry, inputs, expected):
    """The result of the kernel in its first tiling, of the expected one's shape and type."""
    module, out = load(operation, "tensor_core"), np.zeros_like(expected)
    run(module, inputs, (out,), geometry, module.tilings(geometry)[0])
    return out


def error(found, expected):
    """In norm."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


#: Bounds of the error in norm: float32's sums would not keep it below 1e-6 to the end; TF32 has 11 bits.
FLOAT32, TF32 = (0, 2e-6), (1e-4, 5e-4)
#: Sums of 27, 576 and 4,608 products; large tiles; and one product of TF32 numbers for each multiply-add.
SUMS = [
    ("conv2d", (2, 3, 9, 8), (17, 3, 3, 3), [16, 64, 16, 32], FLOAT32),
    *(
        pytest.param(*one, marks=pytest.mark.thorough)
        for one in (
            ("conv2d", (1, 512, 6, 6), (16, 512, 3, 3), [16, 64, 16, 32], FLOAT32),
            ("conv2d_grad_input", (1, 16, 8, 8), (64, 16, 3, 3), [16, 64, 16, 32], FLOAT32),
            ("conv2d_grad_weight", (2, 3, 38, 66), (16, 3, 3, 3), [16, 64, 16, 32, 1], FLOAT32),
            ("conv2d", (2, 24, 9, 13), (130, 24, 3, 3), [128, 128, 64, 32], FLOAT32),
            ("conv2d_grad_weight", (2, 24, 9, 13), (130, 24, 3, 3), [128, 128, 64, 32, 2], FLOAT32),
            ("conv2d", (2, 8, 9, 8), (17, 8, 3, 3), [16, 64, 16, 32, 1], TF32),
        )
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "first", "second", "tiling", "bounds"), SUMS)
def test_compiled_kernels_are_as_exact_as_they_say(operation, first, second, tiling, bounds, tmp_path):
    """Their compiled code, interpreted, against float64."""
    _, inputs, expected = case_of(operation, first, second)
    named = {f"a{number}": one for number, one in enumerate(inputs) if one is not None}
    if operation == "conv2d":
        named["bias"] = np.arange(len(inputs[1]), dtype=np.float32)
        expected = expected + named["bias"][:, None, None]
    found = interpreted(tmp_path, named, operation, [first, second, {}], tiling)["out"]
    assert bounds[0] <= error(found, expected) <= bounds[1]


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_infinity_times_what_tf32_holds_exactly(operation):
    """Its low part is zero, and infinity times that NaN; here it is infinity, and its neighbours in the tile are right.

    So are products of the largest number; and denormals, to 2^-136.
    """
    geometry, inputs, _ = case_of(operation, (1, 4, 6, 6), (5, 4, 3, 3), padding=1)
    first, second = inputs[:2]
    second[...] = np.where(second > 0, 1.0, -0.5)
    first[0, 1, 2, 3], first[0, 3, 0, 0], first[0, 2, 5, 5] = np.inf, -np.inf, 3.4028235e38
    first[0, 0, 4, 1] = np.float32(1e-40)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = getattr(numpy_backend, operation)(*inputs, geometry)
    assert np.isinf(expected).any()
    assert np.isfinite(expected).any()
    out = computed(operation, geometry, inputs, expected)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_large_tiles_on_ragged_blocks():
    """Several warps in each direction, each with two rows or columns of matrices or more, none of them full."""
    for operation, channels, tiling in (
        ("conv2d", 4, (128, 64, 64, 32)),
        ("conv2d_grad_weight", 15, (64, 128, 32, 64, 1)),
    ):
        geometry, inputs, expected = case_of(operation, (1, channels, 5, 7), (70, channels, 3, 3), padding=1)
        module = load(operation, "tensor_core")
        out = np.zeros(expected.shape, np.float32)
        report = run(module, inputs, (out,), geometry, module.Tiling(*tiling))
        assert error(out, expected) <= 5e-7
        # All but the tables, which are made once, are accessed without conflicts.
        assert report is None or not [
            one for one in report.bank_conflicts if one.degree > 1 and not (one.access == "write" and one.bits == 32)
        ]


@pytest.mark.slow
def test_tf32_is_taken_where_it_is_allowed():
    """For the time of a block; the error is that of 11 bits. Other types and older GPUs are not asked."""
    shapes = {"conv2d": (1, 8, 8, 8), "conv2d_grad_input": (1, 8, 8, 8), "conv2d_grad_weight": (1, 4, 8, 8)}
    old = Platform("cuda", "GPU, compute capability 7.5", "", "", "")
    for operation in OPERATIONS:
        large = Conv2dGeometry.of((32, 64, 32, 32), (64, 64, 3, 3), padding=1)
        plain, before = tuning.choose(operation, large), tuning.wish(operation)
        with gpuconv.cuda.allow_tf32():
            assert tuning.wish(operation) != before
            choice = tuning.choose(operation, large)
            assert (choice.variant, choice.source, choice.tiling.products) == ("tensor_core", "allow_tf32", 1)
            assert tuning.choose(operation, large, platform=old) == plain
            assert tuning.choose(operation, large, "float64").variant != "tensor_core"
            small = Conv2dGeometry.of((1, 1, 8, 8), (2, 1, 3, 3))
            assert tuning.choose(operation, small).source == "rule"
            with gpuconv.cuda.allow_tf32(False):
                assert tuning.choose(operation, large) == plain
            geometry, inputs, expected = case_of(operation, shapes[operation], (16, shapes[operation][1], 3, 3))
            module = load(operation, "tensor_core")
            tiling = tuning.choose(operation, geometry, variant="tensor_core").tiling
            assert tiling.products == 1
        assert tuning.choose(operation, large) == plain
        out = np.full(expected.shape, np.nan, np.float32)
        run(module, inputs, (out,), geometry, tiling)
        assert 1e-4 < error(out, expected) < 5e-4


#: Ragged in all directions: filters, products, positions; with groups, a stride, a bias, and odd images.
HALVES = [
    ("conv2d", (2, 8, 5, 6), (17, 8, 3, 3), {}, [16, 64, 16, 32]),
    ("conv2d", (1, 10, 4, 5), (70, 5, 2, 1), {"groups": 2, "padding": 1}, [128, 64, 64, 32]),
    ("conv2d_grad_input", (2, 5, 6, 7), (12, 5, 3, 3), {"padding": 1}, [32, 64, 32, 32]),
    ("conv2d_grad_input", (1, 6, 7, 9), (10, 3, 2, 3), {"padding": 1, "stride": 3, "groups": 2}, [16, 64, 16, 32]),
    ("conv2d_grad_weight", (2, 5, 6, 7), (12, 5, 3, 3), {"padding": 1, "stride": 2}, [16, 64, 16, 32, 2]),
    pytest.param(
        *("conv2d_grad_weight", (1, 15, 5, 7), (70, 15, 3, 3), {"padding": 1}, [64, 128, 32, 64, 1]),
        marks=pytest.mark.thorough,
    ),
]


@pytest.mark.slow
@pytest.mark.grid(4)
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize(("operation", "first", "second", "options", "tiling"), HALVES)
def test_half_types_are_rounded_once(operation, first, second, options, tiling, half, tmp_path):
    """Results are float64's, rounded to the half type, but for few that float32's sums round otherwise.

    In the simulator; and of compiled code, which the interpreter runs, the same bits.
    """
    dtype = np.dtype(np.float16) if half == "float16" else BFLOAT16
    geometry, inputs, _ = case_of(operation, first, second, **options)
    if operation == "conv2d":
        inputs = (*inputs[:2], np.linspace(-3, 3, second[0], dtype=np.float32))
    inputs = [one.astype(dtype) for one in inputs]
    expected = getattr(numpy_backend, operation)(*(one.astype(np.float64) for one in inputs), geometry)
    module = load(operation, "tensor_core")
    out = np.zeros(expected.shape, dtype)
    run(module, inputs, (out,), geometry, module.Tiling(*tiling))
    differs = out.astype(np.float64) != expected.astype(np.float32).astype(dtype).astype(np.float64)
    assert differs.mean() <= 0.005
    unit = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float64) * (1 if half == "float16" else 8)
    assert (np.abs(out.astype(np.float64) - expected) <= 0.51 * unit).all()
    if (half == "float16") == (second[1] in (3, 5)):  # of each kernel with one of the types
        named = {f"a{number}": one.view(np.uint16) for number, one in enumerate(inputs)}
        found = interpreted(tmp_path, named, operation, [first, second, options], tiling, half)["out"]
        np.testing.assert_array_equal(found, out.view(np.uint16))


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_infinity_and_nan_in_half_types(operation):
    """They come out where float32 has them; and what is too large for float16 becomes infinite."""
    geometry, inputs, _ = case_of(operation, (1, 4, 6, 6), (5, 4, 3, 3), padding=1)
    inputs = [None if one is None else one.astype(np.float16) for one in inputs]
    first, second = inputs[:2]
    first[0, 1, 2, 3], first[0, 3, 0, 0], first[0, 2, 5, 5], first[0, 0, 4, 1] = np.inf, -np.inf, 65504, np.nan
    second[...] = np.where(second > 0, 2.0, -0.5)
    with np.errstate(invalid="ignore", over="ignore"):
        wide = [None if one is None else one.astype(np.float32) for one in inputs]
        expected = getattr(numpy_backend, operation)(*wide, geometry).astype(np.float16)
    assert np.isinf(expected).any()
    assert np.isnan(expected).any()
    out = computed(operation, geometry, inputs, expected)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_operations_take_half_types_as_they_are(half):
    """Where tensor cores are asked for, convolutions get no float32; their results and gradients are NumPy's."""
    dtype, rng, found, given = gpuconv.dtypes.element_type(half), np.random.default_rng(4), {}, []
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((2, 5, 6, 7), (12, 5, 3, 3), (12,))]

    class Noting(type(backends.get("cuda"))):
        def _run(self, operation, geometry, *inputs, **options):
            given.append((operation, {str(one.dtype) for one in inputs}))
            return super()._run(operation, geometry, *inputs, **options)

    for backend in ("numpy", Noting()):
        with contextlib.ExitStack() as stack:
            stack.enter_context(gpuconv.use_backend(backend))
            for operation in OPERATIONS:
                stack.enter_context(tuning.use_variant(operation, "tensor_core"))
            inputs = [gpuconv.Tensor(array, requires_grad=True) for array in arrays]
            y = F.conv2d_relu(*inputs, padding=1)
            y.backward(np.ones(y.shape, dtype))
            found[str(backend)] = [y.numpy(), *(one.grad.numpy() for one in inputs)]
    for ours, numpys in zip(*found.values(), strict=True):
        assert ours.dtype == numpys.dtype == dtype
        np.testing.assert_allclose(
            ours.astype(float), numpys.astype(float), rtol=2 ** (-9 if half == "float16" else -6)
        )
    others = [("relu", {"float32"}), ("relu_grad", {"float32"}), ("conv2d_grad_bias", {"float32"})]
    assert sorted(given, key=str) == sorted([*((name, {half}) for name in OPERATIONS), *others], key=str)


def test_the_rule_takes_half_types_that_fill_the_tiles():
    """All else is computed in float32: small layers, other variants on request, older GPUs."""
    large = Conv2dGeometry.of((32, 64, 32, 32), (64, 64, 3, 3), padding=1)
    strided = Conv2dGeometry.of((32, 64, 32, 32), (64, 64, 3, 3), padding=1, stride=2)
    old = Platform("cuda", "GPU, compute capability 7.5", "", "", "")
    for operation in OPERATIONS:
        choice = tuning.choose(operation, large, "bfloat16")
        assert (choice.variant, choice.source) == ("tensor_core", "rule")
        assert "tensor_core" in next(row for row in tuning.candidates(operation, large, "float16") if "taken" in row[1])
        for geometry, platform in ((large, old), (Conv2dGeometry.of((1, 1, 8, 8), (2, 1, 3, 3)), None)):
            assert tuning.computed_in(operation, geometry, "float16", platform=platform) == "float32"
            wanted = tuning.choose(operation, geometry, platform=platform)
            assert tuning.choose(operation, geometry, "float16", platform=platform) == wanted
        assert tuning.computed_in(operation, large, "float16", variant="direct") == "float32"
        assert tuning.choose(operation, large, "float16", variant="direct").variant == "direct"
        assert "float64, and not in float16" in load(operation, "direct").supports(large, "float16")
    assert [tuning.computed_in(operation, strided, "float16") for operation in OPERATIONS] == ["float16"] * 3
    assert tuning.computed_in("relu", (4,), "float16") == "float32"
    assert tuning.computed_in("conv2d", large, "float64") == "float64"


def test_refusals_say_why():
    """Other types, older GPUs, very long windows and large strides; and tiles that cannot be shared out."""
    geometry = Conv2dGeometry.of((2, 32, 16, 16), (32, 32, 3, 3), padding=1)
    old, new = (Platform("cuda", f"GPU, compute capability {version}", "", "", "") for version in ("7.5", "8.0"))
    for operation in OPERATIONS:
        module = load(operation, "tensor_core")
        assert "float32, float16, bfloat16, and not in float64" in module.supports(geometry, np.float64)
        assert "needs compute capability 8.0, and the GPU has 7.5" in module.supports(geometry, "float32", "7.5")
        assert module.supports(geometry, "float32", "8.0")
        with pytest.raises(ValueError, match="not in float64"):
            module.launches(geometry, module.tilings(geometry)[0], "float64")
        said = dict(tuning.candidates(operation, geometry, platform=old))
        assert "needs compute capability 8.0" in said["tensor_core"]
        assert "needs" not in dict(tuning.candidates(operation, geometry, platform=new))["tensor_core"]
        assert tuning.choose(operation, geometry, platform=old).variant != "tensor_core"
    long = Conv2dGeometry.of((2, 64, 32, 32), (64, 64, 15, 15), padding=7)
    for operation in OPERATIONS[:2]:
        assert "cannot hold the table" in load(operation, "tensor_core").supports(long)
    far = Conv2dGeometry.of((2, 4, 32, 32), (4, 4, 3, 3), stride=5)
    assert "more than 16 launches" in load("conv2d_grad_input", "tensor_core").supports(far)
    tiling = load("conv2d", "tensor_core").Tiling
    for sizes, why in (((64, 64, 24, 32), "multiples of 16"), ((48, 64, 32, 32), "whole warps")):
        with pytest.raises(ValueError, match=why):
            tiling(*sizes)
    with pytest.raises(ValueError, match="must fetch whole vectors"):
        tiling(16, 128, 16, 16)
