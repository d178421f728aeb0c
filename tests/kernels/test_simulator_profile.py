"""What the profiler counts, against kernels of which the counts are known."""

import numpy as np
import pytest
from simulated import launch, zeros

from minigrad.kernels import sim
from minigrad.kernels.cuda import matmul, matmul_tensor_core, matmul_wgmma, softmax
from minigrad.kernels.sim import profiler

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


def profiled(body, *args, **options):
    with sim.profile() as launches:
        launch(body, *args, **options)
    (found,) = launches
    return found


# ---- global memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "sectors", "least"),
    [
        ("threadIdx.x", 4, 4),
        ("0", 1, 1),
        ("threadIdx.x / 2", 2, 2),
        ("2 * threadIdx.x", 8, 4),
        ("8 * threadIdx.x", 32, 4),
        ("100 * threadIdx.x", 32, 4),
        ("31 - threadIdx.x", 4, 4),
        ("threadIdx.x + 1", 5, 4),
    ],
)
def test_sectors_of_a_request(index, sectors, least):
    parameters = "float* y, const float* x"
    found = profiled(f"y[threadIdx.x] = x[{index}];", zeros(32), zeros(3200), parameters=parameters)
    total = found.total("global load")
    assert (total.requests, total.accesses, total.bytes) == (1, 32, 128)
    assert (total.cost, total.least) == (sectors, least)
    assert total.efficiency == least / sectors
    assert found.distinct_loaded == 32 * sectors and found.distinct_stored == 128
    assert found.asked_bytes == 32 * (sectors + 4)


def test_vectors_are_loaded_by_one_request():
    body = "reinterpret_cast<float4*>(y)[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x];"
    found = profiled(body, zeros(128), zeros(128), parameters="float* y, const float* x")
    for what in ("global load", "global store"):
        total = found.total(what)
        assert (total.requests, total.accesses, total.bytes, total.cost) == (1, 32, 512, 16)


def test_warps_and_loops_make_requests_of_their_own():
    body = "float sum = 0; for (int i = 0; i < 5; i++) sum += x[i * 70 + threadIdx.x];\ny[threadIdx.x] = sum;"
    found = profiled(body, zeros(70), zeros(350), parameters="float* y, const float* x", block=70)
    assert found.total("global load").requests == 3 * 5  # two warps, and one of 6 threads
    assert found.total("global load").accesses == 70 * 5
    assert found.total("global store").requests == 3
    assert found.operations == 70 * 5
    assert {line for line, _ in found.lines} == {"kernel.cu:2", "kernel.cu:3"}


def test_distinct_sectors_are_counted_once():
    body = "for (int i = 0; i < 4; i++) y[threadIdx.x] += x[threadIdx.x];"
    found = profiled(body, zeros(32), zeros(32), parameters="volatile float* y, const volatile float* x")
    assert found.total("global load").cost == 2 * 4 * 4 and found.distinct_loaded == 256
    assert found.total("global store").cost == 4 * 4 and found.distinct_stored == 128


def test_atomics():
    found = profiled("atomicAdd(y + threadIdx.x % 4, 1);", zeros(4, dtype=np.int32), parameters="int* y")
    assert (found.total("global atomic").requests, found.total("global atomic").accesses) == (1, 32)


# ---- shared memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "wavefronts"),
    [
        ("threadIdx.x", 1),
        ("0", 1),
        ("2 * threadIdx.x", 2),
        ("8 * threadIdx.x", 8),
        ("32 * threadIdx.x", 32),
        ("33 * threadIdx.x", 1),
        ("threadIdx.x / 8 * 32", 4),
    ],
)
def test_bank_conflicts(index, wavefronts):
    body = (
        f"__shared__ float s[1056]; s[{index}] = threadIdx.x; __syncthreads(); y[threadIdx.x] = s[{index}];"
    )
    found = profiled(body, zeros(32))
    for what in ("shared load", "shared store"):
        assert (found.total(what).cost, found.total(what).least) == (wavefronts, 1)
    assert found.bank_conflicts == 2 * (wavefronts - 1)


def test_wide_shared_accesses_are_served_by_halves_of_a_warp_in_any_order_of_its_lanes():
    """The last thread to come to a barrier is the first to go on: 16 lanes are not the first 16 that come."""
    at = "threadIdx.x / 8 * 24 + threadIdx.x % 8"  # rows of 8; the third is in the banks of the first
    body = f"__shared__ double s[56]; s[{at}] = 1; __syncthreads(); y[threadIdx.x] = s[{at}];"
    found = profiled(body, zeros(24), block=24).total("shared load")
    assert (found.requests, found.cost, found.least) == (1, 2, 2)


def test_wide_shared_accesses_are_served_in_parts():
    body = "__shared__ double s[32]; s[threadIdx.x] = 1; y[threadIdx.x] = s[threadIdx.x];"
    assert profiled(body, zeros(32)).total("shared load").cost == 2
    body = """
    __shared__ float4 s[32];
    s[threadIdx.x] = make_float4(1, 2, 3, 4);
    float4 v = s[threadIdx.x];
    y[threadIdx.x] = v.x + v.y + v.z + v.w;
    """
    found = profiled(body, zeros(32)).total("shared load")
    assert (found.cost, found.least, found.bytes) == (4, 4, 512)


# ---- barriers, divergence, arithmetic ----------------------------------------------------------------------


def test_barriers_and_divergence():
    body = """
    for (int i = 0; i < 3; i++) __syncthreads();
    if (%s) y[threadIdx.x] = 1;
    """
    even = profiled(body % "threadIdx.x < 32", zeros(64), block=64, grid=2)
    odd = profiled(body % "threadIdx.x % 2", zeros(64), block=64, grid=2)
    assert even.barriers == odd.barriers == 6
    assert even.meetings == odd.meetings == 2 * 2 * 4  # three barriers and the end, for four warps
    assert (even.divergent, odd.divergent) == (0, 4)


def test_shuffles_are_meetings():
    found = profiled("y[threadIdx.x] = __shfl_xor_sync(~0u, threadIdx.x < 5 ? 1 : 2, 1);", zeros(32))
    assert found.meetings == 2 and found.barriers == 0


def test_arithmetic_and_functions():
    body = "y[threadIdx.x] = expf(x[threadIdx.x]) * 2 + sqrtf(x[threadIdx.x]) / 3;"
    found = profiled(body, zeros(32), zeros(32) + 2, parameters="float* y, const float* x")
    assert found.operations == 32 * 4  # multiply, add, root, divide
    assert found.functions == {"expf": 32}


def test_arithmetic_of_a_matmul():
    a, b = np.ones((40, 48), np.float32), np.ones((48, 64), np.float32)
    with sim.profile() as launches:
        matmul.naive(np.empty((40, 64), np.float32), a, b)
        matmul.tiled(np.empty((40, 64), np.float32), a, b)
    naive, tiled = launches
    assert naive.operations == 2 * 40 * 48 * 64
    assert tiled.operations == 2 * 64 * 64 * 64  # with the edges of its tiles
    assert tiled.intensity > 10 * naive.intensity
    assert naive.distinct_loaded == 4 * (40 * 48 + 48 * 64)
    assert tiled.bank_conflicts == 0
    assert tiled.barriers == 4 * 2 * 2


@pytest.mark.parametrize(("dtype", "kernel"), [("f2", "tensor_core"), ("f2", "wgmma"), ("f4", "wgmma")])
def test_tensor_cores_and_the_copy_engine(dtype, kernel):
    a, b, out = (np.ones(shape, dtype) for shape in ((256, 96), (96, 256), (256, 256)))
    module = {"tensor_core": matmul_tensor_core, "wgmma": matmul_wgmma}[kernel]
    tile = {"tile": 256} if kernel == "wgmma" else {}
    with sim.profile() as launches:
        getattr(module, kernel)(out, a, np.asfortranarray(b), **tile)
    (found,) = launches
    steps = 96 if kernel == "tensor_core" or dtype == "f4" else 128
    assert found.operations == pytest.approx(2 * 256 * 256 * steps, rel=0.01)  # and what rounds to 16 bits
    assert found.distinct_loaded == a.nbytes + b.nbytes and found.distinct_stored == out.nbytes
    if kernel == "wgmma":  # each block of the cluster half of a, and half of b for both
        loads, stores = found.total("global load"), found.total("global store")
        assert loads.bytes == a.nbytes + b.nbytes and stores.bytes == out.nbytes
        assert loads.requests == loads.accesses == 2 * (2 + 2) * -(-96 * out.itemsize // 128)
        assert loads.efficiency == stores.efficiency == 1


def test_a_table_to_read():
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    with sim.profile() as launches:
        softmax.softmax_naive(np.empty_like(x), x)
        softmax.softmax_warp(np.empty_like(x), x)
    naive, warp = launches
    assert naive.total("global load").efficiency == 1 / 8 and warp.total("global load").efficiency == 1
    text = str(naive)
    assert text.startswith("softmax_naive<float, false>: 1 blocks of 256 threads")
    assert "12% used" in text and "expf" in text and "softmax.cu:" in text


def test_without_objdump_the_arithmetic_is_unknown(monkeypatch):
    which = profiler.shutil.which
    monkeypatch.setattr(profiler.shutil, "which", lambda name: None if "objdump" in name else which(name))
    profiler._arithmetic.cache_clear()
    found = profiled("y[threadIdx.x] = 2 * threadIdx.x;", zeros(32))
    profiler._arithmetic.cache_clear()
    assert found.operations is None and found.intensity is None
    assert "arithmetic" not in str(found)


def test_profiles_nest_and_results_are_right():
    with sim.profile() as outer:
        with sim.profile() as inner:
            assert launch("y[threadIdx.x] = threadIdx.x;", zeros(32)).tolist() == list(range(32))
        assert (len(inner), len(outer)) == (1, 0)
        launch("y[threadIdx.x] = 1;", zeros(32))
    launch("y[threadIdx.x] = 1;", zeros(32))
    assert (len(inner), len(outer)) == (1, 1)
