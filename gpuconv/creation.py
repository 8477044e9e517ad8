"""Functions that create Tensors, with PyTorch's names: ``zeros``, ``randn``, ``arange``.

Floats are float32 unless ``dtype`` says otherwise: a type, as ``gpuconv.float16``, or its name, as 'bfloat16'.
``device`` is 'cpu' or 'cuda'. Random numbers are drawn on the host, from the generator that ``gpuconv.manual_seed``
sets unless another one is given.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpuconv.arrays import as_torch
from gpuconv.autograd import Tensor, moved, to_array
from gpuconv.backends import capturing
from gpuconv.dtypes import element_type
from gpuconv.random import default_generator

__all__ = [
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "eye",
    "from_numpy",
    "full",
    "full_like",
    "is_tensor",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "randperm",
    "tensor",
    "to_torch",
    "zeros",
    "zeros_like",
]


def _made(array: Any, dtype: Any, device: Any, requires_grad: bool) -> Tensor:
    array = array if dtype is None else np.asarray(array, element_type(dtype))
    if capturing.current() is not None:  # each repetition begins with these elements, whatever was written there since
        array = capturing.repeated(array.copy, array)
    return Tensor(array if device is None else moved(array, device), bool(requires_grad))


def _sizes(op: str, size: tuple[Any, ...]) -> tuple[int, ...]:
    several = size[0] if len(size) == 1 and isinstance(size[0], Sequence) else size
    try:
        sizes = tuple(operator.index(one) for one in several)
    except TypeError:
        raise TypeError(f"{op}: size must be integers, or one sequence of them, got {size}") from None
    if min(sizes, default=0) < 0:
        raise ValueError(f"{op}: size must be at least 0, got {sizes}")
    return sizes


def _generator(op: str, generator: Any) -> np.random.Generator:
    if generator is not None and not isinstance(generator, np.random.Generator):
        raise TypeError(f"{op}: generator must be a numpy.random.Generator, got {type(generator).__name__}")
    return generator or default_generator()


def _random(
    op: str, generator: Any, draw: Callable[[Any], Any], dtype: Any, device: Any, requires_grad: bool = False
) -> Tensor:
    generator = _generator(op, generator)
    array = capturing.drawn(generator, lambda: np.asarray(draw(generator), element_type(dtype)))
    return Tensor(array if device is None else moved(array, device), bool(requires_grad))


def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A Tensor of a copy of ``data``: numbers, nested sequences of them, arrays, Tensors.

    Raises:
        TypeError: not numeric, or ``requires_grad`` with integers.
    """
    array = capturing.repeated(lambda: to_array(data, dtype).copy(), to_array(data))
    return Tensor(array if device is None else moved(array, device), bool(requires_grad))


def as_tensor(data: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """A Tensor of ``data``: ``data`` itself if it is one, else a Tensor that shares its memory if possible."""
    if isinstance(data, Tensor) and dtype is None and device is None:
        return data
    array = to_array(data, dtype)
    return Tensor(array if device is None else moved(array, device))


def from_numpy(ndarray: np.ndarray) -> Tensor:
    """A Tensor that shares the memory of a NumPy array. TypeError: something else."""
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"from_numpy: ndarray must be a numpy.ndarray, got {type(ndarray).__name__}")
    return Tensor(ndarray)


def to_torch(data: Any) -> Any:
    """A Tensor or array as a torch tensor on the same memory; of a mapping, as a state dict is one, a dict of them.

    Raises:
        ImportError: PyTorch is not installed.
    """
    if isinstance(data, Mapping):
        return {name: to_torch(value) for name, value in data.items()}
    array = to_array(data)
    return as_torch(array.view(np.ndarray) if isinstance(array, np.ndarray) else array)


def is_tensor(obj: Any) -> bool:
    """Whether it is a Tensor."""
    return isinstance(obj, Tensor)


def zeros(*size: Any, dtype: Any = np.float32, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros; ``size`` is integers or one sequence of them."""
    return _made(np.zeros(_sizes("zeros", size), element_type(dtype)), None, device, requires_grad)


def ones(*size: Any, dtype: Any = np.float32, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones; ``size`` is integers or one sequence of them."""
    return _made(np.ones(_sizes("ones", size), element_type(dtype)), None, device, requires_grad)


def empty(*size: Any, dtype: Any = np.float32, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Uninitialised elements; ``size`` is integers or one sequence of them."""
    return _made(np.empty(_sizes("empty", size), element_type(dtype)), None, device, requires_grad)


def full(size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """``fill_value`` everywhere, in the dtype of its kind: bool, int64 or float32."""
    sizes = _sizes("full", (size,) if isinstance(size, Sequence) else (tuple(size),))
    value = to_array(fill_value, dtype)
    return _made(np.full(sizes, value), dtype, device, requires_grad)


def zeros_like(input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of the input's shape; of its type and on its device, unless others are given."""
    return full_like(input, 0, dtype=dtype, device=device, requires_grad=requires_grad)


def ones_like(input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of the input's shape; of its type and on its device, unless others are given."""
    return full_like(input, 1, dtype=dtype, device=device, requires_grad=requires_grad)


def full_like(
    input: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """``fill_value`` in the input's shape; of its type and on its device, unless others are given."""
    result = empty_like(input, dtype=dtype, device=device, requires_grad=requires_grad)
    array = result.data
    capturing.repeated(lambda: array.__setitem__(..., fill_value), array)
    return result


def empty_like(input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Uninitialised elements in the input's shape; of its type and on its device, unless others are given."""
    shape, alike = _alike(input, dtype, device, requires_grad)
    return empty(shape, **alike)


def arange(
    start: Any = 0,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Numbers from ``start`` to before ``end`` in steps; ``arange(end)`` starts at 0. Integers become int64.

    Raises:
        ValueError: ``step`` is 0, or leads away from ``end``.
    """
    start, end = (0, start) if end is None else (start, end)
    if step == 0:
        raise ValueError("arange: step must not be 0")
    if (end - start) * step < 0:
        raise ValueError(f"arange: step {step} leads from start {start} away from end {end}")
    whole = all(isinstance(value, (int, np.integer)) for value in (start, end, step))
    values: Any = np.arange(start, end, step, dtype=np.int64 if whole else np.float64)
    return _made(values, (np.int64 if whole else np.float32) if dtype is None else dtype, device, requires_grad)


def linspace(
    start: float, end: float, steps: int, *, dtype: Any = np.float32, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """``steps`` equally spaced numbers from ``start`` to ``end``, both included."""
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 0:
        raise ValueError(f"linspace: steps must be an integer of at least 0, got {steps!r}")
    return _made(np.linspace(start, end, steps), dtype, device, requires_grad)


def eye(
    n: int, m: int | None = None, *, dtype: Any = np.float32, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Ones on the diagonal of an (n, m) matrix, zeros elsewhere."""
    rows, columns = _sizes("eye", (n, n if m is None else m))
    return _made(np.eye(rows, columns, dtype=element_type(dtype)), None, device, requires_grad)


def rand(
    *size: Any, dtype: Any = np.float32, device: Any = None, requires_grad: bool = False, generator: Any = None
) -> Tensor:
    """Uniform random numbers from 0 to 1."""
    sizes = _sizes("rand", size)
    return _random("rand", generator, lambda draw: draw.random(sizes, _drawn(dtype)), dtype, device, requires_grad)


def randn(
    *size: Any, dtype: Any = np.float32, device: Any = None, requires_grad: bool = False, generator: Any = None
) -> Tensor:
    """Normal random numbers of mean 0 and variance 1."""
    sizes = _sizes("randn", size)
    return _random(
        "randn", generator, lambda draw: draw.standard_normal(sizes, _drawn(dtype)), dtype, device, requires_grad
    )


def _drawn(dtype: Any) -> Any:
    return np.float64 if element_type(dtype) == np.float64 else np.float32


def rand_like(
    input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, generator: Any = None
) -> Tensor:
    """:func:`rand` of the input's shape; of its type and on its device, unless others are given."""
    shape, alike = _alike(input, dtype, device, requires_grad)
    return rand(shape, generator=generator, **alike)


def randn_like(
    input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, generator: Any = None
) -> Tensor:
    """:func:`randn` of the input's shape; of its type and on its device, unless others are given."""
    shape, alike = _alike(input, dtype, device, requires_grad)
    return randn(shape, generator=generator, **alike)


def _alike(input: Any, dtype: Any, device: Any, requires_grad: bool) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The input's shape; and its type and device, or those that are given, as arguments."""
    array = to_array(input)
    here = None if isinstance(array, np.ndarray) else "cuda"
    device, dtype = here if device is None else device, array.dtype if dtype is None else dtype
    return tuple(array.shape), {"dtype": dtype, "device": device, "requires_grad": requires_grad}


def randint(
    low: int, high: Any, size: Any = None, *, dtype: Any = np.int64, device: Any = None, generator: Any = None
) -> Tensor:
    """Integers from ``low`` to before ``high``, of shape ``size``; ``randint(high, size)`` starts at 0."""
    low, high, size = (0, low, high) if size is None else (low, high, size)
    if low >= high:
        raise ValueError(f"randint: low must be below high, got {low} and {high}")
    sizes = _sizes("randint", (size,))
    return _random("randint", generator, lambda draw: draw.integers(low, high, sizes), dtype, device)


def randperm(n: int, *, dtype: Any = np.int64, device: Any = None, generator: Any = None) -> Tensor:
    """The integers from 0 to before ``n`` in random order."""
    (n,) = _sizes("randperm", (n,))
    return _random("randperm", generator, lambda draw: draw.permutation(n), dtype, device)
