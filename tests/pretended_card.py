"""A card without a card: for tests of all that happens on one but its kernels, which the simulator runs."""

from types import SimpleNamespace

import numpy as np


class CardArray(np.ndarray):
    """An array of the card: for minigrad not of NumPy's type, as CuPy's are not; for the simulator it is."""


def _on_card(x):
    return x.view(CardArray) if isinstance(x, np.ndarray) else x


class PretendedCard:
    """CuPy's part of a card, played by NumPy; kernels given such arrays run on the simulator."""

    ndarray = CardArray

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
        return np.array(array, dtype).view(CardArray)

    @staticmethod
    def asnumpy(array):
        return np.array(array)

    def __getattr__(self, name):
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found
        return lambda *args, **options: _on_card(found(*args, **options))
