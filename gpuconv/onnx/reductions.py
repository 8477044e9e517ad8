"""Over axes: sums, means, extrema, norms; and products of matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import gpuconv.functional as F
from gpuconv.dtypes import kind_of
from gpuconv.onnx.node import Node, constant, host, operator, scalar, shape_of
from gpuconv.onnx.shaping import axes_of
from gpuconv.ops import arithmetic, elementwise, rearrange, reduce
from gpuconv.ops.shape import permute, reshape


def _extreme(x: Any, axes: list[int], keep: bool, *, largest: bool) -> Any:
    if math.prod(shape_of(x)[axis] for axis in axes):
        return (reduce.amax if largest else reduce.amin)(x, axes, keep)
    of_nothing: Any = not largest
    if kind_of(x.dtype) == "f":
        of_nothing = -math.inf if largest else math.inf
    elif kind_of(x.dtype) in "iu":
        of_nothing = np.iinfo(x.dtype).min if largest else np.iinfo(x.dtype).max
    shape = [1 if axis in axes else size for axis, size in enumerate(shape_of(x)) if keep or axis not in axes]
    return np.full(shape, of_nothing, x.dtype)


def _sum(x: Any, axes: list[int], keep: bool) -> Any:
    return arithmetic.cast(arithmetic.sum(x, axes, keep), x.dtype)


def _mean(x: Any, axes: list[int], keep: bool) -> Any:
    if kind_of(x.dtype) == "f":
        return arithmetic.mean(x, axes, keep)
    return host(x).mean(axis=tuple(axes), keepdims=keep).astype(x.dtype)


def _norm(x: Any, axes: list[int], keep: bool) -> Any:
    if kind_of(x.dtype) == "f":
        return reduce.norm(x, 2, axes, keep)
    return arithmetic.cast(elementwise.sqrt(_sum(elementwise.square(x), axes, keep)), x.dtype)


def _log_sum_exp(x: Any, axes: list[int], keep: bool) -> Any:
    return arithmetic.cast(reduce.logsumexp(x, axes, keep), x.dtype)


def _prod(x: Any, axes: list[int], keep: bool) -> Any:
    return arithmetic.cast(reduce.Prod.apply(x, axes=tuple(axes), keepdims=keep), x.dtype)


def _reduced(
    function: Callable[[Any, list[int], bool], Any], alone: Callable[[Any], Any], node: Node, *inputs: Any
) -> Any:
    x, given = (*inputs, None)[:2]
    axes = axes_of(node, given, x.ndim)
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            return alone(x)
        axes = list(range(x.ndim))
    if not x.ndim:
        return reshape(function(reshape(x, (1,)), [0], False), ())
    return function(x, axes, bool(node.get("keepdims", 1)))


def _itself(x: Any) -> Any:
    return x


for _name, _function, _alone in (
    ("ReduceSum", _sum, _itself),
    ("ReduceMean", _mean, _itself),
    ("ReduceMax", partial(_extreme, largest=True), _itself),
    ("ReduceMin", partial(_extreme, largest=False), _itself),
    ("ReduceProd", _prod, _itself),
    ("ReduceL1", lambda x, axes, keep: _sum(elementwise.abs(x), axes, keep), elementwise.abs),
    ("ReduceL2", _norm, elementwise.abs),
    ("ReduceLogSum", lambda x, axes, keep: arithmetic.log(_sum(x, axes, keep)), arithmetic.log),
    ("ReduceLogSumExp", _log_sum_exp, _itself),
    ("ReduceSumSquare", lambda x, axes, keep: _sum(elementwise.square(x), axes, keep), elementwise.square),
):
    operator(_name, settings=(1,))(partial(_reduced, _function, _alone))


def _where_extreme(largest: bool, node: Node, x: Any) -> Any:
    axis, keep = node.get("axis", 0) % x.ndim, bool(node.get("keepdims", 1))
    find = reduce.argmax if largest else reduce.argmin
    if not node.get("select_last_index", 0):
        return find(x, axis, keep)
    return shape_of(x)[axis] - 1 - find(rearrange.flip(x, axis), axis, keep)


operator("ArgMax")(partial(_where_extreme, True))
operator("ArgMin")(partial(_where_extreme, False))


@operator("CumSum", settings=(1,))
def _cum_sum(node: Node, x: Any, axis: Any) -> Any:
    axis, backwards = scalar(axis) % x.ndim, node.get("reverse", 0)
    ordered = rearrange.flip(x, axis) if backwards else x
    total = arithmetic.cast(reduce.cumsum(ordered, axis), x.dtype)
    if node.get("exclusive", 0):
        total = arithmetic.sub(total, ordered)
    return rearrange.flip(total, axis) if backwards else total


# -- products of matrices ---------------------------------------------------------------------------------------------


@operator("MatMul")
def _matmul(node: Node, a: Any, b: Any) -> Any:
    return arithmetic.matmul(a, b)


@operator("Gemm")
def _gemm(node: Node, a: Any, b: Any, c: Any = None) -> Any:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    a = permute(a, (1, 0)) if node.get("transA", 0) else a
    vector = c is None or shape_of(c) in ((shape_of(b)[0 if node.get("transB", 0) else 1],),)
    if alpha == 1 and beta == 1 and vector and kind_of(a.dtype) == "f":
        return F.linear(a, b if node.get("transB", 0) else permute(b, (1, 0)), c)
    product = arithmetic.matmul(a, permute(b, (1, 0)) if node.get("transB", 0) else b)
    product = product if alpha == 1 else product * constant(alpha, product)
    if c is None:
        return product
    return arithmetic.add(product, c if beta == 1 else arithmetic.mul(c, constant(beta, c)))


@operator("Einsum")
def _einsum(node: Node, *operands: Any) -> Any:
    import gpuconv

    function = getattr(F, "einsum", None) or getattr(gpuconv, "einsum", None)
    if function is None:
        raise ValueError("gpuconv has no einsum")
    return function(node.get("equation"), *operands)


# -- along axes, divided by their size --------------------------------------------------------------------------------


@operator("LpNormalization")
def _lp_normalization(node: Node, x: Any) -> Any:
    return F.normalize(x, float(node.get("p", 2)), node.get("axis", -1))


@operator("MeanVarianceNormalization")
def _mean_variance(node: Node, x: Any) -> Any:
    axes = axes_of(node, None, x.ndim) or [0, 2, 3]
    centred = arithmetic.sub(x, arithmetic.mean(x, axes, True))
    deviation = elementwise.sqrt(arithmetic.mean(elementwise.square(centred), axes, True))
    return arithmetic.div(centred, arithmetic.add(deviation, 1e-9))
