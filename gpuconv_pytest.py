"""The pytest plugin of gpuconv's laboratory: ``pytest --cuda-lab`` runs Numba CUDA kernels without a GPU.

It is a module of its own, so that a pytest that does not use it imports nothing else: see gpuconv/lab/testing.py.
"""

from __future__ import annotations

from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options; without one of the first two the plugin does nothing."""
    group = parser.getgroup("cuda lab", "Numba CUDA kernels without a GPU (gpuconv)")
    group.addoption("--cuda-lab", action="store_true", help="run the kernels of numba.cuda in gpuconv's simulator")
    group.addoption(
        "--cuda-lab-trace",
        action="store_true",
        help="record every access to memory as well: a test fails whose kernels race, leave their arrays, read what "
        "nobody wrote",
    )
    group.addoption(
        "--cuda-lab-code",
        action="store_true",
        help="compile the kernels for a GPU as well, and tell of arithmetic in float64 at the end",
    )
    group.addoption("--cuda-lab-seed", type=int, default=0, help="of the order of threads and blocks (0)")
    group.addoption("--cuda-lab-device", default="h100", help="the GPU to stand for: t4, a100, rtx4090... (h100)")
    group.addoption("--cuda-lab-limit", type=float, default=60.0, help="seconds that a launch may take (60)")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: Any) -> None:
    """Switch the simulator on before a conftest.py imports ``numba.cuda``."""
    _switch_on(early_config, early_config.known_args_namespace)


def pytest_configure(config: pytest.Config) -> None:
    """The mark; and the simulator, in processes that load no conftest.py first."""
    config.addinivalue_line(
        "markers",
        "cuda_lab(allow=[...]): kinds of fault that --cuda-lab-trace lets pass, as 'race' or 'out-of-bounds'",
    )
    _switch_on(config, config.option)


def _switch_on(config: Any, options: Any) -> None:
    trace = getattr(options, "cuda_lab_trace", False)
    code = getattr(options, "cuda_lab_code", False)
    if not (trace or code or getattr(options, "cuda_lab", False)) or config.pluginmanager.has_plugin("gpuconv_lab"):
        return
    from gpuconv.lab.testing import Laboratory

    laboratory = Laboratory(
        seed=options.cuda_lab_seed,
        limit=options.cuda_lab_limit,
        device=options.cuda_lab_device,
        trace=trace,
        code=code,
    )
    config.pluginmanager.register(laboratory, "gpuconv_lab")
