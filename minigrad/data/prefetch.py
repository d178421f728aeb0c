"""Work done ahead of its consumer, by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["prefetch"]


def prefetch(function: Callable[[Any], Any], jobs: Iterable[Any], workers: int, ahead: int) -> Iterator[Any]:
    """``map(function, jobs)``, computed by ``workers`` threads, ``ahead`` results before they are asked for.

    Results come in the order of the jobs. An exception in ``function`` is raised where its result would have
    come, with the traceback of the worker. When the iteration ends, for that reason or because the consumer
    drops the iterator, jobs not yet begun are cancelled and the threads have ended.
    """
    # Imported here: it takes a few milliseconds, and `import minigrad` has to stay quick.
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(workers, thread_name_prefix="minigrad-data")
    pending: deque[Any] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(function, job))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
