"""Runs ONNX files as others do: with ONNX Runtime."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
import pytest

try:
    import onnxruntime
except ImportError:
    onnxruntime = None


def run(path: str | os.PathLike[str], *inputs: Any) -> list[np.ndarray]:
    """The outputs of the file's graph, for its inputs in order; the test is skipped where ONNX Runtime is missing."""
    if onnxruntime is None:
        pytest.skip("pip install onnxruntime to compare with it")
    names = [value.name for value in onnx.load(path).graph.input]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, map(np.asarray, inputs), strict=True)))
