"""Records the memory accesses of a simulated launch: ``gpuconv.lab.simulator`` wraps a kernel's arrays with it.

While the kernel runs, a traced array only checks the bounds of an access and appends one tuple to a log. The log is
evaluated after each block, in bulk, by NumPy: see :class:`Report` for the results.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"
#: An instruction of a kernel: its code, and where in the source it stands.
Site: TypeAlias = "tuple[CodeType, tuple[Any, ...]]"

WARP = 32
_getframe = sys._getframe


class Dim3(NamedTuple):
    """Sizes of a grid or block, or an index in one."""

    x: int
    y: int
    z: int

    def at(self, number: int) -> Dim3:
        """The index of the thread or block ``number``; x runs fastest."""
        plane, x = divmod(number, self.x)
        z, y = divmod(plane, self.y)
        return Dim3(x, y, z)


# -- the report ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """An error of a kernel at one place in its source; the details are those of its first occurrence."""

    #: "race", "uninitialized read", "out-of-bounds read" (or write, or atomic), "divergent barrier".
    kind: str
    #: File and line of the instructions concerned.
    sites: tuple[str, ...]
    #: Which element of which array (for a barrier: which block), and which threads.
    details: str
    #: How many elements, accesses or barriers it concerns. In memory with several dtypes, elements of the smallest.
    count: int

    def __str__(self) -> str:
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.kind}: {self.details}{times}"


@dataclass(frozen=True)
class BankConflicts:
    """How the requests of one instruction to shared memory spread over its 32 banks of 4 bytes.

    A warp's request is served at once for 4 bytes a lane, by half warps for 8 bytes, and by quarter warps for 16 bytes.
    Each of these phases takes as many passes as the busiest bank has distinct words to serve.
    """

    site: str
    array: str
    #: "read", "write" or "atomic".
    access: str
    #: Bits a lane.
    bits: int
    requests: int
    #: Passes of all requests, and the number without conflicts.
    passes: int
    ideal: int
    #: Passes of the worst request, divided by the ideal.
    worst: float

    @property
    def degree(self) -> float:
        """Passes divided by the ideal: 1.0 is free of conflicts."""
        return self.passes / self.ideal

    def __str__(self) -> str:
        return (
            f"{self.site}: {self.access} {self.bits} bits of {self.array}: conflict degree {self.degree:.2f} "
            f"(worst {self.worst:.0f}) over {self.requests} requests"
        )


@dataclass(frozen=True)
class Sectors:
    """How many 32-byte sectors of global memory the requests of one instruction touched."""

    site: str
    array: str
    access: str
    bits: int
    requests: int
    sectors: int
    #: The fewest that could have held the bytes asked for.
    ideal: int

    @property
    def per_request(self) -> float:
        """Sectors divided by requests: 4 for 32 neighbouring float32 values."""
        return self.sectors / self.requests

    @property
    def efficiency(self) -> float:
        """Ideal divided by actual sectors: at 1.0 every byte that moves is needed."""
        return self.ideal / self.sectors

    def __str__(self) -> str:
        return (
            f"{self.site}: {self.access} {self.bits} bits of {self.array}: {self.per_request:.1f} sectors a "
            f"request, {self.efficiency:.0%} needed, over {self.requests} requests"
        )


class Report:
    """The result of a trace; complete when the launches have returned.

    Attributes:
        launches: number of launches.
    """

    def __init__(self) -> None:
        self.launches = 0
        #: By kind and key: sites and details of the first one, and the count.
        self._faults: dict[tuple[str, Any], tuple[tuple[str, ...], str, int]] = {}
        self._shared: dict[tuple[Any, ...], list[Any]] = {}
        self._global: dict[tuple[Any, ...], list[Any]] = {}
        self._buffers: list[_Buffer] = []

    def _of(self, kind: str) -> tuple[Fault, ...]:
        return tuple(fault for fault in self.faults if fault.kind.startswith(kind))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All errors of the kernels, one entry for each place and array."""
        return tuple(Fault(kind, *seen) for (kind, _), seen in self._faults.items())

    @property
    def races(self) -> tuple[Fault, ...]:
        """Two threads access an element, at least one writes it, and nothing orders the accesses.

        A barrier orders the threads of a block, ``syncwarp`` the lanes of a warp. A shuffle does not: it gives no
        guarantee about memory. Nothing orders the blocks of a launch. Atomics do not race with each other.
        """
        return self._of("race")

    @property
    def uninitialized(self) -> tuple[Fault, ...]:
        """Reads of shared memory that no thread of the block has written."""
        return self._of("uninitialized")

    @property
    def out_of_bounds(self) -> tuple[Fault, ...]:
        """Accesses outside an array, also by negative indices, which Numba would wrap around.

        Such a read returned NaN (integers: all bits set), such a write was dropped.
        """
        return self._of("out-of-bounds")

    @property
    def divergence(self) -> tuple[Fault, ...]:
        """Threads of a block waited at different barriers, or had left the kernel while others waited."""
        return self._of("divergent")

    @property
    def bank_conflicts(self) -> tuple[BankConflicts, ...]:
        """One entry for each instruction that touched shared memory, those free of conflicts included."""
        return tuple(BankConflicts(*key, *counts) for key, counts in sorted(self._shared.items()))

    @property
    def sectors(self) -> tuple[Sectors, ...]:
        """One entry for each instruction that touched global memory."""
        return tuple(Sectors(*key, *counts) for key, counts in sorted(self._global.items()))

    @property
    def clean(self) -> bool:
        """Whether something was launched without an error. Conflicts and sectors only cost time."""
        return self.launches > 0 and not self._faults

    def writes(self, array: Array) -> Array:
        """How often each element of ``array`` was written (int64, its shape), summed over the launches.

        ``array`` must be an argument of a traced launch, or a view of one.

        Raises:
            ValueError: no traced launch was given this array's memory.
        """
        counts = [
            np.max([buffer.written[first + part] for part in range(max(1, array.itemsize // buffer.granule))], axis=0)
            for buffer, first in self._granules(array)
        ]
        if array.size and not counts:
            raise ValueError("writes: this array's memory was not an argument of a traced launch")
        return sum(counts, np.zeros(array.shape, np.int64))

    def writers(self, array: Array) -> Array:
        """The block that wrote each element of ``array`` last: its index (x, y, z) on a last axis, -1 where none did.

        ``array`` must be an argument of a traced launch, or a view of one; the latest launch that wrote to it counts.
        """
        blocks = np.full((*array.shape, 3), -1, np.int64)
        for buffer, first in self._granules(array):
            number = buffer.writer[first]
            plane, x = np.divmod(number, buffer.grid.x)
            z, y = np.divmod(plane, buffer.grid.y)
            blocks = np.where(number[..., None] < 0, blocks, np.stack((x, y, z), axis=-1))
        return blocks

    def _granules(self, array: Array) -> Iterator[tuple[_Buffer, Array]]:
        """Each buffer that holds the memory of ``array``, one a launch, and the first granule of each element in it."""
        low, high = _bounds(array)
        offsets = np.zeros(array.shape, np.int64)
        for axis, (size, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
            offsets += (np.arange(size) * stride).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        for buffer in self._buffers:
            if buffer.real <= low and high <= buffer.real + buffer.nbytes:
                yield buffer, (offsets + (_address(array) - buffer.real)) // buffer.granule

    def __str__(self) -> str:
        number = len(self._faults)
        verdict = f"{number} fault{'s' * (number > 1)}" if number else "clean" if self.clean else "nothing ran"
        lines = [f"{self.launches} launch{'es' * (self.launches != 1)} traced: {verdict}"]
        lines += [f"  {fault}" for fault in self.faults]
        lines += [f"  shared, {entry}" for entry in self.bank_conflicts]
        lines += [f"  global, {entry}" for entry in self.sectors]
        return "\n".join(lines)

    def add(self, kind: str, key: Any, sites: tuple[str, ...], details: str, count: int = 1) -> None:
        """Count a fault; the first of its kind and key gives the details."""
        sites, details, before = self._faults.get((kind, key), (sites, details, 0))
        self._faults[kind, key] = sites, details, before + count


# -- instructions ----------------------------------------------------------------------------------------

_sites: dict[tuple[int, int], Site] = {}


def site(code: CodeType, offset: int) -> Site:
    """The instruction at a bytecode offset (``f_lasti``) of a function.

    From Python 3.11 on the interpreter rewrites bytecode while it runs, and one instruction is reported at several
    offsets: its position in the source, line and column, is the same at all of them.
    """
    key = (id(code), offset)
    found = _sites.get(key)
    if found is None:
        position: tuple[Any, ...] = (_line(code, offset), offset)
        if sys.version_info >= (3, 11):
            position = list(code.co_positions())[offset // 2]
        # The code object is kept, so that its id stays its own.
        found = _sites[key] = (code, position)
    return found


def _line(code: CodeType, offset: int) -> int:
    lines = (line for start, end, line in code.co_lines() if start <= offset < end and line is not None)
    return next(lines, code.co_firstlineno)


def site_name(where: Site) -> str:
    """File and line, in the form that editors and terminals turn into a link."""
    code, position = where
    path = os.path.relpath(code.co_filename)
    return f"{code.co_filename if path.startswith('..') else path}:{position[0] or code.co_firstlineno}"


def thread_name(thread: Dim3, block: Dim3) -> str:
    """For messages."""
    return f"thread {tuple(thread)} of block {tuple(block)}"


# -- traced arrays ---------------------------------------------------------------------------------------

# Kinds of access, as bits, so that those of several accesses can be combined. A predicated load that is off is idle: it
# accesses nothing, but counts when the lanes' accesses are matched.
_IDLE, _READ, _WRITE, _ATOMIC = 0, 1, 2, 4
_KINDS = {_READ: "read", _WRITE: "write", _ATOMIC: "atomic"}


def poison(dtype: np.dtype[Any]) -> Any:
    """A value with all bits set: NaN in every float type."""
    return np.frombuffer(b"\xff" * dtype.itemsize, dtype)[0]


class _Buffer:
    """Memory of one or more arrays: global memory that a launch was given, or a shared allocation."""

    def __init__(self, nbytes: int, granule: int, *, shared: bool, address: int, real: int, owner: Any) -> None:
        self.nbytes, self.granule, self.shared = nbytes, granule, shared
        #: Where it begins in the simulated address space: shared and global memory each have one.
        self.address = address
        #: Where it begins in this process. Arrays are known by this, so the memory must not be freed: it has an owner.
        self.real, self.owner = real, owner
        #: Number of its first granule, among the granules of all buffers.
        self.first = 0
        #: How often each granule was written (global memory).
        self.written = np.zeros(0 if shared else -(-nbytes // granule), np.int64)
        #: Number of the block that wrote each granule last, or -1, and the grid that it is counted in.
        self.writer, self.grid = np.full_like(self.written, -1), Dim3(1, 1, 1)
        #: An instruction that reads it through the read-only cache.
        self.read_only: Site | None = None


class TracedArray:
    """An array as a kernel sees it during a trace, of any number of dimensions.

    The log is given tuples ``(code, position, f_code, f_lasti)``: ``code`` stands for this array and the kind and width
    of the access; ``position`` counts elements in one dimension and bytes in several. The subclasses are there for
    speed: most of a trace's time is spent in these methods.
    """

    __slots__ = (
        "_atomic",
        "_idle",
        "_log",
        "_read",
        "_tracer",
        "_wide",
        "_write",
        "address",
        "buffer",
        "name",
        "number",
        "root",
        "values",
    )

    def __init__(
        self,
        tracer: Tracer,
        values: Array,
        buffer: _Buffer,
        address: int,
        name: str,
        root: TracedArray | None = None,
    ) -> None:
        self._tracer, self.values, self.buffer, self.address, self.name = tracer, values, buffer, address, name
        #: The array that this is a view of: elements are named after it.
        self.root: TracedArray = self if root is None else root
        self._log = tracer.log.append
        self.number = tracer.add(self)
        self._read, self._write, self._atomic, self._idle = (
            tracer.register(self, kind, 1) for kind in (_READ, _WRITE, _ATOMIC, _IDLE)
        )
        self._wide: dict[tuple[int, int], int] = {}

    shape = property(lambda self: self.values.shape)
    strides = property(lambda self: self.values.strides)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    dtype = property(lambda self: self.values.dtype)
    itemsize = property(lambda self: self.values.itemsize)

    def __len__(self) -> int:
        return len(self.values)

    def _position(self, index: Any) -> int | None:
        """Position of an element for the log, None if it is outside; TypeError if it is not one element's index."""
        if len(index) != self.values.ndim:
            raise TypeError
        position = 0
        for i, size, stride in zip(index, self.values.shape, self.values.strides, strict=True):
            if not 0 <= i < size:
                return None
            position += i * stride
        return position

    def __getitem__(self, index: Any) -> Any:
        try:
            position = self._position(index)
        except TypeError:
            return self._view(index)
        frame = _getframe(1)
        if position is None:
            return self._outside(_READ, index, frame)
        self._log((self._read, position, frame.f_code, frame.f_lasti))
        return self.values[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        try:
            position = self._position(index)
        except TypeError:
            self._assign(index, value)
            return
        frame = _getframe(1)
        if position is None:
            self._outside(_WRITE, index, frame)
            return
        self._log((self._write, position, frame.f_code, frame.f_lasti))
        self.values[index] = value

    def exchange(self, index: Any, update: Callable[[Any], Any]) -> Any:
        """Replace an element by a function of it, atomically; return what it was.

        Called by a function that the kernel called: the access is the kernel's.
        """
        frame = _getframe(2)
        position = self._position(index)
        if position is None:
            return self._outside(_ATOMIC, index, frame)
        self._log((self._atomic, position, frame.f_code, frame.f_lasti))
        old = self.values[index]
        self.values[index] = update(old)
        return old

    def _view(self, index: Any) -> Any:
        """What Numba makes of a slice, or of fewer indices than dimensions: an array over the same memory."""
        values = self.values[index]
        if not isinstance(values, np.ndarray):
            raise IndexError(f"{self.name}: unsupported index {index!r}")
        return self._tracer.view(self, values)

    def _assign(self, index: Any, value: Any) -> None:
        """Set a slice, for a kernel that called the caller."""
        frame = _getframe(2)
        view = self._view(index)
        view.values[...] = value
        for element in np.ndindex(view.values.shape):
            view._log((view._write, view._position(element), frame.f_code, frame.f_lasti))

    def _outside(self, kind: int, index: Any, frame: FrameType) -> Any:
        self._tracer.out_of_bounds(self, kind, index, site(frame.f_code, frame.f_lasti))
        return poison(self.values.dtype)

    @property
    def scale(self) -> int:
        """Bytes that one unit of a logged position stands for."""
        return self.values.strides[0] if self.values.ndim == 1 else 1

    def element(self, address: int) -> str:
        """Name of the element at a simulated address."""
        root = self.root
        offset, index = address - root.address, [0] * root.values.ndim
        for stride, axis in sorted(((s, axis) for axis, s in enumerate(root.values.strides)), reverse=True):
            if stride > 0:
                index[axis], offset = divmod(offset, stride)
        return f"{root.name}[{', '.join(map(str, index))}]"


class _Traced2(TracedArray):
    __slots__ = ("_columns", "_down", "_right", "_rows")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._rows, self._columns = self.values.shape
        self._down, self._right = self.values.strides

    def __getitem__(self, index: Any) -> Any:
        try:
            row, column = index
            inside = 0 <= row < self._rows and 0 <= column < self._columns
        except TypeError:
            return self._view(index)
        frame = _getframe(1)
        if not inside:
            return self._outside(_READ, index, frame)
        self._log((self._read, row * self._down + column * self._right, frame.f_code, frame.f_lasti))
        return self.values[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        try:
            row, column = index
            inside = 0 <= row < self._rows and 0 <= column < self._columns
        except TypeError:
            self._assign(index, value)
            return
        frame = _getframe(1)
        if not inside:
            self._outside(_WRITE, index, frame)
            return
        self._log((self._write, row * self._down + column * self._right, frame.f_code, frame.f_lasti))
        self.values[index] = value


class _Traced1(TracedArray):
    __slots__ = ("_size",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._size = self.values.shape[0]

    def _position(self, index: Any) -> int | None:
        if isinstance(index, tuple):
            (index,) = index
        return index if 0 <= index < self._size else None

    def __getitem__(self, index: Any) -> Any:
        try:
            inside = 0 <= index < self._size
        except TypeError:
            return self._view(index)
        frame = _getframe(1)
        if not inside:
            return self._outside(_READ, index, frame)
        self._log((self._read, index, frame.f_code, frame.f_lasti))
        return self.values[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        try:
            inside = 0 <= index < self._size
        except TypeError:
            self._assign(index, value)
            return
        frame = _getframe(1)
        if not inside:
            self._outside(_WRITE, index, frame)
            return
        self._log((self._write, index, frame.f_code, frame.f_lasti))
        self.values[index] = value

    # Called by the Python versions of `gpuconv.kernels.device`. The access is that of the kernel, the caller's caller.

    def load(self, index: int, count: int, *, read_only: bool = False) -> Any:
        """Elements ``index .. index + count - 1`` in one access: a tuple, or a scalar if ``count`` is 1."""
        frame = _getframe(2)
        if read_only and self.buffer.read_only is None:
            if self.buffer.shared:
                raise TypeError(f"{self.name} is in shared memory, which read-only loads cannot read")
            self.buffer.read_only = site(frame.f_code, frame.f_lasti)
        if not 0 <= index <= self._size - count:
            nothing = self._outside(_READ, index, frame)
            return nothing if count == 1 else (nothing,) * count
        self._log((self._code(_READ, index, count), index, frame.f_code, frame.f_lasti))
        return self.values[index] if count == 1 else tuple(self.values[index : index + count])

    def skip(self) -> None:
        """A predicated load that is off."""
        frame = _getframe(2)
        self._log((self._idle, 0, frame.f_code, frame.f_lasti))

    def store(self, index: int, values: tuple[Any, ...]) -> None:
        """Set the elements from ``index`` on, in one access."""
        frame = _getframe(2)
        if not 0 <= index <= self._size - len(values):
            self._outside(_WRITE, index, frame)
            return
        self._log((self._code(_WRITE, index, len(values)), index, frame.f_code, frame.f_lasti))
        self.values[index : index + len(values)] = values

    def _code(self, kind: int, index: int, count: int) -> int:
        width = count * self.values.itemsize
        if index % count or (self.address + index * self.values.itemsize) % width:
            hint = " (a shared array needs alignment=16)" if self.buffer.shared else ""
            raise ValueError(f"{self.name}: {width} bytes at element {index} are not aligned to {width}{hint}")
        code = self._wide.get((kind, count))
        if code is None:
            if width > 16 or self.values.strides[0] != self.values.itemsize:
                raise TypeError(f"{self.name}: {count} elements are not 128 contiguous bits or fewer")
            code = self._wide[kind, count] = self._tracer.register(self, kind, count)
        return code


# -- the tracer ------------------------------------------------------------------------------------------

#: Number of accesses after which the log is evaluated, at the end of a block: its tables still fit into a cache.
_BATCH = 1 << 14
#: Simulated address of dynamic shared memory: behind all that static shared memory can take.
_DYNAMIC = 1 << 17


class Tracer:
    """Collects the accesses of one launch, and adds what they mean to a report.

    Args:
        report: what to add to.
        kernel: the Python function.
        grid, block: sizes of the launch.
    """

    def __init__(self, report: Report, kernel: Callable[..., None], grid: Dim3, block: Dim3) -> None:
        self.report, self.kernel, self.grid, self.block_dim = report, kernel, grid, block
        self.log: list[tuple[int, int, CodeType, int]] = []
        #: For each time that a thread ran: where in the log it began, thread, clock, epoch, block.
        self._runs: list[tuple[int, int, Any, int, int]] = []
        #: Counts barriers and blocks: accesses in different epochs are in order.
        self._epoch = self._block = 0
        self._thread = 0
        self._buffers: list[_Buffer] = []
        self._arrays: list[TracedArray] = []
        self._views: dict[Any, TracedArray] = {}
        #: By access code: number of the array, kind, bytes.
        self._accesses: list[tuple[int, int, int]] = []
        self._sites: dict[Site, int] = {}
        self._global_accesses: list[Array] = []
        self._shared_end = 0

    # Arrays.

    def wrap(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of the kernel, with traced arrays in the place of arrays."""
        for array in sorted(_arrays(args), key=_bounds):
            self._watch(array)
        code = self.kernel.__code__
        names = code.co_varnames[: code.co_argcount] + ("?",) * len(args)
        return tuple(self._wrap(arg, name) for arg, name in zip(args, names, strict=False))

    def _watch(self, array: Array) -> None:
        """Note the memory under an array; arrays that overlap share a buffer. Called in order of addresses."""
        low, high = _bounds(array)
        granule, end = array.itemsize, 0
        if self._buffers:
            last = self._buffers[-1]
            end = last.address + last.nbytes
            if low < last.real + last.nbytes:
                granule = math.gcd(granule, last.granule, low - last.real)
                low, high = last.real, max(high, last.real + last.nbytes)
                end = last.address
                self._buffers.pop()
        # Keeps the alignment of the address in this process, on which the number of sectors depends.
        address = -(-end // 512) * 512 + low % 512
        buffer = _Buffer(high - low, granule, shared=False, address=address, real=low, owner=array)
        self._buffers.append(buffer)

    def _wrap(self, arg: Any, name: str) -> Any:
        if isinstance(arg, tuple):
            return tuple(self._wrap(part, f"{name}[{i}]") for i, part in enumerate(arg))
        if not isinstance(arg, np.ndarray) or arg.ndim == 0:
            return arg
        real = _address(arg)
        for buffer in self._buffers:
            if arg.size and buffer.real <= real < buffer.real + buffer.nbytes:
                return self._make(arg, buffer, buffer.address + real - buffer.real, name)
        empty = _Buffer(0, arg.itemsize, shared=False, address=0, real=0, owner=arg)
        return self._make(arg, empty, 0, name)

    def _make(
        self, values: Array, buffer: _Buffer, address: int, name: str, root: TracedArray | None = None
    ) -> TracedArray:
        kind = {1: _Traced1, 2: _Traced2}.get(values.ndim, TracedArray)
        return kind(self, values, buffer, address, name, root)

    def view(self, array: TracedArray, values: Array) -> TracedArray:
        """A traced array for a view of another one's values."""
        real = _address(values)
        key = (real, values.shape, values.strides, values.dtype.str)
        if key not in self._views:
            address = array.address + real - _address(array.values)
            name = f"view of {array.root.name}"
            self._views[key] = self._make(values, array.buffer, address, name, array.root)
        return self._views[key]

    def shared(self, values: Array, where: Site, alignment: int, *, dynamic: bool) -> TracedArray:
        """A traced array for a shared array that the instruction ``where`` made, or for dynamic shared memory."""
        if dynamic:
            # All such arrays are views of the same memory, maybe of different types.
            for buffer in self._buffers:
                if buffer.shared and buffer.address == _DYNAMIC:
                    buffer.granule = min(buffer.granule, values.itemsize)
                    break
            else:
                buffer = _Buffer(values.nbytes, values.itemsize, shared=True, address=_DYNAMIC, real=0, owner=values)
                self._buffers.append(buffer)
        else:
            # No more aligned than the kernel asks for: more would be luck.
            alignment = max(alignment, values.itemsize)
            address = (-(-self._shared_end // alignment) | 1) * alignment
            buffer = _Buffer(values.nbytes, values.itemsize, shared=True, address=address, real=0, owner=values)
            self._shared_end = address + values.nbytes
            self._buffers.append(buffer)
        return self._make(values, buffer, buffer.address, f"shared array of {site_name(where)}")

    def add(self, array: TracedArray) -> int:
        """A number for an array."""
        self._arrays.append(array)
        return len(self._arrays) - 1

    def register(self, array: TracedArray, kind: int, count: int) -> int:
        """A code for accesses to ``count`` elements of an array."""
        self._accesses.append((array.number, kind, count * array.values.itemsize))
        return len(self._accesses) - 1

    # Called while the kernel runs.

    def begin_block(self, number: int) -> None:
        """The threads that enter from now on are those of the block ``number``."""
        if len(self.log) > _BATCH:
            self._flush()
        self._block = number
        self._epoch += 1

    def enter(self, thread: int, clock: tuple[int, ...] | None) -> None:
        """A thread begins or goes on; ``clock`` says which syncwarps lie behind it."""
        self._thread = thread
        self._runs.append((len(self.log), thread, clock, self._epoch, self._block))

    def barrier(self, sites: set[Site], *, left: bool) -> None:
        """The block passes a barrier, at which its threads wait at ``sites``; some may have ``left`` the kernel."""
        self._epoch += 1
        if len(sites) > 1 or left:
            names = tuple(sorted(map(site_name, sites)))
            gone = ", when others have left the kernel" if left else ""
            block = tuple(self.grid.at(self._block))
            details = f"threads of block {block} wait at {' and '.join(names)}{gone}"
            self.report.add("divergent barrier", (names, left), names, details)

    def out_of_bounds(self, array: TracedArray, kind: int, index: Any, where: Site) -> None:
        """The current thread accesses an element that does not exist."""
        subscript = ", ".join(str(i) for i in (index if isinstance(index, tuple) else (index,)))
        name, what = site_name(where), f"out-of-bounds {_KINDS[kind]}"
        details = f"{array.name}[{subscript}] of shape {array.shape} at {name} by {self._who()}"
        self.report.add(what, (array.name, where), (name,), details)

    def _who(self, thread: int | None = None, block: int | None = None) -> str:
        thread, block = self._thread if thread is None else thread, self._block if block is None else block
        return thread_name(self.block_dim.at(thread), self.grid.at(block))

    # Evaluating the log.

    def finish(self) -> None:
        """The launch is over."""
        self._flush()
        self._races_between_blocks()
        buffers = [buffer for buffer in self._buffers if not buffer.shared]
        for buffer in buffers:
            if buffer.read_only is not None and buffer.written.any():
                reader = site_name(buffer.read_only)
                name = next(array.name for array in self._arrays if array.buffer is buffer)
                details = f"{name} is written in the launch that reads it by a read-only load at {reader}"
                self.report.add("race", (name, reader), (reader,), details)
        self.report._buffers += buffers
        self.report.launches += 1

    def _flush(self) -> None:
        log, runs = self.log, self._runs
        if log:
            codes, positions, code_objects, offsets = zip(*log, strict=True)
            where = self._number_sites(code_objects, np.fromiter(offsets, np.int64, len(log)))
            array, kind, nbytes = np.array(self._accesses)[np.fromiter(codes, np.int64, len(log))].T
            address = self._columns(array, lambda traced: traced.address)
            address += np.fromiter(positions, np.int64, len(log)) * self._columns(array, lambda traced: traced.scale)
            run = np.repeat(np.arange(len(runs)), np.diff([run[0] for run in runs], append=len(log)))
            thread, epoch, block = (np.array([run[i] for run in runs])[run] for i in (1, 3, 4))
            epoch -= epoch[0]
            e = _Events(array, kind, nbytes, address, where, run, thread, epoch, block)
            self._count_requests(e)
            self._check_elements(e)
        log.clear()
        runs.clear()

    def _number_sites(self, code_objects: tuple[CodeType, ...], offsets: Array) -> Array:
        """A small number for each access's instruction."""
        # A code object takes more memory than it has instructions, so no two pairs have the same sum.
        keys = (np.fromiter(map(id, code_objects), np.int64, offsets.size) << 16) + offsets
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        sites = [site(code_objects[i], int(offsets[i])) for i in first.tolist()]
        return np.array([self._sites.setdefault(where, len(self._sites)) for where in sites])[inverse]

    def _site_name(self, number: int) -> str:
        return site_name(list(self._sites)[number])

    def _columns(self, array: Array, attribute: Callable[[TracedArray], int]) -> Array:
        """An attribute of each access's array."""
        return np.array([attribute(traced) for traced in self._arrays])[array]

    def _count_requests(self, e: _Events) -> None:
        """Group the lanes' accesses into the requests of their warps; count bank conflicts and sectors.

        Lanes are matched by counting: the n-th time that a lane came to an instruction since the last barrier belongs
        with the other lanes' n-th time.
        """
        modifies = (e.kind & (_WRITE | _ATOMIC) > 0).astype(np.int64)  # x[i] += y is a read and a write at one place
        e = e.take(_order(e.epoch, e.thread // WARP, e.site, modifies, e.thread % WARP))
        warp, lane = np.divmod(e.thread, WARP)
        instruction = _changes(e.epoch, warp, e.site, e.kind & (_WRITE | _ATOMIC) > 0)
        where = np.arange(warp.size)
        turn = where - np.maximum.accumulate(np.where(instruction | _changes(lane), where, 0))
        request = (np.cumsum(instruction) - 1) * (turn.max() + 1) + turn
        shared = self._columns(e.array, lambda traced: traced.buffer.shared)
        for measure, totals, chosen in (
            (_bank_passes, self.report._shared, shared),
            (_sectors, self.report._global, ~shared),
        ):
            chosen = np.flatnonzero(chosen & (e.kind != _IDLE))
            chosen = chosen[_order(request[chosen])]
            first = chosen[_changes(request[chosen])]
            actual, ideal = measure(request[chosen], lane[chosen], e.address[chosen], e.nbytes[chosen])
            for key, mine in _groups(e.site[first], e.array[first], e.kind[first], e.nbytes[first]):
                number, array, kind, nbytes = key
                name = (self._site_name(number), self._arrays[array].name, _KINDS[kind], 8 * nbytes)
                total = totals.setdefault(name, [0, 0, 0, 0.0] if measure is _bank_passes else [0, 0, 0])
                total[0] += mine.size
                total[1] += int(actual[mine].sum())
                total[2] += int(ideal[mine].sum())
                if measure is _bank_passes:
                    total[3] = max(total[3], float((actual[mine] / ideal[mine]).max()))

    def _check_elements(self, e: _Events) -> None:
        """Find races within blocks and reads of what nobody wrote; count writes; keep what blocks may race on."""
        units = 0
        # Buffers of global memory come first, so that their granules have the same numbers each time.
        for buffer in self._buffers:
            buffer.first = units
            units += -(-buffer.nbytes // buffer.granule)
        e = e.take(np.flatnonzero(e.kind != _IDLE))
        granule = self._columns(e.array, lambda traced: traced.buffer.granule)
        row, part = _expand(e.nbytes // granule)
        e = e.take(row)
        e = e._replace(address=e.address + part * granule[row])
        unit = self._columns(e.array, lambda traced: traced.buffer.first)
        unit += (e.address - self._columns(e.array, lambda traced: traced.buffer.address)) // granule[row]
        shared = self._columns(e.array, lambda traced: traced.buffer.shared)

        written, counts = np.unique(unit[e.kind != _READ], return_counts=True)
        for buffer in self._buffers:
            span = slice(*np.searchsorted(written, (buffer.first, buffer.first + buffer.written.size)))
            buffer.written[written[span] - buffer.first] += counts[span]
        columns = (unit, e.block, e.kind, e.site, e.array)
        self._global_accesses.append(np.stack([column[~shared] for column in columns]).astype(np.int32))

        chosen = np.flatnonzero(np.isin(unit, written))
        order = chosen[_order(e.epoch[chosen], unit[chosen])]
        place = _changes(e.epoch[order], unit[order])
        table = e.take(order)
        ordered = self._ordered if any(run[2] is not None for run in self._runs) else None
        self._add_races(table, _conflicts(place, table, table.thread, ordered), between_blocks=False)

        chosen = np.flatnonzero(shared)
        order = chosen[_order(e.block[chosen], unit[chosen])]
        place = _changes(e.block[order], unit[order])
        table, where = e.take(order), np.arange(order.size)
        writing = np.where(table.kind != _READ, where, order.size)
        first = np.minimum.reduceat(writing, np.flatnonzero(place)) if order.size else writing
        # An atomic reads before it writes.
        early = where < first[np.cumsum(place) - 1] + (table.kind == _ATOMIC)
        self._add_uninitialized(table.take(np.flatnonzero(early & (table.kind != _WRITE))))

    def _ordered(self, e: _Events, one: int, other: int) -> bool:
        """Whether a syncwarp lies between two accesses of threads of a block, in the same epoch."""
        if e.thread[one] // WARP != e.thread[other] // WARP:
            return False
        clocks = [self._runs[e.run[i]][2] or (0,) * WARP for i in (one, other)]
        lanes = [int(e.thread[i]) % WARP for i in (one, other)]
        return any(clocks[1 - i][lanes[i]] > clocks[i][lanes[i]] for i in (0, 1))

    def _races_between_blocks(self) -> None:
        if not self._global_accesses:
            return
        unit, block, kind, where, array = np.concatenate(self._global_accesses, axis=1).astype(np.int64)
        written = np.concatenate([buffer.written for buffer in self._buffers])
        last = np.full_like(written, -1)
        last[unit[kind != _READ]] = block[kind != _READ]
        for buffer in self._buffers:
            buffer.writer, buffer.grid = last[buffer.first : buffer.first + buffer.written.size], self.grid
        chosen = np.flatnonzero(written[unit]) if written.size else np.zeros(0, np.int64)
        chosen = chosen[_order(unit[chosen])]
        granule = self._columns(array, lambda traced: traced.buffer.granule)
        address = self._columns(array, lambda traced: traced.buffer.address)
        address += (unit - self._columns(array, lambda traced: traced.buffer.first)) * granule
        unknown = np.zeros_like(unit)
        e = _Events(array, kind, granule, address, where, unknown, unknown, unknown, block).take(chosen)
        self._add_races(e, _conflicts(_changes(unit[chosen]), e, e.block, None), between_blocks=True)

    def _add_races(self, e: _Events, pairs: tuple[Array, Array], *, between_blocks: bool) -> None:
        one, other = (e.take(rows) for rows in pairs)
        for key, mine in _groups(one.array, one.site, one.kind, other.site, other.kind):
            i = int(mine[0])
            array = self._arrays[key[0]]
            sites, deeds = [], []
            for side in (one, other):
                block = int(side.block[i])
                who = f"block {tuple(self.grid.at(block))}"
                if not between_blocks:
                    who = self._who(int(side.thread[i]), block)
                sites.append(self._site_name(int(side.site[i])))
                deeds.append(f"{_KINDS[int(side.kind[i])]} at {sites[-1]} by {who}")
            details = f"{array.element(int(one.address[i]))}: {deeds[0]}, {deeds[1]}"
            self.report.add("race", (array.name, between_blocks, *sites), tuple(sites), details, mine.size)

    def _add_uninitialized(self, e: _Events) -> None:
        for (array, number), mine in _groups(e.array, e.site):
            i = int(mine[0])
            name, traced = self._site_name(number), self._arrays[array]
            who = self._who(int(e.thread[i]), int(e.block[i]))
            details = f"{traced.element(int(e.address[i]))} at {name} by {who}"
            self.report.add("uninitialized read", (traced.name, name), (name,), details, mine.size)


class _Events(NamedTuple):
    """Columns of a table of accesses."""

    array: Array
    kind: Array
    nbytes: Array
    address: Array
    site: Array
    run: Array
    thread: Array
    epoch: Array
    block: Array

    def take(self, rows: Array) -> _Events:
        return _Events(*(column[rows] for column in self))


def _order(*fields: Array) -> Array:
    """Positions of rows sorted by non-negative fields, the first counting most; equal rows stay in order."""
    count = fields[0].size
    if not count:
        return np.zeros(0, np.int64)
    widths = [int(field.max()).bit_length() for field in fields] + [count.bit_length()]
    if sum(widths) > 63:
        return np.lexsort(fields[::-1])
    # NumPy sorts plain integers several times faster than it sorts positions by several fields.
    key = np.zeros(count, np.int64)
    for field, width in zip((*fields, np.arange(count)), widths, strict=True):
        key = key << width | field
    key.sort()
    return key & (1 << widths[-1]) - 1


def _changes(*fields: Array) -> Array:
    """Where a row differs from the one before it; the first one does."""
    changes = np.zeros(fields[0].size, bool)
    changes[:1] = True
    for field in fields:
        changes[1:] |= field[1:] != field[:-1]
    return changes


def _groups(*fields: Array) -> Iterator[tuple[list[int], Array]]:
    """Each combination of values that rows have, and the rows that have it."""
    order = _order(*fields)
    begins = np.flatnonzero(_changes(*(field[order] for field in fields)))
    for rows in np.split(order, begins[1:]) if order.size else []:
        yield [int(field[rows[0]]) for field in fields], rows


def _expand(counts: Array) -> tuple[Array, Array]:
    """Row and part of each of the ``counts[row]`` parts of each row."""
    row = np.repeat(np.arange(counts.size), counts)
    return row, np.arange(row.size) - np.repeat(np.cumsum(counts) - counts, counts)


def _conflicts(
    place: Array, e: _Events, actor: Array, ordered: Callable[[_Events, int, int], bool] | None
) -> tuple[Array, Array]:
    """Rows of two conflicting accesses by different actors, for each element that has any.

    Args:
        place: where in the table the accesses to another element begin.
        e: the accesses.
        actor: who made each.
        ordered: whether two accesses by different actors are in order after all.
    """
    starts = np.flatnonzero(place)
    if not starts.size:
        return starts, starts
    kinds = np.bitwise_or.reduceat(e.kind, starts)
    several = np.minimum.reduceat(actor, starts) != np.maximum.reduceat(actor, starts)
    racy = several & (((kinds & _WRITE) > 0) | (kinds == _READ | _ATOMIC))
    if ordered is not None:
        ends = np.append(starts[1:], place.size)
        ranges = zip(starts[racy].tolist(), ends[racy].tolist(), strict=True)
        pairs = [pair for begin, end in ranges for pair in _unordered(begin, end, e, actor, ordered)]
        return np.array([one for one, _ in pairs], np.int64), np.array([other for _, other in pairs], np.int64)
    group, where = np.cumsum(place) - 1, np.arange(place.size)
    strongest = np.where(kinds & _WRITE, _WRITE, _ATOMIC)[group]
    one = np.minimum.reduceat(np.where(e.kind == strongest, where, place.size - 1), starts)
    other = np.minimum.reduceat(np.where(actor != actor[one][group], where, place.size), starts)
    return one[racy], other[racy]


def _unordered(
    begin: int, end: int, e: _Events, actor: Array, ordered: Callable[[_Events, int, int], bool]
) -> list[tuple[int, int]]:
    """The first conflicting pair of accesses to one element that nothing orders, if there is one."""
    for one in range(begin, end):
        for other in range(begin, one):
            kinds = int(e.kind[one] | e.kind[other])
            conflict = kinds & _WRITE or kinds == _READ | _ATOMIC
            if conflict and actor[one] != actor[other] and not ordered(e, one, other):
                return [(one, other) if e.kind[one] != _READ else (other, one)]
    return []


def _bank_passes(request: Array, lane: Array, address: Array, nbytes: Array) -> tuple[Array, Array]:
    """Passes over the banks that each request takes, and the fewest possible; requests ascend."""
    row, part = _expand(np.maximum(nbytes // 4, 1))
    word = address[row] // 4 + part
    # 128 bytes are served at once: 32 lanes of 4 bytes, 16 of 8, 8 of 16.
    fields: tuple[Array, ...] = (request[row], (lane * nbytes // 128)[row], word % 32, word // 32)
    order = _order(*fields)
    fields = tuple(field[order] for field in fields)
    distinct = _changes(*fields)
    request, phase, bank = (field[distinct] for field in fields[:3])
    banks = np.flatnonzero(_changes(request, phase, bank))
    words = np.diff(banks, append=request.size)
    request, phase = request[banks], phase[banks]
    phases = np.flatnonzero(_changes(request, phase))
    passes = np.maximum.reduceat(words, phases) if words.size else words
    begins = np.flatnonzero(_changes(request[phases]))
    total = np.add.reduceat(passes, begins) if words.size else words
    return total, np.diff(begins, append=phases.size)


def _sectors(request: Array, lane: Array, address: Array, nbytes: Array) -> tuple[Array, Array]:
    """32-byte sectors that each request touches, and the fewest that could hold its bytes; requests ascend."""
    order = _order(request, address)
    request, address, nbytes = request[order], address[order], nbytes[order]
    distinct = _changes(request, address)
    request, address, nbytes = request[distinct], address[distinct], nbytes[distinct]
    begins = np.flatnonzero(_changes(request))
    if not begins.size:
        return begins, begins
    sectors = np.add.reduceat(_changes(request, address // 32).astype(np.int64), begins)
    return sectors, -(-np.add.reduceat(nbytes, begins) // 32)


def _arrays(args: tuple[Any, ...]) -> Iterator[Array]:
    for arg in args:
        if isinstance(arg, tuple):
            yield from _arrays(arg)
        elif isinstance(arg, np.ndarray) and arg.size:
            yield arg


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _bounds(array: Array) -> tuple[int, int]:
    """Addresses of the first byte of an array and of the one after its last."""
    low = high = _address(array)
    for size, stride in zip(array.shape, array.strides, strict=True):
        low += min(0, (size - 1) * stride)
        high += max(0, (size - 1) * stride)
    return low, high + array.itemsize
