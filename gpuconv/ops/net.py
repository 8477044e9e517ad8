"""A whole convolutional network as one operation, for inference."""

from __future__ import annotations

from typing import Any

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array
from gpuconv.geometry import NetGeometry


class ConvNet(Function):
    """Blocks of convolution, ReLU and max pooling, then fully connected layers: inputs x, weight, bias, weight, bias...

    Nothing is kept for a backward pass, so there is none.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *parameters: Any, geometry: NetGeometry) -> Array:
        if any(ctx.needs_input_grad):
            raise RuntimeError("conv_net: it has no gradient; call it inside `with no_grad():`")
        return ctx.backend.conv_net(x, parameters[::2], parameters[1::2], geometry)
