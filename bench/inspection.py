"""What can be told of a kernel without a GPU: its machine code, its bounds, and how it accesses memory when simulated.

``numba.cuda`` either compiles or simulates, as is decided when it is imported: both are done in processes of their own.

    for job, outcome in in_processes(compiled, jobs, simulate=False, workers=2):
        print(job.name, outcome)
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from bench import roofline, sass
from gpuconv import kernels
from gpuconv.geometry import BlockGeometry, ChainGeometry, Conv2dGeometry, ImageBatchGeometry
from gpuconv.kernels.operations import OPERATIONS, Operand

#: Terms of a sum in the simulated layer; the next number where a tiling needs longer sums.
TERMS = (32, 128, 512)


@dataclass(frozen=True)
class Job:
    """A variant in one tiling on one layer, to be compiled for some architectures."""

    operation: str
    variant: str
    layer: str
    geometry: Any
    tiling: Any
    dtype: str
    architectures: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.operation} {self.variant} {tiling_text(dataclasses.asdict(self.tiling))} on {self.layer}"


def tiling_text(tiling: dict[str, Any]) -> str:
    """A tiling in short: its numbers, and the flags that are set."""
    numbers = [str(value) for value in tiling.values() if not isinstance(value, bool)]
    return "x".join(numbers) + "".join(f" {name}" for name, value in tiling.items() if value is True)


def geometry_text(geometry: Any) -> str:
    """A geometry as people write it: input * weight, and what is not usual."""
    if isinstance(geometry, BlockGeometry):
        return f"{geometry_text(geometry.conv)}, {geometry_text(geometry.pool)}"
    if isinstance(geometry, ChainGeometry):
        return f"{geometry.n} rows, {' -> '.join(map(str, geometry.sizes))}"
    if isinstance(geometry, ImageBatchGeometry):
        g = geometry
        return f"{g.n} of {g.total} images {g.h}x{g.w} -> {g.p}x{g.q}{', warped' if g.warps else ''}"
    if isinstance(geometry, tuple):
        return "x".join(map(str, geometry))
    parts = ["x".join(map(str, geometry.input_shape))]
    if isinstance(geometry, Conv2dGeometry):
        parts.append("* " + "x".join(map(str, geometry.weight_shape)))
    else:
        parts.append(f"window {geometry.r}x{geometry.s}")
    if geometry.stride != (1, 1):
        parts.append(f"stride {geometry.stride[0]}")
    if geometry.padding != ((0, 0), (0, 0)):
        parts.append(f"pad {geometry.padding[0][0]}")
    if isinstance(geometry, Conv2dGeometry) and geometry.groups > 1:
        parts.append(f"groups {geometry.groups}")
    return " ".join(parts)


# -- in processes of their own -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """How a job ended that could not be done: what was raised, as text."""

    message: str


def choose_target(*, simulate: bool) -> None:
    """Make ``numba.cuda``, which must not have been imported yet, simulate or compile."""
    os.environ["NUMBA_ENABLE_CUDASIM"] = str(int(simulate))


def compiled(job: Job) -> list[dict[str, Any]]:
    """What each launch of a job becomes on each architecture; for a process that can compile."""
    return judged(kernels.load(job.operation, job.variant), job.geometry, job.tiling, job.dtype, job.architectures)


def judged(
    variant: Any, geometry: Any, tiling: Any, dtype: str, architectures: tuple[str, ...]
) -> list[dict[str, Any]]:
    """What each launch of a variant becomes on each architecture."""
    launches = variant.launches(geometry, tiling, dtype)
    return [_judged(launch, dtype, architecture) for architecture in architectures for launch in launches]


def _judged(launch: Any, dtype: str, architecture: str) -> dict[str, Any]:
    code = sass.compile_launch(launch, architecture)
    instructions = sass.disassemble(code.cubin)
    multiply_add = {"float32": "FFMA", "float64": "DFMA"}[dtype]
    loop = sass.main_loop(instructions, multiply_add)
    barrier = next((at for at, one in enumerate(instructions) if one.opcode.startswith("BAR")), len(instructions))
    threads, blocks = math.prod(launch.block), math.prod(launch.grid)
    shared = code.shared_bytes + launch.shared_bytes
    held = roofline.occupancy(threads, code.registers, shared, architecture)
    return {
        "kernel": launch.kernel.py_func.__name__,
        "architecture": architecture,
        "grid": list(launch.grid),
        "threads": threads,
        "launch_bounds": launch.kernel.targetoptions.get("launch_bounds"),
        "registers": code.registers,
        "spill_bytes": code.spill_bytes,
        "local_bytes": code.local_bytes,
        "static_shared_bytes": code.shared_bytes,
        "dynamic_shared_bytes": launch.shared_bytes,
        "occupancy": dataclasses.asdict(held),
        "h200_waves": _waves(blocks, held.blocks) if architecture.startswith("sm_90") else None,
        "instructions": len(instructions),
        "loads_before_barrier": sum(one.kind == "LDG.128" for one in instructions[:barrier]),
        "float64_instructions": sum(instruction.double for instruction in instructions),
        "main_loop": {
            "is_loop": loop.is_loop,
            "instructions": len(loop.instructions),
            "multiply_add_share": loop.share(multiply_add),
            "counts": dict(loop.counts.most_common()),
        },
    }


def _waves(blocks: int, held: int) -> float | None:
    """How often an H200 has to be filled; None for a kernel that it cannot run."""
    return blocks / (held * roofline.H200.multiprocessors) if held else None


def executed(job: Job) -> list[dict[str, Any]]:
    """Instructions that each launch of a job executes, on arrays of zeros; for a process that can compile."""
    import numpy as np

    from gpuconv.kernels import device
    from gpuconv.lab import ptx

    variant = kernels.load(job.operation, job.variant)
    operation = OPERATIONS[job.operation]

    def made(operand: Any) -> Any:
        if not isinstance(operand, Operand):
            return [made(one) for one in operand]
        return np.zeros(operand.shape, operand.dtype)  # which takes no memory until it is written

    arrays, keywords = (
        [made(operand) for operand in operation.operands(job.geometry, job.dtype)],
        dict(operation.numbers),
    )
    if size := variant.workspace_size(job.geometry, job.tiling):
        keywords["workspace"] = np.zeros(size, job.dtype)
    with device.recording() as launches:
        variant.launch(*arrays, job.geometry, job.tiling, None, **keywords)
    found = []
    for launch, arguments in launches:
        counts, blocks = ptx.count(launch, arguments), math.prod(launch.grid)
        kernel, threads = launch.kernel.py_func.__name__, math.prod(launch.block)
        found.append({"kernel": kernel, "blocks": blocks, "threads": threads, **dataclasses.asdict(counts)})
    return found


def simulated(job: Job) -> dict[str, Any]:
    """How a job's warps access memory, on a small layer; for a process that simulates."""
    import numpy as np

    from gpuconv.lab import simulator

    simulator.activate()
    variant = kernels.load(job.operation, job.variant)
    operation = OPERATIONS[job.operation]
    generator = np.random.default_rng(0)
    refusal = ""
    for terms in TERMS:
        small = operation.small(job.geometry, terms)

        def made(operand: Any) -> Any:
            if not isinstance(operand, Operand):
                return [made(one) for one in operand]
            if operand.dtype.startswith("float"):
                return generator.random(operand.shape).astype(operand.dtype)
            return np.zeros(operand.shape, operand.dtype)  # labels and places in a window: zeros are allowed

        arrays = [made(operand) for operand in operation.operands(small, job.dtype)]
        keywords = dict(operation.numbers)
        try:
            if size := variant.workspace_size(small, job.tiling):
                keywords["workspace"] = np.empty(size, job.dtype)
            with simulator.trace(seed=0) as trace:
                variant.launch(*arrays, small, job.tiling, None, **keywords)
        except ValueError as error:  # a tiling that the small layer is too small for
            refusal = str(error)
            continue
        return {
            "layer": geometry_text(small),
            "faults": [str(fault) for fault in trace.faults],
            **accesses(trace),
        }
    return {"refused": refusal}


def accesses(trace: Any) -> dict[str, Any]:
    """For each instruction that touches memory: of shared memory its bank conflicts, of global memory its sectors."""
    return {
        "shared": [dataclasses.asdict(site) | {"degree": site.degree} for site in trace.bank_conflicts],
        "global": [
            dataclasses.asdict(site) | {"per_request": site.per_request, "efficiency": site.efficiency}
            for site in trace.sectors
        ],
    }


def in_processes(
    function: Callable[[Job], Any], jobs: Sequence[Job], *, simulate: bool, workers: int
) -> Iterator[tuple[Job, Any]]:
    """Each job and its result, or a :class:`Failure`, in the order in which they are ready.

    Args:
        function: :func:`compiled`, :func:`executed` or :func:`simulated`.
        jobs: what to call it with.
        simulate: what :func:`choose_target` makes of the processes.
        workers: number of processes.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _prepare, (simulate,)) as pool:
        futures = {pool.submit(_attempt, function, job): job for job in jobs}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                job = futures[future]
                _progress(f"{function.__name__} {number}/{len(jobs)}", job.name, last=number == len(jobs))
                yield job, future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare(simulate: bool) -> None:
    choose_target(simulate=simulate)
    # Ctrl-C reaches all processes; the one that started these says what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _attempt(function: Callable[[Job], Any], job: Job) -> Any:
    try:
        return function(job)
    except Exception as error:  # Numba's cannot be sent to another process
        return Failure(f"{type(error).__name__}: {error}")


def _progress(count: str, name: str, *, last: bool) -> None:
    if sys.stderr.isatty():
        line = count if last else f"{count}: {name}"
        print(f"\r\033[K{line[:110]}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(count, file=sys.stderr, flush=True)


# -- results -----------------------------------------------------------------------------------------------------------


def result(job: Job, compilation: Any, simulation: Any) -> dict[str, Any]:
    """What goes into the JSON: what :func:`compiled` and :func:`simulated` found of a job, and its bounds.

    ``compilation`` and ``simulation`` may be a :class:`Failure`; ``simulation`` may be None.
    """
    operation, gpu = OPERATIONS[job.operation], roofline.H200
    work = roofline.Work(operation.flop(job.geometry), operation.traffic(job.geometry, job.dtype), job.dtype)
    found: dict[str, Any] = {
        "operation": job.operation,
        "variant": job.variant,
        "layer": job.layer,
        "geometry": geometry_text(job.geometry),
        "tiling": dataclasses.asdict(job.tiling),
        "dtype": job.dtype,
        "work": {
            "flop": work.flop,
            "traffic_bytes": work.traffic,
            "intensity": work.intensity,
            "bound": work.bound(gpu),
            "h200_floor_us": 1e6 * work.floor_seconds(gpu),
            "h200_copy_us": 1e6 * work.memory_seconds(gpu, copy=True),
        },
    }
    if isinstance(compilation, Failure):
        return found | {"error": compilation.message}
    # Of a float64 multiply-add a scheduler begins one every other cycle, and other instructions between.
    counted = operation.multiply_adds and job.dtype == "float32"
    shares = [launch["main_loop"]["multiply_add_share"] for launch in compilation if counted]
    found["h200_issue_floor_us"] = 1e6 * work.floor_seconds(gpu, max(shares, default=0.0) or 1.0)
    found["launches"] = compilation
    if isinstance(simulation, Failure):
        simulation = {"refused": simulation.message}
    return found | {"simulated": simulation}
