"""A local VLM as a judge, through transformers: no server, no key, nothing leaves.

It answers greedily, so it is asked once. A model that judges its own kind of edits is a second
opinion at most; what it says beside another judge is for `agreement` to tell. Its weights are part
of who is asked, so its record is read only where the model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from abplib.judging.asking import Reply
from abplib.judging.questions import Question
from abplib.vlm import loading as vlms

MAX_NEW_TOKENS = 400


@dataclass(frozen=True)
class LocalVlm:
    """A `Wire` to a model in this process."""

    source: str
    """A folder or a hub id."""
    image_area: int = 512 * 512
    """Pixels of each of the three images."""

    @property
    def model(self) -> str:
        """The last part of the source's name."""
        return Path(self.source).name

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The weights themselves, and how they are asked."""
        model, _ = self._loaded
        return {
            "weights": vlms.fingerprint(self.source, model),
            "image_area": self.image_area,
            "max_new_tokens": MAX_NEW_TOKENS,
        }

    @torch.inference_mode()
    def ask(self, question: Question) -> Reply:
        """Generate an answer, greedily.

        Raises:
            AbpError: the model cannot be loaded or take the question.
        """
        model, processor = self._loaded
        vlms.check_instructions([question.instruction], processor)
        shown = [vlms.fit_image(i, self.image_area, processor) for i in question.images]
        content = [{"type": "image"} for _ in shown]
        chat = [{"role": "user", "content": [*content, {"type": "text", "text": question.prompt}]}]
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = processor(
            text=[text], images=[shown], add_special_tokens=False, return_tensors="pt"
        )
        n_prompt = inputs["input_ids"].shape[1]
        room = vlms.check_length(n_prompt + 1, model) + 1
        generated = model.generate(
            **inputs.to(model.device),
            max_new_tokens=min(MAX_NEW_TOKENS, room),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
        )[0, n_prompt:]
        answer = processor.tokenizer.decode(generated, skip_special_tokens=True)
        return Reply(answer, self.model, None, n_prompt, len(generated))

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        return vlms.load_vlm(self.source, dtype=dtype, device=device)
