"""The standalone VLM: boxes by autoregressive text generation (section 4.1, appendix A.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLProcessor

from abplib import vlm as vlms
from abplib.boxes import Box, from_pixels, parse_boxes
from abplib.encoder import ConditionEncoder
from abplib.errors import AbpError
from abplib.prompts import grounding_chat
from abplib.vlm import ImageLike

MAX_NEW_TOKENS = 400


@dataclass(frozen=True)
class Grounding:
    """A VLM's answer to where an edit belongs."""

    text: str
    """The answer as generated."""
    box: Box | None
    """Its first box, fractions of the source image; None where it holds none."""
    n_boxes: int
    """How many boxes it holds."""


class Grounder:
    """Asks a Qwen2.5-VL for the box of an edit, greedily and in batches."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        processor: Qwen2VLProcessor,
        image_area: int,
    ) -> None:
        self.model = model
        self.processor = processor
        self.image_area = image_area
        """Pixels that an image is resized to before the processor."""

    @classmethod
    def of(cls, encoder: ConditionEncoder) -> Grounder:
        """The same model in its other role: nothing is loaded twice."""
        return cls(encoder.model, encoder.processor, encoder.image_area)

    @classmethod
    def from_pretrained(
        cls,
        vlm: str | Path,
        *,
        image_area: int,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
    ) -> Grounder:
        """From a folder or a hub id; `image_area` is in pixels. Raises AbpError if unusable."""
        return cls(*vlms.load_vlm(vlm, dtype=dtype, device=device, revision=revision), image_area)

    def locate(
        self,
        images: Sequence[ImageLike],
        instructions: Sequence[str],
        *,
        batch_size: int = 64,
    ) -> list[Grounding]:
        """One answer for each image and instruction; `images` is read a batch at a time.

        The answer is ended by the model or after 400 tokens. Raises AbpError for an empty or too
        long instruction, one that holds chat markers, and what is not an image.
        """
        if len(images) != len(instructions):
            raise AbpError(
                f"There are {len(images)} images for {len(instructions)} instructions; give one "
                "image for each instruction."
            )
        vlms.check_instructions(instructions, self.processor)
        answers: list[Grounding] = []
        with tqdm(total=len(instructions), desc="grounding", disable=None) as progress:
            for start in range(0, len(instructions), batch_size):
                rows = range(start, min(start + batch_size, len(instructions)))
                answers += self._answer(
                    [images[row] for row in rows], [instructions[row] for row in rows]
                )
                progress.update(len(rows))
        return answers

    @torch.inference_mode()
    def _answer(self, images: Sequence[ImageLike], instructions: Sequence[str]) -> list[Grounding]:
        inputs = vlms.tokenize(
            [vlms.fit_image(image, self.image_area, self.processor) for image in images],
            [
                self.processor.apply_chat_template(
                    grounding_chat(instruction), tokenize=False, add_generation_prompt=True
                )
                for instruction in instructions
            ],
            self.processor,
            padding_side="left",
        )
        n_prompt = inputs["input_ids"].shape[1]
        room = vlms.check_length(n_prompt + 1, self.model) + 1
        tokenizer = self.processor.tokenizer
        generated = self.model.generate(
            **inputs.to(self.model.device),
            max_new_tokens=min(MAX_NEW_TOKENS, room),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(generated[:, n_prompt:], skip_special_tokens=True)
        patch = self.processor.image_processor.patch_size
        return [
            _read(text.strip(), seen=(columns * patch, rows * patch))
            for text, (_, rows, columns) in zip(
                texts, inputs["image_grid_thw"].tolist(), strict=True
            )
        ]


def _read(text: str, seen: tuple[int, int]) -> Grounding:
    """Qwen2.5-VL answers in pixels of the image it saw, `seen` = (width, height)."""
    boxes = [box for box, _ in parse_boxes(text)]
    return Grounding(text, from_pixels(boxes[0], seen) if boxes else None, len(boxes))
