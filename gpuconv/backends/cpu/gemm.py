"""Compiled matrix products for the CPU, for fully connected layers.

NumPy's BLAS would do, but it has threads of its own. Two sets of threads on the same cores wait for each other: on two
cores a step of LeNet takes several times as long. Besides, the sum over k runs in one order here, whatever the number
of threads.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit

from gpuconv.backends.cpu.compile import ELEMENTS, SIZE, Kernel, kernel, split
from gpuconv.backends.cpu.memory import constant_zeros, empty
from gpuconv.backends.cpu.simd import (
    InVectors,
    copy,
    forget_loads,
    load,
    multiply_add,
    multiply_add_lanes,
    registers,
    relu,
    scratch,
    scratch_zeros,
    store,
    store_part,
    store_totals,
    transpose,
    zeros,
)
from gpuconv.backends.cpu.threads import launch

#: Rows of b that are packed at a time: with their panel they fit the first-level cache.
_DEPTH = 128


@dataclass(frozen=True)
class Product(InVectors):
    """What a product ``c = a · b + bias`` is compiled for. Sizes and layouts are no part of it: compiling takes longer
    than they would ever save.
    """

    @cached_property
    def tile(self) -> tuple[int, int]:
        """Sums in registers: rows, and vectors of columns.

        More than 8 rows would leave no registers for their addresses, more vectors make panels of which more is empty.
        """
        vectors = 2
        return min(8, (registers()[1] - vectors - 2) // vectors), vectors


@njit(inline="always")
def _pack(panel, width, lanes, b, transposed, first_row, depth, first_column, columns, n, k):
    """Copy rows from ``first_row`` and columns from ``first_column`` of b to a panel, zeros where it is wider."""
    if not transposed:
        for i in range(depth):
            target, source = i * width, (first_row + i) * n + first_column
            copy(panel, target, b, source, columns)
            for j in range(columns, width):
                panel[target + j] = 0
        return
    for i in range(0, depth, lanes):
        for j in range(0, width, lanes):
            source = (first_column + j) * k + first_row + i
            if i + lanes <= depth and j + lanes <= columns:
                block = transpose(load(b, source, lanes, k, 1, lanes))
                store(panel, i * width + j, lanes, width, block)
            else:
                for row in range(i, min(i + lanes, depth)):
                    for column in range(j, j + lanes):
                        value = b[(first_column + column) * k + first_row + row] if column < columns else 0
                        panel[row * width + column] = value


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, ELEMENTS, *[SIZE] * 8)
def multiply(plan: Product):
    """``(a, b, bias, c, m, n, k, a_transposed, b_transposed, rectified, row_parts, panels)``.

    ``a_transposed``: a is stored as (k, m); ``b_transposed``: b as (n, k); ``rectified``: ReLU is taken of the result.
    A chunk computes one panel of columns for a part of the rows.
    """
    lanes = plan.lanes
    tile_rows, vectors = plan.tile
    width = vectors * lanes
    dtype = np.dtype(plan.dtype).type
    depth_limit = _DEPTH

    def compute(chunk, a, b, bias, c, m, n, k, a_transposed, b_transposed, rectified, row_parts, panels):
        part = chunk // panels
        first_column = (chunk - part * panels) * width
        columns = min(width, n - first_column)
        first, last = split(m, row_parts, part)
        row_step, k_step = (1, m) if a_transposed else (k, 1)
        panel = scratch(depth_limit * width, dtype)
        sums = scratch_zeros((last - first) * width, dtype)
        for row in range(last - first):
            for j in range(columns):
                sums[row * width + j] = bias[first_column + j]
        for first_k in range(0, k, depth_limit):
            depth = min(depth_limit, k - first_k)
            _pack(panel, width, lanes, b, b_transposed, first_k, depth, first_column, columns, n, k)
            row = 0
            while row + tile_rows <= last - first:
                tile = load(sums, row * width, tile_rows, width, vectors, lanes)
                element = (first + row) * row_step + first_k * k_step
                for i in range(depth):
                    factors = load(panel, i * width, 1, 0, vectors, lanes)
                    tile = multiply_add(tile, a, element, tile_rows, row_step, 1, 0, factors)
                    forget_loads()
                    element += k_step
                store(sums, row * width, tile_rows, width, tile)
                row += tile_rows
            while row < last - first:
                tile_row = load(sums, row * width, 1, 0, vectors, lanes)
                element = (first + row) * row_step + first_k * k_step
                for i in range(depth):
                    factors = load(panel, i * width, 1, 0, vectors, lanes)
                    tile_row = multiply_add(tile_row, a, element, 1, 0, 1, 0, factors)
                    forget_loads()
                    element += k_step
                store(sums, row * width, 1, 0, tile_row)
                row += 1
        for row in range(last - first):
            result = load(sums, row * width, 1, 0, vectors, lanes)
            if rectified:
                result = relu(result)
            store_part(c, (first + row) * n + first_column, 1, 0, result, columns)

    return compute


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, ELEMENTS, *[SIZE] * 5)
def multiply_few_rows(plan: Product):
    """``(a, b, bias, c, m, n, k, rectified, chunks)``, for b transposed: lanes run over k, and b is read where it is.

    For a few rows the packing that :func:`multiply` does takes longer than the product. A chunk computes some columns.
    """
    lanes = plan.lanes
    tile_columns = 8  # sums in registers: enough to hide how long an addition takes
    dtype = np.dtype(plan.dtype).type

    def compute(chunk, a, b, bias, c, m, n, k, rectified, chunks):
        totals = scratch_zeros(tile_columns, dtype)
        first, last = split(n, chunks, chunk)
        for row in range(m):
            for column in range(first, last, tile_columns):
                columns = min(tile_columns, last - column)
                done = 0
                if columns == tile_columns:
                    tile = zeros(a, tile_columns, lanes)
                    while done + lanes <= k:
                        factor = load(a, row * k + done, 1, 0, 1, lanes)
                        factors = load(b, column * k + done, tile_columns, k, 1, lanes)
                        tile = multiply_add_lanes(tile, factors, factor)
                        done += lanes
                    store_totals(totals, 0, tile)
                else:
                    totals[:] = 0
                for j in range(columns):
                    total = totals[j] + bias[column + j]
                    for i in range(done, k):
                        total += a[row * k + i] * b[(column + j) * k + i]
                    if rectified and total <= 0:
                        total = dtype(0)
                    c[row * n + column + j] = total

    return compute


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, ELEMENTS, *[SIZE] * 7)
def multiply_thin(plan: Product):
    """``(a, b, bias, c, m, n, k, row_step, k_step, row_parts, panels)``: b is read where it is, a row at a time.

    For a single row of a, as of the gradient of one image, or a sum over few products, as of the gradient of a weight
    by a few images. A chunk computes one panel of columns for a part of the rows.
    """
    lanes, vectors = plan.lanes, _THIN_VECTORS
    width = vectors * lanes

    def compute(chunk, a, b, bias, c, m, n, k, row_step, k_step, row_parts, panels):
        part = chunk // panels
        first_column = (chunk - part * panels) * width
        last_column = min(first_column + width, n)
        first, last = split(m, row_parts, part)
        for row in range(first, last):
            column = first_column
            if column + width <= last_column:
                tile = load(bias, column, 1, 0, vectors, lanes)
                element = row * row_step
                for i in range(k):
                    tile = multiply_add(tile, a, element, 1, 0, 1, 0, load(b, i * n + column, 1, 0, vectors, lanes))
                    element += k_step
                store(c, row * n + column, 1, 0, tile)
                column += width
            while column + lanes <= last_column:
                vector = load(bias, column, 1, 0, 1, lanes)
                element = row * row_step
                for i in range(k):
                    vector = multiply_add(vector, a, element, 1, 0, 1, 0, load(b, i * n + column, 1, 0, 1, lanes))
                    element += k_step
                store(c, row * n + column, 1, 0, vector)
                column += lanes
            for j in range(column, last_column):
                total = bias[j]
                for i in range(k):
                    total += a[row * row_step + i * k_step] * b[i * n + j]
                c[row * n + j] = total

    return compute


#: Vectors of columns whose sums :func:`multiply_thin` has in registers.
_THIN_VECTORS = 4
#: Rows below which :func:`multiply_few_rows` is faster; rows, or products in a sum, below which `multiply_thin` is.
_FEW_ROWS, _THIN = 16, 4


@functools.cache
def _kernel(dtype: np.dtype, build: Any) -> tuple[Kernel, int]:
    """The kernel, and the width of the panels that it works on."""
    plan = Product(dtype.name)
    return build(plan), plan.lanes * (_THIN_VECTORS if build is multiply_thin else plan.tile[1])


def product(
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    a_transposed: bool = False,
    b_transposed: bool = False,
    rectified: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """``a · b + bias`` of C-contiguous matrices of one float type, or ReLU of it; either may be stored transposed.

    Shapes: a (m, k), or (k, m) if transposed; b (k, n), or (n, k) if transposed; bias (n,); result (m, n), which is
    ``out`` if that is given.
    """
    m, k = a.shape[::-1] if a_transposed else a.shape
    n = b.shape[0] if b_transposed else b.shape[1]
    if bias is None:
        bias = constant_zeros(n, a.dtype)
    c = empty((m, n), a.dtype) if out is None else out
    arrays, work = (a, b, bias, c), m * n * k
    if m < _FEW_ROWS and b_transposed and not a_transposed:
        kernel, _ = _kernel(a.dtype, multiply_few_rows)
        chunks = max(1, min(64, n // 64))
        launch(kernel, chunks, *arrays, m, n, k, int(rectified), chunks, work=work)
        return c
    if min(m, k) < _THIN and not b_transposed and not rectified:
        kernel, width = _kernel(a.dtype, multiply_thin)
        panels = -(-n // width)
        row_parts = max(1, min(m // 64, 16 // max(panels, 1)))
        steps = (1, m) if a_transposed else (k, 1)
        launch(kernel, row_parts * panels, *arrays, m, n, k, *steps, row_parts, panels, work=work)
        return c
    kernel, width = _kernel(a.dtype, multiply)
    panels = -(-n // width)
    # Enough chunks for several threads, but not so few rows in each that packing b takes long beside the product.
    row_parts = max(-(-m // 256), min(-(-16 // max(panels, 1)), m // 64), 1)
    how = (int(a_transposed), int(b_transposed), int(rectified))
    launch(kernel, row_parts * panels, *arrays, m, n, k, *how, row_parts, panels, work=work)
    return c
