"""Lists and dictionaries of parameters, the hooks of modules, and starting values, compared with PyTorch."""

import copy
import math

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F
from minigrad import nn

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="needs PyTorch")


def parameters(*shapes):
    return [nn.Parameter(mg.randn(*shape)) for shape in shapes]


def test_chains_and_lists_are_joined_and_shortened():
    a, b, c = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
    both = nn.Sequential(a, b) + nn.Sequential(c)
    assert list(both) == [a, b, c] and list(both.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert both.__add__([a]) is NotImplemented
    modules = nn.ModuleList([a, b, c])
    assert modules.pop() is c and modules.pop(0) is a and list(modules) == [b]
    with pytest.raises(IndexError, match="out of range"):
        modules.pop(1)


def test_a_list_of_parameters_is_registered():
    first, second, third = parameters((2,), (3,), (4, 5))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList([first, second])

    net = Net()
    net.weights.append(third)
    assert [name for name, _ in net.named_parameters()] == ["weights.0", "weights.1", "weights.2"]
    assert list(net.weights) == [first, second, third] and net.weights[-1] is third and len(net.weights) == 3
    assert list(net.weights[1:]) == [second, third] and isinstance(net.weights[1:], nn.ParameterList)
    assert "(2): Parameter containing: [float32 of size 4x5]" in repr(net)
    with pytest.raises(IndexError, match="index 3 is out of range for 3 parameters"):
        net.weights[3]
    other = Net()
    other.weights.extend([mg.zeros(4, 5)])
    other.load_state_dict(net.state_dict())
    np.testing.assert_array_equal(other.weights[2].detach().numpy(), third.detach().numpy())
    assert [p.shape for p in copy.deepcopy(net).weights] == [(2,), (3,), (4, 5)]


def test_a_tensor_becomes_a_parameter():
    x = mg.ones(3)
    weights = nn.ParameterList([x])
    weights += [mg.zeros(2)]
    weights[0] = mg.full((3,), 7.0)
    weights.insert(1, x)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in weights)
    assert [p.tolist() for p in weights] == [[7.0] * 3, [1.0] * 3, [0.0] * 2]
    del weights[0]
    assert [name for name, _ in weights.named_parameters()] == ["0", "1"]
    with pytest.raises(TypeError, match="ParameterList: expected a Tensor, got int"):
        weights.append(3)


def test_a_dictionary_of_parameters_is_registered():
    left, right = parameters((2,), (3,))
    chosen = nn.ParameterDict({"left": left})
    chosen["right"] = right
    assert chosen.keys() == list(chosen) == ["left", "right"] and "left" in chosen and len(chosen) == 2
    assert chosen.setdefault("left", mg.zeros(9)) is left and chosen.get("up") is None
    assert isinstance(chosen.setdefault("up", mg.zeros(9)), nn.Parameter)
    assert list(chosen.state_dict()) == ["left", "right", "up"]
    assert chosen.pop("right") is right and chosen.values()[0] is left
    with pytest.raises(KeyError, match="right"):
        del chosen["right"]
    chosen.clear()
    assert not list(chosen.parameters())


def hook_calls(nn, x):
    """What hooks of every kind see, and the output."""
    seen = []

    class Scale(nn.Module):
        def forward(self, x, factor=1.0):
            return x * factor

    layer = Scale()
    layer.register_forward_pre_hook(lambda m, args: seen.append("pre"))
    layer.register_forward_pre_hook(
        lambda m, args, kwargs: ((args[0] + 1,), {"factor": kwargs["factor"] * 10}), with_kwargs=True
    )
    layer.register_forward_pre_hook(lambda m, args: seen.append("first"), prepend=True)
    layer.register_forward_hook(lambda m, args, output: seen.append(output.sum().item()))
    layer.register_forward_hook(
        lambda m, args, kwargs, output: output + kwargs["factor"], with_kwargs=True, prepend=True
    )
    removed = layer.register_forward_hook(lambda m, args, output: output * 0)
    removed.remove()
    return layer(x, factor=2.0).tolist(), seen


def test_hooks_see_arguments_by_name_in_their_order():
    output, seen = hook_calls(nn, mg.arange(3.0))
    assert output == [40.0, 60.0, 80.0] and seen == ["first", "pre", 180.0]


@needs_torch
def test_hooks_are_pytorchs():
    assert hook_calls(nn, mg.arange(3.0)) == hook_calls(torch.nn, torch.arange(3.0))


def calls_after_an_error(nn, stage):
    seen = []

    def fail(*_):
        raise ValueError("broken")

    class Broken(nn.Module):
        def forward(self, x):
            return fail() if stage == "forward" else x

    layer = Broken()
    layer.register_forward_hook(lambda m, args, output: seen.append("before"), always_call=True)
    if stage == "hook":
        layer.register_forward_hook(fail)
    layer.register_forward_hook(lambda m, args, output: seen.append(output), always_call=True)
    layer.register_forward_hook(lambda m, args, output: seen.append("never"))
    with pytest.raises(ValueError, match="broken"):
        layer(1)
    return seen


@pytest.mark.parametrize(("stage", "expected"), [("forward", ["before", None]), ("hook", ["before", 1])])
def test_some_hooks_are_called_after_an_error(stage, expected):
    assert calls_after_an_error(nn, stage) == expected


@needs_torch
def test_a_hook_after_an_error_in_forward_is_pytorchs():
    assert calls_after_an_error(nn, "forward") == calls_after_an_error(torch.nn, "forward")


def test_an_error_of_a_hook_does_not_hide_that_of_forward():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda m, args, output: output.missing, always_call=True)
    with pytest.warns(UserWarning, match="always_call failed"), pytest.raises(ValueError):
        layer(mg.ones(3, 5))


def test_a_pre_hook_with_kwargs_returns_both():
    layer = nn.Identity()
    layer.register_forward_pre_hook(lambda m, args, kwargs: args, with_kwargs=True)
    with pytest.raises(RuntimeError, match=r"returns None or \(args, kwargs\)"):
        layer(1)


def numbers(grads):
    """The values; None also for zeros, which PyTorch gives where no gradient has come."""
    return [None if g is None or not g.any() else g.tolist() for g in grads]


def backward_hook_calls(nn, tensor, change=False, data_alone=False, again=False):
    """What backward hooks see of a layer of several inputs and outputs, and the gradients that result."""
    seen = []

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(tensor([2.0, 3.0]))

        def forward(self, x, factor, y, unused=None):
            return x * self.weight * factor, "no tensor", y * x, y.sum()

    def pre_hook(module, grad_output):
        seen.append(("pre", numbers(grad_output)))
        return tuple(g if g is None else g * 2 for g in grad_output) if change else None

    def hook(module, grad_input, grad_output):
        seen.append((numbers(grad_input), numbers(grad_output)))
        return tuple(g if g is None else g + 1 for g in grad_input) if change else None

    layer = Layer()
    layer.register_full_backward_hook(hook)
    layer.register_full_backward_pre_hook(pre_hook)
    layer.register_full_backward_hook(lambda *_: seen.append("first"), prepend=True)
    layer.register_full_backward_hook(lambda *_: seen.append("never")).remove()
    x = tensor([1.0, 4.0], requires_grad=not data_alone)
    y = tensor([5.0, 6.0])
    first, _, second, _ = layer(x * 1.0, 10.0, y, y)
    loss = first.sum() if data_alone else (first * second).sum()
    loss.backward(retain_graph=again)
    if again:
        loss.backward()
    return seen, None if data_alone else x.grad.tolist(), layer.weight.grad.tolist()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of PyTorch, where data come alone
@pytest.mark.parametrize("options", [{}, {"change": True}, {"data_alone": True}, {"again": True}])
def test_backward_hooks_see_and_replace_gradients(options):
    seen, x_grad, weight_grad = backward_hook_calls(nn, mg.tensor, **options)
    if options:
        assert len(seen) == (6 if "again" in options else 3)
    else:
        # first = 10 x w, second = x y: the loss is the sum of 10 w y x^2
        assert seen[0] == ("pre", [[5.0, 24.0], None, [20.0, 120.0], None]) and seen[1] == "first"
        assert x_grad == [200.0, 1440.0] and weight_grad == [50.0, 960.0]
        assert seen[2][0] == [x_grad, None, None, None]
    if torch is not None:
        assert (seen, x_grad, weight_grad) == backward_hook_calls(torch.nn, torch.tensor, **options)


@needs_torch
def test_backward_hooks_in_a_network_are_pytorchs():
    results = []
    for library, tensor, module in ((mg, mg.tensor, nn), (torch, torch.tensor, torch.nn)):
        net = module.Sequential(module.Linear(3, 4), module.Tanh(), module.Linear(4, 2))
        with library.no_grad():
            for i, p in enumerate(net.parameters()):
                p.copy_(library.arange(float(p.numel())).reshape(p.shape) / 10 - i / 5)
        seen = []
        for part in (net, *net):
            part.register_full_backward_hook(
                lambda m, before, after, seen=seen: seen.append((type(m).__name__, *before, *after))
            )
        x = tensor([[1.0, -2.0, 0.5]], requires_grad=True)
        (net(x) ** 2).sum().backward()
        results.append((seen, x.grad))
    (mine, gradient), (theirs, other) = results
    assert (
        [row[0] for row in mine] == [row[0] for row in theirs] == ["Linear", "Tanh", "Linear", "Sequential"]
    )
    for row, expected in zip(mine, theirs, strict=True):
        for g, h in zip(row[1:], expected[1:], strict=True):
            np.testing.assert_allclose(g.numpy(), h.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient.numpy(), other.numpy(), rtol=1e-5)


def test_backward_hooks_of_second_order():
    layer, seen = nn.Tanh(), []
    layer.register_full_backward_hook(lambda m, before, after: (before[0] * 3,))
    layer.register_full_backward_hook(lambda m, before, after: seen.append(before[0]))
    x = mg.tensor([0.3, -0.7], mg.float64, requires_grad=True)
    (first,) = mg.autograd.grad(layer(x).sum(), x, create_graph=True)
    t = np.tanh([0.3, -0.7])
    np.testing.assert_allclose(first.detach().numpy(), 3 * (1 - t**2), rtol=1e-12)
    (second,) = mg.autograd.grad(first.sum(), x)
    np.testing.assert_allclose(second.numpy(), -6 * t * (1 - t**2), rtol=1e-12)
    assert seen[0].requires_grad


def test_a_named_tuple_of_outputs_stays_one():
    packed = nn.utils.rnn.pack_sequence([mg.randn(3, 2, requires_grad=True), mg.randn(1, 2)])
    layer, seen = nn.Identity(), []
    layer.register_full_backward_hook(lambda m, before, after: seen.append([None, *after].index(None, 1)))
    output = layer(packed)
    assert isinstance(output, nn.utils.rnn.PackedSequence)
    output.data.sum().backward()
    assert seen == [2]  # the data alone have a gradient


def test_backward_hooks_change_no_values_and_need_no_graph():
    layer, seen = nn.Linear(3, 2), []
    x = mg.randn(4, 3)
    expected = layer(x).tolist()
    layer.register_full_backward_hook(lambda *_: seen.append(1))
    with mg.no_grad():
        output = layer(x)
    assert output.tolist() == expected and not output.requires_grad
    layer(x).sum().backward()
    assert seen == [1]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda g: (g[0][:1],), r"grad_input of the shapes \[\(1, 3\)\], expected \[\(4, 3\)\]"),
        (lambda g: (*g, None), r"grad_input of the shapes \[\(4, 3\), None\]"),
    ],
)
def test_a_backward_hook_returns_what_fits(answer, message):
    layer = nn.Linear(3, 2)
    layer.register_full_backward_hook(lambda m, before, after: answer(before))
    with pytest.raises(RuntimeError, match="Linear: a backward hook returned a " + message):
        layer(mg.randn(4, 3, requires_grad=True)).sum().backward()


def test_backward_hooks_warn_of_an_output_they_cannot_watch():
    class Listed(nn.Module):
        def forward(self, x):
            return [x]

    layer = Listed()
    layer.register_full_backward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="a tensor or a tuple of tensors, got list") as warned:
        layer(mg.ones(2, requires_grad=True))
    assert warned[0].filename == __file__


def test_a_buffer_by_its_path():
    net = nn.Sequential(nn.BatchNorm1d(3))
    assert net.get_buffer("0.running_mean") is net[0].running_mean
    with pytest.raises(AttributeError, match="no buffer 'weight'"):
        net.get_buffer("0.weight")


@needs_torch
@pytest.mark.parametrize(
    ("shape", "groups"), [((5, 3, 4), 1), ((4, 5, 3, 2), 1), ((6, 2, 3, 3), 3), ((4, 1, 1, 3, 5), 2)]
)
def test_dirac(shape, groups):
    theirs = torch.nn.init.dirac_(torch.empty(shape), groups)
    np.testing.assert_array_equal(nn.init.dirac_(mg.empty(*shape), groups).numpy(), theirs.numpy())


def test_a_dirac_convolution_passes_its_input_on():
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
    nn.init.dirac_(layer.weight, groups=2)
    x = mg.randn(2, 4, 5, 7)
    np.testing.assert_allclose(layer(x).detach().numpy(), x.numpy(), rtol=1e-6)


def test_eye():
    np.testing.assert_array_equal(nn.init.eye_(mg.empty(3, 5)).numpy(), np.eye(3, 5))


@pytest.mark.parametrize(("sparsity", "zeros"), [(0.0, 0), (0.1, 2), (0.5, 6), (1.0, 11)])
def test_sparse(sparsity, zeros):
    values = nn.init.sparse_(mg.empty(11, 200), sparsity, std=0.5, generator=mg.Generator(1)).numpy()
    assert ((values == 0).sum(0) == zeros).all()
    rest = values[values != 0]
    if rest.size:
        # The deviation of a standard deviation from n samples is std / sqrt(2 n).
        assert abs(rest.std() - 0.5) < 5 * 0.5 / math.sqrt(2 * rest.size)
        assert abs(rest.mean()) < 5 * 0.5 / math.sqrt(rest.size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.init.eye_(mg.empty(3)), "eye_: expected two dimensions"),
        (lambda: nn.init.dirac_(mg.empty(3, 3)), "dirac_: expected 3 to 5 dimensions"),
        (lambda: nn.init.dirac_(mg.empty(3, 3, 3), 2), "dirac_: groups must divide the 3 output channels"),
        (lambda: nn.init.sparse_(mg.empty(3, 3, 3), 0.1), "sparse_: expected two dimensions"),
        (lambda: nn.init.sparse_(mg.empty(3, 3), 1.5), r"sparse_: sparsity must lie in \[0, 1\], got 1.5"),
    ],
)
def test_init_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@needs_torch
@pytest.mark.parametrize("name", ["linear", "conv1d", "conv3d", "conv_transpose2d", "selu", "leaky_relu"])
def test_gains(name):
    assert nn.init.calculate_gain(name) == torch.nn.init.calculate_gain(name)


@needs_torch
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"mask": True}])
@pytest.mark.parametrize("heads", [(6, 2, 3), (4, 4, 4), (5, 1, 1)])
def test_grouped_queries(heads, options):
    rng = np.random.default_rng(sum(heads))
    arrays = [rng.standard_normal((2, h, n, 3)) for h, n in zip(heads, (5, 7, 7), strict=True)]
    mask = rng.random((5, 7)) < 0.7
    mask[:, 0] = True
    results = []
    for tensor, attention in (
        (mg.tensor, F.scaled_dot_product_attention),
        (torch.tensor, torch.nn.functional.scaled_dot_product_attention),
    ):
        inputs = [tensor(a, requires_grad=True) for a in arrays]
        chosen = {"attn_mask": tensor(mask)} if "mask" in options else options
        out = attention(*inputs, enable_gqa=True, **chosen)
        (out * out).sum().backward()
        results.append([out.detach().numpy(), *(x.grad.numpy() for x in inputs)])
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11)


def test_grouped_queries_need_a_divisor():
    query, key = mg.randn(4, 5, 3), mg.randn(3, 7, 3)
    with pytest.raises(ValueError, match="heads of key and value must divide"):
        F.scaled_dot_product_attention(query, key, key, enable_gqa=True)
