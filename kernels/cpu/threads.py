"""The OpenMP threads of the CPU kernels: how many there are, and how long they spin when they are idle.

Kernels take their thread count as an argument and keep no state; their callers pass
``get_num_threads()``. The count belongs to the process: Python threads share it.
"""

import os
from contextlib import contextmanager
from operator import index
from pathlib import Path

MAX_THREADS = 1024
"""More would serve no machine, and libgomp ends the process when it cannot start them."""

SPINS = 80_000
"""How often a waiting thread looks for work before it sleeps: 1.5 to 3 ms on today's processors.

libgomp's default, 300,000, was meant to be 3 ms, but takes 6 to 12 since processors made the pause
instruction longer. If other programs want the cores too (a data loader's workers, a browser), a thread that
spins for so long uses up its share of time, and is off its core when work arrives: all others wait for it.
Much shorter spins make steps uneven on an idle virtual machine, whose cores take long to wake up. Measured in
benchmarks/results/2026-11-28-xeon-busy.md.
"""


def get_num_threads():
    """The number of threads that a CPU kernel may use (int, at least 1)."""
    return _num_threads


def set_num_threads(n):
    """Sets the number of threads that a CPU kernel may use, for the whole process.

    Raises TypeError if ``n`` is not an integer and ValueError if it is not in 1 to ``MAX_THREADS``. In a
    forked child only 1 is possible (RuntimeError otherwise): the threads of the OpenMP pool do not survive
    a fork, and the child would wait for them for ever.
    """
    global _num_threads
    _num_threads = _checked(n)


@contextmanager
def num_threads(n):
    """``with num_threads(n):`` sets the number of threads and restores the former one at the end.

    Like ``set_num_threads`` it acts on the whole process, on other Python threads too; overlapping uses
    in several Python threads restore in the order in which they end.
    """
    global _num_threads
    n = _checked(n)
    former, _num_threads = _num_threads, n
    try:
        yield
    finally:
        # A fork inside the block must not bring the parent's count back in the child.
        _num_threads = 1 if _in_forked_child else former


@contextmanager
def limited_spinning():
    """If libgomp is loaded inside it, its idle threads sleep after ``SPINS``.

    libgomp reads its environment once, when it is loaded. ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY``, if set,
    are respected; the environment is the same afterwards.
    """
    if not os.environ.keys().isdisjoint({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}):
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    try:
        yield
    finally:
        os.environ.pop("GOMP_SPINCOUNT", None)


def _checked(n):
    try:
        n = index(n)
    except TypeError:
        raise TypeError(f"number of threads must be an integer, got {n!r}") from None
    if not 1 <= n <= MAX_THREADS:
        raise ValueError(f"number of threads must be from 1 to {MAX_THREADS}, got {n}")
    if n > 1 and _in_forked_child:
        raise RuntimeError(
            "a forked child process has one thread, because OpenMP does not survive a fork; "
            "start the process with multiprocessing's 'spawn' method to use more"
        )
    return n


def _default_num_threads():
    for variable in ("MINIGRAD_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(variable, "").strip()
        if value:
            return _parse_variable(variable, value)
    return _available_cores()


def _parse_variable(variable, value):
    # OMP_NUM_THREADS may be a list with one count for each nesting level: "4,2".
    first = value.split(",")[0].strip() if variable == "OMP_NUM_THREADS" else value
    if not first.isdecimal() or not 1 <= int(first) <= MAX_THREADS:
        raise ValueError(f"{variable}={value!r} must be an integer from 1 to {MAX_THREADS}")
    return int(first)


def _available_cores():
    """The physical cores that this process may use: of its affinity, cut to its cgroup's quota (rounded up).

    Two hardware threads of a core share its multiply-add units and its caches, which one thread of a kernel
    fills by itself.
    """
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not on macOS
        cpus = range(os.cpu_count() or 1)
    cores = _count_cores(cpus, Path("/sys/devices/system/cpu"))
    quota = _cgroup_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return min(cores, quota or cores, MAX_THREADS)


def _count_cores(cpus, folder):
    """The cores that have at least one of ``cpus``; each CPU is one where ``folder`` does not tell."""

    def core(cpu):
        try:
            return (folder / f"cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            return cpu

    return len({core(cpu) for cpu in cpus})


def _cgroup_quota(membership, root):
    """The smallest CPU quota along this process's cgroups, in whole CPUs rounded up; None if unlimited.

    ``membership`` (``/proc/self/cgroup``) lists lines ``hierarchy:controllers:path``; version 2 has no
    controllers. In a container the path is often the host's and not visible; the quota then stands at
    ``root``, which is why all ancestors are looked at.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, read = root, _read_quota_v2
        elif "cpu" in controllers.split(","):
            mount, read = root / "cpu", _read_quota_v1
        else:
            continue
        group = Path(path.strip("/"))
        quotas += [read(mount / ancestor) for ancestor in (group, *group.parents)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _read_quota_v2(folder):
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else _round_up(int(quota), int(period))


def _read_quota_v1(folder):
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if quota < 0 else _round_up(quota, period)


def _round_up(quota, period):
    return max(1, -(-quota // period))


def _use_one_thread_in_child():
    global _num_threads, _in_forked_child
    _num_threads, _in_forked_child = 1, True


_in_forked_child = False
_num_threads = _default_num_threads()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread_in_child)
