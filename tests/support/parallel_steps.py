"""Fifty steps of a small network, on as many processes as run this file; imported, on the one that imports it."""

import hashlib
import json

import numpy as np

import gpuconv
from gpuconv import functional as F
from gpuconv import nn, optim, parallel

STEPS, CLASSES = 50, 5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)
        self.unused, self.frozen = nn.Linear(3, 3), nn.Linear(4 * 6 * 6, 12)
        self.output = nn.Linear(12, CLASSES)
        self.frozen.weight.requires_grad_(False)
        self.register_buffer("scale", gpuconv.tensor(np.float32(1 + parallel.rank())))

    def forward(self, x):
        x = F.tanh(self.norm(self.conv(x))).reshape(len(x), -1)
        return self.output(F.tanh(self.frozen(x))) * self.scale


class Normalised(nn.Module):
    """With a batch normalisation in front of a layer, alone and with a ReLU."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))
        self.norm, self.output = nn.BatchNorm1d(3 * 4 * 4), nn.Linear(3 * 4 * 4, CLASSES)

    def forward(self, x):
        return self.output(self.norm(self.first(x).reshape(len(x), -1)))


def normalised(dtype):
    """The losses of ten steps with batch normalisation over all processes, then the running statistics."""
    gpuconv.manual_seed(1)
    model = parallel.sync_batch_norm(Normalised().to(dtype))
    together = parallel.DataParallel(model)
    optimizer = optim.SGD(together.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(10):
        images, labels = batch(10 * step, dtype)
        own = parallel.share(len(images))
        optimizer.zero_grad()
        loss = F.cross_entropy(together(gpuconv.Tensor(images[own])), labels[own])
        loss.backward()
        optimizer.step()
        losses.append(parallel.current().sum(float(loss) * len(images[own]))[0] / len(images))
    for buffer in model.buffers():
        losses += buffer.numpy().astype(np.float64).ravel().tolist()
    return losses


def batch(step, dtype):
    """Of 25 images, now and then of one alone: too few for two processes."""
    numbers = np.random.default_rng(step)
    count = 1 if step % 10 == 7 else 25
    labels = numbers.integers(0, CLASSES, count)
    return (numbers.standard_normal((count, 1, 8, 8)) + labels[:, None, None, None] / 2).astype(dtype), labels


def run(dtype, bucket_bytes=600):
    """The losses of the steps, and a digest of the last weights."""
    gpuconv.manual_seed(1 + parallel.rank())  # rank 0's weights count
    model = Net().to(dtype)
    together = parallel.DataParallel(model, bucket_bytes=bucket_bytes)
    optimizer = optim.SGD(together.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        # Gradients of two batches add up.
        for images, labels in (batch(2 * step, dtype), batch(2 * step + 1, dtype)):
            own = parallel.share(len(images))
            total = 0.0
            if len(images[own]):
                loss = F.cross_entropy(together(gpuconv.Tensor(images[own])), labels[own])
                loss.backward()
                total = float(loss) * len(images[own])
            else:
                together.skip()
            losses.append(parallel.current().sum(total)[0] / len(images))
        optimizer.step()
    assert model.unused.weight.grad is None
    assert model.frozen.weight.grad is None
    digest = hashlib.sha256(b"".join(value.tobytes() for value in model.state_dict().values())).hexdigest()
    parallel.current().check_same({"digest": digest})
    return losses, digest


if __name__ == "__main__":
    results = {dtype: [run(np.dtype(dtype)) for _ in range(2)] for dtype in ("float32", "float64")}
    results["normalised"] = normalised(np.dtype(np.float64))
    if parallel.rank() == 0:
        print(json.dumps(results))
