"""A GPU's place taken by the CPU: for `make gpu-report`.

The cuda backend is one of the CPU; of CuPy and torch.cuda there is what the benchmarks ask for. Kernels
are taken to be right without being run. So commands, processes and files are real, and nothing else is.
"""

import importlib.machinery
import sys
import time
import types

import numpy as np

from bench import compiling, layers, lenet_gpu, verify
from gpuconv import backends

_real_instance, _RealPlace = backends._instance, verify.Place
if "bench.overhead" not in sys.orig_argv:  # which has its own stand-in, and says so
    backends.available = lambda: dict.fromkeys(("cuda", "numba", "numpy"))
    # Compiling each layer of a network would take minutes, and LeNet in float64, for the first contact alone, seconds.
    _cpu = "numpy" if {"bench.network", "contact"} & set(sys.orig_argv) else "numba"
    backends._instance = lambda name: _real_instance(_cpu if name == "cuda" else name)

runtime = types.SimpleNamespace(driverGetVersion=lambda: 13000, deviceGetAttribute=lambda number, device: 1_500_000)
sys.modules["cupy"] = cupy = types.ModuleType("cupy")
cupy.cuda = types.SimpleNamespace(runtime=runtime)
cupy.from_dlpack, cupy.empty = np.from_dlpack, np.empty
_stage = sys.argv if "bench.gpu_stages" in sys.orig_argv else ()


class Event:
    def __init__(self, enable_timing):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def query(self):
        return False

    def elapsed_time(self, end):
        return 1000 * (end.at - self.at) + 0.001


class Torch(types.ModuleType):
    """Of PyTorch what is asked of a GPU; all else is PyTorch's, on the host, where it is imported."""

    uint8, version = np.uint8, types.SimpleNamespace(cuda=None)
    cuda = types.SimpleNamespace(
        Event=Event,
        synchronize=lambda: None,
        get_device_properties=lambda number: types.SimpleNamespace(
            name="stand-in", major=9, minor=0, multi_processor_count=1, total_memory=2**30, L2_cache_size=2**10
        ),
        is_available=lambda: sys._getframe(1).f_code.co_name == "device_place",
    )
    backends = types.SimpleNamespace(
        cuda=types.SimpleNamespace(matmul=types.SimpleNamespace(allow_tf32=True)),
        cudnn=types.SimpleNamespace(version=lambda: None, allow_tf32=True),
    )

    def __getattr__(self, name):
        if sys.modules["torch"] is self:
            raise AttributeError(f"the stand-in for PyTorch has no {name}")
        return getattr(sys.modules["torch"], name)

    def empty(self, size, **_):
        return types.SimpleNamespace(zero_=lambda: None, copy_=lambda source: None)


# To import PyTorch takes seconds: only where it computes is it the real one.
if {"bench.lenet", "bench.network"} & set(sys.orig_argv):
    import torch

    from tests.support.without_compiler import sitecustomize  # noqa: F401 - for what it does

    torch.cuda.is_available = Torch.cuda.is_available
else:
    sys.modules["torch"] = Torch("torch")
    sys.modules["torch"].__spec__ = importlib.machinery.ModuleSpec("torch", None)


def _verify(place, operation, variant, geometry, tilings, **_):
    return {tiling: verify.Verdict(0.0, 0.0, None) for tiling in tilings}


verify.Place, verify.verify = lambda *_: _RealPlace(Torch("torch"), cupy, "cpu"), _verify
verify.operands = lambda *_: []
verify.launch = verify.peer = lambda *_: lambda: None
lenet_gpu.kernels = lambda *_: [
    {"kernel": "one", "blocks": 1, "threads": 1, "arguments": 1, "bytes": 1, "flop": 1, "us": 2.0, "floor_us": 1.0}
]
# The steps of LeNet have kernels, and there is nothing to compile.
_launch = types.SimpleNamespace(kernel=types.SimpleNamespace(compile=lambda signature: None), signature=())
compiling.recorded = lambda *_: [_launch]
# LeNet's layers are enough, and so are smaller batches, of which NumPy's losses are soon there, two rounds, two epochs.
for _named in layers.LAYERS.values():
    for _name in [name for name in _named if not name.startswith("lenet5.")]:
        dict.pop(_named, _name, None)

if "contact" in _stage:
    sys.argv += ["--batches", "4,8", "--steps", "6"]
if "training" in _stage:
    sys.argv += ["--epochs", "2"]
if "bench.lenet" in sys.orig_argv:
    sys.argv += ["--batches", "4,8", "--seconds", "0.05"]
if {"bench.lenet", "bench.gpu"} & set(sys.orig_argv):
    sys.argv += ["--rounds", "2"]
if "bench.network" in sys.orig_argv:  # a small network instead of a large one
    sys.argv += ["--model", "lenet5", "--batch", "1", "--rounds", "2", "--seconds", "0.05"]
