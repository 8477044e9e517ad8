"""Which accesses are in order because threads synchronised through atomics: happens-before, from the log of a launch.

The rules are those of CUDA's memory model for atomics without an order of their own, as Numba's are. What a thread did
before a fence is *released* by its next atomic that changes an element. A thread whose atomic comes to that element
later *acquires* it at its next fence. Barriers and ``syncwarp`` release and acquire for all that meet there.

What a thread knows is a clock: for each element, block and warp that was synchronised through, how many of its releases
lie behind the thread. An access is before another one if the first release after it is in the other thread's clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any, TypeAlias

#: What was synchronised through, and how many releases of it are known.
Clock: TypeAlias = "dict[Hashable, int]"


class _Thread:
    """What a thread knows, and what it has done since."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        #: When it last passed a fence, and what it knew then, with what it has released since.
        self.fence = -1
        self.at_fence: Clock = {}
        #: What it came to know through atomics since the last fence.
        self.pending: Clock = {}


class Ordering:
    """The order of accesses, each of which is a thread (any number) and a time (a place in the log).

    The methods are called in the order of time.

    Args:
        fences: whether fences are needed; without, each atomic counts as if one stood before and one behind it.
    """

    def __init__(self, *, fences: bool) -> None:
        self._fences = fences
        self._threads: dict[int, _Thread] = {}
        self._elements: defaultdict[Hashable, Clock] = defaultdict(dict)
        self._counts: defaultdict[Hashable, int] = defaultdict(int)
        # By thread: when its clock changed, and to what; until when its accesses were released, and by which release.
        self._changes: defaultdict[int, tuple[list[int], list[Clock]]] = defaultdict(lambda: ([], []))
        self._releases: defaultdict[int, tuple[list[int], list[tuple[Hashable, int]]]] = defaultdict(lambda: ([], []))

    def fence(self, time: int, thread: int) -> None:
        """A thread passes a fence."""
        mine = self._thread(thread)
        if mine.pending:
            self._learn(time, thread, mine, {**mine.clock, **_later(mine.clock, mine.pending)})
            mine.pending = {}
        mine.fence, mine.at_fence = time, mine.clock

    def atomic(self, time: int, thread: int, element: Hashable, *, changes: bool) -> None:
        """A thread's atomic comes to an element, and changes it or not."""
        if not self._fences:
            self.fence(time, thread)
        mine, known = self._thread(thread), self._elements[element]
        if known:
            mine.pending = {**mine.pending, **_later(mine.pending, known)}
        if changes and mine.fence >= 0:
            # A number counted on from others' releases would say that they are known, which is so at the next fence.
            place = (element, thread) if known.get(element, 0) > mine.clock.get(element, 0) else element
            stamp = self._stamp(place)
            mine.at_fence = {**mine.at_fence, place: stamp}
            self._learn(time, thread, mine, {**mine.clock, place: stamp})
            known.update(_later(known, mine.at_fence))
            self._release(mine.fence, thread, place, stamp)
        if not self._fences:
            self.fence(time, thread)

    def meet(self, time: int, threads: Iterable[int], place: Hashable) -> None:
        """Threads wait for each other: of a block, or of a warp."""
        stamp = self._stamp(place)
        everything: Clock = {place: stamp}
        members = [(thread, self._thread(thread)) for thread in threads]
        for clock in {id(mine.clock): mine.clock for _, mine in members}.values():
            everything.update(_later(everything, clock))
        for thread, mine in members:
            self._learn(time, thread, mine, everything)
            self._release(time, thread, place, stamp)

    def ordered(self, thread: int, time: int, other: int, later: int) -> bool:
        """Whether what a thread did at a time is before what another one did at a later time."""
        until, releases = self._releases[thread]
        first = bisect_right(until, time)
        if first == len(until):
            return False
        place, stamp = releases[first]
        times, clocks = self._changes[other]
        last = bisect_right(times, later) - 1
        return last >= 0 and clocks[last].get(place, 0) >= stamp

    def _thread(self, number: int) -> _Thread:
        if number not in self._threads:
            self._threads[number] = _Thread({})
        return self._threads[number]

    def _stamp(self, place: Hashable) -> int:
        self._counts[place] += 1
        return self._counts[place]

    def _learn(self, time: int, thread: int, mine: _Thread, clock: Clock) -> None:
        mine.clock = clock
        times, clocks = self._changes[thread]
        times.append(time)
        clocks.append(clock)

    def _release(self, until: int, thread: int, place: Hashable, stamp: int) -> None:
        untils, releases = self._releases[thread]
        if not untils or untils[-1] < until:  # an earlier release of the same accesses is known to all that know this
            untils.append(until)
            releases.append((place, stamp))


def _later(known: Clock, other: Clock) -> Clock:
    return {place: stamp for place, stamp in other.items() if known.get(place, 0) < stamp}


class Orders:
    """The orders of a launch: within blocks, between blocks, and those that there would be if no fence were missing.

    What happens is kept as it is, and looked at only when accesses were found that may race.

    Args:
        threads: of a block.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._happened: list[tuple[Any, ...]] = []
        #: Whether there was an atomic: only through these are accesses in order that would race otherwise.
        self.matter = False
        self.within = Ordering(fences=True)
        self.between = Ordering(fences=True)
        self.meant = Ordering(fences=False)

    def fence(self, time: int, block: int, thread: int, *, for_block: bool) -> None:
        """A thread passes a fence, which others of its block see, or all."""
        self._happened.append((self._fence, time, block * self._threads + thread, for_block))

    def atomic(self, time: int, block: int, thread: int, element: Hashable, *, changes: bool) -> None:
        """A thread's atomic comes to an element."""
        self.matter = True
        self._happened.append((self._atomic, time, block * self._threads + thread, element, changes))

    def meet(self, time: int, block: int, threads: Iterable[int], warp: int | None) -> None:
        """Threads of a block wait for each other: those of a ``warp``, or all."""
        self._happened.append((self._meet, time, block, threads, warp))

    def catch_up(self) -> None:
        """Look at what has happened since the last time."""
        for what, *how in self._happened:
            what(*how)
        self._happened.clear()

    def _fence(self, time: int, thread: int, for_block: bool) -> None:
        self.within.fence(time, thread)
        if not for_block:
            self.between.fence(time, thread)

    def _atomic(self, time: int, thread: int, element: Hashable, changes: bool) -> None:
        for ordering in (self.within, self.between, self.meant):
            ordering.atomic(time, thread, element, changes=changes)

    def _meet(self, time: int, block: int, threads: Iterable[int], warp: int | None) -> None:
        for ordering in (self.within, self.between, self.meant):
            ordering.meet(time, [block * self._threads + thread for thread in threads], ("met", block, warp))
