"""Normalisation, one mean at a time, and dropout."""

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5)])
def test_batch_norm_in_training(shape, rng, check_gradients):
    x, weight, bias = rng.standard_normal(shape) * 3 + 1, rng.standard_normal(3), rng.standard_normal(3)
    mean, var = rng.standard_normal(3), rng.uniform(0.5, 2, 3)
    running = mg.tensor(mean), mg.tensor(var)
    y = F.batch_norm(mg.tensor(x), *running, mg.tensor(weight), mg.tensor(bias), training=True, momentum=0.3)
    for c in range(3):
        values = x[:, c]
        normal = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
        np.testing.assert_allclose(y.numpy()[:, c], normal * weight[c] + bias[c], rtol=1e-10, atol=1e-10)
        assert running[0].numpy()[c] == pytest.approx(0.7 * mean[c] + 0.3 * values.mean())
        assert running[1].numpy()[c] == pytest.approx(0.7 * var[c] + 0.3 * values.var(ddof=1))
    check_gradients(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), x[:2], weight, bias)


def test_batch_norm_in_evaluation(rng, check_gradients):
    x, mean, var = rng.standard_normal((4, 3, 2)), rng.standard_normal(3), rng.uniform(0.5, 2, 3)
    running = mg.tensor(mean), mg.tensor(var)
    y = F.batch_norm(mg.tensor(x), *running)
    wanted = (x - mean[:, None]) / np.sqrt(var[:, None] + 1e-5)
    np.testing.assert_allclose(y.numpy(), wanted, rtol=1e-12)
    assert running[0].tolist() == mean.tolist() and running[1].tolist() == var.tolist()
    check_gradients(lambda x, w, b: F.batch_norm(x, *running, w, b), x, (3,), (3,))


def normalized(values, eps=1e-5):
    return (values - values.mean()) / np.sqrt(values.var() + eps)


@pytest.mark.parametrize(("shape", "dims"), [((4, 6), 1), ((6,), 1), ((2, 3, 4, 5), 2), ((3, 1, 4), 3)])
def test_layer_norm(shape, dims, rng, check_gradients):
    x, own = rng.standard_normal(shape) * 3 + 1, shape[-dims:]
    weight, bias = rng.standard_normal(own), rng.standard_normal(own)
    y = F.layer_norm(mg.tensor(x), own, mg.tensor(weight), mg.tensor(bias)).numpy()
    plain = F.layer_norm(mg.tensor(x), own, eps=0.5).numpy()
    for row in np.ndindex(shape[:-dims]):
        np.testing.assert_allclose(y[row], normalized(x[row]) * weight + bias, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(plain[row], normalized(x[row], 0.5), rtol=1e-10, atol=1e-10)
    check_gradients(lambda x, w, b: F.layer_norm(x, own, w, b), x, weight, bias)


@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 6), 3), ((2, 4, 5), 2), ((2, 4, 3, 2), 4), ((3, 4, 2), 1)]
)
def test_group_norm(shape, groups, rng, check_gradients):
    x, channels = rng.standard_normal(shape) * 3 + 1, shape[1]
    weight, bias = rng.standard_normal(channels), rng.standard_normal(channels)
    y = F.group_norm(mg.tensor(x), groups, mg.tensor(weight), mg.tensor(bias)).numpy()
    plain = F.group_norm(mg.tensor(x), groups, eps=0.5).numpy()
    column = (-1,) + (1,) * (len(shape) - 2)
    for n, group in np.ndindex(shape[0], groups):
        own = slice(group * channels // groups, (group + 1) * channels // groups)
        expected = normalized(x[n, own]) * weight[own].reshape(column) + bias[own].reshape(column)
        np.testing.assert_allclose(y[n, own], expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(plain[n, own], normalized(x[n, own], 0.5), rtol=1e-10, atol=1e-10)
    check_gradients(lambda x, w, b: F.group_norm(x, groups, w, b), x[:2], weight, bias)


@pytest.mark.parametrize(
    "norm",
    [
        lambda x, *parameters: F.group_norm(x, 1, *parameters),
        lambda x, *parameters: F.instance_norm(x, None, None, *parameters),
        lambda x, *parameters: F.batch_norm(x, None, None, *parameters, training=True),
    ],
    ids=["group_norm", "instance_norm", "batch_norm"],
)
@pytest.mark.parametrize("dtype", [mg.float32, mg.float16])
def test_no_channels(norm, dtype, device):
    x = mg.ones(2, 0, 3, device=device, dtype=dtype, requires_grad=True)
    parameters = [mg.ones(0, device=device, dtype=dtype, requires_grad=True) for _ in range(2)]
    for given in ((), parameters):
        norm(x, *given).sum().backward()
        assert norm(x, *given).shape == x.grad.shape == (2, 0, 3)
    assert all(p.grad.shape == (0,) for p in parameters)


NORMS = {
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "group_norm": lambda x: F.group_norm(x, 2),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_large_offset_costs_no_more_digits_than_the_input_lost(name, device, rng):
    """A mean of 1e4 costs an input in float32 four digits; E[x^2] - E[x]^2 would lose all."""
    noise = rng.standard_normal((5, 4, 33))
    x = (noise + 1e4).astype(np.float32)
    found = device.to_numpy(NORMS[name](mg.tensor(x, device=device))._array)
    expected = NORMS[name](mg.tensor(x.astype(np.float64))).numpy()
    # The mean is rounded to its own place: by a few times 1e4 eps, in units of a deviation of about 1.
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=8e4 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("name", NORMS)
def test_nan_stays_where_its_statistics_reach(name, device):
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    x[1, 2, 3] = np.nan
    y = device.to_numpy(NORMS[name](mg.tensor(x, device=device))._array)
    reached = {"layer_norm": np.s_[1], "group_norm": np.s_[1, 2:], "batch_norm": np.s_[:, 2]}[name]
    expected = np.zeros(x.shape, bool)
    expected[reached] = True
    assert np.array_equal(np.isnan(y), expected)


def test_running_variance_of_a_constant_channel_is_not_negative():
    mean, var = mg.zeros(2), mg.zeros(2)
    F.batch_norm(mg.full((50, 2), 3.7), mean, var, training=True, momentum=1.0)
    assert mean.tolist() == pytest.approx([3.7, 3.7]) and all(0 <= v < 1e-10 for v in var.tolist())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: F.batch_norm(mg.ones(3), None, None), r"2 dimensions.*\(3,\)"),
        (lambda: F.batch_norm(mg.ones(2, 3), mg.ones(2), mg.ones(3)), r"running_mean.*\(3,\).*\(2,\)"),
        (lambda: F.batch_norm(mg.ones(2, 3), None, None, mg.ones(4), training=True), r"weight.*\(4,\)"),
        (lambda: F.batch_norm(mg.ones(1, 3), None, None, training=True), r"more than one value.*\(1, 3\)"),
        (lambda: F.batch_norm(mg.ones(0, 3), None, None, training=True), "more than one value"),
        (lambda: F.layer_norm(mg.ones(2, 3), (2,)), r"layer_norm.*\(2,\).*\(2, 3\)"),
        (lambda: F.layer_norm(mg.ones(2, 3), ()), r"layer_norm.*not empty"),
        (lambda: F.layer_norm(mg.ones(2, 3), (3,), mg.ones(2)), r"weight.*\(3,\).*\(2,\)"),
        (lambda: F.group_norm(mg.ones(3), 1), r"group_norm.*2 dimensions.*\(3,\)"),
        (lambda: F.group_norm(mg.ones(2, 6), 4), r"num_groups must be an integer that divides.*6; got 4"),
        (lambda: F.group_norm(mg.ones(2, 6), 2.0), r"num_groups must be an integer.*got 2\.0"),
        (lambda: F.group_norm(mg.ones(2, 6), 0), "num_groups.*got 0"),
        (lambda: F.group_norm(mg.ones(2, 6), 2, None, mg.ones(2)), r"bias.*\(6,\).*\(2,\)"),
        (lambda: F.dropout(mg.ones(2), 1.5), r"1\.5"),
        (lambda: F.dropout(mg.ones(2), float("nan")), "nan"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_dropout_scales_what_it_keeps(device):
    x = mg.ones(200, 100, device=device)
    y = F.dropout(x, 0.25)
    values = device.to_numpy(y._array)
    assert y.device is device and set(np.unique(values)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((values == 0).mean() - 0.25) < 0.02  # six standard deviations


def test_dropout_outside_training_and_at_the_ends():
    x = mg.ones(3)
    assert F.dropout(x, 0.5, training=False) is x and F.dropout(x, 0.0) is x
    assert F.dropout(x, 1.0).tolist() == [0.0, 0.0, 0.0]


def test_dropout_repeats_with_the_seed_and_only_then():
    x = mg.ones(1000)
    mg.manual_seed(5)
    first, second = F.dropout(x).tolist(), F.dropout(x).tolist()
    mg.manual_seed(5)
    assert F.dropout(x).tolist() == first != second


def test_the_gradient_of_dropout_passes_what_was_kept():
    x = mg.ones(100, requires_grad=True)
    y = F.dropout(x, 0.5)
    y.sum().backward()
    assert x.grad.tolist() == y.tolist()
