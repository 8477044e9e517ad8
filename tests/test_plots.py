"""The pictures of a run: PNGs that can be read, with the right things in the right places."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from gpuconv import manual_seed, nn, plot_style, plots
from gpuconv.data import InputTransform
from gpuconv.models import Classifier, LeNet5


def pixels_of(path):
    """The picture as floats (H, W, 3) from 0 to 1; fails if it cannot be decoded or is blank."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")) / 255
    assert pixels.std() > 0.05, "a blank picture"
    return pixels


def colourful(pixels):
    """Where a picture has colour: text, axes and the grey of a diagonal have none."""
    return pixels.max(axis=2) - pixels.min(axis=2) > 0.2


class Colours(Classifier):
    """A classifier as unlike LeNet as can be: 3 channels, tanh, groups, 1x1 filters, many maps, 40 long names."""

    def __init__(self):
        layers = {
            "wide": nn.Conv2d(3, 96, 7, stride=2, padding=3),
            "tanh": nn.Tanh(),
            "average": nn.AvgPool2d(2),
            "mix": nn.Conv2d(96, 20, 1),
            "grouped": nn.Conv2d(20, 30, 3, groups=5),
            "sigmoid": nn.Sigmoid(),
            "everywhere": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "dropout": nn.Dropout(),
            "hidden": nn.Linear(30, 700),
            "output": nn.Linear(700, 40),
        }
        super().__init__(layers, config={}, input_shape=(3, 32, 24), num_classes=40)
        self.classes = tuple(f"a long class name, {i}" for i in range(40))


@pytest.fixture
def lenet():
    manual_seed(0)
    model = LeNet5()
    model.input_transform = InputTransform((32, 32), 0.1, 0.3)
    return model


def test_curves_show_what_was_measured(tmp_path):
    """Two curves with validation, one without it; a run of one epoch has a picture, too."""
    rows = [{"epoch": e, "train_loss": 1 / e, "train_accuracy": 1 - 0.5 / e} for e in (1, 2, 3)]
    validated = [{**row, "validation_loss": 1.5 / row["epoch"], "validation_accuracy": 0.4} for row in rows]
    missing = [{**row, "validation_loss": None, "validation_accuracy": None} for row in rows]
    has_orange = {}
    for name, history in (("both", validated), ("one", missing), ("single", validated[:1])):
        plots.save_curves(history, tmp_path / "curves.png")
        pixels = pixels_of(tmp_path / "curves.png")
        red, green, blue = (pixels[..., c] for c in range(3))
        assert (blue - red > 0.3).any(), "no training curve"
        has_orange[name] = bool(((red - blue > 0.3) & (green < 0.8)).any())
    assert has_orange == {"both": True, "one": False, "single": True}
    with pytest.raises(ValueError, match="no epoch"):
        plots.save_curves([], tmp_path / "none.png")


def test_confusion_puts_a_mistake_where_it_belongs(tmp_path):
    """Rows are the true classes: the only mistake, a first class taken for the second, is at the upper right."""
    plots.save_confusion([[5, 3], [0, 7]], ["cat", "dog"], tmp_path / "confusion.png")
    mistakes = colourful(pixels_of(tmp_path / "confusion.png"))
    height, width = mistakes.shape
    width = int(0.88 * width)  # without the colour bar
    parts = [mistakes[:, : width // 2], mistakes[:, width // 2 : width]]
    shares = [[part[: height // 2].mean(), part[height // 2 :].mean()] for part in parts]
    upper_right = shares[1].pop(0)
    assert upper_right > 0.3
    assert max(shares[0] + shares[1]) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    "matrix",
    [np.full((1, 1), 7), np.zeros((2, 2), int), np.diag([9] * 12), np.full((12, 12), 12345), np.full((90, 90), 2)],
    ids=["one class", "no image", "all right", "large counts", "many classes"],
)
def test_confusion_of_any_matrix(matrix, tmp_path):
    """The picture stays readable and of a reasonable size."""
    names = [f"class {i}" for i in range(len(matrix))]
    plots.save_confusion(matrix, names, tmp_path / "confusion.png")
    assert 300 < max(pixels_of(tmp_path / "confusion.png").shape) < 2500
    with pytest.raises(ValueError, match=f"for {len(names) + 1} classes, got shape"):
        plots.save_confusion(matrix, [*names, "one more"], tmp_path / "confusion.png")


def test_filters_have_the_colour_of_their_sign(tmp_path):
    """Positive weights are blue, negative ones orange, and the filters stand side by side in their order."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    model[0].weight.data[0], model[0].weight.data[1] = 1, -1
    plots.save_filters(model, tmp_path / "filters.png")
    pixels = pixels_of(tmp_path / "filters.png")
    blue, orange = (pixels[..., 2] - pixels[..., 0] > 0.2), (pixels[..., 0] - pixels[..., 2] > 0.2)
    # The colour bar has both colours, but is narrower than a filter.
    first, second = (np.flatnonzero(part.sum(axis=0) > 60) for part in (blue, orange))
    assert first[0] < second[0]
    assert np.median(first) < np.median(second)


@pytest.mark.slow
def test_activations_follow_the_layers(lenet, tmp_path):
    """Brighter input, stronger maps: the picture depends on the image, and on the layers up to the last."""
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 12:16] = 255
    pictures = []
    for change in ("none", "image", "weights"):
        if change == "image":
            image = image.T.copy()
        elif change == "weights":
            lenet.fc3.bias.data[3] = 50
        plots.save_activations(lenet, image, tmp_path / "activations.png")
        pictures.append(pixels_of(tmp_path / "activations.png"))
    height = len(pictures[0])
    assert len({picture.shape for picture in pictures}) == 1
    by_image = np.abs(pictures[0] - pictures[1]).max(axis=(1, 2)) > 0.1
    by_weights = np.abs(pictures[1] - pictures[2]).max(axis=(1, 2)) > 0.1
    assert by_image[: height // 4].any(), "the input is not drawn"
    assert not by_weights[: height // 2].any(), "the last layer's bias has changed the first layers' maps"
    assert by_weights[-height // 4 :].any(), "the probabilities are not drawn"


@pytest.mark.slow
def test_other_networks_have_pictures(tmp_path):
    """Filters and activations of a network with other layers, channels, sizes and classes."""
    manual_seed(0)
    model = Colours().train()
    plots.save_filters(model, tmp_path / "filters.png")
    plots.save_activations(model, np.random.default_rng(0).random((3, 32, 24), np.float32), tmp_path / "act.png")
    for name in ("filters.png", "act.png"):
        assert 600 < max(pixels_of(tmp_path / name).shape) < 4000
    assert all(module.training for module in model.modules()), "drawing has switched the model to evaluation"


def test_constant_and_dead_values(lenet, tmp_path):
    """A blank image and weights of 0 leave nothing to scale the colours by; the picture is drawn all the same."""
    for parameter in lenet.parameters():
        parameter.data[...] = 0
    plots.save_filters(lenet, tmp_path / "filters.png")
    plots.save_activations(lenet, np.zeros((28, 28), np.uint8), tmp_path / "activations.png")
    pixels_of(tmp_path / "activations.png")


def test_what_cannot_be_drawn(lenet, tmp_path):
    """A network without filters and two images for one are refused; a file that was there stays."""
    path = tmp_path / "old.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="Linear has no 2-D convolution layer"):
        plots.save_filters(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="image must be one image, got 2"):
        plots.save_activations(lenet, np.zeros((2, 28, 28), np.uint8), path)
    with pytest.raises(OSError, match="nowhere"):
        plots.save_confusion([[1]], ["a"], tmp_path / "nowhere" / "confusion.png")
    assert path.read_bytes() == b"old"


def test_the_callers_figures_are_left_alone(tmp_path):
    """A notebook's current figure is the same before and after."""
    plt.switch_backend("agg")
    figure = plt.figure()
    plots.save_confusion([[1]], ["a"], tmp_path / "confusion.png")
    assert plt.gcf() is figure
    assert plt.get_fignums() == [figure.number]
    plt.close(figure)


#: sRGB to what is seen by those without red, green or blue cones: Machado, Oliveira and Fernandes, "A
#: Physiologically-based Model for Simulation of Color Vision Deficiency", 2009, table 1, severity 1; in linear light.
BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "no colour": [[0.2126, 0.7152, 0.0722]] * 3,
    "all colours": np.eye(3),
}


def lab_of(colours, seen_by):
    """CIE L*a*b* (D65) of sRGB colours, 0 to 1, as they are seen; distances of 10 are plain side by side."""
    rgb = np.asarray(colours, float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.asarray(BLIND[seen_by]).T).clip(0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = linear @ to_xyz.T / [0.9505, 1, 1.089]
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


@pytest.mark.parametrize("seen_by", [kind for kind in BLIND if kind != "no colour"])
def test_colours_are_told_apart(seen_by):
    """By everyone: series from each other and from the paper, positive from negative, and more from less."""
    from matplotlib.colors import to_rgb

    series = lab_of([to_rgb(colour) for colour in (*plot_style.SERIES, plot_style.PAPER)], seen_by)
    distances = np.linalg.norm(series[:, None] - series[None], axis=-1)
    assert distances[~np.eye(len(series), dtype=bool)].min() > 10
    signed = lab_of(plot_style.scale("signed")(np.linspace(0, 1, 65))[:, :3], seen_by)
    assert np.linalg.norm(signed[:24] - signed[:-25:-1], axis=-1).min() > 20  # x and -x, from a quarter on
    assert np.linalg.norm(np.diff(signed[::8], axis=0), axis=-1).min() > 6


@pytest.mark.parametrize("seen_by", BLIND)
def test_a_larger_value_is_darker(seen_by):
    """On the scale of what is never negative: also in a print without colour."""
    lightness = lab_of(plot_style.scale("positive")(np.linspace(0, 1, 17))[:, :3], seen_by)[:, 0]
    assert np.diff(lightness).max() < -2


def test_scales_are_those_of_the_explorer():
    """A value has one colour on a plot, in the documentation's pictures and in the explorer's light mode."""
    page = (Path(plot_style.__file__).parent / "explorer" / "page" / "colours.mjs").read_text()
    light = page[page.index("light: {") : page.index("dark: {")]
    for kind, stops in plot_style.SCALES.items():
        (numbers,) = re.findall(rf"{kind}: \[(.*)\],", light)
        assert [int(number) for number in re.findall(r"\d+", numbers)] == [
            channel for stop in stops for channel in stop
        ]


def test_plots_are_svg_where_the_name_ends_so(lenet, tmp_path):
    """The same drawing twice gives the same file, and its text is text."""
    for name in ("first.svg", "second.svg"):
        plots.save_filters(lenet, tmp_path / name)
    text = (tmp_path / "first.svg").read_text()
    assert text == (tmp_path / "second.svg").read_text()
    assert "conv1: 6 filters of 5×5, each on 1 map" in text
