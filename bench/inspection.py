"""What can be told of a kernel without a GPU: its machine code, its bounds, and how it accesses memory when simulated.

``numba.cuda`` either compiles or simulates, as is decided when it is imported: both are done in processes of their own.

    for job, outcome in in_processes(compiled, jobs, simulate=False):
        print(job.name, outcome)
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from bench import compiling, roofline, sass
from bench.command import available_cores, say
from gpuconv import kernels
from gpuconv.geometry import BlockGeometry, BlockPairGeometry, ChainGeometry, Conv2dGeometry, ImageBatchGeometry
from gpuconv.kernels.operations import HALF_TYPES, OPERATIONS, Operand, workspace_type

#: Of what CuPy and PyTorch allocate on a device, bytes.
_ALIGNMENT = 512
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


def jobs_of(
    operation: str,
    layer: str,
    geometry: Any,
    variants: Sequence[str],
    architectures: tuple[str, ...],
    *,
    dtype: str = "float32",
    every_tiling: bool = True,
    refusals: list[str] | None = None,
) -> Iterator[Job]:
    """The variants of an operation that support a geometry, in all tilings or in the first one, a good guess.

    Why others do not is added to ``refusals``.
    """
    for variant in variants:
        module = kernels.load(operation, variant)
        if not (answer := module.supports(geometry, dtype)):
            if refusals is not None:
                refusals.append(f"{variant}: {answer}")
            continue
        for tiling in module.tilings(geometry)[: None if every_tiling else 1]:
            yield Job(operation, variant, layer, geometry, tiling, dtype, architectures)


def tiling_text(tiling: dict[str, Any]) -> str:
    """A tiling in short: its numbers, and the flags that are set."""
    numbers = [str(value) for value in tiling.values() if not isinstance(value, bool)]
    return "x".join(numbers) + "".join(f" {name}" for name, value in tiling.items() if value is True)


def geometry_text(geometry: Any) -> str:
    """A geometry as people write it: input * weight, and what is not usual."""
    if isinstance(geometry, BlockGeometry):
        return f"{geometry_text(geometry.conv)}, {geometry_text(geometry.pool)}"
    if isinstance(geometry, BlockPairGeometry):
        return "; ".join(map(geometry_text, geometry))
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
    products = 0.5 if dtype in HALF_TYPES else getattr(tiling, "products", 1)
    return [_judged(launch, dtype, architecture, products) for architecture in architectures for launch in launches]


def _judged(launch: Any, dtype: str, architecture: str, products: float) -> dict[str, Any]:
    """Of a launch; ``products`` of tensor cores stand for one of the operation."""
    code = sass.compile_launch(launch, architecture)
    instructions = sass.disassemble(code.cubin)
    multiply_add = "DFMA" if dtype == "float64" else "FFMA"
    if any(one.kind == "HMMA" for one in instructions):
        multiply_add = "HMMA"
    loop = sass.main_loop(instructions, multiply_add)
    share = loop.share(multiply_add)
    if multiply_add == "HMMA":
        share = roofline.tensor_share(loop.counts["HMMA"], len(loop.instructions), products)
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
            "multiply_add_share": share,
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
        keywords["workspace"] = np.zeros(size, workspace_type(job.dtype))
    with device.recording() as launches:
        variant.launch(*arrays, job.geometry, job.tiling, None, **keywords)
    found = []
    for launch, arguments in launches:
        counts, blocks = ptx.count(launch, arguments), math.prod(launch.grid)
        kernel, threads = launch.kernel.py_func.__name__, math.prod(launch.block)
        found.append({"kernel": kernel, "blocks": blocks, "threads": threads, **dataclasses.asdict(counts)})
    return found


def aligned(nbytes: int) -> Any:
    """Bytes of memory that begin as a device's do: on their alignment depends how many sectors an access touches."""
    import numpy as np

    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + nbytes]


def _array(shape: tuple[int, ...], dtype: str) -> Any:
    import numpy as np

    return aligned(math.prod(shape) * np.dtype(dtype).itemsize).view(dtype).reshape(shape)


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
            array = _array(operand.shape, operand.dtype)
            # Labels and places in a window may be zero.
            array[...] = generator.random(operand.shape) if operand.dtype.startswith("float") else 0
            return array

        arrays = [made(operand) for operand in operation.operands(small, job.dtype)]
        keywords = dict(operation.numbers)
        try:
            if size := variant.workspace_size(small, job.tiling):
                keywords["workspace"] = _array((size,), workspace_type(job.dtype).name)
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
    function: Callable[[Job], Any], jobs: Sequence[Job], *, simulate: bool, workers: int | None = None
) -> Iterator[tuple[Job, Any]]:
    """Each job and its result, or a :class:`Failure`, in the order in which they are ready.

    Args:
        function: :func:`compiled`, :func:`executed`, :func:`simulated`, or ``bench.diagnosis.examined``.
        jobs: what to call it with.
        simulate: whether ``numba.cuda`` simulates in these processes, or compiles.
        workers: number of processes; by default a core each.
    """
    verb, workers = function.__name__, workers or available_cores()

    def tell(done: int, first: int) -> str:
        return f"{verb} {done}/{len(jobs)}; {jobs[first].name}"

    work, environment = [(function, job) for job in jobs], {"NUMBA_ENABLE_CUDASIM": str(int(simulate))}
    for number, future in compiling.in_processes(_attempt, work, workers, environment=environment, tell=tell):
        yield jobs[number], _outcome(future)
    if jobs:
        say(f"{verb} {len(jobs)}/{len(jobs)}")


def _attempt(function: Callable[[Job], Any], job: Job) -> Any:
    try:
        return function(job)
    except Exception as error:  # Numba's cannot be sent to another process
        return Failure(f"{type(error).__name__}: {error}")


def _outcome(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BrokenProcessPool:
        return Failure("its process, or one beside it, crashed")


# -- results -----------------------------------------------------------------------------------------------------------


def work_of(operation: str, geometry: Any, dtype: str = "float32") -> roofline.Work:
    """What an operation has to do on a geometry."""
    described = OPERATIONS[operation]
    return roofline.Work(described.flop(geometry), described.traffic(geometry, dtype), dtype)


def work_by(module: Any, work: roofline.Work, geometry: Any) -> roofline.Work:
    """The work as a variant does it: one that has an algorithm of its own says how much arithmetic that takes."""
    return dataclasses.replace(work, flop=module.flop(geometry)) if hasattr(module, "flop") else work


def work_figures(work: roofline.Work) -> dict[str, Any]:
    """Of the work, what goes into the JSON."""
    gpu = roofline.H200
    return {
        "flop": work.flop,
        "traffic_bytes": work.traffic,
        "intensity": work.intensity,
        "bound": work.bound(gpu),
        "h200_floor_us": 1e6 * work.floor_seconds(gpu),
        "h200_copy_us": 1e6 * work.memory_seconds(gpu, copy=True),
    }


def machine_code(operation: str, work: roofline.Work, launches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of a variant that was compiled, what goes into the JSON: its bound, and its launches."""
    counted = OPERATIONS[operation].multiply_adds
    return {**roofline.kernel_bound(work, launches, counted=counted), "launches": launches}


def result(job: Job, compilation: Any, simulation: Any) -> dict[str, Any]:
    """What goes into the JSON: what :func:`compiled` and :func:`simulated` found of a job, and its bounds.

    ``compilation`` and ``simulation`` may be a :class:`Failure`; ``simulation`` may be None.
    """
    work = work_of(job.operation, job.geometry, job.dtype)
    found: dict[str, Any] = {
        "operation": job.operation,
        "variant": job.variant,
        "layer": job.layer,
        "geometry": geometry_text(job.geometry),
        "tiling": dataclasses.asdict(job.tiling),
        "dtype": job.dtype,
        "work": work_figures(work),
    }
    if isinstance(compilation, Failure):
        return found | {"error": compilation.message}
    own = work_by(kernels.load(job.operation, job.variant), work, job.geometry)
    found |= machine_code(job.operation, own, compilation)
    if isinstance(simulation, Failure):
        simulation = {"refused": simulation.message}
    return found | {"simulated": simulation}


# -- what tables show of it --------------------------------------------------------------------------------------------


def main_sites(sites: Sequence[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """The instructions of a simulated kernel that make a twentieth of its accesses or more: those of its main loop."""
    total = sum(site[measure] for site in sites)
    return [site for site in sites if 20 * site[measure] >= total]


def access_cells(simulation: dict[str, Any] | None) -> list[str]:
    """Cells: degree of bank conflicts, sectors a request, and the part of these that is used."""
    if simulation is None or "refused" in simulation:
        return ["", "", ""]
    conflicts = max((site["degree"] for site in main_sites(simulation["shared"], "passes")), default=None)
    loads = [site for site in simulation["global"] if site["access"] == "read"]
    sectors, ideal, requests = (sum(site[name] for site in loads) for name in ("sectors", "ideal", "requests"))
    return [
        "" if conflicts is None else f"{conflicts:.2f}",
        f"{sectors / requests:.1f}" if requests else "",
        f"{ideal / sectors:.0%}" if sectors else "",
    ]


def figure(value: float) -> str:
    """Three digits."""
    return f"{value:.2g}" if value < 1 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def launch_cells(launch: dict[str, Any] | None) -> list[str]:
    """Cells of a launch: registers, shared memory, theoretical occupancy."""
    if launch is None:
        return ["", "", ""]
    return [
        f"{launch['registers']}{'!' if launch['spill_bytes'] or launch['local_bytes'] else ''}",
        str(launch["static_shared_bytes"] + launch["dynamic_shared_bytes"] or ""),
        f"{launch['occupancy']['share']:.0%}",
    ]


def tiling_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """For each variant, what the numbers of its tilings are."""
    lines = {
        f"{found.get('operation', '')} {found['variant']}: {' x '.join(found['tiling'])}".strip(): None
        for found in results
        if found["tiling"]
    }
    return ["Tilings", *lines]
