"""Every rung of the convolution ladders, at every instruction-set level, against float64 definitions."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from convolution_problems import split_groups
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from in_one_test import in_one_test
from numpy.lib.stride_tricks import sliding_window_view

from minigrad.kernels import cpu

FUNCTIONS = ("forward", "input_grad", "weight_grad")
RUNGS = ("direct", "im2col", "implicit_gemm", "planes", "depthwise")

functions = pytest.mark.parametrize("function", FUNCTIONS)
rungs = pytest.mark.parametrize("rung", RUNGS)
threads_1_2 = in_one_test("threads", (1, 2))


@dataclass(frozen=True)
class Case:
    x: tuple[int, int, int, int]
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def weight(self):
        return (self.out_channels, self.x[1] // self.groups, *self.kernel)

    @property
    def out(self):
        sizes = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(
                self.x[2:], self.kernel, self.stride, self.pad, self.dilation, strict=True
            )
        )
        return (self.x[0], self.out_channels, *sizes)

    @property
    def shapes(self):
        return {"x": self.x, "weight": self.weight, "bias": (self.out_channels,), "grad_output": self.out}

    def options(self, threads):
        return (*self.stride, *self.pad, *self.dilation, self.groups, threads)


CASES = [
    Case((1, 1, 1, 1), 1, (1, 1)),
    Case((3, 1, 28, 28), 32, (3, 3), pad=(1, 1)),
    Case((5, 32, 14, 14), 64, (3, 3), pad=(1, 1)),
    Case((2, 9, 9, 11), 5, (3, 3)),
    Case((2, 40, 7, 9), 33, (3, 2), pad=(1, 0)),
    Case((2, 10, 11, 8), 17, (3, 5), stride=(2, 3), pad=(2, 1)),
    Case((1, 9, 13, 17), 3, (3, 2), stride=(1, 2), pad=(1, 2), dilation=(2, 3)),
    Case((2, 11, 15, 16), 6, (3, 4), stride=(2, 3), pad=(3, 4), dilation=(2, 2)),
    Case((2, 17, 16, 19), 6, (4, 3), stride=(4, 6), pad=(2, 5), dilation=(6, 4)),
    Case((2, 22, 10, 9), 8, (3, 3), pad=(1, 1), groups=2),
    Case((2, 9, 12, 7), 18, (2, 3), stride=(2, 1), pad=(0, 1), dilation=(1, 2), groups=3),
    Case((2, 7, 9, 10), 7, (3, 3), stride=(1, 2), pad=(1, 1), groups=7),
    Case((2, 5, 8, 8), 10, (3, 3), pad=(1, 1), groups=5),
    Case((2, 6, 8, 8), 3, (3, 3), pad=(1, 1), groups=3),
    Case((3, 20, 6, 5), 13, (1, 1)),
    Case((2, 9, 9, 8), 7, (1, 1), stride=(2, 3)),
    Case((2, 9, 9, 9), 4, (2, 2), stride=(4, 5)),
    Case((2, 12, 5, 4), 4, (2, 3), pad=(4, 5)),
    Case((1, 9, 2, 3), 3, (5, 4), pad=(2, 2)),
    Case((1, 9, 1, 1), 2, (3, 3), stride=(2, 2), pad=(3, 2)),
    Case((1, 70, 5, 5), 40, (3, 3), pad=(1, 1)),
    Case((1, 3, 90, 70), 4, (3, 3), pad=(1, 1)),
    Case((1, 12, 90, 70), 4, (3, 3), pad=(1, 1)),
    Case((9, 2, 1, 40), 20, (1, 7), pad=(0, 3)),
    # Few channels in a group, with rows of many vectors, of one and of less, in few rows and in many.
    Case((2, 3, 17, 41), 3, (3, 3), pad=(1, 1), groups=3),
    Case((1, 2, 9, 70), 2, (5, 5), pad=(2, 2), groups=2),
    Case((2, 2, 18, 38), 2, (3, 3), stride=(2, 2), pad=(1, 1), groups=2),
    Case((1, 2, 23, 37), 6, (5, 3), stride=(2, 2), pad=(4, 2), dilation=(2, 2), groups=2),
    Case((2, 3, 7, 7), 3, (3, 3), pad=(1, 1), groups=3),
    Case((1, 2, 6, 19), 2, (5, 5), stride=(1, 3), pad=(3, 6), groups=2),
    Case((1, 8, 5, 90), 8, (3, 3), pad=(1, 1), groups=2),
    Case((1, 3, 12, 50), 14, (7, 7), stride=(2, 2), pad=(3, 3)),
    # One channel in a group: fewer of them than a vector has lanes, and a few more than two or four have.
    Case((2, 5, 7, 7), 5, (3, 3), pad=(1, 1), groups=5),
    Case((3, 33, 6, 9), 33, (3, 3), stride=(2, 2), pad=(1, 1), groups=33),
    Case((1, 19, 11, 6), 19, (2, 5), stride=(3, 1), pad=(4, 5), dilation=(2, 3), groups=19),
    Case((2, 66, 2, 3), 66, (1, 1), stride=(2, 3), pad=(2, 1), groups=66),
]
DEPTHWISE = Case((3, 36, 9, 8), 36, (3, 3), stride=(1, 2), pad=(1, 1), groups=36)
# Rows from one column to more than two vectors of any level and dtype.
WIDTHS = range(1, 36)
EMPTY_CASES = [
    Case((0, 3, 5, 5), 4, (3, 3), pad=(1, 1)),
    Case((2, 0, 5, 5), 4, (3, 3), pad=(1, 1)),
    Case((2, 9, 5, 5), 0, (3, 3), stride=(2, 2)),
    Case((2, 3, 0, 4), 5, (1, 1), pad=(1, 0)),
    Case((0, 3, 5, 5), 3, (3, 3), stride=(2, 1), pad=(1, 1), groups=3),
    Case((2, 3, 0, 4), 3, (1, 1), pad=(1, 0), groups=3),
]


@cache
def random_array(shape, dtype, seed):
    array = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    array.flags.writeable = False
    return array


def arrays(case, dtype):
    return {name: random_array(shape, dtype, seed) for seed, (name, shape) in enumerate(case.shapes.items())}


# ---- the oracle --------------------------------------------------------------------------------------------


def padded(x, case):
    (pad_h, pad_w) = case.pad
    return np.pad(x, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)))


def forward_oracle(case, x, weight, bias, **_):
    """Windows of the padded input, thinned out by stride and dilation, times the kernel."""
    spans = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(case.dilation, case.kernel, strict=True)]
    windows = sliding_window_view(padded(x, case), spans, axis=(2, 3))
    windows = windows[:, :, :: case.stride[0], :: case.stride[1], :: case.dilation[0], :: case.dilation[1]]
    windows, weight = split_groups(windows, case.groups, 1), split_groups(weight, case.groups, 0)
    return np.einsum("ngcijuv,gocuv->ngoij", windows, weight).reshape(case.out) + bias[:, None, None]


def taps(case):
    """For each kernel element, the positions of the padded input that it meets, one for each output pixel."""
    for u in range(case.kernel[0]):
        for v in range(case.kernel[1]):
            rows = u * case.dilation[0] + case.stride[0] * np.arange(case.out[2])
            columns = v * case.dilation[1] + case.stride[1] * np.arange(case.out[3])
            yield u, v, (..., rows[:, None], columns[None, :])


def input_grad_oracle(case, grad_output, weight, **_):
    """The adjoint: each tap scatters grad_output to where it read the padded input."""
    grad_output, weight = split_groups(grad_output, case.groups, 1), split_groups(weight, case.groups, 0)
    grad = np.zeros(padded(np.empty(case.x), case).shape)
    for u, v, positions in taps(case):
        scattered = np.einsum("ngoij,goc->ngcij", grad_output, weight[..., u, v])
        np.add.at(grad, positions, scattered.reshape(*case.x[:2], *case.out[2:]))
    (pad_h, pad_w), (height, width) = case.pad, case.x[2:]
    return grad[:, :, pad_h : pad_h + height, pad_w : pad_w + width]


def weight_grad_oracle(case, grad_output, x, **_):
    grad_output, x = split_groups(grad_output, case.groups, 1), padded(x, case)
    grad = np.zeros(case.weight)
    for u, v, positions in taps(case):
        gathered = split_groups(x[positions], case.groups, 1)
        grad[..., u, v] = np.einsum("ngoij,ngcij->goc", grad_output, gathered).reshape(case.weight[:2])
    return grad


ORACLES = {"forward": forward_oracle, "input_grad": input_grad_oracle, "weight_grad": weight_grad_oracle}


@cache
def expected(function, case, dtype):
    """The result in float64, and the sum of the absolute values of its terms."""
    exact = {name: array.astype(np.float64) for name, array in arrays(case, dtype).items()}
    absolute = {name: np.abs(array) for name, array in exact.items()}
    return ORACLES[function](case, **exact), ORACLES[function](case, **absolute)


def error_bound(function, case, dtype, absolute):
    """What adding the products in any order may be off by: gamma(terms) times the sum of absolute values,
    with gamma(t) = t u / (1 - t u), u the unit roundoff (Higham, Accuracy and Stability, section 3.5)."""
    kernel = case.kernel[0] * case.kernel[1]
    terms = {
        "forward": case.weight[1] * kernel + 1,
        "input_grad": case.out_channels // case.groups * kernel,
        "weight_grad": case.out[0] * case.out[2] * case.out[3],
    }[function]
    roundoff = np.finfo(dtype).eps / 2
    # The float64 oracle obeys the same bound with its own roundoff, which doubles it for float64.
    return (2 * terms * roundoff / (1 - terms * roundoff) + roundoff) * absolute


# ---- running a kernel --------------------------------------------------------------------------------------


def compute(module, function, rung, case, operands, threads=1, bias=True):
    shape = {"forward": case.out, "input_grad": case.x, "weight_grad": case.weight}[function]
    out = np.full(shape, np.nan, operands["x"].dtype)
    inputs = {
        "forward": (operands["x"], operands["weight"], operands["bias"] if bias else None),
        "input_grad": (operands["grad_output"], operands["weight"]),
        "weight_grad": (operands["grad_output"], operands["x"]),
    }[function]
    getattr(module, f"{function}_{rung}")(out, *inputs, *case.options(threads))
    return out


def skip_unless_it_fits(rung, case):
    if rung not in rungs_for(case):
        pytest.skip("the rung is for groups of one channel at both ends")


def rungs_for(case):
    is_depthwise = case.x[1] == case.out_channels == case.groups
    return [rung for rung in RUNGS if is_depthwise or rung != "depthwise"]


def assert_correct(module, function, rung, case, dtype, threads=1):
    out = compute(module, function, rung, case, arrays(case, dtype), threads)
    exact, absolute = expected(function, case, dtype)
    error, bound = np.abs(out - exact), error_bound(function, case, dtype, absolute)
    assert np.all(error <= bound), f"error {np.max(error)}, bound there {bound.flat[np.argmax(error)]}"


@pytest.fixture(scope="session")
def conv2d(kernel_module):
    return kernel_module("conv2d")


# ---- the tests ---------------------------------------------------------------------------------------------


@functions
@threads_1_2
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_definition(conv2d, dtype, case, function, threads):
    for rung in rungs_for(case):
        assert_correct(conv2d, function, rung, case, dtype, threads)


@functions
@in_one_test("width", WIDTHS)
def test_rows_of_any_width(conv2d, dtype, function, width):
    """Of several channels in a group, and of one: in columns of taps, in taps alone, and strided."""
    for case in (
        Case((2, 4, 9, width), 6, (3, 3), pad=(1, 1), groups=2),
        Case((2, 2, 9, width), 2, (3, 3), pad=(1, 1), groups=2),
        Case((1, 2, 10, width), 2, (5, 3), pad=(2, 3), groups=2),
        Case((1, 2, 5, width), 2, (2, 1), dilation=(2, 1), groups=2),
        Case((1, 2, 9, width), 2, (3, 3), stride=(2, 2), pad=(1, 1), groups=2),
        Case((1, 2, 9, width), 2, (3, 4), stride=(1, 3), pad=(1, 2), groups=2),
    ):
        assert_correct(conv2d, function, "planes", case, dtype)
        if "depthwise" in rungs_for(case):
            assert_correct(conv2d, function, "depthwise", case, dtype)


@rungs
@functions
@pytest.mark.parametrize("case", EMPTY_CASES, ids=str)
def test_empty_dimensions(conv2d, dtype, case, function, rung):
    skip_unless_it_fits(rung, case)
    out = compute(conv2d, function, rung, case, arrays(case, dtype), threads=2)
    expected_out = arrays(case, dtype)["bias"][:, None, None] if function == "forward" else 0
    np.testing.assert_array_equal(out, np.broadcast_to(expected_out, out.shape))


sizes = st.integers(1, 9)
steps = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def cases(draw):
    groups = draw(st.integers(1, 3))
    case = Case(
        x=(draw(st.integers(1, 3)), groups * draw(st.sampled_from([1, 3, 5, 9])), draw(sizes), draw(sizes)),
        out_channels=groups * draw(st.sampled_from([1, 2, 3, 7, 17])),
        kernel=draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        stride=draw(steps),
        pad=draw(st.tuples(st.integers(0, 5), st.integers(0, 5))),
        dilation=draw(steps),
        groups=groups,
    )
    assume(min(case.out) > 0)
    return case


@given(case=cases(), threads=st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_any_geometry(case, threads):
    conv2d = cpu.kernel_module("conv2d")
    for function in FUNCTIONS:
        for rung in rungs_for(case):
            assert_correct(conv2d, function, rung, case, np.float64, threads)


@rungs
def test_forward_without_bias(conv2d, dtype, rung):
    case = DEPTHWISE if rung == "depthwise" else CASES[3]
    operands = arrays(case, dtype)
    out = compute(conv2d, "forward", rung, case, operands, bias=False)
    zero_bias = compute(conv2d, "forward", rung, case, operands | {"bias": np.zeros_like(operands["bias"])})
    np.testing.assert_array_equal(out, zero_bias)


@rungs
@functions
@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_nonfinite_elements_reach_what_depends_on_them(conv2d, dtype, function, rung, value):
    case = Case((2, 9, 9, 8), 5, (3, 3), stride=(1, 2), pad=(1, 1)) if rung != "depthwise" else DEPTHWISE
    operands = {name: array.copy() for name, array in arrays(case, dtype).items()}
    operands["x" if function == "forward" else "grad_output"][1, 2, 4, 3] = value
    with np.errstate(invalid="ignore"):
        exact = ORACLES[function](case, **{name: a.astype(np.float64) for name, a in operands.items()})
    out = compute(conv2d, function, rung, case, operands)
    np.testing.assert_array_equal(np.isfinite(out), np.isfinite(exact))


@rungs
@pytest.mark.parametrize("value", (np.nan, np.inf))
@pytest.mark.parametrize("width", (5, 19))
def test_weight_grad_ignores_what_a_tap_does_not_meet(conv2d, dtype, rung, value, width):
    case = Case((1, 3, 6, width), 3, (1, 3), groups=3)
    operands = {name: array.copy() for name, array in arrays(case, dtype).items()}
    # Only the first tap meets the first column, and only the last the last.
    operands["x"][0, :, 2, 0] = operands["x"][0, :, 3, -1] = value
    out = compute(conv2d, "weight_grad", rung, case, operands)
    np.testing.assert_array_equal(np.isfinite(out), np.broadcast_to([False, True, False], out.shape))


@rungs
@functions
@threads_1_2
def test_same_bits_in_every_run(conv2d, dtype, function, rung, threads):
    case = Case((9, 9, 20, 21), 24, (3, 3), pad=(1, 1)) if rung != "depthwise" else DEPTHWISE
    first, second = (
        compute(conv2d, function, rung, case, arrays(case, dtype), threads).tobytes() for _ in range(2)
    )
    assert first == second


@rungs
def test_bad_arguments_are_refused(conv2d, rung):
    case = DEPTHWISE if rung == "depthwise" else CASES[3]
    operands = arrays(case, np.float32)
    forward, options = getattr(conv2d, f"forward_{rung}"), case.options(1)
    x, weight, bias = operands["x"], operands["weight"], operands["bias"]
    out = np.zeros(case.out, np.float32)
    with pytest.raises(TypeError):
        forward(out, x.astype(np.float64), weight, bias, *options)
    with pytest.raises(TypeError):
        forward(out.astype(np.int32), x.astype(np.int32), weight.astype(np.int32), None, *options)
    with pytest.raises(ValueError, match="shapes do not fit"):
        forward(out[:, :, 1:].copy(), x, weight, bias, *options)
    with pytest.raises(ValueError, match="shapes do not fit"):
        forward(out, x, weight, bias, *options[:-2], 3, 1)
    with pytest.raises(ValueError, match="bias"):
        forward(out, x, weight, bias[1:], *options)
    with pytest.raises(ValueError, match="stride"):
        forward(out, x, weight, bias, 0, *options[1:])
    with pytest.raises(ValueError, match="C-contiguous"):
        forward(out, x[:, :, ::-1], weight, bias, *options)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        forward(out, x, weight, bias, *options)
