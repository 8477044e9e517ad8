"""A node of a graph, and the table of the functions that compute them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpuconv import functional as F
from gpuconv.autograd import Tensor

__all__ = ["OPERATORS", "Node", "Operator", "constant", "host", "library", "operator", "ranked", "scalar", "shape_of"]


def library() -> Any:
    """The ``onnx`` package. ImportError: it is missing; the message says what would do."""
    try:
        import onnx
    except ImportError:
        raise ImportError("gpuconv.onnx needs the onnx package: pip install 'gpuconv[onnx]'") from None
    return onnx


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        op: its type, 'Conv' say.
        name: as the file gives it, else that of its first output.
        inputs, outputs: names of values; '' for one that is left out.
        attributes: numbers, strings, lists of them, NumPy arrays.
        opset: version of the operators' meaning.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default."""
        return self.attributes.get(name, default)

    def wants(self, position: int) -> bool:
        """Whether the output at a position is used."""
        return position < len(self.outputs) and bool(self.outputs[position])


class Operator(NamedTuple):
    """How nodes of a type are computed.

    Attributes:
        compute: takes the node and its inputs, Tensors or NumPy arrays (None for one that is left out); returns the
            result, or a tuple of several.
        settings: positions of inputs that say how, rather than what: they stay on the host, and are not learned.
        buffers: positions of inputs that are state, but not learned.
        modal: whether ``compute`` takes ``training`` as a keyword.
    """

    compute: Callable[..., Any]
    settings: tuple[int, ...] = ()
    buffers: tuple[int, ...] = ()
    modal: bool = False


#: By the type of node; the files beside this one fill it.
OPERATORS: dict[str, Operator] = {}


def operator(
    *names: str, settings: Sequence[int] = (), buffers: Sequence[int] = (), modal: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: what computes nodes of these types. Arguments as of :class:`Operator`."""

    def register(compute: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            OPERATORS[name] = Operator(compute, tuple(settings), tuple(buffers), modal)
        return compute

    return register


def host(value: Any) -> np.ndarray:
    """A Tensor or array as a NumPy array: what a setting is read from."""
    return value.numpy() if isinstance(value, Tensor) else np.asarray(value)


def constant(value: Any, like: Any) -> np.ndarray:
    """A number as an array without dimensions, of the element type of a Tensor or array."""
    return np.asarray(value, like.dtype)


def scalar(value: Any, default: Any = None) -> Any:
    """The only element of a Tensor or array as a Python number; the default for None."""
    return default if value is None else host(value).reshape(-1)[0].item()


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape of a Tensor or array."""
    return tuple(value.shape)


def ranked(name: str, rank: int) -> Callable[..., Any]:
    """A function of ``gpuconv.functional`` for so many spatial dimensions: ``conv`` and 2 are ``conv2d``.

    Raises:
        ValueError: there is none.
    """
    function = getattr(F, f"{name}{rank}d", None)
    if function is None:
        raise ValueError(f"gpuconv has no {name}{rank}d")
    return function
