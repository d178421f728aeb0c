"""Batch normalisation and dropout."""

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


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: F.batch_norm(mg.ones(3), None, None), r"2 dimensions.*\(3,\)"),
        (lambda: F.batch_norm(mg.ones(2, 3), mg.ones(2), mg.ones(3)), r"running_mean.*\(3,\).*\(2,\)"),
        (lambda: F.batch_norm(mg.ones(2, 3), None, None, mg.ones(4), training=True), r"weight.*\(4,\)"),
        (lambda: F.batch_norm(mg.ones(1, 3), None, None, training=True), r"more than one value.*\(1, 3\)"),
        (lambda: F.batch_norm(mg.ones(0, 3), None, None, training=True), "more than one value"),
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
