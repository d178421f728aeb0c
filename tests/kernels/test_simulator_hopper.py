"""What compute capability 9.0 adds, on the simulator: kernels that use it well, and what mistakes lead to."""

import numpy as np
import pytest
from simulated import normal, zeros

from minigrad.kernels import sim
from minigrad.kernels.arguments import bfloat16_bits
from minigrad.kernels.cuda import tensor_map
from minigrad.kernels.errors import KernelAccessError, KernelLaunchError
from minigrad.kernels.launch import CudaKernel, strided
from minigrad.kernels.source import CudaSource

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)

BOX_BYTES = 8192


@pytest.fixture(autouse=True)
def hopper():
    with sim.architecture("sm_90a"), sim.checks(True):
        yield


def launch(body, out, *arrays, block=128, grid=1, cluster=1, before="", shared_bytes=49 * 1024):
    """Launch a kernel ``k`` of ``out`` and of arrays with their tensor maps: x and x_map, y and y_map. It has
    boxes in shared memory, and barriers: full, for one arrival, and empty, for 128."""
    names = ["x", "y"][: len(arrays)]
    parameters = "".join(
        f", const {'float' if a.dtype == np.float32 else 'unsigned short'}* {name}, "
        f"const __grid_constant__ TensorMap {name}_map"
        for name, a in zip(names, arrays, strict=True)
    )
    code = f"""
        #include <cuda_bf16.h>
        #include <cuda_fp16.h>
        #include "hopper.cuh"
        struct Box {{ unsigned char bytes[BOX_BYTES]; }};
        {before}
        __global__ void __launch_bounds__({block}) __cluster_dims__({cluster}, 1, 1)
        k(float* out, const __grid_constant__ TensorMap out_map{parameters}) {{
            extern __shared__ __align__(1024) unsigned char dynamic[];
            __shared__ Barrier full, empty;
            Box* boxes = reinterpret_cast<Box*>(dynamic);
            const int t = threadIdx.x;
            if (t == 0) {{
                full.init(1);
                empty.init(128);
                fence_barrier_init();
            }}
            sync_cluster();
            {body}
        }}"""
    maps = [tensor_map.describe(a[None], as_tf32=a.itemsize == 4) for a in arrays]
    args = [out, tensor_map.describe(out[None])]
    for array, its_map in zip(arrays, maps, strict=True):
        args += [strided(array), its_map]
    CudaKernel(CudaSource(code, "sm_90a"), "k").launch(grid, block, args, shared_bytes)
    return out


def message(*args, error=KernelAccessError, **options):
    with pytest.raises(KernelLaunchError) as caught:
        launch(*args, **options)
    assert type(caught.value) is error, caught.value
    return str(caught.value)


def aligned(array):
    """A copy that starts at a multiple of 16 bytes."""
    memory = np.empty(array.nbytes + 16, np.uint8)
    start = -memory.ctypes.data % 16
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def tf32(x):
    """Float32 numbers rounded to 10 bits of mantissa."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


LOAD = """
    if (t == 0) {
        full.arrive_and_expect(BOX_BYTES);
        load_box(boxes, x_map, %d, %d, 0, full);
    }
"""
READ = """
    for (int i = t; i < 64 * 32; i += 128) {
        const int row = i / 32, chunk = i % 32 / 4;
        out[i] = reinterpret_cast<float*>(boxes)[row * 32 + (chunk ^ row % 8) * 4 + i % 4];
    }
"""
X = aligned(normal(70, 44, dtype=np.float32))


def out():
    return aligned(zeros(64, 32))


# ---- copies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [(0, 0), (4, 3), (20, 10), (-3, -5), (43, 69), (44, 0), (-40, 2)], ids=str)
def test_a_box_comes_swizzled_and_rounded_with_zeros_outside(place):
    x, y = place
    got = launch(LOAD % place + "full.wait(0);" + READ, out(), X)
    expected = np.zeros((300, 300), np.float32)
    expected[100:170, 100:144] = tf32(X)
    np.testing.assert_array_equal(got, expected[100 + y : 164 + y, 100 + x : 132 + x])


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


@pytest.mark.parametrize("place", [(0, 0), (4, 3), (-3, -5), (39, 40)], ids=str)
def test_a_box_is_stored_as_far_as_it_is_inside(place):
    x, y = place
    got = launch(STORE % (FENCE, x, y, WAIT), aligned(zeros(44, 40)))
    whole = np.zeros((300, 300), np.float32)
    whole[100 + y : 164 + y, 100 + x : 132 + x] = np.arange(64 * 32).reshape(64, 32)
    np.testing.assert_array_equal(got, whole[100:144, 100:140])


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


def test_registers_are_exchanged_by_whole_warpgroups():
    launch("if (t < 128) give_registers<40>(); else take_registers<232>();", out(), block=256)
    text = message("if (t >= 32) give_registers<40>();", out(), error=KernelLaunchError)
    assert "threads of its warpgroup wait in give_registers()" in text and "all 128 must come" in text
    text = message(
        "if (t < 64) give_registers<40>(); else take_registers<80>();", out(), error=KernelLaunchError
    )
    assert "_registers() at kernel.cu:" in text and "all 128 execute the same" in text


# ---- wgmma -------------------------------------------------------------------------------------------------

# out (64 x 256) = x (64 x 64) y (64 x 256): boxes 0 of x, 1 to 4 of y.
PRODUCT = """
    float sums[32][4];
    if (t == 0) {{
        full.arrive_and_expect(5 * BOX_BYTES);
        load_box(boxes, x_map, 0, 0, 0, full);
        for (int i = 0; i < 4; i++) {{
            if ({b_along}) load_box(boxes + 1 + i, y_map, 64 * i, 0, 0, full);
            else load_box(boxes + 1 + i, y_map, 0, 64 * i, 0, full);
        }}
    }}
    {wait}
    const unsigned long long a = describe_operand(shared_address(boxes));
    const unsigned long long b = describe_operand(shared_address(boxes + 1));
    const int a_next = {a_along} ? 128 : 2, b_next = {b_along} ? 128 : 2;
    {fence}
    for (int i = 0; i < {steps}; i++)
        wgmma<{type}, {a_along}, {b_along}>(sums, a + i * a_next, b + i * b_next, i > 0);
    wgmma_commit();
    {wgmma_wait}
    const int row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
    for (int n = 0; n < 32; n++)
        for (int j = 0; j < 4; j++) out[(row + j / 2 * 8) * 256 + 8 * n + column + j % 2] = sums[n][j];
"""
RIGHT = {
    "wait": "full.wait(0);",
    "fence": "wgmma_fence();",
    "wgmma_wait": "wgmma_wait<0>();",
    "steps": 4,
    "type": "__half",
    "a_along": "false",
    "b_along": "false",
}
A, B = normal(64, 64, dtype=np.float32), normal(64, 256, dtype=np.float32, seed=1)


def product(**changes):
    """The body of a kernel, and the operands as it takes them."""
    values = {**RIGHT, **changes}
    encode = {
        "__half": lambda x: x.astype(np.float16).view(np.uint16),
        "__nv_bfloat16": bfloat16_bits,
        "float": lambda x: x,
    }[values["type"]]
    a, b = A, B.T
    if values["type"] == "float":
        a, b = A[:, :32], B.T[:, :32]
    a, b = (x.T if values[along] == "true" else x for x, along in ((a, "a_along"), (b, "b_along")))
    return PRODUCT.format(**values), aligned(zeros(64, 256)), aligned(encode(a)), aligned(encode(b))


@pytest.mark.parametrize("a_along", ["false", "true"])
@pytest.mark.parametrize("b_along", ["false", "true"])
@pytest.mark.parametrize("element", ["__half", "__nv_bfloat16"])
def test_products_of_16_bits(element, a_along, b_along):
    got = launch(*product(type=element, a_along=a_along, b_along=b_along))
    a, b = (x.astype(np.float16).astype(float) for x in (A, B))
    if element == "__nv_bfloat16":
        a, b = ((bfloat16_bits(x).astype(np.uint32) << 16).view(np.float32).astype(float) for x in (A, B))
    np.testing.assert_allclose(got, a @ b, atol=2e-5)


def test_products_of_tf32():
    got = launch(*product(type="float"))
    np.testing.assert_allclose(got, tf32(A[:, :32]).astype(float) @ tf32(B[:32]).astype(float), atol=2e-5)


def test_a_product_of_what_has_not_come():
    text = message(*product(wait=""))
    assert "dynamic[" in text


def test_a_product_without_a_fence():
    assert "call wgmma_fence() before" in message(*product(fence=""), error=KernelLaunchError)


def test_sums_are_no_numbers_before_the_wait():
    got = launch(*product(wgmma_wait="const float now = sums[3][1]; wgmma_wait<0>(); sums[3][1] = now;"))
    assert np.isnan(got).sum() == 128
    text = message(*product(wgmma_wait="sums[3][1] = 0; wgmma_wait<0>();"), error=KernelLaunchError)
    assert "has written to sums that a wgmma was at work on" in text
    assert "call wgmma_commit() and wgmma_wait<0>() first" in message(
        *product(wgmma_wait=""), error=KernelLaunchError
    )


def test_a_box_that_a_product_still_reads_is_refilled():
    again = """
        %s
        empty.arrive_at(0);
        if (t == 0) {
            empty.wait(0);
            full.arrive_and_expect(BOX_BYTES);
            load_box(boxes, x_map, 0, 0, 0, full);
        }
        %s
        full.wait(1);
    """
    text = message(*product(wgmma_wait=again % ("", "wgmma_wait<0>();")))
    assert "race on dynamic[0]" in text and "wgmma_wait()" in text
    launch(*product(wgmma_wait=again % ("wgmma_wait<0>();", "")))


def test_a_product_of_some_warps_only():
    body = product()[0].replace("wgmma<", "if (t < 96) wgmma<")
    text = message(body, *product()[1:], error=KernelLaunchError)
    assert "threads of its warpgroup wait in wgmma()" in text


def test_a_descriptor_of_another_kind():
    body = product()[0].replace("describe_operand(shared_address(boxes));", "shared_address(boxes) >> 4;")
    assert "the descriptor is of another kind" in message(body, *product()[1:], error=KernelLaunchError)


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


def test_a_grid_of_half_clusters():
    assert "launched with 3 blocks along x, no multiple of the 2 of a cluster" in message(
        "", out(), grid=3, cluster=2, error=KernelLaunchError
    )


# ---- the launch --------------------------------------------------------------------------------------------


def test_the_architecture_is_asked_for():
    with sim.architecture("sm_90"):
        assert "launch it inside sim.architecture('sm_90a')" in message("", out(), error=KernelLaunchError)


def test_unchecked_launches_compute_the_same():
    with sim.checks(False):
        got = launch(*product())
    np.testing.assert_array_equal(got, launch(*product()))


def test_products_in_many_orders():
    with sim.stress(8):
        launch(*product())


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
