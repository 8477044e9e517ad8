"""Runs CUDA kernels on the CPU, with threads in shuffled order, and records every access to memory.

    from gpuconv.lab import simulator

    simulator.activate()                  # before anything imports numba.cuda
    with simulator.trace() as report:
        kernel[grid, block](x, y)         # NumPy arrays, used in place
    assert report.clean, str(report)

A kernel that gives right results here, on ragged shapes and in several thread orders, with a clean report, is most
likely right on a GPU. The simulator cannot tell time or registers, nor whether the instructions behind an intrinsic do
the same as its Python version.

**How it works.** Numba's own simulator starts an operating system thread for every CUDA thread. Here a CUDA thread is a
greenlet. It runs until it reaches a barrier, a shuffle or its end, then switches back to a loop that picks another
thread. Threads and blocks run in a random order, which changes after each barrier and is the same in each run, so that
a missing barrier shows as a wrong result. Lanes of a warp wait for each other at shuffles, votes and ``syncwarp``.
Shared and local memory starts as NaN (integers: all bits set), and so does memory of ``cuda.device_array``. One launch
runs at a time, in one thread of the process.

**The trace** finds races, reads of memory that nobody wrote, accesses out of bounds and divergent barriers. It
counts bank conflicts, 32-byte sectors and writes: see :class:`gpuconv.lab.report.Report`. Conflicts and sectors are
counted for whole warps. For that, accesses of different lanes are matched by their number: a lane's n-th execution of
an instruction since the last barrier goes with the n-th execution of the other lanes. An ``if`` in a loop that only
some lanes take shifts this. The predicated loads of ``gpuconv.kernels.device`` are counted whether they are on or off.

**Internals it relies on**: ``FakeCUDAKernel`` of ``numba.cuda.simulator.kernel`` (its ``__call__``, ``__getitem__`` and
``forall`` are replaced; ``fn``, ``_device``, ``_debug``, ``extensions``, ``grid_dim``, ``block_dim``,
``dynshared_size`` are read) and ``FakeCUDAModule`` of ``kernelapi`` (arithmetic of half floats). What a kernel calls
(``threadIdx``, ``shared``...) is put into the module ``numba.cuda`` itself, so that kernels and helpers may be in
several modules. Checked with numba-cuda 0.20.0 and 0.30.4, and with the ``cuda`` inside numba 0.68.1;
:func:`activate` raises an error for an unknown layout.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import linecache
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from gpuconv.lab import as_compiled, device_names, host, launching, libdevice, random_numbers
from gpuconv.lab.cards import DEFAULT, Card, Chosen, card
from gpuconv.lab.launchable import Launchable
from gpuconv.lab.launching import Settings, SimulationError, Trace
from gpuconv.lab.machine_code import compiled
from gpuconv.lab.report import Report

__all__ = ["Report", "Simulation", "SimulationError", "activate", "simulate", "trace"]


def activate(seed: int = 0, *, limit: float | None = None, device: str | Card = DEFAULT) -> None:
    """Run all launches of ``numba.cuda`` kernels in this simulator, in this process and its child processes.

    Sets ``NUMBA_ENABLE_CUDASIM=1``. Call it before anything imports ``numba.cuda`` (``numba`` itself may be imported
    before), or start Python with that variable set. Calling it again only sets the seed, the limit and the device.

    Args:
        seed: of the order of threads and blocks; every launch starts from it.
        limit: seconds after which a launch is ended, with the lines where its threads stand; None for never.
        device: the GPU to stand for, of :data:`gpuconv.lab.CARDS`: its limits hold, and it is what programs find.

    Raises:
        ValueError: the device is unknown.
        RuntimeError: ``numba.cuda`` was imported for a real GPU before, ``NUMBA_ENABLE_CUDASIM=0`` asks for one, or the
            simulator has an unknown layout.
        ImportError: numba is missing.
    """
    chosen = card(device)
    if "numba.cuda" not in sys.modules:
        if os.environ.get("NUMBA_ENABLE_CUDASIM") == "0":
            raise RuntimeError("NUMBA_ENABLE_CUDASIM=0 asks for a real GPU: unset it to use the simulator")
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
        # Numba read the environment when it was first imported, which may have been long ago, for the CPU.
        importlib.import_module("numba").config.reload_config()
    cuda = importlib.import_module("numba.cuda")
    if not is_simulated(cuda):
        raise RuntimeError(
            "numba.cuda was imported without its simulator: set NUMBA_ENABLE_CUDASIM=1 before Python starts, or call "
            "gpuconv.lab.simulator.activate() before anything imports numba.cuda"
        )
    Settings.seed, Settings.limit, Chosen.card = seed, limit, chosen
    if launching.names is not vars(cuda):
        _patch(cuda)


def is_simulated(cuda: ModuleType) -> bool:
    """Whether the module ``numba.cuda`` was imported with Numba's simulator."""
    return bool(cuda.jit.__module__.startswith("numba.cuda.simulator"))


def _patch(cuda: ModuleType) -> None:
    try:
        kernel = importlib.import_module("numba.cuda.simulator.kernel")
        api = importlib.import_module("numba.cuda.simulator.kernelapi")
        probe = kernel.FakeCUDAKernel(lambda: None, device=False)
        for name in ("fn", "_device", "_debug", "extensions", "grid_dim", "block_dim", "dynshared_size"):
            getattr(probe, name)
        names = {"fp16": api.FakeCUDAModule((1, 1, 1), (1, 1, 1), 0).fp16}
        host_names = host.patch(cuda)
    except (ImportError, AttributeError, TypeError) as error:
        raise RuntimeError(
            f"gpuconv.lab.simulator does not know the layout of this numba.cuda simulator ({error}): it was written "
            "for numba-cuda 0.20.0 to 0.30.4"
        ) from error
    device_names.install(vars(cuda))
    vars(cuda).update(names, **host_names)
    kernel.FakeCUDAKernel.__call__ = _call
    kernel.FakeCUDAKernel.__getitem__ = _configured
    kernel.FakeCUDAKernel.forall = _forall
    with contextlib.suppress(ImportError):  # numba-cuda without numba
        _run_compiled_functions_as_python()
        random_numbers.patch()
    libdevice.patch()


def _run_compiled_functions_as_python() -> None:
    """Kernels may call functions that ``numba.jit`` compiled for the CPU, which know nothing of traced arrays."""
    dispatcher = importlib.import_module("numba.core.dispatcher").Dispatcher
    call = dispatcher.__call__

    def wrapper(self: Any, *args: Any, **keywords: Any) -> Any:
        if launching.in_kernel():
            return launching.here().bound(self.py_func)(*args, **keywords)
        return call(self, *args, **keywords)

    dispatcher.__call__ = wrapper
    types = importlib.import_module("numba.core.types")
    for number in (types.Integer, types.Float):
        device_names.let_types_cast(number, types.Type)


@contextlib.contextmanager
def trace(*, seed: int | None = None) -> Iterator[Report]:
    """Record every access of the launches inside the ``with`` block; gives a :class:`~gpuconv.lab.report.Report`.

    Args:
        seed: of the order of threads in these launches, instead of the one given to :func:`activate`.

    A launch belongs to the innermost of several. Launches of threads without a trace belong to the thread's that began
    one first.

    Raises:
        RuntimeError: the simulator is not active.
    """
    if not launching.names:
        raise RuntimeError("the simulator is not active: call gpuconv.lab.simulator.activate() first")
    with _tracing(seed, private=False) as report:
        yield report


@contextlib.contextmanager
def _tracing(seed: int | None, *, private: bool) -> Iterator[Report]:
    mine = Trace(Report(), seed, threading.get_ident(), private)
    Settings.traces.append(mine)
    try:
        yield mine.report
    finally:
        Settings.traces[:] = [trace for trace in Settings.traces if trace is not mine]


# -- without switching it on -----------------------------------------------------------------------------


def simulate(
    kernel: Any,
    *,
    trace: bool = False,
    code: bool = False,
    seed: int = 0,
    limit: float | None = None,
    device: str | Card = DEFAULT,
) -> Simulation:
    """A kernel that runs in the laboratory when it is launched: ``simulate(kernel)[grid, block](x, y)``.

    It needs no :func:`activate`: real kernels run in the same process, before and after.

    Args:
        kernel: of ``numba.cuda``, or a Python function that is written like one.
        trace: whether to record every access; launches then return a :class:`~gpuconv.lab.report.Report`.
        code: whether to compile it for a GPU as well, with the arguments of each traced launch: ``report.code``.
        seed: of the order of threads and blocks.
        limit: seconds after which a launch is ended, with the lines where its threads stand; None for never.
        device: the GPU to stand for, of :data:`gpuconv.lab.CARDS`: its limits hold.

    Raises:
        TypeError: it is neither.
        ValueError: the device is unknown.
    """
    return Simulation(kernel, trace, code, seed, limit, card(device))


class Simulation(Launchable[Report | None]):
    """What :func:`simulate` gives. Arguments are NumPy arrays, used in place, numbers, and tuples of such.

    Device arrays of ``numba.cuda`` are copied to the host and back.
    """

    def __init__(self, kernel: Any, trace: bool, code: bool, seed: int, limit: float | None, device: Card) -> None:
        cuda = importlib.import_module("numba.cuda")
        if is_simulated(cuda):
            if launching.names is not vars(cuda):
                _patch(cuda)
            self._function = getattr(kernel, "fn", kernel)
            if not callable(self._function):
                raise TypeError(f"simulate: a kernel or a Python function is wanted, not {type(kernel).__name__}")
        else:
            from gpuconv.lab import binding  # needs numba.cuda as it is for a GPU

            self._function = binding.bind(kernel)
        self._kernel, self._code, self._card = kernel, code, device
        self._trace, self._seed, self._limit = trace or code, seed, limit
        options = getattr(kernel, "targetoptions", {})
        self._debug = bool(options.get("debug", getattr(kernel, "_debug", False)))
        self._bounds = options.get("launch_bounds", getattr(kernel, "_bounds", None))
        self._linked: tuple[Any, ...] = tuple(options.get("link") or getattr(kernel, "_linked", None) or ())

    def _launch(self, grid: Any, block: Any, shared_bytes: int, *args: Any) -> Report | None:
        with launching.one_at_a_time:  # the settings hold for all threads
            return self._alone(grid, block, shared_bytes, args)

    def _alone(self, grid: Any, block: Any, dynamic: int, args: tuple[Any, ...]) -> Report | None:
        before = Settings.seed, Settings.limit, Chosen.card
        Settings.seed, Settings.limit, Chosen.card = self._seed, self._limit, self._card
        try:
            with _tracing(self._seed, private=True) if self._trace else contextlib.nullcontext() as report:
                launching.run(
                    self._function, grid, block, args,
                    dynamic=dynamic, debug=self._debug, linked=self._linked, bounds=self._bounds,
                )  # fmt: skip
            if report is not None and self._code:
                report.code = (compiled(self._kernel, *args),)
            return report
        finally:
            Settings.seed, Settings.limit, Chosen.card = before


def source_line(site: str) -> str:
    """The line of source at a place that a report names, as "file.py:12"."""
    path, _, line = site.rpartition(":")
    linecache.checkcache(path)  # it may have changed since another launch
    return linecache.getline(path, int(line)).strip()


# -- methods of Numba's simulated kernels ----------------------------------------------------------------


def _call(kernel: Any, *args: Any) -> Any:
    """Replaces ``FakeCUDAKernel.__call__``: a launch or, inside a launch, the call of a device function."""
    files = getattr(kernel, "_linked", ())
    if kernel._device or launching.in_kernel():
        if files and launching.in_kernel():
            launching.here().link(files)
        kinds = getattr(kernel, "_casts", None)
        function = launching.here().bound(kernel.fn) if launching.in_kernel() else kernel.fn
        return function(*(args if kinds is None or len(kinds) != len(args) else as_compiled.cast(kinds, args)))
    if kernel.grid_dim is None:
        importlib.import_module("numba.cuda.errors").normalize_kernel_dimensions(None, None)  # raises, in Numba's words
    if kernel.extensions:
        args = tuple(_prepared(kernel.extensions, arg) for arg in args)
    function = as_compiled.frozen(kernel.fn, args)
    args = as_compiled.with_pointers(getattr(kernel, "_signature", None), args)
    kinds = getattr(kernel, "_casts", None)
    if kinds is not None and len(kinds) == len(args):
        args = as_compiled.cast(kinds, args)
    launching.run(
        function, kernel.grid_dim, kernel.block_dim, args,
        dynamic=kernel.dynshared_size, debug=kernel._debug, linked=files, bounds=getattr(kernel, "_bounds", None),
    )  # fmt: skip
    return None


def _prepared(extensions: list[Any], argument: Any) -> Any:
    """An argument as the kernel's extensions want to pass it on."""
    start = (None, argument)
    return functools.reduce(lambda pair, each: each.prepare_args(*pair, stream=0, retr=[]), extensions, start)[1]


def _configured(kernel: Any, configuration: Any) -> Any:
    """Replaces ``FakeCUDAKernel.__getitem__``, which changes the kernel itself: two configurations can be kept."""
    if kernel._device:
        raise RuntimeError(f"Cannot compile a device function as a kernel: {kernel.fn.__name__} has device=True")
    normalize = importlib.import_module("numba.cuda.errors").normalize_kernel_dimensions
    configured = copy.copy(kernel)
    configured.grid_dim, configured.block_dim = normalize(*configuration[:2])
    configured.stream = configuration[2] if len(configuration) > 2 else 0
    configured.dynshared_size = configuration[3] if len(configuration) > 3 else 0
    return configured


def _forall(kernel: Any, ntasks: int, tpb: int = 0, stream: Any = 0, sharedmem: int = 0) -> Any:
    """Replaces ``FakeCUDAKernel.forall``: blocks as a GPU would have them, so that a missing bound shows."""
    if ntasks < 0:
        raise ValueError(f"Can't create ForAll with negative task count: {ntasks}")
    if ntasks == 0:
        return lambda *args: None
    block = tpb or 128
    return kernel[-(-ntasks // block), block, stream, sharedmem]
