"""Indices that a card finds out of range, and the errors that are raised for them later."""

import numpy as np
import pytest

import minigrad as mg
from minigrad.kernels import sim
from minigrad.kernels.cuda import index_check
from minigrad.kernels.cuda.index_check import RIGHT, Board

needs_simulator = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


def wrong_one(backend, indices, size, *ignored):
    wrong = backend.put(np.array([RIGHT]).view(np.uint64))
    index_check.look(wrong, backend.put(indices), size, *ignored)
    return int(backend.get(wrong).view(np.int64)[0])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("n", [1, 255, 257, 1000])
def test_a_wrong_index_is_found(backend, dtype, n):
    indices = np.random.default_rng(n).integers(0, 9, n).astype(dtype)
    assert wrong_one(backend, indices, 9) == RIGHT
    indices[n // 2] = 9
    assert wrong_one(backend, indices, 9) == 9
    assert wrong_one(backend, indices, 9, 9) == RIGHT  # it is the one that is ignored
    if np.issubdtype(dtype, np.signedinteger):
        indices[-1] = -3
        assert wrong_one(backend, indices, 10) == -3
        assert wrong_one(backend, indices, 10, -3) == RIGHT


def test_extreme_and_no_indices(backend):
    assert wrong_one(backend, np.array([0, 2**62]), 2**62) == 2**62
    assert wrong_one(backend, np.array([0, -(2**62)]), 2**62) == -(2**62)
    assert wrong_one(backend, np.zeros(3, np.int64), 0) == 0
    assert wrong_one(backend, np.zeros(0, np.int64), 0) == RIGHT


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_wrong_indices_are_replaced(backend, dtype):
    indices = np.random.default_rng(0).integers(0, 20, 300).astype(dtype)
    wrong, right = backend.put(np.array([RIGHT]).view(np.uint64)), backend.put(np.full(300, 77))
    index_check.replace(wrong, right, backend.put(indices), 9, -100)
    assert np.array_equal(backend.get(right), np.where(indices < 9, indices.astype(np.int64), -100))
    assert 9 <= int(backend.get(wrong)[0]) < 20
    index_check.replace(wrong, right, backend.put(indices[:0]), 9, -100)  # no index, and no launch


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("bad", [-0.001, 1.001, np.inf, np.nan])
def test_a_number_outside_is_found(backend, dtype, bad):
    def outside(x):
        wrong = backend.put(np.array([RIGHT]).view(np.uint64))
        index_check.look_outside(wrong, backend.put(x), 0.0, 1.0)
        return int(backend.get(wrong).view(np.int64)[0])

    x = np.linspace(0, 1, 300).astype(dtype)
    assert outside(x) == RIGHT == outside(x[:0])
    x[270] = bad
    assert outside(x) == 270


def board(places):
    words = np.zeros(places, np.int64)
    return Board(words, [words.view(np.uint64)[i : i + 1] for i in range(places)])


def check(board, indices, size, name):
    place = board.place_for(lambda index: IndexError(f"{name}: {index}"))
    index_check.look(place, np.array(indices), size)


@needs_simulator
def test_the_error_is_that_of_the_check_that_found_it_and_is_raised_once():
    found = board(4)
    check(found, [0, 1], 2, "right")
    check(found, [0, 5], 2, "wrong")
    with pytest.raises(IndexError, match="wrong: 5"):
        found.raise_found()
    found.raise_found()


@needs_simulator
def test_the_next_check_raises_before_its_own():
    found = board(2)
    for _ in range(5):  # places are used again
        check(found, [0, 1], 2, "right")
    check(found, [-7], 2, "wrong")
    with pytest.raises(IndexError, match="wrong: -7"):
        check(found, [8], 2, "next")
    found.raise_found()


def on_a_card():
    if not mg.cuda.is_available():
        pytest.skip("errors come late on a card only: there is none")


@pytest.mark.parametrize("wait", ["item", "synchronize", "stream", "event"])
def test_whoever_waits_for_the_card_gets_the_error(wait):
    on_a_card()
    weight = mg.tensor(np.ones((3, 4)), mg.float32, device="cuda")
    rows = mg.nn.functional.embedding(mg.tensor([0, 3], device="cuda"), weight)
    event = mg.cuda.current_stream().record_event()
    waits = {
        "item": rows[0, 0].item,
        "synchronize": mg.cuda.synchronize,
        "stream": mg.cuda.current_stream().synchronize,
        "event": event.synchronize,
    }
    with pytest.raises(IndexError, match="embedding: index 3 is out of range: weight has 3 rows"):
        waits[wait]()
    assert np.isnan(rows.numpy()[1]).all() and (rows.numpy()[0] == 1).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_wrong_target_raises_where_the_loss_is_read(reduction):
    on_a_card()
    logits = mg.tensor(np.zeros((4, 5)), mg.float32, device="cuda", requires_grad=True)
    target = mg.tensor([0, 5, 4, -100], device="cuda")
    loss = mg.nn.functional.cross_entropy(logits, target, reduction=reduction)
    with pytest.raises(ValueError, match="target 5 is out of range: the input has 5 classes"):
        loss.tolist()
    loss.sum().backward()
    assert np.isfinite(logits.grad.numpy()).all() and not logits.grad.numpy()[[1, 3]].any()
