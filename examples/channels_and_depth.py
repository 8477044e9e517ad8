"""Why three input channels give one map, and 64 filters on 64 maps give 64 maps, not 64 times 64.

A filter is as deep as its input: it has one slice for each input channel. What the slices find is added up, so that
each filter makes one map, however many channels there are.
"""

import numpy as np

from gpuconv import functional as F
from gpuconv import nn

random = np.random.default_rng(0)
colour_picture = random.random((1, 3, 32, 32), np.float32)  # one picture: red, green and blue

# One filter. Its weights are 3 slices of 5x5, and there is one map.
one = nn.Conv2d(3, 1, 5)
print("one filter on 3 channels: weights", one.weight.shape, "-> maps", one(colour_picture).shape)
assert one.weight.shape == (1, 3, 5, 5)
assert one(colour_picture).shape == (1, 1, 28, 28)

# The map is the sum of what each slice finds in its channel, plus the bias.
slices = [F.conv2d(colour_picture[:, [c]], one.weight.numpy()[:, [c]]) for c in range(3)]
np.testing.assert_allclose(one(colour_picture).numpy(), sum(slices) + one.bias.numpy(), rtol=1e-5, atol=1e-5)
print("equal to the sum over its 3 slices")

# Two layers of 64 filters. The second one's filters are 64 deep, and there are 64 of them: 64 maps.
first, second = nn.Conv2d(3, 64, 3, padding="same"), nn.Conv2d(64, 64, 3, padding="same")
maps = second(first(colour_picture))
print("64 filters, then 64 filters: second layer's weights", second.weight.shape, "-> maps", maps.shape)
assert second.weight.shape == (64, 64, 3, 3)
assert maps.shape == (1, 64, 32, 32)
