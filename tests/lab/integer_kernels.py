"""Kernels of integers, with their arguments. As a script: what they compute as compiled, which it keeps, and that
simulated kernels compute the same in a process in which ``numba.cuda`` is for a real GPU.

    NUMBA_ENABLE_CUDASIM=0 python integer_kernels.py results.npz uint8,int32 blur ...
"""

import math
import sys

import numba
import numpy as np
from numba import cuda

TYPES = [np.dtype(f"{sign}int{bits}").type for sign in ("", "u") for bits in (8, 16, 32, 64)]


def of_two_types(left, right):
    """A kernel that does what can be done to numbers of two types, and its arguments, the results last."""

    @cuda.jit
    def kernel(a, b, f, whole, real, exact, bytes_, words):
        i = cuda.blockIdx.x
        x, y = a[i], b[i]
        # As int64, and as float64, which shows the sign.
        whole[i, 0], exact[i, 0] = x + y, x + y
        whole[i, 1], exact[i, 1] = x - y, x - y
        whole[i, 2], exact[i, 2] = x * y, x * y
        whole[i, 3], exact[i, 3] = x // y, x // y
        whole[i, 4], exact[i, 4] = x % y, x % y
        whole[i, 5], exact[i, 5] = x & y, x & y
        whole[i, 6], exact[i, 6] = x | y, x | y
        whole[i, 7], exact[i, 7] = x ^ y, x ^ y
        whole[i, 8], exact[i, 8] = x << (y & 127), x << (y & 63)
        whole[i, 9], exact[i, 9] = x >> (y & 127), x >> (y & 63)
        whole[i, 10], exact[i, 10] = (x & 127) ** 3, (y >> 2 & 15) ** 13
        whole[i, 11], exact[i, 11] = -x, -x
        whole[i, 12], exact[i, 12] = ~x, ~x
        whole[i, 13], exact[i, 13] = abs(x), +x
        whole[i, 14], exact[i, 14] = 255 - 2 * x, -1 * x
        whole[i, 15], exact[i, 15] = (x - y) * 3 + x, (x - y) // 3
        whole[i, 16], exact[i, 16] = (x * y) >> 5, (x * y) >> (y & 63)
        whole[i, 17], exact[i, 17] = 1 << (x & 127), -3 >> (x & 127)
        whole[i, 18], exact[i, 18] = 7 // y, x % 10
        whole[i, 19], exact[i, 19] = (x > 3) + x, x & True
        whole[i, 20] = (x < y) + 2 * (x <= y) + 4 * (x > y) + 8 * (x >= y) + 16 * (x == y) + 32 * (x != y)
        whole[i, 21] = (x // 4 - y // 4 < 0) + 2 * (x // 2 > y) + 4 * (x == 5)
        total = 0
        total += x
        total *= y
        total -= x
        whole[i, 22], exact[i, 22] = total, total
        # What was cast.
        whole[i, 23], exact[i, 23] = np.uint8(x) - np.uint8(y), np.int8(x) - np.uint8(y)
        whole[i, 24], exact[i, 24] = numba.int16(x * y) * x, numba.uint8(x) - numba.uint8(y)
        whole[i, 25], exact[i, 25] = np.uint64(x) - np.uint64(y), numba.uint32(x - y) // np.uint32(7)
        # Arrays of other memory, and stores that cut off.
        mine, ours = cuda.local.array(2, left), cuda.shared.array(2, right)
        mine[0], mine[1], ours[0], ours[1] = y, 1000, x, 300
        whole[i, 26], exact[i, 26] = mine[0] - x, mine[1] - y
        whole[i, 27], exact[i, 27] = ours[0] * y, ours[1] - y
        bytes_[i, 0], bytes_[i, 1], bytes_[i, 2] = x, x * y, 300
        words[i, 0], words[i, 1], words[i, 2] = x, x - y, -1
        # Beside floats.
        real[i, 0], real[i, 1], real[i, 2] = x / y, x * f[i], f[i] - y
        real[i, 3], real[i, 4], real[i, 5] = x * 0.1, 0.1 * x + y, 1.0 / y
        real[i, 6], real[i, 7], real[i, 8] = f[i] / x, (x + y) * f[i], np.float64(x) + np.float32(y)
        real[i, 9], real[i, 10] = min(x, y), max(x, y)

    a, b = (np.ascontiguousarray(grid.ravel()) for grid in np.meshgrid(_limits(left), _limits(right)))
    n = a.size
    f = np.linspace(0.1, 3, n, dtype=np.float32)
    results = np.zeros((n, 28), np.int64), np.zeros((n, 11)), np.zeros((n, 28)), np.zeros((n, 3), np.uint8)
    return kernel, n, 1, (a, b, f, *results, np.zeros((n, 3), np.int16))


def _limits(kind):
    low, high = max(np.iinfo(kind).min, 1 - 2**63), np.iinfo(kind).max  # Numba has -2**63 // -1 == 0, NumPy -2**63
    return np.array(sorted({0, 1, 2, 5, 63, 64, high - 1, high, low, low + 1, low // 2, high // 3}), kind)


@cuda.jit
def blurred(image, out, differences):
    """A mean of three by three pixels, and how far each is from it."""
    y, x = cuda.grid(2)
    if 0 < y < image.shape[0] - 1 and 0 < x < image.shape[1] - 1:
        total = 0
        for down in range(-1, 2):
            for right in range(-1, 2):
                total += image[y + down, x + right]
        out[y, x] = total // 9
        differences[y, x] = abs(image[y, x] - total / 9)


@cuda.jit
def edges(image, weights, grey, out):
    """Grey of three colours, and the sum of its differences from four neighbours, cut off."""
    y, x = cuda.grid(2)
    if y < image.shape[0] and x < image.shape[1]:
        grey[y, x] = 0.299 * image[y, x, 0] + 0.587 * image[y, x, 1] + 0.114 * image[y, x, 2]
        total = 4 * image[y, x, 1]
        for k in range(4):
            total += weights[k] * image[(y + k % 2) % image.shape[0], (x + k // 2) % image.shape[1], 1]
        out[y, x] = min(max(total, 0), 255)


@cuda.jit
def histogram(x, counts, largest, packed):
    """Of values, in shared memory; their largest; two halves of a word."""
    mine = cuda.shared.array(16, numba.uint32)
    t, i = cuda.threadIdx.x, cuda.grid(1)
    if t < 16:
        mine[t] = 0
    cuda.syncthreads()
    if i < x.size:
        cuda.atomic.add(mine, x[i] >> 4, 1)
        cuda.atomic.max(largest, 0, x[i])
        packed[i] = x[i] << 24 | x[i] ^ 0xFF
        packed[i] += cuda.popc(x[i] - 1) + cuda.clz(packed[i])
    cuda.syncthreads()
    if t < 16:
        cuda.atomic.add(counts, t, mine[t])


@cuda.jit
def hashed(data, table, records, seed, out):
    """FNV-1a of rows, mixed as Murmur's hash is; a generator of 64 bits; fields of records."""
    i = cuda.grid(1)
    if i < data.shape[0]:
        h = np.uint32(2166136261)
        for j in range(data.shape[1]):
            h = np.uint32((h ^ data[i, j]) * np.uint32(16777619))
        h ^= h >> 16
        h = np.uint32(h * np.uint32(0x85EBCA6B))
        h = (h ^ h >> 13) & 0xFFFFFFFF
        out[i, 0] = h
        state = table[i % table.size] + seed
        for _ in range(3):
            state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        out[i, 1] = state >> np.uint64(33)
        records[i].mixed = records[i].small - records[i].large * seed
        out[i, 2] = records[i].mixed * 1000 + records[i].small


@cuda.jit
def sparse(starts, columns, weights, x, out):
    """Rows of a sparse matrix times a vector; what the lanes of a warp tell each other."""
    i = cuda.threadIdx.x
    total = np.float32(0)
    for k in range(starts[i], starts[i + 1]):
        total += np.float32(weights[k]) * x[columns[k]]
    out[i, 0] = total
    out[i, 1], out[i, 6] = math.sqrt(columns[i]), math.fabs(-columns[i]) - int(x[i])
    out[i, 2] = cuda.shfl_xor_sync(0xFFFFFFFF, starts[i], 1) - starts[i]
    out[i, 3] = cuda.ballot_sync(0xFFFFFFFF, weights[i] & 1)
    out[i, 4] = cuda.selp(i % 2 == 0, starts[i], columns[i]) * 2
    out[i, 5] = weights[columns[i]] - weights[weights[i] % 32] if weights[i] else starts[-1]


def _whole_kernels():
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image[2:5, 2:6] = 255
    one = np.ascontiguousarray(image[..., 0])
    fields = np.zeros(40, np.dtype([("small", np.uint8), ("large", np.int16), ("mixed", np.int32)], align=True))
    fields["small"], fields["large"] = rng.integers(0, 256, 40), rng.integers(-(2**15), 2**15, 40)
    table = rng.integers(0, 2**64, 5, dtype=np.uint64)
    data = rng.integers(0, 256, (40, 6), dtype=np.uint8)
    values = rng.integers(0, 256, 100, dtype=np.uint8)
    counts, largest, packed = np.zeros(16, np.int32), np.zeros(1, np.uint32), np.zeros(100, np.uint32)
    return {
        "blur": (blurred, (2, 3), (4, 4), (one, np.zeros_like(one), np.zeros(one.shape, np.float32))),
        "edges": (edges, (2, 3), (4, 4), (image, np.full(4, -1, np.int8), *np.zeros((2, 7, 9), np.uint8))),
        "histogram": (histogram, 4, 32, (values, counts, largest, packed)),
        "sparse": (
            sparse,
            1,
            32,
            (
                np.arange(0, 66, 2, dtype=np.int32),
                rng.integers(0, 32, 64, dtype=np.int32),
                rng.integers(0, 256, 64, dtype=np.uint8),
                np.arange(-4, 4, 0.25, dtype=np.float32),
                np.zeros((32, 7)),
            ),
        ),
        "hash": (hashed, 2, 32, (data, table, fields, np.uint16(40_503), np.zeros((40, 3), np.int64))),
    }


WHOLE = ("blur", "edges", "histogram", "sparse", "hash")


def case(name):
    """Kernel, grid, block and arguments of a pair of types, or of one of `WHOLE`."""
    if name in WHOLE:
        return _whole_kernels()[name]
    return of_two_types(*(getattr(np, kind) for kind in name.split(",")))


def run(name, launch):
    """All arrays of a case, after ``launch(kernel, grid, block, arguments)``, the records without their padding."""
    kernel, grid, block, arguments = case(name)
    launch(kernel, grid, block, arguments)
    arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
    return [array["mixed"] if array.dtype.names else array for array in arrays]


def assert_same(got, wanted, name):
    """Bit for bit, but for NaN."""
    for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_array_equal(one, other, err_msg=f"{name}: argument {number}")


if __name__ == "__main__":
    from gpuconv import lab

    kept = {}
    for name in sys.argv[2:]:
        wanted = run(name, lambda kernel, grid, block, arguments: lab.interpret(kernel)[grid, block](*arguments))
        for trace in (False, True):

            def simulated(kernel, grid, block, arguments, trace=trace):
                report = lab.simulate(kernel, trace=trace)[grid, block](*arguments)
                assert report is None or report.clean, report

            assert_same(run(name, simulated), wanted, name)
        kept.update({f"{name} {number}": array for number, array in enumerate(wanted)})
    np.savez(sys.argv[1], **kept)
