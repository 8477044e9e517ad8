"""The graph: what is recorded, what is freed, who owns a gradient."""

import gc
import importlib.util
import itertools
import operator
import threading
import weakref

import numpy as np
import pytest

import gpuconv
from gpuconv import Function, Tensor, gradcheck, nn, no_grad, optim, versions
from gpuconv import functional as F
from gpuconv.autograd import at_end_of_backward


def leaf(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def test_a_tensor_used_twice_gets_both_gradients():
    """d(x·x + x)/dx = 2x + 1: paths that meet are added, and the order of visiting does not lose one."""
    x = leaf(5)
    y = x * x + x
    (y * y).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * y.numpy() * (2 * x.numpy() + 1), rtol=1e-12)


def test_diamond_of_many_levels_is_linear_in_time():
    """Each vertex is visited once: 2^200 paths through 200 diamonds would never end otherwise."""
    x = Tensor(1.0, requires_grad=True, dtype=np.float64)
    y = x
    for _ in range(200):
        y = (y + y) * 0.5
    y.backward()
    assert x.grad.item() == pytest.approx(1.0)


@pytest.mark.slow
def test_graph_deeper_than_the_recursion_limit():
    """A chain of 20,000 operations differentiates and is freed without overflowing the stack."""
    x = Tensor(np.ones(1), requires_grad=True)
    y = x
    for _ in range(20_000):
        y = y + 0.0
    y.backward(np.ones(1))
    assert x.grad.item() == 1.0
    del y
    gc.collect()


def test_gradients_add_up_over_backwards_until_forgotten():
    """As in PyTorch, .grad accumulates; zero_grad starts anew."""
    x = leaf(3)
    for expected in (2.0, 4.0):
        (x * 2).sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), expected)
    x.zero_grad()
    assert x.grad is None


def test_second_backward_needs_retain_graph():
    """What forward saved is freed by backward; asking twice is an error that says how, not a wrong gradient."""
    x = leaf(3)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad.numpy(), 4 * x.numpy())
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()


def test_backward_refuses_what_has_no_meaning():
    """No graph, a missing or misshapen gradient, integers that require grad: each is an error."""
    with pytest.raises(RuntimeError, match="does not depend on"):
        Tensor(1.0).backward()
    with pytest.raises(ValueError, match="grad must be given for a Tensor of shape \\(3,\\)"):
        (leaf(3) * 2).backward()
    with pytest.raises(ValueError, match="grad must have the shape"):
        (leaf(3) * 2).backward(np.ones(4))
    with pytest.raises(TypeError, match="requires_grad needs float"):
        Tensor([1, 2], requires_grad=True)


def test_leaves_never_share_a_gradient_array():
    """Writing into one leaf's .grad (clipping) must not change another's, nor the caller's array."""
    a, b, c = leaf(2, 3), leaf(2, 3), leaf(3, 2)
    seed = np.ones((2, 3))
    (a + b + c.reshape(2, 3)).backward(seed)
    a.grad.data[...] = 7
    np.testing.assert_array_equal(b.grad.numpy(), 1)
    np.testing.assert_array_equal(c.grad.numpy(), 1)
    np.testing.assert_array_equal(seed, 1)


def test_no_grad_records_nothing_and_is_local_to_a_thread():
    """Inside no_grad results need no gradient; another thread is not affected; the decorator works like the block."""
    x = leaf(3)
    seen = {}
    with no_grad():
        assert not (x * 2).requires_grad
        thread = threading.Thread(target=lambda: seen.update(recorded=(x * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen["recorded"]
    assert (x * 2).requires_grad
    assert not no_grad()(lambda: x * 2)().requires_grad


def test_intermediate_results_are_freed_while_the_result_lives():
    """A result keeps only what backward needs: an activation that nobody saved dies with its last name."""
    x = leaf(10)
    hidden = x + 1.0  # Add saves only shapes
    alive = weakref.ref(hidden.data)
    result = hidden.sum()
    del hidden
    gc.collect()
    assert alive() is None
    result.backward()


def test_saved_arrays_are_released_by_backward():
    """After backward the inputs of a product are no longer held by the graph, even if the loss still is."""
    x = leaf(10)
    product = x * np.ones(10)
    alive = weakref.ref(product.data)
    loss = (product * product).sum()
    del product
    assert alive() is not None
    loss.backward()
    gc.collect()
    assert alive() is None


def test_backward_runs_on_the_backend_of_its_forward():
    """The backend chosen at forward is noted; a later choice of another one does not move the backward."""
    used = []

    class Probe(Function):
        @staticmethod
        def forward(ctx, a):
            return a.copy()

        @staticmethod
        def backward(ctx, grad):
            used.append(ctx.backend.name)
            return grad

    with gpuconv.use_backend("numpy"):
        y = Probe.apply(leaf(2))
    y.backward(np.ones(2))
    assert used == ["numpy"]


def test_gradients_by_choice():
    """set_grad_enabled holds until its block ends, or as a call until the next one; enable_grad inside of no_grad."""
    x = leaf(3)
    for phase in ("train", "val"):
        with gpuconv.set_grad_enabled(phase == "train"):
            assert (x * 2).requires_grad == (phase == "train")
        assert gpuconv.is_grad_enabled()
    with no_grad():
        with gpuconv.enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    before = gpuconv.set_grad_enabled(False)
    assert not (x * 2).requires_grad
    before.__exit__()
    assert (x * 2).requires_grad


@pytest.mark.parametrize(
    ("decorator", "recorded"),
    [
        (no_grad, False),
        (no_grad(), False),
        (gpuconv.enable_grad, True),
        (gpuconv.inference_mode, False),
        (gpuconv.inference_mode(), False),
        (gpuconv.inference_mode(mode=False), True),
        (lambda function: gpuconv.set_grad_enabled(False)(function), False),
        (lambda function: gpuconv.set_grad_enabled(True)(function), True),
    ],
)
@pytest.mark.parametrize("outside", [True, False])
def test_gradients_of_a_decorated_function(decorator, recorded, outside):
    """With parentheses and without, each call alone, what returns and what raises; as in PyTorch."""

    @decorator
    def doubled(x, *, fail=False):
        """Twice."""
        if fail:
            raise KeyError
        return x * 2

    assert (doubled.__name__, doubled.__doc__) == ("doubled", "Twice.")
    with gpuconv.set_grad_enabled(outside):
        for _ in range(2):
            assert doubled(leaf(3)).requires_grad == recorded
            with pytest.raises(KeyError):
                doubled(leaf(3), fail=True)
            assert gpuconv.is_grad_enabled() == outside


def test_gradients_of_a_decorated_generator():
    """Between its values alone, whoever asks for them; what is sent and thrown in arrives, and it is closed."""
    log = []

    @no_grad
    def generator(x):
        try:
            while True:
                try:
                    given = yield (x * 2).requires_grad
                    x = x if given is None else given
                except KeyError:
                    log.append((x * 2).requires_grad)
                    if len(log) == 2:
                        return "end"
        finally:
            log.append(gpuconv.is_grad_enabled())

    values = generator(leaf(3))
    assert next(values) is False
    assert gpuconv.is_grad_enabled()
    assert values.send(leaf(2)) is False
    assert values.throw(KeyError) is False
    with pytest.raises(StopIteration, match="end"):
        values.throw(KeyError)
    assert log == [False] * 3
    closed = generator(leaf(3))
    next(closed)
    closed.close()
    assert log == [False] * 4
    assert gpuconv.is_grad_enabled()


def test_frozen_after_forward_gets_no_gradient():
    """As in PyTorch: what counts is whether a leaf requires grad when backward reaches it."""
    x, w = leaf(3), leaf(3, seed=1)
    y = x * w
    w.requires_grad = False
    y.sum().backward()
    assert w.grad is None
    np.testing.assert_array_equal(x.grad.numpy(), w.numpy())


def test_own_function():
    """A user's Function joins the graph: forward and backward on plain arrays."""

    class Cube(Function):
        @staticmethod
        def forward(ctx, a):
            ctx.save(a)
            return a**3

        @staticmethod
        def backward(ctx, grad):
            (a,) = ctx.saved
            return grad * 3 * a**2

    assert gradcheck(Cube.apply, [leaf(4)])


def test_gradcheck_finds_a_wrong_gradient():
    """A backward that is off by a factor, or NaN, is reported with its place; a gradcheck that cannot fail is none."""

    class Wrong(Function):
        factor = 1.01

        @staticmethod
        def forward(ctx, a):
            return a * 2

        @classmethod
        def backward(cls, ctx, grad):
            return grad * 2 * Wrong.factor

    with pytest.raises(gpuconv.autograd.GradcheckError, match="input 0 at"):
        gradcheck(Wrong.apply, [leaf(3)])
    Wrong.factor = np.nan
    with pytest.raises(gpuconv.autograd.GradcheckError, match="nan"):
        gradcheck(Wrong.apply, [leaf(3)])


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / (b * b + 1.0),
        lambda a, b: (a * a + 1.0) ** 0.5 + b,
        lambda a, b: (a * 0.1).exp() * b,
        lambda a, b: (a * a + 1.0).log() * b,
        lambda a, b: 2.0 - a / 3.0 + 1.0 / (b * b + 1.0),
        lambda a, b: a.mean(1) + b.sum((0,)).sum(),
        lambda a, b: a.sum(-1, keepdim=True) * b,
        lambda a, b: a.permute(2, 0, 1).flatten()[::2].reshape(4, 3) * b.sum(),
        lambda a, b: a[:, [0, 0, 2]] * b[0, 0],
        lambda a, b: a.T.sum() * b,
    ],
    ids=["add", "sub", "mul", "div", "pow", "exp", "log", "scalars", "mean", "keepdim", "views", "fancy", "T"],
)
def test_arithmetic_gradients_with_broadcasting(function):
    """Operators, reductions and indexing agree with finite differences, operands of (2, 3, 4) and (3, 1) broadcast."""
    assert gradcheck(function, [leaf(2, 3, 4), leaf(3, 1, seed=1)])


MATRICES = "3@3 2,3@3 3@3,2 2,3@3,4 5,2,3@3,4 3@5,3,4 5,1,2,3@4,3,2"


@pytest.mark.parametrize("shapes", MATRICES.split())
def test_matmul_gradients(shapes):
    """Vectors, matrices and stacks of them, as numpy.matmul takes them."""
    a, b = ([int(size) for size in shape.split(",")] for shape in shapes.split("@"))
    x, y = leaf(*a), leaf(*b, seed=1)
    np.testing.assert_allclose((x @ y).numpy(), x.numpy() @ y.numpy())
    assert gradcheck(lambda x, y: x @ y, [x, y])


def test_numpy_on_the_left_keeps_the_graph():
    """array * tensor must not fall into NumPy, which would return an array cut from the graph."""
    x = leaf(3)
    array = np.arange(3.0)
    for result in (array * x, array + x, array - x, array / (x * x + 1.0), array @ x, np.float64(2) * x):
        assert isinstance(result, Tensor)
        assert result.requires_grad


def test_python_numbers_do_not_change_the_type():
    """float32 stays float32 through scalars on either side, and through scalars' own (0-d) results."""
    x = Tensor([1.0, 2.0], requires_grad=True)
    assert x.dtype == np.float32
    total = (2 * x - 1.5).sum() / 3
    assert (total * 2.0).dtype == np.float32
    total.backward()
    assert x.grad.dtype == np.float32


def test_what_a_tensor_can_be_made_of():
    """Arrays are shared, not copied; lists become float32; texts, ragged lists and None are refused with the reason."""
    array = np.zeros((2, 2))
    assert Tensor(array).data is array
    assert Tensor([[1.0, 2.0]]).dtype == np.float32
    assert Tensor([1, 2]).dtype == np.int64
    assert Tensor(2.5).item() == 2.5
    assert Tensor([]).shape == (0,)
    for wrong in ("text", None, [[1, 2], [3]], [1j]):
        with pytest.raises(TypeError):
            Tensor(wrong)
    with pytest.raises(ValueError, match="exactly one element"):
        Tensor([1.0, 2.0]).item()
    with pytest.raises(TypeError, match="len"):
        len(Tensor(1.0))


def test_arrays_in_arrays_out():
    """Without a Tensor among the inputs the result is a plain array of the same element type."""
    y = F.relu(np.array([-1.0, 2.0], np.float32))
    assert type(y) is np.ndarray
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, [0, 2])


def test_torch_tensors_share_their_memory_and_keep_their_kind():
    """A torch CPU tensor in gives a torch tensor out; one that requires grad is refused, its graph would be cut."""
    torch = pytest.importorskip("torch", reason="pip install torch to test the exchange with it")
    x = torch.tensor([-1.0, 2.0])
    y = F.relu(x)
    assert isinstance(y, torch.Tensor)
    assert y.tolist() == [0.0, 2.0]
    shared = Tensor(x)
    x[0] = 5.0
    assert shared.numpy()[0] == 5.0
    with pytest.raises(TypeError, match="detach"):
        F.relu(torch.zeros(2, requires_grad=True))


def test_backend_choice(monkeypatch):
    """use_backend beats the environment, which beats auto; a wrong name is refused with the nearest one."""
    monkeypatch.setenv("GPUCONV_BACKEND", "numpy")
    assert gpuconv.backends.current().name == "numpy"
    monkeypatch.setenv("GPUCONV_BACKEND", "nunpy")
    with pytest.raises(ValueError, match=r"GPUCONV_BACKEND.*did you mean 'numpy'"):
        gpuconv.backends.current()
    with gpuconv.use_backend("numpy") as backend:
        assert gpuconv.backends.current() is backend
    with (
        pytest.raises(ValueError, match=r"unknown backend 'cuda13'; there are .*did you mean 'cuda'"),
        gpuconv.use_backend("cuda13"),
    ):
        pass


def test_unavailable_backend_says_why():
    """A backend that cannot run here is an error with the reason, and `available` gives the same reason."""
    for name, reason in gpuconv.backends.available().items():
        if reason is not None:
            with pytest.raises(gpuconv.BackendUnavailable, match=f"the {name} backend is not available: "):
                gpuconv.backends.get(name)


# -- types of gradients ----------------------------------------------------------------------------------------------


def _chains():
    """Losses of a float32 (2, 1, 6, 6) in which other element types take part."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (2, 2, 4, 4))
    wide = rng.standard_normal((2, 2, 4, 4))
    yield "integer mask", lambda f, y, as_operand: (f(y) * as_operand(mask)).sum()
    yield "bool mask", lambda f, y, as_operand: (f(y) * as_operand(mask != 0)).sum()
    yield "float64 target", lambda f, y, as_operand: ((f(y) - as_operand(wide)) ** 2).sum()
    yield "float64 factor", lambda f, y, as_operand: (as_operand(wide) * f(y)).sum()
    yield "NumPy integer", lambda f, y, as_operand: (f(y) / np.int64(16)).sum() * np.float64(3)
    yield "no dimensions", lambda f, y, as_operand: (f(y) * as_operand(np.array(2.5))).sum() / as_operand(np.array(3))


@pytest.mark.parametrize("chain", list(_chains()), ids=lambda chain: chain[0])
def test_a_gradient_has_the_type_of_its_value(every_backend, chain):
    """Whatever was mixed in behind a convolution and a ReLU: values and gradients are PyTorch's, and float32."""
    torch = pytest.importorskip("torch", reason="PyTorch's promotion of types is the judge")
    rng = np.random.default_rng(1)
    image = rng.standard_normal((2, 1, 6, 6)).astype(np.float32)
    weight = rng.standard_normal((2, 1, 3, 3)).astype(np.float32)
    _, loss_of = chain
    x, w = Tensor(image, True), Tensor(weight, True)
    loss = loss_of(F.relu, F.conv2d(x, w), lambda array: array)
    loss.backward()
    tx, tw = (torch.tensor(array, requires_grad=True) for array in (image, weight))
    wanted = loss_of(torch.relu, torch.nn.functional.conv2d(tx, tw), torch.tensor)
    wanted.backward()
    assert str(wanted.dtype) == f"torch.{loss.dtype}"
    np.testing.assert_allclose(loss.numpy(), wanted.detach().numpy(), rtol=1e-5)
    for ours, theirs in ((x, tx), (w, tw)):
        assert ours.grad.dtype == np.float32
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


def _returning(result):
    class Given(Function):
        @staticmethod
        def forward(ctx, a, b):
            return a + b

        @staticmethod
        def backward(ctx, grad):
            return result(grad)

    return Given


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (lambda grad: (grad, grad, grad), RuntimeError, "for each of the 2 inputs .* returned 3"),
        (lambda grad: grad, RuntimeError, "for each of the 2 inputs .* returned 1"),
        (lambda grad: (grad, grad[:2]), ValueError, r"input 1 must have the input's shape \(3,\), got \(2,\)"),
        (lambda grad: ([1.0, 2.0, 3.0], grad), TypeError, "input 0 must be an array of the .* backend, got list"),
        (lambda grad: (grad, grad > 0, ), None, None),
        (lambda grad: (grad.astype(np.float64), None), None, None),
        (lambda grad: (grad + 1j, grad), TypeError, "input 0 must hold numbers, got complex64"),
    ],
)  # fmt: skip
def test_what_a_function_of_the_user_returns_is_checked(every_backend, result, error, words):
    """Another number of gradients, a shape or kind that is not the input's: one line; another type is converted."""
    a, b = (Tensor(np.ones(3, np.float32), True) for _ in range(2))
    y = F.relu(_returning(result).apply(F.relu(a), F.relu(b))).sum()
    if error is None:
        y.backward()
        assert a.grad.dtype == np.float32
        assert b.grad is None or b.grad.dtype == np.float32
        np.testing.assert_array_equal(a.grad.numpy(), 1)
    else:
        with pytest.raises(error, match=f"Given.backward.*{words}"):
            y.backward()


def test_promotion_is_pytorchs():
    """The result's type of each pair of element types, arrays with and without dimensions, and numbers."""
    torch = pytest.importorskip("torch", reason="PyTorch's promotion of types is the judge")
    kinds = ("bool", "uint8", "int32", "int64", "float32", "float64")
    operands = [np.ones(shape, kind) for kind in kinds for shape in ((2, 2), ())] + [2, 1.5, True]
    checked = 0
    for a, b in itertools.product(operands, operands):
        if not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray):
            continue
        for function in (operator.add, operator.mul, operator.truediv):
            theirs = function(*(torch.tensor(x) if isinstance(x, np.ndarray) else x for x in (a, b)))
            ours = function(*(Tensor(x) if isinstance(x, np.ndarray) else x for x in (a, b)))
            assert f"torch.{ours.dtype}" == str(theirs.dtype), (function, a, b)
            checked += 1
    assert checked == 3 * (15 * 15 - 9)


def test_a_tensor_as_an_index(backend):
    """Forward and gradient are those of its array: alone, and beside slices."""
    index = np.array([2, 0, 2])
    for make in (lambda i: i, lambda i: (slice(1, None), i)):
        grads = []
        for i in (index, Tensor(index)):
            x = leaf(3, 3)
            (x[make(i)] * 2).sum().backward()
            grads.append(x.grad.numpy())
        np.testing.assert_array_equal(*grads)


def test_negative_numbers_beside_unsigned_ones(backend):
    """They wrap, as in PyTorch: -1 is 255 in uint8."""
    x = Tensor(np.array([0, 1, 200], np.uint8))
    for got, expected in (
        (-x, [0, 255, 56]),
        (x + -1, [255, 0, 199]),
        (x * -2, [0, 254, 112]),
        (x - 300, [212, 213, 156]),
    ):
        np.testing.assert_array_equal(got.numpy(), np.array(expected, np.uint8), strict=True)


# -- in place --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", [operator.iadd, operator.isub, operator.imul, operator.itruediv])
def test_updates_by_hand_write_into_the_parameter(every_backend, update):
    """Inside of no_grad() all names of a parameter see them, as in PyTorch; and they are that update."""
    parameter = Tensor(np.array([1.0, 2.0], np.float32), True)
    other_name, memory = parameter, parameter.data
    (parameter * parameter).sum().backward()
    with no_grad():
        parameter = update(parameter, 0.5 * parameter.grad)
    assert parameter is other_name
    assert parameter.data is memory
    by_hand = update(np.array([1.0, 2.0], np.float32), np.array([1.0, 2.0], np.float32))
    np.testing.assert_array_equal(memory, by_hand)
    assert parameter.requires_grad


def test_in_place_where_it_would_be_wrong(every_backend):
    """A leaf whose graph is recorded, another shape, an integer that would lose its fraction: refused, unchanged."""
    parameter = Tensor(np.ones(2, np.float32), True)
    with pytest.raises(RuntimeError, match=r"-=: a leaf that requires grad cannot .*no_grad"):
        parameter -= 1
    plain, whole = Tensor(np.ones(2, np.float32)), Tensor(np.ones(2, np.int64))
    with pytest.raises(ValueError, match=r"\+=: the result has shape \(3, 2\), and is to be written into \(2,\)"):
        plain += np.ones((3, 2), np.float32)
    with pytest.raises(TypeError, match="/=: the result is float32, which int64 cannot hold"):
        whole /= 2
    for tensor in (parameter, plain, whole):
        np.testing.assert_array_equal(tensor.numpy(), 1)


def test_in_place_on_a_result_keeps_the_graph(every_backend):
    """The gradient is that of the whole expression, and what was saved for it is not written over."""
    x = leaf(3)
    y = x * x
    y *= y
    y += 1
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 4 * x.numpy() ** 3, rtol=1e-12)


def test_in_place_changes_the_tensor_and_not_the_name(every_backend):
    """Who else has it sees the new value, type and shape stay, and the gradient is that of the whole expression."""
    x = leaf(3)
    y = x * x
    other_name, kept = y, y.data
    y += Tensor(np.ones(3, np.float64))
    assert other_name is y
    np.testing.assert_array_equal(kept, x.numpy() ** 2)
    single = (x * x).type_as(Tensor(0.0))
    single *= x
    assert single.dtype == np.float32
    (other_name.sum() + single.sum()).backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * x.numpy() + 3 * x.numpy() ** 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"\+=: the result has shape \(2, 3\)"):
        y += np.ones((2, 3))
    plain = Tensor(np.ones(3))
    with no_grad():
        y -= y  # without a record it is the array that is changed
    plain += x
    assert plain.requires_grad
    assert not y.numpy().any()


@pytest.mark.parametrize("kind", ["uint8", "int64", "bool", "float64"])
def test_alpha_is_a_factor_in_the_type_of_the_result(every_backend, kind):
    """Beside a float the other operand is one, whatever it was, also where it could not hold the product."""
    x, other = Tensor(np.array([0.5, 1.5, 2.5], np.float32), True), Tensor(np.array([0, 1, 1]).astype(kind))
    for alpha in (-1, 0.5, 3):
        result = x.sub(other, alpha=alpha)
        assert result.dtype == (np.float64 if kind == "float64" else np.float32)
        np.testing.assert_allclose(result.numpy(), x.numpy() - alpha * other.numpy().astype(np.float64))
        np.testing.assert_allclose(
            x.add(other, alpha=alpha).numpy(), x.numpy() + alpha * other.numpy().astype(np.float64)
        )
    np.testing.assert_array_equal(x.add(2, alpha=-2).numpy(), x.numpy() - 4)


def test_what_is_cast_to_integers_has_no_gradient(backend):
    """Its graph ends there, as in PyTorch; between floats the gradient goes back in the first type."""
    x = leaf(3)
    assert not x.type_as(Tensor(np.array([1]))).requires_grad
    y = x.type_as(Tensor(np.array([1.0], np.float32)))
    (y * 2).sum().backward()
    assert (y.dtype, x.grad.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(x.grad.numpy(), 2)


@pytest.mark.parametrize("index", [1, slice(None, None, -2), (0, slice(1, None)), (..., None, 1), [0, 0], ([1, 1], 0)])
def test_gradients_of_an_index(every_backend, index):
    """Each element gets what all places have where it went: slices once, index arrays as often as they name it."""
    x = leaf(3, 4)
    x[index].sum().backward()
    expected = np.zeros((3, 4))
    np.add.at(expected, index, 1)
    np.testing.assert_array_equal(x.grad.numpy(), expected)


# -- values changed between forward and backward ---------------------------------------------------------------------


def _steps(library, *parameters):
    for parameter in parameters:
        parameter.grad = (Tensor if library is gpuconv else library.tensor)(np.ones(parameter.shape, np.float32))
    (optim if library is gpuconv else library.optim).SGD(parameters, lr=0.5).step()


def _load(library, *parameters):
    if library is gpuconv:
        module = nn.Module()
        module.weight = nn.Parameter(parameters[0].data)
        module.load_state_dict({"weight": np.zeros((2, 3), np.float32)})
    else:
        with library.no_grad():
            parameters[0].copy_(library.zeros(2, 3))  # as its load_state_dict does


def _subtract(library, *parameters):
    for parameter in parameters:
        with library.no_grad():
            parameter -= 1


#: Name: the loss of x and w (2, 3), which of them is changed, and whether its old values are needed.
CHANGED = {
    "product": (lambda F, x, w: (x * w).sum(), "w", True),
    "quotient": (lambda F, x, w: (x / w).sum(), "w", True),
    "numerator": (lambda F, x, w: (x / w.detach()).sum(), "x", False),
    "sum": (lambda F, x, w: (x + w).sum(), "w", False),
    "power": (lambda F, x, w: (w**3 * x).sum(), "w", True),
    "matrices": (lambda F, x, w: (x @ w.T).sum(), "w", True),
    "layer": (lambda F, x, w: F.linear(x, w).sum(), "w", True),
    "layer of data": (lambda F, x, w: F.linear(x.detach(), w).sum(), "w", False),
    "its data": (lambda F, x, w: F.linear(x, w).sum(), "x", True),
    "convolution": (lambda F, x, w: F.conv2d(x.reshape(1, 2, 3, 1), w.reshape(1, 2, 3, 1)).sum(), "w", True),
    "a row": (lambda F, x, w: (w[0] * x[1]).sum(), "w", True),
    "activation": (lambda F, x, w: F.relu(x * w.detach()).sum(), "x", False),
    "another": (lambda F, x, w: (x * x).sum() + w.sum(), "w", False),
}


@pytest.mark.parametrize("change", [_steps, _load, _subtract])
@pytest.mark.parametrize("case", CHANGED)
def test_values_changed_before_backward(every_backend, case, change):
    """Refused where backward needs the old ones, else without influence on gradients: exactly where PyTorch does."""
    loss_of, changed, needed = CHANGED[case]
    values = np.random.default_rng(0).uniform(0.5, 1, (2, 2, 3)).astype(np.float32)

    def gradients(library, changes):
        make, functional = (Tensor, F) if library is gpuconv else (library.tensor, library.nn.functional)
        x, w = (make(value.copy(), requires_grad=True) for value in values)
        loss = loss_of(functional, x, w)
        if changes:
            change(library, x if changed == "x" else w)
        x.grad = w.grad = None
        loss.backward()
        return [np.zeros(1) if grad is None else np.asarray(grad) for grad in (x.grad, w.grad)]

    wanted = gradients(gpuconv, changes=False)
    for library in [gpuconv, *([importlib.import_module("torch")] if importlib.util.find_spec("torch") else [])]:
        # A kernel takes no transposed array: what was saved is a copy, which nothing has changed.
        copied = library is gpuconv and every_backend.name == "cuda" and case == "matrices"
        if needed and not copied:
            with pytest.raises(RuntimeError) as error:
                gradients(library, changes=True)
            if library is gpuconv:
                by = {_steps: "SGD.step", _load: "load_state_dict", _subtract: "-="}[change]
                assert f"which {by} changed in place since" in str(error.value)
        else:
            for one, other in zip(gradients(library, changes=True), wanted, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-6)


def test_versions_of_what_is_gone():
    """Nothing is kept of arrays that are gone, and an array at the same address begins anew."""
    before = len(versions._known)
    for _ in range(100):
        versions.changed(np.ones(1000), "a test")
    assert len(versions._known) == before
    x = leaf(3)
    for _ in range(3):  # one after the other: no step lies between a forward and its backward
        loss = (x * x).sum()
        loss.backward()
        with no_grad():
            x -= 0.1 * x.grad


# -- comparison and numbers ------------------------------------------------------------------------------------------


def test_comparison_is_element_by_element(every_backend):
    """With numbers, arrays and Tensors, on both sides; with what is no number a Tensor is not equal."""
    x = Tensor(np.array([0.0, 1.0, np.nan, 3.0], np.float32), True)
    for compare in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge):
        for other in (1, 1.0, np.float32(1), np.array([0, 2, 1, 3]), Tensor(np.array([0.0, 2.0, 1.0, 3.0]))):
            wanted = compare(x.data, other.data if isinstance(other, Tensor) else other)
            found = compare(x, other)
            assert isinstance(found, Tensor)
            assert not found.requires_grad
            np.testing.assert_array_equal(found.numpy(), wanted)
    np.testing.assert_array_equal((x > 1).numpy(), x.data > 1)
    assert bool(Tensor(0.0) == 0)
    assert (x == None) is False and x != "x"  # noqa: E711, PT018
    assert {x: 1}[x] == 1
    with pytest.raises(ValueError, match="exactly one element"):
        bool(x == x)


def test_a_number_is_a_number():
    """Formatting, rounding and conversion of a Tensor that holds one; of others only what does not need one."""
    loss = Tensor(np.array(1.2345, np.float32), True)
    assert f"{loss:.3f}" == "1.234" or f"{loss:.3f}" == "1.235"
    assert int(loss) == 1
    assert round(loss, 2) == pytest.approx(1.23)
    assert round(Tensor(2.6)) == 3
    assert loss < 2 and loss >= 1  # noqa: PT018
    assert f"{loss}" == str(loss)
    assert [10, 20, 30][Tensor(np.array(1))] == 20
    with pytest.raises(TypeError, match="only an integer Tensor"):
        [10, 20][Tensor(1.0)]
    with pytest.raises(ValueError, match="exactly one element"):
        int(leaf(2))
    with pytest.raises(TypeError):
        f"{leaf(2):.3f}"


def test_a_gradient_is_nobody_elses(every_backend):
    """Of a Function that returns what it saved, a leaf's own array say: writing into .grad changes nothing else."""

    class Product(Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save(a, b)
            return (a * b).sum()

        @staticmethod
        def backward(ctx, grad):
            a, b = ctx.saved
            return b, a

    for retain_graph in (False, True):
        a, b = Tensor(np.array([1.0, 2.0]), True), Tensor(np.array([3.0, 4.0]), True)
        y = Product.apply(a, b)
        y.backward(retain_graph=retain_graph)
        a.grad.data *= 0
        b.grad.data *= 0
        np.testing.assert_array_equal(a.numpy(), [1, 2])
        np.testing.assert_array_equal(b.numpy(), [3, 4])
    y.backward()
    np.testing.assert_array_equal(a.grad.numpy(), [3, 4])


def test_what_cannot_be_held_is_refused_in_place():
    """An integer by a bool; wider integers and floats are converted, as in PyTorch."""
    flags, few, half = Tensor(np.array([True])), Tensor(np.array([1], np.uint8)), Tensor(np.ones(1, np.float32))
    with pytest.raises(TypeError, match=r"\+=: the result is int64, which bool cannot hold"):
        flags += 1
    few += np.array([5])
    half *= Tensor(np.array([2.5]))
    assert (few.numpy()[0], few.dtype, half.numpy()[0], half.dtype) == (6, np.uint8, 2.5, np.float32)


@pytest.mark.parametrize("kind", ["uint8", "int32", "int64", "bool"])
def test_functions_of_integers_are_float32(every_backend, kind):
    """exp, log, powers and sums have PyTorch's types."""
    torch = pytest.importorskip("torch", reason="PyTorch's types are the judge")
    values = np.array([1, 0, 1]).astype(kind)
    ours, theirs = Tensor(values), torch.tensor(values)
    for function in (
        lambda x: x.exp(),
        lambda x: x.log(),
        lambda x: x**0.5,
        lambda x: x.sum(),
        *([lambda x: x**2] if kind != "bool" else []),
    ):
        assert f"torch.{function(ours).dtype}" == str(function(theirs).dtype)
        np.testing.assert_allclose(function(ours).numpy(), function(theirs).numpy(), rtol=1e-6)


def test_powers_of_zero(every_backend):
    """The gradient of x ** 0 and x ** 1 at 0 is 0 and 1, as in PyTorch."""
    for exponent, slope in ((0, 0), (1, 1), (2, 0)):
        x = Tensor(np.array([0.0, 2.0]), True)
        (x**exponent).sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), [slope, exponent * 2.0 ** (exponent - 1)])


def test_gradients_of_results_are_kept_on_request():
    """Behind the Tensor's hooks, whenever they were registered; they add up; a copy; one of leaves as ever."""
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    hidden, other = x * 3, x * 5
    assert not hidden.retains_grad
    for _ in range(2):
        hidden.retain_grad()
    assert hidden.retains_grad
    hidden.register_hook(lambda grad: grad * 10)
    y = (hidden * hidden + other).sum()
    y.backward(retain_graph=True)
    np.testing.assert_array_equal(hidden.grad.numpy(), [60, 120])
    assert other.grad is None
    x.retain_grad()
    assert not x.retains_grad
    y.backward()
    np.testing.assert_array_equal(hidden.grad.numpy(), [120, 240])
    np.testing.assert_array_equal(x.grad.numpy(), [2 * (3 * 60 + 5), 2 * (3 * 120 + 5)])
    result = (x * 2).sum()
    result.retain_grad()
    result.backward()
    assert result.grad.item() == 1
    with pytest.raises(RuntimeError, match="retain_grad"):
        x.detach().retain_grad()
    gone = weakref.ref(middle := x * 2)
    middle.retain_grad()
    end = (middle + 1).sum()
    del middle
    assert gone() is None
    end.backward()


def test_hooks_of_leaves_run_while_backward_goes_on():
    """A leaf's hook is called when its gradient is complete, before the operations in front of it are differentiated;
    what is to be called at the end finds all gradients in place.
    """
    order = []

    class Seen(Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            order.append("first layer")
            return grad

    first, last = Tensor(np.full(2, 3.0), requires_grad=True), Tensor(np.full(2, 5.0), requires_grad=True)

    def hook(grad):
        order.append(grad.numpy().tolist())
        at_end_of_backward(lambda: order.append((first.grad.numpy().tolist(), last.grad.numpy().tolist())))

    last.register_hook(hook)
    hidden = Seen.apply(first)
    # Used twice: complete after the use that comes first in forward.
    (hidden * last + last).sum().backward()
    assert order == [[4.0, 4.0], "first layer", ([5.0, 5.0], [4.0, 4.0])]
    with pytest.raises(RuntimeError, match="no backward runs"):
        at_end_of_backward(lambda: None)
