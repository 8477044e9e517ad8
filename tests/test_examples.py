"""The examples run as a newcomer runs them, and print the figures that the basics of convolution are taught with."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpuconv import use_backend

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

# What each script must print. Whether the figures are right, it checks itself.
FIGURES = {
    "activations.py": ["relu    [0.  0.  0.  0.5 2. ]", "softmax [0.731 0.269 0.   ]", "the others are 2"],
    "channels_and_depth.py": [
        "one filter on 3 channels: weights (1, 3, 5, 5) -> maps (1, 1, 28, 28)",
        "second layer's weights (64, 64, 3, 3) -> maps (1, 64, 32, 32)",
    ],
    "conv1d_bump.py": ["filter [0, 1, 0] gives [0, 0, 1, 1, 0, 0]", "filter [-1, 0, 1] gives [0, 1, 1, -1, -1, 0]"],
    "counting.py": ["26 = 5 * 5 + 1", "7,840 = 10 * 28 * 28", "203,840 = 7,840 * 26", "(10, 14, 14)", "392,200 = 200"],
    "equivariance.py": [
        "peak is at (4, 4)",
        "shifted by (2, 3), at (6, 7)",
        "pooling: (1, 1)",
        "by one pixel, at (1, 1)",
    ],
    "feature_map_5x5.py": ["434\n243\n234\n"],
    "get_set_weights.py": ["conv2.weight  (16, 6, 5, 5)", "with 5.0 in column 14", "LeNet5 has 10 arrays, got 9"],
    "handcrafted_filters.py": ["identity", "edge detection", "sharpen", "box blur", "Gaussian blur", "[-1.  8. -1.]"],
    "line_detector.py": ["a 6x6 map\n[[0 0 3 3 0 0]\n [0 0 3 3 0 0]", "[[0 0 0 0 0 0]\n [0 0 0 0 0 0]\n [3 3 3 3 3 3]"],
    "padding_and_stride.py": ["narrow, padding='valid'   5x5", "padding='same'    7x7", "padding=2         9x9"],
    "pooling.py": ["max     [6.0, 8.0, 3.0, 4.0]", "average [3.25, 5.25, 2.0, 2.0]", "sum     [13.0, 21.0, 8.0, 8.0]"],
    "train_lenet.py": ["test accuracy 9"],
    "autoencoder.py": ["more than 95% of the pixels come back"],
    "cifar_net.py": ["new pictures: more than 70% right"],
    "gan.py": ["more than 70% of the made pictures have one bright half"],
    "segmentation_unet.py": ["more than 93% of the pixels right"],
    "transfer_learning.py": ["trains 50 numbers of 2,978", "more than 85% right"],
    "mnist_net.py": ["new digits: more than 90% right"],
    "residual_net.py": ["new figures: more than 90% right"],
    "own_pictures.py": ["4 classes: circle, cross, square, triangle", "a new picture of a cross: cross"],
    "vgg_block.py": ["new pictures: more than 90% right"],
    "training_by_hand.py": ["step   0: total error 4.", "step 400: total error 0.0", "100% right"],
}


#: What is given to a script, so that it takes seconds on the slowest backend.
ARGUMENTS = {"own_pictures.py": ("--pictures", "80", "--epochs", "4")}

#: Those that train longest. Of most of them, each step is compared with PyTorch's below.
LONG = {"autoencoder.py", "cifar_net.py", "mnist_net.py", "own_pictures.py", "residual_net.py", "segmentation_unet.py"}


def test_every_script_is_listed():
    """Each script has figures here, but for the loop that some share; the folder's README names them all."""
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == {*FIGURES, "supervised.py"}
    page = (EXAMPLES / "README.md").read_text()
    assert [name for name in sorted(scripts) if f"({name})" not in page] == []


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.thorough, pytest.mark.slow] * (n in LONG)) for n in FIGURES]
)
def test_script_prints_its_figures(name, tmp_path):
    """A script runs from any folder, on a terminal that knows ASCII alone, without a warning, and prints what it is
    about.
    """
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "GPUCONV_BACKEND": "numpy"}
    environment["PYTHONIOENCODING"] = "ascii:strict"
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *ARGUMENTS.get(name, ())],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    for figure in FIGURES[name]:
        assert figure in run.stdout


#: Programs as one writes them for PyTorch: each has `build()`, and `train(model, steps)` which gives the losses.
PROGRAMS = (
    "autoencoder", "cifar_net", "gan", "mnist_net", "residual_net", "segmentation_unet", "transfer_learning",
    "vgg_block",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_has_pytorchs_losses(name, monkeypatch):
    """The same text with `torch` in place of `gpuconv`, from the same weights, loses the same in each step."""
    torch = pytest.importorskip("torch", reason="pip install torch to compare with PyTorch")
    monkeypatch.syspath_prepend(EXAMPLES)  # as when the script runs: it finds supervised.py beside it
    text = (EXAMPLES / f"{name}.py").read_text()
    steps, threads = 12, torch.get_num_threads()
    losses, state = [], None
    torch.set_num_threads(1)
    try:
        for library in ("gpuconv", "torch"):
            names = {"__name__": name}
            exec(compile(text.replace("gpuconv", library), f"{name}.py with {library}", "exec"), names)
            if library == "gpuconv":
                names["gpuconv"].manual_seed(0)
                model = names["build"]()
                state = model.state_dict()
            else:
                model = names["build"]()
                model.load_state_dict({key: torch.tensor(value) for key, value in state.items()}, strict=True)
            for module in model.modules():
                if type(module).__name__ == "Dropout":
                    module.p = 0.0  # each library draws its own choices
            with use_backend("numpy"):
                losses.append(names["train"](model, steps=steps))
    finally:
        torch.set_num_threads(threads)
    assert len(losses[0]) == len(losses[1]) >= steps
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_handcrafted_filters_take_a_picture(tmp_path):
    """The filters are drawn side by side, also those of a picture that the reader brings."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    subprocess.run(
        [sys.executable, str(EXAMPLES / "handcrafted_filters.py"), "mine.png"],
        cwd=tmp_path, env={**os.environ, "GPUCONV_BACKEND": "numpy"}, capture_output=True, check=True,
    )  # fmt: skip
    with Image.open(tmp_path / "filters_on_a_picture.png") as image:
        assert min(image.size) > 500
        assert np.asarray(image.convert("L")).std() > 20
