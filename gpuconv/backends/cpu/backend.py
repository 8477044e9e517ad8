"""The fast CPU backend: NumPy's primitives, with the hot ones compiled by Numba with explicit vectors.

This file decides what runs where. The kernels are in

- ``conv``, ``conv_grad``: convolution, its gradients, and the block with ReLU and max pooling;
- ``winograd``: 3x3 convolutions and their gradients, with a quarter of the multiplications;
- ``gemm``: matrix products; ``pool``: pooling; ``norm``: batch normalisation; ``pointwise``: ReLU, loss, optimizers;
  ``images``: batches of inputs.

They are built on ``simd``, the vectors; ``compile``, the compiler and its cache; ``threads``; and ``memory``, arrays
whose memory is reused. ``rehearsal`` compiles what a training run is about to need in two processes.

**Which convolution runs.**

- Below :data:`COMPILE_FROM` multiply-adds, NumPy's: it has the result long before a kernel is compiled.
- Otherwise the variant that ``gpuconv tune`` found to be the fastest here. The variants are ``by_columns`` and
  ``by_filters``, ``by_phases`` for the input's gradient with a stride of 2, ``dense`` for the weight's gradient,
  ``winograd`` for 3x3 filters with a stride of 1, and ``im2col``: windows gathered by NumPy, times the filters.
- If nothing was tuned, ``winograd`` where there are channels and positions enough (:func:`winograd.pays` has the
  measurements): it takes 0.45 to 0.9 of the time of the direct kernels on the 3x3 layers of ResNet-18 forward (batch
  32, two cores with AVX-512), 0.55 to 0.95 for the weight's gradient.
- Otherwise a rule chooses a direct kernel with lanes over columns or over filters, whichever takes fewer
  vector operations (:attr:`~gpuconv.backends.cpu.conv.Forward.costs`). Gathered windows and BLAS win at no size: on the
  3x3 layers of ResNet (batch 8, two cores with AVX-512) the direct kernels reach 410 to 510 GF/s forward and for the
  input's gradient, the NumPy backend 130 to 220; for the weight's gradient 190 to 420, against 170 to 200. They come
  within 10 % of each other only for the weight of 512 filters on 7x7 maps, and for the input with a stride of 2.
  ``im2col`` with its compiled product does win where a map has few positions and many channels, which tuning finds:
  with 512 filters of 3x3 on 7x7 maps it takes 0.7 of the time of ``dense``, and forward of a single image 0.8 of the
  time of ``by_filters``.
- Convolution, ReLU and max pooling are one kernel if the pooling windows tile the map; their gradient visits only the
  positions of the maxima. For other poolings the parts run one after the other, as composed in
  :class:`~gpuconv.backends.base.Backend`.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from gpuconv.backends import capturing, host_graph
from gpuconv.backends.base import Candidate
from gpuconv.backends.numpy_backend import NumpyBackend, check_index
from gpuconv.geometry import BlockGeometry, ChainGeometry, Conv2dGeometry, Pair, Pool2dGeometry
from gpuconv.tuning import store

try:
    import numba

    if numba.config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set, so that Numba compiles nothing; unset it")

    from gpuconv.backends.cpu import conv, conv_grad, norm, pointwise, simd, winograd
    from gpuconv.backends.cpu import images as pictures
    from gpuconv.backends.cpu import pool as pooling
    from gpuconv.backends.cpu.compile import Elements, Kernel, sources
    from gpuconv.backends.cpu.gemm import product
    from gpuconv.backends.cpu.memory import StepMemory, constant_ones, constant_zeros, empty, lasting
    from gpuconv.backends.cpu.rehearsal import compiling_ahead
    from gpuconv.backends.cpu.threads import Check, launch, threads
except ImportError as error:  # numba, or the llvmlite that belongs to it
    _MISSING: str | None = f"{error}; pip install numba"
except RuntimeError as error:
    _MISSING = str(error)
else:
    _MISSING = None

#: Multiply-adds (of a pooling: elements read) from which a kernel is compiled. Compiling takes half a second, in which
#: NumPy does a thousand times as much.
COMPILE_FROM = 100_000

#: Elements from which batch normalisation is compiled.
_COMPILED_NORM = 20_000

#: Multiply-adds of a product below which NumPy's takes no longer. Such products take one thread, too: from 9,216 on
#: OpenBLAS shares a matrix times a vector among its threads, and results would depend on their number.
_SMALL_PRODUCT = 9_000

#: Multiply-adds of an input's gradient with a stride of 2 from which even and odd rows and columns are computed apart.
#: That takes half of the time or less, and up to four kernels to compile in place of one.
_PHASES_FROM = 50_000_000

#: Memory for the partial sums of a gradient over parts of the batch.
_PARTIAL_BYTES = 8 << 20


class NumbaBackend(NumpyBackend):
    """NumPy arrays; loops compiled for this CPU."""

    name: ClassVar[str] = "numba"

    @classmethod
    def unavailable(cls) -> str | None:
        return _MISSING

    def describe(self) -> str:
        bits = 8 * simd.registers()[0]
        return f"numba {numba.__version__}, {threads()} threads, vectors of {bits} bits; {super().describe()}"

    def compiling_ahead(self, *steps: Callable[[], object]) -> AbstractContextManager[None]:
        return compiling_ahead(*steps)

    def explain(self, primitive: str, geometry: Any, dtype: str) -> list[str]:
        if geometry is None:
            return ["a compiled loop"]
        if isinstance(geometry, ChainGeometry):
            small = f"numpy: no product of {_SMALL_PRODUCT:,} multiply-adds"
            return [small if _is_small_chain(geometry) else "a compiled product for each layer"]
        block = geometry if isinstance(geometry, BlockGeometry) else None
        if block is not None:
            geometry = block.conv
        pooled = isinstance(geometry, Pool2dGeometry)
        work = _elements_read(geometry) if pooled else geometry.macs
        if work < COMPILE_FROM:
            return [f"numpy: of {work:,} {'elements' if pooled else 'multiply-adds'}, less than {COMPILE_FROM:,}"]
        if primitive == "conv2d_relu_max_pool2d_grad":
            return ["grad_sparse: visits the positive maxima only"]
        if pooled:
            return ["a compiled loop: one pass over the planes"]
        lines = []
        window = (1, 1)
        if block is not None and _tiles(block.pool):
            lines = ["one kernel: writes the pooled maps, and a byte for each that says where the maximum was"]
            window = (block.pool.r, block.pool.s)
        operation = primitive if primitive in ("conv2d_grad_input", "conv2d_grad_weight") else "conv2d"
        taken, source = _variant(operation, geometry, dtype, window)
        about = _about(operation, geometry, dtype, window)
        for variant in sorted(about, key=lambda variant: variant != taken):
            lines.append(f"{variant}: {about[variant]}" + (f"; taken, {source}" if variant == taken else ""))
        return lines

    # -- captured steps ----------------------------------------------------------------------------------------------

    def new_graph(self, *, side_by_side: bool = True) -> host_graph.HostGraph:
        return host_graph.HostGraph(self, StepMemory())

    # -- tuning ------------------------------------------------------------------------------------------------------

    def tuning_platform(self) -> store.Platform:
        return _platform()

    def candidates(
        self, operation: str, geometry: Conv2dGeometry, dtype: str, window: Pair = (1, 1)
    ) -> list[Candidate]:
        if geometry.macs < COMPILE_FROM:
            raise ValueError(
                f"{operation}: NumPy computes it, of {geometry.macs:,} multiply-adds, less than {COMPILE_FROM:,}; "
                "there is nothing to choose"
            )
        variants = _about(operation, geometry, dtype, window)
        return [Candidate(variant, None, _way(operation, variant, geometry, dtype, window)) for variant in variants]

    # -- data --------------------------------------------------------------------------------------------------------

    def image_batch(
        self,
        table: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        index: np.ndarray,
        transforms: np.ndarray | None,
        size: Pair,
    ) -> tuple[np.ndarray, np.ndarray]:
        check_index(index, len(images))
        warps, n = transforms is not None, len(index)
        x = empty((n, 1, *size), table.dtype)
        work = (40 if warps else 4) * x.size
        chunks = _chunks(work, n)
        # Without transforms the kernel does not read this argument.
        moved = table if transforms is None else transforms.take(index, 0)
        arrays = (_ready(table), images.take(index, 0), moved, x)
        launch(_images(table.dtype, images.shape[1:], size, warps), chunks, *arrays, n, chunks, work=work)
        return x, labels[index]

    # -- convolution -------------------------------------------------------------------------------------------------

    def conv2d(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, geometry: Conv2dGeometry
    ) -> np.ndarray:
        if geometry.macs < COMPILE_FROM:
            return super().conv2d(x, weight, bias, geometry)
        run = _forward(x.dtype, geometry)
        return _GATHERED.conv2d(x, weight, bias, geometry) if run is None else _convolve(run, x, weight, bias)[0]

    def conv2d_relu(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, geometry: Conv2dGeometry
    ) -> np.ndarray:
        if geometry.macs < COMPILE_FROM:
            return super().conv2d_relu(x, weight, bias, geometry)
        run = _forward(x.dtype, geometry, relu=True)
        return _GATHERED.conv2d_relu(x, weight, bias, geometry) if run is None else _convolve(run, x, weight, bias)[0]

    def conv2d_grad_input(self, grad: np.ndarray, weight: np.ndarray, geometry: Conv2dGeometry) -> np.ndarray:
        if geometry.macs < COMPILE_FROM:
            return super().conv2d_grad_input(grad, weight, geometry)
        run = _grad_input(grad.dtype, geometry)
        return _GATHERED.conv2d_grad_input(grad, weight, geometry) if run is None else _convolve(run, grad, weight)[0]

    def conv2d_grad_weight(self, grad: np.ndarray, x: np.ndarray, geometry: Conv2dGeometry) -> np.ndarray:
        g = geometry
        if g.macs < COMPILE_FROM:
            return super().conv2d_grad_weight(grad, x, g)
        run = _grad_weight(x.dtype, g)
        return _GATHERED.conv2d_grad_weight(grad, x, g) if run is None else _correlate(run, grad, x, g)

    # -- the fused block ---------------------------------------------------------------------------------------------

    def conv2d_relu_max_pool2d(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, geometry: Conv2dGeometry, pool: Pool2dGeometry
    ) -> tuple[np.ndarray, np.ndarray]:
        if geometry.macs < COMPILE_FROM or not _tiles(pool):
            return super().conv2d_relu_max_pool2d(x, weight, bias, geometry, pool)
        run = _forward(x.dtype, geometry, (pool.r, pool.s), relu=True)
        assert run is not None  # im2col is no candidate for it
        return _convolve(run, x, weight, bias)

    def conv2d_relu_max_pool2d_grad(
        self,
        grad: np.ndarray,
        x: np.ndarray,
        weight: np.ndarray,
        y: np.ndarray,
        winners: np.ndarray,
        geometry: Conv2dGeometry,
        pool: Pool2dGeometry,
        needs: tuple[bool, bool, bool],
    ) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """As in the base class; elements that are not a maximum count as exactly zero, even times an infinite input."""
        g = geometry
        if g.macs < COMPILE_FROM or not _tiles(pool):
            return super().conv2d_relu_max_pool2d_grad(grad, x, weight, y, winners, g, pool, needs)
        run = _grad_block(x.dtype, g, (pool.r, pool.s), needs[0])
        # Without the input's gradient the kernel does not read the weight.
        packed = conv_grad.packed_patches(run.plan, _ready(weight)) if needs[0] else weight
        partial, partial_bias = empty(run.partial_shape, x.dtype), empty((run.chunks, g.k), x.dtype)
        input_grad = empty(g.input_shape if needs[0] else (0, 0, 0, 0), x.dtype)
        upstream = (_ready(grad), _ready(y), _ready(winners))
        sums = (input_grad, partial, partial_bias)
        launch(run.kernel, run.chunks, _ready(x), packed, *upstream, *sums, g.n, run.chunks, work=g.macs)
        return (
            input_grad if needs[0] else None,
            conv_grad.weight_gradient(partial, g.weight_shape) if needs[1] else None,
            _column_sums(partial_bias) if needs[2] else None,
        )

    # -- fully connected layers --------------------------------------------------------------------------------------

    def linear(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        if _is_small_product(x, weight):
            return super().linear(x, weight, bias)
        return _linear(x, weight, bias, rectified=False)

    def linear_relu(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        if _is_small_product(x, weight):
            return super().linear_relu(x, weight, bias)
        return _linear(x, weight, bias, rectified=True)

    def linear_grad_input(self, grad: np.ndarray, weight: np.ndarray) -> np.ndarray:
        if _is_small_product(grad, weight):
            return super().linear_grad_input(grad, weight)
        return _linear_grad_input(grad, weight)

    def linear_grad_weight(self, grad: np.ndarray, x: np.ndarray) -> np.ndarray:
        if grad.size * x.shape[-1] < _SMALL_PRODUCT:
            return super().linear_grad_weight(grad, x)
        return _linear_grad_weight(grad, x)

    def linear_grad_bias(self, grad: np.ndarray) -> np.ndarray:
        return np.add.reduce(_rows(grad), axis=0)

    def linear_chain(
        self,
        x: np.ndarray,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray | None],
        geometry: ChainGeometry,
    ) -> list[np.ndarray]:
        if _is_small_chain(geometry):
            return super().linear_chain(x, weights, biases, geometry)
        return _PRODUCTS.linear_chain(x, weights, biases, geometry)

    def linear_chain_grad(
        self,
        grad: np.ndarray,
        x: np.ndarray,
        weights: Sequence[np.ndarray],
        ys: Sequence[np.ndarray],
        geometry: ChainGeometry,
        needs: tuple[bool, ...],
    ) -> tuple[np.ndarray | None, ...]:
        if _is_small_chain(geometry):
            return super().linear_chain_grad(grad, x, weights, ys, geometry, needs)
        return _PRODUCTS.linear_chain_grad(grad, x, weights, ys, geometry, needs)

    # -- activation and pooling --------------------------------------------------------------------------------------

    def relu(self, x: np.ndarray) -> np.ndarray:
        if x.dtype.kind != "f":
            return super().relu(x)
        y = empty(x.shape, x.dtype)
        chunks = _chunks(work := 4 * x.size)
        launch(
            _kernel(pointwise.relu, x.dtype), chunks, _ready(x).reshape(-1), y.reshape(-1), x.size, chunks, work=work
        )
        return y

    def relu_grad(self, grad: np.ndarray, y: np.ndarray) -> np.ndarray:
        dx = empty(y.shape, y.dtype)
        chunks = _chunks(work := 4 * y.size)
        kernel = _kernel(pointwise.relu_grad, y.dtype)
        launch(kernel, chunks, *(a.reshape(-1) for a in (_ready(grad), _ready(y), dx)), y.size, chunks, work=work)
        return dx

    def max_pool2d(self, x: np.ndarray, geometry: Pool2dGeometry) -> tuple[np.ndarray, np.ndarray]:
        if not _worth_compiling(geometry) or geometry.r * geometry.s > 256 or x.dtype.kind != "f":
            return super().max_pool2d(x, geometry)
        y = empty(geometry.output_shape, x.dtype)
        winners = empty(geometry.output_shape, np.dtype(np.uint8))
        _pool(pooling.max_pool, x.dtype, geometry, _ready(x), y, winners)
        return y, winners

    def max_pool2d_grad(self, grad: np.ndarray, winners: np.ndarray, geometry: Pool2dGeometry) -> np.ndarray:
        if not _worth_compiling(geometry) or winners.dtype != np.uint8:
            return super().max_pool2d_grad(grad, winners, geometry)
        dx = empty(geometry.input_shape, grad.dtype)
        _pool(pooling.max_pool_grad, grad.dtype, geometry, _ready(grad), _ready(winners), dx)
        return dx

    def avg_pool2d(
        self, x: np.ndarray, geometry: Pool2dGeometry, *, count_include_pad: bool, divisor_override: int | None
    ) -> np.ndarray:
        options: dict[str, Any] = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
        if not _worth_compiling(geometry) or x.dtype.kind != "f":
            return super().avg_pool2d(x, geometry, **options)
        y = empty(geometry.output_shape, x.dtype)
        _pool(pooling.avg_pool, x.dtype, geometry, _ready(x), *_counts(geometry, **options), y)
        return y

    def avg_pool2d_grad(
        self, grad: np.ndarray, geometry: Pool2dGeometry, *, count_include_pad: bool, divisor_override: int | None
    ) -> np.ndarray:
        options: dict[str, Any] = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
        if not _worth_compiling(geometry):
            return super().avg_pool2d_grad(grad, geometry, **options)
        dx = empty(geometry.input_shape, grad.dtype)
        _pool(pooling.avg_pool_grad, grad.dtype, geometry, _ready(grad), *_counts(geometry, **options), dx)
        return dx

    # -- batch normalisation -----------------------------------------------------------------------------------------

    def batch_norm(
        self,
        x: np.ndarray,
        mean: np.ndarray | None,
        var: np.ndarray | None,
        weight: np.ndarray | None,
        bias: np.ndarray | None,
        residual: np.ndarray | None,
        *,
        eps: float,
        relu: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if x.size < _COMPILED_NORM:
            return super().batch_norm(x, mean, var, weight, bias, residual, eps=eps, relu=relu)
        (n, channels, length), dtype = x.shape, x.dtype
        planes, chunks, x = n * channels, _chunks(work := 4 * x.size, n * channels), _ready(x)
        if mean is None or var is None:
            middles, squares = np.empty((2, n, channels))
            kernel = _kernel(norm.moments, dtype)
            launch(kernel, chunks, x, middles, squares, planes, length, chunks, work=work)
            exact = middles.mean(axis=0)
            deviations = squares.sum(axis=0) + length * np.square(middles - exact).sum(axis=0)
            mean, var = exact.astype(dtype), (deviations / (n * length)).astype(dtype)
        scale = 1 / np.sqrt(var + dtype.type(eps))
        scale = scale if weight is None else scale * weight
        plan = norm.Normalisation(dtype.name, residual is not None, relu)
        arrays = mean, scale, np.zeros(channels, dtype) if bias is None else bias
        others = x if residual is None else residual
        y = empty(x.shape, dtype)
        launch(
            norm.normalise(plan), chunks, x, *map(_ready, (*arrays, others)), y, planes, channels, length, chunks,
            work=work,
        )  # fmt: skip
        return y, mean, var

    def batch_norm_grad(
        self,
        grad: np.ndarray,
        x: np.ndarray,
        y: np.ndarray | None,
        mean: np.ndarray,
        var: np.ndarray,
        weight: np.ndarray | None,
        *,
        eps: float,
        own: bool,
        needs: tuple[bool, ...],
    ) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        if x.size < _COMPILED_NORM:
            return super().batch_norm_grad(grad, x, y, mean, var, weight, eps=eps, own=own, needs=needs)
        (n, channels, length), dtype = x.shape, x.dtype
        need_x, need_weight, need_bias, need_residual = needs
        planes, chunks = n * channels, _chunks(work := 4 * x.size, n * channels)
        grad, x, mean, relu = _ready(grad), _ready(x), _ready(mean), y is not None
        above = grad if y is None else _ready(y)
        rate = 1 / np.sqrt(var.astype(np.float64) + dtype.type(eps))
        db: Any = None
        dw: Any = None
        if own or need_weight or need_bias:
            sums, products = np.empty((2, n, channels))
            kernel = norm.grad_sums(norm.Normalisation(dtype.name, relu=relu))
            launch(kernel, chunks, grad, x, above, mean, sums, products, planes, channels, length, chunks, work=work)
            db, dw = sums.sum(axis=0), products.sum(axis=0) * rate
        dx = dresidual = None
        if need_x or (need_residual and relu):
            scale = rate if weight is None else rate * weight
            slope = shift = np.zeros(channels)
            if own:
                slope, shift = -scale * rate * dw / (n * length), -scale * db / (n * length)
            plan = norm.Normalisation(dtype.name, need_residual and relu, relu)
            dx = empty(x.shape, dtype)
            dresidual = empty(x.shape, dtype) if plan.residual else dx
            numbers = (array.astype(dtype) for array in (scale, slope, shift))
            launch(
                norm.grad_input(plan), chunks, grad, x, above, mean, *numbers, dx, dresidual, planes, channels, length,
                chunks, work=work,
            )  # fmt: skip
        return (
            dx if need_x else None,
            dw.astype(dtype) if need_weight else None,
            db.astype(dtype) if need_bias else None,
            (dresidual if relu else grad) if need_residual else None,
        )

    # -- loss --------------------------------------------------------------------------------------------------------

    def softmax_cross_entropy(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        *,
        weight: np.ndarray | None,
        ignore_index: int,
        label_smoothing: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        rows, classes = logits.shape
        losses, probabilities = empty((rows,), logits.dtype), empty(logits.shape, logits.dtype)
        chunks = _chunks(work := 40 * logits.size)
        wrong = empty((chunks,), np.int64)
        numbers = int(ignore_index), float(label_smoothing), rows, classes, chunks

        def refuse() -> None:  # the NumPy backend says which label is wrong
            NumpyBackend.softmax_cross_entropy(
                self, logits, labels, weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing
            )

        launch(
            _kernel(pointwise.softmax_cross_entropy, logits.dtype),
            chunks,
            _ready(logits),
            _ready(labels, np.int64),
            constant_ones(classes, logits.dtype) if weight is None else _ready(weight, logits.dtype),
            losses,
            probabilities,
            wrong,
            *numbers,
            work=work,
            check=Check(wrong, refuse),
        )
        return losses, probabilities

    def softmax_cross_entropy_mean(
        self, logits: np.ndarray, labels: np.ndarray, *, weight: np.ndarray | None, **options: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        (rows, classes), dtype = logits.shape, logits.dtype
        losses, probabilities = self.softmax_cross_entropy(logits, labels, weight=weight, **options)
        mean, row_grads = empty((1,), dtype), empty((rows,), dtype)
        weights = constant_ones(classes, dtype) if weight is None else _ready(weight, dtype)
        launch(
            _kernel(pointwise.mean_loss, dtype), 1, losses, _ready(labels, np.int64), weights, mean, row_grads,
            int(options["ignore_index"]), rows, classes, work=rows,
        )  # fmt: skip
        gradient = self.softmax_cross_entropy_grad(row_grads, probabilities, labels, weight=weight, **options)
        return mean.reshape(()), gradient

    def softmax_cross_entropy_grad(
        self,
        grad: np.ndarray,
        probabilities: np.ndarray,
        labels: np.ndarray,
        *,
        weight: np.ndarray | None,
        ignore_index: int,
        label_smoothing: float,
    ) -> np.ndarray:
        rows, classes = probabilities.shape
        dtype = probabilities.dtype
        dlogits = empty(probabilities.shape, dtype)
        chunks = _chunks(work := 4 * probabilities.size)
        numbers = int(ignore_index), float(label_smoothing), rows, classes, chunks
        launch(
            _kernel(pointwise.softmax_cross_entropy_grad, dtype),
            chunks,
            _ready(grad, dtype),
            _ready(probabilities),
            _ready(labels, np.int64),
            constant_ones(classes, dtype) if weight is None else _ready(weight, dtype),
            dlogits,
            *numbers,
            work=work,
        )
        return dlogits

    # -- optimizer updates -------------------------------------------------------------------------------------------

    def sgd_update_all(
        self,
        params: Sequence[np.ndarray],
        grads: Sequence[np.ndarray],
        velocities: Sequence[np.ndarray | None],
        *,
        together: Any = None,
        **options: Any,
    ) -> None:
        slots = [] if velocities[0] is None else [velocities]
        table = _update_table(params, grads, slots, together)
        if table is not None:
            terms = capturing.terms_of(options, ("nesterov", "weight_decay"))
            kernel = _sgd(params[0].dtype, bool(slots), *[on for _, on in terms])
            table.run(kernel, 8, _sgd_numbers, terms, options, together)
        else:
            super().sgd_update_all(params, grads, velocities, **options)

    def adam_update_all(
        self,
        params: Sequence[np.ndarray],
        grads: Sequence[np.ndarray],
        means: Sequence[np.ndarray],
        squares: Sequence[np.ndarray],
        *,
        together: Any = None,
        **options: Any,
    ) -> None:
        table = _update_table(params, grads, [means, squares], together)
        if table is not None:
            terms = capturing.terms_of(options, ("weight_decay", "decoupled"))
            kernel = _adam(params[0].dtype, *[on for _, on in terms])
            table.run(kernel, 16, _adam_numbers, terms, options, together)
        else:
            super().adam_update_all(params, grads, means, squares, **options)


# -- arrays ----------------------------------------------------------------------------------------------------------


def _ready(array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """The array as kernels need it: C-contiguous, aligned, of the given dtype; copied if necessary."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned and (dtype is None or array.dtype == dtype):
        return array
    return np.require(array, dtype, ("C", "A"))


def _rows(array: np.ndarray) -> np.ndarray:
    """The array as a matrix, of as many rows as its leading dimensions have elements together."""
    return _ready(array if array.ndim == 2 else array.reshape(-1, array.shape[-1]))


def _is_small_product(rows: np.ndarray, weight: np.ndarray) -> bool:
    return weight.size * math.prod(rows.shape[:-1]) < _SMALL_PRODUCT


def _linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, *, rectified: bool) -> np.ndarray:
    bias = None if bias is None else _ready(bias)
    y = product(_rows(x), _ready(weight), bias, b_transposed=True, rectified=rectified)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], len(weight))


def _linear_grad_input(grad: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return product(_rows(grad), _ready(weight)).reshape(*grad.shape[:-1], weight.shape[1])


def _linear_grad_weight(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    # In memory of its own: a parameter's gradient outlives the step, and autograd would copy a view.
    weight_grad = lasting((grad.shape[-1], x.shape[-1]), grad.dtype)
    return product(_rows(grad), _rows(x), a_transposed=True, out=weight_grad)


def _is_small_chain(geometry: ChainGeometry) -> bool:
    """Whether each of its products is small."""
    return geometry.n * max(a * b for a, b in itertools.pairwise(geometry.sizes)) < _SMALL_PRODUCT


def _column_sums(matrix: np.ndarray) -> np.ndarray:
    """The sum of each column, from the first row to the last."""
    rows, columns = matrix.shape
    sums = lasting((columns,), matrix.dtype)
    chunks = _chunks(work := matrix.size)
    launch(_kernel(pointwise.column_sums, matrix.dtype), chunks, _ready(matrix), sums, rows, columns, chunks, work=work)
    return sums


class _UpdateTable:
    """The addresses of the arrays of several parameters, as an optimizer's kernel reads them.

    Args:
        written: for each parameter its array and those that belong to it, all writable by a kernel.

    Attributes:
        arrays: all of these, one after the other.
    """

    def __init__(self, written: list[tuple[np.ndarray, ...]]):
        self.arrays = [array for arrays in written for array in arrays]
        self._rows = np.zeros((len(written) + 1, 4 if len(written[0]) < 3 else 5), np.int64)
        self._grads: list[np.ndarray] = []  # kept while the kernel reads them
        self._size = sum(arrays[0].size for arrays in written)
        self._rows[1:, 0] = np.cumsum([arrays[0].size for arrays in written])
        for row, arrays in zip(self._rows, written, strict=False):
            row[[1, *range(3, 2 + len(arrays))]] = [array.ctypes.data for array in arrays]

    def has(self, *groups: Sequence[np.ndarray]) -> bool:
        """Whether it is the table of these arrays."""
        arrays = [array for of_one in zip(*groups, strict=True) for array in of_one]
        return len(arrays) == len(self.arrays) and all(map(operator.is_, arrays, self.arrays))

    def take(self, grads: Sequence[np.ndarray], dtype: np.dtype) -> None:
        """Set the gradients of the next step."""
        self._grads = [_ready(grad, dtype) for grad in grads]
        self._rows[:-1, 2] = [grad.__array_interface__["data"][0] for grad in self._grads]

    def run(
        self,
        kernel: Kernel,
        work_an_element: int,
        numbers_of: Callable[[dict[str, Any]], tuple[float, ...]],
        terms: capturing.Terms,
        options: dict[str, Any],
        together: Any,
    ) -> None:
        """Run an optimizer's kernel over all elements of all parameters.

        Args:
            kernel: for a formula of these terms.
            work_an_element: multiply-adds.
            numbers_of: the kernel's numbers in a step, by the step's options.
            terms: which terms the formula has.
            options: of this step.
            together: as of ``Backend.sgd_update_all``.
        """
        work = work_an_element * self._size
        chunks = _chunks(work)
        numbers = numbers_of(options)
        if (scope := host_graph.scope()) is not None:
            scope.takes([*self.arrays, *self._grads])  # whose addresses are in the table
            scope.keeps(self._rows)
        launch(kernel, chunks, self._rows.reshape(-1), len(self._rows) - 1, *numbers, self._size, chunks, work=work)
        if scope is not None and scope.whole:
            launched = UpdateNumbers(scope.calls[-1].numbers(2, len(numbers)), numbers_of, terms)
            scope.updates(together, launched)
        self._grads = []


class UpdateNumbers:
    """The numbers of an optimizer's kernel in a captured step.

    Args:
        place: where the kernel reads them.
        numbers_of, terms: as of :meth:`_UpdateTable.run`.
    """

    def __init__(
        self, place: np.ndarray, numbers_of: Callable[[dict[str, Any]], tuple[float, ...]], terms: capturing.Terms
    ):
        self._place, self._numbers_of, self._terms = place, numbers_of, terms

    def prepare(self, together: Any, count: int) -> None:
        """Write those of the step that is about to be taken.

        Raises:
            RuntimeError: the formula has other terms now.
        """
        (options,) = together.coming(1)
        capturing.check_terms(options, self._terms)
        self._place[:] = self._numbers_of(options)

    def forget(self) -> None:
        """They are written anew in each step."""


def _sgd_numbers(options: dict[str, Any]) -> tuple[float, ...]:
    momentum, decay = float(options["momentum"]), float(options["weight_decay"])
    return float(options["lr"]), momentum, 1.0 - options["dampening"], decay


def _adam_numbers(options: dict[str, Any]) -> tuple[float, ...]:
    step, lr, beta1, beta2 = (options[name] for name in ("step", "lr", "beta1", "beta2"))
    decay = float(options["weight_decay"])
    return (
        lr / (1 - beta1**step),
        float(beta1),
        1.0 - beta1,
        float(beta2),
        1.0 - beta2,
        (1 - beta2**step) ** 0.5,
        float(options["eps"]),
        1 - lr * decay if options["decoupled"] else decay,
    )


def _update_table(
    params: Sequence[np.ndarray], grads: Sequence[np.ndarray], slots: Sequence[Sequence[Any]], together: Any
) -> _UpdateTable | None:
    """The table of an update's arrays; None if a kernel cannot write to one in place, or their dtypes differ."""
    # A captured step has a table of its own, whose addresses stay.
    key = None if together is None or host_graph.scope() is not None else ("numba", together.members[0])
    table: _UpdateTable | None = None if key is None else together.prepared.get(key)
    if table is None or not table.has(params, *slots):
        dtype, arrays = params[0].dtype, itertools.chain(params, *slots)
        if not dtype.isnative or not all([array.flags.carray and array.dtype == dtype for array in arrays]):
            return None
        table = _UpdateTable(list(zip(params, *slots, strict=True)))
        if key is not None:
            together.prepared[key] = table
    table.take(grads, params[0].dtype)
    return table


class _Products(NumbaBackend):
    """Every product compiled, however small: in a chain that is compiled at all, none is left to NumPy."""

    linear_chain = NumpyBackend.linear_chain
    linear_chain_grad = NumpyBackend.linear_chain_grad

    def linear(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        return _linear(x, weight, bias, rectified=False)

    def linear_relu(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        return _linear(x, weight, bias, rectified=True)

    def linear_grad_input(self, grad: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return _linear_grad_input(grad, weight)

    def linear_grad_weight(self, grad: np.ndarray, x: np.ndarray) -> np.ndarray:
        return _linear_grad_weight(grad, x)

    def linear_grad_bias(self, grad: np.ndarray) -> np.ndarray:
        return _column_sums(grad)


_PRODUCTS = _Products()


# -- which variant runs a convolution --------------------------------------------------------------------------------


class _Gathered(NumpyBackend):
    """``im2col``: windows gathered by NumPy; products compiled, because BLAS rounds differently on other threads."""

    def _products(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        transposed = not b[0].flags.c_contiguous
        factors = b.swapaxes(1, 2) if transposed else b
        results = [
            product(_ready(one), _ready(other), b_transposed=transposed) for one, other in zip(a, factors, strict=True)
        ]
        return results[0][None] if len(results) == 1 else np.stack(results)


_GATHERED = _Gathered()


@functools.cache
def _platform() -> store.Platform:
    from gpuconv.version import __version__

    device = f"{simd.cpu_name()}, vectors of {8 * simd.registers()[0]} bits, {platform.system()} {platform.machine()}"
    driver = f"numba {numba.__version__}, numpy {np.__version__}"
    return store.Platform("numba", device, driver, __version__, store.digest(sources()))


def _plan(operation: str, geometry: Conv2dGeometry, dtype: str, window: Pair) -> conv.Forward:
    if operation == "conv2d_grad_input":
        return conv.Forward.of_grad_input(dtype, geometry)
    return conv.Forward.of(dtype, geometry, window=window, relu=window != (1, 1))


def _about(operation: str, geometry: Conv2dGeometry, dtype: str, window: Pair) -> dict[str, str]:
    """The variants that can run an operation, the rule's first, each with a description."""
    plan = _plan(operation, geometry, dtype, window)
    if operation == "conv2d_grad_weight":
        about = {"dense": "lanes over the rows of patches", "im2col": "gathered windows, one product"}
    else:
        costs = sorted(plan.costs.items(), key=lambda item: (item[0] != plan.choice, item[1]))
        about = {name: f"{cost} vector multiply-adds a tap and row" for name, cost in costs}
        if window == (1, 1):
            about["im2col"] = "gathered windows, one product"
        apart = (geometry.stride, geometry.dilation, geometry.groups) == ((2, 2), (1, 1), 1)
        if operation == "conv2d_grad_input" and apart:
            own = {"by_phases": "even and odd rows and columns apart, each with its own taps"}
            about = own | about if geometry.macs >= _PHASES_FROM else about | own
    if winograd.suits(plan):
        own = {"winograd": f"{winograd.multiplications(plan):.2f} of the multiplications"}
        pays = winograd.pays(plan, geometry.n, grad_weight=operation == "conv2d_grad_weight")
        about = own | about if pays else about | own
    return about


def _variant(operation: str, geometry: Conv2dGeometry, dtype: str, window: Pair = (1, 1)) -> tuple[str, str]:
    """The variant that runs an operation, and what decided: 'by store' or 'by rule'."""
    variants = _about(operation, geometry, dtype, window)
    winner = store.find(store.Key(_platform(), operation, geometry, dtype, window))
    if winner is None:
        return next(iter(variants)), "by rule"
    if winner.variant not in variants:
        store.unusable(f"{operation}: the tuning store names the variant {winner.variant!r}, which there is not")
        return next(iter(variants)), "by rule"
    return winner.variant, "by store"


def _way(operation: str, variant: str, geometry: Conv2dGeometry, dtype: str, window: Pair) -> Any:
    """A function that runs a variant on the operation's arrays; it compiles when it is first called."""

    @functools.cache
    def kernel() -> Any:
        if operation == "conv2d_grad_weight":
            return _weight_gradient(np.dtype(dtype), geometry, variant)
        return _convolution(_plan(operation, geometry, dtype, window), geometry, variant)

    def run(*arrays: Any) -> np.ndarray:
        if variant == "im2col":
            gathered: np.ndarray = getattr(_GATHERED, operation)(*arrays, geometry)
            return gathered
        if operation == "conv2d_grad_weight":
            grad, x = arrays
            return _correlate(kernel(), grad, x, geometry)
        return _convolve(kernel(), *arrays)[0]

    return run


# -- what is compiled, and how it is split into chunks -----------------------------------------------------------------


class _Convolution(NamedTuple):
    """How a forward kernel is run."""

    kernel: Kernel
    plan: conv.Forward
    by_columns: bool
    output_shape: tuple[int, ...]
    winners_shape: tuple[int, ...]  # empty without a pooling
    bands: int
    chunks: int
    work: int


class _Phased(NamedTuple):
    """How the gradient of an input is computed by even and odd rows and columns."""

    runs: list[_Convolution | None]  # for each phase; None: zeros
    plan: conv.Phases
    output_shape: tuple[int, ...]


class _Tiled(NamedTuple):
    """How a convolution, or the gradient of its weight, is run by tiles."""

    plan: winograd.Tiles
    work: int


#: Ways to run a convolution; None for ``im2col``, which is no kernel.
_Way: TypeAlias = "_Convolution | _Tiled | _Phased | None"


def _convolution(plan: conv.Forward, geometry: Conv2dGeometry, variant: str) -> _Way:
    """How a variant is run."""
    if variant == "im2col":
        return None
    if variant == "winograd":
        return _Tiled(winograd.Tiles(plan), geometry.macs)
    if variant == "by_phases":
        plans = [conv.Forward.of_grad_input_phase(plan.dtype, geometry, phase) for phase in conv.PHASES]
        present = tuple([one is not None for one in plans])
        runs = [None if one is None else _direct(one, geometry.n, one.choice) for one in plans]
        return _Phased(runs, conv.Phases(plan.dtype, geometry.h, geometry.w, present), geometry.input_shape)
    return _direct(plan, geometry.n, variant)


def _direct(plan: conv.Forward, n: int, variant: str) -> _Convolution:
    bands = plan.bands(n)
    shape = (n, plan.k, plan.p, plan.q)
    by_columns = variant == "by_columns"
    area = plan.p * plan.q * plan.window[0] * plan.window[1]
    macs = n * plan.k * area * plan.c // plan.groups * plan.r * plan.s
    return _Convolution(
        kernel=(conv.forward_by_columns if by_columns else conv.forward_by_filters)(plan),
        plan=plan,
        by_columns=by_columns,
        output_shape=shape,
        winners_shape=shape if plan.window != (1, 1) else (0, 0, 0, 0),
        bands=bands,
        chunks=_chunks(macs, n * bands),
        work=macs,
    )


@store.cached
def _forward(dtype: np.dtype, geometry: Conv2dGeometry, window: Pair = (1, 1), relu: bool = False) -> _Way:
    plan = conv.Forward.of(dtype.name, geometry, window=window, relu=relu)
    return _convolution(plan, geometry, _variant("conv2d", geometry, dtype.name, window)[0])


@store.cached
def _grad_input(dtype: np.dtype, geometry: Conv2dGeometry) -> _Way:
    plan = conv.Forward.of_grad_input(dtype.name, geometry)
    return _convolution(plan, geometry, _variant("conv2d_grad_input", geometry, dtype.name)[0])


class _WeightGradient(NamedTuple):
    """How a kernel for the gradient of a weight is run."""

    kernel: Kernel
    plan: conv_grad.Patches
    partial_shape: tuple[int, ...]  # begins with the number of partial sums
    filter_parts: int
    chunks: int


@store.cached
def _grad_weight(dtype: np.dtype, geometry: Conv2dGeometry) -> _WeightGradient | _Tiled | None:
    variant = _variant("conv2d_grad_weight", geometry, dtype.name)[0]
    return None if variant == "im2col" else _weight_gradient(dtype, geometry, variant)


def _weight_gradient(dtype: np.dtype, geometry: Conv2dGeometry, variant: str) -> _WeightGradient | _Tiled:
    g = geometry
    if variant == "winograd":
        return _Tiled(winograd.Tiles(conv.Forward.of(dtype.name, g)), g.macs)
    plan = conv_grad.Patches(dtype.name, replace(g, n=1))
    shape = (g.k, *plan.runs)
    image_parts = _partial_sums(g, shape, dtype)
    # If memory allows only few partial sums, the filters are split among threads too.
    filter_parts = min(-(-16 // image_parts), -(-g.k // g.groups // plan.dense_tile[0]))
    kernel = conv_grad.grad_weight_dense(plan)
    return _WeightGradient(kernel, plan, (image_parts, *shape), filter_parts, image_parts * filter_parts)


@functools.lru_cache(maxsize=1024)
def _grad_block(
    dtype: np.dtype, geometry: Conv2dGeometry, window: tuple[int, int], needs_input: bool
) -> _WeightGradient:
    plan = conv_grad.Patches(dtype.name, replace(geometry, n=1), window, needs_input)
    chunks = _partial_sums(geometry, plan.packed_shape, dtype)
    return _WeightGradient(conv_grad.grad_sparse(plan), plan, (chunks, *plan.packed_shape), 1, chunks)


def _partial_sums(geometry: Conv2dGeometry, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """How many partial sums of a shape to make over a batch."""
    return _chunks(geometry.macs, min(geometry.n, _PARTIAL_BYTES // (math.prod(shape) * dtype.itemsize)))


@functools.lru_cache(maxsize=1024)
def _pooling(build: Any, dtype: np.dtype, geometry: Pool2dGeometry) -> Kernel:
    return build(pooling.Pooling(dtype.name, replace(geometry, n=1, c=1)))


@functools.cache
def _kernel(build: Any, dtype: np.dtype) -> Kernel:
    return build(Elements(dtype.name))


@functools.cache
def _images(dtype: np.dtype, size: Pair, padded: Pair, warps: bool) -> Kernel:
    return pictures.image_batch(pictures.Images(dtype.name, *size, *padded, warps))


@functools.cache
def _sgd(dtype: np.dtype, momentum: bool, nesterov: bool, decay: bool) -> Kernel:
    return pointwise.sgd(pointwise.Update(dtype.name, momentum=momentum, nesterov=nesterov, decay=decay))


@functools.cache
def _adam(dtype: np.dtype, decay: bool, decoupled: bool) -> Kernel:
    return pointwise.adam(pointwise.Update(dtype.name, decay=decay, decoupled=decay and decoupled))


@functools.lru_cache(maxsize=1024)
def _tiles(pool: Pool2dGeometry) -> bool:
    """Whether the windows lie side by side inside the map, so that each of its elements belongs to at most one.

    Windows of one element do not count, because the kernel without a pooling records no positions.
    """
    return (
        pool.stride == (pool.r, pool.s)
        and pool.dilation == (1, 1)
        and pool.padding == ((0, 0), (0, 0))
        and pool.overhang == (0, 0)
        and 1 < pool.r * pool.s <= 256
    )


def _elements_read(pool: Pool2dGeometry) -> int:
    return pool.n * pool.c * pool.p * pool.q * pool.r * pool.s


def _worth_compiling(pool: Pool2dGeometry) -> bool:
    return _elements_read(pool) >= COMPILE_FROM


def _chunks(work: int, most: int = 64) -> int:
    """Number of chunks to split work into, in multiply-adds; it never depends on the number of threads.

    Starting a chunk takes c ≈ 0.25 µs, and the last thread to finish keeps the others waiting for half a chunk. So of t
    µs ``chunks · c + t / (2 · chunks)`` is lost, which is smallest for ``sqrt(t / 2c)`` chunks, at some 100,000
    multiply-adds a µs.
    """
    return max(1, min(most, math.isqrt(work // 50_000)))


# -- running ---------------------------------------------------------------------------------------------------------


def _convolve(
    run: _Convolution | _Tiled | _Phased, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The result of a forward kernel, and the positions of the maxima."""
    if isinstance(run, _Phased):
        parts = [None if one is None else _convolve(one, x, weight)[0] for one in run.runs]
        dx = empty(run.output_shape, x.dtype)
        planes, work = run.output_shape[0] * run.output_shape[1], 4 * dx.size
        chunks = _chunks(work, planes)
        arrays = (dx if part is None else part for part in parts)
        launch(conv.interleave(run.plan), chunks, *arrays, dx, planes, chunks, work=work)
        return dx, np.empty((0, 0, 0, 0), np.uint8)
    if isinstance(run, _Tiled):
        y = winograd.convolve(run.plan, _ready(x), _ready(weight), bias, run.work)
        return y, np.empty((0, 0, 0, 0), np.uint8)
    y = empty(run.output_shape, x.dtype)
    winners = empty(run.winners_shape, np.dtype(np.uint8))
    weight = _ready(weight)
    bias = constant_zeros(run.plan.k, x.dtype) if bias is None else _ready(bias)
    filters = (weight, bias) if run.by_columns else (conv.packed_filters(run.plan, weight, bias),)
    batch = (run.output_shape[0], run.bands, run.chunks)
    launch(run.kernel, run.chunks, _ready(x), *filters, y, winners, *batch, work=run.work)
    return y, winners


def _correlate(run: _WeightGradient | _Tiled, grad: np.ndarray, x: np.ndarray, geometry: Conv2dGeometry) -> np.ndarray:
    """The gradient of a weight."""
    if isinstance(run, _Tiled):
        return winograd.weight_gradient(run.plan, _ready(x), _ready(grad))
    partial = empty(run.partial_shape, x.dtype)
    batch = (geometry.n, run.partial_shape[0], run.filter_parts, run.plan.bands)
    launch(run.kernel, run.chunks, _ready(x), _ready(grad), partial, *batch, work=geometry.macs)
    return conv_grad.weight_gradient(partial, geometry.weight_shape)


def _pool(build: Any, dtype: np.dtype, geometry: Pool2dGeometry, *arrays: np.ndarray) -> None:
    """Run a pooling kernel over all planes."""
    planes = geometry.n * geometry.c
    work = 4 * _elements_read(geometry)
    chunks = _chunks(work, planes)
    launch(_pooling(build, dtype, geometry), chunks, *arrays, planes, chunks, work=work)


@functools.lru_cache(maxsize=1024)
def _counts(
    geometry: Pool2dGeometry, *, count_include_pad: bool, divisor_override: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The divisors of window sums: a factor for each row and one for each column of the result."""
    if divisor_override is not None:
        return np.full(geometry.p, divisor_override, np.int64), np.ones(geometry.q, np.int64)
    rows, columns = geometry.window_counts(include_padding=count_include_pad)
    return np.array(rows, np.int64), np.array(columns, np.int64)
