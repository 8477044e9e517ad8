"""A small ResNet: what a block computes is added to what went into it, by a path that may shrink it as well.

It has to tell discs from squares, filled or hollow. SGD has momentum and weight decay, and a learning rate that falls
along a cosine.
"""

import numpy as np
from supervised import accuracy, fit, report

import gpuconv
from gpuconv import nn, optim


class BasicBlock(nn.Module):
    def __init__(self, channels, maps, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, maps, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        self.downsample = None
        if stride != 1 or channels != maps:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, maps, 1, stride=stride, bias=False), nn.BatchNorm2d(maps)
            )

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.layer1 = BasicBlock(8, 8)
        self.layer2 = BasicBlock(8, 16, stride=2)
        self.layer3 = BasicBlock(16, 32, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(32, classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.fc(gpuconv.flatten(self.avgpool(x), 1))


def figures(count, seed):
    """A figure of any size and place in noise: disc, square, ring, frame."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    centre, radius = rng.uniform(8, 16, (2, count, 1, 1)), rng.uniform(4, 7, (count, 1, 1))
    row, column = abs(np.mgrid[:24, :24][:, None] - centre)
    square, hollow = labels[:, None, None] % 2 == 1, labels[:, None, None] >= 2
    distance = np.where(square, np.maximum(row, column), np.hypot(row, column))
    images = ((distance < radius) & (~hollow | (distance > radius - 2))) + rng.normal(0, 0.3, (count, 24, 24))
    return images[:, None].astype(np.float32), labels


def build():
    return ResNet(4)


def train(model, steps=80, batch=32):
    images, labels = map(gpuconv.from_numpy, figures(batch * 20, seed=0))
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    return fit(model, images, labels, nn.CrossEntropyLoss(), optimizer, steps, batch, scheduler)


if __name__ == "__main__":
    gpuconv.manual_seed(0)
    model = build()
    losses = train(model)
    report(losses, accuracy(model, *figures(300, seed=1)), least=0.9, what="figures")
