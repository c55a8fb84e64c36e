"""Verdicts and distances of Table 1's edits, kept batch by batch, so that a killed run goes on.

All methods are judged together, sample by sample, which spares the judge most of its work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.core.images import load_image
from abplib.core.store import stored
from abplib.editing.methods import label
from abplib.judging.base import Judge
from abplib.judging.preservation import COLUMNS, Preservation
from abplib.paper import VQA
from abplib.samples.base import SampleSet

VERDICTS = ("success", "failure", "edit", "accuracy", "leakage", "reason")
"""Columns that a judge gives; see `judging.base.Judgement`."""

_BATCH = 32
"""Samples judged together: what a killed run loses at most."""


def judged(
    files: Mapping[str, Sequence[Path | None]],
    samples: SampleSet,
    judge: Judge,
    preservation: Preservation,
) -> pd.DataFrame:
    """Verdicts and distances of the edits of some methods: one row a method and sample.

    What is on disk is not judged again. Columns: method, index, sample_id, those of `VERDICTS`,
    those of `Preservation.rows`; all but the first three are open where there is no edit.
    """
    places = {name: _kept(made, samples, judge, preservation) for name, made in files.items()}
    with store.alone(paths.results() / "verdicts"):  # chapters judge the same edits
        missing = [name for name, place in places.items() if store.summary_of(place) is None]
        _judge({name: files[name] for name in missing}, places, samples, judge, preservation)
        for name in missing:
            store.mark_done(places[name])
    parts = [
        store.read_parquet(part)[0].assign(method=name)
        for name, place in places.items()
        for part in sorted(place.glob("*.parquet"))
    ]
    rows = pd.concat(parts, ignore_index=True)
    rows["failure"] = rows["failure"].astype(object).where(rows["failure"].notna(), None)
    return rows[["method", *rows.columns.drop("method")]]


@stored("verdicts", lock=None)
def _kept(
    place: Path,
    edits: Sequence[Path | None],
    samples: SampleSet,
    judge: Judge,
    preservation: Preservation,
) -> None:
    """Where the rows of one method lie, which are made with those of the others."""


def _judge(
    files: Mapping[str, Sequence[Path | None]],
    places: Mapping[str, Path],
    samples: SampleSet,
    judge: Judge,
    preservation: Preservation,
) -> None:
    """Write what is missing of some methods.

    Where one lacks a part, all are judged: the company decides the last bit of a distance.
    """
    n = max(map(len, files.values()), default=0)
    for start in tqdm(range(0, n, _BATCH), "judging edits", mininterval=5, disable=None):
        parts = {name: places[name] / f"{start:04d}.parquet" for name in files}
        if all(part.exists() for part in parts.values()):
            continue
        batch = range(start, min(start + _BATCH, n))
        rows = pd.concat([_rows(files, index, samples, judge, preservation) for index in batch])
        for name, part in parts.items():
            store.write_parquet(part, rows[rows["method"] == name].drop(columns="method"))


def _rows(
    files: Mapping[str, Sequence[Path | None]],
    index: int,
    samples: SampleSet,
    judge: Judge,
    preservation: Preservation,
) -> pd.DataFrame:
    """Verdicts and distances of the methods' edits of one sample."""
    sample = samples[index]
    rows = pd.DataFrame({"method": list(files), "index": index, "sample_id": sample.id})
    made = {name: file for name, edits in files.items() if (file := edits[index]) is not None}
    if not made:
        return rows.reindex(columns=[*rows.columns, *VERDICTS, *COLUMNS])
    edits = [load_image(file) for file in made.values()]
    verdicts = pd.DataFrame([asdict(v) for v in judge.judge(samples, index, edits)])
    kept = preservation.rows(sample.image, edits, sample.box)
    return rows.merge(pd.concat([verdicts, kept], axis=1).assign(method=list(made)), how="left")


def succeeded(rows: pd.DataFrame) -> pd.Series:
    """Whether each edit of `judged` succeeds, bool, without the edits that the judge left open.

    Open are those that it refused or answered in no usable way, or that people did not decide.

    Raises:
        AbpError: all edits of a method are open.
    """
    known = rows["success"].notna()
    if mute := sorted(set(rows["method"]) - set(rows["method"][known])):
        raise AbpError(
            f"The judge says of no edit by {label(mute[0])} whether it succeeds: have the edits "
            "labelled (book/annotation.md), or take a judge that tells."
        )
    return rows["success"][known].astype(bool)


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """`judged` with one row a sample, method and metric: columns sample_id, method, metric, value.

    Scores go by Table 1's names: vqa_edit, vqa_accuracy, vqa_leakage, and vqa for their mean
    (Figure 8); success by edit_success.
    """
    names = {"edit": "vqa_edit", "accuracy": "vqa_accuracy", "leakage": "vqa_leakage"}
    numbers = rows.drop(columns=["index", "failure", "reason"])
    renamed = numbers.rename(columns=names | {"success": "edit_success"})
    renamed["vqa"] = renamed[list(VQA)].mean(axis=1)
    return renamed.astype({"edit_success": float}).melt(
        id_vars=["method", "sample_id"], var_name="metric", value_name="value"
    )
