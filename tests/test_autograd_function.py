"""autograd.Function: a gradient by hand is used, differentiated, and guarded as that of an op is."""

import gc
import weakref

import numpy as np
import pytest

import minigrad as mg


class Cube(mg.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * x**2


class Exp(mg.autograd.Function):
    """Saves its output."""

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class ScaledPair(mg.autograd.Function):
    """Two outputs, arguments that are no tensors, the newer form."""

    @staticmethod
    def forward(x, factors, y):
        return x * factors[0], y * factors[1]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factors = inputs[1]

    @staticmethod
    def backward(ctx, grad_x, grad_y):
        assert ctx.needs_input_grad == (True, False, True)
        return grad_x * ctx.factors[0], None, grad_y * ctx.factors[1]


@pytest.mark.parametrize(("function", "reference"), [(Cube, lambda x: x**3), (Exp, mg.exp)])
def test_gradients_of_both_orders(function, reference):
    values = np.random.default_rng(0).standard_normal((3, 4))
    found = []
    for f in (function.apply, reference):
        x = mg.tensor(values, requires_grad=True)
        (first,) = mg.autograd.grad((f(x) * x).sum(), x, create_graph=True)
        (second,) = mg.autograd.grad((first * first).sum(), x)
        found.append((first.detach().numpy(), second.numpy()))
    for ours, expected in zip(*found, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_several_outputs_and_arguments_that_are_no_tensors():
    x, y = mg.ones(2, requires_grad=True), mg.ones(3, requires_grad=True)
    a, b = ScaledPair.apply(x, (2.0, 5.0), y)
    (a.sum() + 2 * b.sum()).backward()
    assert (x.grad.tolist(), y.grad.tolist()) == ([2, 2], [10, 10, 10])
    x.grad = y.grad = None
    ScaledPair.apply(x, (2.0, 5.0), y)[0].sum().backward()  # zeros stand in for the other gradient
    assert (x.grad.tolist(), y.grad.tolist()) == ([2, 2], [0, 0, 0])


def test_nothing_is_recorded_where_no_gradient_is_asked_for():
    assert not Cube.apply(mg.ones(2)).requires_grad
    with mg.no_grad():
        assert not Cube.apply(mg.ones(2, requires_grad=True)).requires_grad
    assert Cube.apply(mg.ones(2, requires_grad=True)).grad_fn == "Cube"


def test_an_input_that_is_returned_is_another_tensor():
    class Identity(mg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, grad):
            return -grad

    x = mg.ones(2, requires_grad=True)
    Identity.apply(x).sum().backward()
    assert x.is_leaf and x.grad.tolist() == [-1, -1]


def test_marked_outputs():
    class Sorted(mg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            values, places = x.sort()
            rounded = values.round()
            ctx.mark_non_differentiable(places, rounded)
            ctx.save_for_backward(places)
            return values, places, rounded

        @staticmethod
        def backward(ctx, grad, _places, _rounded):
            (places,) = ctx.saved_tensors
            return mg.zeros_like(grad).scatter(0, places, grad)

    x = mg.tensor([3.0, 1.0, 2.0], requires_grad=True)
    values, places, rounded = Sorted.apply(x)
    assert (values.requires_grad, places.requires_grad, rounded.requires_grad) == (True, False, False)
    (values * mg.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert x.grad.tolist() == [100, 1, 10]


def test_a_write_to_what_was_saved_is_found():
    x = mg.ones(2, requires_grad=True) * 1
    y = Cube.apply(x)
    with mg.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="'Cube' needs was changed in place"):
        y.sum().backward()
    y = Cube.apply(mg.ones(2, requires_grad=True))
    y.sum().backward()
    with pytest.raises(RuntimeError, match="freed"):
        y.sum().backward()


def test_the_graph_holds_no_cycle():
    gc.disable()
    try:
        y = Exp.apply(mg.ones(2, requires_grad=True))
        reference = weakref.ref(y._node)
        del y
        assert reference() is None
    finally:
        gc.enable()


def test_wrong_functions_are_told():
    class Short(Cube):
        @staticmethod
        def backward(ctx, grad):
            return ()

    class Wide(Cube):
        @staticmethod
        def backward(ctx, grad):
            return grad.reshape(1, -1).repeat(2, 1)[:, :1].reshape(-1, 1).repeat(1, 3)

    class None_(mg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.numpy() if False else (x, 1)

    x = mg.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"Short.backward returned 0 gradients for 1 arguments"):
        Short.apply(x).sum().backward()
    with pytest.raises(RuntimeError, match="'argument 0' has shape"):
        Wide.apply(x).sum().backward()
    with pytest.raises(TypeError, match="forward must return tensors"):
        None_.apply(x)
    with pytest.raises(NotImplementedError, match="forward"):
        mg.autograd.Function.apply(x)
