"""Data sets from files: IDX, MNIST, Fashion-MNIST, the digits that ship along, and where files come from."""

import builtins
import dataclasses
import gzip
import hashlib
import http.server
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from minigrad import data
from minigrad.data import MNIST, DataError, DataLoader, Digits, FashionMNIST, Subset, read_idx
from minigrad.data.download import RemoteFiles, cache_folder

SIBLING = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def real_files():
    """The folder with the real data sets: MINIGRAD_DATA, or shared/data beside the checkout."""
    folder = os.environ.get("MINIGRAD_DATA") or (SIBLING if SIBLING.is_dir() else None)
    if folder is None:
        pytest.skip("no real data: set MINIGRAD_DATA to a folder with mnist/ and fashion-mnist/")
    return Path(folder)


@pytest.fixture
def no_environment(monkeypatch, tmp_path):
    """No MINIGRAD_DATA, and an empty cache. Returns the cache folder."""
    monkeypatch.delenv("MINIGRAD_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "minigrad"


def idx_bytes(array, code=0x08):
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def gzipped(content):
    """`content` compressed, without the hour: the same bytes, so the same test names, in every process."""
    return gzip.compress(content, mtime=0)


def write_idx(path, array, code=0x08):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzipped(idx_bytes(array, code)))
    return path


def small_mnist(root, count=20, labels=None, images=None):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 28, 28), np.uint8) if images is None else images
    labels = rng.integers(0, 10, count, np.uint8) if labels is None else labels
    write_idx(root / "mnist" / "train-images-idx3-ubyte.gz", images)
    write_idx(root / "mnist" / "train-labels-idx1-ubyte.gz", labels)
    return images, labels


# IDX files


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")],
)
@pytest.mark.parametrize("shape", [(3, 4, 5), (7,), (0, 28, 28), ()])
def test_idx_round_trip(tmp_path, code, dtype, shape):
    array = np.random.default_rng(0).normal(0, 50, shape).astype(dtype)
    read = read_idx(write_idx(tmp_path / "a.gz", array, code), dtype=dtype, ndim=len(shape))
    assert read.dtype == np.dtype(dtype) and read.dtype.isnative and read.flags.writeable
    np.testing.assert_array_equal(read, array)


IMAGES = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
GOOD = gzipped(idx_bytes(IMAGES))


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a gzip file"),
        (b"<html>404</html>", "not a gzip file"),
        (idx_bytes(IMAGES), "not a gzip file"),
        (GOOD[:1], "not a gzip file"),
        (GOOD[:5], "truncated or damaged"),
        (GOOD[: len(GOOD) // 2], "truncated or damaged"),
        (GOOD[:-1], "truncated or damaged"),
        (flipped(GOOD, len(GOOD) - 6), "truncated or damaged"),  # the checksum
        (flipped(GOOD, len(GOOD) // 2), "truncated or damaged"),
        (GOOD + b"tail", "truncated or damaged"),
        (gzipped(b""), "not an IDX file.*found nothing"),
        (gzipped(b"\x00\x00"), "not an IDX file.*found 00 00"),
        (gzipped(b"\x89PNG" + bytes(100)), "not an IDX file.*found 89 50 4e 47"),
        (gzipped(b"\x00\x00\x07\x01" + bytes(100)), "not an IDX file.*00 00 07 01"),
        (
            gzipped(b"\x00\x00\x08\x03\x00\x00"),
            "truncated IDX header: 3 dimensions take 16 bytes, found 6",
        ),
        (
            gzipped(idx_bytes(IMAGES)[:-1]),
            r"announces shape \(2, 28, 28\), which is 1568 bytes.*but 1567",
        ),
        (gzipped(idx_bytes(IMAGES) + b"x"), "but 1569 bytes follow"),
        (gzipped(b"\x00\x00\x08\x03" + b"\xff" * 12), "but 0 bytes follow"),
    ],
)
def test_a_broken_idx_file_is_named(tmp_path, content, message):
    path = tmp_path / "broken.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_idx(path)
    assert str(path) in str(raised.value)


def test_an_idx_file_of_another_kind(tmp_path):
    path = write_idx(tmp_path / "a.gz", np.zeros((2, 3), np.int32), 0x0C)
    with pytest.raises(DataError, match=r"a\.gz: expected uint8 elements, the file holds int32"):
        read_idx(path, dtype=np.uint8)
    with pytest.raises(DataError, match=r"expected an array of 3 dimension\(s\), the file holds 2"):
        read_idx(path, ndim=3)
    with pytest.raises(FileNotFoundError, match=r"missing\.gz"):
        read_idx(tmp_path / "missing.gz")


# MNIST and Fashion-MNIST


def test_samples_of_mnist(tmp_path):
    images, labels = small_mnist(tmp_path)
    dataset = MNIST(tmp_path, train=True, download=False)
    assert len(dataset) == 20 and repr(dataset) == "MNIST(20 images of 28x28, 10 classes)"
    for index in (0, 7, -1, np.int64(3)):
        image, label = dataset[index]
        assert image.shape == (1, 28, 28) and image.numpy().dtype == np.float32
        np.testing.assert_array_equal(image.numpy()[0], images[index] / np.float32(255))
        assert type(label) is int and label == labels[index]
    with pytest.raises(IndexError):
        dataset[20]
    with pytest.raises(TypeError):
        dataset["0"]
    assert dataset.data.numpy().dtype == np.uint8 and dataset.targets.numpy().dtype == np.int64
    np.testing.assert_array_equal(dataset.data.numpy(), images)


def test_all_of_mnist_as_tensors(tmp_path):
    images, labels = small_mnist(tmp_path)
    everything, targets = MNIST(tmp_path).as_tensors()
    assert everything.shape == (20, 1, 28, 28) and everything.numpy().dtype == np.float32
    np.testing.assert_array_equal(everything.numpy()[:, 0], images / np.float32(255))
    np.testing.assert_array_equal(targets.numpy(), labels)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_equal_stacked_samples(tmp_path, num_workers):
    small_mnist(tmp_path)
    dataset = MNIST(tmp_path)
    fast = DataLoader(dataset, 6, shuffle=True, seed=0, num_workers=num_workers)
    slow = DataLoader(dataset, 6, shuffle=True, seed=0, collate_fn=lambda s: data.default_collate(s))
    subset = DataLoader(Subset(dataset, range(20)), 6, shuffle=True, seed=0)
    for batch, expected, other in zip(fast, slow, subset, strict=True):
        for a, b, c in zip(batch, expected, other, strict=True):
            assert a.shape == b.shape and a.numpy().dtype == b.numpy().dtype
            np.testing.assert_array_equal(a.numpy(), b.numpy())
            np.testing.assert_array_equal(a.numpy(), c.numpy())


def test_transforms_reach_samples_and_batches(tmp_path):
    _, labels = small_mnist(tmp_path)
    dataset = MNIST(tmp_path, transform=lambda image: image.numpy() - 0.5, target_transform=lambda n: n % 2)
    image, label = dataset[4]
    assert image.min() < 0 and label == labels[4] % 2
    images, parities = next(iter(DataLoader(dataset, 20)))
    assert images.numpy().min() < 0
    np.testing.assert_array_equal(parities.numpy(), labels % 2)


def test_an_empty_mnist(tmp_path):
    small_mnist(tmp_path, 0)
    dataset = MNIST(tmp_path)
    assert len(dataset) == 0 and list(DataLoader(dataset, 4)) == []


def test_images_and_labels_must_belong_together(tmp_path):
    small_mnist(tmp_path, labels=np.zeros(19, np.uint8))
    with pytest.raises(
        DataError, match=r"images-idx3-ubyte\.gz holds 20 images, but .*ubyte\.gz holds 19 labels"
    ):
        MNIST(tmp_path)
    small_mnist(tmp_path, labels=np.full(20, 10, np.uint8))
    with pytest.raises(DataError, match="expected labels from 0 to 9, found 10"):
        MNIST(tmp_path)
    small_mnist(tmp_path, images=np.zeros((20, 32, 32), np.uint8))
    with pytest.raises(
        DataError, match=r"expected images of 28x28 pixels, the file's shape is \(20, 32, 32\)"
    ):
        MNIST(tmp_path)
    # The two files swapped.
    write_idx(tmp_path / "mnist" / "train-images-idx3-ubyte.gz", np.zeros(20, np.uint8))
    with pytest.raises(DataError, match=r"images-idx3-ubyte\.gz: expected an array of 3 dimension"):
        MNIST(tmp_path)


@pytest.mark.parametrize(("train", "count"), [(True, 60000), (False, 10000)])
@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_the_real_files(real_files, kind, train, count):
    dataset = kind(real_files, train=train, download=False)
    assert dataset.data.shape == (count, 28, 28)
    if kind is FashionMNIST:
        assert np.bincount(dataset.targets.numpy()).tolist() == [count // 10] * 10
    else:
        first = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4] if train else [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
        assert dataset.targets.numpy()[:10].tolist() == first
        if train:
            # The mean and the deviation that are quoted everywhere.
            share = np.bincount(dataset.data.numpy().ravel(), minlength=256) / dataset.data.numpy().size
            value = np.arange(256) / 255
            mean = share @ value
            assert round(mean, 4) == 0.1307 and round(np.sqrt(share @ (value - mean) ** 2), 4) == 0.3081


# Where files come from


def test_minigrad_data_names_the_folder(tmp_path, monkeypatch):
    small_mnist(tmp_path)
    monkeypatch.setenv("MINIGRAD_DATA", str(tmp_path))
    assert len(MNIST()) == 20
    with pytest.raises(FileNotFoundError) as raised:
        MNIST(train=False)
    message = str(raised.value)
    assert str(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz") in message
    assert "MINIGRAD_DATA is set" in message and "unset MINIGRAD_DATA" in message and "https://" in message
    with pytest.raises(FileNotFoundError, match="fashion-mnist"):
        FashionMNIST()


def test_root_comes_before_minigrad_data(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGRAD_DATA", str(tmp_path / "nowhere"))
    small_mnist(tmp_path)
    assert len(MNIST(tmp_path)) == 20


def test_without_download_a_missing_file_is_an_error(no_environment):
    with pytest.raises(FileNotFoundError, match="pass download=True") as raised:
        MNIST(download=False)
    assert str(no_environment / "mnist" / "train-images-idx3-ubyte.gz") in str(raised.value)
    assert cache_folder() == no_environment


def test_downloads_are_checked_kept_and_tried_on_every_mirror(no_environment, monkeypatch):
    pooch = pytest.importorskip("pooch")
    asked = []

    def retrieve(url, known_hash, fname, path, progressbar):
        asked.append(url)
        if "ossci" in url:
            raise OSError("connection refused")
        kind, digest = known_hash.split(":")
        assert kind == "sha256" and len(digest) == 64
        small = np.zeros((3, 28, 28), np.uint8) if "images" in fname else np.zeros(3, np.uint8)
        return str(write_idx(Path(path) / fname, small))

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert len(MNIST()) == 3
    assert len(asked) == 4 and asked[1].endswith("cvdf-datasets/mnist/train-images-idx3-ubyte.gz")
    assert len(MNIST()) == 3
    assert len(asked) == 4  # kept
    assert (no_environment / "mnist" / "train-labels-idx1-ubyte.gz").is_file()


def test_a_failed_download_lists_what_was_tried(no_environment, monkeypatch):
    pooch = pytest.importorskip("pooch")

    def retrieve(url, **options):
        raise ValueError("SHA256 hash of downloaded file does not match")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(OSError, match=r"cannot download train-images-idx3-ubyte\.gz of MNIST") as raised:
        MNIST()
    message = str(raised.value)
    assert message.count("https://") == 2 and "does not match" in message
    assert f"put it at {no_environment / 'mnist' / 'train-images-idx3-ubyte.gz'}" in message


def test_pooch_itself_refuses_a_wrong_checksum(tmp_path, no_environment, monkeypatch):
    """The whole way, with a mirror on this machine instead of the network."""
    pytest.importorskip("pooch")
    small_mnist(tmp_path / "mirror")
    served = []

    def local(url, output_file, pooch, **options):
        served.append(url)
        Path(output_file).write_bytes((tmp_path / "mirror" / "mnist" / url.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr("pooch.core.choose_downloader", lambda url, progressbar: local)
    with pytest.raises(OSError, match="cannot download"):
        MNIST()
    assert len(served) == 2
    assert not list(no_environment.rglob("*.gz"))


class _Mirror(http.server.BaseHTTPRequestHandler):
    """Serves the digits' images; below /broken/, half of the file, and then the connection is gone."""

    content = b"labels of MNIST" * 1000

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        broken = self.path.startswith("/broken/")
        self.wfile.write(self.content[: len(self.content) // 2] if broken else self.content)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(monkeypatch):
    """The address of a server on this machine."""
    pytest.importorskip("pooch")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Mirror) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("second", ["broken", "whole"])
def test_a_connection_that_breaks_off(no_environment, mirror, second):
    """Nothing of half a file is kept, and the next mirror is asked."""
    digest = hashlib.sha256(_Mirror.content).hexdigest()
    files = RemoteFiles("Toy", "toy", (f"{mirror}/broken/", f"{mirror}/{second}/"), {"labels.gz": digest})
    if second == "broken":
        with pytest.raises(OSError, match=r"cannot download labels\.gz of Toy") as raised:
            files.path("labels.gz")
        assert str(raised.value).count("/broken/labels.gz: ") == 2
        assert list(no_environment.rglob("*")) == [no_environment / "toy"]
        files = dataclasses.replace(files, mirrors=(f"{mirror}/whole/",))  # what is tried again, later
    assert files.path("labels.gz").read_bytes() == _Mirror.content


def test_a_download_that_the_user_stops(no_environment, mirror, monkeypatch):
    def stop(self, url, output_file, pooch, **options):
        Path(output_file).write_bytes(b"half of")
        raise KeyboardInterrupt

    files = RemoteFiles("Toy", "toy", (f"{mirror}/whole/",), {"labels.gz": "0" * 64})
    monkeypatch.setattr("pooch.HTTPDownloader.__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        files.path("labels.gz")
    assert list(no_environment.rglob("*")) == [no_environment / "toy"]


def test_without_pooch_the_message_names_the_extra(no_environment, monkeypatch):
    real_import = builtins.__import__

    def no_pooch(name, *args, **kwargs):
        if name == "pooch":
            raise ImportError("No module named 'pooch'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pooch)
    with pytest.raises(ImportError, match=r'pip install "minigrad\[data\]"'):
        MNIST()


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_the_checksums_are_those_of_the_real_files(real_files, kind):
    assert len(kind.files.sha256) == 4
    for name, expected in kind.files.sha256.items():
        content = (real_files / kind.files.folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == expected


# Digits


def test_digits_ship_with_the_package():
    train, test = Digits(), Digits(train=False)
    assert (len(train), len(test)) == (1437, 360)
    image, label = train[0]
    assert image.shape == (1, 8, 8) and image.numpy().dtype == np.float32 and label == 0
    assert image.numpy()[0, 0].tolist() == [0, 0, 5 / 16, 13 / 16, 9 / 16, 1 / 16, 0, 0]
    images, labels = train.as_tensors()
    assert images.numpy().min() == 0 and images.numpy().max() == 1
    assert set(labels.numpy().tolist()) == set(test.targets.numpy().tolist()) == set(range(10))


def test_digits_can_be_told_apart():
    (train, train_labels), (test, test_labels) = Digits().as_tensors(), Digits(train=False).as_tensors()
    train, test = (images.numpy().reshape(len(images), -1) for images in (train, test))
    distances = ((test[:, None] - train[None]) ** 2).sum(-1)
    nearest = train_labels.numpy()[distances.argmin(1)]
    assert (nearest == test_labels.numpy()).mean() > 0.95
