"""Compiles kernels, or loads them from the cache, without a GPU, and prints as JSON what it compiled and what it got.

A script, because it needs Numba's real CUDA target, and what it shows holds between processes. The driver is replaced
where a kernel would be loaded onto a device; all before that, machine code included, is real. An argument is a file
with `kernel`, a function of a number that makes a kernel of two arrays; without one it takes kernels of the library.
"""

import hashlib
import importlib
import importlib.util
import json
import sys
from types import SimpleNamespace

from gpuconv import kernels
from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels import device

DEVICE = SimpleNamespace(compute_capability=(9, 0), id=0)
compiled = []


class Context:
    device = DEVICE

    def create_module_image(self, image, setup=None, teardown=None):
        module = SimpleNamespace(initialized=True)
        module.get_function = lambda name: SimpleNamespace(module=module, image=image.code, name=name)
        return module


def without_a_driver():
    dispatcher = importlib.import_module("numba.cuda.dispatcher")
    importlib.import_module("numba.cuda.cudadrv.devices").get_context = lambda *_: Context()
    for module in [module for name, module in sys.modules.items() if name.startswith("numba.cuda")]:
        if hasattr(module, "get_current_device"):
            module.get_current_device = lambda: DEVICE
    compile_cuda = dispatcher.compile_cuda

    def counting(function, *arguments, **options):
        compiled.append(function.__name__)
        return compile_cuda(function, *arguments, **options)

    dispatcher.compile_cuda = counting


def launches():
    """Of three kinds: nested device functions and launch bounds; vectors; shuffles, and NaN among the constants."""
    geometry = Conv2dGeometry.of((128, 6, 14, 14), (16, 6, 5, 5))
    for operation, variant, argument in (
        ("conv2d", "tiled", geometry),
        ("relu", "elementwise", (128, 6, 28, 28)),
        ("softmax_cross_entropy", "rowwise", (128, 10)),
    ):
        module = kernels.load(operation, variant)
        yield from module.launches(argument, module.tilings(argument)[0], "float32")


def launches_of(path):
    spec = importlib.util.spec_from_file_location("own", path)
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    for number in (2, 3):
        yield device.Launch(own.kernel(number), (device.array_type("float32"),) * 2, (1, 1, 1), (256, 1, 1))


if __name__ == "__main__":
    without_a_driver()
    got = {}
    for launch in launches_of(sys.argv[1]) if sys.argv[1:] else launches():
        kernel = launch.kernel.compile(launch.signature)
        function = kernel.library.get_cufunc()
        name = f"{launch.kernel.py_func.__name__} {len(got)}"
        got[name] = [function.name, str(kernel.signature), hashlib.sha256(function.image).hexdigest()]
    print(json.dumps({"compiled": compiled, "kernels": got}))
