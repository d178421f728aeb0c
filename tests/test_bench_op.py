"""bench_op times the kernels of an op that are right, and says which are not."""

import pytest
from test_check_op import make_swish, right, writes_zeros

import minigrad as mg
import minigrad.compare
from minigrad.dispatch import KernelTable
from minigrad.kernels import sim
from minigrad.testing import case

pytestmark = pytest.mark.usefixtures("forget_ops")

BRIEF = mg.compare.Effort(rounds=2, turn=0.0, longest=0.01, slow=1.0, slow_rounds=1)


def test_bench_op_times_what_is_right_and_says_what_is_not(tmp_path):
    swish = make_swish()
    swish.kernel("cpu", name="numpy")(right)
    swish.kernel("cpu", name="wrong")(writes_zeros)
    swish.kernel("cpu", name="elsewhere", when=lambda x, *, beta: x.size > 10**6)(right)
    against = {"by sigmoid": lambda x: x * mg.sigmoid(x), "other": lambda x: x + 1.0}
    table = mg.testing.bench_op(
        swish, [case((40, 30))], devices=["cpu"], against=against, effort=BRIEF, seed=0
    )
    by_name = {record.rung: record for record in table}
    assert list(by_name) == ["reference", "by sigmoid", "other", "numpy", "wrong", "elsewhere"]
    assert by_name["numpy"].seconds > 0 and by_name["numpy"].bytes == 2 * 40 * 30 * 4
    assert table.ratio(by_name["reference"]) == 1 and table.ratio(by_name["by sigmoid"]) > 0
    assert by_name["wrong"].seconds is None and "wrong" in by_name["wrong"].failure
    assert by_name["other"].seconds is None and by_name["elsewhere"].refused
    text = str(table)
    assert "swish((40, 30))" in text and "GB/s" in text and "cpu wrong: not timed" in text


def test_bench_op_replaces_no_method_of_the_kernel_table():
    """A compiled table, as wheels have it, lets none be replaced."""
    swish, looks = make_swish(), []

    def always(x, *, beta):
        looks.append(vars(swish.kernels).keys() & vars(KernelTable).keys())
        return True

    swish.kernel("cpu", name="own", when=always)(right)
    before = mg.list_kernels("swish")
    table = mg.testing.bench_op(swish, [case((40,))], devices=["cpu"], effort=BRIEF)
    assert next(record for record in table if record.rung == "own").seconds > 0
    assert looks and not any(looks) and mg.list_kernels("swish") == before


def test_bench_op_draws_a_ladder(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "ladder.png"
    swish = make_swish()
    swish.kernel("cpu", name="numpy")(right)
    mg.testing.bench_op(swish, [case((40,))], devices=["cpu"], output=path, effort=BRIEF)
    assert path.stat().st_size > 1000


def test_bench_op_never_draws_the_simulator(tmp_path):
    swish = make_swish()
    if not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    options = {"effort": BRIEF, "devices": ["sim"]}
    assert "(simulated)" in str(mg.testing.bench_op(swish, [case((40,))], **options))
    with pytest.raises(ValueError, match="nothing to draw"):
        mg.testing.bench_op(swish, [case((40,))], output=tmp_path / "ladder.png", **options)
