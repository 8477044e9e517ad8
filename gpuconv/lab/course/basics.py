"""Puzzles 1 to 6: threads, blocks, grids, and what a warp reads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpuconv.lab.course.puzzle import Case, Puzzle, at_most_sectors

F32 = np.float32


def _numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-50, 50, shape).astype(F32)


# ------------------------------------------------------------------------------------------------- 1


def _add_ten() -> Iterator[Case]:
    for n in (8, 32):
        x = _numbers(n, seed=n)
        yield Case(f"{n} elements and one block of {n} threads", {"x": x, "y": np.zeros(n, F32)}, {"y": x + 10}, 1, n)


ADD_TEN = Puzzle(
    name="add_ten",
    title="Add ten: a thread for each element",
    text="""
A kernel is a function that many threads run at the same time. All run the same lines;
what differs is their number, cuda.threadIdx.x, which counts from 0.

    x:        [  3 |  7 | -2 |  5 ]
    thread:      0    1    2    3      each takes the element of its number
    y:        [ 13 | 17 |  8 | 15 ]

A kernel returns nothing: it writes its results into an array that it is given.

Complete the kernel, so that y becomes x + 10. There are as many threads as elements.
""",
    skeleton="""
from numba import cuda


@cuda.jit
def add_ten(x, y):
    i = cuda.threadIdx.x
    # One line is missing here.
""",
    solution="""
from numba import cuda


@cuda.jit
def add_ten(x, y):
    i = cuda.threadIdx.x
    y[i] = x[i] + 10
""",
    cases=_add_ten,
    hints={
        "unwritten": "write into y, at the place of this thread: y[i] = ...",
        "race": "every thread writes to the same place. Which element belongs to thread i alone?",
        "wrong": "thread i reads x[i], adds 10, and writes the sum to y[i]. No loop: the threads are the loop.",
        "error": "a kernel cannot return values, or use an array as a whole. It works on elements: x[i], y[i].",
        "out-of-bounds": "there are as many threads as elements, numbered from 0. Which index does the last one use?",
    },
)

# ------------------------------------------------------------------------------------------------- 2


def _fahrenheit() -> Iterator[Case]:
    for n in (32, 20):
        c = _numbers(n, seed=n)
        yield Case(
            f"{n} temperatures and one block of 32 threads",
            {"celsius": c, "out": np.zeros(n, F32)},
            {"out": F32(1.8) * c + F32(32)},
            1,
            32,
        )


FAHRENHEIT = Puzzle(
    name="fahrenheit",
    title="More threads than elements: a guard",
    text="""
Threads come in warps of 32, so blocks have 32, 64, 128... threads. Arrays have any size.
Those threads that have no element must do nothing:

    element:  0 1 2 ... 18 19
    thread:   0 1 2 ... 18 19 | 20 21 ... 31     these are too many

On a GPU, a thread that reads or writes behind the end of an array gives no error. It takes
what lies there, or destroys it. Here, the laboratory tells you.

Convert temperatures from Celsius to Fahrenheit, 1.8 * celsius + 32. A block always has 32
threads; there may be fewer temperatures.
""",
    skeleton="""
from numba import cuda


@cuda.jit
def fahrenheit(celsius, out):
    i = cuda.threadIdx.x
    out[i] = 1.8 * celsius[i] + 32  # but not in every thread
""",
    solution="""
from numba import cuda


@cuda.jit
def fahrenheit(celsius, out):
    i = cuda.threadIdx.x
    if i < out.size:
        out[i] = 1.8 * celsius[i] + 32
""",
    cases=_fahrenheit,
    hints={
        "out-of-bounds": "only threads with an element may touch it: put the line under `if i < out.size:`.",
        "wrong": "too few threads work now. The last element has the index size - 1: does its thread pass the guard?",
    },
)

# ------------------------------------------------------------------------------------------------- 3


def _brighten() -> Iterator[Case]:
    for n, blocks in ((128, 4), (100, 4), (33, 2)):
        x = _numbers(n, seed=n)
        yield Case(
            f"{n} pixels, {blocks} blocks of 32 threads",
            {"pixels": x, "amount": F32(5)},
            {"pixels": np.minimum(x + 5, 40)},
            blocks,
            32,
        )


BRIGHTEN = Puzzle(
    name="brighten",
    title="Many blocks: where am I in the whole grid?",
    text="""
A block has 1024 threads at most. For more elements, there are several blocks: the grid.
In each, cuda.threadIdx.x counts from 0 again; cuda.blockIdx.x is the number of the block
and cuda.blockDim.x how many threads a block has.

    block:            0              1              2
    thread:     0 1 2 ... 31   0 1 2 ... 31   0 1 2 ... 31
    element:    0 1 2 ... 31  32 33 ...  63  64 65 ...  95

Make each pixel brighter by `amount`, but not brighter than 40. This time the array is
changed in place. The last block may have threads without a pixel.
""",
    skeleton="""
from numba import cuda


@cuda.jit
def brighten(pixels, amount):
    i = ...  # from cuda.blockIdx.x, cuda.blockDim.x and cuda.threadIdx.x
    if i < pixels.size:
        pixels[i] = min(pixels[i] + amount, 40)
""",
    solution="""
from numba import cuda


@cuda.jit
def brighten(pixels, amount):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < pixels.size:
        pixels[i] = min(pixels[i] + amount, 40)
""",
    cases=_brighten,
    hints={
        "race": "threads of several blocks have the same i. Blocks before this one have blockIdx.x * "
        "blockDim.x threads.",
        "wrong": "some pixels have no thread, or two. Before block b stand b * blockDim.x threads; add "
        "threadIdx.x. `cuda.grid(1)` is short for that.",
        "error": "replace the three dots by a number: which element belongs to this thread of this block?",
        "out-of-bounds": "keep the guard: the last block has threads that are too many.",
    },
)

# ------------------------------------------------------------------------------------------------- 4


def _halve() -> Iterator[Case]:
    for n, blocks in ((64, 2), (200, 2), (40, 2)):
        x = _numbers(n, seed=n)
        yield Case(f"{n} elements, {blocks} blocks of 32 threads", {"x": x}, {"x": x / 2}, blocks, 32)


HALVE = Puzzle(
    name="halve",
    title="Fewer threads than elements: a loop over the grid",
    text="""
A grid need not cover the array. With a loop, it works for any size: each thread takes the
element of its number, then that one which is as far on as there are threads, and so on.

    64 threads, 200 elements

    thread 0:   0      64      128      192
    thread 1:   1      65      129      193
    ...
    thread 63:  63     127     191

    cuda.grid(1)      this thread's number in the grid
    cuda.gridsize(1)  how many threads the grid has

Halve each element of x, in place. It has any size.
""",
    skeleton="""
from numba import cuda


@cuda.jit
def halve(x):
    i = cuda.grid(1)
    if i < x.size:
        x[i] /= 2  # reaches the first elements only
""",
    solution="""
from numba import cuda


@cuda.jit
def halve(x):
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        x[i] /= 2
""",
    cases=_halve,
    hints={
        "wrong": "elements behind the last thread stay as they are, or some are halved twice. range(begin, "
        "end, step) makes the loop: begin at the own number, step by the number of threads.",
        "race": "two threads take the same element. The step of the loop is the number of all threads, not of a block.",
        "out-of-bounds": "the loop ends at the size of the array: range(..., x.size, ...).",
        "error": "a loop that never ends takes too long: does i grow in each round?",
    },
)

# ------------------------------------------------------------------------------------------------- 5


def _mirror() -> Iterator[Case]:
    for rows, columns in ((8, 32), (5, 45)):
        x = _numbers(rows, columns, seed=rows)
        grid = (-(-columns // 32), -(-rows // 4))
        yield Case(
            f"a picture of {rows} rows and {columns} columns, a grid of {grid} blocks of (32, 4) threads",
            {"picture": x, "out": np.zeros_like(x)},
            {"out": x[:, ::-1]},
            grid,
            (32, 4),
        )


MIRROR = Puzzle(
    name="mirror",
    title="Two dimensions: x is the column",
    text="""
Blocks and grids may have two dimensions (or three). `x, y = cuda.grid(2)` gives both parts
of a thread's place. Pictures are indexed the other way round: picture[row, column].

              x ->                       columns ->
          (0,0) (1,0) (2,0)           [0,0] [0,1] [0,2]
    y     (0,1) (1,1) (2,1)    rows   [1,0] [1,1] [1,2]

So x belongs to the column, y to the row. It matters: the 32 threads of a warp are
neighbours in x, and memory is fast when they read neighbours of a row.

Mirror a picture, left to right. The grid may be larger than the picture.
""",
    skeleton="""
from numba import cuda


@cuda.jit
def mirror(picture, out):
    x, y = cuda.grid(2)
    rows, columns = picture.shape
    # Which pixel goes where? And which threads have none?
""",
    solution="""
from numba import cuda


@cuda.jit
def mirror(picture, out):
    x, y = cuda.grid(2)
    rows, columns = picture.shape
    if y < rows and x < columns:
        out[y, x] = picture[y, columns - 1 - x]
""",
    cases=_mirror,
    hints={
        "out-of-bounds": "two guards are needed, y < rows and x < columns: x counts columns, y rows. And the last "
        "column has the index columns - 1.",
        "unwritten": "out[y, x] = picture[..., ...]: which column of the picture is seen in column x of the mirror?",
        "wrong": "the last column has the index columns - 1. Column 0 shows it, column 1 the one before. "
        "Does x stand for the column in each subscript?",
        "negative": "column x shows column columns - 1 - x. Threads whose x is not below columns have no pixel: "
        "the guard asks for x < columns as well. (Numba takes index -1 as the last element, right "
        "by luck at most.)",
        "condition": "the threads of a warp follow each other in x. Let x be the last index, in both arrays.",
    },
    conditions=(
        at_most_sectors("out", lambda case: _rows_of_sectors(case, "out"), "warps write to many places at once"),
        at_most_sectors(
            "picture", lambda case: _rows_of_sectors(case, "picture"), "warps read from many places at once"
        ),
    ),
)


def _rows_of_sectors(case: Case, name: str) -> int:
    """Those of warps that each take a piece of a row: one more a request than if all were aligned."""
    rows, columns = case.arguments[name].shape
    return rows * -(-columns // 32) * 5


# ------------------------------------------------------------------------------------------------- 6


def _four_each() -> Iterator[Case]:
    for n in (256, 200):
        x = _numbers(n, seed=n)
        yield Case(f"{n} elements, 2 blocks of 32 threads", {"x": x, "y": np.zeros(n, F32)}, {"y": x * x}, 2, 32)


FOUR_EACH = Puzzle(
    name="four_each",
    title="Memory comes in pieces of 32 bytes",
    text="""
The threads of a warp read together, and memory answers in sectors of 32 bytes: eight
float32 numbers. If the 32 threads read 32 neighbours, 4 sectors hold all of them. If they
stand 4 apart, the same request touches 16 sectors, and three quarters of what moves is not
used.

    sectors:          [0 . . . . . . 7][8 . . . . . 15][16 . . . . .23][24 ...
    neighbours:        ^ ^ ^ ^ ^ ^ ^ ^  ^ ^ ^ ^ ^ ^ ^ ^  ...         4 sectors a warp
    4 apart:           ^       ^        ^       ^        ^       ^   16 sectors a warp

This kernel squares the elements of x, four in each thread, and is right. But each thread
takes four neighbours, so that threads are 4 apart. Change which elements a thread takes, so
that in each round the threads of a warp take neighbours. There are a quarter as many
threads as elements, or a few more.
""",
    skeleton="""
from numba import cuda


@cuda.jit
def four_each(x, y):
    for k in range(4):
        i = cuda.grid(1) * 4 + k
        if i < x.size:
            y[i] = x[i] * x[i]
""",
    solution="""
from numba import cuda


@cuda.jit
def four_each(x, y):
    for k in range(4):
        i = cuda.grid(1) + k * cuda.gridsize(1)
        if i < x.size:
            y[i] = x[i] * x[i]
""",
    cases=_four_each,
    hints={
        "condition": "in round k, thread 0 and thread 1 should take neighbours. How far apart are the four "
        "elements of a thread then? Think of the loop over the grid, two puzzles ago.",
        "wrong": "each element has to be taken once: in round k the threads start at k times the number of "
        "all threads.",
        "out-of-bounds": "keep the guard: the last round may reach behind the end.",
        "race": "two threads take the same element. In a round there are cuda.gridsize(1) elements, not blockDim.x.",
    },
    conditions=(
        at_most_sectors("x", lambda case: 2 * -(-case.arguments["x"].size // 8), "each request touches many sectors"),
        at_most_sectors("y", lambda case: -(-case.arguments["x"].size // 8), "each request touches many sectors"),
    ),
)

PUZZLES = (ADD_TEN, FAHRENHEIT, BRIGHTEN, HALVE, MIRROR, FOUR_EACH)
