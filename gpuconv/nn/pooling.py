"""Pooling with windows that adapt, by power means, and undone, as modules. Names and defaults are PyTorch's."""

from __future__ import annotations

from typing import Any

from gpuconv import functional as F
from gpuconv.geometry import adaptive_sizes, flag, immutable, sizes_of
from gpuconv.nn.layers import _AvgPool, _MaxPool, _Pool
from gpuconv.nn.module import Calling

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool3d",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
]


class AvgPool1d(_Pool, function=F.avg_pool1d):
    """Average pooling over one dimension; see :func:`gpuconv.functional.avg_pool1d`."""

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ):
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad)


class _Adaptive(Calling):
    _in_repr = ("output_size",)

    def __init__(self, output_size: Any):
        super().__init__()
        op = type(self).__name__
        adaptive_sizes(output_size, op=op, rank=_rank(self))
        self.output_size = immutable(output_size)


class AdaptiveAvgPool1d(_Adaptive, function=F.adaptive_avg_pool1d):
    """Average pooling of (N, C, L) to a given output size."""


class AdaptiveAvgPool2d(_Adaptive, function=F.adaptive_avg_pool2d):
    """Average pooling to a given output size; (1, 1) is global average pooling."""


class AdaptiveAvgPool3d(_Adaptive, function=F.adaptive_avg_pool3d):
    """Average pooling of (N, C, D, H, W) to a given output size."""


class _AdaptiveMax(_Adaptive):
    def __init__(self, output_size: Any, return_indices: bool = False):
        super().__init__(output_size)
        self.return_indices = flag(return_indices, "return_indices", op=type(self).__name__)

    def forward(self, input: Any) -> Any:
        return type(self).function(input, self.output_size, self.return_indices)


class AdaptiveMaxPool1d(_AdaptiveMax, function=F.adaptive_max_pool1d):
    """Max pooling of (N, C, L) to a given output size."""


class AdaptiveMaxPool2d(_AdaptiveMax, function=F.adaptive_max_pool2d):
    """Max pooling to a given output size; (1, 1) is global max pooling."""


class AdaptiveMaxPool3d(_AdaptiveMax, function=F.adaptive_max_pool3d):
    """Max pooling of (N, C, D, H, W) to a given output size."""


class _Pool3d(_Pool):
    """For the smallest volume that the arguments leave something of."""

    def _check(self, op: str, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> None:
        _check_window(op, 3, kernel_size, stride)
        kernel = sizes_of(kernel_size, "kernel_size", 3, minimum=1, op=op)
        if isinstance(padding, str):
            raise TypeError(f"{op}: padding must be given in numbers, got {padding!r}")
        for side, size in zip(sizes_of(padding, "padding", 3, minimum=0, op=op), kernel, strict=True):
            if side > size // 2:
                raise ValueError(f"{op}: padding {side} is more than half of kernel_size={kernel}")
        sizes_of(dilation, "dilation", 3, minimum=1, op=op)


class MaxPool3d(_Pool3d, _MaxPool, function=F.max_pool3d):
    """See :func:`gpuconv.functional.max_pool3d`."""


class AvgPool3d(_Pool3d, _AvgPool, function=F.avg_pool3d):
    """See :func:`gpuconv.functional.avg_pool3d`."""


def _rank(layer: Calling) -> int:
    """Dimensions of the maps: those in the name of its function. A subclass may have any name."""
    return int(type(layer).function.__name__[-2])


def _check_window(op: str, rank: int, kernel_size: Any, stride: Any) -> None:
    for name, value in (("kernel_size", kernel_size), ("stride", stride)):
        if value is not None or name == "kernel_size":
            sizes_of(value, name, rank, minimum=1, op=op)


class _LPPool(Calling):
    _in_repr = ("norm_type", "kernel_size", "stride", "ceil_mode")

    def __init__(self, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False):
        super().__init__()
        op = type(self).__name__
        self.norm_type = F.power_of(op, norm_type)
        _check_window(op, _rank(self), kernel_size, stride)
        self.kernel_size, self.stride = immutable(kernel_size), immutable(stride)
        self.ceil_mode = flag(ceil_mode, "ceil_mode", op=op)


class LPPool1d(_LPPool, function=F.lp_pool1d):
    """See :func:`gpuconv.functional.lp_pool1d`."""


class LPPool2d(_LPPool, function=F.lp_pool2d):
    """See :func:`gpuconv.functional.lp_pool2d`."""


class _MaxUnpool(Calling):
    _in_repr = ("kernel_size", "stride", "padding")

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0):
        super().__init__()
        op = type(self).__name__
        _check_window(op, _rank(self), kernel_size, stride)
        sizes_of(padding, "padding", _rank(self), minimum=0, op=op)
        self.kernel_size = immutable(kernel_size)
        self.stride = self.kernel_size if stride is None else immutable(stride)
        self.padding = immutable(padding)

    def forward(self, input: Any, indices: Any, output_size: Any = None) -> Any:
        return type(self).function(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool1d(_MaxUnpool, function=F.max_unpool1d):
    """See :func:`gpuconv.functional.max_unpool1d`."""


class MaxUnpool2d(_MaxUnpool, function=F.max_unpool2d):
    """See :func:`gpuconv.functional.max_unpool2d`."""


class LPPool3d(_LPPool, function=F.lp_pool3d):
    """See :func:`gpuconv.functional.lp_pool3d`."""


class MaxUnpool3d(_MaxUnpool, function=F.max_unpool3d):
    """See :func:`gpuconv.functional.max_unpool3d`."""
