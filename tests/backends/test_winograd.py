"""Winograd's algorithm in the compiled CPU backend: the sums of the direct kernels, as exact, whatever the shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference

from gpuconv import backends
from gpuconv import functional as F
from gpuconv.geometry import Conv2dGeometry

if backends.available()["numba"] is not None:
    pytest.skip(f"the numba backend: {backends.available()['numba']}", allow_module_level=True)

from gpuconv.backends.cpu import backend as module
from gpuconv.backends.cpu import conv, winograd
from gpuconv.backends.cpu import threads as cpu_threads

COMPILED = backends.get("numba")
OPERATIONS = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}

#: Shapes of images, filters and padding: results of a tile or less, one more and one less than whole tiles, channels
#: and filters that fill no vector, or one and a bit; padding up to the filter's size, and of one side only.
SHAPES = [
    pytest.param((1, 3, 3, 3), 2, 0, "float32", marks=pytest.mark.thorough),
    ((2, 16, 9, 12), 33, 1, "float32"),
    pytest.param((3, 18, 4, 7), 5, ((1, 0), (0, 2)), "float64", marks=pytest.mark.thorough),
    pytest.param((2, 5, 7, 5), 17, 2, "float64", marks=pytest.mark.thorough),
    pytest.param((1, 9, 30, 5), 40, ((0, 1), (2, 1)), "float64", marks=pytest.mark.thorough),
]


def run(operation: str, geometry: Conv2dGeometry, *arrays: Any) -> np.ndarray:
    """An operation by Winograd's algorithm, whether or not it pays."""
    result: np.ndarray = module._way(operation, "winograd", geometry, arrays[0].dtype.name, (1, 1))(*arrays)
    return result


def random(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    """Of the right type and shape, and off by no more than a part of the largest element."""
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "filters", "padding", "dtype"), SHAPES)
def test_is_the_convolution_and_its_gradients(shape, filters, padding, dtype, monkeypatch):
    """Forward with a bias and both gradients are the reference's, for arrays in any order; the weight's also when it
    is summed up a row of tiles at a time.
    """
    x, weight, bias = random(shape, dtype), random((filters, shape[1], 3, 3), dtype, 1), random((filters,), dtype, 2)
    geometry = Conv2dGeometry.of(shape, weight.shape, padding=padding)
    grad = random(geometry.output_shape, dtype, 3)
    dx, dw, _ = reference.conv2d_grad(grad, x, weight, padding=padding)
    y = reference.conv2d(x, weight, bias, padding=padding)
    strided = np.asfortranarray
    for found, wanted in (
        (run("conv2d", geometry, strided(x), strided(weight), bias), y),
        (run("conv2d_grad_input", geometry, strided(grad), weight), dx),
        (run("conv2d_grad_weight", geometry, grad, strided(x)), dw),
    ):
        assert found.dtype == dtype
        assert_close(found, wanted, TOLERANCE[dtype])
    monkeypatch.setattr(winograd, "_GRADIENT_BYTES", (1, 1))
    assert_close(run("conv2d_grad_weight", geometry, grad, x), dw, TOLERANCE[dtype])


@pytest.mark.slow
def test_over_512_channels_as_exact_as_is_promised():
    """In float32, of pixels behind a ReLU, all results and gradients are within 1e-5 of the largest element, results
    within three times the error of the direct kernel.
    """
    geometry = Conv2dGeometry.of((2, 512, 7, 7), (32, 512, 3, 3), padding=1)
    x, weight = np.maximum(random(geometry.input_shape), 0), random(geometry.weight_shape, seed=1)
    grad = random(geometry.output_shape, seed=2)
    y = reference.conv2d(x, weight, padding=1)
    dx, dw, _ = reference.conv2d_grad(grad, x, weight, padding=1)
    found = run("conv2d", geometry, x, weight, None)
    assert_close(found, y, 1e-5)
    direct = module._way("conv2d", "by_filters", geometry, "float32", (1, 1))(x, weight, None)
    assert np.abs(found - y).max() < 3 * np.abs(direct - y).max()
    assert_close(run("conv2d_grad_input", geometry, grad, weight), dx, 1e-5)
    assert_close(run("conv2d_grad_weight", geometry, grad, x), dw, 1e-5)


@pytest.mark.slow
def test_the_same_bits_on_any_threads_in_any_batch(monkeypatch):
    """Results do not depend on the number of threads, and those of an image not on the others of its batch."""
    monkeypatch.setattr(cpu_threads, "_WORK_A_THREAD", 1)
    monkeypatch.setattr(cpu_threads, "_WORK_TO_SHARE", 1)
    # A shape of SHAPES, of which the kernels are compiled already.
    geometry = Conv2dGeometry.of((5, 16, 9, 12), (33, 16, 3, 3), padding=1)
    x, weight = random(geometry.input_shape), random(geometry.weight_shape, seed=1)
    grad = random(geometry.output_shape, seed=2)
    arrays = {"conv2d": (x, weight, None), "conv2d_grad_input": (grad, weight), "conv2d_grad_weight": (grad, x)}
    results = []
    for size in (1, 3):
        monkeypatch.setattr(cpu_threads, "_team", cpu_threads.Team(size))
        results.append([run(operation, geometry, *arrays[operation]) for operation in OPERATIONS])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    alone = Conv2dGeometry.of((1, 16, 9, 12), weight.shape, padding=1)
    np.testing.assert_array_equal(run("conv2d", alone, x[3:4], weight, None), results[0][0][3:4])
    np.testing.assert_array_equal(run("conv2d_grad_input", alone, grad[3:4], weight), results[0][1][3:4])


@pytest.mark.slow
def test_where_it_pays_it_runs_by_itself():
    """A layer with channels and positions enough takes it, forward and backward, and ReLU is part of it; what is not
    finite stays in its tiles, and comes through the ReLU.
    """
    geometry = Conv2dGeometry.of((8, 64, 16, 16), (64, 64, 3, 3), padding=1)
    for operation in OPERATIONS:
        assert module._variant(operation, geometry, "float32") == ("winograd", "by rule")
    x, weight, bias = random(geometry.input_shape), random(geometry.weight_shape, seed=1), random((64,), seed=2)
    wanted = reference.relu(reference.conv2d(x[:1], weight, bias, padding=1))
    x[1, 3, 9, 9] = np.nan  # read by the tile of rows and columns 8 to 11
    with backends.use_backend(COMPILED):
        y = F.conv2d_relu(x, weight, bias, padding=1)
    assert_close(y[:1], wanted, 1e-5)
    np.testing.assert_array_equal(
        np.argwhere(np.isnan(y[:, 0])), [[1, i, j] for i in range(8, 12) for j in range(8, 12)]
    )


@pytest.mark.parametrize(
    ("shape", "weight", "options"),
    [
        ((64, 64, 16, 16), (64, 64, 3, 3), {"stride": 2}),
        ((64, 64, 16, 16), (64, 64, 3, 3), {"dilation": 2}),
        ((64, 64, 16, 16), (64, 32, 3, 3), {"groups": 2}),
        ((64, 64, 16, 16), (64, 64, 1, 1), {}),
        ((64, 64, 16, 16), (64, 64, 3, 5), {}),
    ],
)
def test_other_convolutions_are_not_its_business(shape, weight, options):
    """Only filters of 3x3, next to each other over all channels, have the variant at all."""
    geometry = Conv2dGeometry.of(shape, weight, **options)
    for operation in OPERATIONS:
        assert "winograd" not in [one.label for one in COMPILED.candidates(operation, geometry, "float32")]


def test_direct_kernels_keep_small_layers():
    """Few channels, few tiles, or maps that fill a part of their tiles: by rule one of the direct kernels."""
    for n, channels, size in ((64, 16, 28), (1, 64, 14), (64, 64, 1)):
        geometry = Conv2dGeometry.of((n, channels, size, size), (channels, channels, 3, 3), padding=1)
        assert winograd.suits(conv.Forward.of("float32", geometry))
        for operation in OPERATIONS[:2]:
            assert module._variant(operation, geometry, "float32")[0].startswith("by_")
