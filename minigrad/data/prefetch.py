"""Work done ahead of its consumer, by threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import count
from typing import Any

__all__ = ["prefetch"]


def prefetch(
    function: Callable[[Any], Any],
    jobs: Iterable[Any],
    workers: int,
    ahead: int,
    init: Callable[[int], Any] | None = None,
    end: Callable[[bool], Any] | None = None,
) -> Generator[Any, None, None]:
    """``map(function, jobs)``, computed by ``workers`` threads, ``ahead`` results before they are asked for.

    Results come in the order of the jobs. An exception in ``function`` is raised where its result would have
    come, with the traceback of the worker. When the iteration ends, for that reason or because the consumer
    drops the iterator, jobs not yet begun are cancelled and the threads have ended. Each thread first calls
    ``init`` with its number. Before they are waited for, ``end`` is told whether an exception is the reason.
    """
    # Imported here: it takes a few milliseconds, and `import minigrad` has to stay quick.
    from concurrent.futures import ThreadPoolExecutor

    numbers = count()
    started = threading.local()

    def run(job: Any) -> Any:
        if init is not None and not hasattr(started, "number"):
            started.number = next(numbers)
            init(started.number)
        return function(job)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="minigrad-data")
    pending: deque[Any] = deque()
    failed = True
    try:
        for job in jobs:
            pending.append(pool.submit(run, job))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        failed = False
    except GeneratorExit:
        failed = False
        raise
    finally:
        if end is not None:
            end(failed)
        pool.shutdown(wait=True, cancel_futures=True)
