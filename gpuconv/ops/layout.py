"""Images without a batch, and rows as images one pixel high: what operations on images begin and end with."""

from __future__ import annotations

from typing import Any

from gpuconv.ops.checks import shape_of
from gpuconv.ops.shape import reshape

__all__ = ["batched", "unbatched", "with_height", "without_height"]


def batched(op: str, input: Any, letters: str) -> tuple[Any, bool]:
    """Give an input of one image a batch dimension: returns it and whether the result has to lose it again."""
    shape = shape_of(input)
    if len(shape) == len(letters) - 1:
        return reshape(input, (1, *shape)), True
    if len(shape) != len(letters):
        raise ValueError(
            f"{op}: input must have {len(letters)} dimensions ({', '.join(letters)}), or {len(letters) - 1} without "
            f"the batch, got shape {shape}"
        )
    return input, False


def unbatched(output: Any, alone: bool) -> Any:
    """Take the batch dimension away again, of each of several results."""
    if not alone:
        return output
    if isinstance(output, tuple):
        return tuple(unbatched(part, True) for part in output)
    return reshape(output, shape_of(output)[1:])


def with_height(input: Any) -> Any:
    """(N, C, W) as (N, C, 1, W): a 1-D operation is the 2-D one on images one row high."""
    *leading, width = shape_of(input)
    return reshape(input, (*leading, 1, width))


def without_height(output: Any) -> Any:
    """The way back, of each of several results."""
    if isinstance(output, tuple):
        return tuple(without_height(part) for part in output)
    *leading, _, width = shape_of(output)
    return reshape(output, (*leading, width))
