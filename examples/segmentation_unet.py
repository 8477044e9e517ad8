"""A small U-Net: which pixels of a noisy picture belong to a disc, which to a square, and which to nothing.

Two levels: down by max pooling, up by a transposed convolution, and the maps of the upper level handed across. There is
a label for each pixel.
"""

import numpy as np
from supervised import fit

import gpuconv
from gpuconv import nn, optim


def double(channels, maps):
    return nn.Sequential(
        nn.Conv2d(channels, maps, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(maps, maps, 3, padding=1),
        nn.ReLU(),
    )


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1 = double(1, 8)
        self.pool = nn.MaxPool2d(2)
        self.down2 = double(8, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge = double(16, 8)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        across = self.down1(x)
        x = self.up(self.down2(self.pool(across)))
        return self.last(self.merge(gpuconv.cat([across, x], dim=1)))


def scenes(count, seed):
    """Pictures, and for each pixel 0 (nothing), 1 (disc) or 2 (square)."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:24, :24]
    labels = np.zeros((count, 24, 24), np.int64)
    for label in labels:
        y, x, radius = rng.integers(4, 20), rng.integers(4, 20), rng.integers(3, 6)
        label[(row - y) ** 2 + (column - x) ** 2 <= radius**2] = 1
        y, x, size = rng.integers(0, 16), rng.integers(0, 16), rng.integers(5, 9)
        label[y : y + size, x : x + size] = 2
    brightness = np.array([0.0, 1.0, 1.8])[labels]
    return (brightness + rng.normal(0, 0.3, labels.shape))[:, None].astype(np.float32), labels


def build():
    return UNet()


def train(model, steps=200, batch=8):
    images, labels = map(gpuconv.from_numpy, scenes(160, seed=0))
    optimizer = optim.Adam(model.parameters(), lr=5e-3)
    return fit(model, images, labels, nn.CrossEntropyLoss(), optimizer, steps, batch)


if __name__ == "__main__":
    gpuconv.manual_seed(0)
    model = build()
    losses = train(model)
    images, labels = scenes(20, seed=1)
    with gpuconv.no_grad():
        found = model(gpuconv.from_numpy(images)).argmax(1).numpy()
    print(f"loss: first step {losses[0]:.2f}, last steps {np.mean(losses[-10:]):.2f}")
    assert (found == labels).mean() > 0.93
    print("new pictures: more than 93% of the pixels right")
    for line in found[0]:
        print("".join(".o#"[pixel] for pixel in line))
