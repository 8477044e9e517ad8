"""One step of stochastic gradient descent for all parameters of a network, in place and in one launch.

``g = grad + weight_decay · param; v = momentum · v + (1 - dampening) · g; param -= lr · v``. With Nesterov's momentum
the last one is ``param -= lr · (g + momentum · v)``, without velocities it is ``param -= lr · g``.

A thread updates a vector of 128 bits, see ``elementwise``; blocks are dealt out to the parameters as ``all_at_once``
says. Shared memory: none. Registers aimed at: at most 40. Expected bottleneck: the latency of the
launch and of one load for a small network, memory bandwidth for a large one.
"""

from __future__ import annotations

import dataclasses
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
WIDTH = 4


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which terms the formula has: one that is left out does not spread a NaN.

    Attributes:
        momentum: there is a velocity.
        nesterov: step along the gradient and the new velocity.
        weight_decay: add a multiple of the parameters to the gradient.
    """

    momentum: bool = True
    nesterov: bool = False
    weight_decay: bool = False


def _step(dtype: str, vector: int, rule: Rule, take: Any = None) -> Any:
    """A device function that updates ``vector`` elements: of ``i, param, grad, velocity`` and the numbers.

    ``take(grads, grad, i)`` takes the gradients; by default from the array ``grad``.
    """
    real = getattr(types, dtype)
    load, load_read_only, store = vector_access(vector)
    take = take or load_read_only
    has_momentum, nesterov, has_decay = rule.momentum, rule.nesterov, rule.weight_decay

    @device_function
    def descend(
        j: int, params: Any, grads: Any, velocities: Any, lr: Any, momentum: Any, share: Any, weight_decay: Any
    ) -> None:
        change = grads[j]
        if has_decay:
            change = fma(weight_decay, params[j], change)
        if has_momentum:
            velocities[j] = fma(momentum, velocities[j], share * change)
            change = fma(momentum, velocities[j], change) if nesterov else velocities[j]
        params[j] = fma(-lr, change, params[j])

    descend_all = unrolled(descend, vector)

    @device_function
    def step(i: Any, param: Any, grad: Any, velocity: Any, *numbers: Any) -> None:
        params, grads = cuda.local.array(vector, real), cuda.local.array(vector, real)
        velocities = cuda.local.array(vector, real)
        load(params, param, i)
        take(grads, grad, i)
        if has_momentum:
            load(velocities, velocity, i)
        descend_all(params, grads, velocities, *numbers)
        if has_momentum:
            store(velocities, velocity, i)
        store(params, param, i)

    return step


def numbers_of(*, lr: float, momentum: float, dampening: float, weight_decay: float) -> tuple[float, ...]:
    """What the formula takes that is the same for all elements, as the kernel takes it."""
    return lr, momentum, 1 - dampening, weight_decay


@specialised
def _kernel(part: Part, rule: Rule) -> Callable[..., None]:
    take_row = taking_row(part, WIDTH)
    update = updating(part, lambda count, *take: _step(part.dtype, count, rule, *take), arrays_each=3)

    @jit(launch_bounds=part.tiling.threads)
    def sgd_update_all(arrays: Any, numbers: Any) -> None:
        at = take_row(numbers)
        lr, momentum = ldg(numbers, at), ldg(numbers, at + 1)
        update(arrays, lr, momentum, ldg(numbers, at + 2), ldg(numbers, at + 3))

    return sgd_update_all


def calls(a: Arguments, geometry: Any, tiling: Tiling) -> Iterator[Call]:
    """A launch for each 16 parameters that have elements; of their sizes, or of an ``UpdateGeometry``."""
    # Velocities are arrays, or all None.
    rule = Rule(any(a.has("velocities")), bool(a.nesterov), a.weight_decay != 0)

    return calls_of(lambda part: _kernel(part, rule), a, ("params", "grads", "velocities"), geometry, tiling)
