"""People's verdicts on the VLM's boxes, and how far raters agree.

Their verdicts on edits come in as a judge: `abplib.judging.jury`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from statistics import mean

import pandas as pd
import torch

from abplib.core.boxes import iou
from abplib.core.errors import AbpError
from abplib.core.stats import cohen_kappa, fleiss_kappa
from abplib.judging.human.labels import (
    BOX_FAILURES,
    DRAW_BOX,
    JUDGE_BOX,
    JUDGE_EDIT,
    NO,
    YES,
    Label,
    Step,
    decided,
    grouped,
    read_labels,
)
from abplib.judging.human.tasks import boxes_to_judge
from abplib.samples.base import SampleSet

ACCURATE, WRONG_OBJECT = "accurate", BOX_FAILURES[0]


def judged_boxes(
    answers: pd.DataFrame, samples: SampleSet, labels: Iterable[Label]
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


def agreement(labels: Iterable[Label]) -> pd.DataFrame:
    """How far raters agree, one row a step that two or more raters did.

    Columns: step, raters, questions (that all of these raters answered), agreement (part of the
    pairs of raters that agree; of drawn boxes, their mean IoU), kappa (Cohen's of two raters,
    Fleiss' of more, on yes and no; NaN of drawn boxes).
    """
    every = list(labels)
    rows = []
    for step in (DRAW_BOX, JUDGE_BOX, JUDGE_EDIT):
        raters = sorted({label.rater for label in every if label.step == step})
        shared = [
            sorted(group, key=lambda label: label.rater)
            for group in grouped(every, step).values()
            if len(group) == len(raters)
        ]
        if len(raters) > 1 and shared:
            rows.append(_agreement(step, raters, shared))
    return pd.DataFrame(rows, columns=["step", "raters", "questions", "agreement", "kappa"])


def _agreement(step: Step, raters: list[str], shared: list[list[Label]]) -> dict[str, object]:
    """One row; each group of `shared` holds one label of each rater, in the order of `raters`."""
    pairs = [pair for group in shared for pair in combinations(group, 2)]
    if step == DRAW_BOX:
        boxes = torch.tensor([[a.box, b.box] for a, b in pairs])
        agreeing, kappa = float(iou(boxes[:, 0], boxes[:, 1]).mean()), math.nan
    else:
        agreeing = mean(a.answer == b.answer for a, b in pairs)
        given = [[str(label.answer) for label in group] for group in shared]
        if len(raters) == 2:
            kappa = cohen_kappa([a for a, _ in given], [b for _, b in given], (YES, NO))
        else:
            kappa = fleiss_kappa([[answers.count(a) for a in (YES, NO)] for answers in given])
    return {
        "step": step,
        "raters": len(raters),
        "questions": len(shared),
        "agreement": float(agreeing),
        "kappa": kappa,
    }
