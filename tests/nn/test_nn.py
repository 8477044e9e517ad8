"""Modules, layers, initialisation, summaries and the models built from them."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import gpuconv
from gpuconv import Tensor, models, nn
from gpuconv import functional as F
from gpuconv.backends.numpy_backend import NumpyBackend
from gpuconv.data import InputTransform


def small_network():
    gpuconv.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 4 * 4, 5)
    )


# -- figures of the courses that the project covers --------------------------------------------------------------------


def test_counting_of_the_courses():
    """32x32, 10 filters 5x5: 26 weights a filter, 28x28 maps, 203,840 connections; 200 neurons behind: 392,200."""
    network = nn.Sequential(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1960, 200))
    conv, pool, flatten, linear = network.summary((1, 32, 32)).layers
    assert conv.parameters == 10 * 26
    assert conv.output_shape == (10, 28, 28)
    assert conv.connections == 203_840
    assert pool.output_shape == (10, 14, 14)
    assert linear.parameters == linear.connections == 392_200
    assert pool.parameters == flatten.parameters == pool.connections == flatten.connections == 0


def test_lenet_counts():
    """LeNet-5 has 61,706 parameters; the articles' variant with 100 units has more by 16 · 121 + 16 · 10."""
    assert models.LeNet5().summary((1, 32, 32)).parameters == 61_706
    wide = models.LeNet5(hidden=(120, 100))
    assert wide.summary((1, 32, 32)).parameters == 61_706 + 16 * 121 + 16 * 10
    assert [tuple(w.shape) for w in wide.get_weights()[::2]] == [
        (6, 1, 5, 5),
        (16, 6, 5, 5),
        (120, 400),
        (100, 120),
        (10, 100),
    ]
    assert models.LeNet5(num_classes=3).summary((1, 32, 32)).layers[-1].output_shape == (3,)


def test_sixty_four_filters_on_sixty_four_maps_give_sixty_four_maps():
    """A filter spans all input channels: the number of maps is the number of filters, not its square."""
    network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3))
    first, second = network.summary((3, 8, 8)).layers
    assert first.output_shape[0] == second.output_shape[0] == 64
    assert second.parameters == 64 * (64 * 9 + 1)


# -- modules -----------------------------------------------------------------------------------------------------------


def test_parameters_are_found_renamed_and_shared_once():
    """Nested modules list dotted names in order; a shared layer counts once; reassigning replaces."""
    network = small_network()
    assert [name for name, _ in network.named_parameters()] == ["0.weight", "0.bias", "4.weight", "4.bias"]
    shared = nn.Sequential({"a": network[4], "b": network[4]})
    assert len(list(shared.parameters())) == 2
    network[4].bias = None
    assert [name for name, _ in network.named_parameters()] == ["0.weight", "0.bias", "4.weight"]


def test_state_dict_round_trip_and_all_or_nothing():
    """load_state_dict restores all values; if one does not fit, the message lists all faults and nothing changes."""
    source, target = small_network(), small_network()
    for parameter in target.parameters():
        parameter.data[...] = 0
    target.load_state_dict(source.state_dict())
    for ours, theirs in zip(target.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    state = source.state_dict()
    state["0.weight"] = np.zeros((3, 1, 5, 5))
    state["extra"] = state.pop("4.bias")
    state["0.bias"] += 1
    with pytest.raises(
        ValueError, match=r"missing 4.bias; unexpected extra; 0.weight has shape .* instead of \(3, 1, 3, 3\)"
    ):
        target.load_state_dict(state)
    np.testing.assert_array_equal(target[0].bias.numpy(), source[0].bias.numpy())
    with pytest.raises(ValueError, match="has 4 arrays, got 3"):
        target.set_weights(source.get_weights()[:3])


def test_state_dict_moves_to_and_from_torch():
    """LeNet's weights load into the same torch network and give the same logits, and back."""
    torch = pytest.importorskip("torch", reason="pip install torch to compare with PyTorch")
    from collections import OrderedDict

    ours = models.LeNet5()
    make = {
        nn.Conv2d: lambda m: torch.nn.Conv2d(m.in_channels, m.out_channels, m.kernel_size),
        nn.Linear: lambda m: torch.nn.Linear(m.in_features, m.out_features),
        nn.ReLU: lambda m: torch.nn.ReLU(),
        nn.MaxPool2d: lambda m: torch.nn.MaxPool2d(2),
        nn.Flatten: lambda m: torch.nn.Flatten(),
    }
    theirs = torch.nn.Sequential(OrderedDict((name, make[type(m)](m)) for name, m in ours.named_children()))
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in ours.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((4, 1, 32, 32), dtype=np.float32)
    np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
    again = models.LeNet5()
    again.load_state_dict(dict(theirs.named_parameters()))
    np.testing.assert_array_equal(again(x), ours(x))


def test_fused_blocks_equal_the_layers_one_by_one():
    """Conv2d → ReLU → MaxPool2d run as one primitive, with the results and gradients of the layers alone."""
    network = small_network()
    assert network.blocks() == [("0", "1", "2"), ("3",), ("4",)]
    x = np.random.default_rng(1).standard_normal((2, 1, 8, 8), dtype=np.float32)

    def run(forward):
        network.zero_grad()
        inputs = Tensor(x, requires_grad=True)
        y = forward(inputs)
        (y * y).sum().backward()
        return [y.numpy(), inputs.grad.numpy()] + [p.grad.numpy() for p in network.parameters()]

    def one_by_one(value):
        for layer in network:
            value = layer(value)
        return value

    for fused, alone in zip(run(network), run(one_by_one), strict=True):
        np.testing.assert_allclose(fused, alone, rtol=1e-4, atol=1e-5)


def test_a_subclass_is_not_fused():
    """A user's own ReLU may do anything: only the exact layer types are run as one."""

    class Doubling(nn.ReLU):
        def forward(self, x):
            return F.relu(x) * 2.0

    network = nn.Sequential(nn.Conv2d(1, 2, 3), Doubling(), nn.MaxPool2d(2))
    assert network.blocks() == [("0",), ("1",), ("2",)]


def test_train_and_eval_reach_every_layer_and_predict_restores_them():
    """Dropout acts in training only; predict runs in evaluation mode and leaves each layer's mode as it was."""
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.5)))
    x = np.ones((3, 4), np.float32)
    assert network.eval()(x) == pytest.approx(network(x))
    network.train()
    network[1][0].eval()
    network.predict(x)
    assert [m.training for m in network.modules()] == [True, True, True, False]


def test_predict_in_batches_and_of_nothing():
    """The batch size does not change the result; no samples give an empty result of the right width."""
    network = small_network()
    x = np.random.default_rng(0).standard_normal((7, 1, 8, 8), dtype=np.float32)
    np.testing.assert_allclose(network.predict(x, batch_size=2), network.predict(x), rtol=1e-5, atol=1e-6)
    assert network.predict(x[:0]).shape == (0, 5)
    with pytest.raises(ValueError, match="batch_size"):
        network.predict(x, batch_size=0)


def test_mistakes_with_modules_are_named():
    """Forgetting super().__init__, a non-module in Sequential, channels that groups do not divide: each says so."""

    class Forgetful(nn.Module):
        def __init__(self):
            self.layer = nn.ReLU()

    with pytest.raises(AttributeError, match=r"super\(\).__init__"):
        Forgetful()
    with pytest.raises(TypeError, match="not a Module"):
        nn.Sequential(nn.ReLU(), F.relu)
    with pytest.raises(ValueError, match="groups=2 does not divide out_channels=3"):
        nn.Conv2d(2, 3, 3, groups=2)
    with pytest.raises(ValueError, match="in_features"):
        nn.Linear(0, 3)
    with pytest.raises(ValueError, match="weight has 48 input features, but input has shape"):
        small_network().summary((1, 10, 10))


def test_initialisation_has_the_stated_spread_and_follows_the_seed():
    """Kaiming and Xavier variances, PyTorch's default bound, the same numbers from the same seed."""
    weight = nn.Parameter(np.empty((400, 300), np.float32))
    for fill, variance in [
        (nn.init.kaiming_normal_, 2 / 300),
        (nn.init.kaiming_uniform_, 2 / 300),
        (nn.init.xavier_normal_, 2 / 700),
        (nn.init.xavier_uniform_, 2 / 700),
    ]:
        assert fill(weight).numpy().var() == pytest.approx(variance, rel=0.02)
    slope, fan_out = nn.init.kaiming_normal_(weight, 0.5, "fan_out"), 400
    assert slope.numpy().var() == pytest.approx(2 / 1.25 / fan_out, rel=0.02)
    assert nn.init.kaiming_uniform_(weight, nonlinearity="linear").numpy().var() == pytest.approx(1 / 300, rel=0.02)
    gpuconv.manual_seed(3)
    layer = nn.Conv2d(4, 64, 3)
    assert np.abs(layer.weight.numpy()).max() <= 1 / 6
    assert np.abs(layer.weight.numpy()).max() > 0.95 / 6
    gpuconv.manual_seed(3)
    np.testing.assert_array_equal(nn.Conv2d(4, 64, 3).weight.numpy(), layer.weight.numpy())


def test_initialisation_of_arrays_and_matrices():
    """`weight.data` is an array and is filled like its Tensor; gains, orthogonal rows or columns, and the identity."""
    layer = nn.Conv2d(3, 16, 3)
    assert nn.init.constant_(layer.weight.data, 2.0) is layer.weight.data
    assert (layer.weight.numpy() == 2).all()
    nn.init.normal_(layer.weight.data, 1.0, 0.02)
    assert layer.weight.numpy().mean() == pytest.approx(1, rel=0.01)
    for shape in (16, 3, 3, 3), (2, 3, 2, 2), (5, 5):
        q = nn.init.orthogonal_(nn.Parameter(np.empty(shape)), 2.0).numpy().reshape(shape[0], -1)
        product = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
        np.testing.assert_allclose(product, 4 * np.eye(min(q.shape)), atol=1e-12)
    np.testing.assert_array_equal(nn.init.eye_(gpuconv.zeros(2, 3)).numpy(), np.eye(2, 3))
    for name, gain in ("relu", 2**0.5), ("tanh", 5 / 3), ("conv2d", 1), ("leaky_relu", (2 / 1.0001) ** 0.5):
        assert nn.init.calculate_gain(name) == pytest.approx(gain)
    with pytest.raises(ValueError, match=r"nonlinearity must be one of 'leaky_relu', .* got 'rulu'; did you mean"):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="rulu")
    with pytest.raises(ValueError, match=r"orthogonal_: needs at least 2 dimensions, got shape \(16,\)"):
        nn.init.orthogonal_(layer.bias)


@pytest.mark.parametrize(
    ("layer", "shape", "function"),
    [
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 3, 8, 8), lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
        (nn.MaxPool1d(2), (2, 3, 8), lambda x: F.max_pool1d(x, 2)),
        (nn.AvgPool2d(2, 1, 1, False, False), (2, 3, 8, 8), lambda x: F.avg_pool2d(x, 2, 1, 1, False, False)),
        (nn.SumPool2d(2), (2, 3, 8, 8), lambda x: F.sum_pool2d(x, 2)),
        (nn.AdaptiveAvgPool2d((3, None)), (2, 3, 8, 8), lambda x: F.adaptive_avg_pool2d(x, (3, 8))),
        (nn.Flatten(), (2, 3, 8, 8), lambda x: x.reshape(2, -1)),
        (nn.Sigmoid(), (2, 3), F.sigmoid),
        (nn.Tanh(), (2, 3), F.tanh),
        (nn.Softmax(1), (2, 3), lambda x: F.softmax(x, 1)),
        (nn.LogSoftmax(1), (2, 3), lambda x: F.log_softmax(x, 1)),
        (nn.Dropout(0.0), (2, 3), lambda x: x),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_are_their_functions(layer, shape, function):
    """A layer passes its arguments on to the function of the same name."""
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    np.testing.assert_array_equal(layer(x), function(x))


def test_loss_layers():
    """CrossEntropyLoss and MSELoss pass their options on; a class weight is not a parameter to be learned."""
    logits, labels = np.random.default_rng(0).standard_normal((4, 3)), np.array([0, 2, 1, 1])
    weight = np.array([1.0, 2.0, 3.0])
    loss = nn.CrossEntropyLoss(weight, label_smoothing=0.1, reduction="sum")
    assert loss(logits, labels) == F.cross_entropy(logits, labels, weight, reduction="sum", label_smoothing=0.1)
    assert not list(loss.parameters())
    assert nn.MSELoss("sum")(logits, logits + 1) == pytest.approx(12)


def test_conv1d_layer():
    """Conv1d's weight is (K, C, S), and 'same' keeps the length."""
    layer = nn.Conv1d(2, 4, 3, padding="same")
    assert layer.weight.shape == (4, 2, 3)
    assert layer(np.zeros((5, 2, 11), np.float32)).shape == (5, 4, 11)


# -- classifiers -------------------------------------------------------------------------------------------------------


def test_classifier_predicts_raw_images_of_every_accepted_form():
    """uint8 (H, W), (N, H, W), (N, 1, H, W) and prepared floats give the same probabilities, which sum to 1."""
    digits = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    model = models.LeNet5()
    with pytest.raises(ValueError, match="no input_transform"):
        model.predict(digits)
    model.input_transform = InputTransform.fit(digits)
    expected = model.predict(digits)
    assert expected.shape == (3, 10)
    np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.predict(digits[0]), expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(model.predict(digits[:, None].astype(np.int64)), expected)
    np.testing.assert_array_equal(model.predict(model.input_transform(digits)), expected)
    assert model.predict(digits[:0]).shape == (0, 10)
    for wrong, words in [
        (digits.astype(int) * 2, "between 0 and 255"),
        (digits[None], "one channel"),
        (np.zeros((3, 1, 28, 28), np.float32), "prepared images must have shape"),
        (np.zeros(28, np.uint8), "images must be"),
    ]:
        with pytest.raises(ValueError, match=words):
            model.predict(wrong)


def test_build_suggests_the_nearest_model():
    """An unknown model's message lists the table and the nearest name."""
    assert type(models.build("lenet5", num_classes=2)) is models.LeNet5
    with pytest.raises(ValueError, match=r"unknown model 'lenet'; there are lenet5, .*; did you mean 'lenet5'"):
        models.build("lenet")
    with pytest.raises(ValueError, match="hidden"):
        models.LeNet5(hidden=(120,))


def test_explain_changes_nothing():
    """Running statistics, counts of batches and gradients stay as they were, however the model is called."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.InstanceNorm2d(2, track_running_stats=True))
    model(Tensor(np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32))).sum().backward()
    model[0].bias.grad = None
    before, grads = model.state_dict(), [p.grad for p in model.parameters()]
    for function, training in ((model, True), (model, False), (lambda x: model(x) * 2, True)):
        gpuconv.explain(function, (3, 1, 6, 6), backend="numpy", training=training)
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, before[name], err_msg=name)
        assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))


def test_explain_shows_what_runs():
    """explain lists the primitives of a run; a fused block shows as its parts on a backend that only composes it."""
    text = str(gpuconv.explain(small_network(), (2, 1, 8, 8), backend="numpy"))
    assert text.startswith("backend: numpy (numpy ")
    assert "conv2d: (2, 1, 8, 8) -> (2, 3, 8, 8), 3x3" in text
    steps = gpuconv.explain(small_network(), (2, 1, 8, 8), backend="numpy", training=True).steps
    forward = ["conv2d", "max_pool2d", "relu"]  # ReLU after pooling, of a quarter of the values
    backward = ["relu_grad", "max_pool2d_grad", "conv2d_grad_input", "conv2d_grad_weight", "conv2d_grad_bias"]
    assert [step.primitive for step in steps] == forward + backward

    class Fusing(NumpyBackend):
        def conv2d_relu(self, x, weight, bias, geometry):
            return super().conv2d_relu(x, weight, bias, geometry)

    with gpuconv.use_backend(Fusing()):
        (step,) = gpuconv.explain(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), (2, 1, 8, 8)).steps
    assert step.primitive == "conv2d_relu"


def test_fully_connected_layers_run_as_one():
    """Linear layers in a row, with or without ReLU behind each, are one block, with the results of their parts."""
    layers = [
        nn.Linear(5, 4),
        nn.ReLU(),
        nn.Linear(4, 3, bias=False),
        nn.Linear(3, 2),
        nn.ReLU(),
        nn.Tanh(),
        nn.Linear(2, 2),
    ]
    model = nn.Sequential(*layers)
    assert [len(block) for block in model.blocks()] == [5, 1, 1]
    x = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    y = step = Tensor(x, requires_grad=True)
    for layer in layers:
        step = layer(step)
    step.sum().backward()
    expected = [y.grad.numpy(), *(parameter.grad.numpy() for parameter in model.parameters())]
    for parameter in model.parameters():
        parameter.grad = None
    together = Tensor(x, requires_grad=True)
    result = model(together)
    np.testing.assert_allclose(result.numpy(), step.numpy(), rtol=1e-6)
    result.sum().backward()
    ours = [together.grad.numpy(), *(parameter.grad.numpy() for parameter in model.parameters())]
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_what_linear_chain_refuses():
    """Layers that do not fit to each other, and lists that do not."""
    x, w = np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"weights\[1\] has 3 input features, but the layer before it gives 4"):
        F.linear_chain(x, [w, w], [None, None], [True, True])
    with pytest.raises(ValueError, match=r"linear_chain: weight has 3 input features, but input has shape \(2, 2\)"):
        F.linear_chain(x[:, :2], [w], [None], [True])
    with pytest.raises(ValueError, match="one element a layer, got 1, 2 and 1"):
        F.linear_chain(x, [w], [None, None], [True])
    with pytest.raises(ValueError, match="one element a layer, got 0, 0 and 0"):
        F.linear_chain(x, [], [], [])


def convolutional_network():
    gpuconv.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        nn.Conv2d(2, 3, 2, stride=2), nn.ReLU(), nn.MaxPool2d(2, dilation=2),
        nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False), nn.Tanh(),
    )  # fmt: skip


def test_a_network_runs_the_same_without_gradients(backend):
    """Blocks and layers are fused as with gradients, with the same results; also for no images."""
    model, x = convolutional_network(), np.random.default_rng(0).standard_normal((5, 1, 10, 12)).astype(np.float32)
    expected = model(Tensor(x)).numpy()
    with gpuconv.no_grad():
        np.testing.assert_array_equal(model(Tensor(x)).numpy(), expected)
        assert model(x[:0]).shape == (0, 2)
        with pytest.raises(ValueError, match=r"weight has 3 input features, but input has shape \(3, 1\)"):
            model(Tensor(x[0]))  # without a batch, Flatten leaves the channels apart
    assert [len(block) for block in model.blocks()] == [6, 1, 3, 1]


def test_a_network_refuses_the_same_without_gradients():
    """The same words with and without gradients."""
    model = convolutional_network()
    for wrong in (
        np.zeros((2, 3, 10, 12), np.float32),
        np.zeros((2, 1, 30, 12), np.float32),
        np.zeros((2, 1, 3, 3), np.float32),
        np.zeros((2, 1, 10, 12)),
        np.zeros((2, 1, 10, 12), np.int64),
    ):
        with pytest.raises((ValueError, TypeError)) as with_gradients:
            model(wrong)
        with gpuconv.no_grad(), pytest.raises(with_gradients.type) as without:
            model(wrong)
        assert str(without.value) == str(with_gradients.value)


# -- what is assigned ------------------------------------------------------------------------------------------------


def test_a_parameter_is_not_lost_by_assignment():
    """An array, a plain Tensor or a number in its place is refused; a Parameter, and None, are taken."""
    layer = nn.Linear(3, 2)
    for value in (np.zeros((2, 3), np.float32), Tensor(np.zeros((2, 3))), 1.0):
        with pytest.raises(
            TypeError, match=r"Linear: weight is a Parameter, and a \w+ would take it out of parameters"
        ):
            layer.weight = value
    network = nn.Sequential(layer, nn.ReLU())
    with pytest.raises(TypeError, match="Sequential: 0 is a Module, and cannot become a function"):
        setattr(network, "0", lambda x: x)
    assert {name for name, _ in network.named_parameters()} == {"0.weight", "0.bias"}
    layer.weight = nn.Parameter(np.ones((2, 3), np.float32))
    layer.bias = None
    np.testing.assert_array_equal(network(np.ones((1, 3), np.float32)).numpy(), [[3, 3]])
    assert {name for name, _ in network.named_parameters()} == {"0.weight"}


@pytest.mark.parametrize(
    ("name", "words"), [("forward", "is a method"), ("a.b", "dots"), ("", "dots"), ("train", "is a method")]
)
def test_names_that_cannot_be(name, words):
    """A method's name would hide it, and dots are what separates the names of a state."""
    with pytest.raises(ValueError, match=words):
        nn.Sequential({name: nn.ReLU()})


def test_another_forward_of_one_layer_runs(backend):
    """Where a Sequential would run the layer with its neighbours as one, too."""
    x = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)
    for position in range(3):
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2))
        plain = network[position].forward
        network[position].forward = lambda input, plain=plain: plain(input) * 2 + 1
        values = x
        for module in network:
            values = module(values)
        np.testing.assert_allclose(network(x), values, rtol=1e-6)
        with gpuconv.no_grad():
            np.testing.assert_allclose(network(Tensor(x)).numpy(), Tensor(values).numpy(), rtol=1e-6)


def test_a_shared_parameter_has_all_its_names():
    """In a state, as in PyTorch; it is one parameter, loaded by any of its names."""
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    state = network.state_dict()
    assert set(state) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert len(list(network.parameters())) == len(network.get_weights()) == 3
    network.set_weights([value * 0 + 1 for value in network.get_weights()])
    np.testing.assert_array_equal(network.state_dict()["2.weight"], 1)
    network.load_state_dict(state)
    network.load_state_dict({name: value for name, value in state.items() if name != "0.weight"})
    with pytest.raises(ValueError, match=r"missing 0\.weight"):
        network.load_state_dict({name: value for name, value in state.items() if "weight" not in name})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_another_thread_draws():
    """The child draws, and what its parent does next it draws too: the thread that held the generator is not there."""
    code = """
        import os, threading, warnings
        import numpy as np, gpuconv
        from gpuconv.random import default_generator
        from gpuconv.backends import capturing
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads: here it is meant
        generator, draws, end = default_generator(), threading.Event(), threading.Event()
        def draw():
            while not end.is_set():
                with capturing._active():
                    generator.standard_normal(1_000_000)  # holds its lock for most of the time
                draws.set()
        thread = threading.Thread(target=draw)
        thread.start()
        draws.wait()
        children = []
        for _ in range(5):
            child = os.fork()
            if not child:
                with capturing._active():
                    gpuconv.nn.Linear(3, 2)
                os._exit(capturing.active)
            children.append(child)
        end.set()
        thread.join()
        gpuconv.nn.Linear(3, 2)
        print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
        """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "[0, 0, 0, 0, 0]", run.stderr


def unfit_values():
    """Names of a kind, values that are no array of real numbers, and what is said of them."""
    yield "complex", np.ones(2, np.complex64), "bias holds complex64; a parameter holds real numbers"
    yield "object", np.array([1, 2], object), "bias cannot be taken: elements must be numbers, got type object"
    yield "text", ["a", "b"], "bias cannot be taken: elements must be numbers, got type <U1"
    yield "date", np.ones(2, "M8[s]"), "bias cannot be taken: elements must be numbers, got type datetime64"
    yield "ragged", [[1], [1, 2]], "bias cannot be taken: rows of unequal length"
    yield "str", "ab", "bias is a str, and no array of numbers"
    yield "none", None, "bias is a NoneType, and no array of numbers"
    yield "mapping", {"a": 1}, "bias is a dict, and no array of numbers"
    try:
        import torch
    except ImportError:
        return
    yield "torch complex", torch.ones(2, dtype=torch.complex128), "bias holds complex128"
    yield "sparse", torch.ones(2).to_sparse(), "bias is a sparse tensor; pass tensor.to_dense()"
    yield "meta", torch.ones(2, device="meta"), "bias is on torch's meta device, and has no values"


@pytest.mark.parametrize(("value", "says"), [pytest.param(*case, id=name) for name, *case in unfit_values()])
def test_a_state_names_the_parameter_that_does_not_fit(value, says):
    """What is no array of real numbers is refused by the name under which it came; nothing is changed."""
    layer = nn.Linear(2, 2)
    before = layer.state_dict()
    with pytest.raises(TypeError) as caught:
        layer.load_state_dict({"weight": np.zeros((2, 2)), "bias": value})
    assert str(caught.value).startswith(f"load_state_dict: {says}")
    assert "\n" not in str(caught.value)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_state_is_a_mapping():
    """A file's name, a module or a training's checkpoint in its place: what would do is said where it is known."""
    layer = nn.Linear(2, 2)
    for state, says in [
        ("model.pt", "state must map names to arrays, got str"),
        (layer, "got Linear; pass its state_dict()"),
    ]:
        with pytest.raises(TypeError, match="load_state_dict: ") as caught:
            layer.load_state_dict(state)
        assert says in str(caught.value)
    with pytest.raises(ValueError, match=r"unexpected epoch \(state\['model'\] is a mapping itself: is it that\?\)"):
        layer.load_state_dict({"model": layer.state_dict(), "epoch": 3})


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "float64"])
@pytest.mark.filterwarnings("ignore")
def test_narrow_floats_are_widened(name):
    """Values of torch's types that NumPy lacks are float32's too, with and without a graph; others are converted."""
    torch = pytest.importorskip("torch", reason="needs PyTorch's types")
    values = torch.tensor([[1.5, -3.0], [0.0625, 448.0]]).to(getattr(torch, name))
    layer = nn.Linear(2, 2, bias=False)
    for weight in (values, torch.nn.Parameter(values), values.t().contiguous().t()):
        layer.weight.data[...] = 0
        layer.load_state_dict({"weight": weight})
        np.testing.assert_array_equal(layer.weight.numpy(), values.to(torch.float32).numpy())
    assert layer.weight.dtype == np.float32
