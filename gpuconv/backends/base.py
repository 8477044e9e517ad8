"""What a backend provides: array storage, and the primitives that the operations of ``gpuconv.ops`` are written in.

A primitive takes and returns arrays of the backend's own kind, never Tensors, and knows nothing of the autograd graph.
Its arguments have been checked: shapes by ``gpuconv.geometry``, dtypes and devices by :meth:`Backend.asarray`. Half
types do not reach it: ``gpuconv.autograd`` hands it float32 in their place. It reads its arrays and does not write
them, except for the optimizer updates. A gradient argument is called ``grad`` and has the shape of the output that it
belongs to.

Element-wise operations that are not worth a kernel use :attr:`Backend.xp`, the backend's array library (NumPy or CuPy).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from gpuconv.backends import host_graph
from gpuconv.geometry import BlockPairGeometry, ChainGeometry, Conv2dGeometry, Pair, Pool2dGeometry
from gpuconv.tuning.store import Platform

#: An array of the backend's kind: numpy.ndarray, cupy.ndarray.
Array: TypeAlias = Any


class Candidate(NamedTuple):
    """One way to run an operation, to be timed against others.

    Attributes:
        variant: its name.
        tiling: a small frozen dataclass, or None.
        run: takes the arrays of the operation's primitive, and returns its first result.
    """

    variant: str
    tiling: Any
    run: Callable[..., Array]

    @property
    def label(self) -> str:
        """The variant and the numbers of its tiling: ``tiled 8x32x32x8x8x8``."""
        return self.variant if self.tiling is None else f"{self.variant} {'x'.join(map(str, astuple(self.tiling)))}"


class BackendUnavailable(RuntimeError):
    """A backend that was asked for by name cannot run here; the message says why, and what would help."""


class Backend(ABC):
    """One implementation of the primitives. The module's docstring says what holds for all of them."""

    #: Its name, as users give it.
    name: ClassVar[str]
    #: The array library, numpy or cupy, which also computes what has no primitive.
    xp: ModuleType

    @classmethod
    def unavailable(cls) -> str | None:
        """Why this backend cannot run here, and what would help; None when it can."""
        return None

    @classmethod
    def automatic(cls) -> bool:
        """Whether ``auto`` may choose it. The simulator is available, but never chosen by ``auto``."""
        return True

    def describe(self) -> str:
        """One line for ``gpuconv info``: library versions, device."""
        return f"{self.xp.__name__} {self.xp.__version__}"

    def explain(self, primitive: str, geometry: Any, dtype: str) -> list[str]:
        """How a primitive would run on a geometry, and the alternatives, one a line; the choice comes first.

        For a fused block the geometry is a :class:`gpuconv.geometry.BlockGeometry`.
        """
        return [f"the {self.name} backend has one way"]

    def takes_half(self, primitive: str, geometry: Any, dtype: Any) -> bool:
        """Whether a primitive of convolution computes on arrays of a half type; else it is to be given float32."""
        return False

    def tuning_platform(self) -> Platform | None:
        """What a measurement depends on, as the tuning store keeps it; None if there is nothing to tune."""
        return None

    def candidates(
        self, operation: str, geometry: Conv2dGeometry, dtype: str, window: Pair = (1, 1)
    ) -> list[Candidate]:
        """The ways to run ``conv2d``, ``conv2d_grad_input`` or ``conv2d_grad_weight``; the rule's choice comes first.

        ``window`` is the window of a max pooling that runs together with conv2d; (1, 1) for none.

        Raises:
            ValueError: no variant supports the geometry, or there is only one way; the message says which.
        """
        raise ValueError(f"the {self.name} backend has one way to compute a convolution: there is nothing to tune")

    @abstractmethod
    def asarray(self, array: Any, name: str = "array") -> Array:
        """Return ``array`` in the form that the primitives need (device, byte order), without a copy where possible.

        Raises:
            TypeError: the backend cannot compute with this dtype; the message calls the array ``name``.
        """

    def computing(self) -> AbstractContextManager[Any]:
        """Context in which every forward and backward runs. Infinities and NaN raise no warning on any backend."""
        return np.errstate(all="ignore")

    @abstractmethod
    def to_numpy(self, array: Array) -> Any:
        """Return ``array`` as a numpy.ndarray, without a copy if it is in host memory."""

    def compiling_ahead(self, *steps: Callable[[], object]) -> AbstractContextManager[None]:
        """Context in which the steps are about to run: a backend may find out what they need, and compile it at once.

        It may run them in a copy of this process, on arrays that are not initialised.
        """
        return nullcontext()

    # -- captured steps ----------------------------------------------------------------------------------------------

    def free_memory(self) -> int | None:
        """Free bytes where the arrays live; None for host memory."""
        return None

    def new_graph(self, *, side_by_side: bool = True) -> Any:
        """A graph for ``gpuconv.capture`` to record a step in: by default a list of calls on the host.

        Args:
            side_by_side: as that of ``gpuconv.capture``.
        """
        return host_graph.HostGraph(self)

    def new_input(self, array: Array) -> Any:
        """Where a captured step reads an input like ``array``: has its ``array``, and ``fill``, which copies to it."""
        return host_graph.HostInput(array)

    # -- data: from bytes to a batch, and accuracy ---------------------------------------------------------------------

    @abstractmethod
    def image_batch(
        self, table: Array, images: Array, labels: Array, index: Array, transforms: Array | None, size: Pair
    ) -> tuple[Array, Array]:
        """The network's input for some images of a data set, (n, 1, *size), and their labels, (n,).

        An image is placed in the middle of its input (if the difference is odd, the extra row or column is at the
        bottom or right). The border is byte 0, which is black. Then each byte b becomes ``table[b]``.

        With ``transforms``, the input of image i at the point (x, y) shows what it would show without transforms at the
        point ``transforms[i] · (x, y, 1)``. Points are counted in pixels from the middle of the input, x to the right
        and y down. Values between pixels are interpolated bilinearly; outside the image all is black. An image with the
        identity transform keeps its exact values.

        Shapes: table (256,), float; images (total, h, w), uint8; labels (total,), int64; index (n,), int64; transforms
        (total, 2, 3), of the table's dtype; size at least (h, w).

        Raises:
            IndexError: ``index`` holds a number that is no image, on a CPU backend. A GPU does not wait to find out:
                there such an image is NaN and its label -1, so that the loss is NaN.
        """

    @abstractmethod
    def count_correct(self, logits: Array, labels: Array) -> Array:
        """In how many rows of logits, (m, c), the largest is at the label: int32, of shape (). Labels are (m,), int64.

        Of equal logits the first counts as the largest. A NaN counts as larger than any number; of several, the first.
        """

    def next_image_batch(
        self,
        table: Array,
        images: Array,
        labels: Array,
        order: Array,
        transforms: Array | None,
        size: Pair,
        step: Array,
        batch: int,
    ) -> tuple[Array, Array]:
        """The next batch: :meth:`image_batch` of the images ``order[step · batch:][:batch]``.

        ``order`` is (m,), int64. ``step`` is an array, (1,), int32, so that a captured step reads its current value.
        """
        first = int(step[0]) * batch
        return self.image_batch(table, images, labels, order[first : first + batch], transforms, size)

    def log_step(self, logits: Array, labels: Array, loss: Array, losses: Array, counts: Array, step: Array) -> None:
        """Log a step: ``losses[step] = loss``, ``counts[step]`` = :meth:`count_correct`, then ``step += 1``.

        Shapes: loss () or one element, of the dtype of ``losses``; losses and counts (steps,), counts int32.
        """
        at = int(step[0])
        losses[at], counts[at] = loss.reshape(()), self.count_correct(logits, labels)
        step[0] = at + 1

    # -- convolution -------------------------------------------------------------------------------------------------

    @abstractmethod
    def conv2d(self, x: Array, weight: Array, bias: Array | None, geometry: Conv2dGeometry) -> Array:
        """Cross-correlation ``y[n,k,p,q] = b[k] + Σ x[n, c, p·stride + r·dilation - pad, ...] · w[k,c,r,s]``.

        Shapes: x (n, c, h, w), weight (k, c/groups, r, s), bias (k,), result (n, k, p, q); all of one float type.
        """

    @abstractmethod
    def conv2d_grad_input(self, grad: Array, weight: Array, geometry: Conv2dGeometry) -> Array:
        """Gradient for x, (n, c, h, w), given grad (n, k, p, q)."""

    @abstractmethod
    def conv2d_grad_weight(self, grad: Array, x: Array, geometry: Conv2dGeometry) -> Array:
        """Gradient for weight, (k, c/groups, r, s), given grad (n, k, p, q); summed in a fixed order."""

    @abstractmethod
    def conv2d_grad_bias(self, grad: Array) -> Array:
        """Gradient for bias, (k,): the sum of grad (n, k, p, q) over n, p and q."""

    # -- activation and pooling --------------------------------------------------------------------------------------

    @abstractmethod
    def relu(self, x: Array) -> Array:
        """``max(x, 0)``; NaN stays NaN."""

    @abstractmethod
    def relu_grad(self, grad: Array, y: Array) -> Array:
        """Gradient of ReLU given its result y: zero where ``y <= 0``, else grad (so a NaN passes it on)."""

    @abstractmethod
    def max_pool2d(self, x: Array, geometry: Pool2dGeometry) -> tuple[Array, Array]:
        """Maximum of each window, and its position.

        Returns the maxima, (n, c, p, q), and their positions in the same shape: the offset ``i · s + j`` inside the
        window, as uint8 for windows of at most 256 elements and int32 otherwise. Of equal maxima the first one counts.
        A NaN is larger than any number; of several NaNs the last one counts, as in PyTorch.
        """

    @abstractmethod
    def max_pool2d_grad(self, grad: Array, winners: Array, geometry: Pool2dGeometry) -> Array:
        """Gradient for x, (n, c, h, w): grad (n, c, p, q), added at the positions of the maxima."""

    def max_pool2d_indices(self, winners: Array, geometry: Pool2dGeometry) -> Array:
        """Position of each maximum in its input plane: ``row · w + column``, int64, (n, c, p, q)."""
        xp, (top, left) = self.xp, (geometry.padding[0][0], geometry.padding[1][0])
        i, j = xp.divmod(winners.astype(xp.int64), geometry.s)
        rows = xp.arange(geometry.p) * geometry.stride[0] - top
        columns = xp.arange(geometry.q) * geometry.stride[1] - left
        return (rows[:, None] + i * geometry.dilation[0]) * geometry.w + columns + j * geometry.dilation[1]

    @abstractmethod
    def avg_pool2d(
        self, x: Array, geometry: Pool2dGeometry, *, count_include_pad: bool, divisor_override: int | None
    ) -> Array:
        """Sum of each window, (n, c, p, q), divided by its number of elements, or by ``divisor_override`` if given."""

    @abstractmethod
    def avg_pool2d_grad(
        self, grad: Array, geometry: Pool2dGeometry, *, count_include_pad: bool, divisor_override: int | None
    ) -> Array:
        """Gradient for x, (n, c, h, w), given grad (n, c, p, q)."""

    # -- fused blocks: composed of primitives here; a backend overrides what it can do faster ------------------------

    def conv2d_relu(self, x: Array, weight: Array, bias: Array | None, geometry: Conv2dGeometry) -> Array:
        """ReLU of :meth:`conv2d`; same shapes."""
        return self.relu(self.conv2d(x, weight, bias, geometry))

    def conv2d_relu_max_pool2d(
        self, x: Array, weight: Array, bias: Array | None, geometry: Conv2dGeometry, pool: Pool2dGeometry
    ) -> tuple[Array, Array]:
        """Max pooling of :meth:`conv2d_relu`: the pooled maps, (n, k, p, q) of ``pool``, and the maxima's positions.

        ReLU is monotonic, so it is applied after the maximum, to fewer values. The position is unspecified for a window
        without a positive element: its gradient is zero.
        """
        maxima, winners = self.max_pool2d(self.conv2d(x, weight, bias, geometry), pool)
        return self.relu(maxima), winners

    def conv2d_relu_max_pool2d_grad(
        self,
        grad: Array,
        x: Array,
        weight: Array,
        y: Array,
        winners: Array,
        geometry: Conv2dGeometry,
        pool: Pool2dGeometry,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Array | None, Array | None, Array | None]:
        """The gradients for x, weight and bias that ``needs`` asks for; y and winners are the results of forward."""
        dense = self.max_pool2d_grad(self.relu_grad(grad, y), winners, pool)
        return (
            self.conv2d_grad_input(dense, weight, geometry) if needs[0] else None,
            self.conv2d_grad_weight(dense, x, geometry) if needs[1] else None,
            self.conv2d_grad_bias(dense) if needs[2] else None,
        )

    def conv2d_relu_max_pool2d_pair(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array | None], geometry: BlockPairGeometry
    ) -> tuple[list[Array], list[Array]]:
        """:meth:`conv2d_relu_max_pool2d` applied to another one: the pooled maps, and the positions, of each."""
        ys: list[Array] = []
        positions: list[Array] = []
        for weight, bias, block in zip(weights, biases, geometry, strict=True):
            y, winners = self.conv2d_relu_max_pool2d(ys[-1] if ys else x, weight, bias, *block)
            ys.append(y)
            positions.append(winners)
        return ys, positions

    def conv2d_relu_max_pool2d_pair_grad(
        self,
        grad: Array,
        x: Array,
        weights: Sequence[Array],
        ys: Sequence[Array],
        winners: Sequence[Array],
        geometry: BlockPairGeometry,
        needs: tuple[bool, ...],
    ) -> tuple[Array | None, ...]:
        """The gradients that ``needs`` asks for: x, first weight, first bias, second weight, second bias.

        ``ys`` and ``winners`` are the results of forward.
        """
        before, (need_weight, need_bias) = any(needs[:3]), needs[3:]
        between, *second = self.conv2d_relu_max_pool2d_grad(
            grad, ys[0], weights[1], ys[1], winners[1], *geometry.second, (before, need_weight, need_bias)
        )
        if between is None:
            return None, None, None, *second
        need_x, need_weight, need_bias = needs[:3]
        first = self.conv2d_relu_max_pool2d_grad(
            between, x, weights[0], ys[0], winners[0], *geometry.first, (need_x, need_weight, need_bias)
        )
        return *first, *second

    # -- numbers of an operation -------------------------------------------------------------------------------------

    def constant(self, values: Any, dtype: Any = None) -> Array:
        """Numbers that an operation makes up, such as indices and weights, as an array of this backend."""
        return self.xp.asarray(values, dtype)

    # -- matrix products: those of the array library, unless a backend can do better ---------------------------------

    def matmul(self, a: Array, b: Array) -> Array:
        """Matrix product over the last two dimensions; leading ones broadcast, as in ``numpy.matmul``."""
        return self.xp.matmul(a, b)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """``x · weightᵀ + bias``: x (..., in), weight (out, in), bias (out,) or None; result (..., out)."""
        y = self.matmul(x, weight.T)
        if bias is not None:
            y += bias
        return y

    def linear_relu(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """ReLU of :meth:`linear`; same shapes."""
        return self.relu(self.linear(x, weight, bias))

    def linear_grad_input(self, grad: Array, weight: Array) -> Array:
        """Gradient for x, (..., in), given grad (..., out)."""
        return self.matmul(grad, weight)

    def linear_grad_weight(self, grad: Array, x: Array) -> Array:
        """Gradient for weight, (out, in), given grad (..., out) and x (..., in)."""
        return self.matmul(grad.reshape(-1, grad.shape[-1]).T, x.reshape(-1, x.shape[-1]))

    def linear_grad_bias(self, grad: Array) -> Array:
        """Gradient for bias, (out,), given grad (..., out)."""
        return grad.reshape(-1, grad.shape[-1]).sum(axis=0)

    def linear_chain(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array | None], geometry: ChainGeometry
    ) -> list[Array]:
        """The results of fully connected layers, :meth:`linear` or :meth:`linear_relu`, one applied to another.

        Shapes: x (n, sizes[0]), weights (size, size before), biases (size,), results (n, size).
        """
        results: list[Array] = []
        for weight, bias, active in zip(weights, biases, geometry.relu, strict=True):
            before = results[-1] if results else x
            results.append((self.linear_relu if active else self.linear)(before, weight, bias))
        return results

    def linear_chain_grad(
        self,
        grad: Array,
        x: Array,
        weights: Sequence[Array],
        ys: Sequence[Array],
        geometry: ChainGeometry,
        needs: tuple[bool, ...],
    ) -> tuple[Array | None, ...]:
        """The gradients that ``needs`` asks for: x, first weight, first bias, second weight, and so on.

        ``ys`` are the results of forward.
        """
        found: list[Array | None] = [None] * len(needs)
        for number in reversed(range(len(weights))):
            before, (need_weight, need_bias) = ys[number - 1] if number else x, needs[2 * number + 1 : 2 * number + 3]
            if geometry.relu[number]:
                grad = self.relu_grad(grad, ys[number])
            if need_weight:
                found[2 * number + 1] = self.linear_grad_weight(grad, before)
            if need_bias:
                found[2 * number + 2] = self.linear_grad_bias(grad)
            if not any(needs[: 2 * number + 1]):
                break
            grad = self.linear_grad_input(grad, weights[number])
        else:
            found[0] = grad
        return tuple(found)

    # -- loss --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def softmax_cross_entropy(
        self, logits: Array, labels: Array, *, weight: Array | None, ignore_index: int, label_smoothing: float
    ) -> tuple[Array, Array]:
        """Loss of each row, (m,), and its softmax probabilities, (m, c).

        ``loss[i] = -(1 - e) · w[t] · log p[i,t] - e/c · Σ_j w[j] · log p[i,j]`` with t = labels[i], e the label
        smoothing; zero where t is ``ignore_index``.

        Shapes: logits (m, c), labels (m,) integers, weight (c,) or None for ones.

        Raises:
            ValueError: a label that is neither a class nor ``ignore_index``.
        """

    @abstractmethod
    def softmax_cross_entropy_grad(
        self,
        grad: Array,
        probabilities: Array,
        labels: Array,
        *,
        weight: Array | None,
        ignore_index: int,
        label_smoothing: float,
    ) -> Array:
        """Gradient for logits, (m, c), given the gradient of each row's loss, (m,)."""

    def softmax_cross_entropy_mean(
        self, logits: Array, labels: Array, *, weight: Array | None, **options: Any
    ) -> tuple[Array, Array] | None:
        """Mean of :meth:`softmax_cross_entropy` and its gradient for logits; None if that gains nothing.

        Arguments as there; the options are ignore_index and label_smoothing.

        The mean, of shape (), is divided by the sum of the weights of all labels that are not ignored; NaN if there are
        none.

        Raises:
            ValueError: a label that is neither a class nor ``ignore_index``.
        """
        return None

    # -- batch normalisation -----------------------------------------------------------------------------------------

    def batch_norm(
        self,
        x: Array,
        mean: Array | None,
        var: Array | None,
        weight: Array | None,
        bias: Array | None,
        residual: Array | None,
        *,
        eps: float,
        relu: bool,
    ) -> tuple[Array, Array, Array]:
        """``(x - mean) / sqrt(var + eps) · weight + bias + residual``, and a ReLU behind it, channel by channel.

        Args:
            x: (N, C, L).
            mean, var: (C,), or None: those of x itself, the biased variance.
            weight, bias: (C,), or None for ones and zeros.
            residual: of x's shape, or None for zeros.
            eps: added to the variance.
            relu: whether there is a ReLU.

        Returns:
            The result, and mean and variance.
        """
        xp, dtype = self.xp, x.dtype.type
        if mean is None:
            count = dtype(x.shape[0] * x.shape[2])
            mean = x.sum(axis=(0, 2)) / count
            unit = x - mean[:, None]
            var = xp.square(unit).sum(axis=(0, 2)) / count
        else:
            unit = x - mean[:, None]
        scale = 1 / xp.sqrt(var + dtype(eps))
        y = unit * (scale if weight is None else scale * weight)[:, None]
        if bias is not None:
            y += bias[:, None]
        if residual is not None:
            y += residual
        return (self.relu(y) if relu else y), mean, var

    def batch_norm_grad(
        self,
        grad: Array,
        x: Array,
        y: Array | None,
        mean: Array,
        var: Array,
        weight: Array | None,
        *,
        eps: float,
        own: bool,
        needs: tuple[bool, ...],
    ) -> tuple[Array | None, Array | None, Array | None, Array | None]:
        """Gradients of :meth:`batch_norm` for x, weight, bias and residual, of which some are needed.

        ``y`` is the result if a ReLU was behind, else None; ``own``: mean and variance were those of x.
        """
        xp, dtype = self.xp, x.dtype.type
        if y is not None:
            grad = self.relu_grad(grad, y)
        need_x, need_weight, need_bias, need_residual = needs
        rate = 1 / xp.sqrt(var + dtype(eps))
        unit = (x - mean[:, None]) * rate[:, None]
        db = grad.sum(axis=(0, 2)) if need_bias or own else None
        dw = (grad * unit).sum(axis=(0, 2)) if need_weight or own else None
        dx = None
        if need_x:
            dx = grad
            if own:
                count = dtype(max(1, x.shape[0] * x.shape[2]))
                dx = dx - (db / count)[:, None] - unit * (dw / count)[:, None]
            dx = dx * (rate if weight is None else rate * weight)[:, None]
        return dx, dw if need_weight else None, db if need_bias else None, grad if need_residual else None

    # -- optimizer updates: in place ---------------------------------------------------------------------------------

    @abstractmethod
    def sgd_update_all(
        self,
        params: Sequence[Array],
        grads: Sequence[Array],
        velocities: Sequence[Array | None],
        *,
        together: Any = None,
        **options: Any,
    ) -> None:
        """One step of stochastic gradient descent, PyTorch's formula, on parameters and velocities in place.

        ``g = grad + weight_decay · param; v = momentum · v + (1 - dampening) · g; param -= lr · (g + momentum · v if
        nesterov else v)``; without velocities, which are all None then, ``param -= lr · g``.

        Args:
            params, grads, velocities: an array of each for each parameter.
            together: a ``gpuconv.optim.Together``, which tells whose step it is, and the options of the steps to come.
            options: lr, momentum, dampening, weight_decay and nesterov.
        """

    @abstractmethod
    def adam_update_all(
        self,
        params: Sequence[Array],
        grads: Sequence[Array],
        means: Sequence[Array],
        squares: Sequence[Array],
        *,
        together: Any = None,
        **options: Any,
    ) -> None:
        """One step of Adam (Kingma & Ba, 2015) or, ``decoupled``, AdamW (Loshchilov & Hutter, 2019), in place.

        ``step`` counts from 1. The bias corrections are PyTorch's: ``param -= lr / (1 - beta1^t) · mean /
        (sqrt(square) / sqrt(1 - beta2^t) + eps)``. Arguments as of :meth:`sgd_update_all`; the options are step, lr,
        beta1, beta2, eps, weight_decay and decoupled.
        """
