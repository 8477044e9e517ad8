"""Public CUDA kernels, as their authors wrote them but for names and sizes; test_planted_faults.py plants faults.

Above each stands where it is from, and its licence; public_kernels_licences.txt has the texts. ``launch_NAME()`` runs
it on small arrays: it gives what came out and what NumPy says.
"""

import math

import numpy as np
from numba import cuda, float32, float64, int32
from numba.cuda.random import create_xoroshiro128p_states, xoroshiro128p_normal_float64


def numbers(*shape, dtype=np.float32):
    return np.random.default_rng(7).integers(1, 9, shape).astype(dtype)


# -- array_sum: numba-cuda's documentation, "Shared memory reduction". (c) NVIDIA, BSD-2-Clause ----------

N = 64


@cuda.jit
def array_sum(data):
    tid = cuda.threadIdx.x
    size = len(data)
    if tid < size:
        i = cuda.grid(1)
        shr = cuda.shared.array(N, int32)
        shr[tid] = data[i]
        cuda.syncthreads()
        s = 1
        while s < cuda.blockDim.x:
            if tid % (2 * s) == 0:
                shr[tid] += shr[tid + s]
            s *= 2
            cuda.syncthreads()
        if tid == 0:
            data[tid] = shr[tid]


def launch_array_sum():
    data = cuda.to_device(np.arange(N))
    array_sum[1, N](data)
    return data.copy_to_host()[0], N * (N - 1) // 2


# -- fast_matmul: numba-cuda's documentation, "Matrix multiplication". (c) NVIDIA, BSD-2-Clause ----------

TPB = 8


@cuda.jit
def fast_matmul(A, B, C):
    sA = cuda.shared.array(shape=(TPB, TPB), dtype=float32)
    sB = cuda.shared.array(shape=(TPB, TPB), dtype=float32)
    x, y = cuda.grid(2)
    tx = cuda.threadIdx.x
    ty = cuda.threadIdx.y
    bpg = cuda.gridDim.x
    tmp = float32(0.0)
    for i in range(bpg):
        sA[ty, tx] = 0
        sB[ty, tx] = 0
        if y < A.shape[0] and (tx + i * TPB) < A.shape[1]:
            sA[ty, tx] = A[y, tx + i * TPB]
        if x < B.shape[1] and (ty + i * TPB) < B.shape[0]:
            sB[ty, tx] = B[ty + i * TPB, x]
        cuda.syncthreads()
        for j in range(TPB):
            tmp += sA[ty, j] * sB[j, tx]
        cuda.syncthreads()
    if y < C.shape[0] and x < C.shape[1]:
        C[y, x] = tmp


def launch_fast_matmul():
    a, b, c = numbers(13, 21), numbers(21, 11), np.zeros((13, 11), np.float32)
    fast_matmul[(3, 2), (TPB, TPB)](a, b, c)
    return c, a @ b


# -- solve_heat: numba-cuda's documentation, "Laplace's equation". (c) NVIDIA, BSD-2-Clause --------------


@cuda.jit
def solve_heat(buf_0, buf_1, timesteps, k):
    i = cuda.grid(1)
    if i >= len(buf_0):
        return
    grid = cuda.cg.this_grid()
    for step in range(timesteps):
        if (step % 2) == 0:
            data = buf_0
            next_data = buf_1
        else:
            data = buf_1
            next_data = buf_0
        curr_temp = data[i]
        if i == 0:
            next_temp = curr_temp + k * (data[i + 1] - (2 * curr_temp))
        elif i == len(data) - 1:
            next_temp = curr_temp + k * (data[i - 1] - (2 * curr_temp))
        else:
            next_temp = curr_temp + k * (data[i - 1] - (2 * curr_temp) + data[i + 1])
        next_data[i] = next_temp
        grid.sync()


def launch_solve_heat():
    data = np.zeros(51)
    data[25] = 1000
    buf_0 = cuda.to_device(data)
    buf_1 = cuda.device_array_like(buf_0)
    solve_heat.forall(51, tpb=16)(buf_0, buf_1, 6, 0.25)
    for _ in range(6):
        padded = np.pad(data, 1)
        data = data + 0.25 * (padded[:-2] - 2 * data + padded[2:])
    return buf_0.copy_to_host(), data


# -- transpose: numba-cuda, numba/cuda/kernels/transpose.py. (c) NVIDIA, BSD-2-Clause --------------------

TILE = 32


@cuda.jit
def transpose(input, output):
    tile = cuda.shared.array(shape=(TILE, TILE + 1), dtype=float32)
    tx = cuda.threadIdx.x
    ty = cuda.threadIdx.y
    bx = cuda.blockIdx.x * cuda.blockDim.x
    by = cuda.blockIdx.y * cuda.blockDim.y
    x = by + tx
    y = bx + ty
    if by + ty < input.shape[0] and bx + tx < input.shape[1]:
        tile[ty, tx] = input[by + ty, bx + tx]
    cuda.syncthreads()
    if y < output.shape[0] and x < output.shape[1]:
        output[y, x] = tile[tx, ty]


def launch_transpose():
    a = cuda.to_device(numbers(35, 40))
    b = cuda.device_array((40, 35), np.float32)
    transpose[(2, 2), (TILE, TILE)](a, b)
    return b.copy_to_host(), numbers(35, 40).T


# -- reduce: numba-cuda, numba/cuda/kernels/reduction.py. (c) NVIDIA, BSD-2-Clause -----------------------

WARPS = 4


@cuda.jit(device=True)
def inner_warp_reduction(sm_partials, init):
    tid = cuda.threadIdx.x
    warpid = tid // 32
    laneid = tid % 32
    sm_this = sm_partials[warpid, :]
    sm_this[laneid] = init
    cuda.syncwarp()
    width = 32 // 2
    while width:
        if laneid < width:
            old = sm_this[laneid]
            sm_this[laneid] = old + sm_this[laneid + width]
        cuda.syncwarp()
        width //= 2


@cuda.jit
def reduce(arr, partials):
    sm_partials = cuda.shared.array((WARPS, 33), dtype=float32)
    tid = cuda.threadIdx.x
    blkid = cuda.blockIdx.x
    blksz = cuda.blockDim.x
    gridsz = cuda.gridDim.x
    start = tid + blksz * blkid
    stop = arr.size
    step = blksz * gridsz
    tmp = arr[start]
    for i in range(start + step, stop, step):
        tmp += arr[i]
    cuda.syncthreads()
    inner_warp_reduction(sm_partials, tmp)
    cuda.syncthreads()
    if tid < 2:
        sm_partials[tid, 0] = sm_partials[tid, 0] + sm_partials[tid + 2, 0]
        cuda.syncwarp()
    if tid == 0:
        partials[blkid] = sm_partials[0, 0] + sm_partials[1, 0]


def launch_reduce():
    partials = cuda.device_array(2, np.float32)
    reduce[2, 32 * WARPS](numbers(700), partials)
    return partials.copy_to_host().sum(), numbers(700).sum()


# -- find_rgb_value: locate-pixelcolor-numbacuda 0.12 on PyPI. (c) Johannes Fischer, MIT -----------------


@cuda.jit
def find_rgb_value(image, colors, matches1, matches2, lastindex):
    x, y = cuda.grid(2)
    if x < image.shape[0] and y < image.shape[1]:
        for color in colors:
            if (
                image[x, y, 0] == color[0]
                and image[x, y, 1] == color[1]
                and image[x, y, 2] == color[2]
            ):  # fmt: skip
                pos = cuda.atomic.add(lastindex, 0, 1)
                matches1[pos] += x
                matches2[pos] += y


def launch_find_rgb_value():
    image = np.random.default_rng(3).integers(0, 2, (10, 9, 3)).astype(np.uint8)
    colors = np.array([[1, 0, 1]])
    rows, columns, last = (np.zeros(size, np.int64) for size in (90, 90, 1))
    find_rgb_value[(2, 2), (8, 8)](image, colors, rows, columns, last)
    found = np.stack((rows, columns), 1)[: last[0]]
    return sorted(found.tolist()), np.argwhere((image == colors[0]).all(2)).tolist()


# -- convolve_2d: xarray-spatial 0.5.3, xrspatial/convolution.py. (c) its authors, MIT -------------------


@cuda.jit
def convolve_2d(data, kernel, out):
    i, j = cuda.grid(2)
    delta_rows = kernel.shape[0] // 2
    delta_cols = kernel.shape[1] // 2
    data_rows, data_cols = data.shape
    if i < delta_rows or i >= data_rows - delta_rows or \
            j < delta_cols or j >= data_cols - delta_cols:  # fmt: skip
        return
    s = 0
    for k in range(kernel.shape[0]):
        for h in range(kernel.shape[1]):
            i_k = i + k - delta_rows
            j_h = j + h - delta_cols
            if (i_k >= 0) and (i_k < data_rows) and (j_h >= 0) and (j_h < data_cols):
                s += kernel[k, h] * data[i_k, j_h]
    out[i, j] = s


def launch_convolve_2d():
    data, kernel, out = numbers(12, 10), numbers(3, 3), np.zeros((12, 10), np.float32)
    convolve_2d[(2, 2), (8, 8)](data, kernel, out)
    expected = np.zeros_like(out)
    windows = np.lib.stride_tricks.sliding_window_view(data, (3, 3))
    expected[1:-1, 1:-1] = np.einsum("ijkh,kh->ij", windows, kernel)
    return out, expected


# -- step_free: disimpy 0.3.0, disimpy/simulations.py. (c) Leevi Kerkelä, MIT ----------------------------


@cuda.jit(device=True)
def normalize_vector(v):
    length = math.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
    for i in range(3):
        v[i] = v[i] / length


@cuda.jit(device=True)
def random_step(step, rng_states, thread_id):
    for i in range(3):
        step[i] = xoroshiro128p_normal_float64(rng_states, thread_id)
    normalize_vector(step)


@cuda.jit
def step_free(positions, g_x, g_y, g_z, phases, rng_states, t, step_l, dt):
    thread_id = cuda.grid(1)
    if thread_id >= positions.shape[0]:
        return
    step = cuda.local.array(3, float64)
    random_step(step, rng_states, thread_id)
    for i in range(3):
        positions[thread_id, i] = positions[thread_id, i] + step[i] * step_l
    for m in range(g_x.shape[0]):
        phases[m, thread_id] += (
            dt
            * (
                (g_x[m, t] * positions[thread_id, 0])
                + (g_y[m, t] * positions[thread_id, 1])
                + (g_z[m, t] * positions[thread_id, 2])
            )
        )  # fmt: skip


def launch_step_free():
    positions, gradients, phases = np.zeros((40, 3)), numbers(3, 2, 5, dtype=np.float64), np.zeros((2, 40))
    states = create_xoroshiro128p_states(64, seed=1)
    step_free[2, 32](positions, *gradients, phases, states, 4, 0.5, 0.1)
    expected = 0.1 * np.einsum("am,na->mn", gradients[:, :, 4], positions)
    lengths = np.linalg.norm(positions, axis=1)
    return (phases, lengths), (expected, np.full(40, 0.5))


# -- dot: the dot product with a lock of "CUDA by Example" (Sanders, Kandrot), appendix A, in Numba ------


@cuda.jit(device=True)
def lock(mutex):
    while cuda.atomic.cas(mutex, 0, 0, 1) != 0:
        pass
    cuda.threadfence()


@cuda.jit(device=True)
def unlock(mutex):
    cuda.threadfence()
    cuda.atomic.exch(mutex, 0, 0)


@cuda.jit
def dot(mutex, a, b, c):
    cache = cuda.shared.array(32, float32)
    tid = cuda.grid(1)
    index = cuda.threadIdx.x
    temp = float32(0)
    while tid < a.size:
        temp += a[tid] * b[tid]
        tid += cuda.gridsize(1)
    cache[index] = temp
    cuda.syncthreads()
    i = cuda.blockDim.x // 2
    while i != 0:
        if index < i:
            cache[index] += cache[index + i]
        cuda.syncthreads()
        i //= 2
    if index == 0:
        lock(mutex)
        c[0] += cache[0]
        unlock(mutex)


def launch_dot():
    a, b, c = numbers(300), numbers(300)[::-1].copy(), np.zeros(1, np.float32)
    dot[4, 32](np.zeros(1, np.int32), a, b, c)
    return c[0], a @ b


# -- histogram: NVIDIA's blog, "Fast histograms using shared atomics on Maxwell", in Numba ---------------


@cuda.jit
def histogram(values, bins):
    counts = cuda.shared.array(0, int32)
    for i in range(cuda.threadIdx.x, bins.size, cuda.blockDim.x):
        counts[i] = 0
    cuda.syncthreads()
    for i in range(cuda.grid(1), values.size, cuda.gridsize(1)):
        cuda.atomic.add(counts, values[i], 1)
    cuda.syncthreads()
    for i in range(cuda.threadIdx.x, bins.size, cuda.blockDim.x):
        cuda.atomic.add(bins, i, counts[i])


def launch_histogram():
    values, bins = numbers(500, dtype=np.int32), np.zeros(40, np.int32)
    histogram[3, 32, 0, 4 * 40](values, bins)
    return bins, np.bincount(values, minlength=40)


# -- shuffle_sum: NVIDIA's blog, "Faster parallel reductions on Kepler", in Numba ------------------------


@cuda.jit(device=True)
def warp_sum(val):
    offset = 16
    while offset > 0:
        val += cuda.shfl_down_sync(0xFFFFFFFF, val, offset)
        offset //= 2
    return val


@cuda.jit
def shuffle_sum(x, out):
    i = cuda.grid(1)
    total = int32(0)
    if i < x.size:
        total = x[i]
    total = warp_sum(total)
    if cuda.threadIdx.x % 32 == 0:
        cuda.atomic.add(out, 0, total)


def launch_shuffle_sum():
    x, out = numbers(117, dtype=np.int32), np.zeros(1, np.int32)
    shuffle_sum[2, 64](x, out)
    return out[0], x.sum()
