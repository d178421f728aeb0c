"""Computed parameters: the two norms and their older forms, compared with PyTorch; and one's own."""

import copy
import pickle

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn
from minigrad.nn.utils import parametrizations, parametrize

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="needs PyTorch")

LAYERS = {
    "linear": (lambda m: m.Linear(4, 3), (5, 4)),
    "conv": (lambda m: m.Conv2d(2, 3, 3), (2, 2, 5, 6)),
    "transposed": (lambda m: m.ConvTranspose2d(2, 3, 3), (2, 2, 4, 3)),
}
NORMS = {
    "weight_norm": lambda u, layer: u.parametrizations.weight_norm(layer),
    "weight_norm, dim 1": lambda u, layer: u.parametrizations.weight_norm(layer, dim=1),
    "weight_norm, no dim": lambda u, layer: u.parametrizations.weight_norm(layer, dim=None),
    "weight_norm of the bias": lambda u, layer: u.parametrizations.weight_norm(layer, "bias"),
    "spectral_norm": lambda u, layer: u.parametrizations.spectral_norm(layer),
    "spectral_norm, dim -1": lambda u, layer: u.parametrizations.spectral_norm(layer, dim=-1, eps=1e-6),
    "spectral_norm of the bias": lambda u, layer: u.parametrizations.spectral_norm(layer, "bias", dim=0),
    "both": lambda u, layer: u.parametrizations.spectral_norm(u.parametrizations.weight_norm(layer, "bias")),
    "older weight_norm": lambda u, layer: u.weight_norm(layer),
    "older weight_norm, dim 1": lambda u, layer: u.weight_norm(layer, dim=1),
    "older weight_norm, no dim": lambda u, layer: u.weight_norm(layer, dim=None),
    "older spectral_norm": lambda u, layer: u.spectral_norm(layer, n_power_iterations=2),
    "older spectral_norm, dim 1": lambda u, layer: u.spectral_norm(layer, dim=1),
}


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_same(mine, theirs):
    np.testing.assert_allclose(mine.detach().numpy(), theirs.detach().numpy(), rtol=1e-10, atol=1e-12)


def train(library, layer, optimizer, shape):
    """Two steps, an evaluation between them; the outputs."""
    outputs = []
    step = optimizer.SGD(layer.parameters(), lr=0.1)
    for seed in range(2):
        x = library.tensor(random(shape, seed))
        output = layer(x) - layer(x * 2.0)  # as discriminators do: two calls before one backward()
        (output**2).mean().backward()
        step.step()
        outputs += [output, layer.eval()(x), layer.weight]
        layer.train()
    return outputs


@needs_torch
@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", LAYERS)
def test_training_takes_the_same_path(kind, norm):
    make, shape = LAYERS[kind]
    mine = NORMS[norm](nn.utils, make(nn).double())
    theirs = NORMS[norm](torch.nn.utils, make(torch.nn).double())
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    state = {key: random(value.shape, i) for i, (key, value) in enumerate(theirs.state_dict().items())}
    mine.load_state_dict({key: mg.tensor(value) for key, value in state.items()})
    theirs.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    for one, other in zip(
        train(mg, mine, mg.optim, shape), train(torch, theirs, torch.optim, shape), strict=True
    ):
        assert_same(one, other)
    for key, value in theirs.state_dict().items():
        assert_same(mine.state_dict()[key], value)


def test_a_weight_keeps_its_value_under_weight_norm():
    for weight_norm in (parametrizations.weight_norm, nn.utils.weight_norm):
        layer = nn.Conv1d(3, 5, 2)
        before = layer.weight.detach().clone()
        weight_norm(layer)
        np.testing.assert_allclose(layer.weight.detach().numpy(), before.numpy(), rtol=1e-6)


def test_spectral_norm_finds_the_largest_singular_value():
    mg.manual_seed(3)
    layer = nn.Linear(20, 30, dtype=mg.float64)
    norm = np.linalg.norm(layer.weight.detach().numpy(), 2)
    parametrizations.spectral_norm(layer, n_power_iterations=300)
    weight = layer.weight.detach().numpy()
    np.testing.assert_allclose(np.linalg.norm(weight, 2), 1.0, rtol=1e-3)
    np.testing.assert_allclose(
        weight * norm, layer.parametrizations.weight.original.detach().numpy(), rtol=1e-3
    )
    layer.eval()
    assert layer.weight.tolist() == layer.weight.tolist()  # no step of the power method


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_the_older_forms_are_removed(norm):
    layer = nn.Linear(4, 3)
    getattr(nn.utils, norm)(layer)
    with pytest.raises(RuntimeError, match=norm + ": Linear.weight has one already"):
        getattr(nn.utils, norm)(layer)
    x = mg.randn(2, 4)
    expected = layer(x).tolist()
    layer.eval()
    expected = layer(x).tolist()
    assert getattr(nn.utils, "remove_" + norm)(layer) is layer
    np.testing.assert_allclose(layer(x).tolist(), expected, rtol=1e-6)
    assert sorted(layer.state_dict()) == ["bias", "weight"] and isinstance(layer.weight, nn.Parameter)
    with pytest.raises(ValueError, match=f"remove_{norm}: Linear.weight has none"):
        getattr(nn.utils, "remove_" + norm)(layer)
    with pytest.raises(ValueError, match=norm + ": Linear has no parameter 'wieght'"):
        getattr(nn.utils, norm)(layer, "wieght")


class Symmetric(nn.Module):
    def forward(self, x):
        return mg.triu(x) + mg.triu(x, 1).T

    def right_inverse(self, x):
        return mg.triu(x)


class Doubled(nn.Module):
    def forward(self, x):
        return x * 2.0


def test_a_parametrization_of_ones_own():
    layer = nn.Linear(3, 3)
    weight = layer.weight
    assert parametrize.register_parametrization(layer, "weight", Symmetric()) is layer
    assert type(layer).__name__ == "ParametrizedLinear" and isinstance(layer, nn.Linear)
    assert parametrize.is_parametrized(layer) and parametrize.is_parametrized(layer, "weight")
    assert not parametrize.is_parametrized(layer, "bias") and not parametrize.is_parametrized(nn.Linear(1, 1))
    assert [name for name, _ in layer.named_parameters()] == ["bias", "parametrizations.weight.original"]
    assert (
        layer.parametrizations.weight.original is weight
    )  # so that an optimizer that was made before has it
    assert layer.weight.tolist() == layer.weight.T.tolist()
    layer(mg.randn(2, 3)).sum().backward()
    assert weight.grad.shape == (3, 3) and weight.grad[2, 0].item() == 0

    wanted = mg.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]])
    layer.weight = wanted
    assert layer.weight.tolist() == wanted.tolist() and weight.tolist() == mg.triu(wanted).tolist()
    parametrize.register_parametrization(layer, "weight", Doubled())
    assert layer.weight.tolist() == (wanted * 2).tolist()
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear and layer.weight is weight and weight.tolist() == (wanted * 2).tolist()
    assert [name for name, _ in layer.named_parameters()] == ["bias", "weight"]


def test_the_original_can_be_had_back():
    layer = nn.Linear(3, 3)
    weight, before = layer.weight, layer.weight.tolist()
    parametrize.register_parametrization(layer, "weight", Doubled())
    parametrizations.weight_norm(layer, "bias")
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert layer.weight is weight and weight.tolist() == before
    with pytest.raises(ValueError, match="needs a single original tensor; 'bias' has 2"):
        parametrize.remove_parametrizations(layer, "bias", leave_parametrized=False)
    parametrize.remove_parametrizations(layer, "bias")
    assert type(layer) is nn.Linear and isinstance(layer.bias, nn.Parameter)
    with pytest.raises(ValueError, match="Linear computes no 'bias'"):
        parametrize.remove_parametrizations(layer, "bias")


def test_a_buffer_can_be_computed():
    layer = nn.BatchNorm1d(3)
    parametrize.register_parametrization(layer, "running_var", Doubled())
    assert layer.running_var.tolist() == [2.0] * 3
    assert "parametrizations.running_var.original" in layer.state_dict()
    parametrize.remove_parametrizations(layer, "running_var")
    assert dict(layer.named_buffers())["running_var"].tolist() == [2.0] * 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_computed_layers_are_copied(copied):
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 2)), parametrizations.spectral_norm(nn.Linear(2, 2))
    )
    net.eval()
    x = mg.randn(4, 3)
    twin = copied(net)
    assert twin(x).tolist() == net(x).tolist() and type(twin[0]) is type(net[0])
    parametrize.remove_parametrizations(twin[0], "weight")
    assert parametrize.is_parametrized(net[0], "weight")
    with mg.no_grad():
        net[0].parametrizations.weight.original0.zero_()
    assert twin(x).tolist() != net(x).tolist()


def test_parametrizations_refuse_what_does_not_fit():
    class Flat(nn.Module):
        def forward(self, x):
            return x.flatten()

    layer = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"weight of shape \(3, 2\) .* would become one of \(6,\)"):
        parametrize.register_parametrization(layer, "weight", Flat())
    assert type(layer) is nn.Linear and list(layer.state_dict()) == ["weight", "bias"]
    parametrize.register_parametrization(layer, "weight", Flat(), unsafe=True)
    assert layer.weight.shape == (6,)
    with pytest.raises(ValueError, match="has no tensor 'nothing'"):
        parametrize.register_parametrization(layer, "nothing", Doubled())
    for options, error in (({"dim": 2}, IndexError), ({"n_power_iterations": 0}, ValueError)):
        with pytest.raises(error, match="spectral_norm"):
            parametrizations.spectral_norm(nn.Linear(2, 3), **options)
    with pytest.raises(IndexError, match="weight_norm: dim 5"):
        parametrizations.weight_norm(nn.Linear(2, 3), dim=5)
