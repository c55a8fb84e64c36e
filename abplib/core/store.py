"""Results are files: atomic writes, tidy tables, folders keyed by what made them.

Every file appears under its name complete or not at all: it is written beside its place, flushed
to the disk and renamed. A computation that is `stored` keeps its files in a folder whose name is a
hash of its arguments and of all code that it reaches, so the same inputs find the same folder and
other inputs never do. It is made `alone`: where two processes want the same, one computes and the
other waits and reads.
"""

from __future__ import annotations

import glob
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import update_wrapper
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, Generic, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError

from abplib.core import code, paths
from abplib.core.errors import AbpError

P = ParamSpec("P")
Line = TypeVar("Line", bound=BaseModel)
Lock = Callable[[Path], AbstractContextManager[None]]

_METADATA = b"abplib"
_INPUTS = "inputs.json"
_DONE = "done.json"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch path to write; on success it takes the place of `path`, else it is removed.

    Raises:
        AbpError: the file system refuses (disk full, no permission).
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except (OSError, SafetensorError) as error:  # the latter is what a full disk makes of weights
        reason = getattr(error, "strerror", None) or error
        raise AbpError(
            f"Cannot write {path} ({reason}): free some space there, or point ABP_RESULTS at "
            "another folder; what was already computed is kept."
        ) from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


@contextmanager
def alone(*places: Path) -> Iterator[None]:
    """Keep other processes from making these files or folders meanwhile: they wait.

    The first place names the lock. Look for what is to be made once inside, and write it only
    there: scratch files found on entering are removed as a killed process's, which holds nobody up.

    Raises:
        AbpError: the file system has no locks, or cannot be written.
    """
    place = places[0]
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise AbpError(
            f"Cannot lock {place} ({error}): point ABP_RESULTS at a folder on another file system."
        ) from error
    try:
        for place in places:
            _clear(place)
        yield
    finally:
        lock.release()


def _clear(place: Path) -> None:
    """Remove the scratch files of a file, or those in a folder; `folder` sees to its inputs."""
    inside = [path for path in place.rglob(".*.tmp") if not path.name.startswith(f".{_INPUTS}.")]
    for scratch in (*place.parent.glob(f".{glob.escape(place.name)}.*.tmp"), *inside):
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        AbpError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AbpError(f"{path} is missing: run the step that writes it.") from error
    except ValueError as error:
        raise AbpError(f"{path} is not readable JSON: delete it and run its step again.") from error


def write_parquet(
    path: Path, frame: pd.DataFrame, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a tidy table, atomically, with `metadata` (JSON values) in the file's own schema."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), _METADATA: json.dumps(dict(metadata or {})).encode()}
    )
    with replacing(path) as scratch:
        pq.write_table(table, scratch, compression="zstd")


def read_parquet(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a table written by `write_parquet` and its metadata.

    Raises:
        AbpError: the file is missing or is not a parquet file.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise AbpError(f"{path} is missing: run the step that writes it.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise AbpError(f"{path} is not a readable table: delete it and run again.") from error
    metadata = (table.schema.metadata or {}).get(_METADATA, b"{}")
    return table.to_pandas(), json.loads(metadata)


def read_lines(path: Path, kind: type[Line]) -> list[Line]:
    """The whole lines of a file of JSON lines, in order; none where there is no file.

    A line that a killed writer left half-written is no line; the next writer cuts it off.

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


def append_line(path: Path, line: BaseModel) -> None:
    """Add a line to a file of JSON lines; it is on the disk when this returns.

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


def digest(value: Any) -> str:
    """Sixteen hex digits that identify a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_frame(frame: pd.DataFrame) -> str:
    """Sixteen hex digits that identify a table's columns and every value in it, in order."""
    rows = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    return hashlib.sha256(repr(list(frame.columns)).encode() + rows.tobytes()).hexdigest()[:16]


def digest_files(*files: str | Path) -> str:
    """Sixteen hex digits that identify the contents of files, for instance of source code."""
    return hashlib.sha256(b"\0".join(Path(f).read_bytes() for f in files)).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        AbpError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise AbpError(f"{path} is missing: restore it, or make its row again.") from error


def digest_folder(folder: str | Path) -> str:
    """Sixteen hex digits that identify the names and contents of all files in a folder."""
    contents = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                name = path.relative_to(folder).as_posix()
                contents[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digest(contents)


def folder(step: str, *, base: Path | None = None, **inputs: Any) -> Path:
    """The folder of one computation: `<base or results>/<step>/<digest of inputs>/`.

    It is made when absent, with the inputs (JSON values) beside the results in `inputs.json`.
    """
    place = (base or paths.results()) / step / digest(inputs)
    if not (place / _INPUTS).exists():
        with alone(place / _INPUTS):
            write_json(place / _INPUTS, inputs)
    return place


def mark_done(place: Path, **summary: Any) -> None:
    """Declare the computation in `place` complete; write this last."""
    write_json(place / _DONE, summary)


def summary_of(place: Path) -> dict[str, Any] | None:
    """What `mark_done` was given for `place`, or None while the computation is unfinished."""
    return read_json(place / _DONE) if (place / _DONE).exists() else None


class Stored(Generic[P]):
    """A computation whose files are kept; see `stored`."""

    def __init__(
        self,
        compute: Callable[Concatenate[Path, P], Mapping[str, Any] | None],
        step: str,
        free: Collection[str],
        lock: Lock | None,
        without: Collection[str],
    ) -> None:
        self.compute, self.step, self.free, self.lock = compute, step, {*free, "base"}, lock
        self.without = without
        update_wrapper(self, compute)

    def place(self, *args: P.args, **kwargs: P.kwargs) -> Path:
        """Where the files for these arguments lie, or go when they are computed."""
        bound = inspect.signature(self.compute).bind(Path(), *args, **kwargs)
        bound.apply_defaults()
        _, *named = bound.arguments.items()
        keyed = {name: value for name, value in named if name not in self.free}
        inputs, types = identify(keyed)
        pieces = {code.naming(self.compute), *map(code.naming, types)}
        base = bound.arguments.get("base")
        reached = code.digest(*sorted(pieces), without=self.without)
        return folder(self.step, base=base, **inputs, code=reached)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Path:
        place = self.place(*args, **kwargs)
        if self.lock is None:
            self.compute(place, *args, **kwargs)
            return place
        with self.lock(place):
            if summary_of(place) is None:
                summary = self.compute(place, *args, **kwargs)
                if summary_of(place) is None:
                    mark_done(place, **(summary or {}))
        return place


def stored(
    step: str,
    *,
    free: Collection[str] = (),
    lock: Lock | None = alone,
    without: Collection[str] = (),
) -> Callable[[Callable[Concatenate[Path, P], Mapping[str, Any] | None]], Stored[P]]:
    """Have a function `compute(place, ...)` write its files once for the same inputs.

    The function is then called without `place` and returns it:

        @stored("flow")
        def score(place: Path, encoder: ConditionEncoder, samples: SampleSet, n: int) -> None:
            store.write_parquet(place / "tokens.parquet", ...)

        tokens, _ = store.read_parquet(score(encoder, samples, 100) / "tokens.parquet")

    The inputs are its arguments (see `identify`), and the code that its module and the classes of
    its arguments reach. It is run where it has not run to its end; what a killed run left in
    `place` is still there, for the function to go on from. What it returns is `summary_of(place)`.

    Args:
        step: of the folder, `<results>/<step>/<hash>/`.
        free: arguments that do not change what is computed (a batch size, a shard). One called
            `base` is free too, and stands for the folder of results.
        lock: keeps others out meanwhile: `alone`, or that of a group of processes. None for a
            function that several processes run at a time in one place: it is called always, makes
            what is missing, and locks file by file.
        without: files of the library (`vlm/answers.py`) that only read what is kept.
    """
    return lambda compute: Stored(compute, step, free, lock, without)


def identify(value: Any) -> tuple[Any, set[type]]:
    """A JSON value that is the same for the same input alone, and the classes it is made of.

    An object is known by its `identity` or `fingerprint`, else by the fields of a dataclass or
    pydantic model; a file or folder, an array, a tensor and a table by their contents; a class by
    its name and code.

    Raises:
        TypeError: nothing of this tells the value from others of its class.
    """
    types: set[type] = set()

    def known(value: Any) -> Any:
        for name in ("identity", "fingerprint"):
            if not isinstance(value, type) and hasattr(value, name):
                types.update(type(value).__mro__)
                return known(getattr(value, name))
        match value:
            case None | bool() | int() | float() | str():
                return value
            case type():
                types.update(value.__mro__)
                return value.__qualname__
            case Path():
                return digest_folder(value) if value.is_dir() else digest_files(value)
            case Mapping():
                return {str(key): known(inner) for key, inner in value.items()}
            case BaseModel():
                types.update(type(value).__mro__)
                return value.model_dump(mode="json")
            case pd.DataFrame():
                return digest_frame(value)
            case np.generic():
                return value.item()
            case Sequence():
                return [known(inner) for inner in value]
        if is_dataclass(value) and not isinstance(value, type):
            types.update(type(value).__mro__)
            return {field.name: known(getattr(value, field.name)) for field in fields(value)}
        if hasattr(value, "__array__"):
            array = np.asarray(value)
            told = hashlib.sha256(array.tobytes()).hexdigest()[:16]
            return [str(array.dtype), list(array.shape), told]
        if type(value).__module__ == "torch":  # a dtype
            return str(value)
        raise TypeError(f"A {type(value).__name__} has no fingerprint: {value!r:.60}")

    return known(value), types
