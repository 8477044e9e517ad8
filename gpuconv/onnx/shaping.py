"""Shapes: rearranging, joining, cutting, picking, padding, and what is known of a shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuconv import functional as F
from gpuconv.autograd import Tensor
from gpuconv.onnx.elementwise import element_type
from gpuconv.onnx.node import Node, constant, host, operator, scalar, shape_of
from gpuconv.ops import elementwise, ordering, picking, rearrange
from gpuconv.ops.padding import _pad_along as pad_along
from gpuconv.ops.shape import getitem, permute, reshape


def whole(value: Any) -> list[int]:
    """A setting of integers: an attribute, a Tensor or an array as a list."""
    return [int(v) for v in (value if isinstance(value, (list, tuple)) else host(value).reshape(-1))]


def axes_of(node: Node, given: Any, ndim: int, *, name: str = "axes") -> list[int] | None:
    """The axes that a node names, by an input or an attribute, counted from the front; None if it names none."""
    axes = node.get(name) if given is None else given
    return None if axes is None else [axis % ndim if ndim else 0 for axis in whole(axes)]


# -- what is known of a shape -----------------------------------------------------------------------------------------


@operator("Shape")
def _shape(node: Node, x: Any) -> np.ndarray:
    return np.asarray(shape_of(x)[slice(node.get("start", 0), node.get("end"))], np.int64)


@operator("Size")
def _size(node: Node, x: Any) -> np.ndarray:
    return np.asarray(math.prod(shape_of(x)), np.int64)


@operator("Constant")
def _constant(node: Node) -> np.ndarray:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in node.attributes:
            value = node.attributes[name]
            kind = np.float32 if "float" in name else np.int64
            return value if name == "value" else np.asarray(value, kind)
    raise ValueError(f"a constant given as {', '.join(node.attributes)}, which gpuconv does not have")


@operator("ConstantOfShape", settings=(0,))
def _constant_of_shape(node: Node, shape: Any) -> np.ndarray:
    value = node.get("value", np.zeros(1, np.float32))
    return np.full(whole(shape), value.reshape(-1)[0], value.dtype)


@operator("Range", settings=(0, 1, 2))
def _range(node: Node, start: Any, limit: Any, delta: Any) -> np.ndarray:
    start, limit, delta = host(start), host(limit), host(delta)
    count = max(0, math.ceil((limit.item() - start.item()) / delta.item()))
    return (start + np.arange(count).astype(start.dtype) * delta).astype(start.dtype)


@operator("EyeLike")
def _eye_like(node: Node, x: Any) -> np.ndarray:
    dtype = element_type(node.get("dtype")) if "dtype" in node.attributes else x.dtype
    rows, columns = shape_of(x)
    return np.eye(rows, columns, k=node.get("k", 0), dtype=dtype)


@operator("NonZero")
def _non_zero(node: Node, x: Any) -> np.ndarray:
    return np.asarray(np.nonzero(host(x)), np.int64)


# -- the same elements ------------------------------------------------------------------------------------------------


@operator("Reshape", settings=(1,))
def _reshape(node: Node, x: Any, shape: Any) -> Any:
    sizes, have = whole(shape), shape_of(x)
    if not node.get("allowzero", 0):
        sizes = [have[i] if size == 0 and i < len(have) else size for i, size in enumerate(sizes)]
    if math.prod(sizes) != math.prod(have) and (-1 not in sizes or sizes.count(-1) > 1):
        raise ValueError(f"a value of shape {have} cannot become one of shape {tuple(sizes)}")
    return reshape(x, tuple(sizes))


@operator("Flatten")
def _flatten(node: Node, x: Any) -> Any:
    shape, axis = shape_of(x), node.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:])))


@operator("Transpose")
def _transpose(node: Node, x: Any) -> Any:
    return permute(x, tuple(node.get("perm", range(x.ndim)[::-1])))


@operator("Squeeze", settings=(1,))
def _squeeze(node: Node, x: Any, axes: Any = None) -> Any:
    wanted = axes_of(node, axes, x.ndim)
    for axis in wanted or ():
        if shape_of(x)[axis] != 1:
            raise ValueError(f"axis {axis} of shape {shape_of(x)} is not of size 1")
    return rearrange.squeeze(x, wanted)


@operator("Unsqueeze", settings=(1,))
def _unsqueeze(node: Node, x: Any, axes: Any = None) -> Any:
    given = whole(node.get("axes") if axes is None else axes)
    new = {axis % (x.ndim + len(given)) for axis in given}
    sizes = iter(shape_of(x))
    return reshape(x, tuple([1 if axis in new else next(sizes) for axis in range(x.ndim + len(given))]))


@operator("DepthToSpace")
def _depth_to_space(node: Node, x: Any) -> Any:
    r = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, r)
    n, c, h, w = shape_of(x)
    parts = permute(reshape(x, (n, r, r, c // (r * r), h, w)), (0, 3, 4, 1, 5, 2))
    return reshape(parts, (n, c // (r * r), h * r, w * r))


@operator("SpaceToDepth")
def _space_to_depth(node: Node, x: Any) -> Any:
    r, (n, c, h, w) = node.get("blocksize"), shape_of(x)
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, r)
    parts = permute(reshape(x, (n, c, h // r, r, w // r, r)), (0, 3, 5, 1, 2, 4))
    return reshape(parts, (n, c * r * r, h // r, w // r))


# -- more of them -----------------------------------------------------------------------------------------------------


@operator("Expand", settings=(1,))
def _expand(node: Node, x: Any, shape: Any) -> Any:
    return rearrange.expand(x, np.broadcast_shapes(shape_of(x), tuple(whole(shape))))


@operator("Tile", settings=(1,))
def _tile(node: Node, x: Any, repeats: Any) -> Any:
    return rearrange.tile(x, tuple(whole(repeats)))


@operator("Concat")
def _concat(node: Node, *values: Any) -> Any:
    return rearrange.cat(list(values), node.get("axis", 1))


_PADDING = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@operator("Pad", settings=(1, 2, 3))
def _pad(node: Node, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    amounts = whole(node.get("pads", node.get("paddings")) if pads is None else pads)
    named = axes_of(node, axes, x.ndim) or list(range(x.ndim))
    sides = {axis: (amounts[i], amounts[i + len(named)]) for i, axis in enumerate(named)}
    mode = node.get("mode", "constant")
    if mode == "constant":
        fill = scalar(value, node.get("value", 0))
        pairs = [sides.get(axis, (0, 0)) for axis in reversed(range(x.ndim))]
        return F.pad(x, [amount for pair in pairs for amount in pair], value=fill)
    for axis, (before, after) in sides.items():
        if before or after:
            x = pad_along("pad", x, axis, before, after, _PADDING[mode])
    return x


@operator("OneHot", settings=(1, 2))
def _one_hot(node: Node, labels: Any, depth: Any, values: Any) -> Any:
    classes, (off, on), axis = scalar(depth), host(values), node.get("axis", -1)
    labels = rearrange.cast(labels, np.dtype(np.int64))
    axis = axis % (labels.ndim + 1)
    labels = rearrange.unsqueeze(labels, axis)
    labels = elementwise.where(labels < 0, labels + classes, labels)
    places = np.arange(classes).reshape(-1, *[1] * (labels.ndim - axis - 1))
    return elementwise.where(labels == places, constant(on, values), constant(off, values))


@operator("Trilu", settings=(1,))
def _trilu(node: Node, x: Any, k: Any = None) -> Any:
    return (rearrange.triu if node.get("upper", 1) else rearrange.tril)(x, scalar(k, 0))


@operator("TopK", settings=(1,))
def _top_k(node: Node, x: Any, k: Any = None) -> tuple[Any, ...]:
    k = node.get("k") if k is None else scalar(k)
    return tuple(ordering.topk(x, int(k), node.get("axis", -1), bool(node.get("largest", 1))))


# -- fewer of them ----------------------------------------------------------------------------------------------------


@operator("Split", settings=(1,))
def _split(node: Node, x: Any, sizes: Any = None) -> tuple[Any, ...]:
    axis = node.get("axis", 0) % x.ndim
    sizes = node.get("split") if sizes is None else sizes
    if sizes is None:
        size, parts = shape_of(x)[axis], node.get("num_outputs", len(node.outputs))
        each = -(-size // parts)
        sizes = [each] * (parts - 1) + [size - each * (parts - 1)]
    return rearrange.split(x, whole(sizes), axis)


@operator("Slice", settings=(1, 2, 3, 4))
def _slice(node: Node, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    starts, ends = (node.get(name) if v is None else v for name, v in (("starts", starts), ("ends", ends)))
    starts, ends = whole(starts), whole(ends)
    named = axes_of(node, axes, x.ndim) or list(range(len(starts)))
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(
        named, starts, ends, whole(steps) if steps is not None else [1] * len(starts), strict=True
    ):
        size = shape_of(x)[axis]
        start, end = (v + size if v < 0 else v for v in (start, end))
        if step > 0:
            index[axis] = slice(min(max(start, 0), size), min(max(end, 0), size), step)
        else:
            last = min(max(end, -1), size - 1)
            index[axis] = slice(min(max(start, 0), size - 1), None if last < 0 else last, step)
    return getitem(x, tuple(index))


def _from_front(index: Any, size: int) -> Any:
    """Indices that may count from the end, counted from the front."""
    if isinstance(index, Tensor):
        return elementwise.where(index < 0, index + size, index)
    return np.where(index < 0, index + size, index)


@operator("Gather")
def _gather(node: Node, x: Any, index: Any) -> Any:
    shape, wanted = shape_of(x), shape_of(index)
    axis = node.get("axis", 0) % len(shape)
    flat = reshape(_from_front(index, shape[axis]), (math.prod(wanted),))
    return reshape(picking.index_select(x, axis, flat), (*shape[:axis], *wanted, *shape[axis + 1 :]))


@operator("GatherElements")
def _gather_elements(node: Node, x: Any, index: Any) -> Any:
    axis = node.get("axis", 0) % x.ndim
    return picking.gather(x, axis, _from_front(index, shape_of(x)[axis]))


_REDUCTIONS = {"none": None, "add": "add", "mul": "multiply", "max": "maximum", "min": "minimum"}


@operator("ScatterElements", "Scatter")
def _scatter_elements(node: Node, x: Any, index: Any, updates: Any) -> Any:
    axis = node.get("axis", 0) % x.ndim
    how = _REDUCTIONS[node.get("reduction", "none")]
    return picking.scattered("ScatterElements", x, axis, _from_front(index, shape_of(x)[axis]), updates, how)


@operator("GatherND", settings=(1,))
def _gather_nd(node: Node, x: Any, index: Any) -> Any:
    index, batch = host(index), node.get("batch_dims", 0)
    leading = index.shape[:-1]
    along = [np.arange(n).reshape(-1, *[1] * (len(leading) - i - 1)) for i, n in enumerate(leading[:batch])]
    where = [index[..., i] for i in range(index.shape[-1])]
    for i, part in enumerate(where):
        size = shape_of(x)[batch + i]
        if part.size and not (part.min() >= -size and part.max() < size):
            raise IndexError(f"an index from {part.min()} to {part.max()} along axis {batch + i}, of size {size}")
    return getitem(x, tuple(np.broadcast_to(part, leading) for part in (*along, *where)))


@operator("Compress", settings=(1,))
def _compress(node: Node, x: Any, condition: Any) -> Any:
    kept = np.flatnonzero(host(condition))
    if "axis" not in node.attributes:
        return picking.index_select(reshape(x, (math.prod(shape_of(x)),)), 0, kept)
    return picking.index_select(x, node.get("axis"), kept)
