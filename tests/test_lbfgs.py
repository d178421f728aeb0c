"""L-BFGS: steps of PyTorch's, convergence with a line search, its state."""

import numpy as np
import pytest

import minigrad as mg
from minigrad.optim import LBFGS
from minigrad.optim.lbfgs import Point, strong_wolfe


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def quadratic(x):
    return ((x - 1) ** 2 * (0.5 + (x * 0 + 1).cumsum(0))).sum() / 4


def optimize(lib, function, steps, **options):
    """The losses of all evaluations, and the end."""
    x = lib.tensor(np.linspace(-1, 0.5, 5), requires_grad=True)
    optimizer = lib.optim.LBFGS([x], **options)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = function(x)
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return losses, x.detach().numpy()


@pytest.mark.parametrize("history_size", [1, 3, 100])
@pytest.mark.parametrize("max_iter", [1, 4, 20])
def test_plain_steps_are_pytorch_s(history_size, max_iter):
    torch = pytest.importorskip("torch")
    options = {"lr": 0.5, "history_size": history_size, "max_iter": max_iter}
    ours, theirs = (optimize(lib, quadratic, 3, **options) for lib in (mg, torch))
    assert len(ours[0]) == len(theirs[0])
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("function", [quadratic, rosenbrock])
@pytest.mark.parametrize("lr", [0.01, 0.3, 1.0, 5.0, 100.0])
def test_the_line_search_tries_the_steps_that_pytorch_s_tries(function, lr):
    torch = pytest.importorskip("torch")
    options = {"lr": lr, "max_iter": 8, "line_search_fn": "strong_wolfe"}
    ours, theirs = (optimize(lib, function, 2, **options) for lib in (mg, torch))
    assert len(ours[0]) == len(theirs[0])
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-12)


def test_the_line_search_finds_the_bottom_of_a_curved_valley():
    losses, end = optimize(mg, rosenbrock, 20, line_search_fn="strong_wolfe")
    np.testing.assert_allclose(end, 1, atol=1e-5)
    assert losses[-1] < 1e-9 < losses[0]


def test_strong_wolfe_conditions_hold():
    rng = np.random.default_rng(2)
    for _ in range(50):
        a, b, first = rng.uniform(0.1, 10), rng.uniform(0.1, 5), rng.uniform(0.01, 20)

        def at(t, a=a, b=b):  # falls, and has ripples
            loss = -t * a + t**2 + 0.3 * np.sin(b * t)
            return Point(t, loss, -a + 2 * t + 0.3 * b * np.cos(b * t), None)

        start = at(0.0)
        if start.slope >= 0:
            continue
        found = strong_wolfe(at, first, start, 1e-12)
        assert found.loss <= start.loss + 1e-4 * found.length * start.slope
        assert abs(found.slope) <= 0.9 * abs(start.slope)
        assert at(found.length) == found


def test_the_state_goes_on_where_it_was_saved():
    def run(breaks):
        x = mg.tensor(np.linspace(-1, 0.5, 5), requires_grad=True)
        optimizer = LBFGS([x], lr=0.5, max_iter=3)
        for step in range(4):
            if step == 2 and breaks:
                state = optimizer.state_dict()
                x = x.detach().clone().requires_grad_()
                optimizer = LBFGS([x], lr=1.0)
                optimizer.load_state_dict(state)

            def closure(x=x, optimizer=optimizer):
                optimizer.zero_grad()
                loss = quadratic(x)
                loss.backward()
                return loss

            optimizer.step(closure)
        return x.detach().numpy()

    np.testing.assert_array_equal(run(False), run(True))


def test_wrong_use_is_refused():
    x, y = mg.ones(1, requires_grad=True), mg.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match="one group only"):
        LBFGS([{"params": [x]}, {"params": [y]}])
    with pytest.raises(ValueError, match="strong_wolfe"):
        LBFGS([x], line_search_fn="armijo")
    with pytest.raises(TypeError, match="closure"):
        LBFGS([x]).step()
    x.grad, y.grad = mg.ones(2), mg.ones(0)  # as many elements as there should be
    with pytest.raises(ValueError, match=r"gradient \(shape \(2,\), on cpu\) does not fit its parameter"):
        LBFGS([x, y]).step(lambda: mg.zeros(1))
