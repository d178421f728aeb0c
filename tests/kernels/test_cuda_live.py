"""Numbers that a recorded step reads from memory: how they get there, and the kernels that read them."""

import re

import numpy as np
import pytest

from minigrad.kernels.cuda import live, optim, random
from minigrad.kernels.cuda.live import LiveNumbers
from minigrad.kernels.launch import CudaKernel

DTYPES = [np.float32, np.float64]


def written(backend, format, *numbers):
    """Live numbers that stand in memory."""
    place = LiveNumbers(backend.put(np.zeros(8, np.uint64)))
    place.add("Q", lambda: (1,))
    found = place.add(format, lambda: numbers)
    place.write()
    return found


def test_words_are_written_when_they_change(backend, monkeypatch, rng):
    launches = []
    write = live._write
    monkeypatch.setattr(
        live,
        "_write",
        type("Counted", (), {"launch": lambda *a: launches.append(a[-1]) or write.launch(*a[1:])})(),
    )
    words = backend.put(np.full(80, 7, np.uint64))
    place = LiveNumbers(words)
    place.write()
    assert launches == []
    values = {"d": rng.standard_normal(3), "Q": [0, 2**64 - 1, 2**63 + 5]}
    doubles = place.add("ddd", lambda: values["d"])
    integers = place.add("QQQ", lambda: values["Q"])
    many = place.add("d" * 64, lambda: np.arange(64.0))
    for _ in range(2):
        place.write()
        assert backend.get(doubles.words).tolist() == list(values["d"])
        assert backend.get(integers.words).tolist() == values["Q"]
        assert backend.get(many.words).tolist() == list(range(64))
        assert backend.get(words)[70:].tolist() == [7] * 10
        place.write()
        values = {"d": [np.inf, -0.0, 1e-300], "Q": [3, 4, 5]}
    assert len(launches) == 2 * 3  # 70 words in launches of 32
    with pytest.raises(MemoryError, match="a captured step has more than 80 live numbers"):
        place.add("Q" * 11, lambda: range(11))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [5, 1025])
def test_a_step_of_an_optimizer_with_live_factors(backend, rng, n, dtype):
    def step(kernel, arrays, *factors):
        own = [backend.put(array.copy()) for array in arrays]
        kernel(*own[: len(arrays)], *factors)
        return [backend.get(array) for array in own]

    param, grad, first, second = rng.random((4, n)).astype(dtype)
    lr = 0.0123456789
    for sgd in ((0.0, 0.0, 0.1, False, False), (0.9, 0.2, 0.1, False, False), (0.9, 0.0, 0.0, True, False)):
        velocity = [first] if sgd[0] else []

        def kernel(param, grad, *rest):
            optim.sgd_step(param, grad, *(rest if len(rest) > 6 else (None, *rest)))

        plain = step(kernel, (param, grad, *velocity), lr, *sgd)
        live = written(backend, "d", lr), *sgd
        if velocity:
            live = live[0], written(backend, "d", sgd[0]), *sgd[1:]
        for a, b in zip(plain, step(kernel, (param, grad, *velocity), *live), strict=True):
            assert np.array_equal(a, b)
    for decoupled in (False, True):
        options = (lr, 0.9, 0.99, 1e-8, 0.1, decoupled)
        plain = step(optim.adam_step, (param, grad, first, second), *options, 7)
        factors = written(backend, "dddd", *optim.adam_factors(lr, 0.9, 0.99, 0.1, decoupled, 7))
        options = (lr, 0.5, 0.99, 1e-8, 0.1, decoupled)  # the first beta is among the factors
        for a, b in zip(
            plain, step(optim.adam_step, (param, grad, first, second), *options, factors), strict=True
        ):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rung", ["naive", "block"])
def test_random_numbers_of_a_live_stream(backend, rng, rung, dtype):
    x = backend.put(rng.standard_normal(1027).astype(dtype))
    seed, offset = 2**63 + 9, 2**40 + 3
    stream = written(backend, "QQ", seed, offset)
    for name, inputs in (("uniform", ()), ("normal", ()), ("dropout", (x, 2**30, 1.25))):
        kernel, found = getattr(random, f"{name}_{rung}"), []
        for of_stream in ((seed, offset), (stream, stream)):
            out = backend.put(np.full(1027, np.nan, dtype))
            kernel(out, *inputs, *of_stream)
            found.append(backend.get(out))
        assert np.array_equal(*found)


def test_a_kernel_that_knows_of_no_live_numbers_refuses_them(backend):
    kernel = CudaKernel("__global__ void k(float* x, float lr) {}", "k")
    lr = written(backend, "d", 0.1)
    with pytest.raises(
        TypeError, match=re.escape("expects a number (float32), got Live <changes in each replay>")
    ):
        kernel.launch(1, 1, (backend.put(np.zeros(1, np.float32)), lr))
