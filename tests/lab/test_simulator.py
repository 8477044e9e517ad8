"""The simulator runs kernels as a GPU would, and its trace finds each fault that was planted."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import float32, float64, int32, uint8
from numpy.lib.stride_tricks import sliding_window_view
from support.simulated import simulator

cuda = pytest.importorskip("numba.cuda")

ROOT = Path(__file__).resolve().parents[2]
TILE = 8


def tiled_convolution(fault=None):
    """A 3x3 convolution of one channel through a tile in shared memory, with a fault planted in it on demand.

    A block computes 8x8 outputs, a thread one; the last tiles are ragged.
    """
    barrier_before, barrier_after = fault != "no first barrier", fault != "no last barrier"
    halo = TILE + (1 if fault == "halo off by one" else 2)
    edge = fault != "edge tile unwritten"
    past_the_end = fault == "write past the end"

    @cuda.jit
    def kernel(x, w, y):
        tile = cuda.shared.array((TILE + 2, TILE + 2), float32)
        column, row = cuda.threadIdx.x, cuda.threadIdx.y
        p, q = cuda.blockIdx.y * TILE + row, cuda.blockIdx.x * TILE + column
        total = float32(0)
        for channel in range(x.shape[0]):
            for i in range(row, halo, TILE):
                for j in range(column, TILE + 2, TILE):
                    h, v = cuda.blockIdx.y * TILE + i, cuda.blockIdx.x * TILE + j
                    tile[i, j] = x[channel, h, v] if h < x.shape[1] and v < x.shape[2] else float32(0)
            if barrier_before:
                cuda.syncthreads()
            for r in range(3):
                for s in range(3):
                    total += tile[row + r, column + s] * w[channel, r, s]
            if barrier_after:
                cuda.syncthreads()
        inside = p < y.shape[0] and q < y.shape[1]
        if past_the_end:
            inside = p < y.shape[0] and q <= y.shape[1]
        if inside and (edge or q < y.shape[1] // TILE * TILE):
            y[p, q] = total

    return kernel


def run_convolution(fault=None, traced=True, seed=0):
    """The kernel's result, the right one, and the report if traced."""
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((2, 19, 22), np.float32), rng.standard_normal((2, 3, 3), np.float32)
    y = np.full((17, 20), np.nan, np.float32)
    expected = np.einsum("chwrs,crs->hw", sliding_window_view(x, (3, 3), (1, 2)), w)
    kernel = tiled_convolution(fault)[(3, 3), (TILE, TILE)]
    if not traced:
        simulator.activate(seed)
        kernel(x, w, y)
        simulator.activate()
        return y, expected, None
    with simulator.trace(seed=seed) as report:
        kernel(x, w, y)
    return y, expected, (report, report.writes(y))


@pytest.mark.parametrize("traced", [False, True], ids=["plain", "traced"])
def test_a_right_kernel_is_right_and_clean(traced):
    """Ragged tiles, channels in a loop with two barriers: the result is NumPy's, and there is nothing to report."""
    y, expected, trace = run_convolution(traced=traced)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    if trace is not None:
        report, writes = trace
        assert report.clean, str(report)
        np.testing.assert_array_equal(writes, 1)


PLANTED = {
    "no first barrier": "races",
    "no last barrier": "races",
    "halo off by one": "uninitialized",
    "write past the end": "out_of_bounds",
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_reported_with_its_line(fault):
    """The trace names the kind of fault and a line of this file; nothing else than that fault is reported."""
    _, _, (report, _) = run_convolution(fault)
    assert not report.clean
    found = getattr(report, PLANTED[fault])
    assert found, str(report)
    assert all("test_simulator.py:" in name for one in found for name in one.sites), str(report)
    others = {one.kind for one in report.faults} - {one.kind for one in found}
    # Without the first barrier threads also read what nobody has written yet.
    assert others <= ({"uninitialized read"} if fault == "no first barrier" else set()), str(report)


def test_an_edge_tile_that_is_not_written_shows_in_the_counts():
    """`writes` tells which elements of the output were written, and how often."""
    _, _, (report, writes) = run_convolution("edge tile unwritten")
    assert report.clean
    np.testing.assert_array_equal(writes[:, :16], 1)
    np.testing.assert_array_equal(writes[:, 16:], 0)


@pytest.mark.parametrize("fault", ["no first barrier", "no last barrier", "halo off by one"])
def test_a_planted_fault_makes_the_result_wrong(fault):
    """Without a trace too, in every order of the threads that was tried: shuffling and NaNs see to it."""
    for seed in range(5):
        y, expected, _ = run_convolution(fault, traced=False, seed=seed)
        assert not np.allclose(y, expected, equal_nan=False), f"seed {seed}"


def test_order_depends_on_the_seed_alone():
    """Threads and blocks run in another order for another seed, and in the same one for the same."""

    @cuda.jit
    def order(next_place, places):
        places[cuda.atomic.add(next_place, 0, 1)] = cuda.grid(1)

    def run(seed):
        places = np.zeros(64, np.int32)
        simulator.activate(seed)
        order[4, 16](np.zeros(1, np.int32), places)
        simulator.activate()
        return places.tolist()

    assert run(1) == run(1) != run(2)
    assert sorted(run(1)) == list(range(64))


# -- races -----------------------------------------------------------------------------------------------


def exchange(synchronise):
    """Each lane writes a place in shared memory and reads its neighbour's."""

    @cuda.jit
    def kernel(y):
        places = cuda.shared.array(64, int32)
        t = cuda.threadIdx.x
        places[t] = t
        if synchronise == "warp":
            cuda.syncwarp()
        elif synchronise == "half warps":
            cuda.syncwarp(0x0000FFFF if cuda.laneid < 16 else 0xFFFF0000)
        elif synchronise == "shuffle":
            cuda.shfl_sync(-1, t, 0)
        elif synchronise == "block":
            cuda.syncthreads()
        y[t] = places[t ^ (32 if synchronise == "block" else 16 if synchronise == "half warps" else 1)]

    return kernel


@pytest.mark.parametrize(
    ("synchronise", "clean"),
    [("nothing", False), ("warp", True), ("half warps", False), ("shuffle", False), ("block", True)],
)
def test_what_orders_accesses(synchronise, clean):
    """Barriers and syncwarps order the accesses of those who take part; shuffles promise nothing about memory."""
    y = np.zeros(64, np.int32)
    with simulator.trace() as report:
        exchange(synchronise)[1, 64](y)
    assert report.clean == clean, str(report)
    assert clean or len(report.races) == 1


def test_blocks_race_on_global_memory():
    """Two blocks that write one element, or of which one reads what the other writes, are reported; atomics are not."""

    @cuda.jit
    def write_the_same(y):
        for i in range(cuda.threadIdx.x, 33, 32):
            y[i] = cuda.blockIdx.x

    @cuda.jit
    def read_the_next_block(y):
        i = cuda.grid(1)
        y[i] = y[(i + 32) % y.shape[0]] if cuda.blockIdx.x == 0 else 1

    @cuda.jit
    def count(y):
        cuda.atomic.add(y, 0, 1)

    def faults(kernel, y, blocks=2):
        with simulator.trace() as report:
            kernel[blocks, 32](y)
        return report

    y = np.zeros(64, np.int32)
    # With so many blocks the log is worked off several times; the pair may be far apart.
    assert [race.count for race in faults(write_the_same, y, 1500).races] == [33]
    report = faults(read_the_next_block, y)
    assert len(report.races) == 1
    assert "block (0, 0, 0)" in str(report)
    assert "block (1, 0, 0)" in str(report)
    total = np.zeros(1, np.int32)
    assert faults(count, total).clean
    assert total == 64


def test_a_plain_access_races_with_an_atomic_one():
    """An element that one thread adds to atomically must not be read plainly by another, in the same epoch."""

    @cuda.jit
    def kernel(y):
        if cuda.threadIdx.x == 0:
            y[1] = y[0]
        else:
            cuda.atomic.add(y, 0, 1)

    with simulator.trace() as report:
        kernel[1, 2](np.zeros(2, np.int32))
    assert [race.kind for race in report.races] == ["race"]


def test_the_block_that_wrote_an_element_is_known():
    """Its index in the grid, x first; the latest launch counts; -1 where nothing was written, in views too."""

    @cuda.jit
    def fill(y, rows):
        row = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
        if row < rows:
            y[cuda.blockIdx.z, row, cuda.grid(1)] = 1

    y = np.zeros((2, 5, 6), np.float32)
    with simulator.trace() as report:
        fill[(3, 2, 2), (2, 2)](y, 3)
        fill[(1, 1, 1), (2, 1)](y, 3)
    writers = report.writers(y)
    assert writers.shape == (2, 5, 6, 3)
    assert [tuple(writers[at].tolist()) for at in ((1, 0, 5), (1, 2, 1), (0, 1, 0))] == [
        (2, 0, 1),
        (0, 1, 1),
        (0, 0, 0),
    ]
    assert (writers[:, 3:] == -1).all()
    assert (writers[:, :3] >= 0).all()
    np.testing.assert_array_equal(report.writers(y[1, ::2, 3:]), writers[1, ::2, 3:])


def test_arguments_that_overlap_are_one_memory():
    """A kernel that is given two views of one array and writes through one what it reads through the other."""

    @cuda.jit
    def shift(x, y):
        y[cuda.threadIdx.x] = x[cuda.threadIdx.x]

    memory = np.arange(9, dtype=np.float32)
    with simulator.trace() as report:
        shift[1, 8](memory[:8], memory[1:])
    assert report.races
    np.testing.assert_array_equal(report.writes(memory), [0] + [1] * 8)


def test_threads_that_leave_or_wait_elsewhere_are_reported():
    """All threads of a block have to come to the same barrier."""

    @cuda.jit
    def leaves(y):
        if cuda.threadIdx.x < 8:
            cuda.syncthreads()
        y[cuda.threadIdx.x] = 1

    @cuda.jit
    def elsewhere(y):
        if cuda.threadIdx.x < 8:
            cuda.syncthreads()
        else:
            cuda.syncthreads()
        y[cuda.threadIdx.x] = 1

    for kernel, barriers in (leaves, 1), (elsewhere, 2):
        with simulator.trace() as report:
            kernel[1, 16](np.zeros(16, np.int32))
        (fault,) = report.divergence
        assert len(fault.sites) == barriers
        assert report.faults == (fault,)


# -- bounds and shared memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("index", [(-5,), (4,), (-5, 0), (0, 5), (4, 0), (0, 0, -7), (0, 5, 0)])
def test_accesses_out_of_bounds(index):
    """Reads and writes, in one to three dimensions, above and below: reported, read as NaN, not written."""
    subscript = index if len(index) > 1 else index[0]

    @cuda.jit
    def kernel(x, y):
        y[0] = x[subscript]
        x[subscript] = 1

    x, y = np.zeros((4, 5, 6)[: len(index)], np.float32), np.zeros(1, np.float32)
    with simulator.trace() as report:
        kernel[1, 1](x, y)
    assert [fault.kind for fault in report.faults] == ["out-of-bounds read", "out-of-bounds write"]
    assert f"x[{', '.join(map(str, index))}] of shape {x.shape}" in str(report)
    assert np.isnan(y[0])
    np.testing.assert_array_equal(x, 0)


def test_negative_indices():
    """They count from the end, as in Numba. A number in the source is meant so; a computed one is likely a mistake."""

    @cuda.jit
    def kernel(x, y, before):
        y[0] = x[-1]
        y[1] = x[before]
        cuda.atomic.add(y, before - 1, 5)
        own = cuda.local.array(2, float32)
        own[np.int64(before)] = 1

    x, y = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    with simulator.trace() as report:
        kernel[1, 1](x, y, -1)
    np.testing.assert_array_equal(y, [3, 3, 5, 0])
    assert [fault.kind for fault in report.faults] == ["negative index"] * 3
    assert "read of x[-1] of shape (4,)" in report.faults[0].details
    assert "atomic of y[-2] of shape (4,)" in report.faults[1].details
    assert "write of local array of " in report.faults[2].details
    if sys.version_info >= (3, 11):  # older ones do not know where in a line an instruction stands
        assert [remark.kind for remark in report.remarks] == ["negative index"]


def test_writes_of_the_same_value_are_told_apart():
    """All write True: no fault. One of them reads, or writes another value: a race."""

    @cuda.jit
    def kernel(y, mode):
        t = cuda.grid(1)
        y[0] = 1 + (mode == 1 and t == 5)
        if mode == 2 and t == 7:
            y[1] = y[0]

    for blocks, threads in (1, 32), (32, 1):
        for mode in range(3):
            with simulator.trace() as report:
                kernel[blocks, threads](np.zeros(2, np.int32), mode)
            assert report.clean == (mode == 0), str(report)
            assert [remark.kind for remark in report.remarks] == ["same-value write"] * (mode == 0)
            assert len(report.races) == (mode > 0)


def test_views_of_arrays_are_traced():
    """A row or a slice of an array, as Numba allows in kernels, is the same memory with bounds of its own."""

    @cuda.jit
    def kernel(x):
        row = x[cuda.blockIdx.x]
        row[1:3] = cuda.threadIdx.x
        row[cuda.threadIdx.x + 4] = 1

    x = np.zeros((2, 6), np.float32)
    with simulator.trace() as report:
        kernel[2, 3](x)
    assert [fault.kind for fault in report.faults] == ["out-of-bounds write", "race"], str(report)
    assert "race: x[0, 1]: write at tests/lab/test_simulator.py" in str(report)
    np.testing.assert_array_equal(report.writes(x), [[0, 3, 3, 0, 1, 1]] * 2)
    np.testing.assert_array_equal(x[:, 3:], [[0, 1, 1]] * 2)


def test_shared_arrays():
    """Two on a line are two; dynamic ones are views of one memory; all begin as NaN, anew in each block."""

    @cuda.jit
    def kernel(y):
        a, b = cuda.shared.array(4, float32, alignment=16), cuda.shared.array(4, float64)
        floats, bytes_ = cuda.shared.array(0, float32), cuda.shared.array(0, uint8)
        block = cuda.blockIdx.x
        y[block, 0], y[block, 1], y[block, 2], y[block, 3] = a[0], b[0], floats[1], bytes_[0]
        a[0], b[0] = 1, 2
        floats[0] = 1
        y[block, 4], y[block, 5], y[block, 6] = a[0], b[0], bytes_[3]

    y = np.zeros((2, 7), np.float64)
    kernel[2, 1, 0, 8](y)
    np.testing.assert_array_equal(y, [[np.nan, np.nan, np.nan, 255, 1, 2, 0x3F]] * 2)
    with simulator.trace() as report:
        kernel[2, 1, 0, 8](y)
    # In each block one element of a and of b, and of the dynamic memory four bytes and one.
    assert [fault.count for fault in report.uninitialized] == [4, 10], str(report)


def test_an_access_wider_than_its_alignment_is_refused():
    """128 bits need an address that is a multiple of 16: a shared array without `alignment=16` may lie anywhere."""
    from gpuconv.kernels.device import ld4

    def kernel(alignment, offset):
        @cuda.jit
        def kernel(y):
            a = cuda.shared.array(16, float32, alignment=alignment)
            y[0] = ld4(a, offset)[0]

        return kernel

    for alignment, offset in (None, 4), (8, 4), (16, 2):
        with simulator.trace(), pytest.raises(simulator.SimulationError, match="not aligned to 16"):
            kernel(alignment, offset)[1, 1](np.zeros(1, np.float32))
    with simulator.trace() as report:
        kernel(16, 4)[1, 1](np.zeros(1, np.float32))
    assert not report.out_of_bounds


# -- what accesses cost ----------------------------------------------------------------------------------


def aligned(count):
    """Floats 0, 1, ... that begin at a multiple of 128 bytes, as CUDA's allocations do."""
    memory = np.empty(count + 32, np.float32)
    first = -memory.ctypes.data % 128 // 4
    memory[first : first + count] = np.arange(count)
    return memory[first : first + count]


@pytest.mark.parametrize(
    ("stride", "dtype", "degree"),
    [(0, float32, 1), (1, float32, 1), (2, float32, 2), (3, float32, 1), (32, float32, 32), (33, float32, 1)]
    + [(1, float64, 1), (2, float64, 2), (16, float64, 16), (1, uint8, 1), (4, uint8, 1), (8, uint8, 2)],
)
def test_bank_conflicts(stride, dtype, degree):
    """32 banks of 4 bytes; lanes that read one word do not conflict; 8 bytes a lane are served by half warps."""

    @cuda.jit
    def kernel(y):
        a = cuda.shared.array(33 * 32, dtype)
        for i in range(cuda.threadIdx.x, 33 * 32, 32):
            a[i] = 1
        cuda.syncthreads()
        y[cuda.threadIdx.x] = a[cuda.threadIdx.x * stride]

    with simulator.trace() as report:
        kernel[1, 32](np.zeros(32, np.float32))
    assert report.clean, str(report)
    (read,) = (entry for entry in report.bank_conflicts if entry.access == "read")
    assert (read.requests, read.degree, read.worst) == (1, degree, degree)
    assert all(entry.degree == 1 for entry in report.bank_conflicts if entry.access == "write")


@pytest.mark.parametrize(
    ("stride", "degree", "sectors"), [(1, 1.0, 16), (2, 2.0, 32), (8, 8.0, 32)], ids=["1", "2", "8"]
)
def test_wide_accesses(stride, degree, sectors):
    """16 bytes a lane: quarter warps of shared memory without conflict, 16 sectors of global memory."""
    from gpuconv.kernels.device import ld4, ldg4, st4

    @cuda.jit
    def kernel(x, y):
        a = cuda.shared.array(1024, float32, alignment=16)
        t = cuda.threadIdx.x
        for i in range(t * 4, 1024, 128):
            st4(a, i, ldg4(x, i))
        cuda.syncthreads()
        st4(y, t * 4 * stride, ld4(a, t * 4 * stride))

    x, y = aligned(1024), aligned(1024)
    with simulator.trace() as report:
        kernel[1, 32](x, y)
    assert report.clean, str(report)
    (shared_read,) = (entry for entry in report.bank_conflicts if entry.access == "read")
    assert (shared_read.bits, shared_read.degree) == (128, degree)
    (written,) = (entry for entry in report.sectors if entry.access == "write")
    assert (written.bits, written.per_request) == (128, sectors)


@pytest.mark.parametrize(
    ("first", "stride", "sectors", "efficiency"), [(0, 1, 4, 1), (1, 1, 5, 0.8), (0, 2, 8, 0.5), (0, 8, 32, 0.125)]
)
def test_sectors(first, stride, sectors, efficiency):
    """32 neighbouring floats are four sectors of 32 bytes, one more if they do not begin at one, more with a stride."""

    @cuda.jit
    def kernel(x, y):
        y[cuda.grid(1)] = x[first + cuda.threadIdx.x * stride]

    with simulator.trace() as report:
        kernel[3, 32](aligned(256), np.zeros(96, np.float32))
    (read,) = (entry for entry in report.sectors if entry.access == "read")
    assert (read.requests, read.per_request) == (3, sectors)
    assert read.efficiency == pytest.approx(efficiency)


def test_predicated_loads_keep_the_lanes_together():
    """Lanes whose load is off in one turn of a loop are not matched with the others' next turn."""
    from gpuconv.kernels.device import ldg_if

    @cuda.jit
    def kernel(x, y):
        t = cuda.threadIdx.x
        total = float32(0)
        for turn in range(4):
            total += ldg_if(x, turn * 32 + t, t >= turn)
        y[t] = total

    with simulator.trace() as report:
        kernel[1, 32](aligned(128), np.zeros(32, np.float32))
    (read,) = (entry for entry in report.sectors if entry.access == "read")
    assert (read.requests, read.sectors) == (4, 16)


# -- warps -----------------------------------------------------------------------------------------------


def test_shuffles_and_votes():
    """Each operation against its definition, in a block whose last warp is half full."""

    @cuda.jit
    def kernel(x, y):
        t = cuda.threadIdx.x
        value = x[t]
        y[0, t] = cuda.shfl_sync(-1, value, 5)
        y[1, t] = cuda.shfl_up_sync(0xFFFFFFFF, value, 3)
        y[2, t] = cuda.shfl_xor_sync(-1, value, 1)
        y[3, t] = cuda.ballot_sync(-1, value % 2 == 0)
        y[4, t] = cuda.all_sync(-1, value >= 5)
        y[5, t] = cuda.any_sync(-1, value == 4)
        y[6, t] = cuda.match_any_sync(-1, value // 8)
        y[7, t] = cuda.match_all_sync(-1, value > 3)[1]
        y[8, t] = cuda.syncthreads_count(1 if value > 8 else 0)

    x, y = np.random.default_rng(0).integers(5, 40, 48), np.zeros((9, 48), np.int64)
    x[40] = 4
    with simulator.trace() as report:
        kernel[1, 48](x, y)
    assert report.clean, str(report)

    for lanes in np.arange(32), np.arange(32, 48):
        mine, lane = x[lanes], np.arange(lanes.size)
        weights = 2**lane
        np.testing.assert_array_equal(y[0, lanes], mine[5])
        np.testing.assert_array_equal(y[1, lanes], np.where(lane < 3, mine, np.roll(mine, 3)))
        np.testing.assert_array_equal(y[2, lanes], mine[lane ^ 1])
        np.testing.assert_array_equal(y[3, lanes], weights[mine % 2 == 0].sum())
        np.testing.assert_array_equal(y[4, lanes], (mine >= 5).all())
        np.testing.assert_array_equal(y[5, lanes], (mine == 4).any())
        np.testing.assert_array_equal(y[6, lanes], [weights[mine // 8 == value // 8].sum() for value in mine])
        np.testing.assert_array_equal(y[7, lanes], True)
    np.testing.assert_array_equal(y[8], (x > 8).sum())


def test_a_barrier_that_would_not_compile():
    """numba-cuda has these barriers for integers alone."""

    @cuda.jit
    def kernel(x):
        x[cuda.threadIdx.x] = cuda.syncthreads_count(cuda.threadIdx.x < 3)

    with pytest.raises(
        simulator.SimulationError, match="take an integer: numba-cuda does not compile them with a bool"
    ):
        kernel[1, 32](np.zeros(32, np.int32))


@pytest.mark.parametrize(
    ("mask", "source", "words"),
    [
        (0x00FF, 12, "lane . reads from lane 12, which does not take part"),
        (0xFFFF, 0, "deadlock in block .* wait at tests/lab/test_simulator.py:"),
        (0xFF00, 8, "calls with mask 0x0000ff00, which does not name it"),
    ],
)
def test_shuffles_that_would_hang_or_give_garbage(mask, source, words):
    """A lane that is read from, named in the mask or calls must take part: the message says which does not."""

    @cuda.jit
    def kernel(y):
        if cuda.threadIdx.x < 8:
            y[0] = cuda.shfl_sync(mask, 1, source)
        cuda.syncthreads()

    with pytest.raises(simulator.SimulationError, match=words):
        kernel[1, 16](np.zeros(1))


def test_warp_reduction():
    """The usual sum by shuffles gives the sum in lane 0; a value stays float32."""

    @cuda.jit
    def kernel(x, y):
        value = x[cuda.grid(1)]
        for delta in (16, 8, 4, 2, 1):
            value += cuda.shfl_down_sync(0xFFFFFFFF, value, delta)
        if cuda.laneid == 0:
            y[cuda.grid(1) // 32] = value

    x = np.arange(128, dtype=np.float32)
    y = np.zeros(4, np.float32)
    with simulator.trace() as report:
        kernel[2, 64](x, y)
    assert report.clean
    np.testing.assert_array_equal(y, x.reshape(4, 32).sum(axis=1))


# -- launches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "block", "dynamic", "words"),
    [
        ((1, 1, 65_536), 1, 0, "grid .* must be from 1 to"),
        (0, 32, 0, "grid .* must be from 1 to"),
        (1, (1, 1, 65), 0, "block .* must be from 1 to"),
        (1, (32, 33), 0, "more than 1024 threads"),
        (1, 1, 228 * 1024, "shared memory"),
    ],
)
def test_launches_that_a_gpu_would_refuse(grid, block, dynamic, words):
    """Sizes of grid, block and shared memory have limits; the message gives them."""

    @cuda.jit
    def kernel():
        cuda.shared.array(0, float32)

    with pytest.raises(simulator.SimulationError, match=words):
        kernel[grid, block, 0, dynamic]()


def test_an_exception_in_a_kernel_names_the_thread():
    """What a thread raises comes out of the launch with its coordinates; the next launch is none the worse."""

    @cuda.jit
    def kernel(y, bad):
        cuda.syncthreads()
        y[cuda.grid(1)] = 1 // (cuda.grid(1) - bad)

    y = np.zeros(64)
    with pytest.raises(ZeroDivisionError, match=r"kernel: tid=\[5, 0, 0\] ctaid=\[1, 0, 0\]: integer") as raised:
        kernel[2, 32](y, 37)
    assert isinstance(raised.value, simulator.SimulationError)
    assert raised.traceback[-1].name == "kernel"
    with simulator.trace() as report, pytest.raises(ZeroDivisionError):
        kernel[2, 32](y, 37)
    assert str(report).startswith("0 launches traced: kernel[(2, 1, 1), (32, 1, 1)] did not come to its end")
    with simulator.trace() as report:
        kernel[2, 32](y, 64)
    assert report.clean


def test_what_was_found_before_a_launch_failed():
    """A thread reads too early, and fails for what it found there: both are told."""

    @cuda.jit
    def kernel(y):
        tile = cuda.shared.array(32, float32)
        if cuda.threadIdx.x < 16:
            tile[cuda.threadIdx.x] = cuda.threadIdx.x
        cuda.syncthreads()
        y[int(tile[cuda.threadIdx.x])] = 1

    with simulator.trace() as report, pytest.raises(ValueError, match="cannot convert float NaN to integer"):
        kernel[1, 32](np.zeros(32))
    assert [fault.kind for fault in report.faults] == ["uninitialized read"]
    assert report.launches == 0


def test_infinities_and_overflow_are_silent():
    """A GPU warns of nothing; the arithmetic of a kernel must not either (warnings are errors in these tests)."""

    @cuda.jit
    def kernel(x, y):
        cuda.syncthreads()
        y[0] = x[0] - x[0]
        y[1] = x[1] * x[1]

    y = np.zeros(2, np.float32)
    kernel[1, 1](np.array([np.inf, 1e30], np.float32), y)
    np.testing.assert_array_equal(y, [np.nan, np.inf])


def in_a_new_process(code, **environment):
    """Standard output and error of Python code that runs without the settings of this process."""
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout, done.stderr


@pytest.mark.slow
def test_activation_comes_before_numba_cuda():
    """Too late, or against the environment's word, it is refused with the remedy; after plain numba it works."""
    activate = "from gpuconv.lab import simulator; simulator.activate()"
    _, error = in_a_new_process(f"import numba.cuda; {activate}")
    assert "RuntimeError: numba.cuda was imported without its simulator: set NUMBA_ENABLE_CUDASIM=1" in error
    _, error = in_a_new_process(activate, NUMBA_ENABLE_CUDASIM="0")
    assert "RuntimeError: NUMBA_ENABLE_CUDASIM=0 asks for a real GPU" in error
    kernel = "from numba import cuda; k = cuda.jit(lambda: print(cuda.grid(1))); k[1, 1]()"
    output, error = in_a_new_process(f"import numba; numba.njit(lambda: 1)(); {activate}; {kernel}")
    assert (output, error) == ("0\n", "")


def test_an_unknown_layout_is_refused(monkeypatch):
    """Where numba's simulator has changed, `activate` says so, and for which versions this was written."""
    from numba.cuda.simulator import kernel

    monkeypatch.delattr(kernel, "FakeCUDAKernel")
    with pytest.raises(RuntimeError, match=r"does not know the layout .*FakeCUDAKernel.*numba-cuda 0\.20"):
        simulator._patch(cuda)
