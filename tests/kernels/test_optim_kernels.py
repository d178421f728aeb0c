"""Optimizer kernels against the formulas in NumPy, float64, over several steps."""

import numpy as np
import pytest

SIZES = [0, 1, 17, 70_001]
STEPS = 4


@pytest.fixture
def optim(kernel_module):
    return kernel_module("optim")


def gradients(n, dtype):
    rng = np.random.default_rng(0)
    return rng.standard_normal(n).astype(dtype), rng.standard_normal((STEPS, n)).astype(dtype)


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


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("weight_decay", "decoupled"), [(0.0, False), (0.1, False), (0.1, True)])
@pytest.mark.parametrize("n", SIZES)
def test_adam(optim, dtype, n, weight_decay, decoupled, threads):
    param, grads = gradients(n, dtype)
    options = (0.01, 0.9, 0.99, 1e-8, weight_decay, decoupled)
    expected, expected_m, expected_v = adam_by_numpy(param, grads, *options)
    exp_avg, exp_avg_sq = np.zeros_like(param), np.zeros_like(param)
    for step, grad in enumerate(grads, 1):
        optim.adam_step(param, grad, exp_avg, exp_avg_sq, *options, step, threads)
    # About ten roundings in each step, of numbers below 5; the step is lr times a ratio that the bias
    # corrections keep near 1, unless gradients cancel in exp_avg.
    atol = 10 * STEPS * 5 * np.finfo(dtype).eps
    np.testing.assert_allclose(param, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(exp_avg, np.broadcast_to(expected_m, n), rtol=0, atol=atol)
    np.testing.assert_allclose(exp_avg_sq, np.broadcast_to(expected_v, n), rtol=0, atol=atol)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"), [(0, 0, False), (0.9, 0, False), (0.9, 0.3, False), (0.9, 0, True)]
)
@pytest.mark.parametrize("n", SIZES)
def test_sgd(optim, dtype, n, momentum, dampening, nesterov, weight_decay, threads):
    param, grads = gradients(n, dtype)
    expected = sgd_by_numpy(param, grads, 0.1, momentum, dampening, weight_decay, nesterov)
    # What the buffer holds before the first step does not matter.
    velocity = np.full_like(param, np.nan) if momentum else None
    for step, grad in enumerate(grads):
        first = step == 0
        optim.sgd_step(
            param, grad, velocity, 0.1, momentum, dampening, weight_decay, nesterov, first, threads
        )
    np.testing.assert_allclose(param, expected, rtol=0, atol=10 * STEPS * 5 * np.finfo(dtype).eps)


def test_zero_gradient_divides_by_eps_alone(optim, dtype):
    param, zero = np.ones(3, dtype), np.zeros(3, dtype)
    exp_avg, exp_avg_sq = zero.copy(), zero.copy()
    optim.adam_step(param, zero, exp_avg, exp_avg_sq, 0.1, 0.9, 0.999, 1e-8, 0.0, False, 1, 1)
    np.testing.assert_array_equal(param, 1)


def test_infinite_parameter_without_decay_stays_infinite(optim, dtype):
    param, grad = np.full(3, np.inf, dtype), np.ones(3, dtype)
    optim.adam_step(
        param, grad, np.zeros_like(grad), np.zeros_like(grad), 0.1, 0.9, 0.999, 1e-8, 0, False, 1, 1
    )
    optim.sgd_step(param, grad, None, 0.1, 0, 0, 0, False, True, 1)
    np.testing.assert_array_equal(param, np.inf)


def test_wrong_arguments_change_nothing(optim):
    param, grad = np.ones(8, np.float32), np.ones(8, np.float32)
    state, options = np.zeros(8, np.float32), (0.1, 0.9, 0.999, 1e-8, 0.0, False)
    with pytest.raises(ValueError, match="one shape"):
        optim.adam_step(param, grad, state, state[:4].copy(), *options, 1, 1)
    with pytest.raises(TypeError, match="dtype"):
        optim.adam_step(param, grad.astype(float), state, state, *options, 1, 1)
    with pytest.raises(ValueError, match="from 1"):
        optim.adam_step(param, grad, state, state, *options, 0, 1)
    with pytest.raises(TypeError, match="float32 or float64"):
        optim.sgd_step(param.astype(int), grad, None, 0.1, 0, 0, 0, False, True, 1)
    np.testing.assert_array_equal(param, 1)
    np.testing.assert_array_equal(state, 0)
