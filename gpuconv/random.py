"""The default random generator, which initialisation and dropout use unless they are given another."""

from __future__ import annotations

import os

import numpy as np

_default = np.random.default_rng()

if hasattr(os, "register_at_fork"):
    # A process may be forked while another thread draws. In the child that thread would never release the generator,
    # and its state could be half changed. So a fork waits until nobody draws.
    _lock = _default.bit_generator.lock
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def manual_seed(seed: int) -> np.random.Generator:
    """Restart the default generator from ``seed`` (an int, at least 0) and return it."""
    _default.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    return _default


def default_generator() -> np.random.Generator:
    """The default generator; its ``bit_generator.state`` may be saved and set."""
    return _default
