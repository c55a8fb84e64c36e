"""Judging a candidate VLM before it is taken for the specimen: always on the tuning half.

Three questions, from seconds to many minutes: how good are its own boxes; from which single token,
in which layer, can the place be read by a linear map; what do light proxies reach. All on exact
boxes, beside the answer by the words alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from abplib.core.boxes import center_distance, iou
from abplib.proxies.baselines import by_term
from abplib.proxies.configurations import swept
from abplib.proxies.labels import exact_labels
from abplib.proxies.settings import SweepSettings
from abplib.proxies.sweep import SweepInputs, sweep
from abplib.samples.base import Sample
from abplib.samples.scenes.sets import general, tuning
from abplib.vlm.encoder import ConditionEncoder, Encoding, Layer
from abplib.vlm.grounding import Grounder

_PENALTY = 100.0
"""Of the ridge regression, on standardised states."""

_BATCH = 64


def own_boxes(encoder: ConditionEncoder, n: int = 200) -> pd.Series:
    """The VLM's answers to the prompt of appendix A.1: acc50, mean iou, center_error.

    An answer without a box counts as the whole picture.
    """
    asked = [tuning()[i] for i in range(n)]
    answers = Grounder(encoder).locate([s.image for s in asked], [s.instruction for s in asked])
    said = torch.tensor([answer.box or (0.0, 0.0, 1.0, 1.0) for answer in answers])
    exact = torch.tensor([s.box for s in asked])
    overlap = iou(said, exact)
    return pd.Series(
        {
            "acc50": float((overlap >= 0.5).float().mean()),
            "iou": float(overlap.mean()),
            "center_error": float(center_distance(said, exact).mean()),
        }
    )


def words_alone() -> float:
    """Centre error of the answer that knows the instruction's spatial words and nothing else."""
    return float(by_term(tuning(), tuning(), 200)["center_error"].mean())


def linear_errors(encoder: ConditionEncoder, n_train: int = 1600, n: int = 200) -> pd.DataFrame:
    """Centre error of a ridge regression from single tokens' states, by layer.

    Columns: the last token of the phrase that names the object, of the instruction, and of the
    sequence. Rows: input, each layer, final.
    """
    local = (sample for sample in iter(general()) if sample.target is not None)
    taught = list(islice(local, n_train))
    known, answers = _token_states(encoder, taught)
    asked, exact = _token_states(encoder, [tuning()[i] for i in range(n)])
    errors: dict[str, dict[Layer, float]] = {}
    for (layer, token), states in known.items():
        found = _ridge(states, answers, asked[layer, token])
        errors.setdefault(token, {})[layer] = float((found - exact).norm(dim=1).mean())
    return pd.DataFrame(errors)


def proxy_errors(encoder: ConditionEncoder, n_batches: int, layers: Sequence[int]) -> pd.Series:
    """Centre error of light proxies on the input, some layers, their prompt tokens, and final."""
    kept = {"input", "final", "prompt_final"}
    kept |= {f"{tokens}_{layer}" for layer in layers for tokens in ("layer", "prompt")}
    chosen = [c for c in swept(encoder) if c.name in kept]
    settings = SweepSettings(
        n_batches=n_batches,
        batch_size=_BATCH,
        micro_batch=_BATCH,
        eval_every=n_batches,
        n_curve_eval=1,
        l1_steps=n_batches // 4,
        lr=1e-3,
        width=32,
        n_queries=4,
        n_heads=4,
    )
    labels = exact_labels(encoder, general(), n_batches * _BATCH)
    found = sweep(SweepInputs(encoder, general(), labels, tuning(), chosen, settings, 0), 200)
    return found.samples.groupby("configuration", sort=False)["center_error"].mean()


def _token_states(
    encoder: ConditionEncoder, samples: Sequence[Sample]
) -> tuple[dict[tuple[Layer, str], Tensor], Tensor]:
    """States [n, width] by layer and token, and the boxes' centres [n, 2]."""
    found: dict[tuple[Layer, str], list[Tensor]] = {}
    for at in range(0, len(samples), _BATCH):
        part = samples[at : at + _BATCH]
        layers: list[int | Literal["input"]] = ["input", *range(encoder.n_layers)]
        encoding = encoder.encode(
            [s.image for s in part], [s.instruction for s in part], layers=layers, final=True
        )
        for row, sample in enumerate(part):
            for token, place in _places(encoder, encoding, row, sample).items():
                for layer, states in encoding.states.items():
                    found.setdefault((layer, token), []).append(states[row, place].float())
    boxes = torch.tensor([s.box for s in samples])
    stacked = {key: torch.stack(states) for key, states in found.items()}
    return stacked, (boxes[:, :2] + boxes[:, 2:]) / 2


def _places(
    encoder: ConditionEncoder, encoding: Encoding, row: int, sample: Sample
) -> dict[str, int]:
    """Indices of the last token of the phrase, of the instruction, of the sequence."""
    prompt = encoding.prompt_tokens[row].nonzero()[:, 0]
    decode = encoder.processor.tokenizer.decode
    ends = np.cumsum([len(decode([i])) for i in encoding.input_ids[row, prompt].tolist()])
    phrase = str(sample.facts["phrase"])
    end = sample.instruction.index(phrase) + len(phrase)
    named = int(prompt[int(np.searchsorted(ends, end))])
    return {"phrase": named, "prompt": int(prompt[-1]), "last": int(encoding.mask[row].sum()) - 1}


def _ridge(known: Tensor, answers: Tensor, asked: Tensor) -> Tensor:
    mean, deviation = known.mean(0), known.std(0) + 1e-6
    x, new = ((states - mean) / deviation for states in (known, asked))
    middle = answers.mean(0)
    weights = torch.linalg.solve(
        x.T @ x + _PENALTY * torch.eye(x.shape[1]), x.T @ (answers - middle)
    )
    return new @ weights + middle
