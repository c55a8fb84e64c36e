"""Work done side by side: by threads of a process, by processes of a group, by jobs of a cluster.

A miniature's operations are too short to be split over CPU cores; whole batches are, a thread a
core. Processes that train together (`accelerate launch`) each take their part of every batch; one
on its own is a group of one, for which all of this is done at once. Jobs take shards of a step.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from abplib.core import store
from abplib.core.errors import AbpError

if TYPE_CHECKING:  # importing them takes seconds, which the command line need not cost
    import torch
    from accelerate import PartialState
    from torch import Tensor

In = TypeVar("In")
Out = TypeVar("Out")

_READERS = 4
"""Threads that prepare images for a GPU."""


def at_once(device: torch.device | str) -> int:
    """How many jobs `side_by_side` has under way: torch's threads on a CPU, else one."""
    import torch

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
    import torch

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
    import torch

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


class Shard(NamedTuple):
    """One of `of` parts of some work, counted from 1; by default all of it."""

    number: int = 1
    of: int = 1

    @classmethod
    def read(cls, text: str) -> Shard:
        """The shard called `text`, such as `2-of-4`.

        Raises:
            AbpError: there is no such shard.
        """
        match = re.fullmatch(r"(\d+)-of-(\d+)", text)
        shard = cls(*map(int, match.groups())) if match else cls(0)
        if not 1 <= shard.number <= shard.of:
            raise AbpError(f"There is no shard {text!r}: give one such as 2-of-4.")
        return shard

    def take(self, parts: Sequence[In]) -> Sequence[In]:
        """Every `of`-th of the parts: all shards together take each part once."""
        return parts[self.number - 1 :: self.of]


ALL = Shard()
"""All of the work."""


def _state() -> PartialState:
    """Accelerate's, which without GPUs makes a group only where it is told to use the CPU.

    cuDNN is kept to convolutions that give the same sums each time.
    """
    import torch
    from accelerate import PartialState

    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return PartialState(cpu=not torch.cuda.is_available())


def share() -> Shard:
    """The part of the group's work that falls to this process."""
    state = _state()
    return Shard(state.process_index + 1, state.num_processes)


def is_first() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return bool(_state().is_main_process)


def device() -> torch.device | str:
    """Where this process is to put a model: on its own GPU in a group, else on all there are."""
    import torch

    if _state().num_processes > 1:
        return own_device()
    return "auto" if torch.cuda.is_available() else "cpu"


def own_device() -> torch.device:
    """The one GPU that is this process's own, or the CPU."""
    found: torch.device = _state().device
    return found


def wait() -> None:
    """Go on when every process of the group has come here."""
    _state().wait_for_everyone()


def add_up(tensors: Sequence[Tensor]) -> None:
    """Put the sum over the group in the place of each tensor; all of one device and dtype."""
    if _state().num_processes == 1:
        return
    import torch
    from torch import distributed

    together = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(together)
    for tensor, total in zip(tensors, together.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def gathered(items: list[Any]) -> list[Any]:
    """The items of all processes, process by process."""
    from accelerate.utils import gather_object

    found: list[Any] = gather_object(items)
    return found


def made(folder: Path, make: Callable[[], object]) -> Path:
    """The folder, which `make` makes, whole or not at all, where it is not there.

    In a group the first process does, and the others wait for it: transformers saves from no other.
    """
    while not is_first() and not folder.exists():
        time.sleep(0.1)
    with store.alone(folder):
        if not folder.exists():
            make()
    return folder


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """`store.alone` for the group: other groups wait, and this one enters and leaves together."""
    with ExitStack() as lock:
        if is_first():
            lock.enter_context(store.alone(place))
        wait()
        yield
        wait()
