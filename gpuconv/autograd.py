"""Reverse-mode automatic differentiation: the graph, without any operation.

An operation is a :class:`Function`, with its forward and its backward side by side. :meth:`Function.apply` runs the
forward pass and, if a gradient may be wanted, records what ran, on which inputs and on which backend.
:meth:`Tensor.backward` walks these records from the result to the leaves (reverse accumulation; Linnainmaa, 1970). The
walk is iterative, so the depth of a graph is limited by memory only.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import operator
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import numpy as np

from gpuconv import backends, versions
from gpuconv.arrays import adopted, as_torch, device, on_device
from gpuconv.backends import Array, Backend, capturing
from gpuconv.dtypes import bfloat16, element_type, is_half, kind_of

__all__ = [
    "Context",
    "Function",
    "GradcheckError",
    "Tensor",
    "at_end_of_backward",
    "backend_of",
    "destination",
    "enable_grad",
    "gradcheck",
    "inference_mode",
    "is_default_seed",
    "is_grad_enabled",
    "is_recording",
    "moved",
    "native",
    "no_grad",
    "overwrite",
    "recording",
    "set_grad_enabled",
    "tensor_method",
    "to_array",
    "to_numpy",
    "undone",
]

_grad_enabled: ContextVar[bool] = ContextVar("gpuconv_grad_enabled", default=True)


class no_grad(ContextDecorator):
    """Context manager and decorator, with parentheses or without: operations inside record no graph, in this thread or
    task.
    """

    _enabled = False

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        """A context manager; of a function, the function decorated."""
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        self._tokens: list[Token[bool]] = []

    def __enter__(self) -> no_grad:
        self._tokens.append(_grad_enabled.set(self._enabled))
        return self

    def __exit__(self, *exc_info: object) -> None:
        _grad_enabled.reset(self._tokens.pop())

    def __call__(self, func: _F) -> _F:
        """The function decorated; of a generator, what runs between two of its values."""
        if not inspect.isgeneratorfunction(func):
            return super().__call__(func)

        @functools.wraps(func)
        def generator(*arguments: Any, **options: Any) -> Iterator[Any]:
            values = func(*arguments, **options)
            go_on = functools.partial(next, values)
            while True:
                with self._recreate_cm():
                    try:
                        value = go_on()
                    except StopIteration as end:
                        return end.value
                try:
                    go_on = functools.partial(values.send, (yield value))
                except GeneratorExit:
                    with self._recreate_cm():
                        values.close()
                    raise
                except BaseException as error:
                    go_on = functools.partial(values.throw, error)

        return cast("_F", generator)

    def _recreate_cm(self) -> no_grad:
        return type(self)()  # one instance for each call: a decorated function may run in several threads


class enable_grad(no_grad):
    """As :class:`no_grad`, but operations inside record a graph, also inside of :class:`no_grad`."""

    _enabled = True


class inference_mode(no_grad):
    """As :class:`no_grad`, which PyTorch has by this name too; what is computed inside may be used like any tensor.

    Args:
        mode: False to record a graph, as :class:`enable_grad`.
    """

    def __new__(cls, mode: Any = True) -> Any:
        """As of :class:`no_grad`."""
        return super().__new__(cls, mode if callable(mode) else None)

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self._enabled = not mode

    def _recreate_cm(self) -> inference_mode:
        return type(self)(not self._enabled)


class set_grad_enabled(contextlib.AbstractContextManager[None]):
    """From now on operations record a graph, or none; as a context manager until the end of the ``with`` block, and as
    a decorator in that function alone.

    Args:
        mode: whether they do.
    """

    def __init__(self, mode: bool) -> None:
        self._mode, self._token = mode, _grad_enabled.set(bool(mode))

    def __exit__(self, *exc_info: object) -> None:
        _grad_enabled.reset(self._token)

    def __call__(self, function: Callable[..., Any]) -> Any:
        """The function decorated; outside of it, what held before holds again."""
        self.__exit__()
        return (enable_grad if self._mode else no_grad)(function)


#: Who is told of each operation: mostly nobody.
_recorder: ContextVar[Callable[..., None] | None] = ContextVar("gpuconv_recorder", default=None)


def is_recording() -> bool:
    """Whether somebody is told of each operation."""
    return _recorder.get() is not None


@contextlib.contextmanager
def recording(note: Callable[..., None]) -> Iterator[None]:
    """In a ``with`` block, call ``note(function, inputs, options, results)`` after each operation of this thread.

    ``function`` is a :class:`Function`, or for a comparison the one of :mod:`operator`; ``inputs`` are what it was
    given, ``results`` a list.
    """
    token = _recorder.set(note)
    try:
        yield
    finally:
        _recorder.reset(token)


#: What puts back what was written, one call for each write; None where it stays, as mostly.
_undo: ContextVar[list[Callable[[], None]] | None] = ContextVar("gpuconv_undo", default=None)


@contextlib.contextmanager
def undone() -> Iterator[None]:
    """After a ``with`` block put back, for this thread, gradients of leaves and what :func:`overwrite` wrote in it."""
    writes: list[Callable[[], None]] = []
    token = _undo.set(writes)
    try:
        yield
    finally:
        _undo.reset(token)
        for put_back in reversed(writes):
            put_back()


def is_grad_enabled() -> bool:
    """Whether operations record the graph at present."""
    return _grad_enabled.get()


def to_array(data: Any, dtype: Any = None) -> Array:
    """Return data as an array, without a copy if it is one already.

    Takes Tensors, arrays of NumPy, CuPy and any library with DLPack or ``__cuda_array_interface__`` (PyTorch, JAX,
    Numba), numbers, and nested sequences of numbers. Python floats become float32 unless ``dtype`` says otherwise. Data
    on a GPU become a CuPy array on the same memory.

    Raises:
        TypeError: not numeric, or a torch tensor that requires grad (its graph would be cut silently).
        BackendUnavailable: it is on a GPU, and the cuda backend cannot run here.
    """
    if isinstance(data, Tensor):
        array = data.data
    elif type(data) is np.ndarray and data.dtype.kind in "fiub":
        array = data
    else:
        array, dtype = _converted(data, dtype)
    return array if dtype is None or array.dtype == (wanted := element_type(dtype)) else array.astype(wanted)


def _converted(data: Any, dtype: Any) -> tuple[Array, Any]:
    """Convert anything but a Tensor or a numeric NumPy array; also returns the dtype that it should get."""
    if _is_torch(data) and data.requires_grad:
        raise TypeError("a torch tensor that requires grad: pass tensor.detach(), gpuconv cannot extend torch's graph")
    library = backends.get("cuda").xp if on_device(data) else np
    if _is_torch(data) and str(data.dtype) == "torch.bfloat16":  # NumPy and DLPack do not know it: by its bits
        import torch

        return adopted(data.view(torch.int16), library).view(bfloat16()), dtype
    if library is not np or _is_torch(data) or (hasattr(data, "__dlpack__") and not hasattr(data, "__array__")):
        try:
            array = adopted(data, library)
        except (RuntimeError, BufferError) as error:
            if _is_torch(data):
                raise TypeError(f"a torch tensor of type {data.dtype}, which NumPy does not have; convert it") from None
            raise TypeError(f"an array of {_library(data)} that DLPack does not hand over ({error})") from None
    else:
        python_numbers = not hasattr(data, "dtype")
        try:
            array = np.asarray(data)
        except ValueError:
            raise TypeError("rows of unequal length: cannot be made into an array") from None
        if python_numbers and array.dtype == np.float64 and dtype is None:
            dtype = np.float32
    if kind_of(array.dtype) not in "fiub":
        raise TypeError(f"elements must be numbers, got type {array.dtype}")
    return array, dtype


def to_numpy(data: Any) -> np.ndarray:
    """Return data, anything that :func:`to_array` takes, as a numpy.ndarray, without a copy if it is on the host."""
    array = to_array(data)
    return array if isinstance(array, np.ndarray) else array.get()


def moved(array: Array, backend: str | Backend) -> Array:
    """Return ``array`` on the device of a backend: itself if it is there already, else a copy.

    Args:
        array: of NumPy or CuPy.
        backend: 'cuda' (or 'cuda:0'), or 'cpu' for the host; another backend's name or a Backend will do, too.

    Raises:
        ValueError: no such backend.
        BackendUnavailable: it cannot run here; the message says why.
    """
    if not isinstance(backend, Backend):
        name = str(device(backend)) if ":" in backend else backend
        backend = backends.get("numpy" if name == "cpu" else name)
    return backend.asarray(array if isinstance(array, backend.xp.ndarray) else to_numpy(array))


def destination(what: Sequence[Any], dtype: Any = None, device: Any = None) -> tuple[np.dtype | None, Any]:
    """The element type and the device (or backend) that the arguments of ``to`` name; None for what they do not.

    Raises:
        TypeError: one is neither, or no type of numbers.
    """
    for one in what:
        if isinstance(one, Tensor):
            dtype, device = one.dtype, one.device
        elif isinstance(one, bool):
            raise TypeError(f"to: device and dtype are expected, got {one!r}")
        elif _is_type(one):
            dtype = one
        else:
            device = one
    if dtype is not None:
        if not _is_type(dtype):
            raise TypeError(f"to: dtype must be an element type, got {dtype!r}")
        dtype = element_type(dtype)
        if kind_of(dtype) not in "fiub":
            raise TypeError(f"to: dtype must be a float, an integer or bool, got {dtype}")
    if device is not None and not isinstance(device, (str, Backend)):
        raise TypeError(f"to: device must be 'cpu' or 'cuda', got {device!r}")
    return dtype, device


def _is_type(value: Any) -> bool:
    try:
        element_type(value)
    except TypeError:
        return False
    return value is not None


def native(dtype: np.dtype) -> np.dtype:
    """A dtype in the machine's byte order, which all results have."""
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def overwrite(target: Array, source: Array, by: str = "overwrite") -> None:
    """Copy the elements of ``source`` into ``target``, of the same shape; each may be on the host or on a device.

    A later backward that needs the old values raises an error, which says that ``by`` changed them.

    Raises:
        ValueError: ``target`` is read-only.
    """
    if isinstance(target, np.ndarray) and not target.flags.writeable:
        raise ValueError(f"{by}: the array of shape {target.shape} is read-only; give the Tensor a copy of it")
    if (undo := _undo.get()) is not None:
        undo.append(functools.partial(overwrite, target, target.copy(), by))
    versions.changed(target, by)
    if isinstance(target, np.ndarray):
        if capturing.active and (capture := capturing.current()) is not None:
            capture.writes(target)
        capturing.repeated(functools.partial(np.copyto, target, to_numpy(source), "unsafe"), target, source)
    elif isinstance(source, np.ndarray):
        # On the current stream, because work queued there before may still use the target.
        target.set(
            source.astype(target.dtype, copy=False), stream=backends.current(target).xp.cuda.get_current_stream()
        )
    else:
        # If both have one dtype and are contiguous, as usual, this is a copy of memory without a kernel.
        backends.current(target).xp.copyto(target, source.astype(target.dtype, copy=False))


def _library(data: Any) -> str:
    return type(data).__module__.partition(".")[0]


def _is_torch(data: Any) -> bool:
    return _library(data) == "torch"


def _like(result: Array, template: Any) -> Any:
    """Return an array as the kind that the caller passed: torch for torch, Numba for Numba, otherwise unchanged."""
    if _is_torch(template):
        return as_torch(result)
    if _library(template) == "numba" or _library(template) == "numba_cuda":
        from numba import cuda

        return cuda.as_cuda_array(result)
    if not on_device(template):
        return to_numpy(result)  # computed on a device from host arrays
    return result


class Tensor:
    """An array and, if it was computed from Tensors that require grad, the record of how.

    Args:
        data: a NumPy or CuPy array, or an array of another library with DLPack or ``__cuda_array_interface__`` (shared,
            not copied), or numbers and nested sequences of them (Python floats become float32).
        requires_grad: accumulate ``.grad`` here on :meth:`backward`; for float data only.
        dtype: convert to this dtype.

    Attributes:
        data: the array.
        grad: gradient as a Tensor once backward has run, else None. Gradients of several backward passes add up.
        requires_grad: whether gradients flow to or through this Tensor.

    Raises:
        TypeError: data is not numeric, or ``requires_grad`` with integers.
    """

    # NumPy must leave `array + tensor` to Tensor.__radd__ and not take the Tensor for a sequence.
    __array_ufunc__: ClassVar[None] = None

    def __init__(self, data: Any, requires_grad: bool = False, *, dtype: Any = None):
        self.data: Array = to_array(data, dtype)
        if requires_grad and kind_of(self.data.dtype) != "f":
            raise TypeError(f"Tensor: requires_grad needs float elements, got {self.data.dtype}")
        self.requires_grad = bool(requires_grad)
        self._grad: Tensor | None = None
        self._node: _Node | None = None

    #: Of a leaf, by number: what is called with its gradient; see `Hook`.
    _hooks: dict[float, Callable[[Tensor], Any]] | None = None

    @classmethod
    def _of(cls, array: Array) -> Tensor:
        """A Tensor of an array that an operation made, without checks."""
        tensor = Tensor.__new__(Tensor)
        tensor.data, tensor.requires_grad, tensor._grad, tensor._node = array, False, None, None
        return tensor

    # -- what it holds -----------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each dimension."""
        return tuple(self.data.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return int(self.data.ndim)

    @property
    def dtype(self) -> np.dtype:
        """Element type."""
        return self.data.dtype

    @property
    def device(self) -> device:
        """Where it lives: 'cpu' or 'cuda'."""
        return device("cpu" if isinstance(self.data, np.ndarray) else "cuda")

    @property
    def is_cuda(self) -> bool:
        """Whether it lives on a GPU."""
        return not isinstance(self.data, np.ndarray)

    @property
    def grad(self) -> Tensor | None:
        """Gradient as a Tensor once backward has run, else None. It may be set to a Tensor of this one's kind.

        Raises:
            TypeError: set to what is no Tensor, or one of another element type.
            ValueError: set to a Tensor of another shape.
        """
        if capturing.active and self._grad is not None:
            capturing.settle(self._grad.data)
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(f"grad must be a Tensor or None, got {type(value).__name__}; set it to Tensor(values)")
            if value.data.shape != self.data.shape:
                raise ValueError(f"grad must have the Tensor's shape {self.shape}, got {value.shape}")
            if value.data.dtype not in (self.data.dtype, native(self.data.dtype)):
                raise TypeError(f"grad must have the Tensor's element type {self.dtype}, got {value.dtype}")
        self._grad = value

    @property
    def is_leaf(self) -> bool:
        """Whether the user made this Tensor; False if it is the result of a recorded operation."""
        return self._node is None

    @property
    def _vertex(self) -> _Node | Tensor:
        return self if self._node is None else self._node

    def numel(self) -> int:
        """Number of elements."""
        return int(self.data.size)

    def numpy(self) -> np.ndarray:
        """Return the data as a numpy.ndarray, detached from the graph; it shares memory if the data are on the host.

        Raises:
            RuntimeError: while a step is captured, of what it computes or changes: no repetition would read it.
        """
        if capturing.active and (capture := capturing.current()) is not None:
            capture.reads_on_host(self)
        return to_numpy(self.data)

    def item(self) -> float | int:
        """Return the only element as a Python number; ValueError if there is not exactly one."""
        if self.numel() != 1:
            raise ValueError(f"item: a Tensor of shape {self.shape} does not hold exactly one element")
        return self.numpy().reshape(-1)[0].item()

    def detach(self) -> Tensor:
        """Return a Tensor with the same data that is not part of the graph."""
        return Tensor(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        if copy is False and dtype is not None and array.dtype != np.dtype(dtype):
            raise ValueError("a conversion of the element type needs a copy")
        array = array if dtype is None else array.astype(dtype, copy=False)
        return array.copy() if copy else array

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        """Let NumPy's functions use a Tensor's array; otherwise they would call its methods with NumPy's arguments."""
        return function(*_as_arrays(arguments), **_as_arrays(options))

    # Protocols by which other libraries share the memory: torch.from_dlpack(tensor), cupy.asarray(tensor).

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self.data.__dlpack_device__()
        return device

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface: dict[str, Any] = self.data.__cuda_array_interface__  # AttributeError: it is on the host
        return interface

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a Tensor without dimensions")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if kind_of(self.dtype) not in "iub" or self.shape:
            raise TypeError(f"only an integer Tensor without dimensions is an index, got {self.dtype}, {self.shape}")
        return int(self.item())

    def __round__(self, digits: int | None = None) -> float:
        return round(self.item(), digits)

    def __format__(self, spec: str) -> str:
        """Format a Tensor without dimensions as a number. Others take no format, as arrays.

        Raises:
            TypeError: a format for a Tensor with dimensions.
        """
        if spec and self.shape:
            raise TypeError(f"the format {spec!r} is of a number, and a Tensor of shape {self.shape} is none")
        return format(self.item(), spec) if spec else str(self)

    # -- comparison: element by element, as of arrays; a Tensor as a key of a dict is that Tensor ----------------------

    __hash__ = object.__hash__

    def _compared(self, other: Any, compare: Callable[[Any, Any], Any]) -> Any:
        values, number = other, isinstance(other, (bool, int, float))
        if not number:
            try:
                values = to_array(other)
            except TypeError:
                return NotImplemented  # no numbers: perhaps it knows how to compare itself with a Tensor
        backend = backends.current(self.data, *([] if number else [values]))
        with backend.computing():
            own = backend.asarray(self.data)
            if not number:
                values = backend.asarray(values)
                if own.dtype != values.dtype and _is_half(own) and _is_half(values):
                    own, values = own.astype(np.float32), values.astype(np.float32)
            result = Tensor._of(capturing.repeated(lambda: backend.xp.asarray(compare(own, values)), own, values))
        if (note := _recorder.get()) is not None:
            note(compare, (self, other), {}, [result])
        return result

    def __eq__(self, other: object) -> Any:
        return self._compared(other, operator.eq)

    def __ne__(self, other: object) -> Any:
        return self._compared(other, operator.ne)

    def __lt__(self, other: Any) -> Any:
        return self._compared(other, operator.lt)

    def __le__(self, other: Any) -> Any:
        return self._compared(other, operator.le)

    def __gt__(self, other: Any) -> Any:
        return self._compared(other, operator.gt)

    def __ge__(self, other: Any) -> Any:
        return self._compared(other, operator.ge)

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", prefix="Tensor(", precision=4, threshold=100)
        kind = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        return f"Tensor({values}{kind}{', requires_grad=True' if self.requires_grad else ''})"

    # -- differentiation ---------------------------------------------------------------------------------------------

    def backward(self, grad: Any = None, *, retain_graph: bool = False) -> None:
        """Compute the gradients of this Tensor, and add each to the ``.grad`` of its leaf.

        Args:
            grad: gradient of the final quantity for this Tensor, of the same shape. It may be left out if this Tensor
                has one element; then it is 1.
            retain_graph: keep what forward saved, so that backward can run again.

        Raises:
            RuntimeError: this Tensor does not depend on anything that requires grad, or an earlier backward freed the
                graph.
            ValueError: ``grad`` is missing or has another shape.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: this Tensor does not depend on any Tensor that requires grad")
        if grad is None:
            if self.numel() != 1:
                raise ValueError(
                    f"backward: grad must be given for a Tensor of shape {self.shape}; its default is for one element"
                )
            seed = _default_seed(self.data)
        else:
            seed = to_array(grad, self.dtype)
            if self._node is not None:
                seed = self._node.ctx.backend.asarray(seed, "grad")
            elif type(seed) is not type(self.data):
                seed = moved(seed, "cpu" if isinstance(self.data, np.ndarray) else "cuda")
            if tuple(seed.shape) != self.shape:
                raise ValueError(f"backward: grad must have the shape {self.shape}, got {tuple(seed.shape)}")
        _run_backward(self, seed, retain_graph)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set whether gradients flow to it; returns itself.

        Raises:
            TypeError: its elements are no floats.
            RuntimeError: an operation made it, which decides; ``detach()`` gives a Tensor that is free of it.
        """
        if requires_grad and kind_of(self.dtype) != "f":
            raise TypeError(f"requires_grad_: needs float elements, got {self.dtype}")
        if not requires_grad and not self.is_leaf:
            raise RuntimeError("requires_grad_: an operation that is recorded made this Tensor; use detach()")
        self.requires_grad = bool(requires_grad)
        return self

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Hook:
        """Call ``hook(grad)`` in each backward with the gradient of this Tensor, once it is complete.

        What it returns, if anything, is the gradient from there on. It must not change the one that it is given.

        Returns:
            What has a method ``remove``.

        Raises:
            RuntimeError: this Tensor does not require grad.
        """
        if not self.requires_grad:
            raise RuntimeError("register_hook: this Tensor does not require grad")
        if not callable(hook):
            raise TypeError(f"register_hook: hook must be callable, got {type(hook).__name__}")
        return Hook(self._vertex, hook)

    @property
    def retains_grad(self) -> bool:
        """Whether :meth:`retain_grad` was called for a Tensor that is no leaf."""
        return self._node is not None and math.inf in (self._node._hooks or {})

    def retain_grad(self) -> None:
        """Let each backward add this Tensor's gradient to its ``.grad``, as it does for leaves without being asked.

        Raises:
            RuntimeError: this Tensor does not require grad.
        """
        if not self.requires_grad:
            raise RuntimeError("retain_grad: this Tensor does not require grad")
        if self._node is None or self.retains_grad:
            return
        reference = weakref.ref(self)  # the graph need not keep what nobody can ask

        def keep(grad: Tensor) -> None:
            if (tensor := reference()) is None:
                return
            if (so_far := tensor._grad) is None:
                kept = capturing.repeated(grad.data.copy, grad.data)
            else:
                kept = capturing.repeated(lambda: so_far.data + grad.data, so_far.data, grad.data)
            tensor._grad = Tensor._of(kept)

        self._node._hooks = {**(self._node._hooks or {}), math.inf: keep}

    def _passes_on(self, function: type[Function], backend: Backend, result: Tensor) -> None:
        """Note that ``result`` was made of this Tensor alone, past :meth:`Function.apply`, if that is recorded."""
        if _grad_enabled.get() and self.requires_grad:
            result.requires_grad = True
            result._node = _Node(function, Context(backend, (True,)), [self._vertex], result.data)

    def zero_grad(self) -> None:
        """Set ``.grad`` to None."""
        if (capture := capturing.current()) is not None:
            capture.writes_grad(self)
        self.grad = None

    # -- operators: gpuconv.ops registers their functions, with `tensor_method` --------------------------------------

    if TYPE_CHECKING:  # the other methods, which the modules of ops define: of those used most, what they return
        abs: ClassVar[Callable[..., Tensor]]
        add: ClassVar[Callable[..., Tensor]]
        argmax: ClassVar[Callable[..., Tensor]]
        bitwise_and: ClassVar[Callable[..., Tensor]]
        bitwise_not: ClassVar[Callable[..., Tensor]]
        bitwise_or: ClassVar[Callable[..., Tensor]]
        bitwise_xor: ClassVar[Callable[..., Tensor]]
        clamp: ClassVar[Callable[..., Tensor]]
        clone: ClassVar[Callable[..., Tensor]]
        div: ClassVar[Callable[..., Tensor]]
        exp: ClassVar[Callable[..., Tensor]]
        flatten: ClassVar[Callable[..., Tensor]]
        floor_divide: ClassVar[Callable[..., Tensor]]
        log: ClassVar[Callable[..., Tensor]]
        log_softmax: ClassVar[Callable[..., Tensor]]
        matmul: ClassVar[Callable[..., Tensor]]
        mean: ClassVar[Callable[..., Tensor]]
        mul: ClassVar[Callable[..., Tensor]]
        permute: ClassVar[Callable[..., Tensor]]
        pow: ClassVar[Callable[..., Tensor]]
        relu: ClassVar[Callable[..., Tensor]]
        remainder: ClassVar[Callable[..., Tensor]]
        reshape: ClassVar[Callable[..., Tensor]]
        sigmoid: ClassVar[Callable[..., Tensor]]
        softmax: ClassVar[Callable[..., Tensor]]
        sqrt: ClassVar[Callable[..., Tensor]]
        squeeze: ClassVar[Callable[..., Tensor]]
        sub: ClassVar[Callable[..., Tensor]]
        sum: ClassVar[Callable[..., Tensor]]
        tanh: ClassVar[Callable[..., Tensor]]
        transpose: ClassVar[Callable[..., Tensor]]
        unsqueeze: ClassVar[Callable[..., Tensor]]

        def __getattr__(self, name: str) -> Any: ...

    def __add__(self, other: Any) -> Tensor:
        return self.add(other)

    def __radd__(self, other: Any) -> Tensor:
        return self.add(other)

    def __sub__(self, other: Any) -> Tensor:
        return Tensor.sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return Tensor.sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return self.mul(other)

    def __rmul__(self, other: Any) -> Tensor:
        return self.mul(other)

    def __truediv__(self, other: Any) -> Tensor:
        return Tensor.div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return Tensor.div(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return Tensor.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return Tensor.matmul(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return Tensor.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return Tensor.floor_divide(other, self)

    def __mod__(self, other: Any) -> Tensor:
        return Tensor.remainder(self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return Tensor.remainder(other, self)

    def __pow__(self, exponent: Any) -> Tensor:
        return self.pow(exponent)

    def __rpow__(self, base: Any) -> Tensor:
        return Tensor.pow(base, self)

    def __neg__(self) -> Tensor:
        return self.mul(-1)

    def __and__(self, other: Any) -> Tensor:
        return Tensor.bitwise_and(self, other)

    def __or__(self, other: Any) -> Tensor:
        return Tensor.bitwise_or(self, other)

    def __xor__(self, other: Any) -> Tensor:
        return Tensor.bitwise_xor(self, other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self) -> Tensor:
        return Tensor.bitwise_not(self)

    def __iadd__(self, other: Any) -> Tensor:
        return self._in_place("+=", self.add(other))

    def __isub__(self, other: Any) -> Tensor:
        return self._in_place("-=", Tensor.sub(self, other))

    def __imul__(self, other: Any) -> Tensor:
        return self._in_place("*=", self.mul(other))

    def __itruediv__(self, other: Any) -> Tensor:
        return self._in_place("/=", Tensor.div(self, other))

    def __ifloordiv__(self, other: Any) -> Tensor:
        return self._in_place("//=", Tensor.floor_divide(self, other))

    def __imod__(self, other: Any) -> Tensor:
        return self._in_place("%=", Tensor.remainder(self, other))

    def __ipow__(self, exponent: Any) -> Tensor:
        return self._in_place("**=", self.pow(exponent))

    def __iand__(self, other: Any) -> Tensor:
        return self._in_place("&=", Tensor.bitwise_and(self, other))

    def __ior__(self, other: Any) -> Tensor:
        return self._in_place("|=", Tensor.bitwise_or(self, other))

    def __ixor__(self, other: Any) -> Tensor:
        return self._in_place("^=", Tensor.bitwise_xor(self, other))

    def _in_place(self, sign: str, result: Tensor) -> Tensor:
        """Make a result this Tensor's value.

        If no graph is being recorded, the result is written into this Tensor's array; a later backward that needs the
        old values then raises an error. If a graph is being recorded, this Tensor gets the result's array and history,
        and the old values stay as they were saved.

        Raises:
            RuntimeError: a leaf that requires grad, outside of ``no_grad()``.
            ValueError, TypeError: the result has another shape, or a dtype that this Tensor cannot hold.
        """
        if result.requires_grad and self.is_leaf and self.requires_grad:
            raise RuntimeError(
                f"{sign}: a leaf that requires grad cannot be changed while the graph is recorded; do it inside of "
                "`with gpuconv.no_grad():`"
            )
        if result.shape != self.shape:
            raise ValueError(f"{sign}: the result has shape {result.shape}, and is to be written into {self.shape}")
        order = "buif"  # in PyTorch's order: bool, integers, floats
        if (order.index(kind_of(result.dtype)) > 0) > (order.index(kind_of(self.dtype)) > 0) or (
            kind_of(result.dtype) == "f" and kind_of(self.dtype) != "f"
        ):
            raise TypeError(f"{sign}: the result is {result.dtype}, which {self.dtype} cannot hold")
        if result.dtype != self.dtype:
            result = result.type_as(self)
        if result.requires_grad:
            self.data, self._node, self.requires_grad = result.data, result._node, True
        else:
            overwrite(self.data, result.data, sign)
        return self

    def __getitem__(self, index: Any) -> Tensor:
        return self.getitem(index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.setitem(index, value)

    @property
    def T(self) -> Tensor:
        """Dimensions in reverse order."""
        return self.permute(tuple(range(self.ndim))[::-1])


def _as_arrays(value: Any) -> Any:
    """Replace Tensors by NumPy arrays, also in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.numpy()
    if type(value) in (tuple, list):
        return type(value)(map(_as_arrays, value))
    return {key: _as_arrays(one) for key, one in value.items()} if type(value) is dict else value


_F = TypeVar("_F", bound=Callable[..., Any])


def tensor_method(function: _F) -> _F:
    """Decorator for ``gpuconv.ops``: make a function of a Tensor also a method of Tensor with the same name."""
    setattr(Tensor, function.__name__, function)
    return function


def backend_of(*tensors: Tensor) -> Backend:
    """The backend on which an operation of these Tensors runs now."""
    return backends.current(*(tensor.data for tensor in tensors))


class Context:
    """What one run of a :class:`Function` keeps for its backward.

    Attributes:
        backend: the backend of forward, on which backward runs too.
        needs_input_grad: for each input of ``apply``, whether its gradient is wanted.
    """

    #: With a dict: what is no array may be kept as an attribute, `ctx.size = 3`.
    __slots__ = ("__dict__", "_saved", "backend", "needs_input_grad")

    def __init__(self, backend: Backend, needs_input_grad: tuple[bool, ...]):
        self.backend: Backend = backend
        self.needs_input_grad: tuple[bool, ...] = needs_input_grad
        self._saved: tuple[Any, ...] | None = ()

    def save(self, *values: Any) -> None:
        """Save what backward will need; nothing is saved if no gradient is wanted."""
        if any(self.needs_input_grad):
            self._saved = values

    def save_for_backward(self, *values: Any) -> None:
        """:meth:`save` by PyTorch's name."""
        self.save(*values)

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """:attr:`saved` by PyTorch's name: the arrays that :meth:`save` kept."""
        return self.saved

    @property
    def saved(self) -> tuple[Any, ...]:
        """What :meth:`save` saved."""
        if self._saved is None:
            raise RuntimeError(
                "backward: the graph was freed by an earlier backward; pass retain_graph=True to the first one"
            )
        return self._saved

    def release(self) -> None:
        """Drop what was saved."""
        if self._saved:
            self._saved = None


class Function:
    """A differentiable operation. Subclasses define two static methods on arrays of ``ctx.backend``:

    - ``forward(ctx, *inputs, **options)`` returns the result, or a tuple whose first element is the differentiable
      one (the others, such as indices, carry no gradient).
    - ``backward(ctx, grad)`` returns one gradient for each input, None where ``ctx.needs_input_grad`` is false. It must
      not write into ``grad``, which others may use.

    As in PyTorch, ``ctx.save_for_backward(x, y)`` and ``x, y = ctx.saved_tensors`` hand arrays from one to the other,
    and ``ctx.name = value`` what is no array. Unlike there, both work on arrays, NumPy's or CuPy's, and not on Tensors.

    Both compute in float32 on float16 and bfloat16: such inputs and gradients reach them as float32. The (first) result
    is rounded to the type of the first float among the inputs, and each gradient to that of its input.
    """

    #: Which of the two are given half types as they are, because they only move elements: 'forward', 'backward'.
    takes_half: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def forward(ctx: Context, *inputs: Any, **options: Any) -> Any:
        """Compute the result; see the class."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Sequence[Array | None] | Array:
        """Compute the inputs' gradients; see the class."""
        raise NotImplementedError

    @classmethod
    def apply(cls, *inputs: Any, **options: Any) -> Any:
        """Run forward on Tensors, arrays and Nones; record it if a gradient may be wanted.

        Returns a Tensor (or a tuple of them) if any input is one, else an array of the kind of the first input.
        """
        recording = _grad_enabled.get()
        arrays, needs, any_tensor, short = [], [], False, False
        for x in inputs:
            if isinstance(x, Tensor):
                any_tensor = True
                if capturing.active and x._node is None and (capture := capturing.current()) is not None:
                    capture.reads_leaf(x)
                array = x.data
                needs.append(recording and x.requires_grad)
            else:
                array = None if x is None else to_array(x)
                needs.append(False)
            arrays.append(array)
            if array is not None and array.itemsize == 2:
                short = True  # perhaps a half type
        backend = backends.current(*arrays)
        run = functools.partial(cls._run, backend, arrays, tuple(needs), options, short)
        if capturing.active and (capture := capturing.current()) is not None:
            results, several, ctx = capture.repeat(run, arrays, own=_is_own(cls))
        else:
            results, several, ctx = run()
        if capturing.active:
            capturing.made(results[0])
        if any_tensor:
            results = [Tensor._of(result) for result in results]
        else:
            results = [_like(result, inputs[0]) for result in results]
        if True in needs:
            results[0].requires_grad = True
            edges = [x._vertex if need else None for x, need in zip(inputs, needs, strict=True)]
            results[0]._node = _Node(cls, ctx, edges, results[0].data)
        if (note := _recorder.get()) is not None:
            note(cls, inputs, options, results)
        return tuple(results) if several else results[0]

    @classmethod
    def _run(
        cls, backend: Backend, arrays: list[Array | None], needs: tuple[bool, ...], options: dict[str, Any], short: bool
    ) -> tuple[list[Array], bool, Context]:
        """Forward: its results, whether it returned several, and the context.

        ``short``: an array may be of a half type.
        """
        ctx, half = Context(backend, needs), None
        arrays = [None if a is None else backend.asarray(a) for a in arrays]
        if short and "forward" not in cls.takes_half:
            arrays, half, ctx = _widened(ctx, arrays)
        with backend.computing():
            results = cls.forward(ctx, *arrays, **options)
        if short and isinstance(ctx, _Widened):
            ctx.forget_given()
        several = isinstance(results, tuple)
        # NumPy turns arrays without dimensions into scalars; here they stay arrays.
        xp = backend.xp
        results = [r if isinstance(r, xp.ndarray) else xp.asarray(r) for r in (results if several else (results,))]
        if half is not None and results[0].dtype.kind == "f":
            with backend.computing():  # what is too large becomes infinite
                results[0] = results[0].astype(half)
        return results, several, ctx


def _is_own(function: type[Function]) -> bool:
    """Whether it is gpuconv's, and so does nothing but compute its results."""
    return function.__module__.startswith("gpuconv.")


class _Widened(Context):
    """The context of a function that is given half types as float32: of inputs it keeps what was given."""

    __slots__ = ("_given",)

    def __init__(self, ctx: Context, given: dict[int, Array]):
        super().__init__(ctx.backend, ctx.needs_input_grad)
        self._given = given  # by the id of the float32 array

    def save(self, *values: Any) -> None:
        super().save(*[self._given.get(id(value), value) for value in values])

    def forget_given(self) -> None:
        """Let go of the inputs that were not saved."""
        self._given = {}

    @property
    def saved(self) -> tuple[Any, ...]:
        return tuple(value.astype(np.float32) if _is_half(value) else value for value in super().saved)


def _is_half(value: Any) -> bool:
    return hasattr(value, "dtype") and is_half(value.dtype)


def _widened(ctx: Context, arrays: list[Array | None]) -> tuple[list[Array | None], np.dtype | None, Context]:
    """The arrays with float32 in place of half types, the half type of the result if it has one, and the context."""
    floats = [a for a in arrays if a is not None and kind_of(a.dtype) == "f"]
    if not any(map(_is_half, floats)):
        return arrays, None, ctx
    wide = [a.astype(np.float32) if a is not None and is_half(a.dtype) else a for a in arrays]
    # A number beside a half type, an array without dimensions, is float32: it does not make the result wider.
    first = next((a for a in floats if a.ndim), next(filter(_is_half, floats)))
    given = {id(w): a for w, a in zip(wide, arrays, strict=True) if w is not a}
    return wide, first.dtype if _is_half(first) else None, _Widened(ctx, given)


_numbers = itertools.count()


class _Node:
    """One recorded operation. Its edges lead to other nodes and to leaves, not to intermediate Tensors: an intermediate
    result lives only as long as some backward has saved it.

    Attributes:
        number: larger than those of all nodes that this one depends on.
        changes: number of the last in-place change of any array before this operation, see :mod:`gpuconv.versions`.
        shape, dtype: of the result, and so of its gradient.
    """

    __slots__ = ("_hooks", "changes", "ctx", "dtype", "edges", "function", "number", "shape")

    def __init__(self, function: type[Function], ctx: Context, edges: list[_Node | Tensor | None], result: Array):
        self.function: type[Function] = function
        self.ctx: Context = ctx
        self.edges: list[_Node | Tensor | None] = edges
        self.number: int = next(_numbers)
        self.changes: int = versions.latest
        self.shape: tuple[int, ...] = result.shape
        self.dtype: Any = result.dtype
        self._hooks: dict[float, Callable[[Tensor], Any]] | None = None


class Hook:
    """What takes a hook of a gradient away again, with :meth:`remove`."""

    def __init__(self, vertex: _Node | Tensor, hook: Callable[[Tensor], Any]):
        self._vertex, self._number = vertex, next(_numbers)
        # In order; what keeps the gradient, number infinity, comes last.
        vertex._hooks = dict(sorted({**(vertex._hooks or {}), self._number: hook}.items()))

    def remove(self) -> None:
        """Take the hook away; doing so twice is no error."""
        (self._vertex._hooks or {}).pop(self._number, None)


def _hooked(vertex: _Node | Tensor, grad: Array) -> Array:
    """A gradient after its vertex's hooks.

    Raises:
        TypeError, ValueError: what one returned has not the gradient's kind, shape or type.
    """
    for hook in list((vertex._hooks or {}).values()):
        changed = hook(Tensor(grad))
        if changed is None:
            continue
        changed = to_array(changed)
        if changed.shape != grad.shape:
            raise ValueError(
                f"register_hook: the hook must keep the gradient's shape {grad.shape}, got {changed.shape}"
            )
        if kind_of(changed.dtype) not in "fiub" or isinstance(changed, np.ndarray) != isinstance(grad, np.ndarray):
            raise TypeError("register_hook: the hook must return numbers where the gradient lives")
        grad = changed.astype(grad.dtype, copy=False)
    return grad


#: What is called when the backward that runs has ended; None outside of one.
_at_end: ContextVar[list[Callable[[], None]] | None] = ContextVar("gpuconv_at_end_of_backward", default=None)


def at_end_of_backward(call: Callable[[], None]) -> None:
    """From a hook of a gradient: have ``call`` called once all gradients of the backward that runs are in place.

    Raises:
        RuntimeError: no backward runs.
    """
    calls = _at_end.get()
    if calls is None:
        raise RuntimeError("at_end_of_backward: no backward runs; it is for hooks of gradients")
    calls.append(call)


def _run_backward(root: Tensor, seed: Array, retain_graph: bool) -> None:
    at_end: list[Callable[[], None]] = []
    token = _at_end.set(at_end)
    try:
        _walk_back(root, seed, retain_graph)
    finally:
        _at_end.reset(token)
    for call in at_end:
        call()


def _walk_back(root: Tensor, seed: Array, retain_graph: bool) -> None:
    grads: dict[Any, Array] = {root._vertex: seed}  # of nodes, and of leaves
    with contextlib.nullcontext() if root._node is None else root._node.ctx.backend.computing():
        nodes, complete = _nodes_from(root._vertex)
        for node in nodes:
            grad = grads.pop(node, None)
            if grad is not None:
                if node._hooks:
                    grad = _hooked(node, grad)
                _spread(node, grad, grads)
            if not retain_graph:
                node.ctx.release()
            grad = None
            for leaf in complete.get(node, ()):
                _finish_leaf(leaf, grads)
    for leaf in list(grads):
        _finish_leaf(leaf, grads)


def _finish_leaf(leaf: Tensor, grads: dict[Any, Array]) -> None:
    """Give a leaf its gradient, if it has one."""
    grad = grads.pop(leaf, None)
    if grad is None or not leaf.requires_grad:  # frozen since forward
        return
    left = False
    if capturing.active:
        if leaf._hooks or leaf._grad is not None or type(grad) is not type(leaf.data):
            capturing.settle(grad)
        left = capturing.is_left(grad)
    if leaf._hooks:
        grad = _hooked(leaf, grad)
    # The user may write into .grad (clipping, for example): it must not be shared with another leaf or an
    # operation that saved it, nor a view of that. (What lies in memory of a pool has a base that is no array.)
    shared = sys.getrefcount(grad) > _ALONE + left or hasattr(grad.base, "dtype")
    _add_to_leaf(leaf, grad, shared)


def _count_alone() -> int:
    alone = object()
    return sys.getrefcount(alone)


#: What sys.getrefcount gives for an object that a local variable alone refers to; Python's versions differ in it.
_ALONE = _count_alone()


def _spread(node: _Node, grad: Array, grads: dict[Any, Array]) -> None:
    """Compute the gradients of a node's inputs from its result's, and add them to those already there."""
    if node.changes != versions.latest:
        _check_unchanged(node, node.ctx._saved)
    if capturing.active and (capture := capturing.current()) is not None:
        saved = node.ctx._saved

        def run() -> list[Array | None]:
            if node.ctx._saved is None:  # it has been released
                node.ctx._saved = saved
            return _gradients(node, grad)

        results = capture.repeat(run, [grad, saved], own=_is_own(node.function))
    else:
        capture, results = None, _gradients(node, grad)
    for edge, result in zip(node.edges, results, strict=True):
        if result is not None:
            so_far = grads.get(edge)
            if capturing.active and (so_far is not None or edge.__class__ is _Node):
                for array in (result,) if so_far is None else (so_far, result):
                    capturing.settle(array)
            if so_far is None:
                grads[edge] = result
            elif capture is None:
                grads[edge] = so_far + result
            else:
                grads[edge] = capture.repeat(functools.partial(operator.add, so_far, result), [so_far, result])


def _gradients(node: _Node, grad: Array) -> list[Array | None]:
    """The gradients of a node's inputs, of their shapes and types; None where there is none, or none is needed."""
    if grad.itemsize == 2 and "backward" not in node.function.takes_half:
        grad = grad.astype(np.float32)
    results = node.function.backward(node.ctx, grad)
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    if len(results) != len(node.edges):
        raise RuntimeError(
            f"{node.function.__name__}.backward: must return a gradient for each of the {len(node.edges)} "
            f"inputs (None where none is needed), returned {len(results)}"
        )
    kind = node.ctx.backend.xp.ndarray
    for position, edge in enumerate(node.edges):
        result = results[position]
        if edge is None:
            results[position] = None
        elif result is not None:
            value: Any = edge if edge.__class__ is _Node else edge.data  # type: ignore[union-attr]
            if not isinstance(result, kind) or result.dtype != value.dtype or result.shape != value.shape:
                results[position] = _checked(node, position, value, result)
    return results


def _check_unchanged(node: _Node, saved: Any) -> None:
    """Raise an error if an array that was saved for backward has been changed in place since.

    Raises:
        RuntimeError: the message names the operation, and the change.
    """
    for value in saved or ():
        if isinstance(value, (tuple, list)):
            _check_unchanged(node, value)
        elif isinstance(value, dict):
            _check_unchanged(node, value.values())
        elif hasattr(value, "dtype") and not isinstance(value, np.generic):
            array = value.data if isinstance(value, Tensor) else value
            if (version := versions.changed_since(node.changes, array)) is not None:
                raise RuntimeError(
                    f"backward: {node.function.__name__} has saved an array of shape {tuple(array.shape)} for its "
                    f"backward, which {version.by} changed in place since: run backward before that, or the forward "
                    "again after it"
                )


def _checked(node: _Node, position: int, value: Any, grad: Any) -> Array:
    """Check a gradient and convert it to its value's dtype; its shape must be the value's.

    Compiled kernels rely on the value's shape and dtype. Operands of mixed dtypes can give gradients of a wider dtype,
    so that is converted; another shape is a bug in the operation's backward.
    """
    shape, dtype, kind = value.shape, native(value.dtype), node.ctx.backend.xp.ndarray
    name = f"{node.function.__name__}.backward: the gradient of input {position}"
    if isinstance(grad, Tensor):
        grad = grad.data
    if capturing.active:
        capturing.settle(grad)
    if isinstance(grad, np.generic):  # NumPy's form of an array without dimensions
        grad = node.ctx.backend.asarray(np.asarray(grad))
    if not isinstance(grad, kind):
        raise TypeError(f"{name} must be an array of the {node.ctx.backend.name} backend, got {type(grad).__name__}")
    if grad.shape != shape:
        raise ValueError(f"{name} must have the input's shape {tuple(shape)}, got {tuple(grad.shape)}")
    if kind_of(grad.dtype) not in "fiub":
        raise TypeError(f"{name} must hold numbers, got {grad.dtype}")
    return grad.astype(dtype, copy=False)


def _nodes_from(root: _Node | Tensor) -> tuple[list[_Node], dict[_Node, list[Tensor]]]:
    """All nodes that root depends on, itself included; each comes after the nodes that use it.

    Also the leaves with hooks, by the node after which their gradients are complete. (The others' gradients wait for
    the end: nobody looks.)
    """
    nodes = {root} if isinstance(root, _Node) else set()
    found = list(nodes)
    first_users: dict[Tensor, _Node] = {}
    while found:
        node = found.pop()
        for edge in node.edges:
            if isinstance(edge, _Node):
                if edge not in nodes:
                    nodes.add(edge)
                    found.append(edge)
            elif edge is not None and edge._hooks:
                user = first_users.get(edge)
                if user is None or node.number < user.number:
                    first_users[edge] = node
    complete: dict[_Node, list[Tensor]] = {}
    for leaf, user in first_users.items():
        complete.setdefault(user, []).append(leaf)
    return sorted(nodes, key=_number, reverse=True), complete


_number = operator.attrgetter("number")


def _add_to_leaf(leaf: Tensor, grad: Array, shared: bool) -> None:
    if isinstance(leaf.data, np.ndarray):
        grad = to_numpy(grad)  # the operations on a leaf on the host may have run on a device
    capture = capturing.current() if capturing.active else None
    if capture is not None:
        capture.writes_grad(leaf)
    so_far = leaf.grad
    if (undo := _undo.get()) is not None:
        undo.append(functools.partial(setattr, leaf, "_grad", so_far))
    if so_far is None:
        if shared:
            grad = grad.copy() if capture is None else capture.repeat(grad.copy, [grad])
        leaf._grad = Tensor._of(grad)
    elif capture is not None and so_far.dtype == grad.dtype and so_far.shape == tuple(grad.shape):
        capture.reads_grad(leaf)
        # In place, so that each launch of a graph finds the sum of those before.
        capture.writes(so_far.data)
        capture.repeat(functools.partial(operator.iadd, so_far.data, grad), [so_far.data, grad])
    else:
        leaf.grad = Tensor(so_far.data + grad)


#: By kind of array, element type and device.
_default_seeds: dict[Any, Array] = {}


def _default_seed(data: Array) -> Array:
    """The number 1 in the shape of ``data``, which has one element.

    For data without dimensions it is the same array each time: so no kernel is needed to make it on a device, and a
    Function can tell that it need not multiply by it.
    """
    key = type(data), data.dtype, getattr(getattr(data, "device", None), "id", None)
    if key not in _default_seeds:
        with capturing.outside():  # it is kept
            one = data.reshape(()).copy()
            one[...] = 1
        _default_seeds[key] = one
    seed = _default_seeds[key]
    return seed if data.shape == () else seed.reshape(data.shape)


def is_default_seed(grad: Array) -> bool:
    """Whether a gradient is the 1 that :meth:`Tensor.backward` uses if it is given none."""
    return any(grad is seed for seed in list(_default_seeds.values()))  # another thread may add one


class GradcheckError(AssertionError):
    """A gradient differs from its finite difference; the message says where and by how much."""


def gradcheck(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    eps: float = 1e-6,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> bool:
    """Compare the gradients of ``function(*inputs)`` with central finite differences.

    The result is contracted with a fixed random tensor, so that every output element counts. Each input element is
    changed by ``± eps``, which takes two evaluations an element.

    Args:
        function: takes the inputs, returns one Tensor; it has to be smooth at the inputs.
        inputs: Tensors; those that require grad must be float64.
        eps: step. The error of the difference is of order ``eps²`` and ``1e-16 / eps``.
        rtol: allowed error relative to the largest gradient of the same input.
        atol: allowed absolute error, added to that.

    Returns:
        True.

    Raises:
        GradcheckError: a gradient differs from its finite difference.
        TypeError: an input that requires grad is not float64.
        ValueError: no input requires grad.
    """
    checked = [x for x in inputs if x.requires_grad]
    if not checked:
        raise ValueError("gradcheck: no input requires grad")
    if any(x.dtype != np.float64 for x in checked):
        raise TypeError("gradcheck: inputs that require grad must be float64; float32 has too few digits")
    kept = [x.grad for x in inputs]
    result = function(*inputs)
    direction = np.random.default_rng(0).standard_normal(result.shape)
    for x in inputs:
        x.grad = None
    result.backward(direction)
    grads = [x.grad for x in inputs]
    for x, grad in zip(inputs, kept, strict=True):
        x.grad = grad

    def value() -> float:
        with no_grad():
            return float(np.vdot(function(*inputs).numpy(), direction))

    for position, (x, grad) in enumerate(zip(inputs, grads, strict=True)):
        if not x.requires_grad:
            continue
        analytic = np.zeros(x.shape) if grad is None else grad.numpy()
        numeric = np.empty(x.shape)
        original = x.data
        try:
            for index in np.ndindex(*x.shape):
                sides = []
                for step in (eps, -eps):
                    x.data = original.copy()
                    x.data[index] += step
                    sides.append(value())
                numeric[index] = (sides[0] - sides[1]) / (2 * eps)
        finally:
            x.data = original
        allowed = atol + rtol * float(np.abs(numeric).max(initial=0))
        error = np.abs(analytic - numeric)
        if not (error <= allowed).all():  # written so that a NaN fails
            worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error)), x.shape)
            where = tuple(int(i) for i in worst)
            raise GradcheckError(
                f"gradcheck: input {position} at {where}: gradient {analytic[worst]:.9g}, "
                f"finite difference {numeric[worst]:.9g}, allowed error {allowed:.3g}"
            )
    return True
