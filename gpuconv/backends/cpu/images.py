"""Compiled loops for the CPU that make network inputs from byte images: looked up, padded and moved in one pass.

NumPy gathers the images first: it copies each of them at once, where a loop that looks up byte after byte would wait
for memory again and again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import types

from gpuconv.backends.cpu.compile import ELEMENTS, SIZE, kernel, split

_BYTES = types.CPointer(types.uint8)


@dataclass(frozen=True)
class Images:
    """What is compiled for: images (h, w), inputs (p, q), and whether images have transforms."""

    dtype: str
    h: int
    w: int
    p: int
    q: int
    warps: bool


@kernel(ELEMENTS, _BYTES, ELEMENTS, ELEMENTS, SIZE, SIZE)
def image_batch(plan: Images):
    """``(table, images, transforms, out, n, chunks)``; the formula is that of the NumPy backend."""
    h, w, p, q, warps = plan.h, plan.w, plan.p, plan.q, plan.warps
    top, left = (p - h) // 2, (q - w) // 2
    real = np.dtype(plan.dtype).type
    zero, middle_x, middle_y = real(0), real((q - 1) / 2), real((p - 1) / 2)
    origin_x, origin_y = real((q - 1) / 2 - left + 1), real((p - 1) / 2 - top + 1)
    end_x, end_y = real(w + 1), real(h + 1)

    def compute(chunk, table, images, transforms, out, n, chunks):
        black = table[0]
        begin, end = split(n, chunks, chunk)
        for i in range(begin, end):
            image, target = i * h * w, i * p * q
            if not warps:
                for k in range(target, target + p * q):
                    out[k] = black
                for row in range(h):
                    source, at = image + row * w, target + (top + row) * q + left
                    for k in range(w):
                        out[at + k] = table[images[source + k]]
                continue
            matrix = 6 * i
            a, b, c = transforms[matrix], transforms[matrix + 1], transforms[matrix + 2]
            d, e, f = transforms[matrix + 3], transforms[matrix + 4], transforms[matrix + 5]
            for row in range(p):
                y = real(row) - middle_y
                across, down = b * y + c, e * y + f
                for k in range(q):
                    x = real(k) - middle_x
                    column, line = a * x + across + origin_x, d * x + down + origin_y
                    value = black
                    if column > zero and column < end_x and line > zero and line < end_y:
                        right, below = int(column), int(line)
                        to_right, to_below = column - real(right), line - real(below)
                        at = image + (below - 1) * w + right - 1
                        has_left, has_right, has_above, has_below = right > 0, right < w, below > 0, below < h
                        first = table[images[at]] if has_left and has_above else black
                        second = table[images[at + 1]] if has_right and has_above else black
                        third = table[images[at + w]] if has_left and has_below else black
                        fourth = table[images[at + w + 1]] if has_right and has_below else black
                        upper = to_right * (second - first) + first
                        value = to_below * (to_right * (fourth - third) + third - upper) + upper
                    out[target + row * q + k] = value

    return compute
