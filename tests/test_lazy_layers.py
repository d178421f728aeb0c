"""Layers that take their sizes from the first input."""

import copy

import pytest

import minigrad as mg
from minigrad import nn

CASES = {
    "LazyLinear": (lambda m: m.LazyLinear(3), (4, 5)),
    "LazyLinear without bias": (lambda m: m.LazyLinear(3, bias=False), (2, 4, 5)),
    "LazyConv1d": (lambda m: m.LazyConv1d(6, 3, groups=2), (2, 4, 8)),
    "LazyConv2d": (lambda m: m.LazyConv2d(6, kernel_size=3, padding=1), (2, 4, 8, 8)),
    "LazyConvTranspose1d": (lambda m: m.LazyConvTranspose1d(6, 3), (2, 4, 8)),
    "LazyConvTranspose2d": (lambda m: m.LazyConvTranspose2d(6, 3, stride=2), (2, 4, 5, 5)),
    "LazyBatchNorm1d": (lambda m: m.LazyBatchNorm1d(momentum=None), (4, 5)),
    "LazyBatchNorm2d": (lambda m: m.LazyBatchNorm2d(affine=False), (4, 3, 5, 5)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_becomes_the_plain_layer(name):
    torch = pytest.importorskip("torch")
    make, shape = CASES[name]
    layer, theirs = make(nn), make(torch.nn)
    parameters = list(layer.parameters())
    optimizer = mg.optim.SGD(parameters, lr=0.1) if parameters else None
    copied = copy.deepcopy(layer.double())
    mg.manual_seed(0)
    x = mg.rand(shape, dtype=mg.float64)
    out = layer(x)
    theirs(torch.tensor(x.numpy(), dtype=torch.float32))
    assert type(layer).__name__ == type(theirs).__name__ == name.split()[0].replace("Lazy", "")
    ours = {key: value.shape for key, value in layer.state_dict().items()}
    assert ours == {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert out.dtype == mg.float64 and mg.equal(layer.eval()(x), layer(x))
    assert [id(parameter) for parameter in layer.parameters()] == [id(parameter) for parameter in parameters]
    if optimizer:
        before = parameters[0].clone()
        layer.train()(x).square().sum().backward()
        optimizer.step()
        assert "BatchNorm" in name or not mg.equal(parameters[0], before)
    assert copied(x).shape == out.shape


def test_starting_values_are_those_of_the_plain_layer():
    layer = nn.LazyLinear(50)
    layer(mg.rand(1, 400))
    assert 0.045 < layer.weight.abs().max() <= 0.05  # 1 / sqrt(400)
    assert repr(layer) == "Linear(in_features=400, out_features=50, bias=True)"


@pytest.mark.parametrize("name", CASES)
def test_a_state_settles_it(name):
    """Of a layer that has seen an input, or of one that has not."""
    make, shape = CASES[name]
    settled, layer, waiting = make(nn), make(nn), make(nn)
    x = mg.rand(*shape)
    settled(x)
    waiting.load_state_dict(layer.state_dict())
    assert type(waiting).__name__ == name.split()[0]
    layer.load_state_dict(settled.state_dict())
    assert repr(layer) == repr(settled) and mg.equal(layer.eval()(x), settled.eval()(x))
    inside = nn.Sequential(nn.ReLU(), nn.Sequential(waiting))
    inside.load_state_dict({f"1.0.{key}": value for key, value in settled.state_dict().items()})
    assert repr(waiting) == repr(settled)


def test_a_state_that_does_not_fit():
    with pytest.raises(RuntimeError, match=r"weight: the state has shape \(4, 2\), the module \(3, 2\)"):
        nn.LazyLinear(3).load_state_dict(nn.Linear(2, 4).state_dict())
    with pytest.raises(RuntimeError, match="weight: expected a Tensor, got float"):
        nn.LazyLinear(3, bias=False).load_state_dict({"weight": 1.0})
