"""The model cards of VLM and editor: what they are, how they were trained, what that cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from abplib.core import store

VLM = """---
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

EDITOR = """---
license: mit
---
# Miniature Qwen-Image-Edit

A `QwenImageEditPipeline` around the miniature Qwen2.5-VL of `data/mini/vlm`, which stays frozen:
`AutoencoderKLQwenImage` ({vae_parameters:,} parameters, 8 x 8 pixels a latent of
{plan.shape.channels} numbers), `QwenImageTransformer2DModel` ({dit_parameters:,} parameters,
{plan.shape.layers} blocks of {plan.shape.heads} heads of {plan.shape.head_dim}),
Qwen-Image-Edit's scheduler. It edits pictures of {plan.shape.side} x {plan.shape.side} pixels of
the scenes of `recipes.miniature`, was trained from random weights on them and on nothing else,
and knows no other world. `lora/` holds the LoRA that reads a red box drawn on the source
(appendix B.2).

## Training
1. *VAE*: {plan.vae.crops.steps} batches of {plan.vae.crops_batch} crops of {plan.vae.crop} x
   {plan.vae.crop} pixels, then {plan.vae.whole.steps} of {plan.vae.whole_batch} whole pictures,
   of {plan.vae.pictures} different ones, {marked:.0%} with a coloured outline around some thing
   (`recipes.miniature.marks`): L1 (things weigh {things_weight:g} times the ground),
   differences of neighbouring pixels, a light KL term. Single frames see one time tap of each
   kernel; those taps, as matrices, are trained by Muon, the rest by AdamW; the other taps are
   zero.
2. *Diffusion transformer*: flow matching on mixed scenes with four edits each (tasks as in the
   general set), {plan.dit.schedule.steps} batches of {plan.dit.batch} from {plan.dit.scenes} scenes
   (`dit` below), then {plan.large.schedule.steps} of {plan.large.batch} from {plan.large.scenes}
   (`dit-large`).
   Instructions name an object by its look; {plan.dit.wording.by_place:.0%} name it by its place.
   No scene has objects all alike, and none is of the multi-entity set.
   On {marked:.0%} of the scenes and their edited versions lies an outline around some thing, edited
   or not; the VLM is not shown it.
   {plan.dit.wording.described:.0%} of the instructions go on with the answer that the VLM is
   taught to give. Conditioned on the final-layer states of the edit template;
   {plan.dit.nothing:.0%} of the samples have the blank negative prompt instead. Cells that an
   edit changes weigh {changed:g} times the others; noise levels are drawn with a shift of
   {shift:g} towards high noise. After the middle block, linear heads tell from the target's
   tokens which cells change, and which kind of thing, of which colour, comes there (weight
   {plan.dit.told:g} each); they are thrown away. Muon for the blocks' matrices, AdamW for the
   rest, cosine (that of `dit-large` for {plan.large.schedule.cosine} batches, its last not taken),
   averaged weights.
3. *LoRA*: rank {plan.lora.rank}, on the {lora_samples} multi-entity training samples less
   {plan.lora.held_out} held out, with exact boxes drawn on the sources; {plan.lora.steps} batches
   of {plan.lora.batch}, the best of {plan.lora.looks} checkpoints by the held-out loss
   (`lora/held_out.json`).

Minutes, without the encoding of the training pairs:
{cost}.
Settings: `training.json`; losses: `curves.jsonl`.

![Losses](curves.png)

## Again
`python -m recipes train-editor` repeats the training; killed and started again, it goes on from its
last checkpoint. What the editor can do is measured in chapters 1 and 5 of the book.
"""


def write_card(
    folder: Path,
    text: str,
    told: dict[str, Any],
    facts: dict[str, Any],
    curves: Sequence[dict[str, Any]],
) -> None:
    """Write `README.md`, `training.json`, `curves.jsonl` and `curves.png` beside the weights.

    Args:
        folder: of the saved model.
        text: of the card, with gaps.
        told: what goes into these.
        facts: plan, minutes, device and torch version, among others.
        curves: rows with stage, step and the losses of that stage.
    """
    store.write_json(folder / "training.json", facts)
    store.write_text(folder / "curves.jsonl", "".join(json.dumps(row) + "\n" for row in curves))
    store.write_text(folder / "README.md", text.format(**told))
    stages = list(pd.DataFrame(curves).groupby("stage", sort=False))
    figure, axes = plt.subplots(1, len(stages), figsize=(12, 3), constrained_layout=True)
    for axis, (stage, rows) in zip(axes, stages, strict=True):
        for name, losses in rows.drop(columns=["stage", "step"]).dropna(axis=1, how="all").items():
            axis.plot(rows["step"], losses.clip(lower=1e-3), label=name, lw=1)
        axis.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
        axis.legend(frameon=False, fontsize=8)
    with store.replacing(folder / "curves.png") as scratch:
        figure.savefig(scratch, format="png", dpi=110)
    plt.close(figure)
