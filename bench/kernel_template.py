"""A convolution, one thread an output. Change it, and run: python -m bench.tilings --kernel FILE --layer lenet.conv2

Arrays are NCHW, contiguous and of one type; index them as x[image, channel, row, column].
"""

import dataclasses
import functools

import numpy as np
from numba import cuda, types

from gpuconv.kernels.device import Launch, Refusal, jit


@dataclasses.dataclass(frozen=True)
class Tiling:
    """What can be varied; each of :func:`tilings` is a row of the table."""

    threads: int  # a block


def supports(geometry):  # true, or why not; its fields: n c h w, k r s, p q, stride, padding, dilation, groups
    plain = geometry.groups == 1 and geometry.dilation == (1, 1)
    return True if plain else Refusal("it is for convolutions without groups and dilation")


def tilings(geometry):  # a good guess first
    return Tiling(128), Tiling(256)


@functools.cache  # what a kernel finds around it is a constant of its machine code: loops over it can be unrolled
def _kernel(geometry, tiling, dtype, has_bias):
    (top, _), (left, _), (down, across) = *geometry.padding, geometry.stride
    c, h, w, k, r, s, p, q = (getattr(geometry, name) for name in "chwkrspq")
    real = getattr(types, dtype)  # begin sums with real(0): 0.0 is float64, and so would be the whole sum

    @jit(launch_bounds=tiling.threads)
    def my_conv(x, weight, bias, out):
        i = cuda.grid(1)
        if i < out.size:  # the last block has threads to spare
            image, filter_, row, column = i // (k * p * q), i // (p * q) % k, i // q % p, i % q
            total = bias[filter_] if has_bias else real(0)
            for channel in range(c):
                for dr in range(r):
                    for ds in range(s):
                        y, z = row * down - top + dr, column * across - left + ds
                        if 0 <= y < h and 0 <= z < w:  # what lies in the padding is zero
                            total += x[image, channel, y, z] * weight[filter_, channel, dr, ds]
            out[image, filter_, row, column] = total

    return my_conv


def launches(geometry, tiling, dtype, *, has_bias=True):  # kernel, types of its arguments, blocks, threads a block
    outputs, name = geometry.n * geometry.k * geometry.p * geometry.q, np.dtype(dtype).name
    if not (outputs and supports(geometry)):
        return ()
    array, vector = (types.Array(getattr(types, name), dimensions, "C") for dimensions in (4, 1))
    kernel = _kernel(dataclasses.replace(geometry, n=1), tiling, name, has_bias)
    return (
        Launch(kernel, (array, array, vector, array), (-(-outputs // tiling.threads), 1, 1), (tiling.threads, 1, 1)),
    )


def launch(x, weight, bias, out, geometry, tiling, stream=None):  # bias may be None; out is written in full
    for one in launches(geometry, tiling, x.dtype, has_bias=bias is not None):
        one(stream, x, weight, weight[:, 0, 0, 0] if bias is None else bias, out)
