"""Times the tilings of a layer on a GPU: those that are right in the simulator, checked again at their real size.

Uses the timer of ``bench/gpu.py``: the device's events, a cold L2 cache, inputs that rotate, all contenders in rounds
beside PyTorch (cuDNN, TF32 off).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import timing
from gpuconv import kernels

#: Rounds are measured by so many, until the quartiles of each contender are this close, or so often.
_ROUNDS, _CLOSE, _MOST = 5, 0.03, 8
_INPUT_SETS = 3
#: Elements of a guard zone on either side of a result.
_GUARD = 64
_PEER = "torch"


def time_all(operation: str, geometry: Any, document: dict[str, Any], tell: Callable[[str], None]) -> list[str]:
    """Time what is right; fills the results of a document of ``bench.tilings``, and returns lines of what is wrong.

    Raises:
        bench.console.Refused: there is no GPU, or no PyTorch for it.
    """
    from bench import gpu

    place = gpu.device_place()
    facts = gpu.gpu_facts(place)
    document["machine"]["gpu"] = facts
    tf32 = ", ".join(f"{where} {'on' if on else 'off'}" for where, on in facts["tf32"].items())
    document["settings"]["device"] = f"{facts['name']} (PyTorch's TF32: {tf32})"
    return measure(place, gpu.EventClock(place), operation, geometry, document, tell)


def measure(
    place: Any, clock: Any, operation: str, geometry: Any, document: dict[str, Any], tell: Callable[[str], None]
) -> list[str]:
    """As :func:`time_all`, at a place of ``bench.verify`` and with a clock like ``bench.gpu.EventClock``."""
    from bench import gpu, verify

    found = [one for one in document["results"] if not one["faults"]]
    chosen = {str(number): (one, *_kernel(operation, geometry, one)) for number, one in enumerate(found)}
    original = verify.operands(place, operation, geometry, "float32", 0)
    wanted = verify.reference(place, operation, geometry, original)
    lines = []
    for one, module, tiling in chosen.values():
        tell(f"checking {one['variant']} {tiling}")
        if fault := _fault(place, module, operation, geometry, tiling, original, wanted):
            one["faults"].append(fault)
            lines.append(f"{one['variant']} {tiling}: {fault}")
    sets = [verify.operands(place, operation, geometry, "float32", seed) for seed in range(_INPUT_SETS)]
    steps = {_PEER: [verify.peer(place, operation, geometry, tensors) for tensors in sets]}
    for label, (one, module, tiling) in chosen.items():
        if not one["faults"]:
            steps[label] = [verify.launch(place, module, operation, geometry, tiling, tensors) for tensors in sets]
    peer: list[float] = []
    for number in range(_MOST):
        tell(f"timing, {number * _ROUNDS} rounds so far")
        for label, microseconds in gpu.measure_us(steps, clock, _ROUNDS).items():
            (peer if label == _PEER else chosen[label][0]["us"]).extend(microseconds)
        document["peer_us"], document["peer_median_us"] = peer, timing.spread(peer).median
        if all(_steady(one["us"]) for one, _, _ in chosen.values() if not one["faults"]):
            break
    return lines


def _steady(times: Sequence[float]) -> bool:
    spread = timing.spread(times)
    return spread.high - spread.low <= _CLOSE * spread.median


def _kernel(operation: str, geometry: Any, found: dict[str, Any]) -> tuple[Any, Any]:
    """Module and tiling of a result."""
    if found["file"] is None:
        module: Any = kernels.load(operation, found["variant"])
    else:
        from bench.own_kernel import load

        module = kernels.of(operation, load(Path(found["file"]).resolve()))
    (tiling,) = (one for one in module.tilings(geometry) if dataclasses.asdict(one) == found["tiling"])
    return module, tiling


def _fault(
    place: Any, module: Any, operation: str, geometry: Any, tiling: Any, original: Sequence[Any], wanted: Sequence[Any]
) -> str | None:
    """What is wrong at the real size, or None; a guard zone lies before and after the result."""
    from bench import verify

    torch, result = place.torch, original[-1]
    memory = torch.full((result.numel() + 2 * _GUARD,), 1.5, dtype=result.dtype, device=result.device)
    own = memory[_GUARD:-_GUARD].view(result.shape)
    own.fill_(float("nan"))
    try:
        verify.launch(place, module, operation, geometry, tiling, [*original[:-1], own])()
        place.synchronize()
    except Exception as error:  # of many kinds; the device may be lost
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    if (memory[:_GUARD] != 1.5).any() or (memory[-_GUARD:] != 1.5).any():
        return "out-of-bounds write: the memory beside the result was written to"
    fault: str | None = verify.judge(operation, geometry, "float32", torch, [own], wanted).fault
    return fault
