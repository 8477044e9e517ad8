"""What `test_gpu.py` runs in processes of their own: to fill a cache and to read it, and under compute-sanitizer.

A script; its argument is the name of one of the functions below.
"""

import hashlib
import importlib
import sys

import cupy
import numpy as np
import torch
from numba import cuda, float32

from bench import layers, torch_ops, verify
from gpuconv import functional as F
from gpuconv import kernels
from gpuconv.kernels import device


def compiled():
    """Print how many functions Numba compiled for a convolution and a ReLU, and a digest of the result."""
    dispatcher = importlib.import_module("numba.cuda.dispatcher")
    real, names = dispatcher.compile_cuda, []

    def counting(function, *arguments, **options):
        names.append(function.__name__)
        return real(function, *arguments, **options)

    dispatcher.compile_cuda = counting
    x = cupy.asarray(np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32))
    y = F.relu(F.conv2d(x, cupy.ones((8, 3, 3, 3), np.float32))).get()
    print(len(names))
    print(hashlib.sha256(y.tobytes()).hexdigest())


def variants():
    """Every variant in two tilings on the first two layers of each operation, made small."""
    cupy.cuda.set_allocator(None)
    place = verify.Place(torch, cupy, "cuda")
    for operation in torch_ops.OPERATIONS:
        described = layers.OPERATIONS[operation]
        for name in list(described.layers)[:2]:
            geometry = described.small(described.layers[name], 16)
            for variant in kernels.VARIANTS[operation]:
                module = kernels.load(operation, variant)
                if module.supports(geometry):
                    verdicts = verify.verify(place, operation, variant, geometry, module.tilings(geometry)[:2])
                    assert not any(verdict.fault for verdict in verdicts.values()), (operation, name, variant, verdicts)


def write_out_of_bounds():
    """One thread writes one element behind an allocation."""

    @device.jit
    def kernel(x):
        device.st(x, device.u32(cuda.threadIdx.x), float32(1))

    cupy.cuda.set_allocator(None)
    kernel[1, 129](cupy.zeros(128, np.float32))
    cupy.cuda.Device().synchronize()


def race():
    """Threads read what others wrote to shared memory, without a barrier."""

    @device.jit
    def kernel(x):
        shared = cuda.shared.array(256, float32)
        i = device.u32(cuda.threadIdx.x)
        device.st(shared, i, device.ld(x, i))
        device.st(x, i, device.ld(shared, device.usub(255, i)))

    kernel[1, 256](cupy.zeros(256, np.float32))
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    {function.__name__: function for function in (compiled, variants, write_out_of_bounds, race)}[sys.argv[1]]()
