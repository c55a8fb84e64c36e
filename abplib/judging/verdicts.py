"""Verdicts and distances of Table 1's edits, made once and kept per method, one row a sample.

They are written batch by batch, so that a killed evaluation goes on where it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm import tqdm

from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.editing.methods import label
from abplib.judging.base import Judge
from abplib.judging.preservation import Preservation
from abplib.paper import VQA
from abplib.samples.base import SampleSet

VERDICTS = ("success", "failure", "edit", "accuracy", "leakage", "reason")
"""Columns that a judge gives; see `judges.base.Judgement`."""

_BATCH = 32
"""Samples judged together: what a killed run loses at most."""


def judged(
    files: Mapping[str, Sequence[Path]],
    samples: SampleSet,
    judge: Judge,
    preservation: Preservation,
    *,
    base: Path | None = None,
) -> pd.DataFrame:
    """Verdicts and distances of the edits of some methods: one row a method and sample.

    What is not on disk yet is judged sample by sample, all methods together, which spares the judge
    most of its work. Columns: method, index, sample_id, those of `VERDICTS`, those of
    `Preservation.rows`.
    """
    places = {
        name: store.folder(
            "verdicts",
            base=base,
            edits=[made[0].parent.name, len(made)],
            judge=judge.fingerprint,
            preservation=preservation.fingerprint,
            samples=samples.fingerprint,
        )
        for name, made in files.items()
    }
    verdicts = {name: place / "rows.parquet" for name, place in places.items()}
    parts = {name: _parts(places[name], len(made)) for name, made in files.items()}
    with store.alone((base or paths.results()) / "verdicts"):  # chapters judge the same edits
        missing = {name: made for name, made in files.items() if not verdicts[name].exists()}
        _judge(missing, parts, samples, judge, preservation)
        for name in missing:
            whole = pd.concat([store.read_parquet(part)[0] for part in parts[name]])
            store.write_parquet(verdicts[name], whole)
        for part in itertools.chain(*parts.values()):
            part.unlink(missing_ok=True)
    found = [store.read_parquet(path)[0].assign(method=name) for name, path in verdicts.items()]
    rows = pd.concat(found, ignore_index=True)
    rows["failure"] = rows["failure"].astype(object).where(rows["failure"].notna(), None)
    return rows[["method", *rows.columns.drop("method")]]


def _parts(place: Path, n: int) -> list[Path]:
    """Files that hold the verdicts on `n` edits until all are there, one for `_BATCH` samples."""
    starts = range(0, n, _BATCH)
    return [place / f"{start:04d}-{min(start + _BATCH, n):04d}.parquet" for start in starts]


def _judge(
    files: Mapping[str, Sequence[Path]],
    parts: Mapping[str, Sequence[Path]],
    samples: SampleSet,
    judge: Judge,
    preservation: Preservation,
) -> None:
    """Write the missing parts of some methods.

    Where one method lacks a part, all of them are judged: who is judged together decides the last
    bit of a distance.
    """
    longest = max(map(len, files.values()), default=0)
    with tqdm(total=longest, desc="judging edits", mininterval=5, disable=None) as progress:
        for number, start in enumerate(range(0, longest, _BATCH)):
            batch = range(start, min(start + _BATCH, longest))
            made = {name: parts[name][number] for name in files if number < len(parts[name])}
            if all(part.exists() for part in made.values()):
                progress.update(len(batch))
                continue
            rows = []
            for index in batch:
                there = {name: edits[index] for name, edits in files.items() if index < len(edits)}
                rows.append(_rows(there, index, samples, judge, preservation))
                progress.update()
            found = pd.concat(rows)
            for name, part in made.items():
                store.write_parquet(part, found[found["method"] == name].drop(columns="method"))


def _rows(
    files: Mapping[str, Path],
    index: int,
    samples: SampleSet,
    judge: Judge,
    preservation: Preservation,
) -> pd.DataFrame:
    """Verdicts and distances of the methods' edits of one sample."""
    sample, edits = samples[index], [_read(path) for path in files.values()]
    verdicts = judge.judge(samples, index, edits)
    facts = [
        {"method": name, "index": index, "sample_id": sample.id, **asdict(verdict)}
        for name, verdict in zip(files, verdicts, strict=True)
    ]
    n = len(edits)
    kept = preservation.rows([sample.image] * n, edits, [sample.box] * n)
    return pd.concat([pd.DataFrame(facts), kept], axis=1)


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


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
