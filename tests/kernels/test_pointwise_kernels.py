"""The kernels that work on elements, windows or rows: right in every tiling, and clean under the simulator's trace."""

from __future__ import annotations

import inspect
import itertools

import cases
import numpy as np
import pytest
import reference
import test_block_kernels
import test_gradient_kernels
import test_kernels
import test_linear_kernels
import test_norm_kernels
from support.sampling import sampled
from support.simulation import TOLERANCE, run

from gpuconv.backends.numpy_backend import NumpyBackend
from gpuconv.data import InputTransform
from gpuconv.geometry import ImageBatchGeometry, PartialSums, Pool2dGeometry, UpdateGeometry
from gpuconv.kernels import VARIANTS, device, load, partial_sums
from gpuconv.kernels.operations import OPERATIONS as DESCRIBED

numpy_backend = NumpyBackend()


OPERATIONS = {
    "relu",
    "relu_grad",
    "max_pool2d",
    "max_pool2d_grad",
    "avg_pool2d",
    "avg_pool2d_grad",
    "softmax_cross_entropy",
    "softmax_cross_entropy_grad",
    "softmax_cross_entropy_mean",
    "sgd_update_all",
    "sgd_update_all_of_parts",
    "adam_update_all",
    "adam_update_all_of_parts",
    "image_batch",
    "count_correct",
}
NO_WRONG_LABEL = np.iinfo(np.int32).max


def modules(operation):
    return [load(operation, variant) for variant in VARIANTS[operation]]


def nothing(shape, dtype):
    """An array for a result, filled with what no right result holds."""
    return np.full(shape, 77, dtype)


def test_every_operation_is_tested():
    """What stands in the table of kernels is run by one of these files."""
    others = test_kernels, test_gradient_kernels, test_block_kernels, test_linear_kernels, test_norm_kernels
    assert {*VARIANTS} == OPERATIONS.union(*(other.OPERATIONS for other in others))


# -- element by element ------------------------------------------------------------------------------------------------

#: Less than a vector, whole vectors, some left over; less than a block and more.
SIZES = [1, 3, 4, 5, 127, 1024, 1031]


def elements(rng, size, dtype, *, aligned):
    """Random values with some special ones among them; an array that begins at a multiple of 16 bytes, or does not."""
    values = rng.standard_normal(size + 1).astype(dtype)[0 if aligned else 1 :][:size]
    values[::5] = rng.choice([0, -0.0, np.nan, np.inf, -np.inf], values[::5].shape)
    assert not size or device.aligned(values) == aligned
    return values


@pytest.mark.grid(3)
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_relu(dtype, aligned):
    """Forward and gradient are exact, NaN and infinities included."""
    rng = np.random.default_rng(0)
    for size in SIZES:
        x, grad = (elements(rng, size, dtype, aligned=aligned) for _ in range(2))
        for module in modules("relu"):
            for tiling in module.tilings((size,)):
                out = nothing(size, dtype)
                run(module, (x,), (out,), (size,), tiling)
                np.testing.assert_array_equal(out, numpy_backend.relu(x))
        for module in modules("relu_grad"):
            for tiling in module.tilings((size,)):
                out = nothing(size, dtype)
                run(module, (grad, x), (out,), (size,), tiling)
                np.testing.assert_array_equal(out, numpy_backend.relu_grad(grad, x))


SGD = [
    {"lr": 0.1, "momentum": momentum, "dampening": dampening, "weight_decay": decay, "nesterov": nesterov}
    for momentum, dampening, decay, nesterov in (
        (0, 0, 0, False),
        (0, 0, 0.1, False),
        (0.9, 0, 0, False),
        (0.9, 0.3, 0.1, False),
        (0.9, 0, 0.01, True),
    )
]
ADAM = [
    {"step": step, "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": decay, "decoupled": decoupled}
    for step, decay, decoupled in ((1, 0, False), (3, 0.1, False), (3, 0.1, True), (100, 0, True))
]


@pytest.mark.grid(6)
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("operation", "options"), [("sgd_update_all", o) for o in SGD] + [("adam_update_all", o) for o in ADAM], ids=str
)
def test_optimizers(operation, options, dtype, aligned):
    """Every parameter is updated in place as on the NumPy backend, bit for bit as alone; a NaN stays in its element."""
    rng = np.random.default_rng(1)
    # Of several blocks, of less than one, of nothing; more than a launch takes.
    sizes = (1031, 1, 0, 5, 128, 700, *range(2, 18))
    has_state = operation == "adam_update_all" or options["momentum"] != 0
    groups = [[elements(rng, size, dtype, aligned=aligned) for size in sizes] for _ in range(3)]
    if not has_state:
        groups[2] = [None] * len(sizes)
    if operation == "adam_update_all":
        groups.append([np.abs(elements(rng, size, dtype, aligned=True)) for size in sizes])
    expected = copies(groups, aligned=True)
    with np.errstate(invalid="ignore", over="ignore"):
        getattr(numpy_backend, operation)(*expected, **options)
    for module in modules(operation):
        names = inspect.signature(module.numbers_of).parameters
        row = module.numbers_of(**{name: options[name] for name in names})
        terms = {name: options[name] for name in DESCRIBED[operation].numbers}

        def update(groups, tiling, module=module, row=row, terms=terms):
            sizes = tuple(array.size for array in groups[0])
            # The step's numbers are the second row's, which each block of the step before has moved on to.
            numbers = module.numbers_array([[np.nan] * len(row), row], sizes, dtype)
            numbers[1 : module.numbers_size(sizes, 0, 0)] = 1
            run(module, (*groups, numbers), (), sizes, tiling, **terms)

        alone = copies(groups, aligned=True)
        for number, size in enumerate(sizes):
            if size:
                update([[group[number]] for group in alone], module.tilings((size,))[number % 3])
        for tiling in sampled(module.tilings(sizes), 1, (options, dtype, aligned)):
            ours = copies(groups, aligned=aligned)
            update(ours, tiling)
            for group, wanted, single in zip(ours, expected, alone, strict=True):
                for array, right, same in zip(group, wanted, single, strict=True):
                    if array is not None:
                        np.testing.assert_allclose(array, right, **TOLERANCE[dtype])
                        np.testing.assert_array_equal(array, same)


@pytest.mark.parametrize(
    ("operation", "options", "dtype"),
    [("sgd_update_all", SGD[3], "float32"), ("adam_update_all", ADAM[1], "float64")],
    ids=["sgd", "adam"],
)
def test_updates_of_parts(operation, options, dtype):
    """Gradients and parameters have the bits of sums by themselves and an update after them, whatever the tiling.

    Of one row and of fewer rows than threads add up, of more; of two parameters and of one; in two launches.
    """
    rng = np.random.default_rng(2)
    sizes = (21, 6, 10, 7, 0, *[1] * 13, 9)
    sums = (PartialSums((0, 1), 70), PartialSums((3,), 1), PartialSums((18, 2), 33))
    geometry = UpdateGeometry(sizes, sums)
    grads = [elements(rng, size, dtype, aligned=True) for size in sizes]
    rows = [rng.standard_normal((one.parts, geometry.row(one))).astype(dtype) for one in sums]
    rows[0][2, :5] = [np.nan, np.inf, -np.inf, -0.0, 0]
    params, *states = ([np.abs(elements(rng, size, dtype, aligned=True)) for size in sizes] for _ in range(3))
    states = states[: 2 if operation == "adam_update_all" else 1]
    alone = [_copy(grad, aligned=True) for grad in grads]
    for one, row in zip(sums, rows, strict=True):
        whole = nothing(row.shape[1], dtype)
        added = partial_sums.sum_parts(row.ravel(), whole, one.parts)
        added.launch(None, *added.arguments)
        np.testing.assert_allclose(whole, row.sum(0), **TOLERANCE[dtype])
        for number, part in zip(one.members, np.split(whole, np.cumsum([sizes[n] for n in one.members])), strict=False):
            alone[number] = part.copy()
    expected = copies([params, *states], aligned=True)
    for module in modules(f"{operation}_of_parts"):
        names = inspect.signature(module.numbers_of).parameters
        row = module.numbers_of(**{name: options[name] for name in names})
        terms = {name: options[name] for name in DESCRIBED[operation].numbers}
        plain = load(operation, "one_launch")
        given = (expected[0], alone, *expected[1:], module.numbers_array([row], sizes, dtype))
        run(plain, given, (), sizes, plain.tilings(sizes)[0], **terms)
        for tiling in module.tilings(geometry):
            ours, found = copies([params, *states], aligned=True), copies([grads], aligned=True)[0]
            for one in sums:
                for number in one.members:
                    found[number][...] = 77
            numbers = module.numbers_array([row], geometry, dtype)
            run(module, (ours[0], found, rows, *ours[1:], numbers), (), geometry, tiling, **terms)
            for group, wanted in zip([found, *ours], [alone, *expected], strict=True):
                for array, right in zip(group, wanted, strict=True):
                    np.testing.assert_array_equal(array, right)


def test_sums_that_an_update_does_not_take():
    """More than its arguments have place for, or rows that are added up in another order by themselves."""
    module = load("sgd_update_all_of_parts", "one_launch")
    assert module.supports(UpdateGeometry((3, 5), (PartialSums((1, 0), 9),)))
    many = UpdateGeometry((2,) * 9, tuple(PartialSums((number,), 2) for number in range(9)))
    assert "place for 8" in module.supports(many)
    assert "in another order" in module.supports(UpdateGeometry((20_000,), (PartialSums((0,), 2),)))


def copies(groups, *, aligned):
    """Copies of lists of arrays; see :func:`_copy`."""
    return [[_copy(array, aligned=aligned) for array in group] for group in groups]


def _copy(array, *, aligned):
    """A copy that begins at a multiple of 16 bytes, or does not; None stays None."""
    if array is None:
        return None
    copy = np.empty(array.size + 1, array.dtype)[0 if aligned else 1 :][: array.size]
    copy[...] = array
    return copy


# -- windows -----------------------------------------------------------------------------------------------------------


def pooled(case):
    return Pool2dGeometry.of(case.input, case.kernel, **case.keywords)


TINY_POOLS = [case for case in cases.POOL_CASES if case.tiny]


@pytest.mark.grid(3)
@pytest.mark.parametrize("case", TINY_POOLS, ids=str)
def test_max_pool2d(case):
    """Maxima, winners and gradients are the reference's, ties included."""
    geometry, arguments = pooled(case), (case.kernel, case.stride, case.padding, case.dilation, case.ceil_mode)
    for dtype, array in sampled(itertools.product(TOLERANCE, (case.array, case.tied)), 2, case):
        x = array(dtype)
        maxima, indices = reference.max_pool2d(x, *arguments)
        grad = cases.generator(case.name).standard_normal(maxima.shape).astype(dtype)
        for module in modules("max_pool2d"):
            for tiling in module.tilings(geometry):
                out, winners = nothing(maxima.shape, dtype), nothing(maxima.shape, np.uint8)
                run(module, (x,), (out, winners), geometry, tiling)
                np.testing.assert_array_equal(out, maxima)
                np.testing.assert_array_equal(numpy_backend.max_pool2d_indices(winners, geometry), indices)
        expected = reference.max_pool2d_grad(grad, indices, x.shape)
        winners = np.ascontiguousarray(numpy_backend.max_pool2d(x, geometry)[1])
        for module in modules("max_pool2d_grad"):
            for tiling in module.tilings(geometry):
                out = nothing(x.shape, dtype)
                run(module, (grad, winners), (out,), geometry, tiling)
                np.testing.assert_allclose(out, expected, **TOLERANCE[dtype])


@pytest.mark.grid(5)
@pytest.mark.parametrize(("count_include_pad", "divisor_override"), [(True, None), (False, None), (True, 3)])
@pytest.mark.parametrize("case", [case for case in TINY_POOLS if not case.dilated], ids=str)
def test_avg_pool2d(case, count_include_pad, divisor_override):
    """Averages and gradients are the reference's, whatever is counted."""
    geometry, options = pooled(case), {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    arguments = (case.kernel, case.stride, case.padding, case.ceil_mode)
    for dtype in sampled(TOLERANCE, 1, case):
        x = case.array(dtype)
        expected = reference.avg_pool2d(x, *arguments, **options)
        grad = cases.generator(case.name).standard_normal(expected.shape).astype(dtype)
        for module in modules("avg_pool2d"):
            out = nothing(expected.shape, dtype)
            run(module, (x,), (out,), geometry, module.tilings(geometry)[-1], **options)
            np.testing.assert_allclose(out, expected, **TOLERANCE[dtype])
        expected = reference.avg_pool2d_grad(grad, x, *arguments, **options)
        for module in modules("avg_pool2d_grad"):
            out = nothing(x.shape, dtype)
            run(module, (grad,), (out,), geometry, module.tilings(geometry)[-1], **options)
            np.testing.assert_allclose(out, expected, **TOLERANCE[dtype])


@pytest.mark.parametrize(
    "arguments",
    [((2, 3, 8, 12), 2), ((1, 2, 8, 8), 4), ((2, 2, 7, 9), 3, 2, 1), ((1, 2, 9, 8), (2, 3), 1, (0, 1), (2, 1), True)],
    ids=str,
)
def test_pooling_of_what_is_not_finite(arguments):
    """A NaN wins over all, the last of several; -inf wins where there is nothing else; padding never does."""
    names = ("stride", "padding", "dilation", "ceil_mode")
    geometry = Pool2dGeometry.of(*arguments[:2], **dict(zip(names, arguments[2:], strict=False)))
    rng = np.random.default_rng(2)
    x = rng.choice(np.array([-np.inf, -np.inf, -np.inf, 1, np.nan, np.inf], np.float32), geometry.input_shape)
    maxima, winners = numpy_backend.max_pool2d(x, geometry)
    for module in modules("max_pool2d"):
        ours = nothing(maxima.shape, np.float32), nothing(maxima.shape, np.uint8)
        run(module, (x,), ours, geometry, module.tilings(geometry)[0])
        np.testing.assert_array_equal(ours[0], maxima)
        np.testing.assert_array_equal(ours[1], winners)
    winners, grad = np.ascontiguousarray(winners), rng.choice(np.array([1, np.nan, np.inf], np.float32), maxima.shape)
    with np.errstate(invalid="ignore"):
        expected = numpy_backend.max_pool2d_grad(grad, winners, geometry)
    for module in modules("max_pool2d_grad"):
        out = nothing(x.shape, np.float32)
        run(module, (grad, winners), (out,), geometry, module.tilings(geometry)[0])
        np.testing.assert_array_equal(out, expected)
    if geometry.dilation == (1, 1):
        options = {"count_include_pad": False, "divisor_override": None}
        with np.errstate(invalid="ignore"):
            expected = numpy_backend.avg_pool2d(x, geometry, **options)
        for module in modules("avg_pool2d"):
            out = nothing(maxima.shape, np.float32)
            run(module, (x,), (out,), geometry, module.tilings(geometry)[0], **options)
            np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_winners_of_large_windows():
    """A window of more than 256 elements has offsets that a byte cannot hold."""
    geometry = Pool2dGeometry.of((1, 2, 18, 19), (16, 17), stride=2)
    x = cases.distinct(np.random.default_rng(3), geometry.input_shape, np.float32)
    x[0, 0, 15, 16] = 1000
    maxima, winners = numpy_backend.max_pool2d(x, geometry)
    assert winners.max() > 255
    for module in modules("max_pool2d"):
        ours = nothing(maxima.shape, np.float32), nothing(maxima.shape, np.int32)
        run(module, (x,), ours, geometry, module.tilings(geometry)[0])
        np.testing.assert_array_equal(ours[1], winners)
    winners, grad = np.ascontiguousarray(winners), np.arange(1, 9, dtype=np.float32).reshape(maxima.shape)
    for module in modules("max_pool2d_grad"):
        out = nothing(x.shape, np.float32)
        run(module, (grad, winners), (out,), geometry, module.tilings(geometry)[0])
        np.testing.assert_array_equal(out, numpy_backend.max_pool2d_grad(grad, winners, geometry))


@pytest.mark.parametrize("operation", ["max_pool2d", "avg_pool2d", "max_pool2d_grad"])
def test_arrays_that_are_not_aligned(operation):
    """Rows of windows are read, and cells written, at once only where the array begins at a multiple of 16 bytes."""
    geometry = Pool2dGeometry.of((1, 2, 4, 8), 2)
    rng = np.random.default_rng(4)
    x = rng.standard_normal(65).astype(np.float32)[1:].reshape(geometry.input_shape)
    maxima, winners = (np.ascontiguousarray(array) for array in numpy_backend.max_pool2d(x, geometry))
    options = {"count_include_pad": True, "divisor_override": None} if operation == "avg_pool2d" else {}
    results = [nothing(maxima.shape, np.float32)]
    if operation == "max_pool2d":
        inputs, expected = (x,), (maxima, winners)
        results.append(nothing(maxima.shape, np.uint8))
    elif operation == "avg_pool2d":
        inputs, expected = (x,), (numpy_backend.avg_pool2d(x, geometry, **options),)
    else:
        inputs, expected = (maxima, winners), (numpy_backend.max_pool2d_grad(maxima, winners, geometry),)
        results = [nothing(x.size + 1, np.float32)[1:].reshape(x.shape)]
    for module in modules(operation):
        run(module, inputs, results, geometry, module.tilings(geometry)[0], **options)
        for ours, theirs in zip(results, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.grid(4)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("shape", [(1, 1), (6, 3), (13, 10), (3, 70), (2, 5000)], ids=str)
def test_softmax_cross_entropy(shape, weighted, label_smoothing, dtype):
    """Losses, probabilities and gradients are the reference's; an ignored row has the loss and the gradient zero."""
    rng = np.random.default_rng(5)
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    labels, grad = rng.integers(0, shape[1], shape[0]), rng.standard_normal(shape[0]).astype(dtype)
    if shape[0] > 1:
        labels[-1] = -100
    weight = rng.random(shape[1]).astype(dtype) if weighted else None
    arguments = (logits, labels, weight, -100, "none", label_smoothing)
    options = {"ignore_index": -100, "label_smoothing": label_smoothing}
    probabilities = reference.softmax(logits, 1)
    for module in modules("softmax_cross_entropy"):
        for tiling in module.tilings(shape):
            wrong = np.full(1, NO_WRONG_LABEL, np.int32)
            results = nothing(shape[0], dtype), nothing(shape, dtype)
            run(module, (logits, labels, weight, wrong), results, shape, tiling, **options)
            np.testing.assert_allclose(results[0], reference.cross_entropy(*arguments), **TOLERANCE[dtype])
            np.testing.assert_allclose(results[1], probabilities, **TOLERANCE[dtype])
            assert wrong[0] == NO_WRONG_LABEL
    for module in modules("softmax_cross_entropy_grad"):
        for tiling in module.tilings(shape):
            out = nothing(shape, dtype)
            run(module, (grad, probabilities.astype(dtype), labels, weight), (out,), shape, tiling, **options)
            np.testing.assert_allclose(out, reference.cross_entropy_grad(grad, *arguments), **TOLERANCE[dtype])


@pytest.mark.grid(3)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("shape", [(1, 1), (6, 3), (37, 10), (3, 70)], ids=str)
def test_softmax_cross_entropy_mean(shape, weighted, label_smoothing, dtype):
    """The mean and its gradient are the reference's; ignored rows count for nothing."""
    rng = np.random.default_rng(6)
    logits, labels = (3 * rng.standard_normal(shape)).astype(dtype), rng.integers(0, shape[1], shape[0])
    if shape[0] > 1:
        labels[[0, -1]] = -100
    weight = (0.5 + rng.random(shape[1])).astype(dtype) if weighted else None
    arguments = (logits, labels, weight, -100, "mean", label_smoothing)
    options = {"ignore_index": -100, "label_smoothing": label_smoothing}
    for module in modules("softmax_cross_entropy_mean"):
        for tiling in module.tilings(shape):
            wrong = nothing(1, np.int32)
            loss, out = nothing(1, dtype), nothing(shape, dtype)
            run(module, (logits, labels, weight), (loss, out, wrong), shape, tiling, **options)
            np.testing.assert_allclose(loss[0], reference.cross_entropy(*arguments), **TOLERANCE[dtype])
            gradient = reference.cross_entropy_grad(np.array(1.0), *arguments)
            np.testing.assert_allclose(out, gradient, **TOLERANCE[dtype])
            assert wrong[0] == NO_WRONG_LABEL


def test_a_mean_of_nothing_and_of_wrong_labels():
    """Without a row that counts the mean is NaN and gradients zero; of wrong labels the first row is told."""
    options = {"ignore_index": 1, "label_smoothing": 0.0}
    for labels, first_wrong in (([1, 1], NO_WRONG_LABEL), ([], NO_WRONG_LABEL), ([0, 1, 7, -1], 2)):
        labels = np.array(labels, np.int64)
        logits = np.ones((len(labels), 3), np.float32)
        for module in modules("softmax_cross_entropy_mean"):
            wrong = nothing(1, np.int32)
            loss, out = nothing(1, np.float32), nothing(logits.shape, np.float32)
            tiling = module.tilings(logits.shape)[0]
            run(module, (logits, labels, None), (loss, out), logits.shape, tiling, rewritten=(wrong,), **options)
            assert np.isnan(loss[0])
            assert wrong[0] == first_wrong
            np.testing.assert_array_equal(out[(labels != 0)], 0)
            assert np.isfinite(out).all()


@pytest.mark.parametrize("lanes", [4, 32, 128])
def test_softmax_of_what_is_not_finite(lanes):
    """NaN and infinite logits give what they give on the NumPy backend, and logits of any size do not overflow."""
    logits = np.zeros((6, 9), np.float32)
    logits[0, 3], logits[1, 8], logits[2, :], logits[3, 2:] = np.nan, np.inf, -np.inf, -np.inf
    logits[4], logits[5] = 1e4 * np.arange(9), -3e38
    labels = np.array([0, 8, 1, 0, 8, 3])
    options = {"ignore_index": -100, "label_smoothing": 0.0}
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        expected = numpy_backend.softmax_cross_entropy(logits, labels, weight=None, **options)
    for module in modules("softmax_cross_entropy"):
        results = nothing(6, np.float32), nothing((6, 9), np.float32)
        wrong = np.full(1, NO_WRONG_LABEL, np.int32)
        tiling = module.Tiling(128, lanes)
        run(module, (logits, labels, None, wrong), results, logits.shape, tiling, **options)
        for ours, theirs in zip(results, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_labels_that_are_no_classes_are_reported():
    """The first such row is told, and has the loss NaN; the others are computed."""
    logits, labels = np.zeros((5, 3), np.float32), np.array([2, -100, 3, 0, -1])
    options = {"ignore_index": -100, "label_smoothing": 0.0}
    for module in modules("softmax_cross_entropy"):
        results, wrong = (nothing(5, np.float32), nothing((5, 3), np.float32)), np.full(1, NO_WRONG_LABEL, np.int32)
        weight = np.ones(3, np.float32)
        tiling = module.tilings((5, 3))[0]
        run(module, (logits, labels, weight, wrong), results, (5, 3), tiling, **options)
        assert wrong[0] == 2
        np.testing.assert_allclose(results[0], [np.log(3), 0, np.nan, np.log(3), np.nan], rtol=1e-6)
    for module in modules("softmax_cross_entropy_grad"):
        out = nothing((5, 3), np.float32)
        arrays = (np.ones(5, np.float32), np.full((5, 3), 0.5, np.float32), labels, weight)
        run(module, arrays, (out,), (5, 3), module.tilings((5, 3))[0], **options)
        np.testing.assert_array_equal(out.any(axis=1), [True, False, False, True, False])


@pytest.mark.grid(3)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("classes", [1, 3, 10, 70, 260])
def test_count_correct(classes, dtype):
    """As many as by NumPy's argmax, of ties and NaN too; no label that is no class is right; nothing of nothing."""
    rng = np.random.default_rng(7)
    for rows in (0, 1, 63, 65, 300) if classes < 100 else (3, 41):
        logits = rng.integers(0, 3, (rows, classes)).astype(dtype)  # many are equal
        logits[rng.random(logits.shape) < 0.05] = np.nan
        logits[rng.random(logits.shape) < 0.1] = -np.inf
        logits[rows // 2 : rows // 2 + 1] = -np.inf
        largest = logits.argmax(1)
        labels = np.where(rng.random(rows) < 0.6, largest, rng.integers(-1, classes + 1, rows))
        for module in modules("count_correct"):
            for tiling in module.tilings(logits.shape):
                out = nothing(1, np.int32)
                run(module, (logits, labels), (out,), logits.shape, tiling)
                assert out[0] == (largest == labels).sum()
        assert numpy_backend.count_correct(logits, labels) == (largest == labels).sum()


# -- images ------------------------------------------------------------------------------------------------------------

#: Batch, set, image, input: rows of inputs of 4, 2 and 1 elements at once; padding that is odd, or none; one pixel.
IMAGE_BATCHES = [
    (3, 5, 4, 4, 8, 8),
    (2, 3, 5, 3, 7, 6),
    (1, 2, 1, 1, 1, 1),
    (4, 4, 3, 5, 4, 5),
    (2, 2, 9, 20, 10, 28),
    (5, 1, 2, 7, 2, 9),
]


def image_set(geometry, dtype):
    """A table, images, labels, numbers of images (each of them the last one, too), and transforms."""
    g, rng = geometry, np.random.default_rng(8)
    transform = InputTransform((g.p, g.q), 0.13, 0.31)
    images, labels = rng.integers(0, 256, (g.total, g.h, g.w), np.uint8), rng.integers(0, 10, g.total)
    index = np.append(rng.integers(0, g.total, g.n - 1), g.total - 1)
    transforms = [[1, 0, 0], [0, 1, 0]] + rng.standard_normal((g.total, 2, 3)) * [0.3, 0.3, 2]
    table = ((np.arange(256) / 255 - transform.mean) / transform.std).astype(dtype)
    return transform, (table, images, labels, index, transforms.astype(dtype))


@pytest.mark.grid(3)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", IMAGE_BATCHES, ids=str)
def test_image_batch(shape, dtype):
    """In its place an image is what the host's transform makes of it, bit for bit; moved, what the formula says."""
    for warps in (False, True):
        g = ImageBatchGeometry(*shape, warps=warps)
        transform, (table, images, labels, index, transforms) = image_set(g, dtype)
        expected = reference.image_batch(table, images, index, transforms if warps else None, (g.p, g.q))
        still = np.zeros_like(transforms) + np.array([[1, 0, 0], [0, 1, 0]], dtype)
        runs = [(module, tiling) for module in modules("image_batch") for tiling in module.tilings(g)]
        for module, tiling in runs:
            out, found = nothing(expected.shape, dtype), nothing(g.n, np.int64)
            run(module, (table, images, labels, index, transforms if warps else None), (out, found), g, tiling)
            # A position is rounded, and up to 255 steps of the table lie between two pixels.
            np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4 if dtype == "float32" else 1e-11)
            np.testing.assert_array_equal(found, labels[index])
            if warps:
                run(module, (table, images, labels, index, still), (out, found), g, tiling)
            if dtype == "float32":
                np.testing.assert_array_equal(out, transform(images[index]))


def test_images_that_there_are_not():
    """A number outside of the set reads nothing: pixels are NaN and the label is -1, those of the others as always."""
    for warps in (False, True):
        g = ImageBatchGeometry(5, 3, 3, 4, 5, 6, warps=warps)
        _, (table, images, labels, _, transforms) = image_set(g, np.float32)
        index = np.array([0, 3, -1, 2, 2**40])
        for module in modules("image_batch"):
            out, found = nothing((5, 1, 5, 6), np.float32), nothing(5, np.int64)
            # The trace would find a read outside of an array.
            run(module, (table, images, labels, index, transforms), (out, found), g, module.tilings(g)[0])
            assert np.isnan(out[[1, 2, 4]]).all()
            assert np.isfinite(out[[0, 3]]).all()
            np.testing.assert_array_equal(found, [labels[0], -1, -1, labels[2], -1])
        nobody = g._replace(n=2, total=0)
        out, found = nothing((2, 1, 5, 6), np.float32), nothing(2, np.int64)
        none = images[:0], labels[:0], index[:2], transforms[:0]
        run(module, (table, *none), (out, found), nobody, module.tilings(nobody)[0])
        assert np.isnan(out).all()
    with pytest.raises(IndexError, match=r"index\[1\] is 3, but there are 3 images"):
        numpy_backend.image_batch(table, images, labels, index, None, (5, 6))
    with pytest.raises(IndexError, match=r"index\[0\] is -1"):
        numpy_backend.image_batch(table, images, labels, index[2:3], None, (5, 6))


def test_transforms_to_nowhere():
    """What is moved out of sight, or by what is no number, is black, and nothing outside of the image is read."""
    g = ImageBatchGeometry(6, 6, 4, 4, 6, 6, warps=True)
    _, (table, images, labels, _, transforms) = image_set(g, np.float32)
    transforms[0], transforms[1], transforms[2, 0, 2], transforms[3, 1, 1] = np.nan, np.inf, 1e30, -np.inf
    transforms[4, :, 2] = 4.5, 0
    transforms[5] = [[1, 0, 0.5], [0, 1, -0.5]]
    index = np.arange(6)
    for module in modules("image_batch"):
        out, found = nothing((6, 1, 6, 6), np.float32), nothing(6, np.int64)
        with np.errstate(invalid="ignore", over="ignore"):
            run(module, (table, images, labels, index, transforms), (out, found), g, module.tilings(g)[0])
            expected = numpy_backend.image_batch(table, images, labels, index, transforms, (6, 6))[0]
        np.testing.assert_array_equal(out[:4], table[0])
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)
        # Half a pixel to the left and down: the mean of four.
        corner = table[images[5, :2, :2]].mean()
        np.testing.assert_allclose(out[5, 0, 2, 1], corner, rtol=1e-5)


def test_inputs_that_are_not_aligned():
    """Pixels are stored four at a time only where the result begins at a multiple of 16 bytes."""
    g = ImageBatchGeometry(2, 2, 6, 6, 8, 8, warps=False)
    transform, (table, images, labels, index, _) = image_set(g, np.float32)
    for module in modules("image_batch"):
        out, found = nothing(129, np.float32)[1:].reshape(2, 1, 8, 8), nothing(2, np.int64)
        run(module, (table, images, labels, index, None), (out, found), g, module.tilings(g)[0])
        np.testing.assert_array_equal(out, transform(images[index]))


# -- limits ------------------------------------------------------------------------------------------------------------


def test_more_logits_than_a_block_takes():
    """One block does not keep a GPU busy: large batches are refused, and composed."""
    for module in modules("softmax_cross_entropy_mean"):
        with pytest.raises(ValueError, match="softmax_cross_entropy_mean: 4096x10 logits are too many for one block"):
            module.launches((4096, 10), module.tilings((4096, 10))[0], np.float32)


@pytest.mark.parametrize("operation", sorted(OPERATIONS - {"softmax_cross_entropy_mean", "count_correct"}))
def test_empty_and_too_large(operation):
    """Nothing is launched for an empty batch; sizes that need 64-bit offsets are refused, with what would do."""
    if operation.endswith("_all"):
        empty, large = (0, 0), (3, 2**31)
    elif operation.endswith("_of_parts"):
        empty, large = (UpdateGeometry(sizes, ()) for sizes in ((0, 0), (3, 2**31)))
    elif operation == "image_batch":
        # However large the set is: that is no matter of the batch.
        empty, large = (ImageBatchGeometry(n, 2**40, 32, 32, 32, 32, warps=False) for n in (0, 2**21))
    elif "pool" in operation:
        empty, large = (Pool2dGeometry.of((n, 8, 16, 16), 2) for n in (0, 2**20))
    else:
        empty, large = (0, 2**11), (2**20, 2**11)
    for module in modules(operation):
        assert module.launches(empty, module.tilings(empty)[0], np.float32) == ()
        assert not module.supports(large)
        with pytest.raises(ValueError, match=f"{operation}: .* has .* needs 64-bit offsets.* Split the batch"):
            module.launches(large, module.tilings(large)[0], np.float32)
