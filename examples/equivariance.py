"""Shift the image, and the map shifts with it; pool the map, and a small shift changes nothing at all.

The first is called equivariance, the second (approximate) invariance. Together they let a network recognise a digit
wherever it stands in the picture.
"""

import numpy as np

from gpuconv import functional as F


def picture_with_cross(row: int, column: int) -> np.ndarray:
    picture = np.zeros((1, 1, 14, 14), np.float32)
    picture[..., row, column - 1 : column + 2] = 1
    picture[..., row - 1 : row + 2, column] = 1
    return picture


cross = picture_with_cross(1, 1)[..., :3, :3]  # the filter looks for the very thing


def peak(maps: np.ndarray) -> tuple[int, int]:
    row, column = np.unravel_index(maps.argmax(), maps.shape[2:])
    return int(row), int(column)


here = F.conv2d(picture_with_cross(5, 5), cross)
there = F.conv2d(picture_with_cross(7, 8), cross)  # two rows down, three columns to the right
print("the map's peak is at", peak(here), "and, with the cross shifted by (2, 3), at", peak(there))
assert (peak(here), peak(there)) == ((4, 4), (6, 7))
# Not only the peak: the whole map has moved.
np.testing.assert_array_equal(there[..., 2:, 3:], here[..., :-2, :-3])

# Pooling keeps the best answer of each 4x4 window and forgets where in the window it was found.
shifted_by_one = F.conv2d(picture_with_cross(5, 6), cross)
pooled, pooled_shifted = F.max_pool2d(here, 4), F.max_pool2d(shifted_by_one, 4)
print("peak after 4x4 pooling:", peak(pooled), "and, with the cross shifted by one pixel, at", peak(pooled_shifted))
assert peak(pooled) == peak(pooled_shifted) == (1, 1)

# Global pooling asks "anywhere?": any shift gives the same answer.
anywhere = [F.max_pool2d(maps, 12).item() for maps in (here, there, shifted_by_one)]
print("strongest answer anywhere:", [int(value) for value in anywhere])
assert anywhere == [5, 5, 5]
