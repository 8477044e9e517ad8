"""What is wrong with a convolution kernel, in words: one tiling on one geometry, in the simulator, without a GPU.

:func:`examine` runs it on random inputs with its threads in shuffled order, every access traced, and a guard zone
before and after each array; then it compares the result with float64 loops (``bench/reference.py``). What it finds is a
list of :class:`Finding` s, causes before effects: a missing barrier comes before the wrong results that it leads to.
"""

from __future__ import annotations

import dataclasses
import linecache
import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import reference
from bench.inspection import TERMS, Job, accesses, aligned, geometry_text
from gpuconv import kernels
from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.operations import OPERATIONS
from gpuconv.lab.machine_code import Cause
from gpuconv.tuning.measure import compare, differing

#: Elements of a guard zone. A whole number of 128-bit accesses, so that arrays begin as aligned as those of a user.
_GUARD = 64
_PATTERN = 0xA5
#: Sites of memory accesses worth a word: passes by ideal ones, and the part of the sectors that is needed.
_CONFLICTS, _USED = 2.0, 0.5

#: What makes a kernel wrong.
WRONG = (
    "unreadable",
    "syntax error",
    "contract",
    "endless loop",
    "crash",
    "compiler",
    "error",
    "race",
    "uninitialized read",
    "out-of-bounds read",
    "out-of-bounds write",
    "out-of-bounds atomic",
    "divergent barrier",
    "guard zone",
    "input changed",
    "unwritten",
    "written twice",
    "NaN",
    "wrong result",
)
#: What only costs time. All others are budgets that a right kernel may exceed: "float64", "spill", "local memory".
COSTS = ("bank conflicts", "uncoalesced", "not compiled")


@dataclass(frozen=True)
class Finding:
    """Something to say of a kernel.

    Attributes:
        kind: one of :data:`WRONG`, one of :data:`COSTS`, or "float64", "spill", "local memory".
        text: one or more lines.
        where: what tells it from other findings of its kind: lines of source, or nothing.
    """

    kind: str
    text: str
    where: tuple[str, ...] = ()

    @property
    def wrong(self) -> bool:
        """Whether it makes the kernel wrong."""
        return self.kind in WRONG


@dataclass(frozen=True)
class Examination:
    """What :func:`examine` found.

    Attributes:
        geometry: what it ran on.
        findings: causes before effects.
        trace: what the simulator saw; None where the kernel did not come to its end.
        error: what it raised.
    """

    geometry: Conv2dGeometry
    findings: tuple[Finding, ...]
    trace: Any = None
    error: Exception | None = None

    def simulated(self) -> dict[str, Any]:
        """In the form of :func:`bench.inspection.simulated`."""
        if self.trace is None:
            return {"refused": "; ".join(finding.text for finding in self.findings)}
        faults = [finding.text for finding in self.findings if finding.wrong]
        return {"layer": geometry_text(self.geometry), "faults": faults, **accesses(self.trace)}


def source_lines(sites: Sequence[str]) -> str:
    """Each ``file:line`` with what is written there, for messages."""
    lines = []
    for site in dict.fromkeys(sites):
        path, _, number = site.rpartition(":")
        lines.append(f"\n    {site}: {linecache.getline(path, int(number)).strip()}")
    return "".join(lines)


# -- running it ----------------------------------------------------------------------------------------------


def _guarded(shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
    """An array, and the bytes of all its memory, in which a guard zone lies on either side."""
    kind, size = np.dtype(dtype), int(np.prod(shape))
    memory = aligned((size + 2 * _GUARD) * kind.itemsize)
    memory[...] = _PATTERN
    return memory.view(kind)[_GUARD : _GUARD + size].reshape(shape), memory


def examine(
    module: Any, operation: str, geometry: Conv2dGeometry, tiling: Any, dtype: str, *, seed: int, bias: bool = True
) -> Examination:
    """Run a variant in the simulator, which is active, and find what is wrong.

    Args:
        module: a :class:`gpuconv.kernels.variant.Variant`.
        operation: a convolution, or a gradient of one.
        geometry: small, as each multiply-add takes about a microsecond.
        tiling: one of the module's.
        dtype: element type.
        seed: of the inputs, and of the order of the threads.
        bias: whether a forward convolution has one.
    """
    from gpuconv.lab import simulator

    generator = np.random.default_rng(seed)
    operands = OPERATIONS[operation].operands(geometry, dtype)
    arrays, memories = zip(*(_guarded(operand.shape, dtype) for operand in operands), strict=True)
    *inputs, result = arrays
    for array in inputs:
        array[...] = generator.standard_normal(array.shape)
    result[...] = np.nan
    if operation == "conv2d" and not bias:
        inputs[2] = None
    before = [None if array is None else array.copy() for array in inputs]
    options = {}
    try:
        if size := module.workspace_size(geometry, tiling):
            options["workspace"] = _guarded((size,), dtype)[0]
            options["workspace"][...] = np.nan
        with simulator.trace(seed=seed) as trace:
            module.launch(*inputs, result, geometry, tiling, None, **options)
    except Exception as error:
        return Examination(geometry, (_failure(error, getattr(module, "__file__", None)),), error=error)

    findings = [_fault(fault) for fault in trace.faults]
    names = [array.name for array in OPERATIONS[operation].arrays]
    for name, array, old in zip(names[:-1], inputs, before, strict=True):
        if array is not None and not np.array_equal(array, old):
            findings.append(Finding("input changed", f"{name} is an input, and was written to"))
    for name, memory in zip(names, memories, strict=True):
        zones = np.split(memory, [_GUARD * result.itemsize, memory.size - _GUARD * result.itemsize])[::2]
        for zone, side in zip(zones, ("before", "after"), strict=True):
            if (zone != _PATTERN).any():
                findings.append(Finding("guard zone", f"out-of-bounds write: the memory {side} {name} was written to"))
    findings += _judge(operation, geometry, dtype, inputs, result, trace)
    return Examination(geometry, (*findings, *_costs(trace)), trace)


def examine_like(module: Any, operation: str, geometry: Conv2dGeometry, tiling: Any, dtype: str) -> Examination:
    """:func:`examine` on a small geometry that is like a large one, and which the tiling suits."""
    for terms in TERMS:
        small = OPERATIONS[operation].small(geometry, terms)
        found = examine(module, operation, small, tiling, dtype, seed=0)
        if not isinstance(found.error, ValueError):  # a tiling that this one is too small for
            break
    return found


def examined(job: Job) -> dict[str, Any]:
    """A job on a small layer of the kind, as :func:`bench.inspection.simulated`; for a process that simulates."""
    from gpuconv.lab import simulator

    simulator.activate()
    return examine_like(
        kernels.load(job.operation, job.variant), job.operation, job.geometry, job.tiling, job.dtype
    ).simulated()


def _failure(error: Exception, path: str | None) -> Finding:
    """What a kernel, or the function that launches it, raised; with the last line of its own file on the way."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    sites = [
        f"{frame.filename}:{frame.lineno}"
        for raised in reversed(chain)
        for frame in reversed(traceback.extract_tb(raised.__traceback__))
        if frame.filename == path
    ][:1]
    return Finding("error", f"{type(error).__name__}: {error}{source_lines(sites)}", tuple(sites))


def _fault(fault: Any) -> Finding:
    """A fault of the trace, with the lines that it is in and what it usually comes from."""
    if fault.kind == "race":
        hint = "nothing orders the two accesses"
        hint += "" if "by block" in fault.details else ": is a barrier (cuda.syncthreads) missing between these lines?"
    elif fault.kind == "uninitialized read":
        hint = "nobody wrote it: the tile that is fetched, with its halo, is too small, or not there yet"
    elif fault.kind.startswith("out-of-bounds"):
        hint = "it is outside of the array: an index is not compared with the array's size"
    else:
        hint = "all threads of a block have to come to the same barrier"
    times = f", {fault.count} times" if fault.count > 1 else ""
    return Finding(fault.kind, f"{fault.details}{times}; {hint}{source_lines(fault.sites)}", fault.sites)


# -- the result ----------------------------------------------------------------------------------------------


def _judge(
    operation: str, g: Conv2dGeometry, dtype: str, inputs: Sequence[Any], result: Any, trace: Any
) -> Iterator[Finding]:
    if not result.size:
        return
    if not trace.launches:
        yield Finding("unwritten", "nothing was launched, and the result has elements")
        return
    wanted = reference.expected(operation, inputs, g)
    writes = trace.writes(result)
    if (unwritten := writes == 0).any():
        yield Finding("unwritten", f"{_some(unwritten)} of the result were not written: {_region(unwritten)}")
    if (writes > 1).any():
        yield Finding("written twice", f"{_some(writes > 1)} of the result were written {writes.max()} times")
    wrong = differing(result, wanted, dtype) & ~unwritten
    if not wrong.any():
        if not unwritten.any() and (fault := compare(np.asarray(result, np.float64), wanted, dtype).fault):
            yield Finding("wrong result", f"it {fault}: is it computed in half precision?")
        return
    kind = "NaN" if (np.isnan(result) & wrong).any() else "wrong result"
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    lines = [
        f"{_some(wrong)} of the result are wrong; the first is {_at(first)}: {result[first]:.6g} instead of "
        f"{wanted[first]:.6g}{_tile(trace.writers(result), first)}"
    ]
    if kind == "NaN":
        lines.append(f"{_some(np.isnan(result) & wrong)} are NaN: something was read that nobody wrote")
    if not wrong.all():
        if (region := _region(wrong)) != "some of [:, :, :, :]":
            lines.append(f"wrong are {region}")
        if side := _side(wrong, trace.writers(result), g):
            lines.append(side)
    if guess := _guess(operation, g, inputs, result, wanted, dtype):
        lines.append(guess)
    yield Finding(kind, "\n    ".join(lines))


def _some(mask: Any) -> str:
    return f"{int(mask.sum())} of {mask.size} elements"


def _at(index: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, index)) + "]"


def _region(mask: Any) -> str:
    """The smallest box that holds what is set, as a slice."""
    parts = []
    for axis in range(mask.ndim):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        low, high = int(where[0]), int(where[-1])
        whole = (low, high) == (0, mask.shape[axis] - 1)
        parts.append(":" if whole else str(low) if low == high else f"{low}:{high + 1}")
    full = mask[_box(mask)].all()
    return ("all" if full else "some") + f" of [{', '.join(parts)}]"


def _box(mask: Any) -> tuple[slice, ...]:
    where = np.argwhere(mask)
    return tuple(slice(int(low), int(high) + 1) for low, high in zip(where.min(0), where.max(0), strict=True))


def _tile(writers: Any, index: tuple[int, ...]) -> str:
    """The block that wrote an element, and which elements it wrote."""
    block = writers[index]
    mine = (writers == block).all(axis=-1)
    return f", by block {tuple(int(i) for i in block)}, whose tile is {_region(mine)}"


def _side(wrong: Any, writers: Any, g: Conv2dGeometry) -> str:
    """The edge of their tiles that all wrong elements lie at, if there is one: a halo that is missing or too short."""
    if wrong.shape != g.output_shape:
        return ""
    near = dict.fromkeys(("top", "bottom", "left", "right"))
    for block in np.unique(writers[wrong], axis=0):
        mine = (writers == block).all(axis=-1)
        box, where = _box(mine), np.argwhere(wrong & mine)
        for axis, window, before, after in ((2, g.r, "top", "bottom"), (3, g.s, "left", "right")):
            start, stop = box[axis].start, box[axis].stop
            # As far as a window reaches, but not the whole tile.
            reach = min(window, stop - start) - 1
            if (where[:, axis] - start).max() >= reach:
                near.pop(before, None)
            if (stop - 1 - where[:, axis]).max() >= reach:
                near.pop(after, None)
    if not near:
        return ""
    return (
        f"all of them lie at the {' and '.join(near)} edge of their tile: the halo that is fetched there is missing, "
        "or off by one"
    )


def _guess(operation: str, g: Conv2dGeometry, inputs: Sequence[Any], result: Any, wanted: Any, dtype: str) -> str:
    """A known mistake that gives just this result."""
    for words, guess in _mistakes(operation, g, inputs, wanted):
        if not differing(result, guess, dtype).any():
            return f"this is what comes out {words}"
    return ""


def _mistakes(operation: str, g: Conv2dGeometry, inputs: Sequence[Any], wanted: Any) -> Iterator[tuple[str, Any]]:
    def without(weight: Any, *index: Any) -> Any:
        less = weight.copy()
        less[index] = 0
        return less

    if operation == "conv2d":
        x, weight, bias = inputs
        if bias is not None:
            yield "without the bias", reference.conv2d(x, weight, None, g)
        variants = [("if the window is turned around, as in a mathematical convolution", weight[:, :, ::-1, ::-1])]
        variants += [
            ("if the last row of the window is left out: off by one", without(weight, slice(None), slice(None), -1)),
            ("if the last column of the window is left out: off by one", without(weight, ..., -1)),
            ("if the last channel is left out: off by one", without(weight, slice(None), -1)),
        ]
        for words, changed in variants:
            yield words, reference.conv2d(x, changed, bias, g)
        # In the padded input, with a border of one more zero.
        wide = np.pad(x, ((0, 0), (0, 0), *((before + 1, after + 1) for before, after in g.padding)))
        h, w = wide.shape[2] - 2, wide.shape[3] - 2
        plain = dataclasses.replace(g, h=h, w=w, padding=((0, 0), (0, 0)))
        for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
            moved = reference.conv2d(wide[:, :, down : down + h, right : right + w], weight, bias, plain)
            yield (
                f"if the input is read one {'row' if right == 1 else 'column'} off, as by a halo that begins there",
                moved,
            )
    yield "if the result is zero", np.zeros_like(wanted)


# -- what costs time -----------------------------------------------------------------------------------------


def _costs(trace: Any) -> Iterator[Finding]:
    """Bank conflicts, and loads and stores that move much in vain; those of the instructions that are run often."""
    shared, sectors = trace.bank_conflicts, trace.sectors
    for site in shared:
        if 20 * site.passes >= sum(other.passes for other in shared) and site.degree >= _CONFLICTS:
            text = f"a warp's {site.access} of {site.array} takes {site.degree:.1f} passes instead of one"
            yield Finding("bank conflicts", f"{text}{source_lines([site.site])}", (site.site,))
    for site in sectors:
        if 20 * site.sectors >= sum(other.sectors for other in sectors) and site.efficiency < _USED:
            text = (
                f"a warp's {site.access} of {site.array} touches {site.per_request:.1f} sectors of 32 bytes, of which "
                f"{site.efficiency:.0%} is needed: neighbouring threads should access neighbouring elements"
            )
            yield Finding("uncoalesced", f"{text}{source_lines([site.site])}", (site.site,))


def budgets(launches: Sequence[dict[str, Any]], doubles: Sequence[Cause]) -> Iterator[Finding]:
    """What a compiled kernel in float32 should not have.

    Args:
        launches: what ``bench.inspection.compiled`` says of each.
        doubles: where float64 comes from.
    """
    for launch in launches:
        if launch["float64_instructions"]:
            text = (
                f"{launch['float64_instructions']} instructions of {launch['kernel']} compute in float64, which takes "
                "2 to 64 times as long"
            )
            yield _double(text, [each for each in doubles if not each.options])
        elsewhere = [each for each in doubles if each.options]
        if elsewhere:
            options = ", ".join(f"{name}={value}" for name, value in elsewhere[0].options)
            yield _double(f"with {options}, {launch['kernel']} computes in float64", elsewhere)
        if launch["spill_bytes"]:
            text = f"{launch['kernel']} needs more than {launch['registers']} registers: {launch['spill_bytes']} bytes "
            yield Finding("spill", f"{text}a thread are kept in memory; compute less a thread")
        elif launch["local_bytes"]:
            text = f"{launch['kernel']} keeps {launch['local_bytes']} bytes a thread in local memory: an array whose "
            yield Finding("local memory", f"{text}index is not known to the compiler; unroll the loop over it")


def _double(text: str, causes: Sequence[Cause]) -> Finding:
    told = [f"{source_lines([each.site])}\n        {each.what}: write {each.instead}" for each in causes]
    return Finding("float64", "".join([text, *told]), tuple(each.site for each in causes))


def relabelled(finding: Finding, path: str, name: str) -> Finding:
    """With a file called as the user called it, and not by its whole path."""
    pattern = re.compile(re.escape(path))
    where = tuple(pattern.sub(name, site) for site in finding.where)
    return Finding(finding.kind, pattern.sub(name, finding.text), where)
