"""Pooling: a summary of each window. 2x2 windows with stride 2 leave a quarter of the map."""

import numpy as np

from gpuconv import functional as F

feature_map = np.array([[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]], np.float32).reshape(1, 1, 4, 4)

maximum = F.max_pool2d(feature_map, kernel_size=2)  # the stride is the window's size unless told otherwise
average = F.avg_pool2d(feature_map, kernel_size=2)
total = F.sum_pool2d(feature_map, kernel_size=2)

print("max    ", maximum.ravel().tolist())
print("average", average.ravel().tolist())
print("sum    ", total.ravel().tolist())
assert maximum.ravel().tolist() == [6, 8, 3, 4]
assert average.ravel().tolist() == [3.25, 5.25, 2, 2]
assert total.ravel().tolist() == [13, 21, 8, 8]
assert maximum.size == feature_map.size // 4

# Where each maximum came from, counted row by row: the only places that a gradient flows back to.
_, winners = F.max_pool2d(feature_map, 2, return_indices=True)
print("winners", winners.ravel().tolist())
assert winners.ravel().tolist() == [5, 7, 8, 15]

# Global average pooling turns each map into one number. With one map a class it is a classifier that has no weights.
maps = np.stack([np.full((6, 6), value, np.float32) for value in (0.5, 3, 1)])[None]
scores = F.flatten(F.adaptive_avg_pool2d(maps, 1), 1)
print("one score for each map", scores[0].tolist(), "-> class", scores[0].argmax())
assert scores.tolist() == [[0.5, 3, 1]]
