"""Compiles kernels for the CPU, and keeps them on disk.

A kernel is a function of the number of a chunk, followed by pointers and numbers; it does one chunk of the work. How
work is split into chunks does not depend on the number of threads, so neither do the results, to the last bit.
:func:`gpuconv.backends.cpu.threads.launch` runs the chunks on one or several threads.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.caching import FunctionCache
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import register_jitable

from gpuconv.kernels.driver import no_garbage_collection

logger = logging.getLogger("gpuconv.backends")
_Plan = TypeVar("_Plan")


class Kernel:
    """A kernel, which is compiled when its machine code is first asked for.

    Args:
        function: the kernel in Python.
        signature: Numba types of its arguments.
        plan: what it is compiled for.
        reassociate: whether sums may be cut into the parts that a vector adds up.

    Attributes:
        launches: how often it was launched.
    """

    def __init__(self, function: Callable[..., None], signature: Any, plan: Any, *, reassociate: bool = False):
        self._kind, self._plan = function.__qualname__.partition(".")[0], plan
        # Numba files what it compiles under the function's name. With the plan in the name each kernel has files of its
        # own: processes that compile different plans at the same time cannot take each other's code for theirs.
        text = f"{plan!r} {signature} {_helpers_digest()}"
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        function.__qualname__ = f"{self._kind}_{self._digest}"
        self._function, self._signature = function, signature
        self._options = {"fastmath": {"reassoc"}} if reassociate else {}
        self._kinds = "".join("d" if isinstance(kind, types.Float) else "q" for kind in signature.args[1:])
        self.launches = 0

    @cached_property
    def address(self) -> int:
        """Of its code."""
        address: int = self._compiled.address
        return address

    @cached_property
    def entry(self) -> int:
        """Address of a function of a chunk's number and the address of a :meth:`record`."""
        return _entry(self._kinds)

    @cached_property
    def _compiled(self) -> Any:
        cache = FunctionCache
        try:
            if not any(Path(cache(self._function).cache_path).glob(f"*{self._digest}*.nbc")):
                logger.info("compiling %s for %s", self._kind, self._plan)
                for tell in on_missing:
                    tell()
            return self._compile(cached=True)
        except (RuntimeError, OSError) as error:  # no directory can be written to, or the disk is full
            logger.info("compiling %s for %s, for this process only: %s", self._kind, self._plan, error)
            return self._compile(cached=False)
        except Exception as error:  # the file is damaged: what unpickling it may raise is not to be listed
            logger.info("compiling %s for %s again: its file cannot be read (%s)", self._kind, self._plan, error)
            cache(self._function).flush()
            return self._compile(cached=True)

    def _compile(self, *, cached: bool) -> Any:
        # The error model is that of NumPy: no Python exception for a division by zero.
        with no_garbage_collection():
            decorate = numba.cfunc(self._signature, cache=cached, error_model="numpy", **self._options)
            return decorate(self._function)

    def compile(self) -> None:
        """Compile it, or load its code from disk."""
        self.address  # noqa: B018

    def record(self, arguments: tuple[Any, ...]) -> np.ndarray:
        """What :attr:`entry` takes: 64-bit words. It does not keep the arrays."""
        words = [one.__array_interface__["data"][0] if isinstance(one, np.ndarray) else one for one in arguments]
        return np.frombuffer(bytearray(struct.pack("q" + self._kinds, self.address, *words)), np.int64)

    def assembly(self) -> str:
        """The machine code as text. RuntimeError if it was loaded from disk, where only the code itself is kept."""
        return self._compiled._library.get_asm_str()


@functools.cache
def _entry(kinds: str) -> int:
    """The address of a function ``(chunk, record)`` that calls a kernel whose arguments are of these kinds.

    They are q, a pointer or an integer, and d, a float64. It is made without Numba, which would take a quarter of a
    second.
    """
    integer = ir.IntType(64)
    argument_types = [ir.DoubleType() if kind == "d" else integer for kind in kinds]
    module = ir.Module(f"gpuconv_entry_{kinds}")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [integer, integer]), module.name)
    builder = ir.IRBuilder(function.append_basic_block())
    words = builder.inttoptr(function.args[1], integer.as_pointer())
    address, *arguments = (
        builder.load(builder.bitcast(builder.gep(words, [integer(index)]), kind.as_pointer()))
        for index, kind in enumerate([integer, *argument_types])
    )
    kernel_type = ir.FunctionType(ir.VoidType(), [integer, *argument_types])
    builder.call(builder.inttoptr(address, kernel_type.as_pointer()), [function.args[0], *arguments])
    builder.ret_void()
    with global_compiler_lock:
        library = cpu_target.target_context.codegen().create_library(module.name)
        library.add_ir_module(module)
        library.finalize()
        entry: int = library.get_pointer_to_function(module.name)
    _libraries.append(library)
    return entry


#: Called when a kernel is not on disk and has to be compiled.
on_missing: list[Callable[[], None]] = []

#: They keep the code of entries.
_libraries: list[Any] = []


@dataclass(frozen=True)
class Elements:
    """The plan of a kernel that is the same for all sizes.

    Attributes:
        dtype: name of the element type.
    """

    dtype: str


def kernel(
    *argument_types: Any, reassociate: bool = False
) -> Callable[[Callable[[_Plan], Callable[..., None]]], Callable[[_Plan], Kernel]]:
    """Decorator: of a function that returns a kernel for a plan make one that returns it compiled.

    A plan is a frozen dataclass. What the kernel reads of it as closure variables are constants to LLVM, so that loops
    unroll and divisions vanish. Each plan is compiled once in a process, and once on a machine.

    Args:
        argument_types: Numba types of the arguments after the chunk's number. A function of the plan's ``dtype``
            stands for a pointer to it: :data:`ELEMENTS`.
        reassociate: whether LLVM may add up a loop's sum in the lanes of a vector, in an order that is fixed when the
            kernel is compiled. Otherwise it keeps the order of the loop, one element after the other.
    """

    def decorate(build: Callable[[_Plan], Callable[..., None]]) -> Callable[[_Plan], Kernel]:
        @functools.cache
        def compiled(plan: _Plan) -> Kernel:
            dtype = numba.from_dtype(np.dtype(plan.dtype))  # type: ignore[attr-defined]
            arguments = [a(dtype) if a is ELEMENTS else a for a in argument_types]
            return Kernel(build(plan), types.void(types.int64, *arguments), plan, reassociate=reassociate)

        return functools.wraps(build)(compiled)

    return decorate


#: Stands for a pointer to elements of the plan's type.
ELEMENTS = types.CPointer
#: Pointer to the offsets at which maxima were found in their windows.
WINNERS = types.CPointer(types.uint8)
INTEGERS = types.CPointer(types.int64)
SIZE = types.int64


def sources() -> list[Path]:
    """The source files of compiled code."""
    return sorted(file for file in Path(__file__).parent.glob("*.py") if file.name != "backend.py")


@functools.cache
def _helpers_digest() -> str:
    # Numba notices when the file of a kernel changes, but not when a module that it uses does.
    return hashlib.sha256(b"".join(file.read_bytes() for file in sources())).hexdigest()


def jit() -> Callable[[Callable[..., Any]], Any]:
    """Decorator: ``numba.njit``, without Python's lock, cached on disk if there is a place for it."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            compiled = numba.njit(cache=True, nogil=True)(function)
        except RuntimeError:  # no directory can be written to
            return numba.njit(nogil=True)(function)
        cache = compiled._cache
        cache.save_overload = functools.partial(_save_if_possible, cache.save_overload)
        cache.load_overload = functools.partial(_load_if_possible, cache.load_overload, cache.flush)
        return compiled

    return decorate


def _save_if_possible(save: Callable[..., None], *arguments: Any) -> None:
    try:
        save(*arguments)
    except OSError as error:  # the disk is full
        logger.info("compiled code is kept for this process only: %s", error)


def _load_if_possible(load: Callable[..., Any], flush: Callable[[], None], *arguments: Any) -> Any:
    try:
        return load(*arguments)
    except Exception as error:  # a damaged file, as above
        logger.info("compiled code cannot be read and is made again: %s", error)
        flush()
        return None


@register_jitable
def split(total: int, chunks: int, chunk: int) -> tuple[int, int]:
    """First and end of a chunk's items, if ``total`` items are divided among the chunks as evenly as possible."""
    return chunk * total // chunks, (chunk + 1) * total // chunks
