"""What the benchmarks share: ways that take turns, medians and spreads, memory, the machine."""

from __future__ import annotations

import os
import platform
import random
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers

from abplib.core.store import write_json

Way = Callable[[], object]
"""One way of doing the work."""
Key = TypeVar("Key", bound=Hashable)
T = TypeVar("T")

CLOCKS = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
"""The clock on the wall, and the time of this process on all cores: others disturb that less."""

RESULTS = Path(__file__).parent / "results"


def spent(way: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What one go returns, and what it takes by each of `CLOCKS`; a GPU's queue is waited for."""
    _wait()
    before = {name: clock() for name, clock in CLOCKS.items()}
    made = way()
    _wait()
    return made, {name: clock() - before[name] for name, clock in CLOCKS.items()}


def take_turns(ways: Mapping[Key, Way], repeats: int) -> dict[Key, dict[str, list[float]]]:
    """What each go of each way took, by way and clock, turn by turn.

    In every turn each way goes once, in random order, so that what else the machine does falls on
    all alike and none always follows the same other. A turn before the first warms up.
    """
    order = list(ways)
    taken: dict[Key, dict[str, list[float]]] = {key: {c: [] for c in CLOCKS} for key in order}
    shuffle = random.Random(0).shuffle
    for turn in range(repeats + 1):
        shuffle(order)
        for key in order:
            _, found = spent(ways[key])
            if turn:
                for clock, value in found.items():
                    taken[key][clock].append(value)
    return taken


def peak_mib(way: Way, device: str = "cpu") -> float:
    """The most memory that one go takes, in MiB.

    On a CPU that is the largest resident set of a fork of this process, interpreter and weights
    included; measure it before this process has done such work itself and kept memory of it, and
    with one thread, since a fork has no other. On a GPU it is what torch has given out.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        way()
        return torch.cuda.max_memory_allocated() / 2**20
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # or torch would wait for threads that a fork does not have
            way()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise RuntimeError(f"the process whose memory was measured ended with status {status}")
    return usage.ru_maxrss / 1024


def quartiles(numbers: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median, and the quartiles as `low` and `high`."""
    low, median, high = (float(f"{q:.5g}") for q in np.quantile(numbers, [0.25, 0.5, 0.75]))
    return {"median": median, "low": low, "high": high}


def summary(values: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Quartiles of n values, and of the ratio to another way's value in the same turn."""
    ratio = quartiles(np.array(values) / np.array(base))
    return {**quartiles(values), "n": len(values), "ratio": ratio}


def compared(
    taken: Mapping[Key, Mapping[str, Sequence[float]]], base: Key
) -> dict[Key, dict[str, Any]]:
    """`summary` of what ways took, by way and measure, over the way called `base`."""
    return {
        key: {measure: summary(values, taken[base][measure]) for measure, values in found.items()}
        for key, found in taken.items()
    }


def machine(device: str = "cpu") -> dict[str, Any]:
    """What kind of computer this is, and the versions of what ran on it."""
    return {
        "processor": _processor(),
        **({} if device == "cpu" else {"gpu": torch.cuda.get_device_name()}),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write(name: str, found: Mapping[str, Any]) -> None:
    """Write what was found to `results/<name>.json` and say where it is."""
    path = RESULTS / f"{name}.json"
    write_json(path, found)
    print(f"{path.relative_to(RESULTS.parent.parent)} written")


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _processor() -> str:
    """What the system calls its processor."""
    listed = Path("/proc/cpuinfo")
    for line in listed.read_text().splitlines() if listed.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
