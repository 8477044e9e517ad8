"""Data: IDX files, the bundled digits, folders, the download, preparation, batches, pictures of digits."""

import gzip
import hashlib
import http.server
import io
import threading

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from PIL import Image

from gpuconv.data import (
    DataError,
    Dataset,
    InputTransform,
    batch_indices,
    download,
    load_dataset,
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
    damaged += [content + b"x", b"\x01" + content[1:], content[:4] + b"\xff" * 8 + content[12:]]
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


# -- data sets -------------------------------------------------------------------------------------------------------


def test_bundled_digits(digits):
    """8,000 and 2,000 digits, the classes balanced, raw bytes."""
    assert digits.train_images.shape == (8000, 28, 28)
    assert digits.test_images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(digits.test_labels), 200)
    assert digits.classes == tuple("0123456789")


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
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match="train-images"):
        load_dataset(tmp_path)


def test_unknown_names(tmp_path):
    """A typo gets the nearest name, a path that is no folder says so."""
    with pytest.raises(ValueError, match="did you mean 'mnist-sample'"):
        load_dataset("mnist-sampel")
    with pytest.raises(ValueError, match="no folder"):
        load_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="labels"):
        Dataset("x", np.zeros((2, 4, 4), np.uint8), [0, 5], np.zeros((1, 4, 4), np.uint8), [0], ("a", "b"))


# -- download --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirrors(tmp_path, monkeypatch):
    """Two mirrors on this machine; the first misbehaves as its `mode` says. Yields (modes, requests, cache)."""
    make_folder(tmp_path)
    contents = {}
    for name in download._SHA256:
        (path,) = tmp_path.glob(name.replace("-idx", "?idx") + "*")
        contents[name] = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    monkeypatch.setattr(download, "_SHA256", {n: hashlib.sha256(c).hexdigest() for n, c in contents.items()})
    mode, requests = {"first": "good"}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            _, mirror, name = self.path.split("/")
            requests.append((mirror, name))
            body = gzip.compress(contents[name.removesuffix(".gz")])
            how = mode["first"] if mirror == "first" else mode.get("second", "good")
            if how == "404":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write({"good": body, "cut": body[:-9], "wrong": body[:-9] + b"123456789"}[how])

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(download, "_MIRRORS", (f"{base}/first/", f"{base}/second/"))
    yield mode, requests, tmp_path / "cache"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("fault", ["404", "cut", "wrong"])
def test_second_mirror_takes_over(mirrors, fault):
    """Whatever the first mirror does wrong, the data set is complete in the end, and read from the cache next time."""
    mode, requests, cache = mirrors
    mode["first"] = fault
    dataset = load_dataset("mnist", cache_dir=cache)
    assert dataset.train_images.shape == (6, 5, 4)
    assert len(dataset.classes) == 10
    served = len(requests)
    load_dataset("mnist", cache_dir=cache)
    assert len(requests) == served
    assert sorted(p.name for p in (cache / "mnist").iterdir()) == sorted(download._SHA256)


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


def test_no_network(monkeypatch, tmp_path):
    """A refused connection ends quickly in one line."""
    monkeypatch.setattr(download, "_MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9: no connection"):
        load_dataset("mnist", cache_dir=tmp_path)


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
    assert InputTransform.from_dict(transform.to_dict()) == transform
    assert np.isfinite(InputTransform.fit(np.zeros((2, 4, 4), np.uint8))(np.ones((1, 4, 4), np.uint8))).all()
    with pytest.raises(ValueError, match="larger than size"):
        transform(np.zeros((1, 33, 10), np.uint8))
    with pytest.raises(TypeError, match="uint8"):
        transform(np.zeros((1, 28, 28)))


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
    train, validation = split(103, 0.1, 1)
    assert len(validation) == 10
    assert sorted(np.concatenate([train, validation])) == list(range(103))
    for wrong in ({"count": -1}, {"batch_size": 0}, {"start": 12}, {"seed": -1}):
        with pytest.raises(ValueError, match="it must be"):
            batch_indices(**{"count": 103, "batch_size": 10, "seed": 1, "epoch": 0, **wrong})


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


def test_a_photograph_gives_an_answer():
    """A large picture with a gradient, texture and noise is read without an error or a warning."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:1500, 0:2000]
    scene = 90 + rows / 20 + 30 * np.sin(columns / 70) + rng.normal(0, 12, rows.shape)
    photo = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8)).convert("RGB")
    assert read_digit(saved(photo, "JPEG")).shape == (28, 28)


def test_what_is_no_picture_is_named(tmp_path):
    """Missing, a folder, empty, text, cut off, of one colour: each is one line with the file's name."""
    good = saved(Image.fromarray(np.arange(10000, dtype=np.uint8).reshape(100, 100))).getvalue()
    files = {"empty.png": b"", "text.png": b"hello", "cut.png": good[: len(good) // 2]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Image.new("L", (50, 50), 128).save(tmp_path / "grey.png")
    for name in [*files, "grey.png", "missing.png", "."]:
        with pytest.raises((DataError, OSError)) as caught:
            read_digit(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)
