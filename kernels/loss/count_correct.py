"""How many rows of logits are largest at their label: one launch of one block.

``lanes`` threads share a row, one for ten classes, a warp for a thousand. Lane j goes through the classes ``j, j +
lanes, ...``, which join with those of its neighbours, and keeps the largest value and where it is, the first of equals.
What the lanes found meets by shuffles; the barrier at which the block meets counts the rows where the first lane has
found the label. Then the block goes on with its next rows. As in NumPy's argmax the first NaN is the largest. A label
that is no class is never right.

With a log it also closes a training step: the count and the loss go to the step's place in the log, and the number of
the step moves on. So the repetitions of a captured graph leave their results one behind the other.

Shared memory: none. Registers aimed at: at most 40. Expected bottleneck: latency; for rows of ten logits the loads of
all of them are under way at once. A thread for each row of 1000 classes took an H100 77 µs for 32 rows: each load of a
warp touched 32 lines, and they came one after the other. Many rows are read slowly by one block, but the network that
they come from takes far longer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Call, call, device_function, i32, jit, ld, ldg, ldg_if, st, u32
from gpuconv.kernels.device.reduce import ALL_LANES
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads of the block, at most 1024; for more than one lane a multiple of 32.
        lanes: threads a row, a power of two, at most 32.
    """

    threads: int
    lanes: int


def tilings(shape: tuple[int, int]) -> tuple[Tiling, ...]:
    """As many threads as the rows have lanes, from 64 to 512, or 1024 for long rows; half and twice as many."""
    rows, columns = shape
    lanes = 1
    while columns > 16 and lanes < 32 and lanes * 8 < columns:
        lanes *= 2
    most, threads = 512 if lanes == 1 else 1024, 64
    while threads < most and threads < rows * lanes:
        threads *= 2
    choices = threads, threads // 2, min(1024, 2 * threads)
    return tuple(dict.fromkeys(Tiling(count, lanes) for count in choices))


@specialised
def _kernel(classes: int, tiling: Tiling, dtype: str, logs: bool) -> Callable[..., None]:
    real, lowest = getattr(types, dtype), float("-inf")
    threads, lanes = tiling.threads, tiling.lanes
    rows_at_once, steps = threads // lanes, -(-classes // lanes)

    @device_function
    def together(best: Any, winner: Any) -> Any:
        """The largest of a row's lanes, of equals that with the lowest number."""
        distance = lanes // 2
        while distance > 0:
            other = cuda.shfl_xor_sync(ALL_LANES, best, distance)
            place = cuda.shfl_xor_sync(ALL_LANES, winner, distance)
            alike = (other == best) | ((other != other) & (best != best))
            wins = (other > best) | ((other != other) & (best == best)) | (alike & (place < winner))
            best, winner = other if wins else best, place if wins else winner
            distance = distance // 2
        return winner

    @jit(launch_bounds=threads)
    def count_correct(logits: Any, labels: Any, out: Any, loss: Any, losses: Any, step: Any, rows: Any) -> None:
        count, first_row = i32(0), u32(0)
        row_here, lane = divmod(u32(cuda.threadIdx.x), lanes)
        # All threads make all passes, because they meet at the end of each.
        while first_row < rows:
            row = first_row + row_here
            is_row = row < rows
            first = row * classes + lane
            best, winner = real(lowest), types.int32(lane)
            for j in range(steps):
                here = lane + j * lanes < classes if classes % lanes else True
                value = ldg_if(logits, first + j * lanes, is_row & here)
                # The first NaN wins, as it is not equal to itself; nothing is larger.
                wins = here & ((value > best) | ((value != value) & (best == best)))
                best = value if wins else best
                winner = types.int32(lane + j * lanes) if wins else winner
            if lanes > 1:
                winner = together(best, winner)
            right = is_row & (lane == 0) & (ldg_if(labels, row, is_row) == winner)
            count += cuda.syncthreads_count(i32(1) if right else i32(0))
            first_row += rows_at_once
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
    kernel = _kernel(shape[1], tiling, a.dtype, a.has("step"))
    yield call(kernel, 1, tiling.threads, a.logits, a.labels, a.out, a.loss, a.losses, a.step, shape[0])
