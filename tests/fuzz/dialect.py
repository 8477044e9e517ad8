"""The names that programs are written in, for gpuconv on a backend and for PyTorch.

Both libraries have the same names but for a few: what only gpuconv has (fused operations, padding by side) is put
together from PyTorch's operations here. Operands come from :func:`array`, in gpuconv as an array in memory of any
layout, in PyTorch as a tensor of the same elements.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

LAYOUTS = (
    "C",
    "F",
    "reversed",
    "sliced",
    "inner",
    "broadcast",
    "swapped",
    "unaligned",
    "readonly",
    "empty neighbour",
)


def torch_or_none() -> Any:
    """PyTorch, where it is installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


@functools.lru_cache(maxsize=64)  # each library asks for them
def elements(shape: tuple[int, ...], dtype: str, seed: int, values: Any, offset: int = 0) -> np.ndarray:
    """Random elements: ``values`` is 'normal', 'positive', 'probabilities', 'mask', or the number of classes."""
    rng = np.random.default_rng((seed, offset))
    if isinstance(values, int):
        result = rng.integers(0, values, shape)
    elif values == "mask" or dtype == "bool":
        result = rng.integers(0, 2, shape)
    elif values == "positive":
        result = rng.uniform(0.5, 2, shape)
    elif values == "probabilities":
        result = rng.uniform(0.1, 1, shape)
        result = result / result.sum(0 if len(shape) == 1 else 1, keepdims=True)
    elif dtype[0] == "f":
        result = rng.standard_normal(shape)
    else:
        result = rng.integers(0 if dtype[0] == "u" else -3, 4, shape)
    if dtype[0] == "f":  # the same numbers in float32 and float64
        result = np.asarray(result).astype(np.float32)
    return np.asarray(result).astype(dtype)


def laid_out(values: np.ndarray, layout: str) -> np.ndarray:
    """The same elements elsewhere; 'broadcast' repeats those of the first row."""
    shape, dtype = values.shape, values.dtype
    if not shape and layout in ("reversed", "F"):
        return values  # NumPy would make a number of it
    if layout == "F":
        return np.asarray(values, order="F").copy(order="F")
    if layout == "reversed":
        every = (slice(None, None, -1),) * values.ndim
        return np.ascontiguousarray(values[every]).reshape(shape)[every]
    if layout == "sliced":
        wide = np.zeros([2 * size for size in shape], dtype)
        result = wide[(slice(None, None, 2),) * values.ndim]
    elif layout == "inner":
        result = np.zeros([size + 1 for size in shape], dtype)[(slice(1, None),) * values.ndim]
    elif layout == "broadcast":
        return np.broadcast_to(values[:1].copy(), shape) if values.ndim else values
    elif layout == "swapped":
        return values.astype(dtype.newbyteorder("S"))
    elif layout == "unaligned":
        result = np.ndarray(shape, dtype, np.zeros(values.nbytes + 1, np.uint8), 1)
    elif layout == "readonly":
        result = values.copy()
        result.flags.writeable = False
        return result
    elif layout == "empty neighbour":  # contiguous, and its first element lies anywhere
        result = np.zeros(values.size + 1, dtype)[1:].reshape(shape)
    else:
        return values
    result = np.asarray(result)
    result[...] = values
    return result


def _common(offset: int) -> dict[str, Any]:
    def array(shape: Any, dtype: str = "float32", layout: str = "C", seed: int = 0, values: Any = "normal") -> Any:
        return laid_out(elements(tuple(shape), dtype, seed, values, offset).copy(), layout)

    return {"np": np, "array": array, "copy": copy, "math": math}


def gpuconv_names(offset: int = 0, wide: bool = False) -> dict[str, Any]:
    """gpuconv; ``wide``: float32 is float64, so that rounding does not matter."""
    import gpuconv
    from gpuconv import functional, nn, optim
    from gpuconv.autograd import overwrite

    common = _common(offset)
    plain_array = common["array"]

    def array(shape: Any, dtype: str = "float32", *options: Any, **named: Any) -> Any:
        result = plain_array(shape, dtype, *options, **named)
        return result.astype(np.float64) if wide and result.dtype.kind == "f" else result

    def scalar(dtype: str, value: Any) -> Any:
        return np.dtype(dtype).type(value)

    def fill(module: Any, seed: int, layouts: Any = ("C",), how: str = "state") -> None:
        state = {}
        for number, (name, parameter) in enumerate(module.named_parameters()):
            layout, dtype = layouts[number % len(layouts)], parameter.dtype.name
            state[name] = array(parameter.shape, dtype, layout, seed + number)
            if how == "data":
                parameter.data = state[name]
            elif how == "torch" and torch_or_none():
                state[name] = torch_or_none().tensor(np.array(state[name], parameter.dtype.name, order="C"))
        if how == "weights":
            module.set_weights(list(state.values()))
        elif how != "data":
            module.load_state_dict(state)

    def set_lr(optimizer: Any, lr: float) -> None:
        optimizer.lr = lr

    def copy_of(module: Any) -> Any:
        made = copy.deepcopy(module)
        made.zero_grad()  # PyTorch's copies of parameters have no gradients
        return made

    return common | {
        "F": functional,
        "nn": nn,
        "optim": optim,
        "no_grad": gpuconv.no_grad,
        "Tensor": gpuconv.Tensor,
        "Parameter": nn.Parameter,
        "array": array,
        "scalar": scalar,
        "fill": fill,
        "set_lr": set_lr,
        "copy_of": copy_of,
        "overwrite": lambda target, source: overwrite(target.data, source),
        "cat": gpuconv.cat,
        "stack": gpuconv.stack,
        "state_of": lambda of: of.state_dict(),
        "predict": lambda module, inputs, size: module.predict(inputs, size),
        "float32": np.float64 if wide else np.float32,
        "float64": np.float64,
    }


def torch_names(offset: int = 0, wide: bool = False) -> dict[str, Any]:
    """PyTorch under the same names."""
    import torch

    common = _common(offset)
    plain_array = common["array"]
    functional = torch.nn.functional

    def array(shape: Any, dtype: str = "float32", *options: Any, **named: Any) -> Any:
        values = plain_array(shape, dtype, *options, **named)
        values = np.array(values, values.dtype.newbyteorder("="), order="C")
        return torch.tensor(values.astype(np.float64) if wide and values.dtype.kind == "f" else values)

    def tensor(data: Any, requires_grad: bool = False, *, dtype: Any = None) -> Any:
        made = data.detach().clone() if isinstance(data, torch.Tensor) else torch.tensor(data)
        return made.to(dtype or made.dtype).requires_grad_(requires_grad)

    def parameter(data: Any, requires_grad: bool = True) -> Any:
        return torch.nn.Parameter(data.detach().clone(), requires_grad=requires_grad)

    def padded(x: Any, padding: Any, value: float = 0.0) -> tuple[Any, Any]:
        if isinstance(padding, tuple) and any(isinstance(side, tuple) for side in padding):
            return functional.pad(x, [size for side in reversed(padding) for size in side], value=value), 0
        return x, padding

    def conv2d(x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1):
        x, padding = padded(x, padding)
        return functional.conv2d(x, w, b, stride, padding, dilation, groups)

    def conv1d(x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1):
        x, padding = padded(x, padding)
        return functional.conv1d(x, w, b, stride, padding, dilation, groups)

    def conv2d_relu(*arguments: Any) -> Any:
        return functional.relu(conv2d(*arguments))

    def block(
        *arguments: Any, kernel_size: Any, pool_stride: Any = None, pool_padding: Any = 0, pool_dilation: Any = 1, **o
    ):
        maps = conv2d_relu(*arguments)
        return functional.max_pool2d(maps, kernel_size, pool_stride, pool_padding, pool_dilation, **o)

    def sum_pool2d(x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False) -> Any:
        return functional.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, True, 1)

    def linear_chain(x: Any, weights: Any, biases: Any, relu: Any) -> Any:
        for weight, bias, rectified in zip(weights, biases, relu, strict=True):
            x = functional.linear(x, weight, bias)
            x = functional.relu(x) if rectified else x
        return x

    def half_squared_error(x: Any, target: Any, reduction: str = "sum") -> Any:
        return functional.mse_loss(x, target, reduction=reduction) * 0.5

    def mse_loss(x: Any, target: Any, reduction: str = "mean") -> Any:
        return functional.mse_loss(x, target, reduction=reduction)

    def cross_entropy(x: Any, target: Any, weight: Any = None, ignore: int = -100, reduction: str = "mean", s=0.0):
        return functional.cross_entropy(x, target, weight, ignore_index=ignore, reduction=reduction, label_smoothing=s)

    class SumPool2d(torch.nn.Module):
        def __init__(self, *arguments: Any):
            super().__init__()
            self.arguments = arguments

        def forward(self, x: Any) -> Any:
            return sum_pool2d(x, *self.arguments)

    ours: dict[str, Any] = {
        "conv1d": conv1d,
        "conv2d": conv2d,
        "conv2d_relu": conv2d_relu,
        "conv2d_relu_max_pool2d": block,
        "sum_pool2d": sum_pool2d,
        "linear_relu": lambda *arguments: functional.relu(functional.linear(*arguments)),
        "linear_chain": linear_chain,
        "half_squared_error": half_squared_error,
        "mse_loss": mse_loss,
        "cross_entropy": cross_entropy,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "flatten": torch.flatten,
    }
    layers = {name: value for name, value in vars(torch.nn).items() if not name.startswith("_")}
    wide_or_not = torch.float64 if wide else torch.float32

    def fill(module: Any, seed: int, layouts: Any = ("C",), how: str = "state") -> None:
        with torch.no_grad():
            for number, (_, one) in enumerate(module.named_parameters()):
                layout, dtype = layouts[number % len(layouts)], str(one.dtype)[6:]
                one.copy_(array(one.shape, dtype, layout, seed + number))

    def set_lr(optimizer: Any, lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr

    def overwrite(target: Any, source: Any) -> None:
        if target.shape != source.shape:
            raise ValueError("another shape")
        with torch.no_grad():  # not by .data: what saved the old values is to notice
            target.copy_(source)

    def predict(module: Any, inputs: Any, size: int) -> Any:
        was = {inside: inside.training for inside in module.modules()}
        module.eval()
        with torch.no_grad():
            starts = range(0, max(1, len(inputs)), size)
            outputs = torch.cat([module(inputs[start : start + size]) for start in starts])
        for inside, mode in was.items():
            inside.training = mode
        return outputs

    def state_of(of: Any) -> Any:
        return copy.deepcopy(of.state_dict())

    return common | {
        "F": SimpleNamespace(**{**vars(functional), **ours}),
        "nn": SimpleNamespace(**{**layers, "SumPool2d": SumPool2d, "Parameter": parameter}),
        "optim": torch.optim,
        "no_grad": torch.no_grad,
        "Tensor": tensor,
        "Parameter": parameter,
        "array": array,
        "scalar": lambda dtype, value: {"b": bool, "f": float}.get(dtype[0], int)(value),
        "fill": fill,
        "set_lr": set_lr,
        "copy_of": copy.deepcopy,
        "overwrite": overwrite,
        "cat": torch.cat,
        "stack": torch.stack,
        "state_of": state_of,
        "predict": predict,
        "float32": wide_or_not,
        "float64": torch.float64,
    }


def names(library: str, offset: int = 0, wide: bool = False) -> dict[str, Any]:
    """What a program finds when it begins, on 'torch' or a backend of gpuconv.

    Args:
        library: 'torch', or the name of a backend.
        offset: gives all arrays other elements.
        wide: float32 is float64.
    """
    return (torch_names if library == "torch" else gpuconv_names)(offset, wide)


@contextlib.contextmanager
def running(library: str, wide: bool = False):
    """Where statements run: on the backend; with PyTorch's default type."""
    if library == "torch":
        torch = torch_or_none()
        if not wide:
            yield
            return
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)
        return
    from gpuconv import use_backend

    with use_backend(library):
        yield
