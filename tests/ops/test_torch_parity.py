"""Random geometries against PyTorch: the same values, gradients and indices, and the same arguments refused.

The few differences there are on purpose stand in two lists, each with its reason; the tests check them too,
so that the lists stay true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
from cases import distinct
from hypothesis import example, given
from hypothesis import strategies as st

import gpuconv.functional as F
from gpuconv import Tensor

torch = pytest.importorskip("torch", reason="pip install torch to compare with PyTorch")
T = torch.nn.functional

pytestmark = [
    pytest.mark.usefixtures("backend"),
    # 'same' with an even kernel makes PyTorch say that it pads a copy.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    """The tensors are tiny: handing them to threads takes longer than the arithmetic."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def compare(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    arrays: list[Any],
    seed: int,
    *,
    exact: bool = False,
) -> None:
    """Results and all gradients agree in float64; or PyTorch refuses the arguments, and so do we."""
    theirs_in = [torch.tensor(array, requires_grad=True) for array in arrays]
    ours_in = [Tensor(array, requires_grad=True) for array in arrays]
    try:
        expected = theirs(*theirs_in)
    except (RuntimeError, ValueError, IndexError, TypeError) as refusal:
        try:
            result = ours(*ours_in)
        except (ValueError, TypeError):
            return
        pytest.fail(f"PyTorch refuses ({refusal}), but we return {result!r}")
    got = ours(*ours_in)
    if isinstance(expected, tuple):
        np.testing.assert_array_equal(got[1].numpy(), expected[1].numpy(), strict=True)
        got, expected = got[0], expected[0]
    assert_same(got.numpy(), expected, exact)
    # Whole numbers: where gradients are only sums of them they are exact in any order.
    grad = np.asarray(np.random.default_rng(seed).integers(-8, 9, got.shape), np.float64)
    got.backward(grad)
    expected.backward(torch.tensor(grad))
    for mine, yours in zip(ours_in, theirs_in, strict=True):
        assert mine.grad is not None
        assert_same(mine.grad.numpy(), yours.grad, exact)


def assert_same(got: Any, expected: Any, exact: bool) -> None:
    """Equal in shape and, to rounding of the largest value, in every element."""
    expected = expected.detach().numpy()
    assert got.shape == expected.shape
    largest = np.max(np.abs(expected), initial=1.0, where=np.isfinite(expected))
    np.testing.assert_allclose(got, expected, rtol=0, atol=0 if exact else 1e-12 * largest)


def sizes(low: int, high: int) -> st.SearchStrategy[Any]:
    """One number for both dimensions, or one for each."""
    number = st.integers(low, high)
    return number | st.tuples(number, number)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
    """Shapes of input, weight and bias, and keywords; some do not fit together."""
    groups, channels, filters = (draw(st.integers(1, 3)) for _ in range(3))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    image = draw(st.tuples(st.integers(1, 10), st.integers(1, 10)))
    lead = draw(st.sampled_from([(), (0,), (1,), (2,), (3,)]))
    off_by = draw(st.sampled_from([0] * 12 + [1, -1]))
    shapes = [
        (*lead, groups * channels, *image),
        (groups * filters, max(1, channels + off_by), *kernel),
        (groups * filters + draw(st.sampled_from([0] * 12 + [1])),),
    ]
    padding = draw(sizes(0, 3) | st.sampled_from(["same", "valid"]))
    return shapes, {
        # 'same' is refused with any other stride.
        "stride": draw(sizes(1, 1 if padding == "same" and draw(st.integers(0, 3)) else 3)),
        "padding": padding,
        "dilation": draw(sizes(1, 3)),
        "groups": groups + draw(st.sampled_from([0] * 12 + [1])),
    }


def compare_convolution(name: str, convolution: tuple[list[tuple[int, ...]], dict[str, Any]], seed: int) -> None:
    """Forward and the gradients of a function that both libraries have, on random arrays."""
    shapes, options = convolution
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    compare(lambda *a: getattr(F, name)(*a, **options), lambda *a: getattr(T, name)(*a, **options), arrays, seed)


@pytest.mark.slow
@given(convolutions(), st.integers(0, 2**32 - 1))
def test_conv2d(convolution: tuple[list[tuple[int, ...]], dict[str, Any]], seed: int) -> None:
    """Forward and three gradients, for whatever stride, padding, dilation and groups."""
    compare_convolution("conv2d", convolution, seed)


@st.composite
def transposed(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
    """Shapes of input, weight and bias, and keywords of a transposed convolution; some do not fit together."""
    groups, channels, maps = (draw(st.integers(1, 3)) for _ in range(3))
    lead = draw(st.sampled_from([(), (1,), (2,)]))  # of no image PyTorch takes what it otherwise refuses
    shapes = [
        (*lead, groups * channels + draw(st.sampled_from([0] * 12 + [1])), *draw(st.tuples(*[st.integers(1, 6)] * 2))),
        (groups * channels, maps, *draw(st.tuples(*[st.integers(1, 4)] * 2))),
        (groups * maps + draw(st.sampled_from([0] * 12 + [1])),),
    ]
    return shapes, {
        "stride": draw(sizes(1, 3)),
        "padding": draw(sizes(0, 3)),
        "output_padding": draw(sizes(0, draw(st.sampled_from([0, 1, 2])))),
        "dilation": draw(sizes(1, 3)),
        "groups": groups,
    }


@given(transposed(), st.integers(0, 2**32 - 1))
def test_conv_transpose2d(convolution: tuple[list[tuple[int, ...]], dict[str, Any]], seed: int) -> None:
    """Forward and three gradients, for whatever stride, padding, output padding, dilation and groups."""
    compare_convolution("conv_transpose2d", convolution, seed)


@given(
    st.sampled_from(["avg", "max"]),
    st.tuples(*[st.integers(1, 7)] * 2),
    st.tuples(*[st.integers(1, 5)] * 2),
    st.integers(0, 2**32 - 1),
)
def test_adaptive_pooling(kind: str, image: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    """Values, indices and gradients, of ties too, for whatever sizes before and after."""
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(-2, 3, (2, 2, *image)).astype(np.float64)]
    options = {"return_indices": True} if kind == "max" else {}
    name = f"adaptive_{kind}_pool2d"
    compare(
        lambda x: getattr(F, name)(x, size, **options), lambda x: getattr(T, name)(x, size, **options), arrays, seed
    )


@st.composite
def poolings(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Shape of an input, and kernel_size, stride and padding; some do not fit together."""
    lead = draw(st.sampled_from([(2,), (0, 2), (1, 1), (2, 3)]))
    image = draw(st.tuples(st.integers(1, 10), st.integers(1, 10)))
    kernel = draw(sizes(1, 4))
    # More than half a window is refused, which need not be seen every second time.
    padding = draw(sizes(0, 2) if draw(st.integers(0, 5)) == 0 else sizes(0, min(reference.pair(kernel)) // 2))
    return (*lead, *image), (kernel, draw(st.none() | sizes(1, 4)), padding)


@given(
    poolings(),
    sizes(1, 3),
    st.booleans(),
    st.sampled_from(["distinct", "tied", "some NaN"]),
    st.integers(0, 2**32 - 1),
)
@example(((2, 2, 2), (3, 2, 1)), 1, True, "distinct", 0)
@example(((1, 1, 6, 6), ((1, 3), 1, (0, 2))), (1, 2), False, "distinct", 0)
@example(((1, 1, 1, 1), (2, 1, 1)), 2, False, "distinct", 0)
def test_max_pool2d(
    pooling: tuple[tuple[int, ...], tuple[Any, ...]], dilation: Any, ceil_mode: bool, values: str, seed: int
) -> None:
    """Values, indices and gradient, exactly; with ties and with NaN too."""
    shape, (kernel, stride, padding) = pooling
    rng = np.random.default_rng(seed)
    x = distinct(rng, shape, np.float64) if values == "distinct" else rng.integers(-1, 2, shape).astype(np.float64)
    if values == "some NaN":
        x[rng.random(shape) < 0.1] = np.nan

    def pool(functional: Any) -> Callable[[Any], Any]:
        return lambda t: functional.max_pool2d(t, kernel, stride, padding, dilation, ceil_mode, return_indices=True)

    if holds_an_empty_window(x, (kernel, stride, padding, dilation, ceil_mode)):
        # PyTorch returns indices outside the image there, into which its backward writes.
        with pytest.raises(ValueError, match="padding"):
            pool(F)(x)
        return
    compare(pool(F), pool(T), [x], seed, exact=True)


def holds_an_empty_window(x: Any, options: tuple[Any, ...]) -> bool:
    """Whether a dilated window steps over the whole image, from the padding before it to that after it."""
    x = x if x.ndim == 4 else x[None]
    return bool((reference.max_pool2d(np.zeros((1, 1, *x.shape[2:])), *options)[1] < 0).any())


@given(poolings(), st.booleans(), st.booleans(), st.none() | st.integers(-3, 5), st.integers(0, 2**32 - 1))
@example(((1, 1, 2, 2), (3, 3, 1)), True, True, None, 0)
def test_avg_pool2d(
    pooling: tuple[tuple[int, ...], tuple[Any, ...]],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    seed: int,
) -> None:
    """Values and gradient for every way of counting the elements of a window."""
    shape, (kernel, stride, padding) = pooling
    options = (kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    x = np.random.default_rng(seed).standard_normal(shape)
    compare(lambda t: F.avg_pool2d(t, *options), lambda t: T.avg_pool2d(t, *options), [x], seed)


@given(
    st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.one_of(st.integers(1, 10), st.tuples(*[st.none() | st.integers(1, 10)] * 2)),
    st.integers(0, 2**32 - 1),
)
def test_adaptive_avg_pool2d(shape: tuple[int, ...], output_size: Any, seed: int) -> None:
    """Values and gradient from any size to any other."""
    x = np.random.default_rng(seed).standard_normal(shape)
    compare(
        lambda t: F.adaptive_avg_pool2d(t, output_size),
        lambda t: T.adaptive_avg_pool2d(t, output_size),
        [x],
        seed,
    )


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    empty=st.sampled_from([False] * 6 + [True]),
    kind=st.sampled_from(["labels", "labels", "labels, some wrong", "probabilities"]),
    weighted=st.booleans(),
    ignore_index=st.sampled_from([-100, -1, 0, 1, 7]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    label_smoothing=st.sampled_from([0.0, 0.1, 1.0, 1.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_cross_entropy(
    shape: tuple[int, ...],
    empty: bool,
    kind: str,
    weighted: bool,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    seed: int,
) -> None:
    """Value and gradient for any rank, target, weight, ignored label, reduction and smoothing."""
    rng = np.random.default_rng(seed)
    axis = 0 if len(shape) == 1 else 1
    if empty and axis:
        shape = (0, *shape[1:])
    classes, positions = shape[axis], shape[:axis] + shape[axis + 1 :]
    x = rng.standard_normal(shape) * 3
    weight = rng.uniform(0.0, 2.0, classes) if weighted else None
    if kind == "probabilities":
        target = reference.softmax(rng.standard_normal(shape), axis)
    else:
        target = np.asarray(rng.integers(0, classes + (kind == "labels, some wrong"), positions))
        if ignore_index != 0 or kind == "labels":
            target = np.where(rng.random(positions) < 0.2, ignore_index, target)

    def loss(functional: Any, convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda t: functional.cross_entropy(
            t,
            convert(target),
            None if weight is None else convert(weight),
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    compare(loss(F, np.asarray), loss(T, torch.tensor), [x], seed)


# PyTorch's tensors as arguments


def test_torch_tensors_come_back_as_torch_tensors() -> None:
    """Every kind of result, and whatever the strides of the argument."""
    image = torch.arange(72, dtype=torch.float32).reshape(1, 2, 6, 6)
    weight = torch.ones(3, 2, 3, 3)
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 2])
    for got, expected in [
        (F.conv2d(image.transpose(2, 3), weight), T.conv2d(image.transpose(2, 3), weight)),
        (F.relu(image[:, :, ::2] - 20), T.relu(image[:, :, ::2] - 20)),
        (F.avg_pool2d(image.expand(3, 2, 6, 6), 2), T.avg_pool2d(image.expand(3, 2, 6, 6), 2)),
        (F.flatten(image, 1), torch.flatten(image, 1)),
        (F.cross_entropy(logits, labels), T.cross_entropy(logits, labels)),
        (F.cross_entropy(logits, logits + 1), T.cross_entropy(logits, logits + 1)),
        (F.mse_loss(logits, logits + 1), T.mse_loss(logits, logits + 1)),
        *zip(F.max_pool2d(image, 2, return_indices=True), T.max_pool2d(image, 2, return_indices=True), strict=True),
    ]:
        assert isinstance(got, torch.Tensor)
        torch.testing.assert_close(got, expected)


_CHANNELS_LAST: dict[str, Callable[..., Any]] = {
    "conv2d": lambda L, x: L.conv2d(x, _tensor(L, 4, 6, 3, 3), _tensor(L, 4), 2, 1),
    "conv2d, grouped": lambda L, x: L.conv2d(x, _tensor(L, 6, 1, 3, 3), None, 1, 1, 1, 6),
    "conv2d of one place": lambda L, x: L.conv2d(x, _tensor(L, 4, 6, 1, 1)),
    "conv2d, relu, max_pool2d": lambda L, x: L.max_pool2d(L.relu(L.conv2d(x, _tensor(L, 4, 6, 3, 3))), 2),
    "conv_transpose2d": lambda L, x: L.conv_transpose2d(x, _tensor(L, 6, 2, 3, 3), None, 2, 1),
    "max_pool2d": lambda L, x: L.max_pool2d(x, 3, 2, 1),
    "avg_pool2d": lambda L, x: L.avg_pool2d(x, 3, 2, 1),
    "adaptive_avg_pool2d": lambda L, x: L.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_max_pool2d": lambda L, x: L.adaptive_max_pool2d(x, (3, 2)),
    "batch_norm": lambda L, x: L.batch_norm(x, None, None, _tensor(L, 6), _tensor(L, 6), True),
    "group_norm": lambda L, x: L.group_norm(x, 2, _tensor(L, 6), _tensor(L, 6)),
    "instance_norm": lambda L, x: L.instance_norm(x),
    "layer_norm": lambda L, x: L.layer_norm(x, (8, 9)),
    "local_response_norm": lambda L, x: L.local_response_norm(x, 3),
    "relu": lambda L, x: L.relu(x),
    "gelu": lambda L, x: L.gelu(x),
    "softmax": lambda L, x: L.softmax(x, 1),
    "cross_entropy": lambda L, x: L.cross_entropy(x, _labels(L)),
    "nll_loss": lambda L, x: L.nll_loss(L.log_softmax(x, 1), _labels(L)),
    "mse_loss": lambda L, x: L.mse_loss(x, _tensor(L, 2, 6, 8, 9)),
    "interpolate": lambda L, x: L.interpolate(x, scale_factor=2, mode="bilinear"),
    "pad": lambda L, x: L.pad(x, (1, 2, 2, 1), mode="reflect"),
    "linear": lambda L, x: L.linear(x, _tensor(L, 5, 9)),
}


def _tensor(L: Any, *shape: int) -> Any:
    values = np.random.default_rng(3).standard_normal(shape)
    return torch.tensor(values) if L is T else Tensor(values)


def _labels(L: Any) -> Any:
    labels = np.random.default_rng(4).integers(0, 6, (2, 8, 9))
    return torch.tensor(labels) if L is T else Tensor(labels)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("call", _CHANNELS_LAST.values(), ids=_CHANNELS_LAST)
def test_channels_last(call: Callable[..., Any]) -> None:
    """Tensors whose channels lie together in memory: taken without a copy, with PyTorch's results and gradients."""
    theirs = torch.tensor(np.random.default_rng(5).standard_normal((2, 6, 8, 9)))
    theirs = theirs.contiguous(memory_format=torch.channels_last)
    ours = Tensor(theirs, requires_grad=True)
    assert np.shares_memory(ours.data, theirs.numpy())
    assert ours.data.strides == tuple(8 * step for step in theirs.stride())
    theirs.requires_grad_()
    got, expected = call(F, ours), call(T, theirs)
    np.testing.assert_allclose(got.numpy(), expected.detach().numpy(), rtol=1e-9, atol=1e-11)
    grad = np.random.default_rng(6).standard_normal(got.shape)
    got.backward(np.asarray(grad, order="F"))  # a gradient of other strides, as the layer behind may give it
    expected.backward(torch.tensor(grad))
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32"])
def test_max_pooling_of_integers(dtype: str) -> None:
    """As in PyTorch, padding never the maximum; what has no integers there has none here."""
    x = np.random.default_rng(0).integers(-100, 100, (2, 3, 7, 6)).astype(dtype)
    x[0] = np.iinfo(dtype).min
    theirs = torch.tensor(x)
    for arguments in ((2,), (3, 2, 1), ((2, 3), 1, 0, 2), (2, 2, 1, 1, True)):
        got, indices = F.max_pool2d(x, *arguments, return_indices=True)
        expected, where = T.max_pool2d(theirs, *arguments, return_indices=True)
        np.testing.assert_array_equal(got, expected.numpy(), strict=True)
        np.testing.assert_array_equal(indices, where.numpy())
        assert not F.max_pool2d(Tensor(x), *arguments).requires_grad
    for name in ("avg_pool2d", "max_pool1d", "max_pool3d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "lp_pool2d"):
        given = x[0] if name.endswith("1d") else x
        with pytest.raises(TypeError, match=f"{name}: input must hold floats"):
            getattr(F, name)(given, *([2, 2] if name == "lp_pool2d" else [2]))
    with pytest.raises(TypeError, match="max_pool2d: input must hold floats"):
        F.max_pool2d(x > 0, 2)


def test_torch_tensors_that_cannot_be_taken_are_refused() -> None:
    """A graph that would be cut, and an element type that NumPy does not have, each say so."""
    with pytest.raises(TypeError, match=r"relu: input: .*detach"):
        F.relu(torch.ones(3, requires_grad=True))
    with pytest.raises(TypeError, match=r"relu: input.*float8_e5m2"):
        F.relu(torch.ones(3).to(torch.float8_e5m2))


# Differences on purpose


def _ones(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


#: what PyTorch takes and we refuse: reason, function, positional arguments, keywords
STRICTER: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    (
        "broadcasting a target is nearly always a mistake: (N,) against (N, 1). PyTorch warns",
        "mse_loss",
        (_ones(3), _ones(3, 1)),
        {},
    ),
    (
        "an adaptive output of size 0 holds nothing, and is a miscalculated size",
        "adaptive_avg_pool2d",
        (_ones(1, 1, 4, 4), 0),
        {},
    ),
    (
        "images of no channels are miscalculated, too",
        "conv2d",
        (_ones(1, 0, 4, 4), _ones(1, 0, 2, 2)),
        {},
    ),
    (
        "kernels compute in floats; integers are converted by whoever has them",
        "relu",
        (_ones(3, dtype=np.int64),),
        {},
    ),
    (
        "a dimension left out is guessed from the rank; PyTorch warns that it should not be",
        "softmax",
        (_ones(2, 3), None),
        {},
    ),
]

#: what we take and PyTorch refuses
MORE_LENIENT: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    (
        "'same' needs it, and networks that come from other frameworks",
        "conv2d",
        (_ones(1, 1, 4, 4), _ones(1, 1, 2, 2)),
        {"padding": ((0, 1), (1, 0))},
    ),
    ("the same for poolings", "max_pool2d", (_ones(1, 1, 4, 4), 2), {"padding": ((0, 1), (1, 0))}),
    (
        "int32 labels are NumPy's default on some platforms, and no other reading of them is possible",
        "cross_entropy",
        (_ones(2, 3), np.array([0, 2], np.int32)),
        {},
    ),
]


def _called(function: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return getattr(T, function)(*(torch.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments), **keywords)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("reason", "function", "arguments", "keywords"), STRICTER, ids=lambda v: str(v)[:40])
def test_what_only_pytorch_accepts(
    reason: str, function: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    """The listed arguments are refused here although PyTorch takes them."""
    _called(function, arguments, keywords)
    with pytest.raises((ValueError, TypeError)):
        getattr(F, function)(*arguments, **keywords)


@pytest.mark.parametrize(("reason", "function", "arguments", "keywords"), MORE_LENIENT, ids=lambda v: str(v)[:40])
def test_what_only_gpuconv_accepts(
    reason: str, function: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    """The listed arguments are taken here although PyTorch refuses them."""
    with pytest.raises((RuntimeError, TypeError)):
        _called(function, arguments, keywords)
    getattr(F, function)(*arguments, **keywords)
