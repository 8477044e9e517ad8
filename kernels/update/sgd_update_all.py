"""One step of stochastic gradient descent for all parameters of a network, in place and in one launch.

Elements are updated as in ``sgd_update``, and blocks dealt out to the parameters as ``all_at_once`` says. Shared
memory: none. Registers aimed at: at most 40. Expected bottleneck: the latency of the launch and of one load for
a small network, memory bandwidth for a large one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Launch, device_function, jit, ldg
from gpuconv.kernels.pointwise.elementwise import Tiling, each
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
from gpuconv.kernels.update.sgd_update import Rule, numbers_of, rule_of, step_of

__all__ = [
    "WIDTH", "Rule", "Tiling", "launch", "launches", "numbers_array", "numbers_of", "numbers_size", "rule_of",
    "supports", "tilings",
]  # fmt: skip

#: Numbers of a step: those of :func:`numbers_of`.
WIDTH = 4


@specialised
def _kernel(
    sizes: tuple[int, ...], tiling: Tiling, dtype: str, vector: int, first_count: int, rows_at: int, rule: Rule
) -> Callable[..., None]:
    starts = first_blocks(sizes, tiling, vector)
    take_row = taking_row(dtype, first_count, rows_at, WIDTH)

    def work_of(number: int) -> Any:
        size, at = sizes[number], 3 * number
        work = each(
            step_of(dtype, vector, rule), step_of(dtype, 1, rule), tiling.threads, vector, first_block=starts[number]
        )

        def update(arrays: Any, *numbers: Any) -> None:
            work(size, arrays[at], arrays[at + 1], arrays[at + 2], *numbers)

        return device_function(update)

    update_one = dispatch([work_of(number) for number in range(len(sizes))], starts)

    @jit(launch_bounds=tiling.threads)
    def sgd_update_all(arrays: Any, numbers: Any) -> None:
        at = take_row(numbers)
        lr, momentum = ldg(numbers, at), ldg(numbers, at + 1)
        update_one(arrays, lr, momentum, ldg(numbers, at + 2), ldg(numbers, at + 3))

    return sgd_update_all


def launches(
    sizes: tuple[int, ...], tiling: Tiling, dtype: Any, *, rule: Rule | None = None, aligned16: bool = True
) -> tuple[Launch, ...]:
    """The launches of :func:`launch`: one for each 16 parameters that have elements.

    Args:
        sizes, tiling, dtype: see :func:`launch`.
        rule: which terms the formula has; None for momentum alone.
        aligned16: all arrays begin at multiples of 16 bytes.

    Raises:
        ValueError: a parameter is too large for 32-bit offsets.
    """
    chosen = rule or Rule()

    def kernel(*arguments: Any) -> Any:
        return _kernel(*arguments, chosen)

    return launches_of(kernel, sizes, tiling, dtype, 3, aligned16=aligned16, op="sgd_update_all")


def launch(
    params: Sequence[Any],
    grads: Sequence[Any],
    velocities: Sequence[Any],
    numbers: Any,
    sizes: tuple[int, ...],
    tiling: Tiling,
    stream: Any = None,
    *,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """What ``sgd_update`` does, for several parameters of ``sizes`` elements; velocities are arrays or all None.

    ``numbers``, an array of the parameters' type that begins with :func:`numbers_array`, has the step's, and is moved
    on to the next step; ``weight_decay`` and ``nesterov`` say which terms the formula has.

    Raises:
        ValueError: a parameter is too large for 32-bit offsets.
    """
    has_velocity = any(velocity is not None for velocity in velocities)
    rule = rule_of(has_velocity=has_velocity, weight_decay=weight_decay, nesterov=nesterov)
    # A kernel without momentum does not look at its third array.
    groups = (params, grads, velocities if has_velocity else params)
    dtype = params[0].dtype if params else numbers.dtype
    run(functools.partial(launches, sizes, tiling, dtype, rule=rule), groups, numbers, stream)
