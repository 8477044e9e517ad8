"""One step of Adam (Kingma & Ba, 2015) or AdamW (Loshchilov & Hutter, 2019) for all parameters, in one launch.

``param -= lr / (1 - beta1^step) · mean / (sqrt(square) / sqrt(1 - beta2^step) + eps)``, with the new moments, which are
changed in place, too. ``step`` counts from 1. Square root and divisions are the exactly rounded ones, a dozen
instructions each, which the memory's time covers.

A thread updates a vector of 128 bits, see ``elementwise``; blocks are dealt out to the parameters as ``all_at_once``
says. Shared memory: none. Registers aimed at: at most 64. Expected bottleneck: the latency of the
launch and of one load for a small network, memory bandwidth for a large one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Call, device_function, fma, jit, ldg, unrolled, vector_access
from gpuconv.kernels.pointwise.elementwise import Tiling
from gpuconv.kernels.update.all_at_once import (
    Part,
    calls_of,
    numbers_array,
    numbers_size,
    supports,
    taking_row,
    tilings,
    updating,
)
from gpuconv.kernels.variant import Arguments

__all__ = ["WIDTH", "Rule", "Tiling", "calls", "numbers_array", "numbers_of", "numbers_size", "supports", "tilings"]

#: Numbers of a step: those of :func:`numbers_of`.
WIDTH = 8


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which terms the formula has: one that is left out does not spread a NaN.

    Attributes:
        weight_decay: add a multiple of the parameters to the gradient (Adam).
        shrink: multiply the parameters before the step (AdamW).
    """

    weight_decay: bool = False
    shrink: bool = False


def _step(dtype: str, vector: int, rule: Rule, take: Any = None) -> Any:
    """A device function that updates ``vector`` elements: of ``i, param, grad, mean, square`` and the numbers.

    ``take(grads, grad, i)`` takes the gradients; by default from the array ``grad``.
    """
    real = getattr(types, dtype)
    load, load_read_only, store = vector_access(vector)
    take = take or load_read_only
    has_decay, shrinks = rule.weight_decay, rule.shrink

    @device_function
    def adapt(
        j: int,
        params: Any,
        grads: Any,
        means: Any,
        squares: Any,
        rate: Any,
        beta1: Any,
        beta2: Any,
        share1: Any,
        share2: Any,
        correction: Any,
        eps: Any,
        decay: Any,
    ) -> None:
        change = grads[j]
        if has_decay:
            change = fma(decay, params[j], change)
        if shrinks:
            params[j] = decay * params[j]
        means[j] = fma(beta1, means[j], share1 * change)
        squares[j] = fma(beta2, squares[j], share2 * change * change)
        denominator = real(math.sqrt(squares[j])) / correction + eps
        params[j] = fma(-rate, means[j] / denominator, params[j])

    adapt_all = unrolled(adapt, vector)

    @device_function
    def step(i: Any, param: Any, grad: Any, mean: Any, square: Any, *numbers: Any) -> None:
        params, grads = cuda.local.array(vector, real), cuda.local.array(vector, real)
        means, squares = cuda.local.array(vector, real), cuda.local.array(vector, real)
        load(params, param, i)
        take(grads, grad, i)
        load(means, mean, i)
        load(squares, square, i)
        adapt_all(params, grads, means, squares, *numbers)
        store(means, mean, i)
        store(squares, square, i)
        store(params, param, i)

    return step


def numbers_of(
    *, step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool
) -> tuple[float, ...]:
    """What is the same for all elements, as the kernel takes it: computed here, in double precision."""
    return (
        lr / (1 - beta1**step),
        beta1,
        beta2,
        1 - beta1,
        1 - beta2,
        math.sqrt(1 - beta2**step),
        eps,
        1 - lr * weight_decay if decoupled else weight_decay,
    )


@specialised
def _kernel(part: Part, rule: Rule) -> Callable[..., None]:
    take_row = taking_row(part, WIDTH)
    update = updating(part, lambda count, *take: _step(part.dtype, count, rule, *take), arrays_each=4)

    @jit(launch_bounds=part.tiling.threads)
    def adam_update_all(arrays: Any, numbers: Any) -> None:
        at = take_row(numbers)
        rate, beta1, beta2 = ldg(numbers, at), ldg(numbers, at + 1), ldg(numbers, at + 2)
        share1, share2 = ldg(numbers, at + 3), ldg(numbers, at + 4)
        correction, eps, decay = ldg(numbers, at + 5), ldg(numbers, at + 6), ldg(numbers, at + 7)
        update(arrays, rate, beta1, beta2, share1, share2, correction, eps, decay)

    return adam_update_all


def calls(a: Arguments, geometry: Any, tiling: Tiling) -> Iterator[Call]:
    """A launch for each 16 parameters that have elements; of their sizes, or of an ``UpdateGeometry``."""
    decays, decoupled = a.weight_decay != 0, bool(a.decoupled)
    rule = Rule(decays and not decoupled, decays and decoupled)

    return calls_of(lambda part: _kernel(part, rule), a, ("params", "grads", "means", "squares"), geometry, tiling)
