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

from abplib import results
from abplib.shards import Shard


def share() -> Shard:
    """The part of the group's work that falls to this process."""
    state = PartialState()
    return Shard(state.process_index + 1, state.num_processes)


def is_first() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return bool(PartialState().is_main_process)


def device() -> torch.device | str:
    """Where this process is to put a model: on its own GPU in a group, else on all there are."""
    state = PartialState()
    if state.num_processes > 1:
        return state.device
    return "auto" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Go on when every process of the group has come here."""
    PartialState().wait_for_everyone()


def add_up(tensors: Sequence[Tensor]) -> None:
    """Put the sum over the group in the place of each tensor; all of one device and dtype."""
    if PartialState().num_processes == 1:
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
            lock.enter_context(results.alone(place))
        wait()
        yield
        wait()
