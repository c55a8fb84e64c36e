"""The model card of the miniature VLM: what it is, how it was trained, what that cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from abplib.core import store

_TEXT = """---
license: mit
---
# Miniature Qwen2.5-VL

A `Qwen2_5_VLForConditionalGeneration` of {parameters:,} parameters ({layers} decoder blocks,
{width} wide; vision tower of {vision_layers} blocks, {vision_width} wide), trained from random
weights on the scenes of `recipes.miniature` and on nothing else. It sees pictures of {side} x
{side} pixels, grounds an edit in Qwen's JSON box format, says what an edit changes and where,
describes a scene, and serves as a condition encoder. It knows twelve kinds of thing in eight
colours and the spatial terms of the paper's appendix A.2; outside that world it knows nothing.

## Training
1. *Seeing*: {see_steps} batches of {see_batch} pictures ({see_scenes} scenes). The vision tower
   alone, on dense targets of its merged tokens: kind, colour, box, cell, and how many of its like
   lie further left, right, up and down. The linear heads are thrown away.
2. *Speaking*: {speak_steps} batches of {speak_batch} fresh scenes with about five questions each,
   packed behind their shared prefix of {length} tokens at most. Language-model loss on the answers,
   a tenth of it on the questions. Where a box begins in an answer, a second loss (weight {look})
   asks that in each layer the head that looks most at what the box is about looks there more.
   The dense targets stay, at a fifth of their weight.
3. *Keeping*: {keep_steps} more batches, with a loss (weight {echo}) that asks each token of a
   question to be told from its final state by a linear map, which is thrown away. An editor reads
   final states alone; without it they held little of what was asked for.

Muon for the matrices inside blocks, AdamW for the rest, linear decay over the second half of each
stage.
{minutes} minutes on {device} (torch {torch}). Settings: `training.json`; losses: `curves.jsonl`.

![Losses](curves.png)

Last losses: {last}.

## Again
`python -m recipes train-vlm` repeats the training; killed and started again, it goes on from its
last checkpoint. What the model can do is measured in chapter 1 of the book.
"""


def write_card(folder: Path, facts: dict[str, Any], curves: list[dict[str, float | str]]) -> None:
    """Write `README.md`, `training.json`, `curves.jsonl` and `curves.png` beside the weights.

    Args:
        folder: of the saved model.
        facts: plan, shape, parameters, minutes, device and torch version.
        curves: rows with stage, step and the losses of that stage.
    """
    store.write_json(folder / "training.json", facts)
    store.write_text(folder / "curves.jsonl", "".join(json.dumps(c) + "\n" for c in curves))
    frame = pd.DataFrame(curves)
    stages = list(frame.groupby("stage", sort=False))
    figure, axes = plt.subplots(1, len(stages), figsize=(12, 3), constrained_layout=True)
    for axis, (stage, rows) in zip(axes, stages, strict=True):
        for name in rows.columns.drop(["stage", "step"]):
            if rows[name].notna().any():
                axis.plot(rows["step"], rows[name].clip(lower=1e-3), label=name, lw=1)
        axis.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
        axis.legend(frameon=False, fontsize=8)
    with store.replacing(folder / "curves.png") as scratch:
        figure.savefig(scratch, format="png", dpi=110)
    plt.close(figure)
    last = frame.iloc[-1].drop(["stage", "step"]).dropna()
    told = ", ".join(f"{name} {value:.3f}" for name, value in last.items())
    flat = facts | facts["plan"] | facts["shape"]
    store.write_text(folder / "README.md", _TEXT.format(**flat, last=told))
