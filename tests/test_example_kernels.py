"""The example kernels: each is one short file, right on every device, and says what it won."""

import importlib.util
import subprocess
import sys
import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import test_cuda_compiles as compiles

import minigrad as mg
from minigrad.dispatch import kernel_table
from minigrad.kernels import sim
from minigrad.kernels.launch import CudaKernel
from minigrad.testing import check_op

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples/kernels").glob("*.py"))

pytest.importorskip("Cython", reason="the examples compile Cython: pip install cython setuptools")
needs_sim = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


@cache
def example(name):
    """The example's module, whose CHECKS are its ops and the cases of each."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / f"examples/kernels/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernels(op, device):
    return [k for k in kernel_table(op.name).kernels if device in k.devices]


@pytest.mark.parametrize("name", EXAMPLES)
def test_all_devices_fit_on_two_pages(name):
    text = (ROOT / f"examples/kernels/{name}.py").read_text()
    assert len(text.splitlines()) <= 119
    assert "https://arxiv.org/abs/" in text.split('"""')[1]
    for op in example(name).CHECKS:
        assert kernels(op, "cpu") and kernels(op, "cuda") and kernels(op, "sim")
        assert all(k.summary for k in kernels(op, "cuda"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_kernels_of_the_processor_are_right(name):
    for threads in (1, 2):
        with mg.num_threads(threads):
            for op, cases in example(name).CHECKS.items():
                check_op(op, cases, devices=["cpu"], elements=4, gradients=threads == 1)


@needs_sim
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_cuda_kernels_are_right(name):
    for op, cases in example(name).CHECKS.items():
        names = [k.name for k in kernels(op, "sim")]
        check_op(op, cases, devices=["sim"], kernels=names, gradients=False)
        check_op(op, cases[:1], devices=["sim"], kernels=names, dtypes="f8", elements=1)


@needs_sim
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_cuda_kernels_give_the_same_bits_in_every_order(name, rng):
    for op, cases in example(name).CHECKS.items():
        inputs = [mg.tensor(rng.standard_normal(s).astype("f4"), device="sim") for s in cases[1].inputs]
        with sim.checks(False), sim.stress(4), mg.no_grad():
            op(*inputs, **cases[1].attrs)


def test_gelu_and_softmax_are_the_built_in_ones(rng):
    x = rng.standard_normal((9, 33)).astype("f4")
    bias = rng.standard_normal(33).astype("f4")
    mine = example("bias_gelu").bias_gelu(mg.tensor(x), mg.tensor(bias)).numpy()
    np.testing.assert_allclose(mine, mg.nn.functional.gelu(mg.tensor(x + bias), "tanh").numpy(), 1e-5, 1e-6)
    mine = example("online_softmax").online_softmax(mg.tensor(x)).numpy()
    np.testing.assert_allclose(mine, mg.softmax(mg.tensor(x), -1).numpy(), 1e-5)


def test_they_are_what_pytorch_computes(rng):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    x, weight, g = (rng.standard_normal(s) for s in ((4, 5, 33), 33, (4, 5, 33)))
    functions = {
        lambda x, w: example("bias_gelu").bias_gelu(x, w): lambda x, w: torch.nn.functional.gelu(
            x + w, approximate="tanh"
        ),
        lambda x, w: example("rms_norm").rms_norm(x, w): lambda x, w: torch.nn.functional.rms_norm(
            x, (33,), w, eps=1e-6
        ),
        lambda x, w: example("online_softmax").online_softmax(x * w): lambda x, w: torch.softmax(x * w, -1),
    }
    for ours, theirs in functions.items():
        a = [mg.tensor(v, requires_grad=True) for v in (x, weight)]
        b = [torch.tensor(v, requires_grad=True) for v in (x, weight)]
        y, z = ours(*a), theirs(*b)
        np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), 1e-9, 1e-10)
        y.backward(mg.tensor(g))
        z.backward(torch.tensor(g))
        for u, v in zip(a, b, strict=True):
            np.testing.assert_allclose(u.grad.numpy(), v.grad.numpy(), 1e-9, 1e-10)


@pytest.mark.parametrize("causal", [False, True])
def test_flash_attention_is_the_built_in_one(device, rng, causal):
    arrays = [
        rng.standard_normal(shape).astype("f4") for shape in ((2, 3, 70, 24), (2, 3, 90, 24), (2, 3, 90, 24))
    ]
    ours, theirs = ([mg.tensor(a, device=device, requires_grad=True) for a in arrays] for _ in range(2))
    y = example("flash_attention").flash_attention(*ours, causal=causal)
    z = mg.nn.functional.scaled_dot_product_attention(*theirs, is_causal=causal)
    y.square().sum().backward()
    z.square().sum().backward()
    for a, b in zip([y, *(x.grad for x in ours)], [z, *(x.grad for x in theirs)], strict=True):
        np.testing.assert_allclose(a.detach().to("cpu").numpy(), b.detach().to("cpu").numpy(), 1e-4, 1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"stride": 3, "padding": 4, "dilation": 2}, {"stride": 2}, {"padding": 9}]
)
def test_a_convolution_is_pytorchs(rng, options):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    arrays = rng.standard_normal((2, 5, 31)), rng.standard_normal((4, 5, 6))
    a = [mg.tensor(v, requires_grad=True) for v in arrays]
    b = [torch.tensor(v, requires_grad=True) for v in arrays]
    y, z = example("conv1d").conv1d(*a, **options), torch.nn.functional.conv1d(*b, **options)
    np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), 1e-9, 1e-10)
    y.square().sum().backward()
    z.square().sum().backward()
    for u, v in zip(a, b, strict=True):
        np.testing.assert_allclose(u.grad.numpy(), v.grad.numpy(), 1e-9, 1e-9)


@pytest.mark.parametrize("device", ["cpu", pytest.param("sim", marks=needs_sim)])
def test_a_softmax_of_infinities_is_the_references(device):
    inf, nan = np.inf, np.nan
    rows = [[-inf, 1, 2], [-inf, -inf, -inf], [1, inf, 2], [1, nan, 2], [-inf, -inf, 3], [inf, -inf, inf]]
    x = np.repeat(np.array(rows, "f4"), 100, axis=1)[:, ::-1].copy()  # long enough for several warps
    op = example("online_softmax").online_softmax
    with np.errstate(all="ignore"):
        expected = op.reference(np, x)
    np.testing.assert_allclose(op(mg.tensor(x, device=device)).to("cpu").numpy(), expected, 1e-5)


@compiles.needs_nvrtc
@pytest.mark.parametrize("architecture", compiles.ARCHITECTURES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_cuda_code_compiles(name, architecture):
    found = []
    for op in example(name).CHECKS:
        for kernel in kernels(op, "cuda"):
            for value in kernel.run.__globals__.values():
                found += value.values() if isinstance(value, dict) else [value]
    cuda = [kernel for kernel in found if isinstance(kernel, CudaKernel)]
    names = list(dict.fromkeys(instance for kernel in cuda for instance in compiles.instances(kernel)))
    assert names
    worked, log, _ = compiles.compile_with_nvrtc(cuda[0].source.text, names, architecture)
    assert worked, log
    assert "warning" not in log, log
    needs = compiles.resources(log)
    assert needs.keys() == {kernel.name for kernel in cuda}
    assert all(registers > 0 and spills == 0 for registers, _, spills in needs.values()), log


def test_nan_and_infinities_pass_through_flash_attention_as_through_its_reference(device, rng):
    q, k, v = (rng.standard_normal((70, 8)).astype("f4") for _ in range(3))
    q[3, 1], q[5, 2], v[7, 4] = np.nan, np.inf, -np.inf
    op = example("flash_attention").flash_attention
    with np.errstate(all="ignore"):
        expected = op.reference(np, q, k, v)
        y = op(*(mg.tensor(x, device=device) for x in (q, k, v))).to("cpu").numpy()
    np.testing.assert_allclose(y, expected, 1e-4, 1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_flash_attention_never_holds_the_matrix(rng, causal):
    """Neither forward nor backward does an array of L x S exist, nor are there tiles as large together."""
    n, limit = 2048, 2048 * 2048 * 4
    q, k, v = (mg.tensor(rng.standard_normal((n, 8)).astype("f4"), requires_grad=True) for _ in range(3))
    flash = example("flash_attention").flash_attention

    def peak(run):
        """The most bytes that arrays held: those of tensors, or with NumPy's own, which kernels make."""
        mg.memory.reset_peak_memory_stats("cpu")
        before = mg.memory.memory_allocated("cpu")
        tracemalloc.start()
        run()
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return max(mg.memory.max_memory_allocated("cpu") - before, traced)

    assert peak(lambda: flash.reference(mg, q, k, v, causal=causal)) > limit  # what is counted is seen
    with mg.num_threads(1):  # each has a tile
        assert peak(lambda: flash(q, k, v, causal=causal)) < limit // 4
    y = flash(q, k, v, causal=causal).sum()
    assert peak(y.backward) < limit // 2


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_script_runs_from_anywhere(name, tmp_path):
    """As a script, with nothing checked (it is, above), and what is measured run once and compared."""
    (tmp_path / "once.py").write_text("""
import runpy, sys
import minigrad as mg, numpy as np

def run_once(op, cases, against):
    for case in cases:
        inputs = [mg.randn(*shape) for shape in case.inputs]
        for name, function in against.items():
            y, z = function(*inputs), op(*inputs, **case.attrs)
            np.testing.assert_allclose(y.numpy(), z.numpy(), 1e-3, 1e-4)
            print("compared", op.name, "with", name)

mg.testing.check_op, mg.testing.bench_op = lambda *_: "checked", run_once
runpy.run_path(sys.argv[1], run_name="__main__")
""")
    command = [sys.executable, "once.py", str(ROOT / f"examples/kernels/{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checked, compared = done.stdout.splitlines()[0], done.stdout.splitlines()[-2]
    assert checked == "checked" and compared.startswith(f"compared {name} with")
