"""Chapter 5's edits, in batches with conditions and latents made once, beside naive stock calls.

    python -m benchmarks.evaluation

The same evaluation samples, seeds and steps. The naive way calls `QwenImageEditPipeline` sample by
sample, as its model card shows. The stock pipeline works at a fixed area of 1024 x 1024, which is
set to the miniature's here, so that both edit pictures of one size. Writes
benchmarks/results/evaluation.json.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit as stock
import torch
from PIL import Image

from abplib.editing.base import Request
from abplib.experiment import Experiment
from abplib.profiles import Profile
from benchmarks.measuring import compared, machine, take_turns, write


def measure(
    profile: str = "mini", *, threads: int = 2, repeats: int = 5, n_samples: int = 8
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    chosen = Profile.load(profile, lora=None)
    made = Experiment(chosen)
    editor = made.editor
    editor.pipeline.set_progress_bar_config(disable=True)
    samples = [made.evaluation[index] for index in range(n_samples)]
    images, instructions = [s.image for s in samples], [s.instruction for s in samples]
    seeds = range(n_samples)

    def batched() -> list[Image.Image]:
        return editor.edit_many([*map(Request, images, instructions, seeds)])

    def naive() -> list[Image.Image]:
        return [
            editor.pipeline(
                image=image,
                prompt=instruction,
                negative_prompt=" ",
                true_cfg_scale=chosen.guidance,
                num_inference_steps=chosen.n_steps,
                generator=torch.Generator().manual_seed(seed),
            ).images[0]
            for image, instruction, seed in zip(images, instructions, seeds, strict=True)
        ]

    size = editor.picture(images[0], None).size
    with mock.patch.object(stock, "calculate_dimensions", lambda *_: (*size, None)):
        taken = take_turns({"edit_many": batched, "naive_calls": naive}, repeats)
    settings = {"profile": profile, "samples": n_samples, "n_steps": chosen.n_steps,
                "guidance": chosen.guidance, "repeats": repeats}  # fmt: skip
    return {"machine": machine(), "settings": settings, "ways": compared(taken, "edit_many")}


if __name__ == "__main__":
    write("evaluation", measure())
