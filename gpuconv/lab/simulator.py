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
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from gpuconv.lab import device_names, host, launching
from gpuconv.lab.launching import Settings, SimulationError
from gpuconv.lab.report import Report

__all__ = ["Report", "SimulationError", "activate", "trace"]


def activate(seed: int = 0, *, limit: float | None = None) -> None:
    """Run all launches of ``numba.cuda`` kernels in this simulator, in this process and its child processes.

    Sets ``NUMBA_ENABLE_CUDASIM=1``. Call it before anything imports ``numba.cuda`` (``numba`` itself may be imported
    before), or start Python with that variable set. Calling it again only sets the seed and the limit.

    Args:
        seed: of the order of threads and blocks; every launch starts from it.
        limit: seconds after which a launch is ended, with the lines where its threads stand; None for never.

    Raises:
        RuntimeError: ``numba.cuda`` was imported for a real GPU before, ``NUMBA_ENABLE_CUDASIM=0`` asks for one, or the
            simulator has an unknown layout.
        ImportError: numba is missing.
    """
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
    Settings.seed, Settings.limit = seed, limit
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
        as_dtype = api.numpy_support.as_dtype
        names = {"fp16": api.FakeCUDAModule((1, 1, 1), (1, 1, 1), 0).fp16}
        host_names = host.patch(cuda)
    except (ImportError, AttributeError, TypeError) as error:
        raise RuntimeError(
            f"gpuconv.lab.simulator does not know the layout of this numba.cuda simulator ({error}): it was written "
            "for numba-cuda 0.20.0 to 0.30.4"
        ) from error
    device_names.install(vars(cuda), as_dtype)
    vars(cuda).update(names, **host_names)
    kernel.FakeCUDAKernel.__call__ = _call
    kernel.FakeCUDAKernel.__getitem__ = _configured
    kernel.FakeCUDAKernel.forall = _forall


@contextlib.contextmanager
def trace(*, seed: int | None = None) -> Iterator[Report]:
    """Record every access of the launches inside the ``with`` block; gives a :class:`~gpuconv.lab.report.Report`.

    Args:
        seed: of the order of threads in these launches, instead of the one given to :func:`activate`.

    Raises:
        RuntimeError: the simulator is not active, or another trace is under way.
    """
    if not launching.names:
        raise RuntimeError("the simulator is not active: call gpuconv.lab.simulator.activate() first")
    if Settings.report is not None:
        raise RuntimeError("a trace is under way, and traces cannot be nested")
    report, before = Report(), Settings.seed
    Settings.report, Settings.seed = report, before if seed is None else seed
    try:
        yield report
    finally:
        Settings.report, Settings.seed = None, before


# -- methods of Numba's simulated kernels ----------------------------------------------------------------


def _call(kernel: Any, *args: Any) -> Any:
    """Replaces ``FakeCUDAKernel.__call__``: a launch or, inside a launch, the call of a device function."""
    if kernel._device or launching.in_kernel():
        return kernel.fn(*args)
    if kernel.grid_dim is None:
        importlib.import_module("numba.cuda.errors").normalize_kernel_dimensions(None, None)  # raises, in Numba's words
    if kernel.extensions:
        args = tuple(_prepared(kernel.extensions, arg) for arg in args)
    launching.run(
        kernel.fn, kernel.grid_dim, kernel.block_dim, args, dynamic=kernel.dynshared_size, debug=kernel._debug
    )
    return None


def _prepared(extensions: list[Any], argument: Any) -> Any:
    """An argument as the kernel's extensions want to pass it on."""
    start = (None, argument)
    return functools.reduce(lambda pair, each: each.prepare_args(*pair, stream=0, retr=[]), extensions, start)[1]


def _configured(kernel: Any, configuration: Any) -> Any:
    """Replaces ``FakeCUDAKernel.__getitem__``, which changes the kernel itself: two configurations can be kept."""
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
