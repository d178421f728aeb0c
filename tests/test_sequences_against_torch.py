"""Recurrent layers and transformers against PyTorch, where it is installed."""

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn as nn

torch = pytest.importorskip("torch")


def twins(make):
    """``make(nn)`` here and in PyTorch, in float64, with the same weights."""
    mine, theirs = make(nn).double(), make(torch.nn).double()
    assert list(mine.state_dict()) == list(theirs.state_dict())
    mine.load_state_dict({k: mg.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    return mine, theirs


def assert_same(mine, theirs, name=""):
    np.testing.assert_allclose(
        mine.detach().numpy(), theirs.detach().numpy(), rtol=1e-9, atol=1e-11, err_msg=name
    )


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


RECURRENT = [
    lambda m: m.LSTM(3, 5),
    lambda m: m.LSTM(3, 5, num_layers=2, bias=False),
    lambda m: m.LSTM(3, 5, 2, bidirectional=True),
    lambda m: m.LSTM(3, 5, batch_first=True, bidirectional=True),
    lambda m: m.LSTM(3, 17, 3, dropout=0.5).eval(),
    lambda m: m.GRU(3, 5),
    lambda m: m.GRU(3, 4, 2, bias=False, batch_first=True, bidirectional=True),
    lambda m: m.RNN(3, 5, 2, nonlinearity="relu"),
    lambda m: m.RNN(3, 4, bidirectional=True, bias=False),
]


@pytest.mark.parametrize("make", RECURRENT)
@pytest.mark.parametrize("shape", [(6, 4, 3), (1, 1, 3), (6, 3)], ids=str)
@pytest.mark.parametrize("with_state", [False, True])
def test_layers(make, shape, with_state):
    mine, theirs = twins(make)
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    cells = mine.num_layers * (2 if mine.bidirectional else 1)
    batch = () if len(shape) == 2 else (shape[0 if mine.batch_first else 1],)
    arrays = [random(shape), *(random((cells, *batch, mine.hidden_size), seed) for seed in (1, 2))]
    results = []
    for net, tensor in ((mine, mg.tensor), (theirs, torch.tensor)):
        inputs = [tensor(a, requires_grad=True) for a in arrays]
        state = tuple(inputs[1:]) if isinstance(mine, nn.LSTM) else inputs[1]
        y, last = net(inputs[0], state) if with_state else net(inputs[0])
        outputs = [y, *(last if isinstance(mine, nn.LSTM) else (last,))]
        sum((part * tensor(random(tuple(part.shape), 3))).sum() for part in outputs).backward()
        used = inputs[: len(outputs)] if with_state else inputs[:1]
        results.append([*outputs, *(x.grad for x in used), *(p.grad for p in net.parameters())])
    for one, other in zip(*results, strict=True):
        assert_same(one, other)


CELLS = [
    lambda m: m.LSTMCell(3, 5),
    lambda m: m.LSTMCell(3, 17, bias=False),
    lambda m: m.GRUCell(3, 5),
    lambda m: m.GRUCell(3, 5, bias=False),
    lambda m: m.RNNCell(3, 5),
    lambda m: m.RNNCell(3, 5, nonlinearity="relu"),
]


@pytest.mark.parametrize("make", CELLS)
@pytest.mark.parametrize("batch", [(4,), ()], ids=str)
def test_cells(make, batch):
    mine, theirs = twins(make)
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    results = []
    for net, tensor in ((mine, mg.tensor), (theirs, torch.tensor)):
        x = tensor(random((*batch, 3)), requires_grad=True)
        state = net(x)
        for _ in range(2):
            state = net(x * 0.5, state)
        states = state if isinstance(mine, nn.LSTMCell) else (state,)
        (states[0] * states[-1]).sum().backward()
        results.append([*states, x.grad, *(p.grad for p in net.parameters())])
    for one, other in zip(*results, strict=True):
        assert_same(one, other)


LENGTHS = [3, 6, 1, 4]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_sequences_of_several_lengths(kind, batch_first):
    mine, theirs = twins(lambda m: getattr(m, kind)(3, 5, 2, bidirectional=True, batch_first=batch_first))
    shape = (4, 6, 3) if batch_first else (6, 4, 3)
    results = []
    for net, module, tensor in ((mine, mg, mg.tensor), (theirs, torch, torch.tensor)):
        utils = module.nn.utils.rnn
        x = tensor(random(shape), requires_grad=True)
        h = tensor(random((4, 4, 5), 1), requires_grad=True)
        packed = utils.pack_padded_sequence(x, tensor(LENGTHS), batch_first, enforce_sorted=False)
        out, last = net(packed, (h, h) if kind == "LSTM" else h)
        padded, lengths = utils.pad_packed_sequence(out, batch_first, padding_value=2.0, total_length=7)
        last = last if kind == "LSTM" else (last,)
        ((padded * tensor(random(tuple(padded.shape), 2))).sum() + (last[0] * last[-1]).sum()).backward()
        places = [packed.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices]
        gradients = [x.grad, h.grad, *(p.grad for p in net.parameters())]
        results.append([*places, padded, lengths, *last, *gradients])
    for one, other in zip(*results, strict=True):
        assert_same(one, other)


def test_padding_and_packing():
    rows = [random((n, 2), n) for n in (4, 2, 1)]
    results = []
    for utils, tensor in ((nn.utils.rnn, mg.tensor), (torch.nn.utils.rnn, torch.tensor)):
        sequences = [tensor(row) for row in rows]
        padded = utils.pad_sequence(sequences, batch_first=True, padding_value=7.0)
        packed = utils.pack_sequence(sequences)
        again = utils.unpad_sequence(padded, tensor([4, 2, 1]), batch_first=True)
        results.append([padded, packed.data, packed.batch_sizes, *again])
    for one, other in zip(*results, strict=True):
        assert_same(one, other)
    pack = nn.utils.rnn.pack_padded_sequence
    with pytest.raises(ValueError, match="must not increase; pass enforce_sorted=False"):
        pack(mg.zeros(3, 2, 1), [1, 3])
    with pytest.raises(ValueError, match=r"expected 2 lengths from 1 to 3, got \[3, 0\]"):
        pack(mg.zeros(3, 2, 1), [3, 0])


def test_parameters_as_a_vector():
    net = nn.Linear(3, 2)
    vector = nn.utils.parameters_to_vector(net.parameters())
    assert vector.shape == (8,) and vector.requires_grad
    nn.utils.vector_to_parameters(mg.arange(8.0), net.parameters())
    assert net.weight.tolist() == [[0, 1, 2], [3, 4, 5]] and net.bias.tolist() == [6, 7]
    with pytest.raises(ValueError, match="expected a vector of 8 elements"):
        nn.utils.vector_to_parameters(mg.zeros(7), net.parameters())


HIDDEN = np.random.default_rng(5).random((5, 7)) < 0.4
HIDDEN[:, 0] = False  # every query sees a key
PADDING = np.arange(7) >= np.array([[7], [4], [5]])
ATTENTIONS = [
    ({}, {}),
    ({"bias": False, "batch_first": True}, {"attn_mask": HIDDEN}),
    ({"kdim": 3, "vdim": 4}, {"key_padding_mask": PADDING, "average_attn_weights": False}),
    ({}, {"attn_mask": np.where(HIDDEN, -1.5, 0.5), "need_weights": False}),
    ({}, {"attn_mask": np.tile(HIDDEN, (6, 1, 1)), "key_padding_mask": PADDING, "need_weights": False}),
]


@pytest.mark.parametrize(("options", "masks"), ATTENTIONS)
def test_multihead_attention(options, masks):
    mine, theirs = twins(lambda m: m.MultiheadAttention(6, 2, **options))
    shapes = (5, 3, 6), (7, 3, options.get("kdim", 6)), (7, 3, options.get("vdim", 6))
    if options.get("batch_first"):
        shapes = [(b, a, c) for a, b, c in shapes]
    results = []
    for net, tensor in ((mine, mg.tensor), (theirs, torch.tensor)):
        own = {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in masks.items()}
        inputs = [tensor(random(shape, seed), requires_grad=True) for seed, shape in enumerate(shapes)]
        out, weights = net(*inputs, **own)
        (out * tensor(random(tuple(out.shape), 9))).sum().backward()
        shown = [] if weights is None else [weights]
        results.append([out, *shown, *(x.grad for x in inputs), *(p.grad for p in net.parameters())])
    for one, other in zip(*results, strict=True):
        assert_same(one, other)


def test_self_attention_of_one_sequence():
    mine, theirs = twins(lambda m: m.MultiheadAttention(6, 3))
    x = random((5, 6))
    causal = np.triu(np.ones((5, 5), bool), 1)
    for is_causal in (False, True):
        results = []
        for net, tensor in ((mine, mg.tensor), (theirs, torch.tensor)):
            a = tensor(x)
            options = {"attn_mask": tensor(causal), "is_causal": is_causal, "need_weights": False}
            results.append(net(a, a, a, **options)[0])
        assert_same(*results)
    with pytest.raises(ValueError, match=r"attn_mask must have shape \(5, 5\) or"):
        mine(mg.tensor(x), mg.tensor(x), mg.tensor(x), attn_mask=mg.zeros(4, 5))
    with pytest.raises(ValueError, match="key must have 6 features"):
        mine(mg.tensor(x), mg.tensor(x[:, :3]), mg.tensor(x))
    with pytest.raises(ValueError, match="num_heads must divide embed_dim, got 4 and 6"):
        nn.MultiheadAttention(6, 4)


ENCODERS = [
    {"dropout": 0.0},
    {"dropout": 0.0, "norm_first": True, "activation": "gelu", "batch_first": True, "bias": False},
]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # which PyTorch warns of
@pytest.mark.parametrize("options", ENCODERS)
def test_transformers(options):
    def make(m):
        encoder = m.TransformerEncoder(m.TransformerEncoderLayer(6, 2, 11, **options), 2, m.LayerNorm(6))
        decoder = m.TransformerDecoder(m.TransformerDecoderLayer(6, 2, 11, **options), 2)
        return m.ModuleList([encoder, decoder])

    mine, theirs = twins(make)
    source, target = random((3, 7, 6)), random((3, 5, 6), 1)
    if not options.get("batch_first"):
        source, target = source.swapaxes(0, 1), target.swapaxes(0, 1)
    results = []
    for (encoder, decoder), tensor in ((mine, mg.tensor), (theirs, torch.tensor)):
        a, b = (tensor(x.copy(), requires_grad=True) for x in (source, target))
        padding, causal = tensor(PADDING), tensor(np.triu(np.ones((5, 5), bool), 1))
        memory = encoder(a, src_key_padding_mask=padding)
        out = decoder(b, memory, tgt_mask=causal, memory_key_padding_mask=padding)
        (out * tensor(random(tuple(out.shape), 9))).sum().backward()
        parameters = [*encoder.parameters(), *decoder.parameters()]
        results.append([memory, out, a.grad, b.grad, *(p.grad for p in parameters)])
    for one, other in zip(*results, strict=True):
        assert_same(one, other)
