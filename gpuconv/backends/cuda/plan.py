"""Plans of the CUDA backend: the kernel that runs an operation, chosen once, and its launches, prepared once.

A plan belongs to an operation, a geometry, a dtype and a device. The first time it is queued, the variant's ``launch``
is called with placeholders for the arrays (:class:`gpuconv.kernels.driver.Operand`). The launches that it makes are
recorded, with their arguments packed. After that, only the addresses of the arrays are filled in, and the driver is
called.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpuconv import kernels
from gpuconv.backends import capturing
from gpuconv.backends.cuda.branches import Access
from gpuconv.kernels.operations import IN, OPERATIONS, OUT, each, workspace_type
from gpuconv.tuning import COMPOSED, Choice

__all__ = ["Plan", "flattened", "is_array"]

#: One lock for all plans: filling in the packed arguments and calling the driver must not be interleaved.
_queueing = threading.Lock()
_MOST_PREPARED = 64


class _Prepared(NamedTuple):
    """Launches for arrays of these dtypes and sizes, some of them missing or unaligned."""

    expected: tuple[tuple[np.dtype, int], ...]
    launches: tuple[Any, ...]
    #: For each launch, the numbers of its arrays, and whether it may write them.
    touched: tuple[tuple[tuple[int, bool], ...], ...]

    def accesses(self, launch: int, addresses: Sequence[int]) -> Iterator[Access]:
        """What a launch does with memory, given the addresses of all arrays."""
        for number, writes in self.touched[launch]:
            yield Access(addresses[number], addresses[number] + self.expected[number][1], writes)


class Plan:
    """How an operation runs.

    Attributes:
        choice: variant and tiling, and why.
        variant: what runs; None if the operation runs as its parts do.
        dtype: element type in which it computes.
        workspace, workspace_type: elements of the workspace that it needs, and their type.
        single: shape and type of the only result; None if there are several.
    """

    __slots__ = (
        "_device",
        "_prepared",
        "_results",
        "choice",
        "dtype",
        "geometry",
        "single",
        "variant",
        "workspace",
        "workspace_type",
    )

    def __init__(self, choice: Choice, geometry: Any, dtype: Any):
        self.choice, self.geometry, self.dtype = choice, geometry, np.dtype(dtype)
        self.variant: Any = None if choice.variant == COMPOSED else kernels.load(choice.operation, choice.variant)
        # Imported late, because it loads Numba's CUDA target.
        self._device: Any = importlib.import_module("gpuconv.kernels.device")
        self.workspace = 0 if self.variant is None else self.variant.workspace_size(geometry, choice.tiling)
        self.workspace_type = workspace_type(self.dtype)
        #: Shape and type of each result, or a list of those of several.
        self._results: list[Any] = []
        for array in OPERATIONS[choice.operation].positional:
            if array.role == OUT:
                operands = array.operands(geometry, self.dtype.name)
                described = [(one.shape, np.dtype(one.dtype)) for one in each(operands)]
                self._results.append(described if isinstance(operands, list) else described[0])
        self.single = self._results[0] if len(self._results) == 1 and isinstance(self._results[0], tuple) else None
        self._prepared: dict[Any, _Prepared | None] = {}

    def new_results(self, empty: Callable[..., Any]) -> list[Any]:
        """New arrays for the results, in their order; for several that belong together a list of them.

        Args:
            empty: makes an array of a shape and type.
        """
        # Queued at each step: a call less counts.
        made: list[Any] = []
        for one in self._results:
            if one.__class__ is tuple:
                made.append(empty(*one))
            else:
                made.append([empty(*part) for part in one])
        return made

    def run(self, arrays: Sequence[Any], options: dict[str, Any], stream: int | None = None) -> None:
        """Call the variant's ``launch`` with the arrays themselves: NumPy's in the simulator."""
        self.variant.launch(*arrays, self.geometry, self.choice.tiling, stream, **options)

    def queue(
        self,
        arrays: Sequence[Any],
        options: dict[str, Any],
        stream: int,
        device: int,
        refuse: Callable[[str, Any], None],
    ) -> None:
        """Queue the launches on a stream.

        Args:
            arrays: on the device and contiguous, as the variant's ``launch`` takes them: arrays, lists of them, None.
            options: by keyword numbers, and arrays.
            stream: its handle.
            device: the current one.
            refuse: called with the operation and an array that is not there; it raises.

        Raises:
            ValueError, TypeError: an array is not of the size, or type, that the plan is for.
        """
        if self._device.is_recording():
            self.run(arrays, options, stream)
            return
        flat, missing = flattened(arrays)
        named = tuple([name for name, value in options.items() if is_array(value)]) if options else ()
        if named:
            flat += [options[name] for name in named]
        addresses, low = [], 0
        for array in flat:
            data = array.data
            try:
                if data.device_id != device:
                    refuse(self.choice.operation, array)
            except AttributeError:  # of the host
                refuse(self.choice.operation, array)
            address = data.ptr
            addresses.append(address)
            low |= address
        narrow = tuple([address % 16 != 0 for address in addresses]) if low & 15 else ()
        numbers = tuple([item for item in options.items() if item[0] not in named]) if options else ()
        key = (missing, narrow, device, named, numbers)
        if key in self._prepared:
            prepared = self._prepared[key]
        else:
            if len(self._prepared) >= _MOST_PREPARED:  # numbers among the options may differ at each call
                self._prepared.clear()
            try:
                prepared = self._prepare(arrays, named, flat, narrow, dict(numbers))
            except (AttributeError, TypeError):
                prepared = None  # the variant uses its arrays otherwise; or an error, which the next line raises again
            self._prepared[key] = prepared
        if prepared is not None:
            for array, (dtype, size) in zip(flat, prepared.expected, strict=True):
                if array.nbytes != size or array.dtype != dtype:
                    prepared = None  # some may be longer than they need be; others are refused
                    break
        if prepared is None:
            self.run(arrays, options, stream)
            return
        capture = capturing.current()
        branches = None if capture is None else capture.branches
        with _queueing:
            for number, launch in enumerate(prepared.launches):
                if branches is None or stream != branches.stream:
                    launch(addresses, stream)
                else:
                    queue = functools.partial(launch, addresses, stream)
                    branches.add(queue, prepared.accesses(number, addresses))

    def _prepare(
        self,
        arrays: Sequence[Any],
        named: tuple[str, ...],
        flat: list[Any],
        narrow: tuple[bool, ...],
        options: dict[str, Any],
    ) -> _Prepared:
        driver: Any = importlib.import_module("gpuconv.kernels.driver")
        operands = iter(
            driver.Operand(number, array.shape, array.dtype, not (narrow and narrow[number]))
            for number, array in enumerate(flat)
        )

        def standing_in(array: Any) -> Any:
            if isinstance(array, (list, tuple)):
                return [standing_in(one) for one in array]
            return None if array is None else next(operands)

        given = [standing_in(array) for array in arrays]
        with self._device.recording() as launches:
            keywords = {**options, **{name: next(operands) for name in named}}
            self.run(given, keywords)
        reads = self._reads(arrays, named)
        prepared = [
            driver.PreparedLaunch(launch, arguments, driver.current(), operands=True) for launch, arguments in launches
        ]
        touched = []
        for one, (launch, arguments) in zip(prepared, launches, strict=True):
            only_read = {operand.number for at in launch.reads for operand in flattened([arguments[at]])[0]}
            touched.append(
                tuple((number, not reads[number] and number not in only_read) for number in sorted(one.operands))
            )
        return _Prepared(tuple((array.dtype, array.nbytes) for array in flat), tuple(prepared), tuple(touched))

    def _reads(self, arrays: Sequence[Any], named: tuple[str, ...]) -> list[bool]:
        """Of each array, as :func:`flattened` and behind them the named ones, whether no launch writes it."""
        operation = OPERATIONS[self.choice.operation]
        roles = [
            array.role
            for given, array in zip(arrays, operation.positional, strict=True)
            for one in (given if isinstance(given, (list, tuple)) else [given])
            if one is not None
        ]
        by_name = {array.name: array.role for array in operation.arrays}
        return [role == IN for role in [*roles, *(by_name.get(name) for name in named)]]


def is_array(value: Any) -> bool:
    """Whether an option is an array; NumPy's scalars have a dtype too."""
    return hasattr(value, "dtype") and not isinstance(value, np.generic)


def flattened(arrays: Sequence[Any]) -> tuple[list[Any], int]:
    """The arrays that are present, in order, and a bit for each that is missing."""
    flat: list[Any] = []
    for array in arrays:
        if array.__class__ in (list, tuple):
            flat += array
        else:
            flat.append(array)
    if not any([one is None for one in flat]):
        return flat, 0
    return [one for one in flat if one is not None], sum(1 << i for i, one in enumerate(flat) if one is None)
