"""Convolution with ReLU, or pooling too, in its epilogue: bits, gradients and kernels of the ops apart."""

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F
from minigrad import nn
from minigrad.testing import gradcheck, gradgradcheck

RUNGS = ["reference", *dict.fromkeys(k.name for k in mg.list_kernels("conv2d"))]
OPTIONS = [  # input, weight, stride, padding, dilation, groups
    ((2, 3, 9, 8), (20, 3, 3, 3), 1, 1, 1, 1),
    ((2, 4, 7, 6), (6, 2, 3, 2), (2, 1), (1, 2), (1, 2), 2),
    ((1, 5, 6, 7), (5, 1, 3, 3), 1, "same", 1, 5),
    ((1, 17, 4, 5), (16, 17, 1, 1), 1, 0, 1, 1),
]


def tensors(device, x, weight, dtype=mg.float32):
    mg.manual_seed(1)
    inputs = [mg.randn(*shape, device=device).to(dtype) for shape in (x, weight, weight[:1])]
    return [one.requires_grad_() for one in inputs]


def first_and_second_gradients(function, inputs, *options):
    """The output, its gradients, and those of a function of them."""
    y = function(*inputs, *options)
    g = mg.linspace(-1, 1, y.numel(), device=y.device).reshape(*y.shape).to(y.dtype).requires_grad_()
    first = mg.autograd.grad(y, inputs, g, create_graph=True)
    second = mg.autograd.grad(sum(one.square().sum() for one in first), [*inputs, g], allow_unused=True)
    return [t.detach().cpu().float().numpy() for t in (y, *first, *second) if t is not None]


def relu_of_conv2d(*args):
    return F.relu(F.conv2d(*args))


@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [mg.float32, mg.float16], ids=str)
def test_bits_and_gradients_are_those_of_the_two_ops(device, case, dtype):
    x, weight, *options = case
    inputs = tensors(device, x, weight, dtype)
    found = first_and_second_gradients(F.conv2d_relu, inputs, *options)
    expected = first_and_second_gradients(relu_of_conv2d, inputs, *options)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("rung", RUNGS)
def test_the_kernel_that_is_selected_for_conv2d_runs(device, rung):
    if rung != "reference" and rung not in {k.name for k in mg.list_kernels("conv2d", device.type)}:
        pytest.skip(f"{device} has no kernel {rung!r}")
    x, weight, bias = tensors(device, *OPTIONS[2 if rung in ("depthwise", "strips") else 0][:2])
    groups = x.shape[1] // weight.shape[1]
    with mg.use_kernel("conv2d", rung, device.type):
        found = F.conv2d_relu(x, weight, bias, 1, 1, 1, groups)
        expected = F.relu(F.conv2d(x, weight, bias, 1, 1, 1, groups))
    assert np.array_equal(found.detach().cpu().numpy(), expected.detach().cpu().numpy())


def test_a_kernel_of_the_users_runs(device):
    def ones(out, x, weight, bias, *, stride, padding, dilation, groups):
        out[...] = 1 - 2 * device.xp.eye(*out.shape[2:], dtype=out.dtype)

    x, weight, bias = tensors(device, (1, 2, 5, 5), (3, 2, 3, 3))
    with mg.use_kernel("conv2d", ones, device.type):
        assert F.conv2d_relu(x.transpose(2, 3), weight, bias).sum().item() == 3 * 6


def test_only_what_is_asked_for_is_computed(device):
    """The first layer's input needs no gradient."""
    x, weight, bias = tensors(device, *OPTIONS[0][:2])
    launched = []

    def zeros(out, *_, **__):
        launched.append(out.shape)
        out[...] = 0

    with mg.use_kernel("conv2d_input_grad", zeros, device.type):
        F.conv2d_relu(x.detach(), weight, bias).sum().backward()
        assert not launched
        F.conv2d_relu(x, weight.detach(), None).sum().backward()
    assert launched == [x.shape]
    assert x.grad is not None


def test_shapes_are_checked(device):
    x, weight, _ = tensors(device, (1, 3, 5, 5), (4, 3, 3, 3))
    assert F.conv2d_relu(x[0], weight).shape == (4, 3, 3)
    with pytest.raises(ValueError, match="weight expects 3 input channels"):
        F.conv2d_relu(x[:, :2], weight)


@pytest.mark.parametrize("dtype", [mg.float16, mg.bfloat16])
def test_autocast_converts_as_for_conv2d(device, dtype):
    inputs = tensors(device, *OPTIONS[0][:2])
    with mg.autocast(device.type, dtype):
        found, expected = F.conv2d_relu(*inputs), F.relu(F.conv2d(*inputs))
    assert found.dtype == expected.dtype == dtype
    assert mg.equal(found, expected)


# ---- with max-pooling --------------------------------------------------------------------------------------


def pool_of_relu_of_conv2d(*args):
    return F.max_pool2d(F.relu(F.conv2d(*args)), 2)


@pytest.mark.parametrize("case", [*OPTIONS[:3], ((2, 9, 8, 7), (70, 9, 3, 2), 1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [mg.float32, mg.float16], ids=str)
def test_bits_and_gradients_are_those_of_the_three_ops(device, case, dtype):
    x, weight, *options = case
    inputs = tensors(device, x, weight, dtype)
    found = first_and_second_gradients(F.conv2d_pooled, inputs, *options)
    expected = first_and_second_gradients(pool_of_relu_of_conv2d, inputs, *options)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("autocast", [True, False])
def test_the_three_are_one_kernel_on_tensor_cores(device, autocast):
    inputs = tensors(device, *OPTIONS[0][:2])
    with mg.autocast(device.type, mg.float16, enabled=autocast):
        found, expected = F.conv2d_pooled(*inputs), pool_of_relu_of_conv2d(*inputs)
    assert found.dtype == expected.dtype and mg.equal(found, expected)
    assert (found.grad_fn == "conv2d_pooled") == (autocast and device.type != "cpu")


def test_groups_are_left_to_the_three_ops(device):
    x, weight, bias = tensors(device, (2, 8, 6, 5), (8, 4, 3, 3), mg.float16)
    options = x, weight, bias, 1, 1, 1, 2
    found = F.conv2d_pooled(*options)
    assert found.grad_fn != "conv2d_pooled" and mg.equal(found, pool_of_relu_of_conv2d(*options))


def test_sums_that_are_cut_into_parts_are_left_to_the_three_ops(device):
    inputs = tensors(device, (1, 128, 4, 4), (8, 128, 3, 3), mg.float16)
    found = F.conv2d_pooled(*inputs)
    assert found.grad_fn != "conv2d_pooled" and mg.equal(found, pool_of_relu_of_conv2d(*inputs))


def test_a_pooling_kernel_of_the_users_runs(device):
    def sevens(outs, x, **_):
        outs[0][...], outs[1][...] = 7, 0

    inputs = tensors(device, *OPTIONS[0][:2])
    with (
        mg.autocast(device.type, mg.float16),
        mg.use_kernel("max_pool2d", sevens, device.type, dtypes="f2 f4"),
    ):
        assert (F.conv2d_pooled(*inputs) == 7).all().item()


def test_gradients_of_pooling_by_the_reference():
    x, weight, bias = (
        t.detach().double().requires_grad_() for t in tensors("cpu", (1, 2, 5, 6), (3, 2, 3, 3))
    )
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}

    def pooled(*inputs):
        return mg.get_op("conv2d_pooled")(*inputs, **options)[0]

    assert gradcheck(pooled, [x, weight, bias]) and gradgradcheck(pooled, [x, weight, bias])
    found, expected = pooled(x, weight, bias), pool_of_relu_of_conv2d(x, weight, bias, 1, 1)
    assert (found - expected).abs().max().item() < 1e-13


def test_what_fills_no_window_is_refused(device):
    x, weight, _ = tensors(device, (1, 3, 3, 5), (4, 3, 3, 3), mg.float16)
    with pytest.raises(ValueError, match=r"the kernel \(2, 2\).* is larger"):
        F.conv2d_pooled(x, weight)


# ---- nn.Sequential -----------------------------------------------------------------------------------------


@pytest.fixture
def network(device):
    mg.manual_seed(0)
    layers = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(4, 1, 1)).to(device)


def one_by_one(network, x):
    for module in network:
        x = module(x)
    return x


def calls_of(op, device, run):
    """How often the kernels of ``op`` are asked for in ``run()``."""
    seen = []
    asks = {"dtypes": "f2 f4", "when": lambda *_, **__: seen.append(1)}
    with mg.use_kernel(op, lambda out, *_, **__: None, device.type, **asks):
        run()
    return len(seen)


def test_a_sequential_gives_the_same_bits(device, network):
    x = mg.linspace(-1, 1, 120, device=device).reshape(2, 2, 5, 6).requires_grad_()
    first, second = network(x), one_by_one(network, x)
    assert mg.equal(first, second)
    parameters = [x, *network.parameters()]
    for one, other in zip(
        mg.autograd.grad(first.square().sum(), parameters),
        mg.autograd.grad(second.square().sum(), parameters),
        strict=True,
    ):
        assert mg.equal(one, other)


def test_a_sequential_merges_neighbours_where_it_is_not_the_processor(device, network):
    x = mg.zeros(1, 2, 5, 6, device=device)
    merged = 0 if device.type == "cpu" else 2
    assert calls_of("conv2d_relu", device, lambda: network(x)) == merged
    assert calls_of("conv2d_relu", device, lambda: network[0](x)) == 0
    assert calls_of("relu", device, lambda: network(x)) == 2  # a kernel of the user's is not passed by


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d((2, 2)), nn.MaxPool2d(2, 1), nn.MaxPool2d(3)])
def test_a_sequential_merges_pooling_by_squares(device, pool):
    mg.manual_seed(0)
    network = (
        nn.Sequential(nn.Conv2d(2, 17, 3), nn.ReLU(), pool, nn.ReLU(), nn.MaxPool2d(1)).to(device).half()
    )
    x = mg.linspace(-1, 1, 112, device=device).reshape(1, 2, 8, 7).half()
    merged = device.type != "cpu" and pool.kernel_size != 3 and pool.stride != 1
    assert calls_of("conv2d_pooled", device, lambda: network(x)) == merged
    assert mg.equal(network(x), one_by_one(network, x))


def test_a_sequential_does_not_merge_windows_that_hang_over_or_tell_their_places(device):
    x = mg.linspace(-1, 1, 112, device=device).reshape(1, 2, 8, 7).half()
    for options in {"ceil_mode": True}, {"return_indices": True}, {"padding": 1}:
        network = nn.Sequential(nn.Conv2d(2, 17, 3), nn.ReLU(), nn.MaxPool2d(2, **options)).to(device).half()
        assert calls_of("conv2d_pooled", device, lambda network=network: network(x)) == 0


@pytest.mark.parametrize("which", [0, 1])
def test_hooks_see_every_module(device, network, which):
    seen = []
    handle = network[which].register_forward_hook(lambda module, args, output: seen.append(output))
    x = mg.linspace(-1, 1, 120, device=device).reshape(2, 2, 5, 6)
    network(x)
    assert mg.equal(seen[0], one_by_one(network[: which + 1], x))
    handle.remove()


def test_what_is_the_users_own_runs(device, network):
    x = mg.zeros(1, 2, 5, 6, device=device)

    class Negative(nn.ReLU):
        def forward(self, input):
            return -input

    network[1] = Negative()
    network[3].forward = lambda input: input - 1
    assert calls_of("conv2d_relu", device, lambda: network(x)) == 0
    assert mg.equal(network(x), one_by_one(network, x))
