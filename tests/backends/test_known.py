"""What is known of an array: found by a view of all of it, and void once it is gone or something has changed."""

from __future__ import annotations

import numpy as np

from gpuconv import versions
from gpuconv.backends.cuda.known import Known


def test_a_fact_is_of_one_array_as_it_is():
    """Another array, a part, another type and a copy have no fact; a change of the array or of a source ends it."""
    known = Known(lambda array: array.ctypes.data)
    array, source, other = np.zeros((2, 3), np.float32), np.zeros(2), np.zeros(2)
    known.note(array, "a fact", [source])
    assert known.of(array) == known.of(array[...]) == known.of(array.reshape(3, 2)) == "a fact"
    for without in (array[:1], array.view(np.int32), array.copy(), source):
        assert known.of(without) is None
    versions.changed(other, "a write")
    assert known.of(array) == "a fact"
    versions.changed(source, "a write")
    assert known.of(array) is None
    known.note(array, "another", [source])
    assert known.of(array) == "another"
    versions.changed(array.reshape(-1), "a write into a view")
    assert known.of(array) is None


def test_a_fact_ends_with_its_array():
    """Memory that is used again has no fact, and nothing is kept."""
    known = Known(lambda array: 0)
    array = np.zeros(3)
    known.note(array, "a fact")
    del array
    assert known.of(np.zeros(3)) is None
    assert not known._facts
    first, second = np.zeros(3), np.ones(3)
    known.note(first, "first")
    known.note(second, "second")
    del first
    assert known.of(second) == "second"
