"""A recurrent layer over an embedding multiplies each row of the table once, and nobody can tell."""

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn
from minigrad.nn import functional as F
from minigrad.ops import repeated_rows as module
from minigrad.ops.repeated_rows import repeated_rows

WORDS, T, N, E, H = 5, 6, 4, 3, 2


@pytest.fixture(autouse=True)
def however_small(monkeypatch):
    monkeypatch.setattr(module, "LEAST_WORK", 1)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def table(rng, dtype=np.float64):
    return mg.tensor(rng.standard_normal((WORDS, E)).astype(dtype), requires_grad=True)


def indices(rng):
    return mg.tensor(rng.integers(0, WORDS, (T, N)))


@pytest.mark.parametrize("step", [1, 2, 20])
def test_numbers_tell_equal_rows_apart(rng, step):
    """Of a table with few rows, of one with gaps, and of one with more than there are places."""
    weight = mg.tensor(rng.standard_normal((step * WORDS, E)), requires_grad=True)
    x = F.embedding(numbers := step * indices(rng), weight)
    for rows, wanted in ((x, numbers), (x.transpose(0, 1), numbers.T)):
        found = repeated_rows(rows, 4 * H).numpy().ravel()
        assert found.shape == (T * N,)
        same = wanted.numpy().ravel()
        np.testing.assert_array_equal(found[:, None] == found, same[:, None] == same)
        assert set(found) == set(range(len(set(same))))


def test_rows_that_are_not_known_to_repeat(rng, monkeypatch):
    weight, numbers = table(rng), indices(rng)
    x = F.embedding(numbers, weight)
    assert repeated_rows(x.clone(), 4 * H) is None
    assert repeated_rows(x.transpose(1, 2), 4 * H) is None
    assert repeated_rows(weight, 4 * H) is None
    assert repeated_rows(F.embedding(numbers, table(rng, np.float16)), 4 * H) is None
    assert repeated_rows(F.embedding(mg.arange(WORDS), weight), 4 * H) is None  # each once
    assert repeated_rows(F.embedding(numbers[:0], weight), 4 * H) is None
    with mg.no_grad():
        assert repeated_rows(F.embedding(numbers, weight), 4 * H) is None
    with mg.autocast("cpu", mg.float16):
        assert repeated_rows(x, 4 * H) is None
    with mg.use_kernel("matmul", "naive"):
        assert repeated_rows(x, 4 * H) is None
    assert repeated_rows(x, 4 * H) is not None
    monkeypatch.setattr(module, "LEAST_WORK", T * N * 4 * H + 1)
    assert repeated_rows(x, 4 * H) is None


def test_rows_changed_since_the_lookup_are_compared(rng):
    numbers = mg.tensor(np.zeros((T, N), np.int64))

    def changed(change):
        x = F.embedding(numbers, table(rng))
        view = x.transpose(0, 1)
        assert repeated_rows(view, 4 * H) is not None
        with mg.no_grad():
            change(x)
        return [repeated_rows(rows, 4 * H) for rows in (x, view, x.transpose(0, 1))]

    assert changed(lambda x: x.mul_(mg.randn(T, N, 1))) == [None] * 3
    assert changed(lambda x: x.detach()[0].zero_()) == [None] * 3
    assert changed(lambda x: x.detach().numpy().__setitem__((0, 0), 9.0)) == [None] * 3
    numbers = indices(rng)
    x = F.embedding(numbers, table(rng))
    numbers.zero_()
    assert repeated_rows(x, 4 * H) is None


def results(layer, numbers, weight, options, plain, use):
    """The outputs and all gradients; ``plain`` looks up in a way that hides the repetitions."""
    for parameter in (weight, *layer.parameters()):
        parameter.grad = None
    x = F.embedding(numbers, weight, **options)
    extra = use(x)
    assert repeated_rows(x, 4 * H) is not None
    y, _ = layer(x.clone() if plain else x)
    ((y * y).sum() + (extra if extra is not None else 0)).backward()
    seen = [] if x.grad is None else [x.grad]
    return [y.detach(), *seen, *(p.grad for p in (weight, *layer.parameters()))]


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}])
@pytest.mark.parametrize(
    "use",
    [lambda x: None, lambda x: (x * x * x).sum(), lambda x: x.retain_grad()],
    ids=["alone", "used twice", "retained"],
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "layout", [{}, {"batch_first": True}, {"bidirectional": True}, {"bias": False}], ids=str
)
def test_layers_give_what_they_give_without(rng, options, use, kind, layout):
    mg.manual_seed(1)
    layer = kind(E, H, dtype=mg.float64, **layout)
    weight, numbers = table(rng), indices(rng)
    found, wanted = (results(layer, numbers, weight, options, plain, use) for plain in (False, True))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_hooks_and_targets_see_the_gradient_of_each_row(rng, kind):
    mg.manual_seed(1)
    layer, weight, numbers = kind(E, H, batch_first=True, dtype=mg.float64), table(rng), indices(rng)

    def gradients(plain):
        x = F.embedding(numbers, weight)
        turned = x.transpose(0, 1)
        y = layer(x.clone() if plain else x)[0].sum() + layer(turned.clone() if plain else turned)[0].sum()
        targets = mg.autograd.grad(y, [x, turned, weight], retain_graph=True)
        seen = []
        turned.register_hook(seen.append)
        x.register_hook(seen.append)
        y.backward()
        return [*targets, *seen]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_second_order(rng, kind):
    mg.manual_seed(1)
    layer, weight, numbers = kind(E, H, dtype=mg.float64), table(rng), indices(rng)

    def gradients(plain):
        x = F.embedding(numbers, weight)
        y = layer(x.clone() if plain else x)[0]
        first = mg.autograd.grad((y * y).sum(), [weight, *layer.parameters()], create_graph=True)
        total = sum(((g * g).sum() for g in first), mg.tensor(0.0, dtype=mg.float64))
        return [*first, *mg.autograd.grad(total, [weight, *layer.parameters()])]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_thread_count_gives_same_bits(rng, threads):
    mg.manual_seed(1)
    layer, weight, numbers = nn.LSTM(E, H), table(rng, np.float32), indices(rng)
    with mg.num_threads(threads):
        first, again = (results(layer, numbers, weight, {}, False, lambda x: None) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
