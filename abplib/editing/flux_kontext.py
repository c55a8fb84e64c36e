"""FLUX.1 Kontext: conditioned on text alone, the source's latents beside the noise.

Text goes through T5 (final states of 512 tokens, none dropped) and CLIP (one pooled state, which
sees the first 77 tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from PIL import Image

from abplib.editing.stock import StockEditor, generators, nearest


@dataclass(frozen=True, eq=False)
class FluxKontextEditor(StockEditor):
    """FLUX.1 Kontext [dev]; its guidance is an input of the transformer."""

    kind = FluxKontextPipeline
    title = "FLUX.1 Kontext"
    steps = 28
    scale = 2.5
    most_tokens = 512
    several = True

    def size(self, source: tuple[int, int]) -> tuple[int, int]:
        """The sizes that the model was trained on."""
        multiple = 2 * self.pipeline.vae_scale_factor
        return nearest(PREFERRED_KONTEXT_RESOLUTIONS, source, self.image_area, multiple)

    def n_tokens(self, instruction: str) -> int:
        """T5's."""
        return len(self.pipeline.tokenizer_2(instruction).input_ids)

    def run(
        self, pictures: list[Image.Image], instructions: list[str], seeds: Sequence[int]
    ) -> list[Image.Image]:
        """At the pictures' size, which the pipeline is kept from choosing itself."""
        width, height = pictures[0].size
        edits: list[Image.Image] = self.pipeline(
            image=pictures,
            prompt=instructions,
            width=width,
            height=height,
            max_area=width * height,
            _auto_resize=False,
            max_sequence_length=self.most_tokens,
            num_inference_steps=self.n_steps,
            guidance_scale=self.guidance,
            generator=generators(seeds),
        ).images
        return edits
