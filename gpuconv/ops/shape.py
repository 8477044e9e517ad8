"""Rearranging elements: reshape, permute, index."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gpuconv.autograd import Context, Function, Tensor, tensor_method
from gpuconv.backends import Array, Backend


class Reshape(Function):
    """The same elements in another shape."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @staticmethod
    def forward(ctx: Context, a: Array, *, shape: tuple[int, ...]) -> Array:
        ctx.save(a.shape)
        return a.reshape(shape)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        return grad.reshape(ctx.saved[0])


class Permute(Function):
    """The dimensions in another order."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @staticmethod
    def forward(ctx: Context, a: Array, *, dims: tuple[int, ...]) -> Array:
        ctx.save(dims)
        return a.transpose(dims)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (dims,) = ctx.saved
        inverse = [0] * len(dims)
        for position, dim in enumerate(dims):
            inverse[dim] = position
        return grad.transpose(inverse)


def constant_index(backend: Backend, index: Any) -> Any:
    """An index with the backend's arrays in place of lists and of the host's arrays. Masks stay as they are."""
    if backend.xp is np:
        return index
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(
        backend.constant(part)
        if isinstance(part, (list, np.ndarray)) and np.ndim(part) and np.asarray(part).dtype.kind in "iu"
        else part
        for part in parts
    )


class GetItem(Function):
    """``a[index]``, with NumPy's indexing."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward",)

    @staticmethod
    def forward(ctx: Context, a: Array, *, index: Any) -> Array:
        index = constant_index(ctx.backend, index)
        ctx.save(a.shape, index)
        return ctx.backend.xp.asarray(a[index])

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, index = ctx.saved
        full = ctx.backend.xp.zeros(shape, grad.dtype)
        parts = index if isinstance(index, tuple) else (index,)
        if all(part is None or part is Ellipsis or type(part) in (int, slice) for part in parts):
            full[index] = grad
        else:
            ctx.backend.xp.add.at(full, index, grad)  # an index array may name an element twice
        return full


def several(op: str, given: tuple[Any, ...], **keyword: Any) -> tuple[Any, ...]:
    """Integers that are given one by one, or as one sequence, which may have a name. TypeError: both, or none."""
    ((name, named),) = keyword.items()
    if named is not None:
        if given:
            raise TypeError(f"{op}: {name} is given twice, as {given} and as {named!r}")
        given = (named,)
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], Sequence) else given


@tensor_method
def reshape(a: Any, *given: Any, shape: Any = None) -> Any:
    """The same elements in another shape, given as integers or as one tuple; -1 stands for what is left."""
    return Reshape.apply(a, shape=several("reshape", given, shape=shape))


@tensor_method
def permute(a: Any, *given: Any, dims: Any = None) -> Any:
    """The dimensions in the order ``dims``, given as integers or as one tuple.

    Raises:
        IndexError: no such dimension.
        TypeError: not integers.
        ValueError: not each dimension once.
    """
    ndim, named = len(a.shape), several("permute", given, dims=dims)
    order = tuple(dimension(dim, ndim, "permute", "dims") for dim in named)
    if len(order) != ndim or len({*order}) != ndim:
        raise ValueError(f"permute: dims {named} must name each of {ndim} dimensions once")
    return Permute.apply(a, dims=order)


@tensor_method
def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Merge the dimensions from ``start_dim`` to ``end_dim``, both included, into one; one alone is left as it is.

    Raises:
        IndexError: a dimension that the input does not have.
        ValueError: ``start_dim`` comes after ``end_dim``.
    """
    shape = tuple(input.shape)
    if not shape:
        return reshape(input, 1)
    start = dimension(start_dim, len(shape), "flatten", "start_dim")
    end = dimension(end_dim, len(shape), "flatten", "end_dim")
    if start > end:
        raise ValueError(f"flatten: start_dim={start_dim} comes after end_dim={end_dim} in shape {shape}")
    if start == end:
        return input  # itself, as in PyTorch
    return reshape(input, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


@tensor_method
def getitem(a: Any, index: Any) -> Any:
    """``a[index]``, with NumPy's indexing; arrays in it may be Tensors."""
    if isinstance(index, tuple):
        index = tuple(part.data if isinstance(part, Tensor) else part for part in index)
    elif isinstance(index, Tensor):
        index = index.data
    return GetItem.apply(a, index=index)


def dimension(dim: int, ndim: int, op: str, name: str = "dim") -> int:
    """Return ``dim`` counted from the front; a single number counts as having one dimension, as in PyTorch.

    Raises:
        IndexError: it is not one of ``ndim`` dimensions.
        TypeError: not an integer.
    """
    ndim = max(ndim, 1)
    try:
        dim = operator.index(dim)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {dim!r}") from None
    if not -ndim <= dim < ndim:
        raise IndexError(f"{op}: {name} {dim} does not exist in an input of {ndim} dimensions (-{ndim} to {ndim - 1})")
    return dim % ndim
