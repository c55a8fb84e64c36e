"""Work side by side on CPU cores: a thread a core, rather than all cores on one small operation.

A miniature's operations are too short to be worth splitting; whole batches are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")

_READERS = 4
"""Threads that prepare images for a GPU."""


def at_once(device: torch.device | str) -> int:
    """How many jobs `side_by_side` has under way: torch's threads on a CPU, else one."""
    return torch.get_num_threads() if torch.device(device).type == "cpu" else 1


def side_by_side(
    job: Callable[[In], Out], items: Sequence[In], device: torch.device | str = "cpu"
) -> Iterator[Out]:
    """`job` of each item, in order, `at_once(device)` at a time.

    Side by side, each job has one of torch's threads; it must not change what another reads. A
    thread does not inherit torch's modes (`no_grad` and the like): a job enters its own.

    Raises:
        What a job raises, in its turn.
    """
    threads, n = torch.get_num_threads(), min(at_once(device), len(items))
    if n < 2:
        yield from map(job, items)
        return
    with ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield from pool.map(job, items)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def streamed(
    job: Callable[[In], Out], stream: Iterator[In], device: torch.device | str = "cpu"
) -> Iterator[Out]:
    """`side_by_side` of a stream, from which no more is taken than can be under way at once."""
    while some := list(islice(stream, at_once(device))):
        yield from list(side_by_side(job, some, device))


def ahead(
    job: Callable[[In], Out], items: Sequence[In], device: torch.device | str = "cpu"
) -> Iterator[Out]:
    """`job` of each item, in order, the next ones being done in threads while one is used.

    A GPU is kept busy by several threads; beside work on the CPU itself, one is enough.
    """
    n = 1 if torch.device(device).type == "cpu" else _READERS
    with ThreadPoolExecutor(n) as pool:
        waiting: deque[Future[Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(job, item))
                if len(waiting) > n:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
