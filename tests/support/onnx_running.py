"""Runs ONNX files as others do: with ONNX Runtime, or where it is missing the reference of the `onnx` package."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx

try:
    import onnxruntime
except ImportError:
    onnxruntime = None

RUNTIME = "onnx.reference" if onnxruntime is None else "ONNX Runtime"


def run(path: str | os.PathLike[str], *inputs: Any) -> list[np.ndarray]:
    """The outputs of the file's graph, for its inputs in order."""
    names = [value.name for value in onnx.load(path).graph.input]
    feed = dict(zip(names, map(np.asarray, inputs), strict=True))
    if onnxruntime is None:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(os.fspath(path)).run(None, feed)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)
