"""Modules that rearrange: padding, windows, pixels and channels, other sizes and shapes. Names are PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from gpuconv import functional as F
from gpuconv.geometry import integer
from gpuconv.nn.module import Module

__all__ = [
    "ChannelShuffle",
    "CircularPad1d",
    "CircularPad2d",
    "CircularPad3d",
    "ConstantPad1d",
    "ConstantPad2d",
    "ConstantPad3d",
    "Fold",
    "PixelShuffle",
    "PixelUnshuffle",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReflectionPad3d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ReplicationPad3d",
    "Unflatten",
    "Unfold",
    "Upsample",
    "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
    "ZeroPad1d",
    "ZeroPad2d",
    "ZeroPad3d",
]


class _Pad(Module):
    """See :func:`gpuconv.functional.pad`; ``padding`` is one number for all sides, or two for each dimension."""

    mode: ClassVar[str]
    rank: ClassVar[int]

    def __init__(self, padding: int | Sequence[int]):
        super().__init__()
        op = type(self).__name__
        several = padding if isinstance(padding, Sequence) else [padding] * (2 * self.rank)
        if len(several) != 2 * self.rank:
            raise ValueError(f"{op}: padding must be one number or {2 * self.rank}, got {padding!r}")
        self.padding = tuple(integer(size, "padding", minimum=-(2**31), op=op) for size in several)

    def forward(self, input: Any) -> Any:
        return F.pad(input, self.padding, self.mode)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class _ConstantPad(_Pad):
    mode = "constant"

    def __init__(self, padding: int | Sequence[int], value: float):
        super().__init__(padding)
        self.value = value

    def forward(self, input: Any) -> Any:
        return F.pad(input, self.padding, self.mode, self.value)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


class _ZeroPad(_Pad):
    mode = "constant"


class ConstantPad1d(_ConstantPad):
    """A number around (N, C, L), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 1


class ConstantPad2d(_ConstantPad):
    """A number around (N, C, H, W), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 2


class ConstantPad3d(_ConstantPad):
    """A number around (N, C, D, H, W), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 3


class ZeroPad1d(_ZeroPad):
    """Zeros around (N, C, L), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 1


class ZeroPad2d(_ZeroPad):
    """Zeros around (N, C, H, W), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 2


class ZeroPad3d(_ZeroPad):
    """Zeros around (N, C, D, H, W), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 3


class _Reflection(_Pad):
    mode = "reflect"


class ReflectionPad1d(_Reflection):
    """Mirror images at the edges of (N, C, L), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 1


class ReflectionPad2d(_Reflection):
    """Mirror images at the edges of (N, C, H, W), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 2


class ReflectionPad3d(_Reflection):
    """Mirror images at the edges of (N, C, D, H, W), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 3


class _Replication(_Pad):
    mode = "replicate"


class ReplicationPad1d(_Replication):
    """The outermost elements repeated around (N, C, L), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 1


class ReplicationPad2d(_Replication):
    """The outermost elements repeated around (N, C, H, W), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 2


class ReplicationPad3d(_Replication):
    """The outermost elements repeated around (N, C, D, H, W), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 3


class _Circular(_Pad):
    mode = "circular"


class CircularPad1d(_Circular):
    """Elements of the other side around (N, C, L), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 1


class CircularPad2d(_Circular):
    """Elements of the other side around (N, C, H, W), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 2


class CircularPad3d(_Circular):
    """Elements of the other side around (N, C, D, H, W), or one without N; see :func:`gpuconv.functional.pad`."""

    rank = 3


class PixelShuffle(Module):
    """Channels become pixels; see :func:`gpuconv.functional.pixel_shuffle`."""

    _in_repr = ("upscale_factor",)

    def __init__(self, upscale_factor: int):
        super().__init__()
        self.upscale_factor = integer(upscale_factor, "upscale_factor", minimum=1, op="PixelShuffle")

    def forward(self, input: Any) -> Any:
        return F.pixel_shuffle(input, self.upscale_factor)


class PixelUnshuffle(Module):
    """Pixels become channels; see :func:`gpuconv.functional.pixel_unshuffle`."""

    _in_repr = ("downscale_factor",)

    def __init__(self, downscale_factor: int):
        super().__init__()
        self.downscale_factor = integer(downscale_factor, "downscale_factor", minimum=1, op="PixelUnshuffle")

    def forward(self, input: Any) -> Any:
        return F.pixel_unshuffle(input, self.downscale_factor)


class ChannelShuffle(Module):
    """Channels of groups interleaved; see :func:`gpuconv.functional.channel_shuffle`."""

    _in_repr = ("groups",)

    def __init__(self, groups: int):
        super().__init__()
        self.groups = integer(groups, "groups", minimum=1, op="ChannelShuffle")

    def forward(self, input: Any) -> Any:
        return F.channel_shuffle(input, self.groups)


class Unfold(Module):
    """The elements of each window; see :func:`gpuconv.functional.unfold`."""

    _in_repr = ("kernel_size", "dilation", "padding", "stride")

    def __init__(self, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1):
        super().__init__()
        self.kernel_size, self.dilation, self.padding, self.stride = kernel_size, dilation, padding, stride

    def forward(self, input: Any) -> Any:
        return F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)


class Fold(Module):
    """Windows added up to images; see :func:`gpuconv.functional.fold`."""

    _in_repr = ("output_size", "kernel_size", "dilation", "padding", "stride")

    def __init__(self, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1):
        super().__init__()
        self.output_size, self.kernel_size = output_size, kernel_size
        self.dilation, self.padding, self.stride = dilation, padding, stride

    def forward(self, input: Any) -> Any:
        return F.fold(input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)


class Upsample(Module):
    """Images of another size; see :func:`gpuconv.functional.interpolate`."""

    def __init__(
        self,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ):
        super().__init__()
        self.size, self.scale_factor, self.mode = size, scale_factor, mode
        self.align_corners, self.recompute_scale_factor = align_corners, recompute_scale_factor

    def forward(self, input: Any) -> Any:
        return F.interpolate(
            input, self.size, self.scale_factor, self.mode, self.align_corners, self.recompute_scale_factor
        )

    def extra_repr(self) -> str:
        name = "scale_factor" if self.size is None else "size"
        return f"{name}={getattr(self, name)}, mode={self.mode!r}"


class UpsamplingNearest2d(Upsample):
    """:class:`Upsample` with mode 'nearest'."""

    def __init__(self, size: Any = None, scale_factor: Any = None):
        super().__init__(size, scale_factor)


class UpsamplingBilinear2d(Upsample):
    """:class:`Upsample` with mode 'bilinear' and ``align_corners``."""

    def __init__(self, size: Any = None, scale_factor: Any = None):
        super().__init__(size, scale_factor, "bilinear", True)


class Unflatten(Module):
    """One dimension as several; one of their sizes may be -1.

    Raises:
        ValueError: sizes whose product is not that of the dimension.
        IndexError: no such dimension.
    """

    _in_repr = ("dim", "unflattened_size")

    def __init__(self, dim: int, unflattened_size: Sequence[int]):
        super().__init__()
        self.dim = integer(dim, "dim", minimum=-(2**31), op="Unflatten")
        if isinstance(unflattened_size, str) or not isinstance(unflattened_size, Sequence):
            raise TypeError(f"Unflatten: unflattened_size must be a sequence of integers, got {unflattened_size!r}")
        self.unflattened_size = tuple(
            integer(size, "unflattened_size", minimum=-1, op="Unflatten") for size in unflattened_size
        )

    def forward(self, input: Any) -> Any:
        shape = tuple(input.shape)
        if not -len(shape) <= self.dim < len(shape):
            raise IndexError(f"Unflatten: dim {self.dim} does not exist in an input of shape {shape}")
        axis = self.dim % len(shape)
        given = math.prod(size for size in self.unflattened_size if size != -1)
        known = self.unflattened_size.count(-1) == 0
        if (given != shape[axis]) if known else (given == 0 or shape[axis] % given):
            raise ValueError(
                f"Unflatten: unflattened_size {self.unflattened_size} does not fit dim {axis}, of size {shape[axis]}"
            )
        missing = 1 if known else shape[axis] // given
        sizes = tuple(missing if size == -1 else size for size in self.unflattened_size)
        return input.reshape((*shape[:axis], *sizes, *shape[axis + 1 :]))
