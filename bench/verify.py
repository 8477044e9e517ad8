"""Whether a kernel variant is right at real sizes: random inputs, poisoned results, a float64 reference, run twice.

Arrays are made by PyTorch and shared with the array library of the backend, so that kernel, reference and peer see the
same memory. On a machine without a GPU the same code runs on the host with the simulator, for small geometries.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from bench import torch_ops
from gpuconv import kernels
from gpuconv.geometry import BlockGeometry, BlockPairGeometry, Pool2dGeometry
from gpuconv.kernels.operations import (
    DISTRIBUTIONS,
    FORMULA,
    IN,
    LARGEST,
    OPERATIONS,
    OUT,
    POSITIVE,
    WINNERS,
    Operand,
    workspace_type,
)  # fmt: skip
from gpuconv.tuning.measure import Verdict, compare

#: Bytes of a guard zone on either side of a result, and what they hold.
_GUARD, _PATTERN = 256, 0xA5


@dataclass(frozen=True)
class Place:
    """Where arrays live: ``Place(torch, cupy, "cuda")``, or ``Place(torch, numpy, "cpu")`` for the simulator.

    Attributes:
        stream: what kernels are queued on: PyTorch's and CuPy's default stream.
    """

    torch: Any
    xp: ModuleType
    device: str

    @property
    def stream(self) -> Any:
        return 0 if self.device == "cuda" else None

    def synchronize(self) -> None:
        """Wait for the device, and raise what went wrong there."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def results_of(operation: str) -> tuple[int, ...]:
    """Positions of what an operation writes among its arrays."""
    return tuple(at for at, array in enumerate(OPERATIONS[operation].positional) if array.role != IN)


def _each(function: Callable[[Any], Any], operand: Any) -> Any:
    """The function of a tensor, or of each in a tuple of them."""
    return tuple(map(function, operand)) if isinstance(operand, tuple) else function(operand)


def _flat(operands: Sequence[Any]) -> list[Any]:
    return [one for operand in operands for one in (operand if isinstance(operand, tuple) else (operand,))]


def operands(place: Place, operation: str, geometry: Any, dtype: str, seed: int) -> list[Any]:
    """Torch tensors or tuples of them, as a variant's ``launch`` takes them: random if read, poisoned if written."""
    torch, described = place.torch, OPERATIONS[operation].operands(geometry, dtype)
    generator = torch.Generator(place.device).manual_seed(seed)

    def random(operand: Operand) -> Any:
        holds, kind = operand.array.holds, getattr(torch, operand.dtype)
        options = {"dtype": kind, "device": place.device}
        if callable(holds):
            return torch.randint(holds(geometry), operand.shape, generator=generator, **options)
        if holds == WINNERS:  # only those inside the image are any
            pool = geometry.pool if isinstance(geometry, BlockGeometry) else geometry
            x = torch.randn(pool.input_shape, generator=generator, device=place.device)
            _, indices = torch_ops.OPERATIONS["max_pool2d"](torch, pool, [x], {})()
            return torch_ops.offsets_of(torch, indices, pool)
        if holds == LARGEST:
            return torch.full(operand.shape, torch.iinfo(kind).max, **options)
        if holds == FORMULA:
            return torch.tensor(_numbers(operation, geometry), **options)
        values = torch.randn(operand.shape, generator=generator, **options)
        if holds == POSITIVE:
            return values.abs()
        return torch.softmax(values, 1) if holds == DISTRIBUTIONS else values

    def poisoned(operand: Operand) -> Any:
        kind = getattr(torch, operand.dtype)
        poison = math.nan if kind.is_floating_point else torch.iinfo(kind).max
        return torch.full(operand.shape, poison, dtype=kind, device=place.device)

    def made(operand: Operand) -> Any:
        return (poisoned if operand.array.role == OUT else random)(operand)

    tensors = [tuple(map(made, one)) if isinstance(one, list) else made(one) for one in described]
    if operation == "linear_chain_grad_input" and not geometry.relu[-1]:
        tensors[3] = (*tensors[3][:-1], tensors[0].clone())  # not written: see the kernel
    return tensors


def _numbers(operation: str, geometry: Any) -> Any:
    """What the update of all parameters finds in device memory."""
    module: Any = kernels.load(operation, "one_launch")
    settings = {**OPERATIONS[operation].numbers, **torch_ops.UPDATES[operation.removesuffix("_of_parts")]}
    names = inspect.signature(module.numbers_of).parameters
    row = module.numbers_of(**{name: settings[name] for name in names})
    return module.numbers_array([row], geometry, "float64").tolist()


def launch(place: Place, module: Any, operation: str, geometry: Any, tiling: Any, tensors: Sequence[Any]) -> Any:
    """A step without arguments that launches a variant on the tensors: only the launch is in it."""
    arrays = [_each(place.xp.from_dlpack, tensor) for tensor in tensors]
    keywords = dict(OPERATIONS[operation].numbers)
    if size := module.workspace_size(geometry, tiling):
        keywords["workspace"] = place.xp.empty((size,), workspace_type(_flat(arrays)[0].dtype))
    return lambda: module.launch(*arrays, geometry, tiling, place.stream, **keywords)


def reference(place: Place, operation: str, geometry: Any, tensors: Sequence[Any]) -> list[Any]:
    """What the results have to be, in float64; None where PyTorch has no such result."""

    def double(tensor: Any) -> Any:
        return tensor.double() if tensor.is_floating_point() else tensor

    # Copies, also of float64: what is changed in place is the kernel's to change.
    doubles = [_each(lambda tensor: double(tensor).clone(), operand) for operand in _inputs(operation, tensors)]
    step = torch_ops.OPERATIONS[operation](place.torch, geometry, doubles, OPERATIONS[operation].numbers)
    return list(step())


def peer(place: Place, operation: str, geometry: Any, tensors: Sequence[Any]) -> torch_ops.Step:
    """PyTorch's step on the same inputs, in their own type; what it changes is its own copy."""
    own = [_each(place.torch.clone, operand) for operand in _inputs(operation, tensors)]
    return torch_ops.OPERATIONS[operation](place.torch, geometry, own, OPERATIONS[operation].numbers)


def _inputs(operation: str, tensors: Sequence[Any]) -> list[Any]:
    arrays = OPERATIONS[operation].positional
    return [tensor for array, tensor in zip(arrays, tensors, strict=True) if array.role != OUT]


def judge(operation: str, geometry: Any, dtype: str, torch: Any, got: Sequence[Any], wanted: Sequence[Any]) -> Verdict:
    """Compare results with those of :func:`reference`; the winners of pooling have to be the same elements.

    Those of a fused block may be others that are as large: of sums that are rounded differently, either may be larger.
    """
    norm = worst = 0.0
    wanted = _flat(wanted)
    blocks = {BlockGeometry: [geometry], BlockPairGeometry: geometry}.get(type(geometry), ())
    for number, (ours, theirs) in enumerate(zip(_flat(got), wanted, strict=True)):
        if theirs is None:
            continue
        if blocks and not ours.is_floating_point():
            at = number - len(blocks)  # of its block, and of that block's pooled maps
            ours, theirs = torch_ops.values_at(torch, theirs, ours, blocks[at].pool), wanted[at]
        elif not ours.is_floating_point() and not isinstance(geometry, Pool2dGeometry):
            if not torch.equal(ours, theirs):
                return Verdict(math.nan, math.nan, f"result {number}, of integers, is not the same")
            continue
        elif not ours.is_floating_point():
            if wrong := int((torch_ops.indices_of(torch, ours, geometry) != theirs).sum()):
                return Verdict(math.nan, math.nan, f"{wrong} of {ours.numel()} winners are other elements")
            continue
        verdict = compare(ours.double(), theirs, dtype)
        if verdict.fault is not None:
            return Verdict(verdict.norm, verdict.worst, f"result {number} {verdict.fault}")
        norm, worst = max(norm, verdict.norm), max(worst, verdict.worst)
    return Verdict(norm, worst, None)


class KernelFailed(RuntimeError):
    """A launch raised, or the device reported a fault after it; the message says which kernel."""


class Case:
    """An operation on a geometry, by which kernels are judged: random inputs, and what comes out in float64."""

    def __init__(self, place: Place, operation: str, geometry: Any, dtype: str = "float32", seed: int = 0):
        self._place, self._operation, self._geometry, self._dtype = place, operation, geometry, dtype
        self._original = operands(place, operation, geometry, dtype, seed)
        self._results = results_of(operation)
        self._wanted = reference(place, operation, geometry, self._original)

    def verdict(self, module: Any, tiling: Any, name: str) -> Verdict:
        """Whether a kernel is right, writes nothing beside its results, and gives the same bits when it is run again.

        Raises:
            KernelFailed: a launch did not come to its end; the message begins with ``name``.
        """
        place, runs = self._place, []
        for _ in range(2):
            guards: list[Any] = []
            guarded = functools.partial(_guarded, place, guards)
            tensors = [
                _each(guarded, operand) if position in self._results else operand
                for position, operand in enumerate(self._original)
            ]
            try:
                launch(place, module, self._operation, self._geometry, tiling, tensors)()
                place.synchronize()
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
                raise KernelFailed(f"{name}: {reason}") from error
            if any((zone != _PATTERN).any() for zone in guards):
                text = "out-of-bounds write: the memory beside a result was written to"
                return Verdict(math.nan, math.nan, text)
            runs.append(_flat([tensors[position] for position in self._results]))
        verdict = judge(self._operation, self._geometry, self._dtype, place.torch, runs[0], self._wanted)
        if verdict.fault is None and not all(map(place.torch.equal, *runs)):
            return Verdict(verdict.norm, verdict.worst, "two runs on the same inputs differ: a race?")
        return verdict


def _guarded(place: Place, guards: list[Any], tensor: Any) -> Any:
    """A copy of a result between two guard zones, which are added to ``guards``."""
    size = tensor.numel() * tensor.element_size()
    memory = place.torch.full((size + 2 * _GUARD,), _PATTERN, dtype=place.torch.uint8, device=tensor.device)
    guards += [memory[:_GUARD], memory[_GUARD + size :]]
    own = memory[_GUARD : _GUARD + size].view(tensor.dtype).view(tensor.shape)
    return own.copy_(tensor)


def verify(
    place: Place,
    operation: str,
    variant: str,
    geometry: Any,
    tilings: Sequence[Any],
    *,
    dtype: str = "float32",
    seed: int = 0,
) -> dict[Any, Verdict]:
    """Judge a variant in some tilings, see :meth:`Case.verdict`.

    Raises:
        KernelFailed: a launch did not come to its end.
    """
    module, case = kernels.load(operation, variant), Case(place, operation, geometry, dtype, seed)
    return {one: case.verdict(module, one, f"{operation} {variant} {one} on {geometry}") for one in tilings}
