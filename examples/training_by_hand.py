"""Training, written out: start at random, forward, total error, backpropagate, update; repeat.

The network has to tell vertical lines from horizontal ones. Nobody tells it what a line is: it finds its two filters by
itself, from sixteen examples.
"""

import numpy as np

from gpuconv import functional as F
from gpuconv import manual_seed, nn

# The examples: 8x8 images with one line each, and the two outputs that we want, (vertical, horizontal).
images = np.zeros((16, 1, 8, 8), np.float32)
targets = np.zeros((16, 2), np.float32)
for position in range(8):
    images[position, 0, :, position] = 1
    targets[position] = [1, 0]
    images[8 + position, 0, position, :] = 1
    targets[8 + position] = [0, 1]

# 1. Start with random weights.
manual_seed(4)
network = nn.Sequential(
    nn.Conv2d(1, 2, 3, padding=1),  # two filters of 3x3
    nn.ReLU(),
    nn.MaxPool2d(8),  # the strongest answer of each filter anywhere in its 8x8 map
    nn.Flatten(),
    nn.Linear(2, 2),
    nn.Sigmoid(),
)
learning_rate = 0.2

for step in range(401):
    # 2. Forward: what does the network say now?
    outputs = network(images)
    # 3. The total error, 1/2 * sum of (target - output) squared.
    error = F.half_squared_error(outputs, targets)
    if step % 100 == 0:
        right = np.mean(outputs.numpy().argmax(1) == targets.argmax(1))
        print(f"step {step:3}: total error {error.item():.4f}, {right:.0%} right")
    # 4. Backpropagate: how does the error change with each weight?
    network.zero_grad()
    error.backward()
    # 5. Update: a small step downhill for each. (gpuconv.optim.SGD does this; here it is in full.)
    for parameter in network.parameters():
        parameter.data -= learning_rate * parameter.grad.data

by_hand = 0.5 * ((targets - network(images).numpy()) ** 2).sum()
print(f"after training: total error {by_hand:.4f}")
horizontal, vertical = network[0].weight.numpy()[:, 0]
print("Two filters that nobody wrote, one for each kind of line (compare line_detector.py):")
print(horizontal.round(1))
print(vertical.round(1))
np.testing.assert_allclose(by_hand, F.half_squared_error(network(images), targets).item(), rtol=1e-5)
assert by_hand < 0.1
assert (horizontal[0] > 0).all() and (horizontal[1] < 0).all()  # noqa: PT018
assert (vertical[:, 1] > 1).all() and (vertical[:, [0, 2]] < 0).all()  # noqa: PT018
assert (network.predict(images).argmax(1) == targets.argmax(1)).all()
