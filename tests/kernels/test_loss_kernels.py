"""The CPU kernels of losses and their gradients, against their definitions in float64."""

import numpy as np
import pytest
from in_one_test import in_one_test

IGNORED = -100
ROWS = [(1, 1), (3, 5), (35, 10), (16, 32), (40, 33), (700, 65), (5, 3000)]
SHAPES = [(1,), (7,), (3, 5), (4097,), (70_001,)]
OPTIONS = [(reduction, smoothing) for reduction in ("none", "sum", "mean") for smoothing in (0.0, 0.1)]


@pytest.fixture
def loss(kernel_module):
    return kernel_module("loss")


class Classes:
    """Logits, targets, weights, and in float64 the loss of each row with its gradient."""

    def __init__(self, shape, dtype, weighted, smoothing=0.0, is_log=False):
        rng = np.random.default_rng()
        rows, classes = shape
        self.x = (rng.standard_normal(shape) * 3).astype(dtype)
        self.target = rng.integers(0, classes, rows)
        self.target[1::5] = IGNORED
        self.weight = rng.uniform(0.5, 2, classes).astype(dtype) if weighted else None
        self.smoothing, self.is_log = smoothing, is_log
        wide = self.x.astype(np.float64)
        weight = np.ones(classes) if self.weight is None else self.weight.astype(np.float64)
        kept = self.target != IGNORED
        safe = np.where(kept, self.target, 0)
        self.weights = np.where(kept, weight[safe], 0.0)
        log_sums = 0 if is_log else np.log(np.exp(wide).sum(1, keepdims=True))
        nll = log_sums - wide
        share = (1 - smoothing) * weight[safe][:, None] * (safe[:, None] == np.arange(classes))
        share = (share + smoothing / classes * weight) * kept[:, None]
        self.losses = (share * nll).sum(1)
        self.size = (share * np.abs(nll)).sum(1)
        p = 0 if is_log else np.exp(-nll) * share.sum(1, keepdims=True)
        self.slopes, self.slope_size = p - share, p + share
        # x - max is rounded, which exp turns into a relative error of their sum, as in softmax; so do the
        # additions. The log-likelihood and the weighted sum over classes add some, and sums over rows, which
        # are taken in double, a rounding for each.
        spread = np.ptp(wide, axis=1)
        self.relative = (12 + spread + classes) * np.finfo(dtype).eps + 2 * rows * np.finfo(np.float64).eps

    def reduced(self, values, reduction):
        if reduction == "none":
            return values
        return values.sum() / (self.weights.sum() if reduction == "mean" else 1)


@in_one_test("threads", [1, 2, 3])
@in_one_test("weighted", [False, True])
@pytest.mark.parametrize(("reduction", "smoothing"), OPTIONS)
@pytest.mark.parametrize("shape", ROWS)
def test_cross_entropy(loss, dtype, shape, reduction, smoothing, weighted, threads):
    c = Classes(shape, dtype, weighted, smoothing)
    check_classes(loss, c, reduction, threads)


@in_one_test("threads", [1, 2, 3])
@in_one_test("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [*ROWS, (40_000, 3)])
def test_nll_loss(loss, dtype, shape, reduction, weighted, threads):
    check_classes(loss, Classes(shape, dtype, weighted, is_log=True), reduction, threads)


def check_classes(loss, c, reduction, threads):
    options = (IGNORED, c.smoothing, c.is_log, reduction, threads)
    out = np.full(len(c.x) if reduction == "none" else (), 77, c.x.dtype)
    loss.class_losses(out, c.x, c.target, c.weight, *options)
    # Of each row an error in units of the loss's terms, and of what its logarithm is taken of, near 1.
    bound = c.reduced(c.relative * (c.size + 2 * (c.weights + c.smoothing * 2)), reduction)
    assert (np.abs(out - c.reduced(c.losses, reduction)) <= bound).all()

    grad = np.random.default_rng().standard_normal(out.shape).astype(c.x.dtype)
    dx = np.full_like(c.x, 77)
    loss.class_loss_grads(dx, grad, c.x, c.target, c.weight, *options)
    g = grad.astype(np.float64) / (c.weights.sum() if reduction == "mean" else 1)
    g = np.broadcast_to(g, len(c.x))[:, None]
    assert (np.abs(dx - g * c.slopes) <= c.relative[:, None] * np.abs(g) * c.slope_size).all()


def test_special_values(loss, dtype):
    x = np.array([[0, np.inf, 1], [np.nan, 0, 1], [-np.inf, 0, 0], [0, 0, -np.inf]], dtype)
    out, dx = np.empty(4, dtype), np.empty_like(x)
    target = np.array([0, 1, 1, 2])
    loss.class_losses(out, x, target, None, IGNORED, 0.0, False, "none", 1)
    assert np.isnan(out[:2]).all() and out[3] == np.inf
    assert out[2] == pytest.approx(np.log(2), rel=4 * float(np.finfo(dtype).eps))
    loss.class_loss_grads(dx, np.ones(4, dtype), x, target, None, IGNORED, 0.0, False, "none", 1)
    assert np.isnan(dx[:2]).all()
    np.testing.assert_allclose(dx[2:], [[0, -0.5, 0.5], [0.5, 0.5, -1]], rtol=4 * np.finfo(dtype).eps)


def test_an_ignored_row_may_hold_anything(loss, dtype):
    x = np.full((2, 40), np.nan, dtype)
    x[1] = 0
    out, dx = np.empty((), dtype), np.empty_like(x)
    target, options = np.array([IGNORED, 3]), (None, IGNORED, 0.1, False, "mean", 1)
    loss.class_losses(out, x, target, *options)
    assert out == pytest.approx(np.log(40), rel=80 * float(np.finfo(dtype).eps))
    loss.class_loss_grads(dx, np.ones((), dtype), x, target, *options)
    assert (dx[0] == 0).all() and np.isfinite(dx).all()


DELTA = 0.75  # of the Huber loss
ELEMENTWISE = [
    *("mse_loss", "l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"),
    *("kl_div", "kl_div_of_logs"),
]
ERRORS = ELEMENTWISE[:3]  # of x - t


def value_and_slope(name, x, t):
    d = x - t
    if name == "mse_loss":
        return d**2, 2 * d
    if name == "l1_loss":
        return np.abs(d), np.sign(d)
    if name == "huber_loss":
        inside = np.abs(d) < DELTA
        return np.where(inside, d**2 / 2, DELTA * (np.abs(d) - DELTA / 2)), np.clip(d, -DELTA, DELTA)
    if name == "binary_cross_entropy":
        return -(t * np.log(x) + (1 - t) * np.log1p(-x)), (x - t) / (x * (1 - x))
    if name == "kl_div":
        return t * (np.log(t) - x), -t + 0 * x
    if name == "kl_div_of_logs":
        return np.exp(t) * (t - x), -np.exp(t) + 0 * x
    return np.logaddexp(0, x) - x * t, 1 / (1 + np.exp(-x)) - t


@in_one_test("threads", [1, 3])
@in_one_test("n", [1, 7, 4097, 70_001])
@pytest.mark.parametrize("period", [1, 3, 16, 61, 70_001])
def test_two_classes_with_weights(loss, dtype, n, period, threads):
    """Weights of all periods, which begin anywhere in vectors and in the threads' shares."""
    rng = np.random.default_rng()
    x, t = (rng.standard_normal(n) * 3).astype(dtype), rng.random(n).astype(dtype)
    weight, eps = rng.uniform(0, 5, period).astype(dtype), np.finfo(dtype).eps
    wide, w = (x.astype(np.float64), t.astype(np.float64)), np.resize(weight, n).astype(np.float64)
    positive, negative = np.logaddexp(0, -wide[0]), np.logaddexp(0, wide[0])
    exact = wide[1] * w * positive + (1 - wide[1]) * negative
    slope = (1 - wide[1]) / (1 + np.exp(-wide[0])) - wide[1] * w / (1 + np.exp(wide[0]))
    bound = 30 * eps * (1 + w) * (1 + np.abs(wide[0]))
    name, out = "weighted_logits_loss", np.full(n, 77, dtype)
    loss.each(out, x, t, name, 0.5, 1.0, threads, weight)
    assert (np.abs(out - 0.5 * exact) <= bound).all()
    total = np.empty((), dtype)
    loss.total(total, x, t, name, 0.5, 1.0, threads, weight)
    assert abs(total - 0.5 * exact.sum()) <= bound.sum()
    loss.gradient(out, np.array(2, dtype), x, t, name, 0.5, 1.0, threads, weight)
    assert (np.abs(out - slope) <= bound).all()


@in_one_test("threads", [1, 2, 3])
@in_one_test("shape", SHAPES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(loss, dtype, name, shape, threads):
    rng = np.random.default_rng()
    x, t = (rng.standard_normal(shape) * 3).astype(dtype), rng.random(shape).astype(dtype)
    t = np.maximum(t, dtype(0.01))
    if name == "binary_cross_entropy":
        x = rng.uniform(0.01, 0.99, shape).astype(dtype)
    values, slopes = value_and_slope(name, x.astype(np.float64), t.astype(np.float64))
    eps, n = np.finfo(dtype).eps, x.size
    # A block has at most 2048 elements in two chains of at least 2 lanes; a value has about 8 roundings of
    # terms that are no larger than 1 + |x| + |x t|, or three times that for exp(t).
    terms = values if name in ERRORS else 3 * (1 + np.abs(x) * (1.0 + t)) + np.abs(values)
    size = np.abs(x).max() + 1.0  # of x - t, whose rounding mse squares
    out, each = np.full((), 77, dtype), np.full_like(x, 77)
    loss.total(out, x, t, name, 1 / n, DELTA, threads)
    assert abs(out - values.mean()) <= (8 + min(n, 512)) * eps * (terms.mean() + size)
    loss.each(each, x, t, name, 2.0, DELTA, threads)
    assert (np.abs(each - 2 * values) <= 16 * eps * (terms + size)).all()
    for grad in (np.array(0.7, dtype), rng.uniform(0.5, 1, shape).astype(dtype)):
        dx, factor = np.full_like(x, 77), grad.astype(np.float64) * 0.3
        loss.gradient(dx, grad, x, t, name, 0.3, DELTA, threads)
        assert (np.abs(dx - slopes * factor) <= 8 * eps * factor * (np.abs(slopes) + 1)).all()


@pytest.mark.parametrize("name", [*ERRORS, "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_elementwise_special_values(loss, dtype, name, value):
    x, t = np.zeros(21, dtype), np.full(21, 0.5, dtype)
    x[[3, 20]] = value
    with np.errstate(invalid="ignore"):
        values, slopes = value_and_slope(name, x.astype(np.float64), t.astype(np.float64))
    out, dx = np.empty((), dtype), np.empty_like(x)
    loss.total(out, x, t, name, 1.0, DELTA, 1)
    loss.gradient(dx, np.ones((), dtype), x, t, name, 1.0, DELTA, 1)
    np.testing.assert_array_equal(np.isnan(dx), np.isnan(slopes))
    if name == "binary_cross_entropy_with_logits" and value == -np.inf:
        assert out == np.inf  # log(1 + exp(-x)) t is infinite
    else:
        np.testing.assert_equal(np.isnan(out), np.isnan(values.sum()))


def test_losses_of_probabilities_that_are_sure(loss, dtype):
    """A logarithm of 0 is -100, and 0 times it 0."""
    x, t = np.array([0, 1, 0, 1, np.nan], dtype), np.array([0, 1, 1, 0.25, 0], dtype)
    out = np.empty_like(x)
    loss.each(out, x, t, "binary_cross_entropy", 1.0, DELTA, 1)
    np.testing.assert_array_equal(out, np.array([0, 0, 100, 75, np.nan], dtype))
    loss.gradient(out, np.ones((), dtype), x, t, "binary_cross_entropy", 1.0, DELTA, 1)
    np.testing.assert_allclose(out, [0, 0, -1e12, 7.5e11, np.nan], rtol=1e-6)
    x, t = np.array([-np.inf, -3, -3, np.nan], dtype), np.array([0.5, 0, 1, 0], dtype)
    loss.each(out[:4], x, t, "kl_div", 1.0, DELTA, 1)
    np.testing.assert_array_equal(out[:4], [np.inf, 0, 3, np.nan])


def test_losses_keep_the_digits_of_what_is_small(loss, dtype):
    x, out, accuracy = np.array([20.0], dtype), np.empty((), dtype), 8 * float(np.finfo(dtype).eps)
    loss.total(out, x, np.ones(1, dtype), "binary_cross_entropy_with_logits", 1.0, DELTA, 1)
    assert out == pytest.approx(np.log1p(np.exp(-20.0)), rel=accuracy)
    for probability in (1e-9, 1e-3, 0.3):
        x[...] = probability
        loss.total(out, x, np.zeros(1, dtype), "binary_cross_entropy", 1.0, DELTA, 1)
        assert out == pytest.approx(-np.log1p(-x[0].astype(float)), rel=accuracy)


def test_the_same_threads_give_the_same_bits(loss, dtype):
    c = Classes((900, 70), dtype, True, 0.1)

    def bits():
        out, dx, sums = np.empty((), dtype), np.empty_like(c.x), np.empty((), dtype)
        options = (c.weight, IGNORED, 0.1, False, "mean", 3)
        loss.class_losses(out, c.x, c.target, *options)
        loss.class_loss_grads(dx, out, c.x, c.target, *options)
        loss.total(sums, c.x, dx, "mse_loss", 1.0, DELTA, 3)
        return out.tobytes() + dx.tobytes() + sums.tobytes()

    assert bits() == bits()


def test_first_out_of_range(loss):
    target = np.array([0, 4, -100, 5, -1])
    assert loss.first_out_of_range(target, 5, -100) == 3
    assert loss.first_out_of_range(target[:3], 5, -100) == -1 == loss.first_out_of_range(target[:0], 5, -100)
    assert loss.first_out_of_range(target, 6, 7) == 2


def test_what_does_not_fit_is_refused(loss):
    x, out, target = np.ones((3, 4), np.float32), np.empty(3, np.float32), np.zeros(3, np.int64)
    options = (None, IGNORED, 0.0, False, "none", 1)
    with pytest.raises(ValueError, match="a target is not one of 4 classes"):
        loss.class_losses(out, x, target + 4, *options)
    with pytest.raises(ValueError, match=r"target must have 3 elements, got \(2,\)"):
        loss.class_losses(out, x, target[:2], *options)
    with pytest.raises(ValueError, match=r"the loss must have 1 elements, got \(3,\)"):
        loss.class_losses(out, x, target, None, IGNORED, 0.0, False, "sum", 1)
    with pytest.raises(TypeError, match="int32"):
        loss.class_losses(out, x, target.astype(np.int32), *options)
    with pytest.raises(ValueError, match="one shape"):
        loss.total(np.empty((), np.float32), x, x[:2].copy(), "mse_loss", 1.0, DELTA, 1)
    with pytest.raises(ValueError, match="one shape"):
        loss.gradient(x.copy(), out, x, x, "mse_loss", 1.0, DELTA, 1)
    with pytest.raises(ValueError, match="there is no loss 'hinge' of elements"):
        loss.each(x.copy(), x, x, "hinge", 1.0, DELTA, 1)
