"""Random tensors, generators and dropout: the same numbers on every device, and from every state again."""

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F
from minigrad import nn
from minigrad.random import default_generator

DRAWS = {
    "rand": lambda device: mg.rand(3, 7, device=device),
    "rand_float64": lambda device: mg.rand(21, dtype=mg.float64, device=device),
    "rand_float16": lambda device: mg.rand(21, dtype=mg.float16, device=device),
    "uniform_": lambda device: mg.empty(5, 3, device=device).uniform_(-2.0, 3.0),
    "randint": lambda device: mg.randint(0, 10, (9,), device=device),
    "randperm": lambda device: mg.randperm(9, device=device),
    "bernoulli": lambda device: mg.bernoulli(mg.full((4, 5), 0.3, device=device)),
    "bernoulli_": lambda device: mg.empty(33, device=device).bernoulli_(0.7),
    "dropout": lambda device: F.dropout(mg.ones(5, 7, device=device), 0.3),
    "dropout_float64": lambda device: F.dropout(mg.ones(35, dtype=mg.float64, device=device), 0.3),
    "dropout2d": lambda device: F.dropout2d(mg.ones(5, 4, 2, 3, device=device)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_same_seed_gives_the_same_bits_on_every_device(name, device):
    mg.manual_seed(11)
    expected = [DRAWS[name]("cpu").numpy() for _ in range(2)]
    mg.manual_seed(11)
    for wanted in expected:
        found = DRAWS[name](device)
        assert found.device is device
        assert np.array_equal(device.to_numpy(found._array), wanted)
    assert not np.array_equal(*expected)


@pytest.mark.parametrize("dtype", [mg.float32, mg.float64])
def test_normal_numbers_are_the_same_to_within_rounding(dtype, device):
    drawn = []
    for where in ("cpu", device):
        mg.manual_seed(11)
        drawn.append(mg.randn(1001, dtype=dtype, device=where).cpu().numpy())
    # No radius is larger than 9; 16 roundings of it: see the tests of the kernels.
    assert np.abs(drawn[1] - drawn[0]).max() <= 2 * 16 * 9 * np.finfo(dtype).eps


def test_a_state_continues_all_that_is_drawn():
    x = mg.ones(50)
    F.dropout(x), mg.randperm(5)
    state = mg.random.default_generator.get_state()

    def draw():
        return [F.dropout(x).tolist(), mg.rand(3).tolist(), mg.randperm(20).tolist(), mg.randn(3).tolist()]

    expected = draw()
    assert draw() != expected
    default_generator.set_state(state)
    assert draw() == expected


def test_a_state_from_before_anything_was_drawn():
    default_generator.manual_seed(7)
    state = default_generator.get_state()
    expected = mg.randperm(20).tolist(), mg.rand(3).tolist()
    mg.manual_seed(8)
    default_generator.set_state(state)
    assert (mg.randperm(20).tolist(), mg.rand(3).tolist()) == expected


def test_every_draw_has_a_stream_of_its_own():
    generator = mg.Generator(3)
    assert [generator.next_stream() for _ in range(3)] == [(3, 0), (3, 1), (3, 2)]
    assert mg.Generator().next_stream() != mg.Generator().next_stream()


# ---- dropout ----------------------------------------------------------------------------------------------


def test_dropout_in_a_graph_runs_the_same_mask_backwards(device):
    x = mg.ones(20, 30, device=device, requires_grad=True)
    y = F.dropout(x, 0.4) * 3.0
    mg.rand(5)  # what is drawn later does not matter
    y.sum().backward()
    assert np.array_equal(device.to_numpy(x.grad._array), device.to_numpy(y.detach()._array))


def test_gradients_of_dropout(check_gradients, rng):
    dropout = mg.get_op("dropout")
    check_gradients(lambda x: dropout(x * x, p=0.3, seed=5, offset=1), (4, 6))


def test_dropout_of_a_view_drops_by_position():
    x = mg.arange(12.0).reshape(3, 4) + 1.0
    mg.manual_seed(1)
    straight = F.dropout(x.T.contiguous()).numpy()
    mg.manual_seed(1)
    assert np.array_equal(F.dropout(x.T).numpy(), straight)


def test_dropout_shows_what_is_not_finite():
    x = mg.full((1000,), mg.inf)
    y = F.dropout(x).numpy()
    assert np.isnan(y).any() and np.isinf(y).any() and not np.isfinite(y).any()


@pytest.mark.parametrize("shape", [(40, 50, 3, 2), (40, 50, 4)])
def test_dropout2d_drops_whole_channels(shape, device):
    x = mg.ones(*shape, device=device, requires_grad=True)
    y = nn.Dropout2d(0.25)(x)
    values = device.to_numpy(y.detach()._array).reshape(2000, -1)
    assert (values == values[:, :1]).all() and set(np.unique(values)) == {0, np.float32(1 / 0.75)}
    assert abs((values[:, 0] == 0).mean() - 0.25) < 6 * np.sqrt(0.25 * 0.75 / 2000)
    y.sum().backward()
    assert np.array_equal(device.to_numpy(x.grad._array).reshape(2000, -1), values)


def test_dropout2d_at_the_ends():
    x, layer = mg.ones(2, 3, 4, 4), nn.Dropout2d(0.5)
    assert layer.eval()(x) is x and F.dropout2d(x, 0.0) is x
    assert not F.dropout2d(x, 1.0).numpy().any()
    assert F.dropout2d(mg.ones(0, 3, 2, 2)).shape == (0, 3, 2, 2)
    assert repr(layer) == "Dropout2d(p=0.5, inplace=False)"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: F.dropout2d(mg.ones(2, 3)), ValueError, r"dropout2d: expected \(N, C, H, W\).*\(2, 3\)"),
        (lambda: F.dropout2d(mg.ones(1, 2, 3), -0.1), ValueError, r"dropout2d: .*probability.*-0.1"),
        (lambda: F.dropout(mg.ones(2, dtype=mg.int64)), TypeError, "dropout: .*floating dtype, got int64"),
        (lambda: nn.Dropout2d(2.0), ValueError, "Dropout2d: p must be a probability"),
        (lambda: mg.rand(2, dtype=mg.int32), TypeError, "random numbers are floating"),
        (lambda: mg.Generator(-1), ValueError, r"seed must be an integer in \[0, 2\^63\), got -1"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_bernoulli():
    p = mg.broadcast_to(mg.tensor([0.0, 1.0, 0.25]), (3000, 3))
    drawn = mg.bernoulli(p)
    assert drawn.dtype == mg.float32 and set(np.unique(drawn.numpy())) == {0, 1}
    assert drawn[:, 0].sum().item() == 0 and drawn[:, 1].sum().item() == 3000
    assert abs(drawn[:, 2].mean().item() - 0.25) < 6 * np.sqrt(0.25 * 0.75 / 3000)
