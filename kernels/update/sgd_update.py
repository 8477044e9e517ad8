"""One step of stochastic gradient descent, in place: PyTorch's formula, with momentum, dampening, Nesterov's variant.

A thread updates a vector of 128 bits: see ``elementwise``. Shared memory: none. Registers aimed at: at most 32, for
full occupancy. Expected bottleneck: memory bandwidth; with momentum three elements are read and two written for each
parameter. Small parameters cost the launch alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Launch, aligned, array_type, device_function, fma, jit, unrolled, vector_access
from gpuconv.kernels.pointwise.elementwise import Tiling, each, launch_of, supports, tilings, vector_of

__all__ = ["Rule", "Tiling", "launch", "launches", "supports", "tilings"]


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


def step_of(dtype: str, vector: int, rule: Rule) -> Any:
    """A device function that updates ``vector`` elements: of ``i, param, grad, velocity`` and the numbers."""
    real = getattr(types, dtype)
    load, load_read_only, store = vector_access(vector)
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
        load_read_only(grads, grad, i)
        if has_momentum:
            load(velocities, velocity, i)
        descend_all(params, grads, velocities, *numbers)
        if has_momentum:
            store(velocities, velocity, i)
        store(params, param, i)

    return step


def rule_of(*, has_velocity: bool, weight_decay: float, nesterov: bool) -> Rule:
    """The terms that an update has."""
    return Rule(has_velocity, nesterov, weight_decay != 0)


def numbers_of(*, lr: float, momentum: float, dampening: float, weight_decay: float) -> tuple[float, ...]:
    """What the formula takes that is the same for all elements, as :func:`step_of` takes it."""
    return lr, momentum, 1 - dampening, weight_decay


@specialised
def _kernel(tiling: Tiling, dtype: str, vector: int, rule: Rule) -> Callable[..., None]:
    work = each(step_of(dtype, vector, rule), step_of(dtype, 1, rule), tiling.threads, vector)

    @jit(launch_bounds=tiling.threads)
    def sgd_update(
        param: Any, grad: Any, velocity: Any, lr: Any, momentum: Any, share: Any, weight_decay: Any, elements: Any
    ) -> None:
        work(elements, param, grad, velocity, lr, momentum, share, weight_decay)

    return sgd_update


def launches(
    shape: tuple[int, ...], tiling: Tiling, dtype: Any, *, rule: Rule | None = None, aligned16: bool = True
) -> tuple[Launch, ...]:
    """The one launch of :func:`launch`, or none for an empty array.

    Args:
        shape, tiling, dtype: see :func:`launch`.
        rule: which terms the formula has; None for momentum alone.
        aligned16: all arrays begin at multiples of 16 bytes.

    Raises:
        ValueError: the arrays are too large for 32-bit offsets.
    """
    if not (answer := supports(shape)):
        raise ValueError(f"sgd_update: {answer}")
    elements, name, vector = math.prod(shape), np.dtype(dtype).name, vector_of(dtype, aligned16)
    if not elements:
        return ()
    signature = (array_type(name),) * 3 + (getattr(types, name),) * 4 + (types.int64,)
    return (launch_of(_kernel(tiling, name, vector, rule or Rule()), signature, elements, tiling, vector),)


def launch(
    param: Any,
    grad: Any,
    velocity: Any,
    shape: tuple[int, ...],
    tiling: Tiling,
    stream: Any = None,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """``g = grad + weight_decay · param; v = momentum · v + (1 - dampening) · g; param -= lr · v``.

    With ``nesterov`` the last one is ``param -= lr · (g + momentum · v)``, without a velocity (None) it is
    ``param -= lr · g``. ``param`` and ``velocity`` are changed in place; all arrays are of ``shape``.

    Raises:
        ValueError: the arrays are too large for 32-bit offsets.
    """
    rule = rule_of(has_velocity=velocity is not None, weight_decay=weight_decay, nesterov=nesterov)
    # A kernel without momentum does not look at its third array.
    arrays, real = (param, grad, param if velocity is None else velocity), param.dtype.type
    numbers = numbers_of(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)
    for one in launches(shape, tiling, param.dtype, rule=rule, aligned16=aligned(*arrays)):
        one(stream, *(array.reshape(-1) for array in arrays), *(real(number) for number in numbers), param.size)
