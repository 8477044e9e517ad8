"""Trains a network by the cuda backend, its kernels as compiled and interpreted, and by numpy; prints losses as JSON.

A script, because it needs Numba's real CUDA target, and the tests run with the simulator's. `fake_cupy` takes CuPy's
place, `gpuconv.lab.ptx` that of the GPU; all between them is what runs on one: the gate, the variants and tilings that
the rules choose for the batch, kernels as NVVM makes them, a captured step and its repetitions.

Arguments: steps, element type, images a batch, and LeNet5 or small; or `fit`, epochs, images a batch, for
`gpuconv.training.fit` of LeNet on both, whose test accuracies are printed instead. A step on 64 images takes about a
second.
"""

import contextlib
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
from support import fake_cupy
from support.lenet_training import small, trained

from gpuconv import models, training
from gpuconv.backends.cuda import backend as cuda_backend
from gpuconv.kernels import driver
from gpuconv.lab import ptx


@contextlib.contextmanager
def machine():
    """What a machine with a GPU has, and this one has not; gives a list to which launched kernels' names are added."""
    find_spec, launched = importlib.util.find_spec, []
    sys.modules["cupy"] = fake_cupy
    importlib.util.find_spec = lambda name, *rest: name == "cupy" or find_spec(name, *rest)
    cuda_backend._driver = lambda: (13000, 1)
    cuda_backend._compiler = lambda: (13, 0)

    def run(launch, arguments, where):
        launched.append(launch.kernel.py_func.__name__)
        ptx.run(launch, arguments)

    before = driver.use(fake_cupy.Driver(run))
    yield launched
    driver.use(before)


def fitted(backend, epochs, batch):
    """Test accuracy after a training run."""
    config = training.TrainConfig(epochs=epochs, batch_size=batch, backend=backend)
    with tempfile.TemporaryDirectory() as folder:
        return training.fit(config, Path(folder) / "run").test_accuracy


if __name__ == "__main__":
    if sys.argv[1] == "fit":
        run, arguments = fitted, (int(sys.argv[2]), int(sys.argv[3]))
    else:
        steps, dtype, batch = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
        network = {"LeNet5": models.LeNet5, "small": small}[sys.argv[4]]
        run, arguments = (lambda *settings: trained(*settings, network=network)[0]), (steps, dtype, batch)
    with machine() as launched:
        ours = run("cuda", *arguments)
    print(json.dumps({"cuda": ours, "numpy": run("numpy", *arguments), "kernels": sorted(set(launched))}))
