"""What a backend has to provide: storage, and the primitives that the operations of ``gpuconv.ops`` are written in.

A primitive takes and returns plain arrays of the backend's own kind, never Tensors, and knows nothing of the graph. All
arguments have been checked: shapes by ``gpuconv.geometry``, kinds by :meth:`Backend.asarray`. Arrays are read, not
written, except by the optimizer updates. A gradient is called ``grad`` and has the shape of the output it belongs to.

Anything element-wise that is not worth a kernel of its own is written against :attr:`Backend.xp`, the array library
of the backend (NumPy, or CuPy), which does it well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from gpuconv.geometry import ChainGeometry, Conv2dGeometry, Pair, Pool2dGeometry
from gpuconv.tuning.store import Platform

#: An array of the backend's kind: numpy.ndarray, cupy.ndarray.
Array: TypeAlias = Any


class Candidate(NamedTuple):
    """A way to run an operation, to be measured beside others.

    Attributes:
        variant: its name.
        tiling: a small frozen dataclass, or None.
        run: takes the arrays of the operation's primitive, and gives its (first) result.
    """

    variant: str
    tiling: Any
    run: Callable[..., Array]

    @property
    def label(self) -> str:
        """The variant and the numbers of its tiling: ``tiled 8x32x32x8x8x8``."""
        return self.variant if self.tiling is None else f"{self.variant} {'x'.join(map(str, astuple(self.tiling)))}"


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here; the message says why and what would help."""


class Backend(ABC):
    """One way to compute. See the module's docstring for what holds of every primitive."""

    #: The name by which users choose it.
    name: ClassVar[str]
    #: The library that holds the arrays and does what has no primitive: numpy or cupy.
    xp: ModuleType

    @classmethod
    def unavailable(cls) -> str | None:
        """Why this backend cannot run here, and what would help; None when it can."""
        return None

    @classmethod
    def automatic(cls) -> bool:
        """Whether ``auto`` may choose it. A simulator is available, but nobody wants it by surprise."""
        return True

    def describe(self) -> str:
        """One line for ``gpuconv info``: library versions, device."""
        return f"{self.xp.__name__} {self.xp.__version__}"

    def explain(self, primitive: str, geometry: Any, dtype: str) -> list[str]:
        """How a primitive would run on a geometry, and what else there is; a line each, the choice first.

        For a fused block the geometry is a :class:`gpuconv.geometry.BlockGeometry`.
        """
        return [f"the {self.name} backend has one way"]

    def tuning_platform(self) -> Platform | None:
        """What a measurement here depends on, as the tuning store keeps it; None where there is nothing to tune."""
        return None

    def candidates(
        self, operation: str, geometry: Conv2dGeometry, dtype: str, window: Pair = (1, 1)
    ) -> list[Candidate]:
        """The ways to run ``conv2d``, ``conv2d_grad_input`` or ``conv2d_grad_weight``, that of the rule first.

        ``window`` is that of a max pooling which conv2d takes along; (1, 1) for none.

        Raises:
            ValueError: nothing supports the geometry, or there is nothing to choose; the message says why.
        """
        raise ValueError(f"the {self.name} backend has one way to compute a convolution: there is nothing to tune")

    @abstractmethod
    def asarray(self, array: Any, name: str = "array") -> Array:
        """Return ``array`` as this backend's primitives need it (device, byte order), without a copy if it already is.

        Raises:
            TypeError: an element type with which the backend cannot compute; ``name`` says whose.
        """

    def computing(self) -> AbstractContextManager[Any]:
        """What each forward and backward runs inside. Infinities and NaN go through, silently, on every backend."""
        return np.errstate(all="ignore")

    @abstractmethod
    def to_numpy(self, array: Array) -> Any:
        """Return ``array`` as a numpy.ndarray, without a copy where the memory is the host's."""

    # -- captured steps ----------------------------------------------------------------------------------------------

    def free_memory(self) -> int | None:
        """Bytes that are free where arrays live; None where that is the memory of the host, which the caller sees."""
        return None

    def new_graph(self) -> Any | None:
        """What ``gpuconv.capture`` records a step in; None where there is nothing to gain."""
        return None

    # -- data: from the bytes of a set to a batch, and what came of it ------------------------------------------------

    @abstractmethod
    def image_batch(
        self,
        table: Array,
        images: Array,
        labels: Array,
        index: Array,
        transforms: Array | None,
        size: Pair,
    ) -> tuple[Array, Array]:
        """The network's input for some images of a set, (n, 1, *size), and their labels, (n,).

        An image stands in the middle of its input (where the difference is odd, the extra row or column is at the
        bottom or right), on the byte 0, black; then a byte b becomes ``table[b]``.

        With ``transforms`` the input of image i shows at the point (x, y), counted in pixels from the input's middle, x
        to the right and y down, what without them it shows at ``transforms[i] · (x, y, 1)``; between pixels it is
        interpolated, bilinearly, and outside of the image it is black. An image that is not moved keeps its bits.

        Shapes: table (256,), float; images (total, h, w), uint8; labels (total,), int64; index (n,), int64; transforms
        (total, 2, 3), of the table's type; size at least (h, w).

        Raises:
            IndexError: a number in ``index`` that is no image of the set, on a backend for the CPU. A GPU does not wait
                to find out: there such an image is NaN, and its label -1, so that a loss of it is NaN.
        """

    @abstractmethod
    def count_correct(self, logits: Array, labels: Array) -> Array:
        """How many rows of logits, (m, c), are largest at their label: int32, of shape (). Labels are (m,), int64.

        The first of equals is the largest, and the first NaN is larger than any number.
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
        """:meth:`image_batch` of the ``batch`` images whose turn it is: ``order[step · batch:][:batch]``.

        ``order`` is (m,), int64; ``step`` (1,), int32, an array, so that a captured step finds it anew each time.
        """
        first = int(step[0]) * batch
        return self.image_batch(table, images, labels, order[first : first + batch], transforms, size)

    def log_step(self, logits: Array, labels: Array, loss: Array, losses: Array, counts: Array, step: Array) -> None:
        """Close a step: ``losses[step] = loss``, ``counts[step]`` is :meth:`count_correct`, and ``step`` is one more.

        Shapes: loss (), or with one element, of the type of ``losses``; losses and counts (steps,), counts int32.
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
        """Maximum of each window and where it was.

        Returns the maxima (n, c, p, q) and the winners, same shape: the offset ``i · s + j`` inside the window, as
        uint8 where the window has at most 256 elements and int32 otherwise. The first maximum wins; a NaN beats every
        number, and of several NaNs the last one wins (PyTorch's rule).
        """

    @abstractmethod
    def max_pool2d_grad(self, grad: Array, winners: Array, geometry: Pool2dGeometry) -> Array:
        """Gradient for x, (n, c, h, w): each grad (n, c, p, q) is added at its window's winner."""

    def max_pool2d_indices(self, winners: Array, geometry: Pool2dGeometry) -> Array:
        """Where each winner is in its input plane: ``row · w + column``, int64 (n, c, p, q)."""
        xp, (top, left) = self.xp, (geometry.padding[0][0], geometry.padding[1][0])
        i, j = xp.divmod(winners.astype(xp.int64), geometry.s)
        rows = xp.arange(geometry.p) * geometry.stride[0] - top
        columns = xp.arange(geometry.q) * geometry.stride[1] - left
        return (rows[:, None] + i * geometry.dilation[0]) * geometry.w + columns + j * geometry.dilation[1]

    @abstractmethod
    def avg_pool2d(
        self, x: Array, geometry: Pool2dGeometry, *, count_include_pad: bool, divisor_override: int | None
    ) -> Array:
        """Sum of each window (n, c, p, q) divided by its count of elements, or by ``divisor_override`` if given."""

    @abstractmethod
    def avg_pool2d_grad(
        self, grad: Array, geometry: Pool2dGeometry, *, count_include_pad: bool, divisor_override: int | None
    ) -> Array:
        """Gradient for x, (n, c, h, w), given grad (n, c, p, q)."""

    # -- fused blocks: a default composition, which a backend overrides when it can do better ------------------------

    def conv2d_relu(self, x: Array, weight: Array, bias: Array | None, geometry: Conv2dGeometry) -> Array:
        """ReLU of :meth:`conv2d`; same shapes."""
        return self.relu(self.conv2d(x, weight, bias, geometry))

    def conv2d_relu_max_pool2d(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        geometry: Conv2dGeometry,
        pool: Pool2dGeometry,
    ) -> tuple[Array, Array]:
        """Max pooling of :meth:`conv2d_relu`: the pooled maps (n, k, p, q of ``pool``) and their winners.

        ReLU is monotonic, so it may be taken after the maximum, of a fraction of the values. Winners of windows without
        a positive element are unspecified: their gradient is zero.
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
        """Gradients for x, weight and bias, those that ``needs`` asks for; y and winners are the forward's results."""
        dense = self.max_pool2d_grad(self.relu_grad(grad, y), winners, pool)
        return (
            self.conv2d_grad_input(dense, weight, geometry) if needs[0] else None,
            self.conv2d_grad_weight(dense, x, geometry) if needs[1] else None,
            self.conv2d_grad_bias(dense) if needs[2] else None,
        )

    # -- fully connected layers: matrix products of the array library, unless a backend can do better ----------------

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """``x · weightᵀ + bias``: x (..., in), weight (out, in), bias (out,) or None; result (..., out)."""
        y = x @ weight.T
        if bias is not None:
            y += bias
        return y

    def linear_relu(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """ReLU of :meth:`linear`; same shapes."""
        return self.relu(self.linear(x, weight, bias))

    def linear_grad_input(self, grad: Array, weight: Array) -> Array:
        """Gradient for x, (..., in), given grad (..., out)."""
        return grad @ weight

    def linear_grad_weight(self, grad: Array, x: Array) -> Array:
        """Gradient for weight, (out, in), given grad (..., out) and x (..., in)."""
        return grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1])

    def linear_grad_bias(self, grad: Array) -> Array:
        """Gradient for bias, (out,), given grad (..., out)."""
        return grad.reshape(-1, grad.shape[-1]).sum(axis=0)

    def linear_chain(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array | None], geometry: ChainGeometry
    ) -> list[Array]:
        """Results of each of several layers, :meth:`linear` or :meth:`linear_relu`, that take those of the one before.

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
        """Gradients for x, the first weight, the first bias, the second weight... that ``needs`` asks for.

        ``ys`` are the forward's results.
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
        self,
        logits: Array,
        labels: Array,
        *,
        weight: Array | None,
        ignore_index: int,
        label_smoothing: float,
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
        self,
        logits: Array,
        labels: Array,
        *,
        weight: Array | None,
        ignore_index: int,
        label_smoothing: float,
    ) -> tuple[Array, Array] | None:
        """The mean of :meth:`softmax_cross_entropy` and its gradient for logits, at once; None where that is no gain.

        The mean, of shape (), divides by the sum of the weights of the labels that count; it is NaN if there are none.

        Raises:
            ValueError: a label that is neither a class nor ``ignore_index``.
        """
        return None

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
