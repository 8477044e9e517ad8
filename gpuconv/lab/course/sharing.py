"""Puzzles 7 to 12: threads that work together, by atomics, shared memory, barriers and shuffles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpuconv.lab.course.puzzle import Case, Puzzle, at_most_atomics, at_most_sectors, no_bank_conflicts
from gpuconv.lab.report import Report

F32 = np.float32


def _numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-50, 50, shape).astype(F32)


# ------------------------------------------------------------------------------------------------- 7


def _histogram() -> Iterator[Case]:
    for n in (64, 100):
        digits = np.random.default_rng(n).integers(0, 10, n).astype(np.int32)
        yield Case(
            f"{n} digits, 4 blocks of 32 threads",
            {"digits": digits, "counts": np.zeros(10, np.int32)},
            {"counts": np.bincount(digits, minlength=10)},
            4,
            32,
        )


HISTOGRAM = Puzzle(
    name="histogram",
    title="A race, and how an atomic ends it",
    text="""
counts[d] += 1 is three steps: read, add, write. Two threads that do it at the same time may
both read 4, and both write 5:

    thread 3:   read 4           write 5
    thread 8:           read 4           write 5      one count is lost

That is a race. Which thread comes first changes from run to run, and so does the result.
An atomic does the three steps in one, without anybody between:

    cuda.atomic.add(array, index, value)

Count how often each digit occurs.
""",
    skeleton="""
from numba import cuda


@cuda.jit
def histogram(digits, counts):
    i = cuda.grid(1)
    if i < digits.size:
        counts[digits[i]] += 1
""",
    solution="""
from numba import cuda


@cuda.jit
def histogram(digits, counts):
    i = cuda.grid(1)
    if i < digits.size:
        cuda.atomic.add(counts, digits[i], 1)
""",
    cases=_histogram,
    hints={
        "race": "several threads have the same digit, and read, add and write at once. Let cuda.atomic.add "
        "do all three.",
        "wrong": "the index is the digit, the value to add is 1. Does each digit count once?",
        "error": "cuda.atomic.add takes the array, the index and the value to add, as three arguments.",
    },
)

# ------------------------------------------------------------------------------------------------- 8


def _reverse() -> Iterator[Case]:
    for blocks in (1, 3):
        x = _numbers(64 * blocks, seed=blocks)
        yield Case(
            f"{64 * blocks} elements, {blocks} block{'s' * (blocks > 1)} of 64 threads",
            {"x": x},
            {"x": x.reshape(blocks, 64)[:, ::-1].ravel()},
            blocks,
            64,
        )


REVERSE = Puzzle(
    name="reverse",
    title="Shared memory, and the barrier",
    text="""
The threads of a block have a piece of memory in common: cuda.shared.array. It is small and
fast, and each block has its own. One thread writes what another reads.

    x (global):     [ a b c ... z ]
                      | | |     |       each thread brings one element
    tile (shared):  [ a b c ... z ]
                            X           each thread takes another one's
    x (global):     [ z ... c b a ]

But threads do not run in step. A thread may read its partner's place before the partner
has written it. At

    cuda.syncthreads()

every thread waits until all threads of the block have come.

This kernel turns the order round in each piece of 64 elements, in place. Something is
missing.
""",
    skeleton="""
from numba import cuda, float32


@cuda.jit
def reverse(x):
    tile = cuda.shared.array(64, float32)
    i, t = cuda.grid(1), cuda.threadIdx.x
    tile[t] = x[i]
    x[i] = tile[63 - t]
""",
    solution="""
from numba import cuda, float32


@cuda.jit
def reverse(x):
    tile = cuda.shared.array(64, float32)
    i, t = cuda.grid(1), cuda.threadIdx.x
    tile[t] = x[i]
    cuda.syncthreads()
    x[i] = tile[63 - t]
""",
    cases=_reverse,
    hints={
        "race": "one thread writes a place of the tile, another reads it, and nothing makes the reader "
        "wait. What stands between the two lines?",
        "uninitialized": "a thread reads a place of the tile that its partner has not written yet. What makes it wait?",
        "out-of-bounds": "the tile has 64 places, 0 to 63: thread t takes what thread 63 - t has brought.",
        "divergent": "all threads of the block have to come to the same barrier: not in an `if`.",
    },
)

# ------------------------------------------------------------------------------------------------- 9


def _blur() -> Iterator[Case]:
    for n in (96, 70):
        x = _numbers(n, seed=n)
        wide = np.pad(x, 1, mode="edge")
        yield Case(
            f"{n} elements, 3 blocks of 32 threads",
            {"x": x, "y": np.zeros(n, F32)},
            {"y": (wide[:-2] + wide[1:-1] + wide[2:]) / 3},
            3,
            32,
        )


BLUR = Puzzle(
    name="blur",
    title="Neighbours of the block: the halo",
    text="""
y[i] is the mean of x[i - 1], x[i] and x[i + 1]; at both ends, the end itself stands for the
neighbour that is missing. The kernel below is right, but reads each element three times
from global memory. With a tile in shared memory, each block reads its elements once, and
one more at each side, the halo:

    block 1 computes        y[32] .................... y[63]
    and needs       x[31]   x[32] .................... x[63]   x[64]
    in tile         [0]     [1]   .................... [32]    [33]

Thread t brings the element of its own to tile[t + 1]. Two of the threads bring the halo as
well. Then all wait for each other, and compute from the tile.

In the last block, some threads have no element. They must come to the barrier all the same.
""",
    skeleton="""
from numba import cuda, float32


@cuda.jit
def blur(x, y):
    i, t = cuda.grid(1), cuda.threadIdx.x
    last = x.size - 1
    if i < x.size:
        y[i] = (x[max(i - 1, 0)] + x[i] + x[min(i + 1, last)]) / 3
""",
    solution="""
from numba import cuda, float32


@cuda.jit
def blur(x, y):
    i, t = cuda.grid(1), cuda.threadIdx.x
    last = x.size - 1
    tile = cuda.shared.array(34, float32)
    tile[t + 1] = x[min(i, last)]
    if t == 0:
        tile[0] = x[max(i - 1, 0)]
    if t == 31:
        tile[33] = x[min(i + 1, last)]
    cuda.syncthreads()
    if i < x.size:
        y[i] = (tile[t] + tile[t + 1] + tile[t + 2]) / 3
""",
    cases=_blur,
    hints={
        "condition": "make a tile of 34 places in shared memory, let each thread bring one element, and compute "
        "from it.",
        "uninitialized": "the halo is part of the tile: who writes tile[0] and tile[33], and what does the last "
        "block write where its elements have come to an end?",
        "race": "between writing the tile and reading it, all threads have to wait for each other: cuda.syncthreads().",
        "divergent": "the threads without an element do not come to the barrier. Let them bring something too, "
        "for instance x[min(i, last)], and put the guard behind the barrier.",
        "wrong": "tile[t + 1] is the element of thread t: its neighbours are tile[t] and tile[t + 2]. At the "
        "ends of x, the end itself stands for what is missing.",
        "out-of-bounds": "at the ends there is no neighbour: max(i - 1, 0) and min(i + 1, last) stay inside.",
        "negative": "left of the first element there is none: max(i - 1, 0) stays inside.",
    },
    conditions=(at_most_sectors("x", lambda case: 3 * 7, "elements are read from global memory several times"),),
)

# ------------------------------------------------------------------------------------------------- 10


def _block_sum() -> Iterator[Case]:
    for seed in (1, 2):
        x = _numbers(128, seed=seed)
        yield Case(
            "128 elements, one block of 128 threads", {"x": x, "out": np.zeros(1, F32)}, {"out": x.sum()[None]}, 1, 128
        )


def _in_parallel(report: Report, case: Case) -> str | None:
    reads = sum(each.requests for each in report.bank_conflicts if each.access == "read")
    total = sum(each.requests for each in report.sectors if each.access == "read")
    if max(reads, total) <= 40:
        return None
    return (
        f"The result is right, but one thread works while 127 wait: warps come {max(reads, total)} times to memory, "
        "and 40 times would do."
    )


BLOCK_SUM = Puzzle(
    name="block_sum",
    title="A sum in seven steps: the tree",
    text="""
One thread that adds 128 numbers needs 127 steps, one after the other. Together, 64 threads
add pairs in one step; then 32 add those, and so on: seven steps.

    tile:     a   b   c   d   e   f   g   h          half = 4
              |___|___|___|___|   |   |   |
                  |___|___|_______|   |   |          thread t adds tile[t + half]
                      |___|___________|   |          to tile[t], if t < half
                          |_______________|
              a+e b+f c+g d+h                        half = 2, then 1

After each step all wait for each other: the next one reads what this one has written. And
the barrier stands where every thread comes to it, whether it adds or not.

Add the 128 elements of x into out[0], by a tree. Threads that work stand side by side, so
that none waits for another at a bank of shared memory.
""",
    skeleton="""
from numba import cuda, float32


@cuda.jit
def block_sum(x, out):
    tile = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    tile[t] = x[t]
    cuda.syncthreads()
    if t == 0:
        total = float32(0)
        for k in range(128):  # all alone
            total += tile[k]
        out[0] = total
""",
    solution="""
from numba import cuda, float32


@cuda.jit
def block_sum(x, out):
    tile = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    tile[t] = x[t]
    cuda.syncthreads()
    half = 64
    while half > 0:
        if t < half:
            tile[t] += tile[t + half]
        cuda.syncthreads()
        half //= 2
    if t == 0:
        out[0] = tile[0]
""",
    cases=_block_sum,
    hints={
        "race": "a step reads what the step before has written. Is there a barrier between two steps, and "
        "one before the first?",
        "divergent": "threads that do not add have to come to the barrier, too: it stands in the loop, but not "
        "in the `if`.",
        "condition": "half begins at 64 and is halved in each round. In a round, threads t < half add tile[t + "
        "half] to tile[t].",
        "out-of-bounds": "thread t adds tile[t + half]: with half = 64, only threads below 64 may.",
        "wrong": "64, 32, 16, 8, 4, 2, 1: is the last step among yours? Does thread 0 write the result "
        "behind the loop?",
    },
    conditions=(_in_parallel, no_bank_conflicts),
)

# ------------------------------------------------------------------------------------------------- 11


def _warp_max() -> Iterator[Case]:
    for warps in (1, 3):
        x = _numbers(32 * warps, seed=warps)
        yield Case(
            f"{32 * warps} elements, one block of {32 * warps} threads",
            {"x": x, "out": np.full(warps, -1000, F32)},
            {"out": x.reshape(warps, 32).max(1)},
            1,
            32 * warps,
        )


def _by_shuffles(report: Report, case: Case) -> str | None:
    if report.bank_conflicts:
        return "The result is right, but it goes through shared memory: here, only shuffles may carry values."
    reads = sum(each.requests for each in report.sectors if each.access != "write")
    warps = case.block // 32
    if reads > warps:
        return f"The result is right, but warps read global memory {reads} times: once each is enough, then shuffles."
    return None


WARP_MAX = Puzzle(
    name="warp_max",
    title="Shuffles: values from lane to lane",
    text="""
The 32 threads of a warp, its lanes, can hand values to each other without any memory:

    cuda.shfl_down_sync(0xFFFFFFFF, value, delta)

gives each lane the value of the lane `delta` further on. The first argument says which
lanes take part, one bit a lane: all of them have to come to this call. Lanes at the end,
that have none so far on, get their own value back.

    delta = 16:   lane 0 <- 16,  lane 1 <- 17, ...  lane 15 <- 31
    delta = 8:    lane 0 <- 8,   lane 1 <- 9,  ...
    4, 2, 1:      in the end, lane 0 has met all 32

Write the largest element of each warp into out[warp]. cuda.laneid is the number of a lane.
Use no shared memory, and read each element once.
""",
    skeleton="""
from numba import cuda


@cuda.jit
def warp_max(x, out):
    t = cuda.threadIdx.x
    warp = t // 32
    value = x[t]
    # Five shuffles. Then one lane knows the largest value, and writes it.
""",
    solution="""
from numba import cuda


@cuda.jit
def warp_max(x, out):
    t = cuda.threadIdx.x
    warp = t // 32
    value = x[t]
    delta = 16
    while delta > 0:
        value = max(value, cuda.shfl_down_sync(0xFFFFFFFF, value, delta))
        delta //= 2
    if cuda.laneid == 0:
        out[warp] = value
""",
    cases=_warp_max,
    hints={
        "race": "only one lane of each warp knows the largest value in the end. It alone writes.",
        "unwritten": "in the end lane 0 writes: `if cuda.laneid == 0: out[warp] = value`.",
        "wrong": "each step keeps the larger one of the own value and that which comes: value = max(value, "
        "...). The steps are 16, 8, 4, 2 and 1; which lane has met all others then?",
        "error": "all lanes that the mask names have to come to the shuffle: it does not stand in an `if`.",
        "condition": "read x[t] once, then let shuffles carry the values.",
        "out-of-bounds": "there is one element of out for each warp: out[warp].",
    },
    conditions=(_by_shuffles,),
)

# ------------------------------------------------------------------------------------------------- 12


def _total() -> Iterator[Case]:
    for n, blocks in ((256, 4), (200, 4)):
        x = np.random.default_rng(n).integers(0, 50, n).astype(np.int32)
        yield Case(
            f"{n} elements, {blocks} blocks of 64 threads",
            {"x": x, "out": np.zeros(1, np.int32)},
            {"out": x.sum()[None]},
            blocks,
            64,
        )


TOTAL = Puzzle(
    name="total",
    title="The sum of everything: one atomic a block",
    text="""
Blocks cannot wait for each other. But each can add what it has to one place, by an atomic.
The kernel below lets each thread do that. It is right, and all threads queue at one address.

    64 threads  ->  tree in shared memory  ->  1 number  ->  1 atomic     in each block

First add inside of the block, as two puzzles ago, then let one thread of the block add the
block's sum to out[0].

x may have fewer elements than there are threads. What does a thread without an element
bring to the tree?
""",
    skeleton="""
from numba import cuda, int32


@cuda.jit
def total(x, out):
    i, t = cuda.grid(1), cuda.threadIdx.x
    if i < x.size:
        cuda.atomic.add(out, 0, x[i])
""",
    solution="""
from numba import cuda, int32


@cuda.jit
def total(x, out):
    i, t = cuda.grid(1), cuda.threadIdx.x
    tile = cuda.shared.array(64, int32)
    tile[t] = x[i] if i < x.size else 0
    cuda.syncthreads()
    half = 32
    while half > 0:
        if t < half:
            tile[t] += tile[t + half]
        cuda.syncthreads()
        half //= 2
    if t == 0:
        cuda.atomic.add(out, 0, tile[0])
""",
    cases=_total,
    hints={
        "condition": "one atomic a block is enough: a tree in shared memory first, then thread 0 adds tile[0] to out.",
        "uninitialized": "threads without an element bring something, too: 0, which changes no sum.",
        "race": "several blocks write out[0], or a step of the tree reads before the one before has ended. "
        "An atomic for the first, a barrier for the second.",
        "divergent": "threads without an element have to come to the barriers as well: no guard around them.",
        "wrong": "is each element added once? Only one thread of a block adds to out, and what it adds is "
        "the block's sum.",
        "out-of-bounds": "threads without an element must not read x: `x[i] if i < x.size else 0`.",
    },
    conditions=(at_most_atomics("out", lambda case: case.grid),),
)

PUZZLES = (HISTOGRAM, REVERSE, BLUR, BLOCK_SUM, WARP_MAX, TOTAL)
