"""The sample of cases that `make test` runs: something of each test, and every value of its parameters in turn."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from support import sampling


class Case:
    """As much of pytest's item as the choice reads: a test's name, its parameters, its markers."""

    def __init__(self, test, number, markers=(), **values):
        self.nodeid = f"{test}[{number}]"
        self._markers = {marker.name: marker for marker in markers}
        self.callspec = type("", (), {"params": values})

    def get_closest_marker(self, name):
        return self._markers.get(name)


def grid(number, *markers):
    """36 cases: 3 variants on 6 shapes in 2 types."""
    product = itertools.product("abc", range(6), ("float32", "float64"))
    for index, (variant, shape, dtype) in enumerate(product):
        yield Case("grid", index, (pytest.mark.grid(number).mark, *markers), variant=variant, shape=shape, dtype=dtype)


@pytest.mark.parametrize(("number", "left"), [(2, 18), (3, 12), (6, 6), (100, 3)])
def test_a_grid_is_thinned_evenly(number, left):
    """One case in n, three at least, the first among them; no value occurs much more often than another."""
    cases = list(grid(number))
    chosen = sampling.select(cases, "sample")
    assert len(chosen) == left
    assert chosen[0] is cases[0]
    assert chosen == [case for case in cases if case in chosen]
    for name, values in (("variant", 3), ("shape", 6), ("dtype", 2)):
        counts = Counter(case.callspec.params[name] for case in chosen)
        assert len(counts) == min(left, values), name
        assert max(counts.values()) - min(counts.values()) <= 1 + left // values // 2, name


def test_no_test_is_left_out():
    """Of a test whose cases are all thorough, one runs; a test without markers runs whole, and so does all of `all`."""
    thorough = [Case("thorough", number, [pytest.mark.thorough.mark]) for number in range(3)]
    plain = [Case("plain", number, value=number) for number in range(40)]
    mixed = [Case("mixed", 0), Case("mixed", 1, [pytest.mark.thorough.mark])]
    cases = [*thorough, *plain, *mixed]
    assert sampling.select(cases, "all") == cases
    assert sampling.select(cases, "sample") == [thorough[0], *plain, mixed[0]]
    few = Counter(case.nodeid.partition("[")[0] for case in sampling.select(cases, "few"))
    assert few == {"thorough": 1, "plain": 1, "mixed": 1}
    assert sampling.select([Case("slow", 0, [pytest.mark.slow.mark])], "few") == []


def test_the_rest_is_what_a_sample_leaves_out():
    """And what a file runs that thins out loops, also by the name of the module."""
    sample = sampling.select(cases := list(grid(3)), "sample")
    assert sampling.select(cases, "rest") == [case for case in cases if case not in sample]
    for names in ({"sampled": sampling.sampled}, {"sampling": sampling}):
        for case in cases:
            case.module = type("", (), names)
        assert sampling.select(cases, "rest") == cases


def test_a_loop_is_thinned(monkeypatch):
    """So many of a loop's values, other ones for another case; all of them when all cases run."""
    for choice, count in (("all", 9), ("sample", 3), ("few", 1)):
        monkeypatch.setenv(sampling.VARIABLE, choice)
        chosen = [sampling.sampled(range(9), 3, key) for key in "abcdefgh"]
        assert {len(values) for values in chosen} == {len(set(values)) for values in chosen} == {count}
        assert set().union(*chosen) == set(range(9)) or choice == "few"
        assert sampling.sampled(range(2), 3, "a")[: min(count, 2)]
