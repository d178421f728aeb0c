"""Recurrent layers in 16 bits on a card, or simulated: all gradients, and a model trained under autocast."""

import copy

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn
from minigrad.kernels import cuda, sim
from minigrad.nn import functional as F

UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place of a number near 1: the largest relative error of one rounding."""


@pytest.fixture(params=["sim", "cuda"])
def card(request):
    if request.param == "sim" and not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    if request.param == "cuda" and not cuda.is_available():
        pytest.skip(cuda.why_unavailable())
    return request.param


@pytest.fixture(params=["float16", "bfloat16"])
def half(request):
    if request.param == "bfloat16":
        pytest.importorskip("ml_dtypes")
        return mg.bfloat16
    return mg.float16


@pytest.fixture
def widened(monkeypatch):
    """The shapes of what is converted from 16 bits to float32, as they come."""
    shapes, cast = [], cuda.cast.cast

    def noted(out, x):
        if out.dtype == np.float32:
            shapes.append(out.shape)
        cast(out, x)

    monkeypatch.setattr(cuda.cast, "cast", noted)
    return shapes


def drawn(device, *shape, seed=0, dtype=mg.float32):
    return mg.tensor(np.random.default_rng(seed).standard_normal(shape), dtype=dtype, device=device)


def numbers(tensor):
    return tensor.detach().cpu().double().numpy()


LAYERS = {
    "LSTM": (nn.LSTM, {}),
    "LSTM of two layers in both directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "LSTM without biases": (nn.LSTM, {"bias": False, "batch_first": True}),
    "GRU": (nn.GRU, {"num_layers": 2}),
    "GRU in both directions": (nn.GRU, {"bidirectional": True, "bias": False}),
    "RNN": (nn.RNN, {"num_layers": 2}),
    "RNN of ReLU in both directions": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_all_gradients_without_float32(card, half, widened, name):
    """Beside the same layer in float64, on the same rounded inputs and parameters."""
    make, options = LAYERS[name]
    mg.manual_seed(0)
    layer = make(7, 9, **options).to(card, half)
    exact = copy.deepcopy(layer).to("cpu", mg.float64)
    cells = layer.num_layers * (2 if layer.bidirectional else 1)
    given = [drawn(card, 5, 3, 7, dtype=half)]
    states = 2 if make is nn.LSTM else 1
    batch = 5 if layer.batch_first else 3
    given += [drawn(card, cells, batch, 9, seed=s, dtype=half) for s in range(1, states + 1)]
    given = [x.requires_grad_() for x in given]
    wide = [x.detach().cpu().double().requires_grad_() for x in given]
    del widened[:]

    def run(layer, x, *states):
        y, last = layer(x, states if len(states) > 1 else states[0])
        return y, *(last if isinstance(last, tuple) else (last,))

    outputs, expected = run(layer, *given), run(exact, *wide)
    sent = [drawn(card, *y.shape, seed=9 + i, dtype=half) for i, y in enumerate(outputs)]
    mg.autograd.backward(outputs, sent)
    mg.autograd.backward(expected, [g.cpu().double() for g in sent])
    assert not widened
    pairs = [*zip(outputs, expected, strict=True)]
    owners = [*given, *layer.parameters()], [*wide, *exact.parameters()]
    pairs += [(a.grad, b.grad) for a, b in zip(*owners, strict=True)]
    for found, right in pairs:
        assert found.dtype == half
        size = abs(numbers(right)).max()
        np.testing.assert_allclose(numbers(found), numbers(right), rtol=0, atol=16 * UNIT[half.name] * size)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(card, half, widened, cell):
    layer = cell(7, 9).to(card)
    x = drawn(card, 3, 7)
    with mg.autocast(card, half):
        found = layer(x)
    expected = layer(x)
    assert not widened
    pairs = zip(found, expected, strict=True) if cell is nn.LSTMCell else [(found, expected)]
    for state, right in pairs:
        assert state.dtype == half
        np.testing.assert_allclose(numbers(state), numbers(right), atol=8 * UNIT[half.name])


# ---- a model of characters ---------------------------------------------------------------------------------

CHARACTERS = 11


class CharModel(nn.Module):
    """Says of each character what the next one may be."""

    def __init__(self, kind):
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, 6)
        self.recurrent = kind(6, 9, batch_first=True)
        self.head = nn.Linear(9, CHARACTERS)

    def forward(self, x):
        return self.head(self.recurrent(self.embedding(x))[0])


def trained(kind, card, half, steps):
    """The losses of so many steps, of which all see the same text, and the model; under autocast or not."""
    mg.manual_seed(0)
    model = CharModel(kind).to(card)
    optimizer = mg.optim.Adam(model.parameters(), lr=0.03)
    scaler = mg.amp.GradScaler(init_scale=2.0**10, enabled=half == mg.float16)
    text = np.random.default_rng(0).integers(0, CHARACTERS, (3, 6))
    x, target = mg.tensor(text[:, :-1], device=card), mg.tensor(text[:, 1:].reshape(-1), device=card)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with mg.autocast(card, half, enabled=half is not None):
            loss = F.cross_entropy(model(x).reshape(-1, CHARACTERS), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() in (1.0, 2.0**10)  # no gradient overflowed
    return losses, model


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_step_converts_logits_and_gradients_of_parameters_alone(card, half, widened, kind):
    _, model = trained(kind, card, half, 1)
    of_embedding, *parameters = model.parameters()
    biases = [p for name, p in model.recurrent.named_parameters() if "bias_hh" in name and kind is not nn.GRU]
    # The LSTM and the plain layer add their two biases before they convert them. The embedding is none of a
    # product's factors: what it looked up is.
    expected = [p.shape for p in parameters if not any(p is b for b in biases)]
    expected += [(15, CHARACTERS), (3, 5, of_embedding.shape[1])]
    sequence = {(3, 5, 6): (5, 3, 6)}  # the layer's order of a batch
    assert sorted(sequence.get(s, s) for s in widened) == sorted(sequence.get(s, s) for s in expected)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_model_of_characters_trains_as_in_float32(card, half, kind):
    found, model = trained(kind, card, half, 12)
    expected, _ = trained(kind, card, None, 12)
    assert expected[-1] < 0.75 * expected[0]
    np.testing.assert_allclose(found, expected, atol=8 * UNIT[half.name] * expected[0])
    assert all(p.dtype == mg.float32 for p in model.parameters())
