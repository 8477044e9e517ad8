"""Files: what is written comes back, what is broken is refused, what was there survives a failed write."""

import errno
import io
import json
import os
import pickle
import resource
import signal
import stat
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save as to_safetensors

import gpuconv
from gpuconv import models, nn, storage
from gpuconv.data import InputTransform

ARRAYS = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "double": np.array([0.1, np.inf, np.nan]),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.uint8),
    "strided": np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "big-endian": np.array([1, 2], ">i4"),
    "flags": np.array([True, False]),
}
METADATA = {"nested": {"list": [1, 2.5, None, 'é\n"']}, "integer": 2**127, "float": 0.1 + 0.2}


def one_line(error: BaseException) -> str:
    message = str(error)
    assert message
    assert "\n" not in message
    return message


def test_arrays_and_metadata_come_back_exactly(tmp_path):
    """Every element type, shape and memory layout, and JSON of any kind, survive the file bit for bit."""
    storage.save_tensors(tmp_path / "file", ARRAYS, "test", METADATA)
    arrays, metadata = storage.load_tensors(tmp_path / "file", "test")
    assert metadata == METADATA
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name, strict=name != "big-endian")


def test_same_content_gives_the_same_bytes(tmp_path):
    """A file depends on its content alone, not on the order of a hash table; files of equal runs can be compared."""
    for number in range(8):
        storage.save_tensors(tmp_path / str(number), ARRAYS, "test", METADATA)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1


def test_every_cut_and_every_flipped_bit_is_noticed(tmp_path):
    """A file that lost its end, at any byte, or that has one bit changed, anywhere, is refused with one line."""
    path = tmp_path / "file"
    storage.save_tensors(path, {"a": np.arange(5, dtype=np.float32)}, "test", {"b": [1, 2]})
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :] for i in range(len(whole))]
    damaged += [whole + b"\0"]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(storage.FileError) as caught:
            storage.load_tensors(path, "test")
        assert one_line(caught.value).startswith(str(path))


def test_files_of_another_kind_are_refused_by_name(tmp_path):
    """The message says what was found: nothing, a folder, foreign safetensors, another kind, another version."""
    path = tmp_path / "file"
    with pytest.raises(storage.FileError, match="no such file"):
        storage.load_tensors(path, "test")
    with pytest.raises(storage.FileError, match="not a readable safetensors file"):
        storage.load_tensors(tmp_path, "test")
    path.write_bytes(to_safetensors({"a": np.zeros(2)}))
    with pytest.raises(storage.FileError, match="not a test file but some other safetensors file"):
        storage.load_tensors(path, "test")
    storage.save_tensors(path, {}, "tost", {})
    with pytest.raises(storage.FileError, match="not a test file but a tost file"):
        storage.load_tensors(path, "test")
    for header, why in [('{"kind": "test", "version": "2"}', "another version"), ("[]", "header"), ("{", "header")]:
        path.write_bytes(to_safetensors({}, {"gpuconv": header}))
        with pytest.raises(storage.FileError, match=why):
            storage.load_tensors(path, "test")


def safetensors_of(dtype, data, shape, metadata=None):
    """A file with one array, conv1.weight, of an element type that NumPy need not have."""
    header = {"conv1.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}
    if metadata:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def zip_of(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"\x80\x02}.")
    return buffer.getvalue()


WHOLE = safetensors_of("F32", bytes(8), [2])
TAKE = "build its network and take the weights with model.load_state_dict(gpuconv.load("


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (safetensors_of("C64", bytes(16), [2]), f"in which conv1.weight holds complex64; {TAKE}"),
        (WHOLE, f"not a gpuconv-model file but some other safetensors file; {TAKE}"),
        (zip_of("archive/data.pkl"), f"it is a pickle, as torch.save writes it; {TAKE}"),
        (pickle.dumps({}, protocol=2), f"it is a pickle, as torch.save writes it; {TAKE}"),
    ],
)
def test_where_a_model_is_needed_weights_are_refused(tmp_path, content, says):
    """What was taken for a model is named, and how its weights are taken; in one line."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for read in (storage.load_model, lambda path: storage.load_tensors(path, "gpuconv-model")):
        with pytest.raises(storage.FileError) as caught:
            read(path)
        assert one_line(caught.value).startswith(f"{path}: ")
        assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (safetensors_of("F8_E4M3", bytes(2), [2]), "conv1.weight holds float8_e4m3; convert it"),
        (
            safetensors_of("C64", bytes(16), [2], {"gpuconv": "{}"}),
            "conv1.weight holds complex64, which gpuconv does not",
        ),
        (zip_of("a.npy"), "it is a zip archive"),
        (pickle.dumps({"a": np.ones(2)}), "it holds numpy"),
        (pickle.dumps({}, protocol=2), "it is a pickle, but not of torch.save"),
        (b"", "it is empty"),
        (b"\n  <!DOCTYPE html>\n<html>", "it is a web page; download the file that the page is about"),
        (b"<html><head>", "it is a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "it is a pointer of Git LFS; fetch the file with 'git lfs pull'",
        ),
        (WHOLE[:-1], f"it is cut short, at {len(WHOLE) - 1} of {len(WHOLE)} bytes"),
        (WHOLE[:30], "it is cut short in its header, at 30 bytes"),
        (b"hello, world", "not a readable safetensors file: "),
    ],
)
def test_other_files_are_told_by_what_they_are(tmp_path, content, says):
    """What was found instead of weights, and what would do; in one line."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(storage.FileError) as caught:
        gpuconv.load(path)
    assert one_line(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_a_folder_is_no_file(tmp_path):
    """It is said that it is one; load looks for the model in it."""
    with pytest.raises(storage.FileError, match="not a readable safetensors file: it is a folder"):
        storage.load_tensors(tmp_path, "gpuconv-model")


def test_weights_of_another_library_come_back(tmp_path, monkeypatch):
    """A state is written as any library reads it, and safetensors of any library are read.

    bfloat16 without ml_dtypes is float32.
    """
    from safetensors.numpy import load_file

    layer, path = nn.Linear(3, 2), tmp_path / "state.safetensors"
    gpuconv.save(layer.state_dict(), path)
    for state in (load_file(path), gpuconv.load(path)):
        assert state.keys() == {"weight", "bias"}
        for name, array in layer.state_dict().items():
            np.testing.assert_array_equal(state[name], array, strict=True)
    path.write_bytes(safetensors_of("BF16", np.array([0x3F80, 0xC040, 0x7F80], "<u2").tobytes(), [1, 3]))
    half = gpuconv.load(path)
    assert half["conv1.weight"].dtype == gpuconv.bfloat16
    np.testing.assert_array_equal(half["conv1.weight"].astype(np.float32), [[1, -3, np.inf]])
    gpuconv.save(half, again := tmp_path / "again.safetensors")
    assert again.read_bytes()[-6:] == path.read_bytes()[-6:]
    monkeypatch.setattr("gpuconv.storage.tensors.has_bfloat16", lambda: False)
    widened = np.array([[1, -3, np.inf]], np.float32)
    np.testing.assert_array_equal(gpuconv.load(path)["conv1.weight"], widened, strict=True)
    for kind in (np.float64, np.float16, np.int64, np.uint8, np.bool_, np.complex64):
        path.write_bytes(to_safetensors({"a": np.array([[0, 1, 1]], kind)}))
        np.testing.assert_array_equal(gpuconv.load(path)["a"], np.array([[0, 1, 1]], kind), strict=True)
    for state, says in (({1: np.ones(2)}, "names of a state are strings, got 1"), ({"a": "b"}, "a is no array")):
        with pytest.raises(TypeError, match=says):
            gpuconv.save(state, path)


def test_weights_of_a_parallel_network_come_into_one():
    """Names that all begin with "module." are taken without it, unless the network has such a module itself."""
    layer, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict({f"module.{name}": array for name, array in layer.state_dict().items()})
    np.testing.assert_array_equal(other.weight.numpy(), layer.weight.numpy())
    with pytest.raises(ValueError, match=r"unexpected module\.bias"):
        other.load_state_dict({"weight": layer.weight, "module.bias": layer.bias})

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(3, 2)

    network = Inside()
    network.load_state_dict({f"module.{name}": array for name, array in layer.state_dict().items()})
    np.testing.assert_array_equal(network.module.weight.numpy(), layer.weight.numpy())


def trained_model():
    gpuconv.manual_seed(3)
    model = models.build("lenet5", num_classes=4, hidden=(7, 5))
    model.classes = ("a", "b", "c", "d")
    images = np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8)
    model.input_transform = InputTransform.fit(images)
    return model, images


def test_a_model_is_rebuilt_whole(tmp_path):
    """Architecture, weights, class names and input transform come back: raw images get the same probabilities."""
    model, images = trained_model()
    gpuconv.save(model, tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", tmp_path, str(tmp_path)):
        loaded = gpuconv.load(path)
        assert not loaded.training
        assert loaded.classes == model.classes
        assert loaded.config == model.config
        assert loaded.input_transform == model.input_transform
        np.testing.assert_array_equal(loaded.predict(images), model.predict(images))


def test_what_is_no_model_is_refused(tmp_path):
    """save takes models of the table alone; load says what a folder lacks, and what in a file it does not know."""
    with pytest.raises(TypeError, match="got Linear"):
        gpuconv.save(nn.Linear(2, 2), tmp_path / "m")
    with pytest.raises(storage.FileError, match="no such file"):
        gpuconv.load(tmp_path)
    (tmp_path / "checkpoint.safetensors").touch()
    with pytest.raises(storage.FileError, match="has not finished; resume it"):
        gpuconv.load(tmp_path)
    good = {"model": "lenet5", "config": {"num_classes": 2}, "classes": ["x", "y"], "input_transform": None}
    weights = models.build("lenet5", num_classes=2).state_dict()
    for change in ({"model": "lenet6"}, {"config": {"depth": 3}}, {"config": {}}, {"input_transform": {"mean": 0}}):
        storage.save_tensors(tmp_path / "m", weights, "gpuconv-model", {**good, **change})
        with pytest.raises(storage.FileError, match="does not describe a model") as caught:
            gpuconv.load(tmp_path / "m")
        one_line(caught.value)


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch, function):
    """A disk that fills up at any stage costs the new content alone; the error names the file, nothing is left over."""
    path = tmp_path / "file"
    storage.write_atomically(path, b"old")

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(OSError, match="No space left on device") as caught:
            storage.write_atomically(path, b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_the_systems_own_refusals_are_passed_on(tmp_path):
    """A file that the system cuts short (a size limit stands for a full disk) and a missing folder are OSErrors."""
    path = tmp_path / "file"
    storage.write_atomically(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            storage.write_atomically(path, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError) as caught:
        storage.write_atomically(tmp_path / "missing" / "file", b"")
    assert caught.value.filename == str(tmp_path / "missing" / "file")


def test_permissions_are_those_of_ordinary_files(tmp_path):
    """A new file gets what the umask leaves, as from open(); one that is replaced keeps its own."""
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        storage.write_atomically(path, b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    storage.write_atomically(path, b"")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_killed_writer_leaves_the_old_content_and_litter_that_can_be_swept(tmp_path):
    """kill -9 in the middle of a write: the old content stands, and remove_leftovers deletes the piece and no more."""
    path = tmp_path / "file"
    storage.write_atomically(path, b"old")
    script = (
        "import os, signal, sys; from gpuconv import storage\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "storage.write_atomically(sys.argv[1], b'new')"
    )
    assert subprocess.run([sys.executable, "-c", script, path]).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / ".file2.0.tmp").touch()
    storage.remove_leftovers(path)
    assert sorted(os.listdir(tmp_path)) == [".file2.0.tmp", "file"]
