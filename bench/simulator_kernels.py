"""The kernels that bench.simulator times. Each has a function that gives a launch, which checks its own result."""

import numpy as np
from numba import cuda, float32, int32


@cuda.jit
def vector_add(x, y, z):
    i = cuda.grid(1)
    if i < z.size:
        z[i] = x[i] + y[i]


def add():
    x, z = np.arange(8000, dtype=np.float32), np.zeros(8000, np.float32)

    def run():
        vector_add[32, 256](x, x, z)
        np.testing.assert_array_equal(z, 2 * x)

    return run


@cuda.jit
def stencil_kernel(x, y):
    i, j = cuda.grid(2)
    if 0 < i < x.shape[0] - 1 and 0 < j < x.shape[1] - 1:
        total = float32(0)
        for r in range(-1, 2):
            for s in range(-1, 2):
                total += x[i + r, j + s]
        y[i, j] = total


def stencil():
    x, y = np.ones((64, 64), np.float32), np.zeros((64, 64), np.float32)

    def run():
        stencil_kernel[(4, 4), (16, 16)](x, y)
        assert (y[1:-1, 1:-1] == 9).all()

    return run


@cuda.jit
def matmul_kernel(a, b, c):
    left = cuda.shared.array((16, 16), float32)
    right = cuda.shared.array((16, 16), float32)
    x, y = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    total = float32(0)
    for step in range(a.shape[1] // 16):
        left[ty, tx] = a[y, step * 16 + tx]
        right[ty, tx] = b[step * 16 + ty, x]
        cuda.syncthreads()
        for k in range(16):
            total += left[ty, k] * right[k, tx]
        cuda.syncthreads()
    c[y, x] = total


def matmul():
    a, c = np.ones((32, 64), np.float32), np.zeros((32, 32), np.float32)

    def run():
        matmul_kernel[(2, 2), (16, 16)](a, a.reshape(64, 32), c)
        assert (c == 64).all()

    return run


@cuda.jit
def reduction_kernel(x, sums):
    shared = cuda.shared.array(256, float32)
    t = cuda.threadIdx.x
    shared[t] = x[cuda.grid(1)]
    cuda.syncthreads()
    s = 128
    while s > 0:
        if t < s:
            shared[t] += shared[t + s]
        cuda.syncthreads()
        s //= 2
    if t == 0:
        sums[cuda.blockIdx.x] = shared[0]


def reduction():
    x, sums = np.ones(2048, np.float32), np.zeros(8, np.float32)

    def run():
        reduction_kernel[8, 256](x, sums)
        assert (sums == 256).all()

    return run


@cuda.jit
def convolution_kernel(x, w, y):
    tile = cuda.shared.array((20, 20), float32)
    column, row = cuda.threadIdx.x, cuda.threadIdx.y
    n, top, left = cuda.blockIdx.z, cuda.blockIdx.y * 16, cuda.blockIdx.x * 16
    total = float32(0)
    for c in range(x.shape[1]):
        for i in range(row, 20, 16):
            for j in range(column, 20, 16):
                tile[i, j] = x[n, c, top + i, left + j]
        cuda.syncthreads()
        for r in range(5):
            for s in range(5):
                total += tile[row + r, column + s] * w[0, c, r, s]
        cuda.syncthreads()
    y[n, 0, top + row, left + column] = total


def convolution():
    x, w = np.ones((2, 2, 36, 36), np.float32), np.ones((1, 2, 5, 5), np.float32)
    y = np.zeros((2, 1, 32, 32), np.float32)

    def run():
        convolution_kernel[(2, 2, 2), (16, 16)](x, w, y)
        assert (y == 50).all()

    return run


@cuda.jit
def histogram_kernel(x, counts):
    local = cuda.shared.array(64, int32)
    t = cuda.threadIdx.x
    if t < 64:
        local[t] = 0
    cuda.syncthreads()
    i = cuda.grid(1)
    if i < x.size:
        cuda.atomic.add(local, x[i] % 64, 1)
    cuda.syncthreads()
    if t < 64:
        cuda.atomic.add(counts, t, local[t])


def histogram():
    x, counts = np.arange(4096, dtype=np.int32), np.zeros(64, np.int32)

    def run():
        counts[:] = 0
        histogram_kernel[16, 256](x, counts)
        assert (counts == 64).all()

    return run


@cuda.jit
def votes_kernel(x, y):
    i = cuda.grid(1)
    y[i] = cuda.syncthreads_count(int32(x[i]))


def votes():
    x, y = np.arange(2048, dtype=np.int32) % 2, np.zeros(2048, np.int32)

    def run():
        votes_kernel[8, 256](x, y)
        assert (y == 128).all()

    return run


@cuda.jit
def product_kernel(a, b, c):
    x, y = cuda.grid(2)
    if y < c.shape[0] and x < c.shape[1]:
        total = float32(0)
        for k in range(a.shape[1]):
            total += a[y, k] * b[k, x]
        c[y, x] = total


def plain_product():
    a, c = np.ones((16, 500), np.float32), np.zeros((16, 16), np.float32)

    def run():
        product_kernel[(1, 1), (16, 16)](a, a.reshape(500, 16), c)
        assert (c == 500).all()

    return run


@cuda.jit
def mandelbrot_kernel(counts, limit):
    i, j = cuda.grid(2)
    if i < counts.shape[0] and j < counts.shape[1]:
        real, imaginary = 3.0 * i / counts.shape[0] - 2.0, 2.0 * j / counts.shape[1] - 1.0
        x = y = 0.0
        count = 0
        while count < limit and x * x + y * y < 4:
            x, y = x * x - y * y + real, 2 * x * y + imaginary
            count += 1
        counts[i, j] = count


def mandelbrot():
    counts = np.zeros((32, 32), np.int32)

    def run():
        mandelbrot_kernel[(2, 2), (16, 16)](counts, 300)
        assert counts.max() == 300
        assert counts.min() < 3

    return run


CASES = {
    "vector add": add,
    "stencil": stencil,
    "plain product": plain_product,
    "mandelbrot": mandelbrot,
    "matrix product": matmul,
    "reduction": reduction,
    "convolution": convolution,
    "histogram": histogram,
    "votes": votes,
}

#: Those whose threads wait for each other.
BARRIERS = ("matrix product", "reduction", "convolution", "histogram", "votes")
