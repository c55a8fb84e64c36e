"""The standalone VLM, asked for boxes: what it answered and how often that was right.

Section 4.1, chapter 1. A row is a sample. What is kept depends on no editor and no judge of edits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from abplib.core import store
from abplib.core.boxes import CORNERS
from abplib.judging.base import WRONG_OBJECT
from abplib.judging.box_accuracy import MIN_COVERAGE, evaluate_box
from abplib.paper import numbers
from abplib.samples.base import SampleSet, check_number
from abplib.sections.estimates import estimate, measure
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.grounding import Grounder

ACCURATE, CUT, SPILLED, NO_BOX = "accurate", "cuts the target", "takes in a neighbour", "no box"
BOX_OUTCOMES = (ACCURATE, WRONG_OBJECT, CUT, SPILLED, NO_BOX)
"""What can become of a question; see `box_outcome`."""

_FACTS = ("spatial_term", "n_objects", "layout")
_ROWS = "rows.parquet"


def ask(encoder: ConditionEncoder, samples: SampleSet, n: int) -> pd.DataFrame:
    """Ask the standalone VLM for the first `n` boxes: one row a sample, kept on disk.

    Columns: index, sample_id, instruction, answer (text), x1, y1, x2, y2 (fractions of the image,
    NaN without a box), spatial_term, n_objects, layout, those of `box_accuracy.BoxRow`, and
    outcome, one of `BOX_OUTCOMES`.

    Raises:
        AbpError: `n` is not in 1..len(samples).
    """
    check_number(n, samples)
    return store.read_parquet(_asked(encoder, samples, n) / _ROWS)[0]


@store.stored("localization")
def _asked(place: Path, encoder: ConditionEncoder, samples: SampleSet, n: int) -> None:
    shown = [samples[index] for index in range(n)]
    answers = Grounder(encoder).locate_samples(shown, range(n))
    rows = []
    for index, (sample, (_, answer)) in enumerate(zip(shown, answers, strict=True)):
        corners = answer.box or (np.nan,) * 4
        scores: dict[str, Any] = {**evaluate_box(sample, answer.box)}
        rows.append(
            {
                "index": index,
                "sample_id": sample.id,
                "instruction": sample.instruction,
                "answer": answer.text or answer.fault,
                **dict(zip(CORNERS, corners, strict=True)),
                **{fact: sample.facts.get(fact, "not stated") for fact in _FACTS},
                **scores,
                "outcome": box_outcome(scores),
            }
        )
    store.write_parquet(place / _ROWS, pd.DataFrame(rows))


def box_outcome(row: Mapping[str, Any]) -> str:
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
    return CUT if row["coverage"] < MIN_COVERAGE else SPILLED


def vlm_numbers(answers: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What chapter 1 reports of the VLM, as `estimates` has it.

    The centre error is that of the answers with a box; without any there is no such number.
    """
    given = answers["answered"]
    columns = {
        "vlm_box_accuracy": ("accurate boxes", answers["accurate"]),
        "vlm_mean_iou": ("mean IoU", answers["iou"]),
        "vlm_acc50": ("IoU of 0.5 or more", answers["acc50"]),
        "wrong_entity_rate": ("wrong object", answers["wrong_entity"]),
        "no_box_rate": ("no box", ~given),
        "center_error": ("centre error, answered", answers["center_error"][given]),
    }
    units, paper = {"center_error": "image sides"}, numbers()
    return pd.DataFrame(
        measure(name, label, estimate(column, seed), units.get(name, "fraction"), paper.get(name))
        for name, (label, column) in columns.items()
        if len(column)
    )


def examples(answers: pd.DataFrame, n_accurate: int = 3) -> pd.DataFrame:
    """The answers that chapter 1 shows: chosen by rule, never by eye.

    Of the accurate ones the best, the median and the worst by IoU (evenly spaced ranks); of each
    kind of failure that occurs the one with the least IoU. Ties go to the first sample.
    """
    ordered = answers.sort_values("iou", ascending=False, kind="stable")
    accurate = ordered[ordered["outcome"] == ACCURATE]
    ranks = np.linspace(0, len(accurate) - 1, min(n_accurate, len(accurate))).round().astype(int)
    kinds = [answers[answers["outcome"] == kind] for kind in BOX_OUTCOMES if kind != ACCURATE]
    worst = [kind.sort_values("iou", kind="stable").head(1) for kind in kinds]
    return pd.concat([accurate.iloc[ranks], *worst])
