"""How many rows of logits are largest at their label: one launch of one block.

A thread goes through a row, and keeps the largest value and where it is, the first of equals; the barrier at which the
block meets counts the rows where that is the label. Then the block goes on with its next rows. As in NumPy's argmax the
first NaN is the largest. A label that is no class is never right.

With a log it also closes a training step: the count and the loss go to the step's place in the log, and the number of
the step moves on. So the repetitions of a captured graph leave their results one behind the other.

Shared memory: none. Registers aimed at: at most 40. Expected bottleneck: latency; for rows of ten logits the loads of
all of them are under way at once. Many or long rows are read slowly by one block, but the network that they come from
takes far longer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Call, call, i32, jit, ld, ldg, ldg_if, st, u32
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads of the block, at most 1024.
    """

    threads: int


def tilings(shape: tuple[int, int]) -> tuple[Tiling, ...]:
    """As many threads as there are rows, from 64 to 512; half and twice as many."""
    threads = 64
    while threads < 512 and threads < shape[0]:
        threads *= 2
    return Tiling(threads), Tiling(threads // 2), Tiling(2 * threads)


@specialised
def _kernel(classes: int, threads: int, dtype: str, logs: bool) -> Callable[..., None]:
    real, lowest = getattr(types, dtype), float("-inf")

    @jit(launch_bounds=threads)
    def count_correct(logits: Any, labels: Any, out: Any, loss: Any, losses: Any, step: Any, rows: Any) -> None:
        count, first_row = i32(0), u32(0)
        # All threads make all passes, because they meet at the end of each.
        while first_row < rows:
            row = first_row + cuda.threadIdx.x
            is_row = row < rows
            first = row * classes
            best, winner = real(lowest), i32(0)
            for j in range(classes):
                value = ldg_if(logits, first + j, is_row)
                # The first NaN wins, as it is not equal to itself; nothing is larger.
                wins = (value > best) | ((value != value) & (best == best))
                best, winner = value if wins else best, i32(j) if wins else winner
            right = i32(1) if is_row & (ldg_if(labels, row, is_row) == winner) else i32(0)
            count += cuda.syncthreads_count(right)
            first_row += threads
        if cuda.threadIdx.x == 0:
            if logs:
                at = ld(step, 0)
                st(out, at, types.int32(count))
                st(losses, at, ldg(loss, 0))
                st(step, 0, types.int32(at + 1))
            else:
                st(out, 0, types.int32(count))

    return count_correct


def calls(a: Arguments, shape: tuple[int, int], tiling: Tiling) -> Iterator[Call]:
    """One launch of one block; for no rows too, of which 0 are right."""
    kernel = _kernel(shape[1], tiling.threads, a.dtype, a.has("step"))
    yield call(kernel, 1, tiling.threads, a.logits, a.labels, a.out, a.loss, a.losses, a.step, shape[0])
