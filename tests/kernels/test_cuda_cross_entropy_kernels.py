"""The CUDA kernels of cross-entropy and its gradient, against NumPy in float64."""

import itertools

import numpy as np
import pytest

from minigrad.kernels import sim
from minigrad.kernels.cuda import cross_entropy as kernels

RUNGS = ["naive", "warp", "vectorized", "registers"]
DTYPES = [np.float32, np.float64]
SHAPES = [(1, 1), (3, 31), (5, 32), (3, 33), (2, 1000), (2, 2049), (70, 5), (300, 3), (0, 4)]
IGNORED = -100


def both(rung):
    loss = "vectorized" if rung == "registers" else rung  # the loss walks a row once, and keeps none of it
    return getattr(kernels, f"cross_entropy_{loss}"), getattr(kernels, f"cross_entropy_grad_{rung}")


def problem(rows, columns, dtype, seed=0):
    """Logits, targets of which some are ignored, and the losses' gradient."""
    rng = np.random.default_rng(seed)
    target = np.where(np.arange(rows) % 5 == 3, IGNORED, rng.integers(0, columns, rows))
    return (
        (5 * rng.standard_normal((rows, columns))).astype(dtype),
        target,
        rng.normal(size=rows).astype(dtype),
    )


def expected(x, target, grad, weight=None, smoothing=0.0, ignored=IGNORED):
    """Loss, gradient, and the softmax, row by row."""
    loss, out, p = np.zeros(len(x)), np.zeros(x.shape), np.zeros(x.shape)
    for i, (row, t) in enumerate(zip(x.astype(np.float64), target, strict=True)):
        p[i] = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        if t != ignored:
            shares = (1 - smoothing) * (np.arange(len(row)) == t) + smoothing / len(row)
            shares = shares if weight is None else shares * weight
            nll = np.log(np.exp(row - row.max()).sum()) - (row - row.max())
            loss[i] = (shares * nll)[shares > 0].sum()
            out[i] = grad[i] * (p[i] * shares.sum() - shares)
    return loss, out, p


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient(run, rung, dtype, shape):
    x, target, grad = problem(*shape, dtype)
    loss, out, p = expected(x, target, grad)
    kernel, grad_kernel = both(rung)
    # x - m is rounded, which exp turns into a relative error; so does each addition of the sum.
    eps, spread = np.finfo(dtype).eps, np.ptp(x, axis=1)
    relative = (8 + 2 * spread + shape[1]) * eps
    found = run(kernel, shape[0], dtype, x, target, IGNORED)
    assert (np.abs(found - loss) <= relative + 2 * eps * np.abs(loss)).all()
    found = run(grad_kernel, shape, dtype, grad, x, target, IGNORED)
    bound = np.abs(grad)[:, None] * (relative[:, None] * p + 2 * eps)
    assert (np.abs(found - out) <= bound).all()


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("weighted", "smoothing"), [(True, 0.0), (False, 0.3), (True, 0.1), (True, 1.0)])
def test_weights_and_smoothing(run, rung, dtype, shape, weighted, smoothing):
    x, target, grad = problem(*shape, dtype)
    x += 500  # what all logits have in common costs no digits
    weight = np.random.default_rng(1).uniform(0, 2, shape[1]).astype(dtype) if weighted else None
    loss, out, p = expected(x, target, grad, weight, smoothing)
    kernel, grad_kernel = both(rung)
    eps, spread = np.finfo(dtype).eps, np.ptp(x, axis=1)
    relative = (8 + 2 * spread + shape[1]) * eps
    found = run(kernel, shape[0], dtype, x, target, IGNORED, weight, smoothing)
    assert (np.abs(found - loss) <= 2 * relative * (2 + spread + np.abs(loss))).all()
    found = run(grad_kernel, shape, dtype, grad, x, target, IGNORED, weight, smoothing)
    assert (np.abs(found - out) <= 2 * np.abs(grad)[:, None] * (relative[:, None] * p + 4 * eps)).all()


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("columns", [5, 1100])
def test_special_values_where_it_is_smoothed(run, rung, columns):
    x = np.zeros((6, columns), np.float32)
    x[0, 2], x[1, 3], x[2] = np.nan, np.inf, -np.inf  # no softmax
    x[3, 1] = x[4, 0] = -np.inf  # a class that cannot be
    x[5, 2] = np.nan  # ignored
    target = np.array([0, 0, 0, 0, 0, IGNORED])
    weight = np.linspace(1, 2, columns).astype(np.float32)
    kernel, grad_kernel = both(rung)
    loss = run(kernel, 6, "f4", x, target, IGNORED, weight, 0.1, fill=77)
    out = run(grad_kernel, x.shape, "f4", np.ones(6, np.float32), x, target, IGNORED, weight, 0.1, fill=77)
    assert np.isnan(loss[:3]).all() and np.isnan(out[:3]).all()
    assert (loss[3:5] == np.inf).all() and np.isfinite(out[3:5]).all()
    assert loss[5] == 0 and not out[5].any()


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("columns", [5, 1100])
def test_special_values(run, rung, columns):
    x = np.zeros((7, columns), np.float32)
    x[0, 2], x[1, 3], x[2] = np.nan, np.inf, -np.inf  # no softmax
    x[3, 1:] = -np.inf  # all of the probability at the target
    x[4, 0] = -np.inf  # none at the target
    x[5, 2] = np.nan  # ignored
    x[6] = np.linspace(1e4, 0, columns)  # no overflow
    target = np.array([0, 0, 0, 0, 0, IGNORED, 0])
    kernel, grad_kernel = both(rung)
    loss = run(kernel, 7, "f4", x, target, IGNORED, fill=77)
    out = run(grad_kernel, x.shape, "f4", np.ones(7, np.float32), x, target, IGNORED, fill=77)
    assert np.isnan(loss[:3]).all() and np.isnan(out[:3]).all()
    assert loss[3] == 0 and not out[3].any()
    assert loss[4] == np.inf and out[4, 0] == -1 and np.isfinite(out[4]).all()
    assert loss[5] == 0 and not out[5].any()
    assert np.isfinite(loss[6]) and np.isfinite(out[6]).all()


def test_an_ignored_class_may_be_one_that_there_is(run):
    x, target = np.ones((4, 3), np.float32), np.array([0, 2, 1, 2])
    for rung in RUNGS:
        loss = run(both(rung)[0], 4, "f4", x, target, 2)
        np.testing.assert_allclose(loss, [np.log(3), 0, np.log(3), 0], rtol=1e-6)


def test_what_does_not_fit_is_refused():
    x, target = np.ones((3, 4), np.float32), np.zeros(3, np.int64)
    with pytest.raises(ValueError, match=r"x \(rows, columns\) = \(3, 4\).*got \(3,\) and \(4,\)"):
        kernels.cross_entropy_warp(np.empty(4, np.float32), x, target, IGNORED)
    with pytest.raises(ValueError, match=r"x's shape \(3, 4\), got \(4, 3\)"):
        kernels.cross_entropy_grad_registers(np.empty((4, 3), np.float32), x[:, 0].copy(), x, target, IGNORED)
    with pytest.raises(ValueError, match=r"weights of 4 classes cannot have the shape \(3,\)"):
        kernels.cross_entropy_naive(np.empty(3, np.float32), x, target, IGNORED, x[:, 0].copy())
    with pytest.raises(TypeError, match="expects an array of int64, got one of int32"):
        kernels.cross_entropy_naive(np.empty(3, np.float32), x, target.astype(np.int32), IGNORED)


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize("columns", [40, 1300])
def test_every_thread_order_gives_the_same_bits_and_every_access_is_right(columns):
    x, target, grad = problem(7, columns, np.float32)
    weight = np.linspace(1, 2, columns).astype(np.float32)

    def results():
        found = []
        for rung, options in itertools.product(RUNGS, ((), (weight, 0.1))):
            kernel, grad_kernel = both(rung)
            found += [np.empty(7, np.float32), np.empty_like(x)]
            kernel(found[-2], x, target, IGNORED, *options)
            grad_kernel(found[-1], grad, x, target, IGNORED, *options)
        return b"".join(out.tobytes() for out in found)

    first = results()
    for seed, workers in itertools.product((1, 2, 12345), (1, 3)):
        with sim.seed(seed), sim.num_threads(workers):
            assert results() == first
    with sim.checks():
        assert results() == first
