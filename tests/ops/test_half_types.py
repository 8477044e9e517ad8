"""float16 and bfloat16: stored in 16 bits, computed in float32, rounded once; PyTorch is the judge."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from support.operation_cases import FAMILIES, Case, In
from support.sampling import sampled

import gpuconv
import gpuconv.functional as F
from gpuconv import Tensor, nn
from gpuconv.backends import Backend

ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16; pip install ml_dtypes")
torch = pytest.importorskip("torch", reason="pip install torch to compare with PyTorch")

#: Name -> type, and the error allowed relative to the largest value: some roundings, as PyTorch's own results have.
HALVES = {"float16": (np.dtype(np.float16), 2e-3), "bfloat16": (np.dtype(ml_dtypes.bfloat16), 1.6e-2)}
#: Calls in which PyTorch itself is further from the rounded float32 result than that, in the gradient.
TORCH_IS_OFF = {
    "std(dim=0, keepdim=True) real",
    "std_mean(dim=0, keepdim=True) real",
    "group_norm(plain)",
    "addcdiv({})",
    "addcdiv({'value': 2})",
    "binary_cross_entropy at its ends",  # infinite: its smallest probability, 1e-12, is 0 in float16
}
#: Operations whose intermediate results PyTorch rounds to the half type.
TORCH_ROUNDS = {"grid_sample", "affine_grid"}

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*degrees of freedom"),
    pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss"),
    pytest.mark.filterwarnings("ignore:.*nn.functional.upsample. is deprecated"),
]


def _parts(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _values(tensor: Any) -> np.ndarray:
    """Of a torch tensor, floats as float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _close(got: np.ndarray, expected: np.ndarray, allowed: float, what: str) -> None:
    assert got.shape == expected.shape, what
    if gpuconv.dtypes.kind_of(got.dtype) != "f":
        np.testing.assert_array_equal(got, expected, err_msg=what)
        return
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    largest = np.max(np.abs(expected), initial=1.0, where=np.isfinite(expected))
    np.testing.assert_allclose(got, expected, rtol=0, atol=allowed * largest, err_msg=what)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):  # to infinity, as a result does
        return values.astype(dtype) if values.dtype.kind == "f" else values


def _theirs(case: Case, inputs: list[Any]) -> list[Any] | None:
    """PyTorch's results; None if its CPU has no such operation on the type."""
    try:
        return _parts(case.call(torch, *inputs))
    except (RuntimeError, NotImplementedError) as error:
        if "not implemented for" not in str(error):
            raise
        return None


def _compare(case: Case, sample: tuple[In, ...], half: str, *, with_torch: bool) -> None:
    """Results and gradients: those of float32 on the same values, rounded; and PyTorch's of the half type."""
    dtype, allowed = HALVES[half]
    what = f"{case} of {[one.shape for one in sample]}, {half}"
    drawn = [_rounded(array, dtype) for array in case.draw(sample, np.float32)]
    grads = [one.grad and array.dtype == dtype for one, array in zip(sample, drawn, strict=True)]
    wide = [array.astype(np.float32) if array.dtype == dtype else array for array in drawn]
    ours_in, wide_in = (
        [Tensor(array, requires_grad=grad) for array, grad in zip(arrays, grads, strict=True)]
        for arrays in (drawn, wide)
    )
    ours, expected = (_parts(case.call(gpuconv, *inputs)) for inputs in (ours_in, wide_in))
    theirs, theirs_in = None, []
    if with_torch and case.operation not in TORCH_ROUNDS:
        theirs_in = [
            torch.tensor(array, dtype=getattr(torch, half) if array.dtype.kind == "f" else None, requires_grad=grad)
            for array, grad in zip(wide, grads, strict=True)
        ]
        theirs = _theirs(case, theirs_in)
    assert len(ours) == len(expected), what
    rng = np.random.default_rng(1)
    for position, (mine, float32) in enumerate(zip(ours, expected, strict=True)):
        assert mine.requires_grad == float32.requires_grad, what
        if float32.dtype != np.float32 or theirs is None:  # float() gives float32 of any type
            assert mine.dtype in (dtype, np.float32) if float32.dtype == np.float32 else mine.dtype == float32.dtype
        _close(mine.numpy(), _rounded(float32.numpy(), mine.dtype), allowed, f"{what}: float32's")
        if theirs is not None:
            assert str(theirs[position].dtype) == f"torch.{mine.dtype}", what
            _close(mine.numpy(), _values(theirs[position]), allowed, f"{what}: PyTorch's")
        if mine.requires_grad:
            grad = np.asarray(rng.standard_normal(mine.shape), dtype)
            mine.backward(grad, retain_graph=True)
            float32.backward(grad.astype(np.float32), retain_graph=True)
            if theirs is not None:
                theirs[position].backward(torch.tensor(grad.astype(np.float32)).to(theirs[position].dtype), True)
    for position, (mine, float32) in enumerate(zip(ours_in, wide_in, strict=True)):
        if mine.grad is None:
            continue
        assert mine.grad.dtype == dtype, what
        # At NaN and infinities the gradients of PyTorch's own vector and scalar loops differ.
        finite = np.isfinite(float32.numpy())
        where = f"{what}: gradient of input {position}"
        _close(mine.grad.numpy()[finite], _rounded(float32.grad.numpy(), dtype)[finite], allowed, f"{where}, float32's")
        if theirs is not None and theirs_in[position].grad is not None and str(case) not in TORCH_IS_OFF:
            _close(mine.grad.numpy()[finite], _values(theirs_in[position].grad)[finite], allowed, f"{where}, PyTorch's")


@pytest.mark.grid(2)
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_operation(family: str, half: str) -> None:
    """Each call of the table: float32's results and gradients, rounded, and PyTorch's."""
    with gpuconv.use_backend("numpy"):
        for case in FAMILIES[family]:
            for sample in case.samples:
                _compare(case, sample, half, with_torch=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_on_every_backend(family: str, every_backend: Backend) -> None:
    """The smallest sample of each call, on compiled code and in the simulator of kernels too."""
    if every_backend.name != "numpy":
        # Which kernel a call takes does not depend on the element type, and float32 has them all, in test_operations.
        for case in sampled(FAMILIES[family], -(-len(FAMILIES[family]) // 3), every_backend.name):
            _compare(case, case.samples[0], "bfloat16", with_torch=False)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("half", HALVES)
def test_sums_are_float32s(half: str) -> None:
    """Of many terms, where a sum of 16 bits would stop growing, or overflow, long before its end."""
    dtype, allowed = HALVES[half]
    many = Tensor(np.full(2**18, 0.5, dtype), requires_grad=True)
    for loss, expected in [
        (many.mean(), 0.5),
        (F.mse_loss(many, gpuconv.zeros_like(many)), 0.25),
        (F.l1_loss(many, gpuconv.zeros_like(many)), 0.5),
        (many[: 2**12].sum(), 2**11),
        (F.avg_pool2d(many.view(1, 1, 512, 512), 512), 0.5),
        (F.adaptive_avg_pool2d(many.view(1, 1, 512, 512), 1), 0.5),
        (F.linear(many[: 2**12].view(1, -1), many[: 2**12].view(1, -1)), 2**10),
        (F.conv2d(many[: 2**12].view(1, 4, 32, 32), many[: 2**12].view(1, 4, 32, 32)), 2**10),
        (F.layer_norm(Tensor(np.arange(2**16) % 2).to(dtype), (2**16,)).std(), 1.0),
    ]:
        assert loss.dtype == dtype
        np.testing.assert_allclose(loss.item(), expected, rtol=allowed)
    # A gradient that is a sum over a broadcast operand.
    bias = Tensor(np.zeros((), dtype), requires_grad=True)
    (many[: 2**12] + bias).backward(np.full(2**12, 0.25, dtype))
    np.testing.assert_allclose(bias.grad.item(), 2**10, rtol=allowed)


@pytest.mark.parametrize("half", HALVES)
def test_promotion(half: str) -> None:
    """Element by element as in PyTorch; convolutions and fully connected layers take one type."""
    dtype, torch_type = HALVES[half][0], getattr(torch, half)
    values = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    x, y = Tensor(values.astype(dtype)), torch.tensor(values).to(torch_type)
    wide, theirs_wide = Tensor(values), torch.tensor(values)
    number, theirs_number = Tensor(np.float64(2.0)), torch.tensor(2.0, dtype=torch.float64)
    others, theirs_others = x.bfloat16() if half == "float16" else x.half(), y.bfloat16().half()
    for got, expected in [
        (x + wide, y + theirs_wide),
        (wide * x, theirs_wide * y),
        (x * number, y * theirs_number),
        (x - 1.3, y - 1.3),
        (2 / x, 2 / y),
        (x * Tensor(np.arange(4)), y * torch.arange(4)),
        (x + others, y.half() + y.bfloat16() if half == "float16" else y + theirs_others),
        (gpuconv.cat([x, wide]), torch.cat([y, theirs_wide])),
        (gpuconv.where(wide > 0, x, 0.1), torch.where(theirs_wide > 0, y, 0.1)),
        (gpuconv.maximum(x, wide), torch.maximum(y, theirs_wide)),
        (x > 0.5, y > 0.5),
        (x == wide, y == theirs_wide),
        (x.float(), y.float()),
        (x.to(gpuconv.int32), y.to(torch.int32)),
    ]:
        assert str(expected.dtype) == f"torch.{got.dtype}"
        _close(got.numpy(), _values(expected), HALVES[half][1], half)
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    for call, shape in [(F.batch_norm, (zero.copy(), one.copy(), one, zero)), (F.group_norm, (1, one, zero))]:
        assert call(x, *shape).dtype == dtype  # float32 weights beside half types, as PyTorch takes them
    with pytest.raises(TypeError, match="conv2d: weight is float32 but input is"):
        F.conv2d(x, np.ones((1, 3, 2, 2), np.float32))
    with pytest.raises(TypeError, match="linear: weight is float32 but input is"):
        F.linear(x, np.ones((1, 4), np.float32))
    assert (x**2).dtype == x.clamp(0, 1).dtype == F.pad(x, (1, 1), value=0.1).dtype == dtype


def test_arrays_and_tensors_of_other_libraries() -> None:
    """torch's bfloat16 comes in and goes out on the same memory; NumPy's arrays keep their type."""
    given = torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16)
    ours = Tensor(given)
    given[0] = 4
    assert ours.dtype == gpuconv.bfloat16
    assert ours.tolist() == [4, -2, 0.5]
    result = F.relu(given)
    assert result.dtype == torch.bfloat16
    assert result.tolist() == [4, 0, 0.5]
    assert F.relu(given.half()).dtype == torch.float16
    for dtype, _ in HALVES.values():
        array = F.relu(np.array([-1, 2], dtype))
        assert isinstance(array, np.ndarray)
        assert (array.dtype, array.tolist()) == (dtype, [0, 2])
        swapped = np.array([-1, 2], np.float16).astype(">f2")
        assert F.relu(swapped).dtype == np.float16


def test_a_function_of_the_user_computes_in_float32() -> None:
    """Inputs and gradients reach it as float32; its results are rounded; what it saves is no copy."""

    class Double(gpuconv.Function):
        @staticmethod
        def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
            assert x.dtype == np.float32
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: np.ndarray) -> np.ndarray:
            (x,) = ctx.saved_tensors
            assert x.dtype == grad.dtype == np.float32
            return grad * x

    x = Tensor(np.array([3.0, 4.0], np.float16), requires_grad=True)
    y = Double.apply(x)
    assert y.dtype == np.float16
    assert y._node.ctx._saved[0] is x.data
    y.backward(np.ones(2, np.float16))
    assert x.grad.dtype == np.float16
    assert x.grad.tolist() == [3, 4]
    y = Double.apply(x)
    with gpuconv.no_grad():
        x += 1
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward(np.ones(2, np.float16))


def test_views_and_what_is_kept() -> None:
    """What only moves elements shows the same memory; an input that backward does not need is let go of."""
    x = gpuconv.randn(4, 6, dtype="bfloat16", requires_grad=True)
    for view in (x.view(2, 12), x[1:], x.t(), x.narrow(1, 2, 3), x.expand(3, 4, 6), x.flip(0), x.chunk(2)[1]):
        assert np.shares_memory(view.data, x.data)
        assert view.dtype == x.dtype
        view.sum().backward()
    np.testing.assert_array_equal(x.grad.float().numpy()[2, 2:5], 9)
    between = x * 2
    known = weakref.ref(between.data)
    y = F.relu(between)
    del between
    assert known() is None
    y.sum().backward()


def test_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 says what it needs; float16 needs nothing."""
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    monkeypatch.delitem(vars(gpuconv), "bfloat16", raising=False)
    for call in (
        lambda: gpuconv.bfloat16,
        lambda: gpuconv.zeros(2, dtype="bfloat16"),
        lambda: gpuconv.zeros(2).bfloat16(),
        lambda: nn.Conv2d(1, 1, 1, dtype="bfloat16"),
        lambda: F.relu(torch.ones(2, dtype=torch.bfloat16)),
    ):
        with pytest.raises(ModuleNotFoundError, match=r"bfloat16 needs ml_dtypes: pip install 'gpuconv\[bfloat16\]'"):
            call()
    assert nn.Conv2d(1, 1, 1, dtype=gpuconv.half)(gpuconv.ones(1, 1, 2, 2, dtype="float16")).dtype == np.float16
