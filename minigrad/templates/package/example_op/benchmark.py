"""How long the kernels of example_op take: python benchmark.py"""

from timeit import repeat

import minigrad as mg

from example_op import example_op


def measure():
    """Print the time of each CPU kernel for a million elements, the best of five."""
    x, y = mg.randn(1000, 1000), mg.randn(1000, 1000)
    for name in ("reference", "cython"):
        with mg.use_kernel("example_op", name, "cpu"):
            times = repeat(lambda: example_op(x, y), number=1)
        print(f"{name:9} {1000 * min(times):8.2f} ms")


if __name__ == "__main__":
    measure()
