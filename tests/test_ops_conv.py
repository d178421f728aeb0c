"""Convolution: the definition as loops, every rung through autograd, gradients, bad arguments."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
import minigrad.nn.functional as F
from minigrad import nn
from minigrad.kernels import cuda
from minigrad.kernels.launch import CudaKernel


def conv2d_by_definition(x, weight, bias, stride, padding, dilation, groups):
    """One multiplication at a time, in float64."""
    (n, _, h, w), (o, per_group, kh, kw) = x.shape, weight.shape
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    oh = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    ow = (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    out = np.zeros((n, o, oh, ow))
    for b, f, i, j in np.ndindex(out.shape):
        first = f // (o // groups) * per_group
        for k, u, v in np.ndindex(per_group, kh, kw):
            row, column = i * sh - ph + u * dh, j * sw - pw + v * dw
            if 0 <= row < h and 0 <= column < w:
                out[b, f, i, j] += x[b, first + k, row, column] * weight[f, k, u, v]
    return out if bias is None else out + bias[:, None, None]


# input, weight, stride, padding, dilation, groups
TABLE = [
    ((2, 3, 5, 6), (4, 3, 3, 3), (1, 1), (0, 0), (1, 1), 1),
    ((2, 3, 5, 6), (4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 1, 8, 7), (2, 1, 3, 2), (2, 1), (1, 0), (1, 1), 1),
    ((2, 4, 6, 5), (6, 2, 3, 3), (2, 1), (1, 2), (1, 2), 2),
    ((1, 3, 5, 5), (6, 1, 3, 3), (1, 1), (1, 1), (1, 1), 3),
    ((2, 5, 4, 4), (3, 5, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((1, 2, 5, 5), (3, 2, 1, 1), (2, 2), (1, 1), (1, 1), 1),
    ((1, 2, 9, 8), (3, 2, 5, 3), (3, 2), (2, 0), (1, 1), 1),
    ((1, 2, 3, 3), (2, 2, 3, 3), (1, 1), (0, 0), (1, 1), 1),
    ((1, 1, 2, 2), (1, 1, 3, 3), (1, 1), (3, 3), (1, 1), 1),
    ((1, 2, 7, 6), (4, 1, 3, 2), (1, 2), (2, 1), (2, 3), 2),
]
RUNGS = ["reference", *(k.name for k in mg.list_kernels("conv2d", "cpu"))]


def options(stride, padding, dilation, groups):
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


@pytest.mark.parametrize("case", TABLE)
def test_value(case, device, rng):
    x, weight, *rest = case
    arrays = [rng.standard_normal(s).astype(np.float32) for s in (x, weight, weight[:1])]
    out = F.conv2d(*(mg.tensor(a, device=device) for a in arrays), **options(*rest))
    wide = [a.astype(np.float64) for a in arrays]
    magnitude = np.sqrt(conv2d_by_definition(*(a * a for a in wide), *rest))
    length = int(np.prod(weight[1:]))
    mg.testing.assert_close(out, conv2d_by_definition(*wide, *rest), length, magnitude=magnitude)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("case", TABLE)
def test_value_and_gradients_of_every_rung(case, rung, rng):
    x, weight, *rest = case
    x, weight, bias = (mg.tensor(rng.standard_normal(s), requires_grad=True) for s in (x, weight, weight[:1]))
    with (
        mg.use_kernel("conv2d", rung),
        mg.use_kernel("conv2d_input_grad", rung),
        mg.use_kernel("conv2d_weight_grad", rung),
    ):
        out = F.conv2d(x, weight, bias, **options(*rest))
        wanted = conv2d_by_definition(*(t.detach().numpy() for t in (x, weight, bias)), *rest)
        np.testing.assert_allclose(out.detach().numpy(), wanted, rtol=1e-11, atol=1e-11)
        mg.testing.gradcheck(
            lambda *t: F.conv2d(*t, **options(*rest)), [x, weight, bias], elements=10, seed=0
        )


@pytest.mark.parametrize("case", TABLE)
def test_gradients_of_both_orders(case, check_gradients):
    x, weight, *rest = case
    check_gradients(lambda x, w, b: F.conv2d(x, w, b, **options(*rest)) ** 2, x, weight, weight[:1])


@settings(max_examples=60)
@given(st.data())
def test_any_geometry(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups = draw(1, 2)
    kernel, dilation = (draw(1, 3), draw(1, 3)), (draw(1, 2), draw(1, 2))
    padding, stride = (draw(0, 2), draw(0, 2)), (draw(1, 3), draw(1, 3))
    least = [max(d * (k - 1) + 1 - 2 * p, 1) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    x = (draw(0, 2), groups * draw(1, 3), least[0] + draw(0, 4), least[1] + draw(0, 18))
    weight = (groups * draw(1, 9), x[1] // groups, *kernel)
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal(x), rng.standard_normal(weight)
    wanted = conv2d_by_definition(*arrays, None, stride, padding, dilation, groups)
    with mg.use_kernel("conv2d", data.draw(st.sampled_from(RUNGS))):
        out = F.conv2d(*map(mg.tensor, arrays), None, stride, padding, dilation, groups)
    np.testing.assert_allclose(out.numpy(), wanted, rtol=1e-11, atol=1e-11)


def test_views_as_inputs(rng):
    x, weight = rng.standard_normal((2, 7, 6, 3)), rng.standard_normal((3, 3, 4, 4))
    a, b = mg.tensor(x).permute(0, 3, 1, 2).flip(2), mg.tensor(weight).transpose(0, 3)[:, :, ::2, 1:]
    wanted = conv2d_by_definition(a.numpy(), b.numpy(), None, (1, 1), (0, 0), (1, 1), 1)
    np.testing.assert_allclose(F.conv2d(a, b).numpy(), wanted, rtol=1e-11, atol=1e-11)


def test_a_single_image(check_gradients):
    x, weight = mg.randn(3, 5, 5), mg.randn(2, 3, 3, 3)
    assert F.conv2d(x, weight).shape == (2, 3, 3)
    check_gradients(lambda x, w: F.conv2d(x, w, padding=1), (2, 4, 4), (3, 2, 3, 3))


def test_named_paddings(rng):
    x, weight = mg.tensor(rng.standard_normal((1, 1, 6, 7))), mg.tensor(rng.standard_normal((1, 1, 3, 5)))
    assert F.conv2d(x, weight, padding="valid").shape == (1, 1, 4, 3)
    same = F.conv2d(x, weight, padding="same", dilation=2)
    np.testing.assert_array_equal(same.numpy(), F.conv2d(x, weight, padding=(2, 4), dilation=2).numpy())
    assert same.shape == x.shape


def test_an_empty_batch_has_empty_outputs_and_zero_gradients():
    x = mg.ones(0, 2, 5, 5, requires_grad=True)
    weight, bias = mg.ones(3, 2, 3, 3, requires_grad=True), mg.ones(3, requires_grad=True)
    out = F.conv2d(x, weight, bias, padding=1)
    out.sum().backward()
    assert out.shape == (0, 3, 5, 5) and x.grad.shape == x.shape
    assert (weight.grad == 0.0).all() and (bias.grad == 0.0).all()


X, W = mg.ones(1, 4, 5, 5), mg.ones(2, 4, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: F.conv2d(X, mg.ones(8, 3, 3, 3)),
            ValueError,
            r"expects 3 .*channels.*has 4.*\(8, 3, 3, 3\)",
        ),
        (lambda: F.conv2d(X, mg.ones(2, 4, 6, 3)), ValueError, r"kernel \(6, 3\).*larger than the padded"),
        (lambda: F.conv2d(X, W, dilation=3), ValueError, r"dilation \(3, 3\).*larger"),
        (lambda: F.conv2d(X, W, mg.ones(3)), ValueError, r"bias.*\(2,\).*\(3,\)"),
        (lambda: F.conv2d(X, W, groups=3), ValueError, "2 output channels.*3 groups"),
        (lambda: F.conv2d(X, W, groups=0), ValueError, "groups.*0"),
        (lambda: F.conv2d(X, W, stride=0), ValueError, "stride.*0"),
        (lambda: F.conv2d(X, W, stride=(1, 2, 3)), ValueError, r"stride.*\(1, 2, 3\)"),
        (lambda: F.conv2d(X, W, stride=1.5), ValueError, r"stride.*1\.5"),
        (lambda: F.conv2d(X, W, padding=-1), ValueError, "padding.*-1"),
        (lambda: F.conv2d(X, W, padding="all"), ValueError, "padding.*'all'"),
        (lambda: F.conv2d(X, W, padding="same", stride=2), ValueError, "'same'.*stride"),
        (lambda: F.conv2d(X, W, dilation=0), ValueError, "dilation.*0"),
        (lambda: F.conv2d(X, mg.ones(2, 4, 0, 3)), ValueError, "at least size 1"),
        (lambda: F.conv2d(mg.ones(4, 5), W), ValueError, r"4 dimensions.*\(4, 5\)"),
        (lambda: F.conv2d(X, mg.ones(2, 4, 3)), ValueError, r"4 dimensions.*\(2, 4, 3\)"),
        (lambda: F.conv2d(X, W.double()), TypeError, "x is float32, weight is float64"),
        (lambda: F.conv2d(X, W, padding=2**62), ValueError, r"padding.*2\^31"),
        (lambda: F.conv2d(X, W, stride=2**40), ValueError, r"stride.*2\^31"),
        (
            lambda: F.conv2d(X, W, padding=2**31 - 1),
            (ValueError, MemoryError),
            "(too big|allocate|dimension)",
        ),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("kernel", [k.name for k in mg.kernels.list("conv2d_input_grad", "cpu")])
@pytest.mark.parametrize("stride", [1, 2])
def test_nan_in_a_tap_reaches_the_pixels_of_the_tap_alone(rng, kernel, stride):
    if kernel == "winograd":
        pytest.skip("Winograd's transforms spread NaN over a tile")
    weight, n = rng.standard_normal((2, 3, 3, 3)).astype("f4"), 8
    weight[1, 0, 0, 2] = np.nan
    out = (n + 2 - 3) // stride + 1
    g = rng.standard_normal((1, 2, out, out)).astype("f4")
    options = {"stride": (stride,) * 2, "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    with mg.use_kernel("conv2d_input_grad", kernel):
        dx = mg.get_op("conv2d_input_grad")(mg.tensor(g), mg.tensor(weight), input_size=(n, n), **options)
    expected = np.zeros((1, 3, n + 2, n + 2), bool)
    expected[0, 0, : out * stride : stride, 2 : 2 + out * stride : stride] = True
    assert np.array_equal(np.isnan(dx.numpy()), expected[..., 1:-1, 1:-1])


# ---- tensor cores: on the simulator as on a card ----------------------------------------------------------


@pytest.fixture
def card(device, monkeypatch):
    """A device with CUDA kernels, and the names of those that were launched."""
    if device.type == "cpu":
        pytest.skip("CUDA kernels run on cards, and on the simulator")
    if not cuda.conv2d_tensor_core.is_supported(device.xp.zeros(1)):
        pytest.skip("the card's compute capability is below 8.0")
    launched, launch = [], CudaKernel.launch

    def noted(self, *args):
        launched.append(self.name)
        launch(self, *args)

    monkeypatch.setattr(CudaKernel, "launch", noted)
    return device, launched


TENSOR_CORE_PASSES = {f"conv2d_{which}_tensor_core" for which in ("forward", "input_grad", "weight_grad")}


def a_step(device, channels=16, **options):
    """The output of a layer, its parameters' gradients and the input's, in float64; and the same by NumPy."""
    layer, x = nn.Conv2d(channels, 18, 3, padding=1, **options), mg.randn(2, channels, 5, 4)
    found = []
    for at, dtype, kernel in ((device, "float32", None), ("cpu", "float64", "reference")):
        own, inputs = layer.to(at).to(dtype), x.to(at).to(dtype).requires_grad_()
        own.zero_grad()
        names = ("conv2d", "conv2d_input_grad", "conv2d_weight_grad") if kernel else ()
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(mg.use_kernel(name, kernel, "cpu"))
            y = own(inputs)
            y.to(dtype).square().sum().backward()
        assert {str(p.dtype) for p in own.parameters()} == {dtype}
        grads = [own.weight.grad, own.bias.grad, inputs.grad]
        assert {str(g.dtype) for g in grads} == {dtype}
        found.append([t.detach().cpu().double().numpy() for t in (y, *grads)])
    return found


def relative_errors(found, expected):
    return [np.linalg.norm(f - e) / np.linalg.norm(e) for f, e in zip(found, expected, strict=True)]


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_under_autocast_all_passes_run_on_tensor_cores(card, name):
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    device, launched = card
    with mg.autocast(device.type, getattr(mg, name)):
        found, expected = a_step(device)
    assert launched.count("conv2d_forward_tensor_core") == 1
    assert set(launched) >= TENSOR_CORE_PASSES
    # x, bias and y, and their gradients: what brings the weight in order rounds it, too.
    assert launched.count("cast") == 6
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[name]
    # Rounded: x, weight and bias; y; its gradient, which is made of it; and the results.
    assert max(relative_errors(found, expected)) < 6 * unit


@pytest.mark.parametrize("kernel", ["tensor_core", "wgmma"])
@pytest.mark.parametrize(("out_channels", "groups"), [(16, 1), (12, 1), (32, 2)])
def test_both_gradients_read_one_copy_of_the_outputs(card, kernel, out_channels, groups, monkeypatch):
    """If its channels are whole chunks of 16 bytes; and are the same bits that each of them is by itself."""
    device, launched = card
    if kernel == "wgmma" and (groups > 1 or not cuda.conv2d_wgmma.is_supported(device.xp.zeros(1))):
        pytest.skip("wgmma is for one group, on compute capability 9.0")
    x, weight = mg.randn(2, 16, 6, 5), mg.randn(out_channels, 16 // groups, 3, 3)
    g, found, copies = mg.randn(2, out_channels, 6, 5).half().to(device), [], []
    for together in (mg.get_op("conv2d")._together, None):
        monkeypatch.setattr(mg.get_op("conv2d"), "_together", together)
        leaves = [t.half().to(device).requires_grad_() for t in (x, weight)]
        y = F.conv2d(*leaves, padding=1, groups=groups)
        launched.clear()
        with mg.use_kernel("conv2d_input_grad", kernel), mg.use_kernel("conv2d_weight_grad", kernel):
            y.backward(g)
        copies.append(sum(name.startswith("transpose") for name in launched))
        found.append([leaf.grad.cpu().numpy() for leaf in leaves])
    assert copies[1] - copies[0] == (out_channels % 8 == 0)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("channels", "groups"), [(16, 2), (18, 9), (18, 18)])
def test_under_autocast_groups_run_on_tensor_cores_unless_they_have_one_channel(card, channels, groups):
    device, launched = card
    with mg.autocast(device.type, mg.float16):
        found, expected = a_step(device, channels, groups=groups)
    assert TENSOR_CORE_PASSES & set(launched) == (TENSOR_CORE_PASSES if groups < channels else set())
    assert max(relative_errors(found, expected)) < 6 * 2.0**-11


@pytest.mark.parametrize(("size", "as_they_lie"), [((4, 4), True), ((5, 4), False)], ids=str)
def test_images_of_1x1_kernels_are_read_as_they_lie_if_planes_are_whole_vectors(card, size, as_they_lie):
    device, launched = card
    x, weight = mg.randn(2, 9, *size), mg.randn(18, 9, 1, 1)
    own_x, own_weight = (t.half().to(device).requires_grad_() for t in (x, weight))
    y = F.conv2d(own_x, own_weight)
    y.backward(mg.ones_like(y))
    product = weight[:, :, 0, 0].half().float()
    flat = x.half().float().reshape(2, 9, -1)
    for found, expected in (
        (y.reshape(2, 18, -1), product @ flat),
        (own_x.grad.reshape(2, 9, -1), (product.sum(0)[:, None] + 0 * flat)),
        (own_weight.grad[:, :, 0, 0], flat.sum((0, 2)) + 0 * product),
    ):
        assert (
            found.detach().cpu().float() - expected
        ).abs().max().item() <= 0.01 * expected.abs().max().item()
    passes = {"conv2d_pointwise", "conv2d_pointwise_weight_grad"}
    assert passes & set(launched) == (passes if as_they_lie else set())
    assert "transpose" not in launched or not as_they_lie


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize(("channels", "groups"), [(15, 1), (16, 1), (16, 2)])
def test_tf32_is_used_where_it_is_allowed_and_fills_tiles(card, precision, channels, groups):
    device, launched = card
    before = mg.get_float32_matmul_precision()
    mg.set_float32_matmul_precision(precision)
    try:
        found, expected = a_step(device, channels, groups=groups)
    finally:
        mg.set_float32_matmul_precision(before)
    rounds = precision == "high" and (channels, groups) == (16, 1)
    assert TENSOR_CORE_PASSES & set(launched) == (TENSOR_CORE_PASSES if rounds else set())
    assert max(relative_errors(found, expected)) < (6 * 2.0**-11 if rounds else 1e-5)
