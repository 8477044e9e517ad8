"""Runs a kernel variant, and checks what holds of every one of them. Imported by tests of kernels.

In the simulator; or, with NUMBA_ENABLE_CUDASIM=0, compiled, its PTX interpreted: `make compiled-test`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import Any

import numpy as np
import pytest
from support import sampling

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.operations import workspace_type
from gpuconv.lab import ptx

pytest.importorskip("numba_cuda", reason="kernels are written for numba-cuda")
simulator = pytest.importorskip("gpuconv.lab.simulator", reason="needs greenlet", exc_type=ImportError)
COMPILED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "0"
if COMPILED:
    # For all launches of the process, also those that tests make without `run`; so it stays open.
    _open = contextlib.ExitStack()
    _open.enter_context(ptx.interpreted())
else:
    try:
        simulator.activate()
    except RuntimeError as refusal:
        pytest.skip(str(refusal), allow_module_level=True)

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-5}, "float64": {"rtol": 1e-12, "atol": 1e-12}}


def geometry_of(case: Any) -> Conv2dGeometry:
    """Of a case of a convolution."""
    return Conv2dGeometry.of(case.input, case.weight, **case.keywords)


def types_of(module: Any, geometry: Any, key: object) -> list[str]:
    """The types that a variant is run in; but for all cases one, which `key` chooses, mostly float32.

    A type changes no index.
    """
    types = [dtype for dtype in TOLERANCE if module.supports(geometry, dtype)]
    assert types == [*TOLERANCE] or (types == ["float32"] and module.__name__.endswith("_tensor_core"))
    return types if sampling.wanted() == "all" else sampling.sampled([types[0]] * 3 + types[-1:], 1, key)


#: What `run` ran: name of the variant's module, tiling, geometry. The summary of a test run tells how many there are.
triples: set[tuple[str, Any, Any]] = set()

_seeds = itertools.count()


def run(
    module: Any, inputs: Any, results: Any, geometry: Any, tiling: Any, *, rewritten: Any = (), **options: Any
) -> Any:
    """Launch a variant on arrays, `results` last, each an array or a list of them; give the trace's report, if any.

    Behind the results stand those that may be written several times: `rewritten`.

    The workspace begins as NaN: what is read of it has been written. In the simulator the trace finds no fault, each
    element of the results is written once, and threads and blocks run in another order each time.
    """
    inputs = [np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array for array in inputs]
    if size := module.workspace_size(geometry, tiling):
        options["workspace"] = np.full(size, np.nan, workspace_type(results[0].dtype))
    triples.add((module.__name__, tiling, geometry))
    if COMPILED:
        module.launch(*inputs, *results, *rewritten, geometry, tiling, None, **options)
        return None
    with simulator.trace(seed=next(_seeds)) as report:
        module.launch(*inputs, *results, *rewritten, geometry, tiling, None, **options)
    if report.launches:
        assert report.clean, f"{tiling}: {report}"
    for result in (array for one in results for array in (one if isinstance(one, list) else [one])):
        if result.size:
            np.testing.assert_array_equal(report.writes(result), 1, err_msg=str(tiling))
    return report
