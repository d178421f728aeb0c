"""The language that the simulator understands: what CUDA C++ adds to C++, beyond threads and memory."""

import itertools
import math

import numpy as np
import pytest

from minigrad.kernels import sim
from minigrad.kernels.errors import KernelCompileError, KernelLaunchError
from minigrad.kernels.launch import CudaKernel

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


def run(code, out, *args, grid=1, block=32):
    """Launch the one kernel, named ``k``, of ``code``."""
    CudaKernel(code, "k").launch(grid, block, (out, *args))
    return out


def each_thread(expressions, dtype, block=32, setup=""):
    """The value of each C++ expression in each thread of a block, where ``i`` is the thread."""
    lines = "\n".join(f"out[{j} * blockDim.x + i] = {text};" for j, text in enumerate(expressions))
    code = f"template <typename T> __global__ void k(T* out) {{ int i = threadIdx.x; {setup}\n{lines}\n}}"
    out = run(code, np.zeros((len(expressions), block), dtype), block=block)
    return dict(zip(expressions, out.tolist(), strict=True))


# ---- declarations ------------------------------------------------------------------------------------------


def test_constants_and_variables_of_the_device():
    code = """
    constexpr int N = 3;
    __constant__ float taps[N] = {0.5f, 2, 8};
    static __constant__ int zero[2];
    __device__ const int offsets[] = {10, 20, 30};
    __device__ int launches = 0;
    __global__ void __launch_bounds__(32, 4) k(float* out) {
        if (threadIdx.x < N) out[threadIdx.x] = taps[threadIdx.x] + offsets[threadIdx.x] + zero[1];
        if (threadIdx.x == 0) out[3] = ++launches;
    }"""
    kernel, out = CudaKernel(code, "k"), np.zeros(4, np.float32)
    kernel.launch(1, 32, (out,))
    kernel.launch(1, 32, (out,))
    assert out.tolist() == [10.5, 22, 38, 2]


def test_dim3_and_vectors():
    sizes = {"char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "long": 8, "longlong": 8,
             "ulonglong": 8, "float": 4, "double": 8}  # fmt: skip
    checks = []
    for name, size in sizes.items():
        for count in (1, 2, 3, 4):
            alignment = size if count % 2 else min(count * size, 16)
            checks.append(f"sizeof({name}{count}) == {count * size} && alignof({name}{count}) == {alignment}")
            fields = " + ".join(f"v.{field}" for field in "xyzw"[:count])
            arguments = ", ".join("123456"[:count])
            total = sum(map(int, "123456"[:count]))
            checks.append(f"[] {{ auto v = make_{name}{count}({arguments}); return {fields}; }}() == {total}")
    checks += [
        "[] { dim3 d(2, 3), one; return d.x * 100 + d.y * 10 + d.z + one.x + one.y; }() == 233",
        "[] { dim3 d = 7; uint3 u = dim3(4, 5, 6); return d.x + u.z; }() == 13",
    ]
    values = each_thread(checks, np.int32, block=1)
    assert all(value == [1] for value in values.values()), [text for text, v in values.items() if v != [1]]


def test_hinted_loads_and_stores():
    code = """
    __global__ void k(float* out, const float* x) {
        const float4* from = reinterpret_cast<const float4*>(x);
        float4* to = reinterpret_cast<float4*>(out);
        __stcg(&to[0], __ldg(&from[0]));
        __stwt(&to[1], __ldca(&from[1]));
        __stwb(&to[2], __ldlu(&from[2]));
        __stcs(&to[3], __ldcv(&from[3]));
        __stcs(&out[16], __ldcs(&x[16]) + __ldcg(&x[16]));
    }"""
    x = np.arange(17, dtype=np.float32)
    with sim.checks():
        out = run(code, np.zeros(17, np.float32), x, block=1)
    assert out.tolist() == [*range(16), 32]


# ---- printf, assert ----------------------------------------------------------------------------------------

PRINT = """
__global__ void k(int* out) {
    printf("block %d thread %d: %s %.2f\\n", blockIdx.x, threadIdx.x, "pi is", 3.14159);
    if (threadIdx.x == 1) printf("%*s\\n", 3000, "wide");
}"""


@pytest.mark.parametrize("seed", [0, 5])
def test_printf_in_the_order_of_blocks_and_threads(seed, capfd):
    with sim.seed(seed):
        run(PRINT, np.zeros(1, np.int32), grid=3, block=2)
    lines = []
    for block, thread in itertools.product(range(3), range(2)):
        lines.append(f"block {block} thread {thread}: pi is 3.14")
        lines += ["wide".rjust(3000)] * thread
    assert capfd.readouterr().out.splitlines() == lines


def test_what_was_printed_before_an_error_is_shown(capfd):
    code = '__global__ void k(int* out) { printf("so far"); __trap(); }'
    with pytest.raises(KernelLaunchError, match="__trap"):
        run(code, np.zeros(1, np.int32), block=1)
    assert capfd.readouterr().out == "so far"


@pytest.mark.parametrize("checked", [False, True])
def test_a_false_assertion_names_the_thread_and_the_line(checked):
    code = """__global__ void k(int* out) {
        int i = threadIdx.x;
        assert(out[0] == 0);
        assert((blockIdx.x < 2 || i < 20) && "too many");
    }"""
    where = (
        r"k, block \(2, 0, 0\), thread \(20, 0, 0\): assertion `.*i < 20.*too many.*` failed at kernel.cu:4"
    )
    with sim.checks(checked), sim.num_threads(1), pytest.raises(KernelLaunchError, match=where):
        run(code, np.zeros(1, np.int32), grid=3)


def test_ndebug_turns_assertions_off():
    code = "#define NDEBUG\n#include <assert.h>\n__global__ void k(int* out) { assert(out[0]); out[0] = 4; }"
    assert run(code, np.zeros(1, np.int32), block=1).tolist() == [4]


# ---- warps and blocks --------------------------------------------------------------------------------------


def test_reductions_and_matches_of_a_warp():
    everyone = 0xFFFFFFFF
    values = each_thread(
        [
            "__reduce_add_sync(~0u, i)",
            "__reduce_min_sync(~0u, i - 40)",
            "__reduce_max_sync(~0u, i * 3)",
            "__reduce_and_sync(~0u, unsigned(i) | 64)",
            "__reduce_or_sync(~0u, unsigned(i))",
            "__reduce_xor_sync(~0u, unsigned(i))",
            "__match_any_sync(~0u, i % 3 + 0.5)",
            "__match_all_sync(~0u, i / 32, &all) + (all ? 0ll : 1ll << 40)",
            "__match_all_sync(~0u, i, &all) + (all ? 0ll : 1ll << 40)",
        ],
        np.int64,
        setup="int all;",
    )
    assert [v[0] for v in values.values()][:6] == [496, -40, 93, 64, 31, 0]
    assert all(len(set(v)) == 1 for v in list(values.values())[:6])
    by_rest = [sum(1 << j for j in range(rest, 32, 3)) for rest in range(3)]
    assert values["__match_any_sync(~0u, i % 3 + 0.5)"] == [by_rest[i % 3] for i in range(32)]
    assert [v[5] for v in values.values()][7:] == [everyone, 1 << 40]


def test_reductions_within_half_a_warp():
    code = """
    __global__ void k(int* out) {
        int i = threadIdx.x;
        unsigned mask = i < 16 ? 0x0000FFFF : 0xFFFF0000;
        out[i] = __reduce_add_sync(mask, i);
    }"""
    assert run(code, np.zeros(32, np.int32)).tolist() == [sum(range(16))] * 16 + [sum(range(16, 32))] * 16


@pytest.mark.parametrize("seed", [0, 3])
def test_the_lanes_that_are_active(seed):
    code = """
    __global__ void k(unsigned* out) {
        int i = threadIdx.x;
        out[i] = __activemask();
        if (i % 4 == 0) {
            out[64 + i] = __activemask();
        } else {
            __syncwarp(0xEEEEEEEE);
            out[64 + i] = __activemask();
        }
        __syncthreads();
        out[128 + i] = __activemask();
    }"""
    with sim.seed(seed):
        out = run(code, np.zeros((3, 64), np.uint32), block=64)
    assert (out[[0, 2]] == 0xFFFFFFFF).all()
    assert out[1].tolist() == [0x11111111 if i % 4 == 0 else 0xEEEEEEEE for i in range(64)]


def test_shuffles_of_wide_values():
    code = """
    __global__ void k(double* out) {
        int i = threadIdx.x;
        long long wide = __shfl_down_sync(~0u, (1ll << 40) + i, 1);
        double2 pair = __shfl_xor_sync(~0u, make_double2(i, i + 0.5), 3);
        out[i] = wide - (1ll << 40), out[32 + i] = pair.x + pair.y;
    }"""
    out = run(code, np.zeros((2, 32)))
    assert out[0].tolist() == [*range(1, 32), 31]
    assert out[1].tolist() == [2 * (i ^ 3) + 0.5 for i in range(32)]


@pytest.mark.parametrize("checked", [False, True])
def test_barriers_that_count(checked):
    code = """
    __global__ void k(int* out) {
        int i = threadIdx.x;
        if (i == 99) return;  // threads that have ended are not counted
        for (int turn = 0; turn < 3; turn++) {
            out[i] = 0;
            out[i] += __syncthreads_count(i >= turn);
            out[i] += 1000 * __syncthreads_and(i < 99);
            out[i] += 2000 * __syncthreads_and(i < 98);
            out[i] += 4000 * (__syncthreads_or(i == 98) != 0);
            out[i] += 8000 * (__syncthreads_or(i == 99) != 0);
        }
    }"""
    for seed in (0, 1):
        with sim.seed(seed), sim.checks(checked):
            # A checked launch complains of a thread that returns before a barrier.
            out = run(code, np.zeros(100, np.int32), block=99 if checked else 100)
        assert out.tolist() == [97 + 5000] * 99 + [0]


def test_a_fast_clock_and_a_short_sleep():
    code = """
    __global__ void k(long long* out) {
        long long before = clock64();
        __nanosleep(10);
        out[0] = clock64() >= before;
    }"""
    assert run(code, np.zeros(1, np.int64), block=1).tolist() == [1]


def test_shared_addresses():
    code = """
    __global__ void k(int* out) {
        __shared__ int tile[32];
        tile[threadIdx.x] = threadIdx.x;
        size_t address = __cvta_generic_to_shared(&tile[threadIdx.x]);
        out[threadIdx.x] = *static_cast<int*>(__cvta_shared_to_generic(address));
    }"""
    assert run(code, np.zeros(32, np.int32)).tolist() == list(range(32))


# ---- atomics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checked", [False, True])
def test_atomics(checked):
    code = """
    __global__ void k(unsigned* u, float* f, double* d, unsigned long long* w) {
        unsigned i = threadIdx.x;
        atomicAdd(&u[0], i);
        atomicAdd_block(&u[1], 1);
        atomicMax_system(&u[2], i);
        atomicMin(&u[3], i);
        atomicInc(&u[4], 9);
        atomicDec(&u[5], 9);
        atomicXor(&u[6], i);
        atomicCAS_block(&u[7], 0, 5);
        atomicAdd(f, 0.5f);
        atomicExch(f + 1, 2.5f);
        atomicAdd(d, 0.25);
        atomicAdd(w, 1ull << 40);
    }"""
    u = np.array([0, 0, 0, 99, 0, 0, 0, 0], np.uint32)
    f, d, w = np.zeros(2, np.float32), np.zeros(1), np.zeros(1, np.uint64)
    with sim.checks(checked):
        run(code, u, f, d, w)
    assert u.tolist() == [496, 32, 31, 0, 2, 8, 0, 5]
    assert (f.tolist(), d.tolist(), w.tolist()) == ([16, 2.5], [8], [32 << 40])


@pytest.mark.parametrize("call", ["atomicMax(f, 1.f)", "atomicInc((int*)f, 1)", "max(f, f + 1)"])
def test_what_a_card_lacks_does_not_compile(call):
    with pytest.raises(KernelCompileError, match=call.partition("(")[0]):
        run(f"__global__ void k(float* f) {{ {call}; }}", np.zeros(2, np.float32))


# ---- functions ---------------------------------------------------------------------------------------------


def test_functions_of_bits():
    expected = {
        "__brev(0x00000003u) == 0xC0000000u": 1,
        "__brevll(1) == 1ull << 63": 1,
        "__byte_perm(0x33221100, 0x77665544, 0x7531) == 0x77553311": 1,
        "__byte_perm(0x0000807F, 0, 0x0098) == 0x7F7FFF00": 1,
        "__funnelshift_l(0x80000001u, 0x12345678u, 4) == 0x23456788u": 1,
        "__funnelshift_r(0x80000001u, 0x12345678u, 4) == 0x88000000u": 1,
        "__funnelshift_l(1u, 2u, 32) == 2 && __funnelshift_lc(1u, 2u, 40) == 1": 1,
        "__funnelshift_rc(1u, 2u, 40)": 2,
        "__dp4a(0x01FF0203, 0x02030405, 100)": 100 + 2 - 3 + 2 * 4 + 3 * 5,
        "__dp4a(0x01FF0203u, 0x02030405u, 0u)": 2 + 255 * 3 + 2 * 4 + 3 * 5,
        "__mulhi(-5, 7)": -1,
        "__umul64hi(~0ull, 16) == 15": 1,
        "__hadd(-3, 2)": -1,
        "__rhadd(-3, 2)": 0,
        "__usad(3u, 10u, 5u)": 12,
        "__ffsll(1ll << 50)": 51,
        "__float2int_rn(2.5f) * 1000 + __float2int_ru(2.1f) * 100 + __float2int_rd(2.9f)": 2302,
        "__float2int_rz(-1e20f) == -2147483647 - 1": 1,
        "__float2uint_rn(-3.f) + __float2uint_rn(NAN)": 0,
        "__double2hiint(__hiloint2double(0x3FF00000, 5)) == 0x3FF00000": 1,
    }
    assert {text: v[0] for text, v in each_thread(expected, np.int64, block=1).items()} == expected


def test_functions_of_reals():
    x = [0.0, 0.1, -0.3, 0.75, -0.999, 1 - 2.0**-40, 2.0**-30]
    code = """
    __global__ void k(double* out, const double* x, int n) {
        int i = threadIdx.x;
        double sine, cosine;
        sincospi(x[i], &sine, &cosine);
        float single_sine, single_cosine;
        sincosf(float(x[i]), &single_sine, &single_cosine);
        double values[] = {erf(erfinv(x[i])), erfc(erfcinv(1 + x[i])),
                           normcdf(x[i]), normcdfinv(normcdf(x[i])),
                           sine, cosine, single_sine, single_cosine,
                           rcbrt(x[i] + 2), fdividef(float(x[i]), 2.f)};
        for (int j = 0; j < 10; j++) out[j * n + i] = values[j];
    }"""
    got = run(code, np.zeros((10, len(x))), np.array(x), len(x), block=len(x))
    single = np.array(x, np.float32)
    expected = [
        x,
        np.add(x, 1),
        [math.erfc(-v / math.sqrt(2)) / 2 for v in x],
        x,
        np.sin(np.pi * np.array(x)),
        np.cos(np.pi * np.array(x)),
        np.sin(single),
        np.cos(single),
        np.cbrt(np.add(x, 2)) ** -1,
        single / 2,
    ]
    precision = [2.0**-50] * 6 + [2.0**-22] * 2 + [2.0**-50] + [0]
    for values, right, error in zip(got, expected, precision, strict=True):
        np.testing.assert_allclose(values, right, rtol=error, atol=error)
    assert each_thread(
        ["erfinv(1.0)", "erfcinv(2.0)", "erfinv(1.5)", "cospi(0.5)", "sinpi(1e15)"], np.float64, 1
    ) == {
        "erfinv(1.0)": [math.inf],
        "erfcinv(2.0)": [-math.inf],
        "erfinv(1.5)": [pytest.approx(math.nan, nan_ok=True)],
        "cospi(0.5)": [0],
        "sinpi(1e15)": [0],
    }
