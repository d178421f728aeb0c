"""Softmax kernels against NumPy in float64."""

import numpy as np
import pytest
from in_one_test import in_one_test

SHAPES = [(1, 1), (3, 1), (5, 10), (4, 16), (35, 32), (7, 33), (2, 1000), (300, 257), (0, 5), (4, 0)]

# (outer, n, inner): the softmax is over n.
BLOCKS = [(1, 1, 2), (2, 5, 3), (3, 7, 16), (1, 40, 1000), (5, 3, 513), (1, 600, 70), (0, 3, 2), (2, 0, 3)]


@pytest.fixture
def softmax(kernel_module):
    return kernel_module("softmax")


def log_softmax_by_numpy(x):
    x = x.astype(np.float64)
    shifted = x - x.max(axis=1, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, initial=0.0 if x.size else 1.0))


def poisoned_like(x):
    return np.full_like(x, 77)


def rows(shape, dtype, scale=5.0):
    return (np.random.default_rng(0).standard_normal(shape) * scale).astype(dtype)


@in_one_test("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_and_log_softmax(softmax, dtype, shape, threads):
    x = rows(shape, dtype)
    logs = log_softmax_by_numpy(x)
    out, log_out = poisoned_like(x), poisoned_like(x)
    softmax.softmax(out, x, 1, threads)
    softmax.log_softmax(log_out, x, -1, threads)
    eps = np.finfo(dtype).eps
    # x - max is rounded, which exp turns into a relative error; so does each addition of the sum.
    spread = np.ptp(x, axis=1, keepdims=True) if shape[1] else 0
    relative = (4 + spread + 0.5 * shape[1]) * eps
    assert (np.abs(out - np.exp(logs)) <= relative * np.exp(logs)).all()
    assert (np.abs(log_out - logs) <= relative + eps * np.abs(logs)).all()


def test_what_is_left_of_whole_vectors(softmax, dtype):
    for n in range(33, 66):  # every number of elements that a vector of 2 to 16 leaves over
        x = rows((2, n), dtype)
        memory = np.full(2 * n + 16, 77, dtype)
        softmax.softmax(memory[: 2 * n].reshape(2, n), x, 1, 1)
        expected = np.exp(log_softmax_by_numpy(x))
        np.testing.assert_allclose(memory[: 2 * n].reshape(2, n), expected, rtol=100 * np.finfo(dtype).eps)
        assert (memory[2 * n :] == 77).all()


@in_one_test("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(softmax, dtype, shape, threads):
    logs, grad = log_softmax_by_numpy(rows(shape, dtype)).astype(dtype), rows(shape, dtype, 1.0)[::-1].copy()
    y = np.exp(logs)
    g, p, log_p = (a.astype(np.float64) for a in (grad, y, logs))
    out, log_out = poisoned_like(y), poisoned_like(y)
    softmax.softmax_grad(out, grad, y, 1, threads)
    softmax.log_softmax_grad(log_out, grad, logs, -1, threads)
    eps = np.finfo(dtype).eps
    # Sums of n terms: n roundings of their magnitudes.
    size = np.abs(g).sum(axis=1, keepdims=True)
    tolerance = (4 + shape[1]) * eps * (size + np.abs(g))
    assert (np.abs(out - p * (g - (g * p).sum(axis=1, keepdims=True))) <= tolerance).all()
    assert (np.abs(log_out - (g - np.exp(log_p) * g.sum(axis=1, keepdims=True))) <= tolerance).all()


@in_one_test("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", BLOCKS)
def test_an_axis_that_is_not_the_last(softmax, dtype, shape, threads):
    x, grad = rows(shape, dtype), rows(shape, dtype, 1.0)[::-1].copy()
    logs = log_softmax_by_numpy(x)
    y, log_y, dx, log_dx = (poisoned_like(x) for _ in range(4))
    softmax.softmax(y, x, 1, threads)
    softmax.log_softmax(log_y, x, -2, threads)
    softmax.softmax_grad(dx, grad, y, 1, threads)
    softmax.log_softmax_grad(log_dx, grad, log_y, 1, threads)
    eps = np.finfo(dtype).eps
    # As for rows.
    relative = (4 + (np.ptp(x, axis=1, keepdims=True) if shape[1] else 0) + 0.5 * shape[1]) * eps
    assert (np.abs(y - np.exp(logs)) <= relative * np.exp(logs)).all()
    assert (np.abs(log_y - logs) <= relative + eps * np.abs(logs)).all()
    g, p, log_p = (a.astype(np.float64) for a in (grad, y, log_y))
    tolerance = (4 + shape[1]) * eps * (np.abs(g).sum(axis=1, keepdims=True) + np.abs(g))
    assert (np.abs(dx - p * (g - (g * p).sum(axis=1, keepdims=True))) <= tolerance).all()
    assert (np.abs(log_dx - (g - np.exp(log_p) * g.sum(axis=1, keepdims=True))) <= tolerance).all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("columns", [5, 40])
def test_special_values_behave_as_in_pytorch(softmax, dtype, columns, axis):
    x = np.zeros((5, columns), dtype)
    x[0, 1] = -np.inf
    x[1, 2] = np.nan
    x[2, 3] = np.inf
    x[3] = -np.inf
    x[4] = np.linspace(0, 1, columns) * np.finfo(dtype).max
    out, log_out = poisoned_like(x), poisoned_like(x)
    if axis == 1:
        softmax.softmax(out, x, 1, 1)
        softmax.log_softmax(log_out, x, 1, 1)
    else:
        turned, log_turned = (np.ascontiguousarray(a.T) for a in (out, log_out))
        softmax.softmax(turned, np.ascontiguousarray(x.T), 0, 1)
        softmax.log_softmax(log_turned, np.ascontiguousarray(x.T), 0, 1)
        out, log_out = turned.T, log_turned.T
    assert out[0, 1] == 0 and log_out[0, 1] == -np.inf
    np.testing.assert_allclose(np.delete(out[0], 1), 1 / (columns - 1), rtol=4 * np.finfo(dtype).eps)
    assert np.isnan(out[1:4]).all() and np.isnan(log_out[1:4]).all()
    np.testing.assert_array_equal(out[4], np.eye(columns)[-1])
    assert log_out[4, -1] == 0 and np.isfinite(log_out[4]).all()


@pytest.mark.parametrize(
    ("shape", "axis"), [((513, 100), 1), ((5003, 10), 1), ((33, 2000), 0), ((7, 9, 801), 1)]
)
def test_threads_change_no_bit(softmax, dtype, shape, axis):
    x = rows(shape, dtype)
    one, three = poisoned_like(x), poisoned_like(x)
    softmax.softmax(one, x, axis, 1)
    softmax.softmax(three, x, axis, 3)
    np.testing.assert_array_equal(one, three)


def test_wrong_arguments_are_errors(softmax):
    x = np.zeros((4, 4), np.float32)
    with pytest.raises(ValueError, match=r"\(4, 4\) has no such axis"):
        softmax.softmax(x, x, 2, 1)
    with pytest.raises(TypeError, match="float32 or float64"):
        softmax.softmax(x, x.astype(np.float16), 1, 1)
    with pytest.raises(ValueError, match="one shape"):
        softmax.softmax_grad(x, x, x[:2].copy(), 1, 1)
