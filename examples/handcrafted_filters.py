"""Image processing is convolution with filters that somebody thought up; a network learns such filters by itself.

First part: one convolution layer with five handcrafted filters makes five maps of a picture. Second part: a layer with
one random filter is shown the picture and its edge map, and learns the edge filter from them.

    python handcrafted_filters.py [PICTURE.png]        writes filters_on_a_picture.png
"""

import sys

import numpy as np
from matplotlib.figure import Figure

from gpuconv import functional as F
from gpuconv import manual_seed, nn, optim

FILTERS = {
    "identity": np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]]),
    "edge detection": np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]),
    "sharpen": np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
    "box blur": np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1]]) / 9,
    "Gaussian blur": np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16,
}


def draw_landscape(size: int = 96) -> np.ndarray:
    """A house before hills, in the evening: smooth parts, sharp edges and fine detail; from 0 to 1."""
    y, x = np.mgrid[0:size, 0:size] / size
    picture = 0.55 + 0.35 * y  # the sky is brighter near the horizon
    picture[(x - 0.76) ** 2 + (y - 0.22) ** 2 < 0.012] = 1  # sun
    picture[y > 0.62 - 0.2 * np.exp(-(((x - 0.25) / 0.16) ** 2))] = 0.45  # far hill
    picture[y > 0.68 - 0.1 * np.sin(5 * x + 0.5)] = 0.3  # near hill
    wall = (abs(x - 0.42) < 0.17) & (y > 0.56) & (y < 0.86)
    picture[wall] = 0.8
    picture[(y > 0.38) & (y < 0.56) & (abs(x - 0.42) < 1.2 * (y - 0.38))] = 0.15  # roof
    picture[(abs(x - 0.34) < 0.04) & (abs(y - 0.66) < 0.04)] = 0.1  # window
    picture[(abs(x - 0.49) < 0.04) & (y > 0.66) & (y < 0.86)] = 0.2  # door
    picture[(y > 0.84) & (y < 0.97) & ((x * size).astype(int) % 6 < 2)] = 0.95  # fence
    return picture.astype(np.float32)


def read_picture(path: str) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        image = image.convert("L")
        image.thumbnail((256, 256))
        return np.asarray(image, np.float32) / 255


ours = len(sys.argv) == 1
picture = draw_landscape() if ours else read_picture(sys.argv[1])
image = picture[None, None]  # (batch, channels, height, width)

# -- handcrafted -----------------------------------------------------------------------------------------------------

weight = np.stack(list(FILTERS.values()))[:, None].astype(np.float32)  # (5 filters, 1 channel, 3, 3)
maps = dict(zip(FILTERS, F.conv2d(image, weight)[0], strict=True))

for name, values in maps.items():
    print(f"{name:14} mean {values.mean():6.3f}, standard deviation {values.std():.3f}")
# Weights that add up to 1 keep the brightness; those of edge detection add up to 0, so that plain areas vanish.
inside = picture[1:-1, 1:-1]
np.testing.assert_array_equal(maps["identity"], inside)
if ours:
    assert abs(maps["box blur"].mean() - inside.mean()) < 0.01
    assert abs(maps["edge detection"].mean()) < 0.01
    assert maps["box blur"].std() < maps["Gaussian blur"].std() < inside.std() < maps["sharpen"].std()

# -- learned ---------------------------------------------------------------------------------------------------------

manual_seed(0)
layer = nn.Conv2d(1, 1, 3, bias=False)
standardised = (image - image.mean()) / max(image.std(), 1e-3)  # networks learn faster from such inputs
wanted = F.conv2d(standardised, weight[1:2])
optimizer = optim.SGD(layer.parameters(), lr=0.1, momentum=0.95)
for _ in range(400):
    error = F.mse_loss(layer(standardised), wanted)
    optimizer.zero_grad()
    error.backward()
    optimizer.step()
learned = layer.weight.numpy()[0, 0]
print("learned from the picture and its edge map:")
print(learned.round(2))
if ours:
    np.testing.assert_allclose(learned, FILTERS["edge detection"], atol=0.05)

# -- side by side ----------------------------------------------------------------------------------------------------

panels = [(name, FILTERS[name], values) for name, values in maps.items()]
panels += [("the same layer, learned filter", learned, layer(image).numpy()[0, 0])]
figure = Figure(figsize=(11, 8.9), layout="compressed")
for axes, (name, numbers, values) in zip(figure.subplots(2, 3).flat, panels, strict=True):
    # An edge map has both signs: grey is 0 there.
    bounds = {"vmin": -1.5, "vmax": 1.5} if abs(numbers.sum()) < 0.5 else {"vmin": 0, "vmax": 1}
    axes.imshow(values, cmap="gray", **bounds)
    axes.set_title(name, fontsize=14)
    rows = "\n".join("  ".join(f"{number:5.3g}" for number in row) for row in numbers.round(3))
    axes.set_xlabel(rows, family="monospace", fontsize=11)
    axes.set(xticks=[], yticks=[])
figure.savefig("filters_on_a_picture.png", dpi=120)
print("drawn side by side in filters_on_a_picture.png")
