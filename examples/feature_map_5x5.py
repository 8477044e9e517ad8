"""The best-known drawing of a convolution, in numbers: a 3x3 filter on a 5x5 image of zeros and ones."""

import numpy as np

from gpuconv import functional as F


def grid(text: str) -> np.ndarray:
    """'101 010' -> [[1, 0, 1], [0, 1, 0]], with the batch and the channel dimension that conv2d wants."""
    return np.array([[[[float(digit) for digit in row] for row in text.split()]]], np.float32)


image = grid("11100 01110 00111 00110 01100")
weight = grid("101 010 101")

feature_map = F.conv2d(image, weight)[0, 0]

# The first value by hand: lay the filter on the upper left corner, multiply, add.
corner = image[0, 0, :3, :3]
assert (corner * weight[0, 0]).sum() == feature_map[0, 0] == 4

rows = ["".join(str(int(value)) for value in row) for row in feature_map]
print("\n".join(rows))
assert rows == ["434", "243", "234"]
