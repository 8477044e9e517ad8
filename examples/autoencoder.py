"""A convolutional autoencoder: 16x16 pictures through 16 numbers and back, by transposed convolutions.

It learns to draw a disc again from what it has kept of it. Nobody says what to keep.
"""

import numpy as np
from supervised import fit

import gpuconv
from gpuconv import nn, optim


def discs(count, seed):
    """A disc of any size, anywhere."""
    rng = np.random.default_rng(seed)
    radius = rng.uniform(2, 5, (count, 1, 1))
    y, x = rng.uniform(5, 10, (2, count, 1, 1))
    row, column = np.mgrid[:16, :16]
    return (((row - y) ** 2 + (column - x) ** 2) < radius**2)[:, None].astype(np.float32)


def build():
    encoder = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 16),
    )
    decoder = nn.Sequential(
        nn.Linear(16, 16 * 4 * 4),
        nn.ReLU(),
        nn.Unflatten(1, (16, 4, 4)),
        nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1),
        nn.Sigmoid(),
    )
    return nn.Sequential(encoder, decoder)


def train(model, steps=600, batch=32):
    images = gpuconv.from_numpy(discs(640, seed=0))
    return fit(model, images, images, nn.MSELoss(), optim.Adam(model.parameters(), lr=3e-3), steps, batch)


if __name__ == "__main__":
    gpuconv.manual_seed(0)
    model = build()
    losses = train(model)
    images = discs(50, seed=1)
    with gpuconv.no_grad():
        drawn = model(gpuconv.from_numpy(images)).numpy() > 0.5
    same = (drawn == (images > 0.5)).mean()
    print(f"loss: first step {losses[0]:.3f}, last steps {np.mean(losses[-10:]):.3f}")
    assert same > 0.95
    print("of new pictures, more than 95% of the pixels come back")
    for before, after in zip(images[0, 0], drawn[0, 0], strict=True):
        print("".join(".#"[int(pixel)] for pixel in before), " ", "".join(".#"[int(pixel)] for pixel in after))
