"""The pictures of the concepts and the tutorial: ``python docs/website/drawings.py`` writes them into docs/images.

What they show is computed by gpuconv, in float64, so that they are the same on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import gpuconv  # noqa: E402
from gpuconv import Tensor, models, nn, optim, use_backend  # noqa: E402
from gpuconv import functional as F  # noqa: E402
from gpuconv.data import InputTransform, load_dataset  # noqa: E402
from website.svg import Drawing  # noqa: E402

FOLDER = ROOT / "docs" / "images"


def convolution() -> Drawing:
    """A 3x3 filter on a 5x5 image: one window, term by term."""
    image = np.array([[int(c) for c in row] for row in ["11100", "01110", "00111", "00110", "01100"]], float)
    weight = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], float)
    out = F.conv2d(image[None, None], weight[None, None])[0, 0]
    d = Drawing(
        720, 250, "A 3×3 filter on a 5×5 image. Products of the marked window add up to the 3 in the first row."
    )
    d.grid(24, 52, image, 34, numbers="{:.0f}", largest=3, label="image, 5×5")
    d.grid(262, 86, weight, 34, numbers="{:.0f}", largest=3, label="filter, 3×3")
    d.grid(470, 86, out, 34, numbers="{:.0f}", largest=6, label="map, 3×3")
    d.text(228, 144, "∗", "strong", "middle")
    d.text(418, 142, "=", "strong", "middle")
    row, column = 0, 1
    d.box(24 + 34 * column, 52 + 34 * row, 102, 102)
    d.box(470 + 34 * column, 86 + 34 * row, 34, 34)
    window = image[row : row + 3, column : column + 3]
    terms = [f"{a:.0f}·{b:.0f}" for a, b in zip(window.flat, weight.flat, strict=True)]
    d.text(592, 106, "the marked value", "small quiet")
    for number in range(3):
        d.text(
            592,
            128 + 20 * number,
            " + ".join(terms[3 * number : 3 * number + 3]) + (" +" if number < 2 else ""),
            "small",
        )
    d.text(592, 194, f"= {out[row, column]:.0f}", "small strong")
    return d


def channels() -> Drawing:
    """A filter as deep as its input: what its slices find is added up to one map."""
    random = np.random.default_rng(4)
    picture = np.zeros((3, 6, 6))
    picture[0, :, 3:] = 3  # a red half, a green stripe, blue dots
    picture[1, 2:4] = 2
    picture[2][random.random((6, 6)) < 0.25] = 3
    weight = np.array(
        [[[-1, 0, 1]] * 3, [[1, 1, 1], [0, 0, 0], [-1, -1, -1]], [[0, 0, 0], [0, 2, 0], [0, 0, 0]]], float
    )
    found = F.conv2d(picture[None], weight[:, None], groups=3)[0]
    total = F.conv2d(picture[None], weight[None])[0, 0]
    np.testing.assert_allclose(found.sum(0), total)
    d = Drawing(
        720, 444, "Three channels, the three slices of one filter, what each slice finds, and their sum: one map."
    )
    for c, name in enumerate(("red", "green", "blue")):
        y = 48 + 128 * c
        d.grid(24, y, picture[c], 16, largest=4, label=f"channel {c}: {name}")
        d.text(146, y + 54, "∗", "strong", "middle")
        d.grid(172, y + 24, weight[c], 16, "signed", 3, numbers="{:.0f}", label=f"slice {c} of the filter")
        d.arrow(240, y + 48, 330, y + 48)
        d.grid(344, y + 16, found[c], 16, "signed", 12, label=f"found in {name}")
        d.line(416, y + 48, 500, 48 + 128 + 48)
    d.text(508, 229, "+", "strong", "middle")
    d.grid(530, 48 + 128 - 8, total, 28, "signed", 12, numbers="{:.0f}", label="one map: the sum")
    d.text(24, 428, "Blue: positive, orange: negative.", "small quiet")
    return d


def stride_and_padding() -> Drawing:
    """A 3x3 filter on a 7x7 image: narrow, same, wide, and a stride of two."""
    d = Drawing(720, 272, "A 3×3 filter on a 7×7 image with three paddings and two strides, and the size of each map.")
    image = np.ones((1, 1, 7, 7))
    for at, (name, padding, stride) in enumerate(
        (
            ("padding=0 (narrow)", 0, 1),
            ("padding='same'", 1, 1),
            ("padding=2 (wide)", 2, 1),
            ("padding=1, stride=2", 1, 2),
        )
    ):
        x, cell = 20 + 176 * at, 13
        size = F.conv2d(image, np.ones((1, 1, 3, 3)), stride=stride, padding=padding).shape[-1]
        d.text(x, 28, name, "small strong")
        left, top = x + (2 - padding) * cell, 44 + (2 - padding) * cell
        padded = np.pad(np.full((7, 7), 0.45), padding)
        d.grid(left, top, padded, cell, largest=1)
        for step in range(size):  # where the windows of the first row begin
            d.add("circle", cx=left + (step * stride + 1.5) * cell, cy=top + 1.5 * cell, r=3, class_="mark")
        d.box(left, top, 3 * cell, 3 * cell)
        d.grid(x, 206, np.full((size, size), 0.8), 6, largest=1)
        d.text(x + 6 * size + 10, 222, f"map: {size}×{size}", "small")
    return d


def relu() -> Drawing:
    """Activation functions, and a map before and after ReLU."""
    d = Drawing(720, 268, "ReLU, tanh and sigmoid as curves; a map of an edge filter before and after ReLU.")
    x = np.linspace(-3, 3, 61)
    left, middle, scale = 24, 132, 36
    d.text(left, 28, "three activations", "strong")
    d.line(left, middle, left + 6 * scale, middle)
    d.line(left + 3 * scale, 40, left + 3 * scale, 224)
    for function, class_, name, place in (
        (F.relu, "bluel", "ReLU", (146, 56)),
        (F.tanh, "orangel", "tanh", (204, 92)),
        (F.sigmoid, "markl", "sigmoid", (30, 122)),
    ):
        y = function(x)
        points = [(left + (a + 3) * scale, middle - b * scale) for a, b in zip(x, y, strict=True) if b <= 2.4]
        d.curve(points, class_)
        d.text(*place, name, "small " + {"bluel": "blue", "orangel": "orange", "markl": "mark"}[class_])
    for value in (-2, 2):
        d.text(left + (value + 3) * scale, middle + 16, str(value).replace("-", "−"), "small quiet", "middle")
    d.text(left + 3 * scale - 6, middle - scale + 4, "1", "small quiet", "end")
    digit = np.asarray(load_dataset("mnist-sample").test_images[0], float)[4:26, 3:25] / 255
    edges = F.conv2d(digit[None, None], np.array([[[[-1, 0, 1]] * 3]], float))[0, 0]
    d.text(270, 28, "a map of a vertical edge filter, before and after ReLU", "strong")
    d.grid(270, 62, edges, 9, "signed", label="values from −3 to 3")
    d.arrow(464, 152, 496, 152)
    d.grid(512, 62, F.relu(edges), 9, "signed", float(np.abs(edges).max()), label="max(0, x)")
    return d


def pooling() -> Drawing:
    """2x2 windows of a 4x4 map: maximum, average, sum."""
    values = np.array([[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]], float)
    pooled, winners = F.max_pool2d(values[None, None], 2, return_indices=True)
    average, total = (function(values[None, None], 2)[0, 0] for function in (F.avg_pool2d, F.sum_pool2d))
    d = Drawing(720, 220, "A 4×4 map, and the maximum, the average and the sum of each of its four 2×2 windows.")
    d.grid(24, 52, values, 36, numbers="{:.0f}", largest=16, label="map, 4×4; the marked values win")
    for row in range(2):
        for column in range(2):
            d.box(24 + 72 * column + 1, 52 + 72 * row + 1, 70, 70, "line")
    for index in np.asarray(winners).ravel():
        d.box(24 + 36 * (index % 4) + 2, 52 + 36 * (index // 4) + 2, 32, 32)
    d.arrow(186, 124, 226, 124)
    for at, (name, result, shown) in enumerate(
        (("maximum", pooled[0, 0], "{:.0f}"), ("average", average, "{:.2f}"), ("sum", total, "{:.0f}"))
    ):
        d.grid(246 + 158 * at, 76, result, 48, numbers=shown, largest=40, label=f"{name}, 2×2")
    return d


def fully_connected() -> Drawing:
    """Each output is a weighted sum of all inputs, and softmax makes probabilities of them."""
    gpuconv.manual_seed(3)
    layer = nn.Linear(9, 4).double()
    maps = np.array([[0.1, 0.9, 0.2], [0.8, 0.4, 0.0], [0.3, 1.0, 0.6]])
    scores = layer(maps.reshape(1, 9)).numpy()[0]
    chances = F.softmax(scores[None], dim=1)[0]
    d = Drawing(720, 300, "A 3×3 map, written as nine numbers, each connected to each of four outputs; then softmax.")
    d.grid(24, 100, maps, 32, numbers="{:.1f}", largest=2, label="pooled map, 3×3")
    d.text(140, 152, "flatten", "small quiet")
    d.arrow(136, 160, 192, 160)
    weight = layer.weight.numpy()
    for i in range(9):
        for j in range(4):
            sign, width = "bluel" if weight[j, i] > 0 else "orangel", f"stroke-width:{6 * abs(weight[j, i]):.2f}"
            d.add("line", x1=238, y1=34 + 27 * i + 13, x2=420, y2=64 + 48 * j + 18, class_=sign, style=width)
    d.grid(210, 34, maps.reshape(9, 1), 27, numbers="{:.1f}", largest=2)
    for j in range(4):
        d.grid(420, 64 + 48 * j, scores[j : j + 1, None], 36, "signed", 2, numbers="{:.1f}")
        d.add("rect", x=560, y=72 + 48 * j, width=110 * float(chances[j]), height=20, class_="blue")
        d.text(566 + 110 * float(chances[j]), 87 + 48 * j, f"{chances[j]:.0%}", "small")
    d.text(420, 40, "outputs", "small quiet")
    d.text(474, 152, "softmax", "small quiet")
    d.arrow(470, 160, 540, 160)
    d.text(560, 40, "probabilities", "small quiet")
    d.text(238, 292, "36 weights. Blue: positive, orange: negative; width: magnitude", "small quiet")
    return d


def backpropagation() -> Drawing:
    """Values forward, gradients backward, for one weight."""
    x, w, b = (Tensor(np.array(value), requires_grad=True) for value in (2.0, 3.0, -1.0))
    product = x * w
    y = product + b
    out = F.relu(y)
    error = F.half_squared_error(out.reshape(1), np.array([3.0]))
    gradient = {}
    for name, tensor in (("product", product), ("y", y), ("out", out)):
        tensor.register_hook(
            lambda g, name=name: gradient.__setitem__(
                name, float(np.asarray(g.data if hasattr(g, "data") else g).reshape(-1)[0])
            )
        )
    error.backward()
    d = Drawing(720, 226, "Values are computed from left to right, gradients of the error from right to left.")
    d.text(24, 30, "forward: values", "blue strong")
    d.text(696, 30, "backward: dE/d…", "orange strong", "end")
    columns = [
        ("x · w", product.item(), gradient["product"]), ("+ b", y.item(), gradient["y"]),
        ("ReLU", out.item(), gradient["out"]), ("½ (out − 3)²", error.item(), 1.0),
    ]  # fmt: skip
    d.text(24, 88, f"x = {x.item():g}", "blue")
    d.text(24, 108, f"{x.grad.item():g}", "orange")
    d.text(24, 174, f"w = {w.item():g}", "blue")
    d.text(24, 194, f"{w.grad.item():g}", "orange")
    d.line(74, 84, 126, 116)
    d.line(74, 174, 126, 138)
    for at, (name, value, slope) in enumerate(columns):
        left = 126 + 154 * at
        d.box(left, 104, 92, 46, "line")
        d.text(left + 46, 132, name, "", "middle")
        if at < 3:
            d.arrow(left + 92, 127, left + 154, 127)
        d.text(left + 46, 92, f"{value:g}", "blue strong", "middle")
        d.text(left + 46, 172, f"{slope:g}", "orange strong", "middle")
    d.text(296, 206, f"b = {b.item():g}".replace("-", "−"), "blue")
    d.text(358, 206, f"{b.grad.item():g}", "orange")
    d.line(314, 192, 314, 150)
    return d


def equivariance() -> Drawing:
    """A shifted picture shifts the map; pooling forgets a small shift."""
    d = Drawing(
        720,
        410,
        "A cross, and the same cross shifted by one pixel: input, map, and the pooled map, which stays the same.",
    )

    def picture(row: int, column: int) -> np.ndarray:
        made = np.zeros((14, 14))
        made[row, column - 1 : column + 2] = made[row - 1 : row + 2, column] = 1
        return made

    cross = picture(1, 1)[:3, :3]
    for at, (row, column, name) in enumerate(((5, 5, "a cross"), (5, 6, "one pixel to the right"))):
        y = 52 + 184 * at
        image = picture(row, column)
        maps = F.conv2d(image[None, None], cross[None, None])
        pooled = F.max_pool2d(maps, 4)[0, 0]
        d.grid(24, y, image, 10, largest=1.4, label=name)
        d.arrow(172, y + 70, 236, y + 70)
        d.text(204, y + 60, "conv 3×3", "small quiet", "middle")
        d.grid(252, y + 10, maps[0, 0], 10, largest=6, label="map, 12×12")
        peak = np.unravel_index(maps[0, 0].argmax(), maps[0, 0].shape)
        d.box(252 + 10 * peak[1], y + 10 + 10 * peak[0], 10, 10)
        d.text(252, y + 148, f"peak at ({peak[0]}, {peak[1]})", "small mark")
        d.arrow(384, y + 70, 462, y + 70)
        d.text(423, y + 60, "max pool 4×4", "small quiet", "middle")
        d.grid(478, y + 10, pooled, 40, numbers="{:.0f}", largest=8, label="pooled, 3×3")
        best = np.unravel_index(pooled.argmax(), pooled.shape)
        d.text(612, y + 76, f"peak at ({best[0]}, {best[1]})", "small mark")
    return d


def receptive_field() -> Drawing:
    """The part of the picture that a value of each LeNet layer depends on."""
    d = Drawing(
        720, 330, "A 32×32 digit with nested squares: the receptive field of one value behind each layer of LeNet."
    )
    digits = load_dataset("mnist-sample")
    image = InputTransform.fit(digits.train_images, (32, 32))(digits.test_images[:1])[0, 0]
    cell = 8
    d.grid(24, 40, np.maximum(image, 0), cell, largest=8, label="input, 32×32")
    for x, head in ((310, "one value of"), (430, "sees, in pixels"), (570, "its map")):
        d.text(x, 52, head, "strong")
    for at, (name, low, size, side) in enumerate(fields()):
        class_ = ("markl", "bluel", "orangel", "edge")[at % 4]
        d.box(24 + cell * low, 40 + cell * low, cell * size, cell * size, class_)
        y = 84 + 34 * at
        d.line(310, y - 5, 334, y - 5, class_)
        d.text(344, y, name)
        d.text(430, y, f"{size}×{size}")
        d.text(570, y, f"{side}×{side}" if side > 1 else "120 units")
    return d


def fields() -> list[tuple[str, int, int, int]]:
    """Of LeNet's layers: name, where the receptive field of a value in the middle begins, its size, the map's size."""
    layers = [
        ("conv1", nn.Conv2d(1, 1, 5)),
        ("pool1", nn.AvgPool2d(2)),
        ("conv2", nn.Conv2d(1, 1, 5)),
        ("pool2", nn.AvgPool2d(2)),
    ]
    found = []
    x = Tensor(np.ones((1, 1, 32, 32)), requires_grad=True)
    value = x
    for name, layer in layers:
        for parameter in layer.parameters():
            parameter.data = np.ones_like(parameter.data, dtype=np.float64)
        value = layer(value)
        x.grad = None
        side = value.shape[-1]
        middle = (side - 1) // 2
        value[0, 0, middle, middle].backward(retain_graph=True)
        rows = np.flatnonzero(x.grad.numpy()[0, 0].any(axis=1))
        found.append((name, int(rows[0]), len(rows), side))
    return [*found, ("fc1", 0, 32, 1)]


def counting() -> Drawing:
    """Parameters and connections of a small network."""
    d = Drawing(
        720,
        236,
        "Bars: a convolution has few parameters and many connections, a fully connected layer as many of both.",
    )
    network = nn.Sequential(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1960, 200))
    summary = network.summary((1, 32, 32))
    rows = [("Conv2d, 10 filters of 5×5", summary.layers[0]), ("Linear, 1,960 to 200", summary.layers[3])]
    largest = max(row.connections for _, row in rows)
    for at, (name, row) in enumerate(rows):
        y = 40 + 96 * at
        d.text(24, y, name, "strong")
        for line, (what, count, class_) in enumerate(
            (("parameters", row.parameters, "blue"), ("connections", row.connections, "orange"))
        ):
            top = y + 12 + 32 * line
            d.text(118, top + 16, what, "small quiet", "end")
            width = max(1.5, 470 * count / largest)
            d.add("rect", x=130, y=top, width=width, height=22, class_=class_)
            d.text(140 + width, top + 16, f"{count:,}", "small")
    return d


def filters() -> Drawing:
    """LeNet's first filters before and after training, and what they find in a digit."""
    gpuconv.manual_seed(1)
    digits = load_dataset("mnist-sample")
    transform = InputTransform.fit(digits.train_images, (32, 32))
    images = transform(digits.train_images).astype(np.float64)
    model = models.LeNet5().double()
    before = model.conv1.weight.numpy().copy()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.005)
    for first in range(0, len(images), 32):
        loss = F.cross_entropy(model(Tensor(images[first : first + 32])), digits.train_labels[first : first + 32])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seven = transform(digits.test_images[digits.test_labels == 7][:1]).astype(np.float64)
    after = model.conv1.weight.numpy()
    maps = F.relu(F.conv2d(seven, after, model.conv1.bias.numpy()))[0]
    d = Drawing(720, 362, "Six 5×5 filters before training, noise, and after it, smooth with edges; their maps of a 7.")
    d.grid(24, 146, np.maximum(seven[0, 0], 0), 3, largest=4, label="input")
    largest = float(np.abs(after).max())
    for k in range(6):
        x = 152 + 93 * k
        d.grid(x, 48, before[k, 0], 12, "signed", largest, label="before training" if k == 0 else "")
        d.grid(x, 150, after[k, 0], 12, "signed", largest, label="after one epoch" if k == 0 else "")
        d.grid(x, 252, maps[k], 3, largest=float(maps.max()), label="its map of the 7" if k == 0 else "")
    return d


def sectors() -> Drawing:
    """What a warp's read moves: along a row, and down a column."""
    d = Drawing(
        720, 320, "A warp that reads along a row moves 4 sectors, all needed; one that reads down a column, 32."
    )
    lanes, height, width = np.arange(32), 32, 36
    for at, (name, elements) in enumerate(
        (("threadIdx.x: the column", lanes), ("threadIdx.x: the row", lanes * width))
    ):
        moved = np.unique(elements // 8)
        memory = np.zeros(height * width)
        memory[(moved[:, None] * 8 + np.arange(8)).ravel()] = 0.3
        memory[elements] = 1
        x = 24 + 356 * at
        d.text(x, 28, name, "strong")
        d.text(
            x,
            46,
            f"{len(moved)} sectors, {'all' if len(moved) == 4 else 'an eighth'} of what moves is needed",
            "small quiet",
        )
        d.grid(x, 60, memory.reshape(height, width), 7)
    d.text(24, 306, "dark: read by one of 32 lanes; light: moves along with it, in a sector of 8 floats", "small quiet")
    return d


def banks() -> Drawing:
    """How many lanes of a warp meet in each bank of shared memory, by the length of a row."""
    d = Drawing(720, 206, "Lanes of a warp in each of 32 banks: up to 8 with rows of 16 floats, 2 with 17, 1 with 18.")
    d.text(24, 30, "a[tx, ty] = … by a warp: 16 values of tx, 2 of ty", "strong")
    tx, ty = np.arange(32) % 16, np.arange(32) // 16
    for at, pitch in enumerate((16, 17, 18)):
        lanes = np.bincount((pitch * tx + ty) % 32, minlength=32)
        y = 66 + 40 * at
        d.text(24, y + 14, f"rows of {pitch}", "small")
        d.grid(92, y, lanes[None], 16, largest=9, numbers="{:.0f}", label="lanes in bank 0 to 31" if at == 0 else "")
        d.text(612, y + 14, f"{lanes.max()} {'passes' if lanes.max() > 1 else 'pass'}", "strong small")
    d.text(24, 192, "A bank serves one word in a pass: as many passes as the busiest bank has lanes.", "small quiet")
    return d


PICTURES: dict[str, Callable[[], Drawing]] = {
    "convolution": convolution,
    "channels": channels,
    "stride-and-padding": stride_and_padding,
    "relu": relu,
    "pooling": pooling,
    "fully-connected": fully_connected,
    "backpropagation": backpropagation,
    "equivariance": equivariance,
    "receptive-field": receptive_field,
    "counting": counting,
    "filters": filters,
    "sectors": sectors,
    "banks": banks,
}


def source(name: str) -> str:
    """The SVG of a picture."""
    # The last one trains: the compiled backend takes a tenth of the time, and float64 the same colours.
    with use_backend("numba" if name == "filters" else "numpy"):
        return PICTURES[name]().source()


def main() -> None:
    """Write every picture, or those that are named."""
    for name in sys.argv[1:] or PICTURES:
        (FOLDER / f"{name}.svg").write_text(source(name), encoding="utf-8")


if __name__ == "__main__":
    main()
