"""Softmax and its logarithm: values, gradients, extremes, bad arguments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg

FUNCTIONS = ["softmax", "log_softmax"]


def expected(name, x, dim):
    e = np.exp(x - x.max(dim, keepdims=True))
    y = e / e.sum(dim, keepdims=True)
    return y if name == "softmax" else np.log(y)


@pytest.mark.parametrize("dtype", [mg.float32, mg.float64], ids=str)
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value(name, dim, dtype, device, rng):
    x = (rng.standard_normal((5, 3, 37)) * 3).astype(dtype)
    y = getattr(mg, name)(mg.tensor(x, device=device), dim)
    assert y.dtype == dtype and y.device is device
    mg.testing.assert_close(y, expected(name, x.astype(np.float64), dim), length=37, magnitude=1.0)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient(name, dim, check_gradients):
    check_gradients(lambda x: getattr(mg, name)(x, dim), (3, 2, 4))
    check_gradients(lambda x: getattr(mg, name)(x, 0), ())


@given(st.integers(1, 70), st.floats(-1e4, 1e4), st.booleans())
def test_shifts_change_nothing_and_rows_sum_to_one(n, shift, single):
    x = np.random.default_rng(0).standard_normal((4, n)).astype(np.float32 if single else np.float64)
    y = mg.softmax(mg.tensor(x + x.dtype.type(shift)), 1)
    # The shift itself rounds x, by half a unit in the last place of the shift.
    tolerance = np.finfo(x.dtype).eps * (abs(shift) + 8)
    np.testing.assert_allclose(y.numpy(), expected("softmax", x.astype(np.float64), 1), atol=tolerance)
    np.testing.assert_allclose(y.numpy().sum(1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("rung", ["reference", *(k.name for k in mg.list_kernels("softmax", "cpu"))])
def test_extremes(rung):
    rows = [
        [1000.0, 0.0, -1000.0],
        [-np.inf, 0.0, 0.0],
        [np.nan, 1.0, 2.0],
        [-np.inf] * 3,
        [np.inf, 0.0, 0.0],
    ]
    for dtype in (np.float32, np.float64):
        x = mg.tensor(np.array(rows, dtype))
        with mg.use_kernel("softmax", rung), mg.use_kernel("log_softmax", rung):
            y, log_y = mg.softmax(x, 1).numpy(), mg.log_softmax(x, 1).numpy()
        np.testing.assert_array_equal(y[:2], [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
        assert np.isnan(y[2:4]).all() and np.isnan(log_y[2:4]).all() and np.isnan(y[4, 0])
        np.testing.assert_array_equal(log_y[0], [0.0, -1000.0, -2000.0])
        assert log_y[1, 0] == -np.inf


def test_empty_and_integers():
    assert mg.softmax(mg.ones(2, 0), 1).shape == (2, 0) and mg.log_softmax(mg.ones(0, 3), 1).shape == (0, 3)
    assert mg.softmax(mg.ones(()), 0).item() == 1.0
    assert mg.softmax(mg.tensor([1, 1]), 0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_dim_out_of_range(name):
    with pytest.raises(IndexError, match=rf"{name}.*dim 2"):
        getattr(mg, name)(mg.ones(2, 3), 2)
