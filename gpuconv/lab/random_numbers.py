"""``numba.cuda.random`` in the simulator: its functions as Python, and states that are made without compiling anything.

Numba compiles these functions for the CPU in object mode, anew for each kind of array, which takes tens of seconds.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

_MASK = 2**64 - 1
#: The polynomial by which the generator jumps ahead by 2**64 steps (xoroshiro128plus.c, D. Blackman and S. Vigna).
_JUMP = 0xD86B048B86AA9922 << 64 | 0xBEAC0467EBA5FACB
#: States that are computed at once: as many as have their halves in a CPU's first-level cache.
_MANY = 2048


def patch() -> None:
    """Replace the functions in the module, which kernels and hosts import from."""
    with warnings.catch_warnings():  # of an option that this module gives to numba.jit in the simulator
        warnings.simplefilter("ignore")
        module: Any = importlib.import_module("numba.cuda.random")
    for name, function in list(vars(module).items()):
        if hasattr(function, "py_func"):
            setattr(module, name, function.py_func)
    vars(module).update(FUNCTIONS)
    module.init_xoroshiro128p_states_cpu = states


def _drawn(states: Any, index: int) -> np.uint64:
    """The next number of a state: in Python's integers, which are several times as fast as NumPy's."""
    index = int(index)
    if isinstance(states, np.ndarray):
        s0, s1 = states.item(index)
        following = _next(s1 << 64 | s0)
        np.ndarray.__setitem__(states, index, (following & _MASK, following >> 64))
    else:  # each access is recorded
        state = states[index]
        s0, s1 = int(state["s0"]), int(state["s1"])
        following = _next(s1 << 64 | s0)
        state["s0"], state["s1"] = np.uint64(following & _MASK), np.uint64(following >> 64)
    return np.uint64(s0 + s1 & _MASK)


def _unit(x: Any) -> np.float64:
    return np.float64((int(x) >> 11) * 2.0**-53)


#: By name: those of the module's functions that all others call.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "xoroshiro128p_next": _drawn,
    "uint64_to_unit_float64": _unit,
    "uint64_to_unit_float32": lambda x: np.float32(_unit(x)),
}


def states(array: np.ndarray[Any, Any], seed: int, subsequence_start: int) -> None:
    """Fill an array of states, each 2**64 numbers behind the one before it."""
    state = _first(int(seed))
    for _ in range(int(subsequence_start)):
        state = _jumped(state, _jumps())
    words = np.zeros((2, len(array)), np.uint64)
    words[:, :1] = [[state & _MASK], [state >> 64]]
    done, images = 1, _jumps()
    while done < len(array):  # those that are done, moved on by as many jumps, are the next ones
        for first in range(0, min(done, len(array) - done), _MANY):
            part = slice(first, min(first + _MANY, done, len(array) - done))
            words[:, done + part.start : done + part.stop] = _all_jumped(words[:, part], images)
        done, images = 2 * done, [_jumped(image, images) for image in images]
    array["s0"], array["s1"] = words


def _first(seed: int) -> int:
    """SplitMix64, both halves of the state alike, as Numba has it."""
    z = (seed + 0x9E3779B97F4A7C15) & _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    z ^= z >> 31
    return z << 64 | z


def _rotated(x: int, by: int) -> int:
    return (x << by | x >> 64 - by) & _MASK


def _next(state: int) -> int:
    s0, s1 = state & _MASK, state >> 64
    s1 ^= s0
    return _rotated(s1, 36) << 64 | (_rotated(s0, 55) ^ s1 ^ s1 << 14) & _MASK


@functools.cache
def _jumps() -> list[int]:
    """Where a jump takes each state of a single bit: it is linear, as the step is."""
    results = []
    for bit in range(128):
        state, sum_ = 1 << bit, 0
        for power in range(128):
            if _JUMP >> power & 1:
                sum_ ^= state
            state = _next(state)
        results.append(sum_)
    return results


def _jumped(state: int, images: list[int]) -> int:
    result = 0
    for image in images:
        if state & 1:
            result ^= image
        state >>= 1
    return result


def _all_jumped(words: np.ndarray[Any, Any], images: list[int]) -> np.ndarray[Any, Any]:
    """As :func:`_jumped`, of many states at once: their lower and their upper halves."""
    result = np.zeros_like(words)
    for bit, image in enumerate(images):
        chosen = -(words[bit // 64] >> np.uint64(bit % 64) & np.uint64(1))
        result[0] ^= chosen & np.uint64(image & _MASK)
        result[1] ^= chosen & np.uint64(image >> 64)
    return result
