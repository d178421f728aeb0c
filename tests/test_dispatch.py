"""The dispatcher: which kernel runs, and what it may rely on."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest

import minigrad as mg
from minigrad.dispatch import REMEMBERED, _tables
from minigrad.op import _ops


@pytest.fixture
def twice():
    """A fresh op ``test_twice`` with three kernels that tell what they were given."""
    calls = []

    @mg.op(name="test_twice")
    def twice(xp, x, y=None):
        calls.append("reference")
        return x * 2 if y is None else (x + y) * 2

    def register(name, **options):
        def kernel(out, x, y=None):
            """One line about it.

            And more.
            """
            calls.append(name)
            kernel.given = (out, x, y)
            out[...] = x * 2 if y is None else (x + y) * 2

        twice.kernel("cpu", name=name, **options)(kernel)
        return kernel

    twice.calls, twice.register = calls, register
    yield twice
    del _ops["test_twice"], _tables["test_twice"]


def test_the_last_registered_kernel_that_fits_runs(twice):
    x = mg.ones(3)
    twice(x)
    twice.register("first")
    twice(x)
    twice.register("second")
    twice(x)
    twice.register("small_only", when=lambda x, y: x.size < 3)
    twice(x)
    twice(mg.ones(2))
    twice.register("doubles", dtypes="f8")
    twice(x)
    twice(x.double())
    twice(mg.tensor([1]))
    assert twice.calls == [
        "reference",
        "first",
        "second",
        "second",
        "small_only",
        "second",
        "doubles",
        "reference",
    ]


def test_other_devices_fall_back_to_the_reference(twice):
    twice.register("only_cpu")
    assert twice(mg.ones(2, device="sim")).device.type == "sim"
    assert twice.calls == ["reference"]


def test_a_kernel_of_the_same_name_is_replaced(twice):
    twice.register("one")
    twice.register("one")
    assert [k.name for k in mg.list_kernels("test_twice")] == ["one"]


def test_use_kernel_selects_and_restores(twice):
    x = mg.ones(2)
    twice.register("a")
    twice.register("b")
    with mg.use_kernel("test_twice", "a"):
        twice(x)
        with mg.use_kernel("test_twice", "reference"):
            twice(x)
        twice(x)
    twice(x)
    with contextlib.suppress(KeyError), mg.use_kernel("test_twice", "a"):
        raise KeyError
    twice(x)
    with mg.use_kernel("test_twice", "a", device="cpu"):
        twice(x)
    assert twice.calls == ["a", "reference", "a", "b", "b", "a"]


def test_use_kernel_falls_back_where_the_kernel_does_not_fit(twice):
    twice.register("a", dtypes="f4")
    twice.register("b")
    with mg.use_kernel("test_twice", "a"):
        twice(mg.ones(2, dtype=mg.float64))
    assert twice.calls == ["reference"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no_such_op", "naive"), "no op.*'no_such_op'.*matmul"),
        (("matmul", "no_such_kernel"), "'matmul'.*'no_such_kernel'.*naive.*reference"),
        (("matmul", "packed", "sim"), "'packed' on 'sim'"),
        (("matmul", "naive", "tpu"), "'tpu'.*cpu"),
    ],
)
def test_use_kernel_with_wrong_names(arguments, words):
    with pytest.raises(ValueError, match=words), mg.use_kernel(*arguments):
        pass


def test_conditions_for_cards_are_asked_once_for_all_that_they_look_at(twice):
    asked = []

    def fits(x, y):
        asked.append(x.shape)
        return x.size < 3

    def kernel(out, x, y=None):
        """Twice."""

    table = twice.kernels
    for name, when in (("any", None), ("small", fits)):
        twice.kernel("cuda", name=name, when=when)(kernel)
    table.decides = lambda x, y: x.shape
    table.is_replaced = False  # as if the kernels were minigrad's own

    def chosen(n):
        return table.choose("cuda", np.dtype("f4"), [np.empty(n, "f4"), None], {}).name

    assert [chosen(2), chosen(3), chosen(2), chosen(3)] == ["small", "any", "small", "any"]
    assert asked == [(2,), (3,)]
    with mg.use_kernel("test_twice", "any"):
        table.is_replaced = False
        assert chosen(2) == "any"
    assert chosen(2) == "small" and asked[2:] == [(2,)]


def test_other_threads_may_fill_the_memory_of_choices_at_any_time(twice):
    """Here they come in when a choice is looked up for the second time."""
    lookups = []

    class Size(int):
        def __hash__(self):
            lookups.append(self)
            if len(lookups) == 2:
                for n in range(10, 11 + REMEMBERED):
                    chosen(n)
            return int(self)

    twice.kernel("cuda", name="any")(lambda out, x, y=None: None)
    table = twice.kernels
    table.decides, table.is_replaced = (lambda x, y: Size(x.size)), False

    def chosen(n):
        return table.choose("cuda", np.dtype("f4"), [np.empty(n, "f4"), None], {}).name

    for _ in range(2):
        assert chosen(2) == "any"
        lookups.clear()


def test_get_and_list_kernels(twice):
    twice.register("a", dtypes="f4")
    (kernel,) = mg.list_kernels("test_twice", "cpu")
    assert (kernel.op, kernel.name, kernel.summary) == ("test_twice", "a", "One line about it.")
    assert mg.get_kernel("test_twice") == "a" and mg.get_kernel("test_twice", dtype="f8") == "reference"
    assert mg.get_kernel("test_twice", "cuda") == "reference"
    assert {k.op for k in mg.list_kernels()} >= {"matmul", "conv2d", "max_pool2d", "test_twice"}
    assert mg.list_kernels("test_twice", "sim") == []
    for function in (mg.get_kernel, mg.list_kernels):
        with pytest.raises(ValueError, match="no_such_op"):
            function("no_such_op")


def test_every_kernel_has_a_summary():
    """What `list_kernels` shows: what the rung adds, in a sentence or two."""
    for kernel in mg.list_kernels():
        assert 10 < len(kernel.summary) < 320, f"{kernel.op} {kernel.name}: {kernel.summary!r}"
        assert kernel.devices and kernel.dtypes


# ---- what a kernel may rely on ----------------------------------------------------------------------------

VIEWS = {
    "transposed": lambda x: x.T,
    "sliced": lambda x: x[::2, 1::2],
    "reversed": lambda x: x[::-1, ::-1],
    "repeated": lambda x: x[:1].expand(5, -1),
    "contiguous": lambda x: x,
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("view", VIEWS)
def test_contiguous_is_the_default(twice, view):
    kernel = twice.register("a")
    x = VIEWS[view](mg.arange(24.0).reshape(4, 6))
    y = twice(x)
    out, given, _ = kernel.given
    assert given.flags.c_contiguous and given.shape == x.shape
    assert out.flags.c_contiguous and out.flags.writeable and out.dtype == x.dtype
    np.testing.assert_array_equal(y.numpy(), x.numpy() * 2)
    if x.is_contiguous():
        assert given is x._array, "nothing is copied without need"


@pytest.mark.parametrize("view", VIEWS)
def test_strided_gives_the_view_itself(twice, view):
    kernel = twice.register("a", layout="strided")
    x = VIEWS[view](mg.arange(24.0).reshape(4, 6))
    twice(x)
    assert kernel.given[1] is x._array


def test_broadcast_gives_all_inputs_the_shape_of_the_output(twice):
    kernel = twice.register("a", layout="broadcast")
    y = twice(mg.ones(3, 1), mg.ones(4))
    out, *inputs = kernel.given
    assert out.shape == (3, 4) and all(i.shape == (3, 4) and i.flags.c_contiguous for i in inputs)
    assert (y == 4.0).all()
    twice(mg.ones(3), 2.0)
    assert kernel.given[2].shape == (3,) and kernel.given[2].dtype == np.float32


def test_an_optional_input_that_is_missing_is_none(twice):
    kernel = twice.register("a")
    twice(mg.ones(2))
    assert kernel.given[2] is None


def test_kernels_run_inside_of_autograd(twice):
    twice.grad(x=lambda g, _z, _x, _y: g * 2.0)
    twice.register("a")
    x = mg.ones(2, requires_grad=True)
    twice(x).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0] and twice.calls == ["a"]


def test_an_error_in_a_kernel_comes_through(twice):
    def broken(out, x, y):
        raise ZeroDivisionError("inside")

    twice.kernel("cpu", name="broken")(broken)
    with pytest.raises(ZeroDivisionError, match="inside"):
        twice(mg.ones(1))
    with mg.use_kernel("test_twice", "reference"):
        assert twice(mg.ones(1)).item() == 2.0


# ---- devices ----------------------------------------------------------------------------------------------


def test_results_stay_on_the_device(device):
    x = mg.randn(4, 4, device=device, requires_grad=True)
    y = mg.relu(x @ x.T).sum() * 2.0 + 1.0
    y.backward()
    assert y.device is x.grad.device is device


def test_all_devices_agree(device, rng):
    a, b = rng.standard_normal((9, 17)).astype(np.float32), rng.standard_normal((17, 5)).astype(np.float32)
    here = (mg.tensor(a, device=device) @ mg.tensor(b, device=device)).to("cpu")
    np.testing.assert_allclose(here.numpy(), a.astype(np.float64) @ b, rtol=1e-5, atol=1e-5)


def test_moving_between_devices_has_a_gradient(device):
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    moved = x.to(device)
    assert moved.device is device and (moved is x) == (device.type == "cpu")
    (moved * 3.0).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0] and x.grad.device.type == "cpu"
    assert device.type == "cpu" or not np.shares_memory(device.to_numpy(moved._array), x.detach().numpy())


def test_unknown_devices():
    for name in ("tpu", "cuda:x", "cpu:1", "sim:2", ""):
        with pytest.raises(mg.errors.DeviceError, match="device"):
            mg.device(name)
    with pytest.raises(TypeError, match="expected a name"):
        mg.device(3)
    assert mg.device("cpu") is mg.device("cpu:0") is mg.device("cpu", 0) is mg.ones(1).device


def test_the_parts_of_kernels_load_when_touched():
    code = "import minigrad as mg; mg.kernels.sim.checks, mg.kernels.launch.CudaKernel, mg.kernels.cuda"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    with pytest.raises(AttributeError, match="no attribute 'tpu'"):
        _ = mg.kernels.tpu


def test_ops_of_layers_not_imported_yet_are_known():
    code = (
        "import sys, minigrad as mg\n"
        "assert 'minigrad.nn' not in sys.modules\n"
        "with mg.use_kernel('attention', 'reference'): pass\n"
        "assert mg.get_kernel('adam_step') == 'fused'\n"
        "assert {'resample', 'lstm', 'dropout'} <= {kernel.op for kernel in mg.kernels.list()}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
