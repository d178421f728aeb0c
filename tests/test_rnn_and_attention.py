"""What the recurrent layers and attention refuse, and what they do on every device."""

import numpy as np
import pytest
from pretended_card import PretendedCard

import minigrad as mg
import minigrad.nn as nn
import minigrad.nn.functional as F
from minigrad.kernels import sim


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be an integer of at least 1"),
        ({"num_layers": 0}, "num_layers"),
        ({"dropout": 1.5}, "dropout must be a probability"),
        ({"proj_size": 2}, "projections are not supported"),
    ],
)
def test_lstm_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        nn.LSTM(**{"input_size": 3, "hidden_size": 4, **options})


def test_lstm_refuses_bad_inputs():
    layer, state = nn.LSTM(3, 4), mg.zeros(1, 2, 4)
    for arguments, message in [
        ((mg.zeros(5, 2, 4),), "the last of size 3"),
        ((mg.zeros(3),), "expected 2 or 3 dimensions"),
        ((mg.zeros(0, 2, 3),), "must not be empty"),
        ((mg.zeros(5, 2, 3), (state, mg.zeros(2, 4))), r"state c must have shape \(1, 2, 4\)"),
        ((mg.zeros(5, 3), (state, state)), r"state h must have shape \(1, 4\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            layer(*arguments)
    with pytest.raises(ValueError, match=r"LSTMCell: the state h must have shape \(2, 4\)"):
        nn.LSTMCell(3, 4)(mg.zeros(2, 3), (mg.zeros(1, 4), mg.zeros(2, 4)))


@mg.no_grad()
def test_dropout_between_layers_acts_in_training_only(rng):
    layer, x = nn.LSTM(3, 8, num_layers=2, dropout=0.5), mg.tensor(rng.standard_normal((4, 2, 3)), mg.float32)
    first, second = layer(x)[0].numpy(), layer(x)[0].numpy()
    assert (first != second).any()
    layer.eval()
    np.testing.assert_array_equal(layer(x)[0].numpy(), layer(x)[0].numpy())


@pytest.mark.parametrize("made", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_on_every_device(made, device, rng):
    """In float64, against the CPU's kernels."""
    layer = made(3, 4, 2, bidirectional=True, dtype=mg.float64)
    array = rng.standard_normal((3, 2, 3))
    results = []
    for place in (mg.device("cpu"), device):
        twin = made(3, 4, 2, bidirectional=True, dtype=mg.float64).to(place)
        twin.load_state_dict(layer.state_dict())
        x = mg.tensor(array, device=place, requires_grad=True)
        twin(x)[0].sum().backward()
        results.append([x.grad.cpu().numpy(), *(p.grad.cpu().numpy() for p in twin.parameters())])
    for wanted, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)


def test_attention_on_every_device(device, rng):
    """The composed form against the kernel."""
    arrays = [rng.standard_normal((2, 3, 5, 4)) for _ in range(3)]
    wanted = F.scaled_dot_product_attention(*map(mg.tensor, arrays), is_causal=True)
    inputs = [mg.tensor(array, device=device) for array in arrays]
    mask = mg.tensor(np.tri(5, dtype=bool), device=device)
    for found in (
        F.scaled_dot_product_attention(*inputs, is_causal=True),
        F.scaled_dot_product_attention(*inputs, attn_mask=mask),
    ):
        np.testing.assert_allclose(found.cpu().numpy(), wanted.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize("causal", [False, True])
def test_second_gradient_of_attention_where_arrays_are_not_of_numpy(causal, rng):
    """As on a card: the first gradient by its kernel, and the second by ops on the card's own arrays."""
    arrays = [rng.standard_normal(shape) for shape in ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6))]

    def second_gradients(device, dtype):
        inputs = [mg.tensor(x, dtype, device=device, requires_grad=True) for x in arrays]
        out = F.scaled_dot_product_attention(*inputs, is_causal=causal)
        first = mg.autograd.grad((out * out).sum(), inputs, create_graph=True)
        return mg.autograd.grad(sum((x * x).sum() for x in first), inputs)

    wanted = second_gradients(mg.device("cpu"), mg.float64)
    found = second_gradients(mg.Device("cuda", 0, PretendedCard()), mg.float32)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=0, atol=1e-5 * abs(y.numpy()).max())


def test_attention_over_no_keys_is_zero(device):
    q, k, v = (mg.ones(2, n, 4, device=device, requires_grad=True) for n in (3, 0, 0))
    for options in ({}, {"is_causal": True}, {"attn_mask": mg.ones(3, 0, dtype=mg.bool, device=device)}):
        out = F.scaled_dot_product_attention(q, k, v, **options)
        out.sum().backward()
        assert out.shape == (2, 3, 4) and (out == 0.0).all() and (q.grad == 0.0).all()


def test_attention_drops_weights():
    """Of weights that are all 1 / S, what is left stands at 1 / (S (1 - p))."""
    q, v = mg.zeros(1, 200, 4), mg.ones(1, 50, 1)
    out = F.scaled_dot_product_attention(q, mg.zeros(1, 50, 4), v, dropout_p=0.5).numpy()
    kept = out * 25
    np.testing.assert_allclose(kept, kept.round(), atol=1e-4)
    # 10000 fair coins: the mean of 200 counts of 50 is 25, with a standard deviation of 0.25.
    assert abs(kept.mean() - 25) < 1.5


def test_attention_refuses_bad_inputs():
    x = mg.zeros(2, 5, 4)
    for arguments, options, message in [
        ((x, mg.zeros(2, 5, 3), x), {}, r"expected query \(..., L, E\)"),
        ((x, x, mg.zeros(2, 6, 4)), {}, "expected query"),
        ((x, x, mg.zeros(4)), {}, "at least 2 dimensions"),
        ((x, x, x), {"is_causal": True, "attn_mask": mg.zeros(5, 5)}, "attn_mask must be None"),
        ((x, mg.zeros(3, 5, 4), x), {}, r"do not broadcast, got shapes \(2, 5, 4\), \(3, 5, 4\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            F.scaled_dot_product_attention(*arguments, **options)


@pytest.mark.parametrize("dropout_p", [1.5, -0.1, float("nan")])
def test_attention_refuses_what_is_no_probability(device, dropout_p):
    x = mg.zeros(2, 5, 4, device=device)
    with pytest.raises(ValueError, match=r"dropout_p must be a probability in \[0, 1\], got"):
        F.scaled_dot_product_attention(x, x, x, None, dropout_p)


@pytest.mark.parametrize("dtype", [mg.bool, mg.float32])
def test_a_mask_may_enlarge_the_batch_of_attention_alone(device, dtype, rng):
    arrays = [rng.standard_normal(shape).astype("f4") for shape in ((1, 2, 5, 8), (1, 2, 7, 8), (1, 2, 7, 6))]
    q, k, v = (mg.tensor(x, device=device) for x in arrays)
    for shape in ((3, 1, 5, 7), (3, 1, 1, 1, 7), (3, 1, 5, 1)):
        mask = mg.tensor(rng.random(shape) < 0.7, dtype, device=device)
        found = F.scaled_dot_product_attention(q, k, v, mask)
        for i in range(3):
            wanted = F.scaled_dot_product_attention(q, k, v, mask[i]).cpu().numpy()
            np.testing.assert_allclose(
                found[i : i + 1].cpu().numpy().reshape(wanted.shape), wanted, atol=1e-6
            )
    for shape in ((5, 6), (6, 7), (3, 5, 7), (2, 5, 1, 7)):
        with pytest.raises(
            ValueError, match=r"attn_mask must broadcast to the scores of shape \(1, 2, 5, 7\)"
        ):
            F.scaled_dot_product_attention(q, k, v, mg.ones(*shape, dtype=dtype, device=device))
    with pytest.raises(ValueError, match="attn_mask must broadcast"):  # nor the queries
        F.scaled_dot_product_attention(q[:, :, :1], k, v, mg.ones(5, 7, dtype=dtype, device=device))


@pytest.mark.parametrize(
    ("place", "dtype", "features"), [("cpu", "f4", 4), ("sim", "f8", 4), ("sim", "f4", 130)]
)
def test_an_added_mask_is_prepared_for_a_kernel_alone(place, dtype, features, monkeypatch):
    from minigrad.ops import attention

    if place == "sim" and not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    monkeypatch.setattr(attention, "_below_zero", None)
    x = mg.ones(2, 5, features, dtype=dtype, device=place)
    found = F.scaled_dot_product_attention(x, x, x, mg.zeros(5, 5, dtype="f4", device=place))
    np.testing.assert_allclose(found.numpy(), 1, rtol=1e-6)


@pytest.mark.parametrize("mask", [None, mg.bool, mg.float32])
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_scores_of_minus_infinity_are_nan_on_every_device(device, mask, dropout_p):
    q = mg.tensor(np.array([[1, 1], [-np.inf, -np.inf]], np.float32), device=device)
    k = mg.ones(8, 2, device=device)
    mask = (
        mask if mask is None else (mg.ones if mask == mg.bool else mg.zeros)(2, 8, dtype=mask, device=device)
    )
    out = F.scaled_dot_product_attention(q, k, k, mask, dropout_p).cpu().numpy()
    assert np.isfinite(out[0]).all() and np.isnan(out[1]).all()


@pytest.mark.parametrize(
    "dtypes", [("f4", "i8", "f4"), ("f8", "f8", "i8"), ("i8", "i8", "i8"), ("f2", "f4", "f4")]
)
@pytest.mark.parametrize("mask", [None, True])
def test_attention_refuses_several_dtypes(device, dtypes, mask):
    mask = mask and mg.ones(5, 5, dtype=mg.bool, device=device)
    inputs = [mg.ones(2, 5, 4, dtype=dtype, device=device) for dtype in dtypes]
    with pytest.raises(
        TypeError, match="one floating dtype, got .*int64" if "i8" in dtypes else "float16, float32"
    ):
        F.scaled_dot_product_attention(*inputs, attn_mask=mask)


def test_attention_takes_the_shared_memory_that_a_simulated_card_has(rng):
    arrays = [rng.standard_normal((1, 5, 64)).astype(np.float32) for _ in range(3)]
    results = []
    for device in ("cpu", "sim"):
        inputs = [mg.tensor(array, device=device, requires_grad=True) for array in arrays]
        with sim.architecture("sm_75"):
            out = F.scaled_dot_product_attention(*inputs)
            out.sum().backward()
        results.append([out.detach().numpy(), *(x.grad.numpy() for x in inputs)])
    for wanted, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def masks_of_attention(rng, S):
    """By name: what hides keys, and what is added, with large numbers that hide as well."""
    pairs = rng.random((5, S)) < 0.6
    far = np.where(rng.random((2, 3, 5, S)) < 0.6, rng.standard_normal((2, 3, 5, S)), -1e9)
    far[:, 1] = np.where(pairs, 0.5, np.finfo(np.float32).min)
    far[:, :, 0], far[:, 1, :, 1] = -1e9, 0.5  # query 0 of others sees all, equally little
    return {
        "keys": np.arange(S) < np.array([S, 3]).reshape(2, 1, 1, 1),
        "pairs": pairs & (np.arange(5) != 2)[:, None],  # query 2 sees nothing
        "added": np.where(pairs, rng.standard_normal((5, S)), -np.inf).astype(np.float32),
        "far below": far.astype(np.float32),
        "none": None,
    }


@pytest.mark.parametrize("S", [7, 8])
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("name", ["keys", "pairs", "added", "far below", "none"])
def test_attention_with_masks_and_dropout_on_every_device(device, name, dropout_p, S, rng):
    """The CPU's composed form and the kernels of cards drop the same weights, and hide the same."""
    arrays = [rng.standard_normal(shape) for shape in ((2, 3, 5, 4), (2, 3, S, 4), (2, 3, S, 6))]
    mask = masks_of_attention(rng, S)[name]

    def results(device, dtype):
        mg.manual_seed(3)
        inputs = [mg.tensor(x, dtype, device=device, requires_grad=True) for x in arrays]
        of_device = None if mask is None else mg.tensor(mask, device=device)
        out = F.scaled_dot_product_attention(*inputs, of_device, dropout_p)
        (out * out).sum().backward()
        return [out.detach(), *(x.grad for x in inputs)]

    dtype = mg.float64 if device.type == "cpu" and name == "far below" else mg.float32  # scores beside 1e9
    for x, y in zip(results(device, dtype), results(mg.device("cpu"), mg.float64), strict=True):
        np.testing.assert_allclose(x.cpu().numpy(), y.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize("dtype", [mg.float32, mg.float16])
def test_a_layer_with_padding_and_dropout_has_no_matrix_of_weights(dtype, monkeypatch, rng):
    """In training, with the default options: the softmax of the composed form is not called."""
    from minigrad.ops import attention

    monkeypatch.setattr(attention, "softmax", None)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).to("sim", dtype)
    x = mg.tensor(rng.standard_normal((2, 5, 8)), dtype, device="sim", requires_grad=True)
    padding = mg.tensor(np.arange(5) >= np.array([[5], [3]]), device="sim")
    layer(x, src_key_padding_mask=padding).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
def test_second_gradient_of_attention_with_a_mask_and_dropout(rng):
    arrays = [rng.standard_normal(shape) for shape in ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6))]
    mask = masks_of_attention(rng, 7)["pairs"]

    def second_gradients(device, dtype):
        mg.manual_seed(3)
        inputs = [mg.tensor(x, dtype, device=device, requires_grad=True) for x in arrays]
        out = F.scaled_dot_product_attention(*inputs, mg.tensor(mask, device=device), 0.4)
        first = mg.autograd.grad((out * out).sum(), inputs, create_graph=True)
        return mg.autograd.grad(sum((x * x).sum() for x in first), inputs)

    for x, y in zip(second_gradients("sim", mg.float32), second_gradients("cpu", mg.float64), strict=True):
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=0, atol=2e-5 * abs(y.numpy()).max())
