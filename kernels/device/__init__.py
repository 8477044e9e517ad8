"""The device functions that kernels use beside ``numba.cuda``: 32-bit words, memory, registers, and launches.

A kernel imports from here, or from the modules below what would not fit on a line, and from ``numba.cuda``::

    from numba import cuda

    from gpuconv.kernels.device import jit, ldg4, st4, u32

    @jit(launch_bounds=256)
    def double(x, y):
        i = (u32(cuda.blockIdx.x) * 256 + cuda.threadIdx.x) * 4
        a, b, c, d = ldg4(x, i)
        st4(y, i, (a + a, b + b, c + c, d + d))

**Why intrinsics.** Numba widens integer operations to 64 bits, checks each index for wrapping around, and never joins
loads. On a GPU 64-bit integers take two to four instructions, and a 128-bit load replaces four. So indices are words
of 32 bits, and memory is reached by flat offsets:

===================  ===================================================================================================
``u32``, ``i32``     conversions to an unsigned and a signed word, which have ``+ - * // % << >> &`` and comparisons.
                     Unsigned ones wrap, so that ``row - padding < height`` tests both borders. Division by a constant
                     becomes a multiplication, shorter if unsigned; constants added to a signed offset fold into the
                     address. See :mod:`gpuconv.kernels.device.words`.
``minimum maximum``  of two words, or of a word and an integer
``ld ld2 ld4``       1, 2 or 4 elements (a tuple) of a global or shared array, in one access of up to 128 bits
``st st2 st4``       stores likewise; the values are of the array's type
``ldg ldg2 ldg4``    loads through the read-only cache (``ld.global.nc``): global memory that the launch does not write
``ldg_if`` ...       likewise ``ldg2_if ldg4_if``: with a predicate, but no branch; where it is false they give zeros
                     and read nothing, whatever the offset
``fma``              ``a * b + c`` rounded once
===================  ===================================================================================================

Arrays are one-dimensional and contiguous. An access to several elements has to be aligned to its size: allocations
are, a shared array is if it is made with ``alignment=16``, and the offset must be a multiple of the count.

**In the simulator** each of these is a Python function, its *twin*, which also checks alignment, types and overflow. So
the simulator tests the kernel, not the intrinsic; ``tests/kernels/test_device.py`` compares the two where the LLVM code
can run on a CPU.

**Modules**: ``words``; ``memory`` (loads, stores); ``registers`` (fma, unrolled loops, outer products); ``reduce``
(sums over lanes and blocks); ``stage`` (inputs and weights to shared memory); ``tiles`` (which results a block or a
thread computes); ``launch``; ``host`` (what is decided before a launch); ``intrinsic`` (how one is made).
"""

from __future__ import annotations

from gpuconv.kernels.device.host import (
    LONGEST_SEGMENT,
    MAX_ELEMENTS,
    MULTIPROCESSORS,
    SHARED_ELEMENTS,
    Answer,
    Refusal,
    aligned,
    bank_conflicts,
    bounds,
    first_fitting,
    fits_offsets,
    fitted,
    launch_time,
    widest_access,
)
from gpuconv.kernels.device.intrinsic import BODIES, SIMULATED, TWINS
from gpuconv.kernels.device.launch import (
    Call,
    Launch,
    array_type,
    call,
    device_function,
    is_recording,
    jit,
    recording,
    running_on_host,
)
from gpuconv.kernels.device.memory import (
    ld,
    ld2,
    ld4,
    ldg,
    ldg2,
    ldg2_if,
    ldg4,
    ldg4_if,
    ldg_if,
    st,
    st2,
    st4,
)
from gpuconv.kernels.device.reduce import column_reduction, reduce_scatter, reduction
from gpuconv.kernels.device.registers import add_outer, clear, fma, loading, unrolled, vector_access
from gpuconv.kernels.device.stage import halo_staging, staging, weight_staging
from gpuconv.kernels.device.tiles import element_of_thread, tile_of_block
from gpuconv.kernels.device.words import i32, maximum, minimum, u32

__all__ = [
    "BODIES", "LONGEST_SEGMENT", "MAX_ELEMENTS", "MULTIPROCESSORS", "SHARED_ELEMENTS", "SIMULATED", "TWINS", "Answer",
    "Call", "Launch", "Refusal", "add_outer", "aligned", "array_type", "bank_conflicts", "bounds", "call", "clear",
    "column_reduction", "device_function", "element_of_thread", "first_fitting", "fits_offsets", "fitted", "fma",
    "halo_staging", "i32", "is_recording", "jit", "launch_time", "ld", "ld2", "ld4", "ldg", "ldg2", "ldg2_if", "ldg4",
    "ldg4_if", "ldg_if", "loading", "maximum", "minimum", "recording", "reduce_scatter", "reduction",
    "running_on_host", "st", "st2", "st4", "staging", "tile_of_block", "u32", "unrolled", "vector_access",
    "weight_staging", "widest_access",
]  # fmt: skip
