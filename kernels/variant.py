"""A variant of an operation: its module, and around it what is the same for all of them.

A module says which launches its kernels take, in a function ``calls(a, geometry, tiling)``. What it is given as ``a``
(:class:`Arguments`) are the arrays and numbers of ``kernels/operations.py``, by name; it yields a
:func:`gpuconv.kernels.device.call` for each launch. The rest is done here, once: a geometry that is not supported is
refused before anything is launched, arrays are checked and made flat, absent ones stood in for, an empty batch launches
nothing. The same function serves launches without arrays: then stand-ins take their places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.kernels import driver
from gpuconv.kernels.device import Answer, Call, Launch, Refusal, aligned, fits_offsets
from gpuconv.kernels.operations import HALF_TYPES, OPERATIONS, OUT, REAL, Array, Operand, each, workspace_type

__all__ = ["Arguments", "Variant"]


class Arguments:
    """What a variant's launches are made for: each array of the operation, and each number, is an attribute.

    An array is flat; several, handed over as a list, are a tuple of flat ones. Of a half type it is one of uint16, as
    ``kernels/device/halves.py`` has it. For one that is absent there stands another one, which the kernel must not look
    at: it takes an array all the same. ``workspace`` is there if the variant asks for one; of half types it is float32.

    Attributes:
        dtype: name of the operation's element type.
    """

    def __init__(self, arrays: Sequence[tuple[Array, Any]], workspace: Any, numbers: dict[str, Any], dtype: str):
        self.dtype = dtype
        self._given = {array.name: value for array, value in arrays}
        self._real = real = "uint16" if dtype in HALF_TYPES else dtype
        flat = {id(one): _stored(one.reshape(-1)) for _, value in arrays for one in _flat(value)}
        by_type = {np.dtype(one.dtype).name: one for one in reversed(flat.values())}
        for array, value in arrays:
            # Of its type, if there is one.
            absent = by_type.get(real if array.type == REAL else str(array.type), by_type[real])
            several = isinstance(value, (list, tuple))
            found = tuple(flat.get(id(one), absent) for one in (value if several else [value]))
            setattr(self, array.name, found if several else found[0])
        self._given["workspace"] = self.workspace = workspace
        vars(self).update(numbers)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the operation has no array or number {name!r}, but {', '.join(self._given)}")

    def has(self, name: str) -> Any:
        """Whether an array is there; of several, a tuple that says it of each."""
        value = self._given[name]
        return tuple(one is not None for one in value) if isinstance(value, (list, tuple)) else value is not None

    def aligned(self, *names: str) -> bool:
        """Whether arrays begin at multiples of 16 bytes, so that 128 bits at once may be accessed."""
        return aligned(*(one for name in names for one in _flat(self._given[name])))

    def stored(self, workspace: Any) -> Any:
        """The workspace as elements of the type that kernels are given of the arrays; more of these, of a half type."""
        return workspace.view(self._real) if self._real == "uint16" else workspace

    def shaped(self, name: str) -> Any:
        """An array in its own shape, and not flat; None if it is absent."""
        return self._given[name]

    def real(self, number: float) -> Any:
        """A number of the operation's element type, as kernels take it."""
        return np.dtype(self.dtype).type(number)


class Variant:
    """What runs an operation: ``kernels.load("conv2d", "tiled")`` gives one.

    A module that needs more than ``calls`` may write ``launches`` and ``launch`` itself: they are taken as they are.
    What else it has, as its ``Tiling``, is found here as well.

    Args:
        operation: a name of ``OPERATIONS``.
        module: has ``tilings(geometry)`` and ``calls(arguments, geometry, tiling)``; where it does not support all
            geometries ``supports(geometry)``; where it needs one ``workspace_size(geometry, tiling)``. If its element
            types are not float32 and float64, ``DTYPES``; if it is for newer GPUs alone, the first
            ``COMPUTE_CAPABILITY``.
    """

    def __init__(self, operation: str, module: ModuleType):
        self.operation, self.module = operation, module
        self._described = OPERATIONS[operation]
        if hasattr(module, "launch"):
            self.launch, self.launches = module.launch, module.launches  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def supports(self, geometry: Any, dtype: Any = None, compute_capability: str | None = None) -> Answer:
        """True, or a :class:`gpuconv.kernels.device.Refusal`: false, and its text says why.

        Arrays that need 64-bit offsets are refused first.

        Args:
            geometry: of the work.
            dtype: the operation's element type; None for those that the variant has.
            compute_capability: of the GPU, such as '9.0'; None for one that is new enough.
        """
        least = getattr(self.module, "COMPUTE_CAPABILITY", (0, 0))
        if compute_capability is not None and tuple(map(int, compute_capability.split("."))) < least:
            return Refusal(f"it needs compute capability {least[0]}.{least[1]}, and the GPU has {compute_capability}")
        dtypes = getattr(self.module, "DTYPES", ("float32", "float64"))
        if dtype is not None and np.dtype(dtype).name not in dtypes:
            return Refusal(f"it computes in {', '.join(dtypes)}, and not in {np.dtype(dtype).name}")
        for array in self._described.positional:
            sizes = [] if array.far else [one.size for one in each(array.operands(geometry, "float32"))]
            if not (fits := fits_offsets(**{array.name: max(sizes, default=0)})):
                return fits
        return self.module.supports(geometry) if hasattr(self.module, "supports") else True

    def tilings(self, geometry: Any) -> tuple[Any, ...]:
        """The ways in which the work can be cut up: small frozen dataclasses, a good guess first."""
        return self.module.tilings(geometry)

    def workspace_size(self, geometry: Any, tiling: Any) -> int:
        """Elements of the flat array that :meth:`launch` takes as ``workspace=``; mostly 0.

        They are of the arrays' type, of half types float32 (:func:`gpuconv.kernels.operations.workspace_type`).
        """
        return self.module.workspace_size(geometry, tiling) if hasattr(self.module, "workspace_size") else 0

    def launches(
        self,
        geometry: Any,
        tiling: Any,
        dtype: Any,
        *,
        absent: Iterable[str] = (),
        present: Iterable[str] = (),
        aligned: bool = True,
        **numbers: Any,
    ) -> tuple[Launch, ...]:
        """The launches that :meth:`launch` makes, which can be compiled and judged without arrays and without a GPU.

        A geometry that is not supported is refused before the tiling is looked at, which may then be None.

        Args:
            geometry, tiling: of the work.
            dtype: the operation's element type.
            absent: names of arrays that are None.
            present: of those that are handed over by keyword, which are not.
            aligned: all arrays begin at multiples of 16 bytes.
            numbers: of the operation; those that are not given have their usual values.

        Raises:
            ValueError: the variant does not support the geometry, or not in this tiling.
        """
        name = np.dtype(dtype).name
        self._check(geometry, name)
        missing = {*absent, *(array.name for array in self._described.arrays if array.keyword)} - {*present}

        def stand_in(operand: Operand) -> Any:
            return None if operand.array.name in missing else driver.Operand(0, operand.shape, operand.dtype, aligned)

        arrays = []
        for array in self._described.arrays:
            operands = array.operands(geometry, name)
            arrays.append((array, [*map(stand_in, operands)] if isinstance(operands, list) else stand_in(operands)))
        size = self.workspace_size(geometry, tiling)
        workspace = driver.Operand(0, (size,), workspace_type(name), aligned) if size else None
        arguments = Arguments(arrays, workspace, {**self._described.numbers, **numbers}, name)
        return tuple(call.launch for call in self._calls(arguments, geometry, tiling))

    def launch(self, *given: Any, workspace: Any = None, **options: Any) -> None:
        """Queue the work: ``launch(x, weight, bias, out, geometry, tiling, stream)`` for conv2d.

        Args:
            given: the operation's positional arrays in their order, contiguous, on the device, optional ones perhaps
                None; the geometry, the tiling, and the stream: None, and if it is left out, is the default one.
            workspace: a flat array of :meth:`workspace_size` elements, if that is not 0.
            options: the operation's numbers, all of them, and such arrays as are handed over by keyword.

        Raises:
            ValueError: the variant does not support the geometry, an array has not the size that belongs to it, or the
                workspace not the one that is needed.
            TypeError: an array has not the element type that belongs to it, or a number is missing.
        """
        described = self._described
        count = len(described.positional)
        geometry, tiling, *stream = given[count:]
        values = iter(given[:count])
        arrays = [
            (array, options.pop(array.name, None) if array.keyword else next(values)) for array in described.arrays
        ]
        if options.keys() != described.numbers.keys():
            raise TypeError(f"{self.operation} takes the numbers {[*described.numbers]}, got {[*options]}")
        dtype = np.dtype(next(one for _, value in arrays for one in _flat(value)).dtype).name
        self._check(geometry, dtype)
        for array, value in arrays:
            self._check_array(array, value, geometry, dtype)
        size = self.workspace_size(geometry, tiling)
        if size and (workspace is None or workspace.size != size):
            found = "none" if workspace is None else f"one of {workspace.size}"
            raise ValueError(f"{self.operation}: {tiling} needs a workspace of {size} elements, got {found}")
        arguments = Arguments(arrays, workspace if size else None, options, dtype)
        for call in self._calls(arguments, geometry, tiling):
            call.launch(*stream or (None,), *call.arguments)

    def _check(self, geometry: Any, dtype: str) -> None:
        if not (answer := self.supports(geometry, dtype)):
            raise ValueError(f"{self.operation}: {answer}")

    def _calls(self, arguments: Arguments, geometry: Any, tiling: Any) -> tuple[Call, ...]:
        """The launches with their arguments; none if all results are empty."""
        size = self.workspace_size(geometry, tiling)
        if not (fits := fits_offsets(workspace=size)):
            raise ValueError(f"{self.operation}: {fits}")
        results = [array.operands(geometry, arguments.dtype) for array in self._described.arrays if array.role == OUT]
        if results and not any(one.size for operands in results for one in each(operands)):
            return ()
        return tuple(self.module.calls(arguments, geometry, tiling))

    def _check_array(self, array: Array, value: Any, geometry: Any, dtype: str) -> None:
        described = each(array.operands(geometry, dtype))
        values = value if isinstance(value, (list, tuple)) else [value]
        if len(values) != len(described):
            raise ValueError(f"{self.operation}: {array.name} are {len(described)} arrays, got {len(values)}")
        for one, operand in zip(values, described, strict=True):
            if one is None:
                if not array.optional:
                    raise ValueError(f"{self.operation}: {array.name} is missing")
                continue
            if np.dtype(one.dtype).name != operand.dtype:
                raise TypeError(f"{self.operation}: {array.name} has to be of {operand.dtype}, got {one.dtype}")
            if one.size != operand.size and not (array.longer and one.size > operand.size):
                least = "at least " if array.longer else ""
                shape = f"{least}{operand.size} elements, shape {operand.shape}"
                raise ValueError(f"{self.operation}: {array.name} has to have {shape}, got {one.size}")


def _stored(array: Any) -> Any:
    """An array as kernels are given it: half types as uint16."""
    return array.view(np.uint16) if np.dtype(array.dtype).name in HALF_TYPES else array


def _flat(value: Any) -> list[Any]:
    """The arrays that there are, of one or several."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [one for one in values if one is not None]
