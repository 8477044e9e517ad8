"""Joining, cutting and repeating: what rearranges elements beyond ``reshape`` and ``permute``.

All raise ``TypeError`` for an argument of the wrong kind, ``IndexError`` for a dimension that does not exist, and
``ValueError`` for sizes that do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gpuconv.autograd import Context, Function, Tensor, tensor_method, to_array
from gpuconv.backends import Array
from gpuconv.dtypes import bfloat16, kind_of, promoted
from gpuconv.geometry import integer
from gpuconv.ops.arithmetic import _sum_to as sum_to
from gpuconv.ops.arithmetic import cast
from gpuconv.ops.checks import element_type, operand, shape_of
from gpuconv.ops.shape import dimension, permute, reshape, several
from gpuconv.ops.shape import dimension as _dimension

__all__ = [
    "broadcast_to",
    "cat",
    "chunk",
    "clone",
    "concat",
    "flip",
    "hstack",
    "movedim",
    "narrow",
    "ravel",
    "roll",
    "select",
    "split",
    "squeeze",
    "stack",
    "swapaxes",
    "t",
    "tile",
    "transpose",
    "tril",
    "triu",
    "unbind",
    "unflatten",
    "unsqueeze",
    "vstack",
]


def sizes_of(op: str, name: str, given: tuple[Any, ...], minimum: int = 0) -> tuple[int, ...]:
    """Sizes that are given as integers or as one sequence of them."""
    several = given[0] if len(given) == 1 and isinstance(given[0], Sequence) else given
    return tuple(integer(size, name, minimum=minimum, op=op) for size in several)


def _before(axis: int) -> tuple[slice, ...]:
    return (slice(None),) * axis


# -- joining ---------------------------------------------------------------------------------------------------------


class Cat(Function):
    """Arrays joined along a dimension."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @staticmethod
    def forward(ctx: Context, *arrays: Array, axis: int) -> Array:
        ctx.save([a.shape[axis] for a in arrays], axis)
        return ctx.backend.xp.concatenate(arrays, axis=axis)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        sizes, axis = ctx.saved
        parts, start = [], 0
        for size, need in zip(sizes, ctx.needs_input_grad, strict=True):
            parts.append(grad[(*_before(axis), slice(start, start + size))] if need else None)
            start += size
        return tuple(parts)


def _several(op: str, tensors: Any) -> list[Any]:
    """The Tensors of a list, in the type that PyTorch's promotion gives."""
    if isinstance(tensors, (Tensor, str)) or not isinstance(tensors, (Sequence, np.ndarray)):
        raise TypeError(f"{op}: tensors must be a sequence of Tensors, got {type(tensors).__name__}")
    if not len(tensors):
        raise ValueError(f"{op}: tensors must have at least one element")
    given = [operand(op, f"tensors[{number}]", tensor) for number, tensor in enumerate(tensors)]
    order = "buif"
    wanted = element_type(given[0])
    for dtype in map(element_type, given[1:]):
        if (kind_of(dtype) in "ui" and kind_of(wanted) in "ui") or kind_of(dtype) == kind_of(wanted):
            wanted = promoted(wanted, dtype)
        elif order.index(kind_of(dtype)) > order.index(kind_of(wanted)):
            wanted = dtype
    return [cast(tensor, wanted) for tensor in given]


def cat(tensors: Any, dim: int = 0) -> Any:
    """Tensors joined along ``dim``.

    Args:
        tensors: a sequence of Tensors or arrays, of the same shape except along ``dim``. One of shape (0,) fits any
            other, as in PyTorch. Dtypes are promoted as in PyTorch.
        dim: an integer.

    Raises:
        ValueError: no Tensors, one without dimensions, or shapes that do not fit.
        IndexError: no such dimension.
    """
    op = "cat"
    given = _several(op, tensors)
    shapes = [shape_of(tensor) for tensor in given]
    if () in shapes:
        raise ValueError(f"{op}: tensors[{shapes.index(())}] has no dimensions; stack takes it")
    full = [tensor for tensor, shape in zip(given, shapes, strict=True) if shape != (0,)] or given[:1]
    first = shape_of(full[0])
    axis = dimension(dim, len(first), op)
    for number, shape in enumerate(shapes):
        fits = len(shape) == len(first) and shape[:axis] + shape[axis + 1 :] == first[:axis] + first[axis + 1 :]
        if shape != (0,) and not fits:
            raise ValueError(
                f"{op}: tensors[{number}] has shape {shape}, which differs from {first} not only in dim {axis}"
            )
    return Cat.apply(*full, axis=axis)


def concat(tensors: Any, dim: int = 0) -> Any:
    """:func:`cat` by another name."""
    return cat(tensors, dim)


def stack(tensors: Any, dim: int = 0) -> Any:
    """Tensors of one shape along a new dimension ``dim``; otherwise as :func:`cat`."""
    op = "stack"
    given = _several(op, tensors)
    first = shape_of(given[0])
    axis = dimension(dim, len(first) + 1, op)
    for number, tensor in enumerate(given):
        if shape_of(tensor) != first:
            raise ValueError(f"{op}: tensors[{number}] has shape {shape_of(tensor)}, the first one {first}")
    return Cat.apply(*[reshape(tensor, (*first[:axis], 1, *first[axis:])) for tensor in given], axis=axis)


def hstack(tensors: Any) -> Any:
    """Tensors joined side by side: along dimension 1, or 0 if they have one dimension or none."""
    given = [reshape(one, -1) if not shape_of(one) else one for one in _several("hstack", tensors)]
    return cat(given, min(len(shape_of(given[0])), 2) - 1)


def vstack(tensors: Any) -> Any:
    """Tensors joined one below the other, along dimension 0; those of fewer than two dimensions are rows."""
    given = _several("vstack", tensors)
    return cat([reshape(one, (1, -1)) if len(shape_of(one)) < 2 else one for one in given])


# -- cutting ---------------------------------------------------------------------------------------------------------


class Narrow(Function):
    """Some elements in a row along a dimension: a view."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @staticmethod
    def forward(ctx: Context, a: Array, *, axis: int, start: int, length: int) -> Array:
        ctx.save(a.shape, axis, start, length)
        return a[(*_before(axis), slice(start, start + length))]

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, axis, start, length = ctx.saved
        full = ctx.backend.xp.zeros(shape, grad.dtype)
        full[(*_before(axis), slice(start, start + length))] = grad
        return full


def _axis(op: str, input: Any, dim: Any) -> tuple[Any, int, int]:
    """The input, a dimension of it, and its size there."""
    input = operand(op, "input", input)
    shape = shape_of(input)
    if not shape:
        raise ValueError(f"{op}: input must have at least 1 dimension, got a single number")
    axis = dimension(dim, len(shape), op)
    return input, axis, shape[axis]


@tensor_method
def narrow(input: Any, dim: int, start: int, length: int) -> Any:
    """The elements from ``start`` (may count from the end) to before ``start + length`` along ``dim``: a view."""
    op = "narrow"
    input, axis, size = _axis(op, input, dim)
    start = integer(start, "start", minimum=-size, op=op)
    length = integer(length, "length", minimum=0, op=op)
    start = start + size if start < 0 else start
    if start + length > size:
        raise ValueError(f"{op}: start {start} and length {length} leave dim {axis}, of size {size}")
    return Narrow.apply(input, axis=axis, start=start, length=length)


@tensor_method
def select(input: Any, dim: int, index: int) -> Any:
    """The elements at ``index`` (may count from the end) along ``dim``, which is removed."""
    op = "select"
    input, axis, size = _axis(op, input, dim)
    index = integer(index, "index", minimum=-(2**31), op=op)
    if not -size <= index < size:
        raise IndexError(f"{op}: index {index} is out of range of dim {axis}, of size {size}")
    shape = shape_of(input)
    return reshape(Narrow.apply(input, axis=axis, start=index % size, length=1), shape[:axis] + shape[axis + 1 :])


@tensor_method
def split(input: Any, split_size_or_sections: Any, dim: int = 0) -> Any:
    """Pieces along ``dim``: views.

    Args:
        input: Tensor or array.
        split_size_or_sections: the size of each piece (the last one may be smaller), or the list of sizes.
        dim: an integer.

    Returns:
        A tuple.

    Raises:
        ValueError: sizes that do not add up to the input's.
    """
    op, name = "split", "split_size_or_sections"
    input, axis, size = _axis(op, input, dim)
    if isinstance(split_size_or_sections, Sequence):
        sizes = [integer(one, name, minimum=0, op=op) for one in split_size_or_sections]
        if sum(sizes) != size:
            raise ValueError(f"{op}: {name} {sizes} must add up to {size}, the size of dim {axis}")
    else:
        each = integer(split_size_or_sections, name, minimum=0, op=op)
        if each == 0 and size:
            raise ValueError(f"{op}: {name} must be at least 1, got 0")
        sizes = [min(each, size - start) for start in range(0, size, each)] if size else [0]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return tuple(
        Narrow.apply(input, axis=axis, start=start, length=length) for start, length in zip(starts, sizes, strict=True)
    )


@tensor_method
def chunk(input: Any, chunks: int, dim: int = 0) -> Any:
    """At most ``chunks`` pieces of equal size along ``dim``, the last one perhaps smaller: a tuple of views."""
    input, axis, size = _axis("chunk", input, dim)
    chunks = integer(chunks, "chunks", minimum=1, op="chunk")
    if size == 0:
        return split(input, [0] * chunks, axis)
    return split(input, -(-size // chunks), axis)


@tensor_method
def unbind(input: Any, dim: int = 0) -> Any:
    """The elements at each index along ``dim``, which is removed: a tuple of views."""
    input, axis, size = _axis("unbind", input, dim)
    return tuple(select(input, axis, index) for index in range(size))


class Slide(Function):
    """Windows of ``size`` elements along a dimension, ``step`` apart; they become the last dimension."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward",)

    @staticmethod
    def forward(ctx: Context, a: Array, *, axis: int, size: int, step: int) -> Array:
        places = sliding(a.shape[axis], size, step)
        ctx.save(a.shape, axis, len(places), size, step)
        xp = ctx.backend.xp
        return xp.moveaxis(xp.take(a, ctx.backend.constant(places), axis=axis), axis + 1, -1)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, axis, count, size, step = ctx.saved
        full = ctx.backend.xp.zeros(shape, grad.dtype)
        for tap in range(size):
            full[(*_before(axis), slice(tap, tap + (count - 1) * step + 1, step))] += grad[..., tap]
        return full


def sliding(length: int, size: int, step: int) -> np.ndarray:
    """The indices of the elements of each window: (windows, size)."""
    return np.arange(0, length - size + 1, step)[:, None] + np.arange(size)


def _unfold(input: Any, dimension: int, size: int, step: int) -> Any:
    """All windows of ``size`` elements along a dimension, ``step`` apart: a copy, with the window as a new dimension
    at the end. :func:`gpuconv.functional.unfold` cuts images.

    IndexError: no such dimension. ValueError: a window that is larger than it, or no step.
    """
    op, given = "unfold", shape_of(input)
    shape = given or (1,)
    axis = _dimension(dimension, len(given), op, "dimension")
    size, step = integer(size, "size", minimum=0, op=op), integer(step, "step", minimum=1, op=op)
    if size > shape[axis]:
        raise ValueError(f"{op}: size {size} does not fit into dimension {axis}, of size {shape[axis]}")
    result = Slide.apply(reshape(input, shape), axis=axis, size=size, step=step)
    return result if given else reshape(Narrow.apply(result, axis=0, start=0, length=1), (size,))


_unfold.__name__ = "unfold"
tensor_method(_unfold)


# -- dimensions ------------------------------------------------------------------------------------------------------


@tensor_method
def squeeze(input: Any, dim: Any = None) -> Any:
    """Remove the dimensions of size 1: all of them, or those in ``dim``, one or several."""
    input = operand("squeeze", "input", input)
    shape = shape_of(input)
    several = range(len(shape)) if dim is None else dim if isinstance(dim, Sequence) else (dim,)
    axes = [dimension(one, len(shape), "squeeze") for one in several]
    if len({*axes}) < len(axes):
        raise ValueError(f"squeeze: dim {tuple(several)} names a dimension twice")
    return reshape(input, tuple(size for axis, size in enumerate(shape) if size != 1 or axis not in axes))


@tensor_method
def unsqueeze(input: Any, dim: int) -> Any:
    """Add a dimension of size 1 at ``dim``."""
    input = operand("unsqueeze", "input", input)
    shape = shape_of(input)
    axis = dimension(dim, len(shape) + 1, "unsqueeze")
    return reshape(input, (*shape[:axis], 1, *shape[axis:]))


def _swapped(op: str, input: Any, dims: tuple[Any, Any], names: tuple[str, str]) -> Any:
    input = operand(op, "input", input)
    ndim = len(shape_of(input))
    first, second = (dimension(dim, ndim, op, name) for dim, name in zip(dims, names, strict=True))
    order = list(range(ndim))
    if ndim:
        order[first], order[second] = order[second], order[first]
    return permute(input, tuple(order))


@tensor_method
def transpose(input: Any, dim0: int, dim1: int) -> Any:
    """Swap two dimensions: a view."""
    return _swapped("transpose", input, (dim0, dim1), ("dim0", "dim1"))


@tensor_method
def swapaxes(input: Any, axis0: int, axis1: int) -> Any:
    """:func:`transpose` by another name."""
    return _swapped("swapaxes", input, (axis0, axis1), ("axis0", "axis1"))


@tensor_method
def t(input: Any) -> Any:
    """The transpose of a matrix; fewer dimensions stay. ValueError: more than 2."""
    input = operand("t", "input", input)
    if len(shape_of(input)) > 2:
        raise ValueError(f"t: input must have at most 2 dimensions, got shape {shape_of(input)}; use transpose")
    return permute(input, tuple(range(len(shape_of(input))))[::-1])


@tensor_method
def movedim(input: Any, source: Any, destination: Any) -> Any:
    """Move the dimensions ``source``, one or several, to ``destination``; the others stay in order."""
    op = "movedim"
    input = operand(op, "input", input)
    ndim = len(shape_of(input))
    sources, targets = (
        [dimension(one, ndim, op, name) for one in (given if isinstance(given, Sequence) else (given,))]
        for given, name in ((source, "source"), (destination, "destination"))
    )
    for name, axes in (("source", sources), ("destination", targets)):
        if len(axes) != len(sources) or len({*axes}) < len(axes):
            raise ValueError(f"{op}: {name} must name {len(sources)} different dimensions, got {axes}")
    rest = iter([axis for axis in range(ndim) if axis not in sources])
    placed = dict(zip(targets, sources, strict=True))
    return permute(input, tuple(placed[axis] if axis in placed else next(rest) for axis in range(ndim)))


@tensor_method
def view(input: Any, *shape: Any) -> Any:
    """The same elements in another shape; -1 is inferred. Elements are copied only if the strides require it."""
    if len(shape) == 1 and not isinstance(shape[0], Sequence):
        try:
            np.dtype(shape[0])
        except TypeError:
            pass
        else:
            if not isinstance(shape[0], (int, np.integer)):
                raise TypeError(f"view: shape must be sizes, got {shape[0]!r}; type_as and float() convert elements")
    return reshape(input, *shape)


@tensor_method
def view_as(input: Any, other: Any) -> Any:
    """The same elements in the shape of ``other``."""
    return reshape(input, shape_of(other))


@tensor_method
def reshape_as(input: Any, other: Any) -> Any:
    """The same elements in the shape of ``other``."""
    return reshape(input, shape_of(other))


@tensor_method
def ravel(input: Any) -> Any:
    """The elements in one dimension."""
    return reshape(operand("ravel", "input", input), -1)


@tensor_method
def unflatten(input: Any, dim: int, sizes: Any) -> Any:
    """One dimension as several; one of their ``sizes`` may be -1.

    Raises:
        ValueError: sizes whose product is not that of the dimension.
        IndexError: no such dimension.
    """
    input = operand("unflatten", "input", input)
    sizes = sizes_of("unflatten", "sizes", (sizes,), -1)
    shape = shape_of(input)
    axis = dimension(dim, len(shape), "unflatten")
    shape = shape or (1,)
    given = math.prod(size for size in sizes if size != -1)
    known = sizes.count(-1) == 0
    if (given != shape[axis]) if known else (given == 0 or shape[axis] % given):
        raise ValueError(f"unflatten: sizes {sizes} do not fit dim {axis}, of size {shape[axis]}")
    missing = 1 if known else shape[axis] // given
    full = tuple(missing if size == -1 else size for size in sizes)
    return reshape(input, (*shape[:axis], *full, *shape[axis + 1 :]))


# -- repeating and turning -------------------------------------------------------------------------------------------


class Expand(Function):
    """The elements repeated by broadcasting: a read-only view."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward",)

    @staticmethod
    def forward(ctx: Context, a: Array, *, shape: tuple[int, ...]) -> Array:
        ctx.save(a.shape)
        return ctx.backend.xp.broadcast_to(a, shape)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        return sum_to(grad, ctx.saved[0])


class Repeat(Function):
    """The whole array repeated along each dimension; there are as many repeats as dimensions."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward",)

    @staticmethod
    def forward(ctx: Context, a: Array, *, repeats: tuple[int, ...]) -> Array:
        ctx.save(a.shape, repeats)
        return ctx.backend.xp.tile(a, repeats)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, repeats = ctx.saved
        pairs = [part for pair in zip(repeats, shape, strict=True) for part in pair]
        return grad.reshape(pairs).sum(axis=tuple(range(0, len(pairs), 2)))


class Flip(Function):
    """The elements in reverse order along some dimensions."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @staticmethod
    def forward(ctx: Context, a: Array, *, axes: tuple[int, ...]) -> Array:
        ctx.save(axes)
        return ctx.backend.xp.flip(a, axes) if axes else a[...]

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (axes,) = ctx.saved
        return ctx.backend.xp.flip(grad, axes) if axes else grad


class Clone(Function):
    """A copy in C order."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @staticmethod
    def forward(ctx: Context, a: Array) -> Array:
        return ctx.backend.xp.array(a, order="C", copy=True)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        return grad


@tensor_method
def expand(input: Any, *sizes: Any) -> Any:
    """The elements repeated along dimensions of size 1, and along new ones in front: a view.

    ``sizes``: integers or one sequence; -1 keeps a dimension. ValueError: a size that does not fit.
    """
    op = "expand"
    input = operand(op, "input", input)
    shape, wanted = shape_of(input), sizes_of(op, "sizes", sizes, -1)
    new = len(wanted) - len(shape)
    padded = (None,) * max(new, 0) + shape
    fits = new >= 0 and all(
        [
            w == have or (have in (1, None) and w >= 0) or (w == -1 and have is not None)
            for w, have in zip(wanted, padded, strict=True)
        ]
    )
    if not fits:
        raise ValueError(f"{op}: sizes {wanted} do not fit an input of shape {shape}")
    full = tuple(have if w == -1 else w for w, have in zip(wanted, padded, strict=True))
    return Expand.apply(input, shape=full)


@tensor_method
def expand_as(input: Any, other: Any) -> Any:
    """:func:`expand` to the shape of ``other``."""
    return expand(input, shape_of(other))


@tensor_method
def repeat(input: Any, *sizes: Any) -> Any:
    """The whole array repeated along each dimension: a copy. ValueError: fewer ``sizes`` than dimensions."""
    op = "repeat"
    input = operand(op, "input", input)
    shape, repeats = shape_of(input), sizes_of(op, "sizes", sizes)
    if len(repeats) < len(shape):
        raise ValueError(f"{op}: sizes must have at least one value for each of {len(shape)} dimensions, got {repeats}")
    full = (1,) * (len(repeats) - len(shape)) + shape
    return Repeat.apply(reshape(input, full), repeats=repeats)


@tensor_method
def tile(input: Any, *given: Any, dims: Any = None) -> Any:
    """As :func:`repeat`; missing repeats of the first dimensions are 1."""
    input = operand("tile", "input", input)
    repeats = sizes_of("tile", "dims", several("tile", given, dims=dims))
    return repeat(input, (1,) * (len(shape_of(input)) - len(repeats)) + repeats)


@tensor_method
def flip(input: Any, *given: Any, dims: Any = None) -> Any:
    """Reverse the order of elements along ``dims``, integers or one sequence."""
    input = operand("flip", "input", input)
    ndim, named = len(shape_of(input)), several("flip", given, dims=dims)
    axes = tuple(dimension(dim, ndim, "flip", "dims") for dim in named)
    if len({*axes}) < len(axes):
        raise ValueError(f"flip: dims {named} names a dimension twice")
    return Flip.apply(input, axes=axes if ndim else ())


@tensor_method
def broadcast_to(input: Any, size: Any) -> Any:
    """:func:`expand` to ``size``."""
    return expand(input, size)


@tensor_method
def roll(input: Any, shifts: Any, dims: Any = None) -> Any:
    """The elements moved on by ``shifts`` along ``dims``, one or several; what leaves the end begins anew.

    Without ``dims`` the elements are moved as if they had one dimension. ValueError: not a shift for each dimension.
    """
    op = "roll"
    input = operand(op, "input", input)
    shape = shape_of(input)
    if dims is None or dims == ():
        return reshape(roll(reshape(input, -1), shifts, 0), shape)
    moves, axes = (several(op, (given,), dims=None) for given in (shifts, dims))
    if len(moves) != len(axes):
        raise ValueError(f"{op}: shifts and dims must be as many, got {moves} and {axes}")
    for move, axis in zip(moves, [dimension(dim, len(shape), op, "dims") for dim in axes], strict=True):
        size = shape[axis] if shape else 0
        first = integer(move, "shifts", minimum=-(2**63), op=op) % size if size else 0
        if first:
            input = cat([narrow(input, axis, size - first, first), narrow(input, axis, 0, size - first)], axis)
    return input


class Triangle(Function):
    """Matrices, with zeros above the diagonal ``diagonal``, or below it."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @staticmethod
    def forward(ctx: Context, a: Array, *, diagonal: int, upper: bool) -> Array:
        xp = ctx.backend.xp
        beyond = xp.arange(a.shape[-1]) - xp.arange(a.shape[-2])[:, None]
        kept = beyond >= diagonal if upper else beyond <= diagonal
        ctx.save(kept)
        return xp.where(kept, a, a.dtype.type(0))

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        return ctx.backend.xp.where(ctx.saved[0], grad, grad.dtype.type(0))


def _triangle(op: str, input: Any, diagonal: int, upper: bool) -> Any:
    input = operand(op, "input", input)
    if len(shape_of(input)) < 2:
        raise ValueError(f"{op}: input must have at least 2 dimensions, got shape {shape_of(input)}")
    return Triangle.apply(input, diagonal=integer(diagonal, "diagonal", minimum=-(2**31), op=op), upper=upper)


@tensor_method
def tril(input: Any, diagonal: int = 0) -> Any:
    """Matrices (..., n, m) with zeros above a diagonal: 0 is the main one, 1 the one above it."""
    return _triangle("tril", input, diagonal, False)


@tensor_method
def triu(input: Any, diagonal: int = 0) -> Any:
    """Matrices (..., n, m) with zeros below a diagonal; see :func:`tril`."""
    return _triangle("triu", input, diagonal, True)


@tensor_method
def clone(input: Any) -> Any:
    """A copy, through which gradients pass."""
    return Clone.apply(operand("clone", "input", input))


@tensor_method
def contiguous(input: Any) -> Any:
    """The input if it is contiguous in C order, else a copy that is."""
    return input if to_array(input).flags.c_contiguous else Clone.apply(input)


# -- queries ----------------------------------------------------------------------------------------------------------


@tensor_method
def size(input: Any, dim: int | None = None) -> Any:
    """The shape, or the size of one dimension."""
    shape = shape_of(input)
    if dim is None:
        return shape
    if not shape:
        raise IndexError(f"size: dim {dim} does not exist in an input of 0 dimensions")
    return shape[dimension(dim, len(shape), "size")]


@tensor_method
def dim(input: Any) -> int:
    """Number of dimensions."""
    return len(shape_of(input))


@tensor_method
def tolist(input: Any) -> Any:
    """The elements as nested lists of Python numbers, or one number if there are no dimensions."""
    return input.numpy().tolist()


@tensor_method
def is_contiguous(input: Any) -> bool:
    """Whether the elements are in C order in memory."""
    return bool(to_array(input).flags.c_contiguous)


@tensor_method
def is_floating_point(input: Any) -> bool:
    """Whether the elements are floats."""
    return kind_of(element_type(input)) == "f"


def _conversion(name: str, dtype: Any) -> None:
    def convert(input: Any) -> Any:
        return cast(input, dtype)

    convert.__name__ = name
    convert.__doc__ = f"The elements as {np.dtype(dtype)}; itself if they are."
    tensor_method(convert)


for _name, _dtype in (
    ("half", np.float16),
    ("float", np.float32),
    ("double", np.float64),
    ("int", np.int32),
    ("long", np.int64),
    ("bool", bool),
):
    _conversion(_name, _dtype)


def _bfloat16(input: Any) -> Any:
    """The elements as bfloat16; itself if they are. ModuleNotFoundError: ``ml_dtypes`` is not installed."""
    return cast(input, bfloat16())


_bfloat16.__name__ = "bfloat16"
tensor_method(_bfloat16)
