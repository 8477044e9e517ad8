"""The longest path of a captured training step of LeNet-5: ``python -m bench.static --model lenet --step --path``.

In a captured step a kernel waits for those whose memory it shares (``gpuconv/backends/cuda/branches.py``), so a step
takes as long as the slowest kernels of which each waits for the one before. Here they are, for the kernels that the
rule takes and for the step as it was before: a kernel for each block forward, and the gradients of convolutions added
up by kernels before the update; and a chain of three layers in one kernel, then the loss in one block, then the
gradients back through the chain. The step is recorded as in ``bench/step.py``, and the instructions of each kernel's
longest thread are counted by running two of its blocks in the PTX interpreter. What an H100 measured of a kernel in
these blocks stands beside.

The times are estimates, by what an H100 measured of such kernels in such graphs: a node that does nothing takes
:data:`NODE` µs; where few warps share a multiprocessor, the longest thread takes :data:`ARITHMETIC` µs an instruction;
and :data:`FROM_CACHE` µs where it waits for the second-level cache again and again, as the kernels of fully connected
layers did in that run. A kernel that fetches all of its weights at once may be anywhere between. What the edges
themselves cost, and kernels that run beside one another, is not in them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from bench import step
from bench.command import ROOT
from bench.inspection import Failure, Job, executed, in_processes
from bench.report import Table
from bench.roofline import H200

#: Microseconds of a node, and of an instruction of the longest thread; see above.
NODE, ARITHMETIC, FROM_CACHE = 1.1, 0.0025, 0.006
#: Kernels that multiply with weights from the second-level cache.
_WITH_WEIGHTS = ("linear_chain", "linear_chain_first", "linear_chain_grad_input", "linear_chain_loss_grad_input")
#: A kernel for each block forward; sums over parts of the batch by kernels of their own.
_APART = {
    "conv2d_relu_max_pool2d_pair": "composed",
    "sgd_update_all_of_parts": "composed",
    "adam_update_all_of_parts": "composed",
}
#: The step as it was before, and as the rule takes it.
COMPOSITIONS: dict[str, Mapping[str, str]] = {
    "with a kernel for each block, one for the classifier, one for the loss; sums before the update": {
        "linear_chain": "rows", "linear_chain_loss_grad_input": "composed", **_APART,
    },
    "with a kernel for each block; sums before the update": _APART,
    "as the rule takes it": {},
    "as the rule takes it, and windows of block 2 scattered": {"conv2d_relu_max_pool2d_grad_input": "scattered"},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Node:
    """A launch of the step.

    Attributes:
        kernel: its name.
        blocks, threads: of the grid, and of a block.
        bytes: of its arrays, each counted once.
        job: its variant, tiling and geometry.
        number: which of that variant's launches it is.
        waits_for: numbers of the launches before it whose memory it shares.
    """

    kernel: str
    blocks: int
    threads: int
    bytes: int
    job: Job
    number: int
    waits_for: frozenset[int]


def nodes(batch: int, optimizer: str = "sgd", variants: Mapping[str, str] | None = None) -> list[Node]:
    """The launches of a training step in their order.

    Args:
        batch: images.
        optimizer: 'sgd' or 'adam'.
        variants: by operation, in place of those that the rule takes.

    Raises:
        BackendUnavailable: neither a GPU nor the simulator can be used here.
    """
    from gpuconv import tuning
    from gpuconv.backends.cuda.graph import SimulatedGraph

    with contextlib.ExitStack() as stack:
        for operation, variant in (variants or {}).items():
            stack.enter_context(tuning.use_variant(operation, variant))
        queued = stack.enter_context(_queued())
        # As on a GPU, memory that the step frees is used again; and gradients are not copied, as nobody keeps them.
        launches = step.launches(batch, optimizer, graph=SimulatedGraph())
    found: list[Node] = []
    before: list[list[Any]] = []
    for one, (launch, accesses, job, number) in zip(step.recorded(launches), queued, strict=True):
        assert launches[len(found)][0] is launch, "a launch that no plan has queued"
        waits_for = frozenset(
            at for at, others in enumerate(before) if any(a.conflicts(b) for a in accesses for b in others)
        )
        before.append(accesses)
        found.append(Node(one.kernel, one.blocks, one.threads, one.bytes, job, number, waits_for))
    return found


@contextlib.contextmanager
def _queued() -> Iterator[list[tuple[Any, list[Any], Job, int]]]:
    """The launches that the CUDA backend's plans queue in a ``with`` block, their accesses, and whose they are."""
    from gpuconv import backends
    from gpuconv.kernels import device

    backend: Any = backends.get("cuda")
    queue, add_up, noted = backend._queue, backend._add_up, []
    #: By the id of its rows, whose launch left a sum.
    left: dict[int, Job] = {}

    def note(launches: list[Any], job: Job, reads: set[int], first: int = 0) -> None:
        for number, (launch, arguments) in enumerate(launches, first):
            noted.append((launch, _accesses(launch, arguments, reads), job, number))
            launch(None, *arguments)  # for those who record around this

    def noting(plan: Any, *inputs: Any, results: Any = None, **options: Any) -> Any:
        with device.recording() as launches:
            made = queue(plan, *inputs, results=results, **options)
        given = results if results is not None else made if isinstance(made, tuple) else (made,)
        choice = plan.choice
        job = Job(choice.operation, choice.variant, "", plan.geometry, choice.tiling, "float32", ())
        note(launches, job, _only_read(choice.operation, (*inputs, *given), options))
        left[id(options.get("workspace"))] = job
        return made

    def adding(results: list[Any], rows: Any, parts: int) -> None:
        with device.recording() as launches:
            add_up(results, rows, parts)
        note(launches, left[id(rows)], {rows.ctypes.data}, first=1)

    backend._queue, backend._add_up = noting, adding
    try:
        yield noted
    finally:
        del backend._queue, backend._add_up


def _only_read(operation: str, arrays: tuple[Any, ...], options: Mapping[str, Any]) -> set[int]:
    """Addresses of an operation's arrays that it does not write."""
    from gpuconv.kernels.operations import IN, OPERATIONS

    described = OPERATIONS[operation]
    named = {array.name: array for array in described.arrays}
    pairs = [*zip(described.positional, arrays, strict=True)]
    pairs += [(named[name], value) for name, value in options.items() if name in named]
    return {
        one.ctypes.data
        for array, value in pairs
        for one in (value if isinstance(value, (list, tuple)) else [value])
        if one is not None and array.role == IN
    }


def _accesses(launch: Any, arguments: tuple[Any, ...], reads: set[int]) -> list[Any]:
    from gpuconv.backends.cuda.branches import Access

    found = []
    for at, argument in enumerate(arguments):
        for one in argument if isinstance(argument, tuple) else (argument,):
            if hasattr(one, "nbytes") and one.ndim:
                start = one.ctypes.data
                found.append(Access(start, start + one.nbytes, start not in reads and at not in launch.reads))
    return found


def longest(found: list[Node], costs: list[float]) -> list[int]:
    """The numbers of the nodes on the path whose costs have the largest sum, in their order."""
    totals: list[float] = []
    before: list[int | None] = []
    for node, cost in zip(found, costs, strict=True):
        last = max(node.waits_for, key=totals.__getitem__, default=None)
        before.append(last)
        totals.append(cost + (0 if last is None else totals[last]))
    path: list[int] = []
    at: int | None = max(range(len(found)), key=totals.__getitem__, default=None)
    while at is not None:
        path.insert(0, at)
        at = before[at]
    return path


def instructions(jobs: list[Job]) -> dict[Job, list[int]]:
    """Instructions that the longest thread of each job's launches executes.

    Raises:
        RuntimeError: a kernel cannot be compiled or interpreted.
    """
    counted = {}
    for job, outcome in in_processes(executed, jobs, simulate=False):
        if isinstance(outcome, Failure):
            raise RuntimeError(f"{job.name}: {outcome.message}")
        counted[job] = [int(one["thread"]) for one in outcome]
    return counted


def measured(batch: int) -> dict[tuple[str, int, int], float]:
    """Microseconds of the step's kernels in the latest committed run on a GPU, by name, blocks and threads."""
    runs = sorted(
        (json.loads(path.read_text()) for path in (ROOT / "bench" / "results").glob("lenet-gpu-*.json")),
        key=lambda run: run["date"],
    )
    found = [one for run in runs[-1:] for one in run["results"] if one["batch"] == batch]
    return {(k["kernel"], k["blocks"], k["threads"]): k["us"] for one in found for k in one["kernels"]}


def estimates(node: Node, count: int) -> tuple[float, float]:
    """Microseconds of a node: with instructions at their usual rate; with weights that are waited for again and again.

    Args:
        node: the launch.
        count: instructions of its longest thread.
    """
    memory, slow = node.bytes / H200.copy_bandwidth * 1e6, node.kernel in _WITH_WEIGHTS
    rates = ARITHMETIC, FROM_CACHE if slow else ARITHMETIC
    first, second = (NODE + max(rate * count, memory) for rate in rates)
    return first, second


def table(
    title: str, found: list[Node], counted: Mapping[Job, list[int]], times_of: Mapping[tuple[str, int, int], float]
) -> tuple[Table, dict[str, Any]]:
    """The longest path as a table, and as what JSON holds: of each node of the step its figures.

    Args:
        title: of the table.
        found: the step.
        counted: of :func:`instructions`.
        times_of: of :func:`measured`.
    """
    counts = [counted[node.job][node.number] for node in found]
    times = [estimates(node, count) for node, count in zip(found, counts, strict=True)]
    path = longest(found, [sum(pair) for pair in times])
    seen = [times_of.get((node.kernel, node.blocks, node.threads)) for node in found]
    rows = [
        [
            found[at].kernel, found[at].job.variant, f"{found[at].blocks:,} x {found[at].threads:,}",
            f"{counts[at]:,}", f"{found[at].bytes:,}", *(f"{time:.1f}" for time in times[at]),
            "" if seen[at] is None else f"{seen[at]:.1f}",
        ]
        for at in path
    ]  # fmt: skip
    sums = [sum(times[at][column] for at in path) for column in range(2)]
    size = sum(found[at].bytes for at in path)
    there = [seen[at] or math.nan for at in path]
    whole = "" if math.isnan(sum(there)) else f"{sum(there):.1f}"
    rows.append(
        [f"{len(path)} of {len(found)} kernels", "", "", "", f"{size:,}", *(f"{one:.1f}" for one in sums), whole]
    )
    header = ["kernel", "variant", "blocks x threads", "instructions", "bytes", "µs ≥", "µs ≤", "measured"]
    document = [
        {
            "kernel": node.kernel, "variant": node.job.variant, "tiling": dataclasses.asdict(node.job.tiling),
            "blocks": node.blocks, "threads": node.threads, "bytes": node.bytes, "instructions": count,
            "us": list(pair), "waits_for": sorted(node.waits_for), "on_path": at in path,
        }
        for at, (node, count, pair) in enumerate(zip(found, counts, times, strict=True))
    ]  # fmt: skip
    return Table(title, header, rows, left=True), {"title": title, "us": sums, "nodes": document}
