"""The CUDA kernels of losses, variances, extrema and cumulative sums, against NumPy in float64."""

import itertools

import numpy as np
import pytest
from simulated import normal

import minigrad as mg
from minigrad.kernels import sim
from minigrad.kernels.cuda import cumsum, loss, nll_loss, row_statistics

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
needs_simulator = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


pytestmark = pytest.mark.usefixtures("checked_accesses")


# ---- losses ------------------------------------------------------------------------------------------------

DELTA = 0.75  # of the Huber loss

LOSSES = {
    "l1_loss": lambda x, t: np.abs(x - t),
    "mse_loss": lambda x, t: (x - t) ** 2,
    "huber_loss": lambda x, t: np.where(
        np.abs(x - t) < DELTA, (x - t) ** 2 / 2, DELTA * (np.abs(x - t) - DELTA / 2)
    ),
    "binary_cross_entropy": lambda x, t: -(t * np.log(x) + (1 - t) * np.log1p(-x)),
    "binary_cross_entropy_with_logits": lambda x, t: np.logaddexp(0, x) - x * t,
    "kl_div": lambda x, t: t * (np.log(t) - x),
    "kl_div_of_logs": lambda x, t: np.exp(t) * (t - x),
}
SLOPES = {
    "l1_loss": lambda x, t: np.sign(x - t),
    "mse_loss": lambda x, t: 2 * (x - t),
    "huber_loss": lambda x, t: np.clip(x - t, -DELTA, DELTA),
    "binary_cross_entropy": lambda x, t: (1 - t) / (1 - x) - t / x,
    "binary_cross_entropy_with_logits": lambda x, t: 1 / (1 + np.exp(-x)) - t,
    "kl_div": lambda x, t: -t + 0 * x,
    "kl_div_of_logs": lambda x, t: -np.exp(t) + 0 * x,
}


def elements(name, shape, dtype):
    """Inputs and targets that have the loss ``name``."""
    x, target = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    if name == "binary_cross_entropy":
        x = dtype(1) / (1 + np.exp(-x))
    if name in ("binary_cross_entropy", "kl_div"):
        target = dtype(1) / (1 + np.exp(-target))
    return x, target


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1, 5, 1024, 9001])
@dtypes
def test_losses_of_elements(run, name, size, dtype):
    """Their mean, in one part and in three; and each."""
    x, target = elements(name, (size,), dtype)
    exact = LOSSES[name](x.astype(float), target.astype(float))
    terms, eps = np.abs(exact) + np.abs(x) + 1, np.finfo(dtype).eps
    mean = run(loss.total, (), dtype, x, target, name, size, 0.5, DELTA)
    assert abs(mean - 0.5 * exact.mean()) <= (size + 20) * eps * terms.mean()
    each = run(loss.each, size, dtype, x, target, name, 0.5, DELTA)
    assert (np.abs(each - 0.5 * exact) <= 20 * eps * terms).all()


@pytest.mark.parametrize("size", [1, 7, 307, 9001])
@pytest.mark.parametrize("period", [1, 3, 64, 9001])
@dtypes
def test_two_classes_with_weights(run, size, period, dtype):
    """Weights that repeat: within a vector, from one to the next, and once for each element."""
    x, t = normal(size, dtype=dtype), np.random.default_rng(0).random(size).astype(dtype)
    weight, eps = np.random.default_rng(1).uniform(0, 5, period).astype(dtype), np.finfo(dtype).eps
    wide, share, w = x.astype(float), t.astype(float), np.resize(weight, size).astype(float)
    exact = share * w * np.logaddexp(0, -wide) + (1 - share) * np.logaddexp(0, wide)
    slope = (1 - share) / (1 + np.exp(-wide)) - share * w / (1 + np.exp(wide))
    bound = 30 * eps * (1 + w) * (1 + np.abs(wide))
    options = ("weighted_logits_loss", 0.5, DELTA, weight)
    assert (np.abs(run(loss.each, size, dtype, x, t, *options) - 0.5 * exact) <= bound).all()
    found = run(loss.gradient, size, dtype, dtype([2]), x, t, *options)
    assert (np.abs(found - slope) <= bound).all()
    mean = run(loss.total, (), dtype, x, t, options[0], size, *options[1:])
    assert abs(mean - 0.5 * exact.mean()) <= bound.mean() + size * eps * exact.mean()


@pytest.mark.parametrize("size", [7, 9001])
def test_sums_of_squares_of_everything(run, size):
    x = normal(size, dtype=np.float32)
    found = run(loss.total, (), np.float32, x, None, "mse_loss", 1)
    np.testing.assert_allclose(found, (x.astype(float) ** 2).sum(), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("g", [np.float32([2]), normal(5, 307, dtype=np.float32, seed=2)])
def test_gradients_of_losses(run, name, g):
    x, target = elements(name, (5, 307), np.float32)
    x[0, 0], x[0, 1] = target[0, 0], np.nan
    expected = SLOPES[name](x.astype(float), target.astype(float)) * g * 0.25
    found = run(loss.gradient, x.shape, np.float32, g, x, target, name, 0.25, DELTA)
    if name.startswith("kl_div"):
        expected[0, 1] = found[0, 1]  # its slope does not depend on x
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["l1_loss", "mse_loss", "huber_loss", "binary_cross_entropy_with_logits"])
def test_losses_of_special_values(run, name):
    x, target = np.float32([-np.inf, 1e30, -1e30, 3]), np.float32([0, 0, 0, 1])
    with np.errstate(invalid="ignore", over="ignore"):
        expected = LOSSES[name](x, target) if "logits" not in name else np.float32([np.nan, 1e30, 0, 0.0486])
    options = (1, 1, DELTA)
    found = [run(loss.total, (), "f4", x[i : i + 1], target[i : i + 1], name, *options) for i in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-2)
    nan = np.float32([1, np.nan])
    assert np.isnan(run(loss.total, (), np.float32, nan, target[:2], name, *options, fill=7))


def test_losses_of_probabilities_that_are_sure(run):
    """A logarithm of 0 is -100, and 0 times it 0."""
    x, t = np.float32([0, 1, 0, 1, np.nan]), np.float32([0, 1, 1, 0.25, 0])
    found = run(loss.each, 5, np.float32, x, t, "binary_cross_entropy", 1)
    np.testing.assert_array_equal(found, [0, 0, 100, 75, np.nan])
    x, t = np.float32([-np.inf, -3, -3, np.nan]), np.float32([0.5, 0, 1, 0])
    found = run(loss.each, 4, np.float32, x, t, "kl_div", 1)
    np.testing.assert_array_equal(found, [np.inf, 0, 3, np.nan])


@pytest.mark.parametrize("rows", [1, 40, 1500])
@dtypes
def test_means_over_classes(run, rows, dtype):
    losses, target = normal(rows, dtype=dtype), np.random.default_rng(0).integers(0, 3, rows)
    target[0], weight = 1, dtype([0.5, 1.5, np.nan])
    counted, weights = (target != 2).sum(), weight[target[target != 2]].sum(dtype=float)
    bound = (rows + 4) * np.finfo(dtype).eps * np.abs(losses).sum()
    total = losses.sum(dtype=float)
    assert abs(run(loss.class_mean, (), dtype, losses, target, None, 2) - total / counted) <= bound
    assert abs(run(loss.class_mean, (), dtype, losses, target, weight, 2) - total / weights) <= 2 * bound
    assert abs(run(loss.class_mean, (), dtype, losses, None, None, 2) - total) <= bound
    of_rows = run(loss.class_mean, rows, dtype, losses[:1], target, None, 2)
    np.testing.assert_array_equal(of_rows, losses[0] / dtype(counted))


def test_the_mean_over_no_class_is_nan(run):
    target = np.full(3, -100)
    assert np.isnan(run(loss.class_mean, (), np.float32, np.zeros(3, np.float32), target, None, -100))


@pytest.mark.parametrize("shape", [(1, 1), (5, 31), (3, 1000), (70, 5), (300, 3)])
@pytest.mark.parametrize("weighted", [False, True])
@dtypes
def test_negative_log_likelihood(run, shape, weighted, dtype):
    x, grad = normal(*shape, dtype=dtype), normal(shape[0], dtype=dtype, seed=1)
    target = np.random.default_rng(0).integers(0, shape[1], shape[0])
    target[2::5] = -100
    weight = np.random.default_rng(1).uniform(0.5, 2, shape[1]).astype(dtype) if weighted else None
    is_target = target[:, None] == np.arange(shape[1])
    each = is_target * (dtype(1) if weight is None else weight)
    found = run(nll_loss.nll_loss, shape[0], dtype, x, target, weight, -100)
    np.testing.assert_array_equal(found, -(x * each).sum(1))
    found = run(nll_loss.nll_loss_grad, shape, dtype, grad, target, weight, -100)
    np.testing.assert_array_equal(found, -grad[:, None] * each)


# ---- rows --------------------------------------------------------------------------------------------------

SHAPES = [(3, 1), (9, 31), (2, 257), (1, 2048), (70, 5), (0, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@dtypes
def test_variances_and_squares(run, shape, dtype):
    x = normal(*shape, dtype=dtype) + dtype(3)
    wide, eps = x.astype(float), (shape[1] + 10) * np.finfo(dtype).eps
    variance = run(row_statistics.squares, shape[0], dtype, x, shape[1], True)
    np.testing.assert_allclose(variance, wide.var(1), rtol=eps, atol=10 * eps)
    squares = run(row_statistics.squares, shape[0], dtype, x, 1, False)
    np.testing.assert_allclose(squares, (wide**2).sum(1), rtol=eps)


def test_variance_of_a_long_row(run):
    x = normal(2, 20001, dtype=np.float32) + np.float32(1000)
    found = run(row_statistics.squares, 2, np.float32, x, 20001, True)
    np.testing.assert_allclose(found, x.astype(float).var(1), rtol=1e-3)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 5001)])
@dtypes
def test_gradients_of_extrema(run, shape, dtype):
    """Shared among equals."""
    x = np.random.default_rng(0).integers(0, 9, shape).astype(dtype)
    grad, y = normal(shape[0], dtype=dtype), x.max(1)
    best = x == y[:, None]
    found = run(row_statistics.extremum_grad, shape, dtype, grad, y, x)
    np.testing.assert_allclose(found, best * (grad / best.sum(1))[:, None], rtol=1e-6)


def test_the_gradient_of_nan_is_nan(run):
    x = np.float32([[1, 2, 2], [1, np.nan, 3]])
    found = run(row_statistics.extremum_grad, x.shape, "f4", np.ones(2, "f4"), x.max(1), x, fill=7)
    assert found[0].tolist() == [0, 0.5, 0.5] and np.isnan(found[1]).all()


@pytest.mark.parametrize("shape", [*SHAPES, (2, 5001)])
@pytest.mark.parametrize("operation", ["max", "min"])
@dtypes
def test_places_of_extrema(run, shape, operation, dtype):
    """Of equals the first counts, and a NaN before all."""
    for x in (normal(*shape, dtype=dtype), np.random.default_rng(0).integers(0, 9, shape).astype(dtype)):
        for special in (None, np.nan, np.inf, -np.inf):
            if special is not None and x.size:
                x[-1, shape[1] // 2 :] = special
            found = run(row_statistics.arg_extremum, shape[0], np.int64, x, operation, fill=-1)
            np.testing.assert_array_equal(found, getattr(x, f"arg{operation}")(1))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("operation", ["max", "min"])
def test_the_place_in_a_row_of_one_value(run, value, operation):
    x = np.full((2, 300), value, np.float32)
    assert run(row_statistics.arg_extremum, 2, np.int64, x, operation, fill=-1).tolist() == [0, 0]


# ---- cumulative sums ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((7,), 0), ((3, 33), 1), ((2, 1200), 1), ((9, 300), 1), ((50, 64), 0), ((3, 40, 2), 1), ((0, 3), 0),
        ((3, 0), 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("reverse", [False, True])
@dtypes
def test_cumulative_sums(run, shape, dim, reverse, dtype):
    x = normal(*shape, dtype=dtype)
    wide = np.flip(x, dim) if reverse else x
    expected, size = (np.cumsum(a.astype(float), dim) for a in (wide, np.abs(wide)))
    found = run(cumsum.cumsum, shape, dtype, x, dim, reverse)
    found = np.flip(found, dim) if reverse else found
    assert (np.abs(found - expected) <= (shape[dim] + 1) * np.finfo(dtype).eps * size).all()


def test_cumulative_sums_keep_nan_behind_them(run):
    x = np.ones((2, 700), np.float32)
    x[1, 300] = np.nan
    found = run(cumsum.cumsum, x.shape, np.float32, x, 1, fill=7)
    assert np.isfinite(found[0]).all() and np.isfinite(found[1, :300]).all()
    assert np.isnan(found[1, 300:]).all()


# ---- all of them -------------------------------------------------------------------------------------------


@needs_simulator
def test_ops_give_what_the_cpu_gives():
    """Losses, variances, norms and extrema, with their first and second gradients."""
    F = mg.nn.functional
    target, classes = normal(6, 40, seed=1), np.random.default_rng(0).integers(0, 40, 6)
    classes[2] = -100
    pixels = np.random.default_rng(1).integers(0, 4, (2, 30))
    calls = [
        lambda x: F.mse_loss(x, mg.tensor(target, device=x.device)),
        lambda x: F.binary_cross_entropy_with_logits(x, mg.tensor(target, device=x.device), reduction="sum"),
        lambda x: F.cross_entropy(x, mg.tensor(classes, device=x.device)),
        lambda x: F.cross_entropy(x, mg.tensor(classes, device=x.device), reduction="sum"),
        lambda x: F.cross_entropy(
            x, mg.tensor(classes, device=x.device), x[0].detach().abs(), label_smoothing=0.1
        ),
        lambda x: F.cross_entropy(
            x.reshape(2, 4, 30), mg.tensor(pixels, device=x.device), x[0, :4].detach().abs()
        ),
        lambda x: x.var(1).sum() + x.var((0, 1)) + x.var(0, correction=0).sum(),
        lambda x: x.norm() + x.norm(dim=1).sum() + x.std(1).sum(),
        lambda x: (x.amax(1) ** 2).sum() + (x.amin() * 3) ** 2 + (x.amax(0) ** 2).sum(),
        lambda x: (x.cumsum(1) ** 2).sum() + (x.cumsum(0) ** 3).sum(),
    ]
    for call in calls:
        results = []
        for device in ("cpu", "sim"):
            x = mg.tensor(normal(6, 40), device=device, requires_grad=True)
            loss = call(x)
            (grad,) = mg.autograd.grad(loss, [x], create_graph=True)
            (second,) = mg.autograd.grad((grad * grad).sum(), [x])
            results.append([t.detach().numpy() for t in (loss, grad, second)])
        for found, expected in zip(*results[::-1], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@needs_simulator
def test_every_thread_order_gives_the_same_bits():
    x, y = normal(3, 700, dtype=np.float32), normal(3, 700, dtype=np.float32, seed=1)

    def results():
        outs = [np.empty(shape, np.float32) for shape in ((), 3, x.shape, x.shape)]
        loss.total(outs[0], x, y, "mse_loss", 1)
        row_statistics.squares(outs[1], x, 1, True)
        row_statistics.extremum_grad(outs[2], y[:, 0].copy(), x.max(1), x)
        cumsum.cumsum(outs[3], x, 1)
        places = np.empty(3, np.int64)
        row_statistics.arg_extremum(places, x, "max")
        return b"".join(out.tobytes() for out in (*outs, places))

    expected = results()
    for seed, workers in itertools.product((1, 12345), (1, 3)):
        with sim.seed(seed), sim.num_threads(workers):
            assert results() == expected
