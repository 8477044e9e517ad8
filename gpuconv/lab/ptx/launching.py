"""Launches: arguments as Numba passes them, kernels of ``numba.cuda``, launches of ``gpuconv.kernels``, plain PTX."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.lab.cards import MAX_THREADS
from gpuconv.lab.launchable import Launchable
from gpuconv.lab.ptx.instructions import decode
from gpuconv.lab.ptx.machine import Loaded, Machine, Variables
from gpuconv.lab.ptx.memory import Global
from gpuconv.lab.ptx.program import Program
from gpuconv.lab.ptx.values import TYPES, Array, PtxError, register_type

#: Threads that run side by side: as many as have their registers in a CPU's second-level cache.
_LANES = 8192
#: Bytes of local memory of all of them.
_LOCAL = 1 << 28


# -- arguments ---------------------------------------------------------------------------------------------------------


def _flattened(arguments: Sequence[Any], signature: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Each array and number with its Numba type; tuples are passed one by one."""
    for argument, kind in zip(arguments, signature, strict=True):
        if isinstance(argument, tuple):
            yield from _flattened(argument, list(kind))
        elif type(kind).__name__ in ("EnumMember", "IntEnumMember"):
            yield from _flattened([argument.value], [kind.dtype])
        else:
            yield argument, kind


def parameters_of(arguments: Sequence[Any], signature: Sequence[Any]) -> tuple[list[Any], list[Array]]:
    """The parameters that Numba passes for the arguments, and the arrays among these.

    An array is passed as seven numbers: two host pointers, its number of elements, their size, its address, its shape
    and its strides. A record is passed by its address, a complex number as two.
    """
    values: list[Any] = []
    arrays: list[Array] = []
    for argument, kind in _flattened(arguments, signature):
        name = type(kind).__name__
        if isinstance(argument, np.ndarray) and name != "Record":
            _check_array(argument, kind)
            address = argument.__array_interface__["data"][0]
            values += [0, 0, argument.size, argument.itemsize, address, *argument.shape, *argument.strides]
            arrays.append(argument)
        elif name == "Record":
            held = np.asarray(argument)
            values.append(held.__array_interface__["data"][0])
            arrays.append(held.reshape(1))
        elif name == "Complex":
            values += [argument.real, argument.imag]
        elif name in ("NPDatetime", "NPTimedelta"):
            values.append(np.asarray(argument).view(np.int64)[()])
        elif name in ("NoneType", "Omitted", "Dispatcher", "StringLiteral", "Literal"):
            continue
        else:
            values.append(argument)
    return values, arrays


def _check_array(argument: Array, kind: Any) -> None:
    """Whether an array is of the type that the code was compiled for."""
    record = hasattr(kind.dtype, "fields") or str(kind.dtype).startswith(("[", "Record", "nestedarray", "datetime"))
    fits = argument.ndim == kind.ndim and (record or argument.dtype.name in (str(kind.dtype), "bool", "void"))
    contiguous = {"C": argument.flags.c_contiguous, "F": argument.flags.f_contiguous}.get(kind.layout, True)
    if (not fits and argument.dtype.kind not in "mMSU") or not contiguous:
        raise TypeError(f"an array of {argument.dtype}, shape {argument.shape}, is given for {kind}")


def packed(program: Program, values: Sequence[Any]) -> dict[str, Array]:
    """The bytes of each parameter."""
    if len(values) != len(program.parameters):
        raise PtxError(f"the code takes {len(program.parameters)} parameters, the arguments are {len(values)}")
    found = {}
    for (name, kind), value in zip(program.parameters.items(), values, strict=True):
        if "[" in kind:  # bytes of a structure
            held = np.frombuffer(bytes(value), np.uint8).copy()
        elif kind in TYPES:
            array = np.asarray(value)
            number = array.view(TYPES[kind]) if array.dtype.kind == "f" and TYPES[kind].kind != "f" else array
            held = np.atleast_1d(_converted(number, TYPES[kind])).view(np.uint8)
        else:
            held = np.atleast_1d(np.asarray(value)).astype(register_type(kind)).view(np.uint8)
        found[name] = np.ascontiguousarray(held)
    return found


def _converted(number: Array, dtype: np.dtype[Any]) -> Array:
    if number.dtype.kind in "iub" and dtype.kind in "iu":
        return np.array(int(number) & (256**dtype.itemsize - 1), f"u{dtype.itemsize}").view(dtype)
    return number.astype(dtype)


# -- launches ----------------------------------------------------------------------------------------------------------

#: By kernel, types of its arguments and compute capability: the grid changes nothing of the code.
_programs: dict[Any, Loaded] = {}


def _loaded(launch: Any, cc: tuple[Any, ...]) -> Loaded:
    key = launch.kernel, launch.signature, cc
    if key not in _programs:
        _programs[key] = Loaded(Program.parse(launch.ptx(cc)), decode)
    return _programs[key]


@dataclass
class _Launch:
    """A launch with its parameters in memory."""

    loaded: Loaded
    parameters: dict[str, Array]
    memory: Global
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    check: bool = False
    limit: float | None = None
    counting: bool = False

    def __post_init__(self) -> None:
        if min(self.grid + self.block) < 1 or math.prod(self.block) > MAX_THREADS:
            words = f"no size may be below 1, and a block has up to {MAX_THREADS} threads"
            raise PtxError(f"a grid of {self.grid} blocks of {self.block} threads: {words}")
        self.variables = Variables(self.loaded.program, self.memory, self.loaded.code)

    def run(self, blocks: range) -> Machine:
        """Run some blocks on the memory that earlier ones left."""
        machine = Machine(
            self.loaded,
            self.parameters,
            self.memory,
            self.variables,
            self.grid,
            self.block,
            blocks,
            self.shared_bytes,
            check=self.check,
            counting=self.counting,
            limit=self.limit,
        )
        with np.errstate(all="ignore"):
            machine.run()
        return machine

    def run_all(self) -> None:
        """Run all blocks: some side by side, all of them if they wait for each other."""
        blocks, threads = math.prod(self.grid), math.prod(self.block)
        lanes = min(_LANES, _LOCAL // max(1, self.loaded.local_bytes))
        wide = self.loaded.program.entry.cluster
        cluster = math.prod(wide)
        if any(size % part for size, part in zip(self.grid, wide, strict=True)):
            raise PtxError(f"clusters of {wide} blocks in a grid of {self.grid}: all clusters have to be full")
        step = blocks if self.loaded.has_grid_barrier else max(1, lanes // threads // cluster) * cluster
        for first in range(0, blocks, step):
            self.run(range(first, min(blocks, first + step)))
        if (self.memory.written & self.memory.read_only).any():
            raise PtxError("an array is written that is also read through the read-only cache (ldg, ldg_if)")


def _launch(launch: Any, arguments: Sequence[Any], cc: tuple[Any, ...], **options: Any) -> _Launch:
    loaded = _loaded(launch, cc)
    values, arrays = parameters_of(arguments, launch.signature)
    parameters = packed(loaded.program, values)
    return _Launch(loaded, parameters, Global(arrays), launch.grid, launch.block, launch.shared_bytes, **options)


def run(
    launch: Any,
    arguments: Sequence[Any],
    cc: tuple[int, int] | tuple[int, int, str] = (9, 0, "a"),
    *,
    check: bool = False,
) -> None:
    """Run a launch on NumPy arrays, which are read and written in place.

    Args:
        launch: a :class:`gpuconv.kernels.device.Launch`.
        arguments: arrays, numbers, and tuples of arrays, as the launch takes them.
        cc: compute capability to compile for.
        check: whether races in shared memory, and reads of it before anybody wrote it, are errors too.

    Raises:
        PtxError: see :class:`PtxError`.
        TypeError: an argument is not what the launch takes.
    """
    _launch(launch, arguments, cc, check=check).run_all()


@dataclass(frozen=True)
class Executed:
    """Number of executed PTX instructions, including those that a predicate turns off.

    Attributes:
        thread: the most that one thread executes.
        block: the sum over the warps of a block, averaged over two blocks. A warp counts as its longest thread; where
            its lanes diverge, it executes more.
    """

    thread: int
    block: float


def count(launch: Any, arguments: Sequence[Any], cc: tuple[int, int] | tuple[int, int, str] = (9, 0, "a")) -> Executed:
    """Run two blocks from the middle of a launch, and count the instructions that they execute.

    Machine code has fewer instructions, because several may become one (for example an address computation and the
    access), and that ratio differs from kernel to kernel. But the count shows which code is executed often, and what a
    change saves.

    Args, Raises: as :func:`run`.
    """
    blocks = math.prod(launch.grid)
    middle = max(0, blocks // 2 - 1)
    ran = _launch(launch, arguments, cc, counting=True).run(range(middle, min(blocks, middle + 2)))
    assert ran.executed is not None
    warps = np.zeros(int(ran.warp[-1]) + 1, np.int64)
    np.maximum.at(warps, ran.warp, ran.executed)
    return Executed(int(warps.max()), float(warps.sum()) * ran.threads / ran.count)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Run the launches of ``gpuconv.kernels`` inside the ``with`` block with :func:`run`, on NumPy arrays.

    Raises:
        RuntimeError: Numba's own simulator is on (NUMBA_ENABLE_CUDASIM), with which nothing can be compiled.
    """
    device: Any = importlib.import_module("gpuconv.kernels.device")
    if device.SIMULATED:
        raise RuntimeError("compiled kernels need Numba's CUDA target: set NUMBA_ENABLE_CUDASIM=0 before Python starts")

    with device.running_on_host(run):
        yield


def run_text(
    text: str,
    grid: Any,
    block: Any,
    arguments: Sequence[Any],
    *,
    entry: str | None = None,
    shared_bytes: int = 0,
    check: bool = True,
    limit: float | None = None,
) -> None:
    """Run a kernel that is given as PTX, of any compiler.

    Args:
        text: a module.
        grid, block: sizes, a number or up to three, x first.
        arguments: one for each parameter. An array is passed as its address, is used in place, and may be accessed;
            bytes are passed as a structure.
        entry: the kernel's name; None if it is the only one.
        shared_bytes: of dynamic shared memory.
        check: whether races in shared memory, and reads of it before anybody wrote it, are errors.
        limit: seconds after which the launch is ended, with the lines where its threads stand.

    Raises:
        PtxError: see :class:`PtxError`.
    """
    loaded = Loaded(Program.parse(text, entry), decode)
    arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
    values = [
        argument.__array_interface__["data"][0] if isinstance(argument, np.ndarray) else argument
        for argument in arguments
    ]
    parameters = packed(loaded.program, values)
    sizes = _three(grid), _three(block)
    _Launch(loaded, parameters, Global(arrays), *sizes, shared_bytes, check=check, limit=limit).run_all()


def _three(size: Any) -> tuple[int, int, int]:
    whole = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    first, second, third = (*map(int, whole), 1, 1)[:3]
    return first, second, third


# -- kernels of numba.cuda ---------------------------------------------------------------------------------------------


def interpret(
    kernel: Any,
    *,
    check: bool = True,
    cc: tuple[int, int] | tuple[int, int, str] = (9, 0, "a"),
    limit: float | None = None,
) -> Interpretation:
    """A kernel whose compiled code runs on the CPU when it is launched: ``interpret(kernel)[grid, block](x, y)``.

    Args:
        kernel: of ``numba.cuda``, in a process in which it is compiled (``NUMBA_ENABLE_CUDASIM`` is not set).
        check: whether races in shared memory, and reads of it before anybody wrote it, are errors.
        cc: compute capability to compile for.
        limit: seconds after which a launch is ended, with the lines where its threads stand; None for never.

    Launches take NumPy arrays, which are used in place, numbers, and tuples and records of such. Device arrays are
    copied to the host and back.

    Raises:
        TypeError: it is no such kernel.
        RuntimeError: ``numba.cuda`` runs its simulator in this process.
    """
    return Interpretation(kernel, check, cc, limit)


class Interpretation(Launchable[None]):
    """What :func:`interpret` gives."""

    def __init__(self, kernel: Any, check: bool, cc: tuple[Any, ...], limit: float | None) -> None:
        if not hasattr(kernel, "py_func") or not hasattr(kernel, "targetoptions"):
            if hasattr(kernel, "fn"):
                raise RuntimeError("interpret: numba.cuda runs its simulator here: unset NUMBA_ENABLE_CUDASIM")
            raise TypeError(f"interpret: a kernel of numba.cuda is wanted, not {type(kernel).__name__}")
        self._kernel, self._check, self._cc, self._limit = kernel, check, cc, limit
        self._programs: dict[tuple[Any, ...], Loaded] = {}

    def ptx(self, *arguments: Any) -> str:
        """The code for arguments like these."""
        return compiled(self._kernel, tuple(map(self._typed, arguments)), self._cc)[0]

    def _typed(self, argument: Any) -> Any:
        return self._kernel.typeof_pyval(argument)

    def _launch(self, grid: Any, block: Any, shared_bytes: int, *arguments: Any) -> None:
        sizes = _three(grid), _three(block)
        after: list[Callable[[], None]] = []
        arguments = tuple(_on_host(argument, after) for argument in arguments)
        signature = tuple(map(self._typed, arguments))
        if signature not in self._programs:
            self._programs[signature] = Loaded(Program.parse(compiled(self._kernel, signature, self._cc)), decode)
        loaded = self._programs[signature]
        values, arrays = parameters_of(arguments, signature)
        parameters = packed(loaded.program, values)
        memory = Global(arrays)
        _Launch(loaded, parameters, memory, *sizes, shared_bytes, check=self._check, limit=self._limit).run_all()
        for give_back in after:
            give_back()


def _on_host(argument: Any, after: list[Callable[[], None]]) -> Any:
    """An argument as NumPy has it; what has to be done after the launch is added to ``after``."""
    if isinstance(argument, tuple):
        parts = [_on_host(part, after) for part in argument]
        return type(argument)(*parts) if hasattr(argument, "_fields") else tuple(parts)
    if hasattr(argument, "copy_to_host") and not isinstance(argument, np.ndarray):
        host = argument.copy_to_host()
        after.append(lambda: argument.copy_to_device(host))
        return host
    return np.atleast_1d(argument)[0] if isinstance(argument, np.ndarray) and argument.ndim == 0 else argument


@contextlib.contextmanager
def _pretended_driver() -> Iterator[None]:
    """What compiles C++ asks the driver for its version, to say whether it could load the code."""
    try:
        driver: Any = importlib.import_module("cuda.bindings.driver")
    except ImportError:
        yield
        return
    real = driver.cuDriverGetVersion
    driver.cuDriverGetVersion = lambda: (driver.CUresult.CUDA_SUCCESS, 99_000)
    try:
        yield
    finally:
        driver.cuDriverGetVersion = real


def compiled(kernel: Any, signature: tuple[Any, ...], cc: tuple[Any, ...]) -> list[str]:
    """The PTX of a kernel of ``numba.cuda``, with lines of source, and of the C++ functions that it calls."""
    cuda = importlib.import_module("numba.cuda")
    device = importlib.import_module("gpuconv.kernels.device.launch")
    options = kernel.targetoptions
    names = ("fastmath", "launch_bounds", "debug", "opt")
    taken = {name: options[name] for name in names if options.get(name) is not None}
    if not taken.get("debug"):
        taken["lineinfo"] = True
    with device.compiling_for(cc), _pretended_driver(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*Could not find source"
        )  # of a kernel that was made by exec; perhaps in colour
        # Versions before 0.21 give the kernel's own code only.
        compile_all = getattr(cuda, "compile_all", None)
        if compile_all is None:
            compile_all = cuda.compile
        compile_for = functools.partial(
            compile_all, kernel.py_func, signature, device=False, cc=cc, abi="numba", output="ptx"
        )
        try:
            codes, _ = compile_for(**taken)
        except ZeroDivisionError:  # numba-cuda cannot describe an empty tuple to a debugger
            codes, _ = compile_for(**{name: value for name, value in taken.items() if name != "lineinfo"})
    texts = []
    for code in [codes] if isinstance(codes, str) else codes:
        data = code if isinstance(code, str) else getattr(code, "code", getattr(code, "data", b""))
        text = data if isinstance(data, str) else bytes(data).rstrip(b"\0").decode(errors="replace")
        if ".version" in text:  # of files to link only PTX can be read
            texts.append(text)
    return texts
