"""Every applicable node test of the ONNX backend suite passes; which ones apply is counted, not chosen."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="pip install onnx: its wheel carries the backend node tests")

import onnx
from support import onnx_nodes
from support.onnx_nodes import NodeCase

from gpuconv.backends import Backend

CASES = onnx_nodes.collect()
APPLICABLE = [case for case in CASES if onnx_nodes.why_not(case) is None]
REFUSED = [case for case in CASES if onnx_nodes.why_not(case) == onnx_nodes.PADDED_BEYOND_HALF]

#: The wheel's tests by operator, as (apply, do not apply), in the release they were counted in.
COUNTED_IN = "1.23"
COUNTS = {
    "Conv": (26, 7),
    "MaxPool": (19, 9),
    "AveragePool": (13, 14),
    "GlobalAveragePool": (2, 0),
    "Relu": (3, 1),
    "Sigmoid": (3, 2),
    "Tanh": (3, 0),
    "Softmax": (10, 15),
    "LogSoftmax": (10, 14),
    "Gemm": (12, 1),
    "Flatten": (11, 0),
    "SoftmaxCrossEntropyLoss": (34, 34),
}


@pytest.mark.skipif(
    not onnx.__version__.startswith(COUNTED_IN + "."),
    reason=f"tests were counted in onnx {COUNTED_IN}; other releases have others (all that apply run anyway)",
)
def test_no_case_is_left_out_silently() -> None:
    """The rule takes in and leaves out exactly those tests that were looked through by hand."""
    counted = {
        operator: (applicable, sum(reasons.values()))
        for operator, (applicable, reasons) in onnx_nodes.summary(CASES).items()
    }
    assert counted == COUNTS, "\n" + onnx_nodes.table(CASES)


def test_every_operator_has_cases_that_apply() -> None:
    """In whatever release of onnx is installed, no operator goes without a test."""
    assert {case.operator for case in APPLICABLE} == set(onnx_nodes.OPERATORS)


@pytest.mark.parametrize("case", APPLICABLE, ids=str)
def test_node(backend: Backend, case: NodeCase) -> None:
    """The result is the expected one: shape and element type exactly, values within the suite's tolerance."""
    results = onnx_nodes.run(case)
    assert len(results) == len(case.outputs)
    for result, expected in zip(results, case.outputs, strict=True):
        assert isinstance(result, np.ndarray)
        assert result.shape == expected.shape
        assert result.dtype == expected.dtype
        np.testing.assert_allclose(result, expected, rtol=case.rtol, atol=case.atol)


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_padding_that_does_not_apply_is_refused(case: NodeCase) -> None:
    """What the rule leaves out for its padding is an error that says so, not another result."""
    with pytest.raises(ValueError, match="padding"):
        onnx_nodes.run(case)
