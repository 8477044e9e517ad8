"""Whether a kernel variant is right at real sizes: random inputs, poisoned results, a float64 reference, run twice.

Arrays are made by PyTorch and shared with the array library of the backend, so that kernel, reference and peer see the
same memory. On a machine without a GPU the same code runs on the host with the simulator, for small geometries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from bench import layers, torch_ops
from gpuconv import kernels

#: Of an operation, how many of its last operands are results, or which ones it changes in place.
_RESULTS: dict[str, int | tuple[int, ...]] = {
    "max_pool2d": 2,
    "softmax_cross_entropy": 3,
    "sgd_update": (0, 2),
    "adam_update": (0, 2, 3),
}
#: The most by which a result may differ: relative to the norm of all of it, so that TF32 (about 3e-4) shows; and one
#: element relative to the root mean square, so that a single wrong one shows among millions.
NORM_TOLERANCE = {"float32": 1e-4, "float64": 1e-12}
WORST_TOLERANCE = {"float32": 1e-2, "float64": 1e-9}


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


def results_of(operation: str, count: int) -> tuple[int, ...]:
    """Positions of the results among so many operands."""
    found = _RESULTS.get(operation, 1)
    return tuple(range(count - found, count)) if isinstance(found, int) else found


def operands(place: Place, operation: str, geometry: Any, dtype: str, seed: int) -> list[Any]:
    """Torch tensors in the order of a variant's ``launch``: random where they are read, poisoned where written."""
    torch = place.torch
    generator = torch.Generator(place.device).manual_seed(seed)
    described = layers.OPERATIONS[operation].operands(geometry, dtype)
    results = results_of(operation, len(described))
    tensors = []
    for position, operand in enumerate(described):
        options = {"dtype": getattr(torch, operand.dtype), "device": place.device}
        if position in results and operation not in ("sgd_update", "adam_update"):
            tensors.append(_poison(torch, operand.shape, options))
        elif operand.dtype == "int64":  # labels
            tensors.append(torch.randint(geometry[1], operand.shape, generator=generator, **options))
        elif operand.dtype in ("uint8", "int32"):  # winners: only those inside the image are any
            x = torch.randn(geometry.input_shape, generator=generator, device=place.device)
            _, indices = torch_ops.OPERATIONS["max_pool2d"](torch, geometry, [x], {})()
            tensors.append(torch_ops.offsets_of(torch, indices, geometry))
        else:
            tensors.append(torch.randn(operand.shape, generator=generator, **options))
    if operation == "softmax_cross_entropy_grad":
        tensors[1] = torch.softmax(tensors[1], 1)
    if operation == "adam_update":
        tensors[3].square_()
    return tensors


def _poison(torch: Any, shape: tuple[int, ...], options: dict[str, Any]) -> Any:
    kind = options["dtype"]
    return torch.full(shape, math.nan if kind.is_floating_point else torch.iinfo(kind).max, **options)


def launch(place: Place, module: Any, operation: str, geometry: Any, tiling: Any, tensors: Sequence[Any]) -> Any:
    """A step without arguments that launches a variant on the tensors: only the launch is in it."""
    arrays = [place.xp.from_dlpack(tensor) for tensor in tensors]
    keywords = dict(layers.OPERATIONS[operation].keywords)
    size = module.workspace_size(geometry, tiling) if hasattr(module, "workspace_size") else 0
    if size:
        keywords["workspace"] = place.xp.empty((size,), arrays[0].dtype)
    return lambda: module.launch(*arrays, geometry, tiling, place.stream, **keywords)


def reference(place: Place, operation: str, geometry: Any, tensors: Sequence[Any]) -> list[Any]:
    """What the results have to be, in float64; None where PyTorch has no such result."""
    doubles = [tensor.double() if tensor.is_floating_point() else tensor for tensor in _inputs(operation, tensors)]
    step = torch_ops.OPERATIONS[operation](place.torch, geometry, doubles, layers.OPERATIONS[operation].keywords)
    return list(step())


def peer(place: Place, operation: str, geometry: Any, tensors: Sequence[Any]) -> torch_ops.Step:
    """PyTorch's step on the same inputs, in their own type; what it changes is its own copy."""
    own = [tensor.clone() for tensor in _inputs(operation, tensors)]
    return torch_ops.OPERATIONS[operation](place.torch, geometry, own, layers.OPERATIONS[operation].keywords)


def _inputs(operation: str, tensors: Sequence[Any]) -> list[Any]:
    results = results_of(operation, len(tensors))
    in_place = operation in ("sgd_update", "adam_update")
    return [tensor for position, tensor in enumerate(tensors) if in_place or position not in results]


@dataclass(frozen=True)
class Verdict:
    """How far results are from the reference, the worst of them; NaN where one is not a number.

    Attributes:
        norm: norm of the difference, relative to that of the reference.
        worst: largest difference, relative to the root mean square of the reference.
        fault: why it is wrong, or None.
    """

    norm: float
    worst: float
    fault: str | None


def judge(operation: str, geometry: Any, dtype: str, torch: Any, got: Sequence[Any], wanted: Sequence[Any]) -> Verdict:
    """Compare results with those of :func:`reference`; the winners of pooling have to be the same elements."""
    norm = worst = 0.0
    for number, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        if theirs is None:
            continue
        if not ours.is_floating_point():
            if wrong := int((torch_ops.indices_of(torch, ours, geometry) != theirs).sum()):
                return Verdict(math.nan, math.nan, f"{wrong} of {ours.numel()} winners are other elements")
            continue
        difference, scale = ours.double() - theirs, theirs.square().mean().sqrt().item() or 1.0
        own_norm = difference.square().mean().sqrt().item() / scale
        own_worst = difference.abs().max().item() / scale
        # Written so that a NaN fails.
        if not (own_norm <= NORM_TOLERANCE[dtype] and own_worst <= WORST_TOLERANCE[dtype]):
            unwritten = int(ours.isnan().sum())
            fault = f"result {number} differs by {own_norm:.2g} of its norm, an element by {own_worst:.2g} of the mean"
            return Verdict(own_norm, own_worst, f"{fault}, {unwritten} are NaN" if unwritten else fault)
        norm, worst = max(norm, own_norm), max(worst, own_worst)
    return Verdict(norm, worst, None)


class KernelFailed(RuntimeError):
    """A launch raised, or the device reported a fault after it; the message says which kernel."""


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
    """Judge a variant in some tilings: right, and bit for bit the same when it is run again.

    Raises:
        KernelFailed: a launch did not come to its end.
    """
    module = kernels.load(operation, variant)
    original = operands(place, operation, geometry, dtype, seed)
    results = results_of(operation, len(original))
    wanted = reference(place, operation, geometry, original)
    verdicts = {}
    for tiling in tilings:
        runs = []
        for _ in range(2):
            tensors = [tensor.clone() if position in results else tensor for position, tensor in enumerate(original)]
            try:
                launch(place, module, operation, geometry, tiling, tensors)()
                place.synchronize()
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
                raise KernelFailed(f"{operation} {variant} {tiling} on {geometry}: {reason}") from error
            runs.append([tensors[position] for position in results])
        verdict = judge(operation, geometry, dtype, place.torch, runs[0], wanted)
        if verdict.fault is None and not all(map(place.torch.equal, *runs)):
            verdict = Verdict(verdict.norm, verdict.worst, "two runs on the same inputs differ: a race?")
        verdicts[tiling] = verdict
    return verdicts
