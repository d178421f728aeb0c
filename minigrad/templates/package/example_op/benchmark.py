"""How long the kernels of example_op take: python benchmark.py"""

from minigrad.testing import bench_op, case

from example_op import example_op

if __name__ == "__main__":
    print(bench_op(example_op, [case((1000, 1000), (1000, 1000))]))
