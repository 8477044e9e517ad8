"""Sums of products by letters, made of matrix products."""

from __future__ import annotations

import math
from typing import Any

from gpuconv.ops.arithmetic import matmul, rounded_once, sum
from gpuconv.ops.checks import element_type, operand, shape_of
from gpuconv.ops.shape import getitem, permute, reshape

__all__ = ["einsum"]

_DOTS = "ΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠ"  # stand for the dimensions of an ellipsis, the last letter for the last dimension


@rounded_once
def einsum(equation: str, *operands: Any) -> Any:
    """Sum of products of elements, by Einstein's convention: ``einsum("ik,kj->ij", a, b)`` is a matrix product.

    Args:
        equation: for each operand a letter a dimension, with commas between; behind ``->`` the letters of the result,
            or without it those that come once, in order. Letters that the result lacks are summed over. ``...`` stands
            for dimensions that broadcast.
        operands: Tensors or arrays of one float type, or one list of them.

    Raises:
        ValueError: an equation that does not say this, or shapes that do not fit it.
        TypeError: an argument of the wrong kind, or element types that differ.
    """
    op = "einsum"
    if not isinstance(equation, str):
        raise TypeError(f"{op}: equation must be a str, got {type(equation).__name__}")
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        return einsum(equation, *operands[0])
    given = [operand(op, f"operands[{number}]", value) for number, value in enumerate(operands)]
    if not given:
        raise ValueError(f"{op}: operands must have at least one element")
    for number, one in enumerate(given):
        if element_type(one) != element_type(given[0]):
            raise TypeError(
                f"{op}: operands[{number}] is {element_type(one)} but operands[0] is {element_type(given[0])}; "
                "convert one of them"
            )
    terms, result = _letters(op, equation, given)
    _check_sizes(op, equation, terms, given)
    parts = [_diagonals(value, term) for value, term in zip(given, terms, strict=True)]
    while len(parts) > 1:
        (a, first), (b, second), *rest = parts
        needed = {*result, *(letter for _, term in rest for letter in term)}
        parts = [_contracted(a, first, b, second, needed), *rest]
    value, term = parts[0]
    value, term = _summed(value, term, {*result})
    return permute(value, tuple(term.index(letter) for letter in result)) if term != result else value


def _letters(op: str, equation: str, operands: list[Any]) -> tuple[list[str], str]:
    """The letters of each operand's dimensions and of the result's; those of ``...`` are made up."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    given = left.split(",")
    if len(given) != len(operands):
        raise ValueError(f"{op}: equation {equation!r} is of {len(given)} operands, got {len(operands)}")
    terms, dots = [], 0
    for number, (term, value) in enumerate(zip(given, operands, strict=True)):
        letters, ndim = term.replace("...", "", 1), len(shape_of(value))
        hidden = ndim - len(letters) if "..." in term else 0
        if not all(letter.isascii() and letter.isalpha() for letter in letters):
            raise ValueError(f"{op}: equation must be of letters, commas, '...' and one '->', got {equation!r}")
        if len(letters) + hidden != ndim or not 0 <= hidden <= len(_DOTS):
            raise ValueError(f"{op}: operands[{number}] has {ndim} dimensions, and equation {equation!r} says {term!r}")
        terms.append(term.replace("...", _DOTS[len(_DOTS) - hidden :]))
        dots = max(dots, hidden)
    every = "".join(terms)
    broadcast = _DOTS[len(_DOTS) - dots :]
    if arrow:
        result = right.replace("...", broadcast, 1)
    else:
        once = sorted(letter for letter in {*every} - {*_DOTS} if every.count(letter) == 1)
        result = broadcast + "".join(once)
    if len({*result}) < len(result) or not {*result} <= {*every}:
        raise ValueError(f"{op}: the result of equation {equation!r} must name letters of the operands, each once")
    return terms, result


def _check_sizes(op: str, equation: str, terms: list[str], operands: list[Any]) -> None:
    sizes: dict[str, int] = {}
    for number, (term, value) in enumerate(zip(terms, operands, strict=True)):
        own: dict[str, int] = {}
        for letter, size in zip(term, shape_of(value), strict=True):
            known = sizes.get(letter, 1)
            if own.setdefault(letter, size) != size or (size != known and 1 not in (size, known)):
                shapes = [shape_of(one) for one in operands]
                raise ValueError(f"{op}: operands[{number}] does not fit: equation {equation!r}, shapes {shapes}")
            sizes[letter] = size if known == 1 else known


def _diagonals(value: Any, term: str) -> tuple[Any, str]:
    """Of letters that come twice, the elements at which both indices are the same."""
    for letter in {*term}:
        while term.count(letter) > 1:
            pair = [position for position, one in enumerate(term) if one == letter][:2]
            rest = [position for position in range(len(term)) if position not in pair]
            value = permute(value, (*pair, *rest))
            n, _, *others = shape_of(value)
            value = getitem(reshape(value, (n * n, *others)), slice(None, None, n + 1))
            term = letter + "".join(term[position] for position in rest)
    return value, term


def _summed(value: Any, term: str, needed: set[str]) -> tuple[Any, str]:
    """With the letters summed over that nobody needs."""
    axes = tuple(axis for axis, letter in enumerate(term) if letter not in needed)
    if not axes:
        return value, term
    return sum(value, axes), "".join(letter for letter in term if letter in needed)


def _contracted(a: Any, first: str, b: Any, second: str, needed: set[str]) -> tuple[Any, str]:
    """The product of two operands, summed over what both have and nobody else needs; its letters."""
    a, first = _without_ones(a, first, b, second)
    b, second = _without_ones(b, second, a, first)
    a, first = _summed(a, first, needed | {*second})
    b, second = _summed(b, second, needed | {*first})
    both = [letter for letter in first if letter in second]
    batch = [letter for letter in both if letter in needed]
    inner = [letter for letter in both if letter not in needed]
    rows = [letter for letter in first if letter not in second]
    columns = [letter for letter in second if letter not in first]
    sizes = {**dict(zip(first, shape_of(a), strict=True)), **dict(zip(second, shape_of(b), strict=True))}

    def matrices(value: Any, term: str, *groups: list[str]) -> Any:
        order = [term.index(letter) for group in groups for letter in group]
        return reshape(permute(value, tuple(order)), tuple(math.prod(sizes[one] for one in group) for group in groups))

    product = matmul(matrices(a, first, batch, rows, inner), matrices(b, second, batch, inner, columns))
    letters = [*batch, *rows, *columns]
    return reshape(product, tuple(sizes[letter] for letter in letters)), "".join(letters)


def _without_ones(a: Any, first: str, b: Any, second: str) -> tuple[Any, str]:
    """Without the dimensions of size 1 that the other operand has larger."""
    other = dict(zip(second, shape_of(b), strict=True))
    kept = [
        (letter, size)
        for letter, size in zip(first, shape_of(a), strict=True)
        if size != 1 or other.get(letter, 1) == 1
    ]
    if len(kept) == len(first):
        return a, first
    return reshape(a, tuple(size for _, size in kept)), "".join(letter for letter, _ in kept)
