"""Layers and activations, against their definitions written out in float64 NumPy."""

import math

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn as nn
import minigrad.nn.functional as F
from minigrad.kernels.launch import CudaKernel
from minigrad.testing import gradcheck


def double(*shape, seed=0, **options):
    """Normal random numbers in float64."""
    return mg.tensor(np.random.default_rng(seed).standard_normal(shape), **options)


def assert_same(actual, expected, rtol=1e-12, atol=1e-12):
    actual = actual.detach().numpy() if isinstance(actual, mg.Tensor) else actual
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


# ---- layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4)])
def test_linear(shape):
    layer = nn.Linear(4, 5, dtype=mg.float64)
    x = double(*shape, requires_grad=True)
    out = layer(x)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    array = x.detach().numpy()
    assert_same(out, array @ weight.T + bias)
    g = double(*out.shape, seed=1)
    out.backward(g)
    rows, g_rows = array.reshape(-1, 4), g.numpy().reshape(-1, 5)
    assert_same(x.grad, g.numpy() @ weight)
    assert_same(layer.weight.grad, g_rows.T @ rows)
    assert_same(layer.bias.grad, g_rows.sum(0))


def test_alpha_dropout_keeps_mean_and_variance():
    layer, n = nn.AlphaDropout(0.3), 100_000
    x = mg.randn(n, dtype=mg.float64).requires_grad_()
    y = layer(x)
    # Five standard deviations of a mean, and of a variance of numbers whose fourth moment is below 4.
    assert abs(y.mean().item()) < 5 / np.sqrt(n) and abs(y.var().item() - 1) < 5 * np.sqrt(3 / n)
    y.sum().backward()
    dropped = x.grad.numpy() == 0
    assert abs(dropped.mean() - 0.3) < 5 * np.sqrt(0.21 / n)
    assert (y.detach().numpy()[dropped] == y.detach().numpy()[dropped][0]).all()
    layer.eval()
    assert layer(x) is x and not nn.AlphaDropout(1.0)(x).detach().numpy().any()


@pytest.mark.parametrize("lies", ["in order", "transposed"])
def test_linear_takes_rows_of_more_dimensions_in_one_product(device, lies, monkeypatch):
    """On a card and on the simulator, too: without ops that reshape, and with one launch for each product."""
    names = []
    launch = CudaKernel.launch

    def counted(self, *args, **options):
        names.append(self.name)
        return launch(self, *args, **options)

    monkeypatch.setattr(CudaKernel, "launch", counted)
    rng = np.random.default_rng(0)
    values, g = rng.standard_normal((3, 5, 17)), rng.standard_normal((3, 5, 20))
    weight, bias = rng.standard_normal((20, 17)), rng.standard_normal(20)
    x = values if lies == "in order" else values.transpose(1, 0, 2).copy()
    leaves = [mg.tensor(a.astype("f4"), device=device, requires_grad=True) for a in (x, weight, bias)]
    given = leaves[0] if lies == "in order" else leaves[0].transpose(0, 1)
    y = F.linear(given, *leaves[1:])
    y.backward(mg.tensor(g.astype("f4"), device=device))
    np.testing.assert_allclose(y.detach().cpu().numpy(), values @ weight.T + bias, rtol=1e-4, atol=1e-5)
    dx, dweight, dbias = (leaf.grad.cpu().numpy() for leaf in leaves)
    expected = g @ weight if lies == "in order" else (g @ weight).transpose(1, 0, 2)
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dweight, np.einsum("abn,abk->nk", g, values), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dbias, g.sum((0, 1)), rtol=1e-4, atol=1e-5)
    if device.type != "cpu":
        assert sum("matmul" in name for name in names) == 3
    if lies == "in order":
        assert y.grad_fn == "linear"


def test_linear_without_bias_and_bad_input():
    layer = nn.Linear(3, 2, bias=False)
    assert layer.bias is None and list(layer.state_dict()) == ["weight"]
    assert repr(layer) == "Linear(in_features=3, out_features=2, bias=False)"
    with pytest.raises(
        ValueError, match=r"linear: weight expects 3 input features .* got input of shape \(2, 4\)"
    ):
        layer(mg.ones(2, 4))
    for bad in (-1, 2.5, "3"):
        with pytest.raises(ValueError, match="in_features"):
            nn.Linear(bad, 3)
    assert nn.Linear(0, 2)(mg.ones(3, 0)).shape == (3, 2)


def test_default_initialisation_is_uniform_within_the_inverse_root_of_fan_in():
    for layer, fan_in in ((nn.Linear(100, 300), 100), (nn.Conv2d(8, 60, 5, groups=2), 100)):
        bound = 1 / math.sqrt(fan_in)
        for tensor, tolerance in ((layer.weight, 0.02), (layer.bias, 0.25)):
            array = tensor.detach().numpy()
            assert np.abs(array).max() <= bound
            assert abs(array.std() / (bound / math.sqrt(3)) - 1) < tolerance
            assert abs(array.mean()) < tolerance * bound


def convolution(x, weight, bias, stride, padding, dilation, groups):
    """The definition, as loops over output elements."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    n, _, h, w = x.shape
    o, c, kh, kw = weight.shape
    oh, ow = (h - dh * (kh - 1) - 1) // sh + 1, (w - dw * (kw - 1) - 1) // sw + 1
    out = np.zeros((n, o, oh, ow))
    for channel in range(o):
        first = channel // (o // groups) * c
        for i in range(oh):
            for j in range(ow):
                rows = slice(i * sh, i * sh + dh * (kh - 1) + 1, dh)
                columns = slice(j * sw, j * sw + dw * (kw - 1) + 1, dw)
                window = x[:, first : first + c, rows, columns]
                out[:, channel, i, j] = (window * weight[channel]).sum((1, 2, 3)) + bias[channel]
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": (2, 1), "dilation": (1, 2)},
        {"groups": 2, "stride": (1, 2)},
    ],
)
def test_conv2d(options):
    layer = nn.Conv2d(4, 6, (3, 2), dtype=mg.float64, **options)
    x = double(2, 4, 7, 6)
    expected = convolution(
        x.numpy(),
        layer.weight.detach().numpy(),
        layer.bias.detach().numpy(),
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    assert_same(layer(x), expected, 1e-11, 1e-11)
    assert_same(layer(x[0]), expected[0], 1e-11, 1e-11)


def test_conv2d_named_padding():
    x = mg.randn(1, 2, 6, 7)
    assert nn.Conv2d(2, 3, (3, 5), padding="same")(x).shape == (1, 3, 6, 7)
    assert nn.Conv2d(2, 3, 3, padding="valid")(x).shape == (1, 3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((3, 4, 3), {"groups": 2}, "in_channels"),
        ((4, 3, 3), {"groups": 2}, "out_channels"),
        ((4, 4, 3), {"groups": 0}, "groups"),
        ((4, 4, 0), {}, "kernel_size"),
        ((4, 4, (3, 3, 3)), {}, "kernel_size"),
        ((4, 4, 3), {"stride": 0}, "stride"),
        ((4, 4, 3), {"padding": -1}, "padding"),
        ((4, 4, 3), {"padding": "full"}, "'same'"),
        ((4, 4, 3), {"padding": "same", "stride": 2}, "stride 1"),
        ((4, 4, 3), {"padding_mode": "mirror"}, "padding_mode"),
        ((-4, 4, 3), {}, "in_channels"),
    ],
)
def test_conv2d_refuses_bad_options(arguments, options, text):
    with pytest.raises(ValueError, match=text):
        nn.Conv2d(*arguments, **options)


def test_conv2d_refuses_bad_input():
    layer = nn.Conv2d(3, 8, 3)
    with pytest.raises(ValueError, match="weight expects 3 input channels, input has 4"):
        layer(mg.ones(2, 4, 8, 8))
    with pytest.raises(ValueError, match="larger than the padded input"):
        layer(mg.ones(2, 3, 2, 8))
    assert layer(mg.ones(0, 3, 8, 8)).shape == (0, 8, 6, 6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"padding": (2, 1), "dilation": (1, 2)},
        {"groups": 2, "stride": (1, 2), "bias": False},
    ],
)
def test_conv_transpose2d(options):
    layer = nn.ConvTranspose2d(4, 6, (3, 2), dtype=mg.float64, **options)
    x, groups = double(2, 4, 5, 6), options.get("groups", 1)
    assert layer.weight.shape == (4, 6 // groups, 3, 2)
    out = layer(x)
    # The transpose of a convolution from out's channels to x's: <out, y> = <x, convolution(y)>.
    y, no_bias = double(*out.shape, seed=1), np.zeros(4)
    weight = layer.weight.detach().numpy()
    there = convolution(y.numpy(), weight, no_bias, layer.stride, layer.padding, layer.dilation, groups)
    linear = out if layer.bias is None else out - layer.bias.reshape(-1, 1, 1)
    assert there.shape == x.shape
    assert_same((linear * y).sum(), (x.numpy() * there).sum(), 1e-10)
    assert_same(layer(x[0]), out[0].detach().numpy())


def test_conv_transpose2d_starts_and_prints_as_pytorch_does():
    layer = nn.ConvTranspose2d(8, 60, 5, groups=2)
    bound = 1 / math.sqrt(30 * 25)
    for tensor in (layer.weight, layer.bias):
        array = tensor.detach().numpy()
        assert 0.8 * bound < np.abs(array).max() <= bound
    assert repr(layer) == "ConvTranspose2d(8, 60, kernel_size=(5, 5), stride=(1, 1), groups=2)"
    layer = nn.ConvTranspose2d(2, 3, 3, 2, 1, 1, 1, False, 2)
    assert repr(layer) == (
        "ConvTranspose2d(2, 3, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2), "
        "output_padding=(1, 1), bias=False)"
    )


def test_conv_transpose2d_goes_back_to_any_size_that_conv2d_makes_smaller():
    down, up = nn.Conv2d(2, 3, 3, stride=(2, 3), padding=1), nn.ConvTranspose2d(3, 2, 3, (2, 3), 1)
    for size in ((7, 7), (8, 8), (7, 9)):
        x = mg.ones(1, 2, *size)
        for wanted in (size, list(x.shape), x.shape):
            assert up(down(x), wanted).shape == x.shape
        assert up(down(x)[0], output_size=(2, *size)).shape == x.shape[1:]
    y = mg.ones(1, 3, 4, 3)
    for wanted in ((6, 7), (9, 7), (7, 10)):
        with pytest.raises(ValueError, match=r"output_size must be from \(7, 7\) to \(8, 9\)"):
            up(y, wanted)
    with pytest.raises(ValueError, match=r"output_size must have 2 or 4 elements, got \(2, 7, 7\)"):
        up(y, (2, 7, 7))


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((3, 4, 3), {"groups": 2}, "ConvTranspose2d: in_channels"),
        ((4, 3, 3), {"groups": 2}, "out_channels"),
        ((4, 4, 3), {"padding": "same"}, "padding"),
        ((4, 4, 3), {"output_padding": -1}, "output_padding"),
        ((4, 4, 3), {"padding_mode": "reflect"}, "padding_mode"),
    ],
)
def test_conv_transpose2d_refuses_bad_options(arguments, options, text):
    with pytest.raises(ValueError, match=text):
        nn.ConvTranspose2d(*arguments, **options)


def test_pooling():
    x = double(2, 3, 6, 8)
    blocks = x.numpy().reshape(2, 3, 3, 2, 4, 2)
    assert_same(nn.MaxPool2d(2)(x), blocks.max((3, 5)), 0, 0)
    assert_same(nn.AvgPool2d(2)(x), blocks.mean((3, 5)))
    assert_same(nn.AdaptiveAvgPool2d((3, 4))(x), blocks.mean((3, 5)))
    assert_same(nn.AdaptiveAvgPool2d(1)(x), x.numpy().mean((2, 3), keepdims=True))
    assert nn.AdaptiveAvgPool2d((None, 2))(x).shape == (2, 3, 6, 2)
    assert nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)(x).shape == (2, 3, 4, 5)
    largest, indices = nn.MaxPool2d(2, return_indices=True)(x)
    assert_same(x.numpy().reshape(2, 3, 48)[..., indices.numpy()][0, 0, 0, 0], largest.numpy()[0, 0], 0, 0)
    assert_same(nn.AvgPool2d(2, divisor_override=1)(x), blocks.sum((3, 5)))


def test_flatten_and_identity():
    x = mg.zeros(2, 3, 4, 5)
    assert nn.Flatten()(x).shape == (2, 60) and nn.Flatten(0, 1)(x).shape == (6, 4, 5)
    assert nn.Identity(54, anything=True)(x) is x


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 2)])
def test_batch_norm_in_training(shape):
    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(3, dtype=mg.float64)
    with mg.no_grad():
        layer.weight.copy_(mg.tensor([0.5, 1.0, 2.0]))
        layer.bias.copy_(mg.tensor([1.0, 0.0, -1.0]))
    x = double(*shape)
    axes = (0, *range(2, len(shape)))
    column = (1, 3) + (1,) * (len(shape) - 2)
    array = x.numpy()
    mean, variance = array.mean(axes), array.var(axes)
    normal = (array - mean.reshape(column)) / np.sqrt(variance.reshape(column) + 1e-5)
    expected = normal * np.array([0.5, 1, 2]).reshape(column) + np.array([1.0, 0, -1]).reshape(column)
    assert_same(layer(x), expected, 1e-10, 1e-10)
    count = array.size // 3
    assert_same(layer.running_mean, 0.1 * mean)
    assert_same(layer.running_var, 0.9 + 0.1 * variance * count / (count - 1))
    assert layer.num_batches_tracked.item() == 1

    layer.eval()
    running_mean, running_var = layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()
    normal = (array - running_mean.reshape(column)) / np.sqrt(running_var.reshape(column) + 1e-5)
    expected = normal * np.array([0.5, 1, 2]).reshape(column) + np.array([1.0, 0, -1]).reshape(column)
    assert_same(layer(x), expected, 1e-10, 1e-10)
    assert layer.num_batches_tracked.item() == 1 and (layer.running_mean.numpy() == running_mean).all()


def test_batch_norm_without_momentum_averages_all_batches():
    layer = nn.BatchNorm1d(3, momentum=None, dtype=mg.float64)
    batches = [double(8, 3, seed=i) for i in range(4)]
    for batch in batches:
        layer(batch)
    assert_same(layer.running_mean, np.mean([b.numpy().mean(0) for b in batches], 0))
    assert_same(layer.running_var, np.mean([b.numpy().var(0, ddof=1) for b in batches], 0))


def test_batch_norm_without_running_statistics_uses_the_batch():
    layer = nn.BatchNorm1d(3, affine=False, track_running_stats=False, dtype=mg.float64).eval()
    assert not layer.state_dict() and not list(layer.parameters())
    x = double(6, 3)
    array = x.numpy()
    assert_same(layer(x), (array - array.mean(0)) / np.sqrt(array.var(0) + 1e-5), 1e-10, 1e-10)


def test_batch_norm_gradient():
    layer = nn.BatchNorm2d(2, dtype=mg.float64, track_running_stats=False)
    x = double(3, 2, 2, 3, requires_grad=True)

    def function(x, weight, bias):
        return F.batch_norm(x, None, None, weight, bias, training=True)

    weight = double(2, seed=1, requires_grad=True)
    gradcheck(function, [x, weight, double(2, seed=2, requires_grad=True)], seed=0)
    assert_same(layer(x), function(x, None, None).detach().numpy())


def test_layer_norm():
    layer = nn.LayerNorm((3, 4), eps=1e-3, dtype=mg.float64)
    with mg.no_grad():
        layer.weight.copy_(double(3, 4, seed=1))
        layer.bias.copy_(double(3, 4, seed=2))
    x = double(2, 5, 3, 4)
    array = x.numpy()
    mean, variance = array.mean((2, 3), keepdims=True), array.var((2, 3), keepdims=True)
    expected = (array - mean) / np.sqrt(variance + 1e-3) * double(3, 4, seed=1).numpy()
    assert_same(layer(x), expected + double(3, 4, seed=2).numpy(), 1e-10, 1e-10)
    assert repr(layer) == "LayerNorm((3, 4), eps=0.001, elementwise_affine=True)"
    layer.reset_parameters()
    assert_same(layer(x), (array - mean) / np.sqrt(variance + 1e-3), 1e-10, 1e-10)
    assert list(nn.LayerNorm(4, bias=False).state_dict()) == ["weight"]
    assert not nn.LayerNorm(4, elementwise_affine=False).state_dict()
    for bad in ((), (2, -1), (2.0,)):
        with pytest.raises(ValueError, match="LayerNorm: normalized_shape"):
            nn.LayerNorm(bad)


def test_group_norm():
    layer = nn.GroupNorm(2, 6, dtype=mg.float64)
    x = double(3, 6, 4)
    groups = x.numpy().reshape(3, 2, 12)
    normal = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    assert_same(layer(x), normal.reshape(3, 6, 4), 1e-10, 1e-10)
    with mg.no_grad():
        layer.weight.mul_(2.0)
        layer.bias.add_(mg.tensor(np.arange(6.0)))
    assert_same(layer(x), normal.reshape(3, 6, 4) * 2 + np.arange(6)[:, None], 1e-10, 1e-10)
    assert repr(layer) == "GroupNorm(2, 6, eps=1e-05, affine=True)"
    assert not nn.GroupNorm(2, 6, affine=False).state_dict()
    with pytest.raises(ValueError, match=r"expected an input \(N, 6, ...\), got shape \(3, 4\)"):
        layer(double(3, 4))
    with pytest.raises(ValueError, match="num_groups must divide num_channels, got 4 and 6"):
        nn.GroupNorm(4, 6)


def test_batch_norm_refuses_bad_input_and_forgets_nothing():
    layer = nn.BatchNorm2d(3)
    with pytest.raises(ValueError, match=r"BatchNorm2d: expected 4D input, got 2D"):
        layer(mg.ones(4, 3))
    with pytest.raises(ValueError, match="BatchNorm1d: expected 2D or 3D input, got 4D"):
        nn.BatchNorm1d(3)(mg.ones(1, 3, 2, 2))
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer(mg.ones(1, 3, 1, 1))
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        layer(mg.ones(2, 4, 2, 2))
    assert layer.num_batches_tracked.item() == 0 and layer.running_mean.tolist() == [0.0] * 3
    layer(mg.randn(4, 3, 2, 2))
    layer.reset_running_stats()
    assert layer.num_batches_tracked.item() == 0 and layer.running_var.tolist() == [1.0] * 3


def test_dropout():
    layer = nn.Dropout(0.25)
    x = mg.ones(200, 500)
    out = layer(x).numpy()
    assert set(np.unique(out)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((out == 0).mean() - 0.25) < 0.01
    assert layer.eval()(x) is x
    assert nn.Dropout(0.0)(x) is x and (nn.Dropout(1.0)(x).numpy() == 0).all()
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="probability"):
            nn.Dropout(p)


def test_the_same_seed_drops_the_same_elements():
    x = mg.ones(100)
    mg.manual_seed(3)
    first = F.dropout(x).numpy()
    mg.manual_seed(3)
    assert (F.dropout(x).numpy() == first).all()


SQRT_HALF = math.sqrt(0.5)
ACTIVATIONS = [
    (nn.ReLU(), lambda x: np.maximum(x, 0)),
    (nn.LeakyReLU(0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
    (nn.ELU(1.5), lambda x: np.where(x > 0, x, 1.5 * np.expm1(np.minimum(x, 0)))),
    (nn.SiLU(), lambda x: x / (1 + np.exp(-x))),
    (nn.GELU(), lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x * SQRT_HALF))),
    (
        nn.GELU("tanh"),
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    (nn.Sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
    (nn.LogSigmoid(), lambda x: -np.log1p(np.exp(-x))),
    (nn.Tanh(), np.tanh),
    (nn.Softplus(2.0), lambda x: np.log1p(np.exp(2 * x)) / 2),
    (nn.Softplus(2.0, threshold=1.0), lambda x: np.where(2 * x > 1, x, np.log1p(np.exp(2 * x)) / 2)),
    (nn.Softmax(1), lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
    (nn.LogSoftmax(dim=0), lambda x: x - np.log(np.exp(x).sum(0))),
]


@pytest.mark.parametrize(
    ("layer", "definition"), ACTIVATIONS, ids=lambda v: repr(v) if isinstance(v, nn.Module) else ""
)
def test_activations(layer, definition):
    x = double(5, 7, requires_grad=True)
    assert_same(layer(x), definition(x.detach().numpy()), 1e-10, 1e-10)
    gradcheck(layer, [x], seed=0)


@pytest.mark.parametrize(
    "layer", [nn.Softplus(), nn.LogSigmoid(), nn.Sigmoid(), nn.ELU(), nn.SiLU(), nn.GELU()]
)
def test_activations_stay_finite_far_out(layer):
    x = mg.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert np.isfinite(out.detach().numpy()).all() and np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize(
    "layer", [nn.ReLU(True), nn.LeakyReLU(inplace=True), nn.ELU(inplace=True), nn.SiLU(True)]
)
def test_inplace_is_a_permission_of_modules(layer):
    x = mg.tensor([-1.0, 2.0])
    layer(x)
    assert x.tolist() == [-1.0, 2.0] and "inplace=True" in repr(layer)


@pytest.mark.parametrize("function", [F.relu, F.leaky_relu, F.elu, F.silu])
def test_inplace_is_an_order_to_functions(function):
    x = double(4, 3, requires_grad=True)
    expected = function(x)
    y = x * 1.0
    assert function(y, inplace=True) is y
    assert_same(y, expected.detach().numpy(), 0, 0)
    (wanted,) = mg.autograd.grad((expected**2).sum(), x)
    (found,) = mg.autograd.grad((y**2).sum(), x)
    assert_same(found, wanted.numpy())


def test_dropout1d_in_place_without_a_batch():
    x = mg.ones(4, 3)
    y = F.dropout1d(x, 0.5, training=True, inplace=True)
    assert mg.equal(x, y) and x.max().item() in (0.0, 2.0)
