"""Images that lie channels last stay so from op to op, on cards and on the simulator; numbers stay right."""

import copy

import numpy as np
import pytest

import minigrad as mg
from minigrad.dtypes import BFLOAT16
from minigrad.kernels import cuda, sim
from minigrad.kernels.channels_last import is_channels_last
from minigrad.kernels.cuda import pool2d_channels_last
from minigrad.nn import functional as F

HALVES = ["float16", *(["bfloat16"] if BFLOAT16 else [])]
TOLERANCES = {"float32": 2e-3, "float64": 1e-12, "float16": 4e-3, "bfloat16": 3e-2}  # TF32, for float32


@pytest.fixture(params=["sim", "cuda"])
def card(request):
    """A device on which kernels keep images channels last."""
    if request.param == "sim" and not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    if request.param == "cuda" and not cuda.is_available():
        pytest.skip(cuda.why_unavailable())
    before = mg.get_float32_matmul_precision()
    mg.set_float32_matmul_precision("high")
    yield request.param
    mg.set_float32_matmul_precision(before)


def lies_last(*tensors):
    return all(is_channels_last(x._array) for x in tensors)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def numbers(x):
    return x.detach().cpu().double().numpy()


def leaf(array, device, dtype, memory_format=mg.contiguous_format):
    x = mg.tensor(array, device=device).to(dtype)
    x = x.contiguous(memory_format=memory_format) if x.ndim == 4 else x
    return x.detach().requires_grad_()


def check(function, arrays, card, dtype, formats=None, keeps=True):
    """``function`` of ``arrays``, and its gradients for them, channels last, against float64 on the CPU.

    ``formats`` tells which of the images lie channels last, by default all. With ``keeps`` the result has to.
    Gradients lie as what they are for.
    """
    formats = formats or [mg.channels_last] * len(arrays)
    own = [leaf(a, card, dtype, f) for a, f in zip(arrays, formats, strict=True)]
    exact = [leaf(numbers(x), "cpu", "float64") for x in own]
    y, expected = function(*own), function(*exact)
    sent = drawn(*expected.shape, seed=9)
    y.backward(mg.tensor(sent, device=card).to(dtype))
    expected.backward(mg.tensor(sent).to(dtype).double())
    pairs = [(y, expected), *((a.grad, b.grad) for a, b in zip(own, exact, strict=True))]
    for found, right in pairs:
        size = abs(numbers(right)).max() if right.numel() else 0
        assert found.shape == right.shape
        assert np.allclose(numbers(found), numbers(right), rtol=0, atol=TOLERANCES[dtype] * size)
    if keeps:
        assert lies_last(y)
    for x in own:
        assert x.grad.is_contiguous(mg.channels_last if lies_last(x) else mg.contiguous_format)
    return y


# ---- the format --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_a_tensor_is_given_a_memory_format(device):
    if device == "sim" and not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    x = mg.tensor(drawn(2, 3, 4, 5), device=device, requires_grad=True)
    y = x.contiguous(memory_format=mg.channels_last)
    assert y.shape == x.shape and y.stride() == (60, 1, 15, 3)
    assert y.is_contiguous(memory_format=mg.channels_last) and not y.is_contiguous()
    assert x.is_contiguous() and not x.is_contiguous(memory_format=mg.channels_last)
    assert y.contiguous(memory_format=mg.channels_last) is y
    assert np.array_equal(numbers(y), numbers(x))
    assert y.to(memory_format=mg.contiguous_format).is_contiguous()
    (y * 2.0).sum().backward()
    assert (numbers(x.grad) == 2).all() and x.grad.is_contiguous()
    assert repr(mg.channels_last) == "minigrad.channels_last"
    with pytest.raises(
        ValueError, match=r"channels_last: needs 4 dimensions \(N, C, H, W\), got shape \(3,\)"
    ):
        mg.zeros(3).contiguous(memory_format=mg.channels_last)


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 3, 1, 1), (1, 3, 4, 5), (1, 3, 1, 1), (3, 4, 5, 1)])
def test_where_both_formats_are_the_same_memory_the_strides_tell(shape):
    x = mg.tensor(drawn(*shape))
    y = x.contiguous(memory_format=mg.channels_last)
    assert not lies_last(x) and lies_last(y)
    assert y.is_contiguous(memory_format=mg.channels_last)
    assert lies_last(copy.deepcopy(y), y.detach()) and not lies_last(y.contiguous(), y[:, :0])


def test_a_view_of_images_is_refused_with_the_way_out_and_flatten_copies():
    x = mg.tensor(drawn(2, 3, 4, 5)).contiguous(memory_format=mg.channels_last)
    with pytest.raises(ValueError, match=r"view: shape \(2, 60\) needs a copy .* use reshape\(\)"):
        x.view(2, 60)
    assert np.array_equal(numbers(x.flatten(1)), numbers(x).reshape(2, 60))
    assert np.array_equal(numbers(x.reshape(2, -1)), numbers(x).reshape(2, 60))


def test_a_module_is_given_a_memory_format(card):
    net = mg.nn.Sequential(mg.nn.Conv2d(3, 8, 3), mg.nn.BatchNorm2d(8), mg.nn.Conv2d(8, 4, 1))
    before = {name: numbers(value) for name, value in net.state_dict().items()}
    assert net.to(memory_format=mg.channels_last) is net
    assert lies_last(net[0].weight, net[2].weight) and net[0].bias.is_contiguous()
    net.to(card)
    assert lies_last(net[0].weight, net[2].weight)
    net.load_state_dict({name: mg.tensor(value) for name, value in before.items()})
    assert lies_last(net[0].weight, net[2].weight)
    assert all(np.array_equal(numbers(value), before[name]) for name, value in net.state_dict().items())
    assert net.to(memory_format=mg.contiguous_format)[0].weight.is_contiguous()


# ---- ops ---------------------------------------------------------------------------------------------------

LAYERS = [  # (N, C, H, W), (O, C, KH, KW), options
    ((2, 16, 6, 5), (24, 16, 3, 3), {"padding": 1}),
    ((2, 16, 7, 5), (24, 16, 3, 2), {"stride": (2, 1), "padding": 1, "dilation": (1, 2)}),
    ((1, 20, 5, 5), (70, 20, 3, 3), {}),  # channels that are no chunks of 16 bytes; more rows than a tile
    ((2, 16, 6, 5), (24, 16, 1, 1), {}),
    ((3, 40, 4, 4), (136, 40, 1, 1), {}),
    ((2, 16, 6, 5), (17, 16, 1, 1), {}),
    ((2, 19, 6, 5), (24, 19, 1, 1), {"stride": 2}),
    ((2, 16, 1, 1), (16, 16, 1, 1), {}),
    ((1, 16, 2, 2), (16, 16, 3, 3), {"padding": 1}),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_convolution(card, layer, dtype):
    x, weight, options = layer
    arrays = drawn(*x), drawn(*weight, seed=1), drawn(weight[0], seed=2)
    check(lambda *inputs: F.conv2d(*inputs, **options), arrays, card, dtype)


@pytest.mark.parametrize("kernel", [3, 1])
@pytest.mark.parametrize("format", [(mg.channels_last, None), (None, mg.channels_last)])
def test_convolution_of_images_or_weights_that_lie_channels_last(card, kernel, format):
    """As in PyTorch, the result then does; the gradients lie as what they are for."""
    arrays = drawn(2, 16, 5, 4), drawn(24, 16, kernel, kernel, seed=1)
    formats = [f or mg.contiguous_format for f in format]
    check(lambda x, w: F.conv2d(x, w, padding=kernel // 2), arrays, card, "float16", formats)


@pytest.mark.parametrize("shape", [(2, 1, 6, 6), (2, 1, 1, 1), (2, 3, 6, 6), (2, 5, 1, 1)])
def test_convolution_of_few_channels_and_pixels(card, shape):
    arrays = drawn(*shape), drawn(9, shape[1], 3, 3, seed=1)
    check(lambda x, w: F.conv2d(x, w, padding=1), arrays, card, "float16", keeps=shape != (2, 1, 1, 1))


@pytest.mark.parametrize(
    "view", ["rows reversed", "every other channel", "part of the channels", "broadcast"]
)
def test_convolution_of_views(card, view):
    def images(x):
        return {
            "rows reversed": lambda: x[:, :, ::-1],
            "every other channel": lambda: x[:, ::2],
            "part of the channels": lambda: x[:, 8:24],
            "broadcast": lambda: x[:1, :16].expand(2, -1, -1, -1),
        }[view]()

    channels = 32 if view == "rows reversed" else 16
    arrays = drawn(2, 32, 5, 4), drawn(8, channels, 3, 3, seed=1)
    check(lambda x, w: F.conv2d(images(x), w), arrays, card, "float16", keeps=False)


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[2], LAYERS[3], LAYERS[5]], ids=str)
@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_convolution_with_relu_and_pooling(card, layer, dtype):
    x, weight, options = layer
    arrays = drawn(*x), drawn(*weight, seed=1), drawn(weight[0], seed=2)
    for function in F.conv2d_relu, F.conv2d_pooled:
        x, weight, bias = (leaf(a, card, dtype, mg.channels_last) for a in arrays)
        first = [t.detach().contiguous().requires_grad_() for t in (x, weight, bias)]
        y, expected = function(x, weight, bias, **options), function(*first, **options)
        assert lies_last(y)
        y.sum().backward()
        expected.sum().backward()
        for found, right in ((y, expected), (x.grad, first[0].grad), (weight.grad, first[1].grad)):
            size = abs(numbers(right)).max()
            assert np.allclose(numbers(found), numbers(right), rtol=0, atol=TOLERANCES[dtype] * size)


def test_kernels_that_are_not_for_it_are_right(card):
    """In strict float32 no tensor cores run; the input is made contiguous, and so is the output."""
    mg.set_float32_matmul_precision("highest")
    arrays = drawn(2, 16, 6, 5), drawn(24, 16, 3, 3, seed=1), drawn(24, seed=2)
    for function in F.conv2d, F.conv2d_relu, F.conv2d_pooled:
        check(function, arrays, card, "float32", keeps=False)


@pytest.mark.parametrize("dtype", ["float32", "float64", *HALVES])
def test_functions_of_each_element(card, dtype):
    x, y = drawn(2, 5, 4, 3), drawn(2, 5, 4, 3, seed=1)
    for function in (
        mg.relu,
        lambda x: x.clone() * 2.0,
        lambda x: (x.clamp(-1.0, 1.0) + 1.0).to("float32").to(dtype),
        lambda x: F.leaky_relu(x) / 3.0,
    ):
        check(function, [x], card, dtype)
    check(lambda x, y: x + y, [x, y], card, dtype)
    check(lambda x, y: x * y, [x, y], card, dtype, [mg.channels_last, mg.contiguous_format])
    check(lambda x, bias: x * bias.reshape(-1, 1, 1), [x, drawn(5, seed=2)], card, dtype)
    check(lambda x, scale: x * scale, [x, drawn(2, 5, 1, 1, seed=3)], card, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", *HALVES])
def test_concatenation(card, dtype):
    shapes = [(2, 5, 4, 3), (2, 5, 4, 3), (2, 5, 4, 3)]
    for dim, size in enumerate((1, 7, 6, 2), start=0):
        shapes[1] = (*shapes[0][:dim], size, *shapes[0][dim + 1 :])
        arrays = [drawn(*shape, seed=i) for i, shape in enumerate(shapes)]
        check(lambda *x, dim=dim: mg.concat(x, dim), arrays, card, dtype)
        check(lambda *x, dim=dim: mg.concat(x, dim - 4), arrays[:1], card, dtype)
        formats = [mg.channels_last, mg.contiguous_format, mg.channels_last]
        check(lambda *x, dim=dim: mg.concat(x, dim), arrays, card, dtype, formats, keeps=False)


@pytest.mark.parametrize("dtype", ["float32", "float64", *HALVES])
@pytest.mark.parametrize("sent", [mg.channels_last, mg.contiguous_format])
def test_dropout(card, dtype, sent):
    """The gradient drops what was dropped, however it lies."""
    x = leaf(1 + abs(drawn(2, 5, 4, 3)), card, dtype, mg.channels_last)
    y = F.dropout(x, 0.4)
    g = leaf(1 + abs(drawn(2, 5, 4, 3, seed=1)), card, dtype, sent).detach()
    y.backward(g)
    assert lies_last(y, x.grad)
    kept = numbers(y) != 0
    assert 0.3 < kept.mean() < 0.9
    for found, given in (y, x), (x.grad, g):
        expected = numbers(given) * kept / 0.6
        assert np.allclose(numbers(found), expected, rtol=TOLERANCES[dtype], atol=0)
    z = F.dropout2d(x, 0.4)
    z.backward(g)
    assert lies_last(z) and all(
        len(np.unique(channel != 0)) == 1 for image in numbers(z) for channel in image
    )


@pytest.mark.parametrize("dim", [(0, 2, 3), (2, 3), 1, (1, 2, 3), (0, 1), (0,), 2, (0, 1, 2, 3)])
def test_sums(card, dim):
    x = [drawn(3, 5, 4, 2)]
    for function in mg.sum, mg.mean, mg.amax:
        for keepdim in False, True:
            check(lambda x, f=function, k=keepdim: f(x, dim, k), x, card, "float32", keeps=False)


# ---- steps of optimizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda params: mg.optim.SGD(params, lr=0.1, momentum=0.9),
        lambda params: mg.optim.Adam(params, lr=0.1),
        lambda params: mg.optim.RMSprop(params, lr=0.1),
    ],
)
def test_a_step_of_weights_that_lie_channels_last(card, make):
    weights = [mg.nn.Parameter(leaf(drawn(4, 3, 3, 3), card, "float32", f).detach())
               for f in (mg.contiguous_format, mg.channels_last)]  # fmt: skip
    for weight in weights:
        optimizer = make([weight])
        for seed in 1, 2:
            weight.grad = leaf(drawn(4, 3, 3, 3, seed=seed), card, "float32").detach()
            mg.nn.utils.clip_grad_norm_([weight], 1.0)
            optimizer.step()
    assert lies_last(weights[1])
    assert np.allclose(numbers(weights[0]), numbers(weights[1]), rtol=1e-6, atol=1e-6)


# ---- batch norm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 16, 6, 5), (3, 5, 4, 3), (1, 130, 3, 2), (9, 64, 1, 1), (2, 1, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float64", *HALVES])
def test_batch_norm(card, shape, dtype):
    channels = shape[1]
    statistics = abs(drawn(channels, seed=3)), abs(drawn(channels, seed=4)) + 0.5

    def normalized(training):
        def run(x, weight, bias):
            running = [mg.tensor(s, device=x.device).to(x.dtype) for s in statistics]
            return F.batch_norm(x, *running, weight, bias, training=training)

        return run

    arrays = drawn(*shape), drawn(channels, seed=1), drawn(channels, seed=2)
    for training in True, False:
        check(normalized(training), arrays, card, dtype)
    check(lambda x: F.batch_norm(x, None, None, training=True), arrays[:1], card, dtype)


# ---- pooling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 16, 6, 7), (1, 5, 5, 4), (3, 1, 4, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float64", *HALVES])
def test_pooling(card, shape, dtype):
    for function in (
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
        lambda x: F.max_pool2d(x, (3, 2), stride=1, dilation=(1, 2), ceil_mode=True),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 3, stride=2, padding=1, ceil_mode=True),
        lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
        lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    ):
        check(function, [drawn(*shape)], card, dtype)


def test_pooling_of_many_images(card, monkeypatch):
    """More than a launch takes, and so many that a thread makes several rows."""
    monkeypatch.setattr(pool2d_channels_last, "MAX_IMAGES", 2)
    monkeypatch.setattr(pool2d_channels_last, "ENOUGH_BLOCKS", 1)
    for function in (
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True),
        lambda x: F.max_pool2d(x, (2, 1), stride=1, dilation=(3, 1)),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2, stride=3),
        lambda x: F.avg_pool2d(x, 3, stride=2, padding=1),
        lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
        lambda x: F.avg_pool2d(x, 3, stride=2, padding=1, ceil_mode=True),
    ):
        check(function, [drawn(5, 4, 6, 7)], card, "float32")


@pytest.mark.parametrize("channels", [16, 5])
def test_the_gradient_of_what_was_one_pixel_lies_as_the_image_did(card, channels):
    x = drawn(3, channels, 4, 4)
    for function in (lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: F.avg_pool2d(x, 4)):
        check(lambda x, f=function: f(x).flatten(1), [x], card, "float32", keeps=False)


def test_the_first_of_equals_wins_and_a_nan_always(card):
    x = np.zeros((1, 8, 4, 4), np.float32)
    x[0, 1, 1, 0] = x[0, 2, 0, 1] = np.nan
    x[0, 3, 3, 3] = 1
    images = mg.tensor(x, device=card)
    for options in ({"kernel_size": 2}, {"kernel_size": 3, "stride": 1}):
        values, places = F.max_pool2d(images, return_indices=True, **options)
        last = F.max_pool2d(images.contiguous(memory_format=mg.channels_last), return_indices=True, **options)
        assert np.array_equal(numbers(last[0]), numbers(values), equal_nan=True)
        assert np.array_equal(numbers(last[1]), numbers(places))


# ---- networks ----------------------------------------------------------------------------------------------


class Block(mg.nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels, out_channels):
        super().__init__()
        nn = mg.nn
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(out_channels), nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels, out_channels, 1, stride=2)

    def forward(self, x):
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


def residual_net():
    nn = mg.nn
    stem = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(*stem, Block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


@pytest.mark.parametrize("autocast", [False, *HALVES])
def test_a_step_of_a_residual_net_gives_the_same_numbers(card, autocast):
    x, target = mg.tensor(drawn(4, 3, 12, 10)).float(), mg.tensor([0, 3, 1, 4])
    found = []
    for memory_format in (mg.contiguous_format, mg.channels_last):
        mg.manual_seed(0)
        net = residual_net().to(card).to(memory_format=memory_format)
        optimizer = mg.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        images = x.to(card).contiguous(memory_format=memory_format)
        for _ in range(2):
            optimizer.zero_grad()
            with mg.autocast(card, dtype=autocast or "float16", enabled=bool(autocast)):
                loss = F.cross_entropy(net(images), target.to(card))
            loss.backward()
            optimizer.step()
        last = memory_format is mg.channels_last
        assert lies_last(net[0].weight, net[0].weight.grad) == lies_last(net[4].conv2.weight) == last
        found.append([loss.item(), *(numbers(p) for p in net.state_dict().values())])
    for one, other in zip(*found, strict=True):
        assert np.allclose(one, other, rtol=0, atol=TOLERANCES[autocast or "float32"])


def test_nothing_is_transposed_between_the_layers(card, monkeypatch):
    """Of conv, batch norm, ReLU, conv under autocast; backward the weights alone, for the inputs."""
    module = cuda.conv2d_tensor_core
    transposed = []
    transpose = module._transpose
    monkeypatch.setattr(module, "_transpose", lambda *args: (transposed.append(args[2]), transpose(*args)))
    nn = mg.nn
    layers = (
        nn.Conv2d(8, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    net = nn.Sequential(*layers).to(card).to(memory_format=mg.channels_last)
    x = leaf(drawn(2, 8, 9, 8), card, "float32", mg.channels_last)
    with mg.autocast(card, dtype="float16"):
        y = net(x)
    assert lies_last(y) and not transposed
    y.float().sum().backward()
    assert lies_last(x.grad, net[0].weight.grad, net[3].weight.grad)
    assert sorted(transposed) == [(1, 16, 8 * 9), (1, 24, 16 * 9)]
