"""Memory that nothing has written, outputs that were forgotten, inputs that were changed."""

import gc

import numpy as np
import pytest
from simulated import launch, message, zeros

import minigrad as mg
from minigrad.kernels import sim
from minigrad.kernels.errors import KernelAccessError
from minigrad.kernels.launch import CudaKernel, blocks
from minigrad.kernels.sim import memory

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)

COPY = {"parameters": "float* y, const float* x"}
TAIL = "if (threadIdx.x < 30) y[threadIdx.x] = 1;"


@pytest.fixture(autouse=True)
def checked():
    with sim.checks(True):
        yield


# ---- shared memory -----------------------------------------------------------------------------------------


def test_a_shared_element_that_no_thread_has_written():
    body = """
    __shared__ float tile[33];
    tile[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x + 1];
    """
    text = message(body, zeros(32))
    assert text.startswith(
        "k, block (0, 0, 0), thread (31, 0, 0): reads tile[32] of the shared variable tile"
    )
    assert "at kernel.cu:5, which no thread of the block has written" in text


def test_shared_memory_does_not_last_from_block_to_block():
    body = """
    __shared__ float carried;
    if (blockIdx.x == 0) carried = 7;
    __syncthreads();
    if (threadIdx.x == 0) y[blockIdx.x] = carried;
    """
    assert "block (1, 0, 0), thread (0, 0, 0): reads carried[0]" in message(body, zeros(2), grid=2)


def test_dynamic_shared_memory_that_was_not_cleared():
    body = "extern __shared__ int counts[];\natomicAdd(&counts[threadIdx.x], 1);\ny[0] = 0;"
    text = message(body, zeros(1), shared_bytes=128)
    assert "reads counts[0] of the shared variable counts" in text and "kernel.cu:3" in text
    launch(
        "extern __shared__ int counts[];\natomicExch(&counts[threadIdx.x], 1);\ny[0] = 0;",
        zeros(1),
        shared_bytes=128,
    )


@pytest.mark.parametrize("order", sim.ORDERS)
def test_a_store_that_is_merely_late_is_a_race_and_not_garbage(order):
    """In some orders the read comes before the store, in others after it: the complaint is the same."""
    body = """
    __shared__ float tile[64];
    tile[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = tile[63 - threadIdx.x];
    """
    with sim.order(order), sim.seed(3):
        assert "race on tile[" in message(body, zeros(64), block=64)


def test_garbage_is_told_of_before_what_it_leads_to():
    body = """
    __shared__ int index[2];
    y[index[0]] = 1;
    """
    assert "reads index[0] of the shared variable index" in message(body, zeros(1), block=1)


def test_structs_and_vectors_in_shared_memory_count_as_written():
    body = """
    struct Pair { float a; int b; };
    __shared__ Pair pairs[32];
    __shared__ float4 vectors[32];
    auto pair = [](int i) { Pair p; p.a = i; p.b = 2 * i; return p; };
    pairs[threadIdx.x] = pair(threadIdx.x);
    vectors[threadIdx.x] = make_float4(1, 2, 3, threadIdx.x);
    __syncthreads();
    Pair p = pairs[31 - threadIdx.x];
    y[threadIdx.x] = p.a + p.b + vectors[31 - threadIdx.x].w;
    """
    assert launch(body, zeros(32)).tolist() == [4 * (31 - i) for i in range(32)]


# ---- arrays that start without a value ---------------------------------------------------------------------


def test_reading_what_empty_made():
    text = message("y[threadIdx.x] = x[threadIdx.x];", zeros(32), sim.empty(32), **COPY)
    assert "thread (0, 0, 0): reads x[0] of `const float* x` (32 float32) at kernel.cu:2" in text
    assert "which nothing has written: what empty() gives is garbage" in text


def test_an_unwritten_tail_is_found_when_it_is_read():
    x = launch(TAIL, sim.empty(32))
    text = message("y[threadIdx.x] = x[threadIdx.x];", zeros(32), x, **COPY)
    assert "thread (30, 0, 0): reads x[30]" in text
    launch("if (threadIdx.x < 30) y[threadIdx.x] = x[threadIdx.x];", zeros(32), x, **COPY)


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_what_numpy_writes_counts_as_written(dtype):
    name = {"u1": "unsigned char", "i2": "short", "f4": "float", "f8": "double"}[dtype]
    x = sim.empty((5, 7), dtype)
    x[...] = np.random.default_rng(0).integers(0, 100, x.shape)
    body = "if (threadIdx.x < 35) y[threadIdx.x] = x[threadIdx.x];"
    y = launch(body, zeros(5, 7, dtype=dtype), x, parameters=f"{name}* y, const {name}* x", block=64)
    assert np.array_equal(x, y)


def test_views_of_what_empty_made():
    x = sim.empty((4, 8))
    launch("if (threadIdx.x < 16) y[threadIdx.x] = 1;", x[2:])
    launch("if (threadIdx.x < 8) y[threadIdx.x] = x[threadIdx.x];", zeros(8), x[3], **COPY)
    assert "reads x[0]" in message("y[threadIdx.x] = x[threadIdx.x];", zeros(32), x, **COPY)


def test_an_array_that_was_written_whole_is_tracked_no_longer():
    x = launch("y[threadIdx.x] = 1;", sim.empty(32))
    launch("y[threadIdx.x] = x[threadIdx.x];", zeros(32), x, **COPY)
    assert id(x) not in memory._tracked
    y = sim.empty(8)
    key = id(y)
    assert key in memory._tracked
    del y
    gc.collect()
    assert key not in memory._tracked


def test_without_checks_empty_tracks_nothing():
    with sim.checks(False):
        x = sim.empty(32)
    assert id(x) not in memory._tracked
    launch("y[threadIdx.x] = x[threadIdx.x];", zeros(32), x, **COPY)


def test_check_written():
    x = launch(TAIL, sim.empty((4, 8)))
    with pytest.raises(KernelAccessError) as error:
        sim.check_written(x, "the image")
    assert str(error.value).startswith(
        "the image: 2 of its 32 elements were never written, the first of them [3, 6]"
    )
    sim.check_written(launch("y[threadIdx.x] = 1;", x), "the image")
    sim.check_written(np.empty(3), "an array of NumPy's")


# ---- ops ---------------------------------------------------------------------------------------------------

DOUBLE = """
__global__ void k(float* y, %s float* x, long long n) {
    long long i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) %s
}"""


@pytest.fixture
def double():
    """``double(body)``: an op whose kernel does ``body`` for each element."""

    def make(body, const="const"):
        @mg.op(name="double_for_a_test")
        def double(xp, x):
            return x + x

        code = CudaKernel(DOUBLE % (const, body), "k")

        @double.kernel("sim", name="one", dtypes="f4")
        def _(out, x):
            """A thread for each element."""
            code.launch(blocks(x.size, 32), 32, (out, x, x.size))

        return double

    yield make
    mg.op.__globals__["_ops"].pop("double_for_a_test", None)


def test_a_sound_op(double):
    x = mg.ones(5, 7, device="sim")
    assert (double("y[i] = 2 * x[i];")(x) == 2.0).all()
    assert (double("y[i] = 2 * x[i];", const="")(x) == 2.0).all()


def test_an_output_with_an_unwritten_tail(double):
    with pytest.raises(KernelAccessError) as error:
        double("if (i < n - 3) y[i] = 2 * x[i];")(mg.ones(5, 7, device="sim"))
    assert "op 'double_for_a_test', kernel 'one': the output: 3 of its 35 elements" in str(error.value)
    assert "the first of them [4, 4] (shape (5, 7))" in str(error.value)


def test_an_output_that_is_read_before_it_is_written(double):
    with pytest.raises(KernelAccessError, match=r"reads y\[0\] of `float\* y` .* which nothing has written"):
        double("y[i] += 2 * x[i];")(mg.ones(5, 7, device="sim"))


def test_an_input_that_a_kernel_changes(double):
    x = mg.ones(5, 7, device="sim")
    with pytest.raises(KernelAccessError) as error:
        double("y[i] = x[i] *= 2;", const="")(x)
    assert "writes to x[0]" in str(error.value)
    assert "`float* x` (5x7 float32) is an input of op 'double_for_a_test', kernel 'one'" in str(error.value)
    assert (x == 1.0).all()
