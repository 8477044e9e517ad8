"""CUDA kernels: one file for each variant. Installed as ``gpuconv.kernels``.

``VARIANTS`` lists them: operation -> variant name -> module name. Tests, benchmarks and tuning iterate over it. To add
a variant, write a module that provides what :class:`Variant` lists, and add a line for it; ``conv2d_direct`` is a good
example. The function in it that makes the kernel is decorated with ``compiled.specialised``, which keeps the compiled
kernel on disk for later processes.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

if __name__ != "gpuconv.kernels":  # `import kernels` from the repository root would make a second copy
    raise ImportError("import this package as gpuconv.kernels (the folder kernels/ is mapped to that name)")

VARIANTS: dict[str, dict[str, str]] = {
    "conv2d": {
        "direct": "gpuconv.kernels.conv.conv2d_direct",
        "tiled": "gpuconv.kernels.conv.conv2d_tiled",
        "implicit_gemm": "gpuconv.kernels.conv.conv2d_implicit_gemm",
        "depthwise": "gpuconv.kernels.conv.conv2d_depthwise",
    },
    "conv2d_grad_input": {
        "direct": "gpuconv.kernels.conv.conv2d_grad_input_direct",
        "tiled": "gpuconv.kernels.conv.conv2d_grad_input_tiled",
    },
    "conv2d_grad_weight": {
        "direct": "gpuconv.kernels.conv.conv2d_grad_weight_direct",
        "implicit_gemm": "gpuconv.kernels.conv.conv2d_grad_weight_implicit_gemm",
    },
    "conv2d_grad_bias": {"two_stage": "gpuconv.kernels.conv.conv2d_grad_bias"},
    "conv2d_relu_max_pool2d": {"fused": "gpuconv.kernels.block.conv2d_relu_max_pool2d"},
    "conv2d_relu_max_pool2d_grad_input": {"gathered": "gpuconv.kernels.block.conv2d_relu_max_pool2d_grad_input"},
    "conv2d_relu_max_pool2d_grad_weight": {"sparse": "gpuconv.kernels.block.conv2d_relu_max_pool2d_grad_weight"},
    "linear_chain": {"rows": "gpuconv.kernels.chain.linear_chain"},
    "linear_chain_grad_input": {"rows": "gpuconv.kernels.chain.linear_chain_grad_input"},
    "linear_chain_grad_weight": {"tiled": "gpuconv.kernels.chain.linear_chain_grad_weight"},
    "relu": {"elementwise": "gpuconv.kernels.pointwise.relu"},
    "relu_grad": {"elementwise": "gpuconv.kernels.pointwise.relu_grad"},
    "max_pool2d": {"direct": "gpuconv.kernels.pool.max_pool2d"},
    "max_pool2d_grad": {"direct": "gpuconv.kernels.pool.max_pool2d_grad"},
    "avg_pool2d": {"direct": "gpuconv.kernels.pool.avg_pool2d"},
    "avg_pool2d_grad": {"direct": "gpuconv.kernels.pool.avg_pool2d_grad"},
    "softmax_cross_entropy": {"rowwise": "gpuconv.kernels.loss.softmax_cross_entropy"},
    "softmax_cross_entropy_grad": {"rowwise": "gpuconv.kernels.loss.softmax_cross_entropy_grad"},
    "softmax_cross_entropy_mean": {"one_block": "gpuconv.kernels.loss.softmax_cross_entropy_mean"},
    "sgd_update": {"elementwise": "gpuconv.kernels.update.sgd_update"},
    "sgd_update_all": {"one_launch": "gpuconv.kernels.update.sgd_update_all"},
    "adam_update": {"elementwise": "gpuconv.kernels.update.adam_update"},
    "adam_update_all": {"one_launch": "gpuconv.kernels.update.adam_update_all"},
    "image_batch": {"gathered": "gpuconv.kernels.data.image_batch"},
    "count_correct": {"one_block": "gpuconv.kernels.loss.count_correct"},
}


class Variant(Protocol):
    """What the module of a variant provides.

    A geometry is a frozen dataclass of ``gpuconv.geometry``, or for operations without one the shape of the array that
    they work on (of the logits, for a loss). Arrays are contiguous and have one float dtype (except labels, argmax
    positions and bytes) and the shapes that the geometry gives; the backend has checked that. They come before the
    geometry, in the order of the operation's primitive in ``gpuconv.backends.base``, then the results: for conv2d ``x,
    weight, bias, out``, with None for no bias. The primitive's numbers follow by keyword, after the stream.
    """

    def supports(self, geometry: Any) -> Any:
        """True, or a :class:`gpuconv.kernels.device.Refusal`: a false value whose text says why."""

    def tilings(self, geometry: Any) -> tuple[Any, ...]:
        """The ways to divide the work: small frozen dataclasses, a good guess first."""

    def launches(self, geometry: Any, tiling: Any, dtype: Any, **options: Any) -> tuple[Any, ...]:
        """The :class:`gpuconv.kernels.device.Launch` objects that :meth:`launch` runs, in order.

        They can be compiled and inspected without arrays and without a GPU. Options, such as conv2d's ``has_bias``,
        have defaults. For an empty batch there is no launch, unless a result has elements nevertheless: a sum over the
        batch.

        Raises:
            ValueError: the variant does not support the geometry.
        """

    def workspace_size(self, geometry: Any, tiling: Any) -> int:
        """Number of elements, of the arrays' dtype, of the flat array that :meth:`launch` takes as ``workspace=``.

        If it is 0, there is no workspace. Only modules with two stages, which need one for the first stage, have this
        function.
        """

    def launch(self, *arrays_geometry_tiling_stream: Any, **options: Any) -> None:
        """Queue the work on a stream (None: the default one); every element of the results is written.

        Raises:
            ValueError: the variant does not support the geometry.
        """


def load(operation: str, variant: str) -> Variant:
    """The module of a variant. Numba's CUDA target, which it needs, is imported only now.

    Raises:
        KeyError: ``VARIANTS`` has no such entry.
        ImportError: Numba's CUDA target is missing.
    """
    module: Any = importlib.import_module(VARIANTS[operation][variant])
    return module
