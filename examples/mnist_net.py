"""The network, loss and optimizer of PyTorch's MNIST example, on digits as a pocket calculator shows them.

Two convolutions, pooling, dropout, two fully connected layers, `log_softmax` with `nll_loss`; Adadelta, whose learning
rate falls after each epoch.
"""

import numpy as np

import gpuconv
import gpuconv.nn.functional as F
from gpuconv import nn, optim

#: Segments of each digit: top, middle, bottom; upper left and right; lower left and right.
SEGMENTS = (
    "1011111",
    "0000101",
    "1110110",
    "1110101",
    "0101101",
    "1111001",
    "1111011",
    "1000101",
    "1111111",
    "1111101",
)
#: Rows and columns of each segment in a picture of 28x28.
PLACES = (
    ((6, 8), (10, 18)), ((13, 15), (10, 18)), ((20, 22), (10, 18)),
    ((7, 14), (9, 11)), ((7, 14), (17, 19)), ((14, 21), (9, 11)), ((14, 21), (17, 19)),
)  # fmt: skip


def digits(count, seed):
    """Digits of a random brightness, moved by a few pixels, in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    images = rng.normal(0, 0.3, (count, 1, 28, 28))
    for image, label in zip(images[:, 0], labels, strict=True):
        down, right, brightness = *rng.integers(-3, 4, 2), rng.uniform(1.0, 2.0)
        for on, ((top, bottom), (left, end)) in zip(SEGMENTS[label], PLACES, strict=True):
            if on == "1":
                image[top + down : bottom + down, left + right : end + right] += brightness
    return images.astype(np.float32), labels


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, 1)
        self.conv2 = nn.Conv2d(8, 16, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(2304, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.max_pool2d(x, 2)
        x = self.dropout1(x)
        x = gpuconv.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = self.dropout2(x)
        return F.log_softmax(self.fc2(x), dim=1)


def build():
    return Net()


def train(model, steps=160, batch=32, epoch=40):
    images, labels = digits(batch * epoch, seed=0)
    optimizer = optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    losses = []
    model.train()
    for step in range(steps):
        first = step % epoch * batch
        data, target = (
            gpuconv.from_numpy(images[first : first + batch]),
            gpuconv.from_numpy(labels[first : first + batch]),
        )
        optimizer.zero_grad()
        loss = F.nll_loss(model(data), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % epoch == epoch - 1:
            scheduler.step()
    return losses


if __name__ == "__main__":
    gpuconv.manual_seed(0)
    model = build()
    losses = train(model)
    images, labels = digits(300, seed=1)
    model.eval()
    with gpuconv.no_grad():
        output = model(gpuconv.from_numpy(images))
    loss = F.nll_loss(output, gpuconv.from_numpy(labels), reduction="sum").item() / len(labels)
    right = (output.argmax(dim=1) == gpuconv.from_numpy(labels)).float().mean().item()
    print(f"loss: first step {losses[0]:.2f}, last steps {np.mean(losses[-10:]):.2f}, new digits {loss:.2f}")
    assert right > 0.9, right
    print("new digits: more than 90% right")
