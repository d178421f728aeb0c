"""A card without a card: for tests of all that happens on one but its kernels, which the simulator runs."""

from types import SimpleNamespace

import numpy as np


class PretendedCard:
    """CuPy's part of a card, played by NumPy; kernels given NumPy arrays run on the simulator."""

    def __init__(self):
        idle = SimpleNamespace(synchronize=lambda: None)
        properties = {
            "name": b"Pretended",
            "major": 9,
            "minor": 0,
            "multiProcessorCount": 132,
            "totalGlobalMem": 8 << 30,
            "l2CacheSize": 32 << 20,
        }
        self.cuda = SimpleNamespace(
            Device=lambda index: idle,
            get_current_stream=lambda: idle,
            runtime=SimpleNamespace(getDeviceProperties=lambda index: properties),
        )

    @staticmethod
    def asarray(array, dtype=None, blocking=False):
        return np.array(array, dtype)

    @staticmethod
    def asnumpy(array):
        return np.array(array)

    def __getattr__(self, name):
        return getattr(np, name)
