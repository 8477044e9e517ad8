"""Module: a part of a network, with its parameters."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from gpuconv.arrays import StateArray
from gpuconv.autograd import Tensor, destination, is_grad_enabled, moved, no_grad, overwrite, to_array
from gpuconv.dtypes import kind_of
from gpuconv.nn.summary import Summary, summarize

_M = TypeVar("_M", bound="Module")
#: What torch.nn.DataParallel and DistributedDataParallel put before the names of the network inside.
_PARALLEL = "module."


class Parameter(Tensor):
    """A Tensor that a Module learns. It requires grad, and the Module that it is assigned to registers it."""

    def __init__(self, data: Any, requires_grad: bool = True, *, dtype: Any = None):
        super().__init__(data, requires_grad, dtype=dtype)


class Module:
    """Base of layers and networks. A subclass assigns Parameters and Modules as attributes and defines ``forward``.

    Attributes:
        training: whether layers such as Dropout behave as in training; set by :meth:`train` and :meth:`eval`.
    """

    training: bool
    #: Attributes that ``repr`` shows as ``name=value``.
    _in_repr: ClassVar[tuple[str, ...]] = ()
    _parameters: dict[str, Parameter]
    _modules: dict[str, Module]
    _buffers: dict[str, Tensor | None]
    _not_saved: set[str]
    _forward_hooks: dict[int, Callable[..., Any]]
    _forward_pre_hooks: dict[int, Callable[..., Any]]
    _backward_hooks: dict[int, Callable[..., Any]]

    def __init__(self) -> None:
        # Assigned past __setattr__, which needs them.
        self.__dict__["_parameters"] = {}
        self.__dict__["_modules"] = {}
        self.__dict__["_buffers"] = {}
        self.__dict__["_not_saved"] = set()
        self.__dict__["_forward_hooks"] = {}
        self.__dict__["_forward_pre_hooks"] = {}
        self.__dict__["_backward_hooks"] = {}
        self.training = True

    if TYPE_CHECKING:  # a subclass names the arguments as it likes
        forward: Callable[..., Any]
    else:

        def forward(self, *inputs: Any) -> Any:
            """Compute the output. Subclasses define it; users call the module itself."""
            raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run the hooks before :meth:`forward`, :meth:`forward`, and the hooks after it."""
        if "_hooked" not in self.__dict__:
            return self.forward(*inputs, **options)
        for before in list(self._forward_pre_hooks.values()):
            changed = before(self, inputs)
            if changed is not None:
                inputs = changed if isinstance(changed, tuple) else (changed,)
        if self._backward_hooks and is_grad_enabled():
            return self._watched(inputs, options)
        return self._with_forward_hooks(inputs, options)

    def _with_forward_hooks(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        output = self.forward(*inputs, **options)
        for behind in list(self._forward_hooks.values()):
            changed = behind(self, inputs, output)
            output = output if changed is None else changed
        return output

    def register_forward_hook(self, hook: Callable[[Module, tuple[Any, ...], Any], Any]) -> RemovableHandle:
        """Call ``hook(module, inputs, output)`` after each forward; if it returns something, that replaces the output.

        Returns a handle with a method ``remove``.
        """
        return RemovableHandle(self, self._forward_hooks, hook)

    def register_forward_pre_hook(self, hook: Callable[[Module, tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call ``hook(module, inputs)`` before each forward; if it returns something, that replaces the inputs.

        Returns a handle with a method ``remove``.
        """
        return RemovableHandle(self, self._forward_pre_hooks, hook)

    def register_full_backward_hook(self, hook: Callable[[Module, Any, Any], Any]) -> RemovableHandle:
        """Call ``hook(module, grad_input, grad_output)`` in each backward, when both are there: tuples of Tensors.

        ``grad_input`` has one for each input, None where none is wanted; what the hook returns, if anything, replaces
        them: a Tensor, or a tuple of as many. With several inputs that want gradients nothing can be replaced.
        Returns what has a method ``remove``.
        """
        return RemovableHandle(self, self._backward_hooks, hook)

    def _watched(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run forward so that the backward hooks are called."""
        wanted = [isinstance(one, Tensor) and one.requires_grad for one in inputs]
        grads_in: list[Any] = [None] * len(inputs)
        grads_out: list[Any] = []
        left = sum(wanted)

        def call() -> Any:
            changed = None
            for hook in list(self._backward_hooks.values()):
                given = hook(self, tuple(grads_in), tuple(grads_out))
                changed = changed if given is None else given
            return changed

        def arrived(position: int, grad: Tensor) -> Any:
            nonlocal left
            grads_in[position], left = grad, left - 1
            if left:
                return None
            changed = call()
            if changed is None:
                return None
            if sum(wanted) > 1:
                raise RuntimeError(f"{type(self).__name__}: a backward hook cannot replace gradients of several inputs")
            return changed[position] if isinstance(changed, tuple) else changed

        watched = []
        for position, (one, want) in enumerate(zip(inputs, wanted, strict=True)):
            own = one.view_as(one) if want else one  # a node of its own, whose gradient is this use's alone
            if want:
                own.register_hook(functools.partial(arrived, position))
            watched.append(own)
        output = self._with_forward_hooks(tuple(watched), options)
        results = output if isinstance(output, tuple) else (output,)
        passed, count = [], sum(isinstance(one, Tensor) and one.requires_grad for one in results)
        grads_out = [None] * len(results)
        arrived_out = 0

        def noted(position: int, grad: Tensor) -> None:
            nonlocal arrived_out
            grads_out[position], arrived_out = grad, arrived_out + 1
            if arrived_out == count and not any(wanted):
                call()

        for position, one in enumerate(results):
            if isinstance(one, Tensor) and one.requires_grad:
                one = one.view_as(one)
                one.register_hook(functools.partial(noted, position))
            passed.append(one)
        return tuple(passed) if isinstance(output, tuple) else passed[0]

    # -- structure ---------------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if "_parameters" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}: call super().__init__() before assigning attributes")
        if name in self._buffers and not isinstance(value, (Parameter, Module)):
            self._set_buffer(name, value)
            return
        self._check_attribute(name, value)
        self._buffers.pop(name, None)
        self._parameters.pop(name, None)
        self._modules.pop(name, None)
        if isinstance(value, Parameter):
            self._parameters[name] = value
        elif isinstance(value, Module):
            self._modules[name] = value
        object.__setattr__(self, name, value)

    def _check_attribute(self, name: str, value: Any) -> None:
        """Refuse an assignment that would silently drop a parameter or module, or hide a method.

        Raises:
            TypeError: the name of a parameter or module is given a value of another kind (None is allowed).
            ValueError: the name of a parameter or module contains a dot, or is a method.
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

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Register a Tensor that is part of the state but is not learned, such as a running mean.

        Args:
            name: name of the attribute.
            tensor: the Tensor; or None, which is not part of the state.
            persistent: whether :meth:`state_dict` contains it.

        Raises:
            TypeError: ``tensor`` is neither a Tensor nor None.
            ValueError: the name is taken or invalid.
        """
        kind = type(self).__name__
        if name not in self._buffers and hasattr(self, name):
            raise ValueError(f"{kind}: register_buffer: name {name!r} is taken")
        if not name or "." in name:
            raise ValueError(f"{kind}: register_buffer: name {name!r} cannot be one: dots separate names from names")
        self._set_buffer(name, tensor)
        (self._not_saved.discard if persistent else self._not_saved.add)(name)

    def _set_buffer(self, name: str, value: Tensor | None) -> None:
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"{type(self).__name__}: buffer {name} must be a Tensor or None, got {type(value).__name__}"
            )
        self._buffers[name] = value
        object.__setattr__(self, name, value)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Set a parameter, as assigning it does. TypeError: neither a Parameter nor None."""
        if param is not None and not isinstance(param, Parameter):
            kind = type(self).__name__
            raise TypeError(
                f"{kind}: register_parameter: param must be a Parameter or None, got {type(param).__name__}"
            )
        setattr(self, name, param)

    def add_module(self, name: str, module: Module | None) -> None:
        """Set a module under any name, as assigning it does. TypeError: neither a Module nor None."""
        if module is not None and not isinstance(module, Module):
            kind = type(self).__name__
            raise TypeError(f"{kind}: add_module: module must be a Module or None, got {type(module).__name__}")
        setattr(self, name, module)

    def __delattr__(self, name: str) -> None:
        self._buffers.pop(name, None)
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
        """All parameters with dotted names; a shared one is listed once, or under each of its names."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if not (remove_duplicate and id(parameter) in seen):
                    seen.add(id(parameter))
                    yield (f"{prefix}.{name}" if prefix else name), parameter

    def parameters(self) -> Iterator[Parameter]:
        """All parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """All buffers with dotted names, those that are not saved included."""
        for prefix, module in self.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    yield (f"{prefix}.{name}" if prefix else name), buffer

    def buffers(self) -> Iterator[Tensor]:
        """All buffers."""
        return (buffer for _, buffer in self.named_buffers())

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        """What :meth:`state_dict` holds: parameters and buffers, module by module."""
        for prefix, module in self.named_modules():
            own: dict[str, Any] = dict(module._parameters)
            own.update((name, buffer) for name, buffer in module._buffers.items() if name not in module._not_saved)
            for name, value in own.items():
                if value is not None:
                    yield (f"{prefix}.{name}" if prefix else name), value

    def extra_repr(self) -> str:
        """The text between the parentheses of ``repr``."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in self._in_repr)

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

    def requires_grad_(self: _M, requires_grad: bool = True) -> _M:
        """Set ``requires_grad`` of all parameters; returns self."""
        for parameter in self.parameters():
            parameter.requires_grad = bool(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients of all parameters to None. TypeError: ``set_to_none=False``, which is not supported."""
        if not set_to_none:
            raise TypeError("zero_grad: set_to_none=False is not available; a gradient that is None counts as zero")
        for parameter in self.parameters():
            parameter.zero_grad()

    def apply(self: _M, function: Callable[[Module], None]) -> _M:
        """Call ``function`` on every module inside and on this one; returns self."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def to(self: _M, *what: Any, dtype: Any = None, device: Any = None, non_blocking: bool = False) -> _M:
        """Move parameters, gradients, buffers to a device, or give floats another type; returns self.

        Operations run where the parameters are. Optimizers keep working: their arrays follow to a
        device. Of another type, make them anew.

        Args:
            what: a device, an element type, or both, in this order; or a Tensor, whose device and type are taken.
            dtype: a float type; integers keep theirs.
            device: 'cuda', 'cpu' for the host, the name of another backend, or a Backend.
            non_blocking: taken, and not looked at: what is queued on a device runs in order.

        Raises:
            TypeError: neither, or no float type.
            ValueError: no such backend.
            BackendUnavailable: it cannot run here; the message says why.
        """
        dtype, device = destination(what, dtype, device)
        if dtype is not None and kind_of(dtype) != "f":
            raise TypeError(f"to: dtype must be a float type, got {dtype}; parameters have no other")
        values: list[Tensor] = [*self.parameters(), *self.buffers()]
        for value in (*values, *[value.grad for value in values if value.grad is not None]):
            if device is not None:
                value.data = moved(value.data, device)
            if dtype is not None and value.dtype != dtype and kind_of(value.dtype) == "f":
                with np.errstate(over="ignore"):  # too large for a half type: infinite, as in an operation
                    value.data = value.data.astype(dtype)
        return self

    def cpu(self: _M) -> _M:
        """Move all parameters, their gradients, and all buffers to the host; returns self."""
        return self.to("cpu")

    def cuda(self: _M) -> _M:
        """Move them to the GPU; returns self. BackendUnavailable: there is none."""
        return self.to("cuda")

    def float(self: _M) -> _M:
        """Convert all float parameters, gradients and buffers to float32; returns self."""
        return self.to(dtype=np.float32)

    def double(self: _M) -> _M:
        """Convert all float parameters, gradients and buffers to float64; returns self."""
        return self.to(dtype=np.float64)

    def half(self: _M) -> _M:
        """Convert all float parameters, gradients and buffers to float16; returns self. Inputs must be float16, too."""
        return self.to(dtype=np.float16)

    def bfloat16(self: _M) -> _M:
        """As :meth:`half`, to bfloat16. ModuleNotFoundError: ``ml_dtypes`` is not installed."""
        return self.to(dtype="bfloat16")

    # -- weights in and out ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of all parameters and buffers as NumPy arrays, with PyTorch's dotted names and layouts.

        A shared parameter or buffer is listed under each of its names, as in PyTorch. torch's ``load_state_dict`` takes
        it as it is; ``gpuconv.to_torch`` makes tensors of it for what takes nothing else, such as ``torch.save``.
        """
        return {name: value.numpy().copy().view(StateArray) for name, value in self._state()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Set all parameters and buffers from arrays (NumPy, torch, ...); if anything does not fit, nothing is changed.

        A shared parameter or buffer needs only one of its names. With ``strict=False``, names may be missing or
        unknown.

        Values are converted to the types of the parameters. Names that all begin with ``module.``, as those of a
        network inside torch's DataParallel, are taken without it.

        Raises:
            ValueError: missing or unknown names, or a shape that does not fit; the message lists them.
            TypeError: not a mapping, or a value that is not an array of real numbers; the message names it, and says
                what would do.
        """
        if not isinstance(state, Mapping):
            hint = "; pass its state_dict()" if hasattr(state, "state_dict") else ""
            raise TypeError(f"load_state_dict: state must map names to arrays, got {type(state).__name__}{hint}")
        own = dict(self._state())
        parallel = state and all(isinstance(name, str) and name.startswith(_PARALLEL) for name in state)
        if parallel and not any(name.startswith(_PARALLEL) for name in own):
            state = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
        given = {id(own[name]) for name in own if name in state}
        faults: list[str] = []
        named: set[int] = set()
        for name, value in own.items():
            if id(value) not in given | named:
                faults.append(f"missing {name}")
            named.add(id(value))
        faults += [f"unexpected {name}" for name in state if name not in own]
        faults = faults if strict else []
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
        self.load_state_dict(dict(zip(names, weights, strict=True)), strict=False)  # buffers stay

    # -- use ---------------------------------------------------------------------------------------------------------

    def predict(self, inputs: Any, batch_size: int = 256) -> np.ndarray:
        """The outputs for ``inputs`` as a NumPy array: in evaluation mode, without a graph, in batches.

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
        with evaluating(self):
            return summarize(self, input_shape)

    def connections(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
        """Connections of a layer, for shapes without the batch: uses of a weight or a bias. 0 where there are none."""
        return 0


def _values(name: str, value: Any) -> Any:
    """The array of an entry of a state dict.

    Raises:
        TypeError: it is not an array of real numbers.
    """

    def refused(what: str) -> TypeError:
        return TypeError(f"load_state_dict: {name} {what}")

    # A torch parameter comes with its graph; only its values are needed.
    if hasattr(value, "detach"):
        value = value.detach()
    # Attributes that only torch tensors have, so that torch need not be imported.
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


class RemovableHandle:
    """Removes a hook again, with :meth:`remove`."""

    def __init__(self, module: Module, hooks: dict[int, Any], hook: Any):
        self._module, self._hooks, self._number = module, hooks, next(_hook_numbers)
        hooks[self._number] = hook
        # Checked in every call, so it is a single look-up in one dict.
        module.__dict__["_hooked"] = True

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        self._hooks.pop(self._number, None)
        module = self._module
        if not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks):
            self._module.__dict__.pop("_hooked", None)


_hook_numbers = itertools.count()


@contextmanager
def evaluating(module: Module) -> Iterator[None]:
    """Evaluation mode inside the ``with`` block; afterwards the mode of every module is restored."""
    modes = [(inside, inside.training) for inside in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for inside, mode in modes:
            inside.training = mode


class Calling(Module):
    """Base of modules that call a function: a subclass names it, as in ``class Mish(_Inplace, function=F.mish)``.

    The function takes the input and the attributes that ``repr`` shows, unless the subclass calls it otherwise.
    """

    function: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls, function: Callable[..., Any] | None = None, **options: Any):
        super().__init_subclass__(**options)
        if function is not None:
            cls.function = staticmethod(function)

    if not TYPE_CHECKING:  # as in Module

        def forward(self, input: Any) -> Any:
            return type(self).function(input, *[getattr(self, name) for name in self._in_repr])
