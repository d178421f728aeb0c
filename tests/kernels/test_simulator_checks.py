"""Checked launches: broken kernels end with the message that one would want, sound ones are left alone."""

import os
import subprocess
import sys

import numpy as np
import pytest
from simulated import launch, message, zeros

from minigrad.kernels import sim
from minigrad.kernels.cuda import conv2d, matmul, pool2d
from minigrad.kernels.errors import KernelAccessError
from minigrad.kernels.launch import CudaKernel, blocks, strided

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


@pytest.fixture(autouse=True)
def checked():
    with sim.checks(True):
        yield


# ---- bounds ------------------------------------------------------------------------------------------------

COPY = {"parameters": "float* y, const float* x, int n"}


def test_off_by_one_at_the_end():
    text = message(
        """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i <= n) y[i] = x[i];
        """,
        *(zeros(40), zeros(40), 40),
        grid=2,
        **COPY,
    )
    assert text.startswith(
        "k, block (1, 0, 0), thread (8, 0, 0): reads 4 bytes at x[40] (kernel.cu:3), beyond"
    )
    assert "`const float* x` (40 float32), which has 40 elements: compare the index with" in text


def test_missing_bound_in_the_last_block():
    text = message("y[blockIdx.x * blockDim.x + threadIdx.x] = 1;", zeros(6, 7), grid=2)
    assert "block (1, 0, 0), thread (10, 0, 0): writes 4 bytes at y[42] (kernel.cu:2)" in text
    assert "beyond the end of `float* y` (6x7 float32), which has 42 elements" in text


def test_negative_index():
    text = message("y[threadIdx.x] = x[(int)threadIdx.x - 2];", zeros(32), zeros(32), 0, **COPY)
    assert "thread (0, 0, 0): reads 4 bytes at x[-2] (kernel.cu:2), before the first element of" in text


def test_far_beyond_the_end_still_names_the_array():
    text = message("y[threadIdx.x] = x[100000];", zeros(32), zeros(32), 0, **COPY)
    assert "reads 4 bytes at x[100000] (kernel.cu:2), beyond the end" in text


def test_a_vector_that_hangs_over_the_end():
    text = message(
        "*reinterpret_cast<float4*>(y + 4 * threadIdx.x) = make_float4(1, 2, 3, 4);", zeros(30), block=8
    )
    assert "thread (7, 0, 0): writes" in text and "at y[" in text and "beyond the end" in text


def test_misaligned_vector():
    text = message(
        """
        float4 v = *reinterpret_cast<const float4*>(x + threadIdx.x);
        y[threadIdx.x] = v.x + v.w;
        """,
        *(zeros(40), zeros(40), 40),
        **COPY,
    )
    assert "thread (1, 0, 0): takes x[1] for a 'const struct float4' at kernel.cu:2, but its address" in text
    assert "4 bytes past a multiple of 16" in text


def test_a_view_is_aligned_as_its_offset_says():
    load = "y[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x].x;"
    x = np.arange(140, dtype=np.float32)
    assert launch(load, zeros(32), x[4:132], 0, **COPY)[1] == 8
    assert "'const struct float4' at kernel.cu:2" in message(load, zeros(32), x[1:129], 0, **COPY)


def test_null_pointer():
    text = message("y[threadIdx.x] = x[threadIdx.x];", zeros(32), None, 0, **COPY)
    assert "reads 4 bytes through a null pointer at kernel.cu:2: None was passed for `const float* x`" in text


def test_writing_to_a_const_array():
    text = message("y[0] = 0; const_cast<float*>(x)[3] = 1;", zeros(1), zeros(4), 0, block=1, **COPY)
    assert "writes to x[3] (kernel.cu:2), but `const float* x` (4 float32) is const" in text


def test_memory_that_is_also_passed_as_an_output_may_be_written():
    x = np.arange(32, dtype=np.float32)
    launch("y[threadIdx.x] = 2 * x[threadIdx.x];", x, x, 0, **COPY)
    assert x.tolist() == list(range(0, 64, 2))


def test_shared_array_overrun():
    text = message(
        """
        __shared__ float tile[32], other[32];
        tile[threadIdx.x + 1] = other[threadIdx.x] = 0;
        """,
        zeros(1),
    )
    assert "thread (31, 0, 0): index 32 is outside of the type 'float [32]' at kernel.cu:3" in text


def test_shared_array_overrun_through_a_pointer():
    text = message(
        """
        __shared__ int tile[32];
        __shared__ int other[32];
        int* p = threadIdx.x < 64 ? tile : other;
        p[threadIdx.x + 1] = other[threadIdx.x] = 0;
        """,
        zeros(1),
    )
    assert "thread (31, 0, 0): writes 4 bytes at tile[32] (kernel.cu:5), beyond the end of" in text
    assert "the shared variable tile, which has 32 elements: make the variable larger" in text


def test_dynamic_shared_memory_that_was_not_asked_for():
    body = "extern __shared__ double s[];\ns[threadIdx.x] = 0;"
    text = message(body, zeros(1), shared_bytes=31 * 8)
    assert "thread (31, 0, 0): writes 8 bytes at s[31] (kernel.cu:3)" in text
    launch(body, zeros(1), shared_bytes=32 * 8)


def test_row_overrun_inside_a_local_array():
    text = message("float a[2][3] = {}; y[threadIdx.x] = a[0][threadIdx.x];", zeros(4), block=4)
    assert "thread (3, 0, 0): index 3 is outside of the type 'float [3]' at kernel.cu:2" in text


def test_an_atomic_beyond_the_end():
    text = message("atomicAdd(&y[threadIdx.x + 1], 1);", zeros(32))
    assert "at y[32] (kernel.cu:2), beyond the end" in text


# ---- races -------------------------------------------------------------------------------------------------

REVERSE = """
__shared__ float tile[64];
tile[threadIdx.x] = threadIdx.x;
%s
y[threadIdx.x] = tile[63 - threadIdx.x];
"""


@pytest.mark.parametrize("seed", range(4))
def test_missing_barrier(seed):
    with sim.seed(seed):
        text = message(REVERSE % "", zeros(64), block=64)
        launch(REVERSE % "__syncthreads();", zeros(64), block=64)
    assert "race on tile[" in text and "of the shared variable tile: this thread " in text
    assert "kernel.cu:3" in text and "kernel.cu:5" in text
    assert "of the same block" in text and "a __syncthreads() between these two lines orders them" in text


TREE = """
__shared__ float sum[256];
sum[threadIdx.x] = threadIdx.x;
__syncthreads();
for (int half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) sum[threadIdx.x] += sum[threadIdx.x + half];
    %s
}
if (threadIdx.x == 0) y[0] = sum[0];
"""


def test_race_in_a_reduction():
    assert "race on sum[" in message(TREE % "", zeros(1), block=256)
    assert launch(TREE % "__syncthreads();", zeros(1), block=256)[0] == 255 * 128


WARP = """
__shared__ int s[32];
s[threadIdx.x] = threadIdx.x;
%s
int next = s[(threadIdx.x + 1) %% 32];
%s
s[threadIdx.x] = next;
"""


def test_lanes_are_ordered_by_syncwarp_alone():
    launch(WARP % ("__syncwarp();", "__syncwarp();"), zeros(1))
    assert "(or, within a warp, a __syncwarp())" in message(WARP % ("", "__syncwarp();"), zeros(1))
    assert "race on s[" in message(WARP % ("__syncwarp();", ""), zeros(1))
    assert "race on s[" in message(WARP % ("__shfl_sync(~0u, 0, 0);", "__syncwarp();"), zeros(1))


def test_race_between_blocks():
    text = message("y[threadIdx.x] = blockIdx.x;", zeros(32), grid=2)
    assert "block (1, 0, 0), thread (0, 0, 0): race on y[0] of `float* y` (32 float32): this thread" in text
    assert "writes it at kernel.cu:2, and block (0, 0, 0), thread (0, 0, 0) writes it at kernel.cu:2" in text
    assert "nothing orders two blocks" in text


def test_threads_that_add_without_an_atomic():
    text = message("y[0] += 1;", zeros(1))
    assert "race on y[0]" in text and "use an atomic operation" in text
    assert launch("atomicAdd(y, 1);", zeros(1), grid=2)[0] == 64


def test_an_atomic_and_a_plain_access_race():
    assert "updates it at" in message("if (threadIdx.x) atomicAdd(y, 1); else y[0] = 0;", zeros(1))


def test_storing_the_same_value_is_let_pass():
    assert launch("y[0] = 5;", zeros(1), grid=2)[0] == 5
    text = message("y[0] = threadIdx.x / 16;", zeros(1))
    assert (
        "thread (16, 0, 0): race on y[0]" in text and "thread (15, 0, 0) of the same block writes it" in text
    )


def test_a_loop_around_compare_and_swap_may_start_with_a_plain_load():
    body = """
    int old = y[0], assumed;
    do {
        assumed = old;
        old = atomicCAS(y, assumed, assumed + 1);
    } while (old != assumed);
    """
    for seed in range(3):
        with sim.seed(seed):
            out = launch(body, zeros(1, dtype=np.int32), parameters="int* y", grid=3)
        assert out[0] == 96
    assert "race on y[0]" in message("atomicAdd(y, 1); y[threadIdx.x + 1] = y[0];", zeros(33))


def test_a_race_on_the_first_of_two_numbers_that_a_thread_reads():
    """The simulator keeps the bytes of an element together, here of 8."""
    for word in (0, 1):
        text = message(
            f"""
            __shared__ double element[1];
            volatile float* const pair = reinterpret_cast<float*>(element);
            if (threadIdx.x == 0) element[0] = 1;
            __syncthreads();
            if (threadIdx.x == 0) y[0] = pair[0], y[1] = pair[1];
            if (threadIdx.x == 32) pair[{word}] = 3;
            """,
            zeros(2),
            block=64,
        )
        assert "race on element[0]" in text


def test_neighbouring_bytes_are_not_a_race():
    out = zeros(256, dtype=np.uint8)
    launch("y[threadIdx.x] = threadIdx.x;", out, parameters="unsigned char* y", block=256)
    assert out.tolist() == list(range(256))


def test_the_last_block_may_read_what_the_others_published():
    body = """
    __shared__ bool last;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = blockIdx.x;
        %s
        last = atomicAdd(count, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0)
        for (int i = 0; i < gridDim.x; i++) y[0] += partial[i];
    """
    parameters = "float* y, float* partial, int* count"
    arrays = zeros(1), zeros(8), zeros(1, dtype=np.int32)
    assert launch(body % "__threadfence();", *arrays, parameters=parameters, grid=8)[0] == 28
    arrays = zeros(1), zeros(8), zeros(1, dtype=np.int32)
    assert "race on partial[0]" in message(body % "", *arrays, parameters=parameters, grid=8)


def test_the_counter_of_the_last_block_may_be_a_variable_of_the_device():
    kernel = CudaKernel(
        """
        __device__ unsigned count = 0;
        __global__ void k(float* y, volatile float* partial) {
            if (threadIdx.x) return;
            partial[blockIdx.x] = blockIdx.x;
            __threadfence();
            if (atomicInc(&count, gridDim.x - 1) != gridDim.x - 1) return;
            float sum = 0;
            for (int i = 0; i < gridDim.x; i++) sum += partial[i];
            y[0] = sum;
        }""",
        "k",
    )
    y = sim.empty(1)
    with sim.stress(16):
        kernel.launch(8, 32, (y, sim.empty(8)))
    assert y[0] == 28


HAND_OVER = """
__shared__ float box[32];
__shared__ int ready;
if (threadIdx.x == 0) ready = 0;
__syncthreads();
int lane = threadIdx.x & 31;
if (threadIdx.x < 32) {
    box[lane] = lane;
    %s
    __syncwarp();
    if (lane == 0) atomicExch(&ready, 1);
} else {
    if (lane == 0) while (atomicAdd(&ready, 0) == 0) {}
    __syncwarp();
    __threadfence_block();
    y[lane] = box[lane];
}
"""


def test_a_lane_may_hand_over_what_its_warp_has_written():
    y = sim.empty(32)
    with sim.stress(16):
        launch(HAND_OVER % "__threadfence_block();", y, block=64)
    assert y.tolist() == list(range(32))
    assert "race on box[" in message(HAND_OVER % "", zeros(32), block=64)


def test_a_race_in_a_loop_of_one_line():
    body = """
    __shared__ float s[64];
    s[threadIdx.x] = 1;
    __syncthreads();
    for (int h = 32; h > 0; h /= 2)
        if (threadIdx.x < h) s[threadIdx.x] += s[threadIdx.x + h];
    if (threadIdx.x == 0) y[0] = s[0];
    """
    text = message(body, zeros(1), block=64)
    assert "race on s[" in text and "where one pass reads what another writes, put a __syncthreads()" in text


def test_atomics_have_the_line_of_the_kernel():
    body = """
    __shared__ int s[2];
    if (threadIdx.x < 2) s[threadIdx.x] = 0;
    atomicAdd(&s[threadIdx.x % 2], 1);
    __syncthreads();
    atomicAdd(&y[threadIdx.x % 2], s[threadIdx.x % 2]);
    """
    text = message(body, zeros(2, dtype=np.int32), parameters="int* y")
    assert "updates it at kernel.cu:4" in text and "writes it at kernel.cu:3" in text


def test_an_output_that_one_thread_clears_and_all_add_to():
    body = """
    __shared__ int s;
    if (threadIdx.x == 0) y[0] = s = 0;
    __syncthreads();
    atomicAdd(&s, 1);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(y, s);
    """
    integers = {"parameters": "int* y"}
    assert launch(body, zeros(1, dtype=np.int32), **integers)[0] == 32
    text = message(body, zeros(1, dtype=np.int32), grid=2, **integers)
    assert "race on y[0]" in text and "nothing orders two blocks" in text


# ---- no false alarms ---------------------------------------------------------------------------------------


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kernel", [matmul.naive, matmul.tiled])
@pytest.mark.parametrize("seed", [0, 1])
def test_matmul_is_sound(kernel, seed):
    a, b = normal(3, 33, 40), normal(35, 40).T
    out = np.full((3, 33, 35), np.nan, np.float32)
    with sim.seed(seed):
        kernel(out, a, np.broadcast_to(b, (3, 40, 35)))
        kernel(out, a.transpose(0, 2, 1).copy().transpose(0, 2, 1), np.broadcast_to(b, (3, 40, 35)))
    np.testing.assert_allclose(out, a @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_conv2d_is_sound(seed):
    x, weight, bias, options = normal(2, 4, 9, 8), normal(6, 2, 3, 3), normal(6), (2, 1, 1, 0, 1, 2, 2)
    out, grad = zeros(2, 6, 5, 4), normal(2, 6, 5, 4)
    with sim.seed(seed):
        conv2d.forward(out, x, weight, bias, *options)
        conv2d.forward(out, x, weight, None, *options)
        conv2d.input_grad(np.empty_like(x), grad, weight, *options)
        conv2d.weight_grad(np.empty_like(weight), grad, x, *options)


@pytest.mark.parametrize("taps", [np.uint8, np.int32])
def test_pool2d_is_sound(taps):
    x, out, taps = normal(2, 3, 9, 8), zeros(2, 3, 5, 4), zeros(2, 3, 5, 4, dtype=taps)
    window = (3, 2, 2, 2, 1, 0)
    pool2d.max_pool2d(out, taps, x, *window, 1, 1)
    pool2d.max_pool2d_input_grad(np.empty_like(x), out, taps, *window, 1, 1)
    pool2d.max_pool2d_gather(out, x, taps, *window, 1, 1)
    pool2d.avg_pool2d(out, x, *window, True, None)
    pool2d.avg_pool2d_input_grad(np.empty_like(x), out, *window, False, None)
    pool2d.adaptive_avg_pool2d(out, x)
    pool2d.adaptive_avg_pool2d_input_grad(np.empty_like(x), out)


def test_checked_and_unchecked_give_the_same_bits():
    a, b = normal(40, 50), normal(50, 60)
    results = []
    for on in (True, False):
        with sim.checks(on):
            out = zeros(40, 60)
            matmul.tiled(out, a, b)
            results.append(out)
    assert np.array_equal(*results)


def test_outputs_with_strides_are_copied_back_alone():
    base = np.arange(64, dtype=np.float32)
    CudaKernel("__global__ void k(float* y) { y[2 * threadIdx.x] = -1; }", "k").launch(
        blocks(32, 32), 32, (strided(base[::2]),)
    )
    assert (base[::2] == -1).all() and base[1::2].tolist() == list(range(1, 64, 2))


# ---- after a failure, and settings -------------------------------------------------------------------------


def test_after_a_report_the_next_launch_is_sound():
    for _ in range(3):
        message("y[-1] = 0;", zeros(1))
        assert launch("y[threadIdx.x] = 1;", zeros(32)).sum() == 32
        with sim.checks(False):
            assert launch("y[threadIdx.x] = 1;", zeros(32)).sum() == 32


def test_lines_of_device_functions_and_included_files(tmp_path):
    (tmp_path / "helper.cuh").write_text(
        "#pragma once\n\n__device__ float get(const float* p) { return *p; }\n"
    )
    path = tmp_path / "user.cu"
    path.write_text(
        '#include "helper.cuh"\n__global__ void k(float* y, const float* x) {\n  y[0] = get(x + 9);\n}\n'
    )
    with pytest.raises(KernelAccessError, match=r"x\[9\] \(helper.cuh:3\)"):
        CudaKernel(path, "k").launch(1, 1, (zeros(1), zeros(9)))


def test_the_switch():
    with sim.checks(False):
        assert sim.get_checks() is False
        with sim.checks():
            assert sim.get_checks() is True
        assert sim.get_checks() is False
    with pytest.raises(ValueError, match=r"on \(True\) or off \(False\), got 1"):
        sim.set_checks(1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", "True"), ("0", "False"), ("", "True"), ("yes", "MINIGRAD_SIM_CHECKS='yes'")],
)
def test_switch_from_the_environment(value, expected):
    program = "from minigrad.kernels import sim; print(sim.get_checks())"
    environment = {**os.environ, "MINIGRAD_SIM_CHECKS": value}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert expected in (result.stdout or result.stderr)
