"""The 16-bit floats of the simulator: conversions, arithmetic, and how kernels take and pass them."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from minigrad.kernels import sim
from minigrad.kernels.launch import CudaKernel, blocks

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)

EVERY_PATTERN = np.arange(2**16, dtype=np.uint16)
HEADERS = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"


def elementwise(parameters, body, *arrays, **values):
    """Run ``body`` for each ``i`` of a kernel of these parameters."""
    code = f"{HEADERS}__global__ void k({parameters}, int n) {{\n"
    code += f"int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return; {body}\n}}"
    n = arrays[0].size
    CudaKernel(code, "k").launch(blocks(n, 256), 256, (*arrays, *values.values(), n))


def assert_same(got, expected):
    """The same bits; of NaNs, any."""
    bits = np.dtype(f"u{got.itemsize}")
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(bits), expected[~nan].view(bits))


# ---- independent conversions: half's are NumPy's, and those of bfloat16 follow the definition --------------


def half_of(x):
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(np.float16)


def widened(bfloat16):
    return (bfloat16.astype(np.uint32) << 16).view(np.float32)


def nearest_bfloat16(x):
    """The nearest of the two bfloat16 around each float64 ``x``; of two as near, the even one."""
    magnitude = np.abs(x)
    finite = widened(np.arange(0x7F80, dtype=np.uint16)).astype(np.float64)
    largest, beyond = finite[-1], 2.0**128
    above = np.searchsorted(finite, magnitude)  # finite[above - 1] < magnitude <= finite[above]
    below = np.maximum(above - 1, 0)
    values = np.append(finite, beyond)
    to_above, to_below = values[above] - magnitude, magnitude - values[below]
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    pattern = np.where(up, above, below)
    pattern = np.where(
        magnitude > largest, np.where(magnitude < (largest + beyond) / 2, 0x7F7F, 0x7F80), pattern
    )
    return (pattern | np.where(np.signbit(x), 0x8000, 0)).astype(np.uint16)


def hard_numbers(rng, finite, count=20000):
    """Numbers at, just below and just above the middle between two neighbours of a format, and any others."""
    neighbours = rng.integers(0, finite.size - 1, count)
    middle = (finite[neighbours].astype(np.float64) + finite[neighbours + 1]) / 2
    signs = rng.choice([-1.0, 1.0], count)
    around = [middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)]
    return np.concatenate([signs * m for m in around] + [signs * finite[neighbours]])


def test_every_half_as_float_and_back(rng):
    wide, again = np.zeros(2**16, np.float32), np.zeros(2**16, np.float16)
    halves = EVERY_PATTERN.view(np.float16)
    elementwise(
        "float* wide, __half* again, const half* x",
        "wide[i] = __half2float(x[i]); again[i] = __float2half(wide[i]);",
        *(wide, again, halves),
    )
    assert_same(wide, halves.astype(np.float32))
    assert_same(again, halves)


def test_every_bfloat16_as_float_and_back():
    wide, again = np.zeros(2**16, np.float32), np.zeros(2**16, np.uint16)
    elementwise(
        "float* wide, __nv_bfloat16* again, const nv_bfloat16* x",
        "wide[i] = __bfloat162float(x[i]); again[i] = __float2bfloat16(wide[i]);",
        *(wide, again, EVERY_PATTERN),
    )
    assert_same(wide, widened(EVERY_PATTERN))
    number = ~np.isnan(wide)
    np.testing.assert_array_equal(again[number], EVERY_PATTERN[number])
    assert (again[~number] == 0x7FFF).all()


def test_hard_roundings(rng):
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    x = np.concatenate(
        [hard_numbers(rng, halves), [65520, 65519.99, 1e9, -np.inf, np.nan, 0.0, -0.0, 1e-300]]
    )
    from_float, from_double = np.zeros((2, x.size), np.float16)
    body = "from_float[i] = __float2half_rn(x[i]); from_double[i] = __double2half(d[i]);"
    narrow = x.astype(np.float32)
    elementwise(
        "half* from_float, half* from_double, const float* x, const double* d",
        *(body, from_float, from_double, narrow, x),
    )
    assert_same(from_float, half_of(narrow))
    assert_same(from_double, half_of(x))


def test_hard_roundings_to_bfloat16(rng):
    finite = widened(np.arange(0x7F80, dtype=np.uint16)).astype(np.float64)
    x = np.concatenate([hard_numbers(rng, finite), [3.4e38, -np.inf, 0.0, -0.0, 1e-300]])
    with np.errstate(over="ignore"):
        narrow = x.astype(np.float32)
    from_float, from_double = np.zeros((2, x.size), np.uint16)
    body = "from_float[i] = __float2bfloat16_rn(x[i]); from_double[i] = __double2bfloat16(d[i]);"
    elementwise(
        "__nv_bfloat16* from_float, __nv_bfloat16* from_double, const float* x, const double* d",
        *(body, from_float, from_double, narrow, x),
    )
    np.testing.assert_array_equal(from_float, nearest_bfloat16(narrow.astype(np.float64)))
    np.testing.assert_array_equal(from_double, nearest_bfloat16(x))


def test_rounding_in_every_direction(rng):
    x = np.append(hard_numbers(rng, EVERY_PATTERN[:0x7C00].view(np.float16), 1000), [1e-9, -1e-9, 7e4, -7e4])
    x = x.astype(np.float32)
    down, up, zero = np.zeros((3, x.size), np.float16)
    elementwise(
        "half* down, half* up, half* zero, const float* x",
        "down[i] = __float2half_rd(x[i]); up[i] = __float2half_ru(x[i]); zero[i] = __float2half_rz(x[i]);",
        *(down, up, zero, x),
    )
    wide = x.astype(np.float64)
    for rounded, towards in ((down, -np.inf), (up, np.inf)):
        sign = 1 if towards > 0 else -1
        assert (sign * rounded.astype(np.float64) >= sign * wide).all()
        with np.errstate(over="ignore"):
            previous = np.nextafter(rounded, np.float16(-towards))
        exact = rounded.astype(np.float64) == wide
        assert (exact | (sign * previous.astype(np.float64) < sign * wide)).all()
    assert_same(zero, np.where(wide > 0, down, up))


# ---- arithmetic --------------------------------------------------------------------------------------------

OPERATIONS = {
    "a + b": np.add,
    "a - b": np.subtract,
    "a * b": np.multiply,
    "a / b": np.divide,
    "__hadd(a, b)": np.add,
    "__hmul(a, b)": np.multiply,
    "__hmax(a, b)": np.fmax,
    "__hmin(a, b)": np.fmin,
    "__hmax_nan(a, b)": np.maximum,
    "-a": lambda a, b: -a,
    "__habs(a)": lambda a, b: np.abs(a),
    "hsqrt(a)": lambda a, b: np.sqrt(a),
    "hfloor(a)": lambda a, b: np.floor(a),
    "hexp(a)": lambda a, b: np.exp(a),
}


FORMATS = {
    "half": lambda bits: bits.view(np.float16).astype(np.float64),
    "bfloat16": lambda bits: widened(bits).astype(np.float64),
}


@pytest.mark.parametrize("format", FORMATS)
def test_operations_are_rounded_once(rng, format):
    """The float64 result is so exact that its own rounding does not matter to 16 bits."""
    a, b = rng.integers(0, 2**16, (2, 4000), dtype=np.uint16)
    a[:1000], b[:1000] = a[:1000] & 0x83FF, b[:1000] & 0x83FF  # subnormal, or near it
    b[2000:3000] = a[2000:3000] ^ rng.integers(0, 16, 1000, dtype=np.uint16)  # near each other
    out = np.zeros((len(OPERATIONS), a.size), np.uint16)
    lines = [f"out[{j} * n + i] = __{format}_as_ushort({text});" for j, text in enumerate(OPERATIONS)]
    body = f"auto a = __ushort_as_{format}(x[i]), b = __ushort_as_{format}(y[i]);\n" + "\n".join(lines)
    code = f"""{HEADERS}
    __global__ void k(unsigned short* out, const unsigned short* x, const unsigned short* y, int n) {{
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i >= n) return;
        {body}
    }}"""
    CudaKernel(code, "k").launch(blocks(a.size, 256), 256, (out, a, b, a.size))

    with np.errstate(all="ignore"):
        a, b, out = (FORMATS[format](bits) for bits in (a, b, out))
        for got, (text, function) in zip(out, OPERATIONS.items(), strict=True):
            exact = function(a, b)
            expected = half_of(exact) if format == "half" else widened(nearest_bfloat16(exact))
            expected = np.where(np.isnan(exact), np.nan, expected)
            np.testing.assert_array_equal(got, expected, err_msg=text)


def test_fused_multiply_add_has_one_rounding(rng):
    a, b, c = rng.integers(0, 0x7C00, (3, 3000), dtype=np.uint16).view(np.float16)
    c[:1000] = half_of(-a[:1000].astype(np.float64) * b[:1000]) * half_of(1 + 2.0**-10)  # cancels, nearly
    a[1000], b[1000], c[1000] = 1 + 2.0**-10, 1 + 2.0**-10, 2.0**-24  # float32 would see a tie: 2^-20 + 2^-24
    out = np.zeros(a.size, np.float16)
    elementwise(
        "half* out, const half* a, const half* b, const half* c", "out[i] = __hfma(a[i], b[i], c[i]);",
        out, a, b, c,
    )  # fmt: skip
    for x, y, z, got in zip(a, b, c, out, strict=True):
        if not np.isfinite([x, y, z]).all():
            continue
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        if not np.isfinite(got):
            assert abs(exact) >= 65520
            continue
        around = [np.nextafter(got, np.float16(s)) for s in (-np.inf, np.inf)]
        distance = abs(Fraction(float(got)) - exact)
        for other in (o for o in around if np.isfinite(o)):
            assert distance <= abs(Fraction(float(other)) - exact)
            if distance == abs(Fraction(float(other)) - exact):
                assert got.view(np.uint16) % 2 == 0


def test_comparisons_with_a_nan():
    nan, one = np.float16("nan"), np.float16(1)
    a, b = np.array(list(itertools.product([one, nan], [one, nan])), np.float16).T.copy()
    names = ["__heq", "__hne", "__hlt", "__hle", "__hge", "__hequ", "__hneu", "__hltu"]
    out = np.zeros((len(names), 4), np.int32)
    code = " ".join(f"out[{j} * 4 + i] = {name}(a[i], b[i]);" for j, name in enumerate(names))
    elementwise("int* out, const half* a, const half* b", f"if (i < 4) {{ {code} }}", out, a, b)
    expected = [
        [1, 0, 0, 0],
        [0] * 4,
        [0] * 4,
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [1] * 4,
        [0, 1, 1, 1],
        [0, 1, 1, 1],
    ]
    assert dict(zip(names, out.tolist(), strict=True)) == dict(zip(names, expected, strict=True))


def test_operators_of_pairs_and_conversions(rng):
    x = rng.standard_normal(64).astype(np.float32)
    out = np.zeros(64, np.float32)
    body = """
    if (2 * i >= n) return;
    half2 pair = __floats2half2_rn(x[2 * i], x[2 * i + 1]);
    pair = __hfma2(pair, __float2half2_rn(2.f), make_half2(1.f, __low2half(pair)));
    pair += __half2half2(half(1));
    if (pair.x > half(0)) pair.x = -pair.x;
    float2 back = __half22float2(__lowhigh2highlow(pair));
    out[2 * i] = back.x, out[2 * i + 1] = back.y;"""
    elementwise("float* out, const float* x", body, out, x)
    low, high = half_of(x[::2]), half_of(x[1::2])
    first = half_of(half_of(2 * low.astype(float) + 1) + np.float16(1))
    second = half_of(half_of(2 * high.astype(float) + low) + np.float16(1))
    np.testing.assert_array_equal(out[::2], second)
    np.testing.assert_array_equal(out[1::2], np.where(first > 0, -first, first))


# ---- kernels' arrays and values ----------------------------------------------------------------------------

SCALE = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
template <typename T> __global__ void k(T* y, const T* x, T a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i];
}"""


@pytest.mark.parametrize("checked", [False, True])
def test_a_template_over_float16(rng, checked):
    x = rng.standard_normal(100).astype(np.float16)
    y = np.zeros_like(x)
    with sim.checks(checked):
        CudaKernel(SCALE, "k").launch(1, 128, (y, x, 0.1, 100))
    np.testing.assert_array_equal(y, np.float16(0.1) * x)


def test_bfloat16_arrays_are_their_bits(rng):
    x = nearest_bfloat16(rng.standard_normal(100))
    y = np.zeros_like(x)
    CudaKernel(SCALE, "k<__nv_bfloat16>").launch(1, 128, (y, x, 0.1, 100))
    a = widened(nearest_bfloat16(np.array(0.1)))
    np.testing.assert_array_equal(y, nearest_bfloat16(widened(x).astype(np.float64) * a))
    CudaKernel(SCALE, "k").launch(1, 128, (y, x, 3, 100))  # deduced: unsigned short
    np.testing.assert_array_equal(y, x * np.uint16(3))


def test_wrong_types_are_named():
    kernel = CudaKernel(SCALE, "k<half>")
    x = np.zeros(4, np.float32)
    with pytest.raises(TypeError, match=r"`T\* y` expects an array of float16, got one of float32"):
        kernel.launch(1, 32, (x, x, 1, 4))
    halves = np.zeros(4, np.float16)
    with pytest.raises(ValueError, match="`T a` expects a number that fits float16, got 70000"):
        kernel.launch(1, 32, (halves, halves, 70000, 4))


def test_halves_in_vectors_shuffles_shared_memory_and_atomics(rng):
    code = """
    #include <cuda_fp16.h>
    __global__ void k(half* reversed, half* sum, half* turned, const half* x) {
        __shared__ __align__(16) half tile[256];
        int i = threadIdx.x;
        *reinterpret_cast<uint4*>(&tile[8 * i]) = *reinterpret_cast<const uint4*>(&x[8 * i]);
        __syncthreads();
        for (int j = 0; j < 8; j++) reversed[8 * i + j] = tile[255 - 8 * i - j];
        atomicAdd(sum, half(1));
        turned[i] = __shfl_xor_sync(~0u, x[i], 1);
        half2 pair = __shfl_down_sync(~0u, make_half2(x[i], 1), 1);
        turned[32 + i] = pair.x + pair.y;
    }"""
    x = rng.standard_normal(256).astype(np.float16)
    reversed, sum, turned = np.zeros(256, np.float16), np.zeros(1, np.float16), np.zeros(64, np.float16)
    with sim.checks():
        CudaKernel(code, "k").launch(1, 32, (reversed, sum, turned, x))
    np.testing.assert_array_equal(reversed, x[::-1])
    assert sum == 32
    np.testing.assert_array_equal(turned[:32], x[np.arange(32) ^ 1])
    np.testing.assert_array_equal(turned[32:63], x[1:32] + np.float16(1))


def test_pointers_to_vectors_take_arrays_of_their_elements(rng):
    code = """
    #include <cuda_fp16.h>
    __global__ void k(half2* out, const float4* x) {
        float4 v = x[threadIdx.x];
        out[2 * threadIdx.x] = __floats2half2_rn(v.x, v.y);
        out[2 * threadIdx.x + 1] = __floats2half2_rn(v.z, v.w);
    }"""
    x, out = rng.standard_normal((8, 4)).astype(np.float32), np.zeros((8, 4), np.float16)
    CudaKernel(code, "k").launch(1, 8, (out, x))
    np.testing.assert_array_equal(out, x.astype(np.float16))
    with pytest.raises(
        TypeError, match=r"`const float4\* x` expects an array of float32, got one of float64"
    ):
        CudaKernel(code, "k").launch(1, 8, (out, x.astype(np.float64)))
    with pytest.raises(ValueError, match=r"`const float4\* x` expects .* starts at a multiple of 16 bytes"):
        CudaKernel(code, "k").launch(1, 1, (out, x.ravel()[1:]))


def test_arrays_of_ml_dtypes_bfloat16(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = rng.standard_normal(64).astype(ml_dtypes.bfloat16)
    y = np.zeros_like(x)
    CudaKernel(SCALE, "k").launch(1, 64, (y, x, 3, 64))
    np.testing.assert_array_equal(y, x * ml_dtypes.bfloat16(3))
    CudaKernel(SCALE, "k<__nv_bfloat16>").launch(1, 64, (y, x, 2, 64))
    np.testing.assert_array_equal(y, x * ml_dtypes.bfloat16(2))
