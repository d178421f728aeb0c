"""The choice of the instruction-set level, the thread count, and kernels in forked processes."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from minigrad.kernels import cpu
from minigrad.kernels.cpu import threads

LEVELS = cpu.available_levels()


def run_python(code, timeout=300, **environment):
    """Runs ``code`` in an interpreter of its own, with these variables set (None: unset)."""
    env = {**os.environ, **{name: value for name, value in environment.items() if value is not None}}
    minigrads = ("MINIGRAD_ISA", "MINIGRAD_NUM_THREADS")
    for name in (*minigrads, "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        if environment.get(name) is None:
            env.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, env=env, check=False
    )


# ---- instruction-set levels --------------------------------------------------------------------------


def isa_of_a_process(value):
    return run_python("from minigrad.kernels import cpu; print(cpu.isa)", MINIGRAD_ISA=value)


def test_the_highest_level_is_the_default():
    for value in (None, ""):
        done = isa_of_a_process(value)
        assert done.stdout.strip() == LEVELS[-1], done.stderr


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_can_be_chosen(level):
    assert isa_of_a_process(level).stdout.strip() == level
    if level.startswith("x86_64_"):
        short = level.removeprefix("x86_64_")
        assert isa_of_a_process(short).stdout.strip() == level
        assert isa_of_a_process(f"X86-64-{short}").stdout.strip() == level


def test_a_chosen_level_is_the_one_whose_kernels_run():
    code = "from minigrad.kernels import cpu; print(cpu.matmul.__name__, cpu.pool2d.__name__)"
    done = run_python(code, MINIGRAD_ISA=LEVELS[0])
    assert done.stdout.split() == [
        f"minigrad.kernels.cpu.{LEVELS[0]}.{name}" for name in ("matmul", "pool2d")
    ]


@pytest.mark.parametrize("value", ["v9", "avx2", "x86_64_", "3"])
def test_an_unknown_level_is_an_error_that_names_the_possible_ones(value):
    done = isa_of_a_process(value)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError") and value in last and "not an instruction-set level" in last
    assert all(level in last for level in LEVELS)


def test_a_level_that_the_host_cannot_run_is_an_error():
    with pytest.raises(ValueError, match=r"'v4' cannot be used on this machine.*x86_64_v2, x86_64_v3"):
        cpu._choose_level("v4", ("x86_64_v2", "x86_64_v3"))


def test_kernels_that_are_not_built_say_how_to_build_them(monkeypatch):
    monkeypatch.setattr(cpu, "_is_built", lambda level: False)
    with pytest.raises(ImportError, match=r"pip install -e \."):
        cpu._find_available_levels()
    with pytest.raises(ImportError, match=r"missing; .*pip install -e \."):
        cpu.kernel_module("matmul", "x86_64_v9")


def test_built_levels_that_do_not_run_here_are_an_error(monkeypatch):
    monkeypatch.setattr(cpu, "_host_levels", lambda: ())
    with pytest.raises(ImportError, match=rf"built for {LEVELS[0]}.*none of the levels"):
        cpu._find_available_levels()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", cpu.MODULES)
def test_every_level_has_every_module(name, level):
    assert cpu.kernel_module(name, level).__name__.endswith(f"{level}.{name}")


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'matmull'"):
        _ = cpu.matmull


# ---- the thread count --------------------------------------------------------------------------------


@pytest.fixture
def restored_count():
    former = threads.get_num_threads()
    yield
    threads.set_num_threads(former)


def test_set_and_restore(restored_count):
    threads.set_num_threads(3)
    assert threads.get_num_threads() == 3
    with threads.num_threads(2):
        assert threads.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="stop"), threads.num_threads(5):
            assert threads.get_num_threads() == 5
            raise RuntimeError("stop")
        assert threads.get_num_threads() == 2
    assert threads.get_num_threads() == 3
    threads.set_num_threads(np.int64(4))
    assert type(threads.get_num_threads()) is int


def test_the_count_belongs_to_the_process(restored_count):
    worker = threading.Thread(target=threads.set_num_threads, args=(7,))
    worker.start()
    worker.join()
    assert threads.get_num_threads() == 7


@pytest.mark.parametrize("setter", [threads.set_num_threads, lambda n: threads.num_threads(n).__enter__()])
@pytest.mark.parametrize(
    ("n", "error"),
    [(0, ValueError), (-1, ValueError), (10**9, ValueError), (1.5, TypeError), ("2", TypeError)],
)
def test_a_wrong_count_is_an_error_and_changes_nothing(setter, n, error):
    former = threads.get_num_threads()
    with pytest.raises(error, match="number of threads must be"):
        setter(n)
    assert threads.get_num_threads() == former


COUNT = "from minigrad.kernels.cpu.threads import get_num_threads; print(get_num_threads())"


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"MINIGRAD_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": " 4,2 "}, 4),
        ({"MINIGRAD_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"MINIGRAD_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5),
    ],
)
def test_environment_variables(environment, count):
    assert run_python(COUNT, **environment).stdout.strip() == str(count)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        (variable, value)
        for variable in ("MINIGRAD_NUM_THREADS", "OMP_NUM_THREADS")
        for value in ("0", "-2", "two")
    ]
    + [("MINIGRAD_NUM_THREADS", "4,2"), ("MINIGRAD_NUM_THREADS", "99999")],
)
def test_a_wrong_variable_is_an_error_that_names_it(variable, value):
    done = run_python(COUNT, **{variable: value})
    assert done.returncode != 0
    assert f"ValueError: {variable}='{value}' must be an integer from 1" in done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_the_default_follows_the_affinity():
    code = f"import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); {COUNT}"
    assert run_python(code).stdout.strip() == "1"


@pytest.mark.parametrize(
    ("siblings", "cpus", "cores"),
    [
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, range(4), 2),  # two threads a core
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, {1, 3}, 1),
        ({0: "0-1", 1: "0-1", 2: "2", 3: "3"}, range(4), 3),  # cores of two kinds
        ({0: "0", 1: "1"}, range(2), 2),
        ({}, range(3), 3),  # the system does not tell
    ],
)
def test_threads_of_one_core_count_once(tmp_path, siblings, cpus, cores):
    for number, text in siblings.items():
        file = tmp_path / f"cpu{number}/topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(text + "\n")
    assert threads._count_cores(cpus, tmp_path) == cores


def cgroup(root: Path, membership, files):
    (root / "membership").write_text(membership)
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return threads._cgroup_quota(root / "membership", root)


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/not/visible\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        ("0::/\n", {}, None),
        (
            "4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("7:memory:/a\n", {"memory/a/cpu.max": "100000 100000\n"}, None),
    ],
)
def test_cgroup_quotas(tmp_path, membership, files, quota):
    assert cgroup(tmp_path, membership, files) == quota


def test_without_cgroups_there_is_no_quota(tmp_path):
    assert threads._cgroup_quota(tmp_path / "missing", tmp_path) is None


# ---- idle threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "spins"),
    [({}, threads.SPINS), ({"GOMP_SPINCOUNT": "7"}, 7), ({"OMP_WAIT_POLICY": "passive"}, 0)],
    ids=["by default", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"],
)
def test_idle_threads_sleep_soon_and_the_environment_stays_as_it_was(environment, spins):
    code = "import os; from minigrad.kernels import cpu; cpu.matmul; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = run_python(code, OMP_DISPLAY_ENV="verbose", **environment)
    if "GOMP_" not in done.stderr:
        pytest.skip("the kernels were not built with GCC's OpenMP library")
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
    assert done.stdout.strip() == str(environment.get("GOMP_SPINCOUNT"))


# ---- forked processes --------------------------------------------------------------------------------

# The parent has run a kernel on two threads, so libgomp's pool exists; a child that used it would hang.
FORK = """
import os, sys
import numpy as np
from minigrad.kernels import cpu
from minigrad.kernels.cpu.threads import get_num_threads, num_threads, set_num_threads

x = np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32)

def work():
    out = np.empty_like(x)
    cpu.softmax.softmax(out, x, 1, get_num_threads())
    cpu.elementwise.gelu(out, out, get_num_threads())
    return out

set_num_threads(2)
expected = work()
"""


def test_a_forked_child_uses_one_thread_and_ends():
    code = (
        FORK
        + """
with num_threads(3):
    child = os.fork()
    if child == 0:
        ok = get_num_threads() == 1 and np.array_equal(work(), expected)
        try:
            set_num_threads(2)
            ok = False
        except RuntimeError as error:
            ok = ok and "spawn" in str(error)
        set_num_threads(1)
if child == 0:
    os._exit(0 if ok and get_num_threads() == 1 else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert status == 0, status
assert get_num_threads() == 2
assert np.array_equal(work(), expected)
print("done")
"""
    )
    done = run_python(code)
    assert done.stdout.strip() == "done", done.stderr


def test_forked_worker_processes_of_multiprocessing():
    code = (
        FORK
        + """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    results = [pool.apply_async(work) for _ in range(4)]
    assert all(np.array_equal(result.get(timeout=300), expected) for result in results)
print("done")
"""
    )
    done = run_python(code)
    assert done.stdout.strip() == "done", done.stderr


def test_kernels_may_run_in_several_python_threads():
    x = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    expected, results = np.empty_like(x), [np.empty_like(x) for _ in range(4)]
    cpu.softmax.softmax(expected, x, 1, 1)
    workers = [threading.Thread(target=cpu.softmax.softmax, args=(out, x, 1, 2)) for out in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=300)
    for out in results:
        np.testing.assert_array_equal(out, expected)
