"""F.ctc_loss and nn.CTCLoss: against the sum over all alignments, and PyTorch's."""

import itertools

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F

TEXTS = [[1, 2, 2], [3], [], [1, 1]]
STEPS = [7, 3, 6, 2]  # the last text, whose repeated letter needs a blank, is too long


def inputs(lib, in_one):
    logits = np.random.default_rng(8).standard_normal((7, 4, 5))
    log_probs = lib.nn.functional.log_softmax(lib.tensor(logits, requires_grad=True), 2)
    padded = np.array([text + [0] * (3 - len(text)) for text in TEXTS])
    targets = lib.tensor(np.concatenate(TEXTS).astype(np.int64) if in_one else padded)
    return log_probs, targets, lib.tensor(STEPS), lib.tensor([len(text) for text in TEXTS])


def collapsed(path):
    return [letter for letter, _ in itertools.groupby(path) if letter != 0]


def test_it_is_the_sum_over_all_alignments():
    log_probs, *rest = inputs(mg, False)
    losses = F.ctc_loss(log_probs, *rest, reduction="none").tolist()
    values = log_probs.detach().numpy()
    for n, (text, steps) in enumerate(zip(TEXTS, STEPS, strict=True)):
        total = 0.0
        for path in itertools.product(range(5), repeat=steps) if steps < 7 else ():
            if collapsed(path) == text:
                total += np.exp(sum(values[t, n, letter] for t, letter in enumerate(path)))
        if steps < 7:
            expected = -np.log(total) if total else np.inf
            np.testing.assert_allclose(losses[n], expected, rtol=1e-10)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("in_one", [False, True])
def test_losses_and_gradients_are_pytorch_s(reduction, zero_infinity, in_one):
    torch = pytest.importorskip("torch")
    found = []
    for lib in (mg, torch):
        log_probs, *rest = inputs(lib, in_one)
        log_probs.retain_grad()
        loss = lib.nn.CTCLoss(0, reduction, zero_infinity)(log_probs, *rest)
        gradient = [1.0]
        if zero_infinity:
            loss.sum().backward()
            gradient = log_probs.grad.numpy()
        found.append((loss.detach().numpy(), gradient))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-10)
    if zero_infinity:  # PyTorch's gradient is that for the logits in front of a log_softmax
        ours, theirs = (f[1] for f in found)
        probabilities = np.exp(inputs(mg, False)[0].detach().numpy())
        through = ours - probabilities * ours.sum(-1, keepdims=True)
        np.testing.assert_allclose(through, theirs, rtol=1e-8, atol=1e-10)


def test_second_gradients_and_one_signal(check_gradients, rng):
    def loss(logits):
        return F.ctc_loss(F.log_softmax(logits, 1), mg.tensor([1, 2]), mg.tensor(4), mg.tensor(2))

    logits = rng.standard_normal((4, 3))
    check_gradients(loss, logits)
    batch = F.log_softmax(mg.tensor(logits), 1).unsqueeze(1)
    both = F.ctc_loss(batch, mg.tensor([[1, 2]]), (4,), (2,)), loss(mg.tensor(logits))
    np.testing.assert_allclose(both[0].item(), both[1].item(), rtol=1e-12)


@pytest.mark.parametrize(
    ("targets", "steps", "lengths", "message"),
    [
        ([[1, 2]], [5], [2], "input_lengths from 1 to 4"),
        ([[1, 3]], [4], [2], "targets must be from 0 to 2"),
        ([1, 2], [4], [1], "2 targets for texts of 1"),
        ([[1, 2]], [4], [3], "do not fit 1 texts"),
        ([[1, 2]], [4], [1, 1], "expected 1 target_lengths"),
    ],
)
def test_errors(targets, steps, lengths, message):
    with pytest.raises(ValueError, match=message):
        F.ctc_loss(mg.zeros(4, 1, 3), mg.tensor(targets), mg.tensor(steps), mg.tensor(lengths))
