"""The rules that choose among the kernels of convolution; a selected kernel runs whatever they say."""

import numpy as np
import pytest

from minigrad.dispatch import kernel_table, use_kernel
from minigrad.kernels import sim
from minigrad.kernels.cpu.threads import num_threads
from minigrad.ops import conv_choice_on_cards
from minigrad.precision import convolution_precision


@pytest.fixture(autouse=True)
def two_threads():
    with num_threads(2):
        yield


FORWARD = {
    "first layer": ((2, 3, 8, 8), (16, 3, 3, 3), 1, "planes"),
    "last layer": ((2, 16, 8, 8), (3, 16, 3, 3), 1, "planes"),
    "depthwise": ((2, 32, 8, 8), (32, 1, 3, 3), 32, "depthwise"),
    "depthwise, long rows": ((2, 32, 8, 40), (32, 1, 3, 3), 32, "planes"),
    "depthwise, few channels": ((2, 8, 8, 8), (8, 1, 3, 3), 8, "planes"),
    "two outputs of each channel": ((2, 32, 8, 8), (64, 1, 3, 3), 32, "planes"),
    "many channels": ((2, 16, 8, 8), (16, 16, 4, 4), 1, "implicit_gemm"),
    "1x1": ((2, 16, 12, 12), (16, 16, 1, 1), 1, "im2col"),
    "1x1, small": ((2, 16, 7, 7), (16, 16, 1, 1), 1, "implicit_gemm"),
    "1x1, fewer images than threads": ((1, 16, 12, 12), (16, 16, 1, 1), 1, "implicit_gemm"),
}


def choose(op, *shapes, groups=1, device="cpu", dtype=np.float32, **sizes):
    arrays = [None if shape is None else np.empty(shape, dtype) for shape in shapes]
    options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": groups}
    return kernel_table(op).choose(device, np.dtype(dtype), arrays, options | sizes).name


@pytest.mark.parametrize("x, weight, groups, rung", FORWARD.values(), ids=FORWARD)
def test_forward(x, weight, groups, rung):
    assert choose("conv2d", x, weight, None, groups=groups) == rung


def test_input_grad():
    def input_grad(channels, kernel, size=8, **options):
        shapes = (2, 32, 6, 6), (32, channels, *kernel)
        return choose("conv2d_input_grad", *shapes, input_size=(size, size), **options)

    assert input_grad(16, (5, 5)) == "implicit_gemm"
    assert input_grad(3, (3, 3)) == "planes"
    assert input_grad(1, (3, 3)) == "im2col"
    assert input_grad(16, (4, 4), stride=(2, 2)) == "implicit_gemm"
    assert input_grad(16, (4, 4), stride=(2, 2), size=32) == "planes"


def test_weight_grad():
    def weight_grad(channels, out_channels, kernel, size=6):
        shapes = (2, out_channels, size, size), (2, channels, size + 2, size + 2)
        return choose("conv2d_weight_grad", *shapes, kernel_size=kernel)

    assert weight_grad(16, 16, (4, 4)) == "implicit_gemm"
    assert weight_grad(1, 32, (3, 3)) == "implicit_gemm"
    assert weight_grad(1, 6, (5, 5)) == "planes"
    assert weight_grad(64, 1, (3, 3)) == "planes"
    assert weight_grad(64, 1, (1, 1)) == "implicit_gemm"
    assert weight_grad(64, 6, (1, 1), size=28) == "im2col"


@pytest.mark.parametrize("rung", ("direct", "im2col", "implicit_gemm", "planes"))
@pytest.mark.parametrize("x, weight, groups", [case[:3] for case in FORWARD.values()], ids=FORWARD)
def test_a_selected_kernel_runs_everywhere(x, weight, groups, rung):
    with use_kernel("conv2d", rung):
        assert choose("conv2d", x, weight, None, groups=groups) == rung


def test_depthwise_gradients():
    """Small or strided planes; and a gradient for the weight of many taps."""

    def gradients(size, kernel, stride=1):
        x, weight, output = (2, 32, size, size), (32, 1, kernel, kernel), (size - kernel) // stride + 1
        options = {"stride": (stride, stride), "groups": 32}
        return (
            choose("conv2d_input_grad", (2, 32, output, output), weight, input_size=x[2:], **options),
            choose("conv2d_weight_grad", (2, 32, output, output), x, kernel_size=(kernel, kernel), **options),
        )

    assert gradients(14, 3) == ("depthwise", "depthwise")
    assert gradients(30, 3) == ("planes", "planes")
    assert gradients(30, 5) == ("planes", "depthwise")
    assert gradients(28, 3, stride=2) == ("depthwise", "depthwise")
    assert gradients(56, 3, stride=2) == ("planes", "planes")


def test_answers_follow_the_settings():
    """They are remembered for each number of threads, and for what precision allows."""
    one_image, many_channels = ((1, 16, 12, 12), (16, 16, 1, 1)), ((8, 32, 16, 16), (32, 32, 3, 3))
    for _ in range(2):
        with num_threads(1):
            assert choose("conv2d", *one_image, None) == "im2col"
        assert choose("conv2d", *one_image, None) == "implicit_gemm"
        assert choose("conv2d", *many_channels, None) == "winograd"
        with convolution_precision("highest"):
            assert choose("conv2d", *many_channels, None) == "implicit_gemm"
            with use_kernel("conv2d", "planes"):
                assert choose("conv2d", *many_channels, None) == "planes"


# ---- on a card ---------------------------------------------------------------------------------------------

ON_A_CARD = {  # channels, outputs, groups, kernel, and the rungs: forward, gradients for input and weight
    "many channels": (16, 16, 1, (3, 3), ("pipelined", "pipelined", "pipelined")),
    "first layer": (3, 16, 1, (3, 3), ("implicit_gemm", "direct", "implicit_gemm")),
    "last layer": (16, 3, 1, (3, 3), ("direct", "implicit_gemm", "direct")),
    "more taps than pipelined takes": (16, 16, 1, (12, 12), ("implicit_gemm",) * 3),
    "depthwise": (4, 8, 4, (3, 3), ("strips", "strips", "strips")),
    "depthwise, another kernel": (4, 8, 4, (4, 3), ("depthwise", "depthwise", "depthwise")),
    "one channel to many": (1, 32, 1, (5, 5), ("strips", "direct", "strips")),
}


@pytest.mark.parametrize("channels, outputs, groups, kernel, rungs", ON_A_CARD.values(), ids=ON_A_CARD)
def test_on_a_card(channels, outputs, groups, kernel, rungs):
    x, weight = (2, channels, 14, 13), (outputs, channels // groups, *kernel)
    y = 2, outputs, 15 - kernel[0], 14 - kernel[1]
    options = {"groups": groups, "device": "cuda"}
    with convolution_precision("highest"):
        assert choose("conv2d", x, weight, None, **options) == rungs[0]
        assert choose("conv2d_input_grad", y, weight, input_size=x[2:], **options) == rungs[1]
        assert choose("conv2d_weight_grad", y, x, kernel_size=kernel, **options) == rungs[2]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size, rung", [(3, "strips"), (5, "strips"), (7, "depthwise")])
def test_depthwise_in_16_bits_on_a_card(size, rung, stride):
    """Nothing goes back to float32."""
    x, weight, out = (
        (2, 4, 14, 13),
        (8, 1, size, size),
        ((14 - size) // stride + 1, (13 - size) // stride + 1),
    )
    options = {"groups": 4, "device": "cuda", "dtype": np.float16, "stride": (stride, stride)}
    assert choose("conv2d", x, weight, None, **options) == rung
    assert choose("conv2d_input_grad", (2, 8, *out), weight, input_size=x[2:], **options) == rung
    assert choose("conv2d_weight_grad", (2, 8, *out), x, kernel_size=(size, size), **options) == rung


def test_float64_on_a_card():
    x, weight = (2, 16, 8, 8), (16, 16, 3, 3)
    assert choose("conv2d", x, weight, None, device="cuda", dtype=np.float64) == "implicit_gemm"


def test_contiguous_images_are_for_wgmma_where_its_results_are_worth_a_transposition(monkeypatch):
    monkeypatch.setattr(conv_choice_on_cards, "get_float32_matmul_precision", lambda: "high")

    def rungs(channels, size, kernel, dtype=np.float16, bias=None):
        images, weight = (128, channels, size, size), (128, channels, kernel, kernel)
        grad, padding = (128, 128, size, size), (kernel // 2,) * 2
        on_hopper = {"device": "sim", "dtype": dtype, "padding": padding}
        return (
            choose("conv2d", images, weight, bias, **on_hopper),
            choose("conv2d_input_grad", grad, weight, input_size=(size, size), **on_hopper),
            choose("conv2d_weight_grad", grad, images, kernel_size=(kernel, kernel), **on_hopper),
        )

    with sim.architecture("sm_90a"):
        assert rungs(64, 28, 3) == ("wgmma",) * 3
        # From 256 channels to 128, and back: in 16 bits without a bias nothing is transposed.
        assert rungs(256, 28, 1) == ("wgmma", "wgmma", "pointwise")
        assert rungs(256, 28, 1, bias=(128,)) == ("pointwise", "wgmma", "pointwise")
        assert rungs(256, 28, 1, np.float32) == ("pointwise",) * 3
        assert rungs(256, 7, 1) == ("tensor_core", "tensor_core", "wgmma")  # sums of 256 and 128 terms
        assert rungs(512, 7, 1) == ("wgmma", "tensor_core", "wgmma")
        assert rungs(64, 28, 3, np.float32) == ("wgmma", "wgmma", "tensor_core")


def test_a_card_remembers_the_choice_with_a_bias_apart_from_that_without():
    images, weight = (128, 256, 28, 28), (128, 256, 1, 1)
    with sim.architecture("sm_90a"):
        for bias, rung in ((None, "wgmma"), ((128,), "pointwise"), (None, "wgmma")):
            assert choose("conv2d", images, weight, bias, device="cuda", dtype=np.float16) == rung
