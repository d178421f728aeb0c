"""Layers, losses, initial state and optimizers against PyTorch, where it is installed."""

import itertools
import re

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn as nn
import minigrad.nn.functional as F
from minigrad import optim

torch = pytest.importorskip("torch")

IMAGES, SIGNALS, TABLE, SEQUENCE = (3, 4, 9, 8), (3, 4, 11), (6, 4), (5, 4, 3)


def twins(make, **options):
    """``make(nn)`` here and in PyTorch, in float64, with the same weights."""
    mine, theirs = make(nn, **options).double(), make(torch.nn, **options).double()
    if theirs.state_dict():
        mine.load_state_dict({k: mg.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    return mine, theirs


def assert_same(mine, theirs, name=""):
    np.testing.assert_allclose(
        mine.detach().numpy(), theirs.detach().numpy(), rtol=1e-9, atol=1e-11, err_msg=name
    )


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


LAYERS = [
    (TABLE, lambda m: m.Linear(4, 7)),
    (SEQUENCE, lambda m: m.Linear(3, 2, bias=False)),
    (TABLE, lambda m: m.DataParallel(m.Linear(4, 7))),
    (IMAGES, lambda m: m.Conv2d(4, 6, 3)),
    (IMAGES, lambda m: m.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), bias=False)),
    (IMAGES, lambda m: m.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2)),
    (IMAGES, lambda m: m.Conv2d(4, 8, 1, stride=2, groups=4)),
    (IMAGES, lambda m: m.Conv2d(4, 2, (3, 5), padding="same")),
    (IMAGES, lambda m: m.Conv2d(4, 2, (1, 3), padding="valid")),
    (IMAGES, lambda m: m.ConvTranspose2d(4, 6, 3)),
    (IMAGES, lambda m: m.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=1)),
    (IMAGES, lambda m: m.ConvTranspose2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False)),
    (IMAGES, lambda m: m.ConvTranspose2d(4, 2, 3, padding=2, output_padding=2, dilation=3)),
    (IMAGES, lambda m: m.Conv2d(4, 2, (2, 4), padding="same")),
    (IMAGES, lambda m: m.Conv2d(4, 2, (2, 4), padding="same", padding_mode="reflect")),
    (IMAGES, lambda m: m.Conv2d(4, 2, 3, padding=(1, 2), padding_mode="circular", bias=False)),
    (SIGNALS, lambda m: m.Conv1d(4, 6, 3)),
    (SIGNALS, lambda m: m.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=False)),
    (SIGNALS, lambda m: m.Conv1d(4, 6, 4, padding="same")),
    (SIGNALS[1:], lambda m: m.Conv1d(4, 6, 3, padding=2, padding_mode="replicate")),
    (SIGNALS, lambda m: m.ConvTranspose1d(4, 6, 3)),
    (SIGNALS, lambda m: m.ConvTranspose1d(4, 6, 3, 3, 1, output_padding=2, groups=2, dilation=2)),
    (SIGNALS, lambda m: m.MaxPool1d(3, stride=2, padding=1, ceil_mode=True)),
    (SIGNALS[1:], lambda m: m.MaxPool1d(2, dilation=2)),
    (SIGNALS, lambda m: m.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    (SIGNALS, lambda m: m.AdaptiveAvgPool1d(4)),
    (SIGNALS, lambda m: m.AdaptiveMaxPool1d(4)),
    (IMAGES, lambda m: m.AdaptiveMaxPool2d((4, 3))),
    (IMAGES, lambda m: m.AdaptiveMaxPool2d((3, None))),
    (IMAGES[1:], lambda m: m.AdaptiveMaxPool2d(12)),
    (IMAGES, lambda m: m.Upsample(scale_factor=2)),
    (IMAGES, lambda m: m.Upsample(size=(5, 13))),
    (IMAGES, lambda m: m.Upsample(scale_factor=(1.7, 0.6), mode="nearest-exact")),
    (IMAGES, lambda m: m.Upsample(scale_factor=2, mode="bilinear")),
    (IMAGES, lambda m: m.Upsample(size=(5, 13), mode="bilinear", align_corners=True)),
    (IMAGES, lambda m: m.Upsample(scale_factor=(1.7, 0.6), mode="bilinear")),
    (IMAGES, lambda m: m.Upsample(scale_factor=2, mode="bicubic")),
    (IMAGES, lambda m: m.Upsample(size=(5, 13), mode="bicubic", align_corners=True)),
    (IMAGES, lambda m: m.Upsample(scale_factor=(1.7, 0.6), mode="bicubic")),
    (IMAGES, lambda m: m.Upsample(size=(5, 13), mode="area")),
    (SIGNALS, lambda m: m.Upsample(size=25, mode="linear")),
    (IMAGES, lambda m: m.UpsamplingBilinear2d(scale_factor=3)),
    (IMAGES, lambda m: m.UpsamplingNearest2d(scale_factor=3)),
    (SIGNALS, lambda m: m.CircularPad1d((2, 1))),
    (IMAGES, lambda m: m.LocalResponseNorm(3, alpha=0.3)),
    (SIGNALS, lambda m: m.LocalResponseNorm(2, 0.5, 1.5, k=2.0)),
    (SIGNALS, lambda m: m.ZeroPad1d((3, 0))),
    (IMAGES, lambda m: m.ConstantPad2d((0, 2, 1, 3), -1.5)),
    (IMAGES, lambda m: m.PixelShuffle(2)),
    ((2, 3, 6, 9), lambda m: m.PixelUnshuffle(3)),
    (IMAGES, lambda m: m.ChannelShuffle(2)),
    (IMAGES, lambda m: m.Unfold((3, 2), dilation=(1, 2), padding=1, stride=(2, 1))),
    ((2, 12, 30), lambda m: m.Fold((7, 8), (3, 2), dilation=(1, 2), stride=(1, 1))),
    (IMAGES, lambda m: m.ReflectionPad2d((1, 2, 0, 3))),
    (SIGNALS, lambda m: m.ReflectionPad1d(2)),
    (IMAGES, lambda m: m.ReplicationPad2d((1, 2, 0, 9))),
    (SIGNALS[1:], lambda m: m.ReplicationPad1d((0, 2))),
    (IMAGES, lambda m: m.CircularPad2d(3)),
    (IMAGES, lambda m: m.ZeroPad2d((1, -2, 0, 3))),
    (SIGNALS, lambda m: m.ConstantPad1d((2, 1), 3.5)),
    (SIGNALS, lambda m: m.InstanceNorm1d(4)),
    (IMAGES, lambda m: m.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    (IMAGES, lambda m: m.InstanceNorm2d(4, affine=True, track_running_stats=True).eval()),
    (SEQUENCE, lambda m: m.RMSNorm(3)),
    (IMAGES, lambda m: m.RMSNorm((9, 8), eps=1e-2, elementwise_affine=False)),
    ((3, 12), lambda m: m.Unflatten(1, (3, -1))),
    (IMAGES, lambda m: m.MaxPool2d(2)),
    (IMAGES, lambda m: m.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)),
    (IMAGES, lambda m: m.MaxPool2d((2, 3), stride=1, dilation=2)),
    (IMAGES, lambda m: m.AvgPool2d(3, stride=2, padding=1)),
    (IMAGES, lambda m: m.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    (IMAGES, lambda m: m.AdaptiveAvgPool2d((4, 3))),
    (IMAGES, lambda m: m.AdaptiveAvgPool2d((None, 1))),
    (IMAGES, lambda m: m.BatchNorm2d(4)),
    (IMAGES, lambda m: m.BatchNorm2d(4, momentum=None, affine=False)),
    (IMAGES, lambda m: m.BatchNorm2d(4, eps=1e-2, track_running_stats=False)),
    (TABLE, lambda m: m.BatchNorm1d(4, momentum=0.5)),
    (SEQUENCE, lambda m: m.BatchNorm1d(4)),
    (IMAGES, lambda m: m.BatchNorm2d(4).eval()),
    (SEQUENCE, lambda m: m.LayerNorm(3)),
    (IMAGES, lambda m: m.LayerNorm((9, 8), eps=1e-2)),
    (TABLE, lambda m: m.LayerNorm([4], elementwise_affine=False)),
    (TABLE, lambda m: m.LayerNorm(4, bias=False)),
    (IMAGES, lambda m: m.GroupNorm(2, 4)),
    (SEQUENCE, lambda m: m.GroupNorm(4, 4, eps=1e-2, affine=False)),
    (TABLE, lambda m: m.GroupNorm(1, 4)),
    (IMAGES, lambda m: m.Flatten(1, 2)),
    (TABLE, lambda m: m.Dropout(0.5).eval()),
    (TABLE, lambda m: m.Identity()),
    (TABLE, lambda m: m.ReLU()),
    (TABLE, lambda m: m.ReLU(inplace=True)),
    (TABLE, lambda m: m.LeakyReLU(0.3)),
    (TABLE, lambda m: m.ELU(0.7)),
    (TABLE, lambda m: m.SiLU()),
    (TABLE, lambda m: m.GELU()),
    (TABLE, lambda m: m.GELU("tanh")),
    (TABLE, lambda m: m.Sigmoid()),
    (TABLE, lambda m: m.LogSigmoid()),
    (TABLE, lambda m: m.Tanh()),
    (TABLE, lambda m: m.Softplus(3.0, threshold=1.0)),
    (TABLE, lambda m: m.CELU(0.5)),
    (TABLE, lambda m: m.SELU()),
    (TABLE, lambda m: m.Mish()),
    (TABLE, lambda m: m.PReLU()),
    (IMAGES, lambda m: m.PReLU(4, init=0.4)),
    ((5,), lambda m: m.PReLU()),
    (TABLE, lambda m: m.ReLU6(inplace=True)),
    (TABLE, lambda m: m.Hardtanh(-0.5, 0.7)),
    (TABLE, lambda m: m.Hardswish()),
    (TABLE, lambda m: m.Softshrink(0.3)),
    (TABLE, lambda m: m.Hardshrink(0.3)),
    (TABLE, lambda m: m.Threshold(0.2, -3.0)),
    (TABLE, lambda m: m.Tanhshrink()),
    (TABLE, lambda m: m.Softsign()),
    (TABLE, lambda m: m.GLU()),
    (IMAGES, lambda m: m.GLU(dim=1)),
    (TABLE, lambda m: m.Softmin(dim=1)),
    (IMAGES, lambda m: m.Softmax2d()),
    (SEQUENCE, lambda m: m.Softmax(dim=1)),
    (SEQUENCE, lambda m: m.LogSoftmax(-1)),
    (IMAGES, lambda m: m.Sequential(m.Conv2d(4, 3, 3), m.ReLU(), m.Flatten(), m.Linear(126, 2))),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # which PyTorch warns of
@pytest.mark.parametrize(("shape", "make"), LAYERS)
def test_layers(shape, make):
    mine, theirs = twins(make)
    assert repr(mine) == re.sub(r"(affine=\w+), bias=\w+", r"\1", repr(theirs))  # PyTorch 2.13 adds a bias
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for seed in range(2):  # twice, for what running statistics do to the second batch
        array = random(shape, seed)
        x, x_theirs = mg.tensor(array, requires_grad=True), torch.tensor(array, requires_grad=True)
        y, y_theirs = mine(x * 1.0), theirs(x_theirs * 1.0)
        assert_same(y, y_theirs, "output")
        g = random(tuple(y_theirs.shape), seed + 10)
        y.backward(mg.tensor(g))
        y_theirs.backward(torch.tensor(g))
        assert_same(x.grad, x_theirs.grad, "gradient of the input")
    for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert_same(p.grad, q.grad, name)
    for (name, b), c in zip(mine.named_buffers(), theirs.buffers(), strict=True):
        assert_same(b, c, name)


SEEN = np.random.default_rng(5).random((5, 7)) < 0.5
SEEN[2] = False  # a query that sees nothing
ATTENTIONS = [
    ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), {}),
    ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), {"is_causal": True}),
    ((9, 4), (7, 4), (7, 3), {"is_causal": True, "scale": 0.7}),
    ((2, 5, 4), (7, 4), (2, 7, 3), {"scale": -0.3}),
    ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), {"attn_mask": SEEN}),
    ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), {"attn_mask": np.where(SEEN, 0.5, -np.inf)}),
    ((3, 60, 20), (3, 150, 20), (3, 150, 20), {"is_causal": True}),
]


@pytest.mark.parametrize(("q", "k", "v", "options"), ATTENTIONS)
def test_attention(q, k, v, options):
    results = []
    for module, tensor in ((F, mg.tensor), (torch.nn.functional, torch.tensor)):
        own = {name: tensor(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}
        inputs = [tensor(random(shape, seed), requires_grad=True) for seed, shape in enumerate((q, k, v))]
        y = module.scaled_dot_product_attention(*inputs, **own)
        (y * tensor(random(tuple(y.shape), 9))).sum().backward()
        results.append([y, *(x.grad for x in inputs)])
    for mine, theirs in zip(*results, strict=True):
        assert_same(mine, theirs)


def test_transposed_convolution_to_a_given_size():
    mine, theirs = twins(lambda m: m.ConvTranspose2d(4, 3, 3, stride=(2, 3), padding=1))
    x = random(IMAGES)
    for size in ((17, 22), (18, 24), (3, 3, 18, 23)):
        assert_same(mine(mg.tensor(x), size), theirs(torch.tensor(x), size), str(size))


def classes(*shape):
    return np.random.default_rng(3).integers(0, 4, shape)


def shares(*shape):
    return np.random.default_rng(3).random(shape)


def signs(*shape):
    return np.random.default_rng(3).choice([-1.0, 1.0], shape)


WEIGHT = np.array([0.5, 2.0, 1.0, 3.0])
LOSSES = [
    ("CrossEntropyLoss", (6, 4), classes(6), {}),
    ("CrossEntropyLoss", (4,), classes(), {}),
    ("CrossEntropyLoss", (5, 4, 3, 2), classes(5, 3, 2), {"ignore_index": 2}),
    ("CrossEntropyLoss", (5, 4, 3, 2), classes(5, 3, 2), {"ignore_index": 2, "label_smoothing": 0.2}),
    ("CrossEntropyLoss", (6, 4), classes(6), {"weight": WEIGHT, "ignore_index": 1, "label_smoothing": 0.1}),
    ("CrossEntropyLoss", (6, 4), shares(6, 4), {"weight": WEIGHT, "label_smoothing": 0.1}),
    ("NLLLoss", (6, 4), classes(6), {"weight": WEIGHT}),
    ("NLLLoss", (5, 4, 3), classes(5, 3), {"ignore_index": 0}),
    ("MSELoss", (6, 4), random((6, 4), 1), {}),
    ("L1Loss", (6, 4), random((6, 4), 1), {}),
    ("BCEWithLogitsLoss", (6, 4), shares(6, 4), {"weight": WEIGHT, "pos_weight": WEIGHT}),
    ("BCELoss", (6, 4), shares(6, 4), {"weight": WEIGHT}),
    ("SmoothL1Loss", (6, 4), random((6, 4), 1), {"beta": 0.7}),
    ("SmoothL1Loss", (6, 4), random((6, 4), 1), {"beta": 0.0}),
    ("HuberLoss", (6, 4), random((6, 4), 1), {"delta": 0.7}),
    ("KLDivLoss", (6, 4), shares(6, 4).round(), {}),
    ("KLDivLoss", (6, 4), np.log(shares(6, 4)), {"log_target": True}),
    ("PoissonNLLLoss", (6, 4), classes(6, 4) * 1.0, {"full": True}),
    ("PoissonNLLLoss", (6, 4), classes(6, 4) * 1.0, {"log_input": False, "eps": 9.0}),
    ("SoftMarginLoss", (6, 4), signs(6, 4), {}),
    ("HingeEmbeddingLoss", (6, 4), signs(6, 4), {"margin": 0.5}),
    ("MultiLabelSoftMarginLoss", (6, 4), shares(6, 4).round(), {"weight": WEIGHT}),
    ("MultiMarginLoss", (6, 4), classes(6), {"weight": WEIGHT, "margin": 0.7}),
    ("MultiMarginLoss", (6, 4), classes(6), {"p": 2}),
    ("MultiMarginLoss", (4,), classes(), {}),
]


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # of KLDivLoss, which PyTorch warns of
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "shape", "target", "options"), LOSSES)
def test_losses(name, shape, target, options, reduction):
    array = shares(*shape) if name == "BCELoss" else random(shape)
    results = []
    for module, tensor in ((nn, mg.tensor), (torch.nn, torch.tensor)):
        own = {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        x = tensor(array, requires_grad=True)
        loss = getattr(module, name)(reduction=reduction, **own)(x, tensor(target))
        loss.sum().backward()
        results.append((loss, x.grad))
    assert_same(results[0][0], results[1][0], "loss")
    assert_same(results[0][1], results[1][1], "gradient")


LOSSES_OF_SEVERAL = [
    ("MarginRankingLoss", ((6, 4), (6, 4)), (signs(6, 4),), {"margin": 0.2}),
    ("CosineEmbeddingLoss", ((6, 4), (6, 4)), (signs(6),), {"margin": 0.1}),
    ("CosineEmbeddingLoss", ((4,), (4,)), (signs(),), {}),
    ("TripletMarginLoss", ((6, 4), (6, 4), (6, 4)), (), {}),
    ("TripletMarginLoss", ((6, 4), (6, 4), (6, 4)), (), {"margin": 2.0, "p": 1.0, "swap": True}),
    ("GaussianNLLLoss", ((6, 4), (6, 4)), (shares(6, 4),), {"full": True}),
    ("GaussianNLLLoss", ((6, 4), (6, 4)), (shares(6),), {"eps": 0.5}),
]


DISTANCES = [
    lambda m: m.CosineSimilarity(),
    lambda m: m.CosineSimilarity(0, eps=0.5),
    lambda m: m.PairwiseDistance(),
    lambda m: m.PairwiseDistance(1.0, eps=1e-3, keepdim=True),
    lambda m: m.Bilinear(4, 4, 3),
    lambda m: m.Bilinear(4, 4, 2, bias=False),
]


@pytest.mark.parametrize("make", DISTANCES)
def test_distances(make):
    results = []
    mine, theirs = twins(make)
    for layer, tensor in ((mine, mg.tensor), (theirs, torch.tensor)):
        inputs = [tensor(random((6, 4), seed), requires_grad=True) for seed in range(2)]
        y = layer(*inputs)
        (y * y).sum().backward()
        results.append((y, *(x.grad for x in (*inputs, *layer.parameters()))))
    for one, other in zip(*results, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "shapes", "targets", "options"), LOSSES_OF_SEVERAL)
def test_losses_of_several_inputs(name, shapes, targets, options, reduction):
    results = []
    for module, tensor in ((nn, mg.tensor), (torch.nn, torch.tensor)):
        inputs = [tensor(random(shape, seed), requires_grad=True) for seed, shape in enumerate(shapes)]
        loss = getattr(module, name)(reduction=reduction, **options)(*inputs, *map(tensor, targets))
        loss.sum().backward()
        results.append((loss, *(x.grad for x in inputs)))
    for one, other in zip(*results, strict=True):
        assert_same(one, other)


SEQUENCES = "test_sequences_against_torch.py"
LAZY = "test_lazy_layers.py"
COMPARED_ELSEWHERE = {
    **dict.fromkeys(["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"], SEQUENCES),
    **dict.fromkeys(["MultiheadAttention", "TransformerEncoder", "TransformerEncoderLayer"], SEQUENCES),
    **dict.fromkeys(["TransformerDecoder", "TransformerDecoderLayer"], SEQUENCES),
    "Transformer": "test_short_names.py",
    **dict.fromkeys(["Embedding", "EmbeddingBag"], "test_embedding.py"),
    "CTCLoss": "test_ctc_loss.py",
    **dict.fromkeys(["LazyLinear", "LazyConv1d", "LazyConv2d"], LAZY),
    **dict.fromkeys(["LazyConvTranspose1d", "LazyConvTranspose2d"], LAZY),
    **dict.fromkeys(["LazyBatchNorm1d", "LazyBatchNorm2d"], LAZY),
    "MaxUnpool2d": "test_nn_against_torch.py",
    "Hardsigmoid": "test_nn_against_torch.py",  # in float32 alone: PyTorch's gradient has a 1/6 in float32
}
NOT_COMPARED = {
    "Module": "it computes nothing",
    **dict.fromkeys(["ModuleDict", "ModuleList", "ParameterDict", "ParameterList"], "they compute nothing"),
    **dict.fromkeys(["AlphaDropout", "Dropout1d", "Dropout2d"], "random: see test_nn_layers.py"),
}


def test_every_layer_and_loss_is_compared(repo_root):
    made = set()

    class Noting:
        def __getattr__(self, name):
            made.add(name)
            return getattr(nn, name)

    for make in (*(make for _, make in LAYERS), *DISTANCES):
        make(Noting())
    made.update(row[0] for row in (*LOSSES, *LOSSES_OF_SEVERAL))
    exported = [name for name in nn.__all__ if isinstance(getattr(nn, name), type)]
    layers = {name for name in exported if issubclass(getattr(nn, name), nn.Module)}
    missing = layers - made - set(COMPARED_ELSEWHERE) - set(NOT_COMPARED)
    assert not missing, f"compare with PyTorch, in LAYERS or LOSSES, or say why not: {sorted(missing)}"
    assert not made & {*COMPARED_ELSEWHERE, *NOT_COMPARED} and {*COMPARED_ELSEWHERE, *NOT_COMPARED} <= layers
    for name, file in COMPARED_ELSEWHERE.items():
        assert name in (repo_root / "tests" / file).read_text(), f"{file} compares {name} no longer"


def test_what_losses_take_besides():
    x, probabilities = random((5, 4, 3), 1), shares(5, 4, 3)
    variance = shares(5, 4, 1)
    results = []
    for module, tensor in ((F, mg.tensor), (torch.nn.functional, torch.tensor)):
        a, p = tensor(x), tensor(probabilities)
        results.append([
            module.kl_div(a, p, reduction="batchmean"),
            module.huber_loss(a, p, weight=p),
            module.mse_loss(a, p * 0.5, weight=p),
            module.l1_loss(a, p * 0.5, weight=p),
            module.cross_entropy(a, p, tensor(WEIGHT), label_smoothing=0.2),
            module.gaussian_nll_loss(a, p, tensor(variance)),
            module.gaussian_nll_loss(a, p, 0.5),
            module.cosine_similarity(a, p, dim=-1),
            module.pairwise_distance(a, p, 1.0, keepdim=True),
        ])  # fmt: skip
    for one, other in zip(*results, strict=True):
        assert_same(one, other)


def test_gradients_at_the_kinks():
    values = [-3.5, -1.0, -0.5, 0.0, 0.5, 1.0, 6.0, float("nan"), float("inf"), -float("inf")]
    names = ("relu6", "hardtanh", "hardsigmoid", "softshrink", "hardshrink", "elu", "celu", "selu", "mish")
    for name in (*names, "softsign", "tanhshrink", "logsigmoid", "softplus"):
        results = []
        for module, tensor in ((F, mg.tensor), (torch.nn.functional, torch.tensor)):
            x = tensor(values, requires_grad=True)
            y = getattr(module, name)(x)
            y.sum().backward()
            results.append((y.detach().numpy(), x.grad.numpy()))
        for one, other in zip(*results, strict=True):
            finite = slice(None) if name in ("elu", "celu", "selu") else slice(-3)
            np.testing.assert_allclose(one[finite], other[finite], rtol=1e-6, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6, atol=1e-7, err_msg=name)


def test_binary_cross_entropy_at_the_ends():
    results = []
    for module, tensor in ((nn, mg.tensor), (torch.nn, torch.tensor)):
        x = tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
        module.BCELoss(reduction="sum")(x, tensor([0.0, 1.0, 1.0, 0.0])).backward()
        results.append(x.grad.numpy())
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_functions():
    x = random((4, 5))
    mine, theirs = mg.tensor(x), torch.tensor(x)
    G = torch.nn.functional
    assert_same(F.normalize(mine, dim=0), G.normalize(theirs, dim=0))
    assert_same(F.normalize(mine, 1.0), G.normalize(theirs, 1.0))
    assert_same(F.pad(mine, (1, 2, 0, 3), value=7.0), G.pad(theirs, (1, 2, 0, 3), value=7.0))
    labels = np.array([[0, 2], [1, 1]])
    assert_same(F.one_hot(mg.tensor(labels), 4), G.one_hot(torch.tensor(labels), 4))


def test_max_pooling_with_indices_and_back():
    x = random(IMAGES)
    results = []
    for module, tensor in ((nn, mg.tensor), (torch.nn, torch.tensor)):
        a = tensor(x, requires_grad=True)
        values, places = module.MaxPool2d(3, 3, 1, return_indices=True)(a)
        back = module.MaxUnpool2d(3, 3, 1)(values, places, IMAGES)
        (back * tensor(random(IMAGES, 1))).sum().backward()
        uneven = module.AdaptiveMaxPool2d((4, 3), return_indices=True)(tensor(x))
        signal = module.MaxPool1d(3, return_indices=True)(tensor(x[0]))
        results.append([values, places, back, a.grad, *uneven, *signal])
    for one, other in zip(*results, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])
def test_clipping(p):
    results = []
    for module, tensor in ((nn, mg.tensor), (torch.nn, torch.tensor)):
        parameters = [module.Parameter(tensor(random(shape))) for shape in ((3, 4), (5,))]
        for i, parameter in enumerate(parameters):
            parameter.grad = tensor(random(tuple(parameter.shape), i))
        total = module.utils.clip_grad_norm_(parameters, 1.5, norm_type=p)
        module.utils.clip_grad_value_(parameters, 0.4)
        results.append([total, *(parameter.grad for parameter in parameters)])
    for mine, theirs in zip(*results, strict=True):
        assert_same(mine, theirs)


OPTIMIZERS = [
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.02, "betas": (0.7, 0.9), "eps": 1e-4, "weight_decay": 0.1, "maximize": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.02, "betas": (0.7, 0.9), "weight_decay": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_training_takes_the_same_path(name, options):
    def make(m):
        return m.Sequential(m.Linear(4, 8), m.Tanh(), m.Linear(8, 3))

    x, target = random(TABLE), np.array([0, 1, 2, 0, 1, 2])
    mine, theirs = twins(make)
    runs = (
        (mine, optim, mg.tensor, F.cross_entropy),
        (theirs, torch.optim, torch.tensor, torch.nn.functional.cross_entropy),
    )
    for net, library, tensor, loss in runs:
        optimizer = getattr(library, name)(net.parameters(), **options)
        schedule = library.lr_scheduler.StepLR(optimizer, 8, gamma=0.5)
        for _ in range(20):
            optimizer.zero_grad()
            loss(net(tensor(x)), tensor(target)).backward()
            optimizer.step()
            schedule.step()
    for (key, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert_same(p, q, key)


@pytest.mark.parametrize(
    "make",
    [
        lambda s, o: s.StepLR(o, 3, gamma=0.3),
        lambda s, o: s.MultiStepLR(o, [2, 5, 5], gamma=0.3),
        lambda s, o: s.ExponentialLR(o, 0.9),
        lambda s, o: s.LambdaLR(o, lambda epoch: 0.9**epoch + 0.1),
        lambda s, o: s.CosineAnnealingLR(o, 6, eta_min=0.01),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_schedules(make):
    found = []
    for library, parameter in (
        (optim, nn.Parameter(mg.ones(1))),
        (torch.optim, torch.nn.Parameter(torch.ones(1))),
    ):
        schedule = make(library.lr_scheduler, library.SGD([parameter], lr=0.5))
        own = []
        for _ in range(12):
            own.append(schedule.get_last_lr()[0])
            schedule.step()
        found.append(own)
    np.testing.assert_allclose(*found, rtol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: m.Linear(50, 400),
        lambda m: m.Conv2d(4, 400, 5, groups=2),
        lambda m: m.ConvTranspose2d(8, 400, 5, groups=2),
    ],
)
def test_layers_start_alike(make):
    torch.manual_seed(0)
    for mine, theirs in zip(make(nn).parameters(), make(torch.nn).parameters(), strict=True):
        limits = [np.abs(p.detach().numpy()).max() for p in (mine, theirs)]
        np.testing.assert_allclose(*limits, rtol=0.02)
        np.testing.assert_allclose(mine.detach().numpy().std(), theirs.detach().numpy().std(), rtol=0.1)


def test_classes_are_kinds_of_one_another_as_in_pytorch():
    """Programs tell layers apart by isinstance: a Conv1d is no Conv2d, a ReLU6 is a Hardtanh."""
    names = [
        name
        for name in nn.__all__
        if isinstance(getattr(nn, name), type) and isinstance(getattr(torch.nn, name, None), type)
    ]

    def pairs(lib):
        return {
            (a, b)
            for a, b in itertools.permutations(names, 2)
            if issubclass(getattr(lib, a), getattr(lib, b)) and not a.startswith("Lazy")
        }

    assert len(names) > 100 and pairs(nn) == pairs(torch.nn)
