"""CUDA kernels: one file for each variant. Installed as ``gpuconv.kernels``.

``VARIANTS`` lists them: operation -> variant name -> module name. Tests, benchmarks and tuning iterate over it.
``operations.py`` describes what an operation takes and returns, ``variant.py`` what all variants have in common.

To add a variant, write a module and add a line for it. It has

- ``Tiling``, a small frozen dataclass, and ``tilings(geometry)``: the ways to divide the work, a good guess first;
- ``calls(a, geometry, tiling)``, which yields a ``device.call(kernel, blocks, threads, *arguments)`` for each launch;
  ``a`` has the operation's arrays and numbers by name (:class:`gpuconv.kernels.variant.Arguments`);
- ``supports(geometry)``, True or a ``device.Refusal``, unless it supports all geometries;
- ``workspace_size(geometry, tiling)``, if it works in two stages: elements of the array that the first one fills;
- ``DTYPES``, names of element types, unless they are float32 and float64; ``COMPUTE_CAPABILITY``, if it is for GPUs
  from that one on.

``conv2d_direct`` is a good example. The function in it that makes the kernel is decorated with
``compiled.specialised``, which keeps the compiled kernel on disk for later processes.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuconv.kernels.variant import Variant

if __name__ != "gpuconv.kernels":  # `import kernels` from the repository root would make a second copy
    raise ImportError("import this package as gpuconv.kernels (the folder kernels/ is mapped to that name)")

VARIANTS: dict[str, dict[str, str]] = {
    "conv2d": {
        "direct": "gpuconv.kernels.conv.conv2d_direct",
        "tiled": "gpuconv.kernels.conv.conv2d_tiled",
        "implicit_gemm": "gpuconv.kernels.conv.conv2d_implicit_gemm",
        "depthwise": "gpuconv.kernels.conv.conv2d_depthwise",
        "winograd": "gpuconv.kernels.conv.conv2d_winograd",
        "tensor_core": "gpuconv.kernels.conv.conv2d_tensor_core",
    },
    "conv2d_grad_input": {
        "direct": "gpuconv.kernels.conv.conv2d_grad_input_direct",
        "tiled": "gpuconv.kernels.conv.conv2d_grad_input_tiled",
        "implicit_gemm": "gpuconv.kernels.conv.conv2d_grad_input_implicit_gemm",
        "winograd": "gpuconv.kernels.conv.conv2d_grad_input_winograd",
        "tensor_core": "gpuconv.kernels.conv.conv2d_grad_input_tensor_core",
    },
    "conv2d_grad_weight": {
        "direct": "gpuconv.kernels.conv.conv2d_grad_weight_direct",
        "implicit_gemm": "gpuconv.kernels.conv.conv2d_grad_weight_implicit_gemm",
        "depthwise": "gpuconv.kernels.conv.conv2d_grad_weight_depthwise",
        "tensor_core": "gpuconv.kernels.conv.conv2d_grad_weight_tensor_core",
        "winograd": "gpuconv.kernels.conv.conv2d_grad_weight_winograd",
    },
    "conv2d_grad_bias": {"two_stage": "gpuconv.kernels.conv.conv2d_grad_bias"},
    "conv2d_relu_max_pool2d": {"fused": "gpuconv.kernels.block.conv2d_relu_max_pool2d"},
    "conv2d_relu_max_pool2d_pair": {"image": "gpuconv.kernels.block.conv2d_relu_max_pool2d_pair"},
    "conv2d_relu_max_pool2d_grad_input": {
        "gathered": "gpuconv.kernels.block.conv2d_relu_max_pool2d_grad_input",
        "scattered": "gpuconv.kernels.block.conv2d_relu_max_pool2d_grad_input_scattered",
    },
    "conv2d_relu_max_pool2d_grad_weight": {"sparse": "gpuconv.kernels.block.conv2d_relu_max_pool2d_grad_weight"},
    "linear_chain": {
        "rows": "gpuconv.kernels.chain.linear_chain",
        "split": "gpuconv.kernels.chain.linear_chain_split",
    },
    "linear_chain_grad_input": {"rows": "gpuconv.kernels.chain.linear_chain_grad_input"},
    "linear_chain_loss_grad_input": {"recomputed": "gpuconv.kernels.chain.linear_chain_loss_grad_input"},
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
    "batch_norm_stats": {"two_pass": "gpuconv.kernels.norm.batch_norm_stats"},
    "batch_norm": {"elementwise": "gpuconv.kernels.norm.batch_norm"},
    "batch_norm_grad_stats": {"two_stage": "gpuconv.kernels.norm.batch_norm_grad_stats"},
    "batch_norm_grad_input": {"elementwise": "gpuconv.kernels.norm.batch_norm_grad_input"},
    "sgd_update_all": {"one_launch": "gpuconv.kernels.update.sgd_update_all"},
    "sgd_update_all_of_parts": {"one_launch": "gpuconv.kernels.update.sgd_update_all"},
    "adam_update_all": {"one_launch": "gpuconv.kernels.update.adam_update_all"},
    "adam_update_all_of_parts": {"one_launch": "gpuconv.kernels.update.adam_update_all"},
    "image_batch": {"gathered": "gpuconv.kernels.data.image_batch"},
    "count_correct": {"one_block": "gpuconv.kernels.loss.count_correct"},
}


def load(operation: str, variant: str) -> Variant:
    """A variant. Numba's CUDA target, which it needs, is imported only now.

    Raises:
        KeyError: ``VARIANTS`` has no such entry.
        ImportError: Numba's CUDA target is missing.
    """
    return of(operation, importlib.import_module(VARIANTS[operation][variant]))


@functools.cache
def of(operation: str, module: ModuleType) -> Variant:
    """The variant of an operation that a module provides, which need not be in the table."""
    loaded: Any = importlib.import_module("gpuconv.kernels.variant")
    made: Variant = loaded.Variant(operation, module)
    return made
