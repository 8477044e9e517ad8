"""A GPU: is there one to measure on, what it is, its clock; and the kernels of a layer, checked and timed on it.

``bench.gpu``, ``bench.tilings`` and ``bench.lenet --backend cuda`` measure here, by the rules of
``gpuconv/tuning/measure.py``: the device's events, a cold second-level cache, inputs that rotate, all contenders in
turns beside PyTorch (cuDNN, TF32 off).
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import command
from bench.command import Refused, progress
from gpuconv.tuning import measure

#: The label of PyTorch among the contenders.
PEER = "torch"
_INPUT_SETS = 3
#: Rounds are measured by so many, until the quartiles of each contender are this close, or so often.
_ROUNDS, _CLOSE, _MOST = 5, 0.03, 8


def missing() -> str | None:
    """Why there is no GPU to time kernels on; None if there is one."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        return "NUMBA_ENABLE_CUDASIM is set: kernels would run in the simulator, which has no speed; unset it"
    from gpuconv import backends

    why = backends.available()["cuda"]
    return None if why is None else f"the cuda backend is not available: {why}"


def device_place() -> Any:
    """Where to run: on the GPU, with TF32 off in PyTorch.

    Raises:
        Refused: the simulator, no GPU, no PyTorch for it; one line.
    """
    # Kernels and arrays share one stream here: Numba need not wait for it before each launch, as some versions do.
    os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")
    if (why := missing()) is not None:
        raise Refused(why)
    if importlib.util.find_spec("torch") is None:
        raise Refused("the reference and the peer need PyTorch: pip install torch")
    import torch

    if not torch.cuda.is_available():
        raise Refused(f"PyTorch {torch.__version__} sees no GPU: install a build for CUDA")
    from bench.verify import Place

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # the fastest of cuDNN's algorithms, found while warming up
    return Place(torch, importlib.import_module("cupy"), "cuda")


def gpu_facts(place: Any) -> dict[str, Any]:
    """Device, driver, libraries and precision, as they go into the results."""
    torch, runtime = place.torch, place.xp.cuda.runtime
    properties = torch.cuda.get_device_properties(0)
    driver = runtime.driverGetVersion()
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": _nvidia_smi("driver_version"),
        "driver_cuda": f"{driver // 1000}.{driver % 1000 // 10}",
        "clocks_mhz": _nvidia_smi("clocks.sm,clocks.mem"),
        "cudnn": torch.backends.cudnn.version(),
        "torch_cuda": torch.version.cuda,
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        "versions": command.versions("cupy-cuda13x", "cupy-cuda12x", "numba-cuda", "torch"),
    }


def _nvidia_smi(field: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class EventClock(measure.DeviceClock):
    """The clock of a GPU, by PyTorch's events."""

    def __init__(self, place: Any):
        torch = place.torch
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        filler = torch.empty(4 * l2, dtype=torch.uint8, device="cuda")
        super().__init__(
            events, lambda event: event.query(), lambda first, second: first.elapsed_time(second), filler.zero_
        )


# -- the kernels of a layer ------------------------------------------------------------------------------------------


def contenders(
    place: Any, operation: str, geometry: Any, kernels: Iterable[tuple[str, Any, Any]], dtype: str = "float32"
) -> dict[str, Any]:
    """By label, the calls on each set of inputs: PyTorch's first, then those of kernels.

    Args:
        place: of ``bench.verify``.
        operation, geometry: what is computed.
        kernels: label, module and tiling of each; they are right.
        dtype: element type, PyTorch's too.
    """
    from bench import verify

    sets = [verify.operands(place, operation, geometry, dtype, seed) for seed in range(_INPUT_SETS)]
    steps = {PEER: [verify.peer(place, operation, geometry, tensors) for tensors in sets]}
    for label, module, tiling in kernels:
        steps[label] = [verify.launch(place, module, operation, geometry, tiling, tensors) for tensors in sets]
    return steps


def rank(operation: str, geometry: Any, document: dict[str, Any]) -> list[str]:
    """Check and time what is right in a document of ``bench.tilings``: its results get faults and times.

    Returns:
        Lines of what is wrong.

    Raises:
        bench.command.Refused: there is no GPU, or no PyTorch for it.
    """
    place = device_place()
    facts = gpu_facts(place)
    document["machine"]["gpu"] = facts
    tf32 = ", ".join(f"{where} {'on' if on else 'off'}" for where, on in facts["tf32"].items())
    document["settings"]["device"] = f"{facts['name']} (PyTorch's TF32: {tf32})"
    return rank_at(place, EventClock(place), operation, geometry, document)


def rank_at(place: Any, clock: measure.Clock, operation: str, geometry: Any, document: dict[str, Any]) -> list[str]:
    """As :func:`rank`, at a place of ``bench.verify`` and with any clock."""
    from bench import verify

    found = [one for one in document["results"] if not one["faults"]]
    chosen = {str(number): (one, *_kernel(operation, geometry, one)) for number, one in enumerate(found)}
    with progress.during("the reference in float64"):
        case = verify.Case(place, operation, geometry)
    lines = []
    for one, module, tiling in chosen.values():
        name = f"{one['variant']} {tiling}"
        progress(f"checking {name}")
        try:
            fault = case.verdict(module, tiling, name).fault
        except verify.KernelFailed as error:  # the device may be lost: the next one will say so
            fault = str(error)
        if fault:
            one["faults"].append(fault)
            lines.append(f"{name}: {fault}")
    right = [(label, module, tiling) for label, (one, module, tiling) in chosen.items() if not one["faults"]]
    steps = contenders(place, operation, geometry, right)
    peer: list[float] = []
    for number in range(_MOST):
        progress(f"timing, {number * _ROUNDS} rounds so far")
        for label, microseconds in measure.measure_us(steps, clock, _ROUNDS).items():
            (peer if label == PEER else chosen[label][0]["us"]).extend(microseconds)
        document["peer_us"], document["peer_median_us"] = peer, measure.spread(peer).median
        spreads = [measure.spread(chosen[label][0]["us"]) for label, _, _ in right]
        if all(spread.high - spread.low <= _CLOSE * spread.median for spread in spreads):
            break
    return lines


def _kernel(operation: str, geometry: Any, found: dict[str, Any]) -> tuple[Any, Any]:
    """Variant and tiling of a result."""
    from gpuconv import kernels

    if found["file"] is None:
        module: Any = kernels.load(operation, found["variant"])
    else:
        from bench.own_kernel import load

        module = kernels.of(operation, load(Path(found["file"]).resolve()))
    (tiling,) = (one for one in module.tilings(geometry) if dataclasses.asdict(one) == found["tiling"])
    return module, tiling
