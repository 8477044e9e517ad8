"""Compiling kernels, and launching them: on a GPU, in the simulator, or into a list."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, types
from numba.cuda import extending

from gpuconv.kernels import driver
from gpuconv.kernels.device.intrinsic import SIMULATED


def jit(function: Callable[..., None] | None = None, /, **options: Any) -> Any:
    """``numba.cuda.jit``. In the simulator options are ignored, because all of them are about machine code.

    Options used here: ``launch_bounds`` (threads a block, or also the blocks that a multiprocessor should hold),
    ``max_registers``. Do not use ``fastmath``: it lets the compiler assume that there are no NaNs.
    """
    if function is None:
        return lambda function: jit(function, **options)
    return cuda.jit(function) if SIMULATED else cuda.jit(**options)(function)


def device_function(function: Callable[..., Any], /) -> Any:
    """A function that kernels call. It is inlined, so that local arrays passed to it stay in registers."""
    return function if SIMULATED else extending.register_jitable(forceinline=True)(function)


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel without its arguments: it can be compiled, counted and checked without a GPU."""

    kernel: Any
    #: Numba types of the arguments.
    signature: tuple[Any, ...] = field(repr=False)
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    #: Bytes of dynamic shared memory.
    shared_bytes: int = 0
    #: Positions of arguments that it only reads, though another launch of the same operation writes them.
    reads: tuple[int, ...] = field(default=(), repr=False)

    def __call__(self, stream: Any, *arguments: Any) -> None:
        """Queue it on a stream (None: the default one), or record it inside :func:`recording`.

        The stream is a handle or an object with ``__cuda_stream__``; arrays are flat, and on the device. Without a GPU
        the launch runs at once, on NumPy arrays.
        """
        if (recorder := _recorder.get()) is not None:
            recorder(self, arguments)
        elif _on_host is not None:
            _on_host(self, arguments)
        else:
            driver.launch(self, stream, arguments)

    def ptx(self, cc: tuple[int, int] | tuple[int, int, str]) -> str:
        """Compile for a compute capability such as ``(8, 0)`` or ``(9, 0, "a")``; needs NVVM, but no GPU."""
        code: str = self._compiled(cc, "ptx")
        return code

    def lto_ir(self, cc: tuple[int, int] | tuple[int, int, str]) -> bytes:
        """Likewise, but what ``numba.cuda.jit`` gives to nvJitLink to make machine code of."""
        return bytes(self._compiled(cc, "ltoir"))

    def _compiled(self, cc: tuple[Any, ...], output: str) -> Any:
        options = self.kernel.targetoptions
        taken = {name: options[name] for name in ("fastmath", "launch_bounds") if options.get(name) is not None}
        kernel, signature = self.kernel.py_func, self.signature
        with compiling_for(cc):
            return cuda.compile(kernel, signature, device=False, cc=cc, abi="numba", output=output, **taken)[0]


class Call(NamedTuple):
    """A launch with its arguments."""

    launch: Launch
    arguments: tuple[Any, ...]


def call(
    kernel: Any,
    blocks: int | tuple[int, ...],
    threads: int | tuple[int, ...],
    /,
    *arguments: Any,
    shared_bytes: int = 0,
    reads: tuple[int, ...] = (),
) -> Call:
    """The launch of a kernel with its arguments, whose types make the kernel's signature.

    Args:
        kernel: by :func:`jit`.
        blocks, threads: of the grid, and of a block: how many, or how many along each of up to three axes.
        arguments: arrays; tuples of arrays of one type; int, which becomes an int64; NumPy's numbers, which stay what
            they are.
        shared_bytes: of dynamic shared memory.
        reads: positions of arguments that are results of the operation, and that this launch only reads: in a captured
            step it need not wait for others that read them.
    """
    signature = tuple(map(_type_of, arguments))
    return Call(Launch(kernel, signature, _three(blocks), _three(threads), shared_bytes, reads), arguments)


def _three(size: int | tuple[int, ...]) -> tuple[int, int, int]:
    whole = size if isinstance(size, tuple) else (size,)
    first, second, third = (*whole, 1, 1)[:3]
    return first, second, third


def _type_of(argument: Any) -> Any:
    """Numba's type of a kernel's argument."""
    if isinstance(argument, tuple):
        return types.UniTuple(_type_of(argument[0]), len(argument))
    if isinstance(argument, np.generic):
        return getattr(types, argument.dtype.name)
    if isinstance(argument, int):
        return types.int64
    if not hasattr(argument, "dtype"):
        raise TypeError(f"a kernel takes arrays, integers and NumPy's numbers, got {type(argument).__name__}")
    return types.Array(getattr(types, np.dtype(argument.dtype).name), argument.ndim, "C")


def _simulate(launch: Launch, arguments: tuple[Any, ...]) -> None:
    launch.kernel[launch.grid, launch.block, None, launch.shared_bytes](*arguments)


#: What runs launches in place of a GPU, if anything: the simulator, or the interpreter of PTX.
_on_host: Callable[[Launch, tuple[Any, ...]], None] | None = _simulate if SIMULATED else None


@contextlib.contextmanager
def running_on_host(run: Callable[[Launch, tuple[Any, ...]], None]) -> Iterator[None]:
    """Inside the ``with`` block, ``run`` is called with each launch and its arguments, NumPy arrays and numbers."""
    global _on_host
    before, _on_host = _on_host, run
    try:
        yield
    finally:
        _on_host = before


_recorder: ContextVar[Callable[[Launch, tuple[Any, ...]], None] | None] = ContextVar("gpuconv_recorder", default=None)


def is_recording() -> bool:
    """Whether launches are recorded instead of run."""
    return _recorder.get() is not None


@contextlib.contextmanager
def recording(noted: Callable[[Any], Any] | None = None) -> Iterator[list[tuple[Launch, tuple[Any, ...]]]]:
    """Record launches inside the ``with`` block instead of running them: a list, each with its arguments.

    ``noted`` converts an argument for the list; None keeps it as it is. Other threads are not affected.
    """
    recorded: list[tuple[Launch, tuple[Any, ...]]] = []

    def note(launch: Launch, arguments: tuple[Any, ...]) -> None:
        recorded.append((launch, arguments if noted is None else tuple(map(noted, arguments))))

    token = _recorder.set(note)
    try:
        yield recorded
    finally:
        _recorder.reset(token)


@contextlib.contextmanager
def compiling_for(cc: tuple[Any, ...]) -> Iterator[None]:
    """Around the compiler: no garbage collection, and device functions are for the same GPU as their kernel.

    Numba would compile them for the GPU at hand.
    """
    dispatcher: Any = importlib.import_module("numba.cuda.dispatcher")
    real = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc)
    try:
        with driver.no_garbage_collection():
            yield
    finally:
        dispatcher.get_current_device = real


def array_type(dtype: Any) -> Any:
    """Numba's type of a flat array of ``dtype``, for signatures."""
    return types.Array(getattr(types, np.dtype(dtype).name), 1, "C")
