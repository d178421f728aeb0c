"""Folders of pictures, Iris, Tiny Shakespeare, data sets in a row, weighted samplers."""

import os
from collections import Counter
from functools import partial

import numpy as np
import pytest

import minigrad as mg
from minigrad.data import (
    ConcatDataset,
    DataError,
    DataLoader,
    Flowers,
    ImageFolder,
    Iris,
    TinyShakespeare,
    WeightedRandomSampler,
    read_image,
)
from minigrad.data.transforms import Compose, Resize, ToTensor

needs_data = pytest.mark.skipif("MINIGRAD_DATA" not in os.environ, reason="MINIGRAD_DATA names no folder")


@pytest.fixture
def folder(tmp_path, rng):
    image_module = pytest.importorskip("PIL.Image")
    for name in ("cat/b.png", "cat/more/a.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image_module.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    return tmp_path


def test_an_image_folder(folder):
    dataset = ImageFolder(folder, Compose([Resize((4, 5)), ToTensor()]))
    assert dataset.classes == ["cat", "dog"] and dataset.targets == [0, 0, 1]
    assert [os.path.basename(path) for path, _ in dataset.samples] == ["b.png", "a.png", "1.png"]
    images, labels = next(iter(DataLoader(dataset, 3, num_workers=2)))
    assert images.shape == (3, 3, 4, 5) and labels.tolist() == [0, 0, 1]
    assert ImageFolder(folder)[0][0].size == (12, 9)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None])
def test_a_file_that_is_no_picture_is_named(folder, content):
    path = folder / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(DataError, match=r"dog/1\.png: not a picture, or a damaged one") as raised:
        list(DataLoader(ImageFolder(folder, ToTensor()), 1, num_workers=2))
    assert "samples [2] of ImageFolder" in raised.value.__notes__[0]


def test_folders_without_pictures(folder, tmp_path):
    (tmp_path / "bird").mkdir()
    with pytest.raises(FileNotFoundError, match="bird has no picture"):
        ImageFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no folders"):
        ImageFolder(tmp_path / "bird")


def test_a_photograph_is_turned_as_the_camera_was_held(tmp_path, rng):
    image_module = pytest.importorskip("PIL.Image")
    pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    picture = image_module.fromarray(pixels)
    picture.getexif()[0x0112] = 6  # held upright: the first row is the right column
    picture.save(tmp_path / "upright.png", exif=picture.getexif())
    assert (np.array(read_image(tmp_path / "upright.png")) == np.rot90(pixels, -1)).all()


def test_missing_flowers(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGRAD_DATA", str(tmp_path))
    for train, folder in ((True, "train"), (False, "val")):
        with pytest.raises(FileNotFoundError, match=rf"flowers5/{folder} is missing.*photos.*MINIGRAD_DATA"):
            Flowers(train=train)


@needs_data
def test_the_five_flowers():
    if not os.path.isdir(os.path.join(os.environ["MINIGRAD_DATA"], "flowers5")):
        pytest.skip("MINIGRAD_DATA lacks flowers5/")
    for train, count in ((True, 400), (False, 150)):
        flowers = Flowers(train=train)
        assert flowers.classes == ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
        assert len(flowers) == count and set(flowers.targets) == set(range(5))
        picture, label = flowers[-1]
        assert max(picture.size) == 256 and label == 4
    assert repr(flowers).startswith("Flowers(150 pictures of 5 classes in")


@needs_data
def test_iris():
    features, labels = Iris().as_tensors()
    assert features.shape == (150, 4) and features[0].tolist() == pytest.approx([5.1, 3.5, 1.4, 0.2])
    assert np.bincount(labels.numpy()).tolist() == [50, 50, 50] and Iris()[149][1].item() == 2


@needs_data
def test_tensorflow_s_split_of_iris():
    def flowers(*data_sets):
        return Counter(
            (*lengths.tolist(), kind.item()) for data_set in data_sets for lengths, kind in data_set
        )

    train, test = Iris(train=True), Iris(train=False)
    assert flowers(train, test) == flowers(Iris())
    assert [np.bincount(part.tensors[1].numpy()).tolist() for part in (train, test)] == [
        [42, 36, 42],
        [8, 14, 8],
    ]
    assert repr(test) == "Iris(30 samples of (4,) float32, () int64)"
    with pytest.raises(ValueError, match="Iris: train must be True or False, got 'all'"):
        Iris(train="all")


@needs_data
def test_tiny_shakespeare():
    train, test = TinyShakespeare(block_size=8), TinyShakespeare(train=False)
    assert len(train.text) + len(test.text) == 1115394 and len(train.vocabulary) == 65
    inputs, targets = train[0]
    assert train.decode(inputs) == "First Ci" and train.decode(targets) == "irst Cit"
    assert (train.encode("First Ci") == inputs).all()
    batch = next(iter(DataLoader(train, 4, shuffle=True, seed=0)))
    assert batch[0].shape == (4, 8) and (batch[0][:, 1:] == batch[1][:, :-1]).all()
    assert train[-1][1][-1].item() == train.data[-1].item()
    with pytest.raises(IndexError):
        train[len(train)]
    with pytest.raises(ValueError, match="'é' is not in the vocabulary"):
        train.encode("é")


@pytest.mark.parametrize(
    ("name", "content", "make", "text"),
    [
        (
            "iris/iris.data",
            b"5.1,3.5,1.4,0.2,Iris-setosa\n5.1,x,1.4,0.2,Iris-setosa",
            Iris,
            "line 2 is '5.1,x",
        ),
        ("iris/iris.data", b"5.1,3.5,1.4,0.2,Iris-setosa\n", Iris, "expected 150 irises, found 1"),
        ("iris/iris.data", b"<html>", Iris, "line 1 is '<html>'"),
        ("iris/iris.data", b"1,2,3,Iris-setosa", Iris, "3 numbers"),
        (
            "iris/iris_training.csv",
            b"120,4,a,b,c\n6.4,2.8,5.6,2.2,3",
            partial(Iris, train=True),
            "line 2 is '6.4",
        ),
        (
            "iris/iris_test.csv",
            b"30,4,a,b,c\n6.4,2.8,5.6,2.2,2",
            partial(Iris, train=False),
            "30 irises, found 1",
        ),
        ("iris/iris_test.csv", b"", partial(Iris, train=False), "30 irises, found 0"),
        ("tinyshakespeare/input.txt", b"\xff\xfe", TinyShakespeare, "not a text in UTF-8"),
        ("tinyshakespeare/input.txt", b"To be", TinyShakespeare, "4 characters are too few"),
    ],
)
def test_damaged_files_are_told(tmp_path, name, content, make, text):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=text) as raised:
        make(tmp_path)
    assert name in str(raised.value) and "again" in str(raised.value)
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("make", [Iris, partial(Iris, train=True), TinyShakespeare])
def test_missing_files(tmp_path, make):
    with pytest.raises(FileNotFoundError, match="pass download=True"):
        make(tmp_path, download=False)


def test_data_sets_in_a_row():
    joined = ConcatDataset([[1, 2], [], [3, 4, 5]])
    assert [joined[i] for i in range(-5, 5)] == [1, 2, 3, 4, 5] * 2 and len(joined) == 5
    assert [batch.tolist() for batch in DataLoader(joined, 2)] == [[1, 2], [3, 4], [5]]
    with pytest.raises(IndexError, match="index 5 of 5"):
        joined[5]
    with pytest.raises(ValueError, match="no data sets"):
        ConcatDataset([])
    tensors = mg.data.TensorDataset(mg.arange(3))
    assert [x.item() for (x,) in mg.data.Subset(tensors, [2, 0]) + tensors] == [2, 0, 0, 1, 2]


def test_weighted_samples():
    drawn = np.bincount(list(WeightedRandomSampler([1, 0, 3], 4000, generator=mg.Generator(0))))
    assert drawn[1] == 0 and abs(drawn[0] - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75)
    once = list(WeightedRandomSampler([1, 0, 3, 2], 3, replacement=False))
    assert sorted(once) == [0, 2, 3]
    for weights, count, replacement in (([-1, 2], 1, True), ([0, 0], 1, True), ([1, 0], 2, False)):
        with pytest.raises(ValueError, match="WeightedRandomSampler"):
            WeightedRandomSampler(weights, count, replacement)
