"""Work side by side on CPU cores: a thread a core, rather than all cores on one small operation.

A miniature's operations are too short to be worth splitting; whole batches are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")


def at_once(device: torch.device | str) -> int:
    """How many jobs `side_by_side` has under way: torch's threads on a CPU, else one."""
    return torch.get_num_threads() if torch.device(device).type == "cpu" else 1


def side_by_side(
    job: Callable[[In], Out], items: Sequence[In], device: torch.device | str = "cpu"
) -> Iterator[Out]:
    """`job` of each item, in order, `at_once(device)` at a time.

    Side by side, each job has one of torch's threads; it must not change what another reads. No job
    records gradients.

    Raises:
        What a job raises, in its turn.
    """

    @torch.inference_mode()  # of this thread alone, so every job enters it
    def alone(item: In) -> Out:
        return job(item)

    threads, n = torch.get_num_threads(), min(at_once(device), len(items))
    if n < 2:
        yield from map(alone, items)
        return
    with ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield from pool.map(alone, items)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
