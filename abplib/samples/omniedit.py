"""OmniEdit-Filtered-1.2M, what proxies are trained on (appendix B.1): rows chosen, fetched, read.

Whole shards are taken in the order of their names' hashes until they hold enough rows: 61 of 571
hold 128,000, a tenth of the 3 TB. Their rows are chosen by the hash of their id within each task,
as many of a task as it has of these. So the choice depends on the seed and on nothing else: not on
a shuffle buffer, nor on the order of rows. Only two columns are read for it.

A location is a folder of the data set's parquet shards, or `LOCATION`, which streams from the hub.
A shard's chosen rows become one Arrow file on this disk, whose images are read in place; a stopped
fetch goes on with the next shard. Edited images are not fetched: proxies learn from sources.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from abplib.core import hub, paths, store
from abplib.core.errors import AbpError
from abplib.core.images import load_image
from abplib.samples.base import Sample

HUB_ID = "TIGER-Lab/OmniEdit-Filtered-1.2M"
REVISION = "82455c6cd66db7f0e5bfce8d7a236441af59d6df"
LOCATION = f"hf://datasets/{HUB_ID}@{REVISION}/data"
FOLDER = "runs/omniedit"
"""Where the profile `paper` looks for the rows, in the checkout."""
MANIFEST = "manifest.parquet"
PAPER_ROWS = 128_000
"""Rows that the paper trains on."""

_ID, _TASK, _IMAGE, _PROMPTS = "omni_edit_id", "task", "src_img", "edited_prompt_list"
_COLUMNS = {
    _ID: r"(large_)?string",
    _TASK: r"(large_)?string",
    _IMAGE: r"struct<(.*, )?bytes: (large_)?binary\b.*>",
    _PROMPTS: r"(large_)?list<\w+: (large_)?string( not null)?>",
}
"""Arrow types that the columns may have."""
_SHARDS = "train-*.parquet"
_AHEAD = 2**16
"""Bytes that are read beyond what is asked for: a shard's ids lie far apart between its images."""
_SCHEMA = pa.schema(
    [("id", pa.string()), ("task", pa.string()), ("instruction", pa.string()),
     ("image", pa.binary()), ("reason", pa.string())]
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Manifest:
    """The chosen rows."""

    rows: pd.DataFrame
    """In the order of their hashes: shard (file name), row (in the shard), id, task."""
    recipe: dict[str, Any]
    """What decided: location, seed, n; unusable rows by reason."""

    @property
    def fingerprint(self) -> str:
        """Hash of ids and their order, wherever the shards lie."""
        return store.digest(self.rows["id"].tolist())

    def save(self, path: Path) -> None:
        """Write it to a parquet file, with the recipe and the hash."""
        store.write_parquet(path, self.rows, {**self.recipe, "fingerprint": self.fingerprint})

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read what `save` wrote.

        Raises:
            AbpError: there is no such file, or the rows are not those of its hash.
        """
        rows, recipe = store.read_parquet(path)
        wanted = recipe.pop("fingerprint", None)
        manifest = cls(rows, recipe)
        if manifest.fingerprint != wanted:
            raise AbpError(
                f"The rows of {path} have hash {manifest.fingerprint}, not {wanted}: choose them "
                "anew."
            )
        return manifest


def choose(
    location: str = LOCATION, *, n: int = PAPER_ROWS, seed: int = 0, kept: Path | None = None
) -> Manifest:
    """Choose `n` rows from as many shards as hold them.

    What was read of a shard is kept in the folder `kept`, so that a stopped choice goes on there.

    Raises:
        AbpError: the shards cannot be reached, or hold fewer usable rows.
    """
    index = None if kept is None else kept / "index" / store.digest(location)
    rows, read = pd.DataFrame(), []
    usable, unusable = rows, dict[str, int]()
    for name in _shards(location, seed):
        read.append(_index(location, name, index))
        rows = pd.concat(read)
        usable, unusable = _usable(rows)
        if len(usable) >= n:
            break
    if not 1 <= n <= len(usable):
        raise AbpError(
            f"{n} rows are asked for and the shards hold {len(usable)} usable ones "
            f"({unusable or 'none'} unusable): ask for fewer rows."
        )
    usable["hash"] = [_hash(seed, name) for name in usable["id"]]
    ranked = usable.sort_values("hash", kind="stable")
    quotas = _quotas(ranked["task"].value_counts().sort_index(), n)
    place = ranked.groupby("task").cumcount()
    taken = ranked[place < ranked["task"].map(quotas)].drop(columns="hash")
    recipe = {"location": location, "seed": seed, "n": n, "unusable": unusable}
    return Manifest(taken.reset_index(drop=True), recipe)


def _shards(location: str, seed: int) -> list[str]:
    """The names of the shards, in the order in which they are taken."""
    with _opened(location) as (system, folder):
        names = sorted(path.rsplit("/", 1)[-1] for path in system.glob(f"{folder}/{_SHARDS}"))
    if not names:
        raise AbpError(f"{location} holds no shards {_SHARDS}: give the folder that holds them.")
    return sorted(names, key=lambda name: _hash(seed, name))


def _index(location: str, name: str, place: Path | None) -> pd.DataFrame:
    """Columns shard, row, id and task of one shard; images are not read."""
    if place is not None and (place / name).exists():
        return store.read_parquet(place / name)[0]
    with _shard(location, name) as file:
        table = file.read(columns=[_ID, _TASK]).to_pandas()
    names = {_ID: "id", _TASK: "task"}
    rows = table.rename(columns=names).assign(shard=name, row=np.arange(len(table)))
    if place is not None:
        store.write_parquet(place / name, rows)
    return rows


def _usable(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows with an id of their own and a task; how many others, by reason."""
    no_id = rows["id"].isna() | (rows["id"] == "")
    no_task = ~no_id & (rows["task"].isna() | (rows["task"] == ""))
    repeated = ~no_id & ~no_task & rows.duplicated("id")
    counts = {"no_id": no_id.sum(), "no_task": no_task.sum(), "repeated_id": repeated.sum()}
    kept = rows.loc[~(no_id | no_task | repeated), ["shard", "row", "id", "task"]]
    return kept.reset_index(drop=True), {name: int(k) for name, k in counts.items() if k}


def _quotas(sizes: pd.Series[int], n: int) -> dict[str, int]:
    """How many rows of each task: in proportion, the largest remainders rounded up."""
    shares = sizes / sizes.sum() * n
    quotas = shares.astype(int)
    rest = n - int(quotas.sum())
    up = (shares - quotas).sort_values(ascending=False, kind="stable").index[:rest]
    quotas[up] += 1
    return {str(task): int(quota) for task, quota in quotas.items()}


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


@contextmanager
def _opened(location: str) -> Iterator[tuple[Any, str]]:
    """The file system of a location and the path in it; failures are one sentence."""
    with hub.explained(HUB_ID, "dataset"):
        system, folder = fsspec.core.url_to_fs(location)
        yield system, folder


@contextmanager
def _shard(location: str, name: str) -> Iterator[pq.ParquetFile]:
    """One shard, of which only what is asked for is read.

    Raises:
        AbpError: it is not there, is damaged or of another form, or the hub cannot be reached.
    """
    with _opened(location) as (system, folder):
        try:
            with (
                hub.explained(HUB_ID, "dataset"),
                system.open(f"{folder}/{name}", "rb", block_size=_AHEAD) as raw,
            ):
                file = pq.ParquetFile(raw, pre_buffer=True)
                _check_columns(name, file.schema_arrow)
                yield file
        except AbpError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise AbpError(
                f"Shard {name} of {location} is missing or damaged: fetch it again."
            ) from error


def _check_columns(name: str, schema: pa.Schema) -> None:
    for column, form in _COLUMNS.items():
        if column not in schema.names:
            raise AbpError(f"Shard {name} lacks the column {column}: it is none of {HUB_ID}.")
        kind = str(schema.field(column).type)
        if not re.fullmatch(form, kind):
            raise AbpError(
                f"Column {column} of shard {name} holds {kind} values: it is none of {HUB_ID}."
            )


def fetch(manifest: Manifest, folder: Path, log: Callable[[str], None]) -> None:
    """Bring the chosen rows to `folder`, with the manifest; what is there is not read again.

    Raises:
        AbpError: a shard cannot be read, `folder` holds another choice, or the disk is full.
    """
    path = folder / MANIFEST
    if path.exists() and Manifest.load(path).fingerprint != manifest.fingerprint:
        raise AbpError(f"{folder} holds another choice of rows: delete it or give another folder.")
    manifest.save(path)
    for name, chosen in manifest.rows.groupby("shard", sort=True):
        place = _file(folder, str(name))
        if not place.exists():
            rows = list(_rows(manifest.recipe["location"], str(name), set(chosen["row"])))
            _write(place, rows)
            bad = sum(bool(row["reason"]) for row in rows)
            log(f"{name}: {len(rows) - bad} rows, {bad} unusable")


@dataclass(frozen=True, eq=False)
class OmniEdit:
    """A `SampleSet` of fetched rows, in the order of the manifest, unusable ones left out.

    There are no boxes in OmniEdit: those of the samples are not known (nan), and the VLM labels.
    """

    folder: Path

    @property
    def name(self) -> str:
        """As figures call it."""
        return "OmniEdit"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the usable ids and their order."""
        return store.digest(self._rows["id"].tolist())

    @cached_property
    def unusable(self) -> dict[str, int]:
        """How many fetched rows cannot be used, by reason."""
        reasons = self._fetched["reason"]
        return {str(k): int(n) for k, n in reasons[reasons != ""].value_counts().items()}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, its image read from the disk."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, none has index {index}")
        row = self._rows.iloc[index]
        record = self._tables[row["shard"]].slice(int(row["place"]), 1).to_pylist()[0]
        image = load_image(record["image"])
        facts = {"task": record["task"]}
        return Sample(record["id"], image, record["instruction"], (float("nan"),) * 4, facts=facts)

    @cached_property
    def _tables(self) -> dict[str, pa.Table]:
        """Each shard's rows, mapped into memory."""
        names = Manifest.load(self.folder / MANIFEST).rows["shard"].unique()
        tables = {}
        for name in sorted(names):
            file = _file(self.folder, name)
            if not file.exists():
                raise AbpError(
                    f"The rows of {name} are not in {self.folder}: run `abp omniedit` to fetch "
                    "the rest."
                )
            tables[name] = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        return tables

    @cached_property
    def _fetched(self) -> pd.DataFrame:
        """id, reason, shard, place (in the shard's file) of every fetched row, by the manifest."""
        parts = []
        for name, table in self._tables.items():
            part = table.select(["id", "reason"]).to_pandas()
            parts.append(part.assign(shard=name, place=range(len(part))))
        order = Manifest.load(self.folder / MANIFEST).rows["id"]
        return pd.concat(parts).set_index("id").loc[order].reset_index()

    @cached_property
    def _rows(self) -> pd.DataFrame:
        return self._fetched[self._fetched["reason"] == ""].reset_index(drop=True)


def training() -> OmniEdit:
    """The rows in `FOLDER`.

    Raises:
        AbpError: none were fetched.
    """
    folder = paths.root() / FOLDER
    if not (folder / MANIFEST).is_file():
        raise AbpError(f"There are no rows of OmniEdit in {folder}: run `abp omniedit`.")
    return OmniEdit(folder)


def _rows(location: str, name: str, wanted: set[int]) -> Iterator[dict[str, Any]]:
    """The wanted rows of a shard; only the row groups that hold one are read."""
    start = 0
    with _shard(location, name) as file:
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            inside = sorted(row - start for row in wanted if start <= row < stop)
            if inside:
                table = file.read_row_group(group, columns=[_ID, _TASK, _IMAGE, _PROMPTS])
                yield from map(_row, table.take(inside).to_pylist())
            start = stop


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """A row as it is kept; one that cannot be used has a reason and no image."""
    prompts = [text.strip() for text in record[_PROMPTS] or () if text and text.strip()]
    image = (record[_IMAGE] or {}).get("bytes") or b""
    reason = _reason(image, prompts)
    return {
        "id": record[_ID],
        "task": record[_TASK],
        "instruction": prompts[0] if prompts else "",
        "image": b"" if reason else image,
        "reason": reason,
    }


def _reason(image: bytes, prompts: list[str]) -> str:
    if not prompts:
        return "no_instruction"
    if not image:
        return "no_image"
    try:
        load_image(image)
    except AbpError:
        return "unreadable_image"
    return ""


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, _SCHEMA)
    with (
        store.replacing(path) as scratch,
        pa.OSFile(str(scratch), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
    ):
        writer.write_table(table, max_chunksize=1)


def _file(folder: Path, shard_name: str) -> Path:
    return folder / Path(shard_name).with_suffix(".arrow").name
