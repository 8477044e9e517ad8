"""Operations that are made of the array library's functions: PyTorch judges values, types and gradients of each call of
`operation_cases.py`, over element types, memory layouts, empty arrays and single numbers; finite differences the
gradients where there is no PyTorch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from support.operation_cases import FAMILIES, INF, MODULES, NAN, REFUSED, Case, In
from support.sampling import sampled

import gpuconv
import gpuconv.functional as F
from gpuconv import Tensor, gradcheck
from gpuconv.autograd import GradcheckError
from gpuconv.backends import Backend

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="pip install torch to compare with PyTorch")
#: Relative to the largest expected value: of results, of gradients.
TOLERANCE = {np.dtype(np.float32): (1e-5, 1e-4), np.dtype(np.float64): (1e-10, 1e-10)}

OPERATIONS: dict[str, list[Case]] = {}
for _case in itertools.chain(*FAMILIES.values()):
    OPERATIONS.setdefault(_case.operation, []).append(_case)

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*degrees of freedom"),
    pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss"),
    pytest.mark.filterwarnings("ignore:.*nn.functional.upsample. is deprecated"),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    """The tensors are tiny: handing them to threads takes longer than the arithmetic."""
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _strided(array: np.ndarray) -> np.ndarray:
    """Every second element of an array that is twice as long in each dimension."""
    wide = np.zeros([2 * n for n in array.shape], array.dtype)
    view = wide[(..., *[slice(1, None, 2)] * array.ndim)]
    view[...] = array
    return view


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda a: a,
    "fortran": lambda a: np.asarray(a, order="F"),
    "transposed": lambda a: np.ascontiguousarray(a.swapaxes(0, -1)).swapaxes(0, -1) if a.ndim else a,
    "strided": _strided,
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1] if a.ndim else a,
}


def _parts(result: Any) -> list[Any]:
    """The results of a call in a list."""
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _assert_same(got: np.ndarray, expected: Any, tolerance: float, what: str) -> None:
    expected = expected.detach().numpy()
    assert got.shape == expected.shape, what
    assert got.dtype == expected.dtype, what
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, expected, err_msg=what)
        return
    largest = np.max(np.abs(expected), initial=1.0, where=np.isfinite(expected))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * largest, err_msg=what)


def _allowed(case: Case, value: Tensor, of: int) -> float:
    return max(case.tolerance, TOLERANCE.get(value.dtype, (0.0, 0.0))[of])


def _compare(case: Case, sample: Sequence[In], dtype: Any, layout: str) -> None:
    """Results and gradients of one call in both libraries."""
    what = f"{case} of {[one.shape for one in sample]}, {layout}"
    arrays = case.draw(sample, dtype)
    wanted = [one.grad and array.dtype.kind == "f" for one, array in zip(sample, arrays, strict=True)]
    theirs_in = [torch.tensor(array, requires_grad=grad) for array, grad in zip(arrays, wanted, strict=True)]
    laid = [LAYOUTS[layout](array) for array in arrays]
    for array in laid:
        array.flags.writeable = False  # no operation writes into what it is given
    ours_in = [Tensor(array, requires_grad=grad) for array, grad in zip(laid, wanted, strict=True)]
    expected, got = (_parts(case.call(L, *inputs)) for L, inputs in ((torch, theirs_in), (gpuconv, ours_in)))
    assert len(got) == len(expected), what
    rng = np.random.default_rng(1)
    for mine, yours in zip(got, expected, strict=True):
        assert isinstance(mine, Tensor), what
        _assert_same(mine.numpy(), yours, _allowed(case, mine, 0), what)
        assert mine.requires_grad == yours.requires_grad, what
        if mine.requires_grad:
            grad = np.asarray(rng.standard_normal(mine.shape), mine.dtype)
            mine.backward(grad, retain_graph=True)
            yours.backward(torch.tensor(grad), retain_graph=True)
    for position, (mine, yours) in enumerate(zip(ours_in, theirs_in, strict=True)):
        if not mine.requires_grad or yours.grad is None or (mine.grad is None and mine.numel() == 0):
            continue
        assert mine.grad is not None, f"{what}: input {position}"
        # At NaN and infinities the gradients of PyTorch's own vector and scalar loops differ.
        finite = np.isfinite(mine.numpy())
        got_grad, expected_grad = mine.grad.numpy()[finite], yours.grad[torch.tensor(finite)]
        _assert_same(got_grad, expected_grad, _allowed(case, mine, 1), f"{what}: gradient of input {position}")


@needs_torch
@pytest.mark.grid(2)
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_against_torch(operation: str) -> None:
    """Values, element types, shapes and gradients of every sample, in both float types, and memory layouts."""
    turn = itertools.cycle(list(LAYOUTS)[1:])
    for case in OPERATIONS[operation]:
        for sample in case.samples:
            for dtype in (np.float64, np.float32):
                _compare(case, sample, dtype, "contiguous")
            # One of the other layouts in turn: each operation meets all of them.
            _compare(case, sample, np.float64, next(turn))


@needs_torch
@pytest.mark.parametrize("family", FAMILIES)
def test_on_every_backend(family: str, every_backend: Backend) -> None:
    """The smallest sample of each call on each backend, the simulator of kernels included."""
    cases = FAMILIES[family]
    # In the simulator a call takes a hundred times as long.
    for case in cases if every_backend.automatic() else sampled(cases, -(-len(cases) // 2), family):
        _compare(case, case.samples[0], np.float32, "contiguous")


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("family", FAMILIES)
def test_arrays_in_arrays_out(family: str) -> None:
    """NumPy arrays give NumPy arrays, with the values that Tensors give."""
    for case in FAMILIES[family]:
        if not case.arrays:
            continue
        arrays = case.draw(case.samples[0], np.float32)
        expected = _parts(case.call(gpuconv, *map(Tensor, arrays)))
        for got, tensor in zip(_parts(case.call(gpuconv, *arrays)), expected, strict=True):
            assert isinstance(got, np.ndarray), case
            np.testing.assert_array_equal(got, tensor.numpy(), strict=True, err_msg=str(case))


def _first(result: Any) -> Tensor:
    return _parts(result)[0]


@pytest.mark.grid(2)
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_are_finite_differences(operation: str) -> None:
    """In float64, on the smallest sample, for each input that has a gradient."""
    for case in OPERATIONS[operation]:
        arrays = case.draw(case.samples[0], np.float64)
        tensors = [
            Tensor(array, requires_grad=one.grad and array.dtype.kind == "f")
            for one, array in zip(case.samples[0], arrays, strict=True)
        ]
        if case.smooth and _first(case.call(gpuconv, *tensors)).requires_grad:
            try:
                gradcheck(lambda *inputs, case=case: _first(case.call(gpuconv, *inputs)), tensors)
            except GradcheckError as error:
                pytest.fail(f"{case}: {error}")


@needs_torch
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("name", "arguments", "keywords", "shape"), MODULES, ids=lambda value: str(value)[:30])
def test_modules(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any], shape: tuple[int, ...]) -> None:
    """A module has PyTorch's arguments, state and gradients, training and evaluating; it leaves its input alone."""
    theirs, ours = (getattr(L.nn, name)(*arguments, **keywords) for L in (torch, gpuconv))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    rng = np.random.default_rng(2)
    for mode in (True, True, False):
        theirs.train(mode)
        ours.train(mode)
        x = np.asarray(rng.standard_normal(shape), np.float32)
        mine = Tensor(x.copy(), requires_grad=True)
        leaf = torch.tensor(x, requires_grad=True)
        got, expected = ours(mine), theirs(leaf * 1)
        _assert_same(got.numpy(), expected, 1e-5, name)
        np.testing.assert_array_equal(mine.numpy(), x)
        grad = np.asarray(rng.standard_normal(got.shape), np.float32)
        got.backward(grad)
        expected.backward(torch.tensor(grad))
        _assert_same(mine.grad.numpy(), leaf.grad, 1e-4, name)
        for (label, parameter), (_, theirs_parameter) in zip(
            ours.named_parameters(), theirs.named_parameters(), strict=True
        ):
            _assert_same(parameter.grad.numpy(), theirs_parameter.grad, 1e-4, f"{name}: {label}")
        for (label, value), expected_value in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            _assert_same(value, expected_value, 1e-5, f"{name}: {label}")


@pytest.mark.parametrize(("call", "error", "words"), REFUSED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_refusals(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    """A bad argument is refused by a message that begins with the function's name and names the argument."""
    with pytest.raises(error, match=words):
        call()


def test_creation() -> None:
    """Tensors out of nothing have PyTorch's shapes, types and values."""
    if torch is None:
        pytest.skip("pip install torch to compare with PyTorch")
    for call in [
        lambda L: L.zeros(2, 3),
        lambda L: L.zeros((2, 0)),
        lambda L: L.zeros([]),
        lambda L: L.ones(4),
        lambda L: L.full((2, 3), 7),
        lambda L: L.full((2,), 0.5),
        lambda L: L.full((2,), True),
        lambda L: L.full([], 1.0),
        lambda L: L.eye(2),
        lambda L: L.eye(2, 3),
        lambda L: L.arange(5),
        lambda L: L.arange(1, 2.5, 0.5),
        lambda L: L.arange(5, 1, -2),
        lambda L: L.arange(0),
        lambda L: L.linspace(0, 1, 5),
        lambda L: L.linspace(0, 1, 1),
        lambda L: L.tensor([[1, 2], [3, 4]]),
        lambda L: L.tensor(1.5),
        lambda L: L.tensor([True, False]),
        lambda L: L.from_numpy(np.arange(3)),
        lambda L: L.zeros_like(L.arange(3)),
        lambda L: L.ones_like(L.zeros(2, 3)),
        lambda L: L.full_like(L.zeros(2), 3),
        lambda L: L.zeros_like(L.zeros(2), dtype=L.int64, device="cpu"),
        lambda L: L.ones_like(L.arange(2), dtype=L.float64, device=L.device("cpu")),
        lambda L: L.full_like(L.arange(2), 0.5, dtype=L.float32),
    ]:
        _assert_same(call(gpuconv).numpy(), call(torch), 1e-7, "creation")
    for call in [
        lambda L: L.rand(2, 3),
        lambda L: L.randn((2, 3)),
        lambda L: L.randint(3, (2,)),
        lambda L: L.randint(1, 3, (2, 2)),
        lambda L: L.randperm(4),
        lambda L: L.empty(2, 3),
        lambda L: L.empty_like(L.zeros(3)),
        lambda L: L.rand_like(L.zeros(3)),
        lambda L: L.randn_like(L.zeros(3)),
        lambda L: L.empty_like(L.zeros(3), dtype=L.int32, device="cpu"),
        lambda L: L.rand_like(L.arange(3), dtype=L.float32, device="cpu"),
        lambda L: L.randn_like(L.zeros(3), dtype=L.float64, device="cpu"),
    ]:
        mine, yours = call(gpuconv), call(torch)
        assert (mine.shape, mine.numpy().dtype) == (tuple(yours.shape), yours.numpy().dtype)
    values = np.zeros(2, np.float32)
    assert np.shares_memory(gpuconv.from_numpy(values).data, values)
    assert not np.shares_memory(gpuconv.tensor(values).data, values)
    assert gpuconv.tensor([1.0], requires_grad=True).requires_grad
    gpuconv.manual_seed(3)
    first = gpuconv.randn(3).tolist()
    gpuconv.manual_seed(3)
    assert gpuconv.randn(3).tolist() == first
    assert gpuconv.zeros(2, dtype=np.int64).dtype == np.int64
    assert gpuconv.rand_like(values, requires_grad=True).requires_grad
    assert sorted(gpuconv.randperm(5).tolist()) == [0, 1, 2, 3, 4]


def test_what_tensors_are_asked() -> None:
    """size, dim, tolist, contiguity."""
    x = gpuconv.arange(6).view(2, 3)
    assert (x.size(), x.size(-1), x.dim(), x.tolist()) == ((2, 3), 3, 2, [[0, 1, 2], [3, 4, 5]])
    assert x.is_contiguous()
    assert not x.t().is_contiguous()
    assert x.contiguous() is x
    assert x.t().contiguous().is_contiguous()
    assert gpuconv.zeros(1).is_floating_point()
    assert not x.is_floating_point()
    assert gpuconv.tensor(2).tolist() == 2
    assert not np.shares_memory(x.clone().data, x.data)
    assert not gpuconv.tensor([1.5], requires_grad=True).long().requires_grad


@needs_torch
@pytest.mark.usefixtures("backend")
def test_what_is_asked_of_two_tensors() -> None:
    """equal and allclose answer with a bool: shapes count, and NaN is close to itself on request only."""
    for values, others in [([1.0, 2.0], [1.0, 2.0]), ([1.0, NAN], [1.0 + 1e-6, NAN]), ([1.0], [1.0, 1.0]), ([], [])]:
        for call in (
            lambda L, x, y: L.equal(x, y),
            lambda L, x, y: L.allclose(x, y),
            lambda L, x, y: x.allclose(y, equal_nan=True),
            lambda L, x, y: x.allclose(y, 0.0, 1e-3),
        ):
            got, expected = (call(L, L.tensor(values), L.tensor(others)) for L in (gpuconv, torch))
            assert got is expected, (values, others)


@needs_torch
def test_infinity_becomes_the_largest_number_of_its_type() -> None:
    """nan_to_num, of each type of floats."""
    for kind in ("float16", "float32", "float64"):
        got, expected = (
            L.nan_to_num(L.tensor([INF, -INF, NAN], dtype=getattr(L, kind))).numpy() for L in (gpuconv, torch)
        )
        np.testing.assert_array_equal(got, expected, strict=True)


def test_numpys_functions_take_tensors() -> None:
    """They give NumPy's results, although methods of the same name have PyTorch's arguments."""
    values = np.array([[1.0, 5.0], [3.0, 2.0]], np.float32)
    x = Tensor(values, requires_grad=True)
    for call in [
        np.max,
        np.min,
        np.sum,
        np.mean,
        np.std,
        np.prod,
        np.any,
        np.all,
        np.argmax,
        np.size,
        np.cumsum,
        np.squeeze,
        np.transpose,
        lambda a: np.max(a, axis=0, keepdims=True),
        lambda a: np.concatenate([a, a]),
        lambda a: np.where(a > 2, a, 0),
        lambda a: np.clip(a, 1, 2),
    ]:
        np.testing.assert_array_equal(call(x), call(values))


def test_channel_dropout() -> None:
    """Whole channels fall out or are scaled, about as many as p says; the gradient goes where they stayed."""
    for function, shape in [
        (F.dropout1d, (40, 50, 3)),
        (F.dropout1d, (2000, 3)),
        (F.dropout2d, (40, 50, 2, 3)),
        (F.dropout2d, (40, 50, 3)),
        (F.dropout3d, (40, 50, 2, 2, 2)),
        (F.dropout3d, (2000, 2, 2, 2)),
    ]:
        x = Tensor(np.ones(shape, np.float32), requires_grad=True)
        y = function(x, 0.25, generator=np.random.default_rng(0))
        maps = y.numpy().reshape(2000, -1)
        assert (maps == maps[:, :1]).all()
        np.testing.assert_allclose(np.unique(maps), [0, 4 / 3], rtol=1e-6)
        assert abs((maps[:, 0] == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5
        y.backward(np.ones(shape, np.float32))
        np.testing.assert_array_equal(x.grad.numpy(), y.numpy())
        assert function(x, 0.25, training=False) is x
        assert not function(x, 1.0).numpy().any()


def test_alpha_dropout() -> None:
    """Mean 0 and variance 1 stay, and what is dropped is one value; by default it is off, as in PyTorch."""
    x = np.random.default_rng(0).standard_normal((400, 500))
    for function, values in [(F.alpha_dropout, x), (F.feature_alpha_dropout, x[..., None] + np.zeros(2))]:
        assert function(x, 0.3) is x
        tensor = Tensor(values, requires_grad=True)
        y = function(tensor, 0.3, training=True, generator=np.random.default_rng(1))
        assert abs(y.numpy().mean()) < 0.01
        assert abs(y.numpy().var() - 1) < 0.01
        y.backward(np.ones(y.shape))
        dropped = tensor.grad.numpy() == 0
        assert abs(dropped.mean() - 0.3) < 0.005
        assert len(np.unique(y.numpy()[dropped].round(12))) == 1
        assert np.isfinite(function(x, 1.0, training=True)).all()


def test_dropout_modules() -> None:
    """They drop in training only, and say what they are."""
    for name in ("Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"):
        module = getattr(gpuconv.nn, name)(0.5, inplace=True)
        shape = (8, 8, *[2] * (3 if name == "Dropout3d" else 1))
        x = np.ones(shape, np.float32)
        assert (module(x) != x).any()
        assert module.eval()(x) is x
        assert repr(module) == f"{name}(p=0.5, inplace=True)"
