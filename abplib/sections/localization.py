"""The standalone VLM, question by question: what it answered and how often that was right.

Chapter 1, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from abplib.core import boxes, store
from abplib.core.stats import Interval, bootstrap_mean, wilson
from abplib.judging import box_accuracy
from abplib.judging.box_accuracy import MIN_COVERAGE, evaluate_box
from abplib.paper import reported
from abplib.samples.base import SampleSet, check_number
from abplib.sections.claims import Measure
from abplib.vlm import grounding, loading
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.grounding import Grounder

ACCURATE, WRONG_OBJECT, CUT, SPILLED, NO_BOX = (
    "accurate",
    "wrong object",
    "cuts the target",
    "takes in a neighbour",
    "no box",
)
OUTCOMES = (ACCURATE, WRONG_OBJECT, CUT, SPILLED, NO_BOX)
"""What can become of a question; see `outcome`."""

_FACTS = ("spatial_term", "n_objects", "layout")


def ask(
    encoder: ConditionEncoder, samples: SampleSet, n: int, *, base: Path | None = None
) -> pd.DataFrame:
    """Ask the standalone VLM for the first `n` boxes: one row a sample, kept on disk.

    Columns: index, sample_id, instruction, answer (text), x1, y1, x2, y2 (fractions of the image,
    NaN without a box), spatial_term, n_objects, layout, those of `metrics.BoxRow`, and outcome.

    Raises:
        AbpError: `n` is not in 1..len(samples).
    """
    check_number(n, samples)
    place = store.folder(
        "localization",
        base=base,
        vlm=encoder.fingerprint,
        image_area=encoder.image_area,
        dtype=str(encoder.model.dtype),
        samples=samples.fingerprint,
        n=n,
        code=store.digest_files(
            __file__, boxes.__file__, grounding.__file__, box_accuracy.__file__, loading.__file__
        ),
    )
    path = place / "rows.parquet"
    with store.alone(path):
        if not path.exists():
            store.write_parquet(path, _localize(encoder, samples, n))
    return store.read_parquet(path)[0]


def _localize(encoder: ConditionEncoder, samples: SampleSet, n: int) -> pd.DataFrame:
    asked = [samples[index] for index in range(n)]
    answers = Grounder.of(encoder).locate_samples(asked)
    rows = []
    for index, (sample, answer) in enumerate(zip(asked, answers, strict=True)):
        corners = answer.box or (np.nan,) * 4
        rows.append(
            {
                "index": index,
                "sample_id": sample.id,
                "instruction": sample.instruction,
                "answer": answer.text or answer.fault,
                **dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True)),
                **{fact: sample.facts.get(fact, "not stated") for fact in _FACTS},
                **evaluate_box(sample, answer.box),
            }
        )
    return pd.DataFrame(rows).assign(outcome=[outcome(row) for row in rows])


def outcome(row: Mapping[str, object]) -> str:
    """The first of these that is true of a row of `ask`.

    No box; accurate; the box is about another object; it holds less than 90 % of the target; it
    holds more than 20 % of another object. Every row is one of them.
    """
    if not row["answered"]:
        return NO_BOX
    if row["accurate"]:
        return ACCURATE
    if row["wrong_entity"]:
        return WRONG_OBJECT
    return CUT if float(str(row["coverage"])) < MIN_COVERAGE else SPILLED


def examples(rows: pd.DataFrame, n_accurate: int = 3) -> pd.DataFrame:
    """The rows that chapter 1 shows: chosen by rule, never by eye.

    Of the accurate ones the best, the median and the worst by IoU (evenly spaced ranks); of each
    kind of failure that occurs the one with the least IoU. Ties go to the first sample.
    """
    accurate = rows[rows["outcome"] == ACCURATE].sort_values("iou", ascending=False, kind="stable")
    ranks = np.linspace(0, len(accurate) - 1, min(n_accurate, len(accurate))).round().astype(int)
    failures = [rows[rows["outcome"] == kind] for kind in OUTCOMES if kind != ACCURATE]
    worst = [kind.sort_values("iou", kind="stable").head(1) for kind in failures]
    return pd.concat([accurate.iloc[ranks], *worst])


def rates(rows: pd.DataFrame, column: str, by: str) -> pd.DataFrame:
    """How often the Boolean `column` is true in each group, as `plots.localization.rates` reads.

    Columns label, value, low, high (Wilson, 95 %), n, note; numbers in order, words by rate.
    """
    found = []
    for label, group in rows.groupby(by, sort=True):
        rate = wilson(int(group[column].sum()), len(group))
        found.append({"label": str(label), **rate._asdict(), "note": f"n = {rate.n}"})
    frame = pd.DataFrame(found)
    if pd.api.types.is_numeric_dtype(rows[by]):
        return frame
    return frame.sort_values(["value", "n"], ascending=False, kind="stable", ignore_index=True)


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """The part that each outcome has, in the same form, in the order of `OUTCOMES`."""
    found = []
    for kind in OUTCOMES:
        count = int((rows["outcome"] == kind).sum())
        rate = wilson(count, len(rows))
        found.append({"label": kind, **rate._asdict(), "note": f"{count} of {rate.n}"})
    return pd.DataFrame(found)


def vlm_measures(rows: pd.DataFrame, seed: int) -> list[Measure]:
    """What chapter 1 reports: Wilson intervals of rates, bootstrap intervals of means.

    The centre error is that of the answers with a box; without any there is no such measure.
    """
    n, answered = len(rows), rows[rows["answered"]]

    def rate(column: pd.Series) -> Interval:
        return wilson(int(column.sum()), n)

    accuracy = reported("vlm_box_accuracy")
    overlap = bootstrap_mean(rows["iou"].to_numpy(), seed=seed)
    wrong, silent = rate(rows["wrong_entity"]), rate(~rows["answered"])
    measures = [
        Measure("vlm_box_accuracy", "accurate boxes", rate(rows["accurate"]), "fraction", accuracy),
        Measure("vlm_mean_iou", "mean IoU", overlap, "fraction"),
        Measure("vlm_acc50", "IoU of 0.5 or more", rate(rows["acc50"]), "fraction"),
        Measure("wrong_entity_rate", "wrong object", wrong, "fraction"),
        Measure("no_box_rate", "no box", silent, "fraction"),
    ]
    if len(answered):
        center = bootstrap_mean(answered["center_error"].to_numpy(), seed=seed)
        measures.append(Measure("center_error", "centre error, answered", center, "image sides"))
    return measures
