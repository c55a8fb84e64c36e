"""Stages with files between them: each row is made once, kept at once, and can be read.

A stage writes `<name>.jsonl`, one row for each row of the stage before that can be used, and
`<name>.json`, what it was made with. A stopped stage goes on after its last row. A row that could
not be made has a `reason`; it stays in the file, is counted, and goes no further.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict

from abplib.core import store
from abplib.core.boxes import Box
from abplib.core.errors import AbpError


class Row(BaseModel):
    """What every row has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    reason: str = ""
    """Why the row cannot be used; empty where it can."""


class Pair(Row):
    """A scene with one odd object, and the edit that makes it like the others."""

    generation: str
    edit: str


class Structure(Row):
    """A scene as the JSON that FIBO is made for."""

    prompt: str = ""
    answer: str
    """As the model wrote it."""


class Picture(Row):
    """An image that a model made."""

    file: str = ""
    """Relative to the folder of the data set."""
    sha256: str = ""
    """Of the file."""
    seed: int


class Reversal(Row):
    """The edit turned round: from the uniform image to the one with the odd object."""

    source: str
    target: str


class Instruction(Row):
    """The spatial instruction for a reversed edit."""

    instruction: str = ""
    answer: str
    """As the model wrote it."""


class Boxed(Row):
    """The VLM's box of a reversed edit (A.1)."""

    box: Box | None = None
    """Fractions of the source."""
    answer: str


class Verified(Row):
    """What people made of a sample."""

    box: Box | None = None
    """Drawn or confirmed, fractions of the source."""
    raters: int
    """How many said something."""


In = TypeVar("In")
Out = TypeVar("Out", bound=Row)


def run(
    folder: Path,
    name: str,
    items: Mapping[str, In],
    kind: type[Out],
    make: Callable[[str, In], Out],
    settings: Mapping[str, Any],
    log: Callable[[str], None],
) -> list[Out]:
    """Make the missing rows of a stage, one for each of `items` by id; all its rows.

    Raises:
        AbpError: the stage's file was made with other settings, or as `make` does.
    """
    check_settings(folder, name, settings)
    path = folder / f"{name}.jsonl"
    done = {row.id for row in store.read_lines(path, kind)}
    for row_id, item in items.items():
        if row_id not in done:
            store.append_line(path, make(row_id, item))
    rows = store.read_lines(path, kind)
    log(f"{name}: {summary(rows)}")
    return rows


def check_settings(folder: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Keep what a stage is made with; refuse to go on with anything else."""
    path = folder / f"{name}.json"
    if not path.exists():
        store.write_json(path, dict(settings))
    elif (before := store.read_json(path)) != dict(settings):
        differing = ", ".join(k for k in settings if before.get(k) != settings[k])
        raise AbpError(
            f"Stage {name} in {folder} was begun with another {differing}: go on with that, or "
            "give another folder."
        )


def usable(folder: Path, name: str, kind: type[Out]) -> dict[str, Out]:
    """The rows of a stage that can be used, by id.

    Raises:
        AbpError: there is none.
    """
    found = {r.id: r for r in store.read_lines(folder / f"{name}.jsonl", kind) if not r.reason}
    if not found:
        raise AbpError(f"Stage {name} in {folder} has no usable rows: run it first.")
    return found


def summary(rows: Sequence[Row]) -> str:
    """How many rows can be used, how many cannot, by reason, and what is left of them at most."""
    reasons = Counter(row.reason for row in rows)
    usable = reasons.pop("", 0)
    bad = "".join(f", {n} {reason}" for reason, n in sorted(reasons.items()))
    return f"{usable} usable{bad}; at most {usable // 2} are left to evaluate"


def keep_picture(folder: Path, file: str, image: Image.Image) -> str:
    """Write an image as PNG; the hash of its file."""
    with store.replacing(folder / file) as scratch:
        image.convert("RGB").save(scratch, format="png")
    return store.file_hash(folder / file)
