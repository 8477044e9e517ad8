"""One step of Adam (Kingma & Ba, 2015) or AdamW (Loshchilov & Hutter, 2019), in place, as PyTorch has it.

A thread updates a vector of 128 bits: see ``elementwise``. Shared memory: none. Registers aimed at: at most 64.
Expected bottleneck: memory bandwidth; four elements are read and three written for each parameter. Square root and
divisions are the exactly rounded ones, a dozen instructions each, which the memory's time covers. Small parameters cost
the launch alone.
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
        weight_decay: add a multiple of the parameters to the gradient (Adam).
        shrink: multiply the parameters before the step (AdamW).
    """

    weight_decay: bool = False
    shrink: bool = False


def step_of(dtype: str, vector: int, rule: Rule) -> Any:
    """A device function that updates ``vector`` elements: of ``i, param, grad, mean, square`` and the numbers."""
    real = getattr(types, dtype)
    load, load_read_only, store = vector_access(vector)
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
        load_read_only(grads, grad, i)
        load(means, mean, i)
        load(squares, square, i)
        adapt_all(params, grads, means, squares, *numbers)
        store(means, mean, i)
        store(squares, square, i)
        store(params, param, i)

    return step


def rule_of(*, weight_decay: float, decoupled: bool) -> Rule:
    """The terms that an update has."""
    return Rule(weight_decay != 0 and not decoupled, weight_decay != 0 and decoupled)


def numbers_of(
    *, step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool
) -> tuple[float, ...]:
    """What is the same for all elements, as :func:`step_of` takes it: computed here, in double precision."""
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
def _kernel(tiling: Tiling, dtype: str, vector: int, rule: Rule) -> Callable[..., None]:
    work = each(step_of(dtype, vector, rule), step_of(dtype, 1, rule), tiling.threads, vector)

    @jit(launch_bounds=tiling.threads)
    def adam_update(
        param: Any,
        grad: Any,
        mean: Any,
        square: Any,
        rate: Any,
        beta1: Any,
        beta2: Any,
        share1: Any,
        share2: Any,
        correction: Any,
        eps: Any,
        decay: Any,
        elements: Any,
    ) -> None:
        work(elements, param, grad, mean, square, rate, beta1, beta2, share1, share2, correction, eps, decay)

    return adam_update


def launches(
    shape: tuple[int, ...], tiling: Tiling, dtype: Any, *, rule: Rule | None = None, aligned16: bool = True
) -> tuple[Launch, ...]:
    """The one launch of :func:`launch`, or none for an empty array.

    Args:
        shape, tiling, dtype: see :func:`launch`.
        rule: which terms the formula has; None for Adam without weight decay.
        aligned16: all arrays begin at multiples of 16 bytes.

    Raises:
        ValueError: the arrays are too large for 32-bit offsets.
    """
    if not (answer := supports(shape)):
        raise ValueError(f"adam_update: {answer}")
    elements, name, vector = math.prod(shape), np.dtype(dtype).name, vector_of(dtype, aligned16)
    if not elements:
        return ()
    signature = (array_type(name),) * 4 + (getattr(types, name),) * 8 + (types.int64,)
    return (launch_of(_kernel(tiling, name, vector, rule or Rule()), signature, elements, tiling, vector),)


def launch(
    param: Any,
    grad: Any,
    mean: Any,
    square: Any,
    shape: tuple[int, ...],
    tiling: Tiling,
    stream: Any = None,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """``param -= lr / (1 - beta1^step) · mean / (sqrt(square) / sqrt(1 - beta2^step) + eps)``, with the new moments.

    ``param``, ``mean`` and ``square`` are changed in place; all arrays are of ``shape``. ``step`` counts from 1.

    Raises:
        ValueError: the arrays are too large for 32-bit offsets.
    """
    rule = rule_of(weight_decay=weight_decay, decoupled=decoupled)
    numbers = numbers_of(
        step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, decoupled=decoupled
    )
    arrays, real = (param, grad, mean, square), param.dtype.type
    for one in launches(shape, tiling, param.dtype, rule=rule, aligned16=aligned(*arrays)):
        one(stream, *(array.reshape(-1) for array in arrays), *(real(number) for number in numbers), param.size)
