"""Device code: one file a kernel variant. Installed as ``gpuconv.kernels``.

``VARIANTS`` is the one table: operation -> variant name -> module name. Tests, benchmarks and tuning iterate it. To add
a variant, write a module and add its line; it provides what :class:`Variant` lists. ``conv2d_direct`` is the model.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

if __name__ != "gpuconv.kernels":  # `import kernels` from the repository root would make a second copy
    raise ImportError("import this package as gpuconv.kernels (the folder kernels/ is mapped to that name)")

VARIANTS: dict[str, dict[str, str]] = {
    "conv2d": {
        "direct": "gpuconv.kernels.conv2d_direct",
    },
}


class Variant(Protocol):
    """What the module of a variant provides.

    A geometry is a frozen dataclass of ``gpuconv.geometry``. Arrays are contiguous, of one float type, and of the
    shapes that the geometry gives; the backend has seen to it. Their order, before the geometry, is that of the
    operation: for conv2d ``x, weight, bias, out``, bias being None where there is none.
    """

    def supports(self, geometry: Any) -> Any:
        """True, or a :class:`gpuconv.kernels.device.Refusal`: false, and the text says why."""

    def tilings(self, geometry: Any) -> tuple[Any, ...]:
        """The ways in which the work can be cut up: small frozen dataclasses, a good guess first."""

    def launches(self, geometry: Any, tiling: Any, dtype: Any, **options: Any) -> tuple[Any, ...]:
        """The :class:`gpuconv.kernels.device.Launch` s that :meth:`launch` makes; none for an empty batch.

        They can be compiled and judged without arrays and without a GPU. Options, as conv2d's ``has_bias``, have
        defaults.

        Raises:
            ValueError: the variant does not support the geometry.
        """

    def launch(self, *arrays_geometry_tiling_stream: Any) -> None:
        """Queue the work on a stream (None: the default one); the last array is written, in full.

        Raises:
            ValueError: the variant does not support the geometry.
        """


def load(operation: str, variant: str) -> Variant:
    """The module of a variant; what it needs (Numba's CUDA target) is imported here and not before.

    Raises:
        KeyError: ``VARIANTS`` has no such entry.
        ImportError: Numba's CUDA target is missing.
    """
    module: Any = importlib.import_module(VARIANTS[operation][variant])
    return module
