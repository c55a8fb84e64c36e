"""Boxes beside exact ones, and what answers score that look at no picture."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from abplib.core.boxes import CORNERS, center_distance, iou
from abplib.samples.base import SampleSet
from abplib.samples.words import SPATIAL, classify

TEXT_ONLY = "text_only"
"""What rows call the answers `by_term`."""

_SCORES = ["center_error", "iou", "acc50"]
_DRAWS = 256
"""Training boxes that chance answers for each evaluation sample."""


def scored(
    name: str, ids: Sequence[object], boxes: Tensor, exact: Tensor, seed: int = 0
) -> pd.DataFrame:
    """How near boxes [B, 4] come to the exact ones [B, 4], a row a sample.

    Columns: configuration, which is `name`; seed (what no proxy answers has one, 0); sample_id; x1,
    y1, x2, y2; center_error, in sides of the image; iou; acc50, 1 where iou >= 0.5.
    """
    overlap = iou(boxes, exact).double().numpy()
    return pd.DataFrame(
        {
            "configuration": name,
            "seed": seed,
            "sample_id": list(ids),
            **dict(zip(CORNERS, boxes.double().numpy().T, strict=True)),
            "center_error": center_distance(boxes, exact).double().numpy(),
            "iou": overlap,
            "acc50": (overlap >= 0.5).astype(float),
        }
    )


def baselines(ids: Sequence[str], exact: Tensor, trained: Tensor, seed: int) -> pd.DataFrame:
    """`scored` answers that need no states of a VLM.

    `chance` answers the training box of another sample: means over 256 seeded draws for each of
    the exact boxes [n, 4]. `centre_prior` answers a box in the middle of the image, as wide and as
    high as the training boxes [m, 4] are on average.
    """
    draws = np.random.default_rng(seed).integers(len(trained), size=(len(exact), _DRAWS))
    answers = trained[torch.from_numpy(draws)].flatten(0, 1)
    drawn = scored("chance", range(len(answers)), answers, exact.repeat_interleave(_DRAWS, 0))
    scores = drawn[_SCORES].to_numpy().reshape(len(exact), _DRAWS, -1).mean(1)
    half = (trained[:, 2:] - trained[:, :2]).mean(0) / 2
    middle = torch.cat([0.5 - half, 0.5 + half]).expand(len(exact), 4)
    chance = scored("chance", ids, torch.full_like(exact, float("nan")), exact)
    chance[_SCORES] = scores
    return pd.concat([chance, scored("centre_prior", ids, middle, exact)], ignore_index=True)


def by_term(learned_from: SampleSet, evaluation: SampleSet, n: int) -> pd.DataFrame:
    """`scored` answers to the first `n` evaluation samples by their spatial term alone, and known.

    What "leftmost" means for a box is learned from samples with exact boxes: an answer is the mean
    of those that go with the sample's term in `learned_from`, whose centre is the mean centre.
    Where the term does not occur there, `known` is False and the answer is the mean of all boxes.
    What a proxy knows beyond that, it has from the picture.
    """
    learned, asked = _terms(learned_from, len(learned_from)), _terms(evaluation, n)
    means = learned.groupby("term")[CORNERS].mean()
    said = means.reindex(asked["term"]).fillna(learned[CORNERS].mean())
    answers, exact = (torch.tensor(part.to_numpy()) for part in (said, asked[CORNERS]))
    rows = scored(TEXT_ONLY, asked["sample_id"].tolist(), answers, exact)
    return rows.assign(known=asked["term"].isin(means.index))


def spatial_term(instruction: str) -> str:
    """The spatial words of an instruction, in order: "second left"; empty where it has none.

    Which words are spatial says the rule of `abplib.samples.words`.
    """
    words = re.findall(r"\w+|[^\w\s]", instruction)
    classes = zip(words, classify(words), strict=True)
    return " ".join(word.lower() for word, kind in classes if kind == SPATIAL)


def _terms(samples: SampleSet, n: int) -> pd.DataFrame:
    """Of the first `n` samples: sample_id, term, and the exact box."""
    rows = [
        (s.id, spatial_term(s.instruction), *s.box) for s in (samples[index] for index in range(n))
    ]
    return pd.DataFrame(rows, columns=["sample_id", "term", *CORNERS])
