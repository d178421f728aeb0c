"""What compute capability 9.0 adds, on the simulator: kernels that use it well, and what mistakes lead to.

Products by wgmma are in test_simulator_wgmma.py.
"""

import re

import numpy as np
import pytest
from hopper_kernels import LOAD, READ, X, aligned, launch, message, out, tf32
from simulated import normal, zeros

from minigrad.kernels import sim
from minigrad.kernels.cuda import tensor_map
from minigrad.kernels.errors import KernelAccessError, KernelLaunchError
from minigrad.kernels.launch import CudaKernel
from minigrad.kernels.source import CudaSource

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


@pytest.fixture(autouse=True)
def hopper():
    with sim.architecture("sm_90a"), sim.checks(True):
        yield


# ---- copies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [(0, 0), (4, 3), (20, 10), (-3, -5), (43, 69), (44, 0), (-40, 2)], ids=str)
def test_a_box_comes_swizzled_and_rounded_with_zeros_outside(place):
    x, y = place
    got = launch(LOAD % place + "full.wait(0);" + READ, out(), X)
    expected = np.zeros((300, 300), np.float32)
    expected[100:170, 100:144] = tf32(X)
    np.testing.assert_array_equal(got, expected[100 + y : 164 + y, 100 + x : 132 + x])


@pytest.mark.parametrize(
    "place", [(0, 0, 1, 2), (4, -3, 0, 1), (-4, 30, 2, 0), (0, 0, 3, 0), (0, 0, 0, -1)], ids=str
)
def test_a_box_of_a_tensor_of_four_dimensions(place):
    """Heads inside the rows: of the four dimensions the rows are farther apart than the heads."""
    x = aligned(normal(3, 40, 3, 36, dtype=np.float32)).swapaxes(1, 2)
    load = LOAD.replace("%d, %d, 0", "%d, %d, %d, %d")
    got = launch(load % place + "full.wait(0);" + READ, out(), x)
    column, row, head, batch = place
    expected = np.zeros((104, 100), np.float32)
    if 0 <= head < 3 and 0 <= batch < 3:
        expected[10:50, 10:46] = tf32(np.ascontiguousarray(x[batch, head]))
    np.testing.assert_array_equal(got, expected[10 + row : 74 + row, 10 + column : 42 + column])


def test_a_copy_with_fewer_coordinates_than_its_map_has_dimensions():
    x = aligned(normal(2, 3, 5, 8, dtype=np.float32))
    text = message(LOAD % (0, 0), out(), x, error=KernelLaunchError)
    assert "load_box: the copy says where it is in 3 dimensions, and the tensor map has 4" in text
    load = LOAD.replace("%d, %d, 0", "0, 0, 0, 0")
    assert "in 4 dimensions, and the tensor map has 3" in message(load, out(), X, error=KernelLaunchError)


STORE = """
    for (int i = t; i < 64 * 32; i += 128) {
        const int row = i / 32, chunk = i %% 32 / 4;
        reinterpret_cast<float*>(boxes)[row * 32 + (chunk ^ row %% 8) * 4 + i %% 4] = i;
    }
    %s
    sync_warpgroup(1);
    if (t == 0) {
        store_box(out_map, %d, %d, 0, boxes);
        %s
    }
"""
FENCE, WAIT = "fence_for_copies();", "wait_for_stores<0>();"


@pytest.mark.parametrize("place", [(0, 0), (4, 3), (39, 40)], ids=str)
def test_a_box_is_stored_as_far_as_it_is_inside(place):
    x, y = place
    got = launch(STORE % (FENCE, x, y, WAIT), aligned(zeros(44, 40)))
    whole = np.zeros((300, 300), np.float32)
    whole[100 + y : 164 + y, 100 + x : 132 + x] = np.arange(64 * 32).reshape(64, 32)
    np.testing.assert_array_equal(got, whole[100:144, 100:140])


@pytest.mark.parametrize("place", [(-3, 0), (0, -5)], ids=str)
def test_a_store_does_not_begin_before_the_tensor(place):
    text = message(STORE % (FENCE, *place, WAIT), aligned(zeros(44, 40)), error=KernelLaunchError)
    assert f"store_box: the box begins at {min(place)}, before the tensor" in text


def test_reading_before_the_wait():
    text = message(LOAD % (0, 0) + READ, out(), X)
    assert "race on dynamic[" in text
    text = message(LOAD % (0, 0) + "if (t == 64) full.wait(0);" + READ, out(), X)
    assert "race on dynamic[" in text and "ordered by waiting for it alone: a Barrier" in text


def test_waiting_for_the_wrong_parity():
    text = message(LOAD % (0, 0) + "full.wait(1);" + READ, out(), X)
    assert "dynamic[" in text
    text = message(
        LOAD % (0, 0) + "full.wait(0); full.wait(1); full.wait(0);" + READ, out(), X, error=KernelLaunchError
    )
    assert "deadlock" in text and "128 wait in Barrier::wait() at kernel.cu:" in text
    assert "the barrier full[0], in phase 1, lacks 1 of 1 arrivals" in text


@pytest.mark.parametrize(
    "bytes, lack", [("2 * BOX_BYTES", "8192 bytes"), ("64", "8128 bytes more come than were announced")]
)
def test_a_wrong_number_of_bytes(bytes, lack):
    text = message(
        (LOAD % (0, 0)).replace("BOX_BYTES", bytes) + "full.wait(0);" + READ,
        out(),
        X,
        error=KernelLaunchError,
    )
    assert "deadlock" in text and lack in text


def test_refilling_a_box_before_it_is_read():
    again = """
        full.wait(0);
        %s
        %s
        if (t == 0) {
            %s
            full.arrive_and_expect(BOX_BYTES);
            load_box(boxes, x_map, 0, 0, 0, full);
        }
        full.wait(1);
    """
    text = message(LOAD % (0, 0) + again % (READ, "", ""), out(), X)
    assert "race on dynamic[" in text and "a Barrier" in text
    launch(LOAD % (0, 0) + again % (READ, "empty.arrive_at(0);", "empty.wait(0);"), out(), X)


def test_a_copy_to_a_box_that_is_not_aligned():
    text = message(LOAD.replace("boxes", "dynamic + 512") % (0, 0), out(), X, error=KernelLaunchError)
    assert "load_box: the box is 512 bytes past a multiple of 1024" in text


def test_a_store_of_what_no_fence_has_made_visible():
    text = message(STORE % ("", 0, 0, WAIT), out())
    assert "by the copy engine or the tensor cores" in text and "with no fence_for_copies() after it" in text


def test_writing_to_a_box_that_is_being_stored():
    text = message(STORE % (FENCE, 0, 0, "boxes->bytes[5] = 7; " + WAIT), out())
    assert "race on dynamic[5]" in text and "wait_for_stores()" in text


def test_returning_before_a_store_is_done():
    text = message(STORE % (FENCE, 0, 0, ""), out(), error=KernelLaunchError)
    assert "returns before its store_box() has read shared memory" in text


def test_a_barrier_that_the_copy_engine_does_not_see():
    body = "__shared__ Barrier own; if (t == 0) { own.init(1); load_box(boxes, x_map, 0, 0, 0, own); }"
    assert "call fence_barrier_init() after its init()" in message(body, out(), X, error=KernelLaunchError)
    body = "__shared__ Barrier own; own.wait(0);"
    assert "Barrier::wait(): nothing has made a barrier of this memory" in message(
        body, out(), error=KernelLaunchError
    )
    body = "__shared__ Barrier own; if (t == 0) own.init(1); own.wait(1);"
    with sim.order("reverse"):
        assert "race on own" in message(body, out())


def test_one_arrival_too_many():
    text = message("full.arrive_and_expect(64);", out(), error=KernelLaunchError)
    assert "one arrival too many: this phase of full" in text


def test_named_barriers_order_accesses():
    body = """
        __shared__ int value;
        if (t == %d) value = 7;
        %s
        out[t] = value;
    """
    launch(body % (5, "sync_warpgroup(1 + t / 128);"), out(), block=128)
    assert "race on value" in message(body % (5, ""), out())


TURNS = """
    __shared__ int value[2];
    const int own = t / 128;
    if (own == 1) {
        if (t == 128) value[1] = 7;
        %s
    } else {
        %s
        out[t] = value[1];
    }
"""


def test_threads_that_do_not_wait_for_those_that_wait_for_them():
    arrive, sync = "arrive_without_waiting<256>(3);", "sync_threads<256>(3);"
    got = launch(TURNS % (arrive, sync), out(), block=256)
    assert (got.ravel()[:128] == 7).all()
    assert "race on value[1]" in message(TURNS % (arrive + "value[1] = 8;", sync), out(), block=256)
    assert "race on value[1]" in message(TURNS % (sync + "value[1] = 8;", arrive), out(), block=256)
    with sim.stress(4):
        launch(TURNS % (arrive, sync), out(), block=256)


def test_arrivals_that_nobody_waits_for():
    text = message("arrive_without_waiting<256>(2);", out(), error=KernelLaunchError)
    assert "returns, the last thread of its block, and barrier 2 has had 128 arrivals" in text
    text = message(
        "if (t < 32) arrive_without_waiting<64>(2); else sync_threads<96>(2);", out(), error=KernelLaunchError
    )
    assert "barrier 2 is for" in text


def test_registers_are_exchanged_by_whole_warpgroups():
    launch("if (t < 128) give_registers<40>(); else take_registers<232>();", out(), block=256)
    text = message("if (t >= 32) give_registers<40>();", out(), error=KernelLaunchError)
    assert "threads of its warpgroup wait in give_registers()" in text and "all 128 must come" in text
    text = message(
        "if (t < 64) give_registers<40>(); else take_registers<80>();", out(), error=KernelLaunchError
    )
    assert "_registers() at kernel.cu:" in text and "all 128 execute the same" in text


# ---- clusters ----------------------------------------------------------------------------------------------


def test_blocks_of_a_cluster_share_what_one_loads():
    body = """
        const unsigned rank = block_in_cluster();
        if (t == 0) {
            full.arrive_and_expect(BOX_BYTES);
            if (rank == 0) load_box(boxes, x_map, 4, 3, 0, full, 3);
        }
        full.wait(0);
        out += rank * 64 * 32;
    """
    got = launch(body + READ + "sync_cluster();", aligned(zeros(128, 32)), X, grid=2, cluster=2)
    np.testing.assert_array_equal(got[:64], tf32(X)[3:67, 4:36])
    np.testing.assert_array_equal(got[64:], got[:64])


def test_blocks_of_a_cluster_arrive_at_each_others_barriers():
    body = """
        if (t < 64) empty.arrive_at(0);
        if (block_in_cluster() == 0) empty.wait(0);
        else if (t == 0) out[7] = 1;
        %s
        if (block_in_cluster() == 0 && t == 0) out[0] = out[7];
        sync_cluster();
    """
    got = launch(body % "sync_cluster();", out(), grid=2, cluster=2)
    assert got[0, 0] == 1
    text = message(body % "", out(), grid=2, cluster=2)
    assert "race on out[7]" in text


def test_a_block_that_leaves_before_the_others_copy_to_it():
    body = """
        if (block_in_cluster() == 1) return;
        __syncthreads();
        if (t == 0) load_box(boxes, x_map, 0, 0, 0, full, 3);
    """
    with sim.order("reverse"):
        text = message(body, out(), X, grid=2, cluster=2, error=KernelLaunchError)
    assert "block 1 of the cluster has ended: let no block leave before the others" in text


def test_a_block_that_leaves_with_others_still_at_its_memory():
    body = "if (t < 64) empty.arrive_at(0);"
    launch(body + "sync_cluster();", out(), grid=2, cluster=2)
    text = message(body, out(), grid=2, cluster=2, error=KernelLaunchError)
    assert (
        "with no sync_cluster() after what other blocks do" in text
        or "block 0 of the cluster has ended" in text
    )


# Each block gives its next one a number for each thread, and adds what it was given.
EXCHANGE = """
    __shared__ int given[2][128];
    const unsigned rank = block_in_cluster(), next = (rank + 1) % 4;
    int sum = 0;
    for (int step = 0; step < 3; step++) {{
        int* const here = given[step % {buffers}];
        {pointer}[t] = 1000 * step + 128 * rank + t;
        {arrive}
        {between}
        {wait}
        sum += here[127 - t];
    }}
    out[rank * 128 + t] = sum;
"""
EXCHANGED = {
    "buffers": 2,
    "pointer": "in_block(here, next)",
    "arrive": "arrive_at_cluster();",
    "between": "",
    "wait": "wait_for_cluster();",
}
NO_ORDER = "blocks of a cluster are ordered by sync_cluster(), or its two halves, alone"


def exchange(**changes):
    return EXCHANGE.format(**{**EXCHANGED, **changes}), out(), {"grid": 4, "cluster": 4}


def found_in_any_order(error, body, its_out, options):
    """What is said in each order of the threads."""
    texts = set()
    for order in ("forward", "reverse", "random", "warps"):
        with sim.order(order):
            texts.add(message(body, its_out, error=error, **options))
    return texts


def test_blocks_of_a_cluster_write_to_each_others_shared_memory():
    body, its_out, options = exchange()
    with sim.stress(8):
        got = launch(body, its_out, **options).ravel()[:512].reshape(4, 128)
    ranks = np.roll(np.arange(4), 1)[:, None]
    np.testing.assert_array_equal(got, 3000 + 3 * (128 * ranks + np.arange(127, -1, -1)))


def test_blocks_of_a_cluster_read_each_others_shared_memory():
    body = """
        __shared__ int own[128];
        own[t] = 128 * block_in_cluster() + t;
        sync_cluster();
        out[128 * block_in_cluster() + t] = in_block(own, block_in_cluster() ^ 1)[t];
        %s
    """
    got = launch(body % "sync_cluster();", out(), grid=2, cluster=2).ravel()[:256]
    np.testing.assert_array_equal(got, np.roll(np.arange(256), 128))
    for text in found_in_any_order(KernelLaunchError, body % "", out(), {"grid": 2, "cluster": 2}):
        assert re.search(
            r"with no sync_cluster\(\) after what other blocks do|of the cluster has ended", text
        )


def test_an_exchange_in_one_buffer():
    for text in found_in_any_order(KernelAccessError, *exchange(buffers=1)):
        assert "race on given[" in text and NO_ORDER in text


def test_an_exchange_with_no_barrier():
    for text in found_in_any_order(KernelAccessError, *exchange(arrive="", wait="__syncthreads();")):
        assert NO_ORDER in text or "which no thread of the block has written" in text


# The same by stores that a barrier counts; there are two, in turns.
COUNTED = """
    struct Pair {{ int first, second; }};
    __shared__ Pair given[2][128];
    __shared__ Barrier come[2];
    const unsigned rank = block_in_cluster(), next = rank ^ 1;
    if (t == 0) {{
        for (int i = 0; i < 2; i++) come[i].init(1);
        {fence}
    }}
    sync_cluster_relaxed();
    int sum = 0;
    for (int step = 0; step < 3; step++) {{
        if (t == 0) come[step % 2].arrive_and_expect({bytes});
        const int value = 1000 * step + 128 * rank + t;
        store_in_block(&given[step % {buffers}][t], Pair{{value, -1}}, next, come[step % 2]);
        {wait}
        sum += given[step % {buffers}][127 - t].first;
        __syncthreads();
    }}
    sum += given[0][127 - t].second;
    out[rank * 128 + t] = sum;
"""
WAITS = "come[step % 2].wait_for_blocks(step / 2);"


def counted(fence="fence_barrier_init();", bytes="sizeof given[0]", buffers=2, wait=WAITS):
    body = COUNTED.format(fence=fence, bytes=bytes, buffers=buffers, wait=wait)
    return body, out(), {"grid": 2, "cluster": 2}


def test_stores_that_a_barrier_of_another_block_counts():
    body, its_out, options = counted()
    with sim.stress(8):
        got = launch(body, its_out, **options).ravel()[:256].reshape(2, 128)
    ranks = np.array([[1], [0]])
    np.testing.assert_array_equal(got, 2999 + 3 * (128 * ranks + np.arange(127, -1, -1)))


def test_mistakes_with_stores_that_a_barrier_counts():
    for text in found_in_any_order(KernelAccessError, *counted(wait="__syncthreads();")):
        assert "race on given[" in text or "which no thread of the block has written" in text
    for text in found_in_any_order(KernelAccessError, *counted(buffers=1)):
        assert "race on given[" in text
    body, its_out, options = counted(bytes=512)
    assert "which no thread of the block has written" in message(body, its_out, **options)
    for options, says in (
        ({"fence": ""}, "store_in_block: the copy engine may not see the barrier: call fence_barrier_init()"),
        ({"bytes": "2048"}, "lacks 0 of 1 arrivals and 1024 bytes"),
    ):
        body, its_out, launched = counted(**options)
        assert says in message(body, its_out, error=KernelLaunchError, **launched)


def test_a_store_to_another_block_after_the_thread_has_arrived():
    late = "in_block(here, next)[t] = 1000 * step + 128 * rank + t;"
    for text in found_in_any_order(KernelAccessError, *exchange(pointer="(here + 0)", between=late)):
        assert "race on given[" in text


def test_a_block_that_may_not_have_started():
    code = """
        #include <cuda_bf16.h>
        #include <cuda_fp16.h>
        #include "hopper.cuh"
        __global__ void __cluster_dims__(2, 1, 1) k(float* out) {
            __shared__ float given[32];
            %s
            in_block(given, block_in_cluster() ^ 1)[threadIdx.x] = 1;
            sync_cluster();
            out[32 * block_in_cluster() + threadIdx.x] = given[threadIdx.x];
        }"""
    for order in ("forward", "reverse", "random", "warps"):
        with sim.order(order), pytest.raises(KernelLaunchError) as caught:
            CudaKernel(CudaSource(code % "", "sm_90a"), "k").launch(2, 32, (zeros(64),))
        assert "of the cluster may not have started: call sync_cluster() before" in str(caught.value)
    CudaKernel(CudaSource(code % "sync_cluster();", "sm_90a"), "k").launch(2, 32, (got := zeros(64),))
    assert (got == 1).all()


def test_a_cluster_has_no_such_block():
    body, its_out, options = exchange(pointer="in_block(here, rank + 1)")
    text = message(body, its_out, error=KernelLaunchError, **options)
    assert "in_block: the cluster has no block 4, but 4 blocks" in text


def test_a_store_beyond_another_blocks_variable():
    body, its_out, options = exchange(pointer="(in_block(here, next) + 200)")
    assert "beyond the end of the shared variable given" in message(body, its_out, **options)


def test_the_halves_of_a_barrier_of_the_cluster_take_turns():
    for body, says in (
        ("arrive_at_cluster(); arrive_at_cluster();", "arrive_at_cluster(): the thread has arrived before"),
        ("arrive_at_cluster(); sync_cluster();", "sync_cluster(): the thread has arrived before"),
        ("wait_for_cluster();", "wait_for_cluster(): the thread has not arrived: call arrive_at_cluster()"),
        ("arrive_at_cluster();", "returns after an arrive_at_cluster(), with no wait_for_cluster()"),
    ):
        assert says in message(body, out(), grid=2, cluster=2, error=KernelLaunchError)
    body = "arrive_at_cluster(); if (t == 5) __syncthreads(); else wait_for_cluster(); sync_cluster();"
    text = message(body, out(), grid=2, cluster=2, error=KernelLaunchError)
    assert "deadlock" in text and "254 wait in sync_cluster()" in text and "2 wait in __syncthreads()" in text


def test_a_grid_of_half_clusters():
    assert "launched with 3 blocks along x, no multiple of the 2 of a cluster" in message(
        "", out(), grid=3, cluster=2, error=KernelLaunchError
    )


# ---- the launch --------------------------------------------------------------------------------------------


def test_the_architecture_is_asked_for():
    with sim.architecture("sm_90"):
        assert "launch it inside sim.architecture('sm_90a')" in message("", out(), error=KernelLaunchError)


def test_tensor_maps_that_a_driver_refuses():
    with pytest.raises(KernelLaunchError, match="strides are multiples of 16"):
        tensor_map._encode_for_simulator(64, 2, 4, (8, 8, 1), (36, 288))
    with pytest.raises(KernelLaunchError, match="the address is no multiple of 16"):
        tensor_map._encode_for_simulator(68, 2, 4, (8, 8, 1), (32, 256))


# ---- copies of images that a filter moves over -------------------------------------------------------------

IMAGES = aligned(normal(2, 5, 7, 32, dtype=np.float32))


def load_pixels(x=-1, y=-1, image=0, right=0, down=0, channel=0):
    """Pixels of IMAGES, padded by 1, under a filter of 3 x 2 that moves by (1, 2)."""
    before = """
        __global__ void __launch_bounds__(128) __cluster_dims__(1, 1, 1)
        pixels(float* out, const float* x, const __grid_constant__ TensorMap x_map) {
            extern __shared__ __align__(1024) unsigned char dynamic[];
            __shared__ Barrier full;
            unsigned char* boxes = dynamic;
            const int t = threadIdx.x;
            if (t == 0) {
                full.init(1);
                fence_barrier_init();
                full.arrive_and_expect(BOX_BYTES);
                load_pixels(boxes, x_map, %d, %d, %d, %d, %d, %d, full);
            }
            __syncthreads();
            full.wait(0);
            %s
        }"""
    code = '#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n#include "hopper.cuh"\n' + before % (
        *(channel, x, y, image, right, down),
        READ,
    )
    its_map = tensor_map.describe_images(IMAGES, IMAGES.shape, 32, (-1, -1), (-1, 0), (1, 2))
    got = out()
    CudaKernel(CudaSource(code, "sm_90a"), "pixels").launch(1, 128, (got, IMAGES, its_map), 9 * 1024)
    return got


@pytest.mark.parametrize("start", [(-1, -1, 0), (3, 2, 0), (5, 3, 1), (-1, 0, 2)], ids=str)
def test_pixels_come_row_by_row_and_image_by_image_with_zeros_outside(start):
    padded = np.pad(IMAGES, ((0, 9), (1, 1), (1, 1), (0, 0)))
    corners = [(n, y, x) for n in range(11) for y in range(-1, 4) for x in range(-1, 7, 2)]
    x, y, image = start
    at = corners.index((image, y, x))
    for right, down in ((0, 0), (1, 2)):
        expected = [padded[n, y + 1 + down, x + 1 + right] for n, y, x in corners[at : at + 64]]
        np.testing.assert_array_equal(load_pixels(x, y, image, right, down), expected)


def test_a_filter_stays_where_its_map_has_it():
    with pytest.raises(KernelLaunchError, match=r"the filter's corner is at x = 7, outside .*: -1 to 6"):
        load_pixels(x=7)
    with pytest.raises(KernelLaunchError, match=r"the filter's corner is at y = 4, outside .*: -1 to 3"):
        load_pixels(y=4)
    with pytest.raises(KernelLaunchError, match="the tap is -1 from the filter's corner along y"):
        load_pixels(down=-1)
    for corner, steps, rule in ((128, 1, "corners are from -128 to 127"), (0, 9, "strides are from 1 to 8")):
        with pytest.raises(KernelLaunchError, match=rule):
            tensor_map.describe_images(IMAGES, IMAGES.shape, 32, (0, 0), (0, corner), (1, steps))
