"""Reductions: values against NumPy in float64, gradients, empty axes, ties, NaN."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg

AXES = [None, 0, -1, (0, 2), (1,), (0, 1, 2), ()]

REDUCTIONS = {
    "sum": (mg.sum, np.sum),
    "mean": (mg.mean, np.mean),
    "prod": (mg.prod, np.prod),
    "amax": (mg.amax, np.max),
    "amin": (mg.amin, np.min),
    "var": (lambda x, d, k: mg.var(x, d, keepdim=k), lambda x, **o: np.var(x, ddof=1, **o)),
    "var_biased": (lambda x, d, k: mg.var(x, d, correction=0, keepdim=k), np.var),
    "std": (lambda x, d, k: mg.std(x, d, keepdim=k), lambda x, **o: np.std(x, ddof=1, **o)),
    "norm": (lambda x, d, k: mg.norm(x, 2, d, k), lambda x, **o: np.sqrt(np.sum(x * x, **o))),
    "norm_1": (lambda x, d, k: mg.norm(x, 1, d, k), lambda x, **o: np.sum(np.abs(x), **o)),
    "norm_3": (lambda x, d, k: mg.norm(x, 3, d, k), lambda x, **o: np.sum(np.abs(x) ** 3, **o) ** (1 / 3)),
    "norm_inf": (lambda x, d, k: mg.norm(x, float("inf"), d, k), lambda x, **o: np.max(np.abs(x), **o)),
    "logsumexp": (mg.logsumexp, lambda x, **o: np.log(np.sum(np.exp(x), **o))),
}


@pytest.mark.parametrize("dtype", [mg.float32, mg.float64], ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_value(name, dtype, device, rng):
    function, expected = REDUCTIONS[name]
    x = rng.standard_normal((5, 3, 4)).astype(dtype)
    for dim in AXES:
        axes = None if dim == () and name != "prod" else dim  # where PyTorch reduces all axes, NumPy none
        for keepdim in (False, True):
            y = function(mg.tensor(x, device=device), dim, keepdim)
            wanted = np.asarray(expected(x.astype(np.float64), axis=axes, keepdims=keepdim))
            assert y.dtype == dtype and y.device is device
            mg.testing.assert_close(y, wanted, length=60 * 8, magnitude=1.0)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_gradient(name, check_gradients):
    function, _ = REDUCTIONS[name]
    for dim in (None, 1, (0, 2), -1):
        for keepdim in (False, True):
            check_gradients(lambda x, d=dim, k=keepdim: function(x, d, k), (3, 2, 2))


def test_of_a_zero_dimensional_tensor(check_gradients):
    for name in ("sum", "mean", "prod", "amax", "norm", "logsumexp"):
        function, _ = REDUCTIONS[name]
        check_gradients(lambda x, f=function: f(x, None, False), np.asarray(1.25))


@given(st.lists(st.integers(0, 3), max_size=4).map(tuple), st.data(), st.booleans())
def test_sum_over_any_axes(shape, data, keepdim):
    axes = data.draw(st.sets(st.integers(0, max(len(shape) - 1, 0)), max_size=len(shape)))
    dim = tuple(a - len(shape) if data.draw(st.booleans()) else a for a in axes) if shape else None
    x = mg.tensor(np.arange(np.prod(shape), dtype=np.float64).reshape(shape), requires_grad=True)
    y = mg.sum(x, dim, keepdim)
    wanted = np.sum(x.detach().numpy(), axis=dim or None, keepdims=keepdim)
    np.testing.assert_array_equal(y.detach().numpy(), wanted)
    y.sum().backward()
    assert x.grad.shape == shape and (x.grad == 1.0).all()


def test_sums_of_small_integers_do_not_wrap():
    assert mg.full((300,), 200, dtype=mg.uint8).sum().item() == 60_000
    total = mg.tensor([True, True, False]).sum()
    assert total.item() == 2 and total.dtype == mg.int64


def test_a_long_float32_sum_is_accurate():
    x = np.full(2**20, 0.1, np.float32)
    assert mg.tensor(x).sum().item() == pytest.approx(float(x.astype(np.float64).sum()), rel=1e-6)


@pytest.mark.parametrize("find", ["argmax", "argmin"])
def test_the_first_extremum_is_found(find, rng):
    x = rng.integers(0, 3, (4, 5, 6))
    for dim in (0, 1, -1, None):
        for keepdim in (False, True):
            found = getattr(mg, find)(mg.tensor(x), dim, keepdim)
            assert found.dtype == mg.int64
            np.testing.assert_array_equal(found.numpy(), getattr(np, find)(x, axis=dim, keepdims=keepdim))


@pytest.mark.parametrize("name", ["max", "min"])
def test_max_and_min_with_indices(name, rng, check_gradients):
    x = rng.permutation(24).reshape(2, 3, 4).astype(np.float64)
    for dim in (0, 1, -1):
        for keepdim in (False, True):
            values, indices = getattr(mg.tensor(x), name)(dim, keepdim)
            np.testing.assert_array_equal(values.numpy(), getattr(np, name)(x, axis=dim, keepdims=keepdim))
            wanted = getattr(np, f"arg{name}")(x, axis=dim, keepdims=keepdim)
            np.testing.assert_array_equal(indices.numpy(), wanted)
    check_gradients(lambda t: getattr(t, name)(1)[0], x)
    assert getattr(mg.tensor(x), name)().item() == getattr(x, name)()


def test_equal_extrema_share_the_gradient():
    x = mg.tensor([3.0, 1.0, 3.0], requires_grad=True)
    mg.amax(x).backward()
    assert x.grad.tolist() == [0.5, 0.0, 0.5]


def test_nan_wins():
    x = mg.tensor([1.0, np.nan, 2.0])
    assert np.isnan([mg.amax(x).item(), mg.amin(x).item(), x.sum().item(), x.norm().item()]).all()
    assert mg.argmax(x).item() == 1


def test_products_with_zeros_have_gradients(check_gradients):
    check_gradients(lambda x: x.prod(1), np.array([[2.0, 0.0, 3.0], [0.0, 0.0, 4.0], [1.0, 2.0, 3.0]]))


def test_any_and_all():
    x = mg.tensor([[0, 2], [0, 0]])
    assert x.any(1).tolist() == [True, False] and x.all(0).tolist() == [False, False]
    assert x.any().item() is True and x.all().item() is False


def test_over_no_elements():
    x = mg.ones(2, 0)
    assert x.sum(1).tolist() == [0.0, 0.0] and x.prod(1).tolist() == [1.0, 1.0]
    assert np.isnan(x.mean(1).numpy()).all()
    assert x.any(1).tolist() == [False, False] and x.all(1).tolist() == [True, True]
    assert x.amax(0).shape == (0,) and x.argmax(0).shape == (0,)
    for function in (mg.amax, mg.amin, mg.argmax, mg.argmin):
        with pytest.raises(ValueError, match=r"no elements.*\(2, 0\)"):
            function(x, 1)


def test_logsumexp_does_not_overflow():
    x = mg.tensor([1000.0, 1000.0, -np.inf], mg.float64, requires_grad=True)
    y = mg.logsumexp(x, 0)
    y.backward()
    assert y.item() == pytest.approx(1000 + np.log(2)) and x.grad.tolist() == [0.5, 0.5, 0.0]
    assert mg.logsumexp(mg.full((2,), -np.inf), 0).item() == -np.inf


def test_logsumexp_over_no_elements(device):
    x = mg.ones(2, 0, 3, device=device, requires_grad=True)
    assert (mg.logsumexp(x, 1) == -np.inf).all() and mg.logsumexp(x, (0, 2)).shape == (0,)
    mg.logsumexp(x).backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("dim", [2, -3, (0, 5)])
def test_a_dim_out_of_range(dim):
    for function in (mg.sum, mg.mean, mg.prod, mg.var, mg.amax, mg.norm):
        with pytest.raises(IndexError, match=r"dim .* out of range.*2 dim"):
            function(mg.ones(2, 3), dim=dim)


def test_a_dim_named_twice():
    with pytest.raises(ValueError, match="twice"):
        mg.sum(mg.ones(2, 3), (0, -2))


def test_roots_have_a_gradient_of_zero_at_zero():
    x = mg.zeros(3, requires_grad=True)
    for function in (mg.std, mg.norm, lambda x: mg.norm(x, 3)):
        (gradient,) = mg.autograd.grad(function(x), x)
        assert gradient.tolist() == [0.0, 0.0, 0.0]


def test_limits_of_the_norm():
    x = mg.tensor([[3.0, 0.0], [-4.0, 2.0]])
    assert mg.norm(x, 0, dim=1).tolist() == [1.0, 2.0] and mg.norm(x.half(), 0).item() == 3.0
    y = mg.tensor([0.0, 2.0, mg.nan], requires_grad=True)
    assert mg.norm(y, 0).item() == 2.0 and mg.autograd.grad(mg.norm(y, 0), y)[0].tolist() == [0.0, 0.0, 0.0]
    assert mg.norm(x, float("-inf"), dim=1).tolist() == [0.0, 2.0]
    assert mg.norm(x, "fro").item() == mg.norm(x).item()
    with pytest.raises(ValueError, match="norm: p must be a number or 'fro', got 'nuc'"):
        mg.norm(x, "nuc")


def test_a_position_is_along_one_axis():
    assert mg.tensor(3.0).argmax(0).item() == mg.tensor(3.0).argmin(-1).item() == 0
    assert [part.item() for part in mg.tensor(3.0).max(0)] == [3.0, 0]
    with pytest.raises(TypeError, match=r"argmax: dim must be an integer, got \(0, 1\)"):
        mg.ones(2, 2).argmax((0, 1))
    for bad in ("a", 1.5):
        with pytest.raises(TypeError, match=f"sum: dim must be an integer or a tuple.*, got {bad!r}"):
            mg.ones(2, 2).sum(bad)
    assert mg.ones(2, 3).sum(np.int64(1)).shape == (2,)


def test_products_of_small_integers_do_not_overflow():
    product = mg.tensor([100, 100, 100], dtype=mg.uint8).prod()
    assert (product.dtype, product.item()) == (mg.int64, 1_000_000)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_cumsum(dim, rng, check_gradients):
    x = rng.standard_normal((3, 4))
    np.testing.assert_allclose(mg.cumsum(mg.tensor(x), dim).numpy(), np.cumsum(x, dim))
    check_gradients(lambda x: x.cumsum(dim), x)
    assert mg.tensor([True, True]).cumsum(0).tolist() == [1, 2] and mg.tensor(3).cumsum(0).item() == 3


def test_unbiased_is_another_word_for_a_correction_of_one():
    x = mg.tensor([1.0, 3.0])
    assert x.var(unbiased=False).item() == 1.0 and x.std(0, False).item() == 1.0
    assert x.var(unbiased=True).item() == x.var().item() == 2.0


def test_the_gradient_of_a_norm_below_one_is_zero_at_zeros():
    x = mg.tensor([0.0, 1.0, 4.0], requires_grad=True)
    y = mg.norm(x, 0.5)
    y.backward()
    assert y.item() == 9.0 and x.grad.tolist() == [0.0, 3.0, 1.5]
