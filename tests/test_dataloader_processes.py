"""Worker processes of the data loader: the same batches, errors that arrive, and no process that stays."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import process_datasets
import pytest
from process_datasets import Broken, Endless, Killed, Noisy, Settings

from minigrad.data import DataLoader, IterableDataset
from minigrad.data.processes import WorkerProcesses


def loader(dataset, **options):
    options = {"num_workers": 2, "worker_type": "process", "seed": 7, **options}
    return DataLoader(dataset, options.pop("batch_size", 4), **options)


def contents(batches):
    return [(indices.tolist(), noise.tolist()) for indices, noise, _ in batches]


def workers():
    return [child for child in multiprocessing.active_children() if child.name.startswith("minigrad-data")]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 3, "multiprocessing_context": "spawn"},
        {"num_workers": 1, "prefetch_factor": 1},
        {"persistent_workers": True, "pin_memory": True},
    ],
)
def test_batches_are_those_of_threads(options):
    expected = loader(Noisy(), shuffle=True, num_workers=0, worker_type="thread")
    threads = loader(Noisy(), shuffle=True, num_workers=3, worker_type="thread")
    processes = loader(Noisy(), shuffle=True, **options)
    for _ in range(2):
        batches = contents(expected)
        assert contents(threads) == batches
        found = list(processes)
        assert contents(found) == batches
        pids = {pid for _, _, made_by in found for pid in made_by.tolist()}
        assert os.getpid() not in pids
        assert len(workers()) == (2 if options.get("persistent_workers") else 0)
    del processes
    assert not workers()


def test_persistent_workers_stay_and_are_replaced_when_one_is_gone():
    kept = loader(Noisy(), persistent_workers=True)
    first = contents(kept)
    before = {worker.pid for worker in workers()}
    assert contents(kept) != first  # the noise is another in each epoch
    assert {worker.pid for worker in workers()} == before
    os.kill(min(before), signal.SIGKILL)
    for worker in workers():
        if worker.pid == min(before):
            worker.join(10)
    assert len(contents(kept)) == 6
    assert not {worker.pid for worker in workers()} & before


def test_an_exception_arrives_with_its_traceback():
    batches = iter(loader(Broken("known")))
    assert [next(batches)[0].tolist() for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(KeyError, match="sample 13 is broken") as raised:
        next(batches)
    notes = "\n".join(raised.value.__notes__)
    assert "loaded samples [12, 13, 14, 15] of Broken" in notes
    assert "in worker process" in notes and 'raise (OwnError(13, "is broken")' in notes
    assert not workers()


def test_an_exception_that_cannot_be_sent_arrives_as_another():
    with pytest.raises(RuntimeError, match="OwnError: 13: is broken") as raised:
        list(loader(Broken("own")))
    assert "__getitem__" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("how", "message"),
    [("signal", "was killed by SIGKILL, as when memory"), ("exit", "exit code 3")],
)
def test_a_process_that_is_gone_is_an_error(how, message):
    with pytest.raises(RuntimeError, match="DataLoader: worker process [01] .*" + message):
        list(loader(Killed(how)))
    assert not workers()


def test_a_process_that_is_gone_before_its_job_leaves_nothing_behind():
    """No frame that holds the job's buffer: if that goes in a cycle, Python 3.13 complains."""
    processes = WorkerProcesses(abs, 1)
    (worker,) = workers()
    worker.kill()
    worker.join(10)
    with pytest.raises(RuntimeError, match="was killed by SIGKILL") as raised:
        processes(-3)
    assert isinstance(raised.value.__cause__, OSError) and raised.value.__cause__.__traceback__ is None
    processes.stop()


def test_workers_are_prepared():
    found = list(loader(Settings(), worker_init_fn=process_datasets.note_number))
    threads, numbers = ({n for batch in found for n in batch[i].tolist()} for i in (1, 2))
    assert threads == {1} and numbers <= {0, 1} and len(numbers) >= 1
    drawn = [x for batch in found for x in batch[3].flatten().tolist()]
    assert len(set(drawn)) == len(drawn)  # no two processes draw the same numbers
    for kind in ("thread", "process"):
        with pytest.raises(ValueError, match="worker_init_fn is broken"):
            list(loader(Noisy(), worker_type=kind, worker_init_fn=process_datasets.fail))


def test_threads_are_prepared():
    numbers = []
    list(loader(Noisy(), worker_type="thread", num_workers=3, worker_init_fn=numbers.append))
    assert sorted(numbers) == list(range(len(numbers))) and 1 <= len(numbers) <= 3


def test_an_early_end_does_not_wait_for_what_is_being_loaded():
    start = time.monotonic()
    for batch in loader(Endless(), batch_size=1):
        assert batch.shape == (1,)
        break
    batches = iter(loader(Endless(), batch_size=1))
    next(batches)
    assert len(workers()) == 2
    batches.close()
    assert not workers() and time.monotonic() - start < 500  # a sample takes 1000 s


def test_what_cannot_be_sent_is_refused():
    class Local(Noisy):
        pass

    with pytest.raises(RuntimeError, match=r"cannot be sent to a process .*Local.*at the top of a module"):
        list(loader(Local()))
    assert not workers()


def test_bad_arguments():
    with pytest.raises(ValueError, match="worker_type is 'thread' or 'process', got 'fiber'"):
        loader(Noisy(), worker_type="fiber")
    with pytest.raises(ValueError, match="an IterableDataset is read by a thread"):
        loader(IterableDataset())


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("context", ["forkserver", "fork"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_program(sent, context):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True, "text": True}
    command = [sys.executable, "-W", "ignore", process_datasets.__file__, context]
    with subprocess.Popen(command, **options) as program:
        pid = int(program.stdout.readline())
        assert is_running(pid)
        if sent == signal.SIGINT:
            os.killpg(program.pid, sent)  # as a terminal does
        else:
            program.kill()
        _, errors = program.communicate(timeout=300)
    assert sent == signal.SIGKILL or errors.rstrip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 60
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(pid)
