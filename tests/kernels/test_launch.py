"""The launch layer: signatures, argument checks, limits, and what the card's backend hands to CuPy."""

import ctypes
import re
import sys
import threading
from contextlib import nullcontext
from struct import pack
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from minigrad.kernels import cuda, sim
from minigrad.kernels.arguments import unchanging
from minigrad.kernels.cuda import backend, guard
from minigrad.kernels.cuda.backend import CudaBackend
from minigrad.kernels.errors import KernelCompileError, KernelLaunchError
from minigrad.kernels.launch import CudaKernel, blocks, strided
from minigrad.kernels.source import CudaSource

needs_compiler = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)

SCALE = """
struct Options { float factor; long long steps[2]; bool flip; };

// y = factor * x, n elements
template <typename T>
__global__ void scale(T* y, const T* x, T factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}

__global__ void with_options(
    double* out, const float* maybe, Options o, unsigned char small, unsigned long long big
) {
    out[0] = o.factor; out[1] = o.steps[0]; out[2] = o.steps[1]; out[3] = o.flip;
    out[4] = maybe ? maybe[0] : -1; out[5] = small; out[6] = big;
}

template <typename T, int N> __global__ void fill(T* out) { out[threadIdx.x] = N; }
"""

X = np.arange(5, dtype=np.float32)


def scale(y=None, x=X, factor=2.0, n=5, grid=1, block=32):
    y = np.zeros(5, np.float32) if y is None else y
    CudaKernel(SCALE, "scale<T>").launch(grid, block, (y, x, factor, n))
    return y


# ---- reading sources ---------------------------------------------------------------------------------------


def test_signature():
    source = CudaSource("""
    // __global__ void k(int wrong);
    template<typename T, class Index, int TILE = 16>
    __global__ __launch_bounds__(256, 2) void k(
        T* __restrict__ out, const T *x, Index const* index,  // the last one /* may be long */
        const unsigned n, uint8_t byte, long int big, std::size_t size, const double alpha /* = 1, 2 */) { }
    extern "C" __global__ void plain() {}
    """)
    signature = source.signature("k")
    assert signature.template == {"T": "typename", "Index": "typename", "TILE": "int"}
    assert [(p.name, p.type, p.is_pointer, p.is_const) for p in signature.parameters] == [
        ("out", "T", True, False),
        ("x", "T", True, True),
        ("index", "Index", True, True),
        ("n", "unsigned int", False, True),
        ("byte", "unsigned char", False, False),
        ("big", "long long", False, False),
        ("size", "unsigned long long", False, False),
        ("alpha", "double", False, True),
    ]
    assert source.signature("plain").parameters == ()
    with pytest.raises(
        ValueError, match=r"kernel.cu has no kernel `__global__ void other\(...\)`; it has: k, plain"
    ):
        source.signature("other")


def test_struct_layout():
    dtype = CudaSource(SCALE).struct("Options")
    assert dtype.names == ("factor", "steps", "flip")
    assert [dtype.fields[name][1] for name in dtype.names] == [0, 8, 24]
    assert dtype.itemsize == 32
    assert CudaSource(SCALE).struct("Unknown") is None
    with pytest.raises(ValueError, match=r"struct S in kernel.cu: no multiple of alignas\(16\)"):
        CudaSource("struct alignas(16) S { int x; };").struct("S")


HOPPER = """
struct alignas(64) Map { unsigned long long words[16]; };
template <typename T, bool FLAG>
__global__ void __launch_bounds__(384, 1) __cluster_dims__(2, 1, 1)
k(T* out, const __grid_constant__ Map map, int n) {}
"""


def test_a_kernel_for_one_architecture(fake_cupy):
    source = CudaSource(HOPPER, "sm_90a")
    assert [str(p) for p in source.signature("k").parameters] == ["T* out", "Map map", "int n"]
    assert source.signature("k").max_threads == "384"
    kernel, words = CudaKernel(source, "k<T, true>"), tuple(range(2**63, 2**63 + 16))
    fake_cupy.sizes = (8, 128, 4)
    for n in (5, 6):
        kernel.launch(1, 384, (FakeArray(), {"words": words}, n))
        *_, (_, _, packed, *_) = fake_cupy.launches
        assert packed == [pack("=Q", 256), pack("=16Q", *words), pack("=i", n)]
    assert fake_cupy.modules[0]["options"][-1] == "-arch=sm_90a"
    needs = r"for cards of sm_90a alone, .* launch it inside sim.architecture\('sm_90a'\)"
    with sim.architecture("sm_80"), pytest.raises(KernelLaunchError, match=needs):
        kernel.launch(1, 384, (X.copy(), {"words": words}, 5))


def test_template_arguments():
    kernel = CudaKernel(SCALE, "scale<T>")
    assert kernel.instance({"T": "float32"}) == "scale<float>"
    assert CudaKernel(SCALE, "scale").instance({"T": np.float64}) == "scale<double>"
    with pytest.raises(ValueError, match="give the value of the template parameter `int N`"):
        CudaKernel(SCALE, "fill<T, N>").instance({})
    with pytest.raises(ValueError, match="the template has the parameters T, N"):
        CudaKernel(SCALE, "fill<T>").instance({})
    with pytest.raises(ValueError, match="`U` is neither the parameter T nor a number type"):
        CudaKernel(SCALE, "scale<U>").instance({})
    with pytest.raises(ValueError, match="has no kernel"):
        CudaKernel(SCALE, "shift<T>").instance({})


@needs_compiler
def test_literal_template_arguments():
    out = np.zeros(3, np.int32)
    CudaKernel(SCALE, "fill<T, 3 * 7>").launch(1, 3, (out,))
    assert out.tolist() == [21, 21, 21]
    with pytest.raises(
        TypeError, match=r"`float\* out`|argument `T\* out` expects an array of float32, got one of int32"
    ):
        CudaKernel(SCALE, "fill<float, 1>").launch(1, 3, (out,))


# ---- arguments ---------------------------------------------------------------------------------------------


@needs_compiler
def test_numbers_arrive_as_the_type_of_their_parameter():
    assert scale().tolist() == [0, 2, 4, 6, 8]
    assert scale(factor=3, n=np.int64(2)).tolist() == [0, 3, 0, 0, 0]
    assert scale(factor=np.float64(0.5), n=np.uint8(5)).tolist() == [0, 0.5, 1, 1.5, 2]
    assert np.isinf(scale(factor=float("inf"))[1:]).all()


@needs_compiler
def test_structs_and_null_pointers():
    kernel, out = CudaKernel(SCALE, "with_options"), np.zeros(7)
    options = {"factor": 1.5, "steps": (2**40, -3), "flip": True}
    kernel.launch(1, 1, (out, None, options, 255, 2**64 - 1))
    assert out.tolist() == [1.5, 2**40, -3, 1, -1, 255, float(2**64 - 1)]
    kernel.launch(1, 1, (out, np.full(1, 9, np.float32), options, 0, 0))
    assert out[4] == 9

    def wrong(message, error, **changes):
        with pytest.raises(error, match=message):
            kernel.launch(1, 1, (out, None, {**options, **changes}, 0, 0))

    wrong("argument `Options o.factor` expects a number", TypeError, factor="1")
    wrong("argument `Options o.factor` expects a number that fits float32, got 1e", ValueError, factor=1e39)
    wrong("argument `Options o.steps` expects 2 numbers", ValueError, steps=(1, 2, 3))
    wrong(
        "argument `Options o.steps` expects a number that fits int64, got 9223",
        ValueError,
        steps=(1, 2**63),
    )
    wrong("argument `Options o.steps` expects an integer", TypeError, steps=(1, 2.0))
    wrong("expects a mapping with the fields factor, steps, flip, got the fields .*extra", TypeError, extra=1)
    with pytest.raises(TypeError, match=r"`Options o` expects a mapping .* got int 3"):
        kernel.launch(1, 1, (out, None, 3, 0, 0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"n": 2**31},
            ValueError,
            "scale: argument `int n` expects a number that fits int32, got 2147483648",
        ),
        ({"n": 5.0}, TypeError, r"`int n` expects an integer \(int32\), got float 5.0"),
        ({"n": "5"}, TypeError, r"`int n` expects an integer \(int32\), got str '5'"),
        ({"n": X}, TypeError, r"`int n` expects an integer \(int32\), got an array of shape \(5,\)"),
        ({"factor": 1e39}, ValueError, r"`T factor` expects a number that fits float32, got 1e\+39"),
        ({"factor": 10**400}, ValueError, "`T factor` expects a number that fits float32"),
        ({"factor": None}, TypeError, r"`T factor` expects a number \(float32\), got NoneType None"),
        (
            {"x": X.astype(np.float64)},
            TypeError,
            r"`const T\* x` expects an array of float32, got one of float64",
        ),
        ({"x": X.astype(">f4")}, TypeError, "expects an array of float32, got one of >f4"),
        ({"x": [1, 2]}, TypeError, r"`const T\* x` expects a NumPy or CuPy array, got list \[1, 2\]"),
        ({"x": X[::-1]}, ValueError, r"expects a C-contiguous array, got strides \(-4,\) for shape \(5,\)"),
        ({"x": np.zeros(21, "u1")[1:].view("f4")}, ValueError, "expects an aligned array"),
        ({"y": None}, TypeError, "scale: argument"),
        ({"y": np.zeros(5, np.complex64)}, TypeError, r"`T\* y` expects an array of T, got one of complex64"),
        ({"grid": -1}, ValueError, "scale: grid must be one to three integers from 0, got -1"),
        ({"grid": (1, 2, 3, 4)}, ValueError, "grid must be one to three integers"),
        ({"grid": 2.5}, ValueError, "grid must be one to three integers from 0, got 2.5"),
        (
            {"grid": (1, 65536)},
            ValueError,
            r"grid \(1, 65536, 1\) exceeds the limits \(2147483647, 65535, 65535\)",
        ),
        ({"block": 1025}, ValueError, "has 1025 threads; a block has at most 1024"),
        ({"block": (4, 4, 65)}, ValueError, r"at most \(1024, 1024, 64\) along x, y and z"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    if "y" in arguments and arguments["y"] is None:
        with pytest.raises(error, match=message):
            CudaKernel(SCALE, "scale<T>").launch(1, 1, (None, X, 1.0, 5))
    else:
        with pytest.raises(error, match=message):
            scale(**arguments)


def test_wrong_number_of_arguments():
    with pytest.raises(
        TypeError, match=r"scale\(T\* y, const T\* x, T factor, int n\): expected 4 arguments, got 2"
    ):
        CudaKernel(SCALE, "scale<T>").launch(1, 1, (X, X))


def test_outputs_must_be_writeable_and_inputs_need_not():
    frozen = X.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"argument `T\* y` expects a writeable array, got a read-only one"):
        scale(y=frozen)
    if sim.is_available():
        assert scale(x=frozen)[4] == 8


def test_dynamic_shared_memory_has_a_limit():
    with pytest.raises(ValueError, match="shared_bytes is 232449; a block has 0 to 232448 bytes"):
        CudaKernel(SCALE, "scale<T>").launch(1, 1, (X.copy(), X, 1.0, 5), shared_bytes=227 * 1024 + 1)


def test_a_type_that_no_array_tells():
    with pytest.raises(TypeError, match="no array tells the type of the template parameter U"):
        CudaKernel("template <typename T, typename U> __global__ void k(T* x) {}", "k").launch(
            1, 1, (X.copy(),)
        )
    with pytest.raises(TypeError, match="at least one argument must be an array"):
        CudaKernel("__global__ void k(int n) {}", "k").launch(1, 1, (1,))
    with pytest.raises(TypeError, match="`Matrix m` has a type that is neither a number nor a known struct"):
        CudaKernel("__global__ void k(int* x, Matrix m) {}", "k").launch(1, 1, (np.zeros(1, np.int32), {}))


@needs_compiler
def test_strided_arrays_start_at_their_first_element():
    x, out = np.arange(10, dtype=np.float32), np.zeros(1, np.float32)
    CudaKernel(SCALE, "scale<T>").launch(1, 1, (out, strided(x[::-3]), 1.0, 1))
    assert out.item() == 9


def test_an_empty_launch_checks_its_arguments_and_runs_nothing():
    broken = CudaKernel("__global__ void k(int* x) { this does not compile }", "k")
    broken.launch(0, 32, (np.zeros(1, np.int32),))
    broken.launch((4, 0), 32, (np.zeros(1, np.int32),))
    with pytest.raises(TypeError):
        broken.launch(0, 32, (X,))


def test_blocks():
    assert [blocks(n, 32) for n in (0, 1, 32, 33)] == [0, 1, 1, 2]


# ---- the card's backend, with a stand-in for CuPy ----------------------------------------------------------


class FakeDevice(nullcontext):
    id = 0
    attributes: ClassVar = {
        "MaxThreadsPerBlock": 1024,
        "MaxRegistersPerBlock": 65536,
        "MaxSharedMemoryPerBlockOptin": 65536,
        "MaxBlockDimX": 1024,
        "MaxBlockDimY": 1024,
        "MaxBlockDimZ": 64,
        "MaxGridDimX": 2**31 - 1,
        "MaxGridDimY": 65535,
        "MaxGridDimZ": 65535,
    }


class FakeArray:
    """What the launch layer sees of a CuPy array."""

    __module__ = "cupy"
    device = FakeDevice()
    strides, shape = (4,), (5,)

    def __init__(self, dtype=np.float32, address=256, contiguous=True, card=0):
        self.dtype = np.dtype(dtype)
        self.itemsize = self.dtype.itemsize
        self.data = SimpleNamespace(ptr=address, device_id=card)
        self.flags = SimpleNamespace(c_contiguous=contiguous)
        self._c_contiguous = contiguous


class CompileException(Exception):
    pass


class CUDADriverError(Exception):
    __module__ = "cupy_backends.cuda.api.driver"
    status = 1


class CUDARuntimeError(CUDADriverError):
    __module__ = "cupy_backends.cuda.api.runtime"


@pytest.fixture
def fake_cupy(monkeypatch):
    """A module named cupy whose RawModule and driver record what they are asked for."""
    cupy = ModuleType("cupy")
    cupy.modules, cupy.launches, cupy.error, cupy.load_error = [], [], None, None
    cupy.function_attributes = []

    class RawModule:
        def __init__(self, **options):
            cupy.modules.append(options)

        def get_function(self, name):
            if cupy.load_error:
                raise cupy.load_error
            return Kernel()

    class Kernel:
        max_threads_per_block, num_regs, shared_size_bytes = 512, 100, 1000
        max_dynamic_shared_size_bytes = 48 * 1024 - shared_size_bytes  # of a block that asks for no more
        kernel = SimpleNamespace(ptr=4711)

        def __init__(self):
            cupy.kernel = self

    def launch_kernel(function, x, y, z, bx, by, bz, shared_bytes, stream, params, extra):
        assert (function, stream) == (4711, 7)
        assert (params == 0) != (extra == 0)
        if cupy.error:
            raise cupy.error
        if params:  # each argument at an address of its own
            addresses = (ctypes.c_void_p * len(cupy.sizes)).from_address(params)
            packed = [ctypes.string_at(*one) for one in zip(addresses, cupy.sizes, strict=True)]
        else:
            pointer, arguments, size, size_at, end = (ctypes.c_void_p * 5).from_address(extra)
            assert (pointer, size, end, arguments % 16) == (1, 2, None, 0)
            packed = ctypes.string_at(arguments, ctypes.c_size_t.from_address(size_at).value)
        most = cupy.kernel.max_dynamic_shared_size_bytes
        cupy.launches.append(((x, y, z), (bx, by, bz), packed, shared_bytes, most))

    cupy.RawModule = RawModule
    cupy.cuda = SimpleNamespace(
        Device=lambda index: FakeDevice(),
        compiler=SimpleNamespace(CompileException=CompileException),
        driver=SimpleNamespace(
            CUDADriverError=CUDADriverError,
            launchKernel=launch_kernel,
            funcSetAttribute=lambda *arguments: cupy.function_attributes.append(arguments),
        ),
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: 1, memGetInfo=lambda: (1, 2)
        ),
        get_current_stream=lambda: SimpleNamespace(ptr=7),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(guard, "last_launched", {})
    monkeypatch.setattr(backend, "last_launched", guard.last_launched)
    return cupy


def test_cupy_gets_exactly_typed_arguments(fake_cupy):
    kernel, y, x = CudaKernel(SCALE, "scale<T>"), FakeArray(), FakeArray()
    for shared_bytes in (0, 48_500, 100_000):
        kernel.launch((3, 2), 64, (y, x, 2, 5), shared_bytes)
    (module,) = fake_cupy.modules
    assert module["name_expressions"] == ["scale<float>"]
    assert "-std=c++17" in module["options"] and "-arch" not in str(module["options"])
    assert module["code"].startswith('#line 1 "kernel.cu"')
    (grid, block, packed, shared, largest), second, third = fake_cupy.launches
    assert (grid, block, shared, largest) == ((3, 2, 1), (64, 1, 1), 0, 48_152)
    assert packed == pack("=QQfi", 256, 256, 2.0, 5)
    assert second[2:] == (packed, 48_500, 48_500)  # more than the kernel's own variables leave of 48 KB
    assert third[2:] == (packed, 100_000, 100_000)


def test_a_cluster_may_have_more_than_8_blocks(fake_cupy):
    code = "template <int N> __global__ void __cluster_dims__(N, 1, 1) k(float* out) {}"
    CudaKernel(code, "k<16>").launch(16, 32, (FakeArray(),))
    assert fake_cupy.function_attributes == [(4711, backend.LARGE_CLUSTERS_ALLOWED, 1)]
    CudaKernel(SCALE, "scale<T>").launch(1, 1, (FakeArray(), FakeArray(), 2.0, 5))
    assert len(fake_cupy.function_attributes) == 1


def test_the_card_gets_every_argument_where_cpp_expects_it(fake_cupy):
    out, options = FakeArray(np.float64, 512), {"factor": 1.5, "steps": [7, 8], "flip": True}
    kernel = CudaKernel(SCALE, "with_options")
    for given in (options, options, unchanging(options), unchanging(options)):
        kernel.launch(1, 1, (out, None, given, 1, np.uint64(2**63)))
    expected = pack("=QQ f4x qq ?7x B7x Q", 512, 0, 1.5, 7, 8, True, 1, 2**63)
    assert [launch[2] for launch in fake_cupy.launches] == [expected] * 4


def test_a_struct_that_does_not_change_is_packed_for_each_kernel(fake_cupy):
    size = unchanging(rows=3, columns=5)
    code = "struct Size {{ {0} rows, columns; }}; __global__ void k(float* y, Size size) {{}}"
    kernels = [
        (CudaKernel(code.format("int"), "k"), "=Qii"),
        (CudaKernel(code.format("long long"), "k"), "=Qqq"),
    ]
    for kernel, format in kernels * 3:
        kernel.launch(1, 1, (FakeArray(), size))
        assert fake_cupy.launches[-1][2] == pack(format, 256, 3, 5)


def test_what_was_launched_before_is_checked_as_carefully(fake_cupy):
    """The second launch and those after it take the quick way, unless something does not fit."""
    kernel, y, x = CudaKernel(SCALE, "scale<T>"), FakeArray(), FakeArray(address=1024)
    kernel.launch(1, 1, (y, x, 2.0, 5))
    fits = [
        ((y, x, 2, np.int64(5)), (256, 1024, 2.0, 5)),
        ((y, x, np.float64(0.1), True), (256, 1024, np.float32(0.1), 1)),
        (
            (y, strided(FakeArray(address=4, contiguous=False)), -np.inf, -(2**31)),
            (256, 4, -np.inf, -(2**31)),
        ),
        ((y, None, np.nan, 0), (256, 0, np.nan, 0)),
    ]
    for args, expected in fits:
        kernel.launch((1,), [1], args)
        assert fake_cupy.launches[-1][2] == pack("=QQfi", *expected)
    wrong = [
        ((None, x, 2.0, 5), TypeError, "`T* y` expects a NumPy or CuPy array, got NoneType"),
        ((y, FakeArray(contiguous=False), 2.0, 5), ValueError, "`const T* x` expects a C-contiguous array"),
        ((y, FakeArray(np.float64), 2.0, 5), TypeError, "`const T* x` expects an array of float32"),
        ((y, x, 1e39, 5), ValueError, "`T factor` expects a number that fits float32"),
        ((y, x, "2", 5), TypeError, "`T factor` expects a number (float32), got str"),
        ((y, x, FakeArray(), 5), TypeError, "`T factor` expects a number (float32), got an array"),
        ((y, x, 2.0, 5.0), TypeError, "`int n` expects an integer (int32), got float"),
        ((y, x, 2.0, 2**31), ValueError, "`int n` expects a number that fits int32"),
        ((y, x, 2.0), TypeError, "expected 4 arguments, got 3"),
        ((y, X, 2.0, 5), ValueError, "expects a CuPy array like those before it"),
    ]
    launches = len(fake_cupy.launches)
    for args, error, message in wrong:
        with pytest.raises(error, match=re.escape(message)):
            kernel.launch(1, 1, args)
    kernel.launch(0, 1, (y, x, 2.0, 5))
    assert len(fake_cupy.launches) == launches
    options = {"factor": 1.5, "steps": [7, 8], "flip": True}
    for struct in (options, options | {"more": 1}):
        arguments = (FakeArray(np.float64), None, struct, 1, 2)
        if struct is options:
            CudaKernel(SCALE, "with_options").launch(1, 1, arguments)
        else:
            with pytest.raises(TypeError, match="expects a mapping with the fields factor, steps, flip"):
                CudaKernel(SCALE, "with_options").launch(1, 1, arguments)


def test_vectors_must_be_aligned_each_time(fake_cupy):
    kernel = CudaKernel("__global__ void k(float4* x) {}", "k")
    kernel.launch(1, 1, (FakeArray(address=32),))
    with pytest.raises(ValueError, match="starts at a multiple of 16 bytes"):
        kernel.launch(1, 1, (FakeArray(address=40),))


def test_errors_of_the_card_are_the_kernels_errors(fake_cupy):
    fake_cupy.load_error = CompileException('kernel.cu(7): error: identifier "factr" is undefined')
    with pytest.raises(
        KernelCompileError, match=r"scale<float> does not compile for the card:\nkernel.cu\(7\): error"
    ):
        CudaKernel(SCALE, "scale<T>").launch(1, 1, (FakeArray(), FakeArray(), 1.0, 5))
    fake_cupy.load_error = CUDADriverError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")
    with pytest.raises(
        KernelLaunchError, match=r"^scale<float> cannot be loaded: CUDA_ERROR_UNSUPPORTED_PTX"
    ):
        CudaKernel(SCALE, "scale<T>").launch(1, 1, (FakeArray(), FakeArray(), 1.0, 5))


@pytest.mark.parametrize(
    ("block", "shared_bytes", "exceeded"),
    [
        (1, 0, ""),
        (600, 0, "; 600 threads in a block exceed the 512 of this kernel"),
        (
            700,
            65000,
            "; 700 threads in a block exceed the 512 of this kernel; 70000 registers in a block exceed the "
            "65536 of this card; 66000 bytes of shared memory exceed the 65536 of this card",
        ),
    ],
)
def test_a_launch_that_is_refused_tells_which_limits_it_exceeds(fake_cupy, block, shared_bytes, exceeded):
    fake_cupy.error = CUDADriverError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")
    with pytest.raises(KernelLaunchError) as caught:
        CudaKernel(SCALE, "scale<T>").launch(1, block, (FakeArray(), FakeArray(), 1.0, 5), shared_bytes)
    where = f"scale<float>, grid (1, 1, 1), block ({block}, 1, 1), shared_bytes {shared_bytes}"
    assert str(caught.value) == f"{where}: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES{exceeded}"
    assert guard.last_launched == {}


@pytest.mark.parametrize("error", [CUDADriverError, CUDARuntimeError])
@pytest.mark.parametrize("when", ["error", "load_error"])
def test_a_lost_context_names_the_kernel_before(fake_cupy, error, when):
    arguments = (FakeArray(), FakeArray(), 1.0, 5)
    CudaKernel(SCALE, "scale").launch(1, 1, arguments)
    assert guard.last_launched == {0: "scale<float>"}
    lost = error("CUDA_ERROR_ILLEGAL_ADDRESS")
    lost.status = 700
    setattr(fake_cupy, when, lost)
    message = "on cuda:0: CUDA_ERROR_ILLEGAL_ADDRESS. The kernel launched last there is scale<float>"
    with pytest.raises(KernelLaunchError, match=message):
        CudaKernel(SCALE, "fill<T, 3>").launch(1, 1, (FakeArray(np.float64),))
    assert guard.last_launched == {0: "scale<float>"}


def test_a_launch_that_waits_is_itself_what_failed(fake_cupy, monkeypatch):
    arguments = (FakeArray(), FakeArray(), 1.0, 5)
    CudaKernel(SCALE, "scale").launch(1, 1, arguments)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    fake_cupy.error = CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS")
    fake_cupy.error.status = 700
    with pytest.raises(
        KernelLaunchError, match=r"_ADDRESS\. It is fill<double, 3>, for CUDA_LAUNCH_BLOCKING=1"
    ):
        CudaKernel(SCALE, "fill<T, 3>").launch(1, 1, (FakeArray(np.float64),))


def test_threads_that_launch_at_once_load_a_kernel_once(fake_cupy):
    kernel, start = CudaKernel(SCALE, "scale<T>"), threading.Barrier(8)

    def launch():
        start.wait()
        kernel.launch(1, 1, (FakeArray(), FakeArray(), 1.0, 5))

    threads = [threading.Thread(target=launch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake_cupy.launches) == 8 and len(fake_cupy.modules) == 1


def test_arrays_of_two_kinds_or_devices_do_not_mix(fake_cupy):
    kernel = CudaKernel(SCALE, "scale<T>")
    with pytest.raises(
        ValueError, match=r"`const T\* x` expects a CuPy array like those before it, got a NumPy array"
    ):
        kernel.launch(1, 1, (FakeArray(), X, 1.0, 5))
    other = FakeArray()
    other.device = FakeDevice()
    with pytest.raises(ValueError, match=r"`const T\* x` expects an array on"):
        kernel.launch(1, 1, (FakeArray(), other, 1.0, 5))


# ---- whether there is a card -------------------------------------------------------------------------------


@pytest.fixture
def fresh_answer():
    cuda.why_unavailable.cache_clear()
    yield
    cuda.why_unavailable.cache_clear()


def test_without_cupy(monkeypatch, fresh_answer):
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it fails
    assert not cuda.is_available()
    assert (
        'need CuPy, which is not installed; install it with pip install "minigrad[cuda13]"'
        in cuda.why_unavailable()
    )
    with pytest.raises(ImportError, match=r"minigrad\[cuda13\]"):
        CudaBackend().load(CudaSource(SCALE), None, "scale<float>")


def test_without_a_driver(monkeypatch, fresh_answer):
    def fail():
        raise RuntimeError("cudaErrorInsufficientDriver: the driver is too old\nand more")

    cupy = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=fail))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert not cuda.is_available()
    assert cuda.why_unavailable().endswith(
        "cannot be used: cudaErrorInsufficientDriver: the driver is too old"
    )


@pytest.mark.parametrize("has_compiler", [True, False])
def test_with_a_card(monkeypatch, fresh_answer, has_compiler):
    def version():
        if not has_compiler:
            raise RuntimeError('Failure finding "libnvrtc.so.13"')
        return 13, 0

    cupy = ModuleType("cupy")
    runtime = SimpleNamespace(getDeviceCount=lambda: 1)
    cupy.cuda = SimpleNamespace(runtime=runtime, nvrtc=SimpleNamespace(getVersion=version))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert cuda.is_available() is has_compiler
    reason = "" if has_compiler else 'cannot be used: Failure finding "libnvrtc.so.13"'
    assert cuda.why_unavailable().endswith(reason) and bool(cuda.why_unavailable()) is not has_compiler
