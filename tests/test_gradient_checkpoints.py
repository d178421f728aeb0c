"""minigrad.utils.checkpoint: the same gradients, with less memory."""

import pytest

import minigrad as mg
from minigrad import nn
from minigrad.utils.checkpoint import checkpoint, checkpoint_sequential


def run(how):
    mg.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 4), nn.Dropout(0.2), nn.ReLU()
    )
    x = mg.rand(5, 4).requires_grad_()
    out = how(model, x)
    loss = (out * out).sum() + mg.rand(5, 4).sum()  # the random numbers that follow are the same, too
    loss.backward()
    return [loss.item(), mg.rand(1).item(), x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("segments", [1, 2, 4])
def test_gradients_are_the_same_bits(segments):
    wanted = run(lambda model, x: model(x))
    for how in (
        lambda model, x: checkpoint(model, x, use_reentrant=False),
        lambda model, x: checkpoint_sequential(model, segments, x, use_reentrant=True),
    ):
        for ours, plain in zip(run(how), wanted, strict=True):
            assert ours == plain if isinstance(plain, float) else mg.equal(ours, plain)


def test_inputs_without_a_gradient_several_outputs_and_other_arguments():
    layer = nn.Linear(3, 2)

    def function(x, factor, *, shift):
        y = layer(x)
        return y * factor + shift, x * 2, y.argmax(1)

    x = mg.rand(4, 3)
    out, doubled, _ = checkpoint(function, x, 3.0, shift=mg.ones(2), preserve_rng_state=True)
    assert out.requires_grad
    (out.sum() + doubled.sum()).backward()
    assert layer.bias.grad.tolist() == [12, 12]
    with mg.no_grad():
        assert not checkpoint(layer, x).requires_grad
    y = checkpoint(layer, x.requires_grad_()).sum()
    with pytest.raises(RuntimeError, match="gradient of the gradient"):
        mg.autograd.grad(y, x, create_graph=True)


def test_autocast_is_that_of_the_first_run():
    layer, seen = nn.Linear(3, 2), []

    def function(x):
        seen.append(layer(x).dtype)
        return layer(x)

    with mg.autocast("cpu", mg.float16):
        out = checkpoint(function, mg.rand(4, 3))
    out.float().sum().backward()
    assert seen == [mg.float16, mg.float16]
