"""Tensors changed in place, moved and watched: PyTorch judges values and gradients of the same statements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuconv
from gpuconv import Tensor

torch = pytest.importorskip("torch", reason="pip install torch to compare with PyTorch")

pytestmark = pytest.mark.usefixtures("backend")

INDICES: list[Any] = [
    1,
    -1,
    (0, 2),
    slice(1, None),
    (slice(None), 1),
    (..., slice(0, 2)),
    (slice(None, None, 2), [0, 2]),
    [2, 0],
    ([0, 1], [1, 2]),
    (None, 1),
]


def _both(x: np.ndarray, change: Callable[[Any, Any], Any], *others: np.ndarray) -> None:
    """A statement on the double of x, and the gradients of a weighted sum behind it, in both libraries."""
    weights = np.random.default_rng(1).standard_normal(x.shape)
    results = []
    for L, make in ((torch, torch.tensor), (gpuconv, Tensor)):
        leaf = make(x, requires_grad=True)
        more = [make(other, requires_grad=True) for other in others]
        y = leaf * 2
        y = change(y, *more)
        (y * make(weights)).sum().backward()
        grads = [leaf.grad, *(one.grad for one in more)]
        results.append([np.asarray(value.detach() if L is torch else value) for value in (y, *grads)])
    for mine, yours in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(mine, yours, rtol=1e-12, atol=1e-12)


def _set(index: Any, factor: float = 1.0) -> Callable[..., Any]:
    def change(y: Any, value: Any) -> Any:
        y[index] = value * factor
        return y

    return change


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_item_assignment(index: Any) -> None:
    """The value's gradient is that of the elements it stands at, and what it replaced has none."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4))
    _both(x, _set(index), rng.standard_normal(x[index].shape))
    _both(x, _set(index, 3.0), rng.standard_normal(()))


def test_item_assignment_of_numbers_and_by_masks() -> None:
    """Also what is computed from the Tensor itself, and through `+=` of a part."""
    x = np.random.default_rng(0).standard_normal((3, 4))

    def change(y: Any) -> Any:
        y[y > 0] = 0.5
        y[0] += 1
        y[1, 1:3] *= 3
        return y

    _both(x, change)


def test_assignment_without_a_graph_writes_into_the_memory() -> None:
    """Views see it, numbers are converted to the Tensor's type, and backward refuses what was saved before."""
    x = gpuconv.zeros(2, 3)
    x[0][1] = 2.5
    x[1] = Tensor([1, 2, 3])
    assert x.tolist() == [[0.0, 2.5, 0.0], [1.0, 2.0, 3.0]]
    counts = gpuconv.arange(3)
    counts[counts > 0] = 7.9
    assert counts.tolist() == [0, 7, 7]
    w = gpuconv.ones(3, requires_grad=True)
    y = (w * w).sum()
    with gpuconv.no_grad():
        w[0] = 5.0
    assert w.tolist() == [5.0, 1.0, 1.0]
    with pytest.raises(RuntimeError, match=r"changed in place|x\[index\] = value"):
        y.backward()


def test_refused_assignments() -> None:
    """A leaf while a graph is recorded; a view, of which the whole could not learn; what has no such place or shape."""
    leaf = gpuconv.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        leaf[0] = 1.0
    whole = leaf * 2
    with pytest.raises(RuntimeError, match="view"):
        whole[0][1] = 1.0
    buffer = gpuconv.zeros(2, 3)
    with pytest.raises(RuntimeError, match="view"):
        buffer[0][1] = leaf[0, 0]
    with pytest.raises(IndexError):
        buffer[2] = 1.0
    with pytest.raises(ValueError, match="broadcast"):
        buffer[0] = [1.0, 2.0]
    read_only = Tensor(np.broadcast_to(np.zeros(1, np.float32), (2, 3)))
    with pytest.raises(ValueError, match="read-only"):
        read_only[0] = 1.0
    assert buffer.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda make, y: y.masked_fill_(make(np.array([[True, False, False], [False, True, True]])), 7.0),
        lambda make, y: y.scatter_(1, make(np.array([[2], [0]])), 7.0),
        lambda make, y: y.scatter_add_(1, make(np.array([[2, 2], [0, 1]])), make(np.array([[3.0, 5.0], [7.0, 9.0]]))),
    ],
    ids=["masked_fill_", "scatter_", "scatter_add_"],
)
def test_chosen_elements_in_place(change: Callable[..., Any]) -> None:
    """What a mask or an index chooses has the value, and passes no gradient on; or it is added to. As in PyTorch."""
    results = []
    for make in (torch.tensor, Tensor):
        leaf = make(np.arange(6.0).reshape(2, 3), requires_grad=True)
        y = leaf * 2
        assert change(make, y) is y
        y.sum().backward()
        results.append((y.detach().numpy(), leaf.grad.numpy()))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("add_", (1.5,)), ("sub_", (0.5,)), ("mul_", (3.0,)), ("div_", (2.0,)), ("pow_", (2,)), ("exp_", ()),
        ("abs_", ()), ("neg_", ()), ("clamp_", (-0.5, 0.5)), ("relu_", ()), ("sigmoid_", ()), ("tanh_", ()),
        ("fill_", (2.0,)), ("zero_", ()), ("sqrt_", ()), ("remainder_", (0.7,)), ("clamp_min_", (0.5,)),
        ("clamp_max_", (0.5,)), ("__ipow__", (2,)), ("__imod__", (0.7,)),
    ],
)  # fmt: skip
def test_methods_in_place(name: str, arguments: tuple[Any, ...]) -> None:
    """They return the Tensor itself, have PyTorch's values and gradients, and without a graph write its memory."""
    x = np.random.default_rng(0).standard_normal((3, 4))
    results = []
    for make in (torch.tensor, Tensor):
        leaf = make(x, requires_grad=True)
        y = leaf * 2
        assert getattr(y, name)(*arguments) is y
        (y * y.detach()).sum().backward() if y.requires_grad else None
        plain = make(x)
        getattr(plain, name)(*arguments)
        results.append([np.asarray(one) for one in (y.detach(), leaf.grad, plain) if one is not None])
    for mine, yours in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(mine, yours, rtol=1e-12)


def test_methods_of_several_in_place() -> None:
    """lerp_, addcmul_ and addcdiv_, as optimizers of one's own call them, and the operators that have no gradient."""
    rng = np.random.default_rng(0)
    x, y, z = rng.standard_normal((2, 3)), rng.standard_normal(3), rng.uniform(1, 2, (2, 3))
    results = []
    for make in (torch.tensor, Tensor):
        average, step, whole, mask = make(x.copy()), make(x.copy()), make(np.arange(6) - 2), make(np.arange(6) > 2)
        assert average.lerp_(make(y), 0.1) is average
        assert step.addcmul_(make(y), make(z), value=0.5).addcdiv_(make(y), make(z), value=-0.1) is step
        before = whole
        whole.floor_divide_(2)
        whole //= -1
        whole |= 4
        whole ^= 1
        kept = mask
        mask &= make(np.arange(6) < 5)
        assert (whole is before, mask is kept) == (True, True)
        results.append([np.asarray(one) for one in (average, step, whole, mask)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_copy_and_random() -> None:
    """copy_ broadcasts and converts; normal_ and uniform_ draw from the generator that a seed restarts."""
    x = gpuconv.zeros(2, 3)
    assert x.copy_(np.arange(3)).tolist() == [[0.0, 1.0, 2.0]] * 2
    gpuconv.manual_seed(1)
    first = x.normal_(2.0, 0.5).tolist()
    gpuconv.manual_seed(1)
    assert gpuconv.zeros(2, 3).normal_(2.0, 0.5).tolist() == first
    values = gpuconv.zeros(1000).uniform_(-1, 3).numpy()
    assert -1 <= values.min() < -0.9
    assert 2.9 < values.max() < 3


def test_to() -> None:
    """Types, devices, both, another Tensor's: itself where nothing changes; gradients come back in the first type."""
    x = gpuconv.ones(2, requires_grad=True)
    assert x.to("cpu") is x
    assert x.cpu() is x
    assert x.to(np.float32) is x
    assert x.to(gpuconv.device("cpu"), gpuconv.float32) is x
    assert x.to("cpu", copy=True) is not x
    assert x.device == "cpu"
    assert x.device.type == "cpu"
    wide = x.to(gpuconv.float64)
    assert wide.dtype == np.float64
    (wide * 3).sum().backward()
    assert x.grad is not None
    assert (x.grad.dtype, x.grad.tolist()) == (np.float32, [3.0, 3.0])
    assert x.to(gpuconv.zeros(1, dtype=gpuconv.int64)).tolist() == [1, 1]
    assert x.to("float64").dtype == np.float64
    assert gpuconv.zeros(1, device=x.device).device == "cpu"
    assert not gpuconv.cuda.is_available() or gpuconv.cuda.device_count() > 0


def test_gradient_hooks() -> None:
    """Called once with the complete gradient, of leaves and of results; what one returns is the gradient from there."""
    x = np.random.default_rng(0).standard_normal(3)
    seen: list[list[Any]] = []
    for make in (torch.tensor, Tensor):
        calls: list[Any] = []
        leaf = make(x, requires_grad=True)
        y = leaf * 2
        y.register_hook(lambda grad, calls=calls: calls.append(np.asarray(grad)))
        y.register_hook(lambda grad: grad * 10)
        leaf.register_hook(lambda grad, calls=calls: calls.append(np.asarray(grad)))
        removed = leaf.register_hook(lambda grad: grad * 100)
        removed.remove()
        removed.remove()
        (y * y + y).sum().backward()
        seen.append([*calls, np.asarray(leaf.grad)])
    assert len(seen[0]) == len(seen[1]) == 3
    for mine, yours in zip(seen[1], seen[0], strict=True):
        np.testing.assert_allclose(mine, yours)
    bad = Tensor(x, requires_grad=True)
    bad.register_hook(lambda grad: grad[:1])
    with pytest.raises(ValueError, match="register_hook"):
        bad.sum().backward()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_backward_hooks_of_modules() -> None:
    """Gradients of input and output as PyTorch hands them over; replaced ones go on; without, all is as before."""
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    seen = []
    for L, make in ((torch, torch.tensor), (gpuconv, Tensor)):
        layer = L.nn.Linear(3, 2)
        layer.load_state_dict(
            {name: make(np.full(size, 0.5, np.float32)) for name, size in (("weight", (2, 3)), ("bias", 2))}
        )
        calls: list[Any] = []

        def hook(module: Any, grad_input: Any, grad_output: Any, calls: Any = calls) -> Any:
            calls.extend(np.asarray(one) for one in (*grad_input, *grad_output) if one is not None)
            return (grad_input[0] * 2,) if grad_input[0] is not None else None

        handle = layer.register_full_backward_hook(hook)
        leaf = make(x, requires_grad=True)
        (layer(leaf) ** 2).sum().backward()
        handle.remove()
        layer(leaf).sum().backward()
        after = len(calls)
        layer.register_full_backward_hook(hook)
        layer(make(x)).sum().backward()  # no input wants a gradient
        assert len(calls) == after + 1
        seen.append([*calls, np.asarray(leaf.grad)])
    for mine, yours in zip(seen[1], seen[0], strict=True):
        np.testing.assert_allclose(mine, yours, rtol=1e-6)


def test_a_function_as_in_pytorch() -> None:
    """The text of a Function with a context's attributes and saved arrays gives PyTorch's values and gradients."""
    x = np.random.default_rng(0).standard_normal((2, 3))
    results = []
    for L, function, make in ((torch, torch.autograd.Function, torch.tensor), (gpuconv, gpuconv.Function, Tensor)):

        class Scaled(function):  # type: ignore[misc, valid-type]
            @staticmethod
            def forward(ctx: Any, a: Any, b: Any) -> Any:
                ctx.save_for_backward(a, b)
                ctx.factor = 3.0
                return a * b * ctx.factor

            @staticmethod
            def backward(ctx: Any, grad: Any) -> Any:
                a, b = ctx.saved_tensors
                return grad * b * ctx.factor, grad * a * ctx.factor if ctx.needs_input_grad[1] else None

        a, b = make(x, requires_grad=True), make(x + 1)
        y = Scaled.apply(a, b)
        y.sum().backward()
        results.append([np.asarray(y.detach() if L is torch else y), np.asarray(a.grad)])
    for mine, yours in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(mine, yours)
