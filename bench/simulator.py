"""How long the laboratory's simulator takes beside Numba's: ``python -m bench.simulator [--rounds N] [--json FILE]``.

Each round runs both once, in processes of their own, one after the other. What is told is CPU time of the launches
alone, the least of all rounds, and how many times as long Numba's takes. Results are checked.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from bench import command
from bench.command import ROOT, Parser, check_writable, progress, start, write

#: Name of the process's own part: which simulator it runs.
_CHILD = "GPUCONV_BENCH_SIMULATOR"


def measured() -> dict[str, float]:
    """Seconds of CPU time by case: the second launch of each, in the simulator of this process."""
    found = {}
    kernels = importlib.import_module("bench.simulator_kernels")
    for name, make in kernels.CASES.items():
        launch = make()
        launch()
        begin = time.process_time()
        launch()
        found[name] = time.process_time() - begin
    return found


def child(which: str) -> dict[str, float]:
    """The same in a process of its own: ``stock`` or ``ours``."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", _CHILD: which}
    done = subprocess.run(
        [sys.executable, "-m", "bench.simulator"], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{which}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def run(argv: Sequence[str] | None) -> int:
    """Measure, print, and write the results if that is asked for."""
    parser = Parser("simulator", __doc__.splitlines()[0] if __doc__ else "")
    parser.count_option("--rounds", "N", "how often each is run", 5)
    parser.json_option()
    options = parser.parse_args(argv)
    check_writable("--json", options.json)
    times: dict[str, list[dict[str, float]]] = {"stock": [], "ours": []}
    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}")
        for which, found in times.items():
            found.append(child(which))
    progress("")
    rows = []
    print(f"{'kernel':<16} {'Numba, ms':>10} {'here, ms':>10} {'times':>6}")
    for name in times["stock"][0]:
        stock, ours = (min(one[name] for one in times[which]) for which in ("stock", "ours"))
        rows.append({"kernel": name, "stock_s": stock, "ours_s": ours})
        print(f"{name:<16} {1e3 * stock:>10.1f} {1e3 * ours:>10.2f} {stock / ours:>6.1f}")
    if options.json:
        settings = {"rounds": options.rounds}
        write({**command.document("simulator", settings, kernels=rows), "complete": True}, options.json)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; or, in a process that it started, a measurement."""
    which = os.environ.get(_CHILD)
    if which is None:
        return command.answer("bench.simulator", run, argv)
    if which == "ours":
        importlib.import_module("gpuconv.lab").activate()
    print(json.dumps(measured()))
    return 0


if __name__ == "__main__":
    start(main)
