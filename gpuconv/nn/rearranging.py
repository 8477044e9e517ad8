"""Modules that rearrange: padding, windows, pixels and channels, other sizes and shapes. Names are PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from gpuconv import functional as F
from gpuconv.geometry import integer
from gpuconv.nn.module import Calling, Module

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

    def __init_subclass__(cls, mode: str | None = None, rank: int | None = None, **options: Any):
        super().__init_subclass__(**options)
        if mode is not None:
            cls.mode = mode
        if rank is not None:
            cls.rank = rank

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


class _ConstantPad(_Pad, mode="constant"):
    def __init__(self, padding: int | Sequence[int], value: float):
        super().__init__(padding)
        self.value = value

    def forward(self, input: Any) -> Any:
        return F.pad(input, self.padding, self.mode, self.value)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


class ConstantPad1d(_ConstantPad, rank=1):
    """A number around (N, C, L), or one without N; see :func:`gpuconv.functional.pad`."""


class ConstantPad2d(_ConstantPad, rank=2):
    """A number around (N, C, H, W), or one without N; see :func:`gpuconv.functional.pad`."""


class ConstantPad3d(_ConstantPad, rank=3):
    """A number around (N, C, D, H, W), or one without N; see :func:`gpuconv.functional.pad`."""


class ZeroPad1d(_Pad, mode="constant", rank=1):
    """Zeros around (N, C, L), or one without N; see :func:`gpuconv.functional.pad`."""


class ZeroPad2d(_Pad, mode="constant", rank=2):
    """Zeros around (N, C, H, W), or one without N; see :func:`gpuconv.functional.pad`."""


class ZeroPad3d(_Pad, mode="constant", rank=3):
    """Zeros around (N, C, D, H, W), or one without N; see :func:`gpuconv.functional.pad`."""


class ReflectionPad1d(_Pad, mode="reflect", rank=1):
    """Mirror images at the edges of (N, C, L), or one without N; see :func:`gpuconv.functional.pad`."""


class ReflectionPad2d(_Pad, mode="reflect", rank=2):
    """Mirror images at the edges of (N, C, H, W), or one without N; see :func:`gpuconv.functional.pad`."""


class ReflectionPad3d(_Pad, mode="reflect", rank=3):
    """Mirror images at the edges of (N, C, D, H, W), or one without N; see :func:`gpuconv.functional.pad`."""


class ReplicationPad1d(_Pad, mode="replicate", rank=1):
    """The outermost elements repeated around (N, C, L), or one without N; see :func:`gpuconv.functional.pad`."""


class ReplicationPad2d(_Pad, mode="replicate", rank=2):
    """The outermost elements repeated around (N, C, H, W), or one without N; see :func:`gpuconv.functional.pad`."""


class ReplicationPad3d(_Pad, mode="replicate", rank=3):
    """The outermost elements repeated around (N, C, D, H, W), or one without N; see :func:`gpuconv.functional.pad`."""


class CircularPad1d(_Pad, mode="circular", rank=1):
    """Elements of the other side around (N, C, L), or one without N; see :func:`gpuconv.functional.pad`."""


class CircularPad2d(_Pad, mode="circular", rank=2):
    """Elements of the other side around (N, C, H, W), or one without N; see :func:`gpuconv.functional.pad`."""


class CircularPad3d(_Pad, mode="circular", rank=3):
    """Elements of the other side around (N, C, D, H, W), or one without N; see :func:`gpuconv.functional.pad`."""


class PixelShuffle(Calling, function=F.pixel_shuffle):
    """Channels become pixels; see :func:`gpuconv.functional.pixel_shuffle`."""

    _in_repr = ("upscale_factor",)

    def __init__(self, upscale_factor: int):
        super().__init__()
        self.upscale_factor = integer(upscale_factor, "upscale_factor", minimum=1, op="PixelShuffle")


class PixelUnshuffle(Calling, function=F.pixel_unshuffle):
    """Pixels become channels; see :func:`gpuconv.functional.pixel_unshuffle`."""

    _in_repr = ("downscale_factor",)

    def __init__(self, downscale_factor: int):
        super().__init__()
        self.downscale_factor = integer(downscale_factor, "downscale_factor", minimum=1, op="PixelUnshuffle")


class ChannelShuffle(Calling, function=F.channel_shuffle):
    """Channels of groups interleaved; see :func:`gpuconv.functional.channel_shuffle`."""

    _in_repr = ("groups",)

    def __init__(self, groups: int):
        super().__init__()
        self.groups = integer(groups, "groups", minimum=1, op="ChannelShuffle")


class Unfold(Calling, function=F.unfold):
    """The elements of each window; see :func:`gpuconv.functional.unfold`."""

    _in_repr = ("kernel_size", "dilation", "padding", "stride")

    def __init__(self, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1):
        super().__init__()
        self.kernel_size, self.dilation, self.padding, self.stride = kernel_size, dilation, padding, stride


class Fold(Calling, function=F.fold):
    """Windows added up to images; see :func:`gpuconv.functional.fold`."""

    _in_repr = ("output_size", "kernel_size", "dilation", "padding", "stride")

    def __init__(self, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1):
        super().__init__()
        self.output_size, self.kernel_size = output_size, kernel_size
        self.dilation, self.padding, self.stride = dilation, padding, stride


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
        return F.unflatten(input, self.dim, self.unflattened_size)
