"""2-D convolution as a detector: one filter for vertical lines, its transpose for horizontal ones."""

import numpy as np

from gpuconv import functional as F

image = np.zeros((8, 8), np.float32)
image[:, 3:5] = 1  # a vertical line, two pixels wide

vertical = np.array([[0, 1, 0], [0, 1, 0], [0, 1, 0]], np.float32)
horizontal = vertical.T


def feature_map(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    # Images are (batch, channels, height, width), filters (filters, channels, height, width).
    return F.conv2d(image.reshape(1, 1, 8, 8), weight.reshape(1, 1, 3, 3))[0, 0].astype(int)


found = feature_map(image, vertical)
print(
    f"An 8x8 image with a vertical line, through the filter for vertical lines: a {found.shape[0]}x{found.shape[1]} map"
)
print(found)
assert found.tolist() == [[0, 0, 3, 3, 0, 0]] * 6

# The line covers one or two of the horizontal filter's three weights wherever it is, never all: 2 at most, and no
# position stands out from the one above it.
missed = feature_map(image, horizontal)
print("The same image through the transposed filter")
print(missed)
assert missed.tolist() == [[0, 1, 2, 2, 1, 0]] * 6

# A horizontal line through the transposed filter gives the transposed map.
turned = feature_map(image.T.copy(), horizontal)
print("A horizontal line through the transposed filter")
print(turned)
assert turned.tolist() == found.T.tolist()
