"""check_op is not fooled: kernels and gradients that cheat, with what is said of each, beside sound twins."""

import numpy as np
import pytest

import minigrad as mg
from minigrad.kernels import sim
from minigrad.kernels.launch import CudaKernel, blocks
from minigrad.testing import case, check_op

pytestmark = pytest.mark.usefixtures("forget_ops")


def make_swish():
    @mg.op
    def swish(xp, x, *, beta=1.0):
        return x / (1 + xp.exp(-beta * x))

    @swish.grad
    def _(g, y, x, *, beta):
        s = mg.sigmoid(x * beta)
        return g * (s + x * beta * s * (1.0 - s))

    return swish


def message(check):
    """What the check complains of, with the notes that an exception carries."""
    with pytest.raises(Exception) as error:
        check()
    return "\n".join([str(error.value), *getattr(error.value, "__notes__", ())])


def check_on_cpu(run, cases=None, **options):
    swish = make_swish()
    swish.kernel("cpu", name="under_test", **options)(run)
    return check_op(swish, cases, devices=["cpu"], seed=1, gradients=False)


# ---- kernels in Python ------------------------------------------------------------------------------------


def right(out, x, *, beta):
    np.divide(x, 1 + np.exp(-beta * x), out=out)


def flat(array, extra=0):
    """The elements of a contiguous array and ``extra`` more, after it; before it, if negative."""
    if extra < 0:
        address = array.ctypes.data + extra * array.itemsize
        kind = (np.ctypeslib.as_ctypes_type(array.dtype) * (array.size - extra)).from_address(address)
        return np.ctypeslib.as_array(kind)
    return np.lib.stride_tricks.as_strided(array.reshape(-1), (array.size + extra,), (array.itemsize,))


def writes_nothing(out, x, *, beta):
    pass


def writes_zeros(out, x, *, beta):
    out[...] = 0


def writes_nan(out, x, *, beta):
    out[...] = np.nan


def leaves_out_the_tail(out, x, *, beta):
    n = x.size // 4 * 4
    right(out.reshape(-1)[:n], x.reshape(-1)[:n], beta=beta)


def leaves_out_the_first(out, x, *, beta):
    right(out.reshape(-1)[1:], x.reshape(-1)[1:], beta=beta)


def gets_the_tail_wrong(out, x, *, beta):
    right(out, x, beta=beta)
    out.reshape(-1)[x.size // 4 * 4 :] *= 2


def runs_one_block(out, x, *, beta):
    right(out.reshape(-1)[:1024], x.reshape(-1)[:1024], beta=beta)


def knows_the_shapes_of_the_cases(out, x, *, beta):
    if x.shape in ((3, 4), (8,)):
        right(out, x, beta=beta)
    else:
        out[...] = 0


def keeps_its_first_output(key):
    kept = {}

    def kernel(out, x, *, beta):
        right(out, x, beta=beta)
        out[...] = kept.setdefault((key(x), x.dtype, beta), out.copy())

    return kernel


def changes_its_input(out, x, *, beta):
    right(out, x, beta=beta)
    x += 1


def writes_past_its_input(out, x, *, beta):
    right(out, x, beta=beta)
    flat(x, 1)[-1] = 0


def writes_past_its_output(out, x, *, beta):
    right(out, x, beta=beta)
    flat(out, 1)[-1] = 0


def writes_two_past_its_output(out, x, *, beta):
    right(out, x, beta=beta)
    flat(out, 3)[-1] = 0


def writes_before_its_output(out, x, *, beta):
    right(out, x, beta=beta)
    flat(out, -1)[0] = 0


def reads_past_its_input(out, x, *, beta):
    right(out, x, beta=beta)
    if x.size:
        out.reshape(-1)[-1] += flat(x, 1)[-1]


def reads_past_its_input_by_a_maximum(out, x, *, beta):
    right(out, x, beta=beta)
    if x.size:
        out.reshape(-1)[-1] = np.fmax(out.reshape(-1)[-1], flat(x, 1)[-1])


def adds_to_its_output(out, x, *, beta):
    out += x / (1 + np.exp(-beta * x))


def takes_scratch_for_zeros(out, x, *, beta):
    scratch = np.empty_like(x)
    scratch += x
    right(out, scratch, beta=beta)


def is_never_twice_the_same():
    noise = np.random.default_rng(0)

    def kernel(out, x, *, beta):
        right(out, x, beta=beta)
        out *= 1 + np.finfo(out.dtype).eps * noise.integers(0, 2, out.shape)

    return kernel


def writes_again_later():
    last = []

    def kernel(out, x, *, beta):
        right(out, x, beta=beta)
        for earlier in last:
            earlier *= 2
        last[:] = [out]

    return kernel


def ignores_its_attribute(out, x, *, beta):
    right(out, x, beta=1.0)


def computes_in(dtype):
    def kernel(out, x, *, beta):
        out[...] = (x.astype(dtype) / (1 + np.exp(dtype(-beta) * x.astype(dtype)))).astype(out.dtype)

    return kernel


def is_inaccurate(out, x, *, beta):
    right(out, x, beta=beta)
    out *= 1 + 40 * np.finfo(out.dtype).eps


def is_wrong_at(replace):
    def kernel(out, x, *, beta):
        right(out, replace(x), beta=beta)

    return kernel


def takes_strides_for_contiguous(out, x, *, beta):
    if x.T.flags.c_contiguous:
        x = x.T.reshape(x.shape)
    right(out, x, beta=beta)


def fails_at_odd_sizes(out, x, *, beta):
    right(out.reshape(-1, 4), x.reshape(-1, 4), beta=beta)


def calls_the_reference(out, x, *, beta):
    out[...] = mg.get_op("swish").reference(np, x, beta=beta)


def calls_another_op(out, x, *, beta):
    with mg.use_kernel("swish", "reference"):
        out[...] = mg.get_op("swish")(mg.from_numpy(x), beta=beta).numpy()


def reverses(out, x, *, beta):
    right(out.reshape(-1)[::-1], x.reshape(-1), beta=beta)


def has_a_factor(out, x, *, beta):
    right(out, x, beta=beta)
    out *= 0.5


CASES = [case((3, 5)), case((0,)), case((7,), beta=2.0), case(())]


def loses_digits(out, x, *, beta):
    """(1 + tanh) / 2 instead of a sigmoid: small values lose digits."""
    out[...] = x * ((1 + np.tanh(x * out.dtype.type(beta / 2))) / 2)


CHEATS = {
    "nothing": (writes_nothing, "the kernel wrote nothing"),
    "zeros": (writes_zeros, "the kernel wrote zeros"),
    "NaN": (writes_nan, "the kernel wrote NaN everywhere"),
    "no tail": (leaves_out_the_tail, "the last 3 of 15 elements were not written: a tail"),
    "no first element": (leaves_out_the_first, "1 of 15 elements were not written, the first of them (0, 0)"),
    "a wrong tail": (gets_the_tail_wrong, "only the last 3 of 15 elements are wrong: a tail"),
    "an old result, by shape": (keeps_its_first_output(lambda x: x.shape), "inputs of an earlier call"),
    "an old result, by address": (
        keeps_its_first_output(lambda x: (x.shape, x.strides, x.ctypes.data)),
        "inputs of an earlier call",
    ),
    "an old result, by object": (
        keeps_its_first_output(lambda x: (id(x.base), x.shape, x.ctypes.data)),
        "inputs of an earlier call",
    ),
    "changed input": (changes_its_input, "changed its input 'x'"),
    "written past the input": (writes_past_its_input, "changed its input 'x'"),
    "written past the output": (writes_past_its_output, "output 0 (shape (3, 5), float32): right past"),
    "written further past": (writes_two_past_its_output, "2 elements past its end"),
    "written before the output": (writes_before_its_output, "right before its start"),
    "read past the input": (reads_past_its_input, "is something read outside of an input"),
    "read past, by a maximum": (reads_past_its_input_by_a_maximum, "elements differ"),
    "added to the output": (adds_to_its_output, "added to what the output's memory held before"),
    "scratch taken for zeros": (takes_scratch_for_zeros, "elements differ"),
    "not deterministic": (is_never_twice_the_same(), "differs from run to run"),
    "written again later": (writes_again_later(), "an output changed after the kernel had returned"),
    "ignored attribute": (ignores_its_attribute, "is the attribute 'beta' passed on?"),
    "float16": (computes_in(np.float16), "it is as exact as float16"),
    "float32": (computes_in(np.float32), "float64, contiguous inputs"),
    "float32, named": (computes_in(np.float32), "it is as exact as float32"),
    "inaccurate": (is_inaccurate, "elements differ"),
    "no NaN": (is_wrong_at(lambda x: np.where(np.isnan(x), 0, x)), "only where an input is nan"),
    "no infinity": (is_wrong_at(lambda x: np.clip(x, -1e37, 1e37)), "only where an input is"),
    "no huge numbers": (is_wrong_at(lambda x: np.where(x > 1e9, 1e9, x)), "only where an input is"),
    "no negative numbers": (is_wrong_at(np.abs), "elements differ"),
    "fails": (fails_at_odd_sizes, "cannot reshape array"),
    "the reference": (calls_the_reference, "computes nothing of its own"),
    "the reference, by way of the op": (calls_another_op, "computes nothing of its own"),
    "lost digits": (loses_digits, "right, but for some roundings too many"),
    "reversed": (reverses, "these are the right values in another order"),
    "a factor": (has_a_factor, "each element is 0.5 times what it should be"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheating_kernel(name):
    kernel, words = CHEATS[name]
    text = message(lambda: check_on_cpu(kernel, CASES))
    assert words in text
    assert "check_op: swish" in text and "on cpu" in text and "'under_test'" in text
    if "computes nothing" not in text:
        assert "seed=1" in text and " inputs (" in text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_kernel_of_16_bits(dtype):
    """Where a kernel is registered for them it is tried with them, and they are as exact as they can be."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    report = check_on_cpu(computes_in(np.float32), CASES, dtypes=dtype)
    assert dtype in report.kernels[-1].dtypes
    text = message(lambda: check_on_cpu(is_wrong_at(np.abs), CASES, dtypes=dtype))
    assert "elements differ" in text and dtype in text
    text = message(lambda: check_on_cpu(leaves_out_the_tail, CASES, dtypes=dtype))
    assert "elements were not written" in text


def test_cheats_that_only_cases_of_other_sizes_find():
    """An op without a shape rule is tried at sizes that its author did not think of."""
    cases = [case((3, 4)), case((8,), beta=2.0)]
    assert "the last" in message(lambda: check_on_cpu(leaves_out_the_tail, cases))
    text = message(lambda: check_on_cpu(runs_one_block, cases))
    assert "were not written: a tail" in text and "derived from those given (several blocks)" in text
    assert "derive=False" in text
    text = message(lambda: check_on_cpu(knows_the_shapes_of_the_cases, cases))
    assert "the kernel wrote zeros" in text and "derived from those given (odd sizes)" in text
    swish = make_swish()
    swish.kernel("cpu", name="under_test")(runs_one_block)
    check_op(swish, cases, devices=["cpu"], gradients=False, derive=False)  # and this is what it is for


def test_an_ignored_attribute_that_no_case_varies():
    text = message(lambda: check_on_cpu(ignores_its_attribute))
    assert "(another beta)" in text and "is the attribute 'beta' passed on?" in text


def test_a_strided_kernel_that_ignores_strides():
    text = message(lambda: check_on_cpu(takes_strides_for_contiguous, CASES, layout="strided"))
    assert "transposed inputs" in text and "read as if they were contiguous" in text


def test_the_number_of_elements_that_differ_and_the_worst():
    text = message(lambda: check_on_cpu(gets_the_tail_wrong, CASES))
    assert "output 0: 3 of 15 elements differ; the worst is (2, " in text
    assert "  Expect " in text and "  Actual " in text and ", allowed " in text


def half_of_the_time_the_reference(out, x, *, beta):
    (right if x.size > 1 else calls_the_reference)(out, x, beta=beta)


SOUND = {
    "right": (right, {}),
    "strided": (right, {"layout": "strided"}),
    "broadcast": (right, {"layout": "broadcast"}),
    "only float32": (right, {"dtypes": "f4"}),
    "only large": (right, {"when": lambda x, *, beta: x.size > 10}),
    "with a remainder": (half_of_the_time_the_reference, {}),
    "exact in float64": (computes_in(np.float64), {}),
    "amplified": (is_inaccurate, {"amplification": 64.0}),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_kernel(name):
    kernel, options = SOUND[name]
    report = check_on_cpu(kernel, CASES, **options)
    row = next(row for row in report.kernels if row.kernel == "under_test")
    assert row.calls > 0 and 0 < row.error <= 1 and row.device == "cpu"
    assert ("called the op's reference" in str(report)) == (kernel is half_of_the_time_the_reference)


# ---- kernels in CUDA, on the simulator --------------------------------------------------------------------

CUDA = """
template <typename T>
__global__ void swish(T* out, const T* x, T beta, long long n) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    %s
}"""

CUDA_RIGHT = "if (i < n) out[i] = x[i] / (1 + exp(-beta * x[i]));"

CUDA_CHEATS = {
    "nothing": ("", "the kernel wrote nothing"),
    "zeros": ("if (i < n) out[i] = 0;", "the kernel wrote zeros"),
    "no tail": (f"if (i < n / 4 * 4) {CUDA_RIGHT}", "the last 3 of 15 elements were not written: a tail"),
    "one block": (f"if (blockIdx.x == 0) {CUDA_RIGHT}", "were not written: a tail"),
    "no check of the size": (CUDA_RIGHT.replace("i < n", "true"), "KernelAccessError"),
    "read past the input": (CUDA_RIGHT.replace("x[i] /", "x[i + 1] * 0 + x[i] /"), "KernelAccessError"),
    "added to the output": (CUDA_RIGHT.replace("= x", "+= x"), "was added to what the output's"),
    "ignored attribute": (CUDA_RIGHT.replace("-beta *", "-"), "is the attribute 'beta' passed on?"),
    "float32": (CUDA_RIGHT.replace("exp(", "expf("), "float64, contiguous inputs"),
    "no NaN": ("if (i < n) { T v = x[i] == x[i] ? x[i] : 0; out[i] = v / (1 + exp(-beta * v)); }", "is nan"),
}  # fmt: skip


def check_on_sim(body, dtypes="f4 f8"):
    swish = make_swish()
    code = CudaKernel(CUDA % body, "swish<T>")

    @swish.kernel("cuda", "sim", name="under_test")
    def _(out, x, *, beta):
        code.launch(blocks(out.size, 256), 256, (out, x, beta, out.size))

    return check_op(swish, CASES, devices=["sim"], dtypes=dtypes, seed=1, gradients=False)


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize("name", CUDA_CHEATS)
def test_a_cheating_kernel_on_the_simulator(name):
    body, words = CUDA_CHEATS[name]
    with pytest.raises(Exception) as error:
        check_on_sim(body, "f8" if name == "float32" else "f4")
    text = "\n".join([type(error.value).__name__, str(error.value), *getattr(error.value, "__notes__", ())])
    assert words in text and "check_op: swish" in text and "on sim, kernel 'under_test'" in text


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
def test_a_sound_kernel_on_the_simulator():
    report = check_on_sim(CUDA_RIGHT)
    assert "device cpu" not in str(report) and "device cuda: not checked" in str(report)


# ---- gradients --------------------------------------------------------------------------------------------


def make_weighted(rule):
    @mg.op
    def weighted(xp, x, y):
        return x * x * y

    weighted.grad(rule)
    return weighted


GRADIENT_CHEATS = {
    "zeros": (lambda g, z, x, y: (g * 0.0, g * 0.0), "gradient for input 0 is wrong"),
    "exchanged": (lambda g, z, x, y: (g * x * x, g * 2.0 * x * y), "is wrong"),
    "sign": (lambda g, z, x, y: (g * 2.0 * x * y, -g * x * x), "gradient for input 1 is wrong"),
    "no g": (lambda g, z, x, y: (2.0 * x * y, x * x), "is wrong"),
    "none": (lambda g, z, x, y: (g * 2.0 * x * y, None), "has no gradient for its input 'y'"),
    "one value": (lambda g, z, x, y: (g * 2.0 * x * y, (g * x * x).mean()), "1"),
    "second order cut": (lambda g, z, x, y: (g * 2.0 * (x * y).detach(), g * x * x), "gradgradcheck"),
    "second order cut by the output": (
        lambda g, z, x, y: (g * 2.0 * x * y, g * (x * x).detach()),
        "gradgradcheck",
    ),
}


@pytest.mark.parametrize("name", GRADIENT_CHEATS)
def test_a_cheating_gradient(name):
    rule, words = GRADIENT_CHEATS[name]
    op = make_weighted(rule)
    text = message(lambda: check_op(op, [case((3, 5), (3, 5))], devices=["cpu"], seed=1))
    assert words in text and "check_op: weighted((3, 5), (3, 5)) on cpu" in text


def test_a_sound_gradient_is_in_the_report():
    op = make_weighted(lambda g, z, x, y: (g * 2.0 * x * y, g * x * x))
    report = check_op(op, [case((3, 5), (5,)), case((2,), 2.0, gradient=False)], devices=["cpu"])
    assert "gradient and second gradient on cpu, kernel 'reference', float64: checked in 1 cases" in str(
        report
    )
    report = check_op(op, [case((3, 5), (5,))], devices=["cpu"], gradients=False)
    assert "not checked, as gradients=False" in str(report)


def test_ops_that_write_in_place_have_inputs_without_gradient_or_outputs_for_it_alone():
    @mg.op(in_place="x", non_differentiable=("mask",))
    def blended(xp, x, y, mask):
        return x * mask + y * y * (1 - mask)

    blended.grad(lambda g, _z, _x, y, mask: (g * mask, g * 2.0 * y * (1.0 - mask), None))
    cases = [case((3, 5), (3, 5), (3, 5))]
    text = str(check_op(blended, cases, devices=["cpu"]))
    assert "written in place" in text and "'mask' has no gradient" in text and "checked in 1 cases" in text
    blended.kernel("cpu", name="rude")(lambda out, x, y, mask: np.copyto(x, x * mask + y * y * (1 - mask)))
    assert "changed its input 'x'" in message(lambda: check_op(blended, cases, devices=["cpu"]))

    @mg.op(returns=1)
    def squared(xp, x):
        return x * x, 2 * x

    squared.grad(lambda g, y, x: g[0] * y[1])
    kernel = squared.kernel("cpu", name="under_test")
    kernel(lambda outs, x: None)
    text = message(lambda: check_op(squared, devices=["cpu"]))
    assert "the reference gives 2 outputs, kernels are given 1" in text
    squared.shape(lambda x: [x.shape, x.shape])

    @squared.kernel("cpu", name="under_test")
    def _(outs, x):
        outs[0][...], outs[1][...] = x * x, x

    text = message(lambda: check_op(squared, [case((3, 5))], devices=["cpu"], gradients=False))
    assert "output 1: " in text and "each element is 0.5 times" in text


# ---- the reference ----------------------------------------------------------------------------------------


def test_a_reference_that_gives_back_its_input():
    @mg.op
    def same(xp, x):
        return x[...]

    assert "lies in the memory of input 'x'" in message(lambda: check_op(same, devices=["cpu"]))


def test_a_reference_of_another_dtype():
    @mg.op
    def scaled(xp, x):
        return x * np.float64(2)

    scaled.kernel("cpu")(lambda out, x: np.multiply(x, 2, out=out))
    text = message(lambda: check_op(scaled, devices=["cpu"]))
    assert "output 0 is float64, where kernels give float32" in text


# ---- what check_op tells ----------------------------------------------------------------------------------


def test_the_report(capsys):
    swish = make_swish()
    swish.kernel("cpu", name="under_test", dtypes="f4")(right)
    swish.kernel("cuda", name="naive")(right)
    report = check_op(swish, CASES, devices=["cpu"], seed=5, verbose=True)
    text = str(report)
    assert capsys.readouterr().out == text + "\n" and report.seed == 5
    assert text.startswith("check_op: swish is right (seed=5)") and "% of what is allowed" in text
    assert "device cuda: not checked, with its kernels naive" in text
    assert "no kernel on cpu takes float64" in text


def test_what_an_op_with_a_shape_rule_was_not_tried_with():
    @mg.op
    def row_sums(xp, x, *, scale=1):
        return x.sum(axis=-1) * scale

    row_sums.shape(lambda x, *, scale: x.shape[:-1])
    row_sums.grad(lambda g, y, x, *, scale: g.unsqueeze(-1) * mg.ones_like(x) * scale)
    text = str(check_op(row_sums, [case((3, 5))], devices=["cpu"]))
    assert "no case has a single element" in text and "no case has an empty input" in text
    assert "no case has more than 1024 elements" in text and "attribute 'scale'" in text
    assert "odd number" not in text


def test_no_case_and_no_such_kernel():
    swish = make_swish()
    with pytest.raises(ValueError, match="no case for op 'swish'"):
        check_op(swish, [])
    with pytest.raises(ValueError, match=r"no kernel 'fast'; it has: reference"):
        check_op(swish, CASES, devices=["cpu"], kernels=["fast"])


def test_the_same_seed_gives_the_same_failure_when_less_is_checked():
    swish = make_swish()
    swish.kernel("cpu", name="under_test")(is_inaccurate)
    texts = [
        message(lambda only=only: check_op(swish, CASES, devices=["cpu"], seed=3, kernels=only))
        for only in (None, ["under_test"])
    ]
    assert texts[0] == texts[1]


# ---- inside pytest ----------------------------------------------------------------------------------------


def test_parametrize_makes_a_test_of_each_kernel_and_case(pytester):
    pytester.makepyfile(
        """
        import numpy as np
        import minigrad as mg
        from minigrad.testing import case

        @mg.op
        def doubled(xp, x):
            return x * 2

        @doubled.grad
        def _(g, y, x):
            return g * 2.0

        @doubled.kernel("cpu", name="good")
        def _(out, x):
            np.multiply(x, 2, out=out)

        @doubled.kernel("cpu", name="bad", when=lambda x: x.size > 10)
        def _(out, x):
            out[...] = 0

        @doubled.kernel("cuda", name="card")
        def _(out, x):
            np.multiply(x, 2, out=out)

        @mg.testing.parametrize(doubled, [case((3, 5)), case((2,))], seed=0)
        def test_doubled(check):
            check()
        """
    )
    result = pytester.runpytest_inprocess("-rA", "-p", "no:cacheprovider")
    text = result.stdout.str()
    assert (
        "PASSED test_parametrize_makes_a_test_of_each_kernel_and_case.py::test_doubled[cpu-good-((3, 5))]"
        in text
    )
    assert (
        "FAILED test_parametrize_makes_a_test_of_each_kernel_and_case.py::test_doubled[cpu-bad-((3, 5))]"
        in text
    )
    assert "kernel 'bad' does not take doubled((2,))" in text and "cpu-gradients]" in text
    assert "the kernel wrote zeros" in text
