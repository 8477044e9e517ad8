"""Modules around the operations: losses, containers, buffers, hooks, what is done to all parameters at once."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import numpy as np
import pytest
from support.operation_cases import LOSSES

import gpuconv
from gpuconv import Tensor, nn

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="pip install torch to compare with PyTorch")


def _drawn(kind: str, rng: np.random.Generator) -> np.ndarray:
    shape = (4, 3)
    return {
        "r": lambda: rng.standard_normal(shape).astype(np.float32),
        "u": lambda: rng.uniform(0.1, 0.9, shape).astype(np.float32),
        "i": lambda: rng.integers(0, 3, 4),
        "s": lambda: rng.choice([-1.0, 1.0], shape).astype(np.float32),
        "l": lambda: rng.choice([-1.0, 1.0], 4).astype(np.float32),
    }[kind]()


@needs_torch
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("name", "options", "kinds"), LOSSES, ids=lambda value: str(value)[:30])
def test_losses(name: str, options: dict[str, Any], kinds: str) -> None:
    """A loss has PyTorch's arguments, attributes, state and gradient."""
    rng = np.random.default_rng(0)
    arrays = [_drawn(kind, rng) for kind in kinds]
    weight = np.array([0.5, 1.0, 2.0], np.float32)
    ours = getattr(nn, name)(**{k: Tensor(weight) if v == "weight" else v for k, v in options.items()})
    theirs = getattr(torch.nn, name)(**{k: torch.tensor(weight) if v == "weight" else v for k, v in options.items()})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    mine, leaf = Tensor(arrays[0], requires_grad=True), torch.tensor(arrays[0], requires_grad=True)
    got = ours(mine, *arrays[1:])
    expected = theirs(leaf, *map(torch.tensor, arrays[1:]))
    np.testing.assert_allclose(got.numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    got.sum().backward()
    expected.sum().backward()
    np.testing.assert_allclose(mine.grad.numpy(), leaf.grad.numpy(), rtol=1e-4, atol=1e-6)


def _net(L: Any) -> Any:
    """A network of every kind of container, of either library."""
    net = L.nn.Sequential(L.nn.Linear(3, 4), L.nn.ReLU())
    net.append(L.nn.Linear(4, 4)).extend([L.nn.BatchNorm1d(4), L.nn.ReLU()])
    net.insert(1, L.nn.Identity())
    net.add_module("lists", L.nn.ModuleList([L.nn.Linear(1, 2), L.nn.Linear(2, 1)]))
    net.lists.append(L.nn.ReLU())
    net.lists.insert(1, L.nn.Linear(2, 2))
    net.lists += [L.nn.Linear(1, 1)]
    del net.lists[0]
    net.add_module("dict", L.nn.ModuleDict({"one": L.nn.Linear(1, 1), "two": L.nn.BatchNorm1d(2, affine=False)}))
    net.dict["three"] = L.nn.PReLU()
    del net.dict["one"]
    net.add_module("parameters_", L.nn.ParameterList([L.nn.Parameter(L.zeros(2)), L.nn.Parameter(L.ones(1))]))
    net.add_module("named", L.nn.ParameterDict({"a": L.nn.Parameter(L.zeros(2))}))
    return net


@needs_torch
def test_states_of_containers_move_to_and_from_torch() -> None:
    """The same names in the same order, buffers included; each library loads the other's."""
    ours, theirs = _net(gpuconv), _net(torch)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert [name for name, _ in ours.named_buffers()] == [name for name, _ in theirs.named_buffers()]
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict({name: torch.tensor(value) for name, value in ours.state_dict().items()})
    assert len(ours.lists) == len(theirs.lists) == 4
    assert list(ours.dict.keys()) == list(theirs.dict.keys())
    assert [type(one).__name__ for one in ours.lists[1:]] == [type(one).__name__ for one in theirs.lists[1:]]


def test_the_imports_of_a_pytorch_script() -> None:
    """They work with the library's name replaced."""
    functional = importlib.import_module("gpuconv.nn.functional")
    assert functional.relu is gpuconv.functional.relu
    assert set(functional.__all__) == set(gpuconv.functional.__all__)
    assert importlib.import_module("gpuconv.nn.utils").clip_grad_norm_ is nn.utils.clip_grad_norm_


def test_buffers_are_state_and_no_parameters() -> None:
    """They are saved, loaded, converted and copied, but not learned; what is not persistent is not saved."""
    module = nn.Module()
    module.register_buffer("kept", Tensor(np.ones(2, np.float32)))
    module.register_buffer("lost", Tensor(np.ones(2, np.float32)), persistent=False)
    module.register_buffer("none", None)
    assert list(module.state_dict()) == ["kept"]
    assert [name for name, _ in module.named_buffers()] == ["kept", "lost"]
    assert not list(module.parameters())
    module.kept = Tensor(np.zeros(2, np.float32))
    assert not module.state_dict()["kept"].any()
    with pytest.raises(ValueError, match="missing kept"):
        module.load_state_dict({})
    module.load_state_dict({}, strict=False)
    with pytest.raises(ValueError, match=r"kept has shape \(3,\)"):
        module.load_state_dict({"kept": np.ones(3)}, strict=False)
    module.load_state_dict({"kept": np.full(2, 5.0)})
    assert module.kept.tolist() == [5, 5]
    other = copy.deepcopy(module)
    other.kept.data[...] = 1
    assert module.kept.tolist() == [5, 5]
    assert module.double().kept.dtype == np.float64
    assert module.float().kept.dtype == np.float32
    del module.kept
    assert list(module.state_dict()) == []


def test_weights_come_and_go_beside_buffers() -> None:
    """get_weights and set_weights are of parameters; the running statistics stay."""
    norm = nn.BatchNorm1d(2)
    norm(np.arange(4, dtype=np.float32).reshape(2, 2))
    before = norm.running_mean.tolist()
    norm.set_weights([np.full(2, 3.0), np.full(2, 4.0)])
    assert norm.weight.tolist() == [3, 3]
    assert norm.running_mean.tolist() == before


def test_running_statistics_change_in_training_only() -> None:
    """In evaluation they are used, and stay; with momentum None they are the mean over all batches."""
    norm = nn.BatchNorm1d(1, momentum=None)
    for value in (0.0, 2.0):
        norm(np.array([[value], [value + 2]], np.float32))
    assert norm.running_mean.tolist() == [2]
    assert norm.running_var.tolist() == [2]
    assert norm.num_batches_tracked.item() == 2
    norm.eval()
    np.testing.assert_allclose(norm(np.full((1, 1), 2, np.float32)), [[0]], atol=1e-6)
    assert norm.num_batches_tracked.item() == 2


def test_a_forward_hook_sees_and_may_change_what_goes_through() -> None:
    """Before and behind, in order; after remove no more. A layer with a hook runs by itself in a Sequential."""
    layer, seen = nn.ReLU(), []
    x = np.array([-1.0, 1.0], np.float32)
    first = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].tolist()))
    second = layer.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2)
    third = layer.register_forward_hook(lambda module, inputs, output: output + 1)
    assert layer(x).tolist() == [1, 3]
    assert seen == [[-1, 1]]
    for handle in (first, second, third, third):
        handle.remove()
    assert layer(x).tolist() == [0, 1]
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert net.blocks() == [("0", "1")]
    handle = net[1].register_forward_hook(lambda module, inputs, output: seen.append("ran"))
    net(x)
    assert net.blocks() == [("0",), ("1",)]
    assert seen[-1] == "ran"
    handle.remove()
    assert net.blocks() == [("0", "1")]
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.MaxPool2d(2))
    x = np.random.default_rng(0).standard_normal((2, 1, 9, 8)).astype(np.float32)
    expected = net(x)
    assert net.blocks() == [("0", "1", "2", "3", "4", "5")]
    handle = net[2].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    np.testing.assert_allclose(net(x), expected, rtol=1e-6)
    assert seen[-1] == (2, 2, 3, 3)
    assert net.blocks() == [("0", "1"), ("2",), ("3", "4", "5")]
    handle.remove()


def test_freezing() -> None:
    """requires_grad_ decides for all parameters; a frozen layer's gradient stays None."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net[0].requires_grad_(False)
    net(Tensor(np.ones((1, 2), np.float32))).sum().backward()
    assert net[0].weight.grad is None
    assert net[1].weight.grad is not None


def _with_gradients(L: Any, gradients: list[np.ndarray]) -> list[Any]:
    parameters = []
    for gradient in gradients:
        tensor = L.zeros(gradient.shape, requires_grad=True)
        tensor.grad = L.tensor(gradient)
        parameters.append(tensor)
    return [*parameters, L.zeros(2, requires_grad=True)]  # one without a gradient


@needs_torch
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping(norm_type: float, max_norm: float) -> None:
    """By norm and by value, as PyTorch clips; the norm before comes back."""
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3), (4,), ())]
    ours, theirs = _with_gradients(gpuconv, gradients), _with_gradients(torch, gradients)
    got = nn.utils.clip_grad_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    np.testing.assert_allclose(got.item(), expected.item(), rtol=1e-5)
    for _ in range(2):
        for mine, yours in zip(ours[:-1], theirs[:-1], strict=True):
            np.testing.assert_allclose(mine.grad.numpy(), yours.grad.numpy(), rtol=1e-5, atol=1e-7)
        nn.utils.clip_grad_value_(ours, 0.1)
        torch.nn.utils.clip_grad_value_(theirs, 0.1)
    assert ours[-1].grad is None


def test_clipping_refuses_what_is_not_finite() -> None:
    """If it is asked to; nothing is changed then."""
    (parameter, _) = _with_gradients(gpuconv, [np.array([np.nan, 1], np.float32)])
    with pytest.raises(RuntimeError, match="clip_grad_norm_: the total norm"):
        nn.utils.clip_grad_norm_(parameter, 1.0, error_if_nonfinite=True)
    assert parameter.grad.numpy()[1] == 1


def test_vectors_of_parameters() -> None:
    """One behind the other, and back."""
    layer = nn.Linear(2, 3)
    vector = nn.utils.parameters_to_vector(layer.parameters())
    assert vector.shape == (9,)
    nn.utils.vector_to_parameters(vector * 2, layer.parameters())
    np.testing.assert_array_equal(layer.weight.numpy().reshape(-1), vector.numpy()[:6] * 2)


@needs_torch
@pytest.mark.usefixtures("backend")
def test_a_network_with_batch_norm_learns_as_in_torch() -> None:
    """Convolution, normalisation, padding, pooling, leaky ReLU, dropout in evaluation: the losses of five steps."""

    def net(L: Any) -> Any:
        return L.nn.Sequential(
            L.nn.ReflectionPad2d(1),
            L.nn.Conv2d(2, 4, 3, bias=False),
            L.nn.BatchNorm2d(4),
            L.nn.LeakyReLU(0.1, inplace=True),
            L.nn.MaxPool2d(2),
            L.nn.Dropout2d(0.0),
            L.nn.Upsample(scale_factor=2),
            L.nn.Flatten(),
            L.nn.LayerNorm(4 * 36),
            L.nn.Linear(4 * 36, 3),
            L.nn.LogSoftmax(1),
        )

    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((8, 2, 6, 6)).astype(np.float32), rng.integers(0, 3, 8)
    ours, theirs = net(gpuconv), net(torch)
    ours.load_state_dict(theirs.state_dict())
    losses = []
    for L, model in ((gpuconv, ours), (torch, theirs)):
        optimizer = L.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses.append([])
        for _ in range(5):
            optimizer.zero_grad()
            loss = L.nn.functional.nll_loss(model(L.tensor(x)), L.tensor(t))
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], value.numpy(), rtol=1e-3, atol=1e-4, err_msg=name)


def test_connections_of_a_transposed_convolution() -> None:
    """Each input element is multiplied by a whole filter, and each output element takes a bias."""
    (layer,) = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2)).summary((2, 4, 5)).layers
    assert (layer.output_shape, layer.parameters) == ((3, 8, 10), 2 * 3 * 4 + 3)
    assert layer.connections == 2 * 4 * 5 * 3 * 4 + 3 * 8 * 10
    (layer,) = nn.Sequential(nn.Conv3d(2, 3, 2)).summary((2, 4, 5, 3)).layers
    assert layer.connections == 3 * 3 * 4 * 2 * (2 * 8 + 1)


def test_to_the_host() -> None:
    """As by to(): the module itself."""
    layer = nn.Linear(2, 2)
    assert layer.cpu() is layer
    assert layer.weight.device == "cpu"


def test_reprs_show_what_differs_from_the_default() -> None:
    """As PyTorch's do."""
    torch = pytest.importorskip("torch", reason="pip install torch to compare with PyTorch")
    for name, arguments, options in [
        ("Conv2d", (3, 6, 5), {}),
        ("Conv2d", (4, 6, (5, 3)), {"stride": 2, "padding": (1, 1), "dilation": (1, 2), "groups": 2, "bias": False}),
        ("Conv2d", (4, 6, 3), {"padding": "same", "padding_mode": "circular"}),
        ("Conv3d", (4, 6, 3), {"padding": (1, 0, 0)}),
        ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "output_padding": 1}),
        ("ConvTranspose3d", (4, 6, 3), {"bias": False}),
    ]:
        ours, theirs = (getattr(L.nn, name)(*arguments, **options) for L in (gpuconv, torch))
        assert repr(ours) == repr(theirs)
    assert "bias=False" in repr(nn.Linear(2, 3, bias=False))


def test_a_subclass_may_have_any_name() -> None:
    """A layer under another name is built with the same arguments, and shows them."""
    layers = [one for one in vars(nn).values() if isinstance(one, type) and issubclass(one, nn.Module)]
    built = 0
    for layer in layers:
        for arguments in [(), (2,), (2, 2), (2, 2, 2), (2, 2, 2, 2)]:
            try:
                expected = repr(layer(*arguments))
            except (TypeError, ValueError):
                continue
            renamed = type("Renamed", (layer,), {})
            assert repr(renamed(*arguments)) == expected.replace(layer.__name__, "Renamed", 1)
            built += 1
    assert built >= len(layers)


def test_a_padding_mode_is_kept_in_a_sequence() -> None:
    """Convolution and ReLU run as one primitive only where zeros are padded."""
    layers = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.MaxPool2d(2))
    x = Tensor(np.random.default_rng(0).standard_normal((1, 1, 4, 4)).astype(np.float32))
    assert layers.blocks() == [("0",), ("1",), ("2",)]
    np.testing.assert_array_equal(layers(x).numpy(), layers[2](layers[1](layers[0](x))).numpy())


@needs_torch
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_max_unpooling(dimensions: int) -> None:
    """What a pooling with indices took goes back to its place, as in PyTorch."""
    x = np.random.default_rng(0).normal(size=(2, 3, *[5] * dimensions)).astype(np.float32)
    results = []
    for library, input in ((nn, Tensor(x)), (torch.nn, torch.from_numpy(x))):
        pooled, indices = getattr(library, f"MaxPool{dimensions}d")(2, stride=2, return_indices=True)(input)
        back = getattr(library, f"MaxUnpool{dimensions}d")(2, stride=2)(pooled, indices, x.shape)
        results.append(back.numpy())
    np.testing.assert_array_equal(*results)
