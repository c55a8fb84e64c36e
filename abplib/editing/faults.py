"""A file for each sample, or in its place the reason why there is none: one stops no others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from abplib.core import store
from abplib.samples.base import Taken, list_faults


def waiting(files: Sequence[Path]) -> list[Path]:
    """The files that are neither made nor given up."""
    return [file for file in files if not (file.exists() or _fault(file).exists())]


def give_up(file: Path, taken: Taken) -> None:
    """Keep the sample's id and its fault in the place of its file."""
    store.write_json(_fault(file), {"sample": taken.id, "reason": taken.fault})


def made(files: Sequence[Path], whole: str) -> list[Path | None]:
    """The files, None for one that was given up; the standard error lists those with their faults.

    Args:
        files: each made or given up.
        whole: what they are files of, as a part of a sentence.

    Raises:
        AbpError: all were given up.
    """
    faults = [store.read_json(_fault(file)) for file in files if _fault(file).exists()]
    list_faults([(f["sample"], f["reason"]) for f in faults], len(files), whole, "made")
    return [file if file.exists() else None for file in files]


def _fault(file: Path) -> Path:
    return file.with_suffix(".json")
