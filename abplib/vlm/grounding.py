"""The standalone VLM: boxes by autoregressive text generation (section 4.1, appendix A.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.core.images import ImageLike
from abplib.prompts import grounding_chat
from abplib.samples.base import Sample
from abplib.vlm import loading as vlms
from abplib.vlm.adapters import Adapter, adapter_of
from abplib.vlm.answers import boxes_in
from abplib.vlm.encoder import ConditionEncoder

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
    fault: str = ""
    """Why the VLM could not be asked, a sentence; empty where it was."""


class Grounder:
    """Asks a Qwen-VL for the box of an edit, greedily and in batches."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        image_area: int,
        adapter: Adapter | None = None,
    ) -> None:
        """Raises AbpError for a family whose way of writing boxes is not known."""
        self.model = model
        self.processor = processor
        self.image_area = image_area
        """Pixels that an image is resized to before the processor."""
        self.boxes = (adapter or adapter_of(model)).boxes
        if self.boxes is None:
            raise AbpError(
                f"How VLMs of type {model.config.model_type!r} write boxes is not known; take a "
                "Qwen-VL for boxes, or the samples' exact ones (labels: exact in the profile)."
            )

    @classmethod
    def of(cls, encoder: ConditionEncoder) -> Grounder:
        """The same model in its other role: nothing is loaded twice."""
        return cls(encoder.model, encoder.processor, encoder.image_area, encoder.adapter)

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
        for start in range(0, len(instructions), batch_size):
            rows = range(start, min(start + batch_size, len(instructions)))
            answers += self._answer(
                [images[row] for row in rows], [instructions[row] for row in rows]
            )
        return answers

    def locate_samples(self, samples: Sequence[Sample], *, batch_size: int = 64) -> list[Grounding]:
        """The same of samples. One that the VLM cannot take has its `fault`, and the rest go on."""
        answers: list[Grounding] = []
        with tqdm(total=len(samples), desc="grounding", disable=None) as progress:
            for start in range(0, len(samples), batch_size):
                some = samples[start : start + batch_size]
                try:
                    answers += self.locate([s.image for s in some], [s.instruction for s in some])
                except AbpError:
                    answers += [self._located(sample) for sample in some]
                progress.update(len(some))
        return answers

    def _located(self, sample: Sample) -> Grounding:
        try:
            return self.locate([sample.image], [sample.instruction])[0]
        except AbpError as error:
            return Grounding("", None, 0, str(error))

    def _answer(self, images: Sequence[ImageLike], instructions: Sequence[str]) -> list[Grounding]:
        chats = [
            self.processor.apply_chat_template(
                grounding_chat(instruction), tokenize=False, add_generation_prompt=True
            )
            for instruction in instructions
        ]
        answers = vlms.generate_text(
            images,
            chats,
            self.model,
            self.processor,
            image_area=self.image_area,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        found = []
        for text, seen, whole in answers:
            frame = (1000, 1000) if self.boxes == "thousandths" else seen
            boxes = boxes_in(text, frame, cut=not whole)
            found.append(Grounding(text, boxes[0] if boxes else None, len(boxes)))
        return found
