"""Thirty SIGKILLs over sweep and evaluation: nothing is lost, wrong, or done twice but a batch."""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import crashing
import pytest
from crashing import Moment

Job = Callable[[Connection, Path], None]

SWEEP = {
    "train": 3,
    r"{} checkpoint\.safetensors": 2,
    "evaluate": 2,
    r"{} (model\.safetensors|config\.json)": 6,
    r"{} (curves\.parquet|done\.json|samples\.parquet)": 3,
}
"""Phases in which processes are killed, one process in each, in this order, and at how many moments
of the phase every one of them arrives, wherever those before it were killed."""

EVALUATION = {
    "edit": 3,
    r"{} \d+\.png": 3,
    "judge": 3,
    r"{} \d+-\d+\.parquet": 2,
    r"{} rows\.parquet": 2,
}

STAGES = ("half", "whole", "there")
"""How far a file has come that is being written; once through all phases for each: 30 kills."""

LONGEST_DELAY = 0.02  # seconds, about a batch's

processes = multiprocessing.get_context("forkserver")  # which imports torch and the rest once
processes.set_forkserver_preload(["abplib.experiment", "abplib.editing.runs",
                                  "abplib.proxies.sweep",
                                  "abplib.judging.scene_oracle", "lpips"])  # fmt: skip


class Death(NamedTuple):
    """When a process is killed."""

    phase: str
    """Expression that a moment's phase matches."""
    number: int
    """Which of the moments of that phase that the process comes to."""
    delay: float
    """Seconds that it works on from there; 0 to die at that very moment."""


def deaths(phases: Mapping[str, int], stage: str) -> list[Death]:
    """A random one in each phase: in the midst of the work, or where a file has come to `stage`."""
    dice = random.Random(stage)
    return [
        Death(
            phase.replace("{}", stage),
            dice.randrange(n),
            0 if "{}" in phase else dice.uniform(0, LONGEST_DELAY),
        )
        for phase, n in phases.items()
    ]


def live(job: Job, base: Path, death: Death | None = None) -> list[Moment]:
    """Run a process to its death, or to its end; the moments that it came to."""
    ours, theirs = processes.Pipe()
    process = processes.Process(target=job, args=(theirs, base))
    process.start()
    theirs.close()
    moments: list[Moment] = []
    number = 0
    with ours, suppress(EOFError, ConnectionResetError):  # where it is dead or done
        while True:
            moments.append(ours.recv())
            if death and re.fullmatch(death.phase, moments[-1].phase):
                if number == death.number:
                    if death.delay:
                        ours.send("go on")
                        time.sleep(death.delay)
                    process.kill()
                number += 1
            if not death or number <= death.number:
                ours.send("go on")
    process.join()
    assert process.exitcode == (-signal.SIGKILL if death else 0)
    return moments


def contents(base: Path) -> dict[str, bytes]:
    """Every file but the locks, without the seconds that it took."""
    found = {}
    for path in sorted(base.rglob("*")):
        if path.is_file() and path.suffix != ".lock":
            content = path.read_bytes()
            if path.name == "done.json":
                content = json.dumps({**json.loads(content), "seconds": 0}).encode()
            found[str(path.relative_to(base))] = content
    return found


def redone(lives: Sequence[Sequence[Moment]], phases: Sequence[str]) -> list[set[str]]:
    """Batches that each process began although one before it had begun them."""
    begun: set[str] = set()
    again = []
    for moments in lives:
        batches = {moment.batch for moment in moments if moment.phase in phases}
        again.append(batches & begun)
        begun |= batches
    return again


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken sweep."""
    base = tmp_path_factory.mktemp("swept")
    live(crashing.sweeping, base)
    return base


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken evaluation."""
    base = tmp_path_factory.mktemp("evaluated")
    live(crashing.evaluating, base)
    return base


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_sweep_is_the_unbroken_one(swept: Path, tmp_path: Path, stage: str) -> None:
    dying = [*deaths(SWEEP, stage), None]
    lives = [live(crashing.sweeping, tmp_path, death) for death in dying]
    assert contents(tmp_path) == contents(swept)
    assert all(len(batches) <= 1 for batches in redone(lives, ["train"]))


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_evaluation_is_the_unbroken_one(
    evaluated: Path, tmp_path: Path, stage: str
) -> None:
    dying = [*deaths(EVALUATION, stage), None]
    lives = [live(crashing.evaluating, tmp_path, death) for death in dying]
    assert contents(tmp_path) == contents(evaluated)
    assert all(len(batches) <= 1 for batches in redone(lives, ["edit", "judge"]))


def test_that_is_thirty_kills() -> None:
    """`live` sees to it that each of them was one."""
    assert len(STAGES) * (len(SWEEP) + len(EVALUATION)) == 30
