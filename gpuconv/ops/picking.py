"""Elements by index: picked along a dimension, put where an index says, and labels as rows of 0 and 1.

All raise ``TypeError`` for an argument of the wrong kind, ``IndexError`` for a dimension that does not exist or an
index out of range (a GPU does not notice such an index), and ``ValueError`` for sizes that do not fit.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gpuconv.autograd import Context, Function, Tensor, tensor_method, to_array
from gpuconv.backends import Array, capturing
from gpuconv.dtypes import kind_of
from gpuconv.geometry import integer
from gpuconv.ops.checks import element_type, operand, shape_of
from gpuconv.ops.elementwise import without_graph
from gpuconv.ops.rearrange import clone
from gpuconv.ops.shape import dimension, reshape

__all__ = ["gather", "index_select", "one_hot", "scatter", "scatter_add"]


class IndexSelect(Function):
    """The elements at some indices along a dimension."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward",)

    @staticmethod
    def forward(ctx: Context, a: Array, index: Array, *, axis: int) -> Array:
        ctx.save(a.shape, index, axis)
        return ctx.backend.xp.take(a, index, axis=axis)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array, None]:
        shape, index, axis = ctx.saved
        full = ctx.backend.xp.zeros(shape, grad.dtype)
        ctx.backend.xp.add.at(full, (*(slice(None),) * axis, index), grad)  # an index may come twice
        return full, None


def _along(ctx: Context, index: Array, axis: int) -> tuple[Array, ...]:
    """For each element of an index along a dimension, where it is: NumPy's index, an array for each dimension."""
    return tuple(
        index if i == axis else ctx.backend.xp.arange(size).reshape(-1, *[1] * (index.ndim - i - 1))
        for i, size in enumerate(index.shape)
    )


class Gather(Function):
    """``a[..., index[i, j, k], ...]`` along a dimension: one element for each element of the index."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward",)

    @staticmethod
    def forward(ctx: Context, a: Array, index: Array, *, axis: int) -> Array:
        where = _along(ctx, index, axis)
        ctx.save(a.shape, where)
        return a[where]

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array, None]:
        shape, where = ctx.saved
        full = ctx.backend.xp.zeros(shape, grad.dtype)
        ctx.backend.xp.add.at(full, where, grad)
        return full, None


class Scatter(Function):
    """A copy of ``a`` with values, or a number, put or added where an index along a dimension says.

    ``how`` is None, or NumPy's function that joins what is there with what is put; of others than ``add`` there is no
    gradient.
    """

    @staticmethod
    def forward(
        ctx: Context, a: Array, index: Array, values: Array | None, *, axis: int, number: Any, how: str | None
    ) -> Array:
        where, part = _along(ctx, index, axis), tuple(map(slice, index.shape))
        ctx.save(where, part, None if values is None else values.shape, how)
        y = a.copy()
        put = number if values is None else values[part]
        if how is None:
            y[where] = put
        else:
            getattr(ctx.backend.xp, how).at(y, where, put)  # an index may come twice
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array, None, Array | None]:
        where, part, shape, how = ctx.saved
        if how not in (None, "add"):
            raise NotImplementedError(f"Scatter: there is no gradient of {how}")
        d_a, d_values = grad, None
        if how is None:
            d_a = grad.copy()
            d_a[where] = 0
        if shape is not None:
            d_values = ctx.backend.xp.zeros(shape, grad.dtype)
            d_values[part] = grad[where]
        return d_a, None, d_values


class OneHot(Function):
    """1 where the class is the label, else 0."""

    @staticmethod
    def forward(ctx: Context, labels: Array, *, classes: int) -> Array:
        return (labels[..., None] == ctx.backend.xp.arange(classes)).astype(np.int64)


def checked_index(op: str, name: str, index: Any, size: int) -> Any:
    """Check that an index holds integers and, on the host, that each is in range. IndexError: one is not."""
    index = operand(op, name, index)
    if kind_of(element_type(index)) not in "iu":
        raise TypeError(f"{op}: {name} must hold integers, got {element_type(index)}")
    values = to_array(index)

    def check() -> None:
        if values.size and not (values.min() >= 0 and values.max() < size):
            raise IndexError(f"{op}: {name} must be from 0 to {size - 1}, got {values.min()} to {values.max()}")

    if isinstance(values, np.ndarray):
        capturing.repeated(check, values)
    return index


@tensor_method
def index_select(input: Any, dim: int, index: Any) -> Any:
    """The elements at ``index``, a vector of integers from 0 on, along ``dim``. An index may come twice.

    Of a single number, which takes one index, it is that number.
    """
    op = "index_select"
    input = operand(op, "input", input)
    shape = shape_of(input)
    axis = dimension(dim, len(shape), op)
    index = checked_index(op, "index", index, shape[axis] if shape else 1)
    chosen = shape_of(index)
    if len(chosen) > 1 or (not shape and chosen not in ((), (1,))):
        wanted = "1 dimension" if shape else "1 element for an input without dimensions"
        raise ValueError(f"{op}: index must have {wanted}, got shape {chosen}")
    if not shape:
        return reshape(IndexSelect.apply(reshape(input, 1), reshape(index, -1), axis=0), ())
    return IndexSelect.apply(input, reshape(index, -1), axis=axis)


@tensor_method
def gather(input: Any, dim: int, index: Any) -> Any:
    """For each element of ``index``, the input's element at that index along ``dim`` and the same position otherwise.

    Args:
        input: Tensor or array.
        dim: an integer.
        index: integers from 0 on, with as many dimensions as the input; except along ``dim``, no longer than it. A
            single number counts as having one dimension, and without elements any shape will do, as in PyTorch.

    Returns:
        The shape of ``index``.
    """
    op = "gather"
    input = operand(op, "input", input)
    shape = shape_of(input)
    axis = dimension(dim, len(shape), op)
    index = checked_index(op, "index", index, shape[axis] if shape else 1)
    chosen = shape_of(index)
    if 0 in chosen or len(chosen) + len(shape) < 2:
        return reshape(IndexSelect.apply(reshape(input, -1), reshape(index, -1), axis=0), chosen)
    longer = [i for i, (c, s) in enumerate(zip(chosen, shape, strict=False)) if i != axis and c > s]
    if len(chosen) != len(shape) or longer:
        raise ValueError(f"{op}: index of shape {chosen} does not fit an input of shape {shape} along dim {axis}")
    return Gather.apply(input, index, axis=axis)


@tensor_method
def scatter(input: Any, dim: int, index: Any, src: Any = None, *, value: Any = None) -> Any:
    """A copy of the input with the elements of ``src`` where ``index`` says: :func:`gather` the other way round.

    Args:
        input: Tensor or array.
        dim: an integer.
        index: integers from 0 on, with as many dimensions as the input and as ``src``; in none longer than ``src``, and
            except along ``dim`` no longer than the input.
        src: of the input's element type; or a number for all places. Which one of several elements for one place is
            put there is not said.
        value: a number, in place of ``src``.

    Raises:
        TypeError: ``src`` and ``value``, neither of them, or of another element type.
        IndexError: no such dimension, or an index out of range, which a GPU does not notice.
        ValueError: shapes that do not fit.
    """
    if (src is None) == (value is None):
        raise TypeError("scatter: give src or value")
    return scattered("scatter", input, dim, index, value if src is None else src)


@tensor_method
def scatter_add(input: Any, dim: int, index: Any, src: Any) -> Any:
    """As :func:`scatter`, but elements are added to those of the input, all that are for one place."""
    if isinstance(src, _NUMBERS):
        raise TypeError(f"scatter_add: src must be a Tensor or an array, got {src!r}")
    return scattered("scatter_add", input, dim, index, src, "add")


_NUMBERS = (bool, int, float, np.generic)


def scattered(op: str, input: Any, dim: int, index: Any, src: Any, how: str | None = None) -> Any:
    """:func:`scatter` by another name, and :class:`Scatter` with its ``how``."""
    input, number, values = operand(op, "input", input), None, None
    shape = shape_of(input)
    axis = dimension(dim, len(shape), op)
    index = checked_index(op, "index", index, shape[axis] if shape else 1)
    if isinstance(src, _NUMBERS):
        number = src
    else:
        values = operand(op, "src", src)
        if element_type(values) != element_type(input):
            raise TypeError(
                f"{op}: src must have the input's element type {element_type(input)}, got {element_type(values)}"
            )
    if 0 in shape_of(index):
        return clone(input)
    chosen, given = shape_of(index), shape_of(index if values is None else values)
    full, part, whole = (one or (1,) for one in (shape, chosen, given))
    if not len(full) == len(part) == len(whole) or any(
        p > w or (i != axis and p > f) for i, (f, p, w) in enumerate(zip(full, part, whole, strict=True))
    ):
        of_src = "" if values is None else f" and src of shape {given}"
        wanted = f"an input of shape {shape}{of_src} along dim {axis}"
        raise ValueError(f"{op}: index of shape {chosen} does not fit {wanted}")
    values = None if values is None else reshape(values, whole)
    result = Scatter.apply(reshape(input, full), reshape(index, part), values, axis=axis, number=number, how=how)
    return reshape(result, shape)


def one_hot(tensor: Any, num_classes: int = -1) -> Any:
    """For each label a row with 1 at its class and 0 elsewhere.

    Args:
        tensor: labels, integers from 0 on, of any shape.
        num_classes: -1 for one more than the largest label.

    Returns:
        (..., num_classes), int64.

    Raises:
        ValueError: no labels and no ``num_classes``, or a label that is no class.
    """
    op = "one_hot"
    tensor = operand(op, "tensor", tensor)
    if kind_of(element_type(tensor)) not in "iu":
        raise TypeError(f"{op}: tensor must hold integers, got {element_type(tensor)}")
    classes = integer(num_classes, "num_classes", minimum=-1, op=op)
    labels = to_array(tensor)
    if classes < 0 or isinstance(labels, np.ndarray):
        if not labels.size:
            if classes <= 0:
                raise ValueError(f"{op}: num_classes must be given where there are no labels")
        else:
            if classes < 0:  # a number for Python
                classes = int(Tensor(labels).max()) + 1
            most = classes

            def check() -> None:
                low, high = int(labels.min()), int(labels.max())
                if low < 0 or high >= most:
                    raise ValueError(f"{op}: tensor must hold classes from 0 to {most - 1}, got {low} to {high}")

            capturing.repeated(check, labels)
    return without_graph(OneHot, tensor, classes=classes)
