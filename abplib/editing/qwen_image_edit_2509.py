"""Qwen-Image-Edit-2509: the same parts, but its VLM sees a smaller copy, announced as a picture.

The paper makes its data with it (appendix A.2). The VLM's copy has 384 x 384 pixels where the VAE's
has 1024 x 1024, and stands behind the words "Picture 1: ", which are a part of the condition.
diffusers' own pipeline loses the VLM's 3-D positions; here they are passed, as for
Qwen-Image-Edit.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import (
    CONDITION_IMAGE_SIZE,
    VAE_IMAGE_SIZE,
)

from abplib.editing import loading
from abplib.editing.methods import OTHERS
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.prompts import EDIT_PREFIX, EDIT_TEMPLATE, N_DROPPED
from abplib.vlm.adapters import QwenVL
from abplib.vlm.encoder import ConditionEncoder

ANNOUNCED = "Picture 1: "
"""What stands before the image in the user's turn."""

_TURN = EDIT_TEMPLATE.replace(EDIT_PREFIX, EDIT_PREFIX + ANNOUNCED)
_ADAPTER = QwenVL("<|vision_end|>", ANNOUNCED + "<|vision_start|>", _TURN, N_DROPPED)


@dataclass(frozen=True, eq=False)
class QwenImageEditor2509(QwenImageEditor):
    """A Qwen-Image-Edit-2509 pipeline with its settings."""

    kind = QwenImageEditPlusPipeline
    title = OTHERS["qwen_image_edit_2509"].label
    steps = 40

    @property
    def name(self) -> str:
        """Its own."""
        return self.title

    def encoder(self, size: tuple[int, int]) -> ConditionEncoder:
        """The pipeline's own VLM, which fits pictures of this size to that of its copy."""
        return ConditionEncoder(
            loading.awake(self.pipeline.text_encoder),
            self.pipeline.processor,
            image_area=round(size[0] * size[1] * CONDITION_IMAGE_SIZE / VAE_IMAGE_SIZE),
            fingerprint=self.source.fingerprint,
            adapter=_ADAPTER,
        )
