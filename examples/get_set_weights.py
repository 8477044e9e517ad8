"""Reading and setting weights: as a list, as in Keras, or by name, as in PyTorch."""

import numpy as np

from gpuconv.models import LeNet5

model = LeNet5()
for name, array in model.state_dict().items():
    print(f"{name:13} {array.shape}")

# A copy of all weights, in that order; set_weights takes such a list.
weights = model.get_weights()
other = LeNet5()
other.set_weights(weights)

random = np.random.default_rng(0)
image = random.random((1, 1, 32, 32), np.float32)
np.testing.assert_array_equal(model.predict(image), other.predict(image))
print("the other LeNet now predicts the same:", model.predict(image).round(3)[0])

# One filter by hand: the first layer's first filter becomes a detector of vertical lines.
state = model.state_dict()
state["conv1.weight"][0, 0] = [[0, 0, 1, 0, 0]] * 5
state["conv1.bias"][0] = 0
model.load_state_dict(state)
line = np.zeros((1, 1, 32, 32), np.float32)
line[..., 16] = 1
first_map = model.conv1(line).numpy()[0, 0]
print("its first filter answers a vertical line in column 16 with", first_map.max(), "in column", first_map[0].argmax())
assert first_map.max() == 5
assert first_map[0].argmax() == 14  # two columns are lost to the left of a 5x5 filter's centre

# What does not fit is refused, and nothing is changed.
try:
    model.set_weights(weights[:-1])
except ValueError as error:
    print("refused:", error)
