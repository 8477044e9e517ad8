"""Elements in order: sort, argsort, and the largest ones. NaN counts as the largest number."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.autograd import Context, Function, tensor_method
from gpuconv.backends import Array
from gpuconv.geometry import integer
from gpuconv.ops.checks import operand, shape_of
from gpuconv.ops.elementwise import without_graph
from gpuconv.ops.picking import Gather
from gpuconv.ops.rearrange import narrow
from gpuconv.ops.reduce import Extreme
from gpuconv.ops.shape import dimension, reshape

__all__ = ["argsort", "sort", "topk"]


class ArgSort(Function):
    """Where the elements in order along a dimension are; equal ones stay in their order."""

    @staticmethod
    def forward(ctx: Context, a: Array, *, axis: int, descending: bool) -> Array:
        xp = ctx.backend.xp
        if not descending:
            return xp.argsort(a, axis=axis, kind="stable").astype(np.int64)
        # Of the elements from the end on, so that equal ones stay in their order.
        order = xp.flip(xp.argsort(xp.flip(a, axis), axis=axis, kind="stable"), axis)
        return a.shape[axis] - 1 - order.astype(np.int64)


def _sorted(op: str, input: Any, dim: int, descending: bool) -> tuple[Any, Any, int]:
    """The input, with at least one dimension, the indices of its elements in order, and the dimension."""
    input = operand(op, "input", input)
    axis = dimension(dim, len(shape_of(input)), op)
    input = input if shape_of(input) else reshape(input, 1)
    return input, without_graph(ArgSort, input, axis=axis, descending=bool(descending)), axis


@tensor_method
def argsort(input: Any, dim: int = -1, descending: bool = False, *, stable: bool = True) -> Any:
    """The indices, int64, that put the elements along ``dim`` in order. Equal ones stay in theirs, ``stable`` or not.

    IndexError: no such dimension.
    """
    return reshape(_sorted("argsort", input, dim, descending)[1], shape_of(operand("argsort", "input", input)))


@tensor_method
def sort(input: Any, dim: int = -1, descending: bool = False, *, stable: bool = True) -> Any:
    """The elements in order along ``dim``, and where they were: a named tuple ``values, indices``.

    Otherwise as :func:`argsort`.
    """
    shape = shape_of(operand("sort", "input", input))
    input, indices, axis = _sorted("sort", input, dim, descending)
    return Extreme(reshape(Gather.apply(input, indices, axis=axis), shape), reshape(indices, shape))


@tensor_method
def topk(input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """The ``k`` largest elements along ``dim``, or the smallest, in order, and where they were.

    Args:
        input: numbers.
        k: how many.
        dim: an integer.
        largest: False for the smallest.
        sorted: taken, and not looked at: the elements are in order. Of equal ones the first come first.

    Returns:
        A named tuple ``values, indices``.

    Raises:
        ValueError: more than there are.
        IndexError: no such dimension.
    """
    op, shape = "topk", shape_of(operand("topk", "input", input))
    input, order, axis = _sorted(op, input, dim, largest)
    k = integer(k, "k", minimum=0, op=op)
    if k > shape_of(input)[axis]:
        raise ValueError(f"{op}: k must be at most {shape_of(input)[axis]}, the size of dim {axis}, got {k}")
    indices = narrow(order, axis, 0, k)
    values = Gather.apply(input, indices, axis=axis)
    return Extreme(*(values, indices) if shape or k != 1 else (reshape(values, ()), reshape(indices, ())))
