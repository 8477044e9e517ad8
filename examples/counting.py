"""Counting weights and connections: a filter is used at every position, so few weights make many connections."""

import numpy as np

from gpuconv import nn

# A 32x32 image with one channel, ten filters of 5x5, 2x2 pooling, 200 neurons.
network = nn.Sequential(
    nn.Conv2d(1, 10, 5),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(10 * 14 * 14, 200),
)
summary = network.summary((1, 32, 32))
print(summary)

conv, _, pool, flatten, dense = summary.layers
weights_of_a_filter = conv.parameters // 10
outputs = int(np.prod(conv.output_shape))

print(f"weights of a filter       {weights_of_a_filter} = 5 * 5 + 1, the bias")
print(f"outputs of the conv layer {outputs:,} = 10 * 28 * 28")
print(f"its connections           {conv.connections:,} = 7,840 * 26")
print(f"after pooling             {pool.output_shape}, which took {pool.parameters} weights")
print(f"weights of 200 neurons    {dense.parameters:,} = 200 * (10 * 14 * 14 + 1)")

assert weights_of_a_filter == 26
assert conv.output_shape == (10, 28, 28)
assert outputs == 7_840
assert conv.connections == 203_840
assert pool.output_shape == (10, 14, 14)
assert dense.parameters == 392_200
assert (pool.parameters, flatten.parameters) == (0, 0)
