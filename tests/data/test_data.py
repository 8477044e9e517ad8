"""Data: IDX files, the bundled digits, folders, the download, preparation, batches, pictures of digits."""

import gzip
import hashlib
import http.server
import io
import json
import socket
import sys
import tarfile
import threading

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from PIL import Image, ImageDraw

from gpuconv.data import (
    DataError,
    Dataset,
    InputTransform,
    batch_count,
    batch_indices,
    datasets,
    download,
    load_dataset,
    random_transforms,
    read_digit,
    read_idx,
    split,
    write_idx,
)

IDX_TYPES = ["u1", "i1", "i2", "i4", "f4", "f8"]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("mnist-sample")


# -- IDX -------------------------------------------------------------------------------------------------------------


@hypothesis.given(
    hypothesis.strategies.sampled_from(IDX_TYPES).flatmap(
        lambda t: hypothesis.extra.numpy.arrays(
            t, hypothesis.extra.numpy.array_shapes(max_dims=4, min_side=0, max_side=4)
        )
    ),
    hypothesis.strategies.booleans(),
)
def test_idx_round_trip(tmp_path_factory, array, packed):
    """What is written is read again, every type and shape, plain or gzip; bytes in the file are big-endian."""
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if packed else "a")
    write_idx(path, array)
    again = read_idx(path)
    np.testing.assert_array_equal(again, array)
    assert again.dtype == array.dtype
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    assert content.endswith(array.astype(array.dtype.newbyteorder(">")).tobytes())


def test_idx_of_any_damage_is_refused(tmp_path):
    """A file cut at any byte, with bytes too many, a wrong magic or an absurd size: one line that names the file."""
    good, path = tmp_path / "good", tmp_path / "bad"
    write_idx(good, np.arange(12, dtype=np.int16).reshape(3, 4))
    content = good.read_bytes()
    damaged = [content[:cut] for cut in range(len(content))]
    damaged += [content + b"x", b"\x01" + content[1:], b"\0\0\x0a" + content[3:], content[:3] + b"\xff" + content[4:]]
    # Sizes that no file can hold must not be allocated; with a zero among them they even announce no element.
    huge = b"\xff" * 4
    damaged += [content[:4] + huge * 2 + content[12:], gzip.compress(content[:4] + huge * 2 + content[12:])]
    damaged += [content[:3] + b"\x04" + bytes(4) + huge * 3, content[:3] + b"\0"]
    packed = gzip.compress(content)
    damaged += [packed[: len(packed) // 2], packed[:-3], packed[:20] + bytes([packed[20] ^ 255]) + packed[21:]]
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(DataError) as caught:
            read_idx(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="missing"):
        read_idx(tmp_path / "missing")
    with pytest.raises(TypeError, match="int64"):
        write_idx(path, np.arange(3))
    with pytest.raises(ValueError, match="1 to 32 dimensions"):
        write_idx(path, np.float32(3))


# -- data sets -------------------------------------------------------------------------------------------------------


def test_bundled_digits(digits):
    """8,000 and 2,000 digits, the classes balanced, raw bytes."""
    assert digits.train_images.shape == (8000, 28, 28)
    assert digits.test_images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(digits.test_labels), 200)
    assert digits.classes == tuple("0123456789")


def test_bundled_digits_that_are_damaged(tmp_path, monkeypatch):
    """A damaged or missing archive is one line that says what to do, not digits with errors in them."""
    content = bytearray(datasets._BUNDLED.read_bytes())
    content[len(content) // 2] ^= 1
    monkeypatch.setattr(datasets, "_BUNDLED", tmp_path / "digits.npz")
    with pytest.raises(DataError, match=r"digits\.npz.*reinstall gpuconv"):
        load_dataset("mnist-sample")
    (tmp_path / "digits.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"digits\.npz: damaged.*reinstall gpuconv"):
        load_dataset("mnist-sample")


def make_folder(folder, images=6):
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (images, 5, 4), dtype=np.uint8))
        write_idx(folder / f"{part}-labels.idx1-ubyte.gz", np.arange(images, dtype=np.uint8) % 3)


def test_folder_of_idx_files(tmp_path):
    """Usual names, plain or packed, '-' or '.'; images of any size; what is missing or does not fit is named."""
    make_folder(tmp_path)
    dataset = load_dataset(tmp_path)
    assert dataset.train_images.shape == (6, 5, 4)
    assert dataset.classes == ("0", "1", "2")
    write_idx(tmp_path / "t10k-labels.idx1-ubyte.gz", np.zeros(5, np.uint8))
    with pytest.raises(DataError, match="5 labels"):
        load_dataset(tmp_path)
    write_idx(tmp_path / "t10k-labels.idx1-ubyte.gz", np.zeros(6, np.int32))
    with pytest.raises(DataError, match=r"t10k-labels\.idx1-ubyte\.gz: holds int32"):
        load_dataset(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte").mkdir()  # as some archives unpack
    with pytest.raises(DataError, match="train-images-idx3-ubyte is missing"):
        load_dataset(tmp_path)


def test_unknown_names(tmp_path):
    """A typo gets the nearest name, a path that is no folder says so."""
    with pytest.raises(ValueError, match="did you mean 'mnist-sample'"):
        load_dataset("mnist-sampel")
    for name, near in (("cifra10", "cifar10"), ("fashion_mnist", "fashion-mnist"), ("CIFAR-100", "cifar100")):
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            load_dataset(name)
    with pytest.raises(ValueError, match="unknown data set 'imagenet'; give 'mnist-sample', 'mnist', 'fashion-mnist',"):
        load_dataset("imagenet")
    with pytest.raises(ValueError, match="unknown data set ''"):
        load_dataset("")
    with pytest.raises(ValueError, match="no folder"):
        load_dataset(str(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        load_dataset(tmp_path / "file")
    with pytest.raises(TypeError, match="int"):
        load_dataset(5)


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"train_labels": [0, 5]}, ValueError, r"train_labels\[1\] is 5; with 2 classes it must be 0 to 1"),
        ({"test_labels": [-1]}, ValueError, r"test_labels\[0\] is -1"),
        ({"test_labels": [0, 1]}, ValueError, "test_labels has 2 labels, but test_images has 1 images"),
        ({"train_labels": [0.0, 1.0]}, TypeError, "train_labels has dtype float64"),
        ({"train_images": np.zeros((2, 4, 4))}, TypeError, "train_images has dtype float64"),
        ({"train_images": np.zeros((2, 4), np.uint8)}, ValueError, r"train_images has shape \(2, 4\)"),
        ({"test_images": np.zeros((0, 4, 4), np.uint8), "test_labels": np.zeros(0, int)}, ValueError, "at least one"),
        ({"test_images": np.zeros((1, 5, 4), np.uint8)}, ValueError, "test_images are 5x4 pixels, but train_images"),
    ],
)
def test_dataset_is_checked(changed, error, says):
    """Arrays that do not fit together are refused by the name of the one that is wrong."""
    fields = {
        "train_images": np.zeros((2, 4, 4), np.uint8),
        "train_labels": np.array([0, 1], np.uint8),
        "test_images": np.zeros((1, 4, 4), np.uint8),
        "test_labels": [0],
    }
    assert Dataset("x", **fields, classes=("a", "b")).train_labels.dtype == np.int64
    with pytest.raises(error, match=says):
        Dataset("x", **{**fields, **changed}, classes=("a", "b"))


# -- download --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirrors(tmp_path, monkeypatch):
    """Two mirrors on this machine; the first misbehaves as its `mode` says. Yields (modes, requests, cache)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_TIMEOUT_S", (0.5, 0.5))
    released = threading.Event()
    make_folder(tmp_path)
    contents = {}
    for name in download._SHA256:
        (path,) = tmp_path.glob(name.replace("-idx", "?idx") + "*")
        contents[name] = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    monkeypatch.setattr(download, "_SHA256", {n: hashlib.sha256(c).hexdigest() for n, c in contents.items()})
    mode, requests = {"first": "good", "contents": contents}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            _, mirror, name = self.path.split("/")
            requests.append((mirror, name))
            body = mode.get("packed", {}).get(name) or gzip.compress(contents[name.removesuffix(".gz")])
            how = mode["first"] if mirror == "first" else mode.get("second", "good")
            if how == "404":
                self.send_error(404)
                return
            if how == "silent":
                released.wait()
                return
            bodies = {"good": body, "encoded": body, "cut": body[:-9], "wrong": body[:-9] + b"123456789"}
            bodies["another file"] = gzip.compress(b"sign in to this network")
            self.send_response(200)
            self.send_header("Content-Length", str(len(bodies[how] if how == "another file" else body)))
            if how == "encoded":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(bodies[how])

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(download, "_MIRRORS", (f"{base}/first/", f"{base}/second/"))
    yield mode, requests, tmp_path / "cache"
    released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def closed_port():
    """A port of this machine where nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but not listening: nobody else gets it, and connections are refused
        yield held.getsockname()[1]


@pytest.mark.parametrize("fault", ["404", "cut", "wrong", "another file", "silent", "refused"])
def test_second_mirror_takes_over(mirrors, fault, closed_port, monkeypatch, capfd):
    """Whatever the first mirror does wrong, the data set is complete in the end, and read from the cache next time.

    The first is not asked again for the other files, and nothing but these is left in the cache or said on stderr.
    """
    mode, requests, cache = mirrors
    mode["first"] = fault
    if fault == "refused":
        monkeypatch.setattr(download, "_MIRRORS", (f"http://127.0.0.1:{closed_port}/first/", download._MIRRORS[1]))
    dataset = load_dataset("mnist", cache_dir=cache)
    assert dataset.train_images.shape == (6, 5, 4)
    assert len(dataset.classes) == 10
    assert [mirror for mirror, _ in requests] == ["first"] * (fault != "refused") + ["second"] * 4
    served = len(requests)
    load_dataset("mnist", cache_dir=cache)
    assert len(requests) == served
    assert sorted(p.name for p in (cache / "mnist").iterdir()) == sorted(download._SHA256)
    assert capfd.readouterr() == ("", "")


def test_mirror_that_unpacks_on_the_way(mirrors, monkeypatch):
    """A server that declares the gzip as transfer encoding is as good as any; GPUCONV_DATA places the cache."""
    mode, requests, cache = mirrors
    mode["first"] = "encoded"
    monkeypatch.setenv("GPUCONV_DATA", str(cache))
    assert load_dataset("mnist").test_images.shape == (6, 5, 4)
    assert [mirror for mirror, _ in requests] == ["first"] * 4
    assert (cache / "mnist").is_dir()


def test_sets_whose_files_are_kept_packed(mirrors, monkeypatch):
    """Fashion-MNIST and CIFAR are kept as they are published, checked against the publisher's md5, fetched once."""
    mode, requests, cache = mirrors
    monkeypatch.setattr(download, "_REMOTES", {**download._REMOTES})
    remote = download._REMOTES["fashion-mnist"]
    packed = {name: gzip.compress(mode["contents"][name.removesuffix(".gz")], mtime=0) for name in remote.md5}
    archive = io.BytesIO()
    batches = cifar_files(10)
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    packed["cifar-10-binary.tar.gz"] = archive.getvalue()
    mode["packed"] = packed
    for name, files in (("fashion-mnist", list(remote.md5)), ("cifar10", ["cifar-10-binary.tar.gz"])):
        md5 = {file: hashlib.md5(packed[file], usedforsecurity=False).hexdigest() for file in files}
        monkeypatch.setitem(download._REMOTES, name, download._Remote(download._MIRRORS, md5))
    clothes, cifar = (load_dataset(name, cache_dir=cache) for name in ("fashion-mnist", "cifar10"))
    assert clothes.train_images.shape == (6, 5, 4)
    assert clothes.classes[9] == "Ankle boot"
    assert cifar.train_images.shape == (15, 3, 32, 32)
    assert cifar.classes == ("one", "two", "three")
    served = len(requests)
    mode["first"] = "404"
    load_dataset("cifar10", cache_dir=cache)
    assert len(requests) == served == 5
    kept = cache / "cifar10" / "cifar-10-binary.tar.gz"
    kept.write_bytes(kept.read_bytes()[:-1])
    load_dataset("cifar10", cache_dir=cache)
    assert requests[-1] == ("second", "cifar-10-binary.tar.gz")


def cifar_files(kind):
    """The binary files of CIFAR, three records in each: the names of the classes, and pixels that count."""
    rng = np.random.default_rng(kind)

    def records(first):
        pixels = rng.integers(0, 256, (3, 3072), dtype=np.uint8)
        pixels[:, 0] = first + np.arange(3)
        labels = np.array([[2], [1], [0]] if kind == 10 else [[9, 2], [9, 1], [9, 0]], np.uint8)
        return np.concatenate([labels, pixels], axis=1).tobytes()

    names = b"one\ntwo\nthree\n\n"
    if kind == 100:
        return {"train.bin": records(0), "test.bin": records(9), "fine_label_names.txt": names}
    files = {f"data_batch_{i + 1}.bin": records(3 * i) for i in range(5)}
    return {**files, "test_batch.bin": records(100), "batches.meta.txt": names}


@pytest.mark.parametrize("kind", [10, 100])
def test_folder_of_cifar(kind, tmp_path):
    """Colours plane by plane, in the order of the files; CIFAR-100's second label byte; what does not fit is named."""
    files = cifar_files(kind)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    dataset = load_dataset(tmp_path)
    train = "data_batch_2.bin" if kind == 10 else "train.bin"
    number, length = (3, 3073) if kind == 10 else (0, 3074)
    assert (dataset.channels, dataset.size, dataset.classes) == (3, (32, 32), ("one", "two", "three"))
    np.testing.assert_array_equal(dataset.train_images[:, 0, 0, 0], np.arange(15 if kind == 10 else 3))
    np.testing.assert_array_equal(dataset.train_labels[:3], [2, 1, 0])
    record = files[train][:length]
    assert dataset.train_images[number].tobytes() == record[-3072:]
    (tmp_path / train).write_bytes(files[train][:-1])
    with pytest.raises(DataError, match=f"{train}: .*no multiple of {length:,}"):
        load_dataset(tmp_path)
    (tmp_path / train).write_bytes(b"\x07" * length)
    with pytest.raises(DataError, match=f"{train}: holds the label 7, but 3 classes"):
        load_dataset(tmp_path)
    (tmp_path / train).unlink()
    with pytest.raises(DataError, match=f"{train}: cannot be read"):
        load_dataset(tmp_path)


def test_damaged_cache_is_fetched_anew_and_no_mirror_is_one_line(mirrors):
    """A cached file that was changed is replaced; when no mirror works, one line names the hosts and the way out."""
    mode, _, cache = mirrors
    load_dataset("mnist", cache_dir=cache)
    labels = cache / "mnist" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    load_dataset("mnist", cache_dir=cache)
    labels.unlink()
    mode.update(first="404", second="404")
    with pytest.raises(
        ConnectionError, match=r"127\.0\.0\.1:\d+: HTTP 404.*'mnist-sample' comes with gpuconv"
    ) as caught:
        load_dataset("mnist", cache_dir=cache)
    assert "\n" not in str(caught.value)


def test_no_network(monkeypatch, tmp_path, closed_port):
    """Refused connections end in one line that names every host tried; a name that cannot be resolved likewise."""
    monkeypatch.setenv("NO_PROXY", "*")
    hosts = (f"127.0.0.1:{closed_port}", "mirror.invalid")
    monkeypatch.setattr(download, "_MIRRORS", tuple(f"http://{host}/" for host in hosts))
    with pytest.raises(ConnectionError) as caught:
        load_dataset("mnist", cache_dir=tmp_path)
    for host in hosts:
        assert f"{host}: no connection" in str(caught.value)
    assert caught.value.__context__ is None  # no chain of the client's own errors behind it
    assert not any((tmp_path / "mnist").iterdir())


def test_cache_that_cannot_be_written(mirrors):
    """The fault is laid at the cache's door, not at the mirrors'."""
    *_, cache = mirrors
    cache.touch()
    with pytest.raises(OSError, match=f"cannot write to {cache}"):
        load_dataset("mnist", cache_dir=cache)


def test_extras_that_are_not_installed(monkeypatch, tmp_path):
    """Without pooch or Pillow, what needs them says what to install; the bundled digits need neither."""
    for module in ("pooch", "PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, module, None)
    for use in (lambda: load_dataset("mnist", cache_dir=tmp_path), lambda: read_digit(tmp_path / "a.png")):
        with pytest.raises(ImportError, match=r"pip install 'gpuconv\[cli\]'"):
            use()
    load_dataset("mnist-sample")


# -- preparation and batches -----------------------------------------------------------------------------------------


def test_input_transform(digits):
    """Padded with black to 32x32, then mean 0 and deviation 1; survives JSON; constant images do not divide by zero."""
    transform = InputTransform.fit(digits.train_images)
    prepared = transform(digits.train_images)
    assert prepared.shape == (8000, 1, 32, 32)
    assert prepared.dtype == np.float32
    assert abs(prepared.mean(dtype=np.float64)) < 1e-6
    assert prepared.std(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(prepared[:, :, :2], np.float32(-transform.mean / transform.std))
    assert InputTransform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform
    np.testing.assert_array_equal(transform(digits.train_images[3]), prepared[3:4])
    assert transform(digits.train_images[:0]).shape == (0, 1, 32, 32)
    assert np.isfinite(InputTransform.fit(np.zeros((2, 4, 4), np.uint8))(np.ones((1, 4, 4), np.uint8))).all()
    with pytest.raises(ValueError, match="larger than size"):
        transform(np.zeros((1, 33, 10), np.uint8))
    with pytest.raises(TypeError, match="uint8"):
        transform(np.zeros((1, 28, 28)))
    with pytest.raises(ValueError, match="at least one image"):
        InputTransform.fit(digits.train_images[:0])
    for wrong in ({"std": 0.0}, {"std": float("nan")}, {"mean": float("inf")}, {"size": [0, 32]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            InputTransform.from_dict({**transform.to_dict(), **wrong})
    with pytest.raises(ValueError, match="keys are"):
        InputTransform.from_dict({"mean": 0.0})


def test_input_transform_uneven_padding():
    """An odd row goes to the bottom, an odd column to the right; the figures are those of the definition."""
    image = np.array([[51, 255]], np.uint8)
    np.testing.assert_array_equal(
        InputTransform((2, 5), 0.5, 0.25)(image)[0, 0],
        np.float32([[-2, (0.2 - 0.5) / 0.25, 2, -2, -2], [-2] * 5]),
    )
    fitted = InputTransform.fit(image, (2, 5))
    padded = np.array([0.2, 1] + [0] * 8)
    np.testing.assert_allclose([fitted.mean, fitted.std], [padded.mean(), padded.std()], rtol=1e-15)


def test_batches_cover_an_epoch_once_and_resume_anywhere():
    """Each sample comes once; the order depends on seed and epoch alone; from any batch on it goes on the same."""
    batches = list(batch_indices(103, 10, seed=1, epoch=2))
    assert [len(b) for b in batches] == [10] * 10 + [3]
    assert sorted(np.concatenate(batches)) == list(range(103))
    for start in range(12):
        for ours, theirs in zip(batch_indices(103, 10, seed=1, epoch=2, start=start), batches[start:], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        assert not np.array_equal(np.concatenate(list(batch_indices(103, 10, **other))), np.concatenate(batches))
    assert batch_count(103, 10) == 11
    assert (
        batch_count(103, 10, drop_last=True) == 10 == len(list(batch_indices(103, 10, seed=1, epoch=2, drop_last=True)))
    )
    np.testing.assert_array_equal(np.concatenate(list(batch_indices(7, 3, seed=1, epoch=2, shuffle=False))), range(7))
    assert list(batch_indices(0, 10, seed=1, epoch=0)) == []
    train, validation = split(103, 0.1, 1)
    assert len(validation) == 10
    assert sorted(np.concatenate([train, validation])) == list(range(103))
    for wrong in ({"count": -1}, {"batch_size": 0}, {"start": 12}, {"seed": -1}):
        with pytest.raises(ValueError, match="it must be"):
            batch_indices(**{"count": 103, "batch_size": 10, "seed": 1, "epoch": 0, **wrong})
    assert [len(part) for part in split(2, 0.01, 0)] == [1, 1]
    assert [len(part) for part in split(3, 0.0, 0)] == [3, 0]
    for count, fraction in ((1, 0.5), (10, 1.0), (10, float("nan"))):
        with pytest.raises(ValueError, match=r"count is 1|fraction is"):
            split(count, fraction, 0)


def test_order_never_changes():
    """A training resumed after an upgrade of NumPy, or on another machine, sees the images in the same order."""
    assert next(batch_indices(10, 10, seed=0, epoch=0)).tolist() == [9, 6, 0, 8, 7, 2, 5, 3, 1, 4]
    assert next(batch_indices(10, 10, seed=7, epoch=3)).tolist() == [6, 8, 1, 9, 0, 2, 3, 4, 5, 7]
    assert split(10, 0.3, 7)[1].tolist() == [1, 4, 6]


def test_random_transforms():
    """Within what is promised, to its ends; a function of seed, epoch and the image's number; never another one."""
    transforms = random_transforms(4000, seed=1, epoch=2)
    assert transforms.shape == (4000, 2, 3)
    assert transforms.dtype == np.float32
    turn, shift = transforms[:, :, :2].astype(np.float64), transforms[:, :, 2].astype(np.float64)
    # The inverse of a rotation and a scaling: from the old image to the new one.
    forward = np.linalg.inv(turn)
    scale, angle = np.sqrt(np.linalg.det(forward)), np.degrees(np.arctan2(forward[:, 1, 0], forward[:, 0, 0]))
    np.testing.assert_allclose(forward @ forward.transpose(0, 2, 1), scale[:, None, None] ** 2 * np.eye(2), atol=1e-6)
    moved = -(forward @ shift[:, :, None])[:, :, 0]  # where the middle of the image went
    for values, middle, most in ((angle, 0, 15), (scale, 1, 0.15), (moved[:, 0], 0, 2), (moved[:, 1], 0, 2)):
        parts = (values - middle) / most
        assert np.abs(parts).max() <= 1 + 1e-5
        # Uniform from -1 to 1: as many in each tenth, six standard deviations aside.
        assert np.abs(np.histogram(parts, 10, (-1.0001, 1.0001))[0] - 400).max() < 6 * 19
    assert np.abs(np.corrcoef([angle, scale, *moved.T]) - np.eye(4)).max() < 0.1
    np.testing.assert_array_equal(random_transforms(10, seed=1, epoch=2), transforms[:10])
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        assert not np.isclose(random_transforms(10, **other), transforms[:10]).any(axis=(1, 2)).all()
    expected = [[0.95790952, 0.03393196, 0.07083987], [-0.03393196, 0.95790952, -0.02049973]]
    np.testing.assert_allclose(random_transforms(1, seed=7, epoch=3)[0], expected, rtol=1e-5)
    assert random_transforms(0, seed=0, epoch=0).shape == (0, 2, 3)
    for wrong in ("count", "seed", "epoch"):
        with pytest.raises(ValueError, match=f"{wrong} is -1; it must be at least 0"):
            random_transforms(**{"count": 1, "seed": 0, "epoch": 0, wrong: -1})


# -- pictures --------------------------------------------------------------------------------------------------------


def saved(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def variants(digit):
    plain = Image.fromarray(digit)
    large = plain.resize((280, 280), Image.Resampling.BICUBIC)
    framed = Image.new("L", (640, 480), 235)
    framed.paste(Image.eval(large, lambda v: 235 - v * 200 // 255), (200, 90))
    transparent = Image.new("RGBA", (280, 280), (0, 0, 0, 0))
    transparent.paste((20, 20, 90, 255), (0, 0), large)
    yield "as it is", saved(plain)
    yield "inverted", saved(Image.eval(plain, lambda v: 255 - v))
    yield "large", saved(large)
    yield "on paper", saved(framed)
    yield "JPEG in colour", saved(framed.convert("RGB"), "JPEG", quality=80)
    yield "transparent", saved(transparent)
    yield "palette", saved(framed.convert("P"))
    yield "16 bits", saved(Image.fromarray(np.asarray(large).astype(np.uint16) * 257))
    yield "1 bit", saved(large.point(lambda v: 255 * (v > 100)).convert("1"))


def test_a_digit_is_recognisable_however_it_is_saved(digits):
    """In every mode, size and contrast the picture comes out as the digit that it shows: correlation above 0.8."""
    for digit in digits.test_images[:10]:
        for name, file in variants(digit):
            read = read_digit(file)
            assert read.shape == (28, 28)
            assert read.dtype == np.uint8
            assert np.corrcoef(read.ravel(), digit.ravel())[0, 1] > 0.8, name


def test_a_digit_in_the_form_of_mnist_keeps_its_pixels(digits):
    """As it is, inverted or enlarged ten times: the very pixels. A digit elsewhere in its square is centred."""
    for digit in digits.test_images[:40]:
        large = Image.fromarray(digit).resize((280, 280), Image.Resampling.NEAREST)
        for image in (Image.fromarray(digit), Image.fromarray(255 - digit), large, large.convert("RGB")):
            np.testing.assert_array_equal(read_digit(saved(image)), digit)
        moved = np.roll(np.pad(digit, 6), (6, -6), axis=(0, 1))
        assert resembles(read_digit(saved(Image.fromarray(moved))), digit) > 0.9


def resembles(read, digit):
    """Greatest correlation within a shift of one pixel, which the rounding of the centre of mass can make."""
    return max(
        np.corrcoef(np.roll(read, (dy, dx), axis=(0, 1)).ravel(), digit.ravel())[0, 1]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    )


def on_paper(digit, rng, height=450, width=600, side=200):
    """A digit in dark ink somewhere on lit paper: brightness falls off to one corner, with noise. float64, 0 to 255."""
    rows, columns = np.mgrid[0:height, 0:width]
    paper = 215 - 55 * (rows / height) ** 2 - 40 * (columns / width)
    ink = np.zeros((height, width))
    top, left = rng.integers(15, height - side - 15), rng.integers(15, width - side - 15)
    large = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    ink[top : top + side, left : left + side] = np.asarray(large) / 255
    return paper * (1 - ink) + 45 * ink + rng.normal(0, 5, paper.shape)


def hard_pictures(digit, rng):
    rows, columns = np.flatnonzero(digit.any(axis=1)), np.flatnonzero(digit.any(axis=0))
    cropped = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    yield "cropped to its box", cropped
    yield "cropped, dark on light", 255 - cropped
    yield "faint", 120 + digit // 8
    yield "in a corner of a wide picture", np.pad(255 - digit, ((2, 60), (3, 150)), constant_values=255)
    photo = on_paper(digit, rng)
    yield "photograph", photo
    yield "chalk on a blackboard", 255 - photo
    lamp = 1.1 - 0.8 * np.hypot(*(np.mgrid[0:450, 0:600] / np.array([450, 600])[:, None, None] - 0.4))
    yield "in the light of a lamp", photo * lamp
    desk = rng.normal(70, 5, (600, 800))
    desk[60:510, 90:690] = photo
    yield "sheet on a desk", desk
    yield "sheet that runs out of the picture", desk[:480, :640]


@pytest.mark.slow
def test_a_digit_is_found_in_hard_pictures(digits):
    """Cropped closely, faint, in a corner, unevenly lit, on a sheet that lies on a desk: it is found."""
    rng = np.random.default_rng(0)
    for digit in digits.test_images[:5]:
        for name, values in hard_pictures(digit, rng):
            image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
            assert resembles(read_digit(saved(image)), digit) > 0.8, name


@pytest.mark.parametrize("width", [1, 3, 8, 30])
def test_strokes_of_any_width_are_seen(width):
    """A line of one pixel in a large drawing comes out as wide as a pen's, about 2 of 28 pixels, not as a shadow."""
    image = Image.new("1", (500, 400), 1)
    ImageDraw.Draw(image).line([(150, 60), (300, 60), (200, 330)], fill=0, width=width)
    read = read_digit(saved(image)).astype(float) / 255
    assert 2 * 30 * 0.6 < read.sum() < 5 * 30
    rows = np.flatnonzero(read.max(axis=1) > 0.5)
    assert len(rows) == np.ptp(rows) + 1 == 20  # no row has a gap


def test_orientation_transparency_and_forced_polarity(digits):
    """EXIF turns the picture; transparency contrasts with what is drawn; `invert` overrules the guess."""
    digit = digits.test_images[0]
    upright = Image.fromarray(digit)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees counterclockwise
    turned = saved(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    np.testing.assert_array_equal(read_digit(turned), digit)
    for ink in (0, 255):
        drawn = Image.new("LA", upright.size, (ink, 0))
        drawn.putalpha(upright)
        np.testing.assert_array_equal(read_digit(saved(drawn)), digit)
    np.testing.assert_array_equal(read_digit(saved(upright), invert=False), digit)
    with pytest.raises(DataError, match="one digit was expected"):
        read_digit(saved(upright), invert=True)  # what is dark on light is the outside, and the inside of a loop


def test_a_photograph_gives_an_answer():
    """A large picture with a gradient, texture and noise is read without an error or a warning."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:1500, 0:2000]
    scene = 90 + rows / 20 + 30 * np.sin(columns / 70) + rng.normal(0, 12, rows.shape)
    photo = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8)).convert("RGB")
    assert read_digit(saved(photo, "JPEG")).shape == (28, 28)


def test_what_is_no_picture_is_named(tmp_path):
    """Missing, a folder, empty, text, cut off, of one colour: each is one line that begins with the file's name."""
    good = saved(Image.fromarray(np.arange(10000, dtype=np.uint8).reshape(100, 100))).getvalue()
    files = {"empty.png": b"", "text.png": b"hello", "cut.png": good[: len(good) // 2]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Image.new("L", (50, 50), 128).save(tmp_path / "grey.png")
    Image.new("RGBA", (50, 50), (9, 9, 9, 0)).save(tmp_path / "transparent.png")
    for name in [*files, "grey.png", "transparent.png", "missing.png", "."]:
        with pytest.raises(DataError) as caught:
            read_digit(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="ndarray"):
        read_digit(np.zeros((28, 28)))


def test_picture_of_too_many_pixels(monkeypatch):
    """Beyond Pillow's limit a picture is refused before it is decoded, without a warning; below it is read."""
    image = Image.new("L", (100, 100))
    image.paste(255, (40, 30, 60, 70))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    read_digit(saved(image))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)
    with pytest.raises(DataError, match="more than 9999 pixels"):
        read_digit(saved(image))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"])
def test_damaged_pictures_never_escape(digits, format):
    """A picture with bytes changed or cut off is read, or refused by a DataError of one line: nothing else."""
    content = saved(Image.fromarray(digits.test_images[1]), format).getvalue()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content[: rng.integers(1, len(content) + 1)])
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        try:
            read = read_digit(io.BytesIO(bytes(damaged)))
        except DataError as error:
            message = str(error)
        else:
            message = ""
            assert read.shape == (28, 28)
        assert "\n" not in message


@hypothesis.given(
    hypothesis.extra.numpy.arrays(np.uint8, hypothesis.extra.numpy.array_shapes(min_dims=2, max_dims=2, max_side=12)),
    hypothesis.strategies.sampled_from([True, False, "auto"]),
)
def test_every_small_picture_gets_an_answer(pixels, invert):
    """Whatever the pixels, down to a single one: a digit with ink in it, or the word that there is none."""
    try:
        read = read_digit(saved(Image.fromarray(pixels)), invert=invert)
    except DataError as error:
        outcome = str(error)
    else:
        assert read.shape == (28, 28)
        outcome = "a digit" if read.any() else "an empty picture"
    assert outcome == "a digit" or "no digit found" in outcome or "one digit was expected" in outcome
