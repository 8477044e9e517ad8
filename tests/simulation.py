"""Runs a kernel variant in the simulator, and checks what holds of every one of them. Imported by tests of kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels are written for numba-cuda")
simulator = pytest.importorskip("gpuconv.simulator", reason="needs greenlet", exc_type=ImportError)
try:
    simulator.activate()
except RuntimeError as refusal:
    pytest.skip(str(refusal), allow_module_level=True)

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-5}, "float64": {"rtol": 1e-12, "atol": 1e-12}}

#: How often `run` ran a launch; also the seed of the next one.
runs = 0


def run(module: Any, inputs: Any, results: Any, geometry: Any, tiling: Any, **options: Any) -> Any:
    """Launch a variant on arrays, `results` last, each an array or a list of them; give the trace's report.

    The trace finds no fault, and each element of the results is written once. The workspace begins as NaN: what is read
    of it has been written.
    """
    global runs
    inputs = [np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array for array in inputs]
    size = module.workspace_size(geometry, tiling) if hasattr(module, "workspace_size") else 0
    if size:
        options["workspace"] = np.full(size, np.nan, results[0].dtype)
    with simulator.trace(seed=runs) as report:
        module.launch(*inputs, *results, geometry, tiling, None, **options)
    runs += 1
    if report.launches:
        assert report.clean, f"{tiling}: {report}"
    for result in (array for one in results for array in (one if isinstance(one, list) else [one])):
        if result.size:
            np.testing.assert_array_equal(report.writes(result), 1, err_msg=str(tiling))
    return report


@contextlib.contextmanager
def counted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print how many runs there were inside of the `with` block."""
    before = runs
    yield
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{runs - before} (kernel, tiling, case) triples simulated")
