"""The one generator that initialisation and dropout draw from unless they are given another."""

from __future__ import annotations

import numpy as np

_default = np.random.default_rng()


def manual_seed(seed: int) -> np.random.Generator:
    """Restart the default generator from ``seed`` (an int, at least 0) and return it."""
    _default.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    return _default


def default_generator() -> np.random.Generator:
    """The default generator; its ``bit_generator.state`` may be saved and set."""
    return _default
