"""Transfer learning: layers that were trained for one task are frozen, and a new last layer learns another one.

First a network learns the direction of stripes, of which there are many pictures. Then its filters stay as they are,
and with 100 pictures a new last layer learns to tell wide stripes from narrow ones.
"""

import numpy as np

import gpuconv
from gpuconv import nn, optim


def stripes(count, seed):
    """Pictures, their direction (0 to 3), and whether the stripes are narrow."""
    rng = np.random.default_rng(seed)
    direction, narrow = rng.integers(0, 4, count), rng.integers(0, 2, count)
    row, column = np.mgrid[:16, :16]
    angle = direction[:, None, None] * np.pi / 4
    step = np.where(narrow, 1.7, 0.8)[:, None, None]
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1)) + step * (row * np.cos(angle) + column * np.sin(angle))
    images = np.sin(phase) + rng.normal(0, 0.5, (count, 16, 16))
    return images[:, None].astype(np.float32), direction, narrow


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(24, classes)

    def forward(self, x):
        return self.head(self.features(x))


def build():
    return nn.ModuleList([Net(4), nn.Linear(24, 2)])


def fit(model, images, labels, steps, lr, batch=20):
    criterion = nn.CrossEntropyLoss()
    # Only what is to be trained.
    optimizer = optim.Adam(filter(lambda parameter: parameter.requires_grad, model.parameters()), lr=lr)
    losses = []
    for step in range(steps):
        first = step * batch % len(images)
        outputs = model(gpuconv.from_numpy(images[first : first + batch]))
        loss = criterion(outputs, gpuconv.from_numpy(labels[first : first + batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train(parts, steps=100):
    model, new_head = parts
    images, direction, _ = stripes(400, seed=0)
    losses = fit(model, images, direction, steps=steps, lr=0.01)
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.head = new_head
    images, _, narrow = stripes(100, seed=1)
    return losses + fit(model, images, narrow, steps=steps, lr=0.05)


if __name__ == "__main__":
    gpuconv.manual_seed(0)
    parts = build()
    model = parts[0]
    losses = train(parts)
    filters = model.features[0].weight
    print(f"first task: loss {losses[0]:.2f} to {losses[99]:.2f}; second: {losses[100]:.2f} to {losses[-1]:.2f}")
    assert not filters.requires_grad
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"the second task trains {trained} numbers of {sum(p.numel() for p in model.parameters()):,}")
    images, _, narrow = stripes(200, seed=2)
    with gpuconv.no_grad():
        right = (model(gpuconv.from_numpy(images)).argmax(1).numpy() == narrow).mean()
    assert right > 0.85
    print("new pictures: more than 85% right")
