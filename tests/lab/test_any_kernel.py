"""Kernels of all kinds in the simulator: what Numba's language has and this project's own kernels do without."""

import collections
import math
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from xml.etree import ElementTree

import numpy as np
import pytest
from numba import complex64, float32, int8, int32, njit, uint8
from support.simulated import simulator

from gpuconv import lab

cuda = pytest.importorskip("numba.cuda")


@pytest.fixture(params=[False, True], ids=["plain", "traced"])
def launched(request):
    """Runs a launch, in the simulator alone or with all accesses recorded, which must be without fault."""

    def run(launch):
        if not request.param:
            launch()
            return
        with simulator.trace() as report:
            launch()
        assert report.clean, str(report)

    return run


# -- blocks that wait for each other ---------------------------------------------------------------------


def test_a_barrier_of_the_whole_grid(launched):
    """What all blocks wrote before it, all read after it; shared memory is each block's own, and outlasts it."""

    @cuda.jit
    def rotate(x, y):
        mine = cuda.shared.array(4, int32)
        grid = cuda.cg.this_grid()
        i = cuda.grid(1)
        mine[cuda.threadIdx.x] = x[i]
        for step in range(3):
            y[step, i] = mine[cuda.threadIdx.x]
            grid.sync()
            mine[cuda.threadIdx.x] = y[step, (i + 1) % x.size]
        y[3, i] = mine[cuda.threadIdx.x]

    x, y = np.arange(20, dtype=np.int32), np.zeros((4, 20), np.int32)
    launched(lambda: rotate[5, 4](x, y))
    np.testing.assert_array_equal(y, [np.roll(x, -step) for step in range(4)])


def test_a_block_that_leaves_before_the_barrier_of_the_grid():
    """The others would wait for ever: it is said where."""

    @cuda.jit
    def kernel():
        if cuda.blockIdx.x > 0:
            cuda.cg.this_grid().sync()

    with pytest.raises(simulator.SimulationError, match=r"deadlock: 2 blocks wait for the grid at .*py:\d+ \(2 thr"):
        kernel[3, 1]()


def test_blocks_that_spin_until_others_are_done():
    """A chain: each block waits for a flag of the one before it, in whichever order they begin."""

    @cuda.jit
    def chain(flags, y):
        i = cuda.blockIdx.x
        if i > 0:
            while cuda.atomic.add(flags, i - 1, 0) == 0:
                pass
        cuda.threadfence()
        y[i] = 1 + (y[i - 1] if i > 0 else 0)
        cuda.threadfence()
        cuda.atomic.exch(flags, i, 1)

    flags, y = np.zeros(40, np.int32), np.zeros(40, np.int32)
    chain[40, 1](flags, y)
    np.testing.assert_array_equal(y, np.arange(1, 41))


def test_a_launch_that_is_too_large(capsys, monkeypatch):
    """It is refused before it starts, if it would take longer than it may; otherwise it is said how long it takes."""

    @cuda.jit
    def kernel(x):
        x[0] = 1

    x = np.zeros(1)
    simulator.activate(limit=5)
    try:
        with pytest.raises(
            simulator.SimulationError, match="256,000,000 threads take at least 256 s here, and a launch"
        ):
            kernel[10**6, 256](x)
    finally:
        simulator.activate()
    assert x[0] == 0
    monkeypatch.setattr("gpuconv.lab.launching._LONG", 1e-5)
    kernel[2, 16](x)
    assert "gpuconv.lab: kernel: 32 threads take at least" in capsys.readouterr().err


def test_threads_that_wait_for_ever(monkeypatch):
    """A flag that nobody sets; a loop without end: both end with the lines where threads stand, and how many."""

    @cuda.jit
    def waits(flag):
        while cuda.atomic.cas(flag, 0, 1, 2) != 1:
            pass

    @cuda.jit
    def loops(y):
        cuda.syncthreads()
        while y[0] == 0:
            y[1] += 1

    with pytest.raises(simulator.SimulationError, match=r"wait for ever, at .*test_any_kernel.py:\d+ \(64 threads\)"):
        waits[2, 32](np.zeros(1, np.int32))
    simulator.activate(limit=0.2)
    try:
        with pytest.raises(
            simulator.SimulationError, match=r"loops: ended after 0.2 s; .*test_any_kernel.py:\d+ \(31 "
        ):
            loops[2, 32](np.zeros(2, np.int32))
        monkeypatch.setattr("gpuconv.lab.launching._MOST_RECORDED", 1000)
        simulator.activate(limit=60)
        with (
            simulator.trace(),
            pytest.raises(
                simulator.SimulationError, match=r"loops: ended after [\d,]+ accesses .*any_kernel.py:\d+ \(31 "
            ),
        ):
            loops[2, 32](np.zeros(2, np.int32))
    finally:
        simulator.activate()


# -- what arrays hold ------------------------------------------------------------------------------------

PARTICLE = np.dtype([("mass", "f4"), ("at", "f4", (3,)), ("kind", [("id", "i4"), ("charge", "i1")])])


def test_records(launched):
    """Fields by attribute and by name, of records in records and arrays in records; assignment of whole records."""

    @cuda.jit
    def kernel(particles, one, y):
        i = cuda.grid(1)
        particles[i].mass = 2 * i
        for axis in range(3):
            particles[i].at[axis] = one.mass + axis
        particles["kind"][i].id = i
        particles[i]["kind"]["charge"] = -1
        cuda.syncthreads()
        y[i] = particles[i].mass + particles[i].at[2] + particles.kind[i]["id"]
        if i == 0:
            local = cuda.local.array(2, PARTICLE)
            local[1] = particles[3]
            particles[7] = local[1]

    particles, y = np.zeros(8, PARTICLE), np.zeros(7, np.float32)
    one = np.zeros(1, PARTICLE)
    one[0]["mass"] = 5
    launched(lambda: kernel[1, 7](particles, one[0], y))
    np.testing.assert_array_equal(y, 3 * np.arange(7) + 7)
    assert particles[7] == particles[3]
    np.testing.assert_array_equal(particles["kind"]["charge"], [-1] * 7 + [-1])


def test_an_array_in_a_record_is_named():
    """By its field, where an index leaves it."""

    @cuda.jit
    def kernel(particles):
        particles[0].at[particles.size] = 1

    with simulator.trace() as report:
        kernel[1, 1](np.zeros(4, PARTICLE))
    assert "view of particles.at[4] of shape (3,)" in str(report)


def test_threads_may_write_different_fields_of_a_record():
    """No race, but where two write the same one."""

    @cuda.jit
    def kernel(particles, same):
        if cuda.threadIdx.x == 0 or same:
            particles[0].mass = cuda.threadIdx.x
        else:
            particles[0].kind.id = 1

    for same in False, True:
        with simulator.trace() as report:
            kernel[1, 2](np.zeros(1, PARTICLE), same)
        assert len(report.races) == same, str(report)
        assert not same or "particles[0].mass" in str(report)


def test_tuples_and_half_and_complex_numbers(launched):
    """Arguments that are named tuples of arrays, and tuples in them; arithmetic in the types of the arrays."""
    Pair = collections.namedtuple("Pair", "half rest")

    @cuda.jit
    def kernel(pair, y):
        i = cuda.grid(1)
        shared = cuda.shared.array(8, complex64)
        shared[i] = complex(pair.half[i], pair.rest[0][i])
        y[i] = shared[i] * shared[i].conjugate()

    half, rest, y = np.arange(8, dtype=np.float16), np.arange(8, dtype=np.float32), np.zeros(8, np.complex64)
    launched(lambda: kernel[1, 8](Pair(half, (rest, 3)), y))
    np.testing.assert_array_equal(y, 2.0 * np.arange(8) ** 2)


def test_dynamic_shared_memory_in_several_arrays(launched):
    """Cut by slices, of several types, by views, as a kernel with one allocation for all of its arrays does."""

    @cuda.jit
    def kernel(y):
        everything = cuda.shared.array(0, float32)
        values, counts = everything[:8], cuda.shared.array(0, int32)[8:16]
        grid = everything[16:].view(int32).reshape((2, 4))
        i = cuda.threadIdx.x
        values[i], counts[i] = i / 2, i
        grid[i // 4, i % 4] = 10 * i
        cuda.syncthreads()
        y[i] = values[7 - i] + counts[7 - i] + grid[i // 4, i % 4] + len(values)

    y = np.zeros(8, np.float32)
    launched(lambda: kernel[1, 8, 0, 4 * 24](y))
    i = np.arange(8)
    np.testing.assert_array_equal(y, 1.5 * (7 - i) + 10 * i + 8)


def test_whole_arrays_in_a_kernel(launched):
    """Loops over arrays, rows and transposes, ufuncs on arrays: as Numba has them."""

    @cuda.jit
    def kernel(x, y):
        total = 0.0
        for row in x:
            for value in row:
                total += value
        y[0] = total
        y[1] = x.T[2, 1] + x.ravel()[5] + 5
        np.add(x[0], x[1], y[2:])

    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(5, np.float32)
    launched(lambda: kernel[1, 1](x, y))
    np.testing.assert_array_equal(y, [15, 15, 3, 5, 7])


def test_indices_of_all_kinds(launched):
    """Rows from the end, slices of one row, narrow integers that would overflow in an address."""

    @cuda.jit
    def kernel(x, i, y):
        last = x[-1, :]
        y[0] = last[0] + x[i[0], i[1]] + x[-2][1]
        x[-1, 1:3] = 7
        cuda.atomic.add(x, (i[0], i[1]), 1)

    x, y = np.arange(300.0).reshape(3, 100), np.zeros(1)
    launched(lambda: kernel[1, 1](x, np.array([2, 99], np.int8), y))
    assert y[0] == 200 + 299 + 101
    assert x[2, [0, 1, 2, 3, 99]].tolist() == [200, 7, 7, 203, 300]


def test_casts(launched):
    """Integers that are too large wrap around, negative ones too."""

    @cuda.jit
    def kernel(x, y, z):
        for i in range(4):
            y[i] = uint8(int(x[i]))
            z[i] = int8(int(x[i]))

    x, y, z = np.array([-1, 255, 300, 128], np.int64), np.zeros(4, np.int64), np.zeros(4, np.int64)
    launched(lambda: kernel[1, 1](x, y, z))
    np.testing.assert_array_equal(y, x.astype(np.uint8))
    np.testing.assert_array_equal(z, x.astype(np.int8))


def test_functions_of_math(launched):
    """Numbers that Python refuses give what the compiled code gives; float32 too, by whichever way they are called."""

    @njit
    def exponential(x):
        return math.exp(x)

    @cuda.jit(device=True)
    def logarithm(x):
        return math.log(x)

    @cuda.jit
    def kernel(x, y):
        i = cuda.grid(1)
        y[0, i], y[1, i], y[2, i] = math.sqrt(x[i]), sqrt(x[i]), logarithm(x[i])
        y[3, i], y[4, i], y[5, i] = exponential(1000 * x[i]), math.trunc(x[i]), math.floor(x[i])
        y[6, i], y[7, i] = math.pow(x[i], 0.5), math.fmod(x[i], 0)

    inf, nan = np.inf, np.nan
    for dtype in (np.float32, np.float64):
        x, y = np.array([-2.5, 0, 6.25, inf, nan], dtype), np.zeros((8, 5))
        launched(lambda x=x, y=y: kernel[1, 5](x, y))
        expected = [[nan, 0, 2.5, inf, nan]] * 2 + [[nan, -inf, math.log(6.25), inf, nan], [0, 1, inf, inf, nan]]
        expected += [[-2, 0, 6, inf, nan], [-3, 0, 6, inf, nan], [nan, 0, 2.5, inf, nan], [nan] * 5]
        np.testing.assert_allclose(y, expected)
    with pytest.raises(ValueError, match="math domain error"):
        math.sqrt(-1)


def test_functions_compiled_for_the_cpu(launched):
    """What numba.jit decorates can be called by kernels, with traced arrays, too."""

    @njit
    def square(x, i):
        return x[i] * x[i]

    @cuda.jit
    def kernel(x):
        i = cuda.grid(1)
        x[i] = square(x, i)

    x = np.arange(8.0)
    launched(lambda: kernel[1, 8](x))
    np.testing.assert_array_equal(x, np.arange(8.0) ** 2)
    assert square(x, 2) == 16


def test_random_numbers(launched):
    """States and numbers are those of Numba's own functions; streams of several states differ."""
    from numba.cuda.random import create_xoroshiro128p_states, xoroshiro128p_next, xoroshiro128p_uniform_float32

    @cuda.jit
    def kernel(states, y, z):
        i = cuda.grid(1)
        y[i] = xoroshiro128p_next(states, i)
        z[i] = xoroshiro128p_uniform_float32(states, i)

    states, y, z = create_xoroshiro128p_states(4, seed=12345, subsequence_start=3), np.zeros(4, np.uint64), np.zeros(4)
    # From the functions of numba.cuda.random, compiled for the CPU.
    assert states.copy_to_host()[:2].tolist() == EXPECTED_STATES
    launched(lambda: kernel[1, 4](states, y, z))
    assert y[0] == sum(EXPECTED_STATES[0]) % 2**64
    first, second = EXPECTED_STATES[0]
    mixed, bits = first ^ second, 2**64 - 1
    following = (first << 55 | first >> 9) & bits ^ mixed ^ mixed << 14 & bits, (mixed << 36 | mixed >> 28) & bits
    third, fourth = following
    assert z[0] == np.float32((third + fourth & bits) / 2**64)
    assert len(set(z)) == 4
    assert ((z > 0) & (z < 1)).all()


EXPECTED_STATES = [(9324555019279687623, 7696903391206363659), (13761353337285614527, 7814504211893331843)]


@pytest.mark.parametrize("seed", range(3))
def test_the_integer_functions(seed):
    """Their results in 32 and 64 bits, of negative numbers too."""
    values = np.random.default_rng(seed).integers(-(2**31), 2**31, 32).astype(np.int32)
    values[0], values[1] = 0, -1

    @cuda.jit
    def kernel(x, y):
        i = cuda.grid(1)
        y[i, 0], y[i, 1], y[i, 2], y[i, 3] = cuda.popc(x[i]), cuda.clz(x[i]), cuda.ffs(x[i]), cuda.brev(x[i])

    for x in values, values.astype(np.uint64) << np.uint64(7):  # an int64 is cut to 32 bits where bits are reversed
        y = np.zeros((32, 4), np.uint64)
        kernel[1, 32](x, y)
        width = 8 * x.itemsize
        for value, got in zip(x, y, strict=True):
            bits = format(int(value) % 2**width, f"0{width}b")
            leading = len(bits) - len(bits.lstrip("0"))
            first = len(bits) - bits.rindex("1") if "1" in bits else 0
            assert got.tolist() == [bits.count("1"), leading, first, int(bits[::-1], 2)]


# -- the host's side -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "dynamic", "refused"),
    [("h100", 227 * 1024, False), ("h100", 227 * 1024 + 1, True), ("a100", 163 * 1024, False), ("a100", 200_000, True),
     ("RTX 4090", 100 * 1024, True), ("t4", 64 * 1024, False), ("t4", 65 * 1024, True)],
)  # fmt: skip
def test_what_a_card_refuses(device, dynamic, refused):
    """More shared memory than its blocks can have."""

    def kernel(x):
        x[0] = cuda.shared.array(0, float32).size

    x = np.zeros(1)
    launch = lab.simulate(kernel, device=device)[1, 32, 0, dynamic]
    if refused:
        with pytest.raises(simulator.SimulationError, match=rf"kernel: {dynamic} bytes of dynamic shared memory; a "):
            launch(x)
    else:
        launch(x)
        assert x[0] == dynamic // 4
    with pytest.raises(ValueError, match="device: 'abacus' is not known; known are v100, t4, "):
        lab.simulate(kernel, device="abacus")


def test_a_barrier_of_more_blocks_than_a_card_holds():
    """They could not all be there at once: 40 multiprocessors of 1024 threads, or of 64 KiB."""

    def kernel(wide):
        if wide:
            cuda.shared.array(40 * 1024, int8)
        cuda.cg.this_grid().sync()

    lab.simulate(kernel, device="t4")[40, 1024](False)
    for grid, block, wide in [(41, 1024, False), (41, 32, True)]:
        with pytest.raises(simulator.SimulationError, match="its 41 blocks wait for each other, and a T4 holds 40 of"):
            lab.simulate(kernel, device="t4")[grid, block](wide)


def test_what_cannot_be_on_a_gpu():
    """Is refused when it is passed, as a compiler would."""

    @cuda.jit
    def kernel(x):
        x[0] = 1

    for wrong, words in [(np.array([None]), "an array of Python objects"), ([1], "a list"), ({1: 2}, "a dict")]:
        with pytest.raises(TypeError, match=f"kernel: {words} cannot be on a GPU"):
            kernel[1, 1](wrong)


def test_launches_from_several_threads():
    """They take turns; each thread has its own trace, seed and device; a trace has the launches of threads without."""

    @cuda.jit
    def kernel(x, capability):
        i = cuda.grid(1)
        tile = cuda.shared.array(32, float32)
        tile[cuda.threadIdx.x] = x[i]
        cuda.syncthreads()
        x[i] = tile[31 - cuda.threadIdx.x] + 1
        if i == 0:
            capability[0] = cuda.get_current_device().compute_capability[0]

    def work(n):
        x, capability = np.arange(64, dtype=np.float32), np.zeros(1)
        for _ in range(4):
            if n % 3 == 0:
                report = lab.simulate(kernel, trace=True, device="t4" if n else "a100")[2, 32](x, capability)
                assert (report.launches, capability[0]) == (1, 7 if n else 8)
            elif n % 3 == 1:
                with simulator.trace() as report:
                    kernel[2, 32](x, capability)
                assert (report.launches, capability[0]) == (1, 9)
            else:
                kernel[2, 32](x, capability)
        return x

    with simulator.trace() as report, ThreadPoolExecutor(6) as pool:
        results = list(pool.map(work, range(6)))
    assert all((x == np.arange(64) + 4).all() for x in results)
    assert report.launches == 2 * 4  # of the threads that had none of their own


def test_a_file_that_changes(tmp_path, monkeypatch):
    """Lines are shown as they are now, not as they were when another launch was reported."""
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    source, lines = "from numba import cuda\n@cuda.jit\ndef kernel(x):\n", []
    for line in ("    x[2] = 1\n", "    i = 7\n    x[i] = 1\n"):
        (tmp_path / "changing.py").write_text(source + line)
        module = importlib.reload(importlib.import_module("changing"))
        with simulator.trace() as report:
            module.kernel[1, 1](np.zeros(2))
        lines.append([simulator.source_line(site) for site in report.faults[0].sites])
    assert lines == [["x[2] = 1"], ["x[i] = 1"]]


def test_a_report_in_a_notebook():
    """Its HTML has the faults, their lines and the costs, with signs escaped."""

    @cuda.jit
    def kernel(x):
        i = cuda.threadIdx.x
        tile = cuda.shared.array(64, float32)
        tile[2 * i] = x[i] if i < 40 else 0  # < & >
        cuda.syncthreads()
        x[i] = tile[2 * i]

    with simulator.trace() as report:
        kernel[1, 32](np.zeros(30, np.float32))
    page = report._repr_html_()
    ElementTree.fromstring(page.replace("<br>", "<br/>"))
    assert "out-of-bounds read: x[" in page
    assert "if i &lt; 40 else 0  # &lt; &amp; &gt;" in page
    assert "conflict degree" in page
    assert "sectors a request" in page


def test_the_device_answers():
    """Attributes, memory, several pinned arrays, events that take time, options of the compiler."""
    device = cuda.get_current_device()
    assert device.MAX_THREADS_PER_BLOCK == 1024
    assert device.ASYNC_ENGINE_COUNT > 0
    assert cuda.current_context().get_memory_info().free > 2**30
    with pytest.raises(AttributeError, match="no COFFEE"):
        _ = device.COFFEE
    simulator.activate(device="T4")
    try:
        assert (device.compute_capability, device.MULTIPROCESSOR_COUNT) == ((7, 5), 40)
        assert device.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN == 64 * 1024
        assert cuda.current_context().get_memory_info().total == 16 * 2**30
    finally:
        simulator.activate()
    stream, start, end = cuda.stream(), cuda.event(), cuda.event()
    x, y = np.ones(4), np.zeros(4)

    @cuda.jit(lineinfo=True, max_registers=32, fastmath=True)
    def double(x, y):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = 2 * x[i]

    with cuda.pinned(x, y), stream.auto_synchronize():
        start.record(stream)
        double[1, 4, stream](x, y)
        end.record(stream)
    assert cuda.event_elapsed_time(start, end) > 0
    np.testing.assert_array_equal(y, 2)
    managed = cuda.managed_array(4)
    double.forall(4)(x, managed)
    np.testing.assert_array_equal(managed, 2)


def test_two_configurations_of_a_kernel_stay_two():
    """Numba's simulator keeps the last one in the kernel itself."""

    @cuda.jit
    def count(y):
        cuda.atomic.add(y, 0, 1)

    small, large = count[1, 2], count[3, 4]
    y = np.zeros(1, np.int32)
    small(y)
    assert y[0] == 2
    large(y)
    assert y[0] == 14


def test_arrays_of_objects_are_refused():
    """A GPU has no Python objects."""
    with pytest.raises(TypeError, match="Python objects"):
        cuda.jit(lambda x: None)[1, 1](np.array([None]))


# -- locks, and what orders memory -----------------------------------------------------------------------


def locked(fences, barriers):
    """Threads, or blocks as wholes, add to a plain counter under a lock made of atomics."""
    before, behind = fences

    @cuda.jit
    def kernel(lock, total):
        if not barriers or cuda.threadIdx.x == 0:
            while cuda.atomic.cas(lock, 0, 0, 1) != 0:
                pass
            if before:
                cuda.threadfence()
        if barriers:
            cuda.syncthreads()
        total[cuda.threadIdx.x if barriers else 0] += 1
        if barriers:
            cuda.syncthreads()
        if not barriers or cuda.threadIdx.x == 0:
            if behind:
                cuda.threadfence()
            cuda.atomic.exch(lock, 0, 0)

    return kernel


@pytest.mark.parametrize("fences", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("barriers", [False, True], ids=["threads", "blocks"])
def test_a_lock_orders_what_it_guards(fences, barriers):
    """With a fence behind taking it and one before leaving it: no race. Without one, a race, and what is missing."""
    total = np.zeros(8, np.int32)
    with simulator.trace() as report:
        locked(fences, barriers)[6, 8](np.zeros(1, np.int32), total)
    assert total[0] == (6 if barriers else 48)
    assert report.clean == all(fences), str(report)
    if not report.clean:
        assert {fault.kind for fault in report.faults} == {"race"}
        assert all("without cuda.threadfence() they order nothing" in fault.details for fault in report.faults)


def test_the_write_that_differs_is_named():
    """Of many threads that write the same value, and one that writes another one: both lines."""

    @cuda.jit
    def kernel(x):
        if cuda.threadIdx.x == 5:
            x[0] = 2
        else:
            x[0] = 1

    with simulator.trace() as report:
        kernel[1, 32](np.zeros(1))
    (race,) = report.races
    assert len(set(race.sites)) == 2, str(report)


def test_what_a_lock_does_not_guard():
    """An access outside of it races, and no fence would help."""

    @cuda.jit
    def kernel(lock, total):
        while cuda.atomic.cas(lock, 0, 0, 1) != 0:
            pass
        cuda.threadfence()
        total[0] += 1
        cuda.threadfence()
        cuda.atomic.exch(lock, 0, 0)
        if cuda.grid(1) == 3:
            total[0] += 1

    with simulator.trace() as report:
        kernel[4, 2](np.zeros(1, np.int32), np.zeros(1, np.int32))
    assert report.races, str(report)
    assert "threadfence" not in str(report)


@pytest.mark.parametrize("fenced", [True, False])
def test_the_last_block_sums_up(fenced):
    """The usual reduction in one launch: the block that counts last reads what all others wrote."""

    @cuda.jit
    def kernel(x, parts, count, total):
        last = cuda.shared.array(1, int32)
        if cuda.threadIdx.x == 0:
            parts[cuda.blockIdx.x] = x[cuda.blockIdx.x]
            if fenced:
                cuda.threadfence()
            last[0] = cuda.atomic.add(count, 0, 1) == cuda.gridDim.x - 1
            if fenced:
                cuda.threadfence()
        cuda.syncthreads()
        if last[0] and cuda.threadIdx.x == 0:
            for i in range(cuda.gridDim.x):
                total[0] += parts[i]

    x, total = np.arange(12, dtype=np.float32), np.zeros(1, np.float32)
    with simulator.trace() as report:
        kernel[12, 4](x, np.zeros(12, np.float32), np.zeros(1, np.int32), total)
    assert total[0] == x.sum()
    assert report.clean == fenced, str(report)


def test_device_memory_that_nobody_wrote():
    """It begins as NaN; a read of it is reported, until a kernel or the host has written there."""

    @cuda.jit
    def write_half(x):
        if cuda.threadIdx.x % 2 == 0:
            x[cuda.threadIdx.x] = 1

    @cuda.jit
    def read(x, y):
        y[cuda.threadIdx.x] = x[cuda.threadIdx.x]

    def uninitialized(x):
        with simulator.trace() as report:
            read[1, 8](x, np.zeros(8, np.float32))
        return sum(fault.count for fault in report.uninitialized)

    x = cuda.device_array(8, np.float32)
    assert np.isnan(x.copy_to_host()).all()
    assert uninitialized(x) == 8
    with simulator.trace() as report:
        write_half[1, 8](x)
    assert report.clean
    assert uninitialized(x) == 4
    for by_host in (
        lambda x: x.copy_to_device(np.ones(8, np.float32)),
        lambda x: x.__setitem__(slice(None), 1),
        lambda x: x.fill(1),
        lambda x: write_half[1, 8](x),  # not traced: what it wrote is not known
    ):
        x = cuda.device_array_like(x)
        assert uninitialized(x) == 8
        by_host(x)
        assert uninitialized(x) == 0


# -- what a signature and other options settle -----------------------------------------------------------


def test_numbers_are_what_the_signature_says():
    """A function that was given one signature makes whole numbers of its width, as its compiled code does."""

    @cuda.jit("int32(int32, uint8)", device=True)
    def added(x, y):
        return x + y

    @cuda.jit("void(int32[:], int32)")
    def kernel(x, y):
        x[0] = added(3.75, 257)
        x[1] = y

    x = np.zeros(2, np.int32)
    kernel[1, 1](x, 2**32 - 5)
    assert x.tolist() == [3 + 1, -5]


def test_launches_that_a_gpu_refuses():
    """A block with more threads than the kernel's launch bounds; a device function; what needs a compiler."""
    bounded = cuda.jit(launch_bounds=32)(lambda x: None)
    bounded[1, 32](0)
    for kernel in (bounded, cuda.jit(launch_bounds=(32, 2))(lambda x: None)):
        with pytest.raises(lab.SimulationError, match=r"block \(33, 1, 1\) has 33 threads, and its launch_bounds are"):
            kernel[1, 33](0)
    with pytest.raises(lab.SimulationError, match="launch_bounds are 32"):
        lab.simulate(bounded)[1, 33](0)
    for kind in (cuda.shared, cuda.local):
        for alignment, words in ((24, "a power of 2"), (-8, "positive"), (4, "a multiple of 8")):
            with pytest.raises(ValueError, match=f"Alignment must be {words}"):
                cuda.jit(lambda kind=kind, alignment=alignment: kind.array(1, int32, alignment=alignment))[1, 1]()
        with pytest.raises(lab.SimulationError, match="alignment must be a constant integer"):
            cuda.jit(lambda kind=kind: kind.array(1, int32, alignment=16.0))[1, 1]()
    for launch in (lambda: lab.simulate(bounded)(0), lambda: lab.simulate(bounded)[3](0)):
        with pytest.raises(ValueError, match=r"a launch is kernel\[grid, block\]"):
            launch()
    with pytest.raises(TypeError, match="CUDA kernel must have void return type"):
        cuda.jit(lambda x: x)[1, 1](0)
    with pytest.raises(RuntimeError, match="device=True"):
        cuda.jit(device=True)(lambda x: None)[1, 1](0)
    if getattr(cuda, "compile_all", None) is not None:
        with pytest.raises(NotImplementedError, match="kernels are simulated here"):
            cuda.compile_all(lambda: None, ())
