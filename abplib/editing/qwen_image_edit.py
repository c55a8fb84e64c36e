"""Qwen-Image-Edit and what section 4.6 makes of it: other conditions, boxes drawn on the source.

Edits equal those of `QwenImageEditPipeline.__call__` given the same condition, noise and size (a
test); they are made in batches, at any image area, and what seeds share is encoded once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import QwenImageEditPipeline
from PIL import Image
from tqdm import tqdm

from abplib.core.boxes import Box, draw_overlay
from abplib.core.images import ImageLike, load_image
from abplib.core.parallel import at_once, side_by_side
from abplib.core.store import digest, digest_files
from abplib.editing import conditions, loading, qwen_pipeline
from abplib.editing.loading import PipelineEditor
from abplib.editing.methods import METHODS
from abplib.vlm import loading as vlms
from abplib.vlm.encoder import ConditionEncoder

T = TypeVar("T")

_NAMED = [METHODS[name] for name in ("baseline", "norm_avg", "full_description")]


def with_box(picture: Image.Image, box: Box) -> Image.Image:
    """The fitted picture with the box on it, in training as in use (appendix B.2).

    The line is red and a 64th of the picture's side thick (that of the square of its area).
    """
    side = math.sqrt(picture.width * picture.height)
    return draw_overlay(picture, box, width=max(1, round(side / 64)))


@dataclass(frozen=True, eq=False)
class QwenImageEditor(PipelineEditor):
    """Qwen-Image-Edit; every call switches the pipeline's LoRAs on or off as its editor has it."""

    kind = QwenImageEditPipeline
    title = "Qwen-Image-Edit"
    steps = 50
    scale = 4.0
    least_steps = 2  # by Qwen's noise schedule

    condition: str = "final"
    """What the transformer is conditioned on; see `abplib.editing.conditions`."""
    lora: Path | None = None
    """File of a LoRA that reads boxes drawn on the source (appendix B.2), or its folder."""

    _adapter: str | None = field(init=False, default=None)
    """The LoRA's name in the pipeline: a hash of its weights."""

    def __post_init__(self) -> None:
        """Raises AbpError for a setting that cannot be, and where there is no LoRA."""
        super().__post_init__()
        conditions.check_kind(self.condition, self.source.n_layers)
        if self.lora is not None:
            object.__setattr__(self, "lora", qwen_pipeline.lora_file(self.lora))
            object.__setattr__(self, "_adapter", "lora_" + digest_files(self.lora))

    @property
    def name(self) -> str:
        """As Table 1 calls it; a condition that is not there goes by its own name."""
        names = {method.condition: method.label for method in _NAMED}
        return "Ours" if self.lora else names.get(self.condition, self.condition)

    @property
    def fingerprint(self) -> str:
        """Hash of weights, LoRA and settings."""
        return digest([super().fingerprint, self.condition, self._adapter])

    @property
    def reads_boxes(self) -> bool:
        """Whether there is a LoRA."""
        return self.lora is not None

    def picture(self, source: Image.Image, box: Box | None) -> Image.Image:
        """What VLM and VAE see of an upright RGB source: fitted to the area, its box drawn on it.

        Raises AbpError for a source that is too oblong for Qwen's processor.
        """
        fitted = vlms.fit_image(source, self.image_area, self.pipeline.processor)
        return fitted if box is None else with_box(fitted, box)

    def encoder(self, size: tuple[int, int]) -> ConditionEncoder:
        """The pipeline's own VLM, which sees pictures of this width and height as they are."""
        return ConditionEncoder(
            loading.awake(self.pipeline.text_encoder),
            self.pipeline.processor,
            image_area=size[0] * size[1],
            fingerprint=self.source.fingerprint,
        )

    @torch.inference_mode()
    def _edit_many(
        self,
        images: Sequence[ImageLike],
        instructions: Sequence[str],
        seeds: Sequence[int],
        boxes: Sequence[Box | None],
        batch_size: int,
    ) -> list[Image.Image]:
        vlms.check_instructions(instructions, self.pipeline.processor)
        batch_size = min(batch_size, max(1, loading.MOST_PIXELS // self.image_area))
        sizes: list[tuple[int, int]] = []
        requests: dict[tuple[object, ...], _Request] = {}
        for row, image in enumerate(images):
            source = load_image(image)
            sizes.append(source.size)
            picture = self.picture(source, boxes[row])
            pixels = hashlib.sha256(picture.tobytes()).digest()
            key = picture.size, pixels, instructions[row]
            requests.setdefault(key, _Request(picture, instructions[row], [])).rows.append(row)
        edits: dict[int, Image.Image] = {}
        device = self.pipeline._execution_device
        qwen_pipeline.for_stills(self.pipeline.vae)
        qwen_pipeline.use_lora(self.pipeline, self.lora, self._adapter)
        with tqdm(total=len(sizes), desc=f"editing, {self.name}", disable=None) as progress:
            for size in {request.picture.size for request in requests.values()}:
                alike = [request for request in requests.values() if request.picture.size == size]
                for batch in _batches(alike, batch_size * at_once(device)):
                    for row, edit in self._edited(batch, seeds, batch_size):
                        edits[row] = edit.resize(sizes[row], Image.Resampling.LANCZOS)
                        edits[row].info |= edit.info
                        progress.update()
        self.pipeline.maybe_free_model_hooks()
        return [edits[row] for row in range(len(sizes))]

    def _edited(
        self, requests: Sequence[_Request], seeds: Sequence[int], batch_size: int
    ) -> Iterator[tuple[int, Image.Image]]:
        """Rows and their edits, of requests for pictures of one size."""
        pictures = [request.picture for request in requests]
        size = pictures[0].size
        encoder = self.encoder(size)
        positive = conditions.positive(
            encoder, self.condition, pictures, [request.instruction for request in requests]
        )
        negative = (
            conditions.negative(encoder, self.condition, pictures) if self.guidance > 1 else None
        )
        source = qwen_pipeline.source_latents(self.pipeline, pictures)
        wanted = [(place, row) for place, request in enumerate(requests) for row in request.rows]

        @torch.inference_mode()  # of the thread that it runs in
        def edit(batch: Sequence[tuple[int, int]]) -> list[Image.Image]:
            places = [place for place, _ in batch]
            latents = qwen_pipeline.denoise(
                self.pipeline,
                source[places],
                positive[places],
                None if negative is None else negative[places],
                [seeds[row] for _, row in batch],
                size=size,
                n_steps=self.n_steps,
                guidance=self.guidance,
            )
            return qwen_pipeline.decode(self.pipeline, latents, size)

        batches = list(_batches(wanted, batch_size))
        for batch, edits in zip(batches, side_by_side(edit, batches, source.device), strict=True):
            for (place, row), made in zip(batch, edits, strict=True):
                if positive.described:
                    text, _, whole = positive.described[place]
                    made.info |= {"description": text, "cut": not whole}
                yield row, made


@dataclass(frozen=True, eq=False)
class _Request:
    """One picture and instruction, whatever the number of seeds."""

    picture: Image.Image
    instruction: str
    rows: list[int]
    """Of the edits that ask for it."""


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
