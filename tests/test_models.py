"""Networks that come trained: outputs on photographs, keys, and files that are missing or damaged."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg
from minigrad import models, nn
from minigrad.data import DataError, read_image
from minigrad.data.download import RemoteFiles
from minigrad.models.tflite import read_tflite
from minigrad.models.weights import ImageClassification

BILINEAR = 2  # as Pillow numbers it
NAMES = ["mobilenet_v2", "squeezenet1_1"]


def data(folder: str) -> Path:
    """A folder of MINIGRAD_DATA; the test is skipped, visibly, where it is missing."""
    root = os.environ.get("MINIGRAD_DATA")
    if not root or not (Path(root) / folder).is_dir():
        pytest.skip(f"set MINIGRAD_DATA to a folder that holds {folder}/")
    return Path(root) / folder


@pytest.fixture(scope="module", params=NAMES)
def trained(request):
    """(name, network with its weights, the weights)."""
    data(request.param)
    weights = models.get_model_weights(request.param)["DEFAULT"]
    return request.param, models.get_model(request.param, weights=weights).eval(), weights


# ---- with the published weights ---------------------------------------------------------------------------


def test_reference_outputs(trained):
    """Recorded from PyTorch for two crops; the largest is 37, of which 1e-4 are 25 roundings of float32."""
    name, model, weights = trained
    reference = np.load(data(name) / "reference.npz")
    to_tensor, normalize = weights.transforms().transforms[2:]
    for photo in ("dog", "koala"):
        image = normalize(to_tensor(reference[f"{photo}_rgb_u8"]))
        expected = reference[f"{photo}_logits"][-1000:]  # without TensorFlow's class 0, "background"
        with mg.no_grad():
            np.testing.assert_allclose(model(image.unsqueeze(0)).numpy()[0], expected, rtol=0, atol=1e-4)


def test_expected_answers_on_photographs(trained):
    """PyTorch's, of pictures resized by Pillow; Resize rounds otherwise, and the first answer stays."""
    name, model, weights = trained
    photos = data("photos")
    preprocess, categories = weights.transforms(), weights.meta["categories"]
    for file, answers in json.loads((photos / "expected_top5.json").read_text()).items():
        (expected,) = [value for key, value in answers.items() if key.startswith(name)]
        picture = read_image(photos / file)
        resized = picture.resize([round(side * 256 / min(picture.size)) for side in picture.size], BILINEAR)
        with mg.no_grad(), mg.num_threads(1):
            same, usual = model(mg.stack([preprocess(image) for image in (resized, picture)])).softmax(1)
        assert categories[usual.argmax().item()] == expected[0][1], file
        for index, category, probability in expected:
            place = index - (name == "mobilenet_v2")  # there, 0 is "background"
            assert categories[place] == category
            assert same[place].item() == pytest.approx(probability, abs=0.01), (file, category)


def test_preprocessing_is_pillow_s(trained):
    """Resized and cropped as Pillow does it, to one level of 256, then normalized as the weights need it."""
    name, _, weights = trained
    photos = data("photos")
    size = 224 if name == "mobilenet_v2" else 227
    for file in ("dog.jpg", "koala.jpg", "shuttle.jpg"):
        picture = read_image(photos / file)
        width, height = (256 * side // min(picture.size) for side in picture.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        resized = picture.resize((width, height), BILINEAR)
        crop = np.array(resized.crop((left, top, left + size, top + size)), np.float64).transpose(2, 0, 1)
        mean, std = (128, 128) if name == "mobilenet_v2" else (np.array([[[123]], [[117]], [[104]]]), 1)
        found = weights.transforms()(picture)
        assert found.shape == (3, size, size) and found.dtype == np.float32
        assert np.abs(found.numpy() * std + mean - crop).max() <= 1 + 1e-3


def test_labels(trained):
    categories = trained[2].meta["categories"]
    assert len(categories) == 1000
    assert [categories[i] for i in (0, 207, 999)] == ["tench", "golden retriever", "toilet tissue"]


def test_both_networks_have_the_same_labels():
    for name in NAMES:
        data(name)
    first, second = (models.get_model_weights(name)["DEFAULT"].meta["categories"] for name in NAMES)
    assert first == second


def test_what_is_told_of_the_weights_is_so(trained):
    name, model, weights = trained
    assert sum(p.numel() for p in model.parameters()) == weights.meta["num_params"]
    assert models.get_model(name, weights="IMAGENET1K_V1").state_dict().keys() == model.state_dict().keys()
    assert repr(weights) == f"{type(weights).__name__}.IMAGENET1K_V1"


def test_a_new_head_and_the_gradients_below_it():
    """As one fine-tunes. A small step along the gradient lowers the loss by what the gradient says."""
    data("mobilenet_v2")
    model = models.mobilenet_v2(weights="DEFAULT").eval()  # no dropout
    model.classifier[1] = nn.Linear(model.last_channel, 5)
    images, labels = mg.randn(4, 3, 64, 64), mg.tensor([0, 1, 2, 3])
    before = nn.functional.cross_entropy(model(images), labels)
    before.backward()
    squared_norm = sum((p.grad * p.grad).sum().item() for p in model.parameters())
    mg.optim.SGD(model.parameters(), lr=0.01 / squared_norm).step()
    with mg.no_grad():
        after = nn.functional.cross_entropy(model(images), labels)
    assert (before - after).item() == pytest.approx(0.01, rel=0.1)


# ---- files that are missing or damaged --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_told(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGRAD_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"{name}/\S+ is missing.*github.*MINIGRAD_DATA"):
        models.get_model(name, weights="DEFAULT")
    models.get_model(name)  # random weights need no file


def test_what_has_no_address_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MINIGRAD_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"there is no address to download SqueezeNet 1\.1 from"):
        models.squeezenet1_1(weights="DEFAULT")


def test_what_was_downloaded_is_checked(tmp_path, monkeypatch):
    """MobileNetV2 is fetched as the TensorFlow Lite file, where no safetensors file is there."""
    fetched = []

    def download(files, path):
        fetched.append(path.name)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"TFL3")

    monkeypatch.setattr(RemoteFiles, "_download", download)
    with pytest.raises(DataError, match=r"quant\.tflite is damaged, or not the file expected"):
        models.MobileNet_V2_Weights.DEFAULT.get_state_dict(tmp_path)
    assert fetched == ["mobilenet_v2_1.0_224_quant.tflite"]


@pytest.mark.parametrize("damage", ["truncated", "one bit", "another file"])
def test_a_damaged_file_is_told(trained, damage, tmp_path):
    name, _, weights = trained
    shutil.copytree(data(name), tmp_path / name, copy_function=shutil.copyfile)
    path = tmp_path / name / next(iter(weights.value.states))
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-1000:]
    elif damage == "one bit":
        content[-5] ^= 1
    path.write_bytes(b"<html>not found</html>" if damage == "another file" else content)
    with pytest.raises(DataError, match=rf"{path.name} is damaged, or not the file expected: its sha256"):
        weights.get_state_dict(tmp_path)


# ---- TensorFlow Lite's files ------------------------------------------------------------------------------


def write(out: bytearray, value) -> int:
    """Append a FlatBuffers table (a dict), a vector of tables (a list) or of numbers; where it starts."""
    if isinstance(value, np.ndarray):
        start = len(out)
        out += struct.pack("<I", len(value)) + value.tobytes()
        return start
    if isinstance(value, list):
        start = len(out)
        out += struct.pack("<I", len(value)) + bytes(4 * len(value))
        children = list(enumerate(value, 1))
    else:
        fields = max(value) + 1
        places = [4 + 4 * list(value).index(field) if field in value else 0 for field in range(fields)]
        out += struct.pack(f"<{2 + fields}H", 4 + 2 * fields, 4 + 4 * len(value), *places)
        start = len(out)
        out += struct.pack("<i", 4 + 2 * fields) + bytes(4 * len(value))
        children = [(places[field] // 4, child) for field, child in value.items()]
    for place, child in children:
        here = start + 4 * place
        number = child if isinstance(child, int) else write(out, child) - here
        out[here : here + 4] = struct.pack("<I", number)
    return start


@pytest.fixture
def tflite_file(tmp_path, rng):
    """(a file with a quantized and a plain tensor and one that is computed, the values of the two)."""
    levels, plain = rng.integers(0, 256, (2, 3), dtype=np.uint8), rng.standard_normal(4, np.float32)

    def tensor(name, kind, buffer, shape, **more):
        fields = {0: np.array(shape, "<i4"), 1: kind, 2: buffer, 3: np.frombuffer(name.encode(), "u1")}
        return fields | ({4: more["quantization"]} if more else {})

    quantization = {2: np.array([0.5], "<f4"), 3: np.array([7], "<i8")}
    tensors = [
        tensor("quantized", 3, 1, (2, 3), quantization=quantization),
        tensor("plain", 0, 2, (4,)),
        tensor("computed", 0, 0, (1, 5)),
    ]
    buffers = [{1: 0}, {0: levels.reshape(-1)}, {0: plain.view("u1")}]  # the first without data
    out = bytearray(b"....TFL3")
    root = write(out, {0: 3, 2: [{0: tensors}], 4: buffers})
    out[:4] = struct.pack("<I", root)
    path = tmp_path / "network.tflite"
    path.write_bytes(out)
    return path, {"quantized": (levels.astype(np.float32) - 7) * 0.5, "plain": plain}


def test_a_tensorflow_lite_file(tflite_file):
    path, expected = tflite_file
    found = read_tflite(path)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32 and (found[name].numpy() == values).all()


def test_damaged_tensorflow_lite_files_are_told(tflite_file):
    path, _ = tflite_file
    content = path.read_bytes()
    for length in range(0, len(content) - 1, 7):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"network\.tflite: (not|a damaged) "):
            read_tflite(path)


# ---- without weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys", "parameters"), [("mobilenet_v2", 314, 3_504_872), ("squeezenet1_1", 52, 1_235_496)]
)
def test_the_networks_are_torchvision_s(name, keys, parameters):
    """In the number of their keys and parameters, as published there."""
    model = models.get_model(name)
    assert len(model.state_dict()) == keys
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_torchvision_s_state_dict_gives_its_outputs(name, rng):
    torch = pytest.importorskip("torch")
    theirs = getattr(pytest.importorskip("torchvision").models, name)().eval()
    for key, value in theirs.state_dict().items():
        if key.endswith(("running_var", "running_mean")):
            value.uniform_(0.5, 2)
    model = models.get_model(name).eval()
    model.load_state_dict({key: mg.tensor(value.numpy()) for key, value in theirs.state_dict().items()})
    images = rng.standard_normal((2, 3, 97, 65), np.float32)
    with mg.no_grad(), torch.no_grad():
        expected = theirs(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(model(mg.tensor(images)).numpy(), expected, rtol=0, atol=1e-5)


def test_a_folded_batch_norm_is_the_same_network(rng):
    """``norm_layer=None`` is what is left when each normalization is multiplied into its convolution."""
    small = {"num_classes": 7, "width_mult": 0.25}
    model = models.mobilenet_v2(**small).double().eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    folded = models.mobilenet_v2(norm_layer=None, **small).double().eval()
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    state = dict(zip(list(folded.state_dict())[-2:], model.classifier[1].parameters(), strict=True))
    targets = [name for name, m in folded.named_modules() if isinstance(m, nn.Conv2d)]
    for target, conv, norm in zip(targets, layers[::2], layers[1::2], strict=True):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        state[f"{target}.weight"] = conv.weight * scale.reshape(-1, 1, 1, 1)
        state[f"{target}.bias"] = norm.bias - norm.running_mean * scale
    folded.load_state_dict(state)
    images = mg.tensor(rng.standard_normal((2, 3, 33, 40)))
    np.testing.assert_allclose(folded(images).tolist(), model(images).tolist(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2), (6, 5)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_tensorflow_s_padding(size, stride, rng):
    """Against the definition: ceil(size / stride) pixels, the smaller part of the border before."""
    from minigrad.models.mobilenet_v2 import TensorFlowConv2d

    conv = TensorFlowConv2d(2, 4, 3, stride, groups=2).double()
    image = rng.standard_normal((1, 2, *size))
    found = conv(mg.tensor(image)).detach().numpy()
    assert found.shape == (1, 4, *(-(-side // stride) for side in size))
    borders = [max((n - 1) * stride + 3 - side, 0) for n, side in zip(found.shape[2:], size, strict=True)]
    padded = np.pad(image, ((0, 0), (0, 0), *((border // 2, border - border // 2) for border in borders)))
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    for channel, y, x in np.ndindex(found.shape[1:]):
        window = padded[0, channel // 2, y * stride : y * stride + 3, x * stride : x * stride + 3]
        expected = (window * weight[channel, 0]).sum() + bias[channel]
        assert found[0, channel, y, x] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_that_does_not_fit_names_what_is_missing_and_too_many(name):
    model = models.get_model(name)
    state = model.state_dict()
    state["features.0.wait"] = state.popitem()[1]
    with pytest.raises(RuntimeError, match=r"missing keys: 'classifier.1.bias'\n.*'features.0.wait'"):
        model.load_state_dict(state)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"num_classes=5 does not fit .*IMAGENET1K_V1, which needs 1000"):
        models.mobilenet_v2(weights="DEFAULT", num_classes=5)
    with pytest.raises(ValueError, match="SqueezeNet1_1_Weights has no 'V3'; it has IMAGENET1K_V1, DEFAULT"):
        models.squeezenet1_1(weights="V3")
    with pytest.raises(TypeError, match="expected SqueezeNet1_1_Weights"):
        models.squeezenet1_1(weights=models.MobileNet_V2_Weights.DEFAULT)
    with pytest.raises(ValueError, match=r"no model 'resnet18'; there are mobilenet_v2, squeezenet1_1"):
        models.get_model("resnet18")
    assert models.list_models() == NAMES


def test_preprocessing_takes_tensors_and_batches(rng):
    preprocess = ImageClassification(crop_size=8, resize_size=12, mean=(0.5, 0.4, 0.3), std=(1, 2, 3))
    images = rng.integers(0, 256, (2, 3, 12, 15), dtype=np.uint8)
    batch = preprocess(mg.tensor(images))
    expected = images[:, :, 2:10, 4:12] / 255 - np.reshape([0.5, 0.4, 0.3], (3, 1, 1))
    np.testing.assert_allclose(batch.numpy(), expected / np.reshape([1, 2, 3], (3, 1, 1)), atol=1e-6)
    assert (preprocess(mg.tensor(images[1])) == batch[1]).all()
    assert "crop_size=8, resize_size=12" in repr(preprocess)
