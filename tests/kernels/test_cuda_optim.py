"""The CUDA kernels of the optimizers against their references in float64, over several steps."""

import itertools

import numpy as np
import pytest

import minigrad as mg
from minigrad.kernels import cuda, sim
from minigrad.kernels.cuda import optim, optim_many
from minigrad.optim.adam import adam_step
from minigrad.optim.sgd import sgd_step

DTYPES = [np.float32, np.float64]
STEPS = 4
# Vectors are 2 or 4 elements, blocks 512 or 1024.
SIZES = [*range(10), 511, 512, 513, 1023, 1024, 1025, 2051]

ADAM = [(0.0, False), (0.1, False), (0.1, True)]  # weight_decay, decoupled
SGD = [
    # momentum, dampening, weight_decay, nesterov
    *((0.0, 0.0, 0.0, False), (0.0, 0.0, 0.1, False), (0.9, 0.0, 0.0, False)),
    *((0.9, 0.3, 0.1, False), (0.9, 0.0, 0.1, True)),
]


@pytest.fixture(params=["sim", "cuda"])
def xp(request):
    """The array module of a device: NumPy for the simulator, CuPy for a card."""
    if request.param == "cuda":
        if not cuda.is_available():
            pytest.skip(cuda.why_unavailable())
        return cuda.cupy()
    if not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    return np


needs_simulator = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


def draw(n, dtype):
    rng = np.random.default_rng(0)
    return rng.standard_normal(n).astype(dtype), rng.standard_normal((STEPS, n)).astype(dtype)


def adam(step, param, grads, exp_avg, exp_avg_sq, weight_decay, decoupled):
    """``step``, a kernel or the reference, with each of ``grads``."""
    for number, grad in enumerate(grads, 1):
        step(
            param,
            grad,
            exp_avg,
            exp_avg_sq,
            lr=0.01,
            beta1=0.9,
            beta2=0.99,
            eps=1e-8,
            weight_decay=weight_decay,
            decoupled=decoupled,
            step=number,
        )


def sgd(step, param, grads, velocity, momentum, dampening, weight_decay, nesterov):
    for number, grad in enumerate(grads):
        step(
            param,
            grad,
            velocity if momentum else None,
            lr=0.1,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            first_step=number == 0,
        )


def by_reference(run, update, param, grads, states, options):
    """The parameter and its states after all steps, in float64."""
    arrays = [param.astype(np.float64), *(np.zeros(param.shape) for _ in range(states))]

    def step(*arguments, **factors):
        update.reference(np, *arguments, **factors)

    run(step, arrays[0], grads.astype(np.float64), *arrays[1:], *options)
    return arrays


def assert_near(actual, expected, dtype):
    # About ten roundings in each step, of numbers below 5; Adam's step is lr times a ratio that the bias
    # corrections keep near 1, unless gradients cancel in exp_avg.
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=10 * STEPS * 5 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ADAM)
def test_adam(xp, dtype, options):
    for n in SIZES:
        param, grads = draw(n, dtype)
        expected = by_reference(adam, adam_step, param, grads, 2, options)
        actual = [xp.asarray(param), xp.zeros(n, dtype), xp.zeros(n, dtype)]
        adam(optim.adam_step, actual[0], xp.asarray(grads), *actual[1:], *options)
        assert_near([a if xp is np else xp.asnumpy(a) for a in actual], expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", SGD)
def test_sgd(xp, dtype, options):
    for n in SIZES:
        param, grads = draw(n, dtype)
        expected = by_reference(sgd, sgd_step, param, grads, 1, options)
        # What the buffer holds before the first step does not matter.
        actual = [xp.asarray(param), xp.full(n, np.nan, dtype)]
        sgd(optim.sgd_step, actual[0], xp.asarray(grads), actual[1], *options)
        with_velocity = 2 if options[0] else 1
        assert_near(
            [a if xp is np else xp.asnumpy(a) for a in actual[:with_velocity]],
            expected[:with_velocity],
            dtype,
        )


# ---- 16 bits ----------------------------------------------------------------------------------------------

HALVES = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}
"""Half a unit in the last place, relative; and half of the smallest number."""


def half_named(name):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def assert_a_step_is_rounded_once(xp, name, kernel, update, states, **options):
    """One step of ``kernel`` from the numbers that the one before left, against the float64 reference."""
    dtype, (unit, smallest) = half_named(name), HALVES[name]
    for n in (1, 7, 2047, 2048, 4101):
        param, grads = draw(n, dtype)
        arrays = [xp.asarray(param), *(xp.zeros(n, dtype) for _ in range(states))]
        for number, grad in enumerate(grads):
            expected = [a.astype(np.float64) for a in on_host(xp, arrays)]
            own = {key: value(number) if callable(value) else value for key, value in options.items()}
            given = [xp.asarray(grad), *arrays[1:]] if states else [xp.asarray(grad), None]
            wide = [grad.astype(np.float64), *expected[1:]] if states else [grad.astype(np.float64), None]
            kernel(arrays[0], *given, **own)
            update.reference(np, expected[0], *wide, **own)
            for actual, exact in zip(on_host(xp, arrays), expected, strict=True):
                bound = unit * np.abs(exact) + 2 * 50 * np.finfo(np.float32).eps + smallest
                assert (np.abs(actual.astype(np.float64) - exact) <= bound).all()


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize(("weight_decay", "decoupled"), ADAM)
def test_adam_of_16_bits(xp, name, weight_decay, decoupled):
    options = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "step": lambda number: number + 1}
    decay = {"weight_decay": weight_decay, "decoupled": decoupled}
    assert_a_step_is_rounded_once(xp, name, optim.adam_step, adam_step, 2, **options, **decay)


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize(("momentum", "dampening", "weight_decay", "nesterov"), SGD)
def test_sgd_of_16_bits(xp, name, momentum, dampening, weight_decay, nesterov):
    options = {"lr": 0.1, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
    options |= {"nesterov": nesterov, "first_step": lambda number: number == 0}
    assert_a_step_is_rounded_once(xp, name, optim.sgd_step, sgd_step, int(momentum > 0), **options)


@pytest.mark.parametrize("name", HALVES)
def test_many_of_16_bits_have_the_bits_of_each_alone(xp, name):
    dtype = half_named(name)
    drawn = [draw(n, dtype) for n in (3, 2051)]
    rows = [on_device(xp, [param, grads[0], *np.zeros((2, param.size), dtype)]) for param, grads in drawn]
    alone = [[array.copy() for array in row] for row in rows]
    options = 0.01, 0.9, 0.99, 1e-8, 0.1, True
    optim_many.adam_step(*map(list, zip(*rows, strict=True)), [1, 1], *options)
    for row, other in zip(rows, alone, strict=True):
        optim.adam_step(*other, *options, 1)
        for found, expected in zip(on_host(xp, row), on_host(xp, other), strict=True):
            assert found.tobytes() == expected.tobytes()


# ---- many parameters in one launch ------------------------------------------------------------------------


def on_device(xp, arrays):
    return [xp.array(array) for array in arrays]


def on_host(xp, arrays):
    return [array if xp is np else xp.asnumpy(array) for array in arrays]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [SIZES, [0], [3] * 130, [0, 5, 0, 2051, 0]])
def test_adam_of_many(xp, dtype, sizes):
    """Each parameter is as far as if it were alone; every other one is a step ahead."""
    weight_decay, decoupled = ADAM[2]
    drawn = [draw(n, dtype) for n in sizes]
    params, firsts, seconds = (
        on_device(xp, arrays)
        for arrays in (
            [param for param, _ in drawn],
            *([np.zeros(n, dtype) for n in sizes] for _ in range(2)),
        )
    )
    ahead = [number % 2 for number in range(len(sizes))]
    for at in range(STEPS - 1):
        grads = on_device(xp, [grads[at] for _, grads in drawn])
        steps = [at + 1 + more for more in ahead]
        options = (0.01, 0.9, 0.99, 1e-8, weight_decay, decoupled)
        optim_many.adam_step(params, grads, firsts, seconds, steps, *options)
    for i, (param, grads) in enumerate(drawn):
        expected = [param.astype(np.float64), np.zeros(sizes[i]), np.zeros(sizes[i])]
        for at in range(STEPS - 1):
            adam_step.reference(
                np, expected[0], grads[at].astype(np.float64), *expected[1:], lr=0.01, beta1=0.9, beta2=0.99,
                eps=1e-8, weight_decay=weight_decay, decoupled=decoupled, step=at + 1 + ahead[i],
            )  # fmt: skip
        assert_near(on_host(xp, [params[i], firsts[i], seconds[i]]), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", SGD)
def test_sgd_of_many(xp, dtype, options):
    momentum, dampening, weight_decay, nesterov = options
    drawn = [draw(n, dtype) for n in SIZES]
    params = on_device(xp, [param for param, _ in drawn])
    velocities = (
        on_device(xp, [np.full(n, np.nan, dtype) for n in SIZES]) if momentum else [None] * len(SIZES)
    )
    for at in range(STEPS):
        grads, first = on_device(xp, [grads[at] for _, grads in drawn]), [at == 0] * len(SIZES)
        optim_many.sgd_step(
            params, grads, velocities, first, 0.1, momentum, dampening, weight_decay, nesterov
        )
    for i, (param, grads) in enumerate(drawn):
        expected = by_reference(sgd, sgd_step, param, grads, 1, options)
        found = [params[i], velocities[i]] if momentum else [params[i]]
        assert_near(on_host(xp, found), expected[: len(found)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [SIZES, [3] * 130, [0, 5, 0, 2051, 0], [1 << 20, 3, 100_001]])
@pytest.mark.parametrize("share", [0.3, 1.5])
def test_the_norm_of_many_gradients(xp, dtype, sizes, share):
    """Clipped to a share of it; if that is above 1, not a bit changes."""
    grads = [draw(n, dtype)[0] for n in sizes]
    given = on_device(xp, grads)
    norm = np.sqrt(sum(np.sum(grad.astype(np.float64) ** 2) for grad in grads))
    partial = optim_many.squares(given)
    assert partial.size <= optim_many.ENOUGH_BLOCKS + len(sizes)
    found, *scaled = on_host(xp, [optim_many.clip(given, partial, share * norm), *given])
    # A thread adds some dozen terms here, and there are fifteen levels of sums over the threads and blocks.
    eps = np.finfo(dtype).eps
    assert found.shape == () and abs(found - norm) <= 30 * eps * norm
    factor = share * norm / (norm + 1e-6)
    for after, grad in zip(scaled, grads, strict=True):
        if share > 1:
            assert np.array_equal(after, grad)
        else:
            np.testing.assert_allclose(after, grad * factor, rtol=40 * eps)


@pytest.mark.parametrize(("wrong", "scaled"), [(np.nan, np.nan), (np.inf, 0)])
def test_clipping_by_a_norm_that_is_no_number(xp, wrong, scaled):
    given = on_device(xp, [np.ones(3), np.array([wrong, 1.0])])
    norm, *found = on_host(xp, [optim_many.clip(given, optim_many.squares(given), 1.0), *given])
    np.testing.assert_equal(norm, wrong)
    np.testing.assert_equal(found, [[scaled] * 3, [np.nan, scaled]])


def test_what_one_launch_takes(xp):
    params = [xp.ones(8), xp.ones((2, 3))]
    grads = [xp.ones(8), xp.ones((2, 3))]
    assert optim_many.fits(params, grads, [None, None])
    assert not optim_many.fits(params, [grads[0], xp.ones((3, 2)).T])
    assert not optim_many.fits(params, [grads[0], xp.ones((2, 2))])
    assert not optim_many.fits(params, [grads[0].astype(np.float32), grads[1]])


@needs_simulator
def test_a_parameter_that_starts_anywhere_among_others():
    param, grads = draw(1030, np.float32)
    p, g = off_by(1, param), off_by(0, grads[0])
    others = np.ones(5, np.float32), np.ones(5, np.float32)
    optim_many.sgd_step([others[0], p], [others[1], g], [None] * 2, [True] * 2, 0.5, 0, 0, 0, False)
    assert np.array_equal(p, param - np.float32(0.5) * grads[0]) and (others[0] == 0.5).all()


@needs_simulator
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_that_start_anywhere(dtype):
    """With every access checked: a vector at an odd address, or past the end, is an error."""
    n = 1030
    param, grads = draw(n, dtype)
    expected = by_reference(adam, adam_step, param, grads, 2, ADAM[0])
    expected_sgd = by_reference(sgd, sgd_step, param, grads, 1, SGD[2])
    zeros = np.zeros_like(param)
    for starts in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 1, 1)):
        p, g, m, v = (
            off_by(start, x) for start, x in zip(starts, (param, grads[0], zeros, zeros), strict=True)
        )

        def gradients(into=g):
            for grad in grads:
                into[...] = grad
                yield into

        with sim.checks():
            adam(optim.adam_step, p, gradients(), m, v, *ADAM[0])
        assert_near([p, m, v], expected, dtype)
        p[...], m[...] = param, np.nan
        with sim.checks():
            sgd(optim.sgd_step, p, gradients(), m, *SGD[2])
        assert_near([p, m], expected_sgd, dtype)


def off_by(elements, array):
    """A copy of ``array`` that starts ``elements`` elements past a multiple of 16 bytes."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 16 + elements * array.itemsize
    view = memory[start : start + array.nbytes].view(array.dtype)
    view[...] = array
    return view


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(xp, dtype):
    def step(param, grad):
        param, grad = xp.full(3, param, dtype), xp.full(3, grad, dtype)
        by_sgd = param.copy()
        optim.adam_step(
            param, grad, xp.zeros(3, dtype), xp.zeros(3, dtype), 0.1, 0.9, 0.999, 1e-8, 0.0, False, 1
        )
        optim.sgd_step(by_sgd, grad, None, 0.1, 0, 0, 0, False, True)
        return float(param[0]), float(by_sgd[2])

    assert step(1, 0) == (1, 1)  # a gradient of 0 is divided by eps alone
    assert step(np.inf, 1) == (np.inf, np.inf)  # without decay an infinite parameter stays one
    assert np.isnan(step(1, np.nan)).all()


@needs_simulator
def test_every_thread_order_gives_the_same_bits():
    param, grads = draw(2051, np.float32)

    def results():
        p, m, v = param.copy(), np.zeros_like(param), np.zeros_like(param)
        adam(optim.adam_step, p, grads, m, v, *ADAM[2])
        sgd(optim.sgd_step, p, grads, m, *SGD[4])
        return p.tobytes() + m.tobytes() + v.tobytes()

    expected = results()
    for seed, workers in itertools.product((1, 2, 12345), (1, 3)):
        with sim.seed(seed), sim.num_threads(workers):
            assert results() == expected


@needs_simulator
@pytest.mark.parametrize(
    "make",
    [
        lambda params: mg.optim.SGD(params, 0.1, momentum=0.9, nesterov=True),
        lambda params: mg.optim.AdamW(params, 0.1),
    ],
)
def test_optimizers_run_these_kernels(make):
    assert mg.get_kernel("adam_step", "sim") == mg.get_kernel("sgd_step", "sim") == "fused"
    assert mg.get_kernel("adam_step", "cuda") == mg.get_kernel("sgd_step", "cuda") == "many"
    trained = {}
    for device in ("cpu", "sim"):
        params = [mg.tensor([[1.0, 2.0], [3.0, 4.0]], mg.float64, device=device, requires_grad=True)]
        optimizer = make(params)
        for _ in range(3):
            optimizer.zero_grad()
            (params[0] * params[0]).sum().backward()
            optimizer.step()
        trained[device] = params[0].detach().numpy()
    np.testing.assert_allclose(trained["sim"], trained["cpu"], rtol=1e-13)


def test_wrong_arguments_change_nothing():
    param, state = np.ones(8, np.float32), np.zeros(8, np.float32)
    options = (0.1, 0.9, 0.999, 1e-8, 0.0, False)
    with pytest.raises(ValueError, match=r"one shape, got \(8,\), \(8,\), \(8,\), \(4,\)"):
        optim.adam_step(param, param, state, state[:4].copy(), *options, 1)
    with pytest.raises(TypeError, match="one dtype, got float32, float64, float32, float32"):
        optim.adam_step(param, param.astype(float), state, state, *options, 1)
    buffer = np.ones(8)
    with pytest.raises(TypeError, match="one dtype, got float32, float32, float64"):
        optim.sgd_step(param, param, buffer, 0.1, 0.9, 0, 0, False, True)
    with pytest.raises(ValueError, match="from 1"):
        optim.adam_step(param, param, state, state, *options, 0)
    with pytest.raises(ValueError, match="one shape"):
        optim.sgd_step(param, param, state[:4], 0.1, 0.9, 0, 0, False, True)
    np.testing.assert_array_equal(param, 1)
    np.testing.assert_array_equal(state, 0)
    np.testing.assert_array_equal(buffer, 1)
