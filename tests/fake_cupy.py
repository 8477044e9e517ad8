"""A stand-in for CuPy on the host: arrays that, as CuPy's, are no NumPy arrays and do not become one by themselves.

It has what gpuconv calls, and raises what CuPy 14 raises: TypeError where a NumPy array is mixed in, or where an array
is made into one implicitly; OutOfMemoryError. It is stricter where CuPy converts silently at a price. Devices and
streams are counted, not real. Memory is a pool's, which hands out what was freed again, overwritten, as CuPy's does.
"""

from __future__ import annotations

import operator
import types

import numpy as np

from gpuconv.backends import simulated_memory

__name__ = "cupy"
__version__ = "0.stand-in"


class OutOfMemoryError(MemoryError):
    def __init__(self, size, total):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class Device:
    """`with Device(1):` makes it the current one."""

    current = 0

    def __init__(self, number=None):
        self.id = Device.current if number is None else number

    def __enter__(self):
        self._before, Device.current = Device.current, self.id

    def __exit__(self, *exc_info):
        Device.current = self._before


class Stream:
    """`with Stream(pointer):` makes it the current one."""

    current: Stream

    def __init__(self, ptr):
        self.ptr = ptr

    def __enter__(self):
        self._before, Stream.current = Stream.current, self

    def __exit__(self, *exc_info):
        Stream.current = self._before


Stream.current = Stream(0)


class Memory:
    """What is free; an allocation above it fails."""

    total = free = 2**30
    freed_blocks = 0

    @classmethod
    def allocate(cls, size):
        if size > cls.free:
            raise OutOfMemoryError(size, cls.total - cls.free)

    @classmethod
    def free_all_blocks(cls):
        cls.freed_blocks += 1


def _host(value):
    """What NumPy shall work on."""
    if isinstance(value, ndarray):
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (tuple, list)):
        return type(value)(_host(part) for part in value)
    return value


def _index(value):
    """Indices may be NumPy's: CuPy copies them to the device."""
    if isinstance(value, tuple):
        return tuple(map(_index, value))
    return value.host if isinstance(value, ndarray) else value


def _wrapped(value):
    if isinstance(value, tuple):
        return tuple(map(_wrapped, value))
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(_on_device(np.asarray(value)))
    return value


def _on_device(value):
    """The array itself if it is a view of the pool's memory, else a copy there, in the same order."""
    base = value
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, simulated_memory.Memory):
        return value
    Memory.allocate(value.nbytes)
    by_columns = value.flags.f_contiguous and not value.flags.c_contiguous
    copy = simulated_memory.empty(value.shape[::-1] if by_columns else value.shape, value.dtype)
    copy = copy.T if by_columns else copy
    copy[...] = value
    return copy


class ndarray:
    def __init__(self, host, device=None):
        self.host = host
        self.data = types.SimpleNamespace(device_id=Device.current if device is None else device)

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    base = property(lambda self: self.host.base)
    flags = property(lambda self: self.host.flags)
    T = property(lambda self: _wrapped(self.host.T))
    device = property(lambda self: Device(self.data.device_id))
    __cuda_array_interface__ = property(lambda self: self.host.__array_interface__)

    def __dlpack__(self, **options):
        return self.host.__dlpack__()

    def __dlpack_device__(self):
        return self.host.__dlpack_device__()

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct one.")

    def __array_function__(self, function, kinds, arguments, options):
        raise TypeError(f"numpy.{function.__name__} of a CuPy array: use the array library of the backend")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return _wrapped(getattr(ufunc, method)(*map(_host, inputs), **options))

    def get(self):
        return self.host.copy()

    def set(self, array):
        if not isinstance(array, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if array.dtype != self.dtype:
            raise TypeError(f"{array.dtype} array cannot be set to {self.dtype} array")
        if array.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {array.shape}")
        if not self.flags.c_contiguous and not self.flags.f_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        self.host[...] = array

    def __getitem__(self, index):
        return _wrapped(self.host[_index(index)])

    def __setitem__(self, index, value):
        self.host[_index(index)] = _host(value)

    def __len__(self):
        return len(self.host)

    def __bool__(self):
        return bool(self.host)

    def __int__(self):
        return int(self.host)

    def __float__(self):
        return float(self.host)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self.host, name)
        return lambda *a, **options: _wrapped(method(*map(_host, a), **{k: _host(v) for k, v in options.items()}))


def _binary(name):
    function = getattr(operator, name)

    def left(self, other):
        return _wrapped(function(self.host, _host(other)))

    def right(self, other):
        return _wrapped(function(_host(other), self.host))

    return left, right


for _name in ("add", "sub", "mul", "truediv", "pow", "matmul", "eq", "ne", "lt", "le", "gt", "ge", "and_", "floordiv"):
    _stem = _name.rstrip("_")
    _left, _right = _binary(_name)
    setattr(ndarray, f"__{_stem}__", _left)
    setattr(ndarray, f"__r{_stem}__", _right)
ndarray.__neg__ = lambda self: _wrapped(-self.host)  # type: ignore[attr-defined]
ndarray.__abs__ = lambda self: _wrapped(operator.abs(self.host))  # type: ignore[attr-defined]


def _in_place(self, other):
    self.host += _host(other)
    return self


ndarray.__iadd__ = _in_place  # type: ignore[attr-defined]


def asarray(a, dtype=None):
    """Copies from the host, shares what another library has on the device."""
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    if hasattr(a, "__cuda_array_interface__"):
        return ndarray(np.asarray(types.SimpleNamespace(__array_interface__=a.__cuda_array_interface__)))
    host = np.array(a, dtype)
    if not host.dtype.isnative:
        raise ValueError(f"Unsupported dtype {host.dtype}")
    return _wrapped(host)


def asnumpy(a):
    return a.get()


def ascontiguousarray(a):
    a = asarray(a)
    return a if a.flags.c_contiguous else _wrapped(np.ascontiguousarray(a.host))


def empty(shape, dtype=float):
    Memory.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return ndarray(simulated_memory.empty(shape, dtype))


def copyto(dst, src):
    np.copyto(dst.host, src.host)


def from_dlpack(a):
    return ndarray(np.from_dlpack(a))


def _module_function(name):
    function = getattr(np, name)
    return lambda *a, **options: _wrapped(function(*map(_host, a), **{k: _host(v) for k, v in options.items()}))


for _name in (
    *("abs", "arange", "broadcast_to", "divmod", "exp", "expand_dims", "full", "log", "matmul", "max", "stack", "take"),
    *("tanh", "where", "zeros"),
):
    globals()[_name] = _module_function(_name)


def count_nonzero(a):
    return ndarray(np.asarray(np.count_nonzero(_host(a))))  # on the device, not a number


add = types.SimpleNamespace(at=lambda a, index, b: np.add.at(a.host, _index(index), _host(b)))
int32, int64 = np.int32, np.int64

cuda = types.SimpleNamespace(
    Device=Device,
    Stream=Stream,
    get_current_stream=lambda: Stream.current,
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=types.SimpleNamespace(
        getDevice=lambda: Device.current,
        memGetInfo=lambda: (Memory.free, Memory.total),
        runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: 13000,
        getDeviceProperties=lambda number: {
            "name": b"stand-in",
            "totalGlobalMem": Memory.total,
            "major": 9,
            "minor": 0,
        },
    ),
)


def get_default_memory_pool():
    return Memory
