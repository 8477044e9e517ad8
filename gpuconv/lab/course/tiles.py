"""Puzzles 13 to 15: a tile that turns, blocks that wait for nobody, and a convolution."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpuconv.lab.course.puzzle import Case, Puzzle, at_most_sectors, no_bank_conflicts

F32 = np.float32


def _numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-50, 50, shape).astype(F32)


# ------------------------------------------------------------------------------------------------- 13


def _transpose() -> Iterator[Case]:
    for rows, columns in ((32, 32), (40, 33)):
        x = _numbers(rows, columns, seed=rows)
        grid = (-(-columns // 32), -(-rows // 32))
        yield Case(
            f"a matrix of {rows} rows and {columns} columns, a grid of {grid} blocks of (32, 32) threads",
            {"matrix": x, "out": np.zeros((columns, rows), F32)},
            {"out": x.T},
            grid,
            (32, 32),
        )


TRANSPOSE = Puzzle(
    name="transpose",
    title="Transposing: read rows, write rows, turn the tile",
    text="""
The kernel below is right and slow: a warp reads a row, but writes a column, and each of its
32 numbers lies in another sector. Shared memory has no sectors. So a block reads its tile
row by row, and writes it row by row, and turns it in between:

    matrix                tile              out
    rows   ---------->   rows
                         columns  ------->  rows

The block of column bx and row by of the matrix goes to row bx and column by of the result.

Shared memory has 32 banks, each of which serves one word at a time. tile[r, c] of a tile
with 32 columns is in bank c: a column of it lies in one bank, and a warp that reads it
waits 32 times. With one column more, which nobody uses, the bank is r + c:

    tile of 32 columns:   bank of [0,0] [1,0] [2,0] ...   0  0  0 ...
    tile of 33 columns:                                   0  1  2 ...

Transpose the matrix, with all sectors used and without bank conflicts.
""",
    skeleton="""
from numba import cuda, float32


@cuda.jit
def transpose(matrix, out):
    x, y = cuda.grid(2)
    rows, columns = matrix.shape
    if y < rows and x < columns:
        out[x, y] = matrix[y, x]
""",
    solution="""
from numba import cuda, float32


@cuda.jit
def transpose(matrix, out):
    tile = cuda.shared.array((32, 33), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    left, top = cuda.blockIdx.x * 32, cuda.blockIdx.y * 32
    rows, columns = matrix.shape
    if top + ty < rows and left + tx < columns:
        tile[ty, tx] = matrix[top + ty, left + tx]
    cuda.syncthreads()
    if left + ty < columns and top + tx < rows:
        out[left + ty, top + tx] = tile[tx, ty]
""",
    cases=_transpose,
    hints={
        "condition": "threadIdx.x is the last index of both arrays in global memory: matrix[top + ty, left + tx] "
        "and out[left + ty, top + tx]. The tile is written as [ty, tx] and read as [tx, ty], and "
        "has 33 columns.",
        "race": "the tile is read by other threads than wrote it: all have to wait in between.",
        "uninitialized": "the guards of reading and writing differ, as the tile has turned: row left + ty of out is "
        "smaller than `columns`, and column top + tx smaller than `rows`. Is there a barrier?",
        "divergent": "the barrier stands behind the first `if`, not in it: threads without an element come, too.",
        "out-of-bounds": "out has `columns` rows and `rows` columns: the guards have to be turned as well.",
        "wrong": "the block itself moves: its rows of out begin at left = blockIdx.x * 32, its columns at top.",
    },
    conditions=(
        at_most_sectors("out", lambda case: _row_pieces(case, "out"), "warps write into many sectors"),
        at_most_sectors("matrix", lambda case: _row_pieces(case, "matrix"), "warps read from many sectors"),
        no_bank_conflicts,
    ),
)


def _row_pieces(case: Case, name: str) -> int:
    rows, columns = case.arguments[name].shape
    return rows * -(-columns // 32) * 5


# ------------------------------------------------------------------------------------------------- 14


def _last_block() -> Iterator[Case]:
    for n, blocks in ((64, 4), (150, 6)):
        x = _numbers(n, seed=n)
        yield Case(
            f"{n} elements, {blocks} blocks of 32 threads",
            {"x": x, "sums": np.zeros(blocks, F32), "ended": np.zeros(1, np.int32), "out": np.zeros(1, F32)},
            {"out": np.array([x.mean()])},
            blocks,
            32,
        )


LAST_BLOCK = Puzzle(
    name="last_block",
    title="A race that only shows in some orders",
    text="""
Each block adds its part of x, and writes the sum into sums[block]. When all have done so, one
of them adds the sums and writes the mean into out[0]. Blocks begin and end in any order, and
cannot wait for each other. Which one knows that all others have ended?

The kernel below thinks that it is the one with the highest number. On most days it is.

Let the blocks count, by an atomic that returns what was there before:

    before = cuda.atomic.add(ended, 0, 1)

The block that finds before == gridDim.x - 1 is the last, whatever its number. One more thing
is needed. Writes take a while until other blocks see them, and may overtake each other: the
count could be seen before the sum. A fence makes a thread's writes before it visible before
those behind it:

    sums[b] = ...                  the sum
    cuda.threadfence()             is visible before
    cuda.atomic.add(ended, ...)    the count;
    cuda.threadfence()             and what is read from here on
    ... sums[k] ...                is no older than the count

This kernel uses one thread of each block, to keep it short.
""",
    skeleton="""
from numba import cuda, float32


@cuda.jit
def last_block(x, sums, ended, out):
    b, blocks = cuda.blockIdx.x, cuda.gridDim.x
    if cuda.threadIdx.x == 0:
        total = float32(0)
        for i in range(b, x.size, blocks):
            total += x[i]
        sums[b] = total
        if b == blocks - 1:
            total = float32(0)
            for k in range(blocks):
                total += sums[k]
            out[0] = total / x.size
""",
    solution="""
from numba import cuda, float32


@cuda.jit
def last_block(x, sums, ended, out):
    b, blocks = cuda.blockIdx.x, cuda.gridDim.x
    if cuda.threadIdx.x == 0:
        total = float32(0)
        for i in range(b, x.size, blocks):
            total += x[i]
        sums[b] = total
        cuda.threadfence()
        before = cuda.atomic.add(ended, 0, 1)
        cuda.threadfence()
        if before == blocks - 1:
            total = float32(0)
            for k in range(blocks):
                total += sums[k]
            out[0] = total / x.size
""",
    cases=_last_block,
    hints={
        "race": "one block reads sums[k] while another may still write it. Count the blocks that have ended "
        "with cuda.atomic.add(ended, 0, 1), go on in the block that comes last, and put a "
        "cuda.threadfence() before the atomic and one behind it.",
        "unwritten": "cuda.atomic.add returns what was there before it added. Of 4 blocks, the last one finds 3.",
        "wrong": "does only the block go on that has counted as the last? Do its sums begin at 0 again?",
        "error": "blocks must not wait for each other in a loop: others may only begin when this one has ended.",
    },
)

# ------------------------------------------------------------------------------------------------- 15


def _convolve() -> Iterator[Case]:
    for rows, columns in ((10, 34), (13, 41)):
        picture, weights = _numbers(rows, columns, seed=rows), _numbers(3, 3, seed=5)
        wanted = np.zeros((rows - 2, columns - 2), F32)
        for r in range(3):
            for s in range(3):
                wanted += weights[r, s] * picture[r : rows - 2 + r, s : columns - 2 + s]
        grid = (-(-(columns - 2) // 32), -(-(rows - 2) // 8))
        yield Case(
            f"a picture of {rows} rows and {columns} columns, a grid of {grid} blocks of (32, 8) threads",
            {"picture": picture, "weights": weights, "out": np.zeros_like(wanted)},
            {"out": wanted},
            grid,
            (32, 8),
        )


CONVOLVE = Puzzle(
    name="convolve",
    title="A convolution with a tile",
    text="""
out[y, x] is the sum of weights[r, s] * picture[y + r, x + s], over a window of 3x3. The result
has two rows and two columns less than the picture. Neighbouring results need nearly the same
pixels, and the kernel below reads each pixel nine times.

A block computes 8 rows of 32 results, and needs 10 rows of 34 pixels for them, the halo
included:

            34 pixels                    32 results
        +-------------+
     10 | . . . . . . |        ->       +---------+
        | . . . . . . |               8 | . . . . |
        | . . . . . . |                 +---------+
        +-------------+

There are 256 threads and 340 pixels to bring: each thread brings one or two. Number the
pixels of the tile, k = 0 ... 339, let thread t bring k = t, t + 256, and find the row and the
column of k by // and %.

All you have learned is in it: guards, neighbours side by side, a tile, a barrier that
everybody comes to. This is how the kernels of gpuconv begin: kernels/conv/tiled.py goes on
from here.
""",
    skeleton="""
from numba import cuda, float32


@cuda.jit
def convolve(picture, weights, out):
    x, y = cuda.grid(2)
    rows, columns = out.shape
    if y < rows and x < columns:
        total = float32(0)
        for r in range(3):
            for s in range(3):
                total += weights[r, s] * picture[y + r, x + s]
        out[y, x] = total
""",
    solution="""
from numba import cuda, float32


@cuda.jit
def convolve(picture, weights, out):
    tile = cuda.shared.array((10, 34), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    left, top = cuda.blockIdx.x * 32, cuda.blockIdx.y * 8
    for k in range(32 * ty + tx, 340, 256):
        row, column = top + k // 34, left + k % 34
        if row < picture.shape[0] and column < picture.shape[1]:
            tile[k // 34, k % 34] = picture[row, column]
    cuda.syncthreads()
    x, y = cuda.grid(2)
    rows, columns = out.shape
    if y < rows and x < columns:
        total = float32(0)
        for r in range(3):
            for s in range(3):
                total += weights[r, s] * tile[ty + r, tx + s]
        out[y, x] = total
""",
    cases=_convolve,
    hints={
        "condition": "bring the pixels of the block into a tile of 10 rows and 34 columns first, each of them "
        "once, and compute from the tile.",
        "uninitialized": "the tile is larger than the block: who brings rows 8 and 9, and columns 32 and 33? Each "
        "thread brings pixel k = t, and t + 256 if that is below 340.",
        "race": "threads read pixels of the tile that others bring: a barrier stands in between.",
        "divergent": "threads without a result have to come to the barrier as well: the guard stands behind it.",
        "out-of-bounds": "in the last blocks the tile reaches over the edge of the picture: guard the reads by its "
        "shape.",
        "wrong": "thread (tx, ty) begins at tile[ty, tx]: that pixel is picture[top + ty, left + tx].",
        "error": "the size of a shared array is a constant: cuda.shared.array((10, 34), float32).",
    },
    conditions=(
        at_most_sectors("picture", lambda case: 80 * int(np.prod(case.grid)), "pixels are read several times"),
        no_bank_conflicts,
    ),
)

PUZZLES = (TRANSPOSE, LAST_BLOCK, CONVOLVE)
