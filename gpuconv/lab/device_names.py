"""What kernels find in ``numba.cuda`` while they are simulated: barriers, operations of a warp, memory, atomics."""

from __future__ import annotations

import functools
import importlib
import math
import operator
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.lab import integers, launching, records
from gpuconv.lab.cards import Chosen
from gpuconv.lab.launching import GRID, MAX_STATIC_SHARED, SPIN, Launch, Requests, SimulationError, syncwarp
from gpuconv.lab.places import WARP, Array, Site, site
from gpuconv.lab.traced_arrays import poison
from gpuconv.lab.traced_local import TracedLocal

ALL_LANES = 0xFFFFFFFF
_names = launching.names


def _grid(ndim: int) -> Any:
    block, size, thread = _names["blockIdx"], _names["blockDim"], _names["threadIdx"]
    if ndim == 1:
        return block.x * size.x + thread.x
    return _per_direction(ndim, (b * s + t for b, s, t in zip(block, size, thread, strict=True)))


def _gridsize(ndim: int) -> Any:
    extent = _per_direction(ndim, (g * b for g, b in zip(_names["gridDim"], _names["blockDim"], strict=True)))
    return extent[0] if ndim == 1 else extent


def _per_direction(ndim: int, values: Any) -> tuple[int, ...]:
    if ndim not in (1, 2, 3):
        raise RuntimeError(f"Global ID has 1-3 dimensions. {ndim} requested")
    return tuple(values)[:ndim]


# -- barriers and operations of a warp -------------------------------------------------------------------


def _barrier(reduce: Callable[[list[bool]], int]) -> Callable[[Any], Any]:
    def barrier(predicate: Any) -> Any:
        if isinstance(predicate, (bool, np.bool_)):
            raise TypeError(
                "syncthreads_count, _and and _or take an integer: numba-cuda does not compile them with a bool; "
                "types.int32(1) if ... else types.int32(0) will do"
            )
        return launching.here().hub.switch(reduce, bool(predicate))

    return barrier


def _shuffle(source: Callable[[int, int], int]) -> Callable[[Requests], dict[int, Any]]:
    """A lane gets the value of the lane ``source(lane, operand)``, or its own if that is outside the warp."""

    def combine(requests: Requests) -> dict[int, Any]:
        answers = {}
        for lane, (own, operand) in requests.items():
            other = source(lane, operand)
            if 0 <= other < WARP and other not in requests:
                raise SimulationError(f"shuffle: lane {lane} reads from lane {other}, which does not take part")
            answers[lane] = requests[other][0] if 0 <= other < WARP else own
        return answers

    return combine


def _vote(judge: Callable[[dict[int, bool]], Any]) -> Callable[[Requests], dict[int, Any]]:
    def combine(requests: Requests) -> dict[int, Any]:
        return dict.fromkeys(requests, judge({lane: bool(value) for lane, (value, _) in requests.items()}))

    return combine


def _match_any(requests: Requests) -> dict[int, Any]:
    return {
        lane: sum(1 << other for other, (theirs, _) in requests.items() if theirs == value)
        for lane, (value, _) in requests.items()
    }


def _match_all(requests: Requests) -> dict[int, Any]:
    lanes = sum(1 << lane for lane in requests)
    same = set(_match_any(requests).values()) == {lanes}
    return dict.fromkeys(requests, (lanes, True) if same else (0, False))


def _exchange(requests: Requests) -> dict[int, Any]:
    """Its number, what each lane has offered, and an empty list that they share: for what a whole warp computes."""
    if len(requests) < WARP:
        raise SimulationError(f"an instruction of a whole warp, to which {len(requests)} of {WARP} lanes have come")
    offered: list[Any] = [requests[lane][0] for lane in range(WARP)]
    shared: list[Any] = []
    return {lane: (lane, offered, shared) for lane in requests}


def _collective(combine: Callable[[Requests], dict[int, Any]]) -> Callable[..., Any]:
    """What a kernel calls: the result depends on all lanes that the mask names."""

    def operation(mask: int = ALL_LANES, value: Any = None, operand: Any = None) -> Any:
        lanes, lane = operator.index(mask) & ALL_LANES, _names["laneid"]  # -1 is a usual spelling of all lanes
        if not lanes >> lane & 1:
            raise SimulationError(f"lane {lane} calls with mask {lanes:#010x}, which does not name it")
        return launching.here().hub.switch(combine, lanes, value, operand)

    return operation


_exchange_all = _collective(_exchange)


def _activemask() -> int:
    """The lanes that have not left the kernel: threads here do not run in step, so none is more active than others."""
    block = launching.here().block_now
    assert block is not None
    return block.alive[_names["threadIdx"].number(_names["blockDim"]) // WARP]


class _CooperativeGrid:
    """``cuda.cg.this_grid()``."""

    def sync(self) -> None:
        launching.here().hub.switch(GRID)


class _CooperativeGroups:
    this_grid = _CooperativeGrid


# -- memory ----------------------------------------------------------------------------------------------


class _Constant:
    @staticmethod
    def array_like(array: Array) -> Array:
        return records.as_seen(array)


class _Cut(np.ndarray[Any, Any]):
    """Dynamic shared memory, of which kernels make views of types as Numba names them."""

    def view(self, kind: Any) -> Any:  # type: ignore[override]
        return _cut(np.asarray(self).view(records.dtype_of(kind)))


class _CutIntegers(_Cut, integers.TypedIntegers):
    """The same, of integers."""


def _cut(array: Array) -> Array:
    return np.ndarray.view(array, _CutIntegers if array.dtype.kind in "iu" else _Cut)


def _check_alignment(alignment: Any) -> None:
    """Refuse what the compiler refuses, in its words."""
    if alignment is None:
        return
    if not isinstance(alignment, int):
        errors = importlib.import_module("numba.core.errors")
        raise errors.TypingError("RequireLiteralValue: alignment must be a constant integer")
    if alignment <= 0:
        raise ValueError("Alignment must be positive")
    if alignment & alignment - 1:
        raise ValueError("Alignment must be a power of 2")
    if alignment % _POINTER:
        raise ValueError(f"Alignment must be a multiple of {_POINTER}")


#: Bytes of a pointer, which no array is aligned to less of if an alignment is given.
_POINTER = 8


@functools.lru_cache(maxsize=64)
def _unwritten(shape: Any, dtype: np.dtype[Any]) -> Array:
    """What local arrays are copied from: each thread of each block makes one."""
    return np.full(shape, poison(dtype), dtype)


class _Local:
    """``cuda.local``."""

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Array:
        """An array of the thread that calls, filled with NaN."""
        _check_alignment(alignment)
        dtype = records.dtype_of(dtype)
        array = _unwritten(shape, dtype).copy()
        tracer = launching.here().tracer
        if tracer is None or dtype.names is not None:
            return records.as_seen(array)
        frame = sys._getframe(1)
        return TracedLocal.of(array, tracer, site(frame.f_code, frame.f_lasti))


class _Shared:
    """``cuda.shared``."""

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        """The array of the block that this instruction makes; of shape 0, a view of the dynamic memory."""
        _check_alignment(alignment)
        launch, frame = launching.here(), sys._getframe(1)
        assert launch.block_now is not None
        shared = launch.block_now.shared
        where = site(frame.f_code, frame.f_lasti)
        if where not in shared.arrays:
            shared.arrays[where] = self._make(launch, where, shape, records.dtype_of(dtype), alignment or 0)
        return shared.arrays[where]

    @staticmethod
    def _make(launch: Launch, where: Site, shape: Any, dtype: np.dtype[Any], alignment: int) -> Any:
        assert launch.block_now is not None
        shared = launch.block_now.shared
        memory = shared.dynamic[: shared.dynamic.size // dtype.itemsize * dtype.itemsize]
        dynamic = isinstance(shape, int) and shape == 0
        if not dynamic:
            memory = np.full(math.prod(np.atleast_1d(shape).tolist()) * dtype.itemsize, 0xFF, np.uint8)
            shared.memories.append(memory)
        total = sum(memory.size for memory in shared.memories)
        static = total - shared.dynamic.size
        most = Chosen.card.shared_kib * 1024
        if static > MAX_STATIC_SHARED or total > most:
            raise SimulationError(
                f"{launch.name}: {static} bytes of static and {shared.dynamic.size} of dynamic shared memory; a block "
                f"on a {Chosen.card.name} can have {MAX_STATIC_SHARED} static and {most} in all"
            )
        array = memory.view(dtype)
        array = _cut(array) if dynamic else records.as_seen(array.reshape(shape))
        return (
            array if launch.tracer is None else launch.tracer.shared(array, where, alignment, shared, dynamic=dynamic)
        )


# -- atomics and fences ----------------------------------------------------------------------------------

#: So many atomics in a row that change nothing: the thread waits for another one, which gets a turn then.
_IDLE = 16


def _idle() -> None:
    launch = launching.here()
    launch.idle += 1
    if launch.idle >= _IDLE:
        launch.idle = 0
        launch.hub.switch(SPIN)


def _atomic(update: Callable[[Any, Any], Any]) -> Any:
    def operation(array: Any, index: Any, value: Any, depth: int = 2) -> Any:
        if isinstance(array, np.ndarray):
            old = array[index]
            new = array[index] = update(old, value)
        else:
            old, new = array.exchange(index, lambda old: update(old, value), depth)
        if new == old:
            _idle()
        else:
            launching.here().idle = 0
        return old

    return staticmethod(operation)


def _compare_and_swap(old: Any, change: tuple[Any, Any]) -> Any:
    return change[1] if old == change[0] else old


class _Atomic:
    """``cuda.atomic``: functions of (array, index, value) that return what the element was."""

    add = _atomic(operator.add)
    sub = _atomic(operator.sub)
    and_ = _atomic(operator.and_)
    or_ = _atomic(operator.or_)
    xor = _atomic(operator.xor)
    inc = _atomic(lambda old, limit: 0 if old >= limit else old + 1)
    dec = _atomic(lambda old, limit: limit if old == 0 or old > limit else old - 1)
    exch = _atomic(lambda old, value: value)
    max = _atomic(max)
    min = _atomic(min)
    nanmax = _atomic(np.fmax)
    nanmin = _atomic(np.fmin)
    _cas = _atomic(_compare_and_swap)

    @staticmethod
    def cas(array: Any, index: Any, old: Any, value: Any) -> Any:
        return _Atomic._cas(array, index, (old, value), 3)

    @staticmethod
    def compare_and_swap(array: Any, old: Any, value: Any) -> Any:
        return _Atomic._cas(array, (0,) * array.ndim, (old, value), 3)


def _fence(*, block: bool) -> Callable[[], None]:
    """Other threads see a write at once here, but the trace wants to know which fences a GPU would have had."""

    def fence() -> None:
        launch = launching.here()
        if launch.tracer is not None:
            launch.tracer.fence(block=block)
        _idle()

    return fence


def _nanosleep(nanoseconds: int) -> None:
    launching.here().hub.switch(SPIN)


# -- arithmetic ------------------------------------------------------------------------------------------


def _bits(value: Any) -> tuple[int, int]:
    """An integer's bits as a number that is not negative, and how many there are."""
    if isinstance(value, np.integer):
        width = getattr(value, "width", 8 * value.itemsize)
    else:
        width = 32 if -(2**31) <= value < 2**32 else 64
    return int(value) % 2**width, width


def _popc(value: Any) -> int:
    return _bits(value)[0].bit_count()


def _brev(value: Any) -> int:
    width = 64 if isinstance(value, np.uint64) else 32
    return int(f"{int(value) % 2**width:0{width}b}"[::-1], 2)


def _clz(value: Any) -> int:
    bits, width = _bits(value)
    return width - bits.bit_length()


def _ffs(value: Any) -> int:
    bits, _ = _bits(value)
    return (bits & -bits).bit_length()


def let_types_cast(number: Any, base: Any) -> None:
    """Make casts as ``uint8(x)`` fast in kernels, and give numbers that compute as on a GPU.

    Args:
        number: Numba's class of a kind of numbers: integers, or floats.
        base: Numba's class of all types.
    """
    plain = number.__call__

    def cast(self: Any, *args: Any) -> Any:
        if launching.launch is None or len(args) != 1 or isinstance(args[0], base):
            return plain(self, *args)
        return integers.cast(args[0], getattr(np, self.name))

    number.__call__ = cast


NAMES: dict[str, Any] = {
    "warpsize": WARP,
    "grid": _grid,
    "gridsize": _gridsize,
    "syncthreads_count": _barrier(sum),
    "syncthreads_and": _barrier(lambda votes: int(all(votes))),
    "syncthreads_or": _barrier(lambda votes: int(any(votes))),
    "syncwarp": _collective(syncwarp),
    "shfl_sync": _collective(_shuffle(lambda lane, source: source % WARP)),
    "shfl_up_sync": _collective(_shuffle(lambda lane, delta: lane - delta)),
    "shfl_down_sync": _collective(_shuffle(lambda lane, delta: lane + delta)),
    "shfl_xor_sync": _collective(_shuffle(lambda lane, bits: lane ^ bits)),
    "all_sync": _collective(_vote(lambda votes: all(votes.values()))),
    "any_sync": _collective(_vote(lambda votes: any(votes.values()))),
    "eq_sync": _collective(_vote(lambda votes: len(set(votes.values())) == 1)),
    "ballot_sync": _collective(_vote(lambda votes: sum(1 << lane for lane, vote in votes.items() if vote))),
    "match_any_sync": _collective(_match_any),
    "match_all_sync": _collective(_match_all),
    # Not of numba.cuda: twins of instructions for tensor cores are made with it.
    "_exchange_sync": lambda value: _exchange_all(value=value),
    "activemask": _activemask,
    "lanemask_lt": lambda: (1 << _names["laneid"]) - 1,
    "threadfence": _fence(block=False),
    "threadfence_block": _fence(block=True),
    "threadfence_system": _fence(block=False),
    "nanosleep": _nanosleep,
    "shared": _Shared(),
    "local": _Local(),
    "const": _Constant,
    "atomic": _Atomic,
    "cg": _CooperativeGroups,
    "popc": _popc,
    "brev": _brev,
    "clz": _clz,
    "ffs": _ffs,
    "cbrt": np.cbrt,
    "selp": lambda condition, yes, no: yes if condition else no,
    "fma": lambda a, b, c: a * b + c,
}


def install(target: dict[str, Any]) -> None:
    """Put them into the names of a module, from where kernels take them from now on."""
    global _names
    launching.names = _names = target
    target.update(NAMES)
