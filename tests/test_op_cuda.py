"""``op.cuda``: kernels from CUDA source, on the simulator and on a card; and what is said of wrong ones."""

import numpy as np
import pytest

import minigrad as mg
from minigrad.errors import KernelAccessError, KernelCompileError
from minigrad.kernels.launch import blocks
from minigrad.testing import case, check_op

SWISH = """
// A thread for each element.
//
// More about it.
template <typename T>
__global__ void swish(T* out, const T* x, T beta, long long n) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] / (1 + exp(-beta * x[i]));
}"""

ROW_SUM = """
/* A block for each row, a tree in shared memory. */
template <typename T, int THREADS>
__global__ void row_sum(T* out, const T* x, long long columns) {
    __shared__ T part[THREADS];
    T sum = 0;
    for (long long i = threadIdx.x; i < columns; i += THREADS) sum += x[blockIdx.x * columns + i];
    part[threadIdx.x] = sum;
    __syncthreads();
    for (int s = THREADS / 2; s > 0; s /= 2) {
        if (threadIdx.x < s) part[threadIdx.x] += part[threadIdx.x + s];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}"""


pytestmark = pytest.mark.usefixtures("forget_ops")


@pytest.fixture(params=["sim", "cuda"])
def gpu(request):
    try:
        return mg.device(request.param)
    except mg.errors.DeviceError as error:
        pytest.skip(str(error))


def make_row_sum():
    @mg.op
    def row_sum(xp, x):
        return x.sum(-1)

    row_sum.shape(lambda x: x.shape[:-1])
    row_sum.grad(x=lambda g, _y, _x: mg.broadcast_to(g.unsqueeze(-1), _x.shape))
    return row_sum


# ---- what runs --------------------------------------------------------------------------------------------


def test_the_simplest_form(gpu, swish):
    assert swish.cuda(SWISH) is swish
    (kernel,) = mg.list_kernels("swish")
    assert (kernel.name, kernel.summary) == ("swish", "A thread for each element.")
    assert kernel.devices == ("cuda", "sim") and kernel.dtypes == (np.dtype("f4"), np.dtype("f8"))
    check_op(swish, [case((33, 17)), case((0, 3)), case((), beta=2.0)], devices=[gpu])
    assert swish(mg.ones(300, device=gpu), beta=2).shape == (300,)


def test_a_file_beside_the_caller_s(gpu, swish, tmp_path, monkeypatch):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/common.cuh").write_text(
        "__device__ inline double twice(double x) { return 2 * x; }\n"
    )
    (tmp_path / "kernels/swish.cu").write_text('#include "common.cuh"\n' + SWISH)
    (tmp_path / "my_ops.py").write_text("def register(op):\n    op.cuda('kernels/swish.cu', name='mine')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import my_ops

    my_ops.register(swish)
    assert mg.get_kernel("swish", "cuda") == "mine"
    check_op(swish, [case((5,))], devices=[gpu], gradients=False)
    swish.cuda(tmp_path / "kernels" / "swish.cu", name="by_path")
    assert mg.get_kernel("swish", "cuda") == "by_path"


@pytest.mark.parametrize(
    ("args", "launch"),
    [
        ("out, x, beta, out.size", "1d"),
        ("out, x, n=x.size, beta=beta", "1d"),
        (("out", "x", "beta * 1.0", "n=max(len(out.ravel()), out.size)"), "1d"),
        (None, lambda out, x, beta: (blocks(x.size, 64), (8, 8))),
        (None, lambda out, x, *, beta: (blocks(out.size, 32), 32, 64)),
    ],
)
def test_arguments_and_launches(gpu, swish, args, launch):
    code = SWISH.replace(
        "blockDim.x + threadIdx.x", "blockDim.x * blockDim.y + threadIdx.y * blockDim.x + threadIdx.x"
    )
    swish.cuda(code, "swish<T>", args=args, launch=launch)
    check_op(swish, [case((33, 17), beta=0.5)], devices=[gpu], gradients=False)


def test_rows_and_template_parameters_by_dtype(gpu):
    row_sum = make_row_sum()
    row_sum.cuda(ROW_SUM, "row_sum<T, 32>", name="32", launch="rows", block=32)
    by_dtype = {"f4": "row_sum<float, 128>", "f8": "row_sum<double, 64>"}
    row_sum.cuda(
        ROW_SUM, by_dtype, name="by_dtype", launch=lambda out, x: (out.size, 128 if x.itemsize == 4 else 64)
    )
    assert mg.list_kernels("row_sum")[1].dtypes == (np.dtype("f4"), np.dtype("f8"))
    check_op(row_sum, [case((3, 5)), case((2, 300)), case((0, 4)), case((4, 0)), case((7,))], devices=[gpu])


def test_dtypes_follow_from_the_signature(swish):
    swish.cuda(SWISH, "swish<double>", name="doubles")
    assert mg.list_kernels("swish")[0].dtypes == (np.dtype("f8"),)
    swish.cuda(SWISH.replace("template <typename T>", "").replace("T", "float"), name="floats")
    assert mg.list_kernels("swish")[1].dtypes == (np.dtype("f4"),)


def test_dynamic_shared_memory(gpu):
    row_sum = make_row_sum()
    code = ROW_SUM.replace(
        "__shared__ T part[THREADS];", "extern __shared__ char memory[]; T* part = (T*)memory;"
    )
    row_sum.cuda(code, "row_sum<T, 64>", launch="rows", block=64, shared="block * itemsize")
    check_op(row_sum, [case((3, 100))], devices=[gpu], gradients=False)


def test_several_launches_and_scratch_arrays(gpu):
    row_sum = make_row_sum()
    code = """
    template <typename T>
    __global__ void halves(T* partial, const T* x, int columns) {
        T sum = 0;
        for (int i = threadIdx.x; i < columns; i += 2) sum += x[blockIdx.x * columns + i];
        partial[blockIdx.x * 2 + threadIdx.x] = sum;
    }
    template <typename T>
    __global__ void finish(T* out, const T* partial, int n) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) out[i] = partial[2 * i] + partial[2 * i + 1];
    }"""
    row_sum.cuda(
        code,
        [
            mg.Launch("halves<T>", args="columns=x.shape[-1]", launch="rows", block=2),
            mg.Launch("finish<T>", "out, partial, n"),
        ],
        scratch={"partial": lambda out, x: ((out.size, 2), x.dtype)},
    )
    check_op(row_sum, [case((3, 5)), case((40, 8))], devices=[gpu])


def test_several_outputs_by_name(gpu):
    @mg.op(outputs=("sine", "cosine"))
    def both(xp, x):
        return xp.sin(x), xp.cos(x)

    both.shape(lambda x: [x.shape, x.shape])
    both.cuda(
        """template <typename T>
        __global__ void both(T* sine, T* cosine, const T* x, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) { sine[i] = sin(x[i]); cosine[i] = cos(x[i]); }
        }"""
    )
    both.cuda(
        """template <typename T>
        __global__ void both(T* a, T* b, const T* x) {
            a[threadIdx.x] = sin(x[threadIdx.x]);
            b[threadIdx.x] = cos(x[threadIdx.x]);
        }""",
        name="by_position",
        args="outs[0], outs[1], x",
        launch=lambda outs, x: (1, outs[1].size),
        when=lambda x: x.size <= 1024,
    )
    check_op(both, [case((3, 5)), case((100,))], devices=[gpu], gradients=False)


def test_any_number_of_inputs(gpu):
    @mg.op
    def total(xp, *terms):
        return sum(terms)

    total.cuda(
        """template <typename T>
        __global__ void add3(T* out, const T* a, const T* b, const T* c, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) out[i] = a[i] + b[i] + c[i];
        }""",
        "add3<T>",
        args="out, terms[0], terms[1], terms[2], n",
        when=lambda *terms: len(terms) == 3,
    )
    check_op(total, [case((7,), (7,), (7,)), case((3, 2), (3, 2), (3, 2))], devices=[gpu], gradients=False)


# ---- what is refused when it is registered ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("no_such_file.cu",), {}, FileNotFoundError, r"tests/no_such_file\.cu.*relative"),
        (("hello",), {}, TypeError, "code, or the path of a .cu file, got str 'hello'"),
        ((3,), {}, TypeError, "got int 3"),
        ((SWISH, "swosh<T>"), {}, ValueError, "no kernel.*swosh.*it has: swish"),
        ((SWISH, "swish<T, 3>"), {}, ValueError, "template has the parameters T"),
        ((SWISH, "swish<U>"), {}, ValueError, "`U` is neither"),
        ((SWISH,), {"args": "out, x, y"}, ValueError, "'beta', `y`, uses 'y', which is none of beta.*out.*x"),
        ((SWISH,), {"args": "out, x, beta, n, 5"}, ValueError, r"5 expressions for 4 parameters \(out, x"),
        ((SWISH,), {"args": "out, m=out.size"}, ValueError, "'m' is no parameter.*out, x, beta, n"),
        ((SWISH,), {"args": "out, x, out=out"}, ValueError, "'out' is given twice"),
        ((SWISH,), {"args": "out, x +"}, ValueError, r"cannot read 'out, x \+'"),
        ((SWISH,), {"args": "x, out"}, ValueError, "`const T\\* x` could not be written.*remove `const`"),
        ((SWISH,), {"args": "out, x, out"}, ValueError, r"`T beta` expects a number.*declare `T\* beta`"),
        ((SWISH,), {"args": "out, beta"}, ValueError, r"`const T\* x` expects an array, and 'beta'"),
        ((SWISH.replace("T beta", "T slope"),), {}, ValueError, r"nothing is called 'slope'.*args=.*slope="),
        ((SWISH,), {"launch": "2d"}, ValueError, '"1d", "rows" or a function.*2d'),
        (
            (SWISH,),
            {"launch": lambda out, x: 1},
            TypeError,
            r"launch rule is a function of \(out, x, \*, beta\)",
        ),
        ((SWISH,), {"block": 2000}, ValueError, "1 to 1024, got 2000"),
        ((SWISH,), {"shared": "threads_"}, ValueError, "shared, `threads_`"),
        ((SWISH,), {"shared": 1.5}, TypeError, "shared is a number of bytes"),
        (
            (SWISH, "swish<float>"),
            {"dtypes": "f4 f8"},
            ValueError,
            "float64.*takes float32: make it a template",
        ),
        ((SWISH, {}), {}, ValueError, "no dtype"),
        ((SWISH, []), {}, TypeError, "list of Launch"),
        ((SWISH, ["swish<T>"]), {}, TypeError, "list of Launch"),
        ((SWISH, [mg.Launch("swish<T>")]), {"args": "out"}, TypeError, "belong to each Launch"),
        ((SWISH,), {"layout": "nchw"}, ValueError, "'nchw'"),
        ((SWISH,), {"scratch": {"x": lambda out, x, beta: 3}}, ValueError, "'x' names two things"),
        (
            (SWISH,),
            {"scratch": {"tmp": lambda x: 3}},
            TypeError,
            "the rule of scratch 'tmp' is a function of",
        ),
        ((SWISH.replace("T beta", "Strange beta"),), {}, ValueError, "`Strange beta` has a type"),
    ],
)
def test_wrong_registrations(swish, arguments, options, error, words):
    with pytest.raises(error, match=words) as found:
        swish.cuda(*arguments, **options)
    assert "op 'swish'" in str(found.value)
    assert mg.list_kernels("swish") == []


# ---- what is found when it is launched --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"args": "out, x, beta, n=x.shape[3]"},
            ValueError,
            r"'n', `x.shape\[3\]`, cannot be computed: Index",
        ),
        ({"args": "out, x, beta, n=x.shape"}, TypeError, r"`long long n` expects an integer.*tuple \(4,\)"),
        ({"launch": lambda out, x, beta: 7}, TypeError, r"launch rule must return \(grid, block\).*got 7"),
        ({"launch": lambda out, x, beta: (1, 2000)}, ValueError, "2000 threads"),
        (
            {"launch": lambda out, x, beta: (1, 2)},
            KernelAccessError,
            "2 of its 4 elements were never written",
        ),
        ({"scratch": {"tmp": lambda out, x, beta: "no"}}, TypeError, "scratch 'tmp' must return a shape"),
    ],
)
def test_wrong_launches(swish, options, error, words):
    swish.cuda(SWISH, **options)
    with pytest.raises(error, match=words) as found:
        swish(mg.ones(4, device="sim"))
    assert str(found.value).startswith("op 'swish', kernel 'swish'")


def test_a_compile_error_tells_the_line_of_this_file(swish):
    code = """
    template <typename T>
    __global__ void swish(T* out, const T* x, T beta, long long n) {
        out[0] = no_such_thing;  // the line
    }"""
    swish.cuda(code)
    with open(__file__) as file:
        number = next(i for i, line in enumerate(file, 1) if "no_such_thing;  // the line" in line)
    for _ in range(2):  # what failed is not kept
        with pytest.raises(KernelCompileError, match=rf"test_op_cuda\.py:{number}:.*no_such_thing") as found:
            swish(mg.ones(4, device="sim"))
        assert "op 'swish', kernel 'swish'" in str(found.value)
    swish.cuda(SWISH)
    assert swish(mg.ones(4, device="sim")).shape == (4,)


def test_an_access_out_of_bounds_tells_the_line_of_this_file(swish):
    code = """
    template <typename T>
    __global__ void swish(T* out, const T* x, T beta, long long n) {
        if (threadIdx.x <= n) out[threadIdx.x] = x[threadIdx.x];  // one too many
    }"""
    swish.cuda(code)
    with open(__file__) as file:
        number = next(i for i, line in enumerate(file, 1) if "  // one too many" in line)
    with pytest.raises(
        KernelAccessError, match=rf"x\[4\] \(test_op_cuda\.py:{number}\), beyond the end"
    ) as found:
        swish(mg.ones(4, device="sim"))
    assert "op 'swish', kernel 'swish'" in str(found.value)


def test_code_that_is_in_no_file_keeps_its_own_lines(swish):
    exec("op.cuda(code)", {"op": swish, "code": SWISH.replace("exp(", "expp(")})
    with pytest.raises(KernelCompileError, match=r"kernel\.cu:8:"):
        swish(mg.ones(4, device="sim"))
