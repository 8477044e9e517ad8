"""Every kind of operation once, on device arrays beside the host's: with CuPy on a GPU, and with its stand-in."""

import functools

import numpy as np
from support.operation_cases import FAMILIES

import gpuconv
from gpuconv import Tensor, nn
from gpuconv import functional as F

X = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
LABELS = np.array([1, 0])
WEIGHT = np.arange(1, 5, dtype=np.float32)

FUNCTIONS = [
    F.relu,
    F.sigmoid,
    F.tanh,
    lambda x: F.softmax(x, 1),
    lambda x: F.log_softmax(x, 1),
    lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    lambda x: F.avg_pool2d(x, 2, 2, 1),
    lambda x: F.sum_pool2d(x, 2),
    lambda x: F.adaptive_avg_pool2d(x, (4, 1)),
    lambda x: F.conv1d(x[:, :, 0], np.ones((2, 4, 3), np.float32)),
    lambda x: F.conv2d(x, np.ones((4, 1, 3, 3), np.float32), None, 2, "valid", 1, 4),
    lambda x: F.linear(x, np.ones((3, 6), np.float32), np.ones(3, np.float32)),
    lambda x: F.flatten(x, 2).mean(1, keepdim=True),
    lambda x: F.mse_loss(x, np.zeros(x.shape, np.float32)),
    lambda x: F.half_squared_error(x, np.zeros(x.shape, np.float32)),
    lambda x: F.cross_entropy(F.flatten(x, 1)[:, :4], LABELS, WEIGHT, label_smoothing=0.1),
    lambda x: F.dropout(x, 0.5, generator=np.random.default_rng(0)),
    lambda x: (1 - x) / (2 + x * x) + x**2 @ x.T.permute(2, 3, 1, 0).permute(2, 3, 0, 1).reshape(2, 4, 6, 6) - -x,
    lambda x: (x * x + 1).log().exp()[np.array([0, 0, 1])].sum((0, 2)),
]


def compare(cupy, number=None):
    """Values and gradients on device arrays equal the NumPy backend's, and stay on the device; of one, or of each."""
    for one in range(len(FUNCTIONS)) if number is None else [number]:
        function, found = FUNCTIONS[one], []
        for leaf in (Tensor(cupy.asarray(X), True), Tensor(X, True)):
            with gpuconv.use_backend("cuda" if leaf.data is not X else "numpy"):
                y = function(leaf)
                y.backward(np.ones(y.shape, np.float32))
            assert type(y.data) is type(leaf.data), one
            found += [y.numpy(), leaf.grad.numpy()]
        np.testing.assert_allclose(found[0], found[2], rtol=1e-4, atol=1e-5, err_msg=str(one))
        np.testing.assert_allclose(found[1], found[3], rtol=1e-4, atol=1e-5, err_msg=str(one))


def compare_family(cupy, family):
    """Each call of `operation_cases.py` in both float types, on device arrays beside the NumPy backend.

    Results and gradients agree and stay on the device. All calls are made, and what is wrong with some is in one
    AssertionError: the next run on a GPU may be weeks away.
    """
    _all_right(
        (case, sample, functools.partial(_compare_call, cupy, case, sample, dtype))
        for case in FAMILIES[family]
        for number, sample in enumerate(case.samples)
        for dtype in ((np.float32, np.float64) if number == 0 else (np.float32,))
    )


def compare_captured(cupy, cases):
    """The first sample of each call, forward and backward, inside of a captured step, which gets other values then."""
    _all_right(
        (case, case.samples[0], functools.partial(_compare_captured, cupy, case))
        for case in cases
        if case.name not in NOT_CAPTURED
    )


def compare_half(cupy, dtype):
    """A small network in a half type: logits and gradients as on the host, to a few units in the last place."""
    found = []
    for backend in ("numpy", "cuda"):
        with gpuconv.use_backend(backend):
            gpuconv.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(4, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(72, 3),
            ).to(backend, dtype)
            x = Tensor(X if backend == "numpy" else cupy.asarray(X)).to(dtype)
            loss = F.cross_entropy(model(x), LABELS)
            loss.backward()
            assert all(str(p.grad.dtype) == str(p.dtype) == str(np.dtype(dtype)) for p in model.parameters())
            found.append([loss.float().numpy(), *(p.grad.float().numpy() for p in model.parameters())])
    for ours, theirs in zip(*found, strict=True):
        largest = max(np.abs(theirs).max(), 1e-2)
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=largest * {"float16": 1e-2}.get(str(np.dtype(dtype)), 5e-2)
        )


def _all_right(checks):
    wrong = []
    for case, sample, check in checks:
        try:
            with np.errstate(divide="ignore", invalid="ignore"):  # NumPy tells of them, a GPU does not
                check()
        except Exception as error:
            shapes = [one.shape for one in sample]
            wrong.append(f"{case} of {shapes}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong)


#: The number of classes is the largest value, which the host has to know.
NOT_CAPTURED = ("one_hot",)


def _compare_captured(cupy, case):
    step, first, second, wanted = case.step()
    with gpuconv.use_backend("numpy"):
        theirs = [one.numpy() for one in step(*map(Tensor, second, wanted))]
    with gpuconv.use_backend("cuda"):
        captured = gpuconv.capture(step, warmup=1)
        for values in (first, first, second):
            results = captured(*(Tensor(cupy.asarray(array), grad) for array, grad in zip(values, wanted, strict=True)))
        assert captured.captured
        ours = [one.numpy() for one in results]
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        largest = np.max(np.abs(other), initial=1.0, where=np.isfinite(other)) if other.dtype.kind == "f" else 0
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * largest)


def _compare_call(cupy, case, sample, dtype):
    arrays = case.draw(sample, dtype)
    found = {}
    for backend in ("numpy", "cuda"):
        with gpuconv.use_backend(backend):
            own = [array if backend == "numpy" else cupy.asarray(array) for array in arrays]
            inputs = [
                Tensor(array, requires_grad=one.grad and array.dtype.kind == "f")
                for one, array in zip(sample, own, strict=True)
            ]
            results = case.call(gpuconv, *inputs)
            results = list(results) if isinstance(results, (tuple, list)) else [results]
            rng = np.random.default_rng(1)
            for result in results:
                assert backend == "numpy" or type(result.data) is cupy.ndarray, "a result left the device"
                if result.requires_grad:
                    result.backward(np.asarray(rng.standard_normal(result.shape), result.dtype), retain_graph=True)
            found[backend] = [one.numpy() for one in results]
            # Gradients at NaN and infinities are not compared, see test_operations.py.
            for leaf, array in zip(inputs, arrays, strict=True):
                if leaf.grad is not None:
                    assert backend == "numpy" or type(leaf.grad.data) is cupy.ndarray, "a gradient left the device"
                    found[backend].append(np.where(np.isfinite(array), leaf.grad.numpy(), 0))
    assert len(found["cuda"]) == len(found["numpy"])
    for ours, theirs in zip(found["cuda"], found["numpy"], strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        largest = np.max(np.abs(theirs), initial=1.0, where=np.isfinite(theirs)) if theirs.dtype.kind == "f" else 0
        # By the result's type: of integers, most functions are computed in float32.
        tolerance = 1e-9 if theirs.dtype == np.float64 else 1e-4
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * largest)
