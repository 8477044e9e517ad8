"""In every process that has this folder on its PYTHONPATH: the benchmarks find a GPU, `stand_in.py`.

Others have no use for it, and would wait for PyTorch: what starts the stages, counts resources or runs tests.
"""

import sys

if "bench.gpu_report" not in sys.orig_argv and any("bench." in word or "spawn_main" in word for word in sys.orig_argv):
    import stand_in  # noqa: F401 - for what it does
