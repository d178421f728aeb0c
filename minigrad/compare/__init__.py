"""The comparison: why GPUs speed up deep learning, on this machine, in chapters.

>>> import minigrad as mg
>>> comparison = mg.compare.run(only="matmul", quick=True)
>>> print(comparison.table())                                     # doctest: +SKIP
>>> [(r.rung, r.threads, r.rate, r.peak_share) for r in comparison]  # doctest: +SKIP
>>> comparison.chapters["ladder"].findings                        # doctest: +SKIP

On the command line it is ``minigrad compare``.
"""

from minigrad.compare.comparison import Chapter, Comparison
from minigrad.compare.measure import run
from minigrad.compare.problems import LADDERS
from minigrad.compare.recording import recorded_run
from minigrad.compare.records import Record
from minigrad.compare.timing import Effort

__all__ = ["LADDERS", "Chapter", "Comparison", "Effort", "Record", "recorded_run", "run"]
