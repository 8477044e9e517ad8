"""How a launch reaches the GPU: its arguments are packed once, and then each launch is one call of the driver.

Numba compiles a kernel and loads it. But its dispatcher examines the type of each argument at each call and makes a
device array of it, which takes longer than most of these kernels run. So the dispatcher is not called: a
:class:`PreparedLaunch` holds the kernel's handle and the memory from which ``cuLaunchKernel`` copies the arguments, and
a call writes nothing there but the addresses of the arrays.

A kernel gets an array in Numba's form, which is seven 64-bit values and two more for each further dimension. In this
library arrays are contiguous, and all of these values but the address are known when the launch is prepared.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numba import types

__all__ = [
    "CudaDriver",
    "GraphCopy",
    "Operand",
    "Parameters",
    "PreparedLaunch",
    "address_of",
    "current",
    "launch",
    "no_garbage_collection",
    "stream_handle",
    "use",
]


class Operand:
    """Placeholder for an array while launches are prepared: its shape, dtype, and whether it is aligned to 16 bytes.

    A variant's ``launch`` may use it as it uses an array: flatten it, and ask for its size and alignment.
    """

    __slots__ = ("dtype", "number", "shape", "wide")

    def __init__(self, number: int, shape: tuple[int, ...], dtype: Any, wide: bool):
        self.number, self.shape, self.dtype, self.wide = number, tuple(shape), np.dtype(dtype), wide

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    def reshape(self, *shape: Any) -> Operand:
        """The same elements in another shape, in which one length may be -1."""
        wanted = tuple(shape[0] if isinstance(shape[0], (tuple, list)) else shape) if shape else ()
        if -1 in wanted:
            known = -math.prod(wanted)
            wanted = tuple(self.size // known if length == -1 else length for length in wanted)
        return Operand(self.number, wanted, self.dtype, self.wide)

    def ravel(self) -> Operand:
        """The same elements in a row."""
        return self.reshape(-1)

    def view(self, dtype: Any) -> Operand:
        """The same bytes as elements of another type; flat, if that has another size."""
        if np.dtype(dtype).itemsize == self.dtype.itemsize:
            return Operand(self.number, self.shape, dtype, self.wide)
        return Operand(self.number, (self.nbytes // np.dtype(dtype).itemsize,), dtype, self.wide)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # Only for its address modulo 16.
        data = (16 if self.wide else 4, False)
        return {"shape": self.shape, "typestr": self.dtype.str, "data": data, "version": 3}


def address_of(array: Any) -> int:
    """The address of an array on the device: CuPy's, or any with a ``__cuda_array_interface__``."""
    data = getattr(array, "data", None)
    if (pointer := getattr(data, "ptr", None)) is not None:
        return int(pointer)
    return int(array.__cuda_array_interface__["data"][0] or 0)


def stream_handle(stream: Any) -> int:
    """The driver's handle of a stream: None (the default one), a handle, or an object with ``__cuda_stream__``."""
    if stream is None or isinstance(stream, int):
        return stream or 0
    if not hasattr(stream, "__cuda_stream__"):
        raise TypeError(f"a launch takes a stream, its handle or None, got {type(stream).__name__}")
    _, handle = stream.__cuda_stream__()
    return int(handle)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For a compiler: it makes so many objects that garbage collection would take a tenth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Parameters:
    """A kernel's arguments as ``cuLaunchKernel`` takes them: eight bytes for each, and a pointer to each.

    Args:
        signature: Numba types of the arguments; tuples of arrays are flattened.
        arguments: for an array an :class:`Operand` or an array on the device; numbers; tuples of these.

    Attributes:
        values: the 64-bit values.
        address: of the pointers, as the driver takes it.
        slots: for each Operand among the arguments, the index of its address in ``values``, and its number.
    """

    __slots__ = ("_pointers", "address", "slots", "values")

    def __init__(self, signature: Sequence[Any], arguments: Sequence[Any]):
        words: list[int] = []
        slots: list[tuple[int, int]] = []
        if len(signature) != len(arguments):
            raise TypeError(f"a launch of {len(signature)} arguments was given {len(arguments)}")
        for kind, value in zip(signature, arguments, strict=True):
            self._pack(kind, value, words, slots)
        self.values = (ctypes.c_int64 * max(1, len(words)))(*words)
        first = ctypes.addressof(self.values)
        self._pointers = (ctypes.c_void_p * max(1, len(words)))(*(first + 8 * i for i in range(len(words))))
        self.address = ctypes.addressof(self._pointers)
        self.slots = tuple(slots)

    def _pack(self, kind: Any, value: Any, words: list[int], slots: list[tuple[int, int]]) -> None:
        if isinstance(kind, types.BaseTuple):
            if len(kind) != len(value):
                raise TypeError(f"a launch that takes {len(kind)} arrays in a tuple was given {len(value)}")
            for one, part in zip(kind, value, strict=True):
                self._pack(one, part, words, slots)
        elif isinstance(kind, types.Array):
            if kind.ndim != getattr(value, "ndim", None) or str(kind.dtype) != np.dtype(value.dtype).name:
                given = f"{getattr(value, 'ndim', 'no')}-dimensional {getattr(value, 'dtype', type(value).__name__)}"
                raise TypeError(f"a kernel takes a {kind.ndim}-dimensional array of {kind.dtype}, got a {given} one")
            size, itemsize = value.size, np.dtype(value.dtype).itemsize
            strides = [itemsize * math.prod(value.shape[axis + 1 :]) for axis in range(kind.ndim)]
            if isinstance(value, Operand):
                slots.append((len(words) + 4, value.number))
                address = 0
            else:
                address = address_of(value)
            # Numba's array: two words for who owns it, number of elements, their size, address, shape, strides.
            words += [0, 0, size, itemsize, address, *value.shape, *strides]
        elif isinstance(kind, (types.Integer, types.Boolean)):
            words.append(int(value))
        elif isinstance(kind, types.Float):
            code = "<fxxxx" if kind.bitwidth == 32 else "<d"
            words.append(int.from_bytes(struct.pack(code, float(value)), "little", signed=True))
        else:
            raise TypeError(f"a kernel's argument of type {kind} cannot be packed")


def _arrays(arguments: Sequence[Any]) -> list[Any]:
    """Arrays and operands among the arguments, those in tuples too."""
    found: list[Any] = []
    for one in arguments:
        if isinstance(one, (tuple, list)):
            found += _arrays(one)
        elif hasattr(one, "dtype") and not isinstance(one, np.generic):
            found.append(one)
    return found


class PreparedLaunch:
    """A launch that is complete except for the addresses of its arrays."""

    __slots__ = ("_block", "_driver", "_function", "_grid", "_parameters", "_shared", "launch")

    def __init__(self, launch: Any, arguments: Sequence[Any], driver: Any, *, operands: bool = False):
        if operands and any(not isinstance(one, Operand) for one in _arrays(arguments)):
            raise TypeError("an array that the launch itself has made: it would be gone when this is called")
        self.launch = launch
        self._driver, self._function = driver, driver.load(launch)
        self._grid, self._block, self._shared = launch.grid, launch.block, launch.shared_bytes
        self._parameters = Parameters(launch.signature, arguments)

    @property
    def operands(self) -> set[int]:
        """The numbers of the operands that are arguments of this launch."""
        return {number for _, number in self._parameters.slots}

    def __call__(self, addresses: Sequence[int], stream: int) -> None:
        """Queue it; ``addresses`` are those of the operands, by number. Two threads must not call it at once."""
        parameters = self._parameters
        values = parameters.values
        for at, number in parameters.slots:
            values[at] = addresses[number]
        self._driver.submit(self._function, self._grid, self._block, self._shared, stream, parameters.address)


class CudaDriver:
    """The GPU's driver, through ``cuda.bindings``, which comes with numba-cuda."""

    def __init__(self) -> None:
        self._driver: Any = importlib.import_module("cuda.bindings.driver")
        self._streams: dict[int, Any] = {}
        #: By kernel, signature and device. The kernel is kept, so that no other object gets its id.
        self._loaded: dict[Any, tuple[Any, Any]] = {}
        self._success = self._driver.CUresult.CUDA_SUCCESS
        self._edge_data: list[Any] = []

    def load(self, launch: Any) -> Any:
        """The handle of a launch's kernel on the current device; it is compiled if necessary."""
        status, device = self._driver.cuCtxGetDevice()
        key = id(launch.kernel), launch.signature, int(device) if status == self._success else None
        if key not in self._loaded:
            cuda: Any = importlib.import_module("numba.cuda")
            # Numba does not notice when another library changes the current device.
            if key[2] is not None and cuda.get_current_device().id != key[2]:
                cuda.select_device(key[2])
            with no_garbage_collection():
                compiled = launch.kernel.compile(launch.signature)
            function = self._driver.CUfunction(int(compiled._codelibrary.get_cufunc().handle))
            self._loaded[key] = function, launch.kernel
        return self._loaded[key][0]

    def submit(
        self,
        function: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        stream: int,
        parameters: int,
    ) -> None:
        """Queue a kernel; RuntimeError if the driver refuses it."""
        handle = self._stream(stream)
        (status,) = self._driver.cuLaunchKernel(function, *grid, *block, shared_bytes, handle, parameters, 0)
        if status is not self._success and status != self._success:
            raise RuntimeError(f"the driver refuses the launch of {grid} blocks of {block} threads: {status.name}")

    def _stream(self, stream: int) -> Any:
        handle = self._streams.get(stream)
        if handle is None:
            if len(self._streams) > 256:
                self._streams.clear()
            handle = self._streams[stream] = self._driver.CUstream(stream)
        return handle

    def capture_dependencies(self, stream: int) -> list[int]:
        """The nodes that the next one captured on a stream will wait for."""
        status, _, _, _, nodes, *self._edge_data, _ = self._driver.cuStreamGetCaptureInfo(self._stream(stream))
        self._check(status, "does not tell what a captured stream waits for")
        return [int(node) for node in nodes]

    def set_capture_dependencies(self, stream: int, nodes: Sequence[int]) -> None:
        """Let the next node captured on a stream wait for these, at least one, and for no others."""
        handles = [self._driver.CUgraphNode(node) for node in nodes]
        # From CUDA 13 on there are data for each edge, here and in the answer above.
        no_data = [None] * len(self._edge_data)
        flag = self._driver.CUstreamUpdateCaptureDependencies_flags.CU_STREAM_SET_CAPTURE_DEPENDENCIES
        handle = self._stream(stream)
        (status,) = self._driver.cuStreamUpdateCaptureDependencies(handle, handles, *no_data, len(handles), flag)
        self._check(status, f"does not let a captured stream wait for {len(nodes)} nodes")

    def captured(self, stream: int) -> GraphCopy:
        """A copy of the graph that a stream has captured so far; RuntimeError if the driver gives none."""
        status, _, _, graph, *_ = self._driver.cuStreamGetCaptureInfo(self._stream(stream))
        self._check(status, "does not show the graph of a captured stream")
        return GraphCopy(self, self._of_driver("does not copy a graph", "cuGraphClone", graph))

    def _of_driver(self, refusal: str, name: str, *arguments: Any) -> Any:
        """What a function of the driver returns.

        Raises:
            RuntimeError: the driver refuses.
        """
        status, *found = getattr(self._driver, name)(*arguments)
        self._check(status, refusal)
        return found[0] if found else None

    def _check(self, status: Any, refusal: str) -> None:
        if status != self._success:
            raise RuntimeError(f"the driver {refusal}: {status.name}")

    def repeated(self, graph: Any, count: int) -> Any:
        """An executable graph of ``count`` copies of a graph, each waiting for the one before."""
        whole, last = self._of_driver("makes no graph", "cuGraphCreate", 0), []
        try:
            for _ in range(count):
                refusal = "takes no graph into another"
                last = [self._of_driver(refusal, "cuGraphAddChildGraphNode", whole, last, len(last), graph)]
            return self._of_driver("instantiates no graph of graphs", "cuGraphInstantiate", whole, 0)
        finally:
            self._driver.cuGraphDestroy(whole)

    def launch_graph(self, executable: Any, stream: int) -> None:
        """Queue an executable graph; RuntimeError if the driver refuses it."""
        self._of_driver("refuses the launch of a graph", "cuGraphLaunch", executable, self._stream(stream))

    def destroy(self, graph: Any, executables: Sequence[Any]) -> None:
        """Give back a graph and executable ones; those that run are freed when they have ended."""
        for one in executables:
            self._driver.cuGraphExecDestroy(one)
        self._driver.cuGraphDestroy(graph)


class GraphCopy:
    """A copy of a captured graph, which can be launched several times at once; it is given back with this object."""

    def __init__(self, driver: Any, graph: Any):
        self._driver, self._graph = driver, graph
        self._executables: dict[int, Any] = {}

    def launch(self, count: int, stream: int) -> None:
        """Queue the graph ``count`` times, one after the other, as a single launch.

        Raises:
            RuntimeError: the driver refuses; nothing is queued then.
        """
        if count not in self._executables:
            self._executables[count] = self._driver.repeated(self._graph, count)
        self._driver.launch_graph(self._executables[count], stream)

    def __del__(self) -> None:
        self._driver.destroy(self._graph, list(self._executables.values()))


def launch(launch: Any, stream: Any, arguments: Sequence[Any]) -> None:
    """Queue a launch with arrays on the device: prepared for this once."""
    PreparedLaunch(launch, arguments, current())((), stream_handle(stream))


_current: Any = None


def current() -> Any:
    """The object that launches go to: the driver, or the one that :func:`use` has set."""
    global _current
    if _current is None:
        _current = CudaDriver()
    return _current


def use(driver: Any) -> Any:
    """Send launches to ``driver``, an object with the methods of :class:`CudaDriver`; returns the one before."""
    global _current
    before, _current = _current, driver
    return before
