"""CIFAR-10 from its binary files, and where they come from."""

import io
import lzma
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from minigrad.data import CIFAR10, DataError

SIBLING = Path(__file__).parents[2] / "shared" / "data"
NAMES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def records(count, seed):
    """Labels, images (count, 3, 32, 32) and the bytes of a file of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count, np.uint8)
    images = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
    return labels, images, np.concatenate([labels[:, None], images.reshape(count, -1)], 1).tobytes()


@pytest.fixture
def small(tmp_path):
    """A folder with six small files, some of them compressed."""
    (tmp_path / "cifar10").mkdir()
    for i, name in enumerate(NAMES):
        content = records(4, i)[2]
        path = tmp_path / "cifar10" / name
        if i % 2:
            path.with_suffix(".bin.xz").write_bytes(lzma.compress(content))
        else:
            path.write_bytes(content)
    return tmp_path


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """No MINIGRAD_DATA, and an empty cache: its folder."""
    monkeypatch.delenv("MINIGRAD_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "minigrad" / "cifar10"


def test_samples_and_batches(small):
    dataset = CIFAR10(small)
    assert len(dataset) == 20 and repr(dataset) == "CIFAR10(20 images of 32x32, 10 classes)"
    labels, images, _ = records(4, 2)
    image, label = dataset[9]
    assert label == labels[1] and image.shape == (3, 32, 32)
    np.testing.assert_array_equal(image.numpy(), images[1] / np.float32(255))
    batch, targets = dataset.get_batch([9, 8])
    assert batch.shape == (2, 3, 32, 32) and targets.numpy().tolist() == labels[[1, 0]].tolist()
    np.testing.assert_array_equal(batch.numpy(), images[[1, 0]] / np.float32(255))
    everything, _ = CIFAR10(small, train=False).as_tensors()
    np.testing.assert_array_equal(everything.numpy(), records(4, 5)[1] / np.float32(255))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected records of 3073 bytes, the file has 0"),
        (b"1234", "expected records of 3073 bytes, the file has 4"),
        (bytes([10]) + bytes(3072), "expected labels from 0 to 9, found 10"),
    ],
)
def test_a_file_that_is_something_else(small, content, message):
    (small / "cifar10" / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_3\.bin: {message}"):
        CIFAR10(small)


def test_a_damaged_file(small):
    (small / "cifar10" / "data_batch_2.bin.xz").write_bytes(b"no xz")
    with pytest.raises(DataError, match=r"data_batch_2\.bin\.xz is damaged"):
        CIFAR10(small)


def test_a_missing_file(small, cache, monkeypatch):
    (small / "cifar10" / "test_batch.bin.xz").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin is missing: pass download=True"):
        CIFAR10(small, train=False, download=False)
    monkeypatch.setenv("MINIGRAD_DATA", str(small))
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin is missing: MINIGRAD_DATA is set"):
        CIFAR10(train=False)
    assert len(CIFAR10()) == 20


def test_the_archive_is_checked_unpacked_and_kept(cache, tmp_path, monkeypatch):
    """The whole way, with an archive on this machine instead of the network."""
    pytest.importorskip("pooch")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for i, name in enumerate(NAMES):
            content = records(4, i)[2]
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    served = []

    def local(url, output_file, pooch, **options):
        served.append(url)
        Path(output_file).write_bytes(archive.getvalue())

    monkeypatch.setattr("pooch.core.choose_downloader", lambda url, progressbar: local)
    with pytest.raises(OSError, match="cannot download CIFAR-10 from https://"):
        CIFAR10()
    assert served == [CIFAR10.url] and not list(cache.rglob("*.bin"))

    import hashlib

    monkeypatch.setattr(CIFAR10, "md5", hashlib.md5(archive.getvalue()).hexdigest())
    assert len(CIFAR10()) == 20
    assert len(CIFAR10(train=False)) == 4
    assert len(served) == 2  # the second set was already there


def test_the_real_files():
    folder = os.environ.get("MINIGRAD_DATA") or SIBLING
    if not (Path(folder) / "cifar10").is_dir():
        pytest.skip("no real data: set MINIGRAD_DATA to a folder with cifar10/")
    dataset = CIFAR10(folder, train=False)
    assert dataset.data.shape == (10000, 3, 32, 32)
    assert np.bincount(dataset.targets.numpy()).tolist() == [1000] * 10
    assert [dataset.classes[i] for i in dataset.targets.numpy()[:4]] == ["cat", "ship", "ship", "airplane"]
