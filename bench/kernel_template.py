"""A convolution, one thread an output. Change it, and run: python -m bench.tilings --kernel FILE --layer lenet.conv2

Arrays are NCHW, contiguous and of one type; index them as x[image, channel, row, column].
"""

import dataclasses
import functools

from numba import cuda, types

from gpuconv.kernels.device import Refusal, call, jit


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


def calls(a, geometry, tiling):  # a launch: kernel, blocks, threads a block, arguments; a has the arrays by name
    kernel = _kernel(dataclasses.replace(geometry, n=1), tiling, a.dtype, a.has("bias"))  # if not, a.bias is any
    x, weight, out = a.shaped("x"), a.shaped("weight"), a.shaped("out")  # a.x is flat; out is to be written in full
    yield call(kernel, -(-out.size // tiling.threads), tiling.threads, x, weight, a.bias, out)
