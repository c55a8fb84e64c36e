"""The model card of the miniature editor: what it is, how it was trained, what that cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import torch
from diffusers import QwenImageEditPipeline

from abplib.core import store
from abplib.core.trainer import Fitted
from recipes.miniature.editor_training import SHIFT

if TYPE_CHECKING:
    from recipes.miniature.editor import EditorPlan

_TEXT = """---
license: mit
---
# Miniature Qwen-Image-Edit

A `QwenImageEditPipeline` around the miniature Qwen2.5-VL of `data/mini/vlm`, which stays frozen:
`AutoencoderKLQwenImage` ({vae_parameters:,} parameters, 8 x 8 pixels a latent of {channels}
numbers), `QwenImageTransformer2DModel` ({dit_parameters:,} parameters, {layers} blocks of {heads}
heads of {head_dim}), Qwen-Image-Edit's scheduler. It edits pictures of {side} x {side} pixels of
the scenes of `recipes.miniature`, was trained from random weights on them and on nothing else, and
knows no other world. `lora/` holds the LoRA that reads a red box drawn on the source (appendix
B.2).

## Training
1. *VAE*: {crops_steps} batches of {crops_batch} crops of {crop} x {crop} pixels, then {whole_steps}
   of {whole_batch} whole pictures, of {pictures} different ones: L1 (things weigh
   {things_weight:g} times the ground), differences of neighbouring pixels, a light KL term. Single
   frames see one time tap of each kernel; those taps, as matrices, are trained by Muon, the rest by
   AdamW; the other taps are zero.
2. *Diffusion transformer*: flow matching on {scenes} mixed scenes with four edits each (tasks as
   in the general set), {dit_steps} batches of {dit_batch}. Instructions name an object by its look;
   {by_place:.0%} name it by its place. No scene has objects all alike, and none is of the
   multi-entity set. {described:.0%} of the instructions go on with the answer that the VLM is
   taught to give. Conditioned on the final-layer states of the edit template; {nothing:.0%} of the
   samples have the blank negative prompt instead. Cells that an edit changes weigh {changed:g}
   times the others; noise levels are drawn with a shift of {shift:g} towards high noise. After the
   middle block, linear heads tell from the target's tokens which cells change, and which kind of
   thing, of which colour, comes there (weight {told:g} each); they are thrown away. Muon for the
   blocks' matrices, AdamW for the rest, cosine, averaged weights.
3. *LoRA*: rank {rank}, on the {lora_samples} multi-entity training samples less {held_out} held
   out, with exact boxes drawn on the sources; {lora_steps} batches of {lora_batch}, the best of
   {looks} checkpoints by the held-out loss (`lora/held_out.json`).

Minutes on {device}: VAE {vae_minutes:.0f}, transformer {dit_minutes:.0f}, LoRA {lora_minutes:.0f}
(torch {torch}), without the encoding of the training pairs. Settings: `training.json`; losses:
`curves.jsonl`.

![Losses](curves.png)

## Again
`python -m recipes train-editor` repeats the training; killed and started again, it goes on from its
last checkpoint. What the editor can do is measured in chapters 1 and 5 of the book.
"""


def write_card(
    folder: Path,
    plan: EditorPlan,
    pipeline: QwenImageEditPipeline,
    runs: Mapping[str, Fitted],
    lora_samples: int,
    device: str,
) -> None:
    """Write `README.md`, `training.json`, `curves.jsonl` and `curves.png` beside the weights.

    Args:
        folder: of the saved pipeline.
        plan: shape and budgets.
        pipeline: as saved.
        runs: what the training of "vae", "dit" and "lora" left.
        lora_samples: boxed samples that the LoRA's training had, those held out among them.
        device: where it was trained.
    """
    minutes = {name: round(run.seconds / 60, 1) for name, run in runs.items()}
    settings = asdict(plan) | {"lora": plan.lora.model_dump()}
    facts = {"plan": settings, "minutes": minutes, "device": device, "torch": torch.__version__}
    store.write_json(folder / "training.json", facts)
    lines = [json.dumps({"part": name} | row) for name, run in runs.items() for row in run.curves]
    store.write_text(folder / "curves.jsonl", "\n".join(lines) + "\n")
    figure, axes = plt.subplots(1, len(runs), figsize=(11, 3), constrained_layout=True)
    for axis, (name, run) in zip(axes, runs.items(), strict=True):
        for loss in [key for key in run.curves[-1] if key != "step"]:
            rows = [row for row in run.curves if loss in row]
            axis.plot([row["step"] for row in rows], [row[loss] for row in rows], label=loss, lw=1)
        axis.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        axis.legend(frameon=False, fontsize=8)
    with store.replacing(folder / "curves.png") as scratch:
        figure.savefig(scratch, format="png", dpi=110)
    plt.close(figure)
    store.write_text(
        folder / "README.md",
        _TEXT.format(
            **asdict(plan.shape),
            vae_parameters=_size(pipeline.vae),
            dit_parameters=_size(pipeline.transformer),
            crops_steps=plan.vae.crops.steps,
            crops_batch=plan.vae.crops_batch,
            crop=plan.vae.crop,
            whole_steps=plan.vae.whole.steps,
            whole_batch=plan.vae.whole_batch,
            pictures=plan.vae.pictures,
            things_weight=1 + plan.vae.things,
            scenes=plan.dit.scenes,
            **asdict(plan.dit.wording),
            dit_steps=plan.dit.schedule.steps,
            dit_batch=plan.dit.batch,
            nothing=plan.dit.nothing,
            changed=1 + plan.dit.changed,
            shift=SHIFT,
            told=plan.dit.told,
            rank=plan.lora.rank,
            lora_samples=lora_samples,
            held_out=plan.lora.held_out,
            lora_steps=plan.lora.steps,
            lora_batch=plan.lora.batch,
            looks=plan.lora.looks,
            device=device,
            torch=torch.__version__,
            **{f"{name}_minutes": value for name, value in minutes.items()},
        ),
    )


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
