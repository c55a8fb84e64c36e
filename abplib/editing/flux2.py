"""FLUX.2: conditioned on three middle layers of a VLM that is not shown the image.

Raw states of blocks 10, 20 and 30 of 40 (counted from 1), side by side, over all of 512 padded
tokens: the system message is among them, nothing is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from PIL import Image

from abplib.core.errors import AbpError
from abplib.editing.stock import StockEditor, generators

_SHORTEST = 64
"""Side in pixels under which the pipeline takes no picture."""


@dataclass(frozen=True, eq=False)
class Flux2Editor(StockEditor):
    """FLUX.2 [dev]; its guidance is an input of the transformer."""

    kind = Flux2Pipeline
    title = "FLUX.2 dev"
    steps = 50
    scale = 4.0
    most_tokens = 512

    def size(self, source: tuple[int, int]) -> tuple[int, int]:
        """At the source's own aspect; the pipeline would cut off what is over a multiple."""
        multiple = 2 * self.pipeline.vae_scale_factor
        scale = math.sqrt(self.image_area / (source[0] * source[1]))
        width, height = (
            max(_SHORTEST, math.floor(side * scale / multiple) * multiple) for side in source
        )
        try:
            self.pipeline.image_processor.check_image_input(Image.new("1", (width, height)))
        except ValueError as error:
            raise AbpError(
                f"{self.name} does not take an image of {source[0]} x {source[1]} pixels "
                f"({error}); crop it."
            ) from error
        return width, height

    def n_tokens(self, instruction: str) -> int:
        """With the system message."""
        chat = format_input([instruction], system_message=self.pipeline.system_message)
        inputs = self.pipeline.tokenizer.apply_chat_template(
            chat, tokenize=True, return_dict=True, add_generation_prompt=False
        )
        return len(inputs["input_ids"][0])

    def run(
        self, pictures: list[Image.Image], instructions: list[str], seeds: Sequence[int]
    ) -> list[Image.Image]:
        """One at a time: several pictures would be references of one edit."""
        width, height = pictures[0].size
        edits: list[Image.Image] = self.pipeline(
            image=pictures,
            prompt=instructions,
            width=width,
            height=height,
            max_sequence_length=self.most_tokens,
            num_inference_steps=self.n_steps,
            guidance_scale=self.guidance,
            generator=generators(seeds),
        ).images
        return edits
