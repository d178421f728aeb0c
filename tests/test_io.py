"""Weights in files: what is written comes back, and broken files and full disks do no harm."""

import builtins
import errno
import io
import json
import os
import stat
import struct

import numpy as np
import pytest

import minigrad as mg
from minigrad.creation import from_numpy
from minigrad.devices import device as find_device
from minigrad.errors import DeviceError
from minigrad.io import load, load_file, save, save_file
from minigrad.io.files import write_atomically
from minigrad.tensor import Tensor

safetensors = pytest.importorskip("safetensors")


def raw_file(path, dtype, shape, values, metadata=None):
    """A safetensors file with one tensor "w", put together by hand."""
    header = {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(values)]}}
    text = json.dumps(header | ({"__metadata__": metadata} if metadata else {})).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)
    return path


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {
        "fc.weight": from_numpy(rng.normal(size=(3, 4)).astype("f4")),
        "fc.bias": from_numpy(np.zeros(3, "f4")),
    }


def assert_same(tensors, expected):
    assert sorted(tensors) == sorted(expected)
    for name, tensor in tensors.items():
        a, b = tensor.numpy(), expected[name].numpy()
        assert isinstance(tensor, Tensor) and a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


# Round trips


@pytest.mark.parametrize("write", [save, save_file])
@pytest.mark.parametrize("read", [load, load_file])
def test_round_trip(tmp_path, weights, write, read):
    write(weights, tmp_path / "model.safetensors")
    assert_same(read(str(tmp_path / "model.safetensors")), weights)


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "bfloat16", "i8", "i4", "i2", "i1", "u1", "?"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)])
def test_every_dtype_and_shape(tmp_path, dtype, shape):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    values = {"w": from_numpy(np.asarray(np.random.default_rng(0).normal(0, 9, shape)).astype(dtype))}
    save_file(values, tmp_path / "w.safetensors")
    assert_same(load_file(tmp_path / "w.safetensors"), values)


def test_special_values(tmp_path):
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38], np.float32)
    save_file({"w": from_numpy(values)}, tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors")["w"].numpy().tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.T,
        lambda a: a[::-1],
        lambda a: a[:, ::2],
        lambda a: a[1:, 1:],
        lambda a: np.broadcast_to(a[0], (4, 6)),
        lambda a: a.astype(">f4"),
        lambda a: np.asfortranarray(a),
    ],
)
def test_strides_and_byte_order_do_not_matter(tmp_path, view):
    array = view(np.arange(24, dtype=np.float32).reshape(4, 6))
    save_file({"w": array}, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "w.safetensors")["w"].numpy(), array)


def test_open_files(tmp_path, weights):
    file = io.BytesIO()
    save({"epoch": 3, "weights": weights}, file)
    file.seek(0)
    loaded = load(file)
    assert loaded["epoch"] == 3 and loaded["weights"].keys() == weights.keys()
    with open(tmp_path / "weights", "wb") as file:
        save(weights, file)
    with open(tmp_path / "weights", "rb") as file:
        assert load(file).keys() == weights.keys()
    with pytest.raises(ValueError, match="not a safetensors file"):
        load(io.BytesIO(b"abc"))
    for file in (None, io.StringIO("abc")):
        with pytest.raises(TypeError, match="expected a path or an open binary file, got"):
            load(file)
    with pytest.raises(TypeError, match="expected a path or an open binary file, got NoneType"):
        save(weights, None)


def test_loaded_tensors_can_be_written_to(tmp_path, weights):
    save_file(weights, tmp_path / "w.safetensors")
    for tensor in load_file(tmp_path / "w.safetensors").values():
        tensor.numpy()[...] = 1


def test_an_empty_state_dict(tmp_path):
    save({}, tmp_path / "w.safetensors")
    assert load(tmp_path / "w.safetensors") == {}


@pytest.mark.parametrize("installed", [True, False])
def test_sixteen_bits_are_kept_or_without_ml_dtypes_widened(tmp_path, monkeypatch, installed):
    expected = pytest.importorskip("ml_dtypes").bfloat16 if installed else np.float32
    if not installed:
        monkeypatch.setattr("minigrad.io.weights.BFLOAT16", None)
    values = np.array([1.0, -2.5, 3.140625, 0.0], np.float32)  # all are bfloat16 values
    halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    loaded = load_file(raw_file(tmp_path / "w.safetensors", "BF16", [2, 2], halves))["w"].numpy()
    assert loaded.dtype == expected
    np.testing.assert_array_equal(loaded.astype(np.float32), values.reshape(2, 2))
    loaded = load_file(raw_file(tmp_path / "s.safetensors", "BF16", [], halves[:2]))["w"].numpy()
    assert loaded.shape == () and loaded == 1
    loaded = load_file(raw_file(tmp_path / "h.safetensors", "F16", [4], values.astype("<f2").tobytes()))["w"]
    assert loaded.numpy().dtype == np.float16


def test_other_readers_understand_the_file(tmp_path, weights):
    from safetensors.numpy import load_file as reference

    save_file(weights, tmp_path / "w.safetensors", metadata={"epoch": "3"})
    with safetensors.safe_open(tmp_path / "w.safetensors", framework="np") as file:
        assert file.metadata() == {"epoch": "3"}
    for name, array in reference(tmp_path / "w.safetensors").items():
        np.testing.assert_array_equal(array, weights[name].numpy())


def test_map_location(tmp_path, weights):
    save(weights, tmp_path / "w.safetensors")
    assert_same(load(tmp_path / "w.safetensors", map_location="cpu"), weights)
    assert_same(load(tmp_path / "w.safetensors", lambda storage, place: storage, weights_only=False), weights)


@pytest.mark.parametrize("name", ["sim", "cuda"])
def test_weights_of_and_for_another_device(tmp_path, weights, name):
    try:
        device = find_device(name)
    except DeviceError as error:
        pytest.skip(str(error))
    save({key: tensor.to(device) for key, tensor in weights.items()}, tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors", map_location=name)
    assert all(tensor.device is device for tensor in loaded.values())
    assert_same(loaded, weights)


# What cannot be saved


@pytest.mark.parametrize(
    ("obj", "error", "message"),
    [
        ([1, 2], TypeError, "mapping of names to tensors, got list"),
        ({"w": [1, 2]}, TypeError, "'w' must be a tensor, got list"),
        ({"w": {"nested": np.ones(2)}}, TypeError, "'w' must be a tensor, got dict"),
        ({3: np.ones(2)}, TypeError, "must be text, got 3"),
        ({"w": np.ones(2, complex)}, TypeError, "'w' has dtype complex128"),
        ({"w": np.array(["a"])}, TypeError, "'w' has dtype <U1"),
        ({"w": np.array([None])}, TypeError, "'w' has dtype object"),
        ({"__metadata__": np.ones(2)}, ValueError, "__metadata__"),
    ],
)
def test_what_is_not_a_state_dict_is_refused(tmp_path, obj, error, message):
    with pytest.raises(error, match=message):
        save_file(obj, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


# Values of other kinds


def test_values_in_lists_and_dicts_come_back(tmp_path):
    path = tmp_path / "run.safetensors"
    model, again = (mg.nn.Linear(3, 2) for _ in range(2))
    optimizer = mg.optim.Adam(model.parameters())
    model(mg.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = {
        "epoch": 3,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": float("inf"),
        7: [None, True, "text", (mg.arange(3), np.ones((2, 0)))],
    }
    save(saved, path)
    loaded = load(path)
    assert list(loaded) == list(saved)
    assert (loaded["epoch"], loaded["best"], loaded[7][:3]) == (3, float("inf"), [None, True, "text"])
    tensor, array = loaded[7][3]
    assert isinstance(tensor, Tensor) and tensor.tolist() == [0, 1, 2]
    assert type(array) is np.ndarray and array.shape == (2, 0)
    again.load_state_dict(loaded["model"])
    assert_same(again.state_dict(), model.state_dict())
    mg.optim.Adam(again.parameters()).load_state_dict(loaded["optimizer"])
    for value in ([1, 2], 5, mg.ones(2)):
        save(value, path)
        assert np.array_equal(load(path), value)


def test_values_are_data(tmp_path):
    with pytest.raises(TypeError, match=r"save: it is a Linear; .* save its state_dict"):
        save(mg.nn.Linear(1, 1), tmp_path / "model.safetensors")
    with pytest.raises(TypeError, match=r"\.0\.f is a function"):
        save([{"f": test_values_are_data}], tmp_path / "f.safetensors")
    assert not list(tmp_path.iterdir())


def test_damaged_values_are_refused(tmp_path):
    path = tmp_path / "values.safetensors"
    save([mg.ones(4), 1], path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    content[-1] ^= 1
    header = content.index(b'".0":{"dtype"')  # the tensor under another name than the values have it
    content[header + 1 : header + 3] = b".7"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged: it has no tensor '\.0'"):
        load(path)


def test_metadata_is_text(tmp_path, weights):
    with pytest.raises(TypeError, match="metadata must be text to text, got 'epoch': 3"):
        save_file(weights, tmp_path / "w.safetensors", metadata={"epoch": 3})


# Broken files


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 8, 20, -1])
def test_truncated_file(tmp_path, weights, keep):
    path = tmp_path / "w.safetensors"
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=r"w\.safetensors: not a safetensors file, or a truncated or damaged"
    ):
        load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"<html>not found</html>",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 2) + b"\xff\xfe",
        os.urandom(1000),
    ],
)
def test_damaged_file(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.safetensors"):
        load(path)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02}q\x00", b"\x80\x04\x95"])
def test_a_pickle_is_recognised_and_not_run(tmp_path, start):
    path = tmp_path / "w.pt"
    path.write_bytes(start + b"rest of a pickle")
    with pytest.raises(ValueError, match=r"w\.pt: not a safetensors file but a pickle"):
        load(path)


def test_a_header_that_starts_like_a_pickle_is_read(tmp_path):
    # A header of 0x0280 = 640 bytes begins with 80 02, as a pickle does.
    path = raw_file(tmp_path / "w.safetensors", "F32", [1], bytes(4), {"padding": ""})
    missing = 640 - struct.unpack("<Q", path.read_bytes()[:8])[0]
    raw_file(path, "F32", [1], bytes(4), {"padding": "x" * missing})
    assert path.read_bytes().startswith(b"\x80\x02")
    assert load(path)["w"].numpy().tolist() == [0.0]


def test_offsets_that_do_not_fit_the_shape(tmp_path):
    with pytest.raises(ValueError, match=r"w\.safetensors"):
        load(raw_file(tmp_path / "w.safetensors", "F32", [3], bytes(8)))
    with pytest.raises(ValueError, match=r"w\.safetensors"):
        load(raw_file(tmp_path / "w.safetensors", "F32", [2**62, 2**62], bytes(8)))


def test_an_unknown_element_type(tmp_path):
    with pytest.raises(ValueError, match="'w' has element type F8_E4M3"):
        load(raw_file(tmp_path / "w.safetensors", "F8_E4M3", [2], bytes(2)))


# Writing as a whole or not at all


def full_disk(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_file(tmp_path, weights, monkeypatch, step):
    path = tmp_path / "w.safetensors"
    save(weights, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(OSError, match="No space left") as raised:
        save({"other": np.ones(1000)}, path)
    assert "as it was before" in raised.value.__notes__[0]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_write_that_stops_half_way_leaves_the_earlier_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"earlier")

    def half(file):
        file.write(b"half of")
        file.flush()
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, half)
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_the_system_stops_half_way(tmp_path, weights):
    """The same, not simulated: the system refuses to let the file grow beyond a limit."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "w.safetensors"
    save(weights, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save({"w": np.ones(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_permissions_follow_the_umask_and_links_stay(tmp_path, weights):
    path, link = tmp_path / "w.safetensors", tmp_path / "latest.safetensors"
    previous = os.umask(0o022)
    try:
        save(weights, path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    link.symlink_to(path)
    save({"w": np.ones(2)}, link)
    assert link.is_symlink() and list(load(path)) == ["w"]


def test_where_nothing_can_be_written(tmp_path, weights):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save(weights, tmp_path / "nowhere" / "w.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        save(weights, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a device, a pipe or a socket"):
        save(weights, tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_without_safetensors_the_message_names_the_extra(tmp_path, weights, monkeypatch):
    real_import = builtins.__import__

    def no_safetensors(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError("No module named 'safetensors'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_safetensors)
    for action in (lambda: save(weights, tmp_path / "w"), lambda: load(tmp_path / "w")):
        with pytest.raises(ImportError, match=r'pip install "minigrad\[io\]"'):
            action()
