"""The simulator, switched on. Whoever imports this is skipped where it cannot be had, or where kernels are compiled."""

import pytest

pytest.importorskip("numba_cuda", reason="kernels are written for numba-cuda")
simulator = pytest.importorskip("gpuconv.lab.simulator", reason="needs greenlet", exc_type=ImportError)
try:
    simulator.activate()
except RuntimeError as refusal:
    pytest.skip(str(refusal), allow_module_level=True)
