from __future__ import annotations

from diffusers import QwenImageEditPipeline

from abplib import prompts
from abplib.vlm.encoder import ConditionEncoder


def test_the_edit_template_is_the_pipelines() -> None:
    pipeline = QwenImageEditPipeline(*[None] * 6)
    assert pipeline.prompt_template_encode == prompts.EDIT_TEMPLATE
    assert pipeline.prompt_template_encode_start_idx == prompts.N_DROPPED


def test_the_grounding_chat_shows_the_image_before_the_instruction(
    encoder: ConditionEncoder,
) -> None:
    text = encoder.processor.apply_chat_template(
        prompts.grounding_chat("remove {it}"), tokenize=False, add_generation_prompt=True
    )
    assert text == (
        f"<|im_start|>system\n{prompts.GROUNDING_SYSTEM}<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>remove {it}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
