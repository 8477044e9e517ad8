"""A batch of network inputs from a set of images of bytes: gathered, zero-padded, standardised; on request warped.

A thread computes up to 4 adjacent pixels of an input, and stores them at once. A pixel outside of the image is the byte
0, black; what a byte is standardised to stands in a table of 256 numbers, so that the result is the host's to the last
bit. With ``warps`` a pixel is interpolated, bilinearly, between the four next to the point that the image's affine
transform takes it to; an image that stays in its place keeps its bits. The first thread of an image also copies its
label.

The block keeps the table in shared memory, which it reads while the numbers of the images are on their way; from global
memory each pixel would wait for one more load. An image of the batch that the set does not have is not read: its
pixels are NaN, and its label is -1.

With a ``step`` on the device the batch is the one whose turn it is in an order of all images, so that a captured graph
finds another batch at each repetition, and the host has nothing to say.

Shared bytes: 1024 (float32). Registers aimed at: at most 32, for full occupancy. Expected bottleneck: latency, three
loads in a row (number of the image, byte, table); in large batches memory bandwidth, of which the results take four
fifths. Where an image lies in the set is computed with 64 bits, so that the set may be of any size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import ImageBatchGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import Answer, fits_offsets, widest_access
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ldg, ldg_if, st
from gpuconv.kernels.device.registers import fma, unrolled, vector_access
from gpuconv.kernels.device.words import i32, u32
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]

_BYTES = 256


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads a block.
    """

    threads: int


def supports(geometry: ImageBatchGeometry) -> Answer:
    """True for every batch whose pixels can be counted with 32 bits."""
    return fits_offsets(input=geometry.n * geometry.h * geometry.w)


def tilings(geometry: ImageBatchGeometry) -> tuple[Tiling, ...]:
    """Blocks of 256, 128 and 64 threads; smaller ones spread a small batch over more multiprocessors."""
    return Tiling(256), Tiling(128), Tiling(64)


def _plain(g: ImageBatchGeometry) -> Any:
    """A device function of ``(j, values, table, images, first, known, row, column)``: pixel j to the right of it."""
    top, left = (g.p - g.h) // 2, (g.q - g.w) // 2

    @device_function
    def pixel(j: int, values: Any, table: Any, images: Any, first: Any, known: Any, row: Any, column: Any) -> None:
        y, x = row - top, column + (j - left)
        byte = ldg_if(images, first + (y * g.w + x), known & (u32(y) < g.h) & (u32(x) < g.w))
        values[j] = ld(table, byte)

    return pixel


def _warped(g: ImageBatchGeometry, dtype: str) -> Any:
    """Likewise, of ``(j, values, table, images, first, known, x, y, across, down)``.

    ``x`` and ``y`` are the point of pixel 0 in the image, in columns and rows, plus one; ``across`` and ``down`` are
    what one pixel further adds to them.
    """
    real = getattr(types, dtype)

    @device_function
    def pixel(
        j: int,
        values: Any,
        table: Any,
        images: Any,
        first: Any,
        known: Any,
        x: Any,
        y: Any,
        across: Any,
        down: Any,
    ) -> None:
        x, y = fma(across, real(j), x), fma(down, real(j), y)
        # Also false for a NaN, which is no point of the image.
        inside = known & (x > real(0)) & (x < real(g.w + 1)) & (y > real(0)) & (y < real(g.h + 1))
        # What is outside need not fit into an integer.
        x, y = x if inside else real(0), y if inside else real(0)
        # Neither is negative: rounding towards zero is rounding down.
        right, below = types.int32(x), types.int32(y)
        to_right, to_below = x - real(right), y - real(below)
        has_left, has_right = inside & (right > 0), inside & (right < g.w)
        has_above, has_below = below > 0, below < g.h
        at = first + ((below - 1) * g.w + (right - 1))
        a = ld(table, ldg_if(images, at, has_left & has_above))
        b = ld(table, ldg_if(images, at + 1, has_right & has_above))
        c = ld(table, ldg_if(images, at + g.w, has_left & has_below))
        d = ld(table, ldg_if(images, at + (g.w + 1), has_right & has_below))
        above = fma(to_right, b - a, a)
        values[j] = fma(to_below, fma(to_right, d - c, c) - above, above)

    return pixel


@specialised
def _kernel(
    geometry: ImageBatchGeometry, threads: int, dtype: str, vector: int, counts_steps: bool
) -> Callable[..., None]:
    """The kernel for images of a geometry; ``geometry.n`` and ``geometry.total`` are not looked at."""
    g, real = geometry, getattr(types, dtype)
    vectors, warps, not_a_number = g.p * g.q // vector, g.warps, float("nan")
    plain, warped = unrolled(_plain(g), vector), unrolled(_warped(g, dtype), vector)
    _, _, store = vector_access(vector)
    # Of the input's middle, from which transforms count.
    middle_y, middle_x = (g.p - 1) / 2, (g.q - 1) / 2
    # From there to the image's corner, and one more: see `_warped`.
    origin_y, origin_x = middle_y - (g.p - g.h) // 2 + 1, middle_x - (g.q - g.w) // 2 + 1

    @device_function
    def coefficients(transforms: Any, at: Any, known: Any) -> Any:
        return ldg_if(transforms, at, known), ldg_if(transforms, at + 1, known), ldg_if(transforms, at + 2, known)

    @device_function
    def forget(j: int, values: Any) -> None:
        values[j] = real(not_a_number)

    forget_all = unrolled(forget, vector)

    @jit(launch_bounds=threads)
    def image_batch(
        table: Any,
        images: Any,
        labels: Any,
        index: Any,
        transforms: Any,
        out: Any,
        out_labels: Any,
        step: Any,
        total: Any,
        batch: Any,
    ) -> None:
        shared = cuda.shared.array(_BYTES, real)
        values = cuda.local.array(vector, real)
        entry = u32(cuda.threadIdx.x)
        while entry < _BYTES:
            st(shared, entry, ldg(table, entry))
            entry += threads
        thread = u32(cuda.blockIdx.x) * threads + cuda.threadIdx.x
        n = thread // vectors
        if counts_steps:
            source = ldg_if(index, u32(ldg(step, 0)) * batch + n, n < batch)
        else:
            source = ldg_if(index, n, n < batch)
        cuda.syncthreads()
        if n < batch:
            known = (source >= 0) & (source < total)
            source = source if known else types.int64(0)
            at = thread % vectors * vector
            row, column = i32(at // g.q), i32(at % g.q)
            first = source * (g.h * g.w)
            if warps:
                a, b, c = coefficients(transforms, source * 6, known)
                d, e, f = coefficients(transforms, source * 6 + 3, known)
                x, y = real(column) - real(middle_x), real(row) - real(middle_y)
                x_in_image = fma(a, x, fma(b, y, c)) + real(origin_x)
                y_in_image = fma(d, x, fma(e, y, f)) + real(origin_y)
                warped(values, shared, images, first, known, x_in_image, y_in_image, a, d)
            else:
                plain(values, shared, images, first, known, row, column)
            if not known:
                forget_all(values)
            store(values, out, thread * vector)
            if at == 0:
                label = ldg_if(labels, source, known)
                st(out_labels, n, label if known else types.int64(-1))

    return image_batch


def calls(a: Arguments, geometry: ImageBatchGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a thread for each pixel or vector of pixels."""
    vector = widest_access(geometry.q, a.dtype) if a.aligned("out") else 1
    kernel = _kernel(geometry._replace(n=1, total=1), tiling.threads, a.dtype, vector, a.has("step"))
    blocks = -(-(a.out.size // vector) // tiling.threads)
    read, written = (a.table, a.images, a.labels, a.index, a.transforms), (a.out, a.out_labels)
    yield call(kernel, blocks, tiling.threads, *read, *written, a.step, geometry.total, geometry.n)
