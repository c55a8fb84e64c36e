"""Training labels of the proxies: the boxes that the VLM itself predicts (sections 4.3, A.1, B.1).

The VLM is asked, autoregressively, for the box of each training sample's edit. Answers without a
box, and boxes with an area outside [0.001, 0.9] of the image, are not trained on; they stay in the
table with the reason, so that they can be counted and read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from abplib.core import store
from abplib.core.boxes import area
from abplib.core.errors import AbpError
from abplib.core.parallel import Shard
from abplib.samples.base import Sample, SampleSet, check_number
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.grounding import Grounder, Grounding

SMALLEST, LARGEST = 0.001, 0.9
"""Areas of the boxes that are trained on, fractions of the image (B.1)."""

USABLE = ""
"""What `reason` holds where a label can be trained on."""

_CHUNK = 256
"""Samples of one part file: what a killed run loses at most."""

_COORDINATES = ["x1", "y1", "x2", "y2"]


@dataclass(frozen=True, eq=False)
class Labels:
    """The VLM's boxes for the first n samples of a set."""

    frame: pd.DataFrame
    """One row a sample, in order: index, sample_id, x1, y1, x2, y2 (fractions of the image, NaN
    without a box), reason ("", refused, no_box, too_small or too_large), answer (text, where
    unusable: the VLM's, or why it could not be asked)."""
    key: dict[str, Any]
    """What made them: fingerprints of the VLM and of the sample set, pixels the VLM saw."""
    note: str
    """One sentence on where they come from."""

    @property
    def usable(self) -> pd.DataFrame:
        """The rows that proxies can be trained on."""
        return self.frame[self.frame["reason"] == USABLE]

    @property
    def unusable(self) -> dict[str, int]:
        """How many rows cannot be used, by reason."""
        reasons = self.frame["reason"]
        return {str(k): int(n) for k, n in reasons[reasons != USABLE].value_counts().items()}

    @property
    def fingerprint(self) -> str:
        """Hash of every label."""
        return store.digest_frame(self.frame)

    def ship(self, path: Path) -> None:
        """Write them to one parquet file that `predict_labels` takes as `shipped`."""
        store.write_parquet(path, self.frame, self.key)


def predict_labels(
    encoder: ConditionEncoder,
    samples: SampleSet,
    n: int,
    *,
    shipped: Path | None = None,
    base: Path | None = None,
    batch_size: int = 64,
) -> Labels:
    """Ask the encoder's own VLM for the boxes of the first `n` samples, or reuse what it said.

    Rows of the file `shipped` are taken where its key says that the same VLM made them for the
    same samples; the rest is computed in parts of 256 samples, each written as it is complete under
    `<base or results>/labels/`, so that a killed run goes on where it was and a larger `n` adds.

    Raises:
        AbpError: `n` is not in 1..len(samples), or no answer can be used.
    """
    check_number(n, samples)
    key = _key(encoder, samples)
    known, note = _shipped(shipped, key)
    place = store.folder("labels", base=base, **key)
    parts = [known]
    for chunk in _parts(len(known), n, place):
        parts.append(_part(encoder, samples, chunk, place, batch_size))
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True).iloc[:n]
    found = Labels(frame, key, note)
    if found.usable.empty:
        raise AbpError(
            f"None of the VLM's {n} answers holds a usable box ({found.unusable}): check the model "
            "with chapter 1, or ask for more labels."
        )
    return found


def predict_shard(
    encoder: ConditionEncoder,
    samples: SampleSet,
    n: int,
    shard: Shard,
    *,
    shipped: Path | None = None,
    base: Path | None = None,
    batch_size: int = 64,
) -> None:
    """Compute some of the parts that `predict_labels` puts together.

    Raises:
        AbpError: `n` is not in 1..len(samples).
    """
    check_number(n, samples)
    key = _key(encoder, samples)
    known, _ = _shipped(shipped, key)
    place = store.folder("labels", base=base, **key)
    for chunk in shard.take(list(_parts(len(known), n, place))):
        _part(encoder, samples, chunk, place, batch_size)


def exact_labels(encoder: ConditionEncoder, samples: SampleSet, n: int) -> Labels:
    """The samples' own exact boxes in place of the VLM's: for models that cannot answer.

    Raises:
        AbpError: `n` is not in 1..len(samples).
    """
    check_number(n, samples)
    rows = []
    for index in range(n):
        sample = samples[index]
        answer = Grounding("", sample.box, 1)
        rows.append(_row(index, sample, answer))
    key = {"boxes": "exact", "samples": samples.fingerprint, "vlm": encoder.fingerprint}
    return Labels(pd.DataFrame(rows), key, "The labels are the samples' exact boxes.")


def _key(encoder: ConditionEncoder, samples: SampleSet) -> dict[str, Any]:
    """`Labels.key` of the VLM's own boxes."""
    return {
        "vlm": encoder.fingerprint,
        "image_area": encoder.image_area,
        "samples": samples.fingerprint,
    }


def _shipped(path: Path | None, key: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    if path is None:
        return pd.DataFrame(), "The labels were predicted in this run."
    if not path.exists():
        return pd.DataFrame(), f"The labels were predicted in this run: {path.name} is not there."
    frame, made_by = store.read_parquet(path)
    if made_by == key:
        return frame, f"The labels are those of {path.name}, made by the same VLM and samples."
    differing = ", ".join(name for name in key if made_by.get(name) != key[name])
    return pd.DataFrame(), (
        f"The labels were predicted in this run: {path.name} is of another {differing}."
    )


def _parts(start: int, stop: int, place: Path) -> Iterator[range]:
    """The part files that make up rows start..stop: those in `place` as they are, then new ones."""
    present = {
        int(path.stem.split("-")[0]): int(path.stem.split("-")[1])
        for path in place.glob("*-*.parquet")
    }
    while start < stop:
        end = present.get(start) or min(start + _CHUNK, stop)
        yield range(start, end)
        start = end


def _part(
    encoder: ConditionEncoder, samples: SampleSet, chunk: range, place: Path, batch_size: int
) -> pd.DataFrame:
    """The rows of one part file, made where it is missing."""
    path = place / f"{chunk.start:07d}-{chunk.stop:07d}.parquet"
    with store.alone(path):
        if not path.exists():
            store.write_parquet(path, _predict(Grounder.of(encoder), samples, chunk, batch_size))
    return store.read_parquet(path)[0]


def _predict(grounder: Grounder, samples: SampleSet, chunk: range, batch_size: int) -> pd.DataFrame:
    asked = [samples[index] for index in chunk]
    answers = grounder.locate_samples(asked, batch_size=batch_size)
    rows = [
        _row(index, sample, answer)
        for index, sample, answer in zip(chunk, asked, answers, strict=True)
    ]
    return pd.DataFrame(rows)


def _row(index: int, sample: Sample, answer: Grounding) -> dict[str, Any]:
    reason = _reason(answer)
    return {
        "index": index,
        "sample_id": sample.id,
        **dict(zip(_COORDINATES, answer.box or [float("nan")] * 4, strict=True)),
        "reason": reason,
        "answer": "" if reason == USABLE else answer.text or answer.fault,
    }


def _reason(answer: Grounding) -> str:
    if answer.box is None:
        return "refused" if answer.fault else "no_box"
    size = float(area(torch.tensor(answer.box, dtype=torch.float64)))
    return "too_small" if size < SMALLEST else "too_large" if size > LARGEST else USABLE
