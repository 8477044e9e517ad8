"""The CUDA backend in the simulator: the same LeNet, the same corner cases, the choice of kernels.

The kernels themselves are proven in `test_kernels.py`; here is what stands around them: the gate, the launches, the
order of arguments, the graph.
"""

import os
import subprocess
import sys

import cases
import numpy as np
import pytest

import gpuconv
from gpuconv import Tensor, backends, optim, tuning
from gpuconv import functional as F
from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels import VARIANTS

if backends.available()["cuda"] is not None or backends.get("cuda").automatic():
    pytest.skip(f"needs the simulator: {backends.available()['cuda']}", allow_module_level=True)

LENET_CONV1 = Conv2dGeometry(64, 1, 32, 32, 6, 5, 5)


def gradients(backend, function, *arrays):
    """The result of a function on a backend, and its gradients for all arrays."""
    with gpuconv.use_backend(backend):
        tensors = [Tensor(array, requires_grad=True) for array in arrays]
        y = function(*tensors)
        y.backward(np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype))
        return [y.numpy()] + [tensor.grad.numpy() for tensor in tensors]


def assert_same(function, *arrays, rtol=1e-4, atol=1e-5):
    for ours, theirs in zip(gradients("cuda", function, *arrays), gradients("numpy", function, *arrays), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("case", [case for case in cases.CONV_CASES if case.tiny][::4], ids=str)
def test_convolution_and_its_gradients(case):
    """Result and three gradients equal the NumPy backend's, by whatever variants the rule takes."""
    x, w, b, _ = case.arrays(np.float32)
    options = (case.stride, case.padding, case.dilation, case.groups)
    if b is None:
        assert_same(lambda x, w: F.conv2d(x, w, None, *options), x, w)
    else:
        assert_same(lambda x, w, b: F.conv2d(x, w, b, *options), x, w, b)


def test_pooling_activation_and_loss():
    """Everything else that LeNet is made of, in both float types, with ties, padding and label options."""
    rng = np.random.default_rng(1)
    for dtype, tolerance in ((np.float32, {}), (np.float64, {"rtol": 1e-12, "atol": 1e-12})):
        x = rng.integers(-2, 3, (2, 3, 7, 5)).astype(dtype)
        assert_same(lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), x, **tolerance)
        assert_same(lambda x: F.avg_pool2d(x, 2, 2, 1, count_include_pad=False), x, **tolerance)
        assert_same(F.relu, x, **tolerance)
        logits, labels = rng.standard_normal((5, 4)).astype(dtype), np.array([0, 3, -100, 1, 2])
        for options in ({}, {"label_smoothing": 0.1, "reduction": "none"}, {"weight": np.arange(1, 5).astype(dtype)}):
            assert_same(lambda x, o=options: F.cross_entropy(x, labels, **o), logits, **tolerance)  # noqa: B023


@pytest.mark.slow
def test_chains_of_fully_connected_layers():
    """In one launch or composed: the same results, and only the gradients that are asked for."""
    rng = np.random.default_rng(3)
    shapes = ((2, 3, 9), (12, 9), (12,), (5, 12), (4, 5), (4,))
    x, w1, b1, w2, w3, b3 = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)

    def chain(x, w1, b1, w2, w3, b3):
        return F.linear_chain(x, [w1, w2, w3], [b1, None, b3], [True, False, True])

    assert_same(chain, x, w1, b1, w2, w3, b3)
    for operation in (operation for operation in VARIANTS if operation.startswith("linear_chain")):
        with tuning.use_variant(operation, "composed"):
            assert_same(chain, x, w1, b1, w2, w3, b3)
    with gpuconv.use_backend("cuda"):
        frozen, trained = Tensor(w1), Tensor(w2, requires_grad=True)
        F.linear_chain(x, [frozen, trained], [None, None], [True, False]).sum().backward()
        np.testing.assert_allclose(trained.grad.numpy()[0], F.relu(x @ w1.T).sum((0, 1)), rtol=1e-5)
        assert frozen.grad is None


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_optimizers(name):
    """An update in place equals the NumPy backend's."""
    gradient = np.linspace(-1, 1, 37, dtype=np.float32)
    results = []
    for backend in ("cuda", "numpy"):
        param = Tensor(np.ones(37, np.float32), requires_grad=True)
        optimizer = getattr(optim, name)([param], lr=0.1, weight_decay=0.01)
        with gpuconv.use_backend(backend):
            for _ in range(2):
                param.grad = Tensor(gradient.copy())
                optimizer.step()
        results.append(param.numpy())
    np.testing.assert_allclose(*results, rtol=1e-5)


def test_nan_infinity_and_nothing_go_through():
    """NaN and infinities come out where they do on the CPU; an empty batch gives empty results and zero gradients."""
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    x[0, 0, 1, 1], x[0, 0, 3, 3] = np.nan, np.inf
    w = np.ones((2, 1, 2, 2), np.float32)
    for function in (F.relu, lambda x: F.max_pool2d(x, 2), lambda x: F.conv2d(x, w)):
        np.testing.assert_array_equal(gradients("cuda", function, x)[0], gradients("numpy", function, x)[0])
    y, dx, dw = gradients("cuda", lambda x, w: F.conv2d(x, w), x[:0], w)
    assert y.shape == (0, 2, 3, 3)
    assert dx.shape == (0, 1, 4, 4)
    np.testing.assert_array_equal(dw, 0)


def test_the_gate_takes_any_strides_and_byte_order():
    """Transposed, stepped, read-only and big-endian arrays give the result of a plain copy."""
    x = np.random.default_rng(0).standard_normal((4, 2, 5, 6), dtype=np.float32)
    w = np.ones((1, 2, 3, 3), np.float32)
    frozen = x.copy()
    frozen.flags.writeable = False
    with gpuconv.use_backend("cuda"):
        expected = F.conv2d(x, w)
        for same in (np.asfortranarray(x), np.repeat(x, 2, axis=3)[..., ::2], x.astype(">f4"), frozen):
            np.testing.assert_array_equal(F.conv2d(same, w), expected)


def test_a_label_out_of_range_is_named():
    """The kernel cannot raise; the backend reads its flag and raises for it, naming the label."""
    with gpuconv.use_backend("cuda"), pytest.raises(ValueError, match=r"target\[1\] is 4, but input has 4 classes"):
        F.cross_entropy(np.zeros((3, 4), np.float32), np.array([0, 4, 9]))
    with gpuconv.use_backend("cuda"), pytest.raises(ValueError, match=r"target\[2\] is -1, but input has 4 classes"):
        F.cross_entropy(Tensor(np.zeros((3, 4), np.float32), requires_grad=True), np.array([0, 3, -1]))


def test_a_loss_may_be_differentiated_twice():
    """What the loss kernel has found of the gradient serves every backward, whatever was done to the first result."""
    with gpuconv.use_backend("cuda"):
        logits = Tensor(np.array([[1, 2], [3, 0]], np.float32), requires_grad=True)
        loss = F.cross_entropy(logits, np.array([0, 1]))
        loss.backward(retain_graph=True)
        first = logits.grad.numpy().copy()
        logits.grad.data[...] = 77
        logits.grad = None
        loss.backward(np.float32(3))
        np.testing.assert_allclose(logits.grad.numpy(), 3 * first, rtol=1e-6)


def test_every_operation_of_the_table_is_a_primitive():
    """The table speaks of primitives or parts of one, and the rules of variants that there are; one fits always."""
    for operation in VARIANTS:
        parts = [
            f"{name}{part}"
            for name in dir(backends.Backend)
            for part in ("", "_input", "_weight", "_stats", "_loss_grad_input", "_of_parts")
        ]
        assert operation in parts
    for operation, rules in tuning.RULES.items():
        assert {rule.variant for rule in rules} <= {*VARIANTS[operation], tuning.COMPOSED}
        assert rules[-1].variant in (tuning.COMPOSED, "direct")


@pytest.mark.slow
def test_a_fused_block():
    """Fused, composed, or partly so: the same results, and only the gradients that are asked for."""
    rng = np.random.default_rng(2)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 9, 8), (4, 3, 3, 3), (4,)))

    def block(x, w, b):
        return F.conv2d_relu_max_pool2d(x, w, b, padding=1, kernel_size=3, pool_stride=2, ceil_mode=True)

    assert_same(block, x, w, b)
    fused = gradients("cuda", block, x, w, b)
    operations = [operation for operation in VARIANTS if operation.startswith("conv2d_relu_max_pool2d")]
    for operation in operations:
        with tuning.use_variant(operation, "composed"):
            for ours, theirs in zip(gradients("cuda", block, x, w, b), fused, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    # A stride of the convolution leaves one of the three to the composition; groups all of them.
    assert_same(lambda x, w: F.conv2d_relu_max_pool2d(x, w, stride=2, kernel_size=2), x, w)
    assert_same(lambda x, w: F.conv2d_relu_max_pool2d(x, w, groups=3, kernel_size=2), x, w[:3, :1])
    with gpuconv.use_backend("cuda"):
        weight = Tensor(w, requires_grad=True)
        F.conv2d_relu_max_pool2d(Tensor(x), weight, Tensor(b), kernel_size=2).sum().backward()
        assert weight.grad is not None
        model = gpuconv.nn.Sequential(gpuconv.nn.Conv2d(1, 2, 3), gpuconv.nn.ReLU(), gpuconv.nn.MaxPool2d(2))
        text = str(gpuconv.explain(model, (1, 1, 6, 6), training=True))
    for line in ("fused: taken, by rule", "input, gathered: taken", "weight, sparse: taken", "composed: comes after"):
        assert line in text


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["image", pytest.param("composed", marks=pytest.mark.thorough)])
def test_two_fused_blocks(variant):
    """In one kernel or in one each: the same results, and only the gradients that are asked for."""
    rng = np.random.default_rng(4)
    shapes = (3, 2, 12, 11), (4, 2, 3, 3), (4,), (5, 4, 2, 2)
    x, w1, b1, w2 = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)

    def blocks(x, w1, b1, w2):
        first = {"weight": w1, "bias": b1, "kernel_size": 2, "ceil_mode": True}
        return F.conv2d_relu_max_pool2d_pair(x, first, {"weight": w2, "padding": 1, "kernel_size": 3})

    with tuning.use_variant("conv2d_relu_max_pool2d_pair", variant):
        assert_same(blocks, x, w1, b1, w2)
        with tuning.use_variant("conv2d_relu_max_pool2d_grad_input", "composed"):
            assert_same(blocks, x, w1, b1, w2)
        with gpuconv.use_backend("cuda"):
            for trained in range(4):
                tensors = [Tensor(one, requires_grad=at == trained) for at, one in enumerate((x, w1, b1, w2))]
                blocks(*tensors).sum().backward()
                assert [tensor.grad is not None for tensor in tensors] == [at == trained for at in range(4)]
            layers = (gpuconv.nn.Conv2d(1, 2, 3), gpuconv.nn.ReLU(), gpuconv.nn.MaxPool2d(2))
            layers = *layers, gpuconv.nn.Conv2d(2, 3, 3), *layers[1:]
            steps = gpuconv.explain(gpuconv.nn.Sequential(*layers), (2, 1, 14, 14), training=True).steps
    block, pair = "conv2d_relu_max_pool2d", "conv2d_relu_max_pool2d_pair"
    alone = [block, block] if variant == "composed" else []  # the parts are seen, too
    assert [step.primitive for step in steps] == [pair, *alone, f"{block}_grad", f"{block}_grad"]
    assert any(line.startswith(f"{variant}: taken, by use_variant") for line in steps[0].lines)


def test_the_users_word_counts_more_than_the_rule(monkeypatch):
    """An argument beats use_variant, which beats the environment, which beats the rule; each says so."""
    assert tuning.choose("conv2d", LENET_CONV1).source == "rule"
    monkeypatch.setenv("GPUCONV_VARIANTS", "relu=elementwise, conv2d=implicit_gemm")
    choice = tuning.choose("conv2d", LENET_CONV1)
    assert (choice.variant, choice.source) == ("implicit_gemm", "environment")
    with tuning.use_variant("conv2d", "direct"):
        choice = tuning.choose("conv2d", LENET_CONV1)
        assert (choice.variant, choice.source) == ("direct", "use_variant")
        choice = tuning.choose("conv2d", LENET_CONV1, variant="implicit_gemm")
        assert (choice.variant, choice.source) == ("implicit_gemm", "argument")
    text = dict(tuning.candidates("conv2d", LENET_CONV1))
    assert text["direct"] == "another one was asked for by environment"
    assert text["implicit_gemm"].startswith("taken, by environment")


def test_wrong_wishes_are_named(monkeypatch):
    """A typo in a name, or a variant that cannot do it, is an error; nothing else is taken silently."""
    with pytest.raises(ValueError, match=r"unknown variant of conv2d 'dierct'.*did you mean 'direct'"):
        tuning.choose("conv2d", LENET_CONV1, variant="dierct")
    with pytest.raises(ValueError, match="unknown operation 'conv3d'"), tuning.use_variant("conv3d", "direct"):
        pass
    monkeypatch.setenv("GPUCONV_VARIANTS", "conv2d")
    with pytest.raises(ValueError, match="'conv2d' is not operation=variant"):
        tuning.choose("conv2d", LENET_CONV1)
    monkeypatch.delenv("GPUCONV_VARIANTS")
    huge = Conv2dGeometry(70_000, 3, 224, 224, 64, 3, 3)
    with pytest.raises(ValueError, match=r"no kernel supports .*64-bit offsets"):
        tuning.choose("conv2d", huge)


def test_explain_names_the_kernels():
    """explain shows for each convolution the variant that runs, its tiling, and why the others do not."""
    with gpuconv.use_backend("cuda"):
        text = str(gpuconv.explain(gpuconv.nn.Conv2d(1, 2, 3), (1, 1, 5, 5)))
    assert "simulator" in text
    assert "conv2d: (1, 1, 5, 5) -> (1, 2, 3, 3), 3x3" in text
    assert "taken, by rule" in text


def test_without_a_gpu_the_reason_is_given():
    """Without the simulator and without a driver, the backend says what is missing, and auto takes another."""
    code = "import gpuconv.backends as b; print(b.available()['cuda']); print(b.current().name)"
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    environment.pop("GPUCONV_BACKEND", None)
    lines = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.splitlines()
    if lines[0] == "None":
        pytest.skip("there is a GPU")
    assert any(word in lines[0] for word in ("driver", "CuPy", "numba-cuda"))
    assert lines[1] != "cuda"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("absent", [(), ("weight", "bias"), ("residual",)], ids=str)
def test_batch_norm_runs_on_its_kernels(training, absent):
    """Batch normalisation with an addition and a ReLU behind it: result and gradients are the NumPy backend's."""
    rng = np.random.default_rng(3)
    shape, found = (2, 3, 4, 4), {}
    given = {"weight": rng.normal(size=3), "bias": rng.normal(size=3), "residual": rng.normal(size=shape)}
    x, grad, statistics = rng.normal(5, 2, shape), rng.normal(size=shape), (rng.normal(5, 1, 3), rng.uniform(1, 4, 3))
    for backend in ("numpy", "cuda"):
        with gpuconv.use_backend(backend):
            tensors = {"input": Tensor(x.copy(), requires_grad=True)}
            tensors |= {name: Tensor(given[name], requires_grad=True) for name in given if name not in absent}
            running = [array.copy() for array in statistics]
            input = tensors["input"]
            rest = {name: tensors.get(name) for name in given}
            y = F.batch_norm_relu(input, *running, **rest, training=training)
            y.backward(grad)
            found[backend] = [y.numpy(), *running, *(tensor.grad.numpy() for tensor in tensors.values())]
    for ours, theirs in zip(found["cuda"], found["numpy"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
