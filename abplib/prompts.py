"""Prompts, verbatim: the paper's (A.1) and Qwen-Image-Edit's, and the chats made from them."""

from __future__ import annotations

from typing import Any

GROUNDING_SYSTEM = (
    "Given the image and the user’s text instruction, identify the object or objects that are "
    "the subject of this edit instruction, then explain how the user’s text instruction should "
    "alter or modify the image. Generate a bounding box that meets the user’s requirements for "
    "the edit. Do not include any other text or formatting, where (x1, y1) is the top-left "
    "corner and (x2, y2) is the bottom-right corner."
)
"""The system prompt of appendix A.1, its line breaks joined by spaces."""

EDIT_SYSTEM = (
    "Describe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. "
    "Generate a new image that meets the user's requirements while maintaining consistency with "
    "the original input where appropriate."
)
"""The system prompt under which Qwen-Image-Edit runs its condition encoder."""

EDIT_PREFIX = f"<|im_start|>system\n{EDIT_SYSTEM}<|im_end|>\n<|im_start|>user\n"
"""The part of `EDIT_TEMPLATE` whose tokens the pipeline drops from the condition."""

EDIT_TEMPLATE = (
    EDIT_PREFIX + "<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
)
"""`QwenImageEditPipeline.prompt_template_encode`; the instruction takes the place of `{}`."""

N_DROPPED = 64
"""Tokens of `EDIT_PREFIX`: `QwenImageEditPipeline.prompt_template_encode_start_idx`."""

DESCRIBE_SYSTEM = "You are a helpful assistant."
"""Qwen2.5-VL's own default system prompt."""

DESCRIBE_INSTRUCTION = "Describe this image."


def grounding_chat(instruction: str) -> list[dict[str, Any]]:
    """The chat that asks a standalone VLM for the box of an edit (section 4.1, A.1)."""
    return [
        {"role": "system", "content": GROUNDING_SYSTEM},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]},
    ]
