"""The model card of the miniature VLM: what it is, how it was trained, what that cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from abplib.core import store
from recipes.miniature.answers import FAMILIES

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
   alone, on dense targets of its merged tokens: kind, colour, box and cell. Nothing that takes a
   comparison of objects. The linear heads are thrown away.
2. *Speaking*: {speak_steps} batches of {speak_batch} fresh scenes with up to eight turns each,
   packed behind their shared prefix into {length} tokens at most. A quarter of the lessons asks
   for the box of an edit (appendix A.1), a quarter is Qwen-Image-Edit's template, answered by the
   picture's features, what changes, and last the place; {look_share:.0%} describe and locate;
   {text_share:.0%} are grounded text, the user's sentence with the box behind the phrase, under
   any of the three system prompts. Language-model loss on answers and boxes, a tenth of it on
   questions.

In {blind:.0%} of the turns about one object nothing behind the instruction (in grounded text,
behind the phrase) attends to the picture: the instruction's own tokens must carry what it takes.

Auxiliary losses, and what they do to what is found here:
- *Dense targets* (a fifth of their weight while speaking) make the image tokens tell kind, colour,
  box and cell linearly. A proxy on the decoder's input therefore starts from exact boxes.
- *Look* (weight {look}): at the last token of a phrase that names an object, some head of some
  layer is asked to look at it, which layer is left open. That phrases point at their objects is
  thus taught, not found; where and whether the place is then kept is not.
- *Echo* (weight {echo}): a question's tokens are told from their final states by a linear map that
  is thrown away. An editor reads final states alone; that these hold the words is thus taught.

Muon for the matrices inside blocks, AdamW for the rest, linear decay over the second half of each
stage; the weights are a running average (decay {average} a batch).
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
    shares = {f"{family}_share": share for family, share in FAMILIES.items()}
    flat = facts | facts["plan"] | facts["shape"] | shares
    store.write_text(folder / "README.md", _TEXT.format(**flat, last=told))
