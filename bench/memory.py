"""Peak memory of one contender while it trains LeNet-5, in a process of its own: ``python -m bench.memory LABEL ...``.

Prints one line of JSON: ``ready_mb``, the peak until the library was loaded, the network built and a batch
prepared, and ``peak_mb``, after a few training steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import TYPE_CHECKING

from bench import machine
from bench.console import start
from bench.contenders import OURS, PEERS, Contender, Gpuconv, initial_weights

if TYPE_CHECKING:
    import numpy as np

_STEPS = 5


def peak_memory(label: str, *, batch: int, threads: int, backend: str) -> dict[str, float]:
    """Run this file in a new process and return what it prints.

    Call it before anything large is imported: on Linux a new process starts with the peak of the one that made it.

    Raises:
        subprocess.CalledProcessError: it failed; its messages stand on stderr.
    """
    arguments = [label, f"--batch={batch}", f"--threads={threads}", f"--backend={backend}"]
    command = [sys.executable, "-m", "bench.memory", *arguments]
    result = subprocess.run(command, cwd=machine.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {name: float(value) for name, value in json.loads(result.stdout).items()}


def _peak_mb() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def _noise(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels made up: to load and prepare digits takes more memory than small batches add to it."""
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.standard_normal((batch, 1, 32, 32), dtype=np.float32)
    return images, generator.integers(0, 10, batch)


def main() -> None:
    contenders: list[type[Contender]] = [Gpuconv, *PEERS.values()]
    labels = {label: contender for contender in contenders for label in contender.training_labels}
    parser = argparse.ArgumentParser(
        prog="python -m bench.memory", description="Peak memory of a library training LeNet-5."
    )
    parser.add_argument("label", choices=labels)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=machine.available_cores())
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()

    machine.limit_threads(arguments.threads)
    import gpuconv

    # Beside a peer, gpuconv only prepares weights and digits: the memory of its compiler is not the peer's.
    backend = arguments.backend if arguments.label == OURS else "numpy"
    try:
        gpuconv.backends.get(backend)
    except (ValueError, gpuconv.BackendUnavailable) as error:
        sys.exit(f"bench.memory: {error}")
    with gpuconv.use_backend(backend):
        contender = labels[arguments.label](arguments.threads)
        steps = contender.training(initial_weights(), [_noise(arguments.batch)])
        ready = _peak_mb()
        for _ in range(_STEPS):
            steps[arguments.label]()
    print(json.dumps({"ready_mb": round(ready, 1), "peak_mb": round(_peak_mb(), 1)}))


if __name__ == "__main__":
    try:
        start(main)
    except KeyboardInterrupt:
        sys.exit(130)
