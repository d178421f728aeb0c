"""Random numbers and dropout, on CUDA and on the CPU, against Philox on whole arrays."""

import itertools

import numpy as np
import pytest

from minigrad.kernels import cuda, philox, sim
from minigrad.kernels.cuda import random

DTYPES = [np.float32, np.float64]
SIZES = [0, 1, 3, 4, 5, 255, 1024, 4099]  # around the four elements of a thread, and several blocks
STREAMS = [(0, 0), (5, 2**33 + 1), (2**63 + 7, 2**64 - 1)]
RUNGS = ["naive", "block"]

needs_simulator = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


@pytest.fixture(params=["sim", "cuda"])
def run(request):
    """``run(kernel, out, *args)``: what ``kernel`` makes of ``out``; any array may start at any element."""
    if request.param == "sim" and not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    if request.param == "cuda" and not cuda.is_available():
        pytest.skip(cuda.why_unavailable())
    put, get = (np.array, np.array) if request.param == "sim" else (cuda.cupy().asarray, cuda.cupy().asnumpy)

    def run(kernel, out, *args, shift=0):
        def place(array):
            return put(np.concatenate([np.full(shift, np.nan, array.dtype), array]))[shift:]

        out = place(out)
        kernel(out, *(place(a) if isinstance(a, np.ndarray) else a for a in args))
        return get(out)

    return run


def nan(size, dtype):
    return np.full(size, np.nan, dtype)


# ---- the generator ----------------------------------------------------------------------------------------

# Counter, key, result: the known answers that the paper's authors publish with their library, Random123.
KNOWN_ANSWERS = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (  # the digits of pi
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_by_integers(counter, key):
    """Philox4x32-10 as the paper writes it, on Python's integers."""
    (left0, right0, left1, right1), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * left0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * left1, 2**32)
        left0, right0, left1, right1 = high1 ^ right0 ^ k0, low1, high0 ^ right1 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return left0, right0, left1, right1


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    found = philox.philox(np, [np.array([word], np.uint64) for word in counter], key)
    assert tuple(found[:, 0].tolist()) == expected == philox_by_integers(counter, key)


@pytest.mark.parametrize(("seed", "offset"), STREAMS)
def test_a_stream_is_made_of_blocks(seed, offset):
    expected = [
        word
        for block in range(6)
        for word in philox_by_integers((block, 0, offset % 2**32, offset >> 32), (seed % 2**32, seed >> 32))
    ]
    for count in (0, 1, 4, 7, 24):
        found = philox.words(np, count, seed, offset)
        assert found.dtype == np.uint32 and found.tolist() == expected[:count]


def test_uniform_numbers_are_their_words_scaled():
    words = philox.words(np, 40, 3, 4).tolist()
    single, double = (philox.uniform(np, 20, dtype, 3, 4) for dtype in DTYPES)
    assert [x * 2**24 for x in single.tolist()] == [word >> 8 for word in words[:20]]
    pairs = zip(words[0::2], words[1::2], strict=True)
    assert [x * 2**53 for x in double.tolist()] == [(low + (high << 32)) >> 11 for low, high in pairs]


# ---- kernels ----------------------------------------------------------------------------------------------


def assert_normal(actual, dtype, seed, offset):
    """Within what rounding the angle (up to 2 pi), its sine, the logarithm and their product may do."""
    expected = philox.normal(np, actual.size, dtype, seed, offset)
    pairs = np.append(expected, np.zeros(actual.size % 2, dtype)).reshape(-1, 2)
    radius = np.repeat(np.hypot(*pairs.T), 2)[: actual.size]
    if actual.size % 2:
        radius[-1] = 9  # the last one's partner was not drawn; no radius is larger
    assert (np.abs(actual - expected) <= 16 * np.finfo(dtype).eps * radius).all()


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_uniform_and_normal_kernels(run, rung, dtype, size):
    for (seed, offset), shift in itertools.product(STREAMS, (0, 1)):
        found = run(getattr(random, f"uniform_{rung}"), nan(size, dtype), seed, offset, shift=shift)
        assert np.array_equal(found, philox.uniform(np, size, dtype, seed, offset))
        found = run(getattr(random, f"normal_{rung}"), nan(size, dtype), seed, offset, shift=shift)
        assert_normal(found, dtype, seed, offset)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_dropout_kernels(run, rung, dtype, size):
    x = np.random.default_rng(size).standard_normal(size).astype(dtype)
    x[::7], x[3::11] = np.inf, np.nan
    for (seed, offset), p, shift in itertools.product(STREAMS, (0.1, 0.5), (0, 1)):
        scale = 1 / (1 - p)
        arguments = (philox.threshold(p), scale, seed, offset)
        found = run(getattr(random, f"dropout_{rung}"), nan(size, dtype), x, *arguments, shift=shift)
        with np.errstate(invalid="ignore"):
            expected = x * np.where(philox.kept(np, size, p, seed, offset), dtype(scale), dtype(0))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [*SIZES, 511, 513, 40_001])
def test_cpu_kernels(kernel_module, dtype, size, threads):
    kernels = kernel_module("random")
    x = np.random.default_rng(size).standard_normal(size).astype(dtype)
    for seed, offset in STREAMS:
        out = nan(size, dtype)
        kernels.uniform(out, seed, offset, threads)
        assert np.array_equal(out, philox.uniform(np, size, dtype, seed, offset))
        kernels.normal(out, seed, offset, threads)
        assert_normal(out, dtype, seed, offset)
        kernels.dropout(out, x, philox.threshold(0.3), 1 / 0.7, seed, offset, threads)
        kept = philox.kept(np, size, 0.3, seed, offset)
        assert np.array_equal(out, x * np.where(kept, dtype(1 / 0.7), dtype(0)))


def test_kernels_refuse_what_does_not_fit(kernel_module):
    x = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"out has shape \(4,\), x has \(3,\)"):
        random.dropout_block(np.empty(4, np.float32), x, 1, 2.0, 0, 0)
    with pytest.raises((OverflowError, ValueError), match="seed"):
        random.uniform_block(x, -1, 0)
    kernels = kernel_module("random")
    with pytest.raises(ValueError, match="one shape"):
        kernels.dropout(np.empty(4, np.float32), x, 1, 2.0, 0, 0, 1)
    with pytest.raises(TypeError, match="float32 or float64, got int64"):
        kernels.uniform(np.empty(4, np.int64), 0, 0, 1)
    with pytest.raises(OverflowError):
        kernels.normal(x, 2**64, 0, 1)


@needs_simulator
def test_every_thread_order_gives_the_same_bits_and_the_checks_pass():
    x = np.random.default_rng(0).standard_normal(3001)

    def results():
        found = []
        for dtype, rung in itertools.product(DTYPES, RUNGS):
            out = np.empty((3, x.size), dtype)
            getattr(random, f"uniform_{rung}")(out[0], 1, 2)
            getattr(random, f"normal_{rung}")(out[1], 1, 2)
            getattr(random, f"dropout_{rung}")(out[2], x.astype(dtype), philox.threshold(0.5), 2.0, 1, 2)
            found.append(out.tobytes())
        return found

    expected = results()
    for seed, workers in ((1, 1), (2, 3)):
        with sim.seed(seed), sim.num_threads(workers):
            assert results() == expected
    with sim.checks():
        assert results() == expected


# ---- statistics -------------------------------------------------------------------------------------------

N = 200_000


def deviations(samples, mean, variance):
    """How many of its standard deviations the mean of ``samples`` is away from ``mean``."""
    return abs(samples.mean(dtype=np.float64) - mean) / np.sqrt(variance / samples.size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_moments(dtype, seed):
    """Six standard deviations: one in 500 million, and these seeds are fixed."""
    u, z = (draw(np, N, dtype, seed, 9).astype(np.float64) for draw in (philox.uniform, philox.normal))
    assert u.min() >= 0 and u.max() < 1
    # Moment k of a uniform number is 1 / (k + 1), of a normal one 0, 1, 0, 3, 0, 15, 0, 105.
    for k in (1, 2, 3):
        assert deviations(u**k, 1 / (k + 1), 1 / (2 * k + 1) - 1 / (k + 1) ** 2) < 6
    for k, (mean, square) in enumerate([(0, 1), (1, 3), (0, 15), (3, 105)], start=1):
        assert deviations(z**k, mean, square - mean**2) < 6
    for x, mean, variance in ((u, 0.5, 1 / 12), (z, 0.0, 1.0)):  # neighbours are not correlated
        for lag in (1, 2, 3, 4):
            assert deviations((x[lag:] - mean) * (x[:-lag] - mean), 0, variance**2) < 6


def test_no_number_comes_twice():
    """53 bits: of 200 000 numbers, two are equal with a probability of 2e-6; streams have none in common."""
    streams = [philox.uniform(np, N // 4, np.float64, seed, offset) for seed in (0, 1) for offset in (0, 1)]
    assert np.unique(np.concatenate(streams)).size == N


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
def test_share_of_what_is_dropped(p):
    assert deviations(~philox.kept(np, N, p, 4, 0), p, p * (1 - p)) < 6


def test_thresholds():
    assert [philox.threshold(p) for p in (0.0, 0.25, 0.5)] == [0, 2**30, 2**31]
    assert philox.threshold(1.0) == philox.threshold(1 - 1e-12) == 2**32 - 1
