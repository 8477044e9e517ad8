"""Barriers of a block and of the grid, and fences. Source: PTX ISA, chapters 9.7.13.1 to 9.7.13.4."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.lab.ptx.program import Instruction, Program
from gpuconv.lab.ptx.values import ENDED, PREDICATE, RUNNING, U32, WAITING, WARP, Array, Lanes, PtxError

if TYPE_CHECKING:
    from gpuconv.lab.ptx.machine import Machine, Step

_BARRIERS = 16
_REDUCTIONS: dict[str, Callable[[Array], Any]] = {
    "popc": lambda given: np.uint32(np.count_nonzero(given)),
    "and": lambda given: given.all(),
    "or": lambda given: given.any(),
}


class _Blocks:
    """Who waits at the barriers of each block, and what has arrived without waiting."""

    def __init__(self, machine: Machine) -> None:
        #: Barrier of each thread that waits: 16 times its block, plus the number.
        self.barrier = np.full(machine.count, -1, np.int64)
        self.offered = np.zeros(machine.count, bool)
        self.arrived = np.zeros(machine.blocks * _BARRIERS, np.int64)
        #: How many threads each waits for; 0 for all of the block.
        self.wanted = np.zeros(machine.blocks * _BARRIERS, np.int64)


def _state(machine: Machine) -> _Blocks:
    if "barriers" not in machine.kept:
        machine.kept["barriers"] = _Blocks(machine)
    found: _Blocks = machine.kept["barriers"]
    return found


def _barrier(program: Program, one: Instruction) -> Step:
    """``bar`` and ``barrier``: ``sync``, ``arrive``, ``red``, with a number and, if given, how many threads."""
    parts = [part for part in one.parts[1:] if part not in ("cta", "aligned")]
    kind = parts[0]
    operands = list(one.operands)
    target = operands.pop(0) if kind == "red" else ""
    predicate = operands.pop() if kind == "red" else ""
    number, count = operands[0], operands[1] if len(operands) > 1 else None
    aligned = one.parts[0] == "bar" or "aligned" in one.parts

    def step(machine: Machine, lanes: Lanes) -> None:
        state = _state(machine)
        names = machine.column(number, U32, lanes).astype(np.int64)
        if (names >= _BARRIERS).any():
            raise PtxError("a block has 16 barriers")
        where = machine.block[lanes] * _BARRIERS + names
        state.wanted[where] = 0 if count is None else machine.column(count, U32, lanes)
        if machine.shadow is not None and kind == "arrive":
            machine.shadow.order(lanes)
        if kind == "arrive":
            np.add.at(state.arrived, where, 1)
        else:
            machine.state[lanes] = WAITING
            state.barrier[lanes] = where
            if predicate:
                state.offered[lanes] = machine.read(predicate, PREDICATE, lanes)
        _release(machine, state, np.unique(where), aligned, target)

    step.is_control = True  # type: ignore[attr-defined]
    return step


def _release(machine: Machine, state: _Blocks, barriers: Array, aligned: bool, target: str) -> None:
    """Let the threads go on whose barrier all have reached."""
    waiting = np.flatnonzero((machine.state == WAITING) & (state.barrier >= 0))
    size = machine.blocks * _BARRIERS
    here = np.bincount(state.barrier[waiting], minlength=size) + state.arrived
    wanted = np.where(state.wanted == 0, machine.threads, state.wanted)[barriers]
    if (state.wanted[barriers] % WARP).any():
        raise PtxError("the number of threads of a barrier is a multiple of 32")
    complete = barriers[here[barriers] >= wanted]
    if not len(complete):
        return
    done = np.zeros(size, bool)
    done[complete] = True
    released = waiting[done[state.barrier[waiting]]]
    if aligned:
        _check_places(machine, state, released)
    if target:
        instruction = machine.program.instructions
        kind = next(part for part in instruction[int(machine.at[released[0]]) - 1].parts if part in _REDUCTIONS)
        for barrier in complete:
            mine = released[state.barrier[released] == barrier]
            machine.write(target, np.full(len(mine), _REDUCTIONS[kind](state.offered[mine])), mine)
    machine.state[released] = RUNNING
    state.barrier[released] = -1
    state.arrived[complete] = 0
    if machine.shadow is not None:
        machine.shadow.order(released)


def _check_places(machine: Machine, state: _Blocks, released: Array) -> None:
    """Threads of a warp come to a barrier at the same place; those of a block too, if it waits for all of them."""
    whole = state.wanted[state.barrier[released]] == 0
    group = np.where(whole, state.barrier[released], machine.blocks * _BARRIERS + machine.warp[released])
    order = np.argsort(group, kind="stable")
    places, groups = machine.at[released][order], group[order]
    if ((places[1:] != places[:-1]) & (groups[1:] == groups[:-1])).any():
        raise PtxError("threads wait at a barrier that other threads of their block do not reach: they wait at another")


def grid_barrier(machine: Machine, lanes: Lanes) -> None:
    """All threads of the grid wait for each other."""
    waiting = machine.kept.setdefault("grid", np.zeros(machine.count, bool))
    waiting[lanes] = True
    machine.state[lanes] = WAITING
    release_grid(machine)


def release_grid(machine: Machine) -> bool:
    """Let them go on if all that have not left the kernel are there; says whether they do."""
    waiting = machine.kept.get("grid")
    if waiting is None or not waiting.any():
        return False
    complete = bool((waiting | (machine.state == ENDED)).all())
    if complete:
        machine.state[waiting] = RUNNING
        waiting[:] = False
        if machine.shadow is not None:
            machine.shadow.order(slice(None))
    return complete


def _cluster_barrier(program: Program, one: Instruction) -> Step:
    """``barrier.cluster.arrive`` and ``wait``: threads of all blocks of a cluster."""
    arrives = "arrive" in one.parts

    def step(machine: Machine, lanes: Lanes) -> None:
        arrived, waited = machine.kept.setdefault("cluster", np.zeros((2, machine.count), np.int64))
        if arrives:
            if (arrived[lanes] > waited[lanes]).any():
                raise PtxError("a second arrival at the barrier of the cluster, without a wait between the two")
            arrived[lanes] += 1
        else:
            if (arrived[lanes] == waited[lanes]).any():
                raise PtxError("a wait at the barrier of the cluster, without an arrival before it")
            waited[lanes] += 1
            machine.state[lanes] = WAITING
            release_clusters(machine)

    step.is_control = True  # type: ignore[attr-defined]
    return step


def release_clusters(machine: Machine) -> bool:
    """Let the threads go on that wait for their cluster, all of which has arrived or left; says whether some do."""
    if "cluster" not in machine.kept:
        return False
    arrived, waited = machine.kept["cluster"]
    here = (machine.state == WAITING) & (waited == arrived) & (waited > 0)
    if "barriers" in machine.kept:
        here &= machine.kept["barriers"].barrier < 0
    if "grid" in machine.kept:
        here &= ~machine.kept["grid"]
    cluster = machine.first_block // machine.cluster
    phase = np.full(int(cluster[-1]) + 1, np.iinfo(np.int64).max)
    alive = machine.state != ENDED
    np.minimum.at(phase, cluster[alive], arrived[alive])
    released = here & (waited <= phase[cluster])
    if not released.any():
        return False
    machine.state[released] = RUNNING
    if machine.shadow is not None:
        machine.shadow.order(np.flatnonzero(released))
        machine.shadow.order_cluster(np.flatnonzero(released))
    return True


def _fence(program: Program, one: Instruction) -> Step:
    """A fence orders what its thread did before those of others; also before what asynchronous units do."""
    proxy = "proxy" in one.parts

    def step(machine: Machine, lanes: Lanes) -> None:
        if machine.shadow is not None:
            (machine.shadow.fence_proxy if proxy else machine.shadow.order)(lanes)

    return step


MAKERS: dict[str, Callable[[Program, Instruction], Step]] = {
    "bar": _barrier,
    "barrier.cluster": _cluster_barrier,
    "barrier": _barrier,
    "membar": _fence,
    "fence": _fence,
}
