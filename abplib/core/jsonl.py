"""Files of JSON lines that only grow: each line is on the disk before its writer goes on.

A line that a killed writer left half-written is no line: readers pass it over, and the next writer
cuts it off.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from abplib.core.errors import AbpError

Line = TypeVar("Line", bound=BaseModel)


def read(path: Path, kind: type[Line]) -> list[Line]:
    """The whole lines of a file, in order; none where there is no file.

    Raises:
        AbpError: the file cannot be read, or a line of it is none of this kind.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AbpError(f"{path} cannot be read ({error.strerror}): check it.") from error
    lines = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            lines.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise AbpError(
                f"Line {number} of {path} is no {kind.__name__.lower()}: restore the file, or take "
                "that line out."
            ) from error
    return lines


def append(path: Path, line: BaseModel) -> None:
    """Add a line; it is on the disk when this returns.

    Raises:
        AbpError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            _cut_half_line(file)
            file.write(line.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise AbpError(
            f"Cannot write {path} ({error.strerror}): free some space there, or choose another "
            "folder; the lines before are kept."
        ) from error


def _cut_half_line(file: BinaryIO) -> None:
    """Shorten a file that is open for appending to the end of its last whole line."""
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
