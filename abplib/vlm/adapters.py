"""What a family of VLMs must tell, so that the encoder can read it as it reads Qwen2.5-VL.

Most of a model tells itself: transformers finds its decoder, its final norm and its image token,
and the processor's chat template says how a turn is written. An adapter adds the rest. `Adapter` as
it stands serves families that stretch every picture to one square of image tokens; the others are
small classes below. `abplib.vlm.conformance` proves an adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from abplib.core.errors import AbpError
from abplib.core.images import ImageLike, load_image
from abplib.prompts import EDIT_SYSTEM, EDIT_TEMPLATE, N_DROPPED
from abplib.vlm import loading as vlms

_SLOT = "{}"
"""Where the instruction goes."""


@dataclass(frozen=True)
class Adapter:
    """A family whose processor stretches every picture to one square of image tokens."""

    image_end: str
    """What stands between the last image token, or in its place, and the instruction."""
    image_start: str | None = None
    """Where the kept tokens begin in the filled template; None for the image placeholder. What
    stands before it is the system prompt, which is dropped."""
    template: str | None = None
    """The text of a turn, `{}` for the instruction; None for what the processor's chat template
    makes of Qwen-Image-Edit's system prompt and one picture."""
    n_dropped: int | None = None
    """Tokens that an editing pipeline is known to drop; None for as many as there are."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For the processor: what keeps it from cutting pictures into tiles."""
    boxes: Literal["pixels", "thousandths"] | None = None
    """Units of the boxes that the model writes: pixels of the picture that it saw, thousandths of
    its sides; None where that is not known."""

    def texts(self, processor: ProcessorMixin) -> tuple[str, str]:
        """The system prompt's part of the template, and the whole of it with its `{}`.

        Raises AbpError where the chat template or the adapter does not fit.
        """
        turn = self.template or _chat(processor)
        start = self.image_start or processor.image_token
        prefix, _, kept = turn.partition(start)
        if kept.count(_SLOT) != 1:
            raise AbpError(
                f"The template {turn!r} does not hold {start!r} and then one {_SLOT}; mend the "
                "adapter's `template` or `image_start`."
            )
        return prefix, turn

    def fit(self, image: ImageLike, area: int, processor: ProcessorMixin) -> Image.Image:
        """What the processor is given; `area` is in pixels, and for nothing where it stretches."""
        return load_image(image)

    def image_tokens(self, input_ids: Tensor, model: PreTrainedModel) -> Tensor:
        """The tokens of the whole picture, row by row: Bool [B, S]."""
        return input_ids == model.config.image_token_id

    def grids(
        self, inputs: BatchFeature, image_tokens: Tensor, processor: ProcessorMixin
    ) -> list[tuple[int, int]]:
        """Rows and columns of each picture's tokens. AbpError where they make no grid."""
        sides = [math.isqrt(n) for n in image_tokens.sum(1).tolist()]
        if [side**2 for side in sides] != image_tokens.sum(1).tolist():
            raise AbpError(
                f"{image_tokens.sum(1).tolist()} image tokens make no squares; switch the "
                "processor's tiles off in the adapter's `options`, or give it its own `grids`."
            )
        return [(side, side) for side in sides]

    def inputs(self, inputs: BatchFeature, model: PreTrainedModel) -> dict[str, Tensor]:
        """What the model's `forward` is given of what the processor made."""
        return dict(inputs)


class QwenVL(Adapter):
    """Pictures at their own aspect; rotary positions of time, row and column."""

    def fit(self, image: ImageLike, area: int, processor: ProcessorMixin) -> Image.Image:
        """The image resized to about `area` pixels, as Qwen-Image-Edit does."""
        return vlms.fit_image(image, area, processor)

    def grids(
        self, inputs: BatchFeature, image_tokens: Tensor, processor: ProcessorMixin
    ) -> list[tuple[int, int]]:
        """The grids of patches, merged."""
        merge = processor.image_processor.merge_size
        return [(h // merge, w // merge) for _, h, w in inputs["image_grid_thw"].tolist()]

    def inputs(self, inputs: BatchFeature, model: PreTrainedModel) -> dict[str, Tensor]:
        """With the 3-D positions in place of `mm_token_type_ids`, without which there are none."""
        given = dict(inputs)
        types = given.pop("mm_token_type_ids")
        positions, _ = model.model.get_rope_index(
            given["input_ids"],
            mm_token_type_ids=types,
            image_grid_thw=given["image_grid_thw"],
            attention_mask=given["attention_mask"],
        )
        return {**given, "position_ids": positions}


class Pixtral(Adapter):
    """Pictures at their own aspect, a break token after each row."""

    def fit(self, image: ImageLike, area: int, processor: ProcessorMixin) -> Image.Image:
        """The image resized to about `area` pixels, the sides to Qwen's multiples."""
        return vlms.resize(image, area, processor.patch_size * processor.spatial_merge_size)

    def grids(
        self, inputs: BatchFeature, image_tokens: Tensor, processor: ProcessorMixin
    ) -> list[tuple[int, int]]:
        """Sizes in pixels over the side of a token."""
        side = processor.patch_size * processor.spatial_merge_size
        return [(h // side, w // side) for h, w in torch.as_tensor(inputs["image_sizes"]).tolist()]


class LlavaOnevision(Adapter):
    """The whole picture as a square, then a closer view of it under the same token id.

    Tokens of the closer view, with their line ends, are counted as template.
    """

    def image_tokens(self, input_ids: Tensor, model: PreTrainedModel) -> Tensor:
        """The first view: Bool [B, S]."""
        vision = model.config.vision_config
        every = super().image_tokens(input_ids, model)
        return every & (every.cumsum(1) <= (vision.image_size // vision.patch_size) ** 2)


ADAPTERS: dict[str, Adapter] = {
    "qwen2_5_vl": QwenVL(
        "<|vision_end|>", "<|vision_start|>", EDIT_TEMPLATE, N_DROPPED, boxes="pixels"
    ),
    "qwen2_vl": QwenVL("<|vision_end|>", "<|vision_start|>", boxes="thousandths"),
    "qwen3_vl": QwenVL("<|vision_end|>", "<|vision_start|>", boxes="thousandths"),
    "llava_onevision": LlavaOnevision("<image>\n"),
    "internvl": Adapter("</img>\n", options={"crop_to_patches": False}),
    "mistral3": Pixtral("[IMG_END]"),
    "idefics3": Adapter("<fake_token_around_image>", options={"do_image_splitting": False}),
    "gemma3": Adapter("<end_of_image>\n\n", "\n\n<start_of_image>"),
}
"""By `config.model_type`. In Qwen3-VL the first blocks' outputs are read before the vision tower's
features are added to them (DeepStack), as `output_hidden_states` does."""


def adapter_of(model: PreTrainedModel) -> Adapter:
    """The adapter of a model's family. AbpError where there is none."""
    kind = model.config.model_type
    if kind not in ADAPTERS:
        raise AbpError(
            f"There is no adapter for VLMs of type {kind!r}; give ConditionEncoder one (known: "
            f"{', '.join(ADAPTERS)}) and prove it with abplib.vlm.conformance."
        )
    return ADAPTERS[kind]


def _chat(processor: ProcessorMixin) -> str:
    """The processor's chat template filled with the system prompt, one picture and a slot."""
    user = [{"type": "image"}, {"type": "text", "text": _SLOT}]
    chat = [
        {"role": "system", "content": [{"type": "text", "text": EDIT_SYSTEM}]},
        {"role": "user", "content": user},
    ]
    try:
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises what it likes
        reason = " ".join(str(error).split()).rstrip(".")
        raise AbpError(
            f"The processor's chat template takes no system prompt and picture ({reason[:200]}); "
            "give the adapter a `template`."
        ) from error
    return str(text)
