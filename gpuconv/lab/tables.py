"""Tables of accesses, one a row: sorting, grouping, and what the accesses of a warp cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from gpuconv.lab.places import Array
from gpuconv.lab.traced_arrays import ATOMIC, READ, WRITE


class Events(NamedTuple):
    """Columns of a table of accesses."""

    array: Array
    kind: Array
    nbytes: Array
    address: Array
    site: Array
    run: Array
    thread: Array
    epoch: Array
    block: Array
    #: A number for the value that was written, the same for equal ones; -1 where nothing was.
    value: Array
    #: Its place in the log of the launch.
    time: Array

    def take(self, rows: Array) -> Events:
        """Some of the rows."""
        return Events(*(column[rows] for column in self))


def sorting(*fields: Array) -> Array:
    """Positions of rows sorted by non-negative fields, the first counting most; equal rows stay in order."""
    count = fields[0].size
    if not count:
        return np.zeros(0, np.int64)
    widths = [int(field.max()).bit_length() for field in fields] + [count.bit_length()]
    if sum(widths) > 63:
        return np.lexsort(fields[::-1])
    # NumPy sorts plain integers several times faster than it sorts positions by several fields.
    key = np.zeros(count, np.int64)
    for field, width in zip((*fields, np.arange(count)), widths, strict=True):
        key = key << width | field
    key.sort()
    return key & (1 << widths[-1]) - 1


def changes(*fields: Array) -> Array:
    """Where a row differs from the one before it; the first one does."""
    changes = np.zeros(fields[0].size, bool)
    changes[:1] = True
    for field in fields:
        changes[1:] |= field[1:] != field[:-1]
    return changes


def groups(*fields: Array) -> Iterator[tuple[list[int], Array]]:
    """Each combination of values that rows have, and the rows that have it."""
    order = sorting(*fields)
    begins = np.flatnonzero(changes(*(field[order] for field in fields)))
    for rows in np.split(order, begins[1:]) if order.size else []:
        yield [int(field[rows[0]]) for field in fields], rows


def expand(counts: Array) -> tuple[Array, Array]:
    """Row and part of each of the ``counts[row]`` parts of each row."""
    row = np.repeat(np.arange(counts.size), counts)
    return row, np.arange(row.size) - np.repeat(np.cumsum(counts) - counts, counts)


def conflicts(
    place: Array, e: Events, actor: Array, ordered: Callable[[Events, int, int], bool] | None
) -> tuple[Array, Array, Array]:
    """Rows of two conflicting accesses by different actors, for each element that has any.

    The third array says whether all of them are writes of one value.

    Args:
        place: where in the table the accesses to another element begin.
        e: the accesses.
        actor: who made each.
        ordered: whether two accesses by different actors are in order after all.
    """
    starts = np.flatnonzero(place)
    if not starts.size:
        return starts, starts, starts.astype(bool)
    kinds = np.bitwise_or.reduceat(e.kind, starts)
    several = np.minimum.reduceat(actor, starts) != np.maximum.reduceat(actor, starts)
    racy = several & (((kinds & WRITE) > 0) | (kinds == READ | ATOMIC))
    same = (kinds == WRITE) & (np.minimum.reduceat(e.value, starts) == np.maximum.reduceat(e.value, starts))
    if ordered is not None:
        ends = np.append(starts[1:], place.size)
        rows = []
        for begin, end, alike in zip(starts[racy].tolist(), ends[racy].tolist(), same[racy].tolist(), strict=True):
            pair = _unordered(begin, end, e, actor, ordered)
            if pair is not None:
                rows.append((*pair, alike))
        one, other, same = np.array(rows, np.int64).reshape(-1, 3).T
        return one, other, same.astype(bool)
    group, where = np.cumsum(place) - 1, np.arange(place.size)
    strongest = np.where(kinds & WRITE, WRITE, ATOMIC)[group]
    one = np.minimum.reduceat(np.where(e.kind == strongest, where, place.size - 1), starts)
    others = actor != actor[one][group]
    other = np.minimum.reduceat(np.where(others, where, place.size), starts)
    if racy.any():  # of several, one that shows that the values differ says more
        telling = np.minimum.reduceat(np.where(others & (e.value != e.value[one][group]), where, place.size), starts)
        other = np.where(telling < place.size, telling, other)
    return one[racy], other[racy], same[racy]


def _unordered(
    begin: int, end: int, e: Events, actor: Array, ordered: Callable[[Events, int, int], bool]
) -> tuple[int, int] | None:
    """The first conflicting pair of accesses to one element that nothing orders, if there is one.

    An access has to be compared with the last write, and with what others did since: what was before that write is in
    order with it, or a race that was found already.
    """
    #: By kind and actor, the last access since the last write, that write included.
    before: dict[int, dict[int, int]] = {READ: {}, WRITE: {}, ATOMIC: {}}
    for now in range(begin, end):
        kind, mine = int(e.kind[now]), int(actor[now])
        for other in (WRITE, READ, ATOMIC):
            if other == kind and kind != WRITE:
                continue
            for theirs, then in before[other].items():
                if theirs != mine and not ordered(e, then, now):
                    return (now, then) if kind != READ else (then, now)
        if kind == WRITE:
            for accesses in before.values():
                accesses.clear()
        before[kind][mine] = now
    return None


def bank_passes(request: Array, lane: Array, address: Array, nbytes: Array) -> tuple[Array, Array]:
    """Passes over the banks that each request takes, and the fewest possible; requests ascend."""
    row, part = expand(np.maximum(nbytes // 4, 1))
    word = address[row] // 4 + part
    # 128 bytes are served at once: 32 lanes of 4 bytes, 16 of 8, 8 of 16.
    fields: tuple[Array, ...] = (request[row], (lane * nbytes // 128)[row], word % 32, word // 32)
    order = sorting(*fields)
    fields = tuple(field[order] for field in fields)
    distinct = changes(*fields)
    request, phase, bank = (field[distinct] for field in fields[:3])
    banks = np.flatnonzero(changes(request, phase, bank))
    words = np.diff(banks, append=request.size)
    request, phase = request[banks], phase[banks]
    phases = np.flatnonzero(changes(request, phase))
    passes = np.maximum.reduceat(words, phases) if words.size else words
    begins = np.flatnonzero(changes(request[phases]))
    total = np.add.reduceat(passes, begins) if words.size else words
    return total, np.diff(begins, append=phases.size)


def sectors(request: Array, lane: Array, address: Array, nbytes: Array) -> tuple[Array, Array]:
    """32-byte sectors that each request touches, and the fewest that could hold its bytes; requests ascend."""
    order = sorting(request, address)
    request, address, nbytes = request[order], address[order], nbytes[order]
    distinct = changes(request, address)
    request, address, nbytes = request[distinct], address[distinct], nbytes[distinct]
    begins = np.flatnonzero(changes(request))
    if not begins.size:
        return begins, begins
    sectors = np.add.reduceat(changes(request, address // 32).astype(np.int64), begins)
    return sectors, -(-np.add.reduceat(nbytes, begins) // 32)
