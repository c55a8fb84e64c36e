"""Qwen-Image-Edit and what section 4.6 makes of it: other conditions, boxes drawn on the source.

Edits equal those of `QwenImageEditPipeline.__call__` given the same condition, noise and size (a
test); they are made in batches and at any image area.
"""

from __future__ import annotations

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
from abplib.core.images import load_image
from abplib.core.parallel import at_once, side_by_side
from abplib.core.store import digest, digest_files
from abplib.editing import conditions, loading, qwen_pipeline
from abplib.editing.base import Request
from abplib.editing.loading import PipelineEditor
from abplib.editing.methods import METHODS, Kind
from abplib.samples.base import Sample
from abplib.vlm import loading as vlms
from abplib.vlm.encoder import ConditionEncoder

T = TypeVar("T")

_BATCH = 16
"""Edits made together; fewer of large pictures."""
_LABELS = {
    METHODS[name].condition: METHODS[name].label
    for name in ("baseline", "norm_avg", "full_description")
}


def with_box(picture: Image.Image, box: Box) -> Image.Image:
    """The fitted picture with a red line around the box, in training as in use (appendix B.2).

    The line is a 64th of the picture's side thick (that of the square of its area), and lies
    outside of the box.
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

    condition: Kind = "final"
    """What the transformer is conditioned on; see `abplib.editing.conditions`."""
    lora: Path | None = None
    """File of a LoRA that reads boxes drawn on the source (appendix B.2), or its folder."""

    vlm_sees_box: bool = False
    """Whether the VLM is shown the drawn box as well. In appendix B.2 the VAE encodes the overlaid
    image, and the condition is of the one pass over the source itself; a LoRA is to be used as it
    was trained."""

    _adapter: str | None = field(init=False, default=None)
    """The LoRA's name in the pipeline: a hash of its weights."""

    def __post_init__(self) -> None:
        """Raises AbpError for pictures that are too large, and where there is no LoRA."""
        super().__post_init__()
        if self.lora is not None:
            object.__setattr__(self, "lora", qwen_pipeline.lora_file(self.lora))
            object.__setattr__(self, "_adapter", "lora_" + digest_files(self.lora))

    @property
    def name(self) -> str:
        """As Table 1 calls it."""
        return METHODS["ours"].label if self.lora else _LABELS[self.condition]

    @property
    def fingerprint(self) -> str:
        """Hash of weights, LoRA and settings."""
        drawn = self.lora is not None and self.vlm_sees_box
        return digest([super().fingerprint, self.condition, self._adapter, drawn])

    @property
    def reads_boxes(self) -> bool:
        """Whether there is a LoRA."""
        return self.lora is not None

    def check(self, sample: Sample) -> None:
        """Refuse what the VLM does not take."""
        picture = self.picture(sample.image, None)
        self.encoder(picture.size).prepare([picture], [sample.instruction])

    def picture(self, source: Image.Image, box: Box | None) -> Image.Image:
        """What the VAE sees of an upright RGB source: fitted to the area, its box drawn on it.

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
    def _edit_many(self, requests: Sequence[Request]) -> list[Image.Image]:
        vlms.check_instructions([r.instruction for r in requests], self.pipeline.processor)
        sources = [load_image(request.image) for request in requests]
        pictures = [self.picture(s, r.box) for s, r in zip(sources, requests, strict=True)]
        batch_size = min(_BATCH, max(1, loading.MOST_PIXELS // self.image_area))
        together = batch_size * at_once(self.pipeline._execution_device)
        qwen_pipeline.for_stills(self.pipeline.vae)
        qwen_pipeline.use_lora(self.pipeline, self.lora, self._adapter)
        edits: dict[int, Image.Image] = {}
        with tqdm(total=len(sources), desc=f"editing, {self.name}", disable=None) as progress:
            for size in dict.fromkeys(picture.size for picture in pictures):
                alike = [row for row, picture in enumerate(pictures) if picture.size == size]
                for rows in _batches(alike, together):
                    shown = [pictures[row] for row in rows]
                    seen = shown
                    if not self.vlm_sees_box:
                        seen = [self.picture(sources[row], None) for row in rows]
                    asked = [requests[row] for row in rows]
                    made = self._edited(shown, seen, asked, batch_size)
                    for row, edit in zip(rows, made, strict=True):
                        edits[row] = edit.resize(sources[row].size, Image.Resampling.LANCZOS)
                        edits[row].info |= edit.info
                    progress.update(len(rows))
        self.pipeline.maybe_free_model_hooks()
        return [edits[row] for row in range(len(sources))]

    def _edited(
        self,
        shown: Sequence[Image.Image],
        seen: Sequence[Image.Image],
        requests: Sequence[Request],
        batch_size: int,
    ) -> list[Image.Image]:
        """Edits of pictures of one size: what the VAE is shown, and what the VLM sees."""
        size = shown[0].size
        encoder = self.encoder(size)
        positive = conditions.positive(
            encoder, self.condition, seen, [request.instruction for request in requests]
        )
        negative = conditions.negative(encoder, self.condition, seen) if self.guidance > 1 else None
        source = qwen_pipeline.source_latents(self.pipeline, shown)

        @torch.inference_mode()  # of the thread that it runs in
        def edit(rows: Sequence[int]) -> list[Image.Image]:
            latents = qwen_pipeline.denoise(
                self.pipeline,
                source[rows],
                positive[rows],
                None if negative is None else negative[rows],
                [requests[row].seed for row in rows],
                size=size,
                n_steps=self.n_steps,
                guidance=self.guidance,
            )
            return qwen_pipeline.decode(self.pipeline, latents, size)

        batches = list(_batches([*range(len(shown))], batch_size))
        edits = [made for batch in side_by_side(edit, batches, source.device) for made in batch]
        for made, (text, _, whole) in zip(edits, positive.described, strict=False):
            made.info |= {"description": text, "cut": not whole}
        return edits


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
