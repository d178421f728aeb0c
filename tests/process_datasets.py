"""Data sets that worker processes can import, for tests/test_dataloader_processes.py."""

import os
import signal
import sys
import time

import numpy as np

import minigrad as mg
from minigrad.data import DataLoader, Dataset, sample_random


class Noisy(Dataset):
    """Sample i is (i, noise, the process that made it)."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        time.sleep(0.002 * (index * 7 % 3))  # so that workers finish out of order
        return index, sample_random().standard_normal(3), os.getpid()


class OwnError(Exception):
    def __init__(self, index, why):  # two arguments, so that pickle cannot make it again
        super().__init__(f"{index}: {why}")


class Broken(Noisy):
    def __init__(self, error):
        self.error = error

    def __getitem__(self, index):
        if index == 13:
            raise (OwnError(13, "is broken") if self.error == "own" else KeyError("sample 13 is broken"))
        return super().__getitem__(index)


class Killed(Noisy):
    """Ends the process that loads sample 13, if it is a worker."""

    def __init__(self, how):
        self.how = how

    def __getitem__(self, index):
        if index == 13:
            os.kill(os.getpid(), signal.SIGKILL) if self.how == "signal" else os._exit(3)
        return super().__getitem__(index)


class Settings(Noisy):
    """What stands in a worker's own process."""

    def __getitem__(self, index):
        return index, mg.get_num_threads(), int(os.environ.get("WORKER_NUMBER", -1)), mg.rand(1)


class Endless(Noisy):
    def __getitem__(self, index):
        if index:
            time.sleep(1000)
        return np.array(os.getpid())


def note_number(number):
    os.environ["WORKER_NUMBER"] = str(number)


def fail(number):
    raise ValueError("worker_init_fn is broken")


if __name__ == "__main__":  # python process_datasets.py: loads for ever, and says in which processes
    signal.signal(signal.SIGINT, signal.default_int_handler)  # started from a job in the background, too
    options = {"worker_type": "process", "multiprocessing_context": sys.argv[1]}
    for batch in DataLoader(Endless(), num_workers=2, **options):
        print(batch.item(), flush=True)
