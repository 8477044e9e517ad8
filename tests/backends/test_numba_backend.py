"""The compiled CPU backend: NumPy's results, to the bit whatever the threads, on any array, after any fork."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import CONV_CASES, POOL_CASES, ConvCase
from support.sampling import sampled

import gpuconv
from gpuconv import backends
from gpuconv import functional as F
from gpuconv.autograd import Tensor, gradcheck
from gpuconv.geometry import Conv2dGeometry, Pool2dGeometry

if backends.available()["numba"] is not None:
    pytest.skip(f"the numba backend: {backends.available()['numba']}", allow_module_level=True)

import numba

from gpuconv.backends.cpu import backend as module
from gpuconv.backends.cpu import compile as cpu_compile
from gpuconv.backends.cpu import conv, conv_grad
from gpuconv.backends.cpu import memory as cpu_memory
from gpuconv.backends.cpu import threads as cpu_threads
from gpuconv.backends.cpu.gemm import product

COMPILED = backends.get("numba")
NUMPY = backends.get("numpy")
TOLERANCE = {np.float32: {"rtol": 1e-4, "atol": 2e-5}, np.float64: {"rtol": 1e-10, "atol": 1e-12}}

#: Cases that between them reach most branches of the kernels. Each that is compiled takes a second or two.
TYPICAL = {
    "lenet-conv1",
    "lenet-conv2",
    "everything",
    "padding-beyond-kernel",
    "asymmetric",
    "many-filters",
    "depthwise",
}
CASES = [case if case.name in TYPICAL else pytest.param(case, marks=pytest.mark.thorough) for case in CONV_CASES]


@pytest.fixture(autouse=True)
def _compile_everything(monkeypatch):
    """Compile for the smallest geometry, too: the cases are small."""
    monkeypatch.setattr(module, "COMPILE_FROM", 1)


@pytest.fixture
def team(monkeypatch):
    """A function that sets the number of threads, and has them share even the smallest work."""
    monkeypatch.setattr(cpu_threads, "_WORK_A_THREAD", 1)
    monkeypatch.setattr(cpu_threads, "_WORK_TO_SHARE", 1)
    monkeypatch.setattr(module, "_chunks", lambda work, most=64: max(1, min(7, most)))
    _forget_runs()

    def of(size: int) -> None:
        monkeypatch.setattr(cpu_threads, "_team", cpu_threads.Team(size))

    yield of
    _forget_runs()


def _forget_runs() -> None:
    for kept in (module._forward, module._grad_input, module._grad_weight, module._grad_block):
        kept.cache_clear()


def geometry_of(case: ConvCase) -> Conv2dGeometry:
    return Conv2dGeometry.of(case.input, case.weight, **case.keywords)


def windows_of(geometry: Conv2dGeometry) -> list[tuple[int, int]]:
    return [window for window in ((2, 2), (3, 1)) if window[0] <= geometry.p and window[1] <= geometry.q]


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


# -- convolution -----------------------------------------------------------------------------------------------------


def _forward_runs() -> Iterator[Any]:
    for case in CONV_CASES:
        for variant in ("by_columns", "by_filters"):
            if variant == "by_filters" or geometry_of(case).stride[1] == 1:  # other columns make no vector
                marks = () if case.name in TYPICAL else (pytest.mark.thorough,)
                yield pytest.param(case, variant, id=f"{case.name}-{variant}", marks=marks)


@pytest.mark.grid(4)
@pytest.mark.parametrize(("case", "variant"), list(_forward_runs()))
def test_convolution(case, variant, monkeypatch):
    """Both forward kernels, plain and with ReLU, agree with NumPy's."""
    geometry = geometry_of(case)
    monkeypatch.setattr(module, "_variant", lambda *task: (variant, "by test"))
    _forget_runs()
    x, weight, bias, _ = case.arrays(np.float32)
    expected = NUMPY.conv2d(x, weight, bias, geometry)
    np.testing.assert_allclose(COMPILED.conv2d(x, weight, bias, geometry), expected, **TOLERANCE[np.float32])
    if case.name in TYPICAL:
        rectified = COMPILED.conv2d_relu(x, weight, bias, geometry)
        np.testing.assert_allclose(rectified, np.maximum(expected, 0), **TOLERANCE[np.float32])
    _forget_runs()


@pytest.mark.slow
@pytest.mark.grid(4)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution_gradients(case):
    """The gradients for input and weight agree with NumPy's."""
    x, weight, _, grad = case.arrays(np.float32)
    geometry = geometry_of(case)
    dx, expected = (backend.conv2d_grad_input(grad, weight, geometry) for backend in (COMPILED, NUMPY))
    np.testing.assert_allclose(dx, expected, **TOLERANCE[np.float32])
    dw, expected = (backend.conv2d_grad_weight(grad, x, geometry) for backend in (COMPILED, NUMPY))
    np.testing.assert_allclose(dw, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.grid(4)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fused_block(case):
    """Convolution, ReLU and max pooling in one give the parts' maxima, winners and gradients."""
    x, weight, bias, _ = case.arrays(np.float32)
    geometry = geometry_of(case)
    for window in sampled(windows_of(geometry)[: 2 if case.name in TYPICAL else 1], 1, case):
        pool = Pool2dGeometry.of(geometry.output_shape, window)
        y, winners = COMPILED.conv2d_relu_max_pool2d(x, weight, bias, geometry, pool)
        expected, expected_winners = NUMPY.conv2d_relu_max_pool2d(x, weight, bias, geometry, pool)
        np.testing.assert_allclose(y, expected, **TOLERANCE[np.float32])
        np.testing.assert_array_equal(winners[expected > 0], expected_winners[expected > 0])
        grad = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
        for needs in ((True, True, True), (False, True, True))[: 2 if case.name in TYPICAL else 1]:
            arguments = (grad, x, weight, expected, expected_winners, geometry, pool, needs)
            results = COMPILED.conv2d_relu_max_pool2d_grad(*arguments)
            for result, wanted in zip(results, NUMPY.conv2d_relu_max_pool2d_grad(*arguments), strict=True):
                assert (result is None) == (wanted is None)
                if wanted is not None:
                    np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet-conv2", pytest.param("everything", marks=pytest.mark.thorough)])
def test_float64(name):
    """float64 is float64 throughout: kernels agree with NumPy's to its precision."""
    case = next(case for case in CONV_CASES if case.name == name)
    x, weight, bias, grad = case.arrays(np.float64)
    geometry = geometry_of(case)
    pool = Pool2dGeometry.of(geometry.output_shape, (2, 1))
    y, winners = NUMPY.conv2d_relu_max_pool2d(x, weight, bias, geometry, pool)
    block = (np.ones_like(y), x, weight, y, winners, geometry, pool, (True, True, True))
    for backend_results in zip(
        *(
            (
                backend.conv2d(x, weight, bias, geometry),
                backend.conv2d_grad_input(grad, weight, geometry),
                backend.conv2d_grad_weight(grad, x, geometry),
                backend.conv2d_relu_max_pool2d(x, weight, bias, geometry, pool)[0],
                *backend.conv2d_relu_max_pool2d_grad(*block),
            )
            for backend in (COMPILED, NUMPY)
        ),
        strict=True,
    ):
        assert backend_results[0].dtype == np.float64
        np.testing.assert_allclose(*backend_results, **TOLERANCE[np.float64])


@pytest.mark.slow
def test_fused_block_gradcheck():
    """The sparse backward is the derivative of the fused forward, padding, stride and leftover rows included."""
    rng = np.random.default_rng(0)
    inputs = [Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((2, 2, 9, 10), (3, 2, 3, 3), (3,))]

    def block(x, weight, bias):
        return F.conv2d_relu_max_pool2d(x, weight, bias, padding=1, stride=(2, 1), kernel_size=2)

    with backends.use_backend("numba"):
        assert gradcheck(block, inputs)


@pytest.mark.slow
def test_ties_and_non_finite_values():
    """The first of equal maxima wins, of NaNs the last; NaN and infinity pass through ReLU and pooling as in NumPy."""
    rng = np.random.default_rng(0)
    x = rng.integers(-1, 2, (2, 1, 36, 34)).astype(np.float32)
    x[rng.random(x.shape) < 0.02] = np.nan
    x[rng.random(x.shape) < 0.02] = np.inf
    x[rng.random(x.shape) < 0.02] = -np.inf
    for filters in (3, 32):  # lanes over columns, and over filters
        weight = np.ones((filters, 1, 1, 2), np.float32)
        geometry = Conv2dGeometry.of(x.shape, weight.shape)
        for window in ((2, 2), (3, 3)):
            pool = Pool2dGeometry.of(geometry.output_shape, window)
            y, winners = COMPILED.conv2d_relu_max_pool2d(x, weight, None, geometry, pool)
            with np.errstate(invalid="ignore"):
                expected, expected_winners = NUMPY.conv2d_relu_max_pool2d(x, weight, None, geometry, pool)
            np.testing.assert_array_equal(y, expected)
            counts = ~(expected <= 0)
            np.testing.assert_array_equal(winners[counts], expected_winners[counts])


@pytest.mark.slow
def test_what_did_not_win_has_no_gradient():
    """A winner that is not positive, and its byte, whatever it is, change no gradient."""
    x, weight, bias, _ = CONV_CASES[0].arrays(np.float32)
    geometry = geometry_of(CONV_CASES[0])
    pool = Pool2dGeometry.of(geometry.output_shape, 2)
    y, winners = COMPILED.conv2d_relu_max_pool2d(x, weight, bias - 3, geometry, pool)
    assert 0 < (y == 0).mean() < 1
    spoilt = np.where(y == 0, np.uint8(255), winners)
    grads = [
        COMPILED.conv2d_relu_max_pool2d_grad(np.ones_like(y), x, weight, y, bytes_, geometry, pool, (True, True, True))
        for bytes_ in (winners, spoilt)
    ]
    for plain, other in zip(*grads, strict=True):
        np.testing.assert_array_equal(plain, other)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", [{"stride": 1}, {"padding": 1}, {"dilation": 2, "stride": 2}, {"ceil_mode": True}])
def test_other_poolings_are_composed(pooling):
    """A pooling whose windows overlap, are padded, dilated or hang over takes the parts, with their results."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 1, 9, 9), (3, 1, 3, 3)))
    geometry = Conv2dGeometry.of(x.shape, weight.shape)
    pool = Pool2dGeometry.of(geometry.output_shape, 3, **pooling)
    results = [backend.conv2d_relu_max_pool2d(x, weight, None, geometry, pool) for backend in (COMPILED, NUMPY)]
    np.testing.assert_allclose(results[0][0], results[1][0], **TOLERANCE[np.float32])
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.slow
def test_windows_of_one_element_have_winners():
    """A pooling of nothing has a winner in each window, as its gradient reads them: also on an odd, padded image."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 2, 5, 9), (3, 2, 1, 3)))
    geometry = Conv2dGeometry.of(x.shape, weight.shape, padding=((1, 0), (0, 2)))
    pool = Pool2dGeometry.of(geometry.output_shape, 1)
    results = []
    for backend in (COMPILED, NUMPY):
        y, winners = backend.conv2d_relu_max_pool2d(x, weight, None, geometry, pool)
        assert winners.shape == y.shape
        gradient = backend.conv2d_relu_max_pool2d_grad(y, x, weight, y, winners, geometry, pool, (True, True, True))
        results.append((y, *gradient))
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_large_images_are_cut_into_bands(monkeypatch):
    """An image whose scratch does not fit the cache is computed band by band, with the same result."""
    monkeypatch.setattr(conv, "SCRATCH_BYTES", 2000)
    monkeypatch.setattr(conv_grad, "SCRATCH_BYTES", 2000)
    _forget_runs()
    rng = np.random.default_rng(0)
    for filters in (2, 16):
        x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 21, 19), (filters, 3, 3, 3)))
        geometry = Conv2dGeometry.of(x.shape, weight.shape, padding=2, stride=(2, 1))
        assert module._forward(x.dtype, geometry).bands > 3
        y = NUMPY.conv2d(x, weight, None, geometry)
        np.testing.assert_allclose(COMPILED.conv2d(x, weight, None, geometry), y, **TOLERANCE[np.float32])
        expected = NUMPY.conv2d_grad_weight(y, x, geometry)
        np.testing.assert_allclose(COMPILED.conv2d_grad_weight(y, x, geometry), expected, rtol=1e-4, atol=1e-3)
    _forget_runs()


# -- the other primitives --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", ["", "a", "b"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 120, 400), (7, 10, 3), (33, 84, 129), (130, 400, 257), (0, 5, 3)])
def test_matrix_product(sizes, transposed):
    """Products of all orientations, of one row and of many, of ragged sizes, with bias and ReLU."""
    m, n, k = sizes
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        a, b, bias = (rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n), (n,)))
        stored = [np.ascontiguousarray(x.T) if transposed == name else x for name, x in (("a", a), ("b", b))]
        options = {"a_transposed": transposed == "a", "b_transposed": transposed == "b"}
        expected = a.astype(np.float64) @ b.astype(np.float64)
        tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == np.float32 else TOLERANCE[np.float64]
        np.testing.assert_allclose(product(*stored, **options), expected, **tolerance)
        rectified = product(*stored, bias, rectified=True, **options)
        np.testing.assert_allclose(rectified, np.maximum(expected + bias, 0), **tolerance)


@pytest.mark.grid(8)
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_pooling(case):
    """Max pooling with ties, NaN and -inf, average pooling in all its ways of counting, and their gradients."""
    geometry = Pool2dGeometry.of(case.input, case.kernel, **case.keywords)
    rng = np.random.default_rng(0)
    tied = case.tied(np.float32)
    with_nan, all_equal = tied.copy(), np.full_like(tied, -np.inf)
    with_nan[rng.random(tied.shape) < 0.3] = np.nan
    grad = rng.standard_normal(geometry.output_shape).astype(np.float32)
    for x in (case.array(np.float32), tied, with_nan, all_equal):
        y, winners = COMPILED.max_pool2d(x, geometry)
        expected, expected_winners = NUMPY.max_pool2d(x, geometry)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(winners, expected_winners)
        dx = COMPILED.max_pool2d_grad(grad, winners, geometry)
        np.testing.assert_allclose(dx, NUMPY.max_pool2d_grad(grad, winners, geometry), **TOLERANCE[np.float32])
    for include, divisor in ((True, None), (False, None), (True, 3)):
        if case.dilated:  # an average pooling has no dilation
            break
        options: dict[str, Any] = {"count_include_pad": include, "divisor_override": divisor}
        y = COMPILED.avg_pool2d(tied, geometry, **options)
        np.testing.assert_allclose(y, NUMPY.avg_pool2d(tied, geometry, **options), **TOLERANCE[np.float32])
        dx = COMPILED.avg_pool2d_grad(grad, geometry, **options)
        np.testing.assert_allclose(dx, NUMPY.avg_pool2d_grad(grad, geometry, **options), **TOLERANCE[np.float32])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relu_loss_and_updates(dtype):
    """ReLU and the updates give NumPy's bits, the loss its values, non-finite ones included."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 5)).astype(dtype)
    x[0] = [np.nan, np.inf, -np.inf, 0.0, -0.0]
    grad = rng.standard_normal(x.shape).astype(dtype)
    np.testing.assert_array_equal(COMPILED.relu(x), NUMPY.relu(x))
    np.testing.assert_array_equal(COMPILED.relu_grad(grad, x), NUMPY.relu_grad(grad, x))

    labels = np.array([0, 1, 2, 3, 4, 9, 1], np.uint8)
    weights = rng.random(5).astype(dtype)
    for weight, smoothing in ((None, 0.0), (weights, 0.1)):
        options: dict[str, Any] = {"weight": weight, "ignore_index": 9, "label_smoothing": smoothing}
        with np.errstate(invalid="ignore"):
            expected = NUMPY.softmax_cross_entropy(x, labels, **options)
        results = COMPILED.softmax_cross_entropy(x, labels, **options)
        for result, wanted in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)
        arguments = (grad[:, 0], expected[1], labels)
        dlogits = COMPILED.softmax_cross_entropy_grad(*arguments, **options)
        wanted = NUMPY.softmax_cross_entropy_grad(*arguments, **options)
        np.testing.assert_allclose(dlogits, wanted, rtol=1e-5, atol=1e-6)

    sgd = {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01, "nesterov": False}
    adam = {"step": 3, "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01, "decoupled": True}
    for update, count, options in (
        ("sgd_update_all", 1, sgd),
        ("sgd_update_all", 1, {**sgd, "nesterov": True, "weight_decay": 0.0}),
        ("adam_update_all", 2, adam),
        ("adam_update_all", 2, {**adam, "decoupled": False}),
        ("adam_update_all", 2, {**adam, "weight_decay": 0.0}),
    ):
        arrays = [rng.random((6, 5)).astype(dtype) for _ in range(1 + count)]
        others = [array.copy() for array in arrays]
        step = rng.standard_normal((6, 5)).astype(dtype)
        for backend, own in ((COMPILED, arrays), (NUMPY, others)):
            getattr(backend, update)([own[0]], [step], *([state] for state in own[1:]), **options)
        for result, wanted in zip(arrays, others, strict=True):
            np.testing.assert_array_equal(result, wanted)


def test_wrong_label_is_named():
    """A label that is no class is refused with the words of the NumPy backend."""
    with pytest.raises(ValueError, match=r"target\[1\] is 7, but input has 3 classes"):
        COMPILED.softmax_cross_entropy(
            np.zeros((2, 3), np.float32), np.array([0, 7]), weight=None, ignore_index=-100, label_smoothing=0.0
        )


# -- arrays of all kinds ---------------------------------------------------------------------------------------------


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def _unaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    result = memory[1:].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        _read_only,
        _unaligned,
        np.asfortranarray,
        lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
        lambda array: array[::-1].copy()[::-1],
        lambda array: array.astype(array.dtype.newbyteorder(">")),
    ],
    ids=["read-only", "unaligned", "fortran", "strided", "reversed", "big-endian"],
)
def test_arrays_of_all_kinds(change):
    """Forward, backward and update take any layout and byte order, and leave what they only read as it is."""

    def step(*arrays: np.ndarray) -> list[np.ndarray]:
        x, weight, bias, matrix = (Tensor(array, requires_grad=True) for array in arrays)
        y = F.conv2d_relu_max_pool2d(x, weight, bias, kernel_size=2)
        z = F.relu(F.conv2d(x, weight, bias))
        (F.linear(y.reshape(2, -1), matrix).sum() + z.sum()).backward()
        return [tensor.grad.numpy() for tensor in (x, weight, bias, matrix)]

    rng = np.random.default_rng(0)
    shapes = ((2, 1, 32, 32), (6, 1, 5, 5), (6,), (5, 6 * 14 * 14))  # LeNet's, which other tests compile
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    changed = [change(array) for array in arrays]
    before = [array.copy() for array in changed]
    with backends.use_backend("numba"):
        for result, expected in zip(step(*changed), step(*arrays), strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    for array, kept in zip(changed, before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_updates_reach_arrays_that_kernels_cannot_write_to():
    """A parameter that is a strided view is updated where it is."""
    memory = np.ones((4, 6), np.float32)
    COMPILED.sgd_update_all(
        [memory[:, ::2]],
        [np.ones((4, 3), np.float32)],
        [None],
        lr=0.5,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
    )
    np.testing.assert_array_equal(memory, np.tile(np.float32([0.5, 1.0]), (4, 3)))


# -- threads ---------------------------------------------------------------------------------------------------------


def _training_results() -> list[bytes]:
    """Everything that two steps of LeNet's blocks compute, as bytes."""
    rng = np.random.default_rng(0)
    x, w1, w2 = (rng.standard_normal(s).astype(np.float32) for s in ((21, 1, 32, 32), (6, 1, 5, 5), (16, 6, 5, 5)))
    tensors = [Tensor(array, requires_grad=True) for array in (x, w1, w2)]
    with backends.use_backend("numba"):
        y = F.conv2d_relu_max_pool2d(tensors[0], tensors[1], None, kernel_size=2)
        z = F.relu(F.conv2d(y, tensors[2], padding=1))
        (z * z).sum().backward()
    matrix = COMPILED.linear_grad_weight(z.numpy().reshape(21, -1)[:, :64], x.reshape(21, -1))
    return [array.tobytes() for array in (z.numpy(), matrix, *(t.grad.numpy() for t in tensors))]


@pytest.mark.slow
def test_same_bits_whatever_the_threads(team):
    """Results are the same to the bit on one thread, on two, on more than there are cores, and from run to run."""
    results = []
    for size in (1, 2, 2, 2 * (os.cpu_count() or 1) + 1):
        team(size)
        results.append(_training_results())
    assert all(result == results[0] for result in results[1:])


@pytest.mark.slow
def test_callers_in_several_threads(team):
    """Callers in several threads at the same time get their own results: one with the team, the others alone."""
    team(3)
    expected = _training_results()
    wrong: list[int] = []

    def call(number: int) -> None:
        for _ in range(5):
            if _training_results() != expected:
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_every_chunk_runs_once(team):
    """However threads come and go, each chunk of each of many short jobs runs exactly once."""
    team(4)
    size = 50
    kernel = module._kernel(module.pointwise.relu, np.dtype(np.float32))
    x = np.arange(size, dtype=np.float32)
    for round_ in range(3000):
        y = np.full(size, -1, np.float32)
        cpu_threads.launch(kernel, size, x, y, size, size, work=1000)
        assert y[round_ % size] == x[round_ % size]
        if round_ % 100 == 0:
            np.testing.assert_array_equal(y, x)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("threads", ["1", "2", "9"])
def test_forked_children_compute(threads):
    """A child forked from a process that has used threads computes the same, on threads of its own."""
    run = in_new_process(
        """
        import os, warnings
        import numpy as np
        from gpuconv import backends
        from gpuconv.backends.cpu import threads as cpu_threads
        from gpuconv.geometry import Conv2dGeometry
        backend = backends.get("numba")
        x, w = np.random.rand(64, 6, 14, 14).astype("f"), np.random.rand(16, 6, 5, 5).astype("f")
        compute = lambda: backend.conv2d(x, w, None, Conv2dGeometry.of(x.shape, w.shape)).tobytes()
        expected = compute()
        team = cpu_threads._team
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads: here it is meant
        children = []
        for _ in range(3):
            child = os.fork()
            if not child:
                os._exit(0 if compute() == expected and (cpu_threads._team is not team or team is None) else 1)
            children.append(child)
        assert compute() == expected
        print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
        """,
        GPUCONV_NUM_THREADS=threads,
    )
    assert run.stdout.strip() == "[0, 0, 0]", run.stderr


def test_number_of_threads(monkeypatch):
    """GPUCONV_NUM_THREADS sets it; what is no number of threads is refused by name."""
    monkeypatch.setenv("GPUCONV_NUM_THREADS", "3")
    assert cpu_threads.threads() == 3
    assert "3 threads" in COMPILED.describe()
    monkeypatch.delenv("GPUCONV_NUM_THREADS")
    assert cpu_threads.threads() == numba.config.NUMBA_NUM_THREADS
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("GPUCONV_NUM_THREADS", wrong)
        with pytest.raises(ValueError, match=f"GPUCONV_NUM_THREADS must be a positive integer, got '{wrong}'"):
            cpu_threads.threads()


# -- memory ----------------------------------------------------------------------------------------------------------


def test_memory_is_used_again_but_never_shared():
    """A large array's memory serves the next of its size, yet not while any view of the first one is alive."""
    cpu_memory._kept.clear()
    dtype = np.dtype(np.float32)
    first = cpu_memory.empty((64, 1024), dtype)
    address, view = first.ctypes.data, first[3:5].T
    assert first.flags.carray
    assert address % 64 == 0
    del first
    second = cpu_memory.empty((64, 1024), dtype)
    assert second.ctypes.data != address
    view[...] = 1
    del view
    third = cpu_memory.empty((1024, 64), dtype)
    assert third.ctypes.data == address
    del second, third
    assert sum(map(len, cpu_memory._kept.values())) == 2
    cpu_memory.empty((65, 1024), dtype)
    assert sum(map(len, cpu_memory._kept.values())) == 1, "other sizes are given back when the work changes"


# -- compiling -------------------------------------------------------------------------------------------------------

CONVOLVE = """
    import logging, sys
    import numpy as np
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    from gpuconv import backends
    from gpuconv.geometry import Conv2dGeometry
    x, w = np.ones((64, 2, 16, 16), "f"), np.ones((4, 2, 3, 3), "f")
    y = backends.get("numba").conv2d(x, w, None, Conv2dGeometry.of(x.shape, w.shape))
    print("result", y.min(), y.max())
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder with the code that a process has compiled, which says so."""
    folder = tmp_path_factory.mktemp("compiled")
    first = in_new_process(CONVOLVE, NUMBA_CACHE_DIR=str(folder))
    assert re.match(r"compiling forward_by_\w+ for Forward\(", first.stdout), first.stderr
    assert first.stdout.endswith("result 18.0 18.0\n")
    return folder


@pytest.mark.slow
def test_compiled_code_is_found_by_the_next_process(filled):
    """The first process says that it compiles a kernel; the second one finds it on disk and says nothing."""
    second = in_new_process(CONVOLVE, NUMBA_CACHE_DIR=str(filled))
    assert second.stdout == "result 18.0 18.0\n", second.stderr
    assert list(filled.rglob("*forward_by*.nbc"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "kept"),
    [
        pytest.param("nbc", 0.5, id="code-cut"),
        pytest.param("nbi", 0.0, id="index-empty", marks=pytest.mark.thorough),
        pytest.param("nbc", 0.0, id="code-empty", marks=pytest.mark.thorough),
        pytest.param("nbi", 0.5, id="index-cut", marks=pytest.mark.thorough),
    ],
)
def test_damaged_files_of_compiled_code(filled, suffix, kept, tmp_path):
    """Files of compiled code that are empty or cut short are replaced: the process after next finds them whole."""
    folder = tmp_path / "cache"
    shutil.copytree(filled, folder)
    files = list(folder.rglob(f"*.{suffix}"))
    assert len(files) > 1
    for file in files:
        file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    damaged, next_one = (in_new_process(CONVOLVE, NUMBA_CACHE_DIR=str(folder)) for _ in range(2))
    assert "again: its file cannot be read" in damaged.stdout, damaged.stderr
    assert damaged.stdout.endswith("result 18.0 18.0\n")
    assert next_one.stdout == "result 18.0 18.0\n", next_one.stderr


@pytest.mark.slow
def test_no_directory_for_compiled_code():
    """Where nothing can be written, kernels are compiled for the process, which says so."""
    refuse = """
    import numba.core.caching

    def refuse(self):
        raise PermissionError

    numba.core.caching._CacheLocator.ensure_cache_path = refuse
    """
    run = in_new_process(refuse + CONVOLVE)
    assert "for this process only: cannot cache function" in run.stdout, run.stderr
    assert run.stdout.endswith("result 18.0 18.0\n")


REHEARSED = """
    import multiprocessing, pathlib, sys, time
    import numpy as np
    from gpuconv import backends
    from gpuconv.backends.cpu import compile, rehearsal

    backend, x = backends.get("numba"), np.ones(200_000, np.float32)
    events = []

    def step():  # fails in the copy, where nothing is computed, behind its second kernel
        y = backend.relu(x)
        backend.relu_grad(y, y)
        assert y.min() == 1
        events.append("run")

    with backend.compiling_ahead(step):
        (helper,) = multiprocessing.active_children()
        backend.relu(x)
        files = lambda: list(pathlib.Path(sys.argv[1]).rglob("*relu_grad*.nbc"))
        while not files() and helper.is_alive():
            time.sleep(0.01)
        assert files() and not compile.on_missing
        step()
    helper.join(60)
    print(*events, helper.exitcode, multiprocessing.active_children())
    with backend.compiling_ahead(lambda: 1 / 0):
        (idle,) = multiprocessing.active_children()
    idle.join(60)
    print(idle.exitcode, compile.on_missing)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin" or not hasattr(os, "fork"), reason="needs a copy of the process")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_a_second_process_compiles(tmp_path):
    """What is about to run is compiled by another process from its end on; it ends by itself."""
    code = f"import sys; sys.argv.append({str(tmp_path)!r})\n" + textwrap.dedent(REHEARSED)
    run = in_new_process(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert run.stdout == "run 0 []\n0 []\n", run.stderr
    assert run.stderr == ""


def test_full_disk(monkeypatch, tmp_path):
    """A kernel that cannot be saved is used all the same."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    x, w = np.ones((2, 1, 13, 17), np.float32), np.ones((2, 1, 2, 2), np.float32)
    y = COMPILED.conv2d(x, w, None, Conv2dGeometry.of(x.shape, w.shape))
    np.testing.assert_array_equal(y, np.full((2, 2, 12, 16), 4, np.float32))


def test_small_work_is_left_to_numpy(monkeypatch):
    """For a geometry of little work nothing is compiled: NumPy has the result before a compiler would have started."""
    monkeypatch.undo()
    compiled = []
    monkeypatch.setattr(cpu_compile, "Kernel", lambda *args, **kwargs: compiled.append(args))
    x, w = np.ones((1, 1, 12, 12), np.float32), np.ones((1, 1, 3, 3), np.float32)
    geometry = Conv2dGeometry.of(x.shape, w.shape)
    COMPILED.conv2d_grad_weight(COMPILED.conv2d(x, w, None, geometry), x, geometry)
    COMPILED.max_pool2d(x, Pool2dGeometry.of(x.shape, 3))
    assert not compiled
    assert COMPILED.explain("conv2d", geometry, "float32") == ["numpy: of 900 multiply-adds, less than 100,000"]


def _innermost_loop(assembly: str) -> list[str]:
    """Instructions of the block of machine code that has the most fused multiply-adds."""
    blocks = re.split(r"^\.LBB\w+:", assembly, flags=re.MULTILINE)
    return max(blocks, key=lambda block: block.count("vfmadd")).splitlines()


@pytest.mark.parametrize(
    ("build", "plan"),
    [
        (
            conv.forward_by_columns,
            lambda: conv.Forward.of("float32", geometry_of(CONV_CASES[0]), window=(2, 2), relu=True),
        ),
        (
            conv.forward_by_filters,
            lambda: conv.Forward.of("float32", geometry_of(CONV_CASES[1]), window=(2, 2), relu=True),
        ),
        (conv_grad.grad_weight_dense, lambda: conv_grad.Patches("float32", geometry_of(CONV_CASES[1]))),
        (
            conv_grad.grad_sparse,
            lambda: conv_grad.Patches("float32", geometry_of(CONV_CASES[1]), (2, 2), needs_input=True),
        ),
    ],
    ids=["by-columns", "by-filters", "dense", "sparse"],
)
def test_inner_loops_are_vector_multiply_adds(build, plan, monkeypatch, tmp_path):
    """The inner loop multiplies and adds whole vectors, fused, and keeps its sums in registers, off the stack."""
    features = numba.core.registry.cpu_target.target_context.codegen().magic_tuple()[2]
    if "+fma" not in features:
        pytest.skip("only x86 with FMA: elsewhere the instructions have other names")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))  # code from a cache cannot be looked at
    build.cache_clear()
    loop = _innermost_loop(build(plan()).assembly())
    register = "zmm" if "+avx512f" in features else "ymm"
    fused = [line for line in loop if "vfmadd" in line]
    assert len(fused) >= 5
    assert all("ps" in line and register in line for line in fused)
    if register == "zmm":  # with 16 registers one or the other may be spilt
        assert not [line for line in loop if re.search(rf"vmov\w+\s+%{register}\d+, -?\d*\(%rsp\)", line)]


def test_without_numba():
    """Without Numba the backend is unavailable, by name and with the remedy, and `auto` goes on to NumPy."""
    run = in_new_process(
        """
        import sys
        sys.modules["numba"] = None
        from gpuconv import backends
        print(backends.available()["numba"])
        print(backends.current().name)
        """,
        GPUCONV_BACKEND="",
    )
    missing, chosen = run.stdout.splitlines()
    assert "numba" in missing
    assert missing.endswith("pip install numba")
    assert chosen == "numpy"


def test_numba_that_does_not_compile():
    """With NUMBA_DISABLE_JIT the backend is unavailable, says why, and `auto` goes on to NumPy."""
    code = "from gpuconv import backends; print(backends.available()['numba']); print(backends.current().name)"
    reason, chosen = in_new_process(code, GPUCONV_BACKEND="", NUMBA_DISABLE_JIT="1").stdout.splitlines()
    assert "NUMBA_DISABLE_JIT" in reason
    assert chosen == "numpy"


def test_explain():
    """explain names the kernel that runs, its cost beside the other's, and the fused block."""
    convolution = gpuconv.explain(gpuconv.nn.Conv2d(1, 6, 5), (64, 1, 32, 32), backend="numba")
    lines = convolution.steps[0].lines
    assert [line.partition(":")[0] for line in lines] == ["by_columns", "by_filters", "im2col"]
    assert lines[0].endswith("taken, by rule")
    block = gpuconv.nn.Sequential(gpuconv.nn.Conv2d(1, 6, 5), gpuconv.nn.ReLU(), gpuconv.nn.MaxPool2d(2))
    (step,) = gpuconv.explain(block, (64, 1, 32, 32), backend="numba").steps
    assert step.lines[0].startswith("one kernel")


def test_averages_of_units_that_are_never_active_become_zero():
    """Denormal numbers would stay, as 0.9 times the smallest rounds to itself, and are slow. NaN stays."""
    small, none = np.full(3, 1.2e-38, np.float32), np.zeros(3, np.float32)
    small[2] = np.nan
    velocity, mean, square = small.copy(), small.copy(), small.copy()
    sgd = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
    COMPILED.sgd_update_all([np.ones(3, np.float32)], [none], [velocity], **sgd)
    adam = {"step": 3, "lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False}
    COMPILED.adam_update_all([np.ones(3, np.float32)], [none], [mean], [square], **adam)
    for average in (velocity, mean, square):
        np.testing.assert_array_equal(average, [0, 0, np.nan])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "kernel", "padding"), [((13, 12), (3, 2), 1), pytest.param((9, 10), (1, 1), 0, marks=pytest.mark.thorough)]
)
def test_even_and_odd_rows_apart(size, kernel, padding):
    """The input's gradient with a stride of 2: odd sizes, phases without any tap, and padding that differs."""
    geometry = Conv2dGeometry.of((8, 32, *size), (48, 32, *kernel), stride=2, padding=padding)
    assert "by_phases" in [one.variant for one in COMPILED.candidates("conv2d_grad_input", geometry, "float32")]
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(geometry.weight_shape).astype(np.float32)
    grad = rng.standard_normal(geometry.output_shape).astype(np.float32)
    by_phases = module._way("conv2d_grad_input", "by_phases", geometry, "float32", (1, 1))
    expected = NUMPY.conv2d_grad_input(grad.astype(np.float64), weight.astype(np.float64), geometry)
    np.testing.assert_allclose(by_phases(grad, weight), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    large = Conv2dGeometry.of((32, 64, 56, 56), (128, 64, 3, 3), stride=2, padding=1)
    assert "by_phases" in COMPILED.explain("conv2d_grad_input", large, "float32")[0]
