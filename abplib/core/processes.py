"""Processes that train together (`accelerate launch`): each takes its part of every batch.

One process on its own is a group of one, for which all of this is done at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, distributed

from abplib.core import store
from abplib.core.shards import Shard


def _state() -> PartialState:
    """Accelerate's, which without GPUs makes a group only where it is told to use the CPU."""
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
    together = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(together)
    for tensor, total in zip(tensors, together.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def gathered(items: list[Any]) -> list[Any]:
    """The items of all processes, process by process."""
    found: list[Any] = gather_object(items)
    return found


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """`results.alone` for the group: other groups wait, and this one enters and leaves together."""
    with ExitStack() as lock:
        if is_first():
            lock.enter_context(store.alone(place))
        wait()
        yield
        wait()
