"""A module whose gradients are averaged over the processes, while backward still runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor, at_end_of_backward, is_grad_enabled
from gpuconv.backends import capturing
from gpuconv.geometry import integer
from gpuconv.nn import Module, Parameter
from gpuconv.parallel.world import World, current

__all__ = ["DataParallel"]


class DataParallel:
    """A module of which each process has a copy; every backward leaves the same gradients in all of them.

    Each process calls it with its share of a batch (:func:`gpuconv.parallel.share`) and takes the **mean** loss of
    that share. The gradients are then weighted by the number of samples, the length of the first input, so that they
    are those of the mean over the whole batch, also if the shares are of unequal length. Parameters and buffers are
    made those of rank 0 at the start, and the same optimizer then keeps them equal. Sums are formed in float32, of
    float64 in float64, in an order that is the same in every run.

    Gradients travel in buckets: as soon as backward has those of a bucket, the engine begins to sum it. The order is
    that of the parameters, backwards. ``backward`` returns when all are there; gradients add to those of an earlier
    backward, as usual. A parameter without a gradient on any process keeps none.

    In one process alone it does nothing but call the module. Attributes are the module's.

    Args:
        module: the same on all processes, in structure and types; it lives where it shall compute.
        world: the processes; by default :func:`gpuconv.parallel.current`.
        bucket_bytes: size of a bucket, at which the next one is begun.

    Raises:
        WorldError: the processes have different modules.
    """

    def __init__(self, module: Module, *, world: World | None = None, bucket_bytes: int = 1 << 20):
        self.module, self.world = module, current() if world is None else world
        self._count: int | None = None
        self._running, self._next = False, 0
        self._buckets: list[_Bucket] = []
        if self.world.size == 1:
            return
        integer(bucket_bytes, "bucket_bytes", minimum=1, op="DataParallel")
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.world.check_same({name: f"{one.dtype} {tuple(one.shape)}" for name, one in named.items()})
        self.world.check_same({f"requires_grad of {name}": one.requires_grad for name, one in named.items()})
        self.broadcast(named.values())
        for parameters in _divided([p for p in module.parameters() if p.requires_grad], bucket_bytes):
            bucket = _Bucket(parameters)
            self._buckets.append(bucket)
            for number, parameter in enumerate(parameters):
                parameter.register_hook(functools.partial(self._arrived, bucket, number))

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Call the module on this process's share of a batch."""
        if self.world.size > 1 and is_grad_enabled():
            self._count = len(inputs[0])
        return self.module(*inputs, **options)

    def __getattr__(self, name: str) -> Any:
        if name == "module":  # it is not there yet
            raise AttributeError(name)
        return getattr(self.module, name)

    def skip(self) -> None:
        """Take part in a step in which this process has no samples; in place of forward and backward.

        Not with :func:`gpuconv.parallel.sync_batch_norm`, for which every process needs samples.
        """
        self._count = 0
        if self._buckets:
            self._begin()
            self._finish()

    def broadcast(self, tensors: Iterable[Tensor] | None = None) -> None:
        """Make tensors, by default the module's buffers, those of rank 0.

        The running statistics of a process's batch normalisation are of its own samples; rank 0 saves its own.
        """
        for one in [*self.module.buffers()] if tensors is None else tensors:
            self.world.broadcast(one.data)

    # -- a backward --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._running, self._next = True, 0
        for bucket in self._buckets:
            bucket.clear()

    def _arrived(self, bucket: _Bucket, number: int, grad: Tensor) -> None:
        """The hook of a parameter's gradient."""
        if capturing.active and capturing.current() is not None:
            raise RuntimeError("DataParallel: gradients that travel between processes cannot be captured")
        if self._count is None:
            raise RuntimeError("DataParallel: call it, and not the module in it: it counts the samples")
        if not self._running:
            at_end_of_backward(self._finish)
            self._begin()
        bucket.put(number, grad.data, self._count)
        self._start(lambda bucket: bucket.full)
        self.world.progress()

    def _start(self, ready: Callable[[_Bucket], bool]) -> None:
        # In the order of the buckets, on all processes: an engine matches the calls by their order.
        while self._next < len(self._buckets) and ready(self._buckets[self._next]):
            self._buckets[self._next].start(self.world, self._count or 0)
            self._next += 1

    def _finish(self) -> None:
        self._start(lambda bucket: True)
        for bucket in self._buckets:
            bucket.finish()
        self._running = False


def _divided(parameters: list[Parameter], size: int) -> list[list[Parameter]]:
    """Parameters in buckets, the last ones first: backward comes to them in about this order."""
    buckets: list[list[Parameter]] = []
    filled: dict[np.dtype, int] = {}
    latest: dict[np.dtype, list[Parameter]] = {}
    for parameter in reversed(parameters):
        dtype = _summed_in(parameter)
        if dtype not in latest or filled[dtype] >= size:
            latest[dtype], filled[dtype] = [], 0
            buckets.append(latest[dtype])
        latest[dtype].append(parameter)
        filled[dtype] += parameter.numel() * dtype.itemsize
    return buckets


def _summed_in(parameter: Parameter) -> np.dtype:
    return np.dtype(np.float64 if parameter.dtype == np.float64 else np.float32)


class _Bucket:
    """Gradients that are summed in one call: one array of them, of a flag for each, and of the number of samples."""

    def __init__(self, parameters: list[Parameter]):
        self.parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        self.ends = np.cumsum(sizes).tolist()
        # Where the parameters live: an array of that kind.
        like = parameters[0].data
        whole = type(like)((sum(sizes) + len(sizes) + 1,), _summed_in(parameters[0]))
        self.buffer: Any = whole
        self.parts = [
            whole[end - size : end].reshape(parameter.shape)
            for parameter, size, end in zip(parameters, sizes, self.ends, strict=True)
        ]
        self.flags = whole[self.ends[-1] : -1]
        self.clear()

    def clear(self) -> None:
        self.before: dict[int, Tensor | None] = {}  # by number: what had been accumulated
        self.wait: Callable[[], None] = lambda: None

    @property
    def full(self) -> bool:
        return len(self.before) == len(self.parameters)

    def put(self, number: int, grad: Any, count: int) -> None:
        part = self.parts[number]
        part[...] = grad
        part *= count
        self.before[number] = self.parameters[number].grad

    def start(self, world: World, count: int) -> None:
        for number, part in enumerate(self.parts):
            there = number in self.before
            self.flags[number] = there
            if not there:
                part[...] = 0
        self.buffer[-1] = count
        self.wait = world.start_sum(self.buffer)

    def finish(self) -> None:
        self.wait()
        *flags, count = self.buffer[self.ends[-1] :].tolist()
        for number, (parameter, part, flag) in enumerate(zip(self.parameters, self.parts, flags, strict=True)):
            if not flag:
                continue
            part /= count
            before = self.before.get(number, parameter.grad)
            average = part.astype(parameter.dtype)
            parameter.grad = Tensor(average if before is None else before.data + average)
