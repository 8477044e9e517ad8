"""The networks: published numbers of parameters and multiply-adds, torchvision's names, and PyTorch's arithmetic."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuconv
from gpuconv import Tensor, models, nn, no_grad, use_backend

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="pip install torch to compare with PyTorch")

#: Parameters and 10⁹ multiply-adds of an image of 224×224, as torchvision publishes them ("GFLOPS" in its tables of
#: weights). ZF Net: the sum of the paper's layers.
PUBLISHED: dict[str, tuple[int, float | None]] = {
    "alexnet": (61_100_840, 0.71),
    "zfnet": (62_357_608, None),
    "vgg11": (132_863_336, 7.61),
    "vgg13": (133_047_848, 11.31),
    "vgg16": (138_357_544, 15.47),
    "vgg19": (143_667_240, 19.63),
    "vgg11_bn": (132_868_840, 7.61),
    "vgg13_bn": (133_053_736, 11.31),
    "vgg16_bn": (138_365_992, 15.47),
    "vgg19_bn": (143_678_248, 19.63),
    "resnet18": (11_689_512, 1.81),
    "resnet34": (21_797_672, 3.66),
    "resnet50": (25_557_032, 4.09),
    "resnet101": (44_549_160, 7.80),
    "googlenet": (6_624_904, 1.50),
    "densenet121": (7_978_856, 2.83),
    "densenet161": (28_681_000, 7.73),
    "squeezenet1_0": (1_248_424, 0.82),
    "squeezenet1_1": (1_235_496, 0.35),
    "mobilenet_v2": (3_504_872, 0.30),
    "shufflenet_v2_x1_0": (2_278_604, 0.14),
}
#: Some of torchvision's names, in each part of a network that has parameters.
NAMES = {
    "alexnet": ["features.0.weight", "features.10.bias", "classifier.1.weight", "classifier.6.bias"],
    "vgg11_bn": ["features.1.running_mean", "features.25.weight", "features.26.num_batches_tracked",
                 "classifier.0.weight", "classifier.6.bias"],
    "resnet18": ["conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight",
                 "layer4.0.downsample.1.running_var", "layer4.1.bn2.bias", "fc.weight", "fc.bias"],
    "resnet50": ["layer1.0.conv3.weight", "layer1.0.downsample.0.weight", "layer3.5.bn3.weight"],
    "googlenet": ["conv1.conv.weight", "conv3.bn.bias", "inception3a.branch1.conv.weight",
                  "inception4e.branch2.1.bn.running_mean", "inception5b.branch4.1.conv.weight", "fc.bias"],
    "densenet121": ["features.conv0.weight", "features.norm0.weight", "features.denseblock1.denselayer1.norm1.weight",
                    "features.denseblock4.denselayer16.conv2.weight", "features.transition3.conv.weight",
                    "features.transition1.norm.running_var", "features.norm5.bias", "classifier.weight"],
    "squeezenet1_0": ["features.0.weight", "features.3.squeeze.weight", "features.12.expand3x3.bias",
                      "classifier.1.weight"],
    "squeezenet1_1": ["features.3.squeeze.weight", "features.6.expand1x1.bias", "features.12.expand3x3.bias"],
    "mobilenet_v2": ["features.0.0.weight", "features.0.1.running_mean", "features.1.conv.0.0.weight",
                     "features.1.conv.1.weight", "features.2.conv.1.0.weight", "features.17.conv.3.bias",
                     "features.18.0.weight", "classifier.1.bias"],
    "shufflenet_v2_x1_0": ["conv1.0.weight", "stage2.0.branch1.0.weight", "stage2.0.branch1.3.running_var",
                           "stage3.7.branch2.5.weight", "stage4.3.branch2.6.bias", "conv5.1.weight", "fc.weight"],
}  # fmt: skip

#: What is small enough to be built for each test that wants it.
SMALL = [name for name in PUBLISHED if not name.startswith(("vgg", "alexnet", "zfnet", "resnet101", "densenet161"))]


@pytest.fixture(autouse=True)
def _numpy() -> Iterator[None]:
    """Networks of a hundred different layers are run once: compiling these would take minutes."""
    with use_backend("numpy"):
        yield


class _NoGenerator:
    """Gives zeros for random numbers, at once: of a hundred million numbers seconds are left."""

    def normal(self, mean: float, std: float, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)

    uniform = normal


@pytest.fixture
def first_values_are_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of names and shapes."""
    monkeypatch.setattr(nn.init, "default_generator", _NoGenerator)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_model_is_held_to_figures() -> None:
    """All of the table but what is no torchvision network, which stands below."""
    assert {*models.MODELS} - {"lenet5", "resnet20", "unet"} == {*PUBLISHED}
    for name, cls in models.MODELS.items():
        assert getattr(models, name) is cls


@pytest.mark.usefixtures("first_values_are_zeros")
def test_parameters() -> None:
    """As published; U-Net's by the paper's layers, with padding and batch normalisation."""
    for name in SMALL:
        assert _parameters(models.build(name)) == PUBLISHED[name][0], name

    # He et al. count 0.27 million, without the 1×1 convolutions of two shortcuts and their normalisation.
    shortcuts = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert _parameters(models.resnet20()) == 269_722 + shortcuts == 272_474
    assert models.resnet20().summary((3, 32, 32)).layers[-1].output_shape == (10,)

    def double(channels: int, maps: int) -> int:
        return 9 * channels * maps + 9 * maps * maps + 4 * maps

    widths = [64, 128, 256, 512, 1024]
    down = sum(double(a, b) for a, b in zip([3, *widths], widths, strict=False))
    up = sum(double(2 * a, a) + 4 * a * b + a for a, b in itertools.pairwise(widths))
    assert _parameters(models.unet()) == down + up + 64 * 2 + 2 == 31_037_698


@pytest.mark.slow
@pytest.mark.grid(5)
@pytest.mark.usefixtures("first_values_are_zeros")
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in ("vgg13_bn", "vgg16_bn", "vgg19_bn")])
def test_figures_of_a_summary(name: str) -> None:
    """What `gpuconv summary` shows: parameters to the last one, and multiply-adds as published: they tell strides."""
    parameters, multiply_adds = PUBLISHED[name]
    model = models.build(name)
    summary = model.summary(model.input_shape)
    assert summary.parameters == parameters
    assert summary.layers[-1].output_shape == (1000,)
    if multiply_adds is not None:
        # A connection is a multiply-add, or the addition of a bias.
        assert abs(summary.connections / 1e9 - multiply_adds) < 0.02 * multiply_adds + 0.005, summary.connections


@pytest.mark.usefixtures("first_values_are_zeros")
@pytest.mark.parametrize("name", NAMES)
def test_names_are_torchvisions(name: str) -> None:
    """A file of its weights loads strictly."""
    state = models.build(name, num_classes=2).state_dict()
    assert [one for one in NAMES[name] if one not in state] == []


def test_number_of_classes() -> None:
    """The last layer has one output a class, and the model knows so many classes."""
    for name in ("resnet18", "squeezenet1_1", "mobilenet_v2", "shufflenet_v2_x1_0", "googlenet"):
        model = models.build(name, num_classes=7).eval()
        assert len(model.classes) == 7
        with no_grad():
            assert model(Tensor(np.zeros((1, 3, 64, 64), np.float32))).shape == (1, 7)
    for name, cls in models.MODELS.items():
        with pytest.raises(ValueError, match=f"^{cls.__name__}: num_classes must be at least 1, got 0"):
            models.build(name, num_classes=0)


#: Name, arguments, size of the images, and how many.
AGAINST_TORCH = [
    ("alexnet", {"num_classes": 5, "dropout": 0.0}, 63, 2),
    ("zfnet", {"num_classes": 5, "dropout": 0.0}, 63, 2),
    ("vgg11_bn", {"num_classes": 5, "dropout": 0.0}, 32, 4),
    ("resnet18", {"num_classes": 5}, 64, 4),
    ("resnet50", {"num_classes": 5}, 32, 4),
    ("googlenet", {"num_classes": 5, "dropout": 0.0}, 32, 4),
    ("densenet121", {"num_classes": 5}, 32, 4),
    ("squeezenet1_0", {"num_classes": 5, "dropout": 0.0}, 63, 2),
    ("squeezenet1_1", {"num_classes": 5, "dropout": 0.0}, 63, 2),
    ("mobilenet_v2", {"num_classes": 5, "dropout": 0.0}, 64, 4),
    ("shufflenet_v2_x1_0", {"num_classes": 5}, 64, 4),
    ("unet", {"num_classes": 3, "widths": (8, 16, 32)}, 27, 2),
]


#: What takes longer than a few seconds.
LARGE = ("alexnet", "zfnet", "vgg11_bn", "resnet18", "resnet50", "densenet121", "googlenet")


def _close(mine: np.ndarray, yours: Any, tolerance: float, what: str) -> None:
    yours = yours.detach().numpy()
    assert mine.shape == yours.shape, what
    np.testing.assert_allclose(mine, yours, rtol=0, atol=tolerance * max(np.abs(yours).max(), 1e-3), err_msg=what)


def _filled_if_small(fill: Any, tensor: Any, *arguments: Any, **more: Any) -> Any:
    return fill(tensor, *arguments, **more) if tensor.data.size < 5_000_000 else tensor


def _narrowed(name: str, arguments: dict[str, Any]) -> Any:
    """With 32 hidden features in place of 4,096: nine tenths of the time would go into these layers.

    The wide ones are not filled before they are replaced.
    """
    with pytest.MonkeyPatch.context() as patch:
        for fill in (nn.init.uniform_, nn.init.normal_):
            patch.setattr(nn.init, fill.__name__, functools.partial(_filled_if_small, fill))
        model = models.build(name, **arguments)
    layers = model._modules.get("classifier")
    wide = [name for name, layer in getattr(layers, "_modules", {}).items() if isinstance(layer, nn.Linear)]
    if len(wide) == 3:
        features = layers[int(wide[0])].in_features
        for name, sizes in zip(wide, ((features, 32), (32, 32), (32, len(model.classes))), strict=True):
            setattr(layers, name, nn.Linear(*sizes))
    return model


@needs_torch
@pytest.mark.slow
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", ["unet", pytest.param("resnet18", marks=pytest.mark.thorough)])
def test_compiled_against_torch(name: str) -> None:
    """Two of them on each backend for the CPU: narrow, on small images, for each size of a layer is compiled.

    U-Net is so small that NumPy computes some of its layers, beside compiled ones.
    """
    arguments: dict[str, Any] = {"num_classes": 3, "widths": (8, 16)} if name == "unet" else {"num_classes": 5}
    size, count = {"unet": (11, 2), "resnet18": (32, 4)}[name]
    test_against_torch(name, arguments, size, count)


@needs_torch
@pytest.mark.parametrize(
    ("name", "arguments", "size", "count"),
    [
        pytest.param(*one, id=one[0], marks=[pytest.mark.slow] * (one[0] in LARGE) + [pytest.mark.thorough] * rare)
        for one in AGAINST_TORCH
        for rare in [one[0] in ("vgg11_bn", "resnet50", "densenet121")]
    ],
)
def test_against_torch(name: str, arguments: dict[str, Any], size: int, count: int) -> None:
    """From the same weights: logits in float32; in float64, which tells a mistake from rounding behind a hundred
    layers, the gradients of a training step, running statistics, and logits behind the step.
    """
    from bench.torch_twin import twin

    gpuconv.manual_seed(0)
    model = _narrowed(name, arguments)
    theirs = twin(model)
    theirs.load_state_dict({key: torch.tensor(value) for key, value in model.state_dict().items()}, strict=True)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, 3, size, size))
    labels = rng.integers(0, arguments["num_classes"], (count, size, size) if name == "unet" else count)

    def compare_logits(dtype: Any, tolerance: float, what: str) -> None:
        x = images.astype(dtype)
        with no_grad(), torch.no_grad():
            _close(model.eval()(Tensor(x)).numpy(), theirs.eval()(torch.tensor(x)), tolerance, f"{name}: {what}")

    compare_logits(np.float32, 1e-4, "first logits")
    model.double(), theirs.double()
    compare_logits(np.float64, 1e-9, "first logits")
    ours = gpuconv.optim.SGD(model.train().parameters(), lr=1e-3, momentum=0.9)
    other = torch.optim.SGD(theirs.train().parameters(), lr=1e-3, momentum=0.9)
    loss = gpuconv.functional.cross_entropy(model(Tensor(images)), labels)
    loss.backward()
    their_loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(images)), torch.tensor(labels))
    their_loss.backward()
    assert abs(loss.item() - their_loss.item()) < 1e-9 * max(1, abs(their_loss.item()))
    largest = max(float(parameter.grad.abs().max()) for parameter in theirs.parameters())
    for (key, mine), yours in zip(model.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None, key
        # What is next to nothing beside the others, as a bias before a normalisation, is rounding alone.
        scale = max(float(yours.grad.abs().max()), 1e-3 * largest)
        difference = np.abs(mine.grad.numpy() - yours.grad.numpy()).max()
        assert difference <= 1e-6 * scale, (name, key, difference, scale)
    ours.step()
    other.step()
    for (key, mine), yours in zip(model.named_buffers(), theirs.buffers(), strict=True):
        _close(mine.numpy(), yours, 1e-7, f"{name}: {key}")
    compare_logits(np.float64, 1e-6, "logits behind a step")


def test_auxiliary_heads() -> None:
    """While training, GoogLeNet with its heads gives three logits, and gradients reach both; in evaluation one."""
    model = models.googlenet(num_classes=4, aux_logits=True)
    assert _parameters(models.googlenet(aux_logits=True)) == 13_004_888  # torchvision's
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    outputs = model(Tensor(images))
    assert [one.shape for one in outputs] == [(2, 4)] * 3
    losses = [gpuconv.functional.cross_entropy(one, np.array([0, 1])) for one in outputs]
    (losses[0] + 0.3 * (losses[1] + losses[2])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with no_grad():
        assert model.eval()(Tensor(images)).shape == (2, 4)


def test_images_of_any_size() -> None:
    """U-Net's maps are as large as its input, also where two does not divide a size."""
    model = models.unet(widths=(4, 8, 16), in_channels=1).eval()
    for size in ((16, 16), (17, 23), (4, 5)):
        with no_grad():
            assert model(Tensor(np.zeros((1, 1, *size), np.float32))).shape == (1, 2, *size)
    with pytest.raises(ValueError, match="widths"):
        models.unet(widths=(4,))


def test_a_model_in_a_file(tmp_path: Path) -> None:
    """It is rebuilt with its arguments, its classes and its running statistics."""
    model = models.build("shufflenet_v2_x1_0", num_classes=3)
    images = Tensor(np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32))
    model(images)
    gpuconv.save(model, tmp_path / "model.safetensors")
    again = gpuconv.load(tmp_path / "model.safetensors")
    assert type(again) is type(model)
    assert json.dumps(again.config) == json.dumps(model.config)
    with no_grad():
        np.testing.assert_array_equal(again(images).numpy(), model.eval()(images).numpy())


def test_states_that_do_not_fit() -> None:
    """All that is missing, too much or of another shape is listed, and nothing is loaded."""
    model = models.build("squeezenet1_1", num_classes=3)
    before = model.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    del state["features.0.bias"]
    state["fc.weight"] = state["features.0.weight"]
    state["classifier.1.weight"] = state["classifier.1.weight"][:2]
    with pytest.raises(
        ValueError, match=r"missing features.0.bias; unexpected fc.weight; classifier.1.weight has shap"
    ):
        model.load_state_dict(state)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
