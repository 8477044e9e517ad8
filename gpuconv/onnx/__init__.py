"""Networks to and from ONNX files: :func:`load` makes a Module that runs and trains, :func:`save` writes one.

Needs the ``onnx`` package (``pip install 'gpuconv[onnx]'``), which is loaded when something here is first called.
"""

from __future__ import annotations

from gpuconv.onnx.network import OnnxModule
from gpuconv.onnx.reading import load
from gpuconv.onnx.writing import save

__all__ = ["OnnxModule", "load", "save"]
