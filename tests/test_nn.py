"""Modules: what they register, save, load, print and pass on, and the containers of modules."""

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import minigrad as mg
import minigrad.nn as nn
import minigrad.nn.functional as F


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


def values(module):
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


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


def test_get_parameter():
    net = Net()
    assert net.get_parameter("out.weight") is net.out.weight
    with pytest.raises(AttributeError, match=r"Linear has no parameter 'wait' \(path 'out\.wait'\)"):
        net.get_parameter("out.wait")


# ---- state ------------------------------------------------------------------------------------------------


def test_a_state_is_loaded_by_value():
    source, target = Net(), Net()
    state = source.state_dict()
    assert all(not t.requires_grad for t in state.values())
    assert np.shares_memory(state["scale"].numpy(), source.scale.detach().numpy())
    found = target.load_state_dict(state)
    assert found.missing_keys == [] and found.unexpected_keys == []
    for name, tensor in target.state_dict().items():
        assert_array_equal(tensor.numpy(), state[name].numpy())
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
    assert_array_equal(twin(x).detach().numpy(), net(x).detach().numpy())
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
    assert net.to(mg.device("sim", 0), non_blocking=True).out.weight.device == mg.device("sim")


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
    assert nn.Identity()._hooks is None


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
    assert_array_equal(net(x).detach().numpy(), c(b(a(x))).detach().numpy())
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


def test_what_is_registered_can_be_read_by_pytorch_s_private_names():
    layer = nn.BatchNorm1d(3, affine=False)
    outer = nn.Sequential(layer, nn.GRU(2, 3))
    assert list(outer._modules) == ["0", "1"] and outer._modules["0"] is layer
    assert layer._parameters == {"weight": None, "bias": None} and "running_mean" in layer._buffers
    gru = outer[1]
    assert list(gru._parameters) == gru._flat_weights_names
    with pytest.raises(TypeError, match="does not support item assignment"):
        outer._modules["0"] = nn.ReLU()


def test_none_keeps_its_place_in_a_container():
    """Models that leave out a part say so by None, and unpack the list by its length."""
    layers = nn.ModuleList([nn.Linear(2, 3), None, nn.ReLU()])
    layers.append(None)
    layers.insert(0, None)
    nothing, linear, gap, relu, last = layers
    assert nothing is gap is last is None and isinstance(relu, nn.ReLU) and layers[1] is linear
    assert list(layers.state_dict()) == ["1.weight", "1.bias"] and len(list(layers.children())) == 2
    del layers[2]
    assert repr(layers[:3]) == (
        "ModuleList(\n  (0): None\n  (1): Linear(in_features=2, out_features=3, bias=True)\n  (2): ReLU()\n)"
    )
    by_name = nn.ModuleDict({"here": nn.ReLU(), "gone": None})
    assert list(by_name) == ["here", "gone"] and by_name["gone"] is None
    assert len(nn.Sequential(nn.ReLU(), None)) == 2


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
