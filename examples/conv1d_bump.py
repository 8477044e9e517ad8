"""1-D convolution: a filter slides along a signal and says where it finds what it looks for.

At each position the three values under the filter are multiplied by its three weights and added up. There are six
positions for three weights on eight values, so the result, the feature map, has six values.
"""

import numpy as np

from gpuconv import functional as F

signal = np.array([0, 0, 0, 1, 1, 0, 0, 0], np.float32)


def slide(weights: list[float]) -> list[float]:
    # The layouts are PyTorch's: a signal is (batch, channels, length), filters are (filters, channels, length).
    weight = np.array(weights, np.float32)
    return F.conv1d(signal.reshape(1, 1, 8), weight.reshape(1, 1, 3)).ravel().tolist()


bump = slide([0, 1, 0])
print("signal                ", signal.astype(int).tolist())
print("filter [0, 1, 0] gives", [int(value) for value in bump])
assert bump == [0, 0, 1, 1, 0, 0]

# The filter is laid on the signal as it is written. (Mathematics flips it first and calls this cross-correlation;
# neural networks do not, since a learned filter would simply come out the other way round.) So this filter,
# "right neighbour minus left neighbour", is positive where the signal rises:
rise = slide([-1, 0, 1])
print("filter [-1, 0, 1] gives", [int(value) for value in rise])
assert rise == [0, 1, 1, -1, -1, 0]
