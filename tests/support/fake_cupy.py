"""A stand-in for CuPy on the host: arrays that, as CuPy's, are no NumPy arrays and do not become one by themselves.

It has what gpuconv calls, and raises what CuPy 14 raises: TypeError where a NumPy array is mixed in, or where an array
is made into one implicitly; OutOfMemoryError. It is stricter where CuPy converts silently at a price. Devices are
counted, not real.

Memory is a pool's, which hands out what was freed again, overwritten, as CuPy's does. A stream that is captured runs
nothing: what is queued on it is noted, by addresses, and waiting for it is an error. A graph's nodes run in another
order at each launch, of those that their dependencies allow.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import operator
import random
import threading
import types

import numpy as np
from numba import types as numba_types
from numpy.lib.array_utils import byte_bounds

from gpuconv.kernels import driver
from gpuconv.lab import simulated_memory

__name__ = "cupy"
__version__ = "0.stand-in"


class OutOfMemoryError(MemoryError):
    def __init__(self, size, total):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class CUDARuntimeError(RuntimeError):
    pass


_local = threading.local()


class _OfAThread(type):
    """Classes with a current instance or number, which each thread has for itself."""

    @property
    def current(cls):
        return getattr(_local, cls.__name__, cls.default)

    @current.setter
    def current(cls, value):
        setattr(_local, cls.__name__, value)


class Device(metaclass=_OfAThread):
    """`with Device(1):` makes it the current one, for this thread."""

    default = 0

    def __init__(self, number=None):
        self.id = Device.current if number is None else number

    def __enter__(self):
        self._before, Device.current = Device.current, self.id

    def __exit__(self, *exc_info):
        Device.current = self._before

    def synchronize(self):
        pass


# -- streams and graphs ----------------------------------------------------------------------------------------------


class Stream(metaclass=_OfAThread):
    """`with Stream():` makes it the current one, for this thread.

    Attributes:
        noted: what a capture has noted so far, each call with the numbers of those that it waits for; None where
            nothing is captured.
        waits_for: the numbers of those that the next one waits for.
    """

    default: Stream
    by_pointer: dict[int, Stream] = {}  # noqa: RUF012
    #: What was done on streams, in order: for tests that look at it.
    log: list[tuple] = []  # noqa: RUF012

    def __init__(self, ptr=None, non_blocking=False):
        self.ptr = 16 + 16 * len(Stream.by_pointer) if ptr is None else ptr
        self.noted, self.waits_for, self._before = None, (), threading.local()
        Stream.by_pointer.setdefault(self.ptr, self)

    def __enter__(self):
        self._before.__dict__.setdefault("streams", []).append(Stream.current)
        Stream.current = self
        return self

    def __exit__(self, *exc_info):
        Stream.current = self._before.streams.pop()

    def begin_capture(self, mode=None):
        if self.ptr == 0:
            raise CUDARuntimeError("cudaErrorStreamCaptureImplicit: the default stream cannot be captured")
        self.noted, self.waits_for = [], ()

    def end_capture(self):
        noted, self.noted = self.noted, None
        return Graph(noted)

    def record(self):
        return Event(self)

    def wait_event(self, event):
        Stream.log.append(("wait", self.ptr, event.stream.ptr))

    def synchronize(self):
        _not_captured("cudaStreamSynchronize")


Stream.default = Stream(0)


class Event:
    def __init__(self, stream=None, disable_timing=False):
        self.stream = stream

    def record(self, stream=None):
        self.stream = stream or Stream.current

    def synchronize(self):
        _not_captured("cudaEventSynchronize")

    @property
    def done(self):
        return False  # as of a device that is still busy with what came before


class Graph:
    #: How many were launched.
    launches = 0

    def __init__(self, noted):
        self._noted, self._launches = noted, 0

    def launch(self, stream=None):
        self._launches += 1
        Graph.launches += 1
        Stream.log.append(("graph", (stream or Stream.current).ptr))
        # The order in which they were noted; then the other extreme; then any.
        first, last = operator.itemgetter(0), operator.itemgetter(-1)
        choose = {1: first, 2: last}.get(self._launches, random.Random(self._launches).choice)
        done, left = set(), dict(enumerate(self._noted))
        while left:
            number = choose([number for number, (_, before) in left.items() if done.issuperset(before)])
            done.add(number)
            left.pop(number)[0]()


def queued(call, stream=None):
    """Run it, or note it if the stream is captured."""
    stream = stream or Stream.current
    if stream.noted is None:
        call()
    else:
        stream.noted.append((call, stream.waits_for))
        stream.waits_for = (len(stream.noted) - 1,)


def _not_captured(what):
    if Stream.current.noted is not None:
        raise CUDARuntimeError(f"{what}: cudaErrorStreamCaptureUnsupported: operation not permitted when capturing")


# -- memory ----------------------------------------------------------------------------------------------------------


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


class PooledMemory:
    def __init__(self, ptr):
        self.ptr = ptr


class UnownedMemory:
    def __init__(self, ptr):
        self.ptr = ptr


class MemoryPool:
    """`malloc` gives memory as the pool's allocator; the arrays that are made with it lie there."""

    def __init__(self, allocator=None):
        self.pool = simulated_memory.Pool()

    def malloc(self, size):
        Memory.allocate(size)
        block = simulated_memory.Memory(self.pool, (size,), np.dtype(np.uint8), Stream.current.ptr)
        set_bytes = functools.partial(_set_bytes, block)
        return types.SimpleNamespace(ptr=block.address, block=block, memset_async=set_bytes)


def _set_bytes(block, value, size, stream):
    queued(lambda: simulated_memory.array_at(block.address, size, "uint8").fill(value), stream)


_default_allocator = MemoryPool().malloc


def get_allocator():
    return getattr(_local, "allocator", _default_allocator)


@contextlib.contextmanager
def using_allocator(allocator):
    before, _local.allocator = get_allocator(), allocator
    try:
        yield
    finally:
        _local.allocator = before


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
    if isinstance(value, (list, np.ndarray)) and np.ndim(value):
        return asarray(value).host
    return value.host if isinstance(value, ndarray) else value


def _block(host):
    """The block of a pool in which an array lies, or None."""
    while isinstance(host, np.ndarray):
        host = host.base
    return host if isinstance(host, simulated_memory.Memory) else None


def _new(shape, dtype):
    dtype = np.dtype(dtype)
    memory = get_allocator()(int(np.prod(shape)) * dtype.itemsize)
    whole = np.asarray(memory.block)
    return whole[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)


def _raw(value):
    """A host array as a kernel sees it: an address, which keeps nothing alive."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_raw, value))
    if not isinstance(value, np.ndarray) or not value.size:
        return value
    low, high = np.lib.array_utils.byte_bounds(value) if hasattr(np.lib, "array_utils") else byte_bounds(value)
    memory = simulated_memory.array_at(low, high - low, np.uint8)
    return np.ndarray(value.shape, value.dtype, memory, value.ctypes.data - low, value.strides)


def _computed(function, *arguments, **options):
    """What a function of NumPy gives, on the device: a view, or new memory that a captured stream writes later."""
    products = (np.matmul, operator.matmul)
    if Stream.current.noted is not None and function in products and np.result_type(*arguments).kind == "f":
        # As CuPy 14 says, of floats; products of integers are a kernel of its own.
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    with np.errstate(all="ignore"):  # a GPU computes without a word
        value = function(*arguments, **options)
    if isinstance(value, tuple):
        return tuple(
            _computed(lambda *a, n=n, **o: function(*a, **o)[n], *arguments, **options) for n in range(len(value))
        )
    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    value = np.asarray(value)
    if (block := _block(value)) is not None:
        block.dtype = value.dtype  # as a base has, which is an array
        return ndarray(value, base=block)
    result = _on_device(value)
    if Stream.current.noted is not None and value.size:
        target, arguments = _raw(result), _raw(arguments)
        options = {name: _raw(option) for name, option in options.items()}
        result.reshape(-1).view(np.uint8)[...] = 255
        queued(lambda: np.copyto(target, function(*arguments, **options)))
    return ndarray(result)


def _wrapped(value):
    if isinstance(value, tuple):
        return tuple(map(_wrapped, value))
    if isinstance(value, (np.ndarray, np.generic)):
        return _computed(lambda: value)
    return value


def _on_device(value):
    """A copy in memory of the current allocator, in the same order."""
    by_columns = value.flags.f_contiguous and not value.flags.c_contiguous
    copy = _new(value.shape[::-1] if by_columns else value.shape, value.dtype)
    copy = copy.T if by_columns else copy
    copy[...] = value
    return copy


def _written(target, function):
    """Let a function write into an array of the host's, now or when a captured stream runs."""
    if Stream.current.noted is None:
        function(target)
    else:
        raw = _raw(target)
        queued(lambda: function(raw))


class ndarray:
    def __init__(self, host, device=None, base=None):
        self.host, self._device = host, Device.current if device is None else device
        #: As in CuPy, None for an array that was allocated, and the memory's owner for a view of one.
        self.base = base if base is not None else host.base if _block(host) is None else None

    @property
    def data(self):
        block = _block(self.host)
        memory = UnownedMemory(self.host.ctypes.data) if block is None else PooledMemory(block.address)
        return types.SimpleNamespace(
            device_id=self._device, ptr=self.host.ctypes.data, mem=memory, copy_from_host_async=self._copy_from_host
        )

    def _copy_from_host(self, pointer, size, stream):
        source, target = simulated_memory.array_at(pointer, size, np.uint8), self.host.reshape(-1).view(np.uint8)
        assert stream.noted is None
        target[:size] = source

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    itemsize = property(lambda self: self.host.itemsize)
    flags = property(lambda self: self.host.flags)
    T = property(lambda self: _computed(lambda host: host.T, self.host))
    device = property(lambda self: Device(self._device))
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
        return _computed(getattr(ufunc, method), *map(_host, inputs), **options)

    def get(self):
        _not_captured("cudaMemcpy")
        return self.host.copy()

    def set(self, array, stream=None):
        if not isinstance(array, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if array.dtype != self.dtype:
            raise TypeError(f"{array.dtype} array cannot be set to {self.dtype} array")
        if array.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {array.shape}")
        if not self.flags.c_contiguous and not self.flags.f_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        _not_captured("cudaMemcpyAsync from memory that is not page-locked")
        Stream.log.append(("upload", array.shape))
        self.host[...] = array

    def __getitem__(self, index):
        return _computed(operator.getitem, self.host, _index(index))

    def __setitem__(self, index, value):
        index, value = _raw(_index(index)), _raw(_host(value))
        _written(self.host, lambda host: operator.setitem(host, index, value))

    def __len__(self):
        return len(self.host)

    def __bool__(self):
        _not_captured("cudaMemcpy")
        return bool(self.host)

    def __int__(self):
        _not_captured("cudaMemcpy")
        return int(self.host)

    def __float__(self):
        _not_captured("cudaMemcpy")
        return float(self.host)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        getattr(self.host, name)

        def method(*arguments, **options):
            call = functools.partial(_method, name)
            return _computed(call, self.host, *map(_host, arguments), **{k: _host(v) for k, v in options.items()})

        return method


def _method(name, host, *arguments, **options):
    return getattr(host, name)(*arguments, **options)


def _binary(name):
    function = getattr(operator, name)

    def left(self, other):
        return _computed(function, self.host, _host(other))

    def right(self, other):
        return _computed(function, _host(other), self.host)

    return left, right


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "pow",
    "matmul",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "and_",
    "or_",
    "xor",
    "floordiv",
):
    _stem = _name.rstrip("_")
    _left, _right = _binary(_name)
    setattr(ndarray, f"__{_stem}__", _left)
    setattr(ndarray, f"__r{_stem}__", _right)
ndarray.__neg__ = lambda self: _computed(operator.neg, self.host)  # type: ignore[attr-defined]
ndarray.__invert__ = lambda self: _computed(operator.invert, self.host)  # type: ignore[attr-defined]
ndarray.__abs__ = lambda self: _computed(operator.abs, self.host)  # type: ignore[attr-defined]


def _in_place(self, other):
    other = _raw(_host(other))
    _written(self.host, lambda host: operator.iadd(host, other))
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
    if Stream.current.noted is not None and host.size:
        # A graph repeats the copy from a page-locked buffer, which is used for other things then.
        host.reshape(-1).view(np.uint8)[...] = 0xA5
    return _wrapped(host)


def asnumpy(a):
    return a.get()


def ascontiguousarray(a):
    a = asarray(a)
    return a if a.flags.c_contiguous else _computed(np.ascontiguousarray, a.host)


def empty(shape, dtype=float):
    return ndarray(_new(shape, dtype))


def copyto(dst, src):
    Stream.log.append(("copy", src.shape))
    source = _raw(src.host)
    _written(dst.host, lambda host: np.copyto(host, source))


def from_dlpack(a):
    return ndarray(np.from_dlpack(a))


def _module_function(name):
    function = getattr(np, name)
    return lambda *a, **options: _computed(function, *map(_host, a), **{k: _host(v) for k, v in options.items()})


for _name in (
    "abs",
    "all",
    "any",
    "arange",
    "arccos",
    "arcsin",
    "arctan",
    "argsort",
    "around",
    "array",
    "broadcast_to",
    "ceil",
    "clip",
    "concatenate",
    "cos",
    "cumsum",
    "divmod",
    "exp",
    "expand_dims",
    "expm1",
    "flip",
    "floor",
    "floor_divide",
    "fmod",
    "full",
    "isfinite",
    "isinf",
    "isnan",
    "log",
    "log10",
    "log1p",
    "log2",
    "matmul",
    "max",
    "maximum",
    "min",
    "minimum",
    "moveaxis",
    "ones",
    "remainder",
    "rint",
    "sign",
    "sin",
    "sqrt",
    "square",
    "stack",
    "take",
    "take_along_axis",
    "tan",
    "tanh",
    "tile",
    "trunc",
    "where",
    "zeros",
):
    globals()[_name] = _module_function(_name)


def _one_of_several_nans(name):
    """Of several NaNs CuPy's reduction finds any; this one the last."""

    def index(a, axis=None):
        a = np.asarray(a)
        nan = np.isnan(np.flip(a, axis))
        length = a.size if axis is None else a.shape[axis]
        return np.where(nan.any(axis), length - 1 - nan.argmax(axis), getattr(np, name)(a, axis))

    return lambda a, axis=None: _computed(index, _host(a), axis=axis)


argmax, argmin = map(_one_of_several_nans, ("argmax", "argmin"))


def power(a, b):
    """CuPy raises integers to negative powers, too: what it computes then is not looked at here."""
    return _computed(lambda a, b: np.power(a, b if b.dtype.kind == "f" else np.maximum(b, 0)), _host(a), _host(b))


def count_nonzero(a):
    return _computed(np.count_nonzero, _host(a), keepdims=True).reshape(())  # on the device, not a number


def _add_at(a, index, b):
    index, b = _raw(_index(index)), _raw(_host(b))
    _written(a.host, lambda host: np.add.at(host, index, b))


add = types.SimpleNamespace(at=_add_at)
int32, int64 = np.int32, np.int64

cuda = types.SimpleNamespace(
    Device=Device,
    Event=Event,
    MemoryPool=MemoryPool,
    Stream=Stream,
    alloc=lambda size: get_allocator()(size),
    alloc_pinned_memory=lambda size: _Pinned(size),
    get_allocator=get_allocator,
    get_current_stream=lambda: Stream.current,
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError, PooledMemory=PooledMemory),
    runtime=types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDevice=lambda: Device.current,
        memGetInfo=lambda: (Memory.free, Memory.total),
        runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: 13000,
        streamCaptureModeRelaxed=2,
        getDeviceProperties=lambda number: {
            "name": b"stand-in",
            "totalGlobalMem": Memory.total,
            "major": 9,
            "minor": 0,
        },
    ),
    using_allocator=using_allocator,
)


class _Pinned(bytearray):
    @property
    def ptr(self):
        return np.frombuffer(self, np.uint8).ctypes.data


def get_default_memory_pool():
    return Memory


class Driver:
    """Takes what would go to the GPU's driver: packed arguments, from which it makes arrays by their addresses.

    Args:
        run: called with a launch, its arguments on the host, and number of the device and handle of the stream that
            it is for: when it is queued; or, where the stream is captured, at each repetition.
    """

    def __init__(self, run):
        self._run = run

    def load(self, launch):
        return launch, Device.current

    def submit(self, function, grid, block, shared_bytes, stream, parameters):
        launch, device = function
        assert device == Device.current
        assert (grid, block, shared_bytes) == (launch.grid, launch.block, launch.shared_bytes)
        pointers = iter(range(parameters, parameters + 8 * 4096, 8))
        arguments = tuple(_unpacked(kind, pointers) for kind in launch.signature)
        queued(functools.partial(self._run, launch, arguments, (device, stream)), Stream.by_pointer[stream])

    def captured(self, stream):
        return driver.GraphCopy(self, list(Stream.by_pointer[stream].noted))

    def repeated(self, graph, count):
        noted = []
        for _ in range(count):
            before = tuple(range(len(noted)))
            shifted = [(call, tuple(len(before) + node for node in nodes) or before) for call, nodes in graph]
            noted += shifted
        return Graph(noted)

    def launch_graph(self, executable, stream):
        executable.launch(Stream.by_pointer[stream])

    def destroy(self, graph, executables):
        graph.clear()

    def capture_dependencies(self, stream):
        return list(Stream.by_pointer[stream].waits_for)

    def set_capture_dependencies(self, stream, nodes):
        assert set(nodes) <= set(range(len(Stream.by_pointer[stream].noted)))
        Stream.by_pointer[stream].waits_for = tuple(nodes)


def _unpacked(kind, pointers):
    """An argument as a GPU finds it; an array keeps nothing alive."""

    def word(of):
        return of.from_address(ctypes.c_void_p.from_address(next(pointers)).value).value

    if isinstance(kind, numba_types.BaseTuple):
        return tuple(_unpacked(part, pointers) for part in kind)
    if isinstance(kind, numba_types.Array):
        _, _, size, itemsize, first, length, stride = (word(ctypes.c_int64) for _ in range(7))
        assert (length, stride) == (size, itemsize)
        return simulated_memory.array_at(first, size, str(kind.dtype))
    if isinstance(kind, numba_types.Float):
        return np.dtype(str(kind)).type(word(ctypes.c_float if kind.bitwidth == 32 else ctypes.c_double))
    return int(word(ctypes.c_int64))
