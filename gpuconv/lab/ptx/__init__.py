"""Runs compiled kernels on the CPU: an interpreter of PTX, the code that NVIDIA's driver would get.

    from gpuconv import lab

    lab.interpret(kernel)[blocks, threads](x, y)         # a numba.cuda kernel; NumPy arrays, used in place

``gpuconv.lab.simulator`` runs a kernel's Python code. This package runs what the compiler makes of it: types as Numba
inferred them, the intrinsics' own code and inline PTX, vector loads, shuffles, tensor cores, the order of arguments. It
needs numba-cuda's compiler (NUMBA_ENABLE_CUDASIM=0), but no driver and no GPU. Only a GPU can show whether ptxas and
the hardware treat that code as the PTX manual says, and how long it takes.

**How it works.** All threads of some blocks run side by side: a register is an array with one element for each thread.
Every access to memory must lie in an array that the launch was given, in the block's shared memory or the thread's
local memory, and must be aligned to its size. A launch must not write what it reads with ``ld.global.nc``. Shared
memory starts as NaN (all bits set). Races between threads in shared memory, and reads of it before anybody wrote it,
are found too. What is asynchronous happens as late as it may. An error names the instruction, its line in the PTX and
the line of source.

| module | |
|---|---|
| ``program`` | reads PTX |
| ``values``, ``arithmetic``, ``conversion`` | numbers |
| ``memory`` | spaces, bounds, races |
| ``machine``, ``instructions`` | threads, registers, branches and calls; loads and stores |
| ``warps``, ``barriers``, ``mbarriers``, ``atomics`` | what threads do together |
| ``asynchronous``, ``matrix``, ``wgmma`` | copies that go on beside the threads; tensor cores |
| ``external`` | functions that no module defines: printing, cooperative groups |
| ``launching`` | arguments, launches |

Source of semantics: NVIDIA, Parallel Thread Execution ISA, version 8.7.
"""

from __future__ import annotations

from gpuconv.lab.ptx.launching import Executed, Interpretation, count, interpret, interpreted, run, run_text
from gpuconv.lab.ptx.program import Program
from gpuconv.lab.ptx.values import PtxError

__all__ = ["Executed", "Interpretation", "Program", "PtxError", "count", "interpret", "interpreted", "run", "run_text"]
