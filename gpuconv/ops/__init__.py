"""The operations, one file a family: each one's forward and backward side by side, in terms of backend primitives.

Users call them through ``gpuconv.functional``, which checks the arguments; what is here trusts them.
"""

from gpuconv.ops import (
    activation,
    arithmetic,
    conv,
    elementwise,
    inplace,
    linear,
    loss,
    picking,
    pool,
    products,
    rearrange,
    reduce,
    shape,
)

__all__ = [
    "activation",
    "arithmetic",
    "conv",
    "elementwise",
    "inplace",
    "linear",
    "loss",
    "picking",
    "pool",
    "products",
    "rearrange",
    "reduce",
    "shape",
]
