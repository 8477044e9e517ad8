"""Faults put in on purpose, which the fuzzer has to find."""

from __future__ import annotations

import time
from typing import Any


def wrong_gradient() -> None:
    """The sigmoid's gradient lacks a factor."""
    from gpuconv.ops.activation import Sigmoid

    def backward(ctx: Any, grad: Any) -> Any:
        (y,) = ctx.saved
        return grad * (1 - y)

    Sigmoid.backward = staticmethod(backward)  # type: ignore[method-assign]


def wrong_on_one_backend() -> None:
    """The compiled ReLU lets a negative number through where there are many."""
    from gpuconv.backends.cpu.backend import NumbaBackend

    relu = NumbaBackend.relu

    def broken(self: Any, x: Any) -> Any:
        y = relu(self, x)
        if y.size > 4:
            y.flat[4] = x.flat[4]
        return y

    NumbaBackend.relu = broken  # type: ignore[method-assign]


def write_beyond() -> None:
    """A compiled function writes one element too many."""
    import numba

    from gpuconv.backends.cpu.backend import NumbaBackend

    @numba.njit
    def beyond(y: Any) -> None:
        y[y.size] = 0

    relu_grad = NumbaBackend.relu_grad

    def broken(self: Any, grad: Any, y: Any) -> Any:
        result = relu_grad(self, grad, y)
        beyond(result.reshape(-1))
        return result

    NumbaBackend.relu_grad = broken  # type: ignore[method-assign]


def hang() -> None:
    """The hyperbolic tangent's gradient never ends."""
    from gpuconv.ops.activation import Tanh

    def backward(ctx: Any, grad: Any) -> Any:
        time.sleep(3600)

    Tanh.backward = staticmethod(backward)  # type: ignore[method-assign]


def accident() -> None:
    """An exception that is no refusal."""
    from gpuconv.ops.shape import Permute

    def forward(ctx: Any, a: Any, *, dims: Any) -> Any:
        return a.transpose({0: 0, 1: 1}[dims[-1]])

    Permute.forward = staticmethod(forward)  # type: ignore[method-assign]
