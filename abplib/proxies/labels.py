"""Training labels of the proxies: the boxes that the VLM itself predicts (sections 4.3, A.1, B.1).

The VLM is asked, autoregressively, for the box of each training sample's edit. Answers without a
box, boxes with an area outside [0.001, 0.9] of the image, and samples that it cannot take are not
trained on; they stay in the table with the reason, so that they can be counted and read. Answers
are kept as generated: where only their parsing has changed, they are read again, not asked again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from abplib.core import code, store
from abplib.core.boxes import CORNERS, area
from abplib.core.errors import AbpError
from abplib.core.parallel import ALL, Shard
from abplib.samples.base import SampleSet, check_number, take
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.grounding import QUESTION, Grounder, Grounding
from abplib.vlm.usable import check

SMALLEST, LARGEST = 0.001, 0.9
"""Areas of the boxes that are trained on, fractions of the image (B.1)."""

USABLE = ""
"""What `reason` holds where a label can be trained on."""

_CHUNK = 256
"""Samples of one part file: what a killed run loses at most."""

_READING = ("core/boxes.py", "vlm/answers.py", "proxies/labels.py")
"""What makes boxes of answers."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The VLM's boxes for the first n samples of a set."""

    frame: pd.DataFrame
    """One row a sample, in order: index, sample_id, x1, y1, x2, y2 (fractions of the image, NaN
    without a box), reason ("", no_box, too_small, too_large or refused), answer (text, or why the
    sample was refused), across, down and cut (`Grounding.frame` and `cut`, to read it again)."""
    key: dict[str, Any]
    """What made them: VLM, pixels it saw, dtype, prompt and sample set."""
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
        """Hash of what is trained on, and of how much is not."""
        return store.digest_frame(self.frame[["index", *CORNERS, "reason"]])

    def ship(self, path: Path) -> None:
        """Write them to one parquet file that `predict_labels` takes as `shipped`."""
        store.write_parquet(path, self.frame, {**self.key, "reading": _reading()})


def predict_labels(
    encoder: ConditionEncoder,
    samples: SampleSet,
    n: int,
    *,
    shipped: Path | None = None,
    base: Path | None = None,
) -> Labels:
    """Ask the encoder's own VLM for the boxes of the first `n` samples, or reuse what it said.

    Rows of the file `shipped` are taken where its key says that the same VLM made them for the
    same samples; the rest is computed in parts of 256 samples, each written as it is complete under
    `<base or results>/labels/`, so that a killed run goes on where it was and a larger `n` adds.

    Raises:
        AbpError: `n` is not in 1..len(samples), or no answer can be used.
    """
    key = _key(encoder, samples)
    known, note = _shipped(shipped, key)
    parts = [known, *_parts(encoder, samples, len(known), n, key, base)]
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
) -> None:
    """Compute some of the parts that `predict_labels` puts together.

    Raises:
        AbpError: `n` is not in 1..len(samples).
    """
    key = _key(encoder, samples)
    for _ in _parts(encoder, samples, len(_shipped(shipped, key)[0]), n, key, base, shard):
        pass


def exact_labels(encoder: ConditionEncoder, samples: SampleSet, n: int) -> Labels:
    """The samples' own exact boxes in place of the VLM's: for models that cannot answer.

    Raises:
        AbpError: `n` is not in 1..len(samples).
    """
    check_number(n, samples)
    taken = (take(samples, index, partial(check, encoder)) for index in range(n))
    rows = [
        _row(index, name, Grounding("", sample.box if sample else None, 1, fault))
        for index, (name, sample, fault) in enumerate(taken)
    ]
    key = {"boxes": "exact", "samples": samples.fingerprint, "vlm": encoder.fingerprint}
    return Labels(pd.DataFrame(rows), key, "The labels are the samples' exact boxes.")


def _key(encoder: ConditionEncoder, samples: SampleSet) -> dict[str, Any]:
    """`Labels.key` of the VLM's own boxes."""
    return {
        "vlm": encoder.fingerprint,
        "image_area": encoder.image_area,
        "samples": samples.fingerprint,
        "dtype": str(encoder.model.dtype),
        "prompt": store.digest(QUESTION),
    }


def _reading() -> str:
    """Hash of the code that makes boxes of answers."""
    return code.digest("import abplib.vlm.answers")


def _shipped(path: Path | None, key: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    if path is None:
        return pd.DataFrame(), "The labels were predicted in this run."
    if not path.exists():
        return pd.DataFrame(), f"The labels were predicted in this run: {path.name} is not there."
    frame, made_by = store.read_parquet(path)
    told = {**key, "vlm": None} | made_by  # files from before name neither dtype nor prompt
    if differing := ", ".join(name for name in key if told[name] != key[name]):
        return pd.DataFrame(), (
            f"The labels were predicted in this run: {path.name} is of another {differing}."
        )
    note = f"The labels are those of {path.name}, made by the same VLM and samples."
    return _read(frame, made_by.get("reading")), note


def _parts(
    encoder: ConditionEncoder,
    samples: SampleSet,
    start: int,
    stop: int,
    key: dict[str, Any],
    base: Path | None,
    shard: Shard = ALL,
) -> Iterator[pd.DataFrame]:
    """Rows start..stop from part files: those that are there as they are, then new ones."""
    check_number(stop, samples)
    asking = ["import abplib.vlm.grounding", code.naming(type(encoder.adapter))]
    place = store.folder("labels", base=base, **key, code=code.digest(*asking, without=_READING))
    present = dict(map(_range, place.glob("*-*.parquet")))
    chunks = []
    while start < stop:
        end = present.get(start) or min(start + _CHUNK, stop)
        chunks.append(range(start, end))
        start = end
    for chunk in shard.take(chunks):
        path = place / f"{chunk.start:07d}-{chunk.stop:07d}.parquet"
        with store.alone(path):
            if not path.exists():
                rows = _ask(Grounder.of(encoder), samples, chunk)
                store.write_parquet(path, rows, {"reading": _reading()})
        frame, made_by = store.read_parquet(path)
        yield _read(frame, made_by["reading"])


def _range(path: Path) -> tuple[int, int]:
    start, _, end = path.stem.partition("-")
    return int(start), int(end)


def _ask(grounder: Grounder, samples: SampleSet, chunk: range) -> pd.DataFrame:
    taken = [take(samples, index) for index in chunk]
    answers = iter(grounder.locate_samples([sample for _, sample, _ in taken if sample]))
    return pd.DataFrame(
        _row(index, name, next(answers) if sample else Grounding("", None, 0, fault))
        for index, (name, sample, fault) in zip(chunk, taken, strict=True)
    )


def _read(frame: pd.DataFrame, reading: str | None) -> pd.DataFrame:
    """The rows with their answers read anew, where other code read them and they are kept."""
    if reading in (None, _reading()):
        return frame
    rows = []
    for row in frame.to_dict("records"):
        if row["reason"] == "refused":
            said = Grounding("", None, 0, row["answer"])
        else:
            said = Grounding.read(row["answer"], (row["across"], row["down"]), cut=row["cut"])
        rows.append(_row(row["index"], row["sample_id"], said))
    return pd.DataFrame(rows)


def _row(index: int, sample_id: str, answer: Grounding) -> dict[str, Any]:
    return {
        "index": index,
        "sample_id": sample_id,
        **dict(zip(CORNERS, answer.box or [float("nan")] * 4, strict=True)),
        "reason": _reason(answer),
        "answer": answer.fault or answer.text,
        "across": answer.frame[0],
        "down": answer.frame[1],
        "cut": answer.cut,
    }


def _reason(answer: Grounding) -> str:
    if answer.fault:
        return "refused"
    size = float(area(torch.tensor(answer.box or [float("nan")] * 4, dtype=torch.float64)))
    if size != size:  # not a number: there is no box, or it is not known
        return "no_box"
    return "too_small" if size < SMALLEST else "too_large" if size > LARGEST else USABLE
