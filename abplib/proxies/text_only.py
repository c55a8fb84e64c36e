"""The place of an edit by its spatial term alone: chapter 2's answer that sees no image.

What "leftmost" means for a box is learned from samples with exact boxes. What a proxy knows beyond
that, it has from the picture.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import torch

from abplib.core.boxes import center_distance, iou
from abplib.samples.base import SampleSet
from abplib.samples.words import SPATIAL, classify

NAME = "text_only"
"""What rows of the sweep call this answer."""

_BOX = ["x1", "y1", "x2", "y2"]


def spatial_term(instruction: str) -> str:
    """The spatial words of an instruction, in order: "second left"; empty where it has none.

    Which words are spatial says the rule of `abplib.samples.words`.
    """
    words = re.findall(r"\w+|[^\w\s]", instruction)
    classes = zip(words, classify(words), strict=True)
    return " ".join(word.lower() for word, kind in classes if kind == SPATIAL)


def rows(learned_from: SampleSet, evaluation: SampleSet, n: int) -> pd.DataFrame:
    """The answers to the first `n` evaluation samples: rows as in `Sweep.samples`, and known.

    An answer is the mean of the exact boxes that go with the sample's spatial term in
    `learned_from`, whose centre is the mean centre. Where the term does not occur there, `known` is
    False and the answer is the mean of all boxes.
    """
    learned = _terms(learned_from, len(learned_from))
    asked = _terms(evaluation, n)
    means = learned.groupby("term")[_BOX].mean()
    found = means.reindex(asked["term"]).fillna(learned[_BOX].mean())
    answers, exact = (torch.tensor(part.to_numpy()) for part in (found, asked[_BOX]))
    overlap = iou(answers, exact).numpy()
    return pd.DataFrame(
        {
            "configuration": NAME,
            "sample_id": asked["sample_id"],
            **dict(zip(_BOX, answers.numpy().T, strict=True)),
            "center_error": center_distance(answers, exact).numpy(),
            "iou": overlap,
            "acc50": (overlap >= 0.5).astype(float),
            "known": asked["term"].isin(means.index),
        }
    )


def _terms(samples: SampleSet, n: int) -> pd.DataFrame:
    """Of the first `n` samples: sample_id, term, and the exact box."""
    chosen = [samples[index] for index in range(n)]
    boxes = np.array([sample.box for sample in chosen], dtype=float)
    return pd.DataFrame(boxes, columns=_BOX).assign(
        sample_id=[sample.id for sample in chosen],
        term=[spatial_term(sample.instruction) for sample in chosen],
    )
