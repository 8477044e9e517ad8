"""Files of torch.save, read without PyTorch: what it wrote comes back, and nothing in them is run."""

import contextlib
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

import gpuconv
from gpuconv import nn, storage


def archive(path, content, files=(), compression=zipfile.ZIP_STORED):
    """An archive as torch.save writes it, with a pickle of our own."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        for name, data in dict(files).items():
            file.writestr(f"archive/{name}", data)


class Global:
    """A name in a pickle, of a module that need not be there."""

    def __init__(self, module, name):
        self.text = f"c{module}\n{name}\n".encode()


class Storage:
    """What a tensor's elements are in: a reference to another entry of the archive."""

    def __init__(self, count, key="0", kind="FloatStorage"):
        self.pid = ("storage", Global("torch", kind), key, "cpu", count)


class Call:
    """What a pickle has called when it is read."""

    def __init__(self, module, name, *arguments):
        self.function, self.arguments = Global(module, name), arguments


def pickled(thing):
    """A pickle of plain things, names and calls, by hand: pickle itself wants to import what it names."""

    def code(thing):
        if isinstance(thing, Storage):
            return code(thing.pid) + b"Q"
        if isinstance(thing, Global):
            return thing.text
        if isinstance(thing, Call):
            return code(thing.function) + code(thing.arguments) + b"R"
        if isinstance(thing, tuple):
            return b"(" + b"".join(map(code, thing)) + b"t"
        if isinstance(thing, dict):
            return b"(" + b"".join(code(one) for pair in thing.items() for one in pair) + b"d"
        return pickle.dumps(thing, protocol=2)[2:-1]

    return b"\x80\x02" + code(thing) + b"."


def tensor(storage, offset, size, stride):
    return Call("torch._utils", "_rebuild_tensor_v2", storage, offset, size, stride, False, {})


def test_a_tensor_is_read(tmp_path):
    """Its elements, by offset and strides, from the file of its storage, in the file's order of bytes."""
    path, data = tmp_path / "t.pt", np.arange(12, dtype=np.float32)
    content = pickled({"a": tensor(Storage(12), 1, (2, 3), (5, 2))})
    for order, name in (("<", "little"), (">", "big")):
        archive(path, content, {"data/0": data.astype(f"{order}f4").tobytes(), "byteorder": name})
        np.testing.assert_array_equal(gpuconv.load(path)["a"], [[1, 3, 5], [6, 8, 10]])


@pytest.mark.parametrize("module_and_name", ["os system", "builtins eval", "posix system", "torch load", "nt system"])
def test_no_code_is_run(tmp_path, module_and_name):
    """Whatever a pickle wants to have called is refused by its name before it is called, in both formats."""
    module, name = module_and_name.split()
    target = tmp_path / "made"
    content = pickled({"a": 1, "b": Call(module, name, f"open({str(target)!r}, 'w')")})
    path = tmp_path / "t.pt"
    archive(path, content)
    with pytest.raises(storage.FileError, match=rf"it holds {module}\.{name}, which is no tensor, .* could run code"):
        gpuconv.load(path)
    path.write_bytes(pickled(0x1950A86A20F9469CFC6C) + pickled(1001) + pickled({"little_endian": True}) + content)
    with pytest.raises(storage.FileError, match=rf"it holds {module}\.{name}, which"):
        gpuconv.load(path)
    assert not target.exists()


def test_attributes_that_a_pickle_sets_do_not_stay(tmp_path):
    """A pickle may set attributes of a function that it has found; the next file is read as if it had not."""
    path = tmp_path / "t.pt"
    encode = b"c_codecs\nencode\n"
    # BUILD with (None, {"__defaults__": ("utf-16", "utf-16")}): from now on both arguments of it may be left out.
    sets = b"N}X\x0c\x00\x00\x00__defaults__X\x06\x00\x00\x00utf-16X\x06\x00\x00\x00utf-16\x86s\x86b"
    archive(path, b"\x80\x02" + encode + sets + b")R.")
    assert gpuconv.load(path) == b"utf-16"  # it does set them
    archive(path, b"\x80\x02" + encode + b")R.")
    with pytest.raises(storage.FileError, match=r"is damaged: .* missing 1 required"):
        gpuconv.load(path)


@pytest.mark.parametrize(
    ("thing", "files", "says"),
    [
        (tensor(Storage(2), 0, (3,), (1,)), {"data/0": bytes(8)}, "lies outside of its storage"),
        (tensor(Storage(2), 1, (2,), (1,)), {"data/0": bytes(8)}, "lies outside of its storage"),
        (tensor(Storage(2), -1, (2,), (1,)), {"data/0": bytes(8)}, "a tensor has no shape"),
        (tensor(Storage(2), 0, (2,), (-1,)), {"data/0": bytes(8)}, "a tensor has no shape"),
        (tensor(Storage(2), 0, (2, 1), (1,)), {"data/0": bytes(8)}, "a tensor has no shape"),
        (tensor(Storage(2), 0, (2**40,), (0,)), {"data/0": bytes(8)}, "repeats 2 elements; save its clone()"),
        (tensor(Storage(3), 0, (2,), (1,)), {"data/0": bytes(8)}, "data/0 has 8 bytes"),
        (tensor(Storage(2), 0, (2,), (1,)), {}, "it lacks data/0"),
        (tensor(Storage(2, kind="QInt8Storage"), 0, (2,), (1,)), {}, "tensors of torch.QInt8Storage; convert"),
        (tensor({}, 0, (2,), (1,)), {}, "a tensor has no storage"),
        (Call("torch", "Size", 3), {}, "is damaged"),
        ({}, {"constants.pkl": b""}, "TorchScript archive, which holds code"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, thing, files, says):
    """Nothing is read from outside of a storage, and nothing is made that is much larger than the file."""
    path = tmp_path / "t.pt"
    archive(path, pickled(thing), files)
    with pytest.raises(storage.FileError) as caught:
        gpuconv.load(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_compressed_archive_is_refused(tmp_path):
    """It could become any size; torch.save compresses nothing."""
    archive(tmp_path / "t.pt", pickled({}), {"data/0": bytes(2**20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(storage.FileError, match="it is compressed"):
        gpuconv.load(tmp_path / "t.pt")


def test_a_file_that_cannot_be_opened(tmp_path):
    """The system's words, and the file's name."""
    with pytest.raises(storage.FileError, match="no such file"):
        gpuconv.load(tmp_path / "missing.pt")
    if os.geteuid():  # the superuser may read everything
        path = tmp_path / "t.pt"
        archive(path, pickled({}))
        path.chmod(0)
        with pytest.raises(storage.FileError, match="Permission denied"):
            gpuconv.load(path)


# -- what PyTorch itself writes ------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="writes the files")


@pytest.fixture(params=[True, False], ids=["zip", "before 1.6"])
def saved(torch, request, tmp_path):
    def save(thing):
        path = tmp_path / "t.pt"
        torch.save(thing, path, _use_new_zipfile_serialization=request.param)
        return path

    return save


def test_every_type_and_layout_comes_back(torch, saved, monkeypatch):
    """All element types but floats of a byte, all layouts, parameters, and plain things beside them.

    bfloat16 without ml_dtypes is float32.
    """
    names = "float64 float32 float16 int64 int32 int16 int8 uint8 bool complex64 complex128"
    x = torch.arange(24.0).reshape(2, 3, 4)
    things = {name: torch.tensor([[0, 1, 3], [4, 5, 6]]).to(getattr(torch, name)) for name in names.split()}
    things |= {"transposed": x.mT, "cut": x[:, 1:, ::2], "scalar": x[1, 2, 3], "empty": x[:0]}
    things |= {"expanded": x[:1].expand(5, 3, 4), "parameter": torch.nn.Parameter(x), "buffer": torch.nn.Buffer(x)}
    things |= {"plain": [1, 2.5, None, "é", (True, b"ab")], "size": x.shape, "ordered": OrderedDict(a=1), "epoch": 3}
    things |= {"device": x.device}
    found = gpuconv.load(saved(things))
    assert found.keys() == things.keys()
    for name, thing in things.items():
        if isinstance(thing, torch.Tensor):
            np.testing.assert_array_equal(found[name], thing.detach().numpy(), strict=True, err_msg=name)
        else:
            assert found[name] == (str(thing) if name == "device" else thing), name
    half = torch.tensor([1.5, -2, float("inf"), float("nan"), 3e38]).to(torch.bfloat16)
    for kind in (gpuconv.bfloat16, np.float32):
        found = gpuconv.load(saved([half, half[1:3]]))
        for array, tensor in zip(found, (half, half[1:3]), strict=True):
            assert array.dtype == kind
            np.testing.assert_array_equal(array.astype(np.float32), tensor.float().numpy())
        assert found[1].base is not None
        monkeypatch.setattr("gpuconv.storage.pytorch.has_bfloat16", lambda: False)


def test_shared_memory_is_shared_again(torch, saved):
    """Tensors of one storage, tied weights among them, are views of one array."""
    x = torch.arange(6.0)
    found = gpuconv.load(saved({"all": x, "part": x[2:4]}))
    found["all"][2] = 9
    assert found["part"][0] == 9


def test_checkpoints_and_states(torch, saved):
    """A network's weights come from a state, and from a checkpoint with an optimizer's; a whole network is refused."""
    parts = torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(8, 3)
    network = torch.nn.Sequential(*parts)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    found = gpuconv.load(saved({"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7}))
    assert found["epoch"] == 7
    assert found["optimizer"]["param_groups"][0]["lr"] == 1e-3
    ours = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    ours.load_state_dict(found["model"])
    x = np.random.default_rng(0).normal(size=(2, 1, 4, 4)).astype(np.float32)
    network.eval()
    np.testing.assert_allclose(ours.predict(x), network(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(
        storage.FileError, match=r"it holds torch\.nn\.modules\..*, which is no tensor, .* state_dict\(\)"
    ):
        gpuconv.load(saved(network))


def test_damage_is_noticed_or_harmless(torch, saved):
    """Cut anywhere, or with a bit changed anywhere: one line, or something that was read; never another error."""
    path = saved({"a": torch.arange(3.0), "b": torch.ones(2).to(torch.bfloat16)})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in rng.choice(len(whole), 60)]
    for i in rng.choice(len(whole), 300):
        damaged.append(whole[:i] + bytes([whole[i] ^ (1 << int(rng.integers(8)))]) + whole[i + 1 :])
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        with contextlib.suppress(storage.FileError):
            gpuconv.load(path)
            continue
        refused += 1
    assert refused > 60
