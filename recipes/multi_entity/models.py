"""The models of appendix A.2 behind the interfaces of `recipes.multi_entity.stages`.

Gemini 2.5 Pro writes the scenes, FIBO paints them, Mistral-Small describes the reversed edits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import BriaFiboPipeline
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from abplib.core.errors import AbpError
from abplib.editing.loading import Source
from abplib.judging import clients
from abplib.vlm.loading import load_vlm

FIBO = "briaai/FIBO"
MISTRAL = "mistralai/Mistral-Small-3.2-24B-Instruct-2506"
PROCESSOR = "mistralai/Mistral-Small-3.1-24B-Instruct-2503"
"""Whose processor `MISTRAL` is given: its own repository came without one."""

STEPS = 50
"""Of FIBO, as in its own generating script; the pipeline's default is fewer."""
NO_PHOTOGRAPH = "{'style_medium':'digital illustration','artistic_style':'non-realistic'}"
"""That script's negative prompt where a photograph is asked for; elsewhere it has none."""

MAX_NEW_TOKENS, TEMPERATURE, REPETITION_PENALTY = 256, 0.1, 1.1
"""Of Mistral-Small (A.2)."""


@dataclass(frozen=True)
class GeminiWriter:
    """A `Writer` over the Gemini API; the key is read from the environment when it writes."""

    name: str = "gemini-2.5-pro"

    def write(self, system: str, request: str, schema: dict[str, Any] | None = None) -> str:
        """One answer.

        Raises:
            AbpError: the key or google-genai is missing, or the server does not answer with text.
        """
        client = self._client  # one that is not referred to closes its connections
        config: dict[str, Any] = {"system_instruction": system}
        if schema is not None:
            config |= {"response_mime_type": "application/json", "response_json_schema": schema}
        try:
            response = client.models.generate_content(
                model=self.name, contents=request, config=config
            )
        except clients.package("google.genai.errors").APIError as error:
            raise clients.failure(self.name, error.code, error.details, clients.KEYS) from None
        text: str | None = response.text
        if not text:
            raise AbpError(f"{self.name} answered without text: try again.")
        return text

    @cached_property
    def _client(self) -> Any:
        return clients.gemini_client(self.name)


@dataclass(frozen=True, eq=False)
class FiboPainter:
    """A `Painter`: FIBO with the settings of its own script."""

    pipeline: BriaFiboPipeline
    name: str = FIBO

    @classmethod
    def from_pretrained(cls, source: str = FIBO) -> FiboPainter:
        """From a folder or the hub, on a GPU where there is one. AbpError if it cannot be had."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        fibo = Source.find(
            BriaFiboPipeline, source, dtype=torch.bfloat16, device=device, unused=("lm_head",)
        )
        return cls(fibo.pipeline, source)

    def paint(self, prompt: str, seed: int) -> Image.Image:
        """One image of the pipeline's own size, of a structured prompt (JSON)."""
        medium = str(json.loads(prompt).get("style_medium", "")).lower()
        photograph = medium in ("photograph", "photography", "photo")
        image: Image.Image = self.pipeline(
            prompt=prompt,
            negative_prompt=NO_PHOTOGRAPH if photograph else "",
            num_inference_steps=STEPS,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        return image


@dataclass(frozen=True, eq=False)
class MistralDescriber:
    """A `Describer`: Mistral-Small with the paper's sampling settings."""

    model: PreTrainedModel
    processor: ProcessorMixin
    seed: int = 0
    name: str = MISTRAL

    @classmethod
    def from_pretrained(cls, source: str = MISTRAL, processor: str = PROCESSOR) -> MistralDescriber:
        """Model and processor of the hub, where there is memory.

        Raises:
            AbpError: one of them cannot be had.
        """
        loaded = load_vlm(source, dtype=torch.bfloat16, device="auto", processor_of=processor)
        return cls(*loaded, name=source)

    @torch.inference_mode()
    def describe(self, system: str, image: Image.Image) -> str:
        """The answer; the same seed gives the same."""
        chat = [
            {"role": "system", "content": [{"type": "text", "text": system}]},
            {"role": "user", "content": [{"type": "image"}]},
        ]
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        inputs = self.processor(text=[text], images=[image], return_tensors="pt")
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            written = self.model.generate(
                **inputs,
                do_sample=True,
                temperature=TEMPERATURE,
                repetition_penalty=REPETITION_PENALTY,
                max_new_tokens=MAX_NEW_TOKENS,
            )
        answer = written[:, inputs["input_ids"].shape[1] :]
        return str(self.processor.batch_decode(answer, skip_special_tokens=True)[0]).strip()
