"""The layers of networks: convolution, pooling, normalisation, resizing, losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv import functional as F
from gpuconv.dtypes import kind_of
from gpuconv.onnx.node import Node, constant, host, operator, ranked, shape_of
from gpuconv.onnx.shaping import axes_of, whole
from gpuconv.ops import arithmetic, elementwise, rearrange, reduce
from gpuconv.ops.shape import reshape
from gpuconv.ops.windows import ResizeAlong

Sides = list[tuple[int, int]]

# -- windows ----------------------------------------------------------------------------------------------------------


class _Window:
    """What a node says of its window, by spatial dimension."""

    def __init__(self, node: Node, lengths: Sequence[int], kernel: Sequence[int]):
        self.lengths, self.kernel = tuple(lengths), tuple(kernel)
        self.rank = len(self.kernel)
        if len(self.lengths) != self.rank:
            raise ValueError(
                f"a kernel of shape {self.kernel} over an input with {len(self.lengths)} spatial dimensions"
            )
        self.stride = tuple(node.get("strides") or [1] * self.rank)
        self.dilation = tuple(node.get("dilations") or [1] * self.rank)
        self.ceil = bool(node.get("ceil_mode", 0))
        self.sides = self._sides(node)

    def _sides(self, node: Node) -> Sides:
        """Padding (before, behind), from ``pads`` or worked out from ``auto_pad``.

        SAME_* makes the output ``ceil(length / stride)`` long; the odd element goes where the name says.
        """
        mode = node.get("auto_pad", "NOTSET")
        if mode == "VALID":
            return [(0, 0)] * self.rank
        if mode == "NOTSET":
            pads = node.get("pads") or [0] * 2 * self.rank
            return list(zip(pads[: self.rank], pads[self.rank :], strict=True))
        self.ceil = False  # the padding leaves nothing to round
        return [
            split_padding(max(0, (-(-length // stride) - 1) * stride + dilation * (size - 1) + 1 - length), mode)
            for length, size, stride, dilation in zip(
                self.lengths, self.kernel, self.stride, self.dilation, strict=True
            )
        ]

    @property
    def counts(self) -> list[int]:
        """How many windows there are, if what hangs over the edge does not count."""
        return [
            (length + sum(side) - dilation * (size - 1) - 1) // stride + 1
            for length, side, dilation, size, stride in zip(
                self.lengths, self.sides, self.dilation, self.kernel, self.stride, strict=True
            )
        ]

    @property
    def symmetric(self) -> bool:
        """Whether as much is before as behind."""
        return all([before == after for before, after in self.sides])

    @property
    def usual(self) -> bool:
        """Whether gpuconv's pooling takes the padding: at most half of the window, and in 3-D symmetric."""
        halves = all([2 * max(side) <= size for side, size in zip(self.sides, self.kernel, strict=True)])
        return halves and (self.rank < 3 or self.symmetric)

    @property
    def padding(self) -> Any:
        """As gpuconv's functions take it."""
        return tuple([before for before, _ in self.sides]) if self.symmetric else tuple(self.sides)

    def padded(self, x: Any, value: float, *, overhang: bool = False) -> Any:
        """An input with its padding; with ``overhang`` also what the last windows reach beyond it in ``ceil_mode``."""
        sides = [
            (before, after + (more if overhang else 0))
            for (before, after), more in zip(self.sides, self._overhang(), strict=True)
        ]
        return F.pad(x, [amount for side in reversed(sides) for amount in side], value=value)

    def _overhang(self) -> list[int]:
        result = []
        for length, size, stride, dilation, (before, after) in zip(
            self.lengths, self.kernel, self.stride, self.dilation, self.sides, strict=True
        ):
            room = length + before + after - dilation * (size - 1) - 1
            count = -(-room // stride)
            # The last window has to begin inside the input or the padding before it.
            count = count - 1 if self.ceil and count * stride >= length + before else count
            result.append(max(0, count * stride - room) if self.ceil else 0)
        return result


def split_padding(total: int, mode: str) -> tuple[int, int]:
    """Padding shared out before and behind, the odd element where SAME_UPPER or SAME_LOWER says."""
    small, large = total // 2, total - total // 2
    return (small, large) if mode == "SAME_UPPER" else (large, small)


# -- convolution ------------------------------------------------------------------------------------------------------


def _rank(x: Any) -> int:
    if x.ndim < 3:
        raise ValueError(f"an input of shape {shape_of(x)}: it needs (N, C, and spatial dimensions)")
    return x.ndim - 2


@operator("Conv")
def _conv(node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
    window = _Window(node, shape_of(x)[2:], shape_of(weight)[2:])
    if window.rank > 2 and not window.symmetric:
        x, window.sides = window.padded(x, 0.0), [(0, 0)] * window.rank
    return ranked("conv", _rank(x))(
        x,
        weight,
        bias,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=node.get("group", 1),
    )


@operator("ConvTranspose")
def _conv_transpose(node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
    window = _Window(_without(node, "auto_pad"), shape_of(x)[2:], shape_of(weight)[2:])
    extra = node.get("output_padding") or [0] * window.rank
    full = [
        stride * (length - 1) + more + dilation * (size - 1) + 1
        for stride, length, more, dilation, size in zip(
            window.stride, window.lengths, extra, window.dilation, window.kernel, strict=True
        )
    ]
    mode, sides = node.get("auto_pad", "NOTSET"), window.sides
    wanted = node.get("output_shape")
    if wanted is None and mode.startswith("SAME"):
        wanted = [length * stride for length, stride in zip(window.lengths, window.stride, strict=True)]
    if wanted is not None:
        # Of an output shape, ONNX puts the odd element before unless SAME_UPPER is said.
        sides = [
            split_padding(size - want, "SAME_UPPER" if mode == "SAME_UPPER" else "SAME_LOWER")
            for size, want in zip(full, wanted[-window.rank :], strict=True)
        ]
    elif mode == "VALID":
        sides = [(0, 0)] * window.rank
    options = {"stride": window.stride, "dilation": window.dilation, "groups": node.get("group", 1)}
    function = ranked("conv_transpose", _rank(x))
    if all(
        [
            b == a and b >= 0 and m < max(s, d)
            for (b, a), m, s, d in zip(sides, extra, window.stride, window.dilation, strict=True)
        ]
    ):
        padding = tuple([before for before, _ in sides])
        return function(x, weight, bias, padding=padding, output_padding=tuple(extra), **options)
    # Cut, or lengthened, as the padding says; the bias then also stands where nothing was added up.
    y = function(x, weight, None, **options)
    amounts = [(-before, more - after) for (before, after), more in zip(sides, extra, strict=True)]
    y = F.pad(y, [amount for side in reversed(amounts) for amount in side])
    return y if bias is None else y + reshape(bias, (*shape_of(bias), *[1] * window.rank))


def _without(node: Node, name: str) -> Node:
    attributes = {key: value for key, value in node.attributes.items() if key != name}
    return Node(node.op, node.name, node.inputs, node.outputs, attributes, node.opset)


@operator("Conv+Relu", "Conv+Relu+MaxPool")
def _block(node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
    """Neighbours that have a primitive of their own: see ``gpuconv.onnx.network``."""
    conv, _, *pool = node.get("parts")
    window = _Window(conv, shape_of(x)[2:], shape_of(weight)[2:])
    if window.rank != 2:
        y = F.relu(_conv(conv, x, weight, bias))
        return _max_pool(pool[0], y) if pool else y
    arguments = x, weight, bias, window.stride, window.padding, window.dilation, conv.get("group", 1)
    if not pool:
        return F.conv2d_relu(*arguments)
    pooling = _Window(pool[0], window.counts, pool[0].get("kernel_shape"))
    if not pooling.usual:
        return _max_pool(pool[0], F.conv2d_relu(*arguments))
    return F.conv2d_relu_max_pool2d(
        *arguments,
        kernel_size=pooling.kernel,
        pool_stride=pooling.stride,
        pool_padding=pooling.padding,
        pool_dilation=pooling.dilation,
        ceil_mode=pooling.ceil,
    )


@operator("Col2Im", settings=(1, 2))
def _col2im(node: Node, x: Any, image: Any, block: Any) -> Any:
    image, block = whole(image), whole(block)
    window = _Window(node, image, block)
    if window.rank != 2 or not window.symmetric:
        raise ValueError(f"Col2Im over {window.rank} dimensions with padding {window.sides}; gpuconv has 2, symmetric")
    return F.fold(x, image, block, window.dilation, window.padding, window.stride)


# -- pooling ----------------------------------------------------------------------------------------------------------


@operator("MaxPool")
def _max_pool(node: Node, x: Any) -> Any:
    window = _Window(node, shape_of(x)[2:], node.get("kernel_shape"))
    integers = None if kind_of(x.dtype) == "f" else x.dtype
    if integers is not None:
        x = arithmetic.cast(x, np.dtype(np.float32))
    if node.wants(1) and not window.usual:
        raise ValueError(f"indices of a maximum with padding {window.sides}, more than half of {window.kernel}")
    lowest = -math.inf
    if not window.usual:  # minus infinity never wins
        x, window.sides, window.ceil = window.padded(x, lowest, overhang=True), [(0, 0)] * window.rank, False
    result = ranked("max_pool", _rank(x))(
        x,
        window.kernel,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        ceil_mode=window.ceil,
        return_indices=node.wants(1),
    )
    values, indices = result if node.wants(1) else (result, None)
    values = values if integers is None else arithmetic.cast(values, integers)
    if indices is None:
        return values
    # ONNX counts positions through the whole tensor, and column by column if storage_order is 1.
    lengths = shape_of(x)[2:]
    indices = host(indices)
    if node.get("storage_order", 0):
        indices = np.ravel_multi_index(np.unravel_index(indices, lengths), lengths, order="F")
    plane = np.arange(math.prod(shape_of(x)[:2])).reshape(*shape_of(x)[:2], *[1] * window.rank)
    return values, indices + plane * math.prod(lengths)


def _window_sums(x: Any, window: _Window) -> Any:
    """The sum of each window, as a convolution with ones, channel by channel: it takes any padding and dilation."""
    channels = shape_of(x)[1]
    ones = np.ones((channels, 1, *window.kernel), x.dtype)
    padded = window.padded(x, 0.0, overhang=True)
    return ranked("conv", window.rank)(padded, ones, stride=window.stride, dilation=window.dilation, groups=channels)


@operator("AveragePool")
def _average_pool(node: Node, x: Any) -> Any:
    window = _Window(node, shape_of(x)[2:], node.get("kernel_shape"))
    counted = bool(node.get("count_include_pad", 0))
    if window.usual and set(window.dilation) == {1}:
        return ranked("avg_pool", _rank(x))(
            x,
            window.kernel,
            stride=window.stride,
            padding=window.padding,
            ceil_mode=window.ceil,
            count_include_pad=counted,
        )
    sums = _window_sums(x, window)
    ones = np.ones((1, 1, *window.lengths), x.dtype)
    if counted:
        ones = window.padded(ones, 1.0)
        window = _without_padding(window, shape_of(ones)[2:])
    return arithmetic.div(sums, host(_window_sums(ones, window)))


def _without_padding(window: _Window, lengths: Sequence[int]) -> _Window:
    """The same windows over an input that has its padding already."""
    overhang = window._overhang()
    window.lengths, window.ceil = tuple(lengths), False
    window.sides = [(0, more) for more in overhang]
    return window


@operator("LpPool")
def _lp_pool(node: Node, x: Any) -> Any:
    window, p = _Window(node, shape_of(x)[2:], node.get("kernel_shape")), node.get("p", 2)
    sums = _window_sums(arithmetic.pow(elementwise.abs(x), p), window)
    return arithmetic.pow(sums, 1 / p)


@operator("GlobalAveragePool")
def _global_average_pool(node: Node, x: Any) -> Any:
    if _rank(x) == 2:
        return F.adaptive_avg_pool2d(x, 1)
    return arithmetic.mean(x, tuple(range(2, x.ndim)), True)


@operator("GlobalMaxPool")
def _global_max_pool(node: Node, x: Any) -> Any:
    return reduce.amax(x, tuple(range(2, 2 + _rank(x))), True)


@operator("GlobalLpPool")
def _global_lp_pool(node: Node, x: Any) -> Any:
    return reduce.norm(x, float(node.get("p", 2)), tuple(range(2, 2 + _rank(x))), True)


@operator("MaxUnpool", settings=(2,))
def _max_unpool(node: Node, x: Any, indices: Any, shape: Any = None) -> Any:
    window = _Window(node, shape_of(x)[2:], node.get("kernel_shape"))
    natural = [
        (length - 1) * stride + size - sum(side)
        for length, stride, size, side in zip(window.lengths, window.stride, window.kernel, window.sides, strict=True)
    ]
    wanted = natural if shape is None else whole(shape)[2:]
    # ONNX's indices count through the whole tensor of the default size; here they count through one plane.
    places = np.unravel_index(host(indices) % math.prod(natural), natural)
    within = np.ravel_multi_index(places, wanted)
    return ranked("max_unpool", window.rank)(
        x, within, window.kernel, stride=window.stride, padding=window.padding, output_size=tuple(wanted)
    )


# -- normalisation ----------------------------------------------------------------------------------------------------


@operator("BatchNormalization", buffers=(3, 4), modal=True)
def _batch_normalization(node: Node, x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, training: bool) -> Any:
    momentum, eps = 1 - node.get("momentum", 0.9), node.get("epsilon", 1e-5)
    if not node.get("training_mode", 0):
        return F.batch_norm(x, mean, var, scale, bias, training, momentum, eps)
    y = F.batch_norm(x, None, None, scale, bias, True, momentum, eps)
    axes = (0, *range(2, x.ndim))
    found = arithmetic.mean(x, axes), reduce.var(x, axes, correction=0)
    moved = [
        old * constant(1 - momentum, x) + new * constant(momentum, x)
        for old, new in zip((mean, var), found, strict=True)
    ]
    return (y, *moved)


@operator("InstanceNormalization")
def _instance_normalization(node: Node, x: Any, scale: Any, bias: Any) -> Any:
    return F.instance_norm(x, None, None, scale, bias, True, 0.1, node.get("epsilon", 1e-5))


@operator("GroupNormalization")
def _group_normalization(node: Node, x: Any, scale: Any, bias: Any) -> Any:
    groups = node.get("num_groups")
    if node.opset < 21:  # one value a group, until then
        each = shape_of(x)[1] // groups
        scale, bias = (
            reshape(rearrange.expand(reshape(v, (groups, 1)), (groups, each)), (groups * each,)) for v in (scale, bias)
        )
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@operator("LayerNormalization")
def _layer_normalization(node: Node, x: Any, scale: Any, bias: Any = None) -> Any:
    axis, eps = node.get("axis", -1) % x.ndim, node.get("epsilon", 1e-5)
    inside = shape_of(x)[axis:]
    fits = shape_of(scale) == inside and (bias is None or shape_of(bias) == inside)
    y = F.layer_norm(x, inside, scale if fits else None, bias if fits else None, eps)
    if not fits:
        y = y * scale if bias is None else y * scale + bias
    if not (node.wants(1) or node.wants(2)):
        return y
    axes = tuple(range(axis, x.ndim))
    rate = elementwise.rsqrt(arithmetic.add(reduce.var(x, axes, True, True, correction=0), eps))
    return y, arithmetic.mean(x, axes, True), rate


@operator("RMSNormalization")
def _rms_normalization(node: Node, x: Any, scale: Any) -> Any:
    inside = shape_of(x)[node.get("axis", -1) % x.ndim :]
    fits = shape_of(scale) == inside
    y = F.rms_norm(x, inside, scale if fits else None, node.get("epsilon", 1e-5))
    return y if fits else y * scale


@operator("LRN")
def _lrn(node: Node, x: Any) -> Any:
    size = node.get("size")
    options = node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    if size % 2:
        return F.local_response_norm(x, size, *options)
    # Of an even neighbourhood, ONNX has the larger half behind, and PyTorch before.
    return rearrange.flip(F.local_response_norm(rearrange.flip(x, 1), size, *options), 1)


# -- another size -----------------------------------------------------------------------------------------------------


@operator("Resize", settings=(1, 2, 3))
def _resize(node: Node, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    if node.opset < 11:
        node, roi, scales, sizes = _as_it_was(node), None, roi, None
    axes = axes_of(node, None, x.ndim) or list(range(x.ndim))
    have = [shape_of(x)[axis] for axis in axes]
    if sizes is not None and host(sizes).size:
        wanted, factors = _sizes_as(node.get("keep_aspect_ratio_policy", "stretch"), have, whole(sizes))
    else:
        factors = [float(factor) for factor in host(scales)]
        wanted = [math.floor(size * factor) for size, factor in zip(have, factors, strict=True)]
    crop = node.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    parts = host(roi).reshape(2, -1).T.tolist() if crop else [(0.0, 1.0)] * len(axes)
    for axis, want, factor, part in zip(axes, wanted, factors, parts, strict=True):
        if crop or want != shape_of(x)[axis] or factor != 1:
            x = _resize_along(node, x, axis, want, factor, part)
    return x


def _as_it_was(node: Node) -> Node:
    """A Resize of opset 10, or an Upsample: the position is the index divided by the scale, and rounded down."""
    attributes = {**node.attributes, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return Node(node.op, node.name, node.inputs, node.outputs, attributes, 11)


@operator("Upsample", settings=(1,))
def _upsample(node: Node, x: Any, scales: Any = None) -> Any:
    scales = np.asarray(node.get("scales"), np.float32) if scales is None else scales
    return _resize(_as_it_was(node), x, None, scales)


def _sizes_as(policy: str, have: list[int], wanted: list[int]) -> tuple[list[int], list[float]]:
    """The result's sizes, and the factors that give them."""
    factors = [want / size for want, size in zip(wanted, have, strict=True)]
    if policy == "stretch":
        return wanted, factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [math.floor(size * factor + 0.5) for size in have], [factor] * len(have)


def _resize_along(node: Node, x: Any, axis: int, want: int, factor: float, part: Sequence[float]) -> Any:
    have, how = shape_of(x)[axis], node.get("coordinate_transformation_mode", "half_pixel")
    places = _places(how, have, want, factor, part)
    y = _sampled(node, x, axis, places, factor)
    outside = (places < 0) | (places > have - 1)
    if how != "tf_crop_and_resize" or not outside.any():
        return y
    value = constant(node.get("extrapolation_value", 0.0), x)
    return elementwise.where(outside.reshape(-1, *[1] * (x.ndim - axis - 1)), value, y)


def _sampled(node: Node, x: Any, axis: int, places: np.ndarray, factor: float) -> Any:
    """The input at these places along an axis."""
    have, mode = shape_of(x)[axis], node.get("mode", "nearest")
    if mode == "nearest" and not node.get("antialias", 0):
        low = np.clip(_nearest(node.get("nearest_mode", "round_prefer_floor"), places), 0, have - 1).astype(np.int64)
        return ResizeAlong.apply(x, low=low, high=low, weights=None, axis=axis)
    if mode == "linear" and not (node.get("antialias", 0) and factor < 1):
        places = np.clip(places, 0, have - 1)
        low = np.floor(places).astype(np.int64)
        return ResizeAlong.apply(x, low=low, high=np.minimum(low + 1, have - 1), weights=places - low, axis=axis)
    matrix = _filter_matrix(node, places, have, factor).astype(x.dtype)
    return rearrange.movedim(arithmetic.matmul(rearrange.movedim(x, axis, -1), matrix.T.copy()), -1, axis)


def _places(mode: str, have: int, want: int, factor: float, part: Sequence[float]) -> np.ndarray:
    """Where in the input each element of the result lies; of ``part`` of it, from 0 to 1, for tf_crop_and_resize."""
    index = np.arange(want, dtype=np.float64)
    if mode == "tf_crop_and_resize":
        start, end = part
        if want == 1:
            return np.asarray([(start + end) / 2 * (have - 1)])
        return (start + index * (end - start) / (want - 1)) * (have - 1)
    if mode == "asymmetric":
        return index / factor
    if mode == "align_corners":
        return index * ((have - 1) / (have * factor - 1)) if have * factor > 1 else index * 0
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and want > 1):
        return (index + 0.5) / factor - 0.5
    if mode == "pytorch_half_pixel":
        return index * 0
    if mode == "half_pixel_symmetric":
        adjusted = want / (factor * have)
        return have / 2 * (1 - adjusted) + (index + 0.5) / factor - 0.5
    raise ValueError(f"coordinate_transformation_mode {mode!r}, which gpuconv does not have")


def _nearest(mode: str, places: np.ndarray) -> np.ndarray:
    if mode == "floor":
        return np.floor(places)
    if mode == "ceil":
        return np.ceil(places)
    return np.ceil(places - 0.5) if mode == "round_prefer_floor" else np.floor(places + 0.5)


def _filter_matrix(node: Node, places: np.ndarray, have: int, factor: float) -> np.ndarray:
    """The weights of each element of the input in each one of the result: a cubic filter, or a widened one."""
    cubic, a = node.get("mode", "nearest") == "cubic", node.get("cubic_coeff_a", -0.75)
    if not cubic and node.get("mode", "nearest") != "linear":
        raise ValueError("an antialiased Resize to the nearest element, which gpuconv does not have")
    shrink = min(factor, 1.0) if node.get("antialias", 0) else 1.0
    reach = math.ceil((2 if cubic else 1) / shrink)
    matrix = np.zeros((len(places), have))
    for row, place in enumerate(places):
        columns = np.arange(math.floor(place) - reach + 1, math.floor(place) + reach + 1)
        weights = _filtered(np.abs(columns - place) * shrink, cubic, a)
        if node.get("exclude_outside", 0):
            weights = np.where((columns >= 0) & (columns < have), weights, 0)
        weights = weights / weights.sum()
        np.add.at(matrix[row], np.clip(columns, 0, have - 1), weights)
    return matrix


def _filtered(distance: np.ndarray, cubic: bool, a: float) -> np.ndarray:
    if not cubic:
        return np.maximum(1 - distance, 0)
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * a * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


_SAMPLED = {"linear": "bilinear", "cubic": "bicubic"}


@operator("GridSample")
def _grid_sample(node: Node, x: Any, grid: Any) -> Any:
    mode = node.get("mode", "linear")
    padding = node.get("padding_mode", "zeros")
    return F.grid_sample(x, grid, _SAMPLED.get(mode, mode), padding, bool(node.get("align_corners", 0)))


@operator("AffineGrid", settings=(1,))
def _affine_grid(node: Node, theta: Any, size: Any) -> Any:
    return F.affine_grid(theta, whole(size), bool(node.get("align_corners", 0)))


# -- losses -----------------------------------------------------------------------------------------------------------


def _loss_options(node: Node, weight: Any) -> dict[str, Any]:
    options = {"weight": weight, "reduction": node.get("reduction", "mean")}
    return options | {"ignore_index": node.get("ignore_index")} if "ignore_index" in node.attributes else options


@operator("SoftmaxCrossEntropyLoss", settings=(1,), buffers=(2,))
def _softmax_cross_entropy_loss(node: Node, scores: Any, labels: Any, weight: Any = None) -> Any:
    loss = F.cross_entropy(scores, labels, **_loss_options(node, weight))
    return (loss, F.log_softmax(scores, 1)) if node.wants(1) else loss


@operator("NegativeLogLikelihoodLoss", settings=(1,), buffers=(2,))
def _negative_log_likelihood_loss(node: Node, scores: Any, labels: Any, weight: Any = None) -> Any:
    return F.nll_loss(scores, labels, **_loss_options(node, weight))
