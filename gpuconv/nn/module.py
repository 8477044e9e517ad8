"""Module: a piece of a network that knows its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gpuconv.autograd import Tensor, moved, no_grad, overwrite, to_array

if TYPE_CHECKING:
    from gpuconv.nn.summary import Summary

_M = TypeVar("_M", bound="Module")


class Parameter(Tensor):
    """A Tensor that a Module learns: it requires grad, and the Module it is assigned to lists it."""

    def __init__(self, data: Any, requires_grad: bool = True, *, dtype: Any = None):
        super().__init__(data, requires_grad, dtype=dtype)


class Module:
    """Base of layers and networks. A subclass assigns Parameters and Modules as attributes and defines ``forward``.

    Attributes:
        training: whether layers such as Dropout behave as in training; set by :meth:`train` and :meth:`eval`.
    """

    training: bool
    _parameters: dict[str, Parameter]
    _modules: dict[str, Module]

    def __init__(self) -> None:
        # Assigned past __setattr__, which needs them.
        self.__dict__["_parameters"] = {}
        self.__dict__["_modules"] = {}
        self.training = True

    def forward(self, *inputs: Any) -> Any:
        """Compute the output; subclasses define it, users call the module."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run :meth:`forward`."""
        return self.forward(*inputs, **options)

    # -- structure ---------------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if "_parameters" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}: call super().__init__() before assigning attributes")
        self._check_attribute(name, value)
        self._parameters.pop(name, None)
        self._modules.pop(name, None)
        if isinstance(value, Parameter):
            self._parameters[name] = value
        elif isinstance(value, Module):
            self._modules[name] = value
        object.__setattr__(self, name, value)

    def _check_attribute(self, name: str, value: Any) -> None:
        """Refuse what would lose a parameter or module without a word, or hide a method.

        Raises:
            TypeError: a parameter's or module's name is given something else than one, or None.
            ValueError: a parameter or module under a name that cannot be one.
        """
        kind = type(self).__name__
        if isinstance(value, (Parameter, Module)):
            if not name or "." in name:
                raise ValueError(f"{kind}: {name!r} cannot name a module or parameter: dots separate names from names")
            if callable(getattr(type(self), name, None)) or isinstance(getattr(type(self), name, None), property):
                raise ValueError(f"{kind}: {name!r} is a method, which a module or parameter of that name would hide")
        elif value is not None and name in self._parameters:
            raise TypeError(
                f"{kind}: {name} is a Parameter, and a {type(value).__name__} would take it out of parameters(); write "
                f"into it ({name}.data[...] = values), or assign nn.Parameter(values)"
            )
        elif value is not None and name in self._modules:
            raise TypeError(f"{kind}: {name} is a Module, and cannot become a {type(value).__name__}")

    def __delattr__(self, name: str) -> None:
        self._parameters.pop(name, None)
        self._modules.pop(name, None)
        object.__delattr__(self, name)

    def children(self) -> Iterator[Module]:
        """The modules directly inside this one."""
        return iter(self._modules.values())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside this one, with their names."""
        return iter(self._modules.items())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all inside it, depth first, with dotted names."""
        yield prefix, self
        for name, child in self._modules.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, depth first."""
        return (module for _, module in self.named_modules())

    def named_parameters(self, *, remove_duplicate: bool = True) -> Iterator[tuple[str, Parameter]]:
        """All parameters with dotted names; one that is shared comes once, or under each of its names."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if not (remove_duplicate and id(parameter) in seen):
                    seen.add(id(parameter))
                    yield (f"{prefix}.{name}" if prefix else name), parameter

    def parameters(self) -> Iterator[Parameter]:
        """All parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def extra_repr(self) -> str:
        """The arguments to show between the parentheses of ``repr``."""
        return ""

    def __repr__(self) -> str:
        if not self._modules:
            return f"{type(self).__name__}({self.extra_repr()})"
        inside = "\n".join(f"({name}): {child!r}" for name, child in self._modules.items())
        return f"{type(self).__name__}(\n" + "\n".join("  " + line for line in inside.splitlines()) + "\n)"

    # -- modes -------------------------------------------------------------------------------------------------------

    def train(self: _M, mode: bool = True) -> _M:
        """Set training mode here and in all modules inside; returns self."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self: _M) -> _M:
        """Set evaluation mode here and in all modules inside; returns self."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def apply(self: _M, function: Callable[[Module], None]) -> _M:
        """Call ``function`` on every module inside and on this one; returns self."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def to(self: _M, backend: Any) -> _M:
        """Move all parameters, and their gradients, to where a backend computes; returns self.

        Operations run where the parameters are. An optimizer goes on with them, and its own arrays follow.

        Args:
            backend: 'cuda', or 'cpu' for the host; another backend's name or a Backend will do, too.

        Raises:
            ValueError: no such backend.
            BackendUnavailable: it cannot run here; the message says why.
        """
        for parameter in self.parameters():
            parameter.data = moved(parameter.data, backend)
            if parameter.grad is not None:
                parameter.grad.data = moved(parameter.grad.data, backend)
        return self

    # -- weights in and out ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of all parameters as NumPy arrays under their dotted names, PyTorch's names and layouts.

        One that is shared is there under each of its names, as in PyTorch.
        """
        named = self.named_parameters(remove_duplicate=False)
        return {name: parameter.numpy().copy() for name, parameter in named}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all parameters from arrays (NumPy, torch, ...); nothing is changed if anything does not fit.

        Of one that is shared, one of its names is enough.

        bfloat16 and the floats of a byte, which NumPy lacks, are widened: their values are all float32's, too.

        Raises:
            ValueError: names that are missing or too many, or a shape that does not fit; the message lists them.
            TypeError: what is no mapping, or a value that is no array of real numbers; the message names it, and says
                what would do.
        """
        if not isinstance(state, Mapping):
            hint = "; pass its state_dict()" if hasattr(state, "state_dict") else ""
            raise TypeError(f"load_state_dict: state must map names to arrays, got {type(state).__name__}{hint}")
        own = dict(self.named_parameters(remove_duplicate=False))
        given = {id(own[name]) for name in own if name in state}
        faults = [f"missing {name}" for name, parameter in self.named_parameters() if id(parameter) not in given]
        faults += [f"unexpected {name}" for name in state if name not in own]
        arrays = {}
        for name in own:
            if name not in state:
                continue
            arrays[name] = _values(name, state[name])
            if tuple(arrays[name].shape) != own[name].shape:
                faults.append(f"{name} has shape {tuple(arrays[name].shape)} instead of {own[name].shape}")
            if not getattr(own[name].data.flags, "writeable", True):
                faults.append(f"the array of {name} is read-only")
        if faults:
            inside = [name for name, value in state.items() if isinstance(value, Mapping)]
            hint = f" (state[{inside[0]!r}] is a mapping itself: is it that?)" if inside else ""
            raise ValueError(f"load_state_dict: {type(self).__name__} does not fit: {'; '.join(faults)}{hint}")
        for name, array in arrays.items():
            overwrite(own[name].data, array, "load_state_dict")

    def get_weights(self) -> list[np.ndarray]:
        """A copy of all parameters, in order, as Keras gives them."""
        return [parameter.numpy().copy() for parameter in self.parameters()]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all parameters from a list in the order of :meth:`get_weights`.

        Raises:
            ValueError: another number of arrays, or a shape that does not fit.
        """
        names = [name for name, _ in self.named_parameters()]
        if len(weights) != len(names):
            raise ValueError(f"set_weights: {type(self).__name__} has {len(names)} arrays, got {len(weights)}")
        self.load_state_dict(dict(zip(names, weights, strict=True)))

    # -- use ---------------------------------------------------------------------------------------------------------

    def predict(self, inputs: Any, batch_size: int = 256) -> np.ndarray:
        """The outputs for ``inputs`` as a NumPy array: evaluation mode, no graph, in batches.

        Args:
            inputs: what ``forward`` takes, samples along the first dimension.
            batch_size: samples at a time, which bounds the memory.

        Raises:
            ValueError: ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"predict: batch_size must be at least 1, got {batch_size}")
        inputs = to_array(inputs)
        with evaluating(self), no_grad():
            # At least one batch, so that no samples give an empty result of the right shape.
            outputs = [
                Tensor(self(Tensor(inputs[start : start + batch_size]))).numpy()
                for start in range(0, max(1, len(inputs)), batch_size)
            ]
        return np.concatenate(outputs)

    def summary(self, input_shape: Sequence[int]) -> Summary:
        """Layers, output shapes, parameters and connections for an input of ``input_shape``, batch left out."""
        from gpuconv.nn.summary import summarize

        return summarize(self, input_shape)


def _values(name: str, value: Any) -> Any:
    """The array of an entry of a state.

    Raises:
        TypeError: it is none, or not of real numbers.
    """

    def refused(what: str) -> TypeError:
        return TypeError(f"load_state_dict: {name} {what}")

    # A torch parameter comes with its graph; its values are what is wanted here.
    if hasattr(value, "detach"):
        value = value.detach()
    # What only torch's tensors have, so that torch need not be loaded.
    if getattr(value, "is_quantized", False):
        raise refused(f"is quantized, of type {value.dtype}; pass tensor.dequantize()")
    if getattr(value, "is_nested", False) or getattr(value, "is_meta", False):
        raise refused("is a nested tensor" if value.is_nested else "is on torch's meta device, and has no values")
    if "strided" not in str(getattr(value, "layout", "strided")):
        raise refused("is a sparse tensor; pass tensor.to_dense()")
    element_type = str(getattr(value, "dtype", "")).removeprefix("torch.")
    if element_type.startswith(("bfloat16", "float8")):
        value = value.float() if hasattr(value, "float") else np.asarray(value).astype(np.float32)
    if "complex" in element_type:
        raise refused(f"holds {element_type}; a parameter holds real numbers: pass its .real, or what is meant")
    try:
        return to_array(value)
    except (TypeError, ValueError, RuntimeError) as error:  # the last one where it is on a GPU, and CuPy is missing
        if not hasattr(value, "dtype") and not isinstance(value, (list, tuple)):
            raise refused(f"is a {type(value).__name__}, and no array of numbers") from None
        raise refused(f"cannot be taken: {error}") from None


@contextmanager
def evaluating(module: Module) -> Iterator[None]:
    """Evaluation mode inside the ``with`` block; afterwards every module is as it was."""
    modes = [(inside, inside.training) for inside in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for inside, mode in modes:
            inside.training = mode
