"""One step of Adam or AdamW for all parameters of a network, in place and in one launch.

Elements are updated as in ``adam_update``, and blocks dealt out to the parameters as ``all_at_once`` says. Shared
memory: none. Registers aimed at: at most 64. Expected bottleneck: the latency of the launch and of one load for
a small network, memory bandwidth for a large one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from gpuconv.kernels.adam_update import Rule, numbers_of, rule_of, step_of
from gpuconv.kernels.all_at_once import dealing, first_blocks, launches_of, run, supports, tilings
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Launch, device_function, jit, ldg
from gpuconv.kernels.elementwise import Tiling, each

__all__ = ["Rule", "Tiling", "launch", "launches", "numbers_of", "supports", "tilings"]


@specialised
def _kernel(sizes: tuple[int, ...], tiling: Tiling, dtype: str, vector: int, rule: Rule) -> Callable[..., None]:
    starts = first_blocks(sizes, tiling, vector)

    def work_of(number: int) -> Any:
        size, at = sizes[number], 4 * number
        work = each(
            step_of(dtype, vector, rule), step_of(dtype, 1, rule), tiling.threads, vector, first_block=starts[number]
        )

        def update(arrays: Any, *numbers: Any) -> None:
            work(size, arrays[at], arrays[at + 1], arrays[at + 2], arrays[at + 3], *numbers)

        return device_function(update)

    update_one = dealing([work_of(number) for number in range(len(sizes))], starts)

    @jit(launch_bounds=tiling.threads)
    def adam_update_all(arrays: Any, numbers: Any) -> None:
        rate, beta1, beta2 = ldg(numbers, 0), ldg(numbers, 1), ldg(numbers, 2)
        share1, share2, correction = ldg(numbers, 3), ldg(numbers, 4), ldg(numbers, 5)
        update_one(arrays, rate, beta1, beta2, share1, share2, correction, ldg(numbers, 6), ldg(numbers, 7))

    return adam_update_all


def launches(
    sizes: tuple[int, ...], tiling: Tiling, dtype: Any, *, rule: Rule | None = None, wide: bool = True
) -> tuple[Launch, ...]:
    """The launches of :func:`launch`: one for each 16 parameters that have elements.

    Args:
        sizes, tiling, dtype: see :func:`launch`.
        rule: which terms the formula has; None for Adam without weight decay.
        wide: all arrays begin at multiples of 16 bytes.

    Raises:
        ValueError: a parameter is too large for 32-bit offsets.
    """
    chosen = rule or Rule()

    def kernel(*arguments: Any) -> Any:
        return _kernel(*arguments, chosen)

    return launches_of(kernel, sizes, tiling, dtype, 4, wide=wide, op="adam_update_all")


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

    ``numbers`` is an array with :func:`numbers_of`, of the parameters' type; ``weight_decay`` and ``decoupled`` say
    which terms the formula has.

    Raises:
        ValueError: a parameter is too large for 32-bit offsets.
    """
    rule = rule_of(weight_decay=weight_decay, decoupled=decoupled)
    dtype = params[0].dtype if params else numbers.dtype
    run(functools.partial(launches, sizes, tiling, dtype, rule=rule), (params, grads, means, squares), numbers, stream)
