"""Barriers that not all threads reach, threads that wait for each other, and the orders in which they run."""

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from simulated import launch, message, zeros

from minigrad.kernels import sim
from minigrad.kernels.cuda import conv2d, matmul, optim, random, reduce, softmax
from minigrad.kernels.errors import KernelLaunchError, KernelOrderError
from minigrad.kernels.launch import CudaKernel
from minigrad.kernels.sim.architectures import SHARED_BYTES

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


@pytest.fixture(autouse=True)
def checked():
    with sim.checks(True):
        yield


def failure(*args, **options):
    return message(*args, error=KernelLaunchError, **options)


# ---- barriers ----------------------------------------------------------------------------------------------


def test_early_return_before_a_barrier():
    body = """
    if (threadIdx.x > 40) return;
    __syncthreads();
    y[threadIdx.x] = 1;
    """
    text = failure(body, zeros(64), block=64)
    assert text.startswith(
        "k, block (0, 0, 0): a barrier that not all threads of the block reach: 23 have returned"
    )
    assert "the first of them thread (41, 0, 0); let every thread come to the barrier" in text
    assert "41 wait in __syncthreads() at kernel.cu:3, the first of them thread (0, 0, 0)" in text
    with sim.checks(False):
        assert launch(body, zeros(64), block=64).sum() == 41  # as a card of today does it


def test_a_warp_that_returns_after_the_last_barrier_is_fine():
    assert (
        launch("__syncthreads(); if (threadIdx.x >= 32) return; y[threadIdx.x] = 1;", zeros(64), block=64)[31]
        == 1
    )


def test_barrier_inside_a_condition():
    body = """
    if (threadIdx.x % 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    y[threadIdx.x] = 1;
    """
    text = failure(body, zeros(64), block=64)
    assert (
        "threads of one block wait at different barriers; __syncthreads() must stand where all threads"
        in text
    )
    assert (
        "32 wait in __syncthreads() at kernel.cu:5" in text
        and "32 wait in __syncthreads() at kernel.cu:3" in text
    )


def test_loops_of_different_lengths_around_a_barrier():
    text = failure("for (int i = 0; i < threadIdx.x; i++) __syncthreads();\ny[0] = 1;", zeros(1))
    assert "a barrier that not all threads of the block reach: 1 have returned before it" in text


def test_a_lock_of_compare_and_swap():
    body = """
    while (atomicCAS(lock, 0, 1)) {}
    y[0] = y[0] + 1;
    __threadfence();
    atomicExch(lock, 0);
    """
    for order in sim.ORDERS:
        with sim.order(order):
            arrays = zeros(1), zeros(1, dtype=np.int32)
            assert launch(body, *arrays, parameters="float* y, int* lock", grid=3, block=64)[0] == 192


def test_waiting_for_a_block_that_has_not_started():
    body = "if (blockIdx.x == 0) { while (atomicAdd(flag, 0) == 0) {} } else atomicExch(flag, 1);\n"
    text = failure(body, zeros(1, dtype=np.int32), parameters="int* flag", grid=2)
    assert "block (0, 0, 0): livelock, threads wait in loops for what none of them does" in text
    assert "32 wait in a loop of atomic operations, the first of them thread (0, 0, 0)" in text
    with sim.order("reverse"):
        launch(body, zeros(1, dtype=np.int32), parameters="int* flag", grid=2)


# ---- the limits of a card ----------------------------------------------------------------------------------


def test_shared_memory_of_an_architecture():
    body = "extern __shared__ float s[];\n__shared__ float t[32];\ns[threadIdx.x] = t[threadIdx.x] = 0;"
    dynamic = SHARED_BYTES["sm_75"] - 128
    with sim.architecture("sm_75"):
        launch(body, zeros(1), shared_bytes=dynamic)
        text = failure(body, zeros(1), shared_bytes=dynamic + 4)
    assert "a block has 65540 bytes of shared memory, 65412 of them dynamic; sm_75 allows 65536" in text
    launch(body, zeros(1), shared_bytes=dynamic + 4)
    with pytest.raises(ValueError, match=r"architecture is one of sm_70, .*, got 'sm_1'"):
        sim.set_architecture("sm_1")


def test_dynamic_shared_memory_alone():
    with sim.architecture("sm_75"):
        text = failure("extern __shared__ float s[];\ns[threadIdx.x] = 0;", zeros(1), shared_bytes=65540)
    assert text == "k: launched with 65540 bytes of shared memory for each block; sm_75 allows 65536"


def test_launch_bounds():
    code = """
    template <typename T, int WARPS>
    __global__ void __launch_bounds__(32 * WARPS, 2) k(T* y) { y[threadIdx.x] = 1; }"""
    CudaKernel(code, "k<T, 2>").launch(1, 64, (zeros(64),))
    with pytest.raises(
        KernelLaunchError, match=r"k<float, 2>: launched with blocks of 65 threads, but .* allow 64"
    ):
        CudaKernel(code, "k<T, 2>").launch(1, 65, (zeros(65),))


# ---- orders ------------------------------------------------------------------------------------------------

TICKETS = "y[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(ticket, 1);"


def tickets(order, seed=0, block=64, grid=3):
    """The number in which each thread had its first turn."""
    with sim.order(order), sim.seed(seed):
        arrays = zeros(block * grid, dtype=np.int32), zeros(1, dtype=np.int32)
        return launch(TICKETS, *arrays, parameters="int* y, int* ticket", grid=grid, block=block)


def test_forward_and_reverse():
    assert tickets("forward").tolist() == list(range(192))
    assert tickets(None).tolist() == list(range(192))
    assert tickets("reverse").tolist() == list(range(192))[::-1]


def test_random_orders_are_drawn_from_the_seed():
    orders = {seed: tickets("random", seed) for seed in range(1, 6)}
    assert len({order.tobytes() for order in orders.values()}) == 5
    for seed, order in orders.items():
        assert sorted(order) == list(range(192))
        assert np.array_equal(order, tickets("random", seed))
        assert np.array_equal(order, tickets(None, seed))
        blocks = order.reshape(3, 64)
        assert (np.ptp(blocks, axis=1) == 63).all()  # block by block
    starts = {tuple(np.argsort(tickets("random", s).reshape(3, 64).min(1))) for s in range(1, 20)}
    assert len(starts) > 3  # and the blocks in several orders


def test_every_block_has_its_turn():
    for grid in (1, 2, 6, 30, 97):
        for seed in (1, 2, 3):
            assert sorted(tickets("random", seed, block=1, grid=grid)) == list(range(grid))


def test_warps_go_on_alone():
    body = """
    for (int i = 0; i < 3; i++) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) y[threadIdx.x / 32 * 3 + i] = atomicAdd(ticket, 1);
    }
    """
    arrays = zeros(6, dtype=np.int32), zeros(1, dtype=np.int32)
    with sim.order("warps"):
        assert launch(body, *arrays, parameters="int* y, int* ticket", block=64).tolist() == [
            0,
            1,
            2,
            3,
            4,
            5,
        ]
    arrays = zeros(6, dtype=np.int32), zeros(1, dtype=np.int32)
    with sim.order("forward"):
        assert launch(body, *arrays, parameters="int* y, int* ticket", block=64).tolist() == [
            0,
            2,
            4,
            1,
            3,
            5,
        ]


def test_order_settings():
    assert sim.get_order() == "forward"
    with sim.seed(4):
        assert sim.get_order() == "random"
    with sim.order("warps"):
        assert sim.get_order() == "warps"
    with pytest.raises(ValueError, match="one of forward, reverse, random, warps, or None, got 'sideways'"):
        sim.set_order("sideways")


# ---- stress ------------------------------------------------------------------------------------------------


def test_orders_of_a_stress():
    assert sim.orders() == [("forward", 0)]
    with sim.stress(8):
        orders = sim.orders()
    assert len(orders) == len(set(orders)) == 8
    assert {order.name for order in orders} == set(sim.ORDERS)
    with sim.stress(1):
        assert len(sim.orders()) == 1
    with pytest.raises(ValueError, match="number of orders is an integer from 1, got 0"), sim.stress(0):
        pass


@pytest.mark.parametrize("checked", [True, False])
def test_sums_in_the_order_of_atomics(checked):
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    y = zeros(1)
    with sim.checks(checked), sim.stress(16), pytest.raises(KernelOrderError) as error:
        launch("atomicAdd(y, x[threadIdx.x]);", y, x, parameters="float* y, const float* x", block=64)
    text = str(error.value)
    assert text.startswith("k: `float* y` depends on the order in which the threads run: element [0] is ")
    assert "in the order forward and" in text and "(1 of 1 elements differ)" in text
    assert y[0] == 0  # nothing is changed


def test_without_checks_a_missing_barrier_is_found_by_its_result():
    body = (
        "__shared__ float tile[64]; tile[threadIdx.x] = threadIdx.x; y[threadIdx.x] = tile[63 - threadIdx.x];"
    )
    with sim.checks(False), sim.stress(8), pytest.raises(KernelOrderError, match="depends on the order"):
        launch(body, zeros(64), block=64)


def test_a_kernel_that_adds_to_its_output_starts_from_the_same_values_each_time():
    with sim.stress(8):
        assert (launch("y[threadIdx.x] += 1;", zeros(32)) == 1).all()


def test_nan_and_negative_zero_are_compared_by_their_bits():
    with sim.stress(4):
        assert np.isnan(
            launch("y[threadIdx.x] = 0.0f / x[0];", zeros(32), zeros(1), parameters="float* y, float* x")
        ).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_give_the_same_bits_in_32_orders(dtype):
    a = np.random.default_rng(0).standard_normal((40, 36)).astype(dtype)
    with sim.stress(32):
        out = np.empty((40, 40), dtype)
        matmul.tiled(out, a, a.T)
        reduce.shuffle(np.empty(40, dtype), a)
        softmax.softmax_vectorized(np.empty_like(a), a)
        x, grad = (
            a[:, :32].reshape(2, 5, 16, 8),
            a[:, :36].reshape(-1)[:1152].reshape(2, 4, 16, 9)[..., :8].copy(),
        )
        conv2d.weight_grad(np.empty((4, 5, 3, 3), dtype), grad, x, 1, 1, 1, 1, 1, 1, 1)
    np.testing.assert_allclose(out, a @ a.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 1030])
def test_kernels_that_are_no_ops_give_the_same_bits_in_32_orders(size):
    """Optimizer steps and random numbers; for ops see tests/test_every_op.py."""
    param, grad, *state = np.random.default_rng(0).random((4, size)).astype(np.float32)
    with sim.stress(32):
        optim.sgd_step(param, grad, None, 0.1, 0.0, 0.0, 0.01, False, True)
        optim.sgd_step(param, grad, state[0], 0.1, 0.9, 0.0, 0.01, True, False)
        optim.adam_step(param, grad, *state, 0.1, 0.9, 0.99, 1e-8, 0.01, True, 3)
        for draw in (random.uniform_naive, random.uniform_block, random.normal_naive, random.normal_block):
            draw(sim.empty(size), 1, 2)
    assert np.isfinite(param).all()


# ---- Ctrl-C ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checks", "loop", "where"),
    [
        (True, "while (n) y[threadIdx.x] ^= 1;", r"thread \(\d+, 0, 0\): interrupted at kernel.cu:2"),
        (True, "while (n) atomicAdd(y, 0);", r"thread \(\d+, 0, 0\): interrupted at kernel.cu:2"),
        (False, "while (n) __syncthreads();", r"interrupted\n  32 wait in __syncthreads\(\) at kernel.cu:2"),
    ],
)
def test_a_loop_without_end_can_be_interrupted(checks, loop, where):
    kernel = CudaKernel("__global__ void k(int* y, int n) {\n" + loop + "\n}", "k")
    y = zeros(32, dtype=np.int32)
    main = threading.get_ident()

    def interrupt_when_it_runs():
        while sys._current_frames()[main].f_code.co_name != "_run":
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with sim.checks(checks):
            kernel.launch(1, 32, (y, 0))  # compiled
            thread = threading.Thread(target=interrupt_when_it_runs)
            thread.start()
            with pytest.raises(KeyboardInterrupt, match=where):
                kernel.launch(1, 32, (y, 1))
            thread.join()
            kernel.launch(1, 32, (y, 0))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
