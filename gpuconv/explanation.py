"""What runs when a network runs: which primitives, on which backend, with which kernel, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv import backends
from gpuconv.autograd import Tensor, undone
from gpuconv.backends import Backend
from gpuconv.geometry import BlockGeometry, BlockPairGeometry, ChainGeometry, Conv2dGeometry, Pool2dGeometry

__all__ = ["Explanation", "Step", "explain"]


@dataclass(frozen=True)
class Step:
    """One primitive that ran.

    Attributes:
        primitive: its name in ``gpuconv.backends.Backend``.
        geometry: of its convolution, pooling, pair of blocks or fully connected layers; None for others.
        lines: how it ran, and what else there was.
        pool: of the pooling that ran with the convolution; None if there was none.
    """

    primitive: str
    geometry: Conv2dGeometry | Pool2dGeometry | ChainGeometry | BlockPairGeometry | None
    lines: tuple[str, ...]
    pool: Pool2dGeometry | None = None


@dataclass(frozen=True)
class Explanation:
    """What ran; print it to read it."""

    backend: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        text = [f"backend: {self.backend}"]
        for step in self.steps:
            text.append(f"{step.primitive}{_sizes(step.geometry)}")
            text += [f"    {line}" for line in step.lines]
        return "\n".join(text)


def _sizes(geometry: Conv2dGeometry | Pool2dGeometry | ChainGeometry | BlockPairGeometry | None) -> str:
    if geometry is None:
        return ""
    if isinstance(geometry, ChainGeometry):
        return f": {geometry.n} rows, {' -> '.join(map(str, geometry.sizes))}"
    if isinstance(geometry, BlockPairGeometry):
        shapes = geometry.first.conv.input_shape, *(block.pool.output_shape for block in geometry)
        return f": {' -> '.join(map(str, shapes))}"
    n, channels, p, q = geometry.output_shape
    text = f": ({', '.join(map(str, geometry.input_shape))}) -> ({n}, {channels}, {p}, {q}), {geometry.r}x{geometry.s}"
    if geometry.stride != (1, 1):
        text += f", stride {geometry.stride}"
    if isinstance(geometry, Conv2dGeometry) and geometry.groups > 1:
        text += f", {geometry.groups} groups"
    return text


def explain(
    function: Callable[[Tensor], Tensor],
    input_shape: Sequence[int],
    *,
    backend: str | None = None,
    training: bool = False,
) -> Explanation:
    """Run ``function`` on zeros, and report which primitives ran and how. Running statistics and gradients stay.

    Neighbouring layers that run as one operation, such as ``Conv2d → ReLU → MaxPool2d``, are one primitive.

    Args:
        function: takes a Tensor and returns one; for example a Module, which is given its parameters' type.
        input_shape: shape of the input, with the batch size, on which choices may depend.
        backend: name of a backend; None for the current one.
        training: run backward as well.

    Raises:
        ValueError: the input does not fit, or the backend is unknown.
        BackendUnavailable: the backend cannot run here.
    """
    chosen = backends.current() if backend is None else backends.get(backend)
    observed = _observing(chosen)
    parameters: Any = getattr(function, "parameters", tuple)()
    dtype = next((parameter.dtype for parameter in parameters), np.dtype(np.float32))
    with backends.use_backend(observed), undone():
        result = function(Tensor(np.zeros(input_shape, dtype), requires_grad=training))
        if training:
            result.backward(np.zeros(result.shape, result.dtype))
    return Explanation(f"{chosen.name} ({chosen.describe()})", tuple(observed.steps))


#: What may run as blocks that are fused themselves.
_PAIR = "conv2d_relu_max_pool2d_pair"


def _observing(backend: Backend) -> Any:
    """A copy of a backend that records each call of a primitive and passes it on to the original."""

    def noting(name: str) -> Callable[..., Any]:
        def primitive(self: Any, *arguments: Any, **options: Any) -> Any:
            kinds = Conv2dGeometry, Pool2dGeometry, ChainGeometry, BlockPairGeometry
            geometries: list[Any] = [a for a in arguments if isinstance(a, kinds)]
            geometry = geometries[0] if geometries else None
            dtype = next(np.dtype(a.dtype).name for a in arguments if hasattr(a, "dtype"))
            what = BlockGeometry(*geometries) if len(geometries) == 2 else geometry
            pool = what.pool if isinstance(what, BlockGeometry) else None
            lines = tuple(backend.explain(name, what, dtype))
            self.steps.append(Step(name, geometry, lines, pool))
            if name == _PAIR and any(line.startswith("composed: taken") for line in lines):
                return getattr(Backend, name)(self, *arguments, **options)  # its parts are noted, too
            return getattr(backend, name)(*arguments, **options)

        return primitive

    # A fused primitive that the backend does not define runs as the base composes it: the parts are noted, then.
    blocks = "conv2d_relu_max_pool2d", "conv2d_relu_max_pool2d_grad", "linear_chain", "linear_chain_grad"
    fused = ("conv2d_relu", "linear_relu", *blocks, _PAIR)
    defined = [name for name in fused if getattr(type(backend), name) is not getattr(Backend, name)]
    primitives = sorted(Backend.__abstractmethods__ - {"asarray", "to_numpy"}) + defined
    overridden = {name: noting(name) for name in primitives}
    # Whatever order a backend takes them in, each block's gradients are noted once.
    overridden[f"{_PAIR}_grad"] = getattr(Backend, f"{_PAIR}_grad")
    observing: Any = object.__new__(type("Observing", (type(backend),), overridden))
    observing.__dict__.update(backend.__dict__, steps=[])
    return observing
