"""Products by wgmma on the simulator, and what mistakes with them lead to."""

import numpy as np
import pytest
from hopper_kernels import aligned, launch, message, tf32
from simulated import normal, zeros

from minigrad.kernels import sim
from minigrad.kernels.arguments import bfloat16_bits
from minigrad.kernels.errors import KernelLaunchError

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


@pytest.fixture(autouse=True)
def hopper():
    with sim.architecture("sm_90a"), sim.checks(True):
        yield


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


def test_unchecked_launches_compute_the_same():
    with sim.checks(False):
        got = launch(*product())
    np.testing.assert_array_equal(got, launch(*product()))


def test_products_in_many_orders():
    with sim.stress(8):
        launch(*product())


# ---- a left operand in registers ---------------------------------------------------------------------------

# sums (64 x 128) += x (64 x 64) y (64 x 128): x is loaded by the threads, boxes 0 and 1 are of y.
REGISTERS = """
    float sums[16][4];
    unsigned a[4][4];
    if (t == 0) {{
        full.arrive_and_expect(2 * BOX_BYTES);
        for (int i = 0; i < 2; i++) {{
            if ({b_along}) load_box(boxes + i, y_map, 64 * i, 0, 0, full);
            else load_box(boxes + i, y_map, 0, 64 * i, 0, full);
        }}
    }}
    const int row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
    for (int n = 0; n < 16; n++)
        for (int j = 0; j < 4; j++) sums[n][j] = 128 * (row + j / 2 * 8) + 8 * n + column + j % 2;
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 4; i++) {{
            const unsigned short* pair = &x[(row + i % 2 * 8) * 64 + 16 * k + i / 2 * 8 + column];
            a[k][i] = pair[0] | unsigned(pair[1]) << 16;
        }}
    full.wait(0);
    const unsigned long long b = describe_operand(shared_address(boxes));
    {fence}
    for (int k = 0; k < 4; k++) wgmma<{type}, {b_along}>(sums, a[k], b + k * ({b_along} ? 128 : 2));
    wgmma_commit();
    {wgmma_wait}
    wgmma_is_done(sums);
    wgmma_is_done(a);
    for (int n = 0; n < 16; n++)
        for (int j = 0; j < 4; j++) out[(row + j / 2 * 8) * 128 + 8 * n + column + j % 2] = sums[n][j];
"""


def product_of_registers(**changes):
    """The body of a kernel, and what it takes."""
    values = {**RIGHT, **changes}
    encode = (
        bfloat16_bits if values["type"] == "__nv_bfloat16" else lambda x: x.astype(np.float16).view(np.uint16)
    )
    b = B[:, :128] if values["b_along"] == "true" else B.T[:128]
    return REGISTERS.format(**values), aligned(zeros(64, 128)), aligned(encode(A)), aligned(encode(b))


@pytest.mark.parametrize("b_along", ["false", "true"])
@pytest.mark.parametrize("element", ["__half", "__nv_bfloat16"])
def test_products_of_registers(element, b_along):
    got = launch(*product_of_registers(type=element, b_along=b_along))
    a, b = (x.astype(np.float16).astype(float) for x in (A, B[:, :128]))
    if element == "__nv_bfloat16":
        a, b = (
            (bfloat16_bits(x).astype(np.uint32) << 16).view(np.float32).astype(float) for x in (A, B[:, :128])
        )
    start = np.arange(64 * 128).reshape(64, 128)
    np.testing.assert_allclose(got, start + a @ b, atol=0.01)


def test_registers_are_not_touched_while_a_product_reads_them():
    text = message(*product_of_registers(fence=""), error=KernelLaunchError)
    assert "call wgmma_fence() before" in text
    wait = "a[2][1] = 0; wgmma_wait<0>();"
    text = message(*product_of_registers(wgmma_wait=wait), error=KernelLaunchError)
    assert "has written to factors that a wgmma was at work on" in text
    launch(*product_of_registers(wgmma_wait="wgmma_wait<0>(); a[2][1] = 0;"))


def test_new_factors_need_a_new_fence():
    again = """
        wgmma_wait<0>();
        a[0][0] = 0;
        %s
        wgmma<__half, false>(sums, a[0], b);
        wgmma_commit();
        wgmma_wait<0>();
    """
    launch(*product_of_registers(wgmma_wait=again % "wgmma_fence();"))
    text = message(*product_of_registers(wgmma_wait=again % ""), error=KernelLaunchError)
    assert "call wgmma_fence() before" in text
