"""One step of Adam or AdamW for all parameters of a network, in place and in one launch.

Elements are updated as in ``adam_update``, and blocks dealt out to the parameters as ``all_at_once`` says. Shared
memory: none. Registers aimed at: at most 64. Expected bottleneck: the latency of the launch and of one load for
a small network, memory bandwidth for a large one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Launch, device_function, jit, ldg
from gpuconv.kernels.pointwise.elementwise import Tiling, each
from gpuconv.kernels.update.adam_update import Rule, numbers_of, rule_of, step_of
from gpuconv.kernels.update.all_at_once import (
    dispatch,
    first_blocks,
    launches_of,
    numbers_array,
    numbers_size,
    run,
    supports,
    taking_row,
    tilings,
)

__all__ = [
    "WIDTH", "Rule", "Tiling", "launch", "launches", "numbers_array", "numbers_of", "numbers_size", "rule_of",
    "supports", "tilings",
]  # fmt: skip

#: Numbers of a step: those of :func:`numbers_of`.
WIDTH = 8


@specialised
def _kernel(
    sizes: tuple[int, ...], tiling: Tiling, dtype: str, vector: int, first_count: int, rows_at: int, rule: Rule
) -> Callable[..., None]:
    starts = first_blocks(sizes, tiling, vector)
    take_row = taking_row(dtype, first_count, rows_at, WIDTH)

    def work_of(number: int) -> Any:
        size, at = sizes[number], 4 * number
        work = each(
            step_of(dtype, vector, rule), step_of(dtype, 1, rule), tiling.threads, vector, first_block=starts[number]
        )

        def update(arrays: Any, *numbers: Any) -> None:
            work(size, arrays[at], arrays[at + 1], arrays[at + 2], arrays[at + 3], *numbers)

        return device_function(update)

    update_one = dispatch([work_of(number) for number in range(len(sizes))], starts)

    @jit(launch_bounds=tiling.threads)
    def adam_update_all(arrays: Any, numbers: Any) -> None:
        at = take_row(numbers)
        rate, beta1, beta2 = ldg(numbers, at), ldg(numbers, at + 1), ldg(numbers, at + 2)
        share1, share2 = ldg(numbers, at + 3), ldg(numbers, at + 4)
        correction, eps, decay = ldg(numbers, at + 5), ldg(numbers, at + 6), ldg(numbers, at + 7)
        update_one(arrays, rate, beta1, beta2, share1, share2, correction, eps, decay)

    return adam_update_all


def launches(
    sizes: tuple[int, ...], tiling: Tiling, dtype: Any, *, rule: Rule | None = None, aligned16: bool = True
) -> tuple[Launch, ...]:
    """The launches of :func:`launch`: one for each 16 parameters that have elements.

    Args:
        sizes, tiling, dtype: see :func:`launch`.
        rule: which terms the formula has; None for Adam without weight decay.
        aligned16: all arrays begin at multiples of 16 bytes.

    Raises:
        ValueError: a parameter is too large for 32-bit offsets.
    """
    chosen = rule or Rule()

    def kernel(*arguments: Any) -> Any:
        return _kernel(*arguments, chosen)

    return launches_of(kernel, sizes, tiling, dtype, 4, aligned16=aligned16, op="adam_update_all")


def launch(
    params: Sequence[Any],
    grads: Sequence[Any],
    means: Sequence[Any],
    squares: Sequence[Any],
    numbers: Any,
    sizes: tuple[int, ...],
    tiling: Tiling,
    stream: Any = None,
    *,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """What ``adam_update`` does, for several parameters of ``sizes`` elements.

    ``numbers``, an array of the parameters' type that begins with :func:`numbers_array`, has the step's, and is moved
    on to the next step; ``weight_decay`` and ``decoupled`` say which terms the formula has.

    Raises:
        ValueError: a parameter is too large for 32-bit offsets.
    """
    rule = rule_of(weight_decay=weight_decay, decoupled=decoupled)
    dtype = params[0].dtype if params else numbers.dtype
    run(functools.partial(launches, sizes, tiling, dtype, rule=rule), (params, grads, means, squares), numbers, stream)
