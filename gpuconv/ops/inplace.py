"""Tensors changed in place: item assignment, and the methods whose names end in ``_``.

Where a graph is recorded, a changed Tensor gets the result's history: what used it before keeps the old values, and its
gradient flows through the change. See ``Tensor._in_place``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from gpuconv import versions
from gpuconv.autograd import (
    Context,
    Function,
    Tensor,
    backend_of,
    destination,
    is_grad_enabled,
    moved,
    tensor_method,
    to_array,
)
from gpuconv.backends import Array, capturing
from gpuconv.ops import activation, arithmetic, elementwise, picking
from gpuconv.ops.arithmetic import _sum_to as sum_to
from gpuconv.ops.arithmetic import cast
from gpuconv.ops.shape import constant_index
from gpuconv.random import default_generator

__all__ = ["setitem"]


class SetItem(Function):
    """``a`` with the elements at ``index`` replaced by ``values``, which broadcast."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward",)

    @staticmethod
    def forward(ctx: Context, a: Array, values: Array, *, index: Any) -> Array:
        index = constant_index(ctx.backend, index)
        ctx.save(index, values.shape)
        y = a.copy()
        y[index] = values
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, Array | None]:
        index, shape = ctx.saved
        need_a, need_values = ctx.needs_input_grad
        d_a = None
        if need_a:
            d_a = grad.copy()
            d_a[index] = 0
        return d_a, sum_to(ctx.backend.xp.asarray(grad[index]), shape) if need_values else None


def _array_index(index: Any) -> Any:
    """An index with arrays in place of Tensors and lists."""
    if isinstance(index, tuple):
        return tuple(_array_index(part) for part in index)
    return index.data if isinstance(index, Tensor) else index


@tensor_method
def setitem(self: Tensor, index: Any, value: Any) -> None:
    """``self[index] = value``, with NumPy's indexing; the value broadcasts, and is converted to the Tensor's type.

    Raises:
        RuntimeError: while a graph is recorded, of a leaf that requires grad, or of a view: the array that it shows
            could not tell of the change.
        IndexError: no such elements.
        ValueError: a value of a shape that does not fit, or the array is read-only.
    """
    name = "x[index] = value"
    index = _array_index(index)
    number = isinstance(value, (bool, int, float, np.generic))
    values: Any = np.asarray(value, self.dtype) if number else value
    if not number:
        values = cast(value if isinstance(value, Tensor) else to_array(value), self.dtype)
    recorded = is_grad_enabled() and (self.requires_grad or getattr(values, "requires_grad", False))
    if not recorded:
        array = self.data
        if isinstance(array, np.ndarray) and not array.flags.writeable:
            raise ValueError(f"{name}: the array of shape {self.shape} is read-only; give the Tensor a copy of it")
        versions.changed(array, name)
        values = to_array(values)
        here = "cpu" if isinstance(array, np.ndarray) else "cuda"
        values = values if isinstance(values, np.ndarray) == isinstance(array, np.ndarray) else moved(values, here)
        if (capture := capturing.current()) is not None:
            capture.writes(array)
        capturing.repeated(lambda: array.__setitem__(index, values), array, values, index)
        return
    if hasattr(self.data.base, "dtype") and not (self.is_leaf and self.requires_grad):
        raise RuntimeError(
            f"{name}: this Tensor is a view of another one, which could not tell of the change while the graph is "
            "recorded: assign to that one, with both indices in one, or to a clone()"
        )
    self._in_place(name, SetItem.apply(self, values, index=index))


def _in_place(name: str, function: Callable[..., Any]) -> None:
    def change(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return self._in_place(f"{name}_", function(self, *arguments, **options))

    change.__name__ = f"{name}_"
    change.__doc__ = f"``{name}``, in place; returns itself. RuntimeError: a leaf, while the graph is recorded."
    tensor_method(change)


_CHANGES: dict[str, Callable[..., Any]] = {
    "add": arithmetic.add,
    "sub": arithmetic.sub,
    "mul": arithmetic.mul,
    "div": arithmetic.div,
    "floor_divide": arithmetic.floor_divide,
    "remainder": arithmetic.remainder,
    "pow": arithmetic.pow,
    "exp": arithmetic.exp,
    "log": arithmetic.log,
    "abs": elementwise.abs,
    "neg": elementwise.neg,
    "sqrt": elementwise.sqrt,
    "addcmul": elementwise.addcmul,
    "addcdiv": elementwise.addcdiv,
    "lerp": elementwise.lerp,
    "clamp": elementwise.clamp,
    "clamp_min": elementwise.clamp_min,
    "clamp_max": elementwise.clamp_max,
    "masked_fill": elementwise.masked_fill,
    "scatter": picking.scatter,
    "scatter_add": picking.scatter_add,
    "relu": activation.ReLU.apply,
    "sigmoid": activation.Sigmoid.apply,
    "tanh": activation.Tanh.apply,
}
for _name, _function in _CHANGES.items():
    _in_place(_name, _function)


@tensor_method
def copy_(self: Tensor, src: Any) -> Tensor:
    """Take the elements of ``src``, which broadcasts; returns itself. Errors as of item assignment."""
    setitem(self, ..., src)
    return self


@tensor_method
def fill_(self: Tensor, value: Any) -> Tensor:
    """Make every element ``value``; returns itself. Errors as of item assignment."""
    setitem(self, ..., value)
    return self


@tensor_method
def zero_(self: Tensor) -> Tensor:
    """Make every element 0; returns itself. Errors as of item assignment."""
    return fill_(self, 0)


@tensor_method
def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    """Draw every element from a normal distribution; returns itself. Errors as of item assignment."""
    generator = generator or default_generator()
    return copy_(self, capturing.drawn(generator, lambda: generator.normal(mean, std, self.shape)))


@tensor_method
def uniform_(self: Tensor, low: float = 0.0, high: float = 1.0, *, generator: Any = None) -> Tensor:
    """Draw every element between two numbers; returns itself. Errors as of item assignment."""
    generator = generator or default_generator()
    return copy_(self, capturing.drawn(generator, lambda: generator.uniform(low, high, self.shape)))


# -- another type, or another device ---------------------------------------------------------------------------------


class Move(Function):
    """The same elements on another device. The context's backend is that of the source: where the gradient goes."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        return moved(grad, ctx.backend)


@tensor_method
def to(
    self: Tensor, *what: Any, dtype: Any = None, device: Any = None, non_blocking: bool = False, copy: bool = False
) -> Tensor:
    """In another element type, on another device, or both; itself if nothing changes. Gradients pass.

    Args:
        what: an element type, a device, a device and a type, or a Tensor, whose type and device are taken.
        dtype: an element type.
        device: 'cpu' or 'cuda'; the name of a backend will do, too.
        non_blocking: taken, and not looked at: what is queued on a device runs in order.
        copy: a new Tensor, whatever changes.

    Raises:
        TypeError: neither.
        ValueError: no such device.
        BackendUnavailable: it cannot run here.
    """
    dtype, device = destination(what, dtype, device)
    result = self if dtype is None else cast(self, dtype)
    if device is not None:
        array = moved(result.data, device)
        if array is not result.data:
            source, result = result, Tensor._of(array)
            source._passes_on(Move, backend_of(source), result)
    return result.clone() if copy and result is self else result


@tensor_method
def cpu(self: Tensor) -> Tensor:
    """On the host; itself if it is."""
    return to(self, device="cpu")


@tensor_method
def cuda(self: Tensor) -> Tensor:
    """On the GPU; itself if it is. BackendUnavailable: there is none."""
    return to(self, device="cuda")
