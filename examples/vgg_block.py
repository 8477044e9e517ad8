"""A block as VGG has it, with batch normalisation: convolution, normalisation, ReLU, twice, then max pooling.

The network has to tell in which direction the stripes of a picture run, and its learning rate falls by a schedule.
Evaluation mode uses the running statistics that training has collected.
"""

import numpy as np
from supervised import accuracy, fit, report

import gpuconv
from gpuconv import nn, optim


def block(channels, maps):
    return nn.Sequential(
        nn.Conv2d(channels, maps, kernel_size=3, padding=1),
        nn.BatchNorm2d(maps),
        nn.ReLU(inplace=True),
        nn.Conv2d(maps, maps, kernel_size=3, padding=1),
        nn.BatchNorm2d(maps),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, 2),
    )


def stripes(count, seed):
    """Stripes of four directions, any width and shift, in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    row, column = np.mgrid[:16, :16]
    angle = labels[:, None, None] * np.pi / 4
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1)) + rng.uniform(0.8, 1.4, (count, 1, 1)) * (
        row * np.cos(angle) + column * np.sin(angle)
    )
    images = np.sin(phase) + rng.normal(0, 1.0, (count, 16, 16))
    return images[:, None].astype(np.float32), labels


def build():
    return nn.Sequential(block(1, 8), block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def train(model, steps=60, batch=32):
    images, labels = map(gpuconv.from_numpy, stripes(640, seed=0))
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.3)
    return fit(model, images, labels, nn.CrossEntropyLoss(), optimizer, steps, batch, scheduler)


if __name__ == "__main__":
    gpuconv.manual_seed(0)
    model = build()
    losses = train(model)
    report(losses, accuracy(model, *stripes(200, seed=1)), least=0.9)
