"""What the host needs for a launch, an eager step and a captured one: ``python -m bench.overhead [--json FILE]``.

The driver's launch is replaced by a stub that counts; everything before it is real. So no GPU is needed, and where
there is one, nothing waits for it. Without CuPy's arrays, which need a GPU, a stand-in has their attributes, and
allocates nothing: what CuPy itself takes is then not in the figures, and the output says so. On a GPU the same is
measured once more with the driver's own launch.

- ``launch_us``: a ReLU of an array on the device, by the backend's primitive and by the plan behind it.
- ``eager_step_us``: a training step of LeNet-5 at batch 64 (forward, loss, backward, update), step by step.
- ``captured_call_us``: a call of the captured step, with inputs on the device and from the host.
"""

from __future__ import annotations

import cProfile
import math
import os
import pstats
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from bench import command
from bench.command import Parser, Refused, check_writable, progress, say, start, write
from gpuconv.tuning.measure import spread

_BATCH = 64


# -- what stands in for CuPy where there is no GPU -------------------------------------------------------------------


class _Array:
    """What gpuconv asks of an array on a device; its elements are not there."""

    __slots__ = ("__weakref__", "base", "data", "dtype", "flags", "itemsize", "nbytes", "ndim", "shape", "size")
    __cuda_array_interface__ = property(lambda self: {"data": (self.data.ptr, False)})
    device = SimpleNamespace(id=0)

    def __init__(self, shape: Any = (), dtype: Any = np.float32, base: Any = None):
        self.shape = shape if isinstance(shape, tuple) else (shape,)
        self.dtype, self.base = np.dtype(dtype), base
        self.size = math.prod(self.shape)
        self.itemsize, self.ndim = self.dtype.itemsize, len(self.shape)
        self.nbytes = self.size * self.itemsize
        self.data, self.flags = _POINTER, _FLAGS

    def reshape(self, *shape: Any) -> _Array:
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        if -1 in shape:
            shape = tuple(self.size // -math.prod(shape) if length == -1 else length for length in shape)
        return _Array(shape, self.dtype, self)

    def __getitem__(self, index: Any) -> _Array:
        return self if index is ... else _Array((len(self.shape) and 1,), self.dtype, self)

    def __setitem__(self, index: Any, value: Any) -> None: ...

    def set(self, array: Any, stream: Any = None) -> None: ...

    def get(self) -> np.ndarray:
        return np.zeros(self.shape, self.dtype)

    def copy(self) -> _Array:
        return _Array(self.shape, self.dtype)

    def astype(self, dtype: Any, copy: bool = True) -> _Array:
        return self if not copy and self.dtype == dtype else _Array(self.shape, dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __int__(self) -> int:
        return int(np.iinfo(np.int32).max)  # what a loss says where no label is wrong


_POINTER = SimpleNamespace(ptr=4096, device_id=0, mem=SimpleNamespace(ptr=4096), copy_from_host_async=lambda *_: None)
_FLAGS = SimpleNamespace(c_contiguous=True, f_contiguous=False)


class _Stream:
    ptr = 0

    def __init__(self, **_: Any): ...

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    def begin_capture(self, mode: Any) -> None: ...

    def end_capture(self) -> Any:
        return SimpleNamespace(launch=lambda stream: None)


@contextmanager
def _nothing(*_: Any) -> Iterator[None]:
    yield


def _stand_in() -> ModuleType:
    """A module that passes for CuPy."""
    cupy: Any = ModuleType("cupy")
    stream, pinned = _Stream(), bytearray(1 << 20)
    cupy.ndarray, cupy.__version__, cupy.int64 = _Array, "stand-in", np.int64
    _Array.__module__ = "cupy"
    cupy.empty = _Array
    cupy.asarray = lambda a: a if isinstance(a, _Array) else _Array(np.shape(a), np.asarray(a).dtype)
    cupy.ascontiguousarray = lambda a: a
    cupy.copyto = lambda target, source: None
    event = SimpleNamespace(synchronize=lambda: None, record=lambda stream: None)
    runtime = SimpleNamespace(
        getDevice=lambda: 0,
        getDeviceProperties=lambda _: {"name": b"none", "totalGlobalMem": 0, "major": 9, "minor": 0},
        driverGetVersion=lambda: 0,
        streamCaptureModeRelaxed=2,
        CUDARuntimeError=RuntimeError,
    )
    cupy.cuda = SimpleNamespace(
        runtime=runtime,
        Stream=_Stream,
        Event=lambda **_: event,
        MemoryPool=lambda allocator: SimpleNamespace(malloc=None),
        alloc=lambda size: SimpleNamespace(memset_async=lambda *_: None),
        alloc_pinned_memory=lambda size: _Pinned(pinned),
        get_allocator=lambda: None,
        get_current_stream=lambda: stream,
        memory=SimpleNamespace(OutOfMemoryError=MemoryError, PooledMemory=_Stream),  # no array is of a pool
        using_allocator=_nothing,
    )
    return cupy


class _Pinned(bytearray):
    ptr = 0


class _Counting:
    """Takes launches in place of the driver, and counts them."""

    def __init__(self, driver: Any):
        self._driver, self.launches = driver, 0

    def load(self, launch: Any) -> Any:
        return launch if self._driver is None else self._driver.load(launch)

    def submit(self, *launch: Any) -> None:
        self.launches += 1


@contextmanager
def _unlabelled(backend: Any, stubbed: bool) -> Iterator[None]:
    """Where no kernel runs, none has looked for labels that are no class, and nothing can be read of it."""
    check = backend._check_labels
    if stubbed:
        backend._check_labels = lambda *_: None
    try:
        yield
    finally:
        backend._check_labels = check


# -- measuring -------------------------------------------------------------------------------------------------------


def _median_us(call: Callable[[], Any], repeats: int, wait: Callable[[], None]) -> float:
    """Microseconds that the host needs for a call: the median of some samples."""
    for _ in range(3):
        call()
    samples = []
    for number in range(9):
        progress(f"sample {number + 1} of 9")
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        samples.append(1e6 * (time.perf_counter() - start) / repeats)
    wait()
    return round(spread(samples).median, 3)


def _step(backend: Any) -> tuple[Callable[..., Any], Any, Any]:
    """A training step of LeNet-5, and its inputs on the device."""
    from bench.contenders import training_step
    from gpuconv import Tensor, models, optim

    model = models.LeNet5().to(backend)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    images = Tensor(backend.asarray(np.zeros((_BATCH, 1, 32, 32), np.float32)))
    return training_step(model, optimizer), images, backend.asarray(np.zeros(_BATCH, np.int64))


def measure(driver: Any, wait: Callable[[], None], profile: int = 0) -> dict[str, Any]:
    """Microseconds of the host, launches going to ``driver``, an object as ``gpuconv.kernels.driver.CudaDriver``."""
    import gpuconv
    from gpuconv import backends
    from gpuconv.kernels import driver as drivers

    before = drivers.use(driver)
    # Plans hold launches that are prepared for a driver.
    backends.get("cuda")._plans.clear()
    try:
        with gpuconv.use_backend("cuda") as backend, _unlabelled(backend, isinstance(driver, _Counting)):
            x = backend.asarray(np.zeros(4096, np.float32))
            plan, y = backend.plan("relu", x.shape, x.dtype), backend.xp.empty(x.shape, x.dtype)
            arguments = (x, y), {}, backend.current_stream(), 0, None
            figures: dict[str, Any] = {
                "launch_us": _median_us(lambda: plan.queue(*arguments), 2000, wait),
                "primitive_us": _median_us(lambda: backend.relu(x), 2000, wait),
                "empty_us": _median_us(lambda: backend.xp.empty((4096,), np.float32), 2000, wait),
            }
            step, images, labels = _step(backend)
            figures["eager_step_us"] = _median_us(lambda: step(images, labels), 100, wait)
            if profile:
                _profile(lambda: step(images, labels), profile)
            counted = getattr(driver, "launches", None)
            step(images, labels)
            if counted is not None:
                figures["eager_step_launches"] = driver.launches - counted
            step, images, labels = _step(backend)
            captured = gpuconv.capture(step)
            figures["captured_call_us"] = _median_us(lambda: captured(images, labels), 500, wait)
            host = np.zeros((_BATCH, 1, 32, 32), np.float32), np.zeros(_BATCH, np.int64)
            figures["captured_call_from_host_us"] = _median_us(lambda: captured(*host), 500, wait)
            return figures
    finally:
        drivers.use(before)
        backends.get("cuda")._plans.clear()


def _profile(call: Callable[[], Any], rows: int) -> None:
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(200):
        call()
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(rows)


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser("overhead", "What the host needs around kernels.")
    parser.json_option()
    parser.count_option("--profile", "N", "show the N costliest functions", 0)
    arguments = parser.parse_args(argv)
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        raise Refused("NUMBA_ENABLE_CUDASIM is set: the simulator takes the place of launches; unset it")
    check_writable("--json", arguments.json)
    document = command.document("overhead", {})
    from gpuconv import backends
    from gpuconv.backends.cuda import backend as cuda_backend

    reason = backends.available()["cuda"]
    if reason is None:
        import cupy

        from gpuconv.kernels import driver

        wait = cupy.cuda.Device().synchronize
        document |= {"arrays": f"CuPy {cupy.__version__}", "device": backends.get("cuda").describe()}
        document["with_driver"] = measure(driver.current(), wait)
        document |= measure(_Counting(driver.current()), wait, arguments.profile)
    else:
        say(f"no GPU ({reason}): arrays are stand-ins, what CuPy takes is not counted")
        sys.modules["cupy"] = _stand_in()
        cuda_backend.CudaBackend.unavailable = classmethod(lambda cls: None)  # type: ignore[method-assign]
        backends._load.cache_clear()
        document["arrays"] = "stand-in"
        document |= measure(_Counting(None), lambda: None, arguments.profile)
    progress("")
    for name in ("launch_us", "primitive_us", "eager_step_us", "captured_call_us", "captured_call_from_host_us"):
        real = f", {document['with_driver'][name]:.1f} with the driver's" if "with_driver" in document else ""
        print(f"{name:28} {document[name]:8.1f}{real}")
    document["complete"] = True
    if arguments.json:
        write(document, arguments.json)
        say(f"written: {arguments.json}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure. See :func:`bench.command.answer`."""
    return command.answer("bench.overhead", _run, argv)


if __name__ == "__main__":
    start(main)
