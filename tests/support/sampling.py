"""Which cases of the tests run: `pytest --cases=all`, `sample` or `few`.

A test of which the cases multiply says so, with `@pytest.mark.grid(n)`: of these `make test` runs one in n, spread over
the values of all parameters, and `make test-all` each. A case that stands beside others of its test, and takes long,
is marked `thorough`: it is `make test-all`'s alone. So each test runs in `make test` with one case or more.
Loops in a test over what multiplies, such as tilings, go through `sampled`.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")

CHOICES = {
    "all": "each case: make test-all",
    "rest": "what differs from a sample: make test-all CASES=rest, behind make test",
    "sample": "one in n of the tests marked grid(n), no case marked thorough, all else: make test",
    "few": "one in 40, and one or more, of a grid three, of each test that is not marked slow: make quick",
}
#: Read here and by the processes that tests start.
VARIABLE = "GPUCONV_TEST_CASES"


def wanted() -> str:
    """Which of `CHOICES` holds."""
    return os.environ.get(VARIABLE, "all")


def sampled(things: Iterable[T], count: int, key: object) -> list[T]:
    """All of them; in a sample at most that many, evenly spaced; of few one. `key`, the case's, says from which on."""
    things = list(things)
    if wanted() == "all":
        return things
    count = min(1 if wanted() == "few" else count, len(things))
    first = zlib.crc32(str(key).encode())
    return [things[(first + number * len(things) // count) % len(things)] for number in range(count)]


def select(items: Sequence[pytest.Item], choice: str) -> list[pytest.Item]:
    """The items that run, in their order. Of files that use this module, a sample's cases may do more in the rest."""
    if choice == "all":
        return list(items)
    if choice == "rest":
        sample = {item.nodeid for item in select(items, "sample")}
        return [item for item in items if item.nodeid not in sample or _samples(item)]
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    chosen = {item.nodeid for cases in tests.values() for item in _of_one_test(cases, choice)}
    return [item for item in items if item.nodeid in chosen]


def _samples(item: pytest.Item) -> bool:
    """Whether the item's file may leave out something inside of a test."""
    names = vars(getattr(item, "module", None) or object).values()
    return any(value is sampled or getattr(value, "__name__", None) == __name__ for value in names)


def _of_one_test(cases: list[pytest.Item], choice: str) -> list[pytest.Item]:
    usual = [case for case in cases if not case.get_closest_marker("thorough")] or cases[:1]
    marker = cases[0].get_closest_marker("grid")
    if choice == "few":
        usual = [case for case in usual if not case.get_closest_marker("slow")]
        kernels = {values.get("kernel") for values in map(_values, usual)}
        return _one_in(40, usual, least=max(3, len(kernels)) if marker else 1)
    return _one_in(marker.args[0], usual, least=3) if marker else usual


def _values(case: pytest.Item) -> dict[str, object]:
    """Of its parameters; an operation and its variant are one, the kernel."""
    values = dict(case.callspec.params) if hasattr(case, "callspec") else {}
    if {"operation", "variant"} <= values.keys():
        values["kernel"] = values.pop("operation"), values.pop("variant")
    return values


def _one_in(number: int, cases: list[pytest.Item], least: int) -> list[pytest.Item]:
    count = max(least, -(-len(cases) // number))
    chosen = spread([case.nodeid for case in cases], [_values(case) for case in cases], count)
    return [cases[index] for index in chosen]


def spread(names: Sequence[str], values: Sequence[Mapping[str, object]], count: int) -> list[int]:
    """Indices of so many cases, among them the first, in which the values of each parameter occur as evenly as can be.

    No value occurs twice before one that could stand in its place has occurred. Which one of several is taken depends
    on the names alone: in each process that runs tests it is the same one.
    """
    if count >= len(names):
        return list(range(len(names)))
    met: Counter[Hashable] = Counter()
    keys = [[(name, value if _hashable(value) else id(value)) for name, value in case.items()] for case in values]
    left = sorted(range(len(names)), key=lambda index: (index > 0, zlib.crc32(names[index].encode())))
    taken = []
    for _ in range(count):
        best = min(left, key=lambda index: sum(met[key] for key in keys[index]))
        left.remove(best)
        taken.append(best)
        met.update(keys[best])
    return sorted(taken)


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
