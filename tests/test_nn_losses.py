"""Losses, functions, gradient clipping and initialisers, against definitions in float64 NumPy."""

import math

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn as nn
import minigrad.nn.functional as F
from minigrad.testing import gradcheck


def double(*shape, seed=0, **options):
    """Normal random numbers in float64."""
    return mg.tensor(np.random.default_rng(seed).standard_normal(shape), **options)


def assert_same(actual, expected, rtol=1e-12, atol=1e-12):
    actual = actual.detach().numpy() if isinstance(actual, mg.Tensor) else actual
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


# ---- losses -----------------------------------------------------------------------------------------------


def reduced(loss, reduction):
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_differences(reduction):
    x, target = double(4, 3, requires_grad=True), double(4, 3, seed=1)
    difference = x.detach().numpy() - target.numpy()
    assert_same(nn.MSELoss(reduction=reduction)(x, target), reduced(difference**2, reduction))
    assert_same(nn.L1Loss(reduction=reduction)(x, target), reduced(np.abs(difference), reduction))
    gradcheck(lambda x: F.l1_loss(x, target, reduction=reduction), [x], seed=0)
    for loss in (F.mse_loss, F.l1_loss):
        with pytest.raises(ValueError, match=r"\(4, 3\), target \(4,\)"):
            loss(x, target[:, 0])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(reduction, weighted):
    logits = double(6, 4, requires_grad=True)
    target = mg.tensor([0, 3, 1, 1, 2, 0])
    weight = mg.tensor([0.5, 1.0, 2.0, 3.0], dtype=mg.float64) if weighted else None
    array = logits.detach().numpy()
    log_p = array - np.log(np.exp(array).sum(1, keepdims=True))
    weights = weight.numpy()[target.numpy()] if weighted else np.ones(6)
    losses = -log_p[np.arange(6), target.numpy()] * weights
    expected = losses.sum() / weights.sum() if reduction == "mean" else reduced(losses, reduction)
    loss = nn.CrossEntropyLoss(weight, reduction=reduction)
    assert_same(loss(logits, target), expected)
    assert_same(nn.NLLLoss(weight, reduction=reduction)(F.log_softmax(logits, 1), target), expected)
    assert list(loss.state_dict()) == (["weight"] if weighted else [])
    gradcheck(lambda x: loss(x, target), [logits], seed=0)


def test_cross_entropy_ignores_and_smooths():
    logits = double(4, 3)
    target = mg.tensor([0, -100, 2, 1])
    kept = mg.tensor([0, 2, 3])
    loss = nn.CrossEntropyLoss()
    assert_same(loss(logits, target), loss(logits[kept], target[kept]).numpy())
    array = logits.numpy()
    log_p = array - np.log(np.exp(array).sum(1, keepdims=True))
    smooth = np.full((4, 3), 0.1 / 3)
    smooth[np.arange(4), [0, 1, 2, 1]] += 0.9
    expected = -(smooth * log_p).sum(1).mean()
    found = nn.CrossEntropyLoss(label_smoothing=0.1)(logits, mg.tensor([0, 1, 2, 1]))
    assert_same(found, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy(reduction, weighted):
    logits = double(5, 3, requires_grad=True)
    target = mg.tensor(np.random.default_rng(2).random((5, 3)), requires_grad=True)
    weight = mg.tensor([0.5, 1.0, 2.0], dtype=mg.float64) if weighted else None
    pos_weight = mg.tensor([3.0, 1.0, 0.5], dtype=mg.float64) if weighted else None
    p, t = 1 / (1 + np.exp(-logits.detach().numpy())), target.detach().numpy()
    losses = -(t * np.log(p) + (1 - t) * np.log(1 - p)) * (weight.numpy() if weighted else 1)
    probabilities = mg.tensor(p, requires_grad=True)
    assert_same(nn.BCELoss(weight, reduction=reduction)(probabilities, target), reduced(losses, reduction))
    assert_same(nn.BCEWithLogitsLoss(weight, reduction=reduction)(logits, target), reduced(losses, reduction))
    losses = -t * np.log(p) * (pos_weight.numpy() if weighted else 1) - (1 - t) * np.log(1 - p)
    found = nn.BCEWithLogitsLoss(reduction=reduction, pos_weight=pos_weight)(logits, target)
    assert_same(found, reduced(losses, reduction))
    gradcheck(lambda x, t: F.binary_cross_entropy(x, t, weight), [probabilities, target], seed=0)
    gradcheck(
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, pos_weight=pos_weight),
        [logits, target],
        seed=0,
    )


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (5, 2, 3)])
def test_weights_of_positive_targets_broadcast(shape, device):
    rng = np.random.default_rng(3)
    x, t, w = rng.standard_normal((5, 2, 3)), rng.random((5, 2, 3)), rng.uniform(0, 4, shape)
    expected = t * w * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x)
    x, t, w = (mg.tensor(a, device=device, requires_grad=True) for a in (x, t, w))
    loss = F.binary_cross_entropy_with_logits(x, t, pos_weight=w)
    np.testing.assert_allclose(loss.detach().cpu().numpy(), expected.mean(), rtol=1e-12)
    loss.backward()
    assert w.grad.shape == shape
    if device.type == "cpu":
        gradcheck(lambda *a: F.binary_cross_entropy_with_logits(*a[:2], pos_weight=a[2]), [x, t, w], seed=0)


def test_weights_of_positive_targets_that_do_not_fit():
    x = mg.ones(3)
    with pytest.raises(ValueError, match=r"pos_weight of shape \(2, 3\) does not broadcast to .* \(3,\)"):
        F.binary_cross_entropy_with_logits(x, x, pos_weight=mg.ones(2, 3))
    with pytest.raises(ValueError, match="reduction is 'mean', 'sum' or 'none', got 'all'"):
        F.binary_cross_entropy_with_logits(x, x, pos_weight=x, reduction="all")


def test_binary_cross_entropy_at_the_ends():
    x = mg.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    loss = F.binary_cross_entropy(x, mg.tensor([0.0, 1.0, 1.0, 0.0]), reduction="none")
    assert loss.tolist() == [0.0, 0.0, 100.0, 100.0]
    loss.sum().backward()
    assert_same(x.grad, [0.0, 0.0, -1e12, 1e12], 1e-6)
    logits = mg.tensor([-1e4, 1e4], requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(logits, mg.tensor([1.0, 1.0]), reduction="none")
    assert loss.tolist() == [1e4, 0.0]
    loss.sum().backward()
    assert logits.grad.tolist() == [-1.0, 0.0]
    for bad in ([0.5, 1.5], [-0.1, 0.5], [0.5, math.nan]):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            F.binary_cross_entropy(mg.tensor(bad), mg.ones(2))


def test_losses_refuse_bad_arguments():
    for loss in (nn.MSELoss, nn.L1Loss, nn.CrossEntropyLoss, nn.NLLLoss, nn.BCELoss, nn.BCEWithLogitsLoss):
        with pytest.raises(ValueError, match="reduction"):
            loss(reduction="avg")
    with pytest.raises(ValueError, match="target 4 is out of range"):
        F.cross_entropy(mg.ones(2, 4), mg.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"must have shape \(2,\)"):
        F.cross_entropy(mg.ones(2, 4), mg.tensor([0, 1, 2]))


# ---- functions --------------------------------------------------------------------------------------------


def test_one_hot():
    assert F.one_hot(mg.tensor([[0, 2], [1, 0]])).tolist() == [[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, 0]]]
    assert F.one_hot(mg.tensor(1), 4).tolist() == [0, 1, 0, 0]
    assert F.one_hot(mg.zeros(0, dtype=mg.int64), 4).shape == (0, 4)
    for bad, classes in (([0, 4], 4), ([-1], -1), ([], -1)):
        with pytest.raises(ValueError, match="one_hot"):
            F.one_hot(mg.tensor(bad, dtype=mg.int64), classes)
    with pytest.raises(TypeError, match="integers"):
        F.one_hot(mg.ones(2))


@pytest.mark.parametrize("p", [1, 2, 3.0, math.inf])
def test_normalize(p):
    x = double(4, 5)
    expected = x.numpy() / np.linalg.norm(x.numpy(), p, axis=1, keepdims=True)
    assert_same(F.normalize(x, p), expected)


def test_normalize_at_zero_has_a_finite_gradient():
    x = mg.zeros(2, 3, requires_grad=True)
    out = F.normalize(x)
    out.sum().backward()
    assert (out.detach().numpy() == 0).all() and np.isfinite(x.grad.numpy()).all()


def test_pad_and_linear_vector_weight():
    assert F.pad(mg.ones(2, 2), (1, 0, 0, 1), value=5.0).tolist() == [[5, 1, 1], [5, 1, 1], [5, 5, 5]]
    assert F.linear(mg.ones(3, 2), mg.tensor([2.0, 3.0])).tolist() == [5.0, 5.0, 5.0]
    with pytest.raises(ValueError, match="1 or 2 dimensions"):
        F.linear(mg.ones(3), mg.ones(1, 1, 3))


# ---- clipping ---------------------------------------------------------------------------------------------


def with_gradients(*gradients):
    parameters = [nn.Parameter(mg.zeros(len(g), dtype=mg.float64)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = mg.tensor(gradient, dtype=mg.float64)
    return parameters


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_clip_grad_norm(p):
    gradients = [3.0, -4.0], [12.0]
    parameters = [*with_gradients(*gradients), nn.Parameter(mg.zeros(2))]
    norm = np.linalg.norm([3.0, -4.0, 12.0], p)
    assert nn.utils.clip_grad_norm_(parameters, 100.0, p).item() == pytest.approx(norm)
    assert parameters[0].grad.tolist() == [3.0, -4.0]
    nn.utils.clip_grad_norm_(parameters, 1.0, p)
    together = np.concatenate([q.grad.numpy() for q in parameters[:2]])
    assert_same(together, np.array([3.0, -4.0, 12.0]) / (norm + 1e-6), 1e-12)
    assert nn.utils.clip_grad_norm_([], 1.0).item() == 0.0
    assert nn.utils.clip_grad_norm_(parameters[1], 1.0, p).shape == ()


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clip_grad_norm_on_every_device(device, max_norm):
    """More gradients than a launch takes, a large one among them."""
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(n) for n in (*range(1, 70), 2051)]
    norm = np.sqrt(sum((grad**2).sum() for grad in grads))
    parameters = [mg.zeros(grad.size, dtype=mg.float64, device=device, requires_grad=True) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = mg.tensor(grad, mg.float64, device=device)
    assert nn.utils.clip_grad_norm_(parameters, max_norm).item() == pytest.approx(norm, rel=1e-12)
    factor = min(1.0, max_norm / (norm + 1e-6))
    for parameter, grad in zip(parameters, grads, strict=True):
        assert_same(parameter.grad, grad * factor, 1e-12)


def test_clip_grad_norm_refuses_bad_input():
    parameters = with_gradients([1.0, math.nan])
    with pytest.raises(RuntimeError, match="nan"):
        nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
    assert parameters[0].grad.tolist()[0] == 1.0
    for max_norm in (-1.0, math.nan):
        with pytest.raises(ValueError, match="max_norm"):
            nn.utils.clip_grad_norm_(parameters, max_norm)


def test_clip_grad_value():
    parameters = with_gradients([3.0, -0.5, -4.0])
    nn.utils.clip_grad_value_(parameters, 1.0)
    assert parameters[0].grad.tolist() == [1.0, -0.5, -1.0]
    with pytest.raises(ValueError, match="clip_value"):
        nn.utils.clip_grad_value_(parameters, -1.0)


# ---- initialisers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fill", "std", "bound"),
    [
        (lambda t: nn.init.uniform_(t, -2.0, 2.0), 2 / math.sqrt(3), 2.0),
        (lambda t: nn.init.normal_(t, 0.0, 3.0), 3.0, None),
        (lambda t: nn.init.xavier_uniform_(t, 2.0), 2 * math.sqrt(2 / 3600), 2 * math.sqrt(6 / 3600)),
        (lambda t: nn.init.xavier_normal_(t), math.sqrt(2 / 3600), None),
        (lambda t: nn.init.kaiming_uniform_(t, nonlinearity="relu"), math.sqrt(2 / 900), math.sqrt(6 / 900)),
        (lambda t: nn.init.kaiming_normal_(t, mode="fan_out"), math.sqrt(2 / 2700), None),
        (lambda t: nn.init.kaiming_normal_(t, a=1.0), math.sqrt(1 / 900), None),
    ],
)
def test_random_initialisers(fill, std, bound):
    weight = nn.Parameter(mg.empty(300, 100, 3, 3))
    assert fill(weight) is weight and weight.requires_grad and weight.is_leaf
    array = weight.detach().numpy()
    assert abs(array.std() / std - 1) < 0.01 and abs(array.mean()) < 0.01 * std
    assert bound is None or 0.99 * bound < np.abs(array).max() <= bound


def test_constant_initialisers():
    weight = nn.Parameter(mg.empty(2, 2))
    assert nn.init.constant_(weight, 3.5).tolist() == [[3.5, 3.5], [3.5, 3.5]]
    assert nn.init.ones_(weight).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert nn.init.zeros_(weight).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (4, 2, 3, 3)])
def test_orthogonal(shape):
    weight = nn.init.orthogonal_(mg.empty(shape, dtype=mg.float64), gain=2.0).numpy().reshape(shape[0], -1)
    few = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    assert_same(few, 4 * np.eye(min(weight.shape)))


def test_trunc_normal():
    x = nn.init.trunc_normal_(mg.empty(200_000), mean=1.0, std=2.0, a=0.0, b=2.0).numpy()
    assert x.min() >= 0 and x.max() <= 2 and abs(x.mean() - 1) < 0.01
    # The variance of a standard normal limited to [-c, c] is 1 - 2 c phi(c) / (2 Phi(c) - 1).
    phi, mass = math.exp(-0.125) / math.sqrt(2 * math.pi), math.erf(0.5 * math.sqrt(0.5))
    assert abs(x.var() / (4 * (1 - phi / mass)) - 1) < 0.01
    with pytest.raises(ValueError, match="almost nothing"):
        nn.init.trunc_normal_(mg.empty(3), a=50.0, b=60.0)


def test_initialisers_refuse_bad_input():
    vector = mg.empty(3)
    for fill in (nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.orthogonal_):
        with pytest.raises(ValueError, match="at least 2 dimensions"):
            fill(vector)
    with pytest.raises(ValueError, match="fan_in"):
        nn.init.kaiming_normal_(mg.empty(2, 2), mode="fan")
    with pytest.raises(ValueError, match="unknown nonlinearity 'swish'"):
        nn.init.calculate_gain("swish")
    with pytest.raises(ValueError, match="std"):
        nn.init.normal_(vector, std=-1.0)


def test_a_generator_of_ones_own():
    first = nn.init.normal_(mg.empty(5), generator=mg.Generator(3)).tolist()
    assert nn.init.normal_(mg.empty(5), generator=mg.Generator(3)).tolist() == first
