"""The CUDA kernels of reductions and layers, for 16-bit floats: computed in float32, and rounded once.

The oracle is NumPy in float64 on the rounded inputs. A result may be off by what the float32 kernels may be,
and by half a unit in its last place.
"""

import numpy as np
import pytest
from rounded import EPS, assert_rounded, normal

from minigrad.kernels.cuda import conv2d_depthwise as depthwise
from minigrad.kernels.cuda import conv2d_strips as strips
from minigrad.kernels.cuda import (
    cross_entropy,
    cumsum,
    embedding,
    pool2d,
    pool2d_rows,
    random,
    reduce,
    row_statistics,
    softmax,
)
from minigrad.kernels.cuda import pool2d_rolling as rolling
from minigrad.kernels.cuda import pool2d_vectorized as vectorized

SHAPES = [(3, 8), (3, 33), (2, 1000), (1, 33000), (0, 4), (4, 0)]


STEPS = 64  # additions that one number takes part in, at most: threads sum side by side, then as a tree


@pytest.mark.parametrize("kernel", [reduce.vectorized, reduce.split])
@pytest.mark.parametrize("shape", [(3, 8), (3, 1001), (2, 16385), (4, 0)])
def test_sums_of_rows(run, half, kernel, shape):
    x, wide = normal(half, *shape)
    error = STEPS * EPS * np.abs(wide).sum(1)
    assert_rounded(run(kernel, shape[0], half, x), wide.sum(1), error)


@pytest.mark.parametrize("shape", [(3, 70, 33), (1, 3000, 8), (2, 0, 4)])
def test_sums_of_columns(run, half, shape):
    x, wide = normal(half, *shape)
    error = STEPS * EPS * np.abs(wide).sum(1)
    assert_rounded(run(reduce.columns, (shape[0], shape[2]), half, x), wide.sum(1), error)


def test_sums_over_any_axes_are_rounded_once(run, half):
    x, wide = normal(half, 5, 3, 4, 7)
    assert_rounded(
        run(reduce.axes, (3, 7), half, x, (0, 2)), wide.sum((0, 2)), 30 * EPS * np.abs(wide).sum((0, 2))
    )


def test_a_sum_may_pass_the_largest_half_on_its_way(run, half):
    x = np.full((2, 4096), 60000, half)
    x[:, ::2] *= -1
    assert not run(reduce.split, 2, half, x).any()


def test_extrema(run, half):
    x, wide = normal(half, 3, 9000)
    x[1, 8000] = np.nan
    found = run(reduce.split, 3, half, x, "max").astype(np.float64)
    np.testing.assert_array_equal(found, [wide[0].max(), np.nan, wide[2].max()])
    np.testing.assert_array_equal(
        run(reduce.split, 3, half, x, "min")[::2].astype(np.float64), wide.min(1)[::2]
    )


# ---- what more than a sum takes ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8), (3, 33), (2, 2056), (1, 20001), (0, 4)])
def test_variances(run, half, shape):
    x, wide = normal(half, *shape)
    x, wide = x + half.type(3), (x + half.type(3)).astype(np.float64)
    variance = wide.var(1)
    # The mean is off by a few eps of its size, the squares are relative.
    found = run(row_statistics.squares, shape[0], half, x, shape[1], True)
    assert_rounded(found, variance, STEPS * EPS * (variance + (STEPS * EPS) * (wide**2).mean(1)))


@pytest.mark.parametrize("shape", [(3, 8), (9, 33), (2, 5001)])
def test_gradients_and_places_of_extrema(run, half, shape):
    """Shared among equals, of which the first is found."""
    x = np.random.default_rng(0).integers(0, 9, shape).astype(half)
    (grad, g), y = normal(half, shape[0]), x.max(1)
    best = x == y[:, None]
    found = run(row_statistics.extremum_grad, shape, half, grad, y, x)
    assert_rounded(found, best * (g / best.sum(1))[:, None], EPS * np.abs(g)[:, None])
    for operation in ("max", "min"):
        places = run(row_statistics.arg_extremum, shape[0], np.int64, x, operation, fill=-1)
        np.testing.assert_array_equal(places, getattr(x.astype(np.float32), f"arg{operation}")(1))


@pytest.mark.parametrize(("shape", "dim"), [((3, 33), 1), ((2, 1200), 1), ((50, 64), 0), ((3, 40, 2), 1)])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative_sums(run, half, shape, dim, reverse):
    x, wide = normal(half, *shape)
    expected, size = (np.flip(np.cumsum(np.flip(a, dim), dim), dim) if reverse else np.cumsum(a, dim)
                      for a in (wide, np.abs(wide)))  # fmt: skip
    found = run(cumsum.cumsum, shape, half, x, dim, reverse)
    assert_rounded(found, expected, (shape[dim] + 1) * EPS * size)


# ---- softmax ----------------------------------------------------------------------------------------------


def log_softmax(x):
    shifted = x - x.max(axis=1, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, initial=0.0 if x.size else 1.0))


@pytest.mark.parametrize("rung", ["vectorized", "registers"])
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_and_its_logarithm(run, half, rung, shape):
    x, wide = normal(half, *shape, scale=5)
    logs = log_softmax(wide)
    spread = np.ptp(wide, axis=1, keepdims=True) if shape[1] else 0
    relative = (8 + 2 * spread + STEPS) * EPS
    out = run(getattr(softmax, f"softmax_{rung}"), shape, half, x)
    assert_rounded(out, np.exp(logs), relative * np.exp(logs))
    out = run(getattr(softmax, f"log_softmax_{rung}"), shape, half, x)
    assert_rounded(out, logs, relative + EPS * np.abs(logs))


@pytest.mark.parametrize("rung", ["vectorized", "registers"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_softmax(run, half, rung, shape):
    exact_logs = log_softmax(normal(half, *shape)[1])
    y, logs = np.exp(exact_logs).astype(half), exact_logs.astype(half)
    grad, g = normal(half, *shape, seed=1)
    p, exp_logs = y.astype(np.float64), np.exp(logs.astype(np.float64))
    error = (4 + STEPS) * EPS * (np.abs(g).sum(axis=1, keepdims=True) + np.abs(g))
    out = run(getattr(softmax, f"softmax_grad_{rung}"), shape, half, grad, y)
    assert_rounded(out, p * (g - (g * p).sum(axis=1, keepdims=True)), error)
    out = run(getattr(softmax, f"log_softmax_grad_{rung}"), shape, half, grad, logs)
    assert_rounded(out, g - exp_logs * g.sum(axis=1, keepdims=True), error)


def test_rows_that_start_between_vectors_have_the_same_bits(run, half):
    flat, _ = normal(half, 3 * 1000 + 1)
    x = flat[:-1].reshape(3, 1000)
    shifted = np.concatenate([flat[:1], flat[:-1]])

    def moved(out, x):
        softmax.softmax_registers(out, x[1:].reshape(3, 1000))

    assert (
        run(softmax.softmax_registers, x.shape, half, x).tobytes()
        == run(moved, x.shape, half, shifted).tobytes()
    )


def test_softmax_of_special_values(run, half):
    x = np.zeros((4, 40), half)
    x[0, :-2], x[1, 2], x[2, 3], x[3] = -np.inf, np.nan, np.inf, -np.inf
    for rung in ("vectorized", "registers"):
        out = run(getattr(softmax, f"softmax_{rung}"), x.shape, half, x, fill=77).astype(np.float64)
        assert not out[0, :-2].any() and (out[0, -2:] == 0.5).all() and np.isnan(out[1:]).all()


@pytest.mark.parametrize("shape", [(3, 8), (4, 33), (3, 1000)])
def test_cross_entropy(run, half, shape):
    """The loss and the gradient that comes for it are float32."""
    x, wide = normal(half, *shape, scale=3)
    target = np.arange(shape[0]) * 5 % shape[1]
    target[1] = -100
    kept, logs = target != -100, log_softmax(wide)
    expected = np.where(kept, -logs[np.arange(shape[0]), target.clip(0)], 0)
    found = run(cross_entropy.cross_entropy_vectorized, shape[0], np.float32, x, target, -100)
    error = (30 + STEPS) * EPS
    assert (np.abs(found - expected) <= error * (1 + np.abs(wide).max())).all()
    g = np.random.default_rng(2).standard_normal(shape[0]).astype(np.float32)
    onehot = np.arange(shape[1]) == target[:, None]
    expected = np.where(kept, g, 0)[:, None].astype(np.float64) * (np.exp(logs) - onehot)
    for rung in ("vectorized", "registers"):
        kernel = getattr(cross_entropy, f"cross_entropy_grad_{rung}")
        assert_rounded(
            run(kernel, shape, half, g, x, target, -100), expected, error * np.abs(expected) + error * 3
        )


# ---- pooling: the naive rung in float64 is the definition --------------------------------------------------

# (rung, (N, C, H, W), kernel, stride, padding)
POOLINGS = [
    ("", (2, 3, 7, 5), (3, 2), (2, 1), (1, 1)),
    ("_tiled", (1, 1, 20, 37), (5, 3), (2, 2), (2, 1)),
    ("_rolling", (2, 1, 18, 16), (3, 3), (1, 1), (1, 1)),
    ("_rolling", (1, 2, 20, 32), (3, 3), (2, 2), (1, 1)),
    ("_vectorized", (2, 3, 6, 16), (2, 2), (2, 2), (0, 0)),
]


POOL2D = {**vars(rolling), **vars(vectorized), **vars(pool2d_rows), **vars(pool2d)}


def pooled_shape(shape, kernel, stride, padding):
    sizes = zip(shape[2:], kernel, stride, padding, strict=True)
    return (*shape[:2], *((n + 2 * p - k) // s + 1 for n, k, s, p in sizes))


@pytest.mark.parametrize(("rung", "shape", "kernel", "stride", "padding"), POOLINGS)
def test_pooling(run, backend, half, rung, shape, kernel, stride, padding):
    x, _ = normal(half, *shape)
    x.flat[shape[-1] + 2] = np.nan
    wide = x.astype(np.float64)
    out_shape, window = pooled_shape(shape, kernel, stride, padding), (*kernel, *stride, *padding)

    def largest(name, x):
        taps = backend.put(np.zeros(out_shape, np.uint8))
        found = run(lambda out, x: POOL2D[name](out, taps, x, *window, 1, 1), out_shape, x.dtype, x)
        return found.astype(np.float64), backend.get(taps)

    for found, expected in zip(largest(f"max_pool2d{rung}", x), largest("max_pool2d", wide), strict=True):
        np.testing.assert_array_equal(found, expected)
    expected = run(pool2d.avg_pool2d, out_shape, np.float64, wide, *window, 1, None)
    found = run(POOL2D[f"avg_pool2d{rung}"], out_shape, half, x, *window, 1, None)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found.astype(np.float32)), ~known)
    assert_rounded(found[known], expected[known], 16 * EPS * np.nanmax(np.abs(wide)))


GRADIENTS = [
    ("", (2, 3, 7, 5), (3, 2), (2, 1), (1, 1)),
    ("_rows", (2, 3, 7, 5), (3, 2), (2, 1), (1, 1)),
    ("_rows", (2, 1, 9, 11), (3, 3), (1, 1), (1, 1)),  # of windows that have kernels of their own
    ("_rows", (1, 2, 10, 8), (3, 3), (2, 2), (0, 0)),
    ("_scatter", (2, 1, 10, 11), (3, 2), (3, 4), (1, 1)),
    ("_vectorized", (2, 3, 6, 16), (2, 2), (2, 2), (0, 0)),
]


@pytest.mark.parametrize(("rung", "shape", "kernel", "stride", "padding"), GRADIENTS)
def test_gradients_of_pooling(run, half, rung, shape, kernel, stride, padding):
    out_shape, window = pooled_shape(shape, kernel, stride, padding), (*kernel, *stride, *padding)
    g, wide = normal(half, *out_shape)
    taps = np.random.default_rng(1).integers(0, kernel[0] * kernel[1], out_shape).astype(np.uint8)
    expected = run(pool2d.max_pool2d_input_grad, shape, np.float64, wide, taps, *window, 1, 1)
    found = run(POOL2D[f"max_pool2d_input_grad{rung}"], shape, half, g, taps, *window, 1, 1)
    assert_rounded(found, expected, 9 * EPS * np.abs(wide).max())
    if rung != "_scatter":
        expected = run(pool2d.avg_pool2d_input_grad, shape, np.float64, wide, *window, 1, None)
        found = run(POOL2D[f"avg_pool2d_input_grad{rung}"], shape, half, g, *window, 1, None)
        assert_rounded(found, expected, 9 * EPS * np.abs(wide).max())


def test_adaptive_pooling(run, half):
    x, wide = normal(half, 2, 3, 7, 5)
    expected = run(pool2d.adaptive_avg_pool2d, (2, 3, 3, 2), np.float64, wide)
    assert_rounded(run(pool2d.adaptive_avg_pool2d, (2, 3, 3, 2), half, x), expected, 9 * EPS * 4)
    expected = run(pool2d.adaptive_avg_pool2d_input_grad, (2, 3, 9, 7), np.float64, wide)
    assert_rounded(run(pool2d.adaptive_avg_pool2d_input_grad, (2, 3, 9, 7), half, x), expected, 9 * EPS * 4)
    expected = wide.mean((2, 3), keepdims=True)
    assert_rounded(run(pool2d.adaptive_avg_pool2d_planes, (2, 3, 1, 1), half, x), expected, 35 * EPS * 4)
    grad, expected = x[..., :1, :1].copy(), np.broadcast_to(wide[..., :1, :1] / 63, (2, 3, 9, 7))
    actual = run(pool2d.adaptive_avg_pool2d_input_grad_planes, (2, 3, 9, 7), half, grad)
    assert_rounded(actual, expected, EPS)


# ---- depthwise convolution: float64 is the definition -----------------------------------------------------


@pytest.mark.parametrize(
    ("rung", "kernel"),
    [(strips, (3, 3)), (strips, (5, 5)), (depthwise, (7, 7)), (depthwise, (4, 3))],
    ids=["strips of 3", "strips of 5", "depthwise 7x7", "depthwise 4x3"],
)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("N", [2, 17])
def test_depthwise_convolution(run, half, monkeypatch, rung, kernel, stride, N):
    """17 images are of two parts, whose sums of the weight's gradient are float32; 12 columns are vectors."""
    monkeypatch.setattr(rung, "PART", 64)
    padding, size = kernel[0] // 2, (9, 11 if N == 2 else 12)
    out = [(n + 2 * padding - k) // stride + 1 for n, k in zip(size, kernel, strict=True)]
    shapes = (N, 2, *size), (4, 1, *kernel), (4,), (N, 4, *out)
    (x, w, b, g), wide = zip(*(normal(half, *s, seed=i) for i, s in enumerate(shapes)), strict=True)
    options, taps = (stride, stride, padding, padding, 1, 1, 2), kernel[0] * kernel[1]

    def check(run_pass, shape, length, *pairs):
        expected = run(run_pass, shape, np.float64, *(wide for _, wide in pairs), *options)
        sizes = run(run_pass, shape, np.float64, *(np.abs(wide) for _, wide in pairs), *options)
        found = run(run_pass, shape, half, *(narrow for narrow, _ in pairs), *options)
        assert_rounded(found, expected, length * EPS * np.abs(sizes))

    x, w, b, g = zip((x, w, b, g), wide, strict=True)
    check(rung.forward, shapes[3], taps + 1, x, w, b)
    check(rung.input_grad, shapes[0], 2 * taps, g, w)
    check(rung.weight_grad, shapes[1], STEPS + N, g, x)


# ---- embedding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (4, 64)])
def test_embedding(run, half, shape):
    weight, _ = normal(half, *shape)
    indices = np.array([1, shape[0] - 1, -1, 0, 1])
    expected = weight.astype(np.float32)[indices]
    expected[2] = np.nan
    for kernel in (embedding.gather_naive, embedding.gather_vector):
        found = run(kernel, (5, shape[1]), half, weight, indices).astype(np.float32)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("rows", "columns", "n"), [(3, 5, 40), (2, 64, 300)])
def test_gradient_of_embedding(run, half, rows, columns, n):
    """What is summed first, of a long segment or of a chunk, is float32."""
    g, wide = normal(half, n, columns)
    indices = np.random.default_rng(1).integers(0, rows, n)
    expected, magnitude = np.zeros((rows, columns)), np.zeros((rows, columns))
    np.add.at(expected, indices, wide)
    np.add.at(magnitude, indices, np.abs(wide))
    for kernel in (embedding.sum_split, embedding.sum_found):
        found = run(kernel, (rows, columns), half, g, indices)
        assert_rounded(found, expected, STEPS * EPS * magnitude)


# ---- dropout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1])
def test_dropout(run, half, shift):
    """What float32 makes of the same numbers, rounded: the scale is not of 16 bits."""
    x, _ = normal(half, 1031)

    def kernel(out, x):
        random.dropout_block(out[shift:], x[shift:], 1 << 30, 4 / 3, 5, 7)

    expected = run(kernel, x.shape, np.float32, x.astype(np.float32), fill=1).astype(half)
    found = run(kernel, x.shape, half, x, fill=1)
    np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))
    assert 150 < (found == 0).sum() < 400
