"""Optimizer kernels against the formulas in NumPy, float64, over several steps."""

import numpy as np
import pytest
from in_one_test import in_one_test

# Of the parameters of one call.
SIZES = [(0,), (1,), (17, 0, 3), (70_001,), (33, 40_000, 1, 30_000, 15)]
STEPS = 4


@pytest.fixture
def optim(kernel_module):
    return kernel_module("optim")


def gradients(n, dtype):
    rng = np.random.default_rng(0)
    return rng.standard_normal(n).astype(dtype), rng.standard_normal((STEPS, n)).astype(dtype)


def pieces(array, sizes):
    """``array`` cut into contiguous arrays of these sizes, which do not lie together."""
    return [piece.copy() for piece in np.split(array, np.cumsum(sizes)[:-1])]


def adam_by_numpy(param, grads, lr, beta1, beta2, eps, weight_decay, decoupled):
    p, m, v = param.astype(np.float64), 0.0, 0.0
    for t, g in enumerate(grads.astype(np.float64), 1):
        if decoupled:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr / (1 - beta1**t) * m / (np.sqrt(v) / np.sqrt(1 - beta2**t) + eps)
    return p, m, v


def sgd_by_numpy(param, grads, lr, momentum, dampening, weight_decay, nesterov):
    p, velocity = param.astype(np.float64), None
    for g in grads.astype(np.float64):
        g = g + weight_decay * p
        if momentum:
            velocity = g if velocity is None else momentum * velocity + (1 - dampening) * g
            g = g + momentum * velocity if nesterov else velocity
        p = p - lr * g
    return p


@in_one_test("threads", [1, 2, 3])
@pytest.mark.parametrize(("weight_decay", "decoupled"), [(0.0, False), (0.1, False), (0.1, True)])
@pytest.mark.parametrize("sizes", SIZES)
def test_adam(optim, dtype, sizes, weight_decay, decoupled, threads):
    n = sum(sizes)
    param, grads = gradients(n, dtype)
    options = (0.01, 0.9, 0.99, 1e-8, weight_decay, decoupled)
    expected, expected_m, expected_v = adam_by_numpy(param, grads, *options)
    params, exp_avgs, exp_avg_sqs = (
        pieces(a, sizes) for a in (param, np.zeros_like(param), np.zeros_like(param))
    )
    for step, grad in enumerate(grads, 1):
        steps = [step] * len(sizes)
        optim.adam_step(params, pieces(grad, sizes), exp_avgs, exp_avg_sqs, steps, *options, threads)
    # About ten roundings in each step, of numbers below 5; the step is lr times a ratio that the bias
    # corrections keep near 1, unless gradients cancel in exp_avg.
    atol = 10 * STEPS * 5 * np.finfo(dtype).eps
    np.testing.assert_allclose(np.concatenate(params), expected, rtol=0, atol=atol)
    np.testing.assert_allclose(np.concatenate(exp_avgs), np.broadcast_to(expected_m, n), rtol=0, atol=atol)
    np.testing.assert_allclose(np.concatenate(exp_avg_sqs), np.broadcast_to(expected_v, n), rtol=0, atol=atol)


def test_each_parameter_has_a_step_of_its_own(optim, dtype):
    param, grads = gradients(40, dtype)
    options = (0.01, 0.9, 0.99, 1e-8, 0.1, True)
    alone, together = (
        [pieces(a, (20, 20)) for a in (param, np.full_like(param, 0.5), np.full_like(param, 0.25))]
        for _ in range(2)
    )
    grad, steps = pieces(grads[0], (20, 20)), [3, 70]
    optim.adam_step(together[0], grad, *together[1:], steps, *options, 1)
    for i in (0, 1):
        optim.adam_step([alone[0][i]], [grad[i]], [alone[1][i]], [alone[2][i]], [steps[i]], *options, 1)
    np.testing.assert_array_equal(np.concatenate(together[0]), np.concatenate(alone[0]))
    assert not np.array_equal(*alone[0])


@in_one_test("threads", [1, 2, 3])
@in_one_test("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"), [(0, 0, False), (0.9, 0, False), (0.9, 0.3, False), (0.9, 0, True)]
)
@pytest.mark.parametrize("sizes", SIZES)
def test_sgd(optim, dtype, sizes, momentum, dampening, nesterov, weight_decay, threads):
    param, grads = gradients(sum(sizes), dtype)
    expected = sgd_by_numpy(param, grads, 0.1, momentum, dampening, weight_decay, nesterov)
    # What the buffer holds before the first step does not matter.
    params, velocities = pieces(param, sizes), pieces(np.full_like(param, np.nan), sizes)
    velocities = velocities if momentum else [None] * len(sizes)
    for step, grad in enumerate(grads):
        first = [step == 0] * len(sizes)
        optim.sgd_step(
            params, pieces(grad, sizes), velocities, first, 0.1, momentum, dampening, weight_decay, nesterov,
            threads,
        )  # fmt: skip
    atol = 10 * STEPS * 5 * np.finfo(dtype).eps
    np.testing.assert_allclose(np.concatenate(params), expected, rtol=0, atol=atol)


def test_any_number_of_threads_gives_the_same_bits(optim, dtype):
    sizes = (33, 40_000, 1, 30_001, 15)
    param, grads = gradients(sum(sizes), dtype)

    def results(threads):
        params, m, v = (pieces(a, sizes) for a in (param, np.zeros_like(param), np.zeros_like(param)))
        steps = [1] * len(sizes)
        optim.adam_step(
            params, pieces(grads[0], sizes), m, v, steps, 0.1, 0.9, 0.99, 1e-8, 0.1, False, threads
        )
        optim.sgd_step(params, pieces(grads[1], sizes), m, [False] * 5, 0.1, 0.9, 0, 0.1, True, threads)
        return [array.tobytes() for array in (*params, *m, *v)]

    assert results(1) == results(2) == results(3)


@in_one_test("threads", [1, 2, 3])
@pytest.mark.parametrize("sizes", SIZES)
def test_norm_and_scale(optim, dtype, sizes, threads):
    arrays = pieces(gradients(sum(sizes), dtype)[0], sizes)
    wide = np.concatenate(arrays).astype(np.float64)
    # A sum of n squares in double has at most n roundings; the root halves them.
    n, eps = sum(sizes), np.finfo(np.float64).eps
    found = optim.norm(arrays, threads)
    assert abs(found - np.sqrt((wide * wide).sum())) <= (2 + n) * eps * found
    assert found == optim.norm(arrays, threads)
    optim.scale(arrays, 0.3, threads)
    np.testing.assert_array_equal(np.concatenate(arrays), wide.astype(dtype) * dtype(0.3))


def test_the_norm_of_numbers_whose_squares_are_too_large(optim):
    assert optim.norm([np.full(4, 1e30, np.float32)], 1) == pytest.approx(2e30)
    assert (
        np.isnan(optim.norm([np.array([1.0, np.nan])], 1)) and optim.norm([np.array([np.inf])], 1) == np.inf
    )


def test_zero_gradient_divides_by_eps_alone(optim, dtype):
    param, zero = np.ones(3, dtype), np.zeros(3, dtype)
    exp_avg, exp_avg_sq = zero.copy(), zero.copy()
    optim.adam_step([param], [zero], [exp_avg], [exp_avg_sq], [1], 0.1, 0.9, 0.999, 1e-8, 0.0, False, 1)
    np.testing.assert_array_equal(param, 1)


def test_infinite_parameter_without_decay_stays_infinite(optim, dtype):
    param, grad = np.full(3, np.inf, dtype), np.ones(3, dtype)
    states = [np.zeros_like(grad)], [np.zeros_like(grad)]
    optim.adam_step([param], [grad], *states, [1], 0.1, 0.9, 0.999, 1e-8, 0, False, 1)
    optim.sgd_step([param], [grad], [None], [True], 0.1, 0, 0, 0, False, 1)
    np.testing.assert_array_equal(param, np.inf)


def test_what_fits(optim):
    param, half = np.ones((4, 3), np.float32), np.ones((4, 3), np.float16)
    assert optim.fits([param, param[:2]], [param, param[:2]], [None, None])
    assert not optim.fits([param], [param.astype(float)]) and not optim.fits([half], [half])
    assert not optim.fits([param.T], [param.T.copy()]) and not optim.fits([param], [param[:2]])
    assert not optim.fits([param, param.astype(float)])


def test_wrong_arguments_change_nothing(optim):
    param, grad = np.ones(8, np.float32), np.ones(8, np.float32)
    state, options = np.zeros(8, np.float32), (0.1, 0.9, 0.999, 1e-8, 0.0, False)
    with pytest.raises(ValueError, match="one shape"):
        optim.adam_step([param], [grad], [state], [state[:4].copy()], [1], *options, 1)
    with pytest.raises(TypeError, match="dtype"):
        optim.adam_step([param], [grad.astype(float)], [state], [state], [1], *options, 1)
    with pytest.raises(ValueError, match="from 1"):
        optim.adam_step([param], [grad], [state], [state], [0], *options, 1)
    with pytest.raises(ValueError, match="each of 1 parameters, got 2"):
        optim.adam_step([param], [grad, grad], [state], [state], [1], *options, 1)
    with pytest.raises(TypeError, match="float32 or float64"):
        optim.sgd_step([param.astype(int)], [grad], [None], [True], 0.1, 0, 0, 0, False, 1)
    np.testing.assert_array_equal(param, 1)
    np.testing.assert_array_equal(state, 0)
