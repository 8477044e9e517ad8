"""In every process that has this folder on its PYTHONPATH: the benchmarks find a GPU, `stand_in.py`.

Others have no use for it, and would wait for it: what starts the stages, counts resources or runs tests. A stage that
runs tests needs to know which, and nothing else.
"""

import sys
from pathlib import Path

if "bench.gpu_stages" in sys.orig_argv and {"tests", "real-sizes"} & set(sys.argv):
    sys.argv += ["--tests", str(Path(__file__).with_name("on_a_gpu.py"))]
elif "bench.gpu_report" not in sys.orig_argv and any(
    "bench." in word or "spawn_main" in word for word in sys.orig_argv
):
    import stand_in  # noqa: F401 - for what it does
