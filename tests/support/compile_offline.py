"""Compiles kernels for GPUs, which needs none, and prints their PTX as JSON: kernel -> architecture -> code.

A script, because it needs Numba's real CUDA target, and the tests run with the simulator's. Where Numba cannot compile,
it prints why, under the key "unavailable".
"""

import json
from collections.abc import Iterator

from numba import cuda, float32

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels import device, load

ARCHITECTURES = {"sm_80": (8, 0), "sm_90a": (9, 0, "a"), "sm_100": (10, 0)}


def launch(kernel, dtype: str = "float32") -> device.Launch:
    return device.Launch(kernel, (device.array_type(dtype),) * 2, (1, 1, 1), (256, 1, 1))


def copy(load, store, count, *, predicated=False):
    """A kernel that moves `count` elements a thread."""

    @device.jit
    def kernel(x, y):
        i = device.u32(cuda.threadIdx.x) * count
        store(y, i, load(x, i, i < 37) if predicated else load(x, i))

    return kernel


def reverse(load, store, count):
    """A kernel that moves `count` elements a thread through shared memory."""

    @device.jit
    def kernel(x, y):
        a = cuda.shared.array(1024, float32, alignment=16)
        i = device.u32(cuda.threadIdx.x) * count
        store(a, i, load(x, i))
        cuda.syncthreads()
        store(y, i, load(a, (256 * count - count) - i))

    return kernel


@device.device_function
def decoded(i):
    return i // 13 % 7 * 91 + i % 13


@device.jit
def arithmetic(x, y):
    i = device.u32(cuda.threadIdx.x)
    j = device.maximum(device.i32(i) // 5, 3) % 17
    device.st(y, decoded(i), device.fma(device.ldg(x, i), device.ldg(x, j + 1), device.ldg(x, 0)))


def launches() -> Iterator[tuple[str, device.Launch]]:
    """Small kernels with the intrinsics, and the direct convolution."""
    yield "ld4", launch(copy(device.ld4, device.st4, 4))
    yield "ldg", launch(copy(device.ldg, device.st, 1))
    yield "ldg4", launch(copy(device.ldg4, device.st4, 4))
    yield "ldg2 of float64", launch(copy(device.ldg2, device.st2, 2), "float64")
    yield "ldg4 of uint8", launch(copy(device.ldg4, device.st4, 4), "uint8")
    yield "ldg4_if", launch(copy(device.ldg4_if, device.st4, 4, predicated=True))
    yield "ldg2_if of float64", launch(copy(device.ldg2_if, device.st2, 2, predicated=True), "float64")
    yield "ldg_if of int32", launch(copy(device.ldg_if, device.st, 1, predicated=True), "int32")
    yield "ldg_if of uint8", launch(copy(device.ldg_if, device.st, 1, predicated=True), "uint8")
    yield "shared ld2", launch(reverse(device.ld2, device.st2, 2))
    yield "shared ld4", launch(reverse(device.ld4, device.st4, 4))
    yield "arithmetic", launch(arithmetic)
    direct = load("conv2d", "direct")
    padded = Conv2dGeometry.of((32, 64, 56, 56), (64, 64, 3, 3), padding=1)
    yield "direct", direct.launches(padded, direct.tilings(padded)[0], "float32")[0]
    odd = Conv2dGeometry.of((2, 6, 13, 12), (4, 3, 3, 2), stride=(2, 3), dilation=(2, 3), groups=2)
    yield "direct in float64", direct.launches(odd, direct.tilings(odd)[0], "float64", absent=("bias",))[0]


def unavailable() -> str | None:
    """Why nothing can be compiled here."""
    try:
        cuda.compile_ptx(lambda: None, (), cc=(8, 0))
    except Exception as error:  # of many kinds: NVVM missing, too old, of another CUDA
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    why = unavailable()
    code = {} if why else {name: {arch: one.ptx(cc) for arch, cc in ARCHITECTURES.items()} for name, one in launches()}
    print(json.dumps({"unavailable": why} if why else code))
