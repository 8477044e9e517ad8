"""Updates that are operations of the array library (NumPy or CuPy), without a kernel of their own.

They take a pass over memory for each operation. On a GPU they cannot be captured: the graph would repeat the numbers of
the captured step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gpuconv.backends import Backend, capturing
from gpuconv.optim.optimizer import Optimizer, Together

#: Called with the array library, the group, the number of the step from 1 on, a parameter, its gradient and slots.
Formula = Callable[..., None]


def each(formula: Formula, backend: Backend, together: Together, *arrays: Sequence[Any]) -> None:
    """Apply a formula, which writes in place, to each parameter.

    Raises:
        RuntimeError: while a step is captured on a GPU.
    """
    kind = type(together.optimizer).__name__
    capture = capturing.current()
    if capture is not None and not capture.on_host:
        raise RuntimeError(
            f"{kind}: its step cannot be captured on a GPU; those of SGD, Adam and AdamW (no amsgrad) can"
        )
    capturing.settle()
    # NumPy's float64 scalars would make float64 of float32.
    group = {name: float(value) if hasattr(value, "item") else value for name, value in together.group.items()}
    with backend.computing():
        for of_one in zip(*arrays, strict=True):
            formula(backend.xp, group, together.steps, *of_one)


def decayed(group: dict[str, Any], w: Any, g: Any) -> Any:
    """The gradient plus the weight decay term."""
    return g + group["weight_decay"] * w if group["weight_decay"] else g


def moments(group: dict[str, Any], decoupled: bool, w: Any, g: Any, mean: Any, square: Any) -> Any:
    """Update the moving averages of gradients and their squares, as Adam does, and return the gradient.

    The weights decay first: directly if ``decoupled``, else through the gradient.
    """
    beta1, beta2 = group["betas"]
    if decoupled:
        w *= 1 - group["lr"] * group["weight_decay"]
    else:
        g = decayed(group, w, g)
    mean += (1 - beta1) * (g - mean)
    square *= beta2
    square += (1 - beta2) * g * g
    return g


class ArrayOptimizer(Optimizer):
    """Base of the optimizers whose update is an array formula."""

    def _formula(self, xp: Any, group: dict[str, Any], t: int, w: Any, g: Any, *slots: Any) -> None:
        raise NotImplementedError

    def _update(self, backend: Backend, together: Together, *arrays: Sequence[Any]) -> None:
        each(self._formula, backend, together, *arrays)
