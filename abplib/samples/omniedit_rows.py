"""Rows of OmniEdit on this disk: fetched shard by shard, read as samples, labelled by the VLM.

A shard's chosen rows become one Arrow file, whose images are read in place; a stopped fetch goes on
with the next shard. Edited images are not fetched: proxies learn from sources and instructions.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.core.images import load_image
from abplib.proxies.labels import Labels
from abplib.samples.base import Sample
from abplib.samples.omniedit import ID, TASK, Manifest, shard

FOLDER = "runs/omniedit"
"""Where the profile `paper` looks for the rows, in the checkout."""
MANIFEST = "manifest.parquet"

_IMAGE, _PROMPTS = "src_img", "edited_prompt_list"
_SCHEMA = pa.schema(
    [("id", pa.string()), ("task", pa.string()), ("instruction", pa.string()),
     ("image", pa.binary()), ("reason", pa.string())]
)  # fmt: skip
_UNKNOWN = (float("nan"),) * 4


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
        image = load_image(Image.open(io.BytesIO(record["image"])))
        facts = {"task": record["task"]}
        return Sample(record["id"], image, record["instruction"], _UNKNOWN, facts=facts)

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


def write_labels(labels: Labels, path: Path) -> None:
    """Write what the VLM answered to a JSONL file, one row a line, missing boxes as null."""
    lines = []
    for row in labels.frame.to_dict("records"):
        box = [row.pop(side) for side in ("x1", "y1", "x2", "y2")]
        row["box"] = None if pd.isna(box).any() else box
        lines.append(json.dumps(row))
    store.write_text(path, "\n".join(lines) + "\n")


def _rows(location: str, name: str, wanted: set[int]) -> Iterator[dict[str, Any]]:
    """The wanted rows of a shard; only the row groups that hold one are read."""
    start = 0
    with shard(location, name) as file:
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            inside = sorted(row - start for row in wanted if start <= row < stop)
            if inside:
                table = file.read_row_group(group, columns=[ID, TASK, _IMAGE, _PROMPTS])
                yield from map(_row, table.take(inside).to_pylist())
            start = stop


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """A row as it is kept; one that cannot be used has a reason and no image."""
    prompts = [text.strip() for text in record[_PROMPTS] or () if text and text.strip()]
    image = (record[_IMAGE] or {}).get("bytes") or b""
    reason = _reason(image, prompts)
    return {
        "id": record[ID],
        "task": record[TASK],
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
        Image.open(io.BytesIO(image)).load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
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
