"""Training labels of the proxies: the boxes that the VLM itself predicts (sections 4.3, A.1, B.1).

The VLM is asked, autoregressively, for the box of each training sample's edit. Answers without a
box, boxes with an area outside [0.001, 0.9] of the image, and samples that it cannot take are not
trained on; they stay in the table with the reason, so that they can be counted and read. Answers
are kept as generated: where only their parsing has changed, they are read again, not asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from abplib.core import code, store
from abplib.core.boxes import CORNERS, Box, area
from abplib.core.errors import AbpError
from abplib.core.parallel import ALL, Shard
from abplib.samples.base import SampleSet, check_number, take
from abplib.vlm.answers import boxes_in
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.grounding import QUESTION, kept_answers
from abplib.vlm.usable import check

SMALLEST, LARGEST = 0.001, 0.9
"""Areas of the boxes that are trained on, fractions of the image (B.1)."""

USABLE = ""
"""What `reason` holds where a label can be trained on."""


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
    shard: Shard = ALL,
) -> Labels:
    """Ask the encoder's own VLM for the boxes of the first `n` samples, or reuse what it said.

    Rows of the file `shipped` are taken where its key says that the same VLM made them for the
    same samples; the rest is asked as `kept_answers` does, or a shard of it.

    Raises:
        AbpError: `n` is not in 1..len(samples), or no answer can be used.
    """
    check_number(n, samples)
    key = {
        "vlm": encoder.fingerprint,
        "image_area": encoder.image_area,
        "samples": samples.fingerprint,
        "dtype": str(encoder.model.dtype),
        "repetition_penalty": encoder.repetition_penalty,
        "prompt": store.digest(QUESTION),
    }
    frame, note = _shipped(shipped, key)
    if len(frame) < n:
        said = kept_answers(encoder, samples, range(len(frame), n), shard)
        frame = pd.concat([frame, _read(said)], ignore_index=True) if len(frame) else _read(said)
    labels = Labels(frame.iloc[:n], key, note)
    if labels.usable.empty and shard == ALL:
        raise AbpError(
            f"None of the VLM's {n} answers holds a usable box ({labels.unusable}): check the "
            "model with chapter 1, or ask for more labels."
        )
    return labels


def exact_labels(encoder: ConditionEncoder, samples: SampleSet, n: int) -> Labels:
    """The samples' own exact boxes in place of the VLM's: for models that cannot answer.

    Raises:
        AbpError: `n` is not in 1..len(samples).
    """
    check_number(n, samples)
    taken = [take(samples, index, partial(check, encoder)) for index in range(n)]
    rows = [(index, name, fault, bool(fault)) for index, (name, _, fault) in enumerate(taken)]
    frame = pd.DataFrame(rows, columns=["index", "sample_id", "answer", "refused"])
    boxes = [None if sample is None else sample.box for _, sample, _ in taken]
    key = {"boxes": "exact", "samples": samples.fingerprint, "vlm": encoder.fingerprint}
    return Labels(_table(frame, boxes), key, "The labels are the samples' exact boxes.")


def _reading() -> str:
    """Hash of the code that makes boxes of answers."""
    return code.digest("import abplib.vlm.answers")


def _shipped(path: Path | None, key: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    """The rows of a file that is the key's own, and where labels come from."""
    made = "The labels were predicted in this run"
    if path is None:
        return pd.DataFrame(), f"{made}."
    if not path.exists():
        return pd.DataFrame(), f"{made}: {path.name} is not there."
    frame, made_by = store.read_parquet(path)
    told = {**key, "vlm": None} | made_by  # files from before do not name all of it
    if differing := ", ".join(name for name in key if told[name] != key[name]):
        return pd.DataFrame(), f"{made}: {path.name} is of another {differing}."
    if made_by.get("reading", _reading()) != _reading():
        frame = _read(frame.assign(refused=frame["reason"] == "refused"))
    return frame, f"The labels are those of {path.name}, made by the same VLM and samples."


def _read(said: pd.DataFrame) -> pd.DataFrame:
    """`Labels.frame` of what `kept_answers` gives."""
    answers = (
        [] if r["refused"] else boxes_in(r["answer"], (r["across"], r["down"]), cut=r["cut"])
        for r in said.to_dict("records")
    )
    return _table(said, [boxes[0] if boxes else None for boxes in answers])


def _table(rows: pd.DataFrame, boxes: Sequence[Box | None]) -> pd.DataFrame:
    """Rows with their boxes, and why one is not trained on."""
    corners = np.array([box or (np.nan,) * 4 for box in boxes], np.float64).reshape(-1, 4)
    size = area(torch.from_numpy(corners)).numpy()
    refused, none = rows["refused"].to_numpy(bool), np.isnan(size)
    reasons = {"refused": refused, "no_box": none, "too_small": size < SMALLEST}
    reasons["too_large"] = size > LARGEST
    reason = np.select(list(reasons.values()), list(reasons), USABLE)
    known = rows.drop(columns=["refused", *CORNERS], errors="ignore")
    return known.assign(**dict(zip(CORNERS, corners.T, strict=True)), reason=reason)
