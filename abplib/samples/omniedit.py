"""OmniEdit-Filtered-1.2M, what proxies are trained on (appendix B.1): which rows are taken.

The rows are chosen by the hash of their id within each task, as many of a task as it has of all
rows. So the choice depends on the seed and on nothing else: not on a shuffle buffer, nor on the
order of files. Only two columns are read for it. In whole-shard mode the shards are chosen first,
in the same way, and the rows from these: 61 of 571 hold 128,000 rows and a tenth of the 3 TB.

A location is a folder of the data set's parquet shards, or `LOCATION`, which streams from the hub.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from abplib.core import hub, store
from abplib.core.errors import AbpError

HUB_ID = "TIGER-Lab/OmniEdit-Filtered-1.2M"
REVISION = "82455c6cd66db7f0e5bfce8d7a236441af59d6df"
LOCATION = f"hf://datasets/{HUB_ID}@{REVISION}/data"
PAPER_ROWS = 128_000
"""Rows that the paper trains on."""

ID, TASK = "omni_edit_id", "task"
_SHARDS = "train-*.parquet"
_AHEAD = 2**16
"""Bytes that are read beyond what is asked for: a shard's ids lie far apart between its images."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """The chosen rows."""

    rows: pd.DataFrame
    """In the order of their hashes: shard (file name), row (in the shard), id, task."""
    recipe: dict[str, Any]
    """What decided: location, seed, n, n_shards; unusable rows by reason."""

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
        found = cls(rows, recipe)
        if found.fingerprint != wanted:
            raise AbpError(
                f"The rows of {path} have hash {found.fingerprint}, not {wanted}: choose them anew."
            )
        return found


def choose(
    location: str = LOCATION, *, n: int = PAPER_ROWS, n_shards: int | None = None, seed: int = 0
) -> Manifest:
    """Choose `n` rows, from all shards or from `n_shards` of them.

    Raises:
        AbpError: the shards cannot be reached, or hold fewer usable rows.
    """
    rows = pd.concat([_index(location, name) for name in _chosen(location, n_shards, seed)])
    usable, unusable = _usable(rows)
    if not 1 <= n <= len(usable):
        raise AbpError(
            f"{n} rows are asked for and the shards hold {len(usable)} usable ones "
            f"({unusable or 'none'} unusable): ask for fewer rows or for more shards."
        )
    usable["hash"] = [_hash(seed, name) for name in usable["id"]]
    ranked = usable.sort_values("hash", kind="stable")
    quotas = _quotas(ranked["task"].value_counts().sort_index(), n)
    place = ranked.groupby("task").cumcount()
    taken = ranked[place < ranked["task"].map(quotas)].drop(columns="hash")
    recipe = {"location": location, "seed": seed, "n": n, "n_shards": n_shards}
    return Manifest(taken.reset_index(drop=True), {**recipe, "unusable": unusable})


def _chosen(location: str, n_shards: int | None, seed: int) -> list[str]:
    """The names of the shards to read, in order."""
    with opened(location) as (system, folder):
        names = sorted(path.rsplit("/", 1)[-1] for path in system.glob(f"{folder}/{_SHARDS}"))
    if not names or (n_shards is not None and not 1 <= n_shards <= len(names)):
        raise AbpError(
            f"{location} holds {len(names)} shards {_SHARDS}: "
            + (f"ask for 1 to {len(names)}." if names else "give the folder that holds them.")
        )
    return sorted(sorted(names, key=lambda name: _hash(seed, name))[:n_shards])


def _index(location: str, name: str) -> pd.DataFrame:
    """Columns shard, row, id and task of one shard; images are not read."""
    with shard(location, name) as file:
        lacking = {ID, TASK} - set(file.schema_arrow.names)
        if lacking:
            raise AbpError(f"Shard {name} lacks the column {min(lacking)}: it is none of {HUB_ID}.")
        table = file.read(columns=[ID, TASK]).to_pandas()
    names = {ID: "id", TASK: "task"}
    return table.rename(columns=names).assign(shard=name, row=np.arange(len(table)))


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
def opened(location: str) -> Iterator[tuple[Any, str]]:
    """The file system of a location and the path in it; failures are one sentence."""
    with hub.explained(HUB_ID, "dataset"):
        system, folder = fsspec.core.url_to_fs(location)
        yield system, folder


@contextmanager
def shard(location: str, name: str) -> Iterator[pq.ParquetFile]:
    """One shard, of which only what is asked for is read.

    Raises:
        AbpError: it is not there, is damaged, or the hub cannot be reached.
    """
    with opened(location) as (system, folder):
        try:
            with system.open(f"{folder}/{name}", "rb", block_size=_AHEAD) as raw:
                yield pq.ParquetFile(raw, pre_buffer=True)
        except (pa.ArrowInvalid, FileNotFoundError) as error:
            raise AbpError(
                f"Shard {name} of {location} is missing or damaged: fetch it again."
            ) from error
