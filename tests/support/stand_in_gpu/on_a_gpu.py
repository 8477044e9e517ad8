"""What `make gpu-report` runs instead of `tests/test_gpu.py`, where the CPU has taken the GPU's place."""

import pytest

pytestmark = pytest.mark.gpu


def test_one():
    """It runs."""


@pytest.mark.parametrize("number", range(3))
def test_every_tiling_at_real_size(number):
    """They run."""
