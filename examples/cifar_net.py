"""The network of PyTorch's tutorial on CIFAR-10, on pictures that are made here: 32x32, three colours, four shapes.

Two convolutions, three fully connected layers, SGD with momentum. It is the program as one writes it for PyTorch, with
another import.
"""

import numpy as np
from supervised import accuracy, fit, report

import gpuconv
import gpuconv.nn.functional as F
from gpuconv import nn, optim


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 4)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = gpuconv.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def pictures(count, seed):
    """Squares, frames, crosses and bars, of any colour and anywhere, in noise."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.1, (count, 3, 32, 32)).astype(np.float32)
    labels = rng.integers(0, 4, count)
    for image, label in zip(images, labels, strict=True):
        size = rng.integers(10, 17)
        y, x = rng.integers(0, 32 - size, 2)
        shape = np.zeros((size, size), bool)
        if label == 0:
            shape[:] = True
        elif label == 1:
            shape[[0, 1, -1, -2]] = shape[:, [0, 1, -1, -2]] = True
        elif label == 2:
            shape[size // 2 - 1 : size // 2 + 1] = shape[:, size // 2 - 1 : size // 2 + 1] = True
        else:
            shape[::4] = shape[1::4] = True
        image[:, y : y + size, x : x + size] += shape * rng.uniform(0.5, 1, (3, 1, 1))
    return images, labels


def build():
    return Net()


def train(net, steps=300, batch=16):
    images, labels = map(gpuconv.from_numpy, pictures(1600, seed=0))
    optimizer = optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    return fit(net, images, labels, nn.CrossEntropyLoss(), optimizer, steps, batch)


if __name__ == "__main__":
    gpuconv.manual_seed(0)
    net = build()
    losses = train(net)
    report(losses, accuracy(net, *pictures(200, seed=1)), least=0.7)
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
