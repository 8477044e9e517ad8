"""What `test_gpu.py` runs in processes of their own: to fill a cache and to read it, and under compute-sanitizer.

A script; its argument is the name of one of the functions below, followed by the arguments of that.
"""

import hashlib
import importlib
import sys

import cupy
import numpy as np
import torch
from numba import cuda, float32

from bench import command, compiling, gpu_stages, layers, torch_ops, verify
from gpuconv import functional as F
from gpuconv import kernels
from gpuconv.kernels import device, operations


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


def variants(layers_each=2, tilings_each=2):
    """Every variant in its first tilings on the first layers of each operation, made small."""
    cupy.cuda.set_allocator(None)
    place, most = verify.Place(torch, cupy, "cuda"), int(tilings_each)
    for operation in torch_ops.OPERATIONS:
        described = operations.OPERATIONS[operation]
        for name in list(layers.LAYERS[operation])[: int(layers_each)]:
            geometry = described.small(layers.LAYERS[operation][name], 16)
            for variant in kernels.VARIANTS[operation]:
                module = kernels.load(operation, variant)
                if module.supports(geometry):
                    verdicts = verify.verify(place, operation, variant, geometry, module.tilings(geometry)[:most])
                    assert not any(verdict.fault for verdict in verdicts.values()), (operation, name, variant, verdicts)


def compile_variants(layers_each=2, tilings_each=2):
    """Compile the kernels of :func:`variants`, in a process a core, so that compute-sanitizer need not watch that."""
    work = gpu_stages.sanitized_kernels(int(layers_each), int(tilings_each))
    compiling.compile_all(compiling.compile_kernels, list(work), command.available_cores())


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
        device.st(x, i, device.ld(shared, 255 - i))

    kernel[1, 256](cupy.zeros(256, np.float32))
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    functions = (compiled, compile_variants, variants, write_out_of_bounds, race)
    {function.__name__: function for function in functions}[sys.argv[1]](*sys.argv[2:])
