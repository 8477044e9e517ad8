"""gpuconv explore: the page is whole, refuses what it cannot show, and its script computes what gpuconv computes."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gpuconv
from gpuconv import functional as F
from gpuconv import models, nn
from gpuconv.cli import main
from gpuconv.data import InputTransform, load_dataset
from gpuconv.explorer import explore
from gpuconv.explorer.page import SCRIPTS, packed, program_json, script
from gpuconv.explorer.program import program_of
from gpuconv.storage import FileError
from gpuconv.training import TrainConfig, fit

HOSTILE = "</script><script>alert(1)</script>{{data}}&amp;"
with_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")


@pytest.fixture(autouse=True)
def _quick():
    """Networks here run once: nothing is compiled for that."""
    with gpuconv.use_backend("numpy"):
        gpuconv.manual_seed(0)
        yield


def few_digits():
    """A data set that takes no time."""
    data = load_dataset("mnist-sample")
    return replace(
        data,
        train_images=data.train_images[:80],
        train_labels=data.train_labels[:80],
        test_images=data.test_images[:20],
        test_labels=data.test_labels[:20],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on few digits that kept its epochs."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    fit(TrainConfig(epochs=3, keep_epochs=True, backend="numpy"), folder, dataset=few_digits())
    return folder


def data_of(page):
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


# -- the page ---------------------------------------------------------------------------------------------------------


def test_a_page_of_lenet_is_one_small_file(run):
    """With four sets of weights it has less than 3 MB, and names nothing that a browser would fetch."""
    page = explore(run).html
    assert len(page.encode()) < 3_000_000
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", page)
    assert re.findall(r"\w+://[\w./]+", page) == ["http://www.w3.org/2000/svg"]  # a name, which is not fetched
    assert "import " not in script()


def test_its_policy_allows_its_own_scripts_alone():
    """Each script that stands in the page is allowed by its digest, and no connection is allowed at all."""
    page = explore("lenet5").html
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'")
    scripts = re.findall(r'<script(?: type="module")?>(.*?)</script>', page, re.DOTALL)
    assert len(scripts) == 2
    for text in scripts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_names_are_text(tmp_path):
    """A model's and a file's names that hold markup are in the page as data, and as an escaped title."""
    model = nn.Sequential({HOSTILE: nn.Conv2d(1, 2, 3), "flat": nn.Flatten(), "last": nn.Linear(2 * 14 * 14, 2)})
    page = explore(model, input_shape=(1, 16, 16), classes=(HOSTILE, "b"), name=HOSTILE).html
    assert "alert(1)</script>" not in page
    assert page.count("<script") == 3
    assert data_of(page)["classes"][0] == HOSTILE
    assert data_of(page)["name"] == HOSTILE
    assert data_of(page)["program"]["layers"][0]["label"] == HOSTILE


def test_in_jupyter_it_is_a_frame_without_rights():
    """The frame may run scripts and nothing else: it is of no origin."""
    shown = explore("lenet5")._repr_html_()
    assert 'sandbox="allow-scripts"' in shown
    assert "<script" not in shown


def test_without_scripts_and_in_old_browsers_it_says_so():
    """One line each."""
    page = explore("lenet5").html
    assert "<noscript><p" in page
    assert "This browser is too old for this page" in page


@pytest.mark.parametrize("name", ["resnet20", "squeezenet1_1"])
def test_models_of_the_table(name):
    """Those of colours, too, with fewer maps where the network is large."""
    data = data_of(explore(name).html)
    assert data["form"]["channels"] == 3
    assert data["program"]["layers"]
    assert ("at most" in " ".join(data["notes"])) == (name == "squeezenet1_1")


def test_epochs_are_there_oldest_first(run):
    """Before training, then each epoch with its accuracy; the last one's weights are the model's."""
    epochs = data_of(explore(run).html)["epochs"]
    assert [epoch["label"] for epoch in epochs] == ["before training", "epoch 1", "epoch 2", "epoch 3"]
    assert epochs[1]["detail"].endswith("right")
    assert [epoch["weights"] is None for epoch in epochs] == [False, False, False, True]
    assert len({epoch["weights"] for epoch in epochs}) == 4


def test_a_run_that_was_stopped_shows_what_it_kept(run, tmp_path):
    """Without a finished model the newest epoch is shown, which the page says; half a file is named in an error."""
    folder = tmp_path / "stopped"
    shutil.copytree(run, folder)
    (folder / "model.safetensors").unlink()
    assert any("not finished" in note for note in data_of(explore(folder).html)["notes"])
    cut = folder / "epochs" / "0002.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(FileError, match=r"0002\.safetensors.*cut short"):
        explore(folder)


def test_keeping_epochs_may_begin_later(tmp_path):
    """A run that is resumed keeps those epochs that come then."""
    few, config = few_digits(), TrainConfig(epochs=1, backend="numpy")
    fit(config, tmp_path / "run", dataset=few)
    fit(replace(config, epochs=2, keep_epochs=True), tmp_path / "run", dataset=few, resume=True)
    assert [path.name for path in (tmp_path / "run" / "epochs").iterdir()] == ["0002.safetensors"]


def test_the_same_network_from_other_files(tmp_path):
    """An ONNX file and a file of weights give the same steps and numbers as the model."""
    model = models.LeNet5()
    gpuconv.save(model.state_dict(), tmp_path / "weights.safetensors")
    gpuconv.onnx.save(model, tmp_path / "lenet.onnx", np.zeros((1, 1, 32, 32), np.float32))
    own = data_of(explore(model).html)
    for page in (explore(tmp_path / "weights.safetensors", network="lenet5"), explore(tmp_path / "lenet.onnx")):
        found = data_of(page.html)
        assert [step["op"] for step in found["program"]["steps"]] == [step["op"] for step in own["program"]["steps"]]
        assert found["weights"] == own["weights"]


# -- refusals ---------------------------------------------------------------------------------------------------------


class Returning(nn.Module):
    """A network that ends in a function."""

    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Returning(lambda x: F.relu(x)), r"returns an array of shape \(1, 4, 14, 14\)"),
        (Returning(lambda x: gpuconv.cumsum(x, 1).flatten(1)), "CumSum after conv: the page cannot compute CumSum"),
        (Returning(lambda x: F.conv2d(x, x[:, :, :3, :3]).flatten(1)), "Conv after conv.*its input 1 is computed from"),
        (nn.Sequential(nn.Flatten(), nn.Linear(256, 120_000)), "30,840,000 parameters.*too many"),
    ],
    ids=["maps", "operation", "weights", "size"],
)
def test_what_cannot_be_shown_is_named(model, why):
    """Which layer, and why, in one line."""
    with pytest.raises(ValueError, match=why) as caught:
        explore(model, input_shape=(1, 16, 16))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("explore: ")


def test_an_unknown_input_is_asked_for():
    """A Module that says no shape needs one, and pictures have one channel or three."""
    with pytest.raises(ValueError, match="is not known; give input_shape"):
        explore(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    with pytest.raises(ValueError, match=r"has shape \(2, 4, 4\)"):
        explore(nn.Sequential(nn.Flatten(), nn.Linear(32, 2)), input_shape=(2, 4, 4))
    with pytest.raises(TypeError, match="a Module or a path, got int"):
        explore(3)


def test_the_command(run, tmp_path, capsys, monkeypatch):
    """It writes beside the run, or where it is told; what is wrong is one line and status 2."""
    monkeypatch.chdir(tmp_path)
    assert main(["explore", str(run)]) == 0
    assert "explore.html" in capsys.readouterr().out
    assert (run / "explore.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["explore", "lenet5", "--out", "page.html"]) == 0
    assert Path("page.html").exists()
    capsys.readouterr()
    Path("text.onnx").write_text("no network")
    for wrong in (["nowhere"], ["text.onnx"], ["lenet5", "--out", "no/folder/page.html"], []):
        assert main(["explore", *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


# -- the script, run by node ------------------------------------------------------------------------------------------


def computed(cases, tmp_path):
    """What the page's modules compute: of each case the logits, and what else was asked."""
    file = tmp_path / "cases.json"
    file.write_text(json.dumps(cases))
    program = Path(__file__).with_name("run_network.mjs")
    done = subprocess.run(["node", program, file], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def case_of(model, pictures, **asked):
    program = program_of(model, pictures.shape[1:])
    text = base64.b64encode(pictures.tobytes()).decode()
    weights = packed(program.tensors, half=False)
    return {"program": program_json(program), "weights": weights, "half": False, "pictures": text, **asked}


def channels_last(x):
    return F.linear(x.permute(0, 2, 3, 1), np.full((2, 4), 0.3, np.float32)).flatten(1)


def part_of(x):
    return gpuconv.cat([x[:, 1:3, ::2], x[:, :2, 1::2]], 1)


#: What stands between a convolution of a picture of 16 x 16 to 4 maps, and a fully connected layer.
OPERATIONS = {
    "strided": nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(2, 1)),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2, padding=3, groups=2),
    "a product": nn.Conv2d(4, 70, (5, 3), stride=(1, 2), padding=(2, 3), dilation=(1, 2)),
    "depthwise": nn.Conv2d(4, 8, 3, padding="same", groups=4, bias=False),
    "max": nn.MaxPool2d(3, 2, padding=1),
    "max, ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max, dilated": nn.MaxPool2d(2, 2, dilation=2),
    "average": nn.AvgPool2d(3, 2, padding=1),
    "average, ceil": nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
    "average, uncounted": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "adaptive": nn.AdaptiveAvgPool2d((3, 5)),
    "adaptive max": nn.AdaptiveMaxPool2d((7, 7)),
    "global": nn.AdaptiveAvgPool2d(1),
    "norm": nn.BatchNorm2d(4),
    "norm of a sum": lambda x: F.batch_norm(x + x, np.ones(4, np.float32), np.full(4, 2, np.float32)),
    "response": nn.LocalResponseNorm(3, alpha=0.5),
    "softmax": lambda x: F.softmax(x, 1),
    "log softmax": lambda x: F.log_softmax(x, 3),
    "layer norm": lambda x: F.layer_norm(x, (14, 14)),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), value=0.5),
    "shuffle": lambda x: F.channel_shuffle(x, 2),
    "parts": part_of,
    "channels last": channels_last,
    "broadcast": lambda x: x * F.adaptive_avg_pool2d(F.sigmoid(x), 1),
    "differences": lambda x: x / (F.softplus(x) + 0.5) - x,
    "mean": lambda x: gpuconv.mean(x, (2,)),
    "upsampled": nn.Upsample(scale_factor=2, mode="nearest"),
    "prelu": nn.PReLU(4),
    **{
        name: getattr(F, name)
        for name in (
            "relu", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "relu6", "hardsigmoid", "hardswish",
            "softplus", "softsign", "sigmoid", "logsigmoid", "tanh", "tanhshrink", "hardshrink", "softshrink",
        )
    },
}  # fmt: skip


class Between(nn.Module):
    """A convolution, what is tried, and a fully connected layer."""

    def __init__(self, middle):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.middle = middle
        with gpuconv.no_grad():
            size = self.before(gpuconv.zeros(1, 1, 16, 16)).shape[1]
        self.last = nn.Linear(size, 3)

    def before(self, x):
        return self.middle(self.conv(x)).flatten(1)

    def forward(self, x):
        return self.last(self.before(x))


@with_node
def test_every_operation_computes_what_gpuconv_computes(tmp_path):
    """Logits, and the gradient of one by the picture, of each operation, to 1e-5 of the largest."""
    pictures = np.random.default_rng(0).standard_normal((2, 1, 16, 16)).astype(np.float32)
    networks = {name: Between(middle).eval() for name, middle in OPERATIONS.items()}
    found = computed([case_of(network, pictures, gradient=1) for network in networks.values()], tmp_path)
    for (name, network), answer in zip(networks.items(), found, strict=True):
        expected = network(gpuconv.Tensor(pictures)).numpy()
        np.testing.assert_allclose(answer["logits"], expected, rtol=1e-5, atol=2e-6, err_msg=name)
        last = gpuconv.Tensor(pictures[1:], requires_grad=True)
        network(last)[0, 1].backward()
        gradient = last.grad.numpy().reshape(-1)
        np.testing.assert_allclose(
            answer["gradient"], gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max(), err_msg=name
        )


@with_node
@pytest.mark.parametrize("name", ["lenet5", "resnet20", "shufflenet_v2_x1_0"])
def test_networks_compute_what_gpuconv_computes(name, tmp_path):
    """With batch normalisation folded, and statistics that are not those of a new network."""
    model = models.build(name).eval()
    rng = np.random.default_rng(0)
    for key, value in model.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            value.data[:] = rng.uniform(0.5, 1.5, value.shape)
    shape = (3, 32, 32) if name == "shufflenet_v2_x1_0" else model.input_shape
    pictures = rng.standard_normal((2, *shape)).astype(np.float32)
    (answer,) = computed([case_of(model, pictures)], tmp_path)
    expected = model(gpuconv.Tensor(pictures)).numpy()
    np.testing.assert_allclose(answer["logits"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@with_node
def test_values_are_explained(tmp_path):
    """Terms and bias add up, a window's largest is its winner, and the boxes are where these come from."""
    model = models.LeNet5()
    picture = np.random.default_rng(0).standard_normal((1, 1, 32, 32)).astype(np.float32)
    # Convolution 2: map 7, row 3, column 4; pooling 1: map 2, row 5, column 6; a unit of the first layer of these.
    ask = [[3, 7 * 100 + 3 * 10 + 4], [2, 2 * 196 + 5 * 14 + 6], [7, 11]]
    (answer,) = computed([case_of(model, picture, ask=ask)], tmp_path)
    conv, pool, unit = answer["told"]
    for told, count in ((conv, 150), (unit, 400)):
        assert len(told["terms"]["terms"]) == count
        total = sum(term["x"] * term["w"] for term in told["terms"]["terms"]) + told["terms"]["bias"]
        assert total == pytest.approx(told["value"], abs=1e-4)
    assert {key: conv["boxes"][0]["box"][key] for key in ("c0", "c1", "y0", "y1", "x0", "x1")} == {
        "c0": 0, "c1": 6, "y0": 3, "y1": 8, "x0": 4, "x1": 9,
    }  # fmt: skip
    window = pool["pooled"]
    assert pool["value"] == max(window["values"])
    assert window["winner"] == window["places"][int(np.argmax(window["values"]))]
    assert window["places"] == [2 * 784 + row * 28 + column for row in (10, 11) for column in (12, 13)]


@with_node
def test_half_precision_is_read_as_numpy_wrote_it(tmp_path):
    """The logits are those of a network whose weights are rounded to float16."""
    model = models.LeNet5()
    picture = np.random.default_rng(0).standard_normal((1, 1, 32, 32)).astype(np.float32)
    case = case_of(model, picture)
    case |= {"half": True, "weights": packed(program_of(model, (1, 32, 32)).tensors, half=True)}
    (answer,) = computed([case], tmp_path)
    model.load_state_dict({k: v.astype(np.float16).astype(np.float32) for k, v in model.state_dict().items()})
    np.testing.assert_allclose(answer["logits"], model(gpuconv.Tensor(picture)).numpy(), atol=1e-5)


@with_node
def test_pictures_are_prepared_as_the_model_prepares_them(tmp_path):
    """Padded and standardised alike; a digit on paper of any size is brought into MNIST's form."""
    data = load_dataset("mnist-sample")
    transform = InputTransform.fit(data.train_images[:100])
    form = data_of(explore("lenet5").html)["form"]
    form |= {"mean": [transform.mean], "std": [transform.std]}
    digit = data.test_images[0]
    paper = 255 - np.kron(np.pad(digit, ((3, 9), (12, 2))), np.ones((5, 5), np.uint8))
    module = (Path(gpuconv.__file__).parent / "explorer" / "page" / "picture.mjs").as_uri()
    code = f"""
        import {{ prepared, rawOf }} from {json.dumps(module)};
        const form = {json.dumps(form)};
        const input = Array.from(prepared(Uint8Array.from({digit.reshape(-1).tolist()}), form));
        const paper = {paper.reshape(-1).tolist()}.flatMap((v) => [v, v, v, 255]);
        const found = Array.from(rawOf(Uint8Array.from(paper), {paper.shape[1]}, {paper.shape[0]}, form));
        const blank = rawOf(new Uint8Array(400).fill(200), 10, 10, form);
        console.log(JSON.stringify([input, found, blank]));
    """
    (tmp_path / "pictures.mjs").write_text(code)
    done = subprocess.run(["node", tmp_path / "pictures.mjs"], capture_output=True, text=True, timeout=60, check=True)
    prepared, found, blank = json.loads(done.stdout)
    np.testing.assert_allclose(prepared, transform(digit).reshape(-1), rtol=1e-6, atol=1e-6)
    assert blank is None
    # Its mass may come to lie a pixel beside, where rounding decides.
    shifts = [np.roll(np.reshape(found, (28, 28)), (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    assert max(np.corrcoef(shifted.reshape(-1), digit.reshape(-1))[0, 1] for shifted in shifts) > 0.97


@with_node
def test_the_joined_modules_are_one_valid_script(tmp_path):
    """No name is declared twice, and nothing is imported that the page does not hold."""
    (tmp_path / "page.mjs").write_text(script())
    checked = subprocess.run(["node", "--check", tmp_path / "page.mjs"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    files = {path.name for path in (Path(gpuconv.__file__).parent / "explorer" / "page").glob("*.mjs")}
    assert files == set(SCRIPTS)
