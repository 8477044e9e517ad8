"""A generative adversarial network: two networks, two optimizers, and neither is told what a good picture is.

The generator makes 8x8 pictures of noise. The discriminator learns to tell them from real ones, which have a bright
left half or a bright right half; the generator learns to deceive it. `detach()` keeps the discriminator's step from the
generator.
"""

import numpy as np

import gpuconv
from gpuconv import nn, optim


def halves(count, rng):
    """Pictures of which one half is bright."""
    images = rng.normal(-1, 0.1, (count, 1, 8, 8))
    for image, right in zip(images, rng.integers(0, 2, count), strict=True):
        image[:, :, 4 * right : 4 * right + 4] += 2
    return images.astype(np.float32)


def build():
    generator = nn.Sequential(
        nn.ConvTranspose2d(4, 16, 4),  # 1x1 -> 4x4
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),  # -> 8x8
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 1, 4),
        nn.Flatten(),
    )
    return nn.ModuleList([generator, discriminator])


def train(networks, steps=150, batch=32):
    generator, discriminator = networks
    rng = np.random.default_rng(0)
    criterion = nn.BCEWithLogitsLoss()
    optimizer_g = optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    optimizer_d = optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    ones, zeros = gpuconv.ones(batch, 1), gpuconv.zeros(batch, 1)
    losses = []
    for _ in range(steps):
        real = gpuconv.from_numpy(halves(batch, rng))
        fake = generator(gpuconv.from_numpy(rng.standard_normal((batch, 4, 1, 1)).astype(np.float32)))
        # The discriminator: real pictures are 1, made ones 0.
        optimizer_d.zero_grad()
        loss_d = criterion(discriminator(real), ones) + criterion(discriminator(fake.detach()), zeros)
        loss_d.backward()
        optimizer_d.step()
        # The generator: its pictures are to be taken for real ones.
        optimizer_g.zero_grad()
        loss_g = criterion(discriminator(fake), ones)
        loss_g.backward()
        optimizer_g.step()
        losses += [loss_d.item(), loss_g.item()]
    return losses


if __name__ == "__main__":
    gpuconv.manual_seed(0)
    networks = build()
    losses = train(networks)
    rng = np.random.default_rng(1)
    with gpuconv.no_grad():
        made = networks[0](gpuconv.from_numpy(rng.standard_normal((64, 4, 1, 1)).astype(np.float32))).numpy()
    left, right = made[..., :4].mean((1, 2, 3)), made[..., 4:].mean((1, 2, 3))
    print(f"discriminator's loss {np.mean(losses[-40::2]):.2f}, generator's {np.mean(losses[-39::2]):.2f}")
    one_half = (np.abs(left - right) > 1).mean()
    assert one_half > 0.7
    print("more than 70% of the made pictures have one bright half")
    for line in made[0, 0]:
        print("".join(".#"[int(pixel > 0)] for pixel in line))
