"""Arrays as a kernel sees them during a trace: each access appends one tuple to a log."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.lab.integers import typed
from gpuconv.lab.places import Array, Dim3, Site, site

if TYPE_CHECKING:
    from gpuconv.lab.tracing import Tracer

_getframe = sys._getframe
#: A narrow integer of NumPy's would overflow where it is multiplied.
_index = operator.index

# Kinds of access, as bits, so that those of several accesses can be combined. A predicated load that is off is idle: it
# accesses nothing, but counts when the lanes' accesses are matched.
IDLE, READ, WRITE, ATOMIC = 0, 1, 2, 4
KINDS = {READ: "read", WRITE: "write", ATOMIC: "atomic"}


def poison(dtype: np.dtype[Any]) -> Any:
    """A value with all bits set: NaN in every float type."""
    return typed(np.frombuffer(b"\xff" * dtype.itemsize, dtype)[0])


class Buffer:
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
        #: Which granules nobody had written when the launch began, if that is known of any.
        self.unwritten: Array | None = None
        #: An instruction that reads it through the read-only cache.
        self.read_only: Site | None = None

    def refine(self, granule: int) -> None:
        """Count in smaller units from now on."""
        times, self.granule = self.granule // granule, granule
        self.written, self.writer = np.repeat(self.written, times), np.repeat(self.writer, times)
        if self.unwritten is not None:
            self.unwritten = np.repeat(self.unwritten, times)


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
        "_note",
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
        buffer: Buffer,
        address: int,
        name: str,
        root: TracedArray | None = None,
    ) -> None:
        self._tracer, self.values, self.buffer, self.address, self.name = tracer, values, buffer, address, name
        #: The array that this is a view of: elements are named after it.
        self.root: TracedArray = self if root is None else root
        self._log, self._note = tracer.log.append, tracer.written.append
        self.number = tracer.add(self)
        self._read, self._write, self._atomic, self._idle = (
            tracer.register(self, kind, 1) for kind in (READ, WRITE, ATOMIC, IDLE)
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
            position += _index(i) * stride
        return position

    def __getitem__(self, index: Any) -> Any:
        try:
            position = self._position(index)
        except TypeError:
            return self._view(index)
        frame = _getframe(1)
        if position is None:
            return self._read_outside(index, frame)
        self._log((self._read, position, frame.f_code, frame.f_lasti))
        return self.values[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        try:
            position = self._position(index)
        except TypeError:
            self._assign(index, value, _getframe(1))
            return
        frame = _getframe(1)
        if position is None:
            self._write_outside(index, value, frame)
            return
        self._log((self._write, position, frame.f_code, frame.f_lasti))
        self._note(value)
        self.values[index] = value

    def exchange(self, index: Any, update: Callable[[Any], Any], depth: int) -> Any:
        """Replace an element by a function of it, atomically; return what it was and what it is.

        The access is the kernel's, which is so many calls above.
        """
        frame = _getframe(depth)
        position = self._position(index)
        if position is None:
            wrapped = self._from_the_end(ATOMIC, index, frame)
            if wrapped is None:
                nothing = poison(self.values.dtype)
                return nothing, nothing
            index = wrapped
            position = self._position(index)
            assert position is not None
        self._log((self._atomic, position, frame.f_code, frame.f_lasti))
        old = self.values[index]
        new = self.values[index] = update(old)
        self._tracer.atomic(self.buffer, self.address + _index(position) * self.scale, changes=bool(new != old))
        return old, new

    def told(self, kind: int, offsets: Sequence[int], place: tuple[CodeType, int]) -> None:
        """Log an access of code that is not Python, to elements at byte offsets, as done at a place in the kernel."""
        if not self.values.flags.c_contiguous:
            return
        code = {READ: self._read, WRITE: self._write, ATOMIC: self._atomic}[kind]
        for offset in offsets:
            index = tuple(map(int, np.unravel_index(offset // self.values.itemsize, self.values.shape)))
            position = self._position(index)
            assert position is not None
            self._log((code, position, *place))
            if kind == WRITE:
                self._note(_Unknown() if self.values.dtype.names else self.values[index])
            elif kind == ATOMIC:
                self._tracer.atomic(self.buffer, self.address + position * self.scale, changes=True)

    def _log_at(self, code: int, index: tuple[int, ...], frame: FrameType) -> None:
        """An access to an element that exists."""
        position = self._position(index)
        assert position is not None
        self._log((code, position, frame.f_code, frame.f_lasti))

    def _view(self, index: Any) -> Any:
        """What Numba makes of a slice, or of fewer indices than dimensions: an array over the same memory."""
        try:
            values = self.values[index]
        except IndexError:
            subscript = ", ".join(map(str, index if isinstance(index, tuple) else (index,)))
            raise IndexError(f"{self.name}[{subscript}] of shape {self.shape} is out of bounds") from None
        if not isinstance(values, np.ndarray):
            raise IndexError(f"{self.name}: unsupported index {index!r}")
        return self._tracer.view(self, values)

    def _assign(self, index: Any, value: Any, frame: FrameType) -> None:
        """Set a slice."""
        view = self._view(index)
        view.values[...] = value._all(READ, frame) if isinstance(value, TracedArray) else value
        for element in np.ndindex(view.values.shape):
            view._log_at(view._write, element, frame)
            view._note(view.values[element])

    def _outside(self, kind: int, index: Any, frame: FrameType) -> Any:
        self._tracer.out_of_bounds(self, kind, index, site(frame.f_code, frame.f_lasti))
        return poison(self.values.dtype)

    def _from_the_end(self, kind: int, index: Any, frame: FrameType) -> tuple[int, ...] | None:
        """What Numba makes of an index with a negative part, which is told; None where there is no such element."""
        parts = index if isinstance(index, tuple) else (index,)
        wrapped = tuple(i + size if i < 0 else i for i, size in zip(parts, self.values.shape, strict=True))
        if any(not 0 <= i < size for i, size in zip(wrapped, self.values.shape, strict=True)):
            self._outside(kind, index, frame)
            return None
        self._tracer.negative_index(self, kind, index, site(frame.f_code, frame.f_lasti))
        return wrapped

    def _read_outside(self, index: Any, frame: FrameType) -> Any:
        if _is_of_slices(index):
            return self._view(index)
        wrapped = self._from_the_end(READ, index, frame)
        if wrapped is None:
            return poison(self.values.dtype)
        self._log_at(self._read, wrapped, frame)
        return self.values[wrapped]

    def _write_outside(self, index: Any, value: Any, frame: FrameType) -> None:
        if _is_of_slices(index):
            self._assign(index, value, frame)
            return
        wrapped = self._from_the_end(WRITE, index, frame)
        if wrapped is not None:
            self._log_at(self._write, wrapped, frame)
            self._note(value)
            self.values[wrapped] = value

    # What Numba has for whole arrays: other views of their memory, loops, functions of all elements.

    def __iter__(self) -> Iterator[Any]:
        for i in range(len(self)):
            frame = _getframe(1)
            if self.values.ndim > 1:
                yield self._view(i)
            else:
                self._log((self._read, i, frame.f_code, frame.f_lasti))
                yield self.values[i]

    T = property(lambda self: self._tracer.view(self, self.values.T))
    real = property(lambda self: self._tracer.view(self, self.values.real))
    imag = property(lambda self: self._tracer.view(self, self.values.imag))

    def view(self, dtype: Any) -> TracedArray:
        """Its memory as another type."""
        return self._tracer.view(self, self.values.view(self._tracer.dtype_of(dtype)))

    def reshape(self, *shape: Any) -> TracedArray:
        """Its memory in another shape."""
        return self._tracer.view(self, self.values.reshape(*shape))

    def ravel(self) -> TracedArray:
        """Its memory in one dimension."""
        return self._tracer.view(self, self.values.reshape(-1))

    def transpose(self, *axes: Any) -> TracedArray:
        """Its memory with other strides."""
        return self._tracer.view(self, self.values.transpose(*axes))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **keywords: Any) -> Any:
        frame = _getframe(1)
        plain = [part._all(READ, frame) if isinstance(part, TracedArray) else part for part in inputs]
        results = tuple(part._all(WRITE, frame) if isinstance(part, TracedArray) else part for part in out)
        if results:
            keywords["out"] = results
        return getattr(ufunc, method)(*plain, **keywords)

    def _all(self, kind: int, frame: FrameType) -> Array:
        """Log an access to each element."""
        for element in np.ndindex(self.values.shape):
            self._log_at(self._read if kind == READ else self._write, element, frame)
            if kind == WRITE:
                self._note(_Unknown())
        return self.values

    @property
    def scale(self) -> int:
        """Bytes that one unit of a logged position stands for."""
        return self.values.strides[0] if isinstance(self, Traced1) else 1

    def element(self, address: int) -> str:
        """Name of the element at a simulated address."""
        root = self.root
        offset, index = address - root.address, [0] * root.values.ndim
        for stride, axis in sorted(((s, axis) for axis, s in enumerate(root.values.strides)), reverse=True):
            if stride > 0:
                index[axis], offset = divmod(offset, stride)
        return f"{root.name}[{', '.join(map(str, index))}]{_field_at(root.values.dtype, offset)}"


class Traced2(TracedArray):
    """An array of two dimensions."""

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
            return self._read_outside(index, frame)
        self._log((self._read, _index(row) * self._down + _index(column) * self._right, frame.f_code, frame.f_lasti))
        return self.values[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        try:
            row, column = index
            inside = 0 <= row < self._rows and 0 <= column < self._columns
        except TypeError:
            self._assign(index, value, _getframe(1))
            return
        frame = _getframe(1)
        if not inside:
            self._write_outside(index, value, frame)
            return
        self._log((self._write, _index(row) * self._down + _index(column) * self._right, frame.f_code, frame.f_lasti))
        self._note(value)
        self.values[index] = value


class Traced1(TracedArray):
    """An array of one dimension."""

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
            return self._read_outside(index, frame)
        self._log((self._read, index, frame.f_code, frame.f_lasti))
        return self.values[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        try:
            inside = 0 <= index < self._size
        except TypeError:
            self._assign(index, value, _getframe(1))
            return
        frame = _getframe(1)
        if not inside:
            self._write_outside(index, value, frame)
            return
        self._log((self._write, index, frame.f_code, frame.f_lasti))
        self._note(value)
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
            nothing = self._outside(READ, index, frame)
            return nothing if count == 1 else (nothing,) * count
        self._log((self._code(READ, index, count), index, frame.f_code, frame.f_lasti))
        values = self.values
        # One by one: iterating over a slice takes four times as long.
        return values[index] if count == 1 else tuple([values[index + i] for i in range(count)])

    def skip(self) -> None:
        """A predicated load that is off."""
        frame = _getframe(2)
        self._log((self._idle, 0, frame.f_code, frame.f_lasti))

    def store(self, index: int, values: tuple[Any, ...]) -> None:
        """Set the elements from ``index`` on, in one access."""
        frame = _getframe(2)
        if not 0 <= index <= self._size - len(values):
            self._outside(WRITE, index, frame)
            return
        self._log((self._code(WRITE, index, len(values)), index, frame.f_code, frame.f_lasti))
        self._note(values)
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


class TracedRecords(TracedArray):
    """An array of records: an element is not read before one of its fields is."""

    __slots__ = ()

    def field(self, name: str) -> Any:
        """The array of one field of all records."""
        base = self.name.removeprefix("view of ")
        return self._tracer.view(self, self.values[name], f"{base}.{name}")

    def __getattr__(self, name: str) -> Any:
        if name not in self.values.dtype.names:
            raise AttributeError(f"{self.name} has no field {name}")
        return self.field(name)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return self.field(index)
        index = index if isinstance(index, tuple) else (index,)
        try:
            position = self._position(index)
        except TypeError:
            return self._view(index)
        if position is None:
            frame = _getframe(1)
            wrapped = self._from_the_end(READ, index, frame)
            if wrapped is None:
                return poison(self.values.dtype)
            index = wrapped
        return TracedRecord(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, str):
            self.field(index)[...] = value
            return
        frame = _getframe(1)
        index = index if isinstance(index, tuple) else (index,)
        if isinstance(value, TracedRecord):
            value = value.whole(frame)
        position = self._position(index)
        if position is None:
            self._write_outside(index, value, frame)
            return
        self._log((self._write, position, frame.f_code, frame.f_lasti))
        self._note(_Unknown())
        self.values[index] = value


class TracedRecord:
    """A record of a traced array: its fields are read and written one by one."""

    __slots__ = ("_array", "_index")
    _array: TracedRecords
    _index: tuple[int, ...]

    def __init__(self, array: TracedRecords, index: tuple[int, ...]) -> None:
        object.__setattr__(self, "_array", array)
        object.__setattr__(self, "_index", index)

    def _get(self, name: Any, frame: FrameType) -> Any:
        field = self._array.field(name if isinstance(name, str) else self._array.dtype.names[name])
        if field.ndim > self._array.ndim:
            return field._view(self._index)
        if isinstance(field, TracedRecords):
            return TracedRecord(field, self._index)
        field._log_at(field._read, self._index, frame)
        return field.values[self._index]

    def _set(self, name: Any, value: Any, frame: FrameType) -> None:
        field = self._array.field(name if isinstance(name, str) else self._array.dtype.names[name])
        if field.ndim > self._array.ndim or isinstance(field, TracedRecords):
            field[self._index] = value
            return
        field._log_at(field._write, self._index, frame)
        field._note(value)
        field.values[self._index] = value

    def whole(self, frame: FrameType) -> Any:
        """The record itself, read by an instruction of the kernel."""
        self._array._log_at(self._array._read, self._index, frame)
        return self._array.values[self._index]

    def __getattr__(self, name: str) -> Any:
        if name not in self._array.dtype.names:
            raise AttributeError(f"{self._array.name} has no field {name}")
        return self._get(name, _users(_getframe(1)))

    def __setattr__(self, name: str, value: Any) -> None:
        self._set(name, value, _users(_getframe(1)))

    def __getitem__(self, name: Any) -> Any:
        return self._get(name, _users(_getframe(1)))

    def __setitem__(self, name: Any, value: Any) -> None:
        self._set(name, value, _users(_getframe(1)))


_RANDOM = ("numba.cuda.random", "gpuconv.lab.random_numbers")


def _users(frame: FrameType) -> FrameType:
    """The frame that called Numba's functions for random numbers, whose states are records."""
    while frame.f_globals.get("__name__") in _RANDOM and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_of_slices(index: Any) -> bool:
    return isinstance(index, tuple) and any(isinstance(part, slice) for part in index)


class _Unknown:
    """A value that was not looked at: it is like no other."""


def _field_at(dtype: np.dtype[Any], offset: int) -> str:
    """The field of a record that an offset lies in, as it is written."""
    for name in dtype.names or ():
        kind, begin = dtype.fields[name][:2]  # type: ignore[index]
        if begin <= offset < begin + kind.itemsize:
            place = (offset - begin) // kind.base.itemsize
            index = f"[{', '.join(map(str, np.unravel_index(place, kind.shape)))}]" if kind.shape else ""
            return f".{name}{index}{_field_at(kind.base, (offset - begin) % kind.base.itemsize)}"
    return ""


def granule(dtype: np.dtype[Any]) -> int:
    """Bytes of the largest unit that no access to an element, or to a field of a record, takes in part."""
    if dtype.names is None:
        return dtype.base.itemsize
    fields = [dtype.fields[name] for name in dtype.names]  # type: ignore[index]
    return math.gcd(dtype.itemsize, *(part for field in fields for part in (field[1], granule(field[0]))))


def arrays_of(args: tuple[Any, ...]) -> Iterator[Array]:
    """All arrays among arguments, those in tuples included."""
    for arg in args:
        if isinstance(arg, tuple):
            yield from arrays_of(arg)
        elif isinstance(arg, np.ndarray) and arg.size:
            yield arg


def address_of(array: Array) -> int:
    """Where its first element is."""
    return int(array.__array_interface__["data"][0])


def bounds_of(array: Array) -> tuple[int, int]:
    """Addresses of the first byte of an array and of the one after its last."""
    low = high = address_of(array)
    for size, stride in zip(array.shape, array.strides, strict=True):
        low += min(0, (size - 1) * stride)
        high += max(0, (size - 1) * stride)
    return low, high + array.itemsize
