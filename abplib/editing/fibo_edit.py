"""FIBO-Edit: every block of the transformer is conditioned on another layer of an LLM.

With N blocks, they read the last N of the LLM's hidden states in turn; the last two (of which the
last is normed) make the condition itself. The LLM is not shown the image, and nothing is dropped.
The model takes JSON; the paper does not say how instructions were put into it, so it is the least
that the pipeline accepts: `{"edit_instruction": instruction}`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import BriaFiboEditPipeline
from diffusers.pipelines.bria_fibo.pipeline_bria_fibo_edit import PREFERRED_RESOLUTION
from PIL import Image

from abplib.editing.stock import SIDE, StockEditor, generators, nearest


def as_json(instruction: str) -> str:
    """The prompt that the pipeline is given."""
    return json.dumps({"edit_instruction": instruction})


@dataclass(frozen=True, eq=False)
class FiboEditor(StockEditor):
    """FIBO-Edit, with classifier-free guidance from an empty prompt."""

    kind = BriaFiboEditPipeline
    title = "FIBO-Edit"
    steps = 50
    scale = 5.0
    most_tokens = 3000

    def size(self, source: tuple[int, int]) -> tuple[int, int]:
        """The sizes that the pipeline prefers."""
        preferred = PREFERRED_RESOLUTION[SIDE**2]
        return nearest(preferred, source, self.image_area, self.pipeline.vae_scale_factor)

    def n_tokens(self, instruction: str) -> int:
        """With the JSON around it."""
        return len(self.pipeline.tokenizer(as_json(instruction)).input_ids)

    def run(
        self, pictures: list[Image.Image], instructions: list[str], seeds: Sequence[int]
    ) -> list[Image.Image]:
        """One at a time: several pictures would be references of one edit."""
        width, height = pictures[0].size
        edits: list[Image.Image] = self.pipeline(
            image=pictures,
            prompt=[as_json(instruction) for instruction in instructions],
            width=width,
            height=height,
            max_sequence_length=self.most_tokens,
            num_inference_steps=self.n_steps,
            guidance_scale=self.guidance,
            generator=generators(seeds),
        ).images
        return edits
