"""Functions on all parameters at once, with the names of ``torch.nn.utils``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor, overwrite, to_array, to_numpy
from gpuconv.dtypes import is_half

__all__ = ["clip_grad_norm_", "clip_grad_value_", "get_total_norm", "parameters_to_vector", "vector_to_parameters"]


def _parameters(op: str, parameters: Any) -> list[Tensor]:
    several = [parameters] if isinstance(parameters, Tensor) else parameters
    if isinstance(several, str) or not isinstance(several, Iterable):
        raise TypeError(f"{op}: parameters must be a Tensor or Tensors, got {type(parameters).__name__}")
    listed = list(several)
    for parameter in listed:
        if not isinstance(parameter, Tensor):
            raise TypeError(f"{op}: parameters must be Tensors, got {type(parameter).__name__}")
    return listed


def _number(op: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    return float(value)


def _norm(gradients: list[Tensor], norm_type: float) -> Tensor:
    """The norm of all gradients together, on their device."""
    if not gradients:
        return Tensor(np.zeros((), np.float32))
    # In float32 at least: a sum of squares soon leaves float16's range.
    norms = [(gradient.float() if is_half(gradient.dtype) else gradient).norm(norm_type) for gradient in gradients]
    first = norms[0]
    for other in norms[1:]:
        if math.isinf(norm_type):
            first = (first.maximum if norm_type > 0 else first.minimum)(other)
        else:
            first = (first.abs() ** norm_type + other.abs() ** norm_type) ** (1 / norm_type)
    return first


def get_total_norm(tensors: Iterable[Tensor], norm_type: float = 2.0) -> Tensor:
    """The norm of all Tensors together, as if they were one vector."""
    op = "get_total_norm"
    given = [one.detach() for one in _parameters(op, tensors)]
    return _of_type(_norm(given, _number(op, "norm_type", norm_type)), given)


def _of_type(total: Tensor, gradients: list[Tensor]) -> Tensor:
    """A norm in the type of the gradients, if that is one half type."""
    types = {gradient.dtype for gradient in gradients}
    return total.type_as(gradients[0]) if len(types) == 1 and is_half(types.pop()) else total


def clip_grad_norm_(
    parameters: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale all gradients so that their norm, taken together, is at most ``max_norm`` (Pascanu et al., 2013).

    Args:
        parameters: Tensors, whose gradients are changed in place; those that are None are left out.
        max_norm: the largest norm; the factor is ``max_norm / (norm + 1e-6)``, at most 1.
        norm_type: which norm; infinity for the largest element.
        error_if_nonfinite: refuse a norm that is NaN or infinite.

    Returns:
        The norm before.

    Raises:
        RuntimeError: the norm is not finite, with ``error_if_nonfinite``.
    """
    op = "clip_grad_norm_"
    listed = _parameters(op, parameters)
    max_norm, norm_type = _number(op, "max_norm", max_norm), _number(op, "norm_type", norm_type)
    gradients = [parameter.grad for parameter in listed if parameter.grad is not None]
    total = _norm([gradient.detach() for gradient in gradients], norm_type)
    if error_if_nonfinite and not math.isfinite(total.item()):
        raise RuntimeError(f"{op}: the total norm of the gradients is {total.item()}, which is not finite")
    # Computed on the device, so that the host need not wait for the norm.
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        overwrite(gradient.data, (gradient.detach() * factor.type_as(gradient)).data, op)
    return _of_type(total, gradients)


def clip_grad_value_(parameters: Any, clip_value: float) -> None:
    """Clip all elements of all gradients to ``-clip_value`` to ``clip_value``, in place."""
    op = "clip_grad_value_"
    bound = _number(op, "clip_value", clip_value)
    for parameter in _parameters(op, parameters):
        if parameter.grad is not None:
            overwrite(parameter.grad.data, parameter.grad.detach().clamp(-bound, bound).data, op)


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters concatenated to one vector: a copy on the host, without a graph."""
    listed = _parameters("parameters_to_vector", parameters)
    if not listed:
        raise ValueError("parameters_to_vector: parameters must have at least one element")
    return Tensor(np.concatenate([to_numpy(parameter).reshape(-1) for parameter in listed]))


def vector_to_parameters(vec: Any, parameters: Iterable[Tensor]) -> None:
    """Set all parameters, in place, from a vector of :func:`parameters_to_vector`. ValueError: another length."""
    op = "vector_to_parameters"
    listed, values = _parameters(op, parameters), to_array(vec)
    total = sum(parameter.numel() for parameter in listed)
    if values.shape != (total,):
        raise ValueError(f"{op}: vec must have shape ({total},), got {tuple(values.shape)}")
    start = 0
    for parameter in listed:
        overwrite(parameter.data, values[start : start + parameter.numel()].reshape(parameter.shape), op)
        start += parameter.numel()
