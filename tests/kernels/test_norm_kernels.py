"""Kernels of batch normalisation: right in every tiling, and clean under the simulator's trace."""

from __future__ import annotations

import numpy as np
import pytest
from support.sampling import sampled
from support.simulation import TOLERANCE, run

from gpuconv.kernels import VARIANTS, load

OPERATIONS = {"batch_norm_stats", "batch_norm", "batch_norm_grad_stats", "batch_norm_grad_input"}

#: Images, channels, positions: one element a part; planes that are vectors, and that are not; parts that are shorter.
SHAPES = [(1, 1, 2), (2, 3, 16), (3, 5, 7), (2, 2, 300), (4, 1, 1100)]
EPS = 1e-3


def arrays_of(shape, dtype, seed=0):
    """What goes in, and the float64 loops' intermediate values: mean 30, so that differences of squares lose digits."""
    rng = np.random.default_rng(seed)
    c = shape[1]
    found = {
        "x": rng.normal(30, 2, shape), "grad": rng.normal(size=shape), "residual": rng.normal(size=shape),
        "weight": rng.normal(1, 0.3, c), "bias": rng.normal(size=c),
    }  # fmt: skip
    return {name: array.astype(dtype) for name, array in found.items()}


def doubles(arrays):
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def statistics(x):
    return x.mean(axis=(0, 2)), x.var(axis=(0, 2))


def filled(shape, dtype):
    return np.full(shape, np.nan, dtype)


def variants(operation, shape, dtype):
    """Each variant in some tilings."""
    for variant in VARIANTS[operation]:
        module = load(operation, variant)
        assert module.supports(shape)
        tilings = module.tilings(shape)
        for tiling in sampled(tilings, 2, str(shape)) if dtype == "float32" else tilings[:1]:
            yield module, tiling


@pytest.mark.grid(3)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stats(shape, dtype):
    """Mean and biased variance of each channel, with the digits that a mean of 30 leaves."""
    arrays = arrays_of(shape, dtype)
    mean, var = statistics(arrays["x"].astype(np.float64))
    for module, tiling in variants("batch_norm_stats", shape, dtype):
        found = filled(shape[1], dtype), filled(shape[1], dtype)
        run(module, (arrays["x"],), found, shape, tiling)
        np.testing.assert_allclose(found[0], mean, rtol=1e-6 if dtype == "float32" else 1e-14, err_msg=str(tiling))
        np.testing.assert_allclose(found[1], var, rtol=1e-5 if dtype == "float32" else 1e-12, err_msg=str(tiling))


@pytest.mark.grid(3)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("absent", [(), ("weight", "bias"), ("residual",)], ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
def test_normalising(shape, absent, relu, dtype):
    """With and without weight, bias, residual and ReLU; a NaN stays, an infinite residual goes through."""
    arrays = arrays_of(shape, dtype)
    arrays["x"][0, 0, 0] = np.nan
    mean, var = (array.astype(dtype) for array in statistics(np.nan_to_num(arrays["x"], nan=30)))
    given = {name: None if name in absent else arrays[name] for name in ("weight", "bias", "residual")}
    wide = doubles({name: array for name, array in given.items() if array is not None})
    unit = (arrays["x"].astype(np.float64) - mean.astype(np.float64)[:, None]) / np.sqrt(var.astype(np.float64) + EPS)[
        :, None
    ]
    expected = unit * wide.get("weight", np.ones(shape[1]))[:, None] + wide.get("bias", np.zeros(shape[1]))[:, None]
    expected = expected + wide.get("residual", 0)
    expected = np.where(expected <= 0, 0, expected) if relu else expected
    for module, tiling in variants("batch_norm", shape, dtype):
        out = filled(shape, dtype)
        run(module, (arrays["x"], mean, var, *given.values()), (out,), shape, tiling, eps=EPS, relu=relu)
        np.testing.assert_allclose(out, expected, **TOLERANCE[dtype], err_msg=str(tiling))


@pytest.mark.grid(3)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape, relu, dtype):
    """Those for weight and bias, then that for the input from them, and that for what was added behind."""
    arrays = arrays_of(shape, dtype, seed=1)
    mean, var = (array.astype(dtype) for array in statistics(arrays["x"].astype(np.float64)))
    y = np.maximum(arrays["residual"], 0) if relu else None
    wide = doubles({**arrays, "mean": mean, "var": var})
    g = np.where(y <= 0, 0, wide["grad"]) if relu else wide["grad"]
    rate = 1 / np.sqrt(wide["var"] + EPS)
    unit = (wide["x"] - wide["mean"][:, None]) * rate[:, None]
    dweight, dbias = (g * unit).sum(axis=(0, 2)), g.sum(axis=(0, 2))
    tolerance = {**TOLERANCE[dtype], "atol": 1e-4 if dtype == "float32" else 1e-11}
    inputs = arrays["grad"], arrays["x"], y, mean, var
    for module, tiling in variants("batch_norm_grad_stats", shape, dtype):
        found = filled(shape[1], dtype), filled(shape[1], dtype)
        run(module, inputs, found, shape, tiling, eps=EPS)
        np.testing.assert_allclose(found[0], dweight, **tolerance, err_msg=str(tiling))
        np.testing.assert_allclose(found[1], dbias, **tolerance, err_msg=str(tiling))

    sums = dweight.astype(dtype), dbias.astype(dtype)
    count = shape[0] * shape[2]
    for own, weighted, added in [(True, True, True), (True, False, False), (False, True, True), (False, False, False)]:
        scale = rate * (wide["weight"] if weighted else 1)
        expected = g - (dbias[:, None] + unit * dweight[:, None]) / count if own else g
        expected = expected * scale[:, None]
        for module, tiling in variants("batch_norm_grad_input", shape, dtype):
            out, other = filled(shape, dtype), filled(shape, dtype) if added else None
            weight = arrays["weight"] if weighted else None
            given = *inputs, weight, *(sums if own else (None, None))
            results = (out, other) if added else (out,)
            rest = () if added else (None,)
            run(module, (*given,), results, shape, tiling, rewritten=rest, eps=EPS)
            np.testing.assert_allclose(out, expected, **tolerance, err_msg=f"{tiling} {own}")
            if added:
                np.testing.assert_array_equal(other, g.astype(dtype))
