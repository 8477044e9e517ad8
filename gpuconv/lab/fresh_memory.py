"""Memory of ``cuda.device_array`` that nobody has written yet, as far as that is known: byte by byte."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpuconv.lab.places import Array
from gpuconv.lab.traced_arrays import address_of, bounds_of


class _Allocation(NamedTuple):
    array: weakref.ref[Array]
    address: int
    #: Whether each of its bytes is still as it was allocated.
    unwritten: Array


_allocations: dict[int, _Allocation] = {}


def allocated(array: Array) -> Array:
    """An array as it comes from the device: filled with NaN (integers: all bits set), and known to be unwritten."""
    if array.nbytes:
        array.reshape(-1, order="A").view(np.uint8).fill(0xFF)
        address = address_of(array)
        gone = weakref.ref(array, lambda _: _allocations.pop(address, None))
        _allocations[address] = _Allocation(gone, address, np.ones(array.nbytes, bool))
    return array


def written(array: Array) -> None:
    """What the trace does not see has written to an array, or may have: all of its memory counts as written."""
    if _allocations:
        low, high = bounds_of(array)
        for _, part in _overlaps(low, high):
            part[:] = False


def unwritten(low: int, nbytes: int, granule: int) -> Array | None:
    """Which units of a piece of memory nobody has written; None if it is not known of any."""
    mask: Array | None = None
    for offset, part in _overlaps(low, low + nbytes):
        mask = np.zeros(-(-nbytes // granule) * granule, bool) if mask is None else mask
        mask[offset : offset + part.size] = part
    return None if mask is None else np.all(mask.reshape(-1, granule), axis=1)


def wrote(low: int, units: Array, granule: int) -> None:
    """A launch has written these units of a piece of memory."""
    for offset, part in _overlaps(low, low + units.size * granule):
        part &= ~np.repeat(units, granule)[offset : offset + part.size]


def _overlaps(low: int, high: int) -> Iterator[tuple[int, Array]]:
    """The parts of allocations that lie between two addresses, and how far behind the first one each begins."""
    for _, address, mask in list(_allocations.values()):
        begin, end = max(low, address), min(high, address + mask.size)
        if begin < end:
            yield begin - low, mask[begin - address : end - address]


def watch(kind: Any, module: Any) -> dict[str, Any]:
    """Make a class of device arrays tell what the host writes; give the functions that allocate such arrays.

    Args:
        kind: ``FakeCUDAArray`` of Numba's simulator.
        module: the one that it is in.
    """
    plain_set, plain_copy, plain_get = kind.__setitem__, kind.copy_to_device, kind.__getattr__

    def set_item(self: Any, index: Any, value: Any) -> Any:
        written(self._ary)
        return plain_set(self, index, value)

    def copy_to_device(self: Any, array: Any, stream: Any = 0) -> Any:
        written(self._ary)
        return plain_copy(self, array, stream)

    def get_attribute(self: Any, name: str) -> Any:
        if name not in _HARMLESS and hasattr(np.ndarray, name):
            written(self._ary)  # as by `fill`
        return plain_get(self, name)

    kind.__setitem__, kind.copy_to_device, kind.__getattr__ = set_item, copy_to_device, get_attribute

    def allocating(make: Any) -> Any:
        def device_array(*args: Any, **keywords: Any) -> Any:
            result = make(*args, **keywords)
            allocated(result._ary)
            return result

        return device_array

    return {name: allocating(getattr(module, name)) for name in ("device_array", "device_array_like")}


_HARMLESS = {
    "dtype",
    "ndim",
    "size",
    "strides",
    "itemsize",
    "flags",
    "tolist",
    "sum",
    "copy",
    "squeeze",
    "base",
    "device",
    "to_device",
}
