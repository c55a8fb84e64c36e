"""Editors of Table 1 that are run as diffusers has them: one picture and one instruction in.

Each pipeline fits a source to about a million pixels in a way of its own. Here it is fitted by the
same rule to `image_area` pixels, so that twins can be small; the edit is made at that size, and
brought back to the source's.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import BriaFiboEditPipeline, Flux2Pipeline, FluxKontextPipeline
from diffusers.pipelines.bria_fibo.pipeline_bria_fibo_edit import PREFERRED_RESOLUTION
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from PIL import Image
from tqdm import tqdm

from abplib.core.errors import AbpError
from abplib.core.images import load_image
from abplib.editing.base import Request
from abplib.editing.loading import SIDE, PipelineEditor
from abplib.editing.methods import OTHERS
from abplib.samples.base import Sample

_SHORTEST = 64
"""Side in pixels under which FLUX.2 takes no picture."""


@dataclass(frozen=True, eq=False)
class StockEditor(PipelineEditor):
    """A pipeline with its settings; conditions are the pipeline's own."""

    unused = ("lm_head",)
    most_tokens: ClassVar[int]
    """What the pipeline's text encoder is given at most; it cuts off the rest."""

    @abstractmethod
    def size(self, source: tuple[int, int]) -> tuple[int, int]:
        """Width and height at which a source of this width and height is edited."""

    @abstractmethod
    def n_tokens(self, instruction: str) -> int:
        """Tokens of an instruction and what the pipeline puts around it."""

    def options(self, size: tuple[int, int]) -> dict[str, Any]:
        """What the pipeline is told beside what all are."""
        return {}

    def prompt(self, instruction: str) -> str:
        """How the pipeline is told an instruction."""
        return instruction

    def check(self, sample: Sample) -> None:
        """Refuse what the text encoders would not read as words, or not to its end."""
        self.size(sample.image.size)
        self._check(sample.instruction)

    def _check(self, instruction: str) -> None:
        if not isinstance(instruction, str) or not instruction.strip():
            raise AbpError("The instruction is empty; say in words what to edit.")
        tokenizers = (getattr(self.pipeline, name, None) for name in ("tokenizer", "tokenizer_2"))
        markers = sorted({token for t in tokenizers if t is not None for token in _markers(t)})
        if marker := next((marker for marker in markers if marker in instruction), None):
            raise AbpError(
                f"The instruction holds {marker}, which {self.name} does not read as text; remove "
                "it."
            )
        if (n_tokens := self.n_tokens(instruction)) > self.most_tokens:
            raise AbpError(
                f"The instruction makes {n_tokens} tokens where {self.name} takes "
                f"{self.most_tokens}; shorten it."
            )

    def _edit_many(self, requests: Sequence[Request]) -> list[Image.Image]:
        for request in requests:
            self._check(request.instruction)
        return [self._edited(request) for request in tqdm(requests, self.name, disable=None)]

    def _edited(self, request: Request) -> Image.Image:
        """What the pipeline makes of a picture; its random numbers are drawn on the CPU."""
        source = load_image(request.image)
        width, height = self.size(source.size)
        (edit,) = self.pipeline(
            image=[source.resize((width, height), Image.Resampling.LANCZOS)],
            prompt=[self.prompt(request.instruction)],
            width=width,
            height=height,
            max_sequence_length=self.most_tokens,
            num_inference_steps=self.n_steps,
            guidance_scale=self.guidance,
            generator=torch.Generator().manual_seed(request.seed),
            **self.options((width, height)),
        ).images
        brought_back: Image.Image = edit.resize(source.size, Image.Resampling.LANCZOS)
        return brought_back


@dataclass(frozen=True, eq=False)
class FluxKontextEditor(StockEditor):
    """FLUX.1 Kontext [dev]: conditioned on text alone, the source's latents beside the noise.

    Text goes through T5 (final states of 512 tokens, none dropped) and CLIP (one pooled state,
    which sees the first 77 tokens); guidance is an input of the transformer.
    """

    kind = FluxKontextPipeline
    title = OTHERS["flux_kontext"].label
    steps = 28
    scale = 2.5
    most_tokens = 512

    def size(self, source: tuple[int, int]) -> tuple[int, int]:
        """The sizes that the model was trained on."""
        multiple = 2 * self.pipeline.vae_scale_factor
        return nearest(PREFERRED_KONTEXT_RESOLUTIONS, source, self.image_area, multiple)

    def n_tokens(self, instruction: str) -> int:
        """T5's."""
        return len(self.pipeline.tokenizer_2(instruction).input_ids)

    def options(self, size: tuple[int, int]) -> dict[str, Any]:
        """Keeps it from choosing the size itself."""
        return {"max_area": size[0] * size[1], "_auto_resize": False}


@dataclass(frozen=True, eq=False)
class Flux2Editor(StockEditor):
    """FLUX.2 [dev]: conditioned on three middle layers of a VLM that is not shown the image.

    Raw states of blocks 10, 20 and 30 of 40 (counted from 1), side by side, over all of 512 padded
    tokens: the system message is among them, nothing is dropped. Guidance is an input of the
    transformer.
    """

    kind = Flux2Pipeline
    title = OTHERS["flux2_dev"].label
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


@dataclass(frozen=True, eq=False)
class FiboEditor(StockEditor):
    """FIBO-Edit: every block of the transformer is conditioned on another layer of an LLM.

    With N blocks, they read the last N of the LLM's hidden states in turn; the last two (of which
    the last is normed) make the condition itself. The LLM is not shown the image, and nothing is
    dropped; guidance leads away from an empty prompt. What it is told is in `OTHERS`.
    """

    kind = BriaFiboEditPipeline
    title = OTHERS["fibo_edit"].label
    steps = 50
    scale = 5.0
    most_tokens = 3000

    def size(self, source: tuple[int, int]) -> tuple[int, int]:
        """The sizes that the pipeline prefers."""
        preferred = PREFERRED_RESOLUTION[SIDE**2]
        return nearest(preferred, source, self.image_area, self.pipeline.vae_scale_factor)

    def n_tokens(self, instruction: str) -> int:
        """With the JSON around it."""
        return len(self.pipeline.tokenizer(self.prompt(instruction)).input_ids)

    def prompt(self, instruction: str) -> str:
        """The least that the pipeline accepts."""
        return json.dumps({"edit_instruction": instruction})


def nearest(
    preferred: Sequence[tuple[int, int]], source: tuple[int, int], area: int, multiple: int
) -> tuple[int, int]:
    """The size of the aspect nearest to the source's, scaled from `SIDE` squared to `area` pixels.

    Args:
        preferred: widths and heights of about `SIDE` squared pixels.
        source: width and height.
        area: in pixels; at `SIDE` squared, the preferred size itself.
        multiple: of both sides, at least one.
    """
    aspect = source[0] / source[1]
    chosen = min(preferred, key=lambda size: abs(size[0] / size[1] - aspect))
    scale = math.sqrt(area) / SIDE
    width, height = (max(1, round(side * scale / multiple)) * multiple for side in chosen)
    return width, height


def _markers(tokenizer: Any) -> set[str]:
    """Tokens that stand for something else than their letters."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    added = (token for token in tokenizer.get_added_vocab() if token[:1] in "<[")
    return {*added, *tokenizer.all_special_tokens}
