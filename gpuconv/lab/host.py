"""The host's side of ``numba.cuda`` in the simulator, where Numba's own lacks it: a device, memory, streams, events."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import math
import os
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from gpuconv.lab import as_compiled, fresh_memory
from gpuconv.lab.cards import Chosen
from gpuconv.lab.launching import Settings
from gpuconv.lab.places import site, site_name
from gpuconv.lab.simulated_memory import array_at
from gpuconv.lab.traced_arrays import address_of

_MemoryInfo = namedtuple("_MemoryInfo", "free,total")


def patch(cuda: ModuleType) -> dict[str, Any]:
    """Mend classes of Numba's simulator, and give the names that the module ``numba.cuda`` lacks or has wrong."""
    devices = importlib.import_module("numba.cuda.simulator.cudadrv.devices")
    device = devices.FakeCUDADevice
    device.__getattr__ = _attribute
    capability = property(lambda self: Chosen.card.compute_capability)
    device.compute_capability = devices.FakeCUDAContext.compute_capability = capability
    devices.FakeCUDAContext.get_memory_info = _memory_info
    kernel = importlib.import_module("numba.cuda.simulator.kernel")
    kernel.FakeOverload.max_cooperative_grid_blocks = lambda self, blockdim, dynsmemsize=0: BLOCKS_AT_ONCE
    kernel.FakeCUDAKernel.overloads = property(lambda self: _Overloads(kernel.FakeOverload, self))
    with contextlib.suppress(ImportError):  # numba-cuda before 0.21
        config: Any = importlib.import_module("numba.cuda.core.config")
        if not hasattr(config, _HEADERS):  # the module that sets it is not imported with the simulator
            setattr(config, _HEADERS, os.environ.get(f"NUMBA_{_HEADERS}", ""))
    stream, event = cuda.stream, cuda.event
    for name, value in _STREAM.items():
        setattr(stream, name, value)
    for name, value in _EVENT.items():
        setattr(event, name, value)
    arrays: Any = importlib.import_module("numba.cuda.simulator.cudadrv.devicearray")
    arrays.FakeCUDAArray.copy_to_host = _looking_for_gaps(arrays.FakeCUDAArray.copy_to_host)
    arrays.FakeCUDAArray.gpu_data = property(lambda self: self._ary)
    arrays.FakeCUDAArray.__cuda_array_interface__ = property(_interface)
    arrays.DeviceNDArray = functools.partial(_device_array, arrays.FakeCUDAArray)
    reduction = importlib.import_module("numba.cuda.kernels.reduction")
    return {
        "jit": _any_option(cuda.jit),
        "is_cuda_array": lambda thing: hasattr(thing, "__cuda_array_interface__"),
        "as_cuda_array": functools.partial(_as_device_array, arrays.FakeCUDAArray),
        "from_cuda_array_interface": functools.partial(_from_interface, arrays.FakeCUDAArray),
        **{name: functools.partial(_no_compiler, name) for name in _COMPILERS if getattr(cuda, name, 0) is None},
        "reduce": reduction.Reduce,
        "Reduce": reduction.Reduce,
        "declare_device": _declare_device,
        "pinned": _pinned,
        "managed_array": lambda *shape, stream=0, attach_global=True, **kind: arrays.managed_array(*shape, **kind),
        "mapped_array_like": arrays.device_array_like,
        **fresh_memory.watch(arrays.FakeCUDAArray, arrays),
        "profile_start": _nothing,
        "profile_stop": _nothing,
        "profiling": contextlib.nullcontext,
        "event_elapsed_time": _elapsed,
    }


#: Where else NVRTC looks for headers: folders, with colons between.
_HEADERS = "CUDA_NVRTC_EXTRA_SEARCH_PATHS"
#: Blocks of a cooperative grid that are said to fit: enough for mistakes between blocks to show.
BLOCKS_AT_ONCE = 32


def _attribute(device: Any, name: str) -> Any:
    known = Chosen.card.attributes()
    if name in known:
        return known[name]
    raise AttributeError(f"the simulated device has no {name}: gpuconv.lab.Card.attributes lists what it has")


#: What needs a compiler, which Numba's simulator has None for.
_COMPILERS = ("compile", "compile_all", "compile_ptx", "compile_for_current_device", "compile_ptx_for_current_device")


def _no_compiler(name: str, *args: Any, **options: Any) -> None:
    raise NotImplementedError(f"numba.cuda.{name}: kernels are simulated here; lab.compiled(kernel, ...) compiles them")


def _memory_info(context: Any) -> Any:
    total = Chosen.card.memory_gib * 1024**3
    return _MemoryInfo(total, total)


def _nothing(*args: Any, **keywords: Any) -> None:
    """What has no effect without a device."""


def _looking_for_gaps(copy: Callable[..., Any]) -> Callable[..., Any]:
    """A copy to the host that tells the trace of elements which nobody has written."""

    def copy_to_host(array: Any, *args: Any, **keywords: Any) -> Any:
        values, trace = array._ary, Settings.trace()
        if trace is not None and values.flags.c_contiguous and values.size:
            gaps = fresh_memory.unwritten(address_of(values), values.nbytes, values.itemsize)
            if gaps is not None and gaps.any():
                frame = sys._getframe(1)
                place = site_name(site(frame.f_code, frame.f_lasti))
                first = ", ".join(map(str, np.unravel_index(int(gaps.argmax()), values.shape)))
                words = (
                    f"{gaps.sum()} of {gaps.size} elements of a device array, the first [{first}], copied at {place}"
                )
                trace.report.remark("unwritten result", place, (place,), words, int(gaps.sum()))
        return copy(array, *args, **keywords)

    return copy_to_host


@contextlib.contextmanager
def _pinned(*arrays: np.ndarray[Any, Any]) -> Iterator[None]:
    yield


def _any_option(jit: Callable[..., Any]) -> Callable[..., Any]:
    """``cuda.jit`` that accepts the compiler's options which Numba's simulator does not know."""
    known = set(inspect.signature(jit).parameters)

    @functools.wraps(jit)
    def wrapper(func_or_sig: Any = None, **options: Any) -> Any:
        linked, bounds = options.pop("link", None), options.get("launch_bounds")
        made = jit(func_or_sig, **{name: value for name, value in options.items() if name in known})
        if not hasattr(made, "fn"):  # a decorator, given types
            return lambda function: _remembering(made(function), func_or_sig, linked, bounds)
        return _remembering(made, None, linked, bounds)

    return wrapper


def _remembering(kernel: Any, signature: Any, linked: Any, bounds: Any) -> Any:
    """A kernel that knows what it was compiled for: types, files, threads of a block."""
    kernel._bounds = bounds
    kernel._signature, kernel._casts = signature, as_compiled.casts(signature)
    kernel._linked = tuple(linked) if isinstance(linked, (list, tuple, set)) else (linked,) if linked else ()
    return kernel


class _Overloads(dict[Any, Any]):
    """What a kernel was compiled to: the same for all types."""

    def __init__(self, kind: Any, kernel: Any) -> None:
        super().__init__()
        self._kind, self._kernel = kind, kernel

    def __getitem__(self, types: Any) -> Any:
        overload = self._kind()
        overload.signature = SimpleNamespace(args=types, return_type=self._returned(types))
        return overload

    def _returned(self, types: Any) -> Any:
        """Of a device function: as its signature says, else of what it makes of ones."""
        known = importlib.import_module("numba.cuda.core.sigutils")
        signature = getattr(self._kernel, "_signature", None)
        wanted = known.normalize_signature(signature)[1] if signature is not None else None
        if wanted is not None or not self._kernel._device:
            return wanted
        support = importlib.import_module("numba.cuda.np.numpy_support")
        made = self._kernel.fn(*(np.ones((), support.as_dtype(each))[()] for each in types))
        return support.from_dtype(np.asarray(made).dtype)


def _declare_device(*arguments: Any, **options: Any) -> Any:
    from gpuconv.lab import linked  # with the interpreter of PTX, which few need

    return linked.ForeignFunction(*arguments, **options)


# -- device arrays of other libraries, and as they see ours ----------------------------------------------


def _interface(array: Any) -> dict[str, Any]:
    values = array._ary
    return {
        "shape": values.shape,
        "strides": None if values.flags.c_contiguous else values.strides,
        "typestr": values.dtype.str,
        "descr": values.dtype.descr,
        "data": (as_compiled.has_address(values), False),
        "stream": None,
        "version": 3,
    }


def _as_device_array(kind: Any, thing: Any, sync: bool = True) -> Any:
    """What has the interface of device arrays: simulated memory is the process's own."""
    return thing if isinstance(thing, kind) else _from_interface(kind, thing.__cuda_array_interface__)


def _from_interface(kind: Any, given: dict[str, Any], owner: Any = None, sync: bool = True) -> Any:
    if given.get("mask") is not None:
        raise NotImplementedError("Masked arrays are not supported")
    shape, dtype = given["shape"], np.dtype(given["typestr"])
    flat = array_at(given["data"][0], math.prod(shape), dtype)
    if given.get("strides") is None:
        return kind(flat.reshape(shape))
    return kind(np.lib.stride_tricks.as_strided(flat, shape, given["strides"]))


def _device_array(kind: Any, shape: Any, strides: Any, dtype: Any, stream: Any = 0, gpu_data: Any = None) -> Any:
    """A view of an array's memory with other strides, as a ufunc makes it that repeats an argument, or a new array."""
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if gpu_data is None:
        steps = strides if isinstance(strides, tuple) else (strides,)
        last = sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
        gpu_data = np.zeros(max(0, last) + np.dtype(dtype).itemsize, np.uint8)
    return kind(np.lib.stride_tricks.as_strided(gpu_data.view(dtype), sizes, strides), stream)


# -- streams and events: all work is done when a launch returns ------------------------------------------


def _add_callback(stream: Any, callback: Callable[..., None], arg: Any = None) -> None:
    callback(stream, 0, arg)


async def _async_done(stream: Any) -> Any:
    return stream


def _record(event: Any, stream: Any = 0) -> None:
    event._time = time.perf_counter()


def _elapsed(event: Any, other: Any) -> float:
    """Milliseconds of this process, which say nothing of a GPU."""
    return 1e3 * (other._time - event._time)


_STREAM: dict[str, Any] = {"add_callback": _add_callback, "async_done": _async_done, "handle": 0}
_EVENT: dict[str, Any] = {"record": _record, "elapsed_time": _elapsed, "query": lambda event: True, "_time": 0.0}
