"""Matrix products with PyTorch's other names: batches of them, and with a sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuconv.autograd import tensor_method
from gpuconv.ops.arithmetic import add, matmul, mul, rounded_once
from gpuconv.ops.checks import element_type, number, operand, shape_of
from gpuconv.ops.rearrange import squeeze, unsqueeze
from gpuconv.ops.shape import reshape

__all__ = ["addmm", "baddbmm", "bmm", "dot", "mm", "mv", "outer"]


def _product(op: str, names: tuple[str, str], a: Any, b: Any, ndim: int) -> Any:
    a, b = (operand(op, name, value) for name, value in zip(names, (a, b), strict=True))
    first, second = shape_of(a), shape_of(b)
    for name, shape in zip(names, (first, second), strict=True):
        if len(shape) != ndim:
            raise ValueError(f"{op}: {name} must have {ndim} dimensions, got shape {shape}")
    if first[-1] != second[-2] or first[:-2] != second[:-2]:
        raise ValueError(f"{op}: {names[1]} of shape {second} does not fit {names[0]} of shape {first}")
    if element_type(a) != element_type(b):
        raise TypeError(
            f"{op}: {names[1]} is {element_type(b)} but {names[0]} is {element_type(a)}; convert one of them"
        )
    return matmul(a, b)


@tensor_method
def mm(input: Any, mat2: Any) -> Any:
    """Product of two matrices, (n, k) and (k, m)."""
    return _product("mm", ("input", "mat2"), input, mat2, 2)


@tensor_method
def bmm(input: Any, mat2: Any) -> Any:
    """Products of matrices, (b, n, k) and (b, k, m)."""
    return _product("bmm", ("input", "mat2"), input, mat2, 3)


def _vectors(op: str, names: Sequence[str], *values: Any) -> list[Any]:
    given = [operand(op, name, value) for name, value in zip(names, values, strict=True)]
    for name, value in zip(names, given, strict=True):
        if len(shape_of(value)) != 1:
            raise ValueError(f"{op}: {name} must have 1 dimension, got shape {shape_of(value)}")
    return given


@tensor_method
def outer(input: Any, vec2: Any) -> Any:
    """All products of the elements of two vectors, (n,) and (m,): (n, m)."""
    input, vec2 = _vectors("outer", ("input", "vec2"), input, vec2)
    return mul(unsqueeze(input, 1), vec2)


@tensor_method
def dot(input: Any, tensor: Any) -> Any:
    """The sum of the products of two vectors of one length."""
    input, tensor = _vectors("dot", ("input", "tensor"), input, tensor)
    return reshape(_product("dot", ("input", "tensor"), unsqueeze(input, 0), unsqueeze(tensor, 1), 2), ())


@tensor_method
def mv(input: Any, vec: Any) -> Any:
    """Product of a matrix, (n, m), and a vector, (m,)."""
    (vec,) = _vectors("mv", ("vec",), vec)
    return squeeze(_product("mv", ("input", "vec"), input, unsqueeze(vec, 1), 2), 1)


def _with_sum(op: str, input: Any, product: Any, beta: float, alpha: float) -> Any:
    beta, alpha = number(op, "beta", beta), number(op, "alpha", alpha)
    product = product if alpha == 1 else mul(product, alpha)
    if beta == 0:  # then PyTorch does not look at the input: NaN does not come through
        return product
    shape, wanted = shape_of(input := operand(op, "input", input)), shape_of(product)
    if len(shape) > len(wanted) or any(
        [have not in (1, want) for have, want in zip(shape[::-1], wanted[::-1], strict=False)]
    ):
        raise ValueError(f"{op}: input of shape {shape} does not broadcast to {wanted}")
    return add(input if beta == 1 else mul(input, beta), product)


@tensor_method
@rounded_once
def addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """``beta · input + alpha · mat1 · mat2``; the input broadcasts."""
    return _with_sum("addmm", input, _product("addmm", ("mat1", "mat2"), mat1, mat2, 2), beta, alpha)


@tensor_method
@rounded_once
def baddbmm(input: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """``beta · input + alpha · batch1 · batch2``, for batches of matrices; the input broadcasts."""
    return _with_sum("baddbmm", input, _product("baddbmm", ("batch1", "batch2"), batch1, batch2, 3), beta, alpha)
