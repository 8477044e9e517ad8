"""How large is the map? It depends on the filter, the zero-padding and the stride.

output = (input + padding before + padding after - filter) // stride + 1
"""

import numpy as np

from gpuconv import functional as F

image = np.ones((1, 1, 7, 7), np.float32)
weight = np.ones((1, 1, 3, 3), np.float32)


def size(**options: object) -> str:
    height, width = F.conv2d(image, weight, **options).shape[2:]
    return f"{height}x{width}"


sizes = {
    # Narrow: the filter stays inside the image, which shrinks by filter - 1. "valid" is padding 0, the default.
    "narrow, padding='valid'": size(padding="valid"),
    # Same: as much padding as keeps the size.
    "same,   padding='same'": size(padding="same"),
    # Wide: each pixel comes under each weight, so the corners count as much as the centre; padding is filter - 1.
    "wide,   padding=2": size(padding=2),
    # A stride of 2 moves the filter two pixels at a time and halves the map.
    "stride 2, no padding": size(stride=2),
    "stride 2, padding=1": size(stride=2, padding=1),
    # Each side may have its own padding: one row above, two columns on the right.
    "padding=((1, 0), (0, 2))": size(padding=((1, 0), (0, 2))),
}
print("a 3x3 filter on a 7x7 image")
for name, result in sizes.items():
    print(f"  {name:25} {result}")
assert list(sizes.values()) == ["5x5", "7x7", "9x9", "3x3", "4x4", "6x7"]

# What padding does to the border: zeros outside make a box of ones count 4 at a corner, 6 at a side, 9 inside.
print(F.conv2d(image, weight, padding="same")[0, 0].astype(int))
assert F.conv2d(image, weight, padding="same")[0, 0, :2, :2].tolist() == [[4, 6], [6, 9]]
