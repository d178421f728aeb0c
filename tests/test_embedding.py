"""Embeddings: the function and the layer, their gradients, and what they refuse."""

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F
from minigrad import nn

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="needs PyTorch")

WEIGHT = np.arange(15.0).reshape(5, 3)


@pytest.mark.parametrize("dtype", [mg.int64, mg.int32, mg.uint8])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,), (2, 0)])
def test_rows(shape, dtype, device, rng):
    indices = rng.integers(0, 5, shape)
    weight = mg.tensor(WEIGHT, device=device, requires_grad=True)
    y = F.embedding(mg.tensor(indices, dtype, device=device), weight)
    assert y.shape == (*shape, 3) and y.device is device
    assert np.array_equal(device.to_numpy(y.detach()._array), WEIGHT[indices])
    y.sum().backward()
    counts = np.bincount(indices.ravel(), minlength=5)
    assert np.array_equal(device.to_numpy(weight.grad._array), np.repeat(counts[:, None], 3, 1))


def test_gradients(check_gradients):
    indices = mg.tensor([[0, 2, 2], [4, 2, 0]])
    check_gradients(lambda w: F.embedding(indices, w * w), (5, 3))


@pytest.mark.parametrize("padding_idx", [2, -3])
def test_padding_gets_no_gradient(padding_idx, device):
    weight = mg.tensor(WEIGHT, device=device, requires_grad=True)
    indices = mg.tensor([2, 1, 2, 4], device=device)
    y = F.embedding(indices, weight, padding_idx)
    assert np.array_equal(device.to_numpy(y.detach()._array), WEIGHT[[2, 1, 2, 4]])
    (first,) = mg.autograd.grad((y**3).sum(), weight, create_graph=True)
    kept = np.array([0, 1, 0, 0, 1])[:, None]
    assert np.allclose(device.to_numpy(first.detach()._array), 3 * WEIGHT**2 * kept, rtol=1e-14)
    first.sum().backward()
    assert np.allclose(device.to_numpy(weight.grad._array), 6 * WEIGHT * kept, rtol=1e-14)


def test_the_layer(device):
    mg.manual_seed(1)
    layer = nn.Embedding(400, 50, padding_idx=-1, device=device)
    assert repr(layer) == "Embedding(400, 50, padding_idx=399)"
    values = device.to_numpy(layer.weight.detach()._array)
    assert not values[399].any()
    n = 399 * 50
    assert abs(values[:399].mean()) < 6 / np.sqrt(n) and abs(values[:399].var() - 1) < 6 * np.sqrt(2 / n)
    indices = mg.tensor([[7, 399]], device=device)
    out = layer(indices)
    assert np.array_equal(device.to_numpy(out.detach()._array), values[[[7, 399]]])
    out.sum().backward()
    grad = device.to_numpy(layer.weight.grad._array)
    assert (grad[7] == 1).all() and grad.sum() == 50


def test_from_pretrained():
    vectors = mg.tensor(WEIGHT)
    layer = nn.Embedding.from_pretrained(vectors, padding_idx=0)
    assert not layer.weight.requires_grad and np.shares_memory(layer.weight.numpy(), vectors.numpy())
    assert repr(layer) == "Embedding(5, 3, padding_idx=0)" and layer.padding_idx == 0
    assert layer(mg.tensor([0, 4])).tolist() == WEIGHT[[0, 4]].tolist()
    assert nn.Embedding.from_pretrained(vectors, freeze=False).weight.requires_grad
    assert list(layer.state_dict()) == ["weight"]


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
def test_long_vectors_are_scaled_down(norm_type, device, rng):
    values = rng.standard_normal((7, 4))
    values[5] = 0.01
    indices = np.array([[0, 5, 3], [3, 6, 0]])
    layer = nn.Embedding.from_pretrained(
        mg.tensor(values, device=device), freeze=False, max_norm=0.5, norm_type=norm_type
    )
    out = layer(mg.tensor(indices, device=device))
    norms = np.linalg.norm(values, norm_type, axis=1, keepdims=True)
    used = np.isin(np.arange(7), indices)[:, None]
    expected = np.where(used & (norms > 0.5), values * 0.5 / (norms + 1e-7), values)
    now = device.to_numpy(layer.weight.detach()._array)
    np.testing.assert_allclose(now, expected, rtol=1e-12)
    assert np.array_equal(
        now[[1, 2, 4, 5]], values[[1, 2, 4, 5]]
    )  # unused ones and short ones: the same bits
    assert np.array_equal(device.to_numpy(out.detach()._array), now[indices])
    out.sum().backward()
    assert device.to_numpy(layer.weight.grad._array)[3].tolist() == [2.0] * 4


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_gradients_are_divided_by_frequency(padding_idx, device):
    weight = mg.tensor(WEIGHT, device=device, requires_grad=True)
    indices = mg.tensor([[1, 2, 1], [1, 4, 2]], device=device)
    y = F.embedding(indices, weight, padding_idx, scale_grad_by_freq=True)
    (first,) = mg.autograd.grad((y**3).sum(), weight, create_graph=True)
    kept = np.array([0, 1, padding_idx is None, 0, 1])[:, None]
    assert np.allclose(device.to_numpy(first.detach()._array), 3 * WEIGHT**2 * kept, rtol=1e-14)
    first.sum().backward()  # through the embedding once more, which divides once more
    frequency = np.array([1, 3, 2, 1, 1])[:, None]
    assert np.allclose(device.to_numpy(weight.grad._array), 6 * WEIGHT * kept / frequency, rtol=1e-14)


@needs_torch
@pytest.mark.parametrize(
    "options",
    [
        {"padding_idx": 3, "max_norm": 0.8, "scale_grad_by_freq": True},
        {"max_norm": 1.5, "norm_type": 1.0},
        {"padding_idx": -2, "scale_grad_by_freq": True},
        {"padding_idx": 1},
    ],
)
def test_options_are_pytorchs(options, rng):
    values, indices = rng.standard_normal((6, 3)), np.array([[3, 1, 4], [1, 5, 1]])
    results = []
    for library, module in ((mg, nn), (torch, torch.nn)):
        layer = module.Embedding(6, 3, dtype=library.float64, **options)
        with library.no_grad():
            layer.weight.copy_(library.tensor(values))
        out = layer(library.tensor(indices))
        (out**3).sum().backward()
        results.append((out.detach(), layer.weight.detach(), layer.weight.grad, repr(layer)))
    (*mine, text), (*theirs, expected) = results
    assert text == expected
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-10)


BAGS = np.array([3, 1, 4, 1, 5, 1, 2, 0, 3])


@needs_torch
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    ("input", "offsets", "options"),
    [
        (BAGS.reshape(3, 3), None, {}),
        (BAGS, [0, 4, 4, 7], {}),  # the second is empty
        (BAGS, [0, 2, 9], {"include_last_offset": True, "padding_idx": 1}),
        (BAGS.reshape(1, 9), None, {"max_norm": 0.8}),
        (BAGS[:0], [0, 0], {}),
    ],
)
def test_bags_are_pytorchs(input, offsets, options, mode, rng):
    values, results = rng.standard_normal((6, 3)), []
    for library, module in ((mg, nn), (torch, torch.nn)):
        layer = module.EmbeddingBag(6, 3, mode=mode, dtype=library.float64, **options)
        with library.no_grad():
            layer.weight.copy_(library.tensor(values))
        out = layer(library.tensor(input), None if offsets is None else library.tensor(offsets))
        (out**3).sum().backward()
        results.append((out.detach(), layer.weight.detach(), layer.weight.grad))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-10, atol=1e-12)


def test_gradients_of_bags_are_divided_by_frequency():
    # By the definition: PyTorch 2.13 divides by the frequencies of other numbers, on the processor.
    weight = mg.tensor(np.ones((6, 3)), requires_grad=True)
    F.embedding_bag(
        mg.tensor(BAGS), weight, mg.tensor([0, 4]), mode="sum", scale_grad_by_freq=True
    ).sum().backward()
    np.testing.assert_allclose(weight.grad.numpy(), 1.0, rtol=1e-12)


@needs_torch
def test_weighted_bags_are_pytorchs(rng):
    values, weights, results = rng.standard_normal((6, 3)), rng.standard_normal(9), []
    for library, module in ((mg, F), (torch, torch.nn.functional)):
        weight, share = (library.tensor(a, requires_grad=True) for a in (values, weights))
        out = module.embedding_bag(
            library.tensor(BAGS), weight, library.tensor([0, 4]), mode="sum", per_sample_weights=share
        )
        (out**3).sum().backward()
        results.append((out.detach(), weight.grad, share.grad))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-10)


@pytest.mark.parametrize(
    ("offsets", "options", "message"),
    [
        (None, {}, r"or \(n,\) with offsets; got shape \(9,\)"),
        ([1, 4], {}, "offsets rise from 0"),
        ([0, 5, 4], {}, "offsets rise from 0"),
        ([0, 5], {"include_last_offset": True}, "the last offset is 5, the input has 9"),
        ([0], {"mode": "median"}, "mode is one of"),
        ([0], {"per_sample_weights": mg.ones(9)}, "need mode='sum'"),
    ],
)
def test_bags_refuse_what_does_not_fit(offsets, options, message):
    with pytest.raises(ValueError, match="embedding_bag: .*" + message):
        F.embedding_bag(
            mg.tensor(BAGS), mg.tensor(WEIGHT), None if offsets is None else mg.tensor(offsets), **options
        )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda w: F.embedding(mg.ones(2), w), TypeError, "tensor of integers, got float32"),
        (lambda w: F.embedding([0, 1], w), TypeError, "tensor of integers, got list"),
        (lambda w: F.embedding(mg.tensor([0, 5]), w), IndexError, r"index 5 is out of range.*5 rows"),
        (lambda w: F.embedding(mg.tensor([[-1]]), w), IndexError, "index -1 is out of range"),
        (lambda w: F.embedding(mg.tensor([0]), w[0]), ValueError, r"\(num_embeddings.*got shape \(3,\)"),
        (lambda w: F.embedding(mg.tensor([0]), w, 5), ValueError, "padding_idx 5 is none of the 5 rows"),
        (lambda w: nn.Embedding(4, 2, padding_idx=-5), ValueError, "Embedding: padding_idx -5"),
        (lambda w: nn.Embedding(-1, 2), ValueError, "num_embeddings must be an integer of at least 0"),
        (lambda w: nn.Embedding.from_pretrained(w[0]), ValueError, r"two dimensions, got shape \(3,\)"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call(mg.tensor(WEIGHT))


def test_an_index_out_of_range_is_found_on_every_device(device):
    weight = mg.tensor(WEIGHT, device=device)
    with pytest.raises(IndexError, match="index 9 is out of range"):
        F.embedding(mg.tensor([0, 9], device=device), weight).tolist()  # where a card's errors are raised
