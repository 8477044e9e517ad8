"""Every applicable test of the ONNX backend suite passes; which ones apply is counted, not chosen."""

from __future__ import annotations

import functools

import numpy as np
import pytest

pytest.importorskip("onnx", reason="pip install onnx: its wheel carries the backend tests")

import onnx
from support import onnx_nodes
from support.onnx_nodes import Case
from support.sampling import sampled

from gpuconv.backends import Backend
from gpuconv.dtypes import is_half
from gpuconv.onnx.node import OPERATORS

#: How many apply, and how many do not for each reason, in the release they were counted in.
COUNTED_IN = "1.23"
COUNTS = {
    "apply": 1443,
    "operators that gpuconv does not have": 421,
    "element types that gpuconv does not compute in": 150,
    "the expected values are one generator's random numbers": 4,
    "opset below 6": 3,
    "values that are no tensors": 2,
    "gpuconv folds two dimensions": 1,
}

#: Without a test of their own in the suite; the last two are neighbours that run as one.
WITHOUT = {"GlobalLpPool", "Conv+Relu", "Conv+Relu+MaxPool"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a `case` runs on each that applies; in a sample on a third, evenly spaced over their names."""
    if "case" in metafunc.fixturenames:
        cases = _applicable(_cases(metafunc.config))
        metafunc.parametrize("case", sampled(cases, len(cases) // 3, "nodes"), ids=str)


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> list[Case]:
    """All of them."""
    return _cases(request.config)


@functools.cache
def _cases(config: pytest.Config) -> list[Case]:
    assert config.cache is not None
    return onnx_nodes.collected(config.cache.mkdir("onnx-nodes"))


def _applicable(cases: list[Case]) -> list[Case]:
    return [case for case in cases if onnx_nodes.why_not(case) is None]


@pytest.mark.skipif(
    not onnx.__version__.startswith(COUNTED_IN + "."),
    reason=f"tests were counted in onnx {COUNTED_IN}; other releases have others (all that apply run anyway)",
)
def test_no_case_is_left_out_silently(cases: list[Case]) -> None:
    """The rule takes in and leaves out exactly those tests that were looked through by hand."""
    counted = onnx_nodes.summary(cases)
    print(*[f"{count:>6}  {what}" for what, count in counted.most_common()], sep="\n")
    assert counted == COUNTS


def test_every_operator_has_cases_that_apply(cases: list[Case]) -> None:
    """In whatever release of onnx is installed, no operator goes without a test."""
    assert set().union(*(case.operators for case in _applicable(cases))) >= set(OPERATORS) - WITHOUT


def test_node(backend: Backend, case: Case) -> None:
    """The result is the expected one: shape and element type exactly, values within the suite's tolerance.

    That is finer than half types are: two units in their last place are allowed.
    """
    results = onnx_nodes.run(case)
    assert len(results) == len(case.outputs)
    for result, expected in zip(results, case.outputs, strict=True):
        assert result.shape == np.shape(expected)
        assert result.dtype == np.asarray(expected).dtype
        rtol = max(case.rtol, {"float16": 2**-9, "bfloat16": 2**-6}.get(str(result.dtype), 0))
        if is_half(result.dtype):
            result, expected = result.astype(np.float32), np.asarray(expected, np.float32)
        np.testing.assert_allclose(result, expected, rtol=rtol, atol=case.atol)
