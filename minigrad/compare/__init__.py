"""The comparison: what each step up the ladders of kernels brings, on this machine.

>>> import minigrad as mg
>>> comparison = mg.compare.run(only="matmul", quick=True)
>>> print(comparison.table())                                     # doctest: +SKIP
>>> [(r.rung, r.threads, r.rate, r.peak_share) for r in comparison]  # doctest: +SKIP

On the command line it is ``minigrad compare``.
"""

from minigrad.compare.measure import Effort, run
from minigrad.compare.problems import LADDERS
from minigrad.compare.records import Comparison, Record

__all__ = ["LADDERS", "Comparison", "Effort", "Record", "run"]
