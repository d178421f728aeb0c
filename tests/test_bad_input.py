"""Bad and extreme input: right or a clear error, never a crash, and nothing half changed."""

import math
import pickle

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F
from minigrad import nn, optim
from minigrad.data import Digits
from minigrad.train import Trainer

IMAGE, KERNEL = mg.ones(1, 2, 4, 4), mg.ones(3, 2, 3, 3)


# ---- what does not fit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [mg.add, mg.mul, mg.maximum, mg.eq, mg.div, mg.pow])
def test_shapes_that_do_not_broadcast(function):
    with pytest.raises(ValueError, match=r"\w+: the shapes \(2, 3\) and \(2, 4\) do not broadcast"):
        function(mg.ones(2, 3), mg.ones(2, 4))


@pytest.mark.parametrize("size", [3, 300_000])  # by each of the kernels for small and large arrays
def test_shapes_that_do_not_broadcast_to_one_of_the_operands(size, device):
    x, y = mg.ones(2, size, device=device), mg.ones(2, size + 1, device=device)
    for call, name in (
        (lambda: x + y, "add"),
        (lambda: x.mul_(y), "mul"),
        (lambda: mg.where(x > 0, y, 1.0), "where"),
        (lambda: x.clamp(y), "maximum"),
    ):
        with pytest.raises(ValueError, match=rf"{name}: the shapes .* and .* do not broadcast"):
            call()
    assert (x == 1.0).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: t @ mg.ones(3, 2), "matmul.*a on sim, b on cpu"),
        (lambda t: t + mg.ones(2, 3), "add.*x on sim, y on cpu"),
        (lambda t: mg.concat([t, mg.ones(2, 3)]), "concat.*sim.*cpu"),
        (lambda t: mg.where(mg.ones(2, 3).bool(), t, t), "where.*cpu.*sim"),
        (lambda t: F.conv2d(t.reshape(1, 1, 2, 3), mg.ones(1, 1, 1, 1)), "conv2d.*sim.*cpu"),
        (lambda t: t.add_(mg.ones(2, 3)), "add.*sim.*cpu"),
        (lambda t: mg.take_along_dim(t, mg.zeros(2, 3, dtype=mg.int64), 1), "take_along_dim.*sim.*cpu"),
    ],
)
def test_tensors_of_two_devices(call, words):
    with pytest.raises(mg.errors.DeviceError, match=rf"{words}.*\.to\(device\)"):
        call(mg.ones(2, 3, device="sim"))


@pytest.mark.parametrize(
    "data",
    ["text", [1, "a"], None, [None], 1j, np.ones(2, np.complex64), object(), [object()], b"bytes",
     np.datetime64("2020-01-01"), np.ones(2, np.longdouble), np.zeros(2, [("a", "f4")]), 2**70],
    ids=lambda data: type(data).__name__,
)  # fmt: skip
def test_what_no_tensor_can_hold(data):
    with pytest.raises(TypeError, match=r"tensors hold.*got"):
        mg.tensor(data)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mg.sum([1.0, 2.0]), "sum: x must be a tensor, got list"),
        (lambda: mg.softmax(5, -1), "softmax: input must be a tensor, got int"),
        (lambda: mg.max(5), "max: x must be a tensor, got int"),
        (lambda: mg.split(2, 2), "split: x must be a tensor, got int"),
        (lambda: mg.median(5), "median: x must be a tensor, got int"),
        (lambda: mg.zeros_like([0]), "zeros_like: input must be a tensor, got list"),
        (lambda: mg.tril(5), "tril: x must be a tensor, got int"),
        (lambda: mg.cat([mg.ones(2), 5]), "concat: expected tensors, got int"),
        (lambda: mg.linalg.inv([[1.0]]), "inv: A must be a tensor, got list"),
        (lambda: F.linear(mg.ones(2, 2), 5), "linear: weight must be a tensor, got int"),
        (lambda: F.conv2d(IMAGE, 5), "conv2d: weight must be a tensor, got int"),
        (lambda: F.cosine_similarity(5, IMAGE), "cosine_similarity: x1 must be a tensor, got int"),
    ],
)  # fmt: skip
def test_what_is_no_tensor(call, words):
    with pytest.raises(TypeError, match=words):
        call()


def test_an_attribute_error_of_another_kind_stays_one():
    with pytest.raises(AttributeError, match="no attribute 'replace'"):
        mg.einsum(5, mg.ones(2))


def test_functions_that_explain_their_arguments_can_be_pickled():
    for function in (mg.cat, mg.softmax, mg.matmul, F.softmax, F.conv2d, mg.linalg.inv):
        assert pickle.loads(pickle.dumps(function)) is function


def test_ragged_lists():
    with pytest.raises(ValueError, match="inhomogeneous"):
        mg.tensor([[1.0, 2.0], [3.0]])


@pytest.mark.parametrize("dtype", [np.complex64, np.longdouble, "U3", object])
def test_dtypes_that_are_not_supported(dtype):
    with pytest.raises(TypeError, match="tensors hold"):
        mg.ones(2).to(np.dtype(dtype))
    with pytest.raises((TypeError, ValueError)):
        mg.zeros(2, dtype=dtype)


def test_arrays_of_the_other_byte_order_compute_rightly():
    x = mg.from_numpy(np.arange(4, dtype=">f4"))
    assert (x + 1.0).tolist() == [1.0, 2.0, 3.0, 4.0] and mg.relu(x - 2.0).tolist() == [0.0, 0.0, 0.0, 1.0]
    assert (x.reshape(2, 2) @ x.reshape(2, 2)).tolist() == [[2.0, 3.0], [6.0, 11.0]]


@pytest.mark.parametrize(
    "call",
    [
        lambda: -mg.tensor([True]),
        lambda: mg.tensor([True]) - mg.tensor([True]),
        lambda: mg.ones(2) & mg.ones(2),
        lambda: ~mg.ones(2),
        lambda: mg.ones(2) + "a",
        lambda: mg.ones(2) + None,
        lambda: mg.ones(2) + 1j,
        lambda: mg.ones(2) + {},
        lambda: mg.ones(2) @ None,
        lambda: mg.where(mg.ones(2), 1.0, 0.0),
        lambda: mg.where(True, mg.ones(2), mg.ones(2)),
        lambda: F.conv2d(IMAGE.double(), KERNEL),
        lambda: mg.where(mg.ones(2) > 0, 1.0),
        lambda: mg.full((2,), None),
        lambda: mg.ones(2).masked_fill(mg.ones(2) > 0, None),
        lambda: mg.ones(2).index_fill(0, mg.tensor([0]), None),
        lambda: mg.ones(2).scatter(0, mg.tensor([0]), None),
        lambda: F.threshold(mg.ones(2), 0.0, None),
        lambda: mg.cat([mg.ones(2), None]),
        lambda: mg.stack("ab"),
        lambda: mg.testing.check_op("add"),
    ],
)
def test_operands_of_the_wrong_type(call):
    with pytest.raises(TypeError):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, w: F.conv2d(x, w.long()), "conv2d.*x is float32, weight is int64"),
        (lambda x, w: F.conv2d(x.long(), w), "conv2d.*x is int64, weight is float32"),
        (lambda x, w: F.conv2d(x, w, mg.ones(3, device=x.device).int()), "conv2d.*bias is int32"),
        (lambda x, w: F.linear(x.flatten(1), w.reshape(3, -1)[:, :32].bool()), "linear.*weight is bool"),
        (lambda x, w: nn.RNN(4, 3).to(x.device)(x[0].long()), "linear.*x is int64, weight is float32"),
    ],
)
def test_integers_beside_floats(call, words, device):
    images, kernels = mg.ones(1, 2, 4, 4, device=device), mg.ones(3, 2, 4, 4, device=device)
    with pytest.raises(TypeError, match=rf"{words}.*convert one with \.to\(dtype\)"):
        call(images, kernels)


def test_numbers_from_tensors():
    with pytest.raises(ValueError, match=r"item.*\(2,\)"):
        mg.ones(2).item()
    with pytest.raises(ValueError, match=r"ambiguous.*any\(\)"):
        bool(mg.ones(2))
    with pytest.raises(TypeError, match=r"index.*float32"):
        [1, 2][mg.ones(1).reshape(())]
    with pytest.raises(RuntimeError, match=r"detach\(\)"):
        mg.ones(2, requires_grad=True).numpy()
    with pytest.raises(TypeError, match=r"size.*2\.5"):
        mg.zeros(2.5)
    with pytest.raises(ValueError, match="negative"):
        mg.zeros(2, -1)
    with pytest.raises(TypeError, match="int64"):
        mg.zeros(2, dtype=mg.int64, requires_grad=True)


# ---- labels, and what models, optimizers and trainers are given --------------------------------------------

SCORES, LABELS = mg.ones(4, 3), mg.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (mg.tensor([1, 2, 3, 2]), ValueError, "target 3 is out of range: the input has 3 classes.*from 0"),
        (mg.tensor([0, 1, -1, 1]), ValueError, "target -1 is out of range"),
        (LABELS.float(), ValueError, r"class numbers must be integers: target\.long\(\)"),
        (LABELS > 0, TypeError, "targets must be integers.*got bool"),
        (LABELS[:3], ValueError, r"target must have shape \(4,\), got \(3,\)"),
        (LABELS.unsqueeze(1), ValueError, r"target must have shape \(4,\), got \(4, 1\)"),
        (LABELS.tolist(), TypeError, r"target must be a tensor, got list; .*mg\.tensor"),
        (LABELS.numpy(), TypeError, "target must be a tensor, got ndarray"),
        (None, TypeError, "target must be a tensor, got NoneType"),
    ],
)
def test_labels_that_are_wrong(labels, error, words):
    with pytest.raises(error, match=f"cross_entropy: .*{words}"):
        nn.CrossEntropyLoss()(SCORES, labels)


def test_probabilities_of_no_classes():
    assert F.cross_entropy(mg.ones(3, 0), mg.ones(3, 0), label_smoothing=0.1).item() == 0.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: F.layer_norm(SCORES, 3), "layer_norm: normalized_shape must be a tuple or a list, got 3"),
        (lambda: F.rms_norm(SCORES, 3), "rms_norm: normalized_shape must be a tuple or a list, got 3"),
        (lambda: F.pad(SCORES, 1), "pad: the widths must be a tuple or a list, got 1"),
        (lambda: F.elu(LABELS, inplace=True), "elu_: a result of float32 cannot be stored"),
        (lambda: mg.randperm(-1), "randperm: n must be an integer of at least 0, got -1"),
        (lambda: F.conv2d(IMAGE, KERNEL, groups=[1]), r"conv2d: groups must be an integer.*got \[1\]"),
    ],
)
def test_arguments_of_the_wrong_type(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.binary_cross_entropy_with_logits, F.nll_loss])
def test_losses_of_what_is_no_tensor(loss):
    with pytest.raises(TypeError, match=f"{loss.__name__}: target must be a tensor, got list"):
        loss(SCORES, [[0.0] * 3] * 4)
    with pytest.raises(TypeError, match=f"{loss.__name__}: input must be a tensor, got tuple"):
        loss((SCORES, SCORES), SCORES)


def test_a_wrong_label_leaves_a_training_as_it_was():
    model = nn.Linear(3, 3)
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9), nn.CrossEntropyLoss())
    before = model.weight.tolist()
    with pytest.raises(ValueError, match=r"target [567] is out of range"):
        trainer.fit((SCORES, LABELS + 5), progress=False)
    assert model.weight.tolist() == before and model.weight.grad is None
    assert trainer.fit((SCORES, LABELS), progress=False)["loss"][0] > 0


def test_arrays_go_through_a_network():
    image = np.ones((2, 1, 4, 4), np.float32)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Unflatten(1, (4, 2)), nn.Linear(2, 3)
    )
    assert model(image).shape == (2, 4, 3)
    assert nn.Sequential(nn.Flatten(), nn.Linear(16, 3))(image).shape == (2, 3)


def test_an_optimizer_of_a_model():
    with pytest.raises(
        TypeError, match=r"SGD: params must be a list of tensors, got a Linear: .*parameters\(\)"
    ):
        optim.SGD(nn.Linear(2, 2), lr=0.1)


@pytest.mark.parametrize("epochs", [-1, 1.5, "3", None])
def test_a_number_of_epochs(epochs):
    model = nn.Linear(3, 3)
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), "accuracy")
    with pytest.raises(ValueError, match="epochs must be an integer of at least 0, got"):
        trainer.fit((SCORES, LABELS), epochs, progress=False)
    assert list(trainer.evaluate((SCORES, LABELS))) == ["loss", "accuracy"]


def test_the_wrong_part_of_a_data_set():
    with pytest.raises(ValueError, match="Digits: train must be True or False, got 'test'"):
        Digits(train="test")


# ---- sizes that overflow ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: mg.zeros(2**62),
        lambda: mg.zeros(2**62, 4),
        lambda: mg.ones(2**31, 2**31, 2**31),
        lambda: mg.empty(2**63),
        lambda: mg.zeros(2**100),
        lambda: mg.full((2**33, 2**33), 1),
        lambda: mg.randn(2**62),
        lambda: mg.rand(2**40, 2**40),
        lambda: mg.eye(2**40),
        lambda: mg.arange(2**62),
        lambda: mg.linspace(0, 1, 2**62),
        lambda: mg.randint(5, (2**62,)),
        lambda: mg.ones(1).expand(2**62),
        lambda: mg.ones(1, 1).expand(2**62, 2**62),
        lambda: mg.ones(4).reshape(2**32, 2**32),
        lambda: mg.ones(0).reshape(2**63, 2**63, 0),
        lambda: mg.ones(4).reshape(2**64, -1),
        lambda: F.pad(mg.ones(2), (2**62, 2**62)),
        lambda: F.conv2d(IMAGE, KERNEL, padding=2**62),
        lambda: F.conv2d(IMAGE, KERNEL, padding=2**31 - 1),
        lambda: F.conv2d(IMAGE, KERNEL, dilation=2**62),
        lambda: F.conv2d(IMAGE, KERNEL, dilation=2**31 - 1),
        lambda: F.adaptive_avg_pool2d(IMAGE, 2**31 - 1),
        lambda: F.adaptive_avg_pool2d(IMAGE, 2**40),
        lambda: F.max_pool2d(IMAGE, 2**31 - 1),
        lambda: F.avg_pool2d(IMAGE, (2**40, 1)),
        lambda: F.interpolate(IMAGE, scale_factor=1e9),
    ],
)
def test_sizes_beyond_memory_are_an_error(call):
    with pytest.raises(
        (ValueError, MemoryError, OverflowError), match=r"(?i)big|large|fit|dimension|allocat|2\^31|max"
    ):
        call()


def test_products_of_huge_empty_shapes():
    huge = mg.zeros(2**40, 0)
    assert huge.numel() == 0 and (huge.T @ huge).shape == (0, 0) and huge.sum().item() == 0.0
    with pytest.raises((ValueError, MemoryError)):
        huge @ huge.T  # 2^80 zeros


def test_a_large_stride_is_no_problem():
    assert F.conv2d(IMAGE, KERNEL, stride=2**31 - 1).shape == (1, 3, 1, 1)
    assert F.max_pool2d(IMAGE, 2, stride=2**31 - 1).shape == (1, 2, 1, 1)
    assert F.avg_pool2d(IMAGE, 2, stride=2**31 - 1).tolist() == [[[[1.0]], [[1.0]]]]


# ---- empty ------------------------------------------------------------------------------------------------

EMPTY = {
    "exp": mg.exp,
    "relu": mg.relu,
    "softmax": lambda x: mg.softmax(x, 1),
    "log_softmax": lambda x: mg.log_softmax(x, 0),
    "sum": mg.sum,
    "sum_0": lambda x: x.sum(0),
    "prod": lambda x: x.prod(1),
    "matmul": lambda x: x @ x.T,
    "concat": lambda x: mg.concat([x, x], 1),
    "index": lambda x: x[:, :0],
    "advanced_index": lambda x: x[np.zeros(0, np.int64)],
    "reshape": lambda x: x.reshape(x.shape[1], x.shape[0]),
    "flip": lambda x: x.flip(0, 1),
    "where": lambda x: mg.where(x > 0, x, 1.0),
    "clamp": lambda x: x.clamp(0.0, 1.0),
    "dropout": F.dropout,
    "norm": lambda x: x.norm(1),
}


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("name", EMPTY)
def test_empty_tensors(name, shape, device):
    x = mg.zeros(*shape, device=device, requires_grad=True)
    y = EMPTY[name](x)
    y.sum().backward()
    assert x.grad.shape == shape and x.grad.device is device


@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_of_zero_goes_through_a_network(batch, device):
    x = mg.ones(batch, 2, 4, 4, device=device)
    weight = mg.ones(3, 2, 3, 3, device=device, requires_grad=True)
    linear = mg.ones(3, 5, device=device, requires_grad=True)
    hidden = F.max_pool2d(F.conv2d(x, weight, padding=1).relu(), 2)
    out = F.adaptive_avg_pool2d(hidden, 1).flatten(1) @ linear
    F.cross_entropy(out, mg.zeros(batch, dtype=mg.int64, device=device), reduction="sum").backward()
    assert out.shape == (batch, 5) and weight.grad.shape == weight.shape
    assert batch or ((weight.grad == 0.0).all() and (linear.grad == 0.0).all())


def test_images_without_pixels_or_channels():
    for shape in ((1, 2, 0, 4), (1, 2, 4, 0), (1, 2, 0, 0)):
        with pytest.raises(ValueError, match="larger than the padded"):
            F.conv2d(mg.ones(*shape), KERNEL)
    padded = F.conv2d(mg.ones(1, 2, 0, 4), KERNEL, padding=2)
    assert padded.shape == (1, 3, 2, 6) and (padded == 0.0).all()
    assert (F.conv2d(mg.ones(1, 0, 4, 4), mg.ones(3, 0, 3, 3), mg.ones(3)) == 1.0).all()
    assert F.conv2d(IMAGE, mg.ones(0, 2, 3, 3)).shape == (1, 0, 2, 2)
    assert F.max_pool2d(mg.ones(1, 0, 4, 4), 2).shape == (1, 0, 2, 2)


# ---- layouts and read-only memory -------------------------------------------------------------------------


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


SOURCES = {
    "read_only": read_only,
    "negative_strides": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "sliced": lambda x: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3],
    "zero_strides": lambda x: np.broadcast_to(x[:1], x.shape),
}

USES = {
    "relu": mg.relu,
    "exp": mg.exp,
    "softmax": lambda x: mg.softmax(x, 1),
    "softmax_0": lambda x: mg.softmax(x, 0),
    "matmul": lambda x: x @ x.T,
    "sum": lambda x: x.sum(0),
    "conv2d": lambda x: F.conv2d(x.reshape(1, 1, 6, 8), mg.ones(2, 1, 3, 3)),
    "conv2d_weight": lambda x: F.conv2d(mg.ones(1, 1, 9, 9), x.reshape(1, 1, 6, 8)),
    "max_pool2d": lambda x: F.max_pool2d(x.reshape(1, 1, 6, 8), 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x.unsqueeze(0), 2),
    "cross_entropy": lambda x: F.cross_entropy(x, mg.zeros(6, dtype=mg.int64)),
    "index": lambda x: x[[0, 1, 0], 2:],
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "gelu": F.gelu,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f4", "f8"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("use", USES)
def test_any_memory_layout(use, source, dtype, rng):
    array = SOURCES[source](rng.standard_normal((6, 8)).astype(dtype))
    plain = mg.tensor(array.copy(), requires_grad=True)
    odd = mg.from_numpy(array).requires_grad_()
    outputs = [USES[use](x.to(mg.float32) if "conv" in use else x) for x in (plain, odd)]
    np.testing.assert_allclose(outputs[0].detach().numpy(), outputs[1].detach().numpy(), rtol=1e-5, atol=1e-5)
    for y in outputs:
        (y * y).sum().backward()
    np.testing.assert_allclose(plain.grad.numpy(), odd.grad.numpy(), rtol=1e-4, atol=1e-4)
    with mg.no_grad():
        odd.grad += 1.0  # a gradient can be written to, whatever its tensor was


def test_memory_that_is_not_aligned():
    array = np.ndarray((2, 3), np.float32, bytearray(1 + 24), offset=1)
    array[...] = 2.0
    with pytest.raises(ValueError, match=r"aligned.*copy\(\)"):
        mg.from_numpy(array)
    for x in (mg.tensor(array), mg.as_tensor(array)):
        assert mg.relu(x).tolist() == [[2.0] * 3] * 2


def test_read_only_memory_is_not_written_to():
    array = read_only(np.ones(3, np.float32))
    x = mg.from_numpy(array)
    writes = (
        lambda: x.add_(1.0),
        lambda: x.zero_(),
        lambda: x.__setitem__(0, 5.0),
        lambda: x.clamp_(2.0, 3.0),
        lambda: x.copy_(mg.zeros(3)),
        lambda: x[1:].mul_(2.0),
    )
    for write in writes:
        with pytest.raises(ValueError, match="read-only"):
            write()
    assert array.tolist() == [1.0, 1.0, 1.0]


def test_overlapping_writes():
    x = mg.arange(6.0)
    x[1:] = x[:-1]
    assert x.tolist() == [0.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    x[:-1] += x[1:]
    assert x.tolist() == [0.0, 1.0, 3.0, 5.0, 7.0, 4.0]


# ---- NaN, and seeds ---------------------------------------------------------------------------------------


def test_nan_flows_through_a_network():
    x = mg.full((2, 1, 6, 6), math.nan)
    y = F.max_pool2d(F.conv2d(x, mg.zeros(1, 1, 3, 3)).relu(), 2).flatten(1) @ mg.zeros(4, 2)
    assert y.isnan().all() and math.isnan(F.cross_entropy(y, mg.tensor([0, 1])).item())


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "a", None])
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match=r"seed.*2\^63"):
        mg.manual_seed(seed)


def test_the_same_seed_gives_the_same_numbers(device):
    draws = []
    for _ in range(2):
        mg.manual_seed(3)
        made = mg.rand(5, device=device), mg.randn(5, device=device), mg.randperm(9), mg.randint(0, 9, (4,))
        draws.append([t.tolist() for t in made])
    assert draws[0] == draws[1]


def test_bad_ranges():
    with pytest.raises(ValueError, match="step"):
        mg.arange(0, 5, 0)
    with pytest.raises(ValueError, match="low < high"):
        mg.randint(5, 5, (2,))
    with pytest.raises(TypeError, match=r"randint|integers|int64"):
        mg.randn(2, dtype=mg.int64)
    assert mg.arange(5, 0).shape == (0,) and mg.arange(3, 0, -1).tolist() == [3, 2, 1]


def test_to_an_unknown_place_names_the_devices():
    with pytest.raises(mg.errors.DeviceError, match=r"unknown device 'mps'.*cpu, cuda, sim"):
        mg.zeros(2).to("mps")
    with pytest.raises(mg.errors.DeviceError, match="unknown device 'mps'"):
        nn.Linear(2, 2).to("mps")
    assert nn.Linear(2, 2).to("float64").to("cpu").weight.dtype == mg.float64


def test_a_number_beyond_float32_becomes_infinity():
    assert mg.tensor([1e40, -1e40]).tolist() == [np.inf, -np.inf]
