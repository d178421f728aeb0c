"""Modules, layers, losses and initialisers, against definitions written out in float64 NumPy."""

import copy
import math
import pickle
from collections import OrderedDict

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn as nn
import minigrad.nn.functional as F
from minigrad.testing import gradcheck


class Net(nn.Module):
    """A network with something of everything: parameters, buffers, and modules two levels deep."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(mg.ones(3))
        self.features = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.out = nn.Linear(3, 2)
        self.register_buffer("offset", mg.zeros(2))
        self.register_buffer("scratch", mg.zeros(5), persistent=False)

    def forward(self, x):
        return self.out(self.features(x) * self.scale) + self.offset


PARAMETERS = [
    "scale",
    "features.0.weight",
    "features.0.bias",
    "features.1.weight",
    "features.1.bias",
    "out.weight",
    "out.bias",
]
STATE = [
    "scale",
    "offset",
    "features.0.weight",
    "features.0.bias",
    "features.1.weight",
    "features.1.bias",
    "features.1.running_mean",
    "features.1.running_var",
    "features.1.num_batches_tracked",
    "out.weight",
    "out.bias",
]


@pytest.fixture(autouse=True)
def seeded():
    mg.manual_seed(0)


def values(module):
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def double(*shape, seed=0, **options):
    """Normal random numbers in float64."""
    return mg.tensor(np.random.default_rng(seed).standard_normal(shape), **options)


def assert_same(actual, expected, rtol=1e-12, atol=1e-12):
    actual = actual.detach().numpy() if isinstance(actual, mg.Tensor) else actual
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


# ---- parameters and registration --------------------------------------------------------------------------


def test_a_parameter_is_a_trained_leaf_that_shares_its_data():
    data = mg.zeros(3)
    parameter = nn.Parameter(data)
    assert isinstance(parameter, mg.Tensor) and parameter.requires_grad and parameter.is_leaf
    data[0] = 7.0
    assert parameter.tolist() == [7.0, 0.0, 0.0]
    assert repr(parameter).startswith("Parameter containing:\ntensor(")
    assert not nn.Parameter(data, requires_grad=False).requires_grad
    assert nn.Parameter(parameter * 2).is_leaf


def test_a_write_to_a_parameters_data_is_noticed_by_the_graph():
    data = mg.ones(3)
    loss = (nn.Parameter(data) ** 3).sum()
    data[0] = 5.0
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


@pytest.mark.parametrize("bad", [[1.0, 2.0], np.ones(3), None, 1.0])
def test_a_parameter_is_made_of_a_tensor(bad):
    with pytest.raises(TypeError, match="expected a Tensor"):
        nn.Parameter(bad)


def test_integers_are_no_trained_parameter():
    with pytest.raises(TypeError, match="int64"):
        nn.Parameter(mg.arange(3))
    assert nn.Parameter(mg.arange(3), requires_grad=False).dtype == mg.int64


def test_names_come_in_the_order_of_registration():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == PARAMETERS
    assert list(net.state_dict()) == STATE
    assert [name for name, _ in net.named_modules()] == ["", "features", "features.0", "features.1", "out"]
    assert [name for name, _ in net.named_children()] == ["features", "out"]
    assert [name for name, _ in net.named_buffers()] == [
        "offset",
        "scratch",
        "features.1.running_mean",
        "features.1.running_var",
        "features.1.num_batches_tracked",
    ]
    assert [name for name, _ in net.named_parameters(prefix="net", recurse=False)] == ["net.scale"]
    assert len(list(net.parameters())) == 7 and len(list(net.buffers())) == 5
    assert len(list(net.modules())) == 5 and len(list(net.children())) == 2


def test_what_is_used_twice_comes_once_but_is_saved_under_both_names():
    net = nn.Module()
    net.a = nn.Linear(2, 2)
    net.b = nn.Linear(2, 2)
    net.b.weight = net.a.weight
    net.c = net.a
    assert [name for name, _ in net.named_parameters()] == ["a.weight", "a.bias", "b.bias"]
    assert len(list(net.named_parameters(remove_duplicate=False))) == 6
    assert [name for name, _ in net.named_modules()] == ["", "a", "b"]
    assert list(net.state_dict()) == ["a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "c.bias"]


def test_registering_needs_the_base_class_to_be_ready():
    class Early(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(2, 2)

    with pytest.raises(AttributeError, match=r"Early: call super\(\).__init__\(\) before 'layer'"):
        Early()


def test_a_registered_name_keeps_its_role():
    net = Net()
    with pytest.raises(
        TypeError, match=r"Net.scale is a parameter: expected nn.Parameter or None, got Tensor"
    ):
        net.scale = mg.ones(3)
    with pytest.raises(TypeError, match="out is a module"):
        net.out = 3
    with pytest.raises(TypeError, match="offset is a buffer"):
        net.offset = 3
    net.offset = mg.ones(2)
    assert net.state_dict()["offset"].tolist() == [1.0, 1.0]
    net.scale = None
    assert "scale" not in dict(net.named_parameters()) and net.scale is None
    net.scale = nn.Parameter(mg.zeros(3))
    assert "scale" in dict(net.named_parameters())
    net.offset = nn.Parameter(mg.zeros(2))
    assert "offset" in dict(net.named_parameters()) and "offset" not in dict(net.named_buffers())
    del net.out
    assert not hasattr(net, "out") and "out.weight" not in net.state_dict()


def test_a_plain_tensor_attribute_is_not_registered():
    net = nn.Module()
    net.constant = mg.ones(3)
    assert not net.state_dict() and net.constant.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("a.b", KeyError, "dot"),
        ("", KeyError, "empty"),
        ("train", KeyError, "already"),
        (3, TypeError, "int"),
    ],
)
def test_bad_names_are_refused(name, error, text):
    net = nn.Module()
    for register in (
        lambda: net.register_parameter(name, nn.Parameter(mg.ones(1))),
        lambda: net.register_buffer(name, mg.ones(1)),
        lambda: net.add_module(name, nn.Linear(1, 1)),
    ):
        with pytest.raises(error, match=text):
            register()
    assert not net.state_dict()


def test_the_wrong_kind_of_thing_is_refused():
    net = nn.Module()
    with pytest.raises(TypeError, match="Parameter"):
        net.register_parameter("x", mg.ones(1))
    with pytest.raises(TypeError, match="Tensor"):
        net.register_buffer("x", np.ones(1))
    with pytest.raises(TypeError, match="Module"):
        net.add_module("x", mg.ones(1))


def test_get_submodule():
    net = Net()
    assert net.get_submodule("features.1") is net.features[1] and net.get_submodule("") is net
    with pytest.raises(AttributeError, match="'2'"):
        net.get_submodule("features.2")


# ---- state ------------------------------------------------------------------------------------------------


def test_a_state_is_loaded_by_value():
    source, target = Net(), Net()
    state = source.state_dict()
    assert all(not t.requires_grad for t in state.values())
    assert np.shares_memory(state["scale"].numpy(), source.scale.detach().numpy())
    found = target.load_state_dict(state)
    assert found.missing_keys == [] and found.unexpected_keys == []
    for name, tensor in target.state_dict().items():
        assert_same(tensor, state[name].numpy(), 0, 0)
        assert not np.shares_memory(tensor.numpy(), state[name].numpy())


def test_loading_converts_to_the_modules_dtype():
    net = Net()
    net.load_state_dict({name: t.to(mg.float64) for name, t in Net().state_dict().items()})
    assert {t.dtype for t in net.parameters()} == {mg.float32}
    assert net.features[1].num_batches_tracked.dtype == mg.int64


def test_all_that_does_not_fit_is_told_and_nothing_is_loaded():
    net = Net()
    before = values(net)
    state = Net().state_dict()
    del state["out.bias"]
    state["surplus"] = mg.ones(1)
    state["out.weight"] = mg.ones(2, 4)
    state["offset"] = np.ones(2)
    with pytest.raises(RuntimeError) as caught:
        net.load_state_dict(state)
    for text in (
        "does not fit Net",
        "missing keys: 'out.bias'",
        "unexpected keys: 'surplus'",
        "out.weight: the state has shape (2, 4), the module (2, 3)",
        "offset: expected a Tensor, got ndarray",
    ):
        assert text in str(caught.value)
    after = values(net)
    assert all((before[name] == after[name]).all() for name in before)


def test_without_strict_keys_may_differ_but_not_shapes():
    net = Net()
    found = net.load_state_dict({"scale": mg.full((3,), 5.0), "surplus": mg.ones(1)}, strict=False)
    assert net.scale.tolist() == [5.0, 5.0, 5.0]
    assert found.missing_keys == STATE[1:] and found.unexpected_keys == ["surplus"]
    with pytest.raises(RuntimeError, match="scale"):
        net.load_state_dict({"scale": mg.ones(4)}, strict=False)


def test_a_read_only_parameter_is_told_before_anything_is_loaded():
    net = nn.Linear(2, 2)
    frozen = np.zeros(2, np.float32)
    frozen.flags.writeable = False
    net.bias = nn.Parameter(mg.from_numpy(frozen))
    before = values(net)
    with pytest.raises(RuntimeError, match="bias: the module's tensor is read-only"):
        net.load_state_dict(nn.Linear(2, 2).state_dict())
    assert (values(net)["weight"] == before["weight"]).all()


def test_a_state_must_be_a_mapping():
    with pytest.raises(TypeError, match="dict"):
        Net().load_state_dict([mg.ones(3)])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_modules_can_be_copied(copied):
    net = Net().eval()
    net.out.weight = nn.Parameter(net.out.weight.detach())
    twin = copied(net)
    assert isinstance(twin.scale, nn.Parameter) and twin.scale is not net.scale
    assert list(twin.state_dict()) == STATE and not twin.training
    x = mg.randn(5, 4)
    assert_same(twin(x), net(x).detach().numpy(), 0, 0)
    with mg.no_grad():
        twin.scale.fill_(0)
    assert net.scale.tolist() == [1.0, 1.0, 1.0]


# ---- modes, devices, gradients, hooks ---------------------------------------------------------------------


def test_train_and_eval_reach_all_modules():
    net = Net()
    assert net.training and net.eval() is net
    assert not any(module.training for module in net.modules())
    assert all(module.training for module in net.train().modules())
    with pytest.raises(ValueError, match="bool"):
        net.train("yes")


def test_the_dtype_changes_in_place():
    net = Net()
    parameters = list(net.parameters())
    net(mg.randn(5, 4)).sum().backward()
    assert net.double() is net
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert {t.dtype for t in net.parameters()} == {mg.float64}
    assert all(t.grad.dtype == mg.float64 for t in net.parameters())
    assert net.features[1].num_batches_tracked.dtype == mg.int64
    assert net.offset.dtype == mg.float64
    assert net(mg.randn(5, 4, dtype=mg.float64)).dtype == mg.float64
    assert net.to(mg.float32).float().scale.dtype == mg.float32
    assert net.to(mg.zeros(1, dtype=mg.float64)).scale.dtype == mg.float64
    assert net.to("float32").scale.dtype == mg.float32
    with pytest.raises(TypeError, match="int64"):
        net.to(mg.int64)


def test_a_module_moves_between_devices():
    if "sim" not in [str(d) for d in mg.available_devices()]:
        pytest.skip("the device sim needs a C++ compiler")
    net = Net()
    weight = net.out.weight
    assert net.to("sim") is net and net.out.weight is weight
    assert {str(t.device) for t in (*net.parameters(), *net.buffers())} == {"sim"}
    assert net(mg.randn(5, 4, device="sim")).device == mg.device("sim")
    assert {str(t.device) for t in net.cpu().parameters()} == {"cpu"}


def test_an_unknown_device_changes_nothing():
    net = Net()
    with pytest.raises(mg.errors.DeviceError):
        net.to(device="cuda:99x")
    assert {str(t.device) for t in net.parameters()} == {"cpu"}


def test_zero_grad():
    net = Net()
    net(mg.randn(5, 4)).sum().backward()
    net.zero_grad(set_to_none=False)
    assert all((p.grad.numpy() == 0).all() for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_freezing():
    net = Net()
    net.features.requires_grad_(False)
    net(mg.randn(5, 4)).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is not None] == [
        "scale",
        "out.weight",
        "out.bias",
    ]


def test_apply_goes_from_the_inside_out():
    seen = []
    net = Net()
    assert net.apply(lambda module: seen.append(type(module).__name__)) is net
    assert seen == ["Linear", "BatchNorm1d", "Sequential", "Linear", "Net"]


def test_forward_hooks():
    layer = nn.Identity()
    seen = []
    first = layer.register_forward_pre_hook(lambda module, args: seen.append(args))
    second = layer.register_forward_pre_hook(lambda module, args: args[0] + 1)
    third = layer.register_forward_hook(lambda module, args, output: output * 10)
    x = mg.ones(1)
    assert layer(x).item() == 20.0 and seen == [(x,)]
    third.remove()
    assert layer(x).item() == 2.0
    first.remove()
    second.remove()
    assert layer(x) is x and len(seen) == 2
    assert nn.Identity()._forward_hooks is None


def test_forward_must_be_defined():
    class Empty(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty"):
        Empty()(1)


def test_a_missing_attribute_is_named():
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'wieght'"):
        _ = Net().wieght


def test_repr():
    assert repr(Net()) == (
        "Net(\n"
        "  (features): Sequential(\n"
        "    (0): Linear(in_features=4, out_features=3, bias=True)\n"
        "    (1): BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)\n"
        "  )\n"
        "  (out): Linear(in_features=3, out_features=2, bias=True)\n"
        ")"
    )


# ---- containers -------------------------------------------------------------------------------------------


def test_sequential():
    a, b, c = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
    net = nn.Sequential(a, b, c)
    x = mg.randn(4, 2)
    assert_same(net(x), c(b(a(x))).detach().numpy(), 0, 0)
    assert len(net) == 3 and list(net) == [a, b, c] and net[0] is a and net[-1] is c
    assert isinstance(net[1:], nn.Sequential) and list(net[1:]) == [b, c]
    assert net.append(nn.Tanh()) is net and len(net) == 4
    net[3] = nn.Sigmoid()
    assert isinstance(net[3], nn.Sigmoid)
    net.insert(1, nn.Identity())
    assert [type(m).__name__ for m in net] == ["Linear", "Identity", "ReLU", "Linear", "Sigmoid"]
    assert list(net.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    del net[1:3]
    assert list(net.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    del net[-1]
    assert list(net) == [a, c]
    assert nn.Sequential()(x) is x
    with pytest.raises(IndexError, match="index 2 is out of range for 2 modules"):
        net[2]
    with pytest.raises(TypeError, match="Module"):
        nn.Sequential(a, F.relu)


def test_sequential_with_names():
    net = nn.Sequential(OrderedDict(first=nn.Linear(2, 2), act=nn.ReLU()))
    assert net.act is net[1] and list(net.state_dict()) == ["first.weight", "first.bias"]
    assert list(net[:1].state_dict()) == ["first.weight", "first.bias"]


def test_module_list():
    layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    layers.append(nn.ReLU())
    layers += [nn.ReLU()]
    assert len(layers) == 5 and len(list(layers.parameters())) == 6
    assert isinstance(layers[1:3], nn.ModuleList) and layers[1:3][0] is layers[1]
    assert repr(layers) == (
        "ModuleList(\n  (0-2): 3 x Linear(in_features=2, out_features=2, bias=True)\n  (3-4): 2 x ReLU()\n)"
    )
    del layers[0]
    assert list(layers.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    with pytest.raises(IndexError):
        del layers[7]


def test_module_dict():
    layers = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ReLU()})
    layers["c"] = nn.Tanh()
    assert list(layers) == ["a", "b", "c"] and "b" in layers and "z" not in layers and len(layers) == 3
    assert [name for name, _ in layers.items()] == layers.keys() and layers.values()[0] is layers["a"]
    assert list(layers.state_dict()) == ["a.weight", "a.bias"]
    assert isinstance(layers.pop("a"), nn.Linear) and not list(layers.parameters())
    with pytest.raises(KeyError):
        layers["a"]
    with pytest.raises(KeyError):
        del layers["a"]
    layers.clear()
    assert len(layers) == 0
    with pytest.raises(KeyError, match="already"):
        layers["keys"] = nn.ReLU()


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
        ((4, 4, 3), {"padding_mode": "reflect"}, "padding_mode"),
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


# ---- losses -----------------------------------------------------------------------------------------------


def reduced(loss, reduction):
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_differences(reduction):
    x, target = double(4, 3, requires_grad=True), double(4, 3, seed=1)
    difference = x.detach().numpy() - target.numpy()
    assert_same(nn.MSELoss(reduction=reduction)(x, target), reduced(difference**2, reduction))
    assert_same(nn.L1Loss(reduction=reduction)(x, target), reduced(np.abs(difference), reduction))
    gradcheck(lambda x: F.l1_loss(x, target, reduction=reduction), [x], seed=0)
    for loss in (F.mse_loss, F.l1_loss):
        with pytest.raises(ValueError, match=r"\(4, 3\), target \(4,\)"):
            loss(x, target[:, 0])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(reduction, weighted):
    logits = double(6, 4, requires_grad=True)
    target = mg.tensor([0, 3, 1, 1, 2, 0])
    weight = mg.tensor([0.5, 1.0, 2.0, 3.0], dtype=mg.float64) if weighted else None
    array = logits.detach().numpy()
    log_p = array - np.log(np.exp(array).sum(1, keepdims=True))
    weights = weight.numpy()[target.numpy()] if weighted else np.ones(6)
    losses = -log_p[np.arange(6), target.numpy()] * weights
    expected = losses.sum() / weights.sum() if reduction == "mean" else reduced(losses, reduction)
    loss = nn.CrossEntropyLoss(weight, reduction=reduction)
    assert_same(loss(logits, target), expected)
    assert_same(nn.NLLLoss(weight, reduction=reduction)(F.log_softmax(logits, 1), target), expected)
    assert list(loss.state_dict()) == (["weight"] if weighted else [])
    gradcheck(lambda x: loss(x, target), [logits], seed=0)


def test_cross_entropy_ignores_and_smooths():
    logits = double(4, 3)
    target = mg.tensor([0, -100, 2, 1])
    kept = mg.tensor([0, 2, 3])
    loss = nn.CrossEntropyLoss()
    assert_same(loss(logits, target), loss(logits[kept], target[kept]).numpy())
    array = logits.numpy()
    log_p = array - np.log(np.exp(array).sum(1, keepdims=True))
    smooth = np.full((4, 3), 0.1 / 3)
    smooth[np.arange(4), [0, 1, 2, 1]] += 0.9
    expected = -(smooth * log_p).sum(1).mean()
    found = nn.CrossEntropyLoss(label_smoothing=0.1)(logits, mg.tensor([0, 1, 2, 1]))
    assert_same(found, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy(reduction, weighted):
    logits = double(5, 3, requires_grad=True)
    target = mg.tensor(np.random.default_rng(2).random((5, 3)), requires_grad=True)
    weight = mg.tensor([0.5, 1.0, 2.0], dtype=mg.float64) if weighted else None
    pos_weight = mg.tensor([3.0, 1.0, 0.5], dtype=mg.float64) if weighted else None
    p, t = 1 / (1 + np.exp(-logits.detach().numpy())), target.detach().numpy()
    losses = -(t * np.log(p) + (1 - t) * np.log(1 - p)) * (weight.numpy() if weighted else 1)
    probabilities = mg.tensor(p, requires_grad=True)
    assert_same(nn.BCELoss(weight, reduction=reduction)(probabilities, target), reduced(losses, reduction))
    assert_same(nn.BCEWithLogitsLoss(weight, reduction=reduction)(logits, target), reduced(losses, reduction))
    losses = -t * np.log(p) * (pos_weight.numpy() if weighted else 1) - (1 - t) * np.log(1 - p)
    found = nn.BCEWithLogitsLoss(reduction=reduction, pos_weight=pos_weight)(logits, target)
    assert_same(found, reduced(losses, reduction))
    gradcheck(lambda x, t: F.binary_cross_entropy(x, t, weight), [probabilities, target], seed=0)
    gradcheck(
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, pos_weight=pos_weight),
        [logits, target],
        seed=0,
    )


def test_binary_cross_entropy_at_the_ends():
    x = mg.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    loss = F.binary_cross_entropy(x, mg.tensor([0.0, 1.0, 1.0, 0.0]), reduction="none")
    assert loss.tolist() == [0.0, 0.0, 100.0, 100.0]
    loss.sum().backward()
    assert_same(x.grad, [0.0, 0.0, -1e12, 1e12], 1e-6)
    logits = mg.tensor([-1e4, 1e4], requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(logits, mg.tensor([1.0, 1.0]), reduction="none")
    assert loss.tolist() == [1e4, 0.0]
    loss.sum().backward()
    assert logits.grad.tolist() == [-1.0, 0.0]
    for bad in ([0.5, 1.5], [-0.1, 0.5], [0.5, math.nan]):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            F.binary_cross_entropy(mg.tensor(bad), mg.ones(2))


def test_losses_refuse_bad_arguments():
    for loss in (nn.MSELoss, nn.L1Loss, nn.CrossEntropyLoss, nn.NLLLoss, nn.BCELoss, nn.BCEWithLogitsLoss):
        with pytest.raises(ValueError, match="reduction"):
            loss(reduction="avg")
    with pytest.raises(ValueError, match="target 4 is out of range"):
        F.cross_entropy(mg.ones(2, 4), mg.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"must have shape \(2,\)"):
        F.cross_entropy(mg.ones(2, 4), mg.tensor([0, 1, 2]))


# ---- functions --------------------------------------------------------------------------------------------


def test_one_hot():
    assert F.one_hot(mg.tensor([[0, 2], [1, 0]])).tolist() == [[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, 0]]]
    assert F.one_hot(mg.tensor(1), 4).tolist() == [0, 1, 0, 0]
    assert F.one_hot(mg.zeros(0, dtype=mg.int64), 4).shape == (0, 4)
    for bad, classes in (([0, 4], 4), ([-1], -1), ([], -1)):
        with pytest.raises(ValueError, match="one_hot"):
            F.one_hot(mg.tensor(bad, dtype=mg.int64), classes)
    with pytest.raises(TypeError, match="integers"):
        F.one_hot(mg.ones(2))


@pytest.mark.parametrize("p", [1, 2, 3.0, math.inf])
def test_normalize(p):
    x = double(4, 5)
    expected = x.numpy() / np.linalg.norm(x.numpy(), p, axis=1, keepdims=True)
    assert_same(F.normalize(x, p), expected)


def test_normalize_at_zero_has_a_finite_gradient():
    x = mg.zeros(2, 3, requires_grad=True)
    out = F.normalize(x)
    out.sum().backward()
    assert (out.detach().numpy() == 0).all() and np.isfinite(x.grad.numpy()).all()


def test_pad_and_linear_vector_weight():
    assert F.pad(mg.ones(2, 2), (1, 0, 0, 1), value=5.0).tolist() == [[5, 1, 1], [5, 1, 1], [5, 5, 5]]
    assert F.linear(mg.ones(3, 2), mg.tensor([2.0, 3.0])).tolist() == [5.0, 5.0, 5.0]
    with pytest.raises(ValueError, match="1 or 2 dimensions"):
        F.linear(mg.ones(3), mg.ones(1, 1, 3))


# ---- clipping ---------------------------------------------------------------------------------------------


def with_gradients(*gradients):
    parameters = [nn.Parameter(mg.zeros(len(g), dtype=mg.float64)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = mg.tensor(gradient, dtype=mg.float64)
    return parameters


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_clip_grad_norm(p):
    gradients = [3.0, -4.0], [12.0]
    parameters = [*with_gradients(*gradients), nn.Parameter(mg.zeros(2))]
    norm = np.linalg.norm([3.0, -4.0, 12.0], p)
    assert nn.utils.clip_grad_norm_(parameters, 100.0, p).item() == pytest.approx(norm)
    assert parameters[0].grad.tolist() == [3.0, -4.0]
    nn.utils.clip_grad_norm_(parameters, 1.0, p)
    together = np.concatenate([q.grad.numpy() for q in parameters[:2]])
    assert_same(together, np.array([3.0, -4.0, 12.0]) / (norm + 1e-6), 1e-12)
    assert nn.utils.clip_grad_norm_([], 1.0).item() == 0.0
    assert nn.utils.clip_grad_norm_(parameters[1], 1.0, p).shape == ()


def test_clip_grad_norm_refuses_bad_input():
    parameters = with_gradients([1.0, math.nan])
    with pytest.raises(RuntimeError, match="nan"):
        nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
    assert parameters[0].grad.tolist()[0] == 1.0
    for max_norm in (-1.0, math.nan):
        with pytest.raises(ValueError, match="max_norm"):
            nn.utils.clip_grad_norm_(parameters, max_norm)


def test_clip_grad_value():
    parameters = with_gradients([3.0, -0.5, -4.0])
    nn.utils.clip_grad_value_(parameters, 1.0)
    assert parameters[0].grad.tolist() == [1.0, -0.5, -1.0]
    with pytest.raises(ValueError, match="clip_value"):
        nn.utils.clip_grad_value_(parameters, -1.0)


# ---- initialisers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fill", "std", "bound"),
    [
        (lambda t: nn.init.uniform_(t, -2.0, 2.0), 2 / math.sqrt(3), 2.0),
        (lambda t: nn.init.normal_(t, 0.0, 3.0), 3.0, None),
        (lambda t: nn.init.xavier_uniform_(t, 2.0), 2 * math.sqrt(2 / 3600), 2 * math.sqrt(6 / 3600)),
        (lambda t: nn.init.xavier_normal_(t), math.sqrt(2 / 3600), None),
        (lambda t: nn.init.kaiming_uniform_(t, nonlinearity="relu"), math.sqrt(2 / 900), math.sqrt(6 / 900)),
        (lambda t: nn.init.kaiming_normal_(t, mode="fan_out"), math.sqrt(2 / 2700), None),
        (lambda t: nn.init.kaiming_normal_(t, a=1.0), math.sqrt(1 / 900), None),
    ],
)
def test_random_initialisers(fill, std, bound):
    weight = nn.Parameter(mg.empty(300, 100, 3, 3))
    assert fill(weight) is weight and weight.requires_grad and weight.is_leaf
    array = weight.detach().numpy()
    assert abs(array.std() / std - 1) < 0.01 and abs(array.mean()) < 0.01 * std
    assert bound is None or 0.99 * bound < np.abs(array).max() <= bound


def test_constant_initialisers():
    weight = nn.Parameter(mg.empty(2, 2))
    assert nn.init.constant_(weight, 3.5).tolist() == [[3.5, 3.5], [3.5, 3.5]]
    assert nn.init.ones_(weight).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert nn.init.zeros_(weight).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (4, 2, 3, 3)])
def test_orthogonal(shape):
    weight = nn.init.orthogonal_(mg.empty(shape, dtype=mg.float64), gain=2.0).numpy().reshape(shape[0], -1)
    few = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    assert_same(few, 4 * np.eye(min(weight.shape)))


def test_trunc_normal():
    x = nn.init.trunc_normal_(mg.empty(200_000), mean=1.0, std=2.0, a=0.0, b=2.0).numpy()
    assert x.min() >= 0 and x.max() <= 2 and abs(x.mean() - 1) < 0.01
    # The variance of a standard normal limited to [-c, c] is 1 - 2 c phi(c) / (2 Phi(c) - 1).
    phi, mass = math.exp(-0.125) / math.sqrt(2 * math.pi), math.erf(0.5 * SQRT_HALF)
    assert abs(x.var() / (4 * (1 - phi / mass)) - 1) < 0.01
    with pytest.raises(ValueError, match="almost nothing"):
        nn.init.trunc_normal_(mg.empty(3), a=50.0, b=60.0)


def test_initialisers_refuse_bad_input():
    vector = mg.empty(3)
    for fill in (nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.orthogonal_):
        with pytest.raises(ValueError, match="at least 2 dimensions"):
            fill(vector)
    with pytest.raises(ValueError, match="fan_in"):
        nn.init.kaiming_normal_(mg.empty(2, 2), mode="fan")
    with pytest.raises(ValueError, match="unknown nonlinearity 'swish'"):
        nn.init.calculate_gain("swish")
    with pytest.raises(ValueError, match="std"):
        nn.init.normal_(vector, std=-1.0)


def test_a_generator_of_ones_own():
    first = nn.init.normal_(mg.empty(5), generator=mg.Generator(3)).tolist()
    assert nn.init.normal_(mg.empty(5), generator=mg.Generator(3)).tolist() == first
