"""The command line, from a newcomer's first run to a disk that is full."""

import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gpuconv
from gpuconv import plots, storage
from gpuconv.cli import main, train
from gpuconv.data import load_dataset, write_idx
from gpuconv.models import LeNet5
from gpuconv.training import TrainConfig, saved_config

PICTURES = ("curves.png", "confusion.png", "filters.png", "activations.png")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

posix = pytest.mark.skipif(os.name != "posix", reason="signals, pseudo-terminals and resource limits are POSIX")


@pytest.fixture(autouse=True)
def _same_surroundings(tmp_path, monkeypatch):
    """An empty folder, and none of the settings that whoever runs the tests may have."""
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "GPUCONV_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPUCONV_BACKEND", "numpy")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # for the processes started here


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory of LeNet after two epochs on the bundled digits; no pictures are drawn."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    with gpuconv.use_backend("numba"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_write_pictures", lambda *_: None)
        assert main(["train", "--epochs", "2", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """A folder of IDX files with 300 training and 100 test digits."""
    folder = tmp_path_factory.mktemp("idx")
    data = load_dataset("mnist-sample")
    write_idx(folder / "train-images-idx3-ubyte", data.train_images[:300])
    write_idx(folder / "train-labels-idx1-ubyte", data.train_labels[:300].astype(np.uint8))
    write_idx(folder / "t10k-images-idx3-ubyte", data.test_images[:100])
    write_idx(folder / "t10k-labels-idx1-ubyte", data.test_labels[:100].astype(np.uint8))
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """For runs of which no picture is looked at: drawing takes ten times as long as training on a few digits."""
    monkeypatch.setattr(train, "_write_pictures", lambda *_: None)


@pytest.fixture
def curves_alone(monkeypatch):
    """Of the pictures one is drawn."""
    for name in ("confusion", "filters", "activations"):
        monkeypatch.setattr(plots, f"save_{name}", lambda *_: None)


#: What a process runs instead of `python -m gpuconv`, likewise.
WITHOUT_PICTURES = (
    "-c",
    "from gpuconv.cli import main, train; train._write_pictures = lambda *_: None; raise SystemExit(main())",
)


def outcome(capsys, *arguments):
    """Exit status, stdout and stderr of a command; the output is plain text."""
    capsys.readouterr()
    status = main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    assert not CONTROL.search(out + err)
    return status, out, err


def one_line(capsys, *arguments):
    """The one line on stderr with which a command fails."""
    status, _, err = outcome(capsys, *arguments)
    assert status == 2
    assert err.startswith("gpuconv: ")
    assert err.count("\n") == 1, err
    return err


def process(*arguments, **options):
    command = [sys.executable, "-m", "gpuconv", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# -- train -----------------------------------------------------------------------------------------------------------


def test_train_writes_what_it_promises(capsys, few_digits):
    """A line an epoch, all files, and a next command that works when it is typed as printed."""
    status, out, err = outcome(capsys, "train", "--data", few_digits, "--epochs", 3, "--seed", 5)
    assert (status, err) == (0, "")
    assert re.findall(r"^ +(\d)/3 ", out, re.MULTILINE) == ["1", "2", "3"]
    assert re.search(r"^test accuracy \d+\.\d\d% of 100 images", out, re.MULTILINE)

    (folder,) = Path("runs").iterdir()
    assert f"in {folder}:" in out
    assert {path.name for path in folder.iterdir() if path.name != "checkpoint.safetensors"} == {
        "model.safetensors", "metrics.jsonl", "samples", *PICTURES,
    }  # fmt: skip
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    for name in PICTURES:
        with Image.open(folder / name) as image:
            assert np.asarray(image.convert("L")).std() > 10
    assert storage.load(folder).classes == tuple("0123456789")
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"{digit}.png" for digit in range(10)]

    program, *command = shlex.split(re.search(r"^next: (.*)", out, re.MULTILINE)[1])
    assert program == "gpuconv"
    status, out, _ = outcome(capsys, *command)
    assert status == 0
    assert "samples/7.png: " in out


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_each_run_has_a_folder_of_its_own(capsys, few_digits):
    """Without --out nothing is overwritten, and predict takes the run that was trained last."""
    for _ in range(2):
        assert outcome(capsys, "train", "--data", few_digits, "--epochs", 1)[0] == 0
    first, second = sorted(Path("runs").iterdir())
    assert second.name == f"{first.name}-2"
    os.utime(first / "model.safetensors", (1, 1))
    assert f"model {second}" in outcome(capsys, "predict", first / "samples" / "1.png")[1]
    os.utime(second / "model.safetensors", (0, 0))
    assert f"model {first}\n" in outcome(capsys, "predict", first / "samples" / "1.png")[1]

    again = one_line(capsys, "train", "--data", few_digits, "--out", first)
    assert "already holds a run" in again
    assert "--resume" in again


@pytest.mark.slow
@pytest.mark.usefixtures("curves_alone")
def test_resume_of_what_is_done(capsys, run):
    """There is nothing left to train; pictures that are missing are drawn."""
    (run / "curves.png").unlink(missing_ok=True)
    status, out, _ = outcome(capsys, "train", "--resume", "--out", run)
    assert status == 0
    assert "nothing is left to train after epoch 2/2; to continue: --resume --epochs 3" in out
    assert (run / "curves.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("curves_alone")
def test_a_finished_run_goes_on(capsys, few_digits):
    """--resume --epochs 4 after 2: its rows, metrics and curves are continued, and a later --resume remembers the 4."""
    assert outcome(capsys, "train", "--data", few_digits, "--epochs", 2)[0] == 0
    (folder,) = Path("runs").iterdir()
    model, curves = ((folder / name).read_bytes() for name in ("model.safetensors", "curves.png"))
    status, out, err = outcome(capsys, "train", "--resume", "--epochs", 4)
    assert (status, err) == (0, "")
    assert "resuming after epoch 2\n" in out
    assert re.findall(r"^ +(\d)/4 ", out, re.MULTILINE) == ["3", "4"]
    assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert (folder / "model.safetensors").read_bytes() != model
    assert (folder / "curves.png").read_bytes() != curves
    assert "after epoch 4/4" in outcome(capsys, "train", "--resume")[1]

    line = one_line(capsys, "train", "--resume", "--epochs", 3)
    assert line == "gpuconv: --epochs is 3, but the run has done 4; give at least 4\n"
    options = ("--lr", 0.5, "--batch-size", 8, "--seed", 3, "--no-augment", "--validation-fraction", 0.2)
    line = one_line(capsys, "train", "--resume", *options, "--data", "mnist-sample")
    for words in (
        "--batch-size is 32 there and 8 here", "--lr is 0.02 there and 0.5 here", "--seed is 0 there and 3 here",
        "--validation-fraction is 0.1 there and 0.2 here", "--data 'mnist-sample' holds other images than",
        "of which only --epochs, --patience, --checkpoint-every, --keep-epochs, --backend may change",
    ):  # fmt: skip
        assert words in line
    assert "augment" not in line


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_stopped_run_goes_on(capsys, few_digits):
    """What has been stopped early says which --patience goes on; with it, it does."""
    options = ("--epochs", 30, "--patience", 1, "--lr", 0.3, "--momentum", 0, "--schedule", "constant")
    _, out, _ = outcome(capsys, "train", "--data", few_digits, *options)
    done = len(re.findall(r"^ +\d+/30 ", out, re.MULTILINE))
    _, out, _ = outcome(capsys, "train", "--resume")
    assert re.search(r"^nothing is left to train$", out, re.MULTILINE)
    assert "fallen for 1 epoch;" in out
    assert "; to continue: --resume --patience 2\n" in out
    _, out, _ = outcome(capsys, "train", "--resume", "--patience", 2)
    assert re.search(rf"^ +{done + 1}/30 ", out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_augments_goes_on_augmenting(capsys, few_digits):
    """--augment is part of the run: it need not be given again, and cannot be taken back."""
    assert outcome(capsys, "train", "--data", few_digits, "--epochs", 1, "--augment")[0] == 0
    (folder,) = Path("runs").iterdir()
    assert saved_config(folder).augment
    status, out, _ = outcome(capsys, "train", "--resume")
    assert status == 0
    assert "nothing is left to train" in out
    assert "augment is True there and False here" in one_line(capsys, "train", "--resume", "--no-augment")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_early_stop_is_said(capsys, few_digits):
    """A run that stops before its last epoch says why, and which weights it keeps."""
    options = ("--epochs", 30, "--patience", 1, "--lr", 0.3, "--momentum", 0, "--schedule", "constant")
    status, out, _ = outcome(capsys, "train", "--data", few_digits, *options)
    assert status == 0
    assert re.search(
        r"^stopped: the validation loss has not fallen for 1 epoch; epoch \d+'s weights are kept$", out, re.M
    )


@pytest.mark.slow
@posix
@pytest.mark.usefixtures("no_pictures")
def test_interrupt_saves_and_says_how_to_go_on(few_digits, capsys):
    """Ctrl-C ends with 130 and one line; the command in it, typed as printed, brings the run to its end."""
    training = process("train", "--data", few_digits, "--epochs", 4, "--batch-size", 1, "--out", "my run")
    for line in training.stdout:
        if line.startswith("    1/4"):
            break
    training.send_signal(signal.SIGINT)
    _, err = training.communicate(timeout=60)
    assert training.returncode == 130
    assert err.startswith("gpuconv: interrupted")
    assert err.count("\n") == 1
    assert "has not finished" in one_line(capsys, "predict", "x.png", "--model", "my run")

    program, *command = shlex.split(err.split("continue with: ")[1])
    assert program == "gpuconv"
    status, out, _ = outcome(capsys, *command)
    assert status == 0
    assert "resuming after epoch" in out
    assert "    4/4" in out
    assert "    1/4" not in out


@pytest.mark.slow
@posix
def test_a_full_disk_is_one_line():
    """The file that could not be written is named, and there is no traceback."""
    # A limit on the size of files fails where a full disk does, in write().
    limits = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limits += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    code = limits + "from gpuconv.cli import main; raise SystemExit(main(['train', '--out', 'full']))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 2
    assert re.fullmatch(r"gpuconv: full/checkpoint.safetensors: .*\n", run.stderr)


def test_divergence_is_one_line(capsys, few_digits):
    """A loss that is no number any more names the step and the largest gradient."""
    line = one_line(capsys, "train", "--data", few_digits, "--lr", 1e9, "--out", "d")
    assert "diverged in epoch 1, step 2" in line
    assert re.search("largest .*gradient", line)
    assert "A lower --lr may help" in line


def test_no_network_is_one_line(capsys, monkeypatch, tmp_path):
    """What is missing, and what works without a network."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("GPUCONV_DATA", str(tmp_path))
    line = one_line(capsys, "train", "--data", "mnist")
    assert "no connection" in line
    assert "mnist-sample" in line


# -- predict and evaluate --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_predict_knows_the_digits(capsys, run):
    """At least nine of ten test digits, as PNGs, are right; the JSON holds all probabilities."""
    status, out, err = outcome(capsys, "predict", *sorted((run / "samples").iterdir()), "--model", run, "--json")
    assert (status, err) == (0, "")
    answers = json.loads(out)
    assert [Path(answer["image"]).stem for answer in answers] == list("0123456789")
    assert sum(answer["class"] == Path(answer["image"]).stem for answer in answers) >= 9
    for answer in answers:
        probabilities = answer["probabilities"]
        assert list(probabilities) == list("0123456789")
        assert max(probabilities, key=probabilities.get) == answer["class"]
        np.testing.assert_allclose(sum(probabilities.values()), 1, rtol=1e-5)


@pytest.mark.slow
def test_predict_draws_a_bar_for_each_class(capsys, run):
    """The bars are as long as the probabilities are great."""
    image = run / "samples" / "0.png"
    _, out, _ = outcome(capsys, "predict", image, "--model", run)
    shown = re.findall(r"^  (\d) +([\d.]+)% ?(█*)", out, re.MULTILINE)
    assert [name for name, _, _ in shown] == list("0123456789")
    for _, percent, bar in shown:
        assert abs(len(bar) - 0.4 * float(percent)) <= 1


@pytest.mark.slow
def test_predict_answers_for_a_photograph(capsys, run, tmp_path):
    """A large picture in colour, with shadows and noise, dark on light: an answer, whatever it is worth."""
    y, x = np.mgrid[0:2000, 0:3000]
    photo = (120 + 60 * np.sin(x / 900) + 40 * y / 2000)[..., None] * [1, 0.95, 0.8]
    photo += np.random.default_rng(0).normal(0, 6, photo.shape)
    photo[600:1500, 1400:1560] -= 90
    Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(tmp_path / "photo.jpg")
    status, out, err = outcome(capsys, "predict", "photo.jpg", "--model", run)
    assert (status, err) == (0, "")
    assert re.search(r"^photo.jpg: \d$", out, re.MULTILINE)


def test_predict_goes_on_after_a_bad_image(capsys, run):
    """Each bad file has its line, each good one its answer, and the exit status tells that not all went well."""
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes((run / "samples" / "3.png").read_bytes()[:300])
    Path("[red]blank.png").write_bytes(b"")
    Path("folder.png").mkdir()
    Image.new("L", (50, 50), 200).save("grey.png")
    good = run / "samples" / "1.png"
    bad = ["missing.png", "text.png", "cut.png", "[red]blank.png", "folder.png", "grey.png"]
    status, out, err = outcome(capsys, "predict", *bad, good, "--model", run)
    assert status == 2
    assert [line.split(": ")[:2] for line in err.splitlines()] == [["gpuconv", name] for name in bad]
    assert re.search(rf"^{re.escape(str(good))} +1  +[\d.]+%$", out, re.MULTILINE)

    status, out, _ = outcome(capsys, "predict", *bad, good, "--model", run, "--json")
    assert status == 2
    assert ["error" in answer for answer in json.loads(out)] == [True] * len(bad) + [False]


def test_evaluate_counts_every_image(capsys, run):
    """Accuracy, loss and confusion agree with each other and with what the training wrote."""
    status, out, _ = outcome(capsys, "evaluate", "--model", run / "model.safetensors")
    assert status == 0
    percent = float(re.search(r"^accuracy ([\d.]+)%", out, re.MULTILINE)[1])
    rows = re.findall(r"^(\d) +(\d+) +(\d+) +([\d.]+)%", out, re.MULTILINE)
    assert len(rows) == 10
    assert sum(int(images) for _, images, _, _ in rows) == 2000
    assert sum(int(right) for _, _, right, _ in rows) / 2000 == pytest.approx(percent / 100)
    confusion = re.findall(r"^\d((?: +(?:\d+|·)){10})$", out, re.MULTILINE)
    counts = [[0 if count == "·" else int(count) for count in row.split()] for row in confusion]
    assert np.trace(counts) == sum(int(right) for _, _, right, _ in rows)
    data = load_dataset("mnist-sample")
    predicted = gpuconv.load(run).predict(data.test_images).argmax(1)
    assert np.mean(predicted == data.test_labels) == pytest.approx(percent / 100)


def test_evaluate_of_other_classes(capsys, run, few_digits):
    """A model of fewer classes than the data set has is not evaluated on it."""
    model = LeNet5(num_classes=4)
    model.input_transform = gpuconv.load(run).input_transform
    storage.save(model, "four.safetensors")
    assert "4 classes" in one_line(capsys, "evaluate", "--model", "four.safetensors", "--data", few_digits)


# -- summary and info ------------------------------------------------------------------------------------------------


def test_summary_of_a_name_and_of_a_file(capsys, run):
    """Layers, output shapes, parameters and connections; the articles' LeNet has 100 neurons where the paper has 84."""
    _, out, _ = outcome(capsys, "summary", "lenet5")
    rows = [line.split() for line in out.splitlines()]
    assert ["conv1", "Conv2d", "6x28x28", "156", "122,304"] in rows
    assert ["pool2", "MaxPool2d", "16x5x5", "0", "0"] in rows
    assert ["total", "61,706", "423,038"] in rows
    assert outcome(capsys, "summary", run)[1] == out
    storage.save(LeNet5(hidden=(120, 100)), "articles.safetensors")
    assert ["fc2", "Linear", "100", "12,100", "12,100"] in [
        line.split() for line in outcome(capsys, "summary", "articles.safetensors")[1].splitlines()
    ]


@posix
def test_a_reader_who_has_seen_enough():
    """`gpuconv summary lenet5 | head -1` prints one line and no complaint."""
    command = f"{shlex.quote(sys.executable)} -m gpuconv summary lenet5 | head -n 1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert run.stdout.startswith("LeNet5")
    assert run.stderr == ""


def test_summary_of_an_onnx_file(capsys, tmp_path, monkeypatch):
    """Its nodes, with the parameters and connections that the same network has; a size that the file leaves open."""
    pytest.importorskip("onnx", reason="pip install onnx: ONNX files are read with it")
    monkeypatch.chdir(tmp_path)
    gpuconv.onnx.save(LeNet5(), "lenet.onnx", np.zeros((1, 1, 32, 32), np.float32))
    out = outcome(capsys, "summary", "lenet.onnx")[1]
    assert out.startswith("lenet.onnx, input 1x32x32\n")
    assert out.splitlines()[-1] == outcome(capsys, "summary", "lenet5")[1].splitlines()[-1]
    assert "Conv_0" in out
    (tmp_path / "text.onnx").write_text("a text")
    status, _, error = outcome(capsys, "summary", "text.onnx")
    assert status == 2
    assert error.startswith("gpuconv: text.onnx: not an ONNX file")


def test_info_says_why_a_backend_is_missing(capsys, monkeypatch):
    """Each backend with its state, the one that is taken, and each extra."""
    _, out, _ = outcome(capsys, "info")
    assert f"gpuconv         {gpuconv.__version__}" in out
    for name, why_not in gpuconv.backends.available().items():
        state = why_not or f"available: {gpuconv.backends.get(name).describe()}"
        assert re.search(rf"^  {name} +{re.escape(state)}$", out, re.MULTILINE)
    assert re.search(r"^  taken +numpy \(GPUCONV_BACKEND=numpy\)$", out, re.MULTILINE)
    assert re.search(r"^  cli +installed$", out, re.MULTILINE)
    monkeypatch.setenv("GPUCONV_BACKEND", "nunpy")
    status, out, _ = outcome(capsys, "info")  # the command to find such a mistake with
    assert status == 0
    assert "did you mean 'numpy'?" in out


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train --epoch 3", "--epochs"),
        ("train --epochs three", "'--epochs'"),
        ("train --epochs 0", "--epochs must be at least 1, got 0"),
        ("train --batch-size -1", "--batch-size must be at least 1"),
        ("train --lr nan", "--lr must be above 0, got nan"),
        ("train --patience 0", "gpuconv: --patience must be at least 1, got 0"),
        (
            "train --patience 2 --validation-fraction 0",
            "gpuconv: --patience needs validation images; set --validation-fraction above 0\n",
        ),
        ("train --seed -1", "--seed must be at least 0"),
        ("train --optimizer adma", "did you mean 'adam'?"),
        ("train --loss cross-entropy", "did you mean 'cross_entropy'?"),
        ("train --model lenet", "did you mean 'lenet5'?"),
        ("train --backend nunpy", "did you mean 'numpy'?"),
        ("train --data minst", "did you mean 'mnist'?"),
        ("train --data no/where", "'no/where' is no folder"),
        ("train --data empty", "train-images-idx3-ubyte is missing"),
        ("train --data cut", "cut/train-images-idx3-ubyte"),
        ("train --out text", "text is a file"),
        ("train --out text/below", "text/below"),
        ("train --resume", "nothing to resume"),
        ("predict", "'IMAGE...'"),
        ("predict x.png", "train a model with 'gpuconv train'"),
        ("predict x.png --model nowhere", "nowhere: no such file"),
        ("predict x.png --model empty", "empty/model.safetensors: no such file"),
        ("predict x.png --model text", "text: not a readable safetensors file"),
        ("predict x.png --model other.safetensors", "some other safetensors file"),
        ("predict x.png --backend cdua", "did you mean 'cuda'?"),
        ("evaluate --bogus", "--bogus"),
        ("summary", "Missing argument"),
        ("summary lenet6", "did you mean 'lenet5'?"),
        ("summary text", "text: not a readable safetensors file"),
        ("info more", "more"),
        ("trian", "'trian'"),
        ("--bogus", "--bogus"),
    ],
)
def test_a_mistake_is_one_line(command, says, capsys):
    """What was typed wrong is named, what would do is said where it is known, and nothing is left behind."""
    from safetensors.numpy import save_file

    Path("empty").mkdir()
    Path("cut").mkdir()
    Path("cut/train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0\0\x05")
    Path("text").write_text("hello")
    save_file({"x": np.zeros(1)}, "other.safetensors")
    before = sorted(Path().rglob("*"))
    assert says in one_line(capsys, *command.split())
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_model_is_one_line(damage, capsys, run):
    """A model file that is cut short or changed is refused and named."""
    content = bytearray((run / "model.safetensors").read_bytes())
    if damage == "cut":
        content = content[:5000]
    else:
        content[-100] ^= 1
    Path("damaged.safetensors").write_bytes(content)
    assert "damaged.safetensors: " in one_line(capsys, "predict", "x.png", "--model", "damaged.safetensors")


def test_names_cannot_break_the_line(capsys):
    """A file name with a line break, an escape sequence or bytes that are no text is shown harmlessly."""
    assert "a\\x1b[31m b  \\udcff: " in one_line(capsys, "predict", "x.png", "--model", "a\x1b[31m\nb  \udcff")


def test_debug_shows_where(capsys):
    """--debug, in any place, adds the traceback to the line."""
    for command in (["--debug", "summary", "lenet6"], ["summary", "lenet6", "--debug"]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("gpuconv: lenet6: no such file, and unknown model")


@pytest.mark.parametrize("package", ["typer", "rich", "matplotlib", "PIL"])
def test_without_the_extra(package):
    """Whoever installed the library alone is told what to install, before anything is trained."""
    code = f"import sys; sys.modules[{package!r}] = None; from gpuconv.cli import main; sys.exit(main(['train']))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert re.fullmatch(rf"gpuconv: .*{package}.*: pip install 'gpuconv\[cli\]'\n", run.stderr)
    assert not Path("runs").exists()


# -- the terminal ----------------------------------------------------------------------------------------------------


def test_help_is_quick(capsys):
    """Help and version load nothing that takes long to load."""
    code = "import sys; from gpuconv.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train" in run.stdout
    assert not {"numba", "cupy", "torch", "matplotlib", "PIL", "pooch"} & set(run.stderr.split())
    assert outcome(capsys, "--version") == (0, f"gpuconv {gpuconv.__version__}\n", "")
    assert outcome(capsys)[1].startswith("Usage: gpuconv")
    for command in ("train", "evaluate", "predict", "explore", "summary", "info", "check", "course"):
        status, out, _ = outcome(capsys, command, "--help")
        assert status == 0
        assert f"Usage: gpuconv {command}" in out
    assert f"[default: {TrainConfig().epochs}]" in " ".join(outcome(capsys, "train", "--help")[1].split())


@posix
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("gpuconv ", {"train", "evaluate", "predict", "explore", "tune", "summary", "info", "check", "course"}),
        ("gpuconv train --sch", {"--schedule"}),
        ("gpuconv train --schedule ", {"cosine", "constant"}),
        ("gpuconv train --optimizer a", {"adam"}),
        ("gpuconv train --loss ", {"cross_entropy", "half_squared_error"}),
        ("gpuconv train --model l", {"lenet5"}),
        ("gpuconv train --data m", {"mnist", "mnist-sample"}),
        ("gpuconv train --data ./", set()),
        ("gpuconv train --out r", set()),
        ("gpuconv train --backend nu", {"numba", "numpy"}),
        ("gpuconv tune --op conv2d_g", {"conv2d_grad_input", "conv2d_grad_weight"}),
        ("gpuconv summary l", {"lenet5"}),
        ("gpuconv explore --network l", {"lenet5"}),
    ],
)
def test_a_shell_completes(typed, offered, capsys, monkeypatch):
    """By bash's protocol: commands, options and names; of nothing else, for which bash offers files."""
    monkeypatch.setenv("_GPUCONV_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    status, out, err = outcome(capsys)
    assert (status, err) == (0, "")
    assert set(out.split()) == offered


@posix
def test_bash_completes(tmp_path):
    """What --show-completion prints, evaluated in bash, completes there."""
    program = tmp_path / "gpuconv"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m gpuconv "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(gpuconv --show-completion)"
        COMP_WORDS=(gpuconv train --data mnist-s) COMP_CWORD=3
        _gpuconv_completion gpuconv
        echo "${COMPREPLY[@]}"
        complete -p gpuconv
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.splitlines() == ["mnist-sample", "complete -o default -F _gpuconv_completion gpuconv"]


def test_completion_offers_what_there_is():
    """The operations are spelled out where they are completed, so that nothing heavy is loaded for them."""
    from gpuconv import tuner
    from gpuconv.cli import tune

    assert tune._OPERATIONS == tuner.OPERATIONS


def test_python_m_gpuconv():
    """The module runs as the command does, and passes its exit status on."""
    run = process("summary", "lenet6")
    _, err = run.communicate(timeout=60)
    assert run.returncode == 2
    assert err.startswith("gpuconv: lenet6: ")


def test_an_old_terminal(run):
    """Where the terminal knows ASCII alone, bars are made of it, and odd names are spelled out."""
    image = Path("dígit.png")
    image.write_bytes((run / "samples" / "1.png").read_bytes())
    answer = process("predict", image, "--model", run, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    out, err = answer.communicate(timeout=60)
    assert (answer.returncode, err) == (0, "")
    assert out.isascii()
    assert "d\\xedgit.png: 1" in out
    assert "% ####" in out


def in_terminal(width, environment, *arguments, program=("-m", "gpuconv")):
    """Exit status of a command, and what it writes to a terminal of this width."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    command = [sys.executable, *program, *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm-256color", **environment}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        written += piece
    os.close(ours)
    return child.wait(timeout=60), written.decode()


@pytest.mark.slow
@posix
def test_progress_on_a_terminal(few_digits):
    """A bar with loss, accuracy, images/s and remaining time while it trains, and a cursor that is there afterwards."""
    options = ("--data", few_digits, "--epochs", 2, "--batch-size", 4)
    status, text = in_terminal(100, {"NO_COLOR": "1"}, "train", *options, program=WITHOUT_PICTURES)
    assert status == 0
    assert re.search(r"epoch \d/2 .*loss \d\.\d+ .*% right .* images/s .*\d:\d\d:\d\d", text)
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
    assert "test accuracy" in text
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text), "colours in spite of NO_COLOR"


@pytest.mark.slow
@posix
def test_a_narrow_terminal(run):
    """Bars fit, and the table of confusion is left out where it does not."""
    _, text = in_terminal(30, {"NO_COLOR": "1"}, "predict", run / "samples" / "4.png", "--model", run)
    bars = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if "%" in line]
    assert len(bars) == 10
    assert max(map(len, bars)) <= 30
    _, text = in_terminal(40, {}, "evaluate", "--model", run)
    assert "accuracy" in text
    assert "confusion:" not in text


SUMMARY = {
    "layer": ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "flatten", "fc1", "relu3", "fc2", "relu4", "fc3"],
    "kind": ["Conv2d", "ReLU", "MaxPool2d"] * 2 + ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"],
    "output": [
        "6x28x28", "6x28x28", "6x14x14", "16x10x10", "16x10x10", "16x5x5", "400", "120", "120", "84", "84", "10",
    ],
    "parameters": ["156", "0", "0", "2,416", "0", "0", "0", "48,120", "0", "10,164", "0", "850", "61,706"],
    "connections": ["122,304", "0", "0", "241,600", "0", "0", "0", "48,120", "0", "10,164", "0", "850", "423,038"],
}  # fmt: skip


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "")


@posix
@pytest.mark.grid(2)
@pytest.mark.parametrize(
    ("width", "environment", "columns"),
    [
        (300, {}, list(SUMMARY)),
        (54, {"TERM": "dumb"}, list(SUMMARY)),
        (44, {"NO_COLOR": "1"}, ["layer", "output", "parameters", "connections"]),
        (40, {"TERM": "dumb"}, ["layer", "output", "parameters"]),
        (300, {"COLUMNS": "40"}, ["layer", "output", "parameters"]),
        (20, {}, ["layer", "output", "parameters"]),
        (None, {"COLUMNS": "40"}, list(SUMMARY)),
        (None, {"COLUMNS": "40", "FORCE_COLOR": "1"}, list(SUMMARY)),
    ],
)
def test_a_table_is_never_cut(width, environment, columns):
    """Where it does not fit, whole columns are left out and named; a file or a pipe (None) gets all of it."""
    if width is None:
        command = [sys.executable, "-m", "gpuconv", "summary", "lenet5"]
        text = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True).stdout
    else:
        _, text = in_terminal(width, environment, "summary", "lenet5")
    lines = plain(text).splitlines()
    assert " ".join(lines).startswith("LeNet5, input 1x32x32, 10 classes ")
    heading, *rows = lines[next(i for i, line in enumerate(lines) if line.startswith("layer")) :]
    assert heading.split() == columns
    cells = [row.split() for row in rows[:13]]
    assert cells[-1] == ["total", *(SUMMARY[name][12] for name in columns if len(SUMMARY[name]) == 13)]
    for position, name in enumerate(columns):
        assert [row[position] for row in cells[:12]] == SUMMARY[name][:12]
    left_out = [name for name in ("kind", "connections") if name not in columns]
    assert " ".join(rows[13:]).replace("  ", " ") == (
        f"({', '.join(left_out)}: in a wider terminal)" if left_out else ""
    )
    width = int(environment.get("COLUMNS", width)) if width else 1000
    if width > 30:
        assert max(map(len, lines)) <= width


@pytest.mark.slow
@posix
@pytest.mark.parametrize("width", [24, 40, 60])
def test_training_in_a_narrow_terminal(few_digits, width):
    """Rows of as many columns as there is room for, prose broken between words; only what is copied stays one line."""
    environment = {"TERM": "dumb", "GPUCONV_BACKEND": "numpy"}
    options = ("--data", few_digits, "--epochs", 1, "--out", "r")
    _, text = in_terminal(width, environment, "train", *options, program=WITHOUT_PICTURES)
    lines = plain(text).splitlines()
    heading = next(line for line in lines if line.startswith("  epoch"))
    row = lines[lines.index(heading) + 1]
    shown = {24: "epoch right", 40: "epoch loss validation right", 60: "epoch loss right validation right time"}
    assert heading.split() == shown[width].split()
    cells = {"epoch": "1/1", "loss": r"\d\.\d{4}", "right": r"\d+\.\d\d%", "time": r"\d+\.\d s"}
    cells["validation"] = cells["loss"]
    assert re.fullmatch(" +" + " +".join(cells[name] for name in heading.split()), row), row
    long = [line for line in lines if len(line) > width and " " in line.strip()]
    assert all(line.startswith("next: ") or str(few_digits) in line for line in long), long
    assert re.search(r"test accuracy \d+\.\d\d% of 100 images", " ".join(lines))


@pytest.mark.slow
@posix
@pytest.mark.parametrize(
    "command", [["info"], ["tune", "--geometry", "8,6,14,14,16,5,5", "--op", "conv2d", "--backend", "numba"]]
)
def test_prose_in_a_narrow_terminal(command, tmp_path):
    """Lines end between words; the numbers are those of a wide terminal."""
    environment = {"TERM": "dumb", "GPUCONV_TUNING": str(tmp_path / "t")}
    _, text = in_terminal(40, environment, *command)
    lines = plain(text).splitlines()
    assert all(len(line) <= 40 or " " not in line.strip() for line in lines), lines
    if command[0] == "info":
        wide = plain(in_terminal(300, environment, *command)[1])
        assert plain(text).split() == wide.split()
    else:
        assert re.findall(r"^  [\d,]+\.\d µs  \w+", text.replace("\r", ""), re.MULTILINE)
