"""People's verdicts on the VLM's boxes, and how far raters agree.

Their verdicts on edits come in as a judge: `abplib.judging.jury`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from abplib.core.errors import AbpError
from abplib.core.stats import fleiss_kappa
from abplib.judging.human.labels import (
    BOX_FAILURES,
    JUDGE_BOX,
    JUDGE_EDIT,
    YES,
    Label,
    decided,
    grouped,
    read_labels,
)
from abplib.judging.human.tasks import boxes_to_judge
from abplib.samples.base import SampleSet

ACCURATE, WRONG_OBJECT = "accurate", BOX_FAILURES[0]


def judged_boxes(
    answers: pd.DataFrame, samples: SampleSet, labels: Sequence[Label]
) -> pd.DataFrame:
    """Rows of `localization.ask` with people's verdicts in `accurate`, `wrong_entity`, `outcome`.

    A row without a box stays the miss that it is.

    Raises:
        AbpError: a box has no label, or as many raters say yes as no.
    """
    by_box = grouped(labels, JUDGE_BOX)
    tasks = boxes_to_judge(samples, answers)
    verdicts = [decided(by_box.get(task.key, [])) for task in tasks]
    if open_ := [task.item for task, v in zip(tasks, verdicts, strict=True) if v is None]:
        raise AbpError(
            f"{len(open_)} of {len(tasks)} boxes are not judged, or with as many yes as no (sample "
            f"{open_[0]} first): have them labelled."
        )
    judged = answers.copy()
    rows = judged.index[judged["answered"]]
    decisions = [v for v in verdicts if v is not None]
    judged.loc[rows, "outcome"] = [ACCURATE if v.yes else v.kind for v in decisions]
    judged["accurate"] = judged["outcome"] == ACCURATE
    judged["wrong_entity"] = judged["outcome"] == WRONG_OBJECT
    return judged


def by_people(answers: pd.DataFrame, samples: SampleSet, labels_file: Path | None) -> pd.DataFrame:
    """`judged_boxes` with a profile's file of labels; the rows as they are where it has none."""
    if labels_file is None:
        return answers
    return judged_boxes(answers, samples, read_labels(labels_file))


def agreement(labels: Sequence[Label]) -> pd.DataFrame:
    """How far raters agree, a row for each step that two or more raters judged.

    Columns: step, raters, questions (that all of these raters answered), agreement (part of the
    pairs of raters that agree) and kappa (Fleiss').
    """
    rows = []
    for step in (JUDGE_BOX, JUDGE_EDIT):
        groups = grouped(labels, step).values()
        n_raters = len({label.rater for group in groups for label in group})
        shared = [group for group in groups if len(group) == n_raters]
        n_yes = np.array([sum(label.answer == YES for label in group) for group in shared])
        if n_raters > 1 and shared:
            n_no = n_raters - n_yes
            pairs = n_raters * (n_raters - 1)
            agreeing = float(((n_yes * (n_yes - 1) + n_no * (n_no - 1)) / pairs).mean())
            kappa = fleiss_kappa(np.stack([n_yes, n_no], axis=1))
            rows.append((step, n_raters, len(shared), agreeing, kappa))
    return pd.DataFrame(rows, columns=["step", "raters", "questions", "agreement", "kappa"])
