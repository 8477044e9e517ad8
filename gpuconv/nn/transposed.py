"""Transposed convolutions as modules. Names and defaults are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from gpuconv import functional as F
from gpuconv.geometry import integer, sizes_of
from gpuconv.nn.layers import _ConvNd

__all__ = ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


class _ConvTransposeNd(_ConvNd):
    function: ClassVar[Callable[..., Any]]
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        *,
        dtype: Any = np.float32,
    ):
        op = type(self).__name__
        rank = int(type(self).function.__name__[-2])  # in the name of the class, a subclass's may not end so

        def several(value: Any, name: str, minimum: int) -> tuple[int, ...]:
            return sizes_of(value, name, rank, minimum=minimum, op=op)

        if isinstance(padding, str):
            raise TypeError(f"{op}: padding must be given in numbers, got {padding!r}")
        super().__init__(in_channels, out_channels, several(kernel_size, "kernel_size", 1), groups, bias, dtype)
        self.stride, self.dilation = several(stride, "stride", 1), several(dilation, "dilation", 1)
        self.padding, self.output_padding = several(padding, "padding", 0), several(output_padding, "output_padding", 0)
        for extra, step, spread in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if extra >= max(step, spread):
                raise ValueError(
                    f"{op}: output_padding must be less than stride or dilation, got "
                    f"output_padding={self.output_padding}, stride={self.stride}, dilation={self.dilation}"
                )

    def _output_padding(self, input: Any, output_size: Any) -> tuple[int, ...]:
        """Rows and columns to add so that the result has ``output_size``, without or with the other dimensions."""
        if output_size is None:
            return self.output_padding
        op, rank = type(self).__name__, len(self.kernel_size)
        wanted = [integer(size, "output_size", minimum=1, op=op) for size in output_size]
        if len(wanted) not in (rank, rank + 1, rank + 2):
            raise ValueError(f"{op}: output_size must have {rank} sizes, got {tuple(wanted)}")
        least = [
            (length - 1) * step - 2 * pad + spread * (kernel - 1) + 1
            for length, step, pad, spread, kernel in zip(
                input.shape[-rank:], self.stride, self.padding, self.dilation, self.kernel_size, strict=True
            )
        ]
        extra = tuple(size - low for size, low in zip(wanted[-rank:], least, strict=True))
        if not all(0 <= more < step for more, step in zip(extra, self.stride, strict=True)):
            most = tuple(low + step - 1 for low, step in zip(least, self.stride, strict=True))
            raise ValueError(f"{op}: output_size must be from {tuple(least)} to {most}, got {tuple(wanted[-rank:])}")
        return extra

    def forward(self, input: Any, output_size: Sequence[int] | None = None) -> Any:
        return type(self).function(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self._output_padding(input, output_size),
            self.groups,
            self.dilation,
        )


class ConvTranspose1d(_ConvTransposeNd):
    """Transposed 1-D convolution with learned filters; see :func:`gpuconv.functional.conv_transpose1d`.

    ``layer(input, output_size=sizes)`` chooses the output padding so that the result has these sizes.
    """

    function = staticmethod(F.conv_transpose1d)


class ConvTranspose2d(_ConvTransposeNd):
    """Transposed 2-D convolution with learned filters; see :func:`gpuconv.functional.conv_transpose2d`.

    ``layer(input, output_size=sizes)`` chooses the output padding so that the result has these sizes.

    Attributes:
        weight: (in_channels, out_channels / groups, R, S).
        bias: (out_channels,) or None.
    """

    function = staticmethod(F.conv_transpose2d)


class ConvTranspose3d(_ConvTransposeNd):
    """Transposed 3-D convolution with learned filters; see :func:`gpuconv.functional.conv_transpose3d`."""

    function = staticmethod(F.conv_transpose3d)
